//! Binding as a part of the login (XEP-0386): the server makes the resource, and the same one for the same client.

use minidom::Element;
use stanza::{Condition, FullJid, ResourcePart, StanzaError, ns};

use super::sasl2::{Entering, Stage};
use super::{Act, Acts, Negotiation, State};
use crate::features::BIND2;
use crate::management;

impl Negotiation {
    /// Binds, if that was asked for.
    pub(super) fn bind_inline(&mut self, mut entering: Box<Entering>, acts: &mut Acts) {
        let is_offered = self.offer_now().inline.as_ref().is_some_and(|inline| inline.bind.is_some());
        let Some(bind) = entering.wish.bind.take().filter(|_| is_offered) else {
            return self.enter_unbound(&entering, acts);
        };
        let account = entering.account.clone();
        let client = entering.wish.client.as_deref();
        let client = client.map(|client| self.settings.stable_resource(&account, client));
        // Section 3.2.1: the tag as it is, if a resource can begin with it.
        let end = client.clone().unwrap_or_else(|| self.settings.token());
        let tagged =
            bind.tag.and_then(|tag| ResourcePart::new(&format!("{tag}/{end}")).ok().map(|r| r.into_owned()));
        let plain = || ResourcePart::new(&end).ok().map(|resource| resource.into_owned());
        let resource = tagged.or_else(plain).unwrap_or_else(|| self.settings.make_resource());
        let client = client.map(Into::into);
        self.state = State::Entering(entering, Stage::Binding);
        acts.push(Act::BindInline { account, resource, client, asked: bind.asked });
    }

    /// The answer to [`Act::BindInline`]: the session's address, and what is to be said of what was enabled.
    pub fn on_bound_inline(&mut self, bound: Result<(FullJid, Vec<Element>), StanzaError>) -> Acts {
        let mut acts = Acts::new();
        let mut entering = match std::mem::replace(&mut self.state, State::Open) {
            State::Entering(entering, Stage::Binding) => entering,
            other => {
                self.state = other;
                return acts;
            }
        };
        match bound {
            Ok((jid, said)) => {
                let is_managed = said.iter().any(|child| child.is("enabled", management::NS));
                let mut bound = Element::bare("bound", BIND2);
                for child in said {
                    bound.append_child(child);
                }
                entering.children.push(bound);
                self.succeed(&entering, Some(&jid), &mut acts);
                // XEP-0198, 3: a client that enabled it and is offered it once more may do so, and that ends its stream.
                let is_done = |feature: &Element| {
                    feature.is("session", ns::SESSION) || is_managed && feature.is("sm", management::NS)
                };
                let offered = self.offered.iter().filter(|feature| !is_done(feature));
                let features: Vec<Element> = offered.cloned().collect();
                self.send(&mut acts, |writer, out| writer.features(&features, out));
                acts.push(Act::Bound { jid });
                self.state = State::Done;
            }
            Err(error) => {
                // The XEP does not say how: the login has succeeded all the same, and a client that sees why it is not
                // bound may ask again as of old.
                entering.children.push(failed(error.condition));
                self.enter_unbound(&entering, &mut acts);
            }
        }
        acts
    }
}

fn failed(condition: Condition) -> Element {
    let mut failed = Element::bare("failed", BIND2);
    failed.append_child(Element::bare(condition.tag(), ns::STANZA_ERRORS));
    failed
}

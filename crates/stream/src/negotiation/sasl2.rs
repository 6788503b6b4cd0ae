//! Logins by the extensible profile (XEP-0388): the same mechanisms, one answer for all that was asked for with them.

use minidom::Element;
use stanza::{BareJid, Condition, FullJid, StreamCondition};

use super::wish::Wish;
use super::{Act, Acts, Negotiation, State};
use crate::features::{self, SASL2};
use crate::management;
use crate::sasl::token::TokenKey;
use crate::sasl::{MechanismName, SaslCondition, Step};

/// A client that has proved who it is and was not told so.
pub(super) struct Entering {
    pub account: BareJid,
    pub wish: Box<Wish>,
    /// The children of the `<success/>` that it will get.
    pub children: Vec<Element>,
}

/// What the caller is to do for a client that enters.
pub(super) enum Stage {
    /// Note what becomes of its tokens; how it has logged in.
    Settling(MechanismName),
    /// Hand over what modules offer.
    Admitted,
    /// Look for the session of this id.
    Resuming(Box<str>),
    /// Bind.
    Binding,
}

impl Negotiation {
    /// Whether such logins are possible on this stream.
    pub(super) fn is_sasl2(&self) -> bool {
        self.host.is_some() && self.offer_now().inline.is_some()
    }

    pub(super) fn on_sasl2(&mut self, element: &Element, acts: &mut Acts) {
        if self.account.is_some() {
            // XEP-0388, 6.8: who is authenticated does not authenticate again.
            return self.fail(acts, StreamCondition::PolicyViolation.into());
        }
        let is_running = self.wish.is_some();
        let step = match (element.name(), &mut self.state) {
            ("authenticate", State::Open) => {
                let wish = self.wish.insert(Box::new(Wish::read(element)));
                let is_malformed = wish.is_malformed;
                let payload = || match element.get_child("initial-response", SASL2) {
                    // 2.2: an element that is there and empty is a message of no bytes.
                    Some(response) => features::sasl2_payload(response).map(Some),
                    None => Ok(None),
                };
                match is_malformed {
                    true => Step::Fail(SaslCondition::MalformedRequest),
                    false => self.begin_with(element, payload).unwrap_or_else(Step::Fail),
                }
            }
            ("response", State::Exchange { mechanism, .. }) if is_running => {
                match features::sasl2_payload(element) {
                    Ok(payload) => mechanism.message(&payload),
                    Err(condition) => Step::Fail(condition),
                }
            }
            ("next" | "task-data", State::Upgrading(_)) => match self.on_task(element, acts) {
                Ok(()) => return,
                Err(condition) => Step::Fail(condition),
            },
            ("abort", State::Open) => Step::Fail(SaslCondition::Aborted),
            ("abort", State::Exchange { .. } | State::Upgrading(_)) if is_running => {
                Step::Fail(SaslCondition::Aborted)
            }
            ("response" | "next" | "task-data", State::Open) => Step::Fail(SaslCondition::MalformedRequest),
            // 2.4: nothing else while a login runs, of this profile or of the other.
            _ => return self.fail(acts, StreamCondition::PolicyViolation.into()),
        };
        // What fails here is said in this profile, whether there is a login or not.
        self.wish.get_or_insert_default();
        self.apply(step, acts);
    }

    /// The client is who it says; what it asked for is done before it hears so.
    pub(super) fn enter(
        &mut self,
        account: BareJid,
        mechanism: MechanismName,
        (data, key): (Option<Vec<u8>>, Option<TokenKey>),
        wish: Box<Wish>,
        acts: &mut Acts,
    ) {
        if let Some(hash) = self.upgrade(mechanism, &wish) {
            self.wish = Some(wish);
            return self.begin_upgrade(account, mechanism, data, hash, acts);
        }
        let data = data.map(|data| features::sasl2("additional-data", Some(&data)));
        let entering = Box::new(Entering { account, wish, children: data.into_iter().collect() });
        match self.settling(&entering, mechanism, key) {
            Some(settling) => {
                self.state = State::Entering(entering, Stage::Settling(mechanism));
                acts.push(Act::SettleTokens(Box::new(settling)));
            }
            None => self.admit(entering, mechanism, acts),
        }
    }

    pub(super) fn admit(&mut self, entering: Box<Entering>, mechanism: MechanismName, acts: &mut Acts) {
        let account = entering.account.clone();
        self.account = Some(account.clone());
        self.state = State::Entering(entering, Stage::Admitted);
        acts.push(Act::Authenticated { account, mechanism });
        acts.push(Act::Admitted);
    }

    /// The answer to [`Act::Admitted`].
    pub fn on_admitted(&mut self) -> Acts {
        let mut acts = Acts::new();
        match std::mem::replace(&mut self.state, State::Open) {
            State::Entering(entering, Stage::Admitted) => self.resume_first(entering, &mut acts),
            other => self.state = other,
        }
        acts
    }

    /// XEP-0198, 9.2: a resumption comes before all else, and leaves nothing else to do.
    fn resume_first(&mut self, mut entering: Box<Entering>, acts: &mut Acts) {
        let is_offered = self.offered.iter().any(|feature| feature.is("sm", management::NS));
        match entering.wish.resume.take() {
            None => self.bind_inline(entering, acts),
            Some(_) if !is_offered => {
                self.not_resumed(entering, Condition::FeatureNotImplemented, None, acts);
            }
            Some(Err(condition)) => self.not_resumed(entering, condition, None, acts),
            Some(Ok(resume)) => {
                let account = entering.account.clone();
                self.state = State::Entering(entering, Stage::Resuming(resume.id.as_str().into()));
                acts.push(Act::Resume { account, resume });
            }
        }
    }

    pub(super) fn enter_resumed(
        &mut self,
        mut entering: Box<Entering>,
        id: &str,
        resumed: Result<(FullJid, u32), (Condition, Option<u32>)>,
        acts: &mut Acts,
    ) {
        match resumed {
            Ok((jid, handled)) => {
                entering.children.push(management::resumed(id, handled));
                self.succeed(&entering, Some(&jid), acts);
                acts.push(Act::Bound { jid });
                self.state = State::Done;
            }
            Err((condition, handled)) => self.not_resumed(entering, condition, handled, acts),
        }
    }

    /// XEP-0198, 9.2.1: it is said, and a new session is bound.
    fn not_resumed(
        &mut self,
        mut entering: Box<Entering>,
        condition: Condition,
        handled: Option<u32>,
        acts: &mut Acts,
    ) {
        entering.children.push(management::failed(condition, handled));
        self.bind_inline(entering, acts);
    }

    /// The client is in, and not bound: it may bind as of old.
    pub(super) fn enter_unbound(&mut self, entering: &Entering, acts: &mut Acts) {
        self.succeed(entering, None, acts);
        let features = self.features();
        self.send(acts, |writer, out| writer.features(&features, out));
        self.state = State::Open;
    }

    /// `<success/>` (XEP-0388, 2.6.1): a full JID where there is a session.
    pub(super) fn succeed(&mut self, entering: &Entering, session: Option<&FullJid>, acts: &mut Acts) {
        let jid = session.map_or(entering.account.as_str(), |session| session.as_str());
        let mut success = Element::bare("success", SASL2);
        success.append_child(features::text_element("authorization-identifier", SASL2, jid));
        for child in &entering.children {
            success.append_child(child.clone());
        }
        self.send(acts, |writer, out| writer.element(&success, out));
    }
}

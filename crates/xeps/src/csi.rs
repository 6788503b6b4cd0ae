//! [XEP-0352]: Client State Indication. What can wait does, while nobody looks at a client.
//!
//! Presence, chat states without text and events of nodes (XEP-0060) wait: of those about the same the last one, in the
//! order in which they came. Anything else goes at once, with all that waits before it.
//!
//! [XEP-0352]: https://xmpp.org/extensions/xep-0352.html

use std::sync::Arc;

use hooks::{
    Answer, Binding, Card, Holding, Hooks, Module, Offer, Offering, Services, SessionView, Speaking, Status,
    Step, Xep,
};
use minidom::Element;
use stanza::{Kind, MessageType, PresenceType, Stanza};

use crate::xml::element;

const NS: &str = "urn:xmpp:csi:0";
const CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";
const EVENTS: &str = "http://jabber.org/protocol/pubsub#event";

/// Hears from clients whether anybody looks at them.
pub struct Csi;

impl Module for Csi {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 352,
                title: "Client State Indication",
                version: "1.0.0",
                status: Status::Stable,
            }],
            ..Card::new("csi", "Leaves clients in peace that nobody looks at: what can wait does.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.offering(self.clone());
        hooks.speaking(NS, self.clone());
        hooks.binding(Step::Alter, self.clone());
        hooks.holding(self);
    }
}

impl Offering for Csi {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        match offer.account {
            Some(_) => vec![element("csi", NS)],
            None => Vec::new(),
        }
    }
}

impl Speaking for Csi {
    fn speaking<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        element: &'a Element,
        _: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>> {
        heed(session, element);
        // Section 4.2: there is no reply to anything.
        Answer::Now(Vec::new())
    }
}

/// XEP-0386, 3.2: a session may begin while nobody looks.
impl Binding for Csi {
    fn enables(&self) -> &'static [&'static str] {
        &[NS]
    }

    fn binding<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        asked: &'a [Element],
        _: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>> {
        asked.iter().filter(|asked| asked.has_ns(NS)).for_each(|asked| heed(session, asked));
        Answer::Now(Vec::new())
    }
}

fn heed(session: &SessionView, said: &Element) {
    match said.name() {
        "inactive" => session.set_inactive(true),
        "active" => session.set_inactive(false),
        _ => {}
    }
}

impl Holding for Csi {
    fn holding(&self, _: &SessionView, stanza: &Stanza) -> Option<String> {
        let from = stanza.head.from.as_ref()?;
        match stanza.head.kind {
            Kind::Presence => match stanza.presence_type() {
                // Of a room's occupants as well: who they are is in their full JIDs.
                Ok(PresenceType::Available | PresenceType::Unavailable) => Some(format!("presence {from}")),
                _ => None,
            },
            Kind::Message if stanza.message_type() == MessageType::Error => None,
            Kind::Message => {
                if stanza.has_named(&["body"]) && !stanza.has_named(&["event"]) {
                    return None;
                }
                let is_state = |child: &&Element| child.has_ns(CHAT_STATES);
                let dom = stanza.dom();
                if let Some(event) = dom.get_child("event", EVENTS) {
                    // Of one item the last word, whether it came or was taken back.
                    let child = event.children().next()?;
                    let node = child.attr("node")?;
                    let ids: Vec<&str> = child.children().filter_map(|item| item.attr("id")).collect();
                    return Some(format!("event {from} {node} {}", ids.join(" ")));
                }
                // XEP-0085, 5.5: nothing but a state, and the thread that it belongs to, or hints about it.
                let is_idle = |child: &Element| {
                    child.has_ns(CHAT_STATES) || child.name() == "thread" || child.has_ns(crate::hints::NS)
                };
                let only_state = dom.children().all(is_idle) && dom.children().any(|child| is_state(&child));
                only_state.then(|| format!("state {from}"))
            }
            Kind::Iq => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    #[test]
    fn a_session_that_is_bound_with_its_login_may_begin_unseen() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Csi)]);
            let alice = bench.login("alice@localhost/phone").await;
            for (asked, inactive) in [("inactive", true), ("active", false), ("other", false)] {
                let asked = [element(asked, NS), element("inactive", "urn:x")];
                assert!(bench.registry().bind(alice.view(), &asked, &bench.services()).await.is_empty());
                assert_eq!(alice.view().is_inactive(), inactive);
            }
        });
    }
}

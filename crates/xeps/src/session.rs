//! RFC 3921, section 3: Session Establishment. A no-op that old clients still ask for.

use std::sync::Arc;

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Offer, Offering, Passage, Reply};
use minidom::Element;
use stanza::{Condition, IqType, StanzaError, ns};

use crate::xml::{Build, element};

/// Offers the session as optional, and answers who asks for it.
pub struct Session;

impl Module for Session {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 3921, section 3"],
            ..Card::new("session", "Lets old clients establish a session, which has no meaning any more.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, ns::SESSION, self.clone());
        hooks.answering(Addressee::Account, ns::SESSION, self.clone());
        hooks.offering(self);
    }
}

impl Offering for Session {
    fn offering(&self, offer: &Offer) -> Vec<Element> {
        if offer.account.is_none() {
            return Vec::new();
        }
        // A client that knows the marker spares itself the round trip.
        vec![element("session", ns::SESSION).child(element("optional", ns::SESSION))]
    }
}

impl Answering for Session {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let own = passage.account.is_none() || passage.is_own();
        Answer::Now(match passage.stanza.iq_type() {
            Ok(IqType::Set) if own => Reply::empty(),
            Ok(IqType::Set) => Reply::Error(StanzaError::new(Condition::ServiceUnavailable)),
            _ => Reply::Error(StanzaError::new(Condition::BadRequest)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    #[test]
    fn an_old_client_gets_its_session() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Session)]);
            assert_eq!(bench.offered("alice@localhost").len(), 1);
            let alice = bench.login("alice@localhost/phone").await;
            let ask = "<iq type='set' id='1'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>";
            alice.send(ask).await;
            assert_eq!(alice.hears(), ["<iq to='alice@localhost/phone' id='1' type='result'/>"]);
        });
    }
}

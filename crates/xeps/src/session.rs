//! RFC 3921, section 3: Session Establishment. A no-op that old clients still ask for.

use std::sync::Arc;

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Offer, Offering, Passage, Reply, Services};
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
        hooks.answering(Addressee::Host, ns::BIND, Arc::new(Binding));
        hooks.answering(Addressee::Account, ns::BIND, Arc::new(Binding));
        hooks.offering(self);
    }
}

/// Refuses to bind a stream once more.
struct Binding;

impl Answering for Binding {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let own = passage.account.is_none() || passage.is_own();
        // RFC 6120, 7.6.2.2: a stream has one resource, and this one has it.
        let condition = if own { Condition::NotAllowed } else { Condition::ServiceUnavailable };
        Answer::Now(Reply::Error(StanzaError::new(condition)))
    }
}

impl Offering for Session {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
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

    #[test]
    fn a_stream_is_bound_once() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Session)]);
            bench.account("bob@localhost");
            let alice = bench.login("alice@localhost/phone").await;
            for (to, condition) in [
                ("", Condition::NotAllowed),
                ("to='localhost'", Condition::NotAllowed),
                ("to='alice@localhost'", Condition::NotAllowed),
                ("to='bob@localhost'", Condition::ServiceUnavailable),
            ] {
                let bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>desk</resource></bind>";
                alice.send(&format!("<iq type='set' id='1' {to}>{bind}</iq>")).await;
                let heard = alice.hears_stanzas();
                assert_eq!(heard[0].as_error().map(|error| error.condition), Some(condition), "{to}");
            }
        });
    }
}

//! [XEP-0199]: XMPP Ping. Tells a client that its stream and the server are alive.

use std::sync::Arc;

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Status, Xep};
use stanza::{Condition, IqType, StanzaError};

const NS: &str = "urn:xmpp:ping";

/// Answers pings to a host, and those to an account on behalf of it.
pub struct Ping;

impl Module for Ping {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 199, title: "XMPP Ping", version: "2.0.1", status: Status::Final }],
            host_features: &[NS],
            account_features: &[NS],
            ..Card::new("ping", "Answers pings, so that a client knows that its connection lives.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self.clone());
        hooks.answering(Addressee::Account, NS, self);
    }
}

impl Answering for Ping {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let is_ping = passage.stanza.child("ping", NS).is_some();
        Answer::Now(match passage.stanza.iq_type() {
            // XEP-0199, section 4.5: an account is no more than its address; a stranger learns nothing.
            Ok(IqType::Get) if is_ping && (passage.account.is_none() || passage.is_own()) => Reply::empty(),
            Ok(IqType::Get) if is_ping => Reply::Error(StanzaError::new(Condition::ServiceUnavailable)),
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
    fn a_ping_to_the_server_and_to_the_own_account_is_answered() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Ping)]);
            let alice = bench.login("alice@localhost/phone").await;
            alice.send("<iq type='get' id='1' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
            alice.send("<iq type='get' id='2'><ping xmlns='urn:xmpp:ping'/></iq>").await;
            assert_eq!(
                alice.hears(),
                [
                    "<iq to='alice@localhost/phone' from='localhost' id='1' type='result'/>",
                    "<iq to='alice@localhost/phone' id='2' type='result'/>",
                ]
            );
        });
    }

    #[test]
    fn a_ping_to_a_strangers_account_tells_nothing() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Ping)]);
            let alice = bench.login("alice@localhost/phone").await;
            bench.account("bob@localhost");
            alice.send("<iq type='get' id='1' to='bob@localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
            let heard = alice.hears_stanzas();
            assert_eq!(heard[0].as_error().unwrap().condition, Condition::ServiceUnavailable);
        });
    }
}

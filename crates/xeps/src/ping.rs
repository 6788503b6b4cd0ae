//! [XEP-0199]: XMPP Ping. Tells a client that its stream and the server are alive.

use std::sync::Arc;

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Status, Xep};
use stanza::{Condition, IqType, StanzaError};

use crate::failure::store_failed;
use crate::rosters::Rosters;

const NAME: &str = "ping";
const NS: &str = "urn:xmpp:ping";

/// Answers pings to a host, and those to an account on behalf of it.
pub struct Ping {
    rosters: Arc<Rosters>,
}

impl Ping {
    pub fn new(rosters: Arc<Rosters>) -> Ping {
        Ping { rosters }
    }
}

impl Module for Ping {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 199, title: "XMPP Ping", version: "2.0.1", status: Status::Final }],
            host_features: &[NS],
            account_features: &[NS],
            ..Card::new(NAME, "Answers pings, so that a client knows that its connection lives.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self.clone());
        hooks.answering(Addressee::Account, NS, self);
    }
}

impl Answering for Ping {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        if passage.stanza.iq_type() != Ok(IqType::Get) || !passage.stanza.has_child("ping", NS) {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::BadRequest)));
        }
        let (Some(account), false) = (&passage.account, passage.is_own()) else {
            return Answer::Now(Reply::empty());
        };
        // XEP-0199, 4.4: one to an account is answered on behalf of it; a stranger learns nothing.
        let judge = |may_see: bool| match may_see {
            true => Reply::empty(),
            false => Reply::Error(StanzaError::new(Condition::ServiceUnavailable)),
        };
        let Some(from) = &passage.stanza.head.from else { return Answer::Now(judge(false)) };
        if let Some(roster) = self.rosters.cached(account) {
            return Answer::Now(judge(roster.lets_see(from)));
        }
        let services = &*passage.services;
        Answer::later(async move {
            match self.rosters.of(services, account).await {
                Ok(roster) => judge(roster.lets_see(from)),
                Err(error) => Reply::Error(store_failed(NAME, &error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    fn bench() -> Bench {
        Bench::new(&["localhost"], || vec![Arc::new(Ping::new(Arc::new(Rosters::new(Default::default()))))])
    }

    #[test]
    fn a_ping_to_the_server_and_to_the_own_account_is_answered() {
        block_on(async {
            let bench = bench();
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
            let bench = bench();
            let alice = bench.login("alice@localhost/phone").await;
            bench.account("bob@localhost");
            alice.send("<iq type='get' id='1' to='bob@localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
            let heard = alice.hears_stanzas();
            assert_eq!(heard[0].as_error().unwrap().condition, Condition::ServiceUnavailable);
        });
    }
}

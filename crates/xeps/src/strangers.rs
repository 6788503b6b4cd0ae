//! RFC 6121, sections 8.1 and 8.5: a request of a stranger gets the same answer of whomever it asks.

use std::sync::Arc;

use hooks::{Answer, Arriving, Card, Hooks, Leaving, Module, Passage, Step};
use jid::{BareJid, Jid};
use stanza::address::same_account;
use stanza::{Condition, Head, IqType, Kind, Stanza, StanzaError};

use crate::failure::store_failed;
use crate::rosters::{Roster, Rosters};
use crate::{pubsub, vcard};

const NAME: &str = "strangers";

crate::settings! {
    /// `[modules.strangers]`
    pub struct Config {
        /// Whether a session that is named by its full address gets requests (iq) of those who may not see its presence; if not, they are told `service-unavailable`, as if it were not there.
        iq_to_sessions: bool = false,
        /// Whether anybody gets the vCards of accounts (XEP-0054 calls them world-readable): of somebody who has one it can then be told that the account exists.
        vcards: bool = false,
        /// Whether anybody gets what users publish for all at nodes of the access model `open`, as keys for encryption, and may subscribe where a user decides on each: of somebody who has such a node it can then be told that the account exists.
        open_nodes: bool = true,
    }
}

/// Refuses the requests of those who may not see whom they ask, before anybody looks whether that account or
/// session is there.
pub struct Strangers {
    config: Config,
    rosters: Arc<Rosters>,
}

impl Strangers {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> Strangers {
        Strangers { config, rosters }
    }
}

impl Module for Strangers {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6121, sections 8.1 and 8.5"],
            ..Card::new(NAME, "Keeps from strangers which accounts exist and which sessions are there.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.arriving(Step::Guard, self);
    }
}

fn is_request(head: &Head) -> bool {
    head.kind == Kind::Iq && matches!(head.type_.as_deref(), Some("get" | "set"))
}

/// RFC 6121, 8.5.1, 8.5.2.1.3 and 8.5.3.1: what a request gets where nobody is, and so wherever it is refused.
fn unavailable() -> Answer<'static> {
    Answer::refuse(StanzaError::new(Condition::ServiceUnavailable))
}

/// A request to an account: the sender's own roster says who is a stranger, and it is at hand. So the answer
/// costs the same work whether the account exists or not.
impl Leaving for Strangers {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let head = &passage.stanza.head;
        let (true, Some(to), Some(account)) = (is_request(head), &head.to, &passage.account) else {
            return Answer::PASS;
        };
        let is_account = to.is_bare() && to.node().is_some();
        if !is_account
            || self.is_open(&passage.stanza)
            || same_account(to, account)
            || !passage.services.is_local_host(to.domain().as_str())
        {
            return Answer::PASS;
        }
        let judge = |roster: &Roster, to: &Jid| match roster.standing(to).to {
            true => Answer::PASS,
            false => unavailable(),
        };
        if let Some(roster) = self.rosters.cached(account) {
            return judge(&roster, to);
        }
        Answer::later(async move {
            match self.rosters.of(&*passage.services, account).await {
                Ok(roster) => judge(&roster, to).await,
                Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
            }
        })
    }
}

impl Arriving for Strangers {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let head = &passage.stanza.head;
        let (true, Some(from), Some(to), Some(account)) =
            (is_request(head), &head.from, &head.to, &passage.account)
        else {
            return Answer::PASS;
        };
        // Judged on the sender's side, which is here.
        let is_judged = to.is_bare() && passage.sender.is_some();
        let is_open = match to.is_full() {
            true => self.config.iq_to_sessions,
            false => self.is_open(&passage.stanza),
        };
        if is_judged || is_open || same_account(from, account) || self.is_met(passage, account, from, to) {
            return Answer::PASS;
        }
        let judge = |roster: &Roster, from: &Jid| match roster.lets_see(from) {
            true => Answer::PASS,
            false => unavailable(),
        };
        if let Some(roster) = self.rosters.cached(account) {
            return judge(&roster, from);
        }
        Answer::later(async move {
            match self.rosters.of(&*passage.services, account).await {
                Ok(roster) => judge(&roster, from).await,
                Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
            }
        })
    }
}

impl Strangers {
    /// Whether anybody may ask an account this: for what it shows to all.
    fn is_open(&self, stanza: &Stanza) -> bool {
        let Some(payload) = stanza.payload() else { return false };
        let is_get = stanza.iq_type() == Ok(IqType::Get);
        let asks = |names: &[&str]| payload.children().any(|child| names.contains(&child.name()));
        if payload.has_ns(pubsub::NS) {
            // To others than those who may see the node, `pep` says what `unavailable` says.
            let names: &[&str] = if is_get { &["items"] } else { &["subscribe", "unsubscribe"] };
            return self.config.open_nodes && asks(names);
        }
        self.config.vcards && is_get && payload.has_ns(vcard::NS)
    }

    /// Whether who asks is one of our hosts, or was sent presence by the session that is asked.
    fn is_met(&self, passage: &Passage, account: &BareJid, from: &Jid, to: &Jid) -> bool {
        let services = &*passage.services;
        let is_ours = services.is_local_host(from.domain().as_str());
        if from.node().is_none() && is_ours {
            return true;
        }
        let bare = from.to_bare();
        services.local_sessions(account).iter().any(|session| {
            session.jid().as_str() == to.as_str()
                && (session.is_directed_to(from)
                    || session.is_directed_to(&Jid::from(bare.clone()))
                    // A room speaks for all who are in it.
                    || (!is_ours && session.is_directed_to_any_of(&bare)))
        })
    }
}

#[cfg(test)]
#[path = "strangers_tests.rs"]
mod tests;

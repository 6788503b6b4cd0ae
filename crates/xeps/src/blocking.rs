//! [XEP-0191]: Blocking Command. Nothing passes between a user and whom they have blocked.
//!
//! Left out: presence goes to the account of a contact, so that of several resources of a contact none can be left
//! out of a broadcast; a block of a single resource holds for what is sent to it or comes from it by name. What
//! was kept for a user who was away before they blocked its sender is handed over all the same. A list is not shown
//! among privacy lists (XEP-0016, which section 5 would map it to): both are kept apart, and what either denies does not
//! pass.
//!
//! A change is told to every session of the account by a stanza of our own, so that the nodes that cache the list
//! forget it; each node then tells its clients and their contacts, and confirms. The client that made the change has
//! its answer once all have confirmed: from then on nothing from the blocked arrives, at whatever node.

pub(crate) mod told;

use std::collections::BTreeSet;
use std::sync::Arc;

use hooks::{
    Addressee, Answer, Answering, Arriving, Card, Delivering, Following, Forgetting, Hooks, Leaving, Module,
    Moving, Passage, Reply, Services, SessionEvent, SessionView, Status, Step, Verdict, Xep,
};
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::address::{self, same_account};
use stanza::{Condition, ErrorKind, IqType, Kind, MessageType, Stanza, StanzaError};

use self::told::{Asked, Unconfirmed};
use crate::blocklists::{Blocklist, Blocklists, Change};
use crate::failure::{Failure, bad_request, store_failed};
use crate::offline::keeps_messages;
use crate::privacylists::PrivacyLists;
use crate::reports::Reports;
use crate::rosters::{Roster, Rosters};
use crate::xml::{Build, element};

const NAME: &str = "blocking";
const NS: &str = "urn:xmpp:blocking";
const ERRORS: &str = "urn:xmpp:blocking:errors";

crate::settings! {
    /// `[modules.blocking]`
    pub struct Config {
        /// The most addresses that one account may block; a client that blocks more is told `resource-constraint`.
        items_max: usize = 1_000,
        /// The most bytes of one account's list, at most 900000; at the bound as above.
        bytes_max: usize = 256 * 1024,
        /// Whether a message of who is blocked and no contact ends as one to an account that does not exist, in silence where messages are kept for users who are away; if not, it is refused with `service-unavailable` as that of a contact is.
        strangers_unanswered: bool = true,
    }
}

/// Keeps block lists, and both directions to them.
pub struct Blocking {
    config: Config,
    lists: Arc<Blocklists>,
    rosters: Arc<Rosters>,
    privacy: Arc<PrivacyLists>,
    reports: Arc<Reports>,
    unconfirmed: Arc<Unconfirmed>,
}

impl Blocking {
    pub fn new(
        config: Config,
        lists: Arc<Blocklists>,
        rosters: Arc<Rosters>,
        privacy: Arc<PrivacyLists>,
        reports: Arc<Reports>,
    ) -> Blocking {
        Blocking { config, lists, rosters, privacy, reports, unconfirmed: Arc::default() }
    }
}

impl Module for Blocking {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 191, title: "Blocking Command", version: "1.3", status: Status::Stable }],
            host_features: &[NS],
            ..Card::new(NAME, "Lets users block others, who then see them offline and cannot reach them.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.arriving(Step::Guard, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.following(self.clone());
        hooks.moving(self.clone());
        hooks.forgetting(self);
    }
}

/// A session that asked for the list is told of its changes wherever it is.
impl Moving for Blocking {
    fn pack(&self, session: &SessionView) -> Option<String> {
        session.notes().get::<Asked>().map(|_| String::new())
    }

    fn unpack(&self, session: &SessionView, _: &str) {
        session.notes().put(Asked);
    }
}

impl Answering for Blocking {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if !passage.is_own() {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        Answer::later(async {
            let answer = match wish(&passage.stanza) {
                Ok(None) => self.get(passage).await,
                Ok(Some(change)) => self.set(passage, change).await,
                Err(error) => Err(error.into()),
            };
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

/// What a request asks for: the list, or a change of it.
fn wish(stanza: &Stanza) -> Result<Option<Change>, StanzaError> {
    let (Ok(kind), Some(payload)) = (stanza.iq_type(), stanza.payload()) else {
        return Err(bad_request("no payload"));
    };
    match (kind, payload.name()) {
        (IqType::Get, "blocklist") => Ok(None),
        (IqType::Set, "block") => match items(payload)? {
            // XEP-0191, 3.3.
            items if items.is_empty() => Err(bad_request("a block names at least one item")),
            items => Ok(Some(Change::Block(items))),
        },
        (IqType::Set, "unblock") => match items(payload)? {
            // XEP-0191, 3.5.
            items if items.is_empty() => Ok(Some(Change::Clear)),
            items => Ok(Some(Change::Unblock(items))),
        },
        _ => Err(bad_request("get a `blocklist`, set a `block` or `unblock`")),
    }
}

/// The addresses that a request names, each once.
fn items(payload: &Element) -> Result<Vec<String>, StanzaError> {
    let mut items = BTreeSet::new();
    for item in payload.children().filter(|child| child.is("item", NS)) {
        let jid = item.attr("jid").ok_or_else(|| bad_request("an item needs a jid"))?;
        let jid = address::jid(jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
        items.insert(jid.as_str().to_owned());
    }
    Ok(items.into_iter().collect())
}

/// A list, or a part of one.
fn listing<'a>(name: &str, items: impl Iterator<Item = &'a str>) -> Element {
    let item = |jid| element("item", NS).with("jid", jid);
    items.fold(element(name, NS), |list, jid| list.child(item(jid)))
}

impl Blocking {
    async fn get(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        if let Some(session) = &passage.sender {
            // Before the read, so that a change beside it is pushed.
            session.notes().put(Asked);
        }
        let list = self.lists.of(&*passage.services, account).await?;
        Ok(Reply::with(listing("blocklist", list.items())))
    }

    async fn set(&self, passage: &Passage, change: Change) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        if self.unconfirmed.is_full() {
            return Err(StanzaError::new(Condition::ResourceConstraint).into());
        }
        let services = &*passage.services;
        let reports = match (&change, passage.stanza.payload()) {
            (Change::Block(_), Some(block)) => self.reports.read(services, account, block)?,
            _ => Vec::new(),
        };
        let items = self.lists.change(services, account, &change).await?;
        let reply = self.tell(passage, account, told::News { change, items }).await;
        // XEP-0377, 6: the block counts whatever becomes of them.
        self.reports.take(services, account, reports).await;
        Ok(reply)
    }

    /// Whether the account blocks `other`, which is neither its own nor its host's.
    fn judged<'a>(
        &'a self,
        services: &'a Arc<dyn Services>,
        account: &'a BareJid,
        other: &'a Jid,
        judge: impl FnOnce(&Blocklist) -> Answer<'a> + Send + 'a,
    ) -> Answer<'a> {
        if same_account(other, account) {
            return Answer::PASS;
        }
        if let Some(list) = self.lists.cached(account) {
            return judge(&list);
        }
        Answer::later(async move {
            match self.lists.of(&**services, account).await {
                Ok(list) => judge(&list).await,
                Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
            }
        })
    }
}

impl Leaving for Blocking {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let (Some(account), Some(to)) = (&passage.account, &passage.stanza.head.to) else {
            return Answer::PASS;
        };
        self.judged(&passage.services, account, to, move |list| match list.blocks(account, to) {
            true => Answer::refuse(is_blocked()),
            false => Answer::PASS,
        })
    }
}

/// XEP-0191, 3.3: what a user hears who writes to whom they block.
pub(crate) fn is_blocked() -> StanzaError {
    StanzaError::new(Condition::NotAcceptable)
        .with_kind(ErrorKind::Cancel)
        .with_extra(element("blocked", ERRORS))
}

impl Arriving for Blocking {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let (Some(account), Some(from)) = (&passage.account, &passage.stanza.head.from) else {
            return Answer::PASS;
        };
        if same_account(from, account) {
            return self.hear(passage, account, from);
        }
        self.judged(&passage.services, account, from, move |list| match list.blocks(account, from) {
            true => self.turn_away(passage, account, from),
            false => Answer::PASS,
        })
    }
}

impl Blocking {
    /// XEP-0191, 3.3: what the blocked hear.
    fn turn_away<'a>(&'a self, passage: &'a Passage, account: &'a BareJid, from: &'a Jid) -> Answer<'a> {
        let unavailable = || Answer::refuse(StanzaError::new(Condition::ServiceUnavailable));
        match passage.stanza.head.kind {
            Kind::Presence => Answer::STOP,
            Kind::Iq => match passage.stanza.iq_type() {
                Ok(IqType::Get | IqType::Set) => unavailable(),
                _ => Answer::STOP,
            },
            Kind::Message if passage.stanza.message_type() == MessageType::Error => Answer::STOP,
            Kind::Message if !self.config.strangers_unanswered || !ends_in_silence(passage) => unavailable(),
            Kind::Message => {
                let judge = move |roster: &Roster| match roster.lets_see(from) {
                    true => unavailable(),
                    // Nothing tells them that the account exists, and so nothing may tell that it blocks them.
                    false => Answer::STOP,
                };
                if let Some(roster) = self.rosters.cached(account) {
                    return judge(&roster);
                }
                Answer::later(async move {
                    match self.rosters.of(&*passage.services, account).await {
                        Ok(roster) => judge(&roster).await,
                        Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
                    }
                })
            }
        }
    }
}

/// Whether such a message to an account that does not exist is not answered (RFC 6121, 8.5.1): where it would be kept
/// for one that does, and where it would be ignored.
fn ends_in_silence(passage: &Passage) -> bool {
    let is_account = passage.stanza.head.to.as_ref().is_some_and(Jid::is_bare);
    let keeps = || keeps_messages(&*passage.services, passage.host().unwrap_or_default());
    match passage.stanza.message_type() {
        MessageType::Chat => keeps(),
        MessageType::Normal => is_account && keeps(),
        MessageType::Headline => is_account,
        MessageType::Groupchat | MessageType::Error => false,
    }
}

/// A request that waited since before its sender was blocked is not shown: it waits until they are unblocked.
impl Delivering for Blocking {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        let head = &stanza.head;
        if head.kind != Kind::Presence || head.type_.as_deref() != Some("subscribe") {
            return Verdict::Pass;
        }
        let account = session.account();
        let is_blocked = |from| self.lists.cached(account).is_some_and(|list| list.blocks(account, from));
        match head.from.as_ref().is_some_and(is_blocked) {
            true => Verdict::Stop,
            false => Verdict::Pass,
        }
    }
}

impl Following for Blocking {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            // What was cached while nobody was here to be told of changes is not to be trusted.
            SessionEvent::Bound(session)
            | SessionEvent::Returned(session)
            | SessionEvent::Resumed(session) => {
                self.lists.forget(session.account());
            }
            SessionEvent::Closed { session, .. } if services.local_sessions(session.account()).is_empty() => {
                self.lists.forget(session.account());
            }
            _ => {}
        }
        Answer::Now(())
    }
}

impl Forgetting for Blocking {
    fn forgetting<'a>(&'a self, account: &'a BareJid, _: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        self.lists.forget(account);
        Answer::Now(())
    }
}

#[cfg(test)]
#[path = "blocking/tests.rs"]
mod tests;

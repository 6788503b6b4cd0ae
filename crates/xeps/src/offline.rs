//! [XEP-0160]: Best Practices for Handling Offline Messages. A message to nobody waits for the next login.
//!
//! A client that asks what waits gets it as it likes (XEP-0013, `flexible`). Left out: discovery of single messages; who
//! asked, and went to another node since (XEP-0198), counts no more as one who reads.

mod flexible;
mod handing;

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{BoxFuture, join_all, select};
use hooks::{
    Addressee, Answer, Arriving, Binding, Card, Following, Hooks, Module, Passage, Services, SessionEvent,
    SessionView, Status, Step, Verdict, Xep,
};
use jid::{BareJid, Jid};
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::{Condition, Kind, MessageType, Stanza, StanzaError};
use store::{Batch, Committed, Expect, Range, StoreError, Stored, Table, Versioned};

use self::handing::{Handed, Pages, Taker};
use crate::failure::{Failure, store_failed};
use crate::hints::Hints;
use crate::kept::Kept;
use crate::rosters::partition;
use crate::time::utc;
use crate::xml::{Build, element};
use crate::{archive, forgeries};

const NAME: &str = "offline";
const DELAY: &str = "urn:xmpp:delay";
const CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";

/// How many messages are claimed and handed over at a time.
const PAGE: usize = 50;
/// How often a session goes through what waits for it, where others claim some of it meanwhile.
const FLUSHES: usize = 8;
/// How long a login waits until it is known what an earlier session of the account got of what waits; after that some
/// of it may come twice.
const PREDECESSOR: Duration = Duration::from_secs(5);
/// How often a change of the queue starts anew when another writer was first.
const ATTEMPTS: usize = 64;
/// The one key of an account's queue.
const KEY: &[u8] = b"";

crate::settings! {
    /// `[modules.offline]`
    pub struct Config {
        /// The most messages that wait for one account; a further one is refused with `service-unavailable`.
        messages_max: usize = 1_000,
        /// The most bytes that wait for one account, so that all of them fit the mailbox of the session that gets them; at the bound as above.
        bytes_max: usize = 512 * 1024,
    }
}

/// How much waits for an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    /// The number of the next message: the order of messages is the order of their numbers.
    next: u64,
    messages: u64,
    bytes: u64,
}

impl Stored for Queue {
    const TABLE: Table = Table("offline_queue");
    const SCHEMA: u8 = 1;
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    stanza: Kept,
    bytes: u64,
    /// The session that is about to get it. Void once that session is gone.
    claim: Option<Claim>,
}

impl Stored for Waiting {
    const TABLE: Table = Table("offline");
    const SCHEMA: u8 = 1;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    jid: String,
    sid: u128,
}

/// Keeps messages for accounts without a session that may have them, and delivers them.
#[derive(Default)]
pub struct Offline {
    config: Config,
    pages: Arc<Pages>,
}

impl Offline {
    pub fn new(config: Config) -> Offline {
        Offline { config, pages: Arc::default() }
    }
}

impl Module for Offline {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep {
                    number: 160,
                    title: "Best Practices for Handling Offline Messages",
                    version: "1.0.1",
                    status: Status::Active,
                },
                Xep {
                    number: 13,
                    title: "Flexible Offline Message Retrieval",
                    version: "1.3",
                    status: Status::Deprecated,
                },
                Xep { number: 203, title: "Delayed Delivery", version: "2.0", status: Status::Final },
                Xep {
                    number: 334,
                    title: "Message Processing Hints",
                    version: "1.0.0",
                    status: Status::Stable,
                },
            ],
            host_features: &["msgoffline", flexible::NS],
            ..Card::new(NAME, "Keeps messages for users who are away and delivers them at the next login.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.arriving(Step::Record, self.clone());
        hooks.answering(Addressee::Account, flexible::NS, self.clone());
        // Before archive says what it has.
        hooks.binding(Step::Alter, self.clone());
        hooks.following(self);
    }
}

/// Whether messages wait at that host for users who are away.
pub fn keeps_messages(services: &dyn Services, host: &str) -> bool {
    services.cards(host).iter().any(|card| card.name == NAME)
}

/// What XEP-0160, section 3 and XEP-0334, section 4 say of a message to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Neither kept nor answered: it is about a moment that has passed.
    Forget,
    /// Not ours: the rules of RFC 6121, section 8.5 decide.
    Leave,
}

fn fate(stanza: &Stanza) -> Fate {
    let hints = Hints::of(stanza);
    match stanza.message_type() {
        // No answer either, as for a chat state: whoever says this of a message could see by it who is there.
        MessageType::Normal | MessageType::Chat if hints.no_store => Fate::Forget,
        MessageType::Normal => Fate::Keep,
        MessageType::Chat if is_chat_state_only(stanza) && !hints.store => Fate::Forget,
        MessageType::Chat => Fate::Keep,
        MessageType::Groupchat | MessageType::Headline | MessageType::Error => Fate::Leave,
    }
}

fn is_chat_state_only(stanza: &Stanza) -> bool {
    let mut states = false;
    for child in stanza.dom().children() {
        match child.has_ns(CHAT_STATES) {
            true => states = true,
            false if child.name() == "thread" => {}
            false => return false,
        }
    }
    states
}

impl Arriving for Offline {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        if passage.stanza.head.kind != Kind::Message || !passage.offline || passage.fleeting {
            return Answer::PASS;
        }
        let (Some(account), Some(to)) = (passage.account.clone(), passage.stanza.head.to.clone()) else {
            return Answer::PASS;
        };
        match fate(&passage.stanza) {
            Fate::Leave => Answer::PASS,
            Fate::Forget => Answer::STOP,
            Fate::Keep => Answer::later(async move {
                match self.keep(passage, &account, &to).await {
                    Ok(verdict) => verdict,
                    Err(failure) => Verdict::refuse(failure.answer(NAME)),
                }
            }),
        }
    }
}

impl Offline {
    async fn keep(&self, passage: &Passage, account: &BareJid, to: &Jid) -> Result<Verdict, Failure> {
        let services = &*passage.services;
        if !services.account_exists(account).await? {
            return Ok(Verdict::Pass);
        }
        // A session came while the message was on its way here.
        if is_reachable(services, account, to) {
            return Ok(Verdict::Pass);
        }
        let number = self.store(services, account, &passage.stanza).await?;
        // A session that became available meanwhile may have looked before the message was there. Who does not
        // see it behind the barrier stored the message before the session was shown, so it will be found. Who
        // sees it takes the message back and sends it on its way, where it waits behind what is handed over;
        // or the session has claimed it, and hands it over before anything later.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(module = NAME, %error, "kept a message without a read barrier");
            let looks = look_at_last(&passage.services, &self.pages, account.clone(), number, 0);
            services.later(Duration::from_secs(1), looks);
        }
        if is_reachable(services, account, to) {
            match take_back(services, account, number).await {
                Ok(true) => return Ok(Verdict::Pass),
                Ok(false) => {}
                Err(error) => {
                    // It may be out of the store by now, or come from there once more: twice is better than never.
                    drop(store_failed(NAME, &error));
                    return Ok(Verdict::Pass);
                }
            }
        }
        Ok(Verdict::Stop)
    }

    /// Adds a message to the queue; returns its number.
    async fn store(
        &self,
        services: &dyn Services,
        account: &BareJid,
        stanza: &Stanza,
    ) -> Result<u64, Failure> {
        let partition = partition(account);
        let kept = Kept::of(&stamped(services, account, stanza));
        let bytes = kept.size() as u64;
        let waiting = Waiting { stanza: kept, bytes, claim: None };
        for _ in 0..ATTEMPTS {
            let (expect, queue) = queue(services, account).await?;
            let full = queue.messages >= self.config.messages_max as u64
                || queue.bytes + bytes > self.config.bytes_max as u64;
            if full {
                // XEP-0160, section 2.
                return Err(StanzaError::new(Condition::ServiceUnavailable).into());
            }
            let number = queue.next;
            let queue = Queue { next: number + 1, messages: queue.messages + 1, bytes: queue.bytes + bytes };
            let batch = Batch::new(partition.clone())
                .expect::<Queue>(KEY, expect)
                .expect::<Waiting>(key(number), Expect::Absent)
                .put(KEY, &queue)
                .put(key(number), &waiting);
            if services.store().commit_one(batch).await? == Committed::Done {
                return Ok(number);
            }
        }
        Err(StoreError::Contended { table: Queue::TABLE.0, attempts: ATTEMPTS }.into())
    }
}

/// Whether a session takes the message now (RFC 6121, 8.5.2.1.1 and 8.5.3): the one that is named, or any with
/// a priority that is not negative.
fn is_reachable(services: &dyn Services, account: &BareJid, to: &Jid) -> bool {
    services.online(account).iter().any(|resource| {
        (to.is_full() && resource.jid.as_str() == to.as_str())
            || resource.takes.is_some_and(|priority| priority >= 0)
    })
}

/// Numbers as keys in the order of their value.
fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// XEP-0203: when the message was sent, said by the host; once, however often it waits.
fn stamped(services: &dyn Services, account: &BareJid, stanza: &Stanza) -> Stanza {
    let host = account.domain().as_str();
    let ours = |child: &minidom::Element| child.is("delay", DELAY) && child.attr("from") == Some(host);
    if stanza.has_named(&["delay"]) && stanza.dom().children().any(ours) {
        return stanza.clone();
    }
    let delay = element("delay", DELAY).with("from", host).with("stamp", &utc(services.now()));
    stanza.clone().with_child(&delay)
}

async fn queue(services: &dyn Services, account: &BareJid) -> Result<(Expect, Queue), StoreError> {
    let found: Option<Versioned<Queue>> = services.store().get_versioned(&partition(account), KEY).await?;
    Ok(match found {
        Some(found) => (Expect::Version(found.version), found.value),
        None => (Expect::Absent, Queue::default()),
    })
}

/// Removes a message that no session has claimed; `false`: one has.
async fn take_back(services: &dyn Services, account: &BareJid, number: u64) -> Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let found: Option<Versioned<Waiting>> =
            services.store().get_versioned(&partition(account), key(number)).await?;
        match found {
            Some(found) if found.value.claim.is_none() => {
                if remove(services, account, &[(number, found.value.bytes, found.version)]).await? {
                    return Ok(true);
                }
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// Removes messages and counts them off, if they are what they were.
async fn remove(
    services: &dyn Services,
    account: &BareJid,
    messages: &[Message],
) -> Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let (expect, queue) = queue(services, account).await?;
        let bytes: u64 = messages.iter().map(|(_, bytes, _)| bytes).sum();
        let queue = Queue {
            next: queue.next,
            messages: queue.messages.saturating_sub(messages.len() as u64),
            bytes: queue.bytes.saturating_sub(bytes),
        };
        let mut batch = Batch::new(partition(account)).expect::<Queue>(KEY, expect).put(KEY, &queue);
        for (number, _, version) in messages {
            batch = batch.expect::<Waiting>(key(*number), Expect::Version(*version));
            batch = batch.delete::<Waiting>(key(*number));
        }
        match services.store().commit_one(batch).await? {
            Committed::Done => return Ok(true),
            Committed::Conflict { table, .. } if table == Queue::TABLE => {}
            Committed::Conflict { .. } => return Ok(false),
        }
    }
    Err(StoreError::Contended { table: Queue::TABLE.0, attempts: ATTEMPTS })
}

/// XEP-0386, 3.2: what waits is not sent to a client that was bound with its login, which reads it in the archive. What the
/// archive does not have comes as to any other.
impl Binding for Offline {
    fn binding<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        _: &'a [Element],
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>> {
        let account = session.account();
        let host = account.domain().as_str();
        // Without the second, somebody else may have said that a message is archived.
        let is_on = |name| services.cards(host).iter().any(|card| card.name == name);
        if session.is_anonymous() || !is_on(archive::NAME) || !is_on(forgeries::NAME) {
            return Answer::Now(Vec::new());
        }
        Answer::later(async move {
            if let Err(error) = leave_to_archive(&**services, account).await {
                // What is left comes twice at worst.
                drop(store_failed(NAME, &error));
            }
            Vec::new()
        })
    }
}

/// Removes what waits and is archived, but for what another session is about to get.
async fn leave_to_archive(services: &dyn Services, account: &BareJid) -> Result<(), StoreError> {
    let mut range = Range::all().limit(PAGE);
    loop {
        let page = services.store().scan_versioned::<Waiting>(&partition(account), range).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        range = Range::after(last.clone()).limit(PAGE);
        let is_free = |waiting: &Waiting| match &waiting.claim {
            None => true,
            Some(claim) => !is_bound(services, account, claim.sid),
        };
        let is_archived = |waiting: &Waiting| {
            waiting.stanza.stanza().is_some_and(|message| archive::is_archived(&message, account))
        };
        let archived = page.iter().filter(|(_, found)| is_free(&found.value) && is_archived(&found.value));
        let archived: Vec<Message> =
            archived.map(|(key, found)| (number(key), found.value.bytes, found.version)).collect();
        // Where somebody was faster with one of them, they come as to any other client.
        if !archived.is_empty() && !remove(services, account, &archived).await? {
            return Ok(());
        }
    }
}

impl Following for Offline {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        let SessionEvent::Available { session, before, priority } = event else { return Answer::Now(()) };
        if *priority < 0 || before.is_some_and(|before| before >= 0) {
            return Answer::Now(());
        }
        // Once is enough: what is kept from here on was kept by somebody who sees this session, and who takes
        // it back. Meanwhile other messages to the account are held, since before the session could be seen.
        Answer::later(flush_at_last(services, &self.pages, session.clone(), 0))
    }
}

/// Looks behind a barrier whether somebody is there for a message that was kept, where there was none when it was kept.
fn look_at_last(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    account: BareJid,
    number: u64,
    tried: u32,
) -> BoxFuture<'static, ()> {
    let (services, pages) = (services.clone(), pages.clone());
    Box::pin(async move {
        let looked = async {
            services.read_barrier().await?;
            handing::free(&services, &pages, &account, number).await
        };
        if let Err(error) = looked.await
            && let Some(pause) = again(tried)
        {
            tracing::debug!(module = NAME, %error, "cannot say yet whether a kept message waits for nobody");
            services.later(pause, look_at_last(&services, &pages, account, number, tried + 1));
        }
    })
}

/// Hands over what waits. What a store that fails leaves is tried again for some minutes; after that it waits for the
/// next session.
fn flush_at_last(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    session: Arc<SessionView>,
    tried: u32,
) -> BoxFuture<'static, ()> {
    let (services, pages) = (services.clone(), pages.clone());
    Box::pin(async move {
        if !is_here(&*services, &session) || session.priority().is_none_or(|priority| priority < 0) {
            return;
        }
        let _hold = (tried > 0).then(|| services.hold(session.account()));
        if let Err(error) = flush(&services, &pages, &session).await {
            drop(store_failed(NAME, &error));
            if let Some(pause) = again(tried) {
                services.later(pause, flush_at_last(&services, &pages, session, tried + 1));
            }
        }
    })
}

/// How long to wait before something is tried once more: from a second to a minute, eight times.
pub(crate) fn again(tried: u32) -> Option<Duration> {
    (tried < 8).then(|| Duration::from_secs(1 << tried.min(6)).min(Duration::from_secs(60)))
}

/// Hands over what waits, in order. A message is claimed first, so that no other session gets it
/// too, and removed only once its client has it, so that nothing is lost with this node.
async fn flush(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    session: &Arc<SessionView>,
) -> Result<(), StoreError> {
    let account = session.account();
    let unsettled = pages.unsettled(account, |sid| is_bound(&**services, account, sid));
    if !unsettled.is_empty() {
        let (over, time) = oneshot::channel::<()>();
        services.later(PREDECESSOR, Box::pin(async move { drop(over) }));
        // Each is told by being dropped.
        select(join_all(unsettled), time).await;
    }
    // Not beyond what waits now: what cannot be delivered is kept again, at the end.
    let (_, Queue { next: end, messages, .. }) = queue(&**services, account).await?;
    if messages > 0 && flexible::is_read(&**services, session).await? {
        return Ok(());
    }
    for _ in 0..FLUSHES {
        if flush_to(services, pages, session, end, Claiming::Whole).await? == Flushed::All {
            return Ok(());
        }
    }
    // Others are at it all the time: what they leave, in whatever order.
    flush_to(services, pages, session, end, Claiming::Each).await.map(drop)
}

/// How messages are claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claiming {
    /// A page at a time or none of it, so that their order holds.
    Whole,
    /// One by one.
    Each,
}

/// What one way through the queue came to.
#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    All,
    /// Another session claimed some of it meanwhile, so it has to be looked at once more: one that had ended by then
    /// hands over nothing, and what it has claimed would wait for the next login.
    Part,
}

async fn flush_to(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    session: &Arc<SessionView>,
    end: u64,
    claiming: Claiming,
) -> Result<Flushed, StoreError> {
    let account = session.account();
    let claim = Claim { jid: session.jid().to_string(), sid: session.sid().0 };
    let until = |range: Range| Range { to: Bound::Excluded(key(end)), ..range.limit(PAGE) };
    let mut range = until(Range::all());
    loop {
        if !is_here(&**services, session) {
            // Its successor looks for itself.
            return Ok(Flushed::All);
        }
        let page = services.store().scan_versioned::<Waiting>(&partition(account), range).await?;
        let Some((last, _)) = page.last() else { return Ok(Flushed::All) };
        range = until(Range::after(last.clone()));
        let flushed = hand_over(services, pages, session, &claim, page, claiming).await?;
        if flushed == Flushed::Part {
            return Ok(flushed);
        }
    }
}

/// Claims what is free of a page and hands it over.
async fn hand_over(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    session: &Arc<SessionView>,
    claim: &Claim,
    page: Vec<Found>,
    claiming: Claiming,
) -> Result<Flushed, StoreError> {
    let account = session.account();
    let handed = session.notes().get_or_put(Handed::default);
    let is_free = |(key, found): &Found| match &found.value.claim {
        None => true,
        // Ours, though it was not heard whether it was made.
        Some(own) if own == claim => !handed.has(number(key)),
        // Of a session that is gone it does not hold any more.
        Some(other) => !is_bound(&**services, account, other.sid),
    };
    let free: Vec<Found> = page.into_iter().filter(is_free).collect();
    if free.is_empty() {
        return Ok(Flushed::All);
    }
    let claimed = claimed(&**services, account, claim, free, claiming).await?;
    if claimed.is_empty() && claiming == Claiming::Whole {
        return Ok(Flushed::Part);
    }
    let taker = Taker { claim: claim.clone(), handed };
    handing::hand_on(services, pages, account, &taker, claimed, 0).await;
    Ok(Flushed::All)
}

fn number(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

/// Whether a session has its full JID still: one that was displaced may not know it yet.
fn is_bound(services: &dyn Services, account: &BareJid, sid: u128) -> bool {
    services.online(account).iter().any(|resource| resource.sid.0 == sid)
}

fn is_here(services: &dyn Services, session: &SessionView) -> bool {
    services.local_sessions(session.account()).iter().any(|here| here.sid() == session.sid())
        && is_bound(services, session.account(), session.sid().0)
}

type Found = (Vec<u8>, Versioned<Waiting>);

/// Number, bytes and version of a message.
type Message = (u64, u64, u64);

/// Claims messages in one step; where another session was faster with one of them, none or one by one.
async fn claimed(
    services: &dyn Services,
    account: &BareJid,
    claim: &Claim,
    messages: Vec<Found>,
    claiming: Claiming,
) -> Result<Vec<Found>, StoreError> {
    let batch = |messages: &[Found]| {
        let mut batch = Batch::new(partition(account));
        for (key, found) in messages {
            let value = Waiting { claim: Some(claim.clone()), ..found.value.clone() };
            batch = batch.expect::<Waiting>(key.clone(), Expect::Version(found.version));
            batch = batch.put(key.clone(), &value);
        }
        batch
    };
    let ours = |(key, mut found): Found| {
        found.version += 1;
        (key, found)
    };
    if services.store().commit_one(batch(&messages)).await? == Committed::Done {
        return Ok(messages.into_iter().map(ours).collect());
    }
    let mut claimed = Vec::new();
    if claiming == Claiming::Whole {
        return Ok(claimed);
    }
    for message in messages {
        if services.store().commit_one(batch(std::slice::from_ref(&message))).await? == Committed::Done {
            claimed.push(ours(message));
        }
    }
    Ok(claimed)
}

#[cfg(test)]
#[path = "offline_tests.rs"]
mod tests;

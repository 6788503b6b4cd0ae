//! [XEP-0013]: Flexible Offline Message Retrieval. A client asks what waits, and reads and removes of it what it likes.

use std::collections::BTreeSet;

use hooks::{Answer, Answering, Passage, Reply, Services, SessionView};
use jid::BareJid;
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::{Condition, IqType, StanzaError};
use store::{Range, StoreError, Stored, Table, Versioned};

use super::{Found, KEY, NAME, Offline, PAGE, Waiting, is_bound, key, number, queue, remove};
use crate::disco::{Ask, INFO, ITEMS, Nodes};
use crate::failure::{Failure, bad_request};
use crate::forms;
use crate::rosters::partition;
use crate::xml::{Build, element};

pub const NS: &str = "http://jabber.org/protocol/offline";
/// Messages that are removed in one step.
const REMOVED: usize = 100;

/// Noted of a session that has asked what waits: it is not flooded with it (section 2.2).
struct Reads;

/// The session of an account that has asked last. Void once that session is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reader {
    sid: u128,
}

impl Stored for Reader {
    const TABLE: Table = Table("offline_reader");
    const SCHEMA: u8 = 1;
}

/// Whether a session of the account reads what waits, so that nobody is flooded with it.
pub(super) async fn is_read(services: &dyn Services, session: &SessionView) -> Result<bool, StoreError> {
    if session.notes().get::<Reads>().is_some() {
        return Ok(true);
    }
    let account = session.account();
    let reader: Option<Reader> = services.store().get(&partition(account), KEY).await?;
    Ok(reader.is_some_and(|reader| is_bound(services, account, reader.sid)))
}

/// From now on the session reads what waits.
async fn begin(services: &dyn Services, session: &SessionView) -> Result<(), StoreError> {
    if session.notes().get::<Reads>().is_none() {
        // Before its presence can be seen, so that it is not flooded in between.
        session.notes().put(Reads);
        let reader = Reader { sid: session.sid().0 };
        services.store().put(&partition(session.account()), KEY, &reader).await?;
    }
    Ok(())
}

/// What a client calls a message; in the order in which they came.
fn name(number: u64) -> String {
    format!("{number:016x}")
}

fn read_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name, 16).ok().filter(|number| self::name(*number) == name)
}

impl Nodes for Offline {
    fn module(&self) -> &'static str {
        NAME
    }

    /// Sections 2.2 and 2.3.
    fn describe<'a>(&'a self, passage: &'a Passage, ask: Ask, node: &str) -> Option<Answer<'a, Reply>> {
        let session = passage.sender.as_ref().filter(|session| !session.is_anonymous())?;
        if node != NS || passage.account.is_none() {
            return None;
        }
        Some(Answer::later(async move {
            let described = match ask {
                Ask::Info => count(&*passage.services, session).await,
                Ask::Items => headers(&*passage.services, session).await,
            };
            match described {
                Ok(described) => Reply::with(described),
                Err(error) => Reply::Error(Failure::from(error).answer(NAME)),
            }
        }))
    }
}

async fn count(services: &dyn Services, session: &SessionView) -> Result<Element, StoreError> {
    begin(services, session).await?;
    let (_, queue) = queue(services, session.account()).await?;
    let identity = element("identity", INFO).with("category", "automation").with("type", "message-list");
    let form = forms::result(NS, [("number_of_messages", vec![queue.messages.to_string()])]);
    let query = element("query", INFO).with("node", NS).child(identity);
    Ok(query.child(element("feature", INFO).with("var", NS)).child(form))
}

async fn headers(services: &dyn Services, session: &SessionView) -> Result<Element, StoreError> {
    begin(services, session).await?;
    let account = session.account();
    let mut query = element("query", ITEMS).with("node", NS);
    for (key, found) in all(services, account).await? {
        let item = element("item", ITEMS).with("jid", account.as_str()).with("node", &name(number(&key)));
        query = query.child(item.with_some("name", found.value.stanza.from()));
    }
    Ok(query)
}

async fn all(services: &dyn Services, account: &BareJid) -> Result<Vec<Found>, StoreError> {
    let (mut all, mut range) = (Vec::new(), Range::all());
    loop {
        let page = services.store().scan_versioned::<Waiting>(&partition(account), range.limit(PAGE)).await?;
        let Some((last, _)) = page.last() else { return Ok(all) };
        range = Range::after(last.clone());
        all.extend(page);
        services.pause().await;
    }
}

/// What a client wants of what waits.
enum Wish {
    View(BTreeSet<u64>),
    Remove(BTreeSet<u64>),
    Fetch,
    Purge,
}

fn wish(passage: &Passage) -> Result<Wish, StanzaError> {
    let offline = passage.stanza.child("offline", NS).ok_or_else(|| bad_request("no `offline`"))?;
    let is_get = passage.stanza.iq_type() == Ok(IqType::Get);
    if offline.has_child("fetch", NS) && is_get {
        return Ok(Wish::Fetch);
    }
    if offline.has_child("purge", NS) && !is_get {
        return Ok(Wish::Purge);
    }
    let action = if is_get { "view" } else { "remove" };
    let mut numbers = BTreeSet::new();
    for item in offline.children().filter(|child| child.is("item", NS)) {
        if item.attr("action") != Some(action) {
            return Err(bad_request("a get views or fetches, a set removes or purges"));
        }
        let node = item.attr("node").ok_or_else(|| bad_request("an item has a node"))?;
        numbers.insert(read_name(node).ok_or_else(not_found)?);
    }
    match (numbers.is_empty(), is_get) {
        (true, _) => Err(bad_request("nothing is asked for")),
        (false, true) => Ok(Wish::View(numbers)),
        (false, false) => Ok(Wish::Remove(numbers)),
    }
}

fn not_found() -> StanzaError {
    StanzaError::new(Condition::ItemNotFound)
}

impl Answering for Offline {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        let refused = |condition| Answer::Now(Reply::Error(StanzaError::new(condition)));
        let session = match &passage.sender {
            Some(session) if passage.is_own() && !session.is_anonymous() => session,
            Some(_) if passage.is_own() => return refused(Condition::ServiceUnavailable),
            _ => return refused(Condition::Forbidden),
        };
        Answer::later(async move {
            match answer(passage, session).await {
                Ok(()) => Reply::empty(),
                Err(failure) => Reply::Error(failure.answer(NAME)),
            }
        })
    }
}

async fn answer(passage: &Passage, session: &SessionView) -> Result<(), Failure> {
    let services = &*passage.services;
    let account = session.account();
    match wish(passage)? {
        Wish::View(numbers) => {
            let found = named(services, account, &numbers).await?;
            show(services, session, found);
        }
        Wish::Fetch => {
            // Section 2.6: as who asks for headers.
            begin(services, session).await?;
            show(services, session, all(services, account).await?);
        }
        Wish::Remove(numbers) => {
            let found = named(services, account, &numbers).await?;
            take_out(services, account, found).await?;
        }
        Wish::Purge => take_out(services, account, all(services, account).await?).await?,
    }
    Ok(())
}

/// All of them, or that one is not there.
async fn named(
    services: &dyn Services,
    account: &BareJid,
    numbers: &BTreeSet<u64>,
) -> Result<Vec<Found>, Failure> {
    let mut all = Vec::with_capacity(numbers.len());
    for number in numbers {
        let found: Option<Versioned<Waiting>> =
            services.store().get_versioned(&partition(account), key(*number)).await?;
        all.push((key(*number), found.ok_or_else(not_found)?));
    }
    Ok(all)
}

/// Section 2.4: each with what it is called; they stay.
fn show(services: &dyn Services, session: &SessionView, messages: Vec<Found>) {
    for (key, found) in messages {
        let Some(message) = found.value.stanza.stanza() else { continue };
        let item = element("item", NS).with("node", &name(number(&key)));
        let told = message.with_child(&element("offline", NS).child(item));
        services.hand(session, told.with_to(session.account().clone()));
    }
}

async fn take_out(
    services: &dyn Services,
    account: &BareJid,
    messages: Vec<Found>,
) -> Result<(), StoreError> {
    let messages: Vec<_> =
        messages.iter().map(|(key, found)| (number(key), found.value.bytes, found.version)).collect();
    for some in messages.chunks(REMOVED) {
        if remove(services, account, some).await? {
            continue;
        }
        // Another session has had one of them meanwhile: the others go all the same.
        for one in some {
            remove(services, account, std::slice::from_ref(one)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "flexible_tests.rs"]
mod tests;

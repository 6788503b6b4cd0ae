//! RFC 6121, 2.6.3: roster pushes reach each session in the order of the changes, under versions of their own.
//!
//! Sessions at several nodes, and contacts, may change one roster at the same time, and each node pushes what it
//! changed: a later push may come first. So each change is noted in the store with the roster, and a session that
//! is about to get a push too early gets the missing ones out of the store before it. When they come they are old.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use bytes::BytesMut;
use hooks::{Services, SessionView};
use jid::BareJid;
use minidom::Element;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stanza::{Stanza, dom, ns};
use store::{Batch, Range, StoreError, Stored, Table};

use crate::groups::Groups;
use crate::rosters::{Item, Standing, partition};
use crate::xml::{Build, element};

/// The newest changes of a roster that are kept.
const KEPT: u64 = 128;
/// The largest item that is kept with them, in bytes. Of a larger one the push comes when it comes.
const ITEM_BYTES_MAX: usize = 4_096;
/// The most pushes of which a session knows that they are late.
const LATE_MAX: usize = 1_024;

/// A version of a roster, as clients see it (RFC 6121, 2.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Random, made with the first item.
    pub epoch: u64,
    /// Grows by one with every change.
    pub changes: u64,
}

impl Version {
    /// Reads what `Display` has written.
    pub fn parse(text: &str) -> Option<Version> {
        // What `ver` adds is for clients.
        let own = text.split_once('-').map_or(text, |(own, _)| own);
        let (epoch, changes) = own.split_once('.')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Version { epoch: number(epoch)?, changes: number(changes)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changes {
            0 => f.write_str("0"),
            changes => write!(f, "{:x}.{changes:x}", self.epoch),
        }
    }
}

/// A version as clients see it, with what groups that operators keep add to it.
pub fn ver(version: Version, shared: u64) -> String {
    match shared {
        0 => version.to_string(),
        shared => format!("{version}-{shared:x}"),
    }
}

/// A change of a roster: what an item was from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    contact: String,
    item: Option<Item>,
}

impl Stored for Change {
    const TABLE: Table = Table("roster_changes");
    const SCHEMA: u8 = 1;
}

/// Adds the change that made `version` to what is written, and takes the oldest away.
pub fn note(batch: Batch, version: Version, contact: &str, item: Option<&Item>) -> Batch {
    let batch = match version.changes.checked_sub(KEPT) {
        Some(old) => batch.delete::<Change>(key(old)),
        None => batch,
    };
    if item.is_some_and(|item| item.size() > ITEM_BYTES_MAX) {
        return batch;
    }
    batch.put(key(version.changes), &Change { contact: contact.to_owned(), item: item.cloned() })
}

/// Erases the changes that are kept, once the account has no session anywhere: nobody can hear of them too early, and
/// they name contacts that the roster may not hold any more.
pub async fn forget(services: &dyn Services, account: &BareJid) -> Result<(), StoreError> {
    if !services.online(account).is_empty() {
        return Ok(());
    }
    let partition = partition(account);
    // Twice as many as there should be: those of a larger gap are left to the next time.
    let kept = services.store().scan::<Change>(&partition, Range::all().limit(2 * KEPT as usize)).await?;
    if kept.is_empty() {
        return Ok(());
    }
    let batch = kept.into_iter().fold(Batch::new(partition), |batch, (key, _)| batch.delete::<Change>(key));
    services.store().commit_one(batch).await.map(drop)
}

/// Numbers as keys in the order of their value.
fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// An item as clients see it.
pub fn item_element(jid: &str, item: &Item) -> Element {
    let Standing { asked, approved, .. } = item.standing;
    let head = element("item", ns::ROSTER)
        .with("jid", jid)
        .with_some("name", item.name.as_deref())
        .with("subscription", item.standing.word())
        .with_some("ask", asked.then_some("subscribe"))
        .with_some("approved", approved.then_some("true"));
    let groups = item.groups.iter().map(|group| element("group", ns::ROSTER).text_node(group));
    groups.fold(head, Build::child)
}

/// Writes an item as [`item_element`] has it, in a stream whose default namespace is that of rosters: a long roster is
/// thousands of them.
pub fn write_item(jid: &str, item: &Item, out: &mut BytesMut) {
    let Standing { asked, approved, .. } = item.standing;
    out.extend_from_slice(b"<item jid='");
    dom::escape_attribute(jid, out);
    if let Some(name) = &item.name {
        out.extend_from_slice(b"' name='");
        dom::escape_attribute(name, out);
    }
    out.extend_from_slice(b"' subscription='");
    out.extend_from_slice(item.standing.word().as_bytes());
    if asked {
        out.extend_from_slice(b"' ask='subscribe");
    }
    if approved {
        out.extend_from_slice(b"' approved='true");
    }
    if item.groups.is_empty() {
        return out.extend_from_slice(b"'/>");
    }
    out.extend_from_slice(b"'>");
    for group in &item.groups {
        out.extend_from_slice(b"<group>");
        dom::escape_text(group, out);
        out.extend_from_slice(b"</group>");
    }
    out.extend_from_slice(b"</item>");
}

/// The contact that a push is about and its item, `None` where that was removed; what [`push`] has written.
pub fn read(push: &Stanza) -> Option<(String, Option<Item>)> {
    let item = push.child("query", ns::ROSTER)?.children().next()?;
    let contact = item.attr("jid")?.to_owned();
    let (to, from) = match item.attr("subscription")? {
        "remove" => return Some((contact, None)),
        "both" => (true, true),
        "to" => (true, false),
        "from" => (false, true),
        _ => (false, false),
    };
    let (asked, approved) = (item.attr("ask").is_some(), item.attr("approved").is_some());
    let item = Item {
        name: item.attr("name").map(str::to_owned),
        groups: item.children().map(Element::text).collect(),
        standing: Standing { to, from, asked, approved },
    };
    Some((contact, Some(item)))
}

/// What tells one session of an item, or of its removal (RFC 6121, 2.1.6). It goes to the session that `to` names.
pub fn push(
    services: &dyn Services,
    account: &BareJid,
    contact: &str,
    item: Option<&Item>,
    ver: &str,
) -> Stanza {
    let item = match item {
        Some(item) => item_element(contact, item),
        None => element("item", ns::ROSTER).with("jid", contact).with("subscription", "remove"),
    };
    let query = element("query", ns::ROSTER).with("ver", ver).child(item);
    let mut id = [0; 8];
    services.random(&mut id);
    let push = Stanza::iq("set", &format!("push-{:016x}", u64::from_le_bytes(id)), Some(&query));
    push.with_from(account.clone())
}

/// What one session has been told of its roster.
#[derive(Debug, Default)]
pub struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    version: Version,
    /// What it was told of the contacts that come from groups.
    shared: u64,
    /// Changes before that version that nobody could tell it: their pushes are still welcome.
    late: BTreeSet<u64>,
}

/// What a push is to a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next, or one that was missed.
    Its,
    /// The session knows it already.
    Old,
    /// Those behind the first and before the second number come before it.
    Early(u64, u64),
}

impl Told {
    /// The session was told all of the roster.
    pub fn all(&self, version: Version, shared: u64) {
        *self.0.lock() = State { version, shared, late: BTreeSet::new() };
    }

    /// What it was told of the contacts that come from groups: the digest of those that it knows.
    pub fn shared(&self) -> u64 {
        self.0.lock().shared
    }

    /// It is told of all of those now.
    pub fn has_shared(&self, shared: u64) {
        self.0.lock().shared = shared;
    }

    /// What [`Told::version`] has written of it at another node; nothing where that cannot be read.
    pub fn read(text: &str) -> Option<Told> {
        let (own, shared) = text.split_once('-').map_or((text, None), |(own, shared)| (own, Some(shared)));
        let shared = shared.map_or(Some(0), |shared| u64::from_str_radix(shared, 16).ok())?;
        let told = Told::default();
        told.all(if own == "0" { Version::default() } else { Version::parse(own)? }, shared);
        Some(told)
    }

    /// The version of all that it was told.
    pub fn version(&self) -> String {
        let state = self.0.lock();
        ver(state.version, state.shared)
    }

    /// A push is about to reach the session.
    pub fn push(&self, version: Version) -> Turn {
        let mut state = self.0.lock();
        let told = state.version;
        // An empty roster has no epoch. One that was made anew, with its account, goes on from nowhere.
        if told.changes != 0 && told.epoch != version.epoch {
            *state = State { version, shared: state.shared, late: BTreeSet::new() };
            return Turn::Its;
        }
        if version.changes <= told.changes {
            return if state.late.remove(&version.changes) { Turn::Its } else { Turn::Old };
        }
        state.version = version;
        match version.changes - told.changes {
            1 => Turn::Its,
            _ => Turn::Early(told.changes, version.changes),
        }
    }

    fn missed(&self, numbers: impl Iterator<Item = u64>) {
        let mut state = self.0.lock();
        state.late.extend(numbers);
        while state.late.len() > LATE_MAX {
            state.late.pop_first();
        }
    }
}

/// Tells a session what changed behind `after` and before `before`, in order.
pub async fn catch_up(
    services: &dyn Services,
    session: &SessionView,
    told: &Told,
    epoch: u64,
    (after, before): (u64, u64),
    groups: &Groups,
) -> Result<(), StoreError> {
    let range = Range {
        from: Bound::Excluded(key(after)),
        to: Bound::Excluded(key(before)),
        ..Range::all().limit(KEPT as usize)
    };
    let found = services.store().scan::<Change>(&partition(session.account()), range).await;
    let (found, result) = match found {
        Ok(found) => (found, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    let number = |key: Vec<u8>| key.try_into().map_or(0, u64::from_be_bytes);
    let found: BTreeMap<u64, Change> = found.into_iter().map(|(key, change)| (number(key), change)).collect();
    let oldest = before.saturating_sub(LATE_MAX as u64).max(after + 1);
    told.missed((oldest..before).filter(|number| !found.contains_key(number)));
    for (changes, Change { contact, item }) in found {
        let version = Version { epoch, changes };
        let item = groups.shown(session.account(), &contact, item);
        let push = push(services, session.account(), &contact, item.as_ref(), &ver(version, told.shared()));
        services.hand(session, push.with_to(session.jid().clone()));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(epoch: u64, changes: u64) -> Version {
        Version { epoch, changes }
    }

    #[test]
    fn a_version_is_read_as_it_is_written() {
        for one in [version(1, 1), version(u64::MAX, u64::MAX), version(0xabc, 0x10)] {
            assert_eq!(Version::parse(&one.to_string()), Some(one));
        }
        assert_eq!(version(7, 0).to_string(), "0");
        for text in ["0", "", ".", "1.", "x.1", "1.2.3"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_item_is_written_as_its_element() {
        let items = [
            Item::default(),
            Item {
                name: Some("<B & 'b'>".into()),
                groups: vec!["a&b".into(), "]]>".into()],
                ..Item::default()
            },
            Item {
                standing: Standing { asked: true, approved: true, from: true, ..Standing::default() },
                ..Item::default()
            },
        ];
        for item in items {
            let mut written = BytesMut::from(&b"<query xmlns='jabber:iq:roster'>"[..]);
            write_item("b@h/it's", &item, &mut written);
            written.extend_from_slice(b"</query>");
            let read: Element = std::str::from_utf8(&written).unwrap().parse().unwrap();
            assert_eq!(read.children().next(), Some(&item_element("b@h/it's", &item)));
        }
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let bytes = [1, 3, b'b', b'@', b'h', 1, 1, 1, b'B', 1, 1, b'g', 1, 0, 1, 0];
        let change: Change = store::record::decode(&bytes).unwrap();
        let item = change.item.as_ref().expect("an item");
        assert_eq!((change.contact.as_str(), item.name.as_deref()), ("b@h", Some("B")));
        assert_eq!((item.groups.as_slice(), item.standing.word()), (&["g".to_owned()][..], "to"));
        assert_eq!(store::record::encode(&change), bytes);
        let removed: Change = store::record::decode(&[1, 3, b'b', b'@', b'h', 0]).unwrap();
        assert_eq!(removed.item, None);
    }

    #[test]
    fn what_a_session_was_told_is_read_as_it_is_written() {
        for (version, shared) in
            [(version(0, 0), 0), (version(0, 0), 7), (version(5, 9), 0), (version(5, 9), u64::MAX)]
        {
            let told = Told::default();
            told.all(version, shared);
            let read = Told::read(&told.version()).unwrap();
            assert_eq!((read.version(), read.shared()), (told.version(), shared));
        }
        for text in ["", "1", "x.1", "0-", "1.1-g"] {
            assert!(Told::read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_a_push_is_to_a_session_follows_from_what_it_was_told() {
        let told = Told::default();
        told.all(version(0, 0), 0);
        assert_eq!(told.push(version(5, 1)), Turn::Its, "the first of an empty roster");
        assert_eq!(told.push(version(5, 2)), Turn::Its);
        assert_eq!(told.push(version(5, 2)), Turn::Old, "the same again");
        assert_eq!(told.push(version(5, 5)), Turn::Early(2, 5));
        told.missed([4].into_iter());
        assert_eq!(told.push(version(5, 3)), Turn::Old, "told out of the store");
        assert_eq!(told.push(version(5, 4)), Turn::Its, "not told");
        assert_eq!(told.push(version(5, 4)), Turn::Old);
        assert_eq!(told.push(version(5, 6)), Turn::Its);
        told.all(version(5, 9), 0);
        assert_eq!(told.push(version(5, 8)), Turn::Old, "in the whole roster");
        assert_eq!(told.push(version(6, 1)), Turn::Its, "a roster made anew");
        assert_eq!(told.push(version(6, 2)), Turn::Its);
    }
}

//! What an archive is made of: ids that sort by time, messages by id, and which of them are of whom.

use hooks::Underway;
use jid::Jid;
use serde::{Deserialize, Serialize};
use stanza::Stanza;
use store::{Key, Op, Stored, Table, record};

use super::retraction;
use crate::kept::{Keeping, Kept};

/// The id of an archived message: microseconds since 1970, then chance, so that ids sort by time and nobody guesses
/// one (XEP-0313, 3; XEP-0359, 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 16]);

impl Id {
    pub fn new(micros: u64, chance: [u8; 8]) -> Id {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&micros.to_be_bytes());
        id[8..].copy_from_slice(&chance);
        Id(id)
    }

    /// The first one that a moment could have.
    pub fn first_of(micros: u64) -> Id {
        Id::new(micros, [0; 8])
    }

    /// The last one that a moment could have.
    pub fn last_of(micros: u64) -> Id {
        Id::new(micros, [0xff; 8])
    }

    pub fn micros(self) -> u64 {
        self.0[..8].iter().fold(0, |micros, byte| micros << 8 | u64::from(*byte))
    }

    /// Some of its chance.
    pub fn chance(self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }

    /// The id that clients wrote, if it can be one.
    pub fn read(text: &str) -> Option<Id> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Id(id))
    }

    pub fn of_key(key: &[u8]) -> Option<Id> {
        Some(Id(key.try_into().ok()?))
    }

    pub fn key(self) -> Key {
        self.0.to_vec()
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Each archived message tells it once or twice: digits one by one, as the formatter of numbers is slow.
        let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' + half - 10 };
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// A message of an archive, under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    pub stanza: Kept,
    /// It came to the account, or else the account sent it.
    pub incoming: bool,
}

impl Stored for Archived {
    const TABLE: Table = Table("archive");
    const SCHEMA: u8 = 1;
}

impl Archived {
    /// Whether the message is with that address: a bare one stands for all of its resources (XEP-0313, 4.1.1).
    pub fn is_with(&self, with: &Jid) -> bool {
        let other = if self.incoming { self.stanza.from() } else { self.stanza.to() };
        let Some(other) = other else { return false };
        match with.is_full() {
            true => other == with.as_str(),
            false => bare(other) == with.as_str(),
        }
    }
}

/// Writes a message as the [`Archived`] that it becomes is written.
#[derive(Serialize)]
struct Archiving<'a> {
    stanza: Keeping<'a>,
    incoming: bool,
}

/// A message of an archive that is counted and not read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unread;

impl Stored for Unread {
    const TABLE: Table = Archived::TABLE;
    /// Beyond all that is written.
    const SCHEMA: u8 = u8::MAX;

    fn migrate(_: u8, _: &[u8]) -> Option<Unread> {
        Some(Unread)
    }
}

/// The longest bytes of a [`With`].
const WITH_BYTES: usize = 21;

/// Says that a message is with somebody: under the mark of their bare address, then its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct With {
    /// The mark of their full address, to pass over others without reading them.
    pub full: u64,
    /// The mark of the id that its sender gave the message; `None`: whoever looks for one reads the message.
    pub named: Option<u64>,
}

mod v1 {
    #[derive(serde::Serialize, serde::Deserialize)]
    pub struct With {
        pub full: u64,
    }
}

impl Stored for With {
    const TABLE: Table = Table("archive_with");
    const SCHEMA: u8 = 2;

    fn migrate(schema: u8, bytes: &[u8]) -> Option<With> {
        match schema {
            1 => record::postcard::<v1::With>(bytes).map(|old| With { full: old.full, named: None }),
            _ => None,
        }
    }
}

/// A number for an address, the same at every node and in every version (FNV-1a). Two may have the same, so whoever finds a
/// message by it looks at the message too.
pub fn mark(address: &str) -> u64 {
    address
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The address without its resource.
pub fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

/// Where it says that a message is with somebody.
pub fn with_key(with: &str, id: Id) -> Key {
    [&mark(bare(with)).to_be_bytes()[..], &id.0].concat()
}

/// The id of such a key.
pub fn id_of_with_key(key: &[u8]) -> Option<Id> {
    Id::of_key(key.get(8..)?)
}

/// A message that is to be archived.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: Id,
    /// What it writes: the bytes of its [`Archived`], and that it is with somebody.
    pub ops: [Op; 2],
    /// About the bytes that it takes while it waits.
    pub size: usize,
    /// The sender's client hears that the message is handled once it is written (XEP-0198, 4).
    pub underway: Option<Underway>,
    /// It takes back another one, which is looked for once this one is written.
    pub retracts: Option<Archived>,
}

impl Entry {
    pub fn new(id: Id, message: &Stanza, incoming: bool, with: &Jid, underway: Option<Underway>) -> Entry {
        let size = message.body().len() + 3 * with.as_str().len() + 64;
        let record = record::encode_as::<Archived>(&Archiving { stanza: Keeping(message), incoming }, size);
        let named = message.head.id.as_deref().unwrap_or_default();
        let is_with = With { full: mark(with.as_str()), named: Some(mark(named)) };
        let is_with = record::encode_as::<With>(&is_with, WITH_BYTES);
        let retracts = retraction::is_one(message).then(|| Archived { stanza: Kept::of(message), incoming });
        let size = record.len() + 128;
        let ops = [
            Op::put_encoded::<Archived>(id.key(), record),
            Op::put_encoded::<With>(with_key(with.as_str(), id), is_with),
        ];
        Entry { id, ops, size, underway, retracts }
    }
}

impl Archived {
    /// With whom it is.
    pub fn with(&self) -> &str {
        let other = if self.incoming { self.stanza.from() } else { self.stanza.to() };
        other.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use hooks::bench::parse;

    use super::*;

    #[test]
    fn ids_are_read_as_they_were_written_and_sort_by_time() {
        let id = Id::new(1_767_225_600_000_001, [1, 2, 3, 4, 5, 6, 7, 0xff]);
        assert_eq!(id.to_string(), "000647484620400101020304050607ff".to_owned());
        assert_eq!((Id::read(&id.to_string()), id.micros()), (Some(id), 1_767_225_600_000_001));
        assert!(Id::last_of(1) < Id::first_of(2) && Id::first_of(2) < Id::last_of(2));
        for wrong in ["", "0", "000647484620400101020304050607FF", &"g".repeat(32), &"0".repeat(33)] {
            assert_eq!(Id::read(wrong), None, "{wrong}");
        }
        assert_eq!(id_of_with_key(&with_key("a@b/c", id)), Some(id));
        assert_eq!(with_key("a@b/c", id), with_key("a@b", id));
    }

    #[test]
    fn a_row_of_an_older_version_is_read() {
        let old = store::record::decode::<With>(&[1, 7]);
        assert_eq!(old, Ok(With { full: 7, named: None }));
        assert_eq!(store::record::encode(&With { full: 7, named: Some(9) }), [2, 7, 1, 9]);
    }

    #[test]
    fn a_message_is_written_as_it_is_read() {
        for text in [
            "<message to='b@h' from='a@h/r' id='1' type='chat' xml:lang='de'><body>ä &lt; b</body></message>",
            "<message from='a@h/r' shade='red' xmlns:x='urn:x' x:a='1'><x xmlns='urn:x' a='1'><y/></x>text</message>",
        ] {
            let message = parse(text);
            let with = message.head.from.clone().unwrap();
            let entry = Entry::new(Id::first_of(1), &message, true, &with, None);
            let archived = Archived { stanza: Kept::of(&message), incoming: true };
            let [Op::Put { value, .. }, Op::Put { key, .. }] = &entry.ops else { panic!("{entry:?}") };
            assert_eq!(*value, record::encode(&archived));
            assert_eq!(record::decode::<Archived>(value), Ok(archived));
            assert_eq!(*key, with_key(with.as_str(), entry.id));
        }
        // As earlier versions wrote it.
        let old = [1, 0, 1, 1, b'a', 0, 0, 0, 0, 0, 3, b'<', b'b', b'>', 1];
        let archived = record::decode::<Archived>(&old).unwrap();
        assert_eq!((archived.stanza.to(), archived.incoming), (Some("a"), true));
        assert_eq!(record::encode(&archived), old);
    }

    #[test]
    fn a_message_is_with_its_correspondent() {
        let message = parse("<message from='a@h/1' to='b@h/2'/>");
        let (out, into) = (false, true);
        for (incoming, with, is) in [
            (into, "a@h", true),
            (into, "a@h/1", true),
            (into, "a@h/2", false),
            (into, "b@h", false),
            (out, "b@h", true),
            (out, "b@h/2", true),
            (out, "a@h", false),
            (out, "h", false),
        ] {
            let archived = Archived { stanza: Kept::of(&message), incoming };
            assert_eq!(archived.is_with(&Jid::new(with).unwrap()), is, "{incoming} {with}");
        }
    }
}

//! The rows of the route table by account, in many small parts: to freeze the table or to let it grow never takes long.
//!
//! A copy of the table shares all of it. Whichever of the two changes first copies one part, that is pointers to some
//! hundred accounts of a large table, so a snapshot may be written for as long as it takes while entries are applied.
//! And a part that is full moves only its own accounts to a larger place.

use std::{
    borrow::Borrow,
    collections::{HashSet, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use jid::FullJid;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

use crate::routes::Row;

/// How many accounts a part has, about; with more of them one part is split.
const FULL: usize = 256;
/// How many parts are made at once for what a written table says is to come.
const PARTS_MAX: usize = 1 << 14;

/// Rows by account.
#[derive(Clone, Debug)]
pub(crate) struct Accounts {
    hasher: RandomState,
    /// At least one. Those up to the last power of two are split one after the other, from the first on: linear hashing.
    parts: Vec<Arc<Part>>,
    accounts: usize,
}

type Part = HashSet<Account, RandomState>;

/// The rows of one account, at least one; known by the bare JID that all of them have.
#[derive(Clone, Debug)]
struct Account(Arc<[Row]>);

/// The account's part of a full JID, without a copy.
pub(crate) fn bare_of(jid: &FullJid) -> &str {
    let whole = jid.as_str();
    // The address knows where its resource begins; a slash stands in front of it.
    let bare = whole.len() - jid.resource().as_str().len() - 1;
    whole.get(..bare).unwrap_or(whole)
}

impl Account {
    fn bare(&self) -> &str {
        self.0.first().map_or("", |row| bare_of(&row.jid))
    }
}

impl Borrow<str> for Account {
    fn borrow(&self) -> &str {
        self.bare()
    }
}

impl Hash for Account {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bare().hash(state);
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Account) -> bool {
        self.bare() == other.bare()
    }
}

impl Eq for Account {}

impl Default for Accounts {
    fn default() -> Accounts {
        Accounts::with_room(0)
    }
}

impl Accounts {
    /// None, where so many are to come.
    fn with_room(accounts: usize) -> Accounts {
        let hasher = RandomState::new();
        let part = Arc::new(HashSet::with_hasher(hasher.clone()));
        Accounts { parts: vec![part; (accounts / FULL).clamp(1, PARTS_MAX)], hasher, accounts: 0 }
    }

    /// How many accounts have a row.
    pub(crate) fn len(&self) -> usize {
        self.accounts
    }

    /// The rows of an account.
    pub(crate) fn rows(&self, bare: &str) -> &[Row] {
        self.parts[self.part_of(bare)].get(bare).map_or(&[], |account| &account.0)
    }

    /// Every row.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Row> {
        self.each_account().flatten()
    }

    /// The rows of every account.
    pub(crate) fn each_account(&self) -> impl Iterator<Item = &[Row]> {
        self.parts.iter().flat_map(|part| part.iter()).map(|account| &*account.0)
    }

    /// Adds a row; one with the same full JID stays beside it.
    pub(crate) fn push(&mut self, row: Row) {
        let part = self.part_of(bare_of(&row.jid));
        let part = Arc::make_mut(&mut self.parts[part]);
        let account = match part.take(bare_of(&row.jid)) {
            Some(Account(rows)) => Account(rows.iter().cloned().chain([row]).collect()),
            None => {
                self.accounts += 1;
                Account(Arc::new([row]))
            }
        };
        part.insert(account);
        self.split();
    }

    /// Adds the rows of an account that has none yet.
    fn fill(&mut self, rows: Vec<Row>) {
        let account = Account(rows.into());
        let part = self.part_of(account.bare());
        let part = Arc::make_mut(&mut self.parts[part]);
        self.accounts += usize::from(part.replace(account).is_none());
        self.split();
    }

    /// Splits the part whose turn it is, if there are too many accounts for the parts.
    fn split(&mut self) {
        let new = self.parts.len();
        if self.accounts <= new * FULL {
            return;
        }
        let split = new - (new + 1).next_power_of_two() / 2;
        let hasher = &self.hasher;
        let moves = |account: &Account| part_of(hasher, new + 1, account.bare()) == new;
        let mut moved = HashSet::with_hasher(hasher.clone());
        let part = Arc::make_mut(&mut self.parts[split]);
        moved.extend(part.extract_if(moves));
        part.shrink_to_fit();
        self.parts.push(Arc::new(moved));
    }

    /// Changes the first row of a full JID that fits, but not its JID; whether there was one.
    pub(crate) fn change(
        &mut self,
        jid: &FullJid,
        which: impl Fn(&Row) -> bool,
        change: impl FnOnce(&mut Row),
    ) -> bool {
        let bare = bare_of(jid);
        let Some(at) = self.rows(bare).iter().position(|row| row.jid == *jid && which(row)) else {
            return false;
        };
        let part = self.part_of(bare);
        let part = Arc::make_mut(&mut self.parts[part]);
        let Some(mut account) = part.take(bare) else { return false };
        change(&mut Arc::make_mut(&mut account.0)[at]);
        part.insert(account);
        true
    }

    /// Takes the first row of a full JID that fits.
    pub(crate) fn remove(&mut self, jid: &FullJid, which: impl Fn(&Row) -> bool) -> Option<Row> {
        let bare = bare_of(jid);
        let at = self.rows(bare).iter().position(|row| row.jid == *jid && which(row))?;
        let part = self.part_of(bare);
        let part = Arc::make_mut(&mut self.parts[part]);
        let Account(rows) = part.take(bare)?;
        let row = rows[at].clone();
        if rows.len() == 1 {
            self.accounts -= 1;
            shrink(part);
        } else {
            let others = rows.iter().enumerate().filter(|(nth, _)| *nth != at);
            part.insert(Account(others.map(|(_, row)| row.clone()).collect()));
        }
        Some(row)
    }

    fn part_of(&self, bare: &str) -> usize {
        part_of(&self.hasher, self.parts.len(), bare)
    }
}

/// In which of so many parts an account is.
fn part_of(hasher: &RandomState, parts: usize, bare: &str) -> usize {
    // The lowest and the highest bits choose the place in the part.
    let hash = (hasher.hash_one(bare) >> 24) as u32 as usize;
    let among = parts.next_power_of_two();
    let part = hash % among;
    if part < parts { part } else { hash % (among / 2) }
}

/// Gives memory back that a crowd needed and left.
fn shrink(part: &mut Part) {
    if part.is_empty() || part.len() * 8 < part.capacity() {
        part.shrink_to(part.len() * 2);
    }
}

/// From a map of accounts, as the table writes it.
impl<'de> Deserialize<'de> for Accounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Accounts, D::Error> {
        struct OfMap;
        impl<'de> Visitor<'de> for OfMap {
            type Value = Accounts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("rows by account")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Accounts, A::Error> {
                let mut accounts = Accounts::with_room(map.size_hint().unwrap_or(0));
                while let Some((bare, rows)) = map.next_entry::<String, Vec<Row>>()? {
                    if rows.is_empty() || rows.iter().any(|row| bare_of(&row.jid) != bare) {
                        return Err(A::Error::custom("rows that are not of their account"));
                    }
                    accounts.fill(rows);
                }
                Ok(accounts)
            }
        }
        deserializer.deserialize_map(OfMap)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        noise::Noise,
        role::{Incarnation, NodeId, Sid},
    };

    fn row(jid: &str, sid: u128) -> Row {
        let (jid, node, incarnation) = (FullJid::new(jid).unwrap(), NodeId(1), Incarnation(1));
        Row { jid, node, incarnation, sid: Sid(sid), priority: None, detached: false, invisible: false }
    }

    fn all(accounts: &Accounts) -> BTreeSet<(String, Sid, bool)> {
        accounts.each().map(|row| (row.jid.to_string(), row.sid, row.detached)).collect()
    }

    /// Random changes: the rows are those of a plain map, and a copy made in between keeps what it had.
    #[test]
    fn rows_come_and_go_and_a_copy_keeps_its_own() {
        let mut noise = Noise::new(11);
        let (mut accounts, mut plain) = (Accounts::default(), BTreeMap::new());
        let mut frozen = Vec::new();
        for step in 0..40_000 {
            let jid = format!("user{}@x/r{}", noise.below(3_000), noise.below(3));
            let full = FullJid::new(&jid).unwrap();
            match noise.below(4) {
                0 | 1 if !plain.contains_key(&jid) => {
                    accounts.push(row(&jid, step));
                    plain.insert(jid.clone(), (Sid(step), false));
                }
                2 => {
                    let taken = accounts.remove(&full, |_| true).map(|row| (row.sid, row.detached));
                    assert_eq!(taken, plain.remove(&jid));
                }
                _ => {
                    let changed = accounts.change(&full, |_| true, |row| row.detached = true);
                    assert_eq!(changed, plain.contains_key(&jid));
                    plain.entry(jid.clone()).and_modify(|(_, detached)| *detached = true);
                }
            }
            let of_account = accounts.rows(bare_of(&full)).iter().filter(|row| row.jid == full).count();
            assert_eq!(of_account, usize::from(plain.contains_key(&jid)));
            if step % 4000 == 0 {
                frozen.push((accounts.clone(), all(&accounts)));
            }
        }
        let plain_rows = plain.iter().map(|(jid, (sid, detached))| (jid.clone(), *sid, *detached));
        assert_eq!(all(&accounts), plain_rows.collect());
        let bare: BTreeSet<&str> = plain.keys().map(|jid| jid.split('/').next().unwrap()).collect();
        assert_eq!((accounts.len(), accounts.each_account().count()), (bare.len(), bare.len()));
        assert!(accounts.parts.len() > 4, "{} parts", accounts.parts.len());
        assert!(frozen.iter().all(|(copy, rows)| all(copy) == *rows));
    }
}

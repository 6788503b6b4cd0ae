//! The rows of the route table by account, in many small parts: to freeze the table or to let it grow never takes long.
//!
//! A copy of the table shares all of it. Whichever of the two changes first copies one part, that is pointers to some
//! hundred accounts of a large table, so a snapshot may be written for as long as it takes while entries are applied.
//! And a part that is full moves only its own accounts to a larger place.

use std::{collections::hash_map::RandomState, fmt, hash::BuildHasher, sync::Arc};

use hashbrown::{HashTable, hash_table::Entry};
use jid::FullJid;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

use crate::routes::Row;

/// How many accounts a part has, about; with more of them one part is split. A hash table of 256 places has room for 224.
const FULL: usize = 192;
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

type Part = HashTable<Account>;

/// The rows of one account, at least one; known by the bare JID that all of them have.
#[derive(Clone, Debug)]
struct Account {
    /// Of the bare JID: to read it out of a row misses the caches of the processor thrice, and a part that grows or is
    /// split wants it of each account.
    hash: u64,
    rows: Arc<[Row]>,
}

/// The account's part of a full JID, without a copy.
pub(crate) fn bare_of(jid: &FullJid) -> &str {
    let whole = jid.as_str();
    // The address knows where its resource begins; a slash stands in front of it.
    let bare = whole.len() - jid.resource().as_str().len() - 1;
    whole.get(..bare).unwrap_or(whole)
}

impl Account {
    fn bare(&self) -> &str {
        self.rows.first().map_or("", |row| bare_of(&row.jid))
    }

    fn hash(&self) -> u64 {
        self.hash
    }
}

impl Default for Accounts {
    fn default() -> Accounts {
        Accounts::with_room(0)
    }
}

impl Accounts {
    /// None, where so many are to come.
    fn with_room(accounts: usize) -> Accounts {
        let part = Arc::new(Part::new());
        let parts = vec![part; (accounts / FULL).clamp(1, PARTS_MAX)];
        Accounts { hasher: RandomState::new(), parts, accounts: 0 }
    }

    /// How many accounts have a row.
    pub(crate) fn len(&self) -> usize {
        self.accounts
    }

    /// The rows of an account.
    pub(crate) fn rows(&self, bare: &str) -> &[Row] {
        let hash = self.hasher.hash_one(bare);
        let found = self.parts[part_of(self.parts.len(), hash)].find(hash, |account| account.bare() == bare);
        found.map_or(&[], |account| &account.rows)
    }

    /// Every row.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Row> {
        self.each_account().flatten()
    }

    /// The rows of every account.
    pub(crate) fn each_account(&self) -> impl Iterator<Item = &[Row]> {
        self.parts.iter().flat_map(|part| part.iter()).map(|account| &*account.rows)
    }

    /// Adds a row; one with the same full JID stays beside it.
    pub(crate) fn push(&mut self, row: Row) {
        match self.entry(bare_of(&row.jid)) {
            (_, Entry::Occupied(mut account)) => {
                let rows = &mut account.get_mut().rows;
                *rows = rows.iter().cloned().chain([row]).collect();
            }
            (hash, Entry::Vacant(place)) => {
                place.insert(Account { hash, rows: Arc::new([row]) });
                self.accounts += 1;
                self.split();
            }
        }
    }

    /// Adds the rows of an account that has none yet.
    fn fill(&mut self, rows: Vec<Row>) {
        let Some(first) = rows.first() else { return };
        match self.entry(bare_of(&first.jid)) {
            (_, Entry::Occupied(mut account)) => account.get_mut().rows = rows.into(),
            (hash, Entry::Vacant(place)) => {
                place.insert(Account { hash, rows: rows.into() });
                self.accounts += 1;
                self.split();
            }
        }
    }

    /// The place of an account in a part that is this table's alone, and the hash of its bare JID.
    fn entry(&mut self, bare: &str) -> (u64, Entry<'_, Account>) {
        let hash = self.hasher.hash_one(bare);
        let part = part_of(self.parts.len(), hash);
        let part = Arc::make_mut(&mut self.parts[part]);
        (hash, part.entry(hash, |account| account.bare() == bare, Account::hash))
    }

    /// Splits the part whose turn it is, if there are too many accounts for the parts.
    fn split(&mut self) {
        let new = self.parts.len();
        if self.accounts <= new * FULL {
            return;
        }
        let split = new - (new + 1).next_power_of_two() / 2;
        let part = Arc::make_mut(&mut self.parts[split]);
        let mut moved = Part::with_capacity(part.len() / 2);
        for account in part.extract_if(|account| part_of(new + 1, account.hash) == new) {
            moved.insert_unique(account.hash, account, Account::hash);
        }
        part.shrink_to_fit(Account::hash);
        moved.shrink_to_fit(Account::hash);
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
        // Before a part that others share is copied.
        let Some(at) = self.rows(bare).iter().position(|row| row.jid == *jid && which(row)) else {
            return false;
        };
        let (_, Entry::Occupied(mut account)) = self.entry(bare) else { return false };
        change(&mut Arc::make_mut(&mut account.get_mut().rows)[at]);
        true
    }

    /// Takes the first row of a full JID that fits.
    pub(crate) fn remove(&mut self, jid: &FullJid, which: impl Fn(&Row) -> bool) -> Option<Row> {
        let bare = bare_of(jid);
        let at = self.rows(bare).iter().position(|row| row.jid == *jid && which(row))?;
        let (_, Entry::Occupied(mut account)) = self.entry(bare) else { return None };
        let row = account.get().rows[at].clone();
        if account.get().rows.len() > 1 {
            let rows = &mut account.get_mut().rows;
            let others = rows.iter().enumerate().filter(|(nth, _)| *nth != at);
            *rows = others.map(|(_, row)| row.clone()).collect();
        } else {
            shrink(account.remove().1.into_table());
            self.accounts -= 1;
        }
        Some(row)
    }
}

/// In which of so many parts an account with this hash is.
fn part_of(parts: usize, hash: u64) -> usize {
    // The lowest and the highest bits choose the place in the part.
    let hash = (hash >> 24) as u32 as usize;
    let among = parts.next_power_of_two();
    let part = hash % among;
    if part < parts { part } else { hash % (among / 2) }
}

/// Gives memory back that a crowd needed and left.
fn shrink(part: &mut Part) {
    if part.is_empty() || part.len() * 8 < part.capacity() {
        part.shrink_to(part.len() * 2, Account::hash);
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

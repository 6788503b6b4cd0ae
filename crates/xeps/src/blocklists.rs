//! Whom each account blocks: kept in the store, cached with the sessions of the account, matched by the rules of [XEP-0191], section 5.

use std::collections::BTreeSet;
use std::sync::Arc;

use hooks::Services;
use jid::{BareJid, Jid};
use serde::{Deserialize, Serialize};
use stanza::address::{is_host, same_account};
use stanza::{Condition, StanzaError};
use store::{Batch, Committed, Expect, StoreError, Stored, Table, Versioned};

use crate::cache::{Cache, KEY};
use crate::failure::Failure;
use crate::rosters::partition;

/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;
/// The largest list that every engine can keep, in bytes.
const BYTES_MAX: usize = 900_000;

/// The addresses that one account blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocklist {
    items: BTreeSet<String>,
}

impl Stored for Blocklist {
    const TABLE: Table = Table("blocklist");
    const SCHEMA: u8 = 1;
}

impl Blocklist {
    /// The addresses as they were blocked, in order.
    pub fn items(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether this very address is on the list.
    pub fn has(&self, item: &str) -> bool {
        self.items.contains(item)
    }

    /// Whether `account`, whose list this is, blocks `other`. Nobody blocks their own resources (XEP-0191, section 4),
    /// nor the host of their account, which answers for it.
    pub fn blocks(&self, account: &BareJid, other: &Jid) -> bool {
        !self.items.is_empty()
            && !same_account(other, account)
            && !is_host(other, account.domain())
            && names(other).into_iter().any(|name| self.items.contains(name))
    }

    fn size(&self) -> usize {
        self.items.iter().map(|item| item.len() + 8).sum()
    }
}

/// What may be on a list to match this address, in the order of XEP-0191, section 5: the address itself, its account
/// (for an address without localpart its domain), its domain.
fn names(jid: &Jid) -> [&str; 3] {
    let full = jid.as_str();
    let bare = full.split_once('/').map_or(full, |(bare, _)| bare);
    [full, bare, jid.domain().as_str()]
}

/// Whether an item of a list matches the address.
pub fn matches(item: &str, jid: &Jid) -> bool {
    names(jid).contains(&item)
}

/// A change of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Block(Vec<String>),
    Unblock(Vec<String>),
    /// All that is on it.
    Clear,
}

/// Access to the lists of all accounts. Modules share one.
pub struct Blocklists {
    items_max: usize,
    bytes_max: usize,
    /// The only hosts whose accounts have a list; `None`: all.
    hosts: Option<Vec<String>>,
    cache: Cache<Blocklist>,
    nobody: Arc<Blocklist>,
}

impl Blocklists {
    /// Lists of so many items and bytes at most, of the accounts of `hosts` (`None`: of all).
    pub fn new(items_max: usize, bytes_max: usize, hosts: Option<Vec<String>>) -> Blocklists {
        let bytes_max = bytes_max.min(BYTES_MAX);
        Blocklists { items_max, bytes_max, hosts, cache: Cache::default(), nobody: Arc::default() }
    }

    fn is_on(&self, account: &BareJid) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host == account.domain().as_str()))
    }

    /// The list where it is cached: awaits nothing.
    pub fn cached(&self, account: &BareJid) -> Option<Arc<Blocklist>> {
        match self.is_on(account) {
            true => self.cache.get(account),
            false => Some(self.nobody.clone()),
        }
    }

    /// The account's list, from the cache while it has sessions here.
    pub async fn of(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<Blocklist>, StoreError> {
        match self.is_on(account) {
            true => self.cache.of(services, account).await,
            false => Ok(self.nobody.clone()),
        }
    }

    /// Forgets the cached list: it was changed, or may have been.
    pub fn forget(&self, account: &BareJid) {
        self.cache.forget(account);
    }

    /// Changes the list; returns what the change names. A list that would be too long stays as it was.
    pub async fn change(
        &self,
        services: &dyn Services,
        account: &BareJid,
        change: &Change,
    ) -> Result<Vec<String>, Failure> {
        let partition = partition(account);
        for _ in 0..ATTEMPTS {
            let stored: Option<Versioned<Blocklist>> =
                services.store().get_versioned(&partition, KEY).await?;
            let expect = stored.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
            let before = stored.map(|found| found.value).unwrap_or_default();
            let (after, named) = self.apply(before.clone(), change)?;
            if after == before {
                return Ok(named);
            }
            let batch = Batch::new(partition.clone()).expect::<Blocklist>(KEY, expect);
            let batch = match after.is_empty() {
                true => batch.delete::<Blocklist>(KEY),
                false => batch.put(KEY, &after),
            };
            if services.store().commit_one(batch).await? == Committed::Done {
                // Not cached here: another node may have told us of a later change already.
                self.forget(account);
                return Ok(named);
            }
        }
        Err(StoreError::Contended { table: Blocklist::TABLE.0, attempts: ATTEMPTS }.into())
    }

    fn apply(&self, mut list: Blocklist, change: &Change) -> Result<(Blocklist, Vec<String>), StanzaError> {
        match change {
            Change::Block(items) => {
                let before = list.items.len();
                list.items.extend(items.iter().cloned());
                let is_longer = list.items.len() > before;
                if is_longer && (list.items.len() > self.items_max || list.size() > self.bytes_max) {
                    return Err(StanzaError::new(Condition::ResourceConstraint));
                }
                Ok((list, items.clone()))
            }
            Change::Unblock(items) => {
                list.items.retain(|item| !items.contains(item));
                Ok((list, items.clone()))
            }
            Change::Clear => Ok((Blocklist::default(), list.items.into_iter().collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Blocklist {
        Blocklist { items: items.iter().map(|item| item.to_string()).collect() }
    }

    #[test]
    fn an_address_is_matched_by_itself_its_account_and_its_domain() {
        let cases = [
            ("b@h/r", &["b@h/r"][..], &["b@h", "b@h/x", "h", "h/r"][..]),
            ("b@h", &["b@h", "b@h/r", "b@h/x"], &["c@h", "h", "b@other"]),
            ("h/r", &["h/r"], &["h", "b@h/r", "b@h", "h/x"]),
            ("h", &["h", "h/r", "b@h", "b@h/r"], &["other", "b@sub.h"]),
        ];
        let alice = BareJid::new("alice@home").unwrap();
        for (item, blocked, free) in cases {
            for jid in blocked {
                assert!(list(&[item]).blocks(&alice, &Jid::new(jid).unwrap()), "{item} {jid}");
                assert!(matches(item, &Jid::new(jid).unwrap()));
            }
            for jid in free {
                assert!(!list(&[item]).blocks(&alice, &Jid::new(jid).unwrap()), "{item} {jid}");
            }
        }
    }

    #[test]
    fn own_resources_and_the_own_host_are_never_blocked() {
        let alice = BareJid::new("alice@home").unwrap();
        let list = list(&["alice@home", "alice@home/desk", "home"]);
        for jid in ["alice@home", "alice@home/desk", "alice@home/phone", "home"] {
            assert!(!list.blocks(&alice, &Jid::new(jid).unwrap()), "{jid}");
        }
        assert!(list.blocks(&alice, &Jid::new("bob@home").unwrap()));
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let bytes = [1, 2, 3, b'b', b'@', b'h', 1, b'x'];
        let read: Blocklist = store::record::decode(&bytes).unwrap();
        assert_eq!(read, list(&["b@h", "x"]));
        assert_eq!(store::record::encode(&read), bytes);
    }

    #[test]
    fn a_list_at_its_bound_takes_what_it_has_and_nothing_new() {
        let lists = Blocklists::new(2, 1_000, None);
        let block = |items: &[&str]| Change::Block(items.iter().map(|item| item.to_string()).collect());
        let full = list(&["a@h", "b@h"]);
        assert_eq!(lists.apply(full.clone(), &block(&["a@h"])).unwrap().0, full);
        let refused = lists.apply(full.clone(), &block(&["c@h"])).unwrap_err();
        assert_eq!(refused.condition, Condition::ResourceConstraint);
        let small = Blocklists::new(100, 30, None);
        assert!(small.apply(Blocklist::default(), &block(&["a-long-name@a-long-domain"])).is_err());
    }
}

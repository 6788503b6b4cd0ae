//! The rosters of accounts: kept in the store, cached with the sessions of their account.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::sync::Arc;

use hooks::Services;
use jid::{BareJid, Jid};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use stanza::{Condition, StanzaError};
use store::{Batch, Committed, Expect, Partition, StoreError, Stored, Table, Versioned};

use crate::cache::{Cache, KEY};
use crate::failure::Failure;
use crate::groups::{Groups, Shared};
use crate::kept::Kept;
use crate::pushes::{self, Version};

/// The subscription of one contact (RFC 6121, appendix A.1), without the request that may wait
/// for the user's answer: that one is kept beside the roster, as no item may show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The user sees the contact's presence.
    pub to: bool,
    /// The contact sees the user's presence.
    pub from: bool,
    /// The user has asked, and the contact has not answered: `ask='subscribe'`.
    pub asked: bool,
    /// The user approved a request that has not come yet (section 3.4).
    pub approved: bool,
}

impl Standing {
    /// The word of the `subscription` attribute.
    pub fn word(self) -> &'static str {
        match (self.to, self.from) {
            (false, false) => "none",
            (true, false) => "to",
            (false, true) => "from",
            (true, true) => "both",
        }
    }
}

/// One contact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub name: Option<String>,
    pub groups: Vec<String>,
    pub standing: Standing,
}

impl Item {
    pub fn size(&self) -> usize {
        let groups: usize = self.groups.iter().map(|group| group.len() + 4).sum();
        self.name.as_ref().map_or(0, String::len) + groups + 16
    }
}

/// All contacts of one account, by their address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Random, made with the first item: an account that was removed and made anew starts another.
    epoch: u64,
    /// Grows with every change.
    changes: u64,
    #[serde(deserialize_with = "read_items")]
    pub items: BTreeMap<String, Item>,
    /// What of the items comes from groups that operators keep, in what users see of it.
    #[serde(skip)]
    pub shared: Shared,
}

/// Reads contacts and gives way to other threads between slices of them: whoever decodes a long roster would else keep
/// a core until the system's next tick, up to 4 ms, whatever its priority.
fn read_items<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Item>, D::Error> {
    struct Items;

    impl<'de> Visitor<'de> for Items {
        type Value = BTreeMap<String, Item>;

        fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
            f.write_str("contacts by their addresses")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            // They are kept in order, and a tree is made from what is in order at once.
            let mut items = Vec::new();
            while let Some(item) = map.next_entry()? {
                items.push(item);
                if items.len() % SLICE == 0 {
                    std::thread::yield_now();
                }
            }
            Ok(items.into_iter().collect())
        }
    }

    from.deserialize_map(Items)
}

impl Stored for Roster {
    const TABLE: Table = Table("roster");
    const SCHEMA: u8 = 1;
}

impl Drop for Roster {
    fn drop(&mut self) {
        if self.items.len() > LONG {
            store::discard(std::mem::take(&mut self.items));
        }
    }
}

impl Roster {
    /// The version that clients see (RFC 6121, 2.6).
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch, changes: self.changes }
    }

    /// The same as it is written, which says of shared groups too.
    pub fn ver(&self) -> String {
        pushes::ver(self.version(), self.shared.digest)
    }

    pub fn standing(&self, contact: &Jid) -> Standing {
        self.items.get(contact.as_str()).map(|item| item.standing).unwrap_or_default()
    }

    /// Whether `jid`, bare or full, may see the account's presence.
    pub fn lets_see(&self, jid: &Jid) -> bool {
        self.standing(&Jid::from(jid.to_bare())).from
    }

    fn size(&self) -> usize {
        self.items.iter().map(|(jid, item)| jid.len() + item.size()).sum()
    }
}

/// A subscription request that waits for the user's answer (RFC 6121, 3.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub stanza: Kept,
}

impl Stored for Request {
    const TABLE: Table = Table("subscription_requests");
    const SCHEMA: u8 = 1;
}

crate::settings! {
    /// `[modules.roster]`
    pub struct Config {
        /// The most contacts of one account; a client that adds more is told `resource-constraint`.
        items_max: usize = 1_000,
        /// The most bytes of one account's roster, at most 900000; at the bound as above.
        bytes_max: usize = 512 * 1024,
        /// The longest name of a contact or group, in bytes; a longer one is `not-acceptable`.
        name_bytes_max: usize = 1_023,
        /// The most groups of one contact; more are `not-acceptable`.
        groups_max: usize = 50,
    }
}

/// What a change did.
#[derive(Debug)]
pub struct Changed<R> {
    pub value: R,
    /// As it is kept, without what groups add to it.
    pub roster: Arc<Roster>,
    /// The contact's item is another one now, so it must be pushed.
    pub item_changed: bool,
}

/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;
/// Contacts beyond which a roster is freed aside: it consists of some small pieces for each of them.
const LONG: usize = 1_000;
/// Contacts that are read in one go.
const SLICE: usize = 128;

/// Access to all rosters. Modules share one.
pub struct Rosters {
    config: Config,
    cache: Cache<Roster>,
    groups: Arc<Groups>,
}

impl Rosters {
    pub fn new(config: Config) -> Rosters {
        Rosters::with_groups(config, Arc::new(Groups::none()))
    }

    /// Rosters with what groups that operators keep add to them.
    pub fn with_groups(config: Config, groups: Arc<Groups>) -> Rosters {
        Rosters { config, cache: Cache::default(), groups }
    }

    /// Those groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The account's roster as it is kept, without what groups add to it.
    pub async fn own(&self, services: &dyn Services, account: &BareJid) -> Result<Roster, StoreError> {
        Ok(services.store().get(&partition(account), KEY).await?.unwrap_or_default())
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The roster where it is cached: awaits nothing.
    pub fn cached(&self, account: &BareJid) -> Option<Arc<Roster>> {
        self.cache.get(account)
    }

    /// The account's roster, from the cache while it has sessions here.
    pub async fn of(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<Roster>, StoreError> {
        match self.cached(account) {
            Some(roster) => Ok(roster),
            None => self.read(services, account).await,
        }
    }

    /// The account's roster as the store has it now.
    pub async fn read(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<Roster>, StoreError> {
        self.groups.ready(services, account.domain().as_str()).await?;
        self.cache.read_as(services, account, |roster| self.groups.merge(account, roster)).await
    }

    /// Forgets the cached roster; one that is being read now is not cached.
    pub fn forget(&self, account: &BareJid) {
        self.cache.forget(account);
    }

    /// As `forget`, unless the cached roster is of this version.
    pub fn forget_unless(&self, account: &BareJid, version: Version) {
        self.cache.forget_unless(account, |roster| roster.version() == version);
    }

    /// Changes the item of `contact`, and the request that waits from it, in one step. `change`
    /// runs again when another writer was faster.
    pub async fn change<R>(
        &self,
        services: &dyn Services,
        account: &BareJid,
        contact: &Jid,
        change: impl FnMut(&mut Option<Item>, &mut Option<Request>) -> Result<R, StanzaError>,
    ) -> Result<Changed<R>, Failure> {
        self.write(services, account, contact, false, change).await
    }

    /// Puts what `make` makes of the item in its place, or takes it away. It is a change even where the item stays as it was: the
    /// push that follows (RFC 6121, 2.4.2) needs a version of its own (2.6.3).
    pub async fn put(
        &self,
        services: &dyn Services,
        account: &BareJid,
        contact: &Jid,
        make: impl Fn(Option<Item>) -> Option<Item>,
    ) -> Result<Changed<()>, Failure> {
        let change = |item: &mut Option<Item>, _: &mut Option<Request>| {
            *item = make(item.take());
            Ok(())
        };
        self.write(services, account, contact, true, change).await
    }

    async fn write<R>(
        &self,
        services: &dyn Services,
        account: &BareJid,
        contact: &Jid,
        always: bool,
        mut change: impl FnMut(&mut Option<Item>, &mut Option<Request>) -> Result<R, StanzaError>,
    ) -> Result<Changed<R>, Failure> {
        let (partition, key) = (partition(account), contact.as_str());
        for _ in 0..ATTEMPTS {
            let stored: Option<Versioned<Roster>> = services.store().get_versioned(&partition, KEY).await?;
            let waiting: Option<Versioned<Request>> = services.store().get_versioned(&partition, key).await?;
            let expect = |version: Option<u64>| version.map_or(Expect::Absent, Expect::Version);
            let mut batch = Batch::new(partition.clone())
                .expect::<Roster>(KEY, expect(stored.as_ref().map(|found| found.version)))
                .expect::<Request>(key, expect(waiting.as_ref().map(|found| found.version)));
            let mut roster = stored.map(|found| found.value).unwrap_or_default();
            let old_request = waiting.map(|found| found.value);
            let old_item = roster.items.get(key).cloned();
            let (mut item, mut request) = (old_item.clone(), old_request.clone());
            let value = change(&mut item, &mut request)?;
            let item_changed = always || item != old_item;
            if !item_changed && request == old_request {
                return Ok(Changed { value, roster: Arc::new(roster), item_changed });
            }
            if item_changed {
                self.put_item(services, &mut roster, key, old_item.is_none(), item)?;
                batch = batch.put(KEY, &roster);
                // For sessions that could hear of it too early; who logs in from here on reads all of it.
                if !services.online(account).is_empty() {
                    batch = pushes::note(batch, roster.version(), key, roster.items.get(key));
                }
            }
            batch = match &request {
                _ if request == old_request => batch,
                Some(request) => batch.put(key, request),
                None => batch.delete::<Request>(key),
            };
            if services.store().commit_one(batch).await? == Committed::Done {
                let roster = Arc::new(roster);
                if item_changed {
                    // Not cached here: another node's later change may have been pushed to us already.
                    self.forget(account);
                }
                return Ok(Changed { value, roster, item_changed });
            }
        }
        Err(StoreError::Contended { table: Roster::TABLE.0, attempts: ATTEMPTS }.into())
    }

    /// Whether another request may be kept for the account, of at most `max`.
    pub async fn has_room_for_request(
        &self,
        services: &dyn Services,
        account: &BareJid,
        max: usize,
    ) -> Result<bool, StoreError> {
        let range = store::Range::all().limit(max);
        let waiting = services.store().scan::<Request>(&partition(account), range).await?;
        Ok(waiting.len() < max)
    }

    /// The requests that wait for the user's answer, in the order of their senders.
    pub async fn requests(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<Vec<Request>, StoreError> {
        let waiting = services.store().scan(&partition(account), store::Range::all()).await?;
        Ok(waiting.into_iter().map(|(_, request)| request).collect())
    }

    fn put_item(
        &self,
        services: &dyn Services,
        roster: &mut Roster,
        key: &str,
        is_new: bool,
        item: Option<Item>,
    ) -> Result<(), StanzaError> {
        match item {
            None => {
                roster.items.remove(key);
            }
            Some(item) => {
                roster.items.insert(key.to_owned(), item);
                let full = is_new && roster.items.len() > self.config.items_max;
                if full || roster.size() > self.config.bytes_max.min(900_000) {
                    return Err(StanzaError::new(Condition::ResourceConstraint));
                }
            }
        }
        if roster.changes == 0 {
            let mut epoch = [0; 8];
            services.random(&mut epoch);
            roster.epoch = u64::from_le_bytes(epoch);
        }
        roster.changes += 1;
        Ok(())
    }
}

/// Where everything of an account is kept.
pub fn partition(account: &BareJid) -> Partition {
    Partition::Account(account.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roster_of_any_length_is_read_as_it_was_kept() {
        for contacts in [0, 1, SLICE - 1, SLICE, 3 * SLICE + 7] {
            let item =
                |n| (format!("c{n}@x"), Item { name: Some(format!("Contact {n}")), ..Item::default() });
            let roster = Roster {
                items: (0..contacts).map(item).collect(),
                epoch: 7,
                changes: 9,
                ..Roster::default()
            };
            let kept = store::record::encode(&roster);
            assert_eq!(store::record::decode::<Roster>(&kept).unwrap(), roster);
        }
    }
}

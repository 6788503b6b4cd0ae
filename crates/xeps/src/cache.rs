//! What the store keeps once for an account, cached with the account's sessions at this node.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use hooks::{How, Services};
use jid::BareJid;
use parking_lot::Mutex;
use stanza::address::same_account;
use stanza::{Head, Kind, Stanza};
use store::{StoreError, Stored};

use crate::rosters::partition;

/// The one key of such a record.
pub const KEY: &[u8] = b"";
const SHARDS: usize = 64;

struct Shard<T> {
    /// Grows when anything of the shard is forgotten, so that an older read is not cached after it.
    forgotten: u64,
    values: HashMap<BareJid, Arc<T>>,
}

/// One value for each account that has a session here and was asked about. What changes a value at another node
/// must be told here, so that it is forgotten.
pub struct Cache<T> {
    shards: [Mutex<Shard<T>>; SHARDS],
}

impl<T> Default for Cache<T> {
    fn default() -> Cache<T> {
        let shard = |_| Mutex::new(Shard { forgotten: 0, values: HashMap::new() });
        Cache { shards: std::array::from_fn(shard) }
    }
}

impl<T: Stored + Default> Cache<T> {
    /// The value where it is cached: awaits nothing.
    pub fn get(&self, account: &BareJid) -> Option<Arc<T>> {
        self.shard(account).lock().values.get(account).cloned()
    }

    /// The value, from the cache while the account has sessions here.
    pub async fn of(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<T>, StoreError> {
        match self.get(account) {
            Some(value) => Ok(value),
            None => self.read(services, account).await,
        }
    }

    /// The value as the store has it now.
    pub async fn read(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<T>, StoreError> {
        self.read_as(services, account, |value| value).await
    }

    /// The same, as `make` makes it of what the store has. What that depends on beside is changed before the value is
    /// forgotten.
    pub async fn read_as(
        &self,
        services: &dyn Services,
        account: &BareJid,
        make: impl FnOnce(T) -> T,
    ) -> Result<Arc<T>, StoreError> {
        let before = self.shard(account).lock().forgotten;
        let stored: Option<T> = services.store().get(&partition(account), KEY).await?;
        let value = Arc::new(make(stored.unwrap_or_default()));
        if !services.local_sessions(account).is_empty() {
            let mut shard = self.shard(account).lock();
            if shard.forgotten == before {
                shard.values.insert(account.clone(), value.clone());
            }
        }
        Ok(value)
    }

    /// Forgets the value; one that is being read now is not cached.
    pub fn forget(&self, account: &BareJid) {
        self.forget_unless(account, |_| false);
    }

    /// As `forget`, unless what is cached is wanted still.
    pub fn forget_unless(&self, account: &BareJid, is_wanted: impl Fn(&T) -> bool) {
        let mut shard = self.shard(account).lock();
        if shard.values.get(account).is_some_and(|value| is_wanted(value)) {
            return;
        }
        shard.forgotten += 1;
        let former = shard.values.remove(account);
        // Freed without the lock: it may be large.
        drop(shard);
        drop(former);
    }

    /// Forgets the value at every node with a session of the account: those that are elsewhere are told `changed`, which
    /// [`is_change`] knows there.
    pub async fn forget_everywhere(
        &self,
        services: &dyn Services,
        account: &BareJid,
        changed: &'static [u8],
    ) {
        // One that was bound before the change was written may have read what was before; it must be known here.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(%account, %error, "telling of a change without a read barrier");
        }
        self.forget(account);
        for other in services.online(account).into_iter().filter(|other| !other.here) {
            let head = Head {
                from: Some(account.clone().into()),
                to: Some(other.jid.into()),
                ..Head::new(Kind::Message)
            };
            services.route(Stanza::new(head, Bytes::from_static(changed)), How::Direct).await;
        }
    }

    fn shard(&self, account: &BareJid) -> &Mutex<Shard<T>> {
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }
}

/// Whether it tells of a change: nobody else sends anything from the account itself.
pub fn is_change(stanza: &Stanza, account: &BareJid, changed: &[u8]) -> bool {
    stanza.head.kind == Kind::Message
        && stanza.body() == changed
        && stanza.head.from.as_ref().is_some_and(|from| from.is_bare() && same_account(from, account))
}

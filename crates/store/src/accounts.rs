//! Who may log in: SCRAM keys per account, never a password, and an index of accounts per host.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Batch, Committed, Expect, Op, Partition, Range, StoreError, Table},
    record::{self, Stored},
    table::{Store, UPDATE_ATTEMPTS, Versioned},
};

/// What the server keeps of a password for one hash (RFC 5802, section 3): enough to check, too little to
/// log in elsewhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramKeys {
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub stored_key: Vec<u8>,
    pub server_key: Vec<u8>,
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// What an account may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountState {
    /// Its owner may log in.
    #[default]
    Open,
    /// Nobody may log in; all that is kept for it stays, and messages for it are kept as for who is away.
    Disabled,
    /// It is being removed: for everybody but the removal itself it is not there any more.
    Leaving,
}

impl AccountState {
    /// The word for operators.
    pub fn word(self) -> &'static str {
        match self {
            AccountState::Open => "open",
            AccountState::Disabled => "disabled",
            AccountState::Leaving => "leaving",
        }
    }
}

/// The keys of one account, for each hash that a client may choose. Those of an account that came from another server may
/// not be there for all hashes: they cannot be made without the password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub sha1: Option<ScramKeys>,
    pub sha256: Option<ScramKeys>,
    pub sha512: Option<ScramKeys>,
    pub state: AccountState,
    /// What [`Credentials::mark`] was before keys were added; `None` if none were since it last was another one.
    mark: Option<Vec<u8>>,
}

impl Credentials {
    /// Of an open account.
    pub fn new(
        sha1: impl Into<Option<ScramKeys>>,
        sha256: impl Into<Option<ScramKeys>>,
        sha512: impl Into<Option<ScramKeys>>,
    ) -> Credentials {
        Credentials {
            sha1: sha1.into(),
            sha256: sha256.into(),
            sha512: sha512.into(),
            state: AccountState::Open,
            mark: None,
        }
    }

    /// What is the same as long as the password and the state of the account are: whatever holds by them has it in mind.
    /// It is a secret. `version` is that of the record.
    pub fn mark(&self, version: u64) -> Vec<u8> {
        let key = || self.sha256.as_ref().or(self.sha512.as_ref()).or(self.sha1.as_ref());
        let made = || {
            let key = key().map(|keys| keys.stored_key.as_slice()).unwrap_or_default();
            [&version.to_be_bytes()[..], key].concat()
        };
        self.mark.clone().unwrap_or_else(made)
    }

    /// These, with those of `more` for the hashes that have none here.
    fn with(self, more: &Credentials) -> Credentials {
        Credentials {
            sha1: self.sha1.or_else(|| more.sha1.clone()),
            sha256: self.sha256.or_else(|| more.sha256.clone()),
            sha512: self.sha512.or_else(|| more.sha512.clone()),
            ..self
        }
    }

    /// How many hashes it has no keys for.
    fn lacks(&self) -> usize {
        [&self.sha1, &self.sha256, &self.sha512].into_iter().filter(|keys| keys.is_none()).count()
    }
}

impl Stored for Credentials {
    const TABLE: Table = Table("credentials");
    const SCHEMA: u8 = 3;

    fn migrate(schema: u8, bytes: &[u8]) -> Option<Credentials> {
        match schema {
            1 => record::postcard::<v1::Credentials>(bytes).map(|old| old.next().next()),
            2 => record::postcard::<v2::Credentials<ScramKeys>>(bytes).map(v2::Credentials::next),
            _ => None,
        }
    }

    /// Nearly all accounts have all keys, and are read by what runs beside this during an upgrade.
    fn older(&self) -> Option<Vec<u8>> {
        let Credentials { sha1: Some(sha1), sha256: Some(sha256), sha512: Some(sha512), state, mark: None } =
            self
        else {
            return None;
        };
        Some(record::in_schema(2, &v2::Credentials { sha1, sha256, sha512, state: *state }, 256))
    }
}

mod v1 {
    use serde::Deserialize;

    use super::{AccountState, ScramKeys, v2};

    #[derive(Deserialize)]
    pub struct Credentials {
        sha1: ScramKeys,
        sha256: ScramKeys,
        sha512: ScramKeys,
        disabled: bool,
    }

    impl Credentials {
        pub fn next(self) -> v2::Credentials<ScramKeys> {
            let Credentials { sha1, sha256, sha512, disabled } = self;
            let state = if disabled { AccountState::Disabled } else { AccountState::Open };
            v2::Credentials { sha1, sha256, sha512, state }
        }
    }
}

mod v2 {
    use serde::{Deserialize, Serialize};

    use super::{AccountState, ScramKeys};

    #[derive(Serialize, Deserialize)]
    pub struct Credentials<Keys> {
        pub sha1: Keys,
        pub sha256: Keys,
        pub sha512: Keys,
        pub state: AccountState,
    }

    impl Credentials<ScramKeys> {
        pub fn next(self) -> super::Credentials {
            let Credentials { sha1, sha256, sha512, state } = self;
            super::Credentials { state, ..super::Credentials::new(sha1, sha256, sha512) }
        }
    }
}

/// That a host may have an account of this name; the account's own partition has the last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed;

impl Stored for Listed {
    const TABLE: Table = Table("accounts");
    const SCHEMA: u8 = 1;
}

/// That an account of a host is being removed, for whoever has to finish it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Leaver;

impl Stored for Leaver {
    const TABLE: Table = Table("leaving");
    const SCHEMA: u8 = 1;
}

/// One account of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The bare JID, as it was given to [`Accounts::create`].
    pub bare: String,
    pub state: AccountState,
}

/// Why an account could not be made or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    #[error("account exists already")]
    AlreadyExists,
    /// An account of that name is being removed; when that is done a new one can be made.
    #[error("an account of that name is being removed")]
    Leaving,
    #[error("no such account")]
    NotFound,
    /// An empty password, or one with characters that SASLprep (RFC 4013) forbids.
    #[error("this password cannot be used")]
    BadPassword,
    /// So many passwords wait to be turned into keys that no more may.
    #[error("too many passwords are being set")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The accounts of all hosts. Names are prepared bare JIDs, `local@host`.
#[derive(Clone)]
pub struct Accounts {
    store: Store,
    /// A record like any account's, and nobody's.
    decoy: Arc<[u8]>,
    /// Keys as they are in it.
    decoy_keys: Arc<ScramKeys>,
}

/// The one key of an account's credentials.
const KEY: &[u8] = b"";

impl Accounts {
    pub fn new(store: Store) -> Accounts {
        let keys = |len| ScramKeys {
            salt: vec![0; 16],
            iterations: 4096,
            stored_key: vec![0; len],
            server_key: vec![0; len],
        };
        let decoy = Credentials::new(keys(20), keys(32), keys(64));
        Accounts { store, decoy: record::encode(&decoy).into(), decoy_keys: keys(32).into() }
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AccountError::AlreadyExists`] and [`AccountError::Leaving`] leave the account that is there as it is.
    pub async fn create(&self, bare: &str, credentials: &Credentials) -> Result<(), AccountError> {
        // Before the account: a crash in between leaves a line too many in the index, which `list` checks,
        // and never an account that nobody can find.
        self.list_name(bare).await?;
        if !self.store.insert(&account(bare), KEY, credentials).await? {
            return Err(match self.state(bare).await? {
                Some(AccountState::Leaving) => AccountError::Leaving,
                _ => AccountError::AlreadyExists,
            });
        }
        // And after it, so that a removal that runs beside cannot take the line of the new account: it
        // deletes only the version that it saw before it removed the old one.
        self.list_name(bare).await?;
        Ok(())
    }

    /// The keys of an account, in whatever state; `None` if there is no such account.
    pub async fn credentials(&self, bare: &str) -> Result<Option<Credentials>, StoreError> {
        self.store.get(&account(bare), KEY).await
    }

    /// As [`Accounts::credentials`], for a login: a name that nobody has takes the work of one that somebody has.
    pub async fn look_up(&self, bare: &str) -> Result<Option<Credentials>, StoreError> {
        Ok(self.look_up_versioned(bare).await?.map(|found| found.value))
    }

    /// As [`Accounts::look_up`], with the version, which every change of keys or state makes another one.
    pub async fn look_up_versioned(&self, bare: &str) -> Result<Option<Versioned<Credentials>>, StoreError> {
        let found: Option<Versioned<Credentials>> = self.store.get_versioned(&account(bare), KEY).await?;
        // Making keys of a record's bytes takes a few microseconds, and those can be told over a network by asking often
        // enough.
        match &found {
            None => drop(std::hint::black_box(record::decode::<Credentials>(&self.decoy).ok())),
            Some(found) => {
                for _ in 0..found.value.lacks() {
                    std::hint::black_box(ScramKeys::clone(&self.decoy_keys));
                }
            }
        }
        Ok(found)
    }

    /// The state of an account; `None` if there is none.
    pub async fn state(&self, bare: &str) -> Result<Option<AccountState>, StoreError> {
        Ok(self.credentials(bare).await?.map(|credentials| credentials.state))
    }

    /// Whether there is such an account, disabled or not; one that is being removed is not there.
    pub async fn exists(&self, bare: &str) -> Result<bool, StoreError> {
        match self.state(bare).await {
            Ok(state) => Ok(state.is_some_and(|state| state != AccountState::Leaving)),
            // Damaged keys stop a login, and no message.
            Err(StoreError::Corrupt { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Replaces the keys of an account; its state stays as it is, whatever the new ones say.
    pub async fn set_keys(&self, bare: &str, keys: &Credentials) -> Result<(), AccountError> {
        let change = |old: Credentials| Credentials { state: old.state, mark: None, ..keys.clone() };
        self.change(bare, change).await.map(drop)
    }

    /// Gives an account keys for hashes that it has none for, of the password that it has, and leaves the others as they
    /// are; whether it has them now. Not where its [mark](Credentials::mark) is another one: then the password may be too,
    /// or nobody is to log in. What holds by the mark goes on to hold.
    pub async fn add_keys(&self, bare: &str, mark: &[u8], more: &Credentials) -> Result<bool, StoreError> {
        for _ in 0..UPDATE_ATTEMPTS {
            let found: Option<Versioned<Credentials>> = self.store.get_versioned(&account(bare), KEY).await?;
            let Some(Versioned { version, value }) =
                found.filter(|found| found.value.mark(found.version) == mark)
            else {
                return Ok(false);
            };
            let new = Credentials { mark: Some(mark.to_owned()), ..value.clone().with(more) };
            if new.lacks() == value.lacks() {
                return Ok(true);
            }
            let batch =
                Batch::new(account(bare)).expect::<Credentials>(KEY, Expect::Version(version)).put(KEY, &new);
            if self.store.commit_one(batch).await? == Committed::Done {
                return Ok(true);
            }
        }
        Err(StoreError::Contended { table: Credentials::TABLE.0, attempts: UPDATE_ATTEMPTS })
    }

    /// Lets nobody log in any more, or again; whether that is a change. Who is logged in is not this layer's.
    pub async fn set_disabled(&self, bare: &str, disabled: bool) -> Result<bool, AccountError> {
        let state = if disabled { AccountState::Disabled } else { AccountState::Open };
        let before = self.change(bare, |old| Credentials { state, mark: None, ..old }).await?;
        Ok(before != state)
    }

    /// Changes an account that is there and not being removed; its state before.
    async fn change(
        &self,
        bare: &str,
        change: impl Fn(Credentials) -> Credentials,
    ) -> Result<AccountState, AccountError> {
        let mut before = None;
        self.store
            .update(&account(bare), KEY, |old: Option<Credentials>| {
                before = old.as_ref().map(|old| old.state).filter(|state| *state != AccountState::Leaving);
                match before {
                    Some(_) => old.map(&change),
                    None => old,
                }
            })
            .await?;
        before.ok_or(AccountError::NotFound)
    }

    /// Begins to remove an account: from now on it is not there for anybody else. To be ended by
    /// [`Accounts::end_removal`]; until then [`Accounts::leaving`] tells of it. Beginning twice is no error.
    ///
    /// # Errors
    /// [`AccountError::NotFound`] if there is no account.
    pub async fn begin_removal(&self, bare: &str) -> Result<(), AccountError> {
        if !self.store.contains::<Credentials>(&account(bare), KEY).await? {
            return Err(AccountError::NotFound);
        }
        // Before the mark, so that whatever is marked is found; without a mark the line means nothing.
        self.store.put(&host(bare), bare, &Leaver).await?;
        let marked = self
            .store
            .update(&account(bare), KEY, |old: Option<Credentials>| {
                old.map(|old| Credentials { state: AccountState::Leaving, mark: None, ..old })
            })
            .await?;
        marked.map(drop).ok_or(AccountError::NotFound)
    }

    /// Removes all that is kept for an account whose removal began, its keys with the rest.
    ///
    /// Nothing happens to an account that is not being removed; then, and at the end, `leaving` tells of it no
    /// more.
    pub async fn end_removal(&self, bare: &str) -> Result<(), StoreError> {
        let host = host(bare);
        let line = self.store.get_versioned::<Listed>(&host, bare).await?;
        let is_there = !self.erase(bare).await?;
        if let Some(line) = line
            && !is_there
        {
            let batch = Batch::new(host.clone())
                .expect::<Listed>(bare, Expect::Version(line.version))
                .delete::<Listed>(bare);
            // A conflict means that the name is being made anew: its line stays.
            let _: Committed = self.store.commit_one(batch).await?;
        }
        self.store.delete::<Leaver>(&host, bare).await
    }

    /// Erases the partition of an account that is leaving; `false` if an account is there that is not.
    async fn erase(&self, bare: &str) -> Result<bool, StoreError> {
        for _ in 0..UPDATE_ATTEMPTS {
            let found: Option<Versioned<Credentials>> = self.store.get_versioned(&account(bare), KEY).await?;
            let Some(Versioned { version, value }) = found else { return Ok(true) };
            if value.state != AccountState::Leaving {
                return Ok(false);
            }
            let batch = Batch::new(account(bare))
                .expect::<Credentials>(KEY, Expect::Version(version))
                .delete_partition();
            if self.store.commit_one(batch).await? == Committed::Done {
                return Ok(true);
            }
        }
        Err(StoreError::Contended { table: Credentials::TABLE.0, attempts: UPDATE_ATTEMPTS })
    }

    /// Accounts of a host whose removal began and has not ended, at most `limit`.
    pub async fn leaving(&self, host: &str, limit: usize) -> Result<Vec<String>, StoreError> {
        let lines =
            self.store.scan::<Leaver>(&Partition::Host(host.into()), Range::all().limit(limit)).await?;
        Ok(lines.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok()).collect())
    }

    /// Accounts of a host in the order of their names, at most `limit`, behind the name `after`.
    ///
    /// A full page may be followed by more; an empty one is the end.
    pub async fn list(
        &self,
        host: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        let partition = Partition::Host(host.into());
        let mut accounts = Vec::new();
        let mut range = after.map_or_else(Range::all, Range::after);
        while accounts.len() < limit {
            let want = limit - accounts.len();
            let lines = self.store.scan::<Listed>(&partition, range.limit(want)).await?;
            let Some((last, _)) = lines.last() else { break };
            range = Range::after(last.clone());
            for (name, _) in lines {
                let Ok(bare) = String::from_utf8(name) else { continue };
                if let Some(state) = self.state(&bare).await? {
                    accounts.push(Account { bare, state });
                }
            }
        }
        Ok(accounts)
    }

    async fn list_name(&self, bare: &str) -> Result<(), StoreError> {
        self.store.put(&host(bare), bare, &Listed).await
    }
}

/// Lets a batch that puts something into an account's partition depend on the account; whether it does now.
pub(crate) fn guard(batch: &mut Batch) -> bool {
    let puts = batch.ops.iter().any(|op| matches!(op, Op::Put { .. }));
    let own = batch.ops.iter().any(|op| matches!(op, Op::Put { table, .. } if *table == Credentials::TABLE));
    let guarded = matches!(batch.partition, Partition::Account(_)) && puts && !own;
    if guarded {
        batch.expect.push((Credentials::TABLE, KEY.to_vec(), Expect::Present));
    }
    guarded
}

/// Whether a guarded batch was not applied because the account is gone.
pub(crate) fn is_stopped_by_guard(outcome: &Committed) -> bool {
    matches!(outcome, Committed::Conflict { table, .. } if *table == Credentials::TABLE)
}

fn account(bare: &str) -> Partition {
    Partition::Account(bare.into())
}

fn host(bare: &str) -> Partition {
    // RFC 7622, 3.1: the first `@` ends the localpart, and a domain holds none.
    Partition::Host(bare.split_once('@').map_or(bare, |(_, host)| host).into())
}

#[cfg(test)]
mod tests;

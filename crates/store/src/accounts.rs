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

/// The keys of one account, for each hash that a client may choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub sha1: ScramKeys,
    pub sha256: ScramKeys,
    pub sha512: ScramKeys,
    pub state: AccountState,
}

impl Stored for Credentials {
    const TABLE: Table = Table("credentials");
    const SCHEMA: u8 = 2;

    fn migrate(schema: u8, bytes: &[u8]) -> Option<Credentials> {
        match schema {
            1 => record::postcard::<v1::Credentials>(bytes).map(v1::Credentials::next),
            _ => None,
        }
    }
}

mod v1 {
    use serde::Deserialize;

    use super::{AccountState, ScramKeys};

    #[derive(Deserialize)]
    pub struct Credentials {
        sha1: ScramKeys,
        sha256: ScramKeys,
        sha512: ScramKeys,
        disabled: bool,
    }

    impl Credentials {
        pub fn next(self) -> super::Credentials {
            let Credentials { sha1, sha256, sha512, disabled } = self;
            let state = if disabled { AccountState::Disabled } else { AccountState::Open };
            super::Credentials { sha1, sha256, sha512, state }
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
        let (sha1, sha256, sha512) = (keys(20), keys(32), keys(64));
        let decoy = Credentials { sha1, sha256, sha512, state: AccountState::Open };
        Accounts { store, decoy: record::encode(&decoy).into() }
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
        let found = self.store.get_versioned(&account(bare), KEY).await?;
        if found.is_none() {
            // Making keys of a record's bytes takes a few microseconds, and those can be told over a network by
            // asking often enough.
            std::hint::black_box(record::decode::<Credentials>(&self.decoy).ok());
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
        let change = |old: Credentials| Credentials { state: old.state, ..keys.clone() };
        self.change(bare, change).await.map(drop)
    }

    /// Lets nobody log in any more, or again; whether that is a change. Who is logged in is not this layer's.
    pub async fn set_disabled(&self, bare: &str, disabled: bool) -> Result<bool, AccountError> {
        let state = if disabled { AccountState::Disabled } else { AccountState::Open };
        let before = self.change(bare, |old| Credentials { state, ..old }).await?;
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
                old.map(|old| Credentials { state: AccountState::Leaving, ..old })
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
mod tests {
    use super::*;

    fn keys(byte: u8) -> Credentials {
        let keys = ScramKeys {
            salt: vec![byte; 16],
            iterations: 4096,
            stored_key: vec![byte; 20],
            server_key: vec![byte; 20],
        };
        Credentials { sha1: keys.clone(), sha256: keys.clone(), sha512: keys, state: AccountState::Open }
    }

    /// Something that a module keeps.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Note(u8);

    impl Stored for Note {
        const TABLE: Table = Table("note");
        const SCHEMA: u8 = 1;
    }

    async fn remove(accounts: &Accounts, bare: &str) {
        accounts.begin_removal(bare).await.unwrap();
        accounts.end_removal(bare).await.unwrap();
    }

    #[tokio::test]
    async fn an_account_is_made_once_and_found() {
        let accounts = Accounts::new(Store::memory());
        accounts.create("alice@localhost", &keys(1)).await.unwrap();
        let again = accounts.create("alice@localhost", &keys(2)).await;
        assert_eq!(again, Err(AccountError::AlreadyExists));
        assert_eq!(accounts.credentials("alice@localhost").await.unwrap(), Some(keys(1)));
        assert!(accounts.exists("alice@localhost").await.unwrap());
        assert!(!accounts.exists("bob@localhost").await.unwrap());
        assert_eq!(accounts.credentials("bob@localhost").await.unwrap(), None);
        assert_eq!(accounts.look_up("alice@localhost").await.unwrap(), Some(keys(1)));
        assert_eq!(accounts.look_up("bob@localhost").await.unwrap(), None);
        assert!(record::decode::<Credentials>(&accounts.decoy).is_ok());
    }

    #[tokio::test]
    async fn keys_are_replaced_only_where_an_account_is_and_leave_it_disabled() {
        let accounts = Accounts::new(Store::memory());
        assert_eq!(accounts.set_keys("a@h", &keys(1)).await, Err(AccountError::NotFound));
        assert!(!accounts.exists("a@h").await.unwrap());
        accounts.create("a@h", &keys(1)).await.unwrap();
        assert_eq!(accounts.set_disabled("a@h", true).await, Ok(true));
        assert_eq!(accounts.set_disabled("a@h", true).await, Ok(false));
        accounts.set_keys("a@h", &keys(3)).await.unwrap();
        let found = accounts.credentials("a@h").await.unwrap();
        assert_eq!(found, Some(Credentials { state: AccountState::Disabled, ..keys(3) }));
        assert!(accounts.exists("a@h").await.unwrap(), "a disabled account is there");
        assert_eq!(accounts.set_disabled("a@h", false).await, Ok(true));
        assert_eq!(accounts.state("a@h").await.unwrap(), Some(AccountState::Open));
        assert_eq!(accounts.set_disabled("b@h", true).await, Err(AccountError::NotFound));
    }

    #[tokio::test]
    async fn a_removed_account_takes_its_partition_along() {
        let store = Store::memory();
        let accounts = Accounts::new(store.clone());
        accounts.create("a@h", &keys(1)).await.unwrap();
        store.put(&account("a@h"), "other", &Note(9)).await.unwrap();
        remove(&accounts, "a@h").await;
        assert_eq!(store.get::<Note>(&account("a@h"), "other").await.unwrap(), None);
        assert_eq!(accounts.list("h", None, 10).await.unwrap(), []);
        assert_eq!(accounts.leaving("h", 10).await.unwrap(), [""; 0]);
        assert_eq!(accounts.begin_removal("a@h").await, Err(AccountError::NotFound));
    }

    #[tokio::test]
    async fn while_an_account_leaves_it_is_there_for_nobody_else() {
        let accounts = Accounts::new(Store::memory());
        accounts.create("a@h", &keys(1)).await.unwrap();
        accounts.begin_removal("a@h").await.unwrap();
        assert!(!accounts.exists("a@h").await.unwrap());
        assert_eq!(accounts.leaving("h", 10).await.unwrap(), ["a@h"]);
        assert_eq!(accounts.create("a@h", &keys(2)).await, Err(AccountError::Leaving));
        assert_eq!(accounts.set_keys("a@h", &keys(2)).await, Err(AccountError::NotFound));
        assert_eq!(accounts.set_disabled("a@h", false).await, Err(AccountError::NotFound));
        assert_eq!(accounts.state("a@h").await.unwrap(), Some(AccountState::Leaving));
        accounts.begin_removal("a@h").await.unwrap();
        accounts.end_removal("a@h").await.unwrap();
        accounts.create("a@h", &keys(2)).await.unwrap();
        assert_eq!(accounts.credentials("a@h").await.unwrap(), Some(keys(2)));
    }

    #[tokio::test]
    async fn the_end_of_a_removal_spares_an_account_that_is_not_being_removed() {
        let accounts = Accounts::new(Store::memory());
        accounts.create("a@h", &keys(1)).await.unwrap();
        // As a crash between the line and the mark leaves it, or a second node that comes too late.
        accounts.store.put(&host("a@h"), "a@h", &Leaver).await.unwrap();
        accounts.end_removal("a@h").await.unwrap();
        assert_eq!(accounts.credentials("a@h").await.unwrap(), Some(keys(1)));
        assert_eq!(accounts.list("h", None, 9).await.unwrap().len(), 1);
        assert_eq!(accounts.leaving("h", 9).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn nothing_is_kept_for_an_account_that_is_gone() {
        let store = Store::memory();
        let (accounts, modules) = (Accounts::new(store.clone()), store.guarded());
        let gone = || StoreError::Gone { partition: account("a@h") };
        assert_eq!(modules.put(&account("a@h"), "k", &Note(1)).await, Err(gone()));
        accounts.create("a@h", &keys(1)).await.unwrap();
        modules.put(&account("a@h"), "k", &Note(1)).await.unwrap();
        modules.update(&account("a@h"), "k", |_: Option<Note>| Some(Note(2))).await.unwrap();
        accounts.begin_removal("a@h").await.unwrap();
        // What comes now is removed with the rest.
        modules.put(&account("a@h"), "late", &Note(3)).await.unwrap();
        accounts.end_removal("a@h").await.unwrap();
        assert_eq!(modules.insert(&account("a@h"), "k", &Note(4)).await, Err(gone()));
        assert_eq!(modules.update(&account("a@h"), "k", |_| Some(Note(5))).await, Err(gone()));
        assert_eq!(store.scan::<Note>(&account("a@h"), Range::all()).await.unwrap(), []);
        // Deleting does no harm, and what is no account's is not guarded.
        modules.delete::<Note>(&account("a@h"), "k").await.unwrap();
        modules.put(&Partition::Host("h".into()), "k", &Note(6)).await.unwrap();
        modules.put(&Partition::Room("a@h".into()), "k", &Note(6)).await.unwrap();
    }

    #[tokio::test]
    async fn a_list_is_paged_per_host_and_skips_lines_without_an_account() {
        let accounts = Accounts::new(Store::memory());
        for name in ["c@h", "a@h", "b@h", "x@other"] {
            accounts.create(name, &keys(1)).await.unwrap();
        }
        // As a crash between the two steps of `create` leaves it.
        accounts.list_name("aa@h").await.unwrap();
        let names = |list: Vec<Account>| list.into_iter().map(|a| a.bare).collect::<Vec<_>>();
        assert_eq!(names(accounts.list("h", None, 2).await.unwrap()), ["a@h", "b@h"]);
        assert_eq!(names(accounts.list("h", Some("b@h"), 2).await.unwrap()), ["c@h"]);
        assert_eq!(names(accounts.list("other", None, 9).await.unwrap()), ["x@other"]);
    }

    #[tokio::test]
    async fn a_removal_beside_a_creation_leaves_the_new_account_listed() {
        let store = Store::memory();
        let accounts = Accounts::new(store.clone());
        accounts.create("a@h", &keys(1)).await.unwrap();
        let seen = store.get_versioned::<Listed>(&host("a@h"), "a@h").await.unwrap().unwrap();
        store.delete_partition(&account("a@h")).await.unwrap();
        accounts.create("a@h", &keys(2)).await.unwrap();
        let late = Batch::new(host("a@h"))
            .expect::<Listed>("a@h", Expect::Version(seen.version))
            .delete::<Listed>("a@h");
        assert!(matches!(store.commit_one(late).await.unwrap(), Committed::Conflict { .. }));
        assert_eq!(accounts.list("h", None, 9).await.unwrap().len(), 1);
    }

    #[test]
    fn the_stored_bytes_of_both_schemas_stay_readable() {
        let keys = |n: u8| [2, n, n, 0x80, 0x20, 1, n, 1, n].to_vec();
        let one = |n: u8| ScramKeys {
            salt: vec![n, n],
            iterations: 4096,
            stored_key: vec![n],
            server_key: vec![n],
        };
        let expected = |state| Credentials { sha1: one(1), sha256: one(2), sha512: one(3), state };
        let bytes = |schema, last| [vec![schema], keys(1), keys(2), keys(3), vec![last]].concat();
        use AccountState::*;
        for (schema, last, state) in
            [(1, 0, Open), (1, 1, Disabled), (2, 0, Open), (2, 1, Disabled), (2, 2, Leaving)]
        {
            assert_eq!(record::decode(&bytes(schema, last)), Ok(expected(state)), "{schema} {last}");
        }
        assert_eq!(record::encode(&expected(Leaving)), bytes(2, 2));
    }
}

//! Who may log in: SCRAM keys per account, never a password, and an index of accounts per host.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Batch, Committed, Expect, Partition, Range, StoreError, Table},
    record::Stored,
    table::Store,
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

/// The keys of one account, for each hash that a client may choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub sha1: ScramKeys,
    pub sha256: ScramKeys,
    pub sha512: ScramKeys,
    /// The account is there but nobody may log in.
    pub disabled: bool,
}

impl Stored for Credentials {
    const TABLE: Table = Table("credentials");
    const SCHEMA: u8 = 1;
}

/// That a host may have an account of this name; the account's own partition has the last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed;

impl Stored for Listed {
    const TABLE: Table = Table("accounts");
    const SCHEMA: u8 = 1;
}

/// One account of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The bare JID, as it was given to [`Accounts::create`].
    pub bare: String,
    pub disabled: bool,
}

/// Why an account could not be made or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    #[error("account exists already")]
    AlreadyExists,
    #[error("no such account")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The accounts of all hosts. Names are prepared bare JIDs, `local@host`.
#[derive(Clone)]
pub struct Accounts {
    store: Store,
}

/// The one key of an account's credentials.
const KEY: &[u8] = b"";

impl Accounts {
    pub fn new(store: Store) -> Accounts {
        Accounts { store }
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AccountError::AlreadyExists`] leaves the account that is there as it is.
    pub async fn create(&self, bare: &str, credentials: &Credentials) -> Result<(), AccountError> {
        // Before the account: a crash in between leaves a line too many in the index, which `list` checks,
        // and never an account that nobody can find.
        self.list_name(bare).await?;
        if !self.store.insert(&account(bare), KEY, credentials).await? {
            return Err(AccountError::AlreadyExists);
        }
        // And after it, so that a removal that runs beside cannot take the line of the new account: it
        // deletes only the version that it saw before it removed the old one.
        self.list_name(bare).await?;
        Ok(())
    }

    /// The keys of an account; `None` if there is no such account.
    pub async fn credentials(&self, bare: &str) -> Result<Option<Credentials>, StoreError> {
        self.store.get(&account(bare), KEY).await
    }

    /// Whether there is such an account, disabled or not.
    pub async fn exists(&self, bare: &str) -> Result<bool, StoreError> {
        self.store.contains::<Credentials>(&account(bare), KEY).await
    }

    /// Replaces the keys of an account (a new password, or disabled or not).
    pub async fn set_credentials(&self, bare: &str, credentials: &Credentials) -> Result<(), AccountError> {
        let partition = account(bare);
        let mut found = false;
        self.store
            .update(&partition, KEY, |old: Option<Credentials>| {
                found = old.is_some();
                old.map(|_| credentials.clone())
            })
            .await?;
        if found { Ok(()) } else { Err(AccountError::NotFound) }
    }

    /// Removes an account with all that its partition holds.
    pub async fn remove(&self, bare: &str) -> Result<(), AccountError> {
        let host = host(bare);
        let line = self.store.get_versioned::<Listed>(&host, bare).await?;
        let existed = self.exists(bare).await?;
        self.store.delete_partition(&account(bare)).await?;
        if let Some(line) = line {
            let batch =
                Batch::new(host).expect::<Listed>(bare, Expect::Version(line.version)).delete::<Listed>(bare);
            // A conflict means that the name is being made anew: its line stays.
            let _: Committed = self.store.commit_one(batch).await?;
        }
        if existed { Ok(()) } else { Err(AccountError::NotFound) }
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
                if let Some(credentials) = self.credentials(&bare).await? {
                    accounts.push(Account { bare, disabled: credentials.disabled });
                }
            }
        }
        Ok(accounts)
    }

    async fn list_name(&self, bare: &str) -> Result<(), StoreError> {
        self.store.put(&host(bare), bare, &Listed).await
    }
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
        Credentials { sha1: keys.clone(), sha256: keys.clone(), sha512: keys, disabled: false }
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
    }

    #[tokio::test]
    async fn credentials_are_replaced_only_where_an_account_is() {
        let accounts = Accounts::new(Store::memory());
        assert_eq!(accounts.set_credentials("a@h", &keys(1)).await, Err(AccountError::NotFound));
        assert!(!accounts.exists("a@h").await.unwrap());
        accounts.create("a@h", &keys(1)).await.unwrap();
        let closed = Credentials { disabled: true, ..keys(3) };
        accounts.set_credentials("a@h", &closed).await.unwrap();
        assert_eq!(accounts.credentials("a@h").await.unwrap(), Some(closed));
    }

    #[tokio::test]
    async fn a_removed_account_takes_its_partition_along() {
        let store = Store::memory();
        let accounts = Accounts::new(store.clone());
        accounts.create("a@h", &keys(1)).await.unwrap();
        store.put(&account("a@h"), "other", &keys(9)).await.unwrap();
        accounts.remove("a@h").await.unwrap();
        assert_eq!(store.get::<Credentials>(&account("a@h"), "other").await.unwrap(), None);
        assert_eq!(accounts.list("h", None, 10).await.unwrap(), []);
        assert_eq!(accounts.remove("a@h").await, Err(AccountError::NotFound));
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
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let keys = |n: u8| [2, n, n, 0x80, 0x20, 1, n, 1, n].to_vec();
        let bytes = [vec![1], keys(1), keys(2), keys(3), vec![0]].concat();
        let one = |n: u8| ScramKeys {
            salt: vec![n, n],
            iterations: 4096,
            stored_key: vec![n],
            server_key: vec![n],
        };
        let expected = Credentials { sha1: one(1), sha256: one(2), sha512: one(3), disabled: false };
        assert_eq!(crate::record::encode(&expected), bytes);
        assert_eq!(crate::record::decode::<Credentials>(&bytes), Ok(expected));
    }
}

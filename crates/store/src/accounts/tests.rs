//! Tests of accounts: what is kept of them, in which bytes, and who it is there for.

use super::*;

fn keys(byte: u8) -> Credentials {
    let keys = ScramKeys {
        salt: vec![byte; 16],
        iterations: 4096,
        stored_key: vec![byte; 20],
        server_key: vec![byte; 20],
    };
    Credentials::new(keys.clone(), keys.clone(), keys)
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

#[tokio::test]
async fn keys_are_added_where_there_are_none_and_change_nothing_that_holds_by_the_password() {
    let accounts = Accounts::new(Store::memory());
    let (old, other) = (keys(1), keys(2));
    let brought = Credentials { sha256: None, sha512: None, ..old.clone() };
    accounts.create("a@h", &brought).await.unwrap();
    let look = async || accounts.look_up_versioned("a@h").await.unwrap().unwrap();
    let mark = |found: &Versioned<Credentials>| found.value.mark(found.version);
    let before = mark(&look().await);
    assert_eq!(accounts.add_keys("b@h", &before, &other).await, Ok(false));
    assert_eq!(accounts.add_keys("a@h", b"another", &other).await, Ok(false));
    let one = Credentials { sha1: None, sha512: None, ..other.clone() };
    assert_eq!(accounts.add_keys("a@h", &before, &one).await, Ok(true));
    assert_eq!(accounts.add_keys("a@h", &before, &other).await, Ok(true));
    assert_eq!(accounts.add_keys("a@h", &before, &keys(3)).await, Ok(true), "they are there");
    let found = look().await;
    assert_eq!(found.value, Credentials { mark: Some(before.clone()), ..other.clone() }.with_sha1(&old));
    assert_eq!(mark(&found), before);
    // Another password, another state: what held by the old ones does so no longer.
    accounts.set_keys("a@h", &brought).await.unwrap();
    let changed = mark(&look().await);
    assert_ne!(changed, before);
    assert_eq!(accounts.add_keys("a@h", &before, &other).await, Ok(false));
    accounts.set_disabled("a@h", true).await.unwrap();
    assert_ne!(mark(&look().await), changed);
    assert_eq!(accounts.add_keys("a@h", &changed, &other).await, Ok(false));
}

impl Credentials {
    fn with_sha1(self, other: &Credentials) -> Credentials {
        Credentials { sha1: other.sha1.clone(), ..self }
    }
}

#[tokio::test]
async fn what_holds_by_the_keys_of_an_older_schema_goes_on_to_hold() {
    let found = record::decode::<Credentials>(
        &[vec![2], [2, 1, 1, 0x80, 0x20, 1, 1, 1, 1].repeat(3), vec![0]].concat(),
    );
    assert_eq!(found.unwrap().mark(7), [&7u64.to_be_bytes()[..], &[1]].concat());
}

#[test]
fn the_stored_bytes_of_all_schemas_stay_readable() {
    let keys = |n: u8| [2, n, n, 0x80, 0x20, 1, n, 1, n].to_vec();
    let one =
        |n: u8| ScramKeys { salt: vec![n, n], iterations: 4096, stored_key: vec![n], server_key: vec![n] };
    let expected = |state| Credentials { state, ..Credentials::new(one(1), one(2), one(3)) };
    let bytes = |schema, last| [vec![schema], keys(1), keys(2), keys(3), vec![last]].concat();
    use AccountState::*;
    for (schema, last, state) in
        [(1, 0, Open), (1, 1, Disabled), (2, 0, Open), (2, 1, Disabled), (2, 2, Leaving)]
    {
        assert_eq!(record::decode(&bytes(schema, last)), Ok(expected(state)), "{schema} {last}");
    }
    // What the version before can read it still reads.
    assert_eq!(record::encode(&expected(Leaving)), bytes(2, 2));
    let some = |n| [vec![1], keys(n)].concat();
    let whole = [vec![3], some(1), some(2), some(3), vec![2, 0]].concat();
    assert_eq!(record::decode(&whole), Ok(expected(Leaving)));
    let added = Credentials { mark: Some(vec![9]), ..expected(Open) };
    let bytes = [vec![3], some(1), some(2), some(3), vec![0, 1, 1, 9]].concat();
    assert_eq!(record::decode(&bytes), Ok(added.clone()));
    assert_eq!(record::encode(&added), bytes);
    let brought = Credentials { mark: Some(vec![7, 8]), ..Credentials::new(one(1), None, None) };
    let bytes = [vec![3], some(1), vec![0, 0, 0, 1, 2, 7, 8]].concat();
    assert_eq!(record::decode(&bytes), Ok(brought.clone()));
    assert_eq!(record::encode(&brought), bytes);
}

//! The end of an account: in which order things happen, and who goes on where somebody stopped.

use std::sync::Arc;

use hooks::bench::parse;
use hooks::{AccountError, AccountState, Accounts, Credentials, ScramKeys, Services, Store};
use jid::BareJid;
use router::Config;

use crate::modules::Keeper;
use crate::world::{World, node, until};

/// `alice@localhost` and `bob@localhost` have accounts.
async fn accounts() -> (Store, Accounts) {
    let store = Store::memory();
    let accounts = Accounts::new(store.clone());
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    for name in ["alice@localhost", "bob@localhost"] {
        accounts.create(name, &credentials).await.unwrap();
    }
    (store, accounts)
}

fn alice() -> BareJid {
    BareJid::new("alice@localhost").unwrap()
}

#[tokio::test]
async fn the_answer_comes_before_the_end_and_others_hear_who_left() {
    let (store, accounts) = accounts().await;
    let (world, keeper) = (World::new(1), Arc::new(Keeper::default()));
    let node = node(&world, 1, &store, vec![keeper.clone()], Config::default());
    let mut phone = node.login("alice@localhost/phone", Some(0));
    let _pad = node.login("alice@localhost/pad", None);
    let last = parse("<iq to='alice@localhost/phone' from='localhost' id='1' type='result'/>");
    let removal = node.router.remove_account(&alice(), Some(last)).await.unwrap();
    // Already now: locked, and answered.
    assert!(!accounts.exists("alice@localhost").await.unwrap());
    assert_eq!(phone.rest(), ["<iq to='alice@localhost/phone' from='localhost' id='1' type='result'/>"]);
    assert_eq!(removal.end().await, Ok(2));
    assert_eq!(node.router.services().online(&alice()), []);
    assert_eq!(*keeper.lost.lock(), ["alice@localhost/phone"], "who was available is told of");
    assert_eq!(accounts.state("alice@localhost").await, Ok(None));
    assert_eq!(accounts.state("bob@localhost").await, Ok(Some(AccountState::Open)));
    let again = node.router.remove_account(&alice(), None).await;
    assert!(matches!(again.err(), Some(AccountError::NotFound)));
}

#[tokio::test]
async fn a_removal_that_nobody_ends_is_ended_by_a_node_that_lives() {
    let (store, accounts) = accounts().await;
    // As a node leaves it that died in the middle.
    accounts.begin_removal("alice@localhost").await.unwrap();
    let world = World::new(1);
    let config = Config { unfinished_removal_s: 1, ..Config::default() };
    let node = node(&world, 1, &store, vec![], config);
    let removed = || node.router.counters().accounts_removed.load(std::sync::atomic::Ordering::Relaxed);
    until("it is removed", || removed() == 1).await;
    assert_eq!(accounts.state("alice@localhost").await, Ok(None));
    assert_eq!(accounts.leaving("localhost", 9).await, Ok(vec![]));
    assert_eq!(accounts.state("bob@localhost").await, Ok(Some(AccountState::Open)));
}

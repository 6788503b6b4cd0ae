//! Accounts that are disabled or removed while somebody is logged in, or just about to be.

use hooks::Services;
use jid::BareJid;
use session::Door;
use store::AccountState;
use stream::client::LoginError;
use stream::sasl::MechanismName;

use crate::client::Client;
use crate::house::{House, PASSWORD};

fn alice() -> BareJid {
    BareJid::new("alice@localhost").unwrap()
}

async fn refusal(house: &House, password: &str, mechanism: MechanismName) -> String {
    let tried =
        Client::try_login(house, Door::DirectTls, "alice", "phone", password, Some(mechanism)).await.1;
    match tried {
        Err(LoginError::Refused(condition)) => condition,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_of_a_disabled_account_is_told_so() {
    let house = House::new().await;
    house.accounts.set_disabled("alice@localhost", true).await.unwrap();
    let scram = MechanismName::from_name("SCRAM-SHA-256").unwrap();
    for mechanism in [scram, MechanismName::Plain] {
        assert_eq!(refusal(&house, PASSWORD, mechanism).await, "account-disabled");
        assert_eq!(refusal(&house, "wrong", mechanism).await, "not-authorized");
    }
    house.accounts.set_disabled("alice@localhost", false).await.unwrap();
    Client::login(&house, "alice", "phone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_of_a_disabled_or_removed_account_end_and_nobody_comes_back() {
    let house = House::new().await;
    let (mut phone, mut desk) =
        (Client::login(&house, "alice", "phone").await, Client::login(&house, "alice", "desk").await);
    assert_eq!(house.router.disable_account(&alice()).await, Ok(2));
    phone.is_told("not-authorized").await;
    desk.is_told("not-authorized").await;
    house.router.enable_account(&alice()).await.unwrap();

    let mut phone = Client::login(&house, "alice", "phone").await;
    let removal = house.router.remove_account(&alice(), None).await.unwrap();
    assert_eq!(removal.end().await, Ok(1));
    phone.is_told("not-authorized").await;
    assert_eq!(house.accounts.state("alice@localhost").await, Ok(None));
    assert_eq!(refusal(&house, PASSWORD, MechanismName::Plain).await, "not-authorized");
    let ends = house.listeners.counters().ends();
    assert!(ends.contains(&("disabled", 2)) && ends.contains(&("removed", 1)), "{ends:?}");
    house.until("all routes are gone", |house| house.town.bound().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_races_a_removal_does_not_outlive_it() {
    let house = House::new().await;
    // The binding is agreed on, and its answer is on its way.
    let telling = house.town.telling.write().await;
    let login = Client::try_login(&house, Door::DirectTls, "alice", "phone", PASSWORD, None);
    let removal = async {
        house.until("the binding is agreed on", |house| !house.town.bound().is_empty()).await;
        // The kick finds a session that has no actor yet, or the session finds the mark.
        let removal = house.router.remove_account(&alice(), None).await.unwrap();
        removal.end().await.unwrap();
        drop(telling);
    };
    let ((mut client, tried), ()) = tokio::join!(login, removal);
    match tried {
        Err(LoginError::StreamEnded(why)) => assert!(why.contains("not-authorized"), "{why}"),
        Ok(_) => client.is_told("not-authorized").await,
        other => panic!("{other:?}"),
    }
    house
        .until("nothing is left", |house| {
            house.town.bound().is_empty() && house.listeners.session_count() == 0
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_comes_back_with_its_node_is_ended_if_its_account_is_gone() {
    let house = House::new().await;
    let mut phone = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    house.town.serve(false);
    // Elsewhere, where this session is not seen.
    house.accounts.begin_removal("alice@localhost").await.unwrap();
    house.accounts.end_removal("alice@localhost").await.unwrap();
    house.town.serve(true);
    phone.is_told("not-authorized").await;
    bob.send("<iq type='get' id='still' to='nobody@localhost'><q xmlns='x'/></iq>").await;
    assert_eq!(bob.hears().await.head.id.as_deref(), Some("still"));
    assert_eq!(house.accounts.state("bob@localhost").await, Ok(Some(AccountState::Open)));
}

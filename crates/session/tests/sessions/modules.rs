//! Sessions with the real modules: what contacts see of a session that ends.

use xeps::ModulesConfig;

use crate::client::Client;
use crate::house::{House, jid};

async fn house() -> House {
    House::build(|_| {}, |_| {}, xeps::modules(&ModulesConfig::default())).await
}

/// Each subscribes to the other and allows it, until both see each other.
async fn befriend(alice: &mut Client, bob: &mut Client) {
    for (client, other) in [(&mut *alice, "bob@localhost"), (&mut *bob, "alice@localhost")] {
        client.send("<presence/>").await;
        client.send(&format!("<presence to='{other}' type='subscribe'/>")).await;
    }
    hears_of(alice, "bob@localhost", Some("subscribe")).await;
    alice.send("<presence to='bob@localhost' type='subscribed'/>").await;
    hears_of(bob, "alice@localhost", Some("subscribe")).await;
    bob.send("<presence to='alice@localhost' type='subscribed'/>").await;
    hears_of(alice, "bob@localhost/desk", None).await;
    hears_of(bob, "alice@localhost/phone", None).await;
}

/// Waits for a presence of that sender and type.
async fn hears_of(client: &mut Client, from: &str, type_: Option<&str>) {
    loop {
        let heard = client.hears().await;
        if heard.head.from == Some(jid(from)) && heard.head.type_.as_deref() == type_ {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_are_told_when_a_panic_ends_a_session() {
    let house = house().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    befriend(&mut alice, &mut bob).await;
    alice.send("<message to='bob@localhost' id='panic'><body>boom</body></message>").await;
    hears_of(&mut bob, "alice@localhost/phone", Some("unavailable")).await;
    house.until("its route is gone", |house| house.town.bound() == ["bob@localhost/desk"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_was_not_written_is_kept_for_the_next_session() {
    let house = house().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let bob = Client::login(&house, "bob", "desk").await;
    drop(bob);
    house.until("bob is gone", |house| house.town.bound() == ["alice@localhost/phone"]).await;
    alice.send("<message to='bob@localhost/desk' id='kept' type='chat'><body>later</body></message>").await;
    alice.send("<iq to='localhost' type='get' id='ping'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert_eq!(alice.hears().await.head.type_.as_deref(), Some("result"));
    let mut bob = Client::login(&house, "bob", "tablet").await;
    bob.send("<presence/>").await;
    while bob.hears().await.head.id.as_deref() != Some("kept") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_does_not_seem_to_leave() {
    let house = house().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    befriend(&mut alice, &mut bob).await;
    let mut again = Client::login(&house, "alice", "phone").await;
    again.send("<presence><status>again</status></presence>").await;
    alice.is_told_at_last("conflict").await;
    house.until("one is left", |house| house.listeners.session_count() == 2).await;
    again.send("<message to='bob@localhost' id='end' type='chat'><body>here</body></message>").await;
    let mut last = None;
    loop {
        let heard = bob.hears().await;
        if heard.head.id.as_deref() == Some("end") {
            break;
        }
        if heard.head.from == Some(jid("alice@localhost/phone")) {
            last = Some(heard.head.type_.clone());
        }
    }
    assert_eq!(last, Some(None), "the last that bob saw of alice is her presence");
}

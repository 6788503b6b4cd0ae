//! A node that drains: its clients are sent elsewhere at a rate, and whoever comes is led on.

use std::sync::Arc;

use session::Door;
use tokio::sync::watch;

use crate::client::Client;
use crate::house::{House, PASSWORD};

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='localhost' version='1.0'>";

/// A house beside another node, or beside none that clients could be sent to.
async fn house(other: Option<&str>) -> House {
    let house = House::new().await;
    *house.town.other.lock() = other.map(str::to_owned);
    house
}

/// Drains at a rate, in the background.
fn drain(house: &House, rate: u32) -> (tokio::task::JoinHandle<()>, watch::Sender<u32>) {
    let (changed, rates) = watch::channel(rate);
    let listeners = Arc::clone(&house.listeners);
    (tokio::spawn(async move { listeners.drain(rates, |_| {}).await }), changed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_sent_to_the_door_of_another_node_that_is_like_theirs() {
    let house = house(Some("two.example")).await;
    let mut direct = Client::login(&house, "alice", "phone").await;
    let (mut starttls, bound) =
        Client::try_login(&house, Door::StartTls, "bob", "phone", PASSWORD, None).await;
    bound.unwrap();
    let mut watcher = Client::login(&house, "watcher", "desk").await;
    let (drained, _rate) = drain(&house, 100);
    // An account goes to one node with all of its sessions.
    assert_eq!(direct.is_sent_to().await, "two.example-for-alice@localhost:5223");
    assert_eq!(starttls.is_sent_to().await, "two.example-for-bob@localhost:5222");
    watcher.is_sent_to().await;
    drained.await.unwrap();
    assert_eq!((house.listeners.session_count(), house.listeners.logged_in()), (0, 0));
    assert!(house.town.bound().is_empty());
    assert!(house.trouble.ended.lock().iter().all(|(_, closed)| *closed), "nobody was lost");
    assert_eq!(house.listeners.counters().ends(), [("moved", 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_before_goes_its_way() {
    let house = house(Some("two.example")).await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    // Read, and held by a module: the drain finds it in the middle of its way.
    alice.send("<message to='bob@localhost' id='wait'/>").await;
    house.until("the message is read", |house| house.listeners.counters().messages_in.value() == 1).await;
    let (drained, _rate) = drain(&house, 1);
    // Its route goes first, so that others send to its next session.
    house.until("alice is not bound", |house| house.town.bound().is_empty()).await;
    let went = |house: &House| -> u64 {
        let counters = house.router.counters();
        router::Fate::ALL.into_iter().map(|fate| counters.stanzas(stanza::Kind::Message, fate)).sum()
    };
    assert_eq!(went(&house), 0);
    house.trouble.gate.notify_one();
    assert_eq!(alice.is_sent_to().await, "two.example-for-alice@localhost:5223");
    drained.await.unwrap();
    assert!(went(&house) > 0, "an accepted message was dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_is_taken_back_leaves_the_others_where_they_are() {
    let house = house(None).await;
    let mut clients = Vec::new();
    for name in ["alice", "bob", "watcher"] {
        clients.push(Client::login(&house, name, "phone").await);
    }
    house.until("all are there", |house| house.listeners.session_count() == 3).await;
    // The first leaves at once, the next a second later.
    let (drained, _rate) = drain(&house, 1);
    house.until("one has left", |house| house.listeners.session_count() < 3).await;
    drained.abort();
    let _ = drained.await;
    house.listeners.turn_away(false);
    let left = house.listeners.session_count();
    assert!(left >= 1, "{left}");
    let (mut told, mut answered) = (0, 0);
    for mut client in clients {
        client.send("<iq type='get' id='here' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        match client.event().await {
            Some(stream::StreamEvent::Stanza(answer)) => {
                assert_eq!(answer.head.id.as_deref(), Some("here"));
                answered += 1;
            }
            // Nobody knows where else to go: the client comes back by itself.
            Some(stream::StreamEvent::Element(error)) => {
                assert_eq!(error.children().next().unwrap().name(), "system-shutdown");
                told += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((told, answered), (3 - left, left));
    Client::login(&house, "alice", "laptop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_draining_node_is_led_on_behind_the_header() {
    let house = house(Some("two.example")).await;
    house.listeners.turn_away(true);
    let mut direct = Client::connect(&house, Door::DirectTls).await;
    direct.send(HEADER).await;
    assert_eq!(direct.is_sent_to().await, "two.example-for-127.0.0.1:5223");
    // In the clear anybody on the way could have made it up: TLS comes first (RFC 6120, 4.9.3.19).
    let mut clear = Client::connect(&house, Door::StartTls).await;
    clear.send(HEADER).await;
    clear.hears_features().await;
    clear.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    assert!(matches!(clear.event().await, Some(stream::StreamEvent::Element(e)) if e.name() == "proceed"));
    clear.starttls(&house).await;
    clear.send(HEADER).await;
    assert_eq!(clear.is_sent_to().await, "two.example-for-127.0.0.1:5222");
    house.until("both have left", |house| house.listeners.connections() == 0).await;
    house.listeners.turn_away(false);
    Client::login(&house, "alice", "phone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_where_nobody_knows_another_node_is_told_to_come_back() {
    let house = house(None).await;
    house.listeners.turn_away(true);
    let mut client = Client::connect(&house, Door::StartTls).await;
    client.send(HEADER).await;
    client.is_told("system-shutdown").await;
    // A header that is wrong is answered as ever.
    let mut wrong = Client::connect(&house, Door::StartTls).await;
    wrong.send(&HEADER.replace("localhost", "nowhere.example")).await;
    wrong.is_told("host-unknown").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_was_on_its_way_is_led_on_before_it_binds() {
    let house = house(Some("two.example")).await;
    let mut client = Client::connect(&house, Door::DirectTls).await;
    client.authenticates().await;
    house.listeners.turn_away(true);
    client
        .send(
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>phone</resource>\
             </bind></iq>",
        )
        .await;
    assert_eq!(client.is_sent_to().await, "two.example-for-alice@localhost:5223");
    assert!(house.town.bound().is_empty());
}

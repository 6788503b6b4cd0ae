//! Sessions that outlive their connections (XEP-0198), and what ends them.

use std::time::Duration;

use jid::FullJid;
use minidom::Element;
use session::Door;
use stanza::Condition;
use stream::StreamEvent;
use stream::management::NS;

use crate::client::Client;
use crate::house::House;

fn message(to: &str, id: &str) -> String {
    format!("<message to='{to}' id='{id}' type='chat'><body>hi</body></message>")
}

/// The next element that is no stanza.
async fn element(client: &mut Client) -> Element {
    match client.event().await {
        Some(StreamEvent::Element(element)) => element,
        other => panic!("no element: {other:?}"),
    }
}

/// Logs in and has a session that can be resumed, under the id that is returned.
async fn log_in(house: &House, name: &str) -> (Client, String) {
    let mut client = Client::login(house, name, "phone").await;
    client.send(&format!("<enable xmlns='{NS}' resume='true'/>")).await;
    let enabled = element(&mut client).await;
    assert_eq!(enabled.name(), "enabled");
    let id = enabled.attr("id").expect("it can be resumed").to_owned();
    (client, id)
}

/// Comes back on a new connection; the answer.
async fn resume(house: &House, name: &str, id: &str, handled: u32) -> (Client, Element) {
    let mut client = Client::connect(house, Door::DirectTls).await;
    client.gets_to_bind(name).await;
    client.send(&format!("<resume xmlns='{NS}' previd='{id}' h='{handled}'/>")).await;
    let answer = element(&mut client).await;
    (client, answer)
}

fn condition(failed: &Element) -> &str {
    assert_eq!(failed.name(), "failed");
    failed.children().next().expect("a condition").name()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_vain_goes_back() {
    let house = House::with(|config| config.limits.resumption_s = 1, |_| {}).await;
    let (mut alice, id) = log_in(&house, "alice").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "counted")).await;
    bob.hears().await;
    bob.send(&message("alice@localhost/phone", "written")).await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("written"));
    drop(alice);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    bob.send(&message("alice@localhost/phone", "waits")).await;
    assert_eq!(house.town.bound().len(), 2, "it is there still");
    // Nobody keeps messages here: what had been written comes back first.
    for id in ["written", "waits"] {
        let back = bob.hears().await;
        assert_eq!(back.head.id.as_deref(), Some(id));
        assert_eq!(back.as_error().unwrap().condition, Condition::ServiceUnavailable);
    }
    house.until("its route is gone", |house| house.town.bound().len() == 1).await;
    let lost = [("alice@localhost/phone".to_owned(), false)];
    house.until("modules are told of it", |house| *house.trouble.ended.lock() == lost).await;
    let (_, failed) = resume(&house, "alice", &id, 0).await;
    assert_eq!((condition(&failed), failed.attr("h")), ("item-not-found", Some("1")));
    let (_, failed) = resume(&house, "bob", &id, 0).await;
    assert_eq!((condition(&failed), failed.attr("h")), ("item-not-found", None), "it is not his");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kicked_session_is_not_resumed() {
    let house = House::new().await;
    let (alice, id) = log_in(&house, "alice").await;
    drop(alice);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    assert!(house.listeners.kick(&FullJid::new("alice@localhost/phone").unwrap()));
    house.until("its route is gone", |house| house.town.bound().is_empty()).await;
    let (_, failed) = resume(&house, "alice", &id, 0).await;
    assert_eq!(condition(&failed), "item-not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_heard_of_for_too_long_is_waited_for() {
    let house = House::with(|config| config.limits.acknowledgement_timeout_s = 1, |_| {}).await;
    let (mut alice, id) = log_in(&house, "alice").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    bob.send(&message("alice@localhost/phone", "written")).await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("written"));
    // She says nothing to that.
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    let (mut back, resumed) = resume(&house, "alice", &id, 0).await;
    assert_eq!((resumed.name(), resumed.attr("h")), ("resumed", Some("0")));
    assert_eq!(back.hears().await.head.id.as_deref(), Some("written"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acknowledges_too_much_as_it_comes_back_has_lost_the_session() {
    let house = House::new().await;
    let (alice, id) = log_in(&house, "alice").await;
    drop(alice);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    let mut again = Client::connect(&house, Door::DirectTls).await;
    again.gets_to_bind("alice").await;
    again.send(&format!("<resume xmlns='{NS}' previd='{id}' h='1'/>")).await;
    again.is_told("undefined-condition").await;
    house.until("its route is gone", |house| house.town.bound().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_counts_when_it_is_done_with() {
    let house = House::new().await;
    let (mut alice, id) = log_in(&house, "alice").await;
    alice.send("<message to='bob@localhost' id='wait'/>").await;
    alice.send(&format!("<r xmlns='{NS}'/>")).await;
    house.until("the message is read", |house| house.listeners.counters().messages_in.value() == 1).await;
    // The client has gone in the middle: what was read is handled, and counted when it comes back.
    drop(alice);
    let mut again = Client::connect(&house, Door::DirectTls).await;
    again.gets_to_bind("alice").await;
    again.send(&format!("<resume xmlns='{NS}' previd='{id}' h='0'/>")).await;
    house.trouble.gate.notify_one();
    let resumed = element(&mut again).await;
    assert_eq!((resumed.name(), resumed.attr("h")), ("resumed", Some("1")));
    // Nobody keeps it: it came back meanwhile.
    let back = again.hears().await;
    assert_eq!(back.as_error().unwrap().condition, Condition::ServiceUnavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_does_not_wait_for_clients() {
    let house = House::new().await;
    let (alice, _) = log_in(&house, "alice").await;
    drop(alice);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    let stopped = tokio::time::timeout(Duration::from_secs(20), house.listeners.stop());
    stopped.await.expect("it stops in time");
    assert!(house.town.bound().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_wait_ends_a_session_that_waits() {
    let house = House::with(|_| {}, |route| route.mailbox_stanzas = 4).await;
    let (alice, _) = log_in(&house, "alice").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    drop(alice);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    // Three each, as what comes back waits for its sender too.
    let mut laptop = Client::login(&house, "bob", "laptop").await;
    for n in 0..3 {
        bob.send(&message("alice@localhost/phone", &n.to_string())).await;
        laptop.send(&message("alice@localhost/phone", &n.to_string())).await;
    }
    for n in 0..3 {
        for sender in [&mut bob, &mut laptop] {
            let back = sender.hears().await;
            assert_eq!(back.head.id.as_deref(), Some(n.to_string().as_str()));
            assert!(back.as_error().is_some());
        }
    }
    house.until("its route is gone", |house| house.town.bound().len() == 2).await;
}

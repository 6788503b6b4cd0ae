//! Tests of `last.rs`, against a whole server in memory.

use std::time::Duration;

use futures::executor::block_on;
use hooks::bench::{Bench, Client};

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench() -> Bench {
    bench_with(ModulesConfig::default())
}

fn bench_with(config: ModulesConfig) -> Bench {
    Bench::cluster(2, &["localhost"], move || modules(&config))
}

/// Seconds and status of the answer, or its condition.
async fn ask(client: &Client, to: &str) -> String {
    client.hears();
    client.send(&format!("<iq type='get' id='l' to='{to}'><query xmlns='jabber:iq:last'/></iq>")).await;
    let heard = client.hears_stanzas();
    assert_eq!(heard.len(), 1, "{heard:?}");
    if let Some(error) = heard[0].as_error() {
        return error.condition.tag().to_owned();
    }
    let query = heard[0].child("query", NS).expect("a query");
    format!("{} {}", query.attr("seconds").unwrap_or_default(), query.text()).trim_end().to_owned()
}

/// What the client hears of a probe.
async fn probe(client: &Client, to: &str) -> Vec<String> {
    client.hears();
    client.send(&format!("<presence type='probe' id='p' to='{to}'/>")).await;
    client.hears()
}

const BOB: &str = "bob@localhost";

#[test]
fn a_contact_learns_when_the_user_left_and_what_they_said() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        assert_eq!(ask(&alice, BOB).await, "0");
        bob.send("<presence type='unavailable'><status>Heading Home</status></presence>").await;
        bench.advance(Duration::from_secs(903));
        assert_eq!(ask(&alice, BOB).await, "903 Heading Home");
        bob.send("<presence/>").await;
        assert_eq!(ask(&alice, BOB).await, "0");
        bob.close().await;
        bench.advance(Duration::from_secs(5));
        assert_eq!(ask(&alice, BOB).await, "5", "who ends without a word takes the status along");
    });
}

#[test]
fn the_end_of_a_session_that_had_left_changes_nothing() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send("<presence type='unavailable'><status>Bye</status></presence>").await;
        bench.advance(Duration::from_secs(60));
        bob.close().await;
        let idle = bench.login("bob@localhost/idle").await;
        idle.send("<presence type='unavailable'><status>Never here</status></presence>").await;
        idle.close().await;
        assert_eq!(ask(&alice, BOB).await, "60 Bye");
    });
}

#[test]
fn the_last_session_to_go_is_the_one_that_counts() {
    block_on(async {
        let bench = bench();
        let (alice, phone) = friends(&bench).await;
        let desk = bench.online_at(1, "bob@localhost/desk").await;
        phone.send("<presence type='unavailable'><status>first</status></presence>").await;
        assert_eq!(ask(&alice, BOB).await, "0");
        bench.advance(Duration::from_secs(10));
        desk.send("<presence type='unavailable'><status xml:lang='de'>zuletzt</status></presence>").await;
        bench.advance(Duration::from_secs(1));
        assert_eq!(ask(&alice, BOB).await, "1 zuletzt");
    });
}

#[test]
fn a_lost_node_takes_its_users_along() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.close().await;
        bench.advance(Duration::from_secs(100));
        let desk = bench.online_at(1, "bob@localhost/desk").await;
        drop(desk);
        bench.wait().await;
        bench.kill(1).await;
        bench.advance(Duration::from_secs(30));
        assert_eq!(bench.wait().await, 1);
        assert_eq!(ask(&alice, BOB).await, "30");
        // Who has been back and left again since is not put back to the loss.
        let desk = bench.online_at(1, "bob@localhost/desk").await;
        bench.kill(1).await;
        bench.advance(Duration::from_secs(3));
        let phone = bench.online("bob@localhost/phone").await;
        phone.send("<presence type='unavailable'><status>Since</status></presence>").await;
        assert_eq!(bench.wait().await, 1);
        assert_eq!(ask(&alice, BOB).await, "0 Since");
        drop(desk);
    });
}

#[test]
fn who_may_not_see_presence_learns_nothing() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online("eve@localhost/phone").await;
        for to in [BOB, "bob@localhost/phone", "nobody@localhost", "nobody@localhost/phone"] {
            assert_eq!(ask(&eve, to).await, "service-unavailable", "{to}");
        }
        // Bob sees Alice, and she does not see him any more; her roster says so too.
        bob.send("<presence type='unsubscribed' to='alice@localhost'/>").await;
        assert_eq!(ask(&alice, BOB).await, "service-unavailable");
        assert_eq!(ask(&alice, "bob@localhost/phone").await, "service-unavailable");
        // Even where strangers may ask sessions.
        let mut config = ModulesConfig::default();
        config.strangers.iq_to_sessions = true;
        let bench = bench_with(config);
        let bob = bench.online("bob@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        assert_eq!(ask(&eve, "bob@localhost/phone").await, "forbidden");
        assert!(bob.hears().is_empty());
        bob.send("<presence to='eve@localhost/phone'/>").await;
        eve.hears();
        eve.send("<iq type='get' id='l' to='bob@localhost/phone'><query xmlns='jabber:iq:last'/></iq>").await;
        assert_eq!(bob.hears().len(), 1, "who was shown the session may ask it");
    });
}

#[test]
fn nothing_is_known_of_who_was_never_there() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send("<presence type='unavailable'/>").await;
        bench.remove_account(BOB).await;
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        assert_eq!(ask(&alice, BOB).await, "item-not-found");
        let heard = probe(&alice, BOB).await;
        assert_eq!(
            heard,
            ["<presence to='alice@localhost/phone' from='bob@localhost' id='p' type='unavailable'/>"]
        );
    });
}

#[test]
fn who_asks_of_themselves_is_there_and_a_host_says_how_long_it_has_run() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(ask(&alice, "alice@localhost").await, "0");
        bench.advance(Duration::from_secs(123_456));
        assert_eq!(ask(&alice, "localhost").await, "123456");
        for wrong in [
            "<iq type='set' id='l' to='localhost'><query xmlns='jabber:iq:last'/></iq>",
            "<iq type='get' id='l' to='localhost'><other xmlns='jabber:iq:last'/></iq>",
            "<iq type='set' id='l'><query xmlns='jabber:iq:last'/></iq>",
        ] {
            alice.send(wrong).await;
            assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::BadRequest);
        }
    });
}

#[test]
fn a_probe_of_who_is_away_is_answered_with_what_they_said_and_when() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send(
            "<presence type='unavailable' xml:lang='en'><show>away</show><status>Bye</status>\
             <status xml:lang='de'>Tschüss</status></presence>",
        )
        .await;
        bench.advance(Duration::from_secs(903));
        assert_eq!(
            probe(&alice, BOB).await,
            ["<presence to='alice@localhost/phone' from='bob@localhost' id='p' type='unavailable'>\
              <status xml:lang='en'>Bye</status><status xml:lang='de'>Tschüss</status>\
              <delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></presence>"]
        );
        let eve = bench.online("eve@localhost/phone").await;
        assert!(probe(&eve, BOB).await.is_empty());
        // Without the module nothing is said of it, whatever was kept.
        let mut config = ModulesConfig::default();
        config.set("last", "enabled", &"false".parse().unwrap()).unwrap();
        let bench = bench_with(config);
        let (alice, bob) = friends(&bench).await;
        bob.close().await;
        assert_eq!(
            probe(&alice, BOB).await,
            ["<presence to='alice@localhost/phone' from='bob@localhost' id='p' type='unavailable'/>"]
        );
    });
}

#[test]
fn of_a_status_that_is_too_long_only_the_time_is_kept() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.last.status_bytes_max = 10;
        let bench = bench_with(config);
        let (alice, bob) = friends(&bench).await;
        bob.send("<presence type='unavailable'><status>0123456789</status></presence>").await;
        assert_eq!(ask(&alice, BOB).await, "0 0123456789");
        bob.send("<presence/>").await;
        bob.send("<presence type='unavailable'><status>0123456789x</status></presence>").await;
        assert_eq!(ask(&alice, BOB).await, "0");
    });
}

#[test]
fn the_stored_bytes_of_schema_1_stay_readable() {
    let bytes = [1, 200, 1, 2, 0, 1, b'a', 1, 2, b'd', b'e', 1, b'b'];
    let seen: LastSeen = store::record::decode(&bytes).unwrap();
    let statuses = vec![(None, "a".to_owned()), (Some("de".to_owned()), "b".to_owned())];
    assert_eq!(seen, LastSeen { at_s: 200, statuses });
    assert_eq!(store::record::encode(&seen), bytes);
}

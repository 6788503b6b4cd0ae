//! What guards the door, over real sockets: bounds on connections, proxies, failed logins, fast senders.

use std::time::{Duration, Instant};

use session::{Config, Door};
use stanza::ns;
use stream::StreamEvent;
use stream::client::LoginError;
use tokio::io::AsyncWriteExt;

use crate::client::Client;
use crate::house::{House, PASSWORD, jid};

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='localhost' version='1.0'>";

async fn house(change: impl FnOnce(&mut Config)) -> House {
    House::with(
        |config| {
            config.limits.limit_loopback = true;
            change(config);
        },
        |_| {},
    )
    .await
}

/// A client of a house that has already heard its features.
async fn begun(house: &House, from: &str) -> Client {
    let mut client = Client::connect_from(house, Door::StartTls, from).await;
    client.send(HEADER).await;
    while !matches!(client.event().await.expect("features"), StreamEvent::Element(_)) {}
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_has_enough_is_refused_and_others_are_not() {
    let house = house(|config| config.limits.connections_per_address = 2).await;
    let _both = (begun(&house, "127.0.0.2").await, begun(&house, "127.0.0.2").await);
    let mut third = Client::connect_from(&house, Door::StartTls, "127.0.0.2").await;
    assert_eq!(third.all().await, "");
    begun(&house, "127.0.0.3").await;
    assert_eq!(house.listeners.counters().refusals(), [("connections-per-address", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_comes_too_often_is_refused_and_others_are_not() {
    let house = house(|config| config.limits.accepts_per_address_per_second = 1).await;
    let _first = begun(&house, "127.0.0.2").await;
    let mut second = Client::connect_from(&house, Door::StartTls, "127.0.0.2").await;
    assert_eq!(second.all().await, "");
    begun(&house, "127.0.0.3").await;
    assert_eq!(house.listeners.counters().refusals(), [("accepts-per-address", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_accepts_too_fast_takes_its_time_and_refuses_nobody() {
    let house = house(|config| config.limits.accepts_per_second = 10).await;
    let start = Instant::now();
    let all = (0..20).map(|_| begun(&house, "127.0.0.2"));
    let all = futures::future::join_all(all).await;
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    assert_eq!(all.len(), 20);
    assert!(house.listeners.counters().accept_pauses.value() > 0);
    assert_eq!(house.listeners.counters().refused.value(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_that_has_not_logged_in_makes_room() {
    let house = house(|config| config.limits.unauthenticated_connections = 2).await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut oldest = begun(&house, "127.0.0.2").await;
    let mut newer = begun(&house, "127.0.0.2").await;
    let mut newest = begun(&house, "127.0.0.2").await;
    oldest.is_told("resource-constraint").await;
    assert_eq!(house.listeners.unauthenticated(), 2);
    assert_eq!(house.listeners.counters().evicted.value(), 1);
    alice.send("<message to='alice@localhost/phone' id='here'><body>hi</body></message>").await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("here"));
    for client in [&mut newer, &mut newest] {
        client.send("</stream:stream>").await;
        assert!(matches!(client.event().await, Some(StreamEvent::Close)));
    }
}

async fn guess(house: &House, from: &str, password: &str) -> Result<(), LoginError> {
    let client = Client::connect_from(house, Door::DirectTls, from).await;
    let (_, result) = client.log_in(house, Door::DirectTls, "alice", "", password, None).await;
    result.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_guesses_waits_and_the_owner_does_not() {
    let house = house(|config| config.limits.auth_delay_ms = 400).await;
    let counters = house.listeners.counters();
    let refused = Err(LoginError::Refused("not-authorized".into()));
    for from in ["127.0.0.2", "127.0.0.3"] {
        assert_eq!(guess(&house, from, "wrong").await, refused);
    }
    let start = Instant::now();
    let guessing = guess(&house, "127.0.0.4", "wrong");
    let meanwhile = async {
        house.until("it has failed", |house| house.listeners.counters().auth_failures.value() == 3).await;
        // The owner comes from an address that has not failed.
        assert_eq!(guess(&house, "127.0.0.5", PASSWORD).await, Ok(()));
        assert_eq!(counters.auth_delayed.value(), 0);
        // Who does not wait for the answer waits with the next attempt, and is not locked out.
        assert_eq!(guess(&house, "127.0.0.4", PASSWORD).await, Ok(()));
        assert_eq!(counters.auth_delayed.value(), 1);
    };
    let (answer, ()) = tokio::join!(guessing, meanwhile);
    assert_eq!(answer, refused);
    let held = start.elapsed();
    assert!(held >= Duration::from_millis(1_600), "the third failure at one account was held for {held:?}");
    assert_eq!(house.listeners.remembered()[1..], [("failed-addresses", 3), ("failed-accounts", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_that_wait_are_told_to_come_later() {
    let house = house(|config| {
        config.limits.auth_delay_ms = 3_000;
        config.limits.auth_waiting_per_address = 1;
    })
    .await;
    let answer = guess(&house, "127.0.0.2", "wrong");
    let meanwhile = async {
        house.until("it has failed", |house| house.listeners.counters().auth_failures.value() == 1).await;
        tokio::join!(guess(&house, "127.0.0.2", PASSWORD), guess(&house, "127.0.0.2", PASSWORD))
    };
    let (_, (one, two)) = tokio::join!(answer, meanwhile);
    let crowded = Err(LoginError::Refused("temporary-auth-failure".into()));
    assert!([&one, &two].contains(&&crowded) && [&one, &two].contains(&&Ok(())), "{one:?} {two:?}");
    assert_eq!(house.listeners.counters().auth_crowded.value(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failure_too_many_ends_the_stream() {
    let house = house(|config| {
        config.limits.auth_failures_per_stream = 1;
        config.limits.auth_delay_ms = 0;
    })
    .await;
    let mut client = Client::connect(&house, Door::DirectTls).await;
    client.send(HEADER).await;
    // alice with the password `wrong`
    let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGFsaWNlAHdyb25n</auth>";
    for _ in 0..2 {
        client.send(auth).await;
        loop {
            let event = client.event().await.expect("a failure");
            if matches!(event, StreamEvent::Element(element) if element.is("failure", ns::SASL)) {
                break;
            }
        }
    }
    client.is_told("policy-violation").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_slowed_and_nothing_of_it_is_lost() {
    const FLOOD: usize = 300;
    let house = house(|config| {
        config.limits.session_stanzas_per_second = 200;
        config.limits.session_stanzas_burst = 100;
    })
    .await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    let start = Instant::now();
    let flood: String = (0..FLOOD)
        .map(|n| format!("<message to='bob@localhost/desk' id='{n}'><body>flood</body></message>"))
        .collect();
    alice.send(&flood).await;
    // Meanwhile another session is served as ever.
    bob.send("<message to='bob@localhost/desk' id='mine'><body>hi</body></message>").await;
    let mut heard = Vec::new();
    let mut mine = None;
    while heard.len() < FLOOD || mine.is_none() {
        let id = bob.hears().await.head.id.clone().unwrap();
        match &*id {
            "mine" => mine = Some(heard.len()),
            _ => heard.push(id.to_string()),
        }
    }
    assert!(heard.iter().enumerate().all(|(n, id)| *id == n.to_string()), "in order: {heard:?}");
    assert!(mine.unwrap() < FLOOD, "not behind the flood");
    assert!(start.elapsed() >= Duration::from_millis(800), "{:?}", start.elapsed());
    assert!(house.listeners.counters().slowed.value() > 0);
    assert_eq!(house.listeners.session_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_slowed_too_but_not_of_who_is_exempt() {
    for exempt in [false, true] {
        let house = house(|config| {
            config.limits.session_bytes_per_second = 64 * 1024;
            config.limits.session_bytes_burst = 16 * 1024;
            if exempt {
                config.limits.session_rates_exempt = vec![jid("alice@localhost").to_bare()];
            }
        })
        .await;
        let mut alice = Client::login(&house, "alice", "phone").await;
        let start = Instant::now();
        for _ in 0..64 {
            // Spaces between stanzas count as well.
            alice.send(&" ".repeat(1_024)).await;
        }
        alice.send("<message to='alice@localhost/phone' id='last'><body>hi</body></message>").await;
        assert_eq!(alice.hears().await.head.id.as_deref(), Some("last"));
        let slowed = house.listeners.counters().slowed.value() > 0;
        assert_eq!(slowed, !exempt, "{:?}", start.elapsed());
        assert_eq!(start.elapsed() >= Duration::from_millis(600), !exempt, "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_that_never_ends_is_late() {
    let house = house(|config| config.limits.stanza_timeout_s = 1).await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    alice.send("<message to='bob@localhost'>").await;
    alice.is_told("connection-timeout").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_let_go_by_the_clock_too() {
    let change = |config: &mut Config| config.limits.write_timeout_s = 1;
    let house = House::with(change, |route| route.mailbox_bytes = 64 << 20).await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let bob = Client::login(&house, "bob", "desk").await;
    let body = "x".repeat(200 * 1024);
    // More than the kernel's buffers hold, less than the mailbox does.
    for n in 0..100 {
        let to = "bob@localhost/desk";
        alice
            .send(&format!("<message to='{to}' id='{n}' type='headline'><body>{body}</body></message>"))
            .await;
    }
    house.until("bob is let go", |house| house.town.bound() == ["alice@localhost/phone"]).await;
    assert_eq!(house.listeners.counters().ends(), [("stalled", 1)]);
    drop(bob);
}

fn behind(config: &mut Config) {
    config.c2s.proxy_from = vec!["127.0.0.2/32".parse().unwrap()];
}

/// Connects as a proxy does, and says `header` first.
async fn proxied(house: &House, header: &[u8]) -> Client {
    let mut tcp = Client::socket_from(house, Door::StartTls, "127.0.0.2").await;
    tcp.write_all(header).await.unwrap();
    Client::over(tcp)
}

const VERSION_2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x07\xc6\x33\x64\x01\x30\x39\x14\x66\x04\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_says_whom_it_speaks_for() {
    let house = house(behind).await;
    let version_1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 5222\r\n";
    for header in [version_1, VERSION_2] {
        let client = proxied(&house, header).await;
        let (mut client, result) =
            client.log_in(&house, Door::StartTls, "alice", "phone", PASSWORD, None).await;
        result.unwrap();
        house.until("it is listed", |house| house.listeners.session_count() == 1).await;
        assert_eq!(house.listeners.sessions()[0].peer.to_string(), "192.0.2.7:12345");
        client.send("</stream:stream>").await;
        client.all().await;
        house.until("it has left", |house| house.listeners.connections() == 0).await;
    }
    // A health check of the proxy itself.
    let mut local = proxied(&house, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await;
    local.send(HEADER).await;
    assert!(matches!(local.event().await, Some(StreamEvent::Header(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_a_proxy_counts_and_the_proxy_does_not() {
    let house = house(|config| {
        behind(config);
        config.limits.connections_per_address = 1;
    })
    .await;
    let header = |address: &str| format!("PROXY TCP4 {address} 198.51.100.1 12345 5222\r\n{HEADER}");
    let mut first = proxied(&house, header("192.0.2.7").as_bytes()).await;
    assert!(matches!(first.event().await, Some(StreamEvent::Header(_))));
    assert_eq!(proxied(&house, header("192.0.2.7").as_bytes()).await.all().await, "");
    let mut other = proxied(&house, header("192.0.2.8").as_bytes()).await;
    assert!(matches!(other.event().await, Some(StreamEvent::Header(_))));
    assert_eq!(house.listeners.counters().refusals(), [("connections-per-address", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_its_header_and_a_stranger_with_one_are_closed() {
    let house = house(|config| {
        behind(config);
        config.limits.proxy_header_timeout_s = 1;
    })
    .await;
    for words in [HEADER.as_bytes(), b"", b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 5222"] {
        assert_eq!(proxied(&house, words).await.all().await, "");
    }
    assert_eq!(house.listeners.counters().proxy_failures.value(), 3);
    for header in [VERSION_2, b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 5222\r\n"] {
        let mut tcp = Client::socket_from(&house, Door::StartTls, "127.0.0.3").await;
        tcp.write_all(header).await.unwrap();
        let mut stranger = Client::over(tcp);
        stranger.send(HEADER).await;
        let all = stranger.all().await;
        assert!(all.contains("not-well-formed") && !all.contains("features"), "{all}");
    }
    house.until("all have left", |house| house.listeners.connections() == 0).await;
}

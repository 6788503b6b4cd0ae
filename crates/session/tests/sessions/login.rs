//! Logging in over real sockets: both doors, every mechanism, and every way in which it fails.

use crate::client::Client;
use crate::house::{House, PASSWORD};
use session::Door;
use stream::client::LoginError;
use stream::sasl::{MechanismName, ScramHash};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_and_every_mechanism_lead_in() {
    let house = House::new().await;
    let scram = ScramHash::ALL.map(MechanismName::Scram);
    for door in [Door::StartTls, Door::DirectTls] {
        for mechanism in scram.into_iter().chain([MechanismName::Plain]) {
            let (mut client, result) =
                Client::try_login(&house, door, "alice", "phone", PASSWORD, Some(mechanism)).await;
            assert_eq!(result.unwrap().to_string(), "alice@localhost/phone", "{door:?} {mechanism:?}");
            house
                .until("the session is listed", |house| {
                    let sessions = house.listeners.sessions();
                    sessions.len() == 1 && sessions[0].mechanism == mechanism.as_str()
                })
                .await;
            assert_eq!(house.listeners.sessions()[0].tls, Some("1.3"));
            client.send("</stream:stream>").await;
            client.all().await;
            house.until("the session is gone", |house| house.town.bound().is_empty()).await;
        }
    }
    assert_eq!(house.listeners.counters().authenticated.value(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_an_unknown_name_look_the_same() {
    let house = House::new().await;
    for mechanism in [MechanismName::Plain, MechanismName::Scram(ScramHash::Sha256)] {
        for name in ["alice", "nobody"] {
            let (_, result) =
                Client::try_login(&house, Door::DirectTls, name, "", "wrong", Some(mechanism)).await;
            assert_eq!(result, Err(LoginError::Refused("not-authorized".into())), "{name}");
        }
    }
    house.until("all are counted", |house| house.listeners.counters().auth_failures.value() == 4).await;
    assert!(house.town.bound().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_is_made_where_none_is_asked_for() {
    let house = House::new().await;
    let (_client, result) = Client::try_login(&house, Door::StartTls, "alice", "", PASSWORD, None).await;
    assert_eq!(result.unwrap().resource().as_str().len(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_starttls_in_the_clear_is_never_heard() {
    let house = House::new().await;
    let mut client = Client::connect(&house, Door::StartTls).await;
    client
        .send(
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
             to='localhost' version='1.0'>",
        )
        .await;
    client.event().await;
    client.event().await;
    client
        .send(
            "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>\
             <stream:stream xmlns='jabber:client' to='elsewhere' version='1.0'>",
        )
        .await;
    let proceed = client.event().await;
    assert!(matches!(proceed, Some(stream::StreamEvent::Element(e)) if e.name() == "proceed"));
    client.starttls(&house).await;
    client
        .send(
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
             to='localhost' version='1.0'>",
        )
        .await;
    // The header is answered, not refused for the other host that was slipped in before.
    assert!(matches!(client.event().await, Some(stream::StreamEvent::Header(_))));
    assert!(matches!(client.event().await, Some(stream::StreamEvent::Element(e)) if e.name() == "features"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_hears_an_error_and_little_else() {
    let house = House::new().await;
    let mut client = Client::connect(&house, Door::StartTls).await;
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    let all = client.all().await;
    assert!(all.contains("</stream:stream>") && all.len() < 1024, "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_or_slow_is_let_go() {
    let house = House::with(
        |config| {
            config.limits.first_byte_timeout_s = 1;
            config.limits.header_timeout_s = 1;
            config.limits.tls_handshake_timeout_s = 1;
            config.limits.login_timeout_s = 2;
        },
        |_| {},
    )
    .await;
    let mut silent = Client::connect(&house, Door::StartTls).await;
    assert_eq!(silent.all().await, "");

    let mut half = Client::connect(&house, Door::StartTls).await;
    half.send("<stream:stream ").await;
    half.is_told("connection-timeout").await;

    let mut idle = Client::connect(&house, Door::DirectTls).await;
    idle.send(
        "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
         to='localhost' version='1.0'>",
    )
    .await;
    idle.is_told("connection-timeout").await;

    let mut stalled = tokio::net::TcpStream::connect(house.address(Door::DirectTls)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stalled, b"\x16\x03\x01").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stalled, &mut rest).await;
    house.until("all sockets are given back", |house| house.listeners.connections() == 0).await;
    assert_eq!(house.listeners.counters().tls_failures.value(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_quorum_refuses_and_takes_back_what_it_may_have_given() {
    let house = House::new().await;
    house.town.silent.store(true, std::sync::atomic::Ordering::SeqCst);
    let (client, result) = Client::try_login(&house, Door::DirectTls, "alice", "phone", PASSWORD, None).await;
    let Err(LoginError::Bind(error)) = result else { panic!("bound: {result:?}") };
    assert_eq!(error.kind, stanza::ErrorKind::Wait);
    house.town.silent.store(false, std::sync::atomic::Ordering::SeqCst);
    drop(client);
    house.until("the socket is given back", |house| house.listeners.connections() == 0).await;
    assert!(house.town.bound().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_sockets_than_allowed_are_closed_at_once() {
    let house = House::with(|config| config.limits.connections = 1, |_| {}).await;
    let _first = Client::login(&house, "alice", "phone").await;
    let mut second = Client::connect(&house, Door::StartTls).await;
    assert_eq!(second.all().await, "");
    assert_eq!(house.listeners.counters().refused.value(), 1);
}

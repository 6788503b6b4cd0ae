//! Logins by XEP-0388 over real sockets, with what is bound and refused in the same step.

use std::sync::Arc;

use hooks::{AccountState, Accounts, Credentials};
use minidom::Element;
use session::Door;
use stream::StreamEvent;
use stream::client::ScramClient;
use stream::features::{self, BIND2, FAST, SASL2, SCRAM_UPGRADE, UPGRADE};
use stream::management::NS;
use stream::sasl::ScramHash;

use crate::client::Client;
use crate::house::{House, PASSWORD, credentials};

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='localhost' version='1.0'>";

async fn connected(house: &House) -> Client {
    let mut client = Client::connect(house, Door::DirectTls).await;
    client.send(HEADER).await;
    client.hears_features().await;
    client
}

/// Alice logs in by PLAIN; the answer.
async fn sign_in(client: &mut Client, password: &str, beside: &str) -> Element {
    let plain = format!("\0alice\0{password}");
    sign_in_by(client, "PLAIN", plain.as_bytes(), beside).await
}

async fn sign_in_by(client: &mut Client, mechanism: &str, first: &[u8], beside: &str) -> Element {
    let first = features::sasl2("x", Some(first)).text();
    let first = format!("<initial-response>{first}</initial-response>");
    client
        .send(&format!(
            "<authenticate xmlns='{SASL2}' mechanism='{mechanism}'>{first}{beside}</authenticate>"
        ))
        .await;
    match client.event().await {
        Some(StreamEvent::Element(element)) => element,
        other => panic!("no answer: {other:?}"),
    }
}

fn bind(client: u8) -> String {
    format!("<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf8777{client}'/><bind xmlns='{BIND2}'/>")
}

fn jid(success: &Element) -> String {
    assert!(success.is("success", SASL2), "{success:?}");
    success.get_child("authorization-identifier", SASL2).expect("always there").text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_anew_is_not_one_more_session() {
    let house = House::with(|config| config.limits.sessions_per_account = 1, |_| {}).await;
    let mut first = connected(&house).await;
    let address = jid(&sign_in(&mut first, PASSWORD, &bind(1)).await);
    let mut again = connected(&house).await;
    assert_eq!(jid(&sign_in(&mut again, PASSWORD, &bind(1)).await), address);
    first.is_told_at_last("conflict").await;
    let mut other = connected(&house).await;
    let success = sign_in(&mut other, PASSWORD, &bind(2)).await;
    assert_eq!(jid(&success), "alice@localhost", "logged in, and not bound");
    let failed = success.get_child("failed", BIND2).expect("it says why");
    assert_eq!(failed.children().next().expect("a condition").name(), "resource-constraint");
    other.hears_features().await;
    assert_eq!(house.town.bound(), [address]);
    assert_eq!(house.listeners.counters().binds_refused.value(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_count_and_end_the_stream_as_those_of_the_old_profile() {
    let house = House::with(|config| config.limits.auth_failures_per_stream = 1, |_| {}).await;
    house.accounts.set_disabled("alice@localhost", true).await.unwrap();
    let mut client = connected(&house).await;
    let failure = sign_in(&mut client, PASSWORD, &bind(1)).await;
    assert!(failure.has_child("account-disabled", stanza::ns::SASL), "{failure:?}");
    let failure = sign_in(&mut client, "wrong", &bind(1)).await;
    assert!(failure.has_child("not-authorized", stanza::ns::SASL), "{failure:?}");
    client.is_told("policy-violation").await;
    assert_eq!(house.listeners.counters().auth_failures.value(), 2);
    assert!(house.town.bound().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_sends_away_who_has_logged_in() {
    let house = House::new().await;
    *house.town.other.lock() = Some("other.example".to_owned());
    let mut client = connected(&house).await;
    house.listeners.turn_away(true);
    let end = sign_in(&mut client, PASSWORD, &bind(1)).await;
    let elsewhere = end.get_child("see-other-host", stanza::ns::STREAM_ERRORS);
    assert_eq!(elsewhere.expect("it is sent away").text(), "other.example-for-alice@localhost:5223");
    assert!(house.town.bound().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_enabled_with_the_login_outlives_the_connection() {
    let house = House::new().await;
    let mut client = connected(&house).await;
    let beside = format!("<bind xmlns='{BIND2}'><enable xmlns='{NS}' resume='true'/></bind>");
    let success = sign_in(&mut client, PASSWORD, &beside).await;
    let enabled = success.get_child("bound", BIND2).and_then(|bound| bound.get_child("enabled", NS));
    let id = enabled.and_then(|enabled| enabled.attr("id")).expect("it can be resumed").to_owned();
    drop(client);
    house.until("the session waits", |house| house.listeners.counters().detached.value() == 1).await;
    let mut back = connected(&house).await;
    let beside = format!("<resume xmlns='{NS}' previd='{id}' h='0'/><bind xmlns='{BIND2}'/>");
    let resumed = sign_in(&mut back, PASSWORD, &beside).await;
    assert_eq!(jid(&resumed), jid(&success));
    assert!(resumed.has_child("resumed", NS) && !resumed.has_child("bound", BIND2), "{resumed:?}");
    assert_eq!(house.town.bound(), [jid(&success)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_bound_who_was_locked_out_meanwhile() {
    let house = House::new().await;
    let mut client = connected(&house).await;
    // The cluster agrees, and who asked for it is not told before the account is disabled.
    let telling = house.town.telling.write().await;
    let accounts: &Accounts = &house.accounts;
    let lock = async {
        house.until("it is agreed", |house| !house.town.bound().is_empty()).await;
        accounts.set_disabled("alice@localhost", true).await.unwrap();
        assert_eq!(accounts.state("alice@localhost").await.unwrap(), Some(AccountState::Disabled));
        let bound = house.town.bound()[0].parse().unwrap();
        house.town.kick(&bound);
        drop(telling);
    };
    let beside = bind(1);
    let (end, ()) = tokio::join!(sign_in(&mut client, PASSWORD, &beside), lock);
    assert!(end.has_child("not-authorized", stanza::ns::STREAM_ERRORS), "{end:?}");
    house.until("nobody is bound", |house| house.town.bound().is_empty()).await;
}

/// Alice comes back by a token; the condition of the failure.
async fn come_back(house: &House, token: &str, beside: &str) -> Option<String> {
    let proof = ScramHash::Sha256.hmac(token.as_bytes(), b"Initiator");
    let first = [b"alice\0", &proof[..]].concat();
    let mut client = connected(house).await;
    let answer = sign_in_by(&mut client, "HT-SHA-256-NONE", &first, beside).await;
    let failure = answer.children().next().filter(|_| answer.is("failure", SASL2));
    failure.map(|condition| condition.name().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_was_disabled_has_no_tokens_left() {
    let house = House::build(|_| {}, |_| {}, vec![Arc::new(xeps::fast::Fast::default())]).await;
    let client = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87771'/>";
    let request = format!("{client}<request-token xmlns='{FAST}' mechanism='HT-SHA-256-NONE'/>");
    let token = |success: Element| {
        let token = success.get_child("token", FAST).and_then(|token| token.attr("token"));
        token.expect("a token").to_owned()
    };
    let first = token(sign_in(&mut connected(&house).await, PASSWORD, &request).await);
    let fast = format!("{client}<fast xmlns='{FAST}'/>");
    assert_eq!(come_back(&house, &first, &fast).await, None);
    house.accounts.set_disabled("alice@localhost", true).await.unwrap();
    assert_eq!(come_back(&house, &first, &fast).await.as_deref(), Some("account-disabled"));
    assert_eq!(come_back(&house, "wrong", &fast).await.as_deref(), Some("not-authorized"));
    house.accounts.set_disabled("alice@localhost", false).await.unwrap();
    assert_eq!(come_back(&house, &first, &fast).await.as_deref(), Some("credentials-expired"));
    assert_eq!(house.listeners.counters().auth_failures.value(), 3);
    let second = token(sign_in(&mut connected(&house).await, PASSWORD, &request).await);
    assert_eq!(come_back(&house, &second, &fast).await, None);
}

async fn answer(client: &mut Client, xml: &str) -> Element {
    client.send(xml).await;
    match client.event().await {
        Some(StreamEvent::Element(element)) => element,
        other => panic!("no answer: {other:?}"),
    }
}

/// Alice, whose account has the keys of SHA-1 alone, proves to know her password and begins to give those of SHA-256; the
/// hash that she has made by then.
async fn upgrading(house: &House, client: &mut Client) -> String {
    let keys = Credentials::new(credentials().sha1, None, None);
    house.accounts.set_keys("alice@localhost", &keys).await.unwrap();
    let mut scram = ScramClient::new(ScramHash::Sha1, "alice", PASSWORD, "abc");
    let beside = format!("<upgrade xmlns='{UPGRADE}'>UPGR-SCRAM-SHA-256</upgrade>");
    let challenge = sign_in_by(client, "SCRAM-SHA-1", &scram.first(), &beside).await;
    let last = scram.answer(&features::sasl2_payload(&challenge).unwrap()).unwrap();
    let last = String::from(&features::sasl2("response", Some(&last)));
    let task = answer(client, &last).await;
    assert!(task.is("continue", SASL2), "{task:?}");
    let next = format!("<next xmlns='{SASL2}' task='UPGR-SCRAM-SHA-256'/>");
    let salt = answer(client, &next).await;
    let salt = salt.get_child("salt", SCRAM_UPGRADE).expect("a salt").clone();
    let rounds = salt.attr("iterations").and_then(|rounds| rounds.parse().ok()).expect("iterations");
    let salt = features::sasl2_payload(&salt).unwrap();
    let hash = ScramHash::Sha256.salted_password(PASSWORD.as_bytes(), &salt, rounds);
    let hash = features::sasl2("x", Some(&hash)).text();
    format!("<task-data xmlns='{SASL2}'><hash xmlns='{SCRAM_UPGRADE}'>{hash}</hash></task-data>")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_password_that_was_replaced_meanwhile_are_not_kept() {
    let house = House::build(|_| {}, |_| {}, vec![Arc::new(xeps::sasl_upgrade::SaslUpgrade)]).await;
    let kept = async || house.accounts.credentials("alice@localhost").await.unwrap().unwrap().sha256;
    let mut client = connected(&house).await;
    let hash = upgrading(&house, &mut client).await;
    let other = Credentials::new(credentials().sha1, None, credentials().sha512);
    house.accounts.set_keys("alice@localhost", &other).await.unwrap();
    // Who has proved to know the password of a moment ago is in, as in any login.
    assert_eq!(jid(&answer(&mut client, &hash).await), "alice@localhost");
    assert!(kept().await.is_none());
    let mut client = connected(&house).await;
    let hash = upgrading(&house, &mut client).await;
    assert_eq!(jid(&answer(&mut client, &hash).await), "alice@localhost");
    assert!(kept().await.is_some());
}

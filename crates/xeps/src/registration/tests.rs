//! Registration on the bench: before the login, and for who has an account.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use hooks::bench::{Bench, password_of};
use hooks::{Module, Offer, Stranger};
use stanza::{Condition, ErrorKind, StanzaError};

use super::*;
use crate::blocklists::Blocklists;
use crate::presence::Presence;
use crate::privacylists::PrivacyLists;
use crate::roster::RosterModule;
use crate::rosters::Rosters;
use crate::subscription::Subscription;

const HOSTS: &[&str] = &["localhost", "other.example"];

fn bench(config: Config) -> Bench {
    Bench::new(HOSTS, move || {
        let rosters = Arc::new(Rosters::new(Default::default()));
        let reserved = ["Admin".to_owned(), "not a name@".to_owned()];
        vec![
            Arc::new(RosterModule::new(rosters.clone())) as Arc<dyn Module>,
            Arc::new(Subscription::new(Default::default(), rosters.clone())),
            Arc::new(Presence::new(
                Default::default(),
                rosters,
                Arc::new(Blocklists::new(1, 1, None)),
                Arc::new(PrivacyLists::new(None)),
            )),
            Arc::new(Registration::new(config.clone(), &reserved)),
        ]
    })
}

fn stranger(secure: bool) -> Stranger {
    Stranger { host: "localhost".into(), address: "192.0.2.1".parse().unwrap(), secure }
}

fn set(inside: &str) -> String {
    format!("<iq type='set' id='1'><query xmlns='{NS}'>{inside}</query></iq>")
}

fn wish(username: &str, password: &str) -> String {
    set(&format!("<username>{username}</username><password>{password}</password>"))
}

/// The answer to a stranger: `result`, or the condition of the error.
async fn asks(bench: &Bench, secure: bool, xml: &str) -> String {
    let answer = bench.greet(&stranger(secure), xml).await.unwrap();
    let answer = hooks::bench::parse(&answer);
    assert_eq!(answer.head.id.as_deref(), Some("1"));
    answer.as_error().map_or("result".to_owned(), |error| error.condition.tag().to_owned())
}

async fn password(bench: &Bench, account: &str) -> Option<String> {
    bench.accounts().credentials(account).await.unwrap().as_ref().map(password_of)
}

#[test]
fn a_client_learns_what_to_say_and_makes_an_account() {
    block_on(async {
        let bench = bench(Config::default());
        let get = "<iq type='get' id='1'><query xmlns='jabber:iq:register'/></iq>";
        let stranger = stranger(true);
        assert_eq!(
            bench.greet(&stranger, get).await.unwrap(),
            "<iq id='1' type='result'><query xmlns='jabber:iq:register'>\
             <instructions>Choose a username and a password.</instructions><username/><password/></query></iq>"
        );
        assert_eq!(asks(&bench, true, &wish("alice", "a secret")).await, "result");
        assert_eq!(password(&bench, "alice@localhost").await.as_deref(), Some("a secret"));
    });
}

#[test]
fn three_spellings_of_a_name_are_one_account() {
    block_on(async {
        let bench = bench(Config::default());
        assert_eq!(asks(&bench, true, &wish("ＡＬＩＣＥ", "first secret")).await, "result");
        for name in ["ALICE", "alice", "ＡＬＩＣＥ"] {
            assert_eq!(asks(&bench, true, &wish(name, "second secret")).await, "conflict", "{name}");
        }
        assert_eq!(password(&bench, "alice@localhost").await.as_deref(), Some("first secret"));
    });
}

#[test]
fn what_cannot_be_registered_is_refused() {
    block_on(async {
        let many = Config { per_address_per_hour: 1_000, ..Config::default() };
        let bench = bench(many);
        let long = "x".repeat(1_025);
        for (xml, condition) in [
            (set(""), "not-acceptable"),
            (set("<username>alice</username>"), "not-acceptable"),
            (set("<password>a secret</password>"), "not-acceptable"),
            (wish("", "a secret"), "not-acceptable"),
            (wish("alice", ""), "not-acceptable"),
            (wish("a@b", "a secret"), "not-acceptable"),
            (wish("a b", "a secret"), "not-acceptable"),
            (wish(&"a".repeat(1_024), "a secret"), "not-acceptable"),
            (wish("alice", "short"), "not-acceptable"),
            (wish("alice", &long), "not-acceptable"),
            (wish("admin", "a secret"), "not-acceptable"),
            (wish("ＡＤＭＩＮ", "a secret"), "not-acceptable"),
            (set("<remove/>"), "unexpected-request"),
            (set("<x xmlns='jabber:x:data' type='submit'/>"), "bad-request"),
            ("<iq type='set' id='1'><other xmlns='jabber:iq:register'/></iq>".to_owned(), "bad-request"),
        ] {
            assert_eq!(asks(&bench, true, &xml).await, condition, "{xml}");
        }
        assert!(!bench.accounts().exists("alice@localhost").await.unwrap());
        // An operator gives reserved names.
        let admin = BareJid::new("admin@localhost").unwrap();
        bench.services().create_account(&admin, "a secret").await.unwrap();
    });
}

#[test]
fn without_tls_nobody_registers_unless_the_operator_lets_them() {
    block_on(async {
        let offered = |bench: &Bench, secure| {
            let offer =
                Offer { host: "localhost".into(), account: None, secure, stanza_bytes: 8_192, idle_s: None };
            bench.registry().offered(&offer, &*bench.services()).len()
        };
        let safe = bench(Config::default());
        assert_eq!((offered(&safe, true), offered(&safe, false)), (1, 0));
        assert_eq!(asks(&safe, false, &wish("alice", "a secret")).await, "not-authorized");
        let unsafe_one = bench(Config { without_tls: true, ..Config::default() });
        assert_eq!(offered(&unsafe_one, false), 1);
        assert_eq!(asks(&unsafe_one, false, &wish("alice", "a secret")).await, "result");
        let closed = bench(Config { new_accounts: false, ..Config::default() });
        assert_eq!(offered(&closed, true), 0);
        assert_eq!(asks(&closed, true, &wish("alice", "a secret")).await, "service-unavailable");
    });
}

#[test]
fn a_flood_is_told_to_wait_and_others_are_not() {
    block_on(async {
        let bench = bench(Config { per_address_per_hour: 2, ..Config::default() });
        assert_eq!(asks(&bench, true, &wish("a", "a secret")).await, "result");
        // Trying names counts as well.
        assert_eq!(asks(&bench, true, &wish("a", "a secret")).await, "conflict");
        let answer = bench.greet(&stranger(true), &wish("b", "a secret")).await.unwrap();
        let error = hooks::bench::parse(&answer).as_error().unwrap();
        assert_eq!((error.condition, error.kind), (Condition::ResourceConstraint, ErrorKind::Wait));
        assert!(error.text.unwrap().contains("30 minutes"));
        let other = Stranger { address: "192.0.2.2".parse().unwrap(), ..stranger(true) };
        let answer = bench.greet(&other, &wish("b", "a secret")).await.unwrap();
        assert_eq!(answer, "<iq id='1' type='result'/>");
        bench.advance(Duration::from_secs(31 * 60));
        assert_eq!(asks(&bench, true, &wish("c", "a secret")).await, "result");
    });
}

/// The errors and results that alice hears for these requests of hers.
async fn hears(bench: &Bench, requests: &[&str]) -> Vec<Option<Condition>> {
    let alice = bench.login("alice@localhost/phone").await;
    for request in requests {
        alice.send(request).await;
    }
    let heard = alice.hears_stanzas();
    // XEP-0077, 3.3: no error repeats what was sent.
    assert!(heard.iter().all(|stanza| stanza.as_error().is_none() || stanza.child("query", NS).is_none()));
    heard.iter().map(|stanza| stanza.as_error().map(|error: StanzaError| error.condition)).collect()
}

async fn with_alice(config: Config) -> Bench {
    let bench = bench(config);
    let alice = BareJid::new("alice@localhost").unwrap();
    bench.services().create_account(&alice, "a secret").await.unwrap();
    bench
}

#[test]
fn who_is_registered_is_told_so() {
    block_on(async {
        let bench = with_alice(Config::default()).await;
        let alice = bench.login("alice@localhost/phone").await;
        for to in ["", " to='localhost'", " to='alice@localhost'"] {
            let get = format!("<iq type='get' id='1'{to}><query xmlns='jabber:iq:register'/></iq>");
            alice.send(&get).await;
            let heard = alice.hears_stanzas();
            let query = heard[0].child("query", NS).unwrap();
            assert!(query.has_child("registered", NS), "{to}");
            assert_eq!(query.get_child("username", NS).unwrap().text(), "alice");
            assert_eq!(query.get_child("password", NS).unwrap().text(), "");
        }
    });
}

#[test]
fn the_owner_changes_the_password() {
    block_on(async {
        let bench = with_alice(Config::default()).await;
        let at_host = wish("ALICE", "a new secret").replace("<iq", "<iq to='localhost'");
        assert_eq!(hears(&bench, &[&at_host]).await, [None]);
        assert_eq!(password(&bench, "alice@localhost").await.as_deref(), Some("a new secret"));
        assert_eq!(hears(&bench, &[&wish("alice", "the newest")]).await, [None]);
        assert_eq!(password(&bench, "alice@localhost").await.as_deref(), Some("the newest"));
    });
}

#[test]
fn a_password_is_changed_by_nobody_else_and_to_nothing_bad() {
    block_on(async {
        let bench = with_alice(Config::default()).await;
        let bob = BareJid::new("bob@localhost").unwrap();
        bench.services().create_account(&bob, "bobs secret").await.unwrap();
        let to = |to: &str, xml: &str| xml.replace("<iq", &format!("<iq to='{to}'"));
        for (xml, condition) in [
            (wish("bob", "a new secret"), Condition::Forbidden),
            (to("localhost", &wish("bob", "a new secret")), Condition::Forbidden),
            (wish("bob@localhost", "a new secret"), Condition::Forbidden),
            // No other than for an account that is not there.
            (to("bob@localhost", &wish("bob", "a new secret")), Condition::ServiceUnavailable),
            (to("other.example", &wish("alice", "a new secret")), Condition::ServiceUnavailable),
            (wish("alice", ""), Condition::BadRequest),
            (set("<password>a new secret</password>"), Condition::BadRequest),
            (set("<username>alice</username>"), Condition::BadRequest),
            (set("<x xmlns='jabber:x:data' type='submit'/>"), Condition::BadRequest),
            (wish("alice", "short"), Condition::NotAcceptable),
            (wish("alice", "a tab is\tbad"), Condition::NotAcceptable),
        ] {
            assert_eq!(hears(&bench, &[&xml]).await, [Some(condition)], "{xml}");
        }
        assert_eq!(password(&bench, "alice@localhost").await.as_deref(), Some("a secret"));
        assert_eq!(password(&bench, "bob@localhost").await.as_deref(), Some("bobs secret"));
    });
}

#[test]
fn what_the_operator_forbids_is_not_allowed() {
    block_on(async {
        let config = Config { password_change: false, removal: false, ..Config::default() };
        let bench = with_alice(config).await;
        let asked = [wish("alice", "a new secret"), set("<remove/>")];
        let heard = hears(&bench, &[&asked[0], &asked[1]]).await;
        assert_eq!(heard, [Some(Condition::NotAllowed); 2]);
        assert!(bench.accounts().exists("alice@localhost").await.unwrap());
    });
}

#[test]
fn a_guest_has_no_password_and_nothing_to_remove() {
    block_on(async {
        let bench = bench(Config::default());
        let asked = wish("alice", "a new secret");
        assert_eq!(hears(&bench, &[&asked]).await, [Some(Condition::RegistrationRequired)]);
    });
}

#[test]
fn a_removal_is_answered_and_then_contacts_are_told_and_all_is_gone() {
    block_on(async {
        let bench = with_alice(Config::default()).await;
        let alice = bench.online("alice@localhost/phone").await;
        let desk = bench.online("alice@localhost/desk").await;
        let bob = bench.online("bob@localhost/tab").await;
        for (client, to) in [(&alice, "bob@localhost"), (&bob, "alice@localhost")] {
            client.send(&format!("<presence type='subscribe' to='{to}'/>")).await;
        }
        for (client, to) in [(&alice, "bob@localhost"), (&bob, "alice@localhost")] {
            client.send(&format!("<presence type='subscribed' to='{to}'/>")).await;
        }
        // Carol waits for an answer, and alice for one of dave.
        let carol = bench.online("carol@localhost/pad").await;
        carol.send("<presence type='subscribe' to='alice@localhost'/>").await;
        let dave = bench.online("dave@localhost/pc").await;
        alice.send("<presence type='subscribe' to='dave@localhost'/>").await;
        for client in [&alice, &desk, &bob, &carol, &dave] {
            client.hears();
        }

        alice.send(&set("<remove/><username>alice</username>")).await;
        assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::BadRequest);
        alice.send(&set("<remove/>")).await;
        assert_eq!(alice.hears()[0], "<iq to='alice@localhost/phone' id='1' type='result'/>");

        let told = |client: &hooks::bench::Client| {
            let heard = client.hears_stanzas();
            let presence = heard.iter().filter(|s| s.head.kind == stanza::Kind::Presence);
            let line = |s: &stanza::Stanza| {
                format!("{} {}", s.head.type_.as_deref().unwrap_or("-"), s.head.from.as_ref().unwrap())
            };
            presence.map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            told(&bob),
            [
                "unavailable alice@localhost/phone",
                "unavailable alice@localhost/desk",
                "unsubscribe alice@localhost",
                "unsubscribed alice@localhost"
            ]
        );
        assert_eq!(told(&carol), ["unsubscribed alice@localhost"]);
        assert_eq!(told(&dave), ["unsubscribe alice@localhost"]);
        assert_eq!(bench.services().online(&BareJid::new("alice@localhost").unwrap()), []);
        assert!(!bench.accounts().exists("alice@localhost").await.unwrap());

        // A new account of that name starts with nothing.
        bench.services().create_account(&BareJid::new("alice@localhost").unwrap(), "a secret").await.unwrap();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>").await;
        assert!(
            alice.hears_stanzas()[0].child("query", "jabber:iq:roster").unwrap().children().next().is_none()
        );
        alice.send("<presence/>").await;
        assert_eq!(told(&alice), ["- alice@localhost/phone"]);
    });
}

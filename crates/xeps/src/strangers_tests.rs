//! Tests of `strangers.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::Condition;

use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench() -> Bench {
    Bench::new(&["localhost"], || modules(&ModulesConfig::default()))
}

/// One request of each kind.
const REQUESTS: [(&str, &str); 9] = [
    ("get", "<ping xmlns='urn:xmpp:ping'/>"),
    ("get", "<query xmlns='http://jabber.org/protocol/disco#info'/>"),
    ("get", "<query xmlns='http://jabber.org/protocol/disco#items'/>"),
    ("get", "<query xmlns='jabber:iq:version'/>"),
    ("get", "<time xmlns='urn:xmpp:time'/>"),
    ("get", "<vCard xmlns='vcard-temp'/>"),
    ("set", "<vCard xmlns='vcard-temp'/>"),
    ("get", "<query xmlns='urn:example:nothing'/>"),
    ("set", "<query xmlns='urn:example:nothing'/>"),
];

/// What the client hears of each request to that address, without the address itself.
async fn answers(client: &Client, to: &str) -> Vec<String> {
    client.hears();
    for (id, (kind, payload)) in REQUESTS.iter().enumerate() {
        client.send(&format!("<iq type='{kind}' id='{id}' to='{to}'>{payload}</iq>")).await;
    }
    client.hears().iter().map(|heard| heard.replace(to, "")).collect()
}

#[test]
fn a_request_of_a_stranger_is_answered_alike_by_every_account() {
    block_on(async {
        let bench = bench();
        let eve = bench.online("eve@localhost/phone").await;
        bench.account("away@localhost");
        let bob = bench.online("bob@localhost/phone").await;
        let missing = answers(&eve, "missing@localhost").await;
        assert_eq!(missing.len(), REQUESTS.len());
        assert!(missing.iter().all(|heard| heard.contains("<service-unavailable")), "{missing:?}");
        assert_eq!(answers(&eve, "away@localhost").await, missing);
        assert_eq!(answers(&eve, "bob@localhost").await, missing);
        for to in ["missing@localhost/x", "away@localhost/x", "bob@localhost/x", "bob@localhost/phone"] {
            assert_eq!(answers(&eve, to).await, missing, "{to}");
        }
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn nobody_looks_whether_the_account_of_a_strangers_request_exists() {
    block_on(async {
        let bench = bench();
        let eve = bench.online("eve@localhost/phone").await;
        bench.account("away@localhost");
        let before = bench.store().facts().snapshot();
        for to in ["away@localhost", "missing@localhost"] {
            answers(&eve, to).await;
        }
        let after = bench.store().facts().snapshot();
        assert_eq!((after.get.count, after.scan.count), (before.get.count, before.scan.count));
    });
}

#[test]
fn a_request_to_a_session_comes_from_who_may_see_it() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online("eve@localhost/phone").await;
        let ask = "<iq type='get' id='1' to='bob@localhost/phone'><x xmlns='urn:x'/></iq>";
        alice.send(ask).await;
        assert_eq!(bob.hears().len(), 1, "a contact");
        let desk = bench.online("bob@localhost/desk").await;
        bob.hears();
        desk.hears();
        desk.send(ask).await;
        assert_eq!(bob.hears().len(), 1, "the account itself");
        eve.send(ask).await;
        assert_eq!(eve.hears_stanzas()[0].as_error().unwrap().condition, Condition::ServiceUnavailable);
        assert!(bob.hears().is_empty());
        // RFC 6121, 8.5.3.1: presence may also be shared by sending it.
        for to in ["eve@localhost", "eve@localhost/phone"] {
            bob.send(&format!("<presence to='{to}'/>")).await;
            eve.send(ask).await;
            assert_eq!(bob.hears().len(), 1, "{to}");
            bob.send(&format!("<presence to='{to}' type='unavailable'/>")).await;
            eve.hears();
            eve.send(ask).await;
            assert_eq!(eve.hears().len(), 1, "{to}");
        }
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn who_only_asked_to_see_is_a_stranger_still() {
    block_on(async {
        let bench = bench();
        let bob = bench.online("bob@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        eve.send("<presence type='subscribe' to='bob@localhost'/>").await;
        bob.hears();
        for to in ["bob@localhost", "bob@localhost/phone"] {
            let heard = answers(&eve, to).await;
            assert!(heard.iter().all(|heard| heard.contains("<service-unavailable")), "{heard:?}");
        }
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn answers_and_hosts_pass_and_a_room_speaks_for_its_occupants() {
    block_on(async {
        let bench = bench();
        let bob = bench.online("bob@localhost/phone").await;
        let ask = |from: &str, kind: &str| {
            format!("<iq type='{kind}' id='1' from='{from}' to='bob@localhost/phone'><x xmlns='urn:x'/></iq>")
        };
        for (from, kind) in
            [("eve@localhost/x", "result"), ("eve@localhost/x", "error"), ("localhost", "get")]
        {
            bench.route(&ask(from, kind)).await;
            assert_eq!(bob.hears().len(), 1, "{from} {kind}");
        }
        bench.route(&ask("room@rooms.example/eve", "get")).await;
        assert!(bob.hears().is_empty());
        bob.send("<presence to='room@rooms.example/bob'/>").await;
        bench.route(&ask("room@rooms.example/eve", "get")).await;
        assert_eq!(bob.hears().len(), 1);
    });
}

#[test]
fn sessions_can_be_opened_to_all() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.strangers.iq_to_sessions = true;
        let bench = Bench::new(&["localhost"], move || modules(&config));
        let bob = bench.online("bob@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        eve.send("<iq type='get' id='1' to='bob@localhost/phone'><x xmlns='urn:x'/></iq>").await;
        assert_eq!(bob.hears().len(), 1);
        let heard = answers(&eve, "bob@localhost").await;
        assert!(heard.iter().all(|heard| heard.contains("<service-unavailable")), "accounts are not");
    });
}

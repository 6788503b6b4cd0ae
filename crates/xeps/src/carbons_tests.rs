//! Tests of `carbons.rs`, against a whole server in memory.

use std::time::Duration;

use futures::executor::block_on;
use hooks::bench::{Bench, Client, parse};

use super::*;
use crate::index::{ModulesConfig, modules};

fn bench() -> Bench {
    Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()))
}

async fn enabled(client: Client) -> Client {
    client.send("<iq type='set' id='on'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    let heard = client.hears();
    assert!(heard.last().is_some_and(|heard| heard.contains("type='result'")), "{heard:?}");
    client
}

/// A session on each of the nodes, with carbons; the first has the highest priority.
async fn devices(bench: &Bench, name: &str) -> [Client; 3] {
    let mut all = Vec::new();
    for (node, resource) in ["phone", "laptop", "tv"].into_iter().enumerate() {
        let client = bench.login_at(node, &format!("{name}@localhost/{resource}")).await;
        client.send(&format!("<presence><priority>{}</priority></presence>", 5 - node)).await;
        all.push(enabled(client).await);
    }
    all.iter().for_each(|client| drop(client.hears()));
    all.try_into().unwrap_or_else(|_| unreachable!("three were made"))
}

/// The messages heard, as XML.
fn messages(client: &Client) -> Vec<String> {
    client.hears().into_iter().filter(|heard| heard.starts_with("<message")).collect()
}

fn carbon(side: &str, to: &str, kind: &str, inner: &str) -> String {
    let account = to.split('/').next().unwrap();
    format!(
        "<message to='{to}' from='{account}'{kind}><{side} xmlns='urn:xmpp:carbons:2'><forwarded \
         xmlns='urn:xmpp:forward:0'>{inner}</forwarded></{side}></message>"
    )
}

#[test]
fn both_sides_of_a_conversation_reach_all_devices_at_all_nodes_once() {
    block_on(async {
        let bench = bench();
        let [alice, other, third] = devices(&bench, "alice").await;
        let [bob, bobs, tv] = devices(&bench, "bob").await;
        alice.send("<message to='bob@localhost' type='chat' id='1'><body>Hi</body></message>").await;
        let said = |to: &str| {
            format!(
                "<message{to} to='bob@localhost' from='alice@localhost/phone' id='1' type='chat'>\
                 <body>Hi</body></message>"
            )
        };
        let inner = said(" xmlns='jabber:client'");
        assert_eq!(messages(&alice), [""; 0]);
        let chat = " type='chat'";
        assert_eq!(messages(&other), [carbon("sent", "alice@localhost/laptop", chat, &inner)]);
        assert_eq!(messages(&third), [carbon("sent", "alice@localhost/tv", chat, &inner)]);
        assert_eq!(messages(&bob), [said("")]);
        assert_eq!(messages(&bobs), [carbon("received", "bob@localhost/laptop", chat, &inner)]);
        assert_eq!(messages(&tv), [carbon("received", "bob@localhost/tv", chat, &inner)]);
        // To one device, of type normal, answered by another one.
        bobs.send("<message to='alice@localhost/tv'><body>Hello</body></message>").await;
        let inner = "<message xmlns='jabber:client' to='alice@localhost/tv' from='bob@localhost/laptop'>\
                     <body>Hello</body></message>";
        assert_eq!(messages(&third), [inner.replace(" xmlns='jabber:client'", "")]);
        assert_eq!(messages(&alice), [carbon("received", "alice@localhost/phone", "", inner)]);
        assert_eq!(messages(&other), [carbon("received", "alice@localhost/laptop", "", inner)]);
        assert_eq!(messages(&bob), [carbon("sent", "bob@localhost/phone", "", inner)]);
        assert_eq!(messages(&bobs), [""; 0]);
    });
}

#[test]
fn who_did_not_ask_gets_no_copies_nor_who_asks_no_more() {
    block_on(async {
        let bench = bench();
        let alice = bench.online_at(0, "alice@localhost/phone").await;
        let here = bench.online_at(0, "alice@localhost/laptop").await;
        let there = bench.online_at(1, "alice@localhost/tv").await;
        let say = "<message to='bob@localhost' type='chat'><body>Hi</body></message>";
        alice.send(say).await;
        assert_eq!((messages(&here), messages(&there)), (vec![], vec![]));
        let (here, there) = (enabled(enabled(here).await).await, enabled(there).await);
        alice.send(say).await;
        assert_eq!((messages(&here).len(), messages(&there).len()), (1, 1));
        for client in [&here, &there] {
            for _ in 0..2 {
                client.send("<iq type='set' id='off'><disable xmlns='urn:xmpp:carbons:2'/></iq>").await;
                let heard = client.hears();
                assert!(heard.last().is_some_and(|heard| heard.contains("type='result'")), "{heard:?}");
            }
        }
        alice.send(say).await;
        assert_eq!((messages(&here), messages(&there)), (vec![], vec![]));
    });
}

#[test]
fn carbons_are_switched_by_their_own_session_with_a_set() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        bench.account("bob@localhost");
        for (iq, error) in [
            ("type='set' to='bob@localhost'><enable", "service-unavailable"),
            ("type='set' to='bob@localhost'><disable", "service-unavailable"),
            ("type='get'><enable", "bad-request"),
            ("type='set'><private", "bad-request"),
            ("type='set' to='localhost'><enable", "service-unavailable"),
        ] {
            alice.send(&format!("<iq id='1' {iq} xmlns='urn:xmpp:carbons:2'/></iq>")).await;
            let heard = alice.hears();
            assert!(heard.len() == 1 && heard[0].contains(error), "{iq}: {heard:?}");
        }
    });
}

#[test]
fn a_device_that_takes_no_messages_sees_what_waits_for_others() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let low = bench.login_at(1, "bob@localhost/low").await;
        low.send("<presence><priority>-1</priority></presence>").await;
        let low = enabled(low).await;
        // Not available at all.
        let quiet = enabled(bench.login_at(2, "bob@localhost/quiet").await).await;
        alice.send("<message to='bob@localhost' type='chat'><body>later</body></message>").await;
        let heard = (messages(&low), messages(&quiet));
        assert!(heard.0.len() == 1 && heard.0[0].contains("<received"), "{heard:?}");
        assert!(heard.1.len() == 1 && heard.1[0].contains("<received"), "{heard:?}");
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence/>").await;
        let heard = messages(&bob);
        assert!(heard.len() == 1 && heard[0].contains("<body>later</body><delay"), "{heard:?}");
        assert_eq!((messages(&low), messages(&quiet)), (vec![], vec![]));
        // What is sent back is copied to nobody.
        alice.send("<message to='bob@localhost/gone'><body>x</body></message>").await;
        assert_eq!(messages(&low), [""; 0]);
    });
}

#[test]
fn what_is_eligible() {
    let (sent, received) = (Side::Sent, Side::Received);
    let body = "<body>private no-copy store</body>";
    let cases: [(&str, &[Side], String); 24] = [
        ("chat", &[sent, received], body.into()),
        ("chat", &[sent, received], String::new()),
        ("chat", &[sent, received], "<x xmlns='urn:example'/>".into()),
        ("normal", &[sent, received], body.into()),
        ("unknown", &[sent, received], body.into()),
        ("normal", &[], String::new()),
        ("normal", &[], "<subject>x</subject>".into()),
        ("normal", &[], "<body xmlns='urn:example'/>".into()),
        ("normal", &[sent, received], "<received xmlns='urn:xmpp:receipts' id='1'/>".into()),
        ("normal", &[sent, received], "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>".into()),
        ("normal", &[sent, received], format!("<paused xmlns='{}'/>", INSTANT[1])),
        ("groupchat", &[], body.into()),
        ("groupchat", &[], format!("<paused xmlns='{}'/>", INSTANT[1])),
        ("headline", &[], body.into()),
        ("headline", &[], "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>".into()),
        ("error", &[], "<error type='cancel'/>".into()),
        ("error", &[sent, received], format!("{body}<error type='cancel'/>")),
        ("chat", &[], format!("{body}<private xmlns='{NS}'/>")),
        ("chat", &[sent, received], format!("{body}<private xmlns='urn:example'/>")),
        ("normal", &[], format!("{body}<no-copy xmlns='urn:xmpp:hints'/>")),
        ("chat", &[sent], format!("{body}<x xmlns='{MUC_USER}'/>")),
        ("chat", &[sent], format!("{body}<m:x xmlns:m='{MUC_USER}'/>")),
        ("normal", &[sent, received], format!("<x xmlns='{MUC_USER}'><invite to='a@b'/></x>")),
        ("normal", &[sent, received], format!("<x xmlns='{DIRECT_INVITATION}' jid='r@h'/>")),
    ];
    for (kind, sides, body) in cases {
        let xml = format!("<message from='room@rooms.example/nick' type='{kind}'>{body}</message>");
        for side in [sent, received] {
            assert_eq!(is_eligible(&parse(&xml), side), sides.contains(&side), "{side:?} {xml}");
        }
    }
}

#[test]
fn an_error_is_copied_to_who_saw_what_it_answers() {
    block_on(async {
        let bench = bench();
        let [alice, other, third] = devices(&bench, "alice").await;
        let error = |from: &str, to: &str, id: &str| {
            format!(
                "<message type='error' from='{from}' to='{to}' id='{id}'><error type='cancel'>\
                 <gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
            )
        };
        alice.send("<message to='eve@elsewhere.example' type='chat' id='1'><body>Hi</body></message>").await;
        alice
            .send("<message to='eve@elsewhere.example' type='headline' id='2'><body>Hi</body></message>")
            .await;
        assert_eq!((messages(&other).len(), messages(&third).len()), (1, 1));
        for (from, to, id, copied) in [
            ("eve@elsewhere.example", "alice@localhost/phone", "1", true),
            ("eve@elsewhere.example/pda", "alice@localhost/phone", "1", true),
            ("eve@elsewhere.example", "alice@localhost/phone", "2", false),
            ("eve@elsewhere.example", "alice@localhost/laptop", "1", false),
            ("mallory@elsewhere.example", "alice@localhost/phone", "1", false),
            ("eve@elsewhere.example", "alice@localhost", "1", false),
            ("eve@elsewhere.example", "alice@localhost/gone", "1", false),
        ] {
            bench.route(&error(from, to, id)).await;
            let heard = messages(&third);
            assert_eq!(heard.len(), usize::from(copied), "{from} {to} {id}");
            assert!(heard.iter().all(|heard| heard.contains(" type='error'><received")), "{heard:?}");
            [&alice, &other].into_iter().for_each(|client| drop(messages(client)));
        }
        // An error about a copy goes nowhere (10.3).
        other.send("<message type='error' to='alice@localhost'><body>Hi</body></message>").await;
        other.send("<message type='error' to='alice@localhost/phone'><body>Hi</body></message>").await;
        assert_eq!(messages(&third), [""; 0]);
        assert_eq!(messages(&alice).len(), 1);
        // It is known of the last ones only, however many there were.
        for id in 0..ANSWERABLE {
            let say = format!("<message to='eve@elsewhere.example' type='chat' id='n{id}'><body/></message>");
            alice.send(&say).await;
        }
        messages(&third);
        bench.route(&error("eve@elsewhere.example", "alice@localhost/phone", "1")).await;
        assert_eq!(messages(&third), [""; 0]);
        bench.route(&error("eve@elsewhere.example", "alice@localhost/phone", "n0")).await;
        assert_eq!(messages(&third).len(), 1);
    });
}

#[test]
fn copies_are_not_copied_nor_forged_nor_given_to_others() {
    block_on(async {
        let bench = bench();
        let [alice, other, third] = devices(&bench, "alice").await;
        let [bob, ..] = devices(&bench, "bob").await;
        let inner = "<message xmlns='jabber:client' from='eve@localhost'><body>Hi</body></message>";
        let forged = format!(
            "<received xmlns='{NS}'><forwarded xmlns='urn:xmpp:forward:0'>{inner}</forwarded></received>"
        );
        for to in ["bob@localhost", "bob@localhost/phone"] {
            alice.send(&format!("<message to='{to}' type='chat'>{forged}<body>Look</body></message>")).await;
            let heard = messages(&bob);
            assert!(heard.len() == 1 && heard[0].contains("Look") && !heard[0].contains(NS), "{heard:?}");
            let heard = messages(&third);
            assert!(heard.len() == 1 && heard[0].matches(NS).count() == 1, "{heard:?}");
            messages(&other);
        }
        // One whose receiver has gone is for nobody else, and waits for nobody.
        for gone in ["alice@localhost/gone", "carol@localhost/gone"] {
            bench.account("carol@localhost");
            let to = gone.split('/').next().unwrap();
            let copy = parse(&format!("<message type='chat' from='{to}' to='{gone}'>{forged}</message>"));
            bench.services().route(copy, How::Direct).await;
        }
        let carol = bench.online("carol@localhost/phone").await;
        for client in [&alice, &other, &third, &carol] {
            assert_eq!(messages(client), [""; 0]);
        }
    });
}

#[test]
fn what_one_says_to_oneself_reaches_each_other_device_once() {
    block_on(async {
        let bench = bench();
        let [alice, other, third] = devices(&bench, "alice").await;
        other.send("<message type='chat'><body>Note</body></message>").await;
        assert_eq!((messages(&alice).len(), messages(&other).len(), messages(&third).len()), (1, 0, 1));
        other.send("<message to='alice@localhost/tv' type='chat'><body>Note</body></message>").await;
        assert_eq!((messages(&alice).len(), messages(&other).len(), messages(&third).len()), (1, 0, 1));
    });
}

/// What this thread has cost so far, whatever else the machine does; nothing where the system does not tell.
fn cpu() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = told.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or_default())
}

/// Prints what a copy costs: `cargo test --release -p xeps --lib -- --nocapture copies_cost`.
#[test]
fn copies_cost_no_read_of_the_store() {
    block_on(async {
        const ROUNDS: u32 = if cfg!(debug_assertions) { 50 } else { 20_000 };
        let text = "It is the east, and Juliet is the sun. ".repeat(3);
        let say = format!("<message to='bob@localhost/phone' type='chat'><body>{text}</body></message>");
        let mut spent = Vec::new();
        for others in [0, 1, 5] {
            let bench = Bench::new(&["localhost"], || modules(&ModulesConfig::default()));
            let alice = bench.online("alice@localhost/phone").await;
            let _bob = bench.online("bob@localhost/phone").await;
            let mut all = Vec::new();
            for n in 0..others {
                all.push(enabled(bench.online(&format!("alice@localhost/{n}")).await).await);
            }
            let reads = || {
                let facts = bench.store().facts().snapshot();
                facts.get.count + facts.scan.count
            };
            let before = reads();
            let start = cpu();
            for _ in 0..ROUNDS {
                alice.send(&say).await;
            }
            spent.push(cpu().saturating_sub(start) / ROUNDS);
            assert_eq!(reads(), before);
            assert!(all.iter().all(|client| messages(client).len() == ROUNDS as usize));
        }
        println!("a message, its sender having 0, 1 and 5 other devices: {spent:?}");
    });
}

#[test]
fn a_session_that_is_bound_with_its_login_may_begin_with_copies() {
    block_on(async {
        let bench = bench();
        assert!(bench.registry().enabled_with_binding("localhost").contains(&NS));
        let phone = bench.login("alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        let bob = bench.online("bob@localhost/laptop").await;
        for (asked, copies) in [("<enable xmlns='urn:x'/>", 0), ("<enable xmlns='urn:xmpp:carbons:2'/>", 1)] {
            let asked = [stanza::dom::parse(asked.as_bytes()).unwrap()];
            let told = bench.registry().bind(phone.view(), &asked, &bench.services()).await;
            assert!(told.is_empty(), "it cannot fail, so there is nothing to say");
            desk.send("<message to='bob@localhost' type='chat'><body>hi</body></message>").await;
            assert_eq!((phone.hears().len(), bob.hears().len()), (copies, 1));
        }
    });
}

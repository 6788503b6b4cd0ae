//! Tests of `flexible.rs`, against a whole cluster in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client, parse};

use super::*;
use crate::index::{ModulesConfig, modules};

fn bench() -> Bench {
    Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()))
}

async fn wait_for_alice(bench: &Bench) -> Client {
    bench.account("alice@localhost");
    let bob = bench.online("bob@localhost/phone").await;
    for body in ["one", "two", "three"] {
        bob.send(&format!("<message to='alice@localhost' id='{body}'><body>{body}</body></message>")).await;
    }
    bob
}

/// The answer, and the bodies of the messages that came before it with what they are called.
async fn ask(client: &Client, kind: &str, payload: &str) -> (String, Vec<(String, String)>) {
    client.hears();
    client.send(&format!("<iq type='{kind}' id='q1'>{payload}</iq>")).await;
    let (mut answer, mut messages) = (String::new(), Vec::new());
    for heard in client.hears_stanzas() {
        if heard.head.id.as_deref() == Some("q1") {
            answer = match heard.as_error() {
                Some(error) => error.condition.tag().to_owned(),
                None => String::from_utf8(heard.body().to_vec()).unwrap(),
            };
        } else {
            messages.push((body(&heard), called(&heard).unwrap_or_default()));
        }
    }
    (answer, messages)
}

fn body(message: &stanza::Stanza) -> String {
    message.child("body", stanza::ns::CLIENT).map(Element::text).unwrap_or_default()
}

fn called(message: &stanza::Stanza) -> Option<String> {
    let item = message.child("offline", NS)?.get_child("item", NS)?;
    item.attr("node").map(str::to_owned)
}

fn disco(of: &str) -> String {
    format!("<query xmlns='http://jabber.org/protocol/disco#{of}' node='{NS}'/>")
}

fn items(action: &str, names: &[&str]) -> String {
    let items: String = names.iter().map(|name| format!("<item action='{action}' node='{name}'/>")).collect();
    format!("<offline xmlns='{NS}'>{items}</offline>")
}

fn command(name: &str) -> String {
    format!("<offline xmlns='{NS}'><{name}/></offline>")
}

#[test]
fn a_client_reads_and_removes_what_it_likes() {
    block_on(async {
        let bench = bench();
        let bob = wait_for_alice(&bench).await;
        let alice = bench.login_at(1, "alice@localhost/phone").await;
        let (count, _) = ask(&alice, "get", &disco("info")).await;
        assert!(count.contains("<identity category='automation' type='message-list'/>"), "{count}");
        assert!(count.contains("<field var='number_of_messages'><value>3</value></field>"), "{count}");
        let (headers, _) = ask(&alice, "get", &disco("items")).await;
        let query = stanza::dom::parse(headers.as_bytes()).unwrap();
        let listed: Vec<_> = query
            .children()
            .map(|item| (item.attr("jid").unwrap(), item.attr("name").unwrap(), item.attr("node").unwrap()))
            .collect();
        assert_eq!(listed.len(), 3);
        assert!(
            listed.iter().all(|(jid, from, _)| (*jid, *from) == ("alice@localhost", "bob@localhost/phone"))
        );
        assert!(listed.is_sorted_by_key(|(.., node)| *node));
        let node = |at: usize| listed[at].2;
        // Available, it is not flooded, nor is another of its devices at another node; what is new comes as ever.
        alice.send("<presence/>").await;
        let tablet = bench.login_at(2, "alice@localhost/tablet").await;
        tablet.send("<presence/>").await;
        bob.send("<message to='alice@localhost/tablet'><body>new</body></message>").await;
        let heard: Vec<String> =
            tablet.hears_stanzas().iter().map(body).filter(|body| !body.is_empty()).collect();
        assert_eq!(heard, ["new"]);
        let (answer, seen) = ask(&alice, "get", &items("view", &[node(2), node(0)])).await;
        assert_eq!(answer, "");
        assert_eq!(seen, [("one".to_owned(), node(0).to_owned()), ("three".to_owned(), node(2).to_owned())]);
        // It stays until it is removed.
        assert_eq!(ask(&alice, "get", &items("view", &[node(0)])).await.1.len(), 1);
        assert_eq!(ask(&alice, "set", &items("remove", &[node(0), node(1)])).await.0, "");
        assert_eq!(
            ask(&alice, "get", &items("view", &[node(0)])).await,
            ("item-not-found".to_owned(), vec![])
        );
        assert_eq!(ask(&alice, "set", &items("remove", &[node(2), node(1)])).await.0, "item-not-found");
        assert!(ask(&alice, "get", &disco("info")).await.0.contains("<value>1</value>"));
        alice.close().await;
        tablet.close().await;
        // What is left comes to the next one who does not ask.
        let laptop = bench.login_at(2, "alice@localhost/laptop").await;
        laptop.send("<presence/>").await;
        let heard: Vec<String> =
            laptop.hears_stanzas().iter().map(body).filter(|body| !body.is_empty()).collect();
        assert_eq!(heard, ["three"]);
    });
}

#[test]
fn a_client_fetches_or_purges_all_of_it() {
    block_on(async {
        let bench = bench();
        wait_for_alice(&bench).await;
        let alice = bench.login_at(1, "alice@localhost/phone").await;
        let (answer, seen) = ask(&alice, "get", &command("fetch")).await;
        assert_eq!((answer.as_str(), seen.len()), ("", 3));
        alice.send("<presence/>").await;
        assert!(alice.hears_stanzas().iter().all(|heard| body(heard).is_empty()));
        assert_eq!(ask(&alice, "set", &command("purge")).await.0, "");
        assert!(ask(&alice, "get", &disco("info")).await.0.contains("<value>0</value>"));
        let empty = format!("<query xmlns='{ITEMS}' node='{NS}'/>");
        assert_eq!(ask(&alice, "get", &disco("items")).await.0, empty);
        assert_eq!(ask(&alice, "get", &command("fetch")).await, (String::new(), vec![]));
    });
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    block_on(async {
        let bench = bench();
        wait_for_alice(&bench).await;
        let alice = bench.login("alice@localhost/phone").await;
        let nobody = name(77);
        for (kind, payload, condition) in [
            ("get", items("view", &[]), "bad-request"),
            ("get", items("remove", &[&nobody]), "bad-request"),
            ("set", items("view", &[&nobody]), "bad-request"),
            ("get", command("purge"), "bad-request"),
            ("set", command("fetch"), "bad-request"),
            ("get", format!("<other xmlns='{NS}'/>"), "bad-request"),
            ("get", format!("<offline xmlns='{NS}'><item action='view'/></offline>"), "bad-request"),
            ("get", items("view", &[&nobody]), "item-not-found"),
            ("set", items("remove", &["nonsense"]), "item-not-found"),
        ] {
            assert_eq!(ask(&alice, kind, &payload).await, (condition.to_owned(), vec![]), "{payload}");
        }
        let eve = bench.login("eve@localhost/phone").await;
        eve.send(&format!("<iq type='get' id='q1' to='alice@localhost'>{}</iq>", command("fetch"))).await;
        assert!(eve.hears().concat().contains("service-unavailable"));
        let mut passage = Passage::new(
            parse(&format!("<iq type='get' id='1'>{}</iq>", command("fetch"))),
            bench.services(),
        )
        .with_account(BareJid::new("alice@localhost").unwrap())
        .with_sender(eve.view().clone());
        passage.stanza.head_mut().from = Some(eve.view().jid().clone().into());
        let reply = bench.registry().answer(&mut passage).await;
        assert!(matches!(reply, Some(Reply::Error(error)) if error.condition == Condition::Forbidden));
    });
}

#[test]
fn the_stored_bytes_of_schema_1_stay_readable() {
    let reader = Reader { sid: 5 };
    let bytes = store::record::encode(&reader);
    assert_eq!(bytes, [1, 5]);
    assert_eq!(store::record::decode(&bytes), Ok(reader));
}

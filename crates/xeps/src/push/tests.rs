//! Tests of `push.rs`, against a whole cluster in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client, parse};

use jid::Jid;

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench(config: Config) -> Bench {
    let config = ModulesConfig { push: config, ..ModulesConfig::all() };
    Bench::cluster(3, &["localhost"], move || modules(&config))
}

/// Alice's phone, and what stands for a push service: a session of Bob, whom she lets see her.
async fn actors(bench: &Bench) -> (Client, Client) {
    let (alice, bob) = friends(bench).await;
    alice.hears();
    bob.hears();
    (alice, bob)
}

const SERVICE: &str = "bob@localhost/phone";

fn enable(inside: &str) -> String {
    format!("<iq type='set' id='e'>{inside}</iq>")
}

async fn asked(client: &Client, inside: &str) -> String {
    client.hears();
    client.send(&enable(inside)).await;
    let heard = client.hears_stanzas();
    assert_eq!(heard.len(), 1, "{heard:?}");
    match heard[0].as_error() {
        Some(error) => error.condition.tag().to_owned(),
        None => heard[0].head.type_.as_deref().unwrap_or_default().to_owned(),
    }
}

async fn register(client: &Client, node: &str) {
    let wish = format!("<enable xmlns='{NS}' jid='{SERVICE}' node='{node}'/>");
    assert_eq!(asked(client, &wish).await, "result");
}

/// What the service was asked to publish: the id of the request, the node, and the notification with all around it.
fn published(service: &Client) -> Vec<(String, String, String)> {
    let mut published = Vec::new();
    for heard in service.hears_stanzas() {
        let Some(pubsub) = heard.child("pubsub", pubsub::NS) else { continue };
        assert_eq!(heard.head.from.as_ref().map(Jid::as_str), Some("alice@localhost"));
        let publish = pubsub.get_child("publish", pubsub::NS).unwrap();
        let node = publish.attr("node").unwrap_or_default().to_owned();
        let id = heard.head.id.as_deref().unwrap_or_default().to_owned();
        published.push((id, node, String::from_utf8_lossy(heard.body()).into_owned()));
    }
    published
}

fn nodes(published: &[(String, String, String)]) -> Vec<&str> {
    published.iter().map(|(_, node, _)| node.as_str()).collect()
}

async fn say(client: &Client, body: &str) {
    client.send(&format!("<message type='chat' to='alice@localhost'><body>{body}</body></message>")).await;
}

async fn settle(bench: &Bench) {
    while bench.wait().await > 0 {}
}

#[test]
fn a_client_that_leaves_behind_a_message_is_not_woken_for_it() {
    block_on(async {
        let bench = bench(Config::default());
        let (alice, bob) = actors(&bench).await;
        register(&alice, "n").await;
        settle(&bench).await;
        published(&bob);
        say(&bob, "read").await;
        assert_eq!(alice.hears().len(), 1);
        alice.close().await;
        settle(&bench).await;
        assert!(nodes(&published(&bob)).is_empty());
        say(&bob, "missed").await;
        settle(&bench).await;
        assert_eq!(nodes(&published(&bob)), ["n"]);
    });
}

#[test]
fn what_is_asked_for_wrongly_is_refused() {
    block_on(async {
        let config = Config { registrations_max: 2, ..Config::default() };
        let bench = bench(config);
        let (alice, bob) = actors(&bench).await;
        let form = |kind: &str, of: &str, value: &str| {
            format!(
                "<x xmlns='jabber:x:data' type='{kind}'><field var='FORM_TYPE'><value>{of}</value></field>\
                 <field var='secret'><value>{value}</value></field></x>"
            )
        };
        let with = |inside: &str| format!("<enable xmlns='{NS}' jid='{SERVICE}' node='n'>{inside}</enable>");
        for (inside, condition) in [
            (format!("<enable xmlns='{NS}'/>"), "bad-request"),
            (format!("<disable xmlns='{NS}'/>"), "bad-request"),
            (format!("<enable xmlns='{NS}' jid='@'/>"), "jid-malformed"),
            (format!("<enable xmlns='{NS}' jid='alice@localhost' node='n'/>"), "not-allowed"),
            (format!("<other xmlns='{NS}' jid='{SERVICE}'/>"), "bad-request"),
            (format!("<enable xmlns='{NS}' jid='{SERVICE}' node='{}'/>", "n".repeat(1_024)), "bad-request"),
            (with(&form("submit", "urn:other", "s")), "bad-request"),
            (with(&form("cancel", PUBLISH_OPTIONS, "s")), "bad-request"),
            (with(&form("submit", PUBLISH_OPTIONS, &"s".repeat(OPTIONS_BYTES_MAX))), "policy-violation"),
        ] {
            assert_eq!(asked(&alice, &inside).await, condition, "{inside}");
        }
        alice.hears();
        alice.send(&enable(&with("")).replace("'set'", "'get'")).await;
        assert!(alice.hears().concat().contains("bad-request"));
        bob.hears();
        bob.send(&enable(&with("")).replace("id='e'", "id='e' to='alice@localhost'")).await;
        assert!(bob.hears().concat().contains("forbidden"));
        for node in ["1", "2", "1"] {
            register(&alice, node).await;
        }
        assert_eq!(asked(&alice, &with("")).await, "resource-constraint");
        let disable = format!("<disable xmlns='{NS}' jid='{SERVICE}' node='1'/>");
        assert_eq!(asked(&alice, &disable).await, "result");
        assert_eq!(asked(&alice, &disable).await, "result");
        assert_eq!(asked(&alice, &with("")).await, "result");
    });
}

#[test]
fn who_is_away_is_woken_and_who_is_there_is_not() {
    block_on(async {
        let bench = bench(Config::default());
        let (alice, bob) = actors(&bench).await;
        register(&alice, "phone").await;
        let tablet = bench.online_at(2, "alice@localhost/tablet").await;
        register(&tablet, "tablet").await;
        say(&bob, "all are there").await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
        tablet.close().await;
        say(&bob, "the tablet is away").await;
        settle(&bench).await;
        assert_eq!(nodes(&published(&bob)), ["tablet"]);
        alice.close().await;
        say(&bob, "nobody is there").await;
        settle(&bench).await;
        let all = published(&bob);
        assert_eq!(nodes(&all), ["phone", "tablet"]);
        let bare = "<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='phone'><item>\
                    <notification xmlns='urn:xmpp:push:0'/></item></publish></pubsub>";
        assert_eq!(all[0].2, bare);
        // Only for what somebody is to see.
        for message in [
            "<message type='chat' to='alice@localhost'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
            "<message type='headline' to='alice@localhost'><body>news</body></message>",
            "<message type='chat' to='alice@localhost'><body>x</body><no-store xmlns='urn:xmpp:hints'/></message>",
            "<presence to='alice@localhost'/>",
        ] {
            bob.send(message).await;
            settle(&bench).await;
            assert_eq!(published(&bob), [], "{message}");
        }
        // At another node, with other options, by the last request.
        let phone = bench.online_at(1, "alice@localhost/phone").await;
        let secret = "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>\
                      http://jabber.org/protocol/pubsub#publish-options</value></field>\
                      <field var='secret'><value>eruio234vzxc2kla-91</value></field></x>";
        let wish = format!("<enable xmlns='{NS}' jid='{SERVICE}' node='phone'>{secret}</enable>");
        assert_eq!(asked(&phone, &wish).await, "result");
        let disable = format!("<disable xmlns='{NS}' jid='{SERVICE}' node='tablet'/>");
        assert_eq!(asked(&phone, &disable).await, "result");
        phone.close().await;
        say(&bob, "again").await;
        settle(&bench).await;
        let all = published(&bob);
        assert_eq!(nodes(&all), ["phone"]);
        assert!(all[0].2.contains("</publish><publish-options><x xmlns='jabber:x:data'"), "{all:?}");
        assert!(all[0].2.contains("eruio234vzxc2kla-91"));
        let back = bench.online_at(2, "alice@localhost/phone").await;
        let disable = format!("<disable xmlns='{NS}' jid='{SERVICE}'/>");
        assert_eq!(asked(&back, &disable).await, "result");
        back.close().await;
        say(&bob, "nobody is to be woken").await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
    });
}

#[test]
fn a_session_that_waits_or_is_not_looked_at_is_woken_for_what_it_gets() {
    block_on(async {
        let bench = bench(Config::default());
        let (alice, bob) = actors(&bench).await;
        register(&alice, "phone").await;
        let tablet = bench.online_at(2, "alice@localhost/tablet").await;
        tablet.send("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        register(&tablet, "tablet").await;
        let chat = "<message type='chat' to='alice@localhost/phone'><body>for the phone</body></message>";
        tablet.view().set_inactive(true);
        bob.send(chat).await;
        settle(&bench).await;
        // It has a copy of it.
        assert_eq!(nodes(&published(&bob)), ["tablet"]);
        // What another device sends wakes nobody.
        alice.send("<message type='chat' to='bob@localhost'><body>mine</body></message>").await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
        tablet.view().set_inactive(false);
        alice.view().set_waiting(true);
        bob.send(chat).await;
        settle(&bench).await;
        assert_eq!(nodes(&published(&bob)), ["phone"]);
        // A change that it could not be told of is known all the same.
        let disable = format!("<disable xmlns='{NS}' jid='{SERVICE}' node='phone'/>");
        assert_eq!(asked(&tablet, &disable).await, "result");
        bob.send(chat).await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
    });
}

#[test]
fn a_service_that_does_not_want_it_is_asked_no_more() {
    block_on(async {
        let config = Config { failures_max: 2, ..Config::default() };
        let bench = bench(config);
        let (alice, bob) = actors(&bench).await;
        register(&alice, "phone").await;
        alice.close().await;
        let answer = |id: &str, kind: &str, condition: &str| {
            format!(
                "<iq type='error' to='alice@localhost' id='{id}'><error type='{kind}'>\
                 <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
            )
        };
        let wait = |id: &str| answer(id, "wait", "resource-constraint");
        // One error of a kind that goes over, then a result, then one more such: it is still asked.
        for turn in ["wait", "result", "wait"] {
            say(&bob, turn).await;
            settle(&bench).await;
            let asked = published(&bob);
            assert_eq!(asked.len(), 1, "{turn}");
            let id = &asked[0].0;
            match turn {
                "wait" => bob.send(&wait(id)).await,
                _ => bob.send(&format!("<iq type='result' to='alice@localhost' id='{id}'/>")).await,
            }
        }
        say(&bob, "and again").await;
        settle(&bench).await;
        let asked = published(&bob);
        // Nobody else can end it, nor an id that is none.
        let eve = bench.online_at(2, "eve@localhost/phone").await;
        eve.send(&answer(&asked[0].0, "cancel", "item-not-found")).await;
        bob.send(&answer("push-0000000000000001-x", "cancel", "item-not-found")).await;
        bob.send(&wait(&asked[0].0)).await;
        say(&bob, "once more").await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
        assert_eq!(bench.counted(NAME, "disabled"), 1);
        // At once with an error that stays; what our own server answers is one too.
        for service in [SERVICE, "nobody@localhost/gone", "bob@localhost/gone"] {
            let phone = bench.online_at(1, "alice@localhost/phone").await;
            let wish = format!("<enable xmlns='{NS}' jid='{service}' node='phone'/>");
            assert_eq!(self::asked(&phone, &wish).await, "result");
            phone.close().await;
            let before = bench.counted(NAME, "disabled");
            say(&bob, "hello").await;
            settle(&bench).await;
            if let Some((id, ..)) = published(&bob).first() {
                bob.send(&answer(id, "cancel", "item-not-found")).await;
            }
            assert_eq!(bench.counted(NAME, "disabled"), before + 1, "{service}");
        }
    });
}

#[test]
fn a_service_takes_back_that_we_publish() {
    block_on(async {
        let bench = bench(Config::default());
        let (alice, bob) = actors(&bench).await;
        register(&alice, "one").await;
        register(&alice, "two").await;
        let notice = |from: &str, node: &str| {
            format!(
                "<message from='{from}' to='alice@localhost'><pubsub xmlns='{}' node='{node}'>\
                 <affiliation jid='alice@localhost' affiliation='none'/></pubsub></message>",
                pubsub::NS
            )
        };
        // Known once a message has come.
        say(&bob, "hello").await;
        settle(&bench).await;
        alice.hears();
        bench.route(&notice("bob@localhost/other", "two")).await;
        bench.route(&notice(SERVICE, "one")).await;
        assert_eq!(alice.hears().len(), 1);
        alice.close().await;
        say(&bob, "hello").await;
        settle(&bench).await;
        assert_eq!(nodes(&published(&bob)), ["two"]);
    });
}

#[test]
fn the_settings_say_what_a_service_is_told() {
    block_on(async {
        for tells in [Tells::Nothing, Tells::Sender, Tells::Text] {
            let bench = bench(Config { tells, ..Config::default() });
            let (alice, bob) = actors(&bench).await;
            register(&alice, "phone").await;
            alice.close().await;
            say(&bob, "Wherefore art thou, Romeo?").await;
            settle(&bench).await;
            let told = published(&bob).remove(0).2;
            let field = |var: &str| told.contains(&format!("<field var='{var}'>"));
            assert_eq!(told.contains("urn:xmpp:push:summary"), tells != Tells::Nothing, "{told}");
            assert_eq!(field("last-message-sender"), tells != Tells::Nothing, "{told}");
            assert_eq!(told.contains("<value>bob@localhost/phone</value>"), tells != Tells::Nothing);
            assert_eq!(field("last-message-body"), tells == Tells::Text, "{told}");
        }
    });
}

#[test]
fn registrations_go_with_their_account() {
    block_on(async {
        let bench = bench(Config::default());
        let (alice, bob) = actors(&bench).await;
        register(&alice, "phone").await;
        bench.remove_account("alice@localhost").await;
        let again = bench.online("alice@localhost/phone").await;
        again.close().await;
        say(&bob, "hello").await;
        settle(&bench).await;
        assert_eq!(published(&bob), []);
    });
}

#[test]
fn for_what_somebody_is_woken() {
    let carbon = |side: &str, inside: &str| {
        format!(
            "<message from='a@h' to='a@h/r' type='chat'><{side} xmlns='urn:xmpp:carbons:2'>\
             <forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' type='chat'>{inside}\
             </message></forwarded></{side}></message>"
        )
    };
    let body = "<body>hello</body>";
    for (xml, is) in [
        (format!("<message type='chat'>{body}</message>"), true),
        (format!("<message>{body}</message>"), true),
        (format!("<message type='groupchat'>{body}</message>"), true),
        (format!("<message type='error'>{body}</message>"), false),
        ("<message type='chat'><body> </body></message>".to_owned(), false),
        ("<message type='chat'><body xmlns='urn:x'>x</body></message>".to_owned(), false),
        ("<message><propose xmlns='urn:xmpp:jingle-message:0' id='1'/></message>".to_owned(), true),
        ("<message><propose xmlns='urn:x' id='1'/></message>".to_owned(), false),
        ("<message><x xmlns='urn:x'/><store xmlns='urn:xmpp:hints'/></message>".to_owned(), true),
        (carbon("received", body), true),
        (carbon("received", "<composing xmlns='http://jabber.org/protocol/chatstates'/>"), false),
        (carbon("sent", body), false),
    ] {
        assert_eq!(is_worth_it(&parse(&xml), false), is, "{xml}");
    }
}

#[test]
fn the_stored_bytes_of_schema_1_stay_readable() {
    let one = Registration {
        jid: "p@h".to_owned(),
        node: Some("n".to_owned()),
        options: None,
        session: "a@h/r".to_owned(),
        token: 7,
        failures: 0,
    };
    let bytes = store::record::encode(&Registrations(vec![one.clone()]));
    assert_eq!(bytes, b"\x01\x01\x03p@h\x01\x01n\x00\x05a@h/r\x07\x00");
    assert_eq!(store::record::decode(&bytes), Ok(Registrations(vec![one])));
}

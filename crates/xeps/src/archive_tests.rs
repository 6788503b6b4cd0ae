//! Tests of `archive.rs`, against a whole server in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::executor::block_on;
use futures::future::BoxFuture;
use hooks::bench::{Bench, Client, parse};
use store::engines::memory::Memory;
use store::{Batch, Committed, Engine, Partition, Range, Record, StoreError, Table};

use super::entries::Archived;
use super::entries::{Id, With};
use super::sweep::Extent;
use super::*;
use crate::index::{ModulesConfig, modules};

fn bench() -> Bench {
    bench_with(ModulesConfig::all())
}

fn bench_with(config: ModulesConfig) -> Bench {
    Bench::cluster(3, &["localhost"], move || modules(&config))
}

async fn say(client: &Client, to: &str, body: &str) {
    client.send(&format!("<message type='chat' to='{to}'><body>{body}</body></message>")).await;
}

/// Asks the archive; the results as (id, body), then what `fin` or the error says.
async fn ask(client: &Client, inside: &str) -> (Vec<(String, String)>, String) {
    client.hears();
    client
        .send(&format!("<iq type='set' id='q'><query xmlns='{MAM}' queryid='1'>{inside}</query></iq>"))
        .await;
    let mut results = Vec::new();
    let mut end = String::new();
    for heard in client.hears_stanzas() {
        match heard.child("result", MAM) {
            Some(result) => {
                assert_eq!(result.attr("queryid"), Some("1"));
                assert_eq!(heard.head.from.as_ref().unwrap().as_str(), client.view().account().as_str());
                let message = result.get_child("forwarded", crate::forwarded::NS).unwrap();
                let message = message.get_child("message", stanza::ns::CLIENT).unwrap();
                let body = message.get_child("body", stanza::ns::CLIENT).map(|body| body.text());
                results.push((result.attr("id").unwrap().to_owned(), body.unwrap_or_default()));
            }
            None => end = hooks::bench::xml(&heard),
        }
    }
    assert!(end.starts_with("<iq"), "{end}");
    (results, end)
}

fn form(fields: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| {
        let values: String = value.split(' ').map(|value| format!("<value>{value}</value>")).collect();
        format!("<field var='{name}'>{values}</field>")
    };
    let fields: String = [("FORM_TYPE", MAM)].iter().chain(fields).map(field).collect();
    format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>")
}

fn rsm(inside: &str) -> String {
    format!("<set xmlns='http://jabber.org/protocol/rsm'>{inside}</set>")
}

fn bodies(results: &[(String, String)]) -> Vec<&str> {
    results.iter().map(|(_, body)| body.as_str()).collect()
}

/// The ids that the account is told by messages, in order.
fn stanza_ids(heard: &[Stanza]) -> Vec<String> {
    let ids = heard.iter().flat_map(|stanza| stanza.dom().children().cloned().collect::<Vec<_>>());
    let ids = ids.filter(|child| child.is("stanza-id", STANZA_ID));
    ids.map(|id| id.attr("id").unwrap().to_owned()).collect()
}

#[test]
fn both_sides_have_each_message_once_under_the_id_that_they_are_told() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online_at(1, "bob@localhost/phone").await;
        let tablet = bench.online_at(2, "bob@localhost/tablet").await;
        tablet.send("<iq type='set' id='on'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        tablet.hears();
        bob.hears();
        say(&alice, "bob@localhost/phone", "one").await;
        let told = stanza_ids(&bob.hears_stanzas());
        assert_eq!(told.len(), 1);
        let copy = tablet.hears().concat();
        assert!(
            copy.contains(&format!("<stanza-id xmlns='{STANZA_ID}' by='bob@localhost' id='{}'/>", told[0]))
        );
        say(&bob, "alice@localhost", "two").await;
        let of_alice = stanza_ids(&alice.hears_stanzas());
        let copy = tablet.hears().concat();
        let (of_bob, end) = ask(&bob, "").await;
        assert_eq!(bodies(&of_bob), ["one", "two"]);
        assert_eq!(of_bob[0].0, told[0]);
        assert!(copy.contains(&format!("by='bob@localhost' id='{}'", of_bob[1].0)), "{copy}");
        let set = format!("<first>{}</first><last>{}</last>", of_bob[0].0, of_bob[1].0);
        assert!(end.contains("complete='true'") && end.contains(&set), "{end}");
        let (seen, _) = ask(&alice, "").await;
        assert_eq!(bodies(&seen), ["one", "two"]);
        assert_eq!(seen[1].0, of_alice[0]);
        // Told exactly, and as it was.
        alice
            .send(&format!("<iq type='set' id='q'><query xmlns='{MAM}'>{}</query></iq>", rsm("<max>1</max>")))
            .await;
        assert_eq!(
            alice.hears()[0],
            format!(
                "<message to='alice@localhost/phone' from='alice@localhost'><result xmlns='{MAM}' id='{}'>\
                 <forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' \
                 stamp='2026-01-01T00:00:00.000000Z'/><message xmlns='jabber:client' to='bob@localhost/phone' \
                 from='alice@localhost/phone' type='chat'><body>one</body></message></forwarded></result></message>",
                seen[0].0
            )
        );
        // Said to oneself, it is there once.
        say(&alice, "alice@localhost", "note").await;
        assert_eq!(stanza_ids(&alice.hears_stanzas()).len(), 1);
        let (seen, _) = ask(&alice, &form(&[("with", "alice@localhost")])).await;
        assert_eq!(bodies(&seen), ["note"]);
    });
}

/// Fields, paging, the texts that are found, whether they are all.
type Case<'a> = (&'a [(&'a str, &'a str)], String, &'a [&'a str], bool);

#[test]
fn a_query_finds_what_it_asks_for_page_by_page() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online_at(1, "bob@localhost/a").await;
        let other = bench.online_at(1, "bob@localhost/b").await;
        let carol = bench.online_at(2, "carol@localhost/phone").await;
        for (minute, (from, body)) in
            [(&bob, "0"), (&carol, "1"), (&other, "2"), (&bob, "3"), (&carol, "4"), (&bob, "5")]
                .iter()
                .enumerate()
        {
            assert!(minute < 6);
            say(from, "alice@localhost", body).await;
            bench.advance(Duration::from_secs(60));
        }
        let (all, _) = ask(&alice, "").await;
        assert_eq!(bodies(&all), ["0", "1", "2", "3", "4", "5"]);
        let id = |at: usize| all[at].0.as_str();
        let cases: [Case<'_>; 24] = [
            (&[], rsm("<max>2</max>"), &["0", "1"], false),
            (&[], rsm(&format!("<max>2</max><after>{}</after>", id(1))), &["2", "3"], false),
            (&[], rsm(&format!("<max>4</max><after>{}</after>", id(1))), &["2", "3", "4", "5"], true),
            (&[], rsm("<max>2</max><before/>"), &["4", "5"], false),
            (&[], rsm(&format!("<max>3</max><before>{}</before>", id(4))), &["1", "2", "3"], false),
            (&[], rsm(&format!("<max>9</max><before>{}</before>", id(1))), &["0"], true),
            (&[], rsm(&format!("<before>{}</before>", id(0))), &[], true),
            (&[], rsm("<max>0</max>"), &[], false),
            (&[], rsm("<max>2</max><before/>") + "<flip-page/>", &["5", "4"], false),
            (&[("with", "bob@localhost")], String::new(), &["0", "2", "3", "5"], true),
            (&[("with", "bob@localhost/a")], String::new(), &["0", "3", "5"], true),
            (&[("with", "bob@localhost/a")], rsm("<max>1</max><before/>"), &["5"], false),
            (&[("with", "bob@localhost/c")], String::new(), &[], true),
            (&[("with", "localhost")], String::new(), &[], true),
            (
                &[("with", "bob@localhost")],
                rsm(&format!("<max>1</max><after>{}</after>", id(1))),
                &["2"],
                false,
            ),
            (
                &[("with", "bob@localhost")],
                rsm(&format!("<max>2</max><before>{}</before>", id(4))),
                &["2", "3"],
                false,
            ),
            (&[("start", "2026-01-01T00:02:00Z")], String::new(), &["2", "3", "4", "5"], true),
            (&[("end", "2026-01-01T01:02:00.5+01:00")], String::new(), &["0", "1", "2"], true),
            (
                &[
                    ("start", "2026-01-01T00:01:00Z"),
                    ("end", "2026-01-01T00:03:30Z"),
                    ("with", "carol@localhost"),
                ],
                String::new(),
                &["1"],
                true,
            ),
            (&[("start", "2027-01-01T00:00:00Z")], String::new(), &[], true),
            (&[("after-id", id(1)), ("before-id", id(4))], String::new(), &["2", "3"], true),
            (&[("after-id", id(4)), ("before-id", id(1))], String::new(), &[], true),
            (&[("ids", &format!("{} {} {0}", id(4), id(0)))], String::new(), &["0", "4"], true),
            (
                &[("ids", &format!("{} {}", id(4), id(0))), ("with", "bob@localhost")],
                String::new(),
                &["0"],
                true,
            ),
        ];
        for (fields, rsm, expected, complete) in cases {
            let (found, end) = ask(&alice, &(form(fields) + &rsm)).await;
            assert_eq!(bodies(&found), expected, "{fields:?} {rsm}");
            assert_eq!(end.contains("complete='true'"), complete, "{fields:?} {rsm} {end}");
            // Flipped or not, it says which was the first.
            let first = found.iter().map(|(id, _)| id).min();
            assert_eq!(end.contains("<first>"), first.is_some());
            assert!(first.is_none_or(|first| end.contains(&format!("<first>{first}</first>"))), "{end}");
        }
        alice.send(&format!("<iq type='get' id='m'><metadata xmlns='{MAM}'/></iq>")).await;
        let metadata = alice.hears().concat();
        let start = format!("<start id='{}' timestamp='2026-01-01T00:00:00.000000Z'/>", id(0));
        let last = format!("<end id='{}' timestamp='2026-01-01T00:05:00.000000Z'/>", id(5));
        assert!(metadata.contains(&start) && metadata.contains(&last), "{metadata}");
    });
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let unknown = Id::new(7, [7; 8]).to_string();
        let many = vec![unknown.as_str(); 101].join(" ");
        for (inside, error) in [
            (form(&[("before-id", &unknown)]), "item-not-found"),
            (form(&[("after-id", "nonsense")]), "item-not-found"),
            (form(&[("ids", &unknown)]), "item-not-found"),
            (form(&[("ids", &many)]), "bad-request"),
            (rsm(&format!("<after>{unknown}</after>")), "item-not-found"),
            (rsm("<before>x</before>"), "item-not-found"),
            (rsm("<max>many</max>"), "bad-request"),
            (rsm("<max>-1</max>"), "bad-request"),
            (rsm("<max>1</max><index>3</index>"), "feature-not-implemented"),
            (form(&[("start", "yesterday")]), "bad-request"),
            (form(&[("with", "@")]), "jid-malformed"),
            (form(&[("{urn:example}text", "love")]), "feature-not-implemented"),
            (
                "<x xmlns='jabber:x:data' type='submit'><field var='with'><value>a@b</value></field></x>"
                    .into(),
                "bad-request",
            ),
            (form(&[]).replace(MAM, "urn:xmpp:mam:1"), "bad-request"),
        ] {
            let (found, end) = ask(&alice, &inside).await;
            assert!(found.is_empty() && end.contains(error), "{inside}: {end}");
        }
        for (iq, error) in [
            (format!("type='set'><query xmlns='{MAM}' node='x'/>"), "item-not-found"),
            (format!("type='set'><metadata xmlns='{MAM}'/>"), "bad-request"),
            (format!("type='get'><nothing xmlns='{MAM}'/>"), "bad-request"),
            (format!("type='set'><prefs xmlns='{MAM}'/>"), "bad-request"),
            (format!("type='set'><prefs xmlns='{MAM}' default='sometimes'/>"), "bad-request"),
            (
                format!(
                    "type='set'><prefs xmlns='{MAM}' default='never'><always><jid>@</jid></always></prefs>"
                ),
                "jid-malformed",
            ),
            (format!("type='set' to='localhost'><query xmlns='{MAM}'/>"), "service-unavailable"),
        ] {
            alice.send(&format!("<iq id='1' {iq}</iq>")).await;
            let heard = alice.hears();
            assert!(heard.len() == 1 && heard[0].contains(error), "{iq}: {heard:?}");
        }
        // Nobody else reads it, whoever they are.
        let bob = bench.online("bob@localhost/phone").await;
        for to in ["alice@localhost", "nobody@localhost"] {
            bob.send(&format!("<iq type='set' id='1' to='{to}'><query xmlns='{MAM}'/></iq>")).await;
            let heard = bob.hears();
            assert!(heard.len() == 1 && heard[0].contains("service-unavailable"), "{heard:?}");
        }
        let get = format!("<iq type='get' id='f'><query xmlns='{MAM}'/></iq>");
        alice.send(&get).await;
        let fields = alice.hears().concat();
        for field in ["FORM_TYPE", "with", "start", "end", "before-id", "after-id", "ids"] {
            assert!(fields.contains(&format!("var='{field}'")), "{fields}");
        }
        alice.send(&format!("<iq type='get' id='m'><metadata xmlns='{MAM}'/></iq>")).await;
        assert!(alice.hears().concat().contains(&format!("<metadata xmlns='{MAM}'/>")));
    });
}

#[test]
fn what_is_archived() {
    let body = "<body>received, to store</body>";
    let hint = |name: &str| format!("<{name} xmlns='urn:xmpp:hints'/>");
    for (kind, inside, is) in [
        ("chat", body.to_owned(), true),
        ("normal", body.to_owned(), true),
        ("unknown", body.to_owned(), true),
        ("chat", "<c:body xmlns:c='jabber:client'>x</c:body>".to_owned(), true),
        ("chat", "<body xmlns='urn:example'>x</body>".to_owned(), false),
        ("chat", "<composing xmlns='http://jabber.org/protocol/chatstates'/>".to_owned(), false),
        ("chat", String::new(), false),
        ("normal", "<subject>x</subject>".to_owned(), false),
        ("headline", body.to_owned(), false),
        ("groupchat", body.to_owned(), false),
        ("error", body.to_owned(), false),
        ("error", hint("store"), false),
        ("chat", hint("store"), true),
        ("chat", format!("{body}{}", hint("no-store")), false),
        ("chat", format!("{body}{}", hint("no-permanent-store")), false),
        ("chat", format!("{body}{}", hint("no-copy")), true),
        ("chat", "<received xmlns='urn:xmpp:receipts' id='1'/>".to_owned(), true),
        ("chat", "<request xmlns='urn:xmpp:receipts'/>".to_owned(), false),
        ("chat", "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>".to_owned(), true),
        ("chat", format!("<retract xmlns='{RETRACT}' id='1'/>"), true),
        ("chat", "<retract xmlns='urn:xmpp:message-retract:0' id='1'/>".to_owned(), false),
        ("chat", "<markable xmlns='urn:xmpp:chat-markers:0'/>".to_owned(), false),
        ("chat", "<x xmlns='urn:example'><message><body>x</body></message></x>".to_owned(), false),
    ] {
        let xml = format!("<message type='{kind}'>{inside}</message>");
        assert_eq!(is_worth_it(&parse(&xml)), is, "{xml}");
    }
    assert!(!is_worth_it(&parse("<presence><body>x</body></presence>")));
}

/// The bodies of the messages of an archive, as they are kept.
async fn kept(client: &Client) -> Vec<String> {
    client.hears();
    client.send(&format!("<iq type='set' id='q'><query xmlns='{MAM}'/></iq>")).await;
    let heard = client.hears_stanzas();
    let messages = heard.iter().filter_map(|heard| heard.child("result", MAM));
    messages
        .map(|result| {
            let message = result.get_child("forwarded", crate::forwarded::NS).unwrap();
            let message = message.get_child("message", stanza::ns::CLIENT).unwrap();
            let inside = Stanza::from_element(message).unwrap();
            format!("{} {}", message.attr("id").unwrap_or("-"), String::from_utf8_lossy(inside.body()))
        })
        .collect()
}

fn retract(to: &str, own: &str, id: &str) -> String {
    format!("<message type='chat' to='{to}' {own}><retract xmlns='{RETRACT}' id='{id}'/></message>")
}

#[test]
fn what_its_sender_retracts_is_a_tombstone_on_both_sides() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online_at(1, "bob@localhost/phone").await;
        let chat = |id: &str| {
            format!(
                "<message type='chat' to='bob@localhost' id='{id}'><body>secret</body>\
                 <origin-id xmlns='urn:xmpp:sid:0' id='{id}'/></message>"
            )
        };
        alice.send(&chat("m1")).await;
        alice.send(&chat("m2")).await;
        bench.advance(Duration::from_secs(60));
        // From another device at another node.
        let tablet = bench.online_at(2, "alice@localhost/tablet").await;
        tablet.send(&retract("bob@localhost/phone", "id='r1'", "m1")).await;
        while bench.wait().await > 0 {}
        let tombstone =
            format!("m1 <retracted xmlns='{RETRACT}' id='r1' stamp='2026-01-01T00:01:00.000000Z'/>");
        for client in [&alice, &bob] {
            let kept = kept(client).await;
            assert_eq!(kept[0], tombstone);
            assert!(kept[1].starts_with("m2 <body>secret</body>"), "{kept:?}");
            assert_eq!(kept[2], format!("r1 <retract xmlns='{RETRACT}' id='m1'/>"));
        }
        // The first tombstone stays, and so does the retraction itself.
        tablet.send(&retract("bob@localhost", "id='r2'", "m1")).await;
        tablet.send(&retract("bob@localhost", "id='r3'", "r1")).await;
        while bench.wait().await > 0 {}
        for client in [&alice, &bob] {
            let kept = kept(client).await;
            assert_eq!(kept[0], tombstone);
            assert!(kept[2].starts_with("r1 <retract "), "{kept:?}");
        }
        // What is said to oneself too; by its id, of several the last one before.
        for body in ["one", "two"] {
            alice.send(&format!("<message to='alice@localhost' id='n'><body>{body}</body></message>")).await;
        }
        alice.send(&retract("alice@localhost", "id='r4'", "n")).await;
        let kept = kept(&alice).await;
        assert!(kept.iter().any(|kept| kept.contains("<body>one</body>")), "{kept:?}");
        assert!(!kept.iter().any(|kept| kept.contains("<body>two</body>")), "{kept:?}");
        assert!(kept.iter().any(|kept| kept.starts_with("n <retracted ") && kept.contains("id='r4'")));
    });
}

#[test]
fn nobody_else_retracts_a_message() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online_at(1, "bob@localhost/phone").await;
        let eve = bench.online_at(2, "eve@localhost/phone").await;
        let chat = "<message type='chat' to='bob@localhost' id='m1'><body>mine</body></message>";
        alice.send(chat).await;
        // The receiver, a third one, one without an id of its own, one of nothing, one in another namespace, one that
        // is not to be kept.
        bob.send(&retract("alice@localhost", "id='r1'", "m1")).await;
        eve.send(&retract("bob@localhost", "id='r2'", "m1")).await;
        alice.send(&retract("bob@localhost", "", "m1")).await;
        alice.send(&retract("bob@localhost", "id='r3'", "")).await;
        alice.send(&retract("bob@localhost", "id='r4'", "m1").replace(":1'", ":0'")).await;
        let hint = "<no-store xmlns='urn:xmpp:hints'/></message>";
        alice.send(&retract("bob@localhost", "id='r5'", "m1").replace("</message>", hint)).await;
        while bench.wait().await > 0 {}
        for client in [&alice, &bob] {
            assert_eq!(kept(client).await[0], "m1 <body>mine</body>");
        }
    });
}

#[test]
fn a_message_that_another_node_has_not_written_yet_is_retracted_later() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let tablet = bench.online_at(1, "alice@localhost/tablet").await;
        let bob = bench.online_at(2, "bob@localhost/phone").await;
        let chat = "<message type='chat' to='bob@localhost' id='m1'><body>mine</body></message>";
        alice.send(chat).await;
        bench.advance(Duration::from_micros(1));
        tablet.send(&retract("bob@localhost", "id='r1'", "m1")).await;
        // Which has read of its own node only.
        assert_eq!(kept(&tablet).await.len(), 1);
        while bench.wait().await > 0 {}
        for client in [&alice, &bob] {
            assert!(kept(client).await[0].starts_with("m1 <retracted "));
        }
    });
}

#[test]
fn preferences_hold_at_every_node_at_once() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let there = bench.online_at(1, "alice@localhost/tv").await;
        let bob = bench.online_at(2, "bob@localhost/phone").await;
        let set = |inside: &str| format!("<iq type='set' id='p'><prefs xmlns='{MAM}' {inside}</prefs></iq>");
        alice.send(&format!("<iq type='get' id='p'><prefs xmlns='{MAM}'/></iq>")).await;
        assert!(
            alice
                .hears()
                .concat()
                .contains(&format!("<prefs xmlns='{MAM}' default='always'><always/><never/></prefs>"))
        );
        say(&bob, "alice@localhost/tv", "1").await;
        // What two nodes archive in the same moment is in the order of chance.
        bench.advance(Duration::from_micros(1));
        say(&bob, "alice@localhost/phone", "2").await;
        bench.advance(Duration::from_micros(1));
        alice.send(&set("default='never'><always><jid>Bob@localhost/phone</jid></always>")).await;
        let answer = alice.hears();
        assert!(
            answer
                .last()
                .unwrap()
                .contains("default='never'><always><jid>bob@localhost/phone</jid></always><never/>"),
            "{answer:?}"
        );
        // Nobody hears of it.
        assert_eq!(there.hears().iter().filter(|heard| heard.contains("changed")).count(), 0);
        say(&bob, "alice@localhost/tv", "3").await;
        bench.advance(Duration::from_micros(1));
        say(&there, "bob@localhost/phone", "4").await;
        say(&there, "carol@localhost", "not 1").await;
        let (kept, _) = ask(&alice, "").await;
        assert_eq!(bodies(&kept), ["1", "2", "3", "4"]);
        alice.send(&set("default='always'><never><jid>bob@localhost</jid></never>")).await;
        say(&bob, "alice@localhost/tv", "not 2").await;
        say(&alice, "bob@localhost/phone", "not 3").await;
        assert_eq!(bodies(&ask(&there, "").await.0).len(), 4);
        alice.send(&set("default='roster'>")).await;
        say(&bob, "alice@localhost/tv", "not 4").await;
        alice.send("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='bob@localhost'/></query></iq>").await;
        say(&bob, "alice@localhost/tv", "5").await;
        bench.advance(Duration::from_secs(1));
        say(&alice, "bob@localhost/phone", "6").await;
        // What another node has not written yet, this one cannot know; and what is first, the clocks say.
        bench.wait().await;
        assert_eq!(bodies(&ask(&there, "").await.0), ["1", "2", "3", "4", "5", "6"]);
        // They hold for who is away too.
        alice.send(&set("default='never'>")).await;
        alice.close().await;
        there.close().await;
        say(&bob, "alice@localhost", "not 5").await;
        let back = bench.online("alice@localhost/phone").await;
        assert_eq!(bodies(&ask(&back, "").await.0).len(), 6);
    });
}

#[test]
fn what_waited_comes_under_the_id_of_the_archive() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", "later").await;
        let bob = bench.login_at(1, "bob@localhost/phone").await;
        let (seen, _) = ask(&bob, "").await;
        assert_eq!(bodies(&seen), ["later"]);
        bob.send("<presence/>").await;
        assert_eq!(stanza_ids(&bob.hears_stanzas()), [seen[0].0.clone()]);
        assert_eq!(bodies(&ask(&bob, "").await.0), ["later"]);
    });
}

#[test]
fn a_forged_id_is_no_id() {
    block_on(async {
        let bench = bench();
        let bob = bench.online("bob@localhost/phone").await;
        let forged = "<stanza-id xmlns='urn:xmpp:sid:0' by='bob@localhost' id='forged'/>";
        let message = format!("to='bob@localhost' type='chat'>{forged}<body>x</body>{forged}</message>");
        bench.route(&format!("<message from='eve@elsewhere.example/x' {message}")).await;
        let alice = bench.online("alice@localhost/phone").await;
        alice.send(&format!("<message {message}")).await;
        let heard = bob.hears_stanzas();
        let ids = stanza_ids(&heard);
        assert!(ids.len() == 2 && ids.iter().all(|id| id != "forged"), "{ids:?}");
    });
}

#[test]
fn what_is_too_old_or_too_much_goes_and_is_not_shown_before() {
    block_on(async {
        let mut config = ModulesConfig::all();
        config.archive.messages_max = 5;
        config.archive.days_max = 2;
        let bench = bench_with(config);
        let alice = bench.online("alice@localhost/phone").await;
        let account = BareJid::new("alice@localhost").unwrap();
        let limits = Limits { messages: 5, age: DAY * 2 };
        let count = async || {
            let partition = crate::rosters::partition(&account);
            let messages = bench.store().scan::<Archived>(&partition, Range::all()).await.unwrap().len();
            let rows = bench.store().scan::<With>(&partition, Range::all()).await.unwrap().len();
            assert_eq!(messages, rows);
            messages
        };
        for body in 0..3 {
            say(&alice, "bob@localhost", &body.to_string()).await;
        }
        bench.advance(DAY);
        for body in 3..10 {
            say(&alice, "bob@localhost", &body.to_string()).await;
        }
        let (all, _) = ask(&alice, "").await;
        assert_eq!(all.len(), 10);
        bench.advance(DAY + Duration::from_secs(1));
        assert_eq!(bodies(&ask(&alice, "").await.0), ["3", "4", "5", "6", "7", "8", "9"]);
        let (_, end) = ask(&alice, &rsm(&format!("<after>{}</after>", all[0].0))).await;
        assert!(end.contains("item-not-found"), "{end}");
        assert_eq!(count().await, 10);
        sweep::sweep(&*bench.services(), &account, limits, 16).await.unwrap();
        assert_eq!(count().await, 5);
        assert_eq!(bodies(&ask(&alice, "").await.0), ["5", "6", "7", "8", "9"]);
        // More than a step does at a time, and none twice.
        for body in 0..630 {
            say(&alice, "bob@localhost", &body.to_string()).await;
        }
        ask(&alice, "").await;
        bench.advance(Duration::from_secs(60));
        sweep::sweep(&*bench.services(), &account, limits, 16).await.unwrap();
        sweep::sweep(&*bench.services(), &account, limits, 16).await.unwrap();
        assert_eq!(count().await, 5);
        let partition = crate::rosters::partition(&account);
        let extent: Extent = bench.store().get(&partition, b"").await.unwrap().unwrap();
        assert_eq!(extent.messages, 5);
        assert_eq!(bodies(&ask(&alice, "").await.0), ["625", "626", "627", "628", "629"]);
        bench.remove_account("alice@localhost").await;
        assert_eq!(count().await, 0);
    });
}

#[test]
fn an_archive_is_counted_only_where_it_may_be_near_its_bound() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let account = BareJid::new("alice@localhost").unwrap();
        let partition = crate::rosters::partition(&account);
        for body in 0..20 {
            say(&alice, "bob@localhost", &body.to_string()).await;
        }
        ask(&alice, "").await;
        bench.advance(Duration::from_secs(60));
        let extent = async || bench.store().get::<Extent>(&partition, b"").await.unwrap();
        let limits = Limits { messages: 100, age: DAY };
        for _ in 0..3 {
            sweep::sweep(&*bench.services(), &account, limits, 16).await.unwrap();
            assert_eq!(extent().await, None);
        }
        // Now there may be twice as many as the sweeps stand for.
        sweep::sweep(&*bench.services(), &account, limits, 16).await.unwrap();
        assert_eq!(extent().await.unwrap().messages, 20);
        // What is too old goes in any case.
        bench.advance(DAY);
        sweep::sweep(&*bench.services(), &account, limits, 1).await.unwrap();
        assert_eq!(bench.store().scan::<Archived>(&partition, Range::all()).await.unwrap().len(), 0);
        assert_eq!(extent().await.unwrap().messages, 0);
    });
}

#[test]
fn a_page_is_bounded_in_messages_and_bytes() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        for at in 0..130 {
            say(&alice, "bob@localhost", &at.to_string()).await;
        }
        assert_eq!(ask(&alice, "").await.0.len(), 50);
        let (page, end) = ask(&alice, &rsm("<max>1000</max>")).await;
        assert!(page.len() == 100 && !end.contains("complete='true'"), "{end}");
        let (page, end) = ask(&alice, &rsm(&format!("<max>100</max><after>{}</after>", page[99].0))).await;
        assert!(page.len() == 30 && end.contains("complete='true'"), "{end}");
        let large = "x".repeat(60_000);
        for _ in 0..9 {
            say(&alice, "carol@localhost", &large).await;
        }
        let with = form(&[("with", "carol@localhost")]);
        let (page, end) = ask(&alice, &with).await;
        assert!(page.len() == 4 && !end.contains("complete='true'"), "{} {end}", page.len());
        let (page, _) = ask(&alice, &(with + &rsm("<before/>"))).await;
        assert_eq!(page.len(), 4);
    });
}

/// A store that fails while it is told to.
#[derive(Default)]
struct Failing {
    engine: Memory,
    fails: AtomicBool,
}

impl Failing {
    fn call<'a, T>(
        &'a self,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        match self.fails.load(Ordering::Relaxed) {
            true => Box::pin(async { Err(StoreError::Deadline) }),
            false => call,
        }
    }
}

impl Engine for Failing {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        self.call(self.engine.get(partition, table, key, deadline))
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Vec<u8>, Record)>, StoreError>> {
        self.call(self.engine.scan(partition, table, range, deadline))
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        self.call(self.engine.commit(batches, deadline))
    }
}

#[test]
fn a_store_that_fails_is_in_nobodys_way_and_gets_it_later() {
    block_on(async {
        let engine = Arc::new(Failing::default());
        let store = store::Store::new(engine.clone());
        let bench = Bench::over(store, 1, &["localhost"], || modules(&ModulesConfig::all()));
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online("bob@localhost/phone").await;
        alice.hears();
        engine.fails.store(true, Ordering::Relaxed);
        for body in ["1", "2", "3"] {
            say(&alice, "bob@localhost", body).await;
        }
        let heard = bob.hears_stanzas();
        assert_eq!((heard.len(), stanza_ids(&heard).len()), (3, 3));
        bench.wait().await;
        let (found, end) = ask(&bob, "").await;
        assert!(found.is_empty() && end.contains("type='wait'"), "{end}");
        engine.fails.store(false, Ordering::Relaxed);
        bench.wait().await;
        let partition = crate::rosters::partition(bob.view().account());
        let stored = bench.store().scan::<Archived>(&partition, Range::all()).await.unwrap();
        assert_eq!(stored.len(), 3);
        let (found, _) = ask(&bob, "").await;
        assert_eq!(found.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), stanza_ids(&heard));
        // Not for ever.
        engine.fails.store(true, Ordering::Relaxed);
        say(&alice, "bob@localhost", "lost").await;
        while bench.wait().await > 0 {}
        engine.fails.store(false, Ordering::Relaxed);
        assert_eq!(ask(&bob, "").await.0.len(), 3);
        say(&alice, "bob@localhost", "4").await;
        assert_eq!(bodies(&ask(&bob, "").await.0), ["1", "2", "3", "4"]);
    });
}

#[test]
fn who_sends_faster_than_the_store_writes_waits_for_it_and_nothing_is_left_out() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online("bob@localhost/phone").await;
        // More than may wait at a node, and nothing that waits has its turn meanwhile.
        let body = "x".repeat(120_000);
        for _ in 0..200 {
            say(&alice, "bob@localhost", &body).await;
            bob.hears();
        }
        while bench.wait().await > 0 {}
        for client in [&alice, &bob] {
            let partition = crate::rosters::partition(client.view().account());
            let stored = bench.store().scan::<Archived>(&partition, Range::all()).await.unwrap();
            assert_eq!(stored.len(), 200);
        }
    });
}

/// What this thread has cost so far, whatever else the machine does; nothing where the system does not tell.
fn cpu() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = told.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or_default())
}

/// Prints what archiving costs: `cargo test --release -p xeps --lib -- --nocapture archiving_costs`.
#[test]
fn archiving_costs_no_read_of_the_store_and_few_commits() {
    block_on(async {
        const ROUNDS: u32 = if cfg!(debug_assertions) { 100 } else { 20_000 };
        let text = "It is the east, and Juliet is the sun. ".repeat(3);
        let line = format!("<message to='bob@localhost/phone' type='chat'><body>{text}</body></message>");
        let mut spent = Vec::new();
        for archives in [false, true] {
            let config = if archives { ModulesConfig::all() } else { ModulesConfig::default() };
            let bench = Bench::new(&["localhost"], || modules(&config));
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online("bob@localhost/phone").await;
            alice.send(&line).await;
            let facts = || {
                let facts = bench.store().facts().snapshot();
                (facts.get.count + facts.scan.count, facts.commit.count)
            };
            bench.wait().await;
            let before = facts();
            let start = cpu();
            for round in 0..ROUNDS {
                alice.send(&line).await;
                if round % 64 == 63 {
                    bench.wait().await;
                    bob.hears_stanzas();
                }
            }
            spent.push(cpu().saturating_sub(start) / ROUNDS);
            let after = facts();
            assert!(after.0 - before.0 <= 100 + u64::from(ROUNDS / 8), "only a sweep reads");
            assert!(after.1 - before.1 <= u64::from(ROUNDS / 16), "{before:?} {after:?}");
        }
        println!("a message, without and with two archives: {spent:?}");
    });
}

#[test]
fn who_is_bound_with_the_login_learns_how_far_the_archive_goes() {
    block_on(async {
        let bench = bench();
        let bob = bench.login("bob@localhost/desk").await;
        let told = async |client: &Client| {
            let told = bench.registry().bind(client.view(), &[], &bench.services()).await;
            told.iter().map(String::from).collect::<String>()
        };
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(told(&alice).await, "<metadata xmlns='urn:xmpp:mam:2'/>");
        say(&bob, "alice@localhost", "one").await;
        say(&bob, "alice@localhost", "two").await;
        let (results, _) = ask(&alice, "").await;
        let all = told(&alice).await;
        let [start, end] = ["start", "end"].map(|name| all.split(&format!("<{name} ")).nth(1).unwrap());
        assert!(start.contains(&results[0].0) && end.contains(&results[1].0), "{all}");
        let guest = bench.login_anonymously("guest@localhost/x").await;
        assert_eq!(told(&guest).await, "");
    });
}

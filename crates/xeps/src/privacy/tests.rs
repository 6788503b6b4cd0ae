//! Privacy lists, against a whole server in memory, and against a cluster of them.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::Stanza;

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn cluster(nodes: usize) -> Bench {
    bench_with(nodes, ModulesConfig::default())
}

fn bench_with(nodes: usize, config: ModulesConfig) -> Bench {
    Bench::cluster(nodes, &["localhost"], move || modules(&config))
}

fn query(kind: &str, child: &str) -> String {
    format!("<iq type='{kind}' id='q'><query xmlns='jabber:iq:privacy'>{child}</query></iq>")
}

fn list(name: &str, items: &str) -> String {
    query("set", &format!("<list name='{name}'>{items}</list>"))
}

const DENY_ALL: &str = "<item action='deny' order='1'/>";

fn deny(who: &str, kinds: &str) -> String {
    let who = match who.split_once(':') {
        Some((kind, value)) => format!("type='{kind}' value='{value}'"),
        None => String::new(),
    };
    format!("<item {who} action='deny' order='1'>{kinds}</item>")
}

/// What was heard, in short: kind, type, sender, condition; of privacy lists what they say.
fn line(stanza: &Stanza) -> String {
    let head = &stanza.head;
    let mut words = vec![head.kind.tag().to_owned(), head.type_.as_deref().unwrap_or("-").to_owned()];
    words.extend(head.from.as_ref().map(|from| from.to_string()));
    words.extend(stanza.as_error().map(|error| error.condition.tag().to_owned()));
    if let Some(query) =
        stanza.payload().filter(|payload| payload.has_ns(NS) && head.type_.as_deref() != Some("error"))
    {
        words.extend(query.children().map(|child| {
            let items = child.children().map(|item| item.attr("order").unwrap_or_default());
            let items = items.collect::<Vec<_>>().join(",");
            format!("{}:{}:{items}", child.name(), child.attr("name").unwrap_or_default())
        }));
    }
    words.join(" ")
}

fn short(client: &Client) -> Vec<String> {
    let mut heard: Vec<String> = client.hears_stanzas().iter().map(line).collect();
    heard.sort();
    heard
}

async fn answer(client: &Client, xml: &str) -> String {
    client.hears();
    client.send(xml).await;
    short(client).join("; ")
}

/// Makes a list and uses it, by this session alone or by default.
async fn uses(client: &Client, how: &str, items: &str) {
    client.send(&list("l", items)).await;
    client.send(&query("set", &format!("<{how} name='l'/>"))).await;
    let heard = client.hears();
    assert!(heard.iter().all(|xml| !xml.contains("error")), "{heard:?}");
}

#[test]
fn lists_are_made_read_changed_and_removed() {
    block_on(async {
        let bench = cluster(1);
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(answer(&alice, &query("get", "")).await, "iq result");
        let items = "<item type='jid' value='Bob@Localhost' action='deny' order='7'><iq/><message/></item>\
                     <item type='subscription' value='both' action='allow' order='3'/>";
        assert_eq!(answer(&alice, &list("a", items)).await, "iq result; iq set alice@localhost list:a:");
        alice.send(&query("get", "<list name='a'/>")).await;
        assert_eq!(
            alice.hears(),
            ["<iq to='alice@localhost/phone' id='q' type='result'><query xmlns='jabber:iq:privacy'>\
              <list name='a'><item action='allow' order='3' type='subscription' value='both'/>\
              <item action='deny' order='7' type='jid' value='bob@localhost'><message/><iq/></item>\
              </list></query></iq>"]
        );
        alice.send(&list("b", DENY_ALL)).await;
        alice.send(&query("set", "<default name='a'/>")).await;
        alice.send(&query("set", "<active name='b'/>")).await;
        let names = query("get", "");
        assert_eq!(answer(&alice, &names).await, "iq result active:b: default:a: list:a: list:b:");
        alice.send(&list("a", DENY_ALL)).await;
        assert_eq!(answer(&alice, &query("get", "<list name='a'/>")).await, "iq result list:a:1");
        alice.send(&list("b", "")).await;
        assert_eq!(answer(&alice, &names).await, "iq result default:a: list:a:");
        alice.send(&query("set", "<default/>")).await;
        assert_eq!(answer(&alice, &list("a", "")).await, "iq result");
        assert_eq!(answer(&alice, &names).await, "iq result");
    });
}

#[test]
fn what_is_no_request_is_refused_as_the_xep_says() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.privacy.items_max = 2;
        config.privacy.lists_max = 2;
        config.privacy.bytes_max = 400;
        let bench = bench_with(1, config);
        let (alice, _bob) = friends(&bench).await;
        let item = |attributes: &str| list("a", &format!("<item {attributes}/>"));
        let long = "x".repeat(401);
        let cases = [
            (query("get", "<list name='none'/>"), "item-not-found"),
            (query("get", "<list name='a'/><list name='b'/>"), "bad-request"),
            (query("get", "<list/>"), "bad-request"),
            (query("get", "<active/>"), "bad-request"),
            (query("set", ""), "bad-request"),
            (query("set", "<active/><default/>"), "bad-request"),
            (query("set", "<other/>"), "bad-request"),
            (query("set", "<active xmlns='urn:x'/>"), "bad-request"),
            (query("set", "<active name='none'/>"), "item-not-found"),
            (query("set", "<default name='none'/>"), "item-not-found"),
            (list("none", ""), "item-not-found"),
            (list("", DENY_ALL), "bad-request"),
            (list("a", &format!("{DENY_ALL}{DENY_ALL}")), "bad-request"),
            (list("a", "<other/>"), "bad-request"),
            (item("action='deny'"), "bad-request"),
            (item("action='deny' order='-1'"), "bad-request"),
            (item("action='deny' order='+1'"), "bad-request"),
            (item("action='deny' order='4294967296'"), "bad-request"),
            (item("action='deny' order='x'"), "bad-request"),
            (item("order='1'"), "bad-request"),
            (item("action='block' order='1'"), "bad-request"),
            (item("type='jid' action='deny' order='1'"), "bad-request"),
            (item("type='jid' value='@' action='deny' order='1'"), "bad-request"),
            (item("type='other' value='a' action='deny' order='1'"), "bad-request"),
            (item("type='subscription' value='remove' action='deny' order='1'"), "bad-request"),
            (item("type='group' value='' action='deny' order='1'"), "bad-request"),
            (item("type='group' value='Nobody' action='deny' order='1'"), "item-not-found"),
            (list("a", &deny("", "<presence/>")), "bad-request"),
            (
                list(
                    "a",
                    "<item action='deny' order='1'/><item action='deny' order='2'/><item action='deny' order='3'/>",
                ),
                "resource-constraint",
            ),
            (list(&long, DENY_ALL), "resource-constraint"),
        ];
        for (xml, condition) in cases {
            assert_eq!(answer(&alice, &xml).await, format!("iq error {condition}"), "{xml}");
        }
        assert_eq!(answer(&alice, &query("get", "")).await, "iq result");
        alice.send(&list("a", DENY_ALL)).await;
        alice.send(&list("b", DENY_ALL)).await;
        assert_eq!(answer(&alice, &list("c", DENY_ALL)).await, "iq error resource-constraint");
        let bobs = query("get", "").replace("<iq ", "<iq to='bob@localhost' ");
        assert_eq!(answer(&alice, &bobs).await, "iq error bob@localhost forbidden");
    });
}

/// At whatever node the other session is; one that has gone uses nothing.
#[test]
fn a_list_that_others_use_is_not_taken_from_them() {
    block_on(async {
        let bench = cluster(3);
        let phone = bench.login_at(0, "alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        phone.send(&list("a", DENY_ALL)).await;
        phone.send(&list("b", DENY_ALL)).await;
        desk.send(&query("set", "<active name='a'/>")).await;
        assert_eq!(answer(&phone, &list("a", "")).await, "iq error conflict");
        assert_eq!(answer(&phone, &query("set", "<default name='b'/>")).await, "iq result");
        // It has a list of its own, so that the default does not matter to it.
        assert_eq!(answer(&phone, &query("set", "<default/>")).await, "iq result");
        assert_eq!(answer(&phone, &query("set", "<default name='b'/>")).await, "iq result");
        assert_eq!(answer(&desk, &query("set", "<active/>")).await, "iq result");
        for xml in [query("set", "<default name='a'/>"), query("set", "<default/>"), list("b", "")] {
            assert_eq!(answer(&phone, &xml).await, "iq error conflict", "{xml}");
        }
        assert_eq!(answer(&phone, &query("set", "<default name='b'/>")).await, "iq result");
        desk.close().await;
        assert_eq!(answer(&phone, &list("b", "")).await, "iq result");
        assert_eq!(answer(&phone, &list("a", "")).await, "iq result");
    });
}

#[test]
fn an_active_list_ends_with_its_session() {
    block_on(async {
        let bench = cluster(2);
        let alice = bench.online_at(0, "alice@localhost/phone").await;
        let eve = bench.online_at(1, "eve@localhost/phone").await;
        uses(&alice, "active", DENY_ALL).await;
        let hello = "<message to='alice@localhost/phone'><body>a</body></message>";
        assert_eq!(answer(&eve, hello).await, "message error alice@localhost/phone service-unavailable");
        alice.close().await;
        let alice = bench.online_at(1, "alice@localhost/phone").await;
        alice.hears();
        assert_eq!(answer(&eve, hello).await, "");
        assert_eq!(short(&alice), ["message - eve@localhost/phone"]);
        assert_eq!(answer(&alice, &query("get", "")).await, "iq result list:l:");
    });
}

#[test]
fn what_is_denied_hears_what_the_xep_says() {
    block_on(async {
        let stanzas = [
            (
                "<message to='alice@localhost'><body>a</body></message>",
                "message error alice@localhost service-unavailable",
            ),
            (
                "<message to='alice@localhost/phone' type='chat'/>",
                "message error alice@localhost/phone service-unavailable",
            ),
            ("<message to='alice@localhost/phone' type='error'/>", ""),
            (
                "<iq to='alice@localhost' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
                "iq error alice@localhost service-unavailable",
            ),
            (
                "<iq to='alice@localhost/phone' type='set' id='3'><a xmlns='urn:a'/></iq>",
                "iq error alice@localhost/phone service-unavailable",
            ),
            ("<iq to='alice@localhost/phone' type='result' id='4'/>", ""),
            ("<presence to='alice@localhost/phone'/>", ""),
            ("<presence to='alice@localhost' type='probe'/>", ""),
            ("<presence to='alice@localhost' type='subscribe'/>", ""),
        ];
        for how in ["active", "default"] {
            let bench = cluster(2);
            let (alice, bob) = friends(&bench).await;
            uses(&alice, how, DENY_ALL).await;
            assert_eq!(short(&bob), ["presence unavailable alice@localhost/phone"]);
            for (xml, heard) in stanzas {
                // The default list speaks for the account, and the active one for its session.
                if how == "active" && xml.contains("<iq to='alice@localhost' ") {
                    continue;
                }
                assert_eq!(answer(&bob, xml).await, heard, "{how}: {xml}");
            }
            assert!(alice.hears().is_empty(), "{how}");
            for xml in ["<message to='bob@localhost'/>", "<presence to='bob@localhost/phone'/>"] {
                assert!(answer(&alice, xml).await.ends_with("not-acceptable"), "{how}: {xml}");
            }
            assert_eq!(
                answer(&alice, "<presence><show>away</show></presence>").await,
                "presence - alice@localhost/phone"
            );
            assert!(bob.hears().is_empty());
            // Its own account and its host are never locked out.
            let ping =
                |to: &str| format!("<iq to='{to}' type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>");
            assert_eq!(answer(&alice, &ping("localhost")).await, "iq result localhost");
            let desk = bench.online_at(1, "alice@localhost/desk").await;
            alice.send("<presence/>").await;
            assert_eq!(short(&desk), ["presence - alice@localhost/phone"], "{how}");
            assert_eq!(answer(&desk, "<message to='alice@localhost/phone'/>").await, "");
            assert!(short(&alice).contains(&"message - alice@localhost/desk".to_owned()));
        }
    });
}

#[test]
fn rules_for_a_kind_leave_the_others_alone() {
    block_on(async {
        let bench = cluster(1);
        let (alice, bob) = friends(&bench).await;
        bob.send(
            "<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='x@localhost'/></query></iq>",
        )
        .await;
        alice
            .send("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='bob@localhost'><group>Work</group></item></query></iq>")
            .await;
        alice.hears();
        for who in ["jid:bob@localhost", "jid:localhost", "group:Work", "subscription:both", ""] {
            for kind in ["message", "iq", "presence-in", "presence-out"] {
                let case = format!("{who} {kind}");
                uses(&alice, "active", &deny(who, &format!("<{kind}/>"))).await;
                bob.hears();
                let heard = answer(&bob, "<message to='alice@localhost'><body>a</body></message>").await;
                assert_eq!(heard.contains("service-unavailable"), kind == "message", "{case}");
                let heard =
                    answer(&bob, "<iq to='alice@localhost/phone' type='get' id='1'><a xmlns='urn:a'/></iq>")
                        .await;
                assert_eq!(heard.contains("service-unavailable"), kind == "iq", "{case}");
                bob.send("<presence><show>dnd</show></presence>").await;
                let heard = short(&alice).join(";");
                assert_eq!(heard.contains("presence - bob"), kind != "presence-in", "{case}: {heard}");
                bob.hears();
                alice.send("<presence><show>xa</show></presence>").await;
                assert_eq!(short(&bob).is_empty(), kind == "presence-out", "{case}");
                let heard = answer(&bob, "<presence to='alice@localhost' type='probe'/>").await;
                assert_eq!(heard.contains("presence - alice"), kind != "presence-out", "{case}: {heard}");
                alice.send(&query("set", "<active/>")).await;
                alice.hears();
            }
        }
    });
}

/// Contacts see the session go and come with the rules, and it sees them.
#[test]
fn presence_follows_the_rules() {
    block_on(async {
        let bench = cluster(3);
        let (alice, bob) = friends(&bench).await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        desk.hears();
        bob.hears();
        alice.hears();
        uses(&alice, "active", &deny("jid:bob@localhost", "<presence-out/>")).await;
        assert_eq!(short(&bob), ["presence unavailable alice@localhost/phone"]);
        alice.send("<presence type='unavailable'/>").await;
        alice.send("<presence/>").await;
        assert!(bob.hears().is_empty());
        alice.send(&query("set", "<active/>")).await;
        assert_eq!(short(&bob), ["presence - alice@localhost/phone"]);
        alice.hears();
        desk.hears();
        uses(&alice, "active", &deny("", "<presence-in/>")).await;
        bob.hears();
        alice.hears();
        bob.send("<presence><show>dnd</show></presence>").await;
        assert!(alice.hears().is_empty());
        assert_eq!(short(&desk), ["iq set alice@localhost list:l:", "presence - bob@localhost/phone"]);
        alice.send(&query("set", "<active/>")).await;
        assert!(short(&alice).contains(&"presence - bob@localhost/phone".to_owned()));
        alice.send(&query("set", "<active name='l'/>")).await;
        assert!(short(&alice).contains(&"presence unavailable bob@localhost/phone".to_owned()));
    });
}

/// What another node has cached is forgotten before the change is answered.
#[test]
fn a_change_holds_at_every_node() {
    block_on(async {
        let bench = cluster(3);
        let phone = bench.online_at(0, "alice@localhost/phone").await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        let eve = bench.online_at(2, "eve@localhost/phone").await;
        let hello = "<message to='alice@localhost/desk' type='chat'><body>a</body></message>";
        phone.hears();
        desk.hears();
        phone.send(&list("l", "<item action='allow' order='1'/>")).await;
        assert_eq!(short(&desk), ["iq set alice@localhost list:l:"]);
        phone.send(&query("set", "<default name='l'/>")).await;
        eve.send(hello).await;
        assert_eq!(short(&desk), ["message chat eve@localhost/phone"]);
        phone.hears();
        phone.send(&list("l", DENY_ALL)).await;
        assert_eq!(short(&phone), ["iq result", "iq set alice@localhost list:l:"]);
        assert!(answer(&eve, hello).await.ends_with("service-unavailable"));
        assert!(short(&desk) == ["iq set alice@localhost list:l:"]);
        assert!(answer(&desk, "<message to='eve@localhost'/>").await.ends_with("not-acceptable"));
    });
}

#[test]
fn what_came_for_the_account_goes_to_the_sessions_that_let_it() {
    block_on(async {
        let bench = cluster(1);
        let phone = bench.online("alice@localhost/phone").await;
        let desk = bench.online("alice@localhost/desk").await;
        let eve = bench.online("eve@localhost/phone").await;
        uses(&phone, "active", DENY_ALL).await;
        phone.hears();
        desk.hears();
        let hello = "<message to='alice@localhost' type='headline'><body>a</body></message>";
        assert_eq!(answer(&eve, hello).await, "");
        assert_eq!(short(&desk), ["message headline eve@localhost/phone"]);
        assert!(phone.hears().is_empty());
        desk.send(&query("set", "<active name='l'/>")).await;
        assert!(answer(&eve, hello).await.ends_with("service-unavailable"));
    });
}

/// What either denies does not pass.
#[test]
fn block_lists_are_kept_apart_and_held_to_as_well() {
    block_on(async {
        let bench = cluster(1);
        let (alice, bob) = friends(&bench).await;
        uses(&alice, "default", "<item action='allow' order='1'/>").await;
        alice.send("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='bob@localhost'/></block></iq>").await;
        assert!(answer(&bob, "<message to='alice@localhost'/>").await.contains("service-unavailable"));
        assert_eq!(answer(&alice, &query("get", "<list name='l'/>")).await, "iq result list:l:1");
        alice.send(&query("set", "<default/>")).await;
        uses(&alice, "default", &deny("jid:bob@localhost", "<presence-out/>")).await;
        bob.hears();
        alice.send("<iq type='set' id='b'><unblock xmlns='urn:xmpp:blocking'/></iq>").await;
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn lists_are_erased_with_the_account() {
    block_on(async {
        let bench = cluster(1);
        let alice = bench.login("alice@localhost/phone").await;
        uses(&alice, "default", DENY_ALL).await;
        alice.close().await;
        bench.remove_account("alice@localhost").await;
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(answer(&alice, &query("get", "")).await, "iq result");
    });
}

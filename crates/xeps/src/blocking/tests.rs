//! Blocking, against a whole server in memory, and against a cluster of them.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::Stanza;

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench() -> Bench {
    cluster(1, ModulesConfig::default())
}

fn cluster(nodes: usize, config: ModulesConfig) -> Bench {
    Bench::cluster(nodes, &["localhost"], move || modules(&config))
}

const GET: &str = "<iq type='get' id='g'><blocklist xmlns='urn:xmpp:blocking'/></iq>";

fn set(how: &str, jids: &[&str]) -> String {
    let items: String = jids.iter().map(|jid| format!("<item jid='{jid}'/>")).collect();
    format!("<iq type='set' id='s'><{how} xmlns='urn:xmpp:blocking'>{items}</{how}></iq>")
}

/// What was heard, in short: kind, type, sender, condition; of pushes and lists their items.
fn short(client: &Client) -> Vec<String> {
    client.hears_stanzas().iter().map(line).collect()
}

fn line(stanza: &Stanza) -> String {
    let head = &stanza.head;
    let mut words = vec![head.kind.tag().to_owned(), head.type_.as_deref().unwrap_or("-").to_owned()];
    words.extend(head.from.as_ref().map(|from| from.to_string()));
    words.extend(stanza.as_error().map(|error| error.condition.tag().to_owned()));
    if let Some(payload) = stanza.payload().filter(|payload| payload.has_ns(NS)) {
        let items = payload.children().filter_map(|item| item.attr("jid"));
        words.extend([payload.name()].into_iter().chain(items).map(str::to_owned));
    }
    words.join(" ")
}

async fn list_of(client: &Client) -> Vec<String> {
    client.hears();
    client.send(GET).await;
    let heard = client.hears_stanzas();
    let list = heard[0].child("blocklist", NS).expect("a list");
    list.children().map(|item| item.attr("jid").unwrap().to_owned()).collect()
}

/// What the client hears of one request.
async fn answer(client: &Client, xml: &str) -> String {
    client.hears();
    client.send(xml).await;
    short(client).join("; ")
}

#[test]
fn a_list_is_empty_then_has_what_was_blocked_then_what_was_not_unblocked() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        assert!(list_of(&alice).await.is_empty());
        alice.send(&set("block", &["Bob@Localhost", "eve@other.example/x", "bob@localhost"])).await;
        alice.send(&set("block", &["spam.example"])).await;
        assert_eq!(list_of(&alice).await, ["bob@localhost", "eve@other.example/x", "spam.example"]);
        alice.send(&set("unblock", &["eve@other.example/x", "never@blocked"])).await;
        assert_eq!(list_of(&alice).await, ["bob@localhost", "spam.example"]);
        alice.send(&set("unblock", &[])).await;
        assert!(list_of(&alice).await.is_empty());
    });
}

#[test]
fn what_is_no_request_is_refused_and_changes_nothing() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        let cases = [
            (set("block", &[]), "bad-request"),
            (set("block", &["bob@localhost", "@"]), "jid-malformed"),
            (set("unblock", &["a@b@c"]), "jid-malformed"),
            (set("block", &["bob@localhost"]).replace("<item jid=", "<item name="), "bad-request"),
            (set("block", &["bob@localhost"]).replace("<item ", "<item xmlns='urn:x' "), "bad-request"),
            (set("blocklist", &["bob@localhost"]), "bad-request"),
            (GET.replace("blocklist", "block"), "bad-request"),
            (GET.replace("blocklist", "other"), "bad-request"),
        ];
        for (xml, condition) in cases {
            let heard = answer(&alice, &xml).await;
            assert_eq!(heard.replace("iq error ", ""), condition, "{xml}");
        }
        assert!(list_of(&alice).await.is_empty());
    });
}

#[test]
fn the_list_of_another_is_nobodys_to_see_or_change() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        for xml in [GET.to_owned(), set("block", &["eve@localhost"]), set("unblock", &[])] {
            let to_bob = xml.replace("<iq ", "<iq to='bob@localhost' ");
            assert!(answer(&alice, &to_bob).await.starts_with("iq error bob@localhost forbidden"));
        }
        let eve = bench.login("eve@localhost/phone").await;
        let to_bob = GET.replace("<iq ", "<iq to='bob@localhost' ");
        assert!(answer(&eve, &to_bob).await.starts_with("iq error bob@localhost service-unavailable"));
        assert!(list_of(&bob).await.is_empty());
    });
}

#[test]
fn a_list_has_a_bound() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.blocking.items_max = 2;
        let bench = cluster(1, config);
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("block", &["a@x", "b@x"])).await;
        assert!(answer(&alice, &set("block", &["c@x"])).await.starts_with("iq error resource-constraint"));
        assert_eq!(answer(&alice, &set("block", &["a@x"])).await, "iq result");
        alice.send(&set("unblock", &["a@x"])).await;
        assert_eq!(answer(&alice, &set("block", &["c@x"])).await, "iq result");
        assert_eq!(list_of(&alice).await, ["b@x", "c@x"]);
    });
}

#[test]
fn who_asked_for_the_list_hears_of_changes_and_nobody_else_does() {
    block_on(async {
        let bench = cluster(3, ModulesConfig::default());
        let phone = bench.login_at(0, "alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        let idle = bench.login_at(2, "alice@localhost/idle").await;
        let bob = bench.login_at(2, "bob@localhost/phone").await;
        list_of(&phone).await;
        list_of(&desk).await;
        list_of(&bob).await;
        phone.send(&set("block", &["bob@localhost", "eve@localhost"])).await;
        let push = "iq set alice@localhost block bob@localhost eve@localhost";
        assert_eq!(short(&phone), [push, "iq result"]);
        assert_eq!(short(&desk), [push]);
        desk.send(&set("unblock", &["eve@localhost"])).await;
        let push = "iq set alice@localhost unblock eve@localhost";
        assert_eq!(short(&desk), [push, "iq result"]);
        assert_eq!(short(&phone), [push]);
        idle.send(&set("unblock", &[])).await;
        assert_eq!(short(&idle), ["iq result"]);
        assert_eq!(short(&desk), ["iq set alice@localhost unblock"]);
        assert_eq!(short(&phone), ["iq set alice@localhost unblock"]);
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn nothing_leaves_for_who_is_blocked() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send(&set("block", &["bob@localhost"])).await;
        bob.hears();
        alice.hears();
        alice.send("<message to='bob@localhost' id='1' type='chat'><body>a</body></message>").await;
        assert_eq!(
            alice.hears(),
            ["<message to='alice@localhost/phone' from='bob@localhost' id='1' type='error'>\
              <error type='cancel'><not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
              <blocked xmlns='urn:xmpp:blocking:errors'/></error></message>"]
        );
        for xml in [
            "<message to='bob@localhost/phone'><body>a</body></message>",
            "<message to='bob@localhost/phone' type='headline'><body>a</body></message>",
            "<iq to='bob@localhost' type='get' id='2'><ping xmlns='urn:xmpp:ping'/></iq>",
            "<iq to='bob@localhost/phone' type='set' id='3'><a xmlns='urn:a'/></iq>",
            "<presence to='bob@localhost'/>",
            "<presence to='bob@localhost/phone' type='unavailable'/>",
            "<presence to='bob@localhost' type='subscribe'/>",
            "<presence to='bob@localhost' type='unsubscribed'/>",
            "<presence to='bob@localhost' type='probe'/>",
        ] {
            let heard = answer(&alice, xml).await;
            assert!(heard.contains("not-acceptable"), "{xml}: {heard}");
        }
        // What is never answered is not answered here either.
        alice.send("<message to='bob@localhost/phone' type='error'/>").await;
        alice.send("<iq to='bob@localhost/phone' type='result' id='4'/>").await;
        assert!(alice.hears().is_empty());
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn nothing_comes_from_who_is_blocked() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send(&set("block", &["bob@localhost"])).await;
        alice.hears();
        bob.hears();
        for (xml, heard) in [
            (
                "<message to='alice@localhost'><body>a</body></message>",
                "message error alice@localhost service-unavailable",
            ),
            (
                "<message to='alice@localhost/phone' type='chat'/>",
                "message error alice@localhost/phone service-unavailable",
            ),
            (
                "<message to='alice@localhost' type='headline'/>",
                "message error alice@localhost service-unavailable",
            ),
            ("<message to='alice@localhost' type='error'/>", ""),
            (
                "<iq to='alice@localhost' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
                "iq error alice@localhost service-unavailable",
            ),
            (
                "<iq to='alice@localhost/phone' type='get' id='2'><a xmlns='urn:a'/></iq>",
                "iq error alice@localhost/phone service-unavailable",
            ),
            (
                "<iq to='alice@localhost/phone' type='set' id='3'><a xmlns='urn:a'/></iq>",
                "iq error alice@localhost/phone service-unavailable",
            ),
            ("<iq to='alice@localhost/phone' type='result' id='4'/>", ""),
            ("<presence to='alice@localhost'/>", ""),
            ("<presence to='alice@localhost/phone' type='unavailable'/>", ""),
            ("<presence to='alice@localhost' type='probe'/>", ""),
            ("<presence to='alice@localhost' type='subscribe'/>", ""),
            ("<presence><show>away</show></presence>", "presence - bob@localhost/phone"),
        ] {
            assert_eq!(answer(&bob, xml).await, heard, "{xml}");
        }
        assert!(alice.hears().is_empty());
        alice.send(&set("unblock", &["bob@localhost"])).await;
        assert_eq!(short(&alice), ["presence - bob@localhost/phone", "iq result"]);
        bob.send("<message to='alice@localhost'><body>a</body></message>").await;
        assert_eq!(short(&alice), ["message - bob@localhost/phone"]);
    });
}

/// The contacts of a session see it go when they are blocked, hear nothing of it meanwhile, and see it come back: each
/// session, at whatever node.
#[test]
fn who_is_blocked_sees_every_session_go_and_come_back() {
    block_on(async {
        let bench = cluster(3, ModulesConfig::default());
        let (phone, bob) = friends(&bench).await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        let tv = bench.online_at(2, "alice@localhost/tv").await;
        bob.hears();
        phone.send(&set("block", &["bob@localhost"])).await;
        let mut heard = short(&bob);
        heard.sort();
        let gone = ["desk", "phone", "tv"].map(|name| format!("presence unavailable alice@localhost/{name}"));
        assert_eq!(heard, gone);
        desk.send("<presence><show>away</show></presence>").await;
        let laptop = bench.online_at(2, "alice@localhost/laptop").await;
        tv.close().await;
        assert!(bob.hears().is_empty());
        let bobs = bench.online_at(1, "bob@localhost/desk").await;
        assert!(bobs.hears().is_empty());
        bob.hears();
        for client in [&phone, &desk, &laptop] {
            client.hears();
        }
        desk.send(&set("unblock", &[])).await;
        for client in [&bob, &bobs] {
            let mut heard = short(client);
            heard.sort();
            let back = ["desk", "laptop", "phone"].map(|name| format!("presence - alice@localhost/{name}"));
            assert_eq!(heard, back);
        }
        for client in [&phone, &laptop] {
            let mut heard = short(client);
            heard.sort();
            assert_eq!(heard, ["presence - bob@localhost/desk", "presence - bob@localhost/phone"]);
        }
    });
}

#[test]
fn directed_presence_ends_with_the_block() {
    block_on(async {
        let bench = cluster(2, ModulesConfig::default());
        let phone = bench.login_at(0, "alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        let eve = bench.login("eve@localhost/phone").await;
        desk.send("<presence to='eve@localhost/phone'/>").await;
        assert_eq!(short(&eve), ["presence - alice@localhost/desk"]);
        phone.send(&set("block", &["localhost"])).await;
        assert_eq!(short(&eve), ["presence unavailable alice@localhost/desk"]);
        phone.send(&set("unblock", &[])).await;
        desk.close().await;
        assert!(eve.hears().is_empty());
    });
}

/// What another node has cached is forgotten before the block is answered.
#[test]
fn a_session_at_another_node_is_not_reached_either() {
    block_on(async {
        let bench = cluster(3, ModulesConfig::default());
        let phone = bench.online_at(0, "alice@localhost/phone").await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        let eve = bench.online_at(2, "eve@localhost/phone").await;
        let hello = "<message to='alice@localhost/desk' type='chat'><body>a</body></message>";
        eve.send(hello).await;
        assert_eq!(short(&desk), ["message chat eve@localhost/phone"]);
        phone.send(&set("block", &["eve@localhost"])).await;
        eve.send(hello).await;
        assert!(desk.hears().is_empty());
        assert!(answer(&desk, "<message to='eve@localhost'/>").await.contains("not-acceptable"));
        phone.send(&set("unblock", &["eve@localhost"])).await;
        eve.send(hello).await;
        assert_eq!(short(&desk), ["message chat eve@localhost/phone"]);
    });
}

#[test]
fn own_resources_and_the_host_answer_whatever_is_blocked() {
    block_on(async {
        let bench = bench();
        let phone = bench.online("alice@localhost/phone").await;
        let desk = bench.online("alice@localhost/desk").await;
        phone.send(&set("block", &["localhost", "alice@localhost", "alice@localhost/desk"])).await;
        phone.hears();
        desk.send("<message to='alice@localhost/phone'><body>a</body></message>").await;
        assert_eq!(short(&phone), ["message - alice@localhost/desk"]);
        let ping = "<iq to='localhost' type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>";
        assert_eq!(answer(&phone, ping).await, "iq result localhost");
        phone.send("<presence><show>away</show></presence>").await;
        assert_eq!(short(&desk), ["presence - alice@localhost/phone"]);
    });
}

#[test]
fn a_blocked_stranger_hears_what_they_would_of_an_account_that_is_not_there() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        alice.send(&set("block", &["eve@localhost"])).await;
        alice.hears();
        let refused = |kind: &str, to: &str| format!("{kind} error {to} service-unavailable");
        let to = "alice@localhost";
        let cases = [
            ("<message to='ACCOUNT' type='chat'><body>a</body></message>", String::new()),
            ("<message to='ACCOUNT'><body>a</body></message>", String::new()),
            ("<message to='ACCOUNT' type='headline'/>", String::new()),
            ("<message to='ACCOUNT/x' type='chat'/>", String::new()),
            ("<presence to='ACCOUNT' type='probe'/>", String::new()),
            ("<presence to='ACCOUNT' type='subscribe'/>", String::new()),
            ("<presence to='ACCOUNT'/>", String::new()),
            ("<message to='ACCOUNT' type='groupchat'/>", refused("message", to)),
            ("<message to='ACCOUNT/phone'/>", refused("message", "alice@localhost/phone")),
            ("<message to='ACCOUNT/phone' type='headline'/>", refused("message", "alice@localhost/phone")),
            ("<iq to='ACCOUNT' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", refused("iq", to)),
            (
                "<iq to='ACCOUNT/phone' type='set' id='1'><a xmlns='urn:a'/></iq>",
                refused("iq", "alice@localhost/phone"),
            ),
        ];
        for (xml, expected) in cases {
            assert_eq!(answer(&eve, &xml.replace("ACCOUNT", to)).await, expected, "{xml}");
        }
        assert!(alice.hears().is_empty());
        let mut config = ModulesConfig::default();
        config.blocking.strangers_unanswered = false;
        let bench = cluster(1, config);
        let alice = bench.online("alice@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        alice.send(&set("block", &["eve@localhost"])).await;
        let heard = answer(&eve, "<message to='alice@localhost' type='chat'><body>a</body></message>").await;
        assert_eq!(heard, "message error alice@localhost service-unavailable");
    });
}

#[test]
fn messages_of_the_blocked_are_not_kept_for_who_is_away() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("block", &["eve@localhost"])).await;
        alice.close().await;
        let eve = bench.online("eve@localhost/phone").await;
        eve.send("<message to='alice@localhost' type='chat'><body>a</body></message>").await;
        eve.send("<presence to='alice@localhost' type='subscribe'/>").await;
        let alice = bench.login("alice@localhost/phone").await;
        alice.send("<presence/>").await;
        assert_eq!(short(&alice), ["presence - alice@localhost/phone"]);
    });
}

#[test]
fn a_request_that_waits_is_not_shown_while_its_sender_is_blocked() {
    block_on(async {
        let bench = bench();
        bench.account("alice@localhost");
        let eve = bench.online("eve@localhost/phone").await;
        eve.send("<presence to='alice@localhost' type='subscribe'/>").await;
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("block", &["eve@localhost"])).await;
        alice.hears();
        alice.send("<presence/>").await;
        assert_eq!(short(&alice), ["presence - alice@localhost/phone"]);
        alice.send(&set("unblock", &[])).await;
        alice.close().await;
        let alice = bench.login("alice@localhost/phone").await;
        alice.send("<presence/>").await;
        let mut heard = short(&alice);
        heard.sort();
        assert_eq!(heard, ["presence - alice@localhost/phone", "presence subscribe eve@localhost"]);
    });
}

#[test]
fn a_removed_account_blocks_nobody_when_it_is_made_anew() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("block", &["eve@localhost"])).await;
        bench.remove_account("alice@localhost").await;
        let alice = bench.login("alice@localhost/phone").await;
        assert!(list_of(&alice).await.is_empty());
    });
}

/// A list that is not cached is read once, and no stanza after that costs a read.
#[test]
fn no_stanza_costs_a_read() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let hello = "<message to='alice@localhost' type='chat'><body>a</body></message>";
        bob.send(hello).await;
        let reads = || bench.store().facts().snapshot().reads;
        let before = reads();
        for _ in 0..10 {
            bob.send(hello).await;
            alice.send("<message to='bob@localhost' type='chat'><body>a</body></message>").await;
        }
        assert_eq!(reads(), before);
    });
}

/// A node that does not confirm is asked about, and the answer comes when its session is gone, or at the bound.
#[test]
fn a_session_that_goes_before_it_confirms_does_not_keep_the_answer() {
    block_on(async {
        // The second node has no module that would confirm.
        let nodes = std::sync::atomic::AtomicUsize::new(0);
        let bench = Bench::cluster(2, &["localhost"], || {
            match nodes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => modules(&ModulesConfig::default()),
                _ => Vec::new(),
            }
        });
        for leaves in [true, false] {
            let phone = bench.login_at(0, "alice@localhost/phone").await;
            let desk = bench.login_at(1, "alice@localhost/desk").await;
            phone.send(&set("block", &["eve@localhost"])).await;
            assert_eq!(bench.wait().await, 1);
            assert!(phone.hears().is_empty());
            if leaves {
                desk.close().await;
                assert_eq!(bench.wait().await, 1);
            } else {
                for _ in 0..7 {
                    assert!(phone.hears().is_empty());
                    assert_eq!(bench.wait().await, 1);
                }
            }
            assert_eq!(short(&phone), ["iq result"]);
            assert_eq!(bench.wait().await, 0);
        }
    });
}

/// Two changes that are heard in another order than they were made in leave every client with the right list.
#[test]
fn what_is_heard_late_says_only_what_still_holds() {
    let list = |items: &[&str]| {
        let lists = Blocklists::new(10, 1_000, None);
        let services = Bench::new(&["localhost"], Vec::new).services();
        let account = BareJid::new("alice@localhost").unwrap();
        block_on(async {
            let items = items.iter().map(|item| item.to_string()).collect();
            lists.change(&*services, &account, &Change::Block(items)).await.ok();
            lists.of(&*services, &account).await.unwrap()
        })
    };
    let pushed = |change: Change, items: &[&str], now: &[&str]| {
        let items = items.iter().map(|item| item.to_string()).collect();
        let push = told::News { change, items }.holding(&list(now)).push();
        push.map(|push| {
            let items: Vec<&str> = push.children().filter_map(|item| item.attr("jid")).collect();
            format!("{} {}", push.name(), items.join(" "))
        })
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(pushed(Change::Block(vec![]), &["a@x", "b@x"], &["b@x"]), some("block b@x"));
    assert_eq!(pushed(Change::Block(vec![]), &["a@x"], &[]), None);
    assert_eq!(pushed(Change::Unblock(vec![]), &["a@x", "b@x"], &["b@x"]), some("unblock a@x"));
    assert_eq!(pushed(Change::Clear, &["a@x"], &[]), some("unblock "));
    assert_eq!(pushed(Change::Clear, &["a@x", "b@x"], &["b@x"]), some("unblock a@x"));
}

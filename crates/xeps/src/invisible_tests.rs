//! Tests of `invisible.rs`, against a whole cluster in memory.

use std::time::Duration;

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use jid::Jid;
use stanza::Stanza;

use super::*;
use crate::index::{ModulesConfig, modules};

const HIDE: &str = "<iq type='set' id='h'><invisible xmlns='urn:xmpp:invisible:1' probe='false'/></iq>";
const HIDE_AND_PROBE: &str =
    "<iq type='set' id='h'><invisible xmlns='urn:xmpp:invisible:1' probe='true'/></iq>";
const SHOW: &str = "<iq type='set' id='v'><visible xmlns='urn:xmpp:invisible:1'/></iq>";
const ALICE: &str = "alice@localhost/phone";

/// Three nodes with all that is on by default: what is to be hidden is hidden at each of them.
fn bench() -> Bench {
    Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()))
}

/// Alice at the first node and bob at the second are subscribed to each other; both are available.
async fn friends(bench: &Bench) -> (Client, Client) {
    let alice = bench.online_at(0, ALICE).await;
    let bob = bench.online_at(1, "bob@localhost/desk").await;
    for (client, other) in [(&alice, "bob"), (&bob, "alice")] {
        client.send(&format!("<presence type='subscribed' to='{other}@localhost'/>")).await;
        client.send(&format!("<presence type='subscribe' to='{other}@localhost'/>")).await;
    }
    alice.hears();
    bob.hears();
    (alice, bob)
}

/// What was heard, in short and sorted: `kind type from`.
fn short(client: &Client) -> Vec<String> {
    let line = |stanza: &Stanza| {
        let kind = stanza.head.type_.as_deref().unwrap_or("available");
        format!("{kind} {}", stanza.head.from.as_ref().map(Jid::as_str).unwrap_or_default())
    };
    let mut heard: Vec<String> = client.hears_stanzas().iter().map(line).collect();
    heard.sort();
    heard
}

/// What a client hears of a request, which must be one answer.
async fn ask(client: &Client, request: &str) -> Stanza {
    client.hears();
    client.send(request).await;
    let mut heard = client.hears_stanzas();
    assert_eq!(heard.len(), 1, "{heard:?}");
    heard.remove(0)
}

/// The answer of her own account.
const OF_ALICE: &str = "result ";

#[test]
fn who_hides_seems_to_leave_and_is_seen_at_no_node() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bench.advance(Duration::from_secs(100));
        alice.send(HIDE).await;
        assert_eq!(short(&alice), [OF_ALICE, "unavailable alice@localhost/phone"]);
        assert_eq!(short(&bob), ["unavailable alice@localhost/phone"]);
        bench.advance(Duration::from_secs(7));
        // What bob's node, alice's and one that has neither session answer.
        let tablet = bench.login_at(2, "bob@localhost/tablet").await;
        for client in [&bob, &tablet] {
            let answer = ask(client, "<presence type='probe' to='alice@localhost'/>").await;
            assert_eq!(answer.head.type_.as_deref(), Some("unavailable"));
            let stamp = answer.dom().get_child("delay", "urn:xmpp:delay").unwrap().attr("stamp");
            assert_eq!(stamp, Some("2026-01-01T00:01:40Z"), "the moment at which she hid");
            let answer = ask(client, "<presence type='probe' to='alice@localhost/phone'/>").await;
            assert_eq!(answer.head.type_.as_deref(), Some("unavailable"));
            let last = "<iq type='get' id='l' to='alice@localhost'><query xmlns='jabber:iq:last'/></iq>";
            let answer = ask(client, last).await;
            assert_eq!(answer.child("query", "jabber:iq:last").unwrap().attr("seconds"), Some("7"));
            let items = "<iq type='get' id='d' to='alice@localhost'>\
                         <query xmlns='http://jabber.org/protocol/disco#items'/></iq>";
            assert!(!hooks::bench::xml(&ask(client, items).await).contains("phone"));
        }
        // Nor does a contact who comes now see her, or ask her.
        tablet.send("<presence/>").await;
        assert_eq!(short(&tablet), ["available bob@localhost/desk", "available bob@localhost/tablet"]);
        // She hears of him, as of everybody (3.1.1, 4).
        assert_eq!(short(&alice), ["available bob@localhost/tablet"]);
    });
}

#[test]
fn what_comes_for_the_account_and_for_the_session_comes() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send(HIDE).await;
        let desk = bench.online_at(2, "alice@localhost/desk").await;
        for client in [&alice, &bob, &desk] {
            client.hears();
        }
        // Both have the highest priority (RFC 6121, 8.5.2.1.1).
        bob.send("<message type='chat' to='alice@localhost'><body>one</body></message>").await;
        assert_eq!((alice.hears().len(), desk.hears().len()), (1, 1));
        bob.send("<message type='chat' to='alice@localhost/phone'><body>two</body></message>").await;
        bob.send("<iq type='get' id='q' to='alice@localhost/phone'><q xmlns='urn:q'/></iq>").await;
        assert_eq!(alice.hears().len(), 2);
        // And she speaks.
        alice.send("<message type='chat' to='bob@localhost'><body>three</body></message>").await;
        alice.send("<iq type='result' id='q' to='bob@localhost/desk'/>").await;
        assert_eq!(bob.hears().len(), 2);
        desk.close().await;
        alice.hears();
        bob.send("<message type='chat' to='alice@localhost'><body>four</body></message>").await;
        assert!(alice.hears()[0].contains("four"), "nothing is kept for who is there");
        // By its own priority.
        alice.send("<presence><priority>-1</priority></presence>").await;
        bob.send("<message type='chat' to='alice@localhost'><body>five</body></message>").await;
        assert_eq!(alice.hears().len(), 0);
        alice.send("<presence><priority>1</priority></presence>").await;
        assert!(alice.hears()[0].contains("five"));
        assert_eq!(short(&bob), ["unavailable alice@localhost/desk"]);
    });
}

#[test]
fn a_session_that_hides_at_once_takes_what_was_kept_and_has_told_nobody() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.close().await;
        bob.send("<message type='chat' to='alice@localhost'><body>kept</body></message>").await;
        bob.hears();
        for (hide, sees) in [(HIDE, false), (HIDE_AND_PROBE, true)] {
            let alice = bench.login_at(2, ALICE).await;
            alice.send(hide).await;
            let heard = alice.hears();
            assert_eq!(
                heard.iter().any(|heard| heard.contains("from='bob@localhost/desk'/>")),
                sees,
                "{heard:?}"
            );
            assert_eq!(heard.iter().any(|heard| heard.contains("kept")), !sees, "once");
            assert_eq!(bench.services().online(alice.view().account())[0].priority, None);
            // What it says afterwards is heard by nobody, nor that it ends.
            alice.send("<presence><show>away</show></presence>").await;
            assert_eq!(short(&alice), Vec::<String>::new());
            // The client stops to ask, and asks once more.
            alice.send(HIDE).await;
            assert_eq!(short(&alice), [OF_ALICE]);
            alice.send(HIDE_AND_PROBE).await;
            assert_eq!(short(&alice), ["available bob@localhost/desk", OF_ALICE]);
            alice.close().await;
            assert_eq!(short(&bob), Vec::<String>::new());
        }
    });
}

#[test]
fn directed_presence_goes_out_and_is_ended_and_what_was_directed_before_has_ended() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let [eve, carol] = ["eve@localhost/x", "carol@localhost/x"];
        let (eve, carol) = (bench.online_at(2, eve).await, bench.online_at(1, carol).await);
        alice.send("<presence to='eve@localhost'/>").await;
        alice.send(HIDE).await;
        assert_eq!(short(&eve), ["available alice@localhost/phone", "unavailable alice@localhost/phone"]);
        bob.hears();
        alice.send("<presence to='carol@localhost'/>").await;
        alice.send("<presence to='bob@localhost'><show>chat</show></presence>").await;
        assert_eq!(short(&carol), ["available alice@localhost/phone"]);
        assert_eq!(short(&bob), ["available alice@localhost/phone"]);
        // Who was told may ask (RFC 6121, 4.3.2): that she is there, and not what she says to nobody.
        alice.send("<presence><show>xa</show></presence>").await;
        let answer = ask(&bob, "<presence type='probe' to='alice@localhost'/>").await;
        assert_eq!((answer.head.type_.as_deref(), answer.body().is_empty()), (None, true));
        alice.send("<presence type='unavailable'><status>Off</status></presence>").await;
        for client in [&carol, &bob] {
            let heard = client.hears();
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert!(heard[0].contains("type='unavailable'") && heard[0].contains("Off"));
        }
        assert_eq!(short(&eve), Vec::<String>::new());
        // Not available, and still invisible.
        alice.hears();
        bob.send("<message type='chat' to='alice@localhost'><body>later</body></message>").await;
        assert_eq!(alice.hears().len(), 0);
        alice.send("<presence to='carol@localhost'/>").await;
        alice.send("<presence/>").await;
        assert!(alice.hears()[0].contains("later"));
        alice.close().await;
        assert_eq!(short(&carol), ["available alice@localhost/phone", "unavailable alice@localhost/phone"]);
        assert_eq!(short(&bob), Vec::<String>::new());
    });
}

#[test]
fn who_is_visible_again_says_so_with_their_next_presence() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online_at(2, "eve@localhost/x").await;
        alice.send(HIDE).await;
        alice.send("<presence to='eve@localhost'/>").await;
        for client in [&alice, &bob, &eve] {
            client.hears();
        }
        alice.send(SHOW).await;
        assert_eq!(short(&alice), [OF_ALICE]);
        // As before its initial presence (3.2): it takes nothing.
        bob.send("<message type='chat' to='alice@localhost'><body>kept</body></message>").await;
        assert_eq!((short(&alice), short(&bob)), (vec![], vec![]));
        alice.send("<presence/>").await;
        let heard = alice.hears();
        assert_eq!(heard.len(), 3, "her own, bob's, and what was kept: {heard:?}");
        assert_eq!(short(&bob), ["available alice@localhost/phone"]);
        let answer = ask(&bob, "<presence type='probe' to='alice@localhost'/>").await;
        assert_eq!(answer.head.type_, None);
        alice.send(SHOW).await;
        assert_eq!((short(&alice), short(&bob)), (vec![OF_ALICE.to_owned()], vec![]), "nothing to do");
        alice.close().await;
        assert_eq!(short(&bob), ["unavailable alice@localhost/phone"]);
        assert_eq!(short(&eve), ["unavailable alice@localhost/phone"], "told while she was invisible");
    });
}

#[test]
fn what_contacts_and_lists_change_shows_nothing() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let carol = bench.online_at(2, "carol@localhost/x").await;
        alice.send(HIDE).await;
        for client in [&alice, &bob] {
            client.hears();
        }
        // A new contact is granted to see her.
        carol.send("<presence type='subscribe' to='alice@localhost'/>").await;
        alice.send("<presence type='subscribed' to='carol@localhost'/>").await;
        let heard = short(&carol);
        assert!(!heard.iter().any(|heard| heard.contains("/phone")), "{heard:?}");
        // Blocks come and go, and a subscription ends.
        for change in ["block", "unblock"] {
            let change =
                format!("<{change} xmlns='urn:xmpp:blocking'><item jid='bob@localhost'/></{change}>");
            alice.send(&format!("<iq type='set' id='b'>{change}</iq>")).await;
        }
        for wish in
            ["<list name='l'><item action='deny' order='1'/></list>", "<active name='l'/>", "<active/>"]
        {
            alice
                .send(&format!("<iq type='set' id='p'><query xmlns='jabber:iq:privacy'>{wish}</query></iq>"))
                .await;
        }
        alice.send("<presence type='unsubscribed' to='bob@localhost'/>").await;
        let heard = short(&bob);
        assert!(!heard.iter().any(|heard| heard.contains("/phone")), "{heard:?}");
    });
}

#[test]
fn it_is_hidden_where_it_goes_on_when_its_node_is_back_and_when_that_dies() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send(HIDE_AND_PROBE).await;
        alice.hears();
        bob.hears();
        // Another node has it from what goes along.
        let packed = bench.registry().pack(alice.view());
        let (_, packed) = packed.iter().find(|(name, _)| *name == NAME).unwrap();
        let there = bench.login_at(2, "alice@localhost/tv").await;
        bench.registry().unpack(there.view(), NAME, packed);
        assert!(there.view().is_invisible() && probes(there.view()));
        there.view().set_invisible(false);
        assert_eq!(bench.registry().pack(there.view()).iter().filter(|(name, _)| *name == NAME).count(), 0);
        there.close().await;
        // The lease is lost and back: she hears what she missed, and nobody hears of her.
        let services = bench.services();
        services.announce(SessionEvent::Fenced(alice.view().clone())).await;
        bob.send("<presence><show>away</show></presence>").await;
        alice.hears();
        services.announce(SessionEvent::Returned(alice.view().clone())).await;
        assert_eq!(short(&alice), ["available bob@localhost/desk"]);
        assert!(services.online(alice.view().account()).iter().all(|one| one.priority.is_none()));
        assert_eq!(services.online(alice.view().account())[0].takes, Some(0));
        bob.hears();
        bench.kill(0).await;
        assert_eq!(short(&bob), Vec::<String>::new());
    });
}

#[test]
fn without_agreement_nothing_changes() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bench.cut_off(true);
        let error = ask(&alice, HIDE).await.as_error().unwrap();
        assert_eq!(error.condition, Condition::InternalServerError);
        bench.cut_off(false);
        assert_eq!(short(&bob), Vec::<String>::new());
        assert_eq!(ask(&bob, "<presence type='probe' to='alice@localhost'/>").await.head.type_, None);
        alice.send(HIDE).await;
        bench.cut_off(true);
        assert!(ask(&alice, SHOW).await.as_error().is_some());
        bench.cut_off(false);
        assert!(alice.view().is_invisible());
    });
}

#[test]
fn it_is_asked_of_the_own_account_in_the_words_of_the_text_and_announced() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let to = |to: &str| format!("<iq type='set' id='h' to='{to}'><invisible xmlns='{NS}'/></iq>");
        let of =
            |kind: &str, payload: &str| format!("<iq type='{kind}' id='h'><{payload} xmlns='{NS}'/></iq>");
        for (request, condition) in [
            (to("bob@localhost"), Condition::ServiceUnavailable),
            (of("get", "invisible"), Condition::BadRequest),
            (of("set", "invisible probe='maybe'"), Condition::BadRequest),
            (of("set", "hidden"), Condition::BadRequest),
        ] {
            let error = ask(&alice, &request).await.as_error().unwrap_or_else(|| panic!("{request}"));
            let is_expected = error.condition == condition || error.condition == Condition::Forbidden;
            assert!(is_expected, "{request}: {error:?}");
        }
        assert_eq!(short(&bob), Vec::<String>::new());
        let info = "<iq type='get' id='d' to='localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>";
        assert!(
            hooks::bench::xml(&ask(&alice, info).await).contains("<feature var='urn:xmpp:invisible:1'/>")
        );
        for probe in ["", "0", "false"] {
            let probe = if probe.is_empty() { String::new() } else { format!(" probe='{probe}'") };
            alice.send(&of("set", &format!("invisible{probe}"))).await;
            assert!(alice.view().is_invisible() && !probes(alice.view()));
            alice.send(SHOW).await;
        }
    });
}

//! Tests of `presence.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::{Condition, Stanza};

use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench() -> Bench {
    Bench::new(&["localhost"], || modules(&ModulesConfig::default()))
}

/// What was heard, in short: `type from`.
fn short(client: &Client) -> Vec<String> {
    client.hears_stanzas().iter().map(line).collect()
}

fn line(stanza: &Stanza) -> String {
    let kind = stanza.head.type_.as_deref().unwrap_or("available");
    format!("{kind} {}", stanza.head.from.as_ref().map(|from| from.as_str()).unwrap_or_default())
}

#[test]
fn initial_presence_goes_to_contacts_and_back_come_theirs() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send("<presence><show>dnd</show></presence>").await;
        alice.hears();
        bob.hears();
        let desk = bench.login("alice@localhost/desk").await;
        desk.send("<presence><priority>5</priority></presence>").await;
        let mut heard = short(&desk);
        heard.sort();
        assert_eq!(
            heard,
            [
                "available alice@localhost/desk",
                "available alice@localhost/phone",
                "available bob@localhost/phone"
            ]
        );
        assert_eq!(short(&alice), ["available alice@localhost/desk"]);
        assert_eq!(short(&bob), ["available alice@localhost/desk"]);
        assert_eq!(desk.view().priority(), Some(5));
    });
}

#[test]
fn later_presence_is_broadcast_without_probes() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send("<presence id='x'><show>away</show></presence>").await;
        let heard = bob.hears();
        assert_eq!(
            heard,
            ["<presence to='bob@localhost' from='alice@localhost/phone' id='x'><show>away</show></presence>"]
        );
        assert_eq!(short(&alice), ["available alice@localhost/phone"]);
    });
}

#[test]
fn a_stranger_hears_nothing() {
    block_on(async {
        let bench = bench();
        let eve = bench.online("eve@localhost/phone").await;
        let (alice, _bob) = friends(&bench).await;
        alice.send("<presence><status>secret</status></presence>").await;
        alice.send("<presence type='unavailable'/>").await;
        assert!(eve.hears().is_empty());
    });
}

#[test]
fn unavailable_presence_carries_its_status_and_is_told_once() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.send("<presence type='unavailable'><status>bye</status></presence>").await;
        let heard = bob.hears();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].contains("type='unavailable'") && heard[0].contains("bye"), "{heard:?}");
        alice.close().await;
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn a_session_that_ends_without_a_word_is_unavailable_once() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let desk = bench.online("alice@localhost/desk").await;
        bob.hears();
        alice.close().await;
        assert_eq!(short(&bob), ["unavailable alice@localhost/phone"]);
        assert_eq!(short(&desk), ["unavailable alice@localhost/phone"]);
    });
}

#[test]
fn a_session_that_was_never_available_ends_in_silence() {
    block_on(async {
        let bench = bench();
        let (_alice, bob) = friends(&bench).await;
        bench.login("alice@localhost/desk").await.close().await;
        assert!(bob.hears().is_empty());
    });
}

#[test]
fn contacts_of_a_node_that_died_are_told_once() {
    block_on(async {
        let bench = Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()));
        let (alice, bob) = friends(&bench).await;
        alice.close().await;
        let alice = bench.online_at(1, "alice@localhost/phone").await;
        let desk = bench.online_at(2, "alice@localhost/desk").await;
        bob.hears();
        alice.hears();
        desk.hears();
        bench.kill(1).await;
        assert_eq!(short(&bob), ["unavailable alice@localhost/phone"]);
        assert_eq!(short(&desk), ["unavailable alice@localhost/phone"]);
    });
}

#[test]
fn contacts_see_a_session_that_took_over_from_one_that_was_displaced() {
    block_on(async {
        let bench = bench();
        let (_alice, bob) = friends(&bench).await;
        let again = bench.login("alice@localhost/phone").await;
        again.send("<presence><show>chat</show></presence>").await;
        assert_eq!(short(&bob).last().unwrap(), "available alice@localhost/phone");
    });
}

#[test]
fn a_late_end_of_a_displaced_session_is_repaired() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        // The successor is available before the end of the displaced session is told.
        let event = hooks::SessionEvent::Lost {
            account: alice.view().account().clone(),
            jid: alice.view().jid().clone(),
        };
        bench.services().announce(event).await;
        assert_eq!(short(&bob), ["unavailable alice@localhost/phone", "available alice@localhost/phone"]);
    });
}

#[test]
fn directed_presence_is_ended_when_the_session_ends() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let eve = bench.online("eve@localhost/phone").await;
        let mallory = bench.online("mallory@localhost/phone").await;
        alice.send("<presence to='eve@localhost/phone'/>").await;
        alice.send("<presence to='mallory@localhost'/>").await;
        assert_eq!(short(&eve), ["available alice@localhost/phone"]);
        alice.send("<presence to='mallory@localhost' type='unavailable'/>").await;
        assert_eq!(short(&mallory).len(), 2);
        alice.send("<presence><show>away</show></presence>").await;
        assert!(eve.hears().is_empty(), "no broadcast to whom presence was only directed");
        alice.close().await;
        assert_eq!(short(&eve), ["unavailable alice@localhost/phone"]);
        assert!(mallory.hears().is_empty());
    });
}

#[test]
fn directed_presence_is_bounded() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.presence.directed_max = 2;
        let bench = Bench::new(&["localhost"], move || modules(&config));
        let alice = bench.online("alice@localhost/phone").await;
        for name in ["a", "b", "a"] {
            alice.send(&format!("<presence to='{name}@localhost'/>")).await;
        }
        assert!(alice.hears().is_empty());
        alice.send("<presence to='c@localhost'/>").await;
        assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::ResourceConstraint);
    });
}

#[test]
fn a_probe_of_a_stranger_learns_nothing_and_one_of_a_contact_is_answered() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online("eve@localhost/phone").await;
        bench.route("<presence type='probe' from='eve@remote' to='alice@localhost'/>").await;
        bench.route("<presence type='probe' from='eve@remote' to='nobody@localhost'/>").await;
        assert_eq!(
            bench.outside(),
            [
                "<presence to='eve@remote' from='alice@localhost' type='unsubscribed'/>",
                "<presence to='eve@remote' from='nobody@localhost' type='unsubscribed'/>",
            ]
        );
        bench.route("<presence type='probe' from='bob@localhost/phone' to='alice@localhost'/>").await;
        assert_eq!(short(&bob), ["available alice@localhost/phone"]);
        assert!(eve.hears().is_empty() && alice.hears().is_empty());
    });
}

#[test]
fn contacts_elsewhere_are_probed_from_the_bare_jid_and_told_of_absence() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        alice.send("<presence type='subscribe' to='romeo@remote'/>").await;
        bench.route("<presence type='subscribed' from='romeo@remote' to='alice@localhost'/>").await;
        bench.route("<presence type='subscribe' from='romeo@remote' to='alice@localhost'/>").await;
        alice.send("<presence type='subscribed' to='romeo@remote'/>").await;
        alice.close().await;
        bench.outside();
        bench.route("<presence type='probe' id='p' from='romeo@remote' to='alice@localhost'/>").await;
        assert_eq!(
            bench.outside(),
            ["<presence to='romeo@remote' from='alice@localhost' id='p' type='unavailable'/>"]
        );
        bench.online("alice@localhost/phone").await;
        let mut heard = bench.outside();
        heard.sort();
        assert_eq!(
            heard,
            [
                "<presence to='romeo@remote' from='alice@localhost' type='probe'/>",
                "<presence to='romeo@remote' from='alice@localhost/phone'/>",
            ]
        );
    });
}

#[test]
fn presence_that_makes_no_sense_is_refused() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        for bad in [
            "<presence type='probe'/>",
            "<presence type='subscribe'/>",
            "<presence type='dancing'/>",
            "<presence><priority>128</priority></presence>",
            "<presence><priority>high</priority></presence>",
        ] {
            alice.send(bad).await;
            let heard = alice.hears_stanzas();
            assert_eq!(heard[0].as_error().unwrap().condition, Condition::BadRequest, "{bad}");
        }
        assert_eq!(alice.view().priority(), None);
    });
}

#[test]
fn without_a_quorum_nobody_becomes_available_and_the_client_is_told() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        bench.cut_off(true);
        alice.send("<presence/>").await;
        assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::InternalServerError);
        assert!(alice.view().presence().is_none());
        bench.cut_off(false);
        alice.send("<presence/>").await;
        assert_eq!(short(&alice), ["available alice@localhost/phone"]);
    });
}

#[test]
fn messages_are_not_held_longer_than_a_login_takes_however_it_ends() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        bench.cut_off(true);
        alice.send("<presence/>").await;
        assert!(!bench.is_held("alice@localhost"), "refused");
        bench.cut_off(false);
        alice.send("<presence><priority>-1</priority></presence>").await;
        alice.send("<presence><priority>1</priority></presence>").await;
        assert!(!bench.is_held("alice@localhost"), "it has what was kept");
    });
}

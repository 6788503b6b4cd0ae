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

/// Two contacts become available at the same moment at two nodes: the one that is agreed on first is asked by the other,
/// whom its own node may not show yet.
#[test]
fn who_is_seen_to_be_available_answers_at_once() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.hears();
        bob.hears();
        let desk = bench.login("alice@localhost/desk").await;
        let agreed = bench.hold_back_agreement();
        let asked = async {
            bob.send("<presence type='probe' to='alice@localhost'/>").await;
            let answers = short(&bob);
            assert!(answers.contains(&"available alice@localhost/desk".to_owned()), "{answers:?}");
            agreed.send(()).unwrap();
        };
        futures::join!(desk.send("<presence/>"), asked);
        assert_eq!(desk.view().priority(), Some(0));
    });
}

#[test]
fn presence_that_is_not_agreed_on_is_none() {
    block_on(async {
        let bench = bench();
        let (_alice, bob) = friends(&bench).await;
        bob.hears();
        let desk = bench.login("alice@localhost/desk").await;
        bench.cut_off(true);
        desk.send("<presence/>").await;
        bench.cut_off(false);
        assert!(desk.view().presence().is_none());
        assert!(short(&bob).is_empty());
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
fn a_session_whose_node_was_cut_off_and_its_contacts_hear_of_each_other() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let desk = bench.online("bob@localhost/desk").await;
        alice.hears();
        bench.services().announce(hooks::SessionEvent::Fenced(alice.view().clone())).await;
        desk.close().await;
        bob.send("<presence><show>away</show></presence>").await;
        bob.hears();
        bench.services().announce(hooks::SessionEvent::Returned(alice.view().clone())).await;
        assert_eq!(short(&bob), ["available alice@localhost/phone"]);
        let mut heard = short(&alice);
        heard.sort();
        // The bench delivers all the same, what the server would have kept from her.
        let truth = [
            "available alice@localhost/phone",
            "available bob@localhost/phone",
            "available bob@localhost/phone",
            "unavailable bob@localhost/desk",
        ];
        assert_eq!(heard, truth);
    });
}

#[test]
fn a_session_that_was_not_available_returns_in_silence() {
    block_on(async {
        let bench = bench();
        let (_alice, bob) = friends(&bench).await;
        let desk = bench.login("alice@localhost/desk").await;
        bench.services().announce(hooks::SessionEvent::Fenced(desk.view().clone())).await;
        bench.services().announce(hooks::SessionEvent::Returned(desk.view().clone())).await;
        assert!(bob.hears().is_empty());
        assert!(desk.hears().is_empty());
    });
}

#[test]
fn a_session_that_was_fenced_hears_once_of_each_who_has_gone_meanwhile() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        let (_alice, bob) = friends(&bench).await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        bob.hears();
        let services = bench.services();
        let event = hooks::SessionEvent::Lost {
            account: desk.view().account().clone(),
            jid: desk.view().jid().clone(),
        };
        services.announce(hooks::SessionEvent::Fenced(bob.view().clone())).await;
        // It is told by others, found out by the session itself, and told once more.
        bench.kill(1).await;
        services.announce(hooks::SessionEvent::Returned(bob.view().clone())).await;
        services.announce(event.clone()).await;
        let of_desk = |heard: &String| heard.ends_with("alice@localhost/desk");
        let heard: Vec<String> = short(&bob).into_iter().filter(of_desk).collect();
        assert_eq!(heard, ["unavailable alice@localhost/desk"]);
        // Nor does it hear that again as its node loses the lease once more.
        services.announce(hooks::SessionEvent::Fenced(bob.view().clone())).await;
        services.announce(hooks::SessionEvent::Returned(bob.view().clone())).await;
        services.announce(event).await;
        assert!(short(&bob).iter().all(|heard| !of_desk(heard)));
        let desk = bench.online("alice@localhost/desk").await;
        desk.close().await;
        let heard: Vec<String> = short(&bob).into_iter().filter(of_desk).collect();
        assert_eq!(heard, ["available alice@localhost/desk", "unavailable alice@localhost/desk"]);
    });
}

#[test]
fn a_contact_whose_node_is_lost_again_before_it_was_heard_is_told_of_once() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        let (_alice, bob) = friends(&bench).await;
        let desk = bench.online_at(1, "alice@localhost/desk").await;
        bob.hears();
        bench.kill(1).await;
        let lost = hooks::SessionEvent::Lost {
            account: desk.view().account().clone(),
            jid: desk.view().jid().clone(),
        };
        // What the desk said of its return is still on its way.
        bench.services().announce(lost.clone()).await;
        assert_eq!(short(&bob), ["unavailable alice@localhost/desk"]);
        let back = "<presence from='alice@localhost/desk' to='bob@localhost'/>";
        bench.route(back).await;
        bench.route(back).await;
        bench.services().announce(lost).await;
        let told =
            ["available", "available", "unavailable"].map(|what| format!("{what} alice@localhost/desk"));
        assert_eq!(short(&bob), told);
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
        let tablet = bench.online("alice@localhost/tablet").await;
        for client in [&alice, &bob, &tablet] {
            short(client);
        }
        bench.services().announce(event).await;
        let repaired = ["unavailable alice@localhost/phone", "available alice@localhost/phone"];
        // Whoever asks again is answered for all sessions of the account.
        assert_eq!(short(&bob), [repaired[0], repaired[1], "available alice@localhost/tablet"]);
        // Its own devices are told as well, and the successor hears nothing of itself.
        assert_eq!(short(&tablet), repaired);
        assert_eq!(short(&alice), [""; 0]);
    });
}

#[test]
fn a_late_end_of_a_displaced_session_is_repaired_where_the_table_is_behind() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let event = || hooks::SessionEvent::Lost {
            account: alice.view().account().clone(),
            jid: alice.view().jid().clone(),
        };
        bench.fall_behind(&alice);
        bench.services().announce(event()).await;
        let repaired = ["unavailable alice@localhost/phone", "available alice@localhost/phone"];
        assert_eq!(short(&bob), repaired);
        // Without a quorum nobody can know better than the table here, and the end is told all the same.
        bench.fall_behind(&alice);
        bench.cut_off(true);
        bench.services().announce(event()).await;
        assert_eq!(short(&bob), repaired[..1]);
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
            ["<presence to='romeo@remote' from='alice@localhost' id='p' type='unavailable'>\
              <delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></presence>"]
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
            "<presence type='subscribe'/>",
            "<presence type='dancing'/>",
            "<presence><priority>128</priority></presence>",
            "<presence><priority>high</priority></presence>",
            "<presence><priority>1</priority><priority>1</priority></presence>",
        ] {
            alice.send(bad).await;
            let heard = alice.hears_stanzas();
            assert_eq!(heard[0].as_error().unwrap().condition, Condition::BadRequest, "{bad}");
        }
        assert_eq!(alice.view().priority(), None);
        // RFC 6121, 4.3: no probe of a client is a reason for an error.
        alice.send("<presence type='probe'/>").await;
        assert!(alice.hears().is_empty());
    });
}

#[test]
fn the_end_comes_back_to_the_session_that_said_it() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let desk = bench.online("alice@localhost/desk").await;
        alice.hears();
        alice.send("<presence type='unavailable' id='x'><status>bye</status></presence>").await;
        let told = "<presence to='alice@localhost' from='alice@localhost/phone' id='x' type='unavailable'>\
                    <status>bye</status></presence>";
        assert_eq!(alice.hears(), [told]);
        assert_eq!(desk.hears(), [told]);
        alice.send("<presence type='unavailable'/>").await;
        assert!(alice.hears().is_empty() && desk.hears().is_empty(), "it was not available");
    });
}

#[test]
fn a_clients_probe_is_answered_by_what_the_roster_allows() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online("eve@localhost/phone").await;
        bob.send("<presence id='b'><show>dnd</show></presence>").await;
        alice.hears();
        bob.hears();
        alice.send("<presence type='probe' id='p' to='bob@localhost'/>").await;
        alice.send("<presence type='probe' id='p' to='bob@localhost/phone'/>").await;
        alice.send("<presence type='probe' id='p' to='bob@localhost/gone'/>").await;
        bob.close().await;
        alice.hears_stanzas().iter().zip([
            "<presence to='alice@localhost/phone' from='bob@localhost/phone' id='b'><show>dnd</show></presence>",
            "<presence to='alice@localhost/phone' from='bob@localhost/phone' id='b'/>",
            "<presence to='alice@localhost/phone' from='bob@localhost/gone' id='p' type='unavailable'/>",
        ]).for_each(|(heard, expected)| assert_eq!(hooks::bench::xml(heard), expected));
        alice.send("<presence type='probe' id='q' to='bob@localhost'/>").await;
        assert_eq!(
            alice.hears(),
            ["<presence to='alice@localhost/phone' from='bob@localhost' id='q' type='unavailable'>\
              <delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></presence>"]
        );
        for to in [
            "alice@localhost",
            "alice@localhost/phone",
            "bob@localhost",
            "nobody@localhost",
            "nobody@localhost/x",
        ] {
            eve.send(&format!("<presence type='probe' to='{to}'/>")).await;
        }
        assert!(eve.hears().is_empty());
    });
}

#[test]
fn a_probe_does_not_withdraw_a_request_that_waits() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online("bob@localhost/phone").await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        alice.hears();
        for to in ["bob@localhost", "bob@localhost/phone", "bob@localhost/gone"] {
            alice.send(&format!("<presence type='probe' to='{to}'/>")).await;
        }
        assert!(alice.hears().is_empty());
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&alice), ["subscribed bob@localhost", "available bob@localhost/phone"]);
    });
}

#[test]
fn who_was_sent_presence_learns_that_the_session_is_there_and_no_more() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        let eve = bench.login("eve@localhost/phone").await;
        // Without an initial presence (4.6.3, case 3), and then with one.
        alice.send("<presence to='eve@localhost/phone'><status>secret</status></presence>").await;
        eve.hears();
        for _ in 0..2 {
            eve.send("<presence type='probe' to='alice@localhost/phone'/>").await;
            assert_eq!(eve.hears(), ["<presence to='eve@localhost/phone' from='alice@localhost/phone'/>"]);
            alice.send("<presence><status>secret</status></presence>").await;
        }
        // RFC 6121, 4.6.1: who leaves is forgotten.
        eve.send("<presence to='alice@localhost/phone' type='unavailable'/>").await;
        eve.send("<presence type='probe' to='alice@localhost/phone'/>").await;
        alice.close().await;
        assert!(eve.hears().is_empty());
    });
}

#[test]
fn a_stranger_is_answered_once_however_many_nodes_there_are() {
    block_on(async {
        let bench = Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()));
        for (node, resource) in ["a", "b", "c"].iter().enumerate() {
            bench.online_at(node, &format!("alice@localhost/{resource}")).await;
        }
        for account in ["alice", "nobody"] {
            bench
                .route(&format!("<presence type='probe' id='p' from='eve@remote' to='{account}@localhost'/>"))
                .await;
            assert_eq!(
                bench.outside(),
                [format!(
                    "<presence to='eve@remote' from='{account}@localhost' id='p' type='unsubscribed'/>"
                )]
            );
        }
    });
}

#[test]
fn a_stanza_between_contacts_reads_nothing_from_the_store() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let mut contacts = vec![bob];
        for n in 0..99 {
            let name = format!("c{n}@localhost");
            let contact = bench.online(&format!("{name}/x")).await;
            contact.send("<presence type='subscribe' to='alice@localhost'/>").await;
            alice.send(&format!("<presence type='subscribed' to='{name}'/>")).await;
            contacts.push(contact);
        }
        // Both rosters are at hand once they were asked for after their last change.
        alice.send("<presence><show>chat</show></presence>").await;
        contacts[0].send("<presence><show>chat</show></presence>").await;
        contacts.iter().for_each(|contact| drop(contact.hears()));
        let reads = || {
            let seen = bench.store().facts().snapshot();
            seen.get.count + seen.scan.count
        };
        let before = reads();
        for n in 0..1_000 {
            alice.send(&format!("<message to='bob@localhost' type='chat' id='{n}'/>")).await;
            alice.send(&format!("<message to='bob@localhost/phone' id='{n}'/>")).await;
        }
        alice.send("<iq type='get' id='q' to='bob@localhost/phone'><x xmlns='urn:x'/></iq>").await;
        alice.send("<presence><show>away</show></presence>").await;
        assert_eq!(reads(), before);
        assert_eq!(contacts[0].hears().len(), 2_002);
        assert!(contacts[1..].iter().all(|contact| contact.hears().len() == 1));
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

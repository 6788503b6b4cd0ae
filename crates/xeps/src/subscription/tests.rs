//! Tests of `subscription.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::Condition;

use crate::index::{ModulesConfig, modules};

fn bench() -> Bench {
    Bench::new(&["localhost"], || modules(&ModulesConfig::default()))
}

/// What was heard, in short: `type from` of presence, `push jid subscription ask` of pushes.
fn short(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for stanza in client.hears_stanzas() {
        let from = stanza.head.from.as_ref().map(|from| from.to_string()).unwrap_or_default();
        let kind = stanza.head.type_.clone().unwrap_or_else(|| "available".into());
        let line = match stanza.child("query", "jabber:iq:roster").and_then(|query| query.children().next()) {
            Some(item) => {
                let word = |name| item.attr(name).unwrap_or_default();
                format!("push {} {} {}", word("jid"), word("subscription"), word("ask"))
            }
            None => format!("{kind} {from}"),
        };
        all.push(line.trim_end().to_owned());
    }
    all
}

async fn with_roster(client: &Client) {
    client.send("<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>").await;
    client.hears();
}

async fn two(bench: &Bench) -> (Client, Client) {
    let alice = bench.online("alice@localhost/phone").await;
    let bob = bench.online("bob@localhost/phone").await;
    with_roster(&alice).await;
    with_roster(&bob).await;
    (alice, bob)
}

#[test]
fn a_request_is_asked_granted_and_followed_by_presence() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribe' to='bob@localhost/phone' id='1'/>").await;
        assert_eq!(short(&alice), ["push bob@localhost none subscribe"]);
        assert_eq!(short(&bob), ["subscribe alice@localhost"]);
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&bob), ["push alice@localhost from"]);
        assert_eq!(
            short(&alice),
            ["subscribed bob@localhost", "push bob@localhost to", "available bob@localhost/phone"]
        );
        bob.send("<presence type='subscribe' to='alice@localhost'/>").await;
        assert_eq!(short(&bob), ["push alice@localhost from subscribe"]);
        alice.hears();
        alice.send("<presence type='subscribed' to='bob@localhost'/>").await;
        assert_eq!(short(&alice), ["push bob@localhost both"]);
        assert_eq!(
            short(&bob),
            ["subscribed alice@localhost", "push alice@localhost both", "available alice@localhost/phone"]
        );
    });
}

#[test]
fn a_subscription_is_taken_back() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = crate::roster::tests::friends(&bench).await;
        with_roster(&alice).await;
        with_roster(&bob).await;
        bob.send("<presence type='unsubscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&bob), ["push alice@localhost to"]);
        assert_eq!(
            short(&alice),
            ["unavailable bob@localhost/phone", "unsubscribed bob@localhost", "push bob@localhost from"]
        );
        bob.send("<presence><show>away</show></presence>").await;
        assert!(short(&alice).is_empty());
    });
}

#[test]
fn who_unsubscribes_sees_the_contact_go() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = crate::roster::tests::friends(&bench).await;
        with_roster(&alice).await;
        with_roster(&bob).await;
        alice.send("<presence type='unsubscribe' to='bob@localhost'/>").await;
        assert_eq!(short(&bob), ["unsubscribe alice@localhost", "push alice@localhost to"]);
        // Bob's automatic `unsubscribed` changes nothing any more, and is not shown.
        let mut heard = short(&alice);
        heard.sort();
        assert_eq!(heard, ["push bob@localhost from", "unavailable bob@localhost/phone"]);
    });
}

#[test]
fn a_request_is_declined() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        alice.hears();
        bob.hears();
        bob.send("<presence type='unsubscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&alice), ["unsubscribed bob@localhost", "push bob@localhost none"]);
        assert!(short(&bob).is_empty());
    });
}

#[test]
fn a_request_to_an_absent_user_is_shown_at_each_login_until_it_is_answered() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        bench.account("bob@localhost");
        alice
            .send("<presence type='subscribe' to='bob@localhost'><status>it is me</status></presence>")
            .await;
        for _ in 0..2 {
            let bob = bench.login("bob@localhost/phone").await;
            assert!(bob.hears().is_empty());
            bob.send("<presence/>").await;
            let heard = bob.hears();
            let request = heard.iter().find(|heard| heard.contains("type='subscribe'")).expect("the request");
            assert!(request.contains("from='alice@localhost'") && request.contains("it is me"), "{request}");
            bob.close().await;
        }
        let bob = bench.online("bob@localhost/phone").await;
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        bob.close().await;
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence/>").await;
        assert!(bob.hears().iter().all(|heard| !heard.contains("subscribe")));
    });
}

#[test]
fn a_request_that_comes_twice_is_shown_once() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        assert_eq!(short(&bob), ["subscribe alice@localhost"]);
    });
}

#[test]
fn what_was_never_asked_for_changes_nothing() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribed' to='bob@localhost'/>").await;
        assert_eq!(short(&alice), ["push bob@localhost none"], "a pre-approval");
        bench.route("<presence type='subscribed' from='alice@localhost' to='bob@localhost'/>").await;
        bench.route("<presence type='unsubscribed' from='alice@localhost' to='bob@localhost'/>").await;
        bench.route("<presence type='unsubscribe' from='alice@localhost' to='bob@localhost'/>").await;
        assert!(short(&bob).is_empty());
    });
}

#[test]
fn a_preapproved_contact_is_granted_without_a_question() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        bob.hears();
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        assert_eq!(short(&bob), ["push alice@localhost from"]);
        let heard = short(&alice);
        assert!(heard.contains(&"push bob@localhost to".to_owned()), "{heard:?}");
        assert!(heard.contains(&"available bob@localhost/phone".to_owned()), "{heard:?}");
    });
}

#[test]
fn a_request_that_follows_an_end_is_not_taken_back_by_the_answer_to_that() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = crate::roster::tests::friends(&bench).await;
        alice.send("<presence type='unsubscribe' to='bob@localhost'/>").await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        // What bob's server said about the first, had it said anything, would come now.
        bench.route("<presence type='unsubscribe' from='alice@localhost' to='bob@localhost'/>").await;
        bench.route("<presence type='subscribe' from='alice@localhost' to='bob@localhost'/>").await;
        alice.hears();
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&alice)[0], "subscribed bob@localhost");
        // Another server may have missed an end.
        bench.route("<presence type='subscribe' from='romeo@remote' to='bob@localhost'/>").await;
        bench.route("<presence type='unsubscribe' id='u' from='romeo@remote' to='bob@localhost'/>").await;
        assert_eq!(
            bench.outside(),
            ["<presence to='romeo@remote' from='bob@localhost' id='u' type='unsubscribed'/>"]
        );
    });
}

#[test]
fn what_is_between_accounts_keeps_their_addresses() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribe' to='bob@localhost/phone' id='1'/>").await;
        let expected = "<presence to='bob@localhost' from='alice@localhost' id='1' type='subscribe'/>";
        assert_eq!(bob.hears(), [expected]);
        let desk = bench.login("bob@localhost/desk").await;
        desk.send("<presence/>").await;
        assert!(desk.hears().contains(&expected.to_owned()), "and so when it is shown again");
        bob.hears();
        bob.send("<presence type='subscribed' to='alice@localhost/phone' id='2'/>").await;
        alice
            .hears_stanzas()
            .iter()
            .filter(|heard| heard.head.type_.as_deref() == Some("subscribed"))
            .for_each(|heard| {
                let expected =
                    "<presence to='alice@localhost' from='bob@localhost' id='2' type='subscribed'/>";
                assert_eq!(hooks::bench::xml(heard), expected)
            });
    });
}

#[test]
fn an_answer_to_a_session_that_is_gone_is_ignored() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        alice.send("<presence type='subscribe' to='bob@localhost/gone'/>").await;
        assert_eq!(short(&bob), ["subscribe alice@localhost"], "a request is to the account");
        alice.hears();
        for kind in ["subscribed", "unsubscribed", "unsubscribe"] {
            bench
                .route(&format!("<presence type='{kind}' from='bob@localhost' to='alice@localhost/gone'/>"))
                .await;
        }
        assert!(short(&alice).is_empty() && short(&bob).is_empty());
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&alice)[0], "subscribed bob@localhost", "the request still waited");
    });
}

#[test]
fn whatever_resource_a_client_names_the_contact_is_meant_and_nobody_learns_who_is_online() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = two(&bench).await;
        bench.account("carol@localhost");
        let eve = bench.online("eve@localhost/phone").await;
        with_roster(&eve).await;
        for (kind, state) in [("subscribed", "none"), ("unsubscribed", "none")] {
            for to in
                ["alice@localhost/phone", "bob@localhost/gone", "carol@localhost/phone", "nobody@localhost/a"]
            {
                eve.send(&format!("<presence type='{kind}' to='{to}'/>")).await;
                let contact = to.split('/').next().unwrap();
                assert_eq!(short(&eve), [format!("push {contact} {state}")], "{kind} to {to}");
            }
        }
        alice.send("<presence type='subscribe' to='bob@localhost/gone'/>").await;
        alice.hears();
        bob.hears();
        bob.send("<presence type='subscribed' to='alice@localhost/gone'/>").await;
        assert_eq!(short(&alice)[0], "subscribed bob@localhost");
        alice.send("<presence type='unsubscribe' to='bob@localhost/gone'/>").await;
        assert!(short(&bob).contains(&"unsubscribe alice@localhost".to_owned()));
    });
}

#[test]
fn an_interested_session_that_is_not_available_hears_the_answer_first() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        let idle = bench.login("alice@localhost/idle").await;
        with_roster(&alice).await;
        let bob = bench.online("bob@localhost/phone").await;
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        alice.hears();
        bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&alice), ["subscribed bob@localhost", "push bob@localhost to"]);
        assert!(short(&idle).is_empty());
    });
}

#[test]
fn requests_to_one_account_are_bounded() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.subscription.requests_max = 2;
        let bench = Bench::new(&["localhost"], move || modules(&config));
        bench.account("bob@localhost");
        for (name, refused) in [("a", false), ("b", false), ("c", true)] {
            let client = bench.online(&format!("{name}@localhost/phone")).await;
            client.send("<presence type='subscribe' to='bob@localhost'/>").await;
            let errors: Vec<_> = client.hears_stanzas().iter().filter_map(|heard| heard.as_error()).collect();
            let conditions: Vec<_> = errors.iter().map(|error| error.condition).collect();
            assert_eq!(
                conditions,
                if refused { vec![Condition::ResourceConstraint] } else { vec![] },
                "{name}"
            );
        }
    });
}

#[test]
fn a_request_to_nobody_leaves_nothing_behind() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        alice.send("<presence type='subscribe' to='nobody@localhost'/>").await;
        assert!(alice.hears().is_empty());
        let nobody = bench.online("nobody@localhost/phone").await;
        nobody.send("<presence type='unavailable'/>").await;
        nobody.send("<presence/>").await;
        assert!(nobody.hears().iter().all(|heard| !heard.contains("subscribe")));
    });
}

#[test]
fn the_other_side_of_a_cluster_agrees_grants_and_sees() {
    block_on(async {
        let bench = Bench::cluster(3, &["localhost"], || modules(&ModulesConfig::default()));
        let alice = bench.online_at(0, "alice@localhost/phone").await;
        let bob = bench.online_at(1, "bob@localhost/phone").await;
        let desk = bench.online_at(2, "bob@localhost/desk").await;
        for client in [&alice, &bob, &desk] {
            with_roster(client).await;
        }
        bob.hears();
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        assert_eq!(short(&bob), ["subscribe alice@localhost"]);
        assert_eq!(short(&desk), ["subscribe alice@localhost"]);
        desk.send("<presence type='subscribed' to='alice@localhost'/>").await;
        assert_eq!(short(&bob), ["push alice@localhost from"]);
        let mut heard = short(&alice);
        heard.sort();
        assert_eq!(
            heard,
            [
                "available bob@localhost/desk",
                "available bob@localhost/phone",
                "push bob@localhost none subscribe",
                "push bob@localhost to",
                "subscribed bob@localhost",
            ]
        );
        bob.send("<presence><show>away</show></presence>").await;
        assert_eq!(short(&alice), ["available bob@localhost/phone"]);
    });
}

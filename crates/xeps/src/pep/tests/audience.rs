//! Who hears of what: interests, access, subscriptions, last items.

use futures::executor::block_on;
use hooks::SessionEvent;

use super::*;

#[test]
fn contacts_and_own_devices_hear_of_what_interests_them() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let tablet = bench.login_at(1, "alice@localhost/tablet").await;
        let tv = bench.login_at(0, "bob@localhost/tv").await;
        let eve = bench.online_at(1, "eve@localhost/tv").await;
        come(&bench, &alice, &["n"]).await;
        come(&bench, &tablet, &["n", "m"]).await;
        come(&bench, &bob, &["m", "n"]).await;
        come(&bench, &tv, &["m"]).await;
        come(&bench, &eve, &["n"]).await;
        for client in [&alice, &tablet, &bob, &tv, &eve] {
            client.hears();
        }
        alice
            .send(&format!(
                "<iq type='set' id='p'><pubsub xmlns='{}'>{}</pubsub></iq>",
                pubsub::NS,
                publication("n", "1")
            ))
            .await;
        let told = ["alice@localhost items n item 1"];
        for client in [&alice, &tablet, &bob] {
            assert_eq!(events(client), told);
        }
        for client in [&tv, &eve] {
            assert_eq!(events(client), nothing());
        }
        set(&alice, "<retract node='n' notify='1'><item id='1'/></retract>").await;
        assert_eq!(events(&bob), ["alice@localhost items n retract 1"]);
        publish(&alice, "n", "2").await;
        set(&alice, "<retract node='n' notify='0'><item id='2'/></retract>").await;
        assert_eq!(events(&bob), ["alice@localhost items n item 2"]);
        own(&alice, "set", "<purge node='n'/>").await;
        own(&alice, "set", "<delete node='n'/>").await;
        assert_eq!(events(&bob), ["alice@localhost purge n", "alice@localhost delete n"]);
        assert_eq!(events(&tv), nothing());
    });
}

#[test]
fn the_last_item_comes_once_to_whoever_comes_online() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        for id in ["1", "2"] {
            publish(&alice, "n", id).await;
        }
        set(&alice, &(publication("never", "1") + &options(&[("send_last_published_item", "never")]))).await;
        set(&alice, &(publication("sub", "1") + &options(&[("send_last_published_item", "on_sub")]))).await;
        set(&alice, &(publication("private", "1") + &options(&[("access_model", "whitelist")]))).await;
        alice.close().await;
        let tv = bench.login_at(0, "bob@localhost/tv").await;
        tv.hears();
        let all = ["n", "never", "sub", "private", "other"];
        tv.send(&presence(&all)).await;
        let question = tv.hears_stanzas();
        answer(&tv, asked(&question).unwrap(), &info(&all)).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&tv), ["alice@localhost items n item 2"]);
        // Another presence of the same client, and of one that wants more.
        tv.send(&presence(&all)).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&tv), nothing());
        tv.send("<presence type='unavailable'/>").await;
        tv.hears();
        tv.send(&presence(&["n"])).await;
        let question = tv.hears_stanzas();
        answer(&tv, asked(&question).unwrap(), &info(&["n"])).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&tv), ["alice@localhost items n item 2"]);
        assert_eq!(events(&bob), nothing());
        let alice = bench.login_at(1, "alice@localhost/tablet").await;
        alice.hears();
        alice.send(&presence(&["private"])).await;
        let question = alice.hears_stanzas();
        answer(&alice, asked(&question).unwrap(), &info(&["private"])).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&alice), ["alice@localhost items private item 1"]);
    });
}

#[test]
fn interests_that_come_later_bring_their_last_items_and_no_others() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        publish(&alice, "n", "1").await;
        publish(&alice, "m", "1").await;
        come(&bench, &bob, &["n"]).await;
        bob.send(&presence(&["n", "m"])).await;
        let question = bob.hears_stanzas();
        answer(&bob, asked(&question).unwrap(), &info(&["n", "m"])).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&bob), ["alice@localhost items m item 1"]);
        publish(&alice, "n", "2").await;
        assert_eq!(events(&bob), ["alice@localhost items n item 2"]);
        // Without capabilities it wants nothing.
        bob.send("<presence/>").await;
        publish(&alice, "n", "3").await;
        assert_eq!(events(&bob), nothing());
    });
}

#[test]
fn a_hash_that_is_known_is_not_asked_for_again_at_the_node() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        come(&bench, &bob, &["n"]).await;
        let carol = bench.login_at(1, "carol@localhost/x").await;
        carol.send(&presence(&["n"])).await;
        assert!(asked(&carol.hears_stanzas()).is_none());
        // Another node has not seen it.
        let dave = bench.login_at(0, "dave@localhost/x").await;
        dave.send(&presence(&["n"])).await;
        let heard = dave.hears_stanzas();
        let question = asked(&heard).unwrap();
        assert_eq!(question.head.from.as_ref().map(Jid::as_str), Some("localhost"));
        drop(alice);
    });
}

#[test]
fn a_hash_that_is_not_true_holds_for_its_session_alone() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send(&presence(&["n"])).await;
        let heard = bob.hears_stanzas();
        // It says that it wants `m` under the hash of `n`.
        answer(&bob, asked(&heard).unwrap(), &info(&["m"])).await;
        while bench.wait().await > 0 {}
        publish(&alice, "m", "1").await;
        publish(&alice, "n", "1").await;
        assert_eq!(events(&bob), ["alice@localhost items m item 1"]);
        let tv = bench.login_at(1, "bob@localhost/tv").await;
        tv.hears();
        tv.send(&presence(&["n"])).await;
        assert!(asked(&tv.hears_stanzas()).is_some(), "nobody believes the first one");
    });
}

#[test]
fn an_answer_that_nobody_asked_for_or_an_error_teaches_nothing() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        bob.send(&presence(&["n"])).await;
        let heard = bob.hears_stanzas();
        let id = asked(&heard).unwrap().head.id.clone().unwrap();
        bob.send(&format!("<iq type='result' to='localhost' id='guess'>{}</iq>", query(&info(&["n"])))).await;
        publish(&alice, "n", "1").await;
        assert_eq!(events(&bob), nothing(), "it waits");
        bob.send(&format!("<iq type='error' to='localhost' id='{id}'/>")).await;
        while bench.wait().await > 0 {}
        publish(&alice, "n", "2").await;
        assert_eq!(events(&bob), nothing());
    });
}

#[test]
fn what_comes_before_the_client_has_answered_is_not_lost_and_not_doubled() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let never = options(&[("send_last_published_item", "never"), ("max_items", "9")]);
        set(&alice, &(publication("marks", "0") + &never)).await;
        publish(&alice, "n", "0").await;
        bob.send(&presence(&["n", "marks"])).await;
        let heard = bob.hears_stanzas();
        publish(&alice, "marks", "1").await;
        publish(&alice, "marks", "2").await;
        publish(&alice, "n", "1").await;
        publish(&alice, "other", "1").await;
        assert_eq!(events(&bob), nothing());
        answer(&bob, asked(&heard).unwrap(), &info(&["n", "marks"])).await;
        while bench.wait().await > 0 {}
        let told = [
            "alice@localhost items marks item 1",
            "alice@localhost items marks item 2",
            "alice@localhost items n item 1",
        ];
        assert_eq!(events(&bob), told);
    });
}

#[test]
fn who_goes_on_at_another_node_is_not_asked_and_told_again() {
    block_on(async {
        let bench = bench();
        let bob = bench.login("bob@localhost/desk").await;
        come(&bench, &bob, &["n", "m"]).await;
        bob.send("<presence type='unavailable'/>").await;
        assert_eq!(bench.registry().pack(bob.view()).iter().filter(|(name, _)| *name == "pep").count(), 0);
        come(&bench, &bob, &["n", "m"]).await;
        publish(&bob, "n", "1").await;
        let packed = bench.registry().pack(bob.view());
        let (_, packed) = packed.iter().find(|(name, _)| *name == "pep").unwrap();
        let tv = bench.online("bob@localhost/tv").await;
        bench.registry().unpack(tv.view(), "pep", packed);
        bench.services().announce(SessionEvent::Resumed(tv.view().clone())).await;
        while bench.wait().await > 0 {}
        assert_eq!(tv.hears().len(), 0);
        publish(&bob, "m", "2").await;
        assert_eq!(events(&tv), ["bob@localhost items m item 2"]);
        // Nothing came along: the client is asked.
        let phone = bench.online("bob@localhost/phone").await;
        phone.send(&presence(&["fresh"])).await;
        assert!(asked(&phone.hears_stanzas()).is_some());
        bench.services().announce(SessionEvent::Resumed(phone.view().clone())).await;
        assert!(asked(&phone.hears_stanzas()).is_none(), "it is asked already");
    });
}

#[test]
fn nobody_hears_of_a_node_that_is_closed_to_them() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let carol = bench.online_at(1, "carol@localhost/x").await;
        befriend(&alice, &carol).await;
        while bench.wait().await > 0 {}
        for client in [&alice, &bob, &carol] {
            come(&bench, client, &["n"]).await;
        }
        set(&alice, &(publication("n", "1") + &options(&[("access_model", "whitelist")]))).await;
        assert_eq!((events(&bob), events(&carol)), (nothing(), nothing()));
        own(
            &alice,
            "set",
            "<affiliations node='n'><affiliation jid='bob@localhost' affiliation='member'/></affiliations>",
        )
        .await;
        publish(&alice, "n", "2").await;
        assert_eq!(events(&bob), ["alice@localhost items n item 2"]);
        assert_eq!(events(&carol), nothing());
        let roster = form(
            "configure",
            "node_config",
            &[("access_model", "roster"), ("roster_groups_allowed", "Friends")],
        )
        .replace("<configure>", "<configure node='n'>");
        own(&alice, "set", &roster).await;
        alice.send("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='carol@localhost'><group>Friends</group></item></query></iq>").await;
        publish(&alice, "n", "3").await;
        assert_eq!(events(&carol), ["alice@localhost items n item 3"]);
        assert_eq!(events(&bob), nothing());
        own(&alice, "set", "<affiliations node='n'><affiliation jid='carol@localhost' affiliation='outcast'/></affiliations>").await;
        publish(&alice, "n", "4").await;
        assert_eq!(events(&carol), nothing());
        let listed = own(&alice, "get", "<affiliations node='n'/>").await;
        for told in [
            "affiliation='owner' jid='alice@localhost'",
            "affiliation='member' jid='bob@localhost'",
            "affiliation='outcast' jid='carol@localhost'",
        ] {
            assert!(listed.contains(told), "{listed}");
        }
        assert!(
            get(&bob, "alice", "<affiliations/>")
                .await
                .contains("<affiliation affiliation='member' node='n'/>")
        );
    });
}

#[test]
fn who_is_blocked_hears_nothing_and_who_blocks_neither() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        come(&bench, &bob, &["n"]).await;
        let block = |jid: &str| {
            format!("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='{jid}'/></block></iq>")
        };
        alice.send(&block("bob@localhost")).await;
        publish(&alice, "n", "1").await;
        assert_eq!(events(&bob), nothing());
        let tv = bench.login_at(1, "bob@localhost/tv").await;
        tv.hears();
        tv.send(&presence(&["n"])).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&tv), nothing());
        alice.send("<iq type='set' id='u'><unblock xmlns='urn:xmpp:blocking'/></iq>").await;
        publish(&alice, "n", "2").await;
        assert_eq!(events(&bob), ["alice@localhost items n item 2"]);
        bob.send(&block("alice@localhost")).await;
        publish(&alice, "n", "3").await;
        assert_eq!(events(&bob), nothing());
        let desk = bench.login_at(1, "bob@localhost/laptop").await;
        desk.hears();
        desk.send(&presence(&["n"])).await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&desk), nothing());
    });
}

#[test]
fn a_new_contact_gets_what_was_published() {
    block_on(async {
        let bench = bench();
        let alice = bench.online_at(0, "alice@localhost/phone").await;
        let bob = bench.login_at(1, "bob@localhost/desk").await;
        come(&bench, &bob, &["n"]).await;
        publish(&alice, "n", "1").await;
        publish(&alice, "m", "1").await;
        bob.send("<presence to='alice@localhost' type='subscribe'/>").await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&bob), nothing());
        alice.send("<presence to='bob@localhost' type='subscribed'/>").await;
        while bench.wait().await > 0 {}
        assert_eq!(events(&bob), ["alice@localhost items n item 1"]);
        alice.send("<presence to='bob@localhost' type='unsubscribed'/>").await;
        publish(&alice, "n", "2").await;
        assert_eq!(events(&bob), nothing());
    });
}

fn subscribe(jid: &str) -> String {
    format!("<pubsub xmlns='{}'><subscribe node='n' jid='{jid}'/></pubsub>", pubsub::NS)
}

#[test]
fn who_subscribes_hears_of_it_once_whatever_the_client_says() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let tv = bench.online_at(0, "bob@localhost/tv").await;
        set(&alice, &(publication("n", "1") + &options(&[("access_model", "open")]))).await;
        let told = ask(&bob, "alice", "set", &subscribe("bob@localhost")).await;
        assert!(told.contains("jid='bob@localhost'") && told.contains("subscription='subscribed'"), "{told}");
        come(&bench, &bob, &["n"]).await;
        tv.hears();
        publish(&alice, "n", "2").await;
        for client in [&bob, &tv] {
            assert_eq!(events(client), ["alice@localhost items n item 2"]);
        }
        let listed = get(&bob, "alice", "<subscriptions/>").await;
        assert!(listed.contains("jid='bob@localhost' node='n'"), "{listed}");
        assert!(own(&alice, "get", "<subscriptions node='n'/>").await.contains("jid='bob@localhost'"));
        let end =
            format!("<pubsub xmlns='{}'><unsubscribe node='n' jid='bob@localhost'/></pubsub>", pubsub::NS);
        assert_eq!(ask(&bob, "alice", "set", &end).await, "");
        ask(&tv, "alice", "set", &subscribe("bob@localhost/tv")).await;
        tv.hears();
        publish(&alice, "n", "3").await;
        assert_eq!(events(&bob), ["alice@localhost items n item 3"]);
        assert_eq!(events(&tv), ["alice@localhost items n item 3"]);
    });
}

#[test]
fn a_stranger_subscribes_to_an_open_node_and_gets_the_last_item() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let eve = bench.online_at(1, "eve@localhost/tv").await;
        set(&alice, &(publication("n", "1") + &options(&[("access_model", "open")]))).await;
        eve.send(&format!(
            "<iq type='set' to='alice@localhost' id='s'>{}</iq>",
            subscribe("eve@localhost/tv")
        ))
        .await;
        assert_eq!(events(&eve), ["alice@localhost items n item 1"]);
        publish(&alice, "n", "2").await;
        assert_eq!(events(&eve), ["alice@localhost items n item 2"]);
        let closed = form("configure", "node_config", &[("access_model", "presence")])
            .replace("<configure>", "<configure node='n'>");
        own(&alice, "set", &closed).await;
        publish(&alice, "n", "3").await;
        assert_eq!(events(&eve), nothing(), "it is not open any more");
    });
}

#[test]
fn the_owner_decides_who_subscribes() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let eve = bench.online_at(1, "eve@localhost/tv").await;
        set(&alice, &(publication("n", "1") + &options(&[("access_model", "authorize")]))).await;
        let told = ask(&eve, "alice", "set", &subscribe("eve@localhost")).await;
        assert!(told.contains("subscription='pending'"), "{told}");
        let heard = alice.hears_stanzas();
        let request = heard.iter().find(|stanza| stanza.child("x", "jabber:x:data").is_some()).unwrap();
        assert_eq!(request.head.from.as_ref().map(Jid::as_str), Some("alice@localhost"));
        assert!(String::from_utf8_lossy(request.body()).contains("<value>eve@localhost</value>"));
        assert_eq!(
            ask(&eve, "alice", "set", &subscribe("eve@localhost")).await,
            "not-authorized pending-subscription"
        );
        publish(&alice, "n", "2").await;
        assert_eq!(events(&eve), nothing());
        let decide = |allow: &str| {
            form(
                "message",
                "subscribe_authorization",
                &[("node", "n"), ("subscriber_jid", "eve@localhost"), ("allow", allow)],
            )
            .replace("<message>", "<message to='alice@localhost'>")
        };
        alice.hears();
        alice.send(&decide("true")).await;
        let heard = eve.hears();
        assert!(heard[0].contains("subscription='subscribed'"), "{heard:?}");
        assert!(heard[1].contains("<item id='2'"), "{heard:?}");
        publish(&alice, "n", "3").await;
        assert_eq!(eve.hears().len(), 1);
        alice.send(&decide("true")).await;
        let heard = alice.hears_stanzas();
        assert!(heard.iter().any(|stanza| stanza.as_error().is_some()), "nobody waits: {heard:?}");
        own(
            &alice,
            "set",
            "<subscriptions node='n'><subscription jid='eve@localhost' subscription='none'/></subscriptions>",
        )
        .await;
        assert!(eve.hears()[0].contains("subscription='none'"));
        publish(&alice, "n", "4").await;
        assert_eq!(events(&eve), nothing());
    });
}

//! Tests of `avatars.rs`, against a whole cluster in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client, parse, xml};

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench(config: ModulesConfig) -> Bench {
    Bench::cluster(3, &["localhost"], move || modules(&config))
}

/// The SHA-1 of the bytes `one` and of `two`.
const ONE: (&str, &str) = ("b25t", "");
fn hash(text: &str) -> String {
    pep::avatars::Picture::read("image/png", text).unwrap().hash()
}

async fn ask(client: &Client, kind: &str, to: &str, payload: &str) -> String {
    client.hears();
    let to = if to.is_empty() { String::new() } else { format!(" to='{to}@localhost'") };
    client.send(&format!("<iq type='{kind}' id='q1'{to}>{payload}</iq>")).await;
    let heard = client.hears_stanzas();
    let answer = heard.iter().find(|heard| heard.head.id.as_deref() == Some("q1")).expect("an answer");
    match answer.as_error() {
        Some(error) => error.condition.tag().to_owned(),
        None => String::from_utf8(answer.body().to_vec()).unwrap(),
    }
}

async fn publish(client: &Client, node: &str, id: &str, payload: &str, access: &str) -> String {
    let options = match access {
        "" => String::new(),
        access => format!(
            "<publish-options><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>\
             http://jabber.org/protocol/pubsub#publish-options</value></field><field var='pubsub#access_model'>\
             <value>{access}</value></field></x></publish-options>"
        ),
    };
    let item = format!("<publish node='{node}'><item id='{id}'>{payload}</item></publish>");
    ask(
        client,
        "set",
        "",
        &format!("<pubsub xmlns='http://jabber.org/protocol/pubsub'>{item}{options}</pubsub>"),
    )
    .await
}

async fn show(client: &Client, text: &str, id: &str, access: &str) {
    let data = format!("<data xmlns='urn:xmpp:avatar:data'>{text}</data>");
    publish(client, "urn:xmpp:avatar:data", id, &data, access).await;
    let info = format!(
        "<metadata xmlns='urn:xmpp:avatar:metadata'><info bytes='1' id='x' type='image/png' url='http://x'/>\
         <info bytes='3' id='{id}' type='image/gif'/></metadata>"
    );
    publish(client, "urn:xmpp:avatar:metadata", id, &info, access).await;
}

async fn vcard(client: &Client, of: &str) -> String {
    ask(client, "get", of, "<vCard xmlns='vcard-temp'/>").await
}

async fn nodes(client: &Client, node: &str) -> String {
    let items = format!("<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='{node}'/></pubsub>");
    ask(client, "get", "", &items).await
}

fn photo(kind: &str, text: &str) -> String {
    format!("<PHOTO><TYPE>{kind}</TYPE><BINVAL>{text}</BINVAL></PHOTO>")
}

#[test]
fn a_published_picture_is_in_the_vcard() {
    block_on(async {
        let bench = bench(ModulesConfig::default());
        let (alice, bob) = friends(&bench).await;
        let set = "<vCard xmlns='vcard-temp'><FN>Alice</FN></vCard>";
        ask(&alice, "set", "", set).await;
        show(&alice, ONE.0, &hash(ONE.0), "").await;
        let with = |photo: &str| format!("<vCard xmlns='vcard-temp'><FN>Alice</FN>{photo}</vCard>");
        assert_eq!(vcard(&bob, "alice").await, with(&photo("image/gif", ONE.0)));
        // Another one, then one that is not what its id says, one of nobody, one at another place.
        show(&alice, "dHdv", &hash("dHdv"), "").await;
        let two = with(&photo("image/gif", "dHdv"));
        assert_eq!(vcard(&bob, "alice").await, two);
        show(&alice, ONE.0, "0000000000000000000000000000000000000000", "").await;
        let metadata =
            |inside: &str| format!("<metadata xmlns='urn:xmpp:avatar:metadata'>{inside}</metadata>");
        for inside in
            ["<info bytes='1' id='nobody' type='image/png'/>", "<info bytes='1' id='1' url='http://x'/>"]
        {
            publish(&alice, "urn:xmpp:avatar:metadata", "m", &metadata(inside), "").await;
            assert_eq!(vcard(&bob, "alice").await, two, "{inside}");
        }
        publish(&alice, "urn:xmpp:avatar:metadata", "m", &metadata(""), "").await;
        assert_eq!(vcard(&bob, "alice").await, with(""));
        // With its node it goes too, and without all else the vCard is none.
        show(&alice, ONE.0, &hash(ONE.0), "").await;
        assert_eq!(vcard(&bob, "alice").await, with(&photo("image/gif", ONE.0)));
        let delete = "<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'>\
                      <delete node='urn:xmpp:avatar:metadata'/></pubsub>";
        assert_eq!(ask(&alice, "set", "", delete).await, "");
        assert_eq!(vcard(&bob, "alice").await, with(""));
    });
}

#[test]
fn a_picture_that_not_all_may_see_stays_in_its_node() {
    block_on(async {
        for (access, open, is) in [
            ("open", false, true),
            ("open", true, true),
            ("presence", false, true),
            ("presence", true, false),
            ("whitelist", false, false),
        ] {
            let mut config = ModulesConfig::default();
            config.strangers.vcards = open;
            let bench = bench(config);
            let alice = bench.online("alice@localhost/phone").await;
            show(&alice, ONE.0, &hash(ONE.0), access).await;
            let seen = vcard(&alice, "").await;
            assert_eq!(seen.contains(ONE.0), is, "{access} {open} {seen}");
        }
        // Nor does a vCard become too large by it.
        let mut config = ModulesConfig::default();
        config.vcard.bytes_max = 100;
        let bench = bench(config);
        let alice = bench.online("alice@localhost/phone").await;
        let large = "b25l".repeat(30);
        show(&alice, &large, &hash(&large), "").await;
        assert_eq!(vcard(&alice, "").await, "item-not-found");
    });
}

#[test]
fn the_picture_of_a_vcard_is_published() {
    block_on(async {
        let bench = bench(ModulesConfig::default());
        let alice = bench.online("alice@localhost/phone").await;
        let set = |photo: &str| format!("<vCard xmlns='vcard-temp'><FN>A</FN>{photo}</vCard>");
        ask(&alice, "set", "", &set(&photo("image/jpeg", "b2\n 5l"))).await;
        let id = hash("b25l");
        let data = nodes(&alice, "urn:xmpp:avatar:data").await;
        assert!(data.contains(&format!("id='{id}'")) && data.contains(">b25l<"), "{data}");
        let metadata = nodes(&alice, "urn:xmpp:avatar:metadata").await;
        let info = format!("<info bytes='3' id='{id}' type='image/jpeg'/>");
        assert!(metadata.contains(&info), "{metadata}");
        // What is no picture changes nothing; none any more is none there.
        ask(&alice, "set", "", &set(&photo("image/jpeg", "???"))).await;
        let metadata = nodes(&alice, "urn:xmpp:avatar:metadata").await;
        assert!(metadata.contains("<metadata xmlns='urn:xmpp:avatar:metadata'/>"), "{metadata}");
        // One that was published since is not taken away by a vCard that never had it.
        ask(&alice, "set", "", &set(&photo("image/jpeg", "b25l"))).await;
        ask(&alice, "set", "", "<vCard xmlns='vcard-temp'/>").await;
        assert!(!nodes(&alice, "urn:xmpp:avatar:metadata").await.contains("<info"));
        let info = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
        assert!(ask(&alice, "get", "", info).await.contains(CONVERSION));
    });
}

#[test]
fn presence_speaks_of_the_picture_at_every_node() {
    block_on(async {
        let bench = bench(ModulesConfig::default());
        let (alice, bob) = friends(&bench).await;
        let there = bench.online_at(2, "alice@localhost/tv").await;
        let x = |photo: &str| format!("<x xmlns='{UPDATE}'>{photo}</x>");
        bob.hears();
        there.send("<presence/>").await;
        assert_eq!(bob.hears(), ["<presence to='bob@localhost' from='alice@localhost/tv'/>"]);
        show(&alice, ONE.0, &hash(ONE.0), "").await;
        bob.hears();
        let ours = x(&format!("<photo>{}</photo>", hash(ONE.0)));
        for (said, heard) in [
            (String::new(), ours.clone()),
            (x(""), ours.clone()),
            (x("<photo/>"), x("<photo/>")),
            (x("<photo>0123</photo>"), ours.clone()),
            (ours.clone(), ours.clone()),
        ] {
            for (client, name) in [(&there, "tv"), (&alice, "phone")] {
                client.send(&format!("<presence><priority>1</priority>{said}</presence>")).await;
                let expected = format!(
                    "<presence to='bob@localhost' from='alice@localhost/{name}'><priority>1</priority>{heard}</presence>"
                );
                assert_eq!(bob.hears(), [expected], "{said}");
            }
        }
        // To who is told directly, and when they ask.
        let carol = bench.online("carol@localhost/phone").await;
        there.send("<presence to='carol@localhost'/>").await;
        assert!(carol.hears().concat().contains(&ours));
        there.send("<presence to='carol@localhost' type='unavailable'/>").await;
        assert!(!carol.hears().concat().contains(UPDATE));
        publish(&there, "urn:xmpp:avatar:metadata", "m", "<metadata xmlns='urn:xmpp:avatar:metadata'/>", "")
            .await;
        bob.hears();
        alice.send("<presence/>").await;
        assert!(!bob.hears().concat().contains(UPDATE));
    });
}

#[test]
fn without_nodes_what_clients_say_passes_through() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.set("avatars", "enabled", &"false".parse().unwrap()).unwrap();
        let bench = bench(config);
        let alice = bench.online("alice@localhost/phone").await;
        show(&alice, ONE.0, &hash(ONE.0), "").await;
        assert_eq!(vcard(&alice, "").await, "item-not-found");
    });
}

#[test]
fn a_presence_with_several_words_on_pictures_has_one() {
    let mut presence = parse(&format!("<presence><x xmlns='{UPDATE}'/><x xmlns='{UPDATE}'/></presence>"));
    speak_of("12", &mut presence);
    assert_eq!(xml(&presence), format!("<presence><x xmlns='{UPDATE}'><photo>12</photo></x></presence>"));
}

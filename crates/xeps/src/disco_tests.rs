//! Tests of `disco.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use stanza::Condition;

use super::*;
use crate::index::{ModulesConfig, modules};
use crate::roster::tests::friends;

fn bench() -> Bench {
    Bench::new(&["localhost"], || modules(&ModulesConfig::default()))
}

async fn ask(client: &Client, to: &str, ns: &str) -> Result<Element, Condition> {
    client.hears();
    client.send(&format!("<iq type='get' id='d' to='{to}'><query xmlns='{ns}'/></iq>")).await;
    let heard = client.hears_stanzas();
    match heard[0].as_error() {
        Some(error) => Err(error.condition),
        None => Ok(heard[0].payload().expect("a query").clone()),
    }
}

fn vars(query: &Element) -> Vec<&str> {
    query.children().filter_map(|child| child.attr("var")).collect()
}

#[test]
fn the_server_announces_what_the_cards_say() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        let info = ask(&alice, "localhost", INFO).await.unwrap();
        let identity = info.children().next().unwrap();
        assert_eq!((identity.attr("category"), identity.attr("type")), (Some("server"), Some("im")));
        let features = vars(&info);
        for var in [INFO, ITEMS, "msgoffline", "urn:xmpp:ping", "urn:xmpp:time", "jabber:iq:version"] {
            assert!(features.contains(&var), "{var}");
        }
        let items = ask(&alice, "localhost", ITEMS).await.unwrap();
        assert_eq!(items.children().count(), 0);
    });
}

#[test]
fn an_account_shows_itself_to_its_owner_and_contacts_only() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online("eve@localhost/phone").await;
        for client in [&alice, &bob] {
            let info = ask(client, "alice@localhost", INFO).await.unwrap();
            let identity = info.children().next().unwrap();
            assert_eq!(
                (identity.attr("category"), identity.attr("type")),
                (Some("account"), Some("registered"))
            );
            let items = ask(client, "alice@localhost", ITEMS).await.unwrap();
            let jids: Vec<&str> = items.children().filter_map(|item| item.attr("jid")).collect();
            assert_eq!(jids, ["alice@localhost/phone"]);
        }
        assert_eq!(ask(&eve, "alice@localhost", INFO).await, Err(Condition::ServiceUnavailable));
        assert_eq!(ask(&eve, "nobody@localhost", INFO).await, Err(Condition::ServiceUnavailable));
        assert_eq!(ask(&eve, "alice@localhost", ITEMS).await, Err(Condition::ServiceUnavailable));
        assert_eq!(ask(&eve, "nobody@localhost", ITEMS).await, Err(Condition::ServiceUnavailable));
    });
}

#[test]
fn a_node_that_is_not_there_is_not_found() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice
            .send(&format!("<iq type='get' id='d' to='localhost'><query xmlns='{INFO}' node='x'/></iq>"))
            .await;
        assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::ItemNotFound);
    });
}

#[test]
fn a_host_says_how_its_operators_are_reached() {
    block_on(async {
        let uris = |list: &[&str]| Uris(list.iter().map(|uri| uri.to_string()).collect());
        let disco = Config {
            abuse_addresses: uris(&["mailto:abuse@example.org", "xmpp:abuse@example.org"]),
            status_addresses: uris(&["https://status.example.org"]),
            ..Config::default()
        };
        let config = ModulesConfig { disco, ..ModulesConfig::default() };
        let bench = Bench::new(&["localhost"], move || modules(&config));
        let alice = bench.login("alice@localhost/phone").await;
        let form = |query: &Element| query.children().find(|child| child.is("x", "jabber:x:data")).cloned();
        let info = form(&ask(&alice, "localhost", INFO).await.unwrap()).unwrap();
        assert_eq!(info.attr("type"), Some("result"));
        let fields: Vec<(&str, Vec<String>)> = info
            .children()
            .map(|field| (field.attr("var").unwrap(), field.children().map(Element::text).collect()))
            .collect();
        let expected: [(&str, &[&str]); 3] = [
            ("FORM_TYPE", &["http://jabber.org/network/serverinfo"]),
            ("abuse-addresses", &["mailto:abuse@example.org", "xmpp:abuse@example.org"]),
            ("status-addresses", &["https://status.example.org"]),
        ];
        assert_eq!(fields.len(), expected.len());
        for ((field, values), (var, wanted)) in fields.into_iter().zip(expected) {
            assert_eq!((field, values), (var, wanted.iter().map(|value| value.to_string()).collect()));
        }
        assert_eq!(form(&ask(&alice, "alice@localhost", INFO).await.unwrap()), None);
    });
}

#[test]
fn addresses_of_operators_are_uris() {
    let read = |toml: &str| Uris::read(&toml.parse().unwrap());
    let text = "[\"mailto:a@b\", \"https://b/c?d\"]";
    assert_eq!(read(text).unwrap().write(), text);
    for wrong in ["'mailto:a@b'", "['a@b']", "[':b']", "['1a:b']", "['mailto:']", "['mailto:a b']", "[1]"] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}

#[test]
fn a_host_says_what_becomes_of_data_where_that_is_on() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.set("data_policy", "enabled", &"true".parse().unwrap()).unwrap();
        config.set("data_policy", "data_retention", &"'720'".parse().unwrap()).unwrap();
        let bench = Bench::new(&["localhost"], move || modules(&config));
        let alice = bench.login("alice@localhost/phone").await;
        let form = |query: &Element| query.children().find(|child| child.is("x", "jabber:x:data")).cloned();
        let info = ask(&alice, "localhost", INFO).await.unwrap();
        let said = form(&info).unwrap();
        let value = |var: &str| {
            let field = said.children().find(|field| field.attr("var") == Some(var)).unwrap();
            field.children().map(Element::text).collect::<String>()
        };
        assert_eq!(value("FORM_TYPE"), "urn:xmpp:data-policy:0");
        assert_eq!(value("data_retention"), "720");
        assert!(vars(&info).contains(&"urn:xmpp:noreply:0"));
        let bench = self::bench();
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(form(&ask(&alice, "localhost", INFO).await.unwrap()), None);
    });
}

/// The node of either version at which the answer to disco#info is to be had that a stream has the hashes of.
fn announced(features: &[Element]) -> Vec<String> {
    let caps = |ns| features.iter().find(|feature| feature.is("c", ns)).expect("capabilities");
    let (first, second) = (caps(CAPS), caps(CAPS_2));
    assert_eq!(first.attr("hash"), Some("sha-1"));
    let hash =
        |hash: &Element| format!("{CAPS_2}#{}.{}", hash.attr("algo").expect("an algorithm"), hash.text());
    let first = format!("{}#{}", first.attr("node").unwrap(), first.attr("ver").unwrap());
    std::iter::once(first).chain(second.children().map(hash)).collect()
}

/// What a client takes an answer for that has seen those hashes (XEP-0115, 5.4; XEP-0390, 4).
fn is_announced(info: &Element, node: &str) -> bool {
    let (name, value) = node.split_once('#').unwrap();
    let caps = match value.split_once('.') {
        Some((algo, text)) => {
            format!("<c xmlns='{CAPS_2}'><hash xmlns='urn:xmpp:hashes:2' algo='{algo}'>{text}</hash></c>")
        }
        None => format!("<c xmlns='{CAPS}' hash='sha-1' node='{name}' ver='{value}'/>"),
    };
    let presence = hooks::bench::parse(&format!("<presence>{caps}</presence>"));
    let hash = pep::caps::announced(&presence).unwrap().hash.unwrap();
    // Whatever language the stream has.
    hash.is_of(info, None) && hash.is_of(info, Some("de"))
}

#[test]
fn stream_features_have_the_hashes_of_what_a_host_says() {
    block_on(async {
        let mut config = ModulesConfig::default();
        for (module, key, value) in [
            ("time", "hosts", "['other.example']"),
            ("data_policy", "enabled", "true"),
            ("disco", "abuse_addresses", "['mailto:abuse@example.org']"),
        ] {
            config.set(module, key, &value.parse().unwrap()).unwrap();
        }
        let switches = crate::index::switches(&config);
        let hosts = ["localhost", "other.example"];
        let bench = Bench::switched(&hosts, &switches, move || modules(&config));
        let mut hashes = Vec::new();
        for host in ["localhost", "other.example"] {
            let name = format!("alice@{host}");
            let alice = bench.login(&format!("{name}/phone")).await;
            let nodes = announced(&bench.offered(&name));
            assert_eq!(nodes.len(), 3);
            let plain = ask(&alice, host, INFO).await.unwrap();
            for node in &nodes {
                assert!(is_announced(&plain, node), "{node}");
                alice.hears();
                let query = format!("<query xmlns='{INFO}' node='{node}'/>");
                alice.send(&format!("<iq type='get' id='d' to='{host}'>{query}</iq>")).await;
                let heard = alice.hears_stanzas();
                let info = heard[0].payload().expect("a query");
                assert_eq!(info.attr("node"), Some(&**node));
                assert!(is_announced(info, node), "{node}");
                // XEP-0030, 3.2: nobody has items there.
                alice
                    .send(&format!("<iq type='get' id='d' to='{host}'>{}</iq>", query.replace(INFO, ITEMS)))
                    .await;
                assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::ItemNotFound);
            }
            assert_eq!(announced(&bench.offered(&name)), nodes);
            hashes.push(nodes);
        }
        assert_ne!(hashes[0], hashes[1], "each host has modules of its own");
    });
}

#[test]
fn nothing_is_announced_before_the_login() {
    let bench = bench();
    let host = "localhost".to_owned();
    let offer = Offer { host, account: None, secure: true, stanza_bytes: 8_192, idle_s: None };
    let features = bench.registry().offered(&offer, &*bench.services());
    assert!(features.iter().all(|feature| feature.name() != "c"));
}

/// A server on which other modules are on for a host than a moment ago.
#[test]
fn what_a_host_says_is_made_again_where_other_modules_are_on() {
    let own = own::Own::default();
    let with = |modules: Vec<Arc<dyn Module>>| {
        let modules = parking_lot::Mutex::new(Some(modules));
        Bench::new(&["localhost"], move || modules.lock().take().unwrap()).services()
    };
    let few = with(vec![Arc::new(crate::time::Time)]);
    let more = with(vec![Arc::new(crate::time::Time), Arc::new(crate::no_reply::NoReply)]);
    let first = own.of(&*few, "localhost");
    assert!(Arc::ptr_eq(&first, &own.of(&*few, "localhost")), "hashed once");
    let second = own.of(&*more, "localhost");
    assert_eq!(vars(&second.query).len(), vars(&first.query).len() + 1);
    assert_ne!(announced(second.features()), announced(first.features()));
    assert_eq!(announced(own.of(&*few, "localhost").features()), announced(first.features()));
}

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

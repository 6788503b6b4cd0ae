//! What service discovery shows of nodes.

use futures::executor::block_on;

use super::*;

async fn disco(client: &Client, to: &str, what: &str, node: &str) -> String {
    let node = if node.is_empty() { String::new() } else { format!(" node='{node}'") };
    let query = format!("<query xmlns='http://jabber.org/protocol/disco#{what}'{node}/>");
    ask(client, to, "get", &query).await
}

#[test]
fn an_account_is_a_service_and_shows_the_nodes_that_one_may_see() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let info = disco(&bob, "alice", "info", "").await;
        for told in
            ["category='pubsub' type='pep'", "#auto-create'", "#config-node-max'", "#publish-options'"]
        {
            assert!(info.contains(told), "{told}: {info}");
        }
        set(&alice, &(publication("n", "1") + &options(&[("title", "Notes"), ("max_items", "9")]))).await;
        publish(&alice, "n", "2").await;
        set(&alice, &(publication("private", "1") + &options(&[("access_model", "whitelist")]))).await;
        let items = disco(&bob, "alice", "items", "").await;
        assert!(items.contains("<item jid='alice@localhost' name='Notes' node='n'/>"), "{items}");
        assert!(
            items.contains("<item jid='alice@localhost/phone'/>") && !items.contains("private"),
            "{items}"
        );
        assert!(disco(&alice, "", "items", "").await.contains("node='private'"));
        let node = disco(&bob, "alice", "info", "n").await;
        for told in [
            "category='pubsub' type='leaf'",
            "<value>Notes</value>",
            "pubsub#meta-data",
            "<value>2026-01-01T00:00:00Z</value>",
        ] {
            assert!(node.contains(told), "{told}: {node}");
        }
        let items = disco(&bob, "alice", "items", "n").await;
        assert!(
            items.contains("<item jid='alice@localhost' name='1'/><item jid='alice@localhost' name='2'/>"),
            "{items}"
        );
        for what in ["info", "items"] {
            for node in ["private", "missing"] {
                assert_eq!(disco(&bob, "alice", what, node).await, "item-not-found");
            }
            assert_ne!(disco(&alice, "alice", what, "private").await, "item-not-found");
            assert_eq!(disco(&alice, "alice", what, "missing").await, "item-not-found");
        }
        let eve = bench.online_at(1, "eve@localhost/tv").await;
        assert_eq!(disco(&eve, "alice", "items", "n").await, "service-unavailable");
    });
}

#[test]
fn without_the_module_an_account_has_no_nodes() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.set("pep", "enabled", &"false".parse().unwrap()).unwrap();
        let bench = bench_of(config);
        let alice = bench.online("alice@localhost/phone").await;
        assert!(!disco(&alice, "", "info", "").await.contains("pubsub"));
        assert_eq!(disco(&alice, "", "items", "n").await, "item-not-found");
        assert_eq!(set(&alice, &publication("n", "1")).await, "service-unavailable");
    });
}

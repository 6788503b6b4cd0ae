//! Requests and their answers.

use futures::executor::block_on;

use super::*;

const GET: &str = "<items node='n'/>";

fn items(inside: &str) -> String {
    format!("<pubsub xmlns='{}'><items node='n'>{inside}</items></pubsub>", pubsub::NS)
}

fn item(id: &str, publisher: &str) -> String {
    format!("<item id='{id}' publisher='{publisher}@localhost'><t xmlns='urn:t'>{id}</t></item>")
}

#[test]
fn what_is_published_is_read_again_by_those_who_see_the_user() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let eve = bench.online_at(1, "eve@localhost/tv").await;
        publish(&alice, "n", "1").await;
        for client in [&alice, &bob] {
            assert_eq!(get(client, "alice", GET).await, items(&item("1", "alice")));
            assert_eq!(get(client, "alice", "<items node='m'/>").await, "item-not-found");
        }
        assert_eq!(get(&alice, "", GET).await, items(&item("1", "alice")));
        for other in ["alice", "nobody"] {
            assert_eq!(get(&eve, other, GET).await, "service-unavailable");
        }
        publish(&alice, "n", "2").await;
        assert_eq!(get(&bob, "alice", GET).await, items(&item("2", "alice")));
        for action in [publication("n", "3"), publication("m", "3"), "<create node='o'/>".into()] {
            let payload = format!("<pubsub xmlns='{}'>{action}</pubsub>", pubsub::NS);
            let refused = ask(&bob, "alice", "set", &payload).await;
            assert!(["forbidden", "item-not-found"].contains(&refused.as_str()), "{refused}");
            assert_eq!(ask(&eve, "alice", "set", &payload).await, "service-unavailable");
        }
    });
}

#[test]
fn an_item_without_an_id_gets_one() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let answer = set(&alice, "<publish node='n'><item><t xmlns='urn:t'/></item></publish>").await;
        let (_, id) = answer.split_once("<item id='").unwrap();
        let (id, _) = id.split_once('\'').unwrap();
        assert_eq!(id.len(), 16);
        assert!(get(&alice, "", GET).await.contains(id));
    });
}

#[test]
fn bad_requests_are_told_why() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        publish(&alice, "n", "1").await;
        for (action, expected) in [
            ("", "bad-request"),
            ("<other/>", "bad-request"),
            ("<publish><item id='1'><t xmlns='urn:t'/></item></publish>", "bad-request nodeid-required"),
            ("<publish node='n'/>", "bad-request item-required"),
            ("<publish node='n'><item id='1'/></publish>", "bad-request payload-required"),
            (
                "<publish node='n'><item><a xmlns='u'/><b xmlns='u'/></item></publish>",
                "bad-request invalid-payload",
            ),
            (
                "<publish node='n'><item><a xmlns='u'/></item><item><a xmlns='u'/></item></publish>",
                "bad-request",
            ),
            ("<retract node='n'/>", "bad-request item-required"),
            ("<retract node='n'><item/></retract>", "bad-request item-required"),
            ("<retract><item id='1'/></retract>", "bad-request nodeid-required"),
            ("<retract node='n'><item id='2'/></retract>", "item-not-found"),
            ("<retract node='n' notify='perhaps'><item id='1'/></retract>", "bad-request"),
            ("<retract node='m'><item id='1'/></retract>", "item-not-found"),
            ("<create node='n'/>", "conflict"),
            ("<subscribe node='n'/>", "bad-request"),
            ("<subscribe node='n' jid='@'/>", "bad-request invalid-jid"),
            ("<subscribe node='n' jid='bob@localhost'/>", "bad-request invalid-jid"),
            ("<unsubscribe node='n' jid='alice@localhost'/>", "unexpected-request not-subscribed"),
            ("<options node='n' jid='alice@localhost'/>", "feature-not-implemented unsupported"),
            ("<items node='n'/>", "bad-request"),
        ] {
            assert_eq!(set(&alice, action).await, expected, "{action}");
        }
        for (action, expected) in [
            ("<items/>", "bad-request nodeid-required"),
            ("<items node='n' max_items='x'/>", "bad-request"),
            ("<items node='n' subid='x'/>", "not-acceptable invalid-subid"),
            ("<items node='n'><item id='x'/></items>", "item-not-found"),
            ("<default/>", "feature-not-implemented unsupported"),
            ("<publish node='n'/>", "bad-request"),
        ] {
            assert_eq!(get(&alice, "", action).await, expected, "{action}");
        }
        for (kind, action, expected) in [
            ("get", "<configure/>", "bad-request nodeid-required"),
            ("get", "<configure node='m'/>", "item-not-found"),
            ("set", "<delete node='m'/>", "item-not-found"),
            ("set", "<purge node='m'/>", "item-not-found"),
            ("set", "<purge/>", "bad-request nodeid-required"),
            (
                "set",
                "<affiliations node='n'><affiliation jid='bob@localhost' affiliation='king'/></affiliations>",
                "not-acceptable",
            ),
            (
                "set",
                "<affiliations node='n'><affiliation jid='bob@localhost' affiliation='owner'/></affiliations>",
                "not-acceptable",
            ),
            (
                "set",
                "<affiliations node='n'><affiliation jid='alice@localhost' affiliation='none'/></affiliations>",
                "not-acceptable",
            ),
            (
                "set",
                "<subscriptions node='n'><subscription jid='bob@localhost' subscription='maybe'/></subscriptions>",
                "not-acceptable",
            ),
            (
                "set",
                "<subscriptions node='n'><subscription jid='@' subscription='none'/></subscriptions>",
                "bad-request invalid-jid",
            ),
            ("get", "<delete node='n'/>", "bad-request"),
            (
                "set",
                "<configure node='n'><x xmlns='jabber:x:data' type='submit'/></configure>",
                "bad-request",
            ),
        ] {
            assert_eq!(own(&alice, kind, action).await, expected, "{action}");
        }
        assert_eq!(
            own(
                &alice,
                "set",
                &form("configure node='n'", "node_config", &[("access_model", "x")])
                    .replace("</configure node='n'>", "</configure>")
            )
            .await,
            "not-acceptable unsupported-access-model"
        );
        let other = format!("<other xmlns='{}'/>", pubsub::NS);
        assert_eq!(ask(&alice, "", "set", &other).await, "bad-request");
        assert_eq!(get(&alice, "", GET).await, items(&item("1", "alice")));
    });
}

#[test]
fn options_are_preconditions_and_the_configuration_of_a_node_that_they_make() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        // As XEP-0402 and XEP-0490 ask for it.
        let private = options(&[
            ("persist_items", "true"),
            ("max_items", "max"),
            ("send_last_published_item", "never"),
            ("access_model", "whitelist"),
        ]);
        for id in ["a", "b", "a"] {
            let answer = set(&alice, &(publication("n", id) + &private)).await;
            assert!(answer.contains(&format!("<item id='{id}'/>")), "{answer}");
        }
        let both = item("b", "alice") + &item("a", "alice");
        assert_eq!(get(&alice, "", GET).await, items(&both));
        assert_eq!(get(&bob, "alice", GET).await, "not-allowed closed-node");
        let public = options(&[("access_model", "open")]);
        let refused = set(&alice, &(publication("n", "c") + &public)).await;
        assert_eq!(refused, "conflict precondition-not-met");
        assert_eq!(get(&alice, "", GET).await, items(&both));
    });
}

#[test]
fn the_owner_configures_purges_and_deletes() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let create = "<create node='n'/>".to_owned()
            + &form("configure", "node_config", &[("title", "Notes"), ("max_items", "2")]);
        assert_eq!(set(&alice, &create).await, "");
        let shown = own(&alice, "get", "<configure node='n'/>").await;
        assert!(shown.contains("<value>Notes</value>") && shown.contains("type='form'"), "{shown}");
        assert!(own(&alice, "get", "<default/>").await.contains("<value>presence</value>"));
        for id in ["1", "2", "3"] {
            publish(&alice, "n", id).await;
        }
        assert_eq!(get(&alice, "", GET).await, items(&(item("2", "alice") + &item("3", "alice"))));
        let one = form(
            "configure",
            "node_config",
            &[("max_items", "1"), ("access_model", "roster"), ("roster_groups_allowed", "Friends,Family")],
        )
        .replace("<configure>", "<configure node='n'>");
        assert_eq!(own(&alice, "set", &one).await, "");
        assert_eq!(get(&alice, "", GET).await, items(&item("3", "alice")));
        assert_eq!(get(&bob, "alice", GET).await, "not-authorized not-in-roster-group");
        alice.send("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='bob@localhost'><group>Family</group></item></query></iq>").await;
        assert_eq!(get(&bob, "alice", GET).await, items(&item("3", "alice")));
        let cancel = "<configure node='n'><x xmlns='jabber:x:data' type='cancel'/></configure>";
        assert_eq!(own(&alice, "set", cancel).await, "");
        let payload = format!("<pubsub xmlns='{}'><delete node='n'/></pubsub>", pubsub::OWNER);
        assert_eq!(ask(&bob, "alice", "set", &payload).await, "forbidden");
        assert_eq!(own(&alice, "set", "<purge node='n'/>").await, "");
        let empty = format!("<pubsub xmlns='{}'><items node='n'/></pubsub>", pubsub::NS);
        assert_eq!(get(&alice, "", GET).await, empty);
        assert_eq!(own(&alice, "set", "<delete node='n'/>").await, "");
        assert_eq!(get(&alice, "", GET).await, "item-not-found");
        let made = set(&alice, "<create/>").await;
        assert!(made.contains("<create node='"), "{made}");
    });
}

#[test]
fn items_are_read_page_by_page_and_by_their_ids() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        for id in ["1", "2", "3", "4"] {
            set(&alice, &(publication("n", id) + &options(&[("max_items", "10")]))).await;
        }
        let of = |ids: &[&str]| ids.iter().map(|id| item(id, "alice")).collect::<String>();
        assert_eq!(get(&bob, "alice", "<items node='n' max_items='2'/>").await, items(&of(&["3", "4"])));
        let named = "<items node='n'><item id='3'/><item id='1'/></items>";
        assert_eq!(get(&bob, "alice", named).await, items(&of(&["3", "1"])));
        let page =
            format!("{GET}<set xmlns='http://jabber.org/protocol/rsm'><max>2</max><after>1</after></set>");
        let set = "<set xmlns='http://jabber.org/protocol/rsm'><first>2</first><last>3</last><count>4</count></set>";
        let expected = items(&of(&["2", "3"])).replace("</pubsub>", &format!("{set}</pubsub>"));
        assert_eq!(get(&bob, "alice", &page).await, expected);
        let index = format!("{GET}<set xmlns='http://jabber.org/protocol/rsm'><index>2</index></set>");
        assert_eq!(get(&bob, "alice", &index).await, "feature-not-implemented");
    });
}

#[test]
fn an_open_node_is_open_to_strangers_unless_the_config_says_otherwise() {
    block_on(async {
        for open_nodes in [true, false] {
            let mut config = ModulesConfig::default();
            config.strangers.open_nodes = open_nodes;
            let bench = bench_of(config);
            let alice = bench.online("alice@localhost/phone").await;
            let eve = bench.online_at(1, "eve@localhost/tv").await;
            set(&alice, &(publication("n", "1") + &options(&[("access_model", "open")]))).await;
            publish(&alice, "m", "1").await;
            let (seen, missing) = match open_nodes {
                true => (items(&item("1", "alice")), "item-not-found"),
                false => ("service-unavailable".to_owned(), "service-unavailable"),
            };
            assert_eq!(get(&eve, "alice", GET).await, seen);
            assert_eq!(get(&eve, "alice", "<items node='n'><item id='2'/></items>").await, missing);
            for (of, node) in [("alice", "m"), ("alice", "o"), ("nobody", "n")] {
                let hidden = get(&eve, of, &format!("<items node='{node}'/>")).await;
                assert_eq!(hidden, "service-unavailable", "{of} {node}");
            }
            for action in ["<subscriptions/>", "<affiliations/>"] {
                assert_eq!(get(&eve, "alice", action).await, "service-unavailable");
            }
        }
    });
}

#[test]
fn each_bound_of_the_config_holds() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.pep.nodes_max = 2;
        config.pep.items_max = 3;
        config.pep.item_bytes_max = 100;
        config.pep.bytes_max = 550;
        let bench = bench_of(config);
        let alice = bench.online("alice@localhost/phone").await;
        publish(&alice, "n", "1").await;
        publish(&alice, "m", "1").await;
        assert_eq!(set(&alice, &publication("o", "1")).await, "conflict max-nodes-exceeded");
        let large = publication("n", &"x".repeat(100));
        assert_eq!(set(&alice, &large).await, "not-acceptable payload-too-big");
        let more = form("configure", "node_config", &[("max_items", "4")])
            .replace("<configure>", "<configure node='n'>");
        assert_eq!(own(&alice, "set", &more).await, "not-acceptable");
        let all = more.replace(">4<", ">max<");
        assert_eq!(own(&alice, "set", &all).await, "");
        for id in ["2", "3"] {
            publish(&alice, "n", id).await;
        }
        let full = publication("n", &"y".repeat(60));
        assert_eq!(set(&alice, &full).await, "resource-constraint max-items-exceeded");
        publish(&alice, "n", "4").await;
        let left: String = ["2", "3", "4"].iter().map(|id| item(id, "alice")).collect();
        assert_eq!(get(&alice, "", GET).await, items(&left));
    });
}

#[test]
fn everything_goes_with_its_account() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        publish(&alice, "n", "1").await;
        bench.remove_account("alice@localhost").await;
        let alice = bench.online("alice@localhost/phone").await;
        assert_eq!(get(&alice, "", GET).await, "item-not-found");
        publish(&alice, "n", "2").await;
        assert_eq!(get(&alice, "", GET).await, items(&item("2", "alice")));
    });
}

#[test]
fn who_has_the_name_of_a_removed_account_is_not_taken_for_it() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        set(&alice, &(publication("n", "1") + &options(&[("access_model", "whitelist")]))).await;
        let member = "<affiliation jid='bob@localhost' affiliation='member'/>";
        own(&alice, "set", &format!("<affiliations node='n'>{member}</affiliations>")).await;
        assert_eq!(get(&bob, "alice", GET).await, items(&item("1", "alice")));
        bench.remove_account("bob@localhost").await;
        let (alice, bob) = friends(&bench).await;
        assert_eq!(get(&bob, "alice", GET).await, "not-allowed closed-node");
        assert!(!own(&alice, "get", "<affiliations node='n'/>").await.contains("bob"));
    });
}

#[test]
fn who_has_no_account_publishes_nothing() {
    block_on(async {
        let bench = bench();
        let guest = bench.login_anonymously("guest@localhost/x").await;
        assert_eq!(set(&guest, &publication("n", "1")).await, "forbidden");
    });
}

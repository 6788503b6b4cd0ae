//! Tests of the engine over a store in memory: `engine.rs`, `others.rs`, `listing.rs`.

use futures::executor::block_on;
use jid::{BareJid, Jid};
use stanza::StanzaError;

use super::*;
use crate::pubsub::access::Affiliation;
use crate::pubsub::config::{AccessModel, Count, PublishModel};
use crate::pubsub::listing::{Page, Wanted};

fn limits() -> Limits {
    Limits { nodes: 3, items: 5, item_bytes: 200, bytes: 100_000, others: 3, subscriptions: 2 }
}

fn service<'a>(store: &'a Store, limits: &'a Limits) -> Service<'a> {
    Service { store, partition: Partition::Account("a@h".into()), limits, now_s: 1_000 }
}

fn asker(bare: &str, presence: bool) -> Asker {
    Asker { bare: BareJid::new(bare).unwrap(), is_owner: bare == "a@h", presence, groups: Vec::new() }
}

fn owner() -> Asker {
    asker("a@h", true)
}

fn new(id: &str) -> New {
    New { id: id.into(), xml: format!("<t xmlns='urn:t'>{id}</t>").into_bytes(), namespace: "urn:t".into() }
}

fn fields(list: &[(&str, &str)]) -> Fields {
    Fields(list.iter().map(|(var, value)| (format!("pubsub#{var}"), vec![value.to_string()])).collect())
}

fn refused<T: std::fmt::Debug>(result: Result<T, Failure>) -> StanzaError {
    match result {
        Err(Failure::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

async fn publish(service: &Service<'_>, name: &str, id: &str) -> Changed {
    service.publish(name, Some(&new(id)), None, &owner()).await.unwrap()
}

async fn ids(service: &Service<'_>, name: &str, wanted: Wanted) -> Vec<String> {
    let node = service.existing(name).await.unwrap();
    let listing = service.items(name, &node, &wanted).await.unwrap();
    listing.items.into_iter().map(|item| item.id).collect()
}

fn all() -> Wanted {
    Wanted::Page(Page::default())
}

async fn tally(service: &Service<'_>) -> Tally {
    service.store.get(&service.partition, KEY).await.unwrap().unwrap()
}

#[test]
fn a_publication_makes_its_node_and_a_singleton_keeps_one_item() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let made = publish(&service, "n", "1").await;
        assert!(made.created && made.node.config == NodeConfig::default());
        assert!(!publish(&service, "n", "2").await.created);
        assert_eq!(ids(&service, "n", all()).await, ["2"]);
        let node = service.existing("n").await.unwrap();
        assert_eq!(service.last("n", &node).await.unwrap().unwrap().id, "2");
        let kept = tally(&service).await;
        assert_eq!((kept.nodes, node.items), (1, 1));
        service.delete("n").await.unwrap();
        let kept = tally(&service).await;
        assert_eq!((kept.nodes, kept.bytes), (0, 0));
        assert_eq!(refused(service.existing("n").await), errors::not_found());
    });
}

#[test]
fn items_keep_the_order_of_their_last_publication_and_the_oldest_goes() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let options = fields(&[("max_items", "max")]);
        service.publish("n", Some(&new("0")), Some(&options), &owner()).await.unwrap();
        for id in ["1", "2", "3", "1", "4"] {
            publish(&service, "n", id).await;
        }
        assert_eq!(ids(&service, "n", all()).await, ["0", "2", "3", "1", "4"]);
        publish(&service, "n", "5").await;
        assert_eq!(ids(&service, "n", all()).await, ["2", "3", "1", "4", "5"]);
        let node = service.existing("n").await.unwrap();
        assert_eq!(service.ids("n", &node).await.unwrap(), ["2", "3", "1", "4", "5"]);
        service.retract("n", "5", &owner()).await.unwrap();
        assert_eq!(refused(service.retract("n", "5", &owner()).await), errors::not_found());
        assert_eq!(ids(&service, "n", all()).await, ["2", "3", "1", "4"]);
        service.configure("n", &fields(&[("max_items", "2")])).await.unwrap();
        assert_eq!(ids(&service, "n", all()).await, ["1", "4"]);
        service.purge("n").await.unwrap();
        assert_eq!(ids(&service, "n", all()).await, Vec::<String>::new());
        assert_eq!(tally(&service).await.bytes, 0);
        let node = service.existing("n").await.unwrap();
        assert_eq!((node.items, service.last("n", &node).await.unwrap()), (0, None));
    });
}

#[test]
fn pages_are_found_by_the_items_beside_them() {
    block_on(async {
        let (store, limits) = (Store::memory(), Limits { items: 100, ..limits() });
        let service = service(&store, &limits);
        let options = fields(&[("max_items", "max")]);
        for n in 0..70 {
            let item = new(&format!("{n:02}"));
            service.publish("n", Some(&item), Some(&options), &owner()).await.unwrap();
        }
        let page = |max, after: Option<&str>, before: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Wanted::Page(Page { max, after: text(after), before: text(before), is_asked: true })
        };
        assert_eq!(ids(&service, "n", all()).await.len(), 70);
        assert_eq!(ids(&service, "n", page(Some(2), None, None)).await, ["00", "01"]);
        assert_eq!(ids(&service, "n", page(Some(2), Some("01"), None)).await, ["02", "03"]);
        assert_eq!(ids(&service, "n", page(Some(40), Some("65"), None)).await, ["66", "67", "68", "69"]);
        assert_eq!(ids(&service, "n", page(Some(2), None, Some(""))).await, ["68", "69"]);
        assert_eq!(ids(&service, "n", page(Some(2), None, Some("68"))).await, ["66", "67"]);
        assert_eq!(ids(&service, "n", page(Some(0), None, None)).await, Vec::<String>::new());
        assert_eq!(ids(&service, "n", Wanted::Recent(3)).await, ["67", "68", "69"]);
        assert_eq!(ids(&service, "n", Wanted::Recent(300)).await.len(), 70);
        let named = Wanted::Ids(vec!["05".into(), "gone".into(), "03".into()]);
        assert_eq!(ids(&service, "n", named).await, ["05", "03"]);
        let node = service.existing("n").await.unwrap();
        let listing = service.items("n", &node, &page(Some(2), Some("01"), None)).await.unwrap();
        let set = listing.set.unwrap();
        assert_eq!((set.first.as_deref(), set.last.as_deref(), set.count), (Some("02"), Some("03"), 70));
        for nothing in [page(None, Some("gone"), None), page(None, None, Some("gone"))] {
            assert_eq!(refused(service.items("n", &node, &nothing).await), errors::not_found());
        }
        let gone = Wanted::Ids(vec!["gone".into()]);
        assert_eq!(refused(service.items("n", &node, &gone).await), errors::not_found());
    });
}

#[test]
fn an_answer_that_would_be_too_large_is_a_page() {
    block_on(async {
        let (store, limits) =
            (Store::memory(), Limits { item_bytes: 200_000, bytes: 10_000_000, ..limits() });
        let service = service(&store, &limits);
        let options = fields(&[("max_items", "max")]);
        for id in ["1", "2", "3", "4", "5"] {
            let item = New { xml: vec![b'x'; 60_000], ..new(id) };
            service.publish("n", Some(&item), Some(&options), &owner()).await.unwrap();
        }
        let node = service.existing("n").await.unwrap();
        let listing = service.items("n", &node, &all()).await.unwrap();
        let set = listing.set.unwrap();
        assert_eq!((listing.items.len(), set.last.as_deref(), set.count), (4, Some("4"), 5));
        let recent = service.items("n", &node, &Wanted::Recent(5)).await.unwrap();
        assert_eq!(
            recent.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(),
            ["2", "3", "4", "5"]
        );
        assert!(recent.set.is_some());
    });
}

#[test]
fn options_make_a_node_or_must_be_met() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let private = fields(&[("access_model", "whitelist"), ("persist_items", "1"), ("max_items", "max")]);
        let made = service.publish("n", Some(&new("1")), Some(&private), &owner()).await.unwrap();
        assert_eq!(
            (made.node.config.access, made.node.config.max_items),
            (AccessModel::Whitelist, Count::Max)
        );
        service.publish("n", Some(&new("2")), Some(&private), &owner()).await.unwrap();
        let open = fields(&[("access_model", "open")]);
        let unmet = service.publish("n", Some(&new("3")), Some(&open), &owner()).await;
        assert_eq!(refused(unmet), errors::precondition_not_met());
        let unknown = fields(&[("unheard_of", "1")]);
        let unmet = service.publish("m", Some(&new("3")), Some(&unknown), &owner()).await;
        assert_eq!(refused(unmet), errors::precondition_not_met());
        assert_eq!(service.node("m").await.unwrap(), None);
        assert_eq!(ids(&service, "n", all()).await, ["1", "2"]);
    });
}

#[test]
fn what_has_had_its_time_is_not_there_and_goes() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let mut service = service(&store, &limits);
        let options = fields(&[("max_items", "max"), ("item_expire", "10")]);
        for (now_s, id) in [(1_000, "1"), (1_005, "2"), (1_008, "3")] {
            service.now_s = now_s;
            service.publish("n", Some(&new(id)), Some(&options), &owner()).await.unwrap();
        }
        service.now_s = 1_010;
        assert_eq!(ids(&service, "n", all()).await, ["2", "3"]);
        assert_eq!(refused(service.retract("n", "1", &owner()).await), errors::not_found());
        service.now_s = 1_016;
        let changed = service.publish("n", Some(&new("4")), None, &owner()).await.unwrap();
        assert_eq!(changed.node.items, 2);
        assert_eq!(ids(&service, "n", all()).await, ["3", "4"]);
        service.now_s = 2_000;
        let node = service.existing("n").await.unwrap();
        assert_eq!(service.last("n", &node).await.unwrap(), None);
        assert_eq!(service.ids("n", &node).await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_node_that_keeps_nothing_has_nothing_to_read() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let options = fields(&[("persist_items", "0")]);
        let made = service.publish("n", Some(&new("1")), Some(&options), &owner()).await.unwrap();
        assert!(made.created);
        service.publish("n", Some(&new("2")), None, &owner()).await.unwrap();
        let node = service.existing("n").await.unwrap();
        assert_eq!((node.items, service.last("n", &node).await.unwrap()), (0, None));
        let unsupported = errors::unsupported("persistent-items");
        assert_eq!(refused(service.items("n", &node, &all()).await), unsupported);
        assert_eq!(refused(service.retract("n", "1", &owner()).await), unsupported);
        assert_eq!(refused(service.purge("n").await), unsupported);
        // Table 3 of section 4.3.
        assert_eq!(refused(service.publish("n", None, None, &owner()).await), errors::item_required());
        service.configure("n", &fields(&[("deliver_payloads", "0")])).await.unwrap();
        service.publish("n", None, None, &owner()).await.unwrap();
        let with_item = service.publish("n", Some(&new("3")), None, &owner()).await;
        assert_eq!(refused(with_item), errors::item_forbidden());
    });
}

#[test]
fn what_is_published_must_fit() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let put = async |new: New| refused(service.publish("n", Some(&new), None, &owner()).await);
        assert_eq!(put(New { xml: Vec::new(), ..new("1") }).await, errors::payload_required());
        assert_eq!(put(New { xml: vec![b'x'; 201], ..new("1") }).await, errors::payload_too_big());
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(put(new(&long)).await.condition, stanza::Condition::NotAcceptable);
        let named = service.publish(&long, Some(&new("1")), None, &owner()).await;
        assert_eq!(refused(named).condition, stanza::Condition::NotAcceptable);
        assert_eq!(refused(service.publish("n", None, None, &owner()).await), errors::item_required());
        assert_eq!(service.node("n").await.unwrap(), None);
        service
            .create("n", &NodeConfig { payload_type: "urn:u".into(), ..NodeConfig::default() })
            .await
            .unwrap();
        assert_eq!(put(new("1")).await, errors::invalid_payload());
        assert_eq!(refused(service.create("n", &NodeConfig::default()).await), errors::node_exists());
    });
}

#[test]
fn every_bound_holds_and_there_is_room_again_behind_it() {
    block_on(async {
        let (store, limits) = (Store::memory(), Limits { bytes: 400, ..limits() });
        let service = service(&store, &limits);
        for name in ["a", "b", "c"] {
            publish(&service, name, "1").await;
        }
        let more = service.publish("d", Some(&new("1")), None, &owner()).await;
        assert_eq!(refused(more), errors::too_many_nodes());
        let more = service.create("d", &NodeConfig::default()).await;
        assert_eq!(refused(more), errors::too_many_nodes());
        let large = New { xml: vec![b'x'; 200], ..new("1") };
        assert_eq!(refused(service.publish("a", Some(&large), None, &owner()).await), errors::full());
        assert_eq!(ids(&service, "a", all()).await, ["1"]);
        service.delete("b").await.unwrap();
        service.publish("a", Some(&large), None, &owner()).await.unwrap();
        service.create("d", &NodeConfig::default()).await.unwrap();
    });
}

#[test]
fn who_publishes_by_leave_writes_over_nothing_of_others() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        let config =
            NodeConfig { publish: PublishModel::Open, max_items: Count::Max, ..NodeConfig::default() };
        service.create("n", &config).await.unwrap();
        let (bob, eve) = (asker("b@h", true), asker("e@h", false));
        service.publish("n", Some(&new("1")), None, &bob).await.unwrap();
        let stranger = service.publish("n", Some(&new("2")), None, &eve).await;
        assert_eq!(refused(stranger), errors::forbidden());
        publish(&service, "n", "2").await;
        for refusal in
            [service.publish("n", Some(&new("2")), None, &bob).await, service.retract("n", "2", &bob).await]
        {
            assert_eq!(refused(refusal), errors::forbidden());
        }
        service.retract("n", "1", &bob).await.unwrap();
        let absent = service.publish("m", Some(&new("1")), None, &bob).await;
        assert_eq!(refused(absent), errors::not_found());
    });
}

#[test]
fn subscriptions_come_wait_and_go() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        service
            .create("n", &NodeConfig { access: AccessModel::Authorize, ..NodeConfig::default() })
            .await
            .unwrap();
        let bob = asker("b@h", false);
        let jid = |jid: &str| Jid::new(jid).unwrap();
        let made = service.subscribe("n", &jid("b@h"), &bob, "s1").await.unwrap();
        assert!(made.is_new && made.subscription.pending);
        assert_eq!(refused(service.subscribe("n", &jid("b@h"), &bob, "s2").await), errors::pending());
        assert_eq!(refused(service.subscribe("n", &jid("c@h"), &bob, "s2").await), errors::invalid_jid());
        assert_eq!(refused(service.subscribe("m", &jid("b@h"), &bob, "s2").await), errors::not_found());
        assert_eq!(service.decide("n", &jid("c@h"), true).await.unwrap(), None);
        let decided = service.decide("n", &jid("b@h"), true).await.unwrap().unwrap();
        assert!(!decided.pending && decided.id == "s1");
        let again = service.subscribe("n", &jid("b@h"), &bob, "s3").await.unwrap();
        assert!(!again.is_new && again.subscription.id == "s1");
        let phone = service.subscribe("n", &jid("b@h/phone"), &bob, "s4").await.unwrap();
        assert!(!phone.subscription.pending, "who may read needs no approval");
        let third = service.subscribe("n", &jid("b@h/desk"), &bob, "s5").await;
        assert_eq!(refused(third), errors::too_many_subscriptions());
        let wrong = service.unsubscribe("n", &jid("b@h"), Some("s4"), &bob).await;
        assert_eq!(refused(wrong), errors::invalid_subid());
        let foreign = service.unsubscribe("n", &jid("b@h"), None, &asker("c@h", true)).await;
        assert_eq!(refused(foreign), errors::forbidden());
        for at in ["b@h", "b@h/phone"] {
            service.unsubscribe("n", &jid(at), None, &bob).await.unwrap();
        }
        assert_eq!(
            refused(service.unsubscribe("n", &jid("b@h"), None, &bob).await),
            errors::not_subscribed()
        );
        assert_eq!(service.existing("n").await.unwrap().others, 0);
    });
}

#[test]
fn the_owner_says_who_has_to_do_with_a_node() {
    block_on(async {
        let (store, limits) = (Store::memory(), limits());
        let service = service(&store, &limits);
        service
            .create("n", &NodeConfig { access: AccessModel::Whitelist, ..NodeConfig::default() })
            .await
            .unwrap();
        let (bob, bare) = (asker("b@h", true), BareJid::new("b@h").unwrap());
        let may_read = async || {
            let node = service.existing("n").await.unwrap();
            let other = service.other("n", &node, &bob).await.unwrap();
            standing(&bob, &other).may_read(&node.config)
        };
        assert_eq!(may_read().await, Err(errors::closed_node()));
        service.set_affiliation("n", &bare, Affiliation::Member).await.unwrap();
        assert_eq!(may_read().await, Ok(()));
        let jid = Jid::from(bare.clone());
        assert!(service.set_subscription("n", &jid, Some("s")).await.unwrap().1);
        assert!(!service.set_subscription("n", &jid, Some("t")).await.unwrap().1);
        let (_, ended) = service.set_affiliation("n", &bare, Affiliation::Outcast).await.unwrap();
        assert_eq!((ended.len(), may_read().await), (1, Err(errors::forbidden())));
        service.set_affiliation("n", &bare, Affiliation::None).await.unwrap();
        assert_eq!(service.existing("n").await.unwrap().others, 0);
        for name in ["c@h", "d@h", "e@h"] {
            let bare = BareJid::new(name).unwrap();
            service.set_affiliation("n", &bare, Affiliation::Member).await.unwrap();
        }
        let more = service.set_affiliation("n", &bare, Affiliation::Member).await;
        assert_eq!(refused(more), errors::too_many_others());
        let (_, others) = service.delete("n").await.unwrap();
        assert_eq!(others.len(), 3);
        assert_eq!(store.scan::<Other>(&service.partition, store::Range::all()).await.unwrap(), []);
    });
}

#[test]
fn changes_at_the_same_time_lose_nothing() {
    block_on(async {
        let (store, limits) = (Store::memory(), Limits { items: 100, ..limits() });
        let service = service(&store, &limits);
        service.create("n", &NodeConfig { max_items: Count::Max, ..NodeConfig::default() }).await.unwrap();
        let all_at_once = (0..20).map(|n| {
            let service = service.clone();
            async move { service.publish("n", Some(&new(&n.to_string())), None, &owner()).await.map(drop) }
        });
        for published in futures::future::join_all(all_at_once).await {
            published.unwrap();
        }
        assert_eq!(ids(&service, "n", all()).await.len(), 20);
        assert_eq!(service.existing("n").await.unwrap().items, 20);
    });
}

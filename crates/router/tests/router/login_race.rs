//! A login that races messages: nothing is bounced for an old table, and nothing newer overtakes what was kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hooks::bench::parse;
use hooks::{Accounts, Credentials, How, ScramKeys, Services, Store, StoreError, Table};
use router::{Config, Fate};
use stanza::Kind;
use store::{Batch, Committed, Engine, Key, Partition, Range, Record};

use crate::modules::Keeper;
use crate::world::{Client, Link, Node, World, id, node, until};

/// A store that takes its time, now more, now less, as one that agrees with others does.
struct Late {
    engine: Arc<dyn Engine>,
    seed: Arc<AtomicU64>,
}

/// Takes some hundred microseconds, or none.
async fn dawdle(seed: &AtomicU64) {
    let step = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let mixed = (step ^ (step >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
    // The delay is the fault that this store brings in; no test waits for a time to pass.
    let late = std::future::pending::<()>();
    assert!(tokio::time::timeout(Duration::from_micros(mixed % 3_000), late).await.is_err());
}

impl Engine for Late {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let (partition, key) = (partition.clone(), key.to_vec());
        Box::pin(async move {
            dawdle(&self.seed).await;
            self.engine.get(&partition, table, &key, deadline).await
        })
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let partition = partition.clone();
        Box::pin(async move {
            dawdle(&self.seed).await;
            self.engine.scan(&partition, table, range, deadline).await
        })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move {
            dawdle(&self.seed).await;
            let committed = self.engine.commit(batches, deadline).await;
            dawdle(&self.seed).await;
            committed
        })
    }
}

async fn create(store: &Store, names: &[&str]) {
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    for name in names {
        Accounts::new(store.clone()).create(name, &credentials).await.unwrap();
    }
}

/// Two nodes with the real modules over one late store.
async fn pair() -> (Arc<World>, [Node; 2], [Link; 2], Arc<AtomicU64>) {
    let seed = Arc::new(AtomicU64::new(1));
    let engine = Arc::new(store::engines::memory::Memory::new());
    let store = Store::new(Arc::new(Late { engine, seed: seed.clone() }));
    create(&store, &["alice@localhost", "bob@localhost"]).await;
    let world = World::new(2);
    let modules = || xeps::modules(&xeps::ModulesConfig::default());
    let nodes = [1, 2].map(|number| node(&world, number, &store, modules(), Config::default()));
    let links = [nodes[0].listen().await, nodes[1].listen().await];
    (world, nodes, links, seed)
}

/// The numbers of the next messages, whatever comes between them: also copies that other nodes send to a session which
/// has asked for none, and would drop them as it delivers (XEP-0280).
async fn messages(client: &mut Client, count: usize) -> Vec<usize> {
    let is_message = |xml: &&String| xml.starts_with("<message") && !xml.contains("urn:xmpp:carbons:2");
    let mut ids = Vec::new();
    while ids.len() < count {
        let heard = client.hears(1).await;
        ids.extend(heard.iter().filter(is_message).map(|xml| id(xml)));
    }
    ids
}

/// Bob comes online at a node while alice sends from the first, again and again.
async fn race(at: usize) {
    let (world, nodes, _links, seed) = pair().await;
    let alice = nodes[0].login("alice@localhost/a", Some(0));
    for round in 0..40 {
        let numbers = round * 100..round * 100 + 12;
        let mut bob = nodes[at].login("bob@localhost/b", None);
        let send = async {
            for number in numbers.clone() {
                alice.chats("bob@localhost", number).await;
                dawdle(&seed).await;
            }
        };
        let come = async {
            dawdle(&seed).await;
            dawdle(&seed).await;
            bob.comes_online().await;
        };
        futures::join!(send, come);
        assert_eq!(messages(&mut bob, 12).await, numbers.collect::<Vec<_>>(), "round {round}");
        bob.close(&world, Vec::new());
    }
    let counters = nodes[0].router.counters();
    assert_eq!(counters.stanzas(Kind::Message, Fate::Bounced), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_at_another_node_that_races_messages_gets_them_in_order() {
    race(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_at_the_senders_node_that_races_messages_gets_them_in_order() {
    race(0).await;
}

async fn two(config: Config) -> (Arc<World>, [Node; 2], [Link; 2], Arc<Keeper>) {
    let store = Store::memory();
    create(&store, &["alice@localhost", "bob@localhost"]).await;
    let world = World::new(2);
    let keeper = Arc::new(Keeper::default());
    let nodes = [1, 2].map(|number| node(&world, number, &store, vec![keeper.clone()], config.clone()));
    let links = [nodes[0].listen().await, nodes[1].listen().await];
    (world, nodes, links, keeper)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_held_wait_in_order_and_what_is_older_passes_them() {
    let (_world, nodes, _links, _) = two(Config::default()).await;
    let alice = nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = nodes[1].login("bob@localhost/b", Some(0));
    let services: Arc<dyn Services> = nodes[1].router.services();
    let hold = services.hold(bob.view.account());
    let also = services.hold(bob.view.account());
    for number in 10..20 {
        alice.chats("bob@localhost", number).await;
    }
    until("they wait", || nodes[1].router.account_queues() == 1).await;
    for number in 0..10 {
        let kept = format!("<message from='x@localhost/r' to='bob@localhost' type='chat' id='{number}'/>");
        services.route(parse(&kept), How::Ahead).await;
    }
    assert_eq!(bob.hears_ids(10).await, (0..10).collect::<Vec<_>>());
    drop(also);
    assert!(bob.rest().is_empty(), "one session still holds them");
    drop(hold);
    assert_eq!(bob.hears_ids(10).await, (10..20).collect::<Vec<_>>());
    until("nobody waits", || nodes[1].router.account_queues() == 0).await;
}

/// A session ends at one node and its successor is available at another; of what the two say, the end comes last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_comes_behind_its_successor_is_looked_at_again() {
    let (_world, nodes, _links, keeper) = two(Config::default()).await;
    let mut bob = nodes[1].login("bob@localhost/b", Some(0));
    let here = nodes[0].login("alice@localhost/here", Some(0));
    let _successor = nodes[1].login("alice@localhost/there", Some(0));
    let end = |resource: &str, id: usize| {
        format!(
            "<presence from='alice@localhost/{resource}' to='bob@localhost' type='unavailable' id='{id}'/>"
        )
    };
    // Said by the node that the session is at, and of one that nobody has any more: it is believed.
    nodes[0].says(&end("here", 1)).await;
    nodes[0].says(&end("nowhere", 2)).await;
    assert_eq!(bob.hears_ids(2).await, [1, 2]);
    assert_eq!(nodes[1].here.barriers.load(Ordering::SeqCst), 0);
    // Said by another one.
    nodes[0].says(&end("there", 3)).await;
    assert_eq!(bob.hears_ids(1).await, [3]);
    until("the account is asked", || !keeper.probed.lock().is_empty()).await;
    assert!(keeper.probed.lock().iter().all(|to| to == "alice@localhost"));
    drop(here);
}

/// Two contacts become available at the same moment: the one that is agreed on last sees the other, whose own node may
/// not show that yet, and who asks nobody but those whom it shows when it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_reaches_who_becomes_available_where_the_table_is_behind() {
    let (_world, nodes, _links, _keeper) = two(Config::default()).await;
    let alice = nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = nodes[1].login("bob@localhost/b", None);
    let mut mute = nodes[1].login("bob@localhost/mute", None);
    nodes[1].here.freeze();
    bob.view.set_presence(Some(parse("<presence/>")));
    let agreed = nodes[1].router.services().set_priority(&bob.view, Some(0)).await;
    agreed.unwrap();
    alice.says("<presence to='bob@localhost' id='1'/>").await;
    alice.says("<presence to='bob@localhost' type='unavailable' id='2'/>").await;
    assert_eq!(bob.hears_ids(2).await, [1, 2]);
    assert!(mute.rest().is_empty(), "a session that has said nothing heard of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_just_bound_elsewhere_is_found_by_a_sender_whose_table_is_behind() {
    let (_world, nodes, _links, keeper) = two(Config::default()).await;
    let mut alice = nodes[0].login("alice@localhost/a", Some(0));
    nodes[0].here.freeze();
    let mut bob = nodes[1].login("bob@localhost/b", Some(0));
    alice.says("<iq to='bob@localhost/b' type='get' id='1'><x xmlns='x'/></iq>").await;
    alice.chats("bob@localhost/b", 2).await;
    alice.chats("bob@localhost", 3).await;
    alice.says("<iq to='bob@localhost/b' type='result' id='4'/>").await;
    alice.says("<message to='bob@localhost/b' id='5'/>").await;
    alice.says("<presence to='bob@localhost/b' type='unavailable' id='6'/>").await;
    until("the table is asked for", || nodes[0].here.barriers.load(Ordering::SeqCst) == 1).await;
    nodes[0].here.thaw();
    assert_eq!(bob.hears_ids(6).await, [1, 2, 3, 4, 5, 6]);
    assert!(alice.rest().is_empty() && keeper.ids().is_empty());
    // Nobody who is in the table costs a question.
    let asked = nodes[0].here.barriers.load(Ordering::SeqCst);
    alice.chats("bob@localhost", 7).await;
    alice.says("<presence to='bob@localhost/gone' type='subscribed' id='8'/>").await;
    assert_eq!(bob.hears_ids(1).await, [7]);
    assert_eq!(nodes[0].here.barriers.load(Ordering::SeqCst), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_stays_behind_is_waited_for_once_and_not_for_ever() {
    let config = Config { refused_wait_ms: 50, ..Config::default() };
    let (_world, nodes, _links, keeper) = two(config).await;
    let mut alice = nodes[0].login("alice@localhost/a", Some(0));
    nodes[0].here.freeze();
    alice.says("<iq to='bob@localhost/gone' type='get' id='1'><x xmlns='x'/></iq>").await;
    for number in 2..1_000 {
        alice.chats("bob@localhost", number).await;
    }
    assert!(alice.hears(1).await[0].contains("service-unavailable"));
    until("all are kept", || keeper.ids().len() == 998).await;
    assert_eq!(keeper.ids(), (2..1_000).collect::<Vec<_>>());
}

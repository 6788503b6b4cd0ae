//! Several nodes over loopback: order, acknowledgements, cut links, lost nodes, receivers that moved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{Incarnation, NodeId};
use hooks::bench::parse;
use hooks::{Accounts, Credentials, ScramKeys, Services, Store};
use jid::{FullJid, Jid};
use router::Config;

use crate::modules::Keeper;
use crate::world::{Client, Link, Node, SOON, World, id, node, until};

struct Cluster {
    world: Arc<World>,
    nodes: Vec<Node>,
    links: Vec<Link>,
    keepers: Vec<Arc<Keeper>>,
}

/// So many nodes that reach each other; `alice`, `bob` and `carol` have accounts.
async fn cluster(count: u64, config: Config) -> Cluster {
    let world = World::new(count);
    let store = Store::memory();
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    for name in ["alice@localhost", "bob@localhost", "carol@localhost"] {
        Accounts::new(store.clone()).create(name, &credentials).await.unwrap();
    }
    let mut all = Cluster { world: world.clone(), nodes: vec![], links: vec![], keepers: vec![] };
    for number in 1..=count {
        let keeper = Arc::new(Keeper::default());
        let node = node(&world, number, &store, vec![keeper.clone()], config.clone());
        all.links.push(node.listen().await);
        all.nodes.push(node);
        all.keepers.push(keeper);
    }
    all
}

fn numbers(range: std::ops::Range<usize>) -> Vec<usize> {
    range.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_crosses_once_and_is_remembered_until_it_is_written() {
    let all = cluster(2, Config::default()).await;
    let mut alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 1).await;
    let taken = bob.takes().await;
    assert_eq!(taken.len(), 1);
    until("it is received", || all.nodes[0].router.lanes().iter().all(|lane| lane.unreceived == 0)).await;
    assert_eq!(all.nodes[0].unsettled(), 1, "received and not written: still remembered");
    for delivery in taken {
        delivery.receipt.settle();
    }
    until("it is forgotten", || all.nodes[0].unsettled() == 0).await;
    bob.chats("alice@localhost/a", 2).await;
    assert_eq!(alice.hears_ids(1).await, [2]);
    // An error comes back the same way.
    alice.says("<iq to='bob@localhost/gone' type='get' id='3'><x xmlns='x'/></iq>").await;
    assert!(alice.hears(1).await[0].contains("service-unavailable"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut_again_and_again_loses_nothing_and_repeats_nothing() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    let mut carol = all.nodes[1].login("carol@localhost/c", Some(0));
    let count = 2_000;
    for number in 0..count {
        alice.chats("bob@localhost", number).await;
        alice.chats("carol@localhost", number).await;
        if number % 250 == 100 {
            // Some under way, some not yet sent.
            assert_eq!(bob.hears_ids(1).await.len(), 1);
            all.links[1].cut();
        }
        if number % 250 == 200 {
            all.links[1].mend();
        }
        tokio::task::yield_now().await;
    }
    let heard = bob.hears_ids(count - 8).await;
    assert_eq!(heard, numbers(8..count), "each once and in order");
    assert_eq!(carol.hears_ids(count).await, numbers(0..count));
    until("all is settled", || all.nodes[0].unsettled() == 0).await;
    assert!(bob.rest().is_empty() && carol.rest().is_empty());
    let counters = all.nodes[1].router.counters();
    assert_eq!(counters.parcels_received.load(Ordering::Relaxed), 2 * count as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_windows_bound_the_sender_hears_resource_constraint() {
    let config = Config { relay_window_stanzas: 50, ..Config::default() };
    let all = cluster(2, config).await;
    let mut alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    all.links[1].cut();
    for number in 0..60 {
        alice.chats("bob@localhost", number).await;
    }
    let bounced = alice.hears(10).await;
    assert!(bounced.iter().all(|xml| xml.contains("resource-constraint")), "{bounced:?}");
    assert_eq!(bounced.iter().map(|xml| id(xml)).collect::<Vec<_>>(), numbers(50..60));
    all.links[1].mend();
    assert_eq!(bob.hears_ids(50).await, numbers(0..50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_does_not_take_is_bounded_as_well() {
    let config = Config { relay_unsettled_stanzas: 50, ..Config::default() };
    let all = cluster(2, config).await;
    let mut alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let bob = all.nodes[1].login("bob@localhost/b", Some(0));
    for number in 0..51 {
        alice.chats("bob@localhost", number).await;
    }
    assert_eq!(alice.hears_ids(1).await, [50]);
    until("all are there", || bob.mailbox.len() == 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_node_had_not_settled_is_kept_in_order_before_what_comes_later() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    for number in 0..100 {
        alice.chats("bob@localhost", number).await;
    }
    // Ten were written, the rest was received or not; then the node dies.
    assert_eq!(bob.hears_ids(10).await, numbers(0..10));
    let settled = || all.nodes[0].unsettled() <= 90;
    until("ten are settled", settled).await;
    all.links[1].cut();
    for number in 100..200 {
        alice.chats("bob@localhost", number).await;
    }
    let unsettled = all.nodes[0].unsettled();
    all.world.expire(NodeId(2)).await;
    for number in 200..300 {
        alice.chats("bob@localhost", number).await;
    }
    let kept = || all.keepers[0].ids();
    until("all are kept", || kept().len() >= unsettled + 100).await;
    let first = 200 - unsettled;
    assert!(first >= 10, "nothing that was written is kept");
    assert_eq!(kept(), numbers(first..300));
    until("nothing is left", || all.nodes[0].router.lanes().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_session_that_is_nowhere_asks_one_node() {
    let all = cluster(3, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut laptop = all.nodes[1].login("bob@localhost/laptop", Some(0));
    let mut desk = all.nodes[2].login("bob@localhost/desk", Some(0));
    let probed = || all.keepers.iter().flat_map(|keeper| keeper.probed.lock().clone()).collect::<Vec<_>>();
    alice.says("<presence type='probe' to='bob@localhost/gone'/>").await;
    alice.says("<presence type='probe' to='bob@localhost'/>").await;
    // Behind them, to every node.
    alice.says("<presence type='unavailable' to='bob@localhost' id='1'/>").await;
    assert_eq!(laptop.hears_ids(1).await, [1]);
    assert_eq!(desk.hears_ids(1).await, [1]);
    assert_eq!(probed().iter().filter(|to| *to == "bob@localhost/gone").count(), 1);
    assert_eq!(probed().iter().filter(|to| *to == "bob@localhost").count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_moved_gets_all_in_order_from_a_sender_with_an_old_table() {
    let all = cluster(3, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut before = all.nodes[1].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 0).await;
    assert_eq!(before.hears_ids(1).await, [0]);
    // Bob moves from the second to the third node, and the first does not know yet.
    all.nodes[0].here.freeze();
    before.close(&all.world, Vec::new());
    let mut after = all.nodes[2].login("bob@localhost/b", Some(0));
    for number in 1..50 {
        alice.chats("bob@localhost", number).await;
    }
    let refused = || all.nodes[0].router.counters().refusals.load(Ordering::Relaxed) > 0;
    until("the second node refuses", refused).await;
    for number in 50..100 {
        alice.chats("bob@localhost", number).await;
    }
    assert!(after.rest().is_empty());
    all.nodes[0].here.thaw();
    for number in 100..150 {
        alice.chats("bob@localhost", number).await;
    }
    assert_eq!(after.hears_ids(149).await, numbers(1..150));
    until("all is settled", || all.nodes[0].unsettled() == 0).await;
    assert!(all.keepers.iter().all(|keeper| keeper.ids().is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_a_session_that_was_just_bound_elsewhere_waits_for_the_table() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    all.nodes[0].here.freeze();
    let mut bob = all.nodes[1].login("bob@localhost/b", None);
    alice.says("<iq to='bob@localhost/b' type='get' id='1'><question xmlns='urn:example'/></iq>").await;
    alice.says("<iq to='bob@localhost/b' type='result' id='2'/>").await;
    alice.says("<presence to='bob@localhost/b' id='3'/>").await;
    alice.says("<message to='bob@localhost/b' type='chat' id='4'/>").await;
    all.nodes[0].here.thaw();
    assert_eq!(bob.hears_ids(4).await, [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_whose_table_stays_old_stores_after_a_bounded_wait() {
    let config = Config { refused_wait_ms: 50, ..Config::default() };
    let all = cluster(2, config).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let bob = all.nodes[1].login("bob@localhost/b", Some(0));
    all.nodes[0].here.freeze();
    bob.close(&all.world, Vec::new());
    for number in 0..20 {
        alice.chats("bob@localhost", number).await;
    }
    until("all are kept", || all.keepers[0].ids().len() == 20).await;
    assert_eq!(all.keepers[0].ids(), numbers(0..20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_crosses_to_each_node_once_for_each_lane() {
    let all = cluster(3, Config::default()).await;
    let mut clients = Vec::new();
    for n in 0..100 {
        clients.push(all.nodes[1 + n % 2].login(&format!("user{n}@localhost/r"), Some(0)));
    }
    let presence = parse("<presence from='alice@localhost/a' id='7'/>");
    let to: Vec<Jid> = (0..100).map(|n| Jid::new(&format!("user{n}@localhost")).unwrap()).collect();
    all.nodes[0].router.fan_out(presence, to).await;
    for (n, client) in clients.iter_mut().enumerate() {
        let heard = client.hears(1).await;
        assert_eq!(heard, [format!("<presence to='user{n}@localhost' from='alice@localhost/a' id='7'/>")]);
    }
    let sent = all.nodes[0].router.counters().parcels_sent.load(Ordering::Relaxed);
    assert!(sent <= 8, "{sent} parcels for 100 receivers at 2 nodes");
    until("all is settled", || all.nodes[0].unsettled() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_to_an_account_reaches_its_sessions_at_every_node() {
    let all = cluster(3, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut one = all.nodes[0].login("bob@localhost/1", Some(0));
    let mut two = all.nodes[1].login("bob@localhost/2", Some(-1));
    let mut three = all.nodes[2].login("bob@localhost/3", Some(9));
    alice.says("<presence to='bob@localhost' id='1'/>").await;
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(client.hears_ids(1).await, [1]);
    }
    // A request is seen by the handlers of one node, and by all available sessions.
    alice.says("<presence to='bob@localhost' type='subscribe' id='2'/>").await;
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(client.hears_ids(1).await, [2]);
    }
    // Equal priorities at two nodes: a copy each, and one each.
    let mut four = all.nodes[1].login("bob@localhost/4", Some(9));
    alice.chats("bob@localhost", 3).await;
    assert_eq!(three.hears_ids(1).await, [3]);
    assert_eq!(four.hears_ids(1).await, [3]);
    assert!(one.rest().is_empty() && two.rest().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_point_at_each_other_end_in_the_store() {
    let config = Config { refused_wait_ms: 50, ..Config::default() };
    let all = cluster(2, config).await;
    let jid = FullJid::new("bob@localhost/b").unwrap();
    // Each believes that the other has him.
    all.world.bind(NodeId(2), &jid, Some(0));
    all.nodes[0].here.freeze();
    all.world.bind(NodeId(1), &jid, Some(0));
    all.nodes[1].here.freeze();
    all.nodes[0].login("alice@localhost/a", Some(0)).chats("bob@localhost", 1).await;
    until("it is kept", || all.keepers.iter().any(|keeper| keeper.ids() == [1])).await;
    until("it is forgotten", || all.nodes.iter().all(|node| node.unsettled() == 0)).await;
}

/// Alice, and a session of Bob at another node that has not read what she wrote to `to`: its route is taken back before its
/// mail is.
async fn with_unread_mail(all: &Cluster, to: &str, count: usize) -> (Client, Client) {
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let bob = all.nodes[1].login("bob@localhost/b", Some(0));
    for number in 0..count {
        alice.chats(to, number).await;
    }
    until("it is all there", || bob.mailbox.len() == count).await;
    all.world.unbind(bob.sid);
    (alice, bob)
}

/// A session that has not read all of its mail ends, and the account comes back at another node while more is sent:
/// first what comes back from the old node, then what is newer.
async fn moves_with_unread_mail(to: usize) {
    let all = cluster(3, Config::default()).await;
    let (alice, old) = with_unread_mail(&all, "bob@localhost", 20).await;
    for number in 20..40 {
        alice.chats("bob@localhost", number).await;
    }
    let mut new = all.nodes[to].login("bob@localhost/b", Some(0));
    for number in 40..60 {
        alice.chats("bob@localhost", number).await;
    }
    old.close(&all.world, vec![]);
    assert_eq!(new.hears_ids(60).await, numbers(0..60));
    assert!(all.keepers.iter().all(|keeper| keeper.ids().is_empty()));
    until("all is settled", || all.nodes.iter().all(|node| node.unsettled() == 0)).await;
}

/// One session of the account does not read: what another node has sent to the other one alone does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_one_session_does_not_wait_for_another_one() {
    // Longer than the test waits for anything.
    let all = cluster(2, Config { refused_wait_ms: 60_000, ..Config::default() }).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let slow = all.nodes[1].login("bob@localhost/slow", Some(0));
    let mut quick = all.nodes[1].login("bob@localhost/quick", Some(0));
    alice.chats("bob@localhost/slow", 1).await;
    until("it waits", || slow.mailbox.len() == 1).await;
    let direct = "<message from='alice@localhost/a' to='bob@localhost/quick' type='chat' id='2'><body>2</body></message>";
    all.nodes[0].router.route(parse(direct), hooks::How::Direct).await;
    assert_eq!(quick.hears_ids(1).await, [2]);
}

/// The session of the receiver ends and another one of the same node takes its full JID, as the sender's node has sent
/// something to the first: that is refused, and must not be overtaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_a_displaced_session_comes_before_what_is_newer() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut first = all.nodes[1].login("bob@localhost/b", Some(0));
    // So the link is open.
    alice.chats("bob@localhost/b", 0).await;
    assert_eq!(first.hears_ids(1).await, [0]);
    all.links[1].cut();
    for number in 1..=3 {
        alice.chats("bob@localhost/b", number).await;
    }
    // Nothing of the first is left at the node when they come there.
    first.close(&all.world, Vec::new());
    let mut second = all.nodes[1].login("bob@localhost/b", Some(0));
    for number in 4..=6 {
        alice.chats("bob@localhost/b", number).await;
    }
    all.links[1].mend();
    assert_eq!(second.hears_ids(6).await, numbers(1..7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ended_session_did_not_read_comes_before_what_is_newer() {
    moves_with_unread_mail(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ended_session_did_not_read_comes_back_to_the_node_of_its_sender() {
    moves_with_unread_mail(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_comes_back_is_not_waited_for_for_ever() {
    let config = Config { refused_wait_ms: 100, ..Config::default() };
    let all = cluster(3, config).await;
    // The node of the old session does not come to its end.
    let (alice, old) = with_unread_mail(&all, "bob@localhost", 1).await;
    let mut new = all.nodes[2].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 1).await;
    assert_eq!(new.hears_ids(1).await, [1]);
    old.close(&all.world, vec![]);
    assert_eq!(new.hears_ids(1).await, [0]);
}

/// They come while a session there is getting what was kept for it: the first finds nobody before it, and waits; the
/// others wait behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_to_a_session_that_still_gets_what_was_kept_stays_in_order() {
    let all = cluster(2, Config::default()).await;
    let (_alice, old) = with_unread_mail(&all, "bob@localhost/b", 20).await;
    let services: Arc<dyn Services> = all.nodes[0].router.services();
    let hold = services.hold(&"bob@localhost".parse().unwrap());
    let mut new = all.nodes[0].login("bob@localhost/b", Some(0));
    old.close(&all.world, vec![]);
    until("they are back", || all.nodes[0].router.account_queues() == 1 && all.nodes[1].unsettled() == 20)
        .await;
    drop(hold);
    assert_eq!(new.hears_ids(20).await, numbers(0..20));
}

/// With many that wait for what never comes back: the bound is for all of them together, and not for one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_one_that_has_waited_in_vain_goes_on_with_it() {
    let config = Config { refused_wait_ms: 2_000, ..Config::default() };
    let all = cluster(3, config).await;
    let (alice, _old) = with_unread_mail(&all, "bob@localhost", 1).await;
    let mut new = all.nodes[2].login("bob@localhost/b", Some(0));
    for number in 1..=40 {
        alice.chats("bob@localhost", number).await;
    }
    let heard = tokio::time::timeout(SOON, new.hears_ids(40)).await;
    assert_eq!(heard.ok(), Some(numbers(1..41)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_for_a_node_that_goes_as_it_is_looked_up_is_not_stranded() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let _bob = all.nodes[1].login("bob@localhost/b", Some(0));
    let world = all.world.clone();
    all.nodes[0].here.behind_the_next_look(move || drop(world.hide(NodeId(2))));
    alice.chats("bob@localhost", 1).await;
    until("it is kept", || all.keepers[0].ids() == [1]).await;
    assert!(all.nodes[0].router.lanes().is_empty(), "no lane to a node that is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_of_a_lost_session_are_told_by_one_survivor() {
    let all = cluster(3, Config::default()).await;
    for n in 0..200 {
        let priority = if n % 10 == 0 { None } else { Some(0) };
        all.world.bind(NodeId(3), &FullJid::new(&format!("user{n}@localhost/r")).unwrap(), priority);
    }
    all.world.expire(NodeId(3)).await;
    let told = || all.keepers.iter().map(|keeper| keeper.lost.lock().len()).sum::<usize>();
    // The third node is not really dead here: it hears the news, and is no heir.
    until("each available session is told of", || told() >= 180).await;
    let mut names: Vec<String> = all.keepers.iter().flat_map(|keeper| keeper.lost.lock().clone()).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!((names.len(), count), (180, 180), "each once");
    assert!(all.keepers[0].lost.lock().len() > 30 && all.keepers[1].lost.lock().len() > 30);
    assert!(all.keepers[2].lost.lock().is_empty());
    // The second node dies too, and nobody knows how far it came: the first tells what fell to it.
    all.world.expire(NodeId(2)).await;
    until("the last survivor has told all", || all.keepers[0].lost.lock().len() == 180).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_of_a_session_that_is_lost_again_are_told_of_it_once_more_and_not_twice() {
    let all = cluster(3, Config::default()).await;
    let bind = |node| {
        for n in 0..100 {
            all.world.bind(NodeId(node), &FullJid::new(&format!("user{n}@localhost/r")).unwrap(), Some(0));
        }
    };
    bind(3);
    all.world.expire(NodeId(3)).await;
    let told = || all.keepers.iter().map(|keeper| keeper.lost.lock().len()).sum::<usize>();
    until("each session is told of", || told() >= 100).await;
    let first = all.keepers[0].lost.lock().len();
    // They are back at the node to which some of them fell, and that one is lost in turn.
    bind(2);
    all.world.expire(NodeId(2)).await;
    until("the last survivor has told all", || all.keepers[0].lost.lock().len() >= first + 100).await;
    let mut again = all.keepers[0].lost.lock()[first..].to_vec();
    again.sort();
    again.dedup();
    assert_eq!((again.len(), all.keepers[0].lost.lock().len()), (100, first + 100), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_under_a_new_incarnation_is_reached_anew() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 0).await;
    assert_eq!(bob.hears_ids(1).await, [0]);
    until("it is settled", || all.nodes[0].unsettled() == 0).await;
    // The second node loses its lease and gets it back: same process, same session, new incarnation.
    all.world.expire(NodeId(2)).await;
    alice.chats("bob@localhost", 1).await;
    until("it is kept", || all.keepers[0].ids() == [1]).await;
    all.nodes[1].come_back(Incarnation(2), &[&bob]);
    alice.chats("bob@localhost", 2).await;
    assert_eq!(bob.hears_ids(1).await, [2]);
    until("it is settled", || all.nodes[0].unsettled() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_for_a_session_whose_node_is_without_its_lease_waits_until_it_is_back() {
    let all = cluster(2, Config::default()).await;
    let mut alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let error = |id| {
        format!(
            "<message from='bob@localhost' to='alice@localhost/a' type='error' id='{id}'>\
             <error type='wait'><resource-constraint xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
        )
    };
    let ignored =
        |at: usize| all.nodes[at].router.counters().stanzas(stanza::Kind::Message, router::Fate::Ignored);
    all.world.expire(NodeId(1)).await;
    all.nodes[0].says(&error(0)).await;
    all.nodes[1].says(&error(1)).await;
    until("both wait", || all.nodes.iter().all(|node| node.router.answers_waiting() == 1)).await;
    all.nodes[0].come_back(Incarnation(2), &[&alice]);
    let mut heard = alice.hears_ids(2).await;
    heard.sort();
    assert_eq!(heard, [0, 1]);
    assert_eq!((ignored(0), ignored(1)), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_a_node_that_loses_its_lease_is_left_to_its_sender() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let carol = all.nodes[1].login("carol@localhost/c", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 0).await;
    until("it waits", || bob.mailbox.len() == 1).await;
    carol.chats("bob@localhost", 1).await;
    until("both wait", || bob.mailbox.len() == 2).await;
    // The sender's node sees the other one end, and has the message kept.
    all.world.expire(NodeId(2)).await;
    until("it is kept", || all.keepers[0].ids() == [0]).await;
    all.nodes[1].come_back(Incarnation(2), &[&bob]);
    all.nodes[1].router.forget_former();
    // So it must not be delivered as well; what came from a session of its own node has no other sender.
    assert_eq!(bob.mailbox.len(), 1);
    assert_eq!(bob.hears_ids(1).await, [1]);
    alice.chats("bob@localhost", 2).await;
    assert_eq!(bob.hears_ids(1).await, [2]);
    until("it is settled", || all.nodes[0].unsettled() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_lease_delivers_nothing_that_comes_from_others() {
    let all = cluster(2, Config::default()).await;
    let alice = all.nodes[0].login("alice@localhost/a", Some(0));
    let mut bob = all.nodes[1].login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 0).await;
    assert_eq!(bob.hears_ids(1).await, [0]);
    until("it is settled", || all.nodes[0].unsettled() == 0).await;
    all.nodes[1].here.serving.store(false, Ordering::SeqCst);
    for number in 1..10 {
        alice.chats("bob@localhost", number).await;
    }
    // The link is refused as often as it is tried.
    tokio::time::timeout(Duration::from_millis(200), bob.mailbox.ready()).await.expect_err("nothing comes");
    all.nodes[1].here.serving.store(true, Ordering::SeqCst);
    assert_eq!(bob.hears_ids(9).await, numbers(1..10));
}

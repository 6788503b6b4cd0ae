//! A node alone runs the same code as a group of one voter.

mod support;

use std::time::{Duration, Instant};

use cluster::{BindError, Change, Config, ConflictPolicy, Loss, Sid};
use support::{BOTH, Node, deps, full, log};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_no_settings_serves_at_once_without_a_listener() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let mut node = Node::start(Config::default(), deps("one", BOTH, dir.path())).await;
    node.ready().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(node.cluster.address(), "");

    let alice = full("alice@localhost/phone");
    let sid = node.bind("alice@localhost/phone").await;
    let row = node.cluster.routes().full(&alice).unwrap();
    assert_eq!((row.sid, row.priority, row.node), (sid, None, node.id()));
    node.cluster.set_priority(&alice, sid, Some(5)).await.unwrap();
    assert_eq!(node.cluster.routes().users(&alice.to_bare())[0].priority, Some(5));

    // A second session of the same full JID, by each policy.
    let refused = node.cluster.bind(&alice, Sid::random(), ConflictPolicy::Refuse).await;
    assert_eq!(refused, Err(BindError::Conflict));
    let renamed = node.cluster.bind(&alice, Sid::random(), ConflictPolicy::Rename).await.unwrap();
    assert_ne!(renamed.jid, alice);
    let newer = node.bind("alice@localhost/phone").await;
    let displaced = |change| match change {
        Change::Displaced { sid, loss, .. } => Some((sid, loss)),
        _ => None,
    };
    assert_eq!(node.change("the conflict is told", displaced).await, (sid, Loss::Conflict));

    // A late teardown of the older one does not remove its successor.
    node.cluster.unbind(&alice, sid).await.unwrap();
    assert_eq!(node.cluster.routes().full(&alice).unwrap().sid, newer);
    assert!(node.cluster.kick(&alice).await.unwrap());
    assert_eq!(node.change("the kick is told", displaced).await, (newer, Loss::Kicked));
    assert!(!node.cluster.kick(&alice).await.unwrap());
    let index = node.cluster.barrier().await.unwrap();
    assert!(node.cluster.routes().index() >= index);
    node.cluster.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_is_the_same_node_under_a_new_incarnation() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::default(), deps("one", BOTH, dir.path())).await;
    node.ready().await;
    let (id, incarnation) = node.cluster.me();
    let sid = node.bind("alice@localhost/phone").await;
    let cluster = node.cluster.status().cluster;
    node.kill().await;

    let begun = Instant::now();
    let mut node = Node::start(Config::default(), deps("one", BOTH, dir.path())).await;
    node.ready().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let (same, newer) = node.cluster.me();
    assert_eq!((same, newer.0), (id, incarnation.0 + 1));
    assert_eq!(node.cluster.status().cluster, cluster);
    assert!(node.cluster.routes().is_empty());
    // What was bound before is told as lost, so that contacts hear of it.
    let lost = node
        .change("the former life is told", |change| match change {
            Change::NodeGone { incarnation: gone, lost, .. } if gone == incarnation => Some(lost),
            _ => None,
        })
        .await;
    assert_eq!(lost.iter().map(|lost| lost.sid).collect::<Vec<_>>(), [sid]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_binds_share_few_entries() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(Config::default(), deps("one", BOTH, dir.path())).await;
    node.ready().await;
    let before = node.cluster.routes().index();
    let binds = (0..5000).map(|n| {
        let cluster = node.cluster.clone();
        tokio::spawn(async move {
            let jid = full(&format!("user{n}@localhost/x"));
            cluster.bind(&jid, Sid::random(), ConflictPolicy::Replace).await.unwrap();
        })
    });
    for bind in binds.collect::<Vec<_>>() {
        bind.await.unwrap();
    }
    assert_eq!(node.cluster.routes().len(), 5000);
    let entries = node.cluster.routes().index() - before;
    assert!(entries < 1000, "{entries}");
}

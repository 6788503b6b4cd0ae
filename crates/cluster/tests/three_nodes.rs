//! Three nodes that found each other: formation, agreement, and what happens when one dies.

mod support;

use std::{collections::BTreeSet, path::Path, time::Duration};

use cluster::{Change, ClusterError, Config, ConflictPolicy, GroupStatus, NodeId, NodeState, Sid, Times};
use proto::raft::{TakeOverRequest, raft_client::RaftClient};
use support::{BACKEND, BOTH, FRONTEND, Node, SOON, config, deps, full, log, three, write_seeds};
use tokio::time::{Instant, timeout};

/// Waits until the nodes' tables have all that was agreed so far.
async fn level(nodes: &[Node]) {
    for node in nodes {
        timeout(SOON, node.cluster.barrier()).await.unwrap().unwrap();
    }
}

async fn leader_of(nodes: &[Node]) -> usize {
    let id = nodes[0].cluster.status().leader.expect("there is a leader");
    nodes.iter().position(|node| node.id() == id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_one_cluster_and_see_each_others_sessions() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path()).await;
    let ids: BTreeSet<NodeId> = nodes.iter().map(Node::id).collect();
    assert_eq!(ids.len(), 3);
    let clusters: BTreeSet<_> = nodes.iter().map(|node| node.cluster.status().cluster).collect();
    assert_eq!(clusters.len(), 1);

    let alice = full("alice@localhost/phone");
    let first = nodes[0].bind("alice@localhost/phone").await;
    level(&nodes).await;
    for node in &nodes {
        let row = node.cluster.routes().full(&alice).unwrap();
        assert_eq!((row.sid, row.node), (first, nodes[0].id()));
    }
    // The log's order decides: exactly one of many who bind the same full JID at once has it in the end.
    let tries = nodes.iter().flat_map(|node| std::iter::repeat_n(node.cluster.clone(), 5)).map(|cluster| {
        let alice = alice.clone();
        tokio::spawn(
            async move { cluster.bind(&alice, Sid::random(), ConflictPolicy::Replace).await.unwrap() },
        )
    });
    for tried in tries.collect::<Vec<_>>() {
        tried.await.unwrap();
    }
    level(&nodes).await;
    let owners: BTreeSet<Sid> =
        nodes.iter().map(|node| node.cluster.routes().full(&alice).unwrap().sid).collect();
    assert_eq!(owners.len(), 1);
    assert!(!owners.contains(&first));
    // The first owner was told by its own node.
    let told = |change| match change {
        Change::Displaced { sid, .. } => Some(sid),
        _ => None,
    };
    assert_eq!(nodes[0].change("the displaced session is told", told).await, first);
    for node in nodes {
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_form_in_any_order_and_late() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let seeds = dir.path().join("seeds");
    let mut nodes = vec![Node::start(config(&seeds, 3), deps("a", BACKEND, dir.path())).await];
    // A frontend may be there before the backends are.
    let frontend = Node::start(config(&seeds, 3), deps("f", FRONTEND, dir.path())).await;
    write_seeds(&seeds, &nodes);
    nodes.push(Node::start(config(&seeds, 3), deps("b", BACKEND, dir.path())).await);
    let early = timeout(Duration::from_secs(2), nodes[0].cluster.ready()).await;
    assert!(early.is_err(), "two of three must not found a cluster");
    nodes.push(Node::start(config(&seeds, 3), deps("c", BACKEND, dir.path())).await);
    for node in nodes.iter().chain([&frontend]) {
        node.ready().await;
    }
    assert_eq!(frontend.cluster.status().cluster, nodes[0].cluster.status().cluster);
    // One more backend comes later: it learns, and then serves like the others.
    let late = Node::start(config(&seeds, 3), deps("d", BACKEND, dir.path())).await;
    late.ready().await;
    let sid = frontend.bind("bob@localhost/desk").await;
    late.cluster.barrier().await.unwrap();
    assert_eq!(late.cluster.routes().full(&full("bob@localhost/desk")).unwrap().sid, sid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_its_sessions_are_gone_everywhere() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path()).await;
    let at = leader_of(&nodes).await;
    let leader = nodes.remove(at);
    let (gone, gone_incarnation) = leader.cluster.me();
    let sid = leader.bind("alice@localhost/phone").await;
    leader.cluster.set_priority(&full("alice@localhost/phone"), sid, Some(3)).await.unwrap();
    nodes[0].bind("bob@localhost/desk").await;
    level(&nodes).await;
    let killed = Instant::now();
    leader.kill().await;

    // Binds go on as soon as the others have a leader.
    let jid = full("carol@localhost/x");
    let bound = timeout(SOON, nodes[1].cluster.bind(&jid, Sid::random(), ConflictPolicy::Replace)).await;
    bound.unwrap().unwrap();
    let stalled = killed.elapsed();
    assert!(stalled < Duration::from_secs(6), "{stalled:?}");

    for node in &mut nodes {
        let lost = node
            .change("the death is told", |change| match change {
                Change::NodeGone { node, incarnation, lost } => Some((node, incarnation, lost)),
                _ => None,
            })
            .await;
        assert_eq!((lost.0, lost.1), (gone, gone_incarnation));
        let sessions: Vec<_> = lost.2.iter().map(|s| (s.jid.to_string(), s.sid, s.priority)).collect();
        assert_eq!(sessions, [("alice@localhost/phone".to_string(), sid, Some(3))]);
    }
    println!("stalled {stalled:?}, consistent after {:?}", killed.elapsed());
    for node in &nodes {
        let routes = node.cluster.routes();
        assert!(routes.full(&full("alice@localhost/phone")).is_none());
        assert!(routes.full(&full("bob@localhost/desk")).is_some());
        assert_eq!(routes.node(gone).unwrap().state, NodeState::Gone);
        assert!(node.cluster.is_serving());
    }
    // Alice logs in elsewhere.
    nodes[0].bind("alice@localhost/phone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frontend_follows_another_backend_when_its_own_dies() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let seeds = dir.path().join("seeds");
    let mut nodes = Vec::new();
    for (name, roles) in [("a", BACKEND), ("b", BACKEND), ("c", BACKEND), ("f", FRONTEND), ("g", FRONTEND)] {
        nodes.push(Node::start(config(&seeds, 3), deps(name, roles, dir.path())).await);
    }
    write_seeds(&seeds, &nodes);
    for node in &nodes {
        node.ready().await;
    }
    let frontends = nodes.split_off(3);
    let sid = frontends[0].bind("alice@localhost/phone").await;
    frontends[1].cluster.barrier().await.unwrap();
    assert_eq!(frontends[1].cluster.routes().full(&full("alice@localhost/phone")).unwrap().sid, sid);

    // Whichever backend a frontend follows, it may be the one that dies.
    let dead = nodes.remove(0);
    let dead_id = dead.id();
    dead.kill().await;
    for n in 0..20 {
        let sid = frontends[0].bind(&format!("user{n}@localhost/x")).await;
        frontends[1].cluster.barrier().await.unwrap();
        assert_eq!(
            frontends[1].cluster.routes().full(&full(&format!("user{n}@localhost/x"))).unwrap().sid,
            sid
        );
    }
    let mut frontends = frontends;
    for frontend in &mut frontends {
        let gone = frontend
            .change("the death is told", |change| match change {
                Change::NodeGone { node, .. } => Some(node),
                _ => None,
            })
            .await;
        assert_eq!(gone, dead_id);
    }
    // A frontend that dies takes its sessions with it, and nobody else's.
    let other = frontends[1].bind("zoe@localhost/x").await;
    let (dying, id) = (frontends.remove(0), nodes[0].id());
    let dead = dying.id();
    assert_ne!(dead, id);
    dying.kill().await;
    let lost = nodes[0]
        .change("the death is told", |change| match change {
            Change::NodeGone { node, lost, .. } if node == dead => Some(lost),
            _ => None,
        })
        .await;
    assert_eq!(lost.len(), 21);
    let routes = nodes[0].cluster.routes();
    assert_eq!((routes.len(), routes.full(&full("zoe@localhost/x")).unwrap().sid), (1, other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restart_from_disk_with_new_incarnations() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path()).await;
    let mut before: Vec<_> = nodes.iter().map(|node| node.cluster.me()).collect();
    let cluster = nodes[0].cluster.status().cluster;
    nodes[1].bind("alice@localhost/phone").await;
    for node in nodes {
        node.kill().await;
    }
    // They come back at other ports, as pods do.
    let nodes = three(dir.path()).await;
    assert_eq!(nodes[0].cluster.status().cluster, cluster);
    for (node, (id, incarnation)) in nodes.iter().zip(before.drain(..)) {
        let (same, newer) = node.cluster.me();
        assert_eq!((same, newer.0), (id, incarnation.0 + 1));
    }
    level(&nodes).await;
    assert!(nodes.iter().all(|node| node.cluster.routes().is_empty()));
}

/// A node with times in which nobody leads by itself while a test waits.
async fn patient(name: &str, dir: &Path) -> Node {
    let long = Times { election_min_ms: 70_000, election_max_ms: 80_000, ..Times::default() };
    let config = Config { times: Times { quorum_age_ms: 35_000, ..long }, ..config(&dir.join("seeds"), 3) };
    Node::start(config, deps(name, BOTH, dir)).await
}

async fn patient_three(dir: &Path) -> Vec<Node> {
    let nodes = vec![patient("a", dir).await, patient("b", dir).await, patient("c", dir).await];
    write_seeds(&dir.join("seeds"), &nodes);
    for node in &nodes {
        node.ready().await;
    }
    nodes
}

/// Who is needed for an election has just started, and would vote for nobody for half a minute; nor does the leader that
/// stops, which was elected as long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_though_all_others_have_just_started() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = patient_three(dir.path()).await;
    let mut names = vec!["a", "b", "c"];
    let at = leader_of(&nodes).await;
    let leader = nodes.remove(at);
    names.remove(at);
    for name in names {
        nodes.remove(0).kill().await;
        let again = patient(name, dir.path()).await;
        again.ready().await;
        nodes.push(again);
    }
    let (stopped, _) = leader.cluster.me();
    let stopping = tokio::spawn(async move { leader.cluster.stop(Duration::from_secs(20)).await });
    for node in &mut nodes {
        node.change("the leader that stopped is gone", |change| match change {
            Change::NodeGone { node, .. } if node == stopped => Some(()),
            _ => None,
        })
        .await;
    }
    stopping.await.unwrap();
    nodes[0].bind("alice@localhost/phone").await;
}

/// What was on its way as the leader asked may have reached one of the others and not all, and the first that was asked
/// to let go deposes the leader before anybody is asked to lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_takes_over_that_has_more_than_was_asked_for_or_let_go_before() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = patient_three(dir.path()).await;
    for more in [1, 0] {
        nodes[0].bind("alice@localhost/phone").await;
        level(&nodes).await;
        let at = leader_of(&nodes).await;
        nodes.swap(0, at);
        let GroupStatus { term, last_log, .. } = routes_group(&nodes[0]);
        let (heir, other) = if more == 1 { (1, 2) } else { (2, 2) };
        assert!(ask(&nodes, other, term, last_log, false).await, "lets go of a leader that it follows");
        changed(&nodes[0], "the leader is deposed", |group| !group.is_leader).await;
        assert!(!ask(&nodes, heir, term, last_log + 1, true).await, "leads without what it lacks");
        assert!(ask(&nodes, heir, term, last_log - more, true).await, "does not lead");
        changed(&nodes[heir], "another one leads", |group| group.is_leader).await;
        changed(&nodes[0], "it is known who", |group| group.leader.is_some()).await;
    }
}

/// Asks a node to let go of the first one, or to lead in place of it.
async fn ask(nodes: &[Node], asked: usize, term: u64, last_log: u64, lead: bool) -> bool {
    let cluster = nodes[0].cluster.status().cluster.unwrap().0.to_be_bytes().to_vec();
    let row = nodes[0].cluster.routes().node(nodes[asked].id()).unwrap();
    let target = row.member.unwrap().0;
    let channel = nodes[0].cluster.peer_channel(row.node).unwrap();
    let request =
        TakeOverRequest { cluster: cluster.into(), group: "routes".into(), target, term, last_log, lead };
    RaftClient::new(channel).take_over(request).await.unwrap().into_inner().begun
}

fn routes_group(node: &Node) -> GroupStatus {
    let groups = node.cluster.status().groups;
    groups.into_iter().find(|group| group.name == "routes").unwrap()
}

async fn changed(node: &Node, what: &str, fits: impl Fn(&GroupStatus) -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let seen = async {
        while !fits(&routes_group(node)) {
            looks.tick().await;
        }
    };
    timeout(SOON, seen).await.unwrap_or_else(|_| panic!("{what} in time"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_refuses_to_start() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let stranger = Node::start(config(&theirs, 1), deps("stranger", BOTH, dir.path())).await;
    stranger.ready().await;
    stranger.kill().await;

    let node = Node::start(config(&ours, 1), deps("a", BOTH, dir.path())).await;
    node.ready().await;
    write_seeds(&ours, [&node]);
    let stranger = Node::start(config(&ours, 1), deps("stranger", BOTH, dir.path())).await;
    let error = timeout(SOON, stranger.cluster.ready()).await.unwrap().unwrap_err();
    assert!(matches!(error, ClusterError::Foreign { .. }), "{error}");
    assert!(error.to_string().starts_with("refused to start: this node belongs to cluster `"), "{error}");
    assert!(node.cluster.is_serving());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_quorum_fences_itself_and_comes_back_under_a_new_incarnation() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path()).await;
    let mut left = nodes.remove(0);
    let (id, incarnation) = left.cluster.me();
    left.bind("alice@localhost/phone").await;
    for node in nodes {
        node.kill().await;
    }
    let killed = Instant::now();
    left.change("the fence", |change| matches!(change, Change::LeaseLost { .. }).then_some(())).await;
    let fenced = killed.elapsed();
    assert!(!left.cluster.is_serving());
    assert!(fenced < Duration::from_secs(5), "{fenced:?}");
    let jid = full("bob@localhost/x");
    assert!(left.cluster.bind(&jid, Sid::random(), ConflictPolicy::Replace).await.is_err());

    let seeds = dir.path().join("seeds");
    let mut back = Vec::new();
    for name in ["b", "c"] {
        back.push(Node::start(config(&seeds, 3), deps(name, BOTH, dir.path())).await);
    }
    write_seeds(&seeds, back.iter().chain([&left]));
    let newer = left
        .change("the lease is back", |change| match change {
            Change::LeaseBack { incarnation } => Some(incarnation),
            _ => None,
        })
        .await;
    assert_eq!((left.id(), newer.0), (id, incarnation.0 + 1));
    for node in &back {
        node.ready().await;
    }
    // The living sessions are brought back, if their full JIDs are still free.
    let living = |at: &str, sid| cluster::Living { jid: full(at), sid, priority: Some(1), detached: false };
    back[0].bind("taken@localhost/x").await;
    let (one, two) = (Sid::random(), Sid::random());
    let refused =
        left.cluster.resync(vec![living("alice@localhost/phone", one), living("taken@localhost/x", two)]);
    assert_eq!(refused.await.unwrap(), [two]);
    back[1].cluster.barrier().await.unwrap();
    assert_eq!(back[1].cluster.routes().full(&full("alice@localhost/phone")).unwrap().sid, one);
}

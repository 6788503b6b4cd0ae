//! The replicated store over real Raft groups that speak over loopback.

use std::{
    collections::BTreeMap,
    net::TcpListener as StdListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::raft::raft_server::RaftServer;
use store::{
    Batch, Committed, Engine, Op, Partition, Table, conformance,
    engines::sled::{Config, Disk, readers::Readers},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};
use tonic::{Request, service::interceptor::InterceptedService, transport::Server};

use super::{engine::Replica, machine::StoreMachine};
use crate::{
    config::Times,
    identity::Caller,
    links::Links,
    raft::{
        group::{Group, Opening},
        group_thread::GroupThread,
        network::{Groups, Service},
    },
    role::{ClusterId, MemberId},
};

const T: Table = Table("test");

/// Where one member lives; it may come and go.
struct Home {
    number: usize,
    folder: PathBuf,
    addresses: Vec<String>,
}

/// A member on a runtime of its own, so that stopping it ends its connections as the end of a process does.
struct Member {
    group: Group,
    replica: Arc<Replica>,
    runtime: Runtime,
}

fn homes(root: &Path, count: usize) -> Vec<Arc<Home>> {
    // Bound at once, so that they differ, and then released.
    let listeners: Vec<_> = (0..count).map(|_| StdListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let home = |number: usize| {
        Arc::new(Home { number, folder: root.join(number.to_string()), addresses: addresses.clone() })
    };
    (0..count).map(home).collect()
}

impl Home {
    fn founders(&self) -> Vec<(MemberId, String)> {
        let named = |(number, address): (usize, &String)| (MemberId(number as u64 + 1), address.clone());
        self.addresses.iter().enumerate().map(named).collect()
    }

    async fn start(self: &Arc<Home>) -> Member {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let home = self.clone();
        let (group, replica) = runtime.spawn(async move { home.join().await }).await.unwrap();
        Member { group, replica, runtime }
    }

    async fn join(&self) -> (Group, Arc<Replica>) {
        let config = Config { cache_bytes: 4 << 20, ..Config::new(self.folder.join("store")) };
        let opening = tokio::task::spawn_blocking(move || Arc::new(Disk::open(&config).unwrap()));
        let disk = opening.await.unwrap();
        let machine = StoreMachine::open(disk.clone()).unwrap();
        let links = Arc::new(Links::new(None));
        links.set_cluster(ClusterId(7), 0);
        let group = Group::open(
            Opening {
                name: "data",
                dir: self.folder.join("raft"),
                member: MemberId(self.number as u64 + 1),
                links: links.clone(),
                times: Times::default(),
                thread: Arc::new(GroupThread::start("data").unwrap()),
                alone: false,
            },
            Box::new(machine),
        )
        .await
        .unwrap();
        let groups = Arc::new(Groups::default());
        groups.add(group.clone());
        let service = RaftServer::new(Service { links, groups })
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let service = InterceptedService::new(service, |mut request: Request<()>| {
            request.extensions_mut().insert(Caller::plain(Default::default(), Default::default()));
            Ok(request)
        });
        let listener = TcpListener::bind(&self.addresses[self.number]).await.unwrap();
        tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        let readers = Readers::start(&disk, 2, 64).unwrap();
        let replica = Arc::new(Replica::new(Box::new(group.clone()), disk, readers));
        (group, replica)
    }
}

impl Member {
    async fn stop(self) {
        self.group.stop().await;
        self.runtime.shutdown_background();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn put(key: &str) -> Batch {
    let op = Op::Put { table: T, key: key.into(), value: key.into() };
    Batch { partition: Partition::Account("a@h".into()), expect: vec![], ops: Arc::new(vec![op]) }
}

async fn write(member: &Member, key: &str) {
    assert_eq!(member.replica.commit(vec![put(key)], soon()).await, Ok(vec![Committed::Done]), "{key}");
}

async fn has(member: &Member, key: &str) {
    let found = member.replica.get(&Partition::Account("a@h".into()), T, key.as_bytes(), soon()).await;
    let found = found.unwrap().map(|record| (record.version, record.value));
    assert_eq!(found, Some((1, key.as_bytes().to_vec())), "{key}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_keeps_every_promise_and_its_data() {
    let root = tempfile::tempdir().unwrap();
    let home = homes(root.path(), 1).remove(0);
    let member = home.start().await;
    member.group.initialize(&home.founders()).await.unwrap();
    let handle: Arc<dyn Engine> = member.replica.clone();
    conformance::all(&[handle]).await;
    write(&member, "kept").await;
    member.stop().await;
    let member = home.start().await;
    has(&member, "kept").await;
    write(&member, "more").await;
    has(&member, "more").await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_three_keeps_every_promise_and_loses_nothing_with_any_one_member() {
    let root = tempfile::tempdir().unwrap();
    let homes = homes(root.path(), 3);
    let mut members = BTreeMap::new();
    for home in &homes {
        members.insert(home.number, home.start().await);
    }
    members[&0].group.initialize(&homes[0].founders()).await.unwrap();
    let handles: Vec<Arc<dyn Engine>> = members.values().map(|m| m.replica.clone() as _).collect();
    conformance::all(&handles).await;
    drop(handles);

    write(&members[&0], "before").await;
    let mut keys = vec!["before".to_owned()];
    // Each of them in turn, so that the leader is among them.
    for home in &homes {
        members.remove(&home.number).unwrap().stop().await;
        let key = format!("without {}", home.number);
        let other = members.values().next().unwrap();
        write(other, &key).await;
        keys.push(key);
        let back = home.start().await;
        for key in &keys {
            has(&back, key).await;
        }
        members.insert(home.number, back);
    }
    for member in members.into_values() {
        member.stop().await;
    }
}

/// Before it was started anew it may have confirmed a leader, which grants leases for as long as it counts on that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_just_started_anew_votes_for_nobody_for_a_while() {
    let root = tempfile::tempdir().unwrap();
    let homes = homes(root.path(), 3);
    let mut members = BTreeMap::new();
    for home in &homes {
        let member = home.start().await;
        assert!(member.group.core().may_vote(), "who never took part has confirmed nobody");
        members.insert(home.number, member);
    }
    members[&0].group.initialize(&homes[0].founders()).await.unwrap();
    write(&members[&2], "something").await;
    members.remove(&2).unwrap().stop().await;
    let begun = Instant::now();
    let back = homes[2].start().await;
    assert!(!back.group.core().may_vote() || begun.elapsed() >= Duration::from_secs(1));
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while !back.group.core().may_vote() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never votes");
        look.tick().await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "it votes after {:?}", begun.elapsed());
    back.stop().await;
    for member in members.into_values() {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_too_long_gets_a_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let homes = homes(root.path(), 3);
    let mut members = BTreeMap::new();
    for home in &homes {
        members.insert(home.number, home.start().await);
    }
    members[&0].group.initialize(&homes[0].founders()).await.unwrap();
    write(&members[&2], "at the start").await;
    members.remove(&2).unwrap().stop().await;
    for n in 0..200 {
        write(&members[&1], &format!("missed {n}")).await;
    }
    // What the missing member would need is gone from every log.
    for member in members.values() {
        has(member, "missed 199").await;
        let applied = member.group.status().applied;
        let core = member.group.core();
        core.raft.trigger().snapshot().await.unwrap();
        let wait = core.raft.wait(Some(Duration::from_secs(30)));
        wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= applied), "snapshot").await.unwrap();
        core.raft.trigger().purge_log(applied).await.unwrap();
        let wait = core.raft.wait(Some(Duration::from_secs(30)));
        wait.metrics(|m| m.purged.is_some_and(|id| id.index >= applied), "purged").await.unwrap();
    }
    let back = homes[2].start().await;
    for key in ["at the start", "missed 0", "missed 199"] {
        has(&back, key).await;
    }
    write(&back, "afterwards").await;
    has(&members[&0], "afterwards").await;
    // What came by the snapshot stays.
    back.stop().await;
    let back = homes[2].start().await;
    has(&back, "missed 100").await;
    back.stop().await;
    for member in members.into_values() {
        member.stop().await;
    }
}

//! The replicated store kept to the promises of every engine, and to its own: once, everywhere, again.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use proto::store as wire;
use store::{
    Batch, BoxFuture, Committed, Engine, Expect, Op, Partition, Range, StoreError, Table, conformance,
    engines::sled::{Config, Disk, readers::Readers},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Server},
};

use super::{
    backend::Backend,
    engine::{Agreement, Replica, split},
    machine::StoreMachine,
    remote::Remote,
    service,
    wire::{FORMAT, command, read_commit_reply},
};
use crate::{
    error::ProposeError,
    identity::Caller,
    raft::{
        group::Proposed,
        machine::{Committed as Entry, Machine},
    },
    role::NodeId,
};

const T: Table = Table("test");

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn account(name: &str) -> Partition {
    Partition::Account(name.into())
}

fn put(key: &str, value: &str) -> Batch {
    let op = Op::Put { table: T, key: key.into(), value: value.into() };
    Batch { partition: account("a@h"), expect: vec![], ops: Arc::new(vec![op]) }
}

fn disk(path: &Path) -> Arc<Disk> {
    Arc::new(Disk::open(&Config { cache_bytes: 4 << 20, ..Config::new(path) }).unwrap())
}

/// A log that every member follows, without the network: the first member applies at once, the others when
/// somebody reads there.
struct Log {
    entries: Mutex<Vec<Entry>>,
    members: Vec<Mutex<Member>>,
}

struct Member {
    machine: StoreMachine,
    applied: usize,
}

struct Seat {
    log: Arc<Log>,
    number: usize,
}

impl Log {
    fn catch_up(&self, entries: &[Entry], number: usize) -> Vec<Vec<Bytes>> {
        let mut member = self.members[number].lock();
        let new = &entries[member.applied..];
        let replies = member.machine.apply(new).unwrap();
        member.applied = entries.len();
        replies
    }
}

fn entry(index: u64, payloads: Vec<Bytes>) -> Entry {
    Entry { index, mark: Bytes::copy_from_slice(&index.to_be_bytes()), payloads }
}

impl Agreement for Seat {
    fn propose(&self, payload: Bytes, _deadline: Instant) -> BoxFuture<'_, Result<Proposed, ProposeError>> {
        let mut entries = self.log.entries.lock();
        let index = entries.len() as u64 + 1;
        // Twice, as when the answer to the first proposal was lost.
        entries.push(entry(index, vec![payload.clone(), payload]));
        let replies = self.log.catch_up(&entries, 0);
        let reply = replies.last().unwrap()[1].clone();
        Box::pin(async move { Ok(Proposed { index, reply }) })
    }

    fn catch_up(&self, _deadline: Instant) -> BoxFuture<'_, Result<(), ProposeError>> {
        self.log.catch_up(&self.log.entries.lock(), self.number);
        Box::pin(async { Ok(()) })
    }
}

struct Cluster {
    log: Arc<Log>,
    replicas: Vec<Arc<Replica>>,
    _folders: Vec<TempDir>,
}

fn cluster(count: usize) -> Cluster {
    let folders: Vec<TempDir> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
    let disks: Vec<Arc<Disk>> = folders.iter().map(|folder| disk(folder.path())).collect();
    let member = |disk: &Arc<Disk>| {
        Mutex::new(Member { machine: StoreMachine::open(disk.clone()).unwrap(), applied: 0 })
    };
    let log = Arc::new(Log { entries: Mutex::default(), members: disks.iter().map(member).collect() });
    let replica = |(number, disk): (usize, &Arc<Disk>)| {
        let readers = Readers::start(disk, 2, 64).unwrap();
        Arc::new(Replica::new(Box::new(Seat { log: log.clone(), number }), disk.clone(), readers))
    };
    let replicas = disks.iter().enumerate().map(replica).collect();
    Cluster { log, replicas, _folders: folders }
}

/// A backend's listener on loopback; aborted, it is a dead backend.
async fn serve(replica: &Arc<Replica>) -> (Channel, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = InterceptedService::new(service::server(replica.clone()), |mut request: Request<()>| {
        request.extensions_mut().insert(Caller::plain(Default::default(), Default::default()));
        Ok(request)
    });
    let run = async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    };
    let task = tokio::spawn(run);
    (Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy(), task)
}

#[tokio::test]
async fn a_lone_replica_keeps_every_promise() {
    let cluster = cluster(1);
    conformance::all(&[cluster.replicas[0].clone()]).await;
}

#[tokio::test]
async fn replicas_that_lag_keep_every_promise() {
    let cluster = cluster(3);
    let handles: Vec<Arc<dyn Engine>> = cluster.replicas.iter().map(|r| r.clone() as _).collect();
    conformance::all(&handles).await;
}

#[tokio::test]
async fn a_frontend_keeps_every_promise_over_grpc() {
    let cluster = cluster(3);
    let mut channels = Vec::new();
    for (number, replica) in cluster.replicas.iter().enumerate() {
        channels.push((NodeId(number as u64), serve(replica).await.0));
    }
    let first = channels[..1].to_vec();
    let remotes = [Remote::new(move || channels.clone()), Remote::new(move || first.clone())];
    let [a, b] = remotes.map(|remote| Arc::new(remote) as Arc<dyn Engine>);
    conformance::all(&[a, b, cluster.replicas[2].clone()]).await;
}

#[tokio::test]
async fn a_frontend_turns_to_the_next_backend_when_one_dies() {
    let cluster = cluster(3);
    let (mut channels, mut tasks) = (Vec::new(), Vec::new());
    for (number, replica) in cluster.replicas.iter().enumerate() {
        let (channel, task) = serve(replica).await;
        channels.push((NodeId(number as u64), channel));
        tasks.push(task);
    }
    let remote = Remote::new(move || channels.clone());
    for (number, task) in tasks.into_iter().enumerate().take(2) {
        assert_eq!(remote.commit(vec![put("k", "v")], soon()).await, Ok(vec![Committed::Done]));
        task.abort();
        let _ = task.await;
        let found = remote.get(&account("a@h"), T, b"k", soon()).await.unwrap().unwrap();
        assert_eq!(found.version, number as u64 + 1);
    }
}

/// A group that has stopped on this node, after it sent its last proposal to the others.
struct Stopped(Seat);

impl Agreement for Stopped {
    fn propose(&self, payload: Bytes, deadline: Instant) -> BoxFuture<'_, Result<Proposed, ProposeError>> {
        Box::pin(async move {
            self.0.propose(payload, deadline).await?;
            Err(ProposeError::Stopped("disk failed".into()))
        })
    }

    fn catch_up(&self, _deadline: Instant) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async { Err(ProposeError::Stopped("disk failed".into())) })
    }
}

#[tokio::test]
async fn a_backend_whose_replica_failed_asks_the_others() {
    let cluster = cluster(2);
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let readers = Readers::start(&disk, 1, 8).unwrap();
    let seat = Seat { log: cluster.log.clone(), number: 0 };
    let failed = Arc::new(Replica::new(Box::new(Stopped(seat)), disk, readers));
    let mut channels = vec![(NodeId(9), serve(&failed).await.0)];
    for (number, replica) in cluster.replicas.iter().enumerate() {
        channels.push((NodeId(number as u64), serve(replica).await.0));
    }
    let backend = Backend::new(failed.clone(), Remote::new(move || channels.clone()));
    assert_eq!(backend.commit(vec![put("k", "v")], soon()).await, Ok(vec![Committed::Done]));
    // Once, though the failed replica had proposed it as well.
    let found = backend.get(&account("a@h"), T, b"k", soon()).await.unwrap().unwrap();
    assert_eq!((found.version, found.value), (1, b"v".to_vec()));
    assert_eq!(backend.scan(&account("a@h"), T, Range::all(), soon()).await.unwrap().len(), 1);
    let alone = Backend::new(failed, Remote::new(Vec::new));
    let refused = alone.commit(vec![put("k", "v")], soon()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn whoever_has_no_certificate_of_the_cluster_gets_nothing() {
    use proto::store::store_server::Store;
    let cluster = cluster(1);
    let service = service::Service { replica: cluster.replicas[0].clone() };
    let codes = [
        service.get(Request::new(Default::default())).await.unwrap_err().code(),
        service.scan(Request::new(Default::default())).await.unwrap_err().code(),
        service.commit(Request::new(Default::default())).await.unwrap_err().code(),
    ];
    assert_eq!(codes, [tonic::Code::PermissionDenied; 3]);
}

#[tokio::test]
async fn a_frontend_without_a_backend_gives_up_at_the_deadline() {
    let remote = Remote::new(Vec::new);
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(remote.get(&account("a@h"), T, b"k", deadline).await, Err(StoreError::Deadline));
}

#[test]
fn a_command_that_is_repeated_happens_once_even_after_a_restart_or_a_snapshot() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut counted = put("k", "v");
    counted.expect = vec![(T, b"k".to_vec(), Expect::Absent)];
    let payload = Bytes::from(command(7, vec![counted]).encode_to_vec());
    let answer = |machine: &mut StoreMachine, index| {
        let replies = machine.apply(&[entry(index, vec![payload.clone()])]).unwrap();
        read_commit_reply(wire::CommitReply::decode(replies[0][0].clone()).unwrap())
    };
    let disk_here = disk(folder.path());
    let mut machine = StoreMachine::open(disk_here.clone()).unwrap();
    assert_eq!(machine.mark(), None);
    assert_eq!(answer(&mut machine, 1), Ok(vec![Committed::Done]));
    assert_eq!(answer(&mut machine, 2), Ok(vec![Committed::Done]));
    drop((machine, disk_here));

    let disk_here = disk(folder.path());
    let mut machine = StoreMachine::open(disk_here.clone()).unwrap();
    assert_eq!(machine.mark().unwrap(), 2u64.to_be_bytes()[..]);
    assert_eq!(answer(&mut machine, 3), Ok(vec![Committed::Done]));
    assert_eq!(disk_here.get(&account("a@h"), T, b"k").unwrap().unwrap().version, 1);

    let mut bytes = Vec::new();
    machine.snapshot().unwrap()(&mut bytes).unwrap();
    let disk_there = disk(other.path());
    let mut machine = StoreMachine::open(disk_there.clone()).unwrap();
    machine.apply(&[entry(1, vec![command(9, vec![put("stale", "x")]).encode_to_vec().into()])]).unwrap();
    machine.install(Bytes::from_static(b"place"), &mut &bytes[..]).unwrap();
    assert_eq!(machine.mark().unwrap(), b"place"[..]);
    assert_eq!(answer(&mut machine, 4), Ok(vec![Committed::Done]));
    let found = disk_there.scan(&account("a@h"), T, &Range::all()).unwrap();
    assert_eq!(found.iter().map(|(key, r)| (&key[..], r.version)).collect::<Vec<_>>(), [(&b"k"[..], 1)]);
}

/// A snapshot of the store as a backend of version 0.1.0 sends it, with its memory of commands.
const SNAPSHOT_1: &str = "726f6f6b6572790107000000006b6565706572090000006120636c75737465720b00000000726166742f706c61636508\
    00000000000000000000011900000000726166742f72656d656d62657265642f0000000000000001180000000a160a10\
    0000000000000000000000000000000712020a000c00000061000361406804746573746b120000000101000000000000\
    004708b684843b646b76ffffffffd77cc556";

#[test]
fn a_snapshot_of_version_1_is_still_read() {
    let digits: Vec<&str> = SNAPSHOT_1.as_bytes().chunks(2).map(|two| str::from_utf8(two).unwrap()).collect();
    let bytes: Vec<u8> = digits.iter().map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let mut machine = StoreMachine::open(disk.clone()).unwrap();
    machine.install(Bytes::from_static(b"place"), &mut &bytes[..]).unwrap();
    let found = disk.get(&account("a@h"), T, b"k").unwrap().unwrap();
    assert_eq!((found.version, &found.value[..]), (1, &b"v"[..]));
    // The command that put it there is known, so that it does not happen once more.
    let again = command(7, vec![put("k", "other")]).encode_to_vec();
    machine.apply(&[entry(2, vec![again.into()])]).unwrap();
    assert_eq!(disk.get(&account("a@h"), T, b"k").unwrap().unwrap().version, 1);
}

#[test]
fn the_memory_of_commands_is_bounded_and_the_same_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let payload = |id: u128| Bytes::from(command(id, vec![put("n", "x")]).encode_to_vec());
    let version = |disk: &Disk| disk.get(&account("a@h"), T, b"n").unwrap().unwrap().version;
    let mut index = 0;
    let mut apply = |machine: &mut StoreMachine, ids: &[u128]| {
        index += 1;
        machine.apply(&[entry(index, ids.iter().map(|id| payload(*id)).collect())]).unwrap();
    };
    {
        let disk = disk(folder.path());
        let mut machine = StoreMachine::remembering(disk.clone(), 4).unwrap();
        for id in 0..10 {
            apply(&mut machine, &[id * 2, id * 2 + 1]);
        }
        assert_eq!(version(&disk), 20);
        // Known still: the last four.
        apply(&mut machine, &[16, 17, 18, 19]);
        assert_eq!(version(&disk), 20);
    }
    let disk = disk(folder.path());
    let mut machine = StoreMachine::remembering(disk.clone(), 4).unwrap();
    apply(&mut machine, &[16, 17, 18, 19]);
    assert_eq!(version(&disk), 20);
    // Long forgotten.
    apply(&mut machine, &[3]);
    assert_eq!(version(&disk), 21);
}

#[test]
fn bytes_that_are_no_command_are_answered_and_a_newer_format_stops_this_node() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let mut machine = StoreMachine::open(disk.clone()).unwrap();
    let mut bad_table = command(1, vec![put("k", "v")]);
    if let Some(wire::change::What::Put(put)) = &mut bad_table.batches[0].changes[0].what {
        put.table = "No Table".into();
    }
    let mut no_partition = command(2, vec![put("k", "v")]);
    no_partition.batches[0].partition = None;
    let short_id = wire::Command { id: Bytes::from_static(b"short"), ..command(3, vec![]) };
    let large = command(4, vec![put("k", &"v".repeat(2 << 20))]);
    let good = command(5, vec![put("k", "v")]);
    let payloads = [bad_table, no_partition, short_id, large, good].map(|c| c.encode_to_vec().into());
    let payloads = std::iter::once(Bytes::from_static(b"\xff\xff")).chain(payloads).collect();
    let replies = machine.apply(&[entry(1, payloads)]).unwrap();
    let read = |bytes: &Bytes| read_commit_reply(wire::CommitReply::decode(bytes.clone()).unwrap());
    let answers: Vec<_> = replies[0].iter().map(read).collect();
    assert!(answers[..4].iter().all(|a| matches!(a, Err(StoreError::Engine { .. }))), "{answers:?}");
    assert!(matches!(answers[4], Err(StoreError::TooLarge { .. })));
    assert_eq!(answers[5], Ok(vec![Committed::Done]));
    let newer = wire::Command { format: FORMAT + 1, ..command(6, vec![put("k", "w")]) };
    assert!(machine.apply(&[entry(2, vec![newer.encode_to_vec().into()])]).is_err());
    assert_eq!(disk.get(&account("a@h"), T, b"k").unwrap().unwrap().value, b"v");
}

/// Input: in the log of the replicated store: 2,000 entries of random bytes, and of commands with some of their bytes
/// changed, cut and joined.
///
/// Outcome: Each is answered alike by two replicas, and none panics. A command of a format that is not known here stops
/// this node's replica in place of a guess; nobody can propose one.
#[test]
fn row_138_whatever_is_in_the_log_of_the_store_is_applied_or_refused() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let disks = folders.each_ref().map(|folder| disk(folder.path()));
    let mut machines = disks.each_ref().map(|disk| StoreMachine::open(disk.clone()).unwrap());
    let mut expecting = put("l", "w");
    expecting.expect = vec![(T, b"k".to_vec(), Expect::Version(3)), (T, b"l".to_vec(), Expect::Absent)];
    expecting.push(Op::Delete { table: T, key: b"k".to_vec() });
    let mut wiping = put("m", "v");
    wiping.push(Op::DeletePartition);
    let seeds = [
        command(1, vec![put("k", "v")]),
        command(2, vec![expecting.clone(), put("k", "v")]),
        command(3, vec![wiping, expecting]),
    ];
    let seeds = seeds.map(|command| command.encode_to_vec());
    let mut noise = crate::noise::Noise::new(138);
    let (mut read, mut refused, mut newer) = (0, 0, 0);
    for index in 1..=2_000 {
        let payload = Bytes::from(noise.like_one_of(&seeds));
        let refusal = machines[0].refusal()(&payload);
        if wire::Command::decode(payload.clone()).is_ok_and(|command| command.format > FORMAT) {
            newer += 1;
            assert!(refusal.is_some(), "it can be proposed: {payload:?}");
            continue;
        }
        *(if refusal.is_some() { &mut refused } else { &mut read }) += 1;
        let replies =
            machines.each_mut().map(|machine| machine.apply(&[entry(index, vec![payload.clone()])]).unwrap());
        assert_eq!(replies[0], replies[1], "{payload:?}");
        let reply = wire::CommitReply::decode(replies[0][0][0].clone()).unwrap();
        assert!(refusal.is_some() || reply.failure.is_none(), "it was let in: {reply:?} to {payload:?}");
    }
    assert!(read > 100 && refused > 100 && newer > 0, "{read}, {refused} and {newer}");
}

#[test]
fn the_bytes_of_a_command_of_format_1_stay_readable() {
    let mut batch = put("k", "v");
    batch.expect = vec![(T, b"k".to_vec(), Expect::Version(3)), (T, b"l".to_vec(), Expect::Absent)];
    batch.push(Op::Delete { table: T, key: b"l".to_vec() });
    batch.push(Op::DeletePartition);
    let made = command(1, vec![batch.clone()]).encode_to_vec();
    let kept = b"\x08\x01\x12\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\x44\
        \x0a\x07\x08\x01\x12\x03a@h\
        \x12\x0b\x0a\x04test\x12\x01k\x20\x03\x12\x0b\x0a\x04test\x12\x01l\x18\x01\
        \x1a\x0e\x0a\x0c\x0a\x04test\x12\x01k\x1a\x01v\x1a\x0b\x12\x09\x0a\x04test\x12\x01l\x1a\x02\x1a\0";
    assert_eq!(made, kept);
    let read = wire::Command::decode(&kept[..]).unwrap();
    let batches: Vec<_> = read.batches.into_iter().map(super::wire::read_batch).collect();
    assert_eq!(batches, [Ok(batch)]);
}

#[test]
fn a_commit_is_cut_between_batches_where_it_is_too_large_for_one_entry() {
    let large = || put("k", &"v".repeat(1 << 20));
    let parts = split((0..10).map(|_| large()).collect());
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
    assert_eq!(split(vec![]).len(), 0);
    assert_eq!(split(vec![put("a", "1"), put("b", "2")]).len(), 1);
}

#[test]
fn a_failure_says_the_same_on_the_other_side() {
    use super::wire::{failure, read_failure};
    for error in [
        StoreError::Unavailable { reason: "r".into() },
        StoreError::Deadline,
        StoreError::Full,
        StoreError::Corrupt {
            partition: Partition::Room("r@h".into()),
            table: "t".into(),
            key: vec![1, 0, 255],
            reason: "r".into(),
        },
        StoreError::TooLarge { what: "value", max: 9 },
        StoreError::Engine { reason: "r".into() },
    ] {
        assert_eq!(read_failure(failure(error.clone())), error);
    }
}

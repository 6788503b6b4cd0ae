//! What sled must survive: a reopened store, torn files, flipped bits, a full disk, `kill -9`.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    conformance,
    engine::{Op, Range},
};

const T: Table = Table("test");

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn account(name: &str) -> Partition {
    Partition::Account(name.into())
}

fn put(partition: &Partition, key: &str, value: impl Into<Vec<u8>>) -> Batch {
    let op = Op::Put { table: T, key: key.into(), value: value.into() };
    Batch { partition: partition.clone(), expect: vec![], ops: Arc::new(vec![op]) }
}

fn open(path: &Path) -> Sled {
    Sled::open(&Config { cache_bytes: 4 << 20, ..Config::new(path) }).unwrap()
}

async fn commit(sled: &Sled, batch: Batch) {
    assert_eq!(sled.commit(vec![batch], soon()).await, Ok(vec![Committed::Done]));
}

async fn value(sled: &Sled, partition: &Partition, key: &str) -> Option<Vec<u8>> {
    sled.get(partition, T, key.as_bytes(), soon()).await.unwrap().map(|record| record.value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_keeps_every_promise() {
    let folder = tempfile::tempdir().unwrap();
    let sled: Arc<dyn Engine> = Arc::new(open(folder.path()));
    conformance::all(&[sled]).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let p = account("a@h");
    for round in 0..3 {
        let sled = open(folder.path());
        for earlier in 0..round {
            assert_eq!(value(&sled, &p, &format!("{earlier}")).await, Some(vec![earlier]));
        }
        commit(&sled, put(&p, &round.to_string(), vec![round])).await;
        sled.close();
    }
}

#[test]
fn a_store_waits_for_the_one_before_it_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let first = Disk::open(&Config::new(folder.path())).unwrap();
    let path = folder.path().to_owned();
    let second = thread::spawn(move || Disk::open(&Config::new(path)).map(drop));
    // Whichever of the two comes first: the second one opens.
    drop(first);
    assert_eq!(second.join().unwrap(), Ok(()));
}

#[test]
fn a_store_of_another_keeper_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).close();
    open(folder.path()).close();
    let disk = Disk::open(&Config::new(folder.path())).unwrap();
    let refused = disk.claim("a cluster").unwrap_err().to_string();
    assert!(refused.ends_with("belongs to a server that stands alone, not to a cluster"), "{refused}");
}

#[tokio::test]
async fn a_store_changes_its_keeper_with_all_that_is_in_it_and_only_once() {
    let folder = tempfile::tempdir().unwrap();
    let sled = open(folder.path());
    let p = account("a@h");
    commit(&sled, put(&p, "key", b"value".to_vec())).await;
    sled.close();
    let disk = Disk::open(&Config::new(folder.path())).unwrap();
    assert!(!disk.hand_over("nobody", "a cluster", &[]).unwrap());
    assert!(disk.hand_over(KEEPER, "a cluster", &[(b"place", b"7")]).unwrap());
    assert!(!disk.hand_over(KEEPER, "a cluster", &[(b"place", b"8")]).unwrap());
    assert_eq!(disk.claim("a cluster"), Ok(()));
    assert_eq!(disk.mark(b"place").unwrap().as_deref(), Some(&b"7"[..]));
    assert_eq!(disk.get(&p, T, b"key").unwrap().unwrap().value[..], b"value"[..]);
}

#[tokio::test]
async fn a_torn_snapshot_is_moved_aside_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let p = account("a@h");
    // The second start writes a snapshot of what the first one left in the log.
    for round in ["0", "1"] {
        let sled = open(folder.path());
        for n in 0..50 {
            commit(&sled, put(&p, &format!("{round}/{n}"), vec![n; 1000])).await;
        }
        sled.close();
    }
    let snapshots = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
        names.filter(|e| e.file_name().to_string_lossy().starts_with("snap.")).collect::<Vec<_>>()
    };
    let before = snapshots();
    assert!(!before.is_empty(), "sled wrote a snapshot");
    for entry in &before {
        let bytes = fs::read(entry.path()).unwrap();
        fs::write(entry.path(), &bytes[..bytes.len() / 2]).unwrap();
    }
    let sled = open(folder.path());
    assert_eq!(fs::read_dir(folder.path().join(disk::ASIDE)).unwrap().count(), before.len());
    assert_eq!(sled.scan(&p, T, Range::all(), soon()).await.unwrap().len(), 100);
    commit(&sled, put(&p, "later", "x")).await;
    sled.close();
    assert_eq!(value(&open(folder.path()), &p, "later").await, Some(b"x".to_vec()));
}

#[tokio::test]
async fn a_flipped_bit_in_a_record_is_corrupt_for_that_record_only() {
    let folder = tempfile::tempdir().unwrap();
    let p = account("a@h");
    let sled = open(folder.path());
    for key in ["a", "b", "c"] {
        commit(&sled, put(&p, key, "value")).await;
    }
    let physical = [layout::partition_prefix(&p), layout::record_rest(T, b"b")].concat();
    sled.disk().settle_all().unwrap();
    {
        let tree = &sled.disk().records.read().ground.tree;
        let mut bytes = tree.get(&physical).unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        tree.insert(&physical, bytes).unwrap();
    }
    let corrupt = sled.get(&p, T, b"b", soon()).await;
    assert!(matches!(&corrupt, Err(StoreError::Corrupt { key, .. }) if key == b"b"), "{corrupt:?}");
    assert_eq!(value(&sled, &p, "a").await, Some(b"value".to_vec()));
    assert_eq!(value(&sled, &p, "c").await, Some(b"value".to_vec()));
    assert!(matches!(sled.scan(&p, T, Range::all(), soon()).await, Err(StoreError::Corrupt { .. })));
    let rest = sled.scan(&p, T, Range::after("b"), soon()).await.unwrap();
    assert_eq!(rest.len(), 1);
    // Written anew, it is whole again and its version has grown.
    commit(&sled, put(&p, "b", "healed")).await;
    let healed = sled.get(&p, T, b"b", soon()).await.unwrap().unwrap();
    assert_eq!((healed.version, healed.value), (2, b"healed".to_vec()));
}

#[tokio::test]
async fn a_flipped_bit_in_the_file_never_becomes_another_value() {
    let folder = tempfile::tempdir().unwrap();
    let p = account("a@h");
    let original = |n: usize| vec![(n % 251) as u8; 300];
    let sled = open(folder.path());
    for n in 0..200 {
        commit(&sled, put(&p, &format!("{n:03}"), original(n))).await;
    }
    sled.disk().settle_all().unwrap();
    sled.close();
    let whole = fs::read(folder.path().join("db")).unwrap();
    for place in 1..=12 {
        let broken = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), broken.path());
        let mut bytes = whole.clone();
        let at = whole.len() * place / 13;
        bytes[at] ^= 0x10;
        fs::write(broken.path().join("db"), bytes).unwrap();
        // It may refuse to open or to read, in words; it must not lie.
        let Ok(sled) = Sled::open(&Config::new(broken.path())) else { continue };
        for n in 0..200 {
            let read = sled.get(&p, T, format!("{n:03}").as_bytes(), soon()).await;
            if let Ok(Some(record)) = read {
                assert_eq!(record.value, original(n), "bit at {at}");
            }
        }
        sled.close();
    }
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_disk_without_room_refuses_writes_and_still_reads() {
    let folder = tempfile::tempdir().unwrap();
    let p = account("a@h");
    let sled = open(folder.path());
    commit(&sled, put(&p, "k", "v")).await;
    sled.close();
    let full = Sled::open(&Config { reserve_bytes: u64::MAX, ..Config::new(folder.path()) }).unwrap();
    assert_eq!(full.commit(vec![put(&p, "k", "w")], soon()).await, Err(StoreError::Full));
    assert_eq!(value(&full, &p, "k").await, Some(b"v".to_vec()));
    full.close();
    // Room came back, and nothing of the refused write is there.
    let sled = open(folder.path());
    assert_eq!(value(&sled, &p, "k").await, Some(b"v".to_vec()));
    commit(&sled, put(&p, "k", "w")).await;
}

#[test]
fn a_nearly_full_disk_still_takes_deletes() {
    let p = account("a@h");
    let delete = Batch::new(p.clone()).delete_partition();
    assert_eq!(Space::Deletes.check(std::slice::from_ref(&delete)), Ok(()));
    assert_eq!(Space::Deletes.check(&[delete.clone(), put(&p, "k", "v")]), Err(StoreError::Full));
    assert_eq!(Space::None.check(&[delete]), Err(StoreError::Full));
}

/// A receiver of a copy in front of which the records change again and again.
struct Restless {
    disk: Arc<Disk>,
    bytes: Vec<u8>,
    changes: usize,
}

impl std::io::Write for Restless {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() / 10_000 > self.changes {
            let (p, n) = (account("a@h"), self.changes);
            self.changes += 1;
            let deleted = Op::Delete { table: T, key: format!("{:05}", (n * 611) % 1500).into() };
            let mut writing = self.disk.write().unwrap();
            writing.batch(&put(&p, &format!("{:05}", (n * 377) % 1500), "after")).unwrap();
            writing.batch(&put(&p, &format!("{:05} new", (n * 173) % 1500), "after")).unwrap();
            writing.batch(&Batch { partition: p, expect: vec![], ops: Arc::new(vec![deleted]) }).unwrap();
            writing.finish().unwrap();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_copy_is_of_one_moment_though_writes_go_on() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let p = account("a@h");
    let sled = open(from.path());
    // Long enough for a copy in many pieces.
    let before = format!("before{}", "-".repeat(1000));
    let batches = (0..1500).map(|n| put(&p, &format!("{n:05}"), before.as_str())).collect();
    sled.commit(batches, soon()).await.unwrap();
    let mut copy = sled.disk().copy();
    let mut restless = Restless { disk: sled.disk().clone(), bytes: Vec::new(), changes: 0 };
    copy.write_to(&mut restless).unwrap();
    assert!(restless.changes > 100);
    let bytes = restless.bytes;
    let changed = sled.scan(&p, T, Range::all(), soon()).await.unwrap();
    assert!(changed.iter().filter(|(_, record)| record.value == b"after").count() > 100);

    let other = open(to.path());
    commit(&other, put(&p, "stale", "x")).await;
    other.disk().install(&mut &bytes[..], (b"place", b"17")).unwrap();
    let check = async |other: &Sled| {
        let found = other.scan(&p, T, Range::all(), soon()).await.unwrap();
        assert_eq!(found.len(), 1500);
        assert!(found.iter().all(|(_, r)| r.value.starts_with(b"before") && r.version == 1));
        assert_eq!(other.disk().mark(b"place").unwrap(), Some(b"17".to_vec()));
    };
    check(&other).await;
    other.close();
    let other = open(to.path());
    check(&other).await;
    // Damaged on the way: refused, and what was there stays.
    let mut torn = bytes.clone();
    let middle = torn.len() / 2;
    torn[middle] ^= 1;
    assert!(other.disk().install(&mut &torn[..], (b"place", b"18")).is_err());
    assert!(other.disk().install(&mut &bytes[..middle], (b"place", b"18")).is_err());
    check(&other).await;
}

/// Log tables and others.
const TABLES: [Table; 2] = [T, Table("archive")];

const CHILD: &str = "ROOKERY_STORE_KILLED_CHILD";

/// Writes and says so until it is killed; does nothing unless it was started by the test below.
#[test]
fn child_that_is_killed() {
    let Ok(path) = env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Small enough that it is killed at every stage of a change's way to sled.
        let sled = Sled::open(&Config { layer_bytes: 8 * 1024, ..Config::new(path) }).unwrap();
        let first: u64 = env::var("ROOKERY_STORE_FIRST").unwrap().parse().unwrap();
        let writers = (0..8).map(|writer: usize| {
            let sled = &sled;
            async move {
                for n in first.. {
                    let key = format!("{writer}/{n:08}");
                    let p = account(&format!("{writer}@h"));
                    let value = key.repeat(1 + (n % 40) as usize).into_bytes();
                    let op = Op::Put { table: TABLES[writer % 2], key: key.into(), value };
                    let batch = Batch { partition: p, expect: vec![], ops: Arc::new(vec![op]) };
                    assert_eq!(sled.commit(vec![batch], soon()).await, Ok(vec![Committed::Done]));
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {writer} {n}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    });
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..6u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "engines::sled::tests::child_that_is_killed", "--nocapture"])
            .env(CHILD, folder.path())
            .env("ROOKERY_STORE_FIRST", (round * 100_000).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut killed = false;
        let mut count = 0;
        // What it still had said when it was killed counts as well, so read to the end.
        while let Some(Ok(line)) = lines.next() {
            let Some((writer, n)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let (Ok(writer), Ok(n)) = (writer.parse(), n.parse()) else { continue };
            seen.insert(writer, n);
            count += 1;
            if count >= 40 + round * 37 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child wrote until it was killed");
        let disk = Disk::open(&Config::new(folder.path())).unwrap();
        acknowledged.extend(seen.iter().map(|(writer, n)| (*writer + round * 8, *n)));
        for (slot, last) in &acknowledged {
            let (round, writer) = (slot / 8, slot % 8);
            let p = account(&format!("{writer}@h"));
            for n in round * 100_000..=*last {
                let key = format!("{writer}/{n:08}");
                let found = disk.get(&p, TABLES[(writer % 2) as usize], key.as_bytes()).unwrap();
                let expected = key.repeat(1 + (n % 40) as usize).into_bytes();
                assert_eq!(found.map(|r| r.value), Some(expected), "{key} in round {round}");
            }
        }
    }
}

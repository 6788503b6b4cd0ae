//! What is kept in memory must say what the disk says, whatever was written, removed or too large.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    engine::{Batch, Op, Partition, Range, Table},
    engines::sled::{Config, Disk},
};

const SMALL: Table = Table("small");
const OTHER: Table = Table("other");

struct Bench {
    disk: Disk,
    me: Partition,
    _folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(&Config { cache_bytes: 4 << 20, ..Config::new(folder.path()) }).unwrap();
    Bench { disk, me: Partition::Account("me@h".into()), _folder: folder }
}

impl Bench {
    fn apply(&self, partition: &Partition, ops: Vec<Op>) {
        let mut writing = self.disk.write().unwrap();
        writing.batch(&Batch { partition: partition.clone(), expect: vec![], ops: Arc::new(ops) }).unwrap();
        writing.finish().unwrap();
    }

    fn put(&self, table: Table, key: &str, value: Vec<u8>) {
        self.apply(&self.me, vec![Op::Put { table, key: key.into(), value }]);
    }

    /// Whether a table is answered from memory; if so, it must say what the disk says.
    fn is_kept(&self, table: Table) -> bool {
        let ranges = [Range::all(), Range::after("b"), Range::all().limit(1), Range::all().reversed()];
        let mut kept = true;
        for range in ranges {
            let there = self.disk.scan(&self.me, table, &range).unwrap();
            match self.disk.kept_scan(&self.me, table, &range) {
                Some(found) => assert_eq!(found, there),
                None => kept = false,
            }
        }
        for key in ["", "a", "b", "nobody"] {
            let there = self.disk.get(&self.me, table, key.as_bytes()).unwrap();
            match self.disk.kept_get(&self.me, table, key.as_bytes()) {
                Some(found) => assert_eq!(found, there),
                None => kept = false,
            }
        }
        kept
    }
}

#[test]
fn a_kept_partition_answers_for_all_of_its_tables_and_follows_what_is_written() {
    let bench = bench();
    bench.put(SMALL, "a", b"1".to_vec());
    bench.put(SMALL, "", b"0".to_vec());
    assert!(!bench.is_kept(SMALL));
    bench.disk.keep(&bench.me);
    assert!(bench.is_kept(SMALL) && bench.is_kept(OTHER));
    bench.put(SMALL, "a", b"2".to_vec());
    bench.put(SMALL, "b", b"3".to_vec());
    bench.put(OTHER, "a", b"4".to_vec());
    assert!(bench.is_kept(SMALL) && bench.is_kept(OTHER));
    bench.apply(&bench.me, vec![Op::Delete { table: SMALL, key: "a".into() }]);
    assert!(bench.is_kept(SMALL));
    bench.apply(&bench.me, vec![Op::DeletePartition]);
    assert!(bench.is_kept(SMALL) && bench.is_kept(OTHER));
    assert_eq!(bench.disk.kept_get(&bench.me, SMALL, b""), Some(None));
}

#[test]
fn a_table_that_is_or_becomes_large_is_left_to_the_disk_and_the_others_are_kept() {
    let bench = bench();
    for n in 0..100 {
        bench.put(OTHER, &format!("{n:03}"), vec![7; 500]);
    }
    bench.put(SMALL, "a", b"1".to_vec());
    bench.disk.keep(&bench.me);
    assert!(!bench.is_kept(OTHER) && bench.is_kept(SMALL));
    bench.put(OTHER, "b", b"2".to_vec());
    assert!(!bench.is_kept(OTHER) && bench.is_kept(SMALL));
    bench.put(SMALL, "b", vec![1; 50_000]);
    assert!(!bench.is_kept(SMALL));
    bench.disk.keep(&bench.me);
    assert!(!bench.is_kept(SMALL) && !bench.is_kept(OTHER) && bench.is_kept(Table("none")));
}

#[test]
fn partitions_with_names_that_begin_alike_are_kept_apart() {
    let bench = bench();
    let longer = Partition::Account("me@host".into());
    bench.disk.keep(&bench.me);
    bench.disk.keep(&longer);
    bench.apply(&longer, vec![Op::Put { table: SMALL, key: "a".into(), value: b"1".to_vec() }]);
    assert_eq!(bench.disk.kept_get(&bench.me, SMALL, b"a"), Some(None));
    assert!(bench.disk.kept_get(&longer, SMALL, b"a").flatten().is_some());
}

#[test]
fn what_is_kept_is_bounded_and_those_who_are_asked_for_stay() {
    let bench = bench();
    let partition = |n: usize| Partition::Account(format!("{n}@h").into());
    for n in 0..2_000 {
        bench.disk.keep(&partition(n));
        assert!(bench.disk.kept_get(&partition(0), SMALL, b"a").is_some());
    }
    let kept = (0..2_000).filter(|n| bench.disk.kept_get(&partition(*n), SMALL, b"a").is_some()).count();
    assert!((100..1_000).contains(&kept), "{kept} of 2,000 empty partitions in 128 KiB");
}

#[test]
fn readers_beside_a_writer_never_see_an_older_value_than_the_one_before() {
    let bench = Arc::new(bench());
    let until = Instant::now() + Duration::from_millis(500);
    let reader = {
        let bench = bench.clone();
        std::thread::spawn(move || {
            let mut last = 0;
            while Instant::now() < until {
                bench.disk.keep(&bench.me);
                if let Some(found) = bench.disk.kept_get(&bench.me, SMALL, b"a") {
                    let version = found.map_or(0, |record| record.version);
                    assert!(version >= last, "{version} after {last}");
                    last = version;
                }
            }
        })
    };
    while Instant::now() < until {
        bench.put(SMALL, "a", b"x".to_vec());
        // Makes the table too large for a moment, so that it is forgotten and kept anew again and again.
        bench.put(SMALL, "b", vec![0; 10_000]);
        bench.apply(&bench.me, vec![Op::Delete { table: SMALL, key: "b".into() }]);
    }
    reader.join().unwrap();
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    let bench = bench();
    let batch = |n: u32| {
        let put =
            |key: u32| Op::Put { table: SMALL, key: key.to_be_bytes().into(), value: n.to_be_bytes().into() };
        bench.apply(&bench.me, (0..20).map(put).collect());
    };
    batch(0);
    bench.disk.keep(&bench.me);
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| (1..500).for_each(batch));
        while !writer.is_finished() {
            let found = bench.disk.kept_scan(&bench.me, SMALL, &Range::all()).unwrap();
            let first = found[0].1.value.clone();
            assert!(found.iter().all(|(_, record)| record.value == first), "{found:?}");
        }
    });
}

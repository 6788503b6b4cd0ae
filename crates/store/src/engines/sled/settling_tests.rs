//! What waits above sled, what is on its way there and what is there must always be one truth.

use std::{
    collections::BTreeMap,
    fs,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    engine::{Batch, Committed, Expect, Key, Op, Partition, Range, Table},
    engines::sled::{Config, Disk, KEEPER, journal, layout, segments, tests::copy_folder},
};

const LOG: Table = Table("archive");
/// A log whose records have no versions.
const INDEX: Table = Table("archive_with");
const OTHER: Table = Table("test");

type Model = BTreeMap<(Partition, Table, Key), (u64, Vec<u8>)>;

/// Numbers that look like chance and are the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn key(&mut self) -> Key {
        format!("{:04}", self.below(3_000)).into()
    }
}

fn account(number: usize) -> Partition {
    Partition::Account(format!("{number}@h").into())
}

fn open(path: &Path) -> Arc<Disk> {
    Arc::new(Disk::open(&Config { cache_bytes: 4 << 20, layer_bytes: 20_000, ..Config::new(path) }).unwrap())
}

fn apply(disk: &Disk, batch: &Batch) -> Committed {
    let mut writing = disk.write().unwrap();
    let outcome = writing.batch(batch).unwrap();
    writing.finish().unwrap();
    outcome
}

fn batch(chance: &mut Chance, last: &mut usize) -> Batch {
    let mut batch = Batch::new(account(chance.below(3)));
    for _ in 0..1 + chance.below(12) {
        let table = [LOG, INDEX, OTHER][chance.below(6) / 2];
        let size = [20, 300, 300, 9_000][chance.below(40).saturating_sub(36)];
        batch.push(match chance.below(20) {
            0..3 => Op::Delete { table, key: chance.key() },
            3..8 => Op::Put { table, key: chance.key(), value: vec![chance.below(256) as u8; size] },
            _ => {
                *last += 1;
                let key = format!("9{last:06}").into();
                Op::Put { table, key, value: vec![chance.below(256) as u8; size] }
            }
        });
    }
    if chance.below(400) == 0 {
        let at = chance.below(batch.ops.len());
        Arc::make_mut(&mut batch.ops).insert(at, Op::DeletePartition);
    }
    batch
}

fn apply_to_model(model: &mut Model, batch: &Batch) {
    for op in &*batch.ops {
        match op {
            Op::Put { table, key, value } => {
                let record = model.entry((batch.partition.clone(), *table, key.clone())).or_default();
                let version = if *table == INDEX { 1 } else { record.0 + 1 };
                *record = (version, value.clone());
            }
            Op::Delete { table, key } => {
                model.remove(&(batch.partition.clone(), *table, key.clone()));
            }
            Op::DeletePartition => model.retain(|(partition, ..), _| *partition != batch.partition),
        }
    }
}

fn check(disk: &Disk, model: &Model, chance: &mut Chance) {
    for partition in (0..3).map(account) {
        for table in [LOG, INDEX, OTHER] {
            let bound = |chance: &mut Chance| match chance.below(3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(chance.key()),
                _ => Bound::Excluded(format!("9{:06}", chance.below(9_000)).into()),
            };
            let (from, to) = (bound(chance), bound(chance));
            for reverse in [false, true] {
                let range =
                    Range { from: from.clone(), to: to.clone(), reverse, limit: 1 + chance.below(90) };
                let inside = |key: &Key| (from.clone(), to.clone()).contains(key) && !range.is_empty();
                let mut expected: Vec<_> = model
                    .iter()
                    .filter(|((p, t, key), _)| *p == partition && *t == table && inside(key))
                    .map(|((.., key), (version, value))| (key.clone(), *version, value.clone()))
                    .collect();
                if reverse {
                    expected.reverse();
                }
                expected.truncate(range.limit);
                let found = disk.scan(&partition, table, &range).unwrap();
                let found: Vec<_> = found.into_iter().map(|(key, r)| (key, r.version, r.value)).collect();
                assert_eq!(found, expected, "{partition} {table:?} {range:?}");
                for (key, version, value) in found {
                    let record = disk.get(&partition, table, &key).unwrap().unwrap();
                    assert_eq!((record.version, record.value), (version, value));
                }
            }
            let nobody = chance.key();
            let there = model.contains_key(&(partition.clone(), table, nobody.clone()));
            assert_eq!(disk.get(&partition, table, &nobody).unwrap().is_some(), there);
            let refused = Batch::new(partition.clone()).expect_key(
                table,
                nobody,
                if there { Expect::Absent } else { Expect::Present },
            );
            assert!(matches!(apply(disk, &refused), Committed::Conflict { .. }));
        }
    }
}

impl Batch {
    fn expect_key(mut self, table: Table, key: Key, expect: Expect) -> Batch {
        self.expect.push((table, key, expect));
        self
    }
}

#[test]
fn random_changes_read_the_same_wherever_they_are_on_their_way() {
    let folder = tempfile::tempdir().unwrap();
    let (mut chance, mut model, mut last) = (Chance(7), Model::new(), 0);
    let mut disk = open(folder.path());
    for round in 0..1_500 {
        let batch = batch(&mut chance, &mut last);
        assert_eq!(apply(&disk, &batch), Committed::Done);
        apply_to_model(&mut model, &batch);
        disk.keep(&account(chance.below(3)));
        if chance.below(5) == 0 {
            disk.settle_some(chance.below(5_000)).unwrap();
        }
        if round % 10 == 0 {
            check(&disk, &model, &mut chance);
        }
        match chance.below(200) {
            0 => disk.settle_all().unwrap(),
            1 => {
                // Not even closed: what was synced is there.
                disk.sync().unwrap();
                let copied = tempfile::tempdir().unwrap();
                copy_folder(folder.path(), copied.path());
                if let Some((file, synced)) = disk.writer.lock().appender.synced() {
                    let file = copied.path().join(file.strip_prefix(folder.path()).unwrap());
                    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(synced).unwrap();
                }
                check(&open(copied.path()), &model, &mut chance);
            }
            2 => {
                drop(disk);
                disk = open(folder.path());
                check(&disk, &model, &mut chance);
            }
            3 => {
                let mut bytes = Vec::new();
                disk.copy().write_to(&mut bytes).unwrap();
                let elsewhere = tempfile::tempdir().unwrap();
                let other = open(elsewhere.path());
                apply(
                    &other,
                    &Batch {
                        ops: Arc::new(vec![Op::Put { table: LOG, key: "0".into(), value: vec![] }]),
                        ..Batch::new(account(0))
                    },
                );
                other.install(&mut &bytes[..], (b"place", b"1")).unwrap();
                check(&other, &model, &mut chance);
                drop(other);
                check(&open(elsewhere.path()), &model, &mut chance);
            }
            _ => {}
        }
    }
    disk.settle_all().unwrap();
    check(&disk, &model, &mut chance);
    assert!(model.len() > 1_000, "{}", model.len());
    let segments = numbers(folder.path());
    let last = *segments.last().unwrap();
    assert!(last > 20 && segments.len() < last / 2, "half of them are gone: {segments:?}");
}

/// The segments that are there.
fn numbers(path: &Path) -> Vec<usize> {
    let files = fs::read_dir(path.join(segments::FOLDER)).unwrap();
    let mut numbers: Vec<_> =
        files.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn put(table: Table, key: usize, value: &str) -> Batch {
    let op = Op::Put { table, key: format!("{key:06}").into(), value: value.into() };
    Batch { ops: Arc::new(vec![op]), ..Batch::new(account(0)) }
}

/// Takes a record out of the log.
fn delete(key: usize) -> Batch {
    let op = Op::Delete { table: LOG, key: format!("{key:06}").into() };
    Batch { ops: Arc::new(vec![op]), ..Batch::new(account(0)) }
}

#[test]
fn many_records_of_a_log_share_one_of_sled() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    for n in 0..1_000 {
        apply(&disk, &put(LOG, n, &"x".repeat(200)));
    }
    disk.settle_all().unwrap();
    let count = disk.records.read().ground.tree.scan_prefix(layout::partition_prefix(&account(0))).count();
    assert!((15..50).contains(&count), "{count}");
    // What is taken out in the midst leaves the others.
    for n in (0..1_000).filter(|n| n % 3 > 0) {
        apply(&disk, &delete(n));
    }
    disk.settle_all().unwrap();
    assert_eq!(disk.scan(&account(0), LOG, &Range::all()).unwrap().len(), 334);
    apply(&disk, &Batch::new(account(0)).delete_partition());
    disk.settle_all().unwrap();
    assert_eq!(disk.records.read().ground.tree.scan_prefix(layout::partition_prefix(&account(0))).count(), 0);
}

/// A piece ends where it will, and the next one begins before sled has what the first one made of the same block.
#[test]
fn a_log_that_goes_to_sled_in_pieces_is_whole_there() {
    for budget in (100..6_000).step_by(370) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&Config::new(folder.path())).unwrap();
        let both = |n| {
            apply(&disk, &put(LOG, n, &"x".repeat(300)));
            apply(&disk, &put(INDEX, n, "x"));
        };
        (0..2).for_each(both);
        disk.settle_all().unwrap();
        (2..150).for_each(both);
        disk.freeze(&mut disk.writer.lock()).unwrap();
        while !disk.records.read().frozen.is_empty() {
            disk.settle_some(budget).unwrap();
        }
        for table in [LOG, INDEX] {
            let found = disk.scan(&account(0), table, &Range::all()).unwrap();
            let keys: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
            let all: Vec<Key> = (0..150).map(|n| format!("{n:06}").into()).collect();
            assert_eq!(keys, all, "{table:?} by {budget} bytes");
        }
    }
}

/// What comes between the records of a block, or takes its first one out, moves others to blocks of other keys.
#[test]
fn records_that_move_to_another_block_are_always_in_one() {
    for (taken_out, put_between) in
        [(vec![], (1..400).step_by(2).collect::<Vec<_>>()), (vec![0, 2, 4], vec![])]
    {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&Config::new(folder.path())).unwrap();
        let mut all: std::collections::BTreeSet<usize> = (0..400).step_by(2).collect();
        all.iter().for_each(|n| drop(apply(&disk, &put(LOG, *n, &"x".repeat(300)))));
        disk.settle_all().unwrap();
        for n in taken_out {
            apply(&disk, &delete(n));
            all.remove(&n);
        }
        put_between.iter().for_each(|n| drop(apply(&disk, &put(LOG, *n, &"x".repeat(300)))));
        all.extend(put_between);
        let all: Vec<Key> = all.into_iter().map(|n| format!("{n:06}").into()).collect();
        disk.freeze(&mut disk.writer.lock()).unwrap();
        let mut pieces = 0;
        while !disk.records.read().frozen.is_empty() {
            disk.settle_some(1).unwrap();
            pieces += 1;
            let found = disk.scan(&account(0), LOG, &Range::all()).unwrap();
            let keys: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, all, "behind {pieces} pieces");
        }
        assert!(pieces > 2, "{pieces}");
    }
}

#[test]
fn changes_wait_while_a_copy_runs_and_go_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let in_sled =
        || disk.records.read().ground.tree.scan_prefix(layout::partition_prefix(&account(0))).count();
    let copy = disk.copy();
    for n in 0..500 {
        apply(&disk, &put(OTHER, n, &"x".repeat(200)));
    }
    assert_eq!(in_sled(), 0);
    drop(copy);
    (500..505).for_each(|n| drop(apply(&disk, &put(OTHER, n, "x"))));
    assert!(in_sled() > 300);
}

fn journals(path: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(path.join(journal::FOLDER)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_journal_that_was_cut_anywhere_gives_what_was_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let mut ends = Vec::new();
    let file = journals(folder.path()).pop().unwrap();
    for n in 0..5 {
        apply(&disk, &put(LOG, n, "value"));
        ends.push(fs::metadata(&file).unwrap().len() as usize);
    }
    drop(disk);
    let whole = fs::read(&file).unwrap();
    for length in (0..=whole.len()).step_by(3) {
        let cut = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), cut.path());
        fs::write(journals(cut.path()).pop().unwrap(), &whole[..length]).unwrap();
        let disk = open(cut.path());
        let there = disk.scan(&account(0), LOG, &Range::all()).unwrap().len();
        assert_eq!(there, ends.iter().filter(|end| **end <= length).count(), "{length} bytes");
        // And what comes then follows it.
        apply(&disk, &put(LOG, 9, "later"));
        drop(disk);
        assert_eq!(open(cut.path()).scan(&account(0), LOG, &Range::all()).unwrap().len(), there + 1);
    }
}

#[test]
fn a_flipped_bit_in_a_journal_is_told_or_is_the_end_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    for n in 0..6 {
        apply(&disk, &put(LOG, n, "value"));
        disk.sync().unwrap();
    }
    drop(disk);
    let file = journals(folder.path()).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let mut told = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, &bytes).unwrap();
        match Disk::open(&Config::new(folder.path())) {
            Err(error) => {
                told += 1;
                assert!(error.to_string().contains("journal"), "{error}");
            }
            Ok(disk) => {
                let found = disk.scan(&account(0), LOG, &Range::all()).unwrap();
                assert!(found.iter().all(|(_, record)| record.value == b"value"), "byte {at}");
                // The head says whose journal it is, and the last entry looks as if it had been cut.
                assert!(found.len() == 5 || at < 16, "byte {at}: {} records", found.len());
            }
        }
        journals(folder.path())
            .iter()
            .filter(|other| **other != file)
            .for_each(|other| fs::remove_file(other).unwrap());
    }
    assert!(told > whole.len() / 2);
}

#[test]
fn what_a_power_cut_left_of_writes_that_nobody_was_told_of_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let file = journals(folder.path()).pop().unwrap();
    let length = || fs::metadata(&file).unwrap().len() as usize;
    apply(&disk, &put(LOG, 0, "value"));
    disk.sync().unwrap();
    apply(&disk, &put(LOG, 1, "value"));
    let begun = length();
    apply(&disk, &put(LOG, 2, "value"));
    let ended = length();
    apply(&disk, &put(LOG, 3, "value"));
    drop(disk);
    // Its pages came to the disk in another order.
    let mut bytes = fs::read(&file).unwrap();
    bytes[begun..ended].fill(0);
    fs::write(&file, &bytes).unwrap();
    assert_eq!(open(folder.path()).scan(&account(0), LOG, &Range::all()).unwrap().len(), 2);
    assert_eq!(open(folder.path()).scan(&account(0), LOG, &Range::all()).unwrap().len(), 2);
}

#[test]
fn a_journal_whose_file_stayed_behind_brings_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let first = journals(folder.path()).pop().unwrap();
    apply(&disk, &put(LOG, 0, "old"));
    let bytes = fs::read(&first).unwrap();
    disk.settle_all().unwrap();
    apply(&disk, &put(LOG, 0, "new"));
    disk.settle_all().unwrap();
    drop(disk);
    fs::write(&first, &bytes).unwrap();
    for _ in 0..2 {
        let disk = open(folder.path());
        assert_eq!(disk.scan(&account(0), LOG, &Range::all()).unwrap()[0].1.value, b"new");
        assert!(!first.exists());
        // Nor is a later one taken for it, though all files are gone in between.
        apply(&disk, &put(LOG, 1, "later"));
        drop(disk);
        assert_eq!(open(folder.path()).scan(&account(0), LOG, &Range::all()).unwrap().len(), 2);
    }
}

#[test]
fn an_earlier_version_does_not_open_what_it_cannot_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    // As it was left there.
    let key = layout::mark_key(b"keeper");
    disk.records.read().ground.tree.insert(&key, KEEPER.as_bytes()).unwrap();
    disk.claim(KEEPER).unwrap();
    let there = disk.records.read().ground.tree.get(&key).unwrap().unwrap();
    assert_ne!(there, KEEPER.as_bytes());
    disk.claim(KEEPER).unwrap();
    let refused = disk.claim("a cluster").unwrap_err().to_string();
    assert!(refused.ends_with("belongs to a server that stands alone, not to a cluster"), "{refused}");
    // But it takes a copy, and goes on being what it is.
    let mut copy = Vec::new();
    disk.copy().write_to(&mut copy).unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(words(&copy).contains(KEEPER) && !words(&copy).contains("later"), "{}", words(&copy));
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(elsewhere.path());
    other.install(&mut &copy[..], (b"place", b"1")).unwrap();
    assert_eq!(other.records.read().ground.tree.get(&key).unwrap().unwrap(), there);
    other.claim(KEEPER).unwrap();
}

#[test]
fn a_journal_of_an_earlier_version_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    let generation = disk.records.read().ground.tree.name()[b"records-".len()..].to_vec();
    let generation: u64 = std::str::from_utf8(&generation).unwrap().parse().unwrap();
    let file = journals(folder.path()).pop().unwrap();
    drop(disk);
    let (prefix, rest) = (layout::partition_prefix(&account(0)), layout::record_rest(LOG, b"000001"));
    let sealed = layout::seal(&prefix, &rest, 3, b"value");
    let short = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat();
    let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
    // One partition that is not deleted, with one change.
    let payload = [&short(&prefix)[..], &[0, 1, 0, 0, 0], &short(&rest), &length(&sealed), &sealed].concat();
    let summed = [&[0; 16][..], &payload].concat();
    let sum = crc32fast::hash(&summed).to_le_bytes();
    let head = [&b"rkjrnal\x01"[..], &generation.to_be_bytes()].concat();
    let entry = [&b"\xf1rke"[..], &length(&payload), &sum, &summed].concat();
    fs::write(&file, [head, entry].concat()).unwrap();
    let found = open(folder.path()).get(&account(0), LOG, b"000001").unwrap().unwrap();
    assert_eq!((found.version, &found.value[..]), (3, &b"value"[..]));
}

#[test]
fn a_damaged_segment_takes_no_other_records_along_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(folder.path());
    for n in 0..400 {
        apply(&disk, &put(LOG, n, &"x".repeat(300)));
    }
    disk.settle_all().unwrap();
    apply(&disk, &put(LOG, 400, "last"));
    disk.settle_all().unwrap();
    drop(disk);
    let first = folder.path().join(segments::FOLDER).join("000000000001");
    let mut bytes = fs::read(&first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 40].fill(0xff);
    fs::write(&first, &bytes).unwrap();
    let disk = open(folder.path());
    let is_damaged = |n: usize| disk.get(&account(0), LOG, format!("{n:06}").as_bytes()).is_err();
    let damaged: Vec<usize> = (0..401).filter(|n| is_damaged(*n)).collect();
    assert!((1..100).contains(&damaged.len()), "{damaged:?}");
    assert!(disk.scan(&account(0), LOG, &Range::all()).is_err());
    // A copy has all others, and says the same of these.
    let mut copy = Vec::new();
    disk.copy().write_to(&mut copy).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(elsewhere.path());
    (0..400).for_each(|n| drop(apply(&other, &put(LOG, n, &"y".repeat(300)))));
    other.settle_all().unwrap();
    other.install(&mut &copy[..], (b"place", b"1")).unwrap();
    assert!(other.get(&account(0), LOG, format!("{:06}", damaged[0]).as_bytes()).is_err());
    for n in (0..400).filter(|n| !damaged.contains(n)) {
        let found = other.get(&account(0), LOG, format!("{n:06}").as_bytes()).unwrap().unwrap();
        assert_eq!(found.value, "x".repeat(300).as_bytes());
    }
    // Much of it dies; what is looked through ends where it is damaged, and it is not removed.
    for n in (0..400).filter(|n| !damaged.contains(n)) {
        apply(&disk, &delete(n));
    }
    disk.settle_all().unwrap();
    (0..200).for_each(|n| drop(apply(&disk, &put(OTHER, n, "x"))));
    assert!(first.exists());
    assert_eq!(disk.get(&account(0), LOG, b"000400").unwrap().unwrap().value, b"last");
    // A file that is gone is told in the same way.
    drop(disk);
    fs::remove_file(&first).unwrap();
    let disk = open(folder.path());
    assert!(disk.get(&account(0), LOG, format!("{:06}", damaged[0]).as_bytes()).is_err());
    assert_eq!(disk.failure(), None);
}

//! One suite of promises that every engine keeps; a failed one panics with what it promised.
//!
//! Engines run [`all`] in their tests with one or more handles to one store that is empty.

use std::{
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;

use crate::{
    engine::{
        Batch, Committed, Engine, Expect, KEY_SIZE_MAX, Key, Op, Partition, Range, Record, StoreError, Table,
        VALUE_SIZE_MAX, Version,
    },
    engines::memory::Memory,
};

const T: Table = Table("conformance");
const U: Table = Table("conformance.other");

/// Runs every check. `handles` lead to the same store: what one wrote the others must see.
pub async fn all(handles: &[Arc<dyn Engine>]) {
    let suite = Suite { handles };
    suite.a_record_comes_back_with_its_version().await;
    suite.odd_keys_and_values_are_kept().await;
    suite.a_scan_has_order_bounds_and_limit().await;
    suite.partitions_and_tables_do_not_mix().await;
    suite.a_batch_happens_wholly_or_not_at_all().await;
    suite.operations_of_a_batch_happen_in_their_order().await;
    suite.batches_of_one_commit_follow_each_other().await;
    suite.preconditions_hold_or_stop_the_batch().await;
    suite.a_deleted_partition_is_empty_and_others_stay().await;
    suite.what_is_too_large_is_refused().await;
    suite.writers_that_compare_lose_no_update().await;
    suite.a_scan_sees_all_of_a_batch_or_nothing().await;
    suite.a_passed_deadline_ends_the_call().await;
    suite.random_changes_end_as_in_the_model().await;
}

struct Suite<'a> {
    handles: &'a [Arc<dyn Engine>],
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn account(name: &str) -> Partition {
    Partition::Account(name.into())
}

fn put(table: Table, key: impl Into<Key>, value: impl Into<Vec<u8>>) -> Op {
    Op::Put { table, key: key.into(), value: value.into() }
}

fn delete(table: Table, key: impl Into<Key>) -> Op {
    Op::Delete { table, key: key.into() }
}

fn batch(partition: &Partition, ops: Vec<Op>) -> Batch {
    Batch { partition: partition.clone(), expect: Vec::new(), ops: Arc::new(ops) }
}

fn record(version: Version, value: &str) -> Record {
    Record { version, value: value.as_bytes().to_vec() }
}

impl Suite<'_> {
    fn handle(&self, number: usize) -> &dyn Engine {
        &*self.handles[number % self.handles.len()]
    }

    async fn get(&self, partition: &Partition, table: Table, key: &[u8]) -> Option<Record> {
        let first = self.handle(0).get(partition, table, key, soon()).await.expect("a read succeeds");
        for number in 1..self.handles.len() {
            let other = self.handle(number).get(partition, table, key, soon()).await;
            assert_eq!(other.as_ref(), Ok(&first), "handle {number} sees what handle 0 sees");
        }
        first
    }

    async fn scan(&self, partition: &Partition, table: Table, range: Range) -> Vec<(Key, Record)> {
        let last = self.handle(self.handles.len() - 1);
        last.scan(partition, table, range, soon()).await.expect("a scan succeeds")
    }

    async fn keys(&self, partition: &Partition, range: Range) -> Vec<String> {
        let found = self.scan(partition, T, range).await;
        found.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect()
    }

    async fn commit(&self, batches: Vec<Batch>) -> Vec<Committed> {
        self.handle(0).commit(batches, soon()).await.expect("a commit succeeds")
    }

    async fn write(&self, partition: &Partition, ops: Vec<Op>) {
        assert_eq!(self.commit(vec![batch(partition, ops)]).await, [Committed::Done]);
    }

    async fn a_record_comes_back_with_its_version(&self) {
        let p = account("round@trip");
        assert_eq!(self.get(&p, T, b"k").await, None);
        for version in 1..=3 {
            let value = format!("value {version}");
            self.write(&p, vec![put(T, "k", value.as_str())]).await;
            assert_eq!(self.get(&p, T, b"k").await, Some(record(version, &value)));
        }
        self.write(&p, vec![delete(T, "k")]).await;
        assert_eq!(self.get(&p, T, b"k").await, None);
        self.write(&p, vec![delete(T, "k")]).await;
        self.write(&p, vec![put(T, "k", "anew")]).await;
        assert_eq!(self.get(&p, T, b"k").await, Some(record(1, "anew")));
    }

    async fn odd_keys_and_values_are_kept(&self) {
        let p = Partition::Host("odd".into());
        let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0\xff", b"\xff", b"\xff\0", b"\xff\xff"];
        let ops = keys.iter().map(|key| put(T, *key, [key, &b"!"[..]].concat())).collect();
        self.write(&p, ops).await;
        for key in keys {
            let value = [key, b"!"].concat();
            assert_eq!(self.get(&p, T, key).await, Some(Record { version: 1, value }));
        }
        let found = self.scan(&p, T, Range::all()).await;
        assert_eq!(found.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), keys);
        let found = self.scan(&p, T, Range::prefix(*b"\xff")).await;
        assert_eq!(found.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), &keys[4..]);
        self.write(&p, vec![put(T, "none", ""), put(T, "much", vec![7; VALUE_SIZE_MAX])]).await;
        assert_eq!(self.get(&p, T, b"none").await, Some(record(1, "")));
        let much = self.get(&p, T, b"much").await.expect("a value of the largest size is there");
        assert!(much.value.len() == VALUE_SIZE_MAX && much.value.iter().all(|b| *b == 7));
        self.write(&p, vec![delete(T, "much"), put(T, vec![b'k'; KEY_SIZE_MAX], "long")]).await;
        assert_eq!(self.get(&p, T, &[b'k'; KEY_SIZE_MAX]).await, Some(record(1, "long")));
    }

    async fn a_scan_has_order_bounds_and_limit(&self) {
        let p = account("order@host");
        let names = ["b", "a", "d", "c", "ca", "e"];
        self.write(&p, names.iter().map(|name| put(T, *name, *name)).collect()).await;
        assert_eq!(self.keys(&p, Range::all()).await, ["a", "b", "c", "ca", "d", "e"]);
        assert_eq!(self.keys(&p, Range::all().reversed()).await, ["e", "d", "ca", "c", "b", "a"]);
        assert_eq!(self.keys(&p, Range::all().limit(2)).await, ["a", "b"]);
        assert_eq!(self.keys(&p, Range::all().reversed().limit(2)).await, ["e", "d"]);
        assert_eq!(self.keys(&p, Range::all().limit(0)).await, [""; 0]);
        assert_eq!(self.keys(&p, Range::prefix("c")).await, ["c", "ca"]);
        assert_eq!(self.keys(&p, Range::prefix("c").reversed()).await, ["ca", "c"]);
        assert_eq!(self.keys(&p, Range::after("c")).await, ["ca", "d", "e"]);
        assert_eq!(self.keys(&p, Range::before("c").reversed()).await, ["b", "a"]);
        let closed =
            Range { from: Bound::Included("b".into()), to: Bound::Included("d".into()), ..Range::all() };
        assert_eq!(self.keys(&p, closed).await, ["b", "c", "ca", "d"]);
        let nothing =
            Range { from: Bound::Excluded("b".into()), to: Bound::Excluded("b".into()), ..Range::all() };
        assert_eq!(self.keys(&p, nothing).await, [""; 0]);
        let backwards =
            Range { from: Bound::Included("d".into()), to: Bound::Included("b".into()), ..Range::all() };
        assert_eq!(self.keys(&p, backwards).await, [""; 0]);
        assert_eq!(self.keys(&account("nobody@host"), Range::all()).await, [""; 0]);
    }

    async fn partitions_and_tables_do_not_mix(&self) {
        let same = "mix@host";
        let places = [
            account(same),
            Partition::Room(same.into()),
            Partition::Host(same.into()),
            account("mix@host2"),
            account("mix@hos"),
        ];
        for (number, p) in places.iter().enumerate() {
            for table in [T, U] {
                self.write(p, vec![put(table, "k", format!("{number} {}", table.0))]).await;
            }
        }
        for (number, p) in places.iter().enumerate() {
            for table in [T, U] {
                let expected = record(1, &format!("{number} {}", table.0));
                assert_eq!(self.get(p, table, b"k").await, Some(expected.clone()));
                assert_eq!(self.scan(p, table, Range::all()).await, [(b"k".to_vec(), expected)]);
            }
        }
    }

    async fn a_batch_happens_wholly_or_not_at_all(&self) {
        let p = account("atomic@host");
        self.write(&p, vec![put(T, "a", "1")]).await;
        let mut torn = batch(&p, vec![put(T, "a", "2"), put(U, "b", "2"), delete(T, "a")]);
        torn.expect = vec![(U, b"b".to_vec(), Expect::Version(1))];
        let conflict = Committed::Conflict { table: U, key: b"b".to_vec() };
        assert_eq!(self.commit(vec![torn]).await, [conflict]);
        assert_eq!(self.get(&p, T, b"a").await, Some(record(1, "1")));
        assert_eq!(self.get(&p, U, b"b").await, None);
    }

    async fn operations_of_a_batch_happen_in_their_order(&self) {
        let p = account("steps@host");
        self.write(&p, vec![put(T, "a", "1"), put(T, "a", "2"), put(T, "b", "1"), delete(T, "b")]).await;
        assert_eq!(self.get(&p, T, b"a").await, Some(record(2, "2")));
        assert_eq!(self.get(&p, T, b"b").await, None);
        self.write(&p, vec![put(T, "c", "1"), Op::DeletePartition, put(T, "a", "3")]).await;
        assert_eq!(self.scan(&p, T, Range::all()).await, [(b"a".to_vec(), record(1, "3"))]);
    }

    async fn batches_of_one_commit_follow_each_other(&self) {
        let (p, q) = (account("chain@host"), Partition::Room("chain@host".into()));
        let mut second = batch(&p, vec![put(T, "a", "2")]);
        second.expect = vec![(T, b"a".to_vec(), Expect::Version(1))];
        let third = second.clone();
        let batches = vec![
            batch(&p, vec![put(T, "a", "1")]),
            second,
            third,
            batch(&q, vec![put(T, "a", "other")]),
            batch(&p, vec![]),
        ];
        let conflict = Committed::Conflict { table: T, key: b"a".to_vec() };
        let expected = [Committed::Done, Committed::Done, conflict, Committed::Done, Committed::Done];
        assert_eq!(self.commit(batches).await, expected);
        assert_eq!(self.get(&p, T, b"a").await, Some(record(2, "2")));
        assert_eq!(self.get(&q, T, b"a").await, Some(record(1, "other")));
        assert_eq!(self.commit(vec![]).await, []);
    }

    async fn preconditions_hold_or_stop_the_batch(&self) {
        let p = account("expect@host");
        self.write(&p, vec![put(T, "there", "1")]).await;
        for (key, expect, holds) in [
            ("there", Expect::Any, true),
            ("there", Expect::Absent, false),
            ("there", Expect::Present, true),
            ("there", Expect::Version(1), true),
            ("there", Expect::Version(2), false),
            ("gone", Expect::Any, true),
            ("gone", Expect::Absent, true),
            ("gone", Expect::Present, false),
            ("gone", Expect::Version(1), false),
            ("gone", Expect::Version(0), false),
        ] {
            let mut probe = batch(&p, vec![put(U, "probe", key)]);
            probe.expect = vec![(T, key.into(), expect)];
            let expected = match holds {
                true => Committed::Done,
                false => Committed::Conflict { table: T, key: key.into() },
            };
            assert_eq!(self.commit(vec![probe]).await, [expected], "{key} {expect:?}");
        }
    }

    async fn a_deleted_partition_is_empty_and_others_stay(&self) {
        let (p, near) = (account("end@host"), account("end@host.example"));
        let many = (0..500).map(|n| put(T, format!("{n:04}"), "x")).collect();
        self.write(&p, many).await;
        self.write(&p, vec![put(U, "k", "x")]).await;
        self.write(&near, vec![put(T, "k", "stays")]).await;
        self.write(&p, vec![Op::DeletePartition]).await;
        for table in [T, U] {
            assert_eq!(self.scan(&p, table, Range::all()).await, []);
        }
        assert_eq!(self.get(&near, T, b"k").await, Some(record(1, "stays")));
        self.write(&p, vec![Op::DeletePartition]).await;
        self.write(&p, vec![put(T, "0001", "again")]).await;
        assert_eq!(self.scan(&p, T, Range::all()).await, [(b"0001".to_vec(), record(1, "again"))]);
    }

    async fn what_is_too_large_is_refused(&self) {
        let p = account("large@host");
        for ops in [
            vec![put(T, "small", "1"), put(T, "k", vec![0; VALUE_SIZE_MAX + 1])],
            vec![put(T, "small", "1"), put(T, vec![0; KEY_SIZE_MAX + 1], "v")],
            vec![put(T, "small", "1"), delete(T, vec![0; KEY_SIZE_MAX + 1])],
            vec![put(T, "small", "1"), put(Table("No Name"), "k", "v")],
        ] {
            let refused = self.handle(0).commit(vec![batch(&p, ops)], soon()).await;
            assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
        }
        assert_eq!(self.get(&p, T, b"small").await, None);
        let long = self.handle(0).get(&p, T, &[0; KEY_SIZE_MAX + 1], soon()).await;
        assert!(matches!(long, Err(StoreError::TooLarge { .. })));
        let name = account(&"n".repeat(3000));
        let long = self.handle(0).get(&name, T, b"k", soon()).await;
        assert!(matches!(long, Err(StoreError::TooLarge { .. })));
    }

    async fn writers_that_compare_lose_no_update(&self) {
        const WRITERS: usize = 8;
        const ROUNDS: u64 = 20;
        let p = account("race@host");
        let writer = |number: usize| {
            let (engine, p) = (self.handle(number), &p);
            async move {
                let mut done = 0;
                while done < ROUNDS {
                    let old = engine.get(p, T, b"n", soon()).await.expect("a read succeeds");
                    let (expect, count) = match &old {
                        None => (Expect::Absent, 0),
                        Some(r) => (Expect::Version(r.version), decimal(&r.value)),
                    };
                    let mut next = batch(p, vec![put(T, "n", (count + 1).to_string())]);
                    next.expect = vec![(T, b"n".to_vec(), expect)];
                    let outcome = engine.commit(vec![next], soon()).await.expect("a commit succeeds");
                    done += u64::from(outcome == [Committed::Done]);
                }
            }
        };
        join_all((0..WRITERS).map(writer)).await;
        let total = WRITERS as u64 * ROUNDS;
        assert_eq!(self.get(&p, T, b"n").await, Some(record(total, &total.to_string())));
    }

    async fn a_scan_sees_all_of_a_batch_or_nothing(&self) {
        let p = account("pairs@host");
        let write = async {
            for n in 0..100 {
                let ops = (0..10).map(|key| put(T, key.to_string(), n.to_string())).collect();
                self.write(&p, ops).await;
            }
        };
        let read = async {
            for _ in 0..100 {
                let found = self.scan(&p, T, Range::all()).await;
                let values: Vec<u64> = found.iter().map(|(_, r)| decimal(&r.value)).collect();
                assert!(values.is_empty() || values.len() == 10, "{values:?}");
                assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{values:?}");
            }
        };
        futures::join!(write, read);
    }

    async fn a_passed_deadline_ends_the_call(&self) {
        let p = account("late@host");
        let past = Instant::now();
        let calls = async {
            let late = self.handle(0).commit(vec![batch(&p, vec![put(T, "k", "v")])], past).await;
            assert!(matches!(late, Ok(_) | Err(StoreError::Deadline)), "{late:?}");
            let late = self.handle(0).get(&p, T, b"k", past).await;
            assert!(matches!(late, Ok(_) | Err(StoreError::Deadline)), "{late:?}");
        };
        tokio::time::timeout(Duration::from_secs(5), calls).await.expect("a late call ends at once");
    }

    async fn random_changes_end_as_in_the_model(&self) {
        let model = Memory::new();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let partitions = [account("model@a"), account("model@b"), Partition::Room("model@a".into())];
        for round in 0..60 {
            let batches: Vec<Batch> = (0..1 + random.below(4))
                .map(|_| random.batch(&partitions[random.clone().below(3)], round))
                .collect();
            let expected = model.commit(batches.clone(), soon()).await;
            let got = self.handle(round).commit(batches, soon()).await;
            assert_eq!(got, expected, "round {round}");
        }
        for p in &partitions {
            for table in [T, U] {
                let expected = model.scan(p, table, Range::all(), soon()).await.expect("the model answers");
                assert_eq!(self.scan(p, table, Range::all()).await, expected);
                let range = Range::prefix(vec![3]).reversed().limit(5);
                let expected = model.scan(p, table, range.clone(), soon()).await.expect("the model answers");
                assert_eq!(self.scan(p, table, range).await, expected);
            }
        }
    }
}

fn decimal(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).expect("a number was written")
}

/// Numbers that are the same in each run (xorshift).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn key(&mut self) -> Key {
        (0..1 + self.below(2)).map(|_| self.below(6) as u8).collect()
    }

    fn batch(&mut self, partition: &Partition, round: usize) -> Batch {
        let mut made = batch(partition, Vec::new());
        for _ in 0..self.below(6) {
            let table = if self.below(2) == 0 { T } else { U };
            made.push(match self.below(40) {
                0 => Op::DeletePartition,
                n if n < 12 => delete(table, self.key()),
                n => put(table, self.key(), format!("{round} {n}")),
            });
        }
        if self.below(3) == 0 {
            let expect = [Expect::Absent, Expect::Version(1), Expect::Version(2)][self.below(3)];
            made.expect.push((T, self.key(), expect));
        }
        made
    }
}

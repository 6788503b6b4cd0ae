//! Changes that are not in sled yet, in memory: they hide what is below them.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    ops::Bound,
    path::PathBuf,
};

use smallvec::SmallVec;

use super::{
    layout,
    run::{ITEM_HEADER, Run},
};
use crate::engine::{Key, LOGS, Op, Table, Version};

/// What follows the partition in a key; in one piece with its neighbours, so that to compare it costs no look elsewhere.
pub(super) type Rest = SmallVec<[u8; 40]>;

/// What a change costs beside its key and its bytes, about.
const CHANGE_COST: usize = 80;
/// What a partition costs beside its name and changes, about.
const PART_COST: usize = 160;

/// Changes of one partition, or of all marks.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Nothing of what is below this layer is left of the partition.
    pub(super) wiped: bool,
    /// The sealed bytes of records by what follows the partition in their keys; `None`: it is deleted.
    pub(super) changes: BTreeMap<Rest, Option<Vec<u8>>>,
    /// Records of log tables, one run for a table, in the order of the tables; `changes` hide them.
    pub(super) runs: Vec<Run>,
}

impl Part {
    /// What is known here of a key; the outer `None`: what is below tells.
    pub(super) fn get(&self, rest: &[u8]) -> Option<Option<&[u8]>> {
        // What is new is nearly always behind all that is there.
        let is_behind = self.changes.last_key_value().is_none_or(|(last, _)| &last[..] < rest);
        if !is_behind && let Some(change) = self.changes.get(rest) {
            return Some(change.as_deref());
        }
        let run = self.runs.iter().find(|run| rest.starts_with(run.table()));
        match run.and_then(|run| run.get(rest)) {
            Some(sealed) => Some(Some(sealed)),
            None => self.wiped.then_some(None),
        }
    }

    /// Notes a record, which came later than what is there.
    pub(super) fn put(&mut self, prefix: &[u8], rest: Rest, is_in_log: bool, version: Version, value: &[u8]) {
        if is_in_log
            && !self.changes.contains_key(&rest)
            && self
                .run(&rest[..layout::table_end(&rest).unwrap_or(0)])
                .put(&rest, |out| layout::seal_into(out, prefix, &rest, version, value))
        {
            return;
        }
        let sealed = layout::seal(prefix, &rest, version, value);
        self.changes.insert(rest, Some(sealed));
    }

    /// Makes room for what is put into log tables.
    pub(super) fn expect_ops(&mut self, ops: &[Op]) {
        let mut expected = LOGS.map(|_| (0, 0));
        for op in ops {
            if let Op::Put { table, key, value } = op
                && let Some(at) = LOGS.iter().position(|name| table.0 == *name)
            {
                let (records, bytes) = &mut expected[at];
                *records += 1;
                *bytes += ITEM_HEADER + key.len() + layout::HEADER + value.len();
            }
        }
        for (name, (records, bytes)) in LOGS.into_iter().zip(expected) {
            if records > 0 {
                self.run(&layout::table_start(Table(name))).reserve(records, bytes);
            }
        }
    }

    fn run(&mut self, table: &[u8]) -> &mut Run {
        let at = self.runs.partition_point(|run| run.table() < table);
        if self.runs.get(at).is_none_or(|run| run.table() != table) {
            self.runs.insert(at, Run::new(table));
        }
        &mut self.runs[at]
    }

    /// Adds changes that came later.
    pub(super) fn absorb(&mut self, later: Part) {
        if later.wiped || (self.changes.is_empty() && self.runs.is_empty()) {
            let wiped = self.wiped || later.wiped;
            *self = Part { wiped, ..later };
            return;
        }
        for run in &later.runs {
            self.absorb_run(run);
        }
        self.changes.extend(later.changes);
    }

    fn absorb_run(&mut self, later: &Run) {
        if later.len() == 0 {
            return;
        }
        let (first, last) = (later.record(0).0, later.record(later.len() - 1).0);
        let is_free = self.changes.range(first..=last).next().is_none();
        if is_free && self.run(later.table()).absorb(later) {
            return;
        }
        for (rest, sealed) in (0..later.len()).map(|number| later.record(number)) {
            let is_free = !self.changes.contains_key(&rest);
            if !is_free || !self.run(later.table()).put(&rest, |out| out.extend_from_slice(sealed)) {
                self.changes.insert(rest, Some(sealed.to_vec()));
            }
        }
    }

    /// All changes behind `from`, that one included, in order.
    pub(super) fn changes_from<'a>(
        &'a self,
        from: &'a [u8],
    ) -> impl Iterator<Item = (Rest, Option<&'a [u8]>)> {
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let changes = self.changes.range::<[u8], _>(bounds);
        let mut changes = changes.map(|(rest, change)| (rest.clone(), change.as_deref())).peekable();
        let runs = self.runs.iter().flat_map(move |run| run.range(bounds).map(|number| run.record(number)));
        let mut runs = runs.map(|(rest, sealed)| (rest, Some(sealed))).peekable();
        std::iter::from_fn(move || match (changes.peek(), runs.peek()) {
            (Some((change, _)), Some((record, _))) => match change.cmp(record) {
                Ordering::Less => changes.next(),
                Ordering::Equal => {
                    runs.next();
                    changes.next()
                }
                Ordering::Greater => runs.next(),
            },
            (Some(_), None) => changes.next(),
            (None, _) => runs.next(),
        })
    }

    fn bytes(&self) -> usize {
        let changes = self.changes.iter().map(|(rest, change)| cost(rest, change.as_deref()));
        changes.sum::<usize>() + self.runs.iter().map(Run::cost).sum::<usize>()
    }
}

fn cost(rest: &[u8], change: Option<&[u8]>) -> usize {
    CHANGE_COST + rest.len() + change.map_or(0, <[u8]>::len)
}

/// Changes of one time, newer than all that is below it.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    /// By what the keys of a partition start with.
    pub(super) parts: HashMap<Vec<u8>, Part>,
    /// About what it takes in memory; what was overwritten counts until the layer is gone.
    pub(super) bytes: usize,
    /// The journal that it would be read from again, with its number; `None`: it is still written.
    pub(super) journal: Option<(u64, PathBuf)>,
}

impl Layer {
    pub(super) fn get(&self, prefix: &[u8], rest: &[u8]) -> Option<Option<&[u8]>> {
        self.parts.get(prefix)?.get(rest)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds changes of one partition that came later.
    pub(super) fn add(&mut self, prefix: &[u8], part: Part) {
        self.bytes += part.bytes();
        match self.parts.get_mut(prefix) {
            Some(there) => there.absorb(part),
            None => {
                self.bytes += PART_COST + prefix.len();
                self.parts.insert(prefix.to_vec(), part);
            }
        }
    }

    /// Adds all changes of another one, which came later.
    pub(super) fn absorb(&mut self, later: Layer) {
        for (prefix, part) in later.parts {
            self.add(&prefix, part);
        }
    }

    /// The partitions in the order of their keys.
    pub(super) fn order(&self) -> Vec<Vec<u8>> {
        let mut order: Vec<Vec<u8>> = self.parts.keys().cloned().collect();
        order.sort_unstable();
        order
    }
}

/// Bounds of keys, as maps take them.
pub(super) type Bounds = (Bound<Key>, Bound<Key>);

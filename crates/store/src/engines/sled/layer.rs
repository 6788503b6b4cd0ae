//! Changes that are not in sled yet, in memory: they hide what is below them.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    path::PathBuf,
};

use smallvec::SmallVec;

use crate::engine::Key;

/// What follows the partition in a key; in one piece with its neighbours, so that to compare it costs no look elsewhere.
pub(super) type Rest = SmallVec<[u8; 40]>;

/// What a change costs beside its key and its bytes, about.
const CHANGE_COST: usize = 80;
/// What a partition costs beside its name and changes, about.
const PART_COST: usize = 160;

/// Changes of one partition, or of all marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Nothing of what is below this layer is left of the partition.
    pub(super) wiped: bool,
    /// The sealed bytes of records by what follows the partition in their keys; `None`: it is deleted.
    pub(super) changes: BTreeMap<Rest, Option<Vec<u8>>>,
}

impl Part {
    /// What is known here of a key; the outer `None`: what is below tells.
    pub(super) fn get(&self, rest: &[u8]) -> Option<Option<&[u8]>> {
        // What is new is nearly always behind all that is there.
        let is_behind = self.changes.last_key_value().is_none_or(|(last, _)| &last[..] < rest);
        if is_behind {
            return self.wiped.then_some(None);
        }
        match self.changes.get(rest) {
            Some(change) => Some(change.as_deref()),
            None => self.wiped.then_some(None),
        }
    }

    /// Adds changes that came later.
    pub(super) fn absorb(&mut self, later: Part) {
        if later.wiped || self.changes.is_empty() {
            let wiped = self.wiped || later.wiped;
            *self = Part { wiped, ..later };
        } else {
            self.changes.extend(later.changes);
        }
    }

    fn bytes(&self) -> usize {
        self.changes.iter().map(|(rest, change)| cost(rest, change.as_deref())).sum()
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

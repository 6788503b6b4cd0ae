//! What a store holds: what is in sled, and above it the changes that are not there yet.

use std::{collections::VecDeque, iter::Peekable, sync::Arc};

use super::{
    blocks::{self, Ground, Walk},
    disk::Fault,
    layer::{Bounds, Layer, Rest},
};
use crate::engine::Key;

/// A record that was found: what follows the partition in its key, and its sealed bytes.
pub(super) type Found = (Key, Vec<u8>);

/// Sled and the layers above it; what is read under one lock is of one moment.
pub(super) struct Records {
    pub(super) ground: Ground,
    /// Takes the changes.
    pub(super) active: Layer,
    /// What takes no more changes and is to go to sled, the newest first.
    pub(super) frozen: VecDeque<Arc<Layer>>,
}

impl Records {
    pub(super) fn new(ground: Ground) -> Records {
        Records { ground, active: Layer::default(), frozen: VecDeque::new() }
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.active).chain(self.frozen.iter().map(Arc::as_ref))
    }

    /// What the layers know of a key; the outer `None`: sled tells.
    pub(super) fn recent(&self, prefix: &[u8], rest: &[u8]) -> Option<Option<&[u8]>> {
        self.layers().find_map(|layer| layer.get(prefix, rest))
    }

    /// The sealed bytes of a record.
    pub(super) fn get(&self, prefix: &[u8], rest: &[u8], in_log: bool) -> Result<Option<Vec<u8>>, Fault> {
        if let Some(found) = self.recent(prefix, rest) {
            return Ok(found.map(<[u8]>::to_vec));
        }
        if in_log {
            return Ok(blocks::find(&self.ground, prefix, rest)?.0);
        }
        Ok(self.ground.tree.get([prefix, rest].concat())?.map(|bytes| bytes.to_vec()))
    }

    /// The records of a partition between bounds; `in_log`: these are inside one log table.
    pub(super) fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        bounds: &'a Bounds,
        reverse: bool,
        in_log: bool,
    ) -> Result<Merge<'a>, Fault> {
        merge(&self.ground, self.layers(), prefix, bounds, reverse, in_log)
    }
}

/// As [`Records::range`], of sled and the layers above it, the newest first.
pub(super) fn merge<'a>(
    ground: &'a Ground,
    layers: impl Iterator<Item = &'a Layer>,
    prefix: &'a [u8],
    bounds: &'a Bounds,
    reverse: bool,
    in_log: bool,
) -> Result<Merge<'a>, Fault> {
    let mut sources: Vec<Peekable<Source<'a>>> = Vec::new();
    let mut wiped = false;
    for part in layers.filter_map(|layer| layer.parts.get(prefix)) {
        let bounds = (bounds.0.as_ref().map(Key::as_slice), bounds.1.as_ref().map(Key::as_slice));
        let changes = part.changes.range::<[u8], _>(bounds);
        let change = |(rest, change): (&Rest, &Option<Vec<u8>>)| Ok((rest.to_vec(), change.clone()));
        let source: Source<'a> =
            if reverse { Box::new(changes.rev().map(change)) } else { Box::new(changes.map(change)) };
        sources.push(source.peekable());
        let record = |(rest, sealed): (Rest, &[u8])| Ok((rest.into_vec(), Some(sealed.to_vec())));
        let runs = part.runs.iter().filter(|run| run.len() > 0);
        let numbers = runs.flat_map(move |run| run.range(bounds).map(move |number| run.record(number)));
        let source: Source<'a> =
            if reverse { Box::new(numbers.rev().map(record)) } else { Box::new(numbers.map(record)) };
        sources.push(source.peekable());
        wiped = part.wiped;
        if wiped {
            break;
        }
    }
    if !wiped {
        let walk = Walk::new(ground, prefix, bounds, reverse, in_log)?;
        let source: Source<'a> = Box::new(walk.map(|found| found.map(|(rest, sealed)| (rest, Some(sealed)))));
        sources.push(source.peekable());
    }
    Ok(Merge { sources, reverse })
}

/// A record, or that there is none any more.
type Step = Result<(Key, Option<Vec<u8>>), Fault>;
type Source<'a> = Box<dyn Iterator<Item = Step> + 'a>;

/// Records of several layers in their order, each as the newest layer has it.
pub(super) struct Merge<'a> {
    /// The newest first.
    sources: Vec<Peekable<Source<'a>>>,
    reverse: bool,
}

impl Merge<'_> {
    fn step(&mut self) -> Option<Step> {
        if let [only] = &mut self.sources[..] {
            return only.next();
        }
        let mut next: Option<(usize, Key)> = None;
        for (number, source) in self.sources.iter_mut().enumerate() {
            match source.peek() {
                None => {}
                Some(Err(_)) => return source.next(),
                Some(Ok((rest, _))) => {
                    let is_next = next.as_ref().is_none_or(|(_, first)| match self.reverse {
                        true => rest > first,
                        false => rest < first,
                    });
                    if is_next {
                        next = Some((number, rest.clone()));
                    }
                }
            }
        }
        let (number, rest) = next?;
        for older in &mut self.sources[number + 1..] {
            drop(older.next_if(|found| matches!(found, Ok((same, _)) if *same == rest)));
        }
        self.sources[number].next()
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Found, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step()? {
                Ok((rest, Some(sealed))) => return Some(Ok((rest, sealed))),
                Ok((_, None)) => {}
                Err(fault) => return Some(Err(fault)),
            }
        }
    }
}

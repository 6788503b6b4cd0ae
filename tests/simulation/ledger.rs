//! What the group `data` agrees on in a simulation: a list of values on a simulated disk, which is safe when it was
//! synced, as the store's own machine promises.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use cluster::{Committed, Machine, SnapshotWriter};
use parking_lot::Mutex;

use crate::chance::Dice;

/// A list with the place in the log that goes with it.
#[derive(Clone, Debug, Default)]
struct State {
    values: Vec<u64>,
    mark: Option<Bytes>,
}

/// What is on one host's disk.
#[derive(Clone, Debug, Default)]
pub struct LedgerDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    written: State,
    safe: State,
}

impl LedgerDisk {
    pub fn values(&self) -> Vec<u64> {
        self.0.lock().written.values.clone()
    }

    /// The power failed: what was not synced may be gone.
    pub fn lose(&self, dice: &mut Dice) {
        let mut disk = self.0.lock();
        if dice.chance(700) {
            disk.written = disk.safe.clone();
        } else {
            disk.safe = disk.written.clone();
        }
    }
}

/// The machine over it.
pub struct Ledger {
    disk: LedgerDisk,
    known: BTreeSet<u64>,
}

impl Ledger {
    pub fn open(disk: LedgerDisk) -> Ledger {
        let known = disk.values().into_iter().collect();
        Ledger { disk, known }
    }
}

impl Machine for Ledger {
    fn is_durable(&self) -> bool {
        true
    }

    fn mark(&self) -> Option<Bytes> {
        self.disk.0.lock().written.mark.clone()
    }

    fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>> {
        let mut disk = self.disk.0.lock();
        let mut replies = Vec::new();
        for entry in entries {
            for payload in &entry.payloads {
                let value = payload.as_ref().try_into().map(u64::from_le_bytes).map_err(io::Error::other)?;
                // A command that is tried again happens once.
                if self.known.insert(value) {
                    disk.written.values.push(value);
                }
            }
            disk.written.mark = Some(entry.mark.clone());
            replies.push(entry.payloads.iter().map(|_| Bytes::new()).collect());
        }
        Ok(replies)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let values = self.disk.values();
        Ok(Box::new(move |out| values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))))
    }

    fn install(&mut self, mark: Bytes, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let values = bytes.chunks(8).map(|part| part.try_into().map(u64::from_le_bytes));
        let values: Vec<u64> = values.collect::<Result<_, _>>().map_err(io::Error::other)?;
        self.known = values.iter().copied().collect();
        let state = State { values, mark: Some(mark) };
        *self.disk.0.lock() = Disk { written: state.clone(), safe: state };
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        disk.safe = disk.written.clone();
        Ok(())
    }
}

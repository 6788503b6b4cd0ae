//! Simulated disks of the logs: what was written is not safe until it is synced, and they can be full.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{chance::Dice, network::Host};

/// The disks of all hosts.
pub struct Disks {
    dice: Dice,
    unsafe_yet: BTreeMap<PathBuf, (Host, Vec<(u64, usize)>)>,
    full: BTreeSet<Host>,
    slow: BTreeSet<Host>,
}

impl Disks {
    pub fn new(dice: Dice) -> Disks {
        Disks { dice, unsafe_yet: BTreeMap::new(), full: BTreeSet::new(), slow: BTreeSet::new() }
    }

    pub fn set_full(&mut self, host: Host, full: bool) {
        if full {
            self.full.insert(host)
        } else {
            self.full.remove(&host)
        };
    }

    pub fn set_slow(&mut self, host: Host, slow: bool) {
        if slow {
            self.slow.insert(host)
        } else {
            self.slow.remove(&host)
        };
    }

    /// Notes a write.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, host: Host, file: &Path, at: u64, bytes: usize) -> io::Result<()> {
        if self.full.contains(&host) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (_, ranges) = self.unsafe_yet.entry(file.into()).or_insert_with(|| (host, Vec::new()));
        ranges.push((at, bytes));
        Ok(())
    }

    pub fn sync(&mut self, file: &Path) {
        self.unsafe_yet.remove(file);
    }

    /// How many milliseconds a sync takes.
    pub fn sync_takes(&mut self, host: Host) -> u64 {
        let slow = self.slow.contains(&host);
        if slow { self.dice.between(50, 900) } else { self.dice.between(0, 6) }
    }

    /// The process of a host ended, and its machine goes on: what it wrote will be safe.
    pub fn keep(&mut self, host: Host) {
        self.unsafe_yet.retain(|_, (of, _)| *of != host);
    }

    /// The power of a host failed: of each write that was not synced all, nothing or the beginning is there.
    ///
    /// # Errors
    /// As of files.
    pub fn lose(&mut self, host: Host) -> io::Result<usize> {
        let mut lost = 0;
        let all = std::mem::take(&mut self.unsafe_yet);
        for (path, (of, ranges)) in all {
            if of != host {
                self.unsafe_yet.insert(path, (of, ranges));
                continue;
            }
            if !path.exists() {
                continue;
            }
            let file = OpenOptions::new().write(true).open(&path)?;
            for (at, len) in ranges {
                lost += self.lose_some(&file, at, len)?;
            }
        }
        Ok(lost)
    }

    fn lose_some(&mut self, file: &File, at: u64, len: usize) -> io::Result<usize> {
        let kept = match self.dice.between(0, 3) {
            0 => len,
            1 => 0,
            _ => self.dice.between(0, len as u64) as usize,
        };
        // Not beyond the end: a file that was cut meanwhile stays so.
        let end = file.metadata()?.len().min(at + len as u64);
        let from = (at + kept as u64).min(end);
        file.write_all_at(&vec![0; (end - from) as usize], from)?;
        Ok((end - from) as usize)
    }
}

//! What it costs to append to the archives of many accounts: a message and a row of its index each, in groups that share
//! a sync. CPU of the process, so sled's own threads count.
//!
//! `cargo bench -p store --bench append`

use std::{
    io,
    time::{Duration, Instant},
};

use store::engines::sled::{Config, Disk};
use store::{Batch, Op, Partition, StoreError, Table};

/// Messages of a run.
const MESSAGES: usize = 400_000;
/// Bytes of a message as it is kept.
const BYTES: usize = 330;
const ARCHIVE: Table = Table("archive");
const INDEX: Table = Table("archive_with");

fn main() -> io::Result<()> {
    for (accounts, group) in [(40, 100), (40, 1_000), (10_000, 100), (10_000, 1_000)] {
        let folder = tempfile::tempdir()?;
        let disk = Disk::open(&Config::new(folder.path().join("store"))).map_err(io::Error::other)?;
        let begun = (cpu(), Instant::now());
        let mut sent = 0;
        while sent < MESSAGES {
            append(&disk, accounts, sent, group).map_err(io::Error::other)?;
            sent += group;
        }
        let (spent, took) = (cpu() - begun.0, begun.1.elapsed());
        println!(
            "{MESSAGES} messages of {accounts} accounts, {group} with each sync: {:.2} us of CPU each, {:.0} in a second",
            spent.as_secs_f64() * 1e6 / MESSAGES as f64,
            MESSAGES as f64 / took.as_secs_f64()
        );
    }
    Ok(())
}

fn append(disk: &Disk, accounts: usize, first: usize, count: usize) -> Result<(), StoreError> {
    let mut writing = disk.write()?;
    // Those of an account are one batch, as who archives makes them.
    for account in 0..accounts.min(count) {
        let numbers = (first..first + count).filter(|n| (n - first) % accounts == account);
        // Each group goes to the next accounts.
        let owner = (account + first) % accounts;
        let mut batch = Batch::new(Partition::Account(format!("user{owner}@example.org").into()));
        for n in numbers {
            let id = [(n as u64).to_be_bytes(), (n as u64 * 0x9e37_79b9).to_be_bytes()].concat();
            let with = (owner as u64 % 7 + n as u64 % 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            batch.push(Op::Put { table: ARCHIVE, key: id.clone(), value: vec![n as u8; BYTES] });
            let key = [&with.to_be_bytes()[..], &id].concat();
            batch.push(Op::Put { table: INDEX, key, value: vec![2; 20] });
        }
        writing.batch(&batch)?;
    }
    writing.finish()?;
    disk.sync()
}

/// CPU of all threads of this process so far.
fn cpu() -> Duration {
    // SAFETY: all zeroes is a valid value of this plain struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is written, not kept.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

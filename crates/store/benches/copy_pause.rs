//! How long writes wait while a copy of the store is made, as for a snapshot of the replicated store: each write is 64
//! records in one batch, as an entry of a log is applied, with and without a copy that goes to a file beside it.
//!
//! `cargo bench -p store --bench copy_pause`

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use store::engines::sled::{Config, Disk};
use store::{Batch, Op, Partition, StoreError, Table};

/// Accounts, each with so many records of so many bytes: 250 MB.
const ACCOUNTS: u64 = 5_000;
const RECORDS: u64 = 100;
const BYTES: usize = 500;
/// Records of a write.
const ENTRY: u64 = 64;
/// How long it is written without a copy.
const ALONE: Duration = Duration::from_secs(5);
/// Bytes of the copy between two syncs.
const SLICE: usize = 512 * 1024;
const TABLE: Table = Table("bench");

/// As a snapshot is written: never much at a time that the disk has to sync.
struct InSlices<'a> {
    file: &'a File,
    unsynced: usize,
}

impl Write for InSlices<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsynced >= SLICE {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        thread::yield_now();
        let mut file = self.file;
        let written = file.write(bytes)?;
        self.unsynced += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Arc::new(Disk::open(&Config::new(folder.path().join("store"))).map_err(io::Error::other)?);
    let mut written = 0;
    while written < ACCOUNTS * RECORDS {
        write(&disk, written)?;
        written += ENTRY;
    }
    disk.sync().map_err(io::Error::other)?;
    let begun = Instant::now();
    let mut alone = Vec::new();
    while begun.elapsed() < ALONE {
        alone.push(write(&disk, chosen(alone.len()))?);
    }
    let file = File::create(folder.path().join("copy"))?;
    let mut copy = disk.copy();
    let begun = Instant::now();
    let copying = thread::spawn(move || {
        let mut out = io::BufWriter::new(InSlices { file: &file, unsynced: 0 });
        copy.write_to(&mut out)?;
        out.flush()?;
        file.sync_data()?;
        Ok::<u64, io::Error>(file.metadata()?.len())
    });
    let mut beside = Vec::new();
    while !copying.is_finished() {
        beside.push(write(&disk, chosen(beside.len()))?);
    }
    let took = begun.elapsed();
    let size = copying.join().map_err(|_| io::Error::other("the copy panicked"))??;
    println!("{} MB in {:.1} s beside {} writes", size / 1_000_000, took.as_secs_f64(), beside.len());
    for (what, mut times) in [("without a copy", alone), ("beside it", beside)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "a write of {ENTRY} records {what}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, at most {:.2} ms",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
    Ok(())
}

/// Somewhere in what is there, all over it.
fn chosen(nth: usize) -> u64 {
    (nth as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (ACCOUNTS * RECORDS)
}

/// Puts the records from `first` on, each account's in a batch; how long that took.
fn write(disk: &Disk, first: u64) -> io::Result<Duration> {
    let put = |n: u64| -> Batch {
        let n = n % (ACCOUNTS * RECORDS);
        let (account, record) = (n / RECORDS, n % RECORDS);
        let key = format!("{record:08}").into_bytes();
        let value = vec![b'a' + (n % 26) as u8; BYTES];
        let ops = vec![Op::Put { table: TABLE, key, value }];
        Batch {
            partition: Partition::Account(format!("user{account}@bench").into()),
            expect: Vec::new(),
            ops: Arc::new(ops),
        }
    };
    let batches: Vec<Batch> = (first..first + ENTRY).map(put).collect();
    let begun = Instant::now();
    let all = || -> Result<(), StoreError> {
        let mut writing = disk.write()?;
        for batch in &batches {
            writing.batch(batch)?;
        }
        writing.finish()
    };
    all().map_err(io::Error::other)?;
    Ok(begun.elapsed())
}

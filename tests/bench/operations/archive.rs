//! Archives messages: what the module makes of them, and what the store does with that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::ready;
use hooks::Passage;
use hooks::bench::{Bench, Client, parse};
use parking_lot::Mutex;
use stanza::Stanza;
use store::engines::sled::{Config, Disk};
use store::{
    Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record as Stored, Store, StoreError, Table,
};
use tempfile::TempDir;
use xeps::archive::Archive;
use xeps::rosters::Rosters;

use crate::operation::Operation;
use crate::samples::{CHAT, jid};

/// Who has an archive.
const ACCOUNTS: usize = 40;
/// Messages to all of them that are written together: those of 20 ms at 20,000 in a second.
const AT_ONCE: usize = 400;

/// A store that has nothing, and keeps aside what is written.
#[derive(Clone, Default)]
struct Aside(Arc<Mutex<Vec<Batch>>>);

impl Engine for Aside {
    fn get(
        &self,
        _: &Partition,
        _: Table,
        _: &[u8],
        _: Instant,
    ) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        ready(Ok(None)).boxed()
    }

    fn scan(
        &self,
        _: &Partition,
        _: Table,
        _: Range,
        _: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Stored)>, StoreError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn commit(&self, batches: Vec<Batch>, _: Instant) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        let done = batches.iter().map(|_| Committed::Done).collect();
        *self.0.lock() = batches;
        ready(Ok(done)).boxed()
    }
}

/// Archives messages for accounts that are here.
struct Archiving {
    bench: Bench,
    receivers: Vec<Client>,
    message: Stanza,
    written: Aside,
    due: Vec<Passage>,
}

impl Archiving {
    fn new() -> Archiving {
        let written = Aside::default();
        let store = Store::new(Arc::new(written.clone()));
        let rosters = Arc::new(Rosters::new(Default::default()));
        let module = Arc::new(Archive::new(Default::default(), rosters));
        let bench = Bench::over(store, 1, &["localhost"], || vec![module.clone()]);
        let login = |n| block_on(bench.login(&format!("user{n}@localhost/phone")));
        let receivers = (0..ACCOUNTS).map(login).collect();
        let message = parse(CHAT).with_from(jid("romeo@montague.example/orchard"));
        let mut archiving = Archiving { bench, receivers, message, written, due: Vec::new() };
        // The sessions learn what their accounts want kept.
        archiving.come();
        archiving.archive();
        archiving
    }

    /// As many messages come as are written together.
    fn come(&mut self) {
        // Each is a moment behind the one before it.
        self.bench.advance(Duration::from_millis(20));
        let services = self.bench.services();
        self.due = (0..AT_ONCE)
            .map(|n| {
                let view = self.receivers[n % ACCOUNTS].view();
                let message = self.message.clone().with_to(view.jid().clone());
                Passage::new(message, services.clone()).with_account(view.account().clone())
            })
            .collect();
    }

    /// They are archived: what is written for them is put aside.
    fn archive(&mut self) {
        block_on(async {
            for mut passage in self.due.drain(..) {
                self.bench.registry().arriving(&mut passage).await;
            }
            self.bench.wait().await;
        });
    }

    fn take_written(&mut self) -> Vec<Batch> {
        let batches = std::mem::take(&mut *self.written.0.lock());
        let ops: usize = batches.iter().map(|batch| batch.ops.len()).sum();
        assert_eq!(
            (batches.len(), ops),
            (ACCOUNTS, 2 * AT_ONCE),
            "a message and a row of its index for each"
        );
        batches
    }
}

/// Archives a message, without the store.
pub struct Record {
    archiving: Archiving,
}

impl Record {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Record { archiving: Archiving::new() })
    }
}

impl Operation for Record {
    fn times(&self) -> u64 {
        AT_ONCE as u64
    }

    fn ready(&mut self) {
        self.archiving.take_written();
        self.archiving.come();
    }

    fn go(&mut self) {
        self.archiving.archive();
    }
}

/// Writes archived messages to the store, without a sync.
pub struct Append {
    archiving: Archiving,
    disk: Disk,
    due: Vec<Batch>,
    _folder: TempDir,
}

impl Append {
    pub fn begin() -> Box<dyn Operation> {
        let folder = tempfile::tempdir().expect("a folder for the store");
        let disk = Disk::open(&Config::new(folder.path().join("store"))).expect("a store");
        Box::new(Append { archiving: Archiving::new(), disk, due: Vec::new(), _folder: folder })
    }
}

impl Operation for Append {
    fn times(&self) -> u64 {
        AT_ONCE as u64
    }

    fn ready(&mut self) {
        self.due = self.archiving.take_written();
        self.archiving.come();
        self.archiving.archive();
    }

    fn go(&mut self) {
        let mut writing = self.disk.write().expect("a store that works");
        for batch in &self.due {
            assert_eq!(writing.batch(batch), Ok(Committed::Done), "nothing is expected of the store");
        }
        writing.finish().expect("the store takes it");
    }
}

//! What a login asks the store for: nothing twice.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use session::Door;
use store::engines::memory::Memory;
use store::{Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record, Store, StoreError, Table};
use xeps::ModulesConfig;

use crate::client::Client;
use crate::house::House;

/// A store that notes what it is asked for.
struct Noting {
    inner: Memory,
    reads: Mutex<Vec<String>>,
}

impl Noting {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.reads.lock())
    }
}

impl Engine for Noting {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let key = String::from_utf8_lossy(key).into_owned();
        self.reads.lock().push(format!("{partition:?} {} `{key}`", table.0));
        self.inner.get(partition, table, key.as_bytes(), deadline)
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        self.reads.lock().push(format!("{partition:?} {} {:?}..{:?}", table.0, range.from, range.to));
        self.inner.scan(partition, table, range, deadline)
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        self.inner.commit(batches, deadline)
    }
}

async fn house() -> (House, Arc<Noting>) {
    let noting = Arc::new(Noting { inner: Memory::new(), reads: Mutex::default() });
    let modules = xeps::modules(&ModulesConfig::default());
    (House::over(Store::new(noting.clone()), |_| {}, |_| {}, modules).await, noting)
}

/// Waits until all before it was dealt with.
async fn settle(client: &mut Client) {
    client.send("<iq type='get' id='settled' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    while client.hears().await.head.id.as_deref() != Some("settled") {}
}

async fn hears(client: &mut Client, id: &str) {
    while client.hears().await.head.id.as_deref() != Some(id) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_asks_the_store_for_nothing_twice() {
    let (house, store) = house().await;
    // Bob is a contact in both directions, and stays.
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    for (client, other) in [(&mut alice, "bob"), (&mut bob, "alice")] {
        client.send("<presence/>").await;
        client.send(&format!("<presence to='{other}@localhost' type='subscribe' id='ask'/>")).await;
    }
    hears(&mut alice, "ask").await;
    alice.send("<presence to='bob@localhost' type='subscribed'/>").await;
    hears(&mut bob, "ask").await;
    bob.send("<presence to='alice@localhost' type='subscribed' id='yes'/>").await;
    hears(&mut alice, "yes").await;
    settle(&mut bob).await;
    settle(&mut alice).await;
    drop(alice);
    // He is told last of all that is done for the end of her session.
    while bob.hears().await.head.type_.as_deref() != Some("unavailable") {}
    house.until("she is gone", |house| house.listeners.connections() == 1).await;
    // What was left for later reads too.
    let mut quiet = 0;
    while quiet < 10 {
        settle(&mut bob).await;
        quiet = if store.take().is_empty() { quiet + 1 } else { 0 };
    }

    let mut alice = Client::login(&house, "alice", "phone").await;
    alice.send("<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq><presence/>").await;
    hears(&mut alice, "roster").await;
    settle(&mut alice).await;
    let mut reads = store.take();
    reads.retain(|read| read.starts_with("Account(\"alice@localhost\")"));
    let tables: Vec<&str> = reads.iter().filter_map(|read| read.split(' ').nth(1)).collect();
    let once = [
        "credentials",
        "privacy_lists",
        "push",
        "roster",
        "picture_hash",
        "blocklist",
        "subscription_requests",
        "offline_queue",
        "offline",
    ];
    assert_eq!(tables, once, "{reads:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_looks_at_its_account_again_if_somebody_locked_one_meanwhile() {
    for who in ["alice", "bob"] {
        let (house, store) = house().await;
        let mut client = Client::connect(&house, Door::DirectTls).await;
        client.authenticates().await;
        let locked = jid::BareJid::new(&format!("{who}@localhost")).unwrap();
        assert_eq!(house.router.disable_account(&locked).await, Ok(0));
        store.take();
        client.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
        if who == "alice" {
            client.is_told("not-authorized").await;
        } else {
            hears(&mut client, "b").await;
        }
        let looks = store.take().iter().filter(|read| read.contains("credentials")).count();
        assert_eq!(looks, 1, "{who}");
    }
}

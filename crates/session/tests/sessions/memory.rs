//! What an idle session costs in heap, counted on the arbiter that owns it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use hooks::{Answer, Card, Following, Hooks, Module, Services, SessionEvent};

use crate::client::Client;
use crate::house::House;

/// Bytes of heap that an idle session under TLS may own here. The kernel's share of its socket comes on top.
const HEAP_MAX: isize = 14 * 1024;
/// Sessions to divide by.
const SESSIONS: isize = 200;

/// Counts what threads allocate that asked to be counted.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static ON: AtomicBool = AtomicBool::new(false);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: isize) {
    if ON.load(Ordering::Relaxed) && COUNTED.try_with(Cell::get).unwrap_or(false) {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A module whose only use is to be called on the arbiter, which it marks to be counted.
struct Mark;

impl Module for Mark {
    fn card(&self) -> Card {
        Card::new("mark", "Marks the thread that it is called on.")
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.following(self);
    }
}

impl Following for Mark {
    fn following<'a>(&'a self, _: &'a SessionEvent, _: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        COUNTED.set(true);
        Answer::Now(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_is_small() {
    let house = House::build(
        |config| {
            config.c2s.arbiters = 1;
            config.limits.sessions_per_account = 1_000;
        },
        |_| {},
        vec![Arc::new(Mark)],
    )
    .await;
    let mut clients = Vec::new();
    for n in 0..SESSIONS + 10 {
        if n == 10 {
            // The first ones pay for what all share.
            ON.store(true, Ordering::SeqCst);
        }
        let mut client = Client::login(&house, "alice", &format!("r{n}")).await;
        client.send(&format!("<message to='alice@localhost/r{n}' id='1'><body>hi</body></message>")).await;
        client.hears().await;
        clients.push(client);
    }
    ON.store(false, Ordering::SeqCst);
    let each = LIVE.load(Ordering::SeqCst) / SESSIONS;
    println!("{each} bytes of heap for each idle session");
    assert!(each > 1_000, "nothing was counted: {each}");
    assert!(each <= HEAP_MAX, "{each} bytes of heap for each idle session");
}

//! What the relay costs: CPU time per chat message on the sending and on the receiving node, busy.
//!
//! Each side is a router on a runtime of one thread, so that the kernel accounts for the sides apart. The
//! sending side counts from the session's `send`, the receiving side to the drained mailbox.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/router/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hooks::bench::parse;
use hooks::{Passage, Store};
use router::Config;
use world::{Node, World, node};

const WARM_UP: usize = 20_000;
const MESSAGES: usize = 300_000;
/// Far below the window, so that nothing is bounced.
const UNDER_WAY: usize = 4_000;

fn cpu_of_this_thread() -> Duration {
    // SAFETY: `usage` is plain data that the call fills, and the call fails only for an unknown `who`.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0, "the kernel accounts for threads");
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn receive(world: Arc<World>, ready: mpsc::Sender<()>) -> Duration {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let node = node(&world, 2, &Store::memory(), vec![], Config::default());
        let _listener = listen_without_proxy(&node).await;
        let mut bob = node.login("bob@localhost/phone", Some(0));
        ready.send(()).unwrap();
        let mut count = 0;
        let mut begin = Duration::ZERO;
        while count < WARM_UP + MESSAGES {
            let before = count;
            for delivery in bob.takes().await {
                delivery.receipt.settle();
                count += 1;
            }
            if before < WARM_UP && count >= WARM_UP {
                begin = cpu_of_this_thread();
            }
        }
        let spent = cpu_of_this_thread() - begin;
        // The last acknowledgements.
        tokio::time::sleep(Duration::from_millis(200)).await;
        spent
    })
}

async fn listen_without_proxy(node: &Node) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    node.here.world.reach(node.here.me, listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = node.router.relay_service();
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.unwrap();
    })
}

fn send(world: Arc<World>) -> (Duration, Duration) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let node = node(&world, 1, &Store::memory(), vec![], Config::default());
        let alice = node.login("alice@localhost/phone", Some(0));
        let body =
            "Shall we say at eight, in front of the theatre? I shall bring the tickets and the umbrella.";
        let message = parse(&format!(
            "<message to='bob@localhost' type='chat' id='5f0c7b1e-93d2'><body>{body}</body>\
             <request xmlns='urn:xmpp:receipts'/></message>"
        ))
        .with_from(alice.view.jid().clone());
        let services = node.router.services();
        let (mut begin, mut since) = (Duration::ZERO, Instant::now());
        for count in 0..WARM_UP + MESSAGES {
            if count == WARM_UP {
                (begin, since) = (cpu_of_this_thread(), Instant::now());
            }
            let passage = Passage::new(message.clone(), services.clone()).with_sender(alice.view.clone());
            node.router.send(passage).await;
            if count % 64 == 63 {
                tokio::task::yield_now().await;
                while node.unsettled() > UNDER_WAY {
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
            }
        }
        while node.unsettled() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let counters = node.router.counters();
        let sent = counters.parcels_sent.load(std::sync::atomic::Ordering::Relaxed);
        let batches = counters.batches_sent.load(std::sync::atomic::Ordering::Relaxed);
        println!("{:.1} stanzas in a batch", sent as f64 / batches as f64);
        (cpu_of_this_thread() - begin, since.elapsed())
    })
}

fn main() {
    // `cargo bench` says so; whoever only lists or checks targets shall not wait for figures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let world = World::new(2);
    let (ready, is_ready) = mpsc::channel();
    let receiving = {
        let world = world.clone();
        std::thread::spawn(move || receive(world, ready))
    };
    is_ready.recv().unwrap();
    let (sender, wall) = send(world);
    let receiver = receiving.join().unwrap();
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / MESSAGES as f64;
    println!("sending side   {:.2} us CPU per stanza", each(sender));
    println!("receiving side {:.2} us CPU per stanza", each(receiver));
    println!("{:.0} stanzas per second", MESSAGES as f64 / wall.as_secs_f64());
}

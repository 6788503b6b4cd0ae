//! Binds under load over three voters: the time from when each was due until its node has it in its table.
//!
//! The three are whole nodes in this process, over loopback gRPC, with their logs on disk and synced. The load is open:
//! a bind begins when it is due, whatever became of those before it, so a stall counts for all that waited for its end.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cluster::{Cluster, ConflictPolicy, Sid};
use jid::FullJid;
use support::three;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// Load before what is measured.
const WARM_UP: Duration = Duration::from_secs(3);
/// Kernel ticks in a second, by which the CPU time of a process is told.
const TICKS: u64 = 100;
/// A bound for the end of what was begun.
const RUN_OUT: Duration = Duration::from_secs(60);

/// What is asked for on the command line.
struct Asked {
    rate: u64,
    seconds: u64,
}

/// What became of the binds that were due in the measured time.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    failed: u64,
    last: Option<Instant>,
}

fn main() {
    let asked = Asked { rate: argument("--rate", 20_000), seconds: argument("--seconds", 15) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(run(&asked));
}

fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(default, |value| value.parse().expect("a number"))
}

async fn run(asked: &Asked) {
    support::log();
    let dir = tempfile::tempdir().expect("a folder for the nodes");
    let nodes = three(dir.path()).await;
    let clusters: Vec<Arc<Cluster>> = nodes.iter().map(|node| node.cluster.clone()).collect();
    let (done, mut ended) = mpsc::unbounded_channel();
    let each = Duration::from_secs(1) / u32::try_from(asked.rate).expect("a rate");
    let begun = Instant::now() + Duration::from_millis(100);
    let measured = begun + WARM_UP;
    let end = measured + Duration::from_secs(asked.seconds);
    let under_way = Arc::new(AtomicU64::new(0));
    let generator = tokio::spawn(offer(clusters, begun, end, each, under_way.clone(), done));
    tokio::time::sleep_until(measured).await;
    let cpu = cpu_ticks();
    tokio::time::sleep_until(end).await;
    let cpu = cpu_ticks() - cpu;
    let (offered, most) = generator.await.expect("the load was offered");
    let mut seen = Seen::default();
    let collect = async {
        while let Some((due, at, bound)) = ended.recv().await {
            if due < measured {
                continue;
            }
            seen.failed += u64::from(!bound);
            seen.latencies.push(at - due);
            seen.last = seen.last.max(Some(at));
        }
    };
    timeout(RUN_OUT, collect).await.expect("all that was begun ends");
    report(asked, &mut seen, measured, cpu, most);
    for node in &nodes {
        node.cluster.barrier().await.expect("the table is level");
        let digest = node.cluster.digests(node.cluster.routes().index(), 1);
        println!("{} sessions in the table of node {}, {digest:x?}", node.cluster.routes().len(), node.id());
        assert_eq!(node.cluster.routes().len() as u64 + seen.failed, offered, "each bind is in each table");
    }
    for node in nodes {
        node.kill().await;
    }
}

/// Begins each bind when it is due, at each node in turn; how many they were, and how many were under way at most.
async fn offer(
    clusters: Vec<Arc<Cluster>>,
    begun: Instant,
    end: Instant,
    each: Duration,
    under_way: Arc<AtomicU64>,
    done: mpsc::UnboundedSender<(Instant, Instant, bool)>,
) -> (u64, u64) {
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut due, mut n, mut most) = (begun, 0, 0);
    while due < end {
        ticks.tick().await;
        let now = Instant::now();
        while due <= now && due < end {
            let cluster = clusters[n as usize % clusters.len()].clone();
            let (done, under_way, at) = (done.clone(), under_way.clone(), due);
            most = most.max(under_way.fetch_add(1, Ordering::Relaxed));
            tokio::spawn(async move {
                let (jid, sid) = session(n);
                let bound = cluster.bind(&jid, sid, ConflictPolicy::Replace).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                let _ = done.send((at, Instant::now(), bound.is_ok()));
            });
            n += 1;
            due += each;
        }
    }
    (n, most)
}

fn session(n: u64) -> (FullJid, Sid) {
    let jid = FullJid::new(&format!("first.last{n}@chat.example.org/Phone.{n:08x}"));
    (jid.expect("this is a full JID"), Sid::random())
}

fn report(asked: &Asked, seen: &mut Seen, measured: Instant, cpu: u64, most: u64) {
    seen.latencies.sort_unstable();
    let count = seen.latencies.len();
    let part =
        |share: f64| seen.latencies[((count as f64 * share) as usize).min(count - 1)].as_secs_f64() * 1e3;
    let took = seen.last.map_or(0.0, |last| (last - measured).as_secs_f64());
    println!(
        "offered {}/s for {} s behind {WARM_UP:?} of warming up; reached {:.0}/s, {} failed, {most} under way at most",
        asked.rate,
        asked.seconds,
        count as f64 / took,
        seen.failed,
    );
    println!(
        "latency from when it was due: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms",
        part(0.5),
        part(0.99),
        part(0.999),
        part(1.0)
    );
    let each = cpu as f64 * 1e6 / TICKS as f64 / (asked.rate * asked.seconds) as f64;
    println!("CPU of the process, load and three nodes: {each:.1} us per bind");
}

/// CPU time of this process, user and system.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("the kernel tells of this process");
    // Behind the name, which may hold spaces: state is the first field, user time the twelfth.
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
    ticks(11) + ticks(12)
}

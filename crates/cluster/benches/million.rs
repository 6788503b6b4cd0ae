//! A table of a million sessions: the memory that it takes on a node, and how soon a node that joins empty has it.
//!
//! Each node is a process of its own: this binary once more, told its part by its arguments. One node forms a cluster
//! and fills its table; then a backend joins, which learns the table by a snapshot of Raft's, and then a frontend, which
//! follows a backend. Meanwhile the first node binds one session after the other.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cluster::{ConflictPolicy, Incarnation, Living, Roles, Sid};
use jid::FullJid;
use support::{BOTH, FRONTEND, Node, config, deps, write_seeds};

/// Sessions, each of another account.
const SESSIONS: usize = 1_000_000;
/// As many are brought in by one call, so that the list of them weighs little beside the table.
const SLICE: usize = 8_192;
/// The pause between two binds beside a join.
const PAUSE: Duration = Duration::from_millis(2);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "hold", dir] => runtime.block_on(hold(Path::new(dir))),
        [_, "join", dir, name] => {
            runtime.block_on(join(Path::new(dir), name, if name == "frontend" { FRONTEND } else { BOTH }));
        }
        _ => play(),
    }
}

/// Starts one node after the other and shows what they say.
fn play() {
    let dir = tempfile::tempdir().expect("a folder for the nodes");
    let (mut holder, mut told) = child(&["hold"], dir.path());
    say(&mut told, 3);
    let mut joined = Vec::new();
    for name in ["backend", "frontend"] {
        let (child, mut told) = child(&["join", name], dir.path());
        say(&mut told, 2);
        joined.push((child, told));
    }
    // The first one ends while the others are there: two backends agree on nothing when one of them leaves.
    drop(holder.stdin.take());
    say(&mut told, 2);
    holder.wait().expect("the first node ends");
    for (mut child, _) in joined {
        child.kill().and_then(|()| child.wait()).expect("the node that joined ends");
    }
}

fn child(part: &[&str], dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let me = std::env::current_exe().expect("this binary has a path");
    let mut command = Command::new(me);
    command.arg(part[0]).arg(dir).args(&part[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a node starts");
    let told = child.stdout.take().expect("it has an output");
    (child, BufReader::new(told))
}

fn say(told: &mut BufReader<ChildStdout>, lines: usize) {
    for line in told.lines().take(lines) {
        println!("{}", line.expect("the node says what it saw"));
    }
}

/// The first node: it fills its table, and binds on until its input ends.
async fn hold(dir: &Path) {
    log();
    let seeds = dir.join("seeds");
    let node = Node::start(config(&seeds, 1), deps("first", BOTH, dir)).await;
    node.ready().await;
    let empty = memory("VmRSS");
    println!("first node, empty: {empty} MB resident");
    let begun = Instant::now();
    for from in (0..SESSIONS).step_by(SLICE) {
        let living = (from..SESSIONS.min(from + SLICE)).map(living).collect();
        let refused = node.cluster.resync(living).await.expect("the sessions are brought in");
        assert!(refused.is_empty());
    }
    let (took, full) = (begun.elapsed(), memory("VmRSS"));
    println!("{SESSIONS} sessions brought in within {took:.1?}, {} MB at most meanwhile", memory("VmHWM"));
    // The last snapshot of it is still being written, and what has changed since is there twice.
    tokio::time::sleep(Duration::from_secs(3)).await;
    give_back();
    let kept = memory("VmRSS");
    println!(
        "first node, full: {full} MB resident, {kept} MB once memory was given back, {} MB more than empty",
        kept - empty
    );
    write_seeds(&seeds, [&node]);
    let ended = tokio::task::spawn_blocking(end_of_input);
    let mut worst = Vec::new();
    while !ended.is_finished() {
        let jid = session(SESSIONS + worst.len());
        let begun = Instant::now();
        node.cluster.bind(&jid, Sid::random(), ConflictPolicy::Replace).await.expect("a session is bound");
        worst.push(begun.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    worst.sort_unstable();
    let slow = worst.iter().filter(|took| **took > Duration::from_millis(50)).count();
    let (binds, last) = (worst.len(), worst.last().copied().unwrap_or_default());
    println!("{binds} binds one by one beside both joins: the slowest {last:.1?}, {slow} longer than 50 ms");
    println!("first node, behind the joins: {} MB resident, {} MB at most", memory("VmRSS"), memory("VmHWM"));
}

/// A node with nothing: it joins, and stays until it is ended.
async fn join(dir: &Path, name: &str, roles: Roles) {
    log();
    let begun = Instant::now();
    let node = Node::start(config(&dir.join("seeds"), 1), deps(name, roles, dir)).await;
    node.ready().await;
    let ready = begun.elapsed();
    node.cluster.barrier().await.expect("the table is level");
    let level = begun.elapsed();
    let sessions = node.cluster.routes().len();
    assert!(sessions >= SESSIONS && node.cluster.is_serving());
    // A node that is silent while it learns is given up, and learns the end of it twice.
    assert_eq!(node.cluster.me().1, Incarnation(1), "{name} came up more than once");
    println!(
        "{name} that joined empty: serving after {ready:.2?}, level after {level:.2?} with {sessions} sessions"
    );
    let learned = memory("VmRSS");
    give_back();
    println!(
        "{name}: {learned} MB resident, {} MB once memory was given back, {} MB at most",
        memory("VmRSS"),
        memory("VmHWM")
    );
    tokio::task::spawn_blocking(end_of_input).await.expect("the input ends");
}

/// Not to the output, which is read.
fn log() {
    let levels = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr).try_init();
}

/// As a node does within a minute when its table has grown by as much.
#[allow(unsafe_code, reason = "the allocator of the C library has no other door")]
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call has no conditions; it takes the locks of the allocator as every allocation does.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn end_of_input() {
    let mut nothing = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut nothing);
}

fn living(n: usize) -> Living {
    Living { jid: session(n), sid: Sid::random(), priority: Some(0), detached: false }
}

/// The JIDs of clients that draw their resources, as most do.
fn session(n: usize) -> FullJid {
    let client = ["Conversations.", "gajim.", "dino.", "Monal-iOS."][n % 4];
    let drawn = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    FullJid::new(&format!("first.last{n}@chat.example.org/{client}{drawn:010x}")).expect("this is a full JID")
}

/// What the kernel says of this process, in megabytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string(PathBuf::from("/proc/self/status")).expect("the kernel tells of it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a number of KiB");
    kib.trim().parse::<u64>().expect("a number") * 1024 / 1_000_000
}

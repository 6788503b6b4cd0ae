//! Seeds: one in this process if it is asked for by `ROOKERY_SEED`, or some of them in processes of their own.

use std::{
    env,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    history::{self, Event},
    oracle, run,
};

/// The seed to run in this process.
const SEED: &str = "ROOKERY_SEED";
/// Where to begin, and how many to run from there on.
const FROM: &str = "ROOKERY_SEED_FROM";
const COUNT: &str = "ROOKERY_SEEDS";
/// Prints the whole history.
const HISTORY: &str = "ROOKERY_HISTORY";

/// Seeds that once broke a rule, with what they found.
const KNOWN: &[(u64, &str)] = &[
    (1, "what waited for a lost node overtook what came back from there"),
    (60, "a node whose disk was full kept its lease, and served by a table that stood still"),
    (2253, "errors for senders whose node was without its lease at the time came to nobody"),
    (2919, "a leader whose clock jumped as its quorum was old cut leases short"),
    (3992, "what a node refused for a displaced session was overtaken by what came for its successor there"),
    (5071, "of what came back from a node the first gave way to the second"),
    (4033, "what waited was handed over by a displaced session too"),
    (2833, "a node that was told to stop was at rest before the mailboxes of its last sessions were closed"),
    (4091, "the same, of a node that was without its lease meanwhile"),
    (1146, "a hundred messages behind a loss waited in vain one after the other"),
    (5571, "a leader with a slow disk granted itself a lease by its own old table"),
    (
        5665,
        "a node whose lease came back twice took the first answer for the last, and served nobody any more",
    ),
    (5555, "a displaced session was held for one that serves while what it had accepted went its way"),
    (6101, "a node that stopped took clients again, since a drain from before was taken back"),
];
/// How many others the test runs, if nobody says how many, and for how long at most.
const OTHERS: u64 = 10;
const BUDGET: Duration = Duration::from_secs(40);
/// The first of those.
const FIRST: u64 = 1;

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    digest: String,
    breaches: Vec<String>,
}

/// Runs the one seed that was asked for, here.
fn run_here(seed: u64) {
    // In memory, where a file system is: nothing has to survive this process.
    let shared = std::path::Path::new("/dev/shm");
    let dir = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    let dir = dir.expect("a folder for the simulated disks");
    let events = run::run(seed, dir.path());
    if env::var_os(HISTORY).is_some() {
        for dated in events.iter().filter(|dated| !matches!(dated.event, Event::Table { .. })) {
            println!("{:>7} {:?}", dated.at, dated.event);
        }
    }
    for breach in oracle::judge(&events) {
        println!("breach of rule {}: {}", breach.rule, breach.text);
    }
    let end = events.last().map_or(0, |dated| dated.at);
    println!("digest {:016x} of {} events in {end} ms", history::digest(&events), events.len());
}

/// Runs a seed in a process of its own, which a seed needs: the runtimes of one process are numbered.
fn run_apart(seed: u64) -> Report {
    let mut child = Command::new(env::current_exe().expect("this test is a file"));
    child.args(["--exact", "seeds::one_seed_of_a_process_of_its_own", "--nocapture", "--test-threads=1"]);
    child.env(SEED, seed.to_string()).stdin(Stdio::null());
    let output = child.output().expect("this test runs once more");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines = |start: &str| said.lines().filter(|line| line.contains(start)).map(str::to_owned).collect();
    let mut breaches: Vec<String> = lines("breach of rule");
    let digest: Vec<String> = lines("digest ");
    if !output.status.success() || digest.len() != 1 {
        let end: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
        breaches.push(format!("the run broke off ({}): {}", output.status, end.join("\n")));
    }
    Report { digest: digest.into_iter().next().unwrap_or_default(), breaches }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn is_child() -> bool {
    env::var_os(SEED).is_some()
}

/// Does nothing unless a seed is given.
#[test]
fn one_seed_of_a_process_of_its_own() {
    let Some(seed) = number(SEED) else { return };
    if env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    // The thread has a name and a stack of the test's; a fresh one has drawn nothing yet.
    let thread = std::thread::Builder::new().stack_size(16 << 20);
    let thread = thread.spawn(move || run_here(seed)).expect("a thread");
    assert!(thread.join().is_ok(), "the run broke off");
}

#[test]
fn one_seed_is_one_history() {
    if is_child() {
        return;
    }
    for seed in [1, 2] {
        let (first, second) = (run_apart(seed), run_apart(seed));
        assert!(first.digest.contains("digest"), "{first:?}");
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run_apart(1).digest, run_apart(2).digest);
}

#[test]
fn no_seed_breaks_a_rule() {
    if is_child() {
        return;
    }
    let began = Instant::now();
    let (from, count) = (number(FROM).unwrap_or(FIRST), number(COUNT));
    let known = KNOWN.iter().map(|(seed, _)| *seed).filter(|_| count.is_none());
    let mut ran = 0;
    let mut broken = Vec::new();
    for seed in known.chain(from..) {
        let is_over = match count {
            Some(count) => ran >= count,
            None => {
                let known = KNOWN.len() as u64;
                ran >= known + OTHERS || (began.elapsed() > BUDGET && ran > known)
            }
        };
        if is_over {
            break;
        }
        let report = run_apart(seed);
        ran += 1;
        if !report.breaches.is_empty() {
            println!("seed {seed} breaks a rule:");
            report.breaches.iter().for_each(|breach| println!("  {breach}"));
            println!(
                "  again: ROOKERY_SEED={seed} ROOKERY_HISTORY=1 cargo test --locked --workspace --test simulation one_seed -- --nocapture"
            );
            broken.push(seed);
        }
    }
    println!("ran {ran} seeds from {from} in {:.1} s", began.elapsed().as_secs_f64());
    assert!(broken.is_empty(), "{} of {ran} seeds break rules: {broken:?}", broken.len());
}

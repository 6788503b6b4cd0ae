//! Crowds that come and go, and a client that never reads: what stays behind in the server's memory.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::Door,
    ground::Space,
    people::Person,
    slow_reader::{self, Ends},
    soak::{Soak, Stage},
};
use tokio::time::interval;

use crate::process::Server;

/// The tables of the door are used for clients from loopback too; no delay for failed logins. What is cached of the
/// store has a bound of its own, which it does not reach at once: the least that it may have.
pub const LIMITS: &str = "limit_loopback = true\nsession_bytes_per_second = 0\nsession_stanzas_per_second = 0\n\
                          login_lag_us = 0\nauth_delay_ms = 0\nauth_failure_memory_s = 30\n[store]\ncache_bytes = 1048576\n";

/// How long memory may take to settle: two rounds of the server's own cleaning, and some.
const SETTLED: Duration = Duration::from_secs(200);
/// How much more memory than before is none, in percent.
const NONE: u64 = 2;
/// Parts of the crowd, after each of which memory is looked at: what leaks grows with each.
const SLICES: usize = 10;
const PEOPLE: usize = 50;
const PASSWORD: &str = "soaked";

/// How large a crowd.
#[derive(Clone, Copy)]
pub struct Crowd {
    /// Clients that connect and vanish.
    pub cycles: usize,
    /// Messages for the client that does not read.
    pub messages: usize,
    pub seed: u64,
    /// The last stage that a client reaches: to see which one leaves something behind.
    pub last: Stage,
}

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd { cycles: 200_000, messages: 100_000, seed: 1, last: Stage::Online }
    }
}

/// Prints memory before and after, and what became of each client and message; fails where something stays.
pub async fn run(server: &Server, crowd: Crowd) -> Result<()> {
    let door =
        Door { c2s: server.starttls.parse()?, direct: server.direct_tls.parse()?, space: Space::default() };
    let mut people = Vec::new();
    for n in 0..PEOPLE {
        let (user, host) = (format!("s{n}"), "localhost".to_owned());
        server.add_user(&user, PASSWORD)?;
        people.push(Person { user, host, password: PASSWORD.to_owned() });
    }
    let last = crowd.last;
    let soak = |seed| Soak { door, people: people.clone(), seed, last, at_once: 64 };

    // What all share is made by the first ones.
    soak(!crowd.seed).run((crowd.cycles / 5).max(2_000)).await?;
    let before = settled(server, None).await?;
    let start = Instant::now();
    let mut counts = BTreeMap::new();
    let mut curve = Vec::new();
    for slice in 0..SLICES {
        let mine = crowd.cycles / SLICES + usize::from(slice < crowd.cycles % SLICES);
        for (stage, count) in soak(crowd.seed + slice as u64).run(mine).await? {
            *counts.entry(stage).or_default() += count;
        }
        curve.push(server.anonymous_kib()?);
    }
    let took = start.elapsed();
    let counted: usize = counts.values().sum();
    ensure!(counted == crowd.cycles, "{counted} of {} clients came", crowd.cycles);
    println!(
        "soak: {} clients in {:.0} s, seed {}: {counts:?}",
        crowd.cycles,
        took.as_secs_f64(),
        crowd.seed
    );
    println!("soak: anonymous memory after each tenth, KiB: {curve:?}");
    let at_once = server.rss_kib()?;
    let after = settled(server, Some(before)).await?;
    println!(
        "soak: RSS {before} KiB before, {at_once} KiB right after, {after} KiB when settled ({:+.1} %)",
        (after as f64 / before as f64 - 1.0) * 100.0
    );
    let within = after <= before + before * NONE / 100;

    let (sender, receiver) = (&people[0], &people[1]);
    let Ends { delivered, kept, bounced, twice } =
        slow_reader::run(door, sender, receiver, crowd.messages).await?;
    ensure!(delivered + kept + bounced - twice == crowd.messages, "messages are missing");
    let at_once = server.rss_kib()?;
    println!(
        "slow reader: {} messages: {delivered} delivered, {kept} kept and delivered later, {bounced} sent back \
         ({twice} of the delivered ones as well), RSS {at_once} KiB right after",
        crowd.messages
    );
    ensure!(within, "memory grew from {before} KiB to {after} KiB");
    Ok(())
}

/// Resident memory when nobody is connected any more and the server has cleaned up: the least that is seen.
async fn settled(server: &Server, goal: Option<u64>) -> Result<u64> {
    const TRIMS: &str = "rookery_memory_trims_total";
    let end = Instant::now() + SETTLED;
    let mut look = interval(Duration::from_millis(500));
    let alone = async |server: &Server| {
        let mut open = 0.0;
        for name in ["rookery_connections", "rookery_sessions", "rookery_cluster_sessions"] {
            open += server.metric(name).await?;
        }
        anyhow::Ok(open == 0.0)
    };
    while !alone(server).await? {
        look.tick().await;
        ensure!(Instant::now() < end, "connections are left behind");
    }
    let trims = server.metric(TRIMS).await?;
    while server.metric(TRIMS).await? == trims && Instant::now() < end {
        look.tick().await;
    }
    let mut least = server.rss_kib()?;
    let enough = |least: u64| goal.is_none_or(|goal| least <= goal + goal * NONE / 100);
    while !enough(least) && Instant::now() < end {
        look.tick().await;
        least = least.min(server.rss_kib()?);
    }
    let mut kept = Vec::new();
    for what in ["connected-addresses", "failed-addresses", "failed-accounts"] {
        let name = format!("rookery_door_remembered{{what=\"{what}\"}}");
        kept.push(format!("{what} {}", server.metric(&name).await.context("remembered")?));
    }
    println!("settled: RSS {least} KiB; remembered: {}", kept.join(", "));
    Ok(least)
}

//! What a login with a roster of 10,000 contacts costs the others: the slowest ping of sessions beside it.

use std::{
    future::pending,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jid::BareJid;
use store::{
    Store,
    engines::sled::{Config, Sled},
};
use tokio::time::timeout;
use xeps::rosters::{Item, Roster, Standing, partition};

use crate::{
    PASSWORD,
    link::{self, Link, find},
    process::Server,
};

const CONTACTS: usize = 10_000;
/// Logins that are measured, after one that is not.
const LOGINS: usize = 60;
/// Sessions that ping, so that each arbiter has some.
const WITNESSES: usize = 8;
/// How long the quiet before is measured.
const QUIET: Duration = Duration::from_secs(5);
/// The most that a login may delay others. A machine that is shared delays them too: what counts is how many are late
/// beside logins and how many without.
const LATE: Duration = Duration::from_millis(5);
/// The default bounds are for rosters of a thousand contacts.
const SETTINGS: &str = "mailbox_bytes = 8388608\n[modules.roster]\nitems_max = 20000\nbytes_max = 900000\n";

/// Measures on a server of its own.
pub async fn run(binary: &Path, base_port: u16) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fill(&folder.path().join("data").join("store")).await?;
    let server = Server::start_over(folder, binary, base_port, SETTINGS)?;
    server.add_user("big", PASSWORD)?;
    server.add_user("witness", PASSWORD)?;
    let (quiet, quiet_time) = beside(&server, async || drop(timeout(QUIET, pending::<()>()).await)).await?;
    let mut took = Vec::new();
    let tls = link::tls_config()?;
    log_in(&server, &tls).await?;
    let address = server.direct_tls.clone();
    let (busy, busy_time) = beside(&server, async || {
        // Whoever takes a megabyte at a time must not take the cores from the server and from those who ping: what
        // counts is how long the server keeps them waiting.
        let _modest = Modest::begin();
        for _ in 0..LOGINS {
            let start = Instant::now();
            let bytes = log_in_at(&address, &tls).await;
            took.push((start.elapsed(), bytes));
        }
    })
    .await?;
    let mut bytes = 0;
    let mut times = Vec::new();
    for (time, answer) in took {
        bytes = answer?;
        times.push(time);
    }
    times.sort();
    println!(
        "roster of {CONTACTS} contacts ({bytes} bytes), {LOGINS} logins of {:.0} ms: a ping beside it takes at \
         most {:.2} ms (99 %: {:.2} ms), without it at most {:.2} ms (99 %: {:.2} ms); {} and {} pings, of which {} in \
         {:.1} s and {} in {:.1} s took longer than {} ms",
        times[times.len() / 2].as_secs_f64() * 1e3,
        worst(&busy),
        most(&busy),
        worst(&quiet),
        most(&quiet),
        busy.len(),
        quiet.len(),
        late(&busy),
        busy_time.as_secs_f64(),
        late(&quiet),
        quiet_time.as_secs_f64(),
        LATE.as_millis(),
    );
    Ok(())
}

/// Puts the roster into the store before the server opens it.
async fn fill(path: &Path) -> Result<()> {
    let mut roster = Roster::default();
    for n in 0..CONTACTS {
        let item = Item {
            name: Some(format!("Contact {n}")),
            groups: vec!["Friends".to_owned()],
            standing: Standing { to: true, from: true, ..Standing::default() },
        };
        roster.items.insert(format!("contact{n:05}@localhost"), item);
    }
    let config = Config::new(path);
    let sled = Arc::new(tokio::task::spawn_blocking(move || Sled::open(&config)).await??);
    let store = Store::new(sled.clone());
    store.put(&partition(&BareJid::new("big@localhost")?), b"", &roster).await?;
    drop(store);
    let sled = Arc::into_inner(sled).context("the store is in use")?;
    Ok(tokio::task::spawn_blocking(move || sled.close()).await?)
}

async fn log_in(server: &Server, tls: &Arc<rustls::ClientConfig>) -> Result<usize> {
    log_in_at(&server.direct_tls, tls).await
}

/// A login with the roster and the first presence; how long the roster was, in bytes.
async fn log_in_at(address: &str, tls: &Arc<rustls::ClientConfig>) -> Result<usize> {
    let mut link = Link::log_in(address, tls, "big", PASSWORD, "bench").await?;
    link.write("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq><presence/>").await?;
    let mut seen = 0;
    let end = b"</query></iq>";
    let bytes = loop {
        link.fill().await?;
        // Only what is new: the whole is a megabyte.
        let from = seen.max(end.len()) - end.len();
        if let Some(at) = find(&link.buffer[from..], end) {
            break from + at + end.len();
        }
        seen = link.buffer.len();
    };
    // Its own presence may have come before.
    let is_there = find(&link.buffer[..bytes], b"<presence").is_some();
    link.buffer.drain(..bytes);
    if !is_there {
        link.until("<presence").await?;
    }
    link.close().await?;
    Ok(bytes)
}

/// Round trips of pings to the server while `work` is done, from a thread of their own, and how long that took.
async fn beside(server: &Server, work: impl AsyncFnOnce()) -> Result<(Vec<Duration>, Duration)> {
    let stop = Arc::new(AtomicBool::new(false));
    let (address, until) = (server.direct_tls.clone(), stop.clone());
    let (ready, begin) = std::sync::mpsc::channel();
    let witness = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(witness(&address, &until, ready))
    });
    // Nothing to wait for where the witnesses failed: they say why below.
    let _ = begin.recv();
    let start = Instant::now();
    work().await;
    let time = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    match witness.join() {
        Ok(round_trips) => Ok((round_trips?, time)),
        Err(_) => bail!("the witnesses panicked"),
    }
}

async fn witness(
    address: &str,
    until: &AtomicBool,
    ready: std::sync::mpsc::Sender<()>,
) -> Result<Vec<Duration>> {
    let tls = link::tls_config()?;
    let mut links = Vec::new();
    for n in 0..WITNESSES {
        links.push(Link::log_in(address, &tls, "witness", PASSWORD, &format!("w{n}")).await?);
    }
    ready.send(())?;
    let mut round_trips = Vec::new();
    while !until.load(Ordering::Relaxed) {
        for link in &mut links {
            let start = Instant::now();
            link.write("<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await?;
            link.until("type='result'/>").await?;
            round_trips.push(start.elapsed());
        }
    }
    round_trips.sort();
    Ok(round_trips)
}

/// This thread only gets what no other thread wants, for as long as this lives.
pub struct Modest;

impl Modest {
    pub fn begin() -> Modest {
        schedule(libc::SCHED_IDLE);
        Modest
    }
}

impl Drop for Modest {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER);
    }
}

fn schedule(policy: i32) {
    let plain = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads `plain` and changes nothing but how this thread is scheduled.
    if unsafe { libc::sched_setscheduler(0, policy, &plain) } != 0 {
        println!("the reader competes with the server: {}", std::io::Error::last_os_error());
    }
}

fn late(sorted: &[Duration]) -> usize {
    sorted.len() - sorted.partition_point(|time| *time <= LATE)
}

/// The longest, in milliseconds.
fn worst(sorted: &[Duration]) -> f64 {
    sorted.last().map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// What 99 of 100 stay below, in milliseconds.
fn most(sorted: &[Duration]) -> f64 {
    sorted.get(sorted.len() * 99 / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

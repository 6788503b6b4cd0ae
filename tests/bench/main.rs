//! Measures what a chat message, a login and an idle session cost the server, from the kernel's accounting.
//!
//! `cargo run --release -p tests --bin bench -- [chat|nodes|login|floor|idle|guess|bigroster|soak|storm|extras|history]... [--binary PATH] [--logins N]
//! [--at-once N] [--rounds N] [--cycles N] [--messages N] [--seed N] [--last-stage NAME]` prints one line per figure. Every message
//! is numbered and checked for loss, duplicates and order. `guess` tries to tell from the time of an answer whether
//! an account exists, `soak` lets crowds come and go, `storm` lets one come all at once, `history` reads a
//! large archive, `nodes` compares clusters of one to three
//! nodes; they are only done where they are asked for.

mod bigroster;
mod extras;
mod floor;
mod guess;
mod history;
mod link;
mod nodes;
mod process;
mod scram;
mod soak;
mod storm;

use std::{env, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use tokio::{sync::Semaphore, task::JoinSet};

use link::{Link, find};
use process::Server;
use tests::soak::Stage;

const PASSWORD: &str = "benchmark";
const BASE_PORT: u16 = 15922;

/// Pairs of users that chat at once.
const PAIRS: usize = 20;
/// Messages that each sender sends.
const MESSAGES: usize = 20_000;
/// Messages of a pair that are on their way at most.
const WINDOW: usize = 64;
/// Messages that each sender sends where clusters are compared.
const NODES_MESSAGES: usize = 5_000;
/// Logins before those that are measured; then, where nothing else is asked for, how many are, how many run at once,
/// and how often.
const WARM_UP: usize = 200;
const LOGINS: Load = Load { count: 1_000, at_once: 32, rounds: 5 };
/// Idle sessions, and over how many accounts they spread.
const IDLE: usize = 5_000;
const IDLE_ACCOUNTS: usize = 500;

/// So many of something, so many of them at a time, so often.
#[derive(Clone, Copy)]
struct Load {
    count: usize,
    at_once: usize,
    rounds: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut binary = PathBuf::from("target/release/rookery");
    let mut wanted = Vec::new();
    let mut logins = LOGINS;
    let mut crowd = soak::Crowd::default();
    let mut storm = storm::Storm::default();
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--binary" => binary = args.next().context("`--binary` wants a path")?.into(),
            "--logins" => {
                logins.count = args.next().context("`--logins` wants a number")?.parse()?;
                storm.logins = logins.count;
            }
            "--rounds" => {
                let rounds: usize = args.next().context("`--rounds` wants a number")?.parse()?;
                logins.rounds = rounds.max(1);
                storm.rounds = logins.rounds;
            }
            "--at-once" => {
                logins.at_once = args.next().context("`--at-once` wants a number")?.parse()?;
                storm.at_once = logins.at_once;
            }
            "--cycles" => crowd.cycles = args.next().context("`--cycles` wants a number")?.parse()?,
            "--messages" => crowd.messages = args.next().context("`--messages` wants a number")?.parse()?,
            "--seed" => crowd.seed = args.next().context("`--seed` wants a number")?.parse()?,
            "--last-stage" => {
                let name = args.next().context("`--last-stage` wants a name")?;
                let named = |stage: &&Stage| format!("{stage:?}").eq_ignore_ascii_case(&name);
                crowd.last = *Stage::ALL.iter().find(named).context("`--last-stage` wants a stage")?;
            }
            storm::CROWD => {
                let address = args.next().context("no address")?;
                let mut number = || anyhow::Ok(args.next().context("a number is missing")?.parse()?);
                let (count, at_once) = (number()?, number()?);
                return storm::crowd(&address, storm::Storm { logins: count, at_once, rounds: 1 }).await;
            }
            floor::SERVER => return floor::serve().await,
            "chat" | "nodes" | "login" | "floor" | "idle" | "guess" | "bigroster" | "soak" | "storm"
            | "extras" | "history" => wanted.push(arg),
            _ => bail!(
                "unknown argument `{arg}`: expected `chat`, `nodes`, `login`, `floor`, `idle`, `guess`, `bigroster`, `soak`, `storm`, `extras`, `history`, `--binary PATH`, `--last-stage NAME`, or `--logins`, `--at-once`, `--rounds`, `--cycles`, `--messages`, `--seed` with a number"
            ),
        }
    }
    let all = wanted.is_empty();
    let runs = |name: &str| all || wanted.iter().any(|w| w == name);
    if runs("chat") {
        chat(&Server::start(&binary, BASE_PORT)?).await?;
    }
    if runs("login") {
        // None of them waits for the others to be in time: what it costs is asked, and not who comes when.
        login(&Server::start_with(&binary, BASE_PORT + 10, "login_lag_us = 0")?, logins).await?;
    }
    if runs("floor") {
        floor::run(logins).await?;
    }
    if runs("idle") {
        idle(&Server::start(&binary, BASE_PORT + 20)?).await?;
    }
    // It takes minutes, and measures no cost.
    if wanted.iter().any(|w| w == "guess") {
        guess::guess(&Server::start(&binary, BASE_PORT + 40)?).await?;
    }
    if wanted.iter().any(|w| w == "soak") {
        soak::run(&Server::start_with(&binary, BASE_PORT + 30, soak::LIMITS)?, crowd).await?;
    }
    if runs("bigroster") {
        bigroster::run(&binary, BASE_PORT + 200).await?;
    }
    if wanted.iter().any(|w| w == "nodes") {
        nodes::run(&binary, Load { count: NODES_MESSAGES, rounds: logins.rounds, at_once: 1 }).await?;
    }
    if wanted.iter().any(|w| w == "extras") {
        extras::run(&binary, BASE_PORT + 300, logins).await?;
    }
    if wanted.iter().any(|w| w == "history") {
        history::run(&binary, BASE_PORT + 350, logins).await?;
    }
    // It is about the machine as much as about the server.
    if wanted.iter().any(|w| w == "storm") {
        storm::run(&binary, BASE_PORT + 250, storm).await?;
    }
    Ok(())
}

/// CPU per chat message at saturation: 20 pairs, each with a window of messages in flight.
async fn chat(server: &Server) -> Result<()> {
    let tls = link::tls_config()?;
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        for side in ["a", "b"] {
            server.add_user(&format!("{side}{n}"), PASSWORD)?;
        }
        let mut a = Link::log_in(&server.direct_tls, &tls, &format!("a{n}"), PASSWORD, "bench").await?;
        let mut b = Link::log_in(&server.direct_tls, &tls, &format!("b{n}"), PASSWORD, "bench").await?;
        a.appear().await?;
        b.appear().await?;
        b.buffer.clear();
        pairs.push((a, b));
    }
    let cpu = server.cpu_us()?;
    let start = Instant::now();
    let mut running = JoinSet::new();
    for (n, (a, b)) in pairs.into_iter().enumerate() {
        let window = Arc::new(Semaphore::new(WINDOW));
        running.spawn(send(a, n, MESSAGES, window.clone()));
        running.spawn(receive(b, MESSAGES, window));
    }
    let mut ends = Vec::new();
    while let Some(end) = running.join_next().await {
        // kept open until all have ended, so that no logout is counted
        ends.push(end??);
    }
    let cpu = server.cpu_us()? - cpu;
    let messages = (PAIRS * MESSAGES) as u64;
    println!(
        "chat message, saturated: {:.2} us of server CPU, {:.0} messages/s, {messages} messages, none lost, doubled or out of order",
        cpu as f64 / messages as f64,
        messages as f64 / start.elapsed().as_secs_f64(),
    );
    Ok(())
}

async fn send(mut link: Link, pair: usize, messages: usize, window: Arc<Semaphore>) -> Result<Link> {
    let mut next = 0;
    while next < messages {
        let mut permits = 1;
        window.acquire().await?.forget();
        while permits < 16 && next + permits < messages && window.try_acquire().map(|p| p.forget()).is_ok() {
            permits += 1;
        }
        let mut text = String::new();
        for n in next..next + permits {
            text.push_str(&format!(
                "<message to='b{pair}@localhost/bench' type='chat' id='c{n:08}'><body>{n} A message of \
                 usual length, as people write them to each other all day long.</body><active \
                 xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/></message>"
            ));
        }
        link.write(&text).await?;
        next += permits;
    }
    Ok(link)
}

async fn receive(mut link: Link, messages: usize, window: Arc<Semaphore>) -> Result<Link> {
    let mut expected = 0;
    while expected < messages {
        link.fill().await?;
        let mut done = 0;
        let seen = expected;
        while let Some(end) = find(&link.buffer[done..], b"</message>") {
            let stanza = &link.buffer[done..done + end];
            let body = find(stanza, b"<body>").context("a message without a body")? + 6;
            let text = std::str::from_utf8(&stanza[body..])?;
            let number: usize = text.split(' ').next().context("no number")?.parse()?;
            if number != expected {
                bail!("expected message {expected}, heard {number}");
            }
            expected += 1;
            done += end + "</message>".len();
        }
        link.buffer.drain(..done);
        window.add_permits(expected - seen);
    }
    Ok(link)
}

/// The median of the figures, and the least.
fn middle(figures: &mut [f64]) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    (figures[figures.len() / 2], figures[0])
}

/// CPU per TLS handshake, per login (TLS 1.3 handshake without resumption, SCRAM-SHA-1, bind, roster, presence)
/// and per logout, each account once a round.
async fn login(server: &Server, load: Load) -> Result<()> {
    let tls = link::tls_config()?;
    let Load { count, at_once, rounds } = load;
    for n in 0..WARM_UP + count {
        server.add_user(&format!("l{n}"), PASSWORD)?;
    }
    let warm = log_in(server, &tls, 0..WARM_UP, at_once).await?;
    let each = |cpu: u64| cpu as f64 / count as f64;
    let (mut logins, mut handshakes, mut beyond, mut logouts) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let cpu = server.cpu_us()?;
        shake_hands(server, &tls, load).await?;
        let handshake_cpu = server.cpu_us()? - cpu;
        let cpu = server.cpu_us()?;
        let links = log_in(server, &tls, WARM_UP..WARM_UP + count, at_once).await?;
        let in_cpu = server.cpu_us()? - cpu;
        let cpu = server.cpu_us()?;
        for mut link in links {
            link.write("</stream:stream>").await?;
            link.until("</stream:stream>").await?;
        }
        logouts.push(each(server.cpu_us()? - cpu));
        logins.push(each(in_cpu));
        handshakes.push(each(handshake_cpu));
        beyond.push(each(in_cpu.saturating_sub(handshake_cpu)));
    }
    drop(warm);
    let [login, handshake, beyond, logout] =
        [logins, handshakes, beyond, logouts].map(|mut figures| middle(&mut figures));
    println!(
        "login: {:.0} us of server CPU (least {:.0}), of it {:.0} (least {:.0}) for a connection with its TLS \
         handshake and {:.0} (least {:.0}) beyond it; logout: {:.0} (least {:.0}); median of {rounds} rounds of {count}, \
         {at_once} at a time",
        login.0, login.1, handshake.0, handshake.1, beyond.0, beyond.1, logout.0, logout.1,
    );
    Ok(())
}

/// Connections that end behind their handshake.
async fn shake_hands(server: &Server, tls: &Arc<rustls::ClientConfig>, load: Load) -> Result<()> {
    let mut running = JoinSet::new();
    for lane in 0..load.at_once {
        let (address, tls) = (server.direct_tls.clone(), tls.clone());
        running.spawn(async move {
            for _ in (lane..load.count).step_by(load.at_once) {
                Link::connect(&address, &tls).await?.close().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(end) = running.join_next().await {
        end??;
    }
    Ok(())
}

async fn log_in(
    server: &Server,
    tls: &Arc<rustls::ClientConfig>,
    numbers: std::ops::Range<usize>,
    at_once: usize,
) -> Result<Vec<Link>> {
    let mut running = JoinSet::new();
    let first = numbers.start;
    for lane in 0..at_once {
        let (address, tls) = (server.direct_tls.clone(), tls.clone());
        let mine: Vec<usize> = numbers.clone().filter(|n| (n - first) % at_once == lane).collect();
        running.spawn(async move {
            let mut links = Vec::new();
            for n in mine {
                let mut link = Link::log_in(&address, &tls, &format!("l{n}"), PASSWORD, "bench").await?;
                link.appear().await?;
                links.push(link);
            }
            anyhow::Ok(links)
        });
    }
    let mut links = Vec::new();
    while let Some(more) = running.join_next().await {
        links.append(&mut more??);
    }
    Ok(links)
}

/// Memory per idle session over TLS: proportional set size with and without the sessions.
async fn idle(server: &Server) -> Result<()> {
    let tls = link::tls_config()?;
    for n in 0..IDLE_ACCOUNTS {
        server.add_user(&format!("i{n}"), PASSWORD)?;
    }
    // the first sessions pay for what the server makes once
    let mut links = open(server, &tls, 0..IDLE_ACCOUNTS).await?;
    let before = server.pss_kib()?;
    links.append(&mut open(server, &tls, IDLE_ACCOUNTS..IDLE_ACCOUNTS + IDLE).await?);
    let after = server.pss_kib()?;
    println!(
        "idle session over TLS: {:.1} KiB (PSS {before} KiB with {IDLE_ACCOUNTS} sessions, {after} KiB with {})",
        (after - before) as f64 / IDLE as f64,
        links.len(),
    );
    Ok(())
}

async fn open(
    server: &Server,
    tls: &Arc<rustls::ClientConfig>,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<Link>> {
    let mut running = JoinSet::new();
    let turn = Arc::new(Semaphore::new(32));
    for n in numbers {
        let (address, tls, turn) = (server.direct_tls.clone(), tls.clone(), turn.clone());
        running.spawn(async move {
            let _turn = turn.acquire_owned().await?;
            let user = format!("i{}", n % IDLE_ACCOUNTS);
            let mut link = Link::log_in(&address, &tls, &user, PASSWORD, &format!("r{n}")).await?;
            link.appear().await?;
            link.buffer = Vec::new();
            anyhow::Ok(link)
        });
    }
    let mut links = Vec::new();
    while let Some(link) = running.join_next().await {
        links.push(link??);
    }
    Ok(links)
}

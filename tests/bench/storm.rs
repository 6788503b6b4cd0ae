//! What a storm of logins, as after the loss of another frontend, costs the sessions that are there.

use std::{
    future::pending,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, pki_types::ServerName};
use store::{
    Accounts, Credentials, Store,
    engines::sled::{Config, Sled},
};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};
use tokio_rustls::{Connect, TlsConnector};

use crate::{
    PASSWORD,
    bigroster::Modest,
    link::{self, Link, find},
    process::Server,
    scram,
};

/// Pairs that chat all the time, and how often one of them says something.
const PAIRS: usize = 8;
const PACE: Duration = Duration::from_millis(25);
/// How long the quiet before is measured.
const QUIET: Duration = Duration::from_secs(10);
/// The argument by which this program is the crowd, and what it says then.
pub const CROWD: &str = "storm-crowd";
const BEGIN: &str = "begin";
const ALL_IN: &str = "all are in";
/// A client pays for these, and not the server.
const ITERATIONS: u32 = 64;
/// Accounts that are made at a time.
const MADE_AT_ONCE: usize = 64;

/// How many log in, how many of them begin at the same moment, and how often all of it is measured.
#[derive(Clone, Copy)]
pub struct Storm {
    pub logins: usize,
    pub at_once: usize,
    pub rounds: usize,
}

impl Default for Storm {
    fn default() -> Storm {
        Storm { logins: 2_000, at_once: 500, rounds: 1 }
    }
}

/// Measures on servers of its own, with the admission of logins on and off in turn.
pub async fn run(binary: &Path, base_port: u16, storm: Storm) -> Result<()> {
    for round in 0..storm.rounds {
        for (nth, (name, limits)) in [("on", ""), ("off", "login_lag_us = 0\n")].into_iter().enumerate() {
            let port = base_port + 20 * round as u16 + 10 * nth as u16;
            measure(binary, port, storm, name, limits).await?;
        }
    }
    Ok(())
}

async fn measure(binary: &Path, port: u16, storm: Storm, name: &str, limits: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fill(&folder.path().join("data").join("store"), storm.logins).await?;
    let server = Server::start_over(folder, binary, port, limits)?;
    let chat = Chat::begin(&server.direct_tls)?;
    let quiet = Instant::now();
    drop(timeout(QUIET, pending::<()>()).await);
    let quiet = (quiet, Instant::now());
    let cpu = server.cpu_us()?;
    // Kept until the chat has ended: it is not measured what it costs when all of them leave.
    let (_crowd, stormed) = Crowd::log_in(&server.direct_tls, storm)?;
    let cpu = server.cpu_us()? - cpu;
    let times = chat.end()?;
    let within = |(from, to): Span| {
        let mut times: Vec<Duration> =
            times.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, time)| *time).collect();
        times.sort();
        times
    };
    let (before, beside) = (within(quiet), within(stormed));
    let took = (stormed.1 - stormed.0).as_secs_f64();
    println!(
        "storm of {} logins, {} at once, admission {name}: all are in after {took:.1} s ({:.0}/s, {:.0} us of server CPU \
         each); a chat message beside it takes {:.2} ms at 99 % ({:.2} ms at 50 %, at most {:.1} ms, {} messages), before it \
         {:.2} ms ({:.2} ms, {:.1} ms, {}): {:.1} times",
        storm.logins,
        storm.at_once,
        storm.logins as f64 / took,
        cpu as f64 / storm.logins as f64,
        share(&beside, 99),
        share(&beside, 50),
        share(&beside, 100),
        beside.len(),
        share(&before, 99),
        share(&before, 50),
        share(&before, 100),
        before.len(),
        share(&beside, 99) / share(&before, 99),
    );
    Ok(())
}

/// What so many of 100 stay below, in milliseconds.
fn share(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Puts the accounts into the store before the server opens it.
async fn fill(path: &Path, logins: usize) -> Result<()> {
    let config = Config::new(path);
    let sled = Arc::new(tokio::task::spawn_blocking(move || Sled::open(&config)).await??);
    let accounts = Accounts::new(Store::new(sled.clone()));
    // The one mechanism that is spoken here is SCRAM-SHA-1.
    let keys = scram::keys(PASSWORD, ITERATIONS)?;
    let (sha1, sha256, sha512) = (keys.clone(), keys.clone(), keys);
    let credentials = Credentials::new(sha1, sha256, sha512);
    let chatting = (0..PAIRS).flat_map(|n| [format!("a{n}@localhost"), format!("b{n}@localhost")]);
    let names: Vec<String> = chatting.chain((0..logins).map(|n| format!("s{n}@localhost"))).collect();
    for names in names.chunks(MADE_AT_ONCE) {
        futures::future::try_join_all(names.iter().map(|name| accounts.create(name, &credentials))).await?;
    }
    drop(accounts);
    let sled = Arc::into_inner(sled).context("the store is in use")?;
    Ok(tokio::task::spawn_blocking(move || sled.close()).await?)
}

type Times = Vec<(Instant, Duration)>;

/// The pairs that chat, on a thread of their own.
struct Chat {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Times>>,
}

impl Chat {
    fn begin(address: &str) -> Result<Chat> {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, address) = (stop.clone(), address.to_owned());
        let (ready, begun) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(chat(&address, &until, ready))
        });
        // Nothing to wait for where the chat failed: its end says why.
        let _ = begun.recv();
        Ok(Chat { stop, thread })
    }

    /// When each message was sent, and how long it took until it was there.
    fn end(self) -> Result<Times> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("the chat panicked"))
    }
}

async fn chat(address: &str, stop: &AtomicBool, ready: mpsc::Sender<()>) -> Result<Times> {
    let tls = link::tls_config()?;
    let start = Instant::now();
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        let mut a = Link::log_in(address, &tls, &format!("a{n}"), PASSWORD, "bench").await?;
        let mut b = Link::log_in(address, &tls, &format!("b{n}"), PASSWORD, "bench").await?;
        a.appear().await?;
        b.appear().await?;
        b.buffer.clear();
        pairs.push((a, b));
    }
    let first = tokio::time::Instant::now();
    ready.send(())?;
    let talks = pairs.into_iter().enumerate().map(|(n, (mut a, mut b))| async move {
        let begin = first + PACE * n as u32 / PAIRS as u32;
        let mut times: Times = Vec::new();
        let mut sent = 0;
        let say = async {
            let mut due = tokio::time::interval_at(begin, PACE);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stop.load(Ordering::Relaxed) {
                due.tick().await;
                let at = start.elapsed().as_nanos();
                a.write(&format!(
                    "<message to='b{n}@localhost/bench' type='chat' id='c{sent}'><body>{at}</body></message>"
                ))
                .await?;
                sent += 1;
            }
            a.write(&format!("<message to='b{n}@localhost/bench' type='chat'><body>end</body></message>"))
                .await
        };
        let hear = async {
            loop {
                let heard = b.until("</body>").await?;
                let body = find(heard.as_bytes(), b"<body>").context("a message without a body")? + 6;
                let text = heard[body..].trim_end_matches("</body>");
                if text == "end" {
                    return anyhow::Ok(());
                }
                let at = Duration::from_nanos(text.parse()?);
                times.push((start + at, start.elapsed().saturating_sub(at)));
            }
        };
        tokio::try_join!(say, hear)?;
        if times.len() != sent {
            bail!("{sent} messages were sent, and {} came", times.len());
        }
        Ok(times)
    });
    let all = futures::future::try_join_all(talks).await?;
    Ok(all.into_iter().flatten().collect())
}

/// From when to when.
type Span = (Instant, Instant);

/// The crowd, in a process of its own: it lives on what nobody else wants of the cores, and must hold nothing meanwhile
/// for which those who chat would wait.
struct Crowd(Child);

impl Crowd {
    /// All log in, as soon as they can, and stay; from when to when.
    fn log_in(address: &str, storm: Storm) -> Result<(Crowd, Span)> {
        let numbers = [storm.logins.to_string(), storm.at_once.to_string()];
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(CROWD).arg(address).args(numbers).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut crowd = Crowd(command.spawn().context("failed to start the crowd")?);
        let said = crowd.0.stdout.take().context("the crowd has no output")?;
        let mut lines = BufReader::new(said).lines();
        let mut hear = |what: &str| {
            let line = lines.next().context("the crowd has ended")??;
            if line != what {
                bail!("expected `{what}` from the crowd, heard `{line}`");
            }
            Ok(Instant::now())
        };
        let span = (hear(BEGIN)?, hear(ALL_IN)?);
        Ok((crowd, span))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // One that is gone already leaves nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The crowd itself; it stays until it is killed, or whoever started it is gone.
pub async fn crowd(address: &str, storm: Storm) -> Result<()> {
    // The crowd must not take the cores from the server and from those who chat: it has machines of its own elsewhere.
    let modest = Modest::begin();
    let tls = link::tls_config()?;
    let mut hellos = Vec::new();
    for _ in 0..storm.at_once.min(storm.logins) {
        hellos.push(hello(address, &tls).await?);
    }
    let (next, links) = (Arc::new(AtomicUsize::new(hellos.len())), Arc::new(Mutex::new(Vec::new())));
    let mut lanes = JoinSet::new();
    // At full speed, for that moment, or the first of them would be served before the last have come.
    drop(modest);
    println!("{BEGIN}");
    for (n, hello) in hellos.into_iter().enumerate() {
        let (address, tls, next, links) = (address.to_owned(), tls.clone(), next.clone(), links.clone());
        lanes.spawn(async move {
            let (mut n, mut hello) = (n, hello);
            loop {
                let mut link = Link { tls: hello.await?, buffer: Vec::new() };
                link.authenticate(&format!("s{n}"), PASSWORD, "bench").await?;
                link.appear().await?;
                if let Ok(mut links) = links.lock() {
                    links.push(link);
                }
                n = next.fetch_add(1, Ordering::Relaxed);
                if n >= storm.logins {
                    return anyhow::Ok(());
                }
                hello = self::hello(&address, &tls).await?;
            }
        });
    }
    // All of them have said their first word when this thread is at its turn again.
    tokio::task::yield_now().await;
    let _modest = Modest::begin();
    while let Some(end) = lanes.join_next().await {
        end??;
    }
    println!("{ALL_IN}");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// A connection whose first flight is made and waits to be written.
async fn hello(address: &str, tls: &Arc<ClientConfig>) -> Result<Connect<TcpStream>> {
    let tcp =
        TcpStream::connect(address).await.with_context(|| format!("failed to connect to `{address}`"))?;
    tcp.set_nodelay(true)?;
    Ok(TlsConnector::from(tls.clone()).connect(ServerName::try_from("localhost")?, tcp))
}

//! Rows 39, 41, 44 and 45: too slow, or too fast for those who must read it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{
    client::PATIENCE,
    slow_reader::{self, Ends},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};

use crate::{
    door::Door,
    metric::{Metric, ended, stream_errors},
    raw::{Raw, Way},
};

/// Input: spaces without end between stanzas.
///
/// Outcome: they are read at the rate that a client may send at, memory stays flat, and the session lives.
#[tokio::test]
async fn row_039_endless_spaces_are_read_slowly() -> Result<()> {
    const BYTES: usize = 2 << 20;
    const RATE: usize = 512 << 10;
    let settings = [
        ("limits.limit_loopback", "true"),
        ("limits.session_bytes_per_second", "524288"),
        ("limits.session_bytes_burst", "16384"),
    ];
    let door = Door::with(&settings).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.session(Way::Direct, &alice).await?;
        let (memory, start) = (door.memory()?, Instant::now());
        raw.pour((0..BYTES / 16_384).map(|_| [b' '; 16_384])).await;
        raw.works_and_heard_nothing().await?;
        let least = Duration::from_secs_f64((BYTES - 16_384) as f64 / RATE as f64);
        ensure!(start.elapsed() >= least.mul_f64(0.9), "read in {:?}, not in {least:?}", start.elapsed());
        let grown = door.memory()?.saturating_sub(memory);
        ensure!(grown < 1 << 20, "memory grew by {grown} bytes for {BYTES} bytes of spaces");
        Ok(())
    };
    door.row([Metric::named("rookery_reads_slowed_total").times(10)], deeds).await
}

/// Input: a client that stalls: before its first byte, in its header (a byte now and then), in the TLS
/// handshake, before it logs in, in a stanza.
///
/// Outcome: the connection is closed when the time of that stage is over, with `connection-timeout` where there
/// is a stream.
#[tokio::test]
async fn row_041_each_stage_has_its_time() -> Result<()> {
    let settings = [
        ("limits.first_byte_timeout_s", "1"),
        ("limits.header_timeout_s", "2"),
        ("limits.tls_handshake_timeout_s", "1"),
        ("limits.login_timeout_s", "3"),
        ("limits.stanza_timeout_s", "1"),
    ];
    let door = Door::with(&settings).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let silent = async {
            let mut raw = door.connect(Way::Plain).await?;
            let heard = raw.until_closed().await?;
            ensure!(heard.is_empty(), "{}", String::from_utf8_lossy(&heard));
            Ok(())
        };
        let dripping = async {
            let mut raw = door.connect(Way::Plain).await?;
            let mut drip = interval(Duration::from_millis(100));
            // For longer than the time of the first byte, and for less than it may linger behind its end.
            for byte in raw.header().into_bytes().into_iter().take(20) {
                drip.tick().await;
                // On a slow machine it may be over already.
                raw.pour([[byte]]).await;
            }
            raw.stream_error("connection-timeout").await.map(drop)
        };
        let in_tls = async {
            let mut socket = TcpStream::connect(door.addresses().direct).await?;
            socket.write_all(b"\x16\x03\x01").await?;
            let mut heard = Vec::new();
            timeout(PATIENCE, socket.read_to_end(&mut heard)).await.context("it stays open")??;
            ensure!(heard.is_empty(), "{heard:?}");
            let mut raw = door.stream(Way::Plain).await?;
            raw.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
            ensure!(raw.next().await?.name == "proceed", "TLS is not offered");
            let heard = raw.until_closed().await?;
            ensure!(heard.is_empty(), "{heard:?}");
            Ok(())
        };
        let no_login = async {
            for way in Way::ALL {
                door.stream(way).await?.stream_error("connection-timeout").await?;
            }
            anyhow::Ok(())
        };
        let in_stanza = async {
            let mut raw = door.session(Way::Direct, &alice).await?;
            raw.say("<message to='localhost'>").await?;
            raw.stream_error("connection-timeout").await.map(drop)
        };
        tokio::try_join!(silent, dripping, in_tls, no_login, in_stanza).map(drop)
    };
    let late = [stream_errors("connection-timeout").times(5), ended("silent"), ended("no-tls").times(2)];
    door.row(late, deeds).await
}

/// How long nine of ten pings take at most: the machine may be busy with other tests.
async fn slow_ping(raw: &mut Raw) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        raw.works_and_heard_nothing().await?;
        took.push(start.elapsed());
    }
    took.sort();
    Ok(took[45])
}

/// Input: a flood of stanzas, at once, far above what a client may send in a second.
///
/// Outcome: it is read at that rate, nothing of it is lost, nobody is disconnected; others are answered as ever.
#[tokio::test]
async fn row_044_a_flood_is_slowed_and_others_notice_nothing() -> Result<()> {
    const FLOOD: usize = 1_000;
    let settings = [
        ("limits.limit_loopback", "true"),
        ("limits.session_stanzas_per_second", "250"),
        ("limits.session_stanzas_burst", "100"),
        ("limits.session_rates_exempt", "[\"nobody@localhost\"]"),
    ];
    let door = Door::with(&settings).await?;
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut flooding = door.session(Way::Direct, &alice).await?;
        let mut other = door.session(Way::Direct, &bob).await?;
        let quiet = slow_ping(&mut other).await?;
        let to = flooding.jid();
        let flood: String = (0..FLOOD)
            .map(|n| format!("<message to='{to}' id='f{n}'><body>flood</body></message>"))
            .collect();
        let start = Instant::now();
        let flood = async {
            flooding.say(&flood).await?;
            for n in 0..FLOOD {
                let heard = flooding.next().await?;
                let id = format!("f{n}");
                ensure!(heard.attr("id") == Some(&id), "not `{id}`: {}", heard.pretty().join("\n"));
            }
            flooding.works_and_heard_nothing().await
        };
        let meanwhile = async { slow_ping(&mut other).await };
        let (flooded, busy) = tokio::join!(flood, meanwhile);
        flooded?;
        let busy = busy?;
        ensure!(busy < quiet * 3 + Duration::from_millis(100), "a ping took {busy:?}, and {quiet:?} before");
        let least = Duration::from_secs_f64((FLOOD - 100) as f64 / 250.0);
        ensure!(start.elapsed() >= least.mul_f64(0.9), "read in {:?}, not in {least:?}", start.elapsed());
        Ok(())
    };
    door.row([Metric::named("rookery_reads_slowed_total")], deeds).await
}

/// Input: 20,000 messages to a client that does not read.
///
/// Outcome: what waits for it is bounded; at the bound its session ends, and each message is delivered, kept for
/// later or sent back. The sender notices nothing.
#[tokio::test]
async fn row_045_who_does_not_read_is_let_go_and_nothing_is_lost() -> Result<()> {
    const MESSAGES: usize = 20_000;
    let door = Door::with(&[]).await?;
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let memory = door.memory()?;
        let Ends { delivered, kept, bounced, twice } =
            slow_reader::run(door.addresses(), &alice, &bob, MESSAGES).await?;
        ensure!(
            delivered + kept + bounced - twice == MESSAGES,
            "{delivered} delivered, {kept} kept, {bounced} sent back, {twice} of them twice: not {MESSAGES}"
        );
        ensure!(kept > 0 && bounced > 0 && delivered > 0, "{delivered} {kept} {bounced}");
        let grown = door.memory()?.saturating_sub(memory);
        ensure!(grown < 48 << 20, "memory grew by {grown} bytes");
        Ok(())
    };
    door.row([ended("overflowed")], deeds).await
}

//! Rows 42, 43, 79 and 131: crowds at the door, guessers, and who speaks for whom.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use tests::{
    client::{Client, PATIENCE},
    soak::{Soak, Stage},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, interval},
};

use crate::{
    door::{Door, HOST},
    metric::{Metric, ended, login_failures, stream_errors},
    raw::Raw,
};

/// A socket to the port for STARTTLS, from one of the loopback addresses.
async fn from(door: &Door, last: u8) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    Ok(socket.connect(door.addresses().c2s).await?)
}

/// Whatever a client from there sends and hears.
async fn raw_from(door: &Door, last: u8) -> Result<Raw> {
    Ok(Raw::over(Client::over(from(door, last).await?, HOST), HOST))
}

/// Input: 3,000 clients from many addresses, 32 at a time, that vanish at every stage of a login.
///
/// Outcome: no connection, session or memory stays behind. (200,000 of them: `docs/performance.md`.)
#[tokio::test]
async fn row_042_a_crowd_that_vanishes_leaves_nothing_behind() -> Result<()> {
    const CYCLES: usize = 3_000;
    let at_any_pace = [("limits.accepts_per_second", "100000"), ("limits.login_lag_us", "0")];
    let door = Door::with(&[&[("limits.limit_loopback", "true")][..], &at_any_pace].concat()).await?;
    let deeds = async |door: &Door| {
        let people = vec![door.person("alice").await?, door.person("bob").await?];
        let last = Stage::Online;
        let soak = |seed| Soak { door: door.addresses(), people: people.clone(), seed, last, at_once: 32 };
        // What all share is made by the first ones.
        soak(1).run(CYCLES / 3).await?;
        alone(door).await?;
        let before = door.memory()?;
        let counts = soak(2).run(CYCLES).await?;
        ensure!(counts.values().sum::<usize>() == CYCLES && counts.len() == Stage::ALL.len(), "{counts:?}");
        alone(door).await?;
        let grown = door.memory()?.saturating_sub(before);
        ensure!(grown < 12 << 20, "memory grew by {grown} bytes");
        Ok(())
    };
    door.row([Metric::named("rookery_connections_accepted_total").times(CYCLES)], deeds).await
}

/// Waits until nobody is connected but the bystander.
async fn alone(door: &Door) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut look = interval(Duration::from_millis(50));
    loop {
        look.tick().await;
        let page = door.metrics().await?;
        let open =
            ["rookery_connections", "rookery_sessions", "rookery_cluster_sessions"].map(|name| page[name]);
        let waiting =
            ["rookery_connections_unauthenticated", "rookery_mailbox_stanzas"].map(|name| page[name]);
        if open == [1.0; 3] && waiting == [0.0; 2] {
            return Ok(());
        }
        ensure!(Instant::now() < end, "left behind: {open:?} {waiting:?}");
    }
}

/// Input: more sockets from one address than it may have, and more new ones in a second.
///
/// Outcome: they are closed at once, without a word of XMPP; other addresses are served.
#[tokio::test]
async fn row_043_an_address_that_takes_too_much_is_refused() -> Result<()> {
    let settings = [
        ("limits.limit_loopback", "true"),
        ("limits.connections_per_address", "5"),
        ("limits.accepts_per_address_per_second", "20"),
    ];
    let door = Door::with(&settings).await?;
    let deeds = async |door: &Door| {
        let mut open = Vec::new();
        for _ in 0..5 {
            let mut raw = raw_from(door, 2).await?;
            raw.begin_stream().await?;
            open.push(raw);
        }
        for _ in 0..5 {
            ensure!(raw_from(door, 2).await?.until_closed().await?.is_empty(), "a word to who is refused");
        }
        raw_from(door, 3).await?.begin_stream().await?;
        open[0].say("</stream:stream>").await?;
        open[0].closed().await?;

        // Some come and go too fast.
        let mut refused = 0;
        for _ in 0..40 {
            let mut raw = raw_from(door, 4).await?;
            // Of who is refused nothing is taken.
            raw.pour([raw.header(), "</stream:stream>".to_owned()]).await;
            if raw.until_closed().await?.is_empty() {
                refused += 1;
            }
        }
        ensure!(refused > 0, "nobody came too fast");
        raw_from(door, 5).await?.begin_stream().await.map(drop)
    };
    let refused = |bound| Metric::named(&format!("rookery_connections_refused_total{{bound=\"{bound}\"}}"));
    let counted = [refused("connections-per-address").times(5), refused("accepts-per-address")];
    door.row(counted, deeds).await
}

/// Input: four wrong passwords on one stream; then the right one, from another address and from this one.
///
/// Outcome: the fourth ends the stream with `policy-violation`. Another address is let in at once, this one
/// when the delay for its failures is over; the account is never locked.
#[tokio::test]
async fn row_079_the_fourth_failure_ends_the_stream_and_locks_nobody_out() -> Result<()> {
    let settings = [
        ("limits.limit_loopback", "true"),
        ("limits.auth_delay_ms", "100"),
        ("limits.auth_delay_max_ms", "2000"),
    ];
    let door = Door::with(&settings).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let inside = async |last| {
            let mut raw = raw_from(door, last).await?;
            raw.begin_stream().await?;
            raw.start_tls().await?;
            raw.begin_stream().await?;
            anyhow::Ok(raw)
        };
        let mut guesser = inside(2).await?;
        let start = Instant::now();
        for _ in 0..4 {
            let refused = guesser.try_authenticate(&alice.user, "wrong", "PLAIN").await?;
            ensure!(refused == Err("not-authorized".to_owned()), "{refused:?}");
        }
        guesser.stream_error("policy-violation").await?;
        // 100, 200, 400 and 800 ms.
        ensure!(start.elapsed() >= Duration::from_millis(1_500), "told after {:?}", start.elapsed());

        let delays = door.metrics().await?["rookery_login_delays_total"];
        inside(3).await?.authenticate(&alice.user, &alice.password, "PLAIN").await?;
        ensure!(door.metrics().await?["rookery_login_delays_total"] == delays, "she had to wait");
        inside(2).await?.authenticate(&alice.user, &alice.password, "PLAIN").await
    };
    door.row([login_failures().times(4), stream_errors("policy-violation")], deeds).await
}

/// Input: a PROXY header from somebody who is no proxy, and a proxy's connection without one.
///
/// Outcome: both are closed, and nothing but the error of a stream is said; with its header the proxy is served.
#[tokio::test]
async fn row_131_only_proxies_speak_for_others() -> Result<()> {
    let door =
        Door::with(&[("c2s.proxy_from", "[\"127.0.0.2\"]"), ("limits.connections_per_address", "1")]).await?;
    let one = "PROXY TCP4 192.0.2.7 198.51.100.1 12345 5222\r\n";
    let two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\xc6\x33\x64\x01\x30\x39\x14\x66";
    let deeds = async |door: &Door| {
        for header in [one.as_bytes(), two] {
            let mut stranger = raw_from(door, 3).await?;
            stranger.say(header).await?;
            stranger.stream_error("not-well-formed").await?;
        }
        let mut proxy = raw_from(door, 2).await?;
        proxy.say(proxy.header()).await?;
        ensure!(proxy.until_closed().await?.is_empty(), "a proxy without its header is served");
        let mut open = Vec::new();
        for header in [one.as_bytes(), two] {
            let mut client = raw_from(door, 2).await?;
            client.say(header).await?;
            client.begin_stream().await?;
            open.push(client);
        }
        // They are two addresses, each with all that it may have.
        let mut third = raw_from(door, 2).await?;
        third.say(one).await?;
        ensure!(third.until_closed().await?.is_empty(), "a second connection of one client is served");
        Ok(())
    };
    let refused = Metric::named("rookery_connections_refused_total{bound=\"connections-per-address\"}");
    let counted = [
        stream_errors("not-well-formed").times(2),
        Metric::named("rookery_proxy_failures_total"),
        ended("no-proxy-header"),
        refused,
    ];
    door.row(counted, deeds).await
}

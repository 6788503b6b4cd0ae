//! Logins: connection, TLS, SASL, bind, roster, presence; then the end of all those sessions.

use std::time::Instant;

use anyhow::Result;

use super::stage::Stage;
use crate::{
    crowd,
    flow::Tally,
    latency::Latency,
    link::Link,
    meter::{Meter, Spent},
    progress::Progress,
    report::Report,
};

/// Logins and logouts, each account once a round.
#[derive(Clone, Debug, clap::Args)]
pub struct Login {
    /// Logins a round
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Rounds, each with a report; before them one that is not measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Runs it.
///
/// # Errors
/// Where accounts cannot be made.
pub async fn run(stage: &mut Stage, login: &Login) -> Result<()> {
    stage.make(0..login.count).await?;
    // In the first round salted passwords are made: they take more than the logins.
    round(stage, login, None).await?;
    for number in 1..=login.rounds {
        let report = round(stage, login, Some(number)).await?;
        stage.reports.say(report)?;
    }
    Ok(())
}

async fn round(stage: &Stage, login: &Login, number: Option<usize>) -> Result<Report> {
    let count = login.count as u64;
    let mut tally = Tally { expected: count, ..Tally::default() };
    let handshakes = handshakes(stage, login.count, &mut tally).await?;
    let meter = Meter::start(&stage.watched)?;
    let (links, latency) = logins(stage, login.count, &mut tally).await?;
    let logins = meter.stop()?;
    tally.heard = links.len() as u64;
    tally.lost = count - tally.heard;
    let meter = Meter::start(&stage.watched)?;
    tally.fail(stage.close(links).await.err());
    let logouts = meter.stop()?;
    let beyond = logins.server_each(count).zip(handshakes.server_each(count)).map(|(all, part)| all - part);
    let title = match number {
        Some(number) => format!("login: round {number}, {} at a time", stage.at_once),
        None => "login: warm-up".to_owned(),
    };
    Ok(Report::new("login", title)
        .row("at_once", "at a time", stage.at_once)
        .row("per_second", "logins a second", tally.heard as f64 / logins.wall.as_secs_f64())
        .row("cpu_us", "server CPU per login, us", logins.server_each(count))
        .row("handshake_cpu_us", "of it a connection with its handshake, us", handshakes.server_each(count))
        .row("beyond_handshake_cpu_us", "and beyond that, us", beyond)
        .row("logout_cpu_us", "server CPU per logout, us", logouts.server_each(count))
        .row("generator_cpu_us", "generator CPU per login, us", logins.own_each(count))
        .latency("latency_us", "login", &latency)
        .tally("logins", &tally))
}

/// Connections that end behind their handshake, where TLS begins at once.
async fn handshakes(stage: &Stage, count: usize, tally: &mut Tally) -> Result<Spent> {
    let progress = Progress::begin("handshakes", count as u64);
    let meter = Meter::start(&stage.watched)?;
    let done = crowd::each(0..count, stage.at_once, |_| {
        let (target, counter) = (stage.target.clone(), progress.counter());
        async move {
            target.connect().await?.hang_up().await?;
            counter.add(1);
            Ok(())
        }
    });
    tally.fail(done.await.err());
    meter.stop()
}

async fn logins(stage: &Stage, count: usize, tally: &mut Tally) -> Result<(Vec<Link>, Latency)> {
    let progress = Progress::begin("logins", count as u64);
    let accounts = (0..count).map(|number| stage.accounts.account(number)).collect::<Result<Vec<_>>>()?;
    let ends = crowd::each(accounts, stage.at_once, |account| {
        let (target, counter) = (stage.target.clone(), progress.counter());
        async move {
            let begin = Instant::now();
            let end = target.appear(&account, "bench").await;
            counter.add(1);
            // One that fails is counted, and the others go on.
            Ok(end.map(|link| (link, begin.elapsed())))
        }
    });
    let (mut links, mut latency) = (Vec::new(), Latency::default());
    for end in ends.await? {
        match end {
            Ok((link, took)) => {
                latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
                links.push(link);
            }
            Err(error) => tally.fail(Some(error)),
        }
    }
    Ok((links, latency))
}

//! Sessions that come and go at a rate.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{sync::Semaphore, task::JoinSet};

use super::stage::Stage;
use crate::{
    flow::Tally,
    latency::{Clock, Latency},
    meter::Meter,
    pacer::Pacer,
    progress::Progress,
    report::Report,
};

/// Logins and logouts at a rate.
#[derive(Clone, Debug, clap::Args)]
pub struct Churn {
    /// Sessions that come in a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds that each stays
    #[arg(long, default_value_t = 0.0)]
    stay_s: f64,
    /// Accounts that they share
    #[arg(long, default_value_t = 200)]
    pool: usize,
    /// Sessions that are coming, there or going at most; further ones wait, and their time runs
    #[arg(long, default_value_t = 2000)]
    under_way: usize,
}

/// Runs it.
///
/// # Errors
/// Where accounts cannot be made.
pub async fn run(stage: &mut Stage, churn: &Churn) -> Result<()> {
    let accounts = churn.pool.max(1);
    stage.make(0..accounts).await?;
    // Salted passwords are made before.
    let warm = stage.open(0..accounts).await?;
    stage.close(warm).await?;
    let (rate, count) = (churn.rate.max(0.001), (churn.rate * churn.seconds).max(1.0) as u64);
    let (stay, progress) =
        (Duration::from_secs_f64(churn.stay_s.max(0.0)), Progress::begin("sessions", count));
    let (mut pacer, clock) = (Pacer::new().context("failed to make a timer")?, Clock::start());
    let (turns, mut running) = (Arc::new(Semaphore::new(churn.under_way.max(1))), JoinSet::new());
    let (mut tally, mut latency) = (Tally { expected: count, ..Tally::default() }, Latency::default());
    let meter = Meter::start(&stage.watched)?;
    for number in 0..count {
        let due = (number as f64 * 1e9 / rate) as u64;
        pacer.until(clock.at(due)).await.context("failed to wait")?;
        let turn = turns.clone().acquire_owned().await?;
        let account = stage.accounts.account(number as usize % accounts)?;
        let (target, counter) = (stage.target.clone(), progress.counter());
        running.spawn(async move {
            let _turn = turn;
            let link = target.appear(&account, &format!("churn{number}")).await?;
            let took = clock.ns().saturating_sub(due);
            tokio::time::sleep(stay).await;
            link.close().await?;
            counter.add(1);
            anyhow::Ok(took)
        });
        while let Some(end) = running.try_join_next() {
            note(end?, &mut tally, &mut latency);
        }
    }
    while let Some(end) = running.join_next().await {
        note(end?, &mut tally, &mut latency);
    }
    let spent = meter.stop()?;
    drop(progress);
    let title = format!("churn: {rate} a second for {} s", churn.seconds);
    stage.reports.say(
        Report::new("churn", title)
            .row("rate", "rate", rate)
            .row("per_second", "sessions a second", tally.heard as f64 / spent.wall.as_secs_f64())
            .row("cpu_us", "server CPU per login and logout, us", spent.server_each(count))
            .row("generator_cpu_us", "generator CPU for both, us", spent.own_each(count))
            .latency("latency_us", "login", &latency)
            .tally("sessions", &tally),
    )
}

fn note(end: Result<u64>, tally: &mut Tally, latency: &mut Latency) {
    match end {
        Ok(took) => {
            tally.heard += 1;
            latency.record(took);
        }
        Err(error) => {
            tally.lost += 1;
            tally.fail(Some(error));
        }
    }
}

//! Idle sessions: what memory they take, by the server's proportional set size.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::Stage;
use crate::{crowd, flow::Tally, link::Link, progress::Progress, report::Report};

/// Sessions that do nothing.
#[derive(Clone, Debug, clap::Args)]
pub struct Idle {
    /// Sessions at which memory is read, in growing numbers
    #[arg(long, value_delimiter = ',', default_value = "500,2000,5000")]
    steps: Vec<usize>,
    /// Sessions of each account
    #[arg(long, default_value_t = 1)]
    per_account: usize,
    /// Sessions that come and go before memory is read for the first time
    #[arg(long, default_value_t = 100)]
    warm_up: usize,
    /// Seconds between the last login and the reading
    #[arg(long, default_value_t = 5.0)]
    settle_s: f64,
}

/// Runs it.
///
/// # Errors
/// Where a session does not come in, or no process is watched.
pub async fn run(stage: &mut Stage, idle: &Idle) -> Result<()> {
    let most = idle.steps.iter().copied().max().unwrap_or(0);
    let per_account = idle.per_account.max(1);
    ensure!(idle.steps.is_sorted(), "the steps must grow");
    stage.make(0..most.div_ceil(per_account)).await?;
    let warm = open(stage, 0..idle.warm_up.min(most), per_account).await?;
    stage.close(warm).await?;
    let settle = Duration::from_secs_f64(idle.settle_s.max(0.0));
    tokio::time::sleep(settle).await;
    let base = stage.watched.pss_kib()?;
    ensure!(base.is_some(), "memory is that of processes: name one with --pid");
    let base = base.unwrap_or(0);
    let (mut links, mut before) = (Vec::new(), (0, base));
    for step in &idle.steps {
        links.append(&mut open(stage, links.len()..*step, per_account).await?);
        tokio::time::sleep(settle).await;
        let pss = stage.watched.pss_kib()?.unwrap_or(0);
        let each = |pss: u64, from: u64, count: usize| (pss as f64 - from as f64) / count.max(1) as f64;
        let report = Report::new("idle", format!("idle: {step} sessions"))
            .row("sessions", "sessions", *step)
            .row("pss_kib", "memory of the server, KiB", pss)
            .row("base_kib", "without sessions, KiB", base)
            .row("per_session_kib", "per session, KiB", each(pss, base, *step))
            .row(
                "per_further_session_kib",
                "per session since the step before, KiB",
                each(pss, before.1, step - before.0),
            );
        stage.reports.say(report)?;
        before = (*step, pss);
    }
    let tally = look(stage, links).await?;
    stage
        .reports
        .say(Report::new("idle_end", "idle: sessions that answer in the end").tally("sessions", &tally))
}

async fn open(stage: &Stage, numbers: std::ops::Range<usize>, per_account: usize) -> Result<Vec<Link>> {
    let progress = Progress::begin("sessions", numbers.len() as u64);
    let sessions =
        numbers.map(|n| Ok((n, stage.accounts.account(n / per_account)?))).collect::<Result<Vec<_>>>()?;
    crowd::each(sessions, stage.at_once, |(number, account)| {
        let (target, counter) = (stage.target.clone(), progress.counter());
        async move {
            let mut link = target.appear(&account, &format!("idle{number}")).await?;
            link.reader.rest();
            counter.add(1);
            Ok(link)
        }
    })
    .await
}

/// Whether all of them are still there: each pings.
async fn look(stage: &Stage, links: Vec<Link>) -> Result<Tally> {
    let expected = links.len() as u64;
    let ends = crowd::each(links, stage.at_once, |mut link| {
        let host = stage.target.host.clone();
        async move {
            let ping = format!("<iq type='get' to='{host}' id='there'><ping xmlns='urn:xmpp:ping'/></iq>");
            let answered = match link.writer.write(&ping).await {
                // An error is an answer as well.
                Ok(()) => {
                    let answer = link.reader.wait_for(|stanza| stanza.attribute(b"id") == Some(b"there"));
                    answer.await.map(drop)
                }
                Err(error) => Err(error),
            };
            Ok((link, answered))
        }
    })
    .await?;
    let mut tally = Tally { expected, ..Tally::default() };
    for (_, answered) in &ends {
        match answered {
            Ok(()) => tally.heard += 1,
            Err(error) => {
                tally.lost += 1;
                tally.failures.push(format!("{error:#}"));
            }
        }
    }
    stage.close(ends.into_iter().map(|(link, _)| link).collect()).await?;
    Ok(tally)
}

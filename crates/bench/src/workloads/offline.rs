//! Offline messages: stored for accounts that are away, fetched when they come.

use std::{ops::Range, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::timeout;

use super::{chat::Messages, stage::Stage};
use crate::{
    crowd,
    flow::{Heard, Talk, Tally},
    link::Link,
    meter::Meter,
    order::Order,
    progress::Progress,
    report::Report,
    target::{Account, Target},
};

/// Messages for accounts that are away.
#[derive(Clone, Debug, clap::Args)]
pub struct Offline {
    /// Accounts that are away
    #[arg(long, default_value_t = 50)]
    away: usize,
    /// Messages for each of them; servers keep a hundred or so
    #[arg(long, default_value_t = 50)]
    messages: u64,
    /// Length of what is written, in bytes
    #[arg(long, default_value_t = 80)]
    body: usize,
    /// Seconds in which the server may still store after it has answered
    #[arg(long, default_value_t = 2.0)]
    settle_s: f64,
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had.
pub async fn run(stage: &mut Stage, offline: &Offline) -> Result<()> {
    // The first account writes, the others are away.
    let away = 1..offline.away + 1;
    stage.make(0..away.end).await?;
    let settle = Duration::from_secs_f64(offline.settle_s.max(0.0));
    // Once for salted passwords and what waits from before, once to know what it costs when nothing waits.
    come(stage, away.clone(), offline.messages, false).await?;
    let meter = Meter::start(&stage.watched)?;
    come(stage, away.clone(), offline.messages, false).await?;
    tokio::time::sleep(settle).await;
    let empty = meter.stop()?;
    let mut writers = stage.open(0..1).await?;
    let meter = Meter::start(&stage.watched)?;
    let mut refused = 0;
    for writer in &mut writers {
        refused = store(stage, writer, away.clone(), offline).await?;
    }
    tokio::time::sleep(settle).await;
    let stored = meter.stop()?;
    let meter = Meter::start(&stage.watched)?;
    let mut tally = come(stage, away, offline.messages, true).await?;
    tokio::time::sleep(settle).await;
    let fetched = meter.stop()?;
    tally.refused += refused;
    let count = offline.messages * offline.away as u64;
    let beyond = fetched.server_us.zip(empty.server_us).map(|(all, part)| all.saturating_sub(part) as f64);
    let title = format!("offline: {} messages for each of {} accounts", offline.messages, offline.away);
    stage.reports.say(
        Report::new("offline", title)
            .row("stored_cpu_us", "server CPU per message stored, us", stored.server_each(count))
            .row(
                "fetched_cpu_us",
                "server CPU per message fetched, us",
                beyond.map(|us| us / count.max(1) as f64),
            )
            .row("generator_cpu_us", "generator CPU per message, us", stored.own_each(count))
            .tally("messages", &tally),
    )
}

/// Writes to all who are away, and waits until the server has read it; how many were refused.
async fn store(stage: &Stage, link: &mut Link, away: Range<usize>, offline: &Offline) -> Result<u64> {
    let mut refused = 0;
    for number in away {
        let to = format!("{}@{}", stage.accounts.account(number)?.user, stage.target.host);
        let (messages, mut text) = (Messages::new(&to, offline.body), String::new());
        (0..offline.messages).for_each(|n| messages.say(&mut text, n, 0));
        let host = &stage.target.host;
        text += &format!("<iq type='get' to='{host}' id='read'><ping xmlns='urn:xmpp:ping'/></iq>");
        link.writer.write(&text).await?;
        loop {
            let heard =
                link.reader.wait_for(|stanza| stanza.is_error() || stanza.attribute(b"id") == Some(b"read"));
            let heard = heard.await?;
            if heard.starts_with("<iq") {
                break;
            }
            refused += 1;
        }
    }
    Ok(refused)
}

/// Lets those who were away come, hear all that waits for them, and go.
async fn come(stage: &Stage, away: Range<usize>, messages: u64, waits: bool) -> Result<Tally> {
    let progress = Progress::begin("coming", away.len() as u64);
    let accounts = away.map(|number| stage.accounts.account(number)).collect::<Result<Vec<_>>>()?;
    let ends = crowd::each(accounts, stage.at_once, |account| {
        let (target, counter) = (stage.target.clone(), progress.counter());
        async move {
            let order = fetch(&target, &account, if waits { messages } else { 0 }).await?;
            counter.add(1);
            Ok(order)
        }
    })
    .await?;
    let mut tally = Tally::default();
    for order in ends {
        tally.hear(if waits { messages } else { 0 }, &order, true);
    }
    Ok(tally)
}

async fn fetch(target: &Arc<Target>, account: &Account, messages: u64) -> Result<Order> {
    let mut link = target.log_in(account, "bench").await?;
    let ping = format!(
        "<presence/><iq type='get' to='{}' id='here'><ping xmlns='urn:xmpp:ping'/></iq>",
        target.host
    );
    link.writer.write(&ping).await?;
    let (talk, mut order, mut answered) = (Messages::new("", 0), Order::new(0, messages), false);
    while !(answered && order.complete()) {
        while let Some(range) = link.reader.pop()? {
            let stanza = link.reader.stanza(range);
            answered |= stanza.attribute(b"id") == Some(b"here");
            if let (Heard::Number(number, _), true) = (talk.hear(stanza), messages > 0) {
                order.hear(number);
            }
        }
        if answered && order.complete() {
            break;
        }
        match timeout(target.patience, link.reader.fill()).await {
            Ok(more) => more?,
            // What is missing is counted as lost.
            Err(_) => break,
        }
    }
    link.close().await?;
    Ok(order)
}

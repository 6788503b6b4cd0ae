//! Archives (XEP-0313): messages that are kept for both sides, and the last page read.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{
    asking::{Request, ask},
    chat::Messages,
    stage::{Amount, Stage},
};
use crate::{
    flow::{self, Heard, Line, Plan, Talk},
    link::Link,
    report::Report,
    scanner::Stanza,
};

/// Messages of a page.
const PAGE: usize = 50;

/// Messages that are archived, and pages of the archive.
#[derive(Clone, Debug, clap::Args)]
pub struct Archive {
    /// Pairs of accounts that write and hear
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Sessions that read pages
    #[arg(long, default_value_t = 4)]
    sessions: usize,
    /// Pages that each reads
    #[arg(long, default_value_t = 100)]
    pages: u64,
    /// Messages that are written
    #[command(flatten)]
    amount: Amount,
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had, or nothing is archived.
pub async fn run(stage: &mut Stage, archive: &Archive) -> Result<()> {
    let pairs = archive.pairs.max(1);
    stage.make(0..2 * pairs).await?;
    let mut lines = Vec::new();
    let mut links = stage.open(0..2 * pairs).await?;
    while let (Some(mut b), Some(mut a)) = (links.pop(), links.pop()) {
        always(&mut a).await?;
        always(&mut b).await?;
        let talk = Arc::new(Messages::new(&b.jid, 80));
        lines.push(Line { talk, writer: a.writer, ears: vec![b.reader], aside: Some(a.reader) });
    }
    let (_, each) = archive.amount.each(pairs);
    let plan = Plan { first: 0, each, pace: archive.amount.pace(), patience: stage.target.patience };
    let (mut lines, outcome) = flow::run("archived", lines, plan, &stage.watched).await?;
    stage.reports.say(
        Report::new(
            "archive_messages",
            format!("archive: messages of {pairs} pairs, {}", archive.amount.words()),
        )
        .row("pairs", "pairs", pairs)
        .row("rate", "rate", (!archive.amount.saturate).then_some(archive.amount.rate))
        .outcome("archived message", &outcome),
    )?;
    // The last line is that of the first two accounts.
    let line = lines.pop().context("the line comes back")?;
    let reader = line.aside.context("and its aside")?;
    let mut owner = Link { reader, writer: line.writer, jid: String::new() };
    look(&mut owner, each).await?;
    let mut readers = Vec::new();
    for n in 0..archive.sessions.max(1) {
        readers.push(stage.target.appear(&stage.accounts.account(0)?, &format!("page{n}")).await?);
    }
    let count = archive.pages * readers.len() as u64;
    let amount = Amount { saturate: true, rate: 1.0, seconds: 0.0, count, window: 2, warm_up: 0 };
    let outcome = ask(stage, readers, Request::of_type("set", None, &page()), &amount).await?;
    stage.reports.say(
        Report::new("archive_pages", format!("archive: the last {PAGE} of at least {each}"))
            .row("page", "messages of a page", PAGE)
            .row("archived", "messages in the archive, at least", each)
            .outcome("page", &outcome),
    )
}

/// Lets a server archive all messages of an account. Where it lets nobody choose, what it does by itself is seen later.
async fn always(link: &mut Link) -> Result<()> {
    let prefs = "<prefs xmlns='urn:xmpp:mam:2' default='always'><always/><never/></prefs>";
    link.writer.write(&format!("<iq type='set' id='prefs'>{prefs}</iq>")).await?;
    link.reader.wait_for(|stanza| stanza.attribute(b"id") == Some(b"prefs")).await.map(drop)
}

fn page() -> String {
    format!(
        "<query xmlns='urn:xmpp:mam:2'><set xmlns='http://jabber.org/protocol/rsm'><max>{PAGE}</max><before/></set></query>"
    )
}

/// Looks at the last page until it is the right one: servers may archive behind the delivery.
async fn look(owner: &mut Link, sent: u64) -> Result<()> {
    const TRIES: usize = 50;
    let (talk, first) = (Messages::new("", 0), sent.saturating_sub(PAGE as u64 - 1));
    let mut seen = Vec::new();
    for attempt in 0..TRIES {
        let id = format!("look{attempt}");
        owner.writer.write(&format!("<iq type='set' id='{id}'>{}</iq>", page())).await?;
        let mut numbers = Vec::new();
        loop {
            let heard = owner.reader.wait_for(|stanza| matches!(stanza.name(), b"message" | b"iq")).await?;
            let stanza = Stanza(heard.as_bytes());
            match talk.hear(stanza) {
                Heard::Number(number, _) => numbers.push(number),
                Heard::End => numbers.push(sent),
                _ if stanza.attribute(b"id") == Some(id.as_bytes()) && stanza.is_error() => {
                    bail!("the server gives no page: {heard}");
                }
                _ if stanza.attribute(b"id") == Some(id.as_bytes()) => break,
                _ => {}
            }
        }
        // It ends with the message behind the last one, and begins with older ones where there are not enough of these.
        let right: Vec<u64> = (first..=sent).collect();
        if numbers.ends_with(&right) {
            return Ok(());
        }
        seen = numbers;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    bail!("the last page is not that of the last {PAGE} messages, in order: it has {seen:?}")
}

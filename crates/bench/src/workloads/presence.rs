//! Presence: updates of a few, each of which goes to all of their contacts.

use std::{fmt::Write, sync::Arc};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::stage::Stage;
use crate::{
    crowd,
    flow::{self, Heard, Line, Pace, Plan, Talk},
    link::Link,
    progress::Progress,
    report::Report,
    scanner::{Stanza, number},
};

/// What is behind the last update.
const END: &str = "end";

/// Presence updates that go to many contacts.
#[derive(Clone, Debug, clap::Args)]
pub struct Presence {
    /// Sessions whose presence changes
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Contacts of each of them, all available, each with accounts of their own
    #[arg(long, default_value_t = 100)]
    contacts: usize,
    /// Changes of each of them
    #[arg(long, default_value_t = 500)]
    updates: u64,
    /// Changes of each before what is measured
    #[arg(long, default_value_t = 20)]
    warm_up: u64,
    /// Changes in a second, all together; without it as fast as they are heard
    #[arg(long)]
    rate: Option<f64>,
    /// Changes of each that are on their way at most, where there is no rate
    #[arg(long, default_value_t = 4)]
    window: usize,
}

struct Updates;

impl Talk for Updates {
    fn say(&self, out: &mut String, number: u64, ns: u64) {
        let written = write!(out, "<presence><show>away</show><status>{number} {ns}</status></presence>");
        debug_assert!(written.is_ok(), "a string takes everything");
    }

    fn end(&self, out: &mut String) {
        *out += &format!("<presence><status>{END}</status></presence>");
    }

    fn hear(&self, stanza: Stanza<'_>) -> Heard {
        if stanza.name() != b"presence" {
            return Heard::Other;
        }
        if stanza.is_error() {
            return Heard::Refused;
        }
        let Some(status) = stanza.text_of(b"status") else { return Heard::Other };
        if status == END.as_bytes() {
            return Heard::End;
        }
        let numbers = number(status).and_then(|(n, rest)| Some((n, number(rest.strip_prefix(b" ")?)?.0)));
        numbers.map_or(Heard::Other, |(number, ns)| Heard::Number(number, ns))
    }
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had, or do not become contacts.
pub async fn run(stage: &mut Stage, presence: &Presence) -> Result<()> {
    let (publishers, group) = (presence.publishers.max(1), presence.contacts.max(1) + 1);
    stage.make(0..publishers * group).await?;
    let mut links = stage.open(0..publishers * group).await?;
    let mut lines = Vec::new();
    while !links.is_empty() {
        let contacts = links.split_off(links.len() - group + 1);
        let publisher = links.pop().context("a group without a publisher")?;
        let (publisher, contacts) = befriend(stage, publisher, contacts).await?;
        let ears = contacts.into_iter().map(|link| link.reader).collect();
        let Link { reader, writer, .. } = publisher;
        // A publisher hears its own presence as well: what it costs is no delivery to a contact.
        lines.push(Line { talk: Arc::new(Updates), writer, ears, aside: Some(reader) });
    }
    let pace = presence.rate.map_or(Pace::Window(presence.window), |rate| Pace::Rate(rate.max(0.001)));
    let mut plan = Plan { first: 0, each: presence.warm_up, pace, patience: stage.target.patience };
    let (warm, before) = flow::run("warm-up", lines, plan, &stage.watched).await?;
    (plan.first, plan.each) = (presence.warm_up, presence.updates);
    let (_open, mut outcome) = flow::run("presence", warm, plan, &stage.watched).await?;
    if !before.tally.clean() {
        outcome.tally.failures.push(format!("while warming up {} were lost", before.tally.lost));
    }
    let title = format!("presence: {publishers} with {} contacts each", presence.contacts);
    stage.reports.say(
        Report::new("presence", title)
            .row("publishers", "publishers", publishers)
            .row("contacts", "contacts of each", presence.contacts)
            .row("rate", "rate", presence.rate)
            .outcome("delivered presence", &outcome),
    )
}

/// Makes all of them see the publisher's presence (RFC 6121, 3.1).
async fn befriend(stage: &Stage, publisher: Link, contacts: Vec<Link>) -> Result<(Link, Vec<Link>)> {
    let bare = publisher.jid.split('/').next().unwrap_or_default().to_owned();
    let progress = Progress::begin("contacts", contacts.len() as u64);
    let (stop, stopped) = oneshot::channel();
    let approving = tokio::spawn(approve(publisher, stopped));
    let contacts = crowd::each(contacts, stage.at_once, |contact| {
        let (bare, counter) = (bare.clone(), progress.counter());
        async move {
            let contact = subscribe(contact, &bare).await?;
            counter.add(1);
            Ok(contact)
        }
    })
    .await?;
    // It may have ended with an error, which comes out below.
    let _ = stop.send(());
    Ok((approving.await??, contacts))
}

async fn subscribe(mut contact: Link, bare: &str) -> Result<Link> {
    contact.writer.write("<iq type='get' id='before'><query xmlns='jabber:iq:roster'/></iq>").await?;
    let roster = contact.reader.answer("before").await?;
    if subscribed(&roster, bare) {
        return Ok(contact);
    }
    contact.writer.write(&format!("<presence to='{bare}' type='subscribe'/>")).await?;
    let approved = |stanza: Stanza<'_>| {
        stanza.name() == b"presence"
            && stanza.attribute(b"type") == Some(b"subscribed")
            && stanza.attribute(b"from") == Some(bare.as_bytes())
    };
    contact.reader.wait_for(approved).await.context("no approval of a subscription")?;
    Ok(contact)
}

/// Whether the owner of a roster sees the presence of this contact.
fn subscribed(roster: &str, bare: &str) -> bool {
    let items = roster.match_indices("<item").map(|(at, _)| Stanza(&roster.as_bytes()[at..]));
    items
        .filter(|item| item.attribute(b"jid") == Some(bare.as_bytes()))
        .any(|item| matches!(item.attribute(b"subscription"), Some(b"to" | b"both")))
}

/// Approves whoever asks, until told to stop.
async fn approve(mut publisher: Link, mut stop: oneshot::Receiver<()>) -> Result<Link> {
    loop {
        let mut answers = String::new();
        while let Some(range) = publisher.reader.pop()? {
            let stanza = publisher.reader.stanza(range);
            if stanza.name() == b"presence" && stanza.attribute(b"type") == Some(b"subscribe") {
                let from =
                    String::from_utf8_lossy(stanza.attribute(b"from").unwrap_or_default()).into_owned();
                answers += &format!("<presence to='{from}' type='subscribed'/>");
            }
        }
        if !answers.is_empty() {
            publisher.writer.write(&answers).await?;
        }
        tokio::select! {
            _ = &mut stop => return Ok(publisher),
            more = publisher.reader.fill() => more?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_heard_as_it_was_said() {
        let mut said = String::new();
        Updates.say(&mut said, 5, 77);
        assert!(matches!(Updates.hear(Stanza(said.as_bytes())), Heard::Number(5, 77)));
        said.clear();
        Updates.end(&mut said);
        assert!(matches!(Updates.hear(Stanza(said.as_bytes())), Heard::End));
        assert!(matches!(Updates.hear(Stanza(b"<presence from='a@b'/>")), Heard::Other));
    }

    #[test]
    fn a_roster_says_who_is_seen() {
        let roster = "<iq><query><item jid='a@b' subscription='from'/><item subscription=\"both\" jid=\"c@d\"/></query></iq>";
        assert!(!subscribed(roster, "a@b"));
        assert!(subscribed(roster, "c@d"));
        assert!(!subscribed(roster, "e@f"));
    }
}

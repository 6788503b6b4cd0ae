//! Chat: pairs of sessions, one of which writes to the other.

use std::{fmt::Write, sync::Arc};

use anyhow::Result;

use super::stage::{Amount, Stage};
use crate::{
    flow::{self, Heard, Line, Plan, Talk},
    report::Report,
    scanner::{Stanza, number},
};

/// What is behind the last message.
const END: &str = "end";

/// Messages between pairs of accounts.
#[derive(Clone, Debug, clap::Args)]
pub struct Chat {
    /// Pairs of sessions
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Length of what is written, in bytes
    #[arg(long, default_value_t = 80)]
    body: usize,
    /// Write to the account and not to its session
    #[arg(long)]
    to_account: bool,
    #[command(flatten)]
    amount: Amount,
}

/// How one writes to another.
pub struct Messages {
    /// Whom to.
    to: String,
    /// What is written behind the numbers.
    text: String,
}

impl Messages {
    /// Messages of about so many bytes of text.
    pub fn new(to: &str, body: usize) -> Messages {
        const USUAL: &str = "as people write them to each other all day long ";
        let text = USUAL.chars().cycle().take(body.saturating_sub(24)).collect();
        Messages { to: to.to_owned(), text }
    }
}

impl Talk for Messages {
    fn say(&self, out: &mut String, number: u64, ns: u64) {
        let Messages { to, text } = self;
        // What clients send with each message: chat states (XEP-0085) and a request for a receipt (XEP-0184).
        let written = write!(
            out,
            "<message to='{to}' type='chat' id='c{number}'><body>{number} {ns} {text}</body>\
             <active xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/></message>"
        );
        debug_assert!(written.is_ok(), "a string takes everything");
    }

    fn end(&self, out: &mut String) {
        *out += &format!("<message to='{}' type='chat' id='end'><body>{END}</body></message>", self.to);
    }

    fn hear(&self, stanza: Stanza<'_>) -> Heard {
        if stanza.name() != b"message" {
            return Heard::Other;
        }
        if stanza.is_error() {
            return Heard::Refused;
        }
        let Some(body) = stanza.text_of(b"body") else { return Heard::Other };
        if body == END.as_bytes() {
            return Heard::End;
        }
        let numbers = number(body).and_then(|(n, rest)| Some((n, number(rest.strip_prefix(b" ")?)?.0)));
        numbers.map_or(Heard::Other, |(number, ns)| Heard::Number(number, ns))
    }
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had.
pub async fn run(stage: &mut Stage, chat: &Chat) -> Result<()> {
    let pairs = chat.pairs.max(1);
    stage.make(0..2 * pairs).await?;
    let mut links = stage.open(0..2 * pairs).await?;
    let mut lines = Vec::new();
    while let (Some(b), Some(a)) = (links.pop(), links.pop()) {
        let to = if chat.to_account { b.jid.split('/').next().unwrap_or(&b.jid) } else { &b.jid };
        let talk = Arc::new(Messages::new(to, chat.body));
        lines.push(Line { talk, writer: a.writer, ears: vec![b.reader], aside: Some(a.reader) });
        // Kept for the pair's own end alone: nobody but its reader uses it meanwhile.
        drop(b.writer);
    }
    let (warm_up, each) = chat.amount.each(pairs);
    let mut plan =
        Plan { first: 0, each: warm_up, pace: chat.amount.pace(), patience: stage.target.patience };
    let (warm, before) = flow::run("warm-up", lines, plan, &stage.watched).await?;
    (plan.first, plan.each) = (warm_up, each);
    let (_open, outcome) = flow::run("messages", warm, plan, &stage.watched).await?;
    let title = format!("chat: {pairs} pairs, {}", chat.amount.words());
    let report = Report::new("chat", title)
        .row("pairs", "pairs", pairs)
        .row("mode", "mode", if chat.amount.saturate { "saturated" } else { "rate" })
        .row("rate", "rate", (!chat.amount.saturate).then_some(chat.amount.rate))
        .outcome("message", &outcome);
    if !before.tally.clean() {
        stage.reports.say(Report::new("chat", "chat: warm-up").tally("messages", &before.tally))?;
    }
    stage.reports.say(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_heard_as_it_was_said() {
        let talk = Messages::new("b@localhost/bench", 80);
        let mut said = String::new();
        talk.say(&mut said, 7, 1234);
        assert!((200..400).contains(&said.len()), "{said}");
        assert!(matches!(talk.hear(Stanza(said.as_bytes())), Heard::Number(7, 1234)));
        said.clear();
        talk.end(&mut said);
        assert!(matches!(talk.hear(Stanza(said.as_bytes())), Heard::End));
        let refused = "<message type='error'><body>7 1234 x</body></message>";
        assert!(matches!(talk.hear(Stanza(refused.as_bytes())), Heard::Refused));
        for other in ["<message><body>hello</body></message>", "<message/>", "<presence/>"] {
            assert!(matches!(talk.hear(Stanza(other.as_bytes())), Heard::Other), "{other}");
        }
    }
}

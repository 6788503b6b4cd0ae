//! Rosters: items written one by one, and the whole read (RFC 6121, 2).

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::{
    asking::{Request, ask},
    stage::{Amount, Stage},
};
use crate::{
    flow::{Heard, Talk},
    report::Report,
    scanner::Stanza,
};

/// Rosters of a size, written and read.
#[derive(Clone, Debug, clap::Args)]
pub struct Roster {
    /// Accounts
    #[arg(long, default_value_t = 4)]
    sessions: usize,
    /// Items in the roster of each
    #[arg(long, default_value_t = 1000)]
    size: u64,
    /// How often each reads its roster
    #[arg(long, default_value_t = 25)]
    reads: u64,
    /// Requests of each on their way at most
    #[arg(long, default_value_t = 8)]
    window: usize,
}

/// An item that is set.
struct Item {
    host: String,
}

impl Item {
    fn set(&self, out: &mut String, id: &str, number: u64) {
        let written = write!(
            out,
            "<iq type='set' id='{id}'><query xmlns='jabber:iq:roster'><item jid='someone{number}@{}' \
             name='Someone {number}'><group>People</group></item></query></iq>",
            self.host
        );
        debug_assert!(written.is_ok(), "a string takes everything");
    }
}

impl Talk for Item {
    fn say(&self, out: &mut String, number: u64, ns: u64) {
        self.set(out, &format!("{number}.{ns}"), number);
    }

    fn end(&self, out: &mut String) {
        self.set(out, "end", 0);
    }

    fn hear(&self, stanza: Stanza<'_>) -> Heard {
        Request::get(None, "").hear(stanza)
    }

    fn ordered(&self) -> bool {
        false
    }
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had, or a roster has another size than was written.
pub async fn run(stage: &mut Stage, roster: &Roster) -> Result<()> {
    let (sessions, window) = (roster.sessions.max(1), roster.window);
    let amount = |each: u64| Amount {
        saturate: true,
        rate: 1.0,
        seconds: 0.0,
        count: each * sessions as u64,
        window,
        warm_up: 0,
    };
    stage.make(0..sessions).await?;
    let links = stage.open(0..sessions).await?;
    let item = Item { host: stage.target.host.clone() };
    let written = ask(stage, links, item, &amount(roster.size)).await?;
    stage.reports.say(
        Report::new("roster_set", format!("roster: items written, {sessions} sessions"))
            .row("size", "items", roster.size)
            .outcome("item", &written),
    )?;
    let mut links = stage.open(0..sessions).await?;
    for link in &mut links {
        link.writer.write("<iq type='get' id='count'><query xmlns='jabber:iq:roster'/></iq>").await?;
        let items = link.reader.answer("count").await?.matches("<item").count() as u64;
        ensure!(items >= roster.size, "a roster has {items} items, and {} were written", roster.size);
    }
    let request = Request::get(None, "<query xmlns='jabber:iq:roster'/>");
    let read = ask(stage, links, request, &amount(roster.reads)).await?;
    stage.reports.say(
        Report::new("roster_get", format!("roster: read whole, {sessions} sessions"))
            .row("size", "items", roster.size)
            .outcome("read", &read),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_answered_by_its_number() {
        let (item, mut said) = (Item { host: "localhost".to_owned() }, String::new());
        item.say(&mut said, 4, 9);
        assert!(said.contains(" id='4.9'>") && said.contains("jid='someone4@localhost'"), "{said}");
        assert!(matches!(item.hear(Stanza(b"<iq type='result' id='4.9'/>")), Heard::Number(4, 9)));
        assert!(matches!(item.hear(Stanza(said.as_bytes())), Heard::Other), "as a push has it");
    }
}

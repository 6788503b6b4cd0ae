//! Questions for what the server can do (XEP-0030).

use anyhow::Result;

use super::{
    asking::{Request, ask},
    stage::{Amount, Stage},
};
use crate::report::Report;

/// Questions for what the server can do.
#[derive(Clone, Debug, clap::Args)]
pub struct Disco {
    /// Sessions that ask
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    #[command(flatten)]
    amount: Amount,
}

/// Runs it.
///
/// # Errors
/// Where sessions cannot be had.
pub async fn run(stage: &mut Stage, disco: &Disco) -> Result<()> {
    stage.make(0..disco.sessions).await?;
    let links = stage.open(0..disco.sessions).await?;
    let request =
        Request::get(Some(&stage.target.host), "<query xmlns='http://jabber.org/protocol/disco#info'/>");
    let outcome = ask(stage, links, request, &disco.amount).await?;
    let title = format!("disco#info: {} sessions, {}", disco.sessions, disco.amount.words());
    stage.reports.say(
        Report::new("disco", title)
            .row("sessions", "sessions", disco.sessions)
            .row("mode", "mode", if disco.amount.saturate { "saturated" } else { "rate" })
            .outcome("answer", &outcome),
    )
}

//! Pings to the server (XEP-0199).

use anyhow::Result;

use super::{
    asking::{Request, ask},
    stage::{Amount, Stage},
};
use crate::report::Report;

/// Pings to the server.
#[derive(Clone, Debug, clap::Args)]
pub struct Ping {
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
pub async fn run(stage: &mut Stage, ping: &Ping) -> Result<()> {
    stage.make(0..ping.sessions).await?;
    let links = stage.open(0..ping.sessions).await?;
    let request = Request::get(Some(&stage.target.host), "<ping xmlns='urn:xmpp:ping'/>");
    let outcome = ask(stage, links, request, &ping.amount).await?;
    let title = format!("ping: {} sessions, {}", ping.sessions, ping.amount.words());
    stage.reports.say(
        Report::new("ping", title)
            .row("sessions", "sessions", ping.sessions)
            .row("mode", "mode", if ping.amount.saturate { "saturated" } else { "rate" })
            .outcome("ping", &outcome),
    )
}

//! Log lines, as text for people or as JSON for programs, on stderr.

use std::{
    any::Any,
    backtrace::Backtrace,
    io::{self, IsTerminal},
    panic,
};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::settings::Log;

/// Starts logging for the whole process; a filter that cannot be read is an error.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|e| format!("failed to read `log.filter` `{}`: {e}", log.filter))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = if log.json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        let colours = io::stderr().is_terminal();
        registry.with(fmt::layer().with_ansi(colours).with_writer(io::stderr)).try_init()
    };
    started.map_err(|e| format!("failed to start logging: {e}"))?;
    if log.json {
        // the usual words of a panic are several lines of plain text, which no reader of JSON takes
        panic::set_hook(Box::new(|panic| {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(at, backtrace = %Backtrace::capture(), "{}", words(panic.payload()));
        }));
    }
    Ok(())
}

fn words(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without words")
}

//! A load generator for XMPP servers, whoever made them: what they cost, how long they take, and what they lose.

mod scanner;
mod order;
mod latency;
mod scram;
mod tls;
mod link;
mod target;
mod accounts;
mod process;
mod meter;
mod pacer;
mod crowd;
mod progress;
mod flow;
mod report;
mod workloads;
mod options;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    process::raise_open_files();
    match run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("rookery-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing was lost, doubled, out of order or refused.
fn run(options: Options) -> Result<bool> {
    // One thread is enough for most servers, and leaves them the other cores.
    let mut builder = match options.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(options.threads.max(1)).enable_all().build();
    runtime.context("failed to start a runtime")?.block_on(options.perform())
}

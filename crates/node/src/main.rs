//! The binary `rookery`: a table of contents.

mod admin;
mod certificate;
mod cli;
mod config;
mod ctl;
mod demo;
mod http;
mod logs;
mod metrics;
mod parts;
mod password;
mod table;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use parts::Failure;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rookery: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => {
            let settings = config::load(serve.config.as_deref(), &serve.set)?;
            parts::run(settings, serve.with_parent)
        }
        Command::User { admin, what } => ctl::run(ctl::user(&admin, what)),
        Command::Cluster { admin, what } => ctl::run(ctl::cluster(&admin, what)),
        Command::Session { admin, what } => ctl::run(ctl::session(&admin, what)),
        Command::Config { what: cli::Config::Check { file, set } } => config::check(&file, &set),
        Command::Config { what: cli::Config::PrintDefault } => config::print::run(),
        Command::Demo(demo) => demo::run(&demo),
    }
}

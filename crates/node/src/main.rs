//! The binary `rookery`: a table of contents.

mod certificate;
mod cli;
mod config;
mod ctl;
mod demo;
mod http;
mod logs;
mod metrics;
mod table;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done: Result<(), Box<dyn std::error::Error>> = match cli.command {
        Command::Config { what: cli::Config::PrintDefault } => {
            print!("{}", config::print::default_file());
            Ok(())
        }
        Command::Config { what: cli::Config::Check { file, set } } => {
            config::load(Some(&file), &set).map(|_| println!("{}: ok", file.display())).map_err(Into::into)
        }
        other => Err(format!("{other:?}").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rookery: {e}");
            ExitCode::FAILURE
        }
    }
}

//! The binary `rookery`: a table of contents.

mod admin;
#[cfg(target_os = "linux")]
mod allocator;
mod certificate;
mod cli;
mod config;
mod ctl;
mod demo;
mod http;
mod joining;
mod logs;
mod metrics;
mod parts;
mod password;
mod readiness;
mod recovering;
mod scram;
mod table;

use std::process::ExitCode;

use cli::{Cli, Command};
use parts::Failure;

fn main() -> ExitCode {
    match run(Cli::of_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rookery: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let admin = cli.admin_url().to_owned();
    match cli.command {
        Command::Serve(serve) => {
            let settings = config::load(serve.config.as_deref(), &serve.set)?;
            parts::run(settings, serve.with_parent)
        }
        Command::User { what } => ctl::run(ctl::user(&admin, what)),
        Command::Group { what } => ctl::run(ctl::group(&admin, what)),
        Command::Cluster { what: cli::Cluster::Init(config) } => joining::init(&config),
        Command::Cluster { what: cli::Cluster::Join { token, config } } => joining::join(&token, &config),
        Command::Cluster { what: cli::Cluster::Recover { yes, config } } => recovering::recover(yes, &config),
        Command::Cluster { what } => ctl::run(ctl::cluster(&admin, what)),
        Command::Node { what } => ctl::run(ctl::node(&admin, what)),
        Command::Health(health) => ctl::run(ctl::health(&admin, health.live)),
        Command::Session { what } => ctl::run(ctl::session(&admin, what)),
        Command::Config { what: cli::Config::Check { file, set } } => config::check(&file, &set),
        Command::Config { what: cli::Config::Dns { file, set } } => config::dns::run(&file, &set),
        Command::Config { what: cli::Config::HostMeta { file, host, json, into, set } } => {
            let wish = config::host_meta::Wish { host: host.as_deref(), json, into: into.as_deref() };
            config::host_meta::run(&file, &set, &wish)
        }
        Command::Config { what: cli::Config::PrintDefault } => config::print::run(),
        Command::Demo(demo) => demo::run(&demo),
    }
}

//! The command line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use crate::{
    accounts::{Accounts, Making},
    process::Watched,
    report::Reports,
    scram::Mechanism,
    target::{Target, Tls, Way},
    workloads::{Stage, archive, chat, churn, disco, idle, login, offline, ping, presence, roster},
};

/// Most source addresses that a range may have.
const FROM_MAX: u32 = 4096;

/// Puts load on an XMPP server and says what it costs, how long it takes and what is lost.
///
/// Exits with 1 where something was lost, doubled, out of order or refused, and with 2 where the load could not be put.
#[derive(Parser)]
#[command(name = "rookery-bench", version)]
pub struct Options {
    /// Where the server listens: a name or an address, and a port
    #[arg(long, global = true, default_value = "127.0.0.1:5222")]
    server: String,
    /// The domain of the accounts
    #[arg(long, global = true, default_value = "localhost")]
    host: String,
    /// When TLS begins
    #[arg(long, global = true, value_enum, default_value = "starttls")]
    tls: Tls,
    /// How to log in; the best one that the server offers, where none is named
    #[arg(long, global = true, value_enum)]
    mechanism: Option<Mechanism>,
    /// Turn stream management on (XEP-0198), and ask for an acknowledgement behind each write
    #[arg(long, global = true)]
    management: bool,
    /// What the names of accounts begin with; a number follows
    #[arg(long, global = true, default_value = "bench")]
    users: String,
    /// The password of those accounts
    #[arg(long, global = true, default_value = "benchmark")]
    password: String,
    /// Make the accounts before: in-band (XEP-0077)
    #[arg(long, global = true, conflicts_with = "create")]
    register: bool,
    /// Make the accounts before: by a command in which `{user}`, `{password}` and `{host}` may stand
    #[arg(long, global = true, value_name = "COMMAND")]
    create: Option<String>,
    /// Take the accounts of a file: a name and a password in each line
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["register", "create"])]
    accounts: Option<PathBuf>,
    /// Addresses that connections come from, in turn: one, or a range as in 127.0.0.2-127.0.0.9
    #[arg(long, global = true, value_name = "ADDRESSES")]
    from: Option<String>,
    /// A process of the server, whose CPU and memory are read, with all that descend from it
    #[arg(long, global = true, value_name = "PID")]
    pid: Vec<u32>,
    /// Logins at a time
    #[arg(long, global = true, default_value_t = 32)]
    at_once: usize,
    /// Seconds after which an answer, or anything that is missing, counts as lost
    #[arg(long, global = true, default_value_t = 15.0)]
    patience_s: f64,
    /// Threads of the generator
    #[arg(long, global = true, default_value_t = 1)]
    pub threads: usize,
    /// Write the figures behind what stands in this file, a line of JSON each
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Makes accounts and no load
    Make {
        /// How many
        #[arg(long, default_value_t = 100)]
        number: usize,
    },
    Archive(archive::Archive),
    Chat(chat::Chat),
    Churn(churn::Churn),
    Disco(disco::Disco),
    Idle(idle::Idle),
    Login(login::Login),
    Offline(offline::Offline),
    Ping(ping::Ping),
    Presence(presence::Presence),
    Roster(roster::Roster),
}

impl Options {
    /// Runs the workload; whether all was well.
    ///
    /// # Errors
    /// Where the load could not be put.
    pub async fn perform(self) -> Result<bool> {
        let mut addresses = tokio::net::lookup_host(&self.server).await;
        let address: Option<SocketAddr> = addresses.as_mut().ok().and_then(Iterator::next);
        let patience = Duration::try_from_secs_f64(self.patience_s).context("no such patience")?;
        let way = Way {
            address: address.with_context(|| format!("`{}` is no server with a port", self.server))?,
            host: self.host,
            tls: self.tls,
            mechanism: self.mechanism,
            management: self.management,
            patience,
            from: self.from.as_deref().map(range).transpose()?.unwrap_or_default(),
        };
        let accounts = match self.accounts {
            Some(file) => Accounts::read(&file)?,
            None => Accounts::Numbered {
                prefix: self.users,
                password: self.password,
                making: match self.create {
                    Some(command) => Making::Command(command),
                    None if self.register => Making::Register,
                    None => Making::Nothing,
                },
            },
        };
        let mut stage = Stage {
            target: Arc::new(Target::new(way)?),
            accounts,
            watched: Watched::new(self.pid),
            reports: Reports::to(self.json.as_deref())?,
            at_once: self.at_once.max(1),
        };
        // One that is not there is said before the load, and not behind it.
        stage.watched.cpu_us()?;
        match self.workload {
            Workload::Make { number } => stage.make(0..number).await?,
            Workload::Archive(archive) => archive::run(&mut stage, &archive).await?,
            Workload::Chat(chat) => chat::run(&mut stage, &chat).await?,
            Workload::Churn(churn) => churn::run(&mut stage, &churn).await?,
            Workload::Disco(disco) => disco::run(&mut stage, &disco).await?,
            Workload::Idle(idle) => idle::run(&mut stage, &idle).await?,
            Workload::Login(login) => login::run(&mut stage, &login).await?,
            Workload::Offline(offline) => offline::run(&mut stage, &offline).await?,
            Workload::Ping(ping) => ping::run(&mut stage, &ping).await?,
            Workload::Presence(presence) => presence::run(&mut stage, &presence).await?,
            Workload::Roster(roster) => roster::run(&mut stage, &roster).await?,
        }
        Ok(stage.reports.clean())
    }
}

/// The addresses of a range, with both of its ends.
fn range(text: &str) -> Result<Vec<IpAddr>> {
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![text.parse().with_context(|| format!("`{text}` is no address"))?]);
    };
    let number = |text: &str| {
        let address = text.parse::<Ipv4Addr>().with_context(|| format!("`{text}` is no IPv4 address"))?;
        anyhow::Ok(u32::from(address))
    };
    let (first, last) = (number(first)?, number(last)?);
    ensure!(first <= last, "`{text}` goes backwards");
    if last - first >= FROM_MAX {
        bail!("`{text}` has more than {FROM_MAX} addresses");
    }
    Ok((first..=last).map(|number| IpAddr::V4(Ipv4Addr::from(number))).collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        // Names that two workloads or the whole share are seen as values of another type only when they are read.
        for workload in Options::command().get_subcommands().map(|command| command.get_name().to_owned()) {
            let words = ["rookery-bench", &workload, "--accounts", "file", "--pid", "1"];
            assert!(Options::try_parse_from(words).is_ok(), "{workload}");
        }
    }

    #[test]
    fn a_range_has_both_of_its_ends() {
        let texts =
            |text: &str| range(text).expect("a range").iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts("127.0.0.2-127.0.0.4"), ["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
        assert_eq!(texts("127.0.0.9"), ["127.0.0.9"]);
        assert_eq!(texts("::1"), ["::1"]);
        for bad in ["", "127.0.0.4-127.0.0.2", "10.0.0.0-10.1.0.0", "a-b"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}

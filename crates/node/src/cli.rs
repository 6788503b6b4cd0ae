//! The command line of `rookery`.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

/// Where the admin service of a node listens when nothing else is said.
pub const ADMIN_URL: &str = "http://127.0.0.1:5280";

/// A clustered XMPP server.
#[derive(Debug, Parser)]
#[command(name = "rookery", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Admin service of a node, for `user`, `cluster` and `session` [default: http://127.0.0.1:5280]
    #[arg(long, value_name = "URL", global = true)]
    pub admin: Option<String>,
}

impl Cli {
    /// The command line of this process; a line that cannot be meant ends it with an explanation.
    pub fn of_process() -> Cli {
        let cli = Cli::parse();
        if let Err(error) = cli.check() {
            error.exit();
        }
        cli
    }

    /// Refuses what clap lets through, since an argument of all commands is one of those that ask nobody, too.
    fn check(&self) -> Result<(), clap::Error> {
        let asks =
            matches!(self.command, Command::User { .. } | Command::Cluster { .. } | Command::Session { .. });
        if self.admin.is_some() && !asks {
            let text = "`--admin` is for the commands that ask a running node: `user`, `cluster`, `session`";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, text));
        }
        Ok(())
    }

    /// Where the admin service is sought.
    pub fn admin_url(&self) -> &str {
        self.admin.as_deref().unwrap_or(ADMIN_URL)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node; with no config a single node for the host localhost, with its data in ./data
    Serve(Serve),
    /// Accounts: add, passwd, disable, enable, remove, list
    User {
        #[command(subcommand)]
        what: User,
    },
    /// The cluster: status
    Cluster {
        #[command(subcommand)]
        what: Cluster,
    },
    /// Sessions: list, kick
    Session {
        #[command(subcommand)]
        what: Session,
    },
    /// Config files: check, print-default
    Config {
        #[command(subcommand)]
        what: Config,
    },
    /// Start a cluster on loopback, let two users chat across it, show what happened
    Demo(Demo),
}

#[derive(Debug, Args)]
pub struct Serve {
    /// The config file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key over the file, as in `--set c2s.tls_required=false`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Create an account
    ///
    /// The password is asked for, or read as one line from a stdin that is no terminal. Names that are reserved
    /// from in-band registration ([accounts] reserved) can be given here.
    Add {
        /// Its address, as in alice@localhost; the host must be one of the server's
        jid: String,
        #[command(flatten)]
        password: Password,
    },
    /// Set a new password; sessions go on unless they are to end
    ///
    /// Every login at every node needs the new password from then on. The password is asked for, or read as one
    /// line from a stdin that is no terminal.
    Passwd {
        /// Address of the account
        jid: String,
        #[command(flatten)]
        password: Password,
        /// End all sessions of the account, for a password that somebody else may have known
        #[arg(long)]
        end_sessions: bool,
    },
    /// Let nobody log in to an account, and end its sessions
    ///
    /// What is kept for the account stays, and messages for it are kept as for a user who is away. Who logs in
    /// with the right password is told that the account is disabled.
    Disable {
        /// Address of the account
        jid: String,
    },
    /// Let the owner of a disabled account log in again
    Enable {
        /// Address of the account
        jid: String,
    },
    /// Remove an account and all that is kept for it
    ///
    /// Its sessions end, its contacts are told (unsubscribed both ways), and its roster, waiting messages and keys
    /// are erased. There is no way back; `disable` is the gentler one.
    Remove {
        /// Address of the account
        jid: String,
    },
    /// List the accounts, one address per line; behind one that is not open stands its state
    List {
        /// Only the accounts of this host
        #[arg(long)]
        host: Option<String>,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Without a flag the password is asked for, or read as one line from a stdin that is no terminal.
#[derive(Args)]
pub struct Password {
    /// The password; other users of the machine can see it in the list of processes
    #[arg(long)]
    pub password: Option<String>,
}

/// Keeps the password out of whatever prints a command line.
impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.password.is_some() { "Password(given)" } else { "Password(to be asked)" })
    }
}

#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Nodes, roles, incarnations, leader and number of sessions
    Status {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// Every bound session of the cluster
    List {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Only the sessions of this account
        #[arg(long, value_name = "JID")]
        account: Option<String>,
    },
    /// End a session (full address) or all sessions of an account (bare address)
    Kick {
        /// The address
        jid: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check a config file and say what is wrong with it, without starting anything
    Check {
        /// The config file (TOML)
        file: PathBuf,
        /// Set one key over the file
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print every key with its default and what it means
    PrintDefault,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Three backends and two frontends in place of three nodes that are both
    #[arg(long)]
    pub split: bool,
    /// First of the ports; each node takes five in a row
    #[arg(long, default_value_t = 15222)]
    pub base_port: u16,
    /// End after the exchange, with status 0 only if all of it worked
    #[arg(long)]
    pub once: bool,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let cli = Cli::try_parse_from(line.split_whitespace())?;
        cli.check().map(|()| cli)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_manual_is_understood() {
        for line in [
            "rookery serve",
            "rookery serve --config a.toml --set a=1 --set b.c=x",
            "rookery user add alice@localhost --password secret",
            "rookery user add alice@localhost",
            "rookery user remove alice@localhost",
            "rookery user passwd alice@localhost --password x",
            "rookery user passwd alice@localhost --end-sessions",
            "rookery user disable alice@localhost",
            "rookery user enable alice@localhost",
            "rookery user list --host localhost",
            "rookery user list --admin http://127.0.0.1:1",
            "rookery user --admin http://127.0.0.1:1 list",
            "rookery --admin http://127.0.0.1:1 user list",
            "rookery cluster status",
            "rookery cluster status --format json",
            "rookery cluster status --format table --admin http://127.0.0.1:1",
            "rookery session list",
            "rookery session kick alice@localhost/phone",
            "rookery config check a.toml",
            "rookery config print-default",
            "rookery demo",
            "rookery demo --split --base-port 20000 --once",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_is_not_in_the_manual_is_refused() {
        for line in [
            "rookery",
            "rookery serve extra",
            "rookery user add",
            "rookery cluster status --format xml",
            "rookery demo --base-port 99999",
            "rookery serve --admin http://127.0.0.1:1",
            "rookery --admin http://127.0.0.1:1 demo",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_admin_service_is_sought_on_loopback_unless_told_otherwise() {
        assert_eq!(parse("rookery cluster status").unwrap().admin_url(), "http://127.0.0.1:5280");
        for line in ["rookery --admin URL session list", "rookery session list --admin URL"] {
            assert_eq!(parse(line).unwrap().admin_url(), "URL", "{line}");
        }
    }

    #[test]
    fn a_password_on_the_command_line_is_not_printed() {
        let command = parse("rookery user add a@localhost --password secret").unwrap();
        assert!(!format!("{command:?}").contains("secret"));
    }
}

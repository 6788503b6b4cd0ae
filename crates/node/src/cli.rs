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
    /// Admin service of a node, for the commands that ask one [default: http://127.0.0.1:5280]
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
        let asks = match &self.command {
            Command::Cluster { what } => {
                !matches!(what, Cluster::Init(_) | Cluster::Join { .. } | Cluster::Recover { .. })
            }
            other => matches!(
                other,
                Command::User { .. }
                    | Command::Group { .. }
                    | Command::Node { .. }
                    | Command::Health(_)
                    | Command::Session { .. }
            ),
        };
        if self.admin.is_some() && !asks {
            let text = "`--admin` is for the commands that ask a running node: `user`, `group`, `node`, `session`, `health`, and those of `cluster` except `init`, `join` and `recover`";
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
    /// Groups of contacts that users find in their rosters: list, add, remove, delete
    Group {
        #[command(subcommand)]
        what: Group,
    },
    /// The cluster: status, check, init, token, join, remove, recover
    Cluster {
        #[command(subcommand)]
        what: Cluster,
    },
    /// Nodes: drain, undrain
    Node {
        #[command(subcommand)]
        what: Node,
    },
    /// Say whether a node is ready for clients, by the exit status too
    Health(Health),
    /// Sessions: list, kick
    Session {
        #[command(subcommand)]
        what: Session,
    },
    /// Config files: check, print-default, dns, host-meta
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
        /// Keys of the password in place of it, from a file or, as `-`, from stdin: one line for each mechanism, as in
        /// SCRAM-SHA-1$4096:salt$StoredKey:ServerKey (RFC 5803; the last three in base64). So accounts come from a
        /// server that knows no passwords either; what keys are missing is made as their owners log in
        #[arg(long, value_name = "FILE", conflicts_with = "password")]
        scram: Option<PathBuf>,
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

#[derive(Debug, Subcommand)]
pub enum Group {
    /// List the groups with their members
    List {
        /// Only the groups of this host
        #[arg(long)]
        host: Option<String>,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Add accounts to a group, which is made where it is not there
    ///
    /// Each member finds the others in their roster, under the name of the group, and sees their presence. The module
    /// `shared_groups` must be on; every node sees the change within its `refresh_s`.
    Add {
        /// The host
        host: String,
        /// The name of the group, as users see it
        name: String,
        /// Accounts of the host, by their names or addresses
        #[arg(required_unless_present = "everyone")]
        members: Vec<String>,
        /// All accounts of the host, also those that are made later
        #[arg(long)]
        everyone: bool,
    },
    /// Take accounts out of a group; one without members stays
    Remove {
        /// The host
        host: String,
        /// The name of the group
        name: String,
        /// Accounts of the host, by their names or addresses
        #[arg(required_unless_present = "everyone")]
        members: Vec<String>,
        /// All accounts of the host are in it no longer; those that were named stay
        #[arg(long)]
        everyone: bool,
    },
    /// End a group
    ///
    /// What users keep of its members themselves (names, groups, subscriptions) stays.
    Delete {
        /// The host
        host: String,
        /// The name of the group
        name: String,
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
        /// Go on to show it: leases, indexes, relay, logs and snapshots too. On a terminal the picture is drawn anew each
        /// second; elsewhere each change is a line, and as JSON each view is one. Ctrl-C ends it. When the node that is
        /// asked goes away, it is looked for
        #[arg(long)]
        watch: bool,
    },
    /// Say whether the invariants of the cluster hold
    ///
    /// Asks every node: the route table is the same on all of them at the same index (`table-equal`), and it is the
    /// union of the sessions that live (`sessions-routed`). What does not hold is told with the node and the sessions.
    /// It changes nothing, and takes some seconds where something is wrong.
    ///
    /// Status 0 when all of it holds, 1 when something does not or is not known, as of a node that does not answer.
    Check {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Make this machine's node the first of a new cluster
    ///
    /// Run it once, on one machine, before its node starts, as the user that the node runs as. It makes the
    /// cluster's certificate authority and this node's certificate, in `node.data_dir` of the config. Then start
    /// the node, and bring in every other one with `rookery cluster token` and `rookery cluster join`.
    ///
    /// A cluster whose certificates you make yourself (`cluster.cert`), or one with plain links on loopback, does
    /// not need this.
    Init(ConfigArgs),
    /// Print a one-time token with which one other node can join
    ///
    /// Asks a running backend. The token holds the fingerprint of the cluster's authority, so that the new node
    /// knows whom it talks to, and a secret: give it only to that node. It is printed to stdout, and what to do
    /// with it to stderr. With --list or --revoke no token is made.
    Token {
        /// What the new node may be; a token for both also lets in a node that is only one
        #[arg(long, value_enum, default_value_t)]
        role: Role,
        /// How long it can be used: a number with s, m, h or d, at most 30d
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: std::time::Duration,
        /// Show the tokens that were made, without their secrets
        #[arg(long, conflicts_with_all = ["role", "ttl", "revoke"])]
        list: bool,
        /// Take a token back, by the id that --list shows
        #[arg(long, value_name = "ID", conflicts_with_all = ["role", "ttl"])]
        revoke: Option<String>,
        /// How --list prints
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Let this machine's node join a cluster by a token
    ///
    /// Run it before the node starts for the first time, as the user that the node runs as. The node makes a key of
    /// its own and gets a certificate for it; both are kept in `node.data_dir` of the config, which must not
    /// belong to a cluster yet. Then start the node. In place of this command the token can stand in the config, as
    /// `cluster.join` or in the file `cluster.join_file`.
    Join {
        /// The token, with the address of a backend: TOKEN@HOST:PORT. Without an address those of
        /// `cluster.discovery` are tried. `-` reads it from stdin, so that nobody sees it in the list of processes
        token: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Take a node out of the cluster for good
    ///
    /// Asks a running backend. A node that lives ends its sessions and stops; one that is gone is forgotten. Its
    /// certificate is not accepted any more, and it takes no part in decisions. To bring the machine back, give it an
    /// empty data directory and a new token. A node that only restarts, or that is away for a while, is not removed:
    /// it comes back by itself.
    Remove {
        /// Its name, or its id, as `rookery cluster status` shows them
        node: String,
    },
    /// Begin the cluster anew from this backend, after most of the others were lost for good
    ///
    /// For the one case in which a cluster cannot heal itself: more than half of the backends that decide have lost
    /// their disks, or will never run again. As long as they may come back, start them instead: nothing is lost then.
    /// If several backends are left, run this at one of them alone, at the one that has the most: without --yes the
    /// command changes nothing, and shows what this one has.
    ///
    /// Stop the node first, and every other backend that is left; keep a copy of `node.data_dir`; then run this as the
    /// user that the node runs as. Accounts, rosters and messages are as this backend has them: what the others had
    /// acknowledged without it is lost. The cluster enters a new epoch. The other backends are no part of it, and are
    /// refused when they come back with what they had; give them empty data directories, and new tokens. Frontends
    /// come back by themselves. Then start this node: it decides alone until others have joined.
    Recover {
        /// Do it; without this the command only shows what it would do
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Where a command that asks no running node finds the node's settings.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The config file (TOML) of the node
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key over the file, as in `--set node.data_dir=/var/lib/rookery`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What a node may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Clients
    Frontend,
    /// Agreement and data
    Backend,
    /// Both
    #[default]
    Both,
}

/// `90s`, `30m`, `1h`, `7d`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("`{text}` is no duration: expected a number with s, m, h or d, as in 1h");
    let (number, seconds) = match text.char_indices().last() {
        Some((at, unit)) => (
            &text[..at],
            match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 24 * 3600,
                _ => return Err(wrong()),
            },
        ),
        None => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(wrong)
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
pub enum Node {
    /// Send the clients of a node elsewhere, and show how that goes until none is left
    ///
    /// The node takes nothing new from then on: it is not ready for load balancers, other nodes send nobody there,
    /// and whoever comes is led on. What waits for a client is written to it before it is told where to go; it goes
    /// on if this command is interrupted, and `rookery node undrain` ends it. A node that drains still votes and
    /// keeps data until it is stopped.
    ///
    /// Status 0 when nobody is left, 1 when that was not reached.
    Drain {
        /// Name or id of the node; not given, the one that is asked
        node: Option<String>,
        /// Clients in a second (`500/s`) or a minute (`600/m`), at most; not given, [node] drain_rate
        #[arg(long, value_name = "RATE", value_parser = rate)]
        rate: Option<u32>,
        /// End the process of the node when nobody is left
        #[arg(long)]
        stop: bool,
    },
    /// Let a node that drains take clients and everything else again
    Undrain {
        /// Name or id of the node; not given, the one that is asked
        node: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct Health {
    /// Say whether the process works, ready or not
    #[arg(long)]
    pub live: bool,
}

/// `500/s`, `500` or `600/m`: how many in a second, rounded up.
fn rate(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let number: u32 = number.trim().parse().map_err(|_| "expected a rate as in 500/s".to_owned())?;
    let each = match unit.trim() {
        "s" => 1,
        "m" | "min" => 60,
        other => return Err(format!("`{other}` is no unit of time: expected s or m, as in 500/s")),
    };
    match number.div_ceil(each) {
        0 => Err("nobody would ever leave: expected at least 1/s".to_owned()),
        rate => Ok(rate),
    }
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
    /// Print the DNS records by which clients find the hosts of a config, for a zone file
    ///
    /// Each frontend has a record of its own: where `c2s.advertise` and `c2s.advertise_direct_tls` are set the records
    /// lead there, else to the host itself. Give the records of all frontends to your name server.
    Dns {
        /// The config file (TOML) of a frontend
        file: PathBuf,
        /// Set one key over the file
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print what leads clients that cannot ask DNS, as those in browsers, to a host (XEP-0156, XEP-0487)
    ///
    /// It belongs at /.well-known/host-meta and, with --json, at /.well-known/host-meta.json of the host's web site, by
    /// HTTPS and for every origin (`Access-Control-Allow-Origin: *`). What it says is set in `[web]` of the config.
    HostMeta {
        /// The config file (TOML) of a frontend
        file: PathBuf,
        /// The host; needed where the config has several
        #[arg(long)]
        host: Option<String>,
        /// The form of JSON in place of that of XML
        #[arg(long, conflicts_with = "into")]
        json: bool,
        /// Write both files of every host, into a folder for each of them below this one
        #[arg(long, value_name = "FOLDER")]
        into: Option<PathBuf>,
        /// Set one key over the file
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
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
            "rookery user add alice@localhost --scram keys.txt",
            "rookery user add --scram - alice@localhost",
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
            "rookery cluster status --watch",
            "rookery cluster status --watch --format json",
            "rookery cluster check",
            "rookery cluster check --format json --admin http://127.0.0.1:1",
            "rookery cluster init",
            "rookery cluster init --config a.toml --set a=1",
            "rookery cluster token",
            "rookery cluster token --role frontend --ttl 30m --admin http://127.0.0.1:1",
            "rookery cluster token --list --format json",
            "rookery cluster token --revoke 00ff",
            "rookery cluster join TOKEN@node1:7400 --config a.toml",
            "rookery cluster join - --config a.toml",
            "rookery cluster remove node3",
            "rookery node drain",
            "rookery node drain node2 --rate 500/s",
            "rookery node drain 7 --rate 50 --stop --admin http://127.0.0.1:1",
            "rookery node undrain node2",
            "rookery health",
            "rookery health --live --admin http://127.0.0.1:1",
            "rookery session list",
            "rookery session kick alice@localhost/phone",
            "rookery config check a.toml",
            "rookery config print-default",
            "rookery config dns a.toml --set c2s.listen=[]",
            "rookery config host-meta a.toml",
            "rookery config host-meta a.toml --host example.org --json --set web.addresses=[]",
            "rookery config host-meta a.toml --into /var/www",
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
            "rookery user add a@localhost --scram keys.txt --password x",
            "rookery cluster status --format xml",
            "rookery cluster token --ttl 5",
            "rookery cluster token --ttl h",
            "rookery cluster token --ttl 99999999999999999999d",
            "rookery cluster token --role admin",
            "rookery cluster token --list --revoke 1",
            "rookery cluster join",
            "rookery cluster remove",
            "rookery cluster init --admin http://127.0.0.1:1",
            "rookery cluster join X --admin http://127.0.0.1:1",
            "rookery demo --base-port 99999",
            "rookery node",
            "rookery config host-meta a.toml --json --into x",
            "rookery node drain --rate 0",
            "rookery node drain --rate 5/h",
            "rookery node drain --rate fast",
            "rookery serve --admin http://127.0.0.1:1",
            "rookery --admin http://127.0.0.1:1 demo",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_rate_is_in_a_second() {
        for (text, wanted) in [("500/s", 500), ("500", 500), ("600/m", 10), ("90 / min", 2), ("1/m", 1)] {
            assert_eq!(rate(text), Ok(wanted), "{text}");
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

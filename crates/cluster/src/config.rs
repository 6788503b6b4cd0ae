//! Settings of the cluster: where to listen, whom to look for, and the times that hold it together.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// `[cluster]`; without `listen` the node is a cluster of one that speaks to nobody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where the cluster's gRPC listens.
    pub listen: Option<SocketAddr>,
    /// `host:port` at which other nodes reach this one; the listen address if it is not given.
    pub advertise: Option<String>,
    /// How many backends must see each other before the cluster is formed for the first time.
    pub expect: usize,
    /// Where to look for other nodes.
    pub discovery: Discovery,
    /// Links without TLS, on loopback only.
    pub plain: bool,
    /// The certificates of the links, where an operator gives them; else they are of the cluster's own authority.
    pub tls: Option<TlsFiles>,
    /// How a node without a certificate comes in.
    pub join: Option<Join>,
    /// For how long the cluster's authority makes certificates, in seconds.
    pub certificate_lifetime_s: u64,
    /// The times.
    pub times: Times,
}

/// Where to look for other nodes; each gives addresses and no more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discovery {
    /// Nobody to look for.
    #[default]
    None,
    /// A list of `host:port`.
    Static(Vec<String>),
    /// `name:port`, looked up again and again (A and AAAA).
    Dns(String),
    /// A file with a `host:port` per line, read again when it changes.
    File(PathBuf),
}

/// No certificate is made for longer, so that a removed node is kept out for a time that all nodes know.
pub const CERTIFICATE_LIFETIME_MAX_S: u64 = 365 * 24 * 3600;

/// A join token, or where it is: `TOKEN` or `TOKEN@HOST:PORT`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// It.
    Token(String),
    /// A file with nothing else in it.
    File(PathBuf),
}

/// Without the secret.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Join::Token(_) => f.write_str("Token"),
            Join::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// PEM files of the links between nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// The certificates of the cluster's authority.
    pub ca: PathBuf,
    /// This node's certificate chain.
    pub cert: PathBuf,
    /// This node's key.
    pub key: PathBuf,
}

/// Times of the lease and of Raft, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// A node renews its lease this often.
    pub renew_ms: u64,
    /// A node fences itself this long after the sending of its last acknowledged renewal.
    pub fence_ms: u64,
    /// The leader expires a node this long after the last renewal that it received.
    pub expire_ms: u64,
    /// A node that is without its lease for no longer than this brings its sessions back; after it, it closes
    /// their streams.
    pub grace_ms: u64,
    /// A backend that is gone for longer than this gives its vote to another one, where there is one.
    pub replace_ms: u64,
    /// Raft's heartbeat.
    pub heartbeat_ms: u64,
    /// The shortest election timeout.
    pub election_min_ms: u64,
    /// The longest election timeout.
    pub election_max_ms: u64,
    /// The leader takes no proposal when its last quorum is older than this.
    pub quorum_age_ms: u64,
    /// How long a route command may take before it is given up.
    pub command_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: None,
            advertise: None,
            expect: 1,
            discovery: Discovery::None,
            plain: false,
            tls: None,
            join: None,
            certificate_lifetime_s: 30 * 24 * 3600,
            times: Times::default(),
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Times {
            renew_ms: 500,
            fence_ms: 3000,
            expire_ms: 5000,
            grace_ms: 15_000,
            replace_ms: 60_000,
            heartbeat_ms: 250,
            election_min_ms: 1000,
            election_max_ms: 2000,
            quorum_age_ms: 1000,
            command_ms: 10_000,
        }
    }
}

impl Times {
    pub(crate) fn renew(&self) -> Duration {
        Duration::from_millis(self.renew_ms)
    }

    pub(crate) fn fence(&self) -> Duration {
        Duration::from_millis(self.fence_ms)
    }

    pub(crate) fn expire(&self) -> Duration {
        Duration::from_millis(self.expire_ms)
    }

    /// How long a new leader waits before it expires a node that it has not heard. Its predecessor grants nothing any
    /// more once its quorum is too old, and no voter grants another one its vote within half of `election_max_ms`, so
    /// behind this no lease is held that was granted before; the rest is for clocks that drift.
    pub(crate) fn expire_elected(&self) -> Duration {
        let granting = self.quorum_age_ms.saturating_sub(self.election_max_ms / 2);
        let drift = self.expire_ms.saturating_sub(self.fence_ms) / 4;
        Duration::from_millis((self.fence_ms + granting + drift).min(self.expire_ms))
    }

    /// How far behind the leader's table a node may be that gets its lease renewed: so that with the lease that it has, it
    /// serves by an old table for less than the time in which a silent node is expired, also across an election.
    pub(crate) fn behind(&self) -> Duration {
        Duration::from_millis(self.expire_ms.saturating_sub(self.fence_ms) / 2)
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(crate) fn replace(&self) -> Duration {
        Duration::from_millis(self.replace_ms)
    }

    pub(crate) fn command(&self) -> Duration {
        Duration::from_millis(self.command_ms)
    }
}

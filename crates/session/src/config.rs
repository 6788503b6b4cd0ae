//! What an operator may set about client connections: where to listen, who speaks for clients, what TLS is asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stream::sasl::MechanismName;

use crate::limits::Limits;
use crate::network::Network;

/// Settings of the client side of a node: the tables `[c2s]`, `[auth]`, `[tls]` and the session keys of
/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Config {
    /// The table `[c2s]`.
    pub c2s: C2s,
    /// The table `[auth]`.
    pub auth: Auth,
    /// The table `[tls]`.
    pub tls: Tls,
    /// The session keys of the table `[limits]`.
    pub limits: Limits,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct C2s {
    /// Addresses for clients that start in the clear and switch with STARTTLS (RFC 6120, 5).
    pub listen: Vec<SocketAddr>,
    /// Addresses for clients that start with TLS (XEP-0368, ALPN `xmpp-client`).
    pub direct_tls_listen: Vec<SocketAddr>,
    /// Whether a client must switch to TLS before it logs in.
    pub tls_required: bool,
    /// What happens when a client asks for a resource that another session has.
    pub resource_conflict: ResourceConflict,
    /// Threads that own sessions; 0 means one for each core.
    pub arbiters: usize,
    /// Networks of proxies, which begin each connection with a PROXY header (HAProxy's PROXY protocol, version 1
    /// or 2): without one it is closed. A header from anybody else is garbage.
    pub proxy_from: Vec<Network>,
    /// `host:port` at which clients reach this node with STARTTLS; others send theirs here when they drain.
    pub advertise: Option<String>,
    /// The same for direct TLS.
    pub advertise_direct_tls: Option<String>,
}

/// What happens when a client asks for a resource that another session has (RFC 6120, 7.7.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ResourceConflict {
    /// The older session is closed with `conflict`.
    #[default]
    Replace,
    /// The newer one hears `conflict` and may ask for another.
    Refuse,
    /// The newer one gets a resource made by the server.
    Rename,
}

impl From<ResourceConflict> for cluster::ConflictPolicy {
    fn from(conflict: ResourceConflict) -> cluster::ConflictPolicy {
        match conflict {
            ResourceConflict::Replace => cluster::ConflictPolicy::Replace,
            ResourceConflict::Refuse => cluster::ConflictPolicy::Refuse,
            ResourceConflict::Rename => cluster::ConflictPolicy::Rename,
        }
    }
}

impl Default for C2s {
    fn default() -> Self {
        C2s {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 5222))],
            direct_tls_listen: vec![SocketAddr::from(([0, 0, 0, 0], 5223))],
            tls_required: true,
            resource_conflict: ResourceConflict::default(),
            arbiters: 0,
            proxy_from: Vec::new(),
            advertise: None,
            advertise_direct_tls: None,
        }
    }
}

/// How clients may log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    /// SASL mechanisms by their registered names, in the order in which they are offered; another one is
    /// answered with `invalid-mechanism`.
    pub mechanisms: Vec<String>,
    /// Hosts on which a client may log in without an account (ANONYMOUS).
    pub anonymous_hosts: Vec<String>,
}

impl Auth {
    /// Whether a client may log in to this host without an account.
    pub(crate) fn is_anonymous(&self, host: &str) -> bool {
        self.anonymous_hosts.iter().any(|anonymous| anonymous == host)
    }
}

impl Default for Auth {
    fn default() -> Self {
        let mechanisms = MechanismName::DEFAULT.map(|name| name.as_str().to_owned());
        Auth { mechanisms: mechanisms.to_vec(), anonymous_hosts: Vec::new() }
    }
}

/// What TLS connections of clients may be, and what is shown on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// The certificate of every host that has none of its own.
    #[serde(skip)]
    pub files: TlsFiles,
    /// Certificates of single hosts, chosen by the name that a client asks for.
    #[serde(skip)]
    pub hosts: BTreeMap<String, TlsFiles>,
    /// The lowest version that is spoken.
    pub min_version: TlsMinimum,
    /// Cipher suites that may be agreed on, by their IANA names, best first.
    pub ciphers: Vec<String>,
    /// Longest life of a resumption ticket, in seconds; 0 gives none.
    pub ticket_lifetime_s: u32,
    /// PEM file with the authorities that sign certificates of clients; only with it is one asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_certificates: ClientCertificates,
}

/// The lowest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum TlsMinimum {
    /// 1.2.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Without one, or with one that is not trusted, it may log in by other means.
    #[default]
    Optional,
    /// Without one that is trusted the handshake fails.
    Required,
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            files: TlsFiles::default(),
            hosts: BTreeMap::new(),
            min_version: TlsMinimum::default(),
            ciphers: crate::tls::cipher_names(),
            ticket_lifetime_s: 7_200,
            client_ca: None,
            client_certificates: ClientCertificates::default(),
        }
    }
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TlsFiles {
    /// PEM file with the certificate, its issuers behind it; read again when it changes.
    pub cert: PathBuf,
    /// PEM file with the private key of the certificate; read again when it changes.
    pub key: PathBuf,
}

//! What an operator may set about client connections: where to listen, what TLS is asked for, every bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the client side of a node: the tables `[c2s]`, `[tls]` and the session keys of `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Config {
    /// The table `[c2s]`.
    pub c2s: C2s,
    /// The table `[tls]`.
    pub tls: TlsFiles,
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
        }
    }
}

/// The server's certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TlsFiles {
    /// PEM file with the certificate, its issuers behind it; read again when it changes.
    pub cert: PathBuf,
    /// PEM file with the private key of the certificate; read again when it changes.
    pub key: PathBuf,
}

/// Bounds of the client side, each with what happens at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Client sockets of this node; further ones are closed at once.
    pub connections: usize,
    /// Sockets from one IPv4 address or one IPv6 /64; further ones are closed at once.
    pub connections_per_address: usize,
    /// New sockets in a second from one IPv4 address or one IPv6 /64; further ones are closed at once.
    pub accepts_per_address_per_second: u32,
    /// Whether the two bounds per address hold for loopback addresses too.
    pub limit_loopback: bool,
    /// Sessions of one account on this node; a further bind is refused with `resource-constraint`.
    pub sessions_per_account: usize,
    /// Seconds in which a new socket must send its first byte, then it is closed.
    pub first_byte_timeout_s: u64,
    /// Seconds in which a stream header must be complete, then `connection-timeout`.
    pub header_timeout_s: u64,
    /// Seconds in which a TLS handshake must be complete, then the socket is closed.
    pub tls_handshake_timeout_s: u64,
    /// Seconds from the socket's start to a bound session, then `connection-timeout`.
    pub login_timeout_s: u64,
    /// Seconds in which a started stanza must be complete, then `connection-timeout`.
    pub stanza_timeout_s: u64,
    /// Seconds that a write may wait for a client that does not read, then the session is lost.
    pub write_timeout_s: u64,
    /// Seconds without traffic until the kernel asks whether the peer lives, and until unacknowledged
    /// bytes end the connection; 0 switches both off.
    pub peer_timeout_s: u64,
    /// Milliseconds that a closed stream waits for the client to close its side.
    pub linger_ms: u64,
    /// Seconds that a stopping node gives its sessions to end.
    pub stop_timeout_s: u64,
    /// Threads that check plain passwords.
    pub password_threads: usize,
    /// Password checks that may wait; further ones are answered with `temporary-auth-failure`.
    pub password_queue: usize,
    /// Answers to a client's own mistakes that may wait, in bytes; beyond it the client is not read.
    pub reply_bytes: usize,
    /// Bytes taken from the mailbox for one write.
    pub write_bytes: usize,
    /// Bytes of one stanza or stream element before login; a larger one ends the stream.
    pub before_auth_stanza_bytes: usize,
    /// Elements in one of them; more end the stream.
    pub before_auth_elements: usize,
    /// Nesting in one of them; deeper ends the stream.
    pub before_auth_depth: usize,
    /// Bytes of one stanza after login; a larger one ends the stream.
    pub stanza_bytes: usize,
    /// Elements in one stanza after login; more end the stream.
    pub stanza_elements: usize,
    /// Nesting in one stanza after login; deeper ends the stream.
    pub stanza_depth: usize,
    /// Attributes of one element, at any time; more end the stream.
    pub attributes: usize,
    /// Bytes of one name or attribute value, at any time; a longer one ends the stream.
    pub token_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let (before, after) = (stream::Limits::before_auth(), stream::Limits::after_auth());
        Limits {
            connections: 100_000,
            connections_per_address: 1_000,
            accepts_per_address_per_second: 100,
            limit_loopback: false,
            sessions_per_account: 100,
            first_byte_timeout_s: 10,
            header_timeout_s: 30,
            tls_handshake_timeout_s: 15,
            login_timeout_s: 60,
            stanza_timeout_s: 600,
            write_timeout_s: 30,
            peer_timeout_s: 300,
            linger_ms: 500,
            stop_timeout_s: 10,
            password_threads: 2,
            password_queue: 128,
            reply_bytes: 16 * 1024,
            write_bytes: 64 * 1024,
            before_auth_stanza_bytes: before.stanza_bytes,
            before_auth_elements: before.elements,
            before_auth_depth: before.depth,
            stanza_bytes: after.stanza_bytes,
            stanza_elements: after.elements,
            stanza_depth: after.depth,
            attributes: after.attributes,
            token_bytes: after.token_bytes,
        }
    }
}

impl Limits {
    /// What the reader lets pass until the client has authenticated.
    pub(crate) fn before_auth(&self) -> stream::Limits {
        stream::Limits {
            stanza_bytes: self.before_auth_stanza_bytes,
            elements: self.before_auth_elements,
            depth: self.before_auth_depth,
            attributes: self.attributes,
            token_bytes: self.token_bytes,
        }
    }

    /// What the reader lets pass afterwards.
    pub(crate) fn after_auth(&self) -> stream::Limits {
        stream::Limits {
            stanza_bytes: self.stanza_bytes,
            elements: self.stanza_elements,
            depth: self.stanza_depth,
            attributes: self.attributes,
            token_bytes: self.token_bytes,
        }
    }

    pub(crate) fn first_byte(&self) -> Duration {
        Duration::from_secs(self.first_byte_timeout_s)
    }

    pub(crate) fn header(&self) -> Duration {
        Duration::from_secs(self.header_timeout_s)
    }

    pub(crate) fn tls_handshake(&self) -> Duration {
        Duration::from_secs(self.tls_handshake_timeout_s)
    }

    pub(crate) fn login(&self) -> Duration {
        Duration::from_secs(self.login_timeout_s)
    }

    pub(crate) fn stanza(&self) -> Duration {
        Duration::from_secs(self.stanza_timeout_s)
    }

    pub(crate) fn write(&self) -> Duration {
        Duration::from_secs(self.write_timeout_s)
    }

    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop_timeout_s)
    }
}

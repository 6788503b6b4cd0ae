//! The bounds of the client side, each with what happens at it.

use std::net::IpAddr;
use std::time::Duration;

use jid::BareJid;
use serde::{Deserialize, Serialize};

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
    /// New sockets in a second of the whole node, of those that the other bounds let in; further ones wait in
    /// the queue of the system.
    pub accepts_per_second: u32,
    /// Microseconds that the threads of sessions may be late while logins begin; as long as they are later, fewer
    /// logins begin and further ones wait, the first come first. 0: all begin at once.
    pub login_lag_us: u64,
    /// Logins that may begin in a second however late those threads are.
    pub logins_per_second_min: u32,
    /// Logins that may wait for their turn; further sockets wait in the queue of the system.
    pub logins_waiting: usize,
    /// Sockets of this node that have not logged in; a further one closes the oldest of them, with
    /// `resource-constraint` where it has a stream.
    pub unauthenticated_connections: usize,
    /// Open files of the process that are kept for the store, links to other nodes and operators, at most a
    /// quarter of what the system allows; where only they are left, further sockets are closed at once.
    pub open_files_reserve: u64,
    /// Whether the bounds per address, the back-off after failed logins and the rates of a session hold for
    /// clients on loopback addresses too.
    pub limit_loopback: bool,
    /// Logins that may fail on one stream; one more ends it with `policy-violation`.
    pub auth_failures_per_stream: u8,
    /// Milliseconds that the answer to a first failed login is held back; doubled for each further failure of
    /// the same address or at the same account. Attempts of an address that failed wait as long.
    pub auth_delay_ms: u64,
    /// Longest such delay, in milliseconds.
    pub auth_delay_max_ms: u64,
    /// Seconds until a failed login is forgotten.
    pub auth_failure_memory_s: u64,
    /// Addresses, and accounts, whose failed logins are remembered; beyond it the oldest are forgotten.
    pub auth_failures_remembered: usize,
    /// Attempts of one address that may wait for such a delay; further ones hear `temporary-auth-failure`.
    pub auth_waiting_per_address: usize,
    /// Bytes that one client may send in a second, on average; beyond it the client is read more slowly.
    /// 0: no bound.
    pub session_bytes_per_second: u32,
    /// Bytes that one client may send at once before that rate holds.
    pub session_bytes_burst: u32,
    /// Stanzas that one client may send in a second, on average; beyond it the client is read more slowly.
    /// 0: no bound.
    pub session_stanzas_per_second: u32,
    /// Stanzas that one client may send at once before that rate holds.
    pub session_stanzas_burst: u32,
    /// Accounts, or hosts with all of their accounts, whose sessions may send as fast as they can.
    pub session_rates_exempt: Vec<BareJid>,
    /// Seconds in which a proxy's header must be complete, then the socket is closed.
    pub proxy_header_timeout_s: u64,
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
    /// Seconds that a session without a connection waits for its client to resume it (XEP-0198), at most; then it ends, and
    /// what the client has not acknowledged goes to another session of the account, is stored or bounced. 0: sessions
    /// end with their connections.
    pub resumption_s: u64,
    /// Stanzas written to a client that it has not acknowledged (XEP-0198); further ones wait in its mailbox.
    pub unacknowledged_stanzas: usize,
    /// Bytes of such stanzas; the same happens at this bound.
    pub unacknowledged_bytes: usize,
    /// Seconds that a client may take to say what it has handled; then its connection is lost.
    pub acknowledgement_timeout_s: u64,
    /// Stanzas that wait while nobody looks at a client (XEP-0352); one more, and all of them are written.
    pub held_stanzas: usize,
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
            accepts_per_second: 1_000,
            login_lag_us: 250,
            logins_per_second_min: 50,
            logins_waiting: 1_000,
            unauthenticated_connections: 10_000,
            open_files_reserve: 256,
            limit_loopback: false,
            auth_failures_per_stream: 3,
            auth_delay_ms: 250,
            auth_delay_max_ms: 10_000,
            auth_failure_memory_s: 900,
            auth_failures_remembered: 65_536,
            auth_waiting_per_address: 32,
            session_bytes_per_second: 131_072,
            session_bytes_burst: 1_048_576,
            session_stanzas_per_second: 200,
            session_stanzas_burst: 2_000,
            session_rates_exempt: Vec::new(),
            proxy_header_timeout_s: 5,
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
            resumption_s: 300,
            unacknowledged_stanzas: 2_000,
            unacknowledged_bytes: 1024 * 1024,
            acknowledgement_timeout_s: 60,
            held_stanzas: 500,
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
            token_bytes: self.token_bytes.min(self.before_auth_stanza_bytes),
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

    /// Whether the bounds that are about one address hold for this one.
    pub(crate) fn hold_for(&self, address: IpAddr) -> bool {
        self.limit_loopback || !address.to_canonical().is_loopback()
    }

    /// Whether the sessions of this account may send as fast as they can.
    pub(crate) fn exempts(&self, account: &BareJid) -> bool {
        let names = |exempt: &BareJid| exempt.node().is_none() && exempt.domain() == account.domain();
        self.session_rates_exempt.iter().any(|exempt| exempt == account || names(exempt))
    }

    /// How late arbiters may be while logins begin; `None`: that does not matter.
    pub(crate) fn login_lag(&self) -> Option<Duration> {
        (self.login_lag_us > 0).then(|| Duration::from_micros(self.login_lag_us))
    }

    pub(crate) fn proxy_header(&self) -> Duration {
        Duration::from_secs(self.proxy_header_timeout_s)
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

    /// How long a session without a connection waits; `None`: none does.
    pub(crate) fn resumption(&self) -> Option<Duration> {
        (self.resumption_s > 0).then(|| Duration::from_secs(self.resumption_s))
    }

    pub(crate) fn acknowledgement(&self) -> Duration {
        Duration::from_secs(self.acknowledgement_timeout_s)
    }

    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_exempt_by_its_address_or_by_its_host() {
        let jid = |text: &str| BareJid::new(text).unwrap();
        let exempt = vec![jid("bot@localhost"), jid("bots.example")];
        let limits = Limits { session_rates_exempt: exempt, ..Limits::default() };
        for (account, is_exempt) in [
            ("bot@localhost", true),
            ("alice@localhost", false),
            ("any@bots.example", true),
            ("bot@other.example", false),
        ] {
            assert_eq!(limits.exempts(&jid(account)), is_exempt, "{account}");
        }
    }
}

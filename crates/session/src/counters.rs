//! What is counted about clients, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Totals since the start of the node. All of them only grow.
#[derive(Default)]
pub struct Counters {
    /// Sockets accepted and let in.
    pub accepted: Counter,
    /// Sockets closed at once because a bound on connections was reached.
    pub refused: Counter,
    /// Failures of `accept` itself, such as too many open files.
    pub accept_errors: Counter,
    /// Times that a listener waited because the whole node accepted as fast as it may.
    pub accept_pauses: Counter,
    /// Logins that waited for their turn, so that sessions stay in time.
    pub login_waits: Counter,
    /// Times that fewer logins were let begin because sessions were late.
    pub login_slowdowns: Counter,
    /// Sockets that had not logged in and were closed to make room for newer ones.
    pub evicted: Counter,
    /// Connections of proxies that did not begin with the header that they owe.
    pub proxy_failures: Counter,
    /// TLS handshakes that failed or took too long.
    pub tls_failures: Counter,
    /// Clients that authenticated.
    pub authenticated: Counter,
    /// Authentication attempts that failed.
    pub auth_failures: Counter,
    /// Password checks refused because too many waited.
    pub auth_busy: Counter,
    /// Logins that had to wait for failures before them.
    pub auth_delayed: Counter,
    /// Logins refused because too many of their address had to wait.
    pub auth_crowded: Counter,
    /// Times that a client was not read for a while because it sent more than its rates.
    pub slowed: Counter,
    /// Milliseconds that clients were not read for that reason, together.
    pub slowed_ms: Counter,
    /// Sessions refused because their account has as many as it may.
    pub binds_refused: Counter,
    /// Sessions bound.
    pub bound: Counter,
    /// Sessions that ended because code of ours panicked.
    pub panics: Counter,
    /// Streams whose clients began to acknowledge what they get.
    pub managed: Counter,
    /// Sessions that lost their connection and wait for their client.
    pub detached: Counter,
    /// Sessions that their clients resumed at this node.
    pub resumed: Counter,
    /// Sessions that their clients resumed here after they were at another node.
    pub resumed_from_peers: Counter,
    /// Attempts to resume a session that is not there any more.
    pub resumptions_failed: Counter,
    /// Messages read from bound sessions.
    pub messages_in: Counter,
    /// Presences read from bound sessions.
    pub presences_in: Counter,
    /// Iqs read from bound sessions.
    pub iqs_in: Counter,
    /// Stanzas written to bound sessions.
    pub stanzas_out: Counter,
    /// Stanzas refused for their shape, before any module saw them.
    pub bad_stanzas: Counter,
    /// Bytes read from clients, inside TLS where there is TLS.
    pub bytes_in: Counter,
    /// Bytes written to clients, inside TLS where there is TLS.
    pub bytes_out: Counter,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    stream_errors: Mutex<BTreeMap<&'static str, u64>>,
    ends: Mutex<BTreeMap<&'static str, u64>>,
    greetings: Mutex<BTreeMap<&'static str, u64>>,
}

/// One total.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

impl Counters {
    /// Sockets that were not let in, by the bound that they met.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refusals.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    /// Stream errors sent, by the name of their condition (RFC 6120, 4.9.3).
    pub fn stream_errors(&self) -> Vec<(&'static str, u64)> {
        self.stream_errors.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    /// Connections that ended, by why: see [`Outcome::name`](crate::Outcome::name).
    pub fn ends(&self) -> Vec<(&'static str, u64)> {
        self.ends.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    pub(crate) fn refuse(&self, why: &'static str) {
        self.refused.add(1);
        *self.refusals.lock().entry(why).or_default() += 1;
    }

    /// Requests answered before the login (in-band registration): `result`, or the condition of the error.
    pub fn greetings(&self) -> Vec<(&'static str, u64)> {
        self.greetings.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    pub(crate) fn greeted(&self, outcome: &'static str) {
        *self.greetings.lock().entry(outcome).or_default() += 1;
    }

    pub(crate) fn stream_error(&self, condition: &'static str) {
        *self.stream_errors.lock().entry(condition).or_default() += 1;
    }

    pub(crate) fn end(&self, name: &'static str) {
        *self.ends.lock().entry(name).or_default() += 1;
    }
}

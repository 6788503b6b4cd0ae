//! What is counted about clients, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Totals since the start of the node. All of them only grow.
#[derive(Default)]
pub struct Counters {
    /// Sockets accepted and let in.
    pub accepted: Counter,
    /// Sockets closed at accept because a bound on connections was reached.
    pub refused: Counter,
    /// Failures of `accept` itself, such as too many open files.
    pub accept_errors: Counter,
    /// TLS handshakes that failed or took too long.
    pub tls_failures: Counter,
    /// Clients that authenticated.
    pub authenticated: Counter,
    /// Authentication attempts that failed.
    pub auth_failures: Counter,
    /// Password checks refused because too many waited.
    pub auth_busy: Counter,
    /// Sessions bound.
    pub bound: Counter,
    /// Sessions that ended because code of ours panicked.
    pub panics: Counter,
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
    stream_errors: Mutex<BTreeMap<&'static str, u64>>,
    ends: Mutex<BTreeMap<&'static str, u64>>,
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
    /// Stream errors sent, by the name of their condition (RFC 6120, 4.9.3).
    pub fn stream_errors(&self) -> Vec<(&'static str, u64)> {
        self.stream_errors.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    /// Connections that ended, by why: see [`Outcome::name`](crate::Outcome::name).
    pub fn ends(&self) -> Vec<(&'static str, u64)> {
        self.ends.lock().iter().map(|(name, n)| (*name, *n)).collect()
    }

    pub(crate) fn stream_error(&self, condition: &'static str) {
        *self.stream_errors.lock().entry(condition).or_default() += 1;
    }

    pub(crate) fn end(&self, name: &'static str) {
        *self.ends.lock().entry(name).or_default() += 1;
    }
}

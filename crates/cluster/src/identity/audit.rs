//! Counts who was refused and why, and says so in the log under the target `audit`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::trust::TokenFault;

/// How many refusals are logged as warnings in [`WINDOW`]; further ones are counted, and logged at debug.
const LOGGED: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Why somebody was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No certificate, one of another authority, or one that grants no role.
    Certificate,
    /// The certificate is of another node than the caller claims to be.
    Identity,
    /// The certificate does not grant the role that this needs.
    Role,
    /// The caller belongs to another cluster.
    Cluster,
    /// The node was removed.
    Removed,
    /// A join token that there is not, or with a wrong secret.
    TokenUnknown,
    /// A join token by which another node came in.
    TokenSpent,
    /// A join token whose time is over.
    TokenExpired,
    /// A join token that was taken back.
    TokenRevoked,
    /// A join token for another role.
    TokenRole,
    /// More knocks than are answered.
    Crowd,
    /// A message that is too large, or too many at a time.
    Size,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 12] = [
        Reason::Certificate,
        Reason::Identity,
        Reason::Role,
        Reason::Cluster,
        Reason::Removed,
        Reason::TokenUnknown,
        Reason::TokenSpent,
        Reason::TokenExpired,
        Reason::TokenRevoked,
        Reason::TokenRole,
        Reason::Crowd,
        Reason::Size,
    ];

    /// Its word in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::Certificate => "certificate",
            Reason::Identity => "identity",
            Reason::Role => "role",
            Reason::Cluster => "cluster",
            Reason::Removed => "removed",
            Reason::TokenUnknown => "token-unknown",
            Reason::TokenSpent => "token-spent",
            Reason::TokenExpired => "token-expired",
            Reason::TokenRevoked => "token-revoked",
            Reason::TokenRole => "token-role",
            Reason::Crowd => "crowd",
            Reason::Size => "size",
        }
    }
}

impl From<TokenFault> for Reason {
    fn from(fault: TokenFault) -> Reason {
        match fault {
            TokenFault::Unknown => Reason::TokenUnknown,
            TokenFault::Spent => Reason::TokenSpent,
            TokenFault::Expired => Reason::TokenExpired,
            TokenFault::Revoked => Reason::TokenRevoked,
            TokenFault::Role => Reason::TokenRole,
        }
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub struct Audit {
    refused: [AtomicU64; Reason::ALL.len()],
    issued: AtomicU64,
    window: Mutex<Option<(Instant, u32)>>,
}

impl Audit {
    /// Counts a refusal. Strangers can bring about any number of them, so the log takes a bounded share.
    pub fn refused(&self, reason: Reason, text: &str, certificate: &str, from: &str) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        let reason = reason.word();
        if self.is_loud(Instant::now()) {
            tracing::warn!(target: "audit", reason, certificate, from, "refused: {text}");
        } else {
            tracing::debug!(target: "audit", reason, certificate, from, "refused: {text}");
        }
    }

    fn is_loud(&self, now: Instant) -> bool {
        let mut window = self.window.lock();
        match &mut *window {
            Some((since, logged)) if now.saturating_duration_since(*since) < WINDOW => {
                *logged += 1;
                *logged <= LOGGED
            }
            _ => {
                *window = Some((now, 1));
                true
            }
        }
    }

    /// How often somebody was refused for this reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// Certificates that this node has signed, renewals included.
    pub fn certificates_issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_counter_and_its_word() {
        let audit = Audit::default();
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n, "{reason:?}");
            (0..n).for_each(|_| audit.refused(reason, "no", "", ""));
        }
        let counts: Vec<u64> = Reason::ALL.into_iter().map(|reason| audit.count(reason)).collect();
        assert_eq!(counts, (0..Reason::ALL.len() as u64).collect::<Vec<_>>());
        let words: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn a_crowd_of_refusals_does_not_fill_the_log() {
        let (audit, now) = (Audit::default(), Instant::now());
        let loud = |at| (0..1000).filter(|_| audit.is_loud(at)).count();
        assert_eq!(loud(now), LOGGED as usize);
        assert_eq!(loud(now + WINDOW), LOGGED as usize);
    }
}

//! Bounds of the router, each with what happens at it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The keys of the table `[limits]` that the router obeys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Stanzas that may wait for one client; at the bound its session is closed with `resource-constraint`
    /// and what waited goes to another session of the account or is stored.
    pub mailbox_stanzas: usize,
    /// Bytes that may wait for one client; the same happens at this bound.
    pub mailbox_bytes: usize,
    /// Stanzas for one account that may wait while one of its arriving handlers awaits the store; further
    /// ones are bounced with `resource-constraint`.
    pub account_queue_stanzas: usize,
    /// Accounts whose waiting stanzas are worked on at the same time; the others wait for their turn.
    pub account_queues_at_once: usize,
    /// Stanzas on the way to another node, per lane, that it has not confirmed to have; further ones are
    /// bounced with `resource-constraint`.
    pub relay_window_stanzas: usize,
    /// Bytes on the way to another node, per lane, that it has not confirmed to have; further stanzas are
    /// bounced with `resource-constraint`.
    pub relay_window_bytes: usize,
    /// Stanzas per lane that another node has and has neither written, stored nor bounced; further ones are
    /// bounced with `resource-constraint`.
    pub relay_unsettled_stanzas: usize,
    /// Bytes of such stanzas; the same happens at this bound.
    pub relay_unsettled_bytes: usize,
    /// Stanzas that travel to another node in one batch, at most.
    pub relay_batch_stanzas: usize,
    /// Bytes that travel to another node in one batch, at most; a larger stanza travels alone.
    pub relay_batch_bytes: usize,
    /// Milliseconds that a stanza waits for this node's route table when another node refused it because the
    /// receiver has moved; after that it is stored or bounced by what the table says.
    pub refused_wait_ms: u64,
    /// Milliseconds that messages which have waited for an account wait for room in the mailbox of its session, once half
    /// of what may wait there does; after that they go on, and at the mailbox's bound the session is closed as
    /// `mailbox_stanzas` says.
    pub backlog_wait_ms: u64,
    /// Sessions of a lost node whose contacts are told at the same time; the others wait for their turn.
    pub lost_sessions_at_once: usize,
    /// New passwords that may wait to be turned into keys; for further ones the client hears
    /// `resource-constraint`.
    pub new_password_queue: usize,
    /// Seconds between two looks for removals of accounts that somebody began and nobody ended; what is seen
    /// twice is ended.
    pub unfinished_removal_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mailbox_stanzas: 5_000,
            mailbox_bytes: 1024 * 1024,
            account_queue_stanzas: 1_000,
            account_queues_at_once: 256,
            relay_window_stanzas: 8_192,
            relay_window_bytes: 8 * 1024 * 1024,
            relay_unsettled_stanzas: 65_536,
            relay_unsettled_bytes: 64 * 1024 * 1024,
            relay_batch_stanzas: 64,
            relay_batch_bytes: 256 * 1024,
            refused_wait_ms: 2_000,
            backlog_wait_ms: 5_000,
            lost_sessions_at_once: 32,
            new_password_queue: 64,
            unfinished_removal_s: 60,
        }
    }
}

impl Config {
    pub(crate) fn unfinished_removal(&self) -> Duration {
        Duration::from_secs(self.unfinished_removal_s)
    }

    pub(crate) fn backlog_wait(&self) -> Duration {
        Duration::from_millis(self.backlog_wait_ms)
    }

    pub(crate) fn refused_wait(&self) -> Duration {
        Duration::from_millis(self.refused_wait_ms)
    }
}

/// Node boundaries that a stanza may cross: to a service and on to a user are two, and one more for a
/// receiver that moved meanwhile.
pub(crate) const HOPS_MAX: u8 = 3;

/// Lanes between two nodes in one direction. Part of the protocol: a change renumbers the lanes of all links.
pub(crate) const LANES: u32 = 4;

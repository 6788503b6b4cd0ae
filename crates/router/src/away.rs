//! Answers to sessions that are away: their node was lost, or has lost its lease, and may bring them back.
//!
//! RFC 6121, 8.5.3.2, has errors and results for a session that is not there ignored. For one that comes back with its
//! stream that would be wrong: what it had sent would be lost without a word, as the error was the word.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use cluster::Incarnation;
use jid::{BareJid, Jid};
use parking_lot::Mutex;
use stanza::{IqType, MessageType};
use tokio::time::{Instant, sleep};

use crate::decision::Subject;
use crate::metrics::Fate;
use crate::router::Router;
use crate::transit::Transit;

/// How long sessions may be away, longer than their clients wait for a node without its lease (`cluster.times.grace_ms`).
const AWAY: Duration = Duration::from_secs(30);
/// How often it is looked whether they are back.
const LOOK: Duration = Duration::from_millis(200);
/// Answers that may wait; further ones are ignored, as the RFC says.
const WAITING_MAX: usize = 10_000;

/// When sessions went away, and how many answers wait for that.
#[derive(Default)]
pub(crate) struct Away {
    last: Mutex<Option<Instant>>,
    waiting: AtomicUsize,
}

impl Away {
    /// Sessions went with their node just now.
    pub(crate) fn note(&self) {
        *self.last.lock() = Some(Instant::now());
    }

    /// How many answers wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Router {
    /// Ends the way of a stanza that the rules have ignored, unless it is an answer whose session may come back: that
    /// waits, and is decided on again then.
    pub(crate) fn ignore(self: &Arc<Self>, account: &BareJid, subject: Subject, transit: Transit) {
        let is_answer = match subject {
            Subject::Message(kind) => kind == MessageType::Error,
            Subject::Iq(kind) => matches!(kind, IqType::Result | IqType::Error),
            Subject::Presence(_) => false,
        };
        let is_full = transit.stanza.head.to.as_ref().is_some_and(|to| to.resource().is_some());
        if !is_answer || !is_full || transit.was_away || self.away.waiting() >= WAITING_MAX {
            return self.finish(&transit, Fate::Ignored);
        }
        self.away.waiting.fetch_add(1, Ordering::AcqRel);
        self.runtime.spawn(wait(self.myself.clone(), account.clone(), Transit { was_away: true, ..transit }));
    }

    /// Whether the table here may lack sessions that live: their node comes back, or this one is behind.
    pub(crate) fn may_be_away(&self) -> bool {
        let lately = |went: Instant| went.elapsed() < AWAY;
        !self.whereabouts.is_serving() || self.is_blind() || self.away.last.lock().is_some_and(lately)
    }
}

async fn wait(router: Weak<Router>, account: BareJid, transit: Transit) {
    loop {
        // Before the first look too: the table may show a loss that is told of in this moment.
        sleep(LOOK).await;
        let Some(router) = router.upgrade() else { return };
        if router.is_blind() {
            router.renew_table().await;
        }
        let rows = router.whereabouts.users(&account);
        let is_back =
            rows.iter().any(|row| transit.stanza.head.to.as_ref() == Some(&Jid::from(row.jid.clone())));
        let (_, Incarnation(now)) = router.whereabouts.me();
        // Another node had sent what this answers to an earlier life of this one, and routes it anew by now.
        let is_void = transit.receipt.is_before(now);
        if is_back || is_void || !router.may_be_away() {
            router.away.waiting.fetch_sub(1, Ordering::AcqRel);
            return if is_void { router.finish(&transit, Fate::Ignored) } else { router.dispatch(transit) };
        }
    }
}

//! XEP-0198 for one session: what is counted and kept while it has a connection, and what outlives that.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hooks::{SessionView, Sid, Underway};
use minidom::Element;
use router::{Delivery, Thread};
use stanza::Condition;
use stream::management::{self, Handled, TooHigh, Unacknowledged};
use tokio::time::Instant;

use crate::connection::{Connection, Manageable};

/// The management of one session's stream.
pub(crate) struct Management {
    /// By which the client names the session when it comes back.
    pub thread: Thread,
    /// For how long it may be without a connection; `None`: not at all.
    pub resumption: Option<Duration>,
    /// Stanzas of the client.
    pub handled: Arc<Handled>,
    /// Stanzas for the client.
    pub unacknowledged: Unacknowledged<Delivery>,
    /// Since when an answer of the client is due; `None`: none is.
    asked: Option<Instant>,
    /// Something was written that the client was not asked about.
    is_behind: bool,
}

impl Management {
    pub(crate) fn new(sid: Sid, resumption: Option<Duration>) -> Management {
        Management::from(sid, resumption, 0, 0)
    }

    /// Goes on where another node stopped: so many stanzas of the client were handled there, and the client had so many
    /// of ours.
    pub(crate) fn from(sid: Sid, resumption: Option<Duration>, handled: u32, sent: u32) -> Management {
        Management {
            thread: Thread::of(sid),
            resumption,
            handled: Arc::new(Handled::from(handled)),
            unacknowledged: Unacknowledged::from(sent),
            asked: None,
            is_behind: false,
        }
    }

    /// A stanza of the client has come.
    pub(crate) fn begin(&self) -> Underway {
        Underway::new(self.handled.begin())
    }

    /// A stanza is about to be written.
    pub(crate) fn sends(&mut self, delivery: Delivery) {
        let bytes = delivery.cost();
        self.unacknowledged.push(delivery, bytes);
        self.is_behind = true;
    }

    /// The client has handled so many of ours.
    pub(crate) fn acknowledged(&mut self, handled: u32) -> Result<(), TooHigh> {
        let more = self.unacknowledged.acknowledge(handled)? > 0;
        // One that is still at it is asked for the rest.
        (self.asked, self.is_behind) = (None, self.is_behind || more);
        Ok(())
    }

    /// Whether the client is to be asked what it has handled: once for all that is written together, and not again before
    /// it has answered. One that answers the same as before, though it has had more, as some count, is not asked for that
    /// once more: it would go on so, as fast as it is asked.
    pub(crate) fn is_to_ask(&self) -> bool {
        self.asked.is_none() && self.is_behind && !self.unacknowledged.is_empty()
    }

    /// Asks, if that is due.
    pub(crate) fn ask(&mut self, out: &mut BytesMut) {
        if self.is_to_ask() {
            out.extend_from_slice(management::ASK);
            self.asked = Some(Instant::now());
            self.is_behind = false;
        }
    }

    /// When the client's answer is late, where one is due.
    pub(crate) fn late_at(&self, patience: Duration) -> Option<Instant> {
        self.asked.map(|asked| asked + patience)
    }

    /// Whether more may be written before the client acknowledges something.
    pub(crate) fn has_room(&self, stanzas: usize, bytes: usize) -> bool {
        self.unacknowledged.len() < stanzas && self.unacknowledged.bytes() < bytes
    }

    /// The connection is a new one: all that is not acknowledged is written again.
    pub(crate) fn resend(&mut self, out: &mut BytesMut) {
        self.unacknowledged.iter().for_each(|delivery| delivery.write(out));
        (self.asked, self.is_behind) = (None, true);
    }
}

impl Connection {
    /// The management of a stream that is about to begin, if it may, and what the client is told of it (XEP-0198, 3).
    pub(crate) fn enable(
        &self,
        view: &SessionView,
        resume: bool,
        max_s: Option<u32>,
    ) -> (Option<Box<Management>>, Element) {
        let may = self.manageable.get();
        if may == Manageable::No {
            return (None, management::failed(Condition::FeatureNotImplemented, None));
        }
        let wished = max_s.map_or(Duration::MAX, |s| Duration::from_secs(s.into()));
        let most = self.world.config.limits.resumption();
        let resumption = most.filter(|_| resume && may == Manageable::Resumable).map(|most| most.min(wished));
        let new = Management::new(view.sid(), resumption);
        let id = new.thread.to_string();
        if resumption.is_some() {
            self.yielding.allow();
        }
        let seconds = resumption.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        self.world.counters.managed.add(1);
        let enabled = management::enabled(seconds.map(|seconds| (id.as_str(), seconds)));
        (Some(Box::new(new)), enabled)
    }
}

#[cfg(test)]
mod tests {
    use stanza::Stanza;

    use super::*;

    #[test]
    fn who_acknowledges_too_little_is_asked_again_for_what_is_new_only() {
        let mut managed = Management::new(Sid(7), None);
        let asks = |managed: &mut Management| {
            let mut out = BytesMut::new();
            managed.ask(&mut out);
            !out.is_empty()
        };
        let send = |managed: &mut Management| managed.sends(Delivery::new(Arc::new(Stanza::presence(None))));
        assert!(!asks(&mut managed), "nothing was sent");
        send(&mut managed);
        send(&mut managed);
        assert!(asks(&mut managed) && !asks(&mut managed), "once for both");
        managed.acknowledged(1).unwrap();
        assert!(asks(&mut managed), "it may be at the rest");
        managed.acknowledged(1).unwrap();
        assert!(!asks(&mut managed), "it has answered what it knows");
        send(&mut managed);
        assert!(asks(&mut managed));
        send(&mut managed);
        managed.acknowledged(1).unwrap();
        assert!(asks(&mut managed), "for what was sent behind the question");
        managed.acknowledged(4).unwrap();
        assert!(!asks(&mut managed), "it has had all");
        send(&mut managed);
        managed.resend(&mut BytesMut::new());
        assert!(asks(&mut managed), "on a new connection");
    }
}

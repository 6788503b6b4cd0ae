//! The lease that every node renews: who may serve, and who is gone. Clocks are monotonic and passed in.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::Times,
    role::{Incarnation, NodeId},
};

/// A node's own side: it counts from the sending of the last renewal that was acknowledged, so that it is
/// fenced before the leader, which counts from the receipt, can expire it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    fence: Duration,
    sent: Option<Instant>,
    /// It is never held again.
    closed: bool,
}

impl Holding {
    pub(crate) fn new(fence: Duration) -> Holding {
        Holding { fence, sent: None, closed: false }
    }

    /// Notes an acknowledged renewal; false if the lease had run out before the acknowledgement came.
    pub(crate) fn acknowledged(&mut self, sent: Instant, now: Instant) -> bool {
        if self.closed || self.sent.is_some() && !self.is_held(now) {
            return false;
        }
        self.sent = self.sent.max(Some(sent));
        self.is_held(now)
    }

    pub(crate) fn is_held(&self, now: Instant) -> bool {
        !self.closed && self.until().is_some_and(|until| now < until)
    }

    /// Gives it up for good: the node leaves.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// When the node must stop serving.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.sent.map(|sent| sent + self.fence)
    }

    /// How old the lease is.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.sent.map(|sent| now.saturating_duration_since(sent))
    }

    /// Gives it up: the next one is for a new incarnation. Since when it is lost, which may be long ago: a
    /// process that stood still finds out late.
    pub(crate) fn lose(&mut self, now: Instant) -> Instant {
        let until = self.until();
        self.sent = None;
        until.map_or(now, |until| until.min(now))
    }
}

/// The leader's side: when each node was last heard.
#[derive(Debug)]
pub(crate) struct Heard {
    expire: Duration,
    /// How long a new leader waits.
    elected: Duration,
    /// The term led last, and from when on nobody counts as heard who was not heard.
    leading: Option<(u64, Instant)>,
    last: HashMap<(NodeId, Incarnation), Instant>,
    checked: Option<Instant>,
    /// Since when this node runs without having stood still.
    awake: Option<Instant>,
}

impl Heard {
    pub(crate) fn new(times: &Times) -> Heard {
        let (expire, elected) = (times.expire(), times.expire_elected());
        Heard { expire, elected, leading: None, last: HashMap::new(), checked: None, awake: None }
    }

    /// Notes a renewal that this node received as leader.
    pub(crate) fn renewed(&mut self, node: NodeId, incarnation: Incarnation, now: Instant) {
        self.last.insert((node, incarnation), now);
    }

    /// Who has not renewed for the whole time. A new leader waits for its time from its first moment, and one that was
    /// itself not running, and could not hear, for the whole time.
    pub(crate) fn expired(
        &mut self,
        leading: Option<(u64, Instant)>,
        here: impl Iterator<Item = (NodeId, Incarnation)>,
        now: Instant,
    ) -> Vec<(NodeId, Incarnation)> {
        let gap = self.checked.replace(now).map(|then| now.saturating_duration_since(then));
        if gap.is_some_and(|gap| gap > self.expire / 4) {
            // Also where it does not lead at the moment: it may lead again at the next look, in the same term.
            self.awake = Some(now);
            self.leading = self.leading.map(|(term, _)| (term, now));
        }
        let Some((term, since)) = leading else { return Vec::new() };
        let since = match self.leading {
            Some((known, since)) if known == term => since,
            _ => {
                let since = self.awake.map_or(since, |awake| since.max(awake));
                since.checked_sub(self.expire.saturating_sub(self.elected)).unwrap_or(since)
            }
        };
        let is_new = self.leading.is_none_or(|(known, _)| known != term);
        self.leading = Some((term, since));
        let here: Vec<_> = here.collect();
        self.last.retain(|node, _| here.contains(node));
        if is_new {
            for node in &here {
                self.last.entry(*node).or_insert(since);
            }
        }
        let silent = |node: &(NodeId, Incarnation)| {
            // One that has just come up has a full lease before its first renewal: a backend learns the log before.
            let heard = since.max(*self.last.entry(*node).or_insert(now));
            now.saturating_duration_since(heard) > self.expire
        };
        here.into_iter().filter(silent).collect()
    }
}

/// How far what is agreed on had come, for as long as a node may be behind it. A node with a table that is older serves
/// sessions that others have displaced, while its renewals still come through: its disk is slow, or what it is sent is
/// cut off. It may lead, too.
#[derive(Debug)]
pub(crate) struct Marks {
    age: Duration,
    seen: VecDeque<(Instant, u64)>,
}

/// The least time between two marks.
const STEP: Duration = Duration::from_millis(100);

impl Marks {
    pub(crate) fn new(times: &Times) -> Marks {
        Marks { age: times.behind(), seen: VecDeque::new() }
    }

    /// Notes how far it has come.
    pub(crate) fn note(&mut self, agreed: u64, now: Instant) {
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.seen.back().is_none_or(|(at, _)| age(*at) >= STEP) {
            self.seen.push_back((now, agreed));
        }
        while self.seen.get(1).is_some_and(|(at, _)| age(*at) >= self.age) {
            self.seen.pop_front();
        }
    }

    /// Whether a node that has come to `theirs` is too far behind, now that what is agreed on has come to `ours` at least.
    pub(crate) fn is_behind(&mut self, theirs: u64, ours: u64, now: Instant) -> bool {
        self.note(ours, now);
        let old = |at: Instant| now.saturating_duration_since(at) >= self.age;
        self.seen.front().is_some_and(|(at, then)| old(*at) && theirs < *then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: Duration = Duration::from_secs(3);

    fn ms(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    #[test]
    fn a_node_counts_from_the_sending() {
        let base = Instant::now();
        let mut lease = Holding::new(FENCE);
        assert!(!lease.is_held(base));
        assert!(lease.acknowledged(ms(base, 0), ms(base, 900)));
        assert!(lease.is_held(ms(base, 2_999)));
        assert!(!lease.is_held(ms(base, 3_000)));
    }

    #[test]
    fn an_acknowledgement_that_comes_after_the_fence_does_not_bring_the_lease_back() {
        let base = Instant::now();
        let mut lease = Holding::new(FENCE);
        assert!(lease.acknowledged(ms(base, 0), ms(base, 10)));
        assert!(!lease.acknowledged(ms(base, 2_500), ms(base, 3_100)));
        lease.lose(ms(base, 3_100));
        assert!(lease.acknowledged(ms(base, 3_200), ms(base, 3_300)));
    }

    #[test]
    fn a_node_that_leaves_serves_no_longer_though_its_lease_is_renewed() {
        let base = Instant::now();
        let mut lease = Holding::new(FENCE);
        assert!(lease.acknowledged(ms(base, 0), ms(base, 10)));
        lease.close();
        assert!(!lease.is_held(ms(base, 20)));
        assert!(!lease.acknowledged(ms(base, 30), ms(base, 40)));
        lease.lose(ms(base, 50));
        assert!(!lease.acknowledged(ms(base, 60), ms(base, 70)));
    }

    #[test]
    fn a_lease_is_lost_when_it_ends_and_not_when_that_is_noticed() {
        let base = Instant::now();
        // Sent, noticed, lost since.
        for (sent, noticed, since) in [
            (Some(1_000), 4_000, 4_000),
            // It stood still for half a minute.
            (Some(1_000), 34_000, 4_000),
            // Another incarnation is known already: it ends before its time.
            (Some(1_000), 1_500, 1_500),
            (None, 1_500, 1_500),
        ] {
            let mut lease = Holding::new(FENCE);
            if let Some(sent) = sent {
                assert!(lease.acknowledged(ms(base, sent), ms(base, sent)));
            }
            assert_eq!(lease.lose(ms(base, noticed)), ms(base, since), "{sent:?}, {noticed}");
            assert!(!lease.is_held(ms(base, noticed)));
        }
    }

    #[test]
    fn who_is_behind_for_longer_than_a_moment_gets_no_lease() {
        let base = Instant::now();
        let mut marks = Marks::new(&Times::default());
        // The table grows by one each 100 ms; ten of them are a second.
        for step in 0..100_u64 {
            let now = ms(base, step * 100);
            assert!(!marks.is_behind(step, step, now), "level at {step}");
            assert!(!marks.is_behind(step.saturating_sub(10), step, now), "a second behind at {step}");
            assert_eq!(marks.is_behind(step.saturating_sub(12), step, now), step >= 11, "behind at {step}");
            assert!(marks.seen.len() <= 12);
        }
        // Nobody asked for long: what came in this moment need not have come everywhere.
        assert!(!marks.is_behind(99, 500, ms(base, 60_000)));
        assert!(marks.is_behind(99, 500, ms(base, 61_000)));
    }

    #[test]
    fn a_leader_whose_own_table_is_behind_what_is_agreed_on_gets_no_lease() {
        let base = Instant::now();
        let mut marks = Marks::new(&Times::default());
        for look in 0..40_u64 {
            let now = ms(base, look * 250);
            // It goes on to agree with the others, and its own table stands at 7.
            marks.note(7 + look, now);
            assert_eq!(marks.is_behind(7, 7, now), look > 4, "at {look}");
            assert!(!marks.is_behind(7 + look, 7, now), "who has all of it at {look}");
        }
    }

    /// Hears at these times, and looks each 250 ms as the leader does.
    fn first_expiry(heard_at: &[u64], leading: &dyn Fn(u64) -> Option<(u64, u64)>) -> Option<u64> {
        let base = Instant::now();
        let node = (NodeId(1), Incarnation(1));
        let mut book = Heard::new(&Times::default());
        for now in (0..30_000).step_by(250) {
            if heard_at.contains(&now) {
                book.renewed(node.0, node.1, ms(base, now));
            }
            let leading = leading(now).map(|(term, since)| (term, ms(base, since)));
            if !book.expired(leading, [node].into_iter(), ms(base, now)).is_empty() {
                return Some(now);
            }
        }
        None
    }

    #[test]
    fn the_leader_counts_from_the_receipt() {
        assert_eq!(first_expiry(&[0, 500, 1_000], &|_| Some((1, 0))), Some(6_250));
    }

    #[test]
    fn a_new_leader_waits_as_long_as_anybody_may_hold_a_lease_of_the_one_before() {
        assert_eq!(first_expiry(&[0], &|now| (now >= 4_000).then_some((2, 4_000))), Some(7_750));
        // Whoever is heard counts from there.
        assert_eq!(first_expiry(&[5_000], &|now| (now >= 4_000).then_some((2, 4_000))), Some(10_250));
    }

    #[test]
    fn a_node_that_comes_up_late_has_a_full_lease_too() {
        let base = Instant::now();
        let (old, new) = ((NodeId(1), Incarnation(1)), (NodeId(2), Incarnation(1)));
        let mut book = Heard::new(&Times::default());
        for now in (0..=65_000).step_by(250) {
            book.renewed(old.0, old.1, ms(base, now));
            let here = [old, new].into_iter().filter(|node| *node == old || now >= 60_000);
            let expired = book.expired(Some((1, base)), here, ms(base, now));
            assert!(expired.is_empty(), "{expired:?} after {now} ms");
        }
        book.renewed(old.0, old.1, ms(base, 65_250));
        assert_eq!(book.expired(Some((1, base)), [old, new].into_iter(), ms(base, 65_250)), [new]);
    }

    #[test]
    fn whoever_does_not_lead_expires_nobody() {
        assert_eq!(first_expiry(&[0], &|_| None), None);
    }

    /// Input: clocks that drift 100 ms in a second from each other, whichever is the faster one; what a wall clock
    /// says is asked by nobody.
    ///
    /// Outcome: a node is fenced before it is expired, so that no full JID is served twice.
    #[test]
    fn row_140_a_node_is_fenced_before_it_is_expired_though_clocks_drift() {
        let base = Instant::now();
        let node = (NodeId(1), Incarnation(1));
        // How fast the node's and the leader's clocks run, in thousandths of what they should.
        for (its, the_leaders) in [(1_000, 1_000), (900, 1_000), (1_000, 1_100), (950, 1_050), (1_100, 900)] {
            // Renewed at two seconds, and heard as soon as it was sent: the worst case.
            let at = |time: u64, pace: u64| ms(base, time * pace / 1_000);
            let mut lease = Holding::new(FENCE);
            assert!(lease.acknowledged(at(2_000, its), at(2_000, its)));
            let mut book = Heard::new(&Times::default());
            book.renewed(node.0, node.1, at(2_000, the_leaders));
            // A second leader is elected in the very moment of that renewal, and has not heard it.
            let elected = Heard::new(&Times::default());
            for (mut book, term, since) in [(book, 1, 0), (elected, 2, 2_000)] {
                let leading = Some((term, at(since, the_leaders)));
                let expired = (2_000..20_000)
                    .step_by(50)
                    .find(|now| !book.expired(leading, [node].into_iter(), at(*now, the_leaders)).is_empty());
                let expired = expired.expect("it is expired");
                assert!(
                    !lease.is_held(at(expired, its)),
                    "served at {expired} in term {term} with {its} and {the_leaders}"
                );
            }
            assert!(lease.is_held(at(4_500, its)), "fenced without need");
        }
    }

    #[test]
    fn a_leader_that_stood_still_waits_again() {
        let base = Instant::now();
        let node = (NodeId(1), Incarnation(1));
        let mut book = Heard::new(&Times::default());
        let leading = Some((1, base));
        assert!(book.expired(leading, [node].into_iter(), base).is_empty());
        assert!(book.expired(leading, [node].into_iter(), ms(base, 20_000)).is_empty());
        for now in (20_250..=25_000).step_by(250) {
            assert!(book.expired(leading, [node].into_iter(), ms(base, now)).is_empty());
        }
        assert_eq!(book.expired(leading, [node].into_iter(), ms(base, 25_250)), [node]);
    }

    /// As it stands still, its quorum is too old: it does not lead at the first look behind that, and does at the next.
    #[test]
    fn a_leader_that_stood_still_and_has_its_quorum_back_a_little_later_waits_as_well() {
        let base = Instant::now();
        let node = (NodeId(1), Incarnation(1));
        for term in [1, 2] {
            let mut book = Heard::new(&Times::default());
            for now in (0..=10_000).step_by(250) {
                book.renewed(node.0, node.1, ms(base, now));
                assert!(book.expired(Some((1, base)), [node].into_iter(), ms(base, now)).is_empty());
            }
            assert!(book.expired(None, [node].into_iter(), ms(base, 20_000)).is_empty());
            // In the same term, or in one that began right before it stood still.
            let leading = Some((term, ms(base, if term == 1 { 0 } else { 10_100 })));
            let first = (20_250..40_000)
                .step_by(250)
                .find(|now| !book.expired(leading, [node].into_iter(), ms(base, *now)).is_empty());
            assert_eq!(first, Some(if term == 1 { 25_250 } else { 23_750 }));
        }
    }
}

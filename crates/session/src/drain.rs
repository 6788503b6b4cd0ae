//! How fast a draining node sends its clients elsewhere.

use std::time::{Duration, Instant};

/// How often a drain goes on.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// Clients that may be sent at once, as a share of what is sent in a second: the others must not be met by a crowd
/// that a pause has gathered.
const BURST: f64 = 0.1;

/// Gives out the right to send clients elsewhere, so many in a second. The clock is passed in.
pub(crate) struct Pace {
    credit: f64,
    at: Instant,
}

impl Pace {
    /// The first may go at once.
    pub(crate) fn new(now: Instant) -> Pace {
        Pace { credit: 1.0, at: now }
    }

    /// How many of those who wait go now, at `rate` in a second.
    pub(crate) fn due(&mut self, rate: u32, waiting: usize, now: Instant) -> usize {
        let rate = f64::from(rate);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.credit = (self.credit + passed * rate).min(1.0 + rate * BURST);
        let due = (self.credit as usize).min(waiting);
        self.credit -= due as f64;
        due
    }
}

/// Seconds until `left` clients have gone at `rate` in a second, rounded up.
pub fn seconds_left(left: usize, rate: u32) -> u64 {
    (left as u64).div_ceil(u64::from(rate.max(1)))
}

/// The rate at which `left` clients are gone well within `bound`: the usual one, or a faster one where there are
/// too many for it. A quarter of the time is left for those that are slow to go.
pub fn rate_within(left: usize, bound: Duration, usual: u32) -> u32 {
    let needed = left as f64 / (bound.as_secs_f64() * 0.75).max(0.001);
    usual.max(needed.ceil().min(f64::from(u32::MAX)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves in each of the steps, which are so many milliseconds apart.
    fn moves(rate: u32, waiting: usize, steps: &[u64]) -> Vec<usize> {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut now = begin;
        let mut left = waiting;
        let step = |ms: &u64| {
            now += Duration::from_millis(*ms);
            let due = pace.due(rate, left, now);
            left -= due;
            due
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn clients_go_at_the_rate_and_never_in_a_crowd() {
        // rate, who waits, milliseconds between looks, who goes at each
        for (rate, waiting, steps, gone) in [
            // The first at once, then one each tenth of a second.
            (10, 5, &[0, 20, 80, 100, 100][..], &[1, 0, 1, 1, 1][..]),
            (500, 1_000, &[0, 20, 20, 20], &[1, 10, 10, 10]),
            // A pause of ten seconds lets go no more than one, and a tenth of a second's worth.
            (500, 10_000, &[0, 10_000, 20], &[1, 51, 10]),
            // Slower than one in a second.
            (1, 3, &[0, 500, 500, 500, 500], &[1, 0, 1, 0, 1]),
            // No more than wait.
            (500, 3, &[0, 20, 20], &[1, 2, 0]),
            (500, 0, &[0, 20], &[0, 0]),
        ] {
            assert_eq!(moves(rate, waiting, steps), gone, "{rate} a second, {waiting} wait");
        }
    }

    #[test]
    fn over_a_longer_time_the_rate_is_kept_exactly() {
        for rate in [1, 7, 333, 500, 20_000] {
            let sent: usize = moves(rate, usize::MAX, &[20; 500]).iter().sum();
            let wanted = 10 * rate as usize;
            assert!(sent.abs_diff(wanted) <= 1 + wanted / 1_000, "{sent} at {rate} a second");
        }
    }

    #[test]
    fn a_rate_that_changes_holds_from_then_on() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(pace.due(10, 100, at(0)), 1);
        assert_eq!(pace.due(10, 100, at(50)), 0);
        assert_eq!(pace.due(1_000, 100, at(70)), 20);
        // A clock that seems to go back gives nothing.
        assert_eq!(pace.due(1_000, 100, at(60)), 0);
    }

    #[test]
    fn the_time_left_is_rounded_up() {
        for (left, rate, seconds) in [(0, 500, 0), (1, 500, 1), (500, 500, 1), (501, 500, 2), (3, 0, 3)] {
            assert_eq!(seconds_left(left, rate), seconds, "{left} at {rate}");
        }
    }

    #[test]
    fn a_bound_makes_a_drain_as_fast_as_it_must_be() {
        let seconds = Duration::from_secs;
        for (left, bound, usual, rate) in [
            (0, seconds(10), 500, 500),
            (3_000, seconds(10), 500, 500),
            (75_000, seconds(10), 500, 10_000),
            (10, seconds(0), 500, 10_000),
            (0, seconds(0), 500, 500),
        ] {
            assert_eq!(rate_within(left, bound, usual), rate, "{left} within {bound:?}");
        }
    }
}

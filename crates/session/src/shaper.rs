//! How fast one client is read: a bucket of bytes and one of stanzas, which slow reading and refuse nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::Limits;

/// What one client may send. Two levels and a time: a session that sends nothing costs nothing more.
pub(crate) struct Shaper {
    bytes: f64,
    stanzas: f64,
    filled: Instant,
}

/// Bytes that are read at once while a bucket is low: few, so that no more is taken than was meant.
const PIECE: usize = 1_024;
/// Bytes that a stanza has at least, nearly.
const STANZA: f64 = 16.0;

impl Shaper {
    /// With full buckets.
    pub(crate) fn new(limits: &Limits, now: Instant) -> Shaper {
        Shaper {
            bytes: f64::from(limits.session_bytes_burst),
            stanzas: f64::from(limits.session_stanzas_burst),
            filled: now,
        }
    }

    /// These were read.
    pub(crate) fn took(&mut self, bytes: usize, stanzas: usize) {
        self.bytes -= bytes as f64;
        self.stanzas -= stanzas as f64;
    }

    /// How long the client must not be read now; `None`: not at all.
    pub(crate) fn pause(&mut self, limits: &Limits, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let mut pause = 0.0_f64;
        for (level, rate, burst) in [
            (&mut self.bytes, limits.session_bytes_per_second, limits.session_bytes_burst),
            (&mut self.stanzas, limits.session_stanzas_per_second, limits.session_stanzas_burst),
        ] {
            if rate == 0 {
                *level = f64::from(burst);
                continue;
            }
            *level = (*level + passed * f64::from(rate)).min(f64::from(burst));
            pause = pause.max((0.0 - *level) / f64::from(rate));
        }
        (pause > 0.0).then(|| Duration::from_secs_f64(pause))
    }

    /// How many bytes may be read at once, at most `max`: what the buckets surely cover, and never too few.
    pub(crate) fn piece(&self, max: usize) -> usize {
        let covered = self.bytes.min(self.stanzas * STANZA);
        // A cast of what is negative is 0.
        (covered as usize).clamp(PIECE.min(max), max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(bytes: u32, stanzas: u32) -> Limits {
        Limits {
            session_bytes_per_second: bytes,
            session_bytes_burst: 4_000,
            session_stanzas_per_second: stanzas,
            session_stanzas_burst: 20,
            ..Limits::default()
        }
    }

    #[test]
    fn a_burst_is_free_and_what_is_beyond_it_takes_its_time() {
        let (limits, now) = (limits(1_000, 10), Instant::now());
        let mut shaper = Shaper::new(&limits, now);
        shaper.took(4_000, 20);
        assert_eq!(shaper.pause(&limits, now), None);
        shaper.took(500, 0);
        assert_eq!(shaper.pause(&limits, now), Some(Duration::from_millis(500)));
        shaper.took(0, 10);
        assert_eq!(shaper.pause(&limits, now), Some(Duration::from_secs(1)));
        let later = now + Duration::from_secs(1);
        assert_eq!(shaper.pause(&limits, later), None);
        let rested = now + Duration::from_secs(3_600);
        assert_eq!(shaper.pause(&limits, rested), None);
        shaper.took(5_000, 0);
        assert_eq!(shaper.pause(&limits, rested), Some(Duration::from_secs(1)), "rest is not saved up");
    }

    #[test]
    fn a_rate_of_nought_is_no_bound() {
        let (limits, now) = (limits(0, 0), Instant::now());
        let mut shaper = Shaper::new(&limits, now);
        shaper.took(1 << 30, 1 << 20);
        assert_eq!(shaper.pause(&limits, now), None);
    }

    #[test]
    fn little_is_read_at_once_when_little_is_left() {
        let (limits, now) = (limits(1_000, 10), Instant::now());
        let mut shaper = Shaper::new(&limits, now);
        assert_eq!(shaper.piece(16_384), 1_024, "20 stanzas may be short ones");
        shaper.stanzas = 1e6;
        assert_eq!(shaper.piece(16_384), 4_000);
        shaper.bytes = 1e6;
        assert_eq!(shaper.piece(16_384), 16_384);
        shaper.took(2_000_000, 0);
        assert_eq!(shaper.piece(16_384), 1_024);
    }
}

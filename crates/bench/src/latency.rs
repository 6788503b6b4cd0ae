//! How long things took: a histogram in nanoseconds, and what is told of it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longer ones count as this long, in nanoseconds: ten minutes.
const LONGEST_NS: u64 = 600_000_000_000;
/// The parts of which the time is told within which they were done, in percent.
const PARTS: [f64; 12] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.99, 100.0];

/// Nanoseconds since one moment: what stands in stanzas, so that a time needs no table.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since then.
    pub fn ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The moment that many nanoseconds behind it.
    pub fn at(self, ns: u64) -> Instant {
        self.0 + Duration::from_nanos(ns)
    }
}

/// Times with three digits each.
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Latency(histogram.expect("bounds that the histogram takes"))
    }
}

impl Latency {
    /// Takes note of one, in nanoseconds.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Microseconds within which this part was done, in percent.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1000.0
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The percentiles that people name, in microseconds.
    pub fn summary(&self) -> Value {
        let [p50, p90, p99, p999] = [50.0, 90.0, 99.0, 99.9].map(|percent| self.percentile_us(percent));
        let (least, most) = (self.0.min() as f64 / 1000.0, self.0.max() as f64 / 1000.0);
        json!({ "count": self.count(), "min": least, "p50": p50, "p90": p90, "p99": p99, "p99.9": p999, "max": most })
    }

    /// Pairs of a percentile and its microseconds, to draw a curve with.
    pub fn curve(&self) -> Value {
        PARTS.iter().map(|percent| json!([percent, self.percentile_us(*percent)])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latency = Latency::default();
        for us in 1..=1000 {
            latency.record(us * 1000);
        }
        for (percent, us) in [(50.0, 500.0), (99.0, 990.0), (99.9, 999.0), (100.0, 1000.0)] {
            let told = latency.percentile_us(percent);
            assert!((told - us).abs() <= us / 500.0, "{percent} %: {told} us");
        }
        assert_eq!(latency.summary()["count"], 1000);
        assert_eq!(latency.curve().as_array().map(Vec::len), Some(PARTS.len()));
    }

    #[test]
    fn what_takes_forever_is_counted_as_the_longest() {
        let mut latency = Latency::default();
        latency.record(u64::MAX);
        assert_eq!(latency.count(), 1);
    }
}

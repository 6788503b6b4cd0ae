//! Writes families of counters, gauges and histograms in one call each.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder},
    metrics::MetricType,
};
use store::LatencySnapshot;

/// Labels of one line.
pub type Labels = Vec<(&'static str, String)>;

/// Writes families one after the other.
pub struct Writer<'a>(pub DescriptorEncoder<'a>);

impl Writer<'_> {
    /// Totals that only grow; `_total` is added to the name.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in lines {
            each(&mut family, &labels, |m| m.encode_counter::<Labels, u64, f64>(&value, None))?;
        }
        Ok(())
    }

    /// One total.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Labels::new(), value)])
    }

    /// Values that go up and down.
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in lines {
            // a gauge is signed in the format; nothing here comes near the bound
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            each(&mut family, &labels, |m| m.encode_gauge(&value))?;
        }
        Ok(())
    }

    /// One value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)])
    }

    /// Durations in buckets.
    pub fn latencies(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = (Labels, LatencySnapshot)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, seen) in lines {
            let bounds = store::facts::BUCKETS_S.into_iter().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(seen.buckets).collect();
            each(&mut family, &labels, |m| {
                m.encode_histogram::<Labels>(seen.sum_s, seen.count, &buckets, None)
            })?;
        }
        Ok(())
    }
}

fn each(
    family: &mut MetricEncoder<'_>,
    labels: &Labels,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    match labels.is_empty() {
        true => write(family),
        false => write(&mut family.encode_family(labels)?),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};
    use store::Facts;

    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Collector for Two {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            let mut page = Writer(encoder);
            page.counters("stanzas", "Stanzas.", [(vec![("kind", "iq".to_owned())], 7)])?;
            page.gauge("sessions", "Sessions.", 3)?;
            page.latencies("store_seconds", "Calls.", [(Labels::new(), Facts::default().snapshot().get)])
        }
    }

    #[test]
    fn the_page_is_what_prometheus_reads() {
        let mut registry = Registry::with_prefix("rookery");
        registry.register_collector(Box::new(Two));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE rookery_stanzas counter",
            "rookery_stanzas_total{kind=\"iq\"} 7",
            "rookery_sessions 3",
            "rookery_store_seconds_bucket{le=\"+Inf\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
        }
    }
}

//! How many registrations may be tried: a bucket of tokens for each address, and one for all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, SystemTime};

const HOUR_S: f64 = 3_600.0;

/// Counts tries. Buckets are as large as what flows into them in an hour.
pub(super) struct Rate {
    per_address: f64,
    addresses_max: usize,
    all: Bucket,
    per_node: f64,
    addresses: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    /// When it was last looked at; `None`: never, so it is full.
    filled: Option<SystemTime>,
}

impl Bucket {
    const fn full(tokens: f64) -> Bucket {
        Bucket { tokens, filled: None }
    }

    fn refill(&mut self, now: SystemTime, per_hour: f64) {
        let passed =
            self.filled.map_or(Duration::ZERO, |filled| now.duration_since(filled).unwrap_or_default());
        self.tokens = (self.tokens + passed.as_secs_f64() / HOUR_S * per_hour).min(per_hour);
        // Not back: a clock that was set back must not fill the bucket twice.
        self.filled = Some(self.filled.map_or(now, |filled| filled.max(now)));
    }

    /// How long until there is a whole token.
    fn wait(&self, per_hour: f64) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / per_hour * HOUR_S).clamp(0.0, HOUR_S))
    }
}

impl Rate {
    pub(super) fn new(per_address: usize, per_node: usize, addresses_max: usize) -> Rate {
        Rate {
            per_address: per_address as f64,
            per_node: per_node as f64,
            addresses_max,
            all: Bucket::full(per_node as f64),
            addresses: HashMap::new(),
        }
    }

    /// Takes the right to try once; else how long until it is worth to ask again.
    pub(super) fn take(&mut self, address: IpAddr, now: SystemTime) -> Result<(), Duration> {
        self.all.refill(now, self.per_node);
        if self.all.tokens < 1.0 {
            return Err(self.all.wait(self.per_node));
        }
        let key = network(address);
        if !self.addresses.contains_key(&key) && self.addresses.len() >= self.addresses_max {
            self.sweep(now);
            if self.addresses.len() >= self.addresses_max {
                return Err(Duration::from_secs_f64(HOUR_S / self.per_address));
            }
        }
        let bucket = self.addresses.entry(key).or_insert(Bucket::full(self.per_address));
        bucket.refill(now, self.per_address);
        if bucket.tokens < 1.0 {
            return Err(bucket.wait(self.per_address));
        }
        bucket.tokens -= 1.0;
        self.all.tokens -= 1.0;
        Ok(())
    }

    /// Forgets addresses whose buckets are full again: they look as if never seen.
    fn sweep(&mut self, now: SystemTime) {
        let full = self.per_address;
        self.addresses.retain(|_, bucket| {
            bucket.refill(now, full);
            bucket.tokens < full
        });
    }
}

/// Whom an address is counted as: an IPv6 host owns its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_tries_and_gets_new_ones_with_time() {
        let (mut rate, start) = (Rate::new(2, 100, 100), SystemTime::UNIX_EPOCH);
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        assert_eq!(rate.take(one, start), Ok(()));
        assert_eq!(rate.take(one, start), Ok(()));
        assert_eq!(rate.take(one, start), Err(30 * MINUTE));
        assert_eq!(rate.take(other, start), Ok(()), "nobody else is slowed down");
        assert_eq!(rate.take(one, start + 20 * MINUTE), Err(10 * MINUTE));
        assert_eq!(rate.take(one, start), Err(10 * MINUTE), "a clock that goes back gives nothing");
        assert_eq!(rate.take(one, start + 31 * MINUTE), Ok(()));
        assert!(rate.take(one, start + 31 * MINUTE).is_err());
        let day = start + 24 * 60 * MINUTE;
        assert!(rate.take(one, day).is_ok() && rate.take(one, day).is_ok());
        assert!(rate.take(one, day).is_err(), "what is not used does not grow without end");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_itself() {
        let (mut rate, now) = (Rate::new(1, 100, 100), SystemTime::UNIX_EPOCH);
        assert!(rate.take(ip("2001:db8::1"), now).is_ok());
        assert!(rate.take(ip("2001:db8::2"), now).is_err());
        assert!(rate.take(ip("2001:db8:0:1::1"), now).is_ok());
        assert!(rate.take(ip("::ffff:192.0.2.1"), now).is_ok());
        assert!(rate.take(ip("192.0.2.1"), now).is_err());
    }

    #[test]
    fn all_addresses_together_are_bounded() {
        let (mut rate, now) = (Rate::new(10, 3, 100), SystemTime::UNIX_EPOCH);
        for n in 1..=3 {
            assert!(rate.take(ip(&format!("192.0.2.{n}")), now).is_ok());
        }
        assert_eq!(rate.take(ip("192.0.2.9"), now), Err(20 * MINUTE));
        assert!(rate.take(ip("192.0.2.9"), now + 20 * MINUTE).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_swept() {
        let (mut rate, now) = (Rate::new(1, 1_000, 3), SystemTime::UNIX_EPOCH);
        for n in 1..=3 {
            assert!(rate.take(ip(&format!("192.0.2.{n}")), now).is_ok());
        }
        assert!(rate.take(ip("192.0.2.4"), now).is_err(), "no room");
        assert!(rate.take(ip("192.0.2.4"), now + 60 * MINUTE).is_ok(), "the others are forgotten");
        assert_eq!(rate.addresses.len(), 1);
    }
}

//! How many sockets may be open, in all and from one address, and how fast new ones may come.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::Limits;

/// Counts open sockets; shared by every listener of the node.
pub(crate) struct Gate {
    total_max: usize,
    per_address_max: usize,
    per_second_max: f64,
    limit_loopback: bool,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    addresses: HashMap<IpAddr, Address>,
    sweep_at: usize,
}

struct Address {
    open: usize,
    tokens: f64,
    filled: Instant,
}

/// Why a socket was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Total,
    Address,
    Rate,
}

/// The right to one open socket; dropping it gives it back.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    key: Option<IpAddr>,
}

/// Addresses kept although none of their sockets is open, before they are swept.
const SWEEP_FROM: usize = 4_096;

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Arc<Gate> {
        Arc::new(Gate {
            total_max: limits.connections,
            per_address_max: limits.connections_per_address,
            per_second_max: f64::from(limits.accepts_per_address_per_second),
            limit_loopback: limits.limit_loopback,
            counts: Mutex::new(Counts { sweep_at: SWEEP_FROM, ..Counts::default() }),
        })
    }

    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Permit, Refused> {
        let key = self.key(address);
        let mut counts = self.counts.lock();
        if counts.total >= self.total_max {
            return Err(Refused::Total);
        }
        if let Some(key) = key {
            counts.sweep(now, self.per_second_max);
            let entry = counts.addresses.entry(key).or_insert(Address {
                open: 0,
                tokens: self.per_second_max,
                filled: now,
            });
            entry.refill(now, self.per_second_max);
            if entry.open >= self.per_address_max {
                return Err(Refused::Address);
            }
            if entry.tokens < 1.0 {
                return Err(Refused::Rate);
            }
            entry.tokens -= 1.0;
            entry.open += 1;
        }
        counts.total += 1;
        Ok(Permit { gate: self.clone(), key })
    }

    pub(crate) fn open(&self) -> usize {
        self.counts.lock().total
    }

    /// Whom an address is counted as: an IPv6 host owns its /64; nobody where loopback is not limited.
    fn key(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        if address.is_loopback() && !self.limit_loopback {
            return None;
        }
        Some(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => {
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & 0xffff_ffff_ffff_ffff_0000_0000_0000_0000))
            }
        })
    }
}

impl Counts {
    /// Forgets addresses without sockets whose bucket is full again: they look as if never seen.
    fn sweep(&mut self, now: Instant, full: f64) {
        if self.addresses.len() < self.sweep_at {
            return;
        }
        self.addresses.retain(|_, a| {
            a.refill(now, full);
            a.open > 0 || a.tokens < full
        });
        self.sweep_at = (self.addresses.len() * 2).max(SWEEP_FROM);
    }
}

impl Address {
    fn refill(&mut self, now: Instant, full: f64) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * full).min(full);
        self.filled = now;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        if let Some(entry) = self.key.and_then(|key| counts.addresses.get_mut(&key)) {
            entry.open = entry.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(connections: usize, per_address: usize, per_second: u32) -> Arc<Gate> {
        Gate::new(&Limits {
            connections,
            connections_per_address: per_address,
            accepts_per_address_per_second: per_second,
            ..Limits::default()
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_what_others_need() {
        let (gate, now) = (gate(10, 2, 100), Instant::now());
        let first = gate.enter(ip("192.0.2.1"), now).ok().unwrap();
        let _second = gate.enter(ip("192.0.2.1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("192.0.2.1"), now).err(), Some(Refused::Address));
        assert!(gate.enter(ip("192.0.2.2"), now).is_ok());
        drop(first);
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
    }

    #[test]
    fn an_ipv6_host_counts_by_its_network() {
        let (gate, now) = (gate(10, 1, 100), Instant::now());
        let _one = gate.enter(ip("2001:db8::1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("2001:db8::2"), now).err(), Some(Refused::Address));
        assert!(gate.enter(ip("2001:db8:0:1::2"), now).is_ok());
    }

    #[test]
    fn the_rate_of_one_address_is_bounded_and_comes_back() {
        let (gate, now) = (gate(10, 10, 2), Instant::now());
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
        assert_eq!(gate.enter(ip("192.0.2.1"), now).err(), Some(Refused::Rate));
        assert!(gate.enter(ip("192.0.2.1"), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn the_total_holds_for_loopback_too() {
        let (gate, now) = (gate(1, 1, 1), Instant::now());
        let _one = gate.enter(ip("127.0.0.1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("127.0.0.1"), now).err(), Some(Refused::Total));
        assert_eq!(gate.open(), 1);
    }

    #[test]
    fn addresses_that_left_are_forgotten() {
        let (gate, now) = (gate(10, 1, 1), Instant::now());
        for n in 0..SWEEP_FROM as u32 {
            let _ = gate.enter(IpAddr::V4((0x0a00_0000 + n).into()), now);
        }
        drop(gate.enter(ip("192.0.2.1"), now + Duration::from_secs(2)));
        assert!(gate.counts.lock().addresses.len() <= 1);
    }
}

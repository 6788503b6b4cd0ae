//! How many sockets may be open, in all and from one address, how fast new ones may come, who waits for a login.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limits::Limits;

/// Counts open sockets; shared by every listener of the node.
pub(crate) struct Gate {
    total_max: usize,
    unauthenticated_max: usize,
    per_address_max: usize,
    per_address_rate: f64,
    rate: f64,
    limit_loopback: bool,
    counts: Mutex<Counts>,
}

struct Counts {
    total: usize,
    addresses: HashMap<IpAddr, Address>,
    sweep_at: usize,
    /// Of the whole node; below zero where more came than the rate lets in.
    bucket: Bucket,
    /// Sockets that have not logged in, the oldest first.
    unauthenticated: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

struct Address {
    open: usize,
    bucket: Bucket,
}

/// Tokens that come at a rate; a second's worth fits in.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Why a socket was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The node has as many as it may.
    Total,
    /// The address has as many as it may.
    Address,
    /// Too many came from the address within a second.
    Rate,
    /// The process has hardly any files left.
    Files,
}

impl Refused {
    /// A short name for metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refused::Total => "connections",
            Refused::Address => "connections-per-address",
            Refused::Rate => "accepts-per-address",
            Refused::Files => "open-files",
        }
    }
}

/// The right to one open socket; dropping it gives it back.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    key: Cell<Option<IpAddr>>,
    place: u64,
    evicted: Arc<Notify>,
}

/// Addresses kept although none of their sockets is open, before they are swept.
const SWEEP_FROM: usize = 4_096;

impl Gate {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Arc<Gate> {
        let rate = f64::from(limits.accepts_per_second);
        Arc::new(Gate {
            total_max: limits.connections,
            unauthenticated_max: limits.unauthenticated_connections,
            per_address_max: limits.connections_per_address,
            per_address_rate: f64::from(limits.accepts_per_address_per_second),
            rate,
            limit_loopback: limits.limit_loopback,
            counts: Mutex::new(Counts {
                total: 0,
                addresses: HashMap::new(),
                sweep_at: SWEEP_FROM,
                bucket: Bucket { tokens: rate, filled: now },
                unauthenticated: BTreeMap::new(),
                next: 0,
            }),
        })
    }

    /// Lets a socket in, or says why not. `address` is `None` where it is not known yet who stands behind a proxy.
    pub(crate) fn enter(self: &Arc<Self>, address: Option<IpAddr>, now: Instant) -> Result<Permit, Refused> {
        let key = address.and_then(|address| self.key(address));
        let mut counts = self.counts.lock();
        if counts.total >= self.total_max {
            return Err(Refused::Total);
        }
        if let Some(key) = key {
            self.count(&mut counts, key, now)?;
        }
        counts.total += 1;
        // Below zero: who was let in is served, and the listeners wait for what is missing.
        counts.bucket.refill(now, self.rate);
        counts.bucket.tokens -= 1.0;
        if counts.unauthenticated.len() >= self.unauthenticated_max
            && let Some((_, oldest)) = counts.unauthenticated.pop_first()
        {
            oldest.notify_one();
        }
        let (place, evicted) = (counts.next, Arc::new(Notify::new()));
        counts.next += 1;
        counts.unauthenticated.insert(place, evicted.clone());
        Ok(Permit { gate: self.clone(), key: Cell::new(key), place, evicted })
    }

    /// How long the listeners must wait before they let in the next one; `None`: not at all.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        let mut counts = self.counts.lock();
        counts.bucket.refill(now, self.rate);
        let missing = 0.0 - counts.bucket.tokens;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / self.rate))
    }

    fn count(&self, counts: &mut Counts, key: IpAddr, now: Instant) -> Result<(), Refused> {
        if counts.addresses.len() >= counts.sweep_at {
            counts.sweep(now, self.per_address_rate);
        }
        let full = Bucket { tokens: self.per_address_rate, filled: now };
        let entry = counts.addresses.entry(key).or_insert(Address { open: 0, bucket: full });
        entry.bucket.refill(now, self.per_address_rate);
        if entry.open >= self.per_address_max {
            return Err(Refused::Address);
        }
        if entry.bucket.tokens < 1.0 {
            return Err(Refused::Rate);
        }
        entry.bucket.tokens -= 1.0;
        entry.open += 1;
        Ok(())
    }

    /// Forgets addresses that look as if never seen; from time to time, so that a crowd that left costs nothing.
    pub(crate) fn sweep(&self, now: Instant) {
        self.counts.lock().sweep(now, self.per_address_rate);
    }

    pub(crate) fn open(&self) -> usize {
        self.counts.lock().total
    }

    /// Sockets that have not logged in.
    pub(crate) fn unauthenticated(&self) -> usize {
        self.counts.lock().unauthenticated.len()
    }

    /// Addresses that are remembered.
    pub(crate) fn addresses(&self) -> usize {
        self.counts.lock().addresses.len()
    }

    fn key(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        (self.limit_loopback || !address.is_loopback()).then(|| network(address))
    }
}

/// Whom an address is counted as: an IPv6 host owns its /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & 0xffff_ffff_ffff_ffff_0000_0000_0000_0000))
        }
    }
}

impl Counts {
    /// Forgets addresses without sockets whose bucket is full again.
    fn sweep(&mut self, now: Instant, full: f64) {
        self.addresses.retain(|_, a| {
            a.bucket.refill(now, full);
            a.open > 0 || a.bucket.tokens < full
        });
        let kept = self.addresses.len();
        if self.addresses.capacity() > 4 * kept.max(64) {
            self.addresses.shrink_to(2 * kept);
        }
        self.sweep_at = (kept * 2).max(SWEEP_FROM);
    }
}

impl Bucket {
    fn refill(&mut self, now: Instant, full: f64) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * full).min(full);
        self.filled = now;
    }
}

impl Permit {
    /// A proxy has told whom the socket is from, who counts from now on.
    ///
    /// # Errors
    /// Why that one is not let in.
    pub(crate) fn is_from(&self, address: IpAddr, now: Instant) -> Result<(), Refused> {
        if let Some(key) = self.gate.key(address) {
            self.gate.count(&mut self.gate.counts.lock(), key, now)?;
            self.key.set(Some(key));
        }
        Ok(())
    }

    /// It has logged in: newer sockets no longer take its place.
    pub(crate) fn authenticated(&self) {
        self.gate.counts.lock().unauthenticated.remove(&self.place);
    }

    /// Waits until a newer socket takes its place; for one waiter.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        counts.unauthenticated.remove(&self.place);
        if let Some(entry) = self.key.get().and_then(|key| counts.addresses.get_mut(&key)) {
            entry.open = entry.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn gate_with(change: impl FnOnce(&mut Limits)) -> (Arc<Gate>, Instant) {
        let mut limits = Limits { connections: 10, ..Limits::default() };
        change(&mut limits);
        let now = Instant::now();
        (Gate::new(&limits, now), now)
    }

    fn gate(connections: usize, per_address: usize, per_second: u32) -> (Arc<Gate>, Instant) {
        gate_with(|limits| {
            limits.connections = connections;
            limits.connections_per_address = per_address;
            limits.accepts_per_address_per_second = per_second;
        })
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_address_cannot_take_what_others_need() {
        let (gate, now) = gate(10, 2, 100);
        let first = gate.enter(ip("192.0.2.1"), now).ok().unwrap();
        let _second = gate.enter(ip("192.0.2.1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("192.0.2.1"), now).err(), Some(Refused::Address));
        assert!(gate.enter(ip("192.0.2.2"), now).is_ok());
        drop(first);
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
    }

    #[test]
    fn an_ipv6_host_counts_by_its_network() {
        let (gate, now) = gate(10, 1, 100);
        let _one = gate.enter(ip("2001:db8::1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("2001:db8::2"), now).err(), Some(Refused::Address));
        assert!(gate.enter(ip("2001:db8:0:1::2"), now).is_ok());
    }

    #[test]
    fn the_rate_of_one_address_is_bounded_and_comes_back() {
        let (gate, now) = gate(10, 10, 2);
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
        assert!(gate.enter(ip("192.0.2.1"), now).is_ok());
        assert_eq!(gate.enter(ip("192.0.2.1"), now).err(), Some(Refused::Rate));
        assert!(gate.enter(ip("192.0.2.1"), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn the_rate_of_the_node_makes_listeners_wait_and_refuses_nobody() {
        let (gate, now) = gate_with(|limits| limits.accepts_per_second = 2);
        let let_in = |now| gate.enter(ip("127.0.0.1"), now).ok().unwrap();
        let _two = (let_in(now), let_in(now));
        assert_eq!(gate.pause(now), None);
        let _third = let_in(now);
        assert_eq!(gate.pause(now), Some(Duration::from_millis(500)));
        assert_eq!(gate.pause(now + Duration::from_millis(500)), None);
    }

    #[test]
    fn who_is_refused_takes_nothing_of_the_nodes_rate() {
        let (gate, now) = gate_with(|limits| {
            limits.accepts_per_second = 2;
            limits.accepts_per_address_per_second = 1;
        });
        for _ in 0..10 {
            let _ = gate.enter(ip("192.0.2.1"), now);
        }
        assert!(gate.enter(ip("192.0.2.2"), now).is_ok());
        assert_eq!(gate.pause(now), None);
    }

    #[test]
    fn the_total_holds_for_loopback_too() {
        let (gate, now) = gate(1, 1, 1);
        let _one = gate.enter(ip("127.0.0.1"), now).ok().unwrap();
        assert_eq!(gate.enter(ip("127.0.0.1"), now).err(), Some(Refused::Total));
        assert_eq!(gate.open(), 1);
    }

    #[test]
    fn the_oldest_that_has_not_logged_in_makes_room() {
        let (gate, now) = gate_with(|limits| limits.unauthenticated_connections = 2);
        let let_in = || gate.enter(ip("192.0.2.1"), now).ok().unwrap();
        let logged_in = let_in();
        logged_in.authenticated();
        let (oldest, newer) = (let_in(), let_in());
        let is_out = |permit: &Permit| permit.evicted().now_or_never().is_some();
        assert!(!is_out(&oldest) && !is_out(&newer));
        let _newest = let_in();
        assert!(is_out(&oldest) && !is_out(&newer) && !is_out(&logged_in));
        assert_eq!(gate.unauthenticated(), 2);
        drop(newer);
        assert_eq!(gate.unauthenticated(), 1);
    }

    #[test]
    fn whom_a_proxy_speaks_for_counts_and_not_the_proxy() {
        let (gate, now) = gate(10, 1, 100);
        let (one, two) = (gate.enter(None, now).ok().unwrap(), gate.enter(None, now).ok().unwrap());
        let client = ip("192.0.2.1").unwrap();
        assert_eq!(one.is_from(client, now), Ok(()));
        assert_eq!(two.is_from(client, now), Err(Refused::Address));
        drop(one);
        assert_eq!(two.is_from(client, now), Ok(()));
    }

    #[test]
    fn addresses_that_left_are_forgotten() {
        let (gate, now) = gate(10, 1, 1);
        for n in 0..SWEEP_FROM as u32 {
            let _ = gate.enter(Some(IpAddr::V4((0x0a00_0000 + n).into())), now);
        }
        assert_eq!(gate.addresses(), SWEEP_FROM);
        drop(gate.enter(ip("192.0.2.1"), now + Duration::from_secs(2)));
        assert!(gate.addresses() <= 1);
        gate.sweep(now + Duration::from_secs(4));
        let counts = gate.counts.lock();
        assert!(counts.addresses.is_empty() && counts.addresses.capacity() < 64);
    }
}

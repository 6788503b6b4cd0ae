//! Logins that failed lately, by address and by account, with how long further attempts are held back for it.
//!
//! Nobody is locked out. An address that has not failed is never made to wait, whatever others try at the same
//! account; one that has waits for a bounded time and is then served like everybody.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::gate::network;
use crate::limits::Limits;

/// What is remembered of failed logins; one per node, shared by its arbiters.
pub(crate) struct Failures {
    first: Duration,
    longest: Duration,
    memory: Duration,
    remembered: usize,
    waiting_max: usize,
    limit_loopback: bool,
    /// Names may be long, and are chosen by strangers: only their hashes are kept.
    hasher: RandomState,
    tables: Mutex<Tables>,
}

struct Tables {
    addresses: Recent,
    accounts: Recent,
    /// Attempts that wait, by address.
    waiting: HashMap<u64, usize>,
}

/// Records in two generations. When the younger one is full or old, the older one is forgotten as a whole: so the
/// table is bounded, and costs the same however full it is.
struct Recent {
    young: HashMap<u64, Record>,
    old: HashMap<u64, Record>,
    turned: Instant,
}

#[derive(Clone, Copy)]
struct Record {
    failures: u32,
    last: Instant,
    /// Until when the next attempt waits.
    until: Instant,
}

/// An attempt that waits for its turn.
pub(crate) struct Turn<'a> {
    failures: &'a Failures,
    address: u64,
    /// How long it has to wait.
    pub delay: Duration,
}

/// Too many attempts of one address wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Failures {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Failures {
        Failures {
            first: Duration::from_millis(limits.auth_delay_ms),
            longest: Duration::from_millis(limits.auth_delay_max_ms),
            memory: Duration::from_secs(limits.auth_failure_memory_s),
            remembered: limits.auth_failures_remembered,
            waiting_max: limits.auth_waiting_per_address,
            limit_loopback: limits.limit_loopback,
            hasher: RandomState::new(),
            tables: Mutex::new(Tables {
                addresses: Recent::new(now),
                accounts: Recent::new(now),
                waiting: HashMap::new(),
            }),
        }
    }

    /// Before a password is looked at: whether the attempt has to wait, `None` where it has not.
    ///
    /// # Errors
    /// [`Crowded`] where too many attempts of the address wait already.
    pub(crate) fn turn(
        &self,
        address: IpAddr,
        account: &str,
        now: Instant,
    ) -> Result<Option<Turn<'_>>, Crowded> {
        let Some(address) = self.address(address) else { return Ok(None) };
        let mut tables = self.tables.lock();
        // Whoever has not failed is served at once, or guessing at an account would lock its owner out.
        let Some(mine) = tables.addresses.find(address, now, self.memory) else { return Ok(None) };
        let others = tables.accounts.find(self.hasher.hash_one(account), now, self.memory);
        let until = others.map_or(mine.until, |others| others.until.max(mine.until));
        let delay = until.saturating_duration_since(now).min(self.longest);
        if delay.is_zero() {
            return Ok(None);
        }
        let waiting = tables.waiting.entry(address).or_default();
        if *waiting >= self.waiting_max {
            return Err(Crowded);
        }
        *waiting += 1;
        Ok(Some(Turn { failures: self, address, delay }))
    }

    /// Remembers a failed login: for how long the answer is to be held back.
    pub(crate) fn failed(&self, address: IpAddr, account: Option<&str>, now: Instant) -> Duration {
        let Some(address) = self.address(address) else { return Duration::ZERO };
        let mut tables = self.tables.lock();
        let by_address = tables.addresses.add(address, now, self);
        let by_account = account.map(|account| tables.accounts.add(self.hasher.hash_one(account), now, self));
        by_address.max(by_account.unwrap_or_default())
    }

    /// How long the delay is after that many failures.
    fn delay(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.longest)
    }

    /// Forgets what is too old; from time to time, so that an attack that is over costs nothing.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut tables = self.tables.lock();
        tables.addresses.turn_if(false, now, self.memory);
        tables.accounts.turn_if(false, now, self.memory);
        tables.waiting.shrink_to_fit();
    }

    /// Addresses and accounts that are remembered.
    pub(crate) fn remembered(&self) -> (usize, usize) {
        let tables = self.tables.lock();
        (tables.addresses.len(), tables.accounts.len())
    }

    fn address(&self, address: IpAddr) -> Option<u64> {
        let is_limited = self.limit_loopback || !address.to_canonical().is_loopback();
        is_limited.then(|| self.hasher.hash_one(network(address)))
    }
}

impl Recent {
    fn new(now: Instant) -> Recent {
        Recent { young: HashMap::new(), old: HashMap::new(), turned: now }
    }

    fn find(&self, key: u64, now: Instant, memory: Duration) -> Option<Record> {
        let record = self.young.get(&key).or_else(|| self.old.get(&key))?;
        (now.saturating_duration_since(record.last) < memory).then_some(*record)
    }

    fn add(&mut self, key: u64, now: Instant, rules: &Failures) -> Duration {
        let failures =
            self.find(key, now, rules.memory).map_or(0, |record| record.failures).saturating_add(1);
        let delay = rules.delay(failures);
        self.old.remove(&key);
        self.young.insert(key, Record { failures, last: now, until: now + delay });
        self.turn_if(self.young.len() >= rules.remembered.div_ceil(2), now, rules.memory);
        delay
    }

    fn turn_if(&mut self, full: bool, now: Instant, memory: Duration) {
        if full || now.saturating_duration_since(self.turned) >= memory {
            self.old = std::mem::take(&mut self.young);
            self.turned = now;
        }
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tables = self.failures.tables.lock();
        if let Some(waiting) = tables.waiting.get_mut(&self.address) {
            *waiting -= 1;
            if *waiting == 0 {
                tables.waiting.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "alice@localhost";

    fn failures(change: impl FnOnce(&mut Limits)) -> (Failures, Instant) {
        let mut limits = Limits { auth_delay_ms: 100, auth_delay_max_ms: 1_000, ..Limits::default() };
        change(&mut limits);
        let now = Instant::now();
        (Failures::new(&limits, now), now)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn wait(failures: &Failures, address: &str, account: &str, now: Instant) -> u64 {
        let turn = failures.turn(ip(address), account, now).unwrap();
        turn.map_or(0, |turn| turn.delay.as_millis() as u64)
    }

    #[test]
    fn delays_grow_and_are_bounded() {
        let (failures, now) = failures(|_| {});
        let held: Vec<u128> =
            (0..40).map(|_| failures.failed(ip("192.0.2.1"), None, now).as_millis()).collect();
        assert_eq!(held[..6], [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(held[39], 1_000);
        assert_eq!(wait(&failures, "192.0.2.1", ALICE, now), 1_000);
        assert_eq!(wait(&failures, "192.0.2.1", ALICE, now + Duration::from_millis(400)), 600);
        assert_eq!(wait(&failures, "192.0.2.1", ALICE, now + Duration::from_secs(1)), 0);
    }

    #[test]
    fn an_account_that_others_guess_at_is_open_to_whoever_has_not_failed() {
        let (failures, now) = failures(|_| {});
        for n in 0..200 {
            failures.failed(ip(&format!("198.51.100.{n}")), Some(ALICE), now);
        }
        assert_eq!(wait(&failures, "192.0.2.1", ALICE, now), 0);
        // Who slipped once waits with the others, and no longer than the bound.
        assert_eq!(failures.failed(ip("192.0.2.1"), Some("bob@localhost"), now).as_millis(), 100);
        assert_eq!(wait(&failures, "192.0.2.1", "bob@localhost", now), 100);
        assert_eq!(wait(&failures, "192.0.2.1", ALICE, now), 1_000);
        // A fresh address that guesses wrong there is held back as if it had failed as often.
        assert_eq!(failures.failed(ip("203.0.113.1"), Some(ALICE), now).as_millis(), 1_000);
    }

    #[test]
    fn an_ipv6_host_cannot_change_its_address() {
        let (failures, now) = failures(|_| {});
        failures.failed(ip("2001:db8::1"), None, now);
        assert_eq!(wait(&failures, "2001:db8::2", ALICE, now), 100);
        assert_eq!(wait(&failures, "2001:db8:0:1::1", ALICE, now), 0);
    }

    #[test]
    fn loopback_is_held_back_where_the_config_says_so() {
        for limit_loopback in [false, true] {
            let (failures, now) = failures(|limits| limits.limit_loopback = limit_loopback);
            let held = failures.failed(ip("127.0.0.1"), Some(ALICE), now);
            assert_eq!(!held.is_zero(), limit_loopback);
            assert_eq!(wait(&failures, "127.0.0.1", ALICE, now) > 0, limit_loopback);
        }
    }

    #[test]
    fn only_so_many_attempts_of_an_address_wait() {
        let (failures, now) = failures(|limits| limits.auth_waiting_per_address = 2);
        failures.failed(ip("192.0.2.1"), None, now);
        let first = failures.turn(ip("192.0.2.1"), ALICE, now).unwrap();
        let _second = failures.turn(ip("192.0.2.1"), ALICE, now).unwrap();
        assert_eq!(failures.turn(ip("192.0.2.1"), ALICE, now).err(), Some(Crowded));
        assert!(failures.turn(ip("192.0.2.2"), ALICE, now).unwrap().is_none());
        drop(first);
        assert!(failures.turn(ip("192.0.2.1"), ALICE, now).unwrap().is_some());
    }

    #[test]
    fn what_is_old_or_too_much_is_forgotten() {
        let (failures, now) = failures(|limits| limits.auth_failures_remembered = 100);
        for n in 0..10_000u32 {
            failures.failed(IpAddr::V4((0x0a00_0000 + n).into()), Some(&format!("{n}@localhost")), now);
        }
        let (addresses, accounts) = failures.remembered();
        assert!(addresses <= 100 && accounts <= 100, "{addresses} {accounts}");
        assert_eq!(wait(&failures, "10.0.39.15", ALICE, now), 100);
        let later = now + Duration::from_secs(900);
        assert_eq!(failures.failed(ip("10.0.39.15"), None, later).as_millis(), 100);
        failures.sweep(later + Duration::from_secs(900));
        failures.sweep(later + Duration::from_secs(1_800));
        assert_eq!(failures.remembered(), (0, 0));
    }
}

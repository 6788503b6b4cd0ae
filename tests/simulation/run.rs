//! One run: a cluster is formed, clients chat while things break, all is healed, and what is left is looked at.

use std::{path::Path, time::Duration};

use cluster::Roles;
use hooks::{Accounts, Credentials, ScramKeys, Store};
use jid::BareJid;
use tokio::time::Instant;
use xeps::rosters::{Item, Roster, Standing, partition};

use crate::{
    chance::{self, Dice},
    clients::{Clients, Habits},
    faults::Faults,
    history::{Dated, Event},
    world::{HOSTS_MAX, TURN_MS, World},
};

/// Founding a cluster takes no longer.
const FORMED_MS: u64 = 60_000;
/// How long things break, in one run or another: long enough for a lease and its grace to end, or short, so that
/// more runs begin and end.
const CHAOS_MS: [u64; 4] = [5_000, 10_000, 18_000, 35_000];
/// How long clients chat on after that.
const CHAT_MS: u64 = 3_000;
/// From then on all is well within this.
const SETTLED_MS: u64 = 60_000;
/// How long nothing is to change before the end.
const STILL_MS: u64 = 3_000;
/// How often tables are looked at.
const LOOK_MS: u64 = 250;
/// Each account has so many contacts before it in the list, and behind it.
const CONTACTS: usize = 2;
/// Between two values for the store, at most.
const KEEP_MS: u64 = 400;

/// Runs a seed in a folder that is empty; on this thread nothing may have run before.
pub fn run(seed: u64, dir: &Path) -> Vec<Dated> {
    chance::decide_all_by(seed);
    let mut dice = Dice::new(seed);
    let mut play = Play::new(&mut dice, dir);
    let failure = play.all(&mut dice);
    play.world.note_tables();
    play.world.note_end();
    play.world.history.push(Event::End { failure });
    play.world.history.events()
}

struct Play {
    world: World,
    clients: Clients,
    dice: Dice,
    next_value: u64,
    next_value_at: u64,
}

impl Play {
    fn new(dice: &mut Dice, dir: &Path) -> Play {
        let both = Roles { frontend: true, backend: true };
        let fourth = if dice.chance(500) { Roles { frontend: true, backend: false } } else { both };
        let hosts = dice.between(3, HOSTS_MAX as u64 + 1) as usize;
        let roles: Vec<Roles> = [both, both, both, fourth, both].into_iter().take(hosts).collect();
        let world = World::new(dice, dir, &roles);
        let habits = Habits {
            pause_ms: dice.pick(&[150, 600, 2_000]).unwrap_or(600),
            restless: dice.pick(&[20, 100, 300]).unwrap_or(100),
        };
        let accounts = dice.between(4, 10) as usize;
        let rivals = dice.between(0, 3) as usize;
        let clients = Clients::new(dice.split(), habits, accounts, rivals);
        people(&world.store, clients.accounts());
        Play { world, clients, dice: dice.split(), next_value: 0, next_value_at: 0 }
    }

    fn all(&mut self, dice: &mut Dice) -> Option<String> {
        // In any order, and not at once.
        let mut starts: Vec<(u64, usize)> = (0..3).map(|host| (dice.between(0, 2_000), host)).collect();
        starts.sort_unstable();
        let formed = self.until(FORMED_MS, |play| {
            while let Some((_, host)) = starts.first().filter(|(at, _)| *at <= play.world.now).copied() {
                starts.remove(0);
                play.world.start(host);
            }
            starts.is_empty() && (0..3).all(|host| play.world.ready(host).is_some())
        });
        if !formed {
            return Some("no cluster was formed".into());
        }
        let mut faults = Faults::new(dice.split(), self.world.now + 1_500);
        let until = self.world.now + dice.pick(&CHAOS_MS).unwrap_or(CHAOS_MS[0]);
        while self.world.now < until {
            faults.act(&mut self.world);
            self.turn();
        }
        faults.heal(&mut self.world);
        self.world.history.push(Event::Healed);
        let until = self.world.now + CHAT_MS;
        while self.world.now < until {
            self.turn();
        }
        self.clients.calm_down(self.world.now);
        let mut still_since = self.world.now;
        let mut asked_again = false;
        let settled = self.until(SETTLED_MS, |play| {
            play.keep_alive();
            if !play.is_still() {
                still_since = play.world.now;
            }
            if !asked_again && play.world.now - still_since >= STILL_MS {
                // What is stored shows at the next login.
                asked_again = true;
                play.clients.log_in_again();
                still_since = play.world.now;
            }
            play.world.now - still_since >= STILL_MS
        });
        if settled {
            None
        } else {
            Some(format!("not settled {SETTLED_MS} ms after healing: {}", self.unsettled()))
        }
    }

    /// Starts whoever ended, or says of itself that it must be started anew, as those do who run a server.
    fn keep_alive(&mut self) {
        for host in 0..self.world.nodes.len() {
            if self.world.has_failed(host) {
                self.world.kill(host, false);
            }
            self.world.start(host);
        }
    }

    fn turn(&mut self) {
        self.clients.act(&self.world);
        self.keep();
        self.world.turn();
        if self.world.now.is_multiple_of(LOOK_MS) {
            self.world.note_tables();
        }
    }

    /// Turns until it is so; whether it came to that.
    fn until(&mut self, within: u64, mut is_so: impl FnMut(&mut Play) -> bool) -> bool {
        let until = self.world.now + within;
        while self.world.now < until {
            if is_so(self) {
                return true;
            }
            self.turn();
        }
        false
    }

    /// Has a value kept by the group `data`, by whatever backend.
    fn keep(&mut self) {
        if self.next_value_at > self.world.now || self.clients.quiet {
            return;
        }
        self.next_value_at = self.world.now + self.dice.between(TURN_MS, KEEP_MS);
        let hosts: Vec<usize> = (0..self.world.nodes.len()).collect();
        let Some(host) = self.dice.pick(&hosts) else { return };
        let Some(house) = self.world.ready(host) else { return };
        let Some(group) = house.data.clone() else { return };
        self.next_value += 1;
        let (value, history) = (self.next_value, self.world.history.clone());
        history.push(Event::KeepAsked { value });
        self.world.on(host, || {
            tokio::spawn(async move {
                let deadline = Instant::now() + Duration::from_secs(5);
                let payload = value.to_le_bytes().to_vec().into();
                if let Ok(kept) = group.propose(payload, deadline).await {
                    history.push(Event::Kept { value, index: kept.index });
                }
            })
        });
    }

    fn is_still(&self) -> bool {
        self.unsettled().is_empty()
    }

    /// What is not as it is when all is well.
    fn unsettled(&self) -> String {
        let mut why = Vec::new();
        if self.clients.online() < self.clients.len() {
            why.push(format!("{} of {} clients are online", self.clients.online(), self.clients.len()));
        }
        let mut indexes = Vec::new();
        for host in 0..self.world.nodes.len() {
            let Some(house) = self.world.ready(host) else {
                why.push(format!("host {host} is not ready"));
                continue;
            };
            if self.world.is_paused(host) {
                why.push(format!("host {host} stands still"));
                continue;
            }
            if !self.world.on(host, || house.cluster.is_serving()).unwrap_or(false) {
                why.push(format!("host {host} does not serve"));
            }
            if house.is_binding() {
                why.push(format!("host {host} binds"));
            }
            let unsettled: usize = house.router.lanes().iter().map(|lane| lane.unsettled).sum();
            if unsettled > 0 || house.router.account_queues() > 0 {
                why.push(format!("host {host} has {unsettled} stanzas for others"));
            }
            indexes.push(house.cluster.routes().index());
        }
        if indexes.windows(2).any(|pair| pair[0] != pair[1]) {
            why.push(format!("the tables are at {indexes:?}"));
        }
        let ledgers: Vec<usize> = (0..self.world.nodes.len())
            .filter(|host| self.world.nodes[*host].roles.backend)
            .map(|host| self.world.values(host).len())
            .collect();
        if ledgers.windows(2).any(|pair| pair[0] != pair[1]) {
            why.push(format!("the lists are {ledgers:?} long"));
        }
        why.join(", ")
    }
}

/// Makes the accounts, with contacts who see each other.
fn people(store: &Store, accounts: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without sockets can be made");
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    runtime.block_on(async {
        for account in accounts {
            let made = Accounts::new(store.clone()).create(account, &credentials).await;
            made.expect("an account is made in an empty store");
        }
        for (nth, account) in accounts.iter().enumerate() {
            let mut roster = Roster::default();
            for step in (1..=CONTACTS).flat_map(|step| [step, accounts.len() - step % accounts.len()]) {
                let contact = &accounts[(nth + step) % accounts.len()];
                let standing = Standing { to: true, from: true, ..Standing::default() };
                roster.items.insert(contact.clone(), Item { standing, ..Item::default() });
            }
            roster.items.remove(account);
            let account = BareJid::new(account).expect("a bare JID");
            let kept = store.put(&partition(&account), b"", &roster).await;
            kept.expect("a roster is kept in an empty store");
        }
    });
}

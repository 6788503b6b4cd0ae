//! Simulated clients: they log in somewhere, chat with one another, leave, vanish and come back.

use std::sync::{Arc, atomic::Ordering};

use jid::FullJid;
use tokio::sync::mpsc;

use crate::{
    chance::Dice,
    house::{Line, LineState, Say},
    network::Host,
    world::World,
};

/// Who says how much, and how steady they are.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Between two messages, in milliseconds, at most.
    pub pause_ms: u64,
    /// How often, in a thousand, a client does something else than to say something.
    pub restless: u64,
}

/// One client of an account that nobody else has, but for rivals who want the very same full JID.
pub struct Client {
    jid: FullJid,
    line: Option<(Host, u64, mpsc::UnboundedSender<Say>, Arc<LineState>)>,
    announced: bool,
    next_at: u64,
}

/// All of them.
pub struct Clients {
    dice: Dice,
    habits: Habits,
    clients: Vec<Client>,
    accounts: Vec<String>,
    messages: u64,
    /// Nobody says anything any more; everybody is to be online.
    pub quiet: bool,
}

impl Clients {
    /// So many accounts, the first `rivals` of which have two clients that fight for one full JID.
    pub fn new(mut dice: Dice, habits: Habits, accounts: usize, rivals: usize) -> Clients {
        let names: Vec<String> = (0..accounts).map(|nth| format!("u{nth}@localhost")).collect();
        let owners = names.iter().chain(names.iter().take(rivals));
        let clients = owners.map(|account| Client {
            jid: FullJid::new(&format!("{account}/r")).expect("a full JID"),
            line: None,
            announced: false,
            next_at: dice.between(0, 3_000),
        });
        let clients = clients.collect();
        Clients { dice, habits, clients, accounts: names, messages: 0, quiet: false }
    }

    pub fn accounts(&self) -> &[String] {
        &self.accounts
    }

    /// From now on one client of each account is online and waits.
    pub fn calm_down(&mut self, now: u64) {
        self.quiet = true;
        let owners = self.accounts.len();
        for client in self.clients.drain(owners..) {
            if let Some((_, _, line, _)) = client.line {
                let _ = line.send(Say::Close);
            }
        }
        for client in &mut self.clients {
            client.next_at = now;
        }
    }

    /// Everybody leaves, and comes back at once.
    pub fn log_in_again(&mut self) {
        for client in &mut self.clients {
            if let Some((_, _, line, _)) = &client.line {
                let _ = line.send(Say::Close);
            }
            client.next_at = 0;
        }
    }

    /// How many are online.
    pub fn online(&self) -> usize {
        self.clients.iter().filter(|client| client.announced).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Everybody whose time has come does something.
    pub fn act(&mut self, world: &World) {
        for nth in 0..self.clients.len() {
            self.notice(nth, world);
            if self.clients[nth].next_at <= world.now {
                self.act_one(nth, world);
            }
        }
    }

    /// Notices what became of the connection.
    fn notice(&mut self, nth: usize, world: &World) {
        let client = &mut self.clients[nth];
        let Some((host, process, line, state)) = &client.line else { return };
        let gone = world.process(*host) != Some(*process) || line.is_closed();
        if gone || state.closed.load(Ordering::Acquire) {
            client.line = None;
            client.announced = false;
            client.next_at = world.now + self.dice.between(50, 2_000);
        } else if state.bound.load(Ordering::Acquire) && !client.announced {
            client.announced = true;
            let _ = line.send(Say::Available);
        }
    }

    fn act_one(&mut self, nth: usize, world: &World) {
        let pause = self.dice.between(20, self.habits.pause_ms.max(21));
        self.clients[nth].next_at = world.now + pause;
        match &self.clients[nth].line {
            None => self.log_in(nth, world),
            Some((_, _, line, _)) if self.clients[nth].announced && !self.quiet => {
                if self.dice.chance(self.habits.restless) {
                    let vanishes = self.dice.chance(500);
                    if !vanishes {
                        let _ = line.send(Say::Close);
                    }
                    if vanishes {
                        // Its node does not know: the next login takes the full JID from the session that is left.
                        let line = self.clients[nth].line.take();
                        std::mem::forget(line);
                        self.clients[nth].announced = false;
                        self.clients[nth].next_at = world.now + self.dice.between(20, 4_000);
                    }
                    return;
                }
                let Some(to) = self.dice.pick(&(0..self.accounts.len()).collect::<Vec<_>>()) else { return };
                self.messages += 1;
                let full = if self.dice.chance(300) { "/r" } else { "" };
                let to = format!("{}{full}", self.accounts[to]);
                let _ = line.send(Say::Message { id: self.messages, to });
            }
            Some(_) => {}
        }
    }

    fn log_in(&mut self, nth: usize, world: &World) {
        let open = |host: &Host| {
            !world.is_paused(*host)
                && world.nodes[*host].roles.frontend
                && world.ready(*host).is_some_and(|house| world.on(*host, || house.is_open()) == Some(true))
        };
        let hosts: Vec<Host> = (0..world.nodes.len()).filter(open).collect();
        let Some(host) = self.dice.pick(&hosts) else { return };
        let Some(house) = world.ready(host) else { return };
        let (say, said) = mpsc::unbounded_channel();
        let state = Arc::new(LineState::default());
        let jid = self.clients[nth].jid.clone();
        let line = Line { said, state: state.clone() };
        let process = house.process;
        world.on(host, || house.admit(jid, line));
        self.clients[nth].line = Some((host, process, say, state));
        self.clients[nth].announced = false;
    }
}

//! What breaks, and when: kills, power failures, pauses, cuts, delays, clocks that jump, full and slow disks, drains,
//! stops and joins, as the dice have it.

use crate::{
    chance::Dice,
    history::Event,
    network::Host,
    world::{HOSTS_MAX, World},
};

/// Faults of one run.
pub struct Faults {
    dice: Dice,
    next_at: u64,
    /// Most pauses between two faults, in milliseconds.
    pause_ms: u64,
    /// What ends or begins again later, by its time.
    later: Vec<(u64, Undo)>,
}

#[derive(Clone, Debug)]
enum Undo {
    Start(Host),
    Heal(Host, Host),
    Usual(Host, Host),
    Free(Host),
    Fast(Host),
    Undrain(Host),
}

impl Faults {
    pub fn new(mut dice: Dice, from: u64) -> Faults {
        let pause_ms = dice.pick(&[1_500, 4_000, 9_000]).unwrap_or(4_000);
        Faults { dice, next_at: from, pause_ms, later: Vec::new() }
    }

    /// Breaks what is due, and mends what is.
    pub fn act(&mut self, world: &mut World) {
        self.mend(world, world.now);
        if self.next_at > world.now {
            return;
        }
        self.next_at = world.now + self.dice.between(200, self.pause_ms);
        self.break_something(world);
    }

    /// Mends all at once.
    pub fn heal(&mut self, world: &mut World) {
        self.mend(world, u64::MAX);
        for host in 0..world.nodes.len() {
            if !world.is_running(host) {
                world.start(host);
            }
        }
    }

    fn mend(&mut self, world: &mut World, until: u64) {
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= until);
        self.later = later;
        let due: Vec<(u64, Undo)> = due;
        for (_, undo) in due {
            world.history.push(Event::Fault(format!("over: {undo:?}")));
            match undo {
                Undo::Start(host) => world.start(host),
                Undo::Heal(from, to) => world.network.heal(from, to),
                Undo::Usual(from, to) => world.network.delay(from, to, None),
                Undo::Free(host) => {
                    world.set_full(host, false);
                    // Whoever made room starts a process anew that says that it has failed.
                    if world.has_failed(host) {
                        world.kill(host, false);
                    }
                    world.start(host);
                }
                Undo::Fast(host) => world.set_slow(host, false),
                Undo::Undrain(host) => {
                    if let Some(house) = world.house(host) {
                        world.on(host, || house.drain(false));
                    }
                }
            }
        }
    }

    fn break_something(&mut self, world: &mut World) {
        let hosts: Vec<Host> = (0..world.nodes.len()).collect();
        let running: Vec<Host> = hosts.iter().copied().filter(|host| world.is_running(*host)).collect();
        let (Some(host), Some(other)) = (self.dice.pick(&running), self.dice.pick(&hosts)) else { return };
        let note = |world: &World, what: String| world.history.push(Event::Fault(what));
        let soon = |dice: &mut Dice, low, high, now: u64| now + dice.between(low, high);
        let now = world.now;
        match self.dice.between(0, 12) {
            0 | 1 => {
                let power = self.dice.chance(400);
                world.kill(host, power);
                self.later.push((soon(&mut self.dice, 200, 12_000, now), Undo::Start(host)));
            }
            2 => {
                let ms = self.dice.pick(&[700, 2_500, 4_500, 8_000, 20_000]).unwrap_or(2_500);
                note(world, format!("host {host} stands still for {ms} ms"));
                world.pause(host, ms);
            }
            3 => {
                note(world, format!("host {host} is cut off"));
                let until = soon(&mut self.dice, 500, 14_000, now);
                for far in hosts.into_iter().filter(|far| *far != host) {
                    self.cut(world, host, far, until);
                    self.cut(world, far, host, until);
                }
            }
            4 if other != host => {
                let both = self.dice.chance(500);
                note(world, format!("from {host} to {other} nothing gets, both ways: {both}"));
                let until = soon(&mut self.dice, 500, 14_000, now);
                self.cut(world, host, other, until);
                if both {
                    self.cut(world, other, host, until);
                }
            }
            5 => {
                note(world, format!("nothing gets from host {host} to anybody"));
                let until = soon(&mut self.dice, 500, 10_000, now);
                for far in hosts.into_iter().filter(|far| *far != host) {
                    self.cut(world, host, far, until);
                }
            }
            6 if other != host => {
                let ms = self.dice.pick(&[60, 250, 900, 2_000]).unwrap_or(250);
                note(world, format!("from {host} to {other} it takes up to {ms} ms"));
                world.network.delay(host, other, Some((ms / 4, ms)));
                self.later.push((soon(&mut self.dice, 500, 12_000, now), Undo::Usual(host, other)));
            }
            7 => {
                let ms = self.dice.pick(&[300, 1_500, 4_000, 9_000]).unwrap_or(1_500);
                note(world, format!("the clock of host {host} jumps by {ms} ms"));
                world.jump(host, ms);
            }
            8 => {
                note(world, format!("the disk of host {host} is full"));
                world.set_full(host, true);
                self.later.push((soon(&mut self.dice, 1_000, 10_000, now), Undo::Free(host)));
            }
            9 => {
                note(world, format!("the disk of host {host} is slow"));
                world.set_slow(host, true);
                self.later.push((soon(&mut self.dice, 1_000, 8_000, now), Undo::Fast(host)));
            }
            10 => {
                let Some(house) = world.ready(host) else { return };
                if self.dice.chance(500) {
                    note(world, format!("host {host} drains"));
                    world.on(host, || house.drain(true));
                    self.later.push((soon(&mut self.dice, 1_000, 9_000, now), Undo::Undrain(host)));
                } else {
                    note(world, format!("host {host} is told to stop"));
                    world.on(host, || tokio::spawn(async move { house.stop().await }));
                    self.later.push((soon(&mut self.dice, 12_000, 18_000, now), Undo::Start(host)));
                }
            }
            _ => {
                // A node that has not been here yet joins; whoever was is only started early.
                let absent: Vec<Host> =
                    hosts.into_iter().filter(|host| !world.is_running(*host)).take(HOSTS_MAX).collect();
                if let Some(host) = self.dice.pick(&absent) {
                    world.start(host);
                }
            }
        }
    }

    fn cut(&mut self, world: &World, from: Host, to: Host, until: u64) {
        world.network.cut(from, to);
        self.later.push((until, Undo::Heal(from, to)));
    }
}

//! Looks up and changes the route table, as every node does.

use std::hint::black_box;

use cluster::routes::{Command, ConflictPolicy};
use cluster::{Incarnation, NodeId, Roles, Routes, Sid};
use jid::{BareJid, FullJid};

use crate::operation::Operation;

/// Rows that are there all the time.
const ROWS: u64 = 200_000;
/// Sessions that come and go above them: enough that none is in a cache of the processor when its turn comes again.
const SESSIONS: u64 = 200_000;
/// Of them in a go.
const AT_ONCE: u64 = 1_000;

const NODE: NodeId = NodeId(1);
const INCARNATION: Incarnation = Incarnation(1);

/// A table with its rows, and whose turn is next.
struct Table {
    routes: Routes,
    index: u64,
    next: u64,
}

impl Table {
    fn new() -> Table {
        let mut table = Table { routes: Routes::new(), index: 0, next: 0 };
        let (name, address, roles) = ("node1".into(), "h:1".into(), Roles { frontend: true, backend: true });
        table.apply(Command::NodeUp { key: 1, start: 1, name, address, roles, member: None });
        (0..ROWS).for_each(|n| table.apply(bind(n)));
        assert_eq!(table.routes.sessions() as u64, ROWS, "each is bound");
        table
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        black_box(self.routes.apply(self.index, command, &mut Vec::new()));
        black_box(self.routes.digest());
    }

    fn apply_all(&mut self, commands: &mut Vec<Command>) {
        commands.drain(..).for_each(|command| self.apply(command));
    }

    /// The numbers of the sessions whose turn it is.
    fn turn(&mut self) -> impl Iterator<Item = u64> + use<> {
        let first = ROWS + self.next;
        self.next = (self.next + AT_ONCE) % SESSIONS;
        first..first + AT_ONCE
    }
}

fn session(n: u64) -> (FullJid, Sid) {
    let jid = FullJid::new(&format!("user{n}@localhost.example/phone-{n:08x}"));
    (jid.expect("this is a full JID"), Sid(u128::from(n) << 64 | 0x5eed))
}

fn bind(n: u64) -> Command {
    let (jid, sid) = session(n);
    Command::Bind { jid, node: NODE, incarnation: INCARNATION, sid, policy: ConflictPolicy::Replace }
}

fn unbind(n: u64) -> Command {
    let (jid, sid) = session(n);
    Command::Unbind { jid, sid }
}

/// Finds the sessions of an account.
pub struct Account {
    table: Table,
    due: Vec<BareJid>,
}

impl Account {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Account { table: Table::new(), due: Vec::new() })
    }
}

impl Operation for Account {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn ready(&mut self) {
        // Of the rows that are there.
        self.due = self.table.turn().map(|n| session(n - ROWS).0.to_bare()).collect();
    }

    fn go(&mut self) {
        for account in &self.due {
            let found = self.table.routes.users(account).map(black_box).count();
            assert_eq!(found, 1, "it has a session");
        }
    }
}

/// Finds a session.
pub struct Session {
    table: Table,
    due: Vec<FullJid>,
}

impl Session {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Session { table: Table::new(), due: Vec::new() })
    }
}

impl Operation for Session {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn ready(&mut self) {
        self.due = self.table.turn().map(|n| session(n - ROWS).0).collect();
    }

    fn go(&mut self) {
        for jid in &self.due {
            assert!(black_box(self.table.routes.full(jid)).is_some(), "it is there");
        }
    }
}

/// Gives a full JID to a session.
pub struct Bind {
    table: Table,
    due: Vec<Command>,
    bound: Vec<u64>,
}

impl Bind {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Bind { table: Table::new(), due: Vec::new(), bound: Vec::new() })
    }
}

impl Operation for Bind {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn ready(&mut self) {
        self.bound.drain(..).for_each(|n| self.table.apply(unbind(n)));
        self.bound.extend(self.table.turn());
        self.due.extend(self.bound.iter().copied().map(bind));
    }

    fn go(&mut self) {
        self.table.apply_all(&mut self.due);
    }
}

/// Changes the priority of a session.
pub struct Priority {
    table: Table,
    due: Vec<Command>,
    last: i8,
}

impl Priority {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Priority { table: Table::new(), due: Vec::new(), last: 0 })
    }
}

impl Operation for Priority {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn ready(&mut self) {
        // Another one than it had when its turn came the last time.
        self.last = if self.table.next == 0 { (self.last + 1) % 100 } else { self.last };
        let priority = Some(self.last);
        self.due.extend(self.table.turn().map(|n| {
            let (jid, sid) = session(n - ROWS);
            Command::SetPriority { jid, sid, priority }
        }));
    }

    fn go(&mut self) {
        self.table.apply_all(&mut self.due);
    }
}

/// Takes a full JID back.
pub struct Unbind {
    table: Table,
    due: Vec<Command>,
}

impl Unbind {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Unbind { table: Table::new(), due: Vec::new() })
    }
}

impl Operation for Unbind {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn ready(&mut self) {
        let turn: Vec<u64> = self.table.turn().collect();
        turn.iter().for_each(|n| self.table.apply(bind(*n)));
        self.due.extend(turn.into_iter().map(unbind));
    }

    fn go(&mut self) {
        self.table.apply_all(&mut self.due);
    }
}

//! The route table: who is here and who is where, as a plain struct with a total `apply`.
//!
//! A row is visible only while its node is here under the row's incarnation, so losing a node is one small
//! command that hides all of its sessions everywhere at the same index; hidden rows are swept later, by each
//! node for itself, since nobody can see the difference.

use std::collections::{BTreeMap, BTreeSet};

use jid::{BareJid, FullJid, ResourcePart};
use serde::{Deserialize, Serialize};

use crate::{
    accounts::{Accounts, bare_of},
    role::{Incarnation, MemberId, NodeId, Roles, Sid},
    tally::Tally,
    trust::{TokenFault, TokenRow, Trust},
};

/// Whether a node is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// It serves.
    Up,
    /// It serves what it has and takes nothing new.
    Draining,
    /// Its lease ran out; its rows are hidden.
    Gone,
}

/// A node as Raft agreed on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its id.
    pub node: NodeId,
    /// How often it has come up.
    pub incarnation: Incarnation,
    /// Its name in the config, for people.
    pub name: String,
    /// `host:port` of its cluster listener; empty for a node that has none.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Whether it is here.
    pub state: NodeState,
    /// Its part in the Raft groups, for a backend.
    pub member: Option<MemberId>,
    /// What its data directory calls itself, so that a restarted node is known again.
    pub key: u128,
    /// Drawn at the start that led to this incarnation, so that a repeated `NodeUp` changes nothing.
    pub start: u128,
}

/// A session in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its full JID.
    pub jid: FullJid,
    /// The node that has it.
    pub node: NodeId,
    /// The incarnation of that node when it was bound.
    pub incarnation: Incarnation,
    /// The life of the session.
    pub sid: Sid,
    /// Its presence priority; `None` while it is not available.
    pub priority: Option<i8>,
    /// Without a connection, waiting to be resumed (XEP-0198).
    pub detached: bool,
    /// It has its priority for what is sent to it, and nobody may learn that it is there (XEP-0186). Written behind the
    /// rows, and not with them: earlier versions read them.
    #[serde(skip)]
    pub invisible: bool,
}

impl Row {
    /// The priority that others may know of; `None`: for them it is not available.
    pub fn shown(&self) -> Option<i8> {
        self.priority.filter(|_| !self.invisible)
    }

    /// The resource of the session.
    pub fn resource(&self) -> &str {
        self.jid.resource().as_str()
    }
}

/// What becomes of the older session when a full JID is bound twice (RFC 6120, 7.7.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// The older session is closed.
    #[default]
    Replace,
    /// The newer one is refused.
    Refuse,
    /// The newer one gets another resource.
    Rename,
}

/// A living session that a node brings back after it lost its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Living {
    /// Its full JID.
    pub jid: FullJid,
    /// Its life.
    pub sid: Sid,
    /// Its priority.
    pub priority: Option<i8>,
    /// Without a connection.
    pub detached: bool,
}

/// Where clients reach a frontend: `host:port` each, empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors {
    /// For streams that begin in the clear.
    pub starttls: String,
    /// For streams that begin with TLS.
    pub direct_tls: String,
}

/// What the table is told, in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Gives a full JID to a session.
    Bind { jid: FullJid, node: NodeId, incarnation: Incarnation, sid: Sid, policy: ConflictPolicy },
    /// Takes it back, if the session still has it.
    Unbind { jid: FullJid, sid: Sid },
    /// Changes its priority, if the session still has it.
    SetPriority { jid: FullJid, sid: Sid, priority: Option<i8> },
    /// The session lost its connection and waits to be resumed.
    Detach { jid: FullJid, sid: Sid },
    /// The session goes on, maybe at another node and under a new life.
    Attach { jid: FullJid, sid: Sid, node: NodeId, incarnation: Incarnation, new_sid: Sid },
    /// A node comes up: admitted if its key is new, under a new incarnation if its start is new.
    NodeUp { key: u128, start: u128, name: String, address: String, roles: Roles, member: Option<MemberId> },
    /// A node takes nothing new from now on.
    NodeDrain { node: NodeId, incarnation: Incarnation },
    /// A node is gone, if that incarnation is still the current one.
    ExpireNode { node: NodeId, incarnation: Incarnation },
    /// A node is forgotten, if it is gone.
    Forget { node: NodeId },
    /// A node brings back its living sessions; each is bound if its full JID is free.
    Resync { node: NodeId, incarnation: Incarnation, living: Vec<Living> },
    /// Takes a full JID from whoever has it.
    Kick { jid: FullJid },
    // What stands here was written by version 1 in this order; new commands come behind, and a version that does
    // not know one answers `Unreadable`.
    /// A join token was made; the table keeps its hash.
    AddToken { token: TokenRow },
    /// A join token is taken back.
    RevokeToken { id: u64, now: u64 },
    /// A node with this public key (by its hash) comes in by a token, and is to call itself by `key`.
    SpendToken { id: u64, by: [u8; 32], roles: Roles, key: u128, now: u64 },
    /// A node leaves for good, here or gone; its certificates run out at `until`.
    Remove { node: NodeId, until: u64, now: u64 },
    /// A draining node takes what is new again.
    NodeUndrain { node: NodeId, incarnation: Incarnation },
    /// A node tells where clients reach it.
    NodeDoors { node: NodeId, incarnation: Incarnation, doors: Doors },
    /// A backend that lives is to be removed as soon as the others can agree without it.
    NodeLeave { node: NodeId },
    /// Changes the priority of a session, if it still has its full JID, and shows it to nobody from now on, until its
    /// priority is set as that of any other.
    Hide { jid: FullJid, sid: Sid, priority: Option<i8> },
}

/// What the table answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The session has this full JID.
    Bound { jid: FullJid },
    /// The full JID is taken.
    Conflict,
    /// It is so.
    Done,
    /// Nothing to do: the session or node named is no longer the current one.
    Stale,
    /// The node is up.
    Up { node: NodeId, incarnation: Incarnation },
    /// Two nodes asked to be admitted by one entry; an entry names one node only.
    TryAgain,
    /// These sessions were not brought back: their full JIDs are taken.
    Resynced { refused: Vec<Sid> },
    /// The command could not be read: a newer version wrote it.
    Unreadable,
    /// The node may come in, and calls itself by this key from now on.
    Admitted { key: u128 },
    /// The token lets nobody in.
    Refused(TokenFault),
    /// There are as many tokens as there may be.
    TooMany,
    /// The node was removed, and does not come up again.
    Removed,
}

/// Why a session has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Another session was bound to its full JID.
    Conflict,
    /// An operator ended it.
    Kicked,
}

/// What a command changed, for those who must act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A session lost its full JID.
    Displaced { node: NodeId, incarnation: Incarnation, jid: FullJid, sid: Sid, loss: Loss },
    /// A node's incarnation ended; its rows are hidden and wait to be swept.
    NodeGone { node: NodeId, incarnation: Incarnation },
    /// A node came up.
    NodeUp { node: NodeId, incarnation: Incarnation },
    /// A node drains.
    NodeDraining { node: NodeId },
    /// A node was removed for good; this is what it called itself.
    NodeRemoved { key: u128 },
}

/// The table; copies share their rows until one of them changes.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    pub(crate) nodes: BTreeMap<NodeId, NodeRow>,
    pub(crate) users: Accounts,
    pub(crate) index: u64,
    pub(crate) trust: Trust,
    pub(crate) doors: BTreeMap<NodeId, Doors>,
    pub(crate) leaving: BTreeSet<NodeId>,
    /// Follows from the rest.
    pub(crate) tally: Tally,
}

/// Version of the commands in the log; the first byte of each.
const COMMAND_VERSION: u8 = 1;
impl Command {
    /// The bytes that go into the log.
    pub fn encode(&self) -> Vec<u8> {
        encode(COMMAND_VERSION, self)
    }

    /// Reads what [`Command::encode`] wrote; `None` for another version or broken bytes.
    pub fn decode(bytes: &[u8]) -> Option<Command> {
        decode(COMMAND_VERSION, bytes)
    }

    /// Whether encoded bytes concern a single session, without reading them: then they change a row or two.
    pub(crate) fn concerns_one_session(bytes: &[u8]) -> bool {
        // Bind, Unbind, SetPriority, Detach, Attach; Hide.
        matches!(bytes, [COMMAND_VERSION, 0..=4 | 18, ..])
    }
}

impl Outcome {
    /// The bytes that travel back to who proposed.
    pub fn encode(&self) -> Vec<u8> {
        encode(COMMAND_VERSION, self)
    }

    /// Reads what [`Outcome::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Outcome> {
        decode(COMMAND_VERSION, bytes)
    }
}

fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    // Writing these types to memory cannot fail: they hold no map without a length and no foreign type.
    postcard::to_extend(value, vec![version]).expect("a route command can be written to memory")
}

fn decode<T: for<'a> Deserialize<'a>>(version: u8, bytes: &[u8]) -> Option<T> {
    let (first, rest) = bytes.split_first()?;
    if *first != version {
        return None;
    }
    postcard::from_bytes(rest).ok()
}

impl Routes {
    /// An empty table.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// The index of the newest entry applied.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many accounts have a row, visible or not.
    pub(crate) fn accounts(&self) -> usize {
        self.users.len()
    }

    /// Adds up the table as it is.
    pub(crate) fn count(&mut self) {
        self.tally = Tally::default();
        for row in self.users.each().filter(|row| visible_in(&self.nodes, row)) {
            self.tally.add(row);
        }
        self.count_rest();
    }

    /// Adds up what is beside the sessions; nothing for an empty table, which nobody has counted yet.
    fn count_rest(&mut self) {
        let Routes { nodes, doors, trust, leaving, .. } = self;
        let is_empty = nodes.is_empty() && doors.is_empty() && trust.is_empty() && leaving.is_empty();
        self.tally.beside((!is_empty).then_some(&(nodes, doors, trust, leaving)));
    }

    /// A digest of all that is visible: equal at the same index on every node, however the table came there.
    pub fn digest(&self) -> u128 {
        self.tally.digest()
    }

    /// How many sessions are visible.
    pub fn sessions(&self) -> usize {
        self.tally.sessions()
    }

    /// How many sessions each node has that has some.
    pub fn sessions_by_node(&self) -> impl Iterator<Item = (NodeId, usize)> {
        self.tally.by_node()
    }

    /// Tokens and removed nodes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The node whose data directory calls itself so.
    pub fn node_of_key(&self, key: u128) -> Option<&NodeRow> {
        self.nodes.values().find(|row| row.key == key)
    }

    /// The node that is this member of the Raft groups.
    pub fn node_of_member(&self, member: MemberId) -> Option<&NodeRow> {
        self.nodes.values().find(|row| row.member == Some(member))
    }

    /// Every node that was not forgotten, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Option<&NodeRow> {
        self.nodes.get(&node)
    }

    /// Where clients reach a node, if it told so in its present life.
    pub fn doors(&self, node: NodeId) -> Option<&Doors> {
        self.doors.get(&node)
    }

    /// Backends that are to be removed as soon as the others can agree without them.
    pub fn leaving(&self) -> impl Iterator<Item = &NodeRow> {
        self.leaving.iter().filter_map(|node| self.nodes.get(node))
    }

    /// The visible sessions of an account.
    pub fn users<'a>(&'a self, bare: &BareJid) -> impl Iterator<Item = &'a Row> + use<'a> {
        self.users.rows(bare.as_str()).iter().filter(|row| self.is_visible(row))
    }

    /// The visible session that has a full JID.
    pub fn full(&self, jid: &FullJid) -> Option<&Row> {
        self.users.rows(bare_of(jid)).iter().find(|row| row.jid == *jid && self.is_visible(row))
    }

    /// Every visible session.
    pub fn each(&self) -> impl Iterator<Item = &Row> {
        self.users.each().filter(|row| self.is_visible(row))
    }

    /// All rows of one life of a node, visible or hidden.
    pub fn rows_of(&self, node: NodeId, incarnation: Incarnation) -> Vec<Row> {
        let mine = |row: &&Row| row.node == node && row.incarnation == incarnation;
        self.users.each().filter(mine).cloned().collect()
    }

    /// Removes one hidden row for good; the sweep after a node is gone.
    pub fn sweep(&mut self, row: &Row) {
        if !self.is_visible(row) {
            self.remove(&row.jid, |r| r.sid == row.sid && r.incarnation == row.incarnation);
        }
    }

    /// Whether the node of a row is here under the row's incarnation.
    pub fn is_visible(&self, row: &Row) -> bool {
        visible_in(&self.nodes, row)
    }

    /// Notes that an entry was applied, whether or not it carried commands.
    pub fn advance(&mut self, index: u64) {
        self.index = self.index.max(index);
    }

    /// Applies a command of the entry at `index`; total and pure.
    pub fn apply(&mut self, index: u64, command: Command, effects: &mut Vec<Effect>) -> Outcome {
        self.advance(index);
        let about_sessions = matches!(
            command,
            Command::Bind { .. }
                | Command::Unbind { .. }
                | Command::SetPriority { .. }
                | Command::Hide { .. }
                | Command::Detach { .. }
                | Command::Attach { .. }
                | Command::Resync { .. }
                | Command::Kick { .. }
        );
        let outcome = self.changed(index, command, effects);
        if !about_sessions {
            self.count_rest();
        }
        outcome
    }

    fn changed(&mut self, index: u64, command: Command, effects: &mut Vec<Effect>) -> Outcome {
        match command {
            Command::Bind { jid, node, incarnation, sid, policy } => {
                let row =
                    Row { jid, node, incarnation, sid, priority: None, detached: false, invisible: false };
                self.bind(row, policy, effects)
            }
            Command::Unbind { jid, sid } => match self.remove(&jid, |row| row.sid == sid) {
                Some(_) => Outcome::Done,
                None => Outcome::Stale,
            },
            Command::SetPriority { jid, sid, priority } => {
                self.change(&jid, sid, |row| (row.priority, row.invisible) = (priority, false))
            }
            Command::Hide { jid, sid, priority } => {
                self.change(&jid, sid, |row| (row.priority, row.invisible) = (priority, true))
            }
            Command::Detach { jid, sid } => self.change(&jid, sid, |row| row.detached = true),
            Command::Attach { jid, sid, node, incarnation, new_sid } => {
                self.attach(jid, sid, (node, incarnation), new_sid, effects)
            }
            Command::NodeUp { key, start, name, address, roles, member } => {
                let incarnation = Incarnation(0);
                let node = NodeId(index);
                let state = NodeState::Up;
                let row = NodeRow { node, incarnation, name, address, roles, state, member, key, start };
                self.node_up(row, effects)
            }
            Command::NodeDrain { node, incarnation } => self.node_drain(node, incarnation, effects),
            Command::ExpireNode { node, incarnation } => self.expire(node, incarnation, effects),
            Command::Forget { node } => self.forget(node),
            Command::Resync { node, incarnation, living } => self.resync(node, incarnation, living),
            Command::Kick { jid } => match self.remove(&jid, |_| true) {
                Some(row) if self.is_visible(&row) => {
                    effects.push(displaced(&row, Loss::Kicked));
                    Outcome::Done
                }
                _ => Outcome::Stale,
            },
            Command::AddToken { token } => {
                if self.trust.add(token) {
                    Outcome::Done
                } else {
                    Outcome::TooMany
                }
            }
            Command::RevokeToken { id, now } => {
                if self.trust.revoke(id, now) {
                    Outcome::Done
                } else {
                    Outcome::Stale
                }
            }
            Command::SpendToken { id, by, roles, key, now } => {
                match self.trust.spend(id, by, roles, key, now) {
                    Ok(key) => Outcome::Admitted { key },
                    Err(fault) => Outcome::Refused(fault),
                }
            }
            Command::Remove { node, until, now } => self.remove_node(node, until, now, effects),
            Command::NodeUndrain { node, incarnation } => self.node_undrain(node, incarnation),
            Command::NodeDoors { node, incarnation, doors } => self.node_doors(node, incarnation, doors),
            Command::NodeLeave { node } => {
                if !self.nodes.contains_key(&node) {
                    return Outcome::Stale;
                }
                self.leaving.insert(node);
                Outcome::Done
            }
        }
    }

    fn remove_node(&mut self, node: NodeId, until: u64, now: u64, effects: &mut Vec<Effect>) -> Outcome {
        let Some(row) = self.nodes.remove(&node) else { return Outcome::Stale };
        self.doors.remove(&node);
        self.leaving.remove(&node);
        self.tally.hide(node);
        if row.state != NodeState::Gone {
            effects.push(Effect::NodeGone { node, incarnation: row.incarnation });
        }
        self.trust.remove(row.key, row.member, until, now);
        effects.push(Effect::NodeRemoved { key: row.key });
        Outcome::Done
    }

    fn bind(&mut self, mut row: Row, policy: ConflictPolicy, effects: &mut Vec<Effect>) -> Outcome {
        if !self.is_visible(&row) {
            return Outcome::Stale;
        }
        if let Some(older) = self.full(&row.jid).cloned() {
            if older.sid == row.sid {
                return Outcome::Bound { jid: older.jid };
            }
            match policy {
                ConflictPolicy::Replace => effects.push(displaced(&older, Loss::Conflict)),
                ConflictPolicy::Refuse => return Outcome::Conflict,
                ConflictPolicy::Rename => {
                    let Some(jid) = renamed(&row.jid, row.sid) else { return Outcome::Conflict };
                    match self.full(&jid) {
                        Some(mine) if mine.sid == row.sid => return Outcome::Bound { jid },
                        Some(_) => return Outcome::Conflict,
                        None => row.jid = jid,
                    }
                }
            }
        }
        let jid = row.jid.clone();
        self.put(row);
        Outcome::Bound { jid }
    }

    fn attach(
        &mut self,
        jid: FullJid,
        sid: Sid,
        (node, incarnation): (NodeId, Incarnation),
        new_sid: Sid,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let Some(older) = self.full(&jid).cloned() else { return Outcome::Stale };
        let row = Row { jid: jid.clone(), node, incarnation, sid: new_sid, detached: false, ..older.clone() };
        if !self.is_visible(&row) || (older.sid != sid && older.sid != new_sid) {
            return Outcome::Stale;
        }
        if older.sid == sid && sid != new_sid {
            effects.push(displaced(&older, Loss::Conflict));
        }
        self.put(row);
        Outcome::Bound { jid }
    }

    fn node_up(&mut self, mut row: NodeRow, effects: &mut Vec<Effect>) -> Outcome {
        if self.trust.is_removed(row.key) || row.member.is_some_and(|m| self.trust.is_removed_member(m)) {
            return Outcome::Removed;
        }
        if let Some(known) = self.nodes.values().find(|known| known.key == row.key) {
            if known.start == row.start {
                return Outcome::Up { node: known.node, incarnation: known.incarnation };
            }
            if known.state != NodeState::Gone {
                effects.push(Effect::NodeGone { node: known.node, incarnation: known.incarnation });
            }
            row.node = known.node;
            row.incarnation = Incarnation(known.incarnation.0 + 1);
        } else if self.nodes.contains_key(&row.node) {
            return Outcome::TryAgain;
        } else {
            row.incarnation = Incarnation(1);
        }
        let (node, incarnation) = (row.node, row.incarnation);
        effects.push(Effect::NodeUp { node, incarnation });
        self.tally.hide(node);
        // They are not open yet in this life.
        self.doors.remove(&node);
        self.nodes.insert(node, row);
        Outcome::Up { node, incarnation }
    }

    fn node_drain(&mut self, node: NodeId, incarnation: Incarnation, effects: &mut Vec<Effect>) -> Outcome {
        match self.nodes.get_mut(&node) {
            Some(row) if row.incarnation == incarnation && row.state != NodeState::Gone => {
                if row.state == NodeState::Up {
                    row.state = NodeState::Draining;
                    effects.push(Effect::NodeDraining { node });
                }
                Outcome::Done
            }
            _ => Outcome::Stale,
        }
    }

    fn node_undrain(&mut self, node: NodeId, incarnation: Incarnation) -> Outcome {
        match self.nodes.get_mut(&node) {
            Some(row) if row.incarnation == incarnation && row.state != NodeState::Gone => {
                row.state = NodeState::Up;
                Outcome::Done
            }
            _ => Outcome::Stale,
        }
    }

    fn node_doors(&mut self, node: NodeId, incarnation: Incarnation, doors: Doors) -> Outcome {
        match self.nodes.get(&node) {
            Some(row) if row.incarnation == incarnation && row.state != NodeState::Gone => {
                self.doors.insert(node, doors);
                Outcome::Done
            }
            _ => Outcome::Stale,
        }
    }

    fn expire(&mut self, node: NodeId, incarnation: Incarnation, effects: &mut Vec<Effect>) -> Outcome {
        match self.nodes.get_mut(&node) {
            Some(row) if row.incarnation == incarnation && row.state != NodeState::Gone => {
                row.state = NodeState::Gone;
                self.doors.remove(&node);
                self.tally.hide(node);
                effects.push(Effect::NodeGone { node, incarnation });
                Outcome::Done
            }
            _ => Outcome::Stale,
        }
    }

    fn forget(&mut self, node: NodeId) -> Outcome {
        match self.nodes.get(&node) {
            Some(row) if row.state == NodeState::Gone => {
                self.nodes.remove(&node);
                self.doors.remove(&node);
                self.leaving.remove(&node);
                Outcome::Done
            }
            _ => Outcome::Stale,
        }
    }

    fn resync(&mut self, node: NodeId, incarnation: Incarnation, living: Vec<Living>) -> Outcome {
        let mut refused = Vec::new();
        for Living { jid, sid, priority, detached } in living {
            let row = Row { jid, node, incarnation, sid, priority, detached, invisible: false };
            let taken = self.full(&row.jid).is_some_and(|older| older.sid != sid);
            if taken || !self.is_visible(&row) {
                refused.push(sid);
            } else {
                self.put(row);
            }
        }
        Outcome::Resynced { refused }
    }

    fn change(&mut self, jid: &FullJid, sid: Sid, change: impl FnOnce(&mut Row)) -> Outcome {
        let Routes { nodes, users, tally, .. } = self;
        let mine = |row: &Row| row.sid == sid && visible_in(nodes, row);
        let changed = users.change(jid, mine, |row| {
            tally.take(row);
            change(row);
            tally.add(row);
        });
        if changed { Outcome::Done } else { Outcome::Stale }
    }

    /// Puts a row in the place of whatever has its full JID.
    fn put(&mut self, row: Row) {
        self.remove(&row.jid, |_| true);
        if self.is_visible(&row) {
            self.tally.add(&row);
        }
        self.users.push(row);
    }

    fn remove(&mut self, jid: &FullJid, which: impl Fn(&Row) -> bool) -> Option<Row> {
        let row = self.users.remove(jid, which)?;
        if self.is_visible(&row) {
            self.tally.take(&row);
        }
        Some(row)
    }
}

fn visible_in(nodes: &BTreeMap<NodeId, NodeRow>, row: &Row) -> bool {
    let here = |node: &NodeRow| node.incarnation == row.incarnation && node.state != NodeState::Gone;
    nodes.get(&row.node).is_some_and(here)
}

fn displaced(row: &Row, loss: Loss) -> Effect {
    let Row { node, incarnation, sid, .. } = *row;
    Effect::Displaced { node, incarnation, jid: row.jid.clone(), sid, loss }
}

/// The other resource of the rename policy: a part of the `sid` makes it the same on every replica.
fn renamed(jid: &FullJid, sid: Sid) -> Option<FullJid> {
    let mut stem = jid.resource().as_str();
    // RFC 7622, 3.4: a resource has 1023 bytes at most.
    while stem.len() > 1000 {
        let end = (0..=1000).rev().find(|end| stem.is_char_boundary(*end)).unwrap_or(0);
        stem = &stem[..end];
    }
    let resource = format!("{stem}-{:08x}", sid.0 as u32);
    let resource = ResourcePart::new(&resource).ok()?;
    Some(jid.to_bare().with_resource(&resource))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn jid(jid: &str) -> FullJid {
        FullJid::new(jid).unwrap()
    }

    fn up(key: u128, start: u128) -> Command {
        let roles = Roles { frontend: true, backend: true };
        Command::NodeUp { key, start, name: "n".into(), address: "h:1".into(), roles, member: None }
    }

    fn bind(at: &str, node: u64, incarnation: u64, sid: u128, policy: ConflictPolicy) -> Command {
        let (node, incarnation) = (NodeId(node), Incarnation(incarnation));
        Command::Bind { jid: jid(at), node, incarnation, sid: Sid(sid), policy }
    }

    use ConflictPolicy::{Refuse, Rename, Replace};

    /// Nodes 1 and 2, and a session `a@x/r` of life 10 at node 1.
    fn table() -> Routes {
        let mut routes = Routes::new();
        let mut effects = Vec::new();
        assert_eq!(routes.apply(1, up(1, 1), &mut effects), up_as(1, 1));
        assert_eq!(routes.apply(2, up(2, 1), &mut effects), up_as(2, 1));
        assert_eq!(routes.apply(3, bind("a@x/r", 1, 1, 10, Replace), &mut effects), bound("a@x/r"));
        routes
    }

    fn up_as(node: u64, incarnation: u64) -> Outcome {
        Outcome::Up { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    fn bound(at: &str) -> Outcome {
        Outcome::Bound { jid: jid(at) }
    }

    fn displaced_from(node: u64, at: &str, sid: u128, loss: Loss) -> Effect {
        let (node, incarnation) = (NodeId(node), Incarnation(1));
        Effect::Displaced { node, incarnation, jid: jid(at), sid: Sid(sid), loss }
    }

    fn sessions(routes: &Routes) -> Vec<(String, u128, Option<i8>)> {
        let mut rows: Vec<_> = routes.each().map(|r| (r.jid.to_string(), r.sid.0, r.priority)).collect();
        rows.sort();
        rows
    }

    #[test]
    fn commands_about_one_session_are_told_by_their_first_bytes() {
        let jid = FullJid::new("a@h/r").unwrap();
        let (node, incarnation, sid) = (NodeId(300), Incarnation(300), Sid(300));
        let policy = ConflictPolicy::Replace;
        let of_one = [
            Command::Bind { jid: jid.clone(), node, incarnation, sid, policy },
            Command::Unbind { jid: jid.clone(), sid },
            Command::SetPriority { jid: jid.clone(), sid, priority: Some(1) },
            Command::Hide { jid: jid.clone(), sid, priority: Some(1) },
            Command::Detach { jid: jid.clone(), sid },
            Command::Attach { jid: jid.clone(), sid, node, incarnation, new_sid: sid },
        ];
        assert!(of_one.iter().all(|command| Command::concerns_one_session(&command.encode())));
        let of_many = [
            Command::NodeDrain { node, incarnation },
            Command::ExpireNode { node, incarnation },
            Command::Forget { node },
            Command::Resync { node, incarnation, living: vec![] },
            Command::Kick { jid },
            Command::NodeUndrain { node, incarnation },
            Command::NodeDoors { node, incarnation, doors: Doors::default() },
            Command::NodeLeave { node },
        ];
        assert!(!of_many.iter().any(|command| Command::concerns_one_session(&command.encode())));
        assert!(!Command::concerns_one_session(&[]));
    }

    #[test]
    fn each_command_changes_what_it_says_and_nothing_else() {
        let a = || jid("a@x/r");
        let (one, two, first) = (NodeId(1), NodeId(2), Incarnation(1));
        let gone = Effect::NodeGone { node: one, incarnation: first };
        let priority = |sid, priority| Command::SetPriority { jid: a(), sid: Sid(sid), priority };
        let unbind = |sid| Command::Unbind { jid: a(), sid: Sid(sid) };
        let attach = |sid, node, incarnation, new_sid| Command::Attach {
            jid: a(),
            sid: Sid(sid),
            node,
            incarnation: Incarnation(incarnation),
            new_sid: Sid(new_sid),
        };
        let expire = |incarnation| Command::ExpireNode { node: one, incarnation: Incarnation(incarnation) };
        let living = |sid| Living { jid: a(), sid: Sid(sid), priority: Some(1), detached: false };
        let resync = |living| Command::Resync { node: two, incarnation: first, living };
        const RENAMED: &str = "a@x/r-0000000b";
        // command, outcome, effects, sessions afterwards
        type Sessions<'a> = &'a [(&'a str, u128, Option<i8>)];
        let same: Sessions = &[("a@x/r", 10, None)];
        let rows: Vec<(Command, Outcome, Vec<Effect>, Sessions)> = vec![
            (bind("a@x/r", 1, 1, 10, Replace), bound("a@x/r"), vec![], same),
            (
                bind("a@x/r", 2, 1, 11, Replace),
                bound("a@x/r"),
                vec![displaced_from(1, "a@x/r", 10, Loss::Conflict)],
                &[("a@x/r", 11, None)],
            ),
            (bind("a@x/r", 2, 1, 11, Refuse), Outcome::Conflict, vec![], same),
            (
                bind("a@x/r", 2, 1, 11, Rename),
                bound(RENAMED),
                vec![],
                &[("a@x/r", 10, None), (RENAMED, 11, None)],
            ),
            (
                bind("a@x/s", 2, 1, 11, Refuse),
                bound("a@x/s"),
                vec![],
                &[("a@x/r", 10, None), ("a@x/s", 11, None)],
            ),
            (bind("b@x/r", 1, 0, 12, Replace), Outcome::Stale, vec![], same),
            (bind("b@x/r", 9, 1, 12, Replace), Outcome::Stale, vec![], same),
            (unbind(10), Outcome::Done, vec![], &[]),
            // A late teardown must not remove a successor.
            (unbind(9), Outcome::Stale, vec![], same),
            (priority(10, Some(-3)), Outcome::Done, vec![], &[("a@x/r", 10, Some(-3))]),
            (priority(9, Some(5)), Outcome::Stale, vec![], same),
            (Command::Detach { jid: a(), sid: Sid(10) }, Outcome::Done, vec![], same),
            (Command::Detach { jid: a(), sid: Sid(9) }, Outcome::Stale, vec![], same),
            (
                attach(10, two, 1, 11),
                bound("a@x/r"),
                vec![displaced_from(1, "a@x/r", 10, Loss::Conflict)],
                &[("a@x/r", 11, None)],
            ),
            (attach(9, two, 1, 11), Outcome::Stale, vec![], same),
            (attach(10, two, 7, 11), Outcome::Stale, vec![], same),
            (expire(1), Outcome::Done, vec![gone], &[]),
            (expire(2), Outcome::Stale, vec![], same),
            (Command::Forget { node: one }, Outcome::Stale, vec![], same),
            (
                Command::Kick { jid: a() },
                Outcome::Done,
                vec![displaced_from(1, "a@x/r", 10, Loss::Kicked)],
                &[],
            ),
            (Command::Kick { jid: jid("a@x/s") }, Outcome::Stale, vec![], same),
            (resync(vec![living(11)]), Outcome::Resynced { refused: vec![Sid(11)] }, vec![], same),
            (
                resync(vec![living(10)]),
                Outcome::Resynced { refused: vec![] },
                vec![],
                &[("a@x/r", 10, Some(1))],
            ),
        ];
        for (command, outcome, effects, after) in rows {
            let mut routes = table();
            let mut found = Vec::new();
            assert_eq!(routes.apply(4, command.clone(), &mut found), outcome, "{command:?}");
            assert_eq!(found, effects, "{command:?}");
            let after: Vec<_> = after.iter().map(|(jid, sid, p)| (jid.to_string(), *sid, *p)).collect();
            assert_eq!(sessions(&routes), after, "{command:?}");
            assert_eq!(routes.index(), 4);
            // A retried command leaves the same table.
            let once = sessions(&routes);
            routes.apply(5, command.clone(), &mut Vec::new());
            assert_eq!(sessions(&routes), once, "again: {command:?}");
        }
    }

    #[test]
    fn a_node_id_is_the_index_that_admitted_it_and_an_entry_admits_one_node() {
        let mut routes = Routes::new();
        let mut effects = Vec::new();
        assert_eq!(routes.apply(7, up(1, 1), &mut effects), up_as(7, 1));
        assert_eq!(routes.apply(7, up(2, 1), &mut effects), Outcome::TryAgain);
        assert_eq!(routes.apply(8, up(2, 1), &mut effects), up_as(8, 1));
        // The same start again, and then a new one.
        assert_eq!(routes.apply(9, up(1, 1), &mut effects), up_as(7, 1));
        assert_eq!(routes.apply(10, up(1, 2), &mut effects), up_as(7, 2));
    }

    #[test]
    fn a_restart_hides_the_rows_of_the_former_life_at_once() {
        let mut routes = table();
        let mut effects = Vec::new();
        routes.apply(4, up(1, 2), &mut effects);
        let (node, old, new) = (NodeId(1), Incarnation(1), Incarnation(2));
        assert_eq!(
            effects,
            [Effect::NodeGone { node, incarnation: old }, Effect::NodeUp { node, incarnation: new }]
        );
        assert!(sessions(&routes).is_empty());
        let hidden = routes.rows_of(node, old);
        assert_eq!(hidden.len(), 1);
        // A late teardown or priority of the former life finds nothing; the full JID is free at once.
        let late = Command::SetPriority { jid: jid("a@x/r"), sid: Sid(10), priority: Some(1) };
        assert_eq!(routes.apply(5, late, &mut effects), Outcome::Stale);
        routes.apply(6, bind("a@x/r", 2, 1, 11, Refuse), &mut effects);
        // The sweep that comes later does not touch the successor.
        hidden.iter().for_each(|row| routes.sweep(row));
        assert_eq!(sessions(&routes), [("a@x/r".to_string(), 11, None)]);
    }

    #[test]
    fn a_snapshot_keeps_all_that_is_visible() {
        let mut routes = table();
        routes.apply(4, bind("b@x/r", 2, 1, 20, Replace), &mut Vec::new());
        let expire = Command::ExpireNode { node: NodeId(1), incarnation: Incarnation(1) };
        routes.apply(5, expire, &mut Vec::new());
        let copy = Routes::decode(&routes.encode()).unwrap();
        assert_eq!(sessions(&copy), sessions(&routes));
        assert_eq!(copy.index(), 5);
        assert_eq!(copy.nodes().collect::<Vec<_>>(), routes.nodes().collect::<Vec<_>>());
        assert!(copy.rows_of(NodeId(1), Incarnation(1)).is_empty());
        assert!(Routes::decode(b"").is_none());
        assert!(Routes::decode(&[9, 1, 2]).is_none());
    }

    #[test]
    fn commands_read_back_and_damage_is_no_panic() {
        let commands =
            [up(1, 2), bind("a@x/r", 1, 1, u128::MAX, Rename), Command::Kick { jid: jid("a@x/r") }];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Some(command));
            for cut in 0..bytes.len() {
                assert_eq!(Command::decode(&bytes[..cut]), None);
            }
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x55;
                // Whatever it reads as, applying it must not panic.
                if let Some(command) = Command::decode(&damaged) {
                    table().apply(4, command, &mut Vec::new());
                }
            }
        }
    }

    /// The table as its first version read it: without tokens and removed nodes.
    #[derive(Deserialize)]
    struct RoutesV1 {
        nodes: BTreeMap<NodeId, NodeRow>,
        users: HashMap<Box<str>, Vec<Row>>,
        index: u64,
    }

    /// The first bytes of each command of version 1, as logs of that version hold them.
    #[test]
    fn what_version_1_wrote_is_still_read() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
        };
        let (node, incarnation) = (NodeId(2), Incarnation(3));
        let written = [
            ("010005614078 2f72020304 00", bind("a@x/r", 2, 3, 4, Replace)),
            ("01010561407 82f7204", Command::Unbind { jid: jid("a@x/r"), sid: Sid(4) }),
            ("0105050601 6e 03683a31 01 01 00", up(5, 6)),
            ("01060203", Command::NodeDrain { node, incarnation }),
            ("01070203", Command::ExpireNode { node, incarnation }),
            ("010802", Command::Forget { node }),
            ("0109020300", Command::Resync { node, incarnation, living: vec![] }),
            ("010a056140782f72", Command::Kick { jid: jid("a@x/r") }),
        ];
        for (bytes, command) in written {
            assert_eq!(Command::decode(&hex(&bytes.replace(' ', ""))), Some(command), "{bytes}");
        }
        // A table without tokens is written as it was, and read by either version.
        let routes = table();
        let bytes = routes.encode();
        let RoutesV1 { nodes, users, index } = decode(1, &bytes).expect("a table as version 1 reads it");
        assert_eq!((nodes.len(), index), (2, 3));
        assert_eq!(
            users.into_iter().collect::<Vec<_>>(),
            [("a@x".into(), routes.users.rows("a@x").to_vec())]
        );
        assert_eq!(sessions(&Routes::decode(&bytes).unwrap()), sessions(&routes));
    }

    #[test]
    fn a_removed_node_is_gone_at_once_and_never_comes_up_again() {
        let mut routes = table();
        let mut effects = Vec::new();
        let (node, incarnation) = (NodeId(1), Incarnation(1));
        let remove = Command::Remove { node, until: 100, now: 10 };
        assert_eq!(routes.apply(4, remove.clone(), &mut effects), Outcome::Done);
        assert_eq!(effects, [Effect::NodeGone { node, incarnation }, Effect::NodeRemoved { key: 1 }]);
        assert!(sessions(&routes).is_empty() && routes.node(node).is_none());
        assert_eq!(routes.apply(5, remove, &mut effects), Outcome::Stale);
        assert_eq!(routes.apply(6, up(1, 2), &mut effects), Outcome::Removed);
        // The snapshot remembers it, and the tokens.
        let token = TokenRow {
            id: 9,
            hash: [1; 32],
            roles: Roles::default(),
            made: 5,
            expires: 50,
            state: crate::trust::TokenState::Open,
        };
        let add = Command::AddToken { token: token.clone() };
        assert_eq!(routes.apply(7, add.clone(), &mut effects), Outcome::Done);
        let mut copy = Routes::decode(&routes.encode()).unwrap();
        assert_eq!(copy.trust(), routes.trust());
        assert_eq!(copy.apply(8, up(1, 3), &mut effects), Outcome::Removed);
        let spend =
            |by| Command::SpendToken { id: 9, by: [by; 32], roles: Roles::default(), key: 77, now: 6 };
        assert_eq!(copy.apply(9, spend(1), &mut effects), Outcome::Admitted { key: 77 });
        assert_eq!(copy.apply(10, spend(2), &mut effects), Outcome::Refused(TokenFault::Spent));
        let revoke = Command::RevokeToken { id: 9, now: 8 };
        assert_eq!(copy.apply(11, revoke.clone(), &mut effects), Outcome::Stale);
        for command in [add, spend(1), revoke, Command::Remove { node, until: 1, now: 2 }] {
            assert_eq!(Command::decode(&command.encode()), Some(command.clone()));
            assert!(!Command::concerns_one_session(&command.encode()));
        }
    }

    #[test]
    fn a_session_that_hides_is_hidden_wherever_it_goes_until_its_priority_is_set() {
        let mut routes = table();
        let mut effects = Vec::new();
        let hide = |sid| Command::Hide { jid: jid("a@x/r"), sid: Sid(sid), priority: Some(3) };
        let seen = |routes: &Routes| {
            let row = routes.full(&jid("a@x/r")).unwrap();
            (row.priority, row.shown())
        };
        assert_eq!(routes.apply(4, hide(9), &mut effects), Outcome::Stale);
        assert_eq!(seen(&routes), (None, None));
        let digest = routes.digest();
        assert_eq!(routes.apply(5, hide(10), &mut effects), Outcome::Done);
        assert_eq!(seen(&routes), (Some(3), None));
        assert_ne!(routes.digest(), digest);
        // In a snapshot, and at another node.
        let mut copy = Routes::decode(&routes.encode()).unwrap();
        assert_eq!((seen(&copy), copy.digest()), (seen(&routes), routes.digest()));
        let (node, incarnation) = (NodeId(2), Incarnation(1));
        let attach = Command::Attach { jid: jid("a@x/r"), sid: Sid(10), node, incarnation, new_sid: Sid(11) };
        assert_eq!(copy.apply(6, attach, &mut effects), bound("a@x/r"));
        assert_eq!(seen(&copy), (Some(3), None));
        // What was written before is read by an earlier version up to there.
        assert!(routes.encode().starts_with(&{
            let mut shown = routes.clone();
            let priority = Command::SetPriority { jid: jid("a@x/r"), sid: Sid(10), priority: Some(3) };
            shown.apply(5, priority, &mut effects);
            shown.encode()
        }));
        let priority = Command::SetPriority { jid: jid("a@x/r"), sid: Sid(11), priority: Some(3) };
        assert_eq!(copy.apply(7, priority, &mut effects), Outcome::Done);
        assert_eq!(seen(&copy), (Some(3), Some(3)));
    }

    #[test]
    fn a_node_drains_and_takes_what_is_new_again() {
        let (node, incarnation, other) = (NodeId(1), Incarnation(1), Incarnation(2));
        let drain = Command::NodeDrain { node, incarnation };
        let undrain = Command::NodeUndrain { node, incarnation };
        let gone = Command::ExpireNode { node, incarnation };
        // what comes before, command, outcome, state afterwards
        let rows: [(Vec<&Command>, Command, Outcome, NodeState); 8] = [
            (vec![], drain.clone(), Outcome::Done, NodeState::Draining),
            (vec![&drain], drain.clone(), Outcome::Done, NodeState::Draining),
            (vec![&drain], undrain.clone(), Outcome::Done, NodeState::Up),
            (vec![], undrain.clone(), Outcome::Done, NodeState::Up),
            (vec![&drain], up(1, 2), up_as(1, 2), NodeState::Up),
            (vec![&gone], undrain.clone(), Outcome::Stale, NodeState::Gone),
            (vec![&drain, &gone], undrain.clone(), Outcome::Stale, NodeState::Gone),
            (
                vec![&drain],
                Command::NodeUndrain { node, incarnation: other },
                Outcome::Stale,
                NodeState::Draining,
            ),
        ];
        for (before, command, outcome, state) in rows {
            let mut routes = table();
            for (nth, command) in before.iter().enumerate() {
                routes.apply(4 + nth as u64, (*command).clone(), &mut Vec::new());
            }
            let visible = sessions(&routes).len();
            assert_eq!(routes.apply(9, command.clone(), &mut Vec::new()), outcome, "{before:?} {command:?}");
            assert_eq!(routes.node(node).unwrap().state, state, "{before:?} {command:?}");
            // A draining node serves what it has.
            let ended = matches!(command, Command::NodeUp { .. });
            assert_eq!(sessions(&routes).len(), if ended { 0 } else { visible }, "{before:?} {command:?}");
        }
    }

    #[test]
    fn doors_are_those_of_the_present_life_of_a_node() {
        let (node, incarnation) = (NodeId(1), Incarnation(1));
        let doors = Doors { starttls: "one.example:5222".into(), direct_tls: String::new() };
        let tell = |incarnation| Command::NodeDoors { node, incarnation, doors: doors.clone() };
        let mut routes = table();
        assert_eq!(routes.apply(4, tell(Incarnation(2)), &mut Vec::new()), Outcome::Stale);
        assert_eq!(routes.doors(node), None);
        assert_eq!(routes.apply(5, tell(incarnation), &mut Vec::new()), Outcome::Done);
        assert_eq!(routes.doors(node), Some(&doors));
        assert_eq!(Routes::decode(&routes.encode()).unwrap().doors(node), Some(&doors));
        let mut restarted = Routes::decode(&routes.encode()).unwrap();
        restarted.apply(6, up(1, 2), &mut Vec::new());
        assert_eq!(restarted.doors(node), None);
        routes.apply(6, Command::ExpireNode { node, incarnation }, &mut Vec::new());
        assert_eq!(routes.doors(node), None);
    }

    #[test]
    fn who_leaves_does_so_until_it_is_removed_or_forgotten() {
        let leaving = |routes: &Routes| routes.leaving().map(|row| row.node.0).collect::<Vec<_>>();
        let leave = |node| Command::NodeLeave { node: NodeId(node) };
        let mut routes = table();
        let before = routes.encode();
        assert_eq!(routes.apply(4, leave(9), &mut Vec::new()), Outcome::Stale);
        for index in 5..7 {
            assert_eq!(routes.apply(index, leave(1), &mut Vec::new()), Outcome::Done);
        }
        // A restart is no way out of it.
        routes.apply(7, up(1, 2), &mut Vec::new());
        assert_eq!(leaving(&routes), [1]);
        let mut read = Routes::decode(&routes.encode()).unwrap();
        assert_eq!(leaving(&read), [1]);
        assert!(leaving(&Routes::decode(&before).unwrap()).is_empty());
        let whole = read.encode();
        assert!(Routes::decode(&whole[..whole.len() - 1]).is_none());
        read.apply(8, Command::Remove { node: NodeId(1), until: 9, now: 1 }, &mut Vec::new());
        assert!(leaving(&read).is_empty() && leaving(&Routes::decode(&read.encode()).unwrap()).is_empty());
        let gone = Command::ExpireNode { node: NodeId(1), incarnation: Incarnation(2) };
        routes.apply(8, gone, &mut Vec::new());
        routes.apply(9, Command::Forget { node: NodeId(1) }, &mut Vec::new());
        assert!(leaving(&routes).is_empty());
    }

    #[test]
    fn a_snapshot_from_before_there_were_doors_is_read_and_one_with_doors_by_who_knows_none() {
        #[derive(Deserialize)]
        struct Before {
            nodes: BTreeMap<NodeId, NodeRow>,
            users: HashMap<Box<str>, Vec<Row>>,
            index: u64,
        }
        let mut routes = table();
        let doors = Doors { starttls: "one.example:5222".into(), direct_tls: "one.example:5223".into() };
        let command = Command::NodeDoors { node: NodeId(1), incarnation: Incarnation(1), doors };
        let mut without = routes.encode();
        assert_eq!(without.pop(), Some(0), "an empty map of doors ends it");
        assert_eq!(sessions(&Routes::decode(&without).unwrap()), sessions(&routes));
        routes.apply(4, command, &mut Vec::new());
        let before: Before = decode(1, &routes.encode()).unwrap();
        assert_eq!((before.nodes.len(), before.users.len(), before.index), (2, 1, 4));
        // Half of it is damage, not a table without doors.
        let whole = routes.encode();
        assert!(Routes::decode(&whole[..whole.len() - 1]).is_none());
    }

    #[test]
    fn commands_of_the_first_version_keep_their_places_in_the_log() {
        // As a log of before holds them: version, place of the variant, fields.
        let node = NodeId(1);
        let incarnation = Incarnation(1);
        for (bytes, command) in [
            (&[1, 6, 1, 1][..], Command::NodeDrain { node, incarnation }),
            (&[1, 7, 1, 1], Command::ExpireNode { node, incarnation }),
            (&[1, 8, 1], Command::Forget { node }),
            (&[1, 9, 1, 1, 0], Command::Resync { node, incarnation, living: vec![] }),
            (&[1, 10, 5, b'a', b'@', b'x', b'/', b'r'], Command::Kick { jid: jid("a@x/r") }),
            (&[1, 15, 1, 1], Command::NodeUndrain { node, incarnation }),
            (&[1, 16, 1, 1, 0, 0], Command::NodeDoors { node, incarnation, doors: Doors::default() }),
            (&[1, 17, 1], Command::NodeLeave { node }),
        ] {
            assert_eq!(Command::decode(bytes), Some(command.clone()), "{command:?}");
            assert_eq!(command.encode(), bytes);
        }
    }

    #[test]
    fn a_renamed_resource_stays_within_its_length() {
        let long = jid(&format!("a@x/{}", "\u{e4}".repeat(511)));
        let other = renamed(&long, Sid(7)).unwrap();
        assert!(other.resource().as_str().len() <= 1023);
        assert!(other.resource().as_str().ends_with("-00000007"));
    }
}

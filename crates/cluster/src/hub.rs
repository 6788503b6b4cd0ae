//! Applies agreed entries to this node's table, and tells who must hear of it: subscribers and followers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::{self, Read},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};

use crate::{
    changes::{Change, LostSession},
    error::ClusterError,
    links::Links,
    raft::machine::{Committed, Machine, Refusal, SnapshotWriter},
    role::{Incarnation, NodeId, Roles},
    routes::{Command, Effect, Loss, NodeRow, NodeState, Outcome, Routes, Row},
    table::TableView,
};

/// How many changes a subscriber may be behind.
const CHANGES: usize = 65_536;
/// Room for changes with which an entry never waits: far more than a quick one brings, and than a few tasks
/// announce beside it.
const ROOM: usize = 1024;
/// How many entries are kept for followers that come back: between these, as many as there are accounts in the
/// table. A snapshot of the table is shorter than more of them would be.
const RECENT: RangeInclusive<usize> = 1_000..=20_000;
/// How many bytes are kept for each of them.
const RECENT_BYTES: usize = 512;
/// How many digests of the table are kept: at 4,000 entries in a second, those of the last two.
const DIGESTS: usize = 8192;
/// How many hidden rows are swept under one lock.
const SLICE: usize = 1024;

/// The way from the log, or from a feed, into the table.
pub(crate) struct Hub {
    view: Arc<TableView>,
    links: Arc<Links>,
    me: Mutex<(NodeId, Incarnation)>,
    start: Mutex<u128>,
    /// The marks that this process has drawn, one for each of its lives, and those of other processes that came up
    /// as this node since it was admitted.
    starts: Mutex<(HashSet<u128>, HashSet<u128>)>,
    /// Old entries that are applied again after a start concern nobody.
    live: AtomicBool,
    subscribers: Mutex<Vec<mpsc::Sender<Change>>>,
    index: watch::Sender<u64>,
    /// The newest index that somebody here waits for.
    wanted: AtomicU64,
    recent: Mutex<Recent>,
    /// Digests of the table at the newest indexes.
    digests: Mutex<VecDeque<(u64, u128)>>,
    /// What this node's data directory calls itself.
    key: u128,
    /// Why this process is no part of the cluster any more.
    ended: watch::Sender<Option<Ended>>,
}

/// Why a process is no part of its cluster any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// An operator removed the node.
    Removed,
    /// Another process came up as this node.
    Superseded,
    /// The cluster was rebuilt from another node, and is in this epoch now.
    Recovered(u64),
}

impl From<Ended> for ClusterError {
    fn from(ended: Ended) -> ClusterError {
        match ended {
            Ended::Removed => ClusterError::Removed,
            Ended::Superseded => ClusterError::Superseded,
            Ended::Recovered(epoch) => ClusterError::Recovered { epoch },
        }
    }
}

#[derive(Default)]
struct Recent {
    entries: VecDeque<(u64, Vec<Bytes>)>,
    bytes: usize,
    /// The index before the oldest entry kept.
    base: u64,
}

impl Hub {
    pub(crate) fn new(view: Arc<TableView>, links: Arc<Links>, key: u128) -> Hub {
        Hub {
            key,
            starts: Mutex::default(),
            ended: watch::Sender::new(None),
            view,
            links,
            me: Mutex::default(),
            start: Mutex::default(),
            live: AtomicBool::new(false),
            subscribers: Mutex::default(),
            index: watch::Sender::new(0),
            wanted: AtomicU64::new(0),
            recent: Mutex::default(),
            digests: Mutex::default(),
        }
    }

    /// The node and incarnation under which this process was last admitted.
    pub(crate) fn me(&self) -> (NodeId, Incarnation) {
        *self.me.lock()
    }

    /// Draws the mark of a new life: the `NodeUp` that carries it says who this node is.
    pub(crate) fn begin_life(&self, start: u128) {
        self.starts.lock().0.insert(start);
        *self.start.lock() = start;
    }

    pub(crate) fn index(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    /// Waits until this process is no part of the cluster any more.
    pub(crate) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        loop {
            let now = *ended.borrow_and_update();
            if let Some(why) = now {
                return why;
            }
            // The sender lives as long as the hub.
            if ended.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Notes that this process is no part of the cluster any more; the first reason stays.
    fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| match ended {
            None => {
                *ended = Some(why);
                true
            }
            Some(_) => false,
        });
    }

    /// A node was removed: nobody who shows its certificate stays connected.
    pub(crate) fn note_removed(&self, key: u128) {
        self.links.cut(key);
        if key == self.key {
            self.end(Ended::Removed);
        }
    }

    /// The cluster was rebuilt from another node.
    pub(crate) fn note_recovered(&self, epoch: u64) {
        self.end(Ended::Recovered(epoch));
    }

    /// Notes that somebody waits for an index.
    pub(crate) fn want(&self, index: u64) {
        self.wanted.fetch_max(index, Ordering::Relaxed);
    }

    /// Whether somebody waits for an index that is not applied here yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > *self.index.borrow()
    }

    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Change> {
        let (changes, queue) = mpsc::channel(CHANGES);
        self.subscribers.lock().push(changes);
        queue
    }

    /// Tells subscribers; from a thread that may block, or where there is [`Hub::has_room`].
    fn publish(&self, change: &Change) {
        let subscribers = self.subscribers.lock().clone();
        for subscriber in subscribers {
            // One who went away is removed below.
            if let Err(TrySendError::Full(change)) = subscriber.try_send(change.clone()) {
                let _ = subscriber.blocking_send(change);
            }
        }
        self.subscribers.lock().retain(|subscriber| !subscriber.is_closed());
    }

    /// Whether no subscriber is so far behind that an entry or two could have to wait for it.
    fn has_room(&self) -> bool {
        self.subscribers.lock().iter().all(|subscriber| subscriber.capacity() >= ROOM)
    }

    /// Tells subscribers; from a task.
    pub(crate) async fn announce(&self, change: Change) {
        let subscribers = self.subscribers.lock().clone();
        for subscriber in subscribers {
            let _ = subscriber.send(change.clone()).await;
        }
    }

    /// Applies one entry; from a thread that may block. The answer has one outcome per payload.
    pub(crate) fn apply(&self, index: u64, payloads: &[Bytes]) -> Vec<Bytes> {
        let commands: Vec<Option<Command>> = payloads.iter().map(|p| Command::decode(p)).collect();
        let mut effects = Vec::new();
        let mut outcomes = Vec::with_capacity(commands.len());
        let (accounts, digest) = {
            let mut routes = self.view.routes.write();
            routes.advance(index);
            for command in commands {
                if matches!(command, Some(Command::Kick { .. })) {
                    self.view.note_kick();
                }
                let outcome = match command {
                    Some(command) => routes.apply(index, command, &mut effects),
                    None => Outcome::Unreadable,
                };
                outcomes.push(Bytes::from(outcome.encode()));
            }
            (routes.accounts(), routes.digest())
        };
        self.note_digest(index, digest);
        self.recent.lock().push(index, payloads, accounts);
        for effect in &effects {
            self.settle(effect);
        }
        self.index.send_replace(index);
        outcomes
    }

    /// Replaces the table, and tells what that changed.
    pub(crate) fn install(&self, new: Routes) {
        let index = new.index();
        let changes = {
            let mut routes = self.view.routes.write();
            let changes = differences(&routes, &new, self.me());
            // What led to it is not known.
            self.view.note_kick();
            *routes = new;
            changes
        };
        let removed: Vec<u128> = self.view.routes.read().trust().removed_keys().collect();
        removed.into_iter().for_each(|key| self.note_removed(key));
        *self.recent.lock() = Recent { base: index, ..Recent::default() };
        self.digests.lock().clear();
        self.note_digest(index, self.view.routes.read().digest());
        let rows = self.view.nodes();
        for row in rows {
            self.noticed(row.node);
        }
        if self.live.load(Ordering::Acquire) {
            changes.iter().for_each(|change| self.publish(change));
        }
        self.index.send_replace(index);
    }

    fn note_digest(&self, index: u64, digest: u128) {
        let mut digests = self.digests.lock();
        if digests.len() >= DIGESTS {
            digests.pop_front();
        }
        digests.push_back((index, digest));
    }

    /// Digests of the table here from an index on, `most` of them, as far as they are kept.
    pub(crate) fn digests(&self, from: u64, most: usize) -> Vec<(u64, u128)> {
        let digests = self.digests.lock();
        let skip = digests.partition_point(|(index, _)| *index < from);
        digests.iter().skip(skip).take(most).copied().collect()
    }

    fn settle(&self, effect: &Effect) {
        let live = || self.live.load(Ordering::Acquire);
        match effect {
            Effect::Displaced { node, jid, sid, loss, .. } => {
                if live() && *node == self.me().0 {
                    self.publish(&Change::Displaced { jid: jid.clone(), sid: *sid, loss: *loss });
                }
            }
            Effect::NodeGone { node, incarnation } => {
                let rows = self.view.routes.read().rows_of(*node, *incarnation);
                // This node's own start ends its former life, which it must hear of like everybody else.
                self.noticed(*node);
                if live() {
                    let lost = rows.iter().map(lost).collect();
                    self.publish(&Change::NodeGone { node: *node, incarnation: *incarnation, lost });
                }
                for slice in rows.chunks(SLICE) {
                    let mut routes = self.view.routes.write();
                    slice.iter().for_each(|row| routes.sweep(row));
                }
            }
            Effect::NodeUp { node, incarnation } => {
                self.noticed(*node);
                if live() {
                    self.publish(&Change::NodeUp { node: *node, incarnation: *incarnation });
                }
            }
            Effect::NodeRemoved { key } => self.note_removed(*key),
            Effect::NodeDraining { node } => {
                if live() {
                    self.publish(&Change::NodeDraining { node: *node });
                }
            }
        }
    }

    /// Learns where a node is, and whether it is this one in its present life.
    fn noticed(&self, node: NodeId) {
        let Some(row) = self.view.node(node) else { return };
        if let Some(member) = row.member {
            self.links.learn(member, &row.address);
        }
        let start = *self.start.lock();
        if row.key == self.key && self.live.load(Ordering::Acquire) {
            self.heard_of_own(row.start);
        }
        if start != 0 && row.start == start {
            *self.me.lock() = (row.node, row.incarnation);
            self.live.store(true, Ordering::Release);
        }
    }

    /// Another process with a copy of this one's data directory comes up as this node. It came later, so it stays:
    /// else each would end the life of the other again and again. One such life may be the last word of this node's
    /// process before, which was on its way when that ended; this one just comes up once more then.
    fn heard_of_own(&self, start: u128) {
        let mut starts = self.starts.lock();
        if !starts.0.contains(&start) && starts.1.insert(start) && starts.1.len() > 1 {
            self.end(Ended::Superseded);
        }
    }

    /// A snapshot for a follower.
    pub(crate) fn snapshot(&self) -> (u64, Bytes) {
        let routes = self.view.routes.read().clone();
        (routes.index(), routes.encode().into())
    }

    /// The entries after `from`; `None` if they are no longer kept.
    pub(crate) fn since(&self, from: u64) -> Option<Vec<(u64, Vec<Bytes>)>> {
        let recent = self.recent.lock();
        if from < recent.base {
            return None;
        }
        let skip = recent.entries.partition_point(|(index, _)| *index <= from);
        Some(recent.entries.iter().skip(skip).take(SLICE).cloned().collect())
    }
}

impl Recent {
    fn push(&mut self, index: u64, payloads: &[Bytes], accounts: usize) {
        let most = accounts.clamp(*RECENT.start(), *RECENT.end());
        if self.entries.is_empty() && self.base == 0 {
            self.base = index.saturating_sub(1);
        }
        self.bytes += payloads.iter().map(Bytes::len).sum::<usize>();
        self.entries.push_back((index, payloads.to_vec()));
        while self.entries.len() > most || (self.bytes > most * RECENT_BYTES && self.entries.len() > 1) {
            if let Some((oldest, payloads)) = self.entries.pop_front() {
                self.base = oldest;
                self.bytes -= payloads.iter().map(Bytes::len).sum::<usize>();
            }
        }
    }
}

fn lost(row: &Row) -> LostSession {
    LostSession { jid: row.jid.clone(), sid: row.sid, priority: row.shown() }
}

/// What a follower missed when it gets a snapshot in place of entries.
fn differences(old: &Routes, new: &Routes, me: (NodeId, Incarnation)) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut gone: HashMap<NodeId, Incarnation> = HashMap::new();
    for node in old.nodes().filter(|node| node.state != NodeState::Gone) {
        let still = new.node(node.node);
        if still.is_none_or(|now| now.incarnation != node.incarnation || now.state == NodeState::Gone) {
            gone.insert(node.node, node.incarnation);
            let rows = old.rows_of(node.node, node.incarnation);
            let lost = rows.iter().map(lost).collect();
            changes.push(Change::NodeGone { node: node.node, incarnation: node.incarnation, lost });
        }
    }
    for node in new.nodes().filter(|node| node.state != NodeState::Gone) {
        if old.node(node.node).is_none_or(|then| then.incarnation != node.incarnation) {
            changes.push(Change::NodeUp { node: node.node, incarnation: node.incarnation });
        } else if node.state == NodeState::Draining
            && old.node(node.node).is_some_and(|then| then.state == NodeState::Up)
        {
            changes.push(Change::NodeDraining { node: node.node });
        }
    }
    if !gone.contains_key(&me.0) {
        for row in old.rows_of(me.0, me.1) {
            if new.full(&row.jid).is_none_or(|now| now.sid != row.sid) {
                changes.push(Change::Displaced { jid: row.jid, sid: row.sid, loss: Loss::Conflict });
            }
        }
    }
    changes
}

/// The route table as a Raft group runs it: in memory only, since nothing in it outlives its nodes.
pub(crate) struct RoutesMachine(pub(crate) Arc<Hub>);

impl Machine for RoutesMachine {
    fn is_quick(&self, payload: &Bytes) -> bool {
        Command::concerns_one_session(payload) && self.0.has_room()
    }

    fn refusal(&self) -> Refusal {
        |bytes| match Command::decode(bytes) {
            Some(_) => None,
            None => Some(Outcome::Unreadable.encode().into()),
        }
    }

    fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>> {
        Ok(entries.iter().map(|entry| self.0.apply(entry.index, &entry.payloads)).collect())
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let routes = self.0.view.routes.read().clone();
        Ok(Box::new(move |out| routes.write(out)))
    }

    fn install(&mut self, _mark: Bytes, snapshot: &mut dyn Read) -> io::Result<()> {
        let failed = |e: io::Error| {
            io::Error::new(e.kind(), format!("failed to read a snapshot of the route table: {e}"))
        };
        self.0.install(Routes::read(snapshot).map_err(failed)?);
        Ok(())
    }
}

impl TableView {
    /// The node that takes care of something alone, the same on every node with this table: rendezvous hashing
    /// of `key` over the nodes that are up and have the role, or over draining ones where none is up.
    pub fn elect(&self, key: &str, role: impl Fn(Roles) -> bool) -> Option<NodeId> {
        let routes = self.routes.read();
        let here: Vec<&NodeRow> = routes.nodes().filter(|node| role(node.roles)).collect();
        crate::placement::elect(key, crate::placement::able(here.into_iter()).map(|node| node.node))
    }

    /// Where a client goes that may not stay at node `not`: the same address for the same key, of a frontend that
    /// is up and told where clients reach it.
    pub fn elsewhere(&self, key: &str, not: NodeId, direct_tls: bool) -> Option<String> {
        let routes = self.routes.read();
        let door = |node: NodeId| {
            let doors = routes.doors(node)?;
            let door = if direct_tls { &doors.direct_tls } else { &doors.starttls };
            (!door.is_empty()).then_some(door)
        };
        let able = |row: &&NodeRow| row.state == NodeState::Up && row.roles.frontend && row.node != not;
        let open = routes.nodes().filter(able).map(|row| row.node).filter(|node| door(*node).is_some());
        crate::placement::elect(key, open).and_then(door).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_gives_way_to_the_second_stranger_that_comes_up_as_its_node() {
        let hub = Hub::new(Arc::default(), Arc::new(Links::new(None)), 7);
        let mut routes = Routes::new();
        let mut index = 0;
        let mut come_up = |start: u128| {
            index += 1;
            let (name, address) = (String::new(), "h:1".into());
            let up = Command::NodeUp { key: 7, start, name, address, roles: Roles::default(), member: None };
            let bytes = Bytes::from(up.encode());
            routes.apply(index, up, &mut Vec::new());
            hub.apply(index, &[bytes]);
            *hub.ended.borrow()
        };
        // Old lives in the log concern nobody.
        assert_eq!((come_up(1), come_up(2)), (None, None));
        hub.begin_life(3);
        assert_eq!(come_up(3), None);
        // The last word of the process before, which comes late, and this one's answer.
        assert_eq!(come_up(2), None);
        hub.begin_life(4);
        assert_eq!((come_up(4), come_up(2)), (None, None));
        assert_eq!(come_up(5), Some(Ended::Superseded));
        assert_eq!(hub.ended().await, Ended::Superseded);
    }

    /// Input: in the log of the route table: 20,000 entries of random bytes, and of commands with some of their bytes
    /// changed, cut and joined.
    ///
    /// Outcome: Each is answered, and `apply` does not panic; two replicas stay equal, and so does what a snapshot brings.
    #[tokio::test]
    async fn row_138_whatever_is_in_the_log_of_the_route_table_is_applied_or_unreadable() {
        let machine = || RoutesMachine(Arc::new(Hub::new(Arc::default(), Arc::new(Links::new(None)), 7)));
        let (mut one, mut other) = (machine(), machine());
        let mut noise = crate::noise::Noise::new(138);
        let jid = jid::FullJid::new("a@x/r").unwrap();
        let (node, incarnation, sid) = (NodeId(1), Incarnation(1), crate::role::Sid(9));
        let policy = crate::routes::ConflictPolicy::Rename;
        let up = |key, start| {
            let (name, address, roles) = ("n".into(), "h:1".into(), Roles { frontend: true, backend: true });
            Command::NodeUp { key, start, name, address, roles, member: Some(crate::role::MemberId(5)) }
        };
        let seeds: Vec<Vec<u8>> = [
            up(1, 1),
            up(2, 3),
            Command::Bind { jid: jid.clone(), node, incarnation, sid, policy },
            Command::Attach { jid: jid.clone(), sid, node, incarnation, new_sid: crate::role::Sid(10) },
            Command::SetPriority { jid: jid.clone(), sid, priority: Some(-3) },
            Command::Kick { jid },
            Command::ExpireNode { node, incarnation },
            Command::NodeDrain { node, incarnation },
            Command::SpendToken { id: 1, by: [1; 32], roles: Roles::default(), key: 4, now: 5 },
            Command::Remove { node: NodeId(2), until: 9, now: 1 },
        ]
        .iter()
        .map(Command::encode)
        .collect();
        let (mut read, mut unreadable) = (0, 0);
        for index in 1..=20_000 {
            let payloads: Vec<Bytes> =
                (0..=noise.below(3)).map(|_| noise.like_one_of(&seeds).into()).collect();
            for payload in &payloads {
                let known = Command::decode(payload).is_some();
                assert_eq!(one.refusal()(payload).is_none(), known);
                *(if known { &mut read } else { &mut unreadable }) += 1;
            }
            let entry = Committed { index, mark: Bytes::new(), payloads };
            let replies = one.apply(std::slice::from_ref(&entry)).unwrap();
            assert_eq!(replies, other.apply(&[entry]).unwrap());
            assert!(replies[0].iter().all(|reply| Outcome::decode(reply).is_some()));
        }
        assert!(read > 1_000 && unreadable > 1_000, "{read} and {unreadable}");
        let bytes = one.0.view.routes.read().encode();
        let copy = Routes::decode(&bytes).expect("a snapshot of it is read");
        assert_eq!(copy.index(), 20_000);
        let rows = |routes: &Routes| {
            let mut rows: Vec<Row> = routes.each().cloned().collect();
            rows.sort_by(|a, b| a.jid.cmp(&b.jid));
            rows
        };
        assert_eq!(rows(&copy), rows(&other.0.view.routes.read()));
    }

    #[test]
    fn a_client_is_sent_to_a_frontend_that_is_up_and_told_its_door() {
        let view = TableView::default();
        let both = Roles { frontend: true, backend: true };
        let backend = Roles { frontend: false, backend: true };
        let tell = |command| {
            let mut routes = view.routes.write();
            let index = routes.index() + 1;
            routes.apply(index, command, &mut Vec::new())
        };
        // key of the node, its roles, its doors
        for (key, roles, starttls, direct_tls) in [
            (1, both, "one:5222", "one:5223"),
            (2, both, "two:5222", ""),
            (3, both, "", "three:5223"),
            (4, backend, "four:5222", "four:5223"),
        ] {
            let (name, address) = (key.to_string(), String::new());
            let up = tell(Command::NodeUp { key, start: 1, name, address, roles, member: None });
            let Outcome::Up { node, incarnation } = up else { panic!("{up:?}") };
            let doors = crate::routes::Doors { starttls: starttls.into(), direct_tls: direct_tls.into() };
            tell(Command::NodeDoors { node, incarnation, doors });
        }
        let ids: Vec<NodeId> = view.nodes().iter().map(|row| row.node).collect();
        let seen = |not, direct_tls| {
            let found = (0..100).map(|n| view.elsewhere(&format!("user{n}@x"), not, direct_tls));
            let mut found: Vec<String> = found.flatten().collect();
            found.sort();
            found.dedup();
            found
        };
        assert_eq!(seen(ids[0], false), ["two:5222"]);
        assert_eq!(seen(ids[0], true), ["three:5223"]);
        assert_eq!(seen(ids[3], false), ["one:5222", "two:5222"]);
        tell(Command::NodeDrain { node: ids[1], incarnation: Incarnation(1) });
        assert_eq!(seen(ids[3], false), ["one:5222"]);
        assert!(
            seen(ids[0], false).is_empty(),
            "nobody is sent to a node that drains, whoever else is there"
        );
        tell(Command::ExpireNode { node: ids[0], incarnation: Incarnation(1) });
        assert!(seen(ids[3], false).is_empty());
    }

    #[test]
    fn what_is_kept_for_followers_grows_with_the_table_and_has_a_bound() {
        // Accounts in the table, bytes of an entry, entries that are kept then.
        for (accounts, bytes, kept) in
            [(0, 100, 1_000), (5_000, 100, 5_000), (1_000_000, 100, 20_000), (5_000, 1_000, 2_560)]
        {
            let mut recent = Recent::default();
            let payload = [Bytes::from(vec![0; bytes])];
            (1..=30_000).for_each(|index| recent.push(index, &payload, accounts));
            assert_eq!(recent.entries.len(), kept, "{accounts} accounts");
            assert_eq!(recent.base, 30_000 - kept as u64);
            assert_eq!(recent.bytes, kept * bytes);
        }
    }
}

//! A rolling digest of the route table: equal tables have equal digests, by whatever way their rows came.
//!
//! Each visible session counts with a hash of its own, and the table with the sum of them, so that a command costs one
//! hash for each row that it changes, and the order of the rows does not matter. Sums are kept for each node, since the
//! loss of one hides all of its sessions at once. What is not about sessions is small, and hashed anew when it changes.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::Serialize;

use crate::{
    role::{Incarnation, NodeId},
    routes::Row,
};

/// Version of what is hashed and how: digests of two versions say nothing of each other.
pub const DIGEST_FORMAT: u32 = 2;

/// What the visible part of a table adds up to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    lives: BTreeMap<NodeId, Life>,
    rows: u128,
    rest: u128,
}

/// The sessions of the present life of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    sum: u128,
    sessions: usize,
}

impl Tally {
    /// A session became visible.
    pub(crate) fn add(&mut self, row: &Row) {
        let hash = of_row(row);
        let life = self.lives.entry(row.node).or_default();
        life.sum = life.sum.wrapping_add(hash);
        life.sessions += 1;
        self.rows = self.rows.wrapping_add(hash);
    }

    /// A session that was visible is gone.
    pub(crate) fn take(&mut self, row: &Row) {
        let hash = of_row(row);
        let Some(life) = self.lives.get_mut(&row.node) else { return };
        life.sum = life.sum.wrapping_sub(hash);
        life.sessions = life.sessions.saturating_sub(1);
        if life.sessions == 0 {
            self.lives.remove(&row.node);
        }
        self.rows = self.rows.wrapping_sub(hash);
    }

    /// The present life of a node is over: all of its sessions are hidden.
    pub(crate) fn hide(&mut self, node: NodeId) {
        if let Some(life) = self.lives.remove(&node) {
            self.rows = self.rows.wrapping_sub(life.sum);
        }
    }

    /// What is beside the sessions has changed, or there is nothing.
    pub(crate) fn beside(&mut self, rest: Option<&impl Serialize>) {
        self.rest = rest.map_or(0, |rest| {
            // These are plain structs and ordered maps: writing them to memory cannot fail.
            let bytes = postcard::to_stdvec(rest).expect("nodes can be written to memory");
            first_half(digest(&SHA256, &bytes).as_ref())
        });
    }

    pub(crate) fn digest(&self) -> u128 {
        self.rows.wrapping_add(self.rest)
    }

    /// How many sessions are visible.
    pub(crate) fn sessions(&self) -> usize {
        self.lives.values().map(|life| life.sessions).sum()
    }

    /// How many of them each node has that has some.
    pub(crate) fn by_node(&self) -> impl Iterator<Item = (NodeId, usize)> {
        self.lives.iter().map(|(node, life)| (*node, life.sessions))
    }
}

fn of_row(row: &Row) -> u128 {
    let Row { jid, node: NodeId(node), incarnation: Incarnation(incarnation), sid, .. } = row;
    let Row { priority, detached, invisible, .. } = row;
    let mut context = Context::new(&SHA256);
    context.update(jid.as_str().as_bytes());
    // Of one length, behind the one part that has any: two rows never make the same bytes.
    let mut tail = [0; 36];
    tail[..8].copy_from_slice(&node.to_be_bytes());
    tail[8..16].copy_from_slice(&incarnation.to_be_bytes());
    tail[16..32].copy_from_slice(&sid.0.to_be_bytes());
    tail[32] = u8::from(priority.is_some());
    tail[33] = priority.unwrap_or(0) as u8;
    tail[34] = u8::from(*detached);
    tail[35] = u8::from(*invisible);
    context.update(&tail);
    first_half(context.finish().as_ref())
}

fn first_half(hash: &[u8]) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(half)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jid::FullJid;

    use super::*;
    use crate::{
        noise::Noise,
        role::{Roles, Sid},
        routes::{
            Command,
            ConflictPolicy::{Refuse, Rename, Replace},
            Doors, Effect, Living, Outcome, Routes,
        },
    };

    fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for (jid, node) in [("a@x/r", 1), ("a@x/s", 1), ("b@x/r", 1), ("a@x/r", 2)] {
            for sid in [1, 2] {
                for (priority, detached) in [(None, false), (None, true), (Some(0), false), (Some(-1), false)]
                {
                    let (jid, node) = (FullJid::new(jid).unwrap(), NodeId(node));
                    for incarnation in [Incarnation(1), Incarnation(2)] {
                        rows.push(Row {
                            jid: jid.clone(),
                            node,
                            incarnation,
                            sid: Sid(sid),
                            priority,
                            detached,
                            invisible: false,
                        });
                        rows.push(Row { invisible: true, ..rows[rows.len() - 1].clone() });
                    }
                }
            }
        }
        rows
    }

    #[test]
    fn every_field_of_a_row_counts() {
        let rows = rows();
        let hashes: BTreeSet<u128> = rows.iter().map(of_row).collect();
        assert_eq!(hashes.len(), rows.len());
    }

    #[test]
    fn the_order_does_not_count_and_what_was_taken_back_leaves_nothing() {
        let rows = rows();
        let (mut one, mut other) = (Tally::default(), Tally::default());
        rows.iter().for_each(|row| one.add(row));
        rows.iter().rev().for_each(|row| other.add(row));
        assert_eq!((one.digest(), one.sessions()), (other.digest(), rows.len()));
        rows[3..].iter().for_each(|row| one.take(row));
        let mut few = Tally::default();
        rows[..3].iter().for_each(|row| few.add(row));
        assert_eq!(one.digest(), few.digest());
        assert_ne!(one.digest(), other.digest());
        // All of a node at once, as one after the other.
        other.hide(NodeId(1));
        let of_two: Vec<&Row> = rows.iter().filter(|row| row.node == NodeId(2)).collect();
        let mut twos = Tally::default();
        of_two.iter().for_each(|row| twos.add(row));
        assert_eq!(other.digest(), twos.digest());
        assert_eq!(other.by_node().collect::<Vec<_>>(), [(NodeId(2), of_two.len())]);
        of_two.iter().for_each(|row| twos.take(row));
        assert_eq!((twos.digest(), twos.sessions()), (0, 0));
    }

    /// Each command of random histories: the digest is that of the table counted anew, whether hidden rows are swept
    /// or not, and a snapshot has the same.
    #[test]
    fn the_digest_follows_every_command() {
        let mut noise = Noise::new(7);
        let mut distinct = BTreeSet::new();
        for _ in 0..50 {
            let (mut routes, mut swept) = (Routes::new(), Routes::new());
            for index in 1..200 {
                let command = any_command(&mut noise, &routes);
                let mut effects = Vec::new();
                routes.apply(index, command.clone(), &mut Vec::new());
                let before = swept.digest();
                let outcome = swept.apply(index, command.clone(), &mut effects);
                for effect in &effects {
                    if let Effect::NodeGone { node, incarnation } = effect {
                        swept.rows_of(*node, *incarnation).iter().for_each(|row| swept.sweep(row));
                    }
                }
                let mut anew = routes.clone();
                anew.count();
                let sessions = routes.each().count();
                assert_eq!((anew.digest(), sessions), (routes.digest(), routes.sessions()), "{command:?}");
                assert_eq!(swept.digest(), routes.digest(), "{command:?}");
                let copy = Routes::decode(&routes.encode()).unwrap();
                assert_eq!(copy.digest(), routes.digest(), "{command:?}");
                let by_node: BTreeMap<NodeId, usize> = routes.sessions_by_node().collect();
                for (node, sessions) in by_node {
                    assert_eq!(routes.each().filter(|row| row.node == node).count(), sessions);
                }
                if outcome == Outcome::Stale && effects.is_empty() {
                    assert_eq!(before, swept.digest(), "{command:?} changed nothing");
                }
                distinct.insert(routes.digest());
            }
        }
        assert!(distinct.len() > 1_000, "{}", distinct.len());
    }

    /// A command about few nodes and sessions, so that many of them meet.
    fn any_command(noise: &mut Noise, routes: &Routes) -> Command {
        let nodes: Vec<(NodeId, Incarnation)> = routes.nodes().map(|n| (n.node, n.incarnation)).collect();
        let (node, incarnation) = match noise.below(4) {
            0 => (NodeId(noise.below(6) as u64), Incarnation(1 + noise.below(3) as u64)),
            _ if nodes.is_empty() => return up(noise.next().into(), 1),
            _ => nodes[noise.below(nodes.len())],
        };
        let jid = FullJid::new(["a@x/r", "a@x/s", "b@x/r", "c@x/r"][noise.below(4)]).unwrap();
        let (sid, new_sid) = (Sid(noise.below(5) as u128), Sid(noise.below(5) as u128));
        let policy = [Replace, Refuse, Rename][noise.below(3)];
        let living = Living { jid: jid.clone(), sid, priority: Some(2), detached: noise.below(2) == 0 };
        match noise.below(25) {
            24 => Command::Hide { jid, sid, priority: Some(noise.below(3) as i8) },
            0..=9 => Command::Bind { jid, node, incarnation, sid, policy },
            10 => Command::Unbind { jid, sid },
            11 => Command::SetPriority { jid, sid, priority: Some(noise.below(3) as i8) },
            12 => Command::Detach { jid, sid },
            13 | 14 => Command::Attach { jid, sid, node, incarnation, new_sid },
            15 | 16 => Command::Resync { node, incarnation, living: vec![living] },
            17 => Command::Kick { jid },
            18 | 19 => up(noise.below(3) as u128, noise.below(4) as u128),
            20 => Command::NodeDrain { node, incarnation },
            21 => Command::ExpireNode { node, incarnation },
            22 => Command::NodeDoors { node, incarnation, doors: Doors::default() },
            _ => match noise.below(4) {
                3 => Command::NodeLeave { node },
                0 => Command::Forget { node },
                1 => Command::NodeUndrain { node, incarnation },
                _ => Command::Remove { node, until: 5, now: 1 },
            },
        }
    }

    fn up(key: u128, start: u128) -> Command {
        let (name, address) = ("n".into(), "h:1".into());
        let roles = Roles { frontend: true, backend: true };
        Command::NodeUp { key, start, name, address, roles, member: None }
    }
}

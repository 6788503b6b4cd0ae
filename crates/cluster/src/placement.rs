//! Where a placed thing lives: rendezvous hashing, and who votes.

use std::collections::BTreeSet;

use crate::{
    role::{MemberId, NodeId},
    routes::{NodeRow, NodeState},
};

/// Those that may be chosen for something: who is up, and who drains only where nobody else is left.
pub fn able<'a>(rows: impl Iterator<Item = &'a NodeRow> + Clone) -> impl Iterator<Item = &'a NodeRow> {
    let up = rows.clone().any(|row| row.state == NodeState::Up);
    let wanted = if up { NodeState::Up } else { NodeState::Draining };
    rows.filter(move |row| row.state == wanted)
}

/// Chooses a node for a key: the same on every node that sees the same candidates, and a candidate that comes
/// or goes moves only its own share of the keys.
pub fn elect(key: &str, candidates: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    candidates.max_by_key(|node| (weight(key, *node), node.0))
}

/// FNV-1a over the key and the node, then the finalizer of MurmurHash3: it must never change, since nodes of
/// two versions have to agree.
fn weight(key: &str, node: NodeId) -> u64 {
    let bytes = key.as_bytes().iter().copied().chain(node.0.to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Members of a group, as the decision about its voters sees them.
#[derive(Debug, Default)]
pub(crate) struct Voting {
    pub(crate) voters: BTreeSet<MemberId>,
    /// Gone for so long that another one takes their place.
    pub(crate) lost: BTreeSet<MemberId>,
    /// An operator takes them out.
    pub(crate) leaving: BTreeSet<MemberId>,
    /// Here, and not far from the end of the log.
    pub(crate) ready: BTreeSet<MemberId>,
    /// Who leads, and decides this.
    pub(crate) leader: MemberId,
}

impl Voting {
    /// The voters after the next step, or `None` if they are right. Their number is 1, 3 or 5: an even one needs as
    /// many to agree as the odd one above it, and bears no more losses than the odd one below. It is 2 only after
    /// one of three was taken out: what was acknowledged by then stays on both disks.
    pub(crate) fn next(&self) -> Option<BTreeSet<MemberId>> {
        let voters = &self.voters;
        let mut fresh = self.ready.difference(voters).filter(|member| !self.leaving.contains(member));
        let mut next = voters.clone();
        // Whom an operator takes out goes with or without somebody in its place.
        if let Some(gone) = voters.intersection(&self.leaving).next() {
            next.remove(gone);
            next.extend(fresh.next());
            return (!next.is_empty()).then_some(next);
        }
        let lost: Vec<&MemberId> = voters.intersection(&self.lost).collect();
        if let (Some(gone), Some(heir)) = (lost.first(), fresh.clone().next()) {
            next.insert(*heir);
            next.remove(*gone);
            return Some(next);
        }
        // Without heirs: three that are here bear a loss, and five of which two are lost bear none.
        if let (5, [one, two, ..]) = (voters.len(), &lost[..]) {
            next.remove(one);
            next.remove(two);
            return Some(next);
        }
        let wanted = if voters.len() < 3 { 3 } else { 5 };
        let missing = wanted.min(voters.len() + 2).saturating_sub(voters.len());
        let added: Vec<MemberId> = fresh.by_ref().take(missing).copied().collect();
        if missing > 0 && added.len() == missing {
            next.extend(added);
            return Some(next);
        }
        if voters.len() == 4 {
            let spared = voters.iter().filter(|voter| **voter != self.leader);
            next.remove(
                spared
                    .min_by_key(|voter| (!self.lost.contains(voter), self.ready.contains(voter), **voter))?,
            );
            return Some(next);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[u64]) -> BTreeSet<MemberId> {
        members.iter().map(|m| MemberId(*m)).collect()
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_keys() {
        let all: Vec<NodeId> = (1..=5).map(NodeId).collect();
        let mut share = [0; 6];
        for n in 0..10_000 {
            let key = format!("room{n}@muc.example");
            let home = elect(&key, all.iter().copied()).unwrap();
            share[home.0 as usize] += 1;
            let without = elect(&key, all.iter().copied().filter(|node| node.0 != 3)).unwrap();
            assert!(home.0 == 3 || home == without);
        }
        assert!(share[1..].iter().all(|n| (1700..2300).contains(n)), "{share:?}");
        assert_eq!(elect("x", std::iter::empty()), None);
    }

    #[test]
    fn who_drains_is_chosen_only_where_nobody_is_up() {
        use NodeState::{Draining, Gone, Up};
        for (states, chosen) in [
            (&[Up, Draining, Up][..], &[1, 3][..]),
            (&[Draining, Gone, Draining], &[1, 3]),
            (&[Draining, Up, Gone], &[2]),
            (&[Gone, Gone], &[]),
            (&[], &[]),
        ] {
            let row = |(nth, state): (usize, &NodeState)| NodeRow {
                node: NodeId(nth as u64 + 1),
                incarnation: crate::role::Incarnation(1),
                name: String::new(),
                address: String::new(),
                roles: Default::default(),
                state: *state,
                member: None,
                key: 0,
                start: 0,
            };
            let rows: Vec<NodeRow> = states.iter().enumerate().map(row).collect();
            let found: Vec<u64> = able(rows.iter()).map(|row| row.node.0).collect();
            assert_eq!(found, chosen, "{states:?}");
        }
    }

    #[test]
    fn the_hash_is_part_of_the_protocol() {
        assert_eq!(weight("alice@example.org", NodeId(7)), weight("alice@example.org", NodeId(7)));
        assert_eq!(
            elect("alice@example.org", (1..=9).map(NodeId)),
            elect("alice@example.org", (1..=9).rev().map(NodeId))
        );
    }

    /// After one step, of which 1 is the leader.
    fn next(voters: &[u64], lost: &[u64], leaving: &[u64], ready: &[u64]) -> Option<BTreeSet<MemberId>> {
        let [voters, lost, leaving, ready] = [voters, lost, leaving, ready].map(set);
        Voting { voters, lost, leaving, ready, leader: MemberId(1) }.next()
    }

    type Ids = &'static [u64];

    #[test]
    fn voters_grow_in_pairs_and_the_lost_are_replaced_one_at_a_time() {
        // voters, lost, ready, next
        let table: [(Ids, Ids, Ids, Option<Ids>); 15] = [
            (&[1], &[], &[1], None),
            (&[1], &[], &[1, 2], None),
            (&[1], &[], &[1, 2, 3], Some(&[1, 2, 3])),
            (&[1, 2], &[], &[1, 2], None),
            (&[1, 2], &[], &[1, 2, 3], Some(&[1, 2, 3])),
            (&[1, 2, 3], &[], &[1, 2, 3, 4], None),
            (&[1, 2, 3], &[], &[1, 2, 3, 4, 5], Some(&[1, 2, 3, 4, 5])),
            (&[1, 2, 3, 4, 5], &[], &[1, 2, 3, 4, 5, 6, 7], None),
            (&[1, 2, 3], &[2], &[1, 3, 4], Some(&[1, 3, 4])),
            // Nobody is there in its place: it counts until it is back.
            (&[1, 2, 3], &[2], &[1, 3], None),
            (&[1, 2, 3, 4, 5], &[2], &[1, 3, 4, 5], None),
            (&[1, 2, 3, 4, 5], &[2, 4], &[1, 3, 5], Some(&[1, 3, 5])),
            (&[1, 2, 3, 4, 5], &[2, 4], &[1, 3, 5, 6], Some(&[1, 3, 4, 5, 6])),
            // Four bear no more losses than three.
            (&[1, 2, 3, 4], &[], &[1, 2, 3, 4], Some(&[1, 3, 4])),
            (&[1, 2, 3, 4], &[3], &[1, 2, 4], Some(&[1, 2, 4])),
        ];
        for (voters, lost, ready, expected) in table {
            assert_eq!(next(voters, lost, &[], ready), expected.map(set), "{voters:?} {lost:?} {ready:?}");
        }
        assert_eq!(
            next(&[1, 2, 3, 4], &[], &[], &[1, 2, 4]),
            Some(set(&[1, 2, 4])),
            "one that lags goes first"
        );
    }

    #[test]
    fn a_voter_that_leaves_goes_with_or_without_somebody_in_its_place() {
        // voters, leaving, ready, next
        let table: [(Ids, Ids, Ids, Option<Ids>); 9] = [
            (&[1, 2, 3], &[2], &[1, 3, 4], Some(&[1, 3, 4])),
            (&[1, 2, 3], &[2], &[1, 3], Some(&[1, 3])),
            (&[1, 2], &[1], &[2], Some(&[2])),
            (&[1, 2, 3], &[1, 2], &[3], Some(&[2, 3])),
            (&[1, 2, 3], &[9], &[1, 2, 3], None),
            (&[1, 2, 3, 4, 5], &[5], &[1, 2, 3, 4], Some(&[1, 2, 3, 4])),
            // The place of the only one is taken by another; one that leaves takes none.
            (&[1], &[1], &[1, 2], Some(&[2])),
            (&[1, 2, 3], &[3, 4], &[1, 2, 3, 4], Some(&[1, 2])),
            // Nobody would be left to agree.
            (&[1], &[1], &[], None),
        ];
        for (voters, leaving, ready, expected) in table {
            assert_eq!(
                next(voters, &[], leaving, ready),
                expected.map(set),
                "{voters:?} {leaving:?} {ready:?}"
            );
        }
    }
}

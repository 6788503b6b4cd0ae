//! A group that begins with a state that was there before its log: one member decides alone, and every other one gets
//! a snapshot first.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{BasicNode, CommittedLeaderId, Membership, StoredMembership};

use super::types::{LogId, Mark};
use crate::role::MemberId;

/// The place in the log behind such a state. The log before it is empty, so nobody can learn the state from entries.
pub(crate) fn place(term: u64, index: u64, member: MemberId, address: &str) -> Mark {
    let log_id = LogId::new(CommittedLeaderId::new(term, member.0), index);
    let nodes = BTreeMap::from([(member.0, BasicNode::new(address))]);
    let membership = Membership::new(vec![BTreeSet::from([member.0])], nodes);
    Mark { log_id: Some(log_id), membership: StoredMembership::new(Some(log_id), membership) }
}

/// The place behind the state of a node that was alone and had no log of it: no entry of a leader stands before it.
pub(crate) fn after_alone(member: MemberId, address: &str) -> Mark {
    place(0, 1, member, address)
}

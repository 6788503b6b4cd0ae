//! A Raft group as the rest of the server sees it: propose, read behind a barrier, wait, look.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{error::ProposeError, role::MemberId};

/// A handle to one Raft group on this backend; cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) name: &'static str,
}

/// A proposal that was committed and applied by the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The index of the entry that carries it: wait for it before reading here what was written.
    pub index: u64,
    /// What the machine answered.
    pub reply: Bytes,
}

/// Facts about one Raft group on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// The leader as this node knows it.
    pub leader: Option<MemberId>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// The current term.
    pub term: u64,
    /// The last entry of the log here.
    pub last_log: u64,
    /// The last entry applied here.
    pub applied: u64,
    /// The last entry covered by a snapshot here.
    pub snapshot: u64,
    /// The members who vote.
    pub voters: Vec<MemberId>,
    /// The members who only learn.
    pub learners: Vec<MemberId>,
    /// On the leader: milliseconds since a quorum last acknowledged it.
    pub quorum_age_ms: Option<u64>,
    /// On the leader: the last entry that each member is known to have.
    pub matched: Vec<(MemberId, u64)>,
    /// Why the group stopped here, if it did.
    pub failure: Option<String>,
}

impl Group {
    /// Proposes one payload and returns what the machine answered, once it is committed and applied by the
    /// leader. It is forwarded to the leader, batched, and tried again until the deadline; a payload may then
    /// be applied more than once, so it must be idempotent.
    pub async fn propose(&self, _payload: Bytes, _deadline: Instant) -> Result<Proposed, ProposeError> {
        Err(ProposeError::Stopped(self.inner.name.into()))
    }

    /// An index such that a reader who waited for it here sees all that was acknowledged anywhere before
    /// the call. Calls that come together share one question to the leader.
    pub async fn read_index(&self, _deadline: Instant) -> Result<u64, ProposeError> {
        Err(ProposeError::Stopped(self.inner.name.into()))
    }

    /// Waits until the machine here has applied `index`.
    pub async fn wait_applied(&self, _index: u64, _deadline: Instant) -> Result<(), ProposeError> {
        Err(ProposeError::Stopped(self.inner.name.into()))
    }

    /// Facts for operators.
    pub fn status(&self) -> GroupStatus {
        GroupStatus { name: self.inner.name.into(), ..GroupStatus::default() }
    }
}

//! Names of cluster things: node, incarnation, session id, member and roles.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::seam::random_bits;

/// A node, named by the log index of the entry that admitted it; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// How often a node has come up; grows at each start and at each loss of its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// One life of one session: 128 random bits that make every route command idempotent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
// Aligned as the rest of a row of the table is, which takes a tenth less memory so.
#[repr(Rust, packed(8))]
pub struct Sid(pub u128);

/// A voter or learner of the Raft groups: 64 random bits drawn with the data directory, so that a node
/// that lost its log never comes back under the vote it forgot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemberId(pub u64);

/// A cluster's own name: 128 random bits drawn at its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Roles {
    /// Listeners, TLS, sessions and hooks.
    pub frontend: bool,
    /// Raft, data and placed services.
    pub backend: bool,
}

impl Default for Roles {
    fn default() -> Self {
        Roles { frontend: true, backend: true }
    }
}

impl Sid {
    /// Draws a new session id.
    pub fn random() -> Sid {
        Sid(random_bits())
    }
}

macro_rules! shown {
    ($($name:ident $pattern:literal),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $pattern, { self.0 })
            }
        }
    )*};
}
shown!(NodeId "{}", Incarnation "{}", Sid "{:032x}", MemberId "{:016x}", ClusterId "{:032x}");

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.frontend, self.backend) {
            (true, true) => "frontend, backend",
            (true, false) => "frontend",
            (false, true) => "backend",
            (false, false) => "none",
        })
    }
}

//! The one set of openraft types that both groups, `routes` and `data`, run with: opaque payloads.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
use openraft::{BasicNode, SnapshotMeta, StorageError, StoredMembership};
use serde::{Deserialize, Serialize};

use super::machine_thread::MachineThread;

openraft::declare_raft_types!(
    /// Opaque payloads in, opaque replies out.
    pub(crate) TypeConfig:
        D = Payloads,
        R = Replies,
        NodeId = u64,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotBody,
        AsyncRuntime = super::runtime::Tokio,
);

/// The proposals that share one log entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payloads(pub Vec<Bytes>);

/// What the machine answered to each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies(pub Vec<Bytes>);

/// A snapshot on its way.
#[derive(Clone, Default)]
pub enum SnapshotBody {
    /// Nothing yet.
    #[default]
    Empty,
    /// A file that holds it.
    File(SnapshotFile),
    /// Made when it is sent: a durable machine is its own snapshot.
    Fresh(MachineThread),
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    /// The file.
    pub(crate) file: Arc<File>,
    /// Where the next byte is.
    pub(crate) at: u64,
    /// Where the part ends.
    pub(crate) end: u64,
}

impl Read for SnapshotFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let want = out.len().min(left);
        let got = self.file.read_at(&mut out[..want], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl std::fmt::Debug for SnapshotBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SnapshotBody::Empty => "Empty",
            SnapshotBody::File(_) => "File",
            SnapshotBody::Fresh(_) => "Fresh",
        })
    }
}

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Membership = StoredMembership<u64, BasicNode>;
pub(crate) type Meta = SnapshotMeta<u64, BasicNode>;
pub(crate) type DiskError = StorageError<u64>;

/// The place in the log that a machine keeps beside its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: Membership,
}

impl Mark {
    pub(crate) fn encode(&self) -> Bytes {
        // These are plain structs: writing them to memory cannot fail.
        postcard::to_stdvec(self).expect("a mark can be written to memory").into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Mark> {
        postcard::from_bytes(bytes).ok()
    }

    pub(crate) fn index(&self) -> u64 {
        self.log_id.map_or(0, |id| id.index)
    }
}

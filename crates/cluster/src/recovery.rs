//! A cluster that lost its majority for good begins anew from one backend that is left, in a new epoch.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proto::membership::{HelloRequest, Peer, membership_client::MembershipClient};
use store::engines::sled::{self, Disk};
use tokio::time::timeout;

use crate::{
    birth::Certificate,
    config::{CERTIFICATE_LIFETIME_MAX_S, Config},
    error::ClusterError,
    identity::{
        credentials::{self, Security, unix_now},
        kept::Kept,
    },
    links::{Links, cluster_bytes, read_cluster, read_epoch},
    raft::{
        machine::SnapshotWriter,
        survivor::{self, Survivor},
    },
    replica::Offline,
    role::ClusterId,
    routes::{Command, NodeRow, NodeState, Routes},
};

/// The groups begin at this index times the epoch: behind every entry of the epoch before, also of those that this
/// node has not heard of, so that no index and no node id comes twice.
const ENTRIES_OF_AN_EPOCH: u64 = 1 << 40;
/// How long another backend may take to say that it is there.
const KNOCK: Duration = Duration::from_secs(2);

/// Where a group keeps its log and its snapshots. A recovery writes to a folder of its own, so that one that is
/// interrupted leaves what was.
pub(crate) fn group_dir(cluster_dir: &Path, name: &str, logs: u64) -> PathBuf {
    cluster_dir.join(if logs == 0 { name.to_owned() } else { format!("{name}-{logs}") })
}

/// What a stopped backend has, and what becomes of it.
pub struct Recovery {
    dir: PathBuf,
    birth: Certificate,
    kept: Kept,
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch that it gets.
    pub epoch: u64,
    /// This backend's row in the table, if it has one.
    pub own: Option<NodeRow>,
    /// Backends that are no part of it any more.
    pub lost: Vec<NodeRow>,
    /// Frontends, which come back by themselves.
    pub frontends: Vec<NodeRow>,
    /// The groups by name: the newest term and the last entry that this backend has of each.
    pub groups: Vec<(&'static str, u64, u64)>,
    routes: Routes,
}

fn refused<T>(text: impl Into<String>) -> Result<T, ClusterError> {
    Err(ClusterError::Recovery(text.into()))
}

impl Recovery {
    /// Looks at what is there, and changes nothing. The node must not run.
    ///
    /// # Errors
    /// Where this is no backend of a cluster, or what it has cannot be read.
    pub async fn look(data_dir: &Path) -> Result<Recovery, ClusterError> {
        let dir = data_dir.join("cluster");
        if !dir.join("node").exists() {
            return refused(format!(
                "`{}` holds nothing of a cluster: run this at a backend that is left of it, with the config of that node",
                data_dir.display()
            ));
        }
        let disk = |e: io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
        let birth = Certificate::open(&dir).map_err(disk)?;
        let born = birth.born();
        let Some(cluster) = born.cluster else {
            return refused(format!("the node in `{}` was never part of a cluster", data_dir.display()));
        };
        let at = |name| group_dir(&dir, name, born.logs);
        if !at("routes").exists() || !at("data").exists() {
            return refused(
                "this node keeps nothing that a cluster agreed on: a cluster is recovered from a backend; one that was a single node all the time only has to be started",
            );
        }
        let mut table = Survivor::open("routes", &at("routes")).await.map_err(disk)?;
        let data = Survivor::open("data", &at("data")).await.map_err(disk)?;
        let (mut routes, mut from) = (Routes::new(), 0);
        if let Some((index, bytes)) = Survivor::snapshot(&at("routes")).map_err(disk)? {
            let damaged =
                || io::Error::new(io::ErrorKind::InvalidData, "the snapshot of the table is damaged");
            (routes, from) = (Routes::decode(&bytes).ok_or_else(damaged).map_err(disk)?, index);
        }
        let replayed = table.replay(from, |entries| {
            for entry in entries {
                let commands = entry.payloads.iter().filter_map(|payload| Command::decode(payload));
                for command in commands {
                    routes.apply(entry.index, command, &mut Vec::new());
                }
            }
            Ok(())
        });
        replayed.await.map_err(disk)?;
        let (mut own, mut lost, mut frontends) = (None, Vec::new(), Vec::new());
        for row in routes.nodes().cloned() {
            match row.member {
                _ if row.key == born.key => own = Some(row),
                Some(_) => lost.push(row),
                None => frontends.push(row),
            }
        }
        let groups = vec![("routes", table.term, table.last), ("data", data.term, data.last)];
        let kept = Kept::in_cluster_dir(&dir);
        let epoch = born.epoch + 1;
        Ok(Recovery { dir, birth, kept, cluster, epoch, own, lost, frontends, groups, routes })
    }

    /// Another backend of the cluster that answers, if one does: then it may have a majority, and is no lost one.
    ///
    /// # Errors
    /// Where this node's certificates cannot be used.
    pub async fn living(&self, config: &Config) -> Result<Option<NodeRow>, ClusterError> {
        let credentials = match credentials::security(config, &self.kept)? {
            Security::Plain => None,
            Security::Tls(credentials) => Some(credentials),
        };
        let links = Links::new(credentials);
        let epoch = self.birth.born().epoch;
        for row in self.lost.iter().filter(|row| !row.address.is_empty()) {
            let Ok(channel) = links.channel(&row.address) else { continue };
            let cluster = cluster_bytes(Some(self.cluster), epoch);
            let request = HelloRequest { peer: Some(Peer { cluster, backend: true, ..Peer::default() }) };
            let answer = timeout(KNOCK, async { MembershipClient::new(channel).hello(request).await }).await;
            let Ok(Ok(reply)) = answer else { continue };
            let theirs = reply.into_inner().peer.unwrap_or_default().cluster;
            if read_cluster(&theirs) == Some(self.cluster) && read_epoch(&theirs) == epoch {
                return Ok(Some(row.clone()));
            }
        }
        Ok(None)
    }

    /// Begins the cluster anew from what this backend has. May be called again where it was interrupted.
    ///
    /// # Errors
    /// Where a disk fails; the node does not start then until a further recovery has ended well.
    pub async fn run(self, address: &str, store: sled::Config) -> Result<(), ClusterError> {
        let dir = self.dir.clone();
        let disk = |e: io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
        self.birth.begin_recovery().map_err(disk)?;
        let born = self.birth.born();
        let index = self.epoch * ENTRIES_OF_AN_EPOCH;
        for name in ["routes", "data"] {
            let begun = group_dir(&dir, name, self.epoch);
            if begun.exists() {
                fs::remove_dir_all(&begun).map_err(disk)?;
            }
        }
        // Behind every vote that was given.
        let term = self.groups.iter().map(|group| group.1).max().unwrap_or(0) + 1;
        let place = survivor::place(term, index, born.member, address);

        self.begin_data(&place, index, store).await.map_err(disk)?;
        let begun = group_dir(&dir, "data", self.epoch);
        survivor::begin("data", &begun, (term, born.member), None).await.map_err(disk)?;

        let table = begun_anew(self.routes, born.key, index).encode();
        let write: SnapshotWriter = Box::new(move |out| out.write_all(&table));
        let begun = group_dir(&dir, "routes", self.epoch);
        let snapshot = Some((&place[..], write));
        survivor::begin("routes", &begun, (term, born.member), snapshot).await.map_err(disk)?;
        fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(disk)?;

        // From here on this node is of the new epoch, and of it alone.
        self.birth.recovered(self.epoch, address).map_err(disk)?;
        for name in ["routes", "data"] {
            if let Err(error) = fs::remove_dir_all(group_dir(&dir, name, born.logs)) {
                tracing::warn!(%error, group = name, "failed to remove the log of the former epoch");
            }
        }
        Ok(())
    }

    /// Applies to the store what its log has beyond it, and puts the new beginning behind it.
    async fn begin_data(&self, place: &[u8], index: u64, store: sled::Config) -> io::Result<()> {
        let opened =
            tokio::task::spawn_blocking(move || Disk::open(&store)).await.map_err(io::Error::other)?;
        let disk = Arc::new(opened.map_err(io::Error::other)?);
        let mut state = Offline::open(disk).map_err(io::Error::other)?;
        let applied = state.place().and_then(survivor::index_of).unwrap_or(0);
        if applied >= index {
            // A recovery that was interrupted came this far.
            return Ok(());
        }
        let dir = group_dir(&self.dir, "data", self.birth.born().logs);
        let mut log = Survivor::open("data", &dir).await?;
        log.replay(applied, |entries| state.apply(&entries)).await?;
        state.begin_at(place).map_err(io::Error::other)
    }
}

/// The table with nobody there: the other backends are removed, and every node that is left registers anew.
fn begun_anew(mut routes: Routes, own: u128, index: u64) -> Routes {
    let rows: Vec<NodeRow> = routes.nodes().cloned().collect();
    let now = unix_now();
    let until = now + CERTIFICATE_LIFETIME_MAX_S;
    for NodeRow { node, incarnation, state, member, key, .. } in rows {
        let command = match member {
            Some(_) if key != own => Command::Remove { node, until, now },
            _ if state == NodeState::Gone => continue,
            _ => Command::ExpireNode { node, incarnation },
        };
        routes.apply(index, command, &mut Vec::new());
    }
    routes.advance(index);
    routes
}

#[cfg(test)]
mod tests {
    use jid::FullJid;

    use super::*;
    use crate::{
        role::{Incarnation, MemberId, NodeId, Roles, Sid},
        routes::ConflictPolicy,
    };

    #[test]
    fn in_the_new_table_nobody_is_there_and_the_other_backends_are_removed() {
        let mut routes = Routes::new();
        let mut apply = |index, command| routes.apply(index, command, &mut Vec::new());
        for (index, member) in [(1, Some(11)), (2, Some(12)), (3, None)] {
            let member = member.map(MemberId);
            let roles = Roles { frontend: true, backend: member.is_some() };
            let (name, address) = (index.to_string(), String::new());
            apply(index, Command::NodeUp { key: index.into(), start: 1, name, address, roles, member });
        }
        let jid = FullJid::new("a@x/r").unwrap();
        let policy = ConflictPolicy::Replace;
        apply(4, Command::Bind { jid, node: NodeId(3), incarnation: Incarnation(1), sid: Sid(9), policy });
        let index = ENTRIES_OF_AN_EPOCH;
        let begun = Routes::decode(&begun_anew(routes, 1, index).encode()).unwrap();
        let left: Vec<_> = begun.nodes().map(|row| (row.node.0, row.state)).collect();
        assert_eq!(left, [(1, NodeState::Gone), (3, NodeState::Gone)]);
        assert!(begun.trust().is_removed(2) && begun.trust().is_removed_member(MemberId(12)));
        assert!(!begun.trust().is_removed(1) && !begun.trust().is_removed(3));
        assert_eq!((begun.each().count(), begun.accounts(), begun.index()), (0, 0, index));
    }
}

//! Links to other nodes: one shared gRPC channel per address, under the cluster's certificates.

use std::{collections::HashMap, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tonic::{
    Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use crate::role::{ClusterId, MemberId};

/// The largest message between nodes.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;
/// How many addresses keep a channel; beyond it all are made anew at their next use.
const CHANNELS_MAX: usize = 1024;

/// All links of this node.
pub(crate) struct Links {
    tls: Option<ClientTlsConfig>,
    cluster: RwLock<Option<ClusterId>>,
    members: RwLock<HashMap<MemberId, String>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// Where the sockets live, whoever asks for them.
    runtime: Handle,
}

impl Links {
    pub(crate) fn new(tls: Option<ClientTlsConfig>) -> Links {
        Links {
            tls,
            cluster: RwLock::new(None),
            members: RwLock::new(HashMap::new()),
            channels: Mutex::new(HashMap::new()),
            runtime: Handle::current(),
        }
    }

    /// The channel to an address; it connects at first use and again after each failure.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let bad = |e: tonic::transport::Error| Status::unavailable(format!("bad address `{address}`: {e}"));
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(bad)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(bad)?;
        }
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = {
            let _on = self.runtime.enter();
            endpoint.connect_lazy()
        };
        channels.insert(address.into(), channel.clone());
        Ok(channel)
    }

    /// Notes where a member is now.
    pub(crate) fn learn(&self, member: MemberId, address: &str) {
        let mut members = self.members.write();
        if !address.is_empty() && members.get(&member).is_none_or(|known| known != address) {
            members.insert(member, address.into());
        }
    }

    /// Where a member is, as last heard.
    pub(crate) fn address(&self, member: MemberId) -> Option<String> {
        self.members.read().get(&member).cloned()
    }

    /// Every member heard of, with its address.
    pub(crate) fn members(&self) -> Vec<(MemberId, String)> {
        self.members.read().iter().map(|(member, address)| (*member, address.clone())).collect()
    }

    /// The cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.read()
    }

    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        *self.cluster.write() = Some(cluster);
    }

    /// The cluster's id as messages carry it; empty before it is known.
    pub(crate) fn cluster_bytes(&self) -> bytes::Bytes {
        cluster_bytes(self.cluster())
    }

    /// Refuses a message of another cluster.
    pub(crate) fn check(&self, cluster: &[u8]) -> Result<(), Status> {
        match (self.cluster(), read_cluster(cluster)) {
            (Some(ours), Some(theirs)) if ours == theirs => Ok(()),
            (None, _) => Err(Status::unavailable("this node belongs to no cluster yet")),
            _ => Err(Status::permission_denied("this node belongs to another cluster")),
        }
    }
}

pub(crate) fn cluster_bytes(cluster: Option<ClusterId>) -> bytes::Bytes {
    cluster.map(|id| bytes::Bytes::copy_from_slice(&id.0.to_be_bytes())).unwrap_or_default()
}

pub(crate) fn read_cluster(bytes: &[u8]) -> Option<ClusterId> {
    Some(ClusterId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

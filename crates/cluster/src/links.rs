//! Links to other nodes: one shared gRPC channel per address, under the cluster's certificates.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::ServerName;
use tokio::{runtime::Handle, sync::oneshot};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status,
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

use crate::{
    identity::{CLUSTER_NAME, credentials::Credentials},
    role::{ClusterId, MemberId},
    seam::{self, Socket},
};

/// The largest message between nodes.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;
/// How many addresses keep a channel; beyond it all are made anew at their next use.
const CHANNELS_MAX: usize = 1024;

/// All links of this node.
pub(crate) struct Links {
    tls: Option<Arc<Credentials>>,
    /// The cluster, and how often it was recovered.
    cluster: RwLock<(Option<ClusterId>, u64)>,
    members: RwLock<HashMap<MemberId, String>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// Where the sockets live, whoever asks for them.
    runtime: Handle,
    /// Connections of nodes that the cluster's own authority named, by what ends them.
    living: Arc<Living>,
}

#[derive(Default)]
struct Living {
    nth: AtomicU64,
    by_nth: Mutex<HashMap<u64, (u128, oneshot::Sender<()>)>>,
}

/// Keeps a connection in the list of those that end when their node is removed.
pub(crate) struct Registration {
    nth: u64,
    living: Weak<Living>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(living) = self.living.upgrade() {
            living.by_nth.lock().remove(&self.nth);
        }
    }
}

impl Links {
    pub(crate) fn new(tls: Option<Arc<Credentials>>) -> Links {
        Links {
            living: Arc::default(),
            tls,
            cluster: RwLock::default(),
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
        // The scheme of what the connector below makes, as far as HTTP is concerned.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(bad)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = {
            let _on = self.runtime.enter();
            match self.tls.clone() {
                None if seam::is_simulated() => {
                    endpoint.connect_with_connector_lazy(tower::service_fn(plain))
                }
                None => endpoint.connect_lazy(),
                Some(credentials) => {
                    endpoint.connect_with_connector_lazy(tower::service_fn(move |to: Uri| {
                        secured(to, credentials.clone())
                    }))
                }
            }
        };
        channels.insert(address.into(), channel.clone());
        Ok(channel)
    }

    /// Makes the link to an address anew at its next use: over the one there is nothing came back in time. What was lost
    /// on it TCP sends again after a pause that grows, also when the way is free again; a new connection does not wait.
    pub(crate) fn forget(&self, address: &str) {
        self.channels.lock().remove(address);
    }

    /// Makes all links anew at their next use, with the certificate that is in service then. Streams that are open
    /// go on.
    pub(crate) fn renew(&self) {
        self.channels.lock().clear();
    }

    /// Notes a connection of a node; it is to end when the receiver is ready.
    pub(crate) fn register(&self, key: u128) -> (Registration, oneshot::Receiver<()>) {
        let nth = self.living.nth.fetch_add(1, Ordering::Relaxed);
        let (cut, removed) = oneshot::channel();
        self.living.by_nth.lock().insert(nth, (key, cut));
        (Registration { nth, living: Arc::downgrade(&self.living) }, removed)
    }

    /// Ends all connections of a node.
    pub(crate) fn cut(&self, key: u128) {
        // Without its sender a receiver is ready.
        self.living.by_nth.lock().retain(|_, (of, _)| *of != key);
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
        self.cluster.read().0
    }

    /// How often the cluster was recovered, as far as this node knows.
    pub(crate) fn epoch(&self) -> u64 {
        self.cluster.read().1
    }

    pub(crate) fn set_cluster(&self, cluster: ClusterId, epoch: u64) {
        *self.cluster.write() = (Some(cluster), epoch);
    }

    /// The cluster as messages carry it; empty before it is known.
    pub(crate) fn cluster_bytes(&self) -> bytes::Bytes {
        let (cluster, epoch) = *self.cluster.read();
        cluster_bytes(cluster, epoch)
    }

    /// Refuses a message of another cluster, or of another epoch of this one.
    pub(crate) fn check(&self, cluster: &[u8]) -> Result<(), Status> {
        let (ours, epoch) = *self.cluster.read();
        match (ours, read_cluster(cluster)) {
            (Some(ours), Some(theirs)) if ours == theirs && read_epoch(cluster) == epoch => Ok(()),
            (Some(ours), Some(theirs)) if ours == theirs => {
                Err(Status::permission_denied(of_another_epoch(epoch, read_epoch(cluster))))
            }
            (None, _) => Err(Status::unavailable("this node belongs to no cluster yet")),
            (Some(ours), _) => {
                Err(Status::permission_denied(format!("this node belongs to another cluster, `{ours}`")))
            }
        }
    }
}

/// What a node of one epoch says to one of another.
pub(crate) fn of_another_epoch(ours: u64, theirs: u64) -> String {
    format!("this cluster was recovered: this node is of epoch {ours}, and who asks is of epoch {theirs}")
}

/// Connects without a certificate, where the world is not the real one.
async fn plain(to: Uri) -> io::Result<TokioIo<Socket>> {
    let address = to.authority().map(|authority| authority.as_str()).unwrap_or_default();
    Socket::connect(address).await.map(TokioIo::new)
}

/// Connects under the certificate that is in service now.
async fn secured(to: Uri, credentials: Arc<Credentials>) -> io::Result<TokioIo<TlsStream<Socket>>> {
    let address = to.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let socket = Socket::connect(address).await?;
    socket.set_nodelay()?;
    let name = ServerName::try_from(CLUSTER_NAME).map_err(io::Error::other)?;
    let tls = TlsConnector::from(credentials.client()).connect(name, socket).await?;
    Ok(TokioIo::new(tls))
}

pub(crate) fn cluster_bytes(cluster: Option<ClusterId>, epoch: u64) -> bytes::Bytes {
    let Some(cluster) = cluster else { return bytes::Bytes::new() };
    let mut bytes = cluster.0.to_be_bytes().to_vec();
    // As before there were epochs, for as long as there is no other one.
    if epoch > 0 {
        bytes.extend(epoch.to_be_bytes());
    }
    bytes.into()
}

pub(crate) fn read_cluster(bytes: &[u8]) -> Option<ClusterId> {
    let (cluster, epoch) = bytes.split_at_checked(16)?;
    matches!(epoch.len(), 0 | 8).then_some(())?;
    Some(ClusterId(u128::from_be_bytes(cluster.try_into().ok()?)))
}

/// The epoch behind a cluster's id.
pub(crate) fn read_epoch(bytes: &[u8]) -> u64 {
    let epoch = bytes.get(16..).and_then(|epoch| epoch.try_into().ok());
    epoch.map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_of_another_cluster_or_epoch_is_refused() {
        let (ours, other) = (ClusterId(7), ClusterId(8));
        let links = Links::new(None);
        assert_eq!(links.check(&cluster_bytes(Some(ours), 0)).unwrap_err().code(), tonic::Code::Unavailable);
        // The epoch here, what comes, whether it is taken.
        for (epoch, cluster, theirs, taken) in [
            (0, ours, 0, true),
            (0, ours, 1, false),
            (1, ours, 0, false),
            (1, ours, 1, true),
            (0, other, 0, false),
        ] {
            links.set_cluster(ours, epoch);
            let bytes = cluster_bytes(Some(cluster), theirs);
            assert_eq!((read_cluster(&bytes), read_epoch(&bytes)), (Some(cluster), theirs));
            assert_eq!(links.check(&bytes).is_ok(), taken, "{epoch} {cluster} {theirs}");
        }
        assert_eq!(cluster_bytes(Some(ours), 0).len(), 16, "as versions without epochs write and read it");
        assert!(links.check(b"").is_err() && links.check(&[0; 17]).is_err());
    }

    #[tokio::test]
    async fn a_removed_node_loses_its_connections_and_no_other_does() {
        let links = Links::new(None);
        let (_first, mut firsts) = links.register(1);
        let (_second, mut seconds) = links.register(1);
        let (_other, mut others) = links.register(2);
        let (closed, _) = links.register(1);
        drop(closed);
        assert_eq!(links.living.by_nth.lock().len(), 3);
        links.cut(1);
        assert!((&mut firsts).await.is_err() && (&mut seconds).await.is_err());
        assert_eq!(others.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(links.living.by_nth.lock().len(), 1);
    }

    #[tokio::test]
    async fn behind_a_call_that_nothing_answered_the_next_one_takes_a_new_connection() {
        use proto::membership::{RenewRequest, membership_client::MembershipClient};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let links = Links::new(None);
        let ask = || {
            let mut client = MembershipClient::new(links.channel(&address).unwrap());
            tokio::spawn(async move { client.renew(RenewRequest::default()).await.map(drop) })
        };
        let first = ask();
        let (_silent, _) = listener.accept().await.unwrap();
        first.abort();
        links.forget(&address);
        let second = ask();
        let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await;
        assert!(accepted.is_ok_and(|accepted| accepted.is_ok()), "no new connection");
        second.abort();
    }
}

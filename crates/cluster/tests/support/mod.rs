//! Nodes of a cluster in one process, with their listeners on loopback.
#![allow(dead_code)]

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use cluster::{
    Change, Cluster, ClusterError, Config, ConflictPolicy, Deps, Discovery, NodeId, Roles, Sid, Times,
};
use jid::FullJid;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

pub const BOTH: Roles = Roles { frontend: true, backend: true };
pub const FRONTEND: Roles = Roles { frontend: true, backend: false };
pub const BACKEND: Roles = Roles { frontend: false, backend: true };

/// A bound for everything that is awaited.
pub const SOON: Duration = Duration::from_secs(40);

pub struct Node {
    pub cluster: Arc<Cluster>,
    pub changes: mpsc::Receiver<Change>,
    serving: JoinHandle<()>,
}

/// Where a node of the test that keeps its seeds there listens, at a port of the kernel's choice.
///
/// Tests run side by side. With one address for all of them, the port of a node that was killed
/// can soon belong to another test's cluster, and who still looks for the dead node there refuses to start.
fn listen(seeds: &Path) -> SocketAddr {
    let mut hasher = DefaultHasher::new();
    seeds.parent().hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 0))
}

/// Settings of a node that looks for the others in a file.
pub fn config(seeds: &Path, expect: usize) -> Config {
    Config {
        listen: Some(listen(seeds)),
        expect,
        discovery: Discovery::File(seeds.into()),
        plain: true,
        times: Times::default(),
        ..Config::default()
    }
}

pub fn deps(name: &str, roles: Roles, dir: &Path) -> Deps {
    Deps { name: name.into(), roles, data_dir: dir.join(name) }
}

impl Node {
    pub async fn start(config: Config, deps: Deps) -> Node {
        Node::try_start(config, deps).await.unwrap()
    }

    pub async fn try_start(config: Config, deps: Deps) -> Result<Node, ClusterError> {
        let cluster = Cluster::start(config, deps).await?;
        let changes = cluster.changes();
        let server = cluster.clone();
        let serving = tokio::spawn(async move { server.serve(server.grpc_services()).await.unwrap() });
        Ok(Node { cluster, changes, serving })
    }

    pub async fn ready(&self) -> &Node {
        timeout(SOON, self.cluster.ready()).await.expect("the node is ready in time").unwrap();
        self
    }

    pub fn id(&self) -> NodeId {
        self.cluster.me().0
    }

    /// Ends the node without a word.
    pub async fn kill(self) {
        self.serving.abort();
        let _ = self.serving.await;
        self.cluster.halt().await;
    }

    pub async fn bind(&self, jid: &str) -> Sid {
        let sid = Sid::random();
        self.cluster.bind(&full(jid), sid, ConflictPolicy::Replace).await.unwrap();
        sid
    }

    /// The next change that fits.
    pub async fn change<T>(&mut self, what: &str, fits: impl Fn(Change) -> Option<T>) -> T {
        let found = async {
            loop {
                let change = self.changes.recv().await.expect("the changes go on");
                if let Some(found) = fits(change) {
                    return found;
                }
            }
        };
        timeout(SOON, found).await.unwrap_or_else(|_| panic!("{what} in time"))
    }
}

pub fn full(jid: &str) -> FullJid {
    FullJid::new(jid).unwrap()
}

pub fn write_seeds<'a>(path: &Path, nodes: impl IntoIterator<Item = &'a Node>) {
    let lines: Vec<String> = nodes.into_iter().map(|node| node.cluster.address().to_string()).collect();
    let part = path.with_extension("part");
    std::fs::write(&part, lines.join("\n")).unwrap();
    std::fs::rename(part, path).unwrap();
}

pub fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// Three nodes of both roles that have found each other.
pub async fn three(dir: &Path) -> Vec<Node> {
    let seeds = dir.join("seeds");
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Node::start(config(&seeds, 3), deps(name, BOTH, dir)).await);
    }
    write_seeds(&seeds, &nodes);
    for node in &nodes {
        node.ready().await;
    }
    nodes
}

//! The replicated store in a whole cluster with roles split: three backends and a frontend that keeps nothing.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{
    Cluster, Config, Deps, Discovery, Roles,
    replica::{self, Opened},
};
use store::{Batch, Committed, Engine, Op, Partition, Table, conformance, engines::sled};
use tokio::runtime::{Builder, Runtime};

const T: Table = Table("test");

#[derive(Clone)]
struct Home {
    name: String,
    folder: PathBuf,
    roles: Roles,
    address: String,
    seeds: Vec<String>,
}

/// A node on a runtime of its own, so that stopping it ends its connections as the end of a process does.
struct Node {
    cluster: Arc<Cluster>,
    engine: Arc<dyn Engine>,
    runtime: Runtime,
}

fn homes(root: &Path, backends: usize, frontends: usize) -> Vec<Home> {
    let count = backends + frontends;
    // Bound at once, so that they differ, and then released.
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let home = |number: usize| Home {
        name: format!("n{number}"),
        folder: root.join(format!("n{number}")),
        roles: Roles { frontend: number >= backends, backend: number < backends },
        address: addresses[number].clone(),
        seeds: addresses[..backends].to_vec(),
    };
    (0..count).map(home).collect()
}

impl Home {
    async fn start(&self) -> Node {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let home = self.clone();
        let (cluster, store) = runtime.spawn(async move { home.join().await }).await.unwrap();
        Node { cluster, engine: store.engine, runtime }
    }

    async fn join(&self) -> (Arc<Cluster>, Opened) {
        let config = Config {
            listen: Some(self.address.parse().unwrap()),
            expect: 3,
            discovery: Discovery::Static(self.seeds.clone()),
            plain: true,
            ..Config::default()
        };
        let deps = Deps { name: self.name.clone(), roles: self.roles, data_dir: self.folder.clone() };
        let cluster = Cluster::start(config, deps).await.unwrap();
        let settings = sled::Config { cache_bytes: 4 << 20, ..sled::Config::new(self.folder.join("store")) };
        let store = replica::open(&cluster, settings).await.unwrap();
        let services = store.mount(cluster.grpc_services());
        let serving = cluster.clone();
        tokio::spawn(async move { serving.serve(services).await.unwrap() });
        (cluster, store)
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn write(node: &Node, key: &str) {
    let op = Op::Put { table: T, key: key.into(), value: key.into() };
    let batch =
        Batch { partition: Partition::Account("a@h".into()), expect: vec![], ops: Arc::new(vec![op]) };
    assert_eq!(node.engine.commit(vec![batch], soon()).await, Ok(vec![Committed::Done]), "{key}");
}

async fn has(node: &Node, key: &str) {
    let found = node.engine.get(&Partition::Account("a@h".into()), T, key.as_bytes(), soon()).await;
    let found = found.unwrap().map(|record| (record.version, record.value));
    assert_eq!(found, Some((1, key.as_bytes().to_vec())), "{key}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frontend_keeps_every_promise_and_outlives_any_backend() {
    let root = tempfile::tempdir().unwrap();
    let homes = homes(root.path(), 3, 1);
    let mut nodes = Vec::new();
    for home in &homes {
        nodes.push(home.start().await);
    }
    for node in &nodes {
        let ready = tokio::time::timeout(Duration::from_secs(60), node.cluster.ready()).await;
        ready.expect("the cluster forms in time").unwrap();
    }
    conformance::all(&[nodes[3].engine.clone(), nodes[0].engine.clone()]).await;
    write(&nodes[3], "before").await;
    for (number, home) in homes.iter().enumerate().take(3) {
        // Without a word to the others, as a process that is killed.
        let lost = nodes.remove(number);
        lost.runtime.shutdown_background();
        drop((lost.cluster, lost.engine));
        let key = format!("without {number}");
        write(nodes.last().unwrap(), &key).await;
        let back = home.start().await;
        has(&back, "before").await;
        has(&back, &key).await;
        nodes.insert(number, back);
    }
    for node in nodes {
        node.cluster.stop(Duration::from_secs(1)).await;
        node.runtime.shutdown_background();
    }
}

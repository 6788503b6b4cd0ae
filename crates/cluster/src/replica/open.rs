//! The engine that fits a node's roles: a replica on a backend, a client of the backends elsewhere.

use std::sync::Arc;

use store::{
    Engine, StoreError,
    engines::sled::{Config, Disk, readers::Readers},
};
use tonic::service::Routes;

use super::{backend::Backend, engine::Replica, machine::StoreMachine, remote::Remote, service};
use crate::{cluster::Cluster, error::ClusterError, raft::begin, seam};

/// The name of the Raft group of the store.
const GROUP: &str = "data";

/// The replicated store on this node.
pub struct Opened {
    pub engine: Arc<dyn Engine>,
    /// On a backend: the replica itself.
    pub replica: Option<Arc<Replica>>,
}

impl Opened {
    /// Adds the service that frontends ask to those of the cluster's listener.
    pub fn mount(&self, services: Routes) -> Routes {
        match &self.replica {
            Some(replica) => services.add_service(service::server(replica.clone())),
            None => services,
        }
    }
}

/// Opens the store: on a backend sled in the folder of `config`, kept equal to the others' by Raft; on a
/// frontend a client of the backends, and `config` is not used.
///
/// Call it right after [`Cluster::start`]; calls to the engine wait until the cluster is formed.
pub async fn open(cluster: &Arc<Cluster>, config: Config) -> Result<Opened, ClusterError> {
    let remote = {
        let cluster = cluster.clone();
        Remote::new(move || cluster.backend_channels())
    };
    if !cluster.roles().backend {
        return Ok(Opened { engine: Arc::new(remote), replica: None });
    }
    let failed = |e: StoreError| ClusterError::Raft { group: GROUP.into(), reason: e.to_string() };
    let founder = cluster.sole_founder();
    let opening = seam::blocking(move || {
        let disk = Arc::new(Disk::open(&config)?);
        let readers = Readers::start(&disk, config.readers, config.queue)
            .map_err(|e| StoreError::Engine { reason: format!("failed to start a thread: {e}") })?;
        let machine = match founder {
            Some((member, address)) => {
                let place = begin::after_alone(member, &address).encode();
                StoreMachine::open_founded(disk.clone(), &place)?
            }
            None => StoreMachine::open(disk.clone())?,
        };
        Ok((disk, readers, machine))
    });
    let (disk, readers, machine) = opening
        .await
        .unwrap_or_else(|e| Err(StoreError::Engine { reason: e.to_string() }))
        .map_err(failed)?;
    let group = cluster.open_group(GROUP, Box::new(machine)).await?;
    let replica = Arc::new(Replica::new(Box::new(group), disk, readers));
    let engine = Arc::new(Backend::new(replica.clone(), remote));
    Ok(Opened { engine, replica: Some(replica) })
}

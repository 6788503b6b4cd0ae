//! The store of a node, by its engine.

use std::{sync::Arc, time::Duration};

use cluster::Cluster;
use store::{Store, engines::sled as disk};
use tonic::service::Routes;

use super::Failure;
use crate::config::{Settings, settings::Engine};

/// The store, and what must be closed with it.
pub struct Storage {
    /// What modules and accounts are kept in.
    pub store: Store,
    below: Below,
}

enum Below {
    Memory,
    Sled(Arc<disk::Sled>),
    Replicated(cluster::replica::Opened),
}

/// Where a node's store is on the disk, and what it may take.
pub fn on_disk(settings: &Settings) -> disk::Config {
    disk::Config {
        path: settings.node.data_dir.join("store"),
        cache_bytes: settings.store.cache_bytes,
        layer_bytes: settings.store.layer_bytes,
        readers: settings.store.readers,
        queue: settings.store.queue,
        reserve_bytes: settings.store.reserve_bytes,
    }
}

/// Opens the store of a node.
pub async fn open(settings: &Settings, cluster: &Arc<Cluster>) -> Result<Storage, Failure> {
    let config = on_disk(settings);
    match settings.engine {
        Engine::Memory => Ok(Storage { store: Store::memory(), below: Below::Memory }),
        Engine::Sled => {
            // recovery reads the disk: not for a thread that others wait for
            let opened = tokio::task::spawn_blocking(move || disk::Sled::open(&config)).await??;
            let sled = Arc::new(opened);
            Ok(Storage { store: Store::new(sled.clone()), below: Below::Sled(sled) })
        }
        Engine::Replicated => {
            let opened = cluster::replica::open(cluster, config).await?;
            Ok(Storage { store: Store::new(opened.engine.clone()), below: Below::Replicated(opened) })
        }
    }
}

impl Storage {
    /// Adds what other nodes may ask of this one's store.
    pub fn mount(&self, links: Routes) -> Routes {
        match &self.below {
            Below::Replicated(opened) => opened.mount(links),
            _ => links,
        }
    }

    /// Lets the engine end its work and release its files, if nobody else holds it, within a bound.
    pub async fn close(self, within: Duration) {
        drop(self.store);
        let closed = match self.below {
            Below::Memory => return,
            Below::Sled(sled) => match Arc::into_inner(sled) {
                Some(sled) => tokio::task::spawn_blocking(move || sled.close()),
                None => return,
            },
            Below::Replicated(opened) => match opened.replica {
                // What is not on the disk yet would be applied from the log at the next start.
                Some(replica) => tokio::task::spawn_blocking(move || drop(replica.disk().sync())),
                None => return,
            },
        };
        let _ = tokio::time::timeout(within, closed).await;
    }
}

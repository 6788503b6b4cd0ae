//! What every connection of the node shares: settings, the rest of the server, counters.

use std::sync::Arc;
use std::time::Duration;

use crate::claims::Claims;
use hooks::{Accounts, Registry, Services};
use router::Router;
use tokio::sync::watch;

use crate::config::Config;
use crate::counters::Counters;
use crate::gate::Gate;
use crate::passwords::Passwords;
use crate::table::Table;
use crate::tls::TlsStore;

/// One per node, shared by all arbiters.
pub(crate) struct World {
    pub config: Config,
    pub tls: Arc<TlsStore>,
    pub router: Arc<Router>,
    pub services: Arc<dyn Services>,
    pub registry: Arc<Registry>,
    pub claims: Arc<dyn Claims>,
    pub accounts: Accounts,
    pub passwords: Passwords,
    pub gate: Arc<Gate>,
    pub counters: Arc<Counters>,
    pub table: Table,
    /// Whether this node holds its lease, as the changes of the cluster tell it.
    pub serving: watch::Receiver<bool>,
    /// Whether listeners accept; false ends whoever is not bound yet.
    pub open: watch::Receiver<bool>,
}

/// How often a fenced connection looks at the lease itself, should a change have come too early to be seen.
const LOOK: Duration = Duration::from_millis(200);

impl World {
    /// Waits while this node has lost its lease: nothing is delivered and nothing read meanwhile.
    pub(crate) async fn serving(&self) {
        // The cluster has the first and the last word; the channel only shortens the wait.
        while !self.claims.is_serving() {
            let mut serving = self.serving.clone();
            let _ = tokio::time::timeout(LOOK, serving.changed()).await;
        }
    }

    /// Waits until the node stops.
    pub(crate) async fn closing(&self) {
        let mut open = self.open.clone();
        // The sender lives as long as the listeners; without it the node stops as well.
        let _ = open.wait_for(|open| !open).await;
    }
}

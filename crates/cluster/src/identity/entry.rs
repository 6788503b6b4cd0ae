//! How a node comes by the certificate of its links when it starts.

use std::time::Duration;

use super::{
    credentials::{self, Security},
    joining::{self, Ticket},
    kept::Kept,
};
use crate::{
    birth::Certificate,
    cluster::Deps,
    config::{Config, Discovery, Join},
    discovery,
    error::ClusterError,
};

/// Between attempts to join.
const JOIN_AGAIN: Duration = Duration::from_secs(1);

/// Reads the certificates of the links. A node that has none yet joins with its token, or makes the authority if
/// it is the first of its cluster.
pub(crate) async fn secured(
    config: &Config,
    deps: &Deps,
    kept: &Kept,
    address: &str,
) -> Result<Security, ClusterError> {
    let managed = !config.plain && config.tls.is_none() && config.listen.is_some();
    let lifetime = Duration::from_secs(config.certificate_lifetime_s);
    if managed && !kept.exists() {
        let disk = |e: std::io::Error| ClusterError::Disk { path: deps.data_dir.clone(), source: e.into() };
        let birth = Certificate::open(&deps.data_dir.join("cluster")).map_err(disk)?;
        let alone = config.discovery == Discovery::None && config.expect == 1 && deps.roles.backend;
        if let Some(join) = &config.join {
            let joined = knock(config, deps, join).await?;
            tracing::info!(cluster = %joined.cluster, name = joined.name, "joined a cluster by a token");
        } else if joining::is_first(&birth, alone) {
            let made = joining::init(&deps.data_dir, address, deps.roles, lifetime)?;
            tracing::warn!(cluster = %made.cluster, "made the certificate authority of a new cluster: other nodes come in by `rookery cluster token`");
        }
    }
    if managed && kept.exists() {
        joining::sign_own(kept, lifetime)?;
    }
    credentials::security(config, kept)
}

/// Knocks until somebody answers: nodes start in any order.
async fn knock(config: &Config, deps: &Deps, join: &Join) -> Result<joining::Joined, ClusterError> {
    let text = match join {
        Join::Token(text) => text.clone(),
        Join::File(path) => std::fs::read_to_string(path)
            .map_err(|e| ClusterError::Disk { path: path.clone(), source: e.into() })?,
    };
    let ticket = Ticket::parse(&text)?;
    let discovery = discovery::source(&config.discovery);
    let mut told = String::new();
    loop {
        let seeds = discovery.seeds().await.unwrap_or_default();
        match joining::join(&deps.data_dir, &ticket, &seeds, deps.roles).await {
            Err(ClusterError::Unreachable(reason)) => {
                if told != reason {
                    tracing::warn!(reason, "waiting for a node of the cluster to let this one in");
                    told = reason;
                }
                tokio::time::sleep(JOIN_AGAIN).await;
            }
            ended => return ended,
        }
    }
}

//! What a node tells: at its start to whoever started it, and about its sessions to operators.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use proto::admin;
use session::Listeners;
use store::Accounts;

use crate::{admin::LocalSessions, config::Settings};

/// How long the start waits for the store to say whether there are accounts.
const LOOK: Duration = Duration::from_secs(2);

/// The client side, once it has started.
pub type SharedListeners = Arc<OnceLock<Arc<Listeners>>>;

/// Connections of this node's sessions, by session id.
pub fn local_sessions(listeners: SharedListeners) -> LocalSessions {
    Arc::new(move |account| {
        let Some(listeners) = listeners.get() else { return HashMap::new() };
        let now = SystemTime::now();
        let line = |facts: session::SessionFacts| {
            let connection = admin::Connection {
                peer_address: facts.peer.to_string(),
                age_s: now.duration_since(facts.since).unwrap_or_default().as_secs(),
                tls: facts.tls.unwrap_or_default().to_owned(),
                mechanism: facts.mechanism.to_string(),
                queued: facts.queued as u64,
            };
            (cluster::Sid(facts.sid), connection)
        };
        let mut sessions = listeners.sessions();
        sessions.retain(|facts| account.is_empty() || facts.jid.to_bare().as_str() == account);
        sessions.into_iter().map(line).collect()
    })
}

/// Says in the log that the node serves, and prints what listens where and the next command to type.
pub async fn announce(settings: &Settings, made: Option<&Path>, accounts: &Accounts) {
    let list =
        |all: &[std::net::SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        hosts = settings.hosts.join(","),
        name = settings.node.name,
        "serving"
    );
    if settings.log.json {
        // whoever reads JSON often reads stdout together with stderr, and has no use for a table
        return;
    }
    println!("rookery {} serves {}", env!("CARGO_PKG_VERSION"), settings.hosts.join(", "));
    let line = |what: &str, value: String| {
        if !value.is_empty() {
            println!("  {what:<22}{value}");
        }
    };
    if settings.node.frontend {
        line("clients, STARTTLS", list(&settings.session.c2s.listen));
        line("clients, direct TLS", list(&settings.session.c2s.direct_tls_listen));
    }
    let plain = match (settings.cluster.plain, &settings.cluster.tls) {
        (true, _) => " (plain links, loopback only)",
        (false, Some(_)) => " (mutual TLS)",
        (false, None) => " (mutual TLS, certificates of the cluster itself)",
    };
    line("other nodes", settings.cluster.listen.map(|a| format!("{a}{plain}")).unwrap_or_default());
    line("admin (gRPC)", settings.admin_listen.to_string());
    let metrics = settings.metrics_listen.map(|a| format!("http://{a}/metrics"));
    line("metrics", metrics.unwrap_or_default());
    line("data", settings.node.data_dir.display().to_string());
    line("certificate", made.map(|p| format!("{} (self-signed)", p.display())).unwrap_or_default());
    println!("next: {}", next(settings, accounts).await);
}

/// Says in the log how this node's links to others are secured.
pub fn links(settings: &Settings) {
    let Some(listen) = settings.cluster.listen else { return };
    match settings.cluster.plain {
        true => {
            tracing::warn!(%listen, "links to other nodes are plain: whoever reaches this loopback port is taken for a node")
        }
        false => tracing::info!(%listen, "links to other nodes are secured by mutual TLS"),
    }
}

/// The command that a newcomer needs next.
async fn next(settings: &Settings, accounts: &Accounts) -> String {
    let host = settings.hosts.first().map_or("localhost", String::as_str);
    let admin = format!("http://{}", settings.admin_listen);
    let admin = if admin == crate::cli::ADMIN_URL { String::new() } else { format!(" --admin {admin}") };
    let any = tokio::time::timeout(LOOK, accounts.list(host, None, 1)).await;
    match any {
        Ok(Ok(list)) if list.is_empty() => format!("rookery user add alice@{host}{admin}"),
        _ => format!("rookery cluster status{admin}"),
    }
}

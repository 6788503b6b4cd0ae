//! The ports of a node, taken before anything else so that a port in use is told at once, with its key.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

use crate::config::Settings;

/// A port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("port {port} is in use: failed to listen on `{address}` (`{key}`)")]
    Taken { port: u16, address: SocketAddr, key: &'static str },
    #[error("failed to listen on `{address}` (`{key}`): {source}")]
    Refused { address: SocketAddr, key: &'static str, source: io::Error },
}

/// The ports that the node itself serves.
pub struct Ports {
    /// `admin.listen`
    pub admin: TcpListener,
    /// `metrics.listen`
    pub metrics: Option<TcpListener>,
}

/// Takes the node's own ports, and makes sure that the clients' and the cluster's can be had.
pub async fn bind(settings: &Settings) -> Result<Ports, PortError> {
    // these are opened later by the parts that own them, the clients' ones by several threads at a time, which
    // the system would also allow beside another server: so it is tried without that permission first
    if settings.node.frontend {
        for address in &settings.session.c2s.listen {
            listen(*address, "c2s.listen").await?;
        }
        for address in &settings.session.c2s.direct_tls_listen {
            listen(*address, "c2s.direct_tls_listen").await?;
        }
    }
    if let Some(address) = settings.cluster.listen {
        listen(address, "cluster.listen").await?;
    }
    let admin = listen(settings.admin_listen, "admin.listen").await?;
    let metrics = match settings.metrics_listen {
        Some(address) => Some(listen(address, "metrics.listen").await?),
        None => None,
    };
    Ok(Ports { admin, metrics })
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, PortError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => PortError::Taken { port: address.port(), address, key },
        _ => PortError::Refused { address, key, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let text = format!(
            "[c2s]\nlisten = [\"{address}\"]\ndirect_tls_listen = []\n[admin]\nlisten = \"127.0.0.1:0\"\n"
        );
        let settings = config::parse("a.toml", &text, &[]).unwrap();
        let error = bind(&settings).await.err().unwrap().to_string();
        let port = address.port();
        assert_eq!(error, format!("port {port} is in use: failed to listen on `{address}` (`c2s.listen`)"));
    }
}

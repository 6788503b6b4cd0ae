//! What the demo starts: nodes, their roles, ports and config files.

use std::{
    fmt::Write,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

/// Ports that one node takes, in a row.
const PORTS: u16 = 5;

/// One node to be.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether clients can connect to it.
    pub frontend: bool,
    /// Whether it keeps data.
    pub backend: bool,
    /// First of its ports.
    base: u16,
}

impl Node {
    pub fn c2s(&self) -> SocketAddr {
        self.at(0)
    }
    pub fn direct_tls(&self) -> SocketAddr {
        self.at(1)
    }
    pub fn cluster(&self) -> SocketAddr {
        self.at(2)
    }
    pub fn admin(&self) -> SocketAddr {
        self.at(3)
    }
    pub fn metrics(&self) -> SocketAddr {
        self.at(4)
    }

    fn at(&self, n: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base + n))
    }

    /// URL of its admin service.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin())
    }

    /// Its roles as the config has them.
    pub fn roles(&self) -> Vec<&'static str> {
        let named = [(self.frontend, "frontend"), (self.backend, "backend")];
        named.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }

    /// What listens, with the purpose of each.
    fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let clients = [("clients", self.c2s()), ("clients with direct TLS", self.direct_tls())];
        let mut all: Vec<_> = clients.into_iter().filter(|_| self.frontend).collect();
        all.extend([("cluster", self.cluster()), ("admin", self.admin()), ("metrics", self.metrics())]);
        all
    }
}

/// Why the demo cannot begin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("--base-port {base} is too high: {count} nodes need the ports up to {last}")]
    TooHigh { base: u16, count: usize, last: u32 },
    #[error("port {port} ({purpose} of {node}) is in use: choose other ports with --base-port")]
    Taken { port: u16, purpose: &'static str, node: String },
    #[error("failed to listen on {address} ({purpose} of {node}): {reason}")]
    Refused { address: SocketAddr, purpose: &'static str, node: String, reason: String },
}

/// Three nodes that are both, or three backends with two frontends.
pub fn nodes(split: bool, base: u16) -> Result<Vec<Node>, PlanError> {
    let kinds: Vec<(String, bool, bool)> = if split {
        let backends = (1..=3).map(|n| (format!("backend{n}"), false, true));
        backends.chain((1..=2).map(|n| (format!("frontend{n}"), true, false))).collect()
    } else {
        (1..=3).map(|n| (format!("node{n}"), true, true)).collect()
    };
    let count = kinds.len();
    let last = u32::from(base) + count as u32 * u32::from(PORTS) - 1;
    if last > u32::from(u16::MAX) {
        return Err(PlanError::TooHigh { base, count, last });
    }
    let node = |(i, (name, frontend, backend)): (usize, (String, bool, bool))| Node {
        name,
        frontend,
        backend,
        base: base + i as u16 * PORTS,
    };
    Ok(kinds.into_iter().enumerate().map(node).collect())
}

/// Fails where a port of the plan cannot be listened on.
pub fn check_ports(nodes: &[Node]) -> Result<(), PlanError> {
    for node in nodes {
        for (purpose, address) in node.listeners() {
            if let Err(e) = TcpListener::bind(address) {
                let (node, port) = (node.name.clone(), address.port());
                return Err(match e.kind() {
                    io::ErrorKind::AddrInUse => PlanError::Taken { port, purpose, node },
                    _ => PlanError::Refused { address, purpose, node, reason: e.to_string() },
                });
            }
        }
    }
    Ok(())
}

/// The config of a node of the demo.
pub fn config(node: &Node, all: &[Node], folder: &Path, cert: &Path, key: &Path) -> String {
    let quoted = |path: &Path| toml_edit::Value::from(path.display().to_string()).to_string();
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let seeds = all.iter().filter(|n| n.backend).map(|n| format!("\"{}\"", n.cluster())).collect();
    let roles = node.roles().iter().map(|r| format!("\"{r}\"")).collect();
    let backends = all.iter().filter(|n| n.backend).count();
    let mut text = String::from("# Made by `rookery demo`.\nhosts = [\"localhost\"]\n");
    let _ = writeln!(
        text,
        "\n[node]\nname = \"{}\"\nroles = {}\ndata_dir = {}",
        node.name,
        list(roles),
        quoted(&data_dir(folder, node))
    );
    if node.frontend {
        let _ = writeln!(
            text,
            "\n[c2s]\nlisten = [\"{}\"]\ndirect_tls_listen = [\"{}\"]\n\n[tls]\ncert = {}\nkey = {}",
            node.c2s(),
            node.direct_tls(),
            quoted(cert),
            quoted(key)
        );
    }
    let _ = writeln!(
        text,
        "\n[admin]\nlisten = \"{}\"\n\n[metrics]\nlisten = \"{}\"",
        node.admin(),
        node.metrics()
    );
    let _ = writeln!(
        text,
        "\n[cluster]\nlisten = \"{}\"\nexpect = {backends}\nplain = true\ndiscovery = {{ static = {} }}",
        node.cluster(),
        list(seeds)
    );
    text
}

fn data_dir(folder: &Path, node: &Node) -> PathBuf {
    folder.join(&node.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configs_of_the_demo_are_accepted() {
        for split in [false, true] {
            let all = nodes(split, 15222).unwrap();
            for node in &all {
                let text = config(
                    node,
                    &all,
                    Path::new("/tmp/a b"),
                    Path::new("/tmp/a b/c.pem"),
                    Path::new("/tmp/k"),
                );
                if let Err(faults) = crate::config::parse(&node.name, &text, &[]) {
                    panic!("{faults}");
                }
            }
        }
    }

    #[test]
    fn a_port_in_use_is_named_with_its_purpose() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let node = Node { name: "node1".into(), frontend: true, backend: true, base: port - 2 };
        // the neighbours may be taken as well, by whoever else runs here
        if let Err(PlanError::Taken { port: told, purpose, node }) = check_ports(&[node])
            && told == port
        {
            assert_eq!((purpose, node.as_str()), ("cluster", "node1"));
        }
        let last = Node { name: "node1".into(), frontend: false, backend: true, base: port - 2 };
        assert!(check_ports(&[last]).is_err());
    }

    #[test]
    fn ports_beyond_the_last_one_are_refused() {
        assert!(matches!(nodes(true, 65530), Err(PlanError::TooHigh { last: 65554, .. })));
    }
}

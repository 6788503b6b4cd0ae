//! The settings of a node, typed, as the parts of the server take them.

use std::{net::SocketAddr, path::PathBuf};

use toml_edit::Value;

use super::read::{self, Faults, Found, Values};

/// Everything that a config says, with defaults where it says nothing.
#[derive(Debug)]
pub struct Settings {
    /// The domains served, prepared.
    pub hosts: Vec<String>,
    /// `[node]`
    pub node: Node,
    /// `[c2s]`, `[tls]` and their part of `[limits]`; where no certificate is given its paths are empty.
    pub session: session::Config,
    /// `[admin] listen`
    pub admin_listen: SocketAddr,
    /// `[cluster]`; none for a single node.
    pub cluster: Option<Cluster>,
    /// `[store] engine`
    pub engine: Engine,
    /// `[log]`
    pub log: Log,
    /// `[metrics] listen`
    pub metrics_listen: Option<SocketAddr>,
    /// `[limits]`
    pub limits: Limits,
    /// `[modules.NAME]`
    pub modules: Vec<(String, Vec<(String, Found)>)>,
}

/// `[node]`
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub frontend: bool,
    pub backend: bool,
    pub data_dir: PathBuf,
}

/// Paths of a certificate chain and its private key.
#[derive(Debug, Clone)]
pub struct Pem {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// `[cluster]`
#[derive(Debug)]
pub struct Cluster {
    pub listen: SocketAddr,
    pub advertise: String,
    pub expect: usize,
    pub discovery: Option<Discovery>,
    /// Certificates of the links; none where they are plain.
    pub links: Option<Links>,
}

/// Certificates of mTLS links.
#[derive(Debug, Clone)]
pub struct Links {
    pub own: Pem,
    pub ca: PathBuf,
}

/// How other nodes are found.
#[derive(Debug, Clone)]
pub enum Discovery {
    Static(Vec<String>),
    Dns(String),
    File(PathBuf),
}

/// Where data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sled,
    Memory,
    Replicated,
}

/// `[log]`
#[derive(Debug)]
pub struct Log {
    pub json: bool,
    pub filter: String,
}

/// `[limits]`, each as its key says.
#[derive(Debug, Clone)]
pub struct Limits {
    pub before_auth_stanza_bytes: usize,
    pub before_auth_elements: usize,
    pub before_auth_depth: usize,
    pub stanza_bytes: usize,
    pub stanza_elements: usize,
    pub stanza_depth: usize,
    pub attributes: usize,
    pub mailbox_stanzas: usize,
    pub mailbox_bytes: usize,
}

impl Settings {
    /// The settings that checked values make.
    pub fn of(values: &Values) -> Result<Settings, Faults> {
        let v = Typed(values);
        Ok(Settings {
            hosts: v.texts("hosts").iter().filter_map(|h| read::domain(h).ok()).collect(),
            node: v.node(),
            session: v.session(),
            admin_listen: v.address("admin.listen").expect("has a default"),
            cluster: values.any_below("cluster").then(|| v.cluster()),
            engine: v.engine(),
            log: Log {
                json: v.text("log.format").is_some_and(|f| f == "json"),
                filter: v.text("log.filter").unwrap_or_default(),
            },
            metrics_listen: v.address("metrics.listen"),
            limits: v.limits(),
            modules: v.modules(),
        })
    }
}

/// Reads checked values by type.
struct Typed<'a>(&'a Values);

impl Typed<'_> {
    fn flag(&self, path: &str) -> Option<bool> {
        self.0.value(path)?.as_bool()
    }

    fn count(&self, path: &str) -> usize {
        let value = self.0.value(path).and_then(|v| v.as_integer());
        // the table of keys gives each bound a default and a range above 0
        value.and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| panic!("`{path}` is a count"))
    }

    fn text(&self, path: &str) -> Option<String> {
        self.0.value(path)?.as_str().map(str::to_owned)
    }

    fn texts(&self, path: &str) -> Vec<String> {
        let value = self.0.value(path);
        let list = value.as_ref().and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect()
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    fn address(&self, path: &str) -> Option<SocketAddr> {
        read::address(&self.text(path)?).ok()
    }

    fn addresses(&self, path: &str) -> Vec<SocketAddr> {
        self.texts(path).iter().filter_map(|t| read::address(t).ok()).collect()
    }

    fn pem(&self, cert: &str, key: &str) -> Option<Pem> {
        Some(Pem { cert: self.path(cert)?, key: self.path(key)? })
    }

    fn node(&self) -> Node {
        let roles = self.texts("node.roles");
        Node {
            name: self.text("node.name").unwrap_or_else(machine_name),
            frontend: roles.iter().any(|r| r == "frontend"),
            backend: roles.iter().any(|r| r == "backend"),
            data_dir: self.path("node.data_dir").unwrap_or_else(|| PathBuf::from("data")),
        }
    }

    fn session(&self) -> session::Config {
        let number = |name: &str| self.count(&format!("limits.{name}")) as u64;
        session::Config {
            c2s: session::C2s {
                listen: self.addresses("c2s.listen"),
                direct_tls_listen: self.addresses("c2s.direct_tls_listen"),
                tls_required: self.flag("c2s.tls_required").unwrap_or(true),
                arbiters: self.count("c2s.arbiters"),
                ..session::C2s::default()
            },
            tls: session::TlsFiles {
                cert: self.path("tls.cert").unwrap_or_default(),
                key: self.path("tls.key").unwrap_or_default(),
            },
            limits: session::Limits {
                connections: number("connections") as usize,
                connections_per_address: number("connections_per_address") as usize,
                accepts_per_address_per_second: number("accepts_per_address_per_second") as u32,
                limit_loopback: self.flag("limits.limit_loopback").unwrap_or_default(),
                sessions_per_account: number("sessions_per_account") as usize,
                first_byte_timeout_s: number("first_byte_timeout_s"),
                header_timeout_s: number("header_timeout_s"),
                tls_handshake_timeout_s: number("tls_handshake_timeout_s"),
                login_timeout_s: number("login_timeout_s"),
                stanza_timeout_s: number("stanza_timeout_s"),
                write_timeout_s: number("write_timeout_s"),
                peer_timeout_s: number("peer_timeout_s"),
                linger_ms: number("linger_ms"),
                stop_timeout_s: number("stop_timeout_s"),
                password_threads: number("password_threads") as usize,
                password_queue: number("password_queue") as usize,
                reply_bytes: number("reply_bytes") as usize,
                write_bytes: number("write_bytes") as usize,
            },
        }
    }

    fn cluster(&self) -> Cluster {
        let discovery = if self.0.said("cluster.discovery.static").is_some() {
            Some(Discovery::Static(self.texts("cluster.discovery.static")))
        } else if let Some(name) = self.text("cluster.discovery.dns") {
            Some(Discovery::Dns(name))
        } else {
            self.path("cluster.discovery.file").map(Discovery::File)
        };
        let listen = self.address("cluster.listen").expect("has a default");
        // a cluster that was meant to find others must not come into being as one of one
        let expect = match self.0.said("cluster.expect") {
            Some(_) => self.count("cluster.expect"),
            None if discovery.is_some() => 3,
            None => 1,
        };
        Cluster {
            listen,
            advertise: self.text("cluster.advertise").unwrap_or_else(|| listen.to_string()),
            expect,
            discovery,
            links: self
                .pem("cluster.cert", "cluster.key")
                .and_then(|own| Some(Links { own, ca: self.path("cluster.ca")? })),
        }
    }

    fn engine(&self) -> Engine {
        match self.text("store.engine").as_deref() {
            Some("sled") => Engine::Sled,
            Some("memory") => Engine::Memory,
            Some("replicated") => Engine::Replicated,
            _ if self.0.any_below("cluster") => Engine::Replicated,
            _ => Engine::Sled,
        }
    }

    fn limits(&self) -> Limits {
        let count = |name: &str| self.count(&format!("limits.{name}"));
        Limits {
            before_auth_stanza_bytes: count("before_auth_stanza_bytes"),
            before_auth_elements: count("before_auth_elements"),
            before_auth_depth: count("before_auth_depth"),
            stanza_bytes: count("stanza_bytes"),
            stanza_elements: count("stanza_elements"),
            stanza_depth: count("stanza_depth"),
            attributes: count("attributes"),
            mailbox_stanzas: count("mailbox_stanzas"),
            mailbox_bytes: count("mailbox_bytes"),
        }
    }

    fn modules(&self) -> Vec<(String, Vec<(String, Found)>)> {
        let keys = |m: &read::Module| m.keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        self.0.modules.iter().map(|(name, module)| (name.clone(), keys(module))).collect()
    }
}

/// Name of this machine, up to the first dot.
fn machine_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is writable for its whole length, and the call stays within it.
    let failed = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) } != 0;
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    let name = String::from_utf8_lossy(&buffer[..end]);
    match name.split('.').next() {
        Some(name) if !failed && !name.is_empty() => name.to_owned(),
        _ => "rookery".to_owned(),
    }
}

//! The settings of a node, typed, as the parts of the server take them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, de::DeserializeOwned};
use toml_edit::Value;

use super::{
    combinations,
    keys::{self, Form},
    modules,
    read::{self, Faults, Values},
};

/// Everything that a config says, with defaults where it says nothing.
#[derive(Debug)]
pub struct Settings {
    /// The domains served, prepared.
    pub hosts: Vec<String>,
    /// `[accounts] admins`
    pub admins: Vec<jid::BareJid>,
    /// `[node]`
    pub node: Node,
    /// `[c2s]`, `[tls]` and their part of `[limits]`; where no certificate is given its paths are empty.
    pub session: session::Config,
    /// `[admin] listen`
    pub admin_listen: SocketAddr,
    /// `[cluster]`; without an address to listen on for a single node.
    pub cluster: cluster::Config,
    /// `[store] engine`
    pub engine: Engine,
    /// The other keys of `[store]`.
    pub store: DiskSettings,
    /// `[log]`
    pub log: Log,
    /// `[metrics] listen`
    pub metrics_listen: Option<SocketAddr>,
    /// `[web]`
    pub web: Web,
    /// The keys of `[limits]` about queues and relays.
    pub router: router::Config,
    /// `[modules.NAME]`
    pub modules: xeps::ModulesConfig,
}

/// `[node]`
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub frontend: bool,
    pub backend: bool,
    pub data_dir: PathBuf,
    pub leaving: Leaving,
}

/// The keys of `[node]` about a node that drains or stops.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Leaving {
    pub shutdown_s: u64,
    pub drain_rate: u32,
    pub drain_notice_s: u64,
}

/// `[web]`: what a proxy in front of the server offers.
#[derive(Debug)]
pub struct Web {
    /// URLs, with `{host}` in them where the host is to stand.
    pub websocket: Option<String>,
    pub bosh: Option<String>,
    pub addresses: Vec<IpAddr>,
}

/// Where data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sled,
    Memory,
    Replicated,
}

/// `[store]` without the engine: what a store on disk may take.
#[derive(Debug, Deserialize)]
pub struct DiskSettings {
    pub cache_bytes: u64,
    pub layer_bytes: usize,
    pub readers: usize,
    pub queue: usize,
    pub reserve_bytes: u64,
}

/// `[log]`
#[derive(Debug)]
pub struct Log {
    pub json: bool,
    pub filter: String,
}

impl Settings {
    /// The settings that checked values make.
    pub fn of(values: &Values) -> Result<Settings, Faults> {
        let v = Typed(values);
        let hosts = v.domains("hosts");
        let mut faults = Vec::new();
        let mut modules = modules::read(values, &hosts, &mut faults);
        let admins = v.people("accounts.admins");
        // Whoever took the name of one would be one.
        let names = admins.iter().filter_map(|admin| admin.node().map(|name| name.as_str().to_owned()));
        modules.reserved = v.texts("accounts.reserved").into_iter().chain(names).collect();
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        Ok(Settings {
            hosts,
            admins,
            node: v.node(),
            session: v.session(),
            admin_listen: v.address("admin.listen").expect("has a default"),
            cluster: v.cluster(),
            engine: v.engine(),
            store: v.part("store"),
            log: Log {
                json: v.text("log.format").is_some_and(|f| f == "json"),
                filter: v.text("log.filter").unwrap_or_default(),
            },
            metrics_listen: v.address("metrics.listen"),
            web: Web {
                websocket: v.text("web.websocket"),
                bosh: v.text("web.bosh"),
                addresses: v.texts("web.addresses").iter().filter_map(|ip| ip.parse().ok()).collect(),
            },
            router: v.part("limits"),
            modules,
        })
    }
}

/// Reads checked values by type.
struct Typed<'a>(&'a Values);

impl Typed<'_> {
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

    /// Accounts, prepared as in addresses.
    fn people(&self, path: &str) -> Vec<jid::BareJid> {
        self.texts(path).iter().filter_map(|account| read::person(account).ok()).collect()
    }

    /// Names of hosts, prepared as in addresses.
    fn domains(&self, path: &str) -> Vec<String> {
        self.texts(path).iter().filter_map(|host| read::domain(host).ok()).collect()
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    fn address(&self, path: &str) -> Option<SocketAddr> {
        read::address(&self.text(path)?).ok()
    }

    fn node(&self) -> Node {
        let roles = self.texts("node.roles");
        Node {
            name: self.text("node.name").unwrap_or_else(machine_name),
            frontend: roles.iter().any(|r| r == "frontend"),
            backend: roles.iter().any(|r| r == "backend"),
            data_dir: self.path("node.data_dir").unwrap_or_else(|| PathBuf::from("data")),
            leaving: self.part("node"),
        }
    }

    fn session(&self) -> session::Config {
        session::Config {
            c2s: self.part("c2s"),
            auth: session::Auth {
                anonymous_hosts: self.domains("auth.anonymous_hosts"),
                ..self.part("auth")
            },
            tls: session::Tls {
                files: session::TlsFiles {
                    cert: self.path("tls.cert").unwrap_or_default(),
                    key: self.path("tls.key").unwrap_or_default(),
                },
                hosts: self.certified_hosts(),
                ..self.part("tls")
            },
            limits: self.part("limits"),
        }
    }

    /// `[tls.hosts."NAME"]`, by prepared name.
    fn certified_hosts(&self) -> BTreeMap<String, session::TlsFiles> {
        let path = |host: &read::Module, key: &str| {
            host.keys.get(key).and_then(|found| found.value.as_str()).map(PathBuf::from).unwrap_or_default()
        };
        let files = |host| session::TlsFiles { cert: path(host, "cert"), key: path(host, "key") };
        let hosts = self.0.tls_hosts.iter();
        hosts.filter_map(|(name, host)| Some((read::domain(name).ok()?, files(host)))).collect()
    }

    /// The settings of a crate, from the keys directly below a table. That each of its fields has a key, with
    /// the same default, is held by a test.
    fn part<T: DeserializeOwned>(&self, table: &str) -> T {
        let mut fields = serde_json::Map::new();
        for key in keys::KEYS {
            let Some(name) = key.path.strip_prefix(table).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            if let Some(value) = self.0.value(key.path) {
                fields.insert(name.to_owned(), json(key.form, &value));
            }
        }
        let made = serde_json::from_value(fields.into());
        // the table of keys has checked each value more strictly than a type does
        made.unwrap_or_else(|e| panic!("keys of `{table}` do not make its settings: {e}"))
    }

    fn cluster(&self) -> cluster::Config {
        if !self.0.any_below("cluster") {
            return cluster::Config::default();
        }
        let discovery = if self.0.said("cluster.discovery.static").is_some() {
            cluster::Discovery::Static(self.texts("cluster.discovery.static"))
        } else if let Some(name) = self.text("cluster.discovery.dns") {
            cluster::Discovery::Dns(name)
        } else {
            let file = self.path("cluster.discovery.file");
            file.map_or(cluster::Discovery::None, cluster::Discovery::File)
        };
        // a cluster that was meant to find others must not come into being as one of one
        let expect = match self.0.said("cluster.expect") {
            Some(_) => self.count("cluster.expect"),
            None if discovery != cluster::Discovery::None => 3,
            None => 1,
        };
        let tls = || {
            Some(cluster::TlsFiles {
                ca: self.path("cluster.ca")?,
                cert: self.path("cluster.cert")?,
                key: self.path("cluster.key")?,
            })
        };
        let tls = tls();
        cluster::Config {
            listen: self.address("cluster.listen"),
            advertise: self.text("cluster.advertise").or_else(|| self.text("cluster.listen")),
            expect,
            discovery,
            plain: tls.is_none() && !combinations::makes_certificates(self.0),
            tls,
            join: match (self.text("cluster.join"), self.path("cluster.join_file")) {
                (Some(token), _) => Some(cluster::Join::Token(token)),
                (None, file) => file.map(cluster::Join::File),
            },
            certificate_lifetime_s: self.count("cluster.certificate_lifetime_s") as u64,
            times: self.part("cluster.times"),
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
}

/// A value as serde takes it; addresses without names.
fn json(form: Form, value: &Value) -> serde_json::Value {
    match value {
        Value::Boolean(flag) => (*flag.value()).into(),
        Value::Integer(number) => (*number.value()).into(),
        Value::Array(list) => list.iter().map(|v| json(form, v)).collect(),
        other => {
            let text = other.as_str().unwrap_or_default();
            let address = match form {
                Form::Address | Form::Addresses => read::address(text).ok(),
                _ => None,
            };
            address.map_or_else(|| text.into(), |a| a.to_string().into())
        }
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

//! The certificates that this node shows and trusts on its links, exchanged while it runs.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{granted, kept::Kept, token::sha256};
use crate::{
    config::{Config, TlsFiles},
    error::ClusterError,
    role::Roles,
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How links are secured.
pub(crate) enum Security {
    /// Not at all: on loopback, by explicit setting, or where nobody can be reached.
    Plain,
    /// By mutual TLS.
    Tls(Arc<Credentials>),
}

/// Where certificates come from.
#[derive(Clone, Debug)]
enum Source {
    /// Files of an operator.
    Files(TlsFiles),
    /// The data directory: the cluster's own authority made them.
    Kept(Kept),
}

/// The certificates in service.
#[derive(Debug)]
pub(crate) struct Credentials {
    source: Source,
    current: RwLock<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Of the bytes of all files.
    mark: [u8; 32],
    /// From when to when the own certificate is valid, in seconds since 1970.
    valid: (u64, u64),
    roles: Roles,
}

/// Reads the certificates, or checks that a plain link is allowed.
pub(crate) fn security(config: &Config, kept: &Kept) -> Result<Security, ClusterError> {
    let refused = |text: &str| Err(ClusterError::Config(text.into()));
    if config.plain {
        return match config.listen {
            _ if config.tls.is_some() => refused("`cluster.plain` and `cluster.tls` exclude each other"),
            Some(listen) if !listen.ip().is_loopback() => refused(
                "`cluster.plain` is for loopback only: set `cluster.tls`, or listen on 127.0.0.1 or ::1",
            ),
            _ => Ok(Security::Plain),
        };
    }
    match (&config.tls, config.listen) {
        (Some(files), _) => Credentials::open(Source::Files(files.clone())).map(Security::Tls),
        (None, None) => Ok(Security::Plain),
        (None, Some(_)) if kept.exists() => Credentials::open(Source::Kept(kept.clone())).map(Security::Tls),
        (None, Some(_)) => Err(ClusterError::NoCertificate),
    }
}

impl Credentials {
    fn open(source: Source) -> Result<Arc<Credentials>, ClusterError> {
        let current = RwLock::new(load(&source)?);
        Ok(Arc::new(Credentials { source, current }))
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.current.read().server.clone()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.current.read().client.clone()
    }

    /// What the cluster's own authority gave to this node; `None` where an operator's did.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        match &self.source {
            Source::Kept(kept) => Some(kept),
            Source::Files(_) => None,
        }
    }

    /// The roles that the own certificate grants.
    pub(crate) fn roles(&self) -> Roles {
        self.current.read().roles
    }

    /// From when to when the own certificate is valid, in seconds since 1970.
    pub(crate) fn valid(&self) -> (u64, u64) {
        self.current.read().valid
    }

    /// Takes what the files hold now into service; whether that is something new.
    pub(crate) fn reload(&self) -> Result<bool, ClusterError> {
        if mark(&self.source)? == self.current.read().mark {
            return Ok(false);
        }
        let next = load(&self.source)?;
        *self.current.write() = next;
        Ok(true)
    }
}

/// Looks for new files for as long as the node runs; `changed` is called when there are some.
pub(crate) async fn watch(credentials: Arc<Credentials>, changed: impl Fn() + Send) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let looked = credentials.clone();
        // Files are read on a thread that may block.
        let Ok(read) = tokio::task::spawn_blocking(move || looked.reload()).await else { continue };
        match read {
            Ok(false) => told.clear(),
            Ok(true) => {
                told.clear();
                tracing::info!("the certificate of the links between nodes was replaced");
                changed();
            }
            // Once for each cause: an operator's tool may be in the middle of it.
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::warn!(error, "keeping the old certificate of the links between nodes");
                    told = error;
                }
            }
        }
    }
}

fn paths(source: &Source) -> [std::path::PathBuf; 3] {
    match source {
        Source::Files(files) => [files.ca.clone(), files.cert.clone(), files.key.clone()],
        Source::Kept(kept) => [kept.ca_path(), kept.certificate_path(), kept.key_path()],
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClusterError> {
    fs::read(path).map_err(|e| ClusterError::Disk { path: path.into(), source: e.into() })
}

fn mark(source: &Source) -> Result<[u8; 32], ClusterError> {
    let mut all = Vec::new();
    for path in paths(source) {
        all.extend(sha256(&read(&path)?));
    }
    Ok(sha256(&all))
}

/// The algorithms of the links.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn load(source: &Source) -> Result<Current, ClusterError> {
    let mark = mark(source)?;
    let [ca_path, cert_path, key_path] = paths(source);
    let wrong = |path: &Path, e: &dyn std::fmt::Display| {
        ClusterError::Identity(format!("failed to use `{}`: {e}", path.display()))
    };
    let chain_of = |path: &Path| -> Result<Vec<CertificateDer<'static>>, ClusterError> {
        let text = read(path)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(wrong(path, &"it holds no certificate")),
            Err(e) => Err(wrong(path, &e)),
        }
    };
    let cas = chain_of(&ca_path)?;
    let mut roots = RootCertStore::empty();
    for ca in &cas {
        roots.add(ca.clone()).map_err(|e| wrong(&ca_path, &e))?;
    }
    let mut chain = chain_of(&cert_path)?;
    let own = chain[0].clone();
    let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|e| wrong(&key_path, &e))?;
    let managed = matches!(source, Source::Kept(_));
    if managed {
        // A joiner knows the authority by its fingerprint only: it is shown.
        chain.extend(cas);
    }
    let tls = |e: rustls::Error| wrong(&cert_path, &e);
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
    // Where there are tokens, one may knock without a certificate: the gate lets such a caller do nothing else.
    let verifier = if managed { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|e| wrong(&ca_path, &e))?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(tls)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    // Each link shows its certificate anew: one that has run out does not live on in a ticket.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = Resumption::disabled();
    let (server, client) = (Arc::new(server), Arc::new(client));
    Ok(Current { server, client, mark, valid: validity(&own)?, roles: granted(&own).roles })
}

/// From when to when a certificate is valid, in seconds since 1970.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<(u64, u64), ClusterError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| ClusterError::Identity(format!("failed to read a certificate: {e}")))?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = parsed.validity();
    Ok((seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp())))
}

/// The wall clock, in seconds since 1970: for what certificates and tokens say, and for nothing else.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Refuses to start with a certificate that does not grant what the node is configured to be.
pub(crate) fn check_roles(credentials: &Credentials, roles: Roles) -> Result<(), ClusterError> {
    let granted = credentials.roles();
    if granted.include(roles) {
        return Ok(());
    }
    let what = match credentials.kept() {
        Some(_) => "join with a token for all of its roles, into an empty data directory",
        None => "give `cluster.cert` a name for each role, as in the operator's guide",
    };
    Err(ClusterError::Identity(format!(
        "this node's certificate grants the roles `{granted}`, and its config says `{roles}`: {what}"
    )))
}

/// Refuses to start with the certificate of another node than the data directory is of: nobody would listen to it.
pub(crate) fn check_name(kept: &Kept, key: u128) -> Result<(), ClusterError> {
    let named = granted(&kept.certificate()?).name;
    if named.is_some_and(|name| name.key == key) {
        return Ok(());
    }
    Err(ClusterError::Identity(format!(
        "`{}` is of another node than the rest of the data directory: put back what belongs there, or give the node an empty data directory (`node.data_dir`) and a new token of `rookery cluster token`",
        kept.certificate_path().display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{birth::Certificate, identity::joining};

    #[test]
    fn a_certificate_of_another_node_is_not_started_with() {
        let dir = tempfile::tempdir().unwrap();
        joining::init(dir.path(), "a:1", Roles::default(), Duration::from_secs(60)).unwrap();
        let folder = dir.path().join("cluster");
        let (kept, key) = (Kept::in_cluster_dir(&folder), Certificate::open(&folder).unwrap().born().key);
        assert!(check_name(&kept, key).is_ok());
        let error = check_name(&kept, key + 1).unwrap_err().to_string();
        assert!(error.contains("is of another node than the rest of the data directory"), "{error}");
    }

    #[test]
    fn plain_links_are_for_loopback_and_by_explicit_setting() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::in_cluster_dir(dir.path());
        let config = |listen: Option<&str>, plain| Config {
            listen: listen.map(|l| l.parse().unwrap()),
            plain,
            ..Config::default()
        };
        let check = |listen, plain| security(&config(listen, plain), &kept);
        assert!(check(None, false).is_ok());
        assert!(check(Some("127.0.0.1:7400"), true).is_ok());
        assert!(check(Some("[::1]:7400"), true).is_ok());
        assert!(matches!(check(Some("127.0.0.1:7400"), false), Err(ClusterError::NoCertificate)));
        assert!(check(Some("0.0.0.0:7400"), true).is_err());
    }
}

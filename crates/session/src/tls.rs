//! The server's certificates, one for each host that has its own, and the TLS settings of both kinds of listeners;
//! files that change are read again.

mod certificate;
mod client;
mod policy;

pub(crate) use self::policy::cipher_names;
pub use self::policy::is_usable as ciphers_fit;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, VerifierBuilderError};
use rustls::{CipherSuite, ServerConfig};
use stream::ClientCertificate;

use self::certificate::{Leaf, Stamp};
use self::client::Clients;
use self::policy::{Orders, Policy};
use crate::config::{Tls, TlsFiles};
use crate::listener::Door;

/// The certificates that are served now, and who may show one to us.
pub struct TlsStore {
    policy: Policy,
    /// For every name that has no certificate of its own.
    default: Place,
    /// By the names that a client may ask for.
    hosts: HashMap<String, Arc<Place>>,
    clients: RwLock<Option<Arc<Clients>>>,
    client_ca: Option<Watched>,
}

/// Why a certificate or key cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no such PEM section.
    #[error("failed to read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What reading it said.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("failed to find a certificate in `{0}`")]
    NoCertificate(PathBuf),
    /// Certificate and key do not belong together, or TLS cannot use them.
    #[error("failed to use certificate and key: {0}")]
    Refused(#[from] rustls::Error),
    /// Nobody's certificate could be verified with these authorities.
    #[error("failed to use `{path}` for the certificates of clients: {source}")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: VerifierBuilderError,
    },
}

/// One certificate in service, and the files that it came from.
struct Place {
    files: Option<TlsFiles>,
    read: Mutex<Option<Stamp>>,
    served: RwLock<Arc<Served>>,
}

/// A file beside the certificates.
struct Watched {
    path: PathBuf,
    read: Mutex<Option<Stamp>>,
}

/// All that belongs to one certificate. Its tickets are its own: one that was given out under another certificate
/// opens no session here, so that a resumed session is always bound to the certificate that is served.
pub(crate) struct Served {
    leaf: Arc<Leaf>,
    starttls: Orders,
    direct: Orders,
}

impl Served {
    /// The settings of the handshake with a client that offers these cipher suites.
    pub(crate) fn config(&self, door: Door, offered: &[CipherSuite]) -> Arc<ServerConfig> {
        let orders = match door {
            Door::StartTls => &self.starttls,
            Door::DirectTls => &self.direct,
        };
        orders.choose(offered).clone()
    }

    /// Hash of the certificate for the channel binding `tls-server-end-point` (RFC 5929, 4.1).
    pub(crate) fn endpoint(&self) -> &[u8] {
        &self.leaf.endpoint
    }
}

impl TlsStore {
    /// Reads certificates and keys from their files, and remembers where they are for [`TlsStore::watch`].
    ///
    /// # Errors
    /// [`TlsError`] where a file cannot be read, a pair cannot be used, or the policy leaves nothing to agree on.
    pub fn load(config: &Tls) -> Result<Arc<TlsStore>, TlsError> {
        let policy = Policy::new(config);
        let client_ca = config.client_ca.clone().map(|path| {
            let read = Mutex::new(certificate::stamp([&path]));
            Watched { path, read }
        });
        let clients = match &client_ca {
            Some(ca) => Some(Arc::new(Clients::load(&ca.path, config.client_certificates)?)),
            None => None,
        };
        let clients = clients.as_ref();
        let default = Place::load(&config.files, &policy, clients)?;
        let mut hosts = HashMap::new();
        for (host, files) in &config.hosts {
            let place = Arc::new(Place::load(files, &policy, clients)?);
            for name in names(host) {
                hosts.insert(name, place.clone());
            }
        }
        let clients = RwLock::new(clients.cloned());
        Ok(Arc::new(TlsStore { policy, default, hosts, clients, client_ca }))
    }

    /// Serves a certificate chain and key given as PEM text, with the settings that are the default.
    ///
    /// # Errors
    /// [`TlsError`] where the text is no PEM or the pair cannot be used.
    pub fn from_pem(cert: &str, key: &str) -> Result<Arc<TlsStore>, TlsError> {
        let policy = Policy::new(&Tls::default());
        let leaf = Arc::new(Leaf::from_pem(cert, key)?);
        let served = RwLock::new(Arc::new(policy.serve(leaf, None)?));
        let default = Place { files: None, read: Mutex::new(None), served };
        let clients = RwLock::new(None);
        Ok(Arc::new(TlsStore { policy, default, hosts: HashMap::new(), clients, client_ca: None }))
    }

    /// What to serve to a client that asks for this name, on a stream to `host` (known before STARTTLS only).
    pub(crate) fn choose(&self, hello: &ClientHello<'_>, host: Option<&str>) -> Arc<Served> {
        self.choose_by(hello.server_name(), host)
    }

    fn choose_by(&self, sni: Option<&str>, host: Option<&str>) -> Arc<Served> {
        let by_name = |name: &str| self.hosts.get(&name.to_ascii_lowercase());
        // A name that nobody here has says nothing: the stream's host may have.
        let place = sni.and_then(by_name).or_else(|| host.and_then(by_name));
        place.map_or(&self.default, |place| place).served.read().clone()
    }

    /// Who the client is by the certificate that it showed, which is verified here: the handshake may have been one
    /// that takes any, or that resumed an older session.
    pub(crate) fn client(&self, chain: Option<&[CertificateDer<'_>]>) -> ClientCertificate {
        match (&*self.clients.read(), chain) {
            (Some(clients), Some([leaf, issuers @ ..])) => clients.judge(leaf, issuers),
            _ => ClientCertificate::Absent,
        }
    }

    /// Hash of the default certificate for the channel binding `tls-server-end-point` (RFC 5929, 4.1).
    pub fn endpoint_hash(&self) -> Vec<u8> {
        self.default.served.read().endpoint().to_vec()
    }

    /// Reads files again that were written since; true if anything new is served now. All are tried; what cannot be
    /// used leaves the old in service, and is told once. Blocks on the disk: not for an arbiter.
    ///
    /// # Errors
    /// The first [`TlsError`].
    pub fn reload(&self) -> Result<bool, TlsError> {
        let mut first = None;
        let mut changed = false;
        let mut tell = |result: Result<bool, TlsError>| match result {
            Ok(new) => changed |= new,
            Err(error) => {
                if first.is_some() {
                    tracing::error!(%error, "keeping the old certificate");
                }
                first.get_or_insert(error);
            }
        };
        let authorities = self.reload_clients();
        let all = authorities.as_ref().is_ok_and(|new| *new);
        tell(authorities);
        let clients = self.clients.read().clone();
        let places: Vec<&Place> = self.places();
        for place in places {
            tell(place.reload(&self.policy, clients.as_ref(), all));
        }
        first.map_or(Ok(changed), Err)
    }

    fn reload_clients(&self) -> Result<bool, TlsError> {
        let Some(ca) = &self.client_ca else { return Ok(false) };
        if !certificate::is_newer(&ca.read, certificate::stamp([&ca.path])) {
            return Ok(false);
        }
        let how = self.clients.read().as_ref().map(|clients| clients.how).unwrap_or_default();
        *self.clients.write() = Some(Arc::new(Clients::load(&ca.path, how)?));
        Ok(true)
    }

    /// Every certificate once.
    fn places(&self) -> Vec<&Place> {
        let mut places: Vec<&Place> = vec![&self.default];
        for place in self.hosts.values() {
            if !places.iter().any(|known| std::ptr::eq(*known, &**place)) {
                places.push(place);
            }
        }
        places
    }

    /// Looks at the files every `every` until the store is dropped, on a thread of its own.
    ///
    /// # Errors
    /// Fails when the system gives no thread.
    pub fn watch(self: &Arc<Self>, every: Duration) -> std::io::Result<()> {
        if self.default.files.is_none() {
            return Ok(());
        }
        let store = Arc::downgrade(self);
        std::thread::Builder::new().name("tls-watch".into()).spawn(move || {
            loop {
                std::thread::sleep(every);
                let Some(store) = store.upgrade() else { return };
                match store.reload() {
                    Ok(true) => tracing::info!("serving a new certificate"),
                    Ok(false) => {}
                    Err(error) => tracing::error!(%error, "keeping the old certificate"),
                }
            }
        })?;
        Ok(())
    }
}

impl Place {
    fn load(files: &TlsFiles, policy: &Policy, clients: Option<&Arc<Clients>>) -> Result<Place, TlsError> {
        let read = Mutex::new(certificate::stamp([&files.cert, &files.key]));
        let leaf = Arc::new(Leaf::read(files)?);
        let served = RwLock::new(Arc::new(policy.serve(leaf, clients)?));
        Ok(Place { files: Some(files.clone()), read, served })
    }

    /// Reads the pair again if it is newer; with `all`, makes its settings anew in any case.
    fn reload(&self, policy: &Policy, clients: Option<&Arc<Clients>>, all: bool) -> Result<bool, TlsError> {
        let newer = self
            .files
            .as_ref()
            .filter(|files| certificate::is_newer(&self.read, certificate::stamp([&files.cert, &files.key])));
        let (leaf, failed) = match newer.map(Leaf::read) {
            Some(Ok(leaf)) => (Some(Arc::new(leaf)), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        if leaf.is_none() && !all {
            return failed.map_or(Ok(false), Err);
        }
        let leaf = leaf.unwrap_or_else(|| self.served.read().leaf.clone());
        let served = Arc::new(policy.serve(leaf, clients)?);
        *self.served.write() = served;
        failed.map_or(Ok(true), Err)
    }
}

/// The names by which clients ask for a host: as it is written in addresses, and as it stands in DNS.
fn names(host: &str) -> Vec<String> {
    let mut names = vec![host.to_ascii_lowercase()];
    names.extend(idna::domain_to_ascii(host).ok().filter(|ascii| *ascii != names[0]));
    names
}

#[cfg(test)]
mod tests;

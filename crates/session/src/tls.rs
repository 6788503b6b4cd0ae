//! The server's certificate and the TLS settings of both kinds of listeners; files that change are read again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// Name of the protocol in ALPN for direct TLS (XEP-0368, 3).
const ALPN: &[u8] = b"xmpp-client";

/// The certificate that is served now, and acceptors that always serve the newest one.
pub struct TlsStore {
    files: Option<TlsFiles>,
    served: Arc<Served>,
    read: parking_lot::Mutex<Option<Stamp>>,
    starttls: TlsAcceptor,
    direct: TlsAcceptor,
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
}

/// A certificate with the hash that binds a login to it.
struct Leaf {
    key: Arc<CertifiedKey>,
    endpoint: Vec<u8>,
}

struct Served(RwLock<Leaf>);

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served")
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().key.clone())
    }
}

/// When the two files were last written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(SystemTime, SystemTime);

impl TlsStore {
    /// Reads certificate and key from their files, and remembers where they are for [`TlsStore::watch`].
    ///
    /// # Errors
    /// [`TlsError`] where a file cannot be read or the pair cannot be used.
    pub fn load(files: &TlsFiles) -> Result<Arc<TlsStore>, TlsError> {
        let stamp = stamp(files);
        let leaf = read(files)?;
        TlsStore::new(Some(files.clone()), leaf, stamp)
    }

    /// Serves a certificate chain and key given as PEM text.
    ///
    /// # Errors
    /// [`TlsError`] where the text is no PEM or the pair cannot be used.
    pub fn from_pem(cert: &str, key: &str) -> Result<Arc<TlsStore>, TlsError> {
        let at = |source| TlsError::Read { path: PathBuf::from("PEM text"), source };
        let chain =
            CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(at)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(at)?;
        TlsStore::new(None, leaf(Path::new("PEM text"), chain, key)?, None)
    }

    fn new(files: Option<TlsFiles>, leaf: Leaf, stamp: Option<Stamp>) -> Result<Arc<TlsStore>, TlsError> {
        let served = Arc::new(Served(RwLock::new(leaf)));
        let tickets = provider::Ticketer::new()?;
        let config = |alpn: &[&[u8]]| -> Result<TlsAcceptor, TlsError> {
            let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_cert_resolver(served.clone());
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            // Tickets carry the resumed state to the client: no table of sessions here, no 0-RTT.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.ticketer = tickets.clone();
            config.send_tls13_tickets = 1;
            config.max_early_data_size = 0;
            Ok(TlsAcceptor::from(Arc::new(config)))
        };
        let (starttls, direct) = (config(&[])?, config(&[ALPN])?);
        Ok(Arc::new(TlsStore { files, served, read: parking_lot::Mutex::new(stamp), starttls, direct }))
    }

    /// For a stream that asked for TLS after it began in the clear.
    pub(crate) fn starttls(&self) -> &TlsAcceptor {
        &self.starttls
    }

    /// For a socket that begins with TLS.
    pub(crate) fn direct(&self) -> &TlsAcceptor {
        &self.direct
    }

    /// Hash of the certificate for the channel binding `tls-server-end-point` (RFC 5929, 4.1).
    pub fn endpoint_hash(&self) -> Vec<u8> {
        self.served.0.read().endpoint.clone()
    }

    /// Reads the files again if one of them was written since; true if a new certificate is served now.
    /// Blocks on the disk: not for an arbiter.
    ///
    /// # Errors
    /// [`TlsError`] where the new files cannot be used; the old certificate stays in service.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Some(files) = &self.files else { return Ok(false) };
        let now = stamp(files);
        let mut last = self.read.lock();
        if now.is_none() || *last == now {
            return Ok(false);
        }
        // Remembered before the attempt: a broken pair is reported once, not at each look.
        *last = now;
        *self.served.0.write() = read(files)?;
        Ok(true)
    }

    /// Looks at the files every `every` until the store is dropped, on a thread of its own.
    ///
    /// # Errors
    /// Fails when the system gives no thread.
    pub fn watch(self: &Arc<Self>, every: Duration) -> std::io::Result<()> {
        if self.files.is_none() {
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

fn stamp(files: &TlsFiles) -> Option<Stamp> {
    let written = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    Some(Stamp(written(&files.cert)?, written(&files.key)?))
}

fn read(files: &TlsFiles) -> Result<Leaf, TlsError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
        .map_err(at(&files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(at(&files.key))?;
    leaf(&files.cert, chain, key)
}

fn leaf(
    path: &Path,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Leaf, TlsError> {
    let Some(first) = chain.first() else { return Err(TlsError::NoCertificate(path.to_owned())) };
    let endpoint = digest(endpoint_algorithm(first), first).as_ref().to_vec();
    let key = CertifiedKey::from_der(chain, key, &provider::default_provider())?;
    Ok(Leaf { key: Arc::new(key), endpoint })
}

/// RFC 5929, 4.1: the hash of the certificate's own signature, but never less than SHA-256.
fn endpoint_algorithm(cert: &[u8]) -> &'static Algorithm {
    let oid = x509_parser::parse_x509_certificate(cert)
        .map(|(_, cert)| cert.signature_algorithm.algorithm.to_id_string())
        .unwrap_or_default();
    match oid.as_str() {
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
        _ => &SHA256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn write(dir: &Path, (cert, key): &(String, String)) -> TlsFiles {
        let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    }

    /// Moves the file's time on, as a later write would.
    fn touch(files: &TlsFiles, seconds: u64) {
        let cert = std::fs::File::options().write(true).open(&files.cert).unwrap();
        cert.set_modified(SystemTime::now() + Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn a_changed_certificate_is_served_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), &pair("one.example"));
        let store = TlsStore::load(&files).unwrap();
        let before = store.endpoint_hash();
        assert!(!store.reload().unwrap());
        write(dir.path(), &pair("two.example"));
        touch(&files, 5);
        assert!(store.reload().unwrap());
        assert_ne!(store.endpoint_hash(), before);
    }

    #[test]
    fn a_broken_file_keeps_the_old_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), &pair("one.example"));
        let store = TlsStore::load(&files).unwrap();
        let before = store.endpoint_hash();
        std::fs::write(&files.cert, "nothing").unwrap();
        touch(&files, 5);
        assert!(matches!(store.reload(), Err(TlsError::NoCertificate(_))));
        assert_eq!(store.endpoint_hash(), before);
        assert!(!store.reload().unwrap(), "the same broken file is not reported twice");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (cert, _) = pair("one.example");
        let (_, key) = pair("one.example");
        assert!(matches!(TlsStore::from_pem(&cert, &key), Err(TlsError::Refused(_))));
    }
}

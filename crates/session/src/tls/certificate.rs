//! A certificate chain with its key, read from PEM, and the hash that binds a login to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::TlsError;
use crate::config::TlsFiles;

/// A certificate with the hash that binds a login to it.
pub(super) struct Leaf {
    pub key: Arc<CertifiedKey>,
    pub endpoint: Vec<u8>,
}

/// When files were last written.
pub(super) type Stamp = Vec<SystemTime>;

/// When these files were last written; `None` where one of them is not there.
pub(super) fn stamp<const N: usize>(files: [&PathBuf; N]) -> Option<Stamp> {
    let written = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    files.into_iter().map(written).collect()
}

/// Whether files were written since they were read. Remembered before the attempt to read them: a broken one is
/// reported once, not at each look.
pub(super) fn is_newer(read: &Mutex<Option<Stamp>>, now: Option<Stamp>) -> bool {
    let mut last = read.lock();
    if now.is_none() || *last == now {
        return false;
    }
    *last = now;
    true
}

/// All certificates of a PEM file.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let at = |source| TlsError::Read { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).and_then(|certs| certs.collect::<Result<Vec<_>, _>>()).map_err(at)
}

impl Leaf {
    pub fn read(files: &TlsFiles) -> Result<Leaf, TlsError> {
        let at = |source| TlsError::Read { path: files.key.clone(), source };
        let chain = chain(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(at)?;
        Leaf::new(&files.cert, chain, key)
    }

    pub fn from_pem(cert: &str, key: &str) -> Result<Leaf, TlsError> {
        let path = PathBuf::from("PEM text");
        let at = |source| TlsError::Read { path: path.clone(), source };
        let chain =
            CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(at)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(at)?;
        Leaf::new(&path, chain, key)
    }

    fn new(
        path: &Path,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Leaf, TlsError> {
        let Some(first) = chain.first() else { return Err(TlsError::NoCertificate(path.to_owned())) };
        let endpoint = digest(endpoint_algorithm(first), first).as_ref().to_vec();
        let key = CertifiedKey::from_der(chain, key, &provider::default_provider())?;
        Ok(Leaf { key: Arc::new(key), endpoint })
    }
}

/// RFC 5929, 4.1: the hash of the certificate's own signature, but never less than SHA-256. A signature without
/// one single hash (Ed25519, RSASSA-PSS) leaves it undefined; SHA-256 is what others take then.
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

    #[test]
    fn the_hash_is_that_of_the_certificates_own_signature() {
        use rcgen::*;
        let cases: [(&'static SignatureAlgorithm, &'static Algorithm); 4] = [
            (&PKCS_ECDSA_P256_SHA256, &SHA256),
            (&PKCS_ECDSA_P384_SHA384, &SHA384),
            (&PKCS_ECDSA_P521_SHA512, &SHA512),
            (&PKCS_ED25519, &SHA256),
        ];
        for (signature, hash) in cases {
            let key = KeyPair::generate_for(signature).unwrap();
            let cert = CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
            let leaf = Leaf::from_pem(&cert.pem(), &key.serialize_pem()).unwrap();
            assert_eq!(leaf.endpoint, digest(hash, cert.der()).as_ref(), "{signature:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let pair = || rcgen::generate_simple_self_signed(vec!["one.example".to_owned()]).unwrap();
        let (cert, key) = (pair().cert.pem(), pair().signing_key.serialize_pem());
        assert!(matches!(Leaf::from_pem(&cert, &key), Err(TlsError::Refused(_))));
    }
}

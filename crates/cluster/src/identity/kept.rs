//! What a node with a certificate of the cluster's own authority keeps in its data directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{authority::Authority, token::sha256};
use crate::error::ClusterError;

/// The folder `cluster/identity` of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    folder: PathBuf,
}

impl Kept {
    pub(crate) fn in_cluster_dir(dir: &Path) -> Kept {
        Kept { folder: dir.join("identity") }
    }

    /// Whether there is a certificate.
    pub(crate) fn exists(&self) -> bool {
        self.certificate_path().exists()
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        self.folder.join("node.pem")
    }

    pub(crate) fn key_path(&self) -> PathBuf {
        self.folder.join("node.key")
    }

    pub(crate) fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn ca_key_path(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    fn backends_path(&self) -> PathBuf {
        self.folder.join("backends")
    }

    /// The node's own key, made at the first call: whoever asks for a certificate again asks with the same one.
    pub(crate) fn key(&self) -> Result<KeyPair, ClusterError> {
        let path = self.key_path();
        let failed = |e: rcgen::Error| ClusterError::Identity(format!("`{}`: {e}", path.display()));
        match fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(failed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(failed)?;
                self.write(&path, key.serialize_pem().as_bytes(), 0o600)?;
                Ok(key)
            }
            Err(e) => Err(disk(&path)(e)),
        }
    }

    /// The certificate of the cluster's authority.
    pub(crate) fn ca(&self) -> Result<CertificateDer<'static>, ClusterError> {
        read_certificate(&self.ca_path())
    }

    /// The node's own certificate.
    pub(crate) fn certificate(&self) -> Result<CertificateDer<'static>, ClusterError> {
        read_certificate(&self.certificate_path())
    }

    pub(crate) fn keep_ca(&self, ca: &CertificateDer<'_>) -> Result<(), ClusterError> {
        self.write(&self.ca_path(), pem("CERTIFICATE", ca).as_bytes(), 0o644)
    }

    /// Keeps the node's certificate; from then on the node has an identity.
    pub(crate) fn keep_certificate(&self, certificate: &CertificateDer<'_>) -> Result<(), ClusterError> {
        self.write(&self.certificate_path(), pem("CERTIFICATE", certificate).as_bytes(), 0o644)
    }

    /// The authority, where this node has its key: on backends.
    pub(crate) fn authority(&self) -> Result<Option<Arc<Authority>>, ClusterError> {
        match fs::read_to_string(self.ca_key_path()) {
            Ok(key) => Authority::load(self.ca()?, &key).map(|authority| Some(Arc::new(authority))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(disk(&self.ca_key_path())(e)),
        }
    }

    pub(crate) fn keep_authority(&self, authority: &Authority) -> Result<(), ClusterError> {
        self.write(&self.ca_key_path(), authority.key_pem().as_bytes(), 0o600)?;
        self.keep_ca(authority.certificate())
    }

    /// Where backends were last: so that a node that was told of one only finds the others after a restart.
    pub(crate) fn backends(&self) -> Vec<String> {
        let text = fs::read_to_string(self.backends_path()).unwrap_or_default();
        text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
    }

    pub(crate) fn keep_backends(&self, backends: &[String]) -> Result<(), ClusterError> {
        self.write(&self.backends_path(), backends.join("\n").as_bytes(), 0o644)
    }

    /// Writes beside, syncs and renames, so that a reader never sees half a file.
    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), ClusterError> {
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let beside = path.with_extension("new");
            drop(fs::remove_file(&beside));
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(disk(path))
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |e| ClusterError::Disk { path, source: e.into() }
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, ClusterError> {
    CertificateDer::from_pem_file(path)
        .map_err(|e| ClusterError::Identity(format!("failed to read `{}`: {e}", path.display())))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let body = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// What a token calls an authority by.
pub(crate) fn fingerprint(ca: &CertificateDer<'_>) -> [u8; 32] {
    sha256(ca)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::role::ClusterId;

    #[test]
    fn what_is_kept_is_read_back_and_keys_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::in_cluster_dir(dir.path());
        assert!(!kept.exists() && kept.authority().unwrap().is_none() && kept.backends().is_empty());
        let key = kept.key().unwrap();
        assert_eq!(kept.key().unwrap().serialize_pem(), key.serialize_pem());
        let authority = Authority::make(ClusterId(3)).unwrap();
        kept.keep_authority(&authority).unwrap();
        assert_eq!(kept.authority().unwrap().unwrap().certificate(), authority.certificate());
        assert_eq!(&kept.ca().unwrap(), authority.certificate());
        kept.keep_certificate(authority.certificate()).unwrap();
        assert!(kept.exists());
        kept.keep_backends(&["a:1".into(), "b:2".into()]).unwrap();
        assert_eq!(kept.backends(), ["a:1", "b:2"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(kept.key_path()), mode(kept.ca_key_path())), (0o600, 0o600));
        assert_eq!(mode(dir.path().join("identity")), 0o700);
    }
}

//! The self-signed certificate of a node that was given none, made at its first start.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use session::TlsFiles;

/// The certificate could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("failed to make a certificate for `{hosts}`: {source}")]
    Make { hosts: String, source: rcgen::Error },
    #[error("failed to write `{path}`: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// Paths of the certificate in the data folder, and whether it was made just now.
///
/// It is made again when the hosts have changed, since it names them.
pub fn self_signed(data_dir: &Path, hosts: &[String]) -> Result<(TlsFiles, bool), CertificateError> {
    let folder = data_dir.join("tls");
    let pem = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    let made_for = folder.join("hosts");
    let names = hosts.join("\n");
    if pem.cert.exists() && pem.key.exists() && fs::read_to_string(&made_for).is_ok_and(|n| n == names) {
        return Ok((pem, false));
    }
    // RFC 5280, 7.2: names in certificates are in their ASCII form.
    let ascii: Vec<String> =
        hosts.iter().map(|host| idna::domain_to_ascii(host).unwrap_or_else(|_| host.clone())).collect();
    let made = rcgen::generate_simple_self_signed(ascii)
        .map_err(|source| CertificateError::Make { hosts: hosts.join(", "), source })?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Write { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
    write(&pem.key, &made.signing_key.serialize_pem(), 0o600).map_err(at(&pem.key))?;
    write(&pem.cert, &made.cert.pem(), 0o644).map_err(at(&pem.cert))?;
    write(&made_for, &names, 0o644).map_err(at(&made_for))?;
    Ok((pem, true))
}

/// Writes beside and renames, so that a reader never sees half a file.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_the_same_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = ["localhost".to_owned(), "example.org".to_owned()];
        let (pem, made) = self_signed(folder.path(), &hosts).unwrap();
        let first = fs::read(&pem.cert).unwrap();
        assert!(made && !self_signed(folder.path(), &hosts).unwrap().1);
        assert_eq!(first, fs::read(&pem.cert).unwrap());
        assert!(self_signed(folder.path(), &hosts[..1]).unwrap().1, "other hosts need another certificate");
    }

    #[test]
    fn a_host_that_is_not_ascii_has_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let (pem, _) = self_signed(folder.path(), &["\u{fc}ber.test".to_owned()]).unwrap();
        let der = CertificateDer::from_pem_file(&pem.cert).unwrap();
        let name = b"xn--ber-goa.test";
        assert!(der.windows(name.len()).any(|bytes| bytes == name));
    }
}

//! The cluster's own certificate authority: made at the first formation, and what it signs.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BACKEND_NAME, CLUSTER_NAME, FRONTEND_NAME, NodeName, token::sha256};
use crate::{
    error::ClusterError,
    role::{ClusterId, Roles},
};

/// How long the authority itself is valid.
const AUTHORITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Certificates are valid from a little before their making, since clocks differ.
pub(crate) const SKEW: Duration = Duration::from_secs(300);

/// The authority, with its key.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn failed(attempt: &str) -> impl FnOnce(rcgen::Error) -> ClusterError {
    let attempt = attempt.to_owned();
    move |e| ClusterError::Identity(format!("failed to {attempt}: {e}"))
}

impl Authority {
    /// A new one.
    pub(crate) fn make(cluster: ClusterId) -> Result<Authority, ClusterError> {
        let key = KeyPair::generate().map_err(failed("make the key of the authority"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("Rookery cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, AUTHORITY);
        let certificate = params.self_signed(&key).map_err(failed("make the authority"))?.der().clone();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// The one whose certificate and key were kept; an error if they do not belong together.
    pub(crate) fn load(
        certificate: CertificateDer<'static>,
        key_pem: &str,
    ) -> Result<Authority, ClusterError> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("read the key of the authority"))?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|e| ClusterError::Identity(format!("failed to read the authority: {e}")))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(ClusterError::Identity("the key is not that of the cluster's authority".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(failed("read the authority"))?;
        Ok(Authority { certificate, issuer })
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its key, in PEM: for the disks of backends.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for the node that asks; what the request says beside its key does not count.
    pub(crate) fn sign(
        &self,
        request: &[u8],
        name: NodeName,
        roles: Roles,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, ClusterError> {
        let request = read(request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("{:032x}", name.key));
        params.subject_alt_names = names(name, roles).map_err(failed("name the node"))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, lifetime);
        let signed = params.signed_by(&request.public_key, &self.issuer);
        Ok(signed.map_err(failed("sign a certificate"))?.der().clone())
    }
}

fn read(request: &[u8]) -> Result<CertificateSigningRequestParams, ClusterError> {
    let request = CertificateSigningRequestDer::from(request);
    // This checks that whoever asks has the private key.
    CertificateSigningRequestParams::from_der(&request).map_err(failed("read the request for a certificate"))
}

/// SHA-256 of the public key in a request, whose signature was checked.
pub(crate) fn fingerprint_of_request(request: &[u8]) -> Result<[u8; 32], ClusterError> {
    Ok(sha256(read(request)?.public_key.der_bytes()))
}

/// A request for a certificate with this key.
pub(crate) fn request(key: &KeyPair) -> Result<Vec<u8>, ClusterError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("node");
    let request = params.serialize_request(key).map_err(failed("ask for a certificate"))?;
    Ok(request.der().to_vec())
}

fn names(name: NodeName, roles: Roles) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::DnsName(CLUSTER_NAME.try_into()?)];
    if roles.frontend {
        names.push(SanType::DnsName(FRONTEND_NAME.try_into()?));
    }
    if roles.backend {
        names.push(SanType::DnsName(BACKEND_NAME.try_into()?));
    }
    names.push(SanType::URI(name.uri().as_str().try_into()?));
    Ok(names)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Sets from when to when a certificate is valid.
fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = |since_1970: Duration| rcgen::date_time_ymd(1970, 1, 1) + since_1970;
    params.not_before = at(now.saturating_sub(SKEW));
    params.not_after = at(now + lifetime);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::granted;

    const NAME: NodeName = NodeName { cluster: ClusterId(5), key: 9 };
    const FRONTEND: Roles = Roles { frontend: true, backend: false };

    #[test]
    fn what_it_signs_grants_what_it_was_told_and_nothing_that_was_asked() {
        let authority = Authority::make(ClusterId(5)).unwrap();
        let again = Authority::load(authority.certificate().clone(), &authority.key_pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        // A request that asks for more than it should.
        let mut params = CertificateParams::new(vec![BACKEND_NAME.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let greedy = params.serialize_request(&key).unwrap().der().to_vec();
        for request in [request(&key).unwrap(), greedy] {
            let signed = again.sign(&request, NAME, FRONTEND, Duration::from_secs(60)).unwrap();
            assert_eq!(granted(&signed), crate::identity::Granted { roles: FRONTEND, name: Some(NAME) });
            let (_, parsed) = X509Certificate::from_der(&signed).unwrap();
            assert!(!parsed.is_ca());
            assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
            let (_, issuer) = X509Certificate::from_der(authority.certificate()).unwrap();
            assert_eq!(parsed.issuer(), issuer.subject());
            assert!(issuer.is_ca());
        }
    }

    #[test]
    fn a_request_is_for_the_key_of_whoever_made_it() {
        let authority = Authority::make(ClusterId(5)).unwrap();
        let (ours, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut forged = request(&ours).unwrap();
        // The last bytes are the signature.
        let last = forged.len() - 3;
        forged[last] ^= 1;
        for wrong in [&forged[..], b"", b"request"] {
            assert!(authority.sign(wrong, NAME, FRONTEND, SKEW).is_err());
            assert!(fingerprint_of_request(wrong).is_err());
        }
        let print = |key| fingerprint_of_request(&request(key).unwrap()).unwrap();
        assert_eq!(print(&ours), print(&ours));
        assert_ne!(print(&ours), print(&theirs));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (ours, theirs) = (Authority::make(ClusterId(5)).unwrap(), Authority::make(ClusterId(5)).unwrap());
        assert!(Authority::load(ours.certificate().clone(), &theirs.key_pem()).is_err());
        assert!(Authority::load(ours.certificate().clone(), "no key").is_err());
    }
}

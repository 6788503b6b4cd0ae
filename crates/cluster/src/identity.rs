//! Who may speak to whom: the certificates of the links, and what a certificate allows.
//!
//! Every certificate carries the DNS name `rookery-cluster`, which is what a caller verifies, and one of
//! `frontend.rookery-cluster` and `backend.rookery-cluster`, or both, for the roles that the authority granted.

use std::{fs, path::Path};

use rustls_pki_types::CertificateDer;
use tonic::{
    Request, Status,
    transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    config::{Config, TlsFiles},
    error::ClusterError,
    role::Roles,
};

/// The name in every certificate of a cluster.
pub const CLUSTER_NAME: &str = "rookery-cluster";
/// The name that lets a node be a backend.
pub const BACKEND_NAME: &str = "backend.rookery-cluster";
/// The name that lets a node be a frontend.
pub const FRONTEND_NAME: &str = "frontend.rookery-cluster";

/// How links are secured.
pub(crate) struct Security {
    pub(crate) client: Option<ClientTlsConfig>,
    pub(crate) server: Option<ServerTlsConfig>,
}

/// Marks a request that came over a listener without TLS, which only exists by explicit setting.
#[derive(Clone, Copy)]
pub(crate) struct PlainLink;

/// Reads the certificates, or checks that a plain link is allowed.
pub(crate) fn security(config: &Config) -> Result<Security, ClusterError> {
    let refused = |text: &str| Err(ClusterError::Config(text.into()));
    if config.plain {
        return match config.listen {
            _ if config.tls.is_some() => refused("`cluster.plain` and `cluster.tls` exclude each other"),
            Some(listen) if !listen.ip().is_loopback() => refused(
                "`cluster.plain` is for loopback only: set `cluster.tls`, or listen on 127.0.0.1 or ::1",
            ),
            _ => Ok(Security { client: None, server: None }),
        };
    }
    match (&config.tls, config.listen) {
        (Some(files), _) => secured(files),
        (None, None) => Ok(Security { client: None, server: None }),
        (None, Some(_)) => {
            refused("`cluster.listen` needs `cluster.tls`, or `cluster.plain = true` on loopback")
        }
    }
}

fn secured(files: &TlsFiles) -> Result<Security, ClusterError> {
    let ca = Certificate::from_pem(read(&files.ca)?);
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    let client = ClientTlsConfig::new()
        .ca_certificate(ca.clone())
        .identity(identity.clone())
        .domain_name(CLUSTER_NAME);
    let server = ServerTlsConfig::new().identity(identity).client_ca_root(ca).client_auth_optional(false);
    Ok(Security { client: Some(client), server: Some(server) })
}

fn read(path: &Path) -> Result<Vec<u8>, ClusterError> {
    fs::read(path).map_err(|e| ClusterError::Disk { path: path.into(), source: e.into() })
}

/// The roles that a certificate grants.
pub(crate) fn granted(certificate: &CertificateDer<'_>) -> Roles {
    let none = Roles { frontend: false, backend: false };
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return none };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return none };
    let has = |wanted: &str| {
        names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(d) if *d == wanted))
    };
    Roles { frontend: has(FRONTEND_NAME), backend: has(BACKEND_NAME) }
}

fn roles_of<T>(request: &Request<T>) -> Roles {
    if request.extensions().get::<PlainLink>().is_some() {
        return Roles::default();
    }
    let certificates = request.peer_certs();
    let own = certificates.as_ref().and_then(|chain| chain.first());
    own.map_or(Roles { frontend: false, backend: false }, granted)
}

/// Refuses whoever is no backend: a frontend never speaks Raft.
pub fn may_speak_raft<T>(request: &Request<T>) -> Result<(), Status> {
    match roles_of(request) {
        Roles { backend: true, .. } => Ok(()),
        _ => Err(Status::permission_denied("only a backend's certificate may speak Raft")),
    }
}

/// Refuses whoever is no node of the cluster, whatever it does: every node uses the store.
pub fn may_use_store<T>(request: &Request<T>) -> Result<(), Status> {
    match roles_of(request) {
        Roles { frontend: false, backend: false } => {
            Err(Status::permission_denied("only a node's certificate may use the store"))
        }
        _ => Ok(()),
    }
}

/// Refuses whoever is no node of the cluster.
pub fn may_join<T>(request: &Request<T>, claimed: Roles) -> Result<(), Status> {
    let granted = roles_of(request);
    let exceeds = (claimed.frontend && !granted.frontend) || (claimed.backend && !granted.backend);
    let allowed = (granted.frontend || granted.backend) && !exceeds;
    if allowed {
        Ok(())
    } else {
        Err(Status::permission_denied("the certificate does not grant these roles"))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(names).unwrap().self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_grants_the_roles_that_it_names() {
        let table = [
            (vec![CLUSTER_NAME], (false, false)),
            (vec![CLUSTER_NAME, FRONTEND_NAME], (true, false)),
            (vec![CLUSTER_NAME, BACKEND_NAME], (false, true)),
            (vec![CLUSTER_NAME, BACKEND_NAME, FRONTEND_NAME], (true, true)),
            (vec!["x.backend.rookery-cluster"], (false, false)),
        ];
        for (names, (frontend, backend)) in table {
            assert_eq!(granted(&certificate(&names)), Roles { frontend, backend }, "{names:?}");
        }
        assert_eq!(granted(&CertificateDer::from(vec![1, 2, 3])), Roles { frontend: false, backend: false });
    }

    #[test]
    fn plain_links_are_for_loopback_and_by_explicit_setting() {
        let config = |listen: Option<&str>, plain| Config {
            listen: listen.map(|l| l.parse().unwrap()),
            plain,
            ..Config::default()
        };
        assert!(security(&config(None, false)).is_ok());
        assert!(security(&config(Some("127.0.0.1:7400"), true)).is_ok());
        assert!(security(&config(Some("[::1]:7400"), true)).is_ok());
        assert!(security(&config(Some("127.0.0.1:7400"), false)).is_err());
        assert!(security(&config(Some("0.0.0.0:7400"), true)).is_err());
    }

    #[test]
    fn a_certificate_lets_a_node_claim_no_more_than_it_grants() {
        let mut request = Request::new(());
        request.extensions_mut().insert(PlainLink);
        assert!(may_join(&request, Roles::default()).is_ok());
        assert!(may_join(&Request::new(()), Roles { frontend: false, backend: false }).is_err());
    }

    #[test]
    fn a_request_without_a_certificate_is_refused() {
        assert!(may_speak_raft(&Request::new(())).is_err());
        let mut plain = Request::new(());
        plain.extensions_mut().insert(PlainLink);
        assert!(may_speak_raft(&plain).is_ok());
    }
}

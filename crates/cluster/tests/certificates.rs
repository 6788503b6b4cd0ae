//! Links under certificates: who has none, or the wrong one, is kept out.

mod support;

use std::{fs, path::Path, time::Duration};

use cluster::{Config, Roles, TlsFiles, identity};
use proto::{
    membership::{HelloRequest, Peer, membership_client::MembershipClient},
    raft::{ReadIndexRequest, raft_client::RaftClient},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::{BACKEND, FRONTEND, Node, config, deps, full, log, write_seeds};
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn grant(&self, dir: &Path, name: &str, roles: Roles) -> TlsFiles {
        let mut names = vec![identity::CLUSTER_NAME.to_string()];
        names.extend(roles.frontend.then(|| identity::FRONTEND_NAME.to_string()));
        names.extend(roles.backend.then(|| identity::BACKEND_NAME.to_string()));
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        let path = |kind: &str| dir.join(format!("{name}.{kind}.pem"));
        fs::write(path("ca"), self.0.pem()).unwrap();
        fs::write(path("cert"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        TlsFiles { ca: path("ca"), cert: path("cert"), key: path("key") }
    }
}

fn secured(seeds: &Path, files: TlsFiles) -> Config {
    Config { plain: false, tls: Some(files), ..config(seeds, 1) }
}

async fn channel(
    address: &str,
    files: Option<&TlsFiles>,
    ca: &TlsFiles,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(fs::read(&ca.ca).unwrap()))
        .domain_name(identity::CLUSTER_NAME);
    if let Some(files) = files {
        tls = tls.identity(Identity::from_pem(fs::read(&files.cert).unwrap(), fs::read(&files.key).unwrap()));
    }
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
    endpoint.tls_config(tls)?.connect_timeout(Duration::from_secs(5)).connect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_talk_under_certificates_and_roles_are_what_the_authority_granted() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let seeds = dir.path().join("seeds");
    let authority = Authority::new();
    let backend = authority.grant(dir.path(), "backend", BACKEND);
    let frontend = authority.grant(dir.path(), "frontend", FRONTEND);
    let b = Node::start(secured(&seeds, backend.clone()), deps("b", BACKEND, dir.path())).await;
    let f = Node::start(secured(&seeds, frontend.clone()), deps("f", FRONTEND, dir.path())).await;
    write_seeds(&seeds, [&b]);
    b.ready().await;
    f.ready().await;
    let sid = f.bind("alice@localhost/phone").await;
    b.cluster.barrier().await.unwrap();
    assert_eq!(b.cluster.routes().full(&full("alice@localhost/phone")).unwrap().sid, sid);

    // A frontend's certificate speaks no Raft, and cannot claim to be a backend.
    let address = b.cluster.address();
    let link = channel(address, Some(&frontend), &frontend).await.unwrap();
    let question = ReadIndexRequest { group: "routes".into(), timeout_ms: 1000, ..Default::default() };
    let refused = RaftClient::new(link.clone()).read_index(question).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let claim = HelloRequest { peer: Some(Peer { backend: true, ..Peer::default() }) };
    let refused = MembershipClient::new(link).hello(claim).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Without a certificate, or with one of another authority, not even an introduction is heard.
    let stranger = Authority::new().grant(dir.path(), "stranger", BACKEND);
    for files in [None, Some(&stranger)] {
        let heard = async {
            let link = channel(address, files, &backend).await.ok()?;
            MembershipClient::new(link).hello(HelloRequest::default()).await.ok()
        };
        assert!(timeout(Duration::from_secs(10), heard).await.unwrap().is_none());
    }
}

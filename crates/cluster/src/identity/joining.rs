//! A node's own side: founding a cluster with an authority, coming in by a token, and staying certified.

use std::{path::Path, sync::Arc, time::Duration};

use proto::join::{AuthorityRequest, RedeemReply, RedeemRequest, RenewRequest, join_client::JoinClient};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

use super::{
    CLUSTER_NAME, NodeName,
    authority::{Authority, SKEW, request},
    credentials::{Credentials, provider, unix_now, validity},
    granted,
    kept::{Kept, fingerprint},
    token::Token,
};
use crate::{
    birth::Certificate,
    error::ClusterError,
    links::{read_cluster, read_epoch},
    role::{ClusterId, Roles},
    seam::random_bits,
    shared::Shared,
};

/// How long one knock may take.
const KNOCK: Duration = Duration::from_secs(10);
/// How long a call about certificates may take.
const CALL: Duration = Duration::from_secs(5);
/// Between attempts to get the authority's key.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest a certificate goes without a look at whether it is time to renew it.
const LOOK: Duration = Duration::from_secs(3600);

/// A node has become part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The cluster.
    pub cluster: ClusterId,
    /// What its certificate calls the node.
    pub name: String,
    /// The roles that the certificate grants.
    pub roles: Roles,
}

/// What a node wants to join with.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The token.
    pub token: Token,
    /// Where to knock, if the token came with an address.
    pub address: Option<String>,
}

impl Ticket {
    /// Reads `TOKEN` or `TOKEN@HOST:PORT`.
    pub fn parse(text: &str) -> Result<Ticket, ClusterError> {
        let text = text.trim();
        let (token, address) = match text.split_once('@') {
            Some((token, address)) => (token, Some(address)),
            None => (text, None),
        };
        let token = Token::parse(token).map_err(|e| ClusterError::Join(e.to_string()))?;
        let whole = |address: &str| {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        match address {
            Some(address) if !whole(address) => Err(ClusterError::Join(format!(
                "`{address}` is no address to join at: expected HOST:PORT behind the `@`, of a backend's `cluster.listen`"
            ))),
            address => Ok(Ticket { token, address: address.map(str::to_owned) }),
        }
    }
}

/// Makes the authority of a cluster, and this node's certificate, in its data directory. A cluster that this node
/// founded alone before gets its authority now; else a new cluster is born, of which this node is the first.
pub fn init(
    data_dir: &Path,
    address: &str,
    roles: Roles,
    lifetime: Duration,
) -> Result<Joined, ClusterError> {
    let dir = data_dir.join("cluster");
    let kept = Kept::in_cluster_dir(&dir);
    let disk = |e: std::io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
    if !roles.backend {
        return Err(ClusterError::Join(
            "a frontend cannot be the first node of a cluster: run this at a node whose `node.roles` has `backend`".into(),
        ));
    }
    if kept.exists() {
        return Err(ClusterError::Join(format!(
            "`{}` holds the identity of a node already: a cluster is made once, and other nodes come in by `rookery cluster token` and `rookery cluster join`",
            data_dir.display()
        )));
    }
    let birth = Certificate::open(&dir).map_err(disk)?;
    let born = birth.born();
    let alone = matches!(&born.founders[..], [(only, _)] if *only == born.member);
    let cluster = match born.cluster {
        Some(cluster) if alone => cluster,
        Some(cluster) => {
            return Err(ClusterError::Join(format!(
                "`{}` belongs to cluster `{cluster}`, which has other nodes: their certificates are made by hand, as in the operator's guide",
                data_dir.display()
            )));
        }
        None => ClusterId(random_bits()),
    };
    let key = kept.key()?;
    let authority = match kept.authority()? {
        Some(authority) => authority,
        None => Arc::new(Authority::make(cluster)?),
    };
    kept.keep_authority(&authority)?;
    let name = NodeName { cluster, key: born.key };
    let certificate = authority.sign(&request(&key)?, name, roles, lifetime)?;
    // The certificate is last: what is there before it is used again when this is interrupted.
    birth.belong(cluster, born.epoch, &[(born.member, address.to_owned())]).map_err(disk)?;
    kept.keep_certificate(&certificate)?;
    Ok(Joined { cluster, name: name.uri(), roles })
}

/// Whether a node without a certificate is the one to make the authority by itself: it founded its cluster alone,
/// or it is new and was told of nobody else.
pub(crate) fn is_first(birth: &Certificate, seeds_nobody: bool) -> bool {
    let born = birth.born();
    match born.cluster {
        Some(_) => matches!(&born.founders[..], [(only, _)] if *only == born.member),
        None => seeds_nobody,
    }
}

/// Comes in by a token: knocks at each address until one answers, and keeps what it gets in the data directory.
pub async fn join(
    data_dir: &Path,
    ticket: &Ticket,
    seeds: &[String],
    roles: Roles,
) -> Result<Joined, ClusterError> {
    let dir = data_dir.join("cluster");
    let kept = Kept::in_cluster_dir(&dir);
    let disk = |e: std::io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
    let refused = |text: String| Err(ClusterError::Join(text));
    let birth = Certificate::open(&dir).map_err(disk)?;
    // One that was interrupted between the answer and its certificate knocks again.
    let begun = kept.ca().is_ok() && kept.authority()?.is_none();
    if kept.exists() || (birth.born().cluster.is_some() && !begun) {
        return refused(format!(
            "`{}` belongs to a cluster already: start the node as it is, or give it an empty data directory (`node.data_dir`) to come in as a new one",
            data_dir.display()
        ));
    }
    if !ticket.token.roles.include(roles) {
        return refused(format!(
            "this join token is for the roles `{}`, and `node.roles` says `{roles}`: make one with `rookery cluster token --role`",
            ticket.token.roles
        ));
    }
    let addresses: Vec<&str> = match &ticket.address {
        Some(address) => vec![address],
        None => seeds.iter().map(String::as_str).collect(),
    };
    if addresses.is_empty() {
        return refused("nobody to join: write the address of a backend behind the token, as in `TOKEN@node1.example.org:7400`, or give `cluster.discovery`".into());
    }
    let key = kept.key()?;
    let asked = RedeemRequest {
        token: ticket.token.id,
        secret: ticket.token.secret.to_vec().into(),
        request: request(&key)?.into(),
        frontend: roles.frontend,
        backend: roles.backend,
    };
    let mut reasons = Vec::new();
    for address in addresses {
        match knock(address, ticket.token.fingerprint, asked.clone()).await {
            Ok(reply) => return keep(&kept, &birth, ticket, roles, reply),
            // The cluster has spoken; another backend would say the same.
            Err(status) if status.code() == Code::PermissionDenied => {
                return refused(status.message().to_owned());
            }
            Err(status) => reasons.push(format!("`{address}`: {}", innermost(&status))),
        }
    }
    Err(ClusterError::Unreachable(reasons.join("; ")))
}

fn keep(
    kept: &Kept,
    birth: &Certificate,
    ticket: &Ticket,
    roles: Roles,
    reply: RedeemReply,
) -> Result<Joined, ClusterError> {
    let wrong = || ClusterError::Join("the answer of the cluster cannot be read".into());
    let certificate = CertificateDer::from(reply.certificate.to_vec());
    let ca = CertificateDer::from(reply.authority.to_vec());
    let cluster = read_cluster(&reply.cluster).ok_or_else(wrong)?;
    let key = u128::from_be_bytes(reply.key.as_ref().try_into().map_err(|_| wrong())?);
    let name = NodeName { cluster, key };
    let given = granted(&certificate);
    if fingerprint(&ca) != ticket.token.fingerprint || given.name != Some(name) || !given.roles.include(roles)
    {
        return Err(wrong());
    }
    kept.keep_ca(&ca)?;
    kept.keep_backends(&reply.backends)?;
    let disk = |e: std::io::Error| ClusterError::Disk { path: "cluster/node".into(), source: e.into() };
    birth.become_known_as(key, cluster, read_epoch(&reply.cluster)).map_err(disk)?;
    // The certificate is last: without it the node knocks again, with the same key, and gets the same answer.
    kept.keep_certificate(&certificate)?;
    Ok(Joined { cluster, name: name.uri(), roles: given.roles })
}

/// The last of the causes: what the system said.
fn innermost(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut error: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(inner) = error {
        text = inner.to_string();
        error = inner.source();
    }
    text
}

async fn knock(address: &str, fingerprint: [u8; 32], asked: RedeemRequest) -> Result<RedeemReply, Status> {
    let late = |_| Status::deadline_exceeded("no answer in time");
    let work = async {
        let tls = pinned(fingerprint).map_err(|e| Status::internal(e.to_string()))?;
        let bad =
            |e: tonic::transport::Error| Status::unavailable(innermost(&Status::from_error(Box::new(e))));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(bad)?;
        let connect = tower::service_fn(move |to: Uri| {
            let tls = tls.clone();
            async move {
                let address =
                    to.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
                let socket = TcpStream::connect(address).await?;
                let name = ServerName::try_from(CLUSTER_NAME).map_err(std::io::Error::other)?;
                let tls = TlsConnector::from(tls).connect(name, socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
            }
        });
        let channel = endpoint.connect_with_connector(connect).await.map_err(bad)?;
        JoinClient::new(channel).redeem(asked).await.map(tonic::Response::into_inner)
    };
    timeout(KNOCK, work).await.map_err(late)?
}

/// Speaks to nobody but who shows the authority of this fingerprint, and a certificate that it signed.
fn pinned(fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(fingerprint)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned([u8; 32]);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|shown| fingerprint(shown) == self.0) else {
            return Err(rustls::Error::General(
                "who answers is not of the cluster that the join token is for: check the address".into(),
            ));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = verifier.build().map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The authority, if its key is on this node's disk.
pub(crate) async fn authority_here(shared: &Arc<Shared>) -> Result<Option<Arc<Authority>>, ClusterError> {
    let Some(kept) = shared.kept().cloned() else { return Ok(None) };
    if let Some(authority) = shared.authority.lock().clone() {
        return Ok(Some(authority));
    }
    let read = tokio::task::spawn_blocking(move || kept.authority()).await;
    let read = read.map_err(|e| ClusterError::Identity(e.to_string()))??;
    *shared.authority.lock() = read.clone();
    Ok(read)
}

/// The authority, from this node's disk or, for a backend that has joined a moment ago, from another backend.
pub(crate) async fn authority(shared: &Arc<Shared>) -> Result<Option<Arc<Authority>>, ClusterError> {
    if let Some(here) = authority_here(shared).await? {
        return Ok(Some(here));
    }
    let Some(kept) = shared.kept().cloned() else { return Ok(None) };
    for address in shared.backends() {
        let Ok(mut client) = client(shared, &address) else { continue };
        let asked = timeout(CALL, client.authority(AuthorityRequest {})).await;
        let Ok(Ok(reply)) = asked else { continue };
        let kept = kept.clone();
        let keep = move || -> Result<Arc<Authority>, ClusterError> {
            let authority = Authority::load(kept.ca()?, &reply.into_inner().key)?;
            kept.keep_authority(&authority)?;
            Ok(Arc::new(authority))
        };
        let loaded = tokio::task::spawn_blocking(keep).await;
        let loaded = loaded.map_err(|e| ClusterError::Identity(e.to_string()))??;
        tracing::info!(from = address, "has the key of the cluster's authority");
        *shared.authority.lock() = Some(loaded.clone());
        return Ok(Some(loaded));
    }
    Ok(None)
}

fn client(shared: &Shared, address: &str) -> Result<JoinClient<Channel>, Status> {
    Ok(JoinClient::new(shared.links.channel(address)?))
}

/// Stays certified for as long as the node runs: a backend sees to it that it has the authority's key, and every
/// node renews its certificate when two thirds of its time are over.
pub(crate) async fn stay_certified(shared: Arc<Shared>, credentials: Arc<Credentials>) {
    let Some(kept) = credentials.kept().cloned() else { return };
    let mut told = String::new();
    loop {
        if shared.roles.backend && shared.authority.lock().is_none() {
            match authority(&shared).await {
                Ok(Some(_)) => {}
                Ok(None) => tracing::debug!("no backend gives the key of the authority yet"),
                Err(error) => tell(&mut told, &error.to_string()),
            }
        }
        let (from, until) = credentials.valid();
        let now = unix_now();
        // A certificate is made a little after the moment from which it is valid.
        let third = Duration::from_secs(until.saturating_sub(from + SKEW.as_secs()) / 3);
        if now + third.as_secs() >= until {
            match renew(&shared, &kept).await {
                Ok(()) => match credentials.reload() {
                    Ok(_) => {
                        told.clear();
                        shared.links.renew();
                        tracing::info!(target: "audit", "this node's certificate was renewed");
                    }
                    Err(error) => tell(&mut told, &error.to_string()),
                },
                Err(error) => tell(&mut told, &error.to_string()),
            }
        }
        let lacks_key = shared.roles.backend && shared.authority.lock().is_none();
        // Several attempts fit into the last third.
        let pause = if lacks_key { PAUSE } else { (third / 10).clamp(PAUSE, LOOK) };
        tokio::time::sleep(pause).await;
    }
}

/// Warns once for each cause.
fn tell(told: &mut String, error: &str) {
    if told != error {
        tracing::warn!(error, "failed to renew this node's certificate, and tries again");
        *told = error.to_owned();
    }
}

async fn renew(shared: &Arc<Shared>, kept: &Kept) -> Result<(), ClusterError> {
    let asked = request(&kept.key()?)?;
    let old = kept.certificate()?;
    let given = granted(&old);
    let name = given.name.ok_or_else(|| ClusterError::Identity("the certificate names no node".into()))?;
    let renewed = match authority_here(shared).await? {
        Some(authority) => {
            let lifetime = Duration::from_secs(shared.config.certificate_lifetime_s);
            shared.audit.issued();
            authority.sign(&asked, name, given.roles, lifetime)?
        }
        None => {
            let mut reason = "no backend is known".to_owned();
            let mut found = None;
            for address in shared.backends() {
                let request = Request::new(RenewRequest { request: asked.clone().into() });
                let Ok(mut client) = client(shared, &address) else { continue };
                match timeout(CALL, client.renew(request)).await {
                    Ok(Ok(reply)) => {
                        found = Some(CertificateDer::from(reply.into_inner().certificate.to_vec()));
                        break;
                    }
                    Ok(Err(status)) => reason = format!("`{address}`: {}", status.message()),
                    Err(_) => reason = format!("`{address}`: no answer in time"),
                }
            }
            found.ok_or(ClusterError::Unreachable(reason))?
        }
    };
    if granted(&renewed) != given || validity(&renewed)?.1 <= unix_now() {
        return Err(ClusterError::Identity("the renewed certificate is not as good as the old one".into()));
    }
    kept.keep_certificate(&renewed)
}

/// A backend whose certificate has run out while it was away signs itself a new one, before it speaks to anybody:
/// else a cluster that was off for long could not start.
pub(crate) fn sign_own(kept: &Kept, lifetime: Duration) -> Result<(), ClusterError> {
    let (_, until) = validity(&kept.certificate()?)?;
    if unix_now() < until {
        return Ok(());
    }
    let given = granted(&kept.certificate()?);
    let (Some(authority), Some(name)) = (kept.authority()?, given.name) else {
        return Err(ClusterError::Join(
            "this node's certificate has expired while it was away: give it an empty data directory (`node.data_dir`) and a new token of `rookery cluster token`; what is kept at the backends stays".into(),
        ));
    };
    let renewed = authority.sign(&request(&kept.key()?)?, name, given.roles, lifetime)?;
    tracing::warn!(target: "audit", name = name.uri(), "signed a new certificate in place of one that had expired");
    kept.keep_certificate(&renewed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::credentials::validity;

    const BOTH: Roles = Roles { frontend: true, backend: true };
    const HOUR: Duration = Duration::from_secs(3600);

    fn refusal(result: Result<Joined, ClusterError>) -> String {
        result.expect_err("it is refused").to_string()
    }

    #[test]
    fn a_cluster_is_made_once_and_by_a_backend() {
        let dir = tempfile::tempdir().unwrap();
        let frontend = Roles { frontend: true, backend: false };
        assert!(refusal(init(dir.path(), "a:1", frontend, HOUR)).contains("a frontend cannot be the first"));
        let made = init(dir.path(), "a:1", BOTH, HOUR).unwrap();
        assert!(
            refusal(init(dir.path(), "a:1", BOTH, HOUR)).contains("holds the identity of a node already")
        );
        let birth = Certificate::open(&dir.path().join("cluster")).unwrap();
        assert_eq!(birth.born().cluster, Some(made.cluster));
        let kept = Kept::in_cluster_dir(&dir.path().join("cluster"));
        let named = granted(&kept.certificate().unwrap());
        assert_eq!(named.name, Some(NodeName { cluster: made.cluster, key: birth.born().key }));
        assert_eq!((named.roles, made.name), (BOTH, named.name.unwrap().uri()));
    }

    #[test]
    fn a_lone_node_keeps_its_cluster_and_one_of_several_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let birth = Certificate::open(&dir.path().join("cluster")).unwrap();
        let me = birth.born().member;
        birth.belong(ClusterId(5), 0, &[(me, "a:1".into())]).unwrap();
        assert!(is_first(&birth, false));
        assert_eq!(init(dir.path(), "a:1", BOTH, HOUR).unwrap().cluster, ClusterId(5));

        let dir = tempfile::tempdir().unwrap();
        let birth = Certificate::open(&dir.path().join("cluster")).unwrap();
        assert!(is_first(&birth, true) && !is_first(&birth, false));
        birth.belong(ClusterId(5), 0, &[]).unwrap();
        assert!(!is_first(&birth, true));
        assert!(refusal(init(dir.path(), "a:1", BOTH, HOUR)).contains("which has other nodes"));
    }

    #[tokio::test]
    async fn a_node_that_cannot_join_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Roles { frontend: false, backend: true };
        let token = Token::draw([1; 32], backend, 0);
        let at = |address: Option<&str>| Ticket { token: token.clone(), address: address.map(str::to_owned) };
        let text = refusal(join(dir.path(), &at(None), &[], BOTH).await);
        assert!(
            text.contains("is for the roles `backend`, and `node.roles` says `frontend, backend`"),
            "{text}"
        );
        let text = refusal(join(dir.path(), &at(None), &[], backend).await);
        assert!(text.contains("nobody to join"), "{text}");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let text = refusal(join(dir.path(), &at(Some(&closed)), &[], backend).await);
        assert!(text.contains(&closed), "{text}");
        init(dir.path(), "a:1", BOTH, HOUR).unwrap();
        let text = refusal(join(dir.path(), &at(Some("a:1")), &[], backend).await);
        assert!(text.contains("belongs to a cluster already"), "{text}");
    }

    #[test]
    fn a_ticket_is_a_token_with_or_without_an_address() {
        let token = Token::draw([1; 32], BOTH, 0);
        let text = token.to_string();
        assert_eq!(Ticket::parse(&format!(" {text}\n")).unwrap().address, None);
        for address in ["node1.example.org:7400", "[::1]:7400"] {
            let ticket = Ticket::parse(&format!("{text}@{address}")).unwrap();
            assert_eq!((ticket.token, ticket.address.as_deref()), (token.clone(), Some(address)));
        }
        for wrong in
            [format!("{text}@"), format!("{text}@node1"), format!("{text}@node1:0"), format!("{text}@:1")]
        {
            assert!(Ticket::parse(&wrong).unwrap_err().to_string().contains("HOST:PORT"), "{wrong}");
        }
        assert!(Ticket::parse("secret@a:1").unwrap_err().to_string().contains("this is no join token"));
    }

    #[test]
    fn a_backend_that_was_away_for_long_signs_itself_a_certificate_and_a_frontend_cannot() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), "a:1", BOTH, Duration::ZERO).unwrap();
        let kept = Kept::in_cluster_dir(&dir.path().join("cluster"));
        let before = granted(&kept.certificate().unwrap());
        sign_own(&kept, HOUR).unwrap();
        let own = kept.certificate().unwrap();
        assert!(validity(&own).unwrap().1 > unix_now() + 3000);
        assert_eq!(granted(&own), before);
        // One that is still good stays.
        sign_own(&kept, HOUR * 100).unwrap();
        assert_eq!(kept.certificate().unwrap(), own);

        let authority = kept.authority().unwrap().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let frontend = Kept::in_cluster_dir(dir.path());
        let asked = request(&frontend.key().unwrap()).unwrap();
        frontend.keep_ca(authority.certificate()).unwrap();
        let name = before.name.unwrap();
        frontend.keep_certificate(&authority.sign(&asked, name, BOTH, Duration::ZERO).unwrap()).unwrap();
        let text = sign_own(&frontend, HOUR).unwrap_err().to_string();
        assert!(text.contains("has expired while it was away"), "{text}");
    }
}

//! Who may speak to whom: what a certificate says of its node, and what a caller may claim.
//!
//! Every certificate carries the DNS name `rookery-cluster`, which is what a caller verifies, and one of
//! `frontend.rookery-cluster` and `backend.rookery-cluster`, or both, for the roles that the authority granted.
//! One that the cluster itself issued also names its node, as the URI `rookery://CLUSTER/KEY`: the id of the
//! cluster and what the node's data directory calls itself, both in hexadecimal. The route table knows the node
//! id and the Raft member of each key.

pub mod audit;
pub(crate) mod authority;
pub(crate) mod credentials;
pub(crate) mod door;
pub(crate) mod entry;
pub(crate) mod gate;
pub mod joining;
pub(crate) mod kept;
pub(crate) mod service;
pub mod token;
pub(crate) mod weight;

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    identity::{
        audit::{Audit, Reason},
        weight::Load,
    },
    role::{ClusterId, MemberId, NodeId, Roles},
    routes::{Command, NodeRow},
    table::TableView,
};

/// The name in every certificate of a cluster.
pub const CLUSTER_NAME: &str = "rookery-cluster";
/// The name that lets a node be a backend.
pub const BACKEND_NAME: &str = "backend.rookery-cluster";
/// The name that lets a node be a frontend.
pub const FRONTEND_NAME: &str = "frontend.rookery-cluster";
/// How the name of a node in a certificate begins.
const SCHEME: &str = "rookery://";

/// Whom a certificate of the cluster's own authority names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// The cluster that the node belongs to.
    pub cluster: ClusterId,
    /// What its data directory calls itself; the route table knows its node id.
    pub key: u128,
}

impl NodeName {
    /// As it stands in a certificate.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{:032x}", self.cluster, self.key)
    }

    fn parse(uri: &str) -> Option<NodeName> {
        let (cluster, key) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        // One spelling only: what is compared elsewhere as a text must not have two.
        let hex = |text: &str| {
            let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            plain.then(|| u128::from_str_radix(text, 16).ok()).flatten()
        };
        Some(NodeName { cluster: ClusterId(hex(cluster)?), key: hex(key)? })
    }
}

/// What a certificate grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The roles.
    pub roles: Roles,
    /// The node; `None` in a certificate that an operator's own authority made.
    pub name: Option<NodeName>,
}

impl Granted {
    const NOTHING: Granted = Granted { roles: Roles { frontend: false, backend: false }, name: None };
}

/// What a certificate grants: nothing, if it cannot be read or names its node in a way that is none.
pub fn granted(certificate: &CertificateDer<'_>) -> Granted {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Granted::NOTHING };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Granted::NOTHING };
    let names = &names.value.general_names;
    let has = |wanted: &str| names.iter().any(|n| matches!(n, GeneralName::DNSName(d) if *d == wanted));
    let roles = Roles { frontend: has(FRONTEND_NAME), backend: has(BACKEND_NAME) };
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.get(..8).is_some_and(|s| s.eq_ignore_ascii_case("rookery:")) => {
            Some(*uri)
        }
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Granted { roles, name: None },
        (Some(uri), None) => match NodeName::parse(uri) {
            Some(name) => Granted { roles, name: Some(name) },
            None => Granted::NOTHING,
        },
        (Some(_), Some(_)) => Granted::NOTHING,
    }
}

/// How a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Over a listener without TLS, which only exists by explicit setting.
    Plain,
    /// Over TLS and without a certificate: it may knock with a token and do nothing else.
    Stranger,
    /// With a certificate of the cluster's authority.
    Certified(Granted),
}

/// Who is at the other end of a connection; an extension of every request that comes over it.
#[derive(Clone, Debug)]
pub struct Caller {
    kind: Kind,
    from: Option<std::net::SocketAddr>,
    view: Arc<TableView>,
    audit: Arc<Audit>,
    load: Arc<Load>,
}

impl Caller {
    /// Whoever reaches a plain listener.
    pub fn plain(view: Arc<TableView>, audit: Arc<Audit>) -> Caller {
        Caller { kind: Kind::Plain, from: None, view, audit, load: Arc::default() }
    }

    /// Whoever came over TLS with this certificate, or with none.
    pub(crate) fn over_tls(
        certificate: Option<&CertificateDer<'_>>,
        from: Option<std::net::SocketAddr>,
        view: Arc<TableView>,
        audit: Arc<Audit>,
    ) -> Caller {
        let kind = certificate.map_or(Kind::Stranger, |own| Kind::Certified(granted(own)));
        Caller { kind, from, view, audit, load: Arc::default() }
    }

    /// The roles that it may act in.
    pub fn roles(&self) -> Roles {
        match self.kind {
            Kind::Plain => Roles::default(),
            Kind::Stranger => Granted::NOTHING.roles,
            Kind::Certified(granted) => granted.roles,
        }
    }

    /// The node that its certificate names.
    pub fn name(&self) -> Option<NodeName> {
        match self.kind {
            Kind::Certified(granted) => granted.name,
            _ => None,
        }
    }

    /// Whether it has neither a certificate nor a plain link.
    pub fn is_stranger(&self) -> bool {
        self.kind == Kind::Stranger
    }

    /// Says no, counts it and says so in the audit log.
    pub fn refuse(&self, reason: Reason, text: impl Into<String>) -> Status {
        let text = text.into();
        self.note(reason, &text);
        let mut status = Status::permission_denied(text);
        status.metadata_mut().insert(WHY, tonic::metadata::MetadataValue::from_static(reason.word()));
        status
    }

    /// Says that this is more than is taken from one caller.
    pub(crate) fn too_much(&self, text: &str) -> Status {
        self.note(Reason::Size, text);
        Status::resource_exhausted(text)
    }

    fn note(&self, reason: Reason, text: &str) {
        let name = self.name().map(|name| name.uri()).unwrap_or_default();
        let from = self.from.map(|from| from.to_string()).unwrap_or_default();
        self.audit.refused(reason, text, &name, &from);
    }

    /// What its connection has in work.
    pub(crate) fn load(&self) -> Arc<Load> {
        self.load.clone()
    }

    /// Refuses a node that was removed from the cluster, and one of another cluster.
    pub(crate) fn is_welcome(&self, cluster: Option<ClusterId>) -> Result<(), Status> {
        let Some(name) = self.name() else { return Ok(()) };
        if cluster.is_some_and(|ours| ours != name.cluster) {
            let text = format!("this certificate is of another cluster, `{}`", name.cluster);
            return Err(self.refuse(Reason::Cluster, text));
        }
        if self.view.routes.read().trust().is_removed(name.key) {
            return Err(self.refuse(Reason::Removed, REMOVED));
        }
        Ok(())
    }

    /// Refuses a node id that is not the caller's own. One that the table here does not know yet is for the
    /// service to refuse.
    pub fn claims_node(&self, node: NodeId) -> Result<(), Status> {
        let Some(name) = self.name() else { return Ok(()) };
        let row = self.view.node(node);
        if row.is_none_or(|row| row.key == name.key) {
            return Ok(());
        }
        Err(self.not_its_own(&format!("node {node}")))
    }

    /// Refuses a member id that the table gives to another node, or that was removed.
    pub(crate) fn claims_member(&self, member: MemberId) -> Result<(), Status> {
        let routes = self.view.routes.read();
        if routes.trust().is_removed_member(member) {
            drop(routes);
            return Err(self.refuse(Reason::Removed, REMOVED));
        }
        let Some(name) = self.name() else { return Ok(()) };
        let others = |row: Option<&NodeRow>| row.is_some_and(|row| row.key != name.key);
        let another = |row: Option<&NodeRow>| row.is_some_and(|row| row.member != Some(member));
        if !others(routes.node_of_member(member)) && !another(routes.node_of_key(name.key)) {
            return Ok(());
        }
        drop(routes);
        Err(self.not_its_own(&format!("member {member}")))
    }

    /// Refuses roles that the certificate does not grant.
    pub fn claims_roles(&self, claimed: Roles) -> Result<(), Status> {
        let granted = self.roles();
        if (granted.frontend || granted.backend) && granted.include(claimed) {
            return Ok(());
        }
        let text = format!("this certificate grants the roles `{granted}`, not `{claimed}`");
        Err(self.refuse(Reason::Role, text))
    }

    /// Refuses a command to the table that is not the caller's to give: a node speaks for itself alone, and who
    /// is no backend lets nobody in and takes nobody out.
    pub(crate) fn may_propose(&self, command: &Command) -> Result<(), Status> {
        match command {
            Command::Bind { node, .. }
            | Command::Attach { node, .. }
            | Command::NodeDrain { node, .. }
            | Command::NodeUndrain { node, .. }
            | Command::NodeDoors { node, .. }
            | Command::ExpireNode { node, .. }
            | Command::Resync { node, .. } => self.claims_node(*node),
            // By the life of a session, which only its own node knows.
            Command::Unbind { .. }
            | Command::SetPriority { .. }
            | Command::Hide { .. }
            | Command::Detach { .. } => Ok(()),
            Command::Kick { .. } => Ok(()),
            Command::NodeUp { key, roles, member, .. } => {
                self.claims_roles(*roles)?;
                if self.name().is_some_and(|name| name.key != *key) {
                    return Err(self.not_its_own("the key of another node"));
                }
                member.map_or(Ok(()), |member| self.claims_member(member))
            }
            Command::Forget { .. }
            | Command::AddToken { .. }
            | Command::RevokeToken { .. }
            | Command::SpendToken { .. }
            | Command::Remove { .. }
            | Command::NodeLeave { .. } => {
                if self.roles().backend {
                    return Ok(());
                }
                Err(self.refuse(Reason::Role, "only a backend may let nodes in and take them out"))
            }
        }
    }

    fn not_its_own(&self, claimed: &str) -> Status {
        let own =
            self.name().and_then(|name| self.view.routes.read().node_of_key(name.key).map(|row| row.node));
        let own = own.map_or_else(|| "no node that is known here".to_owned(), |node| format!("node {node}"));
        self.refuse(
            Reason::Identity,
            format!("this certificate is of {own}, and does not speak for {claimed}"),
        )
    }
}

/// Says in a refusal, beside its text, which kind it is.
pub(crate) const WHY: &str = "rookery-why";
/// What a removed node hears.
const REMOVED: &str = "this node was removed from the cluster";

/// Who made a request.
pub fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::permission_denied("nobody knows who asks"))
}

/// Refuses whoever is no backend: a frontend never speaks Raft.
pub fn may_speak_raft<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = caller(request)?;
    if caller.roles().backend {
        return Ok(caller);
    }
    Err(caller.refuse(Reason::Role, "only a backend's certificate may do this"))
}

/// Refuses whoever is no node of the cluster.
pub fn is_node<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = caller(request)?;
    match caller.roles() {
        Roles { frontend: false, backend: false } => {
            Err(caller.refuse(Reason::Certificate, "only a node's certificate may do this"))
        }
        _ => Ok(caller),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::role::{Incarnation, Sid};

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_grants_the_roles_that_it_names_to_the_node_that_it_names() {
        const NODE: &str = "rookery://0000000000000000000000000000000a/0000000000000000000000000000000b";
        const OTHER: &str = "rookery://0000000000000000000000000000000a/0000000000000000000000000000000c";
        let name = NodeName { cluster: ClusterId(10), key: 11 };
        assert_eq!(name.uri(), NODE);
        let table = [
            (vec![CLUSTER_NAME], (false, false), None),
            (vec![CLUSTER_NAME, FRONTEND_NAME], (true, false), None),
            (vec![CLUSTER_NAME, BACKEND_NAME], (false, true), None),
            (vec![CLUSTER_NAME, BACKEND_NAME, FRONTEND_NAME], (true, true), None),
            (vec!["x.backend.rookery-cluster"], (false, false), None),
            (vec![CLUSTER_NAME, FRONTEND_NAME, NODE], (true, false), Some(name)),
            (vec![NODE, CLUSTER_NAME, BACKEND_NAME, "https://example.org/x"], (false, true), Some(name)),
            // Somebody else's scheme is not ours.
            (vec![BACKEND_NAME, "spiffe://example.org/backend"], (false, true), None),
            // Who is named twice, or in a way that is none, is granted nothing at all.
            (vec![BACKEND_NAME, NODE, OTHER], (false, false), None),
            (vec![BACKEND_NAME, NODE, NODE], (false, false), None),
            (vec![BACKEND_NAME, "rookery://a/b"], (false, false), None),
            (vec![BACKEND_NAME, "rookery:nobody"], (false, false), None),
            (
                vec![
                    BACKEND_NAME,
                    "ROOKERY://0000000000000000000000000000000a/0000000000000000000000000000000b",
                ],
                (false, false),
                None,
            ),
            (
                vec![
                    BACKEND_NAME,
                    "rookery://0000000000000000000000000000000A/0000000000000000000000000000000b",
                ],
                (false, false),
                None,
            ),
            (
                vec![
                    BACKEND_NAME,
                    "rookery://0000000000000000000000000000000a/0000000000000000000000000000000b/c",
                ],
                (false, false),
                None,
            ),
            (
                vec![
                    BACKEND_NAME,
                    "rookery://+000000000000000000000000000000a/0000000000000000000000000000000b",
                ],
                (false, false),
                None,
            ),
        ];
        for (names, (frontend, backend), name) in table {
            let expected = Granted { roles: Roles { frontend, backend }, name };
            assert_eq!(granted(&certificate(&names)), expected, "{names:?}");
        }
        assert_eq!(granted(&CertificateDer::from(vec![1, 2, 3])), Granted::NOTHING);
    }

    /// A table with node 1 (key 10, member 100), node 2 (key 20, a frontend), and node 3 (key 30, member 300)
    /// that was removed.
    fn view() -> Arc<TableView> {
        let view = TableView::default();
        let up = |key: u128, member: Option<u64>| Command::NodeUp {
            key,
            start: key,
            name: format!("n{key}"),
            address: "h:1".into(),
            roles: Roles { frontend: true, backend: member.is_some() },
            member: member.map(MemberId),
        };
        let mut routes = view.routes.write();
        routes.apply(1, up(10, Some(100)), &mut Vec::new());
        routes.apply(2, up(20, None), &mut Vec::new());
        routes.apply(3, up(30, Some(300)), &mut Vec::new());
        routes.apply(4, Command::Remove { node: NodeId(3), until: 9, now: 1 }, &mut Vec::new());
        drop(routes);
        Arc::new(view)
    }

    fn named(key: u128, roles: Roles) -> Caller {
        let name = Some(NodeName { cluster: ClusterId(7), key });
        let kind = Kind::Certified(Granted { roles, name });
        Caller { kind, from: None, view: view(), audit: Arc::default(), load: Arc::default() }
    }

    const FRONTEND: Roles = Roles { frontend: true, backend: false };
    const BOTH: Roles = Roles { frontend: true, backend: true };

    #[test]
    fn a_node_speaks_for_itself_alone() {
        let (first, second) = (named(10, BOTH), named(20, FRONTEND));
        let (one, two, incarnation) = (NodeId(1), NodeId(2), Incarnation(1));
        let jid = jid::FullJid::new("a@x/r").unwrap();
        let up = |key, roles, member: Option<u64>| Command::NodeUp {
            key,
            start: 1,
            name: String::new(),
            address: String::new(),
            roles,
            member: member.map(MemberId),
        };
        let policy = Default::default();
        let bind = |node| Command::Bind { jid: jid.clone(), node, incarnation, sid: Sid(1), policy };
        let resync = |node| Command::Resync { node, incarnation, living: vec![] };
        // A command, and whether node 1 (a backend) and node 2 (a frontend) may give it.
        let table = [
            (bind(one), true, false),
            (bind(two), false, true),
            (resync(two), false, true),
            (Command::NodeDrain { node: one, incarnation }, true, false),
            (Command::ExpireNode { node: two, incarnation }, false, true),
            (Command::ExpireNode { node: one, incarnation }, true, false),
            (Command::Unbind { jid: jid.clone(), sid: Sid(1) }, true, true),
            (Command::Kick { jid: jid.clone() }, true, true),
            (up(10, BOTH, Some(100)), true, false),
            (up(20, FRONTEND, None), false, true),
            (up(10, BOTH, Some(101)), false, false),
            (up(20, BOTH, Some(200)), false, false),
            (Command::Forget { node: one }, true, false),
            (Command::RevokeToken { id: 1, now: 1 }, true, false),
            (Command::SpendToken { id: 1, by: [0; 32], roles: FRONTEND, key: 1, now: 1 }, true, false),
            (Command::Remove { node: one, until: 1, now: 1 }, true, false),
            (Command::NodeLeave { node: one }, true, false),
        ];
        for (command, by_first, by_second) in table {
            assert_eq!(first.may_propose(&command).is_ok(), by_first, "node 1: {command:?}");
            assert_eq!(second.may_propose(&command).is_ok(), by_second, "node 2: {command:?}");
        }
    }

    #[test]
    fn ids_are_held_against_the_certificate_and_the_table() {
        let (first, second, plain) =
            (named(10, BOTH), named(20, FRONTEND), Caller::plain(view(), Arc::default()));
        assert!(first.claims_node(NodeId(1)).is_ok() && first.claims_node(NodeId(2)).is_err());
        assert!(second.claims_node(NodeId(2)).is_ok() && plain.claims_node(NodeId(2)).is_ok());
        // Unknown here: that is for the service to say.
        assert!(first.claims_node(NodeId(9)).is_ok());
        assert!(first.claims_member(MemberId(100)).is_ok() && first.claims_member(MemberId(101)).is_err());
        assert!(named(11, BOTH).claims_member(MemberId(100)).is_err());
        // Neither the key nor the member is known here yet.
        assert!(named(11, BOTH).claims_member(MemberId(111)).is_ok());
        // A removed member is refused on any link.
        assert!(plain.claims_member(MemberId(300)).is_err() && plain.claims_member(MemberId(301)).is_ok());
        let status = first.claims_node(NodeId(2)).unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        assert_eq!(status.message(), "this certificate is of node 1, and does not speak for node 2");
        assert_eq!(first.audit.count(Reason::Identity), 2 + 1);
    }

    #[test]
    fn a_removed_node_and_one_of_another_cluster_are_not_welcome() {
        let ours = Some(ClusterId(7));
        assert!(named(10, BOTH).is_welcome(ours).is_ok() && named(10, BOTH).is_welcome(None).is_ok());
        let removed = named(30, BOTH).is_welcome(ours).unwrap_err();
        assert_eq!(removed.metadata().get(WHY).unwrap(), "removed");
        assert!(named(10, BOTH).is_welcome(Some(ClusterId(8))).is_err());
        assert!(Caller::plain(view(), Arc::default()).is_welcome(Some(ClusterId(8))).is_ok());
    }
}

//! Holds every call between nodes against one table: who may call what.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Either},
};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::{
    Caller,
    audit::Reason,
    weight::{Hold, Weighed},
};
use crate::links::Links;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever has a join token, without a certificate.
    Anyone,
    /// Every node of the cluster.
    Node,
    /// Backends.
    Backend,
}

/// Every method of a listener for nodes. One that is not here is refused to all: the admin service has a listener
/// of its own.
const METHODS: &[(&str, &[&str], Who)] = &[
    ("rookery.join.v1.Join", &["Redeem"], Who::Anyone),
    ("rookery.join.v1.Join", &["Renew"], Who::Node),
    ("rookery.join.v1.Join", &["Authority"], Who::Backend),
    ("rookery.membership.v1.Membership", &["Hello", "Submit", "Barrier", "Renew", "Follow"], Who::Node),
    ("rookery.membership.v1.Membership", &["Found"], Who::Backend),
    (
        "rookery.raft.v1.Raft",
        &["Append", "Vote", "Snapshot", "TakeOver", "Propose", "ReadIndex"],
        Who::Backend,
    ),
    ("rookery.relay.v1.Relay", &["Carry", "TakeOver"], Who::Node),
    ("rookery.sessions.v1.Sessions", &["Connections"], Who::Node),
    ("rookery.sessions.v1.Sessions", &["Drain", "Undrain"], Who::Backend),
    ("rookery.sight.v1.Sight", &["Look", "Check"], Who::Node),
    ("rookery.store.v1.Store", &["Get", "Scan", "Commit"], Who::Node),
];

fn who_may(path: &str) -> Option<Who> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    METHODS
        .iter()
        .find(|(name, methods, _)| *name == service && methods.contains(&method))
        .map(|(.., who)| *who)
}

/// Whether a caller may make a call.
fn allowed<'a>(links: &Links, caller: Option<&'a Caller>, path: &str) -> Result<&'a Caller, Status> {
    let Some(caller) = caller else { return Err(Status::permission_denied("nobody knows who asks")) };
    caller.is_welcome(links.cluster())?;
    let roles = caller.roles();
    let Some(who) = who_may(path) else {
        let text = format!("`{path}` is not for links between nodes");
        return Err(caller.refuse(Reason::Role, text));
    };
    match who {
        Who::Anyone => Ok(caller),
        Who::Node if roles.frontend || roles.backend => Ok(caller),
        Who::Backend if roles.backend => Ok(caller),
        Who::Node | Who::Backend if !roles.frontend => {
            Err(caller.refuse(Reason::Certificate, "only a node's certificate may do this"))
        }
        _ => Err(caller.refuse(Reason::Role, "only a backend's certificate may do this")),
    }
}

/// Puts the gate before all services of a listener.
#[derive(Clone)]
pub(crate) struct Gate(pub(crate) Arc<Links>);

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { links: self.0.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    links: Arc<Links>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<http::Response<Body>, Infallible>>,
        BoxFuture<'static, Result<http::Response<Body>, Infallible>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match allowed(&self.links, request.extensions().get::<Caller>(), request.uri().path()) {
            Ok(caller) => {
                let (caller, hold) = (caller.clone(), Arc::new(Hold::new(caller.load())));
                let held = hold.clone();
                let request = request.map(|body| Body::new(Weighed::new(body, caller, hold)));
                // A message counts until it is answered, not only until it is read.
                Either::Right(self.inner.call(request).inspect(move |_| drop(held)).boxed())
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::{
        identity::{Granted, Kind, NodeName},
        role::{ClusterId, MemberId, NodeId, Roles},
        routes::Command,
        table::TableView,
    };

    /// The rule for each service, written down a second time and in other words than the table of the gate.
    fn rule(service: &str, method: &str) -> Option<Who> {
        match (service, method) {
            // Operators come to the admin listener, never over a link.
            ("rookery.admin.v1.Admin", _) => None,
            ("rookery.raft.v1.Raft", _) => Some(Who::Backend),
            ("rookery.membership.v1.Membership", "Found") => Some(Who::Backend),
            ("rookery.membership.v1.Membership", _) => Some(Who::Node),
            // Whoever takes over a frontend must not be able to empty the others.
            ("rookery.sessions.v1.Sessions", "Drain" | "Undrain") => Some(Who::Backend),
            (
                "rookery.relay.v1.Relay"
                | "rookery.sessions.v1.Sessions"
                | "rookery.sight.v1.Sight"
                | "rookery.store.v1.Store",
                _,
            ) => Some(Who::Node),
            ("rookery.join.v1.Join", "Redeem") => Some(Who::Anyone),
            ("rookery.join.v1.Join", "Renew") => Some(Who::Node),
            ("rookery.join.v1.Join", "Authority") => Some(Who::Backend),
            _ => panic!("`{service}/{method}` is new: say here and in the gate who may call it"),
        }
    }

    fn methods() -> Vec<(String, String)> {
        let set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        let mut methods = Vec::new();
        for file in set.file.iter().filter(|file| file.package().starts_with("rookery.")) {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| (name.clone(), method.name().to_owned())));
            }
        }
        methods
    }

    /// Callers, with what they are: a node, a backend, welcome.
    fn callers() -> Vec<(&'static str, Caller, bool, bool, bool)> {
        let view = Arc::new(TableView::default());
        let up = Command::NodeUp {
            key: 66,
            start: 1,
            name: "gone".into(),
            address: "h:1".into(),
            roles: Roles::default(),
            member: Some(MemberId(66)),
        };
        let remove = Command::Remove { node: NodeId(1), until: 9, now: 1 };
        view.routes.write().apply(1, up, &mut Vec::new());
        view.routes.write().apply(2, remove, &mut Vec::new());
        let caller = |kind| Caller {
            kind,
            from: None,
            view: view.clone(),
            audit: Arc::default(),
            load: Arc::default(),
        };
        let named = |frontend, backend, cluster, key| {
            let name = Some(NodeName { cluster: ClusterId(cluster), key });
            caller(Kind::Certified(Granted { roles: Roles { frontend, backend }, name }))
        };
        let given = |frontend, backend| {
            caller(Kind::Certified(Granted { roles: Roles { frontend, backend }, name: None }))
        };
        vec![
            ("a plain link", caller(Kind::Plain), true, true, true),
            ("no certificate", caller(Kind::Stranger), false, false, true),
            ("a certificate without roles", given(false, false), false, false, true),
            ("an operator's frontend", given(true, false), true, false, true),
            ("an operator's backend", given(false, true), true, true, true),
            ("a frontend", named(true, false, 7, 1), true, false, true),
            ("a backend", named(false, true, 7, 1), true, true, true),
            ("a node of both roles", named(true, true, 7, 1), true, true, true),
            ("a named node without roles", named(false, false, 7, 1), false, false, true),
            ("a removed node", named(true, true, 7, 66), true, true, false),
            ("a node of another cluster", named(true, true, 8, 1), true, true, false),
        ]
    }

    #[tokio::test]
    async fn every_method_is_for_those_whom_the_rules_name_and_for_nobody_else() {
        let links = Arc::new(Links::new(None));
        links.set_cluster(ClusterId(7), 0);
        let answering =
            tower::service_fn(async |_: http::Request<Body>| Ok(http::Response::new(Body::empty())));
        let mut gated = Gate(links).layer(answering);
        let mut seen = 0;
        for (service, method) in methods() {
            for (who, caller, node, backend, welcome) in callers() {
                let expected = welcome
                    && match rule(&service, &method) {
                        None => false,
                        Some(Who::Anyone) => true,
                        Some(Who::Node) => node,
                        Some(Who::Backend) => backend,
                    };
                let mut request = http::Request::new(Body::empty());
                *request.uri_mut() = format!("/{service}/{method}").parse().unwrap();
                request.extensions_mut().insert(caller);
                let answer = gated.call(request).await.unwrap();
                let refused = answer.headers().get("grpc-status").map(|s| s.to_str().unwrap().to_owned());
                // 7 is PERMISSION_DENIED.
                let expected = if expected { None } else { Some("7".to_owned()) };
                assert_eq!(refused, expected, "{who} calls {service}/{method}");
                seen += 1;
            }
        }
        assert!(seen > 200, "{seen}");
        // Nobody gets past without having been looked at, nor to what is not there.
        for path in ["/rookery.raft.v1.Raft/Vote", "/", "", "/a/b", "/rookery.raft.v1.Raft/vote"] {
            let mut request = http::Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap_or_default();
            assert!(gated.call(request).await.unwrap().headers().contains_key("grpc-status"), "{path}");
        }
    }

    #[test]
    fn the_table_names_only_methods_that_there_are() {
        let there: BTreeSet<(String, String)> = methods().into_iter().collect();
        for (service, methods, _) in METHODS {
            for method in *methods {
                assert!(there.contains(&((*service).to_owned(), (*method).to_owned())), "{service}/{method}");
            }
        }
    }
}

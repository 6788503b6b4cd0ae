//! Answers nodes that want to come in, and those that want a younger certificate.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use proto::join::{
    AuthorityReply, AuthorityRequest, RedeemReply, RedeemRequest, RenewReply, RenewRequest, join_server,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    Caller, NodeName,
    audit::Reason,
    authority::{Authority, fingerprint_of_request},
    caller,
    credentials::unix_now,
    joining,
    token::sha256,
};
use crate::{
    batch::Batcher,
    error::ClusterError,
    role::{ClusterId, Roles},
    routes::{Command, Outcome},
    seam::random_bits,
    shared::{Shared, submit, wait_index},
    trust::TokenFault,
};

/// Tokens that are looked at in a second; whoever knocks beyond that is told to come again.
const KNOCKS: u32 = 20;
/// Largest request, in bytes.
pub(crate) const REQUEST_BYTES: usize = 16 << 10;

/// The service of one node.
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) batcher: Arc<Batcher>,
    pub(crate) knocks: Mutex<Knocks>,
}

/// How many knocks the present second has seen.
#[derive(Debug, Default)]
pub(crate) struct Knocks(Option<(Instant, u32)>);

impl Knocks {
    fn one_more(&mut self, now: Instant) -> bool {
        match &mut self.0 {
            Some((since, seen)) if now.saturating_duration_since(*since) < Duration::from_secs(1) => {
                *seen += 1;
                *seen <= KNOCKS
            }
            _ => {
                self.0 = Some((now, 1));
                true
            }
        }
    }
}

impl TokenFault {
    /// What whoever shows such a token is told.
    pub fn advice(self) -> &'static str {
        match self {
            TokenFault::Unknown => {
                "this cluster knows no such join token: make one with `rookery cluster token` at one of its backends"
            }
            TokenFault::Spent => {
                "this join token was used by another node: each is for one node, make another with `rookery cluster token`"
            }
            TokenFault::Expired => "this join token has expired: make another with `rookery cluster token`",
            TokenFault::Revoked => "this join token was revoked: make another with `rookery cluster token`",
            TokenFault::Role => {
                "this join token is for another role than `node.roles` of the node that joins: make one with `rookery cluster token --role`"
            }
        }
    }
}

fn failed(error: ClusterError) -> Status {
    Status::internal(error.to_string())
}

impl Service {
    async fn authority(&self) -> Result<(Arc<Authority>, ClusterId), Status> {
        if !self.shared.roles.backend {
            return Err(Status::failed_precondition("this node is a frontend: ask a backend of the cluster"));
        }
        let Some(cluster) = self.shared.links.cluster() else {
            return Err(Status::unavailable("this node belongs to no cluster yet"));
        };
        let authority = joining::authority(&self.shared).await.map_err(failed)?;
        let missing =
            "this backend has not got the key of the cluster's authority yet: try again, or ask another";
        Ok((authority.ok_or_else(|| Status::unavailable(missing))?, cluster))
    }

    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.shared.config.certificate_lifetime_s)
    }

    /// Looks at a token before the log is troubled with it.
    async fn known(&self, id: u64, secret: &[u8], by: &[u8; 32], roles: Roles) -> Result<(), TokenFault> {
        let look = || {
            let routes = self.shared.view.routes.read();
            let row = routes.trust().token(id).ok_or(TokenFault::Unknown)?;
            // Hashes of a random secret: how long a comparison takes says nothing of use.
            if row.hash != sha256(secret) {
                return Err(TokenFault::Unknown);
            }
            row.fits(by, roles, unix_now())
        };
        if look() != Err(TokenFault::Unknown) {
            return look();
        }
        // It may have been made a moment ago, at another backend.
        let deadline = Instant::now() + Duration::from_secs(2);
        if let Ok(index) = self.batcher.read_index(deadline).await {
            wait_index(&self.shared.hub, index, deadline).await;
        }
        look()
    }

    fn refuse(&self, caller: &Caller, id: u64, fault: TokenFault) -> Status {
        let status = caller.refuse(Reason::from(fault), fault.advice());
        tracing::debug!(target: "audit", token = format!("{id:016x}"), ?fault, "a join token was refused");
        status
    }
}

#[tonic::async_trait]
impl join_server::Join for Service {
    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<RedeemReply>, Status> {
        let caller = caller(&request)?.clone();
        if !self.knocks.lock().one_more(Instant::now()) {
            let text = "too many knock with join tokens: try again in a moment";
            return Err(Status::resource_exhausted(caller.refuse(Reason::Crowd, text).message().to_owned()));
        }
        let (authority, cluster) = self.authority().await?;
        let RedeemRequest { token, secret, request, frontend, backend } = request.into_inner();
        let roles = Roles { frontend, backend };
        if !frontend && !backend {
            return Err(Status::invalid_argument("a node needs at least one role"));
        }
        let by = fingerprint_of_request(&request).map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.known(token, &secret, &by, roles).await.map_err(|fault| self.refuse(&caller, token, fault))?;
        // The log decides who came first.
        let command = Command::SpendToken { id: token, by, roles, key: random_bits(), now: unix_now() };
        let spent = submit(&self.batcher, &command, self.shared.deadline()).await;
        let key = match spent.map_err(|e| Status::unavailable(e.to_string()))?.1 {
            Outcome::Admitted { key } => key,
            Outcome::Refused(fault) => return Err(self.refuse(&caller, token, fault)),
            other => return Err(Status::internal(format!("an answer that does not fit: {other:?}"))),
        };
        let name = NodeName { cluster, key };
        let certificate = authority.sign(&request, name, roles, self.lifetime()).map_err(failed)?;
        self.shared.audit.issued();
        let name = name.uri();
        tracing::info!(target: "audit", token = format!("{token:016x}"), %roles, name, "a node joined by a token");
        let mut backends = self.shared.backends();
        backends.push(self.shared.address.clone());
        Ok(Response::new(RedeemReply {
            certificate: certificate.to_vec().into(),
            authority: authority.certificate().to_vec().into(),
            cluster: self.shared.links.cluster_bytes(),
            key: key.to_be_bytes().to_vec().into(),
            backends,
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let caller = caller(&request)?.clone();
        let Some(name) = caller.name() else {
            let text = "only a certificate that the cluster issued is renewed by it";
            return Err(caller.refuse(Reason::Certificate, text));
        };
        let (authority, _) = self.authority().await?;
        let request = request.into_inner().request;
        let renewed = authority.sign(&request, name, caller.roles(), self.lifetime());
        let renewed = renewed.map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.shared.audit.issued();
        tracing::info!(target: "audit", name = name.uri(), "renewed a certificate");
        Ok(Response::new(RenewReply { certificate: renewed.to_vec().into() }))
    }

    async fn authority(
        &self,
        request: Request<AuthorityRequest>,
    ) -> Result<Response<AuthorityReply>, Status> {
        let caller = super::may_speak_raft(&request)?;
        let name = caller.name().map(|name| name.uri()).unwrap_or_default();
        // Not by way of another: two backends without it would ask each other.
        let authority = joining::authority_here(&self.shared).await.map_err(failed)?;
        let authority = authority.ok_or_else(|| Status::unavailable("this backend has not got it either"))?;
        tracing::info!(target: "audit", name, "gave the key of the cluster's authority to a backend");
        Ok(Response::new(AuthorityReply { key: authority.key_pem() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_knocks_is_answered_in_a_second() {
        let (mut knocks, now) = (Knocks::default(), Instant::now());
        assert_eq!((0..100).filter(|_| knocks.one_more(now)).count(), KNOCKS as usize);
        assert!(knocks.one_more(now + Duration::from_secs(1)));
    }
}

//! The calls of the admin service.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cluster::{AdmissionError, Cluster, NodeState, Roles, Row};
use futures::{Stream, StreamExt};
use hooks::Services;
use jid::{BareJid, FullJid, Jid};
use proto::admin;
use router::Router;
use stanza::address;
use store::{AccountError, Accounts, StoreError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Sight, Watching, answers, drains, groups, invariants,
    peers::{self, LocalSessions},
    watching,
};
use crate::{parts::Drainer, readiness::Readiness, scram};

/// Messages of a streamed answer that wait for a slow reader.
const WAITING: usize = 64;
/// Accounts read from the store at a time.
const PAGE: usize = 500;
/// How long a list waits for the newest route table before it shows what is here.
const FRESH: Duration = Duration::from_secs(1);

/// How often the nodes are asked until their tables can be compared.
const ROUNDS: usize = 2;

/// The longest that a join token can be used, in seconds.
const TTL_MAX_S: u64 = 30 * 24 * 3600;

/// Answers operators.
pub struct Admin {
    /// The cluster, for nodes, routes and kicks.
    pub cluster: Arc<Cluster>,
    /// The accounts of all hosts.
    pub accounts: Accounts,
    /// The domains that this server serves.
    pub hosts: Vec<String>,
    /// What makes, changes and ends accounts.
    pub router: Arc<Router>,
    /// Connections of this node's sessions.
    pub local: LocalSessions,
    /// What empties this node.
    pub drainer: Arc<Drainer>,
    /// Whether it is ready.
    pub readiness: Arc<Readiness>,
    /// What it sees of itself and the others.
    pub sight: Sight,
    /// Whoever watches the cluster here.
    pub watching: Arc<Watching>,
    /// Groups of contacts.
    pub groups: groups::Kept,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl admin::admin_server::Admin for Admin {
    async fn get_cluster(
        &self,
        _request: Request<admin::GetClusterRequest>,
    ) -> Result<Response<admin::GetClusterResponse>, Status> {
        self.freshen().await;
        let sessions = self.cluster.routes().sessions_by_node();
        Ok(Response::new(answers::state(&self.cluster.status(), &sessions, &self.hosts)))
    }

    type WatchClusterStream = watching::ViewStream;

    async fn watch_cluster(
        &self,
        _request: Request<admin::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        self.watching.watch().map(Response::new)
    }

    async fn check_cluster(
        &self,
        _request: Request<admin::CheckClusterRequest>,
    ) -> Result<Response<admin::CheckClusterResponse>, Status> {
        let mut answers = Vec::new();
        for _ in 0..ROUNDS {
            self.freshen().await;
            let (nodes, index) = (self.cluster.routes().nodes(), self.cluster.routes().index());
            answers = self.sight.check(&nodes, index).await;
            if invariants::is_comparable(&answers) {
                break;
            }
        }
        Ok(Response::new(admin::CheckClusterResponse { invariants: invariants::judge(&answers) }))
    }

    type ListSessionsStream = Streamed<admin::Session>;

    async fn list_sessions(
        &self,
        request: Request<admin::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        let request = request.into_inner();
        self.freshen().await;
        let routes = self.cluster.routes();
        let nodes = routes.nodes();
        let mut rows: Vec<Row> = Vec::new();
        let mut account = String::new();
        if request.account.is_empty() {
            routes.each(|row| rows.push(row.clone()));
        } else {
            let jid = bare(&request.account)?;
            rows = routes.users(&jid);
            account = jid.to_string();
        }
        rows.retain(|row| request.node == 0 || row.node.0 == request.node);
        let mut found = peers::connections(&self.cluster, &self.local, &rows, &account).await;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            for row in rows {
                // the reader has gone: nobody wants the rest
                if sender.send(Ok(answers::session(&row, &nodes, &mut found))).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_health(
        &self,
        _request: Request<admin::GetHealthRequest>,
    ) -> Result<Response<admin::GetHealthResponse>, Status> {
        let not_ready = self.readiness.not_ready().into_iter().map(str::to_owned).collect();
        Ok(Response::new(admin::GetHealthResponse { not_ready, not_live: self.readiness.not_live() }))
    }

    type DrainNodeStream = Streamed<admin::DrainProgress>;

    async fn drain_node(
        &self,
        request: Request<admin::DrainNodeRequest>,
    ) -> Result<Response<Self::DrainNodeStream>, Status> {
        let admin::DrainNodeRequest { node, rate_per_s, stop } = request.into_inner();
        let nodes = self.cluster.routes().nodes();
        let node = drains::find(&nodes, self.cluster.me().0, &node)?;
        let progress = drains::drain(&self.cluster, &self.drainer, node, rate_per_s, stop).await?;
        let name = nodes.iter().find(|row| row.node == node).map(|row| row.name.clone()).unwrap_or_default();
        let told = progress.map(move |now| now.map(|now| drains::told(&name, &now)));
        Ok(Response::new(Box::pin(told)))
    }

    async fn undrain_node(
        &self,
        request: Request<admin::UndrainNodeRequest>,
    ) -> Result<Response<admin::UndrainNodeResponse>, Status> {
        let nodes = self.cluster.routes().nodes();
        let node = drains::find(&nodes, self.cluster.me().0, &request.into_inner().node)?;
        drains::undrain(&self.cluster, &self.drainer, node).await?;
        let name = nodes.iter().find(|row| row.node == node).map(|row| row.name.clone()).unwrap_or_default();
        Ok(Response::new(admin::UndrainNodeResponse { node: name }))
    }

    async fn kick_session(
        &self,
        request: Request<admin::KickSessionRequest>,
    ) -> Result<Response<admin::KickSessionResponse>, Status> {
        let text = request.into_inner().jid;
        let jid = address::jid(&text)
            .map_err(|e| Status::invalid_argument(format!("`{text}` is no address: {e}")))?;
        match self.kick_all(&jid).await? {
            0 => Err(Status::not_found("no such session")),
            kicked => Ok(Response::new(admin::KickSessionResponse { kicked })),
        }
    }

    async fn create_account(
        &self,
        request: Request<admin::CreateAccountRequest>,
    ) -> Result<Response<admin::CreateAccountResponse>, Status> {
        let request = request.into_inner();
        let jid = self.account(&request.jid)?;
        match (&request.password, &request.scram_keys[..]) {
            (password, []) => self.router.create_account(&jid, password).await,
            (password, keys) if password.is_empty() => {
                let keys = scram::keys(keys.iter().map(String::as_str));
                let keys = keys.map_err(|(number, what)| {
                    Status::invalid_argument(format!("`scram_keys` {number}: {what}"))
                })?;
                self.router.bring_account(&jid, &keys).await
            }
            _ => return Err(Status::invalid_argument("a password and keys: choose one of them")),
        }
        .map_err(account_error)?;
        Ok(Response::new(admin::CreateAccountResponse { jid: jid.to_string() }))
    }

    async fn remove_account(
        &self,
        request: Request<admin::RemoveAccountRequest>,
    ) -> Result<Response<admin::RemoveAccountResponse>, Status> {
        let jid = self.account(&request.into_inner().jid)?;
        let removal = self.router.remove_account(&jid, None).await.map_err(account_error)?;
        let kicked = removal.end().await.map_err(|error| unfinished("is being removed", error))?;
        Ok(Response::new(admin::RemoveAccountResponse { kicked }))
    }

    async fn set_password(
        &self,
        request: Request<admin::SetPasswordRequest>,
    ) -> Result<Response<admin::SetPasswordResponse>, Status> {
        let request = request.into_inner();
        let jid = self.account(&request.jid)?;
        self.router.set_password(&jid, &request.password).await.map_err(account_error)?;
        let kicked = match request.end_sessions {
            true => self.kick_all(&jid).await?,
            false => 0,
        };
        Ok(Response::new(admin::SetPasswordResponse { kicked }))
    }

    async fn disable_account(
        &self,
        request: Request<admin::DisableAccountRequest>,
    ) -> Result<Response<admin::DisableAccountResponse>, Status> {
        let jid = self.account(&request.into_inner().jid)?;
        let disabled = self.router.disable_account(&jid).await;
        let kicked = disabled.map_err(|error| unfinished("is disabled, but its sessions go on", error))?;
        Ok(Response::new(admin::DisableAccountResponse { kicked }))
    }

    async fn enable_account(
        &self,
        request: Request<admin::EnableAccountRequest>,
    ) -> Result<Response<admin::EnableAccountResponse>, Status> {
        let jid = self.account(&request.into_inner().jid)?;
        self.router.enable_account(&jid).await.map_err(account_error)?;
        Ok(Response::new(admin::EnableAccountResponse {}))
    }

    type ListAccountsStream = Streamed<admin::Account>;

    async fn list_accounts(
        &self,
        request: Request<admin::ListAccountsRequest>,
    ) -> Result<Response<Self::ListAccountsStream>, Status> {
        let host = request.into_inner().host;
        let hosts = match host.as_str() {
            "" => self.hosts.clone(),
            host if self.hosts.iter().any(|h| h == host) => vec![host.to_owned()],
            host => return Err(Status::not_found(format!("`{host}` is not one of the hosts"))),
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        let accounts = self.accounts.clone();
        tokio::spawn(async move {
            for host in hosts {
                if let Err(error) = list(&accounts, &host, &sender).await {
                    let _ = sender.send(Err(store_error(error))).await;
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_groups(
        &self,
        request: Request<admin::ListGroupsRequest>,
    ) -> Result<Response<admin::ListGroupsResponse>, Status> {
        self.groups.list(&request.into_inner().host).await.map(Response::new)
    }

    async fn change_group(
        &self,
        request: Request<admin::ChangeGroupRequest>,
    ) -> Result<Response<admin::ChangeGroupResponse>, Status> {
        self.groups.change(request.into_inner()).await.map(Response::new)
    }

    async fn delete_group(
        &self,
        request: Request<admin::DeleteGroupRequest>,
    ) -> Result<Response<admin::DeleteGroupResponse>, Status> {
        let admin::DeleteGroupRequest { host, name } = request.into_inner();
        self.groups.delete(&host, &name).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<admin::CreateTokenRequest>,
    ) -> Result<Response<admin::CreateTokenResponse>, Status> {
        let admin::CreateTokenRequest { frontend, backend, ttl_s } = request.into_inner();
        if !frontend && !backend {
            return Err(Status::invalid_argument("a node needs at least one role"));
        }
        if !(1..=TTL_MAX_S).contains(&ttl_s) {
            let text = format!("a join token is good for 1 to {TTL_MAX_S} seconds (30 days), not {ttl_s}");
            return Err(Status::invalid_argument(text));
        }
        let roles = Roles { frontend, backend };
        let made = self.cluster.create_token(roles, Duration::from_secs(ttl_s)).await.map_err(admission)?;
        Ok(Response::new(admin::CreateTokenResponse {
            token: made.token.to_string(),
            id: format!("{:016x}", made.token.id),
            expires: made.token.expires,
            addresses: made.addresses,
        }))
    }

    async fn list_tokens(
        &self,
        _request: Request<admin::ListTokensRequest>,
    ) -> Result<Response<admin::ListTokensResponse>, Status> {
        let tokens = self.cluster.tokens().await.map_err(admission)?;
        let nodes = self.cluster.routes().nodes();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let tokens = tokens.iter().map(|token| answers::token(token, &nodes, now)).collect();
        Ok(Response::new(admin::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<admin::RevokeTokenRequest>,
    ) -> Result<Response<admin::RevokeTokenResponse>, Status> {
        let text = request.into_inner().id;
        let id = u64::from_str_radix(&text, 16).map_err(|_| {
            let how = "`rookery cluster token --list` shows them";
            Status::invalid_argument(format!("`{text}` is no number of a join token: {how}"))
        })?;
        self.cluster.revoke_token(id).await.map_err(admission)?;
        Ok(Response::new(admin::RevokeTokenResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<admin::RemoveNodeRequest>,
    ) -> Result<Response<admin::RemoveNodeResponse>, Status> {
        let named = request.into_inner().node;
        let (row, left_groups) = self.cluster.remove_node(&named).await.map_err(admission)?;
        let (id, lived) = (row.node.0, row.state != NodeState::Gone);
        Ok(Response::new(admin::RemoveNodeResponse { id, name: row.name, lived, left_groups }))
    }
}

impl Admin {
    /// Waits a little for the newest route table; without a quorum, the older one is shown.
    async fn freshen(&self) {
        let _ = tokio::time::timeout(FRESH, self.cluster.barrier()).await;
    }

    /// Ends one session, or all of an account. What the table does not know is not proposed: it would stay in
    /// the log.
    async fn kick_all(&self, jid: &Jid) -> Result<u32, Status> {
        self.freshen().await;
        let mut kicked = 0;
        let named = |row: &FullJid| jid.resource().is_none_or(|resource| resource == row.resource());
        for row in self.cluster.routes().users(&jid.to_bare()) {
            if !named(&row.jid) {
                continue;
            }
            kicked += u32::from(self.cluster.kick(&row.jid).await.map_err(unavailable)?);
        }
        Ok(kicked)
    }

    /// An address that can be an account of this server.
    fn account(&self, text: &str) -> Result<BareJid, Status> {
        let jid = bare(text)?;
        if jid.node().is_none() {
            return Err(Status::invalid_argument(format!("`{text}` has no name before the @")));
        }
        let host = jid.domain().as_str();
        if !self.hosts.iter().any(|h| h == host) {
            let hosts = self.hosts.join(", ");
            return Err(Status::invalid_argument(format!("`{host}` is not one of the hosts: {hosts}")));
        }
        Ok(jid)
    }
}

/// Sends the accounts of one host, page by page.
async fn list(
    accounts: &Accounts,
    host: &str,
    sender: &mpsc::Sender<Result<admin::Account, Status>>,
) -> Result<(), StoreError> {
    let mut after: Option<String> = None;
    loop {
        let page = accounts.list(host, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.bare.clone());
        for account in page {
            let line = admin::Account { jid: account.bare, state: account.state.word().to_owned() };
            if sender.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn bare(text: &str) -> Result<BareJid, Status> {
    address::bare_jid(text).map_err(|e| Status::invalid_argument(format!("`{text}` is no bare address: {e}")))
}

fn unavailable(error: cluster::Unavailable) -> Status {
    Status::unavailable(error.to_string())
}

fn admission(error: AdmissionError) -> Status {
    let text = error.to_string();
    match error {
        AdmissionError::NotFound(_) => Status::not_found(text),
        AdmissionError::Refused(_) => Status::failed_precondition(text),
        AdmissionError::Unavailable(_) => Status::unavailable(format!(
            "{text}: a majority of the backends must live for this; `rookery cluster status` shows them"
        )),
        AdmissionError::Failed(_) => Status::internal(text),
    }
}

fn account_error(error: AccountError) -> Status {
    match error {
        AccountError::AlreadyExists => Status::already_exists("the account exists already"),
        AccountError::Leaving => Status::already_exists(
            "an account of that name is being removed; when that is done, a new one can be made",
        ),
        AccountError::NotFound => Status::not_found("no such account"),
        AccountError::BadPassword => Status::invalid_argument(
            "this password cannot be used: it is empty or holds forbidden characters",
        ),
        AccountError::Busy => {
            Status::resource_exhausted("too many passwords are being set; try again in a moment")
        }
        AccountError::Store(error) => store_error(error),
    }
}

/// What was begun counts, and the rest did not happen: the operator is told both.
fn unfinished(what: &str, error: AccountError) -> Status {
    match error {
        AccountError::Store(error) => {
            let status = store_error(error);
            Status::new(status.code(), format!("the account {what}: {}; try again", status.message()))
        }
        error => account_error(error),
    }
}

pub(super) fn store_error(error: StoreError) -> Status {
    match error {
        StoreError::Deadline => Status::deadline_exceeded(error.to_string()),
        StoreError::Full => Status::resource_exhausted(error.to_string()),
        StoreError::Corrupt { .. } => Status::data_loss(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

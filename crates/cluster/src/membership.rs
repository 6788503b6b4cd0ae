//! Answers other nodes: introductions, births, commands, barriers, leases and followers of the table.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, future::join_all};
use proto::membership::{
    BarrierReply, BarrierRequest, FollowItem, FollowRequest, FoundReply, FoundRequest, Founder, HelloReply,
    HelloRequest, Outcome, Peer, RenewReply, RenewRequest, SubmitReply, SubmitRequest, membership_server,
    renew_reply::Verdict,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataValue};

use crate::{
    identity::{self, Caller, audit::Reason},
    links::{of_another_epoch, read_cluster, read_epoch},
    raft::group::Group,
    role::{Incarnation, MemberId, NodeId, Roles},
    routes::Command,
    seam,
    shared::Shared,
};

/// Says which cluster a node belongs to that refuses one of another.
pub(crate) const CLUSTER: &str = "rookery-cluster-bin";

/// Bytes of a snapshot per message.
const PART: usize = 256 << 10;
/// A follower hears from its backend at least this often, as long as the backend holds its lease.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// A follower for which a snapshot is made hears of it this often; a large table takes seconds.
const COMES: Duration = Duration::from_millis(300);
/// How many items may be on their way to a follower.
const AHEAD: usize = 64;

/// The service of one node.
pub(crate) struct Service(pub(crate) Arc<Shared>);

impl Service {
    fn check<T>(&self, request: &Request<T>, cluster: &[u8]) -> Result<Group, Status> {
        let caller = identity::is_node(request)?;
        self.of_this_cluster(caller, cluster)?;
        self.0.routes_group().ok_or_else(|| Status::unimplemented("this node is no backend"))
    }

    /// Refuses a node of another cluster or epoch, and says which ones are this node's.
    fn refused(&self, caller: &Caller, text: String) -> Status {
        let mut status = caller.refuse(Reason::Cluster, text);
        let id = MetadataValue::from_bytes(&self.0.links.cluster_bytes());
        status.metadata_mut().insert_bin(CLUSTER, id);
        status
    }

    fn of_this_cluster(&self, caller: &Caller, cluster: &[u8]) -> Result<(), Status> {
        let checked = self.0.links.check(cluster);
        checked.map_err(|status| match status.code() {
            tonic::Code::PermissionDenied => caller.refuse(Reason::Cluster, status.message()),
            _ => status,
        })
    }
}

pub(crate) fn founders_out(founders: &[(MemberId, String)]) -> Vec<Founder> {
    founders.iter().map(|(member, address)| Founder { member: member.0, address: address.clone() }).collect()
}

pub(crate) fn founders_in(founders: &[Founder]) -> Vec<(MemberId, String)> {
    founders.iter().map(|founder| (MemberId(founder.member), founder.address.clone())).collect()
}

#[tonic::async_trait]
impl membership_server::Membership for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let peer = request.get_ref().peer.clone().unwrap_or_default();
        let caller = identity::is_node(&request)?;
        caller.claims_roles(Roles { frontend: peer.frontend, backend: peer.backend })?;
        let ours = self.0.links.cluster();
        let theirs = read_cluster(&peer.cluster);
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            let text = format!(
                "this node belongs to cluster `{ours}`, and who knocks belongs to cluster `{theirs}`"
            );
            return Err(self.refused(caller, text));
        }
        if theirs.is_some() && ours.is_some() {
            let (ours, theirs) = (self.0.links.epoch(), read_epoch(&peer.cluster));
            if theirs > ours {
                // What this node has is no part of that cluster any more; it finds out there.
                self.0.known.lock().note_other(&peer.address);
            }
            // A frontend keeps nothing of its cluster, and goes on in the epoch of whom it meets.
            if theirs > ours || (theirs < ours && peer.backend) {
                return Err(self.refused(caller, of_another_epoch(ours, theirs)));
            }
        }
        if peer.member != 0 {
            caller.claims_member(MemberId(peer.member))?;
        }
        // Whoever knocks can be knocked at: one good seed is enough for all.
        self.0.known.lock().note_other(&peer.address);
        if theirs.is_some() && peer.member != 0 {
            self.0.links.learn(MemberId(peer.member), &peer.address);
        }
        let known = self.0.known.lock().others.iter().cloned().collect::<Vec<_>>();
        let others = known.into_iter().map(|address| Peer { address, ..Peer::default() }).collect();
        let founders = founders_out(&self.0.certificate.born().founders);
        Ok(Response::new(HelloReply { peer: Some(self.0.introduction()), others, founders }))
    }

    async fn found(&self, request: Request<FoundRequest>) -> Result<Response<FoundReply>, Status> {
        identity::may_speak_raft(&request)?;
        let request = request.into_inner();
        let cluster =
            read_cluster(&request.cluster).ok_or_else(|| Status::invalid_argument("no cluster id"))?;
        let founders = founders_in(&request.founders);
        let included = self.0.member().is_some_and(|me| founders.iter().any(|(member, _)| *member == me));
        let accepted = match self.0.links.cluster() {
            Some(ours) => ours == cluster,
            None if !included => false,
            None if !self.0.promise.lock().give(cluster, Instant::now()) => false,
            None if request.confirmed => {
                // Kept before it is confirmed: from then on no other birth is possible here.
                let kept = self.0.certificate.belong(cluster, 0, &founders);
                kept.map_err(|e| Status::internal(e.to_string()))?;
                self.0.links.set_cluster(cluster, 0);
                true
            }
            None => true,
        };
        Ok(Response::new(FoundReply { accepted, cluster: self.0.links.cluster_bytes() }))
    }

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitReply>, Status> {
        let group = self.check(&request, &request.get_ref().cluster)?;
        let caller = identity::is_node(&request)?;
        for command in &request.get_ref().commands {
            // What cannot be read is refused here: in the log it would be in everybody's way.
            let command = Command::decode(command)
                .ok_or_else(|| Status::invalid_argument("a command that cannot be read"))?;
            caller.may_propose(&command)?;
        }
        let request = request.into_inner();
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let proposals = request.commands.into_iter().map(|command| group.propose(command, deadline));
        let mut outcomes = Vec::new();
        for proposed in join_all(proposals).await {
            let proposed = proposed.map_err(|e| Status::unavailable(e.to_string()))?;
            outcomes.push(Outcome { index: proposed.index, outcome: proposed.reply });
        }
        Ok(Response::new(SubmitReply { outcomes }))
    }

    async fn barrier(&self, request: Request<BarrierRequest>) -> Result<Response<BarrierReply>, Status> {
        let group = self.check(&request, &request.get_ref().cluster)?;
        let deadline = Instant::now() + Duration::from_millis(request.get_ref().timeout_ms);
        let index = group.read_index(deadline).await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(BarrierReply { index }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        self.check(&request, &request.get_ref().cluster)?;
        let RenewRequest { node, incarnation, passed_on, index, .. } = *request.get_ref();
        if passed_on {
            // The backend that heard the node itself has checked who it is.
            identity::may_speak_raft(&request)?;
        } else {
            identity::is_node(&request)?.claims_node(NodeId(node))?;
        }
        let (node, incarnation) = (NodeId(node), Incarnation(incarnation));
        let mut reply = self.0.grant(node, incarnation, index);
        if reply.verdict() == Verdict::NotLeader
            && !passed_on
            && let Some(verdict) = self.0.pass_on(node, incarnation, index).await
        {
            reply.verdict = verdict.into();
            reply.passed_on = true;
        }
        Ok(Response::new(reply))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowItem, Status>> + Send>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        self.check(&request, &request.get_ref().cluster)?;
        let (items, queue) = mpsc::channel(AHEAD);
        tokio::spawn(feed(self.0.clone(), request.get_ref().from, items));
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

/// Feeds one follower until it goes away or this backend has lost its lease.
async fn feed(shared: Arc<Shared>, mut from: u64, items: mpsc::Sender<Result<FollowItem, Status>>) {
    let mut index = shared.hub.index();
    loop {
        let entries = if from == 0 { None } else { shared.hub.since(from) };
        let batch: Vec<FollowItem> = match entries {
            Some(entries) => entries
                .into_iter()
                .map(|(index, commands)| FollowItem { index, commands, ..FollowItem::default() })
                .collect(),
            None if shared.view.index() == 0 => Vec::new(),
            None => match snapshot(&shared, &items).await {
                Some(pieces) => pieces,
                None => return,
            },
        };
        let idle = batch.is_empty();
        for item in batch {
            from = from.max(item.index);
            if items.send(Ok(item)).await.is_err() {
                return;
            }
        }
        if !idle {
            continue;
        }
        index.borrow_and_update();
        if shared.view.index() > from {
            continue;
        }
        match timeout(SIGN_OF_LIFE, index.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            // Without a lease this copy may be old: the follower had better ask another backend.
            Err(_) if !shared.lease.lock().is_held(Instant::now()) => return,
            Err(_) => {
                if items.send(Ok(FollowItem::default())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A snapshot in pieces; `None`: the follower has gone.
async fn snapshot(
    shared: &Arc<Shared>,
    items: &mpsc::Sender<Result<FollowItem, Status>>,
) -> Option<Vec<FollowItem>> {
    let hub = shared.hub.clone();
    let mut made = pin!(seam::blocking(move || hub.snapshot()));
    let made = loop {
        match timeout(COMES, &mut made).await {
            Ok(made) => break made,
            Err(_) => {
                let comes = FollowItem { snapshot_comes: true, ..FollowItem::default() };
                items.send(Ok(comes)).await.ok()?;
            }
        }
    };
    let Ok((index, bytes)) = made else { return Some(Vec::new()) };
    let parts = bytes.len().div_ceil(PART).max(1);
    let part = |n: usize| -> Bytes { bytes.slice(n * PART..((n + 1) * PART).min(bytes.len())) };
    let item = |n: usize| {
        let ends = n + 1 == parts;
        FollowItem {
            snapshot: part(n),
            snapshot_ends: ends,
            index: if ends { index } else { 0 },
            ..FollowItem::default()
        }
    };
    Some((0..parts).map(item).collect())
}

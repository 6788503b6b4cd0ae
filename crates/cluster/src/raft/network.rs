//! Raft's messages over gRPC: the client that openraft calls, and the service that answers it.

use std::{collections::HashMap, future::Future, io, io::Read, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    BasicNode, OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{
        Fatal, NetworkError, PayloadTooLarge, RPCError, RaftError, ReplicationClosed, StreamingError,
        Unreachable,
    },
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use parking_lot::RwLock;
use proto::raft::{
    Answer, Message, ProposeReply, ProposeRequest, Proposed, ReadIndexReply, ReadIndexRequest, SnapshotPart,
    TakeOverReply, TakeOverRequest, raft_client::RaftClient, raft_server,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::{
    group::{Core, Group},
    handover::Elections,
    state,
    types::{Meta, SnapshotBody, SnapshotFile, TypeConfig, Vote},
};
use crate::{
    batch::Attempt,
    identity::{self, Caller, audit::Reason},
    links::{Links, MESSAGE_MAX},
    role::MemberId,
    seam,
};

/// Entries above this travel in several messages.
const APPEND_MAX: usize = 32 << 20;
/// Bytes of a snapshot per message.
const PART: usize = 256 << 10;

/// Makes links to members for one group.
pub(crate) struct Network {
    pub(crate) links: Arc<Links>,
    pub(crate) group: &'static str,
    pub(crate) dir: PathBuf,
    pub(crate) elections: Arc<Elections>,
}

/// A member as openraft calls it.
pub(crate) struct Peer {
    links: Arc<Links>,
    group: &'static str,
    dir: PathBuf,
    elections: Arc<Elections>,
    target: u64,
    address: String,
}

type CallError = RPCError<u64, BasicNode, RaftError<u64>>;

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let (links, dir, elections) = (self.links.clone(), self.dir.clone(), self.elections.clone());
        Peer { links, group: self.group, dir, elections, target, address: node.addr.clone() }
    }
}

/// A client of the member's Raft service, at the address where the member was last heard of.
pub(crate) fn client(links: &Links, member: MemberId, fallback: &str) -> Result<RaftClient<Channel>, Status> {
    let address = links.address(member).unwrap_or_else(|| fallback.into());
    if address.is_empty() {
        return Err(Status::unavailable(format!("the address of member `{member}` is not known")));
    }
    let client = RaftClient::new(links.channel(&address)?);
    Ok(client.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX))
}

impl Peer {
    fn message(&self, body: Bytes) -> Message {
        let (cluster, group) = (self.links.cluster_bytes(), self.group.into());
        Message { cluster, group, target: self.target, body }
    }

    fn client(&self) -> Result<RaftClient<Channel>, Status> {
        client(&self.links, MemberId(self.target), &self.address)
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        let entries = rpc.entries.len();
        let body = encode(&rpc).map_err(call_error)?;
        if body.len() > APPEND_MAX && entries > 1 {
            return Err(PayloadTooLarge::new_entries_hint((entries / 2) as u64).into());
        }
        let mut request = Request::new(self.message(body));
        request.set_timeout(option.hard_ttl());
        let answer = self.client().map_err(call_error)?.append(request).await.map_err(call_error)?;
        decode(&answer.into_inner().body).map_err(call_error)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        if self.elections.is_silent(rpc.vote.leader_id().term) {
            // Nobody is asked: as if the other one had said no.
            return Ok(VoteResponse::new(rpc.vote, None, false));
        }
        let mut request = Request::new(self.message(encode(&rpc).map_err(call_error)?));
        request.set_timeout(option.hard_ttl());
        let answer = self.client().map_err(call_error)?.vote(request).await.map_err(call_error)?;
        decode(&answer.into_inner().body).map_err(call_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = tokio::time::timeout(option.hard_ttl(), self.send_snapshot(vote, snapshot)) => match sent {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(status)) => Err(Unreachable::new(&status).into()),
                Err(late) => Err(Unreachable::new(&late).into()),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}

impl Peer {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotResponse<u64>, Status> {
        let (meta, mut file) = match *snapshot.snapshot {
            SnapshotBody::File(file) => (snapshot.meta, file),
            // What is sent may be newer than what openraft asked for; it carries its own place in the log.
            SnapshotBody::Fresh(thread) => state::written_out(&thread, &self.dir).await.map_err(disk)?,
            SnapshotBody::Empty => return Err(Status::internal("the snapshot is empty")),
        };
        let head = SnapshotPart { head: Some(self.message(encode(&(vote, meta))?)), data: Bytes::new() };
        let (parts, queue) = mpsc::channel(4);
        // The receiver of `parts` may go away; then the reading ends.
        let reading = async move {
            if parts.send(head).await.is_err() {
                return Ok(());
            }
            loop {
                let read = seam::blocking(move || {
                    let mut data = vec![0; PART];
                    let got = file.read(&mut data)?;
                    data.truncate(got);
                    Ok::<_, io::Error>((file, data))
                });
                let data;
                (file, data) = read.await??;
                let is_end = data.is_empty();
                let part = SnapshotPart { head: None, data: data.into() };
                if is_end || parts.send(part).await.is_err() {
                    return Ok(());
                }
            }
        };
        let mut client = self.client()?;
        let sending = client.snapshot(ReceiverStream::new(queue));
        let (answer, read): (_, io::Result<()>) = futures::future::join(sending, reading).await;
        let answer = answer?;
        read.map_err(disk)?;
        decode(&answer.into_inner().body)
    }
}

/// The groups of this node, by name.
#[derive(Default)]
pub(crate) struct Groups {
    groups: RwLock<HashMap<&'static str, Group>>,
}

impl Groups {
    pub(crate) fn add(&self, group: Group) {
        self.groups.write().insert(group.name(), group);
    }

    pub(crate) fn clear(&self) {
        self.groups.write().clear();
    }

    pub(crate) fn all(&self) -> Vec<Group> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Group> {
        self.groups.read().get(name).cloned()
    }
}

/// Answers members of this cluster.
pub(crate) struct Service {
    pub(crate) links: Arc<Links>,
    pub(crate) groups: Arc<Groups>,
}

impl Service {
    fn core<T>(&self, request: &Request<T>, cluster: &[u8], group: &str) -> Result<Arc<Core>, Status> {
        let caller = identity::may_speak_raft(request)?;
        self.links.check(cluster).map_err(|status| of_another_cluster(caller, status))?;
        let group = self.groups.get(group);
        group.map(|group| group.core()).ok_or_else(|| Status::unavailable("this node has no such group"))
    }

    fn addressed(&self, request: &Request<Message>) -> Result<Arc<Core>, Status> {
        let message = request.get_ref();
        let core = self.core(request, &message.cluster, &message.group)?;
        is_for(&core, message)?;
        Ok(core)
    }
}

fn of_another_cluster(caller: &Caller, status: Status) -> Status {
    match status.code() {
        Code::PermissionDenied => caller.refuse(Reason::Cluster, status.message()),
        _ => status,
    }
}

/// Refuses a member that speaks in the name of another: who leads and who wants to is in the vote.
fn spoken_by(caller: &Caller, vote: &Vote) -> Result<(), Status> {
    match vote.leader_id().voted_for() {
        Some(member) => caller.claims_member(MemberId(member)),
        None => Ok(()),
    }
}

fn is_for(core: &Core, message: &Message) -> Result<(), Status> {
    if core.member.0 != message.target {
        // Another node has this address now, or this one lost its disk: it must not vote in the other's name.
        return Err(Status::permission_denied(format!("this is member `{}`", core.member)));
    }
    Ok(())
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    async fn append(&self, request: Request<Message>) -> Result<Response<Answer>, Status> {
        let core = self.addressed(&request)?;
        let rpc: AppendEntriesRequest<TypeConfig> = decode(&request.get_ref().body)?;
        spoken_by(identity::caller(&request)?, &rpc.vote)?;
        answer(core.raft.append_entries(rpc).await)
    }

    async fn vote(&self, request: Request<Message>) -> Result<Response<Answer>, Status> {
        let core = self.addressed(&request)?;
        let rpc: VoteRequest<u64> = decode(&request.get_ref().body)?;
        spoken_by(identity::caller(&request)?, &rpc.vote)?;
        if !core.may_vote() {
            return Err(Status::unavailable("it has just started, and may have confirmed a leader before"));
        }
        answer(core.raft.vote(rpc).await)
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<Answer>, Status> {
        let caller = identity::may_speak_raft(&request)?.clone();
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.head);
        let head = first.ok_or_else(|| Status::invalid_argument("a snapshot begins with its head"))?;
        self.links.check(&head.cluster).map_err(|status| of_another_cluster(&caller, status))?;
        let group =
            self.groups.get(&head.group).ok_or_else(|| Status::unavailable("this node has no such group"))?;
        let core = group.core();
        is_for(&core, &head)?;
        let (vote, meta): (Vote, Meta) = decode(&head.body)?;
        spoken_by(&caller, &vote)?;
        let dir = core.dir.clone();
        let mut file =
            seam::blocking(move || state::unnamed(&dir)).await.and_then(|file| file).map_err(disk)?;
        let mut end = 0;
        while let Some(part) = parts.message().await? {
            end += part.data.len() as u64;
            let write = seam::blocking(move || io::Write::write_all(&mut file, &part.data).map(|()| file));
            file = write.await.and_then(|written| written).map_err(disk)?;
        }
        let file = SnapshotFile { file: Arc::new(file), at: 0, end };
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotBody::File(file)) };
        answer(core.raft.install_full_snapshot(vote, snapshot).await)
    }

    async fn take_over(&self, request: Request<TakeOverRequest>) -> Result<Response<TakeOverReply>, Status> {
        let TakeOverRequest { cluster, group, target, term, last_log, lead } = request.get_ref();
        let core = self.core(&request, cluster, group)?;
        if core.member.0 != *target {
            return Err(Status::permission_denied(format!("this is member `{}`", core.member)));
        }
        if let Some(leader) = core.leader() {
            identity::caller(&request)?.claims_member(leader)?;
        }
        let begun =
            if *lead { core.take_over(*term, *last_log).await } else { core.let_go_of_leader(*term).await };
        Ok(Response::new(TakeOverReply { begun }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let core = self.core(&request, &request.get_ref().cluster, &request.get_ref().group)?;
        let request = request.into_inner();
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        // Where it cannot be read it has its answer already, and the others are not held up by it.
        let refused: Vec<Option<Bytes>> =
            request.payloads.iter().map(|bytes| (core.refusal)(bytes)).collect();
        let mut payloads = request.payloads;
        let mut nth = refused.iter();
        payloads.retain(|_| nth.next().is_none_or(Option::is_none));
        let proposed = match payloads.is_empty() {
            true => Ok(Vec::new()),
            false => core.propose_here(payloads, deadline).await,
        };
        match proposed {
            Ok(results) => {
                let mut results = results.into_iter();
                let answers = refused.into_iter().map(|refused| match refused {
                    Some(reply) => Some(Proposed { index: 0, reply }),
                    None => results.next().map(|p| Proposed { index: p.index, reply: p.reply }),
                });
                let results = answers.flatten().collect();
                Ok(Response::new(ProposeReply { results, not_leader: false }))
            }
            Err(Attempt::Again(reason)) => {
                tracing::debug!(reason, "a proposal was sent back");
                Ok(Response::new(ProposeReply { results: Vec::new(), not_leader: true }))
            }
            Err(Attempt::Never(e)) => Err(Status::unavailable(e.to_string())),
        }
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        let core = self.core(&request, &request.get_ref().cluster, &request.get_ref().group)?;
        let deadline = Instant::now() + Duration::from_millis(request.get_ref().timeout_ms);
        match core.read_index_here(deadline).await {
            Ok(index) => Ok(Response::new(ReadIndexReply { index, not_leader: false })),
            Err(Attempt::Again(_)) => Ok(Response::new(ReadIndexReply { index: 0, not_leader: true })),
            Err(Attempt::Never(e)) => Err(Status::unavailable(e.to_string())),
        }
    }
}

fn answer<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Result<Response<Answer>, Status> {
    match result {
        Ok(value) => Ok(Response::new(Answer { body: encode(&value)? })),
        Err(e) => Err(Status::internal(e.to_string())),
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    postcard::to_stdvec(value).map(Bytes::from).map_err(|e| Status::internal(e.to_string()))
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    postcard::from_bytes(bytes).map_err(|e| Status::invalid_argument(format!("an unreadable message: {e}")))
}

/// Reads bytes as each of the calls that another member may make.
pub(crate) fn read_calls(body: &[u8]) {
    let _ = decode::<AppendEntriesRequest<TypeConfig>>(body);
    let _ = decode::<VoteRequest<u64>>(body);
    let _ = decode::<(Vote, Meta)>(body);
}

fn disk(e: io::Error) -> Status {
    Status::internal(e.to_string())
}

fn call_error(status: Status) -> CallError {
    match status.code() {
        // The member is there and was only slow: openraft tries again at once.
        Code::DeadlineExceeded | Code::Cancelled => NetworkError::new(&status).into(),
        _ => Unreachable::new(&status).into(),
    }
}

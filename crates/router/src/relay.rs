//! The receiving side of the streams between nodes: numbers checked, stanzas handed on, acknowledged twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Incarnation, NodeId, Sid, identity::Caller};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jid::Jid;
use parking_lot::Mutex;
use proto::relay::relay_server::Relay;
use proto::relay::{
    Ack, Answering, Batch, Open, Opened, Purpose, Refusal, Sending, Take, Taken, answering, sending,
};
use stanza::Stanza;
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::config::LANES;
use crate::envelope;
use crate::metrics::one;
use crate::receipt::{Receipt, Settle};
use crate::router::Router;
use crate::transit::{Stage, Transit};

/// How long a stream may be open without a word of who speaks.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// Sessions that a lane remembers to have refused; more than can be in one window of a sender.
const REFUSED_MAX: usize = 1024;

/// The lanes on which other nodes send to this one, by node and lane. One for each node that ever was here:
/// node ids are never reused, and an entry is small.
#[derive(Default)]
pub(crate) struct LanesIn(Mutex<HashMap<(u64, u32), Arc<LaneIn>>>);

/// What this node knows of one lane of one node.
pub(crate) struct LaneIn {
    /// Who sends.
    node: u64,
    /// Incarnations of the sender, under which it numbers, and of this node, to which it does: another of
    /// either begins anew at 1.
    numbering: (u64, u64),
    /// Held while a batch is worked on and while a stream is opened, so that an old stream and a new one never
    /// work on the same parcel.
    working: Mutex<()>,
    state: Mutex<InState>,
}

#[derive(Default)]
struct InState {
    received: u64,
    /// All up to here are settled.
    settled: u64,
    /// Whether those above are: the first is `settled + 1`.
    beyond: VecDeque<bool>,
    /// Settled above `settled`, and not yet said.
    also: Vec<u64>,
    /// Kept until the sender says that it has forgotten the parcel.
    refusals: VecDeque<Refusal>,
    refusals_said: usize,
    refused: HashSet<Sid>,
    received_said: u64,
    settled_said: u64,
    /// Counts the streams of this lane; only the newest works.
    stream: u64,
    more: Arc<Notify>,
}

/// The gRPC service `rookery.relay.v1.Relay`.
pub struct RelayService {
    router: Weak<Router>,
}

impl RelayService {
    pub(crate) fn new(router: Weak<Router>) -> RelayService {
        RelayService { router }
    }
}

#[tonic::async_trait]
impl Relay for RelayService {
    type CarryStream = BoxStream<'static, Result<Answering, Status>>;
    type TakeOverStream = BoxStream<'static, Result<Taken, Status>>;

    async fn carry(
        &self,
        request: Request<Streaming<Sending>>,
    ) -> Result<Response<Self::CarryStream>, Status> {
        // Over a link that knows no caller, as in tests, nobody is named.
        let caller = request.extensions().get::<Caller>().cloned();
        let mut sendings = request.into_inner();
        let first = match timeout(OPEN_WITHIN, sendings.message()).await {
            Ok(first) => first?,
            Err(_) => return Err(Status::deadline_exceeded("nobody opened a lane")),
        };
        let Some(sending::What::Open(open)) = first.and_then(|sending| sending.what) else {
            return Err(Status::invalid_argument("the first message is not `Open`"));
        };
        let router = self.router.upgrade().ok_or_else(|| Status::unavailable("stopping"))?;
        if let Some(caller) = caller {
            caller.claims_node(NodeId(open.node))?;
        }
        check(&router, &open)?;
        let lane = router.lanes_in.get(&open)?;
        let (stream, received, more) = lane.begin(&open);
        tokio::spawn(read(self.router.clone(), lane.clone(), stream, open, sendings));
        let opened = Opened { version: envelope::VERSION, received };
        let opened = Answering { what: Some(answering::What::Opened(opened)) };
        let incarnation = open.to_incarnation;
        let given = (lane, more, self.router.clone());
        let acks = stream::unfold(given, move |(lane, more, router)| async move {
            loop {
                match lane.collect(stream) {
                    Collected::Ack(ack) => {
                        // Behind the collecting: what a lost lease made void here must not count as settled.
                        if !router.upgrade().is_some_and(|router| router.serves_as(incarnation)) {
                            return None;
                        }
                        let ack = Answering { what: Some(answering::What::Ack(ack)) };
                        return Some((Ok(ack), (lane, more, router)));
                    }
                    Collected::Nothing => more.notified().await,
                    Collected::Over => return None,
                }
            }
        });
        Ok(Response::new(stream::iter([Ok(opened)]).chain(acks).boxed()))
    }

    async fn take_over(&self, request: Request<Take>) -> Result<Response<Self::TakeOverStream>, Status> {
        let router = self.router.upgrade().ok_or_else(|| Status::unavailable("stopping"))?;
        router.give(request).await
    }
}

/// Whether the session that is meant came here from another node.
fn came_over(router: &Router, stanza: &Stanza, sid: Option<Sid>) -> bool {
    let account = stanza.head.to.as_ref().map(Jid::to_bare);
    let slot = account.zip(sid).and_then(|(account, sid)| router.mailboxes.find(&account, hooks::Sid(sid.0)));
    slot.is_some_and(|slot| slot.came_over())
}

fn check(router: &Router, open: &Open) -> Result<(), Status> {
    let (node, incarnation) = router.whereabouts.me();
    if open.version != envelope::VERSION {
        return Err(Status::failed_precondition(format!("version {} is not spoken here", open.version)));
    }
    if (open.to_node, open.to_incarnation) != (node.0, incarnation.0) {
        one(&router.counters.fenced);
        return Err(Status::failed_precondition(format!(
            "fenced: this is node {node}, incarnation {incarnation}"
        )));
    }
    // Survivors have routed anew, stored or bounced what a node had under way that is gone for them: what it says
    // now would come twice. It is heard again under its next incarnation.
    if !router.whereabouts.is_here(NodeId(open.node)) {
        one(&router.counters.fenced);
        return Err(Status::failed_precondition(format!("fenced: node {} is not here", open.node)));
    }
    if open.lane >= LANES || open.node == node.0 {
        return Err(Status::invalid_argument("no such lane"));
    }
    if !router.whereabouts.is_serving() {
        return Err(Status::unavailable("this node has no lease"));
    }
    Ok(())
}

/// Reads one stream until it ends, breaks, or is succeeded by another.
async fn read(
    router: Weak<Router>,
    lane: Arc<LaneIn>,
    stream: u64,
    open: Open,
    mut sendings: Streaming<Sending>,
) {
    while let Ok(Some(sending)) = sendings.message().await {
        let Some(sending::What::Batch(batch)) = sending.what else { break };
        let Some(router) = router.upgrade() else { break };
        // A fenced node delivers nothing; under a new incarnation, the sender has given this stream up already.
        // Nor is one heard that is gone for this node.
        if !router.serves_as(open.to_incarnation) || !router.whereabouts.is_here(NodeId(open.node)) {
            one(&router.counters.fenced);
            break;
        }
        if !lane.take(&router, stream, batch) {
            break;
        }
    }
    lane.end(stream);
}

enum Collected {
    Ack(Ack),
    Nothing,
    /// Another stream has taken over, or this one was read to its end.
    Over,
}

impl LanesIn {
    /// Whether all that living nodes have sent is settled, and that was said.
    pub(crate) fn are_settled(&self, router: &Router) -> bool {
        let lanes = self.0.lock();
        let mut living = lanes.iter().filter(|((node, _), lane)| {
            router.whereabouts.is_current(NodeId(*node), Incarnation(lane.numbering.0))
        });
        living.all(|(_, lane)| {
            let state = lane.state.lock();
            state.settled == state.received && state.settled_said == state.settled && state.also.is_empty()
        })
    }

    fn get(&self, open: &Open) -> Result<Arc<LaneIn>, Status> {
        let mut lanes = self.0.lock();
        let numbering = (open.incarnation, open.to_incarnation);
        let lane = lanes
            .entry((open.node, open.lane))
            .or_insert_with(|| Arc::new(LaneIn::new(open.node, numbering)));
        if lane.numbering.0 > numbering.0 || lane.numbering.1 > numbering.1 {
            return Err(Status::failed_precondition("fenced: a later incarnation has spoken"));
        }
        if lane.numbering != numbering {
            *lane = Arc::new(LaneIn::new(open.node, numbering));
        }
        Ok(lane.clone())
    }
}

impl LaneIn {
    fn new(node: u64, numbering: (u64, u64)) -> LaneIn {
        LaneIn { node, numbering, working: Mutex::new(()), state: Mutex::new(InState::default()) }
    }

    /// A new stream takes over: its number, what was received before it, and what wakes its answers.
    fn begin(&self, open: &Open) -> (u64, u64, Arc<Notify>) {
        let _working = self.working.lock();
        let mut state = self.state.lock();
        let before = std::mem::take(&mut state.more);
        before.notify_one();
        state.stream += 1;
        state.forget(open.oldest);
        // All is said once more: the last words may have been lost with the stream before.
        state.received_said = 0;
        state.settled_said = 0;
        state.refusals_said = 0;
        let from = state.settled + 1;
        state.also = (from..).zip(&state.beyond).filter(|(_, settled)| **settled).map(|(n, _)| n).collect();
        (state.stream, state.received, state.more.clone())
    }

    fn end(&self, stream: u64) {
        let mut state = self.state.lock();
        if state.stream == stream {
            state.stream += 1;
            state.more.notify_one();
        }
    }

    /// Works on a batch; false if the stream must end.
    fn take(self: &Arc<Self>, router: &Arc<Router>, stream: u64, batch: Batch) -> bool {
        let _working = self.working.lock();
        let mut received = {
            let mut state = self.state.lock();
            if state.stream != stream {
                return false;
            }
            state.forget(batch.oldest);
            state.received
        };
        let mut whole = true;
        for (number, parcel) in (batch.first..).zip(batch.parcels) {
            if number <= received {
                one(&router.counters.parcels_repeated);
                continue;
            }
            if number != received + 1 {
                tracing::warn!(number, received, "a peer left out a number, its stream is closed");
                whole = false;
                break;
            }
            one(&router.counters.parcels_received);
            received = number;
            let work = AssertUnwindSafe(|| self.take_one(router, number, parcel));
            if std::panic::catch_unwind(work).is_err() {
                tracing::error!(number, "the router panicked on a parcel, which is lost");
                self.settle(number);
            }
        }
        let mut state = self.state.lock();
        state.received = received;
        state.more.notify_one();
        whole
    }

    fn take_one(self: &Arc<Self>, router: &Arc<Router>, number: u64, parcel: Bytes) {
        if parcel.is_empty() {
            // Taken back by its sender.
            return self.settle(number);
        }
        let opened = match envelope::open(parcel) {
            Ok(opened) => opened,
            Err(error) => {
                // Nobody can be told: there is no address to answer to.
                tracing::error!(number, %error, "a parcel cannot be read, it is lost");
                return self.settle(number);
            }
        };
        // Settles the number when the last target's clone, and this one, are gone.
        let receipt = Receipt::new(number, self.clone());
        let mut refused = Vec::new();
        let stage = match opened.purpose {
            Purpose::Arrive => Stage::Fresh,
            Purpose::Here => Stage::Here,
            Purpose::Deliver | Purpose::HandOver | Purpose::Unspecified => Stage::Past,
        };
        for (at, (to, sid)) in opened.targets.into_iter().enumerate() {
            let mut stanza = opened.stanza.clone();
            if let Some(to) = to {
                stanza = stanza.with_to(to);
            }
            if !self.is_here(router, stanza.head.to.as_ref(), sid) {
                refused.push(at as u32);
                continue;
            }
            let only = if stage == Stage::Past { sid } else { None };
            let receipt = receipt.clone();
            // What its own node said since waits for it, maybe here.
            let follows = opened.hops > 1 && stage != Stage::Here && came_over(router, &stanza, sid);
            let transit =
                Transit { receipt, hops: opened.hops, only, follows, ..Transit::new(stanza, stage) };
            if opened.purpose == Purpose::HandOver {
                router.take_in(transit);
            } else if follows || stage == Stage::Past && opened.hops > 1 {
                router.dispatch_returned(transit);
            } else {
                router.dispatch(transit);
            }
        }
        if !refused.is_empty() {
            one(&router.counters.refusals);
            let index = router.whereabouts.index();
            // Before the receipt goes: the sender must hear of the refusal no later than that it is settled.
            self.state.lock().refusals.push_back(Refusal { number, targets: refused, index });
        }
    }

    /// Whether the session that the sender chose is here. Once refused it stays refused, so that what the
    /// sender sent behind the refused stanza is not delivered before it.
    fn is_here(&self, router: &Router, to: Option<&Jid>, sid: Option<Sid>) -> bool {
        let (Some(to), Some(sid)) = (to, sid) else { return true };
        let mut state = self.state.lock();
        if state.refused.contains(&sid) {
            return false;
        }
        if router.mailboxes.find(&to.to_bare(), hooks::Sid(sid.0)).is_some() {
            return true;
        }
        if state.refused.len() >= REFUSED_MAX {
            state.refused.clear();
        }
        state.refused.insert(sid);
        false
    }

    fn collect(&self, stream: u64) -> Collected {
        let mut state = self.state.lock();
        if state.stream != stream {
            return Collected::Over;
        }
        let news = state.received > state.received_said
            || state.settled > state.settled_said
            || !state.also.is_empty()
            || state.refusals_said < state.refusals.len();
        if !news {
            return Collected::Nothing;
        }
        state.received_said = state.received;
        state.settled_said = state.settled;
        let settled = state.settled;
        let mut settled_also = std::mem::take(&mut state.also);
        settled_also.retain(|number| *number > settled);
        let refusals = state.refusals.iter().skip(state.refusals_said).cloned().collect();
        state.refusals_said = state.refusals.len();
        Collected::Ack(Ack { received: state.received, settled, settled_also, refusals })
    }
}

impl Settle for LaneIn {
    fn settle(&self, number: u64) {
        let mut state = self.state.lock();
        let Some(at) = number.checked_sub(state.settled + 1) else { return };
        let at = at as usize;
        if state.beyond.len() <= at {
            state.beyond.resize(at + 1, false);
        }
        state.beyond[at] = true;
        if at > 0 {
            state.also.push(number);
        }
        while state.beyond.front() == Some(&true) {
            state.beyond.pop_front();
            state.settled += 1;
        }
        state.more.notify_one();
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.numbering.1)
    }

    fn node(&self) -> Option<u64> {
        Some(self.node)
    }
}

impl InState {
    /// The sender remembers nothing below `oldest`.
    fn forget(&mut self, oldest: u64) {
        while self.refusals.front().is_some_and(|refusal| refusal.number < oldest) {
            self.refusals.pop_front();
            self.refusals_said = self.refusals_said.saturating_sub(1);
        }
    }
}

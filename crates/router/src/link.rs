//! One stream to another node: opens it, feeds it, hears the acknowledgements, opens it again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use proto::relay::relay_client::RelayClient;
use proto::relay::{Open, Sending, answering, sending};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::envelope;
use crate::lane::Lane;
use crate::router::Router;

/// How long the other node may take to say that it is ready.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long it may leave sent parcels unconfirmed before the stream is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Carries one lane until its peer is gone or the router is.
pub(crate) async fn carry(router: Weak<Router>, lane: Arc<Lane>) {
    let mut pause = PAUSE_MIN;
    loop {
        while !lane.has_unsettled() && !lane.is_gone() {
            lane.more.notified().await;
        }
        let Some(serving) = router.upgrade().map(|router| router.whereabouts.is_serving()) else { return };
        if lane.is_gone() {
            return;
        }
        if serving {
            let began = Instant::now();
            let error = carry_once(&router, &lane).await;
            lane.pause();
            if lane.is_gone() {
                return;
            }
            tracing::debug!(node = %lane.node, lane = lane.lane, %error, "a stream to a peer ended");
            if began.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Opens a stream and works on it until it breaks; says why it broke.
async fn carry_once(router: &Weak<Router>, lane: &Arc<Lane>) -> Status {
    let stopping = || Status::cancelled("stopping");
    let Some(channel) = router.upgrade().and_then(|router| router.whereabouts.channel(lane.node)) else {
        return Status::unavailable("no address is known");
    };
    let Some((me, _)) = router.upgrade().map(|router| router.whereabouts.me()) else { return stopping() };
    let open = Open {
        version: envelope::VERSION,
        node: me.0,
        incarnation: lane.numbering.0,
        lane: lane.lane,
        to_node: lane.node.0,
        to_incarnation: lane.incarnation.0,
        oldest: lane.oldest(),
    };
    // One batch under way and one in the making: more would only hide the link's pace from the batches' size.
    let (to_link, from_here) = mpsc::channel(1);
    if to_link.send(Sending { what: Some(sending::What::Open(open)) }).await.is_err() {
        return stopping();
    }
    let mut client = RelayClient::new(channel);
    let response = match timeout(OPEN_WITHIN, client.carry(ReceiverStream::new(from_here))).await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => return status,
        Err(_) => return Status::deadline_exceeded("no answer to the opening of a lane"),
    };
    let mut answers = response.into_inner();
    let received = match timeout(OPEN_WITHIN, answers.message()).await {
        Ok(Ok(Some(answer))) => match answer.what {
            Some(answering::What::Opened(opened)) => opened.received,
            _ => return Status::internal("the first answer is not `Opened`"),
        },
        Ok(Ok(None)) => return Status::unavailable("closed before it was opened"),
        Ok(Err(status)) => return status,
        Err(_) => return Status::deadline_exceeded("no `Opened`"),
    };
    if !lane.resume(received) {
        return Status::data_loss("the peer has received what was not sent, or forgot what it had");
    }
    let mut heard = Instant::now();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if lane.is_gone() {
            return Status::cancelled("the peer is gone");
        }
        tokio::select! {
            answer = answers.message() => {
                let ack = match answer {
                    Ok(Some(answer)) => answer.what,
                    Ok(None) => return Status::unavailable("closed by the peer"),
                    Err(status) => return status,
                };
                let Some(answering::What::Ack(ack)) = ack else {
                    return Status::internal("an answer that is no acknowledgement");
                };
                heard = Instant::now();
                let Some(router) = router.upgrade() else { return stopping() };
                if !lane.acknowledged(&router, ack) {
                    return Status::data_loss("the peer acknowledges what was not sent");
                }
            }
            permit = to_link.reserve(), if lane.has_unsent() => {
                let Ok(permit) = permit else { return Status::unavailable("closed by the peer") };
                let Some(router) = router.upgrade() else { return stopping() };
                if !router.whereabouts.is_serving() {
                    // Fenced: nothing may reach a client through this node until it holds its lease again.
                    return Status::unavailable("this node has no lease");
                }
                if let Some(batch) = lane.batch(&router) {
                    permit.send(Sending { what: Some(sending::What::Batch(batch)) });
                }
            }
            _ = lane.more.notified() => {}
            _ = ticks.tick() => {
                if !lane.has_unconfirmed() {
                    heard = Instant::now();
                } else if heard.elapsed() > SILENCE_MAX {
                    return Status::deadline_exceeded("the peer confirms nothing");
                }
            }
        }
    }
}

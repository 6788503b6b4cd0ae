//! Drains a node of the cluster, this one or another, and tells how that goes.

use std::{pin::Pin, sync::Arc, time::Duration};

use cluster::{Cluster, NodeId, NodeRow, NodeState};
use futures::Stream;
use proto::{
    admin,
    sessions::{DrainRequest, Progress, UndrainRequest, sessions_client::SessionsClient},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::peers::cluster_id;
use crate::parts::{DrainError, Drainer, Progress as Now};

/// How often it is told how a drain goes.
const TELL: Duration = Duration::from_millis(200);
/// How long another node may take to begin, or to end, a drain.
const DEADLINE: Duration = Duration::from_secs(15);

/// How a drain goes, until nobody is left.
pub type ProgressStream = Pin<Box<dyn Stream<Item = Result<Progress, Status>> + Send>>;

/// The node that an operator means: by its name or its id, or this one.
pub fn find(nodes: &[NodeRow], me: NodeId, text: &str) -> Result<NodeId, Status> {
    if text.is_empty() {
        return Ok(me);
    }
    let here = nodes.iter().filter(|row| row.state != NodeState::Gone);
    let named: Vec<&NodeRow> = here.clone().filter(|row| row.name == text).collect();
    match named[..] {
        [row] => return Ok(row.node),
        [] => {}
        [..] => {
            let ids: Vec<String> = named.iter().map(|row| row.node.to_string()).collect();
            let text =
                format!("several nodes are called `{text}`: say which by its id, {}", ids.join(" or "));
            return Err(Status::invalid_argument(text));
        }
    }
    let id = text.parse().map(NodeId).ok();
    if let Some(row) = here.clone().find(|row| Some(row.node) == id) {
        return Ok(row.node);
    }
    let mut names: Vec<&str> = here.map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    Err(Status::not_found(format!("no node is called `{text}`; there are {}", names.join(", "))))
}

/// Begins to drain a node.
pub async fn drain(
    cluster: &Cluster,
    drainer: &Arc<Drainer>,
    node: NodeId,
    rate: u32,
    stop: bool,
) -> Result<ProgressStream, Status> {
    if node == cluster.me().0 {
        return begin(drainer, rate, stop);
    }
    let mut client = peer(cluster, node)?;
    let request = DrainRequest { cluster: cluster_id(cluster), rate_per_s: rate, stop };
    let begun = timeout(DEADLINE, client.drain(request)).await.map_err(|_| silent())??;
    Ok(Box::pin(begun.into_inner()))
}

/// Lets a node take what is new again.
pub async fn undrain(cluster: &Cluster, drainer: &Drainer, node: NodeId) -> Result<(), Status> {
    if node == cluster.me().0 {
        return drainer.undrain().await.map_err(refusal);
    }
    let mut client = peer(cluster, node)?;
    let request = UndrainRequest { cluster: cluster_id(cluster) };
    timeout(DEADLINE, client.undrain(request)).await.map_err(|_| silent())??;
    Ok(())
}

fn peer(cluster: &Cluster, node: NodeId) -> Result<SessionsClient<tonic::transport::Channel>, Status> {
    let channel = cluster.peer_channel(node);
    channel.map(SessionsClient::new).ok_or_else(|| Status::unavailable("the node has no address"))
}

fn silent() -> Status {
    Status::unavailable(format!("the node did not answer within {} s", DEADLINE.as_secs()))
}

/// Begins to drain this node.
pub fn begin(drainer: &Arc<Drainer>, rate: u32, stop: bool) -> Result<ProgressStream, Status> {
    let progress = drainer.begin(rate, stop).map_err(refusal)?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(tell(progress, sender));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn tell(mut progress: watch::Receiver<Now>, sender: mpsc::Sender<Result<Progress, Status>>) {
    loop {
        let now = written(&progress.borrow_and_update());
        let done = now.done;
        // A reader that has gone: the drain goes on without it.
        if sender.send(Ok(now)).await.is_err() || done {
            return;
        }
        let taken_back = matches!(timeout(TELL, progress.wait_for(|now| now.done)).await, Ok(Err(_)));
        if taken_back {
            let text = "the node was told to take what is new again, or to end, before all clients had left";
            let _ = sender.send(Err(Status::aborted(text))).await;
            return;
        }
    }
}

fn written(now: &Now) -> Progress {
    Progress {
        total: now.total as u32,
        left: now.left as u32,
        rate_per_s: now.rate,
        elapsed_ms: now.since.elapsed().as_millis() as u64,
        eta_s: session::seconds_left(now.left, now.rate),
        done: now.done,
    }
}

/// As operators read it.
pub fn told(node: &str, now: &Progress) -> admin::DrainProgress {
    admin::DrainProgress {
        node: node.to_owned(),
        total: now.total,
        left: now.left,
        rate_per_s: now.rate_per_s,
        elapsed_ms: now.elapsed_ms,
        eta_s: now.eta_s,
        done: now.done,
    }
}

/// Why a node cannot drain, or cannot be brought back.
pub fn refusal(error: DrainError) -> Status {
    match error {
        DrainError::Starting | DrainError::Stopping => Status::failed_precondition(error.to_string()),
        DrainError::Unavailable(error) => Status::unavailable(format!("{error}; it is tried on")),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Incarnation, Roles};
    use tonic::Code;

    use super::*;

    fn row((id, name, state): &(u64, &str, NodeState)) -> NodeRow {
        NodeRow {
            node: NodeId(*id),
            incarnation: Incarnation(1),
            name: (*name).to_owned(),
            address: String::new(),
            roles: Roles::default(),
            state: *state,
            member: None,
            key: u128::from(*id),
            start: 1,
        }
    }

    #[test]
    fn a_node_is_found_by_its_name_or_id() {
        use NodeState::{Draining, Gone, Up};
        let nodes = [(4, "one", Up), (7, "two", Draining), (9, "7", Up), (11, "twin", Up), (12, "twin", Up)];
        let gone = [(2, "old", Gone), (3, "one", Gone)];
        let nodes: Vec<NodeRow> = nodes.iter().chain(&gone).map(row).collect();
        for (text, found) in [
            ("", Ok(4)),
            ("one", Ok(4)),
            ("two", Ok(7)),
            // A name goes before an id.
            ("7", Ok(9)),
            ("11", Ok(11)),
            ("twin", Err((Code::InvalidArgument, "11 or 12"))),
            ("old", Err((Code::NotFound, "there are 7, one, twin, twin, two"))),
            ("2", Err((Code::NotFound, "no node is called `2`"))),
        ] {
            match (find(&nodes, NodeId(4), text), found) {
                (Ok(node), Ok(id)) => assert_eq!(node, NodeId(id), "{text}"),
                (Err(status), Err((code, words))) => {
                    assert_eq!(status.code(), code, "{text}");
                    assert!(status.message().contains(words), "{status:?}");
                }
                (found, wanted) => panic!("`{text}`: {found:?}, not {wanted:?}"),
            }
        }
    }
}

//! Shows the cluster to whoever watches it: one look at a time for all of them, and only while somebody does.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use cluster::{MemberId, NodeRow};
use futures::{Stream, stream};
use parking_lot::Mutex;
use proto::{admin, sight};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, interval, timeout_at},
};
use tonic::Status;

use super::{
    answers,
    sight::{Answer, Sight},
};

/// How many may watch at a time.
const WATCHERS: usize = 32;
/// How often all nodes are asked.
const EACH: Duration = Duration::from_secs(1);
/// How often this node looks whether something has changed that is worth asking at once.
const CHANGES: Duration = Duration::from_millis(100);

/// The views, as a call streams them.
pub type ViewStream = Pin<Box<dyn Stream<Item = Result<admin::ClusterView, Status>> + Send>>;

/// Whoever watches.
pub struct Watching {
    sight: Sight,
    hosts: Vec<String>,
    /// The newest view: a reader that is slow misses those between.
    views: watch::Sender<Option<Arc<admin::ClusterView>>>,
    is_looking: Mutex<bool>,
    room: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Watching {
    /// Nobody watches yet; streams end with `stop`.
    pub fn new(sight: Sight, hosts: Vec<String>, stop: watch::Receiver<bool>) -> Arc<Watching> {
        Arc::new(Watching {
            sight,
            hosts,
            views: watch::Sender::new(None),
            is_looking: Mutex::new(false),
            room: Arc::new(Semaphore::new(WATCHERS)),
            stop,
        })
    }

    /// One more who watches.
    pub fn watch(self: &Arc<Self>) -> Result<ViewStream, Status> {
        let permit = self.room.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHERS} watch this node already; ask another one"))
        })?;
        let mut views = self.views.subscribe();
        // What was seen last is shown at once.
        views.mark_changed();
        let mut looking = self.is_looking.lock();
        if !*looking {
            *looking = true;
            tokio::spawn(self.clone().look());
        }
        drop(looking);
        Ok(Box::pin(stream::unfold(Some((views, self.stop.clone(), permit)), next)))
    }

    async fn look(self: Arc<Self>) {
        loop {
            {
                let mut looking = self.is_looking.lock();
                if self.views.receiver_count() == 0 {
                    *looking = false;
                    // The next one must not see an old one.
                    self.views.send_replace(None);
                    return;
                }
            }
            let begun = Instant::now();
            let before = self.signature();
            let view = self.view().await;
            self.views.send_replace(Some(Arc::new(view)));
            let changed = async {
                let mut ticks = interval(CHANGES);
                while self.signature() == before {
                    ticks.tick().await;
                }
            };
            // Whether it changed or not: no more often than changes are looked for.
            let _ = timeout_at(begun + EACH, changed).await;
        }
    }

    /// What a watcher wants to hear of at once.
    fn signature(&self) -> Signature {
        let status = self.sight.cluster.status();
        let terms = status.groups.iter().map(|group| (group.term, group.leader)).collect();
        (status.nodes, status.serving, terms)
    }

    async fn view(&self) -> admin::ClusterView {
        let status = self.sight.cluster.status();
        let sessions = self.sight.cluster.routes().sessions_by_node();
        let told = self.sight.look(&status.nodes).await;
        let ids: HashMap<MemberId, u64> =
            status.nodes.iter().filter_map(|row| Some((row.member?, row.node.0))).collect();
        admin::ClusterView {
            cluster: Some(answers::state(&status, &sessions, &self.hosts)),
            nodes: told.into_iter().map(|(row, answer)| node(&row, answer, &ids)).collect(),
        }
    }
}

type Signature = (Vec<NodeRow>, bool, Vec<(u64, Option<MemberId>)>);
type Reader = (watch::Receiver<Option<Arc<admin::ClusterView>>>, watch::Receiver<bool>, OwnedSemaphorePermit);

async fn next(reader: Option<Reader>) -> Option<(Result<admin::ClusterView, Status>, Option<Reader>)> {
    let (mut views, mut stop, permit) = reader?;
    loop {
        tokio::select! {
            changed = views.changed() => changed.ok()?,
            _ = stop.wait_for(|stop| *stop) => {
                return Some((Err(Status::unavailable("the node stops")), None));
            }
        }
        let view = views.borrow_and_update().clone();
        if let Some(view) = view {
            return Some((Ok((*view).clone()), Some((views, stop, permit))));
        }
    }
}

fn node(row: &NodeRow, answer: Answer<sight::LookReply>, ids: &HashMap<MemberId, u64>) -> admin::NodeView {
    let said = match answer {
        Ok(said) => said,
        Err(unanswered) => {
            return admin::NodeView { node: row.node.0, unanswered, ..admin::NodeView::default() };
        }
    };
    let groups = said.groups.into_iter().map(|group| admin::GroupView {
        name: group.name,
        leader: ids.get(&MemberId(group.leader)).copied().unwrap_or(0),
        term: group.term,
        last_log: group.last_log,
        applied: group.applied,
        snapshot: group.snapshot,
        log_bytes: group.log_bytes,
        snapshot_bytes: group.snapshot_bytes,
        leader_changes: group.leader_changes,
        failure: group.failure,
    });
    let peers = said.peers.into_iter().map(|peer| admin::PeerView {
        node: peer.node,
        unreceived: peer.unreceived,
        unsettled: peer.unsettled,
        unsettled_bytes: peer.unsettled_bytes,
        lanes: peer.lanes,
        connected: peer.connected,
    });
    admin::NodeView {
        node: row.node.0,
        unanswered: String::new(),
        serving: said.serving,
        lease_age_ms: said.lease_age_ms,
        index: said.index,
        sessions: said.sessions,
        groups: groups.collect(),
        peers: peers.collect(),
    }
}

//! Whether a node is ready for clients, and whether it works at all, each with the reasons why not.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use cluster::Cluster;
use tokio::sync::Notify;

use crate::parts::SharedListeners;

/// How far a node is on its way from start to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// It waits for the others, or opens what it needs.
    Starting,
    /// It does its work.
    Running,
    /// Its clients are sent elsewhere.
    Draining,
    /// It ends.
    Stopping,
}

/// The health of this node, for load balancers, probes and operators.
pub struct Readiness {
    stage: AtomicU8,
    changed: Notify,
    cluster: Arc<Cluster>,
    listeners: SharedListeners,
}

impl Readiness {
    /// Of a node that starts.
    pub fn new(cluster: Arc<Cluster>, listeners: SharedListeners) -> Arc<Readiness> {
        let stage = AtomicU8::new(Stage::Starting as u8);
        Arc::new(Readiness { stage, changed: Notify::new(), cluster, listeners })
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        let stages = [Stage::Starting, Stage::Running, Stage::Draining, Stage::Stopping];
        stages[usize::from(self.stage.load(Ordering::SeqCst)).min(3)]
    }

    /// It has come to another stage; who stops does nothing else any more.
    pub fn reach(&self, stage: Stage) {
        let forward = |now| (now != Stage::Stopping as u8).then_some(stage as u8);
        // refused where it stops: that stays so
        let _ = self.stage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, forward);
        self.changed.notify_one();
    }

    /// Waits for another stage; for one waiter.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Why it should get no new clients; empty when it is ready.
    pub fn not_ready(&self) -> Vec<&'static str> {
        let out_of_files = self.listeners.get().is_some_and(|listeners| listeners.is_out_of_files());
        reasons(self.stage(), self.cluster.is_serving(), out_of_files)
    }

    /// Why it should be started again; empty when it works.
    pub fn not_live(&self) -> Vec<String> {
        self.cluster.failure().into_iter().collect()
    }
}

/// What keeps a node from being ready, in words for an operator.
fn reasons(stage: Stage, serving: bool, out_of_files: bool) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    match stage {
        Stage::Starting => reasons.push("starting: the node is not part of a cluster yet"),
        Stage::Running => {}
        Stage::Draining => reasons.push("draining: clients are sent to other nodes"),
        Stage::Stopping => reasons.push("stopping: the node was told to end"),
    }
    if stage != Stage::Starting && !serving {
        reasons.push("no lease: the node cannot reach a majority of the backends");
    }
    if out_of_files {
        reasons.push("out of files: nearly all that the process may open are open");
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_nothing_speaks_against_it() {
        use Stage::{Draining, Running, Starting, Stopping};
        // stage, lease, out of files, the first words of each reason
        let table: [(Stage, bool, bool, &[&str]); 7] = [
            (Running, true, false, &[]),
            (Running, false, false, &["no lease"]),
            (Running, true, true, &["out of files"]),
            // Without a cluster there is no lease to miss.
            (Starting, false, false, &["starting"]),
            (Draining, true, false, &["draining"]),
            (Draining, false, true, &["draining", "no lease", "out of files"]),
            (Stopping, true, false, &["stopping"]),
        ];
        for (stage, serving, out_of_files, words) in table {
            let found = reasons(stage, serving, out_of_files);
            let begins = found.iter().map(|reason| reason.split(':').next().unwrap());
            assert_eq!(begins.collect::<Vec<_>>(), words, "{stage:?} {serving} {out_of_files}");
        }
    }
}

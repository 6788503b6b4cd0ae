//! Waits until nothing is on its way through this node, so that it can end without leaving work to others.

use std::time::Duration;

use cluster::{Incarnation, NodeId};

use crate::router::Router;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(5);

impl Router {
    /// Waits until all that this node was given by others is settled, and all that it gave to them; false if that
    /// is not so in time. Clients must have gone before: whoever sends on keeps a node from its rest.
    pub async fn rest(&self, within: Duration) -> bool {
        let resting = async {
            let mut look = tokio::time::interval(LOOK);
            while !self.is_at_rest() {
                look.tick().await;
            }
        };
        tokio::time::timeout(within, resting).await.is_ok()
    }

    fn is_at_rest(&self) -> bool {
        let is_here = |node, incarnation| self.whereabouts.is_current(NodeId(node), Incarnation(incarnation));
        let owed = |lane: &crate::LaneFacts| lane.unsettled > 0 && is_here(lane.node, lane.incarnation);
        self.account_queues() == 0
            && self.copies.len() == 0
            && self.away.waiting() == 0
            && !self.lanes().iter().any(owed)
            && self.lanes_in.are_settled(self)
    }
}

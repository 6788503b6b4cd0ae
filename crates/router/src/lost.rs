//! What is done when a node is gone: its parcels routed anew, and the contacts of its sessions told, once.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cluster::placement::{able, elect};
use cluster::{Change, LostSession, NodeId};
use futures::{FutureExt, StreamExt, stream};
use hooks::{Services, SessionEvent};
use jid::BareJid;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout};

use crate::metrics::one;
use crate::router::Router;

/// How long the losses of a node are remembered, in case that the node that was to tell of them dies as well.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How often it is looked which of them are back.
const LOOK: Duration = Duration::from_secs(1);

/// The sessions of a lost node, and the nodes among which they were shared out.
struct Loss {
    at: Instant,
    lost: Arc<[LostSession]>,
    heirs: Vec<NodeId>,
}

/// Follows the changes of the cluster. Never waits for the table: the table waits for whoever is slow here.
pub(crate) async fn follow(router: Weak<Router>, mut changes: Receiver<Change>) {
    let mut losses: Vec<Loss> = Vec::new();
    loop {
        let change = match losses.is_empty() {
            true => changes.recv().await,
            false => match timeout(LOOK, changes.recv()).await {
                Ok(change) => change,
                Err(_) => {
                    let Some(router) = router.upgrade() else { return };
                    forget(&router, &mut losses, &[]);
                    continue;
                }
            },
        };
        let (Some(change), Some(router)) = (change, router.upgrade()) else { return };
        if let Change::LeaseLost { .. } | Change::LeaseBack { .. } | Change::NodeGone { .. } = change {
            router.away.note();
        }
        let Change::NodeGone { node, incarnation, lost } = change else { continue };
        router.peers.expire(&router, node, incarnation);
        let (me, _) = router.whereabouts.me();
        let heirs = heirs(&router, node);
        forget(&router, &mut losses, &lost);
        // What fell to the node that is gone now falls to another: told twice is better than never.
        for loss in losses.iter_mut().filter(|loss| loss.heirs.contains(&node)) {
            let before = std::mem::replace(&mut loss.heirs, heirs.clone());
            let again =
                |account: &BareJid| heir(account, &before) == Some(node) && heir(account, &heirs) == Some(me);
            begin_to_tell(&router, &loss.lost, again);
        }
        if !lost.is_empty() {
            tracing::info!(%node, %incarnation, sessions = lost.len(), "a node is gone with its sessions");
            begin_to_tell(&router, &lost, |account| heir(account, &heirs) == Some(me));
            losses.push(Loss { at: Instant::now(), lost, heirs });
        }
    }
}

/// Forgets losses that are old, and sessions that have been back since: their next end is told as any other, also by the
/// loss of another node.
fn forget(router: &Router, losses: &mut Vec<Loss>, lost_again: &[LostSession]) {
    losses.retain(|loss| loss.at.elapsed() < REMEMBERED);
    let again: HashSet<&str> = lost_again.iter().map(|session| session.jid.as_str()).collect();
    let is_back = |session: &LostSession| {
        again.contains(session.jid.as_str())
            || router.whereabouts.users(&session.jid.to_bare()).iter().any(|row| row.jid == session.jid)
    };
    for loss in losses.iter_mut() {
        if loss.lost.iter().any(is_back) {
            loss.lost = loss.lost.iter().filter(|session| !is_back(session)).cloned().collect();
        }
    }
    losses.retain(|loss| !loss.lost.is_empty());
}

/// The nodes among which the sessions of a lost node are shared out.
fn heirs(router: &Arc<Router>, gone: NodeId) -> Vec<NodeId> {
    let nodes = router.whereabouts.nodes();
    let left = nodes.iter().filter(|row| row.node != gone);
    let frontends: Vec<NodeId> =
        able(left.clone().filter(|row| row.roles.frontend)).map(|row| row.node).collect();
    // Only a node with sessions is sure to run handlers; without any, every backend does.
    if frontends.is_empty() { able(left).map(|row| row.node).collect() } else { frontends }
}

/// Tells the contacts of those lost sessions whose account is `mine`, some at a time.
fn begin_to_tell(router: &Arc<Router>, lost: &[LostSession], mine: impl Fn(&BareJid) -> bool) {
    let mine: Vec<LostSession> = lost
        .iter()
        // A session that never was available told nobody (RFC 6121, 4.5.2).
        .filter(|session| session.priority.is_some() && mine(&session.jid.to_bare()))
        .cloned()
        .collect();
    if mine.is_empty() {
        return;
    }
    let router = router.clone();
    let at_once = router.config.lost_sessions_at_once.max(1);
    tokio::spawn(async move {
        let router = &router;
        let tell = |session: LostSession| async move { tell_one(router, &session).await };
        stream::iter(mine).for_each_concurrent(at_once, tell).await;
    });
}

async fn tell_one(router: &Arc<Router>, session: &LostSession) {
    let account = session.jid.to_bare();
    // A node that was behind hears late of a loss: by its old table it would tell contacts of one who is back by now.
    router.renew_table().await;
    // Bound again, here or elsewhere: the new session's presence is the truth.
    if router.whereabouts.users(&account).iter().any(|row| row.jid == session.jid) {
        return;
    }
    let event = SessionEvent::Lost { account, jid: session.jid.clone() };
    let services: Arc<dyn Services> = router.services();
    let told = AssertUnwindSafe(router.registry.follow(&event, &services)).catch_unwind().await;
    match told {
        Ok(()) => one(&router.counters.lost_told),
        Err(_) => one(&router.counters.panics),
    }
}

/// The node that acts for an account: every node comes to the same answer, and the accounts of a lost node
/// spread over the others.
fn heir(account: &BareJid, nodes: &[NodeId]) -> Option<NodeId> {
    elect(account.as_str(), nodes.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: usize) -> BareJid {
        BareJid::new(&format!("user{number}@localhost")).unwrap()
    }

    #[test]
    fn every_node_names_the_same_heir_whatever_the_order_of_its_list() {
        let nodes = [NodeId(3), NodeId(17), NodeId(99)];
        let other = [NodeId(99), NodeId(3), NodeId(17)];
        for number in 0..200 {
            assert_eq!(heir(&account(number), &nodes), heir(&account(number), &other));
        }
        assert_eq!(heir(&account(1), &[]), None);
    }

    #[test]
    fn accounts_spread_and_only_those_of_a_lost_heir_move() {
        let nodes = [NodeId(3), NodeId(17), NodeId(99)];
        let fewer = [NodeId(3), NodeId(99)];
        let mut counts = [0; 3];
        for number in 0..3000 {
            let before = heir(&account(number), &nodes).unwrap();
            counts[nodes.iter().position(|node| *node == before).unwrap()] += 1;
            if before != NodeId(17) {
                assert_eq!(heir(&account(number), &fewer), Some(before));
            }
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}

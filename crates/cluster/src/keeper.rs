//! What only a leader does: expire the silent, keep enough voters, forget the long gone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, interval, timeout};

use crate::{
    config::CERTIFICATE_LIFETIME_MAX_S,
    identity::credentials::unix_now,
    placement::Voting,
    raft::group::Group,
    role::{MemberId, NodeId},
    routes::{Command, NodeRow, NodeState},
    shared::Shared,
};

/// How often the leader looks at its leases.
const LOOK: Duration = Duration::from_millis(250);
/// A node that is gone this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// How long a proposal of the leader itself may take.
const PROPOSAL: Duration = Duration::from_secs(3);
/// How long a leader that drains may take to have another one lead; then it leads on for a while. Nobody loses a lease
/// in that time.
const HAND_OVER: Duration = Duration::from_millis(1200);
/// How long one change of the members may take.
const CHANGE: Duration = Duration::from_secs(10);
/// A learner this close to the end of the log has caught up.
const CAUGHT_UP: u64 = 1000;

/// Runs on every backend, and acts where it leads.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gone_since = HashMap::new();
    for nth in 0_u64.. {
        ticks.tick().await;
        let Some(routes) = shared.routes_group() else { continue };
        expire_silent(&shared, &routes);
        note_committed(&shared, &routes).await;
        if nth % 4 == 0 {
            note_gone(&shared, &mut gone_since);
            for group in shared.groups.all() {
                if group.core().leads_surely() && !yields(&shared, &group).await {
                    keep_members(&shared, &group, &gone_since).await;
                }
            }
            if routes.core().leads_surely() {
                forget(&shared, &routes, &gone_since);
                let_go(&shared, &routes);
            }
        }
    }
}

/// Has another backend lead in place of this one, where this one drains or leaves and another one does not.
async fn yields(shared: &Shared, group: &Group) -> bool {
    let me = shared.hub.me().0;
    let leaves = {
        let routes = shared.view.routes.read();
        routes.node(me).is_some_and(|row| row.state == NodeState::Draining)
            || routes.leaving().any(|row| row.node == me)
    };
    leaves && group.hand_over(&shared.heirs(false), Instant::now() + HAND_OVER).await
}

/// Also where this node does not lead: it may do so at the next moment, and then knows how far others should be.
async fn note_committed(shared: &Shared, routes: &Group) {
    if let Ok(Some(committed)) = timeout(LOOK, routes.core().committed()).await {
        shared.marks.lock().note(committed, Instant::now());
    }
}

fn expire_silent(shared: &Arc<Shared>, routes: &Group) {
    let nodes = shared.view.nodes();
    let here = nodes.iter().filter(|row| row.state != NodeState::Gone);
    let here = here.map(|row| (row.node, row.incarnation));
    let expired = shared.heard.lock().expired(routes.core().leads(), here, Instant::now());
    for (node, incarnation) in expired {
        tracing::warn!(%node, %incarnation, "a node's lease ran out");
        propose(routes, Command::ExpireNode { node, incarnation });
    }
}

/// Proposes without waiting: what is lost is proposed again at the next look.
fn propose(routes: &Group, command: Command) {
    let group = routes.clone();
    tokio::spawn(async move {
        let deadline = Instant::now() + PROPOSAL;
        if let Err(error) = group.propose(command.encode().into(), deadline).await {
            tracing::debug!(%error, ?command, "a proposal of the leader failed");
        }
    });
}

fn note_gone(shared: &Shared, gone_since: &mut HashMap<NodeId, Instant>) {
    let nodes = shared.view.nodes();
    let gone: BTreeSet<NodeId> =
        nodes.iter().filter(|row| row.state == NodeState::Gone).map(|row| row.node).collect();
    gone_since.retain(|node, _| gone.contains(node));
    for node in gone {
        gone_since.entry(node).or_insert_with(Instant::now);
    }
}

async fn keep_members(shared: &Arc<Shared>, group: &Group, gone_since: &HashMap<NodeId, Instant>) {
    let status = group.status();
    let nodes = shared.view.nodes();
    let known: BTreeSet<MemberId> = nodes.iter().filter_map(|row| row.member).collect();
    let leaving: BTreeSet<MemberId> = {
        let routes = shared.view.routes.read();
        let leaving = routes.leaving().filter_map(|row| row.member);
        leaving.chain(routes.trust().removed_members()).collect()
    };
    let voters: BTreeSet<MemberId> = status.voters.iter().copied().collect();
    let learners: BTreeSet<MemberId> = status.learners.iter().copied().collect();
    let up = nodes.iter().filter(|row| row.state == NodeState::Up && row.roles.backend);
    let mut ready = BTreeSet::new();
    for row in up {
        let Some(member) = row.member else { continue };
        if !voters.contains(&member) && !learners.contains(&member) && !leaving.contains(&member) {
            report("add a learner", timeout(CHANGE, group.add_learner(member, &row.address)).await);
            return;
        }
        let matched = status.matched.iter().find(|(id, _)| *id == member).map_or(0, |(_, at)| *at);
        if matched + CAUGHT_UP >= status.last_log && matched > 0 {
            ready.insert(member);
        }
    }
    let long_gone = |row: &&NodeRow| {
        gone_since.get(&row.node).is_some_and(|since| since.elapsed() > shared.config.times.replace())
    };
    let lost: BTreeSet<MemberId> = nodes.iter().filter(long_gone).filter_map(|row| row.member).collect();
    let leader = group.core().member;
    if let Some(next) = (Voting { voters, lost, leaving, ready, leader }).next() {
        let next: Vec<MemberId> = next.into_iter().collect();
        tracing::info!(group = %status.name, voters = ?next, "changing the voters");
        report("change the voters", timeout(CHANGE, group.set_voters(&next)).await);
        return;
    }
    let forgotten: Vec<MemberId> = learners.difference(&known).copied().collect();
    if !forgotten.is_empty() {
        report("remove learners", timeout(CHANGE, group.remove(&forgotten)).await);
    }
}

fn report(what: &str, result: Result<Result<(), String>, tokio::time::error::Elapsed>) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error, "failed to {what}"),
        Err(_) => tracing::warn!("failed to {what} in time"),
    }
}

/// Removes those who leave, once no group counts on them.
fn let_go(shared: &Shared, routes: &Group) {
    let voters: BTreeSet<MemberId> =
        shared.groups.all().iter().flat_map(|group| group.status().voters).collect();
    let leaving: Vec<NodeId> = {
        let routes = shared.view.routes.read();
        let votes = |row: &&NodeRow| row.member.is_some_and(|member| voters.contains(&member));
        routes.leaving().filter(|row| !votes(row)).map(|row| row.node).collect()
    };
    for node in leaving {
        let now = unix_now();
        propose(routes, Command::Remove { node, until: now + CERTIFICATE_LIFETIME_MAX_S, now });
    }
}

fn forget(shared: &Shared, routes: &Group, gone_since: &HashMap<NodeId, Instant>) {
    let voters = routes.status().voters;
    for row in shared.view.nodes() {
        let votes = row.member.is_some_and(|member| voters.contains(&member));
        if !votes && gone_since.get(&row.node).is_some_and(|since| since.elapsed() > FORGET_AFTER) {
            propose(routes, Command::Forget { node: row.node });
        }
    }
}

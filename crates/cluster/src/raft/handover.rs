//! A leader that leaves has another voter lead before it goes, so that nobody waits until it is missed.
//!
//! openraft 0.9 knows no transfer, and refuses votes for a while after it heard a leader. A leader that yields decides
//! nothing more and grants no lease, and waits until another voter has all of its log. Then it asks all other voters to
//! let go of it: each holds an election of its own in which it asks nobody, which uses up one term. Last it asks the one
//! to lead, or the next one where that refuses, which begins an election at once, in the term behind that one. The votes,
//! and the log that they ask for, are as in any other election; if it comes to nothing, one begins by itself.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::future::join_all;
use openraft::ServerState;
use proto::raft::TakeOverRequest;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Status};

use super::{
    group::{Core, Group},
    network,
};
use crate::role::MemberId;

/// Elections of this node that are not as others.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    /// The term in which nobody is asked; 0 is that of no election.
    silent: AtomicU64,
}

impl Elections {
    pub(super) fn is_silent(&self, term: u64) -> bool {
        self.silent.load(Ordering::SeqCst) == term
    }
}

/// How long a voter may take to let go of the leader; one that is dead must not hold the others up.
const LET_GO: Duration = Duration::from_millis(150);
/// How long the one that was asked may take to be the leader before another one is asked.
const ATTEMPT: Duration = Duration::from_millis(400);

impl Group {
    /// Holds no election of its own any more: a node that is about to end, and was elected once more because nobody else
    /// was in time, would leave the others without a leader.
    pub(crate) fn stand_aside(&self) {
        self.core().raft.runtime_config().elect(false);
    }

    /// Has one of `heirs`, the first that has all of the log, lead in place of this node; whether this node leads no
    /// more.
    pub(crate) async fn hand_over(&self, heirs: &[MemberId], deadline: Instant) -> bool {
        let core = self.core();
        if core.is_leader() && !heirs.is_empty() && core.leads_surely() {
            core.yielding.store(true, Ordering::SeqCst);
            if let Some(heir) = core.yield_to(heirs, deadline).await {
                tracing::info!(group = core.name, to = %heir, "handed the lead over");
            }
            core.forget_quorum();
            core.yielding.store(false, Ordering::SeqCst);
        }
        !core.is_leader()
    }
}

impl Core {
    fn is_leader(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// The new leader, if there is one in time.
    ///
    /// The first voter that lets go may depose this leader at once: the heirs are asked all the same, one after the
    /// other, as nobody leads until one of them does.
    async fn yield_to(&self, heirs: &[MemberId], deadline: Instant) -> Option<MemberId> {
        let (first, term, last_log) = timeout_at(deadline, self.caught_up(heirs)).await.ok()??;
        let others = self.voters().into_iter().filter(|voter| *voter != self.member && *voter != first);
        join_all(others.map(|voter| self.ask(voter, term, last_log, false))).await;
        let voters = self.voters();
        let rest = heirs.iter().copied().filter(|heir| *heir != first && voters.contains(heir));
        for heir in std::iter::once(first).chain(rest) {
            if Instant::now() >= deadline {
                break;
            }
            let asked = self.ask(heir, term, last_log, true).await;
            // Who refuses may do so because another one leads by now, which is known here at once or not at all.
            let patience = if asked { ATTEMPT } else { Duration::ZERO };
            let mut metrics = self.raft.metrics();
            let led = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != self.member.0));
            if let Ok(Ok(metrics)) = timeout_at(deadline.min(Instant::now() + patience), led).await {
                return metrics.current_leader.map(MemberId);
            }
        }
        None
    }

    /// Waits until nothing more is on its way, and one of the heirs that vote has all of it: who, in which term, and up
    /// to where. `None` where there is none to wait for.
    async fn caught_up(&self, heirs: &[MemberId]) -> Option<(MemberId, u64, u64)> {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_and_update();
                let voters = metrics.membership_config.membership();
                let mut able =
                    heirs.iter().filter(|heir| voters.voter_ids().any(|id| id == heir.0)).peekable();
                able.peek()?;
                let last = metrics.last_log_index?;
                let applied = metrics.last_applied.map_or(0, |id| id.index);
                let matched = |heir: &&MemberId| {
                    let all = metrics.replication.as_ref();
                    all.and_then(|all| all.get(&heir.0))
                        .is_some_and(|at| at.is_some_and(|id| id.index == last))
                };
                if applied == last
                    && let Some(heir) = able.find(matched)
                {
                    return Some((*heir, metrics.current_term, last));
                }
            }
            metrics.changed().await.ok()?;
        }
    }

    fn voters(&self) -> Vec<MemberId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().voter_ids().map(MemberId).collect()
    }

    /// Asks a voter to lead, or only to let go of this leader; whether it does.
    async fn ask(&self, voter: MemberId, term: u64, last_log: u64, lead: bool) -> bool {
        let (cluster, group) = (self.links.cluster_bytes(), self.name.into());
        let target = voter.0;
        let mut request = Request::new(TakeOverRequest { cluster, group, target, term, last_log, lead });
        let within = if lead { ATTEMPT } else { LET_GO };
        request.set_timeout(within);
        let asked = async {
            let mut client = network::client(&self.links, voter, &self.address_in_group(voter))?;
            let late = |_| Status::deadline_exceeded("no answer in time");
            timeout(within, client.take_over(request)).await.map_err(late)?
        };
        match asked.await {
            Ok(reply) => reply.into_inner().begun,
            Err(status) => {
                tracing::debug!(group = self.name, %voter, status = status.message(), "does not let go of this leader");
                false
            }
        }
    }

    /// Asks for votes at once, as the leader of this term wants it; whether this node is as far as that one, or farther:
    /// what was on its way as that one asked may have come.
    pub(super) async fn take_over(&self, term: u64, last_log: u64) -> bool {
        let (fits, follows) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let votes = metrics.membership_config.membership().voter_ids().any(|id| id == self.member.0);
            let follows = metrics.current_term == term;
            let let_go = metrics.current_term == term + 1 && self.elections.is_silent(term + 1);
            (votes && (follows || let_go) && metrics.last_log_index >= Some(last_log), follows)
        };
        fits && (!follows || self.elect_silently(term).await) && self.raft.trigger().elect().await.is_ok()
    }

    /// Forgets the leader of this term, as it wants, and votes for nobody yet; whether it was known here.
    pub(super) async fn let_go_of_leader(&self, term: u64) -> bool {
        let follows = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            metrics.state == ServerState::Follower && metrics.current_term == term
        };
        follows && self.elect_silently(term).await
    }

    /// Takes the term behind `term`, and asks nobody for a vote in it. From then on it votes for others, also where it
    /// has just started: the leader of `term` counts on no voter any more, and an earlier leader on none since that one
    /// was elected.
    async fn elect_silently(&self, term: u64) -> bool {
        *self.votes_from.lock() = None;
        self.elections.silent.store(term + 1, Ordering::SeqCst);
        self.raft.trigger().elect().await.is_ok()
    }
}

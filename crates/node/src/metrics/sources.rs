//! Where each metric comes from.

use std::{fmt, sync::Arc};

use cluster::{Cluster, NodeState};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use store::Store;

use super::page::{Labels, Writer};

/// The parts that are asked.
pub struct Sources {
    /// Leases, groups, nodes and sessions of the cluster.
    pub cluster: Arc<Cluster>,
    /// Latency and errors of the store.
    pub store: Store,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Writer(encoder);
        self.cluster(&mut page)?;
        self.store(&mut page)
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

impl Sources {
    fn cluster(&self, page: &mut Writer) -> fmt::Result {
        let status = self.cluster.status();
        page.gauge("cluster_serving", "1 while this node holds its lease.", u64::from(status.serving))?;
        page.gauge(
            "cluster_sessions",
            "Sessions of the whole cluster in the route table.",
            status.sessions as u64,
        )?;
        page.gauge("cluster_index", "Index of the route table on this node.", status.index)?;
        if let Some(age) = status.lease_age_ms {
            page.gauge(
                "cluster_lease_age_ms",
                "Milliseconds since the last acknowledged renewal was sent.",
                age,
            )?;
        }
        let count = |state| status.nodes.iter().filter(|n| n.state == state).count() as u64;
        page.gauges(
            "cluster_nodes",
            "Nodes by state.",
            [
                (label("state", "up"), count(NodeState::Up)),
                (label("state", "draining"), count(NodeState::Draining)),
                (label("state", "gone"), count(NodeState::Gone)),
            ],
        )?;
        let groups = || status.groups.iter().map(|g| (label("group", &g.name), g));
        page.gauges("raft_term", "Current term.", groups().map(|(l, g)| (l, g.term)))?;
        page.gauges(
            "raft_is_leader",
            "1 on the leader.",
            groups().map(|(l, g)| (l, u64::from(g.is_leader))),
        )?;
        page.gauges("raft_last_log_index", "Last entry of the log.", groups().map(|(l, g)| (l, g.last_log)))?;
        page.gauges("raft_applied_index", "Last entry applied.", groups().map(|(l, g)| (l, g.applied)))?;
        page.gauges(
            "raft_snapshot_index",
            "Last entry in a snapshot.",
            groups().map(|(l, g)| (l, g.snapshot)),
        )?;
        page.gauges("raft_voters", "Voting members.", groups().map(|(l, g)| (l, g.voters.len() as u64)))?;
        let ages = groups().filter_map(|(l, g)| Some((l, g.quorum_age_ms?)));
        page.gauges(
            "raft_quorum_age_ms",
            "On the leader: milliseconds since a quorum acknowledged it.",
            ages,
        )?;
        let lags = status.groups.iter().flat_map(|g| {
            g.matched.iter().map(|(member, index)| {
                let labels = vec![("group", g.name.clone()), ("member", member.to_string())];
                (labels, g.last_log.saturating_sub(*index))
            })
        });
        page.gauges("raft_follower_lag", "On the leader: entries that a member lacks.", lags)?;
        let failed = groups().map(|(l, g)| (l, u64::from(g.failure.is_some())));
        page.gauges("raft_failed", "1 where the group has stopped by a failure.", failed)
    }

    fn store(&self, page: &mut Writer) -> fmt::Result {
        let seen = self.store.facts().snapshot();
        let errors = [
            (label("reason", "full"), seen.full),
            (label("reason", "corrupt"), seen.corrupt),
            (label("reason", "deadline"), seen.deadline),
            (label("reason", "unavailable"), seen.unavailable),
        ];
        page.counters("store_errors", "Calls of the store that failed.", errors)?;
        page.latencies(
            "store_seconds",
            "Duration of calls of the store.",
            [
                (label("call", "get"), seen.get),
                (label("call", "scan"), seen.scan),
                (label("call", "commit"), seen.commit),
            ],
        )
    }
}

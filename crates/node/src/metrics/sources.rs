//! Where each metric comes from.

use std::{fmt, sync::Arc};

use cluster::{Cluster, NodeState};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use router::{Fate, Router};
use stanza::Kind;
use store::Store;

use crate::{
    parts::{self, SharedListeners},
    readiness::Readiness,
};

use super::page::{Labels, Writer};

/// The parts that are asked.
pub struct Sources {
    /// Leases, groups, nodes and sessions of the cluster.
    pub cluster: Arc<Cluster>,
    /// Latency and errors of the store.
    pub store: Store,
    /// What becomes of stanzas.
    pub router: Arc<Router>,
    /// Clients, on a frontend that has started.
    pub listeners: SharedListeners,
    /// Whether the node is ready.
    pub readiness: Arc<Readiness>,
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
        self.store(&mut page)?;
        self.router(&mut page)?;
        process(&mut page)?;
        self.clients(&mut page)
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

/// The process as the system sees it.
fn process(page: &mut Writer) -> fmt::Result {
    if let Some(open) = parts::files::open() {
        page.gauge("open_files", "Files that the process has open.", open)?;
    }
    match parts::files::limits() {
        Ok((limit, _)) => page.gauge("open_files_max", "Files that it may have open.", limit),
        Err(_) => Ok(()),
    }
}

impl Sources {
    fn cluster(&self, page: &mut Writer) -> fmt::Result {
        let status = self.cluster.status();
        let ready = u64::from(self.readiness.not_ready().is_empty());
        page.gauge("ready", "1 while the node should get new clients, as /ready says.", ready)?;
        page.gauge("cluster_serving", "1 while this node holds its lease.", u64::from(status.serving))?;
        page.gauge(
            "cluster_sessions",
            "Sessions of the whole cluster in the route table.",
            status.sessions as u64,
        )?;
        let nodes = status.nodes.iter().filter(|node| node.state != NodeState::Gone);
        let counted = self.cluster.routes().sessions_by_node();
        let routes = nodes.map(|n| (label("node", n.node), counted.get(&n.node).copied().unwrap_or(0)));
        page.gauges("cluster_routes", "Sessions of each node in the route table.", routes)?;
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
        let refusals = status.refusals.iter().map(|(reason, count)| (label("reason", reason), *count));
        page.counters(
            "cluster_refusals",
            "Calls, links and join tokens of other nodes that were refused.",
            refusals,
        )?;
        page.counter(
            "cluster_certificates_issued",
            "Certificates that this node has signed for nodes, renewals included.",
            status.certificates_issued,
        )?;
        if let Some(expires) = status.certificate_expires {
            let what = "When this node's certificate for links expires, in seconds since 1970.";
            page.gauge("cluster_certificate_expires_seconds", what, expires)?;
        }
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
        page.gauges(
            "raft_log_bytes",
            "Bytes of entries in the log.",
            groups().map(|(l, g)| (l, g.log_bytes)),
        )?;
        page.gauges(
            "raft_snapshot_bytes",
            "Bytes of the newest snapshot, where the state is not on disk by itself.",
            groups().filter_map(|(l, g)| Some((l, g.snapshot_bytes?))),
        )?;
        page.counters(
            "raft_leader_changes",
            "Times that this node saw another member lead than before.",
            groups().map(|(l, g)| (l, g.leader_changes)),
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
        let reads = seen.reads.into_iter().map(|(table, count)| (label("table", table), count));
        page.counters("store_reads", "Gets and scans of the store, by table.", reads)?;
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

    fn router(&self, page: &mut Writer) -> fmt::Result {
        let counters = self.router.counters();
        let each = [Kind::Message, Kind::Presence, Kind::Iq]
            .into_iter()
            .flat_map(|kind| Fate::ALL.into_iter().map(move |fate| (kind, fate)));
        let stanzas = each.map(|(kind, fate)| {
            let labels = vec![("kind", kind.tag().to_owned()), ("outcome", fate.label().to_owned())];
            (labels, counters.stanzas(kind, fate))
        });
        page.counters("stanzas", "Stanzas by kind and by what became of them.", stanzas)?;
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let totals = [
            ("router_panics", "Handlers that panicked on a stanza.", &counters.panics),
            ("router_at_bound", "Stanzas bounced because a queue was at its bound.", &counters.at_bound),
            ("router_rerouted", "Deliveries routed anew because their session ended.", &counters.rerouted),
            ("relay_sent", "Parcels given to other nodes.", &counters.parcels_sent),
            ("relay_resent", "Parcels sent once more after a link broke.", &counters.parcels_resent),
            ("relay_received", "Parcels that came from other nodes.", &counters.parcels_received),
            (
                "relay_fenced",
                "Streams of parcels refused or ended: an incarnation of one side is over.",
                &counters.fenced,
            ),
            ("relay_repeated", "Parcels that came a second time.", &counters.parcels_repeated),
            ("relay_batches", "Batches given to other nodes.", &counters.batches_sent),
            ("relay_refusals", "Targets that other nodes refused.", &counters.refusals),
            ("lost_sessions_told", "Sessions of lost nodes whose contacts were told.", &counters.lost_told),
            ("accounts_created", "Accounts made.", &counters.accounts_created),
            ("accounts_removed", "Accounts removed.", &counters.accounts_removed),
            ("accounts_disabled", "Accounts disabled.", &counters.accounts_disabled),
            ("passwords_set", "Passwords replaced.", &counters.passwords_set),
            ("passwords_busy", "New passwords refused because too many waited.", &counters.passwords_busy),
        ];
        for (name, help, counter) in totals {
            page.counter(name, help, of(counter))?;
        }
        let events = counters.events().into_iter().map(|(module, event, count)| {
            (vec![("module", module.to_owned()), ("event", event.to_owned())], count)
        });
        page.counters("module_events", "What modules count, as each of them says.", events)?;
        let waiting = self.router.waiting();
        page.gauge("mailbox_stanzas", "Stanzas that wait to be written to clients.", of(&waiting.stanzas))?;
        page.gauge("mailbox_bytes", "Bytes that wait to be written to clients.", of(&waiting.bytes))?;
        self.lanes(page)
    }

    fn lanes(&self, page: &mut Writer) -> fmt::Result {
        let lanes = self.router.lanes();
        let each = |value: fn(&router::LaneFacts) -> u64| {
            let line = move |lane: &router::LaneFacts| {
                (vec![("node", lane.node.to_string()), ("lane", lane.lane.to_string())], value(lane))
            };
            lanes.iter().map(line).collect::<Vec<_>>()
        };
        let lag = each(|l| l.unreceived as u64);
        page.gauges("relay_lag", "Stanzas that another node has not confirmed to have.", lag)?;
        let unsettled = each(|l| l.unsettled as u64);
        page.gauges("relay_unsettled", "Stanzas that another node has not settled.", unsettled)?;
        let bytes = each(|l| l.unsettled_bytes as u64);
        page.gauges("relay_unsettled_bytes", "Bytes of those.", bytes)?;
        page.gauges("relay_connected", "1 while the link is up.", each(|l| u64::from(l.connected)))
    }

    fn clients(&self, page: &mut Writer) -> fmt::Result {
        let Some(listeners) = self.listeners.get() else { return Ok(()) };
        page.gauge("sessions", "Sessions bound on this node.", listeners.session_count() as u64)?;
        page.gauge("connections", "Client sockets that are open.", listeners.connections() as u64)?;
        page.gauge(
            "connections_unauthenticated",
            "Client sockets that have not logged in.",
            listeners.unauthenticated() as u64,
        )?;
        page.gauge(
            "logins_waiting",
            "Clients that wait until their login may begin.",
            listeners.logins_waiting() as u64,
        )?;
        let rate = listeners.login_rate().into_iter().map(|rate| (Vec::new(), rate));
        page.gauges("login_rate", "Logins that may begin in a second, as late as sessions are.", rate)?;
        let remembered = listeners.remembered().map(|(what, n)| (label("what", what), n as u64));
        page.gauges("door_remembered", "Addresses and accounts that the door remembers.", remembered)?;
        page.gauge(
            "out_of_files",
            "1 while clients are refused because nearly all files that the process may open are open.",
            u64::from(listeners.is_out_of_files()),
        )?;
        let counters = listeners.counters();
        let read = [
            (label("kind", "message"), counters.messages_in.value()),
            (label("kind", "presence"), counters.presences_in.value()),
            (label("kind", "iq"), counters.iqs_in.value()),
        ];
        page.counters("stanzas_read", "Stanzas read from clients.", read)?;
        let totals = [
            ("stanzas_written", "Stanzas written to clients.", &counters.stanzas_out),
            ("stanzas_refused", "Stanzas refused for their shape.", &counters.bad_stanzas),
            ("connections_accepted", "Sockets let in.", &counters.accepted),
            ("accept_errors", "Failures of accept itself.", &counters.accept_errors),
            (
                "accept_pauses",
                "Waits of listeners at `limits.accepts_per_second` or `limits.logins_waiting`.",
                &counters.accept_pauses,
            ),
            ("login_waits", "Logins that waited, so that sessions stay in time.", &counters.login_waits),
            (
                "login_slowdowns",
                "Times that fewer logins were let begin because sessions were late.",
                &counters.login_slowdowns,
            ),
            (
                "connections_evicted",
                "Sockets closed for newer ones before they logged in.",
                &counters.evicted,
            ),
            ("proxy_failures", "Proxies that did not say whom they speak for.", &counters.proxy_failures),
            ("tls_failures", "TLS handshakes that failed.", &counters.tls_failures),
            ("logins", "Clients that authenticated.", &counters.authenticated),
            ("login_failures", "Authentication attempts that failed.", &counters.auth_failures),
            ("login_busy", "Password checks refused because too many waited.", &counters.auth_busy),
            ("login_delays", "Logins that waited for failures before them.", &counters.auth_delayed),
            (
                "login_crowded",
                "Logins refused because too many of their address waited.",
                &counters.auth_crowded,
            ),
            ("reads_slowed", "Pauses in the reading of clients that exceed their rates.", &counters.slowed),
            ("reads_slowed_ms", "Milliseconds of such pauses.", &counters.slowed_ms),
            (
                "streams_managed",
                "Clients that began to acknowledge what they get (XEP-0198).",
                &counters.managed,
            ),
            ("sessions_detached", "Sessions that lost their connection and waited.", &counters.detached),
            ("sessions_resumed", "Sessions that their clients resumed.", &counters.resumed),
            (
                "sessions_resumed_from_peers",
                "Sessions that their clients resumed here and that were at another node.",
                &counters.resumed_from_peers,
            ),
            (
                "resumptions_failed",
                "Attempts to resume a session that was not there any more.",
                &counters.resumptions_failed,
            ),
            ("binds_refused", "Sessions refused at `limits.sessions_per_account`.", &counters.binds_refused),
            ("sessions_bound", "Sessions bound since the start.", &counters.bound),
            ("session_panics", "Sessions that ended by a panic.", &counters.panics),
            ("bytes_read", "Bytes read from clients.", &counters.bytes_in),
            ("bytes_written", "Bytes written to clients.", &counters.bytes_out),
        ];
        for (name, help, counter) in totals {
            page.counter(name, help, counter.value())?;
        }
        let named = |key: &'static str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(move |(name, n)| (label(key, name), n))
        };
        let refusals = named("bound", counters.refusals());
        page.counters("connections_refused", "Sockets closed at a bound on connections.", refusals)?;
        let greetings = named("outcome", counters.greetings());
        page.counters("requests_before_login", "Registration requests before a login.", greetings)?;
        let errors = named("condition", counters.stream_errors());
        page.counters("stream_errors", "Stream errors sent, by condition.", errors)?;
        page.counters("connections_ended", "Connections that ended, by why.", named("why", counters.ends()))
    }
}

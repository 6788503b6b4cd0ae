//! `rookery cluster status --watch`: a picture that is drawn anew on a terminal, a line for each change elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use proto::admin::{self, admin_client::AdminClient};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use super::{CtlError, innermost, refused, status_json, status_table};
use crate::{cli::Format, table::Table};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// A node tells something each second; one that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a node that went away is looked for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks for it.
const AGAIN: Duration = Duration::from_millis(500);

/// What was being done, for errors.
const ATTEMPT: &str = "watch the cluster";

/// Watches until it is interrupted, or the node that is asked has been away for long.
pub async fn watch(url: &str, format: Format) -> Result<(), CtlError> {
    let mut screen = Screen { format, is_terminal: io::stdout().is_terminal(), before: None };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without the handler the signal ends the process by itself.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = watch_on(url, &mut screen) => ended,
        () = interrupted => Ok(()),
    }
}

async fn watch_on(url: &str, screen: &mut Screen) -> Result<(), CtlError> {
    let mut away: Option<Instant> = None;
    loop {
        let why = match follow(url, screen, &mut away).await {
            Ok(why) => why,
            // Never reached, or it does not want to be watched.
            Err(error) if screen.before.is_none() => return Err(error),
            Err(error) => error.to_string(),
        };
        let since = match away {
            Some(since) => since,
            None => {
                let now = Instant::now();
                away = Some(now);
                let text = format!("the node went away: {why}; looking for it for {} s", PATIENCE.as_secs());
                screen.note(&text);
                now
            }
        };
        if since.elapsed() > PATIENCE {
            return Err(CtlError::Refused { attempt: ATTEMPT.to_owned(), reason: why });
        }
        sleep(AGAIN).await;
    }
}

/// Follows until the stream ends; why it did.
async fn follow(url: &str, screen: &mut Screen, away: &mut Option<Instant>) -> Result<String, CtlError> {
    let unreachable = |reason: String| CtlError::Unreachable { url: url.to_owned(), reason };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| unreachable("this is no URL".into()))?;
    let channel =
        endpoint.connect_timeout(CONNECT).connect().await.map_err(|e| unreachable(innermost(&e)))?;
    let mut client = AdminClient::new(channel);
    let asked = timeout(SILENCE, client.watch_cluster(admin::WatchClusterRequest {}));
    let silent = || format!("it says nothing for {} s", SILENCE.as_secs());
    let mut views = match asked.await {
        Ok(views) => views.map_err(refused(ATTEMPT))?.into_inner(),
        Err(_) => return Ok(silent()),
    };
    loop {
        match timeout(SILENCE, views.message()).await {
            Ok(Ok(Some(view))) => {
                if away.take().is_some() {
                    screen.note("the node is back");
                }
                screen.show(view);
            }
            Ok(Ok(None)) => return Ok("it ended the answer".to_owned()),
            Ok(Err(status)) => return Ok(status.message().to_owned()),
            Err(_) => return Ok(silent()),
        }
    }
}

struct Screen {
    format: Format,
    is_terminal: bool,
    before: Option<admin::ClusterView>,
}

impl Screen {
    fn show(&mut self, view: admin::ClusterView) {
        let text = match self.format {
            Format::Json => format!("{}\n", json_line(&view)),
            Format::Table if self.is_terminal => {
                // From the upper left corner; what stands behind a line or below the last one goes.
                let clear = if self.before.is_none() { "\x1b[2J" } else { "" };
                let lines: String = picture(&view).lines().map(|line| format!("{line}\x1b[K\n")).collect();
                format!("{clear}\x1b[H{lines}\x1b[J")
            }
            Format::Table => {
                changes(self.before.as_ref(), &view).iter().map(|line| format!("{line}\n")).collect()
            }
        };
        put(&text);
        self.before = Some(view);
    }

    /// Says something about the watching itself: beside the views where programs read them.
    fn note(&self, text: &str) {
        match self.format {
            Format::Json => eprintln!("rookery: {text}"),
            Format::Table => put(&format!("{text}\n")),
        }
    }
}

fn put(text: &str) {
    let mut out = io::stdout().lock();
    // a terminal that has gone away misses nothing
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Names of nodes by id.
fn names(view: &admin::ClusterView) -> BTreeMap<u64, String> {
    let nodes = view.cluster.iter().flat_map(|cluster| &cluster.nodes);
    nodes.map(|node| (node.id, node.name.clone())).collect()
}

fn name(names: &BTreeMap<u64, String>, node: u64) -> String {
    match names.get(&node).filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => format!("node {node}"),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// The cluster at one moment, for people.
fn picture(view: &admin::ClusterView) -> String {
    let names = names(view);
    let mut text = view.cluster.as_ref().map(status_table).unwrap_or_default();
    let mut lives = Table::new(&["NODE", "LEASE", "INDEX", "LIVING", "RELAY LAG", "UNSETTLED", "LINKS"]);
    let mut groups = Table::new(&[
        "GROUP",
        "NODE",
        "LEADER",
        "TERM",
        "LAST LOG",
        "APPLIED",
        "SNAPSHOT",
        "LOG",
        "SNAPSHOT SIZE",
        "CHANGES",
    ]);
    for node in &view.nodes {
        let called = name(&names, node.node);
        if !node.unanswered.is_empty() {
            lives.row(&[&called, &node.unanswered, &"", &"", &"", &"", &""]);
            continue;
        }
        let lease = match node.lease_age_ms {
            Some(age) if node.serving => format!("{age} ms"),
            Some(age) => format!("{age} ms, over"),
            None => "none".to_owned(),
        };
        let sum = |value: fn(&admin::PeerView) -> u64| node.peers.iter().map(value).sum::<u64>();
        let (lanes, connected) = (sum(|p| p.lanes.into()), sum(|p| p.connected.into()));
        lives.row(&[
            &called,
            &lease,
            &node.index,
            &node.sessions,
            &sum(|p| p.unreceived),
            &sum(|p| p.unsettled),
            &format!("{connected}/{lanes}"),
        ]);
        for group in &node.groups {
            let leader = if group.leader == 0 { "-".to_owned() } else { name(&names, group.leader) };
            groups.row(&[
                &group.name,
                &called,
                &leader,
                &group.term,
                &group.last_log,
                &group.applied,
                &group.snapshot,
                &bytes(group.log_bytes),
                &group.snapshot_bytes.map_or_else(|| "on disk".to_owned(), bytes),
                &if group.failure.is_empty() {
                    group.leader_changes.to_string()
                } else {
                    group.failure.clone()
                },
            ]);
        }
    }
    text += &format!("\n{lives}\n{groups}");
    text
}

/// What has changed, a line each; at first, what there is.
fn changes(before: Option<&admin::ClusterView>, now: &admin::ClusterView) -> Vec<String> {
    let names = names(now);
    let empty = admin::ClusterView::default();
    let then = before.unwrap_or(&empty);
    let mut lines = Vec::new();
    let (old, new) = (then.cluster.clone().unwrap_or_default(), now.cluster.clone().unwrap_or_default());
    if before.is_none() {
        let cluster = if new.cluster_id.is_empty() { "not formed" } else { &new.cluster_id };
        lines.push(format!("cluster {cluster}, answered by {}", name(&names, new.answered_by)));
    }
    if old.leader != new.leader {
        lines.push(match new.leader {
            0 => "no leader is known".to_owned(),
            leader => format!("{} leads", name(&names, leader)),
        });
    }
    let known: BTreeMap<u64, &admin::Node> = old.nodes.iter().map(|node| (node.id, node)).collect();
    for node in &new.nodes {
        let called = name(&names, node.id);
        match known.get(&node.id) {
            None => lines.push(format!(
                "{called}: {}, incarnation {}, {} sessions",
                node.state, node.incarnation, node.sessions
            )),
            Some(was) => {
                if was.state != node.state || was.incarnation != node.incarnation {
                    lines.push(format!("{called}: {}, incarnation {}", node.state, node.incarnation));
                }
                if was.sessions != node.sessions {
                    lines.push(format!("{called}: {} sessions, {} before", node.sessions, was.sessions));
                }
            }
        }
    }
    for node in old.nodes.iter().filter(|node| new.nodes.iter().all(|other| other.id != node.id)) {
        lines.push(format!("{}: removed", node.name));
    }
    let seen: BTreeMap<u64, &admin::NodeView> = then.nodes.iter().map(|node| (node.node, node)).collect();
    let usual = admin::NodeView { serving: true, ..admin::NodeView::default() };
    for node in &now.nodes {
        let was = seen.get(&node.node).copied().unwrap_or(&usual);
        own_changes(&mut lines, &names, was, node);
    }
    lines
}

/// What has changed of what a node says of itself.
fn own_changes(
    lines: &mut Vec<String>,
    names: &BTreeMap<u64, String>,
    was: &admin::NodeView,
    node: &admin::NodeView,
) {
    let called = name(names, node.node);
    match (was.unanswered.is_empty(), node.unanswered.is_empty()) {
        (true, false) => lines.push(format!("{called} does not answer: {}", node.unanswered)),
        (false, true) => lines.push(format!("{called} answers again")),
        _ => {}
    }
    if !was.unanswered.is_empty() || !node.unanswered.is_empty() {
        return;
    }
    if was.serving != node.serving {
        let word = if node.serving { "serves again" } else { "does not serve: it has no lease" };
        lines.push(format!("{called} {word}"));
    }
    for group in &node.groups {
        let before = was.groups.iter().find(|other| other.name == group.name);
        if !group.failure.is_empty() && before.is_none_or(|before| before.failure.is_empty()) {
            lines.push(format!("{called}: the group `{}` has stopped: {}", group.name, group.failure));
        }
        if before.is_some_and(|before| before.leader_changes < group.leader_changes) {
            let leader = name(names, group.leader);
            lines.push(format!(
                "{called}: the group `{}` is led by {leader} in term {}",
                group.name, group.term
            ));
        }
    }
    for peer in &node.peers {
        let other = name(names, peer.node);
        let before = was.peers.iter().find(|before| before.node == peer.node);
        let (lagged, lags) = (before.is_some_and(|before| before.unreceived > 0), peer.unreceived > 0);
        match (lagged, lags) {
            (false, true) => {
                lines.push(format!("{called}: {other} has not confirmed {} stanzas", peer.unreceived));
            }
            (true, false) => lines.push(format!("{called}: {other} has confirmed all stanzas")),
            _ => {}
        }
    }
}

/// A view for programs, in one line.
fn json_line(view: &admin::ClusterView) -> serde_json::Value {
    let group = |group: &admin::GroupView| {
        json!({
            "name": group.name,
            "leader": group.leader,
            "term": group.term,
            "last_log": group.last_log,
            "applied": group.applied,
            "snapshot": group.snapshot,
            "log_bytes": group.log_bytes,
            "snapshot_bytes": group.snapshot_bytes,
            "leader_changes": group.leader_changes,
            "failure": group.failure,
        })
    };
    let peer = |peer: &admin::PeerView| {
        json!({
            "node": peer.node,
            "unreceived": peer.unreceived,
            "unsettled": peer.unsettled,
            "unsettled_bytes": peer.unsettled_bytes,
            "lanes": peer.lanes,
            "connected": peer.connected,
        })
    };
    let node = |node: &admin::NodeView| {
        json!({
            "node": node.node,
            "unanswered": node.unanswered,
            "serving": node.serving,
            "lease_age_ms": node.lease_age_ms,
            "index": node.index,
            "sessions": node.sessions,
            "groups": node.groups.iter().map(group).collect::<Vec<_>>(),
            "peers": node.peers.iter().map(peer).collect::<Vec<_>>(),
        })
    };
    json!({
        "cluster": view.cluster.as_ref().map(status_json),
        "nodes": view.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(change: impl FnOnce(&mut admin::ClusterView)) -> admin::ClusterView {
        let node = |id: u64| admin::Node {
            id,
            name: format!("node{id}"),
            incarnation: 1,
            state: "up".into(),
            sessions: 2,
            ..admin::Node::default()
        };
        let group = admin::GroupView {
            name: "routes".into(),
            leader: 1,
            term: 3,
            log_bytes: 20_480,
            snapshot_bytes: Some(9),
            ..admin::GroupView::default()
        };
        let peer = |node| admin::PeerView { node, lanes: 4, connected: 4, ..admin::PeerView::default() };
        let own = |id: u64| admin::NodeView {
            node: id,
            serving: true,
            lease_age_ms: Some(40),
            index: 9,
            sessions: 2,
            groups: vec![group.clone()],
            peers: vec![peer(3 - id)],
            ..admin::NodeView::default()
        };
        let cluster = admin::GetClusterResponse {
            cluster_id: "c1".into(),
            answered_by: 1,
            leader: 1,
            nodes: vec![node(1), node(2)],
            ..admin::GetClusterResponse::default()
        };
        let mut view = admin::ClusterView { cluster: Some(cluster), nodes: vec![own(1), own(2)] };
        change(&mut view);
        view
    }

    #[test]
    fn each_change_is_a_line_and_what_only_grows_is_none() {
        let still = view(|_| {});
        assert_eq!(
            changes(None, &still),
            [
                "cluster c1, answered by node1",
                "node1 leads",
                "node1: up, incarnation 1, 2 sessions",
                "node2: up, incarnation 1, 2 sessions"
            ]
        );
        fn node(view: &mut admin::ClusterView) -> &mut admin::Node {
            &mut view.cluster.as_mut().unwrap().nodes[1]
        }
        type Change = fn(&mut admin::ClusterView);
        let rows: Vec<(Change, &[&str])> = vec![
            (|_| {}, &[]),
            (|v| v.nodes[1].lease_age_ms = Some(400), &[]),
            (|v| v.nodes[1].index = 10, &[]),
            (|v| node(v).sessions = 3, &["node2: 3 sessions, 2 before"]),
            (|v| node(v).state = "draining".into(), &["node2: draining, incarnation 1"]),
            (|v| node(v).incarnation = 2, &["node2: up, incarnation 2"]),
            (|v| drop(v.cluster.as_mut().unwrap().nodes.pop()), &["node2: removed"]),
            (|v| v.cluster.as_mut().unwrap().leader = 2, &["node2 leads"]),
            (|v| v.cluster.as_mut().unwrap().leader = 0, &["no leader is known"]),
            (|v| v.nodes[1].serving = false, &["node2 does not serve: it has no lease"]),
            (|v| v.nodes[1].unanswered = "no answer".into(), &["node2 does not answer: no answer"]),
            (|v| v.nodes[0].peers[0].unreceived = 7, &["node1: node2 has not confirmed 7 stanzas"]),
            (
                |v| v.nodes[0].groups[0].leader_changes = 1,
                &["node1: the group `routes` is led by node1 in term 3"],
            ),
            (
                |v| v.nodes[0].groups[0].failure = "disk".into(),
                &["node1: the group `routes` has stopped: disk"],
            ),
        ];
        for (change, lines) in rows {
            let now = view(change);
            assert_eq!(changes(Some(&still), &now), lines);
        }
        let silent = view(|v| v.nodes[1].unanswered = "no answer".into());
        assert_eq!(changes(Some(&silent), &still), ["node2 answers again"]);
    }

    #[test]
    fn the_picture_shows_every_node_and_group() {
        let text = picture(&view(|v| v.nodes[1].unanswered = "no answer within 1 s".into()));
        for part in ["cluster c1", "node1  40 ms ", "4/4", "no answer within 1 s", "routes  node1", "20 KiB"]
        {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }

    #[test]
    fn a_view_for_programs_is_one_line() {
        let line = json_line(&view(|_| {})).to_string();
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["nodes"][0]["groups"][0]["log_bytes"], 20_480);
    }
}

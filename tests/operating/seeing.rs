//! What an operator sees of a cluster: the report on its invariants, and the picture of whoever watches.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::{
    admin::{ClusterView, WatchClusterRequest, admin_client::AdminClient},
    membership::{SubmitRequest, membership_client::MembershipClient},
};
use serde_json::Value;
use tests::{
    nodes::{Layout, Nodes, binary},
    people::Person,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

/// A bound for what comes by itself.
const SOON: Duration = Duration::from_secs(60);

/// The report, and whether the command said that all is well.
async fn check(nodes: &Nodes, at: usize) -> Result<(bool, Value)> {
    let admin = format!("http://{}", nodes.nodes[at].admin);
    let words = ["cluster", "check", "--format", "json", "--admin", &admin];
    let run = Command::new(binary()?).args(words).stdin(Stdio::null()).output();
    let out = timeout(SOON, run).await.context("the check does not end")??;
    let report = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&out.stderr)))?;
    Ok((out.status.success(), report))
}

fn verdicts(report: &Value) -> Vec<(&str, &str)> {
    let all = report.as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = all.iter().map(|i| (i["name"].as_str(), i["verdict"].as_str()));
    pairs.map(|(name, verdict)| (name.unwrap_or_default(), verdict.unwrap_or_default())).collect()
}

const HOLDS: [(&str, &str); 2] = [("table-equal", "holds"), ("sessions-routed", "holds")];

/// Checks until all is known and holds: a node that has just come up may be on its way to the others' index, or bring
/// its sessions back. Two tables that differ are never on their way anywhere.
async fn holds(nodes: &Nodes, at: usize) -> Result<Value> {
    let end = Instant::now() + SOON;
    loop {
        let (well, report) = check(nodes, at).await?;
        ensure!(verdicts(&report)[0] != ("table-equal", "violated"), "{report:#}");
        if well {
            ensure!(verdicts(&report) == HOLDS, "{report:#}");
            return Ok(report);
        }
        ensure!(Instant::now() < end, "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_invariants_are_judged_over_all_nodes_and_those_who_do_not_answer_are_named() -> Result<()> {
    // Backends have the table by the log, frontends by the feed.
    let mut nodes = Nodes::start(Layout::Split).await?;
    let mut online = Vec::new();
    for (nth, name) in ["ada", "bea", "cleo", "dora"].into_iter().enumerate() {
        let person = Person::with_account(&nodes, name).await?;
        for resource in ["one", "two"] {
            online.push(person.come_online(nodes.door(nth), resource).await?);
        }
    }
    drop(online.pop());
    // Asked at a frontend and at a backend.
    for at in [0, 4] {
        let report = holds(&nodes, at).await?;
        ensure!(
            report[0]["text"].as_str().is_some_and(|t| t.starts_with("5 nodes have the same")),
            "{report:#}"
        );
        ensure!(report[1]["text"].as_str().is_some_and(|t| t.contains("at 5 nodes")), "{report:#}");
    }
    let said = nodes.cli(&["cluster", "check"]).await?;
    ensure!(said.contains("INVARIANT") && said.contains("table-equal"), "{said}");

    nodes.pause(1).await?;
    let (well, report) = check(&nodes, 0).await?;
    ensure!(!well, "{report:#}");
    ensure!(verdicts(&report) == [("table-equal", "unknown"), ("sessions-routed", "unknown")], "{report:#}");
    for invariant in [&report[0], &report[1]] {
        let paused = |finding: &&Value| finding["node_name"] == nodes.nodes[1].name.as_str();
        let finding = invariant["findings"].as_array().and_then(|all| all.iter().find(paused));
        ensure!(finding.is_some_and(|finding| finding["verdict"] == "unknown"), "{report:#}");
    }
    // Gone for the others, it is not asked; back, it brings its sessions into the table again.
    let gone = nodes.nodes[1].name.clone();
    let is_gone = |name: &str, state: &str| {
        let (name, state) = (name.to_owned(), state.to_owned());
        move |c: &proto::admin::GetClusterResponse| c.nodes.iter().any(|n| n.name == name && n.state == state)
    };
    nodes.until(0, "it is held for gone", SOON, is_gone(&gone, "gone")).await?;
    holds(&nodes, 0).await?;
    nodes.resume(1).await?;
    nodes.until(0, "it is back", SOON, is_gone(&gone, "up")).await?;
    holds(&nodes, 0).await?;

    // Over a table that a backend got anew, at its start.
    nodes.kill(3).await?;
    nodes.start_again(3).await?;
    let report = holds(&nodes, 3).await?;
    ensure!(report[0]["text"].as_str().is_some_and(|t| t.starts_with("5 nodes have the same")), "{report:#}");
    Ok(())
}

/// Has the table agree on a session of a node that nobody has, as a node could that lost count.
async fn haunt(nodes: &Nodes, at: usize, jid: &str) -> Result<()> {
    let state = nodes.status(at).await?;
    let node = state.nodes.iter().find(|n| n.name == nodes.nodes[at].name).context("it is there")?;
    let cluster = u128::from_str_radix(&state.cluster_id, 16)?.to_be_bytes().to_vec();
    // Version 1, `Bind`: a text, three numbers below 128, `Replace`.
    ensure!(node.id < 128 && node.incarnation < 128 && jid.len() < 128, "{node:?}");
    let length = jid.len() as u8;
    let numbers = [node.id as u8, node.incarnation as u8, 77, 0];
    let command = [&[1, 0, length][..], jid.as_bytes(), &numbers].concat();
    let backend = nodes.nodes.iter().find(|n| n.roles.contains(&"backend")).context("no backend")?;
    let mut client = MembershipClient::connect(format!("http://{}", backend.cluster)).await?;
    let commands = vec![command.into()];
    client.submit(SubmitRequest { cluster: cluster.into(), commands, timeout_ms: 10_000 }).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_a_session_is_told_with_its_node() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let person = Person::with_account(&nodes, "ada").await?;
    let _client = person.come_online(nodes.door(1), "here").await?;
    holds(&nodes, 0).await?;
    // On a busy machine the node may lose its lease, and the row with its incarnation: then once more.
    let end = Instant::now() + SOON;
    let (report, said) = loop {
        haunt(&nodes, 1, "ghost@localhost/x").await?;
        let (well, report) = check(&nodes, 0).await?;
        let (also_well, said) = nodes.ask(2, &["cluster", "check"]).await?;
        if verdicts(&report) == [("table-equal", "holds"), ("sessions-routed", "violated")]
            && said.contains("`sessions-routed` is violated")
        {
            ensure!(!well && !also_well, "{report:#}\n{said}");
            break (report, said);
        }
        ensure!(Instant::now() < end, "{report:#}\n{said}");
    };
    let finding = &report[1]["findings"][0];
    ensure!(finding["node_name"] == "node2" && finding["verdict"] == "violated", "{report:#}");
    ensure!(finding["sessions"] == serde_json::json!(["ghost@localhost/x"]), "{report:#}");
    ensure!(said.contains("node2 (id ") && said.contains("  ghost@localhost/x"), "{said}");
    nodes.ask(0, &["session", "kick", "ghost@localhost/x"]).await?;
    holds(&nodes, 0).await.map(drop)
}

/// The command that watches, and what it says.
struct Watcher {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    heard: Vec<String>,
}

impl Watcher {
    fn start(nodes: &Nodes, at: usize, more: &[&str]) -> Result<Watcher> {
        let admin = format!("http://{}", nodes.nodes[at].admin);
        let mut child = Command::new(binary()?)
            .args(["cluster", "status", "--watch", "--admin", &admin])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Watcher { child, lines: BufReader::new(stdout).lines(), heard: Vec::new() })
    }

    /// Reads on until a line holds all of these words.
    async fn until(&mut self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + SOON;
        loop {
            let line = tokio::time::timeout_at(end, self.lines.next_line()).await;
            let line = line.with_context(|| format!("no {words:?}, only {:#?}", self.heard))??;
            let line = line.with_context(|| format!("it ended before {words:?}: {:#?}", self.heard))?;
            self.heard.push(line.clone());
            if words.iter().all(|word| line.contains(word)) {
                return Ok(line);
            }
        }
    }

    /// Ends it as Ctrl-C does; whether it ended well.
    async fn interrupt(mut self) -> Result<()> {
        let id = self.child.id().context("it has ended")?;
        let sent = Command::new("kill").args(["-INT", &id.to_string()]).status().await?;
        ensure!(sent.success(), "it cannot be interrupted");
        let ended = timeout(SOON, self.child.wait()).await.context("it goes on after Ctrl-C")??;
        ensure!(ended.success(), "it ended with {ended}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_sees_each_change_and_finds_the_node_again() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let mut watcher = Watcher::start(&nodes, 0, &[])?;
    watcher.until(&["cluster ", "answered by node1"]).await?;
    // By id, which is the order in which they were admitted.
    let mut there = std::collections::BTreeSet::new();
    while there.len() < 3 {
        let line = watcher.until(&["up, incarnation", "0 sessions"]).await?;
        there.insert(line.split(':').next().unwrap_or_default().to_owned());
    }
    ensure!(there.iter().eq(["node1", "node2", "node3"]), "{there:?}");
    let person = Person::with_account(&nodes, "ada").await?;
    let client = person.come_online(nodes.door(1), "here").await?;
    watcher.until(&["node2: 1 sessions, 0 before"]).await?;
    drop(client);
    watcher.until(&["node2: 0 sessions, 1 before"]).await?;

    nodes.kill(2).await?;
    watcher.until(&["node3: gone"]).await?;
    nodes.start_again(2).await?;
    watcher.until(&["node3: up, incarnation"]).await?;

    // As programs read it.
    let mut lines = Watcher::start(&nodes, 1, &["--format", "json"])?;
    let view: Value = serde_json::from_str(&lines.until(&["log_bytes"]).await?)?;
    ensure!(view["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{view:#}");
    for node in view["nodes"].as_array().into_iter().flatten() {
        ensure!(node["unanswered"] == "" && node["serving"] == true, "{view:#}");
        ensure!(node["lease_age_ms"].as_u64().is_some() && node["index"].as_u64() > Some(0), "{view:#}");
        let groups = node["groups"].as_array().map_or(0, Vec::len);
        ensure!(groups == 2, "{view:#}");
    }
    lines.interrupt().await?;

    // The node that is asked stops in order, and says so; then it is found again.
    nodes.terminate(0).await?;
    nodes.ended(0, SOON).await?;
    watcher.until(&["the node went away: "]).await?;
    nodes.start_again(0).await?;
    watcher.until(&["the node is back"]).await?;
    watcher.interrupt().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_who_reads_nothing_gets_the_newest_view_and_too_many_are_refused() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let admin = format!("http://{}", nodes.nodes[0].admin);
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut client = AdminClient::connect(admin.clone()).await?;
        streams.push(client.watch_cluster(WatchClusterRequest {}).await?.into_inner());
    }
    let mut client = AdminClient::connect(admin.clone()).await?;
    let status = client.watch_cluster(WatchClusterRequest {}).await.err().context("one more was let in")?;
    ensure!(status.code() == tonic::Code::ResourceExhausted, "{status:?}");
    let mut next = async |nth: usize| -> Result<ClusterView> {
        let next = timeout(SOON, streams[nth].message()).await.context("no view")??;
        next.context("the stream ended")
    };
    let first = next(0).await?;
    ensure!(first.nodes.len() == 1 && first.nodes[0].serving, "{first:?}");
    ensure!(first.nodes[0].groups.iter().any(|group| group.name == "routes"), "{first:?}");
    // Whoever read nothing meanwhile is not further behind than what was on its way.
    let person = Person::with_account(&nodes, "ada").await?;
    let _client = person.come_online(nodes.door(0), "here").await?;
    for nth in [0, 31] {
        let end = Instant::now() + SOON;
        while next(nth).await?.nodes[0].sessions != 1 {
            ensure!(Instant::now() < end, "the session is never shown");
        }
    }
    drop(streams);
    // Their places are free again.
    let end = Instant::now() + SOON;
    let mut again = tokio::time::interval(Duration::from_millis(50));
    while let Err(status) = client.watch_cluster(WatchClusterRequest {}).await {
        ensure!(Instant::now() < end, "{status:?}");
        again.tick().await;
    }
    Ok(())
}

//! A leader that is told to stop, or to drain, has another one lead first: nobody waits for an election.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use tests::{
    nodes::{Layout, Nodes},
    people::Person,
};
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::Instant,
};

const SOON: Duration = Duration::from_secs(60);

fn name_of(state: &GetClusterResponse, id: u64) -> Option<&str> {
    state.nodes.iter().find(|node| node.id == id).map(|node| node.name.as_str())
}

/// Which node leads the table.
fn leader(state: &GetClusterResponse) -> Option<String> {
    name_of(state, state.leader).map(str::to_owned)
}

/// Whether every group has a leader, and so do the others.
fn everybody_is_heard(state: &GetClusterResponse) -> bool {
    state.groups.len() == 2 && state.groups.iter().all(|group| name_of(state, group.leader).is_some())
}

fn led_by_others(state: &GetClusterResponse, than: &str) -> bool {
    everybody_is_heard(state) && state.groups.iter().all(|group| name_of(state, group.leader) != Some(than))
}

/// Logs in again and again at a node until it is told to stop; how often, and the longest that it took.
async fn binds(
    nodes: &Nodes,
    at: usize,
    who: &Person,
    mut until: oneshot::Receiver<()>,
) -> Result<(usize, Duration)> {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while until.try_recv() == Err(TryRecvError::Empty) {
        let began = Instant::now();
        let client = who.log_in(nodes.door(at), &format!("r{count}")).await?;
        (count, longest) = (count + 1, longest.max(began.elapsed()));
        drop(client);
    }
    Ok((count, longest))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_three_that_stops_has_another_one_lead_first() -> Result<()> {
    stop_leaders(Layout::Three).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_five_that_stops_has_another_one_lead_first() -> Result<()> {
    stop_leaders(Layout::Five).await
}

async fn stop_leaders(layout: Layout) -> Result<()> {
    let mut nodes = Nodes::start(layout).await?;
    let judged = stop_the_leader(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn stop_the_leader(nodes: &mut Nodes) -> Result<()> {
    let who = Person::with_account(nodes, "somebody").await?;
    // One after the other: who votes next has started a moment ago, or has led for a moment only.
    for _ in 0..4 {
        let leads = |state: &GetClusterResponse| leader(state).is_some() && everybody_is_heard(state);
        let state = nodes.until(0, "somebody leads", SOON, leads).await?;
        let name = leader(&state).context("nobody leads")?;
        let at = nodes.nodes.iter().position(|node| node.name == name).context("none of ours")?;
        let other = (at + 1) % nodes.nodes.len();
        let (stop, until) = oneshot::channel();
        let (bound, ended) = tokio::join!(binds(nodes, other, &who, until), async {
            nodes.terminate(at).await?;
            let gone = |s: &GetClusterResponse| {
                s.nodes.iter().any(|n| n.name == name && n.state == "gone") && led_by_others(s, &name)
            };
            let after = nodes.until(other, "another one leads", SOON, gone).await;
            let _ = stop.send(());
            after
        });
        ended?;
        let (count, longest) = bound?;
        println!("{count} binds while the leader stopped, the longest in {} ms", longest.as_millis());
        nodes.ended(at, SOON).await?;
        let log = nodes.until_logged(at, "stopped", SOON).await?;
        ensure!(log.contains("handed the lead over group=\"routes\""), "{log}");
        ensure!(longest < Duration::from_secs(5), "a bind took {longest:?}");
        nodes.start_again(at).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_drains_leads_no_more_unless_all_drain() -> Result<()> {
    let nodes = Nodes::start(Layout::Split).await?;
    let judged = drain_the_leaders(&nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn drain_the_leaders(nodes: &Nodes) -> Result<()> {
    for (at, rest) in [(2, &["back4", "back5"][..]), (3, &["back5"])] {
        nodes.cli_at(at, &["node", "drain"]).await?;
        let led_by_rest = |state: &GetClusterResponse| {
            let name = |id| state.nodes.iter().find(|node| node.id == id).map(|node| node.name.as_str());
            state.groups.len() == 2
                && state
                    .groups
                    .iter()
                    .all(|group| name(group.leader).is_some_and(|name| rest.contains(&name)))
        };
        nodes.until(4, "who does not drain leads", SOON, led_by_rest).await?;
    }
    // All drain now, and one of them leads on.
    nodes.cli_at(4, &["node", "drain"]).await?;
    Person::with_account(nodes, "somebody").await?.come_online(nodes.door(0), "phone").await?;
    Ok(())
}

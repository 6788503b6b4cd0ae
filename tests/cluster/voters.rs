//! Who votes when a backend is lost for long, loses its disk, or is taken out.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use tests::{
    joining::{done, form, join, prepare_as},
    nodes::{Layout, Nodes},
    people::Person,
};

use crate::growing::voters;

const SOON: Duration = Duration::from_secs(60);

fn id(state: &GetClusterResponse, name: &str) -> Option<u64> {
    state.nodes.iter().filter(|node| node.name == name).map(|node| node.id).max()
}

/// Whether these nodes, and no others, vote in both groups.
fn vote(state: &GetClusterResponse, names: &[&str]) -> bool {
    let up = |name: &str| state.nodes.iter().find(|n| n.name == name && n.state == "up").map(|n| n.id);
    let ids: Vec<u64> = names.iter().filter_map(|name| up(name)).collect();
    let all = |group: &proto::admin::Group| ids.iter().all(|id| group.voters.contains(id));
    ids.len() == names.len() && voters(state, ids.len()) && state.groups.iter().all(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vote_of_a_lost_backend_goes_to_one_that_has_caught_up() -> Result<()> {
    let mut nodes = prepare_as(Layout::Five, &[], &|_, config| {
        Ok(format!("{config}\n[cluster.times]\nreplace_ms = 1000\n"))
    })?;
    let judged = replace(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn replace(nodes: &mut Nodes) -> Result<()> {
    form(nodes, 3).await?;
    let first = ["node1", "node2", "node3"];
    nodes.until(2, "three voters", SOON, |s| vote(s, &first)).await?;
    join(nodes, 0, 3).await?;
    nodes.until(3, "three voters and one that learns", SOON, |s| vote(s, &first)).await?;
    Person::with_account(nodes, "somebody").await?;

    // Gone for longer than it may be: the fourth takes its place by itself.
    nodes.kill(2).await?;
    let heirs = ["node1", "node2", "node4"];
    let state = nodes.until(0, "the fourth votes", SOON, |s| vote(s, &heirs)).await?;
    let old = id(&state, "node3").context("the lost one is known")?;

    // It lost its disk, and comes in as a new one that only learns.
    fs::remove_dir_all(nodes.nodes[2].folder.join("data"))?;
    join(nodes, 0, 2).await?;
    let back = nodes.until(2, "it is back", SOON, |s| id(s, "node3").is_some_and(|id| id > old)).await?;
    ensure!(vote(&back, &heirs), "{back:?}");
    let new = id(&back, "node3").context("it is known")?;
    done(nodes.ask(0, &["cluster", "remove", &old.to_string()]).await?)?;
    let row = |s: &GetClusterResponse, node| s.nodes.iter().any(|n| n.id == node);
    nodes.until(0, "the old one is forgotten", SOON, |s| !row(s, old) && row(s, new)).await?;

    // One that is taken out gives its place to it before it goes.
    let said = done(nodes.ask(0, &["cluster", "remove", "node4"]).await?)?;
    ensure!(said.contains("it stops now"), "{said}");
    nodes.until_ended(3, SOON).await?;
    nodes.until(0, "the new one votes", SOON, |s| vote(s, &first)).await?;
    Person::with_account(nodes, "another").await?;

    // So does the leader, who has another one lead first.
    done(nodes.ask(1, &["cluster", "remove", "node1"]).await?)?;
    let log = nodes.until_ended(0, SOON).await?;
    ensure!(log.contains("handed the lead over"), "{log}");
    nodes.until(2, "two are left", SOON, |s| s.nodes.len() == 2 && vote(s, &["node2", "node3"])).await?;
    nodes.cli_at(2, &["user", "add", "third@localhost", "--password", "secret"]).await?;
    Ok(())
}

//! A majority of the backends is lost for good: the cluster begins anew from one that is left.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use tests::{
    joining::{done, form, join, prepare, refused},
    nodes::{Layout, Nodes},
    people::{Person, befriend, fence, go_online},
};

use crate::growing::voters;

const SOON: Duration = Duration::from_secs(60);

/// Waits until a backend has applied all that any of them has.
async fn even(nodes: &Nodes, at: usize, others: &[usize]) -> Result<()> {
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for other in others {
        for group in nodes.status(*other).await?.groups {
            let end = ends.entry(group.name).or_default();
            *end = group.last_log.max(*end);
        }
    }
    ensure!(ends.len() == 2, "{ends:?}");
    let all =
        |state: &GetClusterResponse| state.groups.iter().all(|group| group.applied >= ends[&group.name]);
    nodes.until(at, "the survivor has everything", SOON, all).await.map(drop)
}

async fn roster_is_there(nodes: &Nodes, at: usize, whose: &Person, with: &Person) -> Result<()> {
    let mut client = whose.log_in(nodes.door(at), "phone").await?;
    let roster = go_online(&mut client, None).await?.pretty().join("\n");
    ensure!(roster.contains(&with.bare()), "the roster is lost: {roster}");
    fence(&mut client, None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_begins_anew_from_the_backend_that_is_left() -> Result<()> {
    let mut nodes = prepare(&[], &|_, config| Ok(config))?;
    let judged = begin_anew(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn begin_anew(nodes: &mut Nodes) -> Result<()> {
    form(nodes, 3).await?;
    nodes.until(2, "three voters", SOON, |state| voters(state, 3)).await?;
    let alice = Person::with_account(nodes, "alice").await?;
    let bob = Person::with_account(nodes, "bob").await?;
    befriend(nodes.door(0), &alice, &bob).await?;
    even(nodes, 2, &[0, 1]).await?;
    let before = nodes.status(2).await?;

    let said = refused(nodes.offline(2, &["cluster", "recover", "--yes"]).await?)?;
    ensure!(said.contains("is in use by another node"), "{said}");
    for at in 0..3 {
        nodes.kill(at).await?;
    }
    // One disk is lost; the other one's machine comes back later, when nobody counts on it any more.
    fs::remove_dir_all(nodes.nodes[0].folder.join("data"))?;
    let said = done(nodes.offline(2, &["cluster", "recover"]).await?)?;
    ensure!(said.contains("nothing was done") && said.contains("epoch 1"), "{said}");
    ensure!(said.contains("node1 (id ") && said.contains("node2 (id "), "{said}");

    // Another one that answers may be part of a majority.
    nodes.spawn(1)?;
    nodes.until(1, "it answers", SOON, |_| true).await?;
    let said = refused(nodes.offline(2, &["cluster", "recover", "--yes"]).await?)?;
    ensure!(said.contains("`node2` answers at"), "{said}");
    nodes.kill(1).await?;

    let said = done(nodes.offline(2, &["cluster", "recover", "--yes"]).await?)?;
    ensure!(said.contains("it is in epoch 1") && said.contains("rookery serve --config"), "{said}");
    nodes.start_again(2).await?;
    let after = nodes.until(2, "one voter", SOON, |state| voters(state, 1) && state.nodes.len() == 1).await?;
    ensure!(after.cluster_id == before.cluster_id, "{after:?}");
    // No index comes twice, whatever the lost ones had.
    ensure!(after.index > before.index + (1 << 39), "{} after {}", after.index, before.index);
    roster_is_there(nodes, 2, &alice, &bob).await?;

    // Who comes back with what it had is told what to do.
    let said = refused(nodes.offline(1, &["serve"]).await?)?;
    ensure!(said.contains("recovered without it") && said.contains("empty data directory"), "{said}");
    let state = nodes.status(2).await?;
    ensure!(state.nodes.len() == 1 && voters(&state, 1), "{state:?}");

    // With nothing they come in as new ones, and decide.
    fs::remove_dir_all(nodes.nodes[1].folder.join("data"))?;
    join(nodes, 2, 1).await?;
    join(nodes, 1, 0).await?;
    nodes.until(0, "three voters again", SOON, |state| voters(state, 3)).await?;
    roster_is_there(nodes, 0, &bob, &alice).await?;
    // And the one that recovered it is as good as any other now, also after a restart.
    nodes.kill(2).await?;
    nodes.start_again(2).await?;
    roster_is_there(nodes, 2, &alice, &bob).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frontends_come_back_and_a_majority_that_was_given_up_does_not() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Split).await?;
    let judged = come_back(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn come_back(nodes: &mut Nodes) -> Result<()> {
    let alice = Person::with_account(nodes, "alice").await?;
    let bob = Person::with_account(nodes, "bob").await?;
    befriend(nodes.door(0), &alice, &bob).await?;
    even(nodes, 4, &[2, 3]).await?;
    for at in [2, 3, 4] {
        nodes.kill(at).await?;
    }
    done(nodes.offline(4, &["cluster", "recover", "--yes"]).await?)?;
    nodes.start_again(4).await?;
    // Nobody told the frontends anything.
    roster_is_there(nodes, 0, &alice, &bob).await?;

    // The two that were given up could agree with each other, as they did before.
    for at in [2, 3] {
        nodes.spawn(at)?;
    }
    for at in [2, 3] {
        let log = nodes.until_ended(at, SOON).await?;
        ensure!(log.contains("was recovered without it") && log.contains("epoch 1"), "{log}");
    }
    let state = nodes.status(4).await?;
    ensure!(voters(&state, 1) && state.serving, "{state:?}");
    // With nothing of what they had they are let in, here without tokens.
    for at in [2, 3] {
        fs::remove_dir_all(nodes.nodes[at].folder.join("data"))?;
        nodes.start_again(at).await?;
    }
    nodes.until(2, "three voters again", SOON, |state| voters(state, 3)).await?;
    nodes.kill(4).await?;
    let someone = nodes.nodes.iter().position(|node| node.name == "front2").context("a frontend")?;
    nodes.start_again(4).await?;
    roster_is_there(nodes, someone, &bob, &alice).await
}

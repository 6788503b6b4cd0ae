//! A node that was alone becomes a cluster of three and of five, and is alone again, while people talk.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use tests::{
    client::Door,
    joining::{done, join, prepare_as},
    nodes::{Layout, Nodes},
    people::{Person, befriend, fence, go_online},
};

use crate::chat::Chat;

/// A bound for what the cluster does by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Whether both groups have so many voters.
pub fn voters(state: &GetClusterResponse, count: usize) -> bool {
    state.groups.len() == 2 && state.groups.iter().all(|group| group.voters.len() == count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_alone_grows_to_five_and_shrinks_to_one_while_people_talk() -> Result<()> {
    let mut nodes = prepare_as(Layout::Five, &[], &|_, config| Ok(config))?;
    let judged = grow_and_shrink(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn grow_and_shrink(nodes: &mut Nodes) -> Result<()> {
    // At first it has no table `[cluster]` at all.
    let config = nodes.nodes[0].folder.join("rookery.toml");
    let whole = fs::read_to_string(&config)?;
    let (alone, _) = whole.split_once("\n[cluster]\n").context("the harness writes `[cluster]` last")?;
    fs::write(&config, alone)?;
    nodes.start_again(0).await?;
    let home = nodes.door(0);
    let alice = Person::with_account(nodes, "alice").await?;
    let bob = Person::with_account(nodes, "bob").await?;
    befriend(home, &alice, &bob).await?;
    let mut hers = alice.come_online(home, "phone").await?;
    let wrote = format!("<message to='{}' type='chat' id='kept'><body>x</body></message>", bob.bare());
    hers.send(&wrote).await?;
    fence(&mut hers, None).await?;
    nodes.stop_all(SOON).await?;

    // It gets an address for others, and they come in by tokens.
    fs::write(&config, &whole)?;
    nodes.start_again(0).await?;
    for at in [1, 2] {
        join(nodes, 0, at).await?;
    }
    nodes.until(2, "three voters", SOON, |state| voters(state, 3)).await?;
    let mut his = bob.log_in(nodes.door(2), "phone").await?;
    let roster = go_online(&mut his, None).await?.pretty().join("\n");
    ensure!(roster.contains(&alice.bare()), "the roster of the lone node is lost: {roster}");
    let kept = his.wait_for("what waited for him", |n| n.attr("id") == Some("kept")).await?;
    ensure!(kept.child("delay", "urn:xmpp:delay").is_some(), "{kept:?}");
    drop(his);

    // Alice stays where she is; Bob is at the node that leaves first, and then at the one that leaves next.
    join(nodes, 1, 3).await?;
    join(nodes, 2, 4).await?;
    let doors: Vec<Door> = (0..5).rev().map(|at| nodes.door(at)).collect();
    let chat = Chat::begin([(&alice, vec![home]), (&bob, doors)]).await?;
    for at in 0..5 {
        nodes.until(at, "five voters", SOON, |state| voters(state, 5)).await?;
    }
    for (at, left) in [(4, 3), (3, 3), (2, 2), (1, 1)] {
        let name = nodes.nodes[at].name.clone();
        done(nodes.ask(at, &["node", "drain"]).await?)?;
        let said = done(nodes.ask(0, &["cluster", "remove", &name]).await?)?;
        ensure!(said.contains("it stops now"), "{said}");
        let log = nodes.until_ended(at, SOON).await?;
        ensure!(log.contains("this node was removed from its cluster"), "{log}");
        nodes.until(0, "fewer voters", SOON, |state| state.nodes.len() == at && voters(state, left)).await?;
    }
    let talked = chat.end().await?;
    println!("{talked:?}");
    ensure!(talked.said.iter().all(|said| *said > 20), "hardly anything was said: {talked:?}");
    ensure!(talked.logins[1] > 1, "Bob was never sent away: {talked:?}");

    // What is left is whole, also after a restart.
    nodes.stop_all(SOON).await?;
    nodes.start_again(0).await?;
    let roster = go_online(&mut bob.log_in(home, "phone").await?, None).await?.pretty().join("\n");
    ensure!(roster.contains(&alice.bare()), "the roster is lost: {roster}");
    Ok(())
}

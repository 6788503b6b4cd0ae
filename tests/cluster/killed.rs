//! A node dies without a word: its users vanish once, and log in elsewhere with all that is theirs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{
    nodes::{Layout, Nodes},
    people::{Person, befriend, fence},
    xml::{CLIENT, Node},
};

/// A node is expired 5 s after its last renewal; a new leader waits a lease of its own first, after an election.
const GONE_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_killed_node_vanish_once_and_log_in_elsewhere() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    vanish_and_return(nodes, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_killed_leader_vanish_once_and_log_in_elsewhere() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let leader = nodes.status(0).await?.nodes.into_iter().find(|n| n.leader).context("nobody leads")?;
    let at = nodes.nodes.iter().position(|n| n.name == leader.name).context("the leader is none of ours")?;
    vanish_and_return(nodes, at).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_killed_frontend_vanish_once_and_log_in_elsewhere() -> Result<()> {
    let nodes = Nodes::start(Layout::Split).await?;
    vanish_and_return(nodes, 1).await
}

async fn vanish_and_return(mut nodes: Nodes, victim: usize) -> Result<()> {
    let doors: Vec<usize> = (0..nodes.nodes.len()).filter(|n| nodes.nodes[*n].door.is_some()).collect();
    let living: Vec<usize> = doors.into_iter().filter(|n| *n != victim).collect();
    let (here, there) = (living[0], living[living.len() - 1]);
    let door = |at: usize| nodes.nodes[at].door.context("a node without clients");
    let (home, other, doomed) = (door(here)?, door(there)?, door(victim)?);

    let alice = Person::with_account(&nodes, "alice").await?;
    let bob = Person::with_account(&nodes, "bob").await?;
    let carol = Person::with_account(&nodes, "carol").await?;
    befriend(home, &alice, &bob).await?;
    befriend(home, &alice, &carol).await?;
    let mut bobs = bob.come_online(home, "laptop").await?;
    let mut carols = carol.come_online(other, "desk").await?;
    let mut lost = alice.come_online(doomed, "phone").await?;
    let phone = format!("{}/phone", alice.bare());
    bobs.wait_for("alice", |n| from(n, &phone)).await?;
    carols.wait_for("alice", |n| from(n, &phone)).await?;
    lost.wait_for("bob", |n| from(n, &format!("{}/laptop", bob.bare()))).await?;

    let name = nodes.nodes[victim].name.clone();
    let before = Instant::now();
    nodes.kill(victim).await?;
    for contact in [&mut bobs, &mut carols] {
        let end = tokio::time::Instant::now() + GONE_WITHIN;
        let told = contact.next_by(end).await.context("while waiting to be told")?;
        ensure!(
            from(&told, &phone) && told.attr("type") == Some("unavailable"),
            "{}",
            told.pretty().join("\n")
        );
    }
    println!("contacts were told {:.1} s after the kill of {name}", before.elapsed().as_secs_f32());
    for at in living {
        let gone = |name: &str| {
            let name = name.to_owned();
            move |s: &proto::admin::GetClusterResponse| {
                s.nodes.iter().all(|n| n.name != name || n.state == "gone")
            }
        };
        nodes.until(at, "the killed node leaves the table", GONE_WITHIN, gone(&name)).await?;
    }
    let listed = nodes.cli(&["session", "list"]).await?;
    ensure!(!listed.contains(&alice.user), "a session of the killed node is still in the table:\n{listed}");

    // Said while she is nowhere: it waits for her.
    bobs.send(&format!(
        "<message to='{}' type='chat' id='late'><body>Where were you?</body></message>",
        alice.bare()
    ))
    .await?;
    fence(&mut bobs, None).await?;
    let mut back = alice.log_in(other, "phone").await?;
    let roster = tests::people::go_online(&mut back, None).await?;
    let text = roster.pretty().join("\n");
    ensure!(text.contains(&bob.bare()) && text.contains(&carol.bare()), "the roster is not hers:\n{text}");
    let late = back.wait_for("what was said meanwhile", |n| n.name == "message").await?;
    ensure!(late.attr("id") == Some("late") && late.child("delay", "urn:xmpp:delay").is_some(), "{late:?}");
    ensure!(late.child("body", CLIENT).map(Node::text).as_deref() == Some("Where were you?"), "{late:?}");
    for contact in [&mut bobs, &mut carols] {
        let told = contact.next().await?;
        ensure!(
            from(&told, &phone) && told.attr("type").is_none(),
            "not told once: {}",
            told.pretty().join("\n")
        );
    }
    // And nothing else, along either way.
    let more = fence(&mut bobs, Some(&mut back)).await?;
    ensure!(more.is_empty(), "bob was told more: {more:?}");
    let more = fence(&mut carols, Some(&mut back)).await?;
    ensure!(more.is_empty(), "carol was told more: {more:?}");
    Ok(())
}

fn from(node: &Node, jid: &str) -> bool {
    node.name == "presence" && node.attr("from") == Some(jid)
}

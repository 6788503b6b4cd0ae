//! How long a cluster takes to be well again, and what a rolling restart costs: the figures of docs/performance.md.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use tests::{
    nodes::{Layout, Nodes},
    people::Person,
    talk::Talk,
};
use tokio::time::{Instant, timeout};

/// What a machine that does much else may take; the aims stand in docs/performance.md.
const BOUND: Duration = Duration::from_secs(30);

async fn leader(nodes: &Nodes) -> Result<usize> {
    let status = nodes.status(0).await?;
    let leader = status.nodes.into_iter().find(|n| n.leader).context("nobody leads")?;
    nodes.nodes.iter().position(|n| n.name == leader.name).context("a node of another cluster leads")
}

/// Kills a node; how long the others take until each of them says that it is gone, with its session.
async fn lost(nodes: &mut Nodes, victim: usize) -> Result<Duration> {
    let person = Person::with_account(nodes, "lost").await?;
    let door = nodes.nodes[victim].door.context("a node without clients")?;
    let _client = person.come_online(door, "phone").await?;
    let name = nodes.nodes[victim].name.clone();
    let others: Vec<usize> = (0..nodes.nodes.len()).filter(|at| *at != victim).collect();
    for at in &others {
        let has = |s: &GetClusterResponse| s.nodes.iter().any(|n| n.name == name && n.sessions == 1);
        nodes.until(*at, "the session is in the table", BOUND, has).await?;
    }
    let since = Instant::now();
    nodes.kill(victim).await?;
    for at in others {
        let gone = |s: &GetClusterResponse| {
            s.nodes.iter().all(|n| n.name != name || (n.state == "gone" && n.sessions == 0))
        };
        nodes.until(at, "the node is gone", BOUND, gone).await?;
    }
    Ok(since.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_gone_everywhere_soon() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let victim = (leader(&nodes).await? + 1) % 3;
    println!(
        "follower killed: all others consistent after {:.2} s",
        lost(&mut nodes, victim).await?.as_secs_f32()
    );
    nodes.start_again(victim).await?;
    let victim = leader(&nodes).await?;
    println!(
        "leader killed: all others consistent after {:.2} s",
        lost(&mut nodes, victim).await?.as_secs_f32()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_stall_for_no_longer_than_an_election() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let person = Person::with_account(&nodes, "often").await?;
    let victim = leader(&nodes).await?;
    let door = nodes.nodes[(victim + 1) % 3].door.context("a node without clients")?;
    let mut bound = 0;
    // One login after the other, each under a resource of its own; the end of each is not waited for.
    let mut log_in = async || -> Result<()> {
        bound += 1;
        person.log_in(door, &format!("r{bound}")).await.map(drop)
    };
    for _ in 0..20 {
        log_in().await?;
    }
    nodes.kill(victim).await?;
    let (killed, mut last) = (Instant::now(), Instant::now());
    let (mut longest, mut failed) = (Duration::ZERO, 0);
    // Until the node is expired, and a little longer.
    while killed.elapsed() < Duration::from_secs(12) {
        match timeout(BOUND, log_in()).await.context("no login for too long")? {
            Ok(()) => {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) => failed += 1,
        }
    }
    println!(
        "leader killed: the longest time without a login {:.2} s, {failed} failed",
        longest.as_secs_f32()
    );
    ensure!(longest < BOUND, "{longest:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let homes: Vec<usize> = (0..3).cycle().take(24).collect();
    // Two dozen of them, so that with all pauses it is more than a thousand in a second.
    let talk = Talk::begin(&nodes, &homes, Duration::from_millis(15)).await?;
    let since = Instant::now();
    let before = talk.book().count();
    let played = async {
        for at in 0..3 {
            talk.until_heard_elsewhere(usize::MAX, 500).await?;
            nodes.terminate(at).await?;
            nodes.ended(at, BOUND).await?;
            nodes.start_again(at).await?;
        }
        let said = talk.book().count() - before;
        let rate = said as f32 / since.elapsed().as_secs_f32();
        println!("rolling restart under {rate:.0} messages/s: {}", talk.settle(&nodes).await?);
        anyhow::Ok(())
    }
    .await;
    if played.is_err() {
        nodes.keep();
    }
    played
}

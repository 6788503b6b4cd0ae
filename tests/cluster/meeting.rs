//! Contacts who log in at the same moment at different nodes see each other, whoever comes first.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use tests::{
    client::Door,
    nodes::{Layout, Nodes},
    people::{Person, befriend},
};

/// Contacts that meet at the same time.
const PAIRS: usize = 4;
/// How often each pair meets. The race that this looks for was lost by about one pair in two hundred.
const ROUNDS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_who_log_in_at_the_same_moment_see_each_other() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let (a, b) = (Person::with_account(&nodes, "a").await?, Person::with_account(&nodes, "b").await?);
        befriend(nodes.door(0), &a, &b).await?;
        pairs.push((a, b));
    }
    for round in 0..ROUNDS {
        let meetings = pairs.iter().enumerate().map(|(at, pair)| {
            let doors = (nodes.door(round + at), nodes.door(round + at + 1 + round % 2));
            meet(&pair.0, &pair.1, doors)
        });
        if let Err(error) = try_join_all(meetings).await {
            nodes.keep();
            return Err(error.context(format!("in round {round}")));
        }
    }
    Ok(())
}

async fn meet(a: &Person, b: &Person, doors: (Door, Door)) -> Result<()> {
    let (mut first, mut second) = tokio::try_join!(a.come_online(doors.0, "x"), b.come_online(doors.1, "x"))?;
    for (client, other) in [(&mut first, b), (&mut second, a)] {
        let other = format!("{}/x", other.bare());
        let comes = |n: &tests::xml::Node| n.attr("from") == Some(&other) && n.attr("type").is_none();
        let jid = client.jid.clone().unwrap_or_default();
        client.wait_for("the contact", comes).await.with_context(|| format!("{jid} does not see {other}"))?;
    }
    tokio::try_join!(first.close(), second.close()).map(drop)
}

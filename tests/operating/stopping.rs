//! All nodes of a cluster stop at once, and soon.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{
    nodes::{Layout, Nodes},
    people::Person,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_stops_at_once_ends_within_five_seconds() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let mut clients = Vec::new();
    for at in 0..3 {
        let person = Person::with_account(&nodes, "someone").await?;
        clients.push(person.come_online(nodes.door(at), "phone").await?);
    }
    nodes.stop_all(Duration::from_secs(5)).await?;
    for mut client in clients {
        let heard = client.up_to_end().await?;
        let told = heard.last().is_some_and(|e| e.nodes().any(|n| n.name == "system-shutdown"));
        ensure!(told, "{heard:?}");
    }
    Ok(())
}

//! Nodes find each other by a file and by a name in DNS.

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::nodes::{Layout, Node, Nodes};

/// The config with another way of discovery.
fn discovered_by(config: &str, way: &str) -> Result<String> {
    let (before, rest) = config.split_once("discovery = ").context("no discovery")?;
    let after = rest.split_once('\n').map_or("", |(_, after)| after);
    Ok(format!("{before}discovery = {{ {way} }}\n{after}"))
}

fn one_cluster(nodes: usize, status: &proto::admin::GetClusterResponse) -> Result<()> {
    ensure!(status.nodes.len() == nodes && status.nodes.iter().all(|n| n.state == "up"), "{status:?}");
    ensure!(!status.cluster_id.is_empty(), "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_by_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("nodes");
    let nodes = Nodes::start_edited(Layout::Three, |all, _, config| {
        let lines = all.iter().map(|n: &Node| format!("{}  # {}\n", n.cluster, n.name));
        fs::write(&file, format!("# the backends\n{}", lines.collect::<String>()))?;
        discovered_by(&config, &format!("file = {file:?}"))
    })
    .await?;
    for at in 0..3 {
        one_cluster(3, &nodes.status(at).await?)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_and_frontends_find_a_seed_by_its_name() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::Split, |all, _, config| {
        let seed = all.iter().find(|n| n.roles.contains(&"backend")).context("no backend")?;
        discovered_by(&config, &format!("dns = \"localhost:{}\"", seed.cluster.port()))
    })
    .await?;
    for at in 0..5 {
        one_cluster(5, &nodes.status(at).await?)?;
    }
    Ok(())
}

//! What a chat message costs all nodes of a cluster together, against what it costs the only node of another one.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use tests::nodes::{Layout, Nodes};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    Load, PASSWORD, WINDOW,
    link::{self, Link},
    middle, process, receive, send,
};

/// Pairs of users: as many as spread evenly over two and over three nodes, wherever the other one is.
const PAIRS: usize = 36;

/// Measures clusters of one, two and three nodes in turn, `load.rounds` times each.
pub async fn run(binary: &Path, load: Load) -> Result<()> {
    let layouts = [Layout::One, Layout::Two, Layout::Three];
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..load.rounds {
        for (layout, costs) in layouts.iter().zip(&mut costs) {
            costs.push(round(binary, *layout, load.count).await?);
        }
    }
    let mut alone = None;
    for (layout, costs) in layouts.iter().zip(&mut costs) {
        let (cost, least) = middle(costs);
        let times = cost / *alone.get_or_insert(cost);
        println!(
            "chat message, {layout}: {cost:.2} us of CPU of all nodes together (least {least:.2}), {times:.2} times that of one \
             node; median of {} rounds of {} messages, none lost, doubled or out of order",
            load.rounds,
            PAIRS * load.count,
        );
    }
    Ok(())
}

/// CPU per message of all nodes, with senders and receivers spread evenly over them.
async fn round(binary: &Path, layout: Layout, messages: usize) -> Result<f64> {
    let mut nodes = Nodes::prepare(layout, |_, _, config| Ok(config))?;
    let count = nodes.nodes.len();
    for at in 0..count {
        nodes.spawn_with(at, binary)?;
    }
    nodes.formed().await?;
    let admin = nodes.nodes[0].admin.to_string();
    let tls = link::tls_config()?;
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        let mut links = Vec::new();
        for (side, at) in [("a", n % count), ("b", n / count % count)] {
            let name = format!("{side}{n}");
            process::add_user(binary, &admin, &name, PASSWORD)?;
            let address = nodes.door(at).direct.to_string();
            let mut link = Link::log_in(&address, &tls, &name, PASSWORD, "bench").await?;
            link.appear().await?;
            links.push(link);
        }
        let [a, mut b] = <[Link; 2]>::try_from(links).ok().context("two links")?;
        b.buffer.clear();
        pairs.push((a, b));
    }
    let before = cpu_us(&nodes)?;
    let mut running = JoinSet::new();
    for (n, (a, b)) in pairs.into_iter().enumerate() {
        let window = Arc::new(Semaphore::new(WINDOW));
        running.spawn(send(a, n, messages, window.clone()));
        running.spawn(receive(b, messages, window));
    }
    let mut ends = Vec::new();
    while let Some(end) = running.join_next().await {
        // Kept open until all have ended, so that no logout is counted.
        ends.push(end??);
    }
    Ok((cpu_us(&nodes)? - before) as f64 / (PAIRS * messages) as f64)
}

fn cpu_us(nodes: &Nodes) -> Result<u64> {
    let all =
        (0..nodes.nodes.len()).map(|at| process::cpu_us(nodes.process(at).context("a node has ended")?));
    all.sum()
}

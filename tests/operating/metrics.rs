//! The metrics of a node that serves clients.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    metrics::{page, sum},
    nodes::{Layout, Nodes, free_address},
    people::{Person, ping},
};
use tokio::time::{Instant, interval};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_of_a_node_tell_what_it_did() -> Result<()> {
    const MESSAGES: usize = 20;
    const DELIVERED: &str = "rookery_stanzas_total{kind=\"message\",outcome=\"delivered\"";
    let metrics: Vec<SocketAddr> = (0..3).map(|_| free_address()).collect();
    let nodes = Nodes::start_edited(Layout::Three, |all, node, config| {
        let at = all.iter().position(|n| n.name == node.name).context("one of them")?;
        Ok(format!("{config}\n[metrics]\nlisten = \"{}\"\n", metrics[at]))
    })
    .await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut alices = alice.come_online(nodes.door(0), "phone").await?;
    let mut bobs = bob.come_online(nodes.door(1), "desk").await?;
    let to = bobs.jid.clone().context("not bound")?;
    for n in 0..MESSAGES {
        alices.send(&format!("<message to='{to}' type='chat' id='m{n}'><body>x</body></message>")).await?;
    }
    alices.send(&ping("localhost", "pinged")).await?;
    alices.wait_for("the pong", |n| n.attr("id") == Some("pinged")).await?;
    let last = format!("m{}", MESSAGES - 1);
    bobs.wait_for("the last message", |n| n.attr("id") == Some(&last)).await?;

    // The client has its message a moment before that is counted and acknowledged.
    let end = Instant::now() + Duration::from_secs(10);
    let mut look = interval(Duration::from_millis(100));
    let (first, second) = loop {
        look.tick().await;
        let (first, second) = (page(metrics[0]).await?, page(metrics[1]).await?);
        let lag = sum(&first, "rookery_relay_lag{") + sum(&first, "rookery_relay_unsettled{");
        if (lag == 0.0 && sum(&second, DELIVERED) >= MESSAGES as f64) || Instant::now() > end {
            break (first, second);
        }
    };
    for (page, name, least, most) in [
        (&first, "rookery_sessions", 1.0, 1.0),
        (&first, "rookery_connections", 1.0, 1.0),
        (&first, "rookery_cluster_sessions", 2.0, 2.0),
        (&first, "rookery_cluster_serving", 1.0, 1.0),
        (&first, "rookery_cluster_nodes{state=\"up\"}", 3.0, 3.0),
        (&first, "rookery_cluster_lease_age_ms", 0.0, 5_000.0),
        (&first, "rookery_logins_total", 1.0, 1.0),
        (&first, "rookery_stanzas_read_total{kind=\"message\"}", MESSAGES as f64, MESSAGES as f64),
        (&first, "rookery_mailbox_stanzas", 0.0, 0.0),
        (&first, "rookery_relay_sent_total", MESSAGES as f64, 1_000.0),
        (&second, "rookery_relay_received_total", MESSAGES as f64, 1_000.0),
        (&first, "rookery_raft_voters{group=\"routes\"}", 3.0, 3.0),
        (&first, "rookery_raft_voters{group=\"data\"}", 3.0, 3.0),
        (&first, "rookery_raft_applied_index{group=\"data\"}", 2.0, 1e6),
        (&first, "rookery_raft_failed{group=\"routes\"}", 0.0, 0.0),
        (&first, "rookery_store_seconds_count{call=\"get\"}", 1.0, 1e6),
        (&first, "rookery_store_seconds_bucket{le=\"+Inf\",call=\"get\"}", 1.0, 1e6),
    ] {
        let value = *page.get(name).with_context(|| format!("no `{name}` in {page:#?}"))?;
        ensure!((least..=most).contains(&value), "`{name}` is {value}, not {least} to {most}");
    }
    let delivered = sum(&second, DELIVERED);
    ensure!(delivered >= MESSAGES as f64, "{delivered} of {MESSAGES} messages were delivered: {second:#?}");
    for name in ["rookery_relay_lag{", "rookery_relay_unsettled{"] {
        ensure!(first.keys().any(|k| k.starts_with(name)), "no `{name}`");
        ensure!(sum(&first, name) == 0.0, "`{name}` is {}", sum(&first, name));
    }
    let mut leaders = 0.0;
    for address in &metrics {
        leaders += page(*address).await?["rookery_raft_is_leader{group=\"routes\"}"];
    }
    ensure!(leaders == 1.0, "{leaders} nodes lead the group `routes`");
    Ok(())
}

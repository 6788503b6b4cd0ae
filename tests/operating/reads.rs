//! What is routed between contacts who are there asks the store for nothing, on any node.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::{
    metrics::{page, sum},
    nodes::{Layout, Nodes, free_address},
    people::{Person, befriend, mark, ping},
};

const MESSAGES: usize = 1_000;
const CONTACTS: usize = 6;
const CHANGES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_between_contacts_reads_nothing_from_the_store() -> Result<()> {
    let metrics: Vec<SocketAddr> = (0..3).map(|_| free_address()).collect();
    let at = std::sync::atomic::AtomicUsize::new(0);
    let nodes = Nodes::start_edited(Layout::Three, |_, _, config| {
        let at = at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(format!("{config}\n[metrics]\nlisten = \"{}\"\n", metrics[at]))
    })
    .await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let mut contacts = Vec::new();
    for n in 0..CONTACTS {
        let contact = Person::with_account(&nodes, &format!("contact{n}")).await?;
        befriend(nodes.door(0), &alice, &contact).await?;
        contacts.push(contact);
    }
    let mut clients = Vec::new();
    for (n, contact) in contacts.iter().enumerate() {
        clients.push(contact.come_online(nodes.door(n + 1), "desk").await?);
    }
    let mut alices = alice.come_online(nodes.door(0), "phone").await?;
    for client in &mut clients {
        client.wait_for("alice", |n| n.name == "presence" && n.attr("from") == alices.jid.as_deref()).await?;
    }
    // Behind the logins: what waits for a session is looked for when it is available.
    for client in clients.iter_mut().chain([&mut alices]) {
        client.send(&ping("localhost", "settled")).await?;
        client.wait_for("a pong", |n| n.attr("id") == Some("settled")).await?;
    }
    let reads = async || {
        let mut reads = 0.0;
        for address in &metrics {
            reads += sum(&page(*address).await?, "rookery_store_reads_total{");
        }
        anyhow::Ok(reads)
    };
    let before = reads().await?;
    ensure!(before > 0.0, "logins read the store");
    let (bare, full) = (contacts[0].bare(), clients[0].jid.clone().unwrap_or_default());
    for n in 0..MESSAGES {
        let to = if n % 2 == 0 { &bare } else { &full };
        alices.send(&format!("<message to='{to}' type='chat' id='m{n}'><body>{n}</body></message>")).await?;
    }
    for n in 0..CHANGES {
        alices.send(&format!("<presence id='p{n}'><show>away</show></presence>")).await?;
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let last = format!("p{}", CHANGES - 1);
        client.wait_for("the last presence", |n| n.attr("id") == Some(&last)).await?;
        // And back.
        client.send(&mark(alices.jid.as_deref().unwrap_or_default(), &format!("back{n}"))).await?;
    }
    for n in 0..CONTACTS {
        let id = format!("back{n}");
        alices.wait_for("an answer", |n| n.attr("id") == Some(&id)).await?;
    }
    let after = reads().await?;
    ensure!(after == before, "{} reads of the store", after - before);
    Ok(())
}

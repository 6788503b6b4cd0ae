//! Sessions on other nodes are shown with their connections, and can be ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::{ListSessionsRequest, Session, admin_client::AdminClient};
use tests::{
    client::{Client, Login},
    nodes::{Layout, Nodes},
    people::{Person, befriend, go_online, ping},
};

async fn listed(nodes: &Nodes, at: usize) -> Result<Vec<Session>> {
    let mut admin = AdminClient::connect(format!("http://{}", nodes.nodes[at].admin)).await?;
    let mut list = admin.list_sessions(ListSessionsRequest::default()).await?.into_inner();
    let mut sessions = Vec::new();
    while let Some(session) = list.message().await? {
        sessions.push(session);
    }
    Ok(sessions)
}

async fn log_in(nodes: &Nodes, at: usize, who: &Person, mechanism: &str, direct: bool) -> Result<Client> {
    let (user, host, password, resource) = (&*who.user, &*who.host, &*who.password, Some("phone"));
    let door = nodes.nodes[at].door.context("a node without clients")?;
    Client::log_in(door, &Login { user, host, password, resource, mechanism, direct }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_every_node_are_shown_with_their_connections() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut alices = log_in(&nodes, 0, &alice, "SCRAM-SHA-512", true).await?;
    let mut bobs = log_in(&nodes, 2, &bob, "PLAIN", false).await?;
    go_online(&mut alices, Some(3)).await?;
    go_online(&mut bobs, None).await?;

    // node 2 has neither session
    let sessions = listed(&nodes, 1).await?;
    ensure!(sessions.len() == 2, "{sessions:?}");
    for (person, mechanism, at, priority) in [(&alice, "SCRAM-SHA-512", 0, 3), (&bob, "PLAIN", 2, 0)] {
        let jid = format!("{}/phone", person.bare());
        let session = sessions.iter().find(|s| s.jid == jid).with_context(|| format!("no {jid}"))?;
        ensure!(
            session.node_name == nodes.nodes[at].name && session.priority == Some(priority),
            "{session:?}"
        );
        ensure!(session.unanswered.is_empty(), "{session:?}");
        let connection = session.connection.as_ref().with_context(|| format!("{session:?}"))?;
        ensure!(connection.peer_address.starts_with("127.0.0.1:"), "{connection:?}");
        ensure!(connection.tls == "1.3", "{connection:?}");
        ensure!(connection.mechanism == mechanism, "{connection:?}");
        ensure!(connection.age_s < 60 && connection.queued == 0, "{connection:?}");
    }
    let account = bob.bare();
    let table = nodes.cli(&["session", "list", "--account", &account]).await?;
    ensure!(table.contains("PLAIN") && table.contains("127.0.0.1:"), "{table}");
    ensure!(!table.contains(&alice.user), "{table}");

    // Until it is expired its sessions stay in the table, and the list says what is missing.
    nodes.pause(2).await?;
    let table = nodes.cli(&["session", "list"]).await?;
    let line = table.lines().find(|l| l.starts_with(&bob.user)).context("the paused node's session")?;
    ensure!(!line.contains("PLAIN"), "{table}");
    let note = format!("{} did not say more about its sessions: no answer within 2 s", nodes.nodes[2].name);
    ensure!(table.contains(&note), "{table}");
    let line = table.lines().find(|l| l.starts_with(&alice.user)).context("the living node's session")?;
    ensure!(line.contains("SCRAM-SHA-512"), "{table}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_another_node_is_kicked() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let (first, last) = (nodes.door(0), nodes.door(2));
    befriend(first, &alice, &bob).await?;
    let mut bobs = bob.come_online(first, "desk").await?;
    let mut alices = alice.come_online(last, "phone").await?;
    let phone = format!("{}/phone", alice.bare());
    let from_phone = |n: &tests::xml::Node| n.name == "presence" && n.attr("from") == Some(&phone);
    bobs.wait_for("alice", from_phone).await?;

    let said = nodes.cli(&["session", "kick", &phone]).await?;
    ensure!(said == format!("kicked 1 session of {phone}\n"), "{said}");
    let heard = alices.up_to_end().await?;
    let last = heard.last().context("the stream ended without a word")?;
    let names: Vec<&str> = last.nodes().map(|n| n.name.as_str()).collect();
    ensure!(last.name == "error" && names == ["policy-violation"], "{last:?}");
    let told = bobs.wait_for("alice to leave", from_phone).await?;
    ensure!(told.attr("type") == Some("unavailable"), "{told:?}");

    let gone = |s: &proto::admin::GetClusterResponse| s.nodes.iter().map(|n| n.sessions).sum::<u64>() == 1;
    nodes.until(1, "the route is gone", Duration::from_secs(5), gone).await?;
    bobs.send(&ping(&phone, "after")).await?;
    let answer = bobs.wait_for("an answer", |n| n.attr("id") == Some("after")).await?;
    ensure!(answer.attr("type") == Some("error"), "{answer:?}");
    let again = nodes.cli(&["session", "kick", &phone]).await;
    let refused = again.err().context("kicked twice")?.to_string();
    ensure!(refused.contains("no such session"), "{refused}");
    // and she may come back
    alice.come_online(first, "phone").await?;
    Ok(())
}

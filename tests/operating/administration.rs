//! What admins do from a client, over a cluster: all nodes are meant, and all who are online are reached.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    client::Client,
    metrics::page,
    nodes::{Layout, Nodes, free_address},
    people::Person,
    xml::Node,
};
use tokio::time::{Instant, interval};

const COMMANDS: &str = "http://jabber.org/protocol/commands";
const ADMIN: &str = "http://jabber.org/protocol/admin";

/// Has a command done; what is below its answer.
async fn order(client: &mut Client, name: &str, rest: &str, inside: &str) -> Result<Node> {
    let id = format!("{name}-{}", rest.len());
    client
        .send(&format!(
            "<iq type='set' id='{id}' to='localhost'>\
             <command xmlns='{COMMANDS}' node='{ADMIN}#{name}' {rest}>{inside}</command></iq>"
        ))
        .await?;
    let answer = client.wait_for("the answer to a command", |node| node.attr("id") == Some(&id)).await?;
    answer.child("command", COMMANDS).cloned().with_context(|| answer.pretty().join("\n"))
}

/// The value of the one field of what is shown.
async fn count(client: &mut Client, name: &str) -> Result<String> {
    let done = order(client, name, "", "").await?;
    let form = done.child("x", "jabber:x:data").context("no form")?;
    let field = form.nodes().find(|field| field.attr("var") != Some("FORM_TYPE")).context("no field")?;
    Ok(field.nodes().next().map(Node::text).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_counts_and_tells_those_who_are_online_at_all_nodes() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::Three, |_, _, config| {
        Ok(config + "\n[accounts]\nadmins = [\"boss@localhost\"]\n")
    })
    .await?;
    let boss = Person { user: "boss".into(), host: "localhost".into(), password: "secret".into() };
    nodes.add_user(&boss.bare(), &boss.password).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut alices = alice.come_online(nodes.door(1), "phone").await?;
    let mut bobs = bob.come_online(nodes.door(2), "desk").await?;
    let mut admin = boss.come_online(nodes.door(0), "desk").await?;
    ensure!(count(&mut admin, "get-registered-users-num").await? == "3", "not three accounts");
    // The node of the admin hears of the others a moment later than they do.
    let end = Instant::now() + Duration::from_secs(20);
    let mut look = interval(Duration::from_millis(50));
    while count(&mut admin, "get-online-users-num").await? != "3" {
        ensure!(Instant::now() < end, "three users are never seen online");
        look.tick().await;
    }

    let form = order(&mut admin, "announce", "", "").await?;
    let session = format!("sessionid='{}'", form.attr("sessionid").context("no session")?);
    let filled = "<x xmlns='jabber:x:data' type='submit'>\
                  <field var='announcement'><value>We restart</value><value>at noon</value></field></x>";
    let done = order(&mut admin, "announce", &session, filled).await?;
    ensure!(done.attr("status") == Some("completed"), "{}", done.pretty().join("\n"));
    for client in [&mut alices, &mut bobs, &mut admin] {
        let heard = client.wait_for("the announcement", |node| node.name == "message").await?;
        let body = heard.child("body", "jabber:client").context("no body")?.text();
        ensure!(body == "We restart\nat noon" && heard.attr("from") == Some("localhost"), "{body}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_counted_and_an_admin_is_spared() -> Result<()> {
    let metrics: SocketAddr = free_address();
    let nodes = Nodes::start_edited(Layout::One, |_, _, config| {
        let storm = "[modules.storm]\nenabled = true\ncount = 5\ninterval_s = 600\n";
        let accounts = "[accounts]\nadmins = [\"boss@localhost\"]\n";
        Ok(format!("{config}\n{accounts}{storm}[metrics]\nlisten = \"{metrics}\"\n"))
    })
    .await?;
    let boss = Person { user: "boss".into(), host: "localhost".into(), password: "secret".into() };
    nodes.add_user(&boss.bare(), &boss.password).await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let storm = "<presence to='nobody@localhost'/>".repeat(20);
    let mut admin = boss.come_online(nodes.door(0), "desk").await?;
    admin.send(&storm).await?;
    let mut alices = alice.come_online(nodes.door(0), "phone").await?;
    alices.send(&storm).await?;
    let last = alices.up_to_end().await?.pop().context("the stream ended without a word")?;
    let streams = "urn:ietf:params:xml:ns:xmpp-streams";
    ensure!(last.child("policy-violation", streams).is_some(), "{}", last.pretty().join("\n"));
    // Whoever is there still is answered.
    ensure!(count(&mut admin, "get-registered-users-num").await? == "2", "not two accounts");
    let page = page(metrics).await?;
    let name = "rookery_module_events_total{module=\"storm\",event=\"disconnected\"}";
    ensure!(page.get(name) == Some(&1.0), "{page:#?}");
    Ok(())
}

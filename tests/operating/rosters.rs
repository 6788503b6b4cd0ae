//! A roster that sessions at several nodes change at the same time is pushed to all in one order.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tests::{
    client::Client,
    nodes::{Layout, Nodes},
    people::{Person, go_online},
    xml::Node,
};

const ROSTER: &str = "jabber:iq:roster";
/// Changes of each of two sessions, and contacts that they are about.
const CHANGES: usize = 40;
const CONTACTS: usize = 5;

async fn change(client: &mut Client, by: &str) -> Result<()> {
    for at in 0..CHANGES {
        let contact = at % CONTACTS;
        client
            .send(&format!(
                "<iq type='set' id='set{at}'><query xmlns='{ROSTER}'><item jid='c{contact}@example.org' \
                 name='{by} {at}'/></query></iq>"
            ))
            .await?;
    }
    Ok(())
}

/// The number in the version of a push, its contact and the contact's name.
fn read(push: &Node) -> Result<(u64, String, String)> {
    let query = push.child("query", ROSTER).context("no query")?;
    let number = query.attr("ver").and_then(|ver| ver.split('.').next_back()).context("no version")?;
    let item = query.child("item", ROSTER).context("no item")?;
    let text = |name: &str| item.attr(name).map(str::to_owned).with_context(|| format!("no {name}"));
    Ok((u64::from_str_radix(number, 16)?, text("jid")?, text("name")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_two_nodes_are_pushed_in_their_order_to_sessions_at_three() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let mut clients = Vec::new();
    for (at, resource) in ["phone", "desk", "tv"].into_iter().enumerate() {
        let door = nodes.nodes[at].door.context("a node without clients")?;
        let mut client = alice.log_in(door, resource).await?;
        go_online(&mut client, None).await?;
        clients.push(client);
    }
    let [phone, desk, _] = &mut clients[..] else { unreachable!("three were made") };
    tokio::try_join!(change(phone, "phone"), change(desk, "desk"))?;

    let is_push = |node: &Node| node.attr("type") == Some("set") && node.child("query", ROSTER).is_some();
    let mut told = Vec::new();
    for client in &mut clients {
        let mut last = BTreeMap::new();
        for expected in 1..=2 * CHANGES as u64 {
            let push = client.wait_for("a push", is_push).await?;
            let (number, contact, name) = read(&push)?;
            ensure!(number == expected, "{:?} heard of change {number}, not of {expected}", client.jid);
            last.insert(contact, name);
        }
        told.push(last);
    }
    let roster = go_online(&mut clients[0], None).await?;
    let items = roster.child("query", ROSTER).context("no roster")?.nodes();
    let kept: BTreeMap<String, String> = items
        .filter_map(|item| Some((item.attr("jid")?.to_owned(), item.attr("name")?.to_owned())))
        .collect();
    ensure!(kept.len() == CONTACTS, "{kept:?}");
    for (last, client) in told.iter().zip(&clients) {
        ensure!(*last == kept, "{:?} was told {last:?}, kept is {kept:?}", client.jid);
    }
    Ok(())
}

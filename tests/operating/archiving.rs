//! Archives of many messages: whole and in order while they are sorted in, and after the end of all nodes.

use anyhow::{Context, Result, ensure};
use tests::{
    client::Client,
    nodes::{Layout, Nodes},
    people::Person,
    xml::{CLIENT, Node},
};

const ARCHIVE: &str = "urn:xmpp:mam:2";
const RSM: &str = "http://jabber.org/protocol/rsm";
/// Messages that are sent, some at a time: what was sorted in before is gone through between them.
const MESSAGES: usize = 4_500;
/// Fewer than may wait for one account while the store is slow (`account_queue_stanzas`): further ones would be bounced.
const AT_A_TIME: usize = 900;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_are_whole_and_in_order_on_one_node() -> Result<()> {
    archives_are_whole(Layout::One).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_are_whole_and_in_order_on_three_nodes() -> Result<()> {
    archives_are_whole(Layout::Three).await
}

async fn archives_are_whole(layout: Layout) -> Result<()> {
    let mut nodes = Nodes::start_edited(layout, |_, _, config| {
        let everywhere = config.replace(
            "[modules.archive]\nenabled = true\nhosts = [\"other.example\"]",
            "[modules.archive]\nenabled = true",
        );
        ensure!(everywhere != config, "archives are configured in another way");
        // It goes through the layers above the store several times, each time in several pieces.
        Ok(everywhere + "\n[store]\nlayer_bytes = 1048576\n[limits]\nsession_stanzas_per_second = 0\n")
    })
    .await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let last = nodes.nodes.len() - 1;
    let mut writer = alice.come_online(nodes.door(0), "phone").await?;
    let mut reader = bob.come_online(nodes.door(last), "phone").await?;
    let all: Vec<usize> = (0..MESSAGES).collect();
    for first in (0..MESSAGES).step_by(AT_A_TIME) {
        for n in first..first + AT_A_TIME {
            let (to, text) = (bob.bare(), "x".repeat(n % 400));
            writer
                .send(&format!("<message to='{to}' type='chat' id='{n}'><body>{n} {text}</body></message>"))
                .await?;
        }
        let until = (first + AT_A_TIME - 1).to_string();
        reader.wait_for("the last message", |node| node.attr("id") == Some(&until)).await?;
        for client in [&mut writer, &mut reader] {
            is_whole(&archived(client).await?, &all[..first + AT_A_TIME]).context("while it grows")?;
        }
    }
    for at in 0..=last {
        nodes.kill(at).await?;
    }
    nodes.start_all().await?;
    for (person, at) in [(&alice, last), (&bob, 0)] {
        let mut client = person.come_online(nodes.door(at), "phone").await?;
        is_whole(&archived(&mut client).await?, &all).context("after a restart")?;
    }
    Ok(())
}

/// Ensures that all were found, each once and in its place; the error says where they differ first.
fn is_whole(found: &[usize], all: &[usize]) -> Result<()> {
    let at = found.iter().zip(all).take_while(|(found, wanted)| found == wanted).count();
    let from_there = |numbers: &[usize]| numbers.iter().skip(at).take(8).copied().collect::<Vec<_>>();
    let (there, wanted) = (from_there(found), from_there(all));
    let (count, of) = (found.len(), all.len());
    ensure!(
        found == all,
        "{count} of {of} found, number {at} and those behind it are {there:?}, not {wanted:?}"
    );
    Ok(())
}

/// The numbers of all messages of the client's archive, page by page.
async fn archived(client: &mut Client) -> Result<Vec<usize>> {
    let (mut found, mut after, mut page) = (Vec::new(), String::new(), 0);
    loop {
        let id = format!("page-{page}");
        page += 1;
        client
            .send(&format!(
                "<iq type='set' id='{id}'><query xmlns='{ARCHIVE}'><set xmlns='{RSM}'><max>100</max>{after}</set></query></iq>"
            ))
            .await?;
        let end = loop {
            let node = client.next().await?;
            if node.attr("id") == Some(&id) {
                break node;
            }
            ensure!(node.attr("type") != Some("error"), "a message came back: {node:?}");
            if let Some(result) = node.child("result", ARCHIVE) {
                found.push(number(result).with_context(|| format!("no number: {node:?}"))?);
            }
        };
        let fin = end.child("fin", ARCHIVE).with_context(|| format!("no end: {end:?}"))?;
        if fin.attr("complete") == Some("true") {
            return Ok(found);
        }
        let set = fin.child("set", RSM).context("no set")?;
        after = format!("<after>{}</after>", set.child("last", RSM).context("no last one")?.text());
    }
}

fn number(result: &Node) -> Option<usize> {
    let message = result.child("forwarded", "urn:xmpp:forward:0")?.child("message", CLIENT)?;
    message.child("body", CLIENT)?.text().split(' ').next()?.parse().ok()
}

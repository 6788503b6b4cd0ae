//! Messages without end for a client that does not read, and what became of each of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::{
    client::{Client, Door, Heard, PATIENCE},
    people::{Person, go_online, ping},
    xml::Node,
};
use tokio::time::Instant;

/// What became of the messages.
#[derive(Debug, PartialEq, Eq)]
pub struct Ends {
    /// Written to the client that did not read, which found them in its socket at last.
    pub delivered: usize,
    /// Kept, and delivered at the next login.
    pub kept: usize,
    /// Sent back with an error.
    pub bounced: usize,
    /// Of those delivered, how many had another end as well: without acknowledgements nobody knows how much of a
    /// write that failed has arrived.
    pub twice: usize,
}

/// Bytes of a message's body: a few thousand of them fill the buffers of the system and the mailbox.
const BODY: usize = 2_000;
/// Messages that are sent before the sender is asked whether it is still answered.
const AT_ONCE: usize = 200;

/// Sends `messages` from one to the other, who does not read until its session has ended and then logs in again.
pub async fn run(door: Door, sender: &Person, receiver: &Person, messages: usize) -> Result<Ends> {
    let mut slow = receiver.come_online(door, "slow").await?;
    let mut sender = sender.come_online(door, "sender").await?;
    let body = "x".repeat(BODY);
    let mut bounced = BTreeSet::new();
    for first in (0..messages).step_by(AT_ONCE) {
        let last = (first + AT_ONCE).min(messages);
        let text: String = (first..last)
            .map(|n| {
                let to = receiver.bare();
                format!("<message to='{to}' type='chat' id='{n}'><body>{body}</body></message>")
            })
            .collect();
        sender.send(&text).await?;
        // Answered within the client's patience, whatever the other one does.
        bounced.append(&mut up_to_pong(&mut sender, &format!("sent-{last}")).await?);
    }
    let delivered = until_end(&mut slow).await?;

    // What waited in the mailbox when the session ended may still be on its way back.
    let mut again = receiver.log_in(door, "again").await?;
    go_online(&mut again, None).await?;
    let mut kept = BTreeSet::new();
    let end = Instant::now() + PATIENCE * 4;
    loop {
        kept.append(&mut up_to_pong(&mut again, &format!("kept-{}", kept.len())).await?);
        bounced.append(&mut up_to_pong(&mut sender, &format!("bounced-{}", bounced.len())).await?);
        let all: BTreeSet<_> = delivered.iter().chain(&kept).chain(&bounced).collect();
        if all.len() >= messages {
            ensure!(all.len() == messages, "{} messages of {messages}", all.len());
            break;
        }
        ensure!(Instant::now() < end, "{} of {messages} messages had no end", messages - all.len());
    }
    ensure!(kept.is_disjoint(&bounced), "a message was kept and sent back");
    let twice = delivered.iter().filter(|n| kept.contains(n) || bounced.contains(n)).count();
    sender.close().await?;
    again.close().await?;
    Ok(Ends { delivered: delivered.len(), kept: kept.len(), bounced: bounced.len(), twice })
}

/// The numbers of the messages that come before the answer to a ping.
async fn up_to_pong(client: &mut Client, id: &str) -> Result<BTreeSet<usize>> {
    client.send(&ping("localhost", id)).await?;
    let mut numbers = BTreeSet::new();
    loop {
        let node = client.next().await.context("while waiting for a pong")?;
        if node.attr("id") == Some(id) {
            return Ok(numbers);
        }
        add(&mut numbers, &node)?;
    }
}

/// The numbers of the messages that are still in the socket of a session that has ended.
async fn until_end(client: &mut Client) -> Result<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    loop {
        match client.next_raw(Instant::now() + PATIENCE).await? {
            Heard::Element(node) => add(&mut numbers, &node)?,
            Heard::Header(_) => {}
            Heard::End => return Ok(numbers),
        }
    }
}

fn add(numbers: &mut BTreeSet<usize>, node: &Node) -> Result<()> {
    if node.name != "message" {
        return Ok(());
    }
    let id = node.attr("id").context("a message without an id")?;
    ensure!(numbers.insert(id.parse()?), "message {id} came twice");
    Ok(())
}

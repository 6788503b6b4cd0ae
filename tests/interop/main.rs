//! Clients that nobody here wrote: slixmpp, xmpp.js and go-sendxmpp talk to each other across nodes.
//!
//! A conversation: the second is online, the first comes and asks for a subscription; both grant, both rosters
//! say `both`, both see the other's presence; the first writes, the second answers; the first leaves, the second
//! sees it. Each tells what it sees, a word per line.

mod daily;
mod gate;
mod screen;
mod script;
mod socks;
mod terminal;

use anyhow::{Context, Result, ensure};
use tests::{
    client::Door,
    nodes::{Layout, Nodes},
    people::Person,
    xml::{CLIENT, Node},
};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::script::{Library, PATIENCE, Script, piped};

/// How somebody logs in: where, inside which TLS, by which mechanism.
struct Entrance {
    library: Library,
    node: usize,
    direct: bool,
    mechanism: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_others_talk_across_nodes() -> Result<()> {
    use Library::{Slixmpp, XmppJs};
    let nodes = Nodes::start(Layout::Three).await?;
    let entrance = |library, node, direct, mechanism| Entrance { library, node, direct, mechanism };
    let conversations = [
        (entrance(Slixmpp, 0, false, "SCRAM-SHA-256"), entrance(XmppJs, 1, true, "SCRAM-SHA-1")),
        (entrance(XmppJs, 2, false, "SCRAM-SHA-1"), entrance(Slixmpp, 0, true, "SCRAM-SHA-512")),
        (entrance(Slixmpp, 1, true, "SCRAM-SHA-1"), entrance(Slixmpp, 2, false, "SCRAM-SHA-256")),
        (entrance(XmppJs, 1, true, "SCRAM-SHA-1"), entrance(XmppJs, 1, false, "SCRAM-SHA-1")),
    ];
    for (first, second) in conversations {
        let title = format!(
            "{:?} at node {} and {:?} at node {}",
            first.library, first.node, second.library, second.node
        );
        let talked = converse(&nodes, first, second).await;
        if talked.is_err() {
            nodes.keep();
        }
        talked.with_context(|| title.clone())?;
        println!("{title} talked");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_client_sends_and_another_client_hears() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let bob = Person::with_account(&nodes, "bob").await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let mut ear = bob.come_online(nodes.door(1), "laptop").await?;
    for (direct, text) in [(false, "by STARTTLS"), (true, "by direct TLS")] {
        send_by_terminal(&alice, nodes.door(0), direct, &bob.bare(), text).await?;
        let heard = ear.wait_for("the message", |n| n.name == "message").await?;
        ensure!(heard.child("body", CLIENT).map(Node::text).as_deref() == Some(text), "{heard:?}");
        let from = heard.attr("from").unwrap_or_default();
        ensure!(from.starts_with(&format!("{}/", alice.bare())), "from `{from}`");
    }
    Ok(())
}

async fn send_by_terminal(from: &Person, door: Door, direct: bool, to: &str, text: &str) -> Result<()> {
    let port = if direct { door.direct } else { door.c2s };
    let mut words = vec!["-n".to_owned(), "-u".into(), from.bare(), "-p".into(), from.password.clone()];
    words.extend(["-j".to_owned(), format!("localhost:{}", port.port())]);
    if direct {
        words.push("-t".into());
    }
    words.push(to.to_owned());
    let mut child =
        piped(Command::new("go-sendxmpp").args(words)).spawn().context("failed to start go-sendxmpp")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(text.as_bytes()).await?;
    drop(stdin);
    let out = timeout(PATIENCE, child.wait_with_output()).await.context("go-sendxmpp does not end")??;
    ensure!(out.status.success(), "go-sendxmpp failed: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

async fn converse(nodes: &Nodes, first: Entrance, second: Entrance) -> Result<()> {
    let asker = Person::with_account(nodes, "asker").await?;
    let granter = Person::with_account(nodes, "granter").await?;
    let mut late = talker(nodes, &second, &granter, &asker, "second")?;
    late.tells("online").await.context("the second")?;
    let mut early = talker(nodes, &first, &asker, &granter, "first")?;
    early.tells("online").await.context("the first")?;
    let (of_first, of_second) = tokio::join!(early.rest(), late.rest());
    if let (Err(first), Err(second)) = (&of_first, &of_second) {
        anyhow::bail!("the first {first:#}\nthe second {second:#}");
    }
    let (of_first, of_second) = (of_first.context("the first")?, of_second.context("the second")?);
    let asked = format!("heard: Grüße from {}", first.library.name());
    let answered = format!("heard: Grüße back from {}", second.library.name());
    for (who, told, wanted) in [
        ("first", of_first, vec!["roster both", "presence", &answered]),
        ("second", of_second, vec!["roster both", "presence", &asked, "gone"]),
    ] {
        for word in wanted {
            ensure!(told.iter().any(|t| t == word), "the {who} never told `{word}`, only {told:?}");
        }
    }
    Ok(())
}

/// One side of a conversation.
fn talker(nodes: &Nodes, how: &Entrance, me: &Person, peer: &Person, role: &str) -> Result<Script> {
    let door = nodes.door(how.node);
    let address = if how.direct { door.direct } else { door.c2s };
    let (jid, peer) = (format!("{}/{role}", me.bare()), peer.bare());
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let security = if how.direct { "direct" } else { "starttls" };
    let words = [&jid, &me.password, &peer, &ip, &port, security, how.mechanism, role];
    Script::start(how.library, "talk", words)
}

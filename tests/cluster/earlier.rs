//! What an earlier version left, and nodes of an earlier version beside those of this one.
//!
//! `tests/recorded` keeps data folders of nodes as a release left them, one archive for each kind and version. To
//! record those of the binary that is built now, before a format changes:
//! `ROOKERY_RECORD=NAME cargo test --locked --workspace --test cluster recorded`.
//!
//! `ROOKERY_BIN_BEFORE` names the binary of an earlier version, for the cluster of both; without it, the nodes are
//! exchanged for others of the same version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::Client,
    nodes::{Layout, Nodes, binary},
    people::{Person, befriend, fence, go_online},
    xml::Node,
};

const ROSTER: &str = "jabber:iq:roster";
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// Messages that wait for Bob.
const WAITING: usize = 3;

/// What a data folder was written by.
#[derive(Clone, Copy)]
enum Kind {
    /// A node without a `[cluster]`.
    Alone,
    /// The only backend of a cluster, with the log and the state of both Raft groups.
    Member,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Alone, Kind::Member];

    fn word(self) -> &'static str {
        match self {
            Kind::Alone => "alone",
            Kind::Member => "member",
        }
    }

    fn prepare(self) -> Result<Nodes> {
        Nodes::prepare(Layout::One, |_, node, config| {
            Ok(match self {
                Kind::Alone => config,
                Kind::Member => format!(
                    "{config}\n[cluster]\nlisten = \"{}\"\nexpect = 1\nplain = true\n\
                     discovery = {{ static = [\"{0}\"] }}\n",
                    node.cluster
                ),
            })
        })
    }
}

fn person(name: &str) -> Person {
    Person { user: name.into(), host: "localhost".into(), password: format!("secret of {name}") }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded")
}

/// Something of each kind that the server keeps.
async fn fill(nodes: &Nodes) -> Result<()> {
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(person);
    for one in [&alice, &bob, &carol] {
        nodes.add_user(&one.bare(), &one.password).await?;
    }
    befriend(nodes.door(0), &alice, &bob).await?;
    let mut client = alice.come_online(nodes.door(0), "desk").await?;
    let item = "<item jid='carol@localhost' name='Carol &amp; Co'><group>Work</group></item>";
    client.send(&format!("<iq type='set' id='set'><query xmlns='{ROSTER}'>{item}</query></iq>")).await?;
    client
        .wait_for("the answer", |n| n.attr("id") == Some("set") && n.attr("type") == Some("result"))
        .await?;
    client.send("<presence type='subscribe' to='carol@localhost'/>").await?;
    for number in 0..WAITING {
        client
            .send(&format!(
                "<message type='chat' to='bob@localhost' id='kept{number}'><body>{number}</body></message>"
            ))
            .await?;
    }
    // The answer comes behind all that was sent before to oneself; the store has the rest when both have it.
    fence(&mut client, None).await?;
    client.close().await
}

/// Whether a server has all that `fill` gave it.
async fn check(nodes: &Nodes) -> Result<()> {
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(person);
    let wrong = Person { password: "wrong".into(), ..alice.clone() };
    ensure!(wrong.log_in(nodes.door(0), "desk").await.is_err(), "any password is taken");
    let mut client = alice.log_in(nodes.door(0), "desk").await?;
    let roster = go_online(&mut client, None).await?;
    let items: Vec<&Node> = roster.child("query", ROSTER).context("no roster")?.nodes().collect();
    let of = |jid: &str| items.iter().find(|item| item.attr("jid") == Some(jid)).copied();
    let friend = of("bob@localhost").context("no Bob")?;
    ensure!(friend.attr("subscription") == Some("both"), "{friend:?}");
    let asked = of("carol@localhost").context("no Carol")?;
    ensure!(asked.attr("name") == Some("Carol & Co") && asked.attr("ask") == Some("subscribe"), "{asked:?}");
    ensure!(asked.child("group", ROSTER).is_some(), "{asked:?}");

    let mut friend = bob.come_online(nodes.door(1), "desk").await?;
    for number in 0..WAITING {
        let kept = friend.wait_for("a message", |n| n.name == "message").await?;
        ensure!(kept.attr("id") == Some(&format!("kept{number}")), "out of order: {kept:?}");
    }
    let mut other = carol.come_online(nodes.door(2), "desk").await?;
    let is_request = |n: &Node| n.name == "presence" && n.attr("type") == Some("subscribe");
    other.wait_for("the request", is_request).await?;
    other.send("<presence type='subscribed' to='alice@localhost'/>").await?;
    let is_there = |n: &Node| n.name == "presence" && n.attr("from") == Some("carol@localhost/desk");
    client.wait_for("Carol", is_there).await?;
    close_all([client, friend, other]).await
}

async fn close_all(clients: [Client; 3]) -> Result<()> {
    for client in clients {
        client.close().await?;
    }
    Ok(())
}

fn tar(words: &[&str]) -> Result<()> {
    let out = Command::new("tar").args(words).output()?;
    ensure!(out.status.success(), "tar {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

async fn record(name: &str) -> Result<()> {
    for kind in Kind::ALL {
        let mut nodes = kind.prepare()?;
        nodes.start_again(0).await?;
        fill(&nodes).await?;
        nodes.stop_all(STOPS_WITHIN).await?;
        let from = nodes.nodes[0].folder.clone();
        // The certificate that a node makes for itself is no format of ours, and nobody keeps keys in a repository.
        drop(fs::remove_dir_all(from.join("data").join("tls")));
        let archive = folder().join(format!("{}-{name}.tar.gz", kind.word()));
        let [archive, from] = [&archive, &from].map(|path| path.display().to_string());
        tar(&["-czf", &archive, "-C", &from, "data"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_earlier_versions_recorded_is_read() -> Result<()> {
    if let Ok(name) = std::env::var("ROOKERY_RECORD") {
        return record(&name).await;
    }
    for kind in Kind::ALL {
        let mut archives = Vec::new();
        for entry in fs::read_dir(folder())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(kind.word()) && name.ends_with(".tar.gz") {
                archives.push(path);
            }
        }
        ensure!(!archives.is_empty(), "nothing is recorded of a node that is `{}`", kind.word());
        for archive in archives {
            let mut nodes = kind.prepare()?;
            let to = nodes.nodes[0].folder.clone();
            let [from, to] = [&archive, &to].map(|path| path.display().to_string());
            tar(&["-xzf", &from, "-C", &to])?;
            nodes.start_again(0).await.with_context(|| from.clone())?;
            check(&nodes).await.with_context(|| from.clone())?;
            nodes.stop_all(STOPS_WITHIN).await.with_context(|| from.clone())?;
        }
    }
    Ok(())
}

/// Three nodes of the earlier version are exchanged for this one node by node, while the others serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_versions_are_one_cluster() -> Result<()> {
    let before = match std::env::var_os("ROOKERY_BIN_BEFORE") {
        Some(before) => PathBuf::from(before),
        None => binary()?.to_owned(),
    };
    ensure!(before.is_file(), "ROOKERY_BIN_BEFORE: `{}` is no file", before.display());
    let mut nodes = Nodes::prepare(Layout::Three, |_, _, config| Ok(config))?;
    for at in 0..3 {
        nodes.spawn_with(at, &before)?;
    }
    nodes.formed().await?;
    fill(&nodes).await?;
    for at in 0..3 {
        nodes.terminate(at).await?;
        nodes.ended(at, STOPS_WITHIN).await?;
        nodes.start_again(at).await?;
        // Whoever is at the new node and at an old one hears the other.
        talk(&nodes, at, (at + 1) % 3).await.with_context(|| format!("after node {at}"))?;
    }
    check(&nodes).await
}

async fn talk(nodes: &Nodes, new: usize, old: usize) -> Result<()> {
    let [dora, emil] =
        [Person::with_account(nodes, "dora").await?, Person::with_account(nodes, "emil").await?];
    let mut a = dora.come_online(nodes.door(new), "desk").await?;
    let mut b = emil.come_online(nodes.door(old), "desk").await?;
    greet(&mut a, &mut b, &emil).await?;
    greet(&mut b, &mut a, &dora).await?;
    a.close().await?;
    b.close().await
}

async fn greet(from: &mut Client, to: &mut Client, whom: &Person) -> Result<()> {
    from.send(&format!("<message type='chat' to='{}' id='hi'><body>hi</body></message>", whom.bare()))
        .await?;
    to.wait_for("a message", |n| n.name == "message" && n.attr("id") == Some("hi")).await.map(drop)
}

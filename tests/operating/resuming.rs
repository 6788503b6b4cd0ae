//! Sessions that go on at another node (XEP-0198): nothing is lost and nothing comes twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, Door, PATIENCE},
    nodes::{Layout, Nodes},
    people::Person,
    xml::{CLIENT, Node},
};
use tokio::{task::JoinHandle, time::Instant, time::interval};

const SM: &str = "urn:xmpp:sm:3";
const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// A client that counts what it gets, and comes back to its session.
struct Walker {
    person: Person,
    client: Client,
    id: String,
    handled: u32,
    heard: Vec<usize>,
}

impl Walker {
    async fn at(nodes: &Nodes, door: Door, name: &str) -> Result<Walker> {
        let person = Person::with_account(nodes, name).await?;
        let mut client = person.come_online(door, "phone").await?;
        client.send(&format!("<enable xmlns='{SM}' resume='true'/>")).await?;
        let enabled = client.wait_for("enabled", |n| n.name == "enabled").await?;
        let id = enabled.attr("id").context("it cannot be resumed")?.to_owned();
        Ok(Walker { person, client, id, handled: 0, heard: Vec::new() })
    }

    /// Takes up one thing that the server says; false at the end of the stream.
    async fn hear(&mut self, answers: bool) -> Result<Node> {
        let node = self.client.next_by(Instant::now() + PATIENCE).await?;
        if node.is("r", SM) && answers {
            self.client.send(&format!("<a xmlns='{SM}' h='{}'/>", self.handled)).await?;
        }
        if matches!(node.name.as_str(), "message" | "presence" | "iq") {
            self.handled += 1;
            self.heard.extend(number(&node));
        }
        Ok(node)
    }

    /// Comes back at a door, where the session goes on.
    async fn resume_at(&mut self, door: Door) -> Result<()> {
        let (mut client, _) = Client::open(door, "localhost", false).await?;
        client.authenticate(&self.person.user, &self.person.password, "SCRAM-SHA-256").await?;
        let (id, handled) = (&self.id, self.handled);
        client.send(&format!("<resume xmlns='{SM}' previd='{id}' h='{handled}'/>")).await?;
        let answer = client.next().await?;
        ensure!(answer.is("resumed", SM), "not resumed: {}", answer.pretty().join("\n"));
        self.client = client;
        Ok(())
    }

    async fn until_heard(&mut self, count: usize) -> Result<()> {
        while self.heard.len() < count {
            let who = self.person.user.clone();
            let heard = self.heard.len();
            self.hear(true).await.with_context(|| format!("{who} heard {heard} of {count}"))?;
        }
        let mut sorted = self.heard.clone();
        sorted.sort_unstable();
        let all: Vec<usize> = (0..count).collect();
        ensure!(sorted == all, "not each once: {:?}", self.heard);
        Ok(())
    }
}

fn number(node: &Node) -> Option<usize> {
    (node.name == "message").then(|| node.child("body", CLIENT)?.text().parse().ok())?
}

/// Writes numbered messages to people until told to stop; how many each got.
fn write_to(mut sender: Client, people: Vec<String>) -> (Arc<AtomicBool>, JoinHandle<Result<usize>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let writing = tokio::spawn(async move {
        let mut pace = interval(Duration::from_millis(4));
        let mut count = 0;
        while !told.load(Ordering::SeqCst) {
            pace.tick().await;
            for to in &people {
                let text =
                    format!("<message to='{to}' type='chat' id='{count}'><body>{count}</body></message>");
                sender.send(&text).await?;
            }
            count += 1;
        }
        // It stays until all was heard.
        tokio::spawn(async move { while sender.next().await.is_ok() {} });
        Ok(count)
    });
    (stop, writing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_follows_its_client_from_node_to_node() -> Result<()> {
    const MOVES: usize = 4;
    let nodes = Nodes::start(Layout::Three).await?;
    let mut walker = Walker::at(&nodes, nodes.door(0), "walker").await?;
    let mut people = Vec::new();
    // From all nodes, as each of them has another way to the session.
    for at in 0..3 {
        let person = Person::with_account(&nodes, "writer").await?;
        people.push(person.come_online(nodes.door(at), "desk").await?);
    }
    let to = format!("{}/phone", walker.person.bare());
    for (at, sender) in people.into_iter().enumerate() {
        // One after the other, or their numbers would mix.
        let (stop, writing) = write_to(sender, vec![if at == 1 { to.clone() } else { walker.person.bare() }]);
        for step in 0..MOVES {
            for _ in 0..10 {
                // What is asked is answered now and then.
                walker.hear(step % 3 == 0).await?;
            }
            // Without a word: the socket is gone.
            walker.resume_at(nodes.door((step + at) % 3)).await.with_context(|| format!("step {step}"))?;
        }
        stop.store(true, Ordering::SeqCst);
        let count = writing.await??;
        walker.until_heard(count).await?;
        walker.heard.clear();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drains_and_sessions_go_on_where_their_clients_are_sent() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::Three, |_, node, config| {
        let door = node.door.context("a door")?;
        let advertised = format!("\n[c2s]\nadvertise = \"{}\"\n", door.c2s);
        Ok(config.replace("\n[c2s]\n", &advertised))
    })
    .await?;
    let mut walkers = Vec::new();
    for _ in 0..4 {
        walkers.push(Walker::at(&nodes, nodes.door(0), "walker").await?);
    }
    let sender = Person::with_account(&nodes, "sender").await?.come_online(nodes.door(2), "desk").await?;
    let (stop, writing) = write_to(sender, walkers.iter().map(|walker| walker.person.bare()).collect());
    let doors = [nodes.door(1), nodes.door(2)];
    let moved = futures::future::try_join_all(walkers.iter_mut().map(|walker| async {
        let host = loop {
            let node = walker.hear(true).await?;
            if node.name == "error" {
                let host = node.child("see-other-host", STREAM_ERRORS).context("another error")?;
                break host.text();
            }
        };
        let door = doors.iter().find(|door| door.c2s.to_string() == host).context("another host")?;
        walker.resume_at(*door).await
    }));
    let drained = async { nodes.cli_at(1, &["node", "drain", "node1", "--rate", "20/s"]).await };
    let (_, said) = tokio::try_join!(moved, drained)?;
    ensure!(said.contains("node1 is empty: 4 clients left in "), "{said}");
    stop.store(true, Ordering::SeqCst);
    let count = writing.await??;
    for walker in &mut walkers {
        walker.until_heard(count).await?;
    }
    Ok(())
}

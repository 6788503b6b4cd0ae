//! A node that drains, or is stopped by a signal: its clients are told where to go, and nothing sent meanwhile is lost.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tests::{
    client::{Client, Door, Heard, PATIENCE},
    metrics::get,
    nodes::{Layout, Nodes, free_address},
    people::{Person, ping},
    xml::{CLIENT, Node, STREAM},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, interval},
};

const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// Three nodes that tell where clients reach them, the first with keys of `[node]` of its own.
struct Town {
    nodes: Nodes,
    metrics: Vec<SocketAddr>,
}

impl Town {
    async fn with(first: &str) -> Result<Town> {
        let metrics: Vec<SocketAddr> = (0..3).map(|_| free_address()).collect();
        let nodes = Nodes::start_edited(Layout::Three, |all, node, config| {
            let at = all.iter().position(|n| n.name == node.name).context("one of them")?;
            let door = node.door.context("a door")?;
            let advertised = format!(
                "\n[c2s]\nadvertise = \"{}\"\nadvertise_direct_tls = \"{}\"\n",
                door.c2s, door.direct
            );
            let config = config.replace("\n[c2s]\n", &advertised);
            let more = if at == 0 { first } else { "" };
            let config = config.replace("[node]\n", &format!("[node]\n{more}\n"));
            Ok(format!("{config}\n[metrics]\nlisten = \"{}\"\n", metrics[at]))
        })
        .await?;
        Ok(Town { nodes, metrics })
    }

    fn door(&self, at: usize) -> Door {
        self.nodes.door(at)
    }

    /// Why the first node is not ready; empty if it is.
    async fn not_ready(&self) -> Result<String> {
        Ok(match get(self.metrics[0], "/ready").await? {
            (200, _) => String::new(),
            (503, why) => why,
            (status, text) => bail!("{status}: {text}"),
        })
    }

    async fn until_not_ready(&self, word: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut look = interval(Duration::from_millis(10));
        while !self.not_ready().await?.contains(word) {
            ensure!(Instant::now() < end, "never `{word}`, but `{}`", self.not_ready().await?);
            look.tick().await;
        }
        Ok(())
    }

    /// The doors that a client of the first node may be sent to.
    fn others(&self) -> [Door; 2] {
        [self.door(1), self.door(2)]
    }
}

/// Somebody who is sent from one node to another, and hears numbered messages all the while.
struct Mover {
    person: Person,
    door: Door,
    client: Client,
    heard: Vec<usize>,
}

impl Mover {
    async fn at(nodes: &Nodes, door: Door, name: &str) -> Result<Mover> {
        let person = Person::with_account(nodes, name).await?;
        let client = person.come_online(door, "phone").await?;
        Ok(Mover { person, door, client, heard: Vec::new() })
    }

    /// Hears messages until the stream ends with `see-other-host`; the address in it.
    async fn until_sent_away(&mut self) -> Result<String> {
        let all = self.client.up_to_end().await?;
        self.heard.extend(all.iter().filter_map(number));
        ensure!(self.heard.is_sorted(), "out of order: {:?}", self.heard);
        let error = all.last().filter(|n| n.name == "error").context("the stream ended without an error")?;
        let host = error.child("see-other-host", STREAM_ERRORS);
        Ok(host.with_context(|| format!("another error: {}", error.pretty().join("\n")))?.text())
    }

    /// Comes back at one of `doors`, which the address must name.
    async fn go_to(&mut self, address: &str, doors: &[Door]) -> Result<()> {
        let door = doors.iter().find(|door| door.c2s.to_string() == address);
        let door = door.with_context(|| format!("sent to `{address}`, not to one of {doors:?}"))?;
        self.door = *door;
        self.client = self.person.come_online(*door, "phone").await?;
        Ok(())
    }

    /// Hears messages until it has heard all of them. Some may be kept for its next login, where they came while it
    /// logged in: then it comes once more.
    async fn until_heard(&mut self, count: usize) -> Result<()> {
        let missing = |heard: &[usize]| (0..count).filter(|n| !heard.contains(n)).collect::<Vec<_>>();
        let mut came = 0;
        while !missing(&self.heard).is_empty() {
            match self.client.next_by(Instant::now() + Duration::from_secs(3)).await {
                Ok(node) => self.heard.extend(number(&node)),
                Err(_) if came < 2 => {
                    came += 1;
                    self.client.send("</stream:stream>").await?;
                    let rest = self.client.up_to_end().await?;
                    self.heard.extend(rest.iter().filter_map(number));
                    self.client = self.person.come_online(self.door, "phone").await?;
                }
                Err(error) => {
                    let who = &self.person.user;
                    return Err(
                        error.context(format!("{who} never heard {:?} of {count}", missing(&self.heard)))
                    );
                }
            }
        }
        Ok(())
    }
}

fn number(node: &Node) -> Option<usize> {
    (node.name == "message").then(|| node.child("body", CLIENT)?.text().parse().ok())?
}

/// How many messages each got, and what came back, at its end.
type Writing = JoinHandle<Result<(usize, Vec<Node>)>>;

/// Writes numbered messages to some people in turn until told to stop.
fn write_to(mut sender: Client, people: Vec<String>) -> (Arc<AtomicBool>, Writing) {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let writing = tokio::spawn(async move {
        let mut count = 0;
        let mut pace = interval(Duration::from_millis(10));
        while !told.load(Ordering::SeqCst) {
            pace.tick().await;
            for to in &people {
                let text =
                    format!("<message to='{to}' type='chat' id='{count}'><body>{count}</body></message>");
                sender.send(&text).await?;
            }
            count += 1;
        }
        sender.send(&ping("localhost", "last")).await?;
        let mut back = Vec::new();
        loop {
            match sender.next_raw(Instant::now() + PATIENCE).await? {
                Heard::Element(node) if node.attr("id") == Some("last") => return Ok((count, back)),
                Heard::Element(node) if node.name == "message" => back.push(node),
                Heard::Element(_) | Heard::Header(_) => {}
                Heard::End => bail!("the sender's stream ended"),
            }
        }
    });
    (stop, writing)
}

/// Nobody hears a message twice.
fn check(mover: &Mover) -> Result<()> {
    let mut all = BTreeSet::new();
    let twice: Vec<usize> = mover.heard.iter().copied().filter(|n| !all.insert(*n)).collect();
    ensure!(twice.is_empty(), "{} heard {twice:?} twice", mover.person.user);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drains_at_a_rate_without_a_loss_and_comes_back() -> Result<()> {
    const MOVERS: usize = 5;
    let town = Town::with("drain_notice_s = 1").await?;
    let nodes = &town.nodes;
    ensure!(town.not_ready().await?.is_empty(), "not ready: {}", town.not_ready().await?);
    let mut movers = Vec::new();
    for _ in 0..MOVERS {
        movers.push(Mover::at(nodes, town.door(0), "mover").await?);
    }
    let mut stays = Mover::at(nodes, town.door(1), "stays").await?;
    let sender = Person::with_account(nodes, "sender").await?.come_online(town.door(2), "desk").await?;
    let people = movers.iter().chain([&stays]).map(|m| m.person.bare()).collect();
    let (stop, writing) = write_to(sender, people);

    // Told to another node than the one that drains.
    let draining = async {
        let began = Instant::now();
        let said = nodes.cli_at(1, &["node", "drain", "node1", "--rate", "4/s"]).await?;
        Ok::<_, anyhow::Error>((said, began.elapsed()))
    };
    // Not ready, and known as draining, while every client is still there.
    let first = async {
        town.until_not_ready("draining").await?;
        let seen = nodes
            .until(2, "node1 drains", PATIENCE, |s| {
                s.nodes.iter().any(|n| n.name == "node1" && n.state == "draining")
            })
            .await?;
        let node1 = seen.nodes.iter().find(|n| n.name == "node1").context("no node1")?;
        ensure!(node1.sessions == MOVERS as u64, "some went before it was told: {node1:?}");
        let live = get(town.metrics[0], "/live").await?;
        ensure!(live == (200, "live\n".to_owned()), "{live:?}");
        let refused = nodes.cli_at(0, &["health"]).await.err().context("a draining node is ready")?;
        ensure!(refused.to_string().contains("draining: clients are sent to other nodes"), "{refused}");
        nodes.cli_at(0, &["health", "--live"]).await
    };
    let others = town.others();
    let moved = futures::future::try_join_all(movers.iter_mut().map(|mover| async {
        let address = mover.until_sent_away().await?;
        mover.go_to(&address, &others).await
    }));
    let ((said, took), live, _) = tokio::try_join!(draining, first, moved)?;
    ensure!(live == "alive\n", "{live}");
    ensure!(said.contains(&format!("node1 is empty: {MOVERS} clients left in ")), "{said}");
    ensure!(said.contains("4/s at most"), "{said}");
    // A second's notice, then one at once and four at four a second.
    ensure!(took >= Duration::from_millis(1_900), "{MOVERS} clients were gone after {took:?}");
    stop.store(true, Ordering::SeqCst);
    let (count, back) = writing.await??;
    ensure!(back.is_empty(), "came back: {back:?}");
    for mover in movers.iter_mut().chain([&mut stays]) {
        mover.until_heard(count).await?;
        check(mover)?;
    }

    // Who comes is led on behind the header, from inside TLS.
    let host = led_on(town.door(0)).await?;
    ensure!(others.iter().any(|door| door.c2s.to_string() == host), "led to `{host}`");

    // And back again.
    let said = nodes.cli_at(2, &["node", "undrain", "node1"]).await?;
    ensure!(said == "node1 takes what is new again\n", "{said}");
    ensure!(town.not_ready().await?.is_empty(), "not ready: {}", town.not_ready().await?);
    nodes
        .until(2, "node1 is up", PATIENCE, |s| s.nodes.iter().any(|n| n.name == "node1" && n.state == "up"))
        .await?;
    Mover::at(nodes, town.door(0), "again").await?;
    let nobody = nodes.cli_at(1, &["node", "drain", "node9"]).await.err().context("no such node")?;
    ensure!(
        nobody.to_string().contains("no node is called `node9`; there are node1, node2, node3"),
        "{nobody}"
    );
    Ok(())
}

/// Where somebody is sent who comes to a node that drains, by what comes behind its header.
async fn led_on(door: Door) -> Result<String> {
    let mut client = Client::open_plain(door, "localhost").await?;
    client.begin_stream().await?;
    client.start_tls().await?;
    client.expect_stream();
    let header =
        format!("<stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' to='localhost' version='1.0'>");
    client.send(&header).await?;
    let told = client.up_to_end().await?;
    let host = told.first().and_then(|n| n.child("see-other-host", STREAM_ERRORS));
    Ok(host.with_context(|| format!("not led on: {told:?}"))?.text())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_gets_sigterm_moves_its_clients_within_its_bound() -> Result<()> {
    const BOUND: Duration = Duration::from_secs(6);
    let mut town = Town::with("shutdown_s = 6").await?;
    let mut movers = Vec::new();
    for _ in 0..4 {
        movers.push(Mover::at(&town.nodes, town.door(0), "mover").await?);
    }
    let sender = Person::with_account(&town.nodes, "sender").await?.come_online(town.door(1), "desk").await?;
    let (stop, writing) = write_to(sender, movers.iter().map(|m| m.person.bare()).collect());
    town.nodes.terminate(0).await?;
    let others = town.others();
    futures::future::try_join_all(movers.iter_mut().map(|mover| async {
        let address = mover.until_sent_away().await?;
        mover.go_to(&address, &others).await
    }))
    .await?;
    town.nodes.ended(0, BOUND + Duration::from_secs(4)).await?;
    stop.store(true, Ordering::SeqCst);
    let (count, back) = writing.await??;
    ensure!(back.is_empty(), "came back: {back:?}");
    for mover in &mut movers {
        // Once is the rule. What the node has not said to be settled when it leaves is routed anew, under its old id.
        mover.until_heard(count).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_node_at_once() -> Result<()> {
    let mut town = Town::with("drain_notice_s = 600").await?;
    let mut mover = Mover::at(&town.nodes, town.door(0), "mover").await?;
    town.nodes.terminate(0).await?;
    town.until_not_ready("stopping").await?;
    mover.client.send(&ping("localhost", "still")).await?;
    mover.client.wait_for("the pong", |n| n.attr("id") == Some("still")).await?;
    town.nodes.terminate(0).await?;
    town.nodes.ended(0, Duration::from_secs(4)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_can_end_the_process_and_one_that_is_taken_back_says_so() -> Result<()> {
    let mut town = Town::with("drain_notice_s = 600").await?;
    let mut mover = Mover::at(&town.nodes, town.door(0), "mover").await?;
    let given_up = async {
        let drained = town.nodes.cli_at(0, &["node", "drain"]).await;
        let error = drained.err().context("it was empty")?.to_string();
        ensure!(error.contains("told to take what is new again"), "{error}");
        Ok(())
    };
    let undrained = async {
        town.until_not_ready("draining").await?;
        town.nodes.cli_at(0, &["node", "undrain"]).await.map(drop)
    };
    tokio::try_join!(given_up, undrained)?;
    mover.client.send(&ping("localhost", "still")).await?;
    mover.client.wait_for("the pong", |n| n.attr("id") == Some("still")).await?;

    let said = town.nodes.cli_at(1, &["node", "drain", "node3", "--stop"]).await?;
    ensure!(said.contains("node3 is empty: 0 clients left"), "{said}");
    town.nodes.ended(2, Duration::from_secs(10)).await?;
    let gone =
        |s: &proto::admin::GetClusterResponse| s.nodes.iter().any(|n| n.name == "node3" && n.state == "gone");
    town.nodes.until(1, "node3 is gone", PATIENCE, gone).await?;
    Ok(())
}

/// What a load balancer meets at a backend that drains: it is not ready, and it still votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_drains_still_votes() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Split).await?;
    let said = nodes.cli_at(0, &["node", "drain", "back3"]).await?;
    ensure!(said.contains("back3 is empty: 0 clients left"), "{said}");
    nodes.cli_at(0, &["node", "drain", "back4"]).await?;
    // With one of three dead, two must agree, and one of these drains.
    nodes.kill(4).await?;
    let person = Person::with_account(&nodes, "somebody").await?;
    let end = Instant::now() + Duration::from_secs(30);
    let mut again = interval(Duration::from_millis(50));
    loop {
        again.tick().await;
        match person.come_online(nodes.door(0), "phone").await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context("nobody can log in")),
            Err(_) => {}
        }
    }
}

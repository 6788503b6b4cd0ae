//! A node stands still and goes on: how long decides what its clients and their contacts see of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes},
    people::{Person, befriend, fence},
    xml::{CLIENT, Node, STREAM},
};

/// A paused node is expired 5 s after its last renewal.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// How many messages go each way.
const COUNT: usize = 50;

/// Three nodes, one of which will be paused: alice and dave are connected to it, their contacts are not.
struct Scene {
    nodes: Nodes,
    victim: usize,
    people: [Person; 4],
    alice: Client,
    bob: Client,
    carol: Client,
    dave: Client,
}

impl Scene {
    async fn set() -> Result<Scene> {
        let nodes = Nodes::start(Layout::Three).await?;
        // Not the leader: an election would only make it longer.
        let status = nodes.status(0).await?;
        let leads = |name: &str| status.nodes.iter().any(|node| node.leader && node.name == name);
        let victim = (0..3).find(|at| !leads(&nodes.nodes[*at].name)).context("everybody leads")?;
        let others: Vec<usize> = (0..3).filter(|at| *at != victim).collect();
        let door = |at: usize| nodes.nodes[at].door.context("a node without clients");
        let alice = Person::with_account(&nodes, "alice").await?;
        let bob = Person::with_account(&nodes, "bob").await?;
        let carol = Person::with_account(&nodes, "carol").await?;
        let dave = Person::with_account(&nodes, "dave").await?;
        befriend(door(others[0])?, &alice, &bob).await?;
        befriend(door(others[0])?, &alice, &carol).await?;
        let mut bobs = bob.come_online(door(others[0])?, "laptop").await?;
        let mut carols = carol.come_online(door(others[1])?, "desk").await?;
        let mut alices = alice.come_online(door(victim)?, "phone").await?;
        let daves = dave.come_online(door(victim)?, "desk").await?;
        let phone = full(&alice, "phone");
        bobs.wait_for("alice", |n| from(n, &phone)).await?;
        carols.wait_for("alice", |n| from(n, &phone)).await?;
        for contact in [full(&bob, "laptop"), full(&carol, "desk")] {
            alices.wait_for("a contact", |n| from(n, &contact)).await?;
        }
        let people = [alice, bob, carol, dave];
        Ok(Scene { nodes, victim, people, alice: alices, bob: bobs, carol: carols, dave: daves })
    }

    fn phone(&self) -> String {
        full(&self.people[0], "phone")
    }

    /// A node that is not paused.
    fn other(&self) -> usize {
        usize::from(self.victim == 0)
    }

    /// The incarnation of the paused node, as another sees it.
    async fn incarnation(&self) -> Result<u64> {
        let name = &self.nodes.nodes[self.victim].name;
        let status = self.nodes.status(self.other()).await?;
        Ok(status.nodes.iter().find(|node| node.name == *name).context("the node is unknown")?.incarnation)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_a_pause_that_is_shorter_than_the_lease() -> Result<()> {
    let mut scene = Scene::set().await?;
    let before = scene.incarnation().await?;
    let (alice, bob) = (&mut scene.alice, &mut scene.bob);
    let (phone, laptop) = (scene.people[0].bare(), full(&scene.people[1], "laptop"));
    let talk = async {
        say(bob, &phone, "b").await?;
        say(alice, &laptop, "a").await
    };
    scene.nodes.pause_for(scene.victim, Duration::from_secs(2), talk).await?;
    let heard = fence(alice, Some(bob)).await?;
    ensure!(numbered(&heard, "b") == all("b") && heard.len() == COUNT, "alice heard {heard:?}");
    let heard = fence(bob, Some(alice)).await?;
    ensure!(numbered(&heard, "a") == all("a") && heard.len() == COUNT, "bob heard {heard:?}");
    let heard = fence(&mut scene.carol, Some(alice)).await?;
    ensure!(heard.is_empty(), "carol heard {heard:?}");
    ensure!(scene.incarnation().await? == before, "the lease was lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_node_that_is_back_within_the_grace_go_on() -> Result<()> {
    let mut scene = Scene::set().await?;
    let before = scene.incarnation().await?;
    let (phone, other) = (scene.phone(), scene.other());
    let door = scene.nodes.nodes[other].door.context("a node without clients")?;
    let [alice, bob, carol, dave] = scene.people.clone();
    let (laptop, desk) = (full(&bob, "laptop"), full(&carol, "desk"));
    let meanwhile = async {
        say(&mut scene.alice, &laptop, "a").await?;
        told(&mut scene.bob, &phone, Some("unavailable")).await?;
        told(&mut scene.carol, &phone, Some("unavailable")).await?;
        // Said while she is nowhere: it is kept.
        say(&mut scene.bob, &alice.bare(), "b").await?;
        scene.bob.send("<presence><show>away</show></presence>").await?;
        fence(&mut scene.bob, None).await?;
        scene.carol.send("<presence type='unavailable'/>").await?;
        fence(&mut scene.carol, None).await?;
        // One full JID is taken.
        dave.come_online(door, "desk").await
    };
    let mut successor = scene.nodes.pause_for(scene.victim, Duration::from_secs(8), meanwhile).await?;

    // What alice has to hear: where her contacts are now, and what was kept.
    let away = |n: &Node| from(n, &laptop) && n.child("show", CLIENT).is_some_and(|s| s.text() == "away");
    scene.alice.wait_for("bob, who is away", away).await?;
    let left = |n: &Node| from(n, &desk) && n.attr("type") == Some("unavailable");
    scene.alice.wait_for("carol, who has left", left).await?;
    let last = format!("b-{COUNT}");
    let last = scene.alice.wait_for("what was kept", |n| n.attr("id") == Some(&last)).await?;
    ensure!(last.child("delay", "urn:xmpp:delay").is_some(), "not kept: {last:?}");
    let heard = scene.alice.take_kept();
    ensure!(numbered(&heard, "b") == all("b")[..COUNT - 1], "alice heard {heard:?}");
    ensure!(scene.incarnation().await? > before, "the incarnation is the former one");

    // What she said before anybody read it comes once, and so does her presence.
    let mut heard = fence(&mut scene.bob, Some(&mut scene.alice)).await?;
    let has_her = |heard: &[Node]| heard.iter().any(|n| from(n, &phone));
    if !has_her(&heard) {
        told(&mut scene.bob, &phone, None).await?;
        heard.extend(fence(&mut scene.bob, Some(&mut scene.alice)).await?);
    } else {
        let seen: Vec<_> = heard.iter().filter(|n| from(n, &phone)).collect();
        ensure!(seen.len() == 1 && seen[0].attr("type").is_none(), "bob was told {seen:?}");
    }
    ensure!(numbered(&heard, "a") == all("a"), "bob heard {heard:?}");

    // Her session is in the table again: what is said now is not kept.
    let id = unique("now");
    let now = format!("<message to='{}' type='chat' id='{id}'><body>now</body></message>", alice.bare());
    scene.bob.send(&now).await?;
    let now = scene.alice.wait_for("a message", |n| n.attr("id") == Some(&id)).await?;
    ensure!(now.child("delay", "urn:xmpp:delay").is_none(), "kept: {now:?}");
    let heard = fence(&mut scene.alice, Some(&mut scene.bob)).await?;
    ensure!(heard.iter().all(|n| n.name != "message"), "alice heard {heard:?}");

    // Who lost the full JID is told so, and the successor stays.
    ended_with(&mut scene.dave, "conflict").await?;
    let heard = fence(&mut successor, Some(&mut scene.bob)).await?;
    ensure!(heard.is_empty(), "the successor heard {heard:?}");
    Ok(())
}

/// Input: a node that stands still for 30 seconds (SIGSTOP) and goes on.
///
/// Outcome: it serves nobody until it has a new incarnation. The streams of its clients are closed with
/// `system-shutdown` (`see-other-host` where other nodes have told an address for clients), nothing that they sent meanwhile is carried, and what was sent to them waits for their next
/// login. After a shorter pause than the grace the sessions go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_141_streams_of_a_node_that_is_back_after_the_grace_are_closed() -> Result<()> {
    let mut scene = Scene::set().await?;
    let before = scene.incarnation().await?;
    let phone = scene.phone();
    let [alice, bob, ..] = scene.people.clone();
    let laptop = full(&bob, "laptop");
    let meanwhile = async {
        told(&mut scene.bob, &phone, Some("unavailable")).await?;
        told(&mut scene.carol, &phone, Some("unavailable")).await?;
        say(&mut scene.bob, &alice.bare(), "b").await?;
        fence(&mut scene.bob, None).await?;
        // Never read: she learns by the end of her stream that it was not taken.
        say(&mut scene.alice, &laptop, "a").await
    };
    scene.nodes.pause_for(scene.victim, Duration::from_secs(30), meanwhile).await?;
    ended_with(&mut scene.alice, "system-shutdown").await?;
    ended_with(&mut scene.dave, "system-shutdown").await?;

    let door = scene.nodes.nodes[scene.victim].door.context("a node without clients")?;
    let mut back = alice.log_in(door, "phone").await?;
    tests::people::go_online(&mut back, None).await?;
    ensure!(scene.incarnation().await? > before, "the incarnation is the former one");
    let last = format!("b-{COUNT}");
    back.wait_for("what was kept", |n| n.attr("id") == Some(&last)).await?;
    let heard = back.take_kept();
    ensure!(numbered(&heard, "b") == all("b")[..COUNT - 1], "alice heard {heard:?}");
    for contact in [&mut scene.bob, &mut scene.carol] {
        told(contact, &phone, None).await?;
        let heard = fence(contact, Some(&mut back)).await?;
        ensure!(heard.is_empty(), "a contact heard {heard:?}");
    }
    Ok(())
}

fn full(person: &Person, resource: &str) -> String {
    format!("{}/{resource}", person.bare())
}

fn from(node: &Node, jid: &str) -> bool {
    node.name == "presence" && node.attr("from") == Some(jid)
}

/// The next that `contact` hears is presence of this kind from `jid`.
async fn told(contact: &mut Client, jid: &str, kind: Option<&str>) -> Result<()> {
    let told = contact.next_by(tokio::time::Instant::now() + GONE_WITHIN).await.context("nobody told")?;
    ensure!(from(&told, jid) && told.attr("type") == kind, "not {kind:?}: {}", told.pretty().join("\n"));
    Ok(())
}

/// Sends numbered messages.
async fn say(client: &mut Client, to: &str, who: &str) -> Result<()> {
    for id in all(who) {
        let message = format!("<message to='{to}' type='chat' id='{id}'><body>{id}</body></message>");
        client.send(&message).await?;
    }
    Ok(())
}

/// The ids of all messages of one speaker.
fn all(who: &str) -> Vec<String> {
    (1..=COUNT).map(|number| format!("{who}-{number}")).collect()
}

/// The ids of those that were heard, in the order in which they came.
fn numbered(heard: &[Node], who: &str) -> Vec<String> {
    let ids = heard.iter().filter(|n| n.name == "message").filter_map(|n| n.attr("id"));
    ids.filter(|id| id.starts_with(&format!("{who}-"))).map(str::to_owned).collect()
}

async fn ended_with(client: &mut Client, condition: &str) -> Result<()> {
    let heard = client.up_to_end().await?;
    let last = heard.last().context("the stream ended without a word")?;
    let is_so = last.is("error", STREAM) && last.nodes().any(|n| n.name == condition);
    ensure!(is_so, "ended otherwise: {}", last.pretty().join("\n"));
    ensure!(heard.iter().all(|n| n.name != "message"), "delivered although it had no place: {heard:?}");
    Ok(())
}

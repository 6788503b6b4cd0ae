//! A cluster that makes its own certificates: formed by init, token and join; grown, shrunk and kept young.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::{
    admin::GetClusterResponse,
    membership::{HelloRequest, Peer, membership_client::MembershipClient},
};
use tests::{
    certificates::Authority,
    client::Client,
    joining::{done, form, identity, join, link, prepare, refused, ticket},
    nodes::{Layout, Nodes},
    people::Person,
};
use tokio::time::{Instant, interval};

/// A bound for what the cluster does by itself.
const SOON: Duration = Duration::from_secs(60);

fn same(_: &tests::nodes::Node, config: String) -> Result<String> {
    Ok(config)
}

/// One message from one session to another.
async fn tell(from: &mut Client, to: &mut Client, id: &str) -> Result<()> {
    let jid = to.jid.clone().context("not bound")?;
    from.send(&format!("<message to='{jid}' type='chat' id='{id}'><body>x</body></message>")).await?;
    to.wait_for("the message", |n| n.attr("id") == Some(id)).await?;
    Ok(())
}

/// Whether each group has as many voters.
fn voters(state: &GetClusterResponse, count: usize) -> bool {
    state.groups.len() == 2 && state.groups.iter().all(|group| group.voters.len() == count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_become_a_cluster_that_outlives_its_first_node() -> Result<()> {
    let mut nodes = prepare(&[], &same)?;
    let judged = three_machines(&mut nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    judged
}

async fn three_machines(nodes: &mut Nodes) -> Result<()> {
    // Who was not let in says so, and what to do.
    let said = refused(nodes.offline(1, &["serve"]).await?)?;
    ensure!(said.contains("rookery cluster init") && said.contains("rookery cluster join"), "{said}");

    form(nodes, 2).await?;
    // The third is given its token by its config, and waits for nobody.
    let file = nodes.nodes[2].folder.join("token");
    fs::write(&file, ticket(nodes, 1, &[]).await?)?;
    let config = nodes.nodes[2].folder.join("rookery.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("plain = false", &format!("plain = false\njoin_file = {file:?}")))?;
    nodes.start_again(2).await?;
    nodes.until_logged(0, "certificates of the cluster itself", SOON).await?;

    let mut people = Vec::new();
    for at in 0..3 {
        let person = Person::with_account(nodes, "someone").await?;
        people.push(person.come_online(nodes.door(at), "here").await?);
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let [from, to] = people.get_disjoint_mut([from, to])?;
        tell(from, to, "across").await?;
    }
    let listed = done(nodes.ask(0, &["cluster", "token", "--list", "--format", "json"]).await?)?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let tokens = listed.as_array().into_iter().flatten();
    let mut used: Vec<_> = tokens.map(|token| (token["state"].as_str(), token["node"].as_str())).collect();
    // Those of one second are in no order.
    used.sort_unstable();
    ensure!(used == [(Some("used"), Some("node2")), (Some("used"), Some("node3"))], "{used:?}");
    nodes.until(1, "three voters", SOON, |state| voters(state, 3)).await?;

    // The first node is lost with its disk; another one has the authority's key, and takes it out for good.
    nodes.kill(0).await?;
    let old = nodes.nodes[0].folder.join("old-identity");
    fs::rename(identity(&nodes.nodes[0]), &old)?;
    fs::remove_dir_all(nodes.nodes[0].folder.join("data"))?;
    let gone =
        |state: &GetClusterResponse| state.nodes.iter().any(|n| n.name == "node1" && n.state == "gone");
    nodes.until(1, "the first node is gone", SOON, gone).await?;
    let said = done(nodes.ask(1, &["cluster", "remove", "node1"]).await?)?;
    ensure!(said.contains("it was gone already"), "{said}");
    nodes
        .until(1, "two nodes and two voters", SOON, |state| state.nodes.len() == 2 && voters(state, 2))
        .await?;
    let knocked = link(nodes.nodes[1].cluster, &old, Some(&old)).await;
    let hello = HelloRequest { peer: Some(Peer { backend: true, ..Peer::default() }) };
    let status =
        MembershipClient::new(knocked?).hello(hello).await.err().context("a removed node was let in")?;
    ensure!(status.message() == "this node was removed from the cluster", "{status:?}");

    // The machine comes back as a new node.
    join(nodes, 1, 0).await?;
    nodes.until(2, "three voters again", SOON, |state| state.nodes.len() == 3 && voters(state, 3)).await?;
    let someone = Person::with_account(nodes, "someone").await?;
    let mut back = someone.come_online(nodes.door(0), "here").await?;
    tell(&mut back, &mut people[2], "again").await?;

    // A living one stops by itself, and its sessions end.
    let said = refused(nodes.ask(2, &["cluster", "remove", "node3"]).await?)?;
    ensure!(said.contains("is the node that you ask"), "{said}");
    let said = done(nodes.ask(1, &["cluster", "remove", "node3"]).await?)?;
    ensure!(said.contains("it stops now"), "{said}");
    let log = nodes.until_ended(2, SOON).await?;
    ensure!(log.contains("this node was removed from its cluster"), "{log}");
    // Nor does it come up again with what it has.
    let said = refused(nodes.offline(2, &["serve"]).await?)?;
    ensure!(said.contains("this node was removed from its cluster"), "{said}");
    tell(&mut back, &mut people[1], "without it").await?;
    let logged = fs::read_to_string(nodes.nodes[1].folder.join("log"))?;
    ensure!(!logged.contains("panicked"), "{logged}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_about_the_cluster_say_what_to_do() -> Result<()> {
    let mut nodes = prepare(&[1], &same)?;
    // Before there is a cluster.
    let said = refused(nodes.offline(1, &["cluster", "init"]).await?)?;
    ensure!(said.contains("a frontend cannot be the first node"), "{said}");
    let said = refused(nodes.offline(1, &["cluster", "join", "secret"]).await?)?;
    ensure!(said.contains("this is no join token"), "{said}");
    form(&mut nodes, 2).await?;
    for (at, words, expected) in [
        (0, vec!["cluster", "token", "--revoke", "xyz"], "`xyz` is no number of a join token"),
        (0, vec!["cluster", "token", "--revoke", "1234"], "there is no join token `0000000000001234`"),
        (0, vec!["cluster", "token", "--ttl", "31d"], "a join token is good for 1 to 2592000 seconds"),
        (0, vec!["cluster", "remove", "node9"], "there is no node `node9`; there are node1"),
        (0, vec!["cluster", "remove", "node1"], "is the node that you ask"),
        // The frontend has not even the certificate for it.
        (1, vec!["cluster", "token"], "this node is only a frontend"),
        (1, vec!["cluster", "token", "--list"], "this node is only a frontend"),
        (1, vec!["cluster", "remove", "node1"], "this node is only a frontend"),
    ] {
        let said = refused(nodes.ask(at, &words).await?)?;
        ensure!(said.contains(expected), "{words:?} at {at}: {said}");
    }
    let ticket = ticket(&nodes, 0, &[]).await?;
    let said = refused(nodes.offline(1, &["cluster", "join", &ticket]).await?)?;
    ensure!(said.contains("is in use by another node"), "{said}");
    nodes.kill(1).await?;
    let said = refused(nodes.offline(1, &["cluster", "join", &ticket]).await?)?;
    ensure!(said.contains("belongs to a cluster already"), "{said}");
    nodes.kill(0).await?;
    let said = refused(nodes.offline(0, &["cluster", "init"]).await?)?;
    ensure!(said.contains("holds the identity of a node already"), "{said}");
    let said = refused(nodes.offline(2, &["cluster", "join", &ticket]).await?)?;
    ensure!(said.contains("no node of the cluster answers"), "{said}");
    // Where links are plain there is nothing to join for.
    let single = Nodes::start_edited(Layout::One, |_, node, config| {
        Ok(format!("{config}\n[cluster]\nlisten = \"{}\"\n", node.cluster))
    })
    .await?;
    let said = refused(single.ask(0, &["cluster", "token"]).await?)?;
    ensure!(said.contains("so there are no join tokens"), "{said}");
    let said = refused(single.offline(0, &["cluster", "init"]).await?)?;
    ensure!(said.contains("links on loopback are plain"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_of_nobody_makes_its_cluster_by_itself() -> Result<()> {
    let mut single = Nodes::prepare(Layout::One, |_, node, config| {
        Ok(format!("{config}\n[cluster]\nlisten = \"{}\"\nplain = false\n", node.cluster))
    })?;
    single.start_again(0).await?;
    single.until_logged(0, "made the certificate authority of a new cluster", SOON).await?;
    ticket(&single, 0, &["--role", "backend"]).await?;
    single.kill(0).await?;
    single.start_again(0).await?;
    let said = done(single.ask(0, &["cluster", "token", "--list"]).await?)?;
    ensure!(said.contains("open") && said.contains("backend"), "the token is gone after a restart: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_links_live() -> Result<()> {
    const LIFETIME: u64 = 15;
    let mut nodes = prepare(&[1], &|_, config| {
        Ok(config.replace("plain = false", &format!("plain = false\ncertificate_lifetime_s = {LIFETIME}")))
    })?;
    form(&mut nodes, 2).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut alices = alice.come_online(nodes.door(0), "phone").await?;
    let mut bobs = bob.come_online(nodes.door(1), "desk").await?;
    tell(&mut alices, &mut bobs, "before").await?;

    let read = |at: usize| fs::read(identity(&nodes.nodes[at]).join("node.pem"));
    let began = Instant::now();
    let (mut seen, mut renewed) = ([read(0)?, read(1)?], [0, 0]);
    let mut look = interval(Duration::from_millis(200));
    // Until no certificate of the beginning is good any more, and each node has a new one of a new one.
    while renewed.iter().min() < Some(&2) || began.elapsed() < Duration::from_secs(LIFETIME + 1) {
        look.tick().await;
        ensure!(began.elapsed() < SOON * 2, "renewed {renewed:?} times");
        for at in 0..2 {
            let now = read(at)?;
            if now != seen[at] {
                (seen[at], renewed[at]) = (now, renewed[at] + 1);
            }
        }
    }
    // The sessions of the beginning go on, and so do links that are made anew.
    tell(&mut alices, &mut bobs, "after").await?;
    tell(&mut bobs, &mut alices, "back").await?;
    nodes.until_logged(1, "this node's certificate was renewed", SOON).await?;
    let log = fs::read_to_string(nodes.nodes[0].folder.join("log"))?;
    ensure!(!log.contains("fenced itself"), "a renewal cost a lease:\n{log}");
    nodes.kill(1).await?;
    nodes.start_again(1).await?;
    let mut bobs = bob.come_online(nodes.door(1), "desk").await?;
    tell(&mut alices, &mut bobs, "under a new certificate").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_certificates_are_read_again_when_they_change() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    fs::write(folder.path().join("ca.pem"), authority.pem())?;
    let write = || -> Result<()> {
        let names = ["rookery-cluster", "frontend.rookery-cluster", "backend.rookery-cluster"];
        let names = names.iter().map(|name| Ok(rcgen::SanType::DnsName((*name).try_into()?)));
        let made = authority.certify(names.collect::<Result<_>>()?, |_| {})?;
        let (cert, key) = made.pem();
        fs::write(folder.path().join("node.key"), key)?;
        fs::write(folder.path().join("node.pem"), cert)?;
        Ok(())
    };
    write()?;
    let path = |name: &str| folder.path().join(name);
    let nodes = Nodes::start_edited(Layout::One, |_, node, config| {
        let keys =
            format!("ca = {:?}\ncert = {:?}\nkey = {:?}", path("ca.pem"), path("node.pem"), path("node.key"));
        Ok(format!("{config}\n[cluster]\nlisten = \"{}\"\n{keys}\n", node.cluster))
    })
    .await?;
    let hello = async || -> Result<()> {
        let channel = link(nodes.nodes[0].cluster, folder.path(), Some(folder.path())).await?;
        let peer = Peer { backend: true, ..Peer::default() };
        MembershipClient::new(channel).hello(HelloRequest { peer: Some(peer) }).await?;
        Ok(())
    };
    hello().await?;
    write()?;
    nodes.until_logged(0, "the certificate of the links between nodes was replaced", SOON).await?;
    hello().await?;
    fs::write(path("node.pem"), "no certificate")?;
    nodes.until_logged(0, "keeping the old certificate of the links between nodes", SOON).await?;
    write()?;
    hello().await
}

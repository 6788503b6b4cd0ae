//! What clustered servers have got wrong before, one case each, over real processes.
//!
//! | case | test |
//! |---|---|
//! | a late teardown removes the row of the successor | `a_late_teardown_leaves_the_row_of_the_successor` |
//! | a bind conflict blocks workers | `a_crowd_that_wants_one_full_jid_holds_nobody_up` |
//! | rows of a node that never returns stay | `rows_of_a_node_that_never_returns_go_away` |
//! | a rejoin after a split needs an operator | every story in `cuts`, above all `a_minority_of_a_backend_and_a_frontend_serves_nobody_and_rejoins_by_itself` |
//! | two clusters are born from one | `two_clusters_are_never_born_from_one` |
//! | a data folder is started twice | `a_data_folder_that_is_started_twice_is_fenced` |

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use proto::admin::GetClusterResponse;
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes},
    people::{Person, fence, ping},
    xml::STREAM,
};
use tokio::time::{Instant, interval};

use crate::scene::passes;

const SOON: Duration = Duration::from_secs(30);

/// The full JIDs and nodes of one account, as one node's table says.
async fn listed(nodes: &Nodes, at: usize, person: &Person) -> Result<Vec<String>> {
    let said = nodes.cli_at(at, &["session", "list"]).await?;
    Ok(said.lines().filter(|line| line.contains(&person.user)).map(str::to_owned).collect())
}

async fn ends_with_conflict(client: &mut Client) -> Result<()> {
    let heard = client.up_to_end().await?;
    let last = heard.last().context("the stream ended without a word")?;
    ensure!(last.is("error", STREAM) && last.nodes().any(|n| n.name == "conflict"), "{heard:?}");
    Ok(())
}

/// The node of the old session stands still while the full JID is bound elsewhere, and tears the old one down late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_teardown_leaves_the_row_of_the_successor() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let status = nodes.status(0).await?;
    let leads = |at: &usize| status.nodes.iter().any(|n| n.leader && n.name == nodes.nodes[*at].name);
    let slow = (0..3).rfind(|at| !leads(at)).context("everybody leads")?;
    let others: Vec<usize> = (0..3).filter(|at| *at != slow).collect();
    let door = |at: usize| nodes.nodes[at].door.context("a node without clients");
    let mut bobs = bob.come_online(door(others[1])?, "desk").await?;
    // Shorter than the lease, then so long that its node is gone meanwhile.
    for time in [Duration::from_secs(1), Duration::from_secs(8)] {
        let mut old = alice.come_online(door(slow)?, "phone").await?;
        let there = async { alice.come_online(door(others[0])?, "phone").await };
        let mut new = nodes.pause_for(slow, time, there).await?;
        ends_with_conflict(&mut old).await?;
        let serves = |s: &GetClusterResponse| s.serving && s.nodes.iter().all(|n| n.state == "up");
        for at in 0..3 {
            nodes.until(at, "all serve again", SOON, serves).await?;
        }
        let to = new.jid.clone().context("not bound")?;
        let id = unique("to-the-successor");
        bobs.send(&format!("<message to='{to}' type='chat' id='{id}'><body>there?</body></message>")).await?;
        new.wait_for("a message", |n| n.attr("id") == Some(&id)).await?;
        fence(&mut bobs, Some(&mut new)).await?;
        for at in 0..3 {
            let rows = listed(&nodes, at, &alice).await?;
            let name = &nodes.nodes[others[0]].name;
            ensure!(rows.len() == 1 && rows[0].contains(name.as_str()), "table of node {at}: {rows:?}");
        }
        new.close().await?;
    }
    Ok(())
}

/// Thirty clients want the same full JID at once, at three nodes, while another one only wants its pings answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_wants_one_full_jid_holds_nobody_up() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut bobs = bob.come_online(nodes.door(0), "desk").await?;
    let doors: Vec<_> = (0..30).map(|n| nodes.door(n)).collect();
    let crowd = join_all(doors.into_iter().map(|door| alice.log_in(door, "phone")));
    tokio::pin!(crowd);
    let mut slowest = Duration::ZERO;
    let clients = loop {
        let id = unique("p");
        let since = Instant::now();
        bobs.send(&ping("localhost", &id)).await?;
        let mut answered = false;
        let done = tokio::select! {
            done = &mut crowd => Some(done),
            answer = bobs.wait_for("an answer", |n| n.attr("id") == Some(&id)) => {
                answer?;
                answered = true;
                None
            }
        };
        if !answered {
            bobs.wait_for("an answer", |n| n.attr("id") == Some(&id)).await?;
        }
        slowest = slowest.max(since.elapsed());
        if let Some(done) = done {
            break done;
        }
    };
    println!("30 wanted one full JID; the slowest ping beside them took {slowest:?}");
    ensure!(slowest < Duration::from_secs(5), "a ping took {slowest:?}");
    // One of them has it, and every other one was told so.
    let mut rows = Vec::new();
    let end = Instant::now() + SOON;
    let mut look = interval(Duration::from_millis(100));
    while rows.len() != 1 {
        look.tick().await;
        rows = listed(&nodes, 0, &alice).await?;
        ensure!(Instant::now() < end, "not one session: {rows:?}");
    }
    // Who was displaced before its bind was answered heard that in place of an answer.
    let bound: Vec<Client> = clients.into_iter().filter_map(Result::ok).collect();
    let id = unique("who");
    let told =
        format!("<message to='{}/phone' type='chat' id='{id}'><body>you</body></message>", alice.bare());
    bobs.send(&told).await?;
    let ends = bound.into_iter().map(|mut client| {
        let id = id.clone();
        async move {
            let heard = client.wait_for("the message", |n| n.attr("id") == Some(&id)).await;
            let conflict = client.take_kept().iter().any(|n| n.is("error", STREAM));
            (heard.is_ok(), conflict)
        }
    });
    let ends = join_all(ends).await;
    ensure!(ends.iter().filter(|(heard, _)| *heard).count() == 1, "not one heard it: {ends:?}");
    ensure!(ends.iter().all(|(heard, conflict)| heard != conflict), "not told of the conflict: {ends:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_node_that_never_returns_go_away() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let mut clients = Vec::new();
    let mut people = Vec::new();
    for n in 0..6 {
        let person = Person::with_account(&nodes, &format!("lost{n}")).await?;
        clients.push(person.come_online(nodes.door(2), "phone").await?);
        people.push(person);
    }
    let name = nodes.nodes[2].name.clone();
    nodes.kill(2).await?;
    let gone = |s: &GetClusterResponse| {
        s.nodes.iter().all(|n| n.name != name || (n.state == "gone" && n.sessions == 0))
    };
    for at in 0..2 {
        nodes.until(at, "its rows are gone", SOON, gone).await?;
        for person in &people {
            ensure!(listed(&nodes, at, person).await?.is_empty(), "a row of a lost node is there");
        }
    }
    // Neither does a restart bring them back, from whatever is on the disks.
    for at in 0..2 {
        nodes.terminate(at).await?;
        nodes.ended(at, SOON).await?;
        nodes.start_again(at).await?;
    }
    for at in 0..2 {
        for person in &people {
            ensure!(listed(&nodes, at, person).await?.is_empty(), "a row of a lost node came back");
        }
        nodes.until(at, "its rows are gone", SOON, gone).await?;
    }
    Ok(())
}

/// Backends that cannot see each other found nothing; one that lost its disk while it was cut off founds no second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_are_never_born_from_one() -> Result<()> {
    let Some(mut nodes) = Nodes::prepare_apart(Layout::Three, |_, _, config| Ok(config)).await? else {
        return Ok(());
    };
    let alone = [(0, 2), (2, 0), (1, 2), (2, 1)];
    nodes.ground()?.cut(&alone).await?;
    let since = Instant::now();
    for at in 0..3 {
        nodes.spawn(at)?;
    }
    for at in 0..3 {
        nodes.until(at, "its admin service answers", SOON, |_| true).await?;
    }
    passes(since, Duration::from_secs(6)).await;
    for at in 0..3 {
        ensure!(nodes.status(at).await?.cluster_id.is_empty(), "two or one of three founded a cluster");
    }
    nodes.ground()?.mend(&alone).await?;
    nodes.formed().await?;
    let born = nodes.status(0).await?.cluster_id;

    nodes.ground()?.cut(&alone).await?;
    nodes.kill(2).await?;
    fs::remove_dir_all(nodes.nodes[2].folder.join("data"))?;
    nodes.spawn(2)?;
    let since = Instant::now();
    nodes.until(2, "its admin service answers", SOON, |_| true).await?;
    passes(since, Duration::from_secs(6)).await;
    ensure!(nodes.status(2).await?.cluster_id.is_empty(), "a node that forgot its cluster founded another");
    nodes.ground()?.mend(&alone).await?;
    let up = |s: &GetClusterResponse| s.serving && s.nodes.iter().filter(|n| n.state == "up").count() == 3;
    for at in 0..3 {
        let status = nodes.until(at, "it is in again", SOON * 2, up).await?;
        ensure!(status.cluster_id == born, "node {at} is in another cluster");
    }
    Ok(())
}

/// On one machine the second process does not start. With a copy of the folder on another machine one of the two ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_that_is_started_twice_is_fenced() -> Result<()> {
    let Some(mut nodes) = Nodes::start_apart(Layout::Split, |_, _, config| Ok(config)).await? else {
        return Ok(());
    };
    // At other ports: what is in the way is the folder.
    let elsewhere = [
        "c2s.listen=[\"127.0.0.1:6222\"]",
        "c2s.direct_tls_listen=[\"127.0.0.1:6223\"]",
        "admin.listen=\"127.0.0.1:6280\"",
        "cluster.listen=\"10.77.0.2:8400\"",
    ];
    let mut words = vec!["serve"];
    words.extend(elsewhere.iter().flat_map(|key| ["--set", *key]));
    let (started, said) = nodes.offline(1, &words).await?;
    ensure!(!started && said.contains("is in use by another node"), "{said}");

    // The other frontend's machine gets a copy of this one's folder.
    let before = nodes.status(2).await?;
    let id = |status: &GetClusterResponse, name: &str| {
        status.nodes.iter().find(|n| n.name == name).map(|n| (n.id, n.incarnation))
    };
    let (first, _) = id(&before, &nodes.nodes[1].name).context("it is there")?;
    nodes.kill(0).await?;
    let data = nodes.nodes[0].folder.join("data");
    fs::remove_dir_all(&data)?;
    copied(&nodes.nodes[1].folder.join("data"), &data)?;
    nodes.spawn(0)?;
    let log = nodes.until_ended(1, SOON * 2).await?;
    ensure!(log.contains("another process came up as this node"), "{log}");
    let one = |s: &GetClusterResponse| {
        s.nodes.iter().filter(|n| n.id == first).all(|n| n.state == "up" && n.incarnation > 1)
    };
    nodes.until(2, "the copy is the node now", SOON, one).await?;
    Ok(())
}

fn copied(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copied(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

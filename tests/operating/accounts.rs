//! Accounts over real processes: disabled ones, removed ones, and what is left of them on every disk.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::admin::GetClusterResponse;
use store::engines::sled::{Config, Disk};
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes},
    people::{Person, befriend, go_online, ping},
    xml::Node,
};

/// One attempt to log in; the condition of the failure if it is refused.
async fn attempt(nodes: &Nodes, at: usize, who: &Person, password: &str) -> Result<Result<(), String>> {
    let (mut client, _) = Client::open(nodes.door(at), &who.host, false).await?;
    client.try_authenticate(&who.user, password, "SCRAM-SHA-256").await
}

/// The server ends the stream with this error and a text.
async fn is_told(client: &mut Client, condition: &str, word: &str) -> Result<()> {
    let heard = client.up_to_end().await?;
    let last = heard.last().context("the stream ended without a word")?;
    let names: Vec<&str> = last.nodes().map(|n| n.name.as_str()).collect();
    ensure!(last.name == "error" && names.contains(&condition), "{last:?}");
    let text = last.nodes().find(|n| n.name == "text").map(Node::text).unwrap_or_default();
    ensure!(text.contains(word), "`{text}`");
    Ok(())
}

/// What was sent before is where it goes: the server has answered something that came later.
async fn fence(client: &mut Client, host: &str) -> Result<()> {
    let id = unique("sent");
    client.send(&ping(host, &id)).await?;
    client.wait_for("a pong", |n| n.attr("id") == Some(&id)).await.map(drop)
}

/// The subscription of each item of a roster, or of a push.
fn subscriptions(iq: &Node) -> Vec<&str> {
    let query = iq.child("query", "jabber:iq:roster");
    query.into_iter().flat_map(Node::nodes).filter_map(|item| item.attr("subscription")).collect()
}

/// What this client sent to an account has come to its end: a request on the same way was answered, with a result
/// for a contact and with an error for a stranger, whether there is an account or not.
async fn behind(client: &mut Client, account: &str) -> Result<()> {
    let id = unique("behind");
    client.send(&ping(account, &id)).await?;
    let answer = client.wait_for("an answer", |n| n.attr("id") == Some(&id)).await?;
    ensure!(matches!(answer.attr("type"), Some("result" | "error")), "{answer:?}");
    Ok(())
}

fn chat(to: &str, body: &str) -> String {
    format!("<message to='{to}' type='chat'><body>{body}</body></message>")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_account_is_locked_at_every_node_and_loses_nothing() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    befriend(nodes.door(0), &alice, &bob).await?;
    let mut bobs = bob.come_online(nodes.door(0), "desk").await?;
    let mut phone = alice.come_online(nodes.door(1), "phone").await?;
    let mut pad = alice.come_online(nodes.door(2), "pad").await?;
    let jid = alice.bare();
    let of_alice = |n: &Node| n.name == "presence" && n.attr("from").is_some_and(|f| f.starts_with(&jid));
    for _ in 0..2 {
        bobs.wait_for("alice", |n| of_alice(n) && n.attr("type").is_none()).await?;
    }

    let said = nodes.cli(&["user", "disable", &jid]).await?;
    ensure!(said == format!("disabled {jid} (2 sessions ended)\n"), "{said}");
    is_told(&mut phone, "not-authorized", "disabled").await?;
    is_told(&mut pad, "not-authorized", "disabled").await?;
    for _ in 0..2 {
        bobs.wait_for("alice to leave", |n| of_alice(n) && n.attr("type") == Some("unavailable")).await?;
    }
    for at in 0..3 {
        let right = attempt(&nodes, at, &alice, &alice.password).await?;
        ensure!(right == Err("account-disabled".into()), "{right:?}");
        let wrong = attempt(&nodes, at, &alice, "wrong").await?;
        ensure!(wrong == Err("not-authorized".into()), "who does not know the password learns {wrong:?}");
    }
    let list = nodes.cli(&["user", "list", "--host", "localhost"]).await?;
    ensure!(list.contains(&format!("{jid} (disabled)\n")), "{list}");
    ensure!(list.contains(&format!("{}\n", bob.bare())), "{list}");
    let list: serde_json::Value =
        serde_json::from_str(&nodes.cli(&["user", "list", "--format", "json"]).await?)?;
    let state = |jid: &str| list.as_array()?.iter().find(|a| a["jid"] == *jid).map(|a| a["state"].clone());
    ensure!(state(&jid) == Some("disabled".into()) && state(&bob.bare()) == Some("open".into()), "{list}");

    // A new password does not open it, and messages wait.
    nodes.cli(&["user", "passwd", &jid, "--password", "another"]).await?;
    ensure!(attempt(&nodes, 0, &alice, "another").await? == Err("account-disabled".into()), "opened");
    bobs.send(&chat(&jid, "while you were locked out")).await?;
    fence(&mut bobs, "localhost").await?;

    let said = nodes.cli(&["user", "enable", &jid]).await?;
    ensure!(said == format!("enabled {jid}\n"), "{said}");
    let alice = Person { password: "another".into(), ..alice };
    let mut phone = alice.log_in(nodes.door(2), "phone").await?;
    let roster = go_online(&mut phone, None).await?;
    ensure!(subscriptions(&roster) == ["both"], "{roster:?}");
    phone.wait_for("what waited", |n| n.name == "message").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_leaves_sessions_alone_unless_they_are_to_end() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let jid = alice.bare();
    let mut phone = alice.come_online(nodes.door(0), "phone").await?;
    let said = nodes.cli(&["user", "passwd", &jid, "--password", "second"]).await?;
    ensure!(said == format!("password of {jid} set\n"), "{said}");
    for at in 0..3 {
        let old = attempt(&nodes, at, &alice, &alice.password).await?;
        ensure!(old == Err("not-authorized".into()), "{old:?}");
        ensure!(attempt(&nodes, at, &alice, "second").await? == Ok(()), "the new one is not known");
    }
    fence(&mut phone, "localhost").await?;
    let said = nodes.cli(&["user", "passwd", &jid, "--password", "third", "--end-sessions"]).await?;
    ensure!(said == format!("password of {jid} set (1 session ended)\n"), "{said}");
    is_told(&mut phone, "policy-violation", "").await
}

/// Everything that a node's store holds, as it copies it to another.
fn live(folder: &Path) -> Result<Vec<u8>> {
    let disk = std::sync::Arc::new(Disk::open(&Config::new(folder))?);
    let mut copied = Vec::new();
    disk.copy().write_to(&mut copied)?;
    Ok(copied)
}

fn holds(bytes: &[u8], name: &str) -> bool {
    bytes.windows(name.len()).any(|w| w == name.as_bytes())
}

/// Where the name stands, for whoever looks for the cause.
fn around(bytes: &[u8], name: &str) -> String {
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes());
    let part = at.map(|at| &bytes[at.saturating_sub(80)..bytes.len().min(at + 160)]);
    part.map(|part| part.escape_ascii().to_string()).unwrap_or_default()
}

/// Waits until every backend has applied what any of them has.
async fn all_applied(nodes: &Nodes) -> Result<()> {
    let data = |status: &GetClusterResponse| status.groups.iter().find(|g| g.name == "data").cloned();
    let backends = || (0..nodes.nodes.len()).filter(|at| nodes.nodes[*at].roles.contains(&"backend"));
    let mut newest = 0;
    for at in backends() {
        newest = newest.max(data(&nodes.status(at).await?).map_or(0, |group| group.last_log));
    }
    for at in backends() {
        let applied = |s: &GetClusterResponse| data(s).is_none_or(|group| group.applied >= newest);
        nodes.until(at, "everything is applied", Duration::from_secs(15), applied).await?;
    }
    Ok(())
}

/// Whether any file of a store that was made anew from these records holds the name.
fn holds_in_files(copied: &[u8], folder: &Path, name: &str) -> Result<bool> {
    let disk = Disk::open(&Config::new(folder))?;
    disk.install(&mut &copied[..], (b"scan", b""))?;
    disk.sync()?;
    drop(disk);
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if holds(&fs::read(&path)?, name) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Removes an account that has contacts, requests and messages while more messages and logins come, and looks
/// for its name on every disk.
async fn nothing_is_left(layout: Layout) -> Result<()> {
    let mut nodes = Nodes::start(layout).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let carol = Person::with_account(&nodes, "carol").await?;
    befriend(nodes.door(0), &alice, &bob).await?;
    let jid = alice.bare();
    let mut bobs = bob.come_online(nodes.door(0), "desk").await?;
    let mut carols = carol.come_online(nodes.door(1), "pc").await?;
    carols.send(&format!("<presence type='subscribe' to='{jid}'/>")).await?;
    for n in 0..20 {
        bobs.send(&chat(&jid, &format!("message {n} for {}", alice.user))).await?;
    }
    behind(&mut bobs, &jid).await?;
    behind(&mut carols, &jid).await?;

    let said = nodes.cli(&["user", "remove", &jid]).await?;
    ensure!(said == format!("removed {jid} (0 sessions ended)\n"), "{said}");
    ensure!(attempt(&nodes, 0, &alice, &alice.password).await? == Err("not-authorized".into()), "logged in");
    ensure!(!nodes.cli(&["user", "list"]).await?.contains(&jid), "it is listed");

    // A new one of that name has nothing of the old one.
    nodes.add_user(&jid, &alice.password).await?;
    let mut phone = alice.log_in(nodes.door(1), "phone").await?;
    let roster = go_online(&mut phone, None).await?;
    ensure!(subscriptions(&roster).is_empty(), "{roster:?}");
    fence(&mut phone, "localhost").await?;
    let id = unique("last");
    phone.send(&ping("localhost", &id)).await?;
    let pong = phone.next().await?;
    ensure!(pong.attr("id") == Some(&id), "the new account gets {pong:?}");
    phone.close().await?;

    // While it is removed, messages come, and its owner tries to log in.
    let door = nodes.door(1);
    let knocks = {
        let alice = alice.clone();
        tokio::spawn(async move {
            let mut knocks = 0;
            // Until it is gone, which is when even the right password is wrong.
            while let Ok(mut client) = alice.log_in(door, "phone").await {
                knocks += 1;
                drop(client.send("<presence/>").await);
                drop(client);
            }
            knocks
        })
    };
    let said = {
        let words = ["user", "remove", &jid];
        let removal = nodes.cli(&words);
        let flood = async {
            for n in 0..200 {
                bobs.send(&chat(&jid, &format!("late {n} for {}", alice.user))).await?;
            }
            fence(&mut bobs, "localhost").await
        };
        let (said, flooded) = tokio::join!(removal, flood);
        flooded?;
        said?
    };
    ensure!(said.starts_with(&format!("removed {jid} (")), "{said}");
    tokio::time::timeout(Duration::from_secs(30), knocks).await.context("logins without end")??;
    ensure!(attempt(&nodes, 0, &alice, &alice.password).await? == Err("not-authorized".into()), "logged in");

    behind(&mut bobs, &jid).await?;
    behind(&mut carols, &jid).await?;

    // What the others have of it is theirs to forget.
    bobs.wait_for("the end of the subscriptions", |n| subscriptions(n) == ["none"]).await?;
    for client in [&mut bobs, &mut carols] {
        let item = format!("<item jid='{jid}' subscription='remove'/>");
        let set = format!("<iq type='set' id='forget'><query xmlns='jabber:iq:roster'>{item}</query></iq>");
        client.send(&set).await?;
        client.wait_for("an answer", |n| n.attr("id") == Some("forget")).await?;
    }
    ensure!(!nodes.cli(&["user", "list"]).await?.contains(&jid), "it is listed");

    for client in [bobs, carols] {
        client.close().await?;
    }
    all_applied(&nodes).await?;
    nodes.stop_all(Duration::from_secs(30)).await?;
    let keepers = nodes.nodes.iter().filter(|n| n.roles.contains(&"backend"));
    let stores: Vec<_> = keepers.map(|n| (n.name.clone(), n.folder.join("data/store"))).collect();
    ensure!(stores.len() == if layout == Layout::One { 1 } else { 3 }, "{stores:?}");
    for (name, folder) in stores {
        let records = live(&folder)?;
        ensure!(holds(&records, &bob.user), "the records of {name} cannot be read so");
        let left = around(&records, &alice.user);
        ensure!(left.is_empty(), "{name} still holds records of the removed account: {left}");
        let anew = folder.with_file_name("anew");
        ensure!(!holds_in_files(&records, &anew, &alice.user)?, "{name}: in the files of a compacted store");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_removed_account_on_a_single_node() -> Result<()> {
    nothing_is_left(Layout::One).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_removed_account_on_any_backend() -> Result<()> {
    nothing_is_left(Layout::Split).await
}

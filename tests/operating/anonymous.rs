//! Clients without an account, on a host that lets them in, in a cluster.

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, offers},
    nodes::{Layout, Nodes},
    people::{Person, go_online, ping},
    xml::{CLIENT, Node},
};

const HOST: &str = "other.example";

async fn start() -> Result<Nodes> {
    Nodes::start_edited(Layout::Three, |_, _, config| {
        Ok(format!("{config}\n[auth]\nanonymous_hosts = [\"{HOST}\"]\n"))
    })
    .await
}

/// A client that nobody knows, available at this node; its bare address.
async fn guest(nodes: &Nodes, at: usize) -> Result<(Client, String)> {
    let (mut client, features) = Client::open(nodes.door(at), HOST, at == 0).await?;
    ensure!(offers(&features, "ANONYMOUS"), "ANONYMOUS is not offered: {features:?}");
    client.authenticate("", "", "ANONYMOUS").await?;
    client.bind(None).await?;
    go_online(&mut client, None).await?;
    let jid = client.jid.clone().context("bound")?;
    let bare = jid.split('/').next().context("a bare address")?.to_owned();
    ensure!(bare.len() == 36 + 1 + HOST.len() && bare.ends_with(HOST), "a strange name: {bare}");
    Ok((client, bare))
}

fn is_error(node: &Node, condition: &str) -> bool {
    let error = node.child("error", CLIENT).filter(|_| node.attr("type") == Some("error"));
    error.is_some_and(|error| error.nodes().any(|n| n.name == condition))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_account_talks_on_its_host_and_leaves_nothing_behind() -> Result<()> {
    let nodes = start().await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let mut known = alice.come_online(nodes.door(2), "phone").await?;
    let (mut one, one_bare) = guest(&nodes, 0).await?;
    let (mut two, two_bare) = guest(&nodes, 1).await?;
    ensure!(one_bare != two_bare, "one name for two");
    let (one_jid, two_jid) = (one.jid.clone().context("bound")?, two.jid.clone().context("bound")?);

    one.send(&format!("<message to='{two_jid}' type='chat'><body>over there?</body></message>")).await?;
    let heard = two.next().await?;
    ensure!(heard.attr("from") == Some(&one_jid), "{heard:?}");
    let elsewhere =
        format!("<message to='{}' id='far' type='chat'><body>hello</body></message>", alice.bare());
    let roster = "<query xmlns='jabber:iq:roster'><item jid='a@other.example'/></query>";
    let refused = [
        elsewhere,
        ping("localhost", "far"),
        format!("<presence to='{two_bare}' type='subscribe' id='far'/>"),
        format!("<iq type='set' id='far'>{roster}</iq>"),
        "<iq type='set' to='other.example' id='far'><query xmlns='jabber:iq:register'><remove/></query></iq>"
            .into(),
    ];
    for xml in refused {
        one.send(&xml).await?;
        let answer = one.next().await?;
        ensure!(is_error(&answer, "forbidden"), "{xml} is answered by {answer:?}");
    }
    one.send(&ping(HOST, "near")).await?;
    ensure!(one.next().await?.attr("type") == Some("result"), "the own host does not answer");
    one.send("<iq type='get' id='self'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>").await?;
    let info = one.next().await?;
    let query = info.child("query", "http://jabber.org/protocol/disco#info").context("no disco#info")?;
    let is_anonymous =
        |n: &Node| n.attr("category") == Some("account") && n.attr("type") == Some("anonymous");
    ensure!(query.nodes().any(is_anonymous), "{info:?}");
    // Who has an account may write to who has none.
    known.send(&format!("<message to='{one_jid}' type='chat'><body>hello</body></message>")).await?;
    ensure!(one.next().await?.attr("from").is_some_and(|from| from.starts_with(&alice.bare())));

    one.close().await?;
    // Nobody is told whether a name that nobody has any more was one, and nothing is kept for it.
    two.send(&format!("<message to='{one_bare}' id='late' type='chat'><body>gone?</body></message>")).await?;
    two.send(&ping(HOST, "behind")).await?;
    let next = two.next().await?;
    ensure!(next.attr("id") == Some("behind"), "{next:?}");
    known.send(&ping("localhost", "quiet")).await?;
    let next = known.next().await?;
    ensure!(next.attr("id") == Some("quiet"), "something came from a guest: {next:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_becomes_who_has_no_account() -> Result<()> {
    let nodes = start().await?;
    let (_client, bare) = guest(&nodes, 0).await?;
    // Somebody who saw the name makes an account of it.
    nodes.add_user(&bare, "a password").await?;
    let user = bare.split('@').next().context("a name")?;
    let (mut thief, _) = Client::open(nodes.door(1), HOST, true).await?;
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "PLAIN"] {
        let tried = thief.try_authenticate(user, "a password", mechanism).await?;
        ensure!(tried == Err("not-authorized".into()), "{mechanism}: {tried:?}");
    }
    let (mut client, features) = Client::open(nodes.door(1), "localhost", true).await?;
    ensure!(!offers(&features, "ANONYMOUS"), "ANONYMOUS is offered on another host");
    let tried = client.try_authenticate("", "", "ANONYMOUS").await?;
    ensure!(tried == Err("invalid-mechanism".into()), "{tried:?}");
    Ok(())
}

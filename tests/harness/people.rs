//! People with accounts: who logs in, goes online, makes friends.

use anyhow::{Context, Result, ensure};

use crate::{
    client::{Client, Door, FENCE, Login, unique},
    nodes::Nodes,
    xml::{Node, escape},
};

/// Someone with an account.
#[derive(Clone, Debug)]
pub struct Person {
    pub user: String,
    pub host: String,
    pub password: String,
}

impl Person {
    /// Someone at `localhost` whose name nobody else has, with an account.
    pub async fn with_account(nodes: &Nodes, name: &str) -> Result<Person> {
        let person =
            Person { user: unique(name), host: "localhost".into(), password: format!("secret of {name}") };
        nodes.add_user(&person.bare(), &person.password).await?;
        Ok(person)
    }

    /// The address of the account.
    pub fn bare(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }

    /// Logs in and binds; sends nothing further.
    pub async fn log_in(&self, door: Door, resource: &str) -> Result<Client> {
        let (user, host, password) = (&self.user, &self.host, &self.password);
        let resource = Some(resource);
        Client::log_in(
            door,
            &Login { user, host, password, resource, mechanism: "SCRAM-SHA-256", direct: false },
        )
        .await
    }

    /// Logs in, asks for the roster, becomes available.
    pub async fn come_online(&self, door: Door, resource: &str) -> Result<Client> {
        let mut client = self.log_in(door, resource).await?;
        go_online(&mut client, None).await?;
        Ok(client)
    }
}

/// Asks for the roster, sends initial presence and waits until it comes back; gives the roster.
pub async fn go_online(client: &mut Client, priority: Option<i8>) -> Result<Node> {
    let jid = client.jid.clone().context("not bound")?;
    let id = unique("roster");
    client.send(&format!("<iq type='get' id='{id}'><query xmlns='jabber:iq:roster'/></iq>")).await?;
    let roster = client.wait_for("the roster", |n| n.attr("id") == Some(&id)).await?;
    ensure!(roster.attr("type") == Some("result"), "no roster: {}", roster.pretty().join("\n"));
    let priority = priority.map(|p| format!("<priority>{p}</priority>")).unwrap_or_default();
    client.send(&format!("<presence>{priority}</presence>")).await?;
    // RFC 6121, 4.2.2: the session that sends initial presence gets it too.
    let own = |n: &Node| n.name == "presence" && n.attr("from") == Some(&jid) && n.attr("type").is_none();
    client.wait_for("its own presence", own).await?;
    Ok(roster)
}

/// Both ask, both grant; done when both rosters say so and both have left.
pub async fn befriend(door: Door, a: &Person, b: &Person) -> Result<()> {
    let (a_jid, b_jid) = (escape(&a.bare()), escape(&b.bare()));
    let mut first = a.come_online(door, "befriending").await?;
    let mut second = b.come_online(door, "befriending").await?;
    let is = |node: &Node, type_: &str| node.name == "presence" && node.attr("type") == Some(type_);
    first.send(&format!("<presence type='subscribe' to='{b_jid}'/>")).await?;
    second.wait_for("a request", |n| is(n, "subscribe")).await?;
    second.send(&format!("<presence type='subscribed' to='{a_jid}'/>")).await?;
    first.wait_for("the grant", |n| is(n, "subscribed")).await?;
    second.send(&format!("<presence type='subscribe' to='{a_jid}'/>")).await?;
    first.wait_for("a request", |n| is(n, "subscribe")).await?;
    first.send(&format!("<presence type='subscribed' to='{b_jid}'/>")).await?;
    first.wait_for("a full subscription", |n| says_both(n, &b.bare())).await?;
    second.wait_for("a full subscription", |n| says_both(n, &a.bare())).await?;
    leave(first).await?;
    leave(second).await
}

/// Becomes unavailable and closes the stream; when it is done every contact has been told, so that nobody who logs in
/// later hears of it.
async fn leave(mut client: Client) -> Result<()> {
    let jid = client.jid.clone().context("not bound")?;
    client.send("<presence type='unavailable'/>").await?;
    // RFC 6121, 4.5.2: it comes back behind all the others.
    let own = |n: &Node| n.attr("from") == Some(&jid) && n.attr("type") == Some("unavailable");
    client.wait_for("its own end", own).await?;
    client.close().await
}

/// An element that only its sender needs an answer to, to know that all before it was taken.
pub fn ping(to: &str, id: &str) -> String {
    format!("<iq type='get' to='{}' id='{}'><ping xmlns='urn:xmpp:ping'/></iq>", escape(to), escape(id))
}

/// A message that only marks a place in what the session that it names hears. It reaches it whoever sends it
/// (RFC 6121, 8.5.3.1), where a ping would ask for presence that is shared.
pub fn mark(to: &str, id: &str) -> String {
    format!(
        "<message type='headline' to='{}' id='{}'><mark xmlns='urn:example:mark'/></message>",
        escape(to),
        escape(id)
    )
}

/// What `client` hears before a ping of its own, and a message of another if there is one, came through.
pub async fn fence(client: &mut Client, other: Option<&mut Client>) -> Result<Vec<Node>> {
    let mut ids = vec![unique(FENCE.trim_end_matches('-'))];
    client.send(&ping("localhost", &ids[0])).await?;
    if let Some(other) = other {
        let id = unique(FENCE.trim_end_matches('-'));
        other.send(&mark(client.jid.as_deref().context("not bound")?, &id)).await?;
        ids.push(id);
    }
    client.up_to_fences(ids).await
}

fn says_both(push: &Node, jid: &str) -> bool {
    let query = push.child("query", "jabber:iq:roster");
    let item = query.and_then(|q| q.child("item", "jabber:iq:roster"));
    item.is_some_and(|i| i.attr("jid") == Some(jid) && i.attr("subscription") == Some("both"))
}

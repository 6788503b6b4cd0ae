//! An ordinary day of clients that nobody here wrote: slixmpp and xmpp.js.
//!
//! Each logs in at one node, sees what comes to another client of its account, loses its connection while somebody
//! writes, comes again at another node and has missed nothing; it reads its archive page by page, shows a picture, keeps
//! a room in mind, and blocks somebody for a while. Clients of our own see the other side of all of it.

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes},
    people::{Person, befriend},
    xml::{CLIENT, Node},
};

use crate::{
    gate::Gate,
    script::{Library, Script},
};

const STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// How many messages come to the client that is back.
const MANY: usize = 20;
/// Of both scripts: messages of the archive on a page.
const PAGE: usize = 7;
/// Of the picture that all have.
pub const SHA1: &str = "752b255414f407588018dac538926cea528ab8c7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_slixmpp() -> Result<()> {
    day_of(Library::Slixmpp).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_xmpp_js() -> Result<()> {
    day_of(Library::XmppJs).await
}

async fn day_of(library: Library) -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let lived = day(&nodes, library).await;
    if lived.is_err() {
        nodes.keep();
    }
    lived
}

/// At the host that keeps an archive.
pub async fn someone(nodes: &Nodes, name: &str) -> Result<Person> {
    someone_at(nodes, name, "other.example").await
}

pub async fn someone_at(nodes: &Nodes, name: &str, host: &str) -> Result<Person> {
    let person = Person { user: unique(name), host: host.into(), password: format!("secret of {name}") };
    nodes.add_user(&person.bare(), &person.password).await?;
    Ok(person)
}

async fn day(nodes: &Nodes, library: Library) -> Result<()> {
    let (alice, bob) = (someone(nodes, "alice").await?, someone(nodes, "bob").await?);
    befriend(nodes.door(1), &alice, &bob).await?;
    let gate = Gate::before(nodes.door(0)).await?;
    let door = gate.door().c2s;
    let (ip, port, jid) = (door.ip().to_string(), door.port().to_string(), alice.bare());
    let mut phone = Script::start(library, "daily", [&*jid, &alice.password, &ip, &port])?;
    if library == Library::XmppJs {
        phone.tells("authenticates by SCRAM-SHA-1").await?;
    }
    phone.tells("online").await?;
    let mut desk = alice.come_online(nodes.door(1), "desk").await?;
    let mut laptop = bob.come_online(nodes.door(1), "laptop").await?;
    // Before that, what is said to all of alice goes to the desk alone (RFC 6121, 8.5.2.1.1).
    let is_of_the_phone = |n: &Node| {
        let from = n.attr("from").and_then(|from| from.split_once('/'));
        n.is("presence", CLIENT) && from.is_some_and(|(of, resource)| of == jid && resource != "desk")
    };
    laptop.wait_for("that the phone is there", is_of_the_phone).await?;

    say(&mut laptop, &format!("{jid}/desk"), "one").await?;
    phone.tells("carbon: one").await?;

    gate.shut().await?;
    say(&mut laptop, &jid, "two").await?;
    desk.wait_for("what is said meanwhile", |n| body(n).as_deref() == Some("two")).await?;
    gate.open(nodes.door(2));
    if library == Library::XmppJs {
        // By the token that came with the first login (XEP-0484), with the resumption in it.
        phone.tells("authenticates by HT-SHA-256-NONE").await?;
    }
    phone.tells("resumed").await?;
    // xmpp.js counts no answers to its own requests: so the last that it has had comes again.
    phone.tells_past("carbon: one", "heard: two").await?;
    let many: Vec<String> = (0..MANY).map(|nth| format!("p{nth}")).collect();
    for text in &many {
        say(&mut laptop, &jid, text).await?;
        phone.tells(&format!("heard: {text}")).await?;
    }

    phone.order(&format!("archive {}", bob.bare())).await?;
    // slixmpp goes on until a page is empty.
    let pages = (2 + MANY).div_ceil(PAGE) + usize::from(library == Library::Slixmpp);
    phone.tells(&format!("archive: one two {} in {pages} pages", many.join(" "))).await?;

    show_a_picture(&mut phone, &mut desk).await?;
    keep_a_room_in_mind(&mut phone, &mut desk).await?;
    block(&mut phone, &mut laptop, &alice, &bob).await?;

    phone.order("end").await?;
    phone.rest().await?;
    Ok(())
}

pub async fn say(from: &mut Client, to: &str, text: &str) -> Result<()> {
    from.send(&format!("<message type='chat' to='{to}'><body>{text}</body></message>")).await
}

pub fn body(node: &Node) -> Option<String> {
    node.child("body", CLIENT).map(Node::text)
}

/// What the server answers to a request of our own client.
async fn ask(client: &mut Client, payload: &str) -> Result<Node> {
    let id = unique("asked");
    client.send(&format!("<iq type='get' id='{id}'>{payload}</iq>")).await?;
    let answer = client.wait_for("an answer", |n| n.attr("id") == Some(&id)).await?;
    ensure!(answer.attr("type") == Some("result"), "{}", answer.pretty().join("\n"));
    Ok(answer)
}

/// Published the new way, it is there for who asks the old way (XEP-0398).
async fn show_a_picture(phone: &mut Script, desk: &mut Client) -> Result<()> {
    phone.order("avatar").await?;
    phone.tells(&format!("avatar: {SHA1}")).await?;
    let card = ask(desk, "<vCard xmlns='vcard-temp'/>").await?.pretty().join("\n");
    ensure!(card.contains("iVBORw0KGgo") && card.contains("image/png"), "{card}");
    Ok(())
}

/// Kept the new way (XEP-0402), it is there for who asks the old way (XEP-0048).
async fn keep_a_room_in_mind(phone: &mut Script, desk: &mut Client) -> Result<()> {
    phone.order("bookmark room@rooms.example").await?;
    phone.tells("bookmarks: room@rooms.example").await?;
    let asked = "<query xmlns='jabber:iq:private'><storage xmlns='storage:bookmarks'/></query>";
    let storage = ask(desk, asked).await?.pretty().join("\n");
    ensure!(storage.contains("room@rooms.example") && storage.contains("A room"), "{storage}");
    Ok(())
}

async fn block(phone: &mut Script, laptop: &mut Client, alice: &Person, bob: &Person) -> Result<()> {
    phone.order(&format!("block {}", bob.bare())).await?;
    phone.tells(&format!("blocked: {}", bob.bare())).await?;
    say(laptop, &alice.bare(), "unheard").await?;
    let refused = laptop.wait_for("an error", |n| n.attr("type") == Some("error")).await?;
    let error = refused.child("error", CLIENT).context("no error")?;
    // XEP-0191, 3.2.
    ensure!(error.child("service-unavailable", STANZAS).is_some(), "{}", refused.pretty().join("\n"));
    phone.order(&format!("unblock {}", bob.bare())).await?;
    phone.tells("unblocked").await?;
    say(laptop, &alice.bare(), "three").await?;
    phone.tells("heard: three").await
}

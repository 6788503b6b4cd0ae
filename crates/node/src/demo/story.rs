//! What alice and bob do on their nodes, each step checked.

use std::time::{Duration, Instant};

use jid::{BareJid, FullJid};
use stanza::{Element, Kind, Stanza, ns};

use super::client::{Client, ClientError};

/// Numbered messages that are sent in one go.
pub const MESSAGES: usize = 200;

/// One of the two.
pub struct Person {
    pub client: Client,
    pub jid: FullJid,
}

impl Person {
    fn account(&self) -> BareJid {
        self.jid.to_bare()
    }
}

/// What was measured on the way.
pub struct Measured {
    /// From the sending of a message to its answer: two crossings of the cluster.
    pub round_trip: Duration,
    /// Time for all numbered messages.
    pub messages: Duration,
}

/// A chat message.
pub fn chat(text: &str) -> Stanza {
    let body = Element::builder("body", ns::CLIENT).append(text).build();
    Stanza::message(Some("chat")).with_child(&body)
}

/// Asks for the roster and becomes available.
pub async fn appear(person: &mut Person) -> Result<(), ClientError> {
    let query = Element::builder("query", ns::ROSTER).build();
    person.client.send(&Stanza::iq("get", "roster", Some(&query))).await?;
    person.client.wait("the roster", |s| is(s, Kind::Iq, "result") && id(s) == "roster").await?;
    person.client.send(&Stanza::presence(None)).await?;
    let me = person.jid.clone();
    let own = move |s: &Stanza| is(s, Kind::Presence, "") && from(s) == me.as_str();
    person.client.wait("its own presence", own).await?;
    Ok(())
}

/// `one` asks to see the presence of `other`, who agrees (RFC 6121, 3.1).
pub async fn subscribe(one: &mut Person, other: &mut Person, then: &str) -> Result<(), ClientError> {
    one.client.send(&Stanza::presence(Some("subscribe")).with_to(other.account())).await?;
    let asker = one.account();
    let asked = |s: &Stanza| is(s, Kind::Presence, "subscribe") && from(s) == asker.as_str();
    other.client.wait("the request to subscribe", asked).await?;
    other.client.send(&Stanza::presence(Some("subscribed")).with_to(one.account())).await?;

    let contact = other.account();
    let pushed = |s: &Stanza| push(s, contact.as_str()).as_deref() == Some(then);
    one.client.wait("the roster push", pushed).await?;
    let sender = other.jid.clone();
    let seen = |s: &Stanza| is(s, Kind::Presence, "") && from(s) == sender.as_str();
    one.client.wait("the presence of the contact", seen).await?;
    Ok(())
}

/// `one` goes away, which `other` sees.
pub async fn go_away(one: &mut Person, other: &mut Person) -> Result<(), ClientError> {
    let show = Element::builder("show", ns::CLIENT).append("away").build();
    one.client.send(&Stanza::presence(None).with_child(&show)).await?;
    let sender = one.jid.clone();
    let away = |s: &Stanza| {
        let show = s.child("show", ns::CLIENT).map(Element::text);
        is(s, Kind::Presence, "") && from(s) == sender.as_str() && show.as_deref() == Some("away")
    };
    other.client.wait("the presence `away`", away).await?;
    Ok(())
}

/// A message to the account, an answer to the session, then many in order.
pub async fn talk(one: &mut Person, other: &mut Person) -> Result<Measured, ClientError> {
    let start = Instant::now();
    one.client.send(&chat("Wherefore art thou?").with_to(other.account())).await?;
    heard(other, one.jid.as_str(), "Wherefore art thou?").await?;
    other.client.send(&chat("On another node.").with_to(one.jid.clone())).await?;
    heard(one, other.jid.as_str(), "On another node.").await?;
    let round_trip = start.elapsed();

    let start = Instant::now();
    for n in 1..=MESSAGES {
        one.client.send(&chat(&format!("number {n}")).with_to(other.jid.clone())).await?;
    }
    for n in 1..=MESSAGES {
        // whatever message comes next must be the next number: order is kept (and so nothing is lost)
        let sender = one.jid.clone();
        let any = move |s: &Stanza| s.head.kind == Kind::Message && from(s) == sender.as_str();
        let next = other.client.wait(&format!("message number {n}"), any).await?;
        let text = text(&next);
        if text != format!("number {n}") {
            return Err(ClientError::Lost { who: other.jid.to_string(), reason: format!("order: `{text}`") });
        }
    }
    Ok(Measured { round_trip, messages: start.elapsed() })
}

async fn heard(person: &mut Person, sender: &str, expected: &str) -> Result<(), ClientError> {
    let wanted = |s: &Stanza| s.head.kind == Kind::Message && from(s) == sender && text(s) == expected;
    person.client.wait(&format!("the message `{expected}`"), wanted).await?;
    Ok(())
}

fn is(stanza: &Stanza, kind: Kind, type_: &str) -> bool {
    stanza.head.kind == kind && stanza.head.type_.as_deref().unwrap_or("") == type_
}

fn id(stanza: &Stanza) -> &str {
    stanza.head.id.as_deref().unwrap_or("")
}

fn from(stanza: &Stanza) -> &str {
    stanza.head.from.as_ref().map_or("", |from| from.as_str())
}

fn text(stanza: &Stanza) -> String {
    stanza.child("body", ns::CLIENT).map(Element::text).unwrap_or_default()
}

/// The subscription that a roster push tells for a contact, if the stanza is one.
fn push(stanza: &Stanza, contact: &str) -> Option<String> {
    if !is(stanza, Kind::Iq, "set") {
        return None;
    }
    let query = stanza.child("query", ns::ROSTER)?;
    let item = query.children().find(|item| item.attr("jid") == Some(contact))?;
    item.attr("subscription").map(str::to_owned)
}

//! Tests of `pep`, against servers in memory: requests, who hears of what, capabilities, last items.

mod audience;
mod bookmarks;
mod discovery;
mod requests;

use hooks::bench::{Bench, Client};
use stanza::{Kind, Stanza};

use super::*;
use crate::index::{ModulesConfig, modules};

/// Two nodes over one store.
fn bench() -> Bench {
    bench_of(ModulesConfig::default())
}

fn bench_of(config: ModulesConfig) -> Bench {
    Bench::cluster(2, &["localhost"], move || modules(&config))
}

/// What a client of these interests answers to disco#info.
fn info(interests: &[&str]) -> String {
    let features: String = interests.iter().map(|node| format!("<feature var='{node}+notify'/>")).collect();
    format!("<identity category='client' type='pc'/><feature var='urn:x'/>{features}")
}

fn query(inside: &str) -> String {
    format!("<query xmlns='{}'>{inside}</query>", caps::INFO)
}

/// A presence that announces them.
fn presence(interests: &[&str]) -> String {
    let query = stanza::dom::parse(query(&info(interests)).as_bytes()).unwrap();
    let ver = caps::tests::ver(&query);
    format!(
        "<presence><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:c' ver='{ver}'/></presence>"
    )
}

/// The question that the server asks a client, if it does.
fn asked(heard: &[Stanza]) -> Option<&Stanza> {
    heard.iter().find(|stanza| stanza.head.kind == Kind::Iq && stanza.child("query", caps::INFO).is_some())
}

/// Answers the server's question, which was asked.
async fn answer(client: &Client, question: &Stanza, inside: &str) {
    let id = question.head.id.as_deref().unwrap();
    client.send(&format!("<iq type='result' to='localhost' id='{id}'>{}</iq>", query(inside))).await;
}

/// Lets the client come online with interests, and forgets what it heard.
async fn come(bench: &Bench, client: &Client, interests: &[&str]) {
    client.hears();
    client.send(&presence(interests)).await;
    if let Some(question) = asked(&client.hears_stanzas()) {
        answer(client, question, &info(interests)).await;
    }
    while bench.wait().await > 0 {}
    client.hears();
}

/// The payload of the answer to a request, or the condition with that of publish-subscribe.
async fn ask(client: &Client, to: &str, kind: &str, payload: &str) -> String {
    client.hears();
    let to = if to.is_empty() { String::new() } else { format!(" to='{to}@localhost'") };
    client.send(&format!("<iq{to} type='{kind}' id='q1'>{payload}</iq>")).await;
    let heard = client.hears_stanzas();
    let answers: Vec<&Stanza> =
        heard.iter().filter(|stanza| stanza.head.id.as_deref() == Some("q1")).collect();
    assert_eq!(answers.len(), 1, "{heard:?}");
    match answers[0].as_error() {
        Some(error) => {
            let own = error.extra.first().map(|extra| format!(" {}", extra.name())).unwrap_or_default();
            format!("{}{own}", error.condition.tag())
        }
        None => String::from_utf8(answers[0].body().to_vec()).unwrap(),
    }
}

async fn set(client: &Client, action: &str) -> String {
    ask(client, "", "set", &format!("<pubsub xmlns='{}'>{action}</pubsub>", pubsub::NS)).await
}

async fn own(client: &Client, kind: &str, action: &str) -> String {
    ask(client, "", kind, &format!("<pubsub xmlns='{}'>{action}</pubsub>", pubsub::OWNER)).await
}

async fn get(client: &Client, of: &str, action: &str) -> String {
    ask(client, of, "get", &format!("<pubsub xmlns='{}'>{action}</pubsub>", pubsub::NS)).await
}

fn options(fields: &[(&str, &str)]) -> String {
    form("publish-options", "publish-options", fields)
}

fn form(element: &str, kind: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(var, value)| {
            let values: String = value.split(',').map(|value| format!("<value>{value}</value>")).collect();
            format!("<field var='pubsub#{var}'>{values}</field>")
        })
        .collect();
    format!(
        "<{element}><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'>\
         <value>{}#{kind}</value></field>{fields}</x></{element}>",
        pubsub::NS
    )
}

fn publication(node: &str, id: &str) -> String {
    format!("<publish node='{node}'><item id='{id}'><t xmlns='urn:t'>{id}</t></item></publish>")
}

async fn publish(client: &Client, node: &str, id: &str) {
    let answer = set(client, &publication(node, id)).await;
    assert!(answer.contains(&format!("<item id='{id}'/>")), "{answer}");
}

/// What a client heard of nodes: whose, which, and what happened.
fn events(client: &Client) -> Vec<String> {
    let told = |stanza: &Stanza| {
        let event = stanza.child("event", pubsub::EVENT)?;
        let from = stanza.head.from.as_ref()?.as_str().to_owned();
        assert_eq!(stanza.head.type_.as_deref(), Some("headline"));
        assert_eq!(stanza.head.to.as_ref().map(Jid::as_str), Some(client.view().jid().as_str()));
        let what = event.children().next()?;
        let inside = what
            .children()
            .next()
            .map(|child| format!(" {} {}", child.name(), child.attr("id").unwrap_or_default()));
        Some(format!("{from} {} {}{}", what.name(), what.attr("node")?, inside.unwrap_or_default()))
    };
    client.hears_stanzas().iter().filter_map(told).collect()
}

fn nothing() -> Vec<String> {
    Vec::new()
}

/// Alice and Bob, who see each other; Alice is at the first node, Bob at the second.
async fn friends(bench: &Bench) -> (Client, Client) {
    let alice = bench.online_at(0, "alice@localhost/phone").await;
    let bob = bench.online_at(1, "bob@localhost/desk").await;
    befriend(&alice, &bob).await;
    while bench.wait().await > 0 {}
    alice.hears();
    bob.hears();
    (alice, bob)
}

async fn befriend(a: &Client, b: &Client) {
    let bare = |client: &Client| client.view().account().as_str().to_owned();
    for (one, other) in [(a, b), (b, a)] {
        one.send(&format!("<presence to='{}' type='subscribe'/>", bare(other))).await;
        other.send(&format!("<presence to='{}' type='subscribed'/>", bare(one))).await;
    }
}

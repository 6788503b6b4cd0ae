//! Rows 83 and 84: a resource that is asked for again, on the same stream or on another node.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{
    client::Client,
    nodes::{Layout, Nodes},
    people::{Person, go_online},
};
use tokio::time::Instant;

use crate::{
    door::Door,
    metric::{ended, stanzas},
    raw::Way,
};

/// Input: a second request for a resource on a bound stream.
///
/// Outcome: `not-allowed`; the session keeps the resource that it has.
#[tokio::test]
async fn row_083_a_stream_is_bound_once() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut session = door.session(way, &alice).await?;
            let bound = session.jid();
            let bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>other</resource></bind>";
            session.say(format!("<iq type='set' id='again'>{bind}</iq>")).await?;
            let error = session.stanza_error("not-allowed").await?;
            ensure!(error.attr("to") == Some(&*bound), "{error:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([stanzas("iq", "bounced").times(2)], deeds).await
}

/// Input: a full JID that is bound is bound again, on the same node.
///
/// Outcome: the older session ends with `conflict`, the newer one works.
#[tokio::test]
async fn row_084_the_newer_session_has_the_resource() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut old = door.authenticated(way, &alice).await?;
            old.bind(Some("phone")).await?;
            let mut new = door.authenticated(way, &alice).await?;
            new.bind(Some("phone")).await?;
            old.stream_error("conflict").await?;
            new.works_and_heard_nothing().await?;
        }
        Ok(())
    };
    Door::shared().await?.row([ended("displaced").times(2)], deeds).await
}

/// Input: a full JID that is bound is bound again on another node, while the older session still sends and then
/// loses its connection.
///
/// Outcome: the older one ends with `conflict`; its end takes nothing from the newer one, which every node goes on
/// to reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_084_a_session_that_was_replaced_on_another_node_changes_nothing() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let judged = replaced(&nodes).await;
    if judged.is_err() {
        nodes.keep();
    }
    nodes.stop_all(Duration::from_secs(20)).await?;
    judged
}

async fn replaced(nodes: &Nodes) -> Result<()> {
    let alice = Person::with_account(nodes, "alice").await?;
    let bob = Person::with_account(nodes, "bob").await?;
    let mut watcher = bob.come_online(nodes.door(2), "desk").await?;
    let mut old = alice.come_online(nodes.door(0), "phone").await?;
    let mut new = alice.log_in(nodes.door(1), "phone").await?;
    // What it says from now on is refused, or comes too late.
    let _ = old.send("<presence><status>late</status></presence>").await;
    let rest = old.up_to_end().await?;
    let conflict = |node: &tests::xml::Node| {
        node.name == "error" && node.child("conflict", "urn:ietf:params:xml:ns:xmpp-streams").is_some()
    };
    ensure!(rest.iter().any(conflict), "{rest:?}");
    drop(old);
    go_online(&mut new, None).await?;
    // A message to the account and one to the session come from another node to the one that has it now.
    for to in [alice.bare(), format!("{}/phone", alice.bare())] {
        reach(&mut watcher, &mut new, &to).await?;
    }
    Ok(())
}

async fn reach(from: &mut Client, to: &mut Client, address: &str) -> Result<()> {
    let text = format!("to {address}");
    from.send(&format!("<message to='{address}' type='chat'><body>{text}</body></message>")).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let heard = to.next_by(deadline).await?;
        if heard.nodes().any(|child| child.text() == text) {
            return Ok(());
        }
    }
}

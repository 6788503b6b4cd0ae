//! Rows 93 to 108: addresses, and who may say what in whose name.

use anyhow::{Result, ensure};
use tests::{
    people::{befriend, mark},
    xml::{CLIENT, Node, escape},
};

use crate::{
    door::Door,
    metric::{Metric, ended, stanzas, stanzas_refused, stream_errors},
    raw::{Raw, Way, stanza_condition},
};

const ROSTER: &str = "jabber:iq:roster";

/// What of that kind clients said.
fn read(kind: &str) -> Metric {
    Metric::named(&format!("rookery_stanzas_read_total{{kind=\"{kind}\"}}"))
}

/// What `raw` hears before a mark that `from` sends now: all that `from` caused before.
async fn up_to_mark(raw: &mut Raw, from: &mut Raw) -> Result<Vec<Node>> {
    from.say(mark(&raw.jid(), "marked")).await?;
    let mut before = Vec::new();
    loop {
        let node = raw.next().await?;
        if node.attr("id") == Some("marked") {
            return Ok(before);
        }
        before.push(node);
    }
}

fn lines(nodes: &[Node]) -> String {
    nodes.iter().flat_map(Node::pretty).collect::<Vec<_>>().join("\n")
}

/// Input: a stanza in the name of somebody else.
///
/// Outcome: the stream ends with `invalid-from`, and nothing is delivered.
#[tokio::test]
async fn row_093_a_stanza_in_another_name_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let mallory = door.person("mallory").await?;
        for way in Way::TLS {
            let mut raw = door.online(way, &mallory).await?;
            let witness = escape(door.witness());
            raw.say(format!("<message from='{witness}' to='{witness}'><body>a</body></message>")).await?;
            raw.stream_error("invalid-from").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("invalid-from").times(2)], deeds).await
}

/// Input: a stanza to what is no address.
///
/// Outcome: the stanza error `jid-malformed`; the stream lives.
#[tokio::test]
async fn row_095_an_address_that_is_none_is_answered() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.online(Way::Direct, &alice).await?;
        raw.say("<message to='@@@' id='1'><body>a</body></message>").await?;
        raw.stanza_error("jid-malformed").await?;
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas_refused()], deeds).await
}

/// Input: stanzas with the own bare address as `from`, with the full one, and with none.
///
/// Outcome: they arrive with the full address, those of subscriptions with the bare one.
#[tokio::test]
async fn row_094_an_own_or_missing_from_is_stamped() -> Result<()> {
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut alices = door.online(Way::Direct, &alice).await?;
        let mut bobs = door.online(Way::Direct, &bob).await?;
        let (full, bare, to) = (escape(&alices.jid()), escape(&alice.bare()), escape(&bobs.jid()));
        for from in [String::new(), format!("from='{bare}'"), format!("from='{full}'")] {
            alices.say(format!("<message {from} to='{to}'><body>a</body></message>")).await?;
            alices.say(format!("<presence {from} to='{to}'/>")).await?;
            alices.say(format!("<presence {from} to='{to}' type='subscribe'/>")).await?;
        }
        let heard = up_to_mark(&mut bobs, &mut alices).await?;
        let from = |type_: Option<&str>| {
            let those = heard.iter().filter(|n| n.attr("type") == type_);
            those.filter_map(|n| n.attr("from")).collect::<Vec<_>>()
        };
        ensure!(from(None) == [alices.jid().as_str(); 6], "{}", lines(&heard));
        ensure!(from(Some("subscribe")) == [alice.bare().as_str()], "{}", lines(&heard));
        Ok(())
    };
    Door::shared().await?.row([stanzas("message", "delivered").times(3)], deeds).await
}

/// Input: an iq without an id, of an unknown type, with no payload and with two, and answers of that kind.
///
/// Outcome: `bad-request`; answers are never answered.
#[tokio::test]
async fn row_096_an_iq_that_is_none_is_refused() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.online(Way::Direct, &alice).await?;
        let ping = "<ping xmlns='urn:xmpp:ping'/>";
        for bad in [
            format!("<iq type='get' to='localhost'>{ping}</iq>"),
            format!("<iq type='wish' id='1' to='localhost'>{ping}</iq>"),
            format!("<iq id='1' to='localhost'>{ping}</iq>"),
            "<iq type='get' id='1' to='localhost'/>".to_owned(),
            format!("<iq type='set' id='1' to='localhost'>{ping}{ping}</iq>"),
        ] {
            raw.say(&bad).await?;
            raw.stanza_error("bad-request").await?;
        }
        for silent in [
            "<iq type='result' id='1' to='localhost'/>".to_owned(),
            format!("<iq type='result' id='1' to='localhost'>{ping}{ping}</iq>"),
            "<iq type='error' id='1' to='localhost'/>".to_owned(),
            "<iq type='result' to='localhost'/>".to_owned(),
        ] {
            raw.say(&silent).await?;
        }
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas_refused().times(5)], deeds).await
}

/// Input: results and errors that nobody asked for, to the host, to the own account and to that of another, with
/// the ids of a ping, a roster and a push.
///
/// Outcome: they are ignored, and change nothing.
#[tokio::test]
async fn row_097_answers_that_nobody_asked_for_are_ignored() -> Result<()> {
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut raw = door.online(Way::Direct, &alice).await?;
        let item =
            "<query xmlns='jabber:iq:roster'><item jid='mallory@localhost' subscription='both'/></query>";
        let own = format!("to='{}'", escape(&alice.bare()));
        let other = format!("to='{}'", escape(&bob.bare()));
        for to in ["", "to='localhost'", &own, &other] {
            for id in ["push-0000000000000000", "roster", "ping"] {
                raw.say(format!("<iq type='result' id='{id}' {to}>{item}</iq>")).await?;
                raw.say(format!("<iq type='error' id='{id}' {to}>{item}</iq>")).await?;
            }
        }
        raw.works_and_heard_nothing().await?;
        ensure!(roster(&mut raw).await?.is_empty(), "the roster changed");
        Ok(())
    };
    Door::shared().await?.row([stanzas("iq", "ignored").times(12)], deeds).await
}

async fn roster(raw: &mut Raw) -> Result<Vec<String>> {
    raw.say("<iq type='get' id='the roster'><query xmlns='jabber:iq:roster'/></iq>").await?;
    let answer = raw.wait_for("the roster", |n| n.attr("id") == Some("the roster")).await?;
    let query = answer.child("query", ROSTER);
    let items = query.into_iter().flat_map(|query| query.nodes());
    Ok(items.filter_map(|item| item.attr("jid")).map(str::to_owned).collect())
}

/// Input: what looks like a roster push, from a stranger and from a contact, to a session and to the account.
///
/// Outcome: a stranger's goes nowhere; a contact's reaches the session under the contact's own address. No roster
/// changes.
#[tokio::test]
async fn row_098_a_push_of_another_changes_no_roster() -> Result<()> {
    let deeds = async |door: &Door| {
        let (mallory, bob) = (door.person("mallory").await?, door.person("bob").await?);
        let carol = door.person("carol").await?;
        befriend(door.addresses(), &bob, &carol).await?;
        let mut bobs = door.online(Way::Direct, &bob).await?;
        let push = |to: &str| {
            let item = "<item jid='evil@localhost' subscription='both'/>";
            format!(
                "<iq type='set' id='push' to='{}'><query xmlns='{ROSTER}'>{item}</query></iq>",
                escape(to)
            )
        };
        let mut mallorys = door.online(Way::Direct, &mallory).await?;
        mallorys.say(push(&bobs.jid())).await?;
        mallorys.stanza_error("service-unavailable").await?;
        mallorys.say(push(&bob.bare())).await?;
        mallorys.stanza_error("forbidden").await?;
        let heard = up_to_mark(&mut bobs, &mut mallorys).await?;
        ensure!(heard.is_empty(), "{}", lines(&heard));
        let mut carols = door.session(Way::Direct, &carol).await?;
        carols.say(push(&bob.bare())).await?;
        carols.stanza_error("forbidden").await?;
        carols.say(push(&bobs.jid())).await?;
        let heard = bobs.next().await?;
        ensure!(heard.attr("from") == Some(carols.jid().as_str()), "{}", lines(&[heard]));
        ensure!(roster(&mut bobs).await? == [carol.bare()], "the roster changed");
        Ok(())
    };
    Door::shared().await?.row([stanzas("iq", "bounced").times(3)], deeds).await
}

/// Input: a roster get and a roster set to the account of another, and to one that is not there.
///
/// Outcome: `forbidden`, for both alike.
#[tokio::test]
async fn row_099_the_roster_of_another_is_forbidden() -> Result<()> {
    let deeds = async |door: &Door| {
        let (mallory, bob) = (door.person("mallory").await?, door.person("bob").await?);
        let mut raw = door.online(Way::Direct, &mallory).await?;
        for to in [bob.bare(), "missing@localhost".to_owned()] {
            for (type_, item) in [("get", ""), ("set", "<item jid='a@localhost'/>")] {
                let query = format!("<query xmlns='{ROSTER}'>{item}</query>");
                raw.say(format!("<iq type='{type_}' id='1' to='{}'>{query}</iq>", escape(&to))).await?;
                raw.stanza_error("forbidden").await?;
            }
        }
        let mut bobs = door.online(Way::Direct, &bob).await?;
        ensure!(roster(&mut bobs).await?.is_empty(), "the roster changed");
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas("iq", "bounced").times(4)], deeds).await
}

/// Input: a message with several times of sending and ids that claim to be the server's.
///
/// Outcome: all of them are taken out, on the way to a session and to who is away; what claims to be another's
/// stays.
#[tokio::test]
async fn row_101_what_only_the_server_says_is_taken_out() -> Result<()> {
    const DELAY: &str = "urn:xmpp:delay";
    const SID: &str = "urn:xmpp:sid:0";
    let deeds = async |door: &Door| {
        let (mallory, bob) = (door.person("mallory").await?, door.person("bob").await?);
        let mut raw = door.online(Way::Direct, &mallory).await?;
        let delay =
            |from: &str| format!("<delay xmlns='{DELAY}' from='{from}' stamp='2002-09-10T23:41:07Z'/>");
        let id = |by: &str| format!("<stanza-id xmlns='{SID}' by='{}' id='x'/>", escape(by));
        let inside = [
            delay("localhost"),
            delay("localhost"),
            delay("elsewhere.example"),
            id(&bob.bare()),
            id("localhost"),
            id("localhost"),
            id("room@elsewhere.example"),
        ]
        .concat();
        let say =
            |to: &str| format!("<message to='{}' type='chat'><body>a</body>{inside}</message>", escape(to));
        raw.say(say(&bob.bare())).await?;
        // Behind it: it is kept.
        raw.say(format!("<message to='{}' type='groupchat' id='2'/>", escape(&bob.bare()))).await?;
        raw.stanza_error("service-unavailable").await?;
        let mut bobs = door.online(Way::Direct, &bob).await?;
        let is_it = |n: &Node| n.name == "message";
        let kept = bobs.wait_for("what was kept", is_it).await?;
        raw.say(say(&bobs.jid())).await?;
        let direct = bobs.wait_for("the other", is_it).await?;
        let said = |node: &Node, name: &str, ns: &str, by: &str| {
            let those = node.nodes().filter(|n| n.is(name, ns));
            those.filter_map(|n| n.attr(by).map(str::to_owned)).collect::<Vec<_>>()
        };
        ensure!(said(&direct, "delay", DELAY, "from") == ["elsewhere.example"], "{}", lines(&[direct]));
        ensure!(
            said(&kept, "delay", DELAY, "from") == ["elsewhere.example", "localhost"],
            "{}",
            lines(&[kept])
        );
        for node in [&kept, &direct] {
            ensure!(said(node, "stanza-id", SID, "by") == ["room@elsewhere.example"], "an id was forged");
        }
        let ours = kept.nodes().filter(|n| n.is("delay", DELAY) && n.attr("from") == Some("localhost"));
        ensure!(
            ours.filter_map(|n| n.attr("stamp")).all(|stamp| !stamp.starts_with("2002")),
            "a forged time"
        );
        Ok(())
    };
    Door::shared().await?.row([stanzas("message", "delivered").times(2)], deeds).await
}

/// Input: a grant that nobody asked for, its taking back, and a client's probes of who is no contact.
///
/// Outcome: all of it ends in silence and changes no roster. A probe is no reason for an error
/// (RFC 6121, 4.3).
#[tokio::test]
async fn row_104_grants_and_probes_of_strangers_end_in_silence() -> Result<()> {
    let deeds = async |door: &Door| {
        let (mallory, bob) = (door.person("mallory").await?, door.person("bob").await?);
        let mut bobs = door.online(Way::Direct, &bob).await?;
        let mut raw = door.session(Way::Direct, &mallory).await?;
        raw.say("<presence/>").await?;
        raw.wait_for("its own presence", |n| n.name == "presence").await?;
        for to in [bob.bare(), bobs.jid(), "missing@localhost".to_owned(), "missing@localhost/x".to_owned()] {
            for type_ in ["unsubscribed", "unsubscribe", "probe"] {
                raw.say(format!("<presence type='{type_}' to='{}'/>", escape(&to))).await?;
            }
        }
        raw.say(format!("<presence type='subscribed' to='{}'/>", escape(&bob.bare()))).await?;
        raw.say("<presence type='probe'/><presence type='probe' to='localhost'/>").await?;
        raw.works_and_heard_nothing().await?;
        let heard = up_to_mark(&mut bobs, &mut raw).await?;
        ensure!(heard.is_empty(), "{}", lines(&heard));
        ensure!(roster(&mut bobs).await?.is_empty(), "the roster changed");
        Ok(())
    };
    Door::shared().await?.row([read("presence").times(16)], deeds).await
}

/// Input: errors about errors, and errors to who is not there.
///
/// Outcome: nothing comes back, or two servers would talk for ever.
#[tokio::test]
async fn row_105_an_error_is_never_answered() -> Result<()> {
    let deeds = async |door: &Door| {
        let (mallory, bob) = (door.person("mallory").await?, door.person("bob").await?);
        let mut raw = door.online(Way::Direct, &mallory).await?;
        let error = "<error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>";
        let away = escape(&bob.bare());
        for to in [
            &away,
            &format!("{away}/x"),
            "missing@localhost",
            "missing@localhost/x",
            "localhost",
            "localhost/x",
        ] {
            for kind in ["message", "presence", "iq"] {
                raw.say(format!("<{kind} type='error' id='1' to='{to}'>{error}</{kind}>")).await?;
                raw.say(format!("<{kind} type='error' id='1' to='{to}'/>")).await?;
            }
        }
        raw.say("<message type='error' id='1' to='@@@'/>").await?;
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas("iq", "ignored").times(6)], deeds).await
}

/// Input: messages, presence and requests of every kind to an account that is away, to one that is there and to
/// one that is missing, from a stranger.
///
/// Outcome: whoever it is, the same answers.
#[tokio::test]
async fn row_107_an_account_looks_like_none_to_strangers() -> Result<()> {
    let deeds = async |door: &Door| {
        let (eve, away, bob) =
            (door.person("eve").await?, door.person("away").await?, door.person("bob").await?);
        let mut raw = door.online(Way::Direct, &eve).await?;
        let _bobs = door.online(Way::Direct, &bob).await?;
        let missing = said_to(&mut raw, "missing@localhost", true).await?;
        let away = said_to(&mut raw, &away.bare(), true).await?;
        ensure!(missing == away, "missing:\n{}\naway:\n{}", missing.join("\n"), away.join("\n"));
        // To a session that is there a message is delivered, as it must be (RFC 6121, 8.5.3.1).
        let none = said_to(&mut raw, "missing-too@localhost", false).await?;
        let online = said_to(&mut raw, &bob.bare(), false).await?;
        ensure!(none == online, "missing:\n{}\nonline:\n{}", none.join("\n"), online.join("\n"));
        ensure!(missing.iter().any(|answer| answer.contains("service-unavailable")), "nothing was answered");
        Ok(())
    };
    Door::shared().await?.row([stanzas("iq", "bounced").times(96)], deeds).await
}

/// All that is heard of what a stranger may say to an account, without its name, sorted.
async fn said_to(raw: &mut Raw, account: &str, sessions: bool) -> Result<Vec<String>> {
    let bare = escape(account);
    let mut addresses = vec![bare.clone()];
    addresses.extend(sessions.then(|| format!("{bare}/x")));
    for to in addresses {
        for type_ in ["normal", "chat", "groupchat", "headline", "error", "letter"] {
            raw.say(format!("<message type='{type_}' id='m-{type_}' to='{to}'><body>a</body></message>"))
                .await?;
        }
        for type_ in ["unavailable", "probe", "error", "subscribe", "unsubscribe", "unsubscribed"] {
            raw.say(format!("<presence type='{type_}' id='p-{type_}' to='{to}'/>")).await?;
        }
        raw.say(format!("<presence id='p' to='{to}'/>")).await?;
        for (n, payload) in [
            "<ping xmlns='urn:xmpp:ping'/>",
            "<query xmlns='http://jabber.org/protocol/disco#info'/>",
            "<query xmlns='http://jabber.org/protocol/disco#items'/>",
            "<query xmlns='jabber:iq:version'/>",
            "<query xmlns='jabber:iq:roster'/>",
            "<query xmlns='jabber:iq:last'/>",
            "<vCard xmlns='vcard-temp'/>",
            "<what xmlns='urn:example:what'/>",
        ]
        .into_iter()
        .enumerate()
        {
            for type_ in ["get", "set"] {
                raw.say(format!("<iq type='{type_}' id='i-{type_}-{n}' to='{to}'>{payload}</iq>")).await?;
            }
        }
    }
    // Behind all of it, wherever that waits.
    raw.say(format!("<message type='groupchat' id='last' to='{bare}'/>")).await?;
    let mut heard = Vec::new();
    loop {
        let node = raw.next().await?;
        if node.attr("id") == Some("last") {
            break;
        }
        heard.push(node);
    }
    heard.extend(raw.up_to_pong().await?);
    let name = |node: &Node| node.pretty().join("").replace(account, "ACCOUNT");
    // The roster's versions and the ids of its pushes differ; that it is pushed does not.
    let line = |node: Node| match node.child("query", ROSTER) {
        Some(query) if stanza_condition(&node).is_none() => {
            query.nodes().map(name).collect::<Vec<_>>().join("")
        }
        _ => name(&node),
    };
    ensure!(heard.iter().all(|node| node.ns == CLIENT), "{}", lines(&heard));
    let mut answers: Vec<String> = heard.into_iter().map(line).collect();
    answers.sort();
    Ok(answers)
}

/// Input: resources that are too long or hold what no resource may, and one that is another spelling of one that
/// is bound.
///
/// Outcome: `bad-request`; the other spelling is the same resource, so that the older session ends with
/// `conflict`.
#[tokio::test]
async fn row_108_a_resource_is_prepared_before_it_is_compared() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.authenticated(Way::Direct, &alice).await?;
        for bad in
            ["x".repeat(2048), "a\u{e000}b".to_owned(), "\u{7f}".to_owned(), "\u{feff}\u{200e}x".to_owned()]
        {
            let resource = format!("<resource>{bad}</resource>");
            raw.say(format!(
                "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>{resource}</bind></iq>"
            ))
            .await?;
            raw.stanza_error("bad-request").await?;
        }
        raw.bind(Some("phone")).await?;
        let mut other = door.authenticated(Way::Direct, &alice).await?;
        // In letters of full width.
        other.bind(Some("\u{ff50}\u{ff48}\u{ff4f}\u{ff4e}\u{ff45}")).await?;
        ensure!(other.jid() == raw.jid(), "`{}` and `{}`", other.jid(), raw.jid());
        raw.stream_error("conflict").await?;
        other.works_and_heard_nothing().await
    };
    Door::shared().await?.row([ended("displaced")], deeds).await
}

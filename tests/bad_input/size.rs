//! Rows 28, 31 to 38, 54, 56, 58 and 59: too much, too long, too deep, too many names.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::admin::{CreateAccountRequest, KickSessionRequest, admin_client::AdminClient};
use tests::{
    client::{PATIENCE, unique},
    people::go_online,
    xml::Node,
};

use crate::{
    door::Door,
    metric::{Metric, ended, stanzas, stanzas_refused, stream_errors},
    raw::{Raw, Way, stanza_condition},
};

const TOO_MUCH: &str = "policy-violation";

/// Input: the first words of another protocol on the port for XMPP: of HTTP, of TLS, of SSH.
///
/// Outcome: the socket is closed within a second, and no more than 1 KiB was sent.
#[tokio::test]
async fn row_028_another_protocol_hears_little_and_is_closed() -> Result<()> {
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let words: [&[u8]; 3] =
        [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", client_hello, b"SSH-2.0-OpenSSH_9.6\r\n"];
    let deeds = async |door: &Door| {
        for words in words {
            // The fastest of three: the machine may be busy with other tests.
            let mut fastest = Duration::MAX;
            for _ in 0..3 {
                let mut raw = door.connect(Way::Plain).await?;
                let start = Instant::now();
                raw.say(words).await?;
                let heard = raw.until_closed().await?;
                fastest = fastest.min(start.elapsed());
                ensure!(heard.len() <= 1024, "{} bytes: {}", heard.len(), String::from_utf8_lossy(&heard));
            }
            ensure!(fastest < Duration::from_secs(1), "closed only after {fastest:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([ended("broke-a-rule").times(3 * words.len())], deeds).await
}

/// Says the same before and after login, over every way, and hears that it is too much.
async fn too_much(door: &Door, text: &str) -> Result<()> {
    let alice = door.person("alice").await?;
    for way in Way::ALL {
        let mut raw = door.stream(way).await?;
        raw.pour(text.as_bytes().chunks(16 * 1024)).await;
        raw.stream_error(TOO_MUCH).await.with_context(|| format!("before login, {way:?}"))?;
    }
    for way in Way::TLS {
        let mut raw = door.session(way, &alice).await?;
        raw.pour(text.as_bytes().chunks(16 * 1024)).await;
        raw.stream_error(TOO_MUCH).await.with_context(|| format!("after login, {way:?}"))?;
    }
    Ok(())
}

/// Ends of streams that `too_much` causes.
fn ends(times: usize) -> Metric {
    stream_errors(TOO_MUCH).times(times * (Way::ALL.len() + Way::TLS.len()))
}

/// Input: an attribute value, and a tag's name, that never end, before and after login.
///
/// Outcome: the stream ends with `policy-violation` at 8 KiB before login, at 10,000 bytes after it.
#[tokio::test]
async fn row_031_a_name_or_value_without_end_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let endless = "a".repeat(64 * 1024);
        too_much(door, &format!("<message to='{endless}")).await?;
        too_much(door, &format!("<{endless}")).await
    };
    Door::shared().await?.row([ends(2)], deeds).await
}

/// Input: a stanza larger than 8 KiB before login.
///
/// Outcome: the stream ends with `policy-violation`.
#[tokio::test]
async fn row_032_a_large_stanza_before_login_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            let mut raw = door.stream(way).await?;
            raw.say(format!("<message><body>{}</body></message>", "x".repeat(8 * 1024))).await?;
            raw.stream_error(TOO_MUCH).await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors(TOO_MUCH).times(Way::ALL.len())], deeds).await
}

/// Input: 33 elements in one element before login.
///
/// Outcome: the stream ends with `policy-violation`.
#[tokio::test]
async fn row_033_many_elements_before_login_end_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            let mut raw = door.stream(way).await?;
            raw.say(format!("<a xmlns='urn:example:a'>{}</a>", "<b/>".repeat(32))).await?;
            raw.stream_error(TOO_MUCH).await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors(TOO_MUCH).times(Way::ALL.len())], deeds).await
}

/// Input: stanzas of exactly 10,000 bytes after login, nearly all of them text, or the value of one attribute.
///
/// Outcome: they are accepted and delivered whole (RFC 6120, 13.12).
#[tokio::test]
async fn row_034_a_stanza_of_ten_thousand_bytes_is_delivered() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.session(way, &alice).await?;
            let (open, close) = (format!("<message to='{}' id='big'><body>", raw.jid()), "</body></message>");
            let body = "x".repeat(10_000 - open.len() - close.len());
            raw.say(format!("{open}{body}{close}")).await?;
            let heard = raw.wait_for("the message", |n| n.attr("id") == Some("big")).await?;
            let text = heard.child("body", tests::xml::CLIENT).map(Node::text).unwrap_or_default();
            ensure!(text == body, "{} bytes of {}", text.len(), body.len());
            let (open, close) = (format!("<message to='{}' id='", raw.jid()), "'/>");
            let id = "x".repeat(10_000 - open.len() - close.len());
            raw.say(format!("{open}{id}{close}")).await?;
            raw.wait_for("the message of that id", |n| n.attr("id") == Some(&id)).await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stanzas("message", "delivered").times(4)], deeds).await
}

/// Input: a stanza above the limit after login, piece by piece, without an end.
///
/// Outcome: the stream ends with `policy-violation` while the stanza is still being read.
#[tokio::test]
async fn row_035_a_stanza_above_the_limit_is_refused_while_it_is_read() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.session(way, &alice).await?;
            raw.say("<message to='localhost'><body>").await?;
            let piece = "x".repeat(4 * 1024);
            // 256 KiB and a little more; the end tag never comes.
            raw.say_pieces((0..65).map(|_| piece.as_str())).await?;
            raw.stream_error(TOO_MUCH).await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors(TOO_MUCH).times(2)], deeds).await
}

/// Input: 60,000 nested tags, before and after login.
///
/// Outcome: the stream ends with `policy-violation` at the depth limit, for less than 5 ms of CPU.
#[tokio::test]
async fn row_036_deep_nesting_is_refused_and_costs_nothing() -> Result<()> {
    let deeds = async |door: &Door| {
        let nested = "<a>".repeat(60_000);
        let alice = door.person("alice").await?;
        for login in [false, true] {
            let mut cheapest = Duration::MAX;
            for _ in 0..5 {
                let mut raw = match login {
                    false => door.stream(Way::Plain).await?,
                    true => door.session(Way::Plain, &alice).await?,
                };
                let before = door.cpu()?;
                raw.pour([&nested]).await;
                raw.stream_error(TOO_MUCH).await?;
                // The node does other work meanwhile: the cheapest of five is nearest to the truth.
                cheapest = cheapest.min(door.cpu()?.saturating_sub(before));
            }
            ensure!(cheapest < Duration::from_millis(5), "it took {cheapest:?} of CPU");
        }
        Ok(())
    };
    Door::without_tls().await?.row([stream_errors(TOO_MUCH).times(10)], deeds).await
}

/// Input: an element that is never closed, into which children stream, before and after login.
///
/// Outcome: the stream ends with `policy-violation` at the limit of elements.
#[tokio::test]
async fn row_037_an_element_that_never_closes_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        too_much(door, &format!("<iq type='get' id='a'><q xmlns='urn:example:a'>{}", "<b/>".repeat(4_000)))
            .await
    };
    Door::shared().await?.row([ends(1)], deeds).await
}

/// Input: an element with 100,000 attributes, before and after login.
///
/// Outcome: the stream ends with `policy-violation`.
#[tokio::test]
async fn row_038_many_attributes_end_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let attributes: String = (0..100_000).map(|n| format!(" a{n}=''")).collect();
        too_much(door, &format!("<message{attributes}/>")).await
    };
    Door::shared().await?.row([ends(1)], deeds).await
}

/// Input: stanzas to addresses that are none (parts of 1,024 bytes, control characters, mixed directions,
/// missing parts), and requests to bind resources that are none.
///
/// Outcome: the stanza error `jid-malformed`, at binding `bad-request`; the stream lives.
#[tokio::test]
async fn row_054_addresses_that_are_none_are_refused() -> Result<()> {
    let long = "x".repeat(1_024);
    let addresses = [
        // Prepared once it is a host, prepared twice it is none.
        "a@\u{df}--x".to_owned(),
        format!("{long}@localhost"),
        format!("a@{long}"),
        format!("a@localhost/{long}"),
        "a&#x7f;@localhost".to_owned(),
        "a@localhost/\u{85}".to_owned(),
        "\u{627}a@localhost".to_owned(),
        "@localhost".to_owned(),
        "a@".to_owned(),
        "a@localhost/".to_owned(),
        "a b@localhost".to_owned(),
        "a@b@localhost".to_owned(),
        "/".to_owned(),
    ];
    let resources = [long.clone(), "\u{7}".replace('\u{7}', "&#x7f;"), "\u{627}a".to_owned()];
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.authenticated(way, &alice).await?;
            for resource in &resources {
                let bind = format!(
                    "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{resource}</resource></bind>"
                );
                raw.say(format!("<iq type='set' id='b'>{bind}</iq>")).await?;
                raw.stanza_error("bad-request").await.with_context(|| format!("bind `{resource}`"))?;
            }
            raw.bind(Some("phone")).await?;
            for address in &addresses {
                raw.say(format!("<message to='{address}' id='m'><body>a</body></message>")).await?;
                raw.stanza_error("jid-malformed").await.with_context(|| format!("to `{address}`"))?;
            }
            raw.works_and_heard_nothing().await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stanzas_refused().times(2 * addresses.len())], deeds).await
}

/// Input: one session more than an account may have.
///
/// Outcome: binding is refused with `resource-constraint` and `resource-limit-exceeded`; the others live, and when one has left there is room.
#[tokio::test]
async fn row_056_a_session_too_many_is_refused() -> Result<()> {
    let door = Door::with(&[("limits.sessions_per_account", "2")]).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let (mut one, two) =
            (door.session(Way::Direct, &alice).await?, door.session(Way::Direct, &alice).await?);
        let mut third = door.authenticated(Way::StartTls, &alice).await?;
        let bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
        third.say(bind).await?;
        let refused = third.stanza_error("resource-constraint").await?;
        let error = refused.child("error", tests::xml::CLIENT).context("no error")?;
        let exceeded = error.child("resource-limit-exceeded", "urn:xmpp:errors").is_some();
        ensure!(error.attr("type") == Some("wait") && exceeded, "{}", refused.pretty().join("\n"));
        one.works_and_heard_nothing().await?;
        drop(two);
        let end = Instant::now() + PATIENCE;
        let mut again = tokio::time::interval(Duration::from_millis(20));
        // The socket goes first, and the session's place a moment later: who is told to wait asks again.
        loop {
            again.tick().await;
            let bound = third.bind(None).await;
            if bound.is_ok() || Instant::now() > end {
                return bound;
            }
        }
    };
    door.row([Metric::named("rookery_binds_refused_total")], deeds).await
}

/// Input: 1,200 directed presences, most of them to nobody, then a lost connection.
///
/// Outcome: at 1,000 receivers `resource-constraint`; each receiver that was told is told once that the sender left.
#[tokio::test]
async fn row_058_directed_presences_are_bounded_and_ended_once() -> Result<()> {
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut alices = door.online(Way::Direct, &alice).await?;
        let mut bobs = door.online(Way::Direct, &bob).await?;
        let from = alices.jid();
        let mut all = format!("<presence to='{}'/>", bobs.jid());
        all.extend((1..1_200).map(|n| format!("<presence id='p{n}' to='nobody{n}@localhost'/>")));
        // In pieces: what a client does not read while it talks must not stop it.
        let mut refused = 0;
        for piece in all.as_bytes().chunks(8 * 1024) {
            alices.say(piece).await?;
        }
        for answer in alices.up_to_pong().await? {
            ensure!(
                stanza_condition(&answer) == Some("resource-constraint"),
                "{}",
                answer.pretty().join("\n")
            );
            refused += 1;
        }
        ensure!(refused == 200, "{refused} were refused");
        drop(alices);
        let is_from_alice = |n: &Node| n.name == "presence" && n.attr("from") == Some(&from);
        let here = bobs.wait_for("her presence", is_from_alice).await?;
        ensure!(here.attr("type").is_none(), "{}", here.pretty().join("\n"));
        let gone = bobs.wait_for("her leaving", is_from_alice).await?;
        ensure!(gone.attr("type") == Some("unavailable"), "{}", gone.pretty().join("\n"));
        bobs.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas("presence", "delivered")], deeds).await
}

/// Input: 10,000 distinct names in questions of an operator and in stanzas of a client.
///
/// Outcome: each is answered, and nothing of them stays in memory.
#[tokio::test]
async fn row_059_unknown_names_leave_nothing_behind() -> Result<()> {
    const EACH: usize = 5_000;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw: Raw = door.session(Way::Direct, &alice).await?;
        let mut admin = AdminClient::connect(format!("http://{}", door.admin())).await?;
        let mut before = 0;
        for n in 0..EACH {
            if n == EACH / 10 {
                // What all share is made by the first ones.
                before = door.memory()?;
            }
            let name = format!("{}{}", unique("nobody"), "x".repeat(200));
            let kick = KickSessionRequest { jid: format!("{name}@localhost/{name}") };
            ensure!(admin.kick_session(kick).await.is_err(), "somebody was there");
            let elsewhere = CreateAccountRequest {
                jid: format!("a@{name}.example"),
                password: "x".into(),
                ..Default::default()
            };
            ensure!(admin.create_account(elsewhere).await.is_err(), "a host came into being");
            raw.say(format!("<iq type='get' id='q{n}' to='{name}@localhost'><q xmlns='urn:{name}'/></iq>"))
                .await?;
            let answer = raw.next().await?;
            ensure!(answer.attr("type") == Some("error"), "{}", answer.pretty().join("\n"));
        }
        let grown = door.memory()?.saturating_sub(before);
        // A kilobyte of names for each would be 4.5 MB.
        ensure!(grown < 3 << 20, "memory grew by {grown} bytes");
        go_online(&mut raw, None).await.map(drop)
    };
    // What is cached of the store, also that nothing is there, has this bound.
    let door = Door::with(&[("store.cache_bytes", "1048576")]).await?;
    door.row([stanzas("iq", "bounced").times(EACH)], deeds).await
}

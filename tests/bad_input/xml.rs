//! Rows 1 to 14, 25, 27, 29, 30, 37 and 40: XML that is none, or none of ours.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tests::{
    people::ping,
    xml::{CLIENT, escape},
};
use tokio::net::TcpListener;

use crate::{
    door::Door,
    metric::{ended, stanzas, stream_errors},
    raw::Way,
};

/// Each input ends the stream with the condition: on a stream that has just begun, by every way, and in a
/// bound session. A message behind it reaches nobody.
async fn each_ends(ways: impl AsRef<[Way]>, inputs: &[&[u8]], condition: &str) -> Result<()> {
    let ways = ways.as_ref();
    let counted = [stream_errors(condition).times(inputs.len() * (ways.len() + 1))];
    let deeds = async |door: &Door| {
        let person = door.person("mallory").await?;
        for input in inputs {
            let behind = format!("<message to='{}'><body>smuggled</body></message>", escape(door.witness()));
            let bytes = [input, behind.as_bytes()].concat();
            for way in ways {
                let mut raw = door.stream(*way).await?;
                raw.say(&bytes).await?;
                let ended = raw.stream_error(condition).await;
                ended.with_context(|| format!("{} by {way:?}", String::from_utf8_lossy(input)))?;
            }
            let mut raw = door.session(Way::Direct, &person).await?;
            raw.say(&bytes).await?;
            let ended = raw.stream_error(condition).await;
            ended.with_context(|| format!("{} in a session", String::from_utf8_lossy(input)))?;
        }
        Ok(())
    };
    Door::shared().await?.row(counted, deeds).await
}

/// Input: a comment after the stream header, between stanzas or inside of one.
///
/// Outcome: the stream ends with `restricted-xml`.
#[tokio::test]
async fn row_001_a_comment_ends_the_stream() -> Result<()> {
    each_ends(Way::ALL, &[b"<!-- x -->", b"<message><!-- x --></message>"], "restricted-xml").await
}

/// Input: a processing instruction, or an XML declaration where no document begins.
///
/// Outcome: the stream ends with `restricted-xml`.
#[tokio::test]
async fn row_002_a_processing_instruction_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[b"<?php x?>", b"<message><?x?></message>", b"<?xml version='1.0'?>"];
    each_ends(Way::ALL, inputs, "restricted-xml").await
}

/// Input: a DTD before the stream header whose entities multiply to a billion.
///
/// Outcome: `restricted-xml` at the first bytes of the declaration: what follows is not even waited for.
#[tokio::test]
async fn row_003_a_dtd_is_refused_at_its_first_bytes() -> Result<()> {
    let entities: String =
        (1..10).map(|n| format!("<!ENTITY lol{n} '{}'>", format!("&lol{};", n - 1).repeat(10))).collect();
    let bomb = format!("<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY lol0 'lol'>{entities}]><x>&lol9;</x>");
    let counted = [stream_errors("restricted-xml").times(2 * Way::ALL.len())];
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            for bytes in [bomb.as_str(), "<?xml version='1.0'?><!D"] {
                let mut raw = door.connect(way).await?;
                raw.say(bytes).await?;
                raw.stream_error("restricted-xml").await?;
            }
        }
        Ok(())
    };
    Door::shared().await?.row(counted, deeds).await
}

/// Input: entities that name a file or an address on the network, general and parameter entities.
///
/// Outcome: `restricted-xml`; nobody connects to the address, and what the file holds is not told.
#[tokio::test]
async fn row_004_an_external_entity_is_not_fetched() -> Result<()> {
    let trap = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", trap.local_addr()?);
    let bodies = [
        "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>".to_owned(),
        format!("<!DOCTYPE x [<!ENTITY e SYSTEM '{url}'>]><x>&e;</x>"),
        format!("<!DOCTYPE x [<!ENTITY % e SYSTEM '{url}'> %e;]><x/>"),
        format!("<!DOCTYPE x SYSTEM '{url}'><x/>"),
    ];
    let counted = [stream_errors("restricted-xml").times(bodies.len() * Way::ALL.len())];
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            for body in &bodies {
                let mut raw = door.connect(way).await?;
                raw.say(format!("<?xml version='1.0'?>{body}")).await?;
                let error = raw.stream_error("restricted-xml").await?;
                ensure!(!error.pretty().join("").contains("root"), "{error:?}");
            }
        }
        Ok(())
    };
    Door::shared().await?.row(counted, deeds).await?;
    let visit = futures::FutureExt::now_or_never(trap.accept());
    ensure!(visit.is_none(), "somebody came to `{url}`");
    Ok(())
}

/// Input: an entity that nobody declared, in text and in an attribute.
///
/// Outcome: the stream ends with `restricted-xml`.
#[tokio::test]
async fn row_005_an_undeclared_entity_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] =
        &[b"<message>&nbsp;</message>", b"<message id='&e;'/>", b"<iq><q>&lt&gt;</q></iq>"];
    each_ends(Way::ALL, &inputs[..2], "restricted-xml").await?;
    // A reference without its end is no reference at all.
    each_ends([Way::Plain], &inputs[2..], "not-well-formed").await
}

/// Input: references to characters that XML does not have.
///
/// Outcome: the stream ends with `not-well-formed`.
#[tokio::test]
async fn row_006_a_reference_to_no_character_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message>&#0;</message>",
        b"<message>&#xFFFF;</message>",
        b"<message>&#xD800;</message>",
        b"<message id='&#x1;'/>",
        b"<message id='&#xFFFE;'/>",
        b"<message>&#x110000;</message>",
        b"<message>&#99999999999999999999;</message>",
    ];
    each_ends(Way::ALL, inputs, "not-well-formed").await
}

/// Input: bytes that are no UTF-8: overlong, half of a surrogate pair, cut short, beyond the last character.
///
/// Outcome: the stream ends with `not-well-formed`.
#[tokio::test]
async fn row_007_what_is_not_utf_8_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message>\xc0\xaf</message>",
        b"<message>\xed\xa0\x80</message>",
        b"<message>\xe2\x82<x/></message>",
        b"<message id='\xe2\x82'/>",
        b"<message>\xf4\x90\x80\x80</message>",
        b"<message>\x80</message>",
        b"<message>\xff</message>",
    ];
    each_ends(Way::ALL, inputs, "not-well-formed").await
}

/// Input: the first byte of a longer character inside a tag's name, in front of its end, so that a lax reader
/// would take the end for a part of the name.
///
/// Outcome: the stream ends with `not-well-formed`; nothing of it is routed.
#[tokio::test]
async fn row_008_half_a_character_swallows_no_end_of_a_tag() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message\xe2><body>a</body></message>",
        b"<message><x\xef><y/></x\xef></message>",
        b"<message\xf0<a/></message>",
        b"<message a\xe1='1'/>",
        b"<message xmlns\xe2='evil'/>",
    ];
    each_ends(Way::ALL, inputs, "not-well-formed").await
}

/// Input: elements whose namespace ends with what parsers use between a namespace and a name.
///
/// Outcome: an unknown namespace is one whatever it looks like: `unsupported-stanza-type`, never a message.
#[tokio::test]
async fn row_009_a_namespace_is_compared_whole() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message xmlns='jabber:client&#10;'><body>a</body></message>",
        b"<message xmlns='jabber:client\n'><body>a</body></message>",
        b"<message xmlns='jabber:client|message'><body>a</body></message>",
        b"<x xmlns='jabber:client|message'/>",
        b"<x xmlns='jabber:client}message'/>",
        b"<x:message xmlns:x='jabber:client '/>",
        b"<message xmlns='JABBER:CLIENT'/>",
    ];
    each_ends(Way::ALL, inputs, "unsupported-stanza-type").await?;
    each_ends([Way::Plain], &[b"<message xmlns='jabber:client&#1;'/>"], "not-well-formed").await
}

/// Input: one attribute twice, by its name or by two prefixes of one namespace.
///
/// Outcome: the stream ends with `not-well-formed`.
#[tokio::test]
async fn row_011_an_attribute_that_comes_twice_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message id='1' id='1'/>",
        b"<message xmlns:a='u' xmlns:b='u' a:k='1' b:k='2'/>",
        b"<message><x xmlns:a='u'><y xmlns:b='u' a:k='1' b:k='2'/></x></message>",
        b"<message xmlns:a='u' xmlns:a='v'/>",
        b"<message xml:lang='de' xml:lang='en'/>",
    ];
    each_ends(Way::ALL, inputs, "not-well-formed").await
}

/// Input: a prefix that nobody declared, or that is declared to nothing, or to a namespace that is reserved.
///
/// Outcome: the stream ends with `not-well-formed`.
#[tokio::test]
async fn row_012_an_undeclared_prefix_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<q:message/>",
        b"<message q:k='1'/>",
        b"<message xmlns:p=''/>",
        b"<message><a xmlns:q='u'/><q:b/></message>",
        b"<message xmlns:xmlns='u'/>",
        b"<message xmlns:xml='u'/>",
        b"<message xmlns:p='http://www.w3.org/2000/xmlns/'/>",
        b"<message xmlns:p='http://www.w3.org/XML/1998/namespace'/>",
    ];
    each_ends(Way::ALL, inputs, "not-well-formed").await
}

/// Input: an element that is no stanza, or a stanza's name in another namespace.
///
/// Outcome: the stream ends with `unsupported-stanza-type`.
#[tokio::test]
async fn row_013_an_unknown_element_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[
        b"<message xmlns='evil'><body>a</body></message>",
        b"<foo/>",
        b"<Message/>",
        b"<iq xmlns='' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
        b"<stream:message/>",
        b"<body xmlns='http://jabber.org/protocol/httpbind'/>",
    ];
    each_ends(Way::ALL, inputs, "unsupported-stanza-type").await
}

/// Input: stream features from a client.
///
/// Outcome: the stream ends with `unsupported-stanza-type`.
#[tokio::test]
async fn row_014_features_of_a_client_end_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[b"<stream:features/>", b"<stream:features><x xmlns='u'/></stream:features>"];
    each_ends(Way::ALL, inputs, "unsupported-stanza-type").await
}

/// Input: a stream error from a client.
///
/// Outcome: the stream is closed without a word.
#[tokio::test]
async fn row_014_a_stream_error_of_a_client_closes_quietly() -> Result<()> {
    const ERROR: &str =
        "<stream:error><invalid-xml xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            let mut raw = door.stream(way).await?;
            raw.say(ERROR).await?;
            raw.closed().await?;
        }
        let person = door.person("mallory").await?;
        let mut raw = door.session(Way::StartTls, &person).await?;
        raw.say(ERROR).await?;
        raw.closed().await
    };
    Door::shared().await?.row([ended("closed").times(Way::ALL.len() + 1)], deeds).await
}

/// Input: a second stream header where none is due.
///
/// Outcome: the stream ends with `bad-format`.
#[tokio::test]
async fn row_025_a_second_header_ends_the_stream() -> Result<()> {
    let header = "<stream:stream to='localhost' version='1.0'>";
    each_ends(Way::ALL, &[header.as_bytes(), b"<stream:stream/>"], "bad-format").await
}

/// Input: text between stanzas, plain, as a reference or in a CDATA section.
///
/// Outcome: the stream ends with `bad-format`.
#[tokio::test]
async fn row_027_text_between_stanzas_ends_the_stream() -> Result<()> {
    let inputs: &[&[u8]] = &[b"hello", b" \n x", b"&#65;", b"<![CDATA[hello]]>", "\u{a0}".as_bytes()];
    each_ends(Way::ALL, inputs, "bad-format").await
}

/// Input: white space between stanzas.
///
/// Outcome: a keep-alive: nothing is answered, and the session goes on.
#[tokio::test]
async fn row_027_white_space_between_stanzas_is_fine() -> Result<()> {
    let deeds = async |door: &Door| {
        let person = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.session(way, &person).await?;
            raw.say_pieces([" ", "\n", "\r\n", "\t", &" ".repeat(20_000)]).await?;
            raw.works_and_heard_nothing().await?;
            raw.say("</stream:stream>\n").await?;
            raw.closed().await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stanzas("iq", "answered").times(2), ended("closed").times(2)], deeds).await
}

/// Input: a whole session, login by PLAIN included, with every byte in a write of its own.
///
/// Outcome: it works exactly as unsplit.
#[tokio::test]
async fn row_029_one_byte_at_a_time_is_a_session_as_any_other() -> Result<()> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut bobs = door.online(Way::Direct, &bob).await?;
        for way in Way::TLS {
            let mut raw = door.connect(way).await?;
            let header = raw.header();
            raw.say_pieces(header.bytes().map(|b| [b])).await?;
            let features = raw.next().await?;
            ensure!(
                features.child("mechanisms", "urn:ietf:params:xml:ns:xmpp-sasl").is_some(),
                "{features:?}"
            );
            let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", alice.user, alice.password));
            let auth =
                format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>");
            raw.say_pieces(auth.bytes().map(|b| [b])).await?;
            raw.next().await?;
            raw.expect_stream();
            raw.say_pieces(header.bytes().map(|b| [b])).await?;
            raw.next().await?;
            let bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
            raw.say_pieces(bind.bytes().map(|b| [b])).await?;
            ensure!(raw.next().await?.attr("type") == Some("result"), "not bound");
            // Split inside of characters, a reference and a CDATA section's marks.
            let message = format!(
                "<message to='{}' id='&amp;1'><body>h\u{e9}\u{20ac}\u{1f600}&amp;p;&#x20AC;<![CDATA[]]]]>&gt;</body></message>",
                escape(&bobs.jid())
            );
            raw.say_pieces(message.bytes().map(|b| [b])).await?;
            let heard = bobs.next().await?;
            ensure!(heard.attr("id") == Some("&1"), "{heard:?}");
            let body = heard.child("body", CLIENT).context("no body")?.text();
            ensure!(body == "h\u{e9}\u{20ac}\u{1f600}&p;\u{20ac}]]>", "`{body}`");
        }
        bobs.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas("message", "delivered").times(2)], deeds).await
}

/// Input: the end of the stream while answers and messages wait to be written, and stanzas behind it.
///
/// Outcome: what waits is written, then the stream is closed; what came behind the end is ignored.
#[tokio::test]
async fn row_030_what_waits_is_written_before_the_end() -> Result<()> {
    const COUNT: usize = 200;
    let deeds = async |door: &Door| {
        let person = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.online(way, &person).await?;
            let me = escape(&raw.jid());
            let mut bytes: String = (0..COUNT)
                .map(|n| format!("<message to='{me}' id='m{n}' type='chat'><body>{n}</body></message>"))
                .collect();
            bytes.extend((0..COUNT).map(|n| ping("localhost", &format!("p{n}"))));
            bytes += "</stream:stream>";
            bytes += &format!("<message to='{}'><body>late</body></message>", escape(door.witness()));
            raw.say(bytes).await?;
            let mut waiting: BTreeSet<String> =
                (0..COUNT).flat_map(|n| [format!("m{n}"), format!("p{n}")]).collect();
            while !waiting.is_empty() {
                let heard = raw.next().await.with_context(|| format!("{waiting:?} are missing"))?;
                let id = heard.attr("id").context("an id")?;
                ensure!(waiting.remove(id), "{heard:?}");
            }
            raw.closed().await?;
        }
        Ok(())
    };
    let counted = [
        stanzas("message", "delivered").times(2 * COUNT),
        stanzas("iq", "answered").times(2 * COUNT),
        ended("closed").times(2),
    ];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: a stanza whose short prefixes mean a namespace of 8 KB, hundreds of times.
///
/// Outcome: the stream ends with `policy-violation`: nobody gets a message a thousand times as long as it was
/// sent, and no tree of it is built.
#[tokio::test]
async fn row_037_a_long_namespace_does_not_multiply() -> Result<()> {
    let uri = "u".repeat(8_000);
    let inside = ["<p:a/>".repeat(1_500), format!("<x xmlns:q='{uri}'>{}</x>", "<q:a/>".repeat(1_500))];
    let deeds = async |door: &Door| {
        let person = door.person("mallory").await?;
        for inside in &inside {
            let mut raw = door.stream(Way::Direct).await?;
            let authenticated = raw.try_authenticate(&person.user, &person.password, "PLAIN").await?;
            ensure!(authenticated.is_ok(), "{authenticated:?}");
            raw.expect_stream();
            let header = raw.header().replace(" to=", &format!(" xmlns:p='{uri}' to="));
            raw.say(header).await?;
            raw.next().await?;
            raw.bind(None).await?;
            raw.say(format!("<message to='{}'>{inside}</message>", escape(door.witness()))).await?;
            raw.stream_error("policy-violation").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("policy-violation").times(inside.len())], deeds).await
}

/// Input: a request for compression, before and after login.
///
/// Outcome: it is never offered, and answered with the failure `unsupported-method`; the stream lives.
#[tokio::test]
async fn row_040_compression_is_neither_offered_nor_granted() -> Result<()> {
    const COMPRESS: &str = "http://jabber.org/protocol/compress";
    let deeds = async |door: &Door| {
        let person = door.person("alice").await?;
        let request = format!("<compress xmlns='{COMPRESS}'><method>zlib</method></compress>");
        for way in Way::ALL {
            let mut raw = door.connect(way).await?;
            let features = raw.begin_stream().await?;
            ensure!(features.nodes().all(|n| n.name != "compression"), "{features:?}");
            raw.say(&request).await?;
            let answer = raw.next().await?;
            let refused =
                answer.is("failure", COMPRESS) && answer.child("unsupported-method", COMPRESS).is_some();
            ensure!(refused, "{}", answer.pretty().join("\n"));
            raw.say("</stream:stream>").await?;
            raw.closed().await?;
        }
        let mut raw = door.authenticated(Way::Direct, &person).await?;
        raw.say(&request).await?;
        ensure!(raw.next().await?.child("unsupported-method", COMPRESS).is_some(), "after login");
        raw.bind(None).await?;
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([ended("closed").times(Way::ALL.len())], deeds).await
}

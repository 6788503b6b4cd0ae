//! Rows 15 to 24 and 26: stream headers that are none, or ask for what is not here.

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Heard, PATIENCE},
    xml::{CLIENT, STREAM},
};
use tokio::time::Instant;

use crate::{
    door::Door,
    metric::{ended, stream_errors},
    raw::Way,
};

/// Each input, as the first bytes of a stream, is answered with our own header and the condition.
async fn each_is_refused(ways: [Way; 3], inputs: &[(&[u8], &str)]) -> Result<()> {
    let mut counted = Vec::new();
    for (_, condition) in inputs {
        let times = inputs.iter().filter(|(_, c)| c == condition).count();
        counted.push(stream_errors(condition).times(times * ways.len()));
    }
    let deeds = async |door: &Door| {
        for (input, condition) in inputs {
            for way in ways {
                let mut raw = door.connect(way).await?;
                raw.say(input).await?;
                let header = raw.next_raw(Instant::now() + PATIENCE).await?;
                // RFC 6120, 4.9.1.2: with a header of ours, which names a host that is ours.
                let Heard::Header(header) = header else { anyhow::bail!("no header, but {header:?}") };
                // RFC 6120, 4.7.5: the lower of both versions, none where none was named.
                let version = match (*condition, header.attr("version")) {
                    ("unsupported-version", version) => version.is_none_or(|v| v == "0.9" || v == "1.0"),
                    (_, version) => version == Some("1.0"),
                };
                ensure!(header.is("stream", STREAM) && version, "{header:?}");
                ensure!(header.attr("from") == Some("localhost"), "{header:?}");
                ensure!(header.attr("id").is_some_and(|id| id.len() >= 16), "{header:?}");
                let ended = raw.stream_error(condition).await;
                ended.with_context(|| format!("{} by {way:?}", String::from_utf8_lossy(input)))?;
            }
        }
        Ok(())
    };
    Door::shared().await?.row(counted, deeds).await
}

/// A header with these attributes and namespaces.
fn header(stream: &str, content: &str, attributes: &str) -> Vec<u8> {
    format!("<?xml version='1.0'?><stream:stream xmlns='{content}' xmlns:stream='{stream}' {attributes}>")
        .into_bytes()
}

/// Input: first bytes that are no XML.
///
/// Outcome: a header of ours, then `not-well-formed`.
#[tokio::test]
async fn row_015_no_xml_is_answered_with_a_header_and_an_error() -> Result<()> {
    let bad = "not-well-formed";
    each_is_refused(Way::ALL, &[(b"<'/>", bad), (b"<<", bad), (b"stream", bad), (b"<stream:stream =''", bad)])
        .await
}

/// Input: a well-formed first element that is no stream.
///
/// Outcome: a header of ours, then `invalid-namespace`, or `bad-format` in the right namespace.
#[tokio::test]
async fn row_016_another_root_than_a_stream_is_refused() -> Result<()> {
    let other = format!("<s:features xmlns:s='{STREAM}' to='localhost' version='1.0'/>").into_bytes();
    each_is_refused(
        Way::ALL,
        &[
            (b"<c xmlns='http://jabber.org/protocol/caps'/>", "invalid-namespace"),
            (b"<message xmlns='jabber:client'/>", "invalid-namespace"),
            (b"<stream to='localhost' version='1.0'>", "invalid-namespace"),
            (&other, "bad-format"),
        ],
    )
    .await
}

/// Input: a content namespace that nobody knows.
///
/// Outcome: `invalid-namespace`.
#[tokio::test]
async fn row_017_an_unknown_content_namespace_is_refused() -> Result<()> {
    each_is_refused(
        Way::ALL,
        &[(&header(STREAM, "wrong", "to='localhost' version='1.0'"), "invalid-namespace")],
    )
    .await
}

/// Input: no content namespace, or that of the stream, so that each stanza must name its own; with the name of the
/// client.
///
/// Outcome: taken as any other, and the answer is to the client.
#[tokio::test]
async fn row_017_a_header_may_leave_the_namespace_to_stanzas() -> Result<()> {
    let opens = [
        format!("<stream xmlns='{STREAM}' from='a@localhost' to='localhost' version='1.0'>"),
        format!("<s:stream xmlns:s='{STREAM}' from='a@localhost' to='localhost' version='1.0'>"),
    ];
    let deeds = async |door: &Door| {
        for open in &opens {
            for way in Way::ALL {
                let mut raw = door.connect(way).await?;
                raw.say(open).await?;
                let Heard::Header(answer) = raw.next_raw(Instant::now() + PATIENCE).await? else {
                    anyhow::bail!("no header")
                };
                ensure!(answer.attr("to") == Some("a@localhost"), "{answer:?}");
                ensure!(raw.next().await?.is("features", STREAM), "no features for {open}");
                raw.say(if open.starts_with("<s:") { "</s:stream>" } else { "</stream>" }).await?;
                raw.closed().await?;
            }
        }
        Ok(())
    };
    Door::shared().await?.row([ended("closed").times(opens.len() * Way::ALL.len())], deeds).await
}

/// Input: the namespace of servers or of components on a port for clients.
///
/// Outcome: `invalid-namespace`.
#[tokio::test]
async fn row_018_a_server_at_the_clients_port_is_refused() -> Result<()> {
    let attributes = "to='localhost' version='1.0'";
    each_is_refused(
        Way::ALL,
        &[
            (&header(STREAM, "jabber:server", attributes), "invalid-namespace"),
            (&header(STREAM, "jabber:component:accept", attributes), "invalid-namespace"),
        ],
    )
    .await
}

/// Input: another namespace of the stream itself.
///
/// Outcome: `invalid-namespace`.
#[tokio::test]
async fn row_019_another_stream_namespace_is_refused() -> Result<()> {
    let attributes = "to='localhost' version='1.0'";
    each_is_refused(
        Way::ALL,
        &[
            (&header("http://etherx.jabber.org/stream", CLIENT, attributes), "invalid-namespace"),
            (&header("http://etherx.jabber.org/streams&#10;", CLIENT, attributes), "invalid-namespace"),
        ],
    )
    .await
}

/// Input: a host that is not served here, or that is no host.
///
/// Outcome: `host-unknown`.
#[tokio::test]
async fn row_020_a_host_that_is_not_served_is_refused() -> Result<()> {
    let to = |host: &str| header(STREAM, CLIENT, &format!("to='{host}' version='1.0'"));
    each_is_refused(
        Way::ALL,
        &[
            (&to("wrong.com"), "host-unknown"),
            (&to("sub.localhost"), "host-unknown"),
            (&to("alice@localhost"), "host-unknown"),
            (&to("localhost/x"), "host-unknown"),
            (&to("@@@"), "host-unknown"),
            (&to(&"x".repeat(2_000)), "host-unknown"),
        ],
    )
    .await
}

/// Input: no `to`, or an empty one.
///
/// Outcome: `improper-addressing`.
#[tokio::test]
async fn row_021_a_header_without_a_host_is_refused() -> Result<()> {
    each_is_refused(
        Way::ALL,
        &[
            (&header(STREAM, CLIENT, "version='1.0'"), "improper-addressing"),
            (&header(STREAM, CLIENT, "to='' version='1.0'"), "improper-addressing"),
        ],
    )
    .await
}

/// Input: no `version`, one below 1.0, or one that is no version.
///
/// Outcome: `unsupported-version`.
#[tokio::test]
async fn row_022_an_old_version_is_refused() -> Result<()> {
    let of = |version: &str| header(STREAM, CLIENT, &format!("to='localhost' {version}"));
    each_is_refused(
        Way::ALL,
        &[
            (&of(""), "unsupported-version"),
            (&of("version='0.9'"), "unsupported-version"),
            (&of("version='0'"), "unsupported-version"),
            (&of("version='one'"), "unsupported-version"),
            (&of("version=''"), "unsupported-version"),
        ],
    )
    .await
}

/// Input: a later version than there is.
///
/// Outcome: answered as 1.0, and the stream goes on.
#[tokio::test]
async fn row_023_a_later_version_is_answered_with_1_0() -> Result<()> {
    let versions = ["2.7", "1.1", "01.0", "4294967296.0"];
    let deeds = async |door: &Door| {
        for version in versions {
            for way in Way::ALL {
                let mut raw = door.connect(way).await?;
                raw.say(header(STREAM, CLIENT, &format!("to='localhost' version='{version}'"))).await?;
                let Heard::Header(answer) = raw.next_raw(Instant::now() + PATIENCE).await? else {
                    anyhow::bail!("no header")
                };
                ensure!(answer.attr("version") == Some("1.0"), "{answer:?}");
                ensure!(raw.next().await?.is("features", STREAM), "no features for version `{version}`");
                raw.say("</stream:stream>").await?;
                raw.closed().await?;
            }
        }
        Ok(())
    };
    let counted = [ended("closed").times(versions.len() * Way::ALL.len())];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: a language tag of 4 KB.
///
/// Outcome: `policy-violation`.
#[tokio::test]
async fn row_024_an_endless_language_is_refused() -> Result<()> {
    let lang = "x".repeat(4096);
    let attributes = format!("to='localhost' version='1.0' xml:lang='{lang}'");
    each_is_refused(Way::ALL, &[(&header(STREAM, CLIENT, &attributes), "policy-violation")]).await
}

/// Input: another encoding than UTF-8: declared, or shown by a byte order mark. Another version of XML, or a document
/// that says not to stand alone.
///
/// Outcome: `unsupported-encoding`, `not-well-formed`, or `restricted-xml`.
#[tokio::test]
async fn row_026_another_encoding_is_refused() -> Result<()> {
    let utf_16: Vec<u8> = "\u{feff}<stream:stream".encode_utf16().flat_map(u16::to_le_bytes).collect();
    each_is_refused(
        Way::ALL,
        &[
            (b"<?xml version='1.0' encoding='iso-8859-1'?>", "unsupported-encoding"),
            (b"<?xml version='1.0' encoding='UTF-16'?>", "unsupported-encoding"),
            (b"<?xml version='1.1'?>", "restricted-xml"),
            (b"<?xml version='1.0' standalone='no'?>", "restricted-xml"),
            (&utf_16, "not-well-formed"),
            (b"\xef\xbb\xbf<?xml version='1.0'?>", "not-well-formed"),
        ],
    )
    .await
}

//! Row 10: random stanzas through the server are read again by libexpat, and nothing of them has changed.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tests::{
    client::Heard,
    people::{Person, befriend, go_online, ping},
    xml::{CLIENT, STREAM, escape},
};
use tokio::{process::Command, time::Instant};

use crate::{
    door::Door,
    generator::{self, Chance, DECLARED, Place},
    metric::{Metric, stanzas},
    raw::{Raw, Way},
};

/// Stanzas of one sender before the receiver has confirmed them.
const BATCH: usize = 50;
/// Batches of one stream, with the same declarations.
const BATCHES: usize = 20;
/// Streams that are damaged at the same time.
const AT_ONCE: usize = 8;

/// How many stanzas there shall be; `ROOKERY_STANZAS` asks for more.
fn wanted(usual: usize) -> usize {
    std::env::var("ROOKERY_STANZAS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// The seed of all chance; `ROOKERY_SEED` asks for another.
fn seed() -> u64 {
    std::env::var("ROOKERY_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// What libexpat is given: what each sender wrote, and what the receiver read.
struct Protocol {
    folder: tempfile::TempDir,
    sent: fs::File,
    received: fs::File,
}

impl Protocol {
    fn new() -> Result<Protocol> {
        let folder = tempfile::tempdir()?;
        let file = |name| fs::File::create(folder.path().join(name));
        Ok(Protocol { sent: file("sent")?, received: file("received")?, folder })
    }

    fn sent(&mut self, from: &str, bytes: &[u8], damaged: bool, end: &str) -> Result<()> {
        let bytes = BASE64_STANDARD.encode(bytes);
        let line = json!({ "from": from, "bytes": bytes, "damaged": damaged, "end": end });
        Ok(writeln!(self.sent, "{line}")?)
    }

    /// Lets libexpat compare.
    async fn compare(self) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad_input/infoset.py");
        let out = Command::new("python3").arg(script).arg(self.folder.path()).output().await?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        print!("{said}");
        if !out.status.success() {
            let kept: PathBuf = self.folder.keep();
            let error = String::from_utf8_lossy(&out.stderr);
            anyhow::bail!("{said}{error}seed {}; the streams are in {}", seed(), kept.display());
        }
        Ok(())
    }
}

/// The receiver, with the whole of its stream since the header.
async fn receiver(door: &Door, bob: &Person, protocol: &mut Protocol) -> Result<Raw> {
    let mut raw = door.stream(Way::Direct).await?;
    ensure!(raw.try_authenticate(&bob.user, &bob.password, "SCRAM-SHA-256").await?.is_ok(), "refused");
    raw.begin_stream().await?;
    raw.bind(None).await?;
    go_online(&mut raw, None).await?;
    // What it reads from here on is looked at by libexpat alone, inside a header as the server's own.
    let header = format!("<stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' xml:lang='en'>");
    protocol.received.write_all(header.as_bytes())?;
    Ok(raw)
}

/// Reads until `mark` has come, keeping all of it.
async fn read_until(receiver: &mut Raw, protocol: &mut Protocol, mark: &str) -> Result<()> {
    let mut last = Vec::new();
    while !last.windows(mark.len()).any(|w| w == mark.as_bytes()) {
        let bytes = receiver.read_bytes().await.with_context(|| format!("while waiting for `{mark}`"))?;
        ensure!(!bytes.is_empty(), "the receiver's stream has ended");
        protocol.received.write_all(&bytes)?;
        last.drain(..last.len().saturating_sub(mark.len()));
        last.extend_from_slice(&bytes);
    }
    Ok(())
}

/// A sender that is bound on a stream whose header declares much; the bytes that it has sent on it so far.
async fn sender(door: &Door, person: &Person, way: Way, lang: &str) -> Result<(Raw, Vec<u8>)> {
    let mut raw = door.stream(way).await?;
    let mechanism = if way == Way::Plain { "SCRAM-SHA-1" } else { "PLAIN" };
    let authenticated = raw.try_authenticate(&person.user, &person.password, mechanism).await?;
    ensure!(authenticated.is_ok(), "refused: {authenticated:?}");
    raw.expect_stream();
    let header = format!(
        "<?xml version='1.0'?><stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}'{DECLARED}{lang} \
         to='localhost' version='1.0'>"
    );
    raw.say(&header).await?;
    raw.next().await?;
    raw.bind(None).await?;
    Ok((raw, header.into_bytes()))
}

/// Input: random stanzas with every quote, white space, reference, CDATA section, prefix and redeclaration that
/// XML allows.
///
/// Outcome: another session gets each of them once, in order, and libexpat reads in it what it reads in what was
/// sent. `ROOKERY_STANZAS` asks for more of them.
#[tokio::test]
async fn row_010_what_is_relayed_is_the_same_to_another_parser() -> Result<()> {
    let count = wanted(4_000);
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        // What strangers ask reaches nobody.
        befriend(door.addresses(), &alice, &bob).await?;
        let mut chance = Chance::new(seed());
        let mut done = 0;
        while done < count {
            // A new pair of sessions now and then: the streams are compared in pieces that fit memory.
            let mut protocol = Protocol::new()?;
            let mut bobs = receiver(door, &bob, &mut protocol).await?;
            let place = Place { to: escape(&bobs.jid()) };
            for lang in [" xml:lang='de'", "", " xml:lang='x&amp;y'"] {
                let way = if lang.is_empty() { Way::Direct } else { Way::StartTls };
                let (mut alices, mut sent) = sender(door, &alice, way, lang).await?;
                for _ in 0..BATCHES.min((count - done).div_ceil(BATCH)) {
                    let mut batch = String::new();
                    for _ in 0..BATCH {
                        batch += &generator::stanza(&mut chance, &place, &format!("i{done}"));
                        batch += ["", " ", "\n"][done % 3];
                        done += 1;
                    }
                    let mark = format!("mark-{done}-");
                    batch += &format!("<message to='{}' id='{mark}'/>", place.to);
                    alices.say(&batch).await?;
                    sent.extend_from_slice(batch.as_bytes());
                    if let Err(error) = read_until(&mut bobs, &mut protocol, &mark).await {
                        // Whose fault it is, the other parser knows.
                        protocol.sent(&alices.jid(), &sent, false, "gone")?;
                        return protocol.compare().await.and(Err(error));
                    }
                }
                let end = "</stream:stream>";
                alices.say(end).await?;
                alices.closed().await?;
                sent.extend_from_slice(end.as_bytes());
                protocol.sent(&alices.jid(), &sent, false, "closed")?;
            }
            protocol.compare().await?;
        }
        Ok(())
    };
    let counted = [stanzas("message", "delivered").times(count / 2), stanzas("iq", "delivered")];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: the same stanzas with a few bytes left out, put in or changed.
///
/// Outcome: what libexpat cannot read ends the sender's stream; of what stands behind the damage nothing is
/// delivered, and the damaged stanza never becomes another one, or two.
#[tokio::test]
async fn row_010_what_is_damaged_is_never_relayed() -> Result<()> {
    let count = wanted(800) / 2;
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let mut chance = Chance::new(seed() ^ 0xdead);
        let mut done = 0;
        while done < count {
            let mut protocol = Protocol::new()?;
            let mut bobs = receiver(door, &bob, &mut protocol).await?;
            let place = Place { to: escape(&bobs.jid()) };
            let part = (count - done).min(400);
            let damaged: Vec<Vec<u8>> = (0..part)
                .map(|n| {
                    let good = generator::stanza(&mut chance, &place, &format!("good{n}"));
                    let bad = generator::stanza(&mut chance, &place, &format!("bad{n}"));
                    let behind = format!("<message to='{}' id='behind{n}'/></stream:stream>", place.to);
                    [good.as_bytes(), &generator::damage(&mut chance, &bad), behind.as_bytes()].concat()
                })
                .collect();
            let (door, alice) = (door, &alice);
            let ends = stream::iter(&damaged).map(|bytes| async move {
                let (mut alices, sent) = sender(door, alice, Way::Plain, " xml:lang='de'").await?;
                let end = how_it_ends(&mut alices, bytes).await?;
                anyhow::Ok((alices.jid(), [&sent, &bytes[..]].concat(), end))
            });
            let ends: Vec<_> = ends.buffered(AT_ONCE).try_collect().await?;
            for (from, bytes, end) in ends {
                protocol.sent(&from, &bytes, true, &end)?;
            }
            let mark = format!("last-{done}");
            bobs.send(&ping("localhost", &mark)).await?;
            read_until(&mut bobs, &mut protocol, &mark).await?;
            protocol.compare().await?;
            done += part;
        }
        Ok(())
    };
    let counted =
        [Metric::named("rookery_stream_errors_total{condition=\"not-well-formed\"}").times(count / 4)];
    Door::without_tls().await?.row(counted, deeds).await
}

/// Sends the bytes and the end of the connection; the condition that the server ends the stream with, `closed`
/// where it closed it as it was asked to, `gone` where it saw the connection end.
async fn how_it_ends(raw: &mut Raw, bytes: &[u8]) -> Result<String> {
    raw.say(bytes).await?;
    raw.finish().await?;
    let mut end = "gone".to_owned();
    loop {
        match raw.next_raw(Instant::now() + tests::client::PATIENCE).await? {
            Heard::Element(error) if error.is("error", STREAM) => {
                let condition = error.nodes().next().context("a stream error without a condition")?;
                end = condition.name.clone();
            }
            // Answers to its own stanzas.
            Heard::Element(_) | Heard::Header(_) => {}
            Heard::End => {
                let rest = raw.until_closed().await?;
                ensure!(rest.is_empty(), "bytes after the end");
                return Ok(end);
            }
        }
    }
}

//! A connection that sends whatever bytes it likes, and says what the server must answer.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result, bail, ensure};
use tests::{
    client::{Client, Heard, PATIENCE, unique},
    people::ping,
    xml::{CLIENT, Node, STREAM},
};
use tokio::time::Instant;

/// Namespace of the conditions of stream errors.
const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// Namespace of the conditions of stanza errors.
const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// How bytes reach the server's XML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TCP, no TLS.
    Plain,
    /// TCP with STARTTLS, which is done before the row begins.
    StartTls,
    /// TLS from the first byte.
    Direct,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Plain, Way::StartTls, Way::Direct];
    /// Where a client can log in with default settings.
    pub const TLS: [Way; 2] = [Way::StartTls, Way::Direct];
}

/// A client in whatever state it is, with the server's answers as a row expects them.
/// What an ordinary client can do ([`Client`]), it can do too.
pub struct Raw {
    client: Client,
    /// Host that `header` names.
    host: String,
}

impl Deref for Raw {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Raw {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Raw {
    pub fn over(client: Client, host: &str) -> Raw {
        Raw { client, host: host.to_owned() }
    }

    /// A good stream header, for rows that send it in their own way.
    pub fn header(&self) -> String {
        header(&self.host)
    }

    /// Sends bytes as they are, in one write.
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.client.send_bytes(bytes.as_ref()).await
    }

    /// Sends pieces, each in a write of its own.
    pub async fn say_pieces(&mut self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<()> {
        for piece in pieces {
            self.client.send_bytes(piece.as_ref()).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sends pieces for as long as the server takes them; how many bytes it took.
    pub async fn pour(&mut self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> u64 {
        let mut poured = 0;
        for piece in pieces {
            if self.client.send_bytes(piece.as_ref()).await.is_err() {
                break;
            }
            poured += piece.as_ref().len() as u64;
        }
        poured
    }

    /// The server ends the stream with this error: its own header where none was sent yet, the error, the
    /// closing tag, the end of the socket, and nothing besides.
    pub async fn stream_error(&mut self, condition: &str) -> Result<Node> {
        let (error, name) = self.any_stream_error().await?;
        ensure!(name == condition, "`{name}` in place of `{condition}`: {}", error.pretty().join("\n"));
        Ok(error)
    }

    /// As [`Raw::stream_error`], where one of several conditions will do.
    pub async fn stream_error_of(&mut self, conditions: &[&str]) -> Result<String> {
        let (error, name) = self.any_stream_error().await?;
        ensure!(conditions.contains(&name.as_str()), "none of {conditions:?}: {}", error.pretty().join("\n"));
        Ok(name)
    }

    async fn any_stream_error(&mut self) -> Result<(Node, String)> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.client.next_raw(deadline).await?;
        if let Heard::Header(header) = &heard {
            // RFC 6120, 4.9.1.2: also a stream that never began is answered with a header.
            ensure!(
                header.is("stream", STREAM) && header.attr("id").is_some(),
                "a strange header: {header:?}"
            );
            heard = self.client.next_raw(deadline).await?;
        }
        let Heard::Element(error) = heard else { bail!("no stream error, but {heard:?}") };
        ensure!(error.is("error", STREAM), "no stream error, but {}", error.pretty().join("\n"));
        let condition = error.nodes().find(|n| n.ns == STREAM_ERRORS && n.name != "text");
        let name = condition.context("a stream error without a condition")?.name.clone();
        self.closed().await.with_context(|| format!("after `{name}`"))?;
        Ok((error, name))
    }

    /// The server closes the stream and the socket without a further word.
    pub async fn closed(&mut self) -> Result<()> {
        match self.client.next_raw(Instant::now() + PATIENCE).await? {
            Heard::End => {}
            other => bail!("the stream goes on with {other:?}"),
        }
        let rest = self.client.until_closed().await?;
        ensure!(rest.is_empty(), "bytes after the end: {}", String::from_utf8_lossy(&rest));
        Ok(())
    }

    /// The next element is this stanza error; the stream lives.
    pub async fn stanza_error(&mut self, condition: &str) -> Result<Node> {
        let answer = self.client.next().await?;
        let name = stanza_condition(&answer);
        ensure!(name == Some(condition), "no `{condition}`, but {}", answer.pretty().join("\n"));
        Ok(answer)
    }

    /// The next element is this SASL failure; the stream lives.
    pub async fn sasl_failure(&mut self, condition: &str) -> Result<Node> {
        let answer = self.client.next().await?;
        let fits = answer.is("failure", SASL) && answer.child(condition, SASL).is_some();
        ensure!(fits, "no `{condition}`, but {}", answer.pretty().join("\n"));
        Ok(answer)
    }

    /// A ping of the server is answered, and nothing comes before that.
    pub async fn works_and_heard_nothing(&mut self) -> Result<()> {
        let before = self.up_to_pong().await?;
        let lines: Vec<String> = before.iter().flat_map(Node::pretty).collect();
        ensure!(lines.is_empty(), "heard besides:\n{}", lines.join("\n"));
        Ok(())
    }

    /// A ping of the server is answered; what came before that.
    pub async fn up_to_pong(&mut self) -> Result<Vec<Node>> {
        let id = unique("works");
        self.client.send(&ping(&self.host, &id)).await?;
        let mut before = Vec::new();
        loop {
            let node = self.client.next().await.context("while waiting for a pong")?;
            if node.attr("id") == Some(&id) {
                ensure!(node.attr("type") == Some("result"), "{}", node.pretty().join("\n"));
                return Ok(before);
            }
            before.push(node);
        }
    }

    /// The address of a bound session.
    pub fn jid(&self) -> String {
        self.client.jid.clone().unwrap_or_default()
    }
}

/// A stream header as clients send it.
pub fn header(host: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' to='{host}' version='1.0'>"
    )
}

/// The condition of a stanza of type `error`.
pub fn stanza_condition(stanza: &Node) -> Option<&str> {
    let error = stanza.child("error", CLIENT).filter(|_| stanza.attr("type") == Some("error"))?;
    error.nodes().find(|n| n.ns == STANZA_ERRORS && n.name != "text").map(|n| n.name.as_str())
}

//! An XMPP client for tests: TLS, SASL, binding, and an `expect` with a bound.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{ClientConfig, client::danger};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use crate::{
    certificates::Identity,
    ground::Space,
    scram::{Exchange, Hash},
    xml::{Assembler, CLIENT, Node, Piece, STREAM, escape},
};

/// How long a client waits for anything, unless it says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(15);

const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const SASL2: &str = "urn:xmpp:sasl:2";
const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
const CHANNEL_BINDING: &str = "urn:xmpp:sasl-cb:0";

/// Ids of pings that only mark a place in the order of stanzas begin so.
pub const FENCE: &str = "fence-";

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// What a client meets next on its stream.
#[derive(Debug)]
pub enum Heard {
    Header(Node),
    Element(Node),
    /// The stream's closing tag, or the end of the socket.
    End,
}

/// How a client reaches a node.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// STARTTLS port.
    pub c2s: SocketAddr,
    /// Direct TLS port (XEP-0368).
    pub direct: SocketAddr,
    /// Where the client is.
    pub space: Space,
}

/// One connection, in whatever state it is.
pub struct Client {
    reader: Option<ReadHalf<Box<dyn Socket>>>,
    writer: Option<WriteHalf<Box<dyn Socket>>>,
    assembler: Assembler,
    unread: VecDeque<Heard>,
    /// Elements that were read while waiting for another one.
    kept: VecDeque<Node>,
    host: String,
    /// The bound address.
    pub jid: Option<String>,
    /// What was heard of mechanisms and types of channel binding before login.
    offer: (Vec<String>, Vec<String>),
    /// The channel below, once there is TLS.
    channel: Option<Channel>,
}

/// What a login can be bound to.
#[derive(Clone)]
pub struct Channel {
    /// `tls-exporter` (RFC 9266); none in TLS 1.2.
    pub exporter: Option<Vec<u8>>,
    /// The server's certificate.
    pub certificate: Vec<u8>,
    /// Whether an older session was resumed.
    pub resumed: bool,
}

impl Channel {
    fn of(tls: &rustls::ClientConnection) -> Result<Channel> {
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let export = || tls.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", Some(&[]));
        let exporter = if tls13 { Some(export()?) } else { None };
        let chain = tls.peer_certificates().context("no certificate")?;
        let certificate = chain.first().context("an empty chain")?.to_vec();
        let resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Ok(Channel { exporter, certificate, resumed })
    }

    /// `tls-server-end-point` (RFC 5929, 4) of a certificate that is signed with SHA-256.
    pub fn endpoint(&self) -> Vec<u8> {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.certificate).as_ref().to_vec()
    }

    /// The header and the data of a login that is bound to this channel as strongly as can be.
    fn binding(&self) -> (&'static str, Vec<u8>) {
        match &self.exporter {
            Some(exporter) => ("p=tls-exporter,,", exporter.clone()),
            None => ("p=tls-server-end-point,,", self.endpoint()),
        }
    }
}

impl Client {
    /// Connects to the STARTTLS port and says nothing.
    pub async fn open_plain(door: Door, host: &str) -> Result<Client> {
        let socket = door
            .space
            .connect(door.c2s)
            .await
            .with_context(|| format!("failed to connect to {}", door.c2s))?;
        socket.set_nodelay(true)?;
        Ok(Client::over(socket, host))
    }

    /// Connects to the direct TLS port and says nothing inside.
    pub async fn open_direct(door: Door, host: &str) -> Result<Client> {
        Client::open_direct_with(door, host, tls_config()).await
    }

    /// As `open_direct`, with TLS settings of one's own.
    pub async fn open_direct_with(door: Door, host: &str, tls: Arc<ClientConfig>) -> Result<Client> {
        let socket = door
            .space
            .connect(door.direct)
            .await
            .with_context(|| format!("failed to connect to {}", door.direct))?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned())?;
        let tls = TlsConnector::from(tls).connect(name, socket);
        let tls = tokio::time::timeout(PATIENCE, tls).await.context("the TLS handshake took too long")??;
        ensure!(tls.get_ref().1.alpn_protocol() == Some(b"xmpp-client"), "no ALPN `xmpp-client` was agreed");
        let channel = Channel::of(tls.get_ref().1)?;
        Ok(Client { channel: Some(channel), ..Client::over(tls, host) })
    }

    /// A stream inside TLS whose features were heard: by STARTTLS, or directly.
    pub async fn open(door: Door, host: &str, direct: bool) -> Result<(Client, Node)> {
        if direct {
            let mut client = Client::open_direct(door, host).await?;
            let features = client.begin_stream().await?;
            return Ok((client, features));
        }
        let mut client = Client::open_plain(door, host).await?;
        let features = client.begin_stream().await?;
        ensure!(features.child("starttls", TLS).is_some(), "STARTTLS is not offered: {features:?}");
        ensure!(features.child("mechanisms", SASL).is_none(), "mechanisms are offered before TLS");
        client.start_tls().await?;
        let features = client.begin_stream().await?;
        Ok((client, features))
    }

    /// Logs in and binds; a missing resource is the server's to make.
    pub async fn log_in(door: Door, who: &Login<'_>) -> Result<Client> {
        let (mut client, features) = Client::open(door, who.host, who.direct).await?;
        ensure!(offers(&features, who.mechanism), "`{}` is not offered: {features:?}", who.mechanism);
        client.authenticate(who.user, who.password, who.mechanism).await?;
        client.bind(who.resource).await?;
        Ok(client)
    }

    /// Sends a stream header; gives the features that answer it.
    pub async fn begin_stream(&mut self) -> Result<Node> {
        self.expect_stream();
        let header = format!(
            "<?xml version='1.0'?><stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' to='{}' version='1.0'>",
            escape(&self.host)
        );
        self.send(&header).await?;
        let Heard::Header(answer) = self.next_raw(Instant::now() + PATIENCE).await? else {
            bail!("no stream header was answered")
        };
        ensure!(answer.is("stream", STREAM), "another root than a stream: {answer:?}");
        let features = self.next().await?;
        ensure!(features.is("features", STREAM), "no features, but {}", features.pretty().join("\n"));
        self.offer = (
            names(&features, ("mechanisms", SASL), |n| Some(n.text())),
            names(&features, ("sasl-channel-binding", CHANNEL_BINDING), |n| {
                n.attr("type").map(str::to_owned)
            }),
        );
        Ok(features)
    }

    /// What the server says next is a new stream.
    pub fn expect_stream(&mut self) {
        self.assembler = Assembler::new();
        self.unread.clear();
    }

    /// Asks for TLS on a stream that offers it, and starts it.
    pub async fn start_tls(&mut self) -> Result<()> {
        self.start_tls_with(tls_config()).await
    }

    /// As `start_tls`, with TLS settings of one's own.
    pub async fn start_tls_with(&mut self, tls: Arc<ClientConfig>) -> Result<()> {
        self.send(&format!("<starttls xmlns='{TLS}'/>")).await?;
        let answer = self.next().await?;
        ensure!(answer.is("proceed", TLS), "no proceed, but {}", answer.pretty().join("\n"));
        self.handshake(tls).await
    }

    /// The handshake behind a `<proceed/>` that was asked for in a way of one's own.
    pub async fn secure(&mut self) -> Result<()> {
        let answer = self.next().await?;
        ensure!(answer.is("proceed", TLS), "no proceed, but {}", answer.pretty().join("\n"));
        self.handshake(tls_config()).await
    }

    async fn handshake(&mut self, tls: Arc<ClientConfig>) -> Result<()> {
        let (reader, writer) = (self.reader.take(), self.writer.take());
        let (reader, writer) = reader.zip(writer).context("the connection has ended")?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = TlsConnector::from(tls).connect(name, reader.unsplit(writer));
        let tls = tokio::time::timeout(PATIENCE, tls).await.context("the TLS handshake took too long")??;
        self.channel = Some(Channel::of(tls.get_ref().1)?);
        let (reader, writer) = tokio::io::split(Box::new(tls) as Box<dyn Socket>);
        (self.reader, self.writer) = (Some(reader), Some(writer));
        Ok(())
    }

    /// Authenticates and restarts the stream; a refusal is the condition of the failure.
    pub async fn authenticate(&mut self, user: &str, password: &str, mechanism: &str) -> Result<()> {
        if let Err(condition) = self.try_authenticate(user, password, mechanism).await? {
            bail!("`{user}` was refused with `{condition}`");
        }
        self.begin_stream().await.map(drop)
    }

    /// One attempt at SASL on this stream. The inner error is the condition that the server named.
    pub async fn try_authenticate(
        &mut self,
        user: &str,
        password: &str,
        mechanism: &str,
    ) -> Result<Result<(), String>> {
        if mechanism == "PLAIN" {
            let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
            self.send(&format!("<auth xmlns='{SASL}' mechanism='PLAIN'>{plain}</auth>")).await?;
            let answer = self.next().await?;
            return Ok(if answer.is("success", SASL) { Ok(()) } else { Err(condition(&answer)) });
        }
        if matches!(mechanism, "EXTERNAL" | "ANONYMOUS") {
            self.send(&format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>=</auth>")).await?;
            let answer = self.next().await?;
            return Ok(if answer.is("success", SASL) { Ok(()) } else { Err(condition(&answer)) });
        }
        let (header, data) = match &self.channel {
            Some(channel) if mechanism.ends_with("-PLUS") => channel.binding(),
            _ => ("n,,", Vec::new()),
        };
        self.exchange(user, password, mechanism, header, &data).await
    }

    /// One attempt at SCRAM with a header and binding data of one's own.
    pub async fn exchange(
        &mut self,
        user: &str,
        password: &str,
        mechanism: &str,
        header: &str,
        data: &[u8],
    ) -> Result<Result<(), String>> {
        let (mut exchange, first) =
            Exchange::bound(Hash::of(mechanism)?, user, &unique("nonce"), header, data);
        exchange.insist(&self.offer.0, &self.offer.1);
        let first = BASE64_STANDARD.encode(first);
        self.send(&format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{first}</auth>")).await?;
        let challenge = self.next().await?;
        if !challenge.is("challenge", SASL) {
            return Ok(Err(condition(&challenge)));
        }
        let server_first = String::from_utf8(BASE64_STANDARD.decode(challenge.text().trim())?)?;
        let last = BASE64_STANDARD.encode(exchange.respond(&server_first, password)?);
        self.send(&format!("<response xmlns='{SASL}'>{last}</response>")).await?;
        let answer = self.next().await?;
        if !answer.is("success", SASL) {
            return Ok(Err(condition(&answer)));
        }
        exchange.check(&String::from_utf8(BASE64_STANDARD.decode(answer.text().trim())?)?)?;
        Ok(Ok(()))
    }

    /// Logs in by XEP-0388 and asks for `beside` with it. What the server says at last is left to be heard.
    pub async fn sign_in(&mut self, user: &str, password: &str, mechanism: &str, beside: &str) -> Result<()> {
        let say = |first: &[u8]| {
            let first = BASE64_STANDARD.encode(first);
            format!(
                "<authenticate xmlns='{SASL2}' mechanism='{mechanism}'>\
                 <initial-response>{first}</initial-response>{beside}</authenticate>"
            )
        };
        if mechanism.starts_with("HT-SHA-256-") {
            return self.show_token(user, password, mechanism, say).await;
        }
        if !mechanism.starts_with("SCRAM") {
            let first = if mechanism == "PLAIN" { format!("\0{user}\0{password}") } else { String::new() };
            return self.send(&say(first.as_bytes())).await;
        }
        let (header, data) = match &self.channel {
            Some(channel) if mechanism.ends_with("-PLUS") => channel.binding(),
            _ => ("n,,", Vec::new()),
        };
        let (mut exchange, first) =
            Exchange::bound(Hash::of(mechanism)?, user, &unique("nonce"), header, &data);
        exchange.insist(&self.offer.0, &self.offer.1);
        self.send(&say(first.as_bytes())).await?;
        let challenge = self.next().await?;
        if !challenge.is("challenge", SASL2) {
            self.kept.push_front(challenge);
            return Ok(());
        }
        let server_first = String::from_utf8(BASE64_STANDARD.decode(challenge.text().trim())?)?;
        let last = BASE64_STANDARD.encode(exchange.respond(&server_first, password)?);
        self.send(&format!("<response xmlns='{SASL2}'>{last}</response>")).await?;
        let answer = self.next().await?;
        if let Some(data) = answer.child("additional-data", SASL2) {
            exchange.check(&String::from_utf8(BASE64_STANDARD.decode(data.text().trim())?)?)?;
        }
        self.kept.push_front(answer);
        Ok(())
    }

    /// Logs in by a token (draft-schmaus-kitten-sasl-ht-09), and wants the server to prove that it knows it.
    async fn show_token(
        &mut self,
        user: &str,
        token: &str,
        mechanism: &str,
        say: impl Fn(&[u8]) -> String,
    ) -> Result<()> {
        let data = match mechanism.rsplit('-').next() {
            Some("EXPR") => self.channel()?.exporter.clone().context("no exporter")?,
            Some("ENDP") => self.channel()?.endpoint(),
            _ => Vec::new(),
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
        let hash = |who: &[u8]| hmac::sign(&key, &[who, &data].concat()).as_ref().to_vec();
        let first = [user.as_bytes(), b"\0", &hash(b"Initiator")].concat();
        self.send(&say(&first)).await?;
        let answer = self.next().await?;
        if answer.is("success", SASL2) {
            let proof = answer.child("additional-data", SASL2).map(Node::text).unwrap_or_default();
            let proof = BASE64_STANDARD.decode(proof.trim())?;
            ensure!(proof == hash(b"Responder"), "the server does not know the token");
        }
        self.kept.push_front(answer);
        Ok(())
    }

    /// Remembers the address of a session that was bound or resumed with the login.
    pub fn note_address(&mut self, heard: &Node) {
        let jid = heard.child("authorization-identifier", SASL2).map(Node::text);
        if let Some(jid) = jid.filter(|jid| heard.is("success", SASL2) && jid.contains('/')) {
            self.jid = Some(jid);
        }
    }

    /// The first of what was heard while something else was waited for.
    pub fn take_first_kept(&mut self) -> Option<Node> {
        self.kept.pop_front()
    }

    /// Binds a resource (RFC 6120, 7) and remembers the address.
    pub async fn bind(&mut self, resource: Option<&str>) -> Result<()> {
        let resource = resource.map(|r| format!("<resource>{}</resource>", escape(r))).unwrap_or_default();
        self.send(&format!("<iq type='set' id='bind'><bind xmlns='{BIND}'>{resource}</bind></iq>")).await?;
        let answer = self.next().await?;
        let jid = answer.child("bind", BIND).and_then(|b| b.child("jid", BIND));
        let jid = jid.with_context(|| format!("not bound: {}", answer.pretty().join("\n")))?;
        self.jid = Some(jid.text());
        Ok(())
    }

    /// Writes text to the stream as it is.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        self.send_bytes(text.as_bytes()).await
    }

    /// As `send`, of bytes that need not be text.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let writer = self.writer.as_mut().context("the connection has ended")?;
        let write = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        tokio::time::timeout(PATIENCE, write)
            .await
            .context("the server does not read")?
            .context("failed to write")
    }

    /// The next element, fences left out; an ended stream is an error.
    pub async fn next(&mut self) -> Result<Node> {
        self.next_by(Instant::now() + PATIENCE).await
    }

    /// As `next`, with a bound of its own.
    pub async fn next_by(&mut self, deadline: Instant) -> Result<Node> {
        match self.kept.pop_front() {
            Some(node) => Ok(node),
            None => self.fresh(deadline).await,
        }
    }

    /// Waits for the element that `wanted` takes; what comes before it stays to be heard.
    pub async fn wait_for(&mut self, what: &str, wanted: impl Fn(&Node) -> bool) -> Result<Node> {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at).context("found above");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let node = self.fresh(deadline).await.with_context(|| format!("while waiting for {what}"))?;
            if wanted(&node) {
                return Ok(node);
            }
            self.kept.push_back(node);
        }
    }

    /// What was heard while something else was waited for, and nobody has asked for yet.
    pub fn take_kept(&mut self) -> Vec<Node> {
        self.kept.drain(..).collect()
    }

    /// Everything that comes before the fence with one of these ids, once all of them came.
    pub async fn up_to_fences(&mut self, mut ids: Vec<String>) -> Result<Vec<Node>> {
        let mut before = self.take_kept();
        let deadline = Instant::now() + PATIENCE;
        while !ids.is_empty() {
            match self.next_raw(deadline).await.context("while waiting for the fence")? {
                Heard::Element(node) => match node.attr("id") {
                    Some(id) if id.starts_with(FENCE) => {
                        ids.retain(|i| i != id);
                        self.answer_fence(&node).await?;
                    }
                    _ => before.push(node),
                },
                Heard::Header(_) => {}
                Heard::End => bail!("the stream ended"),
            }
        }
        Ok(before)
    }

    /// Waits for the end of the stream; what comes before it is returned.
    pub async fn up_to_end(&mut self) -> Result<Vec<Node>> {
        let mut before = self.take_kept();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next_raw(deadline).await.context("while waiting for the end of the stream") {
                Ok(Heard::End) => return Ok(before),
                Ok(Heard::Element(node)) => before.push(node),
                Ok(Heard::Header(_)) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Closes the stream and waits for the server to do the same.
    pub async fn close(mut self) -> Result<()> {
        self.send("</stream:stream>").await?;
        self.up_to_end().await.map(drop)
    }

    /// The next piece of the stream, whatever it is.
    pub async fn next_raw(&mut self, deadline: Instant) -> Result<Heard> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            if let Some(heard) = self.unread.pop_front() {
                return Ok(heard);
            }
            let reader = self.reader.as_mut().context("the connection has ended")?;
            let read =
                timeout_at(deadline, reader.read(&mut buffer)).await.context("nothing came in time")?;
            // An end without close_notify, or a reset, is an end.
            let count = read.unwrap_or(0);
            if count == 0 {
                return Ok(Heard::End);
            }
            let pieces = self.assembler.feed(&buffer[..count]).map_err(anyhow::Error::msg)?;
            self.unread.extend(pieces.into_iter().map(|piece| match piece {
                Piece::Header(node) => Heard::Header(node),
                Piece::Element(node) => Heard::Element(node),
                Piece::End => Heard::End,
            }));
        }
    }

    /// Bytes as they come, past all that understands them; none at the end of the socket.
    pub async fn read_bytes(&mut self) -> Result<Vec<u8>> {
        let reader = self.reader.as_mut().context("the connection has ended")?;
        let mut buffer = vec![0; 64 * 1024];
        let read = tokio::time::timeout(PATIENCE, reader.read(&mut buffer)).await;
        let count = read.context("nothing came in time")?.unwrap_or(0);
        buffer.truncate(count);
        Ok(buffer)
    }

    /// Ends the talking half of the connection, without closing the stream.
    pub async fn finish(&mut self) -> Result<()> {
        let writer = self.writer.as_mut().context("the connection has ended")?;
        // The server may have closed it before.
        drop(writer.shutdown().await);
        Ok(())
    }

    /// Waits for the end of the socket; the bytes that come before it.
    pub async fn until_closed(&mut self) -> Result<Vec<u8>> {
        let reader = self.reader.as_mut().context("the connection has ended")?;
        let mut rest = Vec::new();
        // An end without close_notify, or a reset, is an end.
        let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut rest)).await;
        drop(read.context("the server does not close the connection")?);
        Ok(rest)
    }

    /// Two halves for whoever talks and listens at the same time.
    pub fn split(mut self) -> Result<(Mouth, Client)> {
        let writer = self.writer.take().context("the connection has ended")?;
        let (queue, mut waiting) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            let mut writer = writer;
            while let Some(text) = waiting.recv().await {
                let written = writer.write_all(text.as_bytes()).await;
                if written.is_err() || writer.flush().await.is_err() {
                    break;
                }
            }
        });
        Ok((Mouth { queue }, self))
    }

    async fn fresh(&mut self, deadline: Instant) -> Result<Node> {
        loop {
            match self.next_raw(deadline).await? {
                Heard::Element(node) if node.attr("id").is_some_and(|id| id.starts_with(FENCE)) => {
                    self.answer_fence(&node).await?;
                }
                Heard::Element(node) => return Ok(node),
                Heard::Header(_) => {}
                Heard::End => bail!("the stream ended"),
            }
        }
    }

    async fn answer_fence(&mut self, fence: &Node) -> Result<()> {
        let (Some(from), Some(id), Some("get")) = (fence.attr("from"), fence.attr("id"), fence.attr("type"))
        else {
            return Ok(());
        };
        self.send(&format!("<iq type='result' to='{}' id='{}'/>", escape(from), escape(id))).await
    }

    /// A stream over a socket that is there, which speaks to `host`.
    pub fn over(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, host: &str) -> Client {
        let (reader, writer) = tokio::io::split(Box::new(socket) as Box<dyn Socket>);
        Client {
            reader: Some(reader),
            writer: Some(writer),
            assembler: Assembler::new(),
            unread: VecDeque::new(),
            kept: VecDeque::new(),
            host: host.to_owned(),
            jid: None,
            offer: (Vec::new(), Vec::new()),
            channel: None,
        }
    }

    /// The channel below, once there is TLS.
    pub fn channel(&self) -> Result<&Channel> {
        self.channel.as_ref().context("no TLS")
    }
}

/// What the children of one stream feature say.
fn names(features: &Node, (name, ns): (&str, &str), what: impl Fn(&Node) -> Option<String>) -> Vec<String> {
    features.child(name, ns).into_iter().flat_map(Node::nodes).filter_map(what).collect()
}

/// The talking half of a split client: what it says waits for the server to read it.
#[derive(Clone)]
pub struct Mouth {
    queue: mpsc::UnboundedSender<String>,
}

impl Mouth {
    /// Queues text for the stream; of a stream that has ended nobody hears it.
    pub fn say(&self, text: String) {
        drop(self.queue.send(text));
    }
}

/// Who logs in, and how.
pub struct Login<'a> {
    pub user: &'a str,
    pub host: &'a str,
    pub password: &'a str,
    pub resource: Option<&'a str>,
    pub mechanism: &'a str,
    /// Direct TLS instead of STARTTLS.
    pub direct: bool,
}

/// A text that no other call in this process returns.
pub fn unique(word: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{word}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether stream features name a mechanism.
pub fn offers(features: &Node, mechanism: &str) -> bool {
    let mechanisms = features.child("mechanisms", SASL);
    mechanisms.is_some_and(|m| m.nodes().any(|n| n.name == "mechanism" && n.text() == mechanism))
}

fn condition(answer: &Node) -> String {
    answer.nodes().find(|n| n.name != "text").map_or_else(|| answer.name.clone(), |n| n.name.clone())
}

/// TLS as every client here speaks it: any certificate will do.
pub fn tls_config() -> Arc<ClientConfig> {
    let config = tls_config_with(rustls::ALL_VERSIONS, None).expect("the provider knows TLS 1.2 and 1.3");
    Arc::new(config)
}

/// The same in these versions only, by a client with a certificate of its own or without.
pub fn tls_config_with(
    versions: &[&'static rustls::SupportedProtocolVersion],
    identity: Option<&Identity>,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate));
    let mut config = match identity.map(Identity::chain) {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(config)
}

/// Takes any certificate: the servers under test sign their own.
#[derive(Debug)]
struct AnyCertificate;

impl danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<danger::ServerCertVerified, rustls::Error> {
        Ok(danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, rustls::Error> {
        Ok(danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, rustls::Error> {
        Ok(danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

//! The built-in client: logs in over TLS, sends stanzas, waits for what it expects.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use jid::{BareJid, FullJid};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use stanza::{Condition, Kind, Stanza, StanzaError};
use stream::{
    Limits, Reader, StreamEvent,
    client::{ClientAct, Login, LoginError, LoginMachine},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

/// How long the client waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the client waits for the end of a stream that it ended.
const GOODBYE: Duration = Duration::from_secs(2);
/// Pause before a node that does not listen yet is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Stanzas kept that nobody has waited for so far; the oldest go first.
const KEPT: usize = 1_000;

/// Why the client could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{who} failed to connect to {address}: {source}")]
    Connect { who: String, address: SocketAddr, source: std::io::Error },
    #[error("{who} failed to log in: {source}")]
    Login { who: String, source: LoginError },
    #[error("{who} lost the connection: {reason}")]
    Lost { who: String, reason: String },
    #[error("{who} waited {} s in vain for {what}", PATIENCE.as_secs())]
    Waited { who: String, what: String },
    #[error("failed to use the certificate of the demo: {0}")]
    Certificate(String),
}

/// How a client gets its TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// RFC 6120, 5.
    StartTls,
    /// XEP-0368.
    DirectTls,
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// One session.
pub struct Client {
    who: String,
    socket: Box<dyn Socket>,
    reader: Reader,
    input: BytesMut,
    kept: VecDeque<Stanza>,
    ended: bool,
}

/// A connector that trusts the demo's own certificate and no other.
pub fn trust(cert: &std::path::Path, way: Way) -> Result<TlsConnector, ClientError> {
    let wrong = |e: &dyn std::fmt::Display| ClientError::Certificate(e.to_string());
    let cert = CertificateDer::from_pem_file(cert).map_err(|e| wrong(&e))?;
    let mut roots = RootCertStore::empty();
    roots.add(cert).map_err(|e| wrong(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.map_err(|e| wrong(&e))?.with_root_certificates(roots).with_no_client_auth();
    if way == Way::DirectTls {
        config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Client {
    /// Connects to a node and logs in; the full JID is what the node gave to it.
    pub async fn login(
        account: &BareJid,
        password: &str,
        resource: &str,
        address: SocketAddr,
        way: Way,
        tls: &TlsConnector,
    ) -> Result<(Client, FullJid), ClientError> {
        let who = account.node().map_or_else(String::new, |n| n.to_string());
        let socket = connect(&who, address).await?;
        let mut client = Client {
            who,
            socket: Box::new(socket),
            reader: Reader::new(Limits::after_auth()),
            input: BytesMut::new(),
            kept: VecDeque::new(),
            ended: false,
        };
        if way == Way::DirectTls {
            client.secure(tls, account).await?;
        }
        let login = Login {
            account: account.clone(),
            password: password.to_owned(),
            resource: jid::ResourcePart::new(resource).ok().map(|r| r.into_owned()),
            mechanism: None,
            tls: true,
        };
        let mut machine = LoginMachine::new(login, &nonce(), way == Way::DirectTls);
        client.write(&machine.start()).await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let event = client.event(until, "the login").await?;
            let mut acts = VecDeque::from(machine.on_event(event));
            while let Some(act) = acts.pop_front() {
                match act {
                    ClientAct::Send(bytes) => client.write(&bytes).await?,
                    ClientAct::StartTls => {
                        client.secure(tls, account).await?;
                        client.restart();
                        acts.extend(machine.on_tls());
                    }
                    ClientAct::RestartStream => client.restart(),
                    ClientAct::Bound(jid) => return Ok((client, jid)),
                    ClientAct::Failed(source) => {
                        return Err(ClientError::Login { who: client.who, source });
                    }
                }
            }
        }
    }

    /// Sends a stanza.
    pub async fn send(&mut self, stanza: &Stanza) -> Result<(), ClientError> {
        let mut out = BytesMut::new();
        stanza.write(&mut out);
        self.write(&out).await
    }

    /// Waits for a stanza that is wanted; others are kept for later.
    pub async fn wait(
        &mut self,
        what: &str,
        wanted: impl Fn(&Stanza) -> bool,
    ) -> Result<Stanza, ClientError> {
        if let Some(at) = self.kept.iter().position(&wanted)
            && let Some(stanza) = self.kept.remove(at)
        {
            return Ok(stanza);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let stanza = self.stanza(until, what).await?;
            if wanted(&stanza) {
                return Ok(stanza);
            }
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(stanza);
        }
    }

    /// Stays: answers chat with an echo, and questions with a refusal, until the connection ends.
    pub async fn stay(mut self) {
        loop {
            let far = Instant::now() + Duration::from_secs(86_400);
            let Ok(stanza) = self.stanza(far, "anything").await else { return };
            let text = stanza.child("body", stanza::ns::CLIENT).map(stanza::Element::text);
            let answer =
                match (stanza.head.kind, stanza.head.type_.as_deref(), text, stanza.head.from.clone()) {
                    (Kind::Message, Some("chat") | None, Some(text), Some(from)) => {
                        let echo = super::story::chat(&format!("you said: {text}"));
                        Some(echo.with_to(from))
                    }
                    // RFC 6120, 8.2.3: each get or set has an answer.
                    (Kind::Iq, ..) => stanza.error(&StanzaError::new(Condition::ServiceUnavailable)),
                    _ => None,
                };
            if let Some(answer) = answer
                && self.send(&answer).await.is_err()
            {
                return;
            }
        }
    }

    /// Ends the stream and waits for the node to end its side (RFC 6120, 4.4).
    pub async fn close(mut self) {
        if self.write(b"</stream:stream>").await.is_err() {
            return;
        }
        let until = Instant::now() + GOODBYE;
        while let Ok(event) = self.event(until, "the end of the stream").await {
            if matches!(event, StreamEvent::Close) {
                return;
            }
        }
    }

    async fn stanza(&mut self, until: Instant, what: &str) -> Result<Stanza, ClientError> {
        loop {
            match self.event(until, what).await? {
                StreamEvent::Stanza(stanza) => return Ok(stanza),
                StreamEvent::Header(_) => {}
                StreamEvent::Close => return Err(self.lost("the node closed the stream")),
                StreamEvent::Element(element) => {
                    let names: Vec<_> = element.children().map(stanza::Element::name).collect();
                    return Err(self.lost(&format!("`{}` {}", element.name(), names.join(" "))));
                }
                StreamEvent::BadStanza { .. } => return Err(self.lost("the node sent a malformed stanza")),
            }
        }
    }

    async fn event(&mut self, until: Instant, what: &str) -> Result<StreamEvent, ClientError> {
        loop {
            match self.reader.feed(&mut self.input) {
                Ok(Some(event)) => return Ok(event),
                Ok(None) if self.ended => return Err(self.lost("end of the connection")),
                Ok(None) => {}
                Err(error) => return Err(self.lost(&error.to_string())),
            }
            match timeout_at(until, self.socket.read_buf(&mut self.input)).await {
                Err(_) => return Err(ClientError::Waited { who: self.who.clone(), what: what.to_owned() }),
                Ok(Ok(0)) => self.ended = true,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let written = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&error.to_string())),
            Err(_) => Err(self.lost("the node does not read")),
        }
    }

    /// Puts TLS around the socket.
    async fn secure(&mut self, tls: &TlsConnector, account: &BareJid) -> Result<(), ClientError> {
        let name = ServerName::try_from(account.domain().as_str().to_owned());
        let name = name.map_err(|e| ClientError::Certificate(e.to_string()))?;
        let plain = std::mem::replace(&mut self.socket, Box::new(tokio::io::duplex(1).0));
        match tokio::time::timeout(PATIENCE, tls.connect(name, plain)).await {
            Ok(Ok(secured)) => self.socket = Box::new(secured),
            Ok(Err(error)) => return Err(self.lost(&format!("TLS handshake: {error}"))),
            Err(_) => return Err(self.lost("the TLS handshake does not end")),
        }
        Ok(())
    }

    /// A new stream on the same socket: nothing read before it may count.
    fn restart(&mut self) {
        self.reader.restart();
    }

    fn lost(&self, reason: &str) -> ClientError {
        ClientError::Lost { who: self.who.clone(), reason: reason.to_owned() }
    }
}

/// Connects; a node that has just started may not listen yet.
async fn connect(who: &str, address: SocketAddr) -> Result<TcpStream, ClientError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                // a chat is many small writes
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Err(source) if Instant::now() > until => {
                return Err(ClientError::Connect { who: who.to_owned(), address, source });
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn nonce() -> String {
    use base64::Engine;
    let mut bytes = [0; 18];
    // the operating system's generator does not fail once it is seeded
    assert!(aws_lc_rs::rand::fill(&mut bytes).is_ok(), "the random generator works");
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

//! A client for session tests: it logs in like a real one, and shows what it hears.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use jid::{BareJid, FullJid, ResourcePart};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use session::Door;
use stanza::Stanza;
use stream::client::{ClientAct, Login, LoginError, LoginMachine};
use stream::sasl::MechanismName;
use stream::{Limits, Reader, StreamEvent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::house::{House, PASSWORD};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

pub struct Client {
    socket: Option<Box<dyn Socket>>,
    reader: Reader,
    input: BytesMut,
}

impl Client {
    /// Connects and says nothing.
    pub async fn connect(house: &House, door: Door) -> Client {
        Client::connect_from(house, door, "127.0.0.1").await
    }

    /// Connects from one of the loopback addresses and says nothing.
    pub async fn connect_from(house: &House, door: Door, from: &str) -> Client {
        let tcp = Client::socket_from(house, door, from).await;
        match door {
            Door::StartTls => Client::over(tcp),
            Door::DirectTls => Client::over(tls(house, tcp, &[b"xmpp-client"]).await.unwrap()),
        }
    }

    /// A socket from one of the loopback addresses.
    pub async fn socket_from(house: &House, door: Door, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from.parse::<std::net::IpAddr>().unwrap(), 0).into()).unwrap();
        socket.connect(house.address(door)).await.unwrap()
    }

    pub fn over(socket: impl Socket + 'static) -> Client {
        let reader = Reader::new(Limits::after_auth());
        Client { socket: Some(Box::new(socket)), reader, input: BytesMut::new() }
    }

    /// Logs in as `name@localhost/resource` with the usual password.
    pub async fn login(house: &House, name: &str, resource: &str) -> Client {
        let (client, result) =
            Client::try_login(house, Door::DirectTls, name, resource, PASSWORD, None).await;
        assert_eq!(result.unwrap().to_string(), format!("{name}@localhost/{resource}"));
        client
    }

    pub async fn try_login(
        house: &House,
        door: Door,
        name: &str,
        resource: &str,
        password: &str,
        mechanism: Option<MechanismName>,
    ) -> (Client, Result<FullJid, LoginError>) {
        let client = Client::connect(house, door).await;
        client.log_in(house, door, name, resource, password, mechanism).await
    }

    /// As [`Client::try_login`], on a connection that is there.
    pub async fn log_in(
        self,
        house: &House,
        door: Door,
        name: &str,
        resource: &str,
        password: &str,
        mechanism: Option<MechanismName>,
    ) -> (Client, Result<FullJid, LoginError>) {
        let mut client = self;
        let login = Login {
            account: BareJid::new(&format!("{name}@localhost")).unwrap(),
            password: password.to_owned(),
            resource: (!resource.is_empty()).then(|| ResourcePart::new(resource).unwrap().into_owned()),
            mechanism,
            tls: true,
        };
        let mut machine = LoginMachine::new(login, "abcdefghijklmnop", door == Door::DirectTls);
        client.send_bytes(&machine.start()).await;
        loop {
            let event = match client.event().await {
                Some(event) => event,
                None => return (client, Err(LoginError::StreamEnded("the socket was closed".into()))),
            };
            let mut acts = std::collections::VecDeque::from(machine.on_event(event));
            while let Some(act) = acts.pop_front() {
                match act {
                    ClientAct::Send(bytes) => client.send_bytes(&bytes).await,
                    ClientAct::RestartStream => client.reader.restart(),
                    ClientAct::StartTls => {
                        client.starttls(house).await;
                        acts.extend(machine.on_tls());
                    }
                    ClientAct::Bound(jid) => return (client, Ok(jid)),
                    ClientAct::Failed(error) => return (client, Err(error)),
                }
            }
        }
    }

    pub async fn starttls(&mut self, house: &House) {
        let clear = self.socket.take().unwrap();
        self.socket = Some(tls(house, clear, &[]).await.unwrap());
        self.input.clear();
        self.reader.restart();
    }

    pub async fn send(&mut self, xml: &str) {
        self.send_bytes(xml.as_bytes()).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        let socket = self.socket.as_mut().unwrap();
        // A server that has closed already will be heard of by reading.
        let _ = socket.write_all(bytes).await;
        let _ = socket.flush().await;
    }

    /// The next event; `None`: the socket was closed.
    pub async fn event(&mut self) -> Option<StreamEvent> {
        let next = async {
            loop {
                if let Some(event) = self.reader.feed(&mut self.input).unwrap() {
                    return Some(event);
                }
                match self.socket.as_mut().unwrap().read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("the server says something in time")
    }

    /// The next stanza.
    pub async fn hears(&mut self) -> Stanza {
        match self.event().await {
            Some(StreamEvent::Stanza(stanza)) => stanza,
            other => panic!("no stanza: {other:?}"),
        }
    }

    /// Asserts that the server ends the stream with that error and closes the socket.
    pub async fn is_told(&mut self, condition: &str) {
        loop {
            match self.event().await {
                Some(StreamEvent::Element(element)) if element.is("error", stanza::ns::STREAM) => {
                    let child = element.children().next().unwrap();
                    assert_eq!(child.name(), condition);
                    break;
                }
                Some(StreamEvent::Header(_) | StreamEvent::Element(_)) => {}
                other => panic!("no stream error `{condition}`: {other:?}"),
            }
        }
        assert!(matches!(self.event().await, Some(StreamEvent::Close)), "the stream is closed");
        assert!(self.event().await.is_none(), "the socket is closed");
    }

    /// Asserts that the server sends the client elsewhere and closes the socket; where to.
    pub async fn is_sent_to(&mut self) -> String {
        loop {
            match self.event().await {
                Some(StreamEvent::Header(_)) => {}
                Some(StreamEvent::Element(element)) => {
                    let host = element.get_child("see-other-host", stanza::ns::STREAM_ERRORS);
                    let host = host.unwrap_or_else(|| panic!("not sent away: {element:?}")).text();
                    assert!(matches!(self.event().await, Some(StreamEvent::Close)), "the stream is closed");
                    assert!(self.event().await.is_none(), "the socket is closed");
                    return host;
                }
                other => panic!("not sent away: {other:?}"),
            }
        }
    }

    /// Asserts that stream features come next.
    pub async fn hears_features(&mut self) {
        loop {
            match self.event().await {
                Some(StreamEvent::Header(_)) => {}
                Some(StreamEvent::Element(element)) if element.is("features", stanza::ns::STREAM) => return,
                other => panic!("no features: {other:?}"),
            }
        }
    }

    /// As [`Client::gets_to_bind`], for alice.
    pub async fn authenticates(&mut self) {
        self.gets_to_bind("alice").await;
    }

    /// Logs in on a new stream inside TLS by PLAIN, up to the features that offer to bind.
    pub async fn gets_to_bind(&mut self, name: &str) {
        let header = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='localhost' version='1.0'>";
        self.send(header).await;
        self.hears_features().await;
        let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>";
        let plain = format!("\0{name}\0{PASSWORD}");
        let plain = stream::features::sasl("auth", Some(plain.as_bytes())).text();
        self.send(&format!("{auth}{plain}</auth>")).await;
        let answer = self.event().await;
        assert!(matches!(&answer, Some(StreamEvent::Element(e)) if e.name() == "success"), "{answer:?}");
        self.reader.restart();
        self.send(header).await;
        self.hears_features().await;
    }

    /// As [`Client::is_told`], after whatever else it is sent.
    pub async fn is_told_at_last(&mut self, condition: &str) {
        loop {
            match self.event().await {
                Some(StreamEvent::Element(element)) if element.is("error", stanza::ns::STREAM) => {
                    return assert_eq!(element.children().next().unwrap().name(), condition);
                }
                Some(_) => {}
                None => panic!("closed without `{condition}`"),
            }
        }
    }

    /// Everything that is sent until the socket is closed.
    pub async fn all(&mut self) -> String {
        let mut all = self.input.to_vec();
        let read = self.socket.as_mut().unwrap().read_to_end(&mut all);
        // An end without TLS's own goodbye is an end.
        let _ = tokio::time::timeout(PATIENCE, read).await.expect("the socket is closed in time");
        String::from_utf8_lossy(&all).into_owned()
    }
}

async fn tls<S: Socket + 'static>(
    house: &House,
    socket: S,
    alpn: &[&[u8]],
) -> std::io::Result<Box<dyn Socket>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(house.cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    Ok(Box::new(tls))
}

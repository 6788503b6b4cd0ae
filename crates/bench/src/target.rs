//! The server under test as clients reach it: connecting, TLS, logging in (RFC 6120), making accounts (XEP-0077).

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    link::{Link, Transport},
    scanner::Stanza,
    scram::{Exchange, Mechanism, Wallet, plain},
    tls,
};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// When TLS begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tls {
    /// On the stream (RFC 6120, 5).
    Starttls,
    /// With the first byte (XEP-0368).
    Direct,
    /// Never.
    None,
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The local part of its address.
    pub user: String,
    /// Its password.
    pub password: String,
}

/// A server, and how to talk to it.
pub struct Target {
    address: SocketAddr,
    /// The domain of its accounts.
    pub host: String,
    tls: Tls,
    config: Arc<ClientConfig>,
    mechanism: Option<Mechanism>,
    management: bool,
    /// How long an answer may take.
    pub patience: Duration,
    from: Vec<IpAddr>,
    next_from: AtomicUsize,
    wallet: Wallet,
}

/// What a `Target` is made of.
pub struct Way {
    /// Where it listens.
    pub address: SocketAddr,
    /// The domain of its accounts.
    pub host: String,
    /// When TLS begins.
    pub tls: Tls,
    /// How to log in; the best one that both know, where none is named.
    pub mechanism: Option<Mechanism>,
    /// Whether sessions turn stream management on (XEP-0198).
    pub management: bool,
    /// How long an answer may take.
    pub patience: Duration,
    /// The addresses that connections come from, in turn; none named: the system chooses.
    pub from: Vec<IpAddr>,
}

impl Target {
    /// A server that is reached in this way.
    ///
    /// # Errors
    /// Where there is no TLS to be had.
    pub fn new(way: Way) -> Result<Target> {
        let Way { address, host, tls, mechanism, management, patience, from } = way;
        let (config, next_from, wallet) =
            (tls::config(tls == Tls::Direct)?, AtomicUsize::new(0), Wallet::default());
        Ok(Target { address, host, tls, config, mechanism, management, patience, from, next_from, wallet })
    }

    /// A connection with its TLS, where that begins at once.
    ///
    /// # Errors
    /// Where the server takes no connection, or fails the handshake.
    pub async fn connect(&self) -> Result<Link> {
        let connecting = async {
            let tcp = self.socket()?.connect(self.address).await;
            let tcp = tcp.with_context(|| format!("failed to connect to `{}`", self.address))?;
            tcp.set_nodelay(true)?;
            anyhow::Ok(match self.tls {
                Tls::Direct => self.shake_hands(tcp).await?,
                Tls::Starttls | Tls::None => Transport::Plain(tcp),
            })
        };
        let transport = timeout(self.patience, connecting).await.context("no connection in time")??;
        Ok(Link::over(transport, self.patience))
    }

    /// A bound session.
    ///
    /// # Errors
    /// Where the server refuses any step of it, or takes too long.
    pub async fn log_in(&self, account: &Account, resource: &str) -> Result<Link> {
        let logging_in = async {
            let (mut link, features) = self.open().await?;
            self.authenticate(&mut link, &features, account).await?;
            self.header(&mut link).await?;
            self.bind(&mut link, resource).await?;
            anyhow::Ok(link)
        };
        let done = timeout(self.patience, logging_in).await.context("no login in time");
        done.and_then(|done| done).with_context(|| format!("failed to log `{}` in", account.user))
    }

    /// A bound session that has asked for its roster and is available, as every client does.
    ///
    /// # Errors
    /// As `log_in`.
    pub async fn appear(&self, account: &Account, resource: &str) -> Result<Link> {
        let mut link = self.log_in(account, resource).await?;
        link.writer
            .write("<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq><presence/>")
            .await?;
        let jid = link.jid.clone();
        // RFC 6121, 4.2.2: the session's own presence comes back to it.
        let own = |stanza: Stanza<'_>| {
            stanza.name() == b"presence" && stanza.attribute(b"from") == Some(jid.as_bytes())
        };
        link.reader.wait_for(own).await.context("the session's own presence does not come back")?;
        Ok(link)
    }

    /// Makes an account in-band (XEP-0077); one that is there already is left as it is.
    ///
    /// # Errors
    /// Where the server makes none.
    pub async fn register(&self, account: &Account) -> Result<()> {
        let (mut link, _) = self.open().await?;
        let Account { user, password } = account;
        link.writer
            .write(&format!(
                "<iq type='set' id='register'><query xmlns='jabber:iq:register'><username>{user}</username>\
                 <password>{password}</password></query></iq>"
            ))
            .await?;
        let answer = link.reader.wait_for(|stanza| stanza.attribute(b"id") == Some(b"register")).await?;
        let stanza = Stanza(answer.as_bytes());
        if stanza.is_error() && !stanza.has(b"<conflict") {
            bail!("failed to register `{user}`: {answer}");
        }
        link.close().await
    }

    fn socket(&self) -> Result<TcpSocket> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if !self.from.is_empty() {
            let next = self.next_from.fetch_add(1, Ordering::Relaxed);
            late_port(&socket);
            socket.bind(SocketAddr::new(self.from[next % self.from.len()], 0)).context("failed to bind")?;
        }
        Ok(socket)
    }

    async fn shake_hands(&self, tcp: TcpStream) -> Result<Transport> {
        let name = ServerName::try_from(self.host.clone()).context("the host is no name for TLS")?;
        let stream = TlsConnector::from(self.config.clone()).connect(name, tcp).await;
        Ok(Transport::Tls(Box::new(stream.context("failed to shake hands")?)))
    }

    /// A connection with its TLS, and the features that the server offers on it.
    async fn open(&self) -> Result<(Link, String)> {
        let mut link = self.connect().await?;
        let features = self.header(&mut link).await?;
        if self.tls != Tls::Starttls {
            return Ok((link, features));
        }
        link.writer.write("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
        let answer = link.reader.wait_for(|_| true).await?;
        ensure!(answer.starts_with("<proceed"), "no TLS: {answer}");
        let Transport::Plain(tcp) = link.into_transport()? else { bail!("TLS in TLS") };
        let transport =
            timeout(self.patience, self.shake_hands(tcp)).await.context("no handshake in time")??;
        let mut link = Link::over(transport, self.patience);
        let features = self.header(&mut link).await?;
        Ok((link, features))
    }

    async fn header(&self, link: &mut Link) -> Result<String> {
        link.writer
            .write(&format!(
                "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                 xmlns:stream='http://etherx.jabber.org/streams' to='{}' version='1.0'>",
                self.host
            ))
            .await?;
        link.reader.wait_for(|stanza| stanza.name() == b"stream:features").await
    }

    async fn authenticate(&self, link: &mut Link, features: &str, account: &Account) -> Result<()> {
        let offered = |mechanism: &Mechanism| features.contains(&format!(">{}<", mechanism.name()));
        let mechanism = self.mechanism.or_else(|| Mechanism::ALL.into_iter().find(offered));
        let mechanism = mechanism.with_context(|| format!("no mechanism of ours in {features}"))?;
        let Account { user, password } = account;
        let exchange = (mechanism != Mechanism::Plain).then(nonce).transpose()?;
        let mut exchange = exchange.map(|nonce| Exchange::begin(mechanism, user, &nonce));
        let first = exchange.as_ref().map_or_else(|| plain(user, password), |(_, first)| first.clone());
        let first = BASE64_STANDARD.encode(first);
        let name = mechanism.name();
        link.writer.write(&format!("<auth xmlns='{SASL}' mechanism='{name}'>{first}</auth>")).await?;
        let mut answer = link.reader.wait_for(|_| true).await?;
        if let (Some((exchange, _)), true) = (&mut exchange, answer.starts_with("<challenge")) {
            let response = exchange.respond(&decoded(&answer)?, password, &self.wallet)?;
            let response = BASE64_STANDARD.encode(response);
            link.writer.write(&format!("<response xmlns='{SASL}'>{response}</response>")).await?;
            answer = link.reader.wait_for(|_| true).await?;
        }
        ensure!(answer.starts_with("<success"), "the server answers {answer}");
        if let Some((exchange, _)) = &exchange {
            exchange.check(&decoded(&answer)?)?;
        }
        Ok(())
    }

    async fn bind(&self, link: &mut Link, resource: &str) -> Result<()> {
        link.writer
            .write(&format!(
                "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                 <resource>{resource}</resource></bind></iq>"
            ))
            .await?;
        let bound = link.reader.answer("bind").await?;
        let jid = Stanza(bound.as_bytes()).text_of(b"jid").context("no JID is bound")?;
        link.jid = String::from_utf8_lossy(jid).into_owned();
        if self.management {
            link.writer.write("<enable xmlns='urn:xmpp:sm:3'/>").await?;
            let answer = link.reader.wait_for(|_| true).await?;
            ensure!(answer.starts_with("<enabled"), "no stream management: {answer}");
            link.reader.begin_management();
            link.ask_behind_writes();
        }
        Ok(())
    }
}

/// Lets the system choose the port when it knows the server's, so that many connections can share one.
fn late_port(socket: &TcpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the value lives until the call is over. Where it fails, ports are just fewer.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        );
    }
}

fn nonce() -> Result<String> {
    let mut bytes = [0; 18];
    rand::fill(&mut bytes).context("no random numbers")?;
    Ok(BASE64_STANDARD.encode(bytes))
}

/// What stands in an element of SASL.
fn decoded(element: &str) -> Result<String> {
    let begin = element.find('>').context("no element")? + 1;
    let end = element[begin..].find('<').with_context(|| format!("nothing in {element}"))?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(&element[begin..begin + end])?)?)
}

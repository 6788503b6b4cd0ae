//! The client's side of a login, pure as the server's: for the built-in client and for tests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use minidom::Element;
use stanza::{BareJid, FullJid, ResourcePart, Stanza, StanzaError, dom, ns};
use subtle::ConstantTimeEq;

use crate::features::{self, sasl, sasl_payload, text_element};
use crate::reader::StreamEvent;
use crate::sasl::downgrade;
use crate::sasl::keys::{self, ScramHash};
use crate::sasl::mechanism::MechanismName;

/// Most PBKDF2 rounds that a server may ask of this client.
const ITERATIONS_MAX: u32 = 1_000_000;

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoginError {
    /// The server refused the credentials or the mechanism.
    #[error("authentication failed: {0}")]
    Refused(String),
    /// What the server says it offered is not what came here (XEP-0474): somebody in between has changed it.
    #[error("somebody has changed what the server offers")]
    Downgraded,
    /// The server did not prove that it knows the password.
    #[error("the server's signature is wrong")]
    BadServer,
    /// The password cannot be used (RFC 4013).
    #[error("not a usable password")]
    BadPassword,
    /// TLS was asked for and not offered.
    #[error("the server offers no TLS")]
    NoTls,
    /// No mechanism in common.
    #[error("no usable mechanism is offered")]
    NoMechanism,
    /// The server refused the resource.
    #[error("binding failed: {0}")]
    Bind(StanzaError),
    /// The server ended the stream.
    #[error("the server ended the stream: {0}")]
    StreamEnded(String),
    /// The server said something else than the protocol asks for.
    #[error("unexpected `{0}`")]
    Unexpected(String),
}

/// A client's stream header (RFC 6120, 4.7).
pub fn header(host: &str) -> Bytes {
    let mut out = BytesMut::from(&b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' "[..]);
    out.extend_from_slice(
        b"xmlns:stream='http://etherx.jabber.org/streams' version='1.0' xml:lang='en' to='",
    );
    dom::escape_attribute(host, &mut out);
    out.extend_from_slice(b"'>");
    out.freeze()
}

/// A bind request; `None` leaves the resource to the server (RFC 6120, 7.6 and 7.7).
pub fn bind_request(id: &str, resource: Option<&str>) -> Stanza {
    let mut bind = features::bind();
    if let Some(resource) = resource {
        bind.append_child(text_element("resource", ns::BIND, resource));
    }
    Stanza::iq("set", id, Some(&bind))
}

/// The address in the answer to a bind request.
pub fn bound_jid(answer: &Stanza) -> Option<FullJid> {
    let jid = answer.child("bind", ns::BIND)?.get_child("jid", ns::BIND)?.text();
    FullJid::new(&jid).ok()
}

/// What a server offers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// STARTTLS, and whether it is required.
    pub starttls: Option<bool>,
    /// Names of SASL mechanisms, in the server's order.
    pub mechanisms: Vec<String>,
    /// Types of channel binding (XEP-0440).
    pub channel_bindings: Vec<String>,
    /// Resource binding.
    pub bind: bool,
    /// Roster versions.
    pub roster_versioning: bool,
    /// Everything, as it was sent.
    pub all: Vec<Element>,
}

impl Features {
    /// Reads `<stream:features/>`.
    pub fn from_element(element: &Element) -> Option<Features> {
        if !element.is("features", ns::STREAM) {
            return None;
        }
        let starttls = element.get_child("starttls", ns::TLS);
        let mechanisms = element.get_child("mechanisms", ns::SASL);
        let bindings = element.get_child("sasl-channel-binding", features::CHANNEL_BINDING);
        let bindings = bindings.into_iter().flat_map(Element::children);
        Some(Features {
            starttls: starttls.map(|feature| feature.has_child("required", ns::TLS)),
            mechanisms: mechanisms.map(|m| m.children().map(Element::text).collect()).unwrap_or_default(),
            channel_bindings: bindings.filter_map(|b| b.attr("type").map(str::to_owned)).collect(),
            bind: element.has_child("bind", ns::BIND),
            roster_versioning: element.has_child("ver", ns::ROSTER_VERSIONING),
            all: element.children().cloned().collect(),
        })
    }

    /// What the server should say that it offered (XEP-0474).
    fn downgrade(&self, hash: ScramHash) -> String {
        let mechanisms: Vec<&str> = self.mechanisms.iter().map(String::as_str).collect();
        let bindings: Vec<&str> = self.channel_bindings.iter().map(String::as_str).collect();
        downgrade::hash(hash, &mechanisms, &bindings)
    }
}

/// The client's side of SCRAM (RFC 5802, 3), without channel binding.
pub struct ScramClient {
    hash: ScramHash,
    password: String,
    nonce: String,
    first_bare: String,
    offered: Option<String>,
    signature: Option<Vec<u8>>,
}

impl ScramClient {
    /// For a user name, a password and a nonce: printable, no comma, never used before.
    pub fn new(hash: ScramHash, username: &str, password: &str, nonce: &str) -> ScramClient {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        ScramClient {
            hash,
            password: password.to_owned(),
            nonce: nonce.to_owned(),
            first_bare: format!("n={username},r={nonce}"),
            offered: None,
            signature: None,
        }
    }

    /// Insists that a server which tells what it offered tells this (XEP-0474, 5.2).
    #[must_use]
    pub fn offered(self, hash: String) -> ScramClient {
        ScramClient { offered: Some(hash), ..self }
    }

    /// The initial response.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// The answer to the server's challenge. Slow on purpose (PBKDF2).
    pub fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, LoginError> {
        let unexpected = || LoginError::Unexpected("challenge".into());
        let challenge = std::str::from_utf8(challenge).map_err(|_| unexpected())?;
        let mut parts = challenge.split(',');
        let nonce = parts.next().and_then(|a| a.strip_prefix("r=")).ok_or_else(unexpected)?;
        let salt = parts.next().and_then(|a| a.strip_prefix("s=")).ok_or_else(unexpected)?;
        let iterations = parts.next().and_then(|a| a.strip_prefix("i=")).ok_or_else(unexpected)?;
        if let (Some(told), Some(seen)) = (parts.find_map(|a| a.strip_prefix("h=")), &self.offered)
            && told != seen
        {
            return Err(LoginError::Downgraded);
        }
        let salt = BASE64.decode(salt).map_err(|_| unexpected())?;
        let iterations: u32 = iterations.parse().map_err(|_| unexpected())?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() || iterations > ITERATIONS_MAX {
            return Err(unexpected());
        }
        let password = keys::prepare(&self.password).map_err(|_| LoginError::BadPassword)?;
        let salted = self.hash.salted_password(password.as_bytes(), &salt, iterations);
        let client_key = self.hash.hmac(&salted, b"Client Key");
        let stored_key = self.hash.digest(&client_key);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{without_proof}", self.first_bare);
        let signature = self.hash.hmac(&stored_key, message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
        let server_key = self.hash.hmac(&salted, b"Server Key");
        self.signature = Some(self.hash.hmac(&server_key, message.as_bytes()));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes())
    }

    /// Checks that the server knows the keys too.
    pub fn check(&self, success: &[u8]) -> Result<(), LoginError> {
        let sent = std::str::from_utf8(success).ok().and_then(|text| text.strip_prefix("v="));
        let sent = sent.and_then(|text| BASE64.decode(text).ok()).ok_or(LoginError::BadServer)?;
        let good = self.signature.as_ref().is_some_and(|signature| bool::from(sent.ct_eq(signature)));
        if good { Ok(()) } else { Err(LoginError::BadServer) }
    }
}

/// Who logs in and how.
#[derive(Clone)]
pub struct Login {
    /// The account.
    pub account: BareJid,
    /// Its password.
    pub password: String,
    /// The resource to ask for; `None` leaves it to the server.
    pub resource: Option<ResourcePart>,
    /// Use this mechanism and no other; `None`: SCRAM with the strongest hash that is offered.
    pub mechanism: Option<MechanismName>,
    /// Whether to insist on TLS before authenticating.
    pub tls: bool,
}

/// What the caller of [`LoginMachine`] has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientAct {
    /// Write these bytes.
    Send(Bytes),
    /// Do the handshake, restart the reader, then call [`LoginMachine::on_tls`].
    StartTls,
    /// Restart the reader.
    RestartStream,
    /// Logged in; later events are the caller's.
    Bound(FullJid),
    /// Close the connection.
    Failed(LoginError),
}

/// A login from the first byte to the bound address.
pub struct LoginMachine {
    login: Login,
    nonce: String,
    secure: bool,
    authenticated: bool,
    scram: Option<ScramClient>,
    done: bool,
}

impl LoginMachine {
    /// `nonce` must be random; `secure` tells that the connection is inside TLS already.
    pub fn new(login: Login, nonce: &str, secure: bool) -> LoginMachine {
        let nonce = nonce.to_owned();
        LoginMachine { login, nonce, secure, authenticated: false, scram: None, done: false }
    }

    /// The bytes that begin the stream.
    pub fn start(&self) -> Bytes {
        header(self.login.account.domain().as_str())
    }

    /// The handshake is done.
    pub fn on_tls(&mut self) -> Vec<ClientAct> {
        self.secure = true;
        vec![ClientAct::Send(self.start())]
    }

    /// The next event of the reader.
    pub fn on_event(&mut self, event: StreamEvent) -> Vec<ClientAct> {
        if self.done {
            return Vec::new();
        }
        self.step(event).unwrap_or_else(|error| {
            self.done = true;
            vec![ClientAct::Failed(error)]
        })
    }

    fn step(&mut self, event: StreamEvent) -> Result<Vec<ClientAct>, LoginError> {
        match event {
            StreamEvent::Header(_) => Ok(Vec::new()),
            StreamEvent::Close => Err(LoginError::StreamEnded("no reason given".into())),
            StreamEvent::BadStanza { .. } => Err(LoginError::Unexpected("stanza".into())),
            StreamEvent::Stanza(stanza) => self.on_stanza(&stanza),
            StreamEvent::Element(element) => self.on_element(&element),
        }
    }

    fn on_element(&mut self, element: &Element) -> Result<Vec<ClientAct>, LoginError> {
        if let Some(features) = Features::from_element(element) {
            return self.on_features(&features);
        }
        let first_child = || element.children().next().map_or("", Element::name).to_owned();
        if element.is("error", ns::STREAM) {
            return Err(LoginError::StreamEnded(first_child()));
        }
        if element.is("proceed", ns::TLS) && !self.secure {
            return Ok(vec![ClientAct::StartTls]);
        }
        if !element.has_ns(ns::SASL) {
            return Err(LoginError::Unexpected(element.name().to_owned()));
        }
        let payload = || sasl_payload(element).ok().flatten().unwrap_or_default();
        match (element.name(), &mut self.scram) {
            ("failure", _) => Err(LoginError::Refused(first_child())),
            ("challenge", Some(scram)) => {
                let answer = scram.answer(&payload())?;
                Ok(vec![send(&sasl("response", Some(&answer)))])
            }
            ("success", scram) => {
                if let Some(scram) = scram.take() {
                    scram.check(&payload())?;
                }
                self.authenticated = true;
                Ok(vec![ClientAct::RestartStream, ClientAct::Send(self.start())])
            }
            (name, _) => Err(LoginError::Unexpected(name.to_owned())),
        }
    }

    fn on_features(&mut self, offered: &Features) -> Result<Vec<ClientAct>, LoginError> {
        if self.authenticated {
            let resource = self.login.resource.as_ref().map(|resource| resource.as_str());
            let mut out = BytesMut::new();
            bind_request("bind", resource).write(&mut out);
            return Ok(vec![ClientAct::Send(out.freeze())]);
        }
        if !self.secure && (self.login.tls || offered.starttls == Some(true)) {
            offered.starttls.ok_or(LoginError::NoTls)?;
            return Ok(vec![send(&features::starttls(false))]);
        }
        let wanted: Vec<_> = match self.login.mechanism {
            Some(name) => vec![name],
            None => ScramHash::ALL.into_iter().rev().map(MechanismName::Scram).collect(),
        };
        let name = wanted.into_iter().find(|name| offered.mechanisms.iter().any(|m| m == name.as_str()));
        let name = name.ok_or(LoginError::NoMechanism)?;
        let username = self.login.account.node().map_or("", |node| node.as_str());
        let first = match name {
            MechanismName::Plain => format!("\0{username}\0{}", self.login.password).into_bytes(),
            MechanismName::Scram(hash) => {
                let scram = ScramClient::new(hash, username, &self.login.password, &self.nonce);
                let scram = scram.offered(offered.downgrade(hash));
                let first = scram.first();
                self.scram = Some(scram);
                first
            }
            MechanismName::ScramPlus(_) | MechanismName::External => return Err(LoginError::NoMechanism),
            MechanismName::Anonymous | MechanismName::Token(_) => return Err(LoginError::NoMechanism),
        };
        let mut auth = sasl("auth", Some(&first));
        features::set(&mut auth, "mechanism", name.as_str());
        Ok(vec![send(&auth)])
    }

    fn on_stanza(&mut self, stanza: &Stanza) -> Result<Vec<ClientAct>, LoginError> {
        if let Some(error) = stanza.as_error() {
            return Err(LoginError::Bind(error));
        }
        let jid = bound_jid(stanza).ok_or_else(|| LoginError::Unexpected("stanza".into()))?;
        self.done = true;
        Ok(vec![ClientAct::Bound(jid)])
    }
}

fn send(element: &Element) -> ClientAct {
    let mut out = BytesMut::new();
    dom::write(element, ns::CLIENT, &mut out);
    ClientAct::Send(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, 3.
    #[test]
    fn the_example_of_rfc_7677_is_spoken() {
        let mut client = ScramClient::new(ScramHash::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(client.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge =
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let answer = client.answer(challenge).unwrap();
        assert_eq!(
            std::str::from_utf8(&answer).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert_eq!(client.check(b"v=AAAA"), Err(LoginError::BadServer));
        assert_eq!(client.check(b""), Err(LoginError::BadServer));
    }

    #[test]
    fn a_server_that_cannot_be_trusted_is_left() {
        let cases: [&[u8]; 7] = [
            b"",
            b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"r=abcd,s=!,i=4096",
            b"r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4294967295",
            b"m=x,r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"\xff",
        ];
        for challenge in cases {
            let mut client = ScramClient::new(ScramHash::Sha1, "user", "pencil", "abc");
            assert!(client.answer(challenge).is_err(), "{challenge:?}");
        }
    }

    #[test]
    fn an_offer_that_was_changed_on_its_way_is_seen() {
        let challenge = b"r=abcd,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=16,h=aGFzaA==";
        for (seen, good) in [("aGFzaA==", true), ("b3RoZXI=", false)] {
            let client = ScramClient::new(ScramHash::Sha1, "user", "pencil", "abc");
            let answer = client.offered(seen.to_owned()).answer(challenge);
            assert_eq!(answer.err(), (!good).then_some(LoginError::Downgraded));
        }
    }

    #[test]
    fn features_are_read() {
        let xml = b"<f:features xmlns:f='http://etherx.jabber.org/streams'>\
            <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
            <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
            <ver xmlns='urn:xmpp:features:rosterver'/></f:features>";
        let features = Features::from_element(&dom::parse(xml).unwrap()).unwrap();
        assert_eq!(features.starttls, Some(true));
        assert_eq!(features.mechanisms, ["PLAIN"]);
        assert!(features.roster_versioning && !features.bind);
        assert_eq!(features.all.len(), 3);
    }
}

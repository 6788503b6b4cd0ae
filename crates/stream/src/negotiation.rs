//! A client's stream from its first byte until it is bound: events in, acts out (RFC 6120, 4 to 7).

mod act;
mod bind2;
mod exchange;
mod fast;
mod greeting;
mod offer;
mod sasl2;
mod settings;
mod upgrade;
mod wish;

use std::sync::Arc;

use bytes::BytesMut;
use minidom::Element;
use stanza::{
    BareJid, Condition, DomainPart, FullJid, IqType, Kind, ResourcePart, Stanza, StanzaError,
    StreamCondition, StreamError, address, ns,
};

pub use self::act::{Act, Acts};
pub use self::fast::Settling;
pub use self::greeting::Request;
use self::sasl2::{Entering, Stage};
pub use self::settings::{
    ClientCertificate, Entry, Greetings, Inline, Inlines, Random, Settings, TlsFacts, TlsVersion,
};
use self::upgrade::Upgrading;
use self::wish::Wish;
use crate::features;
use crate::management::{self, Resume, Said};
use crate::reader::{ReadError, StreamEvent, StreamHeader};
use crate::sasl::{
    Checked, Found, Mechanism, MechanismName, SaslCondition, ScramHash, ScramKeys, Step, keys,
};
use crate::writer::{Header, Writer};

/// Longest `xml:lang` that a stream header may have, in bytes.
const LANG_MAX: usize = 128;
/// Room for an answer: a header with all the features fits, so no answer is moved while it grows. In bytes.
const ANSWER: usize = 1_024;
/// Bind requests that may fail before the stream is closed.
const BIND_FAILURES_MAX: u8 = 5;

/// Content namespaces of servers (RFC 6120, 4.8.3) and of components (XEP-0114).
const CONTENT_OF_OTHERS: [&str; 3] = [ns::SERVER, "jabber:component:accept", "jabber:component:connect"];

/// One stream under negotiation.
pub struct Negotiation {
    settings: Arc<Settings>,
    writer: Writer,
    state: State,
    host: Option<DomainPart>,
    answer: Answer,
    /// Who the client says it is, on a header that nobody could change.
    named: Option<BareJid>,
    tls: Option<TlsFacts>,
    account: Option<BareJid>,
    failures: u8,
    bind_failures: u8,
    greeted: u8,
    offered: Vec<Element>,
    away: Option<StreamError>,
    /// What the client asks for beside the login that runs; only where that is one of XEP-0388.
    wish: Option<Box<Wish>>,
    /// The hashes that the account of the last look has no keys of.
    lacks: Vec<ScramHash>,
}

/// What our header owes to the client's, whether that one is good or not (RFC 6120, 4.7).
struct Answer {
    to: Option<BareJid>,
    version: Option<String>,
}

impl Answer {
    fn to(header: &StreamHeader) -> Answer {
        Answer {
            // RFC 6120, 4.7.2: to the bare JID that the client names, and to nobody where it names none.
            to: header.from.as_deref().and_then(|from| address::jid(from).ok()).map(|from| from.to_bare()),
            // RFC 6120, 4.7.5: the lower of both versions, and none where the client has none.
            version: match header.version.as_deref().map(minor_of_0) {
                Some(Some(minor)) => Some(format!("0.{minor}")),
                None if &*header.ns == ns::STREAM && &*header.name == "stream" => None,
                _ => Some("1.0".to_owned()),
            },
        }
    }
}

impl Default for Answer {
    /// To who has sent no header, or none that can be read.
    fn default() -> Answer {
        Answer { to: None, version: Some("1.0".to_owned()) }
    }
}

enum State {
    /// Waits for a stream header.
    Header,
    /// Features are sent.
    Open,
    /// `<proceed/>` is sent.
    Tls,
    /// A SASL exchange runs.
    Exchange { mechanism: Box<dyn Mechanism>, name: MechanismName, trying: Option<BareJid>, wants: Wants },
    /// The caller answers a request before the login.
    Greeting,
    /// The caller binds; the request's id.
    Binding(Box<str>),
    /// The caller looks for the session that the client wants to go on with; its id.
    Resuming(Box<str>),
    /// Such a login is as good as done, and the client gives what keys are made of (XEP-0480).
    Upgrading(Box<Upgrading>),
    /// A login by XEP-0388 has succeeded, and the client is not told before all that it asked for is done.
    Entering(Box<Entering>, Stage),
    /// Over, bound or closed.
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Message,
    Credentials,
    Tokens,
    Check,
}

impl Negotiation {
    /// A stream that has just been connected.
    pub fn new(settings: Arc<Settings>, entry: Entry) -> Negotiation {
        let tls = match entry {
            Entry::Clear => None,
            Entry::DirectTls(facts) => Some(facts),
        };
        Negotiation {
            settings,
            writer: Writer::new(),
            state: State::Header,
            host: None,
            answer: Answer::default(),
            named: None,
            tls,
            account: None,
            failures: 0,
            bind_failures: 0,
            greeted: 0,
            offered: Vec::new(),
            away: None,
            wish: None,
            lacks: Vec::new(),
        }
    }

    /// The host that the client named, once it named one that is served.
    pub fn host(&self) -> Option<&DomainPart> {
        self.host.as_ref()
    }

    /// The authenticated account.
    pub fn account(&self) -> Option<&BareJid> {
        self.account.as_ref()
    }

    /// What the handshake told; `None` in the clear.
    pub fn tls(&self) -> Option<&TlsFacts> {
        self.tls.as_ref()
    }

    /// Whether an answer of the caller is due: no event may be fed before it, input stays unread.
    pub fn is_waiting(&self) -> bool {
        match &self.state {
            State::Exchange { wants, .. } => *wants != Wants::Message,
            State::Binding(_) | State::Resuming(_) | State::Greeting | State::Tls => true,
            State::Entering(..) => true,
            State::Upgrading(upgrading) => upgrading.is_waiting(),
            State::Header | State::Open | State::Done => false,
        }
    }

    /// Stream features of modules, for the features sent after authentication.
    pub fn offer(&mut self, features: Vec<Element>) {
        self.offered = features;
    }

    /// Ends the stream behind the next header, if that is good: a client learns where to go from whom it knows.
    pub fn turn_away(&mut self, why: StreamError) {
        self.away = Some(why);
    }

    /// Keys of an account that is not there, to spend on them the time that real ones would take.
    pub fn fake_keys(&self, account: &BareJid, hash: ScramHash) -> ScramKeys {
        keys::fake(&self.settings.fake_salt_secret, hash, account.as_str(), self.settings.iterations)
    }

    /// The next event of the reader.
    pub fn on_event(&mut self, event: StreamEvent) -> Acts {
        let mut acts = Acts::new();
        if self.is_waiting() {
            // The caller reads nothing while we wait; a peer that gets here has found a way around that.
            self.fail(&mut acts, StreamCondition::PolicyViolation.into());
            return acts;
        }
        match event {
            _ if matches!(self.state, State::Done) => {}
            StreamEvent::Header(header) => self.on_header(&header, &mut acts),
            StreamEvent::Close => self.close(&mut acts, None),
            StreamEvent::Stanza(stanza) => self.on_stanza(&stanza, &mut acts),
            StreamEvent::BadStanza { .. } => self.fail(&mut acts, StreamCondition::NotAuthorized.into()),
            StreamEvent::Element(element) => self.on_element(&element, &mut acts),
        }
        acts
    }

    /// The reader gave up.
    pub fn on_read_error(&mut self, error: ReadError) -> Acts {
        let mut acts = Acts::new();
        self.fail(&mut acts, error.into());
        acts
    }

    /// The client took too long.
    pub fn on_timeout(&mut self) -> Acts {
        self.end(StreamCondition::ConnectionTimeout.into())
    }

    /// The server ends the stream (shutdown, too many connections).
    pub fn end(&mut self, error: StreamError) -> Acts {
        let mut acts = Acts::new();
        self.fail(&mut acts, error);
        acts
    }

    /// The handshake after [`Act::StartTls`] is done: a new stream begins (RFC 6120, 5.4.3.3).
    pub fn on_tls(&mut self, facts: TlsFacts) {
        if matches!(self.state, State::Tls) {
            self.tls = Some(facts);
            self.host = None;
            self.expect_header();
        }
    }

    /// The account asked for by [`Act::LookUp`]; `None`: no such account.
    pub fn on_credentials(&mut self, found: Option<Found>) -> Acts {
        self.lacks = found.as_ref().map(|found| found.lacks.clone()).unwrap_or_default();
        self.on_answer(Wants::Credentials, |mechanism| mechanism.found(found))
    }

    /// The answer to [`Act::CheckPassword`].
    pub fn on_password_checked(&mut self, checked: Checked) -> Acts {
        self.on_answer(Wants::Check, |mechanism| mechanism.password_checked(checked))
    }

    /// The store could not answer [`Act::LookUp`] or [`Act::CheckPassword`].
    pub fn on_unavailable(&mut self) -> Acts {
        let mut acts = Acts::new();
        if matches!(&self.state, State::Exchange { wants, .. } if *wants != Wants::Message) {
            self.apply(Step::Fail(SaslCondition::TemporaryAuthFailure), &mut acts);
        }
        acts
    }

    /// The answer to [`Act::Bind`].
    pub fn on_bound(&mut self, bound: Result<FullJid, StanzaError>) -> Acts {
        let mut acts = Acts::new();
        let State::Binding(id) = std::mem::replace(&mut self.state, State::Open) else {
            return acts;
        };
        match bound {
            Ok(jid) => {
                let answer = Stanza::iq("result", &id, Some(&features::bound(&jid)));
                self.send(&mut acts, |writer, out| writer.stanza(&answer, out));
                acts.push(Act::Bound { jid });
                self.state = State::Done;
            }
            Err(error) => self.refuse_bind(&id, &error, &mut acts),
        }
        acts
    }

    /// The answer to [`Act::Resume`]: the session's address and how many stanzas of the client it has handled; or why
    /// not, with that number where the session is known and over.
    pub fn on_resumed(&mut self, resumed: Result<(FullJid, u32), (Condition, Option<u32>)>) -> Acts {
        let mut acts = Acts::new();
        let id = match std::mem::replace(&mut self.state, State::Open) {
            State::Resuming(id) => id,
            State::Entering(entering, Stage::Resuming(id)) => {
                self.enter_resumed(entering, &id, resumed, &mut acts);
                return acts;
            }
            other => {
                self.state = other;
                return acts;
            }
        };
        match resumed {
            Ok((jid, handled)) => {
                let answer = management::resumed(&id, handled);
                self.send(&mut acts, |writer, out| writer.element(&answer, out));
                acts.push(Act::Bound { jid });
                self.state = State::Done;
            }
            Err((condition, handled)) => self.refuse_management(condition, handled, &mut acts),
        }
        acts
    }

    fn on_header(&mut self, header: &StreamHeader, acts: &mut Acts) {
        self.answer = Answer::to(header);
        if let Err(condition) = self.check_header(header) {
            return self.fail(acts, condition.into());
        }
        let account = self.answer.to.clone().filter(|named| named.node().is_some());
        self.named = account.filter(|_| self.tls.is_some());
        if let Some(error) = self.away.take() {
            return self.fail(acts, error);
        }
        self.open(acts);
        if self.account.is_some() {
            let features = self.features();
            self.send(acts, |writer, out| writer.features(&features, out));
        } else {
            let offer = self.offer_now();
            let more = self.greetings();
            self.send(acts, |writer, out| writer.features_beside(&offer.features, &more, out));
        }
        self.state = State::Open;
    }

    /// RFC 6120, 4.7 and 4.8.
    fn check_header(&mut self, header: &StreamHeader) -> Result<(), StreamCondition> {
        use StreamCondition::*;
        if !matches!(self.state, State::Header) {
            return Err(BadFormat);
        }
        if &*header.ns != ns::STREAM {
            return Err(InvalidNamespace);
        }
        if &*header.name != "stream" {
            return Err(BadFormat);
        }
        // RFC 6120, 4.8.2: a client may declare no content namespace, but say it on each of its stanzas.
        if !matches!(&*header.content_ns, "" | ns::CLIENT | ns::STREAM) {
            return Err(InvalidNamespace);
        }
        let to = header.to.as_deref().filter(|to| !to.is_empty()).ok_or(ImproperAddressing)?;
        let host = address::host(to).map_err(|_| HostUnknown)?;
        if !self.settings.hosts.contains(&host) {
            return Err(HostUnknown);
        }
        if !header.version.as_deref().is_some_and(speaks_1_0) {
            return Err(UnsupportedVersion);
        }
        if header.lang.as_deref().is_some_and(|lang| lang.len() > LANG_MAX) {
            return Err(PolicyViolation);
        }
        if let Some(account) = &self.account {
            // Nobody changes host or name by restarting a stream.
            let same = header.from.is_none() || self.answer.to.as_ref() == Some(account);
            if self.host.as_ref() != Some(&host) || !same {
                return Err(NotAuthorized);
            }
        }
        self.host = Some(host);
        Ok(())
    }

    /// What is offered to who is authenticated.
    fn features(&self) -> Vec<Element> {
        let mut features = vec![features::bind()];
        if !self.offered.iter().any(|feature| feature.is("session", ns::SESSION)) {
            features.push(features::session());
        }
        features.extend(self.offered.iter().cloned());
        features
    }

    fn on_element(&mut self, element: &Element, acts: &mut Acts) {
        let name = element.name();
        if element.has_ns(features::SASL2) && self.is_sasl2() {
            self.on_sasl2(element, acts);
        } else if self.wish.is_some() {
            // XEP-0388, 2.4: nothing else is said while such a login runs.
            self.fail(acts, StreamCondition::PolicyViolation.into());
        } else if element.has_ns(ns::TLS) && name == "starttls" {
            self.on_starttls(acts);
        } else if element.has_ns(ns::SASL) && matches!(name, "auth" | "response" | "abort") {
            self.on_sasl(element, acts);
        } else if element.has_ns(management::NS) && matches!(name, "enable" | "resume") {
            self.on_management(element, acts);
        } else if element.is("compress", features::COMPRESS) {
            // XEP-0138 is unsafe with authentication and never offered.
            self.send(acts, |writer, out| writer.element(&features::compress_failure(), out));
        } else {
            match stray(element) {
                Some(error) => self.fail(acts, error),
                None => self.close(acts, None),
            }
        }
    }

    /// XEP-0198, 3 and 5: there is nothing to manage before a resource is bound, but an earlier session may go on.
    fn on_management(&mut self, element: &Element, acts: &mut Acts) {
        let is_offered = self.offered.iter().any(|feature| feature.is("sm", management::NS));
        let (Some(account), State::Open) = (self.account.clone(), &self.state) else {
            return self.refuse_management(Condition::UnexpectedRequest, None, acts);
        };
        match Said::read(element) {
            _ if !is_offered => self.refuse_management(Condition::FeatureNotImplemented, None, acts),
            Ok(Said::Resume(Resume { id, handled })) => {
                self.state = State::Resuming(id.as_str().into());
                acts.push(Act::Resume { account, resume: Resume { id, handled } });
            }
            Ok(_) => self.refuse_management(Condition::UnexpectedRequest, None, acts),
            Err(condition) => self.refuse_management(condition, None, acts),
        }
    }

    fn refuse_management(&mut self, condition: Condition, handled: Option<u32>, acts: &mut Acts) {
        let failed = management::failed(condition, handled);
        self.send(acts, |writer, out| writer.element(&failed, out));
        self.bind_failures += 1;
        if self.bind_failures > BIND_FAILURES_MAX {
            self.fail(acts, StreamCondition::PolicyViolation.into());
        }
    }

    fn on_starttls(&mut self, acts: &mut Acts) {
        let offered = self.tls.is_none() && self.settings.tls_available && self.account.is_none();
        if offered && matches!(self.state, State::Open) {
            self.send(acts, |writer, out| writer.element(&features::tls("proceed"), out));
            self.state = State::Tls;
            acts.push(Act::StartTls);
        } else {
            // RFC 6120, 5.4.2.2: a failure ends the stream.
            self.send(acts, |writer, out| writer.element(&features::tls("failure"), out));
            self.close(acts, None);
        }
    }

    fn on_stanza(&mut self, stanza: &Stanza, acts: &mut Acts) {
        if self.account.is_none() {
            return self.on_request(stanza, acts);
        }
        let (Some(account), State::Open) = (self.account.clone(), &self.state) else {
            return self.fail(acts, StreamCondition::NotAuthorized.into());
        };
        if stanza.head.from.as_ref().is_some_and(|from| from.to_bare() != account) {
            // RFC 6120, 4.9.3.9, as of who is bound.
            return self.fail(acts, StreamCondition::InvalidFrom.into());
        }
        let is_set = stanza.head.kind == Kind::Iq && stanza.iq_type() == Ok(IqType::Set);
        let to_us = stanza.head.to.as_ref().is_none_or(|to| {
            to.domain() == account.domain() && to.node().is_none_or(|node| Some(node) == account.node())
        });
        let bind = stanza.payload().filter(|payload| payload.is("bind", ns::BIND));
        let (Some(bind), true, Some(id)) = (bind, is_set && to_us, &stanza.head.id) else {
            // RFC 6120, 7.1: a client that is not bound sends no stanza but to bind.
            return self.fail(acts, StreamCondition::NotAuthorized.into());
        };
        let requested = bind.get_child("resource", ns::BIND).map(Element::text);
        match requested.as_deref().filter(|resource| !resource.is_empty()).map(ResourcePart::new) {
            Some(Err(_)) => {
                let error = StanzaError::new(Condition::BadRequest).with_text("not a resource");
                self.refuse_bind(id, &error, acts);
            }
            requested => {
                let requested = requested.and_then(Result::ok).map(|resource| resource.into_owned());
                self.state = State::Binding(id.clone());
                acts.push(Act::Bind { account, requested });
            }
        }
    }

    fn refuse_bind(&mut self, id: &str, error: &StanzaError, acts: &mut Acts) {
        if let Some(answer) = Stanza::iq("set", id, None).error(error) {
            self.send(acts, |writer, out| writer.stanza(&answer, out));
        }
        self.bind_failures += 1;
        if self.bind_failures > BIND_FAILURES_MAX {
            self.fail(acts, StreamCondition::PolicyViolation.into());
        }
    }

    /// The next thing that either side says is a header.
    fn expect_header(&mut self) {
        self.writer.restart();
        self.answer = Answer::default();
        self.state = State::Header;
    }

    fn open(&mut self, acts: &mut Acts) {
        let host = self.host.clone().or_else(|| self.settings.hosts.first().cloned());
        let id = self.settings.token();
        let Answer { to, version } = std::mem::take(&mut self.answer);
        self.send(acts, |writer, out| {
            let from = host.as_ref().map(|host| host.as_str());
            let to = to.as_ref().map(|to| to.as_str());
            let header = Header { version: version.as_deref(), from, to, id: Some(&id), lang: Some("en") };
            writer.header(&header, out);
        });
    }

    fn send(&mut self, acts: &mut Acts, write: impl FnOnce(&mut Writer, &mut BytesMut)) {
        // What is said in one breath is one write.
        let mut out = match acts.pop_if(|act| matches!(act, Act::Send(_))) {
            Some(Act::Send(before)) => {
                before.try_into_mut().unwrap_or_else(|before| BytesMut::from(&before[..]))
            }
            _ => BytesMut::with_capacity(ANSWER),
        };
        write(&mut self.writer, &mut out);
        acts.push(Act::Send(out.freeze()));
    }

    /// Ends the stream with an error, after our own header where none was sent (RFC 6120, 4.9.1.2).
    fn fail(&mut self, acts: &mut Acts, error: StreamError) {
        match self.state {
            State::Done => {}
            // The peer expects a handshake: nothing of ours would be read.
            State::Tls => {
                self.state = State::Done;
                acts.push(Act::Close { error: Some(error) });
            }
            _ => {
                if !self.writer.is_open() {
                    self.open(acts);
                }
                self.send(acts, |writer, out| writer.error(&error, out));
                self.state = State::Done;
                acts.push(Act::Close { error: Some(error) });
            }
        }
    }

    fn close(&mut self, acts: &mut Acts, error: Option<StreamError>) {
        self.send(acts, |writer, out| writer.close(out));
        self.state = State::Done;
        acts.push(Act::Close { error });
    }
}

/// What an element that nobody understands ends the stream with, before and after binding alike. `None`:
/// the peer sent its own `<stream:error/>`, and is not answered.
pub fn stray(element: &Element) -> Option<StreamError> {
    if element.is("error", ns::STREAM) {
        return None;
    }
    let condition = match element.name() {
        // RFC 6120, 4.8.3: a content namespace that is spoken between others.
        _ if CONTENT_OF_OTHERS.iter().any(|uri| element.has_ns(*uri)) => StreamCondition::InvalidNamespace,
        // RFC 6120, 6.4.6: who is authenticated does not authenticate again.
        "auth" | "response" | "abort" if element.has_ns(ns::SASL) => StreamCondition::PolicyViolation,
        // XEP-0388, 6.8: nor by this.
        "authenticate" | "response" | "abort" | "next" | "task-data" if element.has_ns(features::SASL2) => {
            StreamCondition::PolicyViolation
        }
        _ => StreamCondition::UnsupportedStanzaType,
    };
    Some(condition.into())
}

/// Major and minor number of a version, without leading zeros (RFC 6120, 4.7.5: compared as numbers).
fn numbers(version: &str) -> Option<(&str, &str)> {
    let (major, minor) = version.split_once('.')?;
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let trimmed = |s| str::trim_start_matches(s, '0');
    (number(major) && number(minor)).then(|| (trimmed(major), trimmed(minor)))
}

/// Whether it is 1.0 or later.
fn speaks_1_0(version: &str) -> bool {
    numbers(version).is_some_and(|(major, _)| !major.is_empty())
}

/// The minor number of a version before 1.0.
fn minor_of_0(version: &str) -> Option<&str> {
    let (_, minor) = numbers(version).filter(|(major, _)| major.is_empty())?;
    Some(if minor.is_empty() { "0" } else { minor })
}

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod fast_tests;
#[cfg(test)]
mod sasl2_tests;
#[cfg(test)]
mod upgrade_tests;
#[cfg(test)]
mod splits;
#[cfg(test)]
mod tests;

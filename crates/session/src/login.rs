//! Brings a client from its first byte to a bound session: TLS, negotiation, credentials, binding.

mod inlined;
mod keys;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use cluster::{BindError, ConflictPolicy};
use hooks::{AccountState, Offer, Reply, Resource, SessionView, Sid, Stranger};
use jid::{BareJid, FullJid, ResourcePart};
use router::{Mailbox, Refusal, Thread};
use rustls::server::ClientHello;
use stanza::{Condition, ErrorKind, Stanza, StanzaError, StreamCondition, StreamError};
use stream::management::{self, Resume, TooHigh};
use stream::sasl::{MechanismName, SaslCondition};
use stream::{Act, Acts, Entry, Negotiation, Reader, TlsFacts, TlsVersion};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::claim::Claim;
use crate::connection::{CameBy, Connection, Manageable};
use crate::failures::Crowded;
use crate::listener::Door;
use crate::outcome::Outcome;
use crate::outliving::{self, Facts, Outliving, settled};
use crate::tls::{Served, TlsStore};

/// What a login that succeeded hands to the session.
pub(crate) struct LoggedIn {
    pub arrived: Arrived,
    /// Boxed: it would be moved, and so laid out, once for each future that it passes through.
    pub reader: Box<Reader>,
    /// What the client sent behind its bind request.
    pub input: BytesMut,
    pub mechanism: &'static str,
}

/// The session of a client that has logged in.
pub(crate) enum Arrived {
    /// A new one.
    Bound(Arc<SessionView>, Mailbox),
    /// One that it had before (XEP-0198, 5).
    Resumed(Box<Outliving>),
}

/// How far a client has come that is about to have a session.
enum Entered {
    Bound(Arc<SessionView>, Mailbox),
    /// The session is in the hands of the connection.
    Resumed,
}

/// How long the answer to a failed login is held back at least, times the failures on this stream.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// How often the table is renewed for a session that it does not show where it is.
const TABLE_LOOKS: u32 = 2;

struct Login<'a> {
    connection: &'a Rc<Connection>,
    door: Door,
    negotiation: Negotiation,
    reader: Box<Reader>,
    input: BytesMut,
    /// When the whole login must be done.
    deadline: Instant,
    /// When the stream header that is due must be complete; `None` where none is due.
    header_due: Option<Instant>,
    failures: u32,
    /// How many sessions had been ordered to end before the account was looked at.
    looked: Option<(BareJid, u64)>,
    /// The mark of the account that was looked at, by which its tokens hold (XEP-0484) and keys may be added.
    mark: Option<Vec<u8>>,
    /// When a password began to be checked, until the client has its answer.
    checking: Option<Instant>,
    mechanism: &'static str,
    bound: Option<Entered>,
}

/// Serves a client until it is bound.
///
/// # Errors
/// Why it never was; where a stream was open, the client has been told.
pub(crate) async fn login(connection: &Rc<Connection>, door: Door) -> Result<LoggedIn, Outcome> {
    let limits = &connection.world.config.limits;
    tokio::select! {
        biased;
        _ = connection.world.closing() => return Err(Outcome::Silent),
        first = timeout(limits.first_byte(), connection.wire.peek()) => match first {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Outcome::Gone),
            Err(_) => return Err(Outcome::Silent),
        },
    }
    tokio::select! {
        biased;
        _ = connection.world.closing() => return Err(Outcome::Silent),
        () = connection.world.admission.turn() => {}
    }
    // Behind the wait, which is not the client's.
    let deadline = Instant::now() + limits.login();
    let entry = match door {
        Door::StartTls => Entry::Clear,
        Door::DirectTls => Entry::DirectTls(handshake(connection, door, None).await?),
    };
    let settings = connection.world.settings().await;
    let mut login = Login {
        connection,
        door,
        negotiation: Negotiation::new(settings, entry),
        reader: Box::new(Reader::new(limits.before_auth())),
        input: BytesMut::new(),
        deadline,
        header_due: Some(Instant::now() + limits.header()),
        failures: 0,
        looked: None,
        mark: None,
        checking: None,
        mechanism: "",
        bound: None,
    };
    loop {
        let arrived = match login.bound.take() {
            Some(Entered::Bound(view, mailbox)) => Some(Arrived::Bound(view, mailbox)),
            Some(Entered::Resumed) => connection.resumed.take().map(Arrived::Resumed),
            None => None,
        };
        if let Some(arrived) = arrived {
            let Login { reader, input, mechanism, .. } = login;
            return Ok(LoggedIn { arrived, reader, input, mechanism });
        }
        login.step().await?;
    }
}

impl Login<'_> {
    /// Handles one event, or reads more for it.
    async fn step(&mut self) -> Result<(), Outcome> {
        let acts = match self.reader.feed(&mut self.input) {
            Ok(Some(event)) => {
                if matches!(event, stream::StreamEvent::Header(_)) {
                    self.header_due = None;
                    self.turn_away();
                }
                self.negotiation.on_event(event)
            }
            Ok(None) => return self.read().await,
            Err(error) => self.negotiation.on_read_error(error),
        };
        self.perform(acts).await
    }

    async fn read(&mut self) -> Result<(), Outcome> {
        let due = self.header_due.map_or(self.deadline, |due| due.min(self.deadline));
        let world = &self.connection.world;
        if let Some(pause) = self.connection.pause() {
            Box::pin(sleep(pause)).await;
        }
        if Instant::now() >= due {
            // A client that never stops sending is late as well.
            let acts = self.negotiation.on_timeout();
            return self.perform(acts).await;
        }
        let read = tokio::select! {
            biased;
            _ = world.closing() => {
                let acts = self.negotiation.end(StreamError::new(StreamCondition::SystemShutdown));
                return self.perform(acts).await;
            }
            read = timeout_at(due, self.connection.read(&mut self.input)) => read,
        };
        match read {
            Ok(read) => read.map(|_| ()),
            Err(_) => {
                let acts = self.negotiation.on_timeout();
                self.perform(acts).await
            }
        }
    }

    /// Does what the negotiation asks for, and what it asks for then.
    async fn perform(&mut self, acts: Acts) -> Result<(), Outcome> {
        let mut acts = std::collections::VecDeque::from(acts);
        while let Some(act) = acts.pop_front() {
            let next = match act {
                Act::Send(bytes) => {
                    if let Some(Act::AuthFailed { account, condition }) = acts.front().cloned() {
                        // Before its answer: or it would hold back only who waits for one.
                        acts.pop_front();
                        self.failed(account.as_ref(), condition).await;
                    }
                    self.connection.write(&bytes).await?;
                    continue;
                }
                Act::StartTls => {
                    // RFC 6120, 5.4.3.3: what came in the clear behind `<starttls/>` is thrown away, or an
                    // attacker's bytes would run inside the protected stream.
                    self.input.clear();
                    self.reader.restart();
                    let host = self.negotiation.host().map(|host| host.as_str().to_owned());
                    let facts = handshake(self.connection, Door::StartTls, host.as_deref()).await?;
                    self.negotiation.on_tls(facts);
                    self.expect_header();
                    continue;
                }
                Act::LookUp { account, hash } => self.look_up(&account, hash).await,
                Act::CheckPassword { account, password } => self.check(account, password).await,
                Act::FindTokens { account, client } => self.find_tokens(&account, client).await,
                Act::SettleTokens(settling) => {
                    let settled = self.settle_tokens(*settling).await;
                    self.negotiation.on_settled(settled)
                }
                Act::StoreKeys { account, hash, keys } => {
                    self.add_keys(&account, vec![(hash, keys)]).await;
                    self.negotiation.on_keys_stored()
                }
                Act::Greet { host, request } => {
                    let answer = self.greet(host.as_str(), &request.0).await;
                    self.negotiation.on_greeted(answer)
                }
                Act::AuthFailed { account, condition } => {
                    self.failed(account.as_ref(), condition).await;
                    continue;
                }
                Act::Authenticated { account, mechanism } => {
                    self.mechanism = mechanism.as_str();
                    // An attempt before it may have been at an account.
                    self.authenticated(&account);
                    continue;
                }
                Act::RestartStream => {
                    self.reader.set_limits(self.connection.world.config.limits.after_auth());
                    self.reader.restart();
                    self.expect_header();
                    continue;
                }
                Act::Admitted => self.admitted(),
                Act::BindInline { account, resource, client, asked } => {
                    let bound = self.bind_inline(&account, resource, client.as_deref(), &asked).await;
                    match self.still_open(&account, &bound).await {
                        Ok(()) => self.negotiation.on_bound_inline(bound),
                        Err(error) => self.negotiation.end(error),
                    }
                }
                Act::Bind { account, requested } => {
                    if let Some(error) = self.connection.world.turns_away(account.as_str(), self.door) {
                        acts.extend(self.negotiation.end(error));
                        continue;
                    }
                    let resource = match requested {
                        Some(resource) => resource,
                        None => self.connection.world.settings().await.make_resource(),
                    };
                    let policy = self.connection.world.config.c2s.resource_conflict.into();
                    let bound = self.bind(&account, &resource, policy).await;
                    match self.still_open(&account, &bound).await {
                        Ok(()) => self.negotiation.on_bound(bound),
                        Err(error) => self.negotiation.end(error),
                    }
                }
                Act::Resume { account, resume } => match self.resume(&account, resume).await {
                    Ok(resumed) => self.negotiation.on_resumed(resumed),
                    Err(error) => self.negotiation.end(error),
                },
                Act::Bound { .. } => continue,
                Act::Close { error } => return Err(self.closed(error)),
            };
            acts.extend(next);
        }
        Ok(())
    }

    /// A header has come: a draining node says behind its own where to go.
    fn turn_away(&mut self) {
        let Connection { world, peer, .. } = &**self.connection;
        let account = self.negotiation.account().map(|account| account.as_str().to_owned());
        let key = account.unwrap_or_else(|| peer.ip().to_string());
        let Some(error) = world.turns_away(&key, self.door) else { return };
        // RFC 6120, 4.9.3.19: no redirect before TLS, where anybody on the way could have made it up.
        let believed = self.negotiation.tls().is_some() || self.negotiation.account().is_some();
        if believed || error.condition != StreamCondition::SeeOtherHost {
            self.negotiation.turn_away(error);
        }
    }

    fn expect_header(&mut self) {
        self.header_due = Some(Instant::now() + self.connection.world.config.limits.header());
    }

    /// The negotiation has said the last words.
    fn closed(&self, error: Option<StreamError>) -> Outcome {
        self.connection.was_told();
        match error {
            None => Outcome::Closed,
            Some(error) => match error.condition {
                StreamCondition::ConnectionTimeout => Outcome::Late,
                StreamCondition::SystemShutdown => Outcome::Stopping,
                StreamCondition::SeeOtherHost => Outcome::Moved(error.host),
                _ => Outcome::Broke(error),
            },
        }
    }

    /// Answers who has not logged in; `None` where nobody answers that.
    async fn greet(&mut self, host: &str, request: &Stanza) -> Option<Stanza> {
        let world = &self.connection.world;
        world.serving().await;
        let stranger = Stranger {
            host: host.to_owned(),
            address: self.connection.peer.ip(),
            secure: self.negotiation.tls().is_some(),
        };
        let (outcome, answer) = match world.registry.greet(&stranger, request, &world.services).await? {
            Reply::Result(payload) => ("result", Some(request.result(payload.as_ref()))),
            Reply::Written(payload) => ("result", Some(request.written_result(payload))),
            Reply::Error(error) => (error.condition.tag(), request.error(&error)),
            Reply::Silent => return None,
        };
        world.counters.greeted(outcome);
        answer
    }

    /// Whether somebody disabled or removed the account since it was looked at: they either find the session, or are
    /// found here, behind the binding. Whoever does that locks the account and then orders a session to end, whether
    /// there is one or not. So where no such order was agreed on since before the look, nobody has locked it, and
    /// it need not be looked at once more.
    async fn still_open<T>(
        &mut self,
        account: &BareJid,
        bound: &Result<T, StanzaError>,
    ) -> Result<(), StreamError> {
        // A guest has a session and no account.
        if bound.is_err() || self.mechanism == MechanismName::Anonymous.as_str() {
            return Ok(());
        }
        let kicks = self.connection.world.claims.kicks();
        if self.looked.as_ref().is_some_and(|(looked, before)| looked == account && *before == kicks) {
            return Ok(());
        }
        match self.connection.world.accounts.state(account.as_str()).await {
            Ok(Some(AccountState::Open)) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%account, %error, "failed to look at an account once more");
                return Err(StreamCondition::InternalServerError.into());
            }
        }
        Err(StreamError::new(StreamCondition::NotAuthorized).with_text("nobody may log in to this account"))
    }

    /// Waits as long as earlier failures ask for; false where too many wait for that already.
    async fn turn(&self, account: &BareJid) -> bool {
        let Connection { world, peer, .. } = &**self.connection;
        match world.failures.turn(peer.ip(), account.as_str(), Instant::now().into_std()) {
            Ok(None) => true,
            Ok(Some(turn)) => {
                world.counters.auth_delayed.add(1);
                sleep(turn.delay).await;
                true
            }
            Err(Crowded) => {
                world.counters.auth_crowded.add(1);
                false
            }
        }
    }

    async fn failed(&mut self, account: Option<&BareJid>, condition: SaslCondition) {
        self.failures += 1;
        let Connection { world, peer, .. } = &**self.connection;
        world.counters.auth_failures.add(1);
        let account = account.map(|account| account.as_str());
        tracing::info!(%peer, account, condition = condition.tag(), "failed login");
        let mut pause = FAILURE_PAUSE * self.failures;
        if condition == SaslCondition::NotAuthorized {
            pause = pause.max(world.failures.failed(peer.ip(), account, Instant::now().into_std()));
        }
        // XEP-0205, 3: guessing is slowed; the account is never locked. From where the check began: how long that takes
        // depends on the hash and the rounds of the keys that are there, if any are.
        sleep_until(self.checking.take().unwrap_or_else(Instant::now) + pause).await;
    }

    fn authenticated(&mut self, account: &BareJid) {
        let world = &self.connection.world;
        world.counters.authenticated.add(1);
        self.connection.permit.authenticated();
        let offer = Offer {
            host: account.domain().as_str().to_owned(),
            account: Some(account.clone()),
            secure: self.negotiation.tls().is_some(),
            stanza_bytes: world.config.limits.stanza_bytes,
            idle_s: Some(world.config.limits.peer_timeout_s).filter(|seconds| *seconds > 0),
        };
        let features = world.registry.offered(&offer, &*world.services);
        let is_managed = features.iter().any(|feature| feature.is("sm", management::NS));
        // A guest never authenticates as the same one again.
        let is_guest = self.mechanism == MechanismName::Anonymous.as_str();
        self.connection.manageable.set(match (is_managed, is_guest) {
            (false, _) => Manageable::No,
            (true, true) => Manageable::Counted,
            (true, false) => Manageable::Resumable,
        });
        self.negotiation.offer(features);
    }

    /// Goes on with an earlier session of the account: its address and how many stanzas of the client were handled, or
    /// why not.
    ///
    /// # Errors
    /// Where the client has acknowledged more than it was sent; that session has ended.
    async fn resume(
        &mut self,
        account: &BareJid,
        resume: Resume,
    ) -> Result<Result<(FullJid, u32), (Condition, Option<u32>)>, StreamError> {
        let world = &self.connection.world;
        world.serving().await;
        let found = match Thread::read(&resume.id) {
            Some(thread) => self.find_session(account, thread, resume.handled).await,
            None => Err(Refusal::Missing(None)),
        };
        match found {
            Ok(session) => {
                let resumed = (session.view.jid().clone(), settled(&session.management).await);
                // Until it has begun on this connection it must not be lost with it.
                self.connection.resumed.replace(Some(session));
                self.bound = Some(Entered::Resumed);
                Ok(Ok(resumed))
            }
            Err(Refusal::Missing(handled)) => {
                world.counters.resumptions_failed.add(1);
                Ok(Err((Condition::ItemNotFound, handled)))
            }
            Err(Refusal::TooHigh(sent)) => {
                world.counters.resumptions_failed.add(1);
                Err(TooHigh { handled: resume.handled, sent }.into())
            }
        }
    }

    async fn find_session(
        &mut self,
        account: &BareJid,
        thread: Thread,
        handled: u32,
    ) -> Result<Box<Outliving>, Refusal> {
        let world = self.connection.world.clone();
        let (mut asked, mut looks) = (None, 0);
        let mut known = world.ended.handled(thread, account);
        loop {
            let online = world.services.online(account);
            if let Some(row) =
                online.iter().find(|row| Thread::of(row.sid) == thread && Some(row.sid) != asked)
            {
                asked = Some(row.sid);
                match self.bring(account, row, thread, handled).await {
                    Err(Refusal::Missing(handled)) => known = known.or(handled),
                    found => return found,
                }
            }
            // It may have moved on, and the table here not know it yet: two looks see one move.
            if looks >= TABLE_LOOKS || world.services.read_barrier().await.is_err() {
                return Err(Refusal::Missing(known));
            }
            looks += 1;
        }
    }

    /// Brings the session of a row to this connection.
    async fn bring(
        &mut self,
        account: &BareJid,
        row: &Resource,
        thread: Thread,
        handled: u32,
    ) -> Result<Box<Outliving>, Refusal> {
        let world = &self.connection.world;
        if row.here {
            let mut session = outliving::take(world, row.sid).await.ok_or(Refusal::Missing(None))?;
            if let Err(wrong) = session.management.acknowledged(handled) {
                let world = world.clone();
                actix_rt::spawn(async move {
                    outliving::end(&world, *session, &Outcome::Broke(wrong.into())).await;
                });
                return Err(Refusal::TooHigh(wrong.sent));
            }
            session.post.resend = true;
            self.connection.came_by.set(CameBy::Resumed);
            return Ok(session);
        }
        let node = world.router.whereabouts_of(account, row.sid).ok_or(Refusal::Missing(None))?;
        let facts = Facts {
            peer: self.connection.peer,
            since: SystemTime::now(),
            tls: self.connection.wire.tls(tls_version),
            mechanism: self.mechanism,
        };
        let session = outliving::fetch(world, node, account, thread, handled, facts).await?;
        self.connection.came_by.set(CameBy::Moved);
        Ok(session)
    }

    async fn bind(
        &mut self,
        account: &BareJid,
        resource: &ResourcePart,
        policy: ConflictPolicy,
    ) -> Result<FullJid, StanzaError> {
        let world = &self.connection.world;
        world.serving().await;
        let jid = account.with_resource(resource);
        let sessions = world.services.local_sessions(account);
        // One that may be replaced is not one more.
        let others = sessions.iter().filter(|session| *session.jid() != jid).count();
        if others >= world.config.limits.sessions_per_account {
            world.counters.binds_refused.add(1);
            // XEP-0205, 4: how a client can tell it from other constraints.
            let which = minidom::Element::bare("resource-limit-exceeded", "urn:xmpp:errors");
            let error = StanzaError::new(Condition::ResourceConstraint).with_text("too many sessions");
            return Err(error.with_kind(ErrorKind::Wait).with_extra(which));
        }
        let sid = cluster::Sid::random();
        // Before it is agreed: whatever happens from here on, the supervisor takes it back, and an order that
        // comes before the session has its actor is kept for it.
        world.table.begin(Sid(sid.0));
        let secure = self.negotiation.tls().is_some();
        let view_of = |jid: FullJid| {
            let view = SessionView::new(jid, Sid(sid.0), secure);
            let anonymous = self.mechanism == MechanismName::Anonymous.as_str();
            Arc::new(if anonymous { view.anonymous() } else { view })
        };
        let mut view = view_of(jid.clone());
        self.connection.held.claim(Claim::new(view.clone()));
        // Before it is agreed as well: other nodes send to the session as soon as they see it, and where a
        // session has no mailbox it counts as gone.
        let mut mailbox = world.router.open(view.clone());
        match world.claims.bind(&jid, sid, policy).await {
            Ok(bound) => {
                if bound.jid != jid {
                    let named = view_of(bound.jid.clone());
                    mailbox = world.router.open(named.clone());
                    world.router.close(&view, Vec::new());
                    view = named;
                }
                self.connection.held.claimed(view.clone());
                self.bound = Some(Entered::Bound(view, mailbox));
                Ok(bound.jid)
            }
            Err(BindError::Conflict) => {
                world.table.remove(Sid(sid.0));
                world.router.close(&view, Vec::new());
                self.connection.held.refused();
                // RFC 6120, 7.7.2.2: another resource may be asked for.
                Err(StanzaError::new(Condition::Conflict).with_kind(ErrorKind::Modify))
            }
            Err(BindError::Unavailable(error)) => {
                tracing::warn!(%error, "failed to bind a session");
                // It may be agreed later all the same: the supervisor takes it back with the connection, and
                // the client may ask again with another random name.
                world.table.remove(Sid(sid.0));
                world.router.close(&view, Vec::new());
                self.connection.held.doubtful();
                let error = StanzaError::new(Condition::InternalServerError).with_kind(ErrorKind::Wait);
                Err(error)
            }
        }
    }
}

/// `host`: whom the client named on the stream, where it began in the clear.
async fn handshake(connection: &Connection, door: Door, host: Option<&str>) -> Result<TlsFacts, Outcome> {
    let world = &connection.world;
    let limit = world.config.limits.tls_handshake();
    let choose = |hello: &ClientHello<'_>| {
        // Kept for the facts: when the handshake is done another certificate may be served.
        let served = world.tls.choose(hello, host);
        (served.config(door, hello.cipher_suites()), served)
    };
    match timeout(limit, connection.wire.handshake(choose)).await {
        Ok(Ok(served)) => connection.wire.tls(|tls| facts(tls, &served, &world.tls)).ok_or(Outcome::NoTls),
        Ok(Err(error)) => {
            world.counters.tls_failures.add(1);
            tracing::debug!(peer = %connection.peer, %error, "a TLS handshake failed");
            Err(Outcome::NoTls)
        }
        Err(_) => {
            world.counters.tls_failures.add(1);
            Err(Outcome::NoTls)
        }
    }
}

fn facts(tls: &rustls::ServerConnection, served: &Served, store: &TlsStore) -> TlsFacts {
    let version = match tls.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
        _ => TlsVersion::Tls12,
    };
    // RFC 9266, 4: in TLS 1.2 it needs the extended master secret, which cannot be told here.
    let exporter = (version == TlsVersion::Tls13)
        .then(|| tls.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", Some(&[])).ok())
        .flatten();
    TlsFacts {
        version,
        exporter,
        endpoint_hash: Some(served.endpoint().to_vec()),
        alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
        sni: tls.server_name().map(str::to_owned),
        client: store.client(tls.peer_certificates()),
    }
}

/// The version of TLS as operators read it.
pub(crate) fn tls_version(tls: &rustls::ServerConnection) -> &'static str {
    match tls.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        _ => "1.2",
    }
}

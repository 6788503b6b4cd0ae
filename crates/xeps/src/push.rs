//! [XEP-0357]: Push Notifications. A client that is away is woken by the push service that it has named.
//!
//! A registration belongs to the session that asked for it last. While that one is there, the client needs no push: its
//! service hears of a message when the session has ended, waits for its client (XEP-0198) or is one that nobody looks at
//! (XEP-0352). What is published comes from the account, so that its answer finds the account at whatever node.
//!
//! Left out: counts of messages and of requests for subscriptions in the summary, which no node knows of all devices;
//! trying a service again that was disabled by its errors.
//!
//! [XEP-0357]: https://xmpp.org/extensions/xep-0357.html

mod publishing;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use hooks::{
    Addressee, Answer, Answering, Arriving, Awaiting, Card, Delivering, Following, Forgetting, Hooks, Module,
    Passage, Reply, Services, SessionEvent, SessionView, Status, Step, Verdict, Xep,
};
use jid::BareJid;
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::address::{self, same_account};
use stanza::{Condition, IqType, Kind, MessageType, Stanza, StanzaError, dom, ns};
use store::{StoreError, Stored, Table};
use toml_edit::Value;

use self::publishing::Publishing;
use crate::cache::{Cache, KEY, is_change};
use crate::failure::{Failure, bad_request, store_failed};
use crate::hints::Hints;
use crate::pubsub::{self, config::PUBLISH_OPTIONS};
use crate::rosters::partition;
use crate::settings::Setting;
use crate::{carbons, forms, forwarded};

const NAME: &str = "push";
const NS: &str = "urn:xmpp:push:0";
/// The longest name of a node, in bytes.
const NODE_BYTES_MAX: usize = 1_023;
/// The most bytes of what a service wants to be given with each notification.
const OPTIONS_BYTES_MAX: usize = 8 * 1_024;
/// XEP-0353, whose calls ring.
const CALLS: [&str; 2] = ["urn:xmpp:jingle-message:0", "urn:xmpp:jingle-message:1"];
/// Told to sessions of other nodes: what is known there of the registrations is old.
const CHANGED: &[u8] = b"<changed xmlns='urn:rookery:push'/>";

crate::settings! {
    /// `[modules.push]`
    pub struct Config {
        /// What push services are told of a message: `nothing` but that there is one, its `sender`, or its sender and its text (`text`). What they are told passes through the servers of others.
        tells: Tells = Tells::Nothing,
        /// The most registrations of one account; a further one is refused with `resource-constraint`.
        registrations_max: usize = 20,
        /// How many times in a row a push service may answer that it cannot just now (errors of the type `wait`) until its registration goes; any other error ends it at once.
        failures_max: usize = 10,
        /// Milliseconds between two notifications for one registration; what comes meanwhile is one notification.
        interval_ms: usize = 1_000,
    }
}

/// What a push service is told of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tells {
    #[default]
    Nothing,
    Sender,
    Text,
}

impl Tells {
    fn word(self) -> &'static str {
        match self {
            Tells::Nothing => "nothing",
            Tells::Sender => "sender",
            Tells::Text => "text",
        }
    }
}

impl Setting for Tells {
    const EXPECTED: &'static str = "`nothing`, `sender` or `text`, in quotes";

    fn read(value: &Value) -> Option<Tells> {
        let word = value.as_str()?;
        [Tells::Nothing, Tells::Sender, Tells::Text].into_iter().find(|tells| tells.word() == word)
    }

    fn write(&self) -> String {
        format!("\"{}\"", self.word())
    }
}

/// A push service that a client has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registration {
    jid: String,
    node: Option<String>,
    /// A form, as XML that stands for itself, which is published with each notification.
    options: Option<Vec<u8>>,
    /// The session that has asked for it.
    session: String,
    /// By which the answers of the service are known.
    token: u64,
    /// Errors in a row of a service that cannot just now.
    failures: u32,
}

/// All of one account, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registrations(Vec<Registration>);

impl Stored for Registrations {
    const TABLE: Table = Table("push");
    const SCHEMA: u8 = 1;
}

/// Keeps which push services wake the clients of each account, and lets them.
pub struct Push(Arc<Core>);

/// What outlives the way of a stanza.
struct Core {
    config: Config,
    cache: Cache<Registrations>,
    publishing: Publishing,
    /// The server, once a session has been bound here.
    services: OnceLock<Weak<dyn Services>>,
}

impl Push {
    pub fn new(config: Config) -> Push {
        let publishing = Publishing::new(Duration::from_millis(config.interval_ms as u64), config.tells);
        Push(Arc::new(Core { config, cache: Cache::default(), publishing, services: OnceLock::new() }))
    }
}

impl Module for Push {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 357,
                title: "Push Notifications",
                version: "0.4.1",
                status: Status::Deferred,
            }],
            account_features: &[NS],
            ..Card::new(NAME, "Wakes clients that are away, by the push services that they name.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.awaiting(self.clone());
        hooks.following(self.clone());
        hooks.forgetting(self);
    }
}

impl Answering for Push {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let session = match &passage.sender {
            Some(session) if passage.is_own() && !session.is_anonymous() => session.clone(),
            Some(_) if passage.is_own() => {
                return Answer::Now(Reply::Error(StanzaError::new(Condition::ServiceUnavailable)));
            }
            _ => return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden))),
        };
        Answer::later(async move {
            let wish = wish(&passage.stanza, session.account());
            let done = match wish {
                Ok(wish) => self.0.change(&passage.services, &session, &wish).await,
                Err(error) => Err(error.into()),
            };
            done.map_or_else(|failure| Reply::Error(failure.answer(NAME)), |()| Reply::empty())
        })
    }
}

/// What a client asks for.
#[derive(Debug)]
enum Wish {
    Enable { jid: String, node: Option<String>, options: Option<Vec<u8>> },
    Disable { jid: String, node: Option<String> },
}

/// Sections 5 and 6.
fn wish(stanza: &Stanza, account: &BareJid) -> Result<Wish, StanzaError> {
    let payload = stanza.payload().ok_or_else(|| bad_request("no payload"))?;
    if stanza.iq_type() != Ok(IqType::Set) {
        return Err(bad_request("push notifications are enabled and disabled by a set"));
    }
    let jid = payload.attr("jid").ok_or_else(|| bad_request("`jid` is missing"))?;
    let jid = address::jid(jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    let node = payload.attr("node").filter(|node| !node.is_empty());
    if node.is_some_and(|node| node.len() > NODE_BYTES_MAX) {
        return Err(bad_request("the name of the node is too long"));
    }
    let node = node.map(str::to_owned);
    match payload.name() {
        "enable" => {
            if same_account(&jid, account) {
                let own = StanzaError::new(Condition::NotAllowed);
                return Err(own.with_text("an account is no push service of its own"));
            }
            let jid = jid.as_str().to_owned();
            Ok(Wish::Enable { jid, node, options: options(payload)? })
        }
        "disable" => Ok(Wish::Disable { jid: jid.as_str().to_owned(), node }),
        _ => Err(bad_request("neither `enable` nor `disable`")),
    }
}

/// What the service wants to be given with each notification.
fn options(enable: &Element) -> Result<Option<Vec<u8>>, StanzaError> {
    let Some(form) = enable.get_child("x", forms::NS) else { return Ok(None) };
    let is_ours = forms::Filled::of(enable).is_some_and(|filled| filled.is_of(PUBLISH_OPTIONS));
    if !is_ours {
        return Err(bad_request("the form is none of publish-options that is submitted"));
    }
    let xml = dom::to_bytes(form).to_vec();
    match xml.len() <= OPTIONS_BYTES_MAX {
        true => Ok(Some(xml)),
        false => {
            let error = StanzaError::new(Condition::PolicyViolation);
            Err(error.with_text(format!("publish-options have at most {OPTIONS_BYTES_MAX} bytes")))
        }
    }
}

impl Core {
    async fn change(
        &self,
        services: &Arc<dyn Services>,
        session: &SessionView,
        wish: &Wish,
    ) -> Result<(), Failure> {
        let mut token = [0; 8];
        services.random(&mut token);
        let token = u64::from_be_bytes(token);
        let mut is_full = false;
        self.update(services, session.account(), |all| {
            is_full = false;
            match wish {
                Wish::Enable { jid, node, options } => {
                    let (jid, node, options) = (jid.clone(), node.clone(), options.clone());
                    let session = session.jid().as_str().to_owned();
                    // Section 5: the last request for a service and a node is the one that counts.
                    let known = all.0.iter().position(|one| one.jid == jid && one.node == node);
                    let token = known.map_or(token, |at| all.0.remove(at).token);
                    is_full = all.0.len() >= self.config.registrations_max;
                    if !is_full {
                        all.0.push(Registration { jid, node, options, session, token, failures: 0 });
                    }
                }
                Wish::Disable { jid, node } => {
                    all.0.retain(|one| one.jid != *jid || (node.is_some() && one.node != *node));
                }
            }
        })
        .await?;
        match is_full {
            false => Ok(()),
            true => {
                let text = format!("at most {} push services", self.config.registrations_max);
                Err(StanzaError::new(Condition::ResourceConstraint).with_text(text).into())
            }
        }
    }

    /// Changes what is kept, and has every node of the account's sessions know.
    async fn update(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        mut change: impl FnMut(&mut Registrations) + Send,
    ) -> Result<(), StoreError> {
        let mut is_changed = false;
        let store = services.store();
        store
            .update(&partition(account), KEY, |found: Option<Registrations>| {
                let before = found.unwrap_or_default();
                let mut after = before.clone();
                change(&mut after);
                is_changed = after != before;
                (!after.0.is_empty()).then_some(after)
            })
            .await?;
        if is_changed {
            self.cache.forget_everywhere(&**services, account, CHANGED).await;
        }
        Ok(())
    }
}

impl Arriving for Push {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(account) = &passage.account else { return Answer::PASS };
        match passage.stanza.head.kind {
            Kind::Message => {}
            Kind::Iq => return self.hear_answer(passage),
            Kind::Presence => return Answer::PASS,
        }
        if is_change(&passage.stanza, account, CHANGED) {
            // To a session that has gone.
            return Answer::STOP;
        }
        let known = self.0.cache.get(account);
        // Nearly every message to a user who is there ends here.
        if known.as_ref().is_some_and(|known| known.0.is_empty()) || (passage.offline && passage.fleeting) {
            return Answer::PASS;
        }
        if let Some(node) = known.and_then(|known| withdrawn(&known, &passage.stanza)) {
            return self.withdraw(passage, node);
        }
        if !is_worth_it(&passage.stanza, passage.offline) {
            return Answer::PASS;
        }
        let (core, services) = (self.0.clone(), passage.services.clone());
        let (account, stanza) = (account.clone(), passage.stanza.clone());
        // Who is here now gets the message, also who has left before anybody is woken.
        let online = services.online(&account);
        let wakes = {
            let services = services.clone();
            Box::pin(async move {
                let is_away =
                    |one: &Registration| !online.iter().any(|online| online.jid.as_str() == one.session);
                core.wake(&services, &account, &stanza, is_away).await;
            })
        };
        // Beside the message, which no push service keeps waiting.
        services.later(Duration::ZERO, wakes);
        Answer::PASS
    }
}

impl Delivering for Push {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if is_change(stanza, session.account(), CHANGED) {
            self.0.cache.forget(session.account());
            return Verdict::Stop;
        }
        if session.is_inactive() {
            self.miss(session, stanza);
        }
        Verdict::Pass
    }
}

impl Awaiting for Push {
    fn awaiting(&self, session: &SessionView, stanza: &Stanza) {
        match is_change(stanza, session.account(), CHANGED) {
            true => self.0.cache.forget(session.account()),
            false => self.miss(session, stanza),
        }
    }
}

impl Push {
    /// Wakes the client of a session that has a message and may not see it.
    fn miss(&self, session: &SessionView, stanza: &Stanza) {
        let account = session.account();
        if stanza.head.kind != Kind::Message
            || self.0.cache.get(account).is_some_and(|known| known.0.is_empty())
            || !is_worth_it(stanza, false)
        {
            return;
        }
        let Some(services) = self.0.services.get().and_then(Weak::upgrade) else { return };
        let (core, session, account) = (self.0.clone(), session.jid().clone(), account.clone());
        let (stanza, theirs) = (stanza.clone(), services.clone());
        let wakes = Box::pin(async move {
            let is_its = |one: &Registration| one.session == session.as_str();
            core.wake(&theirs, &account, &stanza, is_its).await;
        });
        services.later(Duration::ZERO, wakes);
    }

    /// What a push service answers to a notification: it has an id of ours.
    fn hear_answer<'a>(&'a self, passage: &'a Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        let token = head.id.as_deref().and_then(publishing::token);
        let failed = match passage.stanza.iq_type() {
            Ok(IqType::Result) => None,
            Ok(IqType::Error) => {
                let error = passage.stanza.as_error();
                Some(error.is_some_and(|error| error.kind == stanza::ErrorKind::Wait))
            }
            _ => return Answer::PASS,
        };
        let (Some(token), Some(from), Some(account)) = (token, &head.from, &passage.account) else {
            return Answer::PASS;
        };
        let is_its = move |one: &Registration| one.token == token && one.jid == from.as_str();
        Answer::later(async move {
            if let Err(error) = self.0.answered(&passage.services, account, is_its, failed).await {
                drop(store_failed(NAME, &error));
            }
            Verdict::Stop
        })
    }

    /// Section 8: the service takes the right to publish back.
    fn withdraw<'a>(&'a self, passage: &'a Passage, node: String) -> Answer<'a> {
        Answer::later(async move {
            let (Some(account), Some(from)) = (&passage.account, &passage.stanza.head.from) else {
                return Verdict::Pass;
            };
            let goes = |one: &Registration| one.jid == from.as_str() && one.node.as_deref() == Some(&node);
            let gone = self.0.update(&passage.services, account, |all| all.0.retain(|one| !goes(one))).await;
            if let Err(error) = gone {
                drop(store_failed(NAME, &error));
            }
            Verdict::Stop
        })
    }
}

impl Core {
    /// Publishes to those services of an account that are meant.
    async fn wake(
        self: &Arc<Self>,
        services: &Arc<dyn Services>,
        account: &BareJid,
        stanza: &Stanza,
        is_meant: impl Fn(&Registration) -> bool,
    ) {
        let all = match self.cache.of(&**services, account).await {
            Ok(all) => all,
            Err(error) => return drop(store_failed(NAME, &error)),
        };
        for one in all.0.iter().filter(|one| is_meant(one)) {
            self.publish(services, account, one, stanza).await;
        }
    }

    /// Section 7.1. `failed`: with an error, of a service that cannot just now or that does not want it at all.
    async fn answered(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        is_its: impl Fn(&Registration) -> bool + Send + Sync,
        failed: Option<bool>,
    ) -> Result<(), StoreError> {
        let all = self.cache.of(&**services, account).await?;
        let Some(known) = all.0.iter().find(|one| is_its(one)) else { return Ok(()) };
        if failed.is_none() && known.failures == 0 {
            return Ok(());
        }
        let failures_max = u32::try_from(self.config.failures_max).unwrap_or(u32::MAX);
        let mut is_gone = false;
        self.update(services, account, |all| {
            let before = all.0.len();
            all.0.retain_mut(|one| {
                if !is_its(one) {
                    return true;
                }
                one.failures = if failed.is_some() { one.failures.saturating_add(1) } else { 0 };
                failed != Some(false) && one.failures < failures_max
            });
            is_gone = all.0.len() < before;
        })
        .await?;
        if is_gone {
            services.count(NAME, "disabled");
            tracing::debug!(module = NAME, %account, "a push service has answered with errors and is disabled");
        }
        Ok(())
    }
}

/// The node at which a service of the account takes back that we publish.
fn withdrawn(known: &Registrations, message: &Stanza) -> Option<String> {
    let from = message.head.from.as_ref()?;
    if !known.0.iter().any(|one| one.jid == from.as_str()) {
        return None;
    }
    let pubsub = message.child("pubsub", pubsub::NS)?;
    let affiliation = pubsub.get_child("affiliation", pubsub::NS)?;
    let ends = matches!(affiliation.attr("affiliation"), Some("none" | "outcast"));
    pubsub.attr("node").filter(|_| ends).map(str::to_owned)
}

/// Whether somebody is to be woken for a message: for one with a text, an encrypted one, or a call; a copy of what
/// another device has sent is none.
fn is_worth_it(message: &Stanza, offline: bool) -> bool {
    if !matches!(message.message_type(), MessageType::Normal | MessageType::Chat | MessageType::Groupchat) {
        return false;
    }
    if !message.has_named(&["body", "propose", "store", "received"]) {
        return false;
    }
    if message.has_child("sent", carbons::NS) {
        return false;
    }
    if let Some(received) = message.child("received", carbons::NS) {
        let inner = received.get_child("forwarded", forwarded::NS);
        let inner = inner.and_then(|forwarded| forwarded.get_child("message", ns::CLIENT));
        return inner
            .and_then(|inner| Stanza::from_element(inner).ok())
            .is_some_and(|inner| !inner.has_child("received", carbons::NS) && is_worth_it(&inner, false));
    }
    let hints = Hints::of(message);
    if offline && hints.no_store {
        return false;
    }
    let tells = |child: &Element| match child.name() {
        "body" => child.has_ns(ns::CLIENT) && !child.text().trim().is_empty(),
        "propose" => CALLS.iter().any(|call| child.has_ns(*call)),
        _ => false,
    };
    hints.store || message.dom().children().any(tells)
}

impl Following for Push {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            // What was cached while nobody was here to be told of changes is not to be trusted.
            SessionEvent::Bound(session)
            | SessionEvent::Returned(session)
            | SessionEvent::Resumed(session) => {
                self.0.services.get_or_init(|| Arc::downgrade(services));
                self.0.cache.forget(session.account());
                // With the login, so that no message has to read it.
                return Answer::later(async move {
                    if let Err(error) = self.0.cache.of(&**services, session.account()).await {
                        drop(store_failed(NAME, &error));
                    }
                });
            }
            SessionEvent::Closed { session, .. } if services.local_sessions(session.account()).is_empty() => {
                self.0.cache.forget(session.account());
            }
            _ => {}
        }
        Answer::Now(())
    }
}

/// What is kept goes with the account; here, what is cached of it.
impl Forgetting for Push {
    fn forgetting<'a>(&'a self, account: &'a BareJid, _: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        self.0.cache.forget(account);
        Answer::Now(())
    }
}

#[cfg(test)]
#[path = "push/tests.rs"]
mod tests;

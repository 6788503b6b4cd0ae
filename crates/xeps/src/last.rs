//! [XEP-0012]: Last Activity. Who may see a user's presence may ask when they were last there.
//!
//! Kept is the moment at which the account's last available session became unavailable or ended, with the status that
//! it said then; a session that never was available leaves nothing. An account counts as there while one of its sessions
//! is available: one that does not show itself is not shown here either (section 3 leaves that to the server). The idle
//! time of a session is for its client to tell: what is asked of a full address goes there.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hooks::{
    Addressee, Answer, Answering, Arriving, Card, Following, Hooks, Leaving, Module, Passage, Reply,
    Services, SessionEvent, SessionView, Status, Step, Why, Xep,
};
use jid::{BareJid, Jid};
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::address::same_account;
use stanza::{Condition, IqType, Kind, Stanza, StanzaError, dom, ns};
use store::{StoreError, Stored, Table};

use crate::cache::KEY;
use crate::failure::{bad_request, store_failed};
use crate::presence::is_available;
use crate::rosters::{Roster, Rosters, partition};
use crate::time::utc;
use crate::xml::{Build, element};

const NAME: &str = "last";
const NS: &str = "jabber:iq:last";
const DELAY: &str = "urn:xmpp:delay";
/// How long after the loss of a node its users are noted to have left. With the node the store may have lost its leader,
/// and contacts hear of the next lost session once they have heard of this one.
const AFTER_A_LOSS: Duration = Duration::from_secs(15);

crate::settings! {
    /// `[modules.last]`
    pub struct Config {
        /// The longest status that is kept when a user leaves, in bytes of all its languages, at most 100000; of a longer one only the time is kept.
        status_bytes_max: usize = 1_024,
    }
}

/// When an account was last there, and what it said then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// Seconds since 1970.
    at_s: u64,
    /// A language, where one was named, and the words.
    statuses: Vec<(Option<String>, String)>,
}

impl Stored for LastSeen {
    const TABLE: Table = Table("last_seen");
    const SCHEMA: u8 = 1;
}

impl LastSeen {
    fn at(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.at_s)).unwrap_or(UNIX_EPOCH)
    }

    /// RFC 6121, 4.3.2: what the answer to a probe says of it.
    pub fn write_to(&self, presence: &mut Stanza) {
        for (lang, text) in &self.statuses {
            let mut status = element("status", ns::CLIENT).text_node(text);
            if let (Some(lang), Some(name)) = (lang, dom::attribute_name("lang")) {
                status.set_attr(ns::XML.into(), name, lang);
            }
            presence.append_child(&status);
        }
        presence.append_child(&element("delay", DELAY).with("stamp", &utc(self.at())));
    }
}

/// When the account was last there, where this is kept.
pub async fn last_seen(services: &dyn Services, account: &BareJid) -> Result<Option<LastSeen>, StoreError> {
    let cards = services.cards(account.domain().as_str());
    match cards.iter().any(|card| card.name == NAME) {
        true => services.store().get(&partition(account), KEY).await,
        false => Ok(None),
    }
}

/// What is noted of a session until it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stay {
    Available,
    /// It is saying goodbye.
    Leaving(Vec<(Option<String>, String)>),
    Away,
}

/// Keeps when accounts were last there, and says so to who may know.
pub struct Last {
    config: Config,
    rosters: Arc<Rosters>,
}

impl Last {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> Last {
        Last { config, rosters }
    }
}

impl Module for Last {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 12, title: "Last Activity", version: "2.0", status: Status::Final }],
            rfcs: &["RFC 6121, section 4.3.2 (the answer to a probe of who is away)"],
            host_features: &[NS],
            account_features: &[NS],
            ..Card::new(
                NAME,
                "Says to contacts when a user was last there, and for how long the server has run.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Alter, self.clone());
        hooks.arriving(Step::Guard, self.clone());
        hooks.answering(Addressee::Host, NS, self.clone());
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.following(self);
    }
}

/// Notes what a session says as it leaves, before presence makes its end known.
impl Leaving for Last {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        let is_end =
            head.kind == Kind::Presence && head.to.is_none() && head.type_.as_deref() == Some("unavailable");
        if let (true, Some(session)) = (is_end, &passage.sender)
            && session.has_presence()
        {
            session.notes().put(Stay::Leaving(self.statuses(&passage.stanza)));
        }
        Answer::PASS
    }
}

impl Last {
    /// The status in its languages, or nothing of it where it is too long.
    fn statuses(&self, presence: &Stanza) -> Vec<(Option<String>, String)> {
        if !presence.has_child("status", ns::CLIENT) {
            return Vec::new();
        }
        let of_stanza = presence.head.lang.as_deref();
        let statuses = presence.dom().children().filter(|child| child.is("status", ns::CLIENT));
        let statuses: Vec<(Option<String>, String)> = statuses
            .map(|status| {
                let lang = status.attrs().get::<str, str>(ns::XML, "lang");
                (lang.map(String::as_str).or(of_stanza).map(str::to_owned), status.text())
            })
            .collect();
        let size: usize =
            statuses.iter().map(|(lang, text)| lang.as_ref().map_or(0, String::len) + text.len()).sum();
        if size > self.config.status_bytes_max.min(100_000) { Vec::new() } else { statuses }
    }

    /// Keeps that the account was there until now. Every session that goes says so, whether others are still there or
    /// not: of two that go at the same time at two nodes none may take the other for one that stays.
    async fn keep(
        &self,
        services: &dyn Services,
        account: &BareJid,
        statuses: Vec<(Option<String>, String)>,
    ) {
        let seen = LastSeen { at_s: now_s(services), statuses };
        log(account, services.store().put(&partition(account), KEY, &seen).await.map(drop));
    }

    async fn left(&self, services: &dyn Services, session: &SessionView) {
        let notes = session.notes();
        let before = notes.get::<Stay>().map_or(Stay::Away, |stay| (*stay).clone());
        notes.put(Stay::Away);
        match before {
            Stay::Away => {}
            Stay::Available => self.keep(services, session.account(), Vec::new()).await,
            Stay::Leaving(statuses) => self.keep(services, session.account(), statuses).await,
        }
    }
}

/// Whether it is not noted yet that the session has left.
fn stays(session: &SessionView) -> bool {
    session.notes().get::<Stay>().is_some_and(|stay| *stay != Stay::Away)
}

fn now_s(services: &dyn Services) -> u64 {
    services.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Keeps that the account was there until its node was lost, unless it has been there since.
async fn keep_late(services: &dyn Services, account: &BareJid, at_s: u64) {
    let later = |kept: Option<LastSeen>| match kept {
        Some(kept) if kept.at_s >= at_s => Some(kept),
        _ => Some(LastSeen { at_s, statuses: Vec::new() }),
    };
    log(account, services.store().update(&partition(account), KEY, later).await.map(drop));
}

fn log(account: &BareJid, kept: Result<(), StoreError>) {
    match kept {
        // The account is being removed, and its sessions with it.
        Ok(()) | Err(StoreError::Gone { .. }) => {}
        Err(error) => tracing::warn!(module = NAME, %account, %error, "failed to keep when a user left"),
    }
}

impl Following for Last {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            SessionEvent::Available { session, .. } if !session.is_anonymous() && !session.is_invisible() => {
                session.notes().put(Stay::Available);
            }
            SessionEvent::Resumed(session) if session.has_presence() && !session.is_anonymous() => {
                session.notes().put(Stay::Available);
            }
            SessionEvent::Closed { why: Why::Moved, .. } => {}
            // XEP-0186, 3.1.1: who has become invisible has left.
            SessionEvent::Unavailable(session)
            | SessionEvent::Hidden(session)
            | SessionEvent::Closed { session, .. }
                if stays(session) =>
            {
                return Answer::later(self.left(&**services, session));
            }
            // Of sessions that were available.
            SessionEvent::Lost { account, .. } => {
                let (lost, account, at_s) = (services.clone(), account.clone(), now_s(&**services));
                let keep = async move { keep_late(&*lost, &account, at_s).await };
                services.later(AFTER_A_LOSS, Box::pin(keep));
            }
            _ => {}
        }
        Answer::Now(())
    }
}

/// XEP-0012, section 4: a session is asked by those alone who may see its presence.
impl Arriving for Last {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let head = &passage.stanza.head;
        let (Kind::Iq, Some(from), Some(to), Some(account)) =
            (head.kind, &head.from, &head.to, &passage.account)
        else {
            return Answer::PASS;
        };
        let asks = head.type_.as_deref() == Some("get")
            && passage.stanza.payload().is_some_and(|payload| payload.has_ns(NS));
        if !asks || to.is_bare() || same_account(from, account) {
            return Answer::PASS;
        }
        let judge = move |roster: &Roster| match roster.lets_see(from) || is_shown(passage, account, from, to)
        {
            true => Answer::PASS,
            false => Answer::refuse(StanzaError::new(Condition::Forbidden)),
        };
        if let Some(roster) = self.rosters.cached(account) {
            return judge(&roster);
        }
        Answer::later(async move {
            match self.rosters.of(&*passage.services, account).await {
                Ok(roster) => judge(&roster).await,
                Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
            }
        })
    }
}

/// Whether the session has shown itself to who asks (RFC 6121, 4.6).
fn is_shown(passage: &Passage, account: &BareJid, from: &Jid, to: &Jid) -> bool {
    let sessions = passage.services.local_sessions(account);
    let asked = sessions.iter().find(|session| session.jid().as_str() == to.as_str());
    asked.is_some_and(|session| {
        session.is_directed_to(from) || session.is_directed_to(&Jid::from(from.to_bare()))
    })
}

fn seconds(seconds: u64) -> Element {
    element("query", NS).with("seconds", &seconds.to_string())
}

impl Answering for Last {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        if passage.stanza.iq_type() != Ok(IqType::Get) || !passage.stanza.has_child("query", NS) {
            return Answer::Now(Reply::Error(bad_request("last activity is asked by a get with a query")));
        }
        let Some(account) = &passage.account else {
            return Answer::Now(Reply::with(seconds(passage.services.about().uptime.as_secs())));
        };
        if passage.is_own() {
            // Who asks is there.
            return Answer::Now(Reply::with(seconds(0)));
        }
        Answer::later(async move {
            let answer = self.answer(passage, account).await;
            answer.unwrap_or_else(|error| Reply::Error(store_failed(NAME, &error)))
        })
    }
}

impl Last {
    async fn answer(&self, passage: &Passage, account: &BareJid) -> Result<Reply, StoreError> {
        let services = &*passage.services;
        let roster = self.rosters.of(services, account).await?;
        if !passage.stanza.head.from.as_ref().is_some_and(|from| roster.lets_see(from)) {
            // XEP-0012, section 3.
            return Ok(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        if is_available(services, account) {
            return Ok(Reply::with(seconds(0)));
        }
        let Some(seen) = last_seen(services, account).await? else {
            // Nobody has ever seen them.
            return Ok(Reply::Error(StanzaError::new(Condition::ItemNotFound)));
        };
        let since = services.now().duration_since(seen.at()).map_or(0, |since| since.as_secs());
        let answer = seconds(since);
        Ok(Reply::with(match seen.statuses.first() {
            Some((_, status)) => answer.text_node(status),
            None => answer,
        }))
    }
}

#[cfg(test)]
#[path = "last_tests.rs"]
mod tests;

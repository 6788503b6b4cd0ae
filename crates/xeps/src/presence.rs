//! RFC 6121, section 4: Exchanging Presence Information. Who is available is told to who may know.

pub(crate) mod returning;

use std::sync::{Arc, OnceLock, Weak};

use hooks::{
    Answer, Arriving, Card, Following, Hooks, How, Leaving, Module, Passage, Services, SessionEvent,
    SessionView, Step, Verdict, Why,
};
use jid::{BareJid, FullJid, Jid};
use stanza::address::same_account;
use stanza::{Condition, Kind, PresenceType, Stanza, StanzaError, ns};

use crate::blocklists::Blocklists;
use crate::failure::{Failure, bad_request, store_failed};
use crate::last::last_seen;
use crate::privacylists::{Flow, PrivacyLists};
use crate::rosters::{Roster, Rosters, Standing};
use crate::screen::Screen;

const NAME: &str = "presence";

crate::settings! {
    /// `[modules.presence]`
    pub struct Config {
        /// The most receivers of directed presence that one session may have at a time; one more is refused with `resource-constraint`.
        directed_max: usize = 1_000,
    }
}

/// Broadcasts presence, answers probes, and ends what a session leaves behind.
pub struct Presence {
    config: Config,
    rosters: Arc<Rosters>,
    blocklists: Arc<Blocklists>,
    privacy: Arc<PrivacyLists>,
    /// The server, once a session has been bound here.
    services: OnceLock<Weak<dyn Services>>,
}

impl Presence {
    pub fn new(
        config: Config,
        rosters: Arc<Rosters>,
        blocklists: Arc<Blocklists>,
        privacy: Arc<PrivacyLists>,
    ) -> Presence {
        Presence { config, rosters, blocklists, privacy, services: OnceLock::new() }
    }
}

impl Module for Presence {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6121, section 4"],
            ..Card::new(NAME, "Tells contacts and own devices who is available, and answers when they ask.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Record, self.clone());
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.following(self);
    }
}

impl Leaving for Presence {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        if passage.stanza.head.kind != Kind::Presence {
            return Answer::PASS;
        }
        let kind = match passage.stanza.presence_type() {
            Ok(kind) => kind,
            Err(error) => return Answer::refuse(error),
        };
        let Some(session) = passage.sender.clone() else { return Answer::PASS };
        match (kind, passage.stanza.head.to.clone()) {
            (PresenceType::Available, Some(to)) => self.directed(&session, to),
            (PresenceType::Unavailable, Some(to)) => {
                session.undirect(&to);
                Answer::PASS
            }
            (PresenceType::Probe, Some(to)) => self.asked(passage, to),
            // RFC 6121, 4.3: a probe is no reason for an error, whatever it lacks.
            (PresenceType::Probe, None) => Answer::STOP,
            (_, Some(_)) => Answer::PASS,
            (PresenceType::Available, None) => Answer::later(async move {
                match self.available(passage, &session).await {
                    Ok(()) => Verdict::Stop,
                    Err(failure) => Verdict::refuse(failure.answer(NAME)),
                }
            }),
            (PresenceType::Unavailable, None) => Answer::later(async move {
                match self.unavailable(passage, &session).await {
                    Ok(()) => Verdict::Stop,
                    Err(failure) => Verdict::refuse(failure.answer(NAME)),
                }
            }),
            (PresenceType::Error, None) => Answer::STOP,
            (_, None) => Answer::refuse(bad_request("this presence needs a receiver")),
        }
    }
}

impl Presence {
    /// A client's own probe (RFC 6121, 4.3). One of an account that the client does not see ends here, so that it
    /// ends the same whether that account exists or not. What it would be answered, `unsubscribed`, no client is
    /// shown that has no subscription (A.3.4); and one that waits for the contact's answer must not lose it.
    fn asked<'a>(&'a self, passage: &'a mut Passage, to: Jid) -> Answer<'a> {
        let Some(account) = passage.account.clone() else { return Answer::PASS };
        let is_local = passage.services.is_local_host(to.domain().as_str());
        if !is_local || to.is_full() || to.node().is_none() || same_account(&to, &account) {
            return Answer::PASS;
        }
        Answer::later(async move {
            match self.rosters.of(&*passage.services, &account).await {
                Ok(roster) if roster.standing(&to).to => Verdict::Pass,
                Ok(_) => Verdict::Stop,
                Err(error) => {
                    drop(store_failed(NAME, &error));
                    Verdict::Stop
                }
            }
        })
    }

    /// RFC 6121, 4.6.3: who is told directly must be told when it ends.
    fn directed(&self, session: &SessionView, to: Jid) -> Answer<'static> {
        let is_told_anyway = session.has_presence()
            && self.rosters.cached(session.account()).is_some_and(|roster| roster.lets_see(&to));
        if !is_told_anyway && session.direct_to(to, self.config.directed_max).is_err() {
            return Answer::refuse(StanzaError::new(Condition::ResourceConstraint));
        }
        Answer::PASS
    }

    /// RFC 6121, 4.2.2 and 4.4.2.
    async fn available(&self, passage: &Passage, session: &Arc<SessionView>) -> Result<(), Failure> {
        let services = &*passage.services;
        let priority = priority(&passage.stanza)?;
        let account = session.account();
        let roster = self.rosters.of(services, account).await?;
        let blocked = self.blocklists.of(services, account).await?;
        let privacy = self.privacy.of(services, account).await?;
        let before = session.priority();
        // From before anybody can see that this session takes messages until it has what was kept for it:
        // later messages wait.
        let takes_messages = priority >= 0 && before.is_none_or(|before| before < 0);
        let hold = takes_messages.then(|| services.hold(account));
        let presence = passage.stanza.clone().with_from(session.jid().clone());
        // As early, too: who sees that it is available asks it, and may not be seen from here yet, to be told.
        let former = session.set_presence(Some(presence.clone()));
        if before != Some(priority)
            && let Err(error) = services.set_priority(session, Some(priority)).await
        {
            session.set_presence(former);
            return Err(error.into());
        }
        let mut to = contacts(services, &roster, |standing| standing.from).await;
        // Once more, behind all that was awaited: who was blocked meanwhile must not hear of it.
        let blocked = self.blocklists.of(services, account).await.unwrap_or(blocked);
        let privacy = self.privacy.of(services, account).await.unwrap_or(privacy);
        let screen = Screen {
            account,
            resource: session.jid().resource().as_str(),
            roster: &roster,
            blocked: &blocked,
            privacy: &privacy,
        };
        to.retain(|contact| screen.lets(Flow::PresenceOut, contact));
        // RFC 6121, 4.2.2: own devices are subscribed without saying so, this one among them.
        to.push(Jid::from(account.clone()));
        tell(services, presence, to).await;
        if before.is_none() {
            probe(services, session, &screen).await;
        }
        let event = SessionEvent::Available { session: session.clone(), before, priority };
        services.announce(event).await;
        drop(hold);
        Ok(())
    }

    /// RFC 6121, 4.5.2.
    async fn unavailable(&self, passage: &Passage, session: &Arc<SessionView>) -> Result<(), Failure> {
        let services = &*passage.services;
        let was_available = session.priority().is_some();
        if was_available {
            services.set_priority(session, None).await?;
        }
        session.set_presence(None);
        let presence = passage.stanza.clone().with_from(session.jid().clone());
        self.take_leave(services, session, presence.clone(), was_available).await;
        if was_available {
            // RFC 6121, 4.5.2: also to the one that said it, which is no available resource any more.
            services.hand(session, presence.with_to(session.account().clone()));
        }
        if was_available {
            services.announce(SessionEvent::Unavailable(session.clone())).await;
        }
        Ok(())
    }

    /// Sends an unavailable presence to everyone who believes the session available.
    pub(crate) async fn take_leave(
        &self,
        services: &dyn Services,
        session: &SessionView,
        presence: Stanza,
        to_contacts: bool,
    ) {
        let mut to: Vec<Jid> = session.take_directed().into_iter().collect();
        if to_contacts {
            let contacts = self.watchers(services, session.jid()).await;
            to.retain(|directed| {
                directed.as_str() != session.jid().as_str() && !is_reached(services, &contacts, directed)
            });
            to.extend(contacts);
        }
        tell(services, presence, to).await;
    }

    /// Who sees the presence of a session, by name: contacts of its account, and its own devices.
    async fn watchers(&self, services: &dyn Services, session: &FullJid) -> Vec<Jid> {
        let account = &session.to_bare();
        let own = Jid::from(account.clone());
        match self.rosters.of(services, account).await {
            Ok(roster) => {
                let mut watchers = contacts(services, &roster, |standing| standing.from).await;
                let blocked = self.blocklists.of(services, account).await;
                match (blocked, self.privacy.of(services, account).await) {
                    (Ok(blocked), Ok(privacy)) => {
                        let screen = Screen {
                            account,
                            resource: session.resource().as_str(),
                            roster: &roster,
                            blocked: &blocked,
                            privacy: &privacy,
                        };
                        watchers.retain(|watcher| screen.lets(Flow::PresenceOut, watcher));
                    }
                    // Who is blocked holds the account for gone, and may hear it once more.
                    (Err(error), _) | (_, Err(error)) => drop(store_failed(NAME, &error)),
                }
                if let Err(at) = position(&watchers, own.as_str()) {
                    watchers.insert(at, own);
                }
                watchers
            }
            Err(error) => {
                // Own devices are told; contacts find out when they ask again.
                drop(store_failed(NAME, &error));
                vec![own]
            }
        }
    }

    /// A session is gone without having said so.
    async fn gone(&self, services: &dyn Services, account: &BareJid, jid: &FullJid, mut watchers: Vec<Jid>) {
        // Own devices by name: a successor of the same full JID is not told that it is gone itself.
        watchers.retain(|watcher| watcher.as_str() != account.as_str());
        let own = services.online(account).into_iter();
        let own = own.filter(|one| one.takes.is_some() && one.jid != *jid);
        watchers.extend(own.map(|one| Jid::from(one.jid)));
        let presence = Stanza::presence(Some("unavailable")).with_from(jid.clone());
        for some in watchers.chunks(SLICE) {
            services.fan_out(presence.clone(), some.to_vec()).await;
            services.pause().await;
        }
        // A successor under the same full JID may have become available before this was sent: then
        // everyone was told a lie, and asks again.
        if !is_back(services, account, jid).await {
            return;
        }
        for (at, watcher) in watchers.into_iter().enumerate() {
            if at % SLICE == SLICE - 1 {
                services.pause().await;
            }
            // Who has no session was not told, and sees the successor with its next one.
            let ours = services.is_local_host(watcher.domain().as_str());
            if ours && services.online(&watcher.to_bare()).is_empty() {
                continue;
            }
            let probe = Stanza::presence(Some("probe")).with_from(watcher).with_to(account.clone());
            services.route(probe, How::Normal).await;
        }
    }
}

/// RFC 6121, 4.7.2.3: one whole number from -128 to 127; nothing means 0.
pub(crate) fn priority(stanza: &Stanza) -> Result<i8, StanzaError> {
    if !stanza.has_child("priority", ns::CLIENT) {
        return Ok(0);
    }
    let mut elements = stanza.dom().children().filter(|child| child.is("priority", ns::CLIENT));
    match (elements.next(), elements.next()) {
        (None, _) => Ok(0),
        (Some(_), Some(_)) => Err(bad_request("a presence has one priority")),
        (Some(element), None) => {
            let text = element.text();
            text.trim().parse().map_err(|_| bad_request("the priority is not a number from -128 to 127"))
        }
    }
}

/// Contacts that are handled before others get their turn: a long roster must not hold up who shares its thread.
const SLICE: usize = 128;

/// The contacts whose standing is the one that is wanted.
pub async fn contacts(
    services: &dyn Services,
    roster: &Roster,
    wanted: impl Fn(Standing) -> bool,
) -> Vec<Jid> {
    let mut contacts = Vec::new();
    for (at, (jid, item)) in roster.items.iter().enumerate() {
        if at % SLICE == SLICE - 1 {
            services.pause().await;
        }
        // Every key went through `Jid` when it was put.
        if wanted(item.standing)
            && let Ok(jid) = Jid::new(jid)
        {
            contacts.push(jid);
        }
    }
    contacts
}

/// Sends one stanza to many.
pub(crate) async fn tell(services: &dyn Services, stanza: Stanza, to: Vec<Jid>) {
    if to.len() <= SLICE {
        return services.fan_out(stanza, to).await;
    }
    let mut to = to.into_iter();
    while to.len() > 0 {
        let some = to.by_ref().take(SLICE).collect();
        services.fan_out(stanza.clone(), some).await;
        services.pause().await;
    }
}

/// RFC 6121, 4.3.1: asks contacts and own devices whether they are available.
pub(crate) async fn probe(services: &dyn Services, session: &SessionView, screen: &Screen<'_>) {
    let probe = Stanza::presence(Some("probe"));
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for (at, jid) in contacts(services, screen.roster, |standing| standing.to).await.into_iter().enumerate() {
        if at % SLICE == SLICE - 1 {
            services.pause().await;
        }
        if !screen.lets(Flow::Other, &jid) {
            continue;
        }
        if !services.is_local_host(jid.domain().as_str()) {
            others.push(jid);
        } else if is_available(services, &jid.to_bare()) {
            // Nobody is asked who is away: whoever becomes available from here on sees this session and tells.
            ours.push(jid);
        }
    }
    ours.push(Jid::from(session.account().clone()));
    // On our own hosts we ask in the session's name, so that only this session is answered.
    tell(services, probe.clone().with_from(session.jid().clone()), ours).await;
    if !others.is_empty() {
        tell(services, probe.with_from(session.account().clone()), others).await;
    }
}

/// Where somebody is among the watchers, or would be.
fn position(watchers: &[Jid], jid: &str) -> Result<usize, usize> {
    watchers.binary_search_by(|one| one.as_str().cmp(jid))
}

/// Whether what is sent to the accounts of `watchers` reaches a receiver of directed presence too: it must not be
/// told twice. To an account means to its available sessions (RFC 6121, 8.5.2.1.2).
fn is_reached(services: &dyn Services, watchers: &[Jid], directed: &Jid) -> bool {
    let account = directed.to_bare();
    let is_merely_bound =
        |one: &hooks::Resource| one.priority.is_none() && one.jid.as_str() == directed.as_str();
    position(watchers, account.as_str()).is_ok()
        && !(directed.is_full() && services.online(&account).iter().any(is_merely_bound))
}

/// Whether a session under this full JID is available, by the newest table where one is there that may be by now.
async fn is_back(services: &dyn Services, account: &BareJid, jid: &FullJid) -> bool {
    let successor = || services.online(account).into_iter().find(|one| &one.jid == jid);
    match successor() {
        None => return false,
        Some(one) if one.priority.is_some() => return true,
        Some(_) => {}
    }
    if let Err(error) = services.read_barrier().await {
        tracing::debug!(module = NAME, %error, "looking for a successor without a read barrier");
    }
    successor().is_some_and(|one| one.priority.is_some())
}

/// Whether the account has an available session, at whatever node.
pub fn is_available(services: &dyn Services, account: &BareJid) -> bool {
    services.online(account).iter().any(|resource| resource.priority.is_some())
}

/// Of all nodes with a session of the account, and so with a part of the answer, the one that says what is said
/// once. Where no session is, the question came to one node only.
fn speaks_for(services: &dyn Services, account: &BareJid) -> bool {
    let online = services.online(account);
    online.iter().min_by(|a, b| a.jid.as_str().cmp(b.jid.as_str())).is_none_or(|first| first.here)
}

impl Arriving for Presence {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        if head.kind != Kind::Presence || !matches!(head.type_.as_deref(), Some("probe" | "unavailable")) {
            return Answer::PASS;
        }
        let (Some(account), Some(from), Some(to)) =
            (passage.account.clone(), head.from.clone(), head.to.clone())
        else {
            return Answer::STOP;
        };
        if head.type_.as_deref() == Some("unavailable") {
            // RFC 6121, 4.6.1: who has gone need not be told of an end.
            for session in passage.services.local_sessions(&account) {
                session.undirect(&from);
            }
            return Answer::PASS;
        }
        Answer::later(async move {
            if let Err(error) = self.answer_probe(passage, &account, from, to).await {
                drop(store_failed(NAME, &error));
            }
            Verdict::Stop
        })
    }
}

/// A presence that says no more than that the session is available.
fn mere(session: &SessionView) -> Stanza {
    let mut mere = Stanza::presence(None).with_from(session.jid().clone());
    // RFC 6121, 4.3.2.1.
    mere.head_mut().id = session.presence().and_then(|said| said.head.id);
    mere
}

impl Presence {
    /// RFC 6121, 4.3.2 and 4.6.6. Each node with a session of the account answers for its own.
    async fn answer_probe(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: Jid,
        to: Jid,
    ) -> Result<(), store::StoreError> {
        let services = &*passage.services;
        let may_see = self.may_see(services, account, &from).await?;
        let sessions = services.local_sessions(account);
        let privacy = match sessions.is_empty() {
            true => Arc::default(),
            false => self.privacy.of(services, account).await?,
        };
        let roster = match privacy.asks_roster() {
            true => self.rosters.of(services, account).await?,
            false => Arc::default(),
        };
        let bare = Jid::from(from.to_bare());
        let mut answered = false;
        for session in sessions {
            let is_asked = to.is_bare() || session.jid().as_str() == to.as_str();
            if !is_asked || session.jid().as_str() == from.as_str() {
                continue;
            }
            let resource = Some(session.jid().resource().as_str());
            if privacy.denies(resource, Flow::PresenceOut, account, &from, &roster) {
                continue;
            }
            let told = || session.is_directed_to(&from) || session.is_directed_to(&bare);
            let presence = match session.presence() {
                Some(presence) if may_see && to.is_bare() => presence,
                // Of one session by name: that it is there, and not what it said.
                Some(_) if may_see => mere(&session),
                _ if told() => mere(&session),
                _ => continue,
            };
            answered = true;
            services.route(presence.with_to(from.clone()), How::Normal).await;
        }
        let own = same_account(&from, account);
        // What names a session came to one node only, wherever that session is.
        if answered || (own && to.is_bare()) || !(to.is_full() || speaks_for(services, account)) {
            return Ok(());
        }
        let answer = |kind: &str| {
            let mut answer = Stanza::presence(Some(kind)).with_from(account.clone());
            // RFC 6121, 4.3.2.1.
            answer.head_mut().id = passage.stanza.head.id.clone();
            answer
        };
        let answer = if may_see && to.is_full() {
            answer("unavailable").with_from(to).with_to(from)
        } else if may_see && is_available(services, account) {
            // Another node answers.
            return Ok(());
        } else if may_see {
            let mut answer = answer("unavailable").with_to(from);
            match last_seen(services, account).await {
                Ok(seen) => seen.iter().for_each(|seen| seen.write_to(&mut answer)),
                // The answer is right without it.
                Err(error) => drop(store_failed(NAME, &error)),
            }
            answer
        } else if self.believes(services, &bare, account).await? {
            // Heals a roster that believes in a subscription which is not there. The same for an account that
            // does not exist.
            answer("unsubscribed").with_to(bare)
        } else {
            return Ok(());
        };
        services.route(answer, How::Normal).await;
        Ok(())
    }

    /// Whether the asker's roster may say that it sees the account; of other servers we do not know.
    async fn believes(
        &self,
        services: &dyn Services,
        asker: &Jid,
        account: &BareJid,
    ) -> Result<bool, store::StoreError> {
        if !services.is_local_host(asker.domain().as_str()) {
            return Ok(true);
        }
        let roster = self.rosters.of(services, &asker.to_bare()).await?;
        Ok(roster.standing(&Jid::from(account.clone())).to)
    }

    async fn may_see(
        &self,
        services: &dyn Services,
        account: &BareJid,
        asker: &Jid,
    ) -> Result<bool, store::StoreError> {
        if same_account(asker, account) {
            return Ok(true);
        }
        if self.rosters.cached(account).is_some_and(|roster| roster.lets_see(asker)) {
            return Ok(true);
        }
        // A cached `no` may be older than the approval whose probe this is.
        Ok(self.rosters.read(services, account).await?.lets_see(asker))
    }
}

impl Following for Presence {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            SessionEvent::Bound(_) | SessionEvent::Resumed(_) => {
                self.services.get_or_init(|| Arc::downgrade(services));
                Answer::Now(())
            }
            SessionEvent::Closed { why: Why::Moved, .. } => Answer::Now(()),
            SessionEvent::Closed { session, .. } => {
                let was_available = session.set_presence(None).is_some();
                let directed: Vec<Jid> = session.take_directed().into_iter().collect();
                if !was_available && directed.is_empty() {
                    return Answer::Now(());
                }
                Answer::later(async move {
                    let mut watchers = directed;
                    if was_available {
                        let contacts = self.watchers(&**services, session.jid()).await;
                        watchers.retain(|directed| !is_reached(&**services, &contacts, directed));
                        watchers.extend(contacts);
                    }
                    self.gone(&**services, session.account(), session.jid(), watchers).await;
                })
            }
            SessionEvent::Fenced(session) => {
                if session.priority().is_some() {
                    self.fenced(&**services, session);
                }
                Answer::Now(())
            }
            SessionEvent::Returned(session) => {
                let Some(presence) = session.presence() else { return Answer::Now(()) };
                Answer::later(self.returned(services, session, presence))
            }
            SessionEvent::Lost { account, jid } => Answer::later(async move {
                let watchers = self.watchers(&**services, jid).await;
                self.gone(&**services, account, jid, watchers).await;
            }),
            _ => Answer::Now(()),
        }
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;

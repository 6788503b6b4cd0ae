//! RFC 6121, section 4: Exchanging Presence Information. Who is available is told to who may know.

use std::collections::BTreeSet;
use std::sync::Arc;

use hooks::{
    Answer, Arriving, Card, Following, Hooks, How, Leaving, Module, Passage, Services, SessionEvent,
    SessionView, Step, Verdict,
};
use jid::{BareJid, FullJid, Jid};
use stanza::{Condition, Kind, PresenceType, Stanza, StanzaError, ns};

use crate::failure::{Failure, bad_request, store_failed};
use crate::rosters::{Roster, Rosters};

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
}

impl Presence {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> Presence {
        Presence { config, rosters }
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
    /// RFC 6121, 4.6.3: who is told directly must be told when it ends.
    fn directed(&self, session: &SessionView, to: Jid) -> Answer<'static> {
        let is_told_anyway = session.priority().is_some()
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
        let before = session.priority();
        // From before anybody can see that this session takes messages until it has what was kept for it:
        // later messages wait.
        let takes_messages = priority >= 0 && before.is_none_or(|before| before < 0);
        let hold = takes_messages.then(|| services.hold(account));
        if before != Some(priority) {
            services.set_priority(session, Some(priority)).await?;
        }
        let presence = passage.stanza.clone().with_from(session.jid().clone());
        session.set_presence(Some(presence.clone()));
        let mut to: Vec<Jid> = roster.subscribers().collect();
        // RFC 6121, 4.2.2: own devices are subscribed without saying so, this one among them.
        to.push(Jid::from(account.clone()));
        services.fan_out(presence, to).await;
        if before.is_none() {
            probe(services, session, &roster).await;
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
        self.take_leave(services, session, presence, was_available).await;
        if was_available {
            services.announce(SessionEvent::Unavailable(session.clone())).await;
        }
        Ok(())
    }

    /// Sends an unavailable presence to everyone who believes the session available.
    async fn take_leave(
        &self,
        services: &dyn Services,
        session: &SessionView,
        presence: Stanza,
        to_contacts: bool,
    ) {
        let mut to: BTreeSet<Jid> = session.take_directed().into_iter().collect();
        if to_contacts {
            let contacts = self.watchers(services, session.account()).await;
            // Whoever sees the account is told at its bare JID: not twice.
            to.retain(|directed| !contacts.contains(&Jid::from(directed.to_bare())));
            to.extend(contacts);
        }
        services.fan_out(presence, to.into_iter().collect()).await;
    }

    /// Who sees the presence of the account: its contacts, and its own devices.
    async fn watchers(&self, services: &dyn Services, account: &BareJid) -> BTreeSet<Jid> {
        let own = Jid::from(account.clone());
        match self.rosters.of(services, account).await {
            Ok(roster) => roster.subscribers().chain([own]).collect(),
            Err(error) => {
                // Own devices are told; contacts find out when they ask again.
                drop(store_failed(NAME, &error));
                BTreeSet::from([own])
            }
        }
    }

    /// A session is gone without having said so.
    async fn gone(&self, services: &dyn Services, account: &BareJid, jid: &FullJid, watchers: BTreeSet<Jid>) {
        let presence = Stanza::presence(Some("unavailable")).with_from(jid.clone());
        services.fan_out(presence, watchers.iter().cloned().collect()).await;
        // A successor under the same full JID may have become available before this was sent: then
        // everyone was told a lie, and asks again.
        let is_back = |services: &dyn Services| {
            services.online(account).iter().any(|r| &r.jid == jid && r.priority.is_some())
        };
        if !is_back(services) {
            return;
        }
        for watcher in watchers {
            let probe = Stanza::presence(Some("probe")).with_from(watcher).with_to(account.clone());
            services.route(probe, How::Normal).await;
        }
    }
}

/// RFC 6121, 4.7.2.3: a whole number from -128 to 127; nothing means 0.
fn priority(stanza: &Stanza) -> Result<i8, StanzaError> {
    match stanza.child("priority", ns::CLIENT) {
        None => Ok(0),
        Some(element) => {
            let text = element.text();
            text.trim().parse().map_err(|_| bad_request("the priority is not a number from -128 to 127"))
        }
    }
}

/// RFC 6121, 4.3.1: asks contacts and own devices whether they are available.
async fn probe(services: &dyn Services, session: &SessionView, roster: &Roster) {
    let probe = Stanza::presence(Some("probe"));
    let (mut ours, others): (Vec<Jid>, Vec<Jid>) =
        roster.subscriptions().partition(|jid| services.is_local_host(jid.domain().as_str()));
    ours.push(Jid::from(session.account().clone()));
    // On our own hosts we ask in the session's name, so that only this session is answered.
    services.fan_out(probe.clone().with_from(session.jid().clone()), ours).await;
    if !others.is_empty() {
        services.fan_out(probe.with_from(session.account().clone()), others).await;
    }
}

impl Arriving for Presence {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        if head.kind != Kind::Presence || head.type_.as_deref() != Some("probe") {
            return Answer::PASS;
        }
        let (Some(account), Some(from), Some(to)) =
            (passage.account.clone(), head.from.clone(), head.to.clone())
        else {
            return Answer::STOP;
        };
        Answer::later(async move {
            if let Err(error) = self.answer_probe(passage, &account, from, to).await {
                drop(store_failed(NAME, &error));
            }
            Verdict::Stop
        })
    }
}

impl Presence {
    /// RFC 6121, 4.3.2. Each node with a session of the account answers for its own.
    async fn answer_probe(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: Jid,
        to: Jid,
    ) -> Result<(), store::StoreError> {
        let services = &*passage.services;
        let may_see = self.may_see(services, account, &from).await?;
        let mut answered = false;
        for session in services.local_sessions(account) {
            let asked = to.is_bare() || session.jid().as_str() == to.as_str();
            let own = session.jid().as_str() == from.as_str();
            // RFC 6121, 4.6.6: whoever was told directly may ask.
            if !asked || own || !(may_see || session.is_directed_to(&from)) {
                continue;
            }
            if let Some(presence) = session.presence() {
                answered = true;
                services.route(presence.with_to(from.clone()), How::Normal).await;
            }
        }
        if answered || stanza::address::same_account(&from, account) {
            return Ok(());
        }
        let answer = if !may_see {
            // Heals a contact's roster that believes in a subscription which is not there. The same for an
            // account that does not exist.
            "unsubscribed"
        } else if !services.is_local_host(from.domain().as_str())
            && services.online(account).iter().all(|resource| resource.priority.is_none())
        {
            // Not to our own users: nobody is available until they hear otherwise, and each login would
            // bring an answer for each absent contact.
            "unavailable"
        } else {
            return Ok(());
        };
        let mut answer = Stanza::presence(Some(answer)).with_from(account.clone()).with_to(from.to_bare());
        answer.head_mut().id = passage.stanza.head.id.clone();
        services.route(answer, How::Normal).await;
        Ok(())
    }

    async fn may_see(
        &self,
        services: &dyn Services,
        account: &BareJid,
        asker: &Jid,
    ) -> Result<bool, store::StoreError> {
        if stanza::address::same_account(asker, account) {
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
            SessionEvent::Closed { session, .. } => {
                let was_available = session.set_presence(None).is_some();
                let directed: BTreeSet<Jid> = session.take_directed().into_iter().collect();
                if !was_available && directed.is_empty() {
                    return Answer::Now(());
                }
                Answer::later(async move {
                    let mut watchers = directed;
                    if was_available {
                        let contacts = self.watchers(&**services, session.account()).await;
                        watchers.retain(|directed| !contacts.contains(&Jid::from(directed.to_bare())));
                        watchers.extend(contacts);
                    }
                    self.gone(&**services, session.account(), session.jid(), watchers).await;
                })
            }
            SessionEvent::Lost { account, jid } => Answer::later(async move {
                let watchers = self.watchers(&**services, account).await;
                self.gone(&**services, account, jid, watchers).await;
            }),
            _ => Answer::Now(()),
        }
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;

//! What a session hears and shows when its node had lost the lease, and has it back.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hooks::{Delivering, Services, SessionEvent, SessionView, Verdict};
use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use stanza::{Kind, PresenceType, Stanza};

use super::{NAME, Presence, SLICE, contacts, probe, tell};
use crate::failure::store_failed;
use crate::privacylists::Flow;
use crate::screen::Screen;

/// What a session saw of others when its node lost the lease: the available sessions of its contacts and of its
/// own account.
struct Seen(Vec<FullJid>);

/// Of whom a session was told that they have gone, while nodes are lost: its own, or those of its contacts. It hears that
/// from what it saw before, and from whoever tells of lost nodes, each time that one is lost: once of each is enough (RFC
/// 6121, 4.5.2). Of a contact whose node comes and goes it may hear twice that it has gone before it hears that it was
/// back in between.
#[derive(Default)]
struct Gone(Mutex<GoneSince>);

#[derive(Default)]
struct GoneSince {
    sessions: HashSet<Box<str>>,
    /// When the lease was back, or the last session was told of that went without one being lost here.
    back: Option<Instant>,
}

/// How long after a return others may tell of the losses before it.
const TOLD_LATE: Duration = Duration::from_secs(60);
/// The most sessions of which one remembers that they have gone; of more it may hear that twice.
const GONE_MAX: usize = 10_000;

impl Gone {
    /// The lease is lost.
    fn lost(&self) {
        let mut gone = self.0.lock();
        gone.forget_old();
        gone.back = None;
    }
}

impl GoneSince {
    fn begun_now() -> GoneSince {
        GoneSince { sessions: HashSet::new(), back: Some(Instant::now()) }
    }

    /// Whether it is over, and all was told.
    fn forget_old(&mut self) -> bool {
        let is_old = self.back.is_some_and(|back| back.elapsed() > TOLD_LATE);
        if is_old {
            self.sessions = HashSet::new();
        }
        is_old
    }
}

impl Delivering for Presence {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if stanza.head.kind != Kind::Presence {
            return Verdict::Pass;
        }
        let Ok(kind @ (PresenceType::Available | PresenceType::Unavailable)) = stanza.presence_type() else {
            return Verdict::Pass;
        };
        let gone = match session.notes().get::<Gone>() {
            Some(gone) => gone,
            None if kind == PresenceType::Unavailable && self.may_sessions_be_away() => {
                session.notes().get_or_put(|| Gone(Mutex::new(GoneSince::begun_now())))
            }
            None => return Verdict::Pass,
        };
        let mut gone = gone.0.lock();
        if gone.forget_old() && !self.may_sessions_be_away() {
            return Verdict::Pass;
        }
        let Some(from) = stanza.head.from.as_ref().filter(|from| from.is_full()) else {
            return Verdict::Pass;
        };
        if kind == PresenceType::Available {
            gone.sessions.remove(from.as_str());
        } else if gone.sessions.contains(from.as_str()) {
            return Verdict::Stop;
        } else if gone.sessions.len() < GONE_MAX {
            gone.sessions.insert(from.as_str().into());
            gone.back = gone.back.map(|_| Instant::now());
        }
        Verdict::Pass
    }
}

impl Presence {
    /// The session is told nothing for a while: what it saw is kept, to tell it what has changed.
    pub(super) fn fenced(&self, services: &dyn Services, session: &SessionView) {
        session.notes().put(Seen(self.seen(services, session)));
        // Not anew: it may lose the lease once more before all is told of the time before.
        session.notes().get_or_put(Gone::default).lost();
    }

    fn may_sessions_be_away(&self) -> bool {
        self.services.get().and_then(Weak::upgrade).is_some_and(|services| services.may_sessions_be_away())
    }

    /// From the cache alone: a fenced node may have no store. Without it the session was shown nobody.
    fn seen(&self, services: &dyn Services, session: &SessionView) -> Vec<FullJid> {
        let account = session.account();
        let Some(roster) = self.rosters.cached(account) else { return Vec::new() };
        let shown = roster.items.iter().filter(|(_, item)| item.standing.to);
        let accounts = shown.filter_map(|(jid, _)| BareJid::new(jid).ok()).chain([account.clone()]);
        let online = accounts.flat_map(|account| services.online(&account));
        let available = online.filter(|one| one.priority.is_some() && one.jid != *session.jid());
        available.map(|one| one.jid).collect()
    }

    /// The session is back: whoever was told that it had gone is told that it is here, and it hears what it
    /// missed. As at its initial presence (RFC 6121, 4.2.2), but that it may believe others here who have left.
    pub(super) async fn returned(
        &self,
        services: &Arc<dyn Services>,
        session: &Arc<SessionView>,
        presence: Stanza,
    ) {
        let services = &**services;
        let account = session.account();
        // Not from the cache: while nothing reached this node, the roster may have changed.
        let roster = match self.rosters.read(services, account).await {
            Ok(roster) => roster,
            Err(error) => {
                drop(store_failed(NAME, &error));
                let Some(roster) = self.rosters.cached(account) else { return };
                roster
            }
        };
        let mut to = contacts(services, &roster, |standing| standing.from).await;
        let blocked = self.blocklists.of(services, account).await;
        let (blocked, privacy) = match (blocked, self.privacy.of(services, account).await) {
            (Ok(blocked), Ok(privacy)) => (blocked, privacy),
            (Err(error), _) | (_, Err(error)) => {
                drop(store_failed(NAME, &error));
                // Any of them may be blocked: own devices alone are told.
                to.clear();
                Default::default()
            }
        };
        let screen = Screen {
            account,
            resource: session.jid().resource().as_str(),
            roster: &roster,
            blocked: &blocked,
            privacy: &privacy,
        };
        to.retain(|contact| screen.lets(Flow::PresenceOut, contact));
        to.push(Jid::from(account.clone()));
        tell(services, presence, to).await;
        catch_up(services, session).await;
        probe(services, session, &screen).await;
        if let Some(priority) = session.priority() {
            let session = session.clone();
            let is_so = |one: &hooks::Resource| one.jid == *session.jid() && one.priority == Some(priority);
            if !services.online(account).iter().any(is_so)
                && let Err(error) = services.set_priority(&session, Some(priority)).await
            {
                // It was changed while the session was brought back, and lost its full JID since.
                drop(store_failed(NAME, &error));
            }
            services.announce(SessionEvent::Available { session, before: None, priority }).await;
        }
    }
}

/// Tells a session that is back of those who have gone meanwhile.
pub(crate) async fn catch_up(services: &dyn Services, session: &SessionView) {
    let seen = session.notes().get::<Seen>();
    for (at, jid) in seen.iter().flat_map(|seen| &seen.0).enumerate() {
        if at % SLICE == SLICE - 1 {
            services.pause().await;
        }
        let online = services.online(&jid.to_bare());
        if !online.iter().any(|one| one.jid == *jid && one.priority.is_some()) {
            let gone = Stanza::presence(Some("unavailable")).with_from(jid.clone());
            services.hand(session, gone.with_to(session.jid().clone()));
        }
    }
    session.notes().put(Seen(Vec::new()));
    if let Some(gone) = session.notes().get::<Gone>() {
        gone.0.lock().back = Some(Instant::now());
    }
}

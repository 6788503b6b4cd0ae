//! Shared roster groups: operators say who sees whom, and users find them in their roster.
//!
//! A member sees the others of the group under its name, subscribed both ways, without an item of their own. What the user
//! keeps for the same contact (a name, further groups, an own subscription) is shown with it, and is what is left when the
//! group goes. `groups` keeps and merges them; here sessions are told of what has changed, and what would contradict it
//! is stopped.
//!
//! Left out: members at other hosts; names for members (a user gives names); what a contact publishes (XEP-0163) comes to
//! a new member with their next login, and not with the change. Until all nodes have looked for a change, one may show it
//! and another not; both sides are told by their own node.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use hooks::{
    Answer, Arriving, Card, Following, Hooks, Leaving, Module, Passage, Repeated, Services, SessionEvent,
    SessionView, Step,
};
use jid::{BareJid, Jid};
use parking_lot::Mutex;
use stanza::{Condition, Kind, PresenceType, Stanza, StanzaError};
use store::StoreError;

use crate::blocklists::Blocklists;
use crate::failure::store_failed;
use crate::groups::{Contacts, Groups, View, digest};
use crate::presence::tell;
use crate::privacylists::{Flow, PrivacyLists};
use crate::pushes::{self, Told};
use crate::rosters::{Roster, Rosters};
use crate::screen::Screen;

const NAME: &str = "shared_groups";
/// So often it is looked for new accounts, in looks for changed groups.
const ACCOUNTS_EVERY: u32 = 15;
/// Accounts that are told of a change before others get their turn.
const SLICE: usize = 16;

/// Tells sessions of groups that have changed, and holds users to them.
pub struct SharedGroups {
    groups: Arc<Groups>,
    rosters: Arc<Rosters>,
    blocklists: Arc<Blocklists>,
    privacy: Arc<PrivacyLists>,
    looks: AtomicBool,
    /// Accounts whose sessions were not told yet of what has changed since a view, as the store did not answer.
    behind: Mutex<HashMap<BareJid, Arc<View>>>,
}

impl SharedGroups {
    pub fn new(
        groups: Arc<Groups>,
        rosters: Arc<Rosters>,
        blocklists: Arc<Blocklists>,
        privacy: Arc<PrivacyLists>,
    ) -> SharedGroups {
        let (looks, behind) = (AtomicBool::new(false), Mutex::default());
        SharedGroups { groups, rosters, blocklists, privacy, looks, behind }
    }
}

impl Module for SharedGroups {
    fn card(&self) -> Card {
        Card::new(NAME, "Shows users the contacts that operators have put into groups with them.")
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.arriving(Step::Guard, self.clone());
        hooks.following(Arc::new(Looking(self)));
    }
}

/// What a subscription stanza is, to whom or from whom it is.
fn subscription<'a>(passage: &'a Passage, other: Option<&'a Jid>) -> Option<(PresenceType, Jid)> {
    if passage.stanza.head.kind != Kind::Presence {
        return None;
    }
    use PresenceType::{Subscribe, Subscribed, Unsubscribe, Unsubscribed};
    let kind = passage.stanza.presence_type().ok()?;
    let is_one = matches!(kind, Subscribe | Subscribed | Unsubscribe | Unsubscribed);
    is_one.then_some((kind, Jid::from(other?.to_bare())))
}

impl Leaving for SharedGroups {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some((kind, contact)) = subscription(passage, passage.stanza.head.to.as_ref()) else {
            return Answer::PASS;
        };
        match &passage.account {
            Some(account) if self.groups.share(account, &contact) => match kind {
                // It is so already.
                PresenceType::Subscribe | PresenceType::Subscribed => Answer::STOP,
                _ => Answer::refuse(kept_by_operators()),
            },
            _ => Answer::PASS,
        }
    }
}

/// What a user hears who would end what operators keep.
pub(crate) fn kept_by_operators() -> StanzaError {
    StanzaError::new(Condition::NotAllowed)
        .with_text("the operators of this server keep this contact in a group with you")
}

impl Arriving for SharedGroups {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some((_, contact)) = subscription(passage, passage.stanza.head.from.as_ref()) else {
            return Answer::PASS;
        };
        match &passage.account {
            Some(account) if self.groups.share(account, &contact) => Answer::STOP,
            _ => Answer::PASS,
        }
    }
}

/// The groups as they were when a session was bound: all that it does is by those or later ones.
struct Began(Arc<View>);

/// Begins to look for changes with the first session of the node.
struct Looking(Arc<SharedGroups>);

impl Following for Looking {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        let (SessionEvent::Bound(session) | SessionEvent::Resumed(session)) = event else {
            return Answer::Now(());
        };
        if !self.0.looks.swap(true, Ordering::Relaxed) {
            let every = Duration::from_secs(self.0.groups.config().refresh_s as u64);
            services.repeat(every, Box::new(Look { module: self.0.clone(), count: AtomicU32::new(0) }));
        }
        Answer::later(async move {
            // With the login, so that no stanza has to read them; and as they are now: contacts who were told of a change
            // before have shown themselves to those who were there.
            let host = session.account().domain().as_str();
            let read = match self.0.groups.ready(&**services, host).await {
                Ok(()) => self.0.renew(&**services, host, false).await,
                Err(error) => Err(error),
            };
            if let Err(error) = read {
                drop(store_failed(NAME, &error));
            }
            if let (SessionEvent::Bound(_), Some(view)) = (event, self.0.groups.view_of(session.account())) {
                session.notes().put(Began(view));
            }
            if let SessionEvent::Resumed(session) = event {
                self.0.resumed(session);
            }
        })
    }
}

/// Looks for changes and tells of them.
struct Look {
    module: Arc<SharedGroups>,
    count: AtomicU32,
}

impl Repeated for Look {
    fn once<'a>(&'a self, services: &'a Arc<dyn Services>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let module = &self.module;
            let accounts = self.count.fetch_add(1, Ordering::Relaxed) % ACCOUNTS_EVERY == ACCOUNTS_EVERY - 1;
            for host in services.hosts().iter().filter(|host| module.groups.are_on(host)) {
                if let Err(error) = module.renew(&**services, host, accounts).await {
                    // Users are shown what was known before; the next look may bring more.
                    tracing::debug!(module = NAME, host, %error, "failed to look for changed groups");
                }
            }
            module.catch_up(&**services).await;
        })
    }
}

impl SharedGroups {
    async fn renew(&self, services: &dyn Services, host: &str, accounts: bool) -> Result<(), StoreError> {
        let Some((before, now)) = self.groups.renew(services, host, accounts).await? else { return Ok(()) };
        let mut behind = self.behind.lock();
        for account in now.touched(&before) {
            let Ok(account) = BareJid::new(&account) else { continue };
            self.rosters.forget(&account);
            // Who is told by an older view is told of all since then.
            if !services.local_sessions(&account).is_empty() {
                behind.entry(account).or_insert_with(|| before.clone());
            }
        }
        Ok(())
    }

    /// A session that came from another node is told with the next look of what it was not told there, as this node had
    /// looked and that one had not.
    fn resumed(&self, session: &SessionView) {
        let account = session.account();
        let Some(told) = session.notes().get::<Told>() else { return };
        let knows = |view: &Arc<View>| digest(&view.contacts(account.as_str())) == told.shared();
        let (now, former) = (self.groups.view_of(account), self.groups.former_of(account));
        if let Some(now) = now.filter(knows) {
            session.notes().put(Began(now));
        } else if let Some(former) = former.filter(knows) {
            session.notes().put(Began(former.clone()));
            self.behind.lock().entry(account.clone()).or_insert(former);
        }
    }

    /// Tells those who were not told yet.
    async fn catch_up(&self, services: &dyn Services) {
        let behind = std::mem::take(&mut *self.behind.lock());
        for (at, (account, before)) in behind.into_iter().enumerate() {
            if at % SLICE == SLICE - 1 {
                services.pause().await;
            }
            if let Err(error) = self.tell(services, &account, &before).await {
                drop(store_failed(NAME, &error));
                self.behind.lock().entry(account).or_insert(before);
            }
        }
    }

    /// Tells the sessions of an account at this node what has changed since a view, and shows them to whom they are shown
    /// now (RFC 6121, 3.1.5), and not any more to whom they are not (3.2.2).
    async fn tell(
        &self,
        services: &dyn Services,
        account: &BareJid,
        before: &View,
    ) -> Result<(), StoreError> {
        let Some(now) = self.groups.view_of(account) else { return Ok(()) };
        let own: Roster = self.rosters.own(services, account).await?;
        let roster = self.rosters.of(services, account).await?;
        let blocked = self.blocklists.of(services, account).await?;
        let privacy = self.privacy.of(services, account).await?;
        for session in services.local_sessions(account) {
            let began = session.notes().get::<Began>();
            // Who came later knows what was so by then.
            let before = began.as_ref().map_or(before, |began| began.0.later(before));
            let (before, after) = (before.contacts(account.as_str()), now.contacts(account.as_str()));
            let (gained, lost) = (moved(&own, &before, &after), moved(&own, &after, &before));
            let all: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
            let changed: Vec<&str> =
                all.into_iter().filter(|contact| before.get(contact) != after.get(contact)).collect();
            self.push(services, &session, &roster, &changed, digest(&after));
            let Some(presence) = session.presence() else { continue };
            let screen = Screen {
                account,
                resource: session.jid().resource().as_str(),
                roster: &roster,
                blocked: &blocked,
                privacy: &privacy,
            };
            let mut shown = gained;
            shown.retain(|contact| screen.lets(Flow::PresenceOut, contact));
            tell(services, presence, shown).await;
            let gone = Stanza::presence(Some("unavailable")).with_from(session.jid().clone());
            lost.iter().for_each(|contact| {
                session.undirect(contact);
            });
            tell(services, gone, lost).await;
        }
        Ok(())
    }

    /// RFC 6121, 2.1.6: a push for each contact, the last of which says that the session has them all.
    fn push(
        &self,
        services: &dyn Services,
        session: &SessionView,
        roster: &Roster,
        changed: &[&str],
        digest: u64,
    ) {
        let Some(told) = session.notes().get::<Told>().filter(|told| told.shared() != digest) else { return };
        for (at, contact) in changed.iter().enumerate() {
            if at + 1 == changed.len() {
                told.has_shared(digest);
            }
            let item = roster.items.get(*contact);
            let push = pushes::push(services, session.account(), contact, item, &told.version());
            services.hand(session, push.with_to(session.jid().clone()));
        }
    }
}

/// Those whom a user sees by groups in the second and not in the first, but for those to whom they show themselves anyway.
fn moved(own: &Roster, from: &Contacts<'_>, to: &Contacts<'_>) -> Vec<Jid> {
    let new = to.keys().filter(|contact| !from.contains_key(*contact));
    let contacts = new.filter_map(|contact| Jid::new(contact).ok());
    contacts.filter(|contact| !own.standing(contact).from).collect()
}

#[cfg(test)]
#[path = "shared_groups_tests.rs"]
mod tests;

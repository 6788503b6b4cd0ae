//! [XEP-0016]: Privacy Lists. What passes between a user and others is what the rules of the user's list allow.
//!
//! Left out: block lists (XEP-0191) are kept apart and not shown in the default list (XEP-0191, section 5, would map
//! them), and both are held to: what either denies does not pass. A message to the account, rather than to one of its
//! sessions, is judged at the node that it comes to, and refused where all sessions there deny it. Of a session that
//! is lost with its node, contacts to whom its active list hid it may hear that it has gone. What is published
//! (XEP-0163) is hidden by block lists alone: the text leaves it to the server whether `presence-out` hides it.
//!
//! A change is told to every session of the account by a stanza of our own, as that of a block list is; the client that
//! made it has its answer once all nodes have confirmed.

mod told;
mod wish;

use std::sync::Arc;

use hooks::{
    Addressee, Answer, Answering, Arriving, Card, Delivering, Following, Forgetting, Hooks, Leaving, Module,
    Passage, Reply, Services, SessionEvent, SessionView, Status, Step, Verdict, Xep,
};
use jid::{BareJid, Jid};
use stanza::address::same_account;
use stanza::{Condition, ErrorKind, IqType, Kind, MessageType, Stanza, StanzaError};
use store::StoreError;

use self::wish::{Bounds, Change, Wish};
use crate::blocking::told::Unconfirmed;
use crate::blocklists::Blocklists;
use crate::failure::{Failure, bad_request, store_failed};
use crate::privacylists::{Flow, Privacy as Lists, PrivacyLists};
use crate::rosters::{Roster, Rosters};

const NAME: &str = "privacy";
const NS: &str = "jabber:iq:privacy";
/// The largest record that every engine can keep, in bytes.
const RECORD_BYTES_MAX: usize = 900_000;

crate::settings! {
    /// `[modules.privacy]`
    pub struct Config {
        /// The most privacy lists of one account; a client that makes more is told `resource-constraint`.
        lists_max: usize = 50,
        /// The most items of one list; at the bound as above.
        items_max: usize = 1_000,
        /// The most bytes of all lists of one account, at most 600000; at the bound as above.
        bytes_max: usize = 256 * 1024,
    }
}

/// Keeps privacy lists, and both directions to them.
pub struct Privacy {
    config: Config,
    lists: Arc<PrivacyLists>,
    blocklists: Arc<Blocklists>,
    rosters: Arc<Rosters>,
    unconfirmed: Arc<Unconfirmed>,
}

impl Privacy {
    pub fn new(
        config: Config,
        lists: Arc<PrivacyLists>,
        blocklists: Arc<Blocklists>,
        rosters: Arc<Rosters>,
    ) -> Privacy {
        Privacy { config, lists, blocklists, rosters, unconfirmed: Arc::default() }
    }
}

impl Module for Privacy {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 16, title: "Privacy Lists", version: "1.7", status: Status::Deprecated }],
            host_features: &[NS],
            ..Card::new(NAME, "Lets users say by rules who may reach them, and who sees them.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.arriving(Step::Guard, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.following(self.clone());
        hooks.forgetting(self);
    }
}

impl Answering for Privacy {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if !passage.is_own() {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        Answer::later(async {
            let answer = match wish::read(&passage.stanza) {
                Ok(Wish::Names) => self.get(passage, None).await,
                Ok(Wish::Rules(name)) => self.get(passage, Some(name)).await,
                Ok(Wish::Change(change)) => self.set(passage, change).await,
                Err(error) => Err(error.into()),
            };
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

impl Privacy {
    async fn get(&self, passage: &Passage, name: Option<String>) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        let privacy = self.lists.of(&*passage.services, account).await?;
        let Some(name) = name else {
            let resource = passage.sender.as_ref().map(|session| session.jid().resource().as_str());
            return Ok(Reply::with(wish::names(&privacy, resource)));
        };
        match privacy.lists.get(&name) {
            Some(rules) => Ok(Reply::with(wish::list(&name, rules))),
            None => Err(StanzaError::new(Condition::ItemNotFound).into()),
        }
    }

    async fn set(&self, passage: &Passage, change: Change) -> Result<Reply, Failure> {
        let (Some(account), Some(session)) = (&passage.account, &passage.sender) else {
            return Err(bad_request("no session").into());
        };
        if self.unconfirmed.is_full() {
            return Err(StanzaError::new(Condition::ResourceConstraint).into());
        }
        let services = &*passage.services;
        let roster = self.rosters.of(services, account).await?;
        // Whom a list applies to is known of all sessions that were bound before.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(module = NAME, %account, %error, "changing lists without a read barrier");
        }
        let online = wish::online(services, account);
        let bounds = Bounds {
            lists_max: self.config.lists_max,
            items_max: self.config.items_max,
            bytes_max: self.config.bytes_max.min(RECORD_BYTES_MAX * 2 / 3),
            roster: &roster,
            online: &online,
            resource: session.jid().resource().as_str(),
        };
        let apply = |privacy: &mut Lists| Ok(change.apply(privacy, &bounds)?);
        let (before, after) = self.lists.change(services, account, apply).await?;
        Ok(match change {
            Change::Active(name) => {
                session.notes().put(Chosen(name));
                self.applied(&passage.services, session, &before, &after).await;
                Reply::empty()
            }
            Change::Put(name, _) => self.tell(passage, account, before, Some(name)).await,
            Change::Default(_) | Change::Remove(_) => self.tell(passage, account, before, None).await,
        })
    }

    /// What is asked of the lists and of the roster, from the caches where they have it.
    fn judged<'a>(
        &'a self,
        services: &'a Arc<dyn Services>,
        account: &'a BareJid,
        other: &'a Jid,
        judge: impl FnOnce(&Lists, &Roster) -> Answer<'a> + Send + 'a,
    ) -> Answer<'a> {
        if same_account(other, account) {
            return Answer::PASS;
        }
        if let Some(privacy) = self.lists.cached(account) {
            if privacy.is_idle() {
                return Answer::PASS;
            }
            let roster = match privacy.asks_roster() {
                true => self.rosters.cached(account),
                false => Some(Arc::default()),
            };
            if let Some(roster) = roster {
                return judge(&privacy, &roster);
            }
        }
        Answer::later(async move {
            match self.known(&**services, account).await {
                Ok((privacy, roster)) => judge(&privacy, &roster).await,
                Err(error) => Answer::refuse(store_failed(NAME, &error)).await,
            }
        })
    }

    /// The lists of an account, and its roster where they ask for it.
    async fn known(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<(Arc<Lists>, Arc<Roster>), StoreError> {
        let privacy = self.lists.of(services, account).await?;
        let roster = match privacy.asks_roster() {
            true => self.rosters.of(services, account).await?,
            false => Arc::default(),
        };
        Ok((privacy, roster))
    }
}

impl Leaving for Privacy {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let (Some(account), Some(to), Some(session)) =
            (&passage.account, &passage.stanza.head.to, &passage.sender)
        else {
            return Answer::PASS;
        };
        let resource = session.jid().resource().as_str();
        let flow = outbound(&passage.stanza);
        self.judged(&passage.services, account, to, move |privacy, roster| {
            match privacy.denies(Some(resource), flow, account, to, roster) {
                // XEP-0016, 2.14.
                true => {
                    Answer::refuse(StanzaError::new(Condition::NotAcceptable).with_kind(ErrorKind::Cancel))
                }
                false => Answer::PASS,
            }
        })
    }
}

/// Whether it tells of presence, rather than of a subscription (XEP-0016, section 2).
fn is_notification(stanza: &Stanza) -> bool {
    stanza.head.kind == Kind::Presence && matches!(stanza.head.type_.as_deref(), None | Some("unavailable"))
}

/// What a stanza is to who sends it.
pub(crate) fn outbound(stanza: &Stanza) -> Flow {
    if is_notification(stanza) { Flow::PresenceOut } else { Flow::Other }
}

/// What a stanza is to whom it is for.
fn inbound(stanza: &Stanza) -> Flow {
    match stanza.head.kind {
        Kind::Message => Flow::Message,
        Kind::Iq => Flow::Iq,
        Kind::Presence if is_notification(stanza) => Flow::PresenceIn,
        Kind::Presence => Flow::Other,
    }
}

impl Arriving for Privacy {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let (Some(account), Some(from)) = (&passage.account, &passage.stanza.head.from) else {
            return Answer::PASS;
        };
        if same_account(from, account) {
            return self.hear(passage, account, from);
        }
        self.judged(&passage.services, account, from, move |privacy, roster| {
            let flow = inbound(&passage.stanza);
            let denies = |resource: Option<&str>| privacy.denies(resource, flow, account, from, roster);
            let to = passage.stanza.head.to.as_ref();
            let is_denied = match to.and_then(|to| to.resource()) {
                Some(resource) => denies(Some(resource.as_str())),
                // What the account answers by itself, it answers for all of them.
                None if passage.stanza.head.kind == Kind::Iq || privacy.active.is_empty() => denies(None),
                None => {
                    let sessions = passage.services.local_sessions(account);
                    let mut denied =
                        sessions.iter().map(|session| denies(Some(session.jid().resource().as_str())));
                    if sessions.is_empty() { denies(None) } else { denied.all(|denied| denied) }
                }
            };
            if is_denied { turn_away(&passage.stanza) } else { Answer::PASS }
        })
    }
}

/// XEP-0016, 2.14: what hears who is denied.
fn turn_away<'a>(stanza: &Stanza) -> Answer<'a> {
    let is_answered = match stanza.head.kind {
        Kind::Presence => false,
        Kind::Iq => matches!(stanza.iq_type(), Ok(IqType::Get | IqType::Set)),
        Kind::Message => stanza.message_type() != MessageType::Error,
    };
    match is_answered {
        true => Answer::refuse(StanzaError::new(Condition::ServiceUnavailable)),
        false => Answer::STOP,
    }
}

/// What came for the account goes to those of its sessions whose own list lets it: the account may have others.
impl Delivering for Privacy {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else { return Verdict::Pass };
        let account = session.account();
        // What names the session was judged as it arrived.
        if to.is_full() || stanza.head.kind == Kind::Iq || same_account(from, account) {
            return Verdict::Pass;
        }
        let Some(privacy) = self.lists.cached(account).filter(|privacy| !privacy.active.is_empty()) else {
            return Verdict::Pass;
        };
        let roster = match privacy.asks_roster() {
            true => self.rosters.cached(account),
            false => Some(Arc::default()),
        };
        // While the roster is read anew, nothing is lost that a contact may have sent.
        let Some(roster) = roster else { return Verdict::Pass };
        let resource = Some(session.jid().resource().as_str());
        match privacy.denies(resource, inbound(stanza), account, from, &roster) {
            true => Verdict::Stop,
            false => Verdict::Pass,
        }
    }
}

impl Following for Privacy {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            // What was cached while nobody was here to be told of changes is not to be trusted.
            SessionEvent::Bound(session) => {
                self.lists.forget(session.account());
                Answer::later(self.begin(&**services, session))
            }
            SessionEvent::Returned(session) | SessionEvent::Resumed(session) => {
                self.lists.forget(session.account());
                Answer::later(self.go_on(&**services, session))
            }
            SessionEvent::Closed { session, .. } => {
                if services.local_sessions(session.account()).is_empty() {
                    self.lists.forget(session.account());
                }
                Answer::Now(())
            }
            _ => Answer::Now(()),
        }
    }
}

/// The list that this session chose itself: while its node was cut off, others may have held it for gone.
struct Chosen(Option<String>);

impl Privacy {
    /// A session that was away has the list that it had.
    async fn go_on(&self, services: &dyn Services, session: &SessionView) {
        let (account, resource) = (session.account(), session.jid().resource().as_str());
        if let Some(name) = session.notes().get::<Chosen>().and_then(|chosen| chosen.0.clone()) {
            let choose = |privacy: &mut Lists| {
                if privacy.lists.contains_key(&name) {
                    privacy.active.insert(resource.to_owned(), name.clone());
                }
                Ok(())
            };
            if let Err(failure) = self.lists.change(services, account, choose).await {
                drop(failure.answer(NAME));
            }
        }
        // What is delivered to it asks the caches alone.
        if let Err(error) = self.known(services, account).await {
            drop(store_failed(NAME, &error));
        }
    }

    /// A new session has no active list, whatever an earlier one of its name had (XEP-0016, 2.2).
    async fn begin(&self, services: &dyn Services, session: &SessionView) {
        let (account, resource) = (session.account(), session.jid().resource().as_str());
        let begun = match self.lists.of(services, account).await {
            Ok(privacy) if privacy.active.contains_key(resource) => {
                let end = |privacy: &mut Lists| {
                    privacy.active.remove(resource);
                    Ok(())
                };
                self.lists.change(services, account, end).await.map(drop)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = begun {
            drop(failure.answer(NAME));
        }
    }
}

impl Forgetting for Privacy {
    fn forgetting<'a>(&'a self, account: &'a BareJid, _: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        self.lists.forget(account);
        Answer::Now(())
    }
}

#[cfg(test)]
#[path = "privacy/tests.rs"]
mod tests;

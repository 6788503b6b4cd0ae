//! RFC 6121, section 2: Managing the Roster. A user's contacts, the same on all of their devices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hooks::{
    Addressee, Answer, Answering, Arriving, Card, Delivering, Following, Forgetting, Hooks, How, Leaving,
    Module, Moving, Offer, Offering, Passage, Reply, Services, SessionEvent, SessionView, Status, Step,
    Verdict, Xep,
};
use jid::{BareJid, Jid, ResourcePart};
use minidom::Element;
use stanza::address::{self, same_account};
use stanza::{Condition, IqType, Kind, PresenceType, Stanza, StanzaError, dom, ns};
use store::StoreError;

use crate::failure::{Failure, bad_request, store_failed};
use crate::groups::is_by;
use crate::pushes::{self, Told, Turn, Version, write_item};
use crate::rosters::{Item, Roster, Rosters, Standing};
use crate::shared_groups::kept_by_operators;
use crate::subscription;
use crate::xml::element;

const NAME: &str = "roster";
/// How often a roster is read anew whose groups change meanwhile.
const READS_MAX: usize = 8;

/// Answers roster gets and sets, and keeps every device and every node up to date.
pub struct RosterModule {
    rosters: Arc<Rosters>,
}

impl RosterModule {
    pub fn new(rosters: Arc<Rosters>) -> RosterModule {
        RosterModule { rosters }
    }
}

impl Module for RosterModule {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6121, section 2"],
            xeps: &[Xep {
                number: 237,
                title: "Roster Versioning",
                version: "1.3",
                status: Status::Obsolete,
            }],
            ..Card::new(NAME, "Keeps the contact list of each account and tells all devices of changes.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.answering(Addressee::Account, ns::ROSTER, self.clone());
        hooks.offering(self.clone());
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.following(self.clone());
        hooks.moving(self.clone());
        hooks.forgetting(self);
    }
}

impl Offering for RosterModule {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        match offer.account {
            // RFC 6121, 2.6.1.
            Some(_) => vec![element("ver", ns::ROSTER_VERSIONING)],
            None => Vec::new(),
        }
    }
}

impl Answering for RosterModule {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if !passage.is_own() {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        Answer::later(async {
            let answer = match passage.stanza.iq_type() {
                Ok(IqType::Get) => self.get(passage).await,
                _ => self.set(passage).await,
            };
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

impl RosterModule {
    async fn get(&self, passage: &Passage) -> Result<Reply, Failure> {
        let query = query(&passage.stanza)?;
        if query.children().any(|child| child.is("item", ns::ROSTER)) {
            // RFC 6121, 2.1.3.
            return Err(bad_request("a roster get has no items").into());
        }
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        if let Some(session) = &passage.sender {
            // Before the read, so that a change beside it is pushed: RFC 6121, 2.2.
            session.set_interested();
        }
        let roster = self.read(&*passage.services, account, passage.sender.as_deref()).await?;
        if query.attr("ver") == Some(&roster.ver()) {
            // RFC 6121, 2.6.3: the client has it all.
            return Ok(Reply::empty());
        }
        Ok(Reply::Written(listing(&*passage.services, &roster).await))
    }

    /// The roster, and what the session is told with it. Who reads it while groups change, reads it once more: of that
    /// change those are told who have the roster.
    async fn read(
        &self,
        services: &dyn Services,
        account: &BareJid,
        session: Option<&SessionView>,
    ) -> Result<Arc<Roster>, StoreError> {
        for _ in 0..READS_MAX {
            let roster = self.rosters.of(services, account).await?;
            if let Some(session) = session {
                session.notes().get_or_put(Told::default).all(roster.version(), roster.shared.digest);
            }
            let view = self.rosters.groups().view_of(account);
            if is_by(roster.shared, view.as_deref()) {
                return Ok(roster);
            }
            self.rosters.forget(account);
        }
        Err(StoreError::Contended { table: "shared_groups", attempts: READS_MAX })
    }

    async fn set(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        let services = &*passage.services;
        match self.wish(query(&passage.stanza)?, account)? {
            Wish::Put { contact, name, groups } => {
                self.rosters.groups().ready(services, account.domain().as_str()).await?;
                let shared = self.rosters.groups().names(account, contact.as_str());
                // Clients send back what they were shown.
                let own: Vec<String> = groups.into_iter().filter(|group| !shared.contains(group)).collect();
                let changed = self
                    .rosters
                    .put(services, account, &contact, |old| {
                        // RFC 6121, 2.1.2.5: a client cannot set the subscription itself.
                        let standing = old.map(|old| old.standing).unwrap_or_default();
                        let item = Item { name: name.clone(), groups: own.clone(), standing };
                        // Nothing of it is the user's own: it goes with the group.
                        let is_own = shared.is_empty() || item != Item::default();
                        is_own.then_some(item)
                    })
                    .await?;
                push(services, account, &contact, &changed.roster).await;
            }
            Wish::Remove { contact } => self.remove(services, account, &contact).await?,
        }
        Ok(Reply::empty())
    }

    /// RFC 6121, 2.5.2: who is removed is unsubscribed both ways.
    async fn remove(&self, services: &dyn Services, account: &BareJid, contact: &Jid) -> Result<(), Failure> {
        self.rosters.groups().ready(services, account.domain().as_str()).await?;
        if self.rosters.groups().share(account, contact) {
            return Err(kept_by_operators().into());
        }
        let removed = self
            .rosters
            .change(services, account, contact, |item, request| match item.take() {
                Some(old) => Ok((old.standing, request.take())),
                None => Err(StanzaError::new(Condition::ItemNotFound)),
            })
            .await?;
        push(services, account, contact, &removed.roster).await;
        let (standing, request) = removed.value;
        end_standing(services, account, contact, standing, request.is_some()).await;
        Ok(())
    }

    /// Reads a roster set (RFC 6121, 2.3.3 names the errors).
    fn wish(&self, query: &Element, account: &BareJid) -> Result<Wish, StanzaError> {
        let mut items = query.children().filter(|child| child.is("item", ns::ROSTER));
        let (Some(item), None) = (items.next(), items.next()) else {
            return Err(bad_request("a roster set has exactly one item"));
        };
        let contact = item.attr("jid").ok_or_else(|| bad_request("an item needs a jid"))?;
        let contact = address::jid(contact).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
        if item.attr("subscription") == Some("remove") {
            return Ok(Wish::Remove { contact });
        }
        if same_account(&contact, account) {
            return Err(StanzaError::new(Condition::NotAllowed).with_text("nobody is their own contact"));
        }
        let limits = self.rosters.config();
        let not_acceptable = |text: &str| Err(StanzaError::new(Condition::NotAcceptable).with_text(text));
        let name = item.attr("name").filter(|name| !name.is_empty()).map(str::to_owned);
        if name.as_ref().is_some_and(|name| name.len() > limits.name_bytes_max) {
            return not_acceptable("the name is too long");
        }
        let (mut groups, mut names) = (BTreeSet::new(), BTreeSet::new());
        for group in item.children().filter(|child| child.is("group", ns::ROSTER)) {
            let group = group.text();
            if group.is_empty() || group.len() > limits.name_bytes_max {
                return not_acceptable("a group's name is empty or too long");
            }
            // RFC 6121, 2.3.3: compared as resourceparts are.
            let name = ResourcePart::new(&group).map_or_else(|_| group.clone(), |name| name.to_string());
            if !names.insert(name) {
                return Err(bad_request("a group is named twice"));
            }
            groups.insert(group);
        }
        if groups.len() > limits.groups_max {
            return not_acceptable("too many groups");
        }
        Ok(Wish::Put { contact, name, groups: groups.into_iter().collect() })
    }
}

/// What a roster set asks for.
enum Wish {
    Put { contact: Jid, name: Option<String>, groups: Vec<String> },
    Remove { contact: Jid },
}

fn query(stanza: &Stanza) -> Result<&Element, StanzaError> {
    stanza.child("query", ns::ROSTER).ok_or_else(|| bad_request("no query"))
}

/// Items that are written before others get their turn.
const SLICE: usize = 128;

/// The whole roster, written item by item: the tree of a long one would hold up who shares its thread.
async fn listing(services: &dyn Services, roster: &Roster) -> Bytes {
    if roster.items.len() > SLICE {
        services.pause().await;
    }
    let mut out = BytesMut::with_capacity(64 + 128 * roster.items.len());
    out.extend_from_slice(b"<query xmlns='jabber:iq:roster' ver='");
    dom::escape_attribute(&roster.ver(), &mut out);
    if roster.items.is_empty() {
        // RFC 6121, 2.1.4: the query is there all the same.
        out.extend_from_slice(b"'/>");
        return out.freeze();
    }
    out.extend_from_slice(b"'>");
    for (at, (jid, item)) in roster.items.iter().enumerate() {
        write_item(jid, item, &mut out);
        if at % SLICE == SLICE - 1 {
            services.pause().await;
        }
    }
    out.extend_from_slice(b"</query>");
    out.freeze()
}

/// Sends the contact's item, or its removal, to every session of the account (RFC 6121, 2.1.6).
///
/// A push also tells the nodes that cache this roster: so it goes to all sessions, and those whose
/// client never asked for the roster do not get it (`delivering`).
pub async fn push(services: &dyn Services, account: &BareJid, contact: &Jid, roster: &Roster) {
    // A session that was bound before the change was written may have read the roster before it; it must
    // be known here. Without a quorum the push goes to whom we know.
    if let Err(error) = services.read_barrier().await {
        tracing::debug!(module = NAME, %error, "pushing without a read barrier");
    }
    for resource in services.online(account) {
        let item = roster.items.get(contact.as_str());
        let push = pushes::push(services, account, contact.as_str(), item, &roster.version().to_string());
        let push = push.with_to(resource.jid);
        services.route(push, How::Normal).await;
    }
}

/// Tells the contact that an item is gone (RFC 6121, 2.5.2): both subscriptions end, and the
/// contact sees the user no longer.
pub async fn end_standing(
    services: &dyn Services,
    account: &BareJid,
    contact: &Jid,
    standing: Standing,
    requested: bool,
) {
    let tell = |kind| Stanza::presence(Some(kind)).with_from(account.clone()).with_to(contact.to_bare());
    if standing.to || standing.asked {
        services.route(tell("unsubscribe"), How::Normal).await;
    }
    if standing.from {
        subscription::hide(services, account, contact).await;
    }
    if standing.from || requested {
        services.route(tell("unsubscribed"), How::Normal).await;
    }
}

/// The version in a push of the account itself; nobody else's iq comes from a bare JID of ours.
fn own_push(stanza: &Stanza, account: &BareJid) -> Option<Version> {
    let head = &stanza.head;
    if head.kind != Kind::Iq || head.type_.as_deref() != Some("set") {
        return None;
    }
    let from = head.from.as_ref()?;
    if !from.is_bare() || !same_account(from, account) {
        return None;
    }
    Version::parse(stanza.child("query", ns::ROSTER)?.attr("ver")?)
}

impl Leaving for RosterModule {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        if is_request_to_another(passage)
            && passage.stanza.payload().is_some_and(|asked| asked.has_ns(ns::ROSTER))
        {
            // RFC 6121, 2.3.3: before anybody looks whether that account exists.
            return Answer::refuse(StanzaError::new(Condition::Forbidden));
        }
        // A client that answers a push answers the server: RFC 6121, 2.1.6. The answer goes nowhere.
        if head.kind != Kind::Iq || !matches!(head.type_.as_deref(), Some("result" | "error")) {
            return Answer::PASS;
        }
        let own = match (&head.to, &passage.account) {
            (None, _) => true,
            (Some(to), Some(account)) => to.is_bare() && same_account(to, account),
            _ => false,
        };
        if own { Answer::STOP } else { Answer::PASS }
    }
}

/// Whether this is an iq of type get or set to another account of ours.
fn is_request_to_another(passage: &Passage) -> bool {
    let head = &passage.stanza.head;
    let (Some(to), Some(account)) = (&head.to, &passage.account) else { return false };
    head.kind == Kind::Iq
        && matches!(head.type_.as_deref(), Some("get" | "set"))
        && to.is_bare()
        && to.node().is_some()
        && !same_account(to, account)
        && passage.services.is_local_host(to.domain().as_str())
}

impl Arriving for RosterModule {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(account) = &passage.account else { return Answer::PASS };
        let Some(version) = own_push(&passage.stanza, account) else { return Answer::PASS };
        if passage.again {
            // Its session has seen it, and has moved before its client had it.
            return Answer::PASS;
        }
        self.rosters.forget_unless(account, version);
        let account = account.clone();
        let to = passage.stanza.head.to.as_ref().map(Jid::as_str);
        let sessions = passage.services.local_sessions(&account);
        let session = sessions.into_iter().find(|session| Some(session.jid().as_str()) == to);
        let Some((session, told)) = session.and_then(|one| one.notes().get::<Told>().map(|told| (one, told)))
        else {
            // It has no roster; or an earlier version has not said what it was told.
            if let Some(shown) = self.shown(&account, &Told::default(), version, passage) {
                passage.stanza = shown;
            }
            return Answer::PASS;
        };
        let turn = told.push(version);
        if let Some(shown) = self.shown(&account, &told, version, passage) {
            passage.stanza = shown;
        }
        match turn {
            Turn::Its => Answer::PASS,
            Turn::Old => Answer::STOP,
            Turn::Early(after, before) => Answer::later(async move {
                let missing = (after, before);
                let services = &*passage.services;
                let groups = self.rosters.groups();
                let caught_up = pushes::catch_up(services, &session, &told, version.epoch, missing, groups);
                if let Err(error) = caught_up.await {
                    drop(store_failed(NAME, &error));
                }
                Verdict::Pass
            }),
        }
    }
}

impl RosterModule {
    /// A push as its session is to see it: another node may know other groups, and the session was told of those that it
    /// was told of. `None`: as it is.
    fn shown(&self, account: &BareJid, told: &Told, version: Version, passage: &Passage) -> Option<Stanza> {
        let groups = self.rosters.groups();
        let (contact, own) = pushes::read(&passage.stanza).filter(|_| groups.view_of(account).is_some())?;
        let ver = pushes::ver(version, told.shared());
        let item = groups.shown(account, &contact, own);
        let push = pushes::push(&*passage.services, account, &contact, item.as_ref(), &ver);
        Some(push.with_to(passage.stanza.head.to.clone()?))
    }
}

impl Delivering for RosterModule {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        let wants = match stanza.head.kind {
            Kind::Iq => session.is_interested() || own_push(stanza, session.account()).is_none(),
            // RFC 6121, 3.1.6 and its likes: what changes the roster is told to who has the roster.
            Kind::Presence => {
                session.is_interested() || session.priority().is_some() || !changes_roster(stanza)
            }
            Kind::Message => true,
        };
        if wants { Verdict::Pass } else { Verdict::Stop }
    }
}

fn changes_roster(stanza: &Stanza) -> bool {
    use PresenceType::{Subscribed, Unsubscribe, Unsubscribed};
    matches!(stanza.presence_type(), Ok(Subscribed | Unsubscribe | Unsubscribed))
}

impl Following for RosterModule {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            // What was cached while nobody was here to be pushed to is not to be trusted.
            SessionEvent::Bound(session) | SessionEvent::Resumed(session) => {
                self.rosters.forget(session.account())
            }
            // Nor what was cached before this node was cut off; of an available session, presence reads it anew.
            SessionEvent::Returned(session) if session.presence().is_none() => {
                self.rosters.forget(session.account());
            }
            SessionEvent::Closed { session, .. } if services.local_sessions(session.account()).is_empty() => {
                self.rosters.forget(session.account());
                return forget_pushes(services, session.account());
            }
            SessionEvent::Lost { account, .. } => return forget_pushes(services, account),
            _ => {}
        }
        Answer::Now(())
    }
}

fn forget_pushes<'a>(services: &'a Arc<dyn Services>, account: &'a BareJid) -> Answer<'a, ()> {
    Answer::later(async move {
        if let Err(error) = pushes::forget(&**services, account).await {
            // They are erased at the end of a later session.
            drop(store_failed(NAME, &error));
        }
    })
}

/// Pushes come in their order wherever the client goes on.
impl Moving for RosterModule {
    fn pack(&self, session: &SessionView) -> Option<String> {
        session.notes().get::<Told>().map(|told| told.version())
    }

    fn unpack(&self, session: &SessionView, packed: &str) {
        if let Some(told) = Told::read(packed) {
            session.notes().put(told);
        }
    }
}

impl Forgetting for RosterModule {
    fn forgetting<'a>(&'a self, account: &'a BareJid, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        Answer::later(async move {
            match self.contacts(&**services, account).await {
                Ok(contacts) => {
                    for (contact, (standing, requested)) in contacts {
                        let Ok(contact) = Jid::new(&contact) else { continue };
                        end_standing(&**services, account, &contact, standing, requested).await;
                    }
                }
                Err(error) => tracing::warn!(module = NAME, %error, "contacts were not told of a removal"),
            }
            self.rosters.forget(account);
        })
    }
}

impl RosterModule {
    /// Everyone with whom the account has to do, and whether they wait for an answer.
    async fn contacts(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<BTreeMap<String, (Standing, bool)>, StoreError> {
        let roster = self.rosters.read(services, account).await?;
        let of_roster = roster.items.iter().map(|(jid, item)| (jid.clone(), (item.standing, false)));
        let mut contacts: BTreeMap<_, _> = of_roster.collect();
        for request in self.rosters.requests(services, account).await? {
            let from = request.stanza.stanza().and_then(|stanza| stanza.head.from);
            if let Some(from) = from {
                contacts.entry(from.to_bare().to_string()).or_default().1 = true;
            }
        }
        Ok(contacts)
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
pub(crate) mod tests;

//! How a change of a block list reaches the sessions of its account at every node, their clients and their contacts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hooks::{Answer, How, Passage, Reply, Resource, Services, SessionView, Verdict};
use jid::{BareJid, Jid};
use minidom::Element;
use parking_lot::Mutex;
use stanza::address::same_account;
use stanza::{Kind, Stanza};

use super::{Blocking, NAME, NS, listing};
use crate::blocklists::{Blocklist, Change, matches};
use crate::failure::store_failed;
use crate::presence::{contacts, is_available};
use crate::privacylists::{Flow, Privacy};
use crate::rosters::Roster;
use crate::xml::{Build, element};

/// What nodes tell each other in; no client hears it.
const INSIDE: &str = "urn:rookery:blocking";
/// Changes that wait for other nodes at the same time; a further one is refused with `resource-constraint`.
const WAITING_MAX: usize = 1_000;
/// After that it is asked whether those who have not confirmed are still there.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is asked. A node that has not answered by then has lost its lease, and delivers nothing.
const ASKED_MAX: u32 = 8;

/// The client of this session has asked for the list, and so hears of changes (XEP-0191, 3.3).
pub(super) struct Asked;

/// A change that was made, and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub change: Change,
    pub items: Vec<String>,
}

impl News {
    fn word(&self) -> &'static str {
        match self.change {
            Change::Block(_) => "block",
            Change::Unblock(_) => "unblock",
            Change::Clear => "clear",
        }
    }

    /// As another node is told.
    fn element(&self, token: &str, back: &str) -> Element {
        let head =
            element("changed", INSIDE).with("how", self.word()).with("token", token).with("back", back);
        self.items.iter().fold(head, |head, item| head.child(element("item", INSIDE).with("jid", item)))
    }

    fn read(changed: &Element) -> Option<News> {
        let items = changed.children().filter_map(|item| item.attr("jid").map(str::to_owned));
        let items: Vec<String> = items.collect();
        let change = match changed.attr("how")? {
            "block" => Change::Block(items.clone()),
            "unblock" => Change::Unblock(items.clone()),
            "clear" => Change::Clear,
            _ => return None,
        };
        Some(News { change, items })
    }

    /// What still holds of it: changes of several sessions may be heard in another order than they were made in.
    pub fn holding(self, list: &Blocklist) -> News {
        let News { change, mut items } = self;
        let blocks = matches!(change, Change::Block(_));
        items.retain(|item| list.has(item) == blocks);
        let change = match change {
            Change::Block(_) => Change::Block(items.clone()),
            Change::Clear if list.is_empty() => Change::Clear,
            Change::Unblock(_) | Change::Clear => Change::Unblock(items.clone()),
        };
        News { change, items }
    }

    /// What clients hear of it; `None`: nothing.
    pub fn push(&self) -> Option<Element> {
        let items = || self.items.iter().map(String::as_str);
        match self.change {
            Change::Clear => Some(element("unblock", NS)),
            _ if self.items.is_empty() => None,
            Change::Block(_) => Some(listing("block", items())),
            Change::Unblock(_) => Some(listing("unblock", items())),
        }
    }

    fn names(&self, jid: &Jid) -> bool {
        self.items.iter().any(|item| matches(item, jid))
    }
}

/// Changes whose clients wait for their answer until every node knows.
#[derive(Default)]
pub(crate) struct Unconfirmed(Mutex<HashMap<String, Waiting>>);

struct Waiting {
    answer: Stanza,
    /// The sessions, at other nodes, of which it was not heard.
    left: HashSet<String>,
}

impl Unconfirmed {
    pub fn is_full(&self) -> bool {
        self.0.lock().len() >= WAITING_MAX
    }

    /// Begins to wait for the sessions `elsewhere`; returns the name of the change, under which they are to confirm it.
    fn begin(
        self: &Arc<Self>,
        services: &Arc<dyn Services>,
        account: &BareJid,
        answer: Stanza,
        elsewhere: &[Resource],
    ) -> String {
        let mut token = [0; 16];
        services.random(&mut token);
        let token = format!("{:032x}", u128::from_le_bytes(token));
        let left = elsewhere.iter().map(|one| one.jid.to_string()).collect();
        self.0.lock().insert(token.clone(), Waiting { answer, left });
        let again = look_again(self.clone(), services.clone(), account.clone(), token.clone(), 1);
        services.later(AGAIN, again);
        token
    }

    /// Tells the account's sessions at other nodes of a change; the answer to who made it comes when all know. `changed`:
    /// what they are told, of the name of the change and of whom they are to confirm it to.
    pub async fn tell(
        self: &Arc<Self>,
        passage: &Passage,
        account: &BareJid,
        changed: impl FnOnce(&str, &str) -> Element + Send,
    ) -> Reply {
        let services = &passage.services;
        let elsewhere: Vec<_> = services.online(account).into_iter().filter(|one| !one.here).collect();
        let Some(back) = passage.stanza.head.from.as_ref().filter(|_| !elsewhere.is_empty()) else {
            return Reply::empty();
        };
        let token = self.begin(services, account, passage.stanza.result(None), &elsewhere);
        let changed = changed(&token, back.as_str());
        for resource in elsewhere {
            let told = Stanza::iq("set", &token, Some(&changed)).with_from(account.clone());
            services.route(told.with_to(resource.jid), How::Normal).await;
        }
        Reply::Silent
    }

    /// A session has confirmed a change.
    pub fn confirmed<'a>(&self, passage: &'a Passage, token: &str, from: &Jid) -> Answer<'a> {
        let Some(answer) = self.take_off(token, |jid| jid == from.as_str()) else { return Answer::STOP };
        Answer::later(async move {
            passage.services.route(answer, How::Ahead).await;
            Verdict::Stop
        })
    }

    /// Takes those that `is_done` names off; the answer, if that was the last.
    fn take_off(&self, token: &str, is_done: impl Fn(&str) -> bool) -> Option<Stanza> {
        let mut waiting = self.0.lock();
        let one = waiting.get_mut(token)?;
        one.left.retain(|jid| !is_done(jid));
        if !one.left.is_empty() {
            return None;
        }
        waiting.remove(token).map(|one| one.answer)
    }
}

/// Looks after a while whether those who have not confirmed are still there, and ends the wait at its bound.
fn look_again(
    unconfirmed: Arc<Unconfirmed>,
    services: Arc<dyn Services>,
    account: BareJid,
    token: String,
    asked: u32,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let online = services.online(&account);
        let is_last = asked >= ASKED_MAX;
        let is_gone = |jid: &str| is_last || !online.iter().any(|one| one.jid.as_str() == jid);
        if let Some(answer) = unconfirmed.take_off(&token, is_gone) {
            if is_last {
                tracing::debug!(module = NAME, %account, "a node did not say that it knows of a change");
            }
            return services.route(answer, How::Ahead).await;
        }
        if unconfirmed.0.lock().contains_key(&token) {
            let again = look_again(unconfirmed, services.clone(), account, token, asked + 1);
            services.later(AGAIN, again);
        }
    })
}

/// Says that this node knows of a change.
pub(crate) async fn confirm(services: &dyn Services, inside: &str, token: &str, session: &Jid, back: &str) {
    let Ok(back) = Jid::new(back) else { return };
    let confirmed = element("confirmed", inside).with("token", token);
    let confirmed = Stanza::iq("result", token, Some(&confirmed)).with_from(session.clone());
    services.route(confirmed.with_to(back), How::Normal).await;
}

impl Blocking {
    /// Tells all sessions of the account; the answer to who made the change comes when all know.
    pub(super) async fn tell(&self, passage: &Passage, account: &BareJid, news: News) -> Reply {
        let services = &passage.services;
        // A session that was bound before the change was written may have read the list before it; it must be
        // known here. Without a quorum those are told whom we know.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(module = NAME, %error, "telling of a change without a read barrier");
        }
        for session in services.local_sessions(account) {
            self.apply(services, &session, news.clone()).await;
        }
        self.unconfirmed.tell(passage, account, |token, back| news.element(token, back)).await
    }

    /// Hears what other nodes say, which comes under addresses of the account itself.
    pub(super) fn hear<'a>(
        &'a self,
        passage: &'a Passage,
        account: &'a BareJid,
        from: &'a Jid,
    ) -> Answer<'a> {
        let head = &passage.stanza.head;
        if head.kind != Kind::Iq || !passage.stanza.payload().is_some_and(|payload| payload.has_ns(INSIDE)) {
            return Answer::PASS;
        }
        let (Some(payload), Some(to)) = (passage.stanza.payload(), &head.to) else { return Answer::STOP };
        let token = payload.attr("token").unwrap_or_default();
        if payload.name() == "confirmed" {
            return self.unconfirmed.confirmed(passage, token, from);
        }
        // No client speaks for the account itself: what it sends comes from its session.
        let (true, Some(news), Some(back)) = (from.is_bare(), News::read(payload), payload.attr("back"))
        else {
            return Answer::STOP;
        };
        self.lists.forget(account);
        Answer::later(async move {
            let sessions = passage.services.local_sessions(account);
            if let Some(session) = sessions.iter().find(|session| session.jid().as_str() == to.as_str()) {
                self.apply(&passage.services, session, news).await;
            }
            confirm(&*passage.services, INSIDE, token, to, back).await;
            Verdict::Stop
        })
    }

    /// What a change means for one session of this node: its client hears of it, and the contacts that it names see the
    /// session go or come.
    async fn apply(&self, services: &Arc<dyn Services>, session: &SessionView, news: News) {
        let services = &**services;
        let account = session.account();
        let (list, roster) =
            (self.lists.of(services, account).await, self.rosters.of(services, account).await);
        let (list, roster) = match (list, roster) {
            (Ok(list), Ok(roster)) => (list, roster),
            // Of what is in the store now nothing is known; the list is read again for the next stanza.
            (Err(error), _) | (_, Err(error)) => return drop(store_failed(NAME, &error)),
        };
        let news = news.holding(&list);
        if let Some(push) = news.push().filter(|_| session.notes().get::<Asked>().is_some()) {
            let mut id = [0; 8];
            services.random(&mut id);
            let push = Stanza::iq("set", &format!("push-{:016x}", u64::from_le_bytes(id)), Some(&push));
            services.hand(session, push.with_from(account.clone()).with_to(session.jid().clone()));
        }
        match news.change {
            Change::Block(_) => hide(services, session, &roster, &news).await,
            Change::Unblock(_) | Change::Clear => match self.privacy.of(services, account).await {
                Ok(privacy) => show(services, session, &roster, (&list, &privacy), &news).await,
                Err(error) => drop(store_failed(NAME, &error)),
            },
        }
    }
}

/// XEP-0191, 3.3: the blocked who see the session are told that it has gone.
async fn hide(services: &dyn Services, session: &SessionView, roster: &Roster, news: &News) {
    let mut to: HashSet<Jid> = HashSet::new();
    if session.presence().is_some() {
        to.extend(
            contacts(services, roster, |standing| standing.from).await.into_iter().filter(|c| news.names(c)),
        );
        // A single resource of a contact.
        let one = |item: &String| Jid::new(item).ok().filter(|jid| jid.is_full() && roster.lets_see(jid));
        to.extend(news.items.iter().filter_map(one));
    }
    to.extend(session.take_directed_if(|jid| news.names(jid)));
    to.retain(|jid| !same_account(jid, session.account()));
    let gone = Stanza::presence(Some("unavailable")).with_from(session.jid().clone());
    services.fan_out(gone, to.into_iter().collect()).await;
}

/// XEP-0191, 3.4: contacts who may see the session again are told of it, and it asks for theirs.
async fn show(
    services: &dyn Services,
    session: &SessionView,
    roster: &Roster,
    (list, privacy): (&Blocklist, &Privacy),
    news: &News,
) {
    let Some(presence) = session.presence() else { return };
    let resource = Some(session.jid().resource().as_str());
    let is_hidden = |jid: &Jid| privacy.denies(resource, Flow::PresenceOut, session.account(), jid, roster);
    let is_back = |contact: &Jid| news.names(contact) && !list.blocks(session.account(), contact);
    let mut to = contacts(services, roster, |standing| standing.from).await;
    to.retain(is_back);
    let one = |item: &String| {
        let jid = Jid::new(item).ok()?;
        (jid.is_full() && roster.lets_see(&jid) && !list.blocks(session.account(), &jid)).then_some(jid)
    };
    to.extend(news.items.iter().filter_map(one).filter(|jid| !same_account(jid, session.account())));
    to.retain(|jid| !is_hidden(jid));
    services.fan_out(presence, to).await;
    // While they were blocked, they may have come or gone.
    let mut to = contacts(services, roster, |standing| standing.to).await;
    let is_asked = |contact: &Jid| {
        !services.is_local_host(contact.domain().as_str()) || is_available(services, &contact.to_bare())
    };
    to.retain(|contact| is_back(contact) && is_asked(contact));
    let probe = Stanza::presence(Some("probe")).with_from(session.jid().clone());
    services.fan_out(probe, to).await;
}

//! What each session of this node is interested in, and what it gets when it comes online.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hooks::{
    Answer, Arriving, Delivering, Following, Leaving, Moving, Passage, Services, SessionEvent, SessionView,
    Verdict,
};
use jid::{BareJid, Jid};
use parking_lot::Mutex;
use stanza::address::is_host;
use stanza::{Kind, PresenceType, Stanza};
use store::StoreError;

use super::caps::{self, Announced, Interests};
use super::notify::{available, message, random_id, send};
use super::{Core, NAME, Pep};
use crate::failure::store_failed;
use crate::pubsub::config::Style;
use crate::pubsub::engine::{sends_last, standing};
use crate::pubsub::events::{self, Event};
use crate::pubsub::tables::{Item, Node};
use crate::xml::{Build, element};

/// Notifications that wait until a client has said what it can do; further ones it does not get.
const HELD_MAX: usize = 64;
/// The most bytes of them.
const HELD_BYTES_MAX: usize = 256 * 1024;
/// Notifications that are remembered while a session gets the last items.
const FRESH_MAX: usize = 1_000;
/// How long after last items were read notifications of the same publications may come.
const SETTLES: Duration = Duration::from_secs(10);
/// The most bytes that go with a session to another node; of one that wants more, the client is asked there again.
const PACKED_BYTES_MAX: usize = 16 * 1024;
/// Contacts whose nodes are read at a time.
const AT_ONCE: usize = 16;

/// What is known of a session.
#[derive(Default)]
struct Wants(Mutex<State>);

#[derive(Default)]
struct State {
    knows: Knows,
    /// Notifications that came before it was known whether they are wanted.
    held: Vec<Stanza>,
    /// Nodes whose last items it got, or is about to get, since it became available.
    told: BTreeSet<String>,
    /// Grows when it becomes available or unavailable.
    life: u64,
    /// Readings of last items for it that have not settled.
    reading: usize,
    /// Of whom it got an item of which node meanwhile: the last one is not newer.
    fresh: HashSet<(Jid, String)>,
    /// The last items that it is given, by a mark of their bodies, and whether one has passed: the notification of the
    /// same publication, which may come from another node, is not to come as well.
    handed: HashMap<(Jid, String), (u64, bool)>,
}

#[derive(Default)]
enum Knows {
    /// It is not available, or was not seen to be.
    #[default]
    Nothing,
    /// Its client was asked.
    Asked {
        id: String,
        announced: Announced,
    },
    Known {
        announced: Option<Announced>,
        interests: Arc<Interests>,
    },
}

/// What a session gets now that its interests are known.
struct Due {
    held: Vec<Stanza>,
    /// Nodes whose last items it has not got.
    nodes: BTreeSet<String>,
    life: u64,
}

impl State {
    fn is_known(&self) -> bool {
        matches!(self.knows, Knows::Known { .. })
    }

    fn learn(&mut self, announced: Option<Announced>, interests: Arc<Interests>) -> Due {
        let nodes: BTreeSet<String> = interests.difference(&self.told).cloned().collect();
        self.told.extend(nodes.iter().cloned());
        if !nodes.is_empty() {
            self.reading += 1;
        }
        self.knows = Knows::Known { announced, interests };
        Due { held: std::mem::take(&mut self.held), nodes, life: self.life }
    }

    /// An item comes while last items are read, or soon after: each publication once.
    fn pass(&mut self, what: (Jid, String), body: &[u8]) -> Verdict {
        let is_second = self.handed.get_mut(&what).is_some_and(|(handed, passed)| {
            // Marked as passed where it is the first.
            *handed == mark(body) && std::mem::replace(passed, true)
        });
        if is_second {
            self.handed.remove(&what);
            return Verdict::Stop;
        }
        if self.fresh.len() < FRESH_MAX {
            self.fresh.insert(what);
        }
        Verdict::Pass
    }

    fn leave(&mut self) {
        let (life, reading) = (self.life + 1, self.reading);
        *self = State { life, reading, ..State::default() };
    }
}

fn mark(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

impl Following for Pep {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            SessionEvent::Bound(_) => self.core.serves(services),
            SessionEvent::Resumed(session) => {
                self.core.serves(services);
                let is_known = session.notes().get::<Wants>().is_some_and(|wants| wants.0.lock().is_known());
                if !is_known && session.said().is_some() && !session.is_anonymous() {
                    self.core.available(session, false, services);
                }
            }
            // XEP-0175: who has no account has no contacts.
            SessionEvent::Available { session, before, .. } if !session.is_anonymous() => {
                self.core.available(session, before.is_none(), services);
            }
            SessionEvent::Unavailable(session) | SessionEvent::Closed { session, .. } => {
                if let Some(wants) = session.notes().get::<Wants>() {
                    wants.0.lock().leave();
                }
            }
            _ => {}
        }
        Answer::Now(())
    }
}

/// Who goes on at another node is not asked again, and gets no last item twice.
impl Moving for Pep {
    fn pack(&self, session: &SessionView) -> Option<String> {
        let wants = session.notes().get::<Wants>()?;
        let state = wants.0.lock();
        let Knows::Known { interests, .. } = &state.knows else { return None };
        let told = state.told.difference(interests).map(|node| ("told", node));
        let all = interests.iter().map(|node| ("wants", node)).chain(told);
        let lines: Vec<String> = all.map(|(word, node)| format!("{word} {node}")).collect();
        let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        let is_text = lines.iter().all(|line| !line.contains('\n'));
        (is_text && bytes <= PACKED_BYTES_MAX).then(|| lines.join("\n"))
    }

    fn unpack(&self, session: &SessionView, packed: &str) {
        let (mut interests, mut told) = (Interests::new(), BTreeSet::new());
        for (word, node) in packed.lines().filter_map(|line| line.split_once(' ')) {
            if word == "wants" {
                interests.insert(node.to_owned());
            }
            told.insert(node.to_owned());
        }
        let announced = session.said().as_ref().and_then(caps::announced);
        let knows = Knows::Known { announced, interests: Arc::new(interests) };
        session.notes().put(Wants(Mutex::new(State { knows, told, ..State::default() })));
    }
}

impl Core {
    fn serves(&self, services: &Arc<dyn Services>) {
        self.hosts.get_or_init(|| services.hosts().to_vec());
    }

    /// Reads what the presence of a session says of its client, and asks the client where that is not known.
    fn available(
        self: &Arc<Core>,
        session: &Arc<SessionView>,
        is_initial: bool,
        services: &Arc<dyn Services>,
    ) {
        let announced = session.said().as_ref().and_then(caps::announced);
        let wants = session.notes().get_or_put(Wants::default);
        let mut state = wants.0.lock();
        if is_initial {
            state.life += 1;
            state.told.clear();
        }
        match &state.knows {
            Knows::Known { announced: before, .. } if *before == announced && !is_initial => return,
            Knows::Asked { announced: asked, .. } if Some(asked) == announced.as_ref() => return,
            _ => {}
        }
        let known = match &announced {
            None => Some(Arc::default()),
            Some(announced) => announced.hash.as_ref().and_then(|hash| self.known.get(hash)),
        };
        match (known, announced) {
            (Some(interests), announced) => {
                let due = state.learn(announced, interests);
                drop(state);
                self.hand_over(session, due, services);
            }
            (None, Some(announced)) => {
                let id = random_id(&**services);
                let ask = ask(session, &id, &announced.node);
                state.knows = Knows::Asked { id, announced };
                drop(state);
                services.hand(session, ask);
            }
            (None, None) => {}
        }
    }

    fn hand_over(self: &Arc<Core>, session: &Arc<SessionView>, due: Due, services: &Arc<dyn Services>) {
        for stanza in due.held {
            services.hand(session, stanza);
        }
        if due.nodes.is_empty() {
            return;
        }
        let (core, session, lent) = (self.clone(), session.clone(), services.clone());
        let tell = async move {
            let end = Reading(session.clone());
            core.last_items(&*lent, &session, &due.nodes, due.life).await;
            lent.later(SETTLES, Box::pin(async move { drop(end) }));
        };
        // Beside all else: a long roster must not keep its owner's client waiting.
        services.later(Duration::ZERO, Box::pin(tell));
    }
}

/// XEP-0115, 6.2: by the host, which is known to every client.
fn ask(session: &SessionView, id: &str, node: &str) -> Stanza {
    let query = element("query", caps::INFO).with("node", node);
    let host = BareJid::from_parts(None, session.account().domain());
    Stanza::iq("get", id, Some(&query)).with_from(host).with_to(session.jid().clone())
}

/// Ends the time in which last items are read.
struct Reading(Arc<SessionView>);

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(wants) = self.0.notes().get::<Wants>() {
            let mut state = wants.0.lock();
            state.reading = state.reading.saturating_sub(1);
            if state.reading == 0 {
                state.fresh = HashSet::new();
                state.handed = HashMap::new();
            }
        }
    }
}

/// A client says what it can do.
impl Leaving for Pep {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        match head.kind {
            Kind::Message => return self.decided(passage),
            Kind::Iq if matches!(head.type_.as_deref(), Some("result" | "error")) => {}
            _ => return Answer::PASS,
        }
        let (Some(session), Some(to), Some(id)) = (&passage.sender, &head.to, &head.id) else {
            return Answer::PASS;
        };
        if !is_host(to, session.account().domain()) {
            return Answer::PASS;
        }
        let Some(wants) = session.notes().get::<Wants>() else { return Answer::PASS };
        let mut state = wants.0.lock();
        let Knows::Asked { id: asked, announced } = &state.knows else { return Answer::PASS };
        if **asked != **id {
            return Answer::PASS;
        }
        let announced = announced.clone();
        let info = match head.type_.as_deref() {
            Some("result") => passage.stanza.child("query", caps::INFO),
            _ => None,
        };
        let interests = Arc::new(info.map(caps::interests).unwrap_or_default());
        if let (Some(hash), Some(info)) = (&announced.hash, info)
            && hash.is_of(info, head.lang.as_deref())
        {
            self.core.known.put(hash.clone(), interests.clone());
        }
        // One that is not verified holds for this session all the same, and for no other (XEP-0115, 5.4).
        let due = state.learn(Some(announced), interests);
        drop(state);
        self.core.hand_over(session, due, &passage.services);
        Answer::STOP
    }
}

/// Only what a client has said that it wants is written to it (XEP-0163, 4.2).
impl Delivering for Pep {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if stanza.head.kind != Kind::Message {
            return Verdict::Pass;
        }
        let Some(from) = stanza.head.from.as_ref().filter(|from| from.is_bare() && from.node().is_some())
        else {
            return Verdict::Pass;
        };
        let Some(interest) = events::interest(stanza.body()) else { return Verdict::Pass };
        let hosts = self.core.hosts.get().map(Vec::as_slice).unwrap_or_default();
        if !hosts.iter().any(|host| host == from.domain().as_str()) {
            // Other servers know themselves to whom they send.
            return Verdict::Pass;
        }
        let wants = session.notes().get_or_put(Wants::default);
        let mut state = wants.0.lock();
        match &state.knows {
            Knows::Known { interests, .. } if interests.contains(&interest.node) => {
                match interest.brings && state.reading > 0 {
                    true => state.pass((from.clone(), interest.node), stanza.body()),
                    false => Verdict::Pass,
                }
            }
            Knows::Known { .. } => Verdict::Stop,
            Knows::Nothing if session.said().is_none() => Verdict::Stop,
            Knows::Nothing | Knows::Asked { .. } => {
                let bytes: usize = state.held.iter().map(|held| held.body().len()).sum();
                match state.held.len() < HELD_MAX && bytes + stanza.body().len() <= HELD_BYTES_MAX {
                    true => state.held.push(stanza.clone()),
                    false => {
                        tracing::debug!(module = NAME, jid = %session.jid(), "too many wait for a client")
                    }
                }
                Verdict::Stop
            }
        }
    }
}

/// Somebody whose subscription was approved gets the last items (XEP-0163, 4.3.4).
impl Arriving for Pep {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        if head.kind != Kind::Presence || passage.stanza.presence_type() != Ok(PresenceType::Subscribed) {
            return Answer::PASS;
        }
        let (Some(account), Some(from)) = (&passage.account, &head.from) else { return Answer::PASS };
        let services = passage.services.clone();
        if !services.is_local_host(from.domain().as_str()) {
            return Answer::PASS;
        }
        let (core, subscriber, owner) = (self.core.clone(), account.clone(), from.to_bare());
        let lent = services.clone();
        let tell = async move {
            if let Err(error) = core.tell_new_subscriber(&*lent, &owner, &subscriber).await {
                drop(store_failed(NAME, &error));
            }
        };
        services.later(Duration::ZERO, Box::pin(tell));
        Answer::PASS
    }
}

/// The stanza that brings the last item of a node.
fn last(services: &dyn Services, owner: &BareJid, name: &str, node: &Node, item: &Item) -> Stanza {
    let payload = node.config.deliver_payloads;
    let body = events::event(name, Event::Published { item: Some(item), payload });
    message(owner, Style::Headline, body, services)
}

impl Core {
    /// Sends the last items of nodes that the session is interested in: of its own account, and of those whose presence
    /// it sees, whether they are there or not.
    async fn last_items(
        &self,
        services: &dyn Services,
        session: &Arc<SessionView>,
        nodes: &BTreeSet<String>,
        life: u64,
    ) {
        let account = session.account();
        let seen = match self.watched(services, account).await {
            Ok(seen) => seen,
            Err(error) => return drop(store_failed(NAME, &error)),
        };
        for some in seen.chunks(AT_ONCE) {
            let read = some.iter().map(|owner| self.last_of(services, owner, account, nodes, true));
            for (owner, found) in some.iter().zip(join_all(read).await) {
                match found {
                    Ok(found) => self.hand_last(services, session, owner, found, life),
                    Err(error) => drop(store_failed(NAME, &error)),
                }
            }
            services.pause().await;
        }
    }

    fn hand_last(
        &self,
        services: &dyn Services,
        session: &Arc<SessionView>,
        owner: &BareJid,
        found: Vec<(String, Node, Item)>,
        life: u64,
    ) {
        let Some(wants) = session.notes().get::<Wants>() else { return };
        for (name, node, item) in found {
            let last = last(services, owner, &name, &node, &item).with_to(session.jid().clone());
            {
                let what = (Jid::from(owner.clone()), name);
                let mut state = wants.0.lock();
                if state.life != life || state.fresh.contains(&what) {
                    continue;
                }
                if state.handed.len() < FRESH_MAX {
                    state.handed.insert(what, (mark(last.body()), false));
                }
            }
            services.hand(session, last);
        }
    }

    /// The account, and everybody whose presence it sees.
    async fn watched(&self, services: &dyn Services, account: &BareJid) -> Result<Vec<BareJid>, StoreError> {
        let roster = self.rosters.of(services, account).await?;
        let blocked = self.blocklists.of(services, account).await?;
        let mut seen = vec![account.clone()];
        for (jid, item) in &roster.items {
            if !item.standing.to {
                continue;
            }
            let Ok(contact) = Jid::new(jid) else { continue };
            let is_ours = services.is_local_host(contact.domain().as_str()) && contact.node().is_some();
            if is_ours && !blocked.blocks(account, &contact) {
                seen.push(contact.to_bare());
            }
        }
        Ok(seen)
    }

    /// The last item of each of the nodes that somebody may read, and that sends it.
    async fn last_of(
        &self,
        services: &dyn Services,
        owner: &BareJid,
        reader: &BareJid,
        wanted: &BTreeSet<String>,
        on_presence: bool,
    ) -> Result<Vec<(String, Node, Item)>, StoreError> {
        let service = self.service(services, owner);
        let mut nodes = service.nodes().await?;
        let is_wanted = |name: &String| wanted.is_empty() || wanted.contains(name);
        nodes.retain(|(name, node)| {
            node.items > 0 && sends_last(&node.config, on_presence) && is_wanted(name)
        });
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let jid = Jid::from(reader.clone());
        // The owner's own word on who may see them, asked only where there is something to see.
        let asker = self.asker(services, owner, &jid).await?;
        if !asker.is_owner && self.blocklists.of(services, owner).await?.blocks(owner, &jid) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (name, node) in nodes {
            let other = service.other(&name, &node, &asker).await?;
            if standing(&asker, &other).may_read(&node.config).is_err() {
                continue;
            }
            if let Some(item) = service.last(&name, &node).await? {
                found.push((name, node, item));
            }
        }
        Ok(found)
    }

    /// Which of them are wanted is known where the sessions are.
    async fn tell_new_subscriber(
        &self,
        services: &dyn Services,
        owner: &BareJid,
        subscriber: &BareJid,
    ) -> Result<(), StoreError> {
        let sessions: Vec<Jid> = available(services, subscriber).map(Jid::from).collect();
        if sessions.is_empty() {
            return Ok(());
        }
        for (name, node, item) in self.last_of(services, owner, subscriber, &BTreeSet::new(), false).await? {
            send(services, &last(services, owner, &name, &node, &item), sessions.clone()).await;
        }
        Ok(())
    }
}

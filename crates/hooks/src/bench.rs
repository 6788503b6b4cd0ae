//! A whole server in memory, for the unit tests of modules: accounts, sessions, routing, a frozen clock.
//!
//! ```text
//! let bench = Bench::new(&["localhost"], || vec![Arc::new(Ping::default())]);
//! let alice = bench.login("alice@localhost/phone").await;
//! alice.send("<iq type='get' id='1' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
//! assert_eq!(alice.hears(), ["<iq ... type='result'/>"]);
//! ```
//! A bench may have several nodes (`Bench::cluster`): each has modules of its own, so that what one
//! node caches and another changes is seen in a unit test. Everything happens before `send` returns.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use stanza::{Condition, IqType, Kind, MessageType, PresenceType, Stanza, StanzaError, StreamError};
use store::{AccountError, AccountState, Accounts, Credentials, ScramKeys, Store, StoreError};

use crate::card::Card;
use crate::module::{Module, Offer, SessionEvent, Stranger, Why};
use crate::passage::Passage;
use crate::registry::{Registry, Switches};
use crate::services::{About, Hold, How, Kept, Removal, Repeated, Resource, Services};
use crate::session::{SessionView, Sid};
use crate::verdict::{Reply, Verdict};

/// The frozen clock starts here: 2026-01-01T00:00:00Z.
pub const START: Duration = Duration::from_secs(1_767_225_600);

/// A server, or a cluster of them, in memory.
pub struct Bench {
    nodes: Vec<Arc<Node>>,
}

/// What all nodes agree on.
struct Shared {
    store: Store,
    hosts: Vec<String>,
    state: Mutex<State>,
}

struct State {
    accounts: HashSet<BareJid>,
    rows: Vec<Row>,
    /// Stanzas that went to a domain that is not ours.
    outside: Vec<Stanza>,
    now: SystemTime,
    seed: u64,
    sids: u128,
    cut_off: bool,
    /// Whether a node has died.
    was_lost: bool,
    /// Accounts whose messages would wait.
    held: Vec<BareJid>,
    /// What the store has until its client reads it, while no client reads.
    unread: Option<Vec<Arc<dyn Kept>>>,
    /// Who may administer the server.
    admins: HashSet<BareJid>,
    /// What sessions were told that modules ended.
    dismissed: HashMap<Sid, StreamError>,
    /// What modules have counted.
    counted: HashMap<(&'static str, &'static str), u64>,
    /// What is to be done after a while.
    later: Vec<BoxFuture<'static, ()>>,
    /// What nodes do again and again.
    repeated: Vec<(usize, Arc<dyn Repeated>)>,
    /// What the next change of a priority waits for, seen by all, before whoever made it hears of it.
    late: Option<oneshot::Receiver<()>>,
    /// A session of which the tables do not show yet that it is available.
    unseen: Option<Sid>,
}

#[derive(Clone)]
struct Row {
    node: usize,
    view: Arc<SessionView>,
    heard: Arc<Mutex<Vec<Stanza>>>,
    priority: Option<i8>,
    invisible: bool,
}

struct Node {
    number: usize,
    registry: Registry,
    shared: Arc<Shared>,
    peers: OnceLock<Vec<Weak<Node>>>,
    me: Weak<Node>,
}

/// Ends a hold.
struct Held {
    shared: Arc<Shared>,
    account: BareJid,
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &mut self.shared.state.lock().held;
        if let Some(at) = held.iter().position(|held| *held == self.account) {
            held.remove(at);
        }
    }
}

/// A client of the bench: sends, and records what its session delivers.
pub struct Client {
    node: Arc<Node>,
    view: Arc<SessionView>,
    heard: Arc<Mutex<Vec<Stanza>>>,
}

impl Bench {
    /// One node that serves `hosts`. Panics where two modules clash.
    pub fn new(hosts: &[&str], modules: impl Fn() -> Vec<Arc<dyn Module>>) -> Bench {
        Bench::cluster(1, hosts, modules)
    }

    /// `nodes` nodes over one store; `modules` is called once for each.
    pub fn cluster(nodes: usize, hosts: &[&str], modules: impl Fn() -> Vec<Arc<dyn Module>>) -> Bench {
        Bench::over(Store::memory(), nodes, hosts, modules)
    }

    /// As `cluster`, over a store that is given.
    pub fn over(
        store: Store,
        nodes: usize,
        hosts: &[&str],
        modules: impl Fn() -> Vec<Arc<dyn Module>>,
    ) -> Bench {
        Bench::built(store, nodes, hosts, &Switches::everywhere(), modules)
    }

    /// One node on whose hosts not all modules are on.
    pub fn switched(
        hosts: &[&str],
        switches: &Switches,
        modules: impl Fn() -> Vec<Arc<dyn Module>>,
    ) -> Bench {
        Bench::built(Store::memory(), 1, hosts, switches, modules)
    }

    fn built(
        store: Store,
        nodes: usize,
        hosts: &[&str],
        switches: &Switches,
        modules: impl Fn() -> Vec<Arc<dyn Module>>,
    ) -> Bench {
        let shared = Arc::new(Shared {
            store,
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
            state: Mutex::new(State {
                accounts: HashSet::new(),
                rows: Vec::new(),
                outside: Vec::new(),
                now: SystemTime::UNIX_EPOCH + START,
                seed: 0x9e37_79b9_7f4a_7c15,
                sids: 0,
                cut_off: false,
                was_lost: false,
                held: Vec::new(),
                late: None,
                unseen: None,
                unread: None,
                admins: HashSet::new(),
                dismissed: HashMap::new(),
                counted: HashMap::new(),
                later: Vec::new(),
                repeated: Vec::new(),
            }),
        });
        let node = |number| {
            let registry = Registry::build(modules(), switches)
                .unwrap_or_else(|clash| panic!("modules of the bench clash: {clash}"));
            let shared = shared.clone();
            Arc::new_cyclic(|me| Node { number, registry, shared, peers: OnceLock::new(), me: me.clone() })
        };
        let nodes: Vec<Arc<Node>> = (0..nodes).map(node).collect();
        for one in &nodes {
            let _ = one.peers.set(nodes.iter().map(Arc::downgrade).collect());
        }
        Bench { nodes }
    }

    /// Makes an account; logging in makes it too.
    pub fn account(&self, jid: &str) {
        self.nodes[0].shared.state.lock().accounts.insert(bare(jid));
    }

    /// Makes an account that may administer the server.
    pub fn admin(&self, jid: &str) {
        self.account(jid);
        self.nodes[0].shared.state.lock().admins.insert(bare(jid));
    }

    /// How often a module has counted an event, at all nodes together.
    pub fn counted(&self, module: &'static str, event: &'static str) -> u64 {
        self.nodes[0].shared.state.lock().counted.get(&(module, event)).copied().unwrap_or(0)
    }

    /// Removes the account: its sessions end, the modules of the first node are told, all of its data goes.
    pub async fn remove_account(&self, jid: &str) {
        let removed = self.nodes[0].remove_account(&bare(jid), None).await;
        removed.expect("an account that can be removed").end().await.expect("the memory store deletes");
    }

    /// The answer to an iq on a stream that nobody has logged in on, as XML; `None`: nobody answers there.
    pub async fn greet(&self, stranger: &Stranger, xml: &str) -> Option<String> {
        let request = parse(xml);
        let reply = self.registry().greet(stranger, &request, &self.services()).await?;
        let answer = match reply {
            Reply::Result(payload) => request.result(payload.as_ref()),
            Reply::Written(payload) => request.written_result(payload),
            Reply::Error(error) => request.error(&error)?,
            Reply::Silent => return None,
        };
        Some(self::xml(&answer))
    }

    /// The accounts that were made by modules.
    pub fn accounts(&self) -> Accounts {
        self.nodes[0].accounts()
    }

    /// Binds a session on the first node; a session with the same full JID is displaced.
    pub async fn login(&self, full: &str) -> Client {
        self.login_at(0, full).await
    }

    /// Binds a session without an account on the first node.
    pub async fn login_anonymously(&self, full: &str) -> Client {
        self.bind_at(0, full, true).await
    }

    /// Binds a session on the node with this number.
    pub async fn login_at(&self, number: usize, full: &str) -> Client {
        self.bind_at(number, full, false).await
    }

    async fn bind_at(&self, number: usize, full: &str, anonymous: bool) -> Client {
        let jid = FullJid::new(full).unwrap_or_else(|e| panic!("`{full}` is no full JID: {e}"));
        let displaced = self.row_view(&jid);
        if let Some((node, view)) = displaced {
            self.nodes[node].end(&view, Why::Closed).await;
        }
        let node = self.nodes[number].clone();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let view = {
            let mut state = node.shared.state.lock();
            if !anonymous {
                state.accounts.insert(jid.to_bare());
            }
            state.sids += 1;
            let view = SessionView::new(jid, Sid(state.sids), true);
            let view = Arc::new(if anonymous { view.anonymous() } else { view });
            state.rows.push(Row {
                node: number,
                view: view.clone(),
                heard: heard.clone(),
                priority: None,
                invisible: false,
            });
            view
        };
        node.registry.follow(&SessionEvent::Bound(view.clone()), &node.services()).await;
        Client { node, view, heard }
    }

    /// As `login`, then sends an initial presence, and forgets what was heard so far.
    pub async fn online(&self, full: &str) -> Client {
        self.online_at(0, full).await
    }

    /// As `login_at`, then sends an initial presence, and forgets what was heard so far.
    pub async fn online_at(&self, number: usize, full: &str) -> Client {
        let client = self.login_at(number, full).await;
        client.send("<presence/>").await;
        client.hears();
        client
    }

    /// Lets a node die: its sessions are gone at once, and another node is told of each.
    pub async fn kill(&self, number: usize) {
        let lost: Vec<Arc<SessionView>> = {
            let mut state = self.nodes[0].shared.state.lock();
            // Of who was to be seen by nobody, nobody is told.
            let of_it = state.rows.iter().filter(|row| row.node == number && !row.invisible);
            let lost = of_it.map(|row| row.view.clone()).collect();
            state.rows.retain(|row| row.node != number);
            state.was_lost = true;
            lost
        };
        let survivor = self.nodes.iter().find(|node| node.number != number).expect("a survivor");
        for view in lost {
            let event = SessionEvent::Lost { account: view.account().clone(), jid: view.jid().clone() };
            survivor.registry.follow(&event, &survivor.services()).await;
        }
    }

    /// Hands a stanza with `from` and `to` to the first node, as another server or a module would.
    pub async fn route(&self, xml: &str) {
        self.nodes[0].route(parse(xml), How::Normal).await;
    }

    pub fn services(&self) -> Arc<dyn Services> {
        self.nodes[0].services()
    }

    pub fn registry(&self) -> &Registry {
        &self.nodes[0].registry
    }

    pub fn store(&self) -> &Store {
        &self.nodes[0].shared.store
    }

    /// Takes what went to domains that are not ours, as XML.
    pub fn outside(&self) -> Vec<String> {
        std::mem::take(&mut self.nodes[0].shared.state.lock().outside).iter().map(xml).collect()
    }

    /// Moves the frozen clock.
    pub fn advance(&self, by: Duration) {
        self.nodes[0].shared.state.lock().now += by;
    }

    /// From now on no client reads what the store has a copy of.
    pub fn stop_reading(&self) {
        self.nodes[0].shared.state.lock().unread.get_or_insert_default();
    }

    /// Takes out what no client has read; they read again.
    pub fn unread(&self) -> Vec<Arc<dyn Kept>> {
        self.nodes[0].shared.state.lock().unread.take().unwrap_or_default()
    }

    /// Lets the while go by after which things are to be done; how many were.
    pub async fn wait(&self) -> usize {
        let later = std::mem::take(&mut self.nodes[0].shared.state.lock().later);
        let count = later.len();
        for what in later {
            what.await;
        }
        count
    }

    /// Lets each node do once what it does again and again; how many things that were.
    pub async fn repeat(&self) -> usize {
        let repeated = self.nodes[0].shared.state.lock().repeated.clone();
        for (number, what) in &repeated {
            what.once(&self.nodes[*number].services()).await;
        }
        repeated.len()
    }

    /// From now on the cluster agrees on nothing (or again on everything): no quorum.
    pub fn cut_off(&self, cut_off: bool) {
        self.nodes[0].shared.state.lock().cut_off = cut_off;
    }

    /// The next change of a priority is seen by all before whoever made it hears that it is agreed: when that is sent.
    pub fn hold_back_agreement(&self) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        self.nodes[0].shared.state.lock().late = Some(receiver);
        sender
    }

    /// No table shows that the client is available until the next read barrier, as at a node that is behind.
    pub fn fall_behind(&self, client: &Client) {
        self.nodes[0].shared.state.lock().unseen = Some(client.view().sid());
    }

    /// Whether messages to the account would wait now, behind what is handed over to a session.
    pub fn is_held(&self, account: &str) -> bool {
        self.nodes[0].shared.state.lock().held.contains(&bare(account))
    }

    /// Stream features after authentication of `account`.
    pub fn offered(&self, account: &str) -> Vec<minidom::Element> {
        let account = bare(account);
        let host = account.domain().as_str().to_owned();
        let (stanza_bytes, idle_s) = (10_000, Some(60));
        let offer = Offer { host, account: Some(account), secure: true, stanza_bytes, idle_s };
        self.registry().offered(&offer, &*self.services())
    }

    fn row_view(&self, jid: &FullJid) -> Option<(usize, Arc<SessionView>)> {
        let state = self.nodes[0].shared.state.lock();
        state.rows.iter().find(|row| row.view.jid() == jid).map(|row| (row.node, row.view.clone()))
    }
}

impl Client {
    /// Sends one stanza; the content namespace may be left out. Errors come back as stanzas.
    pub async fn send(&self, xml: &str) {
        let mut stanza = parse(xml);
        stanza.head_mut().from = Some(Jid::from(self.view.jid().clone()));
        self.node.send(stanza, self.view.clone()).await;
    }

    /// Takes what was delivered since the last call, as XML, in order.
    pub fn hears(&self) -> Vec<String> {
        self.hears_stanzas().iter().map(xml).collect()
    }

    /// Takes what was delivered since the last call.
    pub fn hears_stanzas(&self) -> Vec<Stanza> {
        std::mem::take(&mut self.heard.lock())
    }

    pub fn view(&self) -> &Arc<SessionView> {
        &self.view
    }

    /// What the session was told when a module ended it; `None`: none did.
    pub fn dismissed(&self) -> Option<StreamError> {
        self.node.shared.state.lock().dismissed.get(&self.view.sid()).cloned()
    }

    /// Ends the stream without a word.
    pub async fn close(self) {
        self.node.end(&self.view, Why::Closed).await;
    }
}

impl Node {
    fn services(&self) -> Arc<dyn Services> {
        self.me.upgrade().expect("a node that runs is alive")
    }

    fn peer(&self, number: usize) -> Option<Arc<Node>> {
        self.peers.get().and_then(|peers| peers.get(number)).and_then(Weak::upgrade)
    }

    /// Steps 6 and 7 of the way of a stanza: the sender's side.
    async fn send(&self, stanza: Stanza, view: Arc<SessionView>) {
        let mut passage = Passage::new(stanza, self.services())
            .with_account(view.account().clone())
            .with_sender(view.clone());
        match self.registry.leaving(&mut passage).await {
            Verdict::Pass => {}
            Verdict::Stop => return,
            Verdict::Refuse(error) => return self.bounce(&passage.stanza, &error).await,
        }
        let mut stanza = passage.stanza;
        if stanza.head.to.is_none() {
            if stanza.head.kind == Kind::Iq {
                return self.answer(stanza, Some(view.account().clone()), Some(view)).await;
            }
            // RFC 6121, 8.2: a message without `to` is to the sender's own account.
            stanza.head_mut().to = Some(Jid::from(view.account().clone()));
        }
        self.route_from(stanza, How::Normal, Some(view)).await;
    }

    async fn route_from(&self, stanza: Stanza, how: How, sender: Option<Arc<SessionView>>) {
        let to = stanza.head.to.clone().expect("a stanza that is routed has a receiver");
        if !self.is_local_host(to.domain().as_str()) {
            self.shared.state.lock().outside.push(stanza);
            return;
        }
        if to.node().is_none() {
            if stanza.head.kind == Kind::Iq {
                self.answer(stanza, None, sender).await;
            }
            return;
        }
        let account = to.to_bare();
        // As the real server does: a message that cannot be delivered straight passes the handlers after all.
        let again = how != How::Normal;
        let is_answer = to.is_bare() && matches!(stanza.iq_type(), Ok(IqType::Result | IqType::Error));
        if again && !is_answer && !(stanza.head.kind == Kind::Message && self.nobody_for(&account, &stanza)) {
            return self.deliver_to(&stanza, &account, None).await;
        }
        if stanza.head.kind == Kind::Iq && to.is_bare() {
            return self.ask(stanza, account, sender).await;
        }
        // Presence to an account is seen on each of its nodes; anything else, and what changes a
        // subscription, on one.
        let nodes = self.nodes_of(&to);
        let everywhere = stanza.head.kind == Kind::Presence
            && to.is_bare()
            && matches!(
                stanza.presence_type(),
                Ok(PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe)
            );
        match nodes.as_slice() {
            [] => self.arrive(stanza, account, again, None).await,
            [first, ..] if !everywhere => {
                if let Some(node) = self.peer(*first) {
                    node.arrive(stanza, account, again, None).await;
                }
            }
            nodes => {
                for number in nodes {
                    if let Some(node) = self.peer(*number) {
                        node.arrive(stanza.clone(), account.clone(), again, Some(*number)).await;
                    }
                }
            }
        }
    }

    /// A request to an account, answered on its behalf once its guards have passed who asks.
    async fn ask(&self, stanza: Stanza, account: BareJid, sender: Option<Arc<SessionView>>) {
        let mut passage = Passage::new(stanza, self.services()).with_account(account.clone());
        passage.sender = sender.clone();
        passage.offline = self.nobody_for(&account, &passage.stanza);
        // As in the real server: what an account asks of itself passes nobody's guard.
        if !passage.is_own() {
            match self.registry.arriving(&mut passage).await {
                Verdict::Pass => {}
                Verdict::Stop => return,
                Verdict::Refuse(error) => return self.bounce(&passage.stanza, &error).await,
            }
        }
        self.answer(passage.stanza, Some(account), sender).await;
    }

    /// The nodes with a session that `to` may mean, the one of the highest priority first.
    fn nodes_of(&self, to: &Jid) -> Vec<usize> {
        let state = self.shared.state.lock();
        let account = to.to_bare();
        let mut rows: Vec<&Row> = state.rows.iter().filter(|row| row.view.account() == &account).collect();
        if let Some(exact) = rows.iter().find(|row| row.view.jid().as_str() == to.as_str()) {
            return vec![exact.node];
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.priority));
        let mut nodes = Vec::new();
        for row in rows {
            if !nodes.contains(&row.node) {
                nodes.push(row.node);
            }
        }
        nodes
    }

    /// Step 10: the receiver's side. `only`: deliver to sessions of this node alone.
    async fn arrive(&self, stanza: Stanza, account: BareJid, again: bool, only: Option<usize>) {
        let mut passage = Passage::new(stanza, self.services()).with_account(account.clone());
        passage.offline = self.nobody_for(&account, &passage.stanza);
        passage.again = again;
        match self.registry.arriving(&mut passage).await {
            Verdict::Pass => self.deliver_to(&passage.stanza, &account, only).await,
            Verdict::Stop => {}
            Verdict::Refuse(error) => self.bounce(&passage.stanza, &error).await,
        }
    }

    /// What `Passage::offline` says.
    fn nobody_for(&self, account: &BareJid, stanza: &Stanza) -> bool {
        let is_message = stanza.head.kind == Kind::Message;
        let to = stanza.head.to.as_ref().map(Jid::as_str);
        !self.online(account).iter().any(|resource| match resource.takes {
            _ if to == Some(resource.jid.as_str()) => true,
            Some(priority) => priority >= 0 || !is_message,
            None => false,
        })
    }

    /// RFC 6121, section 8.5, without its rarer choices.
    async fn deliver_to(&self, stanza: &Stanza, account: &BareJid, only: Option<usize>) {
        let to = stanza.head.to.as_ref().expect("a stanza that arrives has a receiver");
        let exact = |row: &Row| to.is_full() && row.view.jid().as_str() == to.as_str();
        let here = |row: &Row| row.view.account() == account && only.is_none_or(|only| only == row.node);
        // Handed over without the lock: handlers may ask the server something.
        let chosen: Vec<Row> = {
            let state = self.shared.state.lock();
            let rows: Vec<&Row> = state.rows.iter().filter(|row| here(row)).collect();
            // RFC 6121, 8.5.2.1.1: the most available ones.
            let best = rows.iter().filter_map(|row| row.priority).filter(|priority| *priority >= 0).max();
            if let Some(row) = rows.iter().find(|row| exact(row)) {
                vec![(*row).clone()]
            } else {
                let wants = |row: &Row| match stanza.head.kind {
                    Kind::Iq => false,
                    Kind::Presence => match stanza.presence_type() {
                        Ok(PresenceType::Subscribe) => row.priority.is_some(),
                        Ok(
                            PresenceType::Subscribed | PresenceType::Unsubscribe | PresenceType::Unsubscribed,
                        ) => to.is_bare(),
                        _ => to.is_bare() && row.priority.is_some(),
                    },
                    Kind::Message => match stanza.message_type() {
                        MessageType::Normal | MessageType::Chat => best.is_some() && row.priority == best,
                        MessageType::Headline => to.is_bare() && row.priority.is_some_and(|p| p >= 0),
                        MessageType::Groupchat | MessageType::Error => false,
                    },
                };
                rows.iter().filter(|row| wants(row)).map(|row| (*row).clone()).collect()
            }
        };
        chosen.iter().for_each(|row| self.hand(row, stanza));
        let reached = !chosen.is_empty();
        let silent = match stanza.head.kind {
            Kind::Presence => true,
            Kind::Iq => false,
            Kind::Message => matches!(stanza.message_type(), MessageType::Headline | MessageType::Error),
        };
        if !reached && !silent {
            self.bounce(stanza, &StanzaError::new(Condition::ServiceUnavailable)).await;
        }
    }

    fn row(&self, sid: Sid) -> Option<Row> {
        self.shared.state.lock().rows.iter().find(|row| row.view.sid() == sid).cloned()
    }

    /// Steps 11 and 12: the delivering handlers of the session's own node, then the record.
    fn hand(&self, row: &Row, stanza: &Stanza) {
        let Some(node) = self.peer(row.node) else { return };
        if row.view.is_waiting() {
            node.registry.awaiting(&row.view, stanza);
        }
        let mut stanza = stanza.clone();
        if node.registry.delivering(&row.view, &mut stanza).is_pass() {
            row.heard.lock().push(stanza);
        }
    }

    async fn answer(&self, stanza: Stanza, account: Option<BareJid>, sender: Option<Arc<SessionView>>) {
        if !matches!(stanza.iq_type(), Ok(IqType::Get | IqType::Set)) {
            return;
        }
        let mut passage = Passage::new(stanza, self.services());
        passage.account = account;
        passage.sender = sender;
        let reply = self.registry.answer(&mut passage).await;
        let answer = match reply {
            Some(Reply::Result(payload)) => Some(passage.stanza.result(payload.as_ref())),
            Some(Reply::Written(payload)) => Some(passage.stanza.written_result(payload)),
            Some(Reply::Error(error)) => passage.stanza.error(&error),
            Some(Reply::Silent) => None,
            None => passage.stanza.error(&StanzaError::new(Condition::ServiceUnavailable)),
        };
        if let Some(answer) = answer {
            self.send_back(answer).await;
        }
    }

    async fn bounce(&self, stanza: &Stanza, error: &StanzaError) {
        if let Some(error) = stanza.error(error) {
            self.send_back(error).await;
        }
    }

    async fn send_back(&self, answer: Stanza) {
        if answer.head.to.is_some() {
            self.route(answer, How::Direct).await;
        }
    }

    async fn end(&self, view: &Arc<SessionView>, why: Why) {
        self.shared.state.lock().rows.retain(|row| row.view.sid() != view.sid());
        let event = SessionEvent::Closed { session: view.clone(), why };
        self.registry.follow(&event, &self.services()).await;
    }

    fn accounts(&self) -> Accounts {
        Accounts::new(self.shared.store.clone())
    }

    /// Ends all sessions of an account; how many, and the address of each that was available.
    async fn end_all(&self, account: &BareJid) -> (u32, Vec<FullJid>) {
        let rows: Vec<(usize, Arc<SessionView>)> = {
            let state = self.shared.state.lock();
            let own = state.rows.iter().filter(|row| row.view.account() == account);
            own.map(|row| (row.node, row.view.clone())).collect()
        };
        let mut available = Vec::new();
        for (number, view) in &rows {
            if view.set_presence(None).is_some() {
                available.push(view.jid().clone());
            }
            if let Some(node) = self.peer(*number) {
                node.end(view, Why::Closed).await;
            }
        }
        (rows.len() as u32, available)
    }

    /// Sets the priority of a session, and whether others may see it.
    async fn change(
        &self,
        session: &SessionView,
        priority: Option<i8>,
        invisible: bool,
    ) -> Result<(), StoreError> {
        self.agree()?;
        let late = {
            let mut state = self.shared.state.lock();
            if let Some(row) = state.rows.iter_mut().find(|row| row.view.sid() == session.sid()) {
                (row.priority, row.invisible) = (priority, invisible);
            }
            state.late.take()
        };
        if let Some(late) = late {
            // Whoever held it back and went away does so no longer.
            late.await.ok();
        }
        session.set_priority(priority);
        session.set_invisible(invisible);
        Ok(())
    }

    fn agree(&self) -> Result<(), StoreError> {
        match self.shared.state.lock().cut_off {
            true => Err(StoreError::Unavailable { reason: "the bench is cut off".to_owned() }),
            false => Ok(()),
        }
    }
}

impl Services for Node {
    fn store(&self) -> &Store {
        &self.shared.store
    }

    fn route(&self, stanza: Stanza, how: How) -> BoxFuture<'_, ()> {
        self.route_from(stanza, how, None).boxed()
    }

    fn pass_on<'a>(&'a self, passage: &'a Passage, stanza: Stanza) -> BoxFuture<'a, ()> {
        self.route_from(stanza, How::Normal, passage.sender.clone()).boxed()
    }

    fn route_kept(&self, stanza: Stanza, session: Sid, kept: Arc<dyn Kept>) -> BoxFuture<'_, ()> {
        async move {
            let row = self.row(session);
            let is_there = row.inspect(|row| Node::hand(self, row, &stanza)).is_some();
            if !is_there {
                return kept.returned().await;
            }
            let reads = match &mut self.shared.state.lock().unread {
                Some(unread) => {
                    unread.push(kept.clone());
                    false
                }
                None => true,
            };
            if reads {
                kept.written().await;
            }
        }
        .boxed()
    }

    fn fan_out(&self, stanza: Stanza, to: Vec<Jid>) -> BoxFuture<'_, ()> {
        async move {
            for to in to {
                self.route_from(stanza.clone().with_to(to), How::Normal, None).await;
            }
        }
        .boxed()
    }

    fn hand(&self, session: &SessionView, stanza: Stanza) {
        if let Some(row) = self.row(session.sid()) {
            Node::hand(self, &row, &stanza);
        }
    }

    fn dismiss<'a>(&'a self, session: &'a SessionView, error: StreamError) -> BoxFuture<'a, ()> {
        async move {
            let row = {
                let mut state = self.shared.state.lock();
                let here = |row: &&Row| row.node == self.number && row.view.sid() == session.sid();
                let view = state.rows.iter().find(here).map(|row| row.view.clone());
                view.inspect(|view| drop(state.dismissed.insert(view.sid(), error)))
            };
            if let Some(view) = row {
                self.end(&view, Why::Lost).await;
            }
        }
        .boxed()
    }

    fn online(&self, account: &BareJid) -> Vec<Resource> {
        let state = self.shared.state.lock();
        let rows = state.rows.iter().filter(|row| row.view.account() == account);
        rows.map(|row| Resource {
            jid: row.view.jid().clone(),
            sid: row.view.sid(),
            priority: row.priority.filter(|_| !row.invisible && state.unseen != Some(row.view.sid())),
            takes: row.priority,
            here: row.node == self.number,
        })
        .collect()
    }

    fn may_sessions_be_away(&self) -> bool {
        self.shared.state.lock().was_lost
    }

    fn local_sessions(&self, account: &BareJid) -> Vec<Arc<SessionView>> {
        let state = self.shared.state.lock();
        let rows = state.rows.iter().filter(|row| row.node == self.number && row.view.account() == account);
        rows.map(|row| row.view.clone()).collect()
    }

    fn set_priority<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.change(session, priority, false).boxed()
    }

    fn hide<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.change(session, priority, true).boxed()
    }

    /// One thing happens after the other here, so nothing has to wait; `Bench::is_held` tells that it would.
    fn hold(&self, account: &BareJid) -> Hold {
        self.shared.state.lock().held.push(account.clone());
        Hold::new(Held { shared: self.shared.clone(), account: account.clone() })
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.agree()?;
            self.shared.state.lock().unseen = None;
            Ok(())
        }
        .boxed()
    }

    fn account_exists<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let made = self.shared.state.lock().accounts.contains(account);
            Ok(made || self.accounts().exists(account.as_str()).await?)
        }
        .boxed()
    }

    fn is_admin(&self, account: &BareJid) -> bool {
        self.shared.state.lock().admins.contains(account)
    }

    fn create_account<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>> {
        async move {
            if self.account_exists(account).await? {
                return Err(AccountError::AlreadyExists);
            }
            self.accounts().create(account.as_str(), &keys(password)?).await
        }
        .boxed()
    }

    fn set_password<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>> {
        async move { self.accounts().set_keys(account.as_str(), &keys(password)?).await }.boxed()
    }

    fn remove_account<'a>(
        &'a self,
        account: &'a BareJid,
        last: Option<Stanza>,
    ) -> BoxFuture<'a, Result<Removal, AccountError>> {
        async move {
            self.agree()?;
            let named = self.shared.state.lock().accounts.remove(account);
            match self.accounts().begin_removal(account.as_str()).await {
                Err(AccountError::NotFound) if named => {}
                begun => begun?,
            }
            if let Some(last) = last {
                self.route(last, How::Ahead).await;
            }
            let (ended, available) = self.end_all(account).await;
            for jid in available {
                self.announce(SessionEvent::Lost { account: account.clone(), jid }).await;
            }
            self.registry.forget(account, &self.services()).await;
            let partition = store::Partition::Account(account.as_str().into());
            self.shared.store.delete_partition(&partition).await?;
            self.accounts().end_removal(account.as_str()).await?;
            Ok(Removal::new(async move { Ok(ended) }))
        }
        .boxed()
    }

    fn disable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<u32, AccountError>> {
        async move {
            self.accounts().set_disabled(account.as_str(), true).await?;
            Ok(self.end_all(account).await.0)
        }
        .boxed()
    }

    fn enable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<(), AccountError>> {
        async move { self.accounts().set_disabled(account.as_str(), false).await.map(drop) }.boxed()
    }

    fn end_sessions<'a>(&'a self, jid: &'a Jid) -> BoxFuture<'a, Result<u32, StoreError>> {
        async move {
            self.agree()?;
            if jid.is_bare() {
                return Ok(self.end_all(&jid.to_bare()).await.0);
            }
            let found = {
                let state = self.shared.state.lock();
                let row = state.rows.iter().find(|row| row.view.jid().as_str() == jid.as_str());
                row.map(|row| (row.node, row.view.clone()))
            };
            let Some((number, view)) = found else { return Ok(0) };
            if let Some(node) = self.peer(number) {
                node.end(&view, Why::Closed).await;
            }
            Ok(1)
        }
        .boxed()
    }

    /// Those that modules made.
    fn accounts<'a>(
        &'a self,
        host: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, AccountState)>, StoreError>> {
        async move {
            let page = self.accounts().list(host, after, limit).await?;
            Ok(page.into_iter().map(|account| (account.bare, account.state)).collect())
        }
        .boxed()
    }

    fn users_online(&self, host: &str) -> Vec<BareJid> {
        let state = self.shared.state.lock();
        let online = state.rows.iter().filter(|row| row.priority.is_some()).map(|row| row.view.account());
        let online: std::collections::BTreeSet<&BareJid> =
            online.filter(|account| account.domain().as_str() == host).collect();
        online.into_iter().cloned().collect()
    }

    fn announce(&self, event: SessionEvent) -> BoxFuture<'_, ()> {
        async move { self.registry.follow(&event, &self.services()).await }.boxed()
    }

    fn hosts(&self) -> &[String] {
        &self.shared.hosts
    }

    fn later(&self, _: Duration, what: BoxFuture<'static, ()>) {
        self.shared.state.lock().later.push(what);
    }

    fn repeat(&self, _: Duration, what: Box<dyn Repeated>) {
        self.shared.state.lock().repeated.push((self.number, what.into()));
    }

    fn count(&self, module: &'static str, event: &'static str) {
        *self.shared.state.lock().counted.entry((module, event)).or_default() += 1;
    }

    /// Nobody else is here.
    fn pause(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn now(&self) -> SystemTime {
        self.shared.state.lock().now
    }

    fn random(&self, buffer: &mut [u8]) {
        let mut state = self.shared.state.lock();
        for byte in buffer {
            // xorshift64: the same bytes in each run.
            state.seed ^= state.seed << 13;
            state.seed ^= state.seed >> 7;
            state.seed ^= state.seed << 17;
            *byte = state.seed as u8;
        }
    }

    fn about(&self) -> About {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH + START).unwrap_or_default();
        About { name: "Rookery", version: "0.0.0", uptime: since }
    }

    fn cards(&self, host: &str) -> Vec<Card> {
        self.registry.cards(host)
    }
}

/// Keys that show their password, which no real ones do: `password_of` reads it.
fn keys(password: &str) -> Result<Credentials, AccountError> {
    if password.chars().any(char::is_control) || password.is_empty() {
        return Err(AccountError::BadPassword);
    }
    let keys = ScramKeys {
        salt: Vec::new(),
        iterations: 0,
        stored_key: password.as_bytes().to_vec(),
        server_key: Vec::new(),
    };
    Ok(Credentials::new(keys.clone(), keys.clone(), keys))
}

/// The password of an account that a module of the bench made or changed.
pub fn password_of(credentials: &Credentials) -> String {
    let keys = credentials.sha1.as_ref().expect("keys of the bench");
    String::from_utf8_lossy(&keys.stored_key).into_owned()
}

/// Reads one stanza; the content namespace may be left out.
pub fn parse(xml: &str) -> Stanza {
    let tag_end = xml.find([' ', '/', '>']).unwrap_or(xml.len());
    let (tag, rest) = xml.split_at(tag_end);
    let whole = match xml[..xml.find('>').unwrap_or(xml.len())].contains("xmlns='jabber:client'") {
        true => xml.to_owned(),
        false => format!("{tag} xmlns='jabber:client'{rest}"),
    };
    let element = stanza::dom::parse(whole.as_bytes()).unwrap_or_else(|e| panic!("`{xml}`: {e}"));
    Stanza::from_element(&element).unwrap_or_else(|e| panic!("`{xml}`: {e}"))
}

/// The stanza as the writer puts it on the wire.
pub fn xml(stanza: &Stanza) -> String {
    let mut out = BytesMut::new();
    stanza.write(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn bare(jid: &str) -> BareJid {
    BareJid::new(jid).unwrap_or_else(|e| panic!("`{jid}` is no bare JID: {e}"))
}

//! A cluster in one process for the router's tests: a shared table, routers over loopback gRPC, links to cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use cluster::{Change, Incarnation, LostSession, NodeId, NodeRow, NodeState, Roles, Row, Sid, Unavailable};
use futures::future::{BoxFuture, ready};
use hooks::bench::parse;
use hooks::{Module, Passage, Registry, SessionView, Store, Switches, Verdict};
use jid::{BareJid, FullJid};
use parking_lot::Mutex;
use router::{Config, Delivery, Deps, Mailbox, Router, Whereabouts};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Server};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// What Raft would agree on.
#[derive(Default)]
pub struct World {
    rows: Mutex<Vec<Row>>,
    nodes: Mutex<Vec<NodeRow>>,
    index: AtomicU64,
    next_sid: AtomicU64,
    addresses: Mutex<HashMap<NodeId, SocketAddr>>,
    watchers: Mutex<Vec<mpsc::Sender<Change>>>,
    moved: Notify,
}

/// One node's copy of it.
pub struct Here {
    pub world: Arc<World>,
    pub me: NodeId,
    pub serving: AtomicBool,
    /// Read barriers that were asked for.
    pub barriers: AtomicU64,
    incarnation: AtomicU64,
    /// The table as it was when it was frozen.
    frozen: Mutex<Option<(u64, Vec<Row>)>>,
    /// What comes to pass right behind the next look at the sessions of an account.
    behind_a_look: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl World {
    pub fn new(nodes: u64) -> Arc<World> {
        let world = Arc::new(World::default());
        world.index.store(1, Ordering::SeqCst);
        for node in 1..=nodes {
            world.nodes.lock().push(NodeRow {
                node: NodeId(node),
                incarnation: Incarnation(1),
                name: format!("n{node}"),
                address: String::new(),
                roles: Roles::default(),
                state: NodeState::Up,
                member: None,
                key: node.into(),
                start: 1,
            });
        }
        world
    }

    fn step(&self) {
        self.index.fetch_add(1, Ordering::SeqCst);
        self.moved.notify_waiters();
    }

    /// Where a node listens.
    pub fn reach(&self, node: NodeId, address: SocketAddr) {
        self.addresses.lock().insert(node, address);
    }

    pub fn bind(&self, node: NodeId, jid: &FullJid, priority: Option<i8>) -> Sid {
        let sid = Sid(self.next_sid.fetch_add(1, Ordering::SeqCst).into());
        let mut rows = self.rows.lock();
        rows.retain(|row| row.jid != *jid);
        rows.push(Row {
            jid: jid.clone(),
            node,
            incarnation: Incarnation(1),
            sid,
            priority,
            detached: false,
            invisible: false,
        });
        drop(rows);
        self.step();
        sid
    }

    pub fn unbind(&self, sid: Sid) {
        self.rows.lock().retain(|row| row.sid != sid);
        self.step();
    }

    /// A node is gone: its rows are hidden and every node hears of it.
    pub async fn expire(&self, node: NodeId) {
        let lost = self.hide(node);
        let change = Change::NodeGone { node, incarnation: Incarnation(1), lost: lost.into() };
        let watchers = self.watchers.lock().clone();
        for watcher in watchers {
            let _ = watcher.send(change.clone()).await;
        }
    }

    /// The entry by which a node is gone, applied: whoever looks sees it, and nobody was told yet.
    pub fn hide(&self, node: NodeId) -> Vec<LostSession> {
        if let Some(row) = self.nodes.lock().iter_mut().find(|row| row.node == node) {
            row.state = NodeState::Gone;
        }
        let mut lost = Vec::new();
        self.rows.lock().retain(|row| {
            if row.node == node {
                lost.push(LostSession { jid: row.jid.clone(), sid: row.sid, priority: row.shown() });
            }
            row.node != node
        });
        self.step();
        lost
    }
}

impl Here {
    pub fn freeze(&self) {
        let rows = self.world.rows.lock().clone();
        *self.frozen.lock() = Some((self.world.index.load(Ordering::SeqCst), rows));
    }

    pub fn thaw(&self) {
        *self.frozen.lock() = None;
        self.world.moved.notify_waiters();
    }

    pub fn behind_the_next_look(&self, what: impl FnOnce() + Send + 'static) {
        *self.behind_a_look.lock() = Some(Box::new(what));
    }
}

impl Whereabouts for Here {
    fn me(&self) -> (NodeId, Incarnation) {
        (self.me, Incarnation(self.incarnation.load(Ordering::SeqCst)))
    }

    fn is_serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    fn users(&self, account: &BareJid) -> Vec<Row> {
        let of = |rows: &[Row]| rows.iter().filter(|row| row.jid.to_bare() == *account).cloned().collect();
        let seen = match &*self.frozen.lock() {
            Some((_, rows)) => of(rows),
            None => of(&self.world.rows.lock()),
        };
        if let Some(what) = self.behind_a_look.lock().take() {
            what();
        }
        seen
    }

    fn online(&self, host: &str) -> Vec<BareJid> {
        let rows = self.world.rows.lock();
        let online = rows.iter().filter(|row| row.priority.is_some() && row.jid.domain().as_str() == host);
        let mut online: Vec<BareJid> = online.map(|row| row.jid.to_bare()).collect();
        online.sort();
        online.dedup();
        online
    }

    fn nodes(&self) -> Vec<NodeRow> {
        self.world.nodes.lock().clone()
    }

    fn is_current(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let here = |row: &NodeRow| row.node == node && row.incarnation == incarnation;
        self.world.nodes.lock().iter().any(|row| here(row) && row.state != NodeState::Gone)
    }

    fn is_here(&self, node: NodeId) -> bool {
        self.world.nodes.lock().iter().any(|row| row.node == node && row.state != NodeState::Gone)
    }

    fn index(&self) -> u64 {
        match &*self.frozen.lock() {
            Some((index, _)) => *index,
            None => self.world.index.load(Ordering::SeqCst),
        }
    }

    fn wait_index(&self, index: u64, within: Duration) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let wait = async {
                loop {
                    let moved = self.world.moved.notified();
                    let mut moved = std::pin::pin!(moved);
                    moved.as_mut().enable();
                    if self.index() >= index {
                        return;
                    }
                    moved.await;
                }
            };
            timeout(within, wait).await.is_ok()
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<u64, Unavailable>> {
        Box::pin(async move {
            self.barriers.fetch_add(1, Ordering::SeqCst);
            loop {
                let moved = self.world.moved.notified();
                let mut moved = std::pin::pin!(moved);
                moved.as_mut().enable();
                // A copy that stands still does not become newer.
                if self.frozen.lock().is_none() {
                    return Ok(self.index());
                }
                moved.await;
            }
        })
    }

    fn set_priority<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let mut rows = self.world.rows.lock();
        if let Some(row) = rows.iter_mut().find(|row| row.jid == *jid && row.sid == sid) {
            (row.priority, row.invisible) = (priority, false);
        }
        drop(rows);
        self.world.step();
        Box::pin(ready(Ok(())))
    }

    fn hide<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let mut rows = self.world.rows.lock();
        if let Some(row) = rows.iter_mut().find(|row| row.jid == *jid && row.sid == sid) {
            (row.priority, row.invisible) = (priority, true);
        }
        drop(rows);
        self.world.step();
        Box::pin(ready(Ok(())))
    }

    fn kick<'a>(&'a self, jid: &'a FullJid) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let mut rows = self.world.rows.lock();
        let before = rows.len();
        rows.retain(|row| row.jid != *jid);
        let kicked = rows.len() < before;
        drop(rows);
        self.world.step();
        Box::pin(ready(Ok(kicked)))
    }

    fn channel(&self, node: NodeId) -> Option<Channel> {
        let address = *self.world.addresses.lock().get(&node)?;
        Some(Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy())
    }

    fn changes(&self) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel(1024);
        self.world.watchers.lock().push(sender);
        receiver
    }
}

/// A node: a router on the runtime of the test.
pub struct Node {
    pub router: Arc<Router>,
    pub here: Arc<Here>,
    registry: Arc<Registry>,
}

/// A node without a listener.
pub fn node(
    world: &Arc<World>,
    number: u64,
    store: &Store,
    modules: Vec<Arc<dyn Module>>,
    config: Config,
) -> Node {
    let here = Arc::new(Here {
        world: world.clone(),
        me: NodeId(number),
        serving: AtomicBool::new(true),
        barriers: AtomicU64::new(0),
        incarnation: AtomicU64::new(1),
        frozen: Mutex::default(),
        behind_a_look: Mutex::default(),
    });
    let registry = Arc::new(Registry::build(modules, &Switches::everywhere()).unwrap());
    let deps = Deps {
        whereabouts: here.clone(),
        registry: registry.clone(),
        store: store.clone(),
        hosts: vec!["localhost".into()],
        admins: Vec::new(),
        about: ("Rookery", "test"),
        clock: || SystemTime::UNIX_EPOCH,
        random: |buffer| buffer.fill(7),
        keys: |_| None,
    };
    Node { router: Router::start(deps, config), here, registry }
}

impl Node {
    /// Listens for other nodes; they come over a link that can be cut.
    pub async fn listen(&self) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = self.router.relay_service();
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let link = Link::to(behind).await;
        self.here.world.reach(self.here.me, link.address);
        link
    }

    /// A session of this node, with its mailbox.
    pub fn login(&self, full: &str, priority: Option<i8>) -> Client {
        let jid = FullJid::new(full).unwrap();
        let sid = self.here.world.bind(self.here.me, &jid, priority);
        let view = Arc::new(SessionView::new(jid, hooks::Sid(sid.0), true));
        view.set_priority(priority);
        let mailbox = self.router.open(view.clone());
        Client {
            view,
            mailbox,
            router: self.router.clone(),
            registry: self.registry.clone(),
            sid,
            heard: Vec::new(),
        }
    }

    /// The node serves again, under a new incarnation, and brings its sessions back.
    pub fn come_back(&self, incarnation: Incarnation, clients: &[&Client]) {
        let world = &self.here.world;
        self.here.incarnation.store(incarnation.0, Ordering::SeqCst);
        for row in world.nodes.lock().iter_mut().filter(|row| row.node == self.here.me) {
            (row.incarnation, row.state) = (incarnation, NodeState::Up);
        }
        let rows = clients.iter().map(|client| Row {
            jid: client.view.jid().clone(),
            node: self.here.me,
            incarnation,
            sid: client.sid,
            priority: client.view.priority(),
            detached: false,
            invisible: false,
        });
        world.rows.lock().extend(rows);
        world.step();
    }

    /// Sends what nobody's session said.
    pub async fn says(&self, xml: &str) {
        let passage = Passage::new(parse(xml), self.router.services());
        self.router.send(passage).await;
    }

    /// What is on its way to other nodes and not settled.
    pub fn unsettled(&self) -> usize {
        self.router.lanes().iter().map(|lane| lane.unsettled).sum()
    }
}

/// The client side of a session.
pub struct Client {
    pub view: Arc<SessionView>,
    pub mailbox: Mailbox,
    pub sid: Sid,
    router: Arc<Router>,
    registry: Arc<Registry>,
    heard: Vec<String>,
}

impl Client {
    /// Sends as this session; `from` is stamped.
    pub async fn says(&self, xml: &str) {
        let stanza = parse(xml).with_from(self.view.jid().clone());
        let passage = Passage::new(stanza, self.router.services()).with_sender(self.view.clone());
        self.router.send(passage).await;
    }

    /// Sends initial presence, as its session does; done when the leaving handlers are.
    pub async fn comes_online(&self) {
        let presence = parse("<presence/>").with_from(self.view.jid().clone());
        let mut passage = Passage::new(presence, self.router.services())
            .with_account(self.view.account().clone())
            .with_sender(self.view.clone());
        let verdict = self.registry.leaving(&mut passage).await;
        assert!(matches!(verdict, Verdict::Stop), "the presence module takes it");
    }

    /// A numbered chat message.
    pub async fn chats(&self, to: &str, id: usize) {
        self.says(&format!("<message to='{to}' type='chat' id='{id}'><body>{id}</body></message>")).await;
    }

    /// Takes what waits, without settling it.
    pub async fn takes(&mut self) -> Vec<Delivery> {
        timeout(SOON, self.mailbox.ready()).await.expect("something comes");
        self.mailbox.drain(usize::MAX)
    }

    /// Waits until so many stanzas came; what came, as XML.
    pub async fn hears(&mut self, count: usize) -> Vec<String> {
        while self.heard.len() < count {
            for delivery in self.takes().await {
                let mut out = BytesMut::new();
                delivery.write(&mut out);
                delivery.receipt.settle();
                self.heard.push(String::from_utf8(out.to_vec()).unwrap());
            }
            assert!(
                self.mailbox.end().is_none() || self.heard.len() >= count,
                "ended after {:?}",
                self.heard
            );
        }
        self.heard.drain(..count).collect()
    }

    /// The ids of the next stanzas.
    pub async fn hears_ids(&mut self, count: usize) -> Vec<usize> {
        self.hears(count).await.iter().map(|xml| id(xml)).collect()
    }

    /// What came by now, beyond what was heard.
    pub fn rest(&mut self) -> Vec<String> {
        let mut rest = std::mem::take(&mut self.heard);
        for delivery in self.mailbox.drain(usize::MAX) {
            let mut out = BytesMut::new();
            delivery.write(&mut out);
            rest.push(String::from_utf8(out.to_vec()).unwrap());
        }
        rest
    }

    /// The session ends as its supervisor would end it.
    pub fn close(&self, world: &World, unwritten: Vec<Delivery>) {
        world.unbind(self.sid);
        self.router.close(&self.view, unwritten);
    }
}

/// The number in the `id` of a stanza.
pub fn id(xml: &str) -> usize {
    let from = xml.find(" id='").expect("an id") + 5;
    let to = xml[from..].find('\'').unwrap() + from;
    xml[from..to].parse().unwrap()
}

/// Waits for a condition that no event announces, by the scheduler's turns.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while !is_so() {
            tick.tick().await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never so: {what}"));
}

/// A TCP link that can be cut and mended.
pub struct Link {
    pub address: SocketAddr,
    up: watch::Sender<bool>,
}

impl Link {
    async fn to(behind: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (up, is_up) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_up = is_up.clone();
                if !*is_up.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(behind).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_up.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Link { address, up }
    }

    /// Every connection breaks, and no new one comes to be until it is mended.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

//! What of a session outlives its connection (XEP-0198, 5): it waits for its client here, or goes to where that is.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use actix::Addr;
use cluster::NodeId;
use futures::FutureExt;
use futures::future::BoxFuture;
use hooks::{SessionEvent, SessionView, Sid, Why};
use jid::BareJid;
use parking_lot::Mutex;
use router::{Ask, Delivery, Given, Moving, Refusal, Thread, Yielding};
use stream::sasl::MechanismName;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::claim::Claim;
use crate::connection;
use crate::management::Management;
use crate::outcome::Outcome;
use crate::post::{Handing, Post};
use crate::session::{Ended, Life, Session};
use crate::supervisor;
use crate::table::Entry;
use crate::world::World;

/// How long a session that is given to another node waits until the table shows it there; then it goes on here.
const GIVE_WITHIN: Duration = Duration::from_secs(10);
/// How long another connection waits for the stanza at hand of the one before it.
const HALT_WITHIN: Duration = Duration::from_secs(11);
/// How long the answer to who resumes waits for stanzas that are on their way: what is not handled by then counts as
/// handled, as it cannot be called back.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
/// How long a session of a node that drains waits for its client to come back elsewhere.
const MOVE_WITHIN: Duration = Duration::from_secs(30);
/// The same where the node ends behind it.
const MOVE_ENDING_WITHIN: Duration = Duration::from_secs(3);
/// Sessions that have ended whose counts are remembered; beyond it the oldest are forgotten.
const ENDED_MAX: usize = 10_000;

/// A session without its connection.
pub(crate) struct Outliving {
    pub view: Arc<SessionView>,
    pub post: Post,
    pub management: Box<Management>,
    /// What is to be taken back at its end.
    pub claims: Vec<Claim>,
    pub facts: Facts,
}

/// What operators are told of it.
pub(crate) struct Facts {
    pub peer: SocketAddr,
    pub since: SystemTime,
    pub tls: Option<&'static str>,
    pub mechanism: &'static str,
}

/// Where a session that can be resumed is to go.
pub(crate) enum Taker {
    /// To another connection of this node.
    Here(oneshot::Sender<Box<Outliving>>),
    /// To another node.
    Peer { ask: Ask, reply: oneshot::Sender<Result<Given, Refusal>> },
}

/// How a session is told where to go; the order to go comes beside it.
#[derive(Default)]
pub(crate) struct Yield {
    is_resumable: AtomicBool,
    taker: Mutex<Option<Taker>>,
}

impl Yield {
    /// The client was told that it may come back.
    pub(crate) fn allow(&self) {
        self.is_resumable.store(true, Ordering::Release);
    }

    /// False where it may not, or somebody else is to have the session.
    pub(crate) fn offer(&self, taker: Taker) -> bool {
        let mut slot = self.taker.lock();
        if !self.is_resumable.load(Ordering::Acquire) || slot.is_some() {
            return false;
        }
        *slot = Some(taker);
        true
    }

    fn take(&self) -> Option<Taker> {
        self.taker.lock().take()
    }

    /// The session ends: whoever waits for it learns that, and nobody else does.
    pub(crate) fn end(&self) {
        self.is_resumable.store(false, Ordering::Release);
        self.take();
    }
}

/// How many stanzas were handled of clients whose sessions have ended, for those that come too late.
#[derive(Default)]
pub(crate) struct EndedSessions(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    counts: HashMap<Thread, (BareJid, u32)>,
    oldest_first: VecDeque<Thread>,
}

impl EndedSessions {
    fn note(&self, thread: Thread, account: &BareJid, handled: u32) {
        let mut remembered = self.0.lock();
        if remembered.counts.insert(thread, (account.clone(), handled)).is_none() {
            remembered.oldest_first.push_back(thread);
        }
        if remembered.oldest_first.len() > ENDED_MAX
            && let Some(oldest) = remembered.oldest_first.pop_front()
        {
            remembered.counts.remove(&oldest);
        }
    }

    /// Of an account's own sessions only.
    pub(crate) fn handled(&self, thread: Thread, account: &BareJid) -> Option<u32> {
        let remembered = self.0.lock();
        remembered.counts.get(&thread).filter(|(owner, _)| owner == account).map(|(_, handled)| *handled)
    }
}

impl Facts {
    /// The line of a session in the table of this node.
    pub(crate) fn entry(
        &self,
        view: &Arc<SessionView>,
        actor: &Addr<Session>,
        yielding: &Arc<Yield>,
    ) -> Entry {
        let Facts { peer, since, tls, mechanism } = *self;
        let (view, actor, yielding) = (view.clone(), actor.clone(), yielding.clone());
        Entry { view, actor, peer, since, tls, mechanism, yielding }
    }
}

impl Outliving {
    /// What its client has not had.
    fn into_unwritten(mut self) -> (Arc<SessionView>, Vec<Claim>, Vec<Delivery>) {
        let unwritten = self.post.into_unwritten(Some(&mut self.management));
        (self.view, self.claims, unwritten)
    }
}

/// How many stanzas of the client were handled, once none is on its way; the rest of them is not waited for long.
pub(crate) async fn settled(management: &Management) -> u32 {
    let handled = management.handled.clone();
    let _ = timeout(SETTLE_WITHIN, poll_fn(|context| handled.poll_settled(context))).await;
    handled.complete()
}

/// Has a session wait for its client until it comes back, somebody orders the session to end, or it has waited long
/// enough. `outcome`: why its connection ended.
pub(crate) async fn wait(
    world: &Arc<World>,
    mut session: Box<Outliving>,
    held: (Rc<Life>, Addr<Session>, Arc<Yield>),
    outcome: &Outcome,
) {
    let (life, actor, yielding) = held;
    let patience = session.management.resumption.unwrap_or_default();
    let mut until = Instant::now() + patience;
    let mut is_moved = false;
    if !matches!(outcome, Outcome::Yielded) {
        world.counters.detached.add(1);
        let queued = session.post.mailbox.begin_waiting();
        // What the client may not have had is what it misses.
        let taken = session.management.unacknowledged.iter().chain(&session.post.taken);
        for stanza in taken.map(|delivery| &delivery.stanza).chain(&queued) {
            world.router.show_awaiting(&session.view, stanza);
        }
        tracing::debug!(session = %session.view.jid(), outcome = outcome.name(), "a session waits for its client");
    }
    let ended = loop {
        let outcome = tokio::select! {
            biased;
            outcome = life.ended() => outcome,
            // More waits for the client than may.
            end = session.post.mailbox.ended() => connection::over(end),
            () = sleep_until(until) => break Outcome::Gone,
        };
        match outcome {
            Outcome::Yielded => {
                life.survive();
                match yielding.take() {
                    Some(Taker::Here(reply)) => {
                        session.view.set_waiting(false);
                        match reply.send(session) {
                            Ok(()) => {
                                let _ = actor.try_send(Ended);
                                return;
                            }
                            Err(back) => {
                                // Whoever wanted it has gone, and may come again.
                                session = back;
                                session.view.set_waiting(true);
                                line_up(world, &session, &actor, &yielding).await;
                            }
                        }
                    }
                    Some(Taker::Peer { ask, reply }) => match give(world, session, &life, ask, reply).await {
                        Ok(()) => {
                            let _ = actor.try_send(Ended);
                            return;
                        }
                        Err((back, None)) => {
                            session = back;
                            session.view.set_waiting(true);
                        }
                        Err((back, Some(outcome))) => {
                            session = back;
                            break outcome;
                        }
                    },
                    None => {}
                }
            }
            Outcome::Moved(_) => {
                life.survive();
                if !std::mem::replace(&mut is_moved, true) {
                    let bound = if world.is_ending() { MOVE_ENDING_WITHIN } else { MOVE_WITHIN };
                    until = until.min(Instant::now() + bound);
                }
            }
            Outcome::Kicked => break supervisor::why_kicked(world, &session.view).await,
            outcome => break outcome,
        }
    };
    let _ = actor.try_send(Ended);
    yielding.end();
    end(world, *session, &ended).await;
}

/// Gives a session that was on its way to a connection its line in the table again.
pub(crate) async fn line_up(
    world: &World,
    session: &Outliving,
    actor: &Addr<Session>,
    yielding: &Arc<Yield>,
) {
    if world.table.add(session.facts.entry(&session.view, actor, yielding)) {
        supervisor::bring_back(world, &session.view).await;
    }
}

/// Ends a session that has no connection.
pub(crate) async fn end(world: &Arc<World>, session: Outliving, outcome: &Outcome) {
    let Management { thread, handled, .. } = &*session.management;
    world.ended.note(*thread, session.view.account(), handled.count());
    tracing::debug!(session = %session.view.jid(), outcome = outcome.name(), "a session without a connection ends");
    let (_, claims, unwritten) = session.into_unwritten();
    supervisor::take_back(world, claims, outcome, unwritten).await;
}

/// Gives a session to another node. What comes back: it goes on here, or ends for that reason.
async fn give(
    world: &Arc<World>,
    mut session: Box<Outliving>,
    life: &Life,
    ask: Ask,
    reply: oneshot::Sender<Result<Given, Refusal>>,
) -> Result<(), (Box<Outliving>, Option<Outcome>)> {
    if let Err(wrong) = session.management.acknowledged(ask.handled) {
        let _ = reply.send(Err(Refusal::TooHigh(wrong.sent)));
        return Err((session, Some(Outcome::Broke(wrong.into()))));
    }
    let handled = settled(&session.management).await;
    session.post.mailbox.leave();
    let (done, is_done) = oneshot::channel::<()>();
    let all: BoxFuture<'static, ()> = is_done.map(drop).boxed();
    if reply.send(Ok((packed(world, &session, handled), all))).is_err() {
        return Err((session, None));
    }
    let outcome = match timeout(GIVE_WITHIN, life.ended()).await {
        Ok(outcome) => outcome,
        Err(_) => return Err((session, None)),
    };
    let is_there = || {
        let online = world.services.online(session.view.account());
        online.iter().any(|one| one.sid == ask.successor)
    };
    if outcome != Outcome::Displaced || !is_there() {
        // A second wish for the same session is not granted before the first one is dealt with.
        return Err((session, (!outcome.is_survived()).then_some(outcome)));
    }
    let (view, claims, unwritten) = session.into_unwritten();
    claims.iter().for_each(|claim| world.table.remove(claim.sid));
    // The other node has them by now.
    view.set_presence(None);
    view.take_directed();
    let handed = world.router.close_for(&view, unwritten, ask.successor);
    world.services.announce(SessionEvent::Closed { session: view.clone(), why: Why::Moved }).await;
    let _ = timeout(GIVE_WITHIN, handed).await;
    drop(done);
    tracing::debug!(session = %view.jid(), node = %ask.node, "a session went to another node");
    Ok(())
}

/// What the other node must know of it.
fn packed(world: &World, session: &Outliving, handled: u32) -> Moving {
    let view = &session.view;
    let notes = world.registry.pack(view).into_iter();
    Moving {
        jid: view.jid().clone(),
        sid: view.sid(),
        presence: view.presence(),
        priority: view.priority(),
        interested: view.is_interested(),
        directed: view.directed(),
        handled,
        mechanism: session.facts.mechanism.to_owned(),
        resumption: session.management.resumption.unwrap_or_default(),
        notes: notes.map(|(module, packed)| (module.to_owned(), packed)).collect(),
        since: session.facts.since,
    }
}

/// Gives sessions of this node to others.
pub(crate) struct Sessions(pub Weak<World>);

impl Yielding for Sessions {
    fn give(&self, ask: Ask) -> BoxFuture<'_, Result<Given, Refusal>> {
        Box::pin(async move {
            // Without it the node is about to be gone.
            let Some(world) = &self.0.upgrade() else { return Err(Refusal::Missing(None)) };
            let (account, thread) = (ask.account.clone(), ask.thread);
            let (reply, answer) = oneshot::channel();
            let given = match local(world, &account, thread) {
                Some(sid) if world.table.take(sid, Taker::Peer { ask, reply }) => {
                    timeout(HALT_WITHIN, answer).await.ok().and_then(Result::ok)
                }
                _ => None,
            };
            given.unwrap_or_else(|| Err(Refusal::Missing(world.ended.handled(thread, &account))))
        })
    }
}

/// The session of this node with that thread.
fn local(world: &World, account: &BareJid, thread: Thread) -> Option<Sid> {
    let sessions = world.services.local_sessions(account);
    sessions.iter().map(|view| view.sid()).find(|sid| Thread::of(*sid) == thread)
}

/// Takes a session of this node over for another connection of it; `None` where it is not here, or not any more.
pub(crate) async fn take(world: &World, sid: Sid) -> Option<Box<Outliving>> {
    let (taker, taken) = oneshot::channel();
    if !world.table.take(sid, Taker::Here(taker)) {
        return None;
    }
    timeout(HALT_WITHIN, taken).await.ok()?.ok()
}

/// Takes a session of another node over under a new life.
pub(crate) async fn fetch(
    world: &World,
    node: NodeId,
    account: &BareJid,
    thread: Thread,
    handled: u32,
    facts: Facts,
) -> Result<Box<Outliving>, Refusal> {
    let mut random = [0; 4];
    world.services.random(&mut random);
    let successor = thread.successor(u32::from_be_bytes(random));
    // Before anybody can see it, as of a session that is bound.
    world.table.begin(successor);
    let fetched = bring(world, node, account, thread, handled, successor, facts).await;
    if fetched.is_err() {
        world.table.remove(successor);
    }
    fetched
}

async fn bring(
    world: &World,
    node: NodeId,
    account: &BareJid,
    thread: Thread,
    handled: u32,
    successor: Sid,
    facts: Facts,
) -> Result<Box<Outliving>, Refusal> {
    let (moving, all) = world.router.take_over(node, account, thread, handled, successor).await?;
    let view = Arc::new(SessionView::new(moving.jid.clone(), successor, facts.tls.is_some()));
    view.set_presence(moving.presence);
    view.set_priority(moving.priority);
    if moving.interested {
        view.set_interested();
    }
    for to in moving.directed {
        // The other node held them to the bound.
        let _ = view.direct_to(to, usize::MAX);
    }
    moving.notes.iter().for_each(|(module, packed)| world.registry.unpack(&view, module, packed));
    let mailbox = world.router.open(view.clone());
    mailbox.come_over();
    let claim = Claim { bound: true, ..Claim::new(view.clone()) };
    let (old, new) = (cluster::Sid(moving.sid.0), cluster::Sid(successor.0));
    match world.claims.attach(&moving.jid, old, new).await {
        Ok(true) => {}
        Ok(false) => {
            world.router.close(&view, Vec::new());
            return Err(Refusal::Missing(Some(moving.handled)));
        }
        Err(error) => {
            tracing::warn!(session = %moving.jid, %error, "failed to bring a session here");
            // It may be agreed later all the same.
            view.set_presence(None);
            view.take_directed();
            world.router.close(&view, Vec::new());
            if let Err(error) = world.claims.unbind(&moving.jid, new).await {
                tracing::warn!(session = %moving.jid, %error, "failed to take a route back");
            }
            return Err(Refusal::Missing(Some(moving.handled)));
        }
    }
    let mechanism = MechanismName::known(&moving.mechanism).map_or("", |name| name.as_str());
    let resumption = Some(moving.resumption);
    Ok(Box::new(Outliving {
        view,
        post: Post::new(mailbox).behind(Handing { node: node.0, all }),
        management: Box::new(Management::from(successor, resumption, moving.handled, handled)),
        claims: vec![claim],
        facts: Facts { since: moving.since, mechanism, ..facts },
    }))
}

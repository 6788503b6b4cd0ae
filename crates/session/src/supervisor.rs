//! Watches over one client from accept to the end, however it comes, and leaves the house as it was before.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use actix::Addr;
use futures::FutureExt;
use hooks::{AccountState, SessionEvent, SessionView, Why};
use router::Delivery;
use tokio::time::{sleep, timeout};

use crate::claim::Claim;
use crate::connection::{self, CameBy, Connection, Pace};
use crate::listener::{self, Door, Guest};
use crate::login::{self, Arrived, LoggedIn};
use crate::outcome::Outcome;
use crate::outliving::{self, Facts, Outliving, Yield};
use crate::post::Post;
use crate::proxy::{self, Origin};
use crate::session::{Ended, Life, Order, Session};
use crate::start;
use crate::world::World;

/// Longest time that the stanza at hand may still take when its session ends.
const FINISH: Duration = Duration::from_secs(10);
/// The same when this node stops, which is often because the whole cluster does: nothing may answer any more.
const FINISH_STOPPING: Duration = Duration::from_secs(1);
/// How long a session of a node that stops waits for its route to be taken back, and then for its contacts to
/// be told. What is not done by then the other nodes do, when they see that this one has left.
const LEAVE: Duration = Duration::from_millis(750);
/// How long a session that is moved waits for what other nodes sent it before they saw that its route is gone.
const STRAGGLERS: Duration = Duration::from_millis(100);
/// How long the end of a session waits for the store to say why it was ordered.
const LOOK: Duration = Duration::from_secs(1);
/// How often a route that could not be taken back is tried again, and with what pause.
const UNBIND_AGAIN: (u32, Duration) = (60, Duration::from_secs(1));

/// Serves one client. What panics inside ends this client and nothing else.
pub(crate) async fn supervise(world: Arc<World>, guest: Guest) {
    let door = guest.door;
    let Guest { socket, peer, permit, .. } = match introduce(&world, guest).await {
        Ok(guest) => guest,
        Err(outcome) => return count(&world, &outcome),
    };
    let connection = Rc::new(Connection::new(world.clone(), socket, peer, permit));
    let login = AssertUnwindSafe(login::login(&connection, door)).catch_unwind();
    let evictable = async {
        tokio::select! {
            biased;
            // Nobody is evicted who has logged in.
            _ = connection.permit.evicted() => Err(Outcome::Evicted),
            logged_in = login => logged_in.unwrap_or(Err(Outcome::Panicked)),
        }
    };
    // Boxed: a negotiation is many times the size of a session, and gone when the session begins.
    let (outcome, left) = match Box::pin(evictable).await {
        Ok(logged_in) => Box::pin(serve(&connection, logged_in, door)).await,
        Err(outcome) => {
            // It goes on waiting where its client did not get as far as having it.
            let resumed = connection.resumed.take();
            let left = match resumed {
                Some(session) => waiting(&world, session).await,
                None => Left::Nothing(Vec::new()),
            };
            (outcome, left)
        }
    };
    count(&world, &outcome);
    tracing::debug!(%peer, outcome = outcome.name(), "a connection ended");
    let claims = connection.held.take();
    let closing = &outcome;
    let goodbye = async move {
        let _ = AssertUnwindSafe(connection.close(closing)).catch_unwind().await;
        // The socket and its place are free, whatever becomes of the session.
        drop(connection);
    };
    let cleanup = async {
        match left {
            Left::Nothing(unwritten) => take_back(&world, claims, &outcome, unwritten).await,
            Left::Session(session, held) => {
                let waiting = outliving::wait(&world, session, held, &outcome);
                if AssertUnwindSafe(Box::pin(waiting)).catch_unwind().await.is_err() {
                    world.counters.panics.add(1);
                }
            }
        }
    };
    // Boxed: this is done once, and would be carried along by every idle session.
    let _ = Box::pin(futures::future::join(goodbye, cleanup)).await;
}

/// What is left of a session when its connection ends.
enum Left {
    /// What was taken from its mailbox and not written.
    Nothing(Vec<Delivery>),
    /// All but the connection, and how it is ordered to end.
    Session(Box<Outliving>, (Rc<Life>, Addr<Session>, Arc<Yield>)),
}

/// A session that has an actor and a line in the table again, and no connection.
async fn waiting(world: &World, session: Box<Outliving>) -> Left {
    let life = Rc::new(Life::default());
    let actor = Session::start(life.clone());
    let yielding = Arc::new(Yield::default());
    yielding.allow();
    Box::pin(outliving::line_up(world, &session, &actor, &yielding)).await;
    Left::Session(session, (life, actor, yielding))
}

/// Lets a proxy say whom it speaks for; who that is counts from here on.
async fn introduce(world: &Arc<World>, mut guest: Guest) -> Result<Guest, Outcome> {
    if !guest.proxied {
        return Ok(guest);
    }
    let header = Box::pin(proxy::origin(&mut guest.socket, world.config.limits.proxy_header()));
    let origin = tokio::select! {
        biased;
        _ = guest.permit.evicted() => return Err(Outcome::Evicted),
        _ = world.closing() => return Err(Outcome::Silent),
        origin = header => origin,
    };
    match origin {
        Some(Origin::Client(client)) => guest.peer = client,
        Some(Origin::Itself) => {}
        None => {
            world.counters.proxy_failures.add(1);
            tracing::debug!(peer = %guest.peer, "a proxy did not say whom it speaks for");
            return Err(Outcome::NoProxy);
        }
    }
    guest.permit.is_from(guest.peer.ip(), Instant::now()).map_err(|why| {
        listener::refuse(world, guest.peer, why);
        Outcome::Refused
    })?;
    Ok(guest)
}

fn count(world: &World, outcome: &Outcome) {
    world.counters.end(outcome.name());
    if *outcome == Outcome::Evicted {
        world.counters.evicted.add(1);
    }
    if *outcome == Outcome::Panicked {
        world.counters.panics.add(1);
        tracing::error!("a panic ended a session");
    }
}

/// Carries a bound session to the end of its connection: why that ended, and what is left.
async fn serve(connection: &Rc<Connection>, logged_in: LoggedIn, door: Door) -> (Outcome, Left) {
    let LoggedIn { arrived, reader, input, mechanism } = logged_in;
    let world = &connection.world;
    let life = Rc::new(Life::default());
    let actor = Session::start(life.clone());
    let tls = connection.wire.tls(login::tls_version);
    let mut facts = Facts { peer: connection.peer, since: SystemTime::now(), tls, mechanism };
    let (view, mut post) = match arrived {
        Arrived::Bound(view, mailbox) => (view, Post::new(mailbox)),
        Arrived::Resumed(session) => {
            let Outliving { view, post, management, claims, facts: before } = *session;
            facts = Facts { since: before.since, mechanism: before.mechanism, ..facts };
            // XEP-0352, 5: on a new stream somebody looks.
            view.set_inactive(false);
            connection.yielding.allow();
            connection.held.inherit(claims);
            connection.management.replace(Some(management));
            (view, post)
        }
    };
    let yielding = connection.yielding.clone();
    if world.table.add(facts.entry(&view, &actor, &yielding)) {
        Box::pin(bring_back(world, &view)).await;
    }
    match connection.came_by.get() {
        CameBy::Bound => world.counters.bound.add(1),
        CameBy::Resumed => world.counters.resumed.add(1),
        CameBy::Moved => world.counters.resumed_from_peers.add(1),
    }
    let outcome = halves(connection, &view, reader, input, &mut post, &life).await;
    let outcome = match outcome {
        Outcome::Kicked => why_kicked(world, &view).await,
        Outcome::Moved(_) => Outcome::Moved(world.elsewhere(view.account().as_str(), door)),
        Outcome::CutOff(_) => Outcome::CutOff(world.elsewhere(view.account().as_str(), door)),
        outcome => outcome,
    };
    if outcome.may_flush() {
        let flush = connection::flush(connection, &view, &mut post, world.config.limits.linger());
        // What panics here is a stanza that did the same before; it goes back with the others.
        let _ = AssertUnwindSafe(Box::pin(flush)).catch_unwind().await;
    }
    let mut management = connection.management.take();
    if outcome.is_survived()
        && let Some(management) = management.take_if(|managed| managed.resumption.is_some())
    {
        let claims = connection.held.take();
        let session = Outliving { view, post, management, claims, facts };
        return (outcome, Left::Session(Box::new(session), (life, actor, yielding)));
    }
    yielding.end();
    // No address of the actor is left behind the table's: a lost message ends it as well.
    let _ = actor.try_send(Ended);
    (outcome, Left::Nothing(post.into_unwritten(management.as_deref_mut())))
}

/// Brings back a session that was being bound while the others were: its row went with an incarnation that has
/// ended, before it sent anything.
pub(crate) async fn bring_back(world: &World, view: &SessionView) {
    world.serving().await;
    let order = match world.claims.resync(vec![start::living(view)]).await {
        Ok(taken) if taken.is_empty() => return,
        Ok(_) => Order::Displaced,
        Err(error) => {
            tracing::warn!(session = %view.jid(), %error, "failed to bring a new session back");
            Order::Stop
        }
    };
    world.table.order(view.sid(), order);
}

/// Whoever disables or removes an account marks it first: the order to go needs no reason of its own.
pub(crate) async fn why_kicked(world: &World, view: &SessionView) -> Outcome {
    match timeout(LOOK, world.accounts.state(view.account().as_str())).await {
        Ok(Ok(Some(AccountState::Disabled))) => Outcome::Disabled,
        Ok(Ok(Some(AccountState::Leaving) | None)) => Outcome::Removed,
        Ok(Ok(Some(AccountState::Open)) | Err(_)) | Err(_) => Outcome::Kicked,
    }
}

/// Runs both halves of the connection until one of them or an order ends the session.
async fn halves(
    connection: &Connection,
    view: &Arc<SessionView>,
    reader: Box<stream::Reader>,
    input: bytes::BytesMut,
    post: &mut Post,
    life: &Life,
) -> Outcome {
    let inbound = AssertUnwindSafe(connection::inbound(connection, view, reader, input)).catch_unwind();
    let outbound = AssertUnwindSafe(connection::outbound(connection, view, post)).catch_unwind();
    tokio::pin!(inbound);
    let ended = tokio::select! {
        biased;
        outcome = parted(connection, life) => outcome,
        outcome = outbound => outcome.unwrap_or(Outcome::Panicked),
        outcome = &mut inbound => return outcome.unwrap_or(Outcome::Panicked),
    };
    // What was read was accepted: it goes its way, but for a session that no longer has its address.
    connection.set_pace(match ended {
        Outcome::Gone | Outcome::Stalled | Outcome::Overflowed => Pace::Finish,
        Outcome::Stopping | Outcome::Moved(_) => Pace::Finish,
        _ => Pace::Stop,
    });
    let bound = if hurries(&connection.world, &ended) { FINISH_STOPPING } else { FINISH };
    match timeout(bound, finish(connection, inbound)).await {
        Ok(Some(Outcome::Panicked)) => Outcome::Panicked,
        _ => ended,
    }
}

/// Waits for the order to end. A session that is moved goes on meanwhile until its route is taken back and what was
/// on its way to it has come: all that is sent later finds its next session, behind what this one was given.
async fn parted(connection: &Connection, life: &Life) -> Outcome {
    let outcome = life.ended().await;
    if matches!(outcome, Outcome::Moved(_))
        && !connection.is_resumable()
        && let Some(claim) = connection.held.given()
        && matches!(timeout(LEAVE, unbind(&connection.world, &claim)).await, Ok(true))
    {
        connection.held.freed();
        sleep(STRAGGLERS).await;
    }
    outcome
}

/// Whether the node ends soon with the session: nobody waits long then.
fn hurries(world: &World, outcome: &Outcome) -> bool {
    *outcome == Outcome::Stopping || matches!(outcome, Outcome::Moved(_)) && world.is_ending()
}

/// Lets the inbound half come to a place where it holds nothing; the outcome if it came to its end.
async fn finish<F, E>(connection: &Connection, mut inbound: Pin<&mut F>) -> Option<Outcome>
where
    F: Future<Output = Result<Outcome, E>>,
{
    poll_fn(|cx| {
        // Behind the gate of a fenced node it holds what nobody has accepted yet.
        let is_held_up = || connection.fenced.get() && connection.pace.get() == Pace::Stop;
        if !connection.busy.get() || is_held_up() {
            return Poll::Ready(None);
        }
        match inbound.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome.unwrap_or(Outcome::Panicked))),
            Poll::Pending if !connection.busy.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Takes back what the client had: its route, its mailbox, its presence.
pub(crate) async fn take_back(
    world: &Arc<World>,
    claims: Vec<Claim>,
    outcome: &Outcome,
    unwritten: Vec<Delivery>,
) {
    let mut unwritten = Some(unwritten);
    for claim in claims {
        world.table.remove(claim.sid);
        match outcome {
            // Its route is gone already, or goes with the incarnation of this node.
            Outcome::Displaced | Outcome::CutOff(_) => {}
            _ if claim.freed => {}
            _ if hurries(world, outcome) => {
                let _ = timeout(LEAVE, unbind(world, &claim)).await;
            }
            _ if !unbind(world, &claim).await => {
                actix_rt::spawn(unbind_again(world.clone(), claim.clone()));
            }
            _ => {}
        }
        let view = &claim.view;
        if !claim.bound {
            world.router.close(view, Vec::new());
            continue;
        }
        world.router.close(view, unwritten.take().unwrap_or_default());
        if *outcome == Outcome::Displaced && succeeded(world, view) {
            // The contacts see the successor under the same address: it must not seem to leave.
            view.set_presence(None);
        }
        if *outcome == Outcome::Removed {
            // Whoever removes the account tells its contacts: from here they may be unknown by now.
            view.set_presence(None);
        }
        let why = if outcome.is_clean() { Why::Closed } else { Why::Lost };
        let event = SessionEvent::Closed { session: view.clone(), why };
        let announced = AssertUnwindSafe(world.services.announce(event)).catch_unwind();
        let announced = match outcome {
            _ if hurries(world, outcome) => timeout(LEAVE, announced).await.unwrap_or(Ok(())),
            _ => announced.await,
        };
        if announced.is_err() {
            world.counters.panics.add(1);
        }
    }
}

/// Whether another session is available under the very address of this one.
fn succeeded(world: &World, view: &SessionView) -> bool {
    let online = world.services.online(view.account());
    online.iter().any(|resource| resource.jid == *view.jid() && resource.priority.is_some())
}

async fn unbind(world: &World, claim: &Claim) -> bool {
    let unbound = world.claims.unbind(&claim.jid, cluster::Sid(claim.sid.0)).await;
    unbound
        .inspect_err(|error| tracing::warn!(jid = %claim.jid, %error, "failed to take a route back"))
        .is_ok()
}

/// Tries until the route is gone: by itself, or with this node's incarnation when the lease is lost.
async fn unbind_again(world: Arc<World>, claim: Claim) {
    let (attempts, pause) = UNBIND_AGAIN;
    for _ in 0..attempts {
        sleep(pause).await;
        if !world.claims.is_serving() || unbind(&world, &claim).await {
            return;
        }
    }
    tracing::error!(jid = %claim.jid, "a route without a session stays behind");
}

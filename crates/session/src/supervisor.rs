//! Watches over one client from accept to the end, however it comes, and leaves the house as it was before.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use hooks::{SessionEvent, SessionView, Why};
use router::{Delivery, Mailbox};

use crate::connection::{self, Connection};
use crate::listener::Guest;
use crate::login::{self, LoggedIn};
use crate::outcome::Outcome;
use crate::session::{Ended, Life, Session};
use crate::table::Entry;
use crate::world::World;

/// Serves one client. It cannot panic: what panics inside ends this client only.
pub(crate) async fn supervise(world: Arc<World>, guest: Guest) {
    let Guest { socket, peer, door, permit } = guest;
    let connection = Rc::new(Connection::new(world.clone(), socket, peer));
    // Boxed: a negotiation is many times the size of a session, and gone when the session begins.
    let login = Box::pin(login::login(&connection, door));
    let outcome = match AssertUnwindSafe(login).catch_unwind().await {
        Ok(Ok(logged_in)) => serve(&connection, logged_in).await,
        Ok(Err(outcome)) => outcome,
        Err(_) => Outcome::Panicked,
    };
    count(&world, &outcome);
    tracing::debug!(%peer, outcome = outcome.name(), "a connection ended");
    // Nothing that panics is expected here, but a permit must come back whatever happens.
    let _ = AssertUnwindSafe(Box::pin(connection.close(&outcome))).catch_unwind().await;
    drop(permit);
}

/// Carries a bound session to its end, and takes back all that it had.
async fn serve(connection: &Rc<Connection>, logged_in: LoggedIn) -> Outcome {
    let LoggedIn { view, mailbox, reader, buffer, mechanism } = logged_in;
    let world = &connection.world;
    let life = Rc::new(Life::default());
    let actor = Session::start(life.clone());
    let queued = Arc::new(AtomicUsize::new(0));
    world.table.add(Entry {
        view: view.clone(),
        actor: actor.clone(),
        peer: connection.peer,
        since: SystemTime::now(),
        tls: connection.wire.tls(login::tls_version).flatten(),
        mechanism,
        queued: queued.clone(),
    });
    world.counters.bound.add(1);
    let mut post = Post::new(mailbox, queued);
    let outcome = {
        let inbound = connection::inbound(connection, &view, reader, buffer);
        let outbound = connection::outbound(connection, &view, &mut post);
        let halves = AssertUnwindSafe(async {
            tokio::select! {
                biased;
                outcome = life.ended() => outcome,
                outcome = outbound => outcome,
                outcome = inbound => outcome,
            }
        });
        halves.catch_unwind().await.unwrap_or(Outcome::Panicked)
    };
    ...
}

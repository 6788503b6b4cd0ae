//! The actor of one client: it hears the orders of the rest of the server and ends its connection.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use actix::{Actor, ActorContext, Context, Handler, Message};
use tokio::sync::Notify;

use crate::outcome::Outcome;

/// Orders that may wait. One is enough to end a session, and nobody orders anything else: an order that
/// finds the mailbox full comes after the one that ends it.
const MAILBOX: usize = 4;

/// What the rest of the server may want of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub(crate) enum Order {
    /// An operator closes it.
    Kick,
    /// Another session took its full JID.
    Displaced,
    /// The node stops: what waits is written first.
    Stop,
    /// The node drains: as `Stop`, and the client is told where to go.
    Move,
    /// The client resumes it on another connection: see [`Yield`](crate::outliving::Yield).
    Yield,
    /// The node was without its lease for too long: the session is no longer its to serve.
    CutOff,
}

/// Its connection has ended: the actor goes too.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Ended;

/// How the actor and the connection of one session tell each other that it ends. The first reason counts; but of those
/// that a session may survive, the last.
#[derive(Default)]
pub(crate) struct Life {
    outcome: RefCell<Option<Outcome>>,
    ending: Notify,
}

impl Life {
    pub(crate) fn end(&self, outcome: Outcome) {
        let mut slot = self.outcome.borrow_mut();
        if slot.as_ref().is_none_or(Outcome::is_survived) {
            *slot = Some(outcome);
        }
        drop(slot);
        self.ending.notify_one();
    }

    /// The session has survived that.
    pub(crate) fn survive(&self) {
        let mut slot = self.outcome.borrow_mut();
        if slot.as_ref().is_some_and(Outcome::is_survived) {
            *slot = None;
        }
    }

    /// Waits for the end; for one waiter.
    pub(crate) async fn ended(&self) -> Outcome {
        loop {
            if let Some(outcome) = &*self.outcome.borrow() {
                return outcome.clone();
            }
            self.ending.notified().await;
        }
    }
}

/// One bound session.
pub(crate) struct Session {
    life: Rc<Life>,
}

impl Session {
    pub(crate) fn start(life: Rc<Life>) -> actix::Addr<Session> {
        Session::create(|ctx: &mut Context<Session>| {
            ctx.set_mailbox_capacity(MAILBOX);
            Session { life }
        })
    }
}

impl Actor for Session {
    type Context = Context<Session>;
}

impl Handler<Order> for Session {
    type Result = ();

    fn handle(&mut self, order: Order, ctx: &mut Context<Session>) {
        let obeyed = catch_unwind(AssertUnwindSafe(|| {
            self.life.end(match order {
                Order::Kick => Outcome::Kicked,
                Order::Displaced => Outcome::Displaced,
                Order::Stop => Outcome::Stopping,
                Order::Move => Outcome::Moved(None),
                Order::Yield => Outcome::Yielded,
                Order::CutOff => Outcome::CutOff(None),
            });
        }));
        if obeyed.is_err() {
            ctx.stop();
        }
    }
}

impl Handler<Ended> for Session {
    type Result = ();

    fn handle(&mut self, _: Ended, ctx: &mut Context<Session>) {
        ctx.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn the_first_order_is_the_reason_of_the_end() {
        let life = Rc::new(Life::default());
        let session = Session::start(life.clone());
        session.try_send(Order::Displaced).unwrap();
        session.try_send(Order::Kick).unwrap();
        assert_eq!(life.ended().await, Outcome::Displaced);
        session.send(Ended).await.unwrap();
        assert!(!session.connected());
    }
}

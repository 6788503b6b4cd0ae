//! The mail of one session: what waits for its client, and what waits until somebody looks at it (XEP-0352).

use futures::future::BoxFuture;
use hooks::{Registry, SessionView};
use router::{Delivery, Mailbox};

use crate::management::Management;

/// The mail of one session: its mailbox, and what was taken out of it and is not written yet.
pub(crate) struct Post {
    pub mailbox: Mailbox,
    pub taken: Vec<Delivery>,
    /// What waits until somebody looks at the client, with what each is about (XEP-0352).
    held: Vec<(String, Delivery)>,
    /// What another node had for the session and hands over: older than all else.
    pub handing: Option<Handing>,
    /// The client has a new connection: what it has not acknowledged is written first.
    pub resend: bool,
}

/// What comes from the node where the session was.
pub(crate) struct Handing {
    pub node: u64,
    /// Ready when all of it is in the mailbox.
    pub all: BoxFuture<'static, ()>,
}

impl Post {
    pub(crate) fn new(mailbox: Mailbox) -> Post {
        Post { mailbox, taken: Vec::new(), held: Vec::new(), handing: None, resend: false }
    }

    /// Behind what another node hands over.
    pub(crate) fn behind(self, handing: Handing) -> Post {
        Post { handing: Some(handing), ..self }
    }

    /// Whether something waits for no reason.
    pub(crate) fn is_due(&self, view: &SessionView) -> bool {
        !self.held.is_empty() && !view.is_inactive()
    }

    /// Puts aside what can wait while nobody looks at the client, and takes up again what waits no longer.
    pub(crate) fn hold_back(&mut self, registry: &Registry, held_max: usize, view: &SessionView) {
        if !view.is_inactive() {
            if !self.held.is_empty() {
                let held = std::mem::take(&mut self.held).into_iter().map(|(_, delivery)| delivery);
                self.taken = held.chain(std::mem::take(&mut self.taken)).collect();
            }
            return;
        }
        let mut due = Vec::new();
        for delivery in std::mem::take(&mut self.taken) {
            match registry.holding(view, &delivery.stanza) {
                Some(about) => {
                    self.held.retain(|(other, _)| *other != about);
                    self.held.push((about, delivery));
                }
                None => {
                    due.extend(self.held.drain(..).map(|(_, delivery)| delivery));
                    due.push(delivery);
                }
            }
        }
        if self.held.len() > held_max {
            due.extend(self.held.drain(..).map(|(_, delivery)| delivery));
        }
        self.taken = due;
    }

    /// What was taken and not written; where the client acknowledges what it gets, what it has not.
    pub(crate) fn into_unwritten(self, management: Option<&mut Management>) -> Vec<Delivery> {
        let mut unwritten = management.map(|managed| managed.unacknowledged.take()).unwrap_or_default();
        unwritten.extend(self.held.into_iter().map(|(_, delivery)| delivery));
        unwritten.extend(self.taken);
        unwritten
    }
}

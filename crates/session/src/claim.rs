//! What one connection asked the cluster for, so that all of it can be taken back at the end.

use std::cell::RefCell;
use std::sync::Arc;

use hooks::{SessionView, Sid};
use jid::FullJid;

/// A full JID that the cluster was asked to give to one life of a session.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub jid: FullJid,
    pub sid: Sid,
    /// The session, with a mailbox from before it was bound.
    pub view: Arc<SessionView>,
    /// Whether the cluster gave it.
    pub bound: bool,
    /// Whether it was given back while the session went on.
    pub freed: bool,
}

impl Claim {
    pub(crate) fn new(view: Arc<SessionView>) -> Claim {
        Claim { jid: view.jid().clone(), sid: view.sid(), view, bound: false, freed: false }
    }
}

/// The claims of one connection.
#[derive(Default)]
pub(crate) struct Held {
    current: RefCell<Option<Claim>>,
    /// Asked for without an answer: the cluster may still give them. As many as binds may fail on a stream.
    doubtful: RefCell<Vec<Claim>>,
}

impl Held {
    /// Asked for.
    pub(crate) fn claim(&self, claim: Claim) {
        self.current.replace(Some(claim));
    }

    /// Given.
    pub(crate) fn claimed(&self, view: Arc<SessionView>) {
        if let Some(claim) = &mut *self.current.borrow_mut() {
            claim.jid = view.jid().clone();
            claim.view = view;
            claim.bound = true;
        }
    }

    /// What was given.
    pub(crate) fn given(&self) -> Option<Claim> {
        self.current.borrow().clone().filter(|claim| claim.bound)
    }

    /// Given back, although the session goes on for a moment.
    pub(crate) fn freed(&self) {
        if let Some(claim) = &mut *self.current.borrow_mut() {
            claim.freed = true;
        }
    }

    /// Refused.
    pub(crate) fn refused(&self) {
        self.current.replace(None);
    }

    /// Nobody knows.
    pub(crate) fn doubtful(&self) {
        self.doubtful.borrow_mut().extend(self.current.take());
    }

    /// Takes on what an earlier connection of the same client asked for.
    pub(crate) fn inherit(&self, mut claims: Vec<Claim>) {
        let current = claims.pop();
        self.doubtful.borrow_mut().extend(claims);
        self.current.replace(current);
    }

    /// Takes all of them.
    pub(crate) fn take(&self) -> Vec<Claim> {
        let mut all = self.doubtful.take();
        all.extend(self.current.take());
        all
    }
}

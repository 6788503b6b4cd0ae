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
    /// The session, once it was bound.
    pub view: Option<Arc<SessionView>>,
}

impl Claim {
    pub(crate) fn new(jid: FullJid, sid: Sid) -> Claim {
        Claim { jid, sid, view: None }
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
            claim.view = Some(view);
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

    /// Takes all of them.
    pub(crate) fn take(&self) -> Vec<Claim> {
        let mut all = self.doubtful.take();
        all.extend(self.current.take());
        all
    }
}

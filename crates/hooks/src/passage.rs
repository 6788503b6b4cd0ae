//! A stanza on its way past the handlers, with what they need to judge it.

use std::any::Any;
use std::sync::Arc;

use jid::BareJid;
use stanza::Stanza;
use stanza::address::same_account;

use crate::services::Services;
use crate::session::SessionView;

/// Held while a client's stanza is on its way: when the last clone is gone, the stanza counts as handled (XEP-0198, 4).
/// Whoever keeps the stanza later than it passes holds one until it is kept for good.
#[derive(Clone)]
pub struct Underway(#[expect(dead_code, reason = "its end is what counts")] Arc<dyn Any + Send + Sync>);

impl Underway {
    /// Drops `what` when the stanza is handled.
    pub fn new(what: impl Any + Send + Sync) -> Underway {
        Underway(Arc::new(what))
    }
}

impl std::fmt::Debug for Underway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Underway")
    }
}

/// A stanza on its way, on one side of it.
pub struct Passage {
    pub stanza: Stanza,
    /// The session of the sender, where the stanza was sent through this node.
    pub sender: Option<Arc<SessionView>>,
    /// Whose side this is: the sender's account on leaving, the receiver's on arriving, the
    /// addressed account on answering. `None` where the stanza is to or from a host.
    pub account: Option<BareJid>,
    pub services: Arc<dyn Services>,
    /// On arriving, as far as this node knows: no session may have this message (RFC 6121, 8.5.2.1.1
    /// and 8.5.3.2.1), or, for other stanzas, none is available.
    pub offline: bool,
    /// On arriving: the handlers have seen this very stanza before, and it comes once more because the session
    /// that it was given to has gone; or it was sent past them (`How::Direct`), and nobody is there for it.
    pub again: bool,
    /// On arriving: nobody is to keep this message for a user who is away. Whoever would keep it passes it, and
    /// the rules answer its sender as if nobody kept messages (RFC 6121, 8.5.2.2.1).
    pub fleeting: bool,
    /// On leaving: the id under which the archive of the sender's account has it (XEP-0359), for its other devices.
    pub archived: Option<Box<str>>,
    /// Whose client waits to hear that the stanza is handled; `None`: nobody's.
    pub underway: Option<Underway>,
}

impl Passage {
    pub fn new(stanza: Stanza, services: Arc<dyn Services>) -> Passage {
        Passage {
            stanza,
            sender: None,
            account: None,
            services,
            offline: false,
            again: false,
            fleeting: false,
            archived: None,
            underway: None,
        }
    }

    pub fn with_sender(mut self, sender: Arc<SessionView>) -> Passage {
        self.sender = Some(sender);
        self
    }

    pub fn with_account(mut self, account: BareJid) -> Passage {
        self.account = Some(account);
        self
    }

    /// Whether the stanza comes from the very account whose side this is.
    pub fn is_own(&self) -> bool {
        match (&self.account, &self.stanza.head.from) {
            (Some(account), Some(from)) => same_account(from, account),
            _ => false,
        }
    }

    /// The host whose switches apply: the account's domain, or else the domain in `to`.
    pub fn host(&self) -> Option<&str> {
        match &self.account {
            Some(account) => Some(account.domain().as_str()),
            None => self.stanza.head.to.as_ref().map(|to| to.domain().as_str()),
        }
    }
}

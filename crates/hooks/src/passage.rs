//! A stanza on its way past the handlers, with what they need to judge it.

use std::sync::Arc;

use jid::BareJid;
use stanza::Stanza;
use stanza::address::same_account;

use crate::services::Services;
use crate::session::SessionView;

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
    /// On leaving: the id under which the archive of the sender's account has it (XEP-0359), for its other devices.
    pub archived: Option<Box<str>>,
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
            archived: None,
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

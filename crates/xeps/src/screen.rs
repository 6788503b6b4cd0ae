//! Who may hear of a session: neither blocked by its account, nor denied it by the privacy list that applies to it.

use jid::{BareJid, Jid};

use crate::blocklists::Blocklist;
use crate::privacylists::{Flow, Privacy};
use crate::rosters::Roster;

/// What stands between one session and others.
pub struct Screen<'a> {
    pub account: &'a BareJid,
    pub resource: &'a str,
    pub roster: &'a Roster,
    pub blocked: &'a Blocklist,
    pub privacy: &'a Privacy,
}

impl Screen<'_> {
    /// Whether such a stanza may go to `other`.
    pub fn lets(&self, flow: Flow, other: &Jid) -> bool {
        !self.blocked.blocks(self.account, other)
            && !self.privacy.denies(Some(self.resource), flow, self.account, other, self.roster)
    }
}

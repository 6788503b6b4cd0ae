//! An end that comes late: presence of a session that is gone, behind that of its successor under the same address.
//!
//! The two come from two nodes, so nothing orders them. Whoever hears the end last would believe it for good; so where
//! the table says that somebody has that address and is available, the address is asked again.

use std::sync::{Arc, Weak};

use cluster::NodeId;
use hooks::How;
use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use stanza::Stanza;

use crate::router::Router;
use crate::transit::Transit;

/// Ends that may wait for a newer table; further ones are believed.
const WAITING_MAX: usize = 10_000;

/// Ends to look at again, as soon as the table is as new as they are.
#[derive(Default)]
pub(crate) struct LateEnds(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// Who was told, and of whom.
    ends: Vec<(BareJid, FullJid)>,
    is_asked: bool,
}

impl Router {
    /// The address of a session that is said to have ended, where the table here shows it as available at another node
    /// than the one that says so. Nearly always the table does not show it any more, or shows it there.
    pub(crate) fn contradicted(&self, transit: &Transit) -> Option<FullJid> {
        let jid = FullJid::new(transit.stanza.head.from.as_ref()?.as_str()).ok()?;
        let said_by = transit.receipt.node().map_or_else(|| self.whereabouts.me().0, NodeId);
        let rows = self.whereabouts.users(&jid.to_bare());
        let is_there = rows.iter().any(|row| row.jid == jid && row.shown().is_some() && row.node != said_by);
        is_there.then_some(jid)
    }

    /// Asks the address again for `account`, which was told of that end, if a newer table still shows it.
    pub(crate) fn ask_again(&self, account: &BareJid, jid: FullJid) {
        let mut waiting = self.late_ends.0.lock();
        if waiting.ends.len() < WAITING_MAX {
            waiting.ends.push((account.clone(), jid));
        }
        if !std::mem::replace(&mut waiting.is_asked, true) {
            self.runtime.spawn(ask(self.myself.clone()));
        }
    }
}

/// One question to the leader is enough for all that wait.
async fn ask(router: Weak<Router>) {
    loop {
        let Some(router) = router.upgrade() else { return };
        let ends = {
            let mut waiting = router.late_ends.0.lock();
            if waiting.ends.is_empty() {
                waiting.is_asked = false;
                return;
            }
            std::mem::take(&mut waiting.ends)
        };
        if let Err(error) = router.whereabouts.barrier().await {
            // Without a lease nobody here is shown anything; whoever comes back asks all of their contacts.
            tracing::debug!(%error, ends = ends.len(), "cannot look again at ends that were told");
        }
        for (account, jid) in ends {
            again(&router, account, jid).await;
        }
    }
}

async fn again(router: &Arc<Router>, account: BareJid, jid: FullJid) {
    let rows = router.whereabouts.users(&jid.to_bare());
    if rows.iter().any(|row| row.jid == jid && row.shown().is_some()) {
        let probe = Stanza::presence(Some("probe")).with_from(Jid::from(account)).with_to(jid.to_bare());
        router.services().route(probe, How::Normal).await;
    }
}

//! A stanza on its way through this node, with what is known of its way so far.

use std::sync::Arc;

use cluster::Sid;
use hooks::{SessionView, Underway};
use stanza::Stanza;
use tokio::time::Instant;

use crate::mailboxes::Delivery;
use crate::receipt::Receipt;

/// How far a stanza has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The arriving handlers of the receiver have not seen it.
    Fresh,
    /// Presence that every node with a session of the account gets: this node is one of them.
    Here,
    /// The arriving handlers have seen it, or are not to see it.
    Past,
}

/// A stanza between its entry into the router and its end.
#[derive(Debug)]
pub(crate) struct Transit {
    /// The stanza. `to` is set, except on the first step.
    pub stanza: Stanza,
    /// The session that said it, if it is one of this node.
    pub sender: Option<Arc<SessionView>>,
    /// How far it has come.
    pub stage: Stage,
    /// Who wants to know when it is settled.
    pub receipt: Receipt,
    /// Node boundaries that it has crossed.
    pub hops: u8,
    /// How often a session or node that was chosen for it turned out not to be there.
    pub attempts: u8,
    /// Sessions that turned out not to be there.
    pub avoid: Vec<Sid>,
    /// The one session that another node wants it delivered to; if it has gone, the rules decide again.
    pub only: Option<Sid>,
    /// The table must be at least this new before it is looked at again.
    pub wait_index: Option<u64>,
    /// A read barrier was awaited for it, or tried: the table is as new as it needs to be.
    pub looked: bool,
    /// Other sessions of the account got a copy.
    pub one_of_several: bool,
    /// Until when it waits for what is older and comes back from another node.
    pub behind_until: Option<Instant>,
    /// Since when it waits in the queue of its receiver.
    pub queued: Option<Instant>,
    /// It was on its way already and came back: it waits among those, in their order.
    pub came_back: bool,
    /// It has waited for a session that was away, see [`crate::away`].
    pub was_away: bool,
    /// Its session went to another node, and it goes after it.
    pub handed_over: bool,
    /// It waited behind what went before it, and follows to the other node.
    pub follows: bool,
    /// Whose client waits to hear that it is handled (XEP-0198, 4).
    pub underway: Option<Underway>,
}

impl Transit {
    pub(crate) fn new(stanza: Stanza, stage: Stage) -> Transit {
        Transit {
            stanza,
            sender: None,
            stage,
            receipt: Receipt::none(),
            hops: 0,
            attempts: 0,
            avoid: Vec::new(),
            only: None,
            wait_index: None,
            looked: false,
            one_of_several: false,
            behind_until: None,
            queued: None,
            came_back: false,
            was_away: false,
            handed_over: false,
            follows: false,
            underway: None,
        }
    }

    /// A delivery that did not reach its client. The arriving handlers have seen it.
    pub(crate) fn returned(mut delivery: Delivery) -> Transit {
        delivery.stanza_mut();
        let (only, underway) = delivery.successor.map(|next| (next.sid, next.underway)).unzip();
        Transit {
            receipt: delivery.receipt,
            attempts: delivery.attempts,
            hops: delivery.hops,
            one_of_several: delivery.one_of_several,
            handed_over: only.is_some(),
            only,
            underway,
            ..Transit::new(Arc::unwrap_or_clone(delivery.stanza), Stage::Past)
        }
    }
}

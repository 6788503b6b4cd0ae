//! [XEP-0506]: No-reply JIDs. A host takes no chat messages, and says so: clients need not offer to write one.
//!
//! Nothing is refused here: what comes all the same gets the error that any message to a host gets (RFC 6121, 8.5.1).
//!
//! [XEP-0506]: https://xmpp.org/extensions/xep-0506.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Status, Xep};

const NS: &str = "urn:xmpp:noreply:0";

/// Says that a host takes no chat messages.
pub struct NoReply;

impl Module for NoReply {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 506,
                title: "No-reply JIDs",
                version: "0.1.0",
                status: Status::Experimental,
            }],
            host_features: &[NS],
            ..Card::new("no_reply", "Says that a host takes no chat messages.")
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

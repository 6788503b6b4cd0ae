//! [XEP-0386]: Bind 2. A session is bound as a part of the login, with all that its client wants enabled.
//!
//! This module only says where that is possible: `stream` makes the resource, the same one for the same client, and other
//! modules have their part by the hook `Binding`. Left out: what waits for the account and is not archived is sent as to
//! any other client, so that nothing is lost.
//!
//! [XEP-0386]: https://xmpp.org/extensions/xep-0386.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Status, Xep};

/// Lets clients that log in by XEP-0388 be bound with it.
pub struct Bind2;

impl Module for Bind2 {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 386, title: "Bind 2", version: "1.1.0", status: Status::Stable }],
            ..Card::new(
                "bind2",
                "Makes the session of a client as it logs in, with what the client wants enabled; needs `sasl2`.",
            )
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

//! [XEP-0388]: Extensible SASL Profile. A client logs in, goes on with its session or has a new one, in one step.
//!
//! This module only says where such logins are possible: the crate `stream` speaks the profile beside the old one, with
//! the same mechanisms, bindings to the channel ([XEP-0440]) and protection against downgrades ([XEP-0474]), which hold
//! for both. Left out: tasks behind a login (`<continue/>`) but upgrades of keys (module `sasl_upgrade`), as no other is asked
//! of anybody; what a client says of its software and device is told to nobody; white space that a client sends during a
//! login is passed over; a name in the header of another host fails with the login.
//!
//! [XEP-0388]: https://xmpp.org/extensions/xep-0388.html
//! [XEP-0440]: https://xmpp.org/extensions/xep-0440.html
//! [XEP-0474]: https://xmpp.org/extensions/xep-0474.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Status, Xep};

/// Lets clients log in by the extensible profile.
pub struct Sasl2;

impl Module for Sasl2 {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep {
                    number: 388,
                    title: "Extensible SASL Profile",
                    version: "1.0.4",
                    status: Status::Stable,
                },
                Xep {
                    number: 440,
                    title: "SASL Channel-Binding Type Capability",
                    version: "1.0.0",
                    status: Status::Stable,
                },
                Xep {
                    number: 474,
                    title: "SASL SCRAM Downgrade Protection",
                    version: "0.5.0",
                    status: Status::Experimental,
                },
            ],
            ..Card::new("sasl2", "Lets clients log in, and have their session made or resumed, in one step.")
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

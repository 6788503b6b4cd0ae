//! [XEP-0480]: SASL Upgrade Tasks. An account that came without its password gets the keys that it lacks, from its client.
//!
//! This module only says where that is possible: the crate `stream` speaks it, in logins of [XEP-0388]. The same upgrades are
//! offered to everybody, as the features come before the account is known; a client is asked for one where it wants it, the
//! account has no keys of that hash, and the login was by SCRAM: a token or a certificate does not show that its holder
//! knows the password, and by PLAIN the server has it and makes the keys itself. Upgrades that are asked for and not needed
//! are passed over. Left out: upgrades to anything but SCRAM.
//!
//! [XEP-0388]: https://xmpp.org/extensions/xep-0388.html
//! [XEP-0480]: https://xmpp.org/extensions/xep-0480.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Status, Xep};

/// Lets clients give what keys are made of.
pub struct SaslUpgrade;

impl Module for SaslUpgrade {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 480,
                title: "SASL Upgrade Tasks",
                version: "0.2.0",
                status: Status::Experimental,
            }],
            ..Card::new("sasl_upgrade", "Gives accounts from other servers the keys that these did not have.")
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

//! [XEP-0198]: Stream Management. Sessions outlive their connections, and nothing that a client has not had is lost.
//!
//! This module only offers it: sessions themselves count, keep and resume, at whatever node the client comes back. Left
//! out: `location` is not given, as a session follows its client to any node; streams between servers, as there are none.
//!
//! [XEP-0198]: https://xmpp.org/extensions/xep-0198.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Offer, Offering, Services, Status, Xep};
use minidom::Element;

use crate::xml::element;

const NS: &str = "urn:xmpp:sm:3";

/// Offers to clients that they acknowledge what they get, and come back to their sessions.
pub struct Management;

impl Module for Management {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 198,
                title: "Stream Management",
                version: "1.6.3",
                status: Status::Stable,
            }],
            ..Card::new(
                "management",
                "Lets clients acknowledge what they get, and come back to a session whose connection was lost.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.offering(self);
    }
}

impl Offering for Management {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        match offer.account {
            // Section 2: where stanzas can be sent soon.
            Some(_) => vec![element("sm", NS)],
            None => Vec::new(),
        }
    }
}

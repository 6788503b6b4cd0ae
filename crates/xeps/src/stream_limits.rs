//! [XEP-0478]: Stream Limits Advertisement. A client learns what it may send before it has sent too much.
//!
//! Left out: streams between servers, as there are none; for how long a client may be silent before it has logged in, as it
//! may not take longer for all of that.
//!
//! [XEP-0478]: https://xmpp.org/extensions/xep-0478.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Offer, Offering, Services, Status, Xep};
use minidom::Element;

use crate::xml::{Build, element};

const NS: &str = "urn:xmpp:stream-limits:0";

/// Says how much a stanza may be, and how long a client may be silent.
pub struct StreamLimits;

impl Module for StreamLimits {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 478,
                title: "Stream Limits Advertisement",
                version: "0.2.0",
                status: Status::Experimental,
            }],
            ..Card::new(
                "stream_limits",
                "Tells clients how large a stanza may be, and how long they may be silent.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.offering(self);
    }
}

impl Offering for StreamLimits {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        let number = |name, value: String| element(name, NS).text_node(&value);
        let limits = element("limits", NS).child(number("max-bytes", offer.stanza_bytes.to_string()));
        vec![match offer.idle_s {
            Some(seconds) => limits.child(number("idle-seconds", seconds.to_string())),
            None => limits,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_on_a_stream_is_said() {
        let account = jid::BareJid::new("alice@localhost").unwrap();
        let offer = |account, stanza_bytes, idle_s| Offer {
            host: "localhost".into(),
            account,
            secure: true,
            stanza_bytes,
            idle_s,
        };
        let services = hooks::bench::Bench::new(&["localhost"], Vec::new).services();
        let said =
            |offer| StreamLimits.offering(&offer, &*services).iter().map(String::from).collect::<String>();
        assert_eq!(
            said(offer(Some(account), 10_000, Some(1_800))),
            "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>10000</max-bytes>\
             <idle-seconds>1800</idle-seconds></limits>"
        );
        assert_eq!(
            said(offer(None, 8_192, None)),
            "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>8192</max-bytes></limits>"
        );
    }
}

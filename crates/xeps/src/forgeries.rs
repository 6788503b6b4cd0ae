//! [XEP-0359]: Unique and Stable Stanza IDs. What only we may say of a stanza is taken out of what others send.

use std::sync::Arc;

use hooks::{Answer, Arriving, Card, Hooks, Leaving, Module, Passage, Services, Status, Step, Xep};
use minidom::Element;
use stanza::{Kind, Stanza, address};

use crate::carbons;

pub const NAME: &str = "forgeries";
const DELAY: &str = "urn:xmpp:delay";
pub const STANZA_ID: &str = "urn:xmpp:sid:0";

/// Takes out delays and ids that name one of our hosts or accounts, and copies that only an account's own server
/// makes (XEP-0280): all of them.
pub struct Forgeries;

impl Module for Forgeries {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 359,
                title: "Unique and Stable Stanza IDs",
                version: "0.7.0",
                status: Status::Experimental,
            }],
            host_features: &[STANZA_ID],
            account_features: &[STANZA_ID],
            ..Card::new(
                NAME,
                "Takes times, ids and copies that claim to be the server's out of what others send.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Alter, self.clone());
        hooks.arriving(Step::Alter, self);
    }
}

impl Leaving for Forgeries {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let services = passage.services.clone();
        clean(&mut passage.stanza, &*services);
        Answer::PASS
    }
}

impl Arriving for Forgeries {
    /// What comes from elsewhere; what comes from our own users was cleaned as it left them.
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let from = passage.stanza.head.from.as_ref().map(|from| from.domain().as_str());
        // What has come before was cleaned then, and may have ids of ours by now.
        if !passage.again && from.is_some_and(|from| !passage.services.is_local_host(from)) {
            let services = passage.services.clone();
            clean(&mut passage.stanza, &*services);
        }
        Answer::PASS
    }
}

fn clean(stanza: &mut Stanza, services: &dyn Services) {
    // Nearly every stanza ends here.
    if stanza.head.kind == Kind::Iq || !stanza.has_named(&["delay", "stanza-id", "sent", "received"]) {
        return;
    }
    stanza.remove_children(|child| is_forged(child, services));
}

fn is_forged(child: &Element, services: &dyn Services) -> bool {
    let names_us = |attribute| {
        let named = child.attr(attribute).and_then(|jid| address::jid(jid).ok());
        named.is_some_and(|jid| services.is_local_host(jid.domain().as_str()))
    };
    // XEP-0203, section 2, and XEP-0359, section 3: `from` and `by` say which server or account it was.
    (child.is("delay", DELAY) && names_us("from"))
        || (child.is("stanza-id", STANZA_ID) && names_us("by"))
        // XEP-0280, section 12: a copy comes from the account that it is for, and from nobody else. Clients were seen
        // to believe others.
        || child.is("sent", carbons::NS)
        || child.is("received", carbons::NS)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::Bench;

    use super::*;

    #[test]
    fn what_claims_to_be_ours_is_taken_out_and_the_rest_stays() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Forgeries)]);
            let alice = bench.login("alice@localhost/phone").await;
            let bob = bench.login("bob@localhost/phone").await;
            let forged = "<delay xmlns='urn:xmpp:delay' from='localhost' stamp='2002-09-10T23:41:07Z'/>\
                          <delay xmlns='urn:xmpp:d&#101;lay' from='LOCALHOST' stamp='2002-09-10T23:41:07Z'/>\
                          <stanza-id xmlns='urn:xmpp:sid:0' by='bob@localhost' id='1'/>\
                          <stanza-id xmlns='urn:xmpp:sid:0' by='localhost' id='2'/>\
                          <c:sent xmlns:c='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'/></c:sent>\
                          <received xmlns='urn:xmpp:c&#97;rbons:2'/>";
            let honest = "<body>delay, stanza-id</body>\
                          <delay xmlns='urn:xmpp:delay' from='elsewhere.example' stamp='2002-09-10T23:41:07Z'/>\
                          <stanza-id xmlns='urn:xmpp:sid:0' by='room@elsewhere.example' id='3'/>\
                          <origin-id xmlns='urn:xmpp:sid:0' id='4'/>\
                          <received xmlns='urn:xmpp:receipts' id='5'/>";
            let elsewhere = "from='eve@elsewhere.example/x'";
            bench
                .route(&format!("<message to='bob@localhost/phone' {elsewhere}>{forged}{honest}</message>"))
                .await;
            assert_eq!(
                bob.hears(),
                [format!("<message to='bob@localhost/phone' {elsewhere}>{honest}</message>")]
            );
            alice.send(&format!("<message to='bob@localhost/phone'>{forged}{honest}</message>")).await;
            alice.send(&format!("<presence to='bob@localhost/phone'>{forged}</presence>")).await;
            assert_eq!(
                bob.hears(),
                [
                    format!(
                        "<message to='bob@localhost/phone' from='alice@localhost/phone'>{honest}</message>"
                    ),
                    "<presence to='bob@localhost/phone' from='alice@localhost/phone'/>".to_owned(),
                ]
            );
        });
    }
}

//! [XEP-0203] and [XEP-0359]: what only a server may say of a stanza is taken out of what clients send.

use std::sync::Arc;

use hooks::{Answer, Card, Hooks, Leaving, Module, Passage, Services, Step};
use minidom::Element;
use stanza::{Kind, address};

const NAME: &str = "forgeries";
const DELAY: &str = "urn:xmpp:delay";
const STANZA_ID: &str = "urn:xmpp:sid:0";

/// Takes out delays and ids that name one of our hosts, all of them.
pub struct Forgeries;

impl Module for Forgeries {
    fn card(&self) -> Card {
        Card::new(NAME, "Takes times and ids that claim to be the server's out of what clients send.")
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Alter, self);
    }
}

impl Leaving for Forgeries {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        // An element's name cannot be written in another way, a namespace can. Nearly every stanza ends here.
        let body = passage.stanza.body();
        let is_iq = passage.stanza.head.kind == Kind::Iq;
        let suspicious = |body: &str| body.contains("delay") || body.contains("stanza-id");
        if is_iq || !std::str::from_utf8(body).is_ok_and(suspicious) {
            return Answer::PASS;
        }
        let services = passage.services.clone();
        passage.stanza.remove_children(|child| is_forged(child, &*services));
        Answer::PASS
    }
}

fn is_forged(child: &Element, services: &dyn Services) -> bool {
    let names_us = |attribute| {
        let named = child.attr(attribute).and_then(|jid| address::jid(jid).ok());
        named.is_some_and(|jid| services.is_local_host(jid.domain().as_str()))
    };
    // XEP-0203, section 2, and XEP-0359, section 3: `from` and `by` say which server or account it was.
    (child.is("delay", DELAY) && names_us("from")) || (child.is("stanza-id", STANZA_ID) && names_us("by"))
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
                          <stanza-id xmlns='urn:xmpp:sid:0' by='localhost' id='2'/>";
            let honest = "<body>delay, stanza-id</body>\
                          <delay xmlns='urn:xmpp:delay' from='elsewhere.example' stamp='2002-09-10T23:41:07Z'/>\
                          <stanza-id xmlns='urn:xmpp:sid:0' by='room@elsewhere.example' id='3'/>\
                          <origin-id xmlns='urn:xmpp:sid:0' id='4'/>";
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

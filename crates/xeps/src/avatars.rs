//! [XEP-0398]: User Avatar to vCard-Based Avatars Conversion. A user has one picture, and their presence speaks of it.
//!
//! The picture itself is copied by who keeps the other one: `pep` and `vcard`. This module has the presence of users speak
//! of it (section 4). Left out: presence that was sent before the picture changed is not sent anew; a picture of nodes that
//! fewer may see than the vCard is not copied (section 7).
//!
//! [XEP-0398]: https://xmpp.org/extensions/xep-0398.html

use std::sync::Arc;

use hooks::{
    Answer, Arriving, Card, Delivering, Following, Forgetting, Hooks, Leaving, Module, Passage, Services,
    SessionEvent, SessionView, Status, Step, Verdict, Xep,
};
use jid::BareJid;
use stanza::{Kind, Stanza};

use crate::cache::is_change;
use crate::pep;
use crate::pep::avatars::CHANGED;
use crate::xml::{Build, element};

const NAME: &str = "avatars";
const CONVERSION: &str = "urn:xmpp:pep-vcard-conversion:0";
const UPDATE: &str = "vcard-temp:x:update";

/// Has presence speak of pictures.
pub struct Avatars {
    nodes: Arc<pep::Core>,
}

impl Avatars {
    pub fn new(nodes: Arc<pep::Core>) -> Avatars {
        Avatars { nodes }
    }
}

impl Module for Avatars {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 398,
                title: "User Avatar to vCard-Based Avatars Conversion",
                version: "1.0.0",
                status: Status::Stable,
            }],
            account_features: if self.nodes.pictures().is_some() { &[CONVERSION] } else { &[] },
            ..Card::new(NAME, "Has the picture of a user be the same for old and new clients.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        if self.nodes.pictures().is_none() {
            return;
        }
        hooks.leaving(Step::Alter, self.clone());
        hooks.arriving(Step::Guard, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.following(self.clone());
        hooks.forgetting(self);
    }
}

impl Leaving for Avatars {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        let (Kind::Presence, None, Some(account)) = (head.kind, &head.type_, passage.account.clone()) else {
            return Answer::PASS;
        };
        if passage.sender.as_ref().is_none_or(|sender| sender.is_anonymous()) {
            return Answer::PASS;
        }
        if let Some(known) = self.nodes.known_picture(&account) {
            speak_of(&known.0, &mut passage.stanza);
            return Answer::PASS;
        }
        Answer::later(async move {
            if let Some(known) = self.nodes.picture_hash(&*passage.services, &account).await {
                speak_of(&known.0, &mut passage.stanza);
            }
            Verdict::Pass
        })
    }
}

/// Section 4. A client that says that it shows no picture, shows none.
fn speak_of(hash: &str, presence: &mut Stanza) {
    if hash.is_empty() {
        return;
    }
    if presence.has_child("x", UPDATE) {
        let updates = presence.dom().children().filter(|child| child.is("x", UPDATE));
        let said: Vec<Option<String>> = updates
            .map(|x| x.get_child("photo", UPDATE).map(|photo| photo.text().trim().to_owned()))
            .collect();
        if said.iter().flatten().any(String::is_empty) || said == [Some(hash.to_owned())] {
            return;
        }
        presence.remove_children(|child| child.is("x", UPDATE));
    }
    let photo = element("photo", UPDATE).text_node(hash);
    presence.append_child(&element("x", UPDATE).child(photo));
}

/// What tells a session of a change, and did not find it.
impl Arriving for Avatars {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        match &passage.account {
            Some(account) if passage.again && is_change(&passage.stanza, account, CHANGED) => Answer::STOP,
            _ => Answer::PASS,
        }
    }
}

impl Delivering for Avatars {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if !is_change(stanza, session.account(), CHANGED) {
            return Verdict::Pass;
        }
        self.forget(session.account());
        Verdict::Stop
    }
}

impl Avatars {
    fn forget(&self, account: &BareJid) {
        if let Some(pictures) = self.nodes.pictures() {
            pictures.hashes.forget(account);
        }
    }
}

impl Following for Avatars {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            // What was cached while nobody was here to be told of changes is not to be trusted.
            SessionEvent::Bound(session)
            | SessionEvent::Returned(session)
            | SessionEvent::Resumed(session) => self.forget(session.account()),
            SessionEvent::Closed { session, .. } if services.local_sessions(session.account()).is_empty() => {
                self.forget(session.account());
            }
            _ => {}
        }
        Answer::Now(())
    }
}

impl Forgetting for Avatars {
    fn forgetting<'a>(&'a self, account: &'a BareJid, _: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        self.forget(account);
        Answer::Now(())
    }
}

#[cfg(test)]
#[path = "avatars_tests.rs"]
mod tests;

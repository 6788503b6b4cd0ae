//! [XEP-0186]: Invisible Command. A session is there for its user and for nobody else.
//!
//! An invisible session takes what comes for the account as one that is available with its priority does (section 3.1.1),
//! from the command on, also where it has said no presence; and whatever a node tells others follows from its row of the
//! route table, which says of it that it is not to be seen. What it says of itself without a receiver is kept for what the
//! server sends to it (the events of nodes that its client wants), and told to nobody, its user's other sessions among
//! them.
//!
//! Left out: a user who hides before anybody could see them was last there when somebody last could, and not at that
//! moment (3.1.1, 7), which would tell of the login. Who is unblocked, or whose presence a privacy list lets in again, is
//! not asked for it in the name of an invisible session, and seen once they say something. Contacts at other servers are
//! asked in the name of the account, as for any session, so a server that logs who asks learns that somebody is there:
//! that is what `probe` is for.

use std::sync::Arc;

use hooks::{
    Addressee, Answer, Answering, Card, Following, Hooks, Leaving, Module, Moving, Passage, Reply, Services,
    SessionEvent, SessionView, Status, Step, Verdict, Xep,
};
use stanza::{Condition, IqType, Kind, PresenceType, Stanza, StanzaError};
use store::StoreError;

use crate::blocklists::Blocklists;
use crate::failure::{Failure, bad_request, store_failed};
use crate::presence::returning::catch_up;
use crate::presence::{Presence, priority, probe};
use crate::privacylists::PrivacyLists;
use crate::rosters::Rosters;
use crate::screen::Screen;

const NAME: &str = "invisible";
const NS: &str = "urn:xmpp:invisible:1";

/// Lets sessions become invisible and visible again.
pub struct Invisible {
    presence: Arc<Presence>,
    rosters: Arc<Rosters>,
    blocklists: Arc<Blocklists>,
    privacy: Arc<PrivacyLists>,
}

impl Invisible {
    pub fn new(
        presence: Arc<Presence>,
        rosters: Arc<Rosters>,
        blocklists: Arc<Blocklists>,
        privacy: Arc<PrivacyLists>,
    ) -> Invisible {
        Invisible { presence, rosters, blocklists, privacy }
    }
}

impl Module for Invisible {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 186,
                title: "Invisible Command",
                version: "0.14.0",
                status: Status::Deferred,
            }],
            host_features: &[NS],
            ..Card::new(NAME, "Lets users be there without being seen.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.leaving(Step::Record, self.clone());
        hooks.following(self.clone());
        hooks.moving(self);
    }
}

/// Whether contacts are asked for their presence in the name of an invisible session.
#[derive(Clone, Copy)]
struct Probes(bool);

fn probes(session: &SessionView) -> bool {
    session.notes().get::<Probes>().is_some_and(|probes| probes.0)
}

/// What a request asks for.
enum Wish {
    Hide(Probes),
    Show,
}

fn wish(stanza: &Stanza) -> Result<Wish, StanzaError> {
    let payload = stanza.payload().filter(|_| stanza.iq_type() == Ok(IqType::Set));
    match payload.map(|payload| (payload.name(), payload.attr("probe"))) {
        Some(("visible", _)) => Ok(Wish::Show),
        Some(("invisible", None | Some("false" | "0"))) => Ok(Wish::Hide(Probes(false))),
        Some(("invisible", Some("true" | "1"))) => Ok(Wish::Hide(Probes(true))),
        Some(("invisible", Some(_))) => Err(bad_request("`probe` is true or false")),
        _ => Err(bad_request("set an `invisible` or a `visible`")),
    }
}

impl Answering for Invisible {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        let Some(session) = passage.sender.as_ref().filter(|_| passage.is_own()) else {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        };
        let wish = match wish(&passage.stanza) {
            Ok(wish) => wish,
            Err(error) => return Answer::Now(Reply::Error(error)),
        };
        Answer::later(async move {
            let services = &*passage.services;
            let done = match wish {
                Wish::Hide(probes) => self.hide(services, session, probes).await,
                Wish::Show => self.show(services, session).await,
            };
            match done {
                Ok(()) => Reply::empty(),
                Err(failure) => Reply::Error(failure.answer(NAME)),
            }
        })
    }
}

impl Invisible {
    async fn hide(
        &self,
        services: &dyn Services,
        session: &Arc<SessionView>,
        asked: Probes,
    ) -> Result<(), Failure> {
        if session.is_invisible() {
            let is_new = asked.0 && !probes(session) && session.priority().is_some();
            session.notes().put(asked);
            if is_new {
                self.probe(services, session).await;
            }
            return Ok(());
        }
        let (before, was_shown) = (session.priority(), session.has_presence());
        let priority = before.unwrap_or(0);
        // As where a session becomes available: nothing newer overtakes what was kept for it.
        let takes_messages = priority >= 0 && before.is_none_or(|before| before < 0);
        let hold = takes_messages.then(|| services.hold(session.account()));
        // Before anybody else knows: who asks from here on is not answered, and is told of the end.
        session.set_invisible(true);
        if let Err(error) = services.hide(session, Some(priority)).await {
            session.set_invisible(false);
            // It may be agreed on all the same.
            if let Err(error) = services.set_priority(session, before).await {
                tracing::debug!(module = NAME, session = %session.jid(), %error, "hidden against its answer");
            }
            return Err(error.into());
        }
        session.notes().put(asked);
        if was_shown {
            let gone = Stanza::presence(Some("unavailable")).with_from(session.jid().clone());
            self.presence.take_leave(services, session, gone, true).await;
            services.announce(SessionEvent::Hidden(session.clone())).await;
        } else {
            let event = SessionEvent::Available { session: session.clone(), before, priority };
            services.announce(event).await;
        }
        if asked.0 {
            self.probe(services, session).await;
        }
        drop(hold);
        Ok(())
    }

    /// XEP-0186, 3.2: as before its initial presence, which is for the client to send. Whoever was sent presence
    /// directly is still told when that ends.
    async fn show(&self, services: &dyn Services, session: &Arc<SessionView>) -> Result<(), Failure> {
        if !session.is_invisible() {
            return Ok(());
        }
        let (before, said) = (session.priority(), session.said());
        session.set_presence(None);
        if let Err(error) = services.set_priority(session, None).await {
            session.set_presence(said);
            return Err(error.into());
        }
        if before.is_some() {
            services.announce(SessionEvent::Unavailable(session.clone())).await;
        }
        Ok(())
    }

    /// Asks contacts for their presence; nobody of this server sees who asks.
    async fn probe(&self, services: &dyn Services, session: &SessionView) {
        if let Err(error) = self.try_to_probe(services, session).await {
            // It is invisible all the same, and hears of each of them who says something.
            drop(store_failed(NAME, &error));
        }
    }

    async fn try_to_probe(&self, services: &dyn Services, session: &SessionView) -> Result<(), StoreError> {
        let account = session.account();
        let roster = self.rosters.of(services, account).await?;
        let blocked = self.blocklists.of(services, account).await?;
        let privacy = self.privacy.of(services, account).await?;
        let screen = Screen {
            account,
            resource: session.jid().resource().as_str(),
            roster: &roster,
            blocked: &blocked,
            privacy: &privacy,
        };
        probe(services, session, &screen).await;
        Ok(())
    }
}

/// Takes what an invisible session would have told to all, before presence does so.
impl Leaving for Invisible {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let head = &passage.stanza.head;
        let Some(session) = passage.sender.as_ref().filter(|session| session.is_invisible()) else {
            return Answer::PASS;
        };
        if head.kind != Kind::Presence || head.to.is_some() {
            return Answer::PASS;
        }
        let is_end = match passage.stanza.presence_type() {
            Ok(PresenceType::Available) => false,
            Ok(PresenceType::Unavailable) => true,
            _ => return Answer::PASS,
        };
        Answer::later(async move {
            let said = passage.stanza.clone().with_from(session.jid().clone());
            let done = match is_end {
                true => self.unavailable(&*passage.services, session, said).await,
                false => self.available(&*passage.services, session, said).await,
            };
            match done {
                Ok(()) => Verdict::Stop,
                Err(failure) => Verdict::refuse(failure.answer(NAME)),
            }
        })
    }
}

impl Invisible {
    /// XEP-0186, 3.1.1, 1: kept, and not broadcast.
    async fn available(
        &self,
        services: &dyn Services,
        session: &Arc<SessionView>,
        said: Stanza,
    ) -> Result<(), Failure> {
        let priority = priority(&said)?;
        let (before, former) = (session.priority(), session.said());
        let takes_messages = priority >= 0 && before.is_none_or(|before| before < 0);
        let hold = takes_messages.then(|| services.hold(session.account()));
        session.set_presence(Some(said));
        if before != Some(priority)
            && let Err(error) = services.hide(session, Some(priority)).await
        {
            session.set_presence(former);
            return Err(error.into());
        }
        services.announce(SessionEvent::Available { session: session.clone(), before, priority }).await;
        if before.is_none() && probes(session) {
            self.probe(services, session).await;
        }
        drop(hold);
        Ok(())
    }

    /// XEP-0186, 3.1.1, 9: told to those alone who were sent presence directly.
    async fn unavailable(
        &self,
        services: &dyn Services,
        session: &Arc<SessionView>,
        said: Stanza,
    ) -> Result<(), Failure> {
        let was_available = session.priority().is_some();
        if was_available {
            services.hide(session, None).await?;
        }
        session.set_presence(None);
        self.presence.take_leave(services, session, said, false).await;
        if was_available {
            services.announce(SessionEvent::Unavailable(session.clone())).await;
        }
        Ok(())
    }

    /// The node has its lease back, and the table has the session as one that is not available.
    async fn returned(&self, services: &dyn Services, session: &Arc<SessionView>) {
        let Some(priority) = session.priority() else { return };
        if let Err(error) = services.hide(session, Some(priority)).await {
            // It has lost its full JID since.
            return drop(store_failed(NAME, &error));
        }
        catch_up(services, session).await;
        if probes(session) {
            self.probe(services, session).await;
        }
        let session = session.clone();
        services.announce(SessionEvent::Available { session, before: None, priority }).await;
    }
}

impl Following for Invisible {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        match event {
            SessionEvent::Returned(session) if session.is_invisible() => {
                Answer::later(self.returned(&**services, session))
            }
            _ => Answer::Now(()),
        }
    }
}

/// Who is invisible is so wherever the client goes on; the table says it there already.
impl Moving for Invisible {
    fn pack(&self, session: &SessionView) -> Option<String> {
        session.is_invisible().then(|| if probes(session) { "probe".to_owned() } else { String::new() })
    }

    fn unpack(&self, session: &SessionView, packed: &str) {
        session.set_invisible(true);
        session.notes().put(Probes(packed == "probe"));
    }
}

#[cfg(test)]
#[path = "invisible_tests.rs"]
mod tests;

//! Modules for the router's tests: one that keeps, one that waits, one that panics, one that answers.

use std::sync::Arc;

use hooks::{
    Addressee, Answer, Answering, Arriving, Card, Following, Hooks, Module, Passage, Reply, Services,
    SessionEvent, Status, Step, Verdict, Xep,
};
use parking_lot::Mutex;
use stanza::{Element, Kind};
use tokio::sync::Semaphore;

/// Keeps messages for absent users, in memory, and hears of lost sessions and of probes.
#[derive(Default)]
pub struct Keeper {
    /// Receiver and id, in the order in which they came.
    pub kept: Mutex<Vec<(String, String)>>,
    pub lost: Mutex<Vec<String>>,
    /// Whom a probe asked for.
    pub probed: Mutex<Vec<String>>,
}

impl Keeper {
    pub fn ids(&self) -> Vec<usize> {
        self.kept.lock().iter().filter_map(|(_, id)| id.parse().ok()).collect()
    }
}

impl Module for Keeper {
    fn card(&self) -> Card {
        const XEPS: &[Xep] = &[Xep { number: 160, title: "", version: "", status: Status::Active }];
        Card { xeps: XEPS, ..Card::new("keeper", "Keeps messages for absent users.") }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.arriving(Step::Record, self.clone());
        hooks.following(self);
    }
}

impl Arriving for Keeper {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let head = &passage.stanza.head;
        if let (Kind::Presence, Some("probe"), Some(to)) = (head.kind, head.type_.as_deref(), &head.to) {
            self.probed.lock().push(to.to_string());
        }
        if passage.stanza.head.kind != Kind::Message || !passage.offline {
            return Answer::PASS;
        }
        if matches!(passage.stanza.head.type_.as_deref(), Some("headline" | "error" | "groupchat")) {
            return Answer::PASS;
        }
        Answer::later(async move {
            // As a store would: it takes a turn.
            tokio::task::yield_now().await;
            let head = &passage.stanza.head;
            let to = head.to.as_ref().unwrap().to_string();
            let id = head.id.as_deref().unwrap_or_default().to_owned();
            self.kept.lock().push((to, id));
            Verdict::Stop
        })
    }
}

impl Following for Keeper {
    fn following<'a>(&'a self, event: &'a SessionEvent, _services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        if let SessionEvent::Lost { jid, .. } = event {
            self.lost.lock().push(jid.to_string());
        }
        Answer::Now(())
    }
}

/// Awaits something before what is for `slow@...` may arrive.
pub struct Slow {
    pub gate: Semaphore,
    /// Lets pass at once what the receiver sent itself.
    others_only: bool,
}

impl Slow {
    pub fn new() -> Arc<Slow> {
        Arc::new(Slow { gate: Semaphore::new(0), others_only: false })
    }

    pub fn others_only() -> Arc<Slow> {
        Arc::new(Slow { gate: Semaphore::new(0), others_only: true })
    }
}

impl Module for Slow {
    fn card(&self) -> Card {
        Card::new("slow", "Waits.")
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.arriving(Step::Guard, self);
    }
}

impl Arriving for Slow {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let is_slow = passage.account.as_ref().is_some_and(|account| account.as_str().starts_with("slow@"));
        if !is_slow || (self.others_only && passage.is_own()) {
            return Answer::PASS;
        }
        Answer::later(async {
            self.gate.acquire().await.unwrap().forget();
            Verdict::Pass
        })
    }
}

/// Panics on what has the id `panic`, and answers pings.
#[derive(Default)]
pub struct Odd;

impl Module for Odd {
    fn card(&self) -> Card {
        Card::new("odd", "Panics and answers.")
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.arriving(Step::Guard, self.clone());
        hooks.answering(Addressee::Host, "urn:xmpp:ping", self.clone());
        hooks.answering(Addressee::Account, "urn:xmpp:ping", self);
    }
}

impl Arriving for Odd {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        assert!(passage.stanza.head.id.as_deref() != Some("666"), "asked to panic");
        Answer::PASS
    }
}

impl Answering for Odd {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        assert!(passage.stanza.head.id.as_deref() != Some("666"), "asked to panic");
        Answer::Now(Reply::with(Element::bare("pong", "urn:xmpp:ping")))
    }
}

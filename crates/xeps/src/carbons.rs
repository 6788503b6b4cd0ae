//! [XEP-0280]: Message Carbons. Copies of a user's messages reach all of their devices.
//!
//! Left out: errors that this server itself makes of a message go to its sender alone, so `urn:xmpp:carbons:rules:0`
//! is not announced. A copy for a session of another node travels there whether that session wants copies or not, and
//! ends there where it does not.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use hooks::{
    Addressee, Answer, Answering, Arriving, Binding, Card, Delivering, Hooks, How, Leaving, Module, Moving,
    Passage, Reply, Resource, Services, SessionView, Status, Step, Verdict, Xep,
};
use jid::{BareJid, Jid};
use minidom::Element;
use parking_lot::Mutex;
use stanza::address::same_account;
use stanza::{Condition, Head, IqType, Kind, MessageType, Stanza, StanzaError};

use crate::archive;
use crate::failure::bad_request;
use crate::forwarded;
use crate::hints::Hints;

pub const NS: &str = "urn:xmpp:carbons:2";
const NAME: &str = "carbons";
const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
/// XEP-0249.
const DIRECT_INVITATION: &str = "jabber:x:conference";
/// XEP-0184, XEP-0085 and XEP-0333.
const INSTANT: [&str; 3] =
    ["urn:xmpp:receipts", "http://jabber.org/protocol/chatstates", "urn:xmpp:chat-markers:0"];

/// Of how many messages that a session sent last an error is known as one about them, and copied.
const ANSWERABLE: usize = 16;

/// Copies what one session of an account sends or receives to its others.
pub struct Carbons {
    /// So that nobody makes two ids look alike.
    hasher: RandomState,
}

impl Default for Carbons {
    fn default() -> Self {
        Carbons { hasher: RandomState::new() }
    }
}

/// What carbons know of a session.
#[derive(Default)]
struct Note {
    enabled: AtomicBool,
    /// The messages of which it was copied that the session sent them, oldest first, by their mark.
    sent: Mutex<Vec<u64>>,
}

/// On whose behalf a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Sent,
    Received,
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Side::Sent => "sent",
            Side::Received => "received",
        }
    }
}

impl Module for Carbons {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 280, title: "Message Carbons", version: "1.0.1", status: Status::Stable },
                Xep { number: 297, title: "Stanza Forwarding", version: "1.0", status: Status::Stable },
            ],
            host_features: &[NS],
            ..Card::new(NAME, "Copies the messages of a conversation to all devices of a user.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, NS, self.clone());
        hooks.leaving(Step::Copy, self.clone());
        // Before offline, which takes what nobody may have: a session of negative priority gets its copy.
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        // Before archive says what it has: what comes later is copied.
        hooks.binding(Step::Alter, self.clone());
        hooks.moving(self);
    }
}

/// A session that wants copies wants them wherever it is.
impl Moving for Carbons {
    fn pack(&self, session: &SessionView) -> Option<String> {
        is_enabled(session).then(String::new)
    }

    fn unpack(&self, session: &SessionView, _: &str) {
        session.notes().get_or_put(Note::default).enabled.store(true, Ordering::Release);
    }
}

/// XEP-0386, 3.2: on from the first moment of the session.
impl Binding for Carbons {
    fn enables(&self) -> &'static [&'static str] {
        &[NS]
    }

    fn binding<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        asked: &'a [Element],
        _: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>> {
        if asked.iter().any(|asked| asked.is("enable", NS)) {
            session.notes().get_or_put(Note::default).enabled.store(true, Ordering::Release);
        }
        Answer::Now(Vec::new())
    }
}

impl Answering for Carbons {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        Answer::Now(match self.switch(passage) {
            Ok(()) => Reply::empty(),
            Err(error) => Reply::Error(error),
        })
    }
}

impl Carbons {
    /// Sections 4 and 5, as often as the client likes (10.1).
    fn switch(&self, passage: &Passage) -> Result<(), StanzaError> {
        let Some(session) = passage.sender.as_ref().filter(|_| passage.is_own()) else {
            return Err(StanzaError::new(Condition::NotAllowed));
        };
        let payload = passage.stanza.payload();
        let enable = match payload.map(|payload| payload.name()) {
            Some("enable") => true,
            Some("disable") => false,
            _ => return Err(bad_request("neither `enable` nor `disable`")),
        };
        if passage.stanza.iq_type() != Ok(IqType::Set) {
            return Err(bad_request("carbons are switched by a set"));
        }
        session.notes().get_or_put(Note::default).enabled.store(enable, Ordering::Release);
        Ok(())
    }

    /// What an error about a message is known by.
    fn mark(&self, id: &str, correspondent: &Jid) -> u64 {
        let bare = correspondent.as_str().split('/').next();
        self.hasher.hash_one((id, bare))
    }

    /// Remembers a message of which an error would be copied.
    fn remember(&self, sender: &SessionView, message: &Stanza) {
        let (Some(id), Some(to)) = (&message.head.id, &message.head.to) else { return };
        let note = sender.notes().get_or_put(Note::default);
        let mut sent = note.sent.lock();
        if sent.len() >= ANSWERABLE {
            sent.remove(0);
        }
        sent.push(self.mark(id, to));
    }

    /// Section 6.1: whether an error answers a message that was eligible. Most repeat nothing of what they answer (and
    /// 10.3 forbids to ask that of them), so it is known by its id.
    fn answers(&self, error: &Stanza, account: &BareJid, services: &dyn Services) -> bool {
        let head = &error.head;
        let (Some(id), Some(from), Some(to)) = (&head.id, &head.from, &head.to) else { return false };
        let sessions = services.local_sessions(account);
        let Some(session) = sessions.iter().find(|session| session.jid().as_str() == to.as_str()) else {
            return false;
        };
        let mark = self.mark(id, from);
        session.notes().get::<Note>().is_some_and(|note| note.sent.lock().contains(&mark))
    }
}

impl Leaving for Carbons {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let (Some(account), Some(sender)) = (&passage.account, &passage.sender) else { return Answer::PASS };
        let message = &passage.stanza;
        if message.head.kind != Kind::Message {
            return Answer::PASS;
        }
        // What a user sends to themselves is copied where it arrives; an error to the account is about a copy (10.3).
        if message.head.to.as_ref().is_none_or(|to| same_account(to, account)) {
            return Answer::PASS;
        }
        if passage.services.has_only(account, Some(sender.sid())) || !is_eligible(message, Side::Sent) {
            return Answer::PASS;
        }
        let mut others = passage.services.online(account);
        others.retain(|other| other.sid != sender.sid());
        self.remember(sender, message);
        match &passage.archived {
            // XEP-0313, 3.4.
            Some(id) => {
                let mut message = message.clone();
                archive::say_id(&mut message, account, id);
                copy(Side::Sent, account, &message, others, &passage.services)
            }
            None => copy(Side::Sent, account, message, others, &passage.services),
        }
    }
}

impl Arriving for Carbons {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(account) = &passage.account else { return Answer::PASS };
        let message = &passage.stanza;
        if message.head.kind != Kind::Message {
            return Answer::PASS;
        }
        if is_carbon(message, account) {
            // Its receiver has gone: it is neither kept nor answered, nor for anybody else.
            return Answer::STOP;
        }
        if passage.again {
            return Answer::PASS;
        }
        if !passage.offline && passage.services.has_only(account, None) {
            return Answer::PASS;
        }
        let mut others = passage.services.online(account);
        let Some(receivers) = receivers(message, &others) else { return Answer::PASS };
        let from = message.head.from.as_ref().map(Jid::as_str);
        others.retain(|other| !receivers.contains(&other.sid) && from != Some(other.jid.as_str()));
        let eligible = match message.message_type() {
            _ if others.is_empty() => false,
            MessageType::Error => self.answers(message, account, &*passage.services),
            _ => is_eligible(message, Side::Received),
        };
        match eligible {
            true => copy(Side::Received, account, message, others, &passage.services),
            false => Answer::PASS,
        }
    }
}

impl Delivering for Carbons {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if !is_carbon(stanza, session.account()) {
            return Verdict::Pass;
        }
        // Whoever copies for a session of another node does not know what it has enabled, and where that session has
        // gone by now, the rules of RFC 6121 may give the copy to another.
        let is_for = stanza.head.to.as_ref().is_some_and(|to| to.as_str() == session.jid().as_str());
        if is_for && is_enabled(session) { Verdict::Pass } else { Verdict::Stop }
    }
}

fn is_enabled(session: &SessionView) -> bool {
    session.notes().get::<Note>().is_some_and(|note| note.enabled.load(Ordering::Acquire))
}

/// Whether it is a copy that we have made: nobody else sends anything from the account itself.
pub fn is_carbon(stanza: &Stanza, account: &BareJid) -> bool {
    let Some(from) = stanza.head.from.as_ref().filter(|_| stanza.head.kind == Kind::Message) else {
        return false;
    };
    let is = |side| stanza.body().starts_with(opening(side).as_bytes());
    from.is_bare() && same_account(from, account) && (is(Side::Sent) || is(Side::Received))
}

fn opening(side: Side) -> &'static str {
    match side {
        Side::Sent => "<sent xmlns='urn:xmpp:carbons:2'>",
        Side::Received => "<received xmlns='urn:xmpp:carbons:2'>",
    }
}

/// The sessions that get the message itself (RFC 6121, 8.5.2.1.1 and 8.5.3); `None`: it is sent back.
pub fn receivers(message: &Stanza, online: &[Resource]) -> Option<Vec<hooks::Sid>> {
    let to = message.head.to.as_ref()?;
    if let Some(exact) = online.iter().find(|one| one.jid.as_str() == to.as_str()) {
        return Some(vec![exact.sid]);
    }
    if to.is_full() && message.message_type() != MessageType::Chat {
        return None;
    }
    let priorities = online.iter().filter_map(|one| one.takes);
    let best = priorities.filter(|priority| *priority >= 0).max();
    let chosen = online.iter().filter(|one| best.is_some() && one.takes == best);
    Some(chosen.map(|one| one.sid).collect())
}

/// Section 6.1; errors that come in are known by what they answer.
fn is_eligible(message: &Stanza, side: Side) -> bool {
    let kind = message.message_type();
    if matches!(kind, MessageType::Groupchat | MessageType::Headline) || message.body().is_empty() {
        return kind == MessageType::Chat;
    }
    // Nearly every message ends here, without a tree.
    if kind == MessageType::Chat && !message.has_named(&["private", "no-copy", "x"]) {
        return true;
    }
    let children = || message.dom().children();
    if message.has_child("private", NS) || Hints::of(message).no_copy {
        return false;
    }
    let room = message.child("x", MUC_USER);
    let is_invitation = room.is_some_and(|x| x.has_child("invite", MUC_USER))
        || children().any(|child| child.is("x", DIRECT_INVITATION));
    if is_invitation && kind != MessageType::Error {
        return true;
    }
    if side == Side::Received && room.is_some() && message.from_full().is_some() {
        // A private message of a room: the room itself has sent it to all sessions that are there.
        return false;
    }
    match kind {
        MessageType::Chat => true,
        _ if children().any(|child| INSTANT.iter().any(|ns| child.has_ns(*ns))) => true,
        // An error of a client, if it repeats what it answers.
        _ => children().any(|child| child.is("body", stanza::ns::CLIENT)),
    }
}

/// Sends copies to those of the sessions that want them.
fn copy<'a>(
    side: Side,
    account: &BareJid,
    message: &Stanza,
    others: Vec<Resource>,
    services: &Arc<dyn Services>,
) -> Answer<'a> {
    let mut body: Option<Bytes> = None;
    let mut carbon = |to: &Resource| {
        let body = body.get_or_insert_with(|| wrapped(side, message)).clone();
        let head = Head {
            to: Some(to.jid.clone().into()),
            from: Some(account.clone().into()),
            type_: message.head.type_.clone(),
            ..Head::new(Kind::Message)
        };
        Stanza::new(head, body)
    };
    let local = services.local_sessions(account);
    let mut elsewhere = Vec::new();
    for other in &others {
        if !other.here {
            elsewhere.push(carbon(other));
        } else if let Some(session) = local.iter().find(|session| session.sid() == other.sid)
            && is_enabled(session)
        {
            services.hand(session, carbon(other));
        }
    }
    if elsewhere.is_empty() {
        return Answer::PASS;
    }
    let services = services.clone();
    Answer::later(async move {
        for carbon in elsewhere {
            services.route(carbon, How::Direct).await;
        }
        Verdict::Pass
    })
}

/// Sections 7 and 8: the message inside of what says whose it is.
fn wrapped(side: Side, message: &Stanza) -> Bytes {
    let mut body = BytesMut::with_capacity(message.wire_len() + 160);
    body.extend_from_slice(opening(side).as_bytes());
    forwarded::write(message, None, &mut body);
    body.extend_from_slice(b"</");
    body.extend_from_slice(side.word().as_bytes());
    body.extend_from_slice(b">");
    body.freeze()
}

#[cfg(test)]
#[path = "carbons_tests.rs"]
mod tests;

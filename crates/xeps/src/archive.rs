//! [XEP-0313]: Message Archive Management. What a user sends and receives is kept, and all of their devices can read it.
//!
//! Left out: group chat (`#groupchat-field`), which rooms archive; nodes; counts of pages, for which nobody goes through an
//! archive; advanced preferences by a command. XEP-0424 without what waits for a user who is away, who gets the message and
//! its retraction, and without corrections of a message, which are messages of their own.

mod entries;
mod preferences;
mod query;
mod retraction;
mod sweep;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use hooks::{
    Addressee, Answer, Answering, Arriving, Binding, Card, Delivering, Hooks, Leaving, Module, Passage,
    Reply, Services, SessionView, Status, Step, Verdict, Xep,
};
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::address::same_account;
use stanza::{Condition, IqType, Kind, MessageType, Stanza, StanzaError};

use self::entries::Entry;
pub use self::preferences::Policy;
use self::preferences::Preferences;
use self::query::Reader;
use self::retraction::{RETRACT, TOMBSTONE};
use self::sweep::Limits;
use self::writer::Writer;
use crate::carbons::{is_carbon, receivers};
use crate::failure::{Failure, bad_request, store_failed};
use crate::forgeries::STANZA_ID;
use crate::hints::Hints;
use crate::rosters::Rosters;

pub const NAME: &str = "archive";
const MAM: &str = "urn:xmpp:mam:2";
const EXTENDED: &str = "urn:xmpp:mam:2#extended";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

crate::settings! {
    /// `[modules.archive]`
    pub struct Config {
        /// Whose messages are archived for accounts that have not said it themselves: of `always` everybody, of `never` nobody, of `roster` contacts.
        default: Policy = Policy::Always,
        /// The most messages in the archive of one account; beyond it the oldest go.
        messages_max: usize = 100_000,
        /// How many days a message stays in an archive.
        days_max: usize = 1_095,
        /// The most messages of one page of an archive, and ids of one query; clients ask for the next page then.
        page_max: usize = 100,
        /// The most addresses on each list of an account's preferences; at the bound a change is refused with `resource-constraint`.
        jids_max: usize = 500,
    }
}

/// Keeps messages for their users, and hands them out.
pub struct Archive {
    config: Config,
    rosters: Arc<Rosters>,
    writer: Arc<Writer>,
}

impl Archive {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> Archive {
        let days = u32::try_from(config.days_max).unwrap_or(u32::MAX);
        let limits = Limits { messages: config.messages_max as u64, age: DAY.saturating_mul(days) };
        Archive { config, rosters, writer: Arc::new(Writer::new(limits)) }
    }
}

impl Module for Archive {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep {
                    number: 313,
                    title: "Message Archive Management",
                    version: "1.1.3",
                    status: Status::Stable,
                },
                Xep {
                    number: 441,
                    title: "Message Archive Management Preferences",
                    version: "0.2.0",
                    status: Status::Experimental,
                },
                Xep { number: 424, title: "Message Retraction", version: "0.4.2", status: Status::Proposed },
                Xep { number: 59, title: "Result Set Management", version: "1.0", status: Status::Stable },
            ],
            // Archives are of accounts; but Profanity and others ask the host alone, as ejabberd says it there too.
            host_features: &[MAM, EXTENDED, RETRACT, TOMBSTONE],
            account_features: &[MAM, EXTENDED, RETRACT, TOMBSTONE],
            ..Card::new(NAME, "Keeps the messages of each account and lets its devices read them.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Record, self.clone());
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.binding(Step::Record, self.clone());
        hooks.answering(Addressee::Account, MAM, self);
    }
}

/// A message that is about to be archived.
struct Due {
    incoming: bool,
    session: Option<Arc<SessionView>>,
}

impl Due {
    /// Whose archive it is for, and with whom it is.
    fn of<'a>(&self, passage: &'a Passage) -> Option<(&'a BareJid, &'a Jid)> {
        let head = &passage.stanza.head;
        let with = if self.incoming { &head.from } else { &head.to };
        passage.account.as_ref().zip(with.as_ref())
    }
}

impl Leaving for Archive {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let (Some(account), Some(sender)) = (&passage.account, &passage.sender) else { return Answer::PASS };
        let Some(to) = &passage.stanza.head.to else { return Answer::PASS };
        // Section 6.1.1: once only; what a user says to themselves is archived where it arrives.
        if !is_worth_it(&passage.stanza) || same_account(to, account) || sender.is_anonymous() {
            return Answer::PASS;
        }
        let due = Due { incoming: false, session: Some(sender.clone()) };
        self.record(passage, due)
    }
}

impl Arriving for Archive {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(account) = &passage.account else { return Answer::PASS };
        if passage.again {
            // It was archived when it came for the first time, or is for nobody's archive.
            return match preferences::is_change(&passage.stanza, account) {
                true => Answer::STOP,
                false => Answer::PASS,
            };
        }
        let is_kept = !(passage.offline && passage.fleeting);
        if !is_kept || !is_worth_it(&passage.stanza) || is_carbon(&passage.stanza, account) {
            return Answer::PASS;
        }
        let session = passage.services.local_sessions(account).into_iter().next();
        if session.as_ref().is_some_and(|session| session.is_anonymous()) {
            return Answer::PASS;
        }
        // Section 6.1: what is sent back was not received. A chat never is, wherever its receiver is.
        let to_session = passage.stanza.head.to.as_ref().is_some_and(Jid::is_full);
        if to_session
            && passage.stanza.message_type() != MessageType::Chat
            && receivers(&passage.stanza, &passage.services.online(account)).is_none()
        {
            return Answer::PASS;
        }
        let due = Due { incoming: true, session };
        self.record(passage, due)
    }
}

impl Delivering for Archive {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        if !preferences::is_change(stanza, session.account()) {
            return Verdict::Pass;
        }
        preferences::changed(session);
        Verdict::Stop
    }
}

impl Archive {
    /// Archives a message if its account wants that. Where it is known what it wants, nothing is awaited.
    fn record<'a>(&'a self, passage: &'a mut Passage, due: Due) -> Answer<'a> {
        let Some((account, with)) = due.of(passage) else { return Answer::PASS };
        let known = due.session.as_ref().and_then(|session| preferences::known(session.notes()));
        let wants = known.and_then(|known| match known.wants(with) {
            None => self.is_in_cached_roster(account, with),
            wants => wants,
        });
        match wants {
            Some(false) => Answer::PASS,
            Some(true) if !passage.offline && !self.writer.is_crowded() => {
                self.archive(passage, due);
                Answer::PASS
            }
            wants => Answer::later(async move {
                let wants = match wants {
                    Some(wants) => wants,
                    None => self.wants(passage, &due).await,
                };
                if wants {
                    if self.writer.is_crowded() {
                        self.flush(passage).await;
                    }
                    self.archive(passage, due);
                    // What waits for a user who is away has time: it is in their archive before it is kept for them.
                    if passage.offline {
                        self.flush(passage).await;
                    }
                }
                Verdict::Pass
            }),
        }
    }

    fn is_in_cached_roster(&self, account: &BareJid, with: &Jid) -> Option<bool> {
        let roster = self.rosters.cached(account)?;
        Some(roster.items.contains_key(with.to_bare().as_str()))
    }

    async fn wants(&self, passage: &Passage, due: &Due) -> bool {
        let Some((account, with)) = due.of(passage) else { return false };
        let (session, services) = (due.session.as_deref(), &*passage.services);
        let preferences: Arc<Preferences> =
            preferences::of(services, account, session, self.config.default).await;
        if let Some(wants) = preferences.wants(with) {
            return wants;
        }
        let listed = preferences::is_in_roster(&self.rosters, services, account, with).await;
        listed.unwrap_or_else(|error| {
            drop(store_failed(NAME, &error));
            // As if nobody had said that only contacts are wanted: better kept than lost.
            true
        })
    }

    /// Has the message written, and says in it under which id.
    fn archive(&self, passage: &mut Passage, due: Due) {
        let Some((account, with)) = due.of(passage) else { return };
        let id = self.writer.id(&*passage.services);
        let (message, underway) = (&passage.stanza, passage.underway.clone());
        let entry = Entry::new(id, message, due.incoming, with, underway);
        if !self.writer.append(&passage.services, account, entry) {
            return;
        }
        match &passage.account {
            Some(account) if due.incoming => say_id(&mut passage.stanza, account, &id.to_string()),
            // Section 3.4: the receiver is not told; the other devices of the sender are.
            _ => passage.archived = Some(id.to_string().into()),
        }
    }

    async fn flush(&self, passage: &Passage) {
        if let Err(error) = self.writer.flush(&*passage.services).await {
            tracing::warn!(module = NAME, %error, "failed to write to archives");
        }
    }
}

/// Says in a message under which id the archive of the account has it (XEP-0359, 3).
pub fn say_id(message: &mut Stanza, account: &BareJid, id: &str) {
    message.append_written(account.as_str().len() + 96, |body| {
        for (text, value) in [("<stanza-id xmlns='", STANZA_ID), ("' by='", account.as_str()), ("' id='", id)]
        {
            body.extend_from_slice(text.as_bytes());
            stanza::dom::escape_attribute(value, body);
        }
        body.extend_from_slice(b"'/>");
    });
}

/// Whether the archive of the account has the message, as [`say_id`] says.
pub fn is_archived(message: &Stanza, account: &BareJid) -> bool {
    let ours =
        |child: &Element| child.is("stanza-id", STANZA_ID) && child.attr("by") == Some(account.as_str());
    message.has_named(&["stanza-id"]) && message.dom().children().any(ours)
}

/// What makes a message worth it to be kept, the usual first.
const WORTH_IT: [(&str, &str); 6] = [
    ("body", stanza::ns::CLIENT),
    ("received", "urn:xmpp:receipts"),
    ("received", "urn:xmpp:chat-markers:0"),
    ("displayed", "urn:xmpp:chat-markers:0"),
    ("acknowledged", "urn:xmpp:chat-markers:0"),
    // XEP-0424, 5: a retraction is kept, whatever becomes of what it takes back.
    ("retract", RETRACT),
];

/// Section 6.1.1, and what clients read from an archive beside conversations: what was received and what was seen.
fn is_worth_it(message: &Stanza) -> bool {
    if message.head.kind != Kind::Message {
        return false;
    }
    if !matches!(message.message_type(), MessageType::Normal | MessageType::Chat) {
        return false;
    }
    let hints = Hints::of(message);
    if hints.no_store || hints.no_permanent_store {
        return false;
    }
    hints.store || WORTH_IT.iter().any(|(name, ns)| message.has_child(name, ns))
}

/// XEP-0386, 3.2: the client learns what there is to read.
impl Binding for Archive {
    fn binding<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        _: &'a [Element],
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>> {
        if session.is_anonymous() {
            return Answer::Now(Vec::new());
        }
        Answer::later(async {
            match self.reader(services, session.account()).metadata().await {
                Ok(metadata) => vec![metadata],
                Err(failure) => {
                    // The client may still ask.
                    drop(failure.answer(NAME));
                    Vec::new()
                }
            }
        })
    }
}

impl Answering for Archive {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if !passage.is_own() {
            // Section 8.1.
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        if passage.sender.as_ref().is_some_and(|sender| sender.is_anonymous()) {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::ServiceUnavailable)));
        }
        Answer::later(async {
            let answer = self.answer(passage).await;
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

impl Archive {
    fn reader<'a>(&'a self, services: &'a Arc<dyn Services>, account: &'a BareJid) -> Reader<'a> {
        Reader { services, account, writer: &self.writer, page_max: self.config.page_max }
    }

    async fn answer(&self, passage: &Passage) -> Result<Reply, Failure> {
        let (Some(account), Some(payload)) = (&passage.account, passage.stanza.payload()) else {
            return Err(bad_request("no payload").into());
        };
        let reader = self.reader(&passage.services, account);
        match (payload.name(), passage.stanza.iq_type()) {
            ("query", Ok(IqType::Set)) => reader.query(passage, payload).await,
            ("query", _) => Ok(Reply::with(query::form())),
            ("metadata", Ok(IqType::Get)) => reader.metadata().await.map(Reply::with),
            ("prefs", _) => preferences::answer(passage, self.config.default, self.config.jids_max).await,
            _ => Err(bad_request("neither `query`, `metadata` nor `prefs`").into()),
        }
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;

//! [XEP-0050]: Ad-Hoc Commands. What somebody may have a host do, found and used by any client.
//!
//! A command has one form at most: it is asked for, filled in and sent back. Commands are run by the node of the session
//! that asks, and end with that session. Left out: commands of several stages (`prev`, `next`), languages other than
//! English, and lists that are pushed.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, SessionView, Status, Xep};
use minidom::Element;
use parking_lot::Mutex;
use stanza::{Condition, IqType, StanzaError};

use crate::disco::{self, Ask, Nodes};
use crate::failure::bad_request;
use crate::forms::{self, Field, Filled};
use crate::xml::{Build, element};

const NAME: &str = "commands";
pub const NS: &str = "http://jabber.org/protocol/commands";
/// The most commands that one session may have begun and not ended; beyond it the oldest is given up.
const OPEN_MAX: usize = 10;

/// The form of a command, to be filled in.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub form_type: &'static str,
    pub instructions: &'static str,
    pub fields: &'static [Field],
}

/// Something that a host does.
pub trait Command: Send + Sync + 'static {
    /// Its name for programs.
    fn node(&self) -> &'static str;
    /// Its name for people.
    fn title(&self) -> &'static str;
    /// The module whose switch is this command's too.
    fn module(&self) -> &'static str;
    /// Whether it is there for whoever asks.
    fn is_for(&self, passage: &Passage) -> bool;
    /// What has to be known first; `None`: nothing.
    fn form(&self) -> Option<Form>;
    /// Does it; what there is to show.
    fn run<'a>(
        &'a self,
        passage: &'a Passage,
        filled: Filled,
    ) -> BoxFuture<'a, Result<Option<Element>, StanzaError>>;
}

/// Lets clients find and use commands.
pub struct Commands {
    list: Vec<Arc<dyn Command>>,
}

impl Commands {
    pub fn new(list: Vec<Arc<dyn Command>>) -> Commands {
        Commands { list }
    }

    /// The commands that are there for whoever asks.
    fn offered<'a>(&'a self, passage: &'a Passage) -> impl Iterator<Item = &'a Arc<dyn Command>> {
        let cards = passage.services.cards(passage.host().unwrap_or_default());
        self.list.iter().filter(move |command| {
            cards.iter().any(|card| card.name == command.module()) && command.is_for(passage)
        })
    }

    fn find<'a>(&'a self, passage: &'a Passage, node: &str) -> Result<&'a Arc<dyn Command>, StanzaError> {
        if let Some(command) = self.offered(passage).find(|command| command.node() == node) {
            return Ok(command);
        }
        // Section 3.3: one that is there for others is forbidden.
        let is_known = self.list.iter().any(|command| command.node() == node);
        Err(StanzaError::new(if is_known { Condition::Forbidden } else { Condition::ItemNotFound }))
    }
}

impl Module for Commands {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 50, title: "Ad-Hoc Commands", version: "1.3.0", status: Status::Stable },
                Xep { number: 4, title: "Data Forms", version: "2.13.1", status: Status::Final },
            ],
            host_features: &[NS],
            ..Card::new(NAME, "Lets clients find what they may have the server do, and have it done.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self);
    }
}

/// Sections 2.2 and 2.3.
impl Nodes for Commands {
    fn module(&self) -> &'static str {
        NAME
    }

    fn describe<'a>(&'a self, passage: &'a Passage, ask: Ask, node: &str) -> Option<Answer<'a, Reply>> {
        if passage.account.is_some() {
            return None;
        }
        let is_known = node == NS || self.list.iter().any(|command| command.node() == node);
        let described = match ask {
            _ if !is_known => return None,
            Ask::Info => self.info(passage, node),
            Ask::Items => Ok(self.items(passage, node)),
        };
        Some(Answer::Now(described.map_or_else(Reply::Error, Reply::with)))
    }
}

impl Commands {
    fn info(&self, passage: &Passage, node: &str) -> Result<Element, StanzaError> {
        let (kind, name) = match node {
            NS => ("command-list", "Commands"),
            node => ("command-node", self.find(passage, node)?.title()),
        };
        let identity = element("identity", disco::INFO).with("category", "automation").with("type", kind);
        let query = element("query", disco::INFO).with("node", node).child(identity.with("name", name));
        let features = [NS, forms::NS].map(|var| element("feature", disco::INFO).with("var", var));
        Ok(features.into_iter().fold(query, Element::child))
    }

    fn items(&self, passage: &Passage, node: &str) -> Element {
        let item = |command: &Arc<dyn Command>| {
            element("item", disco::ITEMS)
                .with("jid", passage.host().unwrap_or_default())
                .with("node", command.node())
                .with("name", command.title())
        };
        let query = element("query", disco::ITEMS).with("node", node);
        let commands = self.offered(passage).filter(|_| node == NS);
        commands.map(item).fold(query, Element::child)
    }
}

/// The commands that a session has begun, by the id that each was given: kept in its notes.
#[derive(Default)]
struct Open(Mutex<VecDeque<(String, &'static str)>>);

impl Open {
    fn begin(&self, id: &str, node: &'static str) {
        let mut open = self.0.lock();
        open.push_back((id.to_owned(), node));
        if open.len() > OPEN_MAX {
            open.pop_front();
        }
    }

    /// Ends one; whether it was begun.
    fn end(&self, id: &str, node: &str) -> bool {
        let mut open = self.0.lock();
        let at = open.iter().position(|(other, of)| other == id && *of == node);
        at.and_then(|at| open.remove(at)).is_some()
    }
}

/// What a client wants done with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Go,
    Cancel,
}

impl Answering for Commands {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        Answer::later(async move { self.answer(passage).await.map_or_else(Reply::Error, Reply::with) })
    }
}

/// Section 4.4: the condition, with what exactly is wrong.
fn wrong(condition: Condition, what: &str) -> StanzaError {
    StanzaError::new(condition).with_extra(element(what, NS))
}

fn action(command: &Element) -> Result<Action, StanzaError> {
    match command.attr("action") {
        // 3.4: with one form, to go on is to end.
        None | Some("execute" | "complete") => Ok(Action::Go),
        Some("cancel") => Ok(Action::Cancel),
        Some("next" | "prev") => Err(wrong(Condition::BadRequest, "bad-action")),
        Some(_) => Err(wrong(Condition::BadRequest, "malformed-action")),
    }
}

fn state(command: &dyn Command, id: &str, status: &str) -> Element {
    element("command", NS).with("node", command.node()).with("sessionid", id).with("status", status)
}

impl Commands {
    async fn answer(&self, passage: &Passage) -> Result<Element, StanzaError> {
        let asked = passage.stanza.child("command", NS);
        let (Ok(IqType::Set), Some(asked)) = (passage.stanza.iq_type(), asked) else {
            return Err(bad_request("a `command` is set"));
        };
        let node = asked.attr("node").ok_or_else(|| bad_request("a command has a `node`"))?;
        let command = &**self.find(passage, node)?;
        // Who may use one has a session here, and only that session knows what it has begun.
        let Some(session) = &passage.sender else { return Err(StanzaError::new(Condition::Forbidden)) };
        let (action, open) = (action(asked)?, session.notes().get_or_put(Open::default));
        let Some(id) = asked.attr("sessionid") else {
            if action == Action::Cancel {
                return Err(wrong(Condition::BadRequest, "bad-sessionid"));
            }
            return begin(command, passage, &open).await;
        };
        if action == Action::Cancel {
            return match open.end(id, node) {
                true => Ok(state(command, id, "canceled")),
                false => Err(wrong(Condition::NotAllowed, "session-expired")),
            };
        }
        let filled = Filled::of(asked);
        let is_right = |filled: &Filled| command.form().is_some_and(|form| filled.is_of(form.form_type));
        // The form may be sent once more where it was no form.
        let filled = filled.filter(is_right).ok_or_else(|| wrong(Condition::BadRequest, "bad-payload"))?;
        if !open.end(id, node) {
            return Err(wrong(Condition::NotAllowed, "session-expired"));
        }
        run(command, passage, session, id, filled).await
    }
}

async fn begin(command: &dyn Command, passage: &Passage, open: &Open) -> Result<Element, StanzaError> {
    let mut random = [0; 16];
    passage.services.random(&mut random);
    let id = format!("{:032x}", u128::from_ne_bytes(random));
    let Some(form) = command.form() else {
        let Some(session) = &passage.sender else { return Err(StanzaError::new(Condition::Forbidden)) };
        return run(command, passage, session, &id, Filled::default()).await;
    };
    open.begin(&id, command.node());
    let actions = element("actions", NS).with("execute", "complete").child(element("complete", NS));
    let form = forms::form(form.form_type, command.title(), form.instructions, form.fields);
    Ok(state(command, &id, "executing").child(actions).child(form))
}

async fn run(
    command: &dyn Command,
    passage: &Passage,
    session: &SessionView,
    id: &str,
    filled: Filled,
) -> Result<Element, StanzaError> {
    let done = command.run(passage, filled).await;
    let outcome = done.as_ref().map_or_else(|error| error.condition.tag(), |_| "done");
    tracing::info!(module = NAME, session = %session.jid(), command = command.node(), outcome, "command");
    let shown = done?;
    Ok(shown.into_iter().fold(state(command, id, "completed"), Element::child))
}

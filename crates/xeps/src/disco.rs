//! [XEP-0030]: Service Discovery. What the server can do, and what an account shows to its contacts.
//!
//! A host also says how its operators are reached (XEP-0157), in a form beside its features (XEP-0128). Once a client has
//! logged in, its stream features have the hashes of what the host says (XEP-0115, 6.3; XEP-0390, 5.4), so that it asks only
//! where it has not seen that before. Before the login nobody can ask, so nothing is announced.

mod own;

use std::collections::BTreeSet;
use std::sync::Arc;

use hooks::{
    Addressee, Answer, Answering, Card, Hooks, Module, Offer, Offering, Passage, Reply, Services, Status, Xep,
};
use minidom::Element;
use stanza::{Condition, IqType, StanzaError};
use toml_edit::Value;

use crate::failure::{Failure, bad_request, store_failed};
use crate::forms;
use crate::pep;
use crate::pep::caps::{CAPS, CAPS_2};
use crate::rosters::Rosters;
use crate::settings::Setting;
use crate::xml::{Build, element};

pub(crate) const INFO: &str = "http://jabber.org/protocol/disco#info";
pub(crate) const ITEMS: &str = "http://jabber.org/protocol/disco#items";
const SERVER_INFO: &str = "http://jabber.org/network/serverinfo";
const NAME: &str = "disco";

crate::settings! {
    /// `[modules.disco]`
    pub struct Config {
        /// Whether contacts may list an account's available devices.
        list_resources: bool = true,
        /// Where abuse is reported, as URIs, shown to everybody who asks a host what it is, as are the following ones.
        abuse_addresses: Uris = Uris::default(),
        /// How the administrators are reached.
        admin_addresses: Uris = Uris::default(),
        /// Where customers say what they think.
        feedback_addresses: Uris = Uris::default(),
        /// Where something is sold.
        sales_addresses: Uris = Uris::default(),
        /// Where weaknesses are reported.
        security_addresses: Uris = Uris::default(),
        /// Where it is said how the service is doing.
        status_addresses: Uris = Uris::default(),
        /// Where users get help.
        support_addresses: Uris = Uris::default(),
    }
}

impl Config {
    /// XEP-0157, 3: the form, where there is anything to say.
    fn contacts(&self) -> Option<Element> {
        let fields = [
            ("abuse-addresses", &self.abuse_addresses),
            ("admin-addresses", &self.admin_addresses),
            ("feedback-addresses", &self.feedback_addresses),
            ("sales-addresses", &self.sales_addresses),
            ("security-addresses", &self.security_addresses),
            ("status-addresses", &self.status_addresses),
            ("support-addresses", &self.support_addresses),
        ];
        let said: Vec<_> = fields.into_iter().filter(|(_, Uris(uris))| !uris.is_empty()).collect();
        let said = said.into_iter().map(|(field, Uris(uris))| (field, uris.clone()));
        (said.len() > 0).then(|| forms::result(SERVER_INFO, said))
    }
}

/// Addresses of any kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uris(Vec<String>);

impl Setting for Uris {
    const EXPECTED: &'static str =
        "a list of URIs, as in [\"mailto:abuse@example.org\", \"xmpp:abuse@example.org\"]";

    fn read(value: &Value) -> Option<Uris> {
        let uris: Option<Vec<String>> = value.as_array()?.iter().map(|item| uri(item.as_str()?)).collect();
        uris.map(Uris)
    }

    fn write(&self) -> String {
        self.0.write()
    }
}

/// RFC 3986, 3: a scheme, a colon, and something without spaces behind it.
pub(crate) fn uri(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_rest = !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control());
    (is_scheme && is_rest).then(|| text.to_owned())
}

/// A module that has nodes of its own, which are asked about beside a host or an account (XEP-0030, 3.2).
pub trait Nodes: Send + Sync + 'static {
    /// The module whose switch is that of its nodes.
    fn module(&self) -> &'static str;
    /// What it says of one; `None`: it is none of its nodes. Of an account only its owner asks.
    fn describe<'a>(&'a self, passage: &'a Passage, ask: Ask, node: &str) -> Option<Answer<'a, Reply>>;
}

/// A module that says something of a host in a form of its own, beside its features (XEP-0128).
pub trait Extends: Send + Sync + 'static {
    /// The module whose switch is that of the form.
    fn module(&self) -> &'static str;
    /// What it says.
    fn form(&self) -> Element;
}

/// Answers disco#info and disco#items for hosts and accounts, from the cards of all modules.
pub struct Disco {
    config: Config,
    rosters: Arc<Rosters>,
    nodes: Vec<Arc<dyn Nodes>>,
    own: own::Own,
    pep: Arc<pep::Core>,
}

impl Disco {
    pub fn new(
        config: Config,
        rosters: Arc<Rosters>,
        nodes: Vec<Arc<dyn Nodes>>,
        forms: Vec<Arc<dyn Extends>>,
        pep: Arc<pep::Core>,
    ) -> Disco {
        let own = own::Own::new(config.contacts(), forms);
        Disco { config, rosters, nodes, own, pep }
    }

    /// What one of the modules says of a node that is its own.
    fn describe<'a>(&'a self, passage: &'a Passage, ask: Ask, node: &str) -> Option<Answer<'a, Reply>> {
        let cards = passage.services.cards(passage.host().unwrap_or_default());
        let is_on = |nodes: &&Arc<dyn Nodes>| cards.iter().any(|card| card.name == nodes.module());
        self.nodes.iter().filter(is_on).find_map(|nodes| nodes.describe(passage, ask, node))
    }
}

impl Module for Disco {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 30, title: "Service Discovery", version: "2.5.0", status: Status::Final },
                Xep {
                    number: 128,
                    title: "Service Discovery Extensions",
                    version: "1.0.1",
                    status: Status::Active,
                },
                Xep {
                    number: 157,
                    title: "Contact Addresses for XMPP Services",
                    version: "1.1.1",
                    status: Status::Active,
                },
                Xep { number: 115, title: "Entity Capabilities", version: "1.6.0", status: Status::Stable },
                Xep {
                    number: 390,
                    title: "Entity Capabilities 2.0",
                    version: "0.3.2",
                    status: Status::Experimental,
                },
            ],
            host_features: &[INFO, ITEMS, CAPS, CAPS_2],
            account_features: &[INFO, ITEMS],
            ..Card::new(NAME, "Says what the server and its accounts can do.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        for addressee in [Addressee::Host, Addressee::Account] {
            hooks.answering(addressee, INFO, self.clone());
            hooks.answering(addressee, ITEMS, self.clone());
        }
        hooks.offering(self);
    }
}

impl Offering for Disco {
    fn offering(&self, offer: &Offer, services: &dyn Services) -> Vec<Element> {
        match offer.account {
            Some(_) => self.own.of(services, &offer.host).features().to_vec(),
            None => Vec::new(),
        }
    }
}

/// Which of the two queries was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Info,
    Items,
}

impl Answering for Disco {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let passage: &'a Passage = passage;
        let stanza = &passage.stanza;
        let (ask, query) = match (stanza.child("query", INFO), stanza.child("query", ITEMS)) {
            (Some(query), _) => (Ask::Info, query),
            (None, Some(query)) => (Ask::Items, query),
            (None, None) => return Answer::Now(Reply::Error(bad_request("no query"))),
        };
        if stanza.iq_type() != Ok(IqType::Get) {
            return Answer::Now(Reply::Error(bad_request("discovery only reads")));
        }
        let node = query.attr("node").filter(|node| !node.is_empty()).map(str::to_owned);
        if (passage.account.is_none() || passage.is_own())
            && let Some(described) = node.as_deref().and_then(|node| self.describe(passage, ask, node))
        {
            return described;
        }
        let Some(account) = &passage.account else {
            return Answer::Now(self.host(passage, ask, node.as_deref()));
        };
        // XEP-0175, 3: nobody is deceived about who has no account, and so no contacts who alone may ask.
        let is_seen = passage.is_own() || ask == Ask::Info && is_anonymous(passage);
        let has_nodes = (ask == Ask::Items || node.is_some()) && pep::shown::is_on(passage, account);
        if is_seen && !has_nodes {
            return Answer::Now(self.account(passage, ask, node.is_some(), true));
        }
        Answer::later(async move {
            let may_see = match is_seen {
                true => Ok(true),
                false => self.may_see(passage).await,
            };
            match may_see {
                Ok(true) if has_nodes => {
                    let shown = self.nodes(passage, ask, node.as_deref()).await;
                    shown.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
                }
                Ok(may_see) => self.account(passage, ask, node.is_some(), may_see),
                Err(error) => Reply::Error(store_failed(NAME, &error)),
            }
        })
    }
}

fn features<'a>(query: Element, features: impl Iterator<Item = &'a &'static str>) -> Element {
    let features: BTreeSet<&str> = features.copied().collect();
    features.into_iter().fold(query, |query, var| query.child(element("feature", INFO).with("var", var)))
}

impl Disco {
    fn host(&self, passage: &Passage, ask: Ask, node: Option<&str>) -> Reply {
        let own = || self.own.of(&*passage.services, passage.host().unwrap_or_default());
        match (ask, node) {
            (Ask::Items, None) => Reply::with(element("query", ITEMS)),
            (Ask::Info, None) => Reply::Written(own().written.clone()),
            (Ask::Info, Some(node)) => match own() {
                // XEP-0115, 6.2: the node is said again.
                own if own.is_at(node) => Reply::with(own.query.clone().with("node", node)),
                _ => Reply::Error(StanzaError::new(Condition::ItemNotFound)),
            },
            // XEP-0030, section 3.2: nobody has such a node.
            (Ask::Items, Some(_)) => Reply::Error(StanzaError::new(Condition::ItemNotFound)),
        }
    }

    /// XEP-0030, section 8: what strangers see must not tell whether the account exists.
    fn account(&self, passage: &Passage, ask: Ask, has_node: bool, may_see: bool) -> Reply {
        match ask {
            Ask::Info if !may_see => Reply::Error(StanzaError::new(Condition::ServiceUnavailable)),
            _ if has_node && may_see => Reply::Error(StanzaError::new(Condition::ItemNotFound)),
            Ask::Info => {
                let identity = element("identity", INFO).with("category", "account");
                let kind = if is_anonymous(passage) { "anonymous" } else { "registered" };
                let cards = passage.services.cards(passage.host().unwrap_or_default());
                let further = cards.iter().flat_map(|card| card.account_identities);
                let query = element("query", INFO).child(identity.with("type", kind));
                let query = further.fold(query, |query, (category, kind)| {
                    query.child(element("identity", INFO).with("category", category).with("type", kind))
                });
                Reply::with(features(query, cards.iter().flat_map(|card| card.account_features)))
            }
            Ask::Items if may_see && self.config.list_resources => Reply::with(resources(passage)),
            Ask::Items => Reply::with(element("query", ITEMS)),
        }
    }

    /// The nodes of an account, or one of them (XEP-0060, 5.1 to 5.5).
    async fn nodes(&self, passage: &Passage, ask: Ask, node: Option<&str>) -> Result<Reply, Failure> {
        let (Some(account), Some(from)) = (&passage.account, &passage.stanza.head.from) else {
            return Err(bad_request("no account").into());
        };
        Ok(Reply::with(match (ask, node) {
            (Ask::Info, Some(node)) => self.pep.node_info(passage, account, from, node).await?,
            (Ask::Items, Some(node)) => self.pep.node_items(passage, account, from, node).await?,
            (_, None) => {
                let listed = match self.config.list_resources {
                    true => resources(passage),
                    false => element("query", ITEMS),
                };
                let nodes = self.pep.visible(passage, account, from).await?;
                nodes.into_iter().fold(listed, Element::child)
            }
        }))
    }

    async fn may_see(&self, passage: &Passage) -> Result<bool, store::StoreError> {
        let (Some(account), Some(from)) = (&passage.account, &passage.stanza.head.from) else {
            return Ok(false);
        };
        Ok(self.rosters.of(&*passage.services, account).await?.lets_see(from))
    }
}

/// Whether the account that is asked about is none: the name of an anonymous session of this node.
fn is_anonymous(passage: &Passage) -> bool {
    let Some(account) = &passage.account else { return false };
    passage.services.local_sessions(account).iter().any(|session| session.is_anonymous())
}

fn resources(passage: &Passage) -> Element {
    let query = element("query", ITEMS);
    let Some(account) = &passage.account else { return query };
    let online = passage.services.online(account).into_iter();
    let available = online.filter(|resource| resource.priority.is_some());
    available
        .fold(query, |query, resource| query.child(element("item", ITEMS).with("jid", resource.jid.as_str())))
}

#[cfg(test)]
#[path = "disco_tests.rs"]
mod tests;

//! What a client asks of its privacy lists, read and answered in the words of [XEP-0016], 2.1.

use hooks::Services;
use jid::BareJid;
use minidom::Element;
use stanza::{Condition, IqType, Stanza, StanzaError, address};

use super::NS;
use crate::failure::bad_request;
use crate::privacylists::{Flow, Privacy, Rule, Who};
use crate::rosters::Roster;
use crate::xml::{Build, element};

/// The children of an item, and what they stand for.
const FLOWS: [(&str, Flow); 4] = [
    ("message", Flow::Message),
    ("iq", Flow::Iq),
    ("presence-in", Flow::PresenceIn),
    ("presence-out", Flow::PresenceOut),
];

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Names,
    Rules(String),
    Change(Change),
}

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Active(Option<String>),
    Default(Option<String>),
    Put(String, Vec<Rule>),
    Remove(String),
}

/// Reads a request.
pub(super) fn read(stanza: &Stanza) -> Result<Wish, StanzaError> {
    let (Ok(kind), Some(query)) = (stanza.iq_type(), stanza.payload()) else {
        return Err(bad_request("no payload"));
    };
    if query.name() != "query" {
        return Err(bad_request("ask by a `query`"));
    }
    let mut children = query.children();
    let child = match (children.next(), children.next()) {
        (None, _) if kind == IqType::Get => return Ok(Wish::Names),
        (Some(child), None) if child.has_ns(NS) => child,
        // XEP-0016, 2.1 and 2.3: one at a time.
        _ => return Err(bad_request("one `list`, or in a set one `active` or `default`")),
    };
    match (kind, child.name()) {
        (IqType::Get, "list") => Ok(Wish::Rules(name(child)?)),
        (IqType::Set, "active") => Ok(Wish::Change(Change::Active(chosen(child)?))),
        (IqType::Set, "default") => Ok(Wish::Change(Change::Default(chosen(child)?))),
        (IqType::Set, "list") => {
            let rules = rules(child)?;
            let name = name(child)?;
            // XEP-0016, 2.8.
            Ok(Wish::Change(if rules.is_empty() { Change::Remove(name) } else { Change::Put(name, rules) }))
        }
        _ => Err(bad_request("one `list`, or in a set one `active` or `default`")),
    }
}

fn name(element: &Element) -> Result<String, StanzaError> {
    chosen(element)?.ok_or_else(|| bad_request("a list needs a name"))
}

fn chosen(element: &Element) -> Result<Option<String>, StanzaError> {
    match element.attr("name") {
        Some("") => Err(bad_request("a name of a list is not empty")),
        name => Ok(name.map(str::to_owned)),
    }
}

fn rules(list: &Element) -> Result<Vec<Rule>, StanzaError> {
    let mut rules = Vec::new();
    for item in list.children() {
        if !item.is("item", NS) {
            return Err(bad_request("a list has items only"));
        }
        rules.push(rule(item)?);
    }
    rules.sort_by_key(|rule| rule.order);
    match rules.windows(2).any(|two| two[0].order == two[1].order) {
        true => Err(bad_request("each item has an order of its own")),
        false => Ok(rules),
    }
}

fn rule(item: &Element) -> Result<Rule, StanzaError> {
    let denies = match item.attr("action") {
        Some("allow") => false,
        Some("deny") => true,
        _ => return Err(bad_request("an action is `allow` or `deny`")),
    };
    let order = item.attr("order").filter(|order| order.bytes().all(|byte| byte.is_ascii_digit()));
    let order = order.and_then(|order| order.parse().ok());
    let order = order.ok_or_else(|| bad_request("an order is a whole number from 0 to 4294967295"))?;
    let who = match (item.attr("type"), item.attr("value")) {
        (None, _) => Who::Anyone,
        (Some("jid"), Some(jid)) => {
            let jid = address::jid(jid).map_err(|_| bad_request("the value is no address"))?;
            Who::Jid(jid.as_str().to_owned())
        }
        (Some("group"), Some(group)) if !group.is_empty() => Who::Group(group.to_owned()),
        (Some("subscription"), Some(word)) => {
            let (to, from) = match word {
                "none" => (false, false),
                "to" => (true, false),
                "from" => (false, true),
                "both" => (true, true),
                _ => return Err(bad_request("a subscription is `none`, `to`, `from` or `both`")),
            };
            Who::Subscription { to, from }
        }
        _ => return Err(bad_request("a type is `jid`, `group` or `subscription`, with a value")),
    };
    let mut flows = 0;
    for child in item.children() {
        let found = FLOWS.iter().find(|(name, _)| child.is(name, NS));
        let (_, flow) = found.ok_or_else(|| bad_request("an item has no such child"))?;
        flows |= *flow as u8;
    }
    Ok(Rule { order, denies, who, flows })
}

/// The names of all lists, and where they apply (XEP-0016, 2.3).
pub(super) fn names(privacy: &Privacy, resource: Option<&str>) -> Element {
    let named = |word: &str, name: &String| element(word, NS).with("name", name);
    let active = resource.and_then(|resource| privacy.active.get(resource));
    let all = active.map(|name| named("active", name)).into_iter();
    let all = all.chain(privacy.default.as_ref().map(|name| named("default", name)));
    let all = all.chain(privacy.lists.keys().map(|name| named("list", name)));
    all.fold(element("query", NS), Build::child)
}

/// One list with all of its rules.
pub(super) fn list(name: &str, rules: &[Rule]) -> Element {
    let list = element("list", NS).with("name", name);
    element("query", NS).child(rules.iter().map(written).fold(list, Build::child))
}

fn written(rule: &Rule) -> Element {
    let (kind, value) = match &rule.who {
        Who::Anyone => (None, None),
        Who::Jid(jid) => (Some("jid"), Some(jid.as_str())),
        Who::Group(group) => (Some("group"), Some(group.as_str())),
        Who::Subscription { to, from } => {
            let standing = crate::rosters::Standing { to: *to, from: *from, ..Default::default() };
            (Some("subscription"), Some(standing.word()))
        }
    };
    let item = element("item", NS)
        .with_some("type", kind)
        .with_some("value", value)
        .with("action", if rule.denies { "deny" } else { "allow" })
        .with("order", &rule.order.to_string());
    let flows = FLOWS.iter().filter(|(_, flow)| rule.flows & *flow as u8 != 0);
    flows.fold(item, |item, (name, _)| item.child(element(name, NS)))
}

/// What a change is held to.
pub(super) struct Bounds<'a> {
    pub lists_max: usize,
    pub items_max: usize,
    pub bytes_max: usize,
    pub roster: &'a Roster,
    /// The resources of the account that are bound, wherever.
    pub online: &'a [String],
    /// The one that asks.
    pub resource: &'a str,
}

impl Bounds<'_> {
    /// Those who are online besides the one that asks.
    pub fn others(&self) -> impl Iterator<Item = &String> {
        self.online.iter().filter(|one| *one != self.resource)
    }
}

impl Change {
    /// Makes the change, or says why not.
    pub fn apply(&self, privacy: &mut Privacy, bounds: &Bounds) -> Result<(), StanzaError> {
        // What sessions chose that are gone.
        privacy.active.retain(|resource, _| bounds.online.contains(resource));
        let exists = |privacy: &Privacy, name: &String| match privacy.lists.contains_key(name) {
            true => Ok(()),
            false => Err(StanzaError::new(Condition::ItemNotFound)),
        };
        match self {
            Change::Active(None) => {
                privacy.active.remove(bounds.resource);
            }
            Change::Active(Some(name)) => {
                exists(privacy, name)?;
                privacy.active.insert(bounds.resource.to_owned(), name.clone());
            }
            Change::Default(name) => {
                name.as_ref().map_or(Ok(()), |name| exists(privacy, name))?;
                // XEP-0016, 2.5.
                let is_used = bounds.others().any(|other| !privacy.active.contains_key(other));
                if privacy.default.is_some() && privacy.default != *name && is_used {
                    return Err(StanzaError::new(Condition::Conflict));
                }
                privacy.default = name.clone();
            }
            Change::Remove(name) => {
                exists(privacy, name)?;
                // XEP-0016, 2.8.
                if bounds.others().any(|other| privacy.name(Some(other)) == Some(name)) {
                    return Err(StanzaError::new(Condition::Conflict));
                }
                privacy.lists.remove(name);
                privacy.active.retain(|_, active| active != name);
                privacy.default.take_if(|default| default == name);
            }
            Change::Put(name, rules) => {
                // XEP-0016, 2.1.
                let is_known = |group| roster_has(bounds.roster, group);
                let unknown = rules.iter().any(|rule| match &rule.who {
                    Who::Group(group) => !is_known(group),
                    _ => false,
                });
                if unknown {
                    return Err(StanzaError::new(Condition::ItemNotFound));
                }
                privacy.lists.insert(name.clone(), rules.clone());
                let is_too_much = privacy.lists.len() > bounds.lists_max
                    || rules.len() > bounds.items_max
                    || privacy.size() > bounds.bytes_max;
                if is_too_much {
                    return Err(StanzaError::new(Condition::ResourceConstraint));
                }
            }
        }
        Ok(())
    }
}

fn roster_has(roster: &Roster, group: &String) -> bool {
    roster.items.values().any(|item| item.groups.contains(group))
}

/// The resources of an account that are bound, at whatever nodes.
pub(super) fn online(services: &dyn Services, account: &BareJid) -> Vec<String> {
    services.online(account).iter().map(|one| one.jid.resource().as_str().to_owned()).collect()
}

//! [XEP-0402], 5.3: bookmarks of clients that know only private storage (XEP-0049), and those of a node, are the same ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use hooks::Services;
use jid::BareJid;
use minidom::{Element, Node as XmlNode};
use stanza::{Condition, StanzaError, address, dom};

use super::Core;
use crate::failure::{Failure, bad_request};
use crate::pubsub::access::Asker;
use crate::pubsub::engine::New;
use crate::pubsub::events::{self, Event};
use crate::pubsub::form::Fields;
use crate::pubsub::listing::{Page, Wanted};
use crate::pubsub::tables::Item;
use crate::xml::Build;

/// The node, and the namespace of what is published at it.
const NODE: &str = "urn:xmpp:bookmarks:1";
/// The namespace of bookmarks in private storage (XEP-0048).
pub const STORAGE: &str = "storage:bookmarks";
/// What an account says that does this.
pub const COMPAT: &str = "urn:xmpp:bookmarks:1#compat";
/// XEP-0402, 3.3 and XEP-0223: for the owner alone, and all of them.
const OPTIONS: [(&str, &str); 4] = [
    ("pubsub#persist_items", "true"),
    ("pubsub#max_items", "max"),
    ("pubsub#send_last_published_item", "never"),
    ("pubsub#access_model", "whitelist"),
];

/// The same element where all of one namespace is of another one.
fn recast(element: &Element, from: &str, to: &str) -> Element {
    let namespace = if element.has_ns(from) { to.to_owned() } else { element.ns() };
    let mut cast = Element::bare(element.name(), namespace);
    for ((uri, name), value) in element.attrs().iter() {
        cast.set_attr(uri.clone(), name.clone(), value.as_str());
    }
    for node in element.nodes() {
        match node {
            XmlNode::Element(child) => {
                cast.append_child(recast(child, from, to));
            }
            XmlNode::Text(text) => {
                cast.append_text_node(text);
            }
        }
    }
    cast
}

/// A bookmark of private storage as an item: its id and payload.
fn item(conference: &Element) -> Result<(String, Vec<u8>), StanzaError> {
    let jid = conference.attr("jid").ok_or_else(|| bad_request("a bookmark needs a jid"))?;
    let jid = address::jid(jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    let mut cast = Element::bare("conference", NODE);
    let whole = recast(conference, STORAGE, NODE);
    for ((uri, name), value) in whole.attrs().iter().filter(|((_, name), _)| name.as_str() != "jid") {
        cast.set_attr(uri.clone(), name.clone(), value.as_str());
    }
    for child in whole.children() {
        cast.append_child(child.clone());
    }
    Ok((jid.as_str().to_owned(), dom::to_bytes(&cast).to_vec()))
}

fn owner(account: &BareJid) -> Asker {
    Asker { bare: account.clone(), is_owner: true, presence: true, groups: Vec::new() }
}

impl Core {
    async fn bookmark_items(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<Option<Vec<Item>>, Failure> {
        let service = self.service(services, account);
        let Some(node) = service.node(NODE).await?.filter(|node| node.config.persist) else {
            return Ok(None);
        };
        let (mut items, mut page) = (Vec::new(), Page::default());
        loop {
            let listing = service.items(NODE, &node, &Wanted::Page(page)).await?;
            items.extend(listing.items);
            let last = items.last().map(|item: &Item| item.id.clone());
            match (listing.set, last) {
                (Some(_), Some(last)) => page = Page { after: Some(last), ..Page::default() },
                _ => return Ok(Some(items)),
            }
        }
    }

    /// The bookmarks of the node as private storage has them; `None`: there is no such node.
    pub async fn bookmarks(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<Option<Vec<Element>>, Failure> {
        let Some(items) = self.bookmark_items(services, account).await? else { return Ok(None) };
        let cast = |item: Item| {
            let conference = dom::parse(&item.xml).ok()?;
            Some(recast(&conference, NODE, STORAGE).with("jid", &item.id))
        };
        Ok(Some(items.into_iter().filter_map(cast).collect()))
    }

    /// Makes the items of the node those that private storage names; those that change are told.
    pub async fn set_bookmarks(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        conferences: &[&Element],
    ) -> Result<(), Failure> {
        let mut wanted = BTreeMap::new();
        for conference in conferences {
            let (id, xml) = item(conference)?;
            wanted.insert(id, xml);
        }
        let (service, asker) = (self.service(&**services, account), owner(account));
        if wanted.len() > service.items_max() {
            return Err(StanzaError::new(Condition::ResourceConstraint).into());
        }
        let options = OPTIONS.map(|(var, value)| (var.to_owned(), vec![value.to_owned()]));
        let options = Fields(options.to_vec());
        if let Some(node) = service.node(NODE).await?
            && node.config.meets(&options, service.items_max()).is_err()
        {
            // Private storage is its owner's alone, and keeps all.
            service.configure(NODE, &options).await?;
        }
        let before = self.bookmark_items(&**services, account).await?;
        for old in before.into_iter().flatten() {
            match wanted.get(&old.id) {
                Some(xml) if *xml == old.xml => drop(wanted.remove(&old.id)),
                Some(_) => {}
                None => {
                    let node = service.retract(NODE, &old.id, &asker).await?.node;
                    let body = events::event(NODE, Event::Retracted { id: &old.id });
                    let others = service.others(NODE, &node).await?;
                    self.tell(services, account, &node.config, &others, body).await;
                }
            }
        }
        for (id, xml) in wanted {
            let new = New { id, xml, namespace: NODE.to_owned() };
            let node = service.publish(NODE, Some(&new), Some(&options), &asker).await?.node;
            let (id, xml) = (new.id, new.xml);
            let item = Item { id, publisher: account.as_str().to_owned(), at_s: service.now_s, xml };
            let event = Event::Published { item: Some(&item), payload: node.config.deliver_payloads };
            let others = service.others(NODE, &node).await?;
            self.tell(services, account, &node.config, &others, events::event(NODE, event)).await;
        }
        Ok(())
    }
}

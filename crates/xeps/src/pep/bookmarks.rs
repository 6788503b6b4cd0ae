//! [XEP-0402], 5.3 and [XEP-0411]: bookmarks of private storage (XEP-0049) and of both nodes that clients know are the same
//! ones.
//!
//! The items of the newer node are what counts. The older one, of XEP-0048, has all of them in one item, which is made anew
//! with each change. What stands beside rooms, as addresses of pages, is kept there. Retracting that item, or ending its
//! node, takes no bookmark away.

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
use crate::pubsub::errors;
use crate::pubsub::events::{self, Event};
use crate::pubsub::form::Fields;
use crate::pubsub::listing::{Page, Wanted};
use crate::pubsub::tables::Item;
use crate::xml::Build;

/// The node, and the namespace of what is published at it.
const NODE: &str = "urn:xmpp:bookmarks:1";
/// The namespace of bookmarks in private storage (XEP-0048).
pub const STORAGE: &str = "storage:bookmarks";
/// The one item of the node of that name.
const CURRENT: &str = "current";
/// What an account says that does this.
pub const COMPAT: &str = "urn:xmpp:bookmarks:1#compat";
/// The same for clients that publish at the node of XEP-0048 (XEP-0411, 2).
pub const CONVERSION: &str = "urn:xmpp:bookmarks-conversion:0";
/// XEP-0048, 3.1 and XEP-0411, 5: of that node, which tells who comes online.
const STORAGE_OPTIONS: [(&str, &str); 2] =
    [("pubsub#persist_items", "true"), ("pubsub#access_model", "whitelist")];
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

    /// What stands beside rooms at the node of XEP-0048; `None`: there is no such node.
    pub async fn beside_bookmarks(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<Option<Vec<Element>>, Failure> {
        Ok(self
            .storage(services, account)
            .await?
            .map(|storage| storage.children().filter(|child| !is_room(child)).cloned().collect()))
    }

    async fn storage(&self, services: &dyn Services, account: &BareJid) -> Result<Option<Element>, Failure> {
        let service = self.service(services, account);
        let Some(node) = service.node(STORAGE).await? else { return Ok(None) };
        let item = service.last(STORAGE, &node).await?;
        Ok(item.and_then(|item| dom::parse(&item.xml).ok()).filter(|storage| storage.is("storage", STORAGE)))
    }

    /// Makes the item of the node of XEP-0048 anew and tells of it, if it is not as it was. `beside`: what stands beside
    /// rooms, if that was changed.
    pub async fn renew_storage(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        beside: Option<Vec<Element>>,
    ) -> Result<(), Failure> {
        let before = self.storage(&**services, account).await?;
        let beside = match beside {
            Some(beside) => beside,
            None => self.beside_bookmarks(&**services, account).await?.unwrap_or_default(),
        };
        let rooms = self.bookmarks(&**services, account).await?.unwrap_or_default();
        let storage = beside.into_iter().chain(rooms).fold(Element::bare("storage", STORAGE), Build::child);
        let is_as_before = match &before {
            Some(before) => dom::to_bytes(before) == dom::to_bytes(&storage),
            None => storage.nodes().next().is_none(),
        };
        if is_as_before {
            return Ok(());
        }
        let service = self.service(&**services, account);
        let options = STORAGE_OPTIONS.map(|(var, value)| (var.to_owned(), vec![value.to_owned()]));
        let options = Fields(options.to_vec());
        if let Some(node) = service.node(STORAGE).await?
            && node.config.meets(&options, service.items_max()).is_err()
        {
            service.configure(STORAGE, &options).await?;
        }
        let xml = dom::to_bytes(&storage).to_vec();
        let new = New { id: CURRENT.to_owned(), xml, namespace: STORAGE.to_owned() };
        let node = service.publish(STORAGE, Some(&new), Some(&options), &owner(account)).await?.node;
        let publisher = account.as_str().to_owned();
        let item = Item { id: new.id, publisher, at_s: service.now_s, xml: new.xml };
        let event = Event::Published { item: Some(&item), payload: node.config.deliver_payloads };
        let others = service.others(STORAGE, &node).await?;
        self.tell(services, account, &node.config, &others, events::event(STORAGE, event)).await;
        Ok(())
    }

    /// What was changed at one node of bookmarks is changed at the other one too. The change stands whatever becomes of it.
    pub(super) async fn bookmarks_changed(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        name: &str,
    ) {
        let copied = match name {
            NODE => self.renew_storage(services, account, None).await,
            STORAGE => self.take_storage(services, account).await,
            _ => return,
        };
        if let Err(failure) = copied {
            drop(failure.answer(super::NAME));
        }
    }

    /// Makes the bookmarks those of the item that was published at the node of XEP-0048.
    async fn take_storage(&self, services: &Arc<dyn Services>, account: &BareJid) -> Result<(), Failure> {
        let Some(storage) = self.storage(&**services, account).await? else { return Ok(()) };
        let rooms: Vec<&Element> = storage.children().filter(is_room).collect();
        self.set_bookmarks(services, account, &rooms).await
    }
}

fn is_room(child: &&Element) -> bool {
    child.is("conference", STORAGE)
}

/// Whether bookmarks that a client is about to publish at the node of XEP-0048 are some.
pub(super) fn check_storage(name: &str, storage: &[u8]) -> Result<(), StanzaError> {
    if name != STORAGE {
        return Ok(());
    }
    let storage = dom::parse(storage).ok().filter(|storage| storage.is("storage", STORAGE));
    let storage = storage.ok_or_else(errors::invalid_payload)?;
    storage.children().filter(is_room).try_for_each(|room| item(room).map(drop))
}

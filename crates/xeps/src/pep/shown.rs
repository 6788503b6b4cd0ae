//! What service discovery shows of the nodes of an account (XEP-0060, 5.1 to 5.5); `disco` asks.

use hooks::Passage;
use jid::{BareJid, Jid};
use minidom::Element;

use super::caps::INFO;
use super::{Core, NAME};
use crate::failure::Failure;
use crate::pubsub::engine::standing;
use crate::pubsub::form;
use crate::pubsub::tables::Node;
use crate::pubsub::{NS, errors};
use crate::time::utc;
use crate::xml::{Build, element};

/// What every account can do as a service (XEP-0060, section 10).
pub const FEATURES: &[&str] = &[
    "http://jabber.org/protocol/pubsub",
    "http://jabber.org/protocol/pubsub#access-authorize",
    "http://jabber.org/protocol/pubsub#access-open",
    "http://jabber.org/protocol/pubsub#access-presence",
    "http://jabber.org/protocol/pubsub#access-roster",
    "http://jabber.org/protocol/pubsub#access-whitelist",
    "http://jabber.org/protocol/pubsub#auto-create",
    "http://jabber.org/protocol/pubsub#auto-subscribe",
    "http://jabber.org/protocol/pubsub#config-node",
    "http://jabber.org/protocol/pubsub#config-node-max",
    "http://jabber.org/protocol/pubsub#create-and-configure",
    "http://jabber.org/protocol/pubsub#create-nodes",
    "http://jabber.org/protocol/pubsub#delete-items",
    "http://jabber.org/protocol/pubsub#delete-nodes",
    "http://jabber.org/protocol/pubsub#filtered-notifications",
    "http://jabber.org/protocol/pubsub#instant-nodes",
    "http://jabber.org/protocol/pubsub#item-ids",
    "http://jabber.org/protocol/pubsub#last-published",
    "http://jabber.org/protocol/pubsub#manage-subscriptions",
    "http://jabber.org/protocol/pubsub#member-affiliation",
    "http://jabber.org/protocol/pubsub#meta-data",
    "http://jabber.org/protocol/pubsub#modify-affiliations",
    "http://jabber.org/protocol/pubsub#multi-items",
    "http://jabber.org/protocol/pubsub#outcast-affiliation",
    "http://jabber.org/protocol/pubsub#persistent-items",
    "http://jabber.org/protocol/pubsub#presence-subscribe",
    "http://jabber.org/protocol/pubsub#publish",
    "http://jabber.org/protocol/pubsub#publish-only-affiliation",
    "http://jabber.org/protocol/pubsub#publish-options",
    "http://jabber.org/protocol/pubsub#publisher-affiliation",
    "http://jabber.org/protocol/pubsub#purge-nodes",
    "http://jabber.org/protocol/pubsub#retract-items",
    "http://jabber.org/protocol/pubsub#retrieve-affiliations",
    "http://jabber.org/protocol/pubsub#retrieve-default",
    "http://jabber.org/protocol/pubsub#retrieve-items",
    "http://jabber.org/protocol/pubsub#retrieve-subscriptions",
    "http://jabber.org/protocol/pubsub#rsm",
    "http://jabber.org/protocol/pubsub#subscribe",
    "http://jabber.org/protocol/pubsub#subscription-notifications",
];

const META_DATA: &str = "http://jabber.org/protocol/pubsub#meta-data";
const ITEMS: &str = "http://jabber.org/protocol/disco#items";

/// Whether the accounts of this host have nodes.
pub fn is_on(passage: &Passage, account: &BareJid) -> bool {
    passage.services.cards(account.domain().as_str()).iter().any(|card| card.name == NAME)
}

impl Core {
    /// The nodes that somebody may see, as items of the account (5.2).
    pub async fn visible(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: &Jid,
    ) -> Result<Vec<Element>, Failure> {
        let services = &*passage.services;
        let service = self.service(services, account);
        let nodes = service.nodes().await?;
        let asker = self.asker(services, account, from).await?;
        let mut shown = Vec::new();
        for (name, node) in nodes {
            let other = service.other(&name, &node, &asker).await?;
            if standing(&asker, &other).may_read(&node.config).is_ok() {
                let item = element("item", ITEMS).with("jid", account.as_str()).with("node", &name);
                let title = Some(node.config.title.as_str()).filter(|title| !title.is_empty());
                shown.push(item.with_some("name", title));
            }
        }
        Ok(shown)
    }

    /// A node that somebody may see; to others it is not there.
    async fn seen(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: &Jid,
        name: &str,
    ) -> Result<Node, Failure> {
        let services = &*passage.services;
        let service = self.service(services, account);
        let node = service.existing(name).await?;
        let asker = self.asker(services, account, from).await?;
        let other = service.other(name, &node, &asker).await?;
        match standing(&asker, &other).may_read(&node.config) {
            Ok(()) => Ok(node),
            Err(_) => Err(errors::not_found().into()),
        }
    }

    /// What a node is (5.3 and 5.4).
    pub async fn node_info(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: &Jid,
        name: &str,
    ) -> Result<Element, Failure> {
        let node = self.seen(passage, account, from, name).await?;
        let created =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(node.created_s.min(u32::MAX.into()));
        let count = self.limits.items;
        let config = &node.config;
        let fields = [
            ("pubsub#title", config.title.clone()),
            ("pubsub#description", config.description.clone()),
            ("pubsub#language", config.language.clone()),
            ("pubsub#type", config.payload_type.clone()),
            ("pubsub#creation_date", utc(created)),
            ("pubsub#owner", account.as_str().to_owned()),
            ("pubsub#access_model", config.access.word().to_owned()),
            ("pubsub#publish_model", config.publish.word().to_owned()),
            ("pubsub#max_items", config.max_items.of(count).to_string()),
        ];
        let mut form = form::form("result", META_DATA);
        for (var, value) in fields {
            if !value.is_empty() {
                form.append_child(form::field(var, None, [value.as_str()]));
            }
        }
        let query = element("query", INFO).with("node", name);
        let query = query.child(element("identity", INFO).with("category", "pubsub").with("type", "leaf"));
        let feature = |var| element("feature", INFO).with("var", var);
        Ok(query.child(feature(NS)).child(feature(META_DATA)).child(form))
    }

    /// The items of a node (5.5).
    pub async fn node_items(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: &Jid,
        name: &str,
    ) -> Result<Element, Failure> {
        let node = self.seen(passage, account, from, name).await?;
        let ids = self.service(&*passage.services, account).ids(name, &node).await?;
        let item = |id: &String| element("item", ITEMS).with("jid", account.as_str()).with("name", id);
        Ok(ids.iter().map(item).fold(element("query", ITEMS).with("node", name), Build::child))
    }
}

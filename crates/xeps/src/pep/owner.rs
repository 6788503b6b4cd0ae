//! What the owner of a node asks of it: configuration, its end, who has to do with it (XEP-0060, section 8).

use hooks::Reply;
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::address::{self, same_account};
use stanza::{IqType, StanzaError};

use super::notify::random_id;
use super::requests::{Request, node_of};
use crate::failure::{Failure, bad_request};
use crate::pubsub::access::Affiliation;
use crate::pubsub::config::{NODE_CONFIG, NodeConfig};
use crate::pubsub::events::{self, Event};
use crate::pubsub::form::Fields;
use crate::pubsub::tables::Other;
use crate::pubsub::{OWNER, errors};
use crate::xml::{Build, element};

/// The most changes of one request.
const CHANGES_MAX: usize = 100;

fn pubsub(child: Element) -> Reply {
    Reply::with(element("pubsub", OWNER).child(child))
}

/// The children of a list, by their address and the word of an attribute; those without the word change nothing (8.8.2).
fn changes(list: &Element, name: &str, attribute: &str) -> Result<Vec<(Jid, String)>, StanzaError> {
    let mut changes = Vec::new();
    for child in list.children().filter(|child| child.is(name, OWNER)) {
        let jid = child.attr("jid").ok_or_else(|| bad_request("a jid is missing"))?;
        let jid = address::jid(jid).map_err(|_| errors::invalid_jid())?;
        if let Some(word) = child.attr(attribute) {
            changes.push((jid, word.to_owned()));
        }
    }
    match changes.len() <= CHANGES_MAX {
        true => Ok(changes),
        false => Err(errors::not_acceptable("too many changes at a time")),
    }
}

impl Request<'_> {
    pub async fn owner(&self) -> Result<Reply, Failure> {
        let action = self.payload.children().find(|child| child.has_ns(OWNER));
        let action = action.ok_or_else(|| bad_request("the request asks for nothing"))?;
        match (self.passage.stanza.iq_type(), action.name()) {
            (Ok(IqType::Get), "default") => {
                let form = NodeConfig::default().form("form");
                Ok(pubsub(element("default", OWNER).child(form)))
            }
            (Ok(IqType::Get), "configure") => self.configuration(node_of(action)?).await,
            (Ok(IqType::Set), "configure") => self.configure(node_of(action)?, action).await,
            (Ok(IqType::Set), "delete") => self.delete(node_of(action)?, action).await,
            (Ok(IqType::Set), "purge") => self.purge(node_of(action)?).await,
            (Ok(IqType::Get), "subscriptions") => self.subscribers(node_of(action)?).await,
            (Ok(IqType::Set), "subscriptions") => self.set_subscribers(node_of(action)?, action).await,
            (Ok(IqType::Get), "affiliations") => self.affiliates(node_of(action)?).await,
            (Ok(IqType::Set), "affiliations") => self.set_affiliates(node_of(action)?, action).await,
            _ => Err(bad_request("there is no such request").into()),
        }
    }

    /// 8.2.1.
    async fn configuration(&self, name: &str) -> Result<Reply, Failure> {
        let node = self.service().existing(name).await?;
        let form = node.config.form("form");
        Ok(pubsub(element("configure", OWNER).with("node", name).child(form)))
    }

    /// 8.2.4.
    async fn configure(&self, name: &str, action: &Element) -> Result<Reply, Failure> {
        let service = self.service();
        let Some(fields) = Fields::read(action, NODE_CONFIG)? else {
            service.existing(name).await?;
            return Ok(Reply::empty());
        };
        let node = service.configure(name, &fields).await?.node;
        if node.config.notify_config {
            let form = node.config.deliver_payloads.then(|| node.config.form("result"));
            let others = service.others(name, &node).await?;
            let body = events::event(name, Event::Configured { form: form.as_ref() });
            self.core.tell(&self.passage.services, self.account, &node.config, &others, body).await;
        }
        Ok(Reply::empty())
    }

    /// 8.4.
    async fn delete(&self, name: &str, action: &Element) -> Result<Reply, Failure> {
        if action.get_child("redirect", OWNER).is_some() {
            return Err(errors::unsupported("delete-redirect").into());
        }
        let (node, others) = self.service().delete(name).await?;
        if node.config.notify_delete {
            let body = events::event(name, Event::Deleted);
            self.core.tell(&self.passage.services, self.account, &node.config, &others, body).await;
        }
        if name != super::bookmarks::STORAGE {
            self.changed(name).await;
        }
        Ok(Reply::empty())
    }

    /// 8.5.
    async fn purge(&self, name: &str) -> Result<Reply, Failure> {
        let service = self.service();
        let node = service.purge(name).await?.node;
        if node.config.notify_retract {
            let others = service.others(name, &node).await?;
            let body = events::event(name, Event::Purged);
            self.core.tell(&self.passage.services, self.account, &node.config, &others, body).await;
        }
        if name != super::bookmarks::STORAGE {
            self.changed(name).await;
        }
        Ok(Reply::empty())
    }

    async fn everybody(&self, name: &str) -> Result<Vec<(String, Other)>, Failure> {
        let service = self.service();
        let node = service.existing(name).await?;
        Ok(service.others(name, &node).await?)
    }

    /// 8.8.1; those who wait are shown too, as 8.8.2 is how a client that lost the request approves of them.
    async fn subscribers(&self, name: &str) -> Result<Reply, Failure> {
        let mut list = element("subscriptions", OWNER).with("node", name);
        for (_, other) in self.everybody(name).await? {
            for one in &other.subscriptions {
                let told = element("subscription", OWNER).with("jid", &one.jid).with("subid", &one.id);
                list = list.child(told.with("subscription", one.state()));
            }
        }
        Ok(pubsub(list))
    }

    /// 8.8.2.
    async fn set_subscribers(&self, name: &str, action: &Element) -> Result<Reply, Failure> {
        let changes = changes(action, "subscription", "subscription")?;
        let (service, services) = (self.service(), &*self.passage.services);
        service.existing(name).await?;
        if changes.iter().any(|(_, word)| !matches!(word.as_str(), "subscribed" | "none")) {
            return Err(errors::not_acceptable("`subscribed` or `none`").into());
        }
        for (jid, word) in changes {
            let id = (word == "subscribed").then(|| random_id(services));
            let (_, changed) = service.set_subscription(name, &jid, id.as_deref()).await?;
            if changed {
                self.tell_subscriber(name, jid.as_str(), &word).await;
            }
        }
        Ok(Reply::empty())
    }

    /// 8.9.1.
    async fn affiliates(&self, name: &str) -> Result<Reply, Failure> {
        let everybody = self.everybody(name).await?;
        let affiliation = |jid: &str, affiliation: Affiliation| {
            element("affiliation", OWNER).with("jid", jid).with("affiliation", affiliation.word())
        };
        let list = element("affiliations", OWNER).with("node", name);
        let mut list = list.child(affiliation(self.account.as_str(), Affiliation::Owner));
        for (bare, other) in everybody {
            if other.affiliation != Affiliation::None {
                list = list.child(affiliation(&bare, other.affiliation));
            }
        }
        Ok(pubsub(list))
    }

    /// 8.9.2.
    async fn set_affiliates(&self, name: &str, action: &Element) -> Result<Reply, Failure> {
        let mut wanted: Vec<(BareJid, Affiliation)> = Vec::new();
        for (jid, word) in changes(action, "affiliation", "affiliation")? {
            let affiliation = Affiliation::read(&word);
            let is_account = same_account(&jid, &Jid::from(self.account.clone()));
            match affiliation {
                Some(Affiliation::Owner) if is_account => {}
                // There is one owner, and it is the account (XEP-0163, 2.2).
                Some(Affiliation::Owner) | None => {
                    return Err(errors::not_acceptable("there is no such affiliation to give").into());
                }
                Some(_) if is_account => {
                    return Err(errors::not_acceptable("the account owns its nodes").into());
                }
                Some(affiliation) => wanted.push((jid.to_bare(), affiliation)),
            }
        }
        let service = self.service();
        service.existing(name).await?;
        for (bare, affiliation) in wanted {
            let (_, ended) = service.set_affiliation(name, &bare, affiliation).await?;
            for subscription in ended {
                self.tell_subscriber(name, &subscription.jid, "none").await;
            }
        }
        Ok(Reply::empty())
    }
}

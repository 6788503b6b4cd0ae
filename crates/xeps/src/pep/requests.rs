//! What those who may see a node ask of it: to publish, to read, to subscribe (XEP-0060, sections 5 to 7 and 8.1).

use hooks::{Answer, Passage, Reply};
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::{IqType, StanzaError, address, dom};

use super::notify::{available, message, random_id, send};
use super::{Core, Pep};
use crate::failure::{Failure, bad_request};
use crate::pubsub::access::{Affiliation, Asker};
use crate::pubsub::config::{NODE_CONFIG, NodeConfig, PUBLISH_OPTIONS, Style};
use crate::pubsub::engine::{New, Service, sends_last, standing};
use crate::pubsub::events::{self, Event, with_subscription};
use crate::pubsub::form::{self, Fields};
use crate::pubsub::listing::{RSM, Wanted};
use crate::pubsub::tables::{Item, Node, Subscription};
use crate::pubsub::{NS, errors};
use crate::xml::{Build, element};

pub(super) const AUTHORIZATION: &str = "http://jabber.org/protocol/pubsub#subscribe_authorization";

/// A request to the nodes of an account.
pub(super) struct Request<'a> {
    pub core: &'a Core,
    pub passage: &'a Passage,
    pub account: &'a BareJid,
    pub asker: &'a Asker,
    pub payload: &'a Element,
}

/// The node that an element names.
pub(super) fn node_of(element: &Element) -> Result<&str, StanzaError> {
    element.attr("node").filter(|node| !node.is_empty()).ok_or_else(errors::node_required)
}

fn pubsub(child: Element) -> Reply {
    Reply::with(element("pubsub", NS).child(child))
}

pub(super) fn subscription(node: &str, subscription: &Subscription) -> Element {
    let told = element("subscription", NS).with("node", node).with("jid", &subscription.jid);
    told.with("subid", &subscription.id).with("subscription", subscription.state())
}

impl<'a> Request<'a> {
    pub fn service(&self) -> Service<'a> {
        self.core.service(&*self.passage.services, self.account)
    }

    pub async fn answer(&self) -> Result<Reply, Failure> {
        let action = self.payload.children().find(|child| child.has_ns(NS));
        let action = action.ok_or_else(|| bad_request("the request asks for nothing"))?;
        match (self.passage.stanza.iq_type(), action.name()) {
            (Ok(IqType::Get), "items") => self.items(action).await,
            (Ok(IqType::Get), "subscriptions") => self.subscriptions(action).await,
            (Ok(IqType::Get), "affiliations") => self.affiliations(action).await,
            (Ok(IqType::Get), "default") => Err(errors::unsupported("retrieve-default-sub").into()),
            (Ok(IqType::Set), "publish") => self.publish(action).await,
            (Ok(IqType::Set), "retract") => self.retract(action).await,
            (Ok(IqType::Set), "subscribe") => self.subscribe(action).await,
            (Ok(IqType::Set), "unsubscribe") => self.unsubscribe(action).await,
            (Ok(IqType::Set), "create") => self.create(action).await,
            (_, "options") => Err(errors::unsupported("subscription-options").into()),
            _ => Err(bad_request("there is no such request").into()),
        }
    }

    async fn items(&self, action: &Element) -> Result<Reply, Failure> {
        let (name, service) = (node_of(action)?, self.service());
        let node = service.existing(name).await?;
        let other = service.other(name, &node, self.asker).await?;
        standing(self.asker, &other).may_read(&node.config)?;
        if let Some(id) = action.attr("subid")
            && !other.subscriptions.iter().any(|one| one.id == id)
        {
            return Err(errors::invalid_subid().into());
        }
        let wanted = Wanted::read(action, self.payload.get_child("set", RSM))?;
        let listing = service.items(name, &node, &wanted).await?;
        let set = listing.set.map(|set| set.element());
        Ok(Reply::Written(events::listing(name, &listing.items, set.as_ref())))
    }

    async fn publish(&self, action: &Element) -> Result<Reply, Failure> {
        let (name, service, services) = (node_of(action)?, self.service(), &self.passage.services);
        let new = self.new_item(action)?;
        if let (true, Some(new)) = (self.asker.is_owner, &new) {
            super::bookmarks::check_storage(name, &new.xml)?;
        }
        let options = match self.payload.get_child("publish-options", NS) {
            Some(options) => Fields::read(options, PUBLISH_OPTIONS)?,
            None => None,
        };
        let changed = service.publish(name, new.as_ref(), options.as_ref(), self.asker).await?;
        let config = &changed.node.config;
        let others = service.others(name, &changed.node).await?;
        let item = new.map(|new| Item {
            id: new.id,
            publisher: self.asker.bare.as_str().to_owned(),
            at_s: service.now_s,
            xml: new.xml,
        });
        let event = Event::Published { item: item.as_ref(), payload: config.deliver_payloads };
        self.core.tell(services, self.account, config, &others, events::event(name, event)).await;
        self.changed(name).await;
        let published = element("publish", NS).with("node", name);
        Ok(pubsub(match &item {
            Some(item) => published.child(element("item", NS).with("id", &item.id)),
            None => published,
        }))
    }

    fn new_item(&self, publish: &Element) -> Result<Option<New>, StanzaError> {
        let mut items = publish.children().filter(|child| child.is("item", NS));
        let Some(item) = items.next() else { return Ok(None) };
        if items.next().is_some() {
            // 7.1.1: batches are no more.
            return Err(bad_request("one item at a time"));
        }
        let mut payloads = item.children();
        let payload = payloads.next();
        if payloads.next().is_some() {
            return Err(errors::invalid_payload());
        }
        let id = item.attr("id").filter(|id| !id.is_empty());
        Ok(Some(New {
            id: id.map_or_else(|| random_id(&*self.passage.services), str::to_owned),
            xml: payload.map(|payload| dom::to_bytes(payload).to_vec()).unwrap_or_default(),
            namespace: payload.map(Element::ns).unwrap_or_default(),
        }))
    }

    async fn retract(&self, action: &Element) -> Result<Reply, Failure> {
        let (name, service) = (node_of(action)?, self.service());
        let id = action.get_child("item", NS).and_then(|item| item.attr("id")).filter(|id| !id.is_empty());
        let id = id.ok_or_else(errors::item_required)?;
        let notify = action.attr("notify").map(|notify| form::truth(notify).ok_or(notify)).transpose();
        let notify = notify.map_err(|_| bad_request("`notify` is a truth value"))?;
        let changed = service.retract(name, id, self.asker).await?;
        // 7.2.2.1: who asks for it has it told; who does not say leaves it to the node.
        if notify.unwrap_or(changed.node.config.notify_retract) {
            let others = service.others(name, &changed.node).await?;
            let body = events::event(name, Event::Retracted { id });
            let services = &self.passage.services;
            self.core.tell(services, self.account, &changed.node.config, &others, body).await;
        }
        if name != super::bookmarks::STORAGE {
            self.changed(name).await;
        }
        Ok(Reply::empty())
    }

    /// The owner has changed what is kept elsewhere too: a picture (XEP-0398, 3.1) or bookmarks (XEP-0411, 3).
    pub(super) async fn changed(&self, name: &str) {
        if !self.asker.is_owner {
            return;
        }
        if name == super::avatars::METADATA {
            self.core.picture_to_vcard(&self.passage.services, self.account).await;
        }
        self.core.bookmarks_changed(&self.passage.services, self.account, name).await;
    }

    async fn create(&self, action: &Element) -> Result<Reply, Failure> {
        if !self.asker.is_owner {
            return Err(errors::forbidden().into());
        }
        let service = self.service();
        let mut config = NodeConfig::default();
        if let Some(configure) = self.payload.get_child("configure", NS)
            && let Some(fields) = Fields::read(configure, NODE_CONFIG)?
        {
            config.submit(&fields, service.items_max())?;
        }
        match action.attr("node").filter(|node| !node.is_empty()) {
            Some(name) => {
                service.create(name, &config).await?;
                Ok(Reply::empty())
            }
            None => {
                // 8.1.2: an instant node.
                let name = random_id(&*self.passage.services);
                service.create(&name, &config).await?;
                Ok(pubsub(element("create", NS).with("node", &name)))
            }
        }
    }

    fn subscriber(&self, action: &Element) -> Result<Jid, StanzaError> {
        let jid = action.attr("jid").ok_or_else(|| bad_request("a subscription needs a jid"))?;
        address::jid(jid).map_err(|_| errors::invalid_jid())
    }

    async fn subscribe(&self, action: &Element) -> Result<Reply, Failure> {
        let (name, service, services) = (node_of(action)?, self.service(), &*self.passage.services);
        if self.payload.get_child("options", NS).is_some() {
            return Err(errors::unsupported("subscription-options").into());
        }
        let jid = self.subscriber(action)?;
        let id = random_id(services);
        let subscribed = service.subscribe(name, &jid, self.asker, &id).await?;
        let (node, told) = (&subscribed.node, &subscribed.subscription);
        if subscribed.is_new && told.pending {
            self.ask_owner(name, told).await;
        }
        if subscribed.is_new && !told.pending {
            self.tell_owner(name, node, told.jid.as_str(), told.state()).await;
            self.send_last(&service, name, node, told, &jid).await?;
        }
        Ok(pubsub(subscription(name, told)))
    }

    /// 6.1.7.
    pub async fn send_last(
        &self,
        service: &Service<'_>,
        name: &str,
        node: &Node,
        told: &Subscription,
        jid: &Jid,
    ) -> Result<(), Failure> {
        if !sends_last(&node.config, false) {
            return Ok(());
        }
        let Some(item) = service.last(name, node).await? else { return Ok(()) };
        let event = Event::Published { item: Some(&item), payload: node.config.deliver_payloads };
        let body = with_subscription(&events::event(name, event), &told.id);
        self.send_to(jid, node.config.style, body).await;
        Ok(())
    }

    /// Sends to a subscriber of ours what is for them alone: to every session of an account (XEP-0163, 4.3.2).
    pub async fn send_to(&self, jid: &Jid, style: Style, body: bytes::Bytes) {
        let services = &*self.passage.services;
        if !services.is_local_host(jid.domain().as_str()) {
            return;
        }
        let to = match jid.is_full() {
            true => vec![jid.clone()],
            false => available(services, &jid.to_bare()).map(Jid::from).collect(),
        };
        send(services, &message(self.account, style, body, services), to).await;
    }

    /// 8.6: the owner is asked, now or when they come.
    async fn ask_owner(&self, name: &str, told: &Subscription) {
        let services = &*self.passage.services;
        let fields = [
            form::field("pubsub#subid", Some("hidden"), [told.id.as_str()]),
            form::field("pubsub#node", Some("text-single"), [name]),
            form::field("pubsub#subscriber_jid", Some("jid-single"), [told.jid.as_str()]),
            form::field("pubsub#allow", Some("boolean"), [form::word(false)]),
        ];
        let asked = fields.into_iter().fold(form::form("form", AUTHORIZATION), Build::child);
        let body = dom::to_bytes(&asked);
        let ask = message(self.account, Style::Normal, body, services);
        send(services, &ask, vec![Jid::from(self.account.clone())]).await;
    }

    /// `pubsub#notify_sub`.
    async fn tell_owner(&self, name: &str, node: &Node, jid: &str, state: &str) {
        if node.config.notify_sub {
            let body = events::event(name, Event::Subscription { jid, state });
            self.send_to(&Jid::from(self.account.clone()), Style::Headline, body).await;
        }
    }

    async fn unsubscribe(&self, action: &Element) -> Result<Reply, Failure> {
        let (name, service) = (node_of(action)?, self.service());
        let jid = self.subscriber(action)?;
        let (node, ended) = service.unsubscribe(name, &jid, action.attr("subid"), self.asker).await?;
        self.tell_owner(name, &node, &ended.jid, "none").await;
        Ok(Reply::empty())
    }

    /// 5.6.
    async fn subscriptions(&self, action: &Element) -> Result<Reply, Failure> {
        let mut list = element("subscriptions", NS).with_some("node", action.attr("node"));
        for (name, other, _) in self.known(action).await? {
            for one in &other.subscriptions {
                list = list.child(subscription(&name, one));
            }
        }
        Ok(pubsub(list))
    }

    /// 5.7.
    async fn affiliations(&self, action: &Element) -> Result<Reply, Failure> {
        let mut list = element("affiliations", NS).with_some("node", action.attr("node"));
        for (name, other, is_owner) in self.known(action).await? {
            let affiliation = if is_owner { Affiliation::Owner } else { other.affiliation };
            if affiliation != Affiliation::None {
                let told = element("affiliation", NS).with("node", &name);
                list = list.child(told.with("affiliation", affiliation.word()));
            }
        }
        Ok(pubsub(list))
    }

    /// What the node that is named, or each, knows of the asker, and whether they own it.
    async fn known(
        &self,
        action: &Element,
    ) -> Result<Vec<(String, crate::pubsub::tables::Other, bool)>, Failure> {
        let service = self.service();
        let nodes = match action.attr("node").filter(|node| !node.is_empty()) {
            Some(name) => vec![(name.to_owned(), service.existing(name).await?)],
            None => service.nodes().await?,
        };
        let mut known = Vec::new();
        for (name, node) in nodes {
            let other = service.own(&name, &node, self.asker).await?;
            known.push((name, other, self.asker.is_owner));
        }
        Ok(known)
    }
}

impl Pep {
    /// The owner's answer to who asked to subscribe (8.6).
    pub(super) fn decided<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let passage: &'a Passage = passage;
        let (Some(account), Some(sender)) = (&passage.account, &passage.sender) else { return Answer::PASS };
        let is_own = match &passage.stanza.head.to {
            None => true,
            Some(to) => to.is_bare() && address::same_account(to, account),
        };
        if !is_own || !passage.stanza.has_child("x", crate::forms::NS) {
            return Answer::PASS;
        }
        let fields = match Fields::read(passage.stanza.dom(), AUTHORIZATION) {
            Ok(Some(fields)) => fields,
            // Cancelled: the request waits on.
            Ok(None) => return Answer::STOP,
            Err(_) => return Answer::PASS,
        };
        let from = Jid::from(sender.jid().clone());
        Answer::later(async move {
            match self.decide(passage, account, &from, &fields).await {
                Ok(()) => hooks::Verdict::Stop,
                Err(failure) => hooks::Verdict::refuse(failure.answer(super::NAME)),
            }
        })
    }

    async fn decide(
        &self,
        passage: &Passage,
        account: &BareJid,
        from: &Jid,
        fields: &Fields,
    ) -> Result<(), Failure> {
        let name = fields.value("pubsub#node").ok_or_else(errors::node_required)?;
        let jid = fields.value("pubsub#subscriber_jid").and_then(|jid| address::jid(jid).ok());
        let jid = jid.ok_or_else(errors::invalid_jid)?;
        let allow = fields.value("pubsub#allow").and_then(form::truth);
        let allow = allow.ok_or_else(|| bad_request("`pubsub#allow` is a truth value"))?;
        let asker = self.core.asker(&*passage.services, account, from).await?;
        let payload = passage.stanza.dom();
        let request = Request { core: &self.core, passage, account, asker: &asker, payload };
        let service = request.service();
        let Some(decided) = service.decide(name, &jid, allow).await? else {
            return Err(errors::not_subscribed().into());
        };
        let state = if allow { "subscribed" } else { "none" };
        request.tell_subscriber(name, &decided.jid, state).await;
        if allow {
            let node = service.existing(name).await?;
            request.send_last(&service, name, &node, &decided, &jid).await?;
        }
        Ok(())
    }
}

impl Request<'_> {
    /// Tells somebody what their subscription is now (XEP-0060, 8.6 and 8.8.4).
    pub async fn tell_subscriber(&self, name: &str, jid: &str, state: &str) {
        let Ok(to) = Jid::new(jid) else { return };
        let body = events::event(name, Event::Subscription { jid, state });
        self.send_to(&to, Style::Headline, body).await;
    }
}

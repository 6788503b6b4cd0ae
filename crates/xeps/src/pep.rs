//! [XEP-0163]: Personal Eventing Protocol. Every account is a publish-subscribe service, whose contacts hear of what interests them.
//!
//! Who is interested is known where their session is: a notification goes to every session of those who may have it, and
//! ends there where the client has not said that it wants it. So nobody has to know what clients elsewhere can do, and a
//! node asks each of its own clients at most once.
//!
//! Left out: the address that an answer to a notification would go to (XEP-0163, 4.3.1); contacts at other servers, whom
//! nothing reaches yet; options of subscriptions; several subscriptions of one address; collections; the server's part in XEP-0490 (it keeps what clients publish);
//! what a vCard of XEP-0292 has in common with one of XEP-0054.

pub mod avatars;
pub mod bookmarks;
pub(crate) mod caps;
mod notify;
mod owner;
mod requests;
mod sessions;
pub mod shown;

pub(crate) use notify::random_id;

use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use hooks::{
    Addressee, Answer, Answering, Card, Forgetting, Hooks, Module, Passage, Reply, Services, Status, Step,
    Xep,
};
use jid::{BareJid, Jid};
use stanza::address::same_account;
use stanza::{Condition, StanzaError};
use store::StoreError;

use crate::blocklists::Blocklists;
use crate::failure::{Failure, bad_request};
use crate::pubsub::access::Asker;
use crate::pubsub::engine::{ITEMS_MAX, Limits, OTHERS_MAX, Service, standing};
use crate::pubsub::{self, errors};
use crate::rosters::{Rosters, partition};

pub const NAME: &str = "pep";

crate::settings! {
    /// `[modules.pep]`
    pub struct Config {
        /// The most nodes of one account, at most 10000; whoever makes one more is told `conflict` with `max-nodes-exceeded`.
        nodes_max: usize = 200,
        /// The most items of one node, at most 4000, which is also what `max` means to clients; at the bound the oldest goes.
        items_max: usize = 1_000,
        /// The largest payload of one item, in bytes, at most 900000; a larger one is refused with `payload-too-big`.
        item_bytes_max: usize = 128 * 1024,
        /// The most bytes of all items of one account; at the bound a publication is refused with `resource-constraint`.
        bytes_max: usize = 8 * 1024 * 1024,
        /// The most accounts that are subscribed to one node or affiliated with it, at most 1500; at the bound `too-many-subscriptions` or `resource-constraint`.
        others_max: usize = 500,
        /// The most subscriptions that one account has to one node, with and without a resource; one more is refused with `too-many-subscriptions`.
        subscriptions_max: usize = 10,
        /// The most verified hashes of client capabilities that a node of the cluster remembers; beyond it the oldest go, and their clients are asked again.
        capabilities_max: usize = 2_000,
    }
}

/// The largest value that every engine can keep, with room for what stands around it.
const BYTES_MAX: usize = 900_000;

/// What all parts of the module share.
pub struct Core {
    limits: Limits,
    rosters: Arc<Rosters>,
    blocklists: Arc<Blocklists>,
    /// What hashes of capabilities stand for.
    known: caps::Known,
    /// The hosts that are served here, once a session has been bound.
    hosts: OnceLock<Vec<String>>,
    /// Pictures that are those of vCards too; `None`: they are not.
    pictures: Option<avatars::Pictures>,
}

impl Core {
    pub fn new(config: &Config, rosters: Arc<Rosters>, blocklists: Arc<Blocklists>) -> Core {
        let limits = Limits {
            nodes: config.nodes_max.min(store::Range::LIMIT_MAX),
            items: config.items_max.min(ITEMS_MAX),
            item_bytes: config.item_bytes_max.min(BYTES_MAX),
            bytes: config.bytes_max,
            others: config.others_max.min(OTHERS_MAX),
            subscriptions: config.subscriptions_max,
        };
        let known = caps::Known::new(config.capabilities_max);
        Core { limits, rosters, blocklists, known, hosts: OnceLock::new(), pictures: None }
    }

    /// The same, whose pictures are those of vCards too (XEP-0398).
    #[must_use]
    pub fn with_pictures(self, pictures: avatars::Pictures) -> Core {
        Core { pictures: Some(pictures), ..self }
    }

    /// The nodes of an account.
    fn service<'a>(&'a self, services: &'a dyn Services, account: &BareJid) -> Service<'a> {
        let since = services.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Service {
            store: services.store(),
            partition: partition(account),
            limits: &self.limits,
            now_s: since.as_secs(),
        }
    }

    /// What somebody is to the account.
    async fn asker(
        &self,
        services: &dyn Services,
        account: &BareJid,
        jid: &Jid,
    ) -> Result<Asker, StoreError> {
        let bare = jid.to_bare();
        if same_account(jid, account) {
            return Ok(Asker { bare, is_owner: true, presence: true, groups: Vec::new() });
        }
        let roster = match self.rosters.cached(account) {
            Some(roster) if roster.lets_see(jid) => roster,
            // A cached `no` may be older than the approval after which they ask; and strangers wait for the same work
            // whether the account has sessions here, or exists.
            _ => self.rosters.read(services, account).await?,
        };
        let item = roster.items.get(bare.as_str());
        let presence = item.is_some_and(|item| item.standing.from);
        let groups = item.map(|item| item.groups.clone()).unwrap_or_default();
        Ok(Asker { bare, is_owner: false, presence, groups })
    }
}

/// Keeps what users publish, and tells those who may know and want to.
pub struct Pep {
    core: Arc<Core>,
}

impl Pep {
    pub fn new(core: Arc<Core>) -> Pep {
        Pep { core }
    }
}

impl Module for Pep {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 60, title: "Publish-Subscribe", version: "1.30.0", status: Status::Stable },
                Xep {
                    number: 163,
                    title: "Personal Eventing Protocol",
                    version: "1.2.2",
                    status: Status::Stable,
                },
                Xep { number: 115, title: "Entity Capabilities", version: "1.6.0", status: Status::Stable },
                Xep {
                    number: 390,
                    title: "Entity Capabilities 2.0",
                    version: "0.3.2",
                    status: Status::Experimental,
                },
                Xep { number: 84, title: "User Avatar", version: "1.1.4", status: Status::Stable },
                Xep {
                    number: 292,
                    title: "vCard4 Over XMPP",
                    version: "0.12.0",
                    status: Status::Experimental,
                },
                Xep { number: 402, title: "PEP Native Bookmarks", version: "1.2.0", status: Status::Stable },
                Xep {
                    number: 490,
                    title: "Message Displayed Synchronization",
                    version: "1.0.1",
                    status: Status::Stable,
                },
                Xep {
                    number: 222,
                    title: "Persistent Storage of Public Data via PubSub",
                    version: "1.0",
                    status: Status::Active,
                },
                Xep {
                    number: 223,
                    title: "Persistent Storage of Private Data via PubSub",
                    version: "1.1.1",
                    status: Status::Active,
                },
            ],
            // The nodes are those of accounts; but Profanity and others ask the host alone, as ejabberd says it there too.
            host_features: shown::FEATURES,
            account_features: shown::FEATURES,
            account_identities: &[("pubsub", "pep")],
            ..Card::new(
                NAME,
                "Keeps what users publish about themselves, and tells contacts and own devices.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, pubsub::NS, self.clone());
        hooks.answering(Addressee::Account, pubsub::OWNER, self.clone());
        hooks.leaving(Step::Guard, self.clone());
        // Before subscription, which takes what is told of subscriptions.
        hooks.arriving(Step::Record, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.moving(self.clone());
        hooks.following(self.clone());
        hooks.forgetting(self);
    }
}

/// What the account published is erased with it; here, what its contacts have made of it at their nodes, so that nobody
/// who has its name later is taken for it.
impl Forgetting for Pep {
    fn forgetting<'a>(&'a self, account: &'a BareJid, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        Answer::later(async move {
            if let Err(failure) = self.core.forget_at_contacts(&**services, account).await {
                drop(failure.answer(NAME));
            }
        })
    }
}

impl Core {
    async fn forget_at_contacts(&self, services: &dyn Services, account: &BareJid) -> Result<(), Failure> {
        let roster = self.rosters.read(services, account).await?;
        for contact in roster.items.keys() {
            let Ok(contact) = Jid::new(contact) else { continue };
            if contact.node().is_none() || !services.is_local_host(contact.domain().as_str()) {
                continue;
            }
            let service = self.service(services, &contact.to_bare());
            for (name, node) in service.nodes().await? {
                if node.others > 0 {
                    service.forget(&name, account).await?;
                }
            }
            services.pause().await;
        }
        Ok(())
    }
}

impl Answering for Pep {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if passage.is_own() && passage.sender.as_ref().is_some_and(|sender| sender.is_anonymous()) {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::ServiceUnavailable)));
        }
        Answer::later(async move {
            let answer = self.answer(passage).await;
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

impl Pep {
    async fn answer(&self, passage: &Passage) -> Result<Reply, Failure> {
        let (Some(account), Some(from), Some(payload)) =
            (&passage.account, &passage.stanza.head.from, passage.stanza.payload())
        else {
            return Err(bad_request("no payload").into());
        };
        let asker = self.core.asker(&*passage.services, account, from).await?;
        if payload.name() != "pubsub" {
            return Err(bad_request("the payload is no `pubsub`").into());
        }
        let request = requests::Request { core: &self.core, passage, account, asker: &asker, payload };
        let is_owners = payload.has_ns(pubsub::OWNER);
        let answer = match is_owners {
            true if !asker.is_owner => Err(errors::forbidden().into()),
            true => request.owner().await,
            false => request.answer().await,
        };
        match answer {
            Err(Failure::Refused(error)) if !asker.is_owner && !asker.presence => {
                let sees = !is_owners && self.sees(&request).await?;
                // Strangers learn nothing of an account that shows them nothing.
                let unavailable = || StanzaError::new(Condition::ServiceUnavailable);
                Err(if sees { error } else { unavailable() }.into())
            }
            answer => answer,
        }
    }

    /// Whether a stranger may see the node that they ask for.
    async fn sees(&self, request: &requests::Request<'_>) -> Result<bool, StoreError> {
        let Some(name) = request.payload.children().find_map(|child| child.attr("node")) else {
            return Ok(false);
        };
        let service = self.core.service(&*request.passage.services, request.account);
        let Some(node) = service.node(name).await? else { return Ok(false) };
        let other = service.other(name, &node, request.asker).await?;
        let may_see = standing(request.asker, &other).may_read(&node.config).is_ok();
        Ok(may_see || !other.subscriptions.is_empty())
    }
}

#[cfg(test)]
mod tests;

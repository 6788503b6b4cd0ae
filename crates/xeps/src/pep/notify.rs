//! Who hears of what happens to a node (XEP-0163, section 4), and how it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use hooks::Services;
use jid::{BareJid, FullJid, Jid};
use stanza::{Head, Kind, Stanza};
use store::StoreError;

use super::{Core, NAME};
use crate::blocklists::Blocklist;
use crate::failure::store_failed;
use crate::pubsub::access::Asker;
use crate::pubsub::config::{NodeConfig, Style};
use crate::pubsub::engine::standing;
use crate::pubsub::events::with_subscription;
use crate::pubsub::tables::Other;
use crate::rosters::Roster;

/// Receivers that are handled before others get their turn.
const SLICE: usize = 128;

/// Who hears of something.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Sessions that hear of it if their client is interested.
    interested: Vec<Jid>,
    /// Who subscribed: by the id of the subscription.
    subscribed: BTreeMap<String, Vec<Jid>>,
}

/// A message about a node.
pub fn message(account: &BareJid, style: Style, body: Bytes, services: &dyn Services) -> Stanza {
    let kind = match style {
        Style::Headline => Some("headline".into()),
        Style::Normal => None,
    };
    let head = Head {
        from: Some(account.clone().into()),
        id: Some(random_id(services).into()),
        type_: kind,
        ..Head::new(Kind::Message)
    };
    Stanza::new(head, body)
}

/// An id that nobody guesses.
pub fn random_id(services: &dyn Services) -> String {
    let mut bytes = [0; 8];
    services.random(&mut bytes);
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// The available sessions of an account of ours, those too that do not show themselves: they alone hear what follows.
pub fn available(services: &dyn Services, account: &BareJid) -> impl Iterator<Item = FullJid> + use<> {
    let online = services.online(account).into_iter();
    online.filter(|resource| resource.takes.is_some()).map(|resource| resource.jid)
}

impl Core {
    /// Tells everybody whom it concerns of what happened to a node.
    pub async fn tell(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        config: &NodeConfig,
        others: &[(String, Other)],
        body: Bytes,
    ) {
        if !config.deliver_notifications {
            return;
        }
        // A session that became available before the change was written may have read the last item before it; it
        // must be known here. Without a quorum those hear whom we know.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(module = NAME, %error, "notifying without a read barrier");
        }
        let audience = match self.audience(&**services, account, config, others).await {
            Ok(audience) => audience,
            Err(error) => {
                // Whoever it is for finds it when they look: it is published.
                drop(store_failed(NAME, &error));
                return;
            }
        };
        let notice = message(account, config.style, body.clone(), &**services);
        send(&**services, &notice, audience.interested).await;
        for (id, jids) in audience.subscribed {
            let body = with_subscription(&body, &id);
            send(&**services, &message(account, config.style, body, &**services), jids).await;
        }
    }

    async fn audience(
        &self,
        services: &dyn Services,
        account: &BareJid,
        config: &NodeConfig,
        others: &[(String, Other)],
    ) -> Result<Audience, StoreError> {
        let roster = self.rosters.of(services, account).await?;
        let blocked = self.blocklists.of(services, account).await?;
        let mut audience = Audience::default();
        let of: BTreeMap<&str, &Other> = others.iter().map(|(bare, other)| (bare.as_str(), other)).collect();
        let whom = Whom { services, account, config, roster: &roster, blocked: &blocked };
        // Who has subscribed themselves hears of it once, whatever their client is interested in.
        let mut told = BTreeSet::new();
        for (bare, other) in others {
            whom.subscribers(bare, other, &mut audience, &mut told);
        }
        let own = available(services, account).filter(|session| !told.contains(session.as_str()));
        audience.interested.extend(own.map(Jid::from));
        let nobody = Other::default();
        for (at, (jid, item)) in roster.items.iter().enumerate() {
            if at % SLICE == SLICE - 1 {
                services.pause().await;
            }
            if !item.standing.from {
                continue;
            }
            let Some((contact, asker)) = whom.asker(jid) else { continue };
            let other = of.get(jid.as_str()).copied().unwrap_or(&nobody);
            if !whom.may_hear(&contact, &asker, other) {
                continue;
            }
            let sessions = available(services, &asker.bare).map(Jid::from);
            audience.interested.extend(sessions.filter(|session| !told.contains(session.as_str())));
        }
        Ok(audience)
    }
}

struct Whom<'a> {
    services: &'a dyn Services,
    account: &'a BareJid,
    config: &'a NodeConfig,
    roster: &'a Roster,
    blocked: &'a Blocklist,
}

impl Whom<'_> {
    /// Somebody as the account knows them; `None`: nothing reaches them from here.
    fn asker(&self, bare: &str) -> Option<(Jid, Asker)> {
        let jid = Jid::new(bare).ok().filter(|jid| self.services.is_local_host(jid.domain().as_str()))?;
        let item = self.roster.items.get(bare);
        let presence = item.is_some_and(|item| item.standing.from);
        let groups = item.map(|item| item.groups.clone()).unwrap_or_default();
        let is_owner = bare == self.account.as_str();
        let asker = Asker { bare: jid.to_bare(), is_owner, presence, groups };
        Some((jid, asker))
    }

    /// XEP-0163, 4.3.3: nobody hears anything whom the account blocks.
    fn may_hear(&self, jid: &Jid, asker: &Asker, other: &Other) -> bool {
        standing(asker, other).may_read(self.config).is_ok() && !self.blocked.blocks(self.account, jid)
    }

    fn subscribers(&self, bare: &str, other: &Other, audience: &mut Audience, told: &mut BTreeSet<String>) {
        if !other.is_subscribed() {
            return;
        }
        let Some((jid, asker)) = self.asker(bare) else { return };
        if !self.may_hear(&jid, &asker, other) {
            return;
        }
        // A resource that has subscribed by its own name first.
        let mut active: Vec<_> = other.subscriptions.iter().filter(|one| !one.pending).collect();
        active.sort_by_key(|one| std::cmp::Reverse(one.jid.len()));
        for subscription in active {
            let is_account = subscription.jid == bare;
            for session in self.services.online(&asker.bare) {
                // XEP-0163, 4.3.2: a resource by its name, wherever it is; of an account those that are available.
                let is_meant = match is_account {
                    true => session.takes.is_some(),
                    false => session.jid.as_str() == subscription.jid,
                };
                if is_meant && told.insert(session.jid.as_str().to_owned()) {
                    let of = audience.subscribed.entry(subscription.id.clone()).or_default();
                    of.push(session.jid.into());
                }
            }
        }
    }
}

/// Sends one stanza to many.
pub async fn send(services: &dyn Services, stanza: &Stanza, to: Vec<Jid>) {
    if to.len() <= SLICE {
        return services.fan_out(stanza.clone(), to).await;
    }
    for some in to.chunks(SLICE) {
        services.fan_out(stanza.clone(), some.to_vec()).await;
        services.pause().await;
    }
}

//! Who has to do with a node: subscriptions (XEP-0060, 6.1, 6.2, 8.6 and 8.8) and affiliations (8.9).

use jid::{BareJid, Jid};
use store::StoreError;

use super::access::{Affiliation, Asker};
use super::engine::{OTHERS_MAX, Service, standing};
use super::errors;
use super::tables::{Node, Other, Subscription, all_of, below, other_key};
use crate::failure::Failure;

/// What became of a request to subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    pub node: Node,
    pub subscription: Subscription,
    /// It was not there before.
    pub is_new: bool,
}

impl Service<'_> {
    /// Everybody who has to do with the node, by their account.
    pub async fn others(&self, name: &str, node: &Node) -> Result<Vec<(String, Other)>, StoreError> {
        if node.others == 0 {
            return Ok(Vec::new());
        }
        let all = self.store.scan::<Other>(&self.partition, all_of(name)).await?;
        let named = all.into_iter().filter_map(|(key, other)| Some((below(&key)?.to_owned(), other)));
        Ok(named.collect())
    }

    /// Subscribes an address of the asker (6.1). `id`: of the subscription, if it is a new one.
    pub async fn subscribe(
        &self,
        name: &str,
        jid: &Jid,
        asker: &Asker,
        id: &str,
    ) -> Result<Subscribed, Failure> {
        if jid.to_bare() != asker.bare {
            return Err(errors::invalid_jid().into());
        }
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            let before = self.kept(name, &node, &asker.bare).await?;
            let mut other = before.clone().unwrap_or_default();
            let pending = standing(asker, &other).may_subscribe(&node.config)?;
            let found = other.subscriptions.iter().find(|one| one.jid == jid.as_str()).cloned();
            match found {
                Some(found) if found.pending && pending => return Err(errors::pending().into()),
                // 6.1.6: of one address there is one subscription.
                Some(subscription) if !subscription.pending => {
                    return Ok(Subscribed { node, subscription, is_new: false });
                }
                // It waited for an approval that is not needed any more.
                Some(found) => other.subscriptions.retain(|one| one.id != found.id),
                None => {}
            }
            if other.subscriptions.len() >= self.limits.subscriptions {
                return Err(errors::too_many_subscriptions().into());
            }
            let subscription = Subscription { jid: jid.as_str().to_owned(), id: id.to_owned(), pending };
            other.subscriptions.push(subscription.clone());
            if before.is_none() {
                self.count(&mut node, errors::too_many_subscriptions)?;
            }
            draft.batch = draft.batch.put(other_key(name, asker.bare.as_str()), &other).put(name, &node);
            if self.commit(draft).await? {
                return Ok(Subscribed { node, subscription, is_new: true });
            }
        }
        Err(Self::contended())
    }

    fn count(
        &self,
        node: &mut Node,
        error: impl Fn() -> stanza::StanzaError,
    ) -> Result<(), stanza::StanzaError> {
        if node.others >= self.limits.others.min(OTHERS_MAX) as u64 {
            return Err(error());
        }
        node.others += 1;
        Ok(())
    }

    /// What the node knows of the asker, the owner too.
    pub async fn own(&self, name: &str, node: &Node, asker: &Asker) -> Result<Other, StoreError> {
        Ok(self.kept(name, node, &asker.bare).await?.unwrap_or_default())
    }

    async fn kept(&self, name: &str, node: &Node, bare: &BareJid) -> Result<Option<Other>, StoreError> {
        match node.others {
            0 => Ok(None),
            _ => self.store.get(&self.partition, other_key(name, bare.as_str())).await,
        }
    }

    /// Ends a subscription (6.2); what it was.
    pub async fn unsubscribe(
        &self,
        name: &str,
        jid: &Jid,
        id: Option<&str>,
        asker: &Asker,
    ) -> Result<(Node, Subscription), Failure> {
        if jid.to_bare() != asker.bare && !asker.is_owner {
            return Err(errors::forbidden().into());
        }
        let node = self.existing(name).await?;
        let other = self.kept(name, &node, &jid.to_bare()).await?.unwrap_or_default();
        let found = other.subscriptions.iter().find(|one| one.jid == jid.as_str());
        let found = found.cloned().ok_or_else(errors::not_subscribed)?;
        if id.is_some_and(|id| id != found.id) {
            return Err(errors::invalid_subid().into());
        }
        let end = |other: &mut Other| {
            other.subscriptions.retain(|one| one.id != found.id);
            Ok(())
        };
        let node = self.change(name, &jid.to_bare(), end).await?;
        Ok((node, found))
    }

    /// The owner says of an address that it is subscribed (`Some`, with the id of a new subscription) or not (8.8.2);
    /// `false`: it was so before.
    pub async fn set_subscription(
        &self,
        name: &str,
        jid: &Jid,
        wanted: Option<&str>,
    ) -> Result<(Node, bool), Failure> {
        let max = self.limits.subscriptions;
        let mut changed = false;
        let set = |other: &mut Other| {
            let before = other.clone();
            let count = before.subscriptions.len();
            let found = other.subscriptions.iter_mut().find(|one| one.jid == jid.as_str());
            match (found, wanted) {
                (Some(found), Some(_)) => found.pending = false,
                (None, Some(_)) if count >= max => return Err(errors::too_many_subscriptions()),
                (None, Some(id)) => {
                    let (jid, id) = (jid.as_str().to_owned(), id.to_owned());
                    other.subscriptions.push(Subscription { jid, id, pending: false });
                }
                (_, None) => other.subscriptions.retain(|one| one.jid != jid.as_str()),
            }
            changed = *other != before;
            Ok(())
        };
        let node = self.change(name, &jid.to_bare(), set).await?;
        Ok((node, changed))
    }

    /// The owner answers who waits (8.6); `None`: nobody waits under this address.
    pub async fn decide(&self, name: &str, jid: &Jid, allow: bool) -> Result<Option<Subscription>, Failure> {
        let mut decided = None;
        let decide = |other: &mut Other| {
            decided = other.subscriptions.iter().find(|one| one.jid == jid.as_str() && one.pending).cloned();
            match (&mut decided, allow) {
                (None, _) => {}
                (Some(one), true) => {
                    one.pending = false;
                    let id = one.id.clone();
                    other
                        .subscriptions
                        .iter_mut()
                        .filter(|two| two.id == id)
                        .for_each(|two| two.pending = false);
                }
                (Some(one), false) => {
                    let id = one.id.clone();
                    other.subscriptions.retain(|two| two.id != id);
                }
            }
            Ok(())
        };
        self.change(name, &jid.to_bare(), decide).await?;
        Ok(decided)
    }

    /// The owner says what somebody is to the node (8.9.2); whose subscriptions end with that.
    pub async fn set_affiliation(
        &self,
        name: &str,
        bare: &BareJid,
        affiliation: Affiliation,
    ) -> Result<(Node, Vec<Subscription>), Failure> {
        let mut ended = Vec::new();
        let set = |other: &mut Other| {
            other.affiliation = affiliation;
            ended = match affiliation {
                // 8.9.2.4: who is banned hears nothing any more.
                Affiliation::Outcast => std::mem::take(&mut other.subscriptions),
                _ => Vec::new(),
            };
            Ok(())
        };
        let node = self.change(name, bare, set).await?;
        Ok((node, ended))
    }

    /// Forgets an account at the node.
    pub async fn forget(&self, name: &str, bare: &BareJid) -> Result<(), Failure> {
        let forget = |other: &mut Other| {
            *other = Other::default();
            Ok(())
        };
        self.change(name, bare, forget).await.map(drop)
    }

    /// Changes what the node knows of an account.
    async fn change(
        &self,
        name: &str,
        bare: &BareJid,
        mut change: impl FnMut(&mut Other) -> Result<(), stanza::StanzaError>,
    ) -> Result<Node, Failure> {
        let key = other_key(name, bare.as_str());
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            let before = self.kept(name, &node, bare).await?;
            let mut after = before.clone().unwrap_or_default();
            change(&mut after)?;
            if after == before.clone().unwrap_or_default() {
                return Ok(node);
            }
            draft.batch = match (before.is_some(), after.is_nobody()) {
                (true, true) => {
                    node.others = node.others.saturating_sub(1);
                    draft.batch.delete::<Other>(key.clone())
                }
                (false, false) => {
                    self.count(&mut node, errors::too_many_others)?;
                    draft.batch.put(key.clone(), &after)
                }
                (_, false) => draft.batch.put(key.clone(), &after),
                (false, true) => return Ok(node),
            };
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(node);
            }
        }
        Err(Self::contended())
    }
}

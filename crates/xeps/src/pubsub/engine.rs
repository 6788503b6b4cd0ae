//! All that changes a node and its items: each in one step, whoever else changes something beside.

use store::{Batch, Committed, Expect, Partition, Store, StoreError, Versioned};

use super::access::{Asker, Standing};
use super::config::{NodeConfig, SendLast};
use super::errors;
use super::form::Fields;
use super::tables::{
    Item, NAME_BYTES_MAX, Node, Other, Place, Tally, all_of, item_key, other_key, place_key, place_of,
};
use crate::cache::KEY;
use crate::failure::Failure;

/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;
/// Items that have had their time and go with one publication.
const SWEPT: usize = 16;
/// The most items that one node may keep, whatever the config says: all of them end in one step.
pub const ITEMS_MAX: usize = 4_000;
/// The most entities that may have to do with one node, as above.
pub const OTHERS_MAX: usize = 1_500;

/// The bounds of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub nodes: usize,
    /// Of one node.
    pub items: usize,
    /// The payload of one item.
    pub item_bytes: usize,
    /// All items of the service.
    pub bytes: usize,
    /// Entities that have to do with one node.
    pub others: usize,
    /// Subscriptions of one entity to one node.
    pub subscriptions: usize,
}

/// The nodes of one partition.
#[derive(Clone)]
pub struct Service<'a> {
    pub store: &'a Store,
    pub partition: Partition,
    pub limits: &'a Limits,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    pub id: String,
    /// XML that stands for itself, or nothing.
    pub xml: Vec<u8>,
    /// The namespace of the payload.
    pub namespace: String,
}

/// What a change left of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub node: Node,
    /// The change made the node.
    pub created: bool,
}

/// A change that is being made.
pub(super) struct Draft {
    pub batch: Batch,
    pub tally: Tally,
}

impl Service<'_> {
    pub(super) async fn draft(&self) -> Result<Draft, StoreError> {
        let stored: Option<Versioned<Tally>> = self.store.get_versioned(&self.partition, KEY).await?;
        let expect = stored.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
        let batch = Batch::new(self.partition.clone()).expect::<Tally>(KEY, expect);
        Ok(Draft { batch, tally: stored.map(|found| found.value).unwrap_or_default() })
    }

    /// Whether the change was made; if not, another one was first.
    pub(super) async fn commit(&self, mut draft: Draft) -> Result<bool, StoreError> {
        draft.tally.changes += 1;
        let batch = draft.batch.put(KEY, &draft.tally);
        Ok(self.store.commit_one(batch).await? == Committed::Done)
    }

    pub(super) fn contended() -> Failure {
        StoreError::Contended { table: "pubsub_tally", attempts: ATTEMPTS }.into()
    }

    pub(super) fn attempts() -> std::ops::Range<usize> {
        0..ATTEMPTS
    }

    /// The most items that the node keeps.
    pub fn items_max(&self) -> usize {
        self.limits.items.min(ITEMS_MAX)
    }

    pub async fn node(&self, name: &str) -> Result<Option<Node>, StoreError> {
        match is_name(name) {
            true => self.store.get(&self.partition, name).await,
            false => Ok(None),
        }
    }

    /// The node, or that there is none.
    pub async fn existing(&self, name: &str) -> Result<Node, Failure> {
        Ok(self.node(name).await?.ok_or_else(errors::not_found)?)
    }

    /// All nodes by their names.
    pub async fn nodes(&self) -> Result<Vec<(String, Node)>, StoreError> {
        let all = self.store.scan::<Node>(&self.partition, store::Range::all()).await?;
        Ok(all.into_iter().filter_map(|(key, node)| Some((String::from_utf8(key).ok()?, node))).collect())
    }

    /// What the node knows of an account.
    pub async fn other(&self, name: &str, node: &Node, asker: &Asker) -> Result<Other, StoreError> {
        if node.others == 0 || asker.is_owner {
            return Ok(Other::default());
        }
        let key = other_key(name, asker.bare.as_str());
        Ok(self.store.get(&self.partition, key).await?.unwrap_or_default())
    }

    /// Makes a node (8.1).
    pub async fn create(&self, name: &str, config: &NodeConfig) -> Result<(), Failure> {
        check_name(name)?;
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            if self.node(name).await?.is_some() {
                return Err(errors::node_exists().into());
            }
            let node = self.made(&mut draft, config)?;
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(());
            }
        }
        Err(Self::contended())
    }

    fn made(&self, draft: &mut Draft, config: &NodeConfig) -> Result<Node, Failure> {
        if draft.tally.nodes >= self.limits.nodes as u64 {
            return Err(errors::too_many_nodes().into());
        }
        draft.tally.nodes += 1;
        Ok(Node { config: config.clone(), created_s: self.now_s, next: 0, items: 0, others: 0 })
    }

    /// Publishes an item (7.1); `options` are preconditions, and how a node is made that is not there (7.1.5).
    pub async fn publish(
        &self,
        name: &str,
        new: Option<&New>,
        options: Option<&Fields>,
        asker: &Asker,
    ) -> Result<Changed, Failure> {
        check_name(name)?;
        let none = Fields::default();
        let options = options.unwrap_or(&none);
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let (mut node, created) = match self.node(name).await? {
                Some(node) => {
                    let other = self.other(name, &node, asker).await?;
                    standing(asker, &other).may_publish(&node.config)?;
                    node.config.meets(options, self.items_max())?;
                    (node, false)
                }
                None if !asker.is_owner => return Err(errors::not_found().into()),
                None => {
                    let mut config = NodeConfig::default();
                    config.options(options, self.items_max())?;
                    (self.made(&mut draft, &config)?, true)
                }
            };
            let new = self.fitting(&node.config, new)?;
            if let Some(new) = new.filter(|_| node.config.persist) {
                self.put(&mut draft, name, &mut node, new, asker).await?;
            } else if !created {
                // Nothing is kept, and so nothing is changed.
                return Ok(Changed { node, created });
            }
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(Changed { node, created });
            }
        }
        Err(Self::contended())
    }

    /// Table 3 of section 4.3, and the errors of 7.1.3.
    fn fitting<'a>(&self, config: &NodeConfig, new: Option<&'a New>) -> Result<Option<&'a New>, Failure> {
        let Some(new) = new else {
            let may = !config.persist && !config.deliver_payloads;
            return if may { Ok(None) } else { Err(errors::item_required().into()) };
        };
        if !config.persist && !config.deliver_payloads {
            return Err(errors::item_forbidden().into());
        }
        if config.deliver_payloads && new.xml.is_empty() {
            return Err(errors::payload_required().into());
        }
        if !new.xml.is_empty() && !config.payload_type.is_empty() && config.payload_type != new.namespace {
            return Err(errors::invalid_payload().into());
        }
        if new.xml.len() > self.limits.item_bytes {
            return Err(errors::payload_too_big().into());
        }
        if new.id.is_empty() || new.id.len() > NAME_BYTES_MAX {
            return Err(errors::not_acceptable("the id of an item is empty or too long").into());
        }
        Ok(Some(new))
    }

    /// Puts an item behind all others, in the place of one with its id, and lets the oldest go.
    async fn put(
        &self,
        draft: &mut Draft,
        name: &str,
        node: &mut Node,
        new: &New,
        asker: &Asker,
    ) -> Result<(), Failure> {
        let before = draft.tally.bytes;
        let place = place_key(name, &new.id);
        let replaced: Option<Place> = self.store.get(&self.partition, place.clone()).await?;
        if let Some(Place { at }) = replaced
            && let Some(item) = self.store.get::<Item>(&self.partition, item_key(name, at)).await?
        {
            // 7.1.2, and 4.1: who publishes what is theirs does not write over what is another's.
            let other = self.other(name, node, asker).await?;
            standing(asker, &other).may_retract(&node.config, &item.publisher)?;
            remove(draft, name, node, at, &item);
        }
        let publisher = asker.bare.as_str().to_owned();
        let item = Item { id: new.id.clone(), publisher, at_s: self.now_s, xml: new.xml.clone() };
        draft.tally.bytes += item.size();
        let at = node.next;
        node.next += 1;
        node.items += 1;
        let batch = std::mem::replace(&mut draft.batch, Batch::new(self.partition.clone()));
        draft.batch = batch.put(item_key(name, at), &item).put(place, &Place { at });
        self.sweep(draft, name, node, replaced.map(|place| place.at)).await?;
        if draft.tally.bytes > before && draft.tally.bytes > self.limits.bytes as u64 {
            return Err(errors::full().into());
        }
        Ok(())
    }

    /// Takes the oldest items while there are too many, and some that have had their time.
    async fn sweep(
        &self,
        draft: &mut Draft,
        name: &str,
        node: &mut Node,
        gone: Option<u64>,
    ) -> Result<(), StoreError> {
        let keeps = if node.config.persist { node.config.max_items.of(self.items_max()) as u64 } else { 0 };
        let excess = node.items.saturating_sub(keeps);
        if excess == 0 && node.config.item_expire_s.is_none() {
            return Ok(());
        }
        let wanted = excess as usize + SWEPT + 1;
        let oldest = self.store.scan::<Item>(&self.partition, all_of(name).limit(wanted)).await?;
        let mut excess = excess;
        for (key, item) in oldest {
            let Some(at) = place_of(&key).filter(|at| Some(*at) != gone) else { continue };
            if excess == 0 && !node.config.is_over(item.at_s, self.now_s) {
                break;
            }
            excess = excess.saturating_sub(1);
            remove(draft, name, node, at, &item);
        }
        Ok(())
    }

    /// Removes an item (7.2).
    pub async fn retract(&self, name: &str, id: &str, asker: &Asker) -> Result<Changed, Failure> {
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            let other = self.other(name, &node, asker).await?;
            let standing = standing(asker, &other);
            if standing.may_publish(&node.config).is_err() {
                return Err(errors::forbidden().into());
            }
            if !node.config.persist {
                return Err(errors::unsupported("persistent-items").into());
            }
            let found = self.find(name, id).await?.filter(|(_, item)| !self.is_over(&node, item));
            let (at, item) = found.ok_or_else(errors::not_found)?;
            standing.may_retract(&node.config, &item.publisher)?;
            remove(&mut draft, name, &mut node, at, &item);
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(Changed { node, created: false });
            }
        }
        Err(Self::contended())
    }

    pub fn is_over(&self, node: &Node, item: &Item) -> bool {
        node.config.is_over(item.at_s, self.now_s)
    }

    /// An item by its id.
    pub async fn find(&self, name: &str, id: &str) -> Result<Option<(u64, Item)>, StoreError> {
        if id.len() > NAME_BYTES_MAX {
            return Ok(None);
        }
        let place: Option<Place> = self.store.get(&self.partition, place_key(name, id)).await?;
        let Some(Place { at }) = place else { return Ok(None) };
        Ok(self.store.get(&self.partition, item_key(name, at)).await?.map(|item| (at, item)))
    }

    /// Removes all items (8.5).
    pub async fn purge(&self, name: &str) -> Result<Changed, Failure> {
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            if !node.config.persist {
                return Err(errors::unsupported("persistent-items").into());
            }
            self.empty(&mut draft, name, &mut node).await?;
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(Changed { node, created: false });
            }
        }
        Err(Self::contended())
    }

    async fn empty(&self, draft: &mut Draft, name: &str, node: &mut Node) -> Result<(), StoreError> {
        for (key, item) in self.store.scan::<Item>(&self.partition, all_of(name)).await? {
            let Some(at) = place_of(&key) else { continue };
            remove(draft, name, node, at, &item);
        }
        node.items = 0;
        Ok(())
    }

    /// Ends a node with all that it has (8.4); who had to do with it.
    pub async fn delete(&self, name: &str) -> Result<(Node, Vec<(String, Other)>), Failure> {
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            let others = self.others(name, &node).await?;
            self.empty(&mut draft, name, &mut node).await?;
            for (bare, _) in &others {
                draft.batch = draft.batch.delete::<Other>(other_key(name, bare));
            }
            draft.tally.nodes = draft.tally.nodes.saturating_sub(1);
            draft.batch = draft.batch.delete::<Node>(name);
            if self.commit(draft).await? {
                return Ok((node, others));
            }
        }
        Err(Self::contended())
    }

    /// Configures a node anew (8.2); what it may no longer keep goes.
    pub async fn configure(&self, name: &str, fields: &Fields) -> Result<Changed, Failure> {
        for _ in Self::attempts() {
            let mut draft = self.draft().await?;
            let mut node = self.existing(name).await?;
            node.config.submit(fields, self.items_max())?;
            self.sweep(&mut draft, name, &mut node, None).await?;
            draft.batch = draft.batch.put(name, &node);
            if self.commit(draft).await? {
                return Ok(Changed { node, created: false });
            }
        }
        Err(Self::contended())
    }

    /// The item that was published last, where one is kept that has time left.
    pub async fn last(&self, name: &str, node: &Node) -> Result<Option<Item>, StoreError> {
        if node.items == 0 {
            return Ok(None);
        }
        let last = self.store.scan::<Item>(&self.partition, all_of(name).reversed().limit(1)).await?;
        Ok(last.into_iter().map(|(_, item)| item).find(|item| !self.is_over(node, item)))
    }
}

/// Whether a new subscriber gets the last item of such a node, or a subscriber who comes online.
pub fn sends_last(config: &NodeConfig, on_presence: bool) -> bool {
    let is_wanted = match config.send_last {
        SendLast::Never => false,
        SendLast::OnSub => !on_presence,
        SendLast::OnSubAndPresence => true,
    };
    is_wanted && config.deliver_notifications
}

/// What is decided of an asker whom the node knows so.
pub fn standing<'a>(asker: &'a Asker, other: &Other) -> Standing<'a> {
    Standing { asker, affiliation: other.affiliation, subscribed: other.is_subscribed() }
}

fn remove(draft: &mut Draft, name: &str, node: &mut Node, at: u64, item: &Item) {
    let partition = draft.batch.partition.clone();
    let batch = std::mem::replace(&mut draft.batch, Batch::new(partition));
    draft.batch = batch.delete::<Item>(item_key(name, at)).delete::<Place>(place_key(name, &item.id));
    draft.tally.bytes = draft.tally.bytes.saturating_sub(item.size());
    node.items = node.items.saturating_sub(1);
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

fn check_name(name: &str) -> Result<(), Failure> {
    match is_name(name) {
        true => Ok(()),
        false => Err(errors::not_acceptable("the name of a node is empty or too long").into()),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(super) mod tests;

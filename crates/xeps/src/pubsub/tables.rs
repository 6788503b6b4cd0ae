//! What the store keeps of the nodes of a service: each node, its items in the order of their publication, where an item
//! is found by its id, and who has to do with the node.

use serde::{Deserialize, Serialize};
use store::{Key, Range, Stored, Table};

use super::access::Affiliation;
use super::config::NodeConfig;

/// The longest name of a node and the longest id of an item, in bytes: both are parts of keys.
pub const NAME_BYTES_MAX: usize = 1_023;

/// A node, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub config: NodeConfig,
    /// Seconds since 1970.
    pub created_s: u64,
    /// The place of the next item.
    pub next: u64,
    /// How many items it has, with those that have had their time.
    pub items: u64,
    /// How many entities have to do with it.
    pub others: u64,
}

impl Stored for Node {
    const TABLE: Table = Table("pubsub_nodes");
    const SCHEMA: u8 = 1;
}

/// An item, by its node and place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub id: String,
    /// The account that published it.
    pub publisher: String,
    /// Seconds since 1970.
    pub at_s: u64,
    /// The payload: XML that stands for itself, or nothing.
    pub xml: Vec<u8>,
}

impl Stored for Item {
    const TABLE: Table = Table("pubsub_items");
    const SCHEMA: u8 = 1;
}

impl Item {
    /// About how many bytes it takes.
    pub fn size(&self) -> u64 {
        // Its keys, its place and the numbers beside.
        const BESIDE: usize = 64;
        (BESIDE + 2 * self.id.len() + self.publisher.len() + self.xml.len()) as u64
    }
}

/// Where an item is, by its node and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub at: u64,
}

impl Stored for Place {
    const TABLE: Table = Table("pubsub_places");
    const SCHEMA: u8 = 1;
}

/// A subscription of one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The account, or one of its resources.
    pub jid: String,
    pub id: String,
    /// Waits for the owner's approval.
    pub pending: bool,
}

impl Subscription {
    pub fn state(&self) -> &'static str {
        if self.pending { "pending" } else { "subscribed" }
    }
}

/// An account that has to do with a node, by the node and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    pub affiliation: Affiliation,
    pub subscriptions: Vec<Subscription>,
}

impl Stored for Other {
    const TABLE: Table = Table("pubsub_others");
    const SCHEMA: u8 = 1;
}

impl Default for Other {
    fn default() -> Other {
        Other { affiliation: Affiliation::None, subscriptions: Vec::new() }
    }
}

impl Other {
    pub fn is_subscribed(&self) -> bool {
        self.subscriptions.iter().any(|subscription| !subscription.pending)
    }

    /// Whether there is nothing to keep.
    pub fn is_nobody(&self) -> bool {
        self.affiliation == Affiliation::None && self.subscriptions.is_empty()
    }
}

/// How much a service keeps. Every change of anything of it changes this too, so that each sees what the one before left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub changes: u64,
    pub nodes: u64,
    /// Of all items.
    pub bytes: u64,
}

impl Stored for Tally {
    const TABLE: Table = Table("pubsub_tally");
    const SCHEMA: u8 = 1;
}

/// Stands behind a node's name in keys: no part of a name in XML.
const END: u8 = 0;

fn of_node(node: &str, rest: &[u8]) -> Key {
    let mut key = Vec::with_capacity(node.len() + 1 + rest.len());
    key.extend_from_slice(node.as_bytes());
    key.push(END);
    key.extend_from_slice(rest);
    key
}

/// All that is kept below a node in a table.
pub fn all_of(node: &str) -> Range {
    Range::prefix(of_node(node, &[]))
}

pub fn item_key(node: &str, at: u64) -> Key {
    of_node(node, &at.to_be_bytes())
}

/// The place of an item's key.
pub fn place_of(key: &[u8]) -> Option<u64> {
    let place = key.last_chunk::<8>()?;
    Some(u64::from_be_bytes(*place))
}

pub fn place_key(node: &str, id: &str) -> Key {
    of_node(node, id.as_bytes())
}

pub fn other_key(node: &str, bare: &str) -> Key {
    of_node(node, bare.as_bytes())
}

/// What stands behind the node in a key: an item's id, or the account of an `Other`.
pub fn below(key: &[u8]) -> Option<&str> {
    let at = key.iter().position(|byte| *byte == END)?;
    std::str::from_utf8(&key[at + 1..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_of_publication_and_tell_nodes_apart() {
        assert!(item_key("n", 255) < item_key("n", 256));
        assert_eq!(place_of(&item_key("n", 256)), Some(256));
        assert_eq!(below(&other_key("n", "b@h")), Some("b@h"));
        let all = all_of("n");
        let is_in = |key: Key| std::ops::RangeBounds::contains(&(all.from.clone(), all.to.clone()), &key);
        assert!(is_in(item_key("n", 0)) && is_in(item_key("n", u64::MAX)));
        assert!(!is_in(item_key("na", 0)) && !is_in(item_key("", 0)) && !is_in(b"n".to_vec()));
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let node = Node { config: NodeConfig::default(), created_s: 300, next: 2, items: 1, others: 0 };
        let bytes = [1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 2, 1, 1, 1, 0, 1, 1, 0, 1, 172, 2, 2, 1, 0];
        assert_eq!(store::record::encode(&node), bytes);
        assert_eq!(store::record::decode::<Node>(&bytes), Ok(node));
        let item = Item { id: "i".into(), publisher: "a@h".into(), at_s: 300, xml: b"<a/>".to_vec() };
        let bytes = [1, 1, b'i', 3, b'a', b'@', b'h', 172, 2, 4, b'<', b'a', b'/', b'>'];
        assert_eq!(store::record::decode::<Item>(&bytes), Ok(item));
        assert_eq!(store::record::decode::<Place>(&[1, 172, 2]), Ok(Place { at: 300 }));
        let other = Other {
            affiliation: Affiliation::Member,
            subscriptions: vec![Subscription { jid: "b@h".into(), id: "s".into(), pending: true }],
        };
        let bytes = [1, 4, 1, 3, b'b', b'@', b'h', 1, b's', 1];
        assert_eq!(store::record::decode::<Other>(&bytes), Ok(other));
        let tally = Tally { changes: 3, nodes: 2, bytes: 300 };
        assert_eq!(store::record::decode::<Tally>(&[1, 3, 2, 172, 2]), Ok(tally));
    }
}

//! [XEP-0060]: Publish-Subscribe, the engine: nodes, their items, and who may do what with them. It sends nothing.
//!
//! Read in this order:
//! - [`config`]: how a node is configured, in forms (`form`) and in the store.
//! - [`access`]: who may read, subscribe, publish and retract.
//! - [`tables`]: what the store keeps of a node.
//! - [`engine`]: all that changes a node: creation, publication, the end of items; `others`: subscriptions and
//!   affiliations; `listing`: items that are read, page by page.
//! - [`events`]: how what happened is written for those who hear of it.
//! - [`errors`]: what is said to who asked for what cannot be.
//!
//! A service is the partition that it keeps its nodes in: the one of an account for `pep`, later that of a host.

pub mod access;
pub mod config;
pub mod engine;
pub mod errors;
pub mod events;
pub mod form;
pub mod listing;
pub mod others;
pub mod tables;

/// The namespace of requests.
pub const NS: &str = "http://jabber.org/protocol/pubsub";
/// The namespace of an owner's requests.
pub const OWNER: &str = "http://jabber.org/protocol/pubsub#owner";
/// The namespace of notifications.
pub const EVENT: &str = "http://jabber.org/protocol/pubsub#event";

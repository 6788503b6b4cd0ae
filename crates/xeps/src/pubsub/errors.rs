//! The error conditions of XEP-0060: one of RFC 6120, and beside it what it means here.

use minidom::Element;
use stanza::{Condition, ErrorKind, StanzaError};

use crate::xml::{Build, element};

/// The namespace of the conditions that publish-subscribe has of its own.
pub const NS: &str = "http://jabber.org/protocol/pubsub#errors";

fn error(condition: Condition, kind: ErrorKind, extra: Element) -> StanzaError {
    StanzaError::new(condition).with_kind(kind).with_extra(extra)
}

fn own(tag: &str) -> Element {
    element(tag, NS)
}

/// The node or item is not there.
pub fn not_found() -> StanzaError {
    StanzaError::new(Condition::ItemNotFound)
}

pub fn forbidden() -> StanzaError {
    StanzaError::new(Condition::Forbidden)
}

/// 6.1.3.2.
pub fn presence_required() -> StanzaError {
    error(Condition::NotAuthorized, ErrorKind::Auth, own("presence-subscription-required"))
}

/// 6.1.3.3.
pub fn not_in_group() -> StanzaError {
    error(Condition::NotAuthorized, ErrorKind::Auth, own("not-in-roster-group"))
}

/// 6.1.3.4.
pub fn closed_node() -> StanzaError {
    error(Condition::NotAllowed, ErrorKind::Cancel, own("closed-node"))
}

/// 6.1.3.7.
pub fn pending() -> StanzaError {
    error(Condition::NotAuthorized, ErrorKind::Auth, own("pending-subscription"))
}

/// 6.1.3.9.
pub fn too_many_subscriptions() -> StanzaError {
    error(Condition::PolicyViolation, ErrorKind::Wait, own("too-many-subscriptions"))
}

/// 6.1.3.1.
pub fn invalid_jid() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("invalid-jid"))
}

/// 6.5.9.3: who reads a node that its owner opens to subscribers.
pub fn not_authorized() -> StanzaError {
    error(Condition::NotAuthorized, ErrorKind::Auth, own("not-subscribed"))
}

/// 6.2.3.2.
pub fn not_subscribed() -> StanzaError {
    error(Condition::UnexpectedRequest, ErrorKind::Cancel, own("not-subscribed"))
}

/// 6.2.3.5.
pub fn invalid_subid() -> StanzaError {
    error(Condition::NotAcceptable, ErrorKind::Modify, own("invalid-subid"))
}

/// A part of the protocol that the service or the node does without.
pub fn unsupported(feature: &str) -> StanzaError {
    let extra = own("unsupported").with("feature", feature);
    error(Condition::FeatureNotImplemented, ErrorKind::Cancel, extra)
}

/// 7.1.3.5.
pub fn payload_too_big() -> StanzaError {
    error(Condition::NotAcceptable, ErrorKind::Modify, own("payload-too-big"))
}

/// 7.1.3.6.
pub fn invalid_payload() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("invalid-payload"))
}

/// 7.1.3.7.
pub fn item_required() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("item-required"))
}

/// 7.1.3.7.
pub fn payload_required() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("payload-required"))
}

/// 7.1.3.7.
pub fn item_forbidden() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("item-forbidden"))
}

/// 7.1.5.
pub fn precondition_not_met() -> StanzaError {
    error(Condition::Conflict, ErrorKind::Cancel, own("precondition-not-met"))
}

/// 7.2.3.3.
pub fn node_required() -> StanzaError {
    error(Condition::BadRequest, ErrorKind::Modify, own("nodeid-required"))
}

/// 8.1.2.
pub fn unsupported_access_model() -> StanzaError {
    error(Condition::NotAcceptable, ErrorKind::Modify, own("unsupported-access-model"))
}

/// A node of that name is there already (8.1.2).
pub fn node_exists() -> StanzaError {
    StanzaError::new(Condition::Conflict)
}

/// The account has as many nodes as it may.
pub fn too_many_nodes() -> StanzaError {
    error(Condition::Conflict, ErrorKind::Cancel, own("max-nodes-exceeded"))
}

/// All items of the account together are too large.
pub fn full() -> StanzaError {
    error(Condition::ResourceConstraint, ErrorKind::Wait, own("max-items-exceeded"))
}

/// More entities have to do with the node than may.
pub fn too_many_others() -> StanzaError {
    StanzaError::new(Condition::ResourceConstraint).with_text("too many subscriptions and affiliations")
}

pub fn not_acceptable(text: &str) -> StanzaError {
    StanzaError::new(Condition::NotAcceptable).with_text(text)
}

//! What travels: a stanza, its addresses, its answers, its errors.

pub mod address;
pub mod dom;
pub mod error;
pub mod ns;
pub mod reply;
pub mod scope;
pub mod stanza;

pub use address::{
    BareJid, DomainPart, DomainRef, FullJid, Jid, NodePart, NodeRef, ResourcePart, ResourceRef,
};
pub use error::{Condition, ErrorKind, StanzaError, StreamCondition, StreamError};
pub use minidom::Element;
pub use stanza::{BadShape, ExtraAttribute, Head, IqType, Kind, MessageType, PresenceType, Stanza};

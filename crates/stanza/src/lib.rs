//! What travels: a stanza, its addresses, its answers, its errors.

pub mod stanza;
pub mod address;
pub mod reply;
pub mod error;
pub mod ns;
pub mod outline;
pub mod dom;
pub mod scanner;
pub mod scope;

pub use address::{
    BareJid, DomainPart, DomainRef, FullJid, Jid, NodePart, NodeRef, ResourcePart, ResourceRef,
};
pub use error::{Condition, ErrorKind, StanzaError, StreamCondition, StreamError};
pub use minidom::Element;
pub use stanza::{BadShape, ExtraAttribute, Head, IqType, Kind, MessageType, PresenceType, Stanza};

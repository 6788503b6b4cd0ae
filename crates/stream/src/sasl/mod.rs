//! SASL for a stream (RFC 6120, 6): mechanisms as pure machines, and the keys that they check against.

pub mod keys;
pub mod mechanism;
pub mod plain;
pub mod scram;

pub use keys::{ScramHash, ScramKeys};
pub use mechanism::{Mechanism, MechanismName, SaslCondition, Step};

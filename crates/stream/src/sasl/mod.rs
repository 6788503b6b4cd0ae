//! SASL for a stream (RFC 6120, 6): mechanisms as pure machines, and the keys that they check against.

pub mod anonymous;
pub mod downgrade;
pub mod external;
pub mod keys;
pub mod mechanism;
pub mod plain;
pub mod scram;
pub mod token;

pub use keys::{ScramHash, ScramKeys};
pub use mechanism::{Checked, Found, Mechanism, MechanismName, SaslCondition, Step, TokenBinding, Unbound};

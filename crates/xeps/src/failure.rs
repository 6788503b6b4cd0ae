//! How a failure of the store becomes an answer to the peer.

use stanza::{Condition, ErrorKind, StanzaError};
use store::StoreError;

/// Why a change did not happen.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The peer asked for what is not allowed.
    Refused(StanzaError),
    /// The store could not.
    Store(StoreError),
}

impl From<StanzaError> for Failure {
    fn from(error: StanzaError) -> Failure {
        Failure::Refused(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl Failure {
    /// What the peer is told; a failed store is logged under the module's name.
    pub fn answer(self, module: &'static str) -> StanzaError {
        match self {
            Failure::Refused(error) => error,
            Failure::Store(error) => store_failed(module, &error),
        }
    }
}

/// What the peer is told when the store failed: to try again. The failure itself is logged.
pub fn store_failed(module: &'static str, error: &StoreError) -> StanzaError {
    if let StoreError::Gone { .. } = error {
        // As for an account that never was (RFC 6121, 8.5.1).
        return StanzaError::new(Condition::ServiceUnavailable);
    }
    tracing::warn!(module, %error, "the store failed");
    let condition = match error {
        StoreError::Full | StoreError::Contended { .. } => Condition::ResourceConstraint,
        StoreError::TooLarge { .. } => return StanzaError::new(Condition::PolicyViolation),
        _ => Condition::InternalServerError,
    };
    // RFC 6120, 8.3.2: `wait` says that the same request may succeed later.
    StanzaError { kind: ErrorKind::Wait, ..StanzaError::new(condition) }
}

pub fn bad_request(text: &str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).with_text(text)
}

//! Why a connection ended, and what the client is told about it.

use stanza::{StreamCondition, StreamError};

/// The one reason for which a connection or a session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The client closed its stream (RFC 6120, 4.4).
    Closed,
    /// The socket ended under an open stream, or failed.
    Gone,
    /// The client did not read what was written for longer than the write timeout.
    Stalled,
    /// The TLS handshake failed or took too long: there is nobody to tell.
    NoTls,
    /// A new socket that sent nothing in time: there is no stream to close.
    Silent,
    /// A proxy did not say whom it speaks for.
    NoProxy,
    /// A proxy speaks for somebody who may have no further connection.
    Refused,
    /// A newer socket needed the place of this one, which had not logged in.
    Evicted,
    /// A stage of the stream took longer than its limit.
    Late,
    /// The client broke a rule of the stream.
    Broke(StreamError),
    /// Another session took the full JID.
    Displaced,
    /// The client resumed the session on another connection.
    Yielded,
    /// An operator closed the session.
    Kicked,
    /// An operator disabled the account.
    Disabled,
    /// The account was removed.
    Removed,
    /// More waited for the client than its mailbox may hold.
    Overflowed,
    /// This node stops.
    Stopping,
    /// This node drains; where the client is sent, if a place is known.
    Moved(Option<String>),
    /// This node was without its lease for longer than the grace; where the client is sent, if a place is known.
    CutOff(Option<String>),
    /// The login could not be carried out because the cluster or the store did not answer.
    Unavailable,
    /// Code of ours panicked while it worked for this client.
    Panicked,
}

impl Outcome {
    /// A short name for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Closed => "closed",
            Outcome::Gone => "gone",
            Outcome::Stalled => "stalled",
            Outcome::NoTls => "no-tls",
            Outcome::Silent => "silent",
            Outcome::NoProxy => "no-proxy-header",
            Outcome::Refused => "refused",
            Outcome::Evicted => "evicted",
            Outcome::Late => "late",
            Outcome::Broke(_) => "broke-a-rule",
            Outcome::Displaced => "displaced",
            Outcome::Yielded => "resumed-elsewhere",
            Outcome::Kicked => "kicked",
            Outcome::Disabled => "disabled",
            Outcome::Removed => "removed",
            Outcome::Overflowed => "overflowed",
            Outcome::Stopping => "stopping",
            Outcome::Moved(_) => "moved",
            Outcome::CutOff(_) => "cut-off",
            Outcome::Unavailable => "unavailable",
            Outcome::Panicked => "panicked",
        }
    }

    /// What the client is told before its stream is closed.
    pub(crate) fn farewell(&self) -> Farewell {
        let error = |condition| Farewell::Error(StreamError::new(condition));
        // XEP-0077, 3.2, of a removed account; a disabled one may do as little (RFC 6120, 4.9.3.12). Clients ask
        // their user then, in place of coming back at once.
        let not_authorized =
            |text: &str| Farewell::Error(StreamError::new(StreamCondition::NotAuthorized).with_text(text));
        match self {
            Outcome::Gone | Outcome::Stalled | Outcome::NoTls | Outcome::Silent => Farewell::Nothing,
            Outcome::NoProxy | Outcome::Refused => Farewell::Nothing,
            Outcome::Closed => Farewell::Close,
            Outcome::Broke(error) => Farewell::Error(error.clone()),
            Outcome::Late => error(StreamCondition::ConnectionTimeout),
            // XEP-0198, 5: of a stream whose session was resumed on another one as well.
            Outcome::Displaced | Outcome::Yielded => error(StreamCondition::Conflict),
            // Not `conflict`: some clients come back at once after it, others never.
            Outcome::Kicked => error(StreamCondition::PolicyViolation),
            Outcome::Overflowed | Outcome::Evicted => error(StreamCondition::ResourceConstraint),
            Outcome::Disabled => not_authorized("the account is disabled"),
            Outcome::Removed => not_authorized("the account was removed"),
            Outcome::Stopping => error(StreamCondition::SystemShutdown),
            Outcome::Moved(elsewhere) | Outcome::CutOff(elsewhere) => {
                Farewell::Error(away(elsewhere.clone()))
            }
            Outcome::Unavailable | Outcome::Panicked => error(StreamCondition::InternalServerError),
        }
    }

    /// Whether the client ended the session as it should, so that its contacts see no accident.
    pub(crate) fn is_clean(&self) -> bool {
        use Outcome::{Closed, CutOff, Disabled, Displaced, Kicked, Moved, Removed, Stopping};
        matches!(self, Closed | Displaced | Kicked | Disabled | Removed | Stopping | Moved(_) | CutOff(_))
    }

    /// Whether a session that can be resumed lives on after it, for a while.
    pub(crate) fn is_survived(&self) -> bool {
        use Outcome::{Gone, Late, Moved, Stalled, Yielded};
        matches!(self, Gone | Late | Moved(_) | Stalled | Yielded)
    }

    /// Whether what waits for the client is still worth writing before the stream is closed.
    pub(crate) fn may_flush(&self) -> bool {
        use Outcome::{Broke, Closed, Disabled, Kicked, Late, Moved, Removed, Stopping};
        matches!(self, Closed | Broke(_) | Kicked | Disabled | Removed | Stopping | Moved(_) | Late)
    }
}

/// What a client hears that a draining node does not keep: where to go (RFC 6120, 4.9.3.19), or where nobody
/// knows that, to come back; whoever stands before the nodes leads it to another.
pub(crate) fn away(elsewhere: Option<String>) -> StreamError {
    match elsewhere {
        Some(host) => StreamError::see_other_host(host),
        None => StreamError::new(StreamCondition::SystemShutdown),
    }
}

/// The last words on a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Farewell {
    Nothing,
    Close,
    Error(StreamError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_hear_is_told_nothing() {
        use Outcome::*;
        for outcome in [Gone, Stalled, NoTls, Silent, NoProxy, Refused] {
            assert_eq!(outcome.farewell(), Farewell::Nothing, "{}", outcome.name());
            assert!(!outcome.may_flush(), "{}", outcome.name());
        }
    }

    #[test]
    fn who_may_log_in_no_more_is_told_why() {
        for (outcome, word) in [(Outcome::Disabled, "disabled"), (Outcome::Removed, "removed")] {
            let Farewell::Error(error) = outcome.farewell() else { panic!("no error") };
            assert_eq!(error.condition, StreamCondition::NotAuthorized);
            assert!(error.text.is_some_and(|text| text.contains(word)));
            assert!(outcome.may_flush(), "the answer to a removal is still to be written");
        }
    }

    #[test]
    fn who_is_moved_hears_where_to_if_that_is_known() {
        for (elsewhere, condition) in [
            (Some("two.example:5222"), StreamCondition::SeeOtherHost),
            (None, StreamCondition::SystemShutdown),
        ] {
            let moved = Outcome::Moved(elsewhere.map(str::to_owned));
            let Farewell::Error(error) = moved.farewell() else { panic!("no error") };
            assert_eq!((error.condition, error.host.as_deref()), (condition, elsewhere));
            assert!(moved.may_flush() && moved.is_clean());
        }
    }

    #[test]
    fn a_displaced_session_hears_of_the_conflict() {
        let Farewell::Error(error) = Outcome::Displaced.farewell() else { panic!("no error") };
        assert_eq!(error.condition, StreamCondition::Conflict);
    }
}

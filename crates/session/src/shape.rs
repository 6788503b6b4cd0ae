//! What a bound client's stanza must look like before any module sees it, and the `from` that it leaves with.

use jid::{FullJid, Jid};
use stanza::{Kind, PresenceType, Stanza, StanzaError, StreamCondition, StreamError};

/// What is wrong with a stanza.
#[derive(Debug, PartialEq)]
pub(crate) enum Fault {
    /// The stream ends.
    Stream(StreamError),
    /// The client is told, the stream lives.
    Stanza(StanzaError),
}

/// Checks a stanza of the client that bound `own`, and stamps it.
pub(crate) fn stamp(stanza: &mut Stanza, own: &FullJid) -> Result<(), Fault> {
    if let Some(from) = &stanza.head.from {
        // RFC 6120, 8.1.2.1: a client may name its full or its bare JID, and nobody else.
        let is_own = from.node() == own.node()
            && from.domain() == own.domain()
            && from.resource().is_none_or(|resource| resource == own.resource());
        if !is_own {
            return Err(Fault::Stream(StreamError::new(StreamCondition::InvalidFrom)));
        }
    }
    let mut from = Jid::from(own.clone());
    match stanza.head.kind {
        Kind::Message => {
            if stanza.head.to.is_none() {
                // RFC 6120, 10.3.1: without an address, it is for the sender's own account.
                stanza.head_mut().to = Some(own.to_bare().into());
            }
        }
        Kind::Presence => {
            use PresenceType::*;
            match stanza.presence_type().map_err(Fault::Stanza)? {
                // RFC 6121, 3.1.2: subscriptions are between accounts, not between their devices.
                Subscribe | Subscribed | Unsubscribe | Unsubscribed => from = own.to_bare().into(),
                Available | Unavailable | Probe | Error => {}
            }
        }
        Kind::Iq => {
            stanza.iq_type().map_err(Fault::Stanza)?;
        }
    }
    stanza.head_mut().from = Some(from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use stanza::Condition;

    use super::*;

    fn own() -> FullJid {
        FullJid::new("alice@localhost/phone").unwrap()
    }

    fn stamped(mut stanza: Stanza) -> Result<String, Fault> {
        stamp(&mut stanza, &own()).map(|()| stanza.head.from.unwrap().to_string())
    }

    fn message() -> Stanza {
        Stanza::message(None).with_to(Jid::new("bob@localhost").unwrap())
    }

    #[test]
    fn only_the_own_address_may_be_named() {
        for (from, fits) in [
            ("alice@localhost/phone", true),
            ("alice@localhost", true),
            ("alice@localhost/desk", false),
            ("bob@localhost", false),
            ("alice@other", false),
            ("localhost", false),
        ] {
            let result = stamped(message().with_from(Jid::new(from).unwrap()));
            let expected = match fits {
                true => Ok("alice@localhost/phone".to_owned()),
                false => Err(Fault::Stream(StreamError::new(StreamCondition::InvalidFrom))),
            };
            assert_eq!(result, expected, "{from}");
        }
        assert_eq!(stamped(message()), Ok("alice@localhost/phone".to_owned()));
    }

    #[test]
    fn subscriptions_leave_with_the_bare_address() {
        for type_ in ["subscribe", "subscribed", "unsubscribe", "unsubscribed"] {
            assert_eq!(stamped(Stanza::presence(Some(type_))), Ok("alice@localhost".to_owned()));
        }
        for type_ in [None, Some("unavailable"), Some("error")] {
            assert_eq!(stamped(Stanza::presence(type_)), Ok("alice@localhost/phone".to_owned()));
        }
    }

    #[test]
    fn unknown_types_are_bad_requests() {
        for stanza in [Stanza::presence(Some("here")), Stanza::iq("fetch", "1", None)] {
            let Err(Fault::Stanza(error)) = stamped(stanza) else { panic!("accepted") };
            assert_eq!(error.condition, Condition::BadRequest);
        }
    }

    #[test]
    fn a_message_to_nobody_goes_to_the_own_account() {
        let mut stanza = Stanza::message(None);
        stamp(&mut stanza, &own()).unwrap();
        assert_eq!(stanza.head.to, Some(Jid::new("alice@localhost").unwrap()));
    }
}

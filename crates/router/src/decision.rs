//! Decides what becomes of a stanza at its receiver (RFC 6121, section 8): a pure function of the stanza's type, its address and the receiver's resources.

use stanza::{Condition, IqType, MessageType, PresenceType};

/// The stanza, as far as the rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Message(MessageType),
    Presence(PresenceType),
    Iq(IqType),
}

/// Whether the address names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// `localpart@domainpart`.
    Bare,
    /// `localpart@domainpart/resourcepart`; the position of the resource of that name, if it is bound.
    Full(Option<usize>),
}

/// What is known of the receiving account.
#[derive(Debug, Clone, Copy)]
pub struct Receiver<'a> {
    /// False if no such account exists at this host.
    pub exists: bool,
    /// Presence priority of each bound resource; `None` is bound and not available.
    pub priorities: &'a [Option<i8>],
    /// Whether this host keeps messages for absent users. If it does, a message to an account that does
    /// not exist ends in the same silence as one that was kept, so a stranger cannot tell them apart.
    pub keeps_offline: bool,
}

/// What to do with the stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Deliver to these resources, by position.
    Deliver(Vec<usize>),
    /// No resource may have it: the arriving hooks may keep it, else it is bounced `service-unavailable`.
    Keep,
    /// The server answers in the account's name.
    Answer,
    /// Return this error to the sender.
    Bounce(Condition),
    /// The RFC says: silently ignore.
    Ignore,
}

/// Decides for an address of the form `localpart@domainpart[/resourcepart]` at a local host.
pub fn decide(subject: Subject, address: Address, receiver: Receiver<'_>) -> Decision {
    match subject {
        Subject::Message(kind) => message(kind, address, receiver),
        Subject::Presence(kind) => presence(kind, address, receiver),
        Subject::Iq(kind) => iq(kind, address, receiver),
    }
}

/// Decides for an address without localpart: the host itself (RFC 6121, 8.5.1; RFC 6120, 10.5.1 and 10.5.2).
pub fn decide_host(subject: Subject, has_resource: bool) -> Decision {
    match subject {
        Subject::Iq(IqType::Get | IqType::Set) if !has_resource => Decision::Answer,
        Subject::Iq(IqType::Get | IqType::Set) => Decision::Bounce(Condition::ServiceUnavailable),
        // An answer to something that the host asked; whoever asked has seen it in the hooks.
        Subject::Iq(_) => Decision::Ignore,
        Subject::Message(MessageType::Error | MessageType::Headline) => Decision::Ignore,
        Subject::Message(_) => Decision::Bounce(Condition::ServiceUnavailable),
        Subject::Presence(_) => Decision::Ignore,
    }
}

/// Whether a session that the table does not show yet, or not as available, could have got the stanza: then
/// a newer table is worth a question before it is bounced, kept or given to another session. Presence to an
/// account needs none: who comes asks for it, and who is about to be seen to come gets it.
pub fn is_doubtful(
    subject: Subject,
    address: Address,
    priorities: &mut dyn Iterator<Item = Option<i8>>,
) -> bool {
    match (subject, address) {
        (_, Address::Full(Some(_))) => false,
        // Directed to a session that its sender has heard of (RFC 6121, 4.6), a question about one, or the answer
        // to one that may just have been bound.
        (Subject::Presence(kind), Address::Full(None)) => {
            use PresenceType as P;
            matches!(kind, P::Available | P::Unavailable | P::Probe)
        }
        (Subject::Presence(_), Address::Bare) => false,
        // An answer too: whoever waits for it was bound when it asked.
        (_, Address::Full(None)) => true,
        (Subject::Iq(_), Address::Bare) => false,
        (Subject::Message(MessageType::Groupchat | MessageType::Error), Address::Bare) => false,
        (Subject::Message(_), Address::Bare) => !priorities.flatten().any(|priority| priority >= 0),
    }
}

fn message(kind: MessageType, address: Address, receiver: Receiver<'_>) -> Decision {
    if let Address::Full(Some(matched)) = address {
        return Decision::Deliver(vec![matched]);
    }
    match (kind, address) {
        // RFC 6121, 8.5.2.1.1 and 8.5.3.2.1: an error that cannot be delivered is ignored, never answered.
        (MessageType::Error, _) => Decision::Ignore,
        // RFC 6121, 8.5.2.1.1: never to an account, whatever its resources.
        (MessageType::Groupchat, _) => Decision::Bounce(Condition::ServiceUnavailable),
        (MessageType::Headline, Address::Bare) => {
            let all = non_negative(receiver.priorities);
            if all.is_empty() { Decision::Ignore } else { Decision::Deliver(all) }
        }
        // RFC 6121, 8.5.3.2.1: of the two choices (ignore, error) the one that the sender can see.
        (MessageType::Headline | MessageType::Normal, Address::Full(_)) => {
            Decision::Bounce(Condition::ServiceUnavailable)
        }
        // RFC 6121, 8.5.3.2.1: no such resource, so a chat message goes to the account.
        (MessageType::Chat, _) | (MessageType::Normal, Address::Bare) => to_account(receiver),
    }
}

fn to_account(receiver: Receiver<'_>) -> Decision {
    let best = most_available(receiver.priorities);
    if !best.is_empty() {
        return Decision::Deliver(best);
    }
    match (receiver.exists, receiver.keeps_offline) {
        (true, _) => Decision::Keep,
        (false, true) => Decision::Ignore,
        (false, false) => Decision::Bounce(Condition::ServiceUnavailable),
    }
}

fn presence(kind: PresenceType, address: Address, receiver: Receiver<'_>) -> Decision {
    use PresenceType as P;
    match (kind, address) {
        // RFC 6121, 4.3: answered by the server (a hook) for the account, never seen by a client.
        (P::Probe, _) => Decision::Ignore,
        // What changes a subscription is for the handlers (RFC 6121, section 3); it comes here once they have
        // seen it, for the account. 3.1.3: a request is shown to all available resources, wherever it was sent.
        (P::Subscribe, _) => to_available(receiver.priorities),
        // RFC 6121, 8.5.3.2.2: an answer to a session that is not there is ignored.
        (P::Subscribed | P::Unsubscribe | P::Unsubscribed, Address::Full(None)) => Decision::Ignore,
        // RFC 6121, 3.1.6, 3.2.3, 3.3.3: to all interested resources, available or not; who asked for the
        // roster is known where the session is (a delivering hook).
        (P::Subscribed | P::Unsubscribe | P::Unsubscribed, _) => to_connected(receiver.priorities),
        // RFC 6121, 8.5.3.1.
        (P::Available | P::Unavailable | P::Error, Address::Full(Some(matched))) => {
            Decision::Deliver(vec![matched])
        }
        // RFC 6121, 8.5.3.2.2: no resource matches.
        (P::Available | P::Unavailable | P::Error, Address::Full(None)) => Decision::Ignore,
        // RFC 6121, 8.5.2.1.2: to all available resources. An error too, as it answers what was sent from the
        // account: a request to who cannot be reached (3.1.2).
        (P::Available | P::Unavailable | P::Error, Address::Bare) => to_available(receiver.priorities),
    }
}

fn iq(kind: IqType, address: Address, receiver: Receiver<'_>) -> Decision {
    match (kind, address) {
        (_, Address::Full(Some(matched))) => Decision::Deliver(vec![matched]),
        // Errors and results are never answered (RFC 6120, 8.2.3).
        (IqType::Result | IqType::Error, _) => Decision::Ignore,
        // RFC 6121, 8.5.3.2.3.
        (IqType::Get | IqType::Set, Address::Full(None)) => Decision::Bounce(Condition::ServiceUnavailable),
        // RFC 6121, 8.5.1: a missing account answers as one that serves nothing to strangers.
        (IqType::Get | IqType::Set, Address::Bare) if !receiver.exists => {
            Decision::Bounce(Condition::ServiceUnavailable)
        }
        // RFC 6121, 8.5.2.1.3: the server answers on behalf of the user.
        (IqType::Get | IqType::Set, Address::Bare) => Decision::Answer,
    }
}

fn to_available(priorities: &[Option<i8>]) -> Decision {
    let available: Vec<usize> = priorities.iter().enumerate().filter_map(|(at, p)| p.map(|_| at)).collect();
    if available.is_empty() { Decision::Ignore } else { Decision::Deliver(available) }
}

fn to_connected(priorities: &[Option<i8>]) -> Decision {
    if priorities.is_empty() { Decision::Ignore } else { Decision::Deliver((0..priorities.len()).collect()) }
}

fn non_negative(priorities: &[Option<i8>]) -> Vec<usize> {
    priorities.iter().enumerate().filter(|(_, p)| p.is_some_and(|p| p >= 0)).map(|(at, _)| at).collect()
}

/// All resources that share the highest non-negative priority: RFC 6121, 8.5.2.1.1, "most available
/// resource or resources".
fn most_available(priorities: &[Option<i8>]) -> Vec<usize> {
    let best = priorities.iter().flatten().copied().filter(|p| *p >= 0).max();
    match best {
        None => Vec::new(),
        Some(_) => priorities.iter().enumerate().filter(|(_, p)| **p == best).map(|(at, _)| at).collect(),
    }
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;

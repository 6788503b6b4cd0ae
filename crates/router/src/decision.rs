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
/// account needs none: who comes asks for it.
pub fn is_doubtful(
    subject: Subject,
    address: Address,
    priorities: &mut dyn Iterator<Item = Option<i8>>,
) -> bool {
    match (subject, address) {
        (_, Address::Full(Some(_))) => false,
        // Directed to a session that its sender has heard of (RFC 6121, 4.6).
        (Subject::Presence(kind), Address::Full(None)) => kind == PresenceType::Available,
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
        // What changes a subscription comes here from the handlers, which name each session that shall see it.
        (_, Address::Full(Some(matched))) => Decision::Deliver(vec![matched]),
        // Subscriptions are between accounts: RFC 6121, 3.1.3 (all available resources).
        (P::Subscribe | P::Subscribed | P::Unsubscribe | P::Unsubscribed, _) => {
            to_available(receiver.priorities)
        }
        // RFC 6121, 8.5.3.2.2: no resource matches.
        (P::Available | P::Unavailable | P::Error, Address::Full(_)) => Decision::Ignore,
        // RFC 6121, 8.5.2.1.2: to all available resources.
        (P::Available | P::Unavailable, Address::Bare) => to_available(receiver.priorities),
        (P::Error, Address::Bare) => Decision::Ignore,
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
mod tests {
    use super::*;
    use IqType as I;
    use MessageType as M;
    use PresenceType as P;

    /// Exists, priorities, address; then what becomes of normal, chat, groupchat and headline.
    type Row = (bool, &'static [Option<i8>], Address, [&'static str; 4]);

    const KEEP: &str = "O";
    const BOUNCE: &str = "E";
    const IGNORE: &str = "S";
    const ANSWER: &str = "answer";

    /// In the letters of the RFC's table: O keep, E error, S silence, digits are positions delivered to.
    fn letters(decision: Decision) -> String {
        match decision {
            Decision::Deliver(to) => to.iter().map(|at| at.to_string()).collect(),
            Decision::Keep => KEEP.into(),
            Decision::Bounce(Condition::ServiceUnavailable) => BOUNCE.into(),
            Decision::Bounce(other) => panic!("unexpected condition {other:?}"),
            Decision::Ignore => IGNORE.into(),
            Decision::Answer => ANSWER.into(),
        }
    }

    fn run(subject: Subject, address: Address, exists: bool, priorities: &[Option<i8>]) -> String {
        letters(decide(subject, address, Receiver { exists, priorities, keeps_offline: true }))
    }

    #[test]
    fn messages_follow_table_1_of_rfc_6121() {
        let (bare, gone) = (Address::Bare, Address::Full(None));
        let full = Address::Full(Some(0));
        #[rustfmt::skip]
        let rows: &[Row] = &[
            // exists, priorities, address                        normal  chat    groupchat headline
            (false, &[],                              bare, [IGNORE, IGNORE, BOUNCE, IGNORE]),
            (false, &[],                              gone, [BOUNCE, IGNORE, BOUNCE, BOUNCE]),
            (true,  &[],                              bare, [KEEP,   KEEP,   BOUNCE, IGNORE]),
            (true,  &[],                              gone, [BOUNCE, KEEP,   BOUNCE, BOUNCE]),
            // bound and not available: connected, not active
            (true,  &[None],                          bare, [KEEP,   KEEP,   BOUNCE, IGNORE]),
            (true,  &[None],                          gone, [BOUNCE, KEEP,   BOUNCE, BOUNCE]),
            (true,  &[None],                          full, ["0",    "0",    "0",    "0"]),
            // one or more negative, none other
            (true,  &[Some(-1), Some(-128)],          bare, [KEEP,   KEEP,   BOUNCE, IGNORE]),
            (true,  &[Some(-1), Some(-128)],          full, ["0",    "0",    "0",    "0"]),
            (true,  &[Some(-1), Some(-128)],          gone, [BOUNCE, KEEP,   BOUNCE, BOUNCE]),
            // one non-negative
            (true,  &[Some(0)],                       bare, ["0",    "0",    BOUNCE, "0"]),
            (true,  &[Some(0)],                       full, ["0",    "0",    "0",    "0"]),
            (true,  &[Some(0)],                       gone, [BOUNCE, "0",    BOUNCE, BOUNCE]),
            (true,  &[Some(-1), Some(0), None],       bare, ["1",    "1",    BOUNCE, "1"]),
            // more: the most available for normal and chat, all non-negative for headline
            (true,  &[Some(1), Some(5), Some(0)],     bare, ["1",    "1",    BOUNCE, "012"]),
            (true,  &[Some(1), Some(5), Some(-1)],    bare, ["1",    "1",    BOUNCE, "01"]),
            (true,  &[Some(5), Some(5), Some(0)],     bare, ["01",   "01",   BOUNCE, "012"]),
            (true,  &[Some(1), Some(5)],              full, ["0",    "0",    "0",    "0"]),
            (true,  &[Some(1), Some(5)],              gone, [BOUNCE, "1",    BOUNCE, BOUNCE]),
            (true,  &[Some(127), Some(-128), None],   bare, ["0",    "0",    BOUNCE, "0"]),
        ];
        for (exists, priorities, address, expected) in rows {
            for (kind, expected) in [M::Normal, M::Chat, M::Groupchat, M::Headline].into_iter().zip(expected)
            {
                let got = run(Subject::Message(kind), *address, *exists, priorities);
                assert_eq!(got, *expected, "{kind:?} to {address:?}, exists {exists}, {priorities:?}");
            }
        }
    }

    #[test]
    fn an_error_message_reaches_its_session_or_nobody() {
        for priorities in [&[][..], &[Some(0)], &[Some(-1)], &[None]] {
            for exists in [true, false] {
                assert_eq!(run(Subject::Message(M::Error), Address::Bare, exists, priorities), IGNORE);
                assert_eq!(run(Subject::Message(M::Error), Address::Full(None), exists, priorities), IGNORE);
            }
        }
        assert_eq!(run(Subject::Message(M::Error), Address::Full(Some(0)), true, &[Some(-1)]), "0");
    }

    #[test]
    fn presence_reaches_available_resources_and_is_never_answered() {
        let cases: &[(&[Option<i8>], &str)] =
            &[(&[], IGNORE), (&[None], IGNORE), (&[Some(-1)], "0"), (&[Some(3), None, Some(-9)], "02")];
        for (priorities, expected) in cases {
            for kind in
                [P::Available, P::Unavailable, P::Subscribe, P::Subscribed, P::Unsubscribe, P::Unsubscribed]
            {
                assert_eq!(run(Subject::Presence(kind), Address::Bare, true, priorities), *expected);
            }
            assert_eq!(run(Subject::Presence(P::Probe), Address::Bare, true, priorities), IGNORE);
            assert_eq!(run(Subject::Presence(P::Error), Address::Bare, true, priorities), IGNORE);
        }
    }

    #[test]
    fn presence_to_a_full_jid_reaches_it_alone_or_is_ignored() {
        for kind in [P::Available, P::Unavailable, P::Error] {
            assert_eq!(
                run(Subject::Presence(kind), Address::Full(Some(1)), true, &[Some(0), None]),
                "1",
                "directed presence reaches a session that is not available"
            );
            assert_eq!(run(Subject::Presence(kind), Address::Full(None), true, &[Some(0)]), IGNORE);
        }
        assert_eq!(
            run(Subject::Presence(P::Subscribe), Address::Full(None), true, &[Some(0)]),
            "0",
            "a request is to the account"
        );
    }

    #[test]
    fn an_iq_is_delivered_answered_or_refused() {
        for kind in [I::Get, I::Set] {
            assert_eq!(run(Subject::Iq(kind), Address::Bare, true, &[]), ANSWER);
            assert_eq!(run(Subject::Iq(kind), Address::Bare, true, &[Some(1)]), ANSWER);
            assert_eq!(run(Subject::Iq(kind), Address::Bare, false, &[]), BOUNCE);
            assert_eq!(run(Subject::Iq(kind), Address::Full(None), true, &[Some(1)]), BOUNCE);
            assert_eq!(run(Subject::Iq(kind), Address::Full(None), false, &[]), BOUNCE);
            assert_eq!(run(Subject::Iq(kind), Address::Full(Some(0)), true, &[None]), "0");
        }
        for kind in [I::Result, I::Error] {
            assert_eq!(run(Subject::Iq(kind), Address::Bare, true, &[Some(1)]), IGNORE);
            assert_eq!(run(Subject::Iq(kind), Address::Full(None), true, &[Some(1)]), IGNORE);
            assert_eq!(run(Subject::Iq(kind), Address::Full(Some(0)), true, &[None]), "0");
        }
    }

    #[test]
    fn a_newer_table_is_asked_before_nobody_is_there_and_only_then() {
        let doubtful = |subject, address, priorities: &[Option<i8>]| {
            is_doubtful(subject, address, &mut priorities.iter().copied())
        };
        let (full, gone) = (Address::Full(Some(0)), Address::Full(None));
        for kind in [I::Get, I::Set, I::Result, I::Error] {
            assert!(doubtful(Subject::Iq(kind), gone, &[Some(0)]));
            assert!(!doubtful(Subject::Iq(kind), full, &[None]));
            assert!(!doubtful(Subject::Iq(kind), Address::Bare, &[]));
        }
        for kind in [M::Normal, M::Chat, M::Headline] {
            assert!(doubtful(Subject::Message(kind), gone, &[Some(0)]));
            assert!(doubtful(Subject::Message(kind), Address::Bare, &[None, Some(-1)]));
            assert!(doubtful(Subject::Message(kind), Address::Bare, &[]));
            assert!(!doubtful(Subject::Message(kind), Address::Bare, &[None, Some(0)]));
            assert!(!doubtful(Subject::Message(kind), full, &[None]));
        }
        assert!(!doubtful(Subject::Message(M::Groupchat), Address::Bare, &[]), "never to an account");
        assert!(doubtful(Subject::Presence(P::Available), gone, &[]), "directed");
        assert!(!doubtful(Subject::Presence(P::Unavailable), gone, &[]));
        assert!(!doubtful(Subject::Presence(P::Available), Address::Bare, &[]));
        assert!(!doubtful(Subject::Presence(P::Subscribe), Address::Bare, &[]));
    }

    #[test]
    fn a_stranger_cannot_tell_a_missing_account_from_an_absent_user() {
        // What is kept ends in silence, so `Keep` counts as silence where messages are kept, and as an
        // error where they are not.
        for keeps_offline in [true, false] {
            let seen = |exists, subject, address| {
                match letters(decide(subject, address, Receiver { exists, priorities: &[], keeps_offline }))
                    .as_str()
                {
                    KEEP if keeps_offline => IGNORE.to_owned(),
                    KEEP => BOUNCE.to_owned(),
                    // Strangers get `service-unavailable` from the hooks too (RFC 6121, 8.5.2.2.3).
                    ANSWER => BOUNCE.to_owned(),
                    other => other.to_owned(),
                }
            };
            let mut subjects = Vec::new();
            subjects.extend([M::Normal, M::Chat, M::Groupchat, M::Headline, M::Error].map(Subject::Message));
            subjects.extend([I::Get, I::Set, I::Result, I::Error].map(Subject::Iq));
            subjects.extend([P::Available, P::Unavailable, P::Subscribe, P::Probe].map(Subject::Presence));
            for subject in subjects {
                for address in [Address::Bare, Address::Full(None)] {
                    assert_eq!(
                        seen(true, subject, address),
                        seen(false, subject, address),
                        "{subject:?} {address:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_host_answers_iqs_and_takes_no_messages() {
        let cases = [
            (Subject::Iq(I::Get), false, ANSWER),
            (Subject::Iq(I::Set), false, ANSWER),
            (Subject::Iq(I::Get), true, BOUNCE),
            (Subject::Iq(I::Result), false, IGNORE),
            (Subject::Iq(I::Error), false, IGNORE),
            (Subject::Message(M::Chat), false, BOUNCE),
            (Subject::Message(M::Normal), true, BOUNCE),
            (Subject::Message(M::Error), false, IGNORE),
            (Subject::Message(M::Headline), false, IGNORE),
            (Subject::Presence(P::Subscribe), false, IGNORE),
            (Subject::Presence(P::Available), true, IGNORE),
        ];
        for (subject, has_resource, expected) in cases {
            assert_eq!(letters(decide_host(subject, has_resource)), expected, "{subject:?} {has_resource}");
        }
    }
}

//! Tests of `decision.rs`: the tables of RFC 6121, section 8.5, cell by cell.

use super::*;
use IqType as I;
use MessageType as M;
use PresenceType as P;

const KEEP: &str = "O";
const BOUNCE: &str = "E";
const IGNORE: &str = "S";
const ANSWER: &str = "answer";

const BARE: Address = Address::Bare;
/// A full JID that is bound: the first of the resources.
const MATCH: Address = Address::Full(Some(0));
/// A full JID that is not.
const GONE: Address = Address::Full(None);

const MESSAGES: [M; 5] = [M::Normal, M::Chat, M::Groupchat, M::Headline, M::Error];
const PRESENCES: [P; 8] = [
    P::Available,
    P::Unavailable,
    P::Error,
    P::Subscribe,
    P::Subscribed,
    P::Unsubscribe,
    P::Unsubscribed,
    P::Probe,
];
const IQS: [I; 4] = [I::Get, I::Set, I::Result, I::Error];

/// In the letters of the RFC's table 1: O keep, E error, S silence, digits are positions delivered to.
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

/// Asserts one row: what becomes of each kind of a stanza.
fn row<const N: usize>(
    subjects: [Subject; N],
    address: Address,
    (exists, priorities): (bool, &[Option<i8>]),
    expected: [&str; N],
) {
    for (subject, expected) in subjects.into_iter().zip(expected) {
        let got = run(subject, address, exists, priorities);
        assert_eq!(got, expected, "{subject:?} to {address:?}, exists {exists}, {priorities:?}");
    }
}

/// Resources of an account: `None` is connected and not available.
type Resources = &'static [Option<i8>];

/// Every mixture that the sections tell apart, and its resources that are available, not negative, most
/// available, and all of them.
const SOMEBODY: [(Resources, [&str; 4]); 12] = [
    (&[None], ["", "", "", "0"]),
    (&[Some(-1)], ["0", "", "", "0"]),
    (&[Some(-128), Some(-1)], ["01", "", "", "01"]),
    (&[Some(-1), None], ["0", "", "", "01"]),
    (&[Some(0)], ["0", "0", "0", "0"]),
    (&[Some(127)], ["0", "0", "0", "0"]),
    (&[Some(-1), Some(0), None], ["01", "1", "1", "012"]),
    (&[Some(1), Some(5), Some(0)], ["012", "012", "1", "012"]),
    (&[Some(1), Some(5), Some(-1)], ["012", "01", "1", "012"]),
    (&[Some(5), Some(5), Some(0)], ["012", "012", "01", "012"]),
    (&[None, Some(0), Some(0)], ["12", "12", "12", "012"]),
    (&[Some(127), Some(-128), None], ["01", "0", "0", "012"]),
];

fn or<'a>(positions: &'a str, otherwise: &'a str) -> &'a str {
    if positions.is_empty() { otherwise } else { positions }
}

#[test]
fn section_8_5_1_no_such_user() {
    let nobody = (false, &[][..]);
    // Of (a) silence and (b) an error: what an absent user's correspondent sees.
    row(MESSAGES.map(Subject::Message), BARE, nobody, [IGNORE, IGNORE, BOUNCE, IGNORE, IGNORE]);
    row(MESSAGES.map(Subject::Message), GONE, nobody, [BOUNCE, IGNORE, BOUNCE, BOUNCE, IGNORE]);
    for address in [BARE, GONE] {
        row(PRESENCES.map(Subject::Presence), address, nobody, [IGNORE; 8]);
        row(IQS.map(Subject::Iq), address, nobody, [BOUNCE, BOUNCE, IGNORE, IGNORE]);
    }
}

#[test]
fn section_8_5_2_1_1_and_8_5_2_2_1_messages_to_an_account() {
    row(MESSAGES.map(Subject::Message), BARE, (true, &[]), [KEEP, KEEP, BOUNCE, IGNORE, IGNORE]);
    for (resources, [_, willing, best, _]) in SOMEBODY {
        let best = or(best, KEEP);
        let expected = [best, best, BOUNCE, or(willing, IGNORE), IGNORE];
        row(MESSAGES.map(Subject::Message), BARE, (true, resources), expected);
    }
}

#[test]
fn section_8_5_2_1_2_and_8_5_2_2_2_presence_to_an_account() {
    row(PRESENCES.map(Subject::Presence), BARE, (true, &[]), [IGNORE; 8]);
    for (resources, [available, _, _, all]) in SOMEBODY {
        let available = or(available, IGNORE);
        // As section 3 has it: requests to who is available, answers to who is interested.
        let expected = [available, available, available, available, all, all, all, IGNORE];
        row(PRESENCES.map(Subject::Presence), BARE, (true, resources), expected);
    }
}

#[test]
fn section_8_5_2_1_3_and_8_5_2_2_3_iqs_to_an_account() {
    row(IQS.map(Subject::Iq), BARE, (true, &[]), [ANSWER, ANSWER, IGNORE, IGNORE]);
    for (resources, _) in SOMEBODY {
        row(IQS.map(Subject::Iq), BARE, (true, resources), [ANSWER, ANSWER, IGNORE, IGNORE]);
    }
}

#[test]
fn section_8_5_3_1_a_resource_matches() {
    for (resources, [available, _, _, all]) in SOMEBODY {
        let available = or(available, IGNORE);
        // Whatever its priority, available or only connected.
        row(MESSAGES.map(Subject::Message), MATCH, (true, resources), ["0"; 5]);
        row(IQS.map(Subject::Iq), MATCH, (true, resources), ["0"; 4]);
        let expected = ["0", "0", "0", available, all, all, all, IGNORE];
        row(PRESENCES.map(Subject::Presence), MATCH, (true, resources), expected);
    }
}

#[test]
fn section_8_5_3_2_no_resource_matches() {
    row(MESSAGES.map(Subject::Message), GONE, (true, &[]), [BOUNCE, KEEP, BOUNCE, BOUNCE, IGNORE]);
    for (resources, [available, _, best, _]) in SOMEBODY {
        let expected = [BOUNCE, or(best, KEEP), BOUNCE, BOUNCE, IGNORE];
        row(MESSAGES.map(Subject::Message), GONE, (true, resources), expected);
        let available = or(available, IGNORE);
        let expected = [IGNORE, IGNORE, IGNORE, available, IGNORE, IGNORE, IGNORE, IGNORE];
        row(PRESENCES.map(Subject::Presence), GONE, (true, resources), expected);
        row(IQS.map(Subject::Iq), GONE, (true, resources), [BOUNCE, BOUNCE, IGNORE, IGNORE]);
    }
}

/// What table 1 (section 8.5.4) allows for normal, chat, groupchat and headline: any of the letters, where D is
/// the resource that is named, M the most available and A all that are not negative.
#[test]
fn section_8_5_4_messages_stay_within_table_1() {
    let negative: Resources = &[Some(-1), Some(-2)];
    let one: Resources = &[Some(3)];
    let more: Resources = &[Some(3), Some(1), Some(3)];
    let rows: [(bool, Resources, Address, [&str; 4]); 14] = [
        (false, &[], BARE, ["SE", "SE", "E", "S"]),
        (false, &[], GONE, ["SE", "SE", "SE", "SE"]),
        (true, &[], BARE, ["OE", "OE", "E", "S"]),
        (true, &[], GONE, ["SE", "OE", "SE", "SE"]),
        (true, negative, BARE, ["OE", "OE", "E", "S"]),
        (true, negative, MATCH, ["D", "D", "D", "D"]),
        (true, negative, GONE, ["SE", "OE", "SE", "SE"]),
        (true, one, BARE, ["D", "D", "E", "D"]),
        (true, one, MATCH, ["D", "D", "D", "D"]),
        (true, one, GONE, ["SE", "D", "SE", "SE"]),
        (true, more, BARE, ["MA", "M", "E", "A"]),
        (true, more, MATCH, ["D", "D", "D", "D"]),
        (true, more, GONE, ["SE", "M", "SE", "SE"]),
        (true, &[None], BARE, ["OE", "OE", "E", "S"]),
    ];
    for keeps_offline in [true, false] {
        for (exists, priorities, address, allowed) in rows {
            for (kind, allowed) in MESSAGES.into_iter().zip(allowed) {
                let receiver = Receiver { exists, priorities, keeps_offline };
                let got = letters(decide(Subject::Message(kind), address, receiver));
                let fits = allowed.chars().any(|letter| match letter {
                    'D' => got == "0",
                    'M' => got == "02",
                    'A' => got == "012",
                    letter => got == letter.to_string(),
                });
                assert!(fits, "{kind:?} to {address:?} of {priorities:?}: {got}, and {allowed} may be");
            }
        }
    }
}

#[test]
fn a_newer_table_is_asked_before_nobody_is_there_and_only_then() {
    let doubtful = |subject, address, priorities: &[Option<i8>]| {
        is_doubtful(subject, address, &mut priorities.iter().copied())
    };
    for kind in IQS {
        assert!(doubtful(Subject::Iq(kind), GONE, &[Some(0)]));
        assert!(!doubtful(Subject::Iq(kind), MATCH, &[None]));
        assert!(!doubtful(Subject::Iq(kind), BARE, &[]));
    }
    for kind in [M::Normal, M::Chat, M::Headline] {
        assert!(doubtful(Subject::Message(kind), GONE, &[Some(0)]));
        assert!(doubtful(Subject::Message(kind), BARE, &[None, Some(-1)]));
        assert!(doubtful(Subject::Message(kind), BARE, &[]));
        assert!(!doubtful(Subject::Message(kind), BARE, &[None, Some(0)]));
        assert!(!doubtful(Subject::Message(kind), MATCH, &[None]));
    }
    assert!(!doubtful(Subject::Message(M::Groupchat), BARE, &[]), "never to an account");
    assert!(doubtful(Subject::Presence(P::Available), GONE, &[]), "directed");
    assert!(doubtful(Subject::Presence(P::Probe), GONE, &[]), "a question about it");
    assert!(doubtful(Subject::Presence(P::Unavailable), GONE, &[]), "the answer to its own question");
    assert!(!doubtful(Subject::Presence(P::Subscribed), GONE, &[]));
    assert!(!doubtful(Subject::Presence(P::Available), BARE, &[]));
    assert!(!doubtful(Subject::Presence(P::Subscribe), BARE, &[]));
}

#[test]
fn a_stranger_cannot_tell_a_missing_account_from_an_absent_user() {
    // What is kept ends in silence, so `Keep` counts as silence where messages are kept, and as an error
    // where they are not.
    for keeps_offline in [true, false] {
        let seen = |exists, subject, address| {
            let receiver = Receiver { exists, priorities: &[], keeps_offline };
            match letters(decide(subject, address, receiver)).as_str() {
                KEEP if keeps_offline => IGNORE.to_owned(),
                KEEP => BOUNCE.to_owned(),
                // Strangers get `service-unavailable` from the hooks too (RFC 6121, 8.5.2.2.3).
                ANSWER => BOUNCE.to_owned(),
                other => other.to_owned(),
            }
        };
        let messages = MESSAGES.map(Subject::Message).into_iter();
        let others = PRESENCES.map(Subject::Presence).into_iter().chain(IQS.map(Subject::Iq));
        for subject in messages.chain(others) {
            for address in [BARE, GONE] {
                let (there, missing) = (seen(true, subject, address), seen(false, subject, address));
                assert_eq!(there, missing, "{subject:?} {address:?}");
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
        (Subject::Message(M::Groupchat), false, BOUNCE),
        (Subject::Message(M::Error), false, IGNORE),
        (Subject::Message(M::Headline), false, IGNORE),
        (Subject::Presence(P::Subscribe), false, IGNORE),
        (Subject::Presence(P::Available), true, IGNORE),
        (Subject::Presence(P::Probe), false, IGNORE),
    ];
    for (subject, has_resource, expected) in cases {
        assert_eq!(letters(decide_host(subject, has_resource)), expected, "{subject:?} {has_resource}");
    }
}

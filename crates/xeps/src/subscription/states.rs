//! RFC 6121, appendix A: Subscription States. What each subscription stanza does, as a pure function.

use crate::rosters::Standing;

/// The four stanzas that manage subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Subscribe,
    Unsubscribe,
    Subscribed,
    Unsubscribed,
}

impl Act {
    /// The word of the `type` attribute.
    pub fn word(self) -> &'static str {
        match self {
            Act::Subscribe => "subscribe",
            Act::Unsubscribe => "unsubscribe",
            Act::Subscribed => "subscribed",
            Act::Unsubscribed => "unsubscribed",
        }
    }
}

/// Everything between a user and a contact: the nine states of appendix A.1, and pre-approval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    pub standing: Standing,
    /// The contact has asked, and the user has not answered: "Pending In".
    pub requested: bool,
}

/// What a stanza does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub state: State,
    /// Outbound: route it. Inbound: deliver it.
    pub pass: bool,
    /// Inbound: answer the contact on behalf of the user.
    pub reply: Option<Act>,
}

/// Tables 2 to 5: the user's client sends `act`. `preapproval`: section 3.4 is on.
pub fn outbound(mut state: State, act: Act, preapproval: bool) -> Outcome {
    let standing = &mut state.standing;
    let pass = match act {
        Act::Subscribe => {
            standing.asked |= !standing.to;
            true
        }
        Act::Unsubscribe => {
            (standing.to, standing.asked) = (false, false);
            true
        }
        Act::Subscribed if state.requested => {
            standing.from = true;
            state.requested = false;
            true
        }
        Act::Subscribed => {
            standing.approved |= preapproval && !standing.from;
            false
        }
        Act::Unsubscribed => {
            let granted = standing.from || state.requested;
            (standing.from, standing.approved, state.requested) = (false, false, false);
            granted
        }
    };
    Outcome { state, pass, reply: None }
}

/// Tables 6 to 9: the contact sends `act`.
pub fn inbound(mut state: State, act: Act) -> Outcome {
    let standing = &mut state.standing;
    let (pass, reply) = match act {
        // The contact's server has lost what we know: it is told again.
        Act::Subscribe if standing.from => (false, Some(Act::Subscribed)),
        Act::Subscribe if standing.approved => {
            (standing.from, state.requested) = (true, false);
            (false, Some(Act::Subscribed))
        }
        Act::Subscribe => (!std::mem::replace(&mut state.requested, true), None),
        Act::Unsubscribe => {
            let granted = standing.from || state.requested;
            (standing.from, state.requested) = (false, false);
            (granted, granted.then_some(Act::Unsubscribed))
        }
        Act::Subscribed => {
            let awaited = standing.asked;
            standing.to |= awaited;
            standing.asked = false;
            (awaited, None)
        }
        Act::Unsubscribed => {
            let had = standing.to || standing.asked;
            (standing.to, standing.asked) = (false, false);
            (had, None)
        }
    };
    Outcome { state, pass, reply }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nine states in the order of the RFC's tables.
    const STATES: [&str; 9] = ["N", "N+O", "N+I", "N+OI", "T", "T+I", "F", "F+O", "B"];

    fn state(name: &str) -> State {
        let (base, pending) = name.split_once('+').unwrap_or((name, ""));
        let standing = Standing {
            to: matches!(base, "T" | "B"),
            from: matches!(base, "F" | "B"),
            asked: pending.contains('O'),
            approved: false,
        };
        State { standing, requested: pending.contains('I') }
    }

    /// (route?, new state) for each of the nine, read off tables 2 to 5; `.` is "no state change".
    const OUTBOUND: [(Act, [(bool, &str); 9]); 4] = [
        (
            Act::Subscribe,
            [
                (true, "N+O"),
                (true, "."),
                (true, "N+OI"),
                (true, "."),
                (true, "."),
                (true, "."),
                (true, "F+O"),
                (true, "."),
                (true, "."),
            ],
        ),
        (
            Act::Unsubscribe,
            [
                (true, "."),
                (true, "N"),
                (true, "."),
                (true, "N+I"),
                (true, "N"),
                (true, "N+I"),
                (true, "."),
                (true, "F"),
                (true, "F"),
            ],
        ),
        (
            Act::Subscribed,
            [
                (false, "."),
                (false, "."),
                (true, "F"),
                (true, "F+O"),
                (false, "."),
                (true, "B"),
                (false, "."),
                (false, "."),
                (false, "."),
            ],
        ),
        (
            Act::Unsubscribed,
            [
                (false, "."),
                (false, "."),
                (true, "N"),
                (true, "N+O"),
                (false, "."),
                (true, "T"),
                (true, "N"),
                (true, "N+O"),
                (true, "T"),
            ],
        ),
    ];

    type Row = (bool, &'static str, bool);

    /// (deliver?, new state, reply?) for each of the nine, read off tables 6 to 9.
    const INBOUND: [(Act, [Row; 9]); 4] = [
        (
            Act::Subscribe,
            [
                (true, "N+I", false),
                (true, "N+OI", false),
                (false, ".", false),
                (false, ".", false),
                (true, "T+I", false),
                (false, ".", false),
                (false, ".", true),
                (false, ".", true),
                (false, ".", true),
            ],
        ),
        (
            Act::Unsubscribe,
            [
                (false, ".", false),
                (false, ".", false),
                (true, "N", true),
                (true, "N+O", true),
                (false, ".", false),
                (true, "T", true),
                (true, "N", true),
                (true, "N+O", true),
                (true, "T", true),
            ],
        ),
        (
            Act::Subscribed,
            [
                (false, ".", false),
                (true, "T", false),
                (false, ".", false),
                (true, "T+I", false),
                (false, ".", false),
                (false, ".", false),
                (false, ".", false),
                (true, "B", false),
                (false, ".", false),
            ],
        ),
        (
            Act::Unsubscribed,
            [
                (false, ".", false),
                (true, "N", false),
                (false, ".", false),
                (true, "N+I", false),
                (true, "N", false),
                (true, "N+I", false),
                (false, ".", false),
                (true, "F", false),
                (true, "F", false),
            ],
        ),
    ];

    #[test]
    fn outbound_stanzas_follow_tables_2_to_5() {
        for (act, rows) in OUTBOUND {
            for (from, (route, to)) in STATES.iter().zip(rows) {
                let expected = state(if to == "." { from } else { to });
                let outcome = outbound(state(from), act, false);
                assert_eq!(
                    outcome,
                    Outcome { state: expected, pass: route, reply: None },
                    "{act:?} in {from}"
                );
            }
        }
    }

    #[test]
    fn inbound_stanzas_follow_tables_6_to_9() {
        for (act, rows) in INBOUND {
            for (from, (deliver, to, replies)) in STATES.iter().zip(rows) {
                let expected = state(if to == "." { from } else { to });
                let reply = match act {
                    Act::Subscribe => Act::Subscribed,
                    _ => Act::Unsubscribed,
                };
                let expected = Outcome { state: expected, pass: deliver, reply: replies.then_some(reply) };
                assert_eq!(inbound(state(from), act), expected, "{act:?} in {from}");
            }
        }
    }

    #[test]
    fn a_preapproval_waits_for_the_request_and_can_be_taken_back() {
        for from in ["N", "N+O", "T"] {
            let approved = outbound(state(from), Act::Subscribed, true);
            assert!(approved.state.standing.approved && !approved.pass, "{from}");
            let asked = inbound(approved.state, Act::Subscribe);
            assert!(asked.state.standing.from && !asked.pass, "{from}");
            assert_eq!(asked.reply, Some(Act::Subscribed));
            let back = outbound(approved.state, Act::Unsubscribed, true);
            assert_eq!((back.state, back.pass), (state(from), false), "{from}");
        }
        for from in ["F", "F+O", "B"] {
            assert_eq!(outbound(state(from), Act::Subscribed, true).state, state(from), "{from}");
        }
    }
}

//! ANONYMOUS (RFC 4505, XEP-0175): nobody in particular, under a name of the server's making.

use stanza::{BareJid, DomainPart, address};

use super::mechanism::{Mechanism, SaslCondition, Step};

/// Longest trace that a client may send, in characters (RFC 4505, 2).
const TRACE_MAX: usize = 255;

/// One exchange.
pub struct Anonymous {
    account: Option<BareJid>,
}

impl Anonymous {
    /// For a client that will be called `account`, if it asks in good form.
    pub fn new(account: BareJid) -> Anonymous {
        Anonymous { account: Some(account) }
    }
}

impl Mechanism for Anonymous {
    fn message(&mut self, message: &[u8]) -> Step {
        // XEP-0175, 2: what the client says about itself is used for nothing.
        let trace = std::str::from_utf8(message).ok();
        let good = trace.is_some_and(|trace| trace.chars().take(TRACE_MAX + 1).count() <= TRACE_MAX);
        match self.account.take() {
            Some(account) if good => Step::Success { account, data: None },
            _ => Step::Fail(SaslCondition::MalformedRequest),
        }
    }
}

/// The address of an anonymous client: a random UUID (RFC 9562, 5.4), as XEP-0175, 2 recommends.
pub fn account(host: &DomainPart, random: [u8; 16]) -> Option<BareJid> {
    let mut bytes = random;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    address::account(&parts.join("-"), host).ok()
}

/// Whether a name may be one that [`account()`] made. Nobody else may have it, or a name that was seen could be
/// taken from who has it.
pub fn is_anonymous(name: &str) -> bool {
    name.len() == 36
        && name.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            14 => b == b'4',
            19 => matches!(b, b'8' | b'9' | b'a' | b'b'),
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> DomainPart {
        address::host("x").unwrap()
    }

    #[test]
    fn a_client_gets_the_name_that_was_made_whatever_it_says() {
        let made = account(&host(), [0xff; 16]).unwrap();
        assert_eq!(made.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff@x");
        for trace in ["", "alice", "alice@example.org", &"\u{e9}".repeat(255)] {
            let mut anonymous = Anonymous::new(made.clone());
            let step = anonymous.message(trace.as_bytes());
            assert_eq!(step, Step::Success { account: made.clone(), data: None }, "{trace}");
            let again = anonymous.message(b"");
            assert_eq!(again, Step::Fail(SaslCondition::MalformedRequest), "once only");
        }
        let long = "a".repeat(256);
        for trace in [&b"\xff"[..], long.as_bytes()] {
            let step = Anonymous::new(made.clone()).message(trace);
            assert_eq!(step, Step::Fail(SaslCondition::MalformedRequest));
        }
    }

    #[test]
    fn names_that_were_made_are_known_again() {
        for random in [[0; 16], [0xff; 16], *b"0123456789abcdef"] {
            let made = account(&host(), random).unwrap();
            assert!(is_anonymous(made.node().unwrap().as_str()), "{made}");
        }
        for other in
            ["alice", "", "ffffffff-ffff-5fff-bfff-ffffffffffff", "ffffffff-ffff-4fff-cfff-ffffffffffff"]
        {
            assert!(!is_anonymous(other), "{other}");
        }
    }
}

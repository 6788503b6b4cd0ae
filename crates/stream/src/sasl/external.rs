//! EXTERNAL (RFC 4422, A; XEP-0178): the client is who its certificate says.

use stanza::{BareJid, DomainPart, address};

use super::keys::ScramHash;
use super::mechanism::{Found, Mechanism, SaslCondition, Step};

/// One exchange.
pub struct External {
    /// Addresses of the host in a certificate that was verified.
    addresses: Vec<BareJid>,
    state: State,
}

enum State {
    First,
    Account(BareJid),
    Done,
}

impl External {
    /// For the accounts of `host` that a verified certificate names; the others in it are of no use here.
    pub fn new(host: &DomainPart, certified: &[BareJid]) -> External {
        External { addresses: of_host(host, certified).cloned().collect(), state: State::First }
    }

    fn choose(&self, message: &[u8]) -> Result<BareJid, SaslCondition> {
        let authzid = std::str::from_utf8(message).map_err(|_| SaslCondition::MalformedRequest)?;
        if authzid.contains('\0') {
            return Err(SaslCondition::MalformedRequest);
        }
        if authzid.is_empty() {
            // XEP-0178, 3: of several addresses the client must choose one.
            return match &self.addresses[..] {
                [only] => Ok(only.clone()),
                [] => Err(SaslCondition::NotAuthorized),
                _ => Err(SaslCondition::InvalidAuthzid),
            };
        }
        let wanted = address::bare_jid(authzid).map_err(|_| SaslCondition::InvalidAuthzid)?;
        let certified = self.addresses.contains(&wanted);
        if certified { Ok(wanted) } else { Err(SaslCondition::InvalidAuthzid) }
    }
}

/// The addresses of one host.
pub fn of_host<'a>(host: &'a DomainPart, certified: &'a [BareJid]) -> impl Iterator<Item = &'a BareJid> {
    certified.iter().filter(move |jid| jid.node().is_some() && jid.domain().as_str() == host.as_str())
}

impl Mechanism for External {
    fn message(&mut self, message: &[u8]) -> Step {
        if !matches!(self.state, State::First) {
            return Step::Fail(SaslCondition::MalformedRequest);
        }
        match self.choose(message) {
            Ok(account) => {
                self.state = State::Account(account.clone());
                Step::LookUp { account, hash: ScramHash::Sha256 }
            }
            Err(condition) => {
                self.state = State::Done;
                Step::Fail(condition)
            }
        }
    }

    fn found(&mut self, found: Option<Found>) -> Step {
        match (std::mem::replace(&mut self.state, State::Done), found) {
            (State::Account(_), Some(Found { disabled: true, .. })) => {
                Step::Fail(SaslCondition::AccountDisabled)
            }
            (State::Account(account), Some(_)) => Step::Success { account, data: None },
            // A certificate makes no account.
            _ => Step::Fail(SaslCondition::NotAuthorized),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SaslCondition::*;
    use stanza::address;

    fn jids(all: &[&str]) -> Vec<BareJid> {
        all.iter().map(|jid| BareJid::new(jid).unwrap()).collect()
    }

    fn found(disabled: bool) -> Found {
        Found { keys: None, disabled, lacks: ScramHash::ALL.to_vec() }
    }

    #[test]
    fn the_address_is_the_only_one_or_the_one_chosen() {
        let alice = Ok("alice@x");
        type Case<'a> = (&'a [&'a str], &'a [u8], Result<&'a str, SaslCondition>);
        let cases: [Case<'_>; 13] = [
            (&["alice@x"], b"", alice),
            (&["alice@x"], b"alice@x", alice),
            (&["alice@x"], b"Alice@X", alice),
            (&["alice@x", "bob@y"], b"", alice),
            (&["alice@x", "bob@x"], b"alice@x", alice),
            (&["alice@x", "bob@x"], b"", Err(InvalidAuthzid)),
            (&["alice@x"], b"bob@x", Err(InvalidAuthzid)),
            (&["alice@x", "bob@y"], b"bob@y", Err(InvalidAuthzid)),
            (&["alice@x"], b"alice@x/phone", Err(InvalidAuthzid)),
            (&["alice@x"], b"@@", Err(InvalidAuthzid)),
            (&["alice@x"], b"\xff", Err(MalformedRequest)),
            (&["alice@x"], b"alice@x\0", Err(MalformedRequest)),
            (&["bob@y", "x"], b"", Err(NotAuthorized)),
        ];
        for (certified, message, expected) in cases {
            let mut external = External::new(&address::host("x").unwrap(), &jids(certified));
            let step = external.message(message);
            match expected {
                Ok(jid) => {
                    let account = BareJid::new(jid).unwrap();
                    assert_eq!(step, Step::LookUp { account: account.clone(), hash: ScramHash::Sha256 });
                    assert_eq!(external.found(Some(found(false))), Step::Success { account, data: None });
                }
                Err(condition) => assert_eq!(step, Step::Fail(condition), "{certified:?} {message:?}"),
            }
            assert_eq!(external.message(message), Step::Fail(MalformedRequest), "once only");
            assert_eq!(external.found(Some(found(false))), Step::Fail(NotAuthorized), "once only");
        }
    }

    #[test]
    fn a_certificate_makes_no_account_and_opens_no_disabled_one() {
        for (answer, condition) in [(None, NotAuthorized), (Some(found(true)), AccountDisabled)] {
            let mut external = External::new(&address::host("x").unwrap(), &jids(&["alice@x"]));
            external.message(b"");
            assert_eq!(external.found(answer), Step::Fail(condition));
        }
    }
}

//! PLAIN (RFC 4616): the password itself, inside TLS only, checked by the caller.

use stanza::{BareJid, DomainPart, address};

use super::mechanism::{Checked, Mechanism, Password, SaslCondition, Step};

/// One exchange.
pub struct Plain {
    host: DomainPart,
    account: Option<BareJid>,
}

impl Plain {
    /// For accounts of `host`.
    pub fn new(host: DomainPart) -> Plain {
        Plain { host, account: None }
    }

    fn read(&mut self, message: &[u8]) -> Result<Step, SaslCondition> {
        let malformed = SaslCondition::MalformedRequest;
        let text = std::str::from_utf8(message).map_err(|_| malformed)?;
        // RFC 4616, 2: message = [authzid] NUL authcid NUL passwd
        let mut parts = text.split('\0');
        let (Some(authzid), Some(authcid), Some(password), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed);
        };
        if authcid.is_empty() || password.is_empty() {
            return Err(malformed);
        }
        // A name that no account can have is as wrong as a wrong password.
        let account = address::account(authcid, &self.host).map_err(|_| SaslCondition::NotAuthorized)?;
        check_authzid(authzid, &account)?;
        self.account = Some(account.clone());
        Ok(Step::CheckPassword { account, password: Password::new(password) })
    }
}

/// RFC 6120, 6.3.8: nobody acts as another account here, so an authorization identity is empty or one's own.
pub(super) fn check_authzid(authzid: &str, account: &BareJid) -> Result<(), SaslCondition> {
    let own = authzid.is_empty() || address::bare_jid(authzid).is_ok_and(|jid| jid == *account);
    if own { Ok(()) } else { Err(SaslCondition::InvalidAuthzid) }
}

impl Mechanism for Plain {
    fn message(&mut self, message: &[u8]) -> Step {
        if self.account.is_some() {
            return Step::Fail(SaslCondition::MalformedRequest);
        }
        self.read(message).unwrap_or_else(Step::Fail)
    }

    fn password_checked(&mut self, checked: Checked) -> Step {
        match (self.account.take(), checked) {
            (Some(account), Checked::Good) => Step::Success { account, data: None },
            (Some(_), Checked::Disabled) => Step::Fail(SaslCondition::AccountDisabled),
            _ => Step::Fail(SaslCondition::NotAuthorized),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SaslCondition::*;

    fn plain() -> Plain {
        Plain::new(address::host("x").unwrap())
    }

    #[test]
    fn a_good_message_asks_for_a_check() {
        for message in ["\0alice\0secret", "alice@x\0alice\0secret", "ALICE@X\0Alice\0secret"] {
            let mut plain = plain();
            let Step::CheckPassword { account, password } = plain.message(message.as_bytes()) else {
                panic!("{message:?}")
            };
            assert_eq!(account.as_str(), "alice@x");
            assert_eq!(password.expose(), "secret");
            assert_eq!(format!("{password:?}"), "Password");
            assert_eq!(plain.password_checked(Checked::Good), Step::Success { account, data: None });
        }
    }

    #[test]
    fn a_bad_message_fails() {
        let cases: [(&[u8], SaslCondition); 12] = [
            (b"", MalformedRequest),
            (b"alice", MalformedRequest),
            (b"\0alice", MalformedRequest),
            (b"\0alice\0secret\0", MalformedRequest),
            (b"\0\0secret", MalformedRequest),
            (b"\0alice\0", MalformedRequest),
            (b"\0alice\0\xff", MalformedRequest),
            (b"bob@x\0alice\0secret", InvalidAuthzid),
            (b"alice@y\0alice\0secret", InvalidAuthzid),
            (b"alice@x/r\0alice\0secret", InvalidAuthzid),
            (b"\0a@x\0secret", NotAuthorized),
            (b"\0a b\0secret", NotAuthorized),
        ];
        for (message, expected) in cases {
            assert_eq!(plain().message(message), Step::Fail(expected), "{message:?}");
        }
    }

    #[test]
    fn a_wrong_password_is_not_authorized() {
        let mut plain = plain();
        plain.message(b"\0alice\0secret");
        assert_eq!(plain.password_checked(Checked::Wrong), Step::Fail(NotAuthorized));
        assert_eq!(plain.password_checked(Checked::Good), Step::Fail(NotAuthorized), "once only");
    }

    #[test]
    fn only_who_knows_the_password_learns_that_the_account_is_disabled() {
        for (checked, condition) in [(Checked::Disabled, AccountDisabled), (Checked::Wrong, NotAuthorized)] {
            let mut plain = plain();
            plain.message(b"\0alice\0secret");
            assert_eq!(plain.password_checked(checked), Step::Fail(condition));
        }
    }
}

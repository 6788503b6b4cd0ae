//! HT-SHA-256 (draft-schmaus-kitten-sasl-ht-09): one message that proves a token, bound to the channel or not.

use stanza::{BareJid, DomainPart, address};
use subtle::ConstantTimeEq;

use super::keys::ScramHash;
use super::mechanism::{Mechanism, MechanismName, SaslCondition, Step, TokenBinding};

/// The hash of all mechanisms of the family that are spoken here.
const HASH: ScramHash = ScramHash::Sha256;
/// Tokens of a client that are looked at; nobody has more than one that it uses and one that it was given since.
const TOKENS_MAX: usize = 2;

/// What proofs are made with: a token, or what HMAC makes of it. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey(pub Vec<u8>);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey")
    }
}

/// A token of a client as the caller keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// Its key.
    pub key: TokenKey,
    /// The mechanism that it was made for.
    pub mechanism: String,
    /// The last count that it was used with.
    pub count: Option<u64>,
    /// It does not hold any more.
    pub expired: bool,
}

/// An account that is there, and the tokens of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTokens {
    /// A few.
    pub tokens: Vec<KnownToken>,
    /// Nobody may log in. Told only to who has a token.
    pub disabled: bool,
}

/// What a client says of its token beside the proof (XEP-0484, 3.4 and 3.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// Grows with each use.
    pub count: Option<u64>,
    /// It is to end with this login.
    pub invalidate: bool,
}

/// One exchange.
pub struct HashedToken {
    host: DomainPart,
    client: String,
    binding: TokenBinding,
    data: Vec<u8>,
    count: Option<u64>,
    proof: Option<(BareJid, Vec<u8>)>,
}

impl HashedToken {
    /// For a client that says which it is; `data`: what the channel is bound to, empty where it is not.
    pub fn new(
        host: DomainPart,
        client: &str,
        binding: TokenBinding,
        data: Vec<u8>,
        count: Option<u64>,
    ) -> HashedToken {
        HashedToken { host, client: client.to_owned(), binding, data, count, proof: None }
    }

    fn read(&mut self, message: &[u8]) -> Result<Step, SaslCondition> {
        let malformed = SaslCondition::MalformedRequest;
        // Section 3.1: authcid NUL initiator-hashed-token.
        let end = message.iter().position(|byte| *byte == 0).ok_or(malformed)?;
        let name = std::str::from_utf8(&message[..end]).map_err(|_| malformed)?;
        let proof = &message[end + 1..];
        if name.is_empty() || proof.len() != HASH.len() {
            return Err(malformed);
        }
        let account = address::account(name, &self.host).map_err(|_| SaslCondition::NotAuthorized)?;
        self.proof = Some((account.clone(), proof.to_vec()));
        Ok(Step::FindTokens { account, client: self.client.clone() })
    }

    fn hash(&self, key: &[u8], who: &[u8]) -> Vec<u8> {
        HASH.hmac(key, &[who, &self.data].concat())
    }
}

impl Mechanism for HashedToken {
    fn message(&mut self, message: &[u8]) -> Step {
        if self.proof.is_some() {
            return Step::Fail(SaslCondition::MalformedRequest);
        }
        self.read(message).unwrap_or_else(Step::Fail)
    }

    fn tokens_found(&mut self, found: Option<FoundTokens>) -> Step {
        let Some((account, proof)) = self.proof.take() else {
            return Step::Fail(SaslCondition::TemporaryAuthFailure);
        };
        let FoundTokens { tokens, disabled } =
            found.unwrap_or(FoundTokens { tokens: Vec::new(), disabled: false });
        // As much work whether there are tokens or not: the time must not tell who has an account.
        let mut fits = None;
        for at in 0..TOKENS_MAX {
            let key = tokens.get(at).map_or(&[][..], |token| &token.key.0);
            let is_it = bool::from(self.hash(key, b"Initiator").ct_eq(&proof));
            if let Some(token) = tokens.get(at).filter(|_| is_it) {
                fits.get_or_insert(token);
            }
        }
        let mechanism = MechanismName::Token(self.binding).as_str();
        let Some(token) = fits.filter(|token| token.mechanism == mechanism) else {
            return Step::Fail(SaslCondition::NotAuthorized);
        };
        // XEP-0484, 3.4: a count that was there is a copy of a login that was.
        let is_copied = self.count.is_some_and(|count| token.count.is_some_and(|last| last >= count));
        match (disabled, token.expired, is_copied) {
            (true, ..) => Step::Fail(SaslCondition::AccountDisabled),
            (_, true, _) => Step::Fail(SaslCondition::CredentialsExpired),
            (_, _, true) => Step::Fail(SaslCondition::NotAuthorized),
            _ => {
                Step::Vouched { account, data: self.hash(&token.key.0, b"Responder"), key: token.key.clone() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SaslCondition::*;

    const KEY: &[u8] = b"secret-token";

    fn exchange(binding: TokenBinding, data: &[u8], count: Option<u64>) -> HashedToken {
        HashedToken::new(address::host("x").unwrap(), "phone", binding, data.to_vec(), count)
    }

    fn proof(key: &[u8], data: &[u8]) -> Vec<u8> {
        let hash = HASH.hmac(key, &[b"Initiator", data].concat());
        [b"alice\0", &hash[..]].concat()
    }

    fn token(binding: TokenBinding) -> KnownToken {
        let mechanism = MechanismName::Token(binding).as_str().to_owned();
        KnownToken { key: TokenKey(KEY.to_vec()), mechanism, count: Some(3), expired: false }
    }

    fn found(token: KnownToken) -> Option<FoundTokens> {
        let other = KnownToken { key: TokenKey(b"other".to_vec()), ..token.clone() };
        Some(FoundTokens { tokens: vec![other, token], disabled: false })
    }

    #[test]
    fn a_token_is_proved_and_the_server_proves_that_it_knows_it() {
        let bindings = [
            (TokenBinding::None, &b""[..]),
            (TokenBinding::Exporter, b"data"),
            (TokenBinding::EndPoint, b"hash"),
        ];
        for (binding, data) in bindings {
            let mut exchange = exchange(binding, data, None);
            let step = exchange.message(&proof(KEY, data));
            let account = BareJid::new("alice@x").unwrap();
            assert_eq!(step, Step::FindTokens { account: account.clone(), client: "phone".into() });
            assert_eq!(exchange.message(&proof(KEY, data)), Step::Fail(MalformedRequest), "once only");
            let data = HASH.hmac(KEY, &[b"Responder", data].concat());
            let vouched = Step::Vouched { account, data, key: TokenKey(KEY.to_vec()) };
            assert_eq!(exchange.tokens_found(found(token(binding))), vouched);
            assert_eq!(exchange.tokens_found(found(token(binding))), Step::Fail(TemporaryAuthFailure));
        }
    }

    #[test]
    fn whatever_does_not_fit_is_not_authorized() {
        let none = TokenBinding::None;
        let fresh = |count| KnownToken { count, ..token(none) };
        type Case = (Vec<u8>, Option<u64>, Option<FoundTokens>, SaslCondition);
        let cases: [Case; 9] = [
            (proof(b"wrong", b""), None, found(token(none)), NotAuthorized),
            (proof(b"", b""), None, found(token(none)), NotAuthorized),
            (proof(b"", b""), None, None, NotAuthorized),
            (proof(KEY, b"data"), None, found(token(none)), NotAuthorized),
            (proof(KEY, b""), None, found(token(TokenBinding::Exporter)), NotAuthorized),
            (proof(KEY, b""), Some(3), found(token(none)), NotAuthorized),
            (proof(KEY, b""), Some(2), found(token(none)), NotAuthorized),
            (proof(KEY, b""), None, found(KnownToken { expired: true, ..token(none) }), CredentialsExpired),
            (
                proof(KEY, b""),
                None,
                found(token(none)).map(|found| FoundTokens { disabled: true, ..found }),
                AccountDisabled,
            ),
        ];
        for (message, count, tokens, condition) in cases {
            let mut exchange = exchange(none, b"", count);
            assert!(matches!(exchange.message(&message), Step::FindTokens { .. }));
            assert_eq!(exchange.tokens_found(tokens.clone()), Step::Fail(condition), "{tokens:?}");
        }
        for (count, last) in [(Some(4), Some(3)), (Some(0), None), (None, Some(3))] {
            let mut exchange = exchange(none, b"", count);
            exchange.message(&proof(KEY, b""));
            assert!(matches!(exchange.tokens_found(found(fresh(last))), Step::Vouched { .. }), "{count:?}");
        }
    }

    #[test]
    fn a_message_that_is_none_is_malformed() {
        let good = proof(KEY, b"");
        let cases: [(&[u8], SaslCondition); 6] = [
            (b"", MalformedRequest),
            (b"alice", MalformedRequest),
            (&good[..good.len() - 1], MalformedRequest),
            (&good[5..], MalformedRequest),
            (&[b"\xff", &good[5..]].concat(), MalformedRequest),
            (&[b"a b", &good[5..]].concat(), NotAuthorized),
        ];
        for (message, condition) in cases {
            let step = exchange(TokenBinding::None, b"", None).message(message);
            assert_eq!(step, Step::Fail(condition), "{message:?}");
        }
    }
}

//! Logins by a token (XEP-0484), and tokens for who has logged in.

use stanza::BareJid;

use super::sasl2::{Entering, Stage};
use super::{Acts, Negotiation, State, TlsFacts, Wants};
use crate::features;
use crate::sasl::token::{FoundTokens, HashedToken, TokenKey};
use crate::sasl::{Mechanism, MechanismName, SaslCondition, TokenBinding};

/// What becomes of the tokens of a client that has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settling {
    /// Whose.
    pub account: BareJid,
    /// Of which client.
    pub client: String,
    /// The key of the token that it has used, if it has.
    pub key: Option<TokenKey>,
    /// The count that it has used it with.
    pub count: Option<u64>,
    /// That token is to end.
    pub invalidate: bool,
    /// The mechanism that it wants a new one for.
    pub request: Option<&'static str>,
}

impl Negotiation {
    /// The answer to [`Act::FindTokens`](super::Act::FindTokens); `None`: no such account.
    pub fn on_tokens(&mut self, found: Option<FoundTokens>) -> Acts {
        self.on_answer(Wants::Tokens, |mechanism| mechanism.tokens_found(found))
    }

    /// The mechanisms for tokens that this channel can be bound by, strongest first.
    pub(super) fn token_bindings(&self) -> Vec<TokenBinding> {
        self.offer_now().tokens.clone()
    }

    /// A login by a token, which a client says of it that it is (3.4), and that says which client it is (5.1).
    pub(super) fn token_mechanism(&self, binding: TokenBinding) -> Result<Box<dyn Mechanism>, SaslCondition> {
        let host = self.host.clone().ok_or(SaslCondition::TemporaryAuthFailure)?;
        let wish = self.wish.as_ref().ok_or(SaslCondition::InvalidMechanism)?;
        let (Some(client), Some(said)) = (&wish.client, wish.fast) else {
            return Err(SaslCondition::MalformedRequest);
        };
        let bindings = self.tls.as_ref().map(TlsFacts::bindings).unwrap_or_default();
        let data = match binding.channel() {
            None => Vec::new(),
            Some(name) => {
                let found = bindings.into_iter().find(|(other, _)| *other == name);
                found.map(|(_, data)| data).ok_or(SaslCondition::InvalidMechanism)?
            }
        };
        Ok(Box::new(HashedToken::new(host, client, binding, data, said.count)))
    }

    /// Whether something is to be done about the tokens of a client; if not, it is told nothing of them.
    pub(super) fn settling(
        &self,
        entering: &Entering,
        mechanism: MechanismName,
        key: Option<TokenKey>,
    ) -> Option<Settling> {
        let client = entering.wish.client.as_ref()?;
        let offered = self.token_bindings();
        // A guest never comes back.
        let request = entering.wish.request.filter(|binding| offered.contains(binding));
        let request = request.filter(|_| mechanism != MechanismName::Anonymous);
        if key.is_none() && request.is_none() {
            return None;
        }
        let said = entering.wish.fast.filter(|_| key.is_some()).unwrap_or_default();
        Some(Settling {
            account: entering.account.clone(),
            client: client.to_string(),
            key,
            count: said.count,
            invalidate: said.invalidate,
            request: request.map(|binding| MechanismName::Token(binding).as_str()),
        })
    }

    /// The answer to [`Act::SettleTokens`](super::Act::SettleTokens): a token for the client and until when it holds; or why the login failed.
    pub fn on_settled(&mut self, settled: Result<Option<(String, String)>, SaslCondition>) -> Acts {
        let mut acts = Acts::new();
        let (mut entering, mechanism) = match std::mem::replace(&mut self.state, State::Open) {
            State::Entering(entering, Stage::Settling(mechanism)) => (entering, mechanism),
            other => {
                self.state = other;
                return acts;
            }
        };
        match settled {
            Ok(token) => {
                if let Some((token, expiry)) = token {
                    entering.children.push(features::fast_token(&token, &expiry));
                }
                self.admit(entering, mechanism, &mut acts);
            }
            Err(condition) => {
                self.wish = Some(entering.wish);
                self.send_failure(Some(entering.account), condition, &mut acts);
            }
        }
        acts
    }
}

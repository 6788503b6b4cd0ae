//! What a client has done with its login (XEP-0388): tokens used and made, a resource bound, and features enabled for its
//! session.

use cluster::ConflictPolicy;
use hooks::{AccountState, Bearer, NotUsed, Token, Use};
use jid::{BareJid, FullJid, Jid, ResourcePart};
use minidom::Element;
use stanza::StanzaError;
use stream::Acts;
use stream::management::{self, Said};
use stream::negotiation::Settling;
use stream::sasl::token::{FoundTokens, KnownToken, TokenKey};
use stream::sasl::{SaslCondition, ScramHash};

use super::{Entered, Login};

impl Login<'_> {
    /// The stream goes on, as that of somebody who is known; or ends, where this node drains.
    pub(super) fn admitted(&mut self) -> Acts {
        let world = &self.connection.world;
        self.reader.set_limits(world.config.limits.after_auth());
        let account = self.negotiation.account().map(|account| account.as_str().to_owned());
        // As at the header that does not come here.
        match account.and_then(|account| world.turns_away(&account, self.door)) {
            Some(error) => self.negotiation.end(error),
            None => self.negotiation.on_admitted(),
        }
    }

    /// The tokens of a client that comes by one (XEP-0484, 3.4).
    pub(super) async fn find_tokens(&mut self, account: &BareJid, client: String) -> Acts {
        if !self.turn(account).await {
            return self.negotiation.on_unavailable();
        }
        let Ok(found) = self.find(account).await else {
            return self.negotiation.on_unavailable();
        };
        let world = &self.connection.world;
        let Some(vouching) = world.registry.vouching(account.domain().as_str()) else {
            return self.negotiation.on_unavailable();
        };
        // Also of an account that is not there: time must not tell.
        match vouching.tokens(&self.bearer(account, client), &world.services).await {
            Ok(tokens) => {
                let known = |token: Token| {
                    let Token { key, mechanism, count, expired } = token;
                    KnownToken { key: TokenKey(key), mechanism, count, expired }
                };
                let tokens: Vec<_> = tokens.into_iter().map(known).collect();
                let is_disabled = |found: hooks::Credentials| found.state == AccountState::Disabled;
                self.negotiation
                    .on_tokens(found.map(|found| FoundTokens { tokens, disabled: is_disabled(found) }))
            }
            Err(error) => {
                tracing::warn!(%error, "failed to read the tokens of a client");
                self.negotiation.on_unavailable()
            }
        }
    }

    /// Notes that a token was used, and makes one that is due or asked for.
    pub(super) async fn settle_tokens(
        &mut self,
        settling: Settling,
    ) -> Result<Option<(String, String)>, SaslCondition> {
        let Settling { account, client, key, count, invalidate, request } = settling;
        let world = &self.connection.world;
        let Some(vouching) = world.registry.vouching(account.domain().as_str()) else { return Ok(None) };
        let is_by_token = key.is_some();
        let key = key.map(|TokenKey(key)| key);
        let used = Use { key, count, invalidate, request: request.map(str::to_owned) };
        match vouching.settle(&self.bearer(&account, client), &used, &world.services).await {
            Ok(issued) => Ok(issued.map(|issued| (issued.token, issued.expiry))),
            Err(NotUsed::Gone) => Err(SaslCondition::NotAuthorized),
            Err(NotUsed::Store(error)) => {
                tracing::warn!(%account, %error, "failed to write the tokens of a client");
                // A password is good without a token.
                if is_by_token { Err(SaslCondition::TemporaryAuthFailure) } else { Ok(None) }
            }
        }
    }

    /// Whose tokens, as long as the account that was looked at has these keys and is in this state.
    fn bearer(&self, account: &BareJid, client: String) -> Bearer {
        let mark = self.mark.as_ref().map(|mark| ScramHash::Sha256.digest(mark));
        Bearer { account: account.clone(), client, mark: mark.unwrap_or_default() }
    }

    /// Binds a resource of the server's making (XEP-0386, 3.2): its address, and what is said of what was enabled.
    pub(super) async fn bind_inline(
        &mut self,
        account: &BareJid,
        resource: ResourcePart,
        client: Option<&str>,
        asked: &[Element],
    ) -> Result<(FullJid, Vec<Element>), StanzaError> {
        // Who has the address is this client before: it has no other way to say that it comes anew.
        let jid = self.bind(account, &resource, ConflictPolicy::Replace).await?;
        let Some(Entered::Bound(view, _)) = &self.bound else { return Ok((jid, Vec::new())) };
        let world = &self.connection.world;
        let mut said = Vec::new();
        let enable = asked.iter().find(|asked| asked.is("enable", management::NS));
        if let Some(Ok(Said::Enable { resume, max_s })) = enable.map(Said::read) {
            let (managed, answer) = self.connection.enable(view, resume, max_s);
            *self.connection.management.borrow_mut() = managed;
            said.push(answer);
        }
        said.extend(world.registry.bind(view, asked, &world.services).await);
        if let Some(client) = client {
            self.end_earlier(account, client, &jid).await;
        }
        Ok((jid, said))
    }

    /// XEP-0386, 3.2: earlier sessions of the same client end. That of the same tag has been replaced.
    async fn end_earlier(&self, account: &BareJid, client: &str, but: &FullJid) {
        let services = &self.connection.world.services;
        for other in services.online(account) {
            let resource = other.jid.resource().as_str();
            let is_its = resource.rsplit('/').next() == Some(client);
            if is_its && other.jid != *but {
                let other = Jid::from(other.jid);
                if let Err(error) = services.end_sessions(&other).await {
                    // It ends by itself when its client does not answer.
                    tracing::warn!(session = %other, %error, "failed to end an earlier session of a client");
                }
            }
        }
    }
}

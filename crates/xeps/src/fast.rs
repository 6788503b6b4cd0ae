//! [XEP-0484]: Fast Authentication Streamlining Tokens. A client that has logged in comes back by a token, in one step.
//!
//! A token is bound to the account, to the client by its id, to one mechanism, and to the keys and the state of the account:
//! a new password, or an account that was disabled for a while, ends all of them. What is kept of it is the key that the
//! proofs are made with. Left out: TLS early data, which is not offered, so counts are looked at where a client gives one;
//! the mechanisms for SHA-256 only, and not for `tls-unique`.
//!
//! [XEP-0484]: https://xmpp.org/extensions/xep-0484.html

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use hooks::{
    Answer, Bearer, Card, Hooks, Issued, Module, NotUsed, Services, Status, Token, Use, Vouching, Xep,
};
use serde::{Deserialize, Serialize};
use store::{Batch, Committed, Expect, Range, StoreError, Stored, Table, Versioned};

use crate::rosters::partition;
use crate::time;

const NAME: &str = "fast";
const DAY_S: u64 = 24 * 60 * 60;
/// Bytes of chance in a token. As text they are longer than a block of SHA-256, so HMAC takes the hash of the text for its
/// key (RFC 2104, 2), and that is all that is kept.
const TOKEN_BYTES: usize = 51;
/// How often a change of a client's tokens starts anew when another login was first.
const ATTEMPTS: usize = 8;

crate::settings! {
    /// `[modules.fast]`
    pub struct Config {
        /// For how many days a token holds: a client that was not there for longer needs the password again.
        lifetime_days: usize = 30,
        /// After how many days a client that uses its token is given a new one.
        rotate_days: usize = 7,
        /// The most clients of one account that have tokens; one more, and the one that was given its token first needs the password again.
        clients_max: usize = 50,
    }
}

/// The tokens of one client, by its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tokens {
    /// The one that it has used.
    current: Option<Kept>,
    /// One that it was given since, and may not have got.
    new: Option<Kept>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    key: Vec<u8>,
    mechanism: String,
    /// See [`Bearer::mark`].
    mark: Vec<u8>,
    /// Seconds since 1970.
    issued_s: u64,
    expires_s: u64,
    count: Option<u64>,
}

impl std::fmt::Debug for Kept {
    /// Without the key: it belongs in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl Stored for Tokens {
    const TABLE: Table = Table("fast_tokens");
    const SCHEMA: u8 = 1;
}

/// Keeps tokens.
#[derive(Default)]
pub struct Fast {
    config: Config,
}

impl Fast {
    pub fn new(config: Config) -> Fast {
        Fast { config }
    }
}

impl Module for Fast {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 484,
                title: "Fast Authentication Streamlining Tokens",
                version: "0.2.0",
                status: Status::Proposed,
            }],
            ..Card::new(NAME, "Lets clients come back by a token, without a password; needs `sasl2`.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.vouching(self);
    }
}

impl Vouching for Fast {
    fn tokens<'a>(
        &'a self,
        bearer: &'a Bearer,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Result<Vec<Token>, StoreError>> {
        Answer::later(async move {
            let found = services.store().get::<Tokens>(&partition(&bearer.account), &bearer.client).await?;
            let now_s = now_s(&**services);
            let Tokens { current, new } = found.unwrap_or_default();
            let as_told = |kept: Kept| Token {
                expired: kept.mark != bearer.mark || kept.expires_s <= now_s,
                key: kept.key,
                mechanism: kept.mechanism,
                count: kept.count,
            };
            // Business rules, 5.1: the new one first.
            Ok(new.into_iter().chain(current).map(as_told).collect())
        })
    }

    fn settle<'a>(
        &'a self,
        bearer: &'a Bearer,
        used: &'a Use,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Result<Option<Issued>, NotUsed>> {
        Answer::later(async move {
            for _ in 0..ATTEMPTS {
                if let Some(issued) = self.try_to_settle(bearer, used, &**services).await? {
                    return Ok(issued);
                }
            }
            Err(StoreError::Contended { table: Tokens::TABLE.0, attempts: ATTEMPTS }.into())
        })
    }
}

impl Fast {
    /// `None`: another login was faster.
    async fn try_to_settle(
        &self,
        bearer: &Bearer,
        used: &Use,
        services: &dyn Services,
    ) -> Result<Option<Option<Issued>>, NotUsed> {
        let partition = partition(&bearer.account);
        let found: Option<Versioned<Tokens>> =
            services.store().get_versioned(&partition, &bearer.client).await?;
        let (expect, before) = match found {
            Some(found) => (Expect::Version(found.version), Some(found.value)),
            None => (Expect::Absent, None),
        };
        let mut tokens = before.clone().unwrap_or_default();
        let now_s = now_s(services);
        let wanted = tokens.are_used(used, now_s, self.config.rotate_days as u64 * DAY_S)?;
        let issued = wanted.map(|mechanism| self.issue(&mut tokens, mechanism, bearer, now_s, services));
        if before.as_ref() == Some(&tokens) || (before.is_none() && tokens.is_empty()) {
            return Ok(Some(issued));
        }
        let mut batch = Batch::new(partition).expect::<Tokens>(bearer.client.as_str(), expect);
        batch = match tokens.is_empty() {
            true => batch.delete::<Tokens>(bearer.client.as_str()),
            false => batch.put(bearer.client.as_str(), &tokens),
        };
        if before.is_none()
            && let Some(oldest) = self.one_too_many(bearer, services).await?
        {
            batch = batch.delete::<Tokens>(oldest);
        }
        let committed = services.store().commit_one(batch).await?;
        Ok((committed == Committed::Done).then_some(issued))
    }

    /// Makes a token, and puts it beside the one that the client has until it uses it (section 3.5).
    fn issue(
        &self,
        tokens: &mut Tokens,
        mechanism: String,
        bearer: &Bearer,
        now_s: u64,
        services: &dyn Services,
    ) -> Issued {
        let mut bytes = [0; TOKEN_BYTES];
        services.random(&mut bytes);
        let token = BASE64_URL.encode(bytes);
        let expires_s = now_s.saturating_add((self.config.lifetime_days as u64).saturating_mul(DAY_S));
        tokens.new = Some(Kept {
            key: digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec(),
            mechanism,
            mark: bearer.mark.clone(),
            issued_s: now_s,
            expires_s,
            count: None,
        });
        services.count(NAME, "issued");
        Issued { token, expiry: time::utc(UNIX_EPOCH + Duration::from_secs(expires_s)) }
    }

    /// The client whose tokens must go for those of another one.
    async fn one_too_many(
        &self,
        bearer: &Bearer,
        services: &dyn Services,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let range = Range::all().limit(self.config.clients_max.saturating_add(1));
        let all = services.store().scan::<Tokens>(&partition(&bearer.account), range).await?;
        if all.len() < self.config.clients_max {
            return Ok(None);
        }
        Ok(all.into_iter().min_by_key(|(_, tokens)| tokens.issued_s()).map(|(client, _)| client))
    }
}

impl Tokens {
    fn is_empty(&self) -> bool {
        self.current.is_none() && self.new.is_none()
    }

    fn issued_s(&self) -> u64 {
        self.new.iter().chain(&self.current).map(|kept| kept.issued_s).max().unwrap_or_default()
    }

    /// Notes that a login has used one of them, or none: for which mechanism a new one is due.
    fn are_used(&mut self, used: &Use, now_s: u64, rotate_s: u64) -> Result<Option<String>, NotUsed> {
        let Some(key) = &used.key else { return Ok(used.request.clone()) };
        if self.new.as_ref().is_some_and(|new| new.key == *key) {
            // Section 3.5: the one before it ends with that.
            self.current = self.new.take();
        }
        let current = self.current.as_mut().filter(|current| current.key == *key).ok_or(NotUsed::Gone)?;
        if let Some(count) = used.count {
            if current.count.is_some_and(|last| last >= count) {
                return Err(NotUsed::Gone);
            }
            current.count = Some(count);
        }
        if used.invalidate {
            // Section 3.6: whoever logs out has none left, unless it asks for one.
            *self = Tokens::default();
            return Ok(used.request.clone());
        }
        let is_due = now_s >= current.issued_s.saturating_add(rotate_s);
        let rotated = is_due.then(|| current.mechanism.clone());
        Ok(used.request.clone().or(rotated))
    }
}

fn now_s(services: &dyn Services) -> u64 {
    services.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "fast_tests.rs"]
mod tests;

//! Whom the cluster lets in: join tokens by their hashes, and nodes that were removed, as a part of the route table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::role::{MemberId, Roles};

/// How many tokens the table keeps; more cannot be made until some are revoked or have run out.
pub const TOKENS_MAX: usize = 1000;
/// A token that can no longer be used is shown this long, so that whoever tries it hears why.
const SHOWN_S: u64 = 7 * 24 * 3600;

/// A join token as the table knows it. Times are seconds since 1970, by the clock of the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its number, which the token carries.
    pub id: u64,
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// The roles that it grants at most.
    pub roles: Roles,
    /// When it was made.
    pub made: u64,
    /// When it runs out.
    pub expires: u64,
    /// Whether it can still be used.
    pub state: TokenState,
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenState {
    /// It can be used until it runs out.
    Open,
    /// A node came in by it.
    Spent {
        /// SHA-256 of that node's public key: the same node may ask again, if the answer was lost.
        by: [u8; 32],
        /// The key that the node was given.
        key: u128,
        /// When.
        at: u64,
    },
    /// An operator took it back.
    Revoked {
        /// When.
        at: u64,
    },
}

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TokenFault {
    /// There is none of that number, or its secret is another.
    Unknown,
    /// Another node came in by it.
    Spent,
    /// Its time is over.
    Expired,
    /// An operator took it back.
    Revoked,
    /// It does not grant a role that was asked for.
    Role,
}

/// A node that was removed for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Removed {
    member: Option<MemberId>,
    /// After this its certificates have run out; `None` for a backend, which could renew them by itself.
    until: Option<u64>,
}

/// What the table knows of tokens and of removed nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    tokens: BTreeMap<u64, TokenRow>,
    removed: BTreeMap<u128, Removed>,
}

impl TokenRow {
    /// Whether a node with this public key could come in by it now.
    pub fn fits(&self, by: &[u8; 32], roles: Roles, now: u64) -> Result<(), TokenFault> {
        match &self.state {
            TokenState::Spent { by: first, .. } if first == by => Ok(()),
            TokenState::Spent { .. } => Err(TokenFault::Spent),
            TokenState::Revoked { .. } => Err(TokenFault::Revoked),
            TokenState::Open if now > self.expires => Err(TokenFault::Expired),
            TokenState::Open if !self.roles.include(roles) => Err(TokenFault::Role),
            TokenState::Open => Ok(()),
        }
    }

    fn is_of_interest(&self, now: u64) -> bool {
        let over = match self.state {
            TokenState::Open => self.expires,
            TokenState::Spent { at, .. } | TokenState::Revoked { at } => at,
        };
        now < over.saturating_add(SHOWN_S)
    }
}

impl Trust {
    /// Whether there is nothing in it, as in every table of an older version.
    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.removed.is_empty()
    }

    /// All tokens that are shown, by number.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRow> {
        self.tokens.values()
    }

    /// One token.
    pub fn token(&self, id: u64) -> Option<&TokenRow> {
        self.tokens.get(&id)
    }

    /// Whether the node that calls itself so was removed.
    pub fn is_removed(&self, key: u128) -> bool {
        self.removed.contains_key(&key)
    }

    /// Whether a removed node was this member of the Raft groups.
    pub fn is_removed_member(&self, member: MemberId) -> bool {
        self.removed.values().any(|removed| removed.member == Some(member))
    }

    /// The members of the Raft groups that removed nodes were.
    pub(crate) fn removed_members(&self) -> impl Iterator<Item = MemberId> {
        self.removed.values().filter_map(|removed| removed.member)
    }

    /// What the removed nodes called themselves.
    pub(crate) fn removed_keys(&self) -> impl Iterator<Item = u128> {
        self.removed.keys().copied()
    }

    /// Adds a token; false if there are too many. The same one again changes nothing.
    pub(crate) fn add(&mut self, token: TokenRow) -> bool {
        let now = token.made;
        self.tokens.retain(|_, row| row.is_of_interest(now));
        if self.tokens.len() >= TOKENS_MAX && !self.tokens.contains_key(&token.id) {
            return false;
        }
        self.tokens.entry(token.id).or_insert(token);
        true
    }

    /// Takes a token back; false if there is none that could still be used.
    pub(crate) fn revoke(&mut self, id: u64, now: u64) -> bool {
        match self.tokens.get_mut(&id) {
            Some(row) if !matches!(row.state, TokenState::Spent { .. }) => {
                if row.state == TokenState::Open {
                    row.state = TokenState::Revoked { at: now };
                }
                true
            }
            _ => false,
        }
    }

    /// Lets a node in by a token; the key that it is to call itself by from now on.
    pub(crate) fn spend(
        &mut self,
        id: u64,
        by: [u8; 32],
        roles: Roles,
        key: u128,
        now: u64,
    ) -> Result<u128, TokenFault> {
        let row = self.tokens.get_mut(&id).ok_or(TokenFault::Unknown)?;
        row.fits(&by, roles, now)?;
        if let TokenState::Spent { key, .. } = row.state {
            return Ok(key);
        }
        row.state = TokenState::Spent { by, key, at: now };
        Ok(key)
    }

    /// Keeps a node out for good.
    pub(crate) fn remove(&mut self, key: u128, member: Option<MemberId>, until: u64, now: u64) {
        self.removed.retain(|_, removed| removed.until.is_none_or(|until| now <= until));
        let until = member.is_none().then_some(until);
        self.removed.insert(key, Removed { member, until });
    }
}

impl Roles {
    /// Whether all of the other roles are among these.
    pub fn include(self, other: Roles) -> bool {
        (self.frontend || !other.frontend) && (self.backend || !other.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONTEND: Roles = Roles { frontend: true, backend: false };
    const BOTH: Roles = Roles { frontend: true, backend: true };

    fn token(id: u64, roles: Roles, made: u64) -> TokenRow {
        TokenRow { id, hash: [7; 32], roles, made, expires: made + 100, state: TokenState::Open }
    }

    #[test]
    fn a_token_lets_one_node_in_within_its_time_and_its_roles() {
        let (alice, bob) = ([1; 32], [2; 32]);
        // What happens before, then who asks for what and when, and what it gets.
        type Before = fn(&mut Trust);
        let nothing: Before = |_| {};
        let spent: Before = |trust| assert_eq!(trust.spend(1, [1; 32], FRONTEND, 50, 20), Ok(50));
        let revoked: Before = |trust| assert!(trust.revoke(1, 20));
        let table = [
            (nothing, alice, FRONTEND, 100, Ok(60)),
            (nothing, alice, FRONTEND, 110, Ok(60)),
            (nothing, alice, FRONTEND, 111, Err(TokenFault::Expired)),
            (nothing, alice, BOTH, 100, Err(TokenFault::Role)),
            // The answer was lost: the same node gets the same key, even when the time is over meanwhile.
            (spent, alice, FRONTEND, 500, Ok(50)),
            (spent, bob, FRONTEND, 30, Err(TokenFault::Spent)),
            (revoked, alice, FRONTEND, 30, Err(TokenFault::Revoked)),
        ];
        for (before, by, roles, now, expected) in table {
            let mut trust = Trust::default();
            assert!(trust.add(token(1, FRONTEND, 10)));
            before(&mut trust);
            assert_eq!(trust.spend(1, by, roles, 60, now), expected, "{roles} at {now}");
            assert_eq!(trust.spend(2, by, roles, 60, now), Err(TokenFault::Unknown));
        }
    }

    #[test]
    fn a_spent_token_is_not_revoked_and_another_one_is_revoked_once_and_for_all() {
        let mut trust = Trust::default();
        assert!(trust.add(token(1, BOTH, 10)) && trust.add(token(2, BOTH, 10)));
        assert_eq!(trust.spend(1, [1; 32], FRONTEND, 9, 20), Ok(9));
        assert!(!trust.revoke(1, 30) && !trust.revoke(3, 30));
        assert!(trust.revoke(2, 30) && trust.revoke(2, 40));
        assert_eq!(trust.token(2).unwrap().state, TokenState::Revoked { at: 30 });
        // A retried proposal does not open it again.
        assert!(trust.add(token(2, BOTH, 10)));
        assert_eq!(trust.token(2).unwrap().state, TokenState::Revoked { at: 30 });
    }

    #[test]
    fn the_table_keeps_a_bounded_number_of_tokens() {
        let mut trust = Trust::default();
        for id in 0..TOKENS_MAX as u64 {
            assert!(trust.add(token(id, BOTH, 10)));
        }
        assert!(!trust.add(token(5000, BOTH, 10)));
        assert!(trust.add(token(3, BOTH, 10)), "one that is there");
        // A week after they ran out they make room.
        assert!(trust.add(token(5000, BOTH, 10 + 100 + SHOWN_S)));
        assert_eq!(trust.tokens().count(), 1);
    }

    #[test]
    fn a_removed_frontend_is_kept_out_until_its_certificates_have_run_out_and_a_backend_for_ever() {
        let mut trust = Trust::default();
        trust.remove(1, None, 100, 10);
        trust.remove(2, Some(MemberId(7)), 100, 10);
        assert!(trust.is_removed(1) && trust.is_removed(2) && !trust.is_removed(3));
        assert!(trust.is_removed_member(MemberId(7)) && !trust.is_removed_member(MemberId(8)));
        trust.remove(3, None, 300, 101);
        assert!(!trust.is_removed(1) && trust.is_removed(2) && trust.is_removed(3));
    }
}

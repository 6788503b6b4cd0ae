//! Upgrades with a login by the extensible profile (XEP-0480): who has proved to know a password salts it once more, for a
//! hash that the server has no keys of.

use minidom::Element;
use stanza::BareJid;

use super::wish::Wish;
use super::{Act, Acts, Negotiation, State};
use crate::features::{self, SCRAM_UPGRADE};
use crate::sasl::{MechanismName, SaslCondition, ScramHash, keys};

/// A client that has proved who it is and has something left to do.
pub(super) struct Upgrading {
    pub account: BareJid,
    mechanism: MechanismName,
    /// What it is asked for; one after the other, as it wants them.
    hash: ScramHash,
    turn: Turn,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The client begins the task,
    Next,
    /// and answers with its hash.
    Hash,
    /// The caller keeps what was made of it.
    Store,
}

impl Upgrading {
    pub fn is_waiting(&self) -> bool {
        self.turn == Turn::Store
    }
}

impl Negotiation {
    /// What a client that has logged in so is to be asked for next: what it wants, may do, and what its account has not.
    pub(super) fn upgrade(&self, mechanism: MechanismName, wish: &Wish) -> Option<ScramHash> {
        // Whoever holds a token or a certificate has not shown that they know the password, and what they would give in
        // its place would be one. With PLAIN the caller has the password, and needs no help.
        if !matches!(mechanism, MechanismName::Scram(_) | MechanismName::ScramPlus(_)) {
            return None;
        }
        let offered = &self.offer_now().upgrades;
        let may = |hash: &ScramHash| offered.contains(hash) && self.lacks.contains(hash);
        wish.upgrades.iter().copied().find(may)
    }

    /// Asks for one. `data`: the last word of the mechanism, by which the client knows us before it gives us anything.
    pub(super) fn begin_upgrade(
        &mut self,
        account: BareJid,
        mechanism: MechanismName,
        data: Option<Vec<u8>>,
        hash: ScramHash,
        acts: &mut Acts,
    ) {
        let task = features::sasl2_continue(&features::upgrade_task(hash), data.as_deref());
        self.send(acts, |writer, out| writer.element(&task, out));
        self.state = State::Upgrading(Box::new(Upgrading { account, mechanism, hash, turn: Turn::Next }));
    }

    /// `<next/>` or `<task-data/>`.
    pub(super) fn on_task(&mut self, element: &Element, acts: &mut Acts) -> Result<(), SaslCondition> {
        let iterations = self.settings.iterations;
        let State::Upgrading(upgrading) = &self.state else { return Err(SaslCondition::MalformedRequest) };
        let (account, hash) = (upgrading.account.clone(), upgrading.hash);
        // What strangers are told of an account without these keys: so nobody sees when it gets them.
        let salt = self.fake_keys(&account, hash).salt;
        let turn = match (element.name(), upgrading.turn) {
            ("next", Turn::Next) => {
                let task = element.attr("task").map(str::trim).ok_or(SaslCondition::MalformedRequest)?;
                if features::upgrade_of(task) != Some(hash) {
                    return Err(SaslCondition::InvalidMechanism);
                }
                let data = features::upgrade_salt(&salt, iterations);
                self.send(acts, |writer, out| writer.element(&data, out));
                Turn::Hash
            }
            ("task-data", Turn::Hash) => {
                let said = element.get_child("hash", SCRAM_UPGRADE).ok_or(SaslCondition::MalformedRequest)?;
                let salted = features::sasl2_payload(said)?;
                if salted.len() != hash.len() {
                    return Err(SaslCondition::MalformedRequest);
                }
                let keys = keys::of_salted(&salted, hash, &salt, iterations);
                acts.push(Act::StoreKeys { account, hash, keys });
                Turn::Store
            }
            _ => return Err(SaslCondition::MalformedRequest),
        };
        if let State::Upgrading(upgrading) = &mut self.state {
            upgrading.turn = turn;
        }
        Ok(())
    }

    /// The answer to [`Act::StoreKeys`]. Where they could not be kept the login is good all the same, and the client may
    /// give them the next time.
    pub fn on_keys_stored(&mut self) -> Acts {
        let mut acts = Acts::new();
        match std::mem::replace(&mut self.state, State::Open) {
            State::Upgrading(upgrading) if upgrading.is_waiting() => {
                let Upgrading { account, mechanism, hash, .. } = *upgrading;
                self.lacks.retain(|other| *other != hash);
                let wish = self.wish.take().unwrap_or_default();
                self.enter(account, mechanism, (None, None), wish, &mut acts);
            }
            other => self.state = other,
        }
        acts
    }
}

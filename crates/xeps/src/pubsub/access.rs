//! Who may do what with a node (XEP-0060, 4.1 and 4.5): pure decisions.

use jid::BareJid;
use serde::{Deserialize, Serialize};
use stanza::StanzaError;

use super::config::{AccessModel, NodeConfig, PublishModel, words};
use super::errors;

words! {
    /// What the owner has made of an entity (4.1). Who owns a node is not among those that are kept: it is the service's
    /// account.
    Affiliation {
        None = "none",
        Owner = "owner",
        Publisher = "publisher",
        PublishOnly = "publish-only",
        Member = "member",
        Outcast = "outcast",
    }
}

/// Who asks, as the service knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub bare: BareJid,
    pub is_owner: bool,
    /// Sees the owner's presence.
    pub presence: bool,
    /// The groups of the owner's roster that they are in.
    pub groups: Vec<String>,
}

/// Who asks, as the node knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'a> {
    pub asker: &'a Asker,
    pub affiliation: Affiliation,
    /// Has a subscription that does not wait for the owner's approval.
    pub subscribed: bool,
}

impl Standing<'_> {
    /// Whether they may read the node's items and hear of them (6.5.1).
    pub fn may_read(&self, config: &NodeConfig) -> Result<(), StanzaError> {
        match self.affiliation {
            _ if self.asker.is_owner => return Ok(()),
            Affiliation::Outcast | Affiliation::PublishOnly => return Err(errors::forbidden()),
            Affiliation::Owner | Affiliation::Publisher => return Ok(()),
            Affiliation::Member
                if matches!(config.access, AccessModel::Authorize | AccessModel::Whitelist) =>
            {
                return Ok(());
            }
            Affiliation::Member | Affiliation::None => {}
        }
        match config.access {
            AccessModel::Open => Ok(()),
            AccessModel::Presence | AccessModel::Roster if !self.asker.presence => {
                Err(errors::presence_required())
            }
            AccessModel::Presence => Ok(()),
            AccessModel::Roster => {
                let is_in = self.asker.groups.iter().any(|group| config.groups.contains(group));
                if is_in { Ok(()) } else { Err(errors::not_in_group()) }
            }
            AccessModel::Authorize if self.subscribed => Ok(()),
            AccessModel::Authorize => Err(errors::not_authorized()),
            AccessModel::Whitelist => Err(errors::closed_node()),
        }
    }

    /// Whether they may subscribe; `Ok(true)`: if the owner approves.
    pub fn may_subscribe(&self, config: &NodeConfig) -> Result<bool, StanzaError> {
        if !config.subscribe {
            return Err(errors::unsupported("subscribe"));
        }
        match self.may_read(config) {
            Ok(()) => Ok(false),
            Err(_) if config.access == AccessModel::Authorize && self.affiliation == Affiliation::None => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    pub fn may_publish(&self, config: &NodeConfig) -> Result<(), StanzaError> {
        let may = match (self.affiliation, config.publish) {
            _ if self.asker.is_owner => true,
            (Affiliation::Outcast, _) => false,
            (Affiliation::Owner | Affiliation::Publisher | Affiliation::PublishOnly, _) => true,
            (_, PublishModel::Publishers) => false,
            (_, PublishModel::Subscribers) => self.subscribed && self.may_read(config).is_ok(),
            (_, PublishModel::Open) => self.may_read(config).is_ok(),
        };
        if may { Ok(()) } else { Err(errors::forbidden()) }
    }

    /// Whether they may remove an item of this publisher, an account (4.1, the note).
    pub fn may_retract(&self, config: &NodeConfig, publisher: &str) -> Result<(), StanzaError> {
        match self.affiliation {
            _ if self.asker.is_owner => Ok(()),
            Affiliation::Owner | Affiliation::Publisher => Ok(()),
            _ if publisher == self.asker.bare.as_str() => self.may_publish(config),
            _ => Err(errors::forbidden()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(presence: bool, groups: &[&str]) -> Asker {
        let groups = groups.iter().map(|group| group.to_string()).collect();
        Asker { bare: BareJid::new("b@h").unwrap(), is_owner: false, presence, groups }
    }

    fn node(access: AccessModel) -> NodeConfig {
        NodeConfig { access, groups: vec!["Friends".into()], ..NodeConfig::default() }
    }

    #[test]
    fn each_access_model_lets_in_whom_it_names() {
        use AccessModel::*;
        let stranger = asker(false, &[]);
        let contact = asker(true, &["Others"]);
        let friend = asker(true, &["Friends"]);
        let hidden = asker(false, &["Friends"]);
        let none = Affiliation::None;
        let cases = [
            (Open, &stranger, none, false, Ok(())),
            (Presence, &stranger, none, false, Err(errors::presence_required())),
            (Presence, &stranger, Affiliation::Member, true, Err(errors::presence_required())),
            (Presence, &contact, none, false, Ok(())),
            (Roster, &hidden, none, false, Err(errors::presence_required())),
            (Roster, &contact, none, false, Err(errors::not_in_group())),
            (Roster, &friend, none, false, Ok(())),
            (Authorize, &friend, none, false, Err(errors::not_authorized())),
            (Authorize, &stranger, none, true, Ok(())),
            (Authorize, &stranger, Affiliation::Member, false, Ok(())),
            (Whitelist, &friend, none, true, Err(errors::closed_node())),
            (Whitelist, &stranger, Affiliation::Member, false, Ok(())),
            (Whitelist, &stranger, Affiliation::Publisher, false, Ok(())),
            (Open, &friend, Affiliation::Outcast, true, Err(errors::forbidden())),
            (Open, &friend, Affiliation::PublishOnly, true, Err(errors::forbidden())),
        ];
        for (access, asker, affiliation, subscribed, expected) in cases {
            let standing = Standing { asker, affiliation, subscribed };
            assert_eq!(standing.may_read(&node(access)), expected, "{access:?} {standing:?}");
        }
        let owner = Asker { is_owner: true, ..asker(false, &[]) };
        for access in [Open, Presence, Roster, Authorize, Whitelist] {
            let standing = Standing { asker: &owner, affiliation: none, subscribed: false };
            assert_eq!(standing.may_read(&node(access)), Ok(()));
        }
    }

    #[test]
    fn a_subscription_may_need_the_owners_approval() {
        let asker = asker(false, &[]);
        let standing = |affiliation, subscribed| Standing { asker: &asker, affiliation, subscribed };
        let none = standing(Affiliation::None, false);
        assert_eq!(none.may_subscribe(&node(AccessModel::Authorize)), Ok(true));
        assert_eq!(
            standing(Affiliation::Member, false).may_subscribe(&node(AccessModel::Authorize)),
            Ok(false)
        );
        let outcast = standing(Affiliation::Outcast, false);
        assert_eq!(outcast.may_subscribe(&node(AccessModel::Authorize)), Err(errors::forbidden()));
        assert_eq!(none.may_subscribe(&node(AccessModel::Open)), Ok(false));
        let closed = NodeConfig { subscribe: false, ..node(AccessModel::Open) };
        assert_eq!(none.may_subscribe(&closed), Err(errors::unsupported("subscribe")));
    }

    #[test]
    fn publishers_publish_and_remove_what_is_theirs() {
        let asker = asker(true, &[]);
        let node = |publish| NodeConfig { publish, ..NodeConfig::default() };
        let cases = [
            (Affiliation::None, PublishModel::Publishers, true, false, false, false),
            (Affiliation::Publisher, PublishModel::Publishers, false, true, true, true),
            (Affiliation::PublishOnly, PublishModel::Publishers, false, true, true, false),
            (Affiliation::Member, PublishModel::Subscribers, false, false, false, false),
            (Affiliation::None, PublishModel::Subscribers, true, true, true, false),
            (Affiliation::None, PublishModel::Open, false, true, true, false),
            (Affiliation::Outcast, PublishModel::Open, false, false, false, false),
        ];
        for (affiliation, publish, subscribed, publishes, own, others) in cases {
            let standing = Standing { asker: &asker, affiliation, subscribed };
            let config = node(publish);
            assert_eq!(standing.may_publish(&config).is_ok(), publishes, "{standing:?} {publish:?}");
            assert_eq!(standing.may_retract(&config, "b@h").is_ok(), own, "{standing:?} {publish:?}");
            assert_eq!(standing.may_retract(&config, "c@h").is_ok(), others, "{standing:?} {publish:?}");
        }
    }
}

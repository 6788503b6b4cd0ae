//! The privacy lists of accounts ([XEP-0016]): kept in the store, cached with the sessions of the account, judged rule by rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use hooks::Services;
use jid::{BareJid, Jid};
use serde::{Deserialize, Serialize};
use stanza::address::{is_host, same_account};
use store::{Batch, Committed, Expect, StoreError, Stored, Table, Versioned};

use crate::blocklists::matches;
use crate::cache::{Cache, KEY};
use crate::failure::Failure;
use crate::rosters::{Roster, partition};

/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;

/// What a rule may be held to (XEP-0016, 2.1): a bit each, none of them means all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Message = 1,
    Iq = 2,
    PresenceIn = 4,
    PresenceOut = 8,
    /// All else: only rules for everything speak of it.
    Other = 0,
}

/// Of whom a rule speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// The fall-through case.
    Anyone,
    Jid(String),
    Group(String),
    Subscription {
        to: bool,
        from: bool,
    },
}

/// One item of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub order: u32,
    pub denies: bool,
    pub who: Who,
    /// Bits of [`Flow`]; 0: everything.
    pub flows: u8,
}

impl Rule {
    fn speaks_of(&self, flow: Flow, other: &Jid, roster: &Roster) -> bool {
        if self.flows != 0 && self.flows & flow as u8 == 0 {
            return false;
        }
        let item = || {
            let full = other.as_str();
            roster.items.get(full.split_once('/').map_or(full, |(bare, _)| bare))
        };
        match &self.who {
            Who::Anyone => true,
            Who::Jid(jid) => matches(jid, other),
            Who::Group(group) => item().is_some_and(|item| item.groups.contains(group)),
            Who::Subscription { to, from } => {
                let standing = item().map(|item| item.standing).unwrap_or_default();
                (standing.to, standing.from) == (*to, *from)
            }
        }
    }

    fn size(&self) -> usize {
        16 + match &self.who {
            Who::Jid(text) | Who::Group(text) => text.len(),
            Who::Anyone | Who::Subscription { .. } => 0,
        }
    }
}

/// All privacy lists of one account, and where they apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privacy {
    /// The list of sessions that have chosen none.
    pub default: Option<String>,
    /// The rules of each list, in their order.
    pub lists: BTreeMap<String, Vec<Rule>>,
    /// The lists that sessions have chosen, by resource. Here, so that one change of a list and one of its use cannot
    /// both succeed at two nodes; and so a session keeps it wherever it goes on.
    pub active: BTreeMap<String, String>,
}

impl Stored for Privacy {
    const TABLE: Table = Table("privacy_lists");
    const SCHEMA: u8 = 1;
}

impl Privacy {
    /// The name of the list that applies to a session; `None`: to the account.
    pub fn name(&self, resource: Option<&str>) -> Option<&String> {
        resource.and_then(|resource| self.active.get(resource)).or(self.default.as_ref())
    }

    /// The rules that apply to it.
    fn rules(&self, resource: Option<&str>) -> &[Rule] {
        self.name(resource).and_then(|name| self.lists.get(name)).map_or(&[], Vec::as_slice)
    }

    /// Whether no list applies to anybody.
    pub fn is_idle(&self) -> bool {
        self.default.is_none() && self.active.is_empty()
    }

    /// Whether any rule that may apply asks for the roster.
    pub fn asks_roster(&self) -> bool {
        let asks = |rule: &Rule| matches!(rule.who, Who::Group(_) | Who::Subscription { .. });
        !self.is_idle() && self.lists.values().flatten().any(asks)
    }

    /// Whether the list of a session, or of the account where `resource` is none, denies it to pass between the account
    /// and `other`. Never between own resources (XEP-0016, 2.1, note 2), nor with the host, which answers for them.
    pub fn denies(
        &self,
        resource: Option<&str>,
        flow: Flow,
        account: &BareJid,
        other: &Jid,
        roster: &Roster,
    ) -> bool {
        if self.is_idle() || same_account(other, account) || is_host(other, account.domain()) {
            return false;
        }
        // XEP-0016, 2.2: the first that matches decides; no match means `allow`.
        let rules = self.rules(resource);
        rules.iter().find(|rule| rule.speaks_of(flow, other, roster)).is_some_and(|rule| rule.denies)
    }

    /// The bytes of all lists, about.
    pub fn size(&self) -> usize {
        let list =
            |(name, rules): (&String, &Vec<Rule>)| name.len() + rules.iter().map(Rule::size).sum::<usize>();
        self.lists.iter().map(list).sum()
    }
}

/// Access to the lists of all accounts. Modules share one.
pub struct PrivacyLists {
    /// The only hosts whose accounts have any; `None`: all.
    hosts: Option<Vec<String>>,
    cache: Cache<Privacy>,
    nothing: Arc<Privacy>,
}

impl PrivacyLists {
    /// Lists of the accounts of `hosts` (`None`: of all).
    pub fn new(hosts: Option<Vec<String>>) -> PrivacyLists {
        PrivacyLists { hosts, cache: Cache::default(), nothing: Arc::default() }
    }

    fn is_on(&self, account: &BareJid) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host == account.domain().as_str()))
    }

    /// The lists where they are cached: awaits nothing.
    pub fn cached(&self, account: &BareJid) -> Option<Arc<Privacy>> {
        match self.is_on(account) {
            true => self.cache.get(account),
            false => Some(self.nothing.clone()),
        }
    }

    /// The account's lists, from the cache while it has sessions here.
    pub async fn of(&self, services: &dyn Services, account: &BareJid) -> Result<Arc<Privacy>, StoreError> {
        match self.is_on(account) {
            true => self.cache.of(services, account).await,
            false => Ok(self.nothing.clone()),
        }
    }

    /// Forgets what is cached: it was changed, or may have been.
    pub fn forget(&self, account: &BareJid) {
        self.cache.forget(account);
    }

    /// Changes the lists; returns how they were and how they are. `change` runs again when another writer was first.
    pub async fn change(
        &self,
        services: &dyn Services,
        account: &BareJid,
        change: impl Fn(&mut Privacy) -> Result<(), Failure>,
    ) -> Result<(Privacy, Privacy), Failure> {
        let partition = partition(account);
        for _ in 0..ATTEMPTS {
            let stored: Option<Versioned<Privacy>> = services.store().get_versioned(&partition, KEY).await?;
            let expect = stored.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
            let before = stored.map(|found| found.value).unwrap_or_default();
            let mut after = before.clone();
            change(&mut after)?;
            if after == before {
                return Ok((before, after));
            }
            let batch = Batch::new(partition.clone()).expect::<Privacy>(KEY, expect);
            let batch = match after == Privacy::default() {
                true => batch.delete::<Privacy>(KEY),
                false => batch.put(KEY, &after),
            };
            if services.store().commit_one(batch).await? == Committed::Done {
                // Not cached here: another node may have told us of a later change already.
                self.forget(account);
                return Ok((before, after));
            }
        }
        Err(StoreError::Contended { table: Privacy::TABLE.0, attempts: ATTEMPTS }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rosters::{Item, Standing};

    fn rule(order: u32, denies: bool, who: Who, flows: u8) -> Rule {
        Rule { order, denies, who, flows }
    }

    fn by_default(rules: Vec<Rule>) -> Privacy {
        Privacy {
            default: Some("l".to_owned()),
            lists: [("l".to_owned(), rules)].into(),
            ..Privacy::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let alice = BareJid::new("alice@home").unwrap();
        let mut roster = Roster::default();
        let both = Standing { to: true, from: true, ..Standing::default() };
        let item = Item { groups: vec!["Enemies".to_owned()], standing: both, ..Item::default() };
        roster.items.insert("bob@home".to_owned(), item);
        let jid = |jid: &str| Who::Jid(jid.to_owned());
        let group = || Who::Group("Enemies".to_owned());
        let sub = |to, from| Who::Subscription { to, from };
        let all = [Flow::Message, Flow::Iq, Flow::PresenceIn, Flow::PresenceOut, Flow::Other];
        let cases = [
            (vec![], "", "bob@home/r"),
            (vec![rule(1, true, Who::Anyone, 0)], "MIPpO", "bob@home/r"),
            (vec![rule(1, true, jid("bob@home"), 1)], "M", "bob@home/r"),
            (vec![rule(1, true, jid("bob@home/x"), 0)], "", "bob@home/r"),
            (vec![rule(1, true, jid("home"), 2)], "I", "bob@home/r"),
            (vec![rule(1, true, group(), 4)], "P", "bob@home/r"),
            (vec![rule(1, true, group(), 0)], "", "eve@home/r"),
            (vec![rule(1, true, sub(true, true), 8)], "p", "bob@home"),
            (vec![rule(1, true, sub(true, false), 0)], "", "bob@home"),
            (vec![rule(1, true, sub(false, false), 0)], "MIPpO", "eve@home"),
            (vec![rule(1, false, jid("bob@home"), 0), rule(2, true, Who::Anyone, 0)], "", "bob@home/r"),
            (vec![rule(1, false, jid("bob@home"), 1), rule(2, true, Who::Anyone, 0)], "IPpO", "bob@home"),
            // Its own resources and its host.
            (vec![rule(1, true, Who::Anyone, 0)], "", "alice@home/desk"),
            (vec![rule(1, true, Who::Anyone, 0)], "", "alice@home"),
            (vec![rule(1, true, Who::Anyone, 0)], "", "home"),
        ];
        for (rules, expected, other) in cases {
            let privacy = by_default(rules.clone());
            let other = Jid::new(other).unwrap();
            let denied = all.iter().zip("MIPpO".chars());
            let denied = denied.filter(|(flow, _)| privacy.denies(None, **flow, &alice, &other, &roster));
            assert_eq!(denied.map(|(_, letter)| letter).collect::<String>(), expected, "{rules:?} {other}");
        }
    }

    #[test]
    fn a_session_has_its_active_list_and_no_other() {
        let alice = BareJid::new("alice@home").unwrap();
        let bob = Jid::new("bob@home").unwrap();
        let mut privacy = by_default(vec![rule(1, true, Who::Anyone, 0)]);
        privacy.lists.insert("free".to_owned(), vec![rule(1, false, Who::Anyone, 0)]);
        privacy.active.insert("desk".to_owned(), "free".to_owned());
        let denies = |resource| privacy.denies(resource, Flow::Message, &alice, &bob, &Roster::default());
        assert_eq!([denies(None), denies(Some("phone")), denies(Some("desk"))], [true, true, false]);
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let bytes = [1, 1, 1, b'l', 1, 1, b'l', 2, 5, 1, 3, 1, 0, 8, 9, 0, 0, 0, 1, 1, b'r', 1, b'l'];
        let mut privacy = by_default(vec![
            rule(5, true, Who::Subscription { to: true, from: false }, 8),
            rule(9, false, Who::Anyone, 0),
        ]);
        privacy.active.insert("r".to_owned(), "l".to_owned());
        assert_eq!(store::record::encode(&privacy), bytes);
        assert_eq!(store::record::decode::<Privacy>(&bytes).unwrap(), privacy);
    }
}

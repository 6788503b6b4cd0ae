//! Groups of contacts that operators keep: what the config and the store say of them, as this node knows it.
//!
//! A node reads the groups of a host with its first question and looks every few seconds whether they have changed, by a
//! number that each change raises; so no stanza asks the store. `shared_groups` tells sessions of what has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hooks::Services;
use jid::{BareJid, Jid};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use stanza::address;
use store::{AccountState, Batch, Committed, Expect, Partition, Store, StoreError, Stored, Table, Versioned};
use toml_edit::Value;

use crate::cache::KEY;
use crate::rosters::{Item, Roster};
use crate::settings::Setting;

/// The largest record of the groups of one host that every engine can keep, in bytes.
const BYTES_MAX: usize = 900_000;
/// The most groups that the config may have.
const CONFIGURED_MAX: usize = 1_000;
/// The longest name of a group, in bytes.
const NAME_BYTES_MAX: usize = 1_023;
/// Accounts read from the store at a time.
const PAGE: usize = 500;
/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;

crate::settings! {
    /// `[modules.shared_groups]`
    pub struct Config {
        /// Groups that the config keeps, beside those that operators make while the server runs: each has a `host`, a `name`, and `members` (accounts of the host, by their names) or `everyone = true`.
        groups: ConfiguredGroups = ConfiguredGroups::default(),
        /// The most groups that operators can make for one host.
        groups_max: usize = 100,
        /// The most members of one group; of a host with more accounts, those that come first by their names.
        members_max: usize = 1_000,
        /// How many seconds it takes at most until a node looks for what operators have changed.
        refresh_s: usize = 2,
    }
}

/// Groups as the config has them: host, name, and who is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfiguredGroups(Vec<(String, String, Group)>);

impl Setting for ConfiguredGroups {
    const EXPECTED: &'static str = "a list of groups, each of its own name, as in [{ host = \"example.org\", name = \"Crew\", members = [\"alice\", \"bob\"] }, { host = \"example.org\", name = \"All\", everyone = true }]";

    fn read(value: &Value) -> Option<ConfiguredGroups> {
        let groups: Option<Vec<_>> = value.as_array()?.iter().map(configured).collect();
        let groups = groups.filter(|groups| groups.len() <= CONFIGURED_MAX)?;
        let names: BTreeSet<_> = groups.iter().map(|(host, name, _)| (host, name)).collect();
        (names.len() == groups.len()).then_some(ConfiguredGroups(groups.clone()))
    }

    fn write(&self) -> String {
        let group = |(host, name, group): &(String, String, Group)| {
            let names = group.members.iter().map(|jid| format!("{:?}", jid.split('@').next().unwrap_or(jid)));
            let who = match group.everyone {
                true => "everyone = true".to_owned(),
                false => format!("members = [{}]", names.collect::<Vec<_>>().join(", ")),
            };
            format!("{{ host = {host:?}, name = {name:?}, {who} }}")
        };
        format!("[{}]", self.0.iter().map(group).collect::<Vec<_>>().join(", "))
    }
}

fn configured(value: &Value) -> Option<(String, String, Group)> {
    let table = value.as_inline_table()?;
    if table.iter().any(|(key, _)| !["host", "name", "members", "everyone"].contains(&key)) {
        return None;
    }
    let text = |key: &str| table.get(key)?.as_str().map(str::to_owned);
    let (host, name) = (text("host")?, text("name").filter(|name| is_name(name))?);
    let members = match table.get("members") {
        Some(members) => members.as_array()?.iter().map(|name| member(&host, name.as_str()?)).collect(),
        None => Some(BTreeSet::new()),
    };
    let everyone = table.get("everyone").map_or(Some(false), Value::as_bool)?;
    let members = members.filter(|members: &BTreeSet<String>| members.is_empty() == everyone)?;
    Some((host, name, Group { members, everyone }))
}

/// Whether a group may be called so.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

/// The address of an account of the host, by its name or its address; `None`: it can be none.
pub fn member(host: &str, name: &str) -> Option<String> {
    let jid = match name.contains('@') {
        true => address::bare_jid(name).ok()?,
        false => address::bare_jid(&format!("{name}@{host}")).ok()?,
    };
    (jid.node().is_some() && jid.domain().as_str() == host).then(|| jid.to_string())
}

/// Who is in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Accounts of the host, by their bare JIDs.
    pub members: BTreeSet<String>,
    /// All accounts of the host.
    pub everyone: bool,
}

/// The groups of a host that operators have made, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    groups: BTreeMap<String, Group>,
}

impl Stored for Kept {
    const TABLE: Table = Table("shared_groups");
    const SCHEMA: u8 = 1;
}

impl Kept {
    fn size(&self) -> usize {
        let of = |group: &Group| group.members.iter().map(|jid| jid.len() + 4).sum::<usize>();
        self.groups.iter().map(|(name, group)| name.len() + 16 + of(group)).sum()
    }
}

/// How often they were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Generation(u64);

impl Stored for Generation {
    const TABLE: Table = Table("shared_groups_generation");
    const SCHEMA: u8 = 1;
}

fn partition(host: &str) -> Partition {
    Partition::Host(host.into())
}

/// What an operator does to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds members (by their bare JIDs), or all accounts of the host, to the group, which is made where it is not there.
    Add(Group),
    /// Takes them out.
    Remove(Group),
    /// Ends the group.
    Delete,
}

/// Why a group was not changed.
#[derive(Debug)]
pub enum GroupError {
    /// There is none of that name that operators have made.
    NotFound,
    /// A bound was reached; which one, in words.
    TooMany(&'static str),
    /// No group can be called so.
    BadName,
    /// The store could not.
    Store(StoreError),
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> GroupError {
        GroupError::Store(error)
    }
}

/// Changes a group of a host; who is in it afterwards. Nodes see it within `refresh_s`.
///
/// # Errors
/// Nothing has changed then, but where the store cannot say whether it has.
pub async fn change(
    store: &Store,
    config: &Config,
    (host, name): (&str, &str),
    change: &Change,
) -> Result<Group, GroupError> {
    if !is_name(name) {
        return Err(GroupError::BadName);
    }
    for _ in 0..ATTEMPTS {
        let kept: Option<Versioned<Kept>> = store.get_versioned(&partition(host), KEY).await?;
        let generation: Generation = store.get(&partition(host), KEY).await?.unwrap_or_default();
        let expect = kept.as_ref().map_or(Expect::Absent, |kept| Expect::Version(kept.version));
        let mut kept = kept.map(|kept| kept.value).unwrap_or_default();
        let before = kept.groups.get(name).cloned();
        let mut group = before.clone().unwrap_or_default();
        match change {
            Change::Add(added) => {
                group.members.extend(added.members.iter().cloned());
                group.everyone |= added.everyone;
            }
            Change::Remove(_) | Change::Delete if before.is_none() => return Err(GroupError::NotFound),
            Change::Remove(removed) => {
                group.members.retain(|member| !removed.members.contains(member));
                group.everyone &= !removed.everyone;
            }
            Change::Delete => {}
        }
        match change {
            Change::Delete => drop(kept.groups.remove(name)),
            _ => drop(kept.groups.insert(name.to_owned(), group.clone())),
        }
        let grows = matches!(change, Change::Add(_));
        if grows && kept.groups.len() > config.groups_max {
            return Err(GroupError::TooMany("the host has as many groups as it may have"));
        }
        if grows && group.members.len() > config.members_max {
            return Err(GroupError::TooMany("the group would have more members than it may have"));
        }
        if grows && kept.size() > BYTES_MAX {
            return Err(GroupError::TooMany("the groups of the host would be too large"));
        }
        let batch = Batch::new(partition(host))
            .expect::<Kept>(KEY, expect)
            .put(KEY, &kept)
            .put(KEY, &Generation(generation.0 + 1));
        if store.commit_one(batch).await? == Committed::Done {
            return Ok(group);
        }
    }
    Err(StoreError::Contended { table: Kept::TABLE.0, attempts: ATTEMPTS }.into())
}

/// A group as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub group: Group,
    /// The config keeps it; another of that name that operators have made is one with it for users.
    pub configured: bool,
}

/// All groups of a host, by their names.
///
/// # Errors
/// Where the store does not answer.
pub async fn list(store: &Store, config: &Config, host: &str) -> Result<Vec<Listed>, StoreError> {
    let kept: Kept = store.get(&partition(host), KEY).await?.unwrap_or_default();
    let configured = config.groups.0.iter().filter(|(of, ..)| of == host);
    let configured = configured.map(|(_, name, group)| (name.clone(), group.clone(), true));
    let kept = kept.groups.into_iter().map(|(name, group)| (name, group, false));
    let mut all: Vec<_> =
        configured.chain(kept).map(|(name, group, configured)| Listed { name, group, configured }).collect();
    all.sort_by(|a, b| (&a.name, b.configured).cmp(&(&b.name, a.configured)));
    Ok(all)
}

/// The groups of one host at one moment.
#[derive(Debug, Default)]
pub struct View {
    /// Counts the views of this node.
    number: u64,
    generation: Generation,
    /// Whether who is in them follows from the accounts of the host too.
    has_everyone: bool,
    groups: BTreeMap<String, BTreeSet<String>>,
    /// The names of the groups of each member.
    of: HashMap<String, Vec<String>>,
}

/// Whom an account sees by its groups, and in which of them.
pub type Contacts<'a> = BTreeMap<&'a str, Vec<&'a str>>;

impl View {
    /// The later one of two views of this node.
    pub fn later<'a>(&'a self, other: &'a View) -> &'a View {
        if self.number > other.number { self } else { other }
    }

    /// Whom an account sees by its groups, and in which of them.
    pub fn contacts(&self, account: &str) -> Contacts<'_> {
        let mut contacts = Contacts::new();
        for name in self.of.get(account).into_iter().flatten() {
            let members = self.groups.get(name).into_iter().flatten();
            for member in members.filter(|member| *member != account) {
                contacts.entry(member).or_default().push(name);
            }
        }
        contacts
    }

    /// In which groups an account sees another; in none where they share none.
    fn names(&self, account: &str, contact: &str) -> Vec<&str> {
        let names = self.of.get(account).into_iter().flatten().filter(|_| account != contact);
        let shared = names.filter(|name| self.groups.get(*name).is_some_and(|group| group.contains(contact)));
        shared.map(String::as_str).collect()
    }

    /// The accounts that have other contacts, or in other groups, than in an earlier view.
    pub fn touched(&self, before: &View) -> BTreeSet<String> {
        let names: BTreeSet<&String> = self.groups.keys().chain(before.groups.keys()).collect();
        let changed = names.into_iter().filter(|name| self.groups.get(*name) != before.groups.get(*name));
        let members = |view: &'_ View, name: &String| view.groups.get(name).cloned().unwrap_or_default();
        changed.flat_map(|name| members(self, name).into_iter().chain(members(before, name))).collect()
    }
}

/// What of a roster comes from groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// The view that it is by.
    pub view: u64,
    /// The same at each node, for the version of the roster; 0: nothing.
    pub digest: u64,
}

/// The groups of all hosts as this node knows them.
#[derive(Debug, Default)]
pub struct Groups {
    config: Config,
    /// The hosts where the module is on; `None`: all.
    hosts: Option<Vec<String>>,
    views: RwLock<HashMap<String, Arc<View>>>,
    /// Those before them.
    former: RwLock<HashMap<String, Arc<View>>>,
    made: AtomicU64,
}

impl Groups {
    pub fn new(config: Config, hosts: Option<Vec<String>>) -> Groups {
        Groups { config, hosts, ..Groups::default() }
    }

    /// None at any host.
    pub fn none() -> Groups {
        Groups::new(Config::default(), Some(Vec::new()))
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether a host may have groups.
    pub fn are_on(&self, host: &str) -> bool {
        self.hosts.as_ref().is_none_or(|on| on.iter().any(|on| on == host))
    }

    /// The groups of the host of an account, where they were read: awaits nothing.
    pub fn view_of(&self, account: &BareJid) -> Option<Arc<View>> {
        self.views.read().get(account.domain().as_str()).cloned()
    }

    /// Those of the host of an account before they were changed the last time, where this node has seen it.
    pub fn former_of(&self, account: &BareJid) -> Option<Arc<View>> {
        self.former.read().get(account.domain().as_str()).cloned()
    }

    /// Reads the groups of a host, if that was not done yet.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn ready(&self, services: &dyn Services, host: &str) -> Result<(), StoreError> {
        if !self.are_on(host) || self.views.read().contains_key(host) {
            return Ok(());
        }
        let view = self.read(services, host).await?;
        self.views.write().entry(host.to_owned()).or_insert(Arc::new(view));
        Ok(())
    }

    /// Looks whether the groups of a host are others by now: those before, and those now. `accounts`: whether it is looked
    /// for new accounts too.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn renew(
        &self,
        services: &dyn Services,
        host: &str,
        accounts: bool,
    ) -> Result<Option<(Arc<View>, Arc<View>)>, StoreError> {
        let known = self.views.read().get(host).cloned();
        // Nobody has asked for them: whoever does reads them as they are then.
        let Some(known) = known else { return Ok(None) };
        let generation: Generation = services.store().get(&partition(host), KEY).await?.unwrap_or_default();
        if generation == known.generation && !(accounts && known.has_everyone) {
            return Ok(None);
        }
        let view = Arc::new(self.read(services, host).await?);
        if view.generation == known.generation && view.groups == known.groups {
            return Ok(None);
        }
        self.former.write().insert(host.to_owned(), known.clone());
        self.views.write().insert(host.to_owned(), view.clone());
        Ok(Some((known, view)))
    }

    async fn read(&self, services: &dyn Services, host: &str) -> Result<View, StoreError> {
        // Before the groups: what is changed between is looked for again.
        let generation: Generation = services.store().get(&partition(host), KEY).await?.unwrap_or_default();
        let all = list(services.store(), &self.config, host).await?;
        let has_everyone = all.iter().any(|one| one.group.everyone);
        let everyone = match has_everyone {
            true => self.accounts(services, host).await?,
            false => BTreeSet::new(),
        };
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for Listed { name, group, .. } in all {
            let members = groups.entry(name).or_default();
            members.extend(group.members);
            if group.everyone {
                members.extend(everyone.iter().cloned());
            }
        }
        let mut of: HashMap<String, Vec<String>> = HashMap::new();
        for (name, members) in &groups {
            members.iter().for_each(|member| of.entry(member.clone()).or_default().push(name.clone()));
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(View { number, generation, has_everyone, groups, of })
    }

    /// The accounts of a host, as many as may be in a group.
    async fn accounts(&self, services: &dyn Services, host: &str) -> Result<BTreeSet<String>, StoreError> {
        let (mut all, mut after) = (BTreeSet::new(), None);
        loop {
            let page = services.accounts(host, after.as_deref(), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(all) };
            after = Some(last.clone());
            all.extend(
                page.into_iter().filter(|(_, state)| *state != AccountState::Leaving).map(|(bare, _)| bare),
            );
            if all.len() > self.config.members_max {
                tracing::warn!(
                    host,
                    max = self.config.members_max,
                    "a group of everyone does not hold all accounts"
                );
                return Ok(all.into_iter().take(self.config.members_max).collect());
            }
        }
    }

    /// In which groups an account sees a contact.
    pub fn names(&self, account: &BareJid, contact: &str) -> Vec<String> {
        let Some(view) = self.view_of(account) else { return Vec::new() };
        view.names(account.as_str(), contact).into_iter().map(str::to_owned).collect()
    }

    /// Whether an account sees a contact by a group.
    pub fn share(&self, account: &BareJid, contact: &Jid) -> bool {
        self.view_of(account).is_some_and(|view| !view.names(account.as_str(), contact.as_str()).is_empty())
    }

    /// The item of a contact with what groups add to it; `None`: there is none.
    pub fn shown(&self, account: &BareJid, contact: &str, own: Option<Item>) -> Option<Item> {
        let Some(view) = self.view_of(account) else { return own };
        let names = view.names(account.as_str(), contact);
        match names.is_empty() {
            true => own,
            false => Some(with(own, &names)),
        }
    }

    /// A roster with what groups add to it.
    pub fn merge(&self, account: &BareJid, mut roster: Roster) -> Roster {
        let Some(view) = self.view_of(account) else { return roster };
        let contacts = view.contacts(account.as_str());
        roster.shared = Shared { view: view.number, digest: digest(&contacts) };
        for (contact, names) in contacts {
            let own = roster.items.remove(contact);
            roster.items.insert(contact.to_owned(), with(own, &names));
        }
        roster
    }
}

/// Whether a roster is by the groups as they are now.
pub fn is_by(shared: Shared, view: Option<&View>) -> bool {
    shared.view == view.map_or(0, |view| view.number)
}

/// The contact's presence is seen and theirs shown, whatever the user's own item says; its name and groups stay.
fn with(own: Option<Item>, names: &[&str]) -> Item {
    let mut item = own.unwrap_or_default();
    (item.standing.to, item.standing.from) = (true, true);
    (item.standing.asked, item.standing.approved) = (false, false);
    for name in names {
        if !item.groups.iter().any(|group| group == name) {
            item.groups.push((*name).to_owned());
        }
    }
    item.groups.sort();
    item
}

/// The same for the same contacts at each node; 0 for none.
pub fn digest(contacts: &Contacts<'_>) -> u64 {
    if contacts.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    contacts.hash(&mut hasher);
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let bytes = [1, 1, 1, b'g', 1, 3, b'a', b'@', b'h', 1];
        let kept: Kept = store::record::decode(&bytes).unwrap();
        let group = Group { members: ["a@h".to_owned()].into(), everyone: true };
        assert_eq!(kept.groups, BTreeMap::from([("g".to_owned(), group)]));
        assert_eq!(store::record::encode(&kept), bytes);
        assert_eq!(store::record::decode::<Generation>(&[1, 5]).unwrap(), Generation(5));
    }

    #[test]
    fn groups_of_the_config_are_read_as_they_are_written_and_wrong_ones_are_not() {
        let read = |toml: &str| ConfiguredGroups::read(&toml.parse().unwrap());
        let good = "[{ host = \"h\", name = \"Crew\", members = [\"alice\", \"bob\"] }, \
                    { host = \"h\", name = \"All\", everyone = true }]";
        let groups = read(good).unwrap();
        assert_eq!(groups.write(), good);
        assert!(groups.0[0].2.members.contains("alice@h"));
        for wrong in [
            "'Crew'",
            "[{ name = 'Crew', members = ['alice'] }]",
            "[{ host = 'h', name = '', members = ['alice'] }]",
            "[{ host = 'h', name = 'Crew' }]",
            "[{ host = 'h', name = 'Crew', members = ['alice'], everyone = true }]",
            "[{ host = 'h', name = 'Crew', members = ['alice@elsewhere'] }]",
            "[{ host = 'h', name = 'Crew', members = ['a b c'] }]",
            "[{ host = 'h', name = 'Crew', everyone = true, size = 3 }]",
            "[{ host = 'h', name = 'A', everyone = true }, { host = 'h', name = 'A', everyone = true }]",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}

//! The list of modules: its order is the order of their handlers within a step.

use std::collections::BTreeMap;
use std::sync::Arc;

use hooks::{Module, Switches};
use toml_edit::Value;

use crate::administration::{self, Administration};
use crate::anonymous::Anonymous;
use crate::archive::Archive;
use crate::avatars::Avatars;
use crate::bind2::Bind2;
use crate::blocking::Blocking;
use crate::blocklists::Blocklists;
use crate::carbons::Carbons;
use crate::commands::Commands;
use crate::csi::Csi;
use crate::data_policy::DataPolicy;
use crate::disco::Disco;
use crate::external::External;
use crate::fast::Fast;
use crate::forgeries::Forgeries;
use crate::groups::Groups;
use crate::invisible::Invisible;
use crate::last::Last;
use crate::management::Management;
use crate::multicast::Multicast;
use crate::no_reply::NoReply;
use crate::offline::Offline;
use crate::offline_filter::OfflineFilter;
use crate::pep::Pep;
use crate::ping::Ping;
use crate::presence::Presence;
use crate::privacy::Privacy;
use crate::privacylists::PrivacyLists;
use crate::private::Private;
use crate::push::Push;
use crate::registration::Registration;
use crate::reports::Reports;
use crate::roster::RosterModule;
use crate::rosters::Rosters;
use crate::sasl_upgrade::SaslUpgrade;
use crate::sasl2::Sasl2;
use crate::session::Session;
use crate::settings::{Key, Settings, Wrong};
use crate::shared_groups::SharedGroups;
use crate::storm::Storm;
use crate::strangers::Strangers;
use crate::stream_limits::StreamLimits;
use crate::subscription::Subscription;
use crate::time::Time;
use crate::vcard::VCard;
use crate::version::Version;
use crate::{
    anonymous, archive, blocking, data_policy, disco, external, fast, groups, last, multicast, offline,
    offline_filter, pep, presence, privacy, private, push, registration, reports, rosters, storm, strangers,
    subscription, vcard, version,
};

/// The names of all modules, in their order.
pub const NAMES: [&str; 41] = [
    "storm",
    "anonymous",
    "blocking",
    "privacy",
    "reports",
    "disco",
    "roster",
    "shared_groups",
    "strangers",
    "forgeries",
    "avatars",
    "pep",
    "subscription",
    "invisible",
    "presence",
    "offline_filter",
    "archive",
    "carbons",
    "push",
    "offline",
    "multicast",
    "private",
    "vcard",
    "last",
    "sasl2",
    "sasl_upgrade",
    "bind2",
    "fast",
    "stream_limits",
    "management",
    "csi",
    "ping",
    "version",
    "time",
    "no_reply",
    "data_policy",
    "external",
    "commands",
    "administration",
    "session",
    "registration",
];

/// Modules that are there only if they are asked for.
pub const OFF: [&str; 8] = [
    "storm",
    "reports",
    "shared_groups",
    "offline_filter",
    "archive",
    "data_policy",
    "external",
    "registration",
];

crate::settings! {
    /// What every `[modules.NAME]` table may say.
    pub struct Switch {
        /// Whether the module is there at all.
        enabled: bool = true,
        /// The hosts on which the module is on; none named means all.
        hosts: Vec<String> = Vec::new(),
    }
}

crate::settings! {
    /// The settings of a module that has none.
    pub struct Nothing {}
}

impl Switch {
    /// What a module's table says if it says nothing.
    fn of(module: &str) -> Switch {
        Switch { enabled: !OFF.contains(&module), ..Switch::default() }
    }
}

/// `[modules.NAME]` of all modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModulesConfig {
    pub storm: storm::Config,
    pub anonymous: anonymous::Config,
    pub blocking: blocking::Config,
    pub privacy: privacy::Config,
    pub reports: reports::Config,
    pub disco: disco::Config,
    pub roster: rosters::Config,
    pub shared_groups: groups::Config,
    pub strangers: strangers::Config,
    pub pep: pep::Config,
    pub subscription: subscription::Config,
    pub presence: presence::Config,
    pub offline_filter: offline_filter::Config,
    pub archive: archive::Config,
    pub push: push::Config,
    pub offline: offline::Config,
    pub multicast: multicast::Config,
    pub private: private::Config,
    pub vcard: vcard::Config,
    pub last: last::Config,
    pub fast: fast::Config,
    pub version: version::Config,
    pub data_policy: data_policy::Config,
    pub external: external::Config,
    pub administration: administration::Config,
    pub registration: registration::Config,
    /// Names of accounts that cannot be registered in-band: `[accounts] reserved`, which is no module's.
    pub reserved: Vec<String>,
    /// By the name of the module; one that is not here is as by default, and on everywhere if it is on.
    pub switches: BTreeMap<String, Switch>,
}

impl ModulesConfig {
    /// Every key that a `[modules.NAME]` table may have, module by module.
    pub fn keys() -> Vec<Key> {
        let mut config = ModulesConfig::default();
        let mut keys = Vec::new();
        for module in NAMES {
            keys.extend(Switch::of(module).keys(module));
            keys.extend(config.of(module).keys(module));
        }
        keys
    }

    /// Sets one key of `[modules.NAME]`.
    pub fn set(&mut self, module: &str, key: &str, value: &Value) -> Result<(), Wrong> {
        let name = *NAMES.iter().find(|name| **name == module).ok_or(Wrong::UnknownModule)?;
        let mut switch = self.switches.get(name).cloned().unwrap_or_else(|| Switch::of(name));
        match switch.set(key, value) {
            Err(Wrong::UnknownKey) => self.of(name).set(key, value),
            Err(wrong) => Err(wrong),
            Ok(()) => {
                self.switches.insert(name.to_owned(), switch);
                Ok(())
            }
        }
    }

    fn is_enabled(&self, module: &str) -> bool {
        self.switches.get(module).map_or_else(|| Switch::of(module).enabled, |switch| switch.enabled)
    }

    /// The only hosts on which a module is on; `None`: all of them.
    fn hosts_of(&self, module: &str) -> Option<Vec<String>> {
        if !self.is_enabled(module) {
            return Some(Vec::new());
        }
        let hosts = self.switches.get(module).map(|switch| switch.hosts.clone());
        hosts.filter(|hosts| !hosts.is_empty())
    }

    /// The groups of contacts of the config, and the hosts where the module of them is on; each call makes new ones.
    pub fn groups(&self) -> Groups {
        Groups::new(self.shared_groups.clone(), self.hosts_of("shared_groups"))
    }

    /// The default settings with every module switched on, for the pages that show all of them.
    pub fn all() -> ModulesConfig {
        let switches = NAMES.map(|name| (name.to_owned(), Switch::default())).into();
        ModulesConfig { switches, ..ModulesConfig::default() }
    }

    fn of(&mut self, module: &str) -> Box<dyn Settings + '_> {
        match module {
            "storm" => Box::new(&mut self.storm),
            "anonymous" => Box::new(&mut self.anonymous),
            "blocking" => Box::new(&mut self.blocking),
            "privacy" => Box::new(&mut self.privacy),
            "reports" => Box::new(&mut self.reports),
            "disco" => Box::new(&mut self.disco),
            "roster" => Box::new(&mut self.roster),
            "shared_groups" => Box::new(&mut self.shared_groups),
            "strangers" => Box::new(&mut self.strangers),
            "pep" => Box::new(&mut self.pep),
            "subscription" => Box::new(&mut self.subscription),
            "presence" => Box::new(&mut self.presence),
            "offline_filter" => Box::new(&mut self.offline_filter),
            "archive" => Box::new(&mut self.archive),
            "push" => Box::new(&mut self.push),
            "offline" => Box::new(&mut self.offline),
            "multicast" => Box::new(&mut self.multicast),
            "private" => Box::new(&mut self.private),
            "vcard" => Box::new(&mut self.vcard),
            "last" => Box::new(&mut self.last),
            "fast" => Box::new(&mut self.fast),
            "version" => Box::new(&mut self.version),
            "administration" => Box::new(&mut self.administration),
            "data_policy" => Box::new(&mut self.data_policy),
            "external" => Box::new(&mut self.external),
            "registration" => Box::new(&mut self.registration),
            _ => Box::new(Nothing::default()),
        }
    }
}

/// The modules that are enabled, in their order. Each call makes new ones, with caches of their own.
pub fn modules(config: &ModulesConfig) -> Vec<Arc<dyn Module>> {
    let groups = Arc::new(config.groups());
    let rosters = Arc::new(Rosters::with_groups(config.roster.clone(), groups.clone()));
    let blocking::Config { items_max, bytes_max, .. } = config.blocking;
    let blocklists = Arc::new(Blocklists::new(items_max, bytes_max, config.hosts_of("blocking")));
    let privacy = Arc::new(PrivacyLists::new(config.hosts_of("privacy")));
    let commands = Arc::new(Commands::new(administration::commands(&config.administration)));
    let reports = Arc::new(Reports::new(config.reports.clone()));
    let blocking = Blocking::new(
        config.blocking.clone(),
        blocklists.clone(),
        rosters.clone(),
        privacy.clone(),
        reports.clone(),
    );
    let nodes = pep::Core::new(&config.pep, rosters.clone(), blocklists.clone());
    let are_on_everywhere = |names: &[&str]| names.iter().all(|name| config.hosts_of(name).is_none());
    let nodes = Arc::new(match are_on_everywhere(&["avatars", "pep", "vcard"]) {
        true => {
            let pictures = pep::avatars::Pictures::new(config.vcard.bytes_max, config.strangers.vcards);
            nodes.with_pictures(pictures)
        }
        false => nodes,
    });
    // Only where no account would say what it does not do.
    let bookmarks = config.hosts_of("pep").is_none().then(|| nodes.clone());
    let policy = Arc::new(DataPolicy::new(config.data_policy.clone()));
    let offline = Arc::new(Offline::new(config.offline.clone()));
    let pictures = nodes.pictures().is_some().then(|| nodes.clone());
    let presence = Arc::new(Presence::new(
        config.presence.clone(),
        rosters.clone(),
        blocklists.clone(),
        privacy.clone(),
    ));
    let modules: [(&str, Arc<dyn Module>); NAMES.len()] = [
        // Before all others: whoever storms costs nothing more.
        ("storm", Arc::new(Storm::new(config.storm.clone()))),
        // Before the rest: what it refuses must not have been noted by anybody.
        ("anonymous", Arc::new(Anonymous::new(config.anonymous.clone()))),
        // So is this one, and before presence reads the lists of a session that is back.
        ("blocking", Arc::new(blocking)),
        (
            "privacy",
            Arc::new(Privacy::new(
                config.privacy.clone(),
                privacy.clone(),
                blocklists.clone(),
                rosters.clone(),
            )),
        ),
        ("reports", reports),
        (
            "disco",
            Arc::new(Disco::new(
                config.disco.clone(),
                rosters.clone(),
                vec![commands.clone(), offline.clone()],
                vec![policy.clone()],
                nodes.clone(),
            )),
        ),
        // Before subscription and presence: a new session's cached roster is forgotten before they read it.
        ("roster", Arc::new(RosterModule::new(rosters.clone()))),
        // Before subscription, by its step: what it stops changes no roster.
        (
            "shared_groups",
            Arc::new(SharedGroups::new(groups, rosters.clone(), blocklists.clone(), privacy.clone())),
        ),
        // Behind roster, which tells a stranger more plainly what is not theirs to read.
        ("strangers", Arc::new(Strangers::new(config.strangers.clone(), rosters.clone()))),
        ("forgeries", Arc::new(Forgeries)),
        // Before presence, by its step: what it keeps of a session speaks of the picture.
        ("avatars", Arc::new(Avatars::new(nodes.clone()))),
        // Before subscription, which takes what is told of subscriptions: a new contact gets what was published.
        ("pep", Arc::new(Pep::new(nodes.clone()))),
        ("subscription", Arc::new(Subscription::new(config.subscription.clone(), rosters.clone()))),
        // Before presence, which would tell everybody what an invisible session says.
        (
            "invisible",
            Arc::new(Invisible::new(presence.clone(), rosters.clone(), blocklists.clone(), privacy.clone())),
        ),
        ("presence", presence),
        // Before all that keeps messages, by its step: what it marks is not kept.
        ("offline_filter", Arc::new(OfflineFilter::new(config.offline_filter.clone(), rosters.clone()))),
        // Before carbons and offline: what they copy and keep says under which id it is archived.
        ("archive", Arc::new(Archive::new(config.archive.clone(), rosters.clone()))),
        // Before offline, which stops what it keeps: a session that the message itself is not for has its copy then.
        ("carbons", Arc::new(Carbons::default())),
        // Before offline, which stops what it keeps: whose device is away hears of it.
        ("push", Arc::new(Push::new(config.push.clone()))),
        // After everything that may answer or consume a message: it keeps what nobody else took.
        ("offline", offline.clone()),
        // Behind archive and carbons: the other devices of its sender have it once.
        (
            "multicast",
            Arc::new(Multicast::new(
                config.multicast.clone(),
                blocklists.clone(),
                privacy,
                rosters.clone(),
                config.presence.directed_max,
            )),
        ),
        ("private", Arc::new(Private::new(config.private.clone(), bookmarks))),
        ("vcard", Arc::new(VCard::new(config.vcard.clone(), pictures))),
        // Last of those who hear that a session has gone: what it writes keeps nobody waiting who is told of it.
        ("last", Arc::new(Last::new(config.last.clone(), rosters.clone()))),
        ("sasl2", Arc::new(Sasl2)),
        ("sasl_upgrade", Arc::new(SaslUpgrade)),
        ("bind2", Arc::new(Bind2)),
        ("fast", Arc::new(Fast::new(config.fast.clone()))),
        ("stream_limits", Arc::new(StreamLimits)),
        ("management", Arc::new(Management)),
        ("csi", Arc::new(Csi)),
        ("ping", Arc::new(Ping::new(rosters))),
        ("version", Arc::new(Version::new(config.version.clone()))),
        ("time", Arc::new(Time)),
        ("no_reply", Arc::new(NoReply)),
        ("data_policy", policy),
        ("external", Arc::new(External::new(config.external.clone()))),
        ("commands", commands),
        ("administration", Arc::new(Administration)),
        ("session", Arc::new(Session)),
        ("registration", Arc::new(Registration::new(config.registration.clone(), &config.reserved))),
    ];
    let enabled = modules.into_iter().filter(|(name, _)| config.is_enabled(name));
    enabled.map(|(_, module)| module).collect()
}

/// On which hosts each module is on.
pub fn switches(config: &ModulesConfig) -> Switches {
    let limited = config.switches.iter().filter(|(_, switch)| !switch.hosts.is_empty());
    limited.fold(Switches::everywhere(), |switches, (module, switch)| {
        switches.only(module, switch.hosts.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(toml: &str) -> Value {
        toml.parse().unwrap()
    }

    #[test]
    fn the_list_and_the_cards_agree_on_names() {
        let names = |config| modules(&config).iter().map(|m| m.card().name).collect::<Vec<_>>();
        assert_eq!(names(ModulesConfig::all()), NAMES);
        let mut usual = NAMES.to_vec();
        usual.retain(|name| !OFF.contains(name));
        assert_eq!(names(ModulesConfig::default()), usual);
    }

    #[test]
    fn a_module_is_switched_off_or_to_one_host() {
        let mut config = ModulesConfig::default();
        config.set("ping", "enabled", &value("false")).unwrap();
        config.set("time", "hosts", &value("['a.example']")).unwrap();
        let modules = modules(&config);
        assert!(modules.iter().all(|module| module.card().name != "ping"));
        let registry = hooks::Registry::build(modules, &switches(&config)).unwrap();
        let has_time = |host| registry.cards(host).iter().any(|card| card.name == "time");
        assert!(has_time("a.example") && !has_time("b.example"));
    }

    #[test]
    fn keys_are_set_and_wrong_ones_are_named() {
        let mut config = ModulesConfig::default();
        config.set("offline", "messages_max", &value("7")).unwrap();
        assert_eq!(config.offline.messages_max, 7);
        let set = |config: &mut ModulesConfig, module, key, text: &str| config.set(module, key, &value(text));
        assert_eq!(set(&mut config, "ofline", "messages_max", "7"), Err(Wrong::UnknownModule));
        assert_eq!(set(&mut config, "offline", "messages", "7"), Err(Wrong::UnknownKey));
        assert_eq!(set(&mut config, "time", "messages", "7"), Err(Wrong::UnknownKey));
        for wrong in ["0", "-1", "'many'", "1.5"] {
            assert!(
                matches!(set(&mut config, "offline", "bytes_max", wrong), Err(Wrong::NotA { .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn every_key_has_a_sentence_and_takes_its_own_default() {
        for key in ModulesConfig::keys() {
            assert!(key.sentence.ends_with('.'), "{key:?}");
            let mut config = ModulesConfig::default();
            config.set(key.module, key.name, &value(&key.default)).unwrap();
            assert_eq!(
                config.of(key.module).keys(key.module),
                ModulesConfig::default().of(key.module).keys(key.module)
            );
        }
    }
}

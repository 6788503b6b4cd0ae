//! The keys of `[modules.NAME]`, which belong to the modules themselves.

use std::sync::Arc;

use hooks::{Module, Switches};
use xeps::{Key, ModulesConfig, Wrong};

use super::{
    Settings,
    nearest::nearest,
    read::{Fault, Found, Values},
};

/// The modules of a node.
pub struct Modules {
    /// In the order of their handlers.
    pub list: Vec<Arc<dyn Module>>,
    /// On which hosts each is on.
    pub switches: Switches,
}

impl Settings {
    /// Makes the modules, new ones at each call.
    pub fn modules(&self) -> Modules {
        Modules { list: xeps::modules(&self.modules), switches: xeps::switches(&self.modules) }
    }

    /// The groups of contacts of the config, and the hosts that may have some.
    pub fn groups(&self) -> xeps::groups::Groups {
        self.modules.groups()
    }
}

/// Reads all `[modules.NAME]`; `hosts` are the hosts of the server.
pub fn read(values: &Values, hosts: &[String], faults: &mut Vec<Fault>) -> ModulesConfig {
    let keys = ModulesConfig::keys();
    let mut config = ModulesConfig::default();
    for (module, said) in &values.modules {
        if !keys.iter().any(|key| key.module == module) {
            let place =
                said.place.clone().or_else(|| said.keys.values().next().map(|found| found.place.clone()));
            let what = unknown("module", nearest(module, keys.iter().map(|key| key.module)));
            let key = format!("modules.{module}");
            faults.extend(place.map(|place| Fault { place, key, what }));
            continue;
        }
        if let Some(found) = said.keys.values().next()
            && xeps::index::OFF.contains(&module.as_str())
            && !said.keys.contains_key("enabled")
        {
            let what = "this module is off by default: expected `enabled` beside its other keys".to_owned();
            let place = said.place.clone().unwrap_or_else(|| found.place.clone());
            faults.push(Fault { place, key: format!("modules.{module}"), what });
        }
        for (name, found) in &said.keys {
            let wrong = match config.set(module, name, &found.value) {
                Ok(()) => unserved(name, found, hosts),
                Err(wrong) => Some(told(wrong, &keys, module, name)),
            };
            let key = format!("modules.{module}.{name}");
            faults.extend(wrong.map(|what| Fault { place: found.place.clone(), key, what }));
        }
    }
    config
}

fn told(wrong: Wrong, keys: &[Key], module: &str, name: &str) -> String {
    match wrong {
        Wrong::NotA { expected } => format!("expected {expected}"),
        Wrong::UnknownKey | Wrong::UnknownModule => {
            let own = keys.iter().filter(|key| key.module == module).map(|key| key.name);
            unknown("key", nearest(name, own))
        }
    }
}

fn unknown(what: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown {what}; the nearest known {what} is `{near}`"),
        None => format!("unknown {what}; `rookery config print-default` lists all keys"),
    }
}

/// A host that a module is switched on for, or has settings for, and that the server does not have.
fn unserved(name: &str, found: &Found, hosts: &[String]) -> Option<String> {
    let named: Vec<&str> = match name {
        "hosts" => found.value.as_array()?.iter().filter_map(|v| v.as_str()).collect(),
        "groups" => {
            let groups = found.value.as_array()?.iter().filter_map(|group| group.as_inline_table());
            groups.filter_map(|group| group.get("host")?.as_str()).collect()
        }
        "per_host" => found.value.as_inline_table()?.iter().map(|(host, _)| host).collect(),
        _ => return None,
    };
    let missing = named.into_iter().find(|host| !hosts.iter().any(|h| h == host))?;
    Some(format!("`{missing}` is not one of the `hosts` of the server"))
}

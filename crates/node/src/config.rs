//! The config of a node: keys, reading, combinations, and the settings that come of it.

pub mod combinations;
pub mod dns;
pub mod host_meta;
pub mod keys;
pub mod modules;
pub mod nearest;
pub mod print;
pub mod read;
pub mod settings;

pub use modules::Modules;
pub use read::Faults;
pub use settings::{Leaving, Settings};

use std::path::Path;

use crate::parts::Failure;

/// Reads a config file, if one is given, with keys set over it, and checks all of it.
pub fn load(file: Option<&Path>, set: &[String]) -> Result<Settings, Faults> {
    let (name, text) = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Faults::unreadable(path, &e))?;
            (path.display().to_string(), text)
        }
        None => (String::new(), String::new()),
    };
    parse(&name, &text, set)
}

/// As [`load`], for a text that is at hand; `name` is what errors call the file.
pub fn parse(name: &str, text: &str, set: &[String]) -> Result<Settings, Faults> {
    let values = read::read(name, text, set)?;
    let faults = combinations::check(&values);
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    Settings::of(&values)
}

/// `rookery config check`: says that a file is good, or all that is wrong with it.
pub fn check(file: &Path, set: &[String]) -> Result<(), Failure> {
    load(Some(file), set)?;
    println!("{}: good", file.display());
    Ok(())
}

#[cfg(test)]
mod tests;

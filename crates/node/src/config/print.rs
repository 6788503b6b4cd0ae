//! The config file with every key, its default and its sentence, as `config/rookery.toml` is.

use std::{fmt::Write as _, io::Write as _};

use super::keys::{Fallback, KEYS, Key};
use crate::parts::Failure;

/// Width at which comments are broken.
const WIDTH: usize = 100;

/// `rookery config print-default`
pub fn run() -> Result<(), Failure> {
    std::io::stdout().write_all(default_file().as_bytes())?;
    Ok(())
}

/// The text of `config/rookery.toml`.
pub fn default_file() -> String {
    let mut out = String::from(
        "# Every key of Rookery, its default, and what it means.\n\
         # Made by `rookery config print-default`. A key that is commented out has no fixed default.\n",
    );
    let mut table = "";
    for key in KEYS {
        let (of, name) = split(key);
        // any key of [cluster] makes the node part of a cluster, so none is set here
        let hidden = of.starts_with("cluster");
        if of != table {
            let _ = writeln!(out, "\n{}[{of}]", if hidden { "# " } else { "" });
            table = of;
        } else {
            out.push('\n');
        }
        comment(&mut out, key.sentence);
        let _ = match key.fallback {
            Fallback::Is(value) if !hidden => writeln!(out, "{name} = {value}"),
            Fallback::Is(value) | Fallback::Unset(value) => writeln!(out, "# {name} = {value}"),
        };
    }
    modules(&mut out);
    out
}

/// The keys of the modules, as the modules tell them.
fn modules(out: &mut String) {
    let mut table = "";
    for key in xeps::ModulesConfig::keys() {
        if key.module != table {
            let _ = writeln!(out, "\n[modules.{}]", key.module);
            table = key.module;
        } else {
            out.push('\n');
        }
        comment(out, key.sentence);
        let _ = writeln!(out, "{} = {}", key.name, key.default);
    }
}

/// Table and name of a key; `discovery` is written as a dotted key of its table.
fn split(key: &Key) -> (&'static str, &'static str) {
    key.path.split_once('.').unwrap_or(("", key.path))
}

fn comment(out: &mut String, sentence: &str) {
    let mut line = String::from("#");
    for word in sentence.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

//! What a Rust file must say, and what it must not.

use crate::tree::{File, Tree};

/// Files whose first line does not say what they are.
pub fn first_lines(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust() {
        let first = file.text.lines().next().unwrap_or_default();
        if !first.starts_with("//! ") || first.len() < 20 {
            found.push(format!(
                "{}:1: the first line says in one sentence what the file is: `//! ...`",
                file.path
            ));
        }
    }
    found
}

/// Definitions in a `lib.rs`: it is a map of `//!`, `mod` and `pub use`.
pub fn definitions_in_roots(tree: &Tree) -> Vec<String> {
    const DEFINES: &[&str] = &[
        "fn ",
        "struct ",
        "enum ",
        "trait ",
        "impl ",
        "impl<",
        "const ",
        "static ",
        "type ",
        "macro_rules!",
        "union ",
    ];
    let mut found = Vec::new();
    // The root of `proto` is where generated code is let in.
    let roots = tree.rust().filter(|f| f.path.ends_with("lib.rs") && f.crate_name() != Some("proto"));
    for file in roots {
        for (line, text) in file.lines() {
            let bare = strip_visibility(text);
            if DEFINES.iter().any(|d| bare.starts_with(d)) {
                found.push(format!("{}:{line}: a crate root defines nothing: `{}`", file.path, text.trim()));
            }
        }
    }
    found
}

/// Unfinished work, ignored tests, tests that sleep.
pub fn forbidden_everywhere(tree: &Tree) -> Vec<String> {
    // Put together here, so that this file does not find itself.
    let words: Vec<(String, &str)> = vec![
        (["todo", "!("].concat(), "nothing is left for later"),
        (["unimplemented", "!("].concat(), "nothing is left for later"),
        (["#[", "ignore"].concat(), "a test runs or is removed"),
        (["dbg", "!("].concat(), "left over from a search"),
    ];
    let mut found = Vec::new();
    for file in tree.rust() {
        let tests_from = first_line_of_tests(file);
        // A paused clock makes a sleep an event that the test itself brings about.
        let virtual_time = file.text.contains("start_paused") || file.text.contains("time::pause()");
        for (line, text) in file.lines() {
            for (word, why) in &words {
                if text.contains(word.as_str()) {
                    found.push(format!("{}:{line}: `{word}`: {why}", file.path));
                }
            }
            let sleeps = text.contains(&["sleep", "("].concat()) && !text.trim_start().starts_with("//");
            if line >= tests_from && !virtual_time && sleeps && !text.contains(&["fn ", "sleep"].concat()) {
                found.push(format!(
                    "{}:{line}: a test awaits an event with a bound, it does not sleep",
                    file.path
                ));
            }
        }
    }
    found
}

/// Files of `xeps` that hold a module which `index.rs` does not list.
pub fn extensions_missing_in_index(tree: &Tree) -> Vec<String> {
    let Some(index) = tree.file("crates/xeps/src/index.rs") else {
        return vec!["crates/xeps/src/index.rs is missing: it lists the extensions".to_owned()];
    };
    let modules =
        tree.rust().filter(|f| f.path.starts_with("crates/xeps/src/") && f.text.contains("impl Module for "));
    let mut found = Vec::new();
    for file in modules {
        let below = file.path.trim_start_matches("crates/xeps/src/");
        let name = below.split('/').next().unwrap_or(below).trim_end_matches(".rs");
        if name != "index" && !index.text.contains(&format!("{name}::")) {
            found.push(format!("{}: holds a module, but index.rs has no line with `{name}::`", file.path));
        }
    }
    found
}

fn strip_visibility(line: &str) -> &str {
    let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("unsafe ").unwrap_or(line)
}

/// Where the tests of a file begin; past its end when it has none.
fn first_line_of_tests(file: &File) -> usize {
    let all_of_it =
        file.path.starts_with("tests/") || file.path.contains("/tests/") || file.path.ends_with("tests.rs");
    if all_of_it {
        return 1;
    }
    let gate = file.lines().find(|(_, text)| text.trim() == "#[cfg(test)]");
    gate.map_or(usize::MAX, |(line, _)| line)
}

//! Rules for what is not Rust: `/proto`, documents, the top level.

use crate::tree::{File, Tree};

/// What may stand at the top level.
const TOP: &[&str] = &[
    ".ci",
    ".gitignore",
    ".github",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "config",
    "crates",
    "deploy",
    "docs",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
];

/// Messages, fields, services and calls of `/proto` without a comment.
pub fn uncommented_proto(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path.starts_with("proto/") && f.path.ends_with(".proto")) {
        found.extend(uncommented(file));
    }
    found
}

/// Files and folders at the top level that the design does not name.
pub fn strangers_at_top(tree: &Tree) -> Vec<String> {
    let mut top: Vec<&str> = tree.files.iter().filter_map(|f| f.path.split('/').next()).collect();
    top.dedup();
    let strangers = top.into_iter().filter(|name| !TOP.contains(name));
    strangers.map(|name| format!("{name}: not a name of the top level; see docs/architecture.md")).collect()
}

/// Absolute paths that exist on one machine only.
pub fn machine_paths(tree: &Tree) -> Vec<String> {
    // Put together here, so that this file does not find itself.
    let homes: Vec<String> = ["work", "home", "root", "Users"].iter().map(|h| format!("/{h}/")).collect();
    let mut found = Vec::new();
    for file in &tree.files {
        for (line, text) in file.lines() {
            for home in &homes {
                let starts_a_path = text.match_indices(home.as_str()).any(|(at, _)| {
                    let before = text[..at].chars().next_back();
                    before.is_none_or(|c| c.is_whitespace() || "\"'`=(:".contains(c))
                });
                if starts_a_path {
                    found.push(format!("{}:{line}: names `{home}`, a path of one machine", file.path));
                }
            }
        }
    }
    found
}

/// Links in documents to files that are not there.
pub fn broken_links(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path.ends_with(".md")) {
        let folder = tree.root.join(&file.path).parent().expect("a file is in a folder").to_owned();
        for (line, text) in file.lines() {
            for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = target.split('#').next().unwrap_or_default();
                if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                if !folder.join(path).exists() {
                    found.push(format!("{}:{line}: links to `{target}`, which is not there", file.path));
                }
            }
        }
    }
    found
}

fn uncommented(file: &File) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = "";
    let mut depth = 0_usize;
    for (line, text) in file.lines() {
        let text = text.trim();
        let (code, comment) = text.split_once("//").map_or((text, None), |(code, c)| (code.trim(), Some(c)));
        let starts_block =
            ["message ", "enum ", "service ", "rpc ", "oneof "].iter().any(|w| code.starts_with(w));
        let is_field = depth > 0 && code.contains('=') && code.ends_with(';') && !code.starts_with("option ");
        let reserved = code.starts_with("reserved ");
        if (starts_block || is_field) && !reserved && comment.is_none() && !before.starts_with("//") {
            found.push(format!("{}:{line}: `{code}` has no comment", file.path));
        }
        depth = (depth + code.matches('{').count()).saturating_sub(code.matches('}').count());
        if !text.is_empty() {
            before = text;
        }
    }
    found
}

//! Which crate may use which, and which words a crate must never hold.

use toml_edit::{DocumentMut, Item};

use crate::tree::{File, Tree};

/// The house, bottom floor first: a crate and the crates of ours that it may use.
const FLOORS: &[(&str, &[&str])] = &[
    ("stanza", &[]),
    ("store", &[]),
    ("proto", &[]),
    ("stream", &["stanza"]),
    ("hooks", &["stanza", "store"]),
    ("cluster", &["stanza", "store", "proto"]),
    ("xeps", &["hooks", "stanza", "store"]),
    ("router", &["stanza", "hooks", "cluster", "proto"]),
    ("session", &["stanza", "stream", "hooks", "cluster", "router"]),
    ("node", &["stanza", "store", "proto", "stream", "hooks", "cluster", "xeps", "router", "session"]),
    ("bench", &[]),
];

/// Crates from outside that a floor must do without, and why.
const OUTSIDE_NEVER: &[(&str, &[&str], &str)] = &[
    ("stanza", &["tokio", "actix", "tonic"], "what travels knows no runtime"),
    (
        "stream",
        &["tokio", "tokio-rustls", "actix", "rustls", "rand"],
        "negotiation is pure: bytes in, acts out",
    ),
    ("store", &["jid", "minidom", "xmpp-parsers", "rxml"], "the store knows no XMPP types"),
    ("hooks", &["tokio", "actix", "tonic"], "the contract of modules knows no runtime"),
    (
        "xeps",
        &["tokio", "actix", "tonic", "openraft", "sled"],
        "a module reaches the server through hooks alone",
    ),
];

/// Crates from outside that one crate of ours may use, and nobody else.
const OUTSIDE_ONLY: &[(&str, &[&str], &str)] = &[
    ("sled", &["store"], "an engine is the store's affair"),
    ("openraft", &["cluster"], "agreement is the cluster's affair"),
    ("anyhow", &["node", "bench"], "libraries name their errors"),
    ("hdrhistogram", &["bench"], "the server's figures are those of its metrics"),
    ("indicatif", &["bench"], "a server has no terminal"),
];

/// A word that may stand in these files only (a prefix of the path), and why.
const WORDS: &[(&str, &[&str], &str)] = &[
    ("openraft::", &["crates/cluster/src/raft"], "the types of openraft stay inside cluster/raft"),
    (".do_send(", &[], "ignores the mailbox bound: use try_send"),
];

/// Dependencies that break the arrows of the house, and strangers in it.
pub fn upward(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let ours: Vec<&str> = FLOORS.iter().map(|(name, _)| *name).collect();
    for (name, manifest) in manifests(tree) {
        let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == name) else {
            found.push(format!("crates/{name}: no such crate in the house; see docs/architecture.md"));
            continue;
        };
        // A test may reach for any lower floor; the load generator is a stranger to all of them.
        let lower = ours.iter().take_while(|n| **n != name && name != "bench");
        for dependency in dependency_items(&manifest, &["dev-dependencies"]).into_iter().map(|(name, _)| name)
        {
            let of_ours = ours.contains(&dependency.as_str());
            if of_ours && dependency != name && !lower.clone().any(|n| *n == dependency) {
                found.push(format!("crates/{name}: its tests use `{dependency}`, which is no lower floor"));
            }
        }
        for dependency in dependencies(&manifest) {
            if ours.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                found.push(format!("crates/{name} uses `{dependency}`: this arrow does not run down"));
            }
            for (outside, only, why) in OUTSIDE_ONLY {
                if *outside == dependency && !only.contains(&name.as_str()) {
                    found.push(format!("crates/{name} uses `{dependency}`: {why}"));
                }
            }
            for (floor, never, why) in OUTSIDE_NEVER {
                if *floor == name && never.contains(&dependency.as_str()) {
                    found.push(format!("crates/{name} uses `{dependency}`: {why}"));
                }
            }
        }
    }
    for (floor, _) in FLOORS {
        if !tree.root.join("crates").join(floor).is_dir() {
            found.push(format!("crates/{floor} is missing"));
        }
    }
    found
}

/// Words that stand where they must not.
pub fn forbidden_words(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust().filter(|f| !f.path.starts_with("tests/tidy/")) {
        for (line, text) in file.lines().filter(|(_, text)| !is_comment(text)) {
            for (word, allowed, why) in WORDS {
                if text.contains(word) && !allowed.iter().any(|at| file.path.starts_with(at)) {
                    found.push(format!("{}:{line}: `{word}`: {why}", file.path));
                }
            }
            if is_clock_in_pure_code(file, text) {
                found.push(format!("{}:{line}: a pure machine gets its clock passed in", file.path));
            }
        }
    }
    found
}

/// Dependencies without a line in docs/dependencies.md, or declared outside the workspace's one list.
pub fn unexplained_dependencies(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let table = tree.file("docs/dependencies.md").map(|f| f.text.clone()).unwrap_or_default();
    let explained: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').next())
        .flat_map(|names| names.split(',').map(str::trim))
        .collect();
    for name in external(tree) {
        if !explained.contains(&name.as_str()) {
            found.push(format!("docs/dependencies.md does not say why `{name}` is here"));
        }
    }
    for file in tree.files.iter().filter(|f| f.path != "Cargo.toml" && f.path.ends_with("Cargo.toml")) {
        for (name, item) in
            dependency_items(&parse(file), &["dependencies", "dev-dependencies", "build-dependencies"])
        {
            let inherited = item.get("workspace").and_then(Item::as_bool).unwrap_or(false);
            if !inherited {
                found.push(format!("{}: `{name}` is not taken from [workspace.dependencies]", file.path));
            }
        }
    }
    found
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn is_clock_in_pure_code(file: &File, line: &str) -> bool {
    let pure = ["crates/stanza/src/", "crates/stream/src/", "crates/cluster/src/routes"];
    pure.iter().any(|p| file.path.starts_with(p))
        && (line.contains("Instant::now(") || line.contains("SystemTime::now("))
}

fn manifests(tree: &Tree) -> Vec<(String, DocumentMut)> {
    let manifests = tree.files.iter().filter(|f| f.path.ends_with("/Cargo.toml"));
    manifests.filter_map(|f| Some((f.crate_name()?.to_owned(), parse(f)))).collect()
}

fn parse(file: &File) -> DocumentMut {
    file.text.parse().unwrap_or_else(|e| panic!("failed to parse `{}`: {e}", file.path))
}

fn dependencies(manifest: &DocumentMut) -> Vec<String> {
    let tables = ["dependencies", "build-dependencies"];
    dependency_items(manifest, &tables).into_iter().map(|(name, _)| name).collect()
}

fn dependency_items(manifest: &DocumentMut, tables: &[&str]) -> Vec<(String, Item)> {
    let tables = tables.iter().filter_map(|t| manifest.get(t)?.as_table_like());
    tables.flat_map(|t| t.iter().map(|(name, item)| (name.to_owned(), item.clone()))).collect()
}

fn external(tree: &Tree) -> Vec<String> {
    let root = parse(tree.file("Cargo.toml").expect("the workspace has a manifest"));
    let table = root["workspace"]["dependencies"].as_table_like().expect("a list of dependencies");
    let external = table.iter().filter(|(_, item)| item.get("path").is_none());
    external.map(|(name, _)| name.to_owned()).collect()
}

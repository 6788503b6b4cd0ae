//! The pages that are made from the cards: `docs/xeps.md`, `docs/hooks.md`, `docs/doap.xml`.

use std::fmt::Write;

use hooks::{Card, Registry, Switches, Xep};

use crate::index::{ModulesConfig, modules};

/// A page and what it says.
pub struct Page {
    /// Under `docs/`.
    pub name: &'static str,
    pub text: String,
}

/// What each hook is for, in the order in which a stanza meets them.
const HOOKS: [(&str, &str); 14] = [
    ("Offering", "adds to the stream features"),
    ("Greeting", "answers requests in a namespace that it claimed, on a stream that nobody has logged in on"),
    ("Speaking", "takes elements on the stream that are no stanzas"),
    ("Leaving", "sees what a session sends, on the sender's side, before it is routed"),
    ("Arriving", "sees what comes for an account, on the receiver's side, before it is delivered"),
    ("Delivering", "sees each stanza that is about to be written to one session"),
    ("Holding", "says which stanzas can wait while nobody looks at a client"),
    ("Awaiting", "sees what comes for a session whose connection is lost and that waits for its client"),
    ("Answering", "answers requests in a namespace that it claimed, to a host or to an account"),
    ("Binding", "has a part in the binding of a session that is bound as a part of the login"),
    ("Vouching", "keeps tokens by which clients log in anew; one at most"),
    ("Following", "is told when sessions are bound, become available or unavailable, or end"),
    ("Moving", "keeps something about a session that goes along when it is resumed at another node"),
    ("Forgetting", "is told that an account is about to be removed"),
];

/// All pages, made from all modules with their default settings.
pub fn pages() -> Vec<Page> {
    let modules = modules(&ModulesConfig::all());
    let registry = match Registry::build(modules, &Switches::everywhere()) {
        Ok(registry) => registry,
        Err(clash) => unreachable!("the list of modules is a constant: {clash}"),
    };
    let cards = registry.cards("");
    vec![
        Page { name: "xeps.md", text: xeps(&cards) },
        Page { name: "hooks.md", text: hooks(&registry) },
        Page { name: "doap.xml", text: doap(&cards) },
        Page { name: "compliance.md", text: crate::compliance::page(&cards) },
    ]
}

/// Each specification with its module, by number.
fn by_number(cards: &[Card]) -> Vec<(&Xep, &Card)> {
    let mut all: Vec<_> =
        cards.iter().flat_map(|card| card.xeps.iter().map(move |xep| (xep, card))).collect();
    all.sort_by_key(|(xep, _)| xep.number);
    all
}

fn xeps(cards: &[Card]) -> String {
    let mut page = String::from(
        "# What Rookery's modules implement\n\n\
         Made from the modules' cards by the tests of the crate `xeps`: `ROOKERY_REGENERATE=1 cargo test -p xeps pages`.\n\n\
         ## Extensions\n\n| XEP | title | version | status | module |\n|---|---|---|---|---|\n",
    );
    for (xep, card) in by_number(cards) {
        let Xep { number, title, version, status } = xep;
        let link = format!("[XEP-{number:04}](https://xmpp.org/extensions/xep-{number:04}.html)");
        let _ = writeln!(page, "| {link} | {title} | {version} | {} | `{}` |", status.word(), card.name);
    }
    page.push_str("\n## Modules\n");
    for card in cards {
        let _ = write!(page, "\n### `{}`\n\n{}\n", card.name, card.sentence);
        for rfc in card.rfcs {
            let _ = write!(page, "\nImplements {rfc}.\n");
        }
        let features: Vec<String> = card.host_features.iter().map(|feature| format!("`{feature}`")).collect();
        if !features.is_empty() {
            let _ = write!(page, "\nAnnounced by the server: {}.\n", features.join(", "));
        }
        let _ = write!(page, "\n| `[modules.{}]` | default | meaning |\n|---|---|---|\n", card.name);
        for key in ModulesConfig::keys().into_iter().filter(|key| key.module == card.name) {
            let _ = writeln!(page, "| `{}` | `{}` | {} |", key.name, key.default, key.sentence);
        }
    }
    page
}

fn hooks(registry: &Registry) -> String {
    let mut page = String::from(
        "# Which module stands at which hook\n\n\
         Made from the list of modules by the tests of the crate `xeps`: `ROOKERY_REGENERATE=1 cargo test -p xeps pages`.\n\n\
         Handlers run from top to bottom: `Guard` may refuse, `Alter` may change, `Record` keeps, `Copy` sends \
         copies or reactions; within a step the order of `crates/xeps/src/index.rs`.\n",
    );
    let places = registry.places();
    for (hook, sentence) in HOOKS {
        let _ = write!(page, "\n## {hook}\n\nA module {sentence}.\n\n");
        let here: Vec<_> = places.iter().filter(|place| place.hook == hook).collect();
        if here.is_empty() {
            page.push_str("No module yet.\n");
            continue;
        }
        for place in here {
            let at = if place.at.is_empty() { String::new() } else { format!(": {}", place.at) };
            let _ = writeln!(page, "- `{}`{at}", place.module);
        }
    }
    page
}

/// DOAP with the XMPP vocabulary (XEP-0453).
fn doap(cards: &[Card]) -> String {
    let mut page = String::from(
        "<?xml version='1.0' encoding='UTF-8'?>\n\
         <rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://usefulinc.com/ns/doap#' \
         xmlns:xmpp='https://linkmauve.fr/ns/xmpp-doap#'>\n  <Project>\n    <name>Rookery</name>\n    \
         <shortdesc xml:lang='en'>A clustered, actor-based XMPP server</shortdesc>\n    \
         <programming-language>Rust</programming-language>\n    <os>Linux</os>\n    \
         <license rdf:resource='https://spdx.org/licenses/Apache-2.0'/>\n    \
         <category rdf:resource='https://linkmauve.fr/ns/xmpp-doap#category-server'/>\n    \
         <implements rdf:resource='https://xmpp.org/rfcs/rfc6120.html'/>\n    \
         <implements rdf:resource='https://xmpp.org/rfcs/rfc6121.html'/>\n",
    );
    let mut all: Vec<&Xep> = by_number(cards).into_iter().map(|(xep, _)| xep).collect();
    all.dedup_by_key(|xep| xep.number);
    for xep in all {
        let _ = write!(
            page,
            "    <implements>\n      <xmpp:SupportedXep>\n        \
             <xmpp:xep rdf:resource='https://xmpp.org/extensions/xep-{:04}.html'/>\n        \
             <xmpp:status>complete</xmpp:status>\n        <xmpp:version>{}</xmpp:version>\n      \
             </xmpp:SupportedXep>\n    </implements>\n",
            xep.number, xep.version
        );
    }
    page.push_str("  </Project>\n</rdf:RDF>\n");
    page
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_pages_are_those_that_the_cards_make() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let regenerate = std::env::var_os("ROOKERY_REGENERATE").is_some();
        for page in pages() {
            let path = docs.join(page.name);
            if regenerate {
                std::fs::write(&path, &page.text).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == page.text,
                "docs/{} is stale: run ROOKERY_REGENERATE=1 cargo test -p xeps pages",
                page.name
            );
        }
    }

    #[test]
    fn the_doap_file_is_xml() {
        let text = doap(&[]);
        let body = text.split_once("?>").unwrap().1.trim();
        assert!(stanza::dom::parse(body.as_bytes()).is_ok());
    }

    #[test]
    fn every_hook_of_a_module_is_on_the_page() {
        let registry = Registry::build(modules(&ModulesConfig::all()), &Switches::everywhere()).unwrap();
        for place in registry.places() {
            assert!(HOOKS.iter().any(|(hook, _)| *hook == place.hook), "{place:?}");
        }
    }
}

//! [XEP-0479]: XMPP Compliance Suites 2023. What a server of its suites has to do, where it is done, and which test shows it.
//!
//! [XEP-0479]: https://xmpp.org/extensions/xep-0479.html

use std::fmt::Write;

use hooks::Card;

/// Who asks for a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Of each server.
    Server,
    /// Of an advanced one alone.
    Advanced,
}

/// Whether it is done.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Shown by these stories, as they are called below `tests/stories`.
    Shown(&'static [&'static str]),
    /// Not yet, for this reason.
    Missing(&'static str),
}

use Level::{Advanced, Server};
use State::{Missing, Shown};

/// One line of the tables of section 2 that says something of servers.
struct Row {
    suite: &'static str,
    feature: &'static str,
    level: Level,
    /// Specifications that modules implement.
    xeps: &'static [u16],
    /// Those that the core of the server implements.
    core: &'static [&'static str],
    state: State,
}

const fn row(
    suite: &'static str,
    feature: &'static str,
    level: Level,
    xeps: &'static [u16],
    core: &'static [&'static str],
    state: State,
) -> Row {
    Row { suite, feature, level, xeps, core, state }
}

const ROOMS: &str = "rooms are still to come";

const ROWS: [Row; 21] = [
    row(
        "Core",
        "Core features",
        Server,
        &[],
        &["RFC 6120"],
        Shown(&[
            "login/every_mechanism_over_starttls",
            "core/a_second_bind_is_not_allowed",
            "malformed/an_undeclared_prefix_ends_the_stream",
        ]),
    ),
    row("Core", "TLS", Server, &[], &["RFC 7590"], Shown(&["login/a_login_without_tls_is_refused"])),
    row(
        "Core",
        "Direct TLS",
        Advanced,
        &[],
        &["XEP-0368"],
        Shown(&["login/every_mechanism_over_direct_tls"]),
    ),
    row("Core", "Feature discovery", Server, &[30], &[], Shown(&["iq/service_discovery"])),
    row(
        "Core",
        "Feature broadcasts",
        Advanced,
        &[115],
        &[],
        Shown(&["pep/contacts_and_own_devices_hear_of_what_interests_them"]),
    ),
    row("Core", "Server extensibility", Server, &[], &["XEP-0114"], Missing("components are still to come")),
    row(
        "Core",
        "Event publishing",
        Advanced,
        &[163],
        &[],
        Shown(&[
            "pep/a_new_contact_gets_what_was_published",
            "pep/the_last_item_comes_once_to_whoever_comes_online",
        ]),
    ),
    row(
        "IM",
        "Core features",
        Server,
        &[],
        &["RFC 6121"],
        Shown(&[
            "roster/a_change_is_pushed_to_every_interested_session",
            "subscription/both_ask_and_both_see",
            "presence/contacts_see_each_other_come_change_and_go",
            "message/to_a_bare_address_by_priority",
        ]),
    ),
    row(
        "IM",
        "User avatar compatibility",
        Advanced,
        &[398, 153],
        &[],
        Shown(&["pep/an_old_and_a_new_picture_are_the_same"]),
    ),
    row(
        "IM",
        "vcard-temp",
        Server,
        &[54],
        &[],
        Shown(&["vcard/contacts_see_a_vcard_and_its_owner_changes_it"]),
    ),
    row(
        "IM",
        "Outbound message synchronization",
        Server,
        &[280],
        &[],
        Shown(&["carbons/both_sides_of_a_conversation_reach_all_devices"]),
    ),
    row(
        "IM",
        "User blocking",
        Advanced,
        &[191],
        &[],
        Shown(&["blocking/a_blocked_contact_sees_me_offline_and_cannot_reach_me"]),
    ),
    row("IM", "Group chat", Server, &[], &["XEP-0045", "XEP-0249"], Missing(ROOMS)),
    row(
        "IM",
        "Advanced group chat: bookmarks",
        Advanced,
        &[48, 402],
        &[],
        Shown(&[
            "pep/old_and_new_clients_have_the_same_bookmarks",
            "pep/the_oldest_clients_have_the_same_bookmarks_too",
        ]),
    ),
    row(
        "IM",
        "Advanced group chat: rooms",
        Advanced,
        &[],
        &["XEP-0313 of rooms", "XEP-0410"],
        Missing(ROOMS),
    ),
    row(
        "IM",
        "Persistent storage of private data via PubSub",
        Advanced,
        &[223],
        &[],
        Shown(&["pep/bookmarks_are_kept_for_their_owner"]),
    ),
    row(
        "IM",
        "Private XML storage",
        Advanced,
        &[49],
        &[],
        Shown(&["private/what_is_kept_is_found_by_the_next_session"]),
    ),
    row(
        "IM",
        "History storage and retrieval",
        Advanced,
        &[313],
        &[],
        Shown(&["archive/both_sides_read_what_was_said"]),
    ),
    row("IM", "File upload", Server, &[], &["XEP-0363"], Missing("uploads are still to come")),
    row(
        "IM, Mobile",
        "Stream management",
        Server,
        &[198],
        &[],
        Shown(&[
            "management/a_session_survives_its_connection",
            "management/each_side_says_what_it_has_handled",
        ]),
    ),
    row(
        "Mobile",
        "Client state indication",
        Server,
        &[352],
        &[],
        Shown(&["csi/what_can_wait_waits_until_a_message_comes"]),
    ),
];

/// The row that is a part of the last suite alone.
const PUSH: Row = row(
    "Mobile",
    "Third party push notifications",
    Advanced,
    &[357],
    &[],
    Shown(&[
        "push/a_service_is_told_while_its_client_is_away",
        "push/a_client_whose_connection_is_lost_is_woken",
    ]),
);

fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain([&PUSH])
}

/// The page with all rows.
pub fn page(cards: &[Card]) -> String {
    let mut page = String::from(
        "# The compliance suites\n\n\
         What [XEP-0479](https://xmpp.org/extensions/xep-0479.html), version 0.1.0, asks of a server for chats and for \
         phones, at its level *Advanced*; what it asks of clients alone is left out. A test holds that every \
         specification is on the card of a module and every story is there. Made by the tests of the crate `xeps`: \
         `ROOKERY_REGENERATE=1 cargo test -p xeps pages`.\n\n\
         | suite | feature | of | specifications | where | shown by |\n|---|---|---|---|---|---|\n",
    );
    for row in rows() {
        let of = match row.level {
            Server => "each server",
            Advanced => "advanced",
        };
        let numbers = row.xeps.iter().map(|number| format!("XEP-{number:04}"));
        let specifications: Vec<String> =
            numbers.chain(row.core.iter().map(|name| (*name).to_owned())).collect();
        let modules: Vec<String> = cards
            .iter()
            .filter(|card| card.xeps.iter().any(|xep| row.xeps.contains(&xep.number)))
            .map(|card| format!("`{}`", card.name))
            .collect();
        let (place, shown) = match row.state {
            Missing(why) => ("-".to_owned(), format!("not yet: {why}")),
            Shown(stories) => {
                let place = if modules.is_empty() { "the core".to_owned() } else { modules.join(", ") };
                let link = |story: &&str| format!("[{story}](../tests/stories/{story}.xmpp)");
                (place, stories.iter().map(link).collect::<Vec<_>>().join(", "))
            }
        };
        let _ = writeln!(
            page,
            "| {} | {} | {of} | {} | {place} | {shown} |",
            row.suite,
            row.feature,
            specifications.join(", ")
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hooks::{Registry, Switches};

    use super::*;
    use crate::index::{ModulesConfig, modules};

    #[test]
    fn every_row_that_is_met_is_on_a_card_and_has_a_story() {
        let registry = Registry::build(modules(&ModulesConfig::all()), &Switches::everywhere()).unwrap();
        let cards = registry.cards("localhost");
        let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/stories");
        for row in rows() {
            assert!(!row.xeps.is_empty() || !row.core.is_empty(), "{}", row.feature);
            let Shown(shown) = row.state else { continue };
            assert!(!shown.is_empty(), "{}", row.feature);
            for number in row.xeps {
                let is_on = cards.iter().any(|card| card.xeps.iter().any(|xep| xep.number == *number));
                assert!(is_on, "{}: no module has XEP-{number:04} on its card", row.feature);
            }
            for story in shown {
                let file = stories.join(format!("{story}.xmpp"));
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                assert!(text.starts_with('#'), "{}: there is no story `{story}`", row.feature);
            }
        }
    }
}

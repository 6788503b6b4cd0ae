//! Against stale news: messages that match a rule are not kept for users who are away.
//!
//! A rule names whom they are from, a namespace of what is inside, a type, or several of these at a time. A message that
//! it matches reaches whoever is there as ever. Where nobody is, it goes past all that keeps messages, the archive too,
//! and its sender hears `service-unavailable`, as where nothing is kept (RFC 6121, 8.5.2.2.1): it can say it anew.
//! Strangers hear nothing, as from an account that does not exist (8.5.1): who may not see whether a user is there must
//! not learn it, or that there is such a user, by a message that was made to match. Whom a rule names is no stranger.

use std::sync::Arc;

use hooks::{Answer, Arriving, Card, Hooks, Module, Passage, Step, Verdict};
use jid::Jid;
use stanza::address::{self, same_account};
use stanza::{Kind, MessageType, Stanza};
use store::StoreError;
use toml_edit::Value;

use crate::failure::store_failed;
use crate::offline::keeps_messages;
use crate::rosters::Rosters;
use crate::settings::Setting;

const NAME: &str = "offline_filter";
/// What the metrics count.
const NOT_KEPT: &str = "not_kept";
/// The most rules: each message to a user who is away is held against all of them.
const RULES_MAX: usize = 100;

crate::settings! {
    /// `[modules.offline_filter]`
    pub struct Config {
        /// Which messages are not kept, at most 100 rules: `from` is an address, or a domain with all of its addresses, `namespace` one of an element in the message, `type` the type of the message, `normal` or `chat` (others are never kept). All that a rule says must be so, and one rule is enough.
        rules: Rules = Rules::default(),
    }
}

/// What messages are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// All that it says must be so; it says one thing at least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    from: Option<Jid>,
    namespace: Option<String>,
    type_: Option<MessageType>,
}

impl Setting for Rules {
    const EXPECTED: &'static str = "a list of at most 100 rules with `from`, `namespace` or `type`, as in [{ from = \"games.example.org\", type = \"normal\" }]";

    fn read(value: &Value) -> Option<Rules> {
        let rules: Option<Vec<Rule>> = value.as_array()?.iter().map(rule).collect();
        rules.filter(|rules| rules.len() <= RULES_MAX).map(Rules)
    }

    fn write(&self) -> String {
        let rule = |rule: &Rule| {
            let type_ = rule.type_.map(|type_| if type_ == MessageType::Chat { "chat" } else { "normal" });
            let said = [
                ("from", rule.from.as_ref().map(Jid::as_str)),
                ("namespace", rule.namespace.as_deref()),
                ("type", type_),
            ];
            let said = said.into_iter().filter_map(|(key, value)| Some(format!("{key} = {:?}", value?)));
            format!("{{ {} }}", said.collect::<Vec<_>>().join(", "))
        };
        format!("[{}]", self.0.iter().map(rule).collect::<Vec<_>>().join(", "))
    }
}

fn rule(value: &Value) -> Option<Rule> {
    let mut rule = Rule::default();
    for (key, value) in value.as_inline_table()?.iter() {
        let value = value.as_str().filter(|value| !value.is_empty())?;
        match key {
            "from" => rule.from = Some(address::jid(value).ok()?),
            "namespace" => rule.namespace = Some(value.to_owned()),
            "type" if value == "chat" => rule.type_ = Some(MessageType::Chat),
            "type" if value == "normal" => rule.type_ = Some(MessageType::Normal),
            _ => return None,
        }
    }
    // One that says nothing would match everything.
    (rule != Rule::default()).then_some(rule)
}

impl Rule {
    fn matches(&self, message: &Stanza) -> bool {
        let from = message.head.from.as_ref();
        self.from.as_ref().is_none_or(|wanted| from.is_some_and(|from| is_of(from, wanted)))
            && self.type_.is_none_or(|type_| message.message_type() == type_)
            && self.namespace.as_ref().is_none_or(|namespace| {
                message.dom().children().any(|child| child.has_ns(namespace.as_str()))
            })
    }
}

/// Whether an address is the one that a rule names, or belongs to the domain or account that it names.
fn is_of(from: &Jid, wanted: &Jid) -> bool {
    from.domain() == wanted.domain()
        && wanted.node().is_none_or(|node| from.node() == Some(node))
        && wanted.resource().is_none_or(|resource| from.resource() == Some(resource))
}

/// Marks what matches a rule.
pub struct OfflineFilter {
    config: Config,
    rosters: Arc<Rosters>,
}

impl OfflineFilter {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> OfflineFilter {
        OfflineFilter { config, rosters }
    }

    /// Whether its sender may learn that nobody is there.
    async fn may_know(&self, passage: &Passage) -> Result<bool, StoreError> {
        let (Some(from), Some(account)) = (&passage.stanza.head.from, &passage.account) else {
            return Ok(false);
        };
        let names = |rule: &Rule| rule.from.as_ref().is_some_and(|wanted| is_of(from, wanted));
        if same_account(from, account) || self.config.rules.0.iter().any(names) {
            return Ok(true);
        }
        Ok(self.rosters.of(&*passage.services, account).await?.lets_see(from))
    }
}

impl Module for OfflineFilter {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6121, section 8.5.2.2.1 (what the sender hears of a message that is not kept)"],
            ..Card::new(NAME, "Does not keep messages that match a rule for users who are away.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        // Before all that records: what is marked is not to be kept.
        hooks.arriving(Step::Alter, self);
    }
}

impl Arriving for OfflineFilter {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        if passage.stanza.head.kind != Kind::Message || !passage.offline {
            return Answer::PASS;
        }
        let may_be_kept = matches!(passage.stanza.message_type(), MessageType::Normal | MessageType::Chat);
        if !may_be_kept || !self.config.rules.0.iter().any(|rule| rule.matches(&passage.stanza)) {
            return Answer::PASS;
        }
        passage.services.count(NAME, NOT_KEPT);
        passage.fleeting = true;
        if !keeps_messages(&*passage.services, passage.host().unwrap_or_default()) {
            return Answer::PASS;
        }
        Answer::later(async move {
            match self.may_know(passage).await {
                Ok(true) => Verdict::Pass,
                Ok(false) => Verdict::Stop,
                Err(error) => Verdict::refuse(store_failed(NAME, &error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client, parse};
    use stanza::Condition;

    use super::*;
    use crate::index::{ModulesConfig, modules};
    use crate::roster::tests::friends;

    /// A server with that filter, archives, and all that is on by default.
    fn bench(rules: &str) -> Bench {
        let mut config = ModulesConfig::default();
        for (module, key, value) in [
            ("archive", "enabled", "true"),
            ("offline_filter", "enabled", "true"),
            ("offline_filter", "rules", rules),
        ] {
            config.set(module, key, &value.parse().unwrap()).unwrap();
        }
        Bench::new(&["localhost"], move || modules(&config))
    }

    fn rules(toml: &str) -> Option<Rules> {
        Rules::read(&toml.parse().unwrap())
    }

    const NEWS: &str = "<message to='bob@localhost' id='1' type='chat'><body>your move</body><move xmlns='urn:example:chess'/></message>";
    const TALK: &str = "<message to='bob@localhost' id='2' type='chat'><body>hi</body></message>";

    fn conditions(client: &Client) -> Vec<Condition> {
        client.hears_stanzas().iter().filter_map(|stanza| Some(stanza.as_error()?.condition)).collect()
    }

    /// The ids of the messages that the client hears of when it comes online.
    async fn waited(client: &Client) -> Vec<String> {
        client.send("<presence/>").await;
        let heard = client.hears_stanzas();
        let messages = heard.iter().filter(|stanza| stanza.head.kind == Kind::Message);
        messages.filter_map(|stanza| stanza.head.id.as_deref().map(str::to_owned)).collect()
    }

    #[test]
    fn what_matches_is_not_kept_and_a_contact_hears_so() {
        block_on(async {
            let bench = bench("[{ namespace = 'urn:example:chess' }]");
            let (alice, bob) = friends(&bench).await;
            alice.send(NEWS).await;
            assert!(bob.hears()[0].contains("your move"), "who is there gets it");
            bob.close().await;
            alice.hears();
            alice.send(NEWS).await;
            alice.send(TALK).await;
            assert_eq!(conditions(&alice), [Condition::ServiceUnavailable]);
            assert_eq!(bench.counted(NAME, NOT_KEPT), 1);
            let bob = bench.login("bob@localhost/phone").await;
            assert_eq!(waited(&bob).await, ["2"]);
            // Nor is it in the archive, which has what arrived and what waited.
            bob.send("<iq type='set' id='q'><query xmlns='urn:xmpp:mam:2'/></iq>").await;
            let archived = bob.hears().iter().filter(|heard| heard.contains("<forwarded")).count();
            assert_eq!(archived, 2);
        });
    }

    #[test]
    fn a_stranger_hears_no_more_than_of_an_account_that_is_not_there() {
        block_on(async {
            let bench = bench("[{ namespace = 'urn:example:chess' }]");
            let eve = bench.online("eve@localhost/phone").await;
            bench.account("bob@localhost");
            eve.send(NEWS).await;
            eve.send(&NEWS.replace("bob@", "nobody@")).await;
            assert!(eve.hears().is_empty());
            let bob = bench.login("bob@localhost/phone").await;
            assert!(waited(&bob).await.is_empty());
        });
    }

    #[test]
    fn where_nothing_is_kept_everybody_hears_so() {
        block_on(async {
            let config = Config { rules: rules("[{ type = 'chat' }]").unwrap() };
            let modules = move || -> Vec<Arc<dyn Module>> {
                vec![Arc::new(OfflineFilter::new(config.clone(), Arc::new(Rosters::new(Default::default()))))]
            };
            let bench = Bench::new(&["localhost"], modules);
            let eve = bench.online("eve@localhost/phone").await;
            bench.account("bob@localhost");
            eve.send(NEWS).await;
            assert_eq!(conditions(&eve), [Condition::ServiceUnavailable]);
        });
    }

    #[test]
    fn whom_a_rule_names_hears_that_nobody_is_there() {
        block_on(async {
            let bench = bench("[{ from = 'eve@localhost' }]");
            let eve = bench.online("eve@localhost/phone").await;
            let mallory = bench.online("mallory@localhost/phone").await;
            bench.account("bob@localhost");
            eve.send(TALK).await;
            mallory.send(TALK).await;
            assert_eq!(conditions(&eve), [Condition::ServiceUnavailable]);
            assert!(conditions(&mallory).is_empty());
            let bob = bench.login("bob@localhost/phone").await;
            assert_eq!(waited(&bob).await, ["2"], "only that of Mallory was kept");
        });
    }

    #[test]
    fn what_comes_back_from_a_session_that_went_is_not_kept() {
        block_on(async {
            let bench = bench("[{ type = 'chat' }]");
            let (alice, bob) = friends(&bench).await;
            let sent = parse(&NEWS.replace("<message ", "<message from='alice@localhost/phone' "));
            bob.close().await;
            alice.hears();
            // Past the handlers, to a session that has gone.
            bench.services().route(sent, hooks::How::Direct).await;
            assert_eq!(conditions(&alice), [Condition::ServiceUnavailable]);
        });
    }

    #[test]
    fn a_rule_wants_all_that_it_says() {
        let message =
            |attributes: &str, inside: &str| parse(&format!("<message {attributes}>{inside}</message>"));
        let chess = message("from='bot@games.example/x' type='chat'", "<move xmlns='urn:example:chess'/>");
        let talk = message("from='alice@localhost/x'", "<body>urn:example:chess</body>");
        for (rule, matches_chess, matches_talk) in [
            ("{ from = 'games.example' }", true, false),
            ("{ from = 'bot@games.example' }", true, false),
            ("{ from = 'bot@games.example/x' }", true, false),
            ("{ from = 'bot@games.example/y' }", false, false),
            ("{ from = 'example' }", false, false),
            ("{ namespace = 'urn:example:chess' }", true, false),
            ("{ type = 'chat' }", true, false),
            ("{ type = 'normal' }", false, true),
            ("{ from = 'games.example', type = 'normal' }", false, false),
            ("{ from = 'games.example', type = 'chat', namespace = 'urn:example:chess' }", true, false),
        ] {
            let rules = rules(&format!("[{rule}]")).unwrap();
            assert_eq!(rules.0[0].matches(&chess), matches_chess, "{rule}");
            assert_eq!(rules.0[0].matches(&talk), matches_talk, "{rule}");
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        let text =
            "[{ from = \"games.example\", namespace = \"urn:x\", type = \"chat\" }, { type = \"normal\" }]";
        for text in ["[]", text] {
            assert_eq!(rules(text).unwrap().write(), text);
        }
        let many = format!("[{}]", "{ type = 'chat' },".repeat(RULES_MAX + 1));
        for wrong in [
            "{}",
            "[{}]",
            "['a']",
            "[{ form = 'a' }]",
            "[{ from = 'a@b@c' }]",
            "[{ type = 'headline' }]",
            "[{ namespace = '' }]",
            &many,
        ] {
            assert_eq!(rules(wrong), None, "{wrong}");
        }
    }
}

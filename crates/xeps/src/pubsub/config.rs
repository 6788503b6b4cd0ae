//! How a node is configured (XEP-0060, 16.4.4): what the store keeps, and the fields of forms.

use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::StanzaError;

use super::errors;
use super::form::{self, Fields, truth, word};

pub const NODE_CONFIG: &str = "http://jabber.org/protocol/pubsub#node_config";
pub const PUBLISH_OPTIONS: &str = "http://jabber.org/protocol/pubsub#publish-options";
/// The longest word of a configuration, in bytes.
const WORD_BYTES_MAX: usize = 1_023;
/// The longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 4_096;
/// The most roster groups that a node names.
const GROUPS_MAX: usize = 50;

/// Names an enum's variants as forms do; new ones are added at the end, as the store keeps their place.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            pub const WORDS: &'static [&'static str] = &[$($text,)*];

            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            pub fn read(word: &str) -> Option<$name> {
                match word { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}
pub(super) use words;

words! {
    /// Who may subscribe and read (4.5).
    AccessModel {
        Open = "open",
        Presence = "presence",
        Roster = "roster",
        Authorize = "authorize",
        Whitelist = "whitelist",
    }
}

words! {
    /// Who may publish.
    PublishModel {
        Publishers = "publishers",
        Subscribers = "subscribers",
        Open = "open",
    }
}

words! {
    /// When a subscriber gets the last item without asking.
    SendLast {
        Never = "never",
        OnSub = "on_sub",
        OnSubAndPresence = "on_sub_and_presence",
    }
}

words! {
    /// Of which type the messages are.
    Style {
        Normal = "normal",
        Headline = "headline",
    }
}

/// How many items a node keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Count {
    /// As many as the server lets it.
    Max,
    Of(u32),
}

impl Count {
    /// The number where the server lets a node keep `max`.
    pub fn of(self, max: usize) -> usize {
        match self {
            Count::Max => max,
            Count::Of(count) => (count as usize).min(max),
        }
    }

    fn read(text: &str, max: usize) -> Option<Count> {
        match text {
            "max" => Some(Count::Max),
            number => match number.parse::<u32>().ok()? {
                0 => None,
                count if count as usize == max => Some(Count::Max),
                count if count as usize > max => None,
                count => Some(Count::Of(count)),
            },
        }
    }

    fn word(self) -> String {
        match self {
            Count::Max => "max".to_owned(),
            Count::Of(count) => count.to_string(),
        }
    }
}

/// The configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    pub title: String,
    pub description: String,
    pub language: String,
    /// The namespace of what is published.
    pub payload_type: String,
    pub access: AccessModel,
    pub groups: Vec<String>,
    pub publish: PublishModel,
    pub persist: bool,
    pub max_items: Count,
    /// Seconds; `None`: an item stays until it is removed.
    pub item_expire_s: Option<u64>,
    pub send_last: SendLast,
    pub style: Style,
    pub deliver_notifications: bool,
    pub deliver_payloads: bool,
    pub notify_config: bool,
    pub notify_delete: bool,
    pub notify_retract: bool,
    pub notify_sub: bool,
    pub subscribe: bool,
}

impl Default for NodeConfig {
    /// The defaults of personal eventing (XEP-0163, 2.4 and section 5).
    fn default() -> NodeConfig {
        NodeConfig {
            title: String::new(),
            description: String::new(),
            language: String::new(),
            payload_type: String::new(),
            access: AccessModel::Presence,
            groups: Vec::new(),
            publish: PublishModel::Publishers,
            persist: true,
            max_items: Count::Of(1),
            item_expire_s: None,
            send_last: SendLast::OnSubAndPresence,
            style: Style::Headline,
            deliver_notifications: true,
            deliver_payloads: true,
            notify_config: false,
            notify_delete: true,
            notify_retract: true,
            notify_sub: false,
            subscribe: true,
        }
    }
}

/// Why a field was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    /// There is no such field.
    Unknown,
    /// There is no such access model.
    AccessModel,
    /// The field has another kind of value.
    Value,
}

impl NodeConfig {
    fn set(&mut self, var: &str, values: &[String], items_max: usize) -> Result<(), Wrong> {
        let value = values.first().map(String::as_str).unwrap_or_default();
        let flag = || truth(value).ok_or(Wrong::Value);
        let text = |max: usize| match value.len() <= max {
            true => Ok(value.to_owned()),
            false => Err(Wrong::Value),
        };
        match var.strip_prefix("pubsub#").ok_or(Wrong::Unknown)? {
            "title" => self.title = text(WORD_BYTES_MAX)?,
            "description" => self.description = text(DESCRIPTION_BYTES_MAX)?,
            "language" => self.language = text(WORD_BYTES_MAX)?,
            "type" => self.payload_type = text(WORD_BYTES_MAX)?,
            "access_model" => self.access = AccessModel::read(value).ok_or(Wrong::AccessModel)?,
            "roster_groups_allowed" => {
                if values.len() > GROUPS_MAX || values.iter().any(|group| group.len() > WORD_BYTES_MAX) {
                    return Err(Wrong::Value);
                }
                self.groups = values.iter().filter(|group| !group.is_empty()).cloned().collect();
            }
            "publish_model" => self.publish = PublishModel::read(value).ok_or(Wrong::Value)?,
            "persist_items" => self.persist = flag()?,
            "max_items" => self.max_items = Count::read(value, items_max).ok_or(Wrong::Value)?,
            "item_expire" => {
                self.item_expire_s = match value {
                    "max" | "0" | "" => None,
                    number => Some(number.parse().map_err(|_| Wrong::Value)?),
                }
            }
            "send_last_published_item" => self.send_last = SendLast::read(value).ok_or(Wrong::Value)?,
            "notification_type" => self.style = Style::read(value).ok_or(Wrong::Value)?,
            "deliver_notifications" => self.deliver_notifications = flag()?,
            "deliver_payloads" => self.deliver_payloads = flag()?,
            "notify_config" => self.notify_config = flag()?,
            "notify_delete" => self.notify_delete = flag()?,
            "notify_retract" => self.notify_retract = flag()?,
            "notify_sub" => self.notify_sub = flag()?,
            "subscribe" => self.subscribe = flag()?,
            _ => return Err(Wrong::Unknown),
        }
        Ok(())
    }

    /// Takes what a form says; what it does not name stays, and fields that do not exist are passed over (XEP-0004, 3.2).
    pub fn submit(&mut self, fields: &Fields, items_max: usize) -> Result<(), StanzaError> {
        for (var, values) in &fields.0 {
            match self.set(var, values, items_max) {
                Ok(()) | Err(Wrong::Unknown) => {}
                Err(Wrong::AccessModel) => return Err(errors::unsupported_access_model()),
                Err(Wrong::Value) => {
                    return Err(errors::not_acceptable(&format!("`{var}` cannot have this value")));
                }
            }
        }
        Ok(())
    }

    /// Takes the options of a publication for a node that they make; one that is not known refuses it (7.1.5).
    pub fn options(&mut self, fields: &Fields, items_max: usize) -> Result<(), StanzaError> {
        for (var, values) in &fields.0 {
            self.set(var, values, items_max).map_err(|_| errors::precondition_not_met())?;
        }
        Ok(())
    }

    /// Whether the node is as the options of a publication want it.
    pub fn meets(&self, fields: &Fields, items_max: usize) -> Result<(), StanzaError> {
        let mut wanted = self.clone();
        wanted.options(fields, items_max)?;
        if &wanted == self { Ok(()) } else { Err(errors::precondition_not_met()) }
    }

    /// Of items published at `at_s`: whether they have had their time.
    pub fn is_over(&self, at_s: u64, now_s: u64) -> bool {
        self.item_expire_s.is_some_and(|expire| at_s.saturating_add(expire) <= now_s)
    }

    /// The fields in which a form of type `kind` shows the node.
    pub fn form(&self, kind: &str) -> Element {
        let asks = kind == "form";
        let typed = |name| asks.then_some(name);
        let text = |var, value: &str| {
            let values = Some(value).filter(|value| !value.is_empty());
            form::field(var, typed("text-single"), values)
        };
        let flag = |var, value| form::field(var, typed("boolean"), [word(value)]);
        let list = |var, value, words: &[&'static str]| {
            let field = form::field(var, typed("list-single"), [value]);
            if asks { form::with_options(field, words.iter().copied()) } else { field }
        };
        let expire = self.item_expire_s.map_or_else(|| "max".to_owned(), |seconds| seconds.to_string());
        let groups = self.groups.iter().map(String::as_str);
        let fields = [
            text("pubsub#title", &self.title),
            text("pubsub#description", &self.description),
            text("pubsub#language", &self.language),
            text("pubsub#type", &self.payload_type),
            list("pubsub#access_model", self.access.word(), AccessModel::WORDS),
            form::field("pubsub#roster_groups_allowed", typed("text-multi"), groups),
            list("pubsub#publish_model", self.publish.word(), PublishModel::WORDS),
            flag("pubsub#persist_items", self.persist),
            text("pubsub#max_items", &self.max_items.word()),
            text("pubsub#item_expire", &expire),
            list("pubsub#send_last_published_item", self.send_last.word(), SendLast::WORDS),
            list("pubsub#notification_type", self.style.word(), Style::WORDS),
            flag("pubsub#deliver_notifications", self.deliver_notifications),
            flag("pubsub#deliver_payloads", self.deliver_payloads),
            flag("pubsub#notify_config", self.notify_config),
            flag("pubsub#notify_delete", self.notify_delete),
            flag("pubsub#notify_retract", self.notify_retract),
            flag("pubsub#notify_sub", self.notify_sub),
            flag("pubsub#subscribe", self.subscribe),
        ];
        fields.into_iter().fold(form::form(kind, NODE_CONFIG), |form, field| {
            let mut form = form;
            form.append_child(field);
            form
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let field = |(var, value): &(&str, &str)| (format!("pubsub#{var}"), vec![value.to_string()]);
        Fields(list.iter().map(field).collect())
    }

    #[test]
    fn what_a_form_shows_is_what_it_sets() {
        let mut config = NodeConfig {
            title: "Moods".into(),
            description: "How I am".into(),
            access: AccessModel::Roster,
            groups: vec!["Friends".into(), "Family".into()],
            publish: PublishModel::Open,
            persist: false,
            max_items: Count::Of(7),
            item_expire_s: Some(60),
            send_last: SendLast::OnSub,
            style: Style::Normal,
            ..NodeConfig::default()
        };
        config.notify_config = true;
        for kind in ["form", "submit"] {
            let shown = config.form(kind).to_owned();
            let mut parent = Element::bare("configure", super::super::OWNER);
            let mut submitted = shown;
            submitted.set_attr(minidom::rxml::Namespace::NONE, "type".try_into().unwrap(), "submit");
            parent.append_child(submitted);
            let fields = Fields::read(&parent, NODE_CONFIG).unwrap().unwrap();
            let mut read = NodeConfig::default();
            read.submit(&fields, 100).unwrap();
            assert_eq!(read, config);
        }
    }

    #[test]
    fn max_is_the_servers_limit_in_every_spelling() {
        for (text, count) in [
            ("max", Some(Count::Max)),
            ("100", Some(Count::Max)),
            ("99", Some(Count::Of(99))),
            ("1", Some(Count::Of(1))),
            ("0", None),
            ("101", None),
            ("many", None),
            ("-1", None),
        ] {
            assert_eq!(Count::read(text, 100), count, "{text}");
        }
        assert_eq!((Count::Max.of(100), Count::Of(7).of(100), Count::Of(700).of(100)), (100, 7, 100));
    }

    #[test]
    fn preconditions_are_met_by_what_is_so_and_by_nothing_else() {
        let config = NodeConfig { max_items: Count::Max, ..NodeConfig::default() };
        for met in [
            &[][..],
            &[("access_model", "presence")],
            &[
                ("max_items", "max"),
                ("persist_items", "true"),
                ("send_last_published_item", "on_sub_and_presence"),
            ],
            &[("max_items", "100")],
        ] {
            assert_eq!(config.meets(&fields(met), 100), Ok(()), "{met:?}");
        }
        for unmet in [
            &[("access_model", "open")][..],
            &[("access_model", "presence"), ("max_items", "1")],
            &[("max_items", "101")],
            &[("unheard_of", "1")],
            &[("access_model", "other")],
        ] {
            assert_eq!(config.meets(&fields(unmet), 100), Err(errors::precondition_not_met()), "{unmet:?}");
        }
    }

    #[test]
    fn a_form_with_a_wrong_value_is_refused_and_an_unknown_field_is_not() {
        let mut config = NodeConfig::default();
        let refused = config.submit(&fields(&[("access_model", "friends")]), 100).unwrap_err();
        assert_eq!(refused, errors::unsupported_access_model());
        for wrong in [
            ("persist_items", "perhaps"),
            ("max_items", "101"),
            ("item_expire", "soon"),
            ("publish_model", "x"),
            ("send_last_published_item", "x"),
            ("notification_type", "chat"),
            ("title", &"x".repeat(WORD_BYTES_MAX + 1)),
        ] {
            let refused = config.submit(&fields(&[wrong]), 100).unwrap_err();
            assert_eq!(refused.condition, stanza::Condition::NotAcceptable, "{wrong:?}");
        }
        assert_eq!(config, NodeConfig::default());
        config.submit(&fields(&[("purge_offline", "0"), ("title", "x")]), 100).unwrap();
        assert_eq!(config.title, "x");
    }

    #[test]
    fn an_item_has_its_time() {
        let mut config = NodeConfig::default();
        assert!(!config.is_over(0, u64::MAX));
        config.item_expire_s = Some(10);
        assert!(!config.is_over(100, 109) && config.is_over(100, 110));
        assert!(!config.is_over(u64::MAX, u64::MAX - 1));
    }
}

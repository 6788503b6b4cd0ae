//! [XEP-0504]: Data Policy. A host says what becomes of the data of its users.
//!
//! All of it is the word of the operator: the server finds out nothing of it, and checks only that it can be said. Left
//! out: how data goes to other networks, and forms of further scopes, which are for gateways.
//!
//! [XEP-0504]: https://xmpp.org/extensions/xep-0504.html

use std::sync::Arc;

use hooks::{Card, Hooks, Module, Status, Xep};
use minidom::Element;
use toml_edit::Value;

use crate::disco::{Extends, uri};
use crate::forms;
use crate::settings::Setting;

const NAME: &str = "data_policy";
const NS: &str = "urn:xmpp:data-policy:0";
/// XEP-0504, "Authentication Data".
const AUTH_DATA: [&str; 4] = ["no_auth", "plain", "hidden", "restricted"];
/// XEP-0504, "Access Policy".
const ACCESS: [&str; 7] =
    ["admins", "moderators", "organization_member", "government", "advertisers", "partners", "none"];
/// What may stand in place of a number of hours.
const NO_HOURS: [&str; 2] = ["infinite", "unknown"];
/// The most lines that are said for people.
const LINES_MAX: usize = 50;
/// The longest of them, in bytes.
const LINE_MAX: usize = 1_000;

crate::settings! {
    /// `[modules.data_policy]`
    pub struct Config {
        /// What the service sees of passwords: `no_auth`, `plain` (all of it), `hidden` (none of it), `restricted` (a token alone); empty: nothing is said, as with all the following ones.
        auth_data: AuthData = AuthData::default(),
        /// For how many hours at most messages and files are kept, as `"720"`, or `infinite` or `unknown`.
        data_retention: Hours = Hours::default(),
        /// Whether users can delete what is kept of theirs.
        data_deletion: bool = false,
        /// Whether what is kept is encrypted.
        encryption_at_rest: bool = false,
        /// Where the terms of service stand, a URI.
        tos: Terms = Terms::default(),
        /// Whether users can take all their data elsewhere.
        data_export: bool = false,
        /// Who can reach the data of users, of `admins`, `moderators`, `organization_member`, `government`, `advertisers`, `partners`; or `none` alone.
        access_policy: Access = Access::default(),
        /// Whether users can erase their account and all that belongs to it.
        full_erasure: bool = false,
        /// How many hours lie between two backups at most; `"0"`: there are none.
        backup_frequency: Count = Count::default(),
        /// For how many hours at most backups are kept, or `infinite` or `unknown`.
        backup_retention: Hours = Hours::default(),
        /// What else people should know, line by line.
        extra_info: Lines = Lines::default(),
    }
}

/// A word of a list, or nothing.
fn word(value: &Value, of: &[&str]) -> Option<String> {
    let text = value.as_str()?;
    (text.is_empty() || of.contains(&text)).then(|| text.to_owned())
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|number| number.to_string() == text)
}

/// What the service sees of passwords.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthData(String);

impl Setting for AuthData {
    const EXPECTED: &'static str = "`no_auth`, `plain`, `hidden`, `restricted` or nothing, as in \"hidden\"";

    fn read(value: &Value) -> Option<AuthData> {
        word(value, &AUTH_DATA).map(AuthData)
    }

    fn write(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// For how long something is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hours(String);

impl Setting for Hours {
    const EXPECTED: &'static str =
        "a whole number of hours, `infinite`, `unknown` or nothing, in quotes as in \"720\"";

    fn read(value: &Value) -> Option<Hours> {
        let number = value.as_str().filter(|text| is_number(text));
        number.map(str::to_owned).or_else(|| word(value, &NO_HOURS)).map(Hours)
    }

    fn write(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// How many hours something takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count(String);

impl Setting for Count {
    const EXPECTED: &'static str = "a whole number of hours or nothing, in quotes as in \"24\"";

    fn read(value: &Value) -> Option<Count> {
        let text = value.as_str()?;
        (text.is_empty() || is_number(text)).then(|| Count(text.to_owned()))
    }

    fn write(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Where the terms of service stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms(String);

impl Setting for Terms {
    const EXPECTED: &'static str = "a URI or nothing, as in \"https://example.org/terms\"";

    fn read(value: &Value) -> Option<Terms> {
        let text = value.as_str()?;
        if text.is_empty() { Some(Terms::default()) } else { uri(text).map(Terms) }
    }

    fn write(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Who can reach the data of users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access(Vec<String>);

impl Setting for Access {
    const EXPECTED: &'static str = "a list of `admins`, `moderators`, `organization_member`, `government`, \
        `advertisers` and `partners`, or of `none` alone, as in [\"admins\"]";

    fn read(value: &Value) -> Option<Access> {
        let who: Option<Vec<String>> = value
            .as_array()?
            .iter()
            .map(|item| word(item, &ACCESS).filter(|word| !word.is_empty()))
            .collect();
        let who = who?;
        let is_contradiction = who.len() > 1 && who.iter().any(|word| word == "none");
        (!is_contradiction).then_some(Access(who))
    }

    fn write(&self) -> String {
        self.0.write()
    }
}

/// Something for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(Vec<String>);

impl Setting for Lines {
    const EXPECTED: &'static str =
        "a list of at most 50 lines of at most 1000 bytes, as in [\"The servers stand in Bern.\"]";

    fn read(value: &Value) -> Option<Lines> {
        let line = |item: &Value| {
            let is_line = |text: &&str| text.len() <= LINE_MAX && !text.contains(char::is_control);
            item.as_str().filter(is_line).map(str::to_owned)
        };
        let lines: Option<Vec<String>> = value.as_array()?.iter().map(line).collect();
        lines.filter(|lines| lines.len() <= LINES_MAX).map(Lines)
    }

    fn write(&self) -> String {
        self.0.write()
    }
}

/// Says what the operator says of the data of users.
pub struct DataPolicy {
    config: Config,
}

impl DataPolicy {
    pub fn new(config: Config) -> DataPolicy {
        DataPolicy { config }
    }
}

impl Module for DataPolicy {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 504,
                title: "Data Policy",
                version: "0.1.0",
                status: Status::Experimental,
            }],
            ..Card::new(
                NAME,
                "Says what becomes of the data of users, in the words of the operator; needs `disco`.",
            )
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

impl Extends for DataPolicy {
    fn module(&self) -> &'static str {
        NAME
    }

    fn form(&self) -> Element {
        let said = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
        let is_so = |so: bool| vec![so.to_string()];
        let Config { auth_data, data_retention, tos, access_policy, .. } = &self.config;
        let Config { data_deletion, encryption_at_rest, data_export, full_erasure, .. } = self.config;
        let Config { backup_frequency, backup_retention, extra_info, .. } = &self.config;
        let fields = [
            ("auth_data", "list-single", said(&auth_data.0)),
            ("data_retention", "text-single", said(&data_retention.0)),
            ("data_deletion", "boolean", is_so(data_deletion)),
            ("encryption_at_rest", "boolean", is_so(encryption_at_rest)),
            ("tos", "text-single", said(&tos.0)),
            ("data_export", "boolean", is_so(data_export)),
            ("access_policy", "list-multi", access_policy.0.clone()),
            ("full_erasure", "boolean", is_so(full_erasure)),
            ("backup_frequency", "text-single", said(&backup_frequency.0)),
            ("backup_retention", "text-single", said(&backup_retention.0)),
            ("extra_info", "text-multi", extra_info.0.clone()),
        ];
        forms::typed_result(NS, fields.into_iter().filter(|(_, _, values)| !values.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<S: Setting>(toml: &str) -> Option<S> {
        S::read(&toml.parse().unwrap())
    }

    #[test]
    fn what_is_not_said_has_no_field() {
        let config = Config {
            auth_data: read("'hidden'").unwrap(),
            access_policy: read("['admins', 'government']").unwrap(),
            full_erasure: true,
            ..Config::default()
        };
        let form = DataPolicy::new(config).form();
        let fields: Vec<(String, String, Vec<String>)> = form
            .children()
            .map(|field| {
                let attr = |name| field.attr(name).unwrap_or_default().to_owned();
                (attr("var"), attr("type"), field.children().map(Element::text).collect())
            })
            .collect();
        let wanted: [(&str, &str, &[&str]); 7] = [
            ("FORM_TYPE", "hidden", &[NS]),
            ("auth_data", "list-single", &["hidden"]),
            ("data_deletion", "boolean", &["false"]),
            ("encryption_at_rest", "boolean", &["false"]),
            ("data_export", "boolean", &["false"]),
            ("access_policy", "list-multi", &["admins", "government"]),
            ("full_erasure", "boolean", &["true"]),
        ];
        let wanted = wanted.map(|(var, kind, values)| {
            (var.to_owned(), kind.to_owned(), values.iter().map(|value| value.to_string()).collect())
        });
        assert_eq!(fields, wanted);
    }

    #[test]
    fn what_cannot_be_said_is_no_setting() {
        for wrong in ["'none'", "1", "['plain']"] {
            assert_eq!(read::<AuthData>(wrong), None, "{wrong}");
        }
        for wrong in ["'-1'", "'1.5'", "'01'", "'a week'", "720", "'4294967296'"] {
            assert_eq!(read::<Hours>(wrong), None, "{wrong}");
            assert_eq!(read::<Count>(wrong), None, "{wrong}");
        }
        assert_eq!(read::<Count>("'infinite'"), None);
        for wrong in ["'example.org'", "'https://a b'", "1"] {
            assert_eq!(read::<Terms>(wrong), None, "{wrong}");
        }
        for wrong in ["'admins'", "['']", "['everybody']", "['none', 'admins']", "[1]"] {
            assert_eq!(read::<Access>(wrong), None, "{wrong}");
        }
        let long = format!("['{}']", "x".repeat(LINE_MAX + 1));
        let many = format!("[{}]", "'x', ".repeat(LINES_MAX + 1));
        for wrong in ["'x'", "[\"a\\nb\"]", &long, &many] {
            assert_eq!(read::<Lines>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_read_is_written() {
        let same = |toml: &str, written: Option<String>| assert_eq!(written.as_deref(), Some(toml));
        same("\"hidden\"", read::<AuthData>("\"hidden\"").map(|it| it.write()));
        same("\"720\"", read::<Hours>("\"720\"").map(|it| it.write()));
        same("\"unknown\"", read::<Hours>("\"unknown\"").map(|it| it.write()));
        same("\"0\"", read::<Count>("\"0\"").map(|it| it.write()));
        same("\"https://a/b\"", read::<Terms>("\"https://a/b\"").map(|it| it.write()));
        same("[\"none\"]", read::<Access>("[\"none\"]").map(|it| it.write()));
        same("[\"a\", \"b\"]", read::<Lines>("[\"a\", \"b\"]").map(|it| it.write()));
    }
}

//! What a client asks for beside its login (XEP-0388, 2.3), as it stands in `<authenticate/>`.

use minidom::Element;
use stanza::Condition;

use crate::features::{self, BIND2, FAST, SASL2, UPGRADE};
use crate::management::{self, Resume};
use crate::sasl::token::Said;
use crate::sasl::{ScramHash, TokenBinding};

/// Longest tag of a client that becomes a part of its resource, in bytes.
const TAG_MAX: usize = 256;

/// All that stands in `<authenticate/>` beside the first message of the mechanism.
#[derive(Debug, Default)]
pub struct Wish {
    /// The client itself: a random UUID that it keeps, in lower case.
    pub client: Option<Box<str>>,
    /// It has an id that is none.
    pub is_malformed: bool,
    /// The session that it wants to go on with, or what is wrong with how it says so.
    pub resume: Option<Result<Resume, Condition>>,
    pub bind: Option<Bind>,
    /// What it says of the token that it comes by (XEP-0484).
    pub fast: Option<Said>,
    /// What a token for it is to be bound to.
    pub request: Option<TokenBinding>,
    /// What it would give the server to make keys of (XEP-0480), each hash once.
    pub upgrades: Vec<ScramHash>,
}

/// The wish to be bound (XEP-0386, 3.2).
#[derive(Debug, Default)]
pub struct Bind {
    /// What the resource is to begin with.
    pub tag: Option<String>,
    /// What is to be enabled, in namespaces of other extensions.
    pub asked: Vec<Element>,
}

impl Wish {
    /// Reads `<authenticate/>`. What nobody here knows is passed over.
    pub fn read(authenticate: &Element) -> Wish {
        let mut wish = Wish::default();
        for child in authenticate.children() {
            if child.is("user-agent", SASL2) {
                let id = child.attr("id");
                wish.client = id.and_then(uuid);
                wish.is_malformed = id.is_some() && wish.client.is_none();
            } else if child.is("resume", management::NS) {
                wish.resume = Some(match management::Said::read(child) {
                    Ok(management::Said::Resume(resume)) => Ok(resume),
                    Ok(_) => Err(Condition::BadRequest),
                    Err(condition) => Err(condition),
                });
            } else if child.is("bind", BIND2) {
                wish.bind = Some(Bind::read(child));
            } else if child.is("fast", FAST) {
                wish.fast = Some(Said {
                    count: child.attr("count").and_then(|count| count.trim().parse().ok()),
                    invalidate: matches!(child.attr("invalidate").map(str::trim), Some("1" | "true")),
                });
            } else if child.is("request-token", FAST) {
                wish.request = child.attr("mechanism").and_then(TokenBinding::from_mechanism);
            } else if child.is("upgrade", UPGRADE)
                && let Some(hash) = features::upgrade_of(child.text().trim())
                && !wish.upgrades.contains(&hash)
            {
                wish.upgrades.push(hash);
            }
        }
        wish
    }
}

impl Bind {
    fn read(bind: &Element) -> Bind {
        let tag = bind.get_child("tag", BIND2).map(|tag| tag.text().trim().to_owned());
        Bind {
            tag: tag.filter(|tag| !tag.is_empty() && tag.len() <= TAG_MAX),
            asked: bind.children().filter(|child| !child.has_ns(BIND2)).cloned().collect(),
        }
    }
}

/// A UUID in its usual form (RFC 9562, 4), in lower case. Another id is none: it may not be unique.
fn uuid(text: &str) -> Option<Box<str>> {
    let text = text.trim();
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    is_uuid.then(|| text.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stanza::dom;

    fn read(inside: &str) -> Wish {
        let xml = format!("<authenticate xmlns='{SASL2}' mechanism='PLAIN'>{inside}</authenticate>");
        Wish::read(&dom::parse(xml.as_bytes()).unwrap())
    }

    #[test]
    fn a_client_is_known_by_a_uuid_alone() {
        let id = "d4565fa7-4d72-4749-b3d3-740edbf87770";
        for (said, known) in [
            (id, Some(id)),
            (&id.to_uppercase(), Some(id)),
            ("", None),
            ("phone", None),
            ("d4565fa7-4d72-4749-b3d3-740edbf8777", None),
            ("d4565fa7-4d72-4749-b3d3-740edbf8777x", None),
            ("d4565fa7x4d72-4749-b3d3-740edbf87770", None),
        ] {
            let wish =
                read(&format!("<user-agent id='{said}'><software>AwesomeXMPP</software></user-agent>"));
            assert_eq!(wish.client.as_deref(), known, "{said}");
            assert_eq!(wish.is_malformed, known.is_none(), "{said}");
        }
        let without = read("<user-agent/>");
        assert!(without.client.is_none() && !without.is_malformed);
    }

    #[test]
    fn what_is_asked_with_a_bind_is_what_other_extensions_know() {
        let wish = read(
            "<bind xmlns='urn:xmpp:bind:0'><tag> AwesomeXMPP </tag><enable xmlns='urn:xmpp:carbons:2'/>\
             <other/><inactive xmlns='urn:xmpp:csi:0'/></bind>",
        );
        let bind = wish.bind.unwrap();
        assert_eq!(bind.tag.as_deref(), Some("AwesomeXMPP"));
        let asked: Vec<&str> = bind.asked.iter().map(Element::name).collect();
        assert_eq!(asked, ["enable", "inactive"]);
        for tag in ["", " ", &"x".repeat(TAG_MAX + 1)] {
            let wish = read(&format!("<bind xmlns='urn:xmpp:bind:0'><tag>{tag}</tag></bind>"));
            assert_eq!(wish.bind.unwrap().tag, None);
        }
    }

    #[test]
    fn upgrades_are_asked_for_by_names_that_are_known() {
        let upgrade = |name: &str| format!("<upgrade xmlns='urn:xmpp:sasl:upgrade:0'>{name}</upgrade>");
        let names = [" UPGR-SCRAM-SHA-512 ", "UPGR-BLOOP2", "", "UPGR-SCRAM-SHA-1", "UPGR-SCRAM-SHA-512"];
        let wish = read(&names.map(upgrade).concat());
        assert_eq!(wish.upgrades, [ScramHash::Sha512, ScramHash::Sha1]);
        for none in ["UPGR-SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "UPGR-", "UPGR-PLAIN", "upgr-scram-sha-1"] {
            assert_eq!(read(&upgrade(none)).upgrades, [], "{none}");
        }
        assert_eq!(read("<upgrade xmlns='urn:other'>UPGR-SCRAM-SHA-1</upgrade>").upgrades, []);
    }

    #[test]
    fn a_resumption_that_cannot_be_read_is_remembered_as_one() {
        let resume = |attributes: &str| read(&format!("<resume xmlns='urn:xmpp:sm:3' {attributes}/>")).resume;
        let good = Resume { id: "124".to_owned(), handled: 345 };
        assert_eq!(resume("h='345' previd='124'"), Some(Ok(good)));
        assert_eq!(resume("previd='124'"), Some(Err(Condition::BadRequest)));
        assert_eq!(read("<enable xmlns='urn:xmpp:sm:3'/>").resume, None);
    }
}

//! The elements of negotiation: features, STARTTLS, SASL and binding as they stand on the wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minidom::Element;
use stanza::{FullJid, dom, ns};

use crate::management;
use crate::negotiation::Inline;
use crate::sasl::{MechanismName, SaslCondition, ScramHash, TokenBinding};

/// Namespace of stream compression (XEP-0138), which is never offered.
pub const COMPRESS: &str = "http://jabber.org/protocol/compress";

/// `<starttls/>`, with `<required/>` where nothing goes on without it (RFC 6120, 5.4.1).
pub fn starttls(required: bool) -> Element {
    let mut feature = Element::bare("starttls", ns::TLS);
    if required {
        feature.append_child(Element::bare("required", ns::TLS));
    }
    feature
}

/// `<mechanisms/>` (RFC 6120, 6.4.1).
pub fn mechanisms(names: &[MechanismName]) -> Element {
    let mut feature = Element::bare("mechanisms", ns::SASL);
    for name in names {
        feature.append_child(text_element("mechanism", ns::SASL, name.as_str()));
    }
    feature
}

/// Namespace of the announcement of channel bindings (XEP-0440).
pub const CHANNEL_BINDING: &str = "urn:xmpp:sasl-cb:0";

/// `<sasl-channel-binding/>` (XEP-0440, 2), where there is anything to bind to.
pub fn channel_bindings(types: &[&str]) -> Option<Element> {
    if types.is_empty() {
        return None;
    }
    let mut feature = Element::bare("sasl-channel-binding", CHANNEL_BINDING);
    for name in types {
        let mut binding = Element::bare("channel-binding", CHANNEL_BINDING);
        set(&mut binding, "type", name);
        feature.append_child(binding);
    }
    Some(feature)
}

/// Namespace of the extensible profile (XEP-0388).
pub const SASL2: &str = "urn:xmpp:sasl:2";
/// Namespace of Bind 2 (XEP-0386).
pub const BIND2: &str = "urn:xmpp:bind:0";
/// Namespace of tokens (XEP-0484).
pub const FAST: &str = "urn:xmpp:fast:0";

/// Namespace of the names of upgrades (XEP-0480).
pub const UPGRADE: &str = "urn:xmpp:sasl:upgrade:0";
/// Namespace of what is said in one of SCRAM (XEP-0480, 3).
pub const SCRAM_UPGRADE: &str = "urn:xmpp:scram-upgrade:0";
/// What the name of an upgrade begins with.
const TASK: &str = "UPGR-";

/// The name of the upgrade to keys of a hash (XEP-0480, 2.1).
pub fn upgrade_task(hash: ScramHash) -> String {
    format!("{TASK}{}", MechanismName::Scram(hash).as_str())
}

/// The hash that an upgrade of this name is to; `None`: there is no such upgrade.
pub fn upgrade_of(task: &str) -> Option<ScramHash> {
    let name = task.strip_prefix(TASK)?;
    ScramHash::ALL.into_iter().find(|hash| MechanismName::Scram(*hash).as_str() == name)
}

/// `<continue/>` with one task (XEP-0388, 2.6.3), and the last word of the mechanism where it was not said.
pub fn sasl2_continue(task: &str, data: Option<&[u8]>) -> Element {
    let mut element = Element::bare("continue", SASL2);
    if let Some(data) = data {
        element.append_child(sasl2("additional-data", Some(data)));
    }
    let mut tasks = Element::bare("tasks", SASL2);
    tasks.append_child(text_element("task", SASL2, task));
    element.append_child(tasks);
    element
}

/// `<task-data/>` with what a client needs to salt its password (XEP-0480, 3).
pub fn upgrade_salt(salt: &[u8], iterations: u32) -> Element {
    let mut element = text_element("salt", SCRAM_UPGRADE, &BASE64.encode(salt));
    set(&mut element, "iterations", &iterations.to_string());
    let mut data = Element::bare("task-data", SASL2);
    data.append_child(element);
    data
}

/// `<authentication/>` (XEP-0388, 2.1), with all that can be asked for beside the login.
pub fn authentication(
    names: &[MechanismName],
    inline: &Inline,
    tokens: &[TokenBinding],
    upgrades: &[ScramHash],
) -> Element {
    let mut feature = Element::bare("authentication", SASL2);
    for name in names {
        feature.append_child(text_element("mechanism", SASL2, name.as_str()));
    }
    let mut beside = Element::bare("inline", SASL2);
    if let Some(vars) = &inline.bind {
        // XEP-0386, 3.1
        let mut features = Element::bare("inline", BIND2);
        for var in vars {
            let mut feature = Element::bare("feature", BIND2);
            set(&mut feature, "var", var);
            features.append_child(feature);
        }
        let mut bind = Element::bare("bind", BIND2);
        bind.append_child(features);
        beside.append_child(bind);
    }
    if inline.resume {
        beside.append_child(management::feature());
    }
    if !tokens.is_empty() {
        // XEP-0484, 3.1
        let mut fast = Element::bare("fast", FAST);
        for binding in tokens {
            fast.append_child(text_element("mechanism", FAST, MechanismName::Token(*binding).as_str()));
        }
        beside.append_child(fast);
    }
    feature.append_child(beside);
    for hash in upgrades {
        feature.append_child(text_element("upgrade", UPGRADE, &upgrade_task(*hash)));
    }
    feature
}

/// `<token/>` (XEP-0484, 3.3).
pub fn fast_token(token: &str, expiry: &str) -> Element {
    let mut element = Element::bare("token", FAST);
    set(&mut element, "token", token);
    set(&mut element, "expiry", expiry);
    element
}

/// `<challenge/>` of XEP-0388, or another element of it with base64 in it; no payload is no text (2.2).
pub fn sasl2(name: &str, payload: Option<&[u8]>) -> Element {
    match payload {
        None | Some([]) => Element::bare(name, SASL2),
        Some(payload) => text_element(name, SASL2, &BASE64.encode(payload)),
    }
}

/// The payload of such an element. White space around it is passed over, as the examples have it.
pub fn sasl2_payload(element: &Element) -> Result<Vec<u8>, SaslCondition> {
    BASE64.decode(element.text().trim()).map_err(|_| SaslCondition::IncorrectEncoding)
}

/// `<failure/>` (XEP-0388, 2.6.2).
pub fn sasl2_failure(condition: SaslCondition) -> Element {
    let mut failure = Element::bare("failure", SASL2);
    failure.append_child(Element::bare(condition.tag(), ns::SASL));
    if let Some(text) = condition.text() {
        failure.append_child(text_element("text", SASL2, text));
    }
    failure
}

/// `<bind/>` (RFC 6120, 7.4).
pub fn bind() -> Element {
    Element::bare("bind", ns::BIND)
}

/// The session of RFC 3921, which a client may skip.
pub fn session() -> Element {
    let mut feature = Element::bare("session", ns::SESSION);
    feature.append_child(Element::bare("optional", ns::SESSION));
    feature
}

/// The payload of the answer to a bind request (RFC 6120, 7.6.1).
pub fn bound(jid: &FullJid) -> Element {
    let mut payload = bind();
    payload.append_child(text_element("jid", ns::BIND, jid.as_str()));
    payload
}

/// `<challenge/>`, `<success/>`, `<auth/>` or `<response/>` with its payload (RFC 6120, 6.4).
pub fn sasl(name: &str, payload: Option<&[u8]>) -> Element {
    match payload {
        None => Element::bare(name, ns::SASL),
        // RFC 6120, 6.4.2 and 6.4.6: `=` is a payload of no bytes.
        Some([]) if matches!(name, "auth" | "success") => text_element(name, ns::SASL, "="),
        Some([]) => Element::bare(name, ns::SASL),
        Some(payload) => text_element(name, ns::SASL, &BASE64.encode(payload)),
    }
}

/// The payload of such an element: `None` where it has none.
pub fn sasl_payload(element: &Element) -> Result<Option<Vec<u8>>, SaslCondition> {
    match element.text().as_str() {
        "" => Ok(None),
        "=" => Ok(Some(Vec::new())),
        text => BASE64.decode(text).map(Some).map_err(|_| SaslCondition::IncorrectEncoding),
    }
}

/// `<failure/>` of SASL.
pub fn sasl_failure(condition: SaslCondition) -> Element {
    let mut failure = Element::bare("failure", ns::SASL);
    failure.append_child(Element::bare(condition.tag(), ns::SASL));
    if let Some(text) = condition.text() {
        let mut text = text_element("text", ns::SASL, text);
        if let Some(lang) = dom::attribute_name("lang") {
            text.set_attr(rxml::Namespace::XML, lang, "en");
        }
        failure.append_child(text);
    }
    failure
}

/// `<proceed/>` or `<failure/>` of STARTTLS.
pub fn tls(name: &str) -> Element {
    Element::bare(name, ns::TLS)
}

/// The answer to `<compress/>`: no method is supported.
pub fn compress_failure() -> Element {
    let mut failure = Element::bare("failure", COMPRESS);
    failure.append_child(Element::bare("unsupported-method", COMPRESS));
    failure
}

/// An element with text in it.
pub fn text_element(name: &str, uri: &str, text: &str) -> Element {
    let mut element = Element::bare(name, uri);
    element.append_text_node(text);
    element
}

/// Sets a plain attribute; the name is one of ours and an XML name.
pub(crate) fn set(element: &mut Element, name: &str, value: &str) {
    if let Some(name) = dom::attribute_name(name) {
        element.set_attr(rxml::Namespace::NONE, name, value);
    }
}

//! How items and what happens to nodes are written for those who read or hear of them (XEP-0060, sections 6.5, 7 and 8).

use bytes::{Bytes, BytesMut};
use stanza::dom;

use super::tables::Item;
use super::{EVENT, NS};

/// XEP-0131, by which a notification says of which subscription it is.
const SHIM: &str = "http://jabber.org/protocol/shim";

/// What happened to a node.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// An item was published; without one the notification has none.
    Published {
        item: Option<&'a Item>,
        payload: bool,
    },
    Retracted {
        id: &'a str,
    },
    Purged,
    Deleted,
    /// The form, where the node delivers payloads.
    Configured {
        form: Option<&'a minidom::Element>,
    },
    /// Of an address: what its subscription is now.
    Subscription {
        jid: &'a str,
        state: &'a str,
    },
}

fn attribute(name: &str, value: &str, out: &mut BytesMut) {
    out.extend_from_slice(b" ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    dom::escape_attribute(value, out);
    out.extend_from_slice(b"'");
}

fn open(name: &str, namespace: &str, out: &mut BytesMut) {
    out.extend_from_slice(b"<");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b" xmlns='");
    out.extend_from_slice(namespace.as_bytes());
    out.extend_from_slice(b"'>");
}

/// Writes an item, with its payload or without it.
pub fn write_item(item: &Item, payload: bool, out: &mut BytesMut) {
    out.extend_from_slice(b"<item");
    attribute("id", &item.id, out);
    attribute("publisher", &item.publisher, out);
    if !payload || item.xml.is_empty() {
        out.extend_from_slice(b"/>");
        return;
    }
    out.extend_from_slice(b">");
    out.extend_from_slice(&item.xml);
    out.extend_from_slice(b"</item>");
}

/// The body of a notification.
pub fn event(node: &str, event: Event<'_>) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    open("event", EVENT, &mut out);
    let (name, inside) = match event {
        Event::Published { item, payload } => {
            let mut inside = BytesMut::new();
            if let Some(item) = item {
                write_item(item, payload, &mut inside);
            }
            ("items", inside)
        }
        Event::Retracted { id } => {
            let mut inside = BytesMut::from(&b"<retract"[..]);
            attribute("id", id, &mut inside);
            inside.extend_from_slice(b"/>");
            ("items", inside)
        }
        Event::Purged => ("purge", BytesMut::new()),
        Event::Deleted => ("delete", BytesMut::new()),
        Event::Configured { form } => {
            let mut inside = BytesMut::new();
            if let Some(form) = form {
                dom::write(form, EVENT, &mut inside);
            }
            ("configuration", inside)
        }
        Event::Subscription { .. } => ("subscription", BytesMut::new()),
    };
    out.extend_from_slice(b"<");
    out.extend_from_slice(name.as_bytes());
    // First of its attributes: `interest` finds it there.
    attribute("node", node, &mut out);
    if let Event::Subscription { jid, state } = event {
        attribute("jid", jid, &mut out);
        attribute("subscription", state, &mut out);
    }
    if inside.is_empty() {
        out.extend_from_slice(b"/>");
    } else {
        out.extend_from_slice(b">");
        out.extend_from_slice(&inside);
        out.extend_from_slice(b"</");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b">");
    }
    out.extend_from_slice(b"</event>");
    out.freeze()
}

/// The same for a subscription that somebody asked for, and so whatever their client says that it wants (7.1.2.4).
pub fn with_subscription(event: &Bytes, id: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(event.len() + 128);
    out.extend_from_slice(event);
    open("headers", SHIM, &mut out);
    out.extend_from_slice(b"<header name='SubID'>");
    dom::escape_text(id, &mut out);
    out.extend_from_slice(b"</header></headers>");
    out.freeze()
}

/// What a notification that is for whoever is interested is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    pub node: String,
    /// It brings an item.
    pub brings: bool,
}

/// Reads a body as `event` writes it; `None`: it is no notification, or one for whoever it is addressed to.
pub fn interest(body: &[u8]) -> Option<Interest> {
    let body = std::str::from_utf8(body).ok()?;
    let rest = body.strip_prefix("<event xmlns='http://jabber.org/protocol/pubsub#event'><")?;
    let (name, rest) = rest.split_once(" node='")?;
    if !matches!(name, "items" | "purge" | "delete" | "configuration") || body.ends_with("</headers>") {
        return None;
    }
    let (written, rest) = rest.split_once('\'')?;
    let node = match written.contains('&') {
        false => written.to_owned(),
        true => {
            let element = dom::parse(body.as_bytes()).ok()?;
            element.children().next()?.attr("node")?.to_owned()
        }
    };
    Some(Interest { node, brings: rest.starts_with("><item ") })
}

/// The answer to who asks for items (6.5).
pub fn listing(node: &str, items: &[Item], set: Option<&minidom::Element>) -> Bytes {
    let bytes: usize = items.iter().map(|item| item.xml.len() + item.id.len() + 96).sum();
    let mut out = BytesMut::with_capacity(bytes + 256);
    open("pubsub", NS, &mut out);
    out.extend_from_slice(b"<items");
    attribute("node", node, &mut out);
    if items.is_empty() {
        out.extend_from_slice(b"/>");
    } else {
        out.extend_from_slice(b">");
        items.iter().for_each(|item| write_item(item, true, &mut out));
        out.extend_from_slice(b"</items>");
    }
    if let Some(set) = set {
        dom::write(set, NS, &mut out);
    }
    out.extend_from_slice(b"</pubsub>");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> Item {
        Item { id: "<1>".into(), publisher: "a@h".into(), at_s: 0, xml: b"<t xmlns='urn:t'/>".to_vec() }
    }

    #[test]
    fn a_notification_is_xml_and_says_whom_it_interests() {
        let item = item();
        let form = crate::pubsub::config::NodeConfig::default().form("result");
        let cases = [
            (Event::Published { item: Some(&item), payload: true }, Some(true)),
            (Event::Published { item: Some(&item), payload: false }, Some(true)),
            (Event::Published { item: None, payload: false }, Some(false)),
            (Event::Retracted { id: "i&1" }, Some(false)),
            (Event::Purged, Some(false)),
            (Event::Deleted, Some(false)),
            (Event::Configured { form: None }, Some(false)),
            (Event::Configured { form: Some(&form) }, Some(false)),
            (Event::Subscription { jid: "b@h", state: "none" }, None),
        ];
        for (what, interests) in cases {
            for node in ["urn:x", "it's & <that>"] {
                let body = event(node, what);
                let parsed = dom::parse(&body).unwrap();
                assert!(parsed.is("event", EVENT));
                assert_eq!(parsed.children().next().unwrap().attr("node"), Some(node));
                let expected = interests.map(|brings| Interest { node: node.to_owned(), brings });
                assert_eq!(interest(&body), expected, "{what:?}");
                assert_eq!(interest(&with_subscription(&body, "s")), None);
            }
        }
        for other in ["", "<body>x</body>", "<event xmlns='http://jabber.org/protocol/pubsub#event'/>"] {
            assert_eq!(interest(other.as_bytes()), None);
        }
    }

    #[test]
    fn items_are_listed_as_they_were_published() {
        let bytes = listing("n", &[item()], None);
        assert_eq!(
            bytes,
            "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='n'><item id='&lt;1&gt;' publisher='a@h'>\
             <t xmlns='urn:t'/></item></items></pubsub>"
        );
        assert_eq!(
            listing("n", &[], None),
            "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='n'/></pubsub>"
        );
    }
}

//! [XEP-0297]: Stanza Forwarding. A stanza inside of another one, written without a tree.

use bytes::BytesMut;
use stanza::{Stanza, ns};

use crate::kept::Kept;

pub const NS: &str = "urn:xmpp:forward:0";

/// Writes `<forwarded/>` with the stanza in it; `stamp`: when it was sent or received (section 3.1).
pub fn write(stanza: &Stanza, stamp: Option<&str>, out: &mut BytesMut) {
    out.reserve(stanza.wire_len() + 160);
    around(stamp, out, |out| stanza.write_within(ns::CLIENT, out));
}

/// As [`write()`], of a stanza at rest.
pub fn write_kept(kept: &Kept, stamp: Option<&str>, out: &mut BytesMut) {
    around(stamp, out, |out| kept.write_within(ns::CLIENT, out));
}

fn around(stamp: Option<&str>, out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    out.extend_from_slice(b"<forwarded xmlns='");
    out.extend_from_slice(NS.as_bytes());
    out.extend_from_slice(b"'>");
    if let Some(stamp) = stamp {
        out.extend_from_slice(b"<delay xmlns='urn:xmpp:delay' stamp='");
        stanza::dom::escape_attribute(stamp, out);
        out.extend_from_slice(b"'/>");
    }
    // Section 3.1: the content keeps the namespace that it had on its stream, and its raw body leans on it.
    write(out);
    out.extend_from_slice(b"</forwarded>");
}

#[cfg(test)]
mod tests {
    use hooks::bench::{parse, xml};

    use super::*;

    #[test]
    fn a_forwarded_stanza_is_the_same_again() {
        for text in [
            "<message to='b@h' from='a@h/&lt;&apos;' id='1' type='chat' xml:lang='de'><body>ä &lt;</body></message>",
            "<message from='a@h/r' to='b@h' xmlns:x='urn:x' x:a='1'><y xmlns='urn:y' x:b='2'/></message>",
            "<message from='a@h/r' to='b@h'/>",
        ] {
            let stanza = parse(text);
            let mut out = BytesMut::new();
            write(&stanza, Some("2026-01-01T00:00:00Z"), &mut out);
            let mut again = BytesMut::new();
            write_kept(&Kept::of(&stanza), Some("2026-01-01T00:00:00Z"), &mut again);
            assert_eq!(out, again);
            let forwarded = stanza::dom::parse(&out).unwrap();
            assert!(forwarded.is("forwarded", NS));
            let delay = forwarded.get_child("delay", "urn:xmpp:delay").unwrap();
            assert_eq!(delay.attr("stamp"), Some("2026-01-01T00:00:00Z"));
            let inner = forwarded.get_child("message", ns::CLIENT).unwrap();
            assert_eq!(xml(&Stanza::from_element(inner).unwrap()), xml(&stanza));
        }
    }
}

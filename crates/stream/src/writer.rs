//! The server's side of a stream as bytes: header, features, stanzas, errors, the end.

use bytes::{Bytes, BytesMut};
use minidom::Element;
use stanza::{Stanza, StreamError, dom, ns};

/// The header that the server sends (RFC 6120, 4.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Version of XMPP; `None` answers who named none (RFC 6120, 4.7.5).
    pub version: Option<&'a str>,
    /// Who speaks.
    pub from: Option<&'a str>,
    /// Who is spoken to.
    pub to: Option<&'a str>,
    /// Stream id, chosen by the server.
    pub id: Option<&'a str>,
    /// Language of texts for people.
    pub lang: Option<&'a str>,
}

/// Writes one stream.
#[derive(Debug, Default)]
pub struct Writer {
    open: bool,
}

impl Writer {
    /// A writer of a stream that has not begun.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// A writer of a stream whose header is sent already.
    pub fn opened() -> Writer {
        Writer { open: true }
    }

    /// Whether the header is written and the end is not.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The next thing written is a header again.
    pub fn restart(&mut self) {
        self.open = false;
    }

    /// The opening tag.
    pub fn header(&mut self, header: &Header<'_>, out: &mut BytesMut) {
        self.open = true;
        out.extend_from_slice(b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='");
        out.extend_from_slice(ns::STREAM.as_bytes());
        out.extend_from_slice(b"'");
        let attributes = [
            (" version='", header.version),
            (" from='", header.from),
            (" to='", header.to),
            (" id='", header.id),
            (" xml:lang='", header.lang),
        ];
        for (name, value) in attributes {
            let Some(value) = value else { continue };
            out.extend_from_slice(name.as_bytes());
            dom::escape_attribute(value, out);
            out.extend_from_slice(b"'");
        }
        out.extend_from_slice(b">");
    }

    /// `<stream:features/>` with these children.
    pub fn features<'a>(&mut self, features: impl IntoIterator<Item = &'a Element>, out: &mut BytesMut) {
        self.features_beside(b"", features, out);
    }

    /// The same, behind children that are written already.
    pub fn features_beside<'a>(
        &mut self,
        written: &[u8],
        features: impl IntoIterator<Item = &'a Element>,
        out: &mut BytesMut,
    ) {
        out.extend_from_slice(b"<stream:features>");
        out.extend_from_slice(written);
        for feature in features {
            dom::write(feature, ns::CLIENT, out);
        }
        out.extend_from_slice(b"</stream:features>");
    }

    /// A stanza.
    pub fn stanza(&mut self, stanza: &Stanza, out: &mut BytesMut) {
        stanza.write(out);
    }

    /// An element that is no stanza.
    pub fn element(&mut self, element: &Element, out: &mut BytesMut) {
        dom::write(element, ns::CLIENT, out);
    }

    /// A stream error and the end of the stream. The header must have been written (RFC 6120, 4.9.1.2).
    pub fn error(&mut self, error: &StreamError, out: &mut BytesMut) {
        out.extend_from_slice(b"<stream:error>");
        for child in error.children() {
            dom::write(&child, ns::CLIENT, out);
        }
        out.extend_from_slice(b"</stream:error>");
        self.close(out);
    }

    /// The end of the stream; nothing where it is not open.
    pub fn close(&mut self, out: &mut BytesMut) {
        if self.open {
            out.extend_from_slice(b"</stream:stream>");
        }
        self.open = false;
    }
}

/// What ends an open stream: the error, if there is one, and the closing tag.
pub fn ending(error: Option<&StreamError>) -> Bytes {
    let mut out = BytesMut::new();
    let mut writer = Writer::opened();
    match error {
        Some(error) => writer.error(error, &mut out),
        None => writer.close(&mut out),
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::reader::{Reader, StreamEvent};
    use stanza::StreamCondition;

    #[test]
    fn what_is_written_is_what_a_reader_hears() {
        let mut out = BytesMut::new();
        let mut writer = Writer::new();
        assert!(!writer.is_open());
        let version = Some("1.0");
        let header = Header { version, from: Some("a'b"), to: Some("u@h"), id: Some("7"), lang: Some("en") };
        writer.header(&header, &mut out);
        writer.features([&Element::bare("bind", ns::BIND), &Element::bare("x", ns::CLIENT)], &mut out);
        writer.stanza(&Stanza::presence(None), &mut out);
        writer.element(&Element::bare("proceed", ns::TLS), &mut out);
        writer.error(&StreamError::see_other_host("h:1").with_text("go"), &mut out);
        assert!(!writer.is_open());
        let mut reader = Reader::new(Limits::after_auth());
        let mut events = Vec::new();
        while let Some(event) = reader.feed(&mut out).unwrap() {
            events.push(event);
        }
        let [
            StreamEvent::Header(header),
            StreamEvent::Element(features),
            StreamEvent::Stanza(_),
            StreamEvent::Element(proceed),
            StreamEvent::Element(error),
            StreamEvent::Close,
        ] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!(header.from.as_deref(), Some("a'b"));
        assert_eq!(header.version.as_deref(), Some("1.0"));
        assert!(features.is("features", ns::STREAM) && features.has_child("bind", ns::BIND));
        assert!(proceed.is("proceed", ns::TLS));
        assert_eq!(error.get_child("see-other-host", ns::STREAM_ERRORS).unwrap().text(), "h:1");
    }

    #[test]
    fn a_stream_ends_once() {
        let mut out = BytesMut::new();
        let mut writer = Writer::opened();
        writer.close(&mut out);
        writer.close(&mut out);
        assert_eq!(&out[..], b"</stream:stream>");
        assert_eq!(&ending(None)[..], b"</stream:stream>");
        let error = ending(Some(&StreamError::new(StreamCondition::Conflict)));
        assert_eq!(
            &error[..],
            b"<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>"
        );
    }
}

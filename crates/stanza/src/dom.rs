//! XML text to `minidom` and back: trees come from checked events only, and writing cannot fail.

use std::fmt::Write as _;

use bytes::BytesMut;
use minidom::{Element, Node};
use rxml::error::EndOrError;
use rxml::{Namespace, NcName, Options, Parse, RawEvent, RawParser, WithOptions};

use crate::ns;
use crate::scanner::{self, Attribute, Hearer, Text};
use crate::scope::{RawAttribute, Scope};

/// Deepest tree that is built: deep trees overflow the stack when they are dropped.
pub const DEPTH_MAX: usize = 128;

/// Why a piece of XML gave no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadXml {
    /// Not well-formed, or a construct that XMPP forbids.
    NotWellFormed,
    /// Well-formed, but a prefix is undeclared or an attribute appears twice.
    Namespaces,
    /// Deeper than [`DEPTH_MAX`].
    TooDeep,
}

impl std::fmt::Display for BadXml {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BadXml::NotWellFormed => "not well-formed XML",
            BadXml::Namespaces => "not namespace-well-formed XML",
            BadXml::TooDeep => "XML nested too deep",
        })
    }
}

impl std::error::Error for BadXml {}

/// Reads one whole element, as it stands in a file or a table.
pub fn parse(xml: &[u8]) -> Result<Element, BadXml> {
    parse_plain(xml, "").map_or_else(|| parse_any(xml), Ok)
}

/// As [`parse`], by the parser alone: what the scanner is held to, where it is tested.
pub fn parse_any(xml: &[u8]) -> Result<Element, BadXml> {
    let mut builder = Builder::new(xml.len());
    builder.feed(xml)?;
    builder.root.ok_or(BadXml::NotWellFormed)
}

/// Reads one whole element, with the default namespace around it, if it is plain (see [`scanner`]).
pub fn parse_plain(xml: &[u8], default: &str) -> Option<Element> {
    let mut plain = Plain::new(default);
    if scanner::element(xml, &mut plain) != Some(xml.len()) {
        return None;
    }
    plain.nodes.pop()?.into_element()
}

/// Reads the children of an element: `xml` is what stood between its tags, `declared` the namespaces in
/// scope there (`None` is the default namespace). The nodes are appended to `parent`.
pub fn parse_children(
    parent: &mut Element,
    declared: &[(Option<&str>, &str)],
    xml: &[u8],
) -> Result<(), BadXml> {
    if xml.is_empty() {
        return Ok(());
    }
    let default = declared.iter().find(|(prefix, _)| prefix.is_none()).map_or("", |(_, uri)| uri);
    if parse_children_plain(parent, default, xml) {
        return Ok(());
    }
    let mut open = BytesMut::from(&b"<r"[..]);
    for (prefix, uri) in declared {
        match prefix {
            None => open.extend_from_slice(b" xmlns='"),
            Some(prefix) => {
                open.extend_from_slice(b" xmlns:");
                open.extend_from_slice(prefix.as_bytes());
                open.extend_from_slice(b"='");
            }
        }
        escape_attribute(uri, &mut open);
        open.extend_from_slice(b"'");
    }
    open.extend_from_slice(b">");
    let mut builder = Builder::new(open.len().max(xml.len()));
    builder.feed(&open)?;
    builder.feed(xml)?;
    // A body that closes the wrapper itself would hide what follows: only our own tag may close it.
    if builder.stack.len() != 1 {
        return Err(BadXml::NotWellFormed);
    }
    builder.feed(b"</r>")?;
    let mut root = builder.root.ok_or(BadXml::NotWellFormed)?;
    for node in root.take_nodes() {
        parent.append_node(node);
    }
    Ok(())
}

/// As [`parse_children`], with the default namespace alone, if all of them are plain (see [`scanner`]); whether they
/// were.
pub fn parse_children_plain(parent: &mut Element, default: &str, xml: &[u8]) -> bool {
    let mut plain = Plain::new(default);
    let is_plain = scanner::content(xml, &mut plain).is_some();
    if is_plain {
        for node in plain.nodes {
            parent.append_node(node);
        }
    }
    is_plain
}

/// Builds the trees of plain XML.
struct Plain<'a> {
    /// The default namespace on the outside.
    default: &'a str,
    /// The open elements, and the default namespace in each.
    stack: Vec<(Element, &'a str)>,
    /// What is complete on the outside.
    nodes: Vec<Node>,
}

impl<'a> Plain<'a> {
    fn new(default: &'a str) -> Plain<'a> {
        Plain { default, stack: Vec::new(), nodes: Vec::new() }
    }
}

impl<'a> Hearer<'a> for Plain<'a> {
    fn open(&mut self, name: &'a str, attributes: &[Attribute<'a>], _end: usize) -> bool {
        let outer = self.stack.last().map_or(self.default, |(_, uri)| uri);
        let uri = match scanner::declared(attributes) {
            None => outer,
            Some(Ok(uri)) => uri,
            Some(Err(scanner::Unclear)) => return false,
        };
        let mut element = Element::bare(name, uri);
        for Attribute { name, value } in attributes {
            let (uri, name) = match *name {
                "xmlns" => continue,
                scanner::LANG => (Namespace::XML, "lang"),
                name => (Namespace::NONE, name),
            };
            let (Ok(name), Some(value)) = (NcName::try_from(name), value.meant()) else { return false };
            element.set_attr(uri, name, value);
        }
        self.stack.push((element, uri));
        true
    }

    fn text(&mut self, text: Text<'a>) -> bool {
        let Some(text) = text.meant() else { return false };
        match self.stack.last_mut() {
            Some((element, _)) => element.append_text(text),
            None => self.nodes.push(Node::Text(text)),
        }
        true
    }

    fn close(&mut self, _at: usize) -> bool {
        let Some((element, _)) = self.stack.pop() else { return false };
        match self.stack.last_mut() {
            Some((parent, _)) => {
                parent.append_child(element);
            }
            None => self.nodes.push(Node::Element(element)),
        }
        true
    }
}

struct Builder {
    parser: RawParser,
    scope: Scope,
    stack: Vec<Element>,
    name: Option<rxml::RawQName>,
    attributes: Vec<RawAttribute>,
    root: Option<Element>,
}

impl Builder {
    /// The parser reserves as much as its longest token may take: no token is longer than the input.
    fn new(longest: usize) -> Builder {
        Builder {
            parser: RawParser::with_options(Options {
                max_token_length: longest.max(64),
                ..Options::default()
            }),
            scope: Scope::default(),
            stack: Vec::new(),
            name: None,
            attributes: Vec::new(),
            root: None,
        }
    }

    fn feed(&mut self, mut xml: &[u8]) -> Result<(), BadXml> {
        loop {
            match self.parser.parse(&mut xml, false) {
                Ok(Some(event)) => self.event(event)?,
                Ok(None) | Err(EndOrError::NeedMoreData) => return Ok(()),
                Err(EndOrError::Error(_)) => return Err(BadXml::NotWellFormed),
            }
        }
    }

    fn event(&mut self, event: RawEvent) -> Result<(), BadXml> {
        match event {
            RawEvent::XmlDeclaration(..) => {}
            RawEvent::ElementHeadOpen(_, name) => {
                if self.stack.len() >= DEPTH_MAX {
                    return Err(BadXml::TooDeep);
                }
                self.name = Some(name);
            }
            RawEvent::Attribute(_, (prefix, name), value) => {
                self.attributes.push(RawAttribute { prefix, name, value });
            }
            RawEvent::ElementHeadClose(_) => self.open()?,
            RawEvent::ElementFoot(_) => {
                self.scope.close();
                if let Some(element) = self.stack.pop() {
                    match self.stack.last_mut() {
                        Some(parent) => {
                            parent.append_child(element);
                        }
                        None => self.root = Some(element),
                    }
                }
            }
            RawEvent::Text(_, text) => {
                if let Some(parent) = self.stack.last_mut() {
                    parent.append_text(text);
                }
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), BadXml> {
        self.scope.open(&self.attributes).map_err(|_| BadXml::Namespaces)?;
        let (prefix, name) = self.name.take().ok_or(BadXml::NotWellFormed)?;
        let uri = self.scope.uri_of(prefix.as_deref().map(|p| &**p)).map_err(|_| BadXml::Namespaces)?;
        let mut element = Element::bare(name.as_str(), uri);
        for a in self.attributes.drain(..) {
            if a.declares().is_some() {
                continue;
            }
            let uri = match a.foreign_prefix() {
                None => Namespace::NONE,
                Some(prefix) => {
                    let uri = self.scope.uri_of(Some(prefix)).map_err(|_| BadXml::Namespaces)?;
                    Namespace::from(uri.to_owned())
                }
            };
            element.set_attr(uri, a.name, a.value);
        }
        self.stack.push(element);
        Ok(())
    }
}

/// Writes `element` where `inherited` is the default namespace in scope. No prefix of the outside is used.
pub fn write(element: &Element, inherited: &str, out: &mut BytesMut) {
    let own;
    let uri = if element.has_ns(inherited) {
        inherited
    } else {
        own = element.ns();
        own.as_str()
    };
    // Namespaces in XML 1.0, 3: it may not be the default.
    let (prefix, uri) = if uri == ns::XML { ("xml:", inherited) } else { ("", uri) };
    out.extend_from_slice(b"<");
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(element.name().as_bytes());
    if uri != inherited {
        out.extend_from_slice(b" xmlns='");
        escape_attribute(uri, out);
        out.extend_from_slice(b"'");
    }
    let mut prefixes = 0;
    for ((uri, name), value) in element.attrs().iter() {
        write_attribute(uri.as_str(), name.as_str(), value, &mut prefixes, out);
    }
    if element.nodes().next().is_none() {
        out.extend_from_slice(b"/>");
        return;
    }
    out.extend_from_slice(b">");
    for node in element.nodes() {
        match node {
            Node::Element(child) => write(child, uri, out),
            Node::Text(text) => escape_text(text, out),
        }
    }
    out.extend_from_slice(b"</");
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(element.name().as_bytes());
    out.extend_from_slice(b">");
}

/// Writes one attribute; one in a namespace brings its own prefix, numbered by `prefixes`.
pub(crate) fn write_attribute(uri: &str, name: &str, value: &str, prefixes: &mut u32, out: &mut BytesMut) {
    match uri {
        "" => out.extend_from_slice(b" "),
        ns::XML => out.extend_from_slice(b" xml:"),
        uri => {
            let prefix = *prefixes;
            *prefixes += 1;
            // Writing into a `BytesMut` cannot fail.
            let _ = write!(out, " xmlns:a{prefix}='");
            escape_attribute(uri, out);
            let _ = write!(out, "' a{prefix}:");
        }
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    escape_attribute(value, out);
    out.extend_from_slice(b"'");
}

/// The element as bytes, with its namespace declared.
pub fn to_bytes(element: &Element) -> bytes::Bytes {
    let mut out = BytesMut::with_capacity(256);
    write(element, "", &mut out);
    out.freeze()
}

/// Escapes character data.
pub fn escape_text(text: &str, out: &mut BytesMut) {
    escape(text, false, out);
}

/// Escapes an attribute value for either kind of quotes.
pub fn escape_attribute(value: &str, out: &mut BytesMut) {
    escape(value, true, out);
}

/// The attribute name as `minidom` wants it; `None` where it is no XML name.
pub fn attribute_name(name: &str) -> Option<NcName> {
    NcName::try_from(name).ok()
}

/// Whether nothing in it can be in need of an escape, be it of an attribute or not. Without a branch, so that many bytes
/// are looked at at a time.
fn is_plain(bytes: &[u8]) -> bool {
    let marks = b"<>&'\"\xbe\xbf";
    !bytes.iter().fold(false, |any, byte| {
        any | (*byte < b' ') | marks.iter().fold(false, |is, mark| is | (byte == mark))
    })
}

fn escape(text: &str, attribute: bool, out: &mut BytesMut) {
    let bytes = text.as_bytes();
    // Nearly all that is written.
    if is_plain(bytes) {
        return out.extend_from_slice(bytes);
    }
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let with: &[u8] = match b {
            b'<' => b"&lt;",
            b'>' => b"&gt;",
            b'&' => b"&amp;",
            b'\'' if attribute => b"&apos;",
            b'"' if attribute => b"&quot;",
            b'\n' if attribute => b"&#10;",
            b'\t' if attribute => b"&#9;",
            b'\r' => b"&#13;",
            b'\n' | b'\t' => continue,
            // XML 1.0, 2.2: these cannot be written at all, and must not end the receiver's stream.
            0..=0x1f => "\u{fffd}".as_bytes(),
            0xbe | 0xbf if i >= 2 && bytes[i - 2..i] == [0xef, 0xbf] => {
                out.extend_from_slice(&bytes[from..i - 2]);
                out.extend_from_slice("\u{fffd}".as_bytes());
                from = i + 1;
                continue;
            }
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..i]);
        out.extend_from_slice(with);
        from = i + 1;
    }
    out.extend_from_slice(&bytes[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(xml: &str) -> String {
        String::from_utf8(to_bytes(&parse(xml.as_bytes()).unwrap()).to_vec()).unwrap()
    }

    #[test]
    fn what_is_written_has_the_same_meaning() {
        let cases = [
            ("<a xmlns='u'/>", "<a xmlns='u'/>"),
            ("<p:a xmlns:p='u'><p:b/><c xmlns='v'/></p:a>", "<a xmlns='u'><b/><c xmlns='v'/></a>"),
            ("<a xmlns='u'><b xmlns=''/></a>", "<a xmlns='u'><b xmlns=''/></a>"),
            ("<a xmlns='u' xml:lang='en'>x&amp;y</a>", "<a xmlns='u' xml:lang='en'>x&amp;y</a>"),
            ("<a xmlns='u' xmlns:p='v' p:k='1'/>", "<a xmlns='u' xmlns:a0='v' a0:k='1'/>"),
            ("<a xmlns='u'><xml:b><c/></xml:b></a>", "<a xmlns='u'><xml:b><c/></xml:b></a>"),
            ("<a xmlns='u'><![CDATA[<b>]]>&#65;</a>", "<a xmlns='u'>&lt;b&gt;A</a>"),
            ("<a xmlns='u' k='&#10;&#9;&quot;&apos;'/>", "<a xmlns='u' k='&#10;&#9;&quot;&apos;'/>"),
            ("<a xmlns='u'>1\r\n2&#13;</a>", "<a xmlns='u'>1\n2&#13;</a>"),
            // Both are known to make minidom's own writer panic.
            (
                "<a xmlns='u' xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:lang='x'/>",
                "<a xmlns='u' xml:lang='x'/>",
            ),
            ("<p:a xmlns:p='u'><p:b xmlns:p='v'/></p:a>", "<a xmlns='u'><b xmlns='v'/></a>"),
        ];
        for (xml, expected) in cases {
            assert_eq!(again(xml), expected, "{xml}");
            assert_eq!(parse(again(xml).as_bytes()).unwrap(), parse_any(xml.as_bytes()).unwrap());
        }
    }

    #[test]
    fn what_is_no_xml_gives_no_tree() {
        use BadXml::*;
        let cases = [
            ("", NotWellFormed),
            ("<a>", NotWellFormed),
            ("<a></b>", NotWellFormed),
            ("<a><!-- x --></a>", NotWellFormed),
            ("<a>&nbsp;</a>", NotWellFormed),
            ("<a k='1' k='2'/>", Namespaces),
            ("<a xmlns='1' xmlns='2'/>", Namespaces),
            ("<a xmlns:p='u' xmlns:q='u' p:k='1' q:k='2'/>", Namespaces),
            ("<p:a/>", Namespaces),
            ("<a p:k='1'/>", Namespaces),
        ];
        for (xml, expected) in cases {
            assert_eq!(parse(xml.as_bytes()), Err(expected), "{xml}");
            assert_eq!(parse_any(xml.as_bytes()), Err(expected), "{xml}");
        }
        let deep = "<a>".repeat(DEPTH_MAX + 1);
        assert_eq!(parse(deep.as_bytes()), Err(TooDeep));
    }

    #[test]
    fn a_body_cannot_close_its_parent() {
        for xml in ["</r>", "</r><r>", "<a/></r><r><b/>", "<a>", "x</r>"] {
            let mut parent = Element::bare("m", ns::CLIENT);
            assert!(parse_children(&mut parent, &[(None, ns::CLIENT)], xml.as_bytes()).is_err(), "{xml}");
        }
    }

    #[test]
    fn characters_that_xml_cannot_hold_are_replaced() {
        let mut out = BytesMut::new();
        escape_text("a\u{0}b\u{1f}c\u{ffff}d\u{fffd}e", &mut out);
        assert_eq!(std::str::from_utf8(&out).unwrap(), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e");
        let mut e = Element::bare("a", "u");
        e.append_text("a\u{0}\u{fffe}");
        assert!(parse(&to_bytes(&e)).is_ok());
    }
}

//! A tree of XML elements with resolved namespaces, parsed by `rxml` and printed for people.

use std::collections::BTreeMap;

use rxml::{Event, Options, Parse, Parser, WithOptions};

/// Default namespace of a client's stream; elements in it are printed without `xmlns`.
pub const CLIENT: &str = "jabber:client";
/// Namespace of the stream's own elements.
pub const STREAM: &str = "http://etherx.jabber.org/streams";

/// One element. Attributes in a namespace are kept as `{namespace}name`, `xml:lang` as `xml:lang`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub ns: String,
    pub name: String,
    pub attrs: BTreeMap<String, String>,
    pub children: Vec<Content>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Node(Node),
    Text(String),
}

impl Node {
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.get(name).map(String::as_str)
    }

    pub fn is(&self, name: &str, ns: &str) -> bool {
        self.name == name && self.ns == ns
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.children.iter().filter_map(|c| match c {
            Content::Node(n) => Some(n),
            Content::Text(_) => None,
        })
    }

    pub fn child(&self, name: &str, ns: &str) -> Option<&Node> {
        self.nodes().find(|n| n.is(name, ns))
    }

    /// All text directly inside, as one.
    pub fn text(&self) -> String {
        let texts = self.children.iter().filter_map(|c| match c {
            Content::Text(t) => Some(t.as_str()),
            Content::Node(_) => None,
        });
        texts.collect()
    }

    /// Rewrites every attribute value and text, names of accounts for example.
    pub fn map(&mut self, f: &impl Fn(&str) -> String) {
        for value in self.attrs.values_mut() {
            *value = f(value);
        }
        for child in &mut self.children {
            match child {
                Content::Node(n) => n.map(f),
                Content::Text(t) => *t = f(t),
            }
        }
    }

    /// Lines for people: one element per line, attributes sorted, namespaces where they change.
    pub fn pretty(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.print(CLIENT, 0, &mut lines);
        lines
    }

    fn print(&self, outer: &str, depth: usize, lines: &mut Vec<String>) {
        let indent = "  ".repeat(depth);
        let name = if self.ns == STREAM { format!("stream:{}", self.name) } else { self.name.clone() };
        let mut open = format!("{indent}<{name}");
        if self.ns != outer && self.ns != STREAM {
            open.push_str(&format!(" xmlns='{}'", escape(&self.ns)));
        }
        // What tells stanzas apart comes first.
        let first = ["from", "to", "type", "id"];
        let rest = self.attrs.keys().map(String::as_str).filter(|k| !first.contains(k));
        for key in first.into_iter().filter(|k| self.attrs.contains_key(*k)).chain(rest) {
            open.push_str(&format!(" {key}='{}'", escape(&self.attrs[key])));
        }
        let inner = if self.ns == STREAM { CLIENT } else { &self.ns };
        if self.nodes().next().is_none() {
            let text = self.text();
            lines.push(if text.is_empty() {
                open + "/>"
            } else {
                format!("{open}>{}</{name}>", escape(&text))
            });
            return;
        }
        lines.push(open + ">");
        for child in &self.children {
            match child {
                Content::Node(n) => n.print(inner, depth + 1, lines),
                Content::Text(t) if t.trim().is_empty() => {}
                Content::Text(t) => lines.push(format!("{indent}  {}", escape(t.trim()))),
            }
        }
        lines.push(format!("{indent}</{name}>"));
    }
}

/// Text made fit for an attribute or an element.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

/// Parses the elements of a block as children of a client's stream.
pub fn parse_block(block: &str) -> Result<Vec<Node>, String> {
    let wrapped = format!("<stream:stream xmlns:stream='{STREAM}' xmlns='{CLIENT}'>{block}</stream:stream>");
    let mut assembler = Assembler::new();
    let mut nodes = Vec::new();
    for piece in assembler.feed(wrapped.as_bytes())? {
        match piece {
            Piece::Element(node) => nodes.push(node),
            Piece::Header(_) | Piece::End => {}
        }
    }
    Ok(nodes)
}

/// What a stream consists of.
#[derive(Debug)]
pub enum Piece {
    /// The stream's opening tag, without children.
    Header(Node),
    /// A whole element below it.
    Element(Node),
    /// The stream's closing tag.
    End,
}

/// Bytes in, whole first-level elements out.
pub struct Assembler {
    parser: Parser,
    pending: Vec<u8>,
    open: Vec<Node>,
    depth: usize,
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new()
    }
}

impl Assembler {
    pub fn new() -> Self {
        // A server may pass on longer values than the parser takes by itself.
        let options = Options { max_token_length: 1 << 14, ..Options::default() };
        Assembler { parser: Parser::with_options(options), pending: Vec::new(), open: Vec::new(), depth: 0 }
    }

    /// Takes bytes as they come and gives what they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, String> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        let mut pieces = Vec::new();
        loop {
            match self.parser.parse(&mut rest, false) {
                Ok(Some(event)) => pieces.extend(self.take(event)),
                Ok(None) => break,
                Err(rxml::error::EndOrError::NeedMoreData) => break,
                Err(rxml::error::EndOrError::Error(e)) => return Err(format!("not well-formed: {e}")),
            }
        }
        self.pending = rest.to_vec();
        Ok(pieces)
    }

    fn take(&mut self, event: Event) -> Option<Piece> {
        match event {
            Event::XmlDeclaration(..) => None,
            Event::StartElement(_, (ns, name), attrs) => {
                let attrs = attrs.into_iter().map(|((ns, name), value)| {
                    let name = match ns.as_str() {
                        "" => name.to_string(),
                        "http://www.w3.org/XML/1998/namespace" => format!("xml:{name}"),
                        other => format!("{{{other}}}{name}"),
                    };
                    (name, value)
                });
                let node = Node {
                    ns: ns.as_str().to_owned(),
                    name: name.to_string(),
                    attrs: attrs.collect(),
                    children: Vec::new(),
                };
                self.depth += 1;
                if self.depth == 1 {
                    return Some(Piece::Header(node));
                }
                self.open.push(node);
                None
            }
            Event::Text(_, text) => {
                let children = &mut self.open.last_mut()?.children;
                if let Some(Content::Text(before)) = children.last_mut() {
                    before.push_str(&text);
                } else {
                    children.push(Content::Text(text));
                }
                None
            }
            Event::EndElement(_) => {
                self.depth -= 1;
                let Some(node) = self.open.pop() else { return Some(Piece::End) };
                match self.open.last_mut() {
                    Some(parent) => {
                        parent.children.push(Content::Node(node));
                        None
                    }
                    None => Some(Piece::Element(node)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_out_whole_however_the_bytes_are_cut() {
        let text = format!(
            "<?xml version='1.0'?><stream:stream xmlns:stream='{STREAM}' xmlns='{CLIENT}'>\
             <message to='b@localhost'><body>&lt;hé&gt;</body></message> <presence/></stream:stream>"
        );
        for size in [1, 2, 7, text.len()] {
            let mut assembler = Assembler::new();
            let pieces: Vec<Piece> =
                text.as_bytes().chunks(size).flat_map(|c| assembler.feed(c).expect("well-formed")).collect();
            assert_eq!(pieces.len(), 4, "in chunks of {size}: {pieces:?}");
            let Piece::Element(message) = &pieces[1] else { panic!("{pieces:?}") };
            assert_eq!(message.child("body", CLIENT).map(Node::text).as_deref(), Some("<hé>"));
            assert!(matches!(pieces[3], Piece::End));
        }
    }

    #[test]
    fn a_printed_element_shows_a_namespace_where_it_changes() {
        let nodes =
            parse_block("<iq id='1' type='get'><ping xmlns='urn:xmpp:ping'/></iq>").expect("well-formed");
        assert_eq!(nodes[0].pretty(), ["<iq type='get' id='1'>", "  <ping xmlns='urn:xmpp:ping'/>", "</iq>"]);
    }
}

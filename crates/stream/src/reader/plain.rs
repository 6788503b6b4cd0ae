//! The children of a stream that are plain, read without the parser.

use bytes::{Bytes, BytesMut};
use stanza::outline::Names;
use stanza::scanner::{self, Attribute, Hearer};
use stanza::{Kind, dom, ns};

use super::{Given, MEANT_FACTOR, Reader, StreamEvent, What, is_space, what_came};
use crate::limits::Limits;

/// What is heard of one child of the stream.
struct Heard<'a> {
    limits: Limits,
    /// The default namespace of each open element, the stream's first.
    uris: [&'a str; scanner::DEPTH_MAX + 1],
    depth: usize,
    name: &'a str,
    attributes: [Option<Attribute<'a>>; scanner::ATTRIBUTES_MAX],
    /// Offset behind its opening tag.
    head_end: usize,
    /// Offset of its closing tag.
    body_end: usize,
    elements: usize,
    children: usize,
    names: Names,
    meant: usize,
}

impl<'a> Hearer<'a> for Heard<'a> {
    fn open(&mut self, name: &'a str, attributes: &[Attribute<'a>], end: usize) -> bool {
        let Limits { stanza_bytes, elements, depth, attributes: attributes_max, token_bytes } = self.limits;
        let uri = match scanner::declared(attributes) {
            None => self.uris[self.depth],
            Some(Ok(uri)) => uri,
            Some(Err(scanner::Unclear)) => return false,
        };
        self.elements += 1;
        self.depth += 1;
        self.meant += uri.len();
        for Attribute { name, value } in attributes {
            if name.len() >= token_bytes || value.len() >= token_bytes {
                return false;
            }
            if *name == scanner::LANG {
                self.meant += ns::XML.len();
            }
        }
        let is_within = self.elements <= elements
            && self.depth <= depth
            && attributes.len() <= attributes_max
            && name.len() < token_bytes
            && self.meant <= MEANT_FACTOR * stanza_bytes;
        let Some(place) = self.uris.get_mut(self.depth).filter(|_| is_within) else { return false };
        *place = uri;
        match self.depth {
            1 => {
                self.name = name;
                self.head_end = end;
                for (place, attribute) in self.attributes.iter_mut().zip(attributes) {
                    *place = Some(*attribute);
                }
            }
            2 => {
                self.children += 1;
                self.names.add(name.as_bytes());
            }
            _ => {}
        }
        true
    }

    fn text(&mut self, _text: scanner::Text<'a>) -> bool {
        true
    }

    fn close(&mut self, at: usize) -> bool {
        self.body_end = at;
        self.depth -= 1;
        true
    }
}

impl Heard<'_> {
    /// The head, as far as it is plain.
    fn head(&self, kind: Kind, stream_lang: Option<&str>) -> Option<What> {
        let mut given = [Given { ns: "", name: "", value: "" }; scanner::ATTRIBUTES_MAX];
        let mut count = 0;
        for Attribute { name, value } in self.attributes.iter().flatten() {
            let (ns, name) = match *name {
                "xmlns" => continue,
                scanner::LANG => (ns::XML, "lang"),
                name => ("", name),
            };
            given[count] = Given { ns, name, value: value.plain()? };
            count += 1;
        }
        What::stanza(kind, stream_lang, given[..count].iter().copied()).ok()
    }
}

impl Reader {
    /// Reads the next child of the stream if all of it is there and it is plain; `None`: the parser must see it.
    pub(super) fn read_plain(&mut self, input: &mut BytesMut) -> Option<StreamEvent> {
        let spaces = input.iter().take_while(|b| is_space(**b)).count();
        self.whitespace += spaces as u64;
        self.consume(input, spaces);
        let limits = self.limits;
        let default = self.scope.uri_of(None).unwrap_or_default();
        let mut heard = Heard {
            limits,
            uris: [default; scanner::DEPTH_MAX + 1],
            depth: 0,
            name: "",
            attributes: [None; scanner::ATTRIBUTES_MAX],
            head_end: 0,
            body_end: 0,
            elements: 0,
            children: 0,
            names: Names::default(),
            meant: 0,
        };
        let end = scanner::element(input, &mut heard).filter(|end| *end <= limits.stanza_bytes)?;
        let uri = heard.uris[1];
        let what = match Kind::from_tag(heard.name).filter(|_| uri == ns::CLIENT) {
            Some(kind) => heard.head(kind, self.lang.as_deref())?,
            None => What::Other,
        };
        let event = match what {
            What::Stanza(head) => {
                let body = &input[heard.head_end.min(heard.body_end)..heard.body_end];
                match what_came(head, heard.children, limits, || Ok(Bytes::copy_from_slice(body))).ok()? {
                    StreamEvent::Stanza(stanza) => StreamEvent::Stanza(stanza.with_names(heard.names)),
                    refused => refused,
                }
            }
            What::Refused(reply) => StreamEvent::BadStanza { reply },
            What::Other if heard.name == "stream" && uri == ns::STREAM => return None,
            What::Other => StreamEvent::Element(dom::parse_plain(&input[..end], default)?),
        };
        self.consume(input, end);
        Some(event)
    }
}

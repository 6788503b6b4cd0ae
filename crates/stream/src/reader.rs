//! Bytes of one stream to its events: strict, bounded, the same at every split of the bytes.

mod event;
mod plain;

use bytes::{Buf, Bytes, BytesMut};
use minidom::Element;
use rxml::error::EndOrError;
use rxml::{Options, Parse, RawEvent, RawParser, RawQName, WithOptions};
use stanza::scope::{RawAttribute, Scope};
use stanza::{Condition, ExtraAttribute, Head, Kind, Stanza, StanzaError, StreamCondition};
use stanza::{address, dom, ns};

use self::event::map_error;
pub use self::event::{ReadError, StreamEvent, StreamHeader};
use crate::limits::Limits;

/// Reads one stream of a client. Feed it bytes, take events; after an event that changes the stream
/// (`<proceed/>` sent, authenticated) call [`Reader::restart`] before feeding it again.
pub struct Reader {
    limits: Limits,
    parser: RawParser,
    scope: Scope,
    /// Bytes consumed by the parser since the last child of the stream ended.
    raw: BytesMut,
    name: Option<RawQName>,
    attributes: Vec<RawAttribute>,
    child: Option<Child>,
    /// `xml:lang` of the stream (RFC 6120, 4.7.4: the default of its stanzas).
    lang: Option<Box<str>>,
    state: State,
    whitespace: u64,
    /// Bytes at the front of the input whose line ends are folded.
    folded: usize,
    /// The last of them was a carriage return.
    after_return: bool,
    /// The parser holds nothing: it has given all that it was fed, and stands between two children of the stream.
    is_at_rest: bool,
    /// Whether the parser reads what is plain, too.
    by_parser: bool,
}

/// A short prefix may mean a long namespace, thousands of times: the tree of a stanza may hold so many times
/// the bytes in namespaces that the stanza itself may have.
const MEANT_FACTOR: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but whitespace so far.
    Fresh,
    Open,
    Closed,
    Failed(ReadError),
}

/// The child of the stream that is being read.
struct Child {
    what: What,
    /// Length of its opening tag in `raw`.
    head_end: usize,
    elements: usize,
    /// Direct child elements.
    children: usize,
    /// Something in it needs a declaration made outside of it.
    leans: bool,
    /// Bytes of the namespaces of its elements and attributes, each counted where it is meant: so many they
    /// take in a tree, where no prefix stands for them.
    meant: usize,
}

enum What {
    Stanza(Head),
    Refused(Option<Stanza>),
    Other,
}

/// An attribute of a stanza that is no declaration.
#[derive(Clone, Copy)]
struct Given<'a> {
    /// Empty for a name without a prefix.
    ns: &'a str,
    name: &'a str,
    value: &'a str,
}

impl What {
    /// A stanza by its attributes; `stream_lang` is the language that it has without one of its own.
    fn stanza<'a>(
        kind: Kind,
        stream_lang: Option<&str>,
        attributes: impl Iterator<Item = Given<'a>>,
    ) -> Result<What, ReadError> {
        let mut head = Head::new(kind);
        let mut malformed = false;
        for Given { ns, name, value } in attributes {
            match (ns, name) {
                ("", "to") => {
                    head.to = address::jid(value).ok();
                    malformed = head.to.is_none();
                }
                ("", "from") => {
                    // RFC 6120, 8.1.2.1: a `from` that is not the client's own, hence also one that is no
                    // address at all, ends the stream.
                    let invalid = ReadError::new(StreamCondition::InvalidFrom, "`from` is no address");
                    head.from = Some(address::jid(value).map_err(|_| invalid)?);
                }
                ("", "id") => head.id = Some(value.into()),
                ("", "type") => head.type_ = Some(value.into()),
                (ns::XML, "lang") => head.lang = Some(value.into()),
                _ => {
                    head.extra.push(ExtraAttribute { ns: ns.into(), name: name.into(), value: value.into() })
                }
            }
        }
        if malformed {
            let error = StanzaError::new(Condition::JidMalformed).with_text("`to` is no address");
            head.from = None;
            return Ok(What::Refused(head.refusal(&error)));
        }
        if head.lang.is_none() {
            head.lang = stream_lang.map(Into::into);
        }
        Ok(What::Stanza(head))
    }
}

/// A stanza with so many children, or what is wrong with it; `body` is asked for where it has a place.
fn what_came(
    head: Head,
    children: usize,
    limits: Limits,
    body: impl FnOnce() -> Result<Bytes, ReadError>,
) -> Result<StreamEvent, ReadError> {
    if let Err(error) = head.check_shape(children) {
        return Ok(StreamEvent::BadStanza { reply: Head { from: None, ..head }.refusal(&error) });
    }
    let body = body()?;
    // Without the prefixes of the sender's stream it may be longer than it came.
    let extra: usize = head.extra.iter().map(|a| a.ns.len() + a.value.len()).sum();
    if body.len() + extra > limits.stanza_bytes {
        return Err(ReadError::limit("too many bytes without prefixes"));
    }
    Ok(StreamEvent::Stanza(Stanza::new(head, body)))
}

impl Reader {
    /// A reader at the start of a stream.
    pub fn new(limits: Limits) -> Reader {
        Reader {
            limits,
            parser: parser(limits),
            scope: Scope::default(),
            raw: BytesMut::new(),
            name: None,
            attributes: Vec::new(),
            child: None,
            lang: None,
            state: State::Fresh,
            whitespace: 0,
            folded: 0,
            after_return: false,
            is_at_rest: false,
            by_parser: false,
        }
    }

    /// As [`Reader::new`], but all is read by the parser: what others are held to, where they are tested.
    pub fn by_parser(limits: Limits) -> Reader {
        Reader { by_parser: true, ..Reader::new(limits) }
    }

    /// Other bounds from the next child of the stream on; `token_bytes` from the next restart on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The bounds in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Forgets everything and expects a new stream header (RFC 6120, 4.3.3). Bytes that the caller still
    /// holds belong to the new stream, or are to be thrown away before (after `<starttls/>`).
    pub fn restart(&mut self) {
        let Reader { whitespace, folded, after_return, by_parser, .. } = *self;
        // The line ends of what the caller holds are folded already.
        *self = Reader { whitespace, folded, after_return, by_parser, ..Reader::new(self.limits) };
    }

    /// Gives scratch memory back; for a stream that has gone quiet.
    pub fn release(&mut self) {
        self.parser.release_temporaries();
        if self.raw.is_empty() {
            self.raw = BytesMut::new();
        }
        if self.attributes.is_empty() {
            self.attributes = Vec::new();
        }
    }

    /// Bytes of whitespace swallowed between stanzas so far (keep-alives).
    pub fn whitespace(&self) -> u64 {
        self.whitespace
    }

    /// Whether nothing has begun that is not complete: neither the stream header nor a child of the stream.
    pub fn is_between(&self) -> bool {
        match self.state {
            State::Fresh | State::Closed | State::Failed(_) => true,
            State::Open => self.scope.depth() == 1 && self.child.is_none() && self.raw.is_empty(),
        }
    }

    /// Takes bytes from `input` until there is an event (`None`: it wants more). What follows the event
    /// stays in `input`.
    pub fn feed(&mut self, input: &mut BytesMut) -> Result<Option<StreamEvent>, ReadError> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::Closed => {
                input.clear();
                return Ok(None);
            }
            State::Fresh | State::Open => self.fold_line_ends(input),
        }
        if self.state == State::Fresh {
            // A keep-alive may still be on its way when a stream restarts.
            let spaces = input.iter().take_while(|b| is_space(**b)).count();
            self.whitespace += spaces as u64;
            self.consume(input, spaces);
            if input.is_empty() {
                return Ok(None);
            }
            self.state = State::Open;
        }
        if self.is_at_rest && !self.by_parser && !input.is_empty() {
            if let Some(event) = self.read_plain(input) {
                return Ok(Some(event));
            }
            self.is_at_rest = input.is_empty();
        }
        let result = self.read(input);
        if let Err(error) = result {
            self.state = State::Failed(error);
            self.raw = BytesMut::new();
        }
        result
    }

    /// XML 1.0, 2.11: a carriage return, with a line feed behind it or alone, is a line feed. Done before the
    /// parser, which loses one that stands alone in an attribute.
    fn fold_line_ends(&mut self, input: &mut BytesMut) {
        let from = self.folded.min(input.len());
        let mut to = input.len();
        if self.after_return || input[from..].contains(&b'\r') {
            to = from;
            for at in from..input.len() {
                let byte = input[at];
                let is_second = byte == b'\n' && self.after_return;
                self.after_return = byte == b'\r';
                if !is_second {
                    input[to] = if byte == b'\r' { b'\n' } else { byte };
                    to += 1;
                }
            }
            input.truncate(to);
        }
        self.folded = to;
    }

    fn consume(&mut self, input: &mut BytesMut, count: usize) {
        input.advance(count);
        self.folded = self.folded.saturating_sub(count);
    }

    fn read(&mut self, input: &mut BytesMut) -> Result<Option<StreamEvent>, ReadError> {
        loop {
            let mut rest = &input[..];
            let parsed = self.parser.parse(&mut rest, false);
            let used = input.len() - rest.len();
            self.raw.extend_from_slice(&input[..used]);
            self.consume(input, used);
            // Counted on what was read, not on what is complete: a stanza that never ends is refused too.
            let keep_alive = self.scope.depth() == 1 && matches!(parsed, Ok(Some(RawEvent::Text(..))));
            if self.raw.len() > self.limits.stanza_bytes && !keep_alive {
                return Err(ReadError::limit("too many bytes"));
            }
            match parsed {
                Ok(Some(event)) => {
                    if let Some(event) = self.on_raw(event)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None) => return Ok(None),
                Err(EndOrError::NeedMoreData) => return Ok(None),
                Err(EndOrError::Error(error)) => return Err(map_error(error, &self.raw)),
            }
        }
    }

    fn on_raw(&mut self, event: RawEvent) -> Result<Option<StreamEvent>, ReadError> {
        match event {
            RawEvent::XmlDeclaration(..) => Ok(None),
            RawEvent::ElementHeadOpen(_, name) => {
                self.count_element()?;
                self.name = Some(name);
                Ok(None)
            }
            RawEvent::Attribute(_, (prefix, name), value) => {
                if self.attributes.len() >= self.limits.attributes {
                    return Err(ReadError::limit("too many attributes"));
                }
                self.attributes.push(RawAttribute { prefix, name, value });
                Ok(None)
            }
            RawEvent::ElementHeadClose(_) => self.on_open(),
            RawEvent::ElementFoot(_) => self.on_close(),
            RawEvent::Text(_, text) => {
                if self.scope.depth() == 1 {
                    // RFC 6120, 4.6.1: whitespace keeps the connection alive; other text has no place here.
                    if !text.bytes().all(is_space) {
                        return Err(ReadError::new(StreamCondition::BadFormat, "text between stanzas"));
                    }
                    self.whitespace += text.len() as u64;
                    // The parser may have read the `<` of the next tag to see the text end.
                    match self.raw.iter().rposition(|b| *b == b'<') {
                        Some(next) => self.raw.advance(next),
                        None => self.raw.clear(),
                    }
                }
                Ok(None)
            }
        }
    }

    fn count_element(&mut self) -> Result<(), ReadError> {
        // The stream itself is not counted: its children are at depth 1.
        if self.scope.depth() > self.limits.depth {
            return Err(ReadError::limit("nested too deep"));
        }
        if let Some(child) = &mut self.child {
            child.elements += 1;
            if child.elements > self.limits.elements {
                return Err(ReadError::limit("too many elements"));
            }
            if self.scope.depth() == 2 {
                child.children += 1;
            }
        }
        Ok(())
    }

    fn on_open(&mut self) -> Result<Option<StreamEvent>, ReadError> {
        let malformed = |reason| ReadError::new(StreamCondition::NotWellFormed, reason);
        let Some((prefix, name)) = self.name.take() else {
            return Err(malformed("a tag without a name"));
        };
        self.scope.open(&self.attributes).map_err(|bad| match bad {
            stanza::scope::BadTag::DuplicateAttribute => malformed("duplicate attribute"),
            stanza::scope::BadTag::UndeclaredPrefix => malformed("undeclared prefix"),
            stanza::scope::BadTag::ReservedNamespace => malformed("a reserved prefix or namespace"),
        })?;
        let prefix = prefix.as_deref().map(|p| &**p);
        let (uri, declared_at) = self.scope.find(prefix).map_err(|_| malformed("undeclared prefix"))?;
        let event = match self.scope.depth() {
            1 => {
                let header = self.header(&name, uri);
                self.lang = header.lang.clone();
                // An empty-element tag has its end still in the parser.
                self.is_at_rest = !self.raw.ends_with(b"/>");
                self.raw.clear();
                Some(StreamEvent::Header(header))
            }
            2 => {
                let what = self.child_of(prefix, &name, uri)?;
                let head_end = self.raw.len();
                let meant = self.meant(uri);
                self.child = Some(Child { what, head_end, elements: 1, children: 0, leans: false, meant });
                None
            }
            _ => {
                let (leans, meant) = (self.leans(prefix, uri, declared_at), self.meant(uri));
                if let Some(child) = &mut self.child {
                    child.leans |= leans;
                    child.meant += meant;
                }
                None
            }
        };
        let meant = self.child.as_ref().map_or(0, |child| child.meant);
        if meant > MEANT_FACTOR * self.limits.stanza_bytes {
            return Err(ReadError::limit("namespaces too long"));
        }
        self.attributes.clear();
        Ok(event)
    }

    /// Bytes of the namespaces that an open tag means.
    fn meant(&self, uri: &str) -> usize {
        let prefixes = self.attributes.iter().filter_map(|a| a.foreign_prefix());
        let of_attributes = prefixes.map(|prefix| self.scope.uri_of(Some(prefix)).map_or(0, str::len));
        uri.len() + of_attributes.sum::<usize>()
    }

    /// Whether an element inside a stanza needs a declaration of the stream or of the stanza's own tag.
    /// The default namespace `jabber:client` is there wherever the body is written, the others are not.
    fn leans(&self, prefix: Option<&str>, uri: &str, declared_at: Option<usize>) -> bool {
        let outside = |level: Option<usize>| level.is_none_or(|level| level < 2);
        let name_leans = match prefix {
            Some("xml") => false,
            // RFC 6120, 4.8.5: no prefix goes out for what is in the content namespace.
            Some(_) => outside(declared_at) || uri == ns::CLIENT,
            None => outside(declared_at) && uri != ns::CLIENT,
        };
        name_leans
            || self.attributes.iter().filter_map(|a| a.foreign_prefix()).any(|prefix| {
                prefix != "xml" && self.scope.find(Some(prefix)).is_ok_and(|(_, level)| outside(level))
            })
    }

    fn header(&self, name: &str, uri: &str) -> StreamHeader {
        let plain =
            |name: &str| self.attributes.iter().find(|a| a.is_plain(name)).map(|a| a.value.as_str().into());
        StreamHeader {
            name: name.into(),
            ns: uri.into(),
            content_ns: self.scope.uri_of(None).unwrap_or_default().into(),
            to: plain("to"),
            from: plain("from"),
            id: plain("id"),
            version: plain("version"),
            lang: self.attributes.iter().find(|a| is_lang(a)).map(|a| a.value.as_str().into()),
        }
    }

    fn child_of(&self, prefix: Option<&str>, name: &str, uri: &str) -> Result<What, ReadError> {
        if name == "stream" && uri == ns::STREAM {
            return Err(ReadError::new(StreamCondition::BadFormat, "a second stream header"));
        }
        if prefix.is_some() && uri == ns::CLIENT {
            // RFC 6120, 4.8.5.
            return Err(ReadError::new(StreamCondition::BadNamespacePrefix, "a stanza with a prefix"));
        }
        let Some(kind) = Kind::from_tag(name).filter(|_| uri == ns::CLIENT) else {
            return Ok(What::Other);
        };
        let given = self.attributes.iter().filter(|a| a.declares().is_none()).map(|a| {
            let uri = a.foreign_prefix().map_or("", |p| self.scope.uri_of(Some(p)).unwrap_or_default());
            Given { ns: uri, name: &a.name, value: &a.value }
        });
        What::stanza(kind, self.lang.as_deref(), given)
    }

    fn on_close(&mut self) -> Result<Option<StreamEvent>, ReadError> {
        let depth = self.scope.depth();
        let event = match depth {
            1 => {
                self.state = State::Closed;
                self.raw = BytesMut::new();
                Some(StreamEvent::Close)
            }
            2 => match self.child.take() {
                Some(child) => Some(self.finish(child)?),
                None => None,
            },
            _ => None,
        };
        self.scope.close();
        Ok(event)
    }

    fn finish(&mut self, child: Child) -> Result<StreamEvent, ReadError> {
        // A closing tag holds no `<` but its own; an empty-element tag ends where its head ends.
        let end = match self.raw.get(child.head_end..) {
            Some(rest) if !rest.is_empty() => {
                child.head_end + rest.windows(2).rposition(|w| w == b"</").unwrap_or(0)
            }
            _ => self.raw.len().min(child.head_end),
        };
        let body = &self.raw[child.head_end.min(end)..end];
        let event = match child.what {
            What::Stanza(head) => what_came(head, child.children, self.limits, || {
                if !child.leans {
                    return Ok(Bytes::copy_from_slice(body));
                }
                let mut e = Element::bare("r", ns::CLIENT);
                self.parse_body(&mut e, body)?;
                Ok(stanza::stanza::children_to_bytes(&e))
            })?,
            What::Refused(reply) => StreamEvent::BadStanza { reply },
            What::Other => StreamEvent::Element(self.whole()?),
        };
        self.is_at_rest = true;
        self.raw.clear();
        Ok(event)
    }

    fn parse_body(&self, parent: &mut Element, body: &[u8]) -> Result<(), ReadError> {
        let declared: Vec<_> = self.scope.declared().collect();
        dom::parse_children(parent, &declared, body).map_err(internal)
    }

    /// The child of the stream that just ended, as a tree.
    fn whole(&self) -> Result<Element, ReadError> {
        let mut parent = Element::bare("r", ns::CLIENT);
        let declared: Vec<_> = self.scope.declared_outside(1).collect();
        dom::parse_children(&mut parent, &declared, &self.raw).map_err(internal)?;
        parent.unshift_child().ok_or(internal(dom::BadXml::NotWellFormed))
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("state", &self.state).field("held", &self.raw.len()).finish()
    }
}

fn parser(limits: Limits) -> RawParser {
    let mut parser =
        RawParser::with_options(Options { max_token_length: limits.token_bytes, ..Options::default() });
    // Text is cut out of the raw bytes, never collected.
    parser.set_text_buffering(false);
    parser
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_lang(a: &RawAttribute) -> bool {
    a.foreign_prefix() == Some("xml") && a.name == "lang"
}

fn internal(_: dom::BadXml) -> ReadError {
    ReadError::new(StreamCondition::NotWellFormed, "not well-formed")
}

#[cfg(test)]
mod tests;

//! A stanza: a head that routes it, a raw body that is only looked into on demand.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use jid::{FullJid, Jid};
use minidom::{Element, Node};
use rxml::Namespace;

use crate::address;
use crate::dom;
use crate::error::{Condition, StanzaError};
use crate::ns;
use crate::outline::{Child, Names, Outline};

/// The three stanzas (RFC 6120, 8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Pushed to somebody.
    Message,
    /// Broadcast to who is interested.
    Presence,
    /// Asked and answered.
    Iq,
}

impl Kind {
    /// The element's name.
    pub fn tag(self) -> &'static str {
        match self {
            Kind::Message => "message",
            Kind::Presence => "presence",
            Kind::Iq => "iq",
        }
    }

    /// The kind of that element name.
    pub fn from_tag(tag: &str) -> Option<Kind> {
        match tag {
            "message" => Some(Kind::Message),
            "presence" => Some(Kind::Presence),
            "iq" => Some(Kind::Iq),
            _ => None,
        }
    }
}

/// What stands on the opening tag of a stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Message, presence or iq.
    pub kind: Kind,
    /// The receiver.
    pub to: Option<Jid>,
    /// The sender, stamped by its server.
    pub from: Option<Jid>,
    /// What ties an answer to its request.
    pub id: Option<Box<str>>,
    /// `type` as it was written; see the typed accessors of [`Stanza`].
    pub type_: Option<Box<str>>,
    /// `xml:lang`.
    pub lang: Option<Box<str>>,
    /// All other attributes, to be delivered as they came (RFC 6120, 8.4); nearly always empty.
    pub extra: Vec<ExtraAttribute>,
}

/// An attribute of a stanza that means nothing to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraAttribute {
    /// Namespace; empty for a name without a prefix.
    pub ns: Box<str>,
    /// Local name.
    pub name: Box<str>,
    /// Value, unescaped.
    pub value: Box<str>,
}

impl Head {
    /// A head with nothing but its kind.
    pub fn new(kind: Kind) -> Head {
        Head { kind, to: None, from: None, id: None, type_: None, lang: None, extra: Vec::new() }
    }
}

/// A stanza. Cloning it is cheap: the body is shared.
#[derive(Clone)]
pub struct Stanza {
    /// The head. A change made here after [`Stanza::dom`] was asked is seen by [`Stanza::write`] but not in
    /// that tree: use [`Stanza::head_mut`], [`Stanza::with_to`] and [`Stanza::with_from`] then.
    pub head: Head,
    body: Bytes,
    dom: OnceLock<Arc<Element>>,
    /// What all children are called.
    named: OnceLock<Names>,
}

/// Why an element is no stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadShape {
    /// Not `message`, `presence` or `iq` in `jabber:client`.
    NotAStanza,
    /// `to` or `from` is no address.
    BadAddress,
}

impl std::fmt::Display for BadShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BadShape::NotAStanza => "not a stanza",
            BadShape::BadAddress => "not an address",
        })
    }
}

impl std::error::Error for BadShape {}

/// The types of a message (RFC 6121, 5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Outside of any conversation; also every unknown type.
    Normal,
    /// One to one.
    Chat,
    /// To or from a room.
    Groupchat,
    /// Nobody answers these.
    Headline,
    /// Bounced.
    Error,
}

/// The types of a presence (RFC 6121, 4.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PresenceType {
    /// No type: here.
    Available,
    /// Gone.
    Unavailable,
    /// Asks to see the receiver's presence.
    Subscribe,
    /// Allows it.
    Subscribed,
    /// Wants to see it no more.
    Unsubscribe,
    /// Denies it, or takes it back.
    Unsubscribed,
    /// A server asks for the current presence.
    Probe,
    /// Bounced.
    Error,
}

/// The types of an iq (RFC 6120, 8.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IqType {
    /// Asks.
    Get,
    /// Changes.
    Set,
    /// Answers.
    Result,
    /// Refuses.
    Error,
}

impl Stanza {
    /// A stanza of a head and a body. The body is what stands between the tags: well-formed, self-contained
    /// XML under the default namespace `jabber:client`, leaning on no prefix of the outside. The reader
    /// makes such bodies; bytes from elsewhere have to be checked before.
    pub fn new(head: Head, body: Bytes) -> Stanza {
        Stanza { head, body, dom: OnceLock::new(), named: OnceLock::new() }
    }

    /// The stanza of an element in `jabber:client`.
    pub fn from_element(e: &Element) -> Result<Stanza, BadShape> {
        let kind = Kind::from_tag(e.name()).ok_or(BadShape::NotAStanza)?;
        if !e.has_ns(ns::CLIENT) {
            return Err(BadShape::NotAStanza);
        }
        let mut head = Head::new(kind);
        for ((uri, name), value) in e.attrs().iter() {
            match (uri.as_str(), name.as_str()) {
                ("", "to") => head.to = Some(address::jid(value).map_err(|_| BadShape::BadAddress)?),
                ("", "from") => head.from = Some(address::jid(value).map_err(|_| BadShape::BadAddress)?),
                ("", "id") => head.id = Some(value.as_str().into()),
                ("", "type") => head.type_ = Some(value.as_str().into()),
                (ns::XML, "lang") => head.lang = Some(value.as_str().into()),
                (uri, name) => head.extra.push(ExtraAttribute {
                    ns: uri.into(),
                    name: name.into(),
                    value: value.as_str().into(),
                }),
            }
        }
        Ok(Stanza::new(head, children_to_bytes(e)))
    }

    /// A message without a body; `None` is the type `normal`.
    pub fn message(type_: Option<&str>) -> Stanza {
        let head = Head { type_: type_.map(Into::into), ..Head::new(Kind::Message) };
        Stanza::new(head, Bytes::new())
    }

    /// A presence; `None` is available.
    pub fn presence(type_: Option<&str>) -> Stanza {
        let head = Head { type_: type_.map(Into::into), ..Head::new(Kind::Presence) };
        Stanza::new(head, Bytes::new())
    }

    /// An iq with its payload.
    pub fn iq(type_: &str, id: &str, payload: Option<&Element>) -> Stanza {
        let head = Head { type_: Some(type_.into()), id: Some(id.into()), ..Head::new(Kind::Iq) };
        let mut body = BytesMut::new();
        if let Some(payload) = payload {
            dom::write(payload, ns::CLIENT, &mut body);
        }
        Stanza::new(head, body.freeze())
    }

    /// With that receiver.
    pub fn with_to(mut self, to: impl Into<Jid>) -> Stanza {
        self.head_mut().to = Some(to.into());
        self
    }

    /// With that sender.
    pub fn with_from(mut self, from: impl Into<Jid>) -> Stanza {
        self.head_mut().from = Some(from.into());
        self
    }

    /// With that id.
    pub fn with_id(mut self, id: &str) -> Stanza {
        self.head_mut().id = Some(id.into());
        self
    }

    /// With one child more.
    pub fn with_child(mut self, child: &Element) -> Stanza {
        self.append_child(child);
        self
    }

    /// The head, to be changed; a tree made of the old head is forgotten.
    pub fn head_mut(&mut self) -> &mut Head {
        self.dom = OnceLock::new();
        &mut self.head
    }

    /// The raw children.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The whole stanza as a tree, made when it is first asked for.
    pub fn dom(&self) -> &Arc<Element> {
        self.dom.get_or_init(|| {
            let mut e = self.head.to_element();
            if dom::parse_children(&mut e, &[(None, ns::CLIENT)], &self.body).is_err() {
                // Only a body that broke the promise of `new` comes here; what is no XML has no children.
                debug_assert!(false, "the body of a stanza is not self-contained XML");
            }
            Arc::new(e)
        })
    }

    /// The children by name, without a tree.
    pub fn outline(&self) -> Outline<'_> {
        Outline::new(&self.body, ns::CLIENT)
    }

    /// Whether a child has one of these local names, in whatever namespace. Where none has, no tree has to be made to
    /// look for one.
    pub fn has_named(&self, names: &[&str]) -> bool {
        self.may_have(names)
            && self.outline().any(|child| names.iter().any(|name| name.as_bytes() == child.name))
    }

    /// As [`Stanza::has_named`], and now and then `true` where it is not so. Many rules ask the same of a stanza: what
    /// its children are called is looked at once.
    fn may_have(&self, names: &[&str]) -> bool {
        self.named.get_or_init(|| self.names()).may_have(names)
    }

    fn names(&self) -> Names {
        let mut names = Names::default();
        self.outline().for_each(|child| names.add(child.name));
        names
    }

    /// The same stanza, by a reader that has seen what all of its children are called.
    pub fn with_names(self, names: Names) -> Stanza {
        debug_assert_eq!(names, self.names());
        Stanza { named: names.into(), ..self }
    }

    /// Whether there is a child of that name and namespace. A tree is made only where nothing else can say.
    pub fn has_child(&self, name: &str, ns: &str) -> bool {
        if !self.may_have(&[name]) {
            return false;
        }
        let named = || self.outline().filter(|child| child.name == name.as_bytes());
        named().any(|child| child.ns() == Some(ns))
            || (named().any(|child| child.ns().is_none()) && self.dom().has_child(name, ns))
    }

    /// The first child of that name and namespace.
    pub fn child(&self, name: &str, ns: &str) -> Option<&Element> {
        let might_be =
            |child: Child<'_>| child.name == name.as_bytes() && child.ns().is_none_or(|its| its == ns);
        if !self.may_have(&[name]) || !self.outline().any(might_be) {
            return None;
        }
        self.dom().get_child(name, ns)
    }

    /// The first child element.
    pub fn payload(&self) -> Option<&Element> {
        if self.body.is_empty() {
            return None;
        }
        self.dom().children().next()
    }

    /// Appends a child to the body.
    pub fn append_child(&mut self, raw: &Element) {
        self.append_written(128, |body| dom::write(raw, ns::CLIENT, body));
    }

    /// Appends a child that is written already: self-contained XML under `jabber:client`. `write` adds it to what the body
    /// becomes, about `size` bytes.
    pub fn append_written(&mut self, size: usize, write: impl FnOnce(&mut BytesMut)) {
        let mut body = BytesMut::with_capacity(self.body.len() + size);
        body.extend_from_slice(&self.body);
        write(&mut body);
        self.replace_body(body.freeze());
    }

    /// Removes the children for which `f` says so; the body is left alone where it never does.
    pub fn remove_children(&mut self, f: impl Fn(&Element) -> bool) {
        if self.body.is_empty() || !self.dom().children().any(&f) {
            return;
        }
        let mut body = BytesMut::with_capacity(self.body.len());
        for node in self.dom().nodes() {
            match node {
                Node::Element(child) if f(child) => {}
                Node::Element(child) => dom::write(child, ns::CLIENT, &mut body),
                Node::Text(text) => dom::escape_text(text, &mut body),
            }
        }
        self.replace_body(body.freeze());
    }

    fn replace_body(&mut self, body: Bytes) {
        self.body = body;
        self.dom = OnceLock::new();
        self.named = OnceLock::new();
    }

    /// Writes the stanza for a stream whose default namespace is `jabber:client`.
    pub fn write(&self, out: &mut BytesMut) {
        self.write_to(out, self.head.to.as_ref());
    }

    /// As [`Stanza::write`], to another receiver: the body's bytes are the same.
    pub fn write_to(&self, out: &mut BytesMut, to: Option<&Jid>) {
        out.reserve(self.wire_len() + to.map_or(0, |to| 12 + 6 * to.as_str().len()));
        self.parts(to.map(Jid::as_str)).write(None, extra_of(&self.head), out);
    }

    /// As [`Stanza::write`], inside of an element of another namespace than that of the stanza.
    pub fn write_within(&self, ns: &str, out: &mut BytesMut) {
        out.reserve(self.wire_len() + ns.len() + 10);
        self.parts(self.head.to.as_ref().map(Jid::as_str)).write(Some(ns), extra_of(&self.head), out);
    }

    fn parts<'a>(&'a self, to: Option<&'a str>) -> Parts<'a> {
        let Head { kind, from, id, type_, lang, .. } = &self.head;
        Parts {
            kind: *kind,
            to,
            from: from.as_ref().map(Jid::as_str),
            id: id.as_deref(),
            type_: type_.as_deref(),
            lang: lang.as_deref(),
            body: &self.body,
        }
    }

    /// Bytes on the wire, rounded up a little; escapes in the head are not counted.
    pub fn wire_len(&self) -> usize {
        let h = &self.head;
        let jid = |jid: &Option<Jid>| jid.as_ref().map_or(0, |j| j.as_str().len() + 8);
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |t| t.len() + 12);
        let extra: usize = h.extra.iter().map(|a| 24 + a.ns.len() + a.name.len() + a.value.len()).sum();
        24 + jid(&h.to)
            + jid(&h.from)
            + text(&h.id)
            + text(&h.type_)
            + text(&h.lang)
            + extra
            + self.body.len()
    }

    /// The type of a message; unknown ones are `normal` (RFC 6121, 5.2.2).
    pub fn message_type(&self) -> MessageType {
        match self.head.type_.as_deref() {
            Some("chat") => MessageType::Chat,
            Some("groupchat") => MessageType::Groupchat,
            Some("headline") => MessageType::Headline,
            Some("error") => MessageType::Error,
            _ => MessageType::Normal,
        }
    }

    /// The type of a presence; an unknown one is a `bad-request`.
    pub fn presence_type(&self) -> Result<PresenceType, StanzaError> {
        Ok(match self.head.type_.as_deref() {
            None => PresenceType::Available,
            Some("unavailable") => PresenceType::Unavailable,
            Some("subscribe") => PresenceType::Subscribe,
            Some("subscribed") => PresenceType::Subscribed,
            Some("unsubscribe") => PresenceType::Unsubscribe,
            Some("unsubscribed") => PresenceType::Unsubscribed,
            Some("probe") => PresenceType::Probe,
            Some("error") => PresenceType::Error,
            Some(_) => return Err(StanzaError::new(Condition::BadRequest)),
        })
    }

    /// The type of an iq; none or an unknown one is a `bad-request`.
    pub fn iq_type(&self) -> Result<IqType, StanzaError> {
        self.head.iq_type()
    }

    /// The full JID of the sender, where it has one.
    pub fn from_full(&self) -> Option<&FullJid> {
        self.head.from.as_ref().and_then(|jid| jid.try_as_full().ok())
    }
}

impl Head {
    /// See [`Stanza::iq_type`].
    pub fn iq_type(&self) -> Result<IqType, StanzaError> {
        Ok(match self.type_.as_deref() {
            Some("get") => IqType::Get,
            Some("set") => IqType::Set,
            Some("result") => IqType::Result,
            Some("error") => IqType::Error,
            _ => return Err(StanzaError::new(Condition::BadRequest)),
        })
    }

    /// Checks what RFC 6120, 8.2.3 asks of an iq with that many child elements: an id, a known type, one
    /// child in a request, at most one in a result. Other stanzas pass.
    pub fn check_shape(&self, children: usize) -> Result<(), StanzaError> {
        if self.kind != Kind::Iq {
            return Ok(());
        }
        let bad = |why: &str| Err(StanzaError::new(Condition::BadRequest).with_text(why));
        if self.id.is_none() {
            return bad("an iq needs an id");
        }
        match self.iq_type()? {
            IqType::Get | IqType::Set if children != 1 => bad("a request has exactly one child"),
            IqType::Result if children > 1 => bad("a result has at most one child"),
            _ => Ok(()),
        }
    }

    fn to_element(&self) -> Element {
        let mut e = Element::bare(self.kind.tag(), ns::CLIENT);
        let mut set = |uri: Namespace<'static>, name: &str, value: Option<&str>| {
            if let (Some(name), Some(value)) = (dom::attribute_name(name), value) {
                e.set_attr(uri, name, value);
            }
        };
        set(Namespace::NONE, "to", self.to.as_ref().map(Jid::as_str));
        set(Namespace::NONE, "from", self.from.as_ref().map(Jid::as_str));
        set(Namespace::NONE, "id", self.id.as_deref());
        set(Namespace::NONE, "type", self.type_.as_deref());
        set(Namespace::xml().clone(), "lang", self.lang.as_deref());
        for a in &self.extra {
            let uri = if a.ns.is_empty() { Namespace::NONE } else { Namespace::from(String::from(&*a.ns)) };
            set(uri, &a.name, Some(&a.value));
        }
        e
    }
}

impl std::fmt::Debug for Stanza {
    /// Head and size only: bodies are private and belong in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stanza").field("head", &self.head).field("body_len", &self.body.len()).finish()
    }
}

/// The children of an element, as the body of a stanza.
pub fn children_to_bytes(e: &Element) -> Bytes {
    let mut body = BytesMut::new();
    for node in e.nodes() {
        match node {
            Node::Element(child) => dom::write(child, ns::CLIENT, &mut body),
            Node::Text(text) => dom::escape_text(text, &mut body),
        }
    }
    body.freeze()
}

fn extra_of(head: &Head) -> impl Iterator<Item = (&str, &str, &str)> {
    head.extra.iter().map(|a| (&*a.ns, &*a.name, &*a.value))
}

/// What a stanza is written from. Whoever keeps one as text need not make addresses of it for that.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub kind: Kind,
    pub to: Option<&'a str>,
    pub from: Option<&'a str>,
    pub id: Option<&'a str>,
    pub type_: Option<&'a str>,
    pub lang: Option<&'a str>,
    /// As of [`Stanza::body`].
    pub body: &'a [u8],
}

impl Parts<'_> {
    /// Writes the stanza, with its namespace where that is not the one around it. `extra`: namespace, name and value of
    /// its further attributes (RFC 6120, 8.4).
    pub fn write<'e>(
        &self,
        ns: Option<&str>,
        extra: impl IntoIterator<Item = (&'e str, &'e str, &'e str)>,
        out: &mut BytesMut,
    ) {
        let tag = self.kind.tag().as_bytes();
        out.extend_from_slice(b"<");
        out.extend_from_slice(tag);
        let attribute = |name: &[u8], value: Option<&str>, out: &mut BytesMut| {
            let Some(value) = value else { return };
            out.extend_from_slice(b" ");
            out.extend_from_slice(name);
            out.extend_from_slice(b"='");
            dom::escape_attribute(value, out);
            out.extend_from_slice(b"'");
        };
        attribute(b"xmlns", ns, out);
        attribute(b"to", self.to, out);
        attribute(b"from", self.from, out);
        attribute(b"id", self.id, out);
        attribute(b"type", self.type_, out);
        attribute(b"xml:lang", self.lang, out);
        let mut prefixes = 0;
        for (ns, name, value) in extra {
            dom::write_attribute(ns, name, value, &mut prefixes, out);
        }
        if self.body.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.extend_from_slice(b">");
        out.extend_from_slice(self.body);
        out.extend_from_slice(b"</");
        out.extend_from_slice(tag);
        out.extend_from_slice(b">");
    }
}

#[cfg(test)]
#[path = "stanza_tests.rs"]
pub(crate) mod tests;

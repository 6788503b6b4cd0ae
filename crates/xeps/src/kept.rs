//! A stanza as it is kept in the store: its head in fields, its body as it was.

use bytes::BytesMut;
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use stanza::stanza::{ExtraAttribute, Parts};
use stanza::{Head, Jid, Kind, Stanza};

/// A stanza at rest. Part of other records: a change of its fields is a new schema of those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    kind: u8,
    to: Option<String>,
    from: Option<String>,
    id: Option<String>,
    type_: Option<String>,
    lang: Option<String>,
    extra: Vec<(String, String, String)>,
    #[serde(with = "whole")]
    body: Vec<u8>,
}

/// Writes a stanza as a [`Kept`] of it is written, without making one.
pub struct Keeping<'a>(pub &'a Stanza);

impl Serialize for Keeping<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let head = &self.0.head;
        let extra: Vec<(&str, &str, &str)> =
            head.extra.iter().map(|a| (&*a.ns, &*a.name, &*a.value)).collect();
        let mut kept = serializer.serialize_struct("Kept", 8)?;
        kept.serialize_field("kind", &(head.kind as u8))?;
        kept.serialize_field("to", &head.to.as_ref().map(Jid::as_str))?;
        kept.serialize_field("from", &head.from.as_ref().map(Jid::as_str))?;
        kept.serialize_field("id", &head.id)?;
        kept.serialize_field("type_", &head.type_)?;
        kept.serialize_field("lang", &head.lang)?;
        kept.serialize_field("extra", &extra)?;
        kept.serialize_field("body", &Whole(self.0.body()))?;
        kept.end()
    }
}

struct Whole<'a>(&'a [u8]);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Bytes in one piece, which are the same in a record as one after the other.
mod whole {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

impl Kept {
    pub fn of(stanza: &Stanza) -> Kept {
        let head = &stanza.head;
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        let extra = head.extra.iter();
        Kept {
            kind: head.kind as u8,
            to: head.to.as_ref().map(|jid| jid.as_str().to_owned()),
            from: head.from.as_ref().map(|jid| jid.as_str().to_owned()),
            id: text(&head.id),
            type_: text(&head.type_),
            lang: text(&head.lang),
            extra: extra.map(|a| (a.ns.to_string(), a.name.to_string(), a.value.to_string())).collect(),
            body: stanza.body().to_vec(),
        }
    }

    /// The stanza again; `None` where an address is no longer one.
    pub fn stanza(&self) -> Option<Stanza> {
        let kind = self.kind()?;
        let jid = |text: &Option<String>| match text {
            Some(text) => Jid::new(text).map(Some),
            None => Ok(None),
        };
        let text = |text: &Option<String>| text.as_deref().map(Into::into);
        let extra = self.extra.iter().map(|(ns, name, value)| ExtraAttribute {
            ns: ns.as_str().into(),
            name: name.as_str().into(),
            value: value.as_str().into(),
        });
        let head = Head {
            to: jid(&self.to).ok()?,
            from: jid(&self.from).ok()?,
            id: text(&self.id),
            type_: text(&self.type_),
            lang: text(&self.lang),
            extra: extra.collect(),
            ..Head::new(kind)
        };
        Some(Stanza::new(head, self.body.clone().into()))
    }

    fn kind(&self) -> Option<Kind> {
        [Kind::Message, Kind::Presence, Kind::Iq].into_iter().find(|kind| *kind as u8 == self.kind)
    }

    /// Writes the stanza with its namespace; nothing of one whose kind is unknown.
    pub fn write_within(&self, ns: &str, out: &mut BytesMut) {
        let Some(kind) = self.kind() else { return };
        let parts = Parts {
            kind,
            to: self.to(),
            from: self.from(),
            id: self.id(),
            type_: self.type_.as_deref(),
            lang: self.lang.as_deref(),
            body: &self.body,
        };
        let extra = self.extra.iter().map(|(ns, name, value)| (&**ns, &**name, &**value));
        parts.write(Some(ns), extra, out);
    }

    pub fn is_message(&self) -> bool {
        self.kind() == Some(Kind::Message)
    }

    pub fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }

    pub fn to(&self) -> Option<&str> {
        self.to.as_deref()
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let extra: usize = self.extra.iter().map(|(a, b, c)| a.len() + b.len() + c.len()).sum();
        let head = text(&self.to) + text(&self.from) + text(&self.id) + text(&self.type_) + text(&self.lang);
        head + extra + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use hooks::bench::{parse, xml};

    use super::*;

    #[test]
    fn a_kept_stanza_is_the_same_again() {
        for text in [
            "<message to='b@h' from='a@h/r' id='1' type='chat' xml:lang='de'><body>ä &lt; b</body></message>",
            "<presence from='a@h' to='b@h' type='subscribe'><status>hi</status></presence>",
            "<message from='a@h/r' shade='red' xmlns:x='urn:x' x:a='1'><x xmlns='urn:x' a='1'><y/></x>text</message>",
        ] {
            let stanza = parse(text);
            assert_eq!(xml(&Kept::of(&stanza).stanza().unwrap()), xml(&stanza));
        }
    }
}

//! Envelopes: a stanza as a parcel of the relay and back, its body untouched.

use cluster::Sid;
use jid::Jid;
use prost::Message;
use proto::relay::{self, Parcel, Purpose, Target};
use stanza::{ExtraAttribute, Head, Kind, Stanza};

use bytes::Bytes;

/// Version of the relay's protocol that this node speaks.
pub(crate) const VERSION: u32 = 1;

/// A parcel that this node cannot read: its sender speaks a newer version, or is broken.
#[derive(Debug, thiserror::Error)]
pub enum BadParcel {
    /// No message of the protocol.
    #[error("failed to decode a parcel: {0}")]
    Encoding(#[from] prost::DecodeError),
    /// An address that is none.
    #[error("failed to read the address `{address}` in a parcel: {source}")]
    Address { address: String, source: jid::Error },
    /// Something that each parcel has.
    #[error("a parcel without {0}")]
    Missing(&'static str),
}

/// A stanza and where it is to go at the receiving node.
#[derive(Debug)]
pub struct Opened {
    /// The stanza, its body a slice of the parcel.
    pub stanza: Stanza,
    /// What is to be done with it.
    pub purpose: Purpose,
    /// Boundaries between nodes that it has crossed.
    pub hops: u8,
    /// For whom: another `to`, or that of the stanza, and the session that was chosen.
    pub targets: Vec<(Option<Jid>, Option<Sid>)>,
}

/// Encodes a stanza; `hops` counts the boundary that it is about to cross.
pub fn seal(stanza: &Stanza, purpose: Purpose, hops: u8, targets: Vec<Target>) -> Bytes {
    let head = &stanza.head;
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let jid = |jid: &Option<Jid>| jid.as_ref().map(|jid| jid.as_str().to_owned()).unwrap_or_default();
    let kind = match head.kind {
        Kind::Message => relay::Kind::Message,
        Kind::Presence => relay::Kind::Presence,
        Kind::Iq => relay::Kind::Iq,
    };
    let attribute = |a: &ExtraAttribute| relay::Attribute {
        namespace: a.ns.to_string(),
        name: a.name.to_string(),
        value: a.value.to_string(),
    };
    let parcel = Parcel {
        purpose: purpose.into(),
        hops: hops.into(),
        kind: kind.into(),
        to: jid(&head.to),
        from: jid(&head.from),
        id: text(&head.id),
        r#type: text(&head.type_),
        lang: text(&head.lang),
        body: stanza.body().clone(),
        targets,
        attributes: head.extra.iter().map(attribute).collect(),
    };
    parcel.encode_to_vec().into()
}

/// A target: another `to` for this receiver, and the session that was chosen.
pub fn target(to: Option<&Jid>, sid: Option<Sid>) -> Target {
    Target {
        to: to.map(|to| to.as_str().to_owned()).unwrap_or_default(),
        sid: sid.map(|sid| Bytes::copy_from_slice(&sid.0.to_be_bytes())).unwrap_or_default(),
    }
}

/// Reads a parcel. The body stays a slice of `bytes`.
pub fn open(bytes: Bytes) -> Result<Opened, BadParcel> {
    let parcel = Parcel::decode(bytes)?;
    let purpose = parcel.purpose();
    if purpose == Purpose::Unspecified {
        return Err(BadParcel::Missing("a purpose"));
    }
    let kind = match parcel.kind() {
        relay::Kind::Unspecified => return Err(BadParcel::Missing("a kind")),
        relay::Kind::Message => Kind::Message,
        relay::Kind::Presence => Kind::Presence,
        relay::Kind::Iq => Kind::Iq,
    };
    if parcel.targets.is_empty() {
        return Err(BadParcel::Missing("a target"));
    }
    let targets = parcel.targets.iter().map(read_target).collect::<Result<_, _>>()?;
    let attribute = |a: relay::Attribute| ExtraAttribute {
        ns: a.namespace.into(),
        name: a.name.into(),
        value: a.value.into(),
    };
    let head = Head {
        kind,
        to: address(&parcel.to)?,
        from: address(&parcel.from)?,
        id: parcel.id.map(String::into_boxed_str),
        type_: parcel.r#type.map(String::into_boxed_str),
        lang: parcel.lang.map(String::into_boxed_str),
        extra: parcel.attributes.into_iter().map(attribute).collect(),
    };
    // More than fits is more than may be.
    let hops = u8::try_from(parcel.hops).unwrap_or(u8::MAX);
    Ok(Opened { stanza: Stanza::new(head, parcel.body), purpose, hops, targets })
}

fn read_target(target: &Target) -> Result<(Option<Jid>, Option<Sid>), BadParcel> {
    let sid = match target.sid.len() {
        0 => None,
        _ => {
            let bytes: Result<[u8; 16], _> = target.sid.as_ref().try_into();
            Some(Sid(u128::from_be_bytes(bytes.map_err(|_| BadParcel::Missing("a sid of 16 bytes"))?)))
        }
    };
    Ok((address(&target.to)?, sid))
}

fn address(text: &str) -> Result<Option<Jid>, BadParcel> {
    if text.is_empty() {
        return Ok(None);
    }
    // As at the door: what becomes another address when it is read again was let in by none.
    match stanza::address::jid(text) {
        Ok(jid) => Ok(Some(jid)),
        Err(source) => Err(BadParcel::Address { address: text.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn jid(text: &str) -> Jid {
        Jid::new(text).unwrap()
    }

    fn full_stanza() -> Stanza {
        let head = Head {
            kind: Kind::Message,
            to: Some(jid("bob@localhost")),
            from: Some(jid("alice@localhost/phone")),
            id: Some("a'1".into()),
            type_: Some("chat".into()),
            lang: Some("de".into()),
            extra: ["urn:x", ""]
                .map(|ns| ExtraAttribute { ns: ns.into(), name: "n".into(), value: "<v>".into() })
                .into(),
        };
        Stanza::new(head, Bytes::from_static(b"<body>hi &amp; bye</body><x xmlns='urn:y'/>"))
    }

    #[test]
    fn a_stanza_survives_the_envelope_byte_by_byte() {
        let stanza = full_stanza();
        let targets = vec![
            target(None, Some(Sid(7))),
            target(Some(&jid("bob@localhost/desk")), None),
            target(None, Some(Sid(u128::MAX))),
        ];
        let opened = open(seal(&stanza, Purpose::Arrive, 2, targets)).unwrap();
        assert_eq!(opened.stanza.head, stanza.head);
        assert_eq!(opened.stanza.body(), stanza.body());
        assert_eq!((opened.purpose, opened.hops), (Purpose::Arrive, 2));
        let desk = Some(jid("bob@localhost/desk"));
        assert_eq!(opened.targets, [(None, Some(Sid(7))), (desk, None), (None, Some(Sid(u128::MAX)))]);
        let (mut before, mut after) = (BytesMut::new(), BytesMut::new());
        stanza.write(&mut before);
        opened.stanza.write(&mut after);
        assert_eq!(before, after);
    }

    /// What nodes of version 0.1.0 send to one another, byte by byte.
    #[test]
    fn what_version_1_sent_is_still_read() {
        let written = seal(
            &full_stanza(),
            Purpose::Deliver,
            2,
            vec![target(Some(&jid("bob@localhost/desk")), Some(Sid(7)))],
        );
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "080210021801220d626f62406c6f63616c686f73742a15616c696365406c6f63616c686f73742f70686f6e6532036127\
             313a0463686174420264654a2b3c626f64793e68692026616d703b206279653c2f626f64793e3c7820786d6c6e733d27\
             75726e3a79272f3e52260a12626f62406c6f63616c686f73742f6465736b121000000000000000000000000000000007\
             5a0f0a0575726e3a7812016e1a033c763e5a0812016e1a033c763e"
        );
        let opened = open(written).unwrap();
        assert_eq!(
            (opened.purpose, opened.hops, opened.stanza.head),
            (Purpose::Deliver, 2, full_stanza().head)
        );
        assert_eq!(opened.targets, [(Some(jid("bob@localhost/desk")), Some(Sid(7)))]);
    }

    #[test]
    fn what_is_not_set_stays_not_set() {
        let stanza = Stanza::new(Head::new(Kind::Presence), Bytes::new());
        let opened = open(seal(&stanza, Purpose::Here, 1, vec![target(None, None)])).unwrap();
        assert_eq!(opened.stanza.head, stanza.head);
        let empty_id = Stanza::new(Head { id: Some("".into()), ..Head::new(Kind::Iq) }, Bytes::new());
        let opened = open(seal(&empty_id, Purpose::Deliver, 1, vec![target(None, None)])).unwrap();
        assert_eq!(opened.stanza.head.id.as_deref(), Some(""));
    }

    #[test]
    fn a_broken_parcel_is_an_error_and_no_panic() {
        let good = seal(&full_stanza(), Purpose::Arrive, 1, vec![target(None, Some(Sid(7)))]);
        for end in 0..good.len() {
            // Cut anywhere: an error, or a parcel whose last fields are missing, never a panic.
            let _ = open(good.slice(..end));
        }
        assert!(open(Bytes::from_static(b"\xff\xff\xff")).is_err());
        assert!(open(seal(&full_stanza(), Purpose::Unspecified, 1, vec![target(None, None)])).is_err());
        assert!(open(seal(&full_stanza(), Purpose::Arrive, 1, vec![])).is_err());
        let bad_sid = Target { to: String::new(), sid: Bytes::from_static(b"short") };
        assert!(open(seal(&full_stanza(), Purpose::Arrive, 1, vec![bad_sid])).is_err());
        let bad_address = Target { to: "@@@".into(), sid: Bytes::new() };
        assert!(open(seal(&full_stanza(), Purpose::Arrive, 1, vec![bad_address])).is_err());
    }

    #[test]
    fn an_address_that_becomes_another_when_it_is_read_again_is_none() {
        // Its capital sigma comes out of the preparation as one that would be prepared further.
        let parcel = Parcel {
            purpose: Purpose::Deliver.into(),
            kind: relay::Kind::Presence.into(),
            from: "ali9\u{3f9}i9\u{5b9}9bo".to_owned(),
            targets: vec![target(None, None)],
            ..Parcel::default()
        };
        assert!(matches!(open(parcel.encode_to_vec().into()), Err(BadParcel::Address { .. })));
    }
}

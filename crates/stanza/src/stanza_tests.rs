//! Stanzas are read, changed and written as the RFCs say.

use super::*;

pub(crate) fn stanza(xml: &str) -> Stanza {
    Stanza::from_element(&dom::parse(xml.as_bytes()).unwrap()).unwrap()
}

pub(crate) fn text(stanza: &Stanza) -> String {
    let mut out = BytesMut::new();
    stanza.write(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn a_stanza_is_written_as_it_was_read() {
    let cases = [
        "<message xmlns='jabber:client' to='a@x' from='b@x/r' id='1' type='chat' xml:lang='de'><body>a&lt;b</body></message>",
        "<presence xmlns='jabber:client'/>",
        "<iq xmlns='jabber:client' id='a&apos;b' type='get'><q xmlns='u'><i/></q></iq>",
        "<message xmlns='jabber:client'><x xmlns='u'/> <y xmlns='v'/></message>",
    ];
    for xml in cases {
        let stanza = stanza(xml);
        assert_eq!(text(&stanza), xml.replacen(" xmlns='jabber:client'", "", 1));
        assert_eq!(**stanza.dom(), dom::parse(xml.as_bytes()).unwrap());
        assert!(stanza.wire_len() + 16 >= text(&stanza).len());
    }
}

#[test]
fn unknown_attributes_are_kept() {
    let xml = "<message xmlns='jabber:client' xmlns:e='urn:e' e:seen='1' seen='2' colour='&apos;red&apos;'/>";
    let stanza = stanza(xml);
    assert_eq!(stanza.head.extra.len(), 3);
    assert_eq!(stanza.dom().attr_ns("urn:e", "seen"), Some("1"));
    assert_eq!((stanza.dom().attr("seen"), stanza.dom().attr("colour")), (Some("2"), Some("'red'")));
    let written = text(&stanza).replacen("<message", "<message xmlns='jabber:client'", 1);
    assert_eq!(dom::parse(written.as_bytes()).unwrap(), **stanza.dom(), "{written}");
}

#[test]
fn another_receiver_shares_the_body() {
    let stanza = stanza("<message xmlns='jabber:client' to='a@x'><body>x</body></message>");
    let mut out = BytesMut::new();
    stanza.write_to(&mut out, Some(&Jid::new("b@x/r").unwrap()));
    assert_eq!(&out[..], b"<message to='b@x/r'><body>x</body></message>");
    assert_eq!(stanza.clone().body().as_ptr(), stanza.body().as_ptr());
}

#[test]
fn a_changed_head_is_seen_in_the_tree() {
    let stanza = stanza("<message xmlns='jabber:client'><body>x</body></message>");
    assert_eq!(stanza.dom().attr("from"), None);
    let stamped = stanza.with_from(Jid::new("a@x/r").unwrap());
    assert_eq!(stamped.dom().attr("from"), Some("a@x/r"));
    assert_eq!(stamped.child("body", ns::CLIENT).unwrap().text(), "x");
}

#[test]
fn children_come_and_go() {
    let mut stanza = Stanza::message(Some("chat"));
    assert_eq!(stanza.payload(), None);
    stanza.append_child(&Element::bare("delay", "urn:xmpp:delay"));
    stanza.append_child(&Element::builder("body", ns::CLIENT).append("a&b").build());
    stanza.append_child(&Element::bare("delay", "urn:xmpp:delay"));
    let body = stanza.body().clone();
    stanza.remove_children(|e| e.is("other", "urn:xmpp:delay"));
    assert_eq!(stanza.body().as_ptr(), body.as_ptr(), "untouched where nothing goes");
    stanza.remove_children(|e| e.is("delay", "urn:xmpp:delay"));
    assert_eq!(text(&stanza), "<message type='chat'><body>a&amp;b</body></message>");
    assert_eq!(stanza.payload().unwrap().name(), "body");
}

#[test]
fn a_child_is_found_without_a_tree_where_its_tag_says_all() {
    let body =
        |body: &'static str| Stanza::new(Head::new(Kind::Message), Bytes::from_static(body.as_bytes()));
    let cases = [
        ("", false, false),
        ("<x xmlns='u'/>", true, false),
        ("<x xmlns='v'/>", false, false),
        ("<y><x xmlns='u'/></y>", false, false),
        ("<p:x xmlns:p='u'/>", true, true),
        ("<p:x xmlns:p='v'/>", false, true),
        ("<x xmlns='&#117;'/>", true, true),
        ("<x xmlns='v'/><x xmlns='u'/>", true, false),
    ];
    for (xml, has, by_tree) in cases {
        let stanza = body(xml);
        assert_eq!(stanza.has_child("x", "u"), has, "{xml}");
        assert_eq!(stanza.dom.get().is_some(), by_tree, "{xml}");
        assert_eq!(body(xml).child("x", "u").is_some(), has, "{xml}");
    }
    let mut changed = body("<a/>");
    assert!(!changed.has_named(&["x"]));
    changed.append_child(&Element::bare("x", "u"));
    assert!(changed.has_child("x", "u") && changed.child("x", "u").is_some());
    changed.remove_children(|child| child.name() == "x");
    assert!(!changed.has_named(&["x"]) && changed.has_named(&["a"]));
    assert!(body("<a/><p:x xmlns:p='v'/>").has_named(&["y", "x"]));
    assert!(!body("<a><x/></a>x").has_named(&["y", "x"]));
}

#[test]
fn types_are_read_as_the_rfc_says() {
    let message = |t| Stanza::message(t).message_type();
    assert_eq!(message(None), MessageType::Normal);
    assert_eq!(message(Some("nonsense")), MessageType::Normal);
    assert_eq!(message(Some("groupchat")), MessageType::Groupchat);
    let presence = |t| Stanza::presence(t).presence_type();
    assert_eq!(presence(None), Ok(PresenceType::Available));
    assert_eq!(presence(Some("probe")), Ok(PresenceType::Probe));
    assert_eq!(presence(Some("available")).unwrap_err().condition, Condition::BadRequest);
    assert_eq!(Stanza::iq("set", "1", None).iq_type(), Ok(IqType::Set));
    assert_eq!(Stanza::iq("SET", "1", None).iq_type().unwrap_err().condition, Condition::BadRequest);
}

#[test]
fn an_iq_of_a_wrong_shape_is_a_bad_request() {
    let head = |type_: Option<&str>, id: Option<&str>| Head {
        type_: type_.map(Into::into),
        id: id.map(Into::into),
        ..Head::new(Kind::Iq)
    };
    let cases = [
        (head(Some("get"), Some("1")), 1, true),
        (head(Some("get"), Some("1")), 0, false),
        (head(Some("set"), Some("1")), 2, false),
        (head(Some("result"), Some("1")), 0, true),
        (head(Some("result"), Some("1")), 2, false),
        (head(Some("error"), Some("1")), 2, true),
        (head(None, Some("1")), 1, false),
        (head(Some("x"), Some("1")), 1, false),
        (head(Some("get"), None), 1, false),
        (Head::new(Kind::Message), 9, true),
    ];
    for (head, children, good) in cases {
        assert_eq!(head.check_shape(children).is_ok(), good, "{head:?} {children}");
    }
}

#[test]
fn what_is_no_stanza_is_refused() {
    let read = |xml: &str| Stanza::from_element(&dom::parse(xml.as_bytes()).unwrap()).map(|_| ());
    assert_eq!(read("<message xmlns='evil'/>"), Err(BadShape::NotAStanza));
    assert_eq!(read("<foo xmlns='jabber:client'/>"), Err(BadShape::NotAStanza));
    assert_eq!(read("<iq xmlns='jabber:client' to='@@@'/>"), Err(BadShape::BadAddress));
}

//! Bytes in pieces through the reader: the cut changes nothing, bounds hold, what was taken reads again as the same.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rxml::Parse;
use stanza::{Stanza, dom};
use stream::{Limits, Reader, StreamEvent};

const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' xmlns:p='urn:p' to='x' version='1.0' xml:lang='de'>";

/// Small enough to be met by short inputs.
const SMALL: Limits = Limits { stanza_bytes: 600, elements: 12, depth: 5, attributes: 6, token_bytes: 200 };

// The first byte chooses: bounds (bit 0), a good header in front (bit 1), the length of the pieces (the rest).
fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let limits = if choice & 1 == 0 { Limits::after_auth() } else { SMALL };
    let mut bytes = if choice & 2 == 0 { [HEADER, rest].concat() } else { rest.to_vec() };
    // After a `]` or half a character the parser waits for one more byte before it speaks.
    bytes.push(b' ');
    let whole = hear(Reader::new(limits), &mut [&bytes[..]].into_iter());
    let split = hear(Reader::new(limits), &mut bytes.chunks(1 + usize::from(choice >> 2)));
    let parsed = hear(Reader::by_parser(limits), &mut [&bytes[..]].into_iter());
    // The scanner takes nothing that the parser would not take, and takes it for the same.
    assert_eq!(whole.heard, parsed.heard);
    assert_eq!(whole.failed, parsed.failed);
    // Where one piece of text is wrong twice, the cut decides which of the two is met first.
    assert_eq!(whole.heard, split.heard);
    assert_eq!(whole.failed, split.failed);
    // An open tag is judged when it is complete.
    if whole.between && !whole.failed && !whole.closed {
        assert!(rxml_takes(&bytes), "taken, and refused by the parser that knows namespaces");
    }
    // Bodies of other nodes and records of the store are read so.
    let _ = dom::parse(rest);
});

#[derive(Default)]
struct Heard {
    heard: Vec<String>,
    failed: bool,
    closed: bool,
    between: bool,
}

fn hear<'a>(mut reader: Reader, pieces: &mut dyn Iterator<Item = &'a [u8]>) -> Heard {
    let limits = reader.limits();
    let mut all = Heard::default();
    let mut input = BytesMut::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match reader.feed(&mut input) {
                Ok(Some(event)) => {
                    all.closed |= matches!(event, StreamEvent::Close);
                    all.heard.push(look_at(limits, event));
                }
                Ok(None) => break,
                Err(_) => {
                    all.failed = true;
                    return all;
                }
            }
        }
        assert!(input.is_empty(), "what gave no event was taken");
        reader.release();
        all.between = reader.is_between();
    }
    all
}

/// An event as text, after a look at what must hold for it.
fn look_at(limits: Limits, event: StreamEvent) -> String {
    match event {
        StreamEvent::Header(header) => format!("{header:?}"),
        StreamEvent::Stanza(stanza) => {
            let written = write(&stanza);
            assert!(stanza.body().len() <= limits.stanza_bytes, "a body beyond the bound");
            let tree = stanza.dom();
            assert!(
                count(tree) <= limits.elements && depth(tree) <= limits.depth,
                "a tree beyond the bounds"
            );
            let Some(again) = reread(&written) else { panic!("it is no stanza any more") };
            assert_eq!(again.dom(), stanza.dom(), "read again it is another");
            assert_eq!(write(&again), written, "written again it is another");
            String::from_utf8(written.to_vec()).expect("what was written is text")
        }
        StreamEvent::BadStanza { reply } => {
            let written = reply.as_ref().map(write);
            // Of an iq without an id the answer has none either: one stanza it is all the same.
            written.iter().for_each(|written| drop(reread(written)));
            format!("bad {written:?}")
        }
        StreamEvent::Element(element) => {
            let bytes = dom::to_bytes(&element);
            assert_eq!(dom::parse(&bytes).as_ref(), Ok(&element), "read again it is another");
            format!("{bytes:?}")
        }
        StreamEvent::Close => "close".to_owned(),
    }
}

/// The stanza as a receiver's own reader hears it, on a stream without the declarations of the sender's.
fn reread(written: &[u8]) -> Option<Stanza> {
    let mut reader = Reader::new(Limits { token_bytes: 64 << 10, ..Limits::after_auth() });
    let mut input =
        BytesMut::from(&b"<s:stream xmlns:s='http://etherx.jabber.org/streams' xmlns='jabber:client'>"[..]);
    input.extend_from_slice(written);
    let header = reader.feed(&mut input);
    assert!(matches!(header, Ok(Some(StreamEvent::Header(_)))));
    let again = match reader.feed(&mut input) {
        Ok(Some(StreamEvent::Stanza(again))) => Some(again),
        Ok(Some(StreamEvent::BadStanza { .. })) => None,
        other => panic!("a receiver hears {other:?}"),
    };
    assert!(input.is_empty(), "it became more than one");
    again
}

fn write(stanza: &Stanza) -> BytesMut {
    let mut out = BytesMut::new();
    stanza.write(&mut out);
    out
}

fn count(element: &minidom::Element) -> usize {
    1 + element.children().map(count).sum::<usize>()
}

fn depth(element: &minidom::Element) -> usize {
    1 + element.children().map(depth).max().unwrap_or(0)
}

fn rxml_takes(mut bytes: &[u8]) -> bool {
    // It loses a carriage return in an attribute, and reads no white space in front of a header.
    if bytes.contains(&b'\r') || bytes.first().is_some_and(u8::is_ascii_whitespace) {
        return true;
    }
    let mut parser = rxml::Parser::new();
    loop {
        match parser.parse(&mut bytes, false) {
            Ok(Some(_)) => {}
            Ok(None) | Err(rxml::error::EndOrError::NeedMoreData) => return true,
            Err(rxml::error::EndOrError::Error(_)) => return false,
        }
    }
}

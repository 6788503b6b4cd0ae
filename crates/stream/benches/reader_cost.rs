//! What reading costs: CPU time per stanza by the scanner, and by the parser that reads what is not plain.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use stream::{Limits, Reader, StreamEvent};

const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";

/// A line of a chat, presence with what clients add to it, and a message out of an archive.
const STANZAS: [(&str, &str); 3] = [
    (
        "chat",
        "<message to='juliet@capulet.example/balcony' type='chat' id='c0000001'><body>A message of usual length, as \
         people write them to each other all day.</body><active xmlns='http://jabber.org/protocol/chatstates'/><request \
         xmlns='urn:xmpp:receipts'/></message>",
    ),
    (
        "presence",
        "<presence id='p1'><show>away</show><status>In the garden, back in ten minutes</status><priority>5</priority>\
         <c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://client.example' \
         ver='q07IKJEyjvHSyhy//CH0CxmKi8w='/><c xmlns='urn:xmpp:caps'><hash xmlns='urn:xmpp:hashes:2' \
         algo='sha-256'>kzBZbkqJ3ADrj7v08reD1qcWUwNGHaidNUgD7nHpiw8=</hash></c><x \
         xmlns='vcard-temp:x:update'><photo>01b87fcd030b72895ff8e88db57ec525450f000d</photo></x><idle \
         xmlns='urn:xmpp:idle:1' since='2026-11-29T17:00:00Z'/></presence>",
    ),
    ("request for acknowledgement", "<r xmlns='urn:xmpp:sm:3'/>"),
];

/// How often each is read in a run.
const TIMES: usize = 100_000;
/// As many as one read of a socket may bring.
const AT_ONCE: usize = 16;
/// The best of so many runs: what others do on the machine only adds.
const RUNS: usize = 5;

fn main() {
    for (name, stanza) in STANZAS {
        let [scanned, parsed] = [Reader::new, Reader::by_parser].map(|make| cost(make, stanza));
        println!("{name}, {} bytes: {scanned} ns by the scanner, {parsed} ns by the parser", stanza.len());
    }
}

/// The least that one stanza cost, in nanoseconds.
fn cost(make: fn(Limits) -> Reader, stanza: &str) -> u128 {
    let pieces = stanza.repeat(AT_ONCE);
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let mut reader = make(Limits::after_auth());
        let mut input = BytesMut::from(HEADER);
        take(&mut reader, &mut input);
        let begun = Instant::now();
        for _ in 0..TIMES / AT_ONCE {
            input.extend_from_slice(pieces.as_bytes());
            assert_eq!(take(&mut reader, &mut input), AT_ONCE);
        }
        best = best.min(begun.elapsed());
    }
    best.as_nanos() / TIMES as u128
}

/// Reads all that is there: how many events it was.
fn take(reader: &mut Reader, input: &mut BytesMut) -> usize {
    let mut events = 0;
    while let Ok(Some(event)) = reader.feed(input) {
        assert!(!matches!(event, StreamEvent::BadStanza { .. }), "a good stanza is taken");
        black_box(event);
        events += 1;
    }
    events
}

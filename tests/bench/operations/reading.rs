//! Reads stanzas as they come from a socket, by the scanner and by the parser that reads what is not plain.

use std::hint::black_box;

use bytes::BytesMut;
use stream::{Limits, Reader, StreamEvent};

use crate::operation::Operation;

const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";
/// Reads of a socket in a go.
const READS: usize = 16;
/// Stanzas that one of them brings.
const AT_ONCE: usize = 16;

pub struct Reading {
    reader: Reader,
    input: BytesMut,
    pieces: String,
}

impl Reading {
    /// By the scanner.
    pub fn scanned(stanza: &str) -> Box<dyn Operation> {
        Reading::begin(Reader::new(Limits::after_auth()), stanza)
    }

    /// By the parser.
    pub fn parsed(stanza: &str) -> Box<dyn Operation> {
        Reading::begin(Reader::by_parser(Limits::after_auth()), stanza)
    }

    fn begin(reader: Reader, stanza: &str) -> Box<dyn Operation> {
        let input = BytesMut::from(HEADER);
        let mut reading = Reading { reader, input, pieces: stanza.repeat(AT_ONCE) };
        assert_eq!(reading.take(), 1, "a header is an event");
        Box::new(reading)
    }

    /// Reads all that is there: how many events it was.
    fn take(&mut self) -> usize {
        let mut events = 0;
        while let Ok(Some(event)) = self.reader.feed(&mut self.input) {
            assert!(!matches!(event, StreamEvent::BadStanza { .. }), "a good stanza is taken");
            black_box(event);
            events += 1;
        }
        events
    }
}

impl Operation for Reading {
    fn times(&self) -> u64 {
        (READS * AT_ONCE) as u64
    }

    fn go(&mut self) {
        for _ in 0..READS {
            self.input.extend_from_slice(self.pieces.as_bytes());
            assert_eq!(self.take(), AT_ONCE, "each stanza is read");
        }
    }
}

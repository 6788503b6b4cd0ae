//! Finds where the elements of a stream begin and end, and looks into them, without making a tree.
//!
//! It trusts the server as far as a load generator may: what it cannot follow is an error, never a panic.

use std::ops::Range;

use anyhow::{Result, bail};
use memchr::{memchr, memchr3, memmem};

/// What stands at the top level of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The opening tag of the stream (RFC 6120, 4.7).
    Header(Range<usize>),
    /// A whole stanza or stream element.
    Element(Range<usize>),
    /// The closing tag of the stream.
    End,
}

/// A place in a growing buffer; what it has seen is not looked at again.
#[derive(Default)]
pub struct Scanner {
    at: usize,
    start: usize,
    depth: usize,
}

impl Scanner {
    /// The next piece that is whole, as a range of `bytes`; `None` until there are more of them.
    ///
    /// # Errors
    /// Where something stands in the stream that XMPP forbids (RFC 6120, 11.1).
    pub fn next(&mut self, bytes: &[u8]) -> Result<Option<Piece>> {
        loop {
            let Some(found) = memchr(b'<', &bytes[self.at..]) else {
                self.at = bytes.len();
                return Ok(None);
            };
            let open = self.at + found;
            let Some(end) = tag_end(bytes, open)? else {
                self.at = open;
                return Ok(None);
            };
            self.at = end;
            if self.depth == 0 {
                self.start = open;
            }
            match bytes[open + 1] {
                b'?' | b'!' => continue,
                b'/' if self.depth == 0 => return Ok(Some(Piece::End)),
                b'/' => self.depth -= 1,
                _ if bytes[end - 2] == b'/' => {}
                _ if self.depth == 0 && bytes[open + 1..].starts_with(b"stream:stream") => {
                    return Ok(Some(Piece::Header(open..end)));
                }
                _ => self.depth += 1,
            }
            if self.depth == 0 {
                return Ok(Some(Piece::Element(self.start..end)));
            }
        }
    }

    /// Says that the first `count` bytes of the buffer are gone.
    pub fn forget(&mut self, count: usize) {
        self.at = self.at.saturating_sub(count);
        self.start = self.start.saturating_sub(count);
    }
}

/// Behind the `>` of the tag that begins at `open`; a `>` in an attribute's value is none.
fn tag_end(bytes: &[u8], open: usize) -> Result<Option<usize>> {
    const CDATA: &[u8] = b"<![CDATA[";
    if bytes.get(open + 1) == Some(&b'!') {
        let head = &bytes[open..bytes.len().min(open + CDATA.len())];
        if !CDATA.starts_with(head) {
            bail!("a comment or a document type in the stream");
        }
        return Ok(memmem::find(&bytes[open..], b"]]>").map(|at| open + at + 3));
    }
    let mut at = open + 1;
    while let Some(found) = memchr3(b'>', b'"', b'\'', &bytes[at..]) {
        let here = at + found;
        if bytes[here] == b'>' {
            if here == open + 1 {
                bail!("a tag without a name");
            }
            return Ok(Some(here + 1));
        }
        match memchr(bytes[here], &bytes[here + 1..]) {
            Some(close) => at = here + 1 + close + 1,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// One element, as it came.
#[derive(Clone, Copy)]
pub struct Stanza<'a>(pub &'a [u8]);

impl<'a> Stanza<'a> {
    /// The name in the opening tag, with its prefix.
    pub fn name(self) -> &'a [u8] {
        let end = self.0.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'>' | b'/'));
        self.0.get(1..end.unwrap_or(self.0.len())).unwrap_or_default()
    }

    /// The value of an attribute of the opening tag, with its references as they came.
    pub fn attribute(self, name: &[u8]) -> Option<&'a [u8]> {
        let mut rest = &self.0[1 + self.name().len()..];
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() || rest[0] == b'>' || rest[0] == b'/' {
                return None;
            }
            let equals = memchr(b'=', rest)?;
            let after = rest[equals + 1..].trim_ascii_start();
            let quote = *after.first()?;
            let close = memchr(quote, &after[1..])?;
            if rest[..equals].trim_ascii_end() == name {
                return Some(&after[1..=close]);
            }
            rest = &after[close + 2..];
        }
    }

    /// The text directly behind the opening tag of the first element of this name, at any depth.
    pub fn text_of(self, element: &[u8]) -> Option<&'a [u8]> {
        for at in memmem::find_iter(self.0, element) {
            let behind = self.0.get(at + element.len());
            if at == 0 || self.0[at - 1] != b'<' || !matches!(behind, Some(b'>' | b' ')) {
                continue;
            }
            let begin = tag_end(self.0, at - 1).ok()??;
            let length = memchr(b'<', &self.0[begin..])?;
            return Some(&self.0[begin..begin + length]);
        }
        None
    }

    /// Whether these bytes stand anywhere in it.
    pub fn has(self, bytes: &[u8]) -> bool {
        memmem::find(self.0, bytes).is_some()
    }

    /// Whether it says that something failed (RFC 6120, 8.3).
    pub fn is_error(self) -> bool {
        self.attribute(b"type") == Some(b"error")
    }

    /// As text, for messages to people.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

/// The decimal number that bytes begin with, and what stands behind it.
pub fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = std::str::from_utf8(&bytes[..digits]).ok()?;
    Some((text.parse().ok()?, &bytes[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' from='a>b' id=\"x\">\
        <stream:features><a/><b x='/'>t</b></stream:features>\n <iq id='1' type='result'/><message from='a@b'\
        ><body>1 &lt; 2</body><x a='</message>'/><![CDATA[</message>]]></message></stream:stream>";

    fn pieces(chunk: usize) -> Vec<String> {
        let (mut scanner, mut buffer, mut found) = (Scanner::default(), Vec::new(), Vec::new());
        for bytes in STREAM.as_bytes().chunks(chunk) {
            buffer.extend_from_slice(bytes);
            let mut done = 0;
            while let Some(piece) = scanner.next(&buffer).expect("a good stream") {
                match piece {
                    Piece::Header(range) | Piece::Element(range) => {
                        done = range.end;
                        found.push(Stanza(&buffer[range]).text());
                    }
                    Piece::End => found.push("end".to_owned()),
                }
            }
            buffer.drain(..done);
            scanner.forget(done);
        }
        found
    }

    #[test]
    fn pieces_are_the_same_however_the_bytes_come() {
        let whole = pieces(usize::MAX);
        assert_eq!(whole.len(), 5, "{whole:?}");
        assert!(whole[0].starts_with("<stream:stream ") && whole[0].ends_with("id=\"x\">"));
        assert_eq!(whole[1], "<stream:features><a/><b x='/'>t</b></stream:features>");
        assert_eq!(whole[2], "<iq id='1' type='result'/>");
        assert!(whole[3].ends_with("]]></message>"));
        assert_eq!(whole[4], "end");
        for chunk in 1..STREAM.len() {
            assert_eq!(pieces(chunk), whole, "in pieces of {chunk} bytes");
        }
    }

    #[test]
    fn what_a_stream_must_not_hold_is_an_error() {
        for bad in ["<!-- a -->", "<!DOCTYPE a>", "<>"] {
            assert!(Scanner::default().next(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stanza_tells_its_name_attributes_and_text() {
        let stanza = Stanza(
            b"<message xid='no' id = \"c\" type='chat'><bodyguard/><body lang='a>b'>7 8 x</body></message>",
        );
        assert_eq!(stanza.name(), b"message");
        assert_eq!(stanza.attribute(b"id"), Some(&b"c"[..]));
        assert_eq!(stanza.attribute(b"type"), Some(&b"chat"[..]));
        assert_eq!(stanza.attribute(b"from"), None);
        assert_eq!(stanza.text_of(b"body"), Some(&b"7 8 x"[..]));
        assert_eq!(stanza.text_of(b"status"), None);
        assert!(!stanza.is_error());
        assert_eq!(Stanza(b"<r/>").name(), b"r");
        assert_eq!(Stanza(b"<a h='4'/>").attribute(b"h"), Some(&b"4"[..]));
        assert_eq!(number(b"42 x"), Some((42, &b" x"[..])));
        assert_eq!(number(b"x"), None);
    }
}

//! What a reader hears, and why it stops reading.

use minidom::Element;
use stanza::{Stanza, StreamCondition, StreamError};

/// What a stream says, one child at a time.
#[derive(Debug, Clone)]
pub enum StreamEvent {
    /// The opening tag of the stream.
    Header(StreamHeader),
    /// A stanza in `jabber:client`.
    Stanza(Stanza),
    /// A stanza of a wrong shape (`to` is no address, an iq without id): the stream lives, nothing is
    /// routed. The refusal has no `from` yet; `None` where no answer may be sent.
    BadStanza {
        /// The stanza error to send back.
        reply: Option<Stanza>,
    },
    /// Any other child of the stream, with its namespace: STARTTLS, SASL, stream management, or nonsense.
    Element(Element),
    /// `</stream:stream>`. All later input is ignored.
    Close,
}

/// The opening tag of a stream, not judged yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamHeader {
    /// Local name; `stream` in a good one.
    pub name: Box<str>,
    /// Namespace of the tag.
    pub ns: Box<str>,
    /// Default namespace in scope, empty where none is declared.
    pub content_ns: Box<str>,
    /// `to`, as written.
    pub to: Option<Box<str>>,
    /// `from`, as written.
    pub from: Option<Box<str>>,
    /// `id`, on a server's answer.
    pub id: Option<Box<str>>,
    /// `version`.
    pub version: Option<Box<str>>,
    /// `xml:lang`.
    pub lang: Option<Box<str>>,
}

/// Why reading ended. There is no way on from here but to end the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{condition}: {reason}")]
pub struct ReadError {
    /// What the peer is told.
    pub condition: StreamCondition,
    /// What was met; a fixed text, safe to log.
    pub reason: &'static str,
}

impl ReadError {
    pub(super) const fn new(condition: StreamCondition, reason: &'static str) -> ReadError {
        ReadError { condition, reason }
    }

    pub(super) const fn limit(reason: &'static str) -> ReadError {
        ReadError::new(StreamCondition::PolicyViolation, reason)
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> StreamError {
        StreamError::new(error.condition).with_text(error.reason)
    }
}

/// RFC 6120, 4.9.3 and 11.1 for what `rxml` refuses; `read` ends where it stopped.
pub(super) fn map_error(error: rxml::Error, read: &[u8]) -> ReadError {
    use StreamCondition::*;
    match error {
        rxml::Error::RestrictedXml("long name or reference" | "event too long") => {
            ReadError::limit("a name or value too long")
        }
        rxml::Error::RestrictedXml("only utf-8 encoding is allowed") => {
            ReadError::new(UnsupportedEncoding, "only UTF-8 is spoken here")
        }
        rxml::Error::RestrictedXml(reason) => ReadError::new(RestrictedXml, reason),
        // What `<!DOCTYPE` is to a parser that knows comments and CDATA only.
        rxml::Error::InvalidSyntax("malformed cdata or comment section start") => {
            ReadError::new(RestrictedXml, "a DTD or other declaration")
        }
        // RFC 6120, 11.5. The parser expects it behind an encoding only.
        rxml::Error::InvalidSyntax(
            "'version' attribute must be followed by '?>' or 'encoding' attribute",
        ) if last_word(read) == b"standalone" => ReadError::new(RestrictedXml, "a standalone declaration"),
        // Its name for a character's number that never ends, too.
        rxml::Error::UndeclaredEntity if ends_in_number(read) => {
            ReadError::new(NotWellFormed, "a character's number is too long")
        }
        rxml::Error::UndeclaredEntity => ReadError::new(RestrictedXml, "an undeclared entity"),
        rxml::Error::InvalidUtf8Byte(_) => ReadError::new(NotWellFormed, "not UTF-8"),
        _ => ReadError::new(NotWellFormed, "not well-formed"),
    }
}

/// What stands last in a declaration.
fn last_word(read: &[u8]) -> &[u8] {
    let mut words = read.split(|b| b.is_ascii_whitespace() || *b == b'=');
    words.rfind(|word| !word.is_empty()).unwrap_or_default()
}

/// Whether the last reference in the bytes is one by number (`&#`).
fn ends_in_number(read: &[u8]) -> bool {
    let reference = read.iter().rposition(|b| *b == b'&');
    reference.is_some_and(|at| read.get(at + 1) == Some(&b'#'))
}

//! How large and how deep one child of a stream may be; counted on events, before anything is built.

/// Bounds of one child of the stream (a stanza, a SASL element) and of the stream header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from the first `<` to the last `>`.
    pub stanza_bytes: usize,
    /// Elements, the outermost included.
    pub elements: usize,
    /// Nesting, the outermost is 1.
    pub depth: usize,
    /// Attributes of one element, declarations included.
    pub attributes: usize,
    /// Bytes of one name or attribute value.
    pub token_bytes: usize,
}

impl Limits {
    /// RFC 6120, 13.12: a server must take stanzas of this many bytes.
    pub const STANZA_BYTES_MIN: usize = 10_000;

    /// Until the peer has authenticated: room for SASL and no more.
    pub const fn before_auth() -> Limits {
        Limits { stanza_bytes: 8 * 1024, elements: 32, depth: 8, attributes: 64, token_bytes: 8 * 1024 }
    }

    /// For an authenticated client.
    pub const fn after_auth() -> Limits {
        Limits {
            stanza_bytes: 256 * 1024,
            elements: 2_000,
            depth: 64,
            attributes: 64,
            // Such a stanza may be one long attribute.
            token_bytes: Limits::STANZA_BYTES_MIN,
        }
    }
}

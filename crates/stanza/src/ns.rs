//! Namespaces of RFC 6120 and RFC 6121.

/// Content namespace of a client's stream.
pub const CLIENT: &str = "jabber:client";
/// Content namespace of a stream between servers.
pub const SERVER: &str = "jabber:server";
/// Namespace of `<stream:stream>`, `<stream:features/>` and `<stream:error/>`.
pub const STREAM: &str = "http://etherx.jabber.org/streams";
/// Conditions inside `<stream:error/>`.
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// Conditions inside `<error/>` of a stanza.
pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// STARTTLS.
pub const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// SASL.
pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// Resource binding.
pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// The session of RFC 3921, kept as an optional no-op.
pub const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
/// Roster management.
pub const ROSTER: &str = "jabber:iq:roster";
/// The stream feature that tells that roster versions are known.
pub const ROSTER_VERSIONING: &str = "urn:xmpp:features:rosterver";
/// The `xml` prefix.
pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// The `xmlns` prefix.
pub const XMLNS: &str = "http://www.w3.org/2000/xmlns/";

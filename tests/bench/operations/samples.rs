//! The stanzas that the operations are done with.

use hooks::bench::parse;
use jid::Jid;
use stanza::Stanza;

/// A line of a chat, 254 bytes.
pub const CHAT: &str = "<message to='juliet@capulet.example/balcony' type='chat' id='c0000001'><body>A message of usual \
    length, as people write them to each other all day.</body><active xmlns='http://jabber.org/protocol/chatstates'/>\
    <request xmlns='urn:xmpp:receipts'/></message>";
/// Presence with what clients add to it, 511 bytes.
pub const PRESENCE: &str = "<presence id='p1'><show>away</show><status>In the garden, back in ten minutes</status>\
    <priority>5</priority><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://client.example' \
    ver='q07IKJEyjvHSyhy//CH0CxmKi8w='/><c xmlns='urn:xmpp:caps'><hash xmlns='urn:xmpp:hashes:2' \
    algo='sha-256'>kzBZbkqJ3ADrj7v08reD1qcWUwNGHaidNUgD7nHpiw8=</hash></c><x xmlns='vcard-temp:x:update'>\
    <photo>01b87fcd030b72895ff8e88db57ec525450f000d</photo></x><idle xmlns='urn:xmpp:idle:1' \
    since='2026-11-29T17:00:00Z'/></presence>";
/// A request for acknowledgement (XEP-0198).
pub const REQUEST: &str = "<r xmlns='urn:xmpp:sm:3'/>";

/// The line of a chat with its sender, as the server has it.
pub fn chat() -> Stanza {
    parse(CHAT).with_from(jid("romeo@montague.example/orchard"))
}

/// An address that is one.
pub fn jid(text: &str) -> Jid {
    Jid::new(text).expect("an address")
}

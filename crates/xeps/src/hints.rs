//! [XEP-0334]: Message Processing Hints. What the sender of a message wishes that servers do with it.

use stanza::{MessageType, Stanza};

pub const NS: &str = "urn:xmpp:hints";

/// The hints of one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hints {
    /// Kept nowhere, not even until the receiver comes.
    pub no_store: bool,
    /// Not kept for good.
    pub no_permanent_store: bool,
    /// Kept, even where it would not be.
    pub store: bool,
    /// For nobody but whom it is addressed to.
    pub no_copy: bool,
}

impl Hints {
    /// What a message says of itself; nothing, where it is an error (section 5): that one repeats what it answers.
    pub fn of(message: &Stanza) -> Hints {
        if message.message_type() == MessageType::Error {
            return Hints::default();
        }
        let names = ["no-store", "no-permanent-store", "store", "no-copy"];
        let [no_store, no_permanent_store, store, no_copy] = names.map(|name| message.has_child(name, NS));
        Hints { no_store, no_permanent_store, store, no_copy }
    }
}

#[cfg(test)]
mod tests {
    use hooks::bench::parse;

    use super::*;

    #[test]
    fn hints_are_what_stands_in_their_namespace_and_not_in_an_error() {
        let no = Hints::default();
        let cases = [
            ("<message><body>store no-copy</body></message>", no),
            ("<message><store xmlns='urn:xmpp:hints'/></message>", Hints { store: true, ..no }),
            ("<message><store xmlns='urn:xmpp:h&#105;nts'/></message>", Hints { store: true, ..no }),
            ("<message><store xmlns='urn:example'/></message>", no),
            ("<message><x><no-store xmlns='urn:xmpp:hints'/></x></message>", no),
            ("<message type='error'><no-store xmlns='urn:xmpp:hints'/></message>", no),
            (
                "<message><no-store xmlns='urn:xmpp:hints'/><h:no-permanent-store xmlns:h='urn:xmpp:hints'/>\
                 <no-copy xmlns='urn:xmpp:hints'/><other xmlns='urn:xmpp:hints'/></message>",
                Hints { no_store: true, no_permanent_store: true, no_copy: true, store: false },
            ),
        ];
        for (xml, expected) in cases {
            assert_eq!(Hints::of(&parse(xml)), expected, "{xml}");
        }
    }
}

//! Answers to a stanza: the result of an iq, the error that bounces it.

use bytes::{Bytes, BytesMut};
use minidom::Element;

use crate::dom;
use crate::error::StanzaError;
use crate::ns;
use crate::stanza::{Head, Kind, Stanza};

impl Stanza {
    /// Answers an iq: addresses swapped, id kept, `type='result'`.
    pub fn result(&self, payload: Option<&Element>) -> Stanza {
        let mut body = BytesMut::new();
        if let Some(payload) = payload {
            dom::write(payload, ns::CLIENT, &mut body);
        }
        Stanza::new(self.answer_head("result"), body.freeze())
    }

    /// As [`Stanza::result`], with a payload that is written already: self-contained XML under `jabber:client`,
    /// as the body of any stanza (see [`Stanza::new`]).
    pub fn written_result(&self, payload: Bytes) -> Stanza {
        Stanza::new(self.answer_head("result"), payload)
    }

    /// Refuses a stanza. `None` for one that is never answered: an error (RFC 6120, 8.3.1) or the result
    /// of an iq (RFC 6120, 8.2.3).
    pub fn error(&self, error: &StanzaError) -> Option<Stanza> {
        if !self.head.may_be_refused() {
            return None;
        }
        let mut body = BytesMut::with_capacity(160);
        dom::write(&error.element(), ns::CLIENT, &mut body);
        Some(Stanza::new(self.answer_head("error"), body.freeze()))
    }

    /// The error that this stanza carries, if it is of type `error`.
    pub fn as_error(&self) -> Option<StanzaError> {
        if self.head.type_.as_deref() != Some("error") {
            return None;
        }
        let missing = || StanzaError::new(crate::error::Condition::UndefinedCondition);
        Some(self.child("error", ns::CLIENT).map_or_else(missing, StanzaError::from_element))
    }

    fn answer_head(&self, type_: &str) -> Head {
        Head {
            to: self.head.from.clone(),
            from: self.head.to.clone(),
            // RFC 6120, 8.3.1: an error about an iq has an id, an empty one where the iq had none.
            id: self.head.id.clone().or_else(|| (self.head.kind == Kind::Iq).then(Box::default)),
            type_: Some(type_.into()),
            ..Head::new(self.head.kind)
        }
    }
}

impl Head {
    /// Whether an error may be sent about it: errors and iq results are never answered.
    pub fn may_be_refused(&self) -> bool {
        match self.type_.as_deref() {
            Some("error") => false,
            Some("result") => self.kind != Kind::Iq,
            _ => true,
        }
    }

    /// The refusal of a stanza of which only the head is known.
    pub fn refusal(&self, error: &StanzaError) -> Option<Stanza> {
        Stanza::new(self.clone(), Bytes::new()).error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Condition;
    use crate::stanza::tests::{stanza, text};

    #[test]
    fn a_result_goes_back_with_the_same_id() {
        let ask =
            stanza("<iq xmlns='jabber:client' type='get' id='7' from='a@x/r' to='x'><ping xmlns='p'/></iq>");
        let payload = Element::bare("pong", "p");
        assert_eq!(
            text(&ask.result(Some(&payload))),
            "<iq to='a@x/r' from='x' id='7' type='result'><pong xmlns='p'/></iq>"
        );
        assert_eq!(text(&ask.result(None)), "<iq to='a@x/r' from='x' id='7' type='result'/>");
    }

    #[test]
    fn errors_and_results_are_never_refused() {
        let cases = [
            ("<message xmlns='jabber:client' type='error'/>", false),
            ("<presence xmlns='jabber:client' type='error'/>", false),
            ("<iq xmlns='jabber:client' type='error' id='1'/>", false),
            ("<iq xmlns='jabber:client' type='result' id='1'/>", false),
            ("<iq xmlns='jabber:client' type='get' id='1'/>", true),
            ("<message xmlns='jabber:client' type='result'/>", true),
            ("<presence xmlns='jabber:client'/>", true),
        ];
        for (xml, refused) in cases {
            let answer = stanza(xml).error(&StanzaError::new(Condition::Forbidden));
            assert_eq!(answer.is_some(), refused, "{xml}");
        }
    }

    #[test]
    fn a_refusal_has_the_id_of_what_it_refuses() {
        let cases = [
            ("<iq xmlns='jabber:client' type='get'/>", Some("")),
            ("<iq xmlns='jabber:client' type='get' id=''/>", Some("")),
            ("<iq xmlns='jabber:client' type='get' id='7'/>", Some("7")),
            ("<message xmlns='jabber:client' id='7'/>", Some("7")),
            ("<message xmlns='jabber:client'/>", None),
            ("<presence xmlns='jabber:client'/>", None),
        ];
        for (xml, id) in cases {
            let answer = stanza(xml).error(&StanzaError::new(Condition::BadRequest)).unwrap();
            assert_eq!(answer.head.id.as_deref(), id, "{xml}");
        }
    }

    #[test]
    fn a_refusal_can_be_read_again() {
        let ask =
            stanza("<message xmlns='jabber:client' id='1' from='a@x/r' to='b@x'><body>hi</body></message>");
        let error = StanzaError::new(Condition::ServiceUnavailable).with_text("nobody there");
        assert_eq!(ask.as_error(), None);
        assert_eq!(ask.error(&error).unwrap().as_error(), Some(error));
    }
}

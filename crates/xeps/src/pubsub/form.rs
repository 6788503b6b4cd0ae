//! [XEP-0004]: Data Forms, as far as nodes are configured with them.

use minidom::Element;
use stanza::StanzaError;

use crate::failure::bad_request;
use crate::xml::{Build, element};

pub const NS: &str = "jabber:x:data";

/// The fields that were submitted, in their order: a name and its values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, Vec<String>)>);

impl Fields {
    /// Reads the form in `parent`; `None`: there is none, or it was cancelled.
    pub fn read(parent: &Element, form_type: &str) -> Result<Option<Fields>, StanzaError> {
        let Some(form) = parent.get_child("x", NS) else { return Ok(None) };
        match form.attr("type") {
            Some("cancel") => return Ok(None),
            Some("submit") => {}
            _ => return Err(bad_request("a form is of type `submit` or `cancel`")),
        }
        let mut fields = Vec::new();
        let mut said = None;
        for field in form.children().filter(|child| child.is("field", NS)) {
            let values = field.children().filter(|child| child.is("value", NS)).map(Element::text);
            let values: Vec<String> = values.collect();
            match field.attr("var") {
                Some("FORM_TYPE") => said = values.into_iter().next(),
                Some(var) => fields.push((var.to_owned(), values)),
                // XEP-0004, 3.2: such a field says nothing.
                None => {}
            }
        }
        match said {
            Some(said) if said == form_type => Ok(Some(Fields(fields))),
            _ => Err(bad_request(&format!("the form's `FORM_TYPE` is `{form_type}`"))),
        }
    }

    /// The first value of a field.
    pub fn value(&self, var: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(name, _)| name == var)?;
        values.first().map(String::as_str)
    }
}

/// XEP-0004, 3.3: a truth value as it may be written.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// How a truth value is written.
pub fn word(truth: bool) -> &'static str {
    if truth { "1" } else { "0" }
}

/// An empty form of a type that says what it is about.
pub fn form(kind: &str, form_type: &str) -> Element {
    let hidden = field("FORM_TYPE", Some("hidden"), [form_type]);
    element("x", NS).with("type", kind).child(hidden)
}

/// A field with its values.
pub fn field<'a>(var: &str, kind: Option<&str>, values: impl IntoIterator<Item = &'a str>) -> Element {
    let field = element("field", NS).with("var", var).with_some("type", kind);
    values.into_iter().fold(field, |field, value| field.child(element("value", NS).text_node(value)))
}

/// The field with these values to choose from.
pub fn with_options<'a>(field: Element, options: impl IntoIterator<Item = &'a str>) -> Element {
    let option = |value| element("option", NS).child(element("value", NS).text_node(value));
    options.into_iter().fold(field, |field, value| field.child(option(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(xml: &str) -> Result<Option<Fields>, StanzaError> {
        let parent = format!("<configure xmlns='{}'>{xml}</configure>", crate::pubsub::NS);
        Fields::read(&stanza::dom::parse(parent.as_bytes()).unwrap(), "urn:form")
    }

    #[test]
    fn a_submitted_form_is_its_fields_and_a_cancelled_one_is_none() {
        let form = "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'>\
                    <value>urn:form</value></field><field var='a'><value>1</value><value>2</value></field>\
                    <field var='b'/><field type='fixed'><value>c</value></field></x>";
        let fields = read(form).unwrap().unwrap();
        assert_eq!(
            fields,
            Fields(vec![("a".into(), vec!["1".into(), "2".into()]), ("b".into(), Vec::new())])
        );
        assert_eq!((fields.value("a"), fields.value("b"), fields.value("c")), (Some("1"), None, None));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("<x xmlns='jabber:x:data' type='cancel'/>"), Ok(None));
    }

    #[test]
    fn a_form_of_another_kind_is_refused() {
        for form in [
            "<x xmlns='jabber:x:data' type='submit'/>",
            "<x xmlns='jabber:x:data'/>",
            "<x xmlns='jabber:x:data' type='result'/>",
            "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:other</value></field></x>",
        ] {
            assert!(read(form).is_err(), "{form}");
        }
    }
}

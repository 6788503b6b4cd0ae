//! [XEP-0004]: Data Forms, as far as modules write and read them.

use std::collections::BTreeMap;

use minidom::Element;

use crate::xml::{Build, element};

pub const NS: &str = "jabber:x:data";
const FORM_TYPE: &str = "FORM_TYPE";

/// What a form asks for, in one of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The kind of its value (XEP-0004, 3.3).
    pub kind: &'static str,
    pub var: &'static str,
    /// For people.
    pub label: &'static str,
    pub required: bool,
}

impl Field {
    fn element(&self) -> Element {
        let field =
            element("field", NS).with("type", self.kind).with("var", self.var).with("label", self.label);
        if self.required { field.child(element("required", NS)) } else { field }
    }
}

/// A form to be filled in.
pub fn form(form_type: &str, title: &str, instructions: &str, fields: &[Field]) -> Element {
    let form = element("x", NS)
        .with("type", "form")
        .child(element("title", NS).text_node(title))
        .child(element("instructions", NS).text_node(instructions))
        .child(hidden(form_type));
    fields.iter().map(Field::element).fold(form, Element::child)
}

/// A form with what was found: each field by its name, with its values.
pub fn result<'a>(form_type: &str, fields: impl IntoIterator<Item = (&'a str, Vec<String>)>) -> Element {
    let field = |(var, values)| (element("field", NS).with("var", var), values);
    found(form_type, fields.into_iter().map(field))
}

/// As [`result`], where each field says of what kind it is (XEP-0004, 3.3).
pub fn typed_result<'a>(
    form_type: &str,
    fields: impl IntoIterator<Item = (&'a str, &'a str, Vec<String>)>,
) -> Element {
    let field = |(var, kind, values)| (element("field", NS).with("var", var).with("type", kind), values);
    found(form_type, fields.into_iter().map(field))
}

fn found(form_type: &str, fields: impl Iterator<Item = (Element, Vec<String>)>) -> Element {
    let form = element("x", NS).with("type", "result").child(hidden(form_type));
    let field = |(field, values): (Element, Vec<String>)| {
        values.iter().map(|value| element("value", NS).text_node(value)).fold(field, Element::child)
    };
    fields.map(field).fold(form, Element::child)
}

fn hidden(form_type: &str) -> Element {
    let field = element("field", NS).with("var", FORM_TYPE).with("type", "hidden");
    field.child(element("value", NS).text_node(form_type))
}

/// What somebody filled in, by the names of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filled(BTreeMap<String, Vec<String>>);

impl Filled {
    /// Of a form of the type `submit` that is a child of `parent`; `None`: there is none.
    pub fn of(parent: &Element) -> Option<Filled> {
        let form =
            parent.children().find(|child| child.is("x", NS) && child.attr("type") == Some("submit"))?;
        let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for field in form.children().filter(|child| child.is("field", NS)) {
            let Some(var) = field.attr("var") else { continue };
            let values = field.children().filter(|child| child.is("value", NS)).map(Element::text);
            fields.entry(var.to_owned()).or_default().extend(values);
        }
        Some(Filled(fields))
    }

    /// The type that the form says it is of; one that says none is taken for what is expected.
    pub fn is_of(&self, form_type: &str) -> bool {
        self.values(FORM_TYPE).first().is_none_or(|said| said == form_type)
    }

    pub fn values(&self, var: &str) -> &[String] {
        self.0.get(var).map_or(&[], Vec::as_slice)
    }

    /// The first value of a field, if it says anything.
    pub fn value(&self, var: &str) -> Option<&str> {
        self.values(var).first().map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_read() {
        let xml = "<c xmlns='urn:c'><x xmlns='jabber:x:data' type='submit'>\
                   <field var='FORM_TYPE'><value>urn:a</value></field><field><value>lost</value></field>\
                   <field var='a'><value> 1 </value><value>2</value></field><field var='b'><value/></field>\
                   <field var='c'/></x></c>";
        let filled = Filled::of(&stanza::dom::parse(xml.as_bytes()).unwrap()).unwrap();
        assert!(filled.is_of("urn:a") && !filled.is_of("urn:b"));
        assert_eq!((filled.value("a"), filled.value("b"), filled.value("c")), (Some("1"), None, None));
        assert_eq!(filled.values("a"), [" 1 ", "2"]);
        let other =
            stanza::dom::parse(b"<c xmlns='urn:c'><x xmlns='jabber:x:data' type='cancel'/></c>").unwrap();
        assert_eq!(Filled::of(&other), None);
    }
}

//! [XEP-0004]: Data Forms, as far as modules write them.

use minidom::Element;

use crate::xml::{Build, element};

pub const NS: &str = "jabber:x:data";
const FORM_TYPE: &str = "FORM_TYPE";

/// A form with what was found: each field by its name, with its values.
pub fn result<'a>(form_type: &str, fields: impl IntoIterator<Item = (&'a str, Vec<String>)>) -> Element {
    let form = element("x", NS).with("type", "result").child(hidden(form_type));
    let field = |(var, values): (&str, Vec<String>)| {
        let field = element("field", NS).with("var", var);
        values.iter().map(|value| element("value", NS).text_node(value)).fold(field, Element::child)
    };
    fields.into_iter().map(field).fold(form, Element::child)
}

fn hidden(form_type: &str) -> Element {
    let field = element("field", NS).with("var", FORM_TYPE).with("type", "hidden");
    field.child(element("value", NS).text_node(form_type))
}

//! Building payloads: an element, its attributes, its children.

use minidom::Element;
use minidom::rxml::Namespace;
use stanza::dom;

/// Building words for [`Element`].
pub trait Build: Sized {
    /// Sets a plain attribute; one whose name is no XML name is left out.
    fn with(self, name: &str, value: &str) -> Self;
    /// As `with`, where there is a value.
    fn with_some(self, name: &str, value: Option<&str>) -> Self;
    fn child(self, child: Element) -> Self;
    fn text_node(self, text: &str) -> Self;
}

impl Build for Element {
    fn with(mut self, name: &str, value: &str) -> Element {
        if let Some(name) = dom::attribute_name(name) {
            self.set_attr(Namespace::NONE, name, value);
        }
        self
    }

    fn with_some(self, name: &str, value: Option<&str>) -> Element {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn child(mut self, child: Element) -> Element {
        self.append_child(child);
        self
    }

    fn text_node(mut self, text: &str) -> Element {
        self.append_text_node(text);
        self
    }
}

/// An empty element.
pub fn element(name: &str, namespace: &str) -> Element {
    Element::bare(name, namespace)
}

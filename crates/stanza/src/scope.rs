//! Namespace declarations in scope while a document is read (Namespaces in XML 1.0).

use rxml::NcName;

/// The declarations of the open elements, innermost last.
#[derive(Debug, Default)]
pub struct Scope {
    declared: Vec<Declared>,
    /// How many declarations each open element made.
    levels: Vec<u32>,
}

#[derive(Debug)]
struct Declared {
    prefix: Option<NcName>,
    uri: Box<str>,
    level: usize,
}

/// A prefix is used that no open element declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undeclared;

/// One attribute on an open tag as it was written; a declaration counts as one.
#[derive(Debug)]
pub struct RawAttribute {
    /// The prefix, `xmlns` for a declaration of a prefix.
    pub prefix: Option<NcName>,
    /// The name after the colon.
    pub name: NcName,
    /// The value, references expanded.
    pub value: String,
}

/// Why a start tag is not namespace-well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadTag {
    /// The same attribute twice, by name or by namespace.
    DuplicateAttribute,
    /// A prefix that is not declared.
    UndeclaredPrefix,
    /// A declaration that binds `xml` or `xmlns`, or a prefix to the namespace of one of them.
    ReservedNamespace,
}

impl Scope {
    /// Opens an element: its declarations come into scope, duplicates and unknown prefixes are refused.
    pub fn open(&mut self, attributes: &[RawAttribute]) -> Result<(), BadTag> {
        let level = self.levels.len();
        let mut made = 0;
        for (i, a) in attributes.iter().enumerate() {
            // XML 1.0, 3.1: Unique Att Spec; `xmlns` is an attribute like others here.
            if attributes[..i].iter().any(|b| a.prefix == b.prefix && a.name == b.name) {
                return Err(BadTag::DuplicateAttribute);
            }
            if let Some(prefix) = a.declares() {
                // Namespaces in XML 1.0, 3: what other parsers refuse must not reach them.
                let is_xml = prefix.as_deref().is_some_and(|p| *p == *"xml");
                if (a.value == crate::ns::XML) != is_xml || a.value == crate::ns::XMLNS {
                    return Err(BadTag::ReservedNamespace);
                }
                self.declared.push(Declared { prefix, uri: a.value.as_str().into(), level });
                made += 1;
            }
        }
        self.levels.push(made);
        for (i, a) in attributes.iter().enumerate() {
            let Some(prefix) = a.foreign_prefix() else { continue };
            let uri = self.uri_of(Some(prefix)).map_err(|_| BadTag::UndeclaredPrefix)?;
            // Namespaces in XML 1.0, 6.3: two prefixes of one namespace are the same attribute.
            for b in &attributes[..i] {
                if let Some(other) = b.foreign_prefix()
                    && a.name == b.name
                    && self.uri_of(Some(other)) == Ok(uri)
                {
                    return Err(BadTag::DuplicateAttribute);
                }
            }
        }
        Ok(())
    }

    /// Closes the innermost element: its declarations are forgotten.
    pub fn close(&mut self) {
        if let Some(made) = self.levels.pop() {
            let keep = self.declared.len().saturating_sub(made as usize);
            self.declared.truncate(keep);
        }
    }

    /// The namespace of a prefix, or of names without one (empty where none is declared).
    pub fn uri_of(&self, prefix: Option<&str>) -> Result<&str, Undeclared> {
        self.find(prefix).map(|(uri, _)| uri)
    }

    /// As [`Scope::uri_of`], with the level of the element that declares it: 0 is the root, `None` is
    /// nobody (the `xml` prefix, or no default namespace).
    pub fn find(&self, prefix: Option<&str>) -> Result<(&str, Option<usize>), Undeclared> {
        if prefix == Some("xml") {
            return Ok((crate::ns::XML, None));
        }
        let found = self.declared.iter().rev().find(|d| d.prefix.as_deref().map(|p| &**p) == prefix);
        match (found, prefix) {
            (Some(d), _) => Ok((&d.uri, Some(d.level))),
            (None, None) => Ok(("", None)),
            (None, Some(_)) => Err(Undeclared),
        }
    }

    /// Every declaration in force, one per prefix.
    pub fn declared(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.declared_outside(usize::MAX)
    }

    /// The declarations made above `level`, one per prefix.
    pub fn declared_outside(&self, level: usize) -> impl Iterator<Item = (Option<&str>, &str)> {
        let visible = self.declared.partition_point(|d| d.level < level);
        let visible = &self.declared[..visible];
        visible.iter().enumerate().filter_map(move |(i, d)| {
            let hidden = visible[i + 1..].iter().any(|later| later.prefix == d.prefix);
            // `xml` is bound everywhere and may not be declared to something else.
            let prefix = d.prefix.as_deref().map(|p| &**p);
            (!hidden && prefix != Some("xml")).then_some((prefix, &*d.uri))
        })
    }

    /// How many elements are open.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }
}

impl RawAttribute {
    /// The prefix that this attribute declares (`None` inside for the default namespace).
    pub fn declares(&self) -> Option<Option<NcName>> {
        match self.prefix.as_deref() {
            None if self.name == "xmlns" => Some(None),
            Some(p) if p == "xmlns" => Some(Some(self.name.clone())),
            _ => None,
        }
    }

    /// The prefix of an attribute in a namespace; `None` for plain attributes and declarations.
    pub fn foreign_prefix(&self) -> Option<&str> {
        match self.prefix.as_deref() {
            Some(p) if p != "xmlns" => Some(p),
            _ => None,
        }
    }

    /// Whether this is the plain attribute `name`, in no namespace.
    pub fn is_plain(&self, name: &str) -> bool {
        self.prefix.is_none() && self.name == name
    }
}

//! Which children a raw body has, without a tree: what most rules ask of a stanza.

use memchr::{memchr, memchr2, memchr3, memmem};

/// A child element by its opening tag.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    /// Its local name, in UTF-8.
    pub name: &'a [u8],
    has_prefix: bool,
    attributes: &'a [u8],
    default: &'a str,
}

impl<'a> Child<'a> {
    /// Its namespace; `None` where only a tree can say: it is written with a prefix, or with a reference in it.
    pub fn ns(&self) -> Option<&'a str> {
        if self.has_prefix { None } else { declared(self.attributes).unwrap_or(Some(self.default)) }
    }
}

/// What children are called, as one bit of 64 for each: says of many names at once that none of them is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Names(u64);

impl Names {
    /// Adds the local name of a child.
    pub fn add(&mut self, name: &[u8]) {
        self.0 |= bit(name);
    }

    /// Whether one of these may have been added; `false` is certain.
    pub fn may_have(self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0 & bit(name.as_bytes()) != 0)
    }
}

const fn bit(name: &[u8]) -> u64 {
    let [first, .., last] = name else { return 1 };
    1 << ((*first as usize + 5 * *last as usize + 11 * name.len()) & 63)
}

/// The children of a body (see [`crate::Stanza::new`]) in their order. What is no XML has no more children from there
/// on.
#[derive(Debug, Clone)]
pub struct Outline<'a> {
    rest: &'a [u8],
    /// The namespace of what does not say its own.
    default: &'a str,
    depth: usize,
}

impl<'a> Outline<'a> {
    pub(crate) fn new(body: &'a [u8], default: &'a str) -> Outline<'a> {
        Outline { rest: body, default, depth: 0 }
    }

    /// The attributes of the tag that `rest` stands in, and steps behind it; whether it has content.
    fn attributes(&mut self) -> Option<(&'a [u8], bool)> {
        let tag = self.rest;
        let mut at = 0;
        // Values may hold what else would end the tag.
        loop {
            at += memchr3(b'>', b'\'', b'"', &tag[at..])?;
            match tag[at] {
                b'>' => break,
                quote => at += 2 + memchr(quote, &tag[at + 1..])?,
            }
        }
        self.rest = &tag[at + 1..];
        let is_empty = tag[..at].ends_with(b"/");
        Some((&tag[..at - usize::from(is_empty)], !is_empty))
    }
}

impl<'a> Iterator for Outline<'a> {
    type Item = Child<'a>;

    fn next(&mut self) -> Option<Child<'a>> {
        loop {
            let at = memchr(b'<', self.rest)?;
            self.rest = &self.rest[at + 1..];
            match self.rest.first()? {
                b'/' => {
                    self.depth = self.depth.checked_sub(1)?;
                }
                // XMPP knows nothing else with this mark than CDATA (RFC 6120, 11.1).
                b'!' => self.rest = &self.rest[memmem::find(self.rest, b"]]>")?..],
                _ => {
                    let end =
                        self.rest.iter().position(|byte| is_space(byte) || matches!(byte, b'>' | b'/'))?;
                    let (name, rest) = self.rest.split_at(end);
                    self.rest = rest;
                    let (attributes, has_content) = self.attributes()?;
                    let is_child = self.depth == 0;
                    self.depth += usize::from(has_content);
                    if is_child {
                        let colon = name.iter().position(|byte| *byte == b':');
                        let (name, default) = (colon.map_or(name, |colon| &name[colon + 1..]), self.default);
                        return Some(Child { name, has_prefix: colon.is_some(), attributes, default });
                    }
                }
            }
        }
    }
}

fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// The default namespace that a tag declares, if it does; `Some(None)`: in a way that has to be read with care.
fn declared(attributes: &[u8]) -> Option<Option<&str>> {
    let mut rest = attributes;
    loop {
        let begin = rest.iter().position(|byte| !is_space(byte))?;
        rest = &rest[begin..];
        let end = memchr(b'=', rest)?;
        let name = rest[..end].trim_ascii_end();
        let open = end + memchr2(b'\'', b'"', &rest[end..])?;
        let value = &rest[open + 1..];
        let close = memchr(rest[open], value)?;
        if name == b"xmlns" {
            let is_plain = !value[..close].iter().any(|byte| *byte == b'&' || *byte < b' ');
            let value = is_plain.then(|| std::str::from_utf8(&value[..close]).ok());
            return Some(value.flatten());
        }
        rest = &value[close + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dom, ns};

    fn outline(body: &str) -> Vec<(&str, Option<&str>)> {
        Outline::new(body.as_bytes(), ns::CLIENT)
            .map(|child| (std::str::from_utf8(child.name).unwrap(), child.ns()))
            .collect()
    }

    #[test]
    fn children_are_found_with_their_namespaces() {
        let client = Some(ns::CLIENT);
        type Found = (&'static str, Option<&'static str>);
        let cases: &[(&str, &[Found])] = &[
            ("", &[]),
            ("text &lt;x/&gt;", &[]),
            ("<body>a</body>", &[("body", client)]),
            ("<x xmlns='u'><body/></x><y/>", &[("x", Some("u")), ("y", client)]),
            ("<x a='/>' b=\"'>\" xmlns = \"u'\" ><z>></z></x >\n<y\n/>", &[("x", Some("u'")), ("y", client)]),
            ("<p:x xmlns:p='u'/><y xmlns:xmlns2='v'/>", &[("x", None), ("y", client)]),
            (
                "<x xmlns='u&#x61;'/><y xmlns='a\nb'/><z xmlns=''/>",
                &[("x", None), ("y", None), ("z", Some(""))],
            ),
            ("<a><![CDATA[</a><b>]]></a><![CDATA[<c/>]]><d/>", &[("a", client), ("d", client)]),
        ];
        for (body, expected) in cases {
            assert_eq!(outline(body), *expected, "{body}");
        }
    }

    #[test]
    fn what_is_cut_anywhere_has_no_more_children() {
        let body = "<a x='1' xmlns='u'><b/><![CDATA[ > ]]></a> text <p:c xmlns:p=\"v\">t</p:c><d/>";
        let whole = outline(body);
        for end in 0..body.len() {
            let part = outline(&body[..end]);
            assert!(whole.starts_with(&part), "{}", &body[..end]);
        }
        assert!(outline("</a><b/>").is_empty());
    }

    /// Bodies made of all that could be mistaken for something else: the tree says what is right.
    #[test]
    fn it_agrees_with_the_tree() {
        let mut seed = 1_u64;
        let mut below = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        fn element(below: &mut impl FnMut(usize) -> usize, depth: usize) -> String {
            let name = ["a", "b", "p:c", "store"][below(4)];
            let mut tag = format!("<{name}");
            let attributes = [
                " xmlns='u'",
                " xmlns=\"jabber:client\"",
                " x='>'",
                " y=\"/'>\"",
                " xmlns:q='w'",
                " z='xmlns=\"v\"'",
            ];
            let mut has_default = false;
            for attribute in attributes {
                let is_default = attribute.starts_with(" xmlns=");
                if below(3) == 0 && !(is_default && has_default) {
                    has_default |= is_default;
                    tag.push_str(attribute);
                }
            }
            if name.starts_with("p:") {
                tag.push_str("\n xmlns:p = 'v'");
            }
            if below(3) == 0 {
                return tag + [" />", "/>"][below(2)];
            }
            tag.push('>');
            for _ in 0..below(4) {
                match below(if depth == 0 { 3 } else { 4 }) {
                    0 => tag.push_str("text > ' \""),
                    1 => tag.push_str("<![CDATA[<x></a>]>]]>"),
                    2 => tag.push_str("&lt;a/&gt;"),
                    _ => tag.push_str(&element(below, depth - 1)),
                }
            }
            tag + "</" + name + ["", " "][below(2)] + ">"
        }
        for _ in 0..3_000 {
            let body: String = (0..below(4)).map(|_| element(&mut below, 3)).collect();
            let root = format!("<message xmlns='jabber:client'>{body}</message>");
            let tree = dom::parse(root.as_bytes()).unwrap();
            let outline = outline(&body);
            assert_eq!(outline.len(), tree.children().count(), "{body}");
            for ((name, ns), child) in outline.into_iter().zip(tree.children()) {
                assert_eq!(name, child.name(), "{body}");
                assert!(ns.is_none_or(|ns| child.has_ns(ns)), "{body}");
            }
        }
    }
}

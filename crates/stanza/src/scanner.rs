//! A fast look at plain XML: what it takes is well-formed, and what it does not take is for the parser to judge.
//!
//! Nearly all that clients send is plain: complete in the buffer, names in ASCII, no prefixes but `xml:lang`, no
//! references but the five that XML knows by name. Of that, one pass over the bytes finds the end and checks everything
//! that a strict reader must check. Whatever else there is, good or bad, is left untouched, so there is one judge of it,
//! and one text for each error: see `docs/decisions/0011-a-scanner-before-the-parser.md`.

use crate::ns;

/// How deep plain XML is nested at most.
pub const DEPTH_MAX: usize = 16;
/// How many attributes a plain tag has at most.
pub const ATTRIBUTES_MAX: usize = 16;

/// One attribute as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// A name without a colon, or `xml:lang`.
    pub name: &'a str,
    /// What stands between the quotes: no `<`, no white space but spaces, any `&` begins one of the five references.
    pub value: Text<'a>,
}

/// Characters as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// UTF-8 only where the scan as a whole was successful.
    raw: &'a [u8],
    /// Whether there is a reference among them.
    has_references: bool,
}

impl<'a> Text<'a> {
    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The text, if it stands there as it is meant.
    pub fn plain(&self) -> Option<&'a str> {
        if self.has_references { None } else { std::str::from_utf8(self.raw).ok() }
    }

    /// The text as it is meant; `None` where it is not UTF-8.
    pub fn meant(&self) -> Option<String> {
        let text = std::str::from_utf8(self.raw).ok()?;
        if !self.has_references {
            return Some(text.to_owned());
        }
        let mut meant = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, reference)) = rest.split_once('&') {
            meant.push_str(before);
            let (name, behind) = reference.split_once(';')?;
            meant.push(match name {
                "lt" => '<',
                "gt" => '>',
                "amp" => '&',
                "apos" => '\'',
                "quot" => '"',
                _ => return None,
            });
            rest = behind;
        }
        meant.push_str(rest);
        Some(meant)
    }
}

/// The one name with a prefix that is plain.
pub const LANG: &str = "xml:lang";

/// A declaration of the default namespace that is not plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unclear;

/// The default namespace that a tag declares, if it declares one.
pub fn declared<'a>(attributes: &[Attribute<'a>]) -> Option<Result<&'a str, Unclear>> {
    let declaration = attributes.iter().find(|a| a.name == "xmlns")?;
    // Namespaces in XML 1.0, 3: neither of the two may be the default.
    let allowed = declaration.value.plain().filter(|uri| *uri != ns::XML && *uri != ns::XMLNS);
    Some(allowed.ok_or(Unclear))
}

/// What hears of what a scan meets. A false answer ends the scan.
///
/// Until the scan has come to its end nothing is sure: what was heard is thrown away where it fails.
pub trait Hearer<'a> {
    /// An opening tag; `end` is the offset behind it.
    fn open(&mut self, name: &'a str, attributes: &[Attribute<'a>], end: usize) -> bool;

    /// Text inside an element.
    fn text(&mut self, text: Text<'a>) -> bool;

    /// The end of the innermost element; `at` is the offset of its closing tag, or the one behind an empty-element tag.
    fn close(&mut self, at: usize) -> bool;
}

/// Scans the element that begins with the first byte: the offset behind it.
///
/// `None` where it is not plain, not complete, not well-formed, or the hearer wants no more of it.
pub fn element<'a>(xml: &'a [u8], hearer: &mut impl Hearer<'a>) -> Option<usize> {
    let mut scan = Scan { xml, at: 0, beyond_ascii: 0 };
    if xml.first() != Some(&b'<') {
        return None;
    }
    scan.run(hearer, true)?;
    scan.is_text().then_some(scan.at)
}

/// Scans what stands between two tags, all of it.
///
/// `None` as with [`element`].
pub fn content<'a>(xml: &'a [u8], hearer: &mut impl Hearer<'a>) -> Option<()> {
    let mut scan = Scan { xml, at: 0, beyond_ascii: 0 };
    scan.run(hearer, false)?;
    scan.is_text().then_some(())
}

/// What a byte is in text, in a value, in a name.
const IN_TEXT: u8 = 1;
const IN_VALUE: u8 = 2;
const IN_NAME: u8 = 4;
const BEGINS_NAME: u8 = 8;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let is_letter = b.is_ascii_alphabetic() || b == b'_';
        if matches!(b, b'\t' | b'\n' | 0x20..) && !matches!(b, b'<' | b'&' | b']') {
            classes[byte] |= IN_TEXT;
        }
        if b >= 0x20 && !matches!(b, b'<' | b'&' | b'"' | b'\'') {
            classes[byte] |= IN_VALUE;
        }
        if is_letter || b.is_ascii_digit() || matches!(b, b'-' | b'.') {
            classes[byte] |= IN_NAME;
        }
        if is_letter {
            classes[byte] |= BEGINS_NAME;
        }
        byte += 1;
    }
    classes
};

fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

struct Scan<'a> {
    xml: &'a [u8],
    at: usize,
    /// All bytes of text and values, one over the other: the highest bit tells whether one is no ASCII.
    beyond_ascii: u8,
}

impl<'a> Scan<'a> {
    /// Whether what was scanned is UTF-8 and holds XML characters only; those below a space were looked at before.
    fn is_text(&self) -> bool {
        if self.beyond_ascii < 0x80 {
            return true;
        }
        let Ok(text) = std::str::from_utf8(&self.xml[..self.at]) else { return false };
        // XML 1.0, 2.2: U+FFFE and U+FFFF are no characters.
        !text.as_bytes().windows(3).any(|w| matches!(w, [0xef, 0xbf, 0xbe | 0xbf]))
    }

    fn run(&mut self, hearer: &mut impl Hearer<'a>, one: bool) -> Option<()> {
        let mut open: [&str; DEPTH_MAX] = [""; DEPTH_MAX];
        let mut depth = 0_usize;
        loop {
            if depth > 0 || !one {
                let text = self.text()?;
                if !text.is_empty() && !hearer.text(text) {
                    return None;
                }
                if self.at == self.xml.len() {
                    return (depth == 0).then_some(());
                }
            }
            if self.xml.get(self.at + 1)? == &b'/' {
                let name = *open.get(depth.checked_sub(1)?)?;
                let tag = self.at;
                let behind = tag + 2 + name.len();
                if self.xml.get(tag + 2..behind)? != name.as_bytes() || self.xml.get(behind)? != &b'>' {
                    return None;
                }
                self.at = behind + 1;
                depth -= 1;
                if !hearer.close(tag) {
                    return None;
                }
            } else {
                self.at += 1;
                let (name, is_empty) = self.tag(hearer)?;
                if is_empty {
                    if depth >= DEPTH_MAX || !hearer.close(self.at) {
                        return None;
                    }
                } else {
                    *open.get_mut(depth)? = name;
                    depth += 1;
                }
            }
            if depth == 0 && one {
                return Some(());
            }
        }
    }

    /// Passes over bytes of a class, and looks at the one behind them.
    fn pass(&mut self, class: u8) {
        let mut seen = 0;
        let passed = self.xml[self.at..].iter().take_while(|b| {
            seen |= **b;
            is(**b, class)
        });
        self.at += passed.count();
        self.beyond_ascii |= seen;
    }

    /// Characters up to the next `<`, or to the end.
    fn text(&mut self) -> Option<Text<'a>> {
        let from = self.at;
        let mut has_references = false;
        loop {
            self.pass(IN_TEXT);
            match self.xml.get(self.at) {
                None | Some(b'<') => break,
                Some(b'&') => {
                    has_references = true;
                    self.reference()?;
                }
                // XML 1.0, 2.4: `]]>` may not stand in text. Two of them, or one at the end, are left to the parser.
                Some(b']') if self.xml.get(self.at + 1).is_some_and(|b| *b != b']') => self.at += 1,
                Some(_) => return None,
            }
        }
        Some(Text { raw: &self.xml[from..self.at], has_references })
    }

    /// One of the five references that are always declared (XML 1.0, 4.6).
    fn reference(&mut self) -> Option<()> {
        let rest = &self.xml[self.at..];
        let known: [&[u8]; 5] = [b"&lt;", b"&gt;", b"&amp;", b"&quot;", b"&apos;"];
        self.at += known.into_iter().find(|known| rest.starts_with(known))?.len();
        Some(())
    }

    /// A name, all of it in ASCII.
    fn name(&mut self) -> Option<&'a str> {
        let rest = &self.xml[self.at..];
        if !is(*rest.first()?, BEGINS_NAME) {
            return None;
        }
        let name = &rest[..rest.iter().take_while(|b| is(**b, IN_NAME)).count()];
        self.at += name.len();
        std::str::from_utf8(name).ok()
    }

    fn skip_space(&mut self) -> bool {
        let spaces = self.xml[self.at..].iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n')).count();
        self.at += spaces;
        spaces > 0
    }

    /// An opening tag from its name on; whether it is an empty-element tag.
    fn tag(&mut self, hearer: &mut impl Hearer<'a>) -> Option<(&'a str, bool)> {
        let name = self.name()?;
        let blank = Attribute { name: "", value: Text { raw: &[], has_references: false } };
        let mut attributes = [blank; ATTRIBUTES_MAX];
        let mut count = 0;
        loop {
            let spaced = self.skip_space();
            let is_empty = match self.xml.get(self.at)? {
                b'>' => false,
                b'/' if self.xml.get(self.at + 1)? == &b'>' => true,
                _ if spaced => {
                    let attribute = self.attribute()?;
                    // XML 1.0, 3.1: Unique Att Spec.
                    if attributes[..count].iter().any(|other| other.name == attribute.name) {
                        return None;
                    }
                    *attributes.get_mut(count)? = attribute;
                    count += 1;
                    continue;
                }
                _ => return None,
            };
            self.at += 1 + usize::from(is_empty);
            return hearer.open(name, &attributes[..count], self.at).then_some((name, is_empty));
        }
    }

    fn attribute(&mut self) -> Option<Attribute<'a>> {
        let name = match self.xml[self.at..].starts_with(LANG.as_bytes()) {
            true => {
                self.at += LANG.len();
                LANG
            }
            false => self.name()?,
        };
        if self.xml.get(self.at)? != &b'=' {
            return None;
        }
        let quote = *self.xml.get(self.at + 1)?;
        if !matches!(quote, b'\'' | b'"') {
            return None;
        }
        self.at += 2;
        let from = self.at;
        let mut has_references = false;
        loop {
            self.pass(IN_VALUE);
            match *self.xml.get(self.at)? {
                b'&' => {
                    has_references = true;
                    self.reference()?;
                }
                end if end == quote => break,
                // The other kind of quotes.
                b'\'' | b'"' => self.at += 1,
                _ => return None,
            }
        }
        let value = Text { raw: &self.xml[from..self.at], has_references };
        self.at += 1;
        Some(Attribute { name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it hears.
    #[derive(Default)]
    struct Notes(String);

    impl<'a> Hearer<'a> for Notes {
        fn open(&mut self, name: &'a str, attributes: &[Attribute<'a>], end: usize) -> bool {
            self.0 += &format!("<{name}");
            for Attribute { name, value } in attributes {
                self.0 += &format!(" {name}={}", value.meant().unwrap_or_default());
            }
            self.0 += &format!(" {end}>");
            true
        }

        fn text(&mut self, text: Text<'a>) -> bool {
            // What is no text is found out at the end.
            self.0 += &text.meant().unwrap_or_default();
            true
        }

        fn close(&mut self, at: usize) -> bool {
            self.0 += &format!("</{at}>");
            true
        }
    }

    fn heard(xml: &[u8]) -> Option<(usize, String)> {
        let mut notes = Notes::default();
        element(xml, &mut notes).map(|end| (end, notes.0))
    }

    #[test]
    fn plain_elements_are_taken_whole() {
        let cases = [
            ("<a/>", 4, "<a 4></4>"),
            ("<a/><b/>", 4, "<a 4></4>"),
            ("<a></a>x", 7, "<a 3></3>"),
            ("<a>x<b k='1'/>y</a>", 19, "<a 3>x<b k=1 14></14>y</15>"),
            ("<a\n k=\"it's\"\t l='' />", 21, "<a k=it's l= 21></21>"),
            ("<a xmlns='u' xml:lang='de'>\u{e4}\t\n</a>", 35, "<a xmlns=u xml:lang=de 27>\u{e4}\t\n</31>"),
            ("<a k='&lt;&amp;'>&gt;&quot;]&apos;</a>", 38, "<a k=<& 17>>\"]'</34>"),
            ("<a-1._>></a-1._>", 16, "<a-1._ 7>></8>"),
        ];
        for (xml, end, expected) in cases {
            assert_eq!(heard(xml.as_bytes()), Some((end, expected.to_owned())), "{xml}");
        }
    }

    #[test]
    fn a_part_of_an_element_is_left_alone() {
        let whole = "<a k='1&amp;'>x&lt;\u{e4}<b/>]y</a>".as_bytes();
        assert!(heard(whole).is_some());
        for end in 0..whole.len() {
            assert_eq!(heard(&whole[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_parser() {
        let cases: [&[u8]; 31] = [
            b"",
            b"a",
            b" <a/>",
            b"</a>",
            b"<a></b>",
            b"<a></a >",
            b"< a/>",
            b"<1/>",
            b"<p:a/>",
            b"<a p:k='1'/>",
            b"<a xmlns:p='u'/>",
            b"<a xml:space='x'/>",
            b"<a k = '1'/>",
            b"<a k=1/>",
            b"<a k='1'l='2'/>",
            b"<a k='1' k='2'/>",
            b"<a k='<'/>",
            b"<a k='\n'/>",
            b"<a k='&nbsp;'/>",
            b"<a>&#65;</a>",
            b"<a>&</a>",
            b"<a>]]></a>",
            b"<a>\x01</a>",
            b"<a>\xff</a>",
            b"<a>\xed\xa0\x80</a>",
            b"<a>\xef\xbf\xbf</a>",
            b"<a k='\xef\xbf\xbe'/>",
            b"<a><!-- x --></a>",
            b"<a><![CDATA[x]]></a>",
            b"<a><?x?></a>",
            "<\u{e4}/>".as_bytes(),
        ];
        for xml in cases {
            assert_eq!(heard(xml), None, "{}", String::from_utf8_lossy(xml));
        }
        let deep = "<a>".repeat(DEPTH_MAX + 1) + &"</a>".repeat(DEPTH_MAX + 1);
        assert_eq!(heard(deep.as_bytes()), None);
        let many: String = (0..=ATTRIBUTES_MAX).map(|n| format!(" k{n}=''")).collect();
        assert_eq!(heard(format!("<a{many}/>").as_bytes()), None);
    }

    #[test]
    fn content_is_taken_to_its_end() {
        let all = |xml: &str| {
            let mut notes = Notes::default();
            content(xml.as_bytes(), &mut notes).map(|()| notes.0)
        };
        assert_eq!(all("").as_deref(), Some(""));
        assert_eq!(all("x<a/>y<b>z</b>").as_deref(), Some("x<a 5></5>y<b 9>z</10>"));
        for xml in ["</r>", "<a/></r><r>", "<a>", "x]"] {
            assert_eq!(all(xml), None, "{xml}");
        }
    }

    #[test]
    fn only_a_plain_namespace_is_a_default() {
        let of = |value: &'static [u8], has_references| {
            let value = Text { raw: value, has_references };
            declared(&[Attribute { name: "xmlns", value }])
        };
        assert_eq!(declared(&[]), None);
        assert_eq!(of(b"u", false), Some(Ok("u")));
        assert_eq!(of(b"", false), Some(Ok("")));
        assert_eq!(of(b"&amp;", true), Some(Err(Unclear)));
        assert_eq!(of(ns::XML.as_bytes(), false), Some(Err(Unclear)));
        assert_eq!(of(ns::XMLNS.as_bytes(), false), Some(Err(Unclear)));
    }
}

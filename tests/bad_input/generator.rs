//! Random stanzas from a seed: everything that XML and namespaces allow, and then damaged.

use std::fmt::Write as _;

/// Pseudo-random numbers that a seed repeats (xorshift64*).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        let mut chance = Chance(seed ^ 0x9e37_79b9_7f4a_7c15);
        // Seeds that differ little shall not begin alike.
        (0..8).for_each(|_| {
            chance.next();
        });
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Namespaces as they are written in an attribute with either kind of quotes.
const URIS: &[&str] = &[
    "u",
    "urn:x",
    "jabber:client",
    "jabber:client&#10;",
    "jabber:client ",
    "jabber:client|message",
    "http://etherx.jabber.org/streams",
    "http://x/?a=1&amp;b=&lt;2&gt;",
    "&apos;",
    "&quot;&#39;",
    "\u{e9}",
    "urn:&#x1F426;",
    "{a}b",
    "a\tb",
    "a&#9;b",
    "]]>",
];
const PREFIXES: &[&str] = &["a", "b", "p", "q", "n0", "a0", "stream", "xmlnsx", "A-1.b_c", "\u{e9}"];
const NAMES: &[&str] = &[
    "body",
    "x",
    "y",
    "message",
    "iq",
    "stream",
    "r",
    "query",
    "n.a-m_e1",
    "\u{e9}l\u{e9}ment",
    "xmlns",
    "_",
];
/// Pieces of text, as they are written between tags.
const TEXTS: &[&str] = &[
    "a",
    "text ",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\r",
    "&#13;",
    "&#xD;&#xA;",
    "&#9;",
    "&lt;",
    "&gt;",
    ">",
    "&amp;",
    "&apos;",
    "&quot;",
    "'",
    "\"",
    "]]&gt;",
    "]",
    "]]",
    "&amp;lt;",
    "&amp;#60;",
    "&#60;message&#62;",
    "&#0065;",
    "&#x000041;",
    "\u{e9}",
    "\u{20ac}",
    "\u{1f426}",
    "&#x1F426;",
    "\u{fffd}",
    "\u{d7ff}",
    "\u{e000}",
    "\u{10ffff}",
    "&#x10FFFF;",
    "\u{1ffff}",
    "\u{85}",
    "\u{2028}",
    "\u{200e}",
    "\u{300}",
    "\u{feff}",
    "\u{7f}",
    "\u{80}",
    "=",
    "/",
    "--",
    "?",
    "<![CDATA[]]>",
    "<![CDATA[<a>&amp;]]>",
    "<![CDATA[]]]]><![CDATA[>]]>",
    "<![CDATA[\r\n]]>",
    "<![CDATA[<!-- -->]]>",
    "<![CDATA[</message>]]>",
];
/// Pieces of a value, as they are written in an attribute with either kind of quotes.
const VALUES: &[&str] = &[
    "a",
    "1",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\r",
    "&#13;",
    "&#10;",
    "&#9;",
    "&#32;",
    "&lt;",
    "&gt;",
    ">",
    "&amp;",
    "&apos;",
    "&quot;",
    "]]>",
    "&#60;",
    "\u{e9}",
    "\u{20ac}",
    "\u{1f426}",
    "&#x1F426;",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "/",
    "/>",
    "=",
    "--",
    "?>",
];
/// What a damage puts in: marks of XML, halves of characters, whole constructs.
const DAMAGES: &[&[u8]] = &[
    b"<",
    b">",
    b"/",
    b"'",
    b"\"",
    b"&",
    b";",
    b"]",
    b"=",
    b":",
    b" ",
    b"!",
    b"?",
    b"\0",
    b"\x01",
    b"\xc3",
    b"\x80",
    b"\xe2\x82",
    b"\xff",
    b"<a>",
    b"</a>",
    b"</message>",
    b"/>",
    b"]]>",
    b"<![CDATA[",
    b"<!--",
    b"-->",
    b"<?x ?>",
    b"<!DOCTYPE x>",
    b"&x;",
    b"&#0;",
    b"&#x",
    b" xmlns='u'",
    b" xmlns=''",
    b" xmlns:p='v'",
    b" p:k='2'",
    b" k='1'",
    b"</stream:stream>",
    b"<stream:stream>",
    b"<message/>",
    b"\xef\xbf\xbf",
];

/// Where stanzas come from and go to, and the prefixes that the sender's stream declares.
pub struct Place {
    /// `to` of each stanza, fit for an attribute.
    pub to: String,
}

/// What the sender's stream header declares besides the usual: prefixes that stanzas lean on.
pub const DECLARED: &str = " xmlns:p='urn:p' xmlns:q='jabber:client' xmlns:stream2='u&amp;&#9;'";
/// The prefixes and namespaces of that header.
const OUTER: &[(&str, &str)] = &[
    ("", "jabber:client"),
    ("stream", "http://etherx.jabber.org/streams"),
    ("p", "urn:p"),
    ("q", "jabber:client"),
    ("stream2", "u&amp;&#9;"),
];

struct Stanza<'a> {
    chance: &'a mut Chance,
    out: String,
    /// Prefix (none is the default) and namespace as it was written, innermost last.
    scope: Vec<(String, String)>,
    elements: usize,
}

/// A stanza that is well-formed and within every bound; `id` is its own.
pub fn stanza(chance: &mut Chance, place: &Place, id: &str) -> String {
    let scope = OUTER.iter().map(|(p, u)| ((*p).to_owned(), (*u).to_owned())).collect();
    let mut stanza = Stanza { chance, out: String::new(), scope, elements: 0 };
    stanza.root(place, id);
    stanza.out
}

/// The same bytes with a few of them wrong.
pub fn damage(chance: &mut Chance, stanza: &str) -> Vec<u8> {
    let mut bytes = stanza.as_bytes().to_vec();
    for _ in 0..=chance.below(2) {
        let at = chance.below(bytes.len());
        match chance.below(4) {
            0 => drop(bytes.remove(at)),
            1 => bytes[at] = chance.pick(DAMAGES)[0],
            2 => bytes.truncate(at.max(1)),
            _ => drop(bytes.splice(at..at, chance.pick(DAMAGES).iter().copied())),
        }
    }
    bytes
}

impl Stanza<'_> {
    fn root(&mut self, place: &Place, id: &str) {
        let kind = self.chance.pick(&["message", "message", "message", "presence", "iq"]);
        // With a prefix it would be no stanza (RFC 6120, 4.8.5); what is inside may have one.
        let declares = self.chance.pick(&["", "", "", " xmlns='jabber:client'", " xmlns:c='jabber:client'"]);
        let mut open = format!("<{kind}{declares}");
        if declares.contains(":c=") {
            self.scope.push(("c".into(), "jabber:client".into()));
        }
        let _ = write!(open, " to='{}' id='{}{id}'", place.to, self.value('\''));
        match kind {
            "message" => {
                open += self.chance.pick(&["", " type='chat'", " type='normal'", " type='headline'"])
            }
            "iq" => open += self.chance.pick(&[" type='result'", " type='get'", " type='set'"]),
            _ => {}
        }
        if self.chance.one_in(4) {
            open += self.chance.pick(&[
                " xml:lang='de'",
                " xml:lang='en-GB'",
                " xml:lang=''",
                " xml:lang='fr&#10;'",
            ]);
        }
        if self.chance.one_in(6) {
            let _ = write!(open, " p:{}=\"{}\"", self.chance.pick(&["k", "to", "id"]), self.value('"'));
        }
        self.out += &open;
        let children = match kind {
            "iq" if !open.contains("type='result'") => 1,
            "iq" => self.chance.below(2),
            _ => self.chance.below(5),
        };
        if children == 0 && self.chance.one_in(2) {
            self.out += "/>";
            return;
        }
        self.out.push('>');
        // An iq has no text of its own.
        for _ in 0..children {
            if kind != "iq" && self.chance.one_in(3) {
                self.text();
            }
            self.element(1);
        }
        let _ = write!(self.out, "</{kind}>");
    }

    fn element(&mut self, depth: usize) {
        self.elements += 1;
        let kept = self.scope.len();
        let mut declared: Vec<(String, String)> = Vec::new();
        while self.chance.one_in(3) && declared.len() < 3 {
            let prefix = if self.chance.one_in(2) { "" } else { self.chance.pick(PREFIXES) };
            if declared.iter().any(|(p, _)| p == prefix) {
                break;
            }
            // Only the default namespace may be undeclared.
            let uri = if prefix.is_empty() && self.chance.one_in(5) { "" } else { self.chance.pick(URIS) };
            declared.push((prefix.to_owned(), uri.to_owned()));
        }
        self.scope.extend(declared.iter().cloned());
        let prefix = self.prefix(true);
        let name = self.chance.pick(NAMES);
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}:{name}") };
        let _ = write!(self.out, "<{name}");
        let mut attributes: Vec<String> = declared
            .iter()
            .map(|(prefix, uri)| {
                let quote = if uri.contains('\'') {
                    '"'
                } else {
                    self.chance.pick(&["'", "\""]).chars().next().unwrap_or('\'')
                };
                let colon = if prefix.is_empty() { "" } else { ":" };
                format!("xmlns{colon}{prefix}={quote}{uri}{quote}")
            })
            .collect();
        self.attributes(&mut attributes);
        for attribute in attributes {
            let space = self.chance.pick(&[" ", " ", "\n", "\t ", "\r\n"]);
            let _ = write!(self.out, "{space}{attribute}");
        }
        let _ = write!(self.out, "{}", self.chance.pick(&["", "", " ", "\n"]));
        if self.chance.one_in(4) {
            self.out += "/>";
        } else {
            self.out.push('>');
            for _ in 0..self.chance.below(4) {
                self.text();
                if depth < 12 && self.elements < 60 && self.chance.one_in(2) {
                    self.element(depth + 1);
                }
            }
            let _ = write!(self.out, "</{name}{}>", self.chance.pick(&["", "", " "]));
        }
        self.scope.truncate(kept);
    }

    fn attributes(&mut self, attributes: &mut Vec<String>) {
        let mut taken: Vec<(String, &str)> = Vec::new();
        for _ in 0..self.chance.below(4) {
            let prefix = if self.chance.one_in(2) { String::new() } else { self.prefix(false) };
            let name = self.chance.pick(&["k", "id", "to", "from", "type", "a-b", "\u{e9}"]);
            let uri = if prefix.is_empty() { String::new() } else { self.uri(&prefix) };
            let written = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}:{name}") };
            // Namespaces that differ as they are written may be the same: then the name must differ.
            if taken.iter().any(|(u, n)| *n == name && (u.is_empty() == uri.is_empty())) {
                continue;
            }
            taken.push((uri, name));
            let quote = if self.chance.one_in(2) { '\'' } else { '"' };
            let value = self.value(quote);
            attributes.push(format!("{written}={quote}{value}{quote}"));
        }
        if self.chance.one_in(8) {
            attributes
                .push(self.chance.pick(&["xml:lang='de'", "xml:lang=''", "xml:space='preserve'"]).to_owned());
        }
    }

    /// A prefix that is in force; of an element also none.
    fn prefix(&mut self, or_none: bool) -> String {
        if or_none && self.chance.one_in(2) {
            return String::new();
        }
        let at = self.chance.below(self.scope.len());
        let prefix = self.scope[at].0.clone();
        // A prefix that was declared again means its last declaration.
        prefix
    }

    fn uri(&self, prefix: &str) -> String {
        let found = self.scope.iter().rev().find(|(p, _)| p == prefix);
        found.map_or(String::new(), |(_, uri)| uri.clone())
    }

    fn text(&mut self) {
        for _ in 0..self.chance.below(6) {
            let text = self.chance.pick(TEXTS);
            // `]]>` must not come about by what stands next to one another.
            if self.out.ends_with(']') && text.starts_with(['>', ']']) {
                self.out.push(' ');
            }
            self.out += text;
        }
        if self.chance.one_in(60) {
            let text = self.chance.pick(&["long text \u{e9} ", "x", "&amp;", "\r\n"]);
            self.out += &text.repeat(200 + self.chance.below(800));
        }
    }

    fn value(&mut self, quote: char) -> String {
        let mut value = String::new();
        for _ in 0..self.chance.below(5) {
            match self.chance.below(12) {
                0 if quote == '"' => value.push('\''),
                0 => value.push('"'),
                1 if self.chance.one_in(20) => value += &"long \u{20ac}".repeat(self.chance.below(200)),
                _ => value += self.chance.pick(VALUES),
            }
        }
        value
    }
}

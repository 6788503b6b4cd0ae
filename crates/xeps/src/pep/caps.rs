//! [XEP-0115]: Entity Capabilities, and [XEP-0390], its second version. What a client can do, by a hash of it.
//!
//! A hash stands for what it was made of only where that was seen and hashed again here (XEP-0115, 5.4).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minidom::Element;
use parking_lot::Mutex;
use stanza::{Stanza, ns};

use crate::pubsub::form;
use crate::xml::{Build, element};

pub const CAPS: &str = "http://jabber.org/protocol/caps";
pub const CAPS_2: &str = "urn:xmpp:caps";
const HASHES: &str = "urn:xmpp:hashes:2";
pub const INFO: &str = "http://jabber.org/protocol/disco#info";
const NOTIFY: &str = "+notify";
/// The most nodes that one client is taken to be interested in; of more, the first by name.
const INTERESTS_MAX: usize = 256;
/// The longest part of an announcement that is looked at, in bytes.
const WORD_BYTES_MAX: usize = 1_023;

/// The names of the nodes of which a client wants to hear.
pub type Interests = BTreeSet<String>;

/// A hash function that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
    Sha3_256,
    Sha3_512,
}

impl Algorithm {
    fn read(name: &str) -> Option<Algorithm> {
        match name {
            "sha-1" => Some(Algorithm::Sha1),
            "sha-256" => Some(Algorithm::Sha256),
            "sha-512" => Some(Algorithm::Sha512),
            "sha3-256" => Some(Algorithm::Sha3_256),
            "sha3-512" => Some(Algorithm::Sha3_512),
            _ => None,
        }
    }

    fn hash(self, bytes: &[u8]) -> String {
        let algorithm = match self {
            Algorithm::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Algorithm::Sha256 => &digest::SHA256,
            Algorithm::Sha512 => &digest::SHA512,
            Algorithm::Sha3_256 => &digest::SHA3_256,
            Algorithm::Sha3_512 => &digest::SHA3_512,
        };
        BASE64.encode(digest::digest(algorithm, bytes))
    }
}

/// Of which version of the specification a hash is: each makes it in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Version {
    One,
    Two,
}

/// A hash that stands for capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hash {
    version: Version,
    algorithm: Algorithm,
    text: String,
}

/// What a presence says of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The node at which the client says what it can do.
    pub node: String,
    /// What that is hashed to; `None`: in a way that is not known here.
    pub hash: Option<Hash>,
}

/// Reads what a presence announces, the second version where it has a hash that is known here.
pub fn announced(presence: &Stanza) -> Option<Announced> {
    if !presence.has_named(&["c"]) {
        return None;
    }
    let tree = presence.dom();
    second(tree).or_else(|| first(tree))
}

fn second(presence: &Element) -> Option<Announced> {
    let caps = presence.get_child("c", CAPS_2)?;
    let mut hashes = caps.children().filter(|child| child.is("hash", HASHES));
    hashes.find_map(|hash| {
        let name = hash.attr("algo")?;
        // XEP-0390 takes what XEP-0300 recommends, and SHA-1 is not of that.
        let algorithm = Algorithm::read(name).filter(|algorithm| *algorithm != Algorithm::Sha1)?;
        let text = hash.text().trim().to_owned();
        let node = format!("{CAPS_2}#{name}.{text}");
        let hash = Some(Hash { version: Version::Two, algorithm, text });
        (node.len() <= WORD_BYTES_MAX).then_some(Announced { node, hash })
    })
}

fn first(presence: &Element) -> Option<Announced> {
    let caps = presence.get_child("c", CAPS)?;
    let (node, ver) = (caps.attr("node")?, caps.attr("ver")?);
    // XEP-0115, 5.4, steps 1 and 2.
    let algorithm = caps.attr("hash").and_then(Algorithm::read);
    let hash = algorithm.map(|algorithm| Hash { version: Version::One, algorithm, text: ver.to_owned() });
    let node = format!("{node}#{ver}");
    (node.len() <= 2 * WORD_BYTES_MAX).then_some(Announced { node, hash })
}

/// The nodes that an answer to disco#info says the client is interested in (XEP-0060, 9.2).
pub fn interests(info: &Element) -> Interests {
    let features = info.children().filter(|child| child.is("feature", INFO));
    let notified = features.filter_map(|feature| feature.attr("var")?.strip_suffix(NOTIFY));
    let named = notified.filter(|node| !node.is_empty() && node.len() <= WORD_BYTES_MAX);
    let all: BTreeSet<&str> = named.collect();
    all.into_iter().take(INTERESTS_MAX).map(str::to_owned).collect()
}

impl Hash {
    /// Whether this is the hash of an answer to disco#info; `lang`: of the stanza that brought it.
    pub fn is_of(&self, info: &Element, lang: Option<&str>) -> bool {
        let made = match self.version {
            Version::One => input(info),
            Version::Two => input_2(info, lang),
        };
        made.is_some_and(|made| self.algorithm.hash(&made) == self.text)
    }
}

/// What an entity announces of itself that answers disco#info so, all of which says for itself in which language it is.
pub struct Announcement {
    /// `<c/>` of either version, the first one (XEP-0115, 6.3; XEP-0390, 5.4).
    pub elements: Vec<Element>,
    /// The nodes at which the answer is to be had.
    pub nodes: Vec<String>,
}

impl Announcement {
    /// Hashes the answer; `software`: a URI for the program that gives it.
    pub fn of(info: &Element, software: &str) -> Announcement {
        let (mut elements, mut nodes) = (Vec::new(), Vec::new());
        if let Some(input) = input(info) {
            let ver = Algorithm::Sha1.hash(&input);
            nodes.push(format!("{software}#{ver}"));
            let caps = element("c", CAPS).with("hash", "sha-1").with("node", software);
            elements.push(caps.with("ver", &ver));
        }
        if let Some(input) = input_2(info, None) {
            let mut caps = element("c", CAPS_2);
            for (name, algorithm) in [("sha-256", Algorithm::Sha256), ("sha3-256", Algorithm::Sha3_256)] {
                let text = algorithm.hash(&input);
                nodes.push(format!("{CAPS_2}#{name}.{text}"));
                caps = caps.child(element("hash", HASHES).with("algo", name).text_node(&text));
            }
            elements.push(caps);
        }
        Announcement { elements, nodes }
    }
}

struct Field {
    var: String,
    values: Vec<String>,
    hidden: bool,
}

fn fields(form: &Element) -> Vec<Field> {
    let fields = form.children().filter(|child| child.is("field", form::NS));
    let read = |field: &Element| {
        let values = field.children().filter(|child| child.is("value", form::NS)).map(Element::text);
        let mut values: Vec<String> = values.collect();
        values.sort_unstable();
        let hidden = field.attr("type") == Some("hidden");
        Field { var: field.attr("var").unwrap_or_default().to_owned(), values, hidden }
    };
    fields.map(read).collect()
}

fn lang(element: &Element) -> Option<&str> {
    element.attrs().get::<str, str>(ns::XML, "lang").map(String::as_str)
}

/// Category, type, language and name, each empty where it is not said; `inherited`: the language around it.
fn identity(identity: &Element, inherited: &str) -> [String; 4] {
    let word = |name| identity.attr(name).unwrap_or_default().to_owned();
    [word("category"), word("type"), lang(identity).unwrap_or(inherited).to_owned(), word("name")]
}

/// XEP-0115, 5.1; `None`: such an answer has no hash (5.4).
fn input(info: &Element) -> Option<Vec<u8>> {
    let (mut identities, mut features) = (BTreeSet::new(), BTreeSet::new());
    let mut forms: std::collections::BTreeMap<String, Vec<Field>> = Default::default();
    for child in info.children() {
        if child.is("identity", INFO) && !identities.insert(identity(child, "")) {
            return None;
        }
        if child.is("feature", INFO) && !features.insert(child.attr("var").unwrap_or_default().to_owned()) {
            return None;
        }
        if child.is("x", form::NS) {
            let mut fields = fields(child);
            let Some(at) = fields.iter().position(|field| field.var == "FORM_TYPE") else { continue };
            let kind = fields.swap_remove(at);
            if kind.values.iter().any(|value| *value != kind.values[0]) {
                return None;
            }
            let Some(name) = kind.values.into_iter().next().filter(|_| kind.hidden) else { continue };
            fields.sort_by(|a, b| a.var.cmp(&b.var));
            if forms.insert(name, fields).is_some() {
                return None;
            }
        }
    }
    let mut words = Vec::new();
    words.extend(identities.iter().map(|parts| parts.join("/")));
    words.extend(features);
    for (name, fields) in forms {
        words.push(name);
        for field in fields {
            words.push(field.var);
            words.extend(field.values);
        }
    }
    // With it in a word, two different answers could have one hash.
    if words.iter().any(|word| word.contains('<')) {
        return None;
    }
    Some(words.iter().flat_map(|word| [word.as_bytes(), b"<"].concat()).collect())
}

/// XEP-0390, 4.1; `None`: such an answer has no hash.
fn input_2(info: &Element, inherited: Option<&str>) -> Option<Vec<u8>> {
    const WORD: &[u8] = &[0x1f];
    const GROUP: &[u8] = &[0x1e];
    const FORM: &[u8] = &[0x1d];
    const PART: &[u8] = &[0x1c];
    let inherited = lang(info).or(inherited).unwrap_or_default();
    let (mut features, mut identities, mut forms) = (Vec::new(), Vec::new(), Vec::new());
    for child in info.children() {
        if child.is("feature", INFO) {
            features.push([child.attr("var")?.as_bytes(), WORD].concat());
        } else if child.is("identity", INFO) {
            let mut words: Vec<u8> =
                identity(child, inherited).iter().flat_map(|word| [word.as_bytes(), WORD].concat()).collect();
            words.extend_from_slice(GROUP);
            identities.push(words);
        } else if child.is("x", form::NS) {
            let (mut written, fields) = (Vec::new(), fields(child));
            let has_type = fields.iter().any(|field| field.var == "FORM_TYPE" && field.hidden);
            if !has_type || child.children().any(|part| matches!(part.name(), "reported" | "item")) {
                return None;
            }
            for field in fields {
                let mut one = [field.var.as_bytes(), WORD].concat();
                let mut values: Vec<Vec<u8>> =
                    field.values.iter().map(|value| [value.as_bytes(), WORD].concat()).collect();
                values.sort_unstable();
                one.extend(values.concat());
                one.extend_from_slice(GROUP);
                written.push(one);
            }
            written.sort_unstable();
            forms.push([written.concat().as_slice(), FORM].concat());
        } else {
            return None;
        }
    }
    let mut all = Vec::new();
    for mut part in [features, identities, forms] {
        part.sort_unstable();
        all.extend(part.concat());
        all.extend_from_slice(PART);
    }
    Some(all)
}

/// What hashes stand for, as it was verified at this node; at the bound the oldest goes.
pub struct Known {
    max: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_hash: HashMap<Hash, Arc<Interests>>,
    order: VecDeque<Hash>,
}

impl Known {
    pub fn new(max: usize) -> Known {
        Known { max, entries: Mutex::default() }
    }

    pub fn get(&self, hash: &Hash) -> Option<Arc<Interests>> {
        self.entries.lock().by_hash.get(hash).cloned()
    }

    pub fn put(&self, hash: Hash, interests: Arc<Interests>) {
        let mut entries = self.entries.lock();
        if entries.by_hash.insert(hash.clone(), interests).is_some() {
            return;
        }
        entries.order.push_back(hash);
        while entries.order.len() > self.max {
            if let Some(oldest) = entries.order.pop_front() {
                entries.by_hash.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hooks::bench::parse;

    use super::*;

    /// What a client announces under XEP-0115 that answers so.
    pub fn ver(info: &Element) -> String {
        Algorithm::Sha1.hash(&input(info).unwrap())
    }

    fn info(inside: &str) -> Element {
        stanza::dom::parse(format!("<query xmlns='{INFO}'>{inside}</query>").as_bytes()).unwrap()
    }

    fn features(vars: &[&str]) -> String {
        vars.iter().map(|var| format!("<feature var='{var}'/>")).collect()
    }

    fn of(hash: &str, ver: &str) -> Announced {
        let presence =
            format!("<presence><c xmlns='{CAPS}' hash='{hash}' node='urn:client' ver='{ver}'/></presence>");
        announced(&parse(&presence)).unwrap()
    }

    const SIMPLE: [&str; 4] = [
        "http://jabber.org/protocol/muc",
        "http://jabber.org/protocol/disco#items",
        "http://jabber.org/protocol/caps",
        "http://jabber.org/protocol/disco#info",
    ];

    /// XEP-0115, 5.2 and 5.3.
    #[test]
    fn the_examples_of_the_first_version_are_verified() {
        let simple =
            format!("<identity category='client' name='Exodus 0.9.1' type='pc'/>{}", features(&SIMPLE));
        let announced = of("sha-1", "QgayPKawpkPSDYmwT/WM94uAlu0=");
        assert_eq!(announced.node, "urn:client#QgayPKawpkPSDYmwT/WM94uAlu0=");
        assert!(announced.hash.as_ref().unwrap().is_of(&info(&simple), None));
        let complex = format!(
            "<identity xml:lang='en' category='client' name='Psi 0.11' type='pc'/>\
             <identity xml:lang='el' category='client' name='Ψ 0.11' type='pc'/>{}\
             <x xmlns='jabber:x:data' type='result'>\
             <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:dataforms:softwareinfo</value></field>\
             <field var='ip_version'><value>ipv6</value><value>ipv4</value></field>\
             <field var='os_version'><value>10.5.1</value></field><field var='os'><value>Mac</value></field>\
             <field var='software'><value>Psi</value></field>\
             <field var='software_version'><value>0.11</value></field></x>",
            features(&SIMPLE)
        );
        let announced = of("sha-1", "q07IKJEyjvHSyhy//CH0CxmKi8w=");
        assert!(announced.hash.as_ref().unwrap().is_of(&info(&complex), None));
        assert!(!announced.hash.as_ref().unwrap().is_of(&info(&simple), None));
    }

    /// XEP-0115, 5.4, steps 3.3 to 3.6.
    #[test]
    fn an_ill_formed_answer_has_no_hash_and_a_form_without_a_type_is_passed_over() {
        let one = "<identity category='client' type='pc'/><feature var='a'/>";
        let form = |kind: &str| {
            format!(
                "<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' {kind}><value>f</value></field></x>"
            )
        };
        let hidden = form("type='hidden'");
        for ill in [
            format!("{one}<feature var='a'/>"),
            format!("{one}<identity category='client' type='pc'/>"),
            format!("{one}{hidden}{hidden}"),
            format!("{one}<feature var='b&lt;c'/>"),
            format!(
                "{one}<x xmlns='jabber:x:data'><field var='FORM_TYPE' type='hidden'><value>a</value>\
                 <value>b</value></field></x>"
            ),
        ] {
            assert_eq!(input(&info(&ill)), None, "{ill}");
        }
        let plain = input(&info(one));
        assert!(plain.is_some());
        assert_eq!(input(&info(&format!("{one}{}", form("")))), plain);
        assert_eq!(input(&info(&format!("{one}<x xmlns='jabber:x:data'/>"))), plain);
        assert_ne!(input(&info(&format!("{one}{hidden}"))), plain);
    }

    /// XEP-0390, 4.5.
    #[test]
    fn the_examples_of_the_second_version_are_verified() {
        let simple = format!(
            "<identity category='client' name='BombusMod' type='mobile'/>{}",
            features(&[
                "http://jabber.org/protocol/si",
                "http://jabber.org/protocol/bytestreams",
                "http://jabber.org/protocol/chatstates",
                "http://jabber.org/protocol/disco#info",
                "http://jabber.org/protocol/disco#items",
                "urn:xmpp:ping",
                "jabber:iq:time",
                "jabber:iq:privacy",
                "jabber:iq:version",
                "http://jabber.org/protocol/rosterx",
                "urn:xmpp:time",
                "jabber:x:oob",
                "http://jabber.org/protocol/ibb",
                "http://jabber.org/protocol/si/profile/file-transfer",
                "urn:xmpp:receipts",
                "jabber:iq:roster",
                "jabber:iq:last",
            ])
        );
        for (name, text) in [
            ("sha-256", "kzBZbkqJ3ADrj7v08reD1qcWUwNGHaidNUgD7nHpiw8="),
            ("sha3-256", "79mdYAfU9rEdTOcWDO7UEAt6E56SUzk/g6TnqUeuD9Q="),
        ] {
            let presence = format!(
                "<presence><c xmlns='{CAPS}' hash='sha-1' node='n' ver='v'/><c xmlns='{CAPS_2}'>\
                 <hash xmlns='{HASHES}' algo='unheard-of'>x</hash>\
                 <hash xmlns='{HASHES}' algo='{name}'>{text}</hash></c></presence>"
            );
            let announced = announced(&parse(&presence)).unwrap();
            assert_eq!(announced.node, format!("urn:xmpp:caps#{name}.{text}"));
            assert!(announced.hash.as_ref().unwrap().is_of(&info(&simple), None), "{name}");
            assert!(!announced.hash.as_ref().unwrap().is_of(&info(&format!("{simple}<other/>")), None));
        }
        let complex = "<identity category='client' name='Tkabber' type='pc' xml:lang='en'/>\
                       <identity category='client' name='Ткаббер' type='pc' xml:lang='ru'/>\
                       <feature var='b'/><feature var='a'/>\
                       <x xmlns='jabber:x:data' type='result'><field type='hidden' var='FORM_TYPE'><value>f</value>\
                       </field><field var='os'><value>y</value><value>x</value></field></x>";
        let expected = "a\u{1f}b\u{1f}\u{1c}client\u{1f}pc\u{1f}en\u{1f}Tkabber\u{1f}\u{1e}client\u{1f}pc\u{1f}ru\
                        \u{1f}Ткаббер\u{1f}\u{1e}\u{1c}FORM_TYPE\u{1f}f\u{1f}\u{1e}os\u{1f}x\u{1f}y\u{1f}\u{1e}\
                        \u{1d}\u{1c}";
        assert_eq!(input_2(&info(complex), None), Some(expected.as_bytes().to_vec()));
    }

    #[test]
    fn an_unknown_hash_and_none_are_no_hash_and_no_announcement_is_none() {
        assert_eq!(of("md5", "x").hash, None);
        let old = format!("<presence><c xmlns='{CAPS}' node='urn:client' ver='1.0' ext='a'/></presence>");
        assert_eq!(announced(&parse(&old)).map(|one| one.hash), Some(None));
        for nothing in ["<presence/>".to_owned(), format!("<presence><c xmlns='{CAPS}' ver='x'/></presence>")]
        {
            assert_eq!(announced(&parse(&nothing)), None);
        }
    }

    #[test]
    fn interests_are_what_stands_before_notify() {
        let read = interests(&info(&features(&["urn:b+notify", "urn:a+notify", "urn:c", "+notify"])));
        assert_eq!(read.into_iter().collect::<Vec<_>>(), ["urn:a", "urn:b"]);
        let many: String = (0..400).map(|n| format!("<feature var='{n:03}+notify'/>")).collect();
        assert_eq!(interests(&info(&many)).len(), INTERESTS_MAX);
    }

    #[test]
    fn at_its_bound_the_cache_forgets_the_oldest() {
        let known = Known::new(2);
        let hash = |ver| of("sha-1", ver).hash.unwrap();
        for ver in ["a", "b", "b", "c"] {
            known.put(hash(ver), Arc::default());
        }
        let has = |ver| known.get(&hash(ver)).is_some();
        assert!(!has("a") && has("b") && has("c"));
    }
}

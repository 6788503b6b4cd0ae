//! When a heard element is the expected one: wildcards, names for values, children in any order.

use std::collections::BTreeMap;

use crate::xml::{Content, Node};

/// Values that a play gave a name to (`id='$ask'`), by that name.
pub type Names = BTreeMap<String, String>;

/// Attributes of a stanza that count only where the play mentions them: a server may add them.
const FREE_IN_STANZAS: &[&str] = &["id", "to", "xml:lang"];

/// Whether `heard` is what `expected` asks for; names met for the first time are learned.
///
/// `*` stands for any value, `?` for any or none, `$name` for a value that is the same wherever the name
/// stands, `...` inside an element for further children. An element named `any` in no particular namespace
/// does not exist: a child that may be whatever it likes is `...`.
pub fn matches(expected: &Node, heard: &Node, names: &mut Names) -> bool {
    let mut learned = names.clone();
    let fits = fits(expected, heard, true, &mut learned);
    if fits {
        *names = learned;
    }
    fits
}

fn fits(expected: &Node, heard: &Node, top: bool, names: &mut Names) -> bool {
    if expected.name != heard.name || expected.ns != heard.ns {
        return false;
    }
    for (key, value) in &expected.attrs {
        if !value_fits(value, heard.attr(key), names) {
            return false;
        }
    }
    let surplus = heard.attrs.keys().filter(|k| !expected.attrs.contains_key(*k));
    if surplus.into_iter().any(|k| !(top && FREE_IN_STANZAS.contains(&k.as_str()))) {
        return false;
    }
    children_fit(expected, heard, names)
}

fn children_fit(expected: &Node, heard: &Node, names: &mut Names) -> bool {
    let open_ended = expected.children.iter().any(|c| matches!(c, Content::Text(t) if t.trim() == "..."));
    let mut left: Vec<&Node> = heard.nodes().collect();
    for child in expected.nodes() {
        let mut before = names.clone();
        let Some(at) = left.iter().position(|h| {
            let mut tried = before.clone();
            let fits = fits(child, h, false, &mut tried);
            if fits {
                before = tried;
            }
            fits
        }) else {
            return false;
        };
        *names = before;
        left.remove(at);
    }
    if open_ended {
        return true;
    }
    left.is_empty() && text_fits(expected, heard, names)
}

fn text_fits(expected: &Node, heard: &Node, names: &mut Names) -> bool {
    let (wanted, said) = (expected.text(), heard.text());
    if expected.nodes().next().is_some() {
        return wanted.trim() == said.trim();
    }
    match wanted.as_str() {
        "" => said.is_empty(),
        "?" => true,
        _ => value_fits(&wanted, Some(&said), names),
    }
}

fn value_fits(wanted: &str, heard: Option<&str>, names: &mut Names) -> bool {
    match (wanted, heard) {
        ("?", _) => true,
        (_, None) => false,
        ("*", Some(value)) => !value.is_empty(),
        (_, Some(value)) => match wanted.strip_prefix('$') {
            Some(name) => names.entry(name.to_owned()).or_insert_with(|| value.to_owned()) == value,
            None => wanted == value,
        },
    }
}

/// Puts learned values in place of their names in what a character is to say.
pub fn fill(text: &str, names: &Names) -> String {
    let mut filled = text.to_owned();
    // Longer names first, so that `$ask` does not eat the beginning of `$asked`.
    let mut by_length: Vec<_> = names.iter().collect();
    by_length.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in by_length {
        filled = filled.replace(&format!("${name}"), &crate::xml::escape(value));
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::parse_block;

    fn node(text: &str) -> Node {
        parse_block(text).expect("well-formed").remove(0)
    }

    #[test]
    fn patterns_match_what_they_say() {
        let table = [
            (
                "<message from='a@x'><body>hi</body></message>",
                "<message from='a@x' id='7' to='b@x'><body>hi</body></message>",
                true,
            ),
            ("<message from='a@x'/>", "<message from='a@x' type='chat'/>", false),
            ("<message from='a@x'/>", "<message from='b@x'/>", false),
            ("<message id='*'/>", "<message id='x'/>", true),
            ("<message id='*'/>", "<message/>", false),
            ("<message type='?'/>", "<message type='chat'/>", true),
            ("<message><body>*</body></message>", "<message><body>hello</body></message>", true),
            ("<message><body>*</body></message>", "<message><body/></message>", false),
            (
                "<iq><query xmlns='q'>...<feature var='b'/></query></iq>",
                "<iq><query xmlns='q'><feature var='a'/><feature var='b'/></query></iq>",
                true,
            ),
            (
                "<iq><query xmlns='q'><feature var='b'/></query></iq>",
                "<iq><query xmlns='q'><feature var='a'/><feature var='b'/></query></iq>",
                false,
            ),
            ("<iq><a xmlns='q'/><b xmlns='q'/></iq>", "<iq><b xmlns='q'/><a xmlns='q'/></iq>", true),
            ("<iq><a xmlns='q'/></iq>", "<iq><a xmlns='r'/></iq>", false),
            ("<iq id='$n'><a xmlns='q' v='$n'/></iq>", "<iq id='1'><a xmlns='q' v='1'/></iq>", true),
            ("<iq id='$n'><a xmlns='q' v='$n'/></iq>", "<iq id='1'><a xmlns='q' v='2'/></iq>", false),
        ];
        for (expected, heard, fits) in table {
            assert_eq!(
                matches(&node(expected), &node(heard), &mut Names::new()),
                fits,
                "{expected} / {heard}"
            );
        }
    }

    #[test]
    fn a_value_that_was_named_can_be_said_again() {
        let mut names = Names::new();
        assert!(matches(&node("<iq id='$ask'/>"), &node("<iq id='q1'/>"), &mut names));
        assert_eq!(fill("<iq id='$ask'/>", &names), "<iq id='q1'/>");
        assert!(!matches(&node("<iq id='$ask'/>"), &node("<iq id='q2'/>"), &mut names));
    }
}

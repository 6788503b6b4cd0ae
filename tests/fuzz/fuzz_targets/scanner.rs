//! What the scanner takes, the parser takes too, and for the same tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stanza::{Element, dom};

/// Around what is read as the content of an element.
const OPEN: &[u8] = b"<r xmlns='u'>";
const CLOSE: &[u8] = b"</r>";

fuzz_target!(|data: &[u8]| {
    if let Some(plain) = dom::parse_plain(data, "u") {
        let mut parent = Element::bare("r", "u");
        parent.append_child(plain);
        assert_eq!(dom::parse_any(&[OPEN, data, CLOSE].concat()), Ok(parent));
    }
    let mut parent = Element::bare("r", "u");
    if dom::parse_children_plain(&mut parent, "u", data) {
        assert_eq!(dom::parse_any(&[OPEN, data, CLOSE].concat()), Ok(parent));
    }
});

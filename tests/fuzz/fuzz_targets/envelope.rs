//! Parcels from another node: what is taken is sealed again to the same, and written without a panic.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use router::envelope;
use stanza::{dom, ns};

fuzz_target!(|data: &[u8]| {
    let Ok(opened) = envelope::open(Bytes::copy_from_slice(data)) else { return };
    let targets = opened.targets.iter().map(|(to, sid)| envelope::target(to.as_ref(), *sid)).collect();
    let sealed = envelope::seal(&opened.stanza, opened.purpose, opened.hops, targets);
    let Ok(again) = envelope::open(sealed) else { panic!("what was sealed cannot be opened") };
    assert_eq!(again.stanza.head, opened.stanza.head);
    assert_eq!(again.stanza.body(), opened.stanza.body());
    assert_eq!((again.purpose, again.hops, &again.targets), (opened.purpose, opened.hops, &opened.targets));
    let mut out = BytesMut::new();
    for (to, _) in &opened.targets {
        opened.stanza.write_to(&mut out, to.as_ref());
    }
    // Bodies are believed: the reader of the node where a stanza came in has checked them. What is believed is
    // a tree to whoever looks inside.
    let mut parent = minidom::Element::bare("r", ns::CLIENT);
    if dom::parse_children(&mut parent, &[(None, ns::CLIENT)], opened.stanza.body()).is_ok() {
        assert_eq!(opened.stanza.dom().nodes().count(), parent.nodes().count());
    }
});

//! Text as addresses: prepared once is prepared for good, parts are bounded, and equal is equal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stanza::{BareJid, FullJid, Jid, address};

/// RFC 6122, 2.1: the longest that a part may be, in bytes.
const PART_MAX: usize = 1023;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(jid) = address::jid(text) {
        let again = Jid::new(jid.as_str());
        assert_eq!(again.as_ref().map(Jid::as_str), Ok(jid.as_str()), "prepared twice it is another");
        let parts =
            [jid.node().map(|n| n.as_str()), Some(jid.domain().as_str()), jid.resource().map(|r| r.as_str())];
        for part in parts.into_iter().flatten() {
            assert!((1..=PART_MAX).contains(&part.len()), "a part of {} bytes", part.len());
            assert!(!part.contains('\0'), "a part with a NUL");
        }
        assert_eq!(Jid::from_parts(jid.node(), jid.domain(), jid.resource()), jid, "its parts make another");
        let bare = address::bare(&jid);
        assert!(address::same_account(&jid, &bare.clone().into()));
        assert_eq!(BareJid::new(bare.as_str()).as_ref(), Ok(&bare), "the account's address is none");
        if let Some(full) = address::full(&jid) {
            assert_eq!(FullJid::new(full.as_str()).as_ref(), Ok(full));
            assert_eq!(full.to_bare(), bare);
        }
        // What a body may say of it is what it is.
        assert_eq!(jid.as_str().parse::<Jid>().as_ref(), Ok(&jid));
    }
    if let Ok(host) = address::host(text) {
        assert_eq!(address::host(host.as_str()).as_ref(), Ok(&host), "a host prepared twice is another");
    }
    let Ok(localhost) = address::host("localhost") else { return };
    if let Ok(account) = address::account(text, &localhost) {
        assert_eq!(account.domain().as_str(), "localhost", "a name that brings its own host");
        assert_eq!(BareJid::new(account.as_str()).as_ref(), Ok(&account), "a name that is no address");
        let node = account.node().map(|node| node.as_str().to_owned()).unwrap_or_default();
        assert_eq!(
            address::account(&node, &localhost).as_ref(),
            Ok(&account),
            "a name prepared twice is another"
        );
    }
});

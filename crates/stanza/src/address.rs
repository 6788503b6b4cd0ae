//! Addresses (RFC 6122: stringprep, through `jid`), prepared at every door.

use std::borrow::Cow;

pub use jid::{BareJid, DomainPart, DomainRef, FullJid, Jid, NodePart, NodeRef, ResourcePart, ResourceRef};

/// An address as a client wrote it.
///
/// Fails also where preparing it twice gives another address, or none (`\u{df}--x`, whose hyphens come to stand
/// where none may): what is kept or sent to another node is read again there, and must be the same.
pub fn jid(text: &str) -> Result<Jid, jid::Error> {
    let text = &*with_one_domain(text)?;
    let jid = Jid::new(text)?;
    if jid.as_str() != text && Jid::new(jid.as_str())? != jid {
        return Err(jid::Error::NamePrep);
    }
    Ok(jid)
}

/// As [`jid`], of an address without a resource.
pub fn bare_jid(text: &str) -> Result<BareJid, jid::Error> {
    jid(text)?.try_into()
}

/// The address, its domain in the form that it is compared in before it is prepared.
fn with_one_domain(text: &str) -> Result<Cow<'_, str>, jid::Error> {
    Ok(match without_final_dot(text)? {
        Cow::Borrowed(text) => with_u_labels(text),
        Cow::Owned(text) => Cow::Owned(with_u_labels(&text).into_owned()),
    })
}

/// What ends a label of a domain (RFC 3490, 3.1).
const DOTS: [char; 4] = ['.', '\u{3002}', '\u{ff0e}', '\u{ff61}'];

/// RFC 6122, 2.2: a final dot only says that the domain is complete, and is gone before anything else is done. The
/// crate `jid` leaves it beside another part, and takes the resource behind it for a longer one.
fn without_final_dot(text: &str) -> Result<Cow<'_, str>, jid::Error> {
    let (domain, resource) = text.split_at(text.find('/').unwrap_or(text.len()));
    let Some(domain) = domain.strip_suffix(DOTS) else { return Ok(Cow::Borrowed(text)) };
    if domain.ends_with(DOTS) {
        return Err(jid::Error::Idna);
    }
    Ok(Cow::Owned([domain, resource].concat()))
}

/// What begins a label of a domain that is written in ASCII for another one (RFC 5890, 2.3.2.1).
const ACE: &str = "xn--";

/// RFC 7622, 3.2.1: a label in its ASCII form is the label that it stands for, or one domain would be two. What stands
/// for none is left as it is.
fn with_u_labels(text: &str) -> Cow<'_, str> {
    if !text.contains("--") {
        return Cow::Borrowed(text);
    }
    let (bare, resource) = text.split_at(text.find('/').unwrap_or(text.len()));
    let (node, domain) = bare.split_at(bare.find('@').map_or(0, |at| at + 1));
    let is_ace = |label: &str| label.get(..ACE.len()).is_some_and(|start| start.eq_ignore_ascii_case(ACE));
    if !domain.split(DOTS).any(is_ace) {
        return Cow::Borrowed(text);
    }
    match idna::domain_to_unicode(domain) {
        (domain, Ok(())) => Cow::Owned([node, &domain, resource].concat()),
        (_, Err(_)) => Cow::Borrowed(text),
    }
}

/// The host name as it is compared everywhere: prepared and in lower case.
/// Fails for anything that is no domain (empty, with `@` or `/`, too long).
pub fn host(name: &str) -> Result<DomainPart, jid::Error> {
    let host = DomainPart::new(&with_one_domain(name)?)?.into_owned();
    for_good(host.as_str())?;
    Ok(host)
}

/// As in [`jid`], of text that was prepared.
fn for_good(prepared: &str) -> Result<(), jid::Error> {
    if Jid::new(prepared)?.as_str() == prepared { Ok(()) } else { Err(jid::Error::NamePrep) }
}

/// The bare JID `localpart@host` of an account from an unprepared localpart, as a login sends it.
/// A localpart with `@` or `/` is refused by the preparation (RFC 6122, appendix A.5).
pub fn account(localpart: &str, host: &DomainRef) -> Result<BareJid, jid::Error> {
    let node = NodePart::new(localpart)?;
    let account = BareJid::from_parts(Some(&node), host);
    if node.as_str() != localpart {
        for_good(account.as_str())?;
    }
    Ok(account)
}

/// The address without its resource.
pub fn bare(jid: &Jid) -> BareJid {
    jid.to_bare()
}

/// The full JID, or `None` where the address has no resource.
pub fn full(jid: &Jid) -> Option<&FullJid> {
    jid.try_as_full().ok()
}

/// Whether the address is the host itself: no localpart, no resource.
pub fn is_host(jid: &Jid, host: &DomainRef) -> bool {
    jid.node().is_none() && jid.resource().is_none() && jid.domain() == host
}

/// Whether both addresses belong to one account (same localpart and domain).
pub fn same_account(a: &Jid, b: &Jid) -> bool {
    a.node() == b.node() && a.domain() == b.domain()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_are_one_account() {
        let localhost = host("LOCALHOST.").unwrap();
        let alice = account("alice", &localhost).unwrap();
        assert_eq!(alice, account("ALICE", &localhost).unwrap());
        assert_eq!(alice, account("ＡＬＩＣＥ", &localhost).unwrap());
        assert_eq!(alice.as_str(), "alice@localhost");
    }

    #[test]
    fn what_is_no_address_is_refused_without_a_panic() {
        for bad in ["", "@x", "x@", "x@y/", "a@b@c", "\u{200e}@x", "a\u{0}b@x", "@@@", "a b@x"] {
            assert!(Jid::new(bad).is_err(), "{bad:?}");
        }
        let long = "a".repeat(1024);
        assert!(Jid::new(&format!("{long}@x")).is_err());
        assert!(Jid::new(&format!("a@x/{long}")).is_err());
        let localhost = host("localhost").unwrap();
        for bad in ["", "a@b", "a/b", "a\"b", "a b"] {
            assert!(account(bad, &localhost).is_err(), "{bad:?}");
        }
        for bad in ["", "a@b", "a/b"] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_domain_in_ascii_is_the_one_that_it_stands_for() {
        for (ascii, plain) in [
            ("xn--ber-goa.test", "\u{fc}ber.test"),
            ("a@XN--BER-GOA.test/xn--ber-goa.test", "a@\u{fc}ber.test/xn--ber-goa.test"),
            ("xn--ber-goa@x--y.test", "xn--ber-goa@x--y.test"),
            ("a@b.xn--ber-goa.", "a@b.\u{fc}ber"),
        ] {
            assert_eq!(jid(ascii).unwrap().as_str(), plain, "{ascii}");
        }
        assert_eq!(host("xn--ber-goa.test"), host("\u{dc}ber.test"));
        // It stands for nothing: nobody has it, and it is no other domain.
        assert!(jid("a@xn--\u{fc}.test").is_err());
        assert_ne!(host("xn--a").ok(), host("a").ok());
    }

    #[test]
    fn a_final_dot_is_no_part_of_a_domain() {
        assert!(
            Jid::new("a@x./r").is_ok_and(|jid| jid.as_str() != "a@x/r"),
            "the crate `jid` takes care of it now"
        );
        for (dotted, plain) in [
            ("x.", "x"),
            ("x.y.", "x.y"),
            ("x./r", "x/r"),
            ("a.@x.", "a.@x"),
            ("A@X.", "a@x"),
            ("a@x./r.", "a@x/r."),
            ("a@x./b@y./", "a@x/b@y./"),
            ("a@x\u{3002}", "a@x"),
            ("a@x\u{ff0e}/r", "a@x/r"),
            ("a@x\u{ff61}", "a@x"),
        ] {
            let jid = jid(dotted).unwrap();
            assert_eq!(jid, Jid::new(plain).unwrap(), "{dotted}");
            assert_eq!(Jid::from_parts(jid.node(), jid.domain(), jid.resource()), jid);
        }
        for bad in [".", "a@.", "a@./r", "x..", "a@x..", "a@x../r", "a@x.\u{3002}", "a@.x"] {
            assert!(jid(bad).is_err(), "{bad}");
        }
        assert_eq!(host("x.y.").unwrap().as_str(), "x.y");
        assert!(host("x..").is_err() && host(".").is_err());
        assert_eq!(bare_jid("a@x.").unwrap().as_str(), "a@x");
        assert!(bare_jid("a@x./r").is_err());
    }

    #[test]
    fn what_is_another_address_when_it_is_read_again_is_none() {
        assert!(Jid::new("\u{df}--x").is_ok(), "the crate `jid` takes care of it now");
        for bad in ["\u{df}--x", "a@\u{df}--x", "a@\u{df}--x/r"] {
            assert!(jid(bad).is_err(), "{bad}");
        }
        assert!(host("\u{df}--x").is_err());
        // A capital letter comes to be only when the first preparation composes it.
        assert!(host("l\u{3f9}\u{323}x").is_err());
        for good in ["ALICE@LOCALHOST/Phone", "a@b\u{fc}cher.example", "a@\u{df}/\u{df}", "x", "\u{3a3}@x"] {
            let prepared = jid(good).unwrap();
            assert_eq!(jid(prepared.as_str()).unwrap(), prepared);
        }
    }

    #[test]
    fn an_account_is_told_from_a_host() {
        let localhost = host("localhost").unwrap();
        let jid = |s: &str| Jid::new(s).unwrap();
        assert!(is_host(&jid("localhost"), &localhost));
        assert!(!is_host(&jid("localhost/x"), &localhost));
        assert!(!is_host(&jid("a@localhost"), &localhost));
        assert!(same_account(&jid("a@localhost/x"), &jid("a@localhost")));
        assert!(!same_account(&jid("b@localhost/x"), &jid("a@localhost")));
        assert!(full(&jid("a@localhost/x")).is_some());
        assert!(full(&jid("a@localhost")).is_none());
    }
}

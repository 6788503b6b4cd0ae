//! A module's card: what it is called, which specifications it implements, what it announces.

/// How far a specification has got, in the words of XEP-0001.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Experimental,
    Proposed,
    Stable,
    Final,
    Active,
    Historical,
    Deprecated,
    Obsolete,
    Deferred,
}

impl Status {
    /// The word as the specification prints it.
    pub fn word(self) -> &'static str {
        match self {
            Status::Experimental => "Experimental",
            Status::Proposed => "Proposed",
            Status::Stable => "Stable",
            Status::Final => "Final",
            Status::Active => "Active",
            Status::Historical => "Historical",
            Status::Deprecated => "Deprecated",
            Status::Obsolete => "Obsolete",
            Status::Deferred => "Deferred",
        }
    }
}

/// One specification that a module implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xep {
    pub number: u16,
    pub title: &'static str,
    /// The version that the code was written against.
    pub version: &'static str,
    pub status: Status,
}

/// What a module says about itself; pages, the DOAP file and service discovery are made from it.
#[derive(Debug, Clone, Copy)]
pub struct Card {
    /// The name of its file and of its `[modules.NAME]` table.
    pub name: &'static str,
    /// One sentence for users.
    pub sentence: &'static str,
    pub xeps: &'static [Xep],
    /// RFC sections, for what is no XEP: `RFC 6121, section 2`.
    pub rfcs: &'static [&'static str],
    /// Features of the server in its disco#info answer (XEP-0030, 3.1).
    pub host_features: &'static [&'static str],
    /// Features of an account in its disco#info answer.
    pub account_features: &'static [&'static str],
    /// Further identities of an account there: a category and a type.
    pub account_identities: &'static [(&'static str, &'static str)],
}

impl Card {
    /// A card with a name and a sentence; the rest is filled with struct update syntax.
    pub const fn new(name: &'static str, sentence: &'static str) -> Card {
        Card {
            name,
            sentence,
            xeps: &[],
            rfcs: &[],
            host_features: &[],
            account_features: &[],
            account_identities: &[],
        }
    }
}

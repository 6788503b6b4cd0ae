//! The tests' harness: the real binary on free ports, XMPP clients over TLS, plays read from text.
//!
//! Read in this order: `xml` and `pattern` say what XML is here and when it is as expected, `client` speaks
//! XMPP, `certificates` are what TLS shows, `ground` is what nodes stand on, `nodes` runs the binary, `joining` forms a cluster under certificates of
//! its own, `people` have accounts, `play` reads a story and `stage` performs it; `talk` is a crowd that chats through all that happens, `account` adds up what came of it, `soak` and
//! `slow_reader` are other crowds.

pub mod account;
pub mod certificates;
pub mod client;
pub mod diff;
pub mod ground;
pub mod joining;
pub mod metrics;
pub mod nodes;
pub mod pattern;
pub mod people;
pub mod play;
pub mod scram;
pub mod slow_reader;
pub mod soak;
pub mod stage;
pub mod talk;
pub mod xml;

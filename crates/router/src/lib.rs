//! Carries a stanza to where the table says: one decision, one crossing, and an end that its sender can know.
//!
//! Read in this order:
//! - [`router`]: the one decision (here, a peer, a service, another domain) and what sessions call.
//! - [`decision`]: RFC 6121, section 8, as a pure function.
//! - [`arrival`]: arriving handlers, then the decision, then mailboxes or other nodes.
//! - [`queues`]: what waits while a handler of an account awaits the store.
//! - [`holds`]: what waits while kept messages are handed over.
//! - [`mailboxes`], [`receipt`]: what waits to be written to each session, and who wants to know when it was.
//! - [`services`]: what modules may ask of the server.
//! - [`removal`], [`keysmith`]: the end of an account, and the keys of a new password.
//! - [`envelope`], [`peer`], [`lane`], [`link`], [`relay`]: acknowledged streams to and from other nodes.
//! - [`takeover`]: sessions that their clients resume at another node.
//! - [`lost`]: what is done for the sessions of a node that is gone.
//! - [`late`]: what is done about an end that comes behind the presence of a successor.
//! - [`rest`]: when a node that ends has nothing left to do.
//! - [`whereabouts`], [`config`], [`metrics`]: what it is told, its bounds and its counters.

pub mod router;
mod transit;
pub mod decision;
mod arrival;
mod away;
mod queues;
mod holds;
pub mod mailboxes;
pub mod receipt;
pub mod services;
mod removal;
mod keysmith;
pub mod envelope;
mod peer;
mod lane;
mod link;
pub mod relay;
mod lost;
mod rest;
pub mod takeover;
mod late;
pub mod whereabouts;
pub mod config;
pub mod metrics;

pub use config::Config;
pub use keysmith::MakeKeys;
pub use mailboxes::{Delivery, End, Mailbox, Waiting};
pub use metrics::{Counters, Fate, LaneFacts};
pub use receipt::Receipt;
pub use router::{Deps, Router};
pub use takeover::{Ask, Given, Moving, Refusal, Thread, Yielding};
pub use whereabouts::Whereabouts;

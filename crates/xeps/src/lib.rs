//! Every protocol extension, one file each.
//!
//! Read in this order:
//! - [`index`]: the list of modules, whose order is the order of their handlers.
//! - [`ping`], the smallest module, then [`disco`], [`roster`], [`strangers`], [`subscription`],
//!   [`presence`], [`invisible`], [`offline`], [`forgeries`], [`carbons`], [`archive`].
//! - [`private`] and [`vcard`]: what clients keep with an account, for themselves and for others; [`last`]: when it was
//!   last there.
//! - [`sasl2`] and [`bind2`]: how clients log in and have their session in one step.
//! - [`fast`]: tokens by which they come back. [`stream_limits`]: how much a client may send.
//! - [`management`] and [`csi`]: sessions that outlive their connections, and clients that nobody looks at; [`push`]: what
//!   wakes a client that is away.
//! - [`pep`]: what users publish, and who hears of it; [`avatars`]: their pictures; [`pubsub`]: the engine below it.
//! - [`registration`]: the one that speaks with clients before they log in; [`anonymous`]: those without an account.
//! - [`commands`]: what somebody may have a host do; [`administration`]: what admins may.
//! - [`no_reply`], [`data_policy`]: what a host says of itself.
//! - [`external`]: STUN and TURN servers; [`multicast`]: one stanza to many.
//! - [`blocking`]: whom users do not want to hear; `blocklists` keeps the lists, which presence asks too;
//! - [`privacy`]: what passes by the rules of users; `privacylists` keeps them, which presence asks too;
//!   [`reports`]: why, for the operators.
//! - [`storm`], [`offline_filter`]: what operators of a busy site switch on; `docs/writing-a-module.md` is about them.
//! - [`rosters`]: the rosters of accounts, which several modules ask; kept in the store, cached with sessions.
//!   `pushes`: in which order sessions hear of their changes. `cache`: what is cached, and how it is forgotten.
//! - [`groups`]: groups of contacts that operators keep; [`shared_groups`]: who is told of them.
//! - [`settings`]: how a module says which keys its `[modules.NAME]` table has.
//! - `forms`, `xml`, `kept`, `hints`, `forwarded`, `failure`: what several modules write, read and answer.
//! - [`pages`]: the pages of `docs/` that are made from the modules' cards; `compliance`: one of them.

pub mod administration;
pub mod anonymous;
pub mod blocking;
mod blocklists;
mod cache;
pub mod archive;
pub mod avatars;
pub mod carbons;
pub mod commands;
mod compliance;
pub mod data_policy;
pub mod disco;
pub mod external;
mod failure;
pub mod fast;
pub mod forgeries;
mod forms;
mod forwarded;
pub mod groups;
mod hints;
pub mod index;
pub mod invisible;
mod kept;
pub mod last;
pub mod sasl2;
pub mod sasl_upgrade;
pub mod bind2;
pub mod management;
pub mod csi;
pub mod multicast;
pub mod no_reply;
pub mod offline;
pub mod offline_filter;
pub mod pages;
pub mod pep;
pub mod ping;
pub mod presence;
pub mod privacy;
mod privacylists;
pub mod private;
pub mod push;
pub mod pubsub;
mod pushes;
pub mod registration;
pub mod reports;
pub mod roster;
pub mod rosters;
mod screen;
pub mod session;
pub mod settings;
pub mod shared_groups;
pub mod storm;
pub mod strangers;
pub mod stream_limits;
pub mod subscription;
pub mod time;
pub mod vcard;
pub mod version;
mod xml;

pub use index::{ModulesConfig, modules, switches};
pub use settings::{Key, Wrong};

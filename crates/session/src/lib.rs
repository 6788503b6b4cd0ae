//! One supervised actor per client, with its socket: listeners, TLS, negotiation, both halves of a connection.

mod claim;
mod claims;
mod config;
mod connection;
mod counters;
mod gate;
mod listener;
mod login;
mod outcome;
mod passwords;
mod secret;
mod session;
mod shape;
mod socket;
mod start;
mod supervisor;
mod table;
mod tls;
mod world;

pub use claims::Claims;
pub use config::{C2s, Config, Limits, ResourceConflict, TlsFiles};
pub use counters::{Counter, Counters};
pub use listener::Door;
pub use outcome::Outcome;
pub use passwords::{Busy, Passwords};
pub use start::{Listeners, StartError, start};
pub use table::SessionFacts;
pub use tls::{TlsError, TlsStore};

//! One supervised actor per client, with its socket: listeners, TLS, negotiation, both halves of a connection.

mod start;
mod listener;
mod gate;
mod tls;
mod socket;
mod shape;
mod passwords;
mod session;
mod outcome;
mod table;
mod claims;
mod world;
mod config;
mod counters;

pub use claims::Claims;
pub use config::{C2s, Config, Limits, ResourceConflict, TlsFiles};
pub use counters::{Counter, Counters};
pub use listener::Door;
pub use outcome::Outcome;
pub use passwords::{Busy, Passwords};
pub use start::{Listeners, StartError, start};
pub use table::SessionFacts;
pub use tls::{TlsError, TlsStore};

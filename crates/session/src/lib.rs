//! One supervised actor per client, with its socket: listeners, TLS, negotiation, both halves of a connection.

mod config;
mod counters;
mod gate;
mod passwords;
mod tls;

pub use config::{C2s, Config, Limits, TlsFiles};
pub use counters::{Counter, Counters};
pub use passwords::{Busy, Passwords};
pub use tls::{TlsError, TlsStore};

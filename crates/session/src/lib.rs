//! One supervised actor per client, with its socket: listeners, TLS, negotiation, both halves of a connection.

mod claim;
mod claims;
mod config;
mod connection;
mod counters;
mod failures;
mod files;
mod gate;
mod limits;
mod listener;
mod login;
mod network;
mod outcome;
mod passwords;
mod proxy;
mod secret;
mod session;
mod shape;
mod shaper;
mod socket;
mod start;
mod supervisor;
mod table;
mod tls;
mod world;

pub use claims::Claims;
pub use config::{Auth, C2s, ClientCertificates, Config, ResourceConflict, Tls, TlsFiles, TlsMinimum};
pub use counters::{Counter, Counters};
pub use limits::Limits;
pub use listener::Door;
pub use network::{Network, NotANetwork};
pub use outcome::Outcome;
pub use passwords::{Busy, Passwords};
pub use start::{Listeners, StartError, start};
pub use table::SessionFacts;
pub use tls::{TlsError, TlsStore, ciphers_fit};

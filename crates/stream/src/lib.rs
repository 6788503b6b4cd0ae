//! Bytes to stanzas and back, negotiation, SASL: pure, no socket, no clock, no randomness of its own.

pub mod limits;
pub mod reader;
pub mod writer;
pub mod negotiation;
pub mod features;
pub mod sasl;
pub mod management;
pub mod client;

pub use limits::Limits;
pub use negotiation::{
    Act, Acts, ClientCertificate, Entry, Negotiation, Random, Settings, TlsFacts, TlsVersion,
};
pub use reader::{ReadError, Reader, StreamEvent, StreamHeader};
pub use writer::Writer;

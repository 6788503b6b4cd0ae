//! Makes the keys that are kept of a password.

use store::{Credentials, ScramKeys};

/// Rounds of PBKDF2: what the client pays at each login, and a thief for each guess (RFC 7677 asks for 4096
/// at least).
const ITERATIONS: u32 = 10_000;

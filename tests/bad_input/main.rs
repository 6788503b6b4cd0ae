//! What a stranger may send, row by row over real sockets; `docs/bad-input.md` is made from these tests.
//!
//! A row is a function `row_NNN_what_happens` with two paragraphs above it, `Input: ...` and `Outcome: ...`.
//! Its deeds run inside [`door::Door::row`], which checks afterwards what holds for every row: the process
//! lives, a bystander's session works and heard nothing, no password is in the log, memory is where it was,
//! nothing panicked, and a metric counted the event.

mod accounts;
mod address;
mod auth;
mod binding;
mod cluster;
mod crowd;
mod differential;
mod flood;
#[allow(dead_code, reason = "rows take what they need")]
mod door;
mod generator;
mod header;
#[allow(dead_code, reason = "rows take what they need")]
mod metric;
mod pace;
#[allow(dead_code, reason = "rows take what they need")]
mod raw;
#[allow(dead_code, reason = "rows take what they need")]
mod server;
mod size;
mod store;
mod tls;
mod xml;

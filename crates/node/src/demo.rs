//! `rookery demo`: a cluster on loopback on which two users chat, and what became of it.

mod plan;
mod processes;

use crate::{cli::Demo, parts::Failure};

/// Runs the demo.
pub fn run(_demo: &Demo) -> Result<(), Failure> {
    Err("soon".into())
}

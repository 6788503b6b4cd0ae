//! `rookery demo`.

mod plan;
mod processes;

//! What Prometheus reads: the facts of every part, looked up when asked for.

mod page;
mod sources;

pub use sources::Sources;

use std::sync::Arc;

use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::http::Page;

/// The page of metrics of a node.
pub fn page(sources: Sources) -> Page {
    let mut registry = Registry::with_prefix("rookery");
    registry.register_collector(Box::new(sources));
    let registry = Arc::new(registry);
    Arc::new(move || {
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => format!("# failed to encode: {error}\n"),
        }
    })
}

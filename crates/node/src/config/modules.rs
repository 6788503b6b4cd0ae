//! The keys of `[modules.NAME]`, which belong to the modules themselves.

use std::sync::Arc;

use hooks::{Module, Switches};

/// The modules of a node.
pub struct Modules {
    /// In the order of their handlers.
    pub list: Vec<Arc<dyn Module>>,
    /// On which hosts each is on.
    pub switches: Switches,
}

impl super::Settings {
    /// Makes the modules.
    pub fn modules(&self) -> Result<Modules, super::Faults> {
        Ok(Modules { list: Vec::new(), switches: Switches::everywhere() })
    }
}

//! The engines that this crate brings along.

pub mod memory;
pub mod sled;

//! Agreement: the only place where openraft's types are seen.

pub mod group;
pub mod machine;

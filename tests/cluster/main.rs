//! What happens to a cluster of real processes when one of them is killed.

mod count;
mod killed;

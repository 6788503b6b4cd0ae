//! What happens to a cluster of real processes when one of them is killed or paused.

mod count;
mod killed;
mod paused;

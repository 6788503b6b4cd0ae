//! What happens to a cluster of real processes when one of them is killed, paused, or of another version.

mod count;
mod earlier;
mod killed;
mod meeting;
mod paused;

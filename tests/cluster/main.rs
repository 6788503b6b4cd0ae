//! What happens to a cluster of real processes when some of them are killed, paused, cut off, or of another version.

mod cases;
mod count;
mod cuts;
mod earlier;
mod killed;
mod meeting;
mod paused;
mod scene;

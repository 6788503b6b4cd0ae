//! What happens to a cluster of real processes when some of them are killed, paused, cut off, added, taken out, or of
//! another version.

mod cases;
mod chaos;
mod chat;
mod count;
mod cuts;
mod earlier;
mod figures;
mod growing;
mod handing_over;
mod killed;
mod meeting;
mod paused;
mod recovering;
mod scene;
mod voters;

//! Sessions over real sockets, against a whole node but for the cluster.

mod house;
mod inlined;
mod client;
mod login;
mod door;
mod drain;
mod life;
mod accounts;
mod reads;
mod resuming;
mod memory;
mod modules;

//! The router's tests: one node in memory, and several over loopback links that can be cut.

mod login_race;
mod modules;
mod one_node;
mod real_cluster;
mod relay;
mod removal;
mod world;

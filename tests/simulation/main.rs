//! A whole cluster in one process and on one thread, in a world of its own: one seed, one history, and an oracle that
//! looks at it. See `docs/simulation.md`.

mod chance;
mod clients;
mod disks;
mod faults;
mod history;
mod house;
mod ledger;
mod network;
mod oracle;
mod oracle_tests;
mod run;
mod seeds;
mod world;

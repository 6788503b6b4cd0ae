//! What operators use, over real processes: commands, the admin service, metrics, logs, certificates, links.

mod accounts;
mod administration;
mod anonymous;
mod archiving;
mod certificates;
mod commands;
mod deploying;
mod discovery;
mod draining;
mod files;
mod groups;
mod joining;
mod links;
mod load;
mod logs;
mod metrics;
mod reads;
mod resuming;
mod rosters;
mod seeing;
mod services;
mod sessions;
mod stopping;
mod tls;

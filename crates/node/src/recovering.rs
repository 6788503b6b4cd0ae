//! `rookery cluster recover`: a cluster that lost its majority begins anew from one backend.

use cluster::{NodeRow, NodeState, recovery::Recovery};

use crate::{
    cli::ConfigArgs,
    config::{self, Settings},
    joining,
    parts::{Failure, folder, storage},
};

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
enum RecoveringError {
    #[error(
        "the config has no `cluster.listen`: a node that is alone has nothing to recover from others, start it"
    )]
    NoCluster,
    #[error(
        "`{name}` answers at `{address}` as a backend of this cluster: nothing was done; if a majority of the backends is left, start them, and the cluster goes on by itself; else stop `{name}`, for what it has will not be part of the cluster any more"
    )]
    Lives { name: String, address: String },
}

/// Shows what this backend has, and begins anew from it if `yes`.
pub fn recover(yes: bool, args: &ConfigArgs) -> Result<(), Failure> {
    let settings = config::load(args.config.as_deref(), &args.set)?;
    let Some(listen) = settings.cluster.listen else { return Err(RecoveringError::NoCluster.into()) };
    let address = settings.cluster.advertise.clone().unwrap_or_else(|| listen.to_string());
    let _lock = folder::Lock::take(&settings.node.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let recovery = Recovery::look(&settings.node.data_dir).await?;
        told(&recovery, &settings);
        if let Some(row) = recovery.living(&settings.cluster).await? {
            return Err(RecoveringError::Lives { name: row.name, address: row.address }.into());
        }
        if !yes {
            println!();
            println!("nothing was done: run this again with --yes to begin anew from what this backend has");
            return Ok(());
        }
        let (cluster, epoch) = (recovery.cluster, recovery.epoch);
        recovery.run(&address, storage::on_disk(&settings)).await?;
        println!();
        println!("recovered cluster {cluster}: it is in epoch {epoch}, and this backend is all of it");
        println!(
            "next: start this node with `{}`; then bring in others with empty data directories, by `rookery cluster token`",
            joining::serve(args)
        );
        Ok::<(), Failure>(())
    })
}

fn told(recovery: &Recovery, settings: &Settings) {
    let names = |rows: &[NodeRow]| {
        let name = |row: &NodeRow| match row.state {
            NodeState::Gone => format!("{} (id {}, gone)", row.name, row.node),
            NodeState::Up | NodeState::Draining => format!("{} (id {})", row.name, row.node),
        };
        let all = rows.iter().map(name).collect::<Vec<_>>().join(", ");
        if all.is_empty() { "none".to_owned() } else { all }
    };
    println!("cluster {}, which would enter epoch {}", recovery.cluster, recovery.epoch);
    println!("  this backend          {}", settings.node.name);
    for (name, term, last) in &recovery.groups {
        println!(
            "  {:<21} entry {last}, term {term}: of several backends that are left, take the one with the most",
            format!("it has of `{name}`")
        );
    }
    println!("  no part of it then    {}", names(&recovery.lost));
    println!("  frontends, come back  {}", names(&recovery.frontends));
}

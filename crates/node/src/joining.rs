//! The commands that make a node part of a cluster before it runs: `rookery cluster init` and `join`.

use std::{io::Read, time::Duration};

use cluster::{
    Roles, discovery,
    identity::joining::{self, Joined, Ticket},
};

use crate::{
    cli::ConfigArgs,
    config::{self, Settings},
    parts::{Failure, folder},
};

/// What stands between a config and its node's identity.
#[derive(Debug, thiserror::Error)]
enum JoiningError {
    #[error(
        "the config has no table `[cluster]`: expected `cluster.listen`, and `cluster.advertise` where it is not the address that others use"
    )]
    NoCluster,
    #[error("the certificates of this node are given by its config (`cluster.cert`): there is nothing to do")]
    Given,
    #[error(
        "links on loopback are plain unless the config says `cluster.plain = false`: there is nothing to do"
    )]
    Plain,
    #[error("failed to read the join token from stdin: {0}")]
    Stdin(std::io::Error),
}

/// `rookery cluster init`
pub fn init(args: &ConfigArgs) -> Result<(), Failure> {
    let settings = load(args)?;
    let _lock = folder::Lock::take(&settings.node.data_dir)?;
    let address = settings.cluster.advertise.clone().unwrap_or_default();
    let lifetime = Duration::from_secs(settings.cluster.certificate_lifetime_s);
    let made = joining::init(&settings.node.data_dir, &address, roles(&settings), lifetime)?;
    told("made", &made, &settings);
    println!(
        "next: start this node with `{}`; then, for each other node, `rookery cluster token`",
        serve(args)
    );
    Ok(())
}

/// `rookery cluster join`
pub fn join(token: &str, args: &ConfigArgs) -> Result<(), Failure> {
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        // A token is short, and whatever is longer is none.
        std::io::stdin().take(4096).read_to_string(&mut text).map_err(JoiningError::Stdin)?;
    }
    let ticket = Ticket::parse(&text)?;
    let settings = load(args)?;
    let _lock = folder::Lock::take(&settings.node.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joined = runtime.block_on(async {
        // Discovery that has no answer is as good as none: the error then says what is missing.
        let seeds = discovery::source(&settings.cluster.discovery).seeds().await.unwrap_or_default();
        joining::join(&settings.node.data_dir, &ticket, &seeds, roles(&settings)).await
    })?;
    told("joined", &joined, &settings);
    println!("next: start this node with `{}`", serve(args));
    Ok(())
}

fn load(args: &ConfigArgs) -> Result<Settings, Failure> {
    let settings = config::load(args.config.as_deref(), &args.set)?;
    let cluster = &settings.cluster;
    match (cluster.listen, cluster.plain, &cluster.tls) {
        (None, ..) => Err(JoiningError::NoCluster.into()),
        (_, _, Some(_)) => Err(JoiningError::Given.into()),
        (_, true, _) => Err(JoiningError::Plain.into()),
        _ => Ok(settings),
    }
}

fn roles(settings: &Settings) -> Roles {
    Roles { frontend: settings.node.frontend, backend: settings.node.backend }
}

fn told(what: &str, joined: &Joined, settings: &Settings) {
    println!("{what} cluster {} as {} ({})", joined.cluster, settings.node.name, joined.roles);
    println!("kept in {}", settings.node.data_dir.join("cluster/identity").display());
}

/// How the node of a config is started.
pub fn serve(args: &ConfigArgs) -> String {
    match &args.config {
        Some(file) => format!("rookery serve --config {}", file.display()),
        None => "rookery serve".to_owned(),
    }
}

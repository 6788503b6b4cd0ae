//! A cluster that makes its own certificates, formed as an operator forms it; and links in the name of its nodes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::nodes::{Layout, Node, Nodes};

/// What becomes of each config: from a node and its text.
pub type Edit<'a> = &'a dyn Fn(&Node, String) -> Result<String>;

/// Three nodes whose links are under TLS on loopback, and of which none runs yet. Nodes in `frontends` are nothing
/// else.
pub fn prepare(frontends: &[usize], edit: Edit<'_>) -> Result<Nodes> {
    prepare_as(Layout::Three, frontends, edit)
}

/// As `prepare`, of a layout with links.
pub fn prepare_as(layout: Layout, frontends: &[usize], edit: Edit<'_>) -> Result<Nodes> {
    let mut nodes = Nodes::prepare(layout, |all, node, config| {
        ensure!(config.contains("plain = true"), "the harness makes plain links in another way now");
        let mut config = config.replace("plain = true", "plain = false");
        let at = all.iter().position(|other| other.name == node.name).context("it is one of them")?;
        if frontends.contains(&at) {
            config = config.replace("roles = [\"frontend\", \"backend\"]", "roles = [\"frontend\"]");
            ensure!(config.contains("roles = [\"frontend\"]"), "the harness writes roles in another way now");
        }
        edit(node, config)
    })?;
    for at in frontends {
        nodes.nodes[*at].roles = &["frontend"];
    }
    Ok(nodes)
}

/// Forms a cluster of the first `count` nodes: `init` at the first, then a token and `join` for each other one.
pub async fn form(nodes: &mut Nodes, count: usize) -> Result<()> {
    done(nodes.offline(0, &["cluster", "init"]).await?)?;
    nodes.start_again(0).await?;
    for at in 1..count {
        join(nodes, 0, at).await?;
    }
    Ok(())
}

/// Lets a node in by a token of another one, and starts it.
pub async fn join(nodes: &mut Nodes, from: usize, at: usize) -> Result<()> {
    let role = if nodes.nodes[at].roles.contains(&"backend") { "both" } else { "frontend" };
    let ticket = ticket(nodes, from, &["--role", role]).await?;
    done(nodes.offline(at, &["cluster", "join", &ticket]).await?)?;
    nodes.start_again(at).await
}

/// A new token of a node, with the node's address.
pub async fn ticket(nodes: &Nodes, from: usize, words: &[&str]) -> Result<String> {
    let said = done(nodes.ask(from, &[&["cluster", "token"], words].concat()).await?)?;
    let token = said.lines().next().context("no token")?;
    ensure!(token.starts_with("rookery-join-1-"), "{said}");
    Ok(format!("{token}@{}", nodes.nodes[from].cluster))
}

/// What a command said, if it did what it was told.
pub fn done((ok, said): (bool, String)) -> Result<String> {
    ensure!(ok, "{said}");
    Ok(said)
}

/// What a command said, if it refused.
pub fn refused((ok, said): (bool, String)) -> Result<String> {
    ensure!(!ok, "it was done: {said}");
    Ok(said)
}

/// Where a node keeps its certificate and key.
pub fn identity(node: &Node) -> PathBuf {
    node.folder.join("data/cluster/identity")
}

/// A link to a node under the authority in one folder, with the certificate and key in another one, or with none.
pub async fn link(to: SocketAddr, authority: &Path, shown: Option<&Path>) -> Result<Channel> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(fs::read(authority.join("ca.pem"))?))
        .domain_name("rookery-cluster");
    if let Some(folder) = shown {
        tls = tls.identity(Identity::from_pem(
            fs::read(folder.join("node.pem"))?,
            fs::read(folder.join("node.key"))?,
        ));
    }
    let endpoint = Channel::from_shared(format!("https://{to}"))?.tls_config(tls)?;
    Ok(endpoint.timeout(Duration::from_secs(10)).connect().await?)
}

//! Links between nodes under mutual TLS, with the certificates of the operator's guide.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use proto::{
    membership::{HelloRequest, Peer, membership_client::MembershipClient},
    sessions::{ConnectionsRequest, sessions_client::SessionsClient},
};
use tests::{
    nodes::{Layout, Nodes},
    people::Person,
};
use tokio::process::Command;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// Runs the very commands of `docs/operating.md` in a folder.
async fn certificates(folder: &Path) -> Result<()> {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
    let guide = fs::read_to_string(guide)?;
    let blocks = guide.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let script = { blocks }.find(|b| b.contains("openssl")).context("the guide makes no certificates")?;
    fs::create_dir_all(folder)?;
    let made = Command::new("sh").args(["-e", "-c", script]).current_dir(folder).output().await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// A link to a node as whoever has this certificate makes it; the authority is always the cluster's.
async fn link(nodes: &Nodes, ours: &Path, identity: Option<(&Path, &str)>) -> Result<Channel> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(fs::read(ours.join("ca.pem"))?))
        .domain_name("rookery-cluster");
    if let Some((folder, name)) = identity {
        let read = |end: &str| fs::read(folder.join(format!("{name}.{end}")));
        tls = tls.identity(Identity::from_pem(read("pem")?, read("key")?));
    }
    let address = format!("https://{}", nodes.nodes[0].cluster);
    let endpoint = Channel::from_shared(address)?.tls_config(tls)?.timeout(Duration::from_secs(5));
    Ok(endpoint.connect().await?)
}

/// Introduces itself as a backend.
async fn knock(nodes: &Nodes, ours: &Path, identity: Option<(&Path, &str)>) -> Result<()> {
    let channel = link(nodes, ours, identity).await?;
    let peer = Peer { backend: true, name: "knocker".into(), ..Peer::default() };
    MembershipClient::new(channel).hello(HelloRequest { peer: Some(peer) }).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_the_guide_secure_the_links_and_strangers_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    certificates(&ours).await?;
    certificates(&theirs).await?;
    let nodes = Nodes::start_edited(Layout::Three, |_, node, config| {
        let (ca, pem, key) = ("ca.pem", format!("{}.pem", node.name), format!("{}.key", node.name));
        let path = |name: &str| ours.join(name);
        let keys = format!("ca = {:?}\ncert = {:?}\nkey = {:?}", path(ca), path(&pem), path(&key));
        ensure!(config.contains("plain = true"), "the harness makes plain links in another way now");
        Ok(config.replace("plain = true", &keys))
    })
    .await?;
    // Two people on two nodes: stanzas and the store go over the links.
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let mut alices = alice.come_online(nodes.door(0), "phone").await?;
    let mut bobs = bob.come_online(nodes.door(2), "desk").await?;
    let to = bobs.jid.clone().context("not bound")?;
    alices.send(&format!("<message to='{to}' type='chat' id='hello'><body>Hello</body></message>")).await?;
    bobs.wait_for("the message", |n| n.attr("id") == Some("hello")).await?;
    nodes.until_logged(0, "links to other nodes are secured by mutual TLS", Duration::from_secs(5)).await?;

    knock(&nodes, &ours, Some((&ours, "node2"))).await.context("a certificate of the cluster")?;
    for (who, identity) in [("a stranger's", Some((&*theirs, "node2"))), ("no", None)] {
        ensure!(knock(&nodes, &ours, identity).await.is_err(), "{who} certificate was let in");
    }
    let plain = format!("http://{}", nodes.nodes[0].cluster);
    let plain = MembershipClient::connect(plain).await;
    if let Ok(mut client) = plain {
        ensure!(client.hello(HelloRequest::default()).await.is_err(), "a plain link was let in");
    }
    // Of the authority, but of another cluster: nothing is told about sessions.
    let channel = link(&nodes, &ours, Some((&ours, "node3"))).await?;
    let asked = SessionsClient::new(channel).connections(ConnectionsRequest::default()).await;
    let code = asked.err().context("sessions were told to another cluster")?.code();
    ensure!(code == tonic::Code::PermissionDenied, "{code:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_links_are_said_to_be_plain_and_are_for_loopback_alone() -> Result<()> {
    let single = Nodes::start_edited(Layout::One, |_, node, config| {
        Ok(format!("{config}\n[cluster]\nlisten = \"{}\"\n", node.cluster))
    })
    .await?;
    let folder = &single.nodes[0].folder;
    for text in ["links to other nodes are plain", "(plain links, loopback only)"] {
        single.until_logged(0, text, Duration::from_secs(5)).await?;
    }

    let config = fs::read_to_string(folder.join("rookery.toml"))?;
    let check = async |from: &str, to: &str| -> Result<String> {
        let file = folder.join("changed.toml");
        fs::write(&file, config.replace(from, to))?;
        let run = Command::new(tests::nodes::binary()?).args(["config", "check"]).arg(&file).output().await?;
        ensure!(!run.status.success(), "accepted: {to}");
        Ok(String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let listen = format!("listen = \"{}\"", single.nodes[0].cluster);
    let far = check(&listen, "listen = \"192.0.2.1:7400\"\nplain = true").await?;
    ensure!(far.contains("plain links are for loopback only"), "{far}");
    Ok(())
}

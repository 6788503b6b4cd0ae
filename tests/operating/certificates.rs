//! The clients' certificate is replaced while the server runs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rustls_pki_types::ServerName;
use tests::{
    client::{Door, tls_config},
    nodes::{Layout, Nodes},
    people::{Person, ping},
};
use tokio::{
    net::TcpStream,
    process::Command,
    time::{Instant, interval},
};
use tokio_rustls::TlsConnector;

/// Makes a self-signed pair and puts it into place as an operator's tool does: one file after the other.
async fn replace(folder: &Path) -> Result<()> {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-keyout", "new.key", "-out", "new.pem"])
        .current_dir(folder)
        .output()
        .await?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    fs::rename(folder.join("new.pem"), folder.join("cert.pem"))?;
    fs::rename(folder.join("new.key"), folder.join("key.pem"))?;
    Ok(())
}

/// The certificate that a new connection is shown.
async fn shown(door: Door) -> Result<Vec<u8>> {
    let socket = TcpStream::connect(door.direct).await?;
    let name = ServerName::try_from("localhost")?;
    let tls = TlsConnector::from(tls_config()).connect(name, socket).await?;
    let chain = tls.get_ref().1.peer_certificates().context("no certificate")?;
    Ok(chain.first().context("an empty chain")?.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_certificate_is_served_and_old_sessions_go_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    replace(folder.path()).await?;
    let nodes = Nodes::start_edited(Layout::One, |_, _, config| {
        let path = |name: &str| folder.path().join(name);
        Ok(format!("{config}\n[tls]\ncert = {:?}\nkey = {:?}\n", path("cert.pem"), path("key.pem")))
    })
    .await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let door = nodes.door(0);
    let mut old = alice.come_online(door, "old").await?;
    let before = shown(door).await?;
    ensure!(before == shown(door).await?, "the certificate changes by itself");

    replace(folder.path()).await?;
    let end = Instant::now() + Duration::from_secs(20);
    let mut look = interval(Duration::from_millis(100));
    while shown(door).await? == before {
        ensure!(Instant::now() < end, "the new certificate is not served");
        look.tick().await;
    }
    old.send(&ping("localhost", "still-there")).await?;
    old.wait_for("the pong", |n| n.attr("id") == Some("still-there")).await?;
    alice.come_online(door, "new").await?;

    // A broken pair is not taken into service.
    let good = shown(door).await?;
    fs::write(folder.path().join("cert.pem"), "no certificate")?;
    nodes.until_logged(0, "keeping the old certificate", Duration::from_secs(20)).await?;
    ensure!(shown(door).await? == good, "another certificate is served");
    Ok(())
}

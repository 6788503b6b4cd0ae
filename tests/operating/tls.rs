//! What TLS shows and asks for: a certificate for each host, tickets, certificates of clients.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, version};
use tests::{
    certificates::{Authority, Identity, account},
    client::{Client, Door, offers, tls_config, tls_config_with},
    nodes::{Layout, Nodes},
    people::Person,
};
use tokio::time::{Instant, interval};

const HOSTS: [&str; 2] = ["localhost", "other.example"];

/// Writes a new self-signed pair for a host.
fn write(folder: &Path, host: &str) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()])?;
    fs::write(folder.join(format!("{host}.pem")), made.cert.pem())?;
    fs::write(folder.join(format!("{host}.key")), made.signing_key.serialize_pem())?;
    Ok(())
}

/// One node with a certificate for each host, and further keys of `[tls]`.
async fn start(folder: &Path, more: &str) -> Result<Nodes> {
    for host in HOSTS {
        write(folder, host)?;
    }
    let path = |name: &str| folder.join(name);
    let tls = format!(
        "[tls]\ncert = {:?}\nkey = {:?}\n{more}\n[tls.hosts.\"other.example\"]\ncert = {:?}\nkey = {:?}\n",
        path("localhost.pem"),
        path("localhost.key"),
        path("other.example.pem"),
        path("other.example.key"),
    );
    Nodes::start_edited(Layout::One, |_, _, config| Ok(format!("{config}\n{tls}"))).await
}

async fn person(nodes: &Nodes, user: &str, host: &str) -> Result<Person> {
    let person = Person { user: user.into(), host: host.into(), password: format!("secret of {user}") };
    nodes.add_user(&person.bare(), &person.password).await?;
    Ok(person)
}

/// A stream inside TLS, over either door.
async fn open(door: Door, host: &str, direct: bool, tls: &Arc<ClientConfig>) -> Result<(Client, bool)> {
    let mut client = if direct {
        Client::open_direct_with(door, host, tls.clone()).await?
    } else {
        let mut client = Client::open_plain(door, host).await?;
        client.begin_stream().await?;
        client.start_tls_with(tls.clone()).await?;
        client
    };
    let features = client.begin_stream().await?;
    Ok((client, offers(&features, "EXTERNAL")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_host_shows_its_certificate_and_logins_are_bound_to_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nodes = start(folder.path(), "").await?;
    let door = nodes.door(0);
    let mut shown = Vec::new();
    for host in HOSTS {
        let alice = person(&nodes, "alice", host).await?;
        for version in [&version::TLS13, &version::TLS12] {
            let mut tls = tls_config_with(&[version], None)?;
            // A client that does not say in the handshake whom it wants says so on the stream before.
            for (direct, names) in [(true, true), (false, true), (false, false)] {
                tls.enable_sni = names;
                let (mut client, _) = open(door, host, direct, &Arc::new(tls.clone())).await?;
                let channel = client.channel()?.clone();
                shown.push((host, channel.certificate.clone()));
                let endpoint = channel.endpoint();
                let wrong = client
                    .exchange(
                        &alice.user,
                        &alice.password,
                        "SCRAM-SHA-256-PLUS",
                        "p=tls-server-end-point,,",
                        &[0; 32],
                    )
                    .await?;
                ensure!(wrong == Err("not-authorized".into()), "{wrong:?}");
                let bound = client
                    .exchange(
                        &alice.user,
                        &alice.password,
                        "SCRAM-SHA-256-PLUS",
                        "p=tls-server-end-point,,",
                        &endpoint,
                    )
                    .await?;
                ensure!(bound.is_ok(), "{host} {version:?} {direct} {names}: {bound:?}");
            }
        }
    }
    for (host, certificate) in &shown {
        let file = fs::read_to_string(folder.path().join(format!("{host}.pem")))?;
        let written = rustls_pki_types::pem::PemObject::from_pem_slice(file.as_bytes());
        let written: rustls_pki_types::CertificateDer<'_> = written?;
        ensure!(written.as_ref() == certificate.as_slice(), "another certificate for {host}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_until_its_certificate_is_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nodes = start(folder.path(), "ticket_lifetime_s = 600").await?;
    let alice = person(&nodes, "alice", "localhost").await?;
    let door = nodes.door(0);
    for version in [&version::TLS13, &version::TLS12] {
        let tls = Arc::new(tls_config_with(&[version], None)?);
        for (mechanism, resumed) in [("SCRAM-SHA-1-PLUS", false), ("SCRAM-SHA-256-PLUS", true)] {
            let (mut client, _) = open(door, "localhost", true, &tls).await?;
            ensure!(client.channel()?.resumed == resumed, "{version:?}: resumed, or not, against the plan");
            client.authenticate(&alice.user, &alice.password, mechanism).await?;
            client.bind(None).await?;
            client.close().await?;
        }
        // The other host has tickets of its own.
        let (client, _) = open(door, "other.example", true, &tls).await?;
        ensure!(!client.channel()?.resumed, "a session of one host was resumed for another");

        let before = open(door, "localhost", true, &Arc::new((*tls_config()).clone())).await?;
        let before = before.0.channel()?.certificate.clone();
        write(folder.path(), "localhost")?;
        let end = Instant::now() + Duration::from_secs(20);
        let mut look = interval(Duration::from_millis(100));
        loop {
            look.tick().await;
            let now = open(door, "localhost", true, &tls_config()).await?.0.channel()?.certificate.clone();
            if now != before {
                break;
            }
            ensure!(Instant::now() < end, "the new certificate is not served");
        }
        let (mut client, _) = open(door, "localhost", true, &tls).await?;
        ensure!(!client.channel()?.resumed, "{version:?}: a session of the old certificate was resumed");
        client.authenticate(&alice.user, &alice.password, "SCRAM-SHA-512-PLUS").await?;
    }
    Ok(())
}

/// A node that takes certificates of this authority, and of no other.
async fn trusting(folder: &Path, authority: &Authority, how: &str) -> Result<Nodes> {
    let ca = folder.join("clients.pem");
    fs::write(&ca, authority.pem())?;
    start(folder, &format!("client_ca = {ca:?}\nclient_certificates = \"{how}\"\n")).await
}

fn with(identity: &Identity) -> Result<Arc<ClientConfig>> {
    Ok(Arc::new(tls_config_with(rustls::ALL_VERSIONS, Some(identity))?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_who_its_certificate_says_and_a_password_still_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let nodes = trusting(folder.path(), &authority, "optional").await?;
    let alice = person(&nodes, "alice", "localhost").await?;
    let door = nodes.door(0);
    let names = || vec![account("alice@localhost"), account("carol@elsewhere.example")];
    let good = authority.certify(names(), |_| {})?;
    for direct in [true, false] {
        for version in [&version::TLS13, &version::TLS12] {
            let tls = Arc::new(tls_config_with(&[version], Some(&good))?);
            // The second time by a ticket: the certificate is judged again.
            for _ in 0..2 {
                let (mut client, external) = open(door, "localhost", direct, &tls).await?;
                ensure!(external, "EXTERNAL is not offered to who is certified");
                client.authenticate("", "", "EXTERNAL").await?;
                client.bind(Some("phone")).await?;
                ensure!(client.jid.as_deref() == Some("alice@localhost/phone"), "{:?}", client.jid);
                client.close().await?;
            }
        }
    }
    // On another host the certificate names nobody.
    let (_, external) = open(door, "other.example", true, &with(&good)?).await?;
    ensure!(!external, "EXTERNAL is offered on a host of which the certificate says nothing");
    let foreign = Authority::new()?.certify(names(), |_| {})?;
    let expired = authority.certify(names(), |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })?;
    for identity in [foreign, expired, Identity::self_signed(names())?] {
        let (mut client, external) = open(door, "localhost", true, &with(&identity)?).await?;
        ensure!(!external, "EXTERNAL is offered to who is not to be trusted");
        let tried = client.try_authenticate("", "", "EXTERNAL").await?;
        ensure!(tried == Err("not-authorized".into()), "{tried:?}");
        client.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256-PLUS").await?;
    }
    let nobody = authority.certify(vec![account("nobody@localhost")], |_| {})?;
    let (mut client, _) = open(door, "localhost", true, &with(&nobody)?).await?;
    let tried = client.try_authenticate("", "", "EXTERNAL").await?;
    ensure!(tried == Err("not-authorized".into()), "a certificate made an account: {tried:?}");
    let (mut client, external) = open(door, "localhost", true, &tls_config()).await?;
    ensure!(!external, "EXTERNAL is offered without a certificate");
    let tried = client.try_authenticate("", "", "EXTERNAL").await?;
    ensure!(tried == Err("invalid-mechanism".into()), "{tried:?}");
    client.authenticate(&alice.user, &alice.password, "PLAIN").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_certificates_are_required_nobody_else_gets_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let nodes = trusting(folder.path(), &authority, "required").await?;
    person(&nodes, "alice", "localhost").await?;
    let door = nodes.door(0);
    let good = authority.certify(vec![account("alice@localhost")], |_| {})?;
    let (mut client, _) = open(door, "localhost", true, &with(&good)?).await?;
    client.authenticate("", "", "EXTERNAL").await.context("with a good certificate")?;
    let bad = Identity::self_signed(vec![account("alice@localhost")])?;
    for tls in [tls_config(), with(&bad)?] {
        for direct in [true, false] {
            ensure!(
                open(door, "localhost", direct, &tls).await.is_err(),
                "a stream without a good certificate"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_decides_what_is_agreed_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy =
        "min_version = \"1.3\"\nciphers = [\"TLS_CHACHA20_POLY1305_SHA256\"]\nticket_lifetime_s = 0\n";
    let nodes = start(folder.path(), policy).await?;
    let door = nodes.door(0);
    let old = Arc::new(tls_config_with(&[&version::TLS12], None)?);
    ensure!(open(door, "localhost", true, &old).await.is_err(), "TLS 1.2 was spoken");
    ensure!(open(door, "localhost", true, &tls_config()).await.is_ok(), "the one suite that is left");
    let new = tls_config();
    for _ in 0..2 {
        let (client, _) = open(door, "localhost", true, &new).await?;
        ensure!(!client.channel()?.resumed, "a session was resumed without a ticket");
    }
    Ok(())
}

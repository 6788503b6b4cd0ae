//! Rows 61 to 64, 72 to 74, 86 and 88 to 90: TLS, what is offered behind it, and what a login is bound to.

use std::{collections::BTreeSet, fs, process::Stdio, sync::Arc};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{DnType, SanType};
use rustls::{
    ClientConfig,
    sign::{CertifiedKey, SingleCertAndKey},
    version,
};
use tests::{
    certificates::{Authority, Identity, account},
    client::{Client, Heard, PATIENCE, offers, tls_config_with},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::{
    door::{Door, HOST},
    metric::{Metric, login_failures, stream_errors, tls_failures},
    raw::{Raw, Way},
};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const NOTHING: [Metric; 0] = [];

/// Input: `<auth/>` without TLS where TLS is required.
///
/// Outcome: no mechanism is offered, and every attempt fails with `encryption-required`.
#[tokio::test]
async fn row_061_nobody_logs_in_in_the_clear() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for mechanism in ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS"] {
            let mut raw = door.connect(Way::Plain).await?;
            let features = raw.begin_stream().await?;
            ensure!(features.child("mechanisms", SASL).is_none(), "offered in the clear: {features:?}");
            let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", alice.user, alice.password));
            raw.say(format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{plain}</auth>")).await?;
            raw.sasl_failure("encryption-required").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(5)], deeds).await
}

/// Input: `<starttls/>` with a login and a message behind it in the same segment.
///
/// Outcome: what came in the clear is thrown away; inside TLS nobody is logged in.
#[tokio::test]
async fn row_062_what_follows_starttls_is_never_run_inside_tls() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.stream(Way::Plain).await?;
        let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", alice.user, alice.password));
        raw.say(format!(
            "<starttls xmlns='{TLS}'/>{}<auth xmlns='{SASL}' mechanism='PLAIN'>{plain}</auth>\
             <message to='{}'><body>smuggled</body></message>",
            raw.header(),
            door.witness()
        ))
        .await?;
        raw.secure().await?;
        let features = raw.begin_stream().await?;
        ensure!(offers(&features, "PLAIN"), "somebody is logged in: {features:?}");
        raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256").await?;
        raw.bind(None).await?;
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row(NOTHING, deeds).await
}

/// Input: `<starttls/>` inside TLS.
///
/// Outcome: `<failure/>`, and the stream is closed.
#[tokio::test]
async fn row_063_tls_inside_tls_is_refused() -> Result<()> {
    let deeds = async |door: &Door| {
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            raw.say(format!("<starttls xmlns='{TLS}'/>")).await?;
            let answer = raw.next().await?;
            ensure!(answer.is("failure", TLS), "{answer:?}");
            raw.closed().await?;
        }
        Ok(())
    };
    Door::shared().await?.row([crate::metric::ended("closed").times(2)], deeds).await
}

/// A client's first message in this version, which offers no later one.
fn hello(major: u8, minor: u8) -> Vec<u8> {
    let mut body = vec![major, minor];
    body.extend([7; 32]);
    // No session; two suites that every version has; no compression.
    body.extend([0, 0, 4, 0x00, 0x2f, 0xc0, 0x14, 1, 0]);
    let length = body.len() as u8;
    let mut record = vec![0x16, major, minor, 0, length + 4, 1, 0, 0, length];
    record.extend(body);
    record
}

/// Input: handshakes in SSL 3.0, TLS 1.0 and TLS 1.1.
///
/// Outcome: an alert or nothing, and the socket is closed.
#[tokio::test]
async fn row_064_old_versions_are_not_spoken() -> Result<()> {
    let deeds = async |door: &Door| {
        for minor in 0..3 {
            let mut socket = TcpStream::connect(door.addresses().direct).await?;
            socket.write_all(&hello(3, minor)).await?;
            let mut answer = Vec::new();
            // A reset is an end as well.
            let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.context("no end")?;
            drop(read);
            ensure!(answer.first().is_none_or(|first| *first == 0x15), "3.{minor}: {answer:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([tls_failures().times(3)], deeds).await
}

/// Input: a renegotiation in TLS 1.2.
///
/// Outcome: it is not begun: an alert comes with the next words of the server.
#[tokio::test]
async fn row_064_nobody_renegotiates() -> Result<()> {
    let deeds = async |door: &Door| {
        let address = door.addresses().direct.to_string();
        let mut client = Command::new("openssl")
            .args(["s_client", "-tls1_2", "-alpn", "xmpp-client", "-connect", &address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut words = client.stdin.take().context("a pipe")?;
        let mut said = client.stdout.take().context("a pipe")?;
        // What it prints when the handshake is done ends with a line of three dashes.
        let mut printed = Vec::new();
        let ready = async {
            while !printed.windows(17).any(|w| w == b"Verify return cod") {
                ensure!(said.read_buf(&mut printed).await? > 0, "openssl ended: {printed:?}");
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, ready).await.context("no handshake")??;
        words.write_all(b"R\n").await?;
        let out = timeout(PATIENCE, client.wait_with_output()).await.context("openssl does not end")??;
        let errors = String::from_utf8_lossy(&out.stderr);
        ensure!(errors.contains("no renegotiation"), "{errors}");
        drop(words);
        Ok(())
    };
    // The server's next words are those that end a stream without a header.
    let door = Door::with(&[("limits.header_timeout_s", "2")]).await?;
    door.row([stream_errors("connection-timeout")], deeds).await
}

/// Input: SCRAM with the flag `y` (the client would bind, and was told that we cannot).
///
/// Outcome: `not-authorized`: somebody has changed what we offered.
#[tokio::test]
async fn row_072_a_client_that_was_told_there_is_no_binding_is_refused() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
                let tried = raw.exchange(&alice.user, &alice.password, mechanism, "y,,", &[]).await?;
                ensure!(tried == Err("not-authorized".into()), "{tried:?}");
            }
            raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(6)], deeds).await
}

/// Input: SCRAM -PLUS with data of another channel, with `tls-unique`, and with a type that nobody knows.
///
/// Outcome: `not-authorized`; with the channel's own data the login is taken.
#[tokio::test]
async fn row_073_a_login_is_bound_to_its_own_channel() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let other = door.stream(Way::Direct).await?.channel()?.clone();
        let foreign = other.exporter.clone().context("TLS 1.3")?;
        let cases: [(&str, &[u8]); 6] = [
            ("p=tls-exporter,,", &foreign),
            ("p=tls-exporter,,", &[]),
            ("p=tls-server-end-point,,", &foreign),
            ("p=tls-unique,,", &foreign),
            ("p=tls-unique,,", &[]),
            ("p=sha-of-nothing,,", &[0; 32]),
        ];
        for (header, data) in cases {
            let mut raw = door.stream(Way::Direct).await?;
            let tried =
                raw.exchange(&alice.user, &alice.password, "SCRAM-SHA-256-PLUS", header, data).await?;
            ensure!(tried == Err("not-authorized".into()), "{header}: {tried:?}");
            raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256-PLUS").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(6)], deeds).await
}

/// A stream inside direct TLS with these settings, and its features.
async fn inside(door: &Door, tls: ClientConfig) -> Result<(Raw, tests::xml::Node)> {
    let client = Client::open_direct_with(door.addresses(), HOST, Arc::new(tls)).await?;
    let mut raw = Raw::over(client, HOST);
    let features = raw.begin_stream().await?;
    Ok((raw, features))
}

/// Input: a client that asks what it can bind a login to, in TLS 1.2 and in TLS 1.3.
///
/// Outcome: `tls-server-end-point` is always announced, `tls-exporter` in TLS 1.3: without them a client knows
/// that somebody is in between.
#[tokio::test]
async fn row_074_what_can_be_bound_to_is_always_announced() -> Result<()> {
    let deeds = async |door: &Door| {
        for (version, expected) in [
            (&version::TLS12, &["tls-server-end-point"][..]),
            (&version::TLS13, &["tls-exporter", "tls-server-end-point"]),
        ] {
            let (_, features) = inside(door, tls_config_with(&[version], None)?).await?;
            let announced =
                features.child("sasl-channel-binding", "urn:xmpp:sasl-cb:0").context("nothing")?;
            let types: BTreeSet<_> = announced.nodes().filter_map(|n| n.attr("type")).collect();
            ensure!(types == expected.iter().copied().collect(), "{types:?}");
            ensure!(offers(&features, "SCRAM-SHA-256-PLUS"), "{features:?}");
        }
        Ok(())
    };
    Door::shared().await?.row(NOTHING, deeds).await
}

/// Input: SASL2 (XEP-0388) without TLS; inside TLS with an id of the client that is no UUID.
///
/// Outcome: it is not offered and ends the stream with `policy-violation`; SASL `malformed-request`.
#[tokio::test]
async fn row_086_sasl2_is_for_tls_and_its_clients_have_good_ids() -> Result<()> {
    let sasl2 = "urn:xmpp:sasl:2";
    let login = format!(
        "<authenticate xmlns='{sasl2}' mechanism='PLAIN'><initial-response>AGEAYg==</initial-response><user-agent \
         id='nothing of use'/></authenticate>"
    );
    let deeds = async |door: &Door| {
        let mut raw = door.connect(Way::Plain).await?;
        let features = raw.begin_stream().await?;
        ensure!(!features.nodes().any(|n| n.ns == sasl2), "{features:?}");
        raw.say(&login).await?;
        raw.stream_error("policy-violation").await?;
        for way in Way::TLS {
            let mut raw = door.connect(way).await?;
            let features = raw.begin_stream().await?;
            ensure!(features.nodes().any(|n| n.ns == sasl2), "{features:?}");
            raw.say(&login).await?;
            let answer = raw.next().await?;
            let fits = answer.is("failure", sasl2) && answer.child("malformed-request", SASL).is_some();
            ensure!(fits, "{answer:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("policy-violation"), login_failures().times(2)], deeds).await
}

/// Input: a client that collects stream ids, resources and nonces to guess the next.
///
/// Outcome: each is new, and has 128 bits or more.
#[tokio::test]
async fn row_088_tokens_cannot_be_guessed() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let mut raw = door.connect(Way::Direct).await?;
            raw.say(raw.header()).await?;
            let Heard::Header(header) = raw.next_raw(Instant::now() + PATIENCE).await? else {
                anyhow::bail!("no header")
            };
            let id = header.attr("id").context("no id")?.to_owned();
            raw.next().await?;
            let first = BASE64_STANDARD.encode(format!("n,,n={},r=mine", alice.user));
            raw.say(format!("<auth xmlns='{SASL}' mechanism='SCRAM-SHA-1'>{first}</auth>")).await?;
            let challenge = String::from_utf8(BASE64_STANDARD.decode(raw.next().await?.text().trim())?)?;
            let nonce = challenge.strip_prefix("r=mine").and_then(|rest| rest.split(',').next());
            let nonce = nonce.context("no nonce")?.to_owned();
            let session = door.session(Way::Direct, &alice).await?;
            let resource = session.jid().rsplit('/').next().unwrap_or_default().to_owned();
            // Hexadecimal digits carry four bits each, those of base64 six.
            for (token, least) in [(id, 32), (nonce, 22), (resource, 32)] {
                ensure!(token.len() >= least, "too short: {token}");
                ensure!(seen.insert(token.clone()), "twice: {token}");
            }
        }
        Ok(())
    };
    Door::shared().await?.row(NOTHING, deeds).await
}

/// A node that takes certificates which this authority signed.
async fn trusting(authority: &Authority) -> Result<(tempfile::TempDir, Door)> {
    let folder = tempfile::tempdir()?;
    let ca = folder.path().join("clients.pem");
    fs::write(&ca, authority.pem())?;
    let door = Door::with(&[("tls.client_ca", &format!("{ca:?}"))]).await?;
    Ok((folder, door))
}

/// The client with this certificate is nobody by it, and somebody by a password.
async fn is_nobody(door: &Door, identity: &Identity) -> Result<()> {
    let alice = door.person("alice").await?;
    let (mut raw, features) = inside(door, tls_config_with(rustls::ALL_VERSIONS, Some(identity))?).await?;
    ensure!(!offers(&features, "EXTERNAL"), "EXTERNAL is offered");
    raw.say(format!("<auth xmlns='{SASL}' mechanism='EXTERNAL'>=</auth>")).await?;
    raw.sasl_failure("not-authorized").await?;
    let named = BASE64_STANDARD.encode(alice.bare());
    raw.say(format!("<auth xmlns='{SASL}' mechanism='EXTERNAL'>{named}</auth>")).await?;
    raw.sasl_failure("not-authorized").await?;
    raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256-PLUS").await
}

/// Input: a certificate of a trusted authority that names an account everywhere but where names of accounts belong:
/// common name, organisational unit (`OU="CN=admin,"`), mail address, DNS name, user principal name.
///
/// Outcome: EXTERNAL is not offered and fails with `not-authorized`; a password still logs in.
#[tokio::test]
async fn row_089_only_an_xmpp_address_is_one() -> Result<()> {
    let authority = Authority::new()?;
    let (_folder, door) = trusting(&authority).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let upn = SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], alice.bare().into()));
        let names = vec![
            SanType::Rfc822Name(alice.bare().try_into()?),
            SanType::DnsName(HOST.try_into()?),
            SanType::URI(format!("xmpp:{}", alice.bare()).try_into()?),
            upn,
        ];
        let identity = authority.certify(names, |params| {
            params.distinguished_name.push(DnType::CommonName, alice.bare());
            params.distinguished_name.push(DnType::OrganizationalUnitName, format!("CN={},", alice.bare()));
        })?;
        is_nobody(door, &identity).await
    };
    door.row([login_failures().times(2)], deeds).await
}

/// Input: certificates with a NUL in an address, with `*` in one, with a thousand and with ten thousand of them,
/// expired, self-signed, or signed by somebody else.
///
/// Outcome: `not-authorized`, and a password still logs in; where the certificate is too large for a handshake the
/// handshake fails.
#[tokio::test]
async fn row_090_a_certificate_that_is_not_good_is_none() -> Result<()> {
    let authority = Authority::new()?;
    let (_folder, door) = trusting(&authority).await?;
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?.bare();
        let good = || vec![account(&alice)];
        let crowd = |n: usize| (0..n).map(|n| account(&format!("a{n}@{HOST}"))).collect::<Vec<_>>();
        let certify = |names| authority.certify(names, |_| {});
        let expired = authority.certify(good(), |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        })?;
        let early =
            authority.certify(good(), |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1))?;
        let bad = [
            certify(vec![account(&format!("{alice}\0.evil.example"))])?,
            certify(vec![account(&alice), account("bob\0@localhost")])?,
            certify(vec![account("*@localhost")])?,
            certify(vec![account("*")])?,
            certify(vec![account(&format!("{alice}/phone"))])?,
            certify(crowd(1_000))?,
            expired,
            early,
            Identity::self_signed(good())?,
            Authority::new()?.certify(good(), |_| {})?,
        ];
        for identity in &bad {
            is_nobody(door, identity).await?;
        }
        // Our own TLS would not show it: it is handed over unread.
        let (chain, key) = certify(crowd(10_000))?.chain();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
        let mut tls = tls_config_with(rustls::ALL_VERSIONS, None)?;
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        ensure!(inside(door, tls).await.is_err(), "a certificate of {} names was taken", 10_000);
        Ok(())
    };
    door.row([login_failures().times(20), tls_failures()], deeds).await
}

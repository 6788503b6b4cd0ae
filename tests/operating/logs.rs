//! Logs as JSON: every line is an object, and no line tells a secret.

use std::fs;

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tests::{
    client::{Client, Login, unique},
    nodes::{Layout, Nodes},
    people::{Person, go_online},
    scram::{Exchange, Hash},
};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_is_json_and_none_tells_a_secret() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::One, |_, _, config| {
        Ok(format!("{config}\n[log]\nformat = \"json\"\nfilter = \"debug\"\n"))
    })
    .await?;
    let alice = Person::with_account(&nodes, "alice").await?;
    let door = nodes.door(0);
    let mut secrets = vec![alice.password.clone(), BASE64_STANDARD.encode(&alice.password)];

    // SCRAM by hand, to know what went over the wire.
    let (mut client, _) = Client::open(door, &alice.host, false).await?;
    let (mut exchange, begin) = Exchange::begin(Hash::of("SCRAM-SHA-256")?, &alice.user, &unique("nonce"));
    let begin = BASE64_STANDARD.encode(begin);
    client.send(&format!("<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'>{begin}</auth>")).await?;
    let challenge = String::from_utf8(BASE64_STANDARD.decode(client.next().await?.text())?)?;
    let proof = exchange.respond(&challenge, &alice.password)?;
    let answer = BASE64_STANDARD.encode(&proof);
    client.send(&format!("<response xmlns='{SASL}'>{answer}</response>")).await?;
    let success = client.next().await?;
    ensure!(success.is("success", SASL), "{success:?}");
    let signature = String::from_utf8(BASE64_STANDARD.decode(success.text())?)?;
    let salt = challenge.split(',').find_map(|f| f.strip_prefix("s=")).context("no salt")?;
    secrets.extend([answer, success.text(), salt.to_owned(), challenge.clone()]);
    secrets.push(proof.rsplit_once(",p=").context("no proof")?.1.to_owned());
    secrets.push(signature.trim_start_matches("v=").to_owned());
    client.begin_stream().await?;
    client.bind(None).await?;
    go_online(&mut client, None).await?;

    let (user, host, password) = (&*alice.user, &*alice.host, &*alice.password);
    secrets.push(BASE64_STANDARD.encode(format!("\0{user}\0{password}")));
    let login = Login { user, host, password, resource: None, mechanism: "PLAIN", direct: true };
    Client::log_in(door, &login).await?.close().await?;
    let (mut wrong, _) = Client::open(door, host, true).await?;
    for mechanism in ["PLAIN", "SCRAM-SHA-1"] {
        let refused = wrong.try_authenticate(user, "a wrong secret", mechanism).await?;
        ensure!(refused == Err("not-authorized".to_owned()), "{refused:?}");
    }
    secrets
        .extend(["a wrong secret".to_owned(), BASE64_STANDARD.encode(format!("\0{user}\0a wrong secret"))]);
    nodes.cli(&["user", "passwd", &alice.bare(), "--password", "another secret"]).await?;
    secrets.push("another secret".to_owned());
    client.close().await?;

    let log = fs::read_to_string(nodes.nodes[0].folder.join("log"))?;
    let mut messages = 0;
    // The node still writes: the last line may be there in part.
    let (whole, _) = log.rsplit_once('\n').context("no line")?;
    for line in whole.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        for field in ["timestamp", "level", "target"] {
            ensure!(line[field].is_string(), "no `{field}` in {line}");
        }
        messages += usize::from(line["message"].is_string());
    }
    ensure!(log.contains("\"level\":\"DEBUG\"") && messages > 10, "there is nothing to look at:\n{log}");
    for secret in secrets {
        let line = log.lines().find(|l| l.contains(&secret));
        ensure!(line.is_none(), "`{secret}` is in the log: {}", line.unwrap_or_default());
    }
    Ok(())
}

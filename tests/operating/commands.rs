//! The command line: where `--admin` may stand, passwords from stdin, and what is said when it fails.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use proto::admin::{CreateAccountRequest, admin_client::AdminClient};
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes, binary, free_address},
    people::Person,
    scram::Hash,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// Runs the binary with these words, and with a text on stdin.
async fn rookery(words: &[&str], stdin: &str) -> Result<Output> {
    let mut child = Command::new(binary()?)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("no stdin")?;
    // a command that wants none may have ended before
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), child.wait_with_output());
    Ok(output.await.with_context(|| format!("`{words:?}` does not end"))??)
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_service_is_named_before_or_after_the_command() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let url = format!("http://{}", nodes.nodes[0].admin);
    for words in [
        ["--admin", &url, "cluster", "status"],
        ["cluster", "--admin", &url, "status"],
        ["cluster", "status", "--admin", &url],
    ] {
        let (ok, out, err) = said(&rookery(&words, "").await?);
        ensure!(ok && out.contains(&nodes.nodes[0].name), "{words:?}: {out}{err}");
    }
    let (ok, out, err) = said(&rookery(&["--admin", &url, "config", "print-default"], "").await?);
    ensure!(!ok && out.is_empty() && err.contains("`--admin` is for the commands"), "{out}{err}");
    Ok(())
}

/// Accounts from other servers: with keys in place of a password, from a file or stdin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_brought_with_its_keys() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let url = format!("http://{}", nodes.nodes[0].admin);
    let keys = |mechanism| Hash::line(mechanism, "pencil");
    let text = format!("# from elsewhere\n\n{}\n  {}  \n", keys("SCRAM-SHA-1")?, keys("SCRAM-SHA-512")?);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keys.txt").display().to_string();
    std::fs::write(&file, &text)?;
    for from in [file.as_str(), "-"] {
        let user = unique("alice");
        let jid = format!("{user}@localhost");
        let words = ["--admin", &url, "user", "add", &jid, "--scram", from];
        let (ok, out, err) = said(&rookery(&words, &text).await?);
        ensure!(ok && out == format!("added {jid}\n"), "{out}{err}");
        for (mechanism, is_good) in [("SCRAM-SHA-256", false), ("SCRAM-SHA-1", true), ("SCRAM-SHA-512", true)]
        {
            let (mut client, _) = Client::open(nodes.door(0), "localhost", false).await?;
            let tried = client.try_authenticate(&user, "pencil", mechanism).await?;
            ensure!(tried.is_ok() == is_good, "{mechanism}: {tried:?}");
        }
        let (ok, _, err) = said(&rookery(&words, &text).await?);
        ensure!(!ok && err.contains("the account exists already"), "{err}");
    }
    let secret = "c2VjcmV0";
    for (text, what) in [
        (
            format!("\n# keys\nSCRAM-SHA-1$4096:{secret}${secret}:{secret}\n"),
            "line 3: expected 20 bytes as the StoredKey",
        ),
        (
            format!("{}\n{}\n", keys("SCRAM-SHA-1")?, keys("SCRAM-SHA-1")?),
            "line 2: a second line for SCRAM-SHA-1",
        ),
        ("pencil\n".to_owned(), "line 1: expected SCRAM-SHA-1$iterations:salt$StoredKey:ServerKey"),
        (String::new(), "no keys: expected a line"),
        ("#".repeat(70_000), "more than 65536 bytes"),
    ] {
        let words = ["--admin", &url, "user", "add", "bob@localhost", "--scram", "-"];
        let (ok, out, err) = said(&rookery(&words, &text).await?);
        ensure!(!ok && out.is_empty() && err.contains(what), "{out}{err}");
        ensure!(err.contains("failed to read keys from `-`") && !err.contains(secret), "{err}");
    }
    // By another client of the service.
    let mut admin = AdminClient::new(nodes.admin(0).await?);
    for (password, scram_keys, what) in [
        ("pencil", vec![keys("SCRAM-SHA-1")?], "a password and keys"),
        ("", vec![keys("SCRAM-SHA-1")?, "SCRAM-SHA-1$1".to_owned()], "`scram_keys` 2: expected"),
        ("", Vec::new(), "this password cannot be used"),
    ] {
        let (jid, password) = ("bob@localhost".to_owned(), password.to_owned());
        let refused = admin.create_account(CreateAccountRequest { jid, password, scram_keys }).await;
        let status = refused.err().context("an account came into being")?;
        ensure!(status.code() == tonic::Code::InvalidArgument && status.message().contains(what), "{status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_web_site_are_printed_and_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("rookery.toml");
    let path = config.display().to_string();
    std::fs::write(
        &config,
        "hosts = [\"a.example\", \"b.example\"]\n[web]\nwebsocket = \"wss://{host}/ws\"\n",
    )?;
    let (ok, out, err) = said(&rookery(&["config", "host-meta", &path, "--host", "b.example"], "").await?);
    ensure!(ok && out.contains("<Link rel='urn:xmpp:alt-connections:websocket' href='wss://b.example/ws'/>"));
    ensure!(err.is_empty(), "{err}");
    let words = [
        "config",
        "host-meta",
        &path,
        "--host",
        "a.example",
        "--json",
        "--set",
        "web.addresses=[\"192.0.2.1\"]",
    ];
    let (ok, out, err) = said(&rookery(&words, "").await?);
    ensure!(ok && out.contains("\"ttl\": 3600") && out.contains("\"port\": 5223"), "{out}{err}");
    let (ok, out, err) = said(&rookery(&["config", "host-meta", &path], "").await?);
    ensure!(!ok && out.is_empty() && err.contains("--host one of a.example, b.example"), "{out}{err}");
    let into = folder.path().join("www");
    let words = ["config", "host-meta", &path, "--into", &into.display().to_string()];
    let (ok, out, err) = said(&rookery(&words, "").await?);
    ensure!(ok && out.lines().count() == 4, "{out}{err}");
    for host in ["a.example", "b.example"] {
        let url = format!("wss://{host}/ws");
        for file in ["host-meta", "host-meta.json"] {
            ensure!(std::fs::read_to_string(into.join(host).join(file))?.contains(&url), "{host} {file}");
        }
    }
    let (ok, out, err) =
        said(&rookery(&["config", "host-meta", &path, "--set", "web.bosh=http://a/b"], "").await?);
    ensure!(
        !ok && out.is_empty() && err.contains("`web.bosh`: expected a URL as in \"https://"),
        "{out}{err}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_read_from_stdin() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let url = format!("http://{}", nodes.nodes[0].admin);
    let mut person =
        Person {
            user: unique("alice"), host: "localhost".into(), password: " with spaces: ünïcode ".into()
        };
    let jid = person.bare();
    let input = format!("{}\nand a second line\n", person.password);
    let (ok, out, err) = said(&rookery(&["--admin", &url, "user", "add", &jid], &input).await?);
    ensure!(ok && out == format!("added {jid}\n"), "{out}{err}");
    person.log_in(nodes.door(0), "phone").await?.close().await?;

    person.password = "another".into();
    let (ok, out, err) = said(&rookery(&["user", "passwd", &jid, "--admin", &url], "another").await?);
    ensure!(ok, "{out}{err}");
    person.log_in(nodes.door(0), "phone").await?.close().await?;

    for (words, input, expected) in [
        (["user", "add", &jid], "again\n", "failed to add"),
        (["user", "add", "bob@localhost"], "", "failed to read the password: it is empty"),
        (["user", "add", "bob@elsewhere.example"], "secret\n", "`elsewhere.example` is not one of the hosts"),
        (["user", "remove", "nobody@localhost"], "", "failed to remove `nobody@localhost`: no such account"),
        (["session", "kick", "nobody@localhost"], "", "failed to kick `nobody@localhost`: no such session"),
    ] {
        let (ok, out, err) = said(&rookery(&[&["--admin", &url], &words[..]].concat(), input).await?);
        ensure!(!ok && out.is_empty(), "{words:?}: {out}");
        ensure!(err.starts_with("rookery: ") && err.contains(expected), "{words:?}: {err}");
        ensure!(err.lines().count() == 1 && !err.contains("secret"), "{err}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_to_an_account_is_said_in_a_line() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let url = format!("http://{}", nodes.nodes[0].admin);
    let alice = Person::with_account(&nodes, "alice").await?.bare();
    for (words, expected) in [
        (&["user", "add", &alice, "--password", "secret"][..], "the account exists already"),
        (&["user", "add", "bob", "--password", "secret"], "`bob` has no name before the @"),
        (&["user", "add", "b ob@localhost", "--password", "secret"], "`b ob@localhost` is no bare address"),
        (&["user", "add", "bob@localhost/x", "--password", "secret"], "`bob@localhost/x` is no bare address"),
        (&["user", "add", "bob@localhost", "--password", "a\u{7}b"], "this password cannot be used"),
        (&["user", "passwd", "nobody@localhost", "--password", "secret"], "no such account"),
        (&["user", "disable", "nobody@localhost"], "failed to disable `nobody@localhost`: no such account"),
        (&["user", "enable", "nobody@localhost"], "failed to enable `nobody@localhost`: no such account"),
        (&["user", "remove", "nobody@localhost"], "failed to remove `nobody@localhost`: no such account"),
        (&["user", "list", "--host", "elsewhere.example"], "`elsewhere.example` is not one of the hosts"),
    ] {
        let (ok, out, err) = said(&rookery(&[&["--admin", &url], words].concat(), "").await?);
        ensure!(!ok && out.is_empty(), "{words:?}: {out}");
        ensure!(err.starts_with("rookery: ") && err.contains(expected), "{words:?}: {err}");
        ensure!(err.lines().count() == 1 && !err.contains("secret"), "{err}");
    }
    // Reserved from strangers, and not from the operator.
    let (ok, out, err) =
        said(&rookery(&["--admin", &url, "user", "add", "postmaster@localhost"], "a secret\n").await?);
    ensure!(ok && out == "added postmaster@localhost\n", "{out}{err}");
    let (ok, out, _) = said(&rookery(&["user", "--help"], "").await?);
    for word in ["add", "passwd", "disable", "enable", "remove", "list"] {
        ensure!(ok && out.lines().any(|line| line.trim_start().starts_with(word)), "no `{word}` in {out}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_named_with_what_to_do() -> Result<()> {
    let url = format!("http://{}", free_address());
    let (ok, out, err) = said(&rookery(&["cluster", "status", "--admin", &url], "").await?);
    ensure!(!ok && out.is_empty(), "{out}");
    ensure!(err.contains(&format!("failed to reach the admin service at `{url}`")), "{err}");
    ensure!(err.contains("refused") && err.contains("is the node running?"), "{err}");
    for bad in ["nonsense", "ftp://x", "http://"] {
        let (ok, _, err) = said(&rookery(&["session", "list", "--admin", bad], "").await?);
        ensure!(!ok && err.contains(&format!("`{bad}`")) && err.contains("`--admin URL`"), "{err}");
    }
    Ok(())
}

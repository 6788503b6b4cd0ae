//! A client for a terminal that nobody here wrote, in a terminal: Profanity under tmux.
//!
//! Somebody types and reads: logs in, writes and is answered, finds what was said before in the archive, and gets the
//! picture of a contact.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tempfile::TempDir;
use tests::{
    client::{Client, unique},
    nodes::{Layout, Nodes},
    people::{Person, befriend},
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::{self, Receiver},
    process::Command,
    time::{Instant, timeout_at},
};

use crate::{
    daily::{SHA1, body, say, someone},
    script::PATIENCE,
};

/// The picture of the other scripts, with the hash that they know.
const PICTURE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";

/// A program in a terminal of its own.
struct Terminal {
    /// Names the server of this terminal alone.
    name: String,
    home: TempDir,
    /// What the program writes to the terminal, as it comes.
    output: Receiver,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Best effort: its program may have ended, and the server with it.
        let words = ["-L", &self.name, "kill-server"];
        let ended = std::process::Command::new("tmux").args(words).stderr(Stdio::null()).status();
        drop(ended);
    }
}

impl Terminal {
    async fn start(program: &str) -> Result<Terminal> {
        let (name, home) = (unique("rookery"), tempfile::tempdir()?);
        let fifo = home.path().join("output");
        let made = Command::new("mkfifo").arg(&fifo).status().await?;
        ensure!(made.success(), "mkfifo failed");
        // It is open before anybody writes to it.
        let output = pipe::OpenOptions::new().open_receiver(&fifo)?;
        let terminal = Terminal { name, home, output };
        // Who has a hand free begins: the program starts when all that it says is heard.
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "40", "sh"]).await?;
        let hear = format!("exec cat > '{}'", fifo.display());
        terminal.tmux(&["pipe-pane", &hear]).await?;
        terminal.types(&format!("exec {program}")).await?;
        Ok(terminal)
    }

    async fn tmux(&self, words: &[&str]) -> Result<String> {
        let home = self.home.path();
        let done = Command::new("tmux")
            .args(["-L", &self.name])
            .args(words)
            .envs([("HOME", home), ("XDG_CONFIG_HOME", home), ("XDG_DATA_HOME", home)])
            .envs([("LANG", "C.UTF-8"), ("TERM", "xterm-256color")])
            .stdin(Stdio::null())
            .output()
            .await
            .context("failed to start tmux; `tests/run interop` installs it")?;
        ensure!(done.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    async fn types(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", line]).await?;
        self.tmux(&["send-keys", "Enter"]).await.map(drop)
    }

    /// Waits until this stands on the screen; gives all of it.
    async fn shows(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = vec![0; 64 << 10];
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]).await?;
            if screen.contains(text) {
                return Ok(screen);
            }
            let read = timeout_at(deadline, self.output.read(&mut bytes)).await;
            let Ok(read) = read else { anyhow::bail!("`{text}` does not appear:\n{screen}") };
            ensure!(read? > 0, "it has ended before it showed `{text}`:\n{screen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_chats_in_a_terminal() -> Result<()> {
    let nodes = Nodes::start(Layout::Three).await?;
    let chatted = chat(&nodes).await;
    if chatted.is_err() {
        nodes.keep();
    }
    chatted
}

async fn chat(nodes: &Nodes) -> Result<()> {
    let (alice, bob) = (someone(nodes, "alice").await?, someone(nodes, "bob").await?);
    befriend(nodes.door(1), &alice, &bob).await?;
    let mut laptop = bob.come_online(nodes.door(1), "laptop").await?;
    publish_a_picture(&mut laptop, SHA1, PICTURE).await?;
    say_something_earlier(nodes, &alice, &mut laptop).await?;

    let mut terminal = Terminal::start("profanity").await?;
    terminal.shows("Type '/help'").await?;
    terminal.types("/mam on").await?;
    let door = nodes.door(0).c2s;
    let (ip, port) = (door.ip(), door.port());
    terminal.types(&format!("/connect {} server {ip} port {port} tls trust", alice.bare())).await?;
    terminal.shows("Enter password").await?;
    terminal.types(&alice.password).await?;
    terminal.shows("logged in successfully").await?;
    terminal.shows(&bob.user).await?;

    terminal.types(&format!("/msg {}", bob.bare())).await?;
    terminal.shows("said earlier").await?;
    terminal.types("written in a terminal").await?;
    let heard = laptop.wait_for("what was typed", |n| body(n).as_deref() == Some("written in a terminal"));
    let from = heard.await?.attr("from").unwrap_or_default().to_owned();
    say(&mut laptop, &from, "read in a terminal").await?;
    terminal.shows("read in a terminal").await?;

    terminal.types(&format!("/avatar get {}", bob.bare())).await?;
    // It is said in the first window.
    terminal.types("/win 1").await?;
    terminal.shows("Avatar saved as").await?;
    let kept = terminal.home.path().join(format!("profanity/avatars/{}_at_{}.png", bob.user, bob.host));
    let bytes = std::fs::read(&kept).with_context(|| kept.display().to_string())?;
    ensure!(BASE64_STANDARD.encode(&bytes) == PICTURE, "another picture came");
    Ok(())
}

/// A PNG in base64, with the hash of what it stands for.
pub async fn publish_a_picture(laptop: &mut Client, sha1: &str, picture: &str) -> Result<()> {
    let size = BASE64_STANDARD.decode(picture)?.len();
    let nodes = [
        ("data", format!("<data xmlns='urn:xmpp:avatar:data'>{picture}</data>")),
        (
            "metadata",
            format!(
                "<metadata xmlns='urn:xmpp:avatar:metadata'>\
                 <info id='{sha1}' type='image/png' bytes='{size}'/></metadata>"
            ),
        ),
    ];
    for (node, payload) in nodes {
        laptop
            .send(&format!(
                "<iq type='set' id='{node}'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
                 <publish node='urn:xmpp:avatar:{node}'><item id='{sha1}'>{payload}</item></publish></pubsub></iq>"
            ))
            .await?;
        let answer = laptop.wait_for("an answer", |n| n.attr("id") == Some(node)).await?;
        ensure!(answer.attr("type") == Some("result"), "{}", answer.pretty().join("\n"));
    }
    Ok(())
}

/// To another client, which has it: so it is nowhere but in the archive.
pub async fn say_something_earlier(nodes: &Nodes, to: &Person, laptop: &mut Client) -> Result<()> {
    let mut desk = to.come_online(nodes.door(2), "desk").await?;
    say(laptop, &to.bare(), "said earlier").await?;
    desk.wait_for("what is said", |n| body(n).as_deref() == Some("said earlier")).await?;
    desk.close().await
}

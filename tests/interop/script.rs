//! A client of others, driven by a script that tells what it sees: a word per line, and takes what it is to do the same
//! way.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tests::nodes::target_dir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whose library a script drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Slixmpp,
    XmppJs,
}

impl Library {
    pub fn name(self) -> &'static str {
        match self {
            Library::Slixmpp => "slixmpp",
            Library::XmppJs => "xmpp.js",
        }
    }

    /// The interpreter with the script of this name for this library.
    fn script(self, name: &str) -> Result<Command> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop");
        let (interpreter, script) = match self {
            Library::Slixmpp => (target_dir()?.join("tests/venv/bin/python"), format!("{name}.py")),
            Library::XmppJs => (PathBuf::from("node"), format!("{name}.js")),
        };
        let mut command = Command::new(interpreter);
        command.arg(folder.join(script));
        Ok(command)
    }
}

/// It is talked to and heard, and does not outlive the test.
pub fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true)
}

/// A running script.
pub struct Script {
    child: Child,
    orders: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    pub fn start<'a>(
        library: Library,
        name: &str,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Script> {
        let mut child = piped(library.script(name)?.args(words))
            .spawn()
            .with_context(|| format!("failed to start {library:?}; `tests/run interop` installs it"))?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let orders = child.stdin.take();
        Ok(Script { child, orders, lines })
    }

    /// Tells it what to do.
    pub async fn order(&mut self, what: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("no stdin")?;
        orders.write_all(format!("{what}\n").as_bytes()).await?;
        Ok(())
    }

    /// Waits for this word, which is the next.
    pub async fn tells(&mut self, word: &str) -> Result<()> {
        let line = self.word().await?;
        if line.as_deref() == Some(word) {
            return Ok(());
        }
        let complaint = self.complaint().await;
        bail!("told {line:?} instead of `{word}`: {complaint}")
    }

    /// As [`Script::tells`], where another word may stand before it.
    pub async fn tells_past(&mut self, before: &str, word: &str) -> Result<()> {
        let line = self.word().await?;
        if line.as_deref() == Some(before) {
            return self.tells(word).await;
        }
        if line.as_deref() == Some(word) {
            return Ok(());
        }
        let complaint = self.complaint().await;
        bail!("told {line:?} instead of `{before}` or `{word}`: {complaint}")
    }

    async fn word(&mut self) -> Result<Option<String>> {
        match timeout(PATIENCE, self.lines.next_line()).await {
            Ok(line) => Ok(line?),
            Err(_) => {
                let complaint = self.complaint().await;
                bail!("nothing was told: {complaint}")
            }
        }
    }

    /// Everything it tells until it ends well.
    pub async fn rest(&mut self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        let all = async {
            while let Some(line) = self.lines.next_line().await? {
                told.push(line);
            }
            self.child.wait().await
        };
        let status = timeout(PATIENCE, all).await;
        let Ok(status) = status else {
            let complaint = self.complaint().await;
            bail!("does not end after {told:?}: {complaint}");
        };
        let status = status?;
        if !status.success() {
            let complaint = self.complaint().await;
            bail!("ended with {status} after {told:?}: {complaint}");
        }
        Ok(told)
    }

    async fn complaint(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            // Best effort: a running script gives no end of its complaints.
            drop(timeout(Duration::from_secs(2), stderr.read_to_end(&mut bytes)).await);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

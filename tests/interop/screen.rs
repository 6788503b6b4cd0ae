//! A client with windows that nobody here wrote, on a screen that nobody sees: Dino under Xvfb.
//!
//! Somebody types and looks: logs in, finds what was said before in the archive, writes and is answered, and sees the
//! picture of a contact; then finds all of it again on a new machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tests::{
    client::Client,
    nodes::{Layout, Nodes, target_dir},
    people::{Person, befriend},
    xml::{CLIENT, Node},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    daily::{body, someone_at},
    script::PATIENCE,
    socks::Proxy,
    terminal::{publish_a_picture, say_something_earlier},
};

/// Dino takes a certificate that nobody vouches for, if it names the host, from hosts of Tor alone.
const HOST: &str = "other.onion";
/// A square of one colour that nothing else on the screen has.
const PICTURE: &str = "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAAA1BMVEX/AID0WooXAAAAD0lEQVR42mNgGAWjgHwAAAJA\
                       AAHgTR1EAAAAAElFTkSuQmCC";
const SHA1: &str = "a5ea0174efb1d91a378571bc2046ef02ed70ed55";
const COLOUR: &str = "ff0080";
/// A little less than it has wherever it is shown: 35 by 35 with soft edges.
const PIXELS: usize = 900;
/// What is blank has one, letters have soft edges.
const COLOURS: usize = 50;
/// A little more than Dino's window.
const SIZE: (u16, u16) = (960, 400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_chats_on_a_screen() -> Result<()> {
    let at_the_host = |_: &[_], _: &_, config: String| Ok(config.replace("other.example", HOST));
    let nodes = Nodes::start_edited(Layout::Three, at_the_host).await?;
    let chatted = chat(&nodes).await;
    if chatted.is_err() {
        nodes.keep();
    }
    chatted
}

async fn chat(nodes: &Nodes) -> Result<()> {
    let (alice, bob) = (someone_at(nodes, "alice", HOST).await?, someone_at(nodes, "bob", HOST).await?);
    befriend(nodes.door(1), &alice, &bob).await?;
    let mut laptop = bob.come_online(nodes.door(1), "laptop").await?;
    publish_a_picture(&mut laptop, SHA1, PICTURE).await?;
    say_something_earlier(nodes, &alice, &mut laptop).await?;

    let mut first = Desk::start(nodes, 0, "first", &alice, &bob).await?;
    let chatted = write_and_read(&mut first, &mut laptop).await;
    first.leave(chatted).await?;

    let mut second = Desk::start(nodes, 2, "second", &alice, &bob).await?;
    let found = find_it_again(&mut second, &mut laptop).await;
    second.leave(found).await
}

async fn write_and_read(desk: &mut Desk, laptop: &mut Client) -> Result<()> {
    desk.comes_online(laptop).await?;
    desk.chats(&["< said earlier"]).await?;
    desk.xdotool(&["windowfocus", "--sync", &desk.window]).await?;
    desk.xdotool(&["type", "written on a screen"]).await?;
    desk.xdotool(&["key", "Return"]).await?;
    let heard = laptop.wait_for("what was typed", |n| body(n).as_deref() == Some("written on a screen"));
    let from = heard.await?.attr("from").unwrap_or_default().to_owned();
    ensure!(from == desk.jid, "from `{from}`");

    let answer = "<body>read on a screen</body><markable xmlns='urn:xmpp:chat-markers:0'/>";
    laptop.send(&format!("<message type='chat' to='{from}' id='answer'>{answer}</message>")).await?;
    let displayed = |n: &Node| {
        n.child("displayed", "urn:xmpp:chat-markers:0").and_then(|d| d.attr("id")) == Some("answer")
    };
    laptop.wait_for("that it is displayed", displayed).await?;
    has_it_all(desk).await
}

/// On a machine that knows nothing but the account.
async fn find_it_again(desk: &mut Desk, laptop: &mut Client) -> Result<()> {
    desk.comes_online(laptop).await?;
    has_it_all(desk).await
}

async fn has_it_all(desk: &Desk) -> Result<()> {
    desk.chats(&["< said earlier", "> written on a screen", "< read on a screen"]).await?;
    // In the list of contacts, and beside each message of theirs.
    desk.shows_the_picture(3).await
}

/// A screen, and Dino on it; neither outlives the test.
struct Desk {
    name: &'static str,
    /// The session of this Dino.
    jid: String,
    screen: Screen,
    dino: Child,
    /// Its window, once there is one.
    window: String,
    _proxy: Proxy,
}

impl Desk {
    /// Lets Dino log in at the n-th door as `me`, and open the chat with `contact`.
    async fn start(
        nodes: &Nodes,
        nth: usize,
        name: &'static str,
        me: &Person,
        contact: &Person,
    ) -> Result<Desk> {
        // Beside what the nodes keep, so that it stays when they do.
        let folder = nodes.nodes[0].folder.with_file_name(name);
        fs::create_dir_all(folder.join("dino"))?;
        let screen = Screen::start(folder).await?;
        eyes("account", &screen.database(), [&me.bare(), name, &me.password]).await?;
        let proxy = Proxy::to(HOST, nodes.door(nth)).await?;
        let log = fs::File::create(screen.folder.join("dino.log"))?;
        let nowhere = format!("unix:path={}", screen.folder.join("nowhere").display());
        let homes = ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"];
        let dino = screen
            .command("dino-im")
            .args(["--print-xmpp=all", &format!("xmpp:{}?message", contact.bare())])
            .envs(homes.map(|home| (home, &screen.folder)))
            .envs([("GDK_BACKEND", "x11"), ("GSK_RENDERER", "cairo"), ("LANG", "C.UTF-8")])
            // Nothing of the machine is asked: no desktop, no settings, no name server.
            .envs([("DBUS_SESSION_BUS_ADDRESS", &nowhere), ("DBUS_SYSTEM_BUS_ADDRESS", &nowhere)])
            .envs([("GSETTINGS_BACKEND", "memory"), ("GTK_A11Y", "none"), ("RES_OPTIONS", "attempts:0")])
            // GLib takes it for connections of any kind.
            .env("http_proxy", format!("socks5://{}", proxy.address))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("failed to start Dino; `tests/run interop` installs it")?;
        let jid = format!("{}/{name}", me.bare());
        Ok(Desk { name, jid, screen, dino, window: String::new(), _proxy: proxy })
    }

    /// Waits until there is a window, and until a contact sees that it is there.
    async fn comes_online(&mut self, contact: &mut Client) -> Result<()> {
        self.window = self.xdotool(&["search", "--sync", "--onlyvisible", "--name", "^Dino$"]).await?;
        let is = |n: &Node| {
            n.is("presence", CLIENT) && n.attr("from") == Some(&self.jid) && n.attr("type").is_none()
        };
        contact.wait_for("that Dino is online", is).await.map(drop)
    }

    /// Waits until its chats are these lines: `< ` is before what others have said, `> ` before what the user has.
    async fn chats(&self, lines: &[&str]) -> Result<()> {
        eyes("chats", &self.screen.database(), lines).await.map(drop)
    }

    /// Waits until the contact's picture is on the screen so many times; it is the one that was published.
    async fn shows_the_picture(&self, times: usize) -> Result<()> {
        eyes("shows", &self.screen.framebuffer(), [COLOUR, &(times * PIXELS).to_string()]).await?;
        let kept = self.screen.folder.join("dino/avatars").join(SHA1);
        let bytes = fs::read(&kept).with_context(|| kept.display().to_string())?;
        ensure!(BASE64_STANDARD.encode(&bytes) == PICTURE, "another picture came");
        Ok(())
    }

    /// Draws what was to be seen, however it went; if it went well, the user leaves.
    async fn leave(mut self, went: Result<()>) -> Result<()> {
        let picture = target_dir()?.join("tests").join(format!("dino-{}.png", self.name));
        let drawn = eyes("picture", &self.screen.framebuffer(), [&picture]).await;
        let left = match went {
            Ok(()) => self.quit().await,
            failed => failed,
        };
        self.screen.end().await?;
        left.with_context(|| format!("{} Dino, which is seen in {}", self.name, picture.display()))?;
        let colours = drawn?;
        ensure!(colours.parse::<usize>()? > COLOURS, "{} has {colours} colours", picture.display());
        Ok(())
    }

    async fn quit(&mut self) -> Result<()> {
        self.xdotool(&["key", "ctrl+q"]).await?;
        let ended = timeout(PATIENCE, self.dino.wait()).await.context("it does not end")??;
        ensure!(ended.success(), "it ended with {ended}");
        Ok(())
    }

    async fn xdotool(&self, words: &[&str]) -> Result<String> {
        said(self.screen.command("xdotool").args(words)).await
    }
}

/// What nobody sees.
struct Screen {
    /// All that it keeps, and who draws on it.
    folder: PathBuf,
    display: String,
    server: Child,
}

impl Screen {
    async fn start(folder: PathBuf) -> Result<Screen> {
        let key = folder.join("Xauthority");
        fs::write(&key, cookie()?)?;
        let (width, height) = SIZE;
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-nolisten", "tcp"])
            .args(["-screen", "0", &format!("{width}x{height}x24")])
            // However late a key comes up again, what is typed is not repeated.
            .arg("-r")
            .args([Path::new("-fbdir"), &folder, Path::new("-auth"), &key])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("Xvfb.log"))?)
            .kill_on_drop(true)
            .spawn()
            .context("failed to start Xvfb; `tests/run interop` installs it")?;
        let mut lines = BufReader::new(server.stdout.take().context("no stdout")?).lines();
        let number = timeout(PATIENCE, lines.next_line()).await.context("no display")??;
        let display = format!(":{}", number.context("Xvfb has ended")?);
        Ok(Screen { folder, display, server })
    }

    /// A program that finds this display and nothing else.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("DISPLAY", &self.display).env("XAUTHORITY", self.folder.join("Xauthority"));
        command
    }

    /// Where Dino keeps what it knows.
    fn database(&self) -> PathBuf {
        self.folder.join("dino/dino.db")
    }

    /// What is to be seen, as Xvfb keeps it.
    fn framebuffer(&self) -> PathBuf {
        self.folder.join("Xvfb_screen0")
    }

    /// It is asked to: so it leaves nothing behind that belongs to its display.
    async fn end(&mut self) -> Result<()> {
        let id = self.server.id().context("Xvfb has ended")?.to_string();
        let asked = Command::new("kill").args(["-TERM", &id]).status().await?;
        ensure!(asked.success(), "Xvfb cannot be asked to end");
        timeout(PATIENCE, self.server.wait()).await.context("Xvfb does not end")??;
        Ok(())
    }
}

/// Looks at a file of Dino or of the screen: see `screen.py`.
async fn eyes(
    what: &str,
    file: &Path,
    words: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/screen.py");
    said(Command::new("python3").arg(script).arg(what).arg(file).args(words)).await
}

/// What a command says until it ends well.
async fn said(command: &mut Command) -> Result<String> {
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let done = timeout(PATIENCE, run).await;
    let done = done.with_context(|| format!("{:?} does not end", command.as_std()))??;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{:?}: {}", command.as_std(), complaint.trim());
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// A key to the display, whatever it is called, for whoever may read the file; others on the machine stay out.
fn cookie() -> Result<Vec<u8>> {
    const NAME: &[u8] = b"MIT-MAGIC-COOKIE-1";
    /// Of any host.
    const WILD: u16 = 0xffff;
    let mut secret = [0; 16];
    aws_lc_rs::rand::fill(&mut secret)?;
    let mut entry = WILD.to_be_bytes().to_vec();
    for field in [&[], &[], NAME, &secret] {
        entry.extend(u16::try_from(field.len())?.to_be_bytes());
        entry.extend(field);
    }
    Ok(entry)
}

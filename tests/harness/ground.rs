//! Machines of their own for nodes: network namespaces on one bridge, whose links can be cut one way or both, taken down, and made bad.
//!
//! No namespace has a name: each lives as long as its open file here, or a process in it, so that nothing stays behind
//! whatever way a test ends.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    process::Stdio,
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    process::Command,
};

/// The first three bytes of every address.
const NETWORK: [u8; 3] = [10, 77, 0];

/// A place for sockets: that of the test, or the namespace of a node, as long as its ground lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space(Option<RawFd>);

impl Space {
    /// A connection from within the namespace.
    pub async fn connect(self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let Some(space) = self.0 else { return TcpStream::connect(address).await };
        // A socket belongs to the namespace of the thread that makes it: that of a thread which then ends.
        let made = thread::spawn(move || {
            enter(space)?;
            TcpSocket::new_v4()
        });
        let socket = made.join().map_err(|_| std::io::Error::other("the thread of a socket panicked"))??;
        socket.connect(address).await
    }

    /// A command that runs within the namespace.
    pub fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self.0 {
            None => Command::new(program),
            Some(space) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path(space))).arg("--").arg(program);
                command
            }
        }
    }
}

/// One bridge, and a namespace with a leg on it for each node.
pub struct Ground {
    hub: File,
    legs: Vec<File>,
}

/// How bad the link of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Of a hundred packets that come to the node.
    pub loss_percent: u32,
    /// Of each packet that leaves it, give or take a quarter.
    pub delay_ms: u32,
}

impl Ground {
    /// Ground for so many nodes. `None` where that is not permitted, which is said in a line that begins with `skipped`.
    pub async fn lay(count: usize) -> Result<Option<Ground>> {
        match Ground::try_lay(count).await {
            Ok(ground) => Ok(Some(ground)),
            Err(why) => {
                println!("skipped: network namespaces are not to be had here: {why:#}");
                // Where they must be had, a run that shows nothing is a failure.
                ensure!(std::env::var_os("ROOKERY_NETNS").is_none(), "ROOKERY_NETNS is set: {why:#}");
                Ok(None)
            }
        }
    }

    async fn try_lay(count: usize) -> Result<Ground> {
        let hub = unshared().context("failed to make one")?;
        let legs = (0..count).map(|_| unshared()).collect::<Result<Vec<File>>>()?;
        let mut lines =
            String::from("link set lo up\nlink add bridge type bridge forward_delay 0\nlink set bridge up\n");
        for (at, leg) in legs.iter().enumerate() {
            let space = path(leg.as_raw_fd());
            lines += &format!("link add port{at} type veth peer name eth0 netns {space}\n");
            lines += &format!("link set port{at} master bridge\nlink set port{at} up\n");
        }
        let ground = Ground { hub, legs };
        spoken(Space(Some(ground.hub.as_raw_fd())).command("ip").args(["-batch", "-"]), &lines).await?;
        for at in 0..count {
            let lines =
                format!("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", ground.address(at));
            spoken(ground.space(at).command("ip").args(["-batch", "-"]), &lines).await?;
            ground.rules(at, RULES).await?;
        }
        Ok(ground)
    }

    /// Where the sockets of a node are.
    pub fn space(&self, at: usize) -> Space {
        Space(Some(self.legs[at].as_raw_fd()))
    }

    /// The address at which other nodes reach a node.
    pub fn address(&self, at: usize) -> IpAddr {
        let [a, b, c] = NETWORK;
        IpAddr::V4(Ipv4Addr::new(a, b, c, at as u8 + 1))
    }

    /// Lets nothing through from one node to another, for each of these; the other way it goes on.
    pub async fn cut(&self, links: &[(usize, usize)]) -> Result<()> {
        self.change("add", links).await
    }

    /// Takes such cuts back.
    pub async fn mend(&self, links: &[(usize, usize)]) -> Result<()> {
        self.change("delete", links).await
    }

    /// Takes all cuts back.
    pub async fn mend_all(&self) -> Result<()> {
        for at in 0..self.legs.len() {
            self.rules(at, "flush set inet ground deaf\n").await?;
        }
        Ok(())
    }

    async fn change(&self, what: &str, links: &[(usize, usize)]) -> Result<()> {
        for at in 0..self.legs.len() {
            let deaf_to =
                links.iter().filter(|(_, to)| *to == at).map(|(from, _)| self.address(*from).to_string());
            let deaf_to: Vec<String> = deaf_to.collect();
            if !deaf_to.is_empty() {
                let line = format!("{what} element inet ground deaf {{ {} }}\n", deaf_to.join(", "));
                self.rules(at, &line).await?;
            }
        }
        Ok(())
    }

    /// Pulls the plug of a node, or puts it in again.
    pub async fn plug(&self, at: usize, inside: bool) -> Result<()> {
        let line = format!("link set port{at} {}\n", if inside { "up" } else { "down" });
        spoken(Space(Some(self.hub.as_raw_fd())).command("ip").args(["-batch", "-"]), &line).await
    }

    /// Makes the link of a node as bad as this; the default is a good one. Whether all of it is permitted here: without
    /// netem there is loss, and no delay.
    pub async fn weather(&self, at: usize, weather: Weather) -> Result<bool> {
        let Weather { loss_percent, delay_ms } = weather;
        let mut lines = String::from("flush chain inet ground lossy\n");
        if loss_percent > 0 {
            // Not of its own clients and operators, which come by loopback.
            lines += &format!(
                "add rule inet ground lossy iifname eth0 numgen random mod 100 < {loss_percent} drop\n"
            );
        }
        self.rules(at, &lines).await?;
        let shake = format!("{}ms", delay_ms.div_ceil(4));
        let delay = format!("{delay_ms}ms");
        let words: &[&str] = match delay_ms {
            0 => &["qdisc", "del", "dev", "eth0", "root"],
            _ => &["qdisc", "replace", "dev", "eth0", "root", "netem", "delay", &delay, &shake],
        };
        let run = self.space(at).command("tc").args(words).stdin(Stdio::null()).output().await?;
        Ok(delay_ms == 0 || run.status.success())
    }

    async fn rules(&self, at: usize, lines: &str) -> Result<()> {
        spoken(self.space(at).command("nft").args(["-f", "-"]), lines).await
    }
}

/// What a node does not hear, and of whom nothing gets lost by chance.
const RULES: &str = "table inet ground {
    set deaf { type ipv4_addr; }
    chain lossy { }
    chain incoming {
        type filter hook input priority 0;
        ip saddr @deaf drop
        jump lossy
    }
}
";

/// Runs a command that reads what it has to do from its input.
async fn spoken(command: &mut Command, lines: &str) -> Result<()> {
    let said = format!("{:?}", command.as_std());
    let run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = run.spawn().with_context(|| format!("failed to run {said}"))?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(lines.as_bytes()).await?;
    drop(input);
    let out = child.wait_with_output().await?;
    if !out.status.success() {
        bail!("{said} failed: {}: {lines}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// How a command is told of a namespace that this process has open.
fn path(space: RawFd) -> String {
    format!("/proc/{}/fd/{space}", std::process::id())
}

/// A new namespace. It begins with a thread that then ends; the file keeps it.
fn unshared() -> Result<File> {
    let made = thread::spawn(|| {
        // SAFETY: no memory is concerned; this thread alone leaves the namespace that it shares with the others.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    });
    let made = made.join().map_err(|_| anyhow!("the thread of a namespace panicked"))?;
    Ok(made?)
}

/// Moves the calling thread into a namespace.
fn enter(space: RawFd) -> std::io::Result<()> {
    // SAFETY: no memory is concerned; a file that is no namespace is refused by the kernel.
    match unsafe { libc::setns(space, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

//! Runs the real binary: one node, three nodes, or three backends with two frontends, on free loopback ports or in namespaces.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use proto::admin::{GetClusterRequest, GetClusterResponse, admin_client::AdminClient};
use tokio::{
    process::{Child, Command},
    time::{Instant, interval, interval_at, timeout},
};

use tonic::transport::{Channel, Endpoint};

use crate::{
    certificates::Authority,
    client::{Door, unique},
    ground::{Ground, Space},
};

/// Domains that every cluster of the tests serves.
pub const HOSTS: &[&str] = &["localhost", "other.example"];

/// How long a cluster may take to form, on a busy machine.
const FORMATION: Duration = Duration::from_secs(90);
/// How often a state is asked for that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Which nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A single node without a `[cluster]`.
    One,
    /// Two nodes, each frontend and backend.
    Two,
    /// Three nodes, each frontend and backend.
    Three,
    /// Three backends and two frontends.
    Split,
    /// Five nodes, each frontend and backend.
    Five,
}

impl Layout {
    /// Those on which stories are played.
    pub const ALL: [Layout; 3] = [Layout::One, Layout::Three, Layout::Split];

    /// Name and roles of each node, those that serve clients first.
    fn nodes(self) -> Vec<(String, &'static [&'static str])> {
        let both: &[&str] = &["frontend", "backend"];
        let (front, back): (&[&str], &[&str]) = (&["frontend"], &["backend"]);
        let roles = match self {
            Layout::One => vec![("node", both)],
            Layout::Two => vec![("node", both); 2],
            Layout::Three => vec![("node", both); 3],
            Layout::Five => vec![("node", both); 5],
            Layout::Split => {
                vec![("front", front), ("front", front), ("back", back), ("back", back), ("back", back)]
            }
        };
        roles.into_iter().enumerate().map(|(n, (name, roles))| (format!("{name}{}", n + 1), roles)).collect()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::One => "one node",
            Layout::Two => "two nodes",
            Layout::Three => "three nodes",
            Layout::Split => "split roles",
            Layout::Five => "five nodes",
        })
    }
}

/// One process of the binary.
pub struct Node {
    pub name: String,
    pub roles: &'static [&'static str],
    /// Where clients connect; none on a node that is only a backend.
    pub door: Option<Door>,
    pub admin: SocketAddr,
    pub cluster: SocketAddr,
    /// Where its sockets are, and those of its clients and operators.
    pub space: Space,
    /// Its config, data and log.
    pub folder: PathBuf,
    child: Option<Child>,
}

/// A running layout; ends with this value. Its folder stays when a test failed.
pub struct Nodes {
    pub layout: Layout,
    pub nodes: Vec<Node>,
    folder: PathBuf,
    keep: AtomicBool,
    /// Soft and hard limit of the files that each process may open; `None`: those of the test.
    files: Option<(u32, u32)>,
    /// What is between the nodes, where that is more than loopback.
    ground: Option<Ground>,
}

impl Nodes {
    /// Starts all nodes and waits until each serves and knows all others.
    pub async fn start(layout: Layout) -> Result<Nodes> {
        Nodes::start_edited(layout, |_, _, config| Ok(config)).await
    }

    /// As `start`, with configs that were edited: from all nodes, one of them, and its config.
    pub async fn start_edited(
        layout: Layout,
        edit: impl Fn(&[Node], &Node, String) -> Result<String>,
    ) -> Result<Nodes> {
        Nodes::start_limited(layout, None, edit).await
    }

    /// As `start_edited`, with a soft and a hard limit of open files for each process.
    pub async fn start_limited(
        layout: Layout,
        files: Option<(u32, u32)>,
        edit: impl Fn(&[Node], &Node, String) -> Result<String>,
    ) -> Result<Nodes> {
        let mut cluster = Nodes::prepare_limited(layout, files, None, edit)?;
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// As `start_edited`, with each node on a machine of its own, as far as it can tell: links that can be cut, under
    /// TLS. `None` where that is not permitted.
    pub async fn start_apart(
        layout: Layout,
        edit: impl Fn(&[Node], &Node, String) -> Result<String>,
    ) -> Result<Option<Nodes>> {
        let Some(mut cluster) = Nodes::prepare_apart(layout, edit).await? else { return Ok(None) };
        cluster.start_all().await?;
        Ok(Some(cluster))
    }

    /// As `prepare`, with each node on a machine of its own.
    pub async fn prepare_apart(
        layout: Layout,
        edit: impl Fn(&[Node], &Node, String) -> Result<String>,
    ) -> Result<Option<Nodes>> {
        let Some(ground) = Ground::lay(layout.nodes().len()).await? else { return Ok(None) };
        Nodes::prepare_limited(layout, None, Some(ground), edit).map(Some)
    }

    /// What is between the nodes.
    pub fn ground(&self) -> Result<&Ground> {
        self.ground.as_ref().context("all nodes are on one machine")
    }

    /// Starts all nodes, and waits until they are a cluster.
    pub async fn start_all(&mut self) -> Result<()> {
        for at in 0..self.nodes.len() {
            self.spawn(at)?;
        }
        if let Err(e) = self.formed().await {
            self.keep.store(true, Ordering::Relaxed);
            let (layout, folder) = (self.layout, self.folder.display());
            return Err(e.context(format!("{layout} did not form; logs are in {folder}")));
        }
        Ok(())
    }

    /// Nodes with folders and configs, of which none runs yet; `start_again` starts one.
    pub fn prepare(layout: Layout, edit: impl Fn(&[Node], &Node, String) -> Result<String>) -> Result<Nodes> {
        Nodes::prepare_limited(layout, None, None, edit)
    }

    fn prepare_limited(
        layout: Layout,
        files: Option<(u32, u32)>,
        ground: Option<Ground>,
        edit: impl Fn(&[Node], &Node, String) -> Result<String>,
    ) -> Result<Nodes> {
        let folder = target_dir()?.join("tests").join(unique(&layout.to_string().replace(' ', "-")));
        fs::create_dir_all(&folder)?;
        let mut nodes = Vec::new();
        for (at, (name, roles)) in layout.nodes().into_iter().enumerate() {
            let serves = roles.contains(&"frontend");
            let space = ground.as_ref().map(|ground| ground.space(at)).unwrap_or_default();
            let address = |own| match &ground {
                None => free_address(),
                Some(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, own)),
            };
            let door = serves.then(|| Door { c2s: address(5222), direct: address(5223), space });
            let admin = address(5280);
            let mut cluster = address(7400);
            if let Some(ground) = &ground {
                cluster.set_ip(ground.address(at));
            }
            let folder = folder.join(&name);
            fs::create_dir_all(&folder)?;
            nodes.push(Node { name, roles, door, admin, cluster, space, folder, child: None });
        }
        let cluster = Nodes { layout, nodes, folder, keep: AtomicBool::new(false), files, ground };
        cluster.write_configs(edit)?;
        Ok(cluster)
    }

    /// The door of the n-th character: each at another node, as far as there are nodes with one.
    pub fn door(&self, nth: usize) -> Door {
        let doors: Vec<Door> = self.nodes.iter().filter_map(|n| n.door).collect();
        doors[nth % doors.len()]
    }

    /// Runs the binary against the admin service of the first living node; gives what it printed.
    pub async fn cli(&self, words: &[&str]) -> Result<String> {
        let at = self.nodes.iter().position(|n| n.child.is_some()).context("no node is left")?;
        self.cli_at(at, words).await
    }

    /// As `cli`, against the admin service of one node.
    pub async fn cli_at(&self, at: usize, words: &[&str]) -> Result<String> {
        let Node { admin, space, .. } = &self.nodes[at];
        let admin = format!("http://{admin}");
        let mut command = space.command(binary()?);
        let run = command.args(words).args(["--admin", &admin]).stdin(Stdio::null()).output();
        let out = timeout(Duration::from_secs(30), run)
            .await
            .with_context(|| format!("`{words:?}` does not end"))??;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success(),
            "`rookery {}` failed: {said}{}",
            words.join(" "),
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(said)
    }

    /// Runs the binary with a node's config; whether it did what it was told, and all that it said.
    pub async fn offline(&self, at: usize, words: &[&str]) -> Result<(bool, String)> {
        let config = self.nodes[at].folder.join("rookery.toml");
        self.run(self.nodes[at].space.command(binary()?).args(words).arg("--config").arg(config)).await
    }

    /// Runs the binary against the admin service of a node; whether it did what it was told, and all that it said.
    pub async fn ask(&self, at: usize, words: &[&str]) -> Result<(bool, String)> {
        let admin = format!("http://{}", self.nodes[at].admin);
        self.run(self.nodes[at].space.command(binary()?).args(words).args(["--admin", &admin])).await
    }

    async fn run(&self, command: &mut Command) -> Result<(bool, String)> {
        let out = timeout(Duration::from_secs(60), command.stdin(Stdio::null()).output());
        let out = out.await.context("a command does not end")??;
        let said = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
        Ok((out.status.success(), said))
    }

    /// Creates an account by the command line.
    pub async fn add_user(&self, jid: &str, password: &str) -> Result<()> {
        self.cli(&["user", "add", jid, "--password", password]).await.map(drop)
    }

    /// Makes an account with keys as RFC 5803 writes them.
    pub async fn bring_user(&self, jid: &str, keys: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), format!("# from another server\n{keys}\n"))?;
        self.cli(&["user", "add", jid, "--scram", &file.path().display().to_string()]).await.map(drop)
    }

    /// The cluster as one node sees it.
    pub async fn status(&self, at: usize) -> Result<GetClusterResponse> {
        let mut client = AdminClient::new(self.admin(at).await?);
        let asked = timeout(Duration::from_secs(5), client.get_cluster(GetClusterRequest {})).await;
        Ok(asked.context("no answer")??.into_inner())
    }

    /// A link to the admin service of a node.
    pub async fn admin(&self, at: usize) -> Result<Channel> {
        let Node { admin, space, .. } = self.nodes[at];
        let connect = tower::service_fn(move |_| async move { space.connect(admin).await.map(TokioIo::new) });
        Ok(Endpoint::from_shared(format!("http://{admin}"))?.connect_with_connector(connect).await?)
    }

    /// Ends a node without warning, as `kill -9` does.
    pub async fn kill(&mut self, at: usize) -> Result<()> {
        let mut child = self.nodes[at].child.take().context("killed before")?;
        child.start_kill()?;
        child.wait().await?;
        Ok(())
    }

    /// Asks all nodes at once to stop, as an operator does by SIGTERM, and waits until each has ended well.
    pub async fn stop_all(&mut self, within: Duration) -> Result<()> {
        let ids = self.nodes.iter().filter_map(|n| n.child.as_ref()?.id()).map(|id| id.to_string());
        let asked = Command::new("kill").arg("-TERM").args(ids).status().await?;
        ensure!(asked.success(), "not all nodes run");
        let end = Instant::now() + within;
        for node in &mut self.nodes {
            let Some(mut child) = node.child.take() else { continue };
            let ended = tokio::time::timeout_at(end, child.wait()).await;
            let ended = ended.with_context(|| {
                format!("`{}` runs after {within:?}: {}", node.name, last_lines(&node.folder.join("log")))
            })??;
            ensure!(ended.success(), "`{}` ended with {ended}", node.name);
        }
        Ok(())
    }

    /// Asks a node to stop, as an operator does by SIGTERM; it may go on for a while.
    pub async fn terminate(&self, at: usize) -> Result<()> {
        let id = self.nodes[at].child.as_ref().and_then(Child::id).context("it does not run")?;
        let asked = Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        ensure!(asked.success(), "`{}` cannot be asked to stop", self.nodes[at].name);
        Ok(())
    }

    /// Waits until a node that was told to has ended well.
    pub async fn ended(&mut self, at: usize, within: Duration) -> Result<()> {
        let node = &mut self.nodes[at];
        let mut child = node.child.take().context("it does not run")?;
        let ended = timeout(within, child.wait()).await;
        let ended = ended.with_context(|| {
            format!("`{}` runs after {within:?}: {}", node.name, last_lines(&node.folder.join("log")))
        })??;
        ensure!(ended.success(), "`{}` ended with {ended}", node.name);
        Ok(())
    }

    /// The process of a node that runs.
    pub fn process(&self, at: usize) -> Option<u32> {
        self.nodes[at].child.as_ref()?.id()
    }

    /// Stops a node in its tracks, with all of its connections open, until it is resumed or killed.
    pub async fn pause(&self, at: usize) -> Result<()> {
        self.signal(at, "-STOP").await
    }

    /// Lets a paused node go on.
    pub async fn resume(&self, at: usize) -> Result<()> {
        self.signal(at, "-CONT").await
    }

    /// Pauses a node for at least so long, and until what is done meanwhile has ended; gives what came of it.
    pub async fn pause_for<T>(
        &self,
        at: usize,
        time: Duration,
        meanwhile: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.pause(at).await?;
        // The pause is what is tried: nothing ends it but time.
        let mut over = interval_at(Instant::now() + time, LOOK_AGAIN);
        let (done, _) = tokio::join!(meanwhile, over.tick());
        self.resume(at).await?;
        done
    }

    async fn signal(&self, at: usize, signal: &str) -> Result<()> {
        let id = self.nodes[at].child.as_ref().and_then(Child::id).context("it does not run")?;
        let sent = Command::new("kill").args([signal, &id.to_string()]).status().await?;
        ensure!(sent.success(), "`{}` cannot be sent {signal}", self.nodes[at].name);
        Ok(())
    }

    /// Waits until a node ends by itself; gives its log.
    pub async fn until_ended(&mut self, at: usize, bound: Duration) -> Result<String> {
        let node = &mut self.nodes[at];
        let mut child = node.child.take().context("it does not run")?;
        let log = node.folder.join("log");
        let ended = timeout(bound, child.wait()).await;
        ended.with_context(|| format!("`{}` runs on: {}", node.name, last_lines(&log)))??;
        Ok(fs::read_to_string(log)?)
    }

    /// Starts a killed node again, with its old folder and addresses; or one that never ran.
    pub async fn start_again(&mut self, at: usize) -> Result<()> {
        self.spawn(at)?;
        self.formed().await
    }

    /// Waits until `wanted` holds for what a node says of the cluster.
    pub async fn until(
        &self,
        at: usize,
        what: &str,
        bound: Duration,
        wanted: impl Fn(&GetClusterResponse) -> bool,
    ) -> Result<GetClusterResponse> {
        let end = Instant::now() + bound;
        let mut look = interval(LOOK_AGAIN);
        loop {
            look.tick().await;
            let seen = self.status(at).await;
            match seen {
                Ok(status) if wanted(&status) => return Ok(status),
                seen if Instant::now() > end => bail!("{what}: not within {bound:?}; last seen {seen:?}"),
                _ => {}
            }
        }
    }

    /// Waits until a node has written a text to its log; gives all of the log.
    pub async fn until_logged(&self, at: usize, text: &str, bound: Duration) -> Result<String> {
        let end = Instant::now() + bound;
        let mut look = interval(LOOK_AGAIN);
        loop {
            look.tick().await;
            let log = fs::read_to_string(self.nodes[at].folder.join("log"))?;
            if log.contains(text) {
                return Ok(log);
            }
            ensure!(Instant::now() < end, "`{text}` is not logged within {bound:?}:\n{log}");
        }
    }

    /// Leaves logs and data where they are when this value ends.
    pub fn keep(&self) -> &Path {
        self.keep.store(true, Ordering::Relaxed);
        &self.folder
    }

    fn write_configs(&self, edit: impl Fn(&[Node], &Node, String) -> Result<String>) -> Result<()> {
        let seeds: Vec<String> = self
            .nodes
            .iter()
            .filter(|n| n.roles.contains(&"backend"))
            .map(|n| n.cluster.to_string())
            .collect();
        let authority = self.ground.as_ref().map(|_| Authority::new()).transpose()?;
        for node in &self.nodes {
            let mut text =
                format!("hosts = {HOSTS:?}\n\n[node]\nname = {:?}\nroles = {:?}\n", node.name, node.roles);
            text += &format!(
                "data_dir = {:?}\n\n[admin]\nlisten = \"{}\"\n",
                node.folder.join("data"),
                node.admin
            );
            if let Some(door) = node.door {
                text += &format!(
                    "\n[c2s]\nlisten = [\"{}\"]\ndirect_tls_listen = [\"{}\"]\n",
                    door.c2s, door.direct
                );
            }
            text += "\n[modules.registration]\nenabled = true\nhosts = [\"other.example\"]\n";
            text += "per_address_per_hour = 100000\nper_node_per_hour = 100000\n";
            text += "\n[modules.archive]\nenabled = true\nhosts = [\"other.example\"]\n";
            // For whoever looks for the cause of a failure.
            if let Ok(filter) = std::env::var("ROOKERY_LOG") {
                text += &format!("\n[log]\nfilter = {filter:?}\n");
            }
            if self.layout != Layout::One {
                let expect = seeds.len();
                text += &format!("\n[cluster]\nlisten = \"{}\"\nexpect = {expect}\n", node.cluster);
                text += &match &authority {
                    None => "plain = true\n".to_owned(),
                    Some(authority) => authority.certify_node(&node.folder, node.roles)?,
                };
                text += &format!("discovery = {{ static = {seeds:?} }}\n");
            }
            fs::write(node.folder.join("rookery.toml"), edit(&self.nodes, node, text)?)?;
        }
        Ok(())
    }

    /// Starts the process of a node and waits for nothing.
    pub fn spawn(&mut self, at: usize) -> Result<()> {
        self.spawn_with(at, binary()?)
    }

    /// As `spawn`, with a binary that is not the one under test.
    pub fn spawn_with(&mut self, at: usize, binary: &Path) -> Result<()> {
        let node = &mut self.nodes[at];
        let log = fs::OpenOptions::new().create(true).append(true).open(node.folder.join("log"))?;
        let mut command = match self.files {
            None => node.space.command(binary),
            Some((soft, hard)) => {
                let mut shell = node.space.command("sh");
                let limited = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
                shell.arg("-c").arg(limited).arg(binary);
                shell
            }
        };
        let child = command
            .args(["serve", "--with-parent", "--config"])
            .arg(node.folder.join("rookery.toml"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("failed to start the binary")?;
        node.child = Some(child);
        Ok(())
    }

    /// Waits until each node that runs serves and knows all others that run.
    pub async fn formed(&mut self) -> Result<()> {
        let end = Instant::now() + FORMATION;
        let living = self.nodes.iter().filter(|n| n.child.is_some()).count();
        let mut look = interval(LOOK_AGAIN);
        for at in 0..self.nodes.len() {
            while self.nodes[at].child.is_some() {
                look.tick().await;
                let seen = self.status(at).await;
                let up = |s: &GetClusterResponse| s.nodes.iter().filter(|n| n.state == "up").count();
                if seen.as_ref().is_ok_and(|s| s.serving && up(s) >= living) && self.listens(at).await {
                    break;
                }
                let node = &mut self.nodes[at];
                if let Some(status) = node.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                    bail!("`{}` ended with {status}: {}", node.name, last_lines(&node.folder.join("log")));
                }
                ensure!(Instant::now() < end, "`{}` is not ready: {seen:?}", node.name);
            }
        }
        Ok(())
    }

    async fn listens(&self, at: usize) -> bool {
        match self.nodes[at].door {
            Some(door) => door.space.connect(door.c2s).await.is_ok(),
            None => true,
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() || self.keep.load(Ordering::Relaxed) {
            eprintln!("logs of {}: {}", self.layout, self.folder.display());
            return;
        }
        for node in &mut self.nodes {
            node.child = None;
        }
        // What a process still writes while it dies is of no interest: the folder is under `target`.
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// The binary under test: `ROOKERY_BIN`, or a fresh debug build.
pub fn binary() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    built(&BUILT, "ROOKERY_BIN", "node", "rookery")
}

/// The load generator: `ROOKERY_BENCH_BIN`, or a fresh debug build.
pub fn generator() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    built(&BUILT, "ROOKERY_BENCH_BIN", "bench", "rookery-bench")
}

fn built(
    once: &'static OnceLock<Result<PathBuf, String>>,
    variable: &str,
    package: &str,
    name: &str,
) -> Result<&'static Path> {
    let built = once.get_or_init(|| {
        if let Some(given) = std::env::var_os(variable) {
            return Ok(given.into());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = std::process::Command::new(cargo)
            .args(["build", "--quiet", "--package", package])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .map_err(|e| format!("failed to run cargo: {e}"))?;
        let binary = target_dir().map_err(|e| e.to_string())?.join("debug").join(name);
        if status.success() { Ok(binary) } else { Err(format!("`{name}` does not build")) }
    });
    built.as_deref().map_err(|e| anyhow::anyhow!(e.clone()))
}

/// Where cargo builds to; the tests' own folders are below it.
pub fn target_dir() -> Result<PathBuf> {
    // A test binary runs from `target/<profile>/deps`.
    let me = std::env::current_exe()?;
    me.ancestors().nth(3).map(Path::to_owned).context("the test runs from somewhere else than `target`")
}

/// A loopback address that nobody listens on, below the ports that the system gives to outgoing connections.
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static SEED: AtomicU32 = AtomicU32::new(0);
    SEED.compare_exchange(0, std::process::id(), Ordering::Relaxed, Ordering::Relaxed).ok();
    let start = (SEED.load(Ordering::Relaxed).wrapping_mul(7919) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free between {FIRST} and {}", FIRST + COUNT);
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

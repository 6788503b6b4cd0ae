//! One node under attack, on a thread that outlives the test which started it, with a bystander logged in.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::{self, Client, Login, PATIENCE, unique},
    nodes::{Layout, Nodes, free_address},
    people::{Person, go_online, ping},
    xml::Node,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use toml_edit::DocumentMut;

/// Keys of the config with their values in TOML, as in `("limits.first_byte_timeout_s", "1")`.
pub type Settings = Vec<(String, String)>;

/// A running node, its addresses, and the line to the thread that owns it.
pub struct Server {
    /// Where clients connect.
    pub door: client::Door,
    pub metrics: SocketAddr,
    pub admin: SocketAddr,
    /// The bystander, and the address of its session.
    pub witness: Person,
    pub witness_jid: String,
    log: PathBuf,
    process: Arc<AtomicU32>,
    asks: Option<mpsc::UnboundedSender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

enum Ask {
    /// Pings the server as the bystander; what it heard since the last time.
    Ping(oneshot::Sender<Result<Vec<Node>>>),
    /// Kills the node and starts it with these settings; the bystander logs in again.
    Restart(Settings, oneshot::Sender<Result<()>>),
}

struct Owner {
    nodes: Nodes,
    witness: Person,
    client: Client,
    process: Arc<AtomicU32>,
    settings: Settings,
}

impl Server {
    pub async fn start(settings: Settings) -> Result<Server> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (ready, started) = oneshot::channel();
        let own = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime starts");
            runtime.block_on(async {
                match Owner::start(settings).await {
                    Ok((owner, server)) => {
                        drop(ready.send(Ok(server)));
                        owner.serve(asked).await;
                    }
                    Err(e) => drop(ready.send(Err(e))),
                }
            });
        };
        let thread = thread::Builder::new().name("node".into()).spawn(own)?;
        let mut server = started.await.context("the thread of the node ended")??;
        (server.asks, server.thread) = (Some(asks), Some(thread));
        Ok(server)
    }

    /// A ping of the bystander; everything that it heard before the answer.
    pub async fn ping(&self) -> Result<Vec<Node>> {
        self.ask(Ask::Ping).await
    }

    /// Kills the node and starts it with further settings.
    pub async fn restart(&self, settings: Settings) -> Result<()> {
        self.ask(|answer| Ask::Restart(settings, answer)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T>>) -> Ask) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let asks = self.asks.as_ref().context("the node is stopping")?;
        asks.send(ask(answer)).ok().context("the thread of the node has ended")?;
        answered.await.context("the thread of the node ended")?
    }

    /// How long the log is.
    pub fn log_len(&self) -> Result<u64> {
        Ok(fs::metadata(&self.log)?.len())
    }

    /// What was logged since it was that long.
    pub fn log_since(&self, len: u64) -> Result<String> {
        let log = fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(log.get(len as usize..).unwrap_or_default()).into_owned())
    }

    /// Memory of the process, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc().join("status")).context("the process is gone")?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }

    /// CPU time that the threads of the process have used.
    pub fn cpu(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(self.proc().join("task"))? {
            // A thread may end while the list is read.
            let Ok(spent) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanoseconds += spent.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.process.load(Ordering::Relaxed).to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Owner {
    async fn start(settings: Settings) -> Result<(Owner, Server)> {
        let metrics = free_address();
        let mut all = vec![
            ("metrics.listen".to_owned(), format!("\"{metrics}\"")),
            ("log.filter".to_owned(), "\"debug,h2=info,openraft=warn,rustls=info,sled=info\"".to_owned()),
        ];
        all.extend(settings);
        let nodes = Nodes::start_edited(Layout::One, |_, _, config| edited(&config, &all)).await?;
        let witness = Person::with_account(&nodes, "witness").await?;
        let door = nodes.door(0);
        let client = come(door, &witness).await?;
        let process = Arc::new(AtomicU32::new(nodes.process(0).context("the node has ended")?));
        let server = Server {
            door,
            metrics,
            admin: nodes.nodes[0].admin,
            witness: witness.clone(),
            witness_jid: client.jid.clone().context("not bound")?,
            log: nodes.nodes[0].folder.join("log"),
            process: process.clone(),
            asks: None,
            thread: None,
        };
        Ok((Owner { nodes, witness, client, process, settings: all }, server))
    }

    async fn serve(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        while let Some(ask) = asked.recv().await {
            match ask {
                Ask::Ping(answer) => drop(answer.send(self.ping().await)),
                Ask::Restart(settings, answer) => drop(answer.send(self.restart(settings).await)),
            }
        }
    }

    async fn ping(&mut self) -> Result<Vec<Node>> {
        let id = unique("bystander");
        self.client.send(&ping(&self.witness.host, &id)).await?;
        let mut before = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let node = self.client.next_by(deadline).await.context("the bystander's ping is not answered")?;
            if node.attr("id") == Some(&id) {
                ensure!(node.attr("type") == Some("result"), "{}", node.pretty().join("\n"));
                return Ok(before);
            }
            before.push(node);
        }
    }

    async fn restart(&mut self, settings: Settings) -> Result<()> {
        self.settings.extend(settings);
        let file = self.nodes.nodes[0].folder.join("rookery.toml");
        fs::write(&file, edited(&fs::read_to_string(&file)?, &self.settings)?)?;
        self.nodes.kill(0).await?;
        self.nodes.start_again(0).await?;
        self.process.store(self.nodes.process(0).context("the node has ended")?, Ordering::Relaxed);
        self.client = come(self.nodes.door(0), &self.witness).await?;
        Ok(())
    }
}

/// The bystander comes online: over direct TLS, which every setting has.
async fn come(door: client::Door, witness: &Person) -> Result<Client> {
    let (user, host, password) = (&*witness.user, &*witness.host, &*witness.password);
    let (resource, mechanism) = (Some("window"), "SCRAM-SHA-256");
    let login = Login { user, host, password, resource, mechanism, direct: true };
    let mut client = Client::log_in(door, &login).await?;
    go_online(&mut client, None).await?;
    Ok(client)
}

/// A config with some keys set to other values.
fn edited(config: &str, settings: &Settings) -> Result<String> {
    let mut document: DocumentMut = config.parse()?;
    for (key, value) in settings {
        let value: toml_edit::Value = value.parse().with_context(|| format!("`{key}` = `{value}`"))?;
        let item = key.split('.').fold(document.as_item_mut(), |item, part| &mut item[part]);
        *item = value.into();
    }
    Ok(document.to_string())
}

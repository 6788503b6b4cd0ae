//! The door at which rows knock: ways in, people with accounts, and what must hold after every row.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use proto::admin::{CreateAccountRequest, admin_client::AdminClient};
use tests::{
    client::{Client, unique},
    metrics,
    people::{Person, go_online},
    xml::Node,
};
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, interval},
};

use crate::{
    metric::Metric,
    raw::{Raw, Way},
    server::{Server, Settings},
};

/// The host that rows speak to.
pub const HOST: &str = "localhost";

/// Memory that the process may have more after a row than when it started, in bytes: what the store caches,
/// and what the allocator keeps.
const MEMORY: u64 = 192 << 20;
/// How long a metric may take to count what has just happened.
const COUNTED: Duration = Duration::from_secs(10);

/// One node under attack. Rows at one door take turns, so that what a metric counts is theirs.
pub struct Door {
    server: Server,
    memory: u64,
    /// Held by the row whose turn it is: the secrets that must not be logged.
    turn: Mutex<()>,
    secrets: std::sync::Mutex<Vec<String>>,
}

impl Door {
    /// The node with default settings (TLS required) that most rows share.
    pub async fn shared() -> Result<&'static Door> {
        static SHARED: OnceCell<Door> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Door::with(&[])).await
    }

    /// The node that lets clients log in without TLS, shared by the rows that need it.
    pub async fn without_tls() -> Result<&'static Door> {
        static SHARED: OnceCell<Door> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Door::with(&[("c2s.tls_required", "false")])).await
    }

    /// A node of the row's own with other settings, as in `("limits.first_byte_timeout_s", "1")`; values are
    /// TOML. It ends with the value.
    pub async fn with(settings: &[(&str, &str)]) -> Result<Door> {
        let server = Server::start(owned(settings)).await?;
        let memory = server.memory()?;
        Ok(Door { server, memory, turn: Mutex::new(()), secrets: std::sync::Mutex::default() })
    }

    /// Kills the node and starts it again with further settings, the same data and a new bystander.
    pub async fn restart(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.server.restart(owned(settings)).await
    }

    /// Does the deeds of a row, and checks what holds for every row. `counted` names the metrics that must
    /// have grown by the deeds.
    pub async fn row(
        &self,
        counted: impl IntoIterator<Item = Metric>,
        deeds: impl AsyncFnOnce(&Door) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.remember(&self.server.witness);
        // What is left of the row before: the bystander's own ping must be all.
        self.server.ping().await.context("before the row")?;
        let logged = self.server.log_len()?;
        let before = self.metrics().await?;
        let done = deeds(self).await;
        done.with_context(|| format!("the log ends with\n{}", self.last_lines(logged)))?;
        self.holds(counted, &before, logged).await.context("what must hold after every row")
    }

    async fn holds(
        &self,
        counted: impl IntoIterator<Item = Metric>,
        before: &BTreeMap<String, f64>,
        logged: u64,
    ) -> Result<()> {
        let heard = self.server.ping().await.context("the bystander's session does not work any more")?;
        let lines: Vec<String> = heard.iter().flat_map(Node::pretty).collect();
        ensure!(lines.is_empty(), "the bystander heard\n{}", lines.join("\n"));
        for metric in counted {
            self.counted(before, &metric).await?;
        }
        let after = self.metrics().await?;
        for panics in ["rookery_session_panics_total", "rookery_router_panics_total"] {
            ensure!(after.get(panics) == before.get(panics), "something panicked: see `{panics}`");
        }
        let memory = self.memory()?;
        ensure!(memory < self.memory + MEMORY, "memory went from {} to {memory} bytes", self.memory);
        let log = self.server.log_since(logged)?;
        ensure!(!log.contains("panicked"), "something panicked:\n{log}");
        let secrets = std::mem::take(&mut *self.secrets.lock().expect("no test panics with it"));
        for secret in secrets {
            let line = log.lines().find(|line| line.contains(&secret));
            ensure!(line.is_none(), "the secret `{secret}` is logged: {}", line.unwrap_or_default());
        }
        Ok(())
    }

    fn last_lines(&self, logged: u64) -> String {
        let log = self.server.log_since(logged).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits until a metric has grown as it must.
    async fn counted(&self, before: &BTreeMap<String, f64>, metric: &Metric) -> Result<()> {
        let end = Instant::now() + COUNTED;
        let mut look = interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let now = self.metrics().await?;
            let value = |page: &BTreeMap<String, f64>| page.get(&metric.line).copied().unwrap_or(0.0);
            let grown = value(&now) - value(before);
            if grown >= metric.least {
                return Ok(());
            }
            ensure!(Instant::now() < end, "`{}` grew by {grown}, not by {}", metric.line, metric.least);
        }
    }

    /// The metrics page: name and labels of each line, and its value.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        metrics::page(self.server.metrics).await
    }

    /// Someone with an account of their own, whom no other row knows.
    pub async fn person(&self, name: &str) -> Result<Person> {
        let person = Person { user: unique(name), host: HOST.into(), password: unique("the secret of") };
        let mut admin = AdminClient::connect(format!("http://{}", self.server.admin)).await?;
        let request = CreateAccountRequest {
            jid: person.bare(),
            password: person.password.clone(),
            ..Default::default()
        };
        admin.create_account(request).await?;
        self.remember(&person);
        Ok(person)
    }

    /// Texts that must not be in the log after this row, besides the passwords of its people.
    pub fn secret(&self, secret: &str) {
        self.secrets.lock().expect("no test panics with it").push(secret.to_owned());
    }

    fn remember(&self, person: &Person) {
        let (user, password) = (&person.user, &person.password);
        self.secret(password);
        self.secret(&BASE64_STANDARD.encode(password));
        self.secret(&BASE64_STANDARD.encode(format!("\0{user}\0{password}")));
    }

    /// The full JID of the bystander: stanzas that must go nowhere may be addressed to it.
    pub fn witness(&self) -> &str {
        &self.server.witness_jid
    }

    /// Where clients connect, for rows that need a bare socket.
    pub fn addresses(&self) -> tests::client::Door {
        self.server.door
    }

    /// Where the admin service listens.
    pub fn admin(&self) -> std::net::SocketAddr {
        self.server.admin
    }

    /// Memory of the process, in bytes.
    pub fn memory(&self) -> Result<u64> {
        self.server.memory()
    }

    /// CPU time that the process has used.
    pub fn cpu(&self) -> Result<Duration> {
        self.server.cpu()
    }

    /// A connection on which nothing was said yet, inside TLS where the way has it.
    pub async fn connect(&self, way: Way) -> Result<Raw> {
        let mut client = match way {
            Way::Direct => Client::open_direct(self.server.door, HOST).await?,
            Way::Plain | Way::StartTls => Client::open_plain(self.server.door, HOST).await?,
        };
        if way == Way::StartTls {
            client.begin_stream().await?;
            client.start_tls().await?;
        }
        client.expect_stream();
        Ok(Raw::over(client, HOST))
    }

    /// A stream whose header was said and whose features were heard.
    pub async fn stream(&self, way: Way) -> Result<Raw> {
        let mut raw = self.connect(way).await?;
        raw.begin_stream().await?;
        Ok(raw)
    }

    /// An authenticated stream that is not bound, its features heard.
    pub async fn authenticated(&self, way: Way, person: &Person) -> Result<Raw> {
        let mut raw = self.stream(way).await?;
        raw.authenticate(&person.user, &person.password, "SCRAM-SHA-256").await?;
        Ok(raw)
    }

    /// A bound session that has sent no presence.
    pub async fn session(&self, way: Way, person: &Person) -> Result<Raw> {
        let mut raw = self.authenticated(way, person).await?;
        raw.bind(None).await?;
        Ok(raw)
    }

    /// A session that is available and has its roster; its own presence was heard.
    pub async fn online(&self, way: Way, person: &Person) -> Result<Raw> {
        let mut raw = self.session(way, person).await?;
        go_online(&mut raw, None).await?;
        Ok(raw)
    }
}

fn owned(settings: &[(&str, &str)]) -> Settings {
    settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

//! HAProxy before two frontends, as it runs: whom it speaks for, where it sends nobody, what a client finds who comes back.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, PATIENCE},
    nodes::{Layout, Nodes, free_address},
    people::{Person, ping},
};
use tokio::{
    net::TcpSocket,
    process::{Child, Command},
    time::{Instant, interval},
};

use super::{deploy, read, run};

/// The frontends of a cluster, and HAProxy before them.
struct Proxied {
    nodes: Nodes,
    door: SocketAddr,
    _haproxy: Child,
}

impl Proxied {
    async fn start() -> Result<Proxied> {
        let metrics = [free_address(), free_address()];
        let nodes = Nodes::start_edited(Layout::Split, |all, node, config| {
            let at = all.iter().position(|n| n.name == node.name).context("one of them")?;
            let Some(metrics) = metrics.get(at) else { return Ok(config) };
            let config = config.replace("\n[c2s]\n", "\n[c2s]\nproxy_from = [\"127.0.0.1\"]\n");
            let config = config.replace("[node]\n", "[node]\ndrain_notice_s = 4\n");
            Ok(format!("{config}\n[metrics]\nlisten = \"{metrics}\"\n"))
        })
        .await?;
        // The very file, with the addresses of this test in the place of its own.
        let doors = [free_address(), free_address()];
        let mut config = read("haproxy/haproxy.cfg")?;
        let mut set = |from: &str, to: String| -> Result<()> {
            ensure!(config.matches(from).count() == 1, "`{from}` stands not once in haproxy.cfg");
            config = config.replace(from, &to);
            Ok(())
        };
        set("bind :5222", format!("bind {}", doors[0]))?;
        set("bind :5223", format!("bind {}", doors[1]))?;
        set("check port 5281 ", "check ".to_owned())?;
        set("maxconn 200000", "maxconn 200".to_owned())?;
        for (at, metrics) in metrics.iter().enumerate() {
            let (name, door) = (format!("front{}", at + 1), nodes.door(at));
            set(&format!("{name} {name}:5222"), format!("{name} {} port {}", door.c2s, metrics.port()))?;
            set(&format!("{name} {name}:5223"), format!("{name} {} port {}", door.direct, metrics.port()))?;
        }
        let file = nodes.nodes[0].folder.join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let haproxy = Command::new("haproxy")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("`haproxy` cannot be run; `tests/run` installs it")?;
        Ok(Proxied { nodes, door: doors[0], _haproxy: haproxy })
    }

    /// Comes online through HAProxy from an address of its own; it may take a moment until HAProxy knows who is there.
    async fn come_online(&self, person: &Person) -> Result<Client> {
        let end = Instant::now() + PATIENCE;
        let mut again = interval(Duration::from_millis(100));
        loop {
            again.tick().await;
            match self.try_once(person).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => {}
            }
        }
    }

    async fn try_once(&self, person: &Person) -> Result<Client> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.7:0".parse()?)?;
        let mut client = Client::over(socket.connect(self.door).await?, &person.host);
        client.begin_stream().await?;
        client.start_tls().await?;
        client.begin_stream().await?;
        client.authenticate(&person.user, &person.password, "SCRAM-SHA-256").await?;
        client.bind(Some("phone")).await?;
        client.send(&ping("localhost", "bound")).await?;
        client.wait_for("the pong", |n| n.attr("id") == Some("bound")).await?;
        Ok(client)
    }

    /// The node of the only session, and where its client comes from.
    async fn session(&self) -> Result<(String, String)> {
        let list = self.nodes.cli_at(2, &["session", "list", "--format", "json"]).await?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        ensure!(list.as_array().is_some_and(|list| list.len() == 1), "{list}");
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a text");
        Ok((text(&list[0]["node_name"])?, text(&list[0]["connection"]["peer_address"])?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_takes_the_config() -> Result<()> {
    let (well, said) =
        run("haproxy", &["-c", "-f", deploy("haproxy/haproxy.cfg").to_str().context("text")?]).await?;
    ensure!(well && !said.contains("WARNING") && !said.contains("ALERT"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_haproxy_come_back_when_their_node_drains_or_dies() -> Result<()> {
    let mut town = Proxied::start().await?;
    let person = Person::with_account(&town.nodes, "somebody").await?;
    let mut client = town.come_online(&person).await?;
    let (first, from) = town.session().await?;
    ensure!(from.starts_with("127.0.0.7:"), "HAProxy did not say whom it speaks for: {from}");

    // HAProxy sees that the node is not ready before its clients are told to go, and sends nobody there.
    let told = async {
        let all = client.up_to_end().await?;
        let told = all.last().is_some_and(|n| n.nodes().any(|n| n.name == "system-shutdown"));
        ensure!(told, "{all:?}");
        Ok(())
    };
    let drained = async { town.nodes.cli_at(2, &["node", "drain", &first]).await };
    let (said, ()) = tokio::try_join!(drained, told)?;
    ensure!(said.contains(&format!("{first} is empty: 1 clients left")), "{said}");
    let mut client = town.come_online(&person).await?;
    let (second, _) = town.session().await?;
    ensure!(first != second, "came back to `{first}`, which drains");
    town.nodes.cli_at(2, &["node", "undrain", &first]).await?;

    // The other one dies without a word; its client is back as soon as HAProxy knows that the first is ready.
    let at = usize::from(second == "front2");
    town.nodes.kill(at).await?;
    client.up_to_end().await?;
    let _client = town.come_online(&person).await?;
    let end = Instant::now() + PATIENCE;
    let mut look = interval(Duration::from_millis(100));
    loop {
        look.tick().await;
        // The session at the dead node stays in the list until its lease has run out.
        match town.session().await {
            Ok((node, _)) if node == first => return Ok(()),
            seen => ensure!(Instant::now() < end, "not back at `{first}`: {seen:?}"),
        }
    }
}

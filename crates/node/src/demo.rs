//! `rookery demo`: a cluster on loopback on which two users chat, and what became of it.

mod client;
mod plan;
mod processes;
mod story;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use client::{Client, Way};
use jid::BareJid;
use plan::Node;
use processes::Processes;
use proto::admin;
use story::Person;
use tokio::signal::unix::{SignalKind, signal};

use crate::{certificate, cli, ctl, parts::Failure};

/// Password of both users; the cluster listens on loopback only and forgets all at its end.
const PASSWORD: &str = "rookery";
/// How long the nodes may take to find each other.
const FORMATION: Duration = Duration::from_secs(90);
/// Pause between two looks at a node.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the demo; fails unless all of it worked.
pub fn run(demo: &cli::Demo) -> Result<(), Failure> {
    let nodes = plan::nodes(demo.split, demo.base_port)?;
    plan::check_ports(&nodes)?;
    let folder = tempfile::Builder::new().prefix("rookery-demo-").tempdir()?;
    // on this thread from start to end: the children end with the thread that started them
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut processes = Processes::default();
    let played = runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let mut play = Play { nodes: &nodes, folder: folder.path(), since: Instant::now() };
        tokio::select! {
            played = play.all(&mut processes, demo) => played,
            () = stop.asked() => if demo.once { Err("interrupted".into()) } else { Ok(()) },
        }
    });
    println!("stopping all nodes");
    let killed = processes.stop();
    if played.is_err() {
        let kept = folder.keep();
        eprintln!("logs and data of the nodes are kept in {}", kept.display());
    }
    if !killed.is_empty() {
        let names = killed.join(", ");
        return Err(played
            .err()
            .unwrap_or_else(|| format!("had to kill {names}: not stopped in time").into()));
    }
    played
}

/// The play with its stage.
struct Play<'a> {
    nodes: &'a [Node],
    folder: &'a Path,
    since: Instant,
}

impl Play<'_> {
    async fn all(&mut self, processes: &mut Processes, demo: &cli::Demo) -> Result<(), Failure> {
        let kind = match demo.split {
            true => "three backends and two frontends",
            false => "three nodes, each frontend and backend",
        };
        println!("Rookery demo: {kind}, on loopback");
        let cert = self.start(processes)?;
        tokio::select! {
            formed = self.formed() => formed?,
            failed = self.watch(processes) => return Err(failed),
        }
        let (alice, bob) = tokio::select! {
            told = self.chat(&cert) => told?,
            failed = self.watch(processes) => return Err(failed),
        };
        self.show().await?;
        if demo.once {
            println!("all of it worked");
            alice.client.close().await;
            bob.client.close().await;
            return Ok(());
        }
        self.explain(processes);
        // both stay, so that a real client has somebody to talk to
        tokio::spawn(alice.client.stay());
        tokio::spawn(bob.client.stay());
        self.stay(processes).await
    }

    /// Goes on while nodes are left: to kill one is part of the fun.
    async fn stay(&self, processes: &mut Processes) -> Result<(), Failure> {
        while processes.ids().next().is_some() {
            if let Some((name, status, _)) = processes.ended() {
                self.say(format_args!("{name} ended {}", processes::ending(status)));
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("no node is left".into())
    }

    fn say(&self, what: impl std::fmt::Display) {
        println!("{:6.1} s  {what}", self.since.elapsed().as_secs_f64());
    }

    /// Starts all nodes; the path of the certificate that they share.
    fn start(&self, processes: &mut Processes) -> Result<PathBuf, Failure> {
        let (files, _) = certificate::self_signed(self.folder, &["localhost".to_owned()])?;
        for node in self.nodes {
            let config = plan::config(node, self.nodes, self.folder, &files.cert, &files.key);
            processes.start(node, self.folder, &config)?;
        }
        for (node, id) in processes.ids() {
            let roles = node.roles().join(" and ");
            self.say(format_args!("{} started: {roles}, process {id}", node.name));
        }
        Ok(files.cert)
    }

    /// Waits until a node ends by itself, which is always a failure.
    async fn watch(&self, processes: &mut Processes) -> Failure {
        loop {
            if let Some((name, status, tail)) = processes.ended() {
                return format!("{name} ended {}\n{tail}", processes::ending(status)).into();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until every node serves and knows all others.
    async fn formed(&self) -> Result<(), Failure> {
        self.say("the nodes look for each other");
        let until = Instant::now() + FORMATION;
        for node in self.nodes {
            loop {
                match state(node).await {
                    Some(state) if state.serving && up(&state) == self.nodes.len() => break,
                    _ if Instant::now() > until => {
                        let limit = FORMATION.as_secs();
                        return Err(format!("{} did not join the cluster within {limit} s", node.name).into());
                    }
                    _ => tokio::time::sleep(LOOK).await,
                }
            }
            self.say(format_args!("{} is in the cluster", node.name));
        }
        Ok(())
    }

    async fn chat(&self, cert: &Path) -> Result<(Person, Person), Failure> {
        let mut ctl = ctl::connect(&self.nodes[0].admin_url()).await?;
        for name in ["alice", "bob"] {
            let jid = format!("{name}@localhost");
            let request =
                admin::CreateAccountRequest { jid, password: PASSWORD.to_owned(), ..Default::default() };
            let made = ctl.create_account(request).await;
            made.map_err(|e| format!("failed to create {name}@localhost: {}", e.message()))?;
        }
        self.say(format_args!("alice@localhost and bob@localhost created, password `{PASSWORD}`"));

        let mut frontends = self.nodes.iter().filter(|n| n.frontend);
        let (Some(first), Some(second)) = (frontends.next(), frontends.next()) else {
            return Err("the plan has too few frontends".into());
        };
        let mut alice = self.login("alice", first, Way::StartTls, cert).await?;
        let mut bob = self.login("bob", second, Way::DirectTls, cert).await?;
        story::appear(&mut alice).await?;
        story::appear(&mut bob).await?;
        self.say("both have their roster and are available");
        story::subscribe(&mut alice, &mut bob, "to").await?;
        self.say("alice subscribed to bob: bob agreed, alice sees that bob is available");
        story::subscribe(&mut bob, &mut alice, "both").await?;
        self.say("bob subscribed to alice: both have each other in their rosters");
        story::go_away(&mut bob, &mut alice).await?;
        self.say("bob went away: alice sees it");
        let measured = story::talk(&mut alice, &mut bob).await?;
        let round_trip = measured.round_trip.as_secs_f64() * 1e3;
        self.say(format_args!("alice wrote to bob and bob answered: {round_trip:.1} ms there and back"));
        let (count, took) = (story::MESSAGES, measured.messages.as_secs_f64() * 1e3);
        self.say(format_args!("{count} more messages arrived in order: {took:.0} ms"));
        Ok((alice, bob))
    }

    async fn login(&self, name: &str, node: &Node, way: Way, cert: &Path) -> Result<Person, Failure> {
        let (address, told, resource) = match way {
            Way::StartTls => (node.c2s(), "STARTTLS", "phone"),
            Way::DirectTls => (node.direct_tls(), "direct TLS", "laptop"),
        };
        let account = BareJid::new(&format!("{name}@localhost"))?;
        let tls = client::trust(cert, way)?;
        let (client, jid) = Client::login(&account, PASSWORD, resource, address, way, &tls).await?;
        self.say(format_args!("{name} logged in at {} with {told}, as {jid}", node.name));
        Ok(Person { client, jid })
    }

    /// The cluster and its sessions, as another node than alice's sees them.
    async fn show(&self) -> Result<(), Failure> {
        let last = self.nodes.last().unwrap_or(&self.nodes[0]);
        let mut ctl = ctl::connect(&last.admin_url()).await?;
        let state = ctl::state(&mut ctl).await?;
        println!("\n{}", ctl::status_table(&state));
        let sessions = ctl::sessions(&mut ctl, String::new()).await?;
        println!("{}", ctl::where_table(&sessions));
        let places: std::collections::BTreeSet<u64> = sessions.iter().map(|s| s.node).collect();
        if sessions.len() != 2 || places.len() != 2 {
            return Err("expected two sessions on two nodes".into());
        }
        Ok(())
    }

    fn explain(&self, processes: &Processes) {
        println!("The cluster stays up. Connect a client as alice@localhost or bob@localhost, password");
        println!(
            "`{PASSWORD}`; bob answers what he is told. The certificate is self-signed: accept it, or trust"
        );
        println!("{}", self.folder.join("tls/cert.pem").display());
        for (node, id) in processes.ids() {
            let (starttls, direct) = (node.c2s(), node.direct_tls());
            match node.frontend {
                true => println!("  {:<10} STARTTLS {starttls}, direct TLS {direct}", node.name),
                false => println!("  {:<10} no clients: a backend", node.name),
            }
            println!("             rookery cluster status --admin {}", node.admin_url());
            println!("             metrics http://{}/metrics; kill it with: kill -9 {id}", node.metrics());
        }
        println!("Stop everything with Ctrl-C.");
    }
}

async fn state(node: &Node) -> Option<admin::GetClusterResponse> {
    let mut client = ctl::connect(&node.admin_url()).await.ok()?;
    ctl::state(&mut client).await.ok()
}

fn up(state: &admin::GetClusterResponse) -> usize {
    state.nodes.iter().filter(|n| n.state == "up").count()
}

/// The signals that end the demo.
struct Stop(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

impl Stop {
    fn listen() -> std::io::Result<Stop> {
        Ok(Stop(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

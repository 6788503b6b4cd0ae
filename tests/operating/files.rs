//! A node that may open few files: it raises its limit, keeps the last ones for itself, and those who are connected notice nothing.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tests::{
    client::Client,
    metrics::page,
    nodes::{Layout, Nodes, free_address},
    people::{Person, ping},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, interval},
};

/// Limits that the node is started with.
const SOFT: u32 = 100;
const HARD: u32 = 256;
/// How often a node says that it is out of files.
const NO_MORE: &str = "no more clients are accepted";
const AGAIN: &str = "clients are accepted again";

/// Opens sockets until the node has closed some of them; those that it left open.
async fn crowd(door: SocketAddr) -> Result<Vec<TcpStream>> {
    const AT_ONCE: usize = 16;
    let mut kept = Vec::new();
    let mut refused = 0;
    while refused < 10 {
        let some = (0..AT_ONCE).map(|_| async {
            let mut socket = TcpStream::connect(door).await?;
            // What is refused is closed at once; what is not hears nothing, because it says nothing.
            let read = tokio::time::timeout(Duration::from_millis(500), socket.read(&mut [0])).await;
            anyhow::Ok(read.is_err().then_some(socket))
        });
        let some = try_join_all(some).await?;
        let before = kept.len();
        kept.extend(some.into_iter().flatten());
        refused += AT_ONCE - (kept.len() - before);
        ensure!(kept.len() < HARD as usize, "nothing is refused");
    }
    Ok(kept)
}

/// A message goes from one to the other, and an account is made: there are files for the store and operators.
async fn all_works(nodes: &Nodes, from: &mut Client, to: &mut Client, id: &str) -> Result<()> {
    let jid = to.jid.clone().context("not bound")?;
    from.send(&format!("<message to='{jid}' type='chat' id='{id}'><body>x</body></message>")).await?;
    to.wait_for("the message", |n| n.attr("id") == Some(id)).await?;
    from.send(&ping("localhost", id)).await?;
    from.wait_for("the pong", |n| n.attr("id") == Some(id)).await?;
    let carol = Person::with_account(nodes, "carol").await?;
    from.send(&format!("<message to='{}' type='chat'><body>for later</body></message>", carol.bare())).await
}

fn times(log: &str, line: &str) -> usize {
    log.matches(line).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_runs_out_of_files_refuses_newcomers_and_serves_all_others() -> Result<()> {
    let metrics = free_address();
    let edit = |_: &[_], _: &_, config: String| {
        Ok(format!(
            "{config}\n[metrics]\nlisten = \"{metrics}\"\n[limits]\nfirst_byte_timeout_s = 600\n\
             login_timeout_s = 600\n"
        ))
    };
    let nodes = Nodes::start_limited(Layout::One, Some((SOFT, HARD)), edit).await?;
    let raised = format!("before={SOFT} now={HARD}");
    nodes.until_logged(0, &raised, Duration::from_secs(1)).await?;
    let (alice, bob) =
        (Person::with_account(&nodes, "alice").await?, Person::with_account(&nodes, "bob").await?);
    let door = nodes.door(0);
    let mut alices = alice.come_online(door, "phone").await?;
    let mut bobs = bob.come_online(door, "desk").await?;

    for round in 1..=2 {
        let crowd = crowd(door.c2s).await?;
        ensure!(crowd.len() >= 32, "only {} were let in", crowd.len());
        all_works(&nodes, &mut alices, &mut bobs, &format!("full-{round}")).await?;
        let full = page(metrics).await?;
        let value = |name: &str| full.get(name).copied().with_context(|| format!("no `{name}`"));
        ensure!(value("rookery_out_of_files")? == 1.0);
        ensure!(value("rookery_open_files_max")? == f64::from(HARD));
        let open = value("rookery_open_files")?;
        ensure!(open >= f64::from(HARD * 3 / 4 - 8) && open < f64::from(HARD), "{open} files are open");
        let refused = value("rookery_connections_refused_total{bound=\"open-files\"}")?;
        ensure!(refused >= f64::from(10 * round), "{refused} were refused");
        ensure!(value("rookery_accept_errors_total")? == 0.0, "the system had no file at all");
        let log = nodes.until_logged(0, NO_MORE, Duration::from_secs(5)).await?;
        ensure!(times(&log, NO_MORE) == round as usize, "said too often:\n{log}");

        drop(crowd);
        let end = Instant::now() + Duration::from_secs(20);
        let mut look = interval(Duration::from_millis(50));
        while page(metrics).await?["rookery_connections"] > 2.0 {
            look.tick().await;
            ensure!(Instant::now() < end, "the crowd does not leave");
        }
        bob.come_online(door, &format!("late-{round}")).await?;
        all_works(&nodes, &mut alices, &mut bobs, &format!("again-{round}")).await?;
        ensure!(page(metrics).await?["rookery_out_of_files"] == 0.0);
        let log = nodes.until_logged(0, AGAIN, Duration::from_secs(5)).await?;
        ensure!(times(&log, AGAIN) == round as usize, "said too often:\n{log}");
    }
    Ok(())
}

/// Where the system must make room for a file that a client is, the thread that accepts it stands still for some 10 ms,
/// and all of its clients with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_room_for_the_files_of_many_clients_before_the_first_one_comes() -> Result<()> {
    for limit in [HARD, 4_096] {
        let nodes =
            Nodes::start_limited(Layout::One, Some((limit, limit)), |_, _, config| Ok(config)).await?;
        // Whoever has had a handshake was accepted; a connection alone may still wait in the system.
        let _first = Client::open_direct(nodes.door(0), "localhost").await?;
        let process = nodes.process(0).context("the node has ended")?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).context("no FDSize")?;
        let size: u32 = size.trim().parse()?;
        ensure!(size >= limit && size < 2 * limit, "there is room for {size} files of {limit}");
    }
    Ok(())
}

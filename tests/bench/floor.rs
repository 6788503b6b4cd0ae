//! The least that a login can cost on this machine: a server that knows nothing is asked as much, and answers as many
//! bytes, in as many turns, over the same TLS. What it takes is the kernel's, TLS's and tokio's.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Load,
    link::{self, HEADER, Link},
    middle,
    process::cpu_us,
};

/// The hidden word by which the bench starts this server as a process of its own.
pub const SERVER: &str = "floor-server";

/// Bytes that a client says and a server answers, turn by turn, as `bench login` does it: header and features,
/// challenge, success, header and features, the bound address, and roster and presence together.
const TURNS: [(usize, usize); 6] =
    [(HEADER.len(), 560), (120, 150), (150, 110), (HEADER.len(), 900), (130, 170), (80, 330)];

struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // one that is gone already leaves nothing to kill
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints what connections with such turns cost beyond their handshakes.
pub async fn run(load: Load) -> Result<()> {
    let child = Command::new(std::env::current_exe()?).arg(SERVER).stdout(Stdio::piped()).spawn()?;
    let mut server = Server { child };
    let said = server.child.stdout.take().context("it has no output")?;
    let mut line = String::new();
    BufReader::new(tokio::process::ChildStdout::from_std(said)?).read_line(&mut line).await?;
    let address = line.trim().to_owned();
    let process = server.child.id();
    // What the first of them pay for is not counted.
    talk(&address, load, TURNS.len()).await?;
    let (mut handshakes, mut beyond) = (vec![], vec![]);
    for _ in 0..load.rounds {
        let cpu = cpu_us(process)?;
        talk(&address, load, 0).await?;
        let handshake = cpu_us(process)? - cpu;
        let cpu = cpu_us(process)?;
        talk(&address, load, TURNS.len()).await?;
        let all = cpu_us(process)? - cpu;
        let each = |cpu: u64| cpu as f64 / load.count as f64;
        handshakes.push(each(handshake));
        beyond.push(each(all.saturating_sub(handshake)));
    }
    let [handshake, beyond] = [handshakes, beyond].map(|mut figures| middle(&mut figures));
    println!(
        "a login's turns with a server that knows nothing: {:.0} us of its CPU (least {:.0}) for a connection with its TLS \
         handshake and {:.0} (least {:.0}) beyond it; median of {} rounds of {}, {} at a time",
        handshake.0, handshake.1, beyond.0, beyond.1, load.rounds, load.count, load.at_once,
    );
    Ok(())
}

/// So many connections, each with the first `turns` of the turns.
async fn talk(address: &str, load: Load, turns: usize) -> Result<()> {
    let tls = link::tls_config()?;
    let mut running = JoinSet::new();
    for lane in 0..load.at_once {
        let (address, tls) = (address.to_owned(), tls.clone());
        running.spawn(async move {
            for _ in (lane..load.count).step_by(load.at_once) {
                let mut link = Link::connect(&address, &tls).await?;
                for (said, answered) in &TURNS[..turns] {
                    link.write(&"x".repeat(*said)).await?;
                    link.buffer.clear();
                    while link.buffer.len() < *answered {
                        link.fill().await?;
                    }
                }
                link.close().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(end) = running.join_next().await {
        end??;
    }
    Ok(())
}

/// The server: says where it listens, and answers until it is killed.
pub async fn serve() -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    LocalSet::new()
        .run_until(async {
            loop {
                let (socket, _) = listener.accept().await?;
                tokio::task::spawn_local(answer(acceptor.clone(), socket));
            }
        })
        .await
}

/// One connection, to its end. Its end is the client's: nobody asks how it went.
async fn answer(acceptor: TlsAcceptor, socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut tls = acceptor.accept(socket).await?;
    let mut heard = Vec::new();
    for (said, answered) in TURNS {
        while heard.len() < said {
            if tls.read_buf(&mut heard).await? == 0 {
                tls.shutdown().await?;
                return Ok(());
            }
        }
        heard.clear();
        tls.write_all(&vec![b'x'; answered]).await?;
        tls.flush().await?;
    }
    while tls.read_buf(&mut heard).await? > 0 {}
    tls.shutdown().await?;
    Ok(())
}

//! A SOCKS proxy (RFC 1928) that knows one host, and leads whoever asks for it to the door of one node.
//!
//! So a client that only knows the host of its account finds a node, at whatever port, and asks no name server.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, bail, ensure};
use tests::client::Door;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
/// An address that is four bytes, and one that is a name.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const SUCCEEDED: u8 = 0;
const NOT_ALLOWED: u8 = 2;
/// Where clients look for a host that has no SRV records (RFC 6120, 3.2.2).
const XMPP_CLIENT: u16 = 5222;

/// Ends with this value.
pub struct Proxy {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Leads who asks for the XMPP clients' port of this host to this door.
    pub async fn to(host: &str, door: Door) -> Result<Proxy> {
        let listener = TcpListener::bind((door.c2s.ip(), 0)).await?;
        let (address, host) = (listener.local_addr()?, Arc::<str>::from(host));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let host = host.clone();
                tokio::spawn(async move {
                    // However it ends, only its client is concerned.
                    drop(lead(near, &host, door).await);
                });
            }
        });
        Ok(Proxy { address, task })
    }
}

async fn lead(mut near: TcpStream, host: &str, door: Door) -> Result<()> {
    let methods = bytes::<2>(&mut near).await?;
    ensure!(methods[0] == VERSION, "SOCKS {}", methods[0]);
    near.read_exact(&mut vec![0; methods[1].into()]).await?;
    near.write_all(&[VERSION, NO_AUTHENTICATION]).await?;

    let [_, command, _, kind, length] = bytes::<5>(&mut near).await?;
    ensure!((command, kind) == (CONNECT, NAME), "command {command}, address of kind {kind}");
    let mut name = vec![0; length.into()];
    near.read_exact(&mut name).await?;
    let port = near.read_u16().await?;
    // From where it connects is nobody's concern.
    let reply = |code| [VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0];
    if (&*name, port) != (host.as_bytes(), XMPP_CLIENT) {
        near.write_all(&reply(NOT_ALLOWED)).await?;
        bail!("`{}` at port {port} is asked for", String::from_utf8_lossy(&name));
    }
    let mut far = door.space.connect(door.c2s).await?;
    near.write_all(&reply(SUCCEEDED)).await?;
    copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

async fn bytes<const N: usize>(near: &mut TcpStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    near.read_exact(&mut bytes).await?;
    Ok(bytes)
}

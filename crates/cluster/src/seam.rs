//! The one seam between a node and the world: chance, sockets, threads that may block, and the disk of the log. With
//! the feature `simulation` a test may put another world behind it; without, nothing but the real one is compiled.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

#[cfg(feature = "simulation")]
use crate::simulation::{self, world};

/// Whether this thread lives in a simulated world: then all that a node does happens on it.
pub(crate) fn is_simulated() -> bool {
    #[cfg(feature = "simulation")]
    return world().is_some();
    #[cfg(not(feature = "simulation"))]
    false
}

/// 128 random bits of the TLS library's generator.
pub(crate) fn random_bits() -> u128 {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        return world.random();
    }
    let mut bytes = [0; 16];
    // The operating system's generator does not fail once it is seeded.
    assert!(aws_lc_rs::rand::fill(&mut bytes).is_ok(), "the random generator works");
    u128::from_le_bytes(bytes)
}

/// [`random_bits`] as openraft asks for them, for its election timeouts.
pub(crate) struct Chance;

impl rand::RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        random_bits() as u32
    }

    fn next_u64(&mut self) -> u64 {
        random_bits() as u64
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(16) {
            let bits = random_bits().to_le_bytes();
            part.copy_from_slice(&bits[..part.len()]);
        }
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

/// Does what may block where that holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Writes to a file of the log.
pub(crate) fn write_file(path: &Path, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        world.write(path, at, bytes.len())?;
    }
    #[cfg(not(feature = "simulation"))]
    let _ = path;
    file.write_all_at(bytes, at)
}

/// Makes what was written to a file of the log safe.
pub(crate) fn sync_file(path: &Path, file: &File) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        return world.sync(path);
    }
    #[cfg(not(feature = "simulation"))]
    let _ = path;
    file.sync_data()
}

/// How long a sync takes beside the time that it takes.
#[cfg(feature = "simulation")]
pub(crate) fn sync_takes() -> std::time::Duration {
    world().map(|world| world.sync_takes()).unwrap_or_default()
}

/// After how many bytes of log a snapshot is due, where that is not `usual`.
pub(crate) fn snapshot_log_bytes(usual: u64) -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        return world.snapshot_log_bytes().min(usual);
    }
    usual
}

/// A connection to another node.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn simulation::Socket>),
}

impl Socket {
    /// Connects to `host:port`.
    pub(crate) async fn connect(to: &str) -> io::Result<Socket> {
        #[cfg(feature = "simulation")]
        if let Some(connecting) = world().map(|world| world.connect(to)) {
            return connecting.await.map(Socket::Simulated);
        }
        TcpStream::connect(to).await.map(Socket::Tcp)
    }

    /// Small messages that others wait for are sent at once.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.set_nodelay(true),
            #[cfg(feature = "simulation")]
            Socket::Simulated(_) => Ok(()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(socket) => Pin::new(socket).poll_read(cx, out),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => Pin::new(socket).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => Pin::new(socket).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Tcp(socket) => socket.is_write_vectored(),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(feature = "simulation")]
            Socket::Simulated(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// Takes connections of other nodes.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn simulation::Listener>),
}

impl Listener {
    pub(crate) async fn bind(at: SocketAddr) -> io::Result<Listener> {
        #[cfg(feature = "simulation")]
        if let Some(world) = world() {
            return world.listen(at).map(Listener::Simulated);
        }
        TcpListener::bind(at).await.map(Listener::Tcp)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            #[cfg(feature = "simulation")]
            Listener::Simulated(listener) => Ok(listener.address()),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                listener.accept().await.map(|(socket, from)| (Socket::Tcp(socket), from))
            }
            #[cfg(feature = "simulation")]
            Listener::Simulated(listener) => {
                listener.accept().await.map(|(socket, from)| (Socket::Simulated(socket), from))
            }
        }
    }
}

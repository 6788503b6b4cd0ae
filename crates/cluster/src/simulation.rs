//! What a simulated world gives to the nodes that run in it, in place of the real one: see `seam`.

use std::{cell::RefCell, fmt, io, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection in a simulated world.
pub trait Socket: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

/// Takes connections in a simulated world.
pub trait Listener: fmt::Debug + Send + Sync {
    /// The next connection, and who makes it.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Socket>, SocketAddr)>>;
    /// Where it listens.
    fn address(&self) -> SocketAddr;
}

/// A simulated world. It knows which of its nodes is running at the moment, since one runs at a time.
pub trait World {
    /// 128 bits that only look random.
    fn random(&self) -> u128;

    /// Listens for connections to the node that runs now.
    ///
    /// # Errors
    /// As of a real listener.
    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Connects the node that runs now with whoever listens at `to`.
    fn connect(&self, to: &str) -> BoxFuture<'static, io::Result<Box<dyn Socket>>>;

    /// Told before bytes are written to a file; they are not safe until it is synced.
    ///
    /// # Errors
    /// The disk takes no more.
    fn write(&self, file: &Path, at: u64, bytes: usize) -> io::Result<()>;

    /// Told when all that was written to a file is to be safe.
    ///
    /// # Errors
    /// The disk fails.
    fn sync(&self, file: &Path) -> io::Result<()>;

    /// How long the disk of the node that runs now takes for a sync.
    fn sync_takes(&self) -> Duration;

    /// By how many bytes a log grows until a snapshot is due.
    fn snapshot_log_bytes(&self) -> u64;
}

thread_local! {
    static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// Everything that runs on this thread lives in `world` from now on.
pub fn enter(world: Rc<dyn World>) {
    WORLD.with(|here| *here.borrow_mut() = Some(world));
}

/// This thread is in the real world again.
pub fn leave() {
    WORLD.with(|here| here.borrow_mut().take());
}

/// The world in which this thread lives, if it is a simulated one.
pub(crate) fn world() -> Option<Rc<dyn World>> {
    WORLD.with(|here| here.borrow().clone())
}

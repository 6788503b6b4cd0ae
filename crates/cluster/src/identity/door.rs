//! Lets other nodes in: accepts sockets, shakes hands within bounds, and says who each caller is.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    Caller,
    audit::{Audit, Reason},
    credentials::Credentials,
};
use crate::{
    links::{Links, Registration},
    seam::{Listener, Socket},
    table::TableView,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; further sockets wait in the system's queue.
const HANDSHAKES: usize = 256;
/// Callers without a certificate at a time; further ones are closed.
const STRANGERS: usize = 32;
/// How long a caller without a certificate may stay: a token is redeemed in one call.
const STRANGER_STAYS: Duration = Duration::from_secs(30);
/// After an error of the listener, as when there are no more open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What the door knows.
pub(crate) struct Door {
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) links: Arc<Links>,
    pub(crate) view: Arc<TableView>,
    pub(crate) audit: Arc<Audit>,
}

/// A connection of another node.
pub(crate) struct Incoming {
    io: Io,
    caller: Caller,
    /// Ready when the caller was removed from the cluster, or has stayed too long; then the connection ends.
    cut: Cut,
    _registered: Option<Registration>,
    _permit: Option<OwnedSemaphorePermit>,
}

enum Io {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

enum Cut {
    Never,
    WhenRemoved(oneshot::Receiver<()>),
    After(Pin<Box<tokio::time::Sleep>>),
    Done,
}

/// Accepts for as long as somebody takes what comes in.
pub(crate) fn open(listener: Listener, door: Door) -> ReceiverStream<Result<Incoming, io::Error>> {
    let (connections, queue) = mpsc::channel(64);
    tokio::spawn(accept(listener, Arc::new(door), connections));
    ReceiverStream::new(queue)
}

async fn accept(listener: Listener, door: Arc<Door>, connections: mpsc::Sender<Result<Incoming, io::Error>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        // Never closed.
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a link");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Small messages that others wait for.
        drop(socket.set_nodelay());
        let (door, strangers, connections) = (door.clone(), strangers.clone(), connections.clone());
        tokio::spawn(async move {
            if let Some(incoming) = door.let_in(socket, from, &strangers).await {
                drop(permit);
                // Without a receiver the node stops.
                let _ = connections.send(Ok(incoming)).await;
            }
        });
    }
}

impl Door {
    async fn let_in(&self, socket: Socket, from: SocketAddr, strangers: &Arc<Semaphore>) -> Option<Incoming> {
        let Some(credentials) = &self.credentials else {
            let caller = Caller::plain(self.view.clone(), self.audit.clone());
            let io = Io::Plain(socket);
            return Some(Incoming { io, caller, cut: Cut::Never, _registered: None, _permit: None });
        };
        let acceptor = TlsAcceptor::from(credentials.server());
        let refused = |text: &str| {
            self.audit.refused(Reason::Certificate, text, "", &from.to_string());
            None
        };
        let tls = match timeout(HANDSHAKE, acceptor.accept(socket)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return refused(&format!("the TLS handshake failed: {error}")),
            Err(_) => return refused("the TLS handshake took too long"),
        };
        let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let caller = Caller::over_tls(certificate, Some(from), self.view.clone(), self.audit.clone());
        let (mut registered, mut permit, mut cut) = (None, None, Cut::Never);
        if let Some(name) = caller.name() {
            let (registration, removed) = self.links.register(name.key);
            (registered, cut) = (Some(registration), Cut::WhenRemoved(removed));
        } else if caller.is_stranger() {
            match strangers.clone().try_acquire_owned() {
                Ok(place) => permit = Some(place),
                Err(_) => {
                    self.audit.refused(
                        Reason::Crowd,
                        "too many without a certificate",
                        "",
                        &from.to_string(),
                    );
                    return None;
                }
            }
            cut = Cut::After(Box::pin(tokio::time::sleep(STRANGER_STAYS)));
        }
        let io = Io::Tls(Box::new(tls));
        Some(Incoming { io, caller, cut, _registered: registered, _permit: permit })
    }
}

impl Connected for Incoming {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Incoming {
    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        let over = match &mut self.cut {
            Cut::Never => false,
            Cut::Done => true,
            Cut::WhenRemoved(removed) => Pin::new(removed).poll(cx).is_ready(),
            Cut::After(time) => time.as_mut().poll(cx).is_ready(),
        };
        if over {
            // A future that was ready is not asked again.
            self.cut = Cut::Done;
        }
        over
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the caller may not stay")
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(cut_off()));
        }
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, out),
            Io::Tls(io) => Pin::new(io).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

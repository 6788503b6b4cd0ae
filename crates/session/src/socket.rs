//! A client's socket, in the clear or under TLS, whose two halves are polled by one task without a lock.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// Bytes read at once; the buffer is one per arbiter, so that an idle session owns none.
pub(crate) const SCRATCH: usize = 16 * 1024;

/// Bytes written without a turn for others; more than nearly all that is ever written at once.
const SLICE: usize = 128 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// The socket of one client.
pub(crate) struct Wire(RefCell<Socket>);

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Taken for a handshake that did not end well.
    Lost,
}

impl Wire {
    pub(crate) fn new(socket: TcpStream) -> Wire {
        Wire(RefCell::new(Socket::Plain(socket)))
    }

    /// Waits for the first byte of a new socket without taking it.
    pub(crate) async fn peek(&self) -> io::Result<()> {
        poll_fn(|cx| match &*self.0.borrow() {
            // Readiness alone may be said too early: only a look at the byte tells.
            Socket::Plain(tcp) => tcp.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map_ok(|_| ()),
            Socket::Tls(_) => Poll::Ready(Ok(())),
            Socket::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        })
        .await
    }

    /// Appends what the client sent to `into`, no more than `max` bytes; 0 is the end of the stream.
    pub(crate) async fn read(&self, into: &mut BytesMut, max: usize) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, into, max)).await
    }

    /// As [`Wire::read`], but `None` at once where nothing is there yet, and no more than `max` bytes.
    pub(crate) async fn read_now(&self, into: &mut BytesMut, max: usize) -> Option<io::Result<usize>> {
        poll_fn(|cx| match self.poll_read(cx, into, max) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll_read(&self, cx: &mut Context<'_>, into: &mut BytesMut, max: usize) -> Poll<io::Result<usize>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(&mut buffer[..max.clamp(1, SCRATCH)]);
            ready!(match &mut *self.0.borrow_mut() {
                Socket::Plain(tcp) => Pin::new(tcp).poll_read(cx, &mut read),
                Socket::Tls(tls) => Pin::new(tls).poll_read(cx, &mut read),
                Socket::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            })?;
            into.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        })
    }

    /// Writes all of `bytes` and hands them to the kernel. What is long is written in slices, between which the
    /// other sessions of the arbiter have their turn.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut slices = bytes.chunks(SLICE).peekable();
        while let Some(slice) = slices.next() {
            let mut written = 0;
            poll_fn(|cx| {
                let socket = &mut *self.0.borrow_mut();
                while written < slice.len() {
                    let n = ready!(socket.poll_write(cx, &slice[written..]))?;
                    if n == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    written += n;
                }
                Poll::Ready(io::Result::Ok(()))
            })
            .await?;
            if slices.peek().is_some() {
                // Other arbiters go first where cores are few, and then the sockets of this one: a wake-up of our own
                // would come before them.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
        poll_fn(|cx| self.0.borrow_mut().poll_flush(cx)).await
    }

    /// Says that no more will be written (TLS: `close_notify` first).
    pub(crate) async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| match &mut *self.0.borrow_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Socket::Lost => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Does the server's side of a TLS handshake, with the settings that `choose` has for what the client asks; a
    /// socket that fails it is lost.
    pub(crate) async fn handshake<T>(
        &self,
        choose: impl FnOnce(&ClientHello<'_>) -> (Arc<ServerConfig>, T),
    ) -> io::Result<T> {
        let tcp = match self.0.replace(Socket::Lost) {
            Socket::Plain(tcp) => tcp,
            other => {
                self.0.replace(other);
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        // Boxed: the state of a handshake is large and soon gone.
        let asked = Box::pin(LazyConfigAcceptor::new(Acceptor::default(), tcp)).await?;
        let (config, chosen) = choose(&asked.client_hello());
        let tls = Box::pin(asked.into_stream(config)).await?;
        self.0.replace(Socket::Tls(Box::new(tls)));
        Ok(chosen)
    }

    /// Looks at the TLS connection, if there is one.
    pub(crate) fn tls<T>(&self, look: impl FnOnce(&rustls::ServerConnection) -> T) -> Option<T> {
        match &*self.0.borrow() {
            Socket::Tls(tls) => Some(look(tls.get_ref().1)),
            Socket::Plain(_) | Socket::Lost => None,
        }
    }
}

impl Socket {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Socket::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
            Socket::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Socket::Lost => Poll::Ready(Ok(())),
        }
    }
}

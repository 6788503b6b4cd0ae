//! One connection to the server: bytes out, elements in.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::scanner::{Piece, Scanner, Stanza};

/// What may wait to be read as one element, in bytes.
const BUFFER_MAX: usize = 64 << 20;
/// Room that a read is given, in bytes.
const READ: usize = 16 << 10;

/// A socket with TLS or without.
pub enum Transport {
    /// Without.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, task: &mut Task<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_read(task, into),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(task, into),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_write(task, bytes),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(task, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_flush(task),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(task),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(task),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(task),
        }
    }
}

/// The talking half; its copies share one connection.
#[derive(Clone)]
pub struct Writer {
    half: Arc<Mutex<WriteHalf<Transport>>>,
    patience: Duration,
    /// Put behind all that is written: a request for an acknowledgement (XEP-0198), or nothing.
    trailer: &'static str,
}

impl Writer {
    /// Writes all of it, and for stream management what asks for an acknowledgement.
    ///
    /// # Errors
    /// Where the connection has ended, or takes no bytes for too long.
    pub async fn write(&self, text: &str) -> Result<()> {
        let mut half = self.half.lock().await;
        let writing = async {
            half.write_all(text.as_bytes()).await?;
            if !self.trailer.is_empty() {
                half.write_all(self.trailer.as_bytes()).await?;
            }
            half.flush().await
        };
        let written = timeout(self.patience, writing).await;
        written.context("the server reads nothing")?.context("failed to write")
    }
}

/// The listening half.
pub struct Reader {
    half: ReadHalf<Transport>,
    writer: Writer,
    buffer: Vec<u8>,
    done: usize,
    scanner: Scanner,
    patience: Duration,
    management: Option<Management>,
}

/// What a client keeps for stream management (XEP-0198).
#[derive(Default)]
struct Management {
    handled: u32,
    asked: bool,
}

impl Reader {
    /// Reads what the socket has, at least one byte. Nothing is lost where it is not waited for to the end.
    ///
    /// # Errors
    /// Where the connection has ended, or an element is too long.
    pub async fn fill(&mut self) -> Result<()> {
        if let Some(management) = self.management.as_mut().filter(|management| management.asked) {
            management.asked = false;
            let answer = format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", management.handled);
            self.writer.write(&answer).await?;
        }
        if self.done > 0 {
            self.buffer.drain(..self.done);
            self.scanner.forget(self.done);
            self.done = 0;
        }
        if self.buffer.len() > BUFFER_MAX {
            bail!("an element of more than {BUFFER_MAX} bytes");
        }
        self.buffer.reserve(READ);
        if self.half.read_buf(&mut self.buffer).await.context("failed to read")? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }

    /// The next element that is here already.
    ///
    /// # Errors
    /// Where the server ended the stream, or sends no XML.
    pub fn pop(&mut self) -> Result<Option<Range<usize>>> {
        while let Some(piece) = self.scanner.next(&self.buffer)? {
            let range = match piece {
                Piece::Header(range) => {
                    self.done = range.end;
                    continue;
                }
                Piece::End => bail!("the server ended the stream"),
                Piece::Element(range) => range,
            };
            self.done = range.end;
            let stanza = Stanza(&self.buffer[range.clone()]);
            // Names of stanzas begin with other letters than those of acknowledgements, `r` and `a`.
            match stanza.name() {
                b"stream:error" => bail!("the server ended the stream: {}", stanza.text()),
                b"r" => self.management.iter_mut().for_each(|management| management.asked = true),
                b"a" => {}
                b"message" | b"presence" | b"iq" => {
                    if let Some(management) = &mut self.management {
                        management.handled = management.handled.wrapping_add(1);
                    }
                    return Ok(Some(range));
                }
                _ => return Ok(Some(range)),
            }
        }
        Ok(None)
    }

    /// What stands in such a range, until more is read.
    pub fn stanza(&self, range: Range<usize>) -> Stanza<'_> {
        Stanza(&self.buffer[range])
    }

    /// Reads until there is an element that is wanted, and forgets the others.
    ///
    /// # Errors
    /// As `fill` and `pop`, or where it does not come in time.
    pub async fn wait_for(&mut self, wanted: impl Fn(Stanza<'_>) -> bool) -> Result<String> {
        let patience = self.patience;
        let search = async {
            loop {
                while let Some(range) = self.pop()? {
                    if wanted(self.stanza(range.clone())) {
                        return Ok(self.stanza(range).text());
                    }
                }
                self.fill().await?;
            }
        };
        timeout(patience, search).await.context("nothing came in time")?
    }

    /// As `wait_for`, the answer to a request with this id.
    ///
    /// # Errors
    /// As `wait_for`, or where the answer is an error.
    pub async fn answer(&mut self, id: &str) -> Result<String> {
        let id = id.as_bytes();
        let answer =
            self.wait_for(|stanza| stanza.name() == b"iq" && stanza.attribute(b"id") == Some(id)).await?;
        if Stanza(answer.as_bytes()).is_error() {
            bail!("the server answers {answer}");
        }
        Ok(answer)
    }

    /// Counts from here on what is handled, for acknowledgements that the server asks for.
    pub fn begin_management(&mut self) {
        self.management = Some(Management::default());
    }

    /// Gives the memory of its buffer back, as far as nothing is in it.
    pub fn rest(&mut self) {
        if self.done == self.buffer.len() {
            (self.buffer, self.done, self.scanner) = (Vec::new(), 0, Scanner::default());
        }
    }
}

/// Both halves of a connection.
pub struct Link {
    /// The listening half.
    pub reader: Reader,
    /// The talking half.
    pub writer: Writer,
    /// The full JID, once it is bound.
    pub jid: String,
}

impl Link {
    /// A link over a socket; how long it waits for an answer.
    pub fn over(transport: Transport, patience: Duration) -> Link {
        let (reading, writing) = tokio::io::split(transport);
        let writer = Writer { half: Arc::new(Mutex::new(writing)), patience, trailer: "" };
        let reader = Reader {
            half: reading,
            writer: writer.clone(),
            buffer: Vec::new(),
            done: 0,
            scanner: Scanner::default(),
            patience,
            management: None,
        };
        Link { reader, writer, jid: String::new() }
    }

    /// Asks for an acknowledgement behind each write from here on (XEP-0198).
    pub fn ask_behind_writes(&mut self) {
        self.writer.trailer = "<r xmlns='urn:xmpp:sm:3'/>";
    }

    /// The socket again.
    ///
    /// # Errors
    /// Where a copy of the writer is still in use.
    pub fn into_transport(self) -> Result<Transport> {
        let Link { reader, writer, .. } = self;
        let Reader { half, writer: other, .. } = reader;
        drop(other);
        let writing = Arc::into_inner(writer.half).context("the connection is in use")?;
        Ok(half.unsplit(writing.into_inner()))
    }

    /// Ends the stream and the connection, and waits until the server has done so, whether with an alert or without.
    ///
    /// # Errors
    /// Where that takes too long.
    pub async fn close(mut self) -> Result<()> {
        // One that is gone already is closed.
        let _ = self.writer.write("</stream:stream>").await;
        let patience = self.reader.patience;
        let ending = async {
            loop {
                match self.reader.pop() {
                    Err(_) => break,
                    Ok(Some(_)) => {}
                    Ok(None) if self.reader.fill().await.is_err() => break,
                    Ok(None) => {}
                }
            }
            let _ = self.writer.half.lock().await.shutdown().await;
        };
        timeout(patience, ending).await.context("the server does not end the stream")
    }

    /// Ends the connection without a word on the stream, and waits for its end.
    ///
    /// # Errors
    /// Where that takes too long.
    pub async fn hang_up(mut self) -> Result<()> {
        let patience = self.reader.patience;
        let ending = async {
            let _ = self.writer.half.lock().await.shutdown().await;
            while self.reader.fill().await.is_ok() {}
        };
        timeout(patience, ending).await.context("the server does not close the connection")
    }
}

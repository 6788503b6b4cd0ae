//! One client's connection: the inbound half reads and hands on, the outbound half writes what waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hooks::{How, Passage, SessionEvent, SessionView, Verdict};
use router::{Delivery, End, Mailbox};
use stanza::{Condition, Kind, Stanza, StanzaError, StreamCondition, StreamError, ns};
use stream::negotiation::stray;
use stream::writer::ending;
use stream::{ReadError, Reader, StreamEvent, Writer, features};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::claim::Held;
use crate::gate::Permit;
use crate::outcome::{Farewell, Outcome};
use crate::shape::{Fault, stamp};
use crate::shaper::Shaper;
use crate::socket::{SCRATCH, Wire};
use crate::world::World;

/// A socket with what both halves of its connection share. Lives on one arbiter.
pub(crate) struct Connection {
    pub world: Arc<World>,
    pub wire: Wire,
    pub peer: SocketAddr,
    /// Given back when all of the connection has ended.
    pub permit: Permit,
    /// How fast the client is read; `None`: as fast as it sends.
    shaper: RefCell<Option<Shaper>>,
    /// A stanza is on the wire in part: nothing else may be written.
    torn: Cell<bool>,
    /// There is a stream to close, and nobody has closed it yet.
    open: Cell<bool>,
    /// What the cluster was asked to give this client, to be taken back at the end.
    pub held: Held,
    /// Answers of the inbound half that wait for the outbound half.
    replies: RefCell<BytesMut>,
    /// The outbound half, when it waits for replies or mail.
    writer: Cell<Option<Waker>>,
    /// The inbound half, when it waits for room among the replies.
    reader: Cell<Option<Waker>>,
    /// What the inbound half may still do.
    pub pace: Cell<Pace>,
    /// The inbound half has input that it took from the socket and not handed on.
    pub busy: Cell<bool>,
    /// Whether the inbound half waits for the lease of this node before it takes anything.
    pub fenced: Cell<bool>,
}

/// What the inbound half may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Read on.
    Read,
    /// Hand on what was read, and then stop.
    Finish,
    /// Stop behind the stanza at hand.
    Stop,
}

impl Connection {
    pub(crate) fn new(world: Arc<World>, socket: TcpStream, peer: SocketAddr, permit: Permit) -> Connection {
        let limits = &world.config.limits;
        let shaper = limits.hold_for(peer.ip()).then(|| Shaper::new(limits, Instant::now()));
        Connection {
            permit,
            shaper: RefCell::new(shaper),
            world,
            wire: Wire::new(socket),
            peer,
            torn: Cell::new(false),
            open: Cell::new(false),
            held: Held::default(),
            replies: RefCell::new(BytesMut::new()),
            writer: Cell::new(None),
            reader: Cell::new(None),
            pace: Cell::new(Pace::Read),
            busy: Cell::new(false),
            fenced: Cell::new(false),
        }
    }

    /// Writes all of `bytes`, within the write timeout.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<(), Outcome> {
        self.torn.set(true);
        match timeout(self.world.config.limits.write(), self.wire.write(bytes)).await {
            Ok(Ok(())) => {
                self.torn.set(false);
                self.open.set(true);
                self.world.counters.bytes_out.add(bytes.len() as u64);
                Ok(())
            }
            Ok(Err(_)) => Err(Outcome::Gone),
            Err(_) => Err(Outcome::Stalled),
        }
    }

    /// Appends what the client sent to `into`; 0 is the end of the stream. Returns at once, with `None`, where
    /// nothing is there.
    pub(crate) async fn read_now(&self, into: &mut BytesMut) -> Option<Result<usize, Outcome>> {
        let read = self.wire.read_now(into, self.piece()).await?;
        Some(self.took(read))
    }

    /// As [`Connection::read_now`], but waits.
    pub(crate) async fn read(&self, into: &mut BytesMut) -> Result<usize, Outcome> {
        let read = self.wire.read(into, self.piece()).await;
        self.took(read)
    }

    fn piece(&self) -> usize {
        self.shaper.borrow().as_ref().map_or(SCRATCH, |shaper| shaper.piece(SCRATCH))
    }

    fn took(&self, read: std::io::Result<usize>) -> Result<usize, Outcome> {
        match read {
            Ok(0) | Err(_) => Err(Outcome::Gone),
            Ok(n) => {
                self.world.counters.bytes_in.add(n as u64);
                if let Some(shaper) = &mut *self.shaper.borrow_mut() {
                    shaper.took(n, 0);
                }
                Ok(n)
            }
        }
    }

    /// A stanza was read.
    fn took_stanza(&self) {
        if let Some(shaper) = &mut *self.shaper.borrow_mut() {
            shaper.took(0, 1);
        }
    }

    /// How long the client must not be read, because it has sent more than its rates; `None`: not at all.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let pause = self.shaper.borrow_mut().as_mut()?.pause(&self.world.config.limits, Instant::now())?;
        self.world.counters.slowed.add(1);
        self.world.counters.slowed_ms.add(pause.as_millis() as u64);
        Some(pause)
    }

    pub(crate) fn set_pace(&self, pace: Pace) {
        self.pace.set(pace);
    }

    /// Leaves an answer to the outbound half.
    fn reply(&self, stanza: &Stanza) {
        stanza.write(&mut self.replies.borrow_mut());
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Waits until answers take less than their bound: meanwhile the client is not read.
    async fn room(&self) {
        poll_fn(|cx| {
            let full = self.replies.borrow().len() >= self.world.config.limits.reply_bytes;
            // Where the session ends nobody makes room any more.
            if !full || self.pace.get() != Pace::Read {
                return Poll::Ready(());
            }
            self.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn take_replies(&self) -> BytesMut {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        self.replies.take()
    }

    /// Waits for mail or for replies.
    async fn work(&self, mailbox: &Mailbox) {
        poll_fn(|cx| {
            if !self.replies.borrow().is_empty() {
                return Poll::Ready(());
            }
            if mailbox.poll_ready(cx).is_ready() {
                return Poll::Ready(());
            }
            self.writer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The negotiation has closed the stream already.
    pub(crate) fn was_told(&self) {
        self.open.set(false);
    }

    /// Says the last words that `outcome` asks for, closes the socket, and gives the client a moment to read
    /// them: a socket closed over unread input would throw them away.
    pub(crate) async fn close(&self, outcome: &Outcome) {
        let farewell = outcome.farewell();
        if let Farewell::Error(error) = &farewell {
            self.world.counters.stream_error(error.condition.tag());
        }
        let out = match farewell {
            _ if self.torn.get() || !self.open.get() => Bytes::new(),
            Farewell::Nothing => Bytes::new(),
            Farewell::Close => ending(None),
            Farewell::Error(error) => ending(Some(&error)),
        };
        if matches!(
            outcome,
            Outcome::Gone | Outcome::Stalled | Outcome::NoTls | Outcome::NoProxy | Outcome::Refused
        ) {
            return;
        }
        let goodbye = async {
            if !out.is_empty() && self.wire.write(&out).await.is_err() {
                return;
            }
            if self.wire.shutdown().await.is_err() || *outcome == Outcome::Evicted {
                // Who had to make room does so at once.
                return;
            }
            let mut rest = BytesMut::new();
            while let Ok(1..) = self.wire.read(&mut rest, SCRATCH).await {
                rest.clear();
            }
        };
        let _ = timeout(self.world.config.limits.linger(), goodbye).await;
    }
}

/// What the client is told when its input cannot be read.
pub(crate) fn broke(error: ReadError) -> Outcome {
    Outcome::Broke(StreamError::new(error.condition))
}

/// The inbound half: one stanza after the other, each handed on before the next is looked at. The socket stays
/// unread meanwhile: that is its back-pressure.
pub(crate) async fn inbound(
    connection: &Connection,
    view: &Arc<SessionView>,
    mut reader: Box<Reader>,
    mut input: BytesMut,
) -> Outcome {
    let world = &connection.world;
    let mut begun: Option<Instant> = None;
    if world.config.limits.exempts(view.account()) {
        connection.shaper.replace(None);
    }
    connection.busy.set(true);
    Box::pin(world.services.announce(SessionEvent::Bound(view.clone()))).await;
    loop {
        connection.busy.set(true);
        // Without the lease nothing may be handed on: input stays where it is.
        connection.fenced.set(true);
        world.hearing().await;
        connection.fenced.set(false);
        connection.room().await;
        match reader.feed(&mut input) {
            Ok(Some(StreamEvent::Stanza(stanza))) => {
                begun = None;
                connection.took_stanza();
                // Boxed: most of the time a session waits for input, and then this costs nothing.
                if let Err(outcome) = Box::pin(hand_on(connection, view, stanza)).await {
                    return outcome;
                }
            }
            Ok(Some(event)) => {
                begun = None;
                connection.took_stanza();
                if let Err(outcome) = Box::pin(other(connection, view, event)).await {
                    return outcome;
                }
            }
            Ok(None) => {
                connection.busy.set(false);
                if connection.pace.get() != Pace::Read {
                    return Outcome::Gone;
                }
                match more(connection, &mut reader, &mut input, &mut begun).await {
                    Ok(()) => {}
                    Err(outcome) => return outcome,
                }
            }
            Err(error) => {
                tracing::debug!(session = %view.jid(), %error, "failed to read a client's stream");
                return broke(error);
            }
        }
        if connection.pace.get() == Pace::Stop {
            return Outcome::Gone;
        }
    }
}

/// Reads what the client sent. While nothing comes, the connection holds no buffer.
async fn more(
    connection: &Connection,
    reader: &mut Reader,
    input: &mut BytesMut,
    begun: &mut Option<Instant>,
) -> Result<(), Outcome> {
    if let Some(pause) = connection.pause() {
        rest(reader, input);
        // Boxed: hardly any session ever has to wait.
        Box::pin(sleep(pause)).await;
        // It was not the client who took this long.
        *begun = begun.map(|deadline| deadline + pause);
    }
    if let Some(read) = connection.read_now(input).await {
        return read.map(|_| ());
    }
    rest(reader, input);
    if reader.is_between() {
        *begun = None;
        connection.read(input).await?;
    } else {
        // A stanza has begun: it must not take for ever.
        let limit = connection.world.config.limits.stanza();
        let deadline = *begun.get_or_insert_with(|| Instant::now() + limit);
        timeout_at(deadline, connection.read(input)).await.map_err(|_| Outcome::Late)??;
    }
    Ok(())
}

/// Holds no more than what a stanza that has begun needs.
fn rest(reader: &mut Reader, input: &mut BytesMut) {
    if input.is_empty() {
        *input = BytesMut::new();
    }
    reader.release();
}

/// Checks and stamps a stanza, lets the leaving handlers see it, and gives it to the router.
async fn hand_on(
    connection: &Connection,
    view: &Arc<SessionView>,
    mut stanza: Stanza,
) -> Result<(), Outcome> {
    let world = &connection.world;
    match stanza.head.kind {
        Kind::Message => world.counters.messages_in.add(1),
        Kind::Presence => world.counters.presences_in.add(1),
        Kind::Iq => world.counters.iqs_in.add(1),
    }
    match stamp(&mut stanza, view.jid()) {
        Ok(()) => {}
        Err(Fault::Stream(error)) => return Err(Outcome::Broke(error)),
        Err(Fault::Stanza(error)) => {
            world.counters.bad_stanzas.add(1);
            refuse(connection, view, &stanza, &error);
            return Ok(());
        }
    }
    let mut passage = Passage::new(stanza, world.services.clone())
        .with_sender(view.clone())
        .with_account(view.account().clone());
    match world.registry.leaving(&mut passage).await {
        Verdict::Pass => world.router.send(passage).await,
        Verdict::Stop => {}
        Verdict::Refuse(error) => {
            world.router.note_refused(passage.stanza.head.kind);
            refuse(connection, view, &passage.stanza, &error)
        }
    }
    Ok(())
}

/// Sends an error about a client's own stanza, unless it is one that is never answered.
fn refuse(connection: &Connection, view: &SessionView, stanza: &Stanza, error: &StanzaError) {
    if let Some(mut reply) = stanza.error(error) {
        reply.head_mut().to = Some(view.jid().clone().into());
        connection.reply(&reply);
    }
}

/// Whatever a bound client may send that is no good stanza.
async fn other(connection: &Connection, view: &Arc<SessionView>, event: StreamEvent) -> Result<(), Outcome> {
    let world = &connection.world;
    match event {
        StreamEvent::BadStanza { reply } => {
            world.counters.bad_stanzas.add(1);
            if let Some(mut reply) = reply {
                reply.head_mut().to = Some(view.jid().clone().into());
                connection.reply(&reply);
            }
            Ok(())
        }
        StreamEvent::Close => Err(Outcome::Closed),
        StreamEvent::Element(element) => {
            let answers = world.registry.speak(view, &element, &world.services).await;
            let Some(answers) = answers else {
                if element.is("starttls", ns::TLS) {
                    // RFC 6120, 5.4.2.2: it is not offered here, and a failure ends the stream.
                    Writer::opened().element(&features::tls("failure"), &mut connection.replies.borrow_mut());
                    return Err(Outcome::Closed);
                }
                // RFC 6120, 4.9.1.1: an error from the other side ends the stream, and is not answered.
                return Err(stray(&element).map_or(Outcome::Closed, Outcome::Broke));
            };
            for answer in &answers {
                Writer::opened().element(answer, &mut connection.replies.borrow_mut());
            }
            if let Some(writer) = connection.writer.take() {
                writer.wake();
            }
            Ok(())
        }
        StreamEvent::Header(_) => Err(Outcome::Broke(StreamError::new(StreamCondition::BadFormat))),
        StreamEvent::Stanza(stanza) => hand_on(connection, view, stanza).await,
    }
}

/// The mail of one session: its mailbox, and what was taken out of it and is not written yet.
pub(crate) struct Post {
    mailbox: Mailbox,
    taken: Vec<Delivery>,
}

impl Post {
    pub(crate) fn new(mailbox: Mailbox) -> Post {
        Post { mailbox, taken: Vec::new() }
    }

    /// What was taken and not written.
    pub(crate) fn into_unwritten(self) -> Vec<Delivery> {
        self.taken
    }
}

/// The outbound half: one write for all that waits, whatever the inbound half waits for.
pub(crate) async fn outbound(connection: &Connection, view: &SessionView, post: &mut Post) -> Outcome {
    loop {
        connection.work(&post.mailbox).await;
        // Without the lease nothing may be delivered.
        connection.world.serving().await;
        if let Err(outcome) = write_once(connection, view, post).await {
            return outcome;
        }
        match post.mailbox.end() {
            Some(End::Overflowed) => return Outcome::Overflowed,
            // Only this session closes its mailbox, when it has ended.
            Some(End::Closed) => return Outcome::Gone,
            None => {}
        }
    }
}

/// Writes what waits now, within `limit`, before the stream is closed.
pub(crate) async fn flush(connection: &Connection, view: &SessionView, post: &mut Post, limit: Duration) {
    if connection.torn.get() || !connection.world.is_serving() {
        return;
    }
    let all = async {
        while !post.mailbox.is_empty() || !connection.replies.borrow().is_empty() {
            if write_once(connection, view, post).await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(limit, all).await;
}

async fn write_once(connection: &Connection, view: &SessionView, post: &mut Post) -> Result<(), Outcome> {
    let limits = &connection.world.config.limits;
    post.taken.extend(post.mailbox.drain(limits.write_bytes));
    let mut out = connection.take_replies();
    out.reserve(post.taken.iter().map(Delivery::cost).sum());
    let written = compose(connection, view, post, &mut out);
    if !out.is_empty() {
        tokio::select! {
            biased;
            written = connection.write(&out) => written?,
            // Held up by a client that does not read, until more waits for it than may.
            _ = post.mailbox.ended() => return Err(Outcome::Overflowed),
        }
    }
    connection.world.counters.stanzas_out.add(written as u64);
    if written < post.taken.len() {
        let rest = post.taken.split_off(written + 1);
        let poison = post.taken.pop();
        post.taken = rest;
        if let Some(poison) = poison {
            bounce(connection, &poison).await;
        }
        return Err(Outcome::Panicked);
    }
    // Dropped: written is all that a client without acknowledgements lets us know.
    post.taken = Vec::new();
    Ok(())
}

/// Lets the delivering handlers see each stanza and writes what they let pass; how many it dealt with before
/// a handler panicked.
fn compose(connection: &Connection, view: &SessionView, post: &mut Post, out: &mut BytesMut) -> usize {
    let registry = &connection.world.registry;
    for (at, delivery) in post.taken.iter_mut().enumerate() {
        let judge = AssertUnwindSafe(|| registry.delivering(view, delivery.stanza_mut()));
        match catch_unwind(judge) {
            Ok(Verdict::Pass) => delivery.write(out),
            Ok(Verdict::Stop | Verdict::Refuse(_)) => {}
            Err(_) => return at,
        }
    }
    post.taken.len()
}

/// A stanza that breaks a handler would break the next session too: it goes back to its sender.
async fn bounce(connection: &Connection, poison: &Delivery) {
    let error = StanzaError::new(Condition::InternalServerError);
    if let Some(reply) = poison.stanza.error(&error) {
        connection.world.services.route(reply, How::Normal).await;
    }
}

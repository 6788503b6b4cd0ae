//! One client's connection: the inbound half reads and hands on, the outbound half writes what waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hooks::{How, Passage, SessionEvent, SessionView, Underway, Verdict};
use minidom::Element;
use router::{Delivery, End};
use stanza::{Condition, Kind, Stanza, StanzaError, StreamCondition, StreamError, ns};
use stream::management::{self, Said};
use stream::negotiation::stray;
use stream::writer::ending;
use stream::{ReadError, Reader, StreamEvent, Writer, features};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::claim::Held;
use crate::gate::Permit;
use crate::management::Management;
use crate::outcome::{Farewell, Outcome};
use crate::outliving::{Outliving, Yield};
use crate::post::{Handing, Post};
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
    /// Those of them that are stanzas, where the client acknowledges what it gets.
    own: RefCell<Vec<Delivery>>,
    /// How the client and this node tell each other what they have had (XEP-0198); `None`: not at all.
    pub management: RefCell<Option<Box<Management>>>,
    /// Whether the client may begin that, and whether it may resume the session then.
    pub manageable: Cell<Manageable>,
    /// How another connection is given the session.
    pub yielding: Arc<Yield>,
    /// How the session that is about to begin came here.
    pub came_by: Cell<CameBy>,
    /// A session that the client wants to go on with, until it does.
    pub resumed: RefCell<Option<Box<Outliving>>>,
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

/// How a session came to its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CameBy {
    /// It was bound on it.
    #[default]
    Bound,
    /// It was here, and its client came back.
    Resumed,
    /// It was at another node.
    Moved,
}

/// Whether a client may have its stream managed (XEP-0198).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manageable {
    /// It was not offered.
    No,
    /// What is acknowledged only.
    Counted,
    /// The session outlives its connection as well.
    Resumable,
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
            own: RefCell::default(),
            management: RefCell::new(None),
            manageable: Cell::new(Manageable::No),
            yielding: Arc::default(),
            came_by: Cell::default(),
            resumed: RefCell::new(None),
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

    /// A stanza of the client is about to be handled, which it will hear of.
    fn begin(&self) -> Option<Underway> {
        self.management.borrow().as_ref().map(|managed| managed.begin())
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
    fn reply(&self, stanza: Stanza) {
        if self.management.borrow().is_some() {
            self.own.borrow_mut().push(Delivery::new(Arc::new(stanza)));
        } else {
            stanza.write(&mut self.replies.borrow_mut());
        }
        self.wake_writer();
    }

    /// Leaves what is no stanza to the outbound half.
    fn say(&self, element: &Element) {
        Writer::opened().element(element, &mut self.replies.borrow_mut());
        self.wake_writer();
    }

    fn wake_writer(&self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Whether the session may live on without this connection.
    pub(crate) fn is_resumable(&self) -> bool {
        self.management.borrow().as_ref().is_some_and(|managed| managed.resumption.is_some())
    }

    /// Bytes of answers that wait.
    fn replies_waiting(&self) -> usize {
        self.replies.borrow().len() + self.own.borrow().iter().map(Delivery::cost).sum::<usize>()
    }

    /// Whether the client has acknowledged enough to be written to.
    fn has_room(&self) -> bool {
        let limits = &self.world.config.limits;
        let (stanzas, bytes) = (limits.unacknowledged_stanzas, limits.unacknowledged_bytes);
        self.management.borrow().as_ref().is_none_or(|managed| managed.has_room(stanzas, bytes))
    }

    /// Waits until answers take less than their bound: meanwhile the client is not read.
    async fn room(&self) {
        poll_fn(|cx| {
            let full = self.replies_waiting() >= self.world.config.limits.reply_bytes;
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

    /// Waits for mail, for replies, or for something to say about what was handled.
    async fn work(&self, post: &Post, view: &SessionView) {
        poll_fn(|cx| {
            if !self.replies.borrow().is_empty() || !self.own.borrow().is_empty() || post.is_due(view) {
                return Poll::Ready(());
            }
            if let Some(managed) = &*self.management.borrow() {
                post.mailbox.owe(!managed.unacknowledged.is_empty());
                if managed.is_to_ask() {
                    return Poll::Ready(());
                }
                if let Poll::Ready(handled) = managed.handled.poll_owed(cx) {
                    management::acknowledge(handled, &mut self.replies.borrow_mut());
                    return Poll::Ready(());
                }
            }
            let mail = if self.has_room() {
                post.mailbox.poll_ready(cx).is_ready()
            } else {
                post.mailbox.poll_ended(cx).is_ready()
            };
            if mail {
                return Poll::Ready(());
            }
            self.writer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// As [`Connection::work`]; false where the client does not say in time what it has handled.
    async fn work_in_time(&self, post: &Post, view: &SessionView) -> bool {
        let patience = self.world.config.limits.acknowledgement();
        loop {
            let late_at = || self.management.borrow().as_ref().and_then(|managed| managed.late_at(patience));
            let Some(until) = late_at() else {
                self.work(post, view).await;
                return true;
            };
            // Boxed: an idle session awaits no answer.
            if Box::pin(timeout_at(until, self.work(post, view))).await.is_ok() {
                return true;
            }
            if late_at().is_some_and(|until| until <= Instant::now()) {
                return false;
            }
        }
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
    let came_by = connection.came_by.get();
    if world.config.limits.exempts(view.account()) {
        connection.shaper.replace(None);
    }
    connection.busy.set(true);
    match came_by {
        CameBy::Bound => Box::pin(world.services.announce(SessionEvent::Bound(view.clone()))).await,
        CameBy::Moved => Box::pin(world.services.announce(SessionEvent::Resumed(view.clone()))).await,
        CameBy::Resumed => {}
    }
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
            let _handled = connection.begin();
            refuse(connection, view, &stanza, &error);
            return Ok(());
        }
    }
    let mut passage = Passage::new(stanza, world.services.clone())
        .with_sender(view.clone())
        .with_account(view.account().clone());
    passage.underway = connection.begin();
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
        connection.reply(reply);
    }
}

/// Whatever a bound client may send that is no good stanza.
async fn other(connection: &Connection, view: &Arc<SessionView>, event: StreamEvent) -> Result<(), Outcome> {
    let world = &connection.world;
    match event {
        StreamEvent::BadStanza { reply } => {
            world.counters.bad_stanzas.add(1);
            let _handled = connection.begin();
            if let Some(mut reply) = reply {
                reply.head_mut().to = Some(view.jid().clone().into());
                connection.reply(reply);
            }
            Ok(())
        }
        StreamEvent::Close => Err(Outcome::Closed),
        StreamEvent::Element(element) if element.has_ns(management::NS) => manage(connection, view, &element),
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
            answers.iter().for_each(|answer| connection.say(answer));
            // Something that waited may be due now.
            connection.wake_writer();
            Ok(())
        }
        StreamEvent::Header(_) => Err(Outcome::Broke(StreamError::new(StreamCondition::BadFormat))),
        StreamEvent::Stanza(stanza) => hand_on(connection, view, stanza).await,
    }
}

/// What a bound client says about the management of its stream (XEP-0198).
fn manage(connection: &Connection, view: &SessionView, element: &Element) -> Result<(), Outcome> {
    let said = match Said::read(element) {
        Ok(said) => said,
        Err(condition) => {
            connection.say(&management::failed(condition, None));
            return Ok(());
        }
    };
    let mut managed = connection.management.borrow_mut();
    match (said, &mut *managed) {
        (Said::Enable { .. }, Some(_)) => {
            // XEP-0198, 3: one attempt for each stream.
            let error = StreamError::new(StreamCondition::PolicyViolation);
            return Err(Outcome::Broke(error.with_text("stream management is enabled already")));
        }
        (Said::Enable { resume, max_s }, none) => {
            let (new, answer) = connection.enable(view, resume, max_s);
            // What was written before does not count: `<enabled/>` goes behind it.
            connection.say(&answer);
            *none = new;
        }
        (Said::Resume(_), _) | (Said::Ask | Said::Acknowledged(_), None) => {
            connection.say(&management::failed(Condition::UnexpectedRequest, None));
        }
        (Said::Ask, Some(managed)) => {
            management::acknowledge(managed.handled.answer(), &mut connection.replies.borrow_mut());
            connection.wake_writer();
        }
        (Said::Acknowledged(handled), Some(managed)) => {
            managed.acknowledged(handled).map_err(|wrong| Outcome::Broke(wrong.into()))?;
            // There may be room for more, or something more to ask for.
            connection.wake_writer();
        }
    }
    Ok(())
}

/// The outbound half: one write for all that waits, whatever the inbound half waits for.
pub(crate) async fn outbound(connection: &Connection, view: &SessionView, post: &mut Post) -> Outcome {
    if let Some(Handing { node, all }) = post.handing.take() {
        all.await;
        post.mailbox.bring_forward(node);
    }
    loop {
        // On a new connection there is something to say at once.
        if !post.resend && !connection.work_in_time(post, view).await {
            return Outcome::Stalled;
        }
        // Without the lease nothing may be delivered.
        connection.world.serving().await;
        if let Err(outcome) = write_once(connection, view, post).await {
            return outcome;
        }
        if let Some(end) = post.mailbox.end() {
            return over(end);
        }
    }
}

/// Why a session ends whose mailbox has.
pub(crate) fn over(end: End) -> Outcome {
    match end {
        End::Overflowed => Outcome::Overflowed,
        End::Dismissed(error) => Outcome::Broke(*error),
        // Only this session closes its mailbox, when it has ended.
        End::Closed => Outcome::Gone,
    }
}

/// Writes what waits now, within `limit`, before the stream is closed.
pub(crate) async fn flush(connection: &Connection, view: &SessionView, post: &mut Post, limit: Duration) {
    if connection.torn.get() || !connection.world.is_serving() {
        return;
    }
    // It is the last that is written: nothing is kept for later.
    view.set_inactive(false);
    let all = async {
        while post.is_due(view)
            || (!post.mailbox.is_empty() && connection.has_room())
            || connection.replies_waiting() > 0
        {
            if write_once(connection, view, post).await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(limit, all).await;
}

async fn write_once(connection: &Connection, view: &SessionView, post: &mut Post) -> Result<(), Outcome> {
    let limits = &connection.world.config.limits;
    if connection.has_room() {
        post.taken.extend(post.mailbox.drain(limits.write_bytes));
    }
    post.hold_back(&connection.world.registry, limits.held_stanzas, view);
    let mut out = connection.take_replies();
    let is_managed = connection.management.borrow().is_some();
    let (written, poison) = match is_managed {
        true => compose_managed(connection, view, post, &mut out),
        false => {
            out.reserve(post.taken.iter().map(Delivery::cost).sum());
            compose(connection, view, post, &mut out)
        }
    };
    if !out.is_empty() {
        tokio::select! {
            biased;
            written = connection.write(&out) => written?,
            // Held up by a client that does not read, until more waits for it than may, or it is to go.
            end = post.mailbox.ended() => return Err(over(end)),
        }
    }
    connection.world.counters.stanzas_out.add(written as u64);
    if let Some(at) = poison {
        let rest = post.taken.split_off(at + 1);
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

/// Lets the delivering handlers see each stanza and writes what they let pass: how many it dealt with, and at which a
/// handler panicked.
fn compose(
    connection: &Connection,
    view: &SessionView,
    post: &mut Post,
    out: &mut BytesMut,
) -> (usize, Option<usize>) {
    let registry = &connection.world.registry;
    for (at, delivery) in post.taken.iter_mut().enumerate() {
        let judge = AssertUnwindSafe(|| registry.delivering(view, delivery.stanza_mut()));
        match catch_unwind(judge) {
            Ok(Verdict::Pass) => delivery.write(out),
            Ok(Verdict::Stop | Verdict::Refuse(_)) => {}
            Err(_) => return (at, Some(at)),
        }
    }
    (post.taken.len(), None)
}

/// As [`compose`], for a client that acknowledges what it gets: what is written is kept until then.
fn compose_managed(
    connection: &Connection,
    view: &SessionView,
    post: &mut Post,
    out: &mut BytesMut,
) -> (usize, Option<usize>) {
    let registry = &connection.world.registry;
    let mut managed = connection.management.borrow_mut();
    let Some(managed) = &mut *managed else { return (0, None) };
    if std::mem::take(&mut post.resend) {
        managed.resend(out);
    }
    let mut taken = connection.own.take();
    taken.append(&mut post.taken);
    let all = taken.len();
    let mut taken = taken.into_iter();
    let mut at = 0;
    while let Some(mut delivery) = taken.next() {
        let judge = AssertUnwindSafe(|| registry.delivering(view, delivery.stanza_mut()));
        match catch_unwind(judge) {
            Ok(Verdict::Pass) => {
                delivery.write(out);
                managed.sends(delivery);
            }
            Ok(Verdict::Stop | Verdict::Refuse(_)) => {}
            Err(_) => {
                post.taken = std::iter::once(delivery).chain(taken).collect();
                return (at, Some(0));
            }
        }
        at += 1;
    }
    post.mailbox.owe(!managed.unacknowledged.is_empty());
    managed.ask(out);
    (all, None)
}

/// A stanza that breaks a handler would break the next session too: it goes back to its sender.
async fn bounce(connection: &Connection, poison: &Delivery) {
    let error = StanzaError::new(Condition::InternalServerError);
    if let Some(reply) = poison.stanza.error(&error) {
        connection.world.services.route(reply, How::Normal).await;
    }
}

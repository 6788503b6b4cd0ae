//! A simulated network: connections with delays, that can be cut in each direction, and end with their processes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use cluster::simulation;
use futures::future::{BoxFuture, poll_fn};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::chance::Dice;

/// A machine, by its number.
pub type Host = usize;

/// Bytes on the way and not read in one direction of a connection; the writer waits then.
const WINDOW: usize = 512 << 10;
/// How long after the end of a cut what was lost is sent again, at most.
const AGAIN_MS: u64 = 400;

/// All connections.
pub struct Network(Mutex<Inner>);

struct Inner {
    now: u64,
    dice: Dice,
    /// Milliseconds from one host to another: at least, and at most.
    delays: BTreeMap<(Host, Host), (u64, u64)>,
    usual: (u64, u64),
    cuts: BTreeSet<(Host, Host)>,
    off: BTreeSet<Host>,
    listeners: BTreeMap<SocketAddr, Listening>,
    hosts: BTreeMap<SocketAddr, Host>,
    pipes: BTreeMap<u64, Pipe>,
    attempts: BTreeMap<u64, Attempt>,
    next: u64,
}

struct Listening {
    queue: VecDeque<(u64, u64, Host)>,
    waker: Option<Waker>,
}

struct Attempt {
    from: Host,
    to: SocketAddr,
    due: u64,
    done: Option<io::Result<(u64, u64)>>,
    waker: Option<Waker>,
}

/// One direction of a connection; the other one has the number with the lowest bit turned.
struct Pipe {
    from: Host,
    to: Host,
    flying: VecDeque<(u64, Vec<u8>)>,
    waiting: usize,
    last: u64,
    arrived: VecDeque<u8>,
    /// When the end arrives, and whether it is a reset.
    end: Option<(u64, bool)>,
    closed: bool,
    reset: bool,
    /// Its process died with its sockets: nothing they do counts.
    orphan: [bool; 2],
    dropped: [bool; 2],
    reader: Option<Waker>,
    writer: Option<Waker>,
}

const READER: usize = 0;
const WRITER: usize = 1;

impl Network {
    pub fn new(dice: Dice) -> Arc<Network> {
        Arc::new(Network(Mutex::new(Inner {
            now: 0,
            dice,
            delays: BTreeMap::new(),
            usual: (5, 15),
            cuts: BTreeSet::new(),
            off: BTreeSet::new(),
            listeners: BTreeMap::new(),
            hosts: BTreeMap::new(),
            pipes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next: 0,
        })))
    }

    pub fn know(&self, host: Host, at: SocketAddr) {
        self.0.lock().hosts.insert(at, host);
    }

    /// Nothing gets from one host to another from now on.
    pub fn cut(&self, from: Host, to: Host) {
        self.0.lock().cuts.insert((from, to));
    }

    pub fn heal(&self, from: Host, to: Host) {
        let mut inner = self.0.lock();
        if !inner.cuts.remove(&(from, to)) {
            return;
        }
        let now = inner.now;
        let later = now + inner.dice.between(5, AGAIN_MS);
        for pipe in inner.pipes.values_mut().filter(|pipe| pipe.from == from && pipe.to == to) {
            for (due, _) in pipe.flying.iter_mut().filter(|(due, _)| *due <= now) {
                *due = later;
            }
            pipe.last = pipe.last.max(later);
            if let Some((due, _)) = &mut pipe.end {
                *due = (*due).max(later);
            }
        }
    }

    /// The delay from one host to another; `None` makes it as usual.
    pub fn delay(&self, from: Host, to: Host, delay: Option<(u64, u64)>) {
        let mut inner = self.0.lock();
        match delay {
            Some(delay) => inner.delays.insert((from, to), delay),
            None => inner.delays.remove(&(from, to)),
        };
    }

    /// The process of a host is gone. With its machine, nobody is told.
    pub fn kill(&self, host: Host, power: bool) {
        let mut inner = self.0.lock();
        let hosts = inner.hosts.clone();
        inner.listeners.retain(|at, _| hosts.get(at) != Some(&host));
        inner.attempts.retain(|_, attempt| attempt.from != host);
        if power {
            inner.off.insert(host);
        }
        let ids: Vec<u64> = inner.pipes.keys().copied().collect();
        for id in ids {
            let Some(pipe) = inner.pipes.get(&id) else { continue };
            let (from, to, last) = (pipe.from, pipe.to, pipe.last);
            let due = inner.due(from, to, last);
            let Some(pipe) = inner.pipes.get_mut(&id) else { continue };
            if from == host {
                pipe.orphan[WRITER] = true;
                if power {
                    pipe.flying.clear();
                } else if pipe.end.is_none() {
                    pipe.end = Some((due, true));
                }
            }
            if to == host {
                pipe.orphan[READER] = true;
            }
        }
    }

    /// The machine of a host runs again: whoever still believes in an old connection is told.
    pub fn start(&self, host: Host) {
        let mut inner = self.0.lock();
        if !inner.off.remove(&host) {
            return;
        }
        let ids: Vec<u64> = inner.pipes.keys().copied().collect();
        for id in ids {
            let Some(pipe) = inner.pipes.get(&id) else { continue };
            let (to, last) = (pipe.to, pipe.last);
            if pipe.from == host && pipe.end.is_none() {
                let due = inner.due(host, to, last);
                if let Some(pipe) = inner.pipes.get_mut(&id) {
                    pipe.end = Some((due, true));
                }
            }
        }
    }

    /// Brings what is due by now.
    pub fn deliver(&self, now: u64) {
        let mut guard = self.0.lock();
        let inner = &mut *guard;
        inner.now = now;
        let mut wake = Vec::new();
        inner.connect_due(&mut wake);
        let ids: Vec<u64> = inner.pipes.keys().copied().collect();
        for id in ids {
            inner.deliver_one(id, &mut wake);
        }
        inner.pipes.retain(|_, pipe| {
            let gone = |end: usize| pipe.dropped[end] || pipe.orphan[end];
            !(gone(READER) && gone(WRITER))
        });
        drop(guard);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Listens at an address.
    ///
    /// # Errors
    /// Somebody does so already.
    pub fn listen(self: &Arc<Self>, at: SocketAddr) -> io::Result<Box<dyn simulation::Listener>> {
        let mut inner = self.0.lock();
        if inner.listeners.contains_key(&at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        inner.listeners.insert(at, Listening { queue: VecDeque::new(), waker: None });
        Ok(Box::new(Listener { network: self.clone(), at }))
    }

    /// Connects a host with whoever listens at an address.
    pub fn connect(
        self: &Arc<Self>,
        from: Host,
        to: &str,
    ) -> BoxFuture<'static, io::Result<Box<dyn simulation::Socket>>> {
        let network = self.clone();
        let Ok(to) = to.parse::<SocketAddr>() else {
            return Box::pin(async { Err(io::ErrorKind::InvalidInput.into()) });
        };
        let id = {
            let mut inner = self.0.lock();
            inner.next += 1;
            let id = inner.next;
            let host = inner.hosts.get(&to).copied().unwrap_or(usize::MAX);
            let due = inner.due(from, host, 0);
            inner.attempts.insert(id, Attempt { from, to, due, done: None, waker: None });
            id
        };
        let guard = Trying { network, id };
        Box::pin(async move {
            let (read, write) = poll_fn(|cx| guard.poll(cx)).await?;
            let network = guard.network.clone();
            Ok(Box::new(Socket { network, read, write }) as Box<dyn simulation::Socket>)
        })
    }
}

impl Inner {
    fn due(&mut self, from: Host, to: Host, last: u64) -> u64 {
        let (low, high) = self.delays.get(&(from, to)).copied().unwrap_or(self.usual);
        (self.now + self.dice.between(low, high)).max(last)
    }

    fn connect_due(&mut self, wake: &mut Vec<Waker>) {
        let due: Vec<u64> = self
            .attempts
            .iter()
            .filter(|(_, a)| a.done.is_none() && a.due <= self.now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(attempt) = self.attempts.get(&id) else { continue };
            let (from, to) = (attempt.from, attempt.to);
            let Some(host) = self.hosts.get(&to).copied() else { continue };
            let blocked = self.cuts.contains(&(from, host)) || self.cuts.contains(&(host, from));
            if blocked || self.off.contains(&host) {
                continue;
            }
            let done = if self.listeners.contains_key(&to) {
                self.next += 1;
                let here = self.next * 2;
                let there = here + 1;
                self.pipes.insert(here, Pipe::new(from, host));
                self.pipes.insert(there, Pipe::new(host, from));
                if let Some(listening) = self.listeners.get_mut(&to) {
                    listening.queue.push_back((here, there, from));
                    wake.extend(listening.waker.take());
                }
                Ok((there, here))
            } else {
                Err(io::ErrorKind::ConnectionRefused.into())
            };
            if let Some(attempt) = self.attempts.get_mut(&id) {
                attempt.done = Some(done);
                wake.extend(attempt.waker.take());
            }
        }
    }

    fn deliver_one(&mut self, id: u64, wake: &mut Vec<Waker>) {
        let now = self.now;
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        if self.cuts.contains(&(pipe.from, pipe.to)) || self.off.contains(&pipe.to) {
            return;
        }
        let mut moved = false;
        while pipe.arrived.len() < WINDOW
            && let Some((due, _)) = pipe.flying.front()
            && *due <= now
        {
            if let Some((_, bytes)) = pipe.flying.pop_front() {
                pipe.arrived.extend(bytes);
                moved = true;
            }
        }
        let mut is_reset = false;
        if pipe.flying.is_empty()
            && let Some((due, reset)) = pipe.end
            && due <= now
            && !pipe.closed
        {
            pipe.closed = true;
            pipe.reset |= reset;
            is_reset = reset;
            moved = true;
        }
        // Nobody reads any more: the writer is told.
        let unread = (pipe.dropped[READER] || pipe.orphan[READER]) && !pipe.arrived.is_empty();
        if unread {
            pipe.arrived.clear();
            is_reset = true;
        }
        if moved {
            wake.extend(pipe.reader.take());
        }
        if is_reset {
            let both = [id, id ^ 1];
            for id in both {
                if let Some(pipe) = self.pipes.get_mut(&id) {
                    pipe.reset = true;
                    wake.extend(pipe.reader.take());
                    wake.extend(pipe.writer.take());
                }
            }
        }
    }
}

impl Pipe {
    fn new(from: Host, to: Host) -> Pipe {
        Pipe {
            from,
            to,
            flying: VecDeque::new(),
            waiting: 0,
            last: 0,
            arrived: VecDeque::new(),
            end: None,
            closed: false,
            reset: false,
            orphan: [false; 2],
            dropped: [false; 2],
            reader: None,
            writer: None,
        }
    }
}

/// An attempt to connect; it is given up when it is dropped.
struct Trying {
    network: Arc<Network>,
    id: u64,
}

impl Trying {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<(u64, u64)>> {
        let mut inner = self.network.0.lock();
        let Some(attempt) = inner.attempts.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        match attempt.done.take() {
            Some(done) => Poll::Ready(done),
            None => {
                attempt.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        self.network.0.lock().attempts.remove(&self.id);
    }
}

struct Listener {
    network: Arc<Network>,
    at: SocketAddr,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.at)
    }
}

impl simulation::Listener for Listener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn simulation::Socket>, SocketAddr)>> {
        Box::pin(poll_fn(|cx| {
            let mut inner = self.network.0.lock();
            let Some(listening) = inner.listeners.get_mut(&self.at) else { return Poll::Pending };
            match listening.queue.pop_front() {
                Some((read, write, from)) => {
                    let socket = Socket { network: self.network.clone(), read, write };
                    let from = SocketAddr::from(([127, 0, 0, from as u8], 1));
                    Poll::Ready(Ok((Box::new(socket) as Box<dyn simulation::Socket>, from)))
                }
                None => {
                    listening.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    fn address(&self) -> SocketAddr {
        self.at
    }
}

struct Socket {
    network: Arc<Network>,
    read: u64,
    write: u64,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({}, {})", self.read, self.write)
    }
}

impl simulation::Socket for Socket {}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut inner = self.network.0.lock();
        if let Some(pipe) = inner.pipes.get_mut(&self.read) {
            pipe.dropped[READER] = true;
        }
        let Some(pipe) = inner.pipes.get(&self.write) else { return };
        let (from, to, last) = (pipe.from, pipe.to, pipe.last);
        let due = inner.due(from, to, last);
        if let Some(pipe) = inner.pipes.get_mut(&self.write)
            && !pipe.orphan[WRITER]
        {
            pipe.dropped[WRITER] = true;
            pipe.end.get_or_insert((due, false));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.0.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.read) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if !pipe.arrived.is_empty() {
            let take = pipe.arrived.len().min(out.remaining());
            for (at, byte) in pipe.arrived.drain(..take).enumerate() {
                out.initialize_unfilled()[at] = byte;
            }
            out.advance(take);
            pipe.waiting -= take.min(pipe.waiting);
            let writer = pipe.writer.take();
            drop(inner);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.closed {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.network.0.lock();
        let Some(pipe) = inner.pipes.get(&self.write) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let (from, to, last) = (pipe.from, pipe.to, pipe.last);
        let due = inner.due(from, to, last);
        let Some(pipe) = inner.pipes.get_mut(&self.write) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.reset || pipe.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.waiting >= WINDOW {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.last = due;
        pipe.waiting += bytes.len();
        pipe.flying.push_back((due, bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.0.lock();
        let Some(pipe) = inner.pipes.get(&self.write) else { return Poll::Ready(Ok(())) };
        let (from, to, last) = (pipe.from, pipe.to, pipe.last);
        let due = inner.due(from, to, last);
        if let Some(pipe) = inner.pipes.get_mut(&self.write) {
            pipe.end.get_or_insert((due, false));
        }
        Poll::Ready(Ok(()))
    }
}

//! Weighs what comes over links: no message is larger than a bound, nor more than a bound in work for one connection.
//!
//! A message says its length in front of it, and whoever reads it makes room for all of it at that word. So the word is
//! what is weighed, before anybody hears it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::Caller;

/// The largest message that a node takes from another. The largest that a node sends is half of that: the log
/// entry of a proposal that is as large as one may be, among others.
pub(crate) const MESSAGE_MAX: usize = 32 << 20;
/// How many bytes of messages one connection may have in work: read, or waiting for their answer. What comes beyond
/// is refused at once. To let it wait would keep the connection's window closed for those who are half read.
pub(crate) const IN_WORK_MAX: usize = 128 << 20;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What one connection has in work.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicUsize);

/// The part of a load that one call has.
pub(crate) struct Hold {
    load: Arc<Load>,
    bytes: AtomicUsize,
}

impl Hold {
    pub(crate) fn new(load: Arc<Load>) -> Hold {
        Hold { load, bytes: AtomicUsize::new(0) }
    }

    /// Takes the next message in place of the one before; whether there is room for it.
    fn turn_to(&self, bytes: usize) -> bool {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        self.load.0.fetch_sub(before, Ordering::Relaxed);
        self.load.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= IN_WORK_MAX
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.load.0.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Where in its messages a body is.
#[derive(Debug)]
struct Place {
    prefix: [u8; PREFIX],
    /// How much of the prefix is known.
    known: usize,
    /// How much of the message is still to come.
    left: usize,
}

impl Place {
    const START: Place = Place { prefix: [0; PREFIX], known: 0, left: 0 };

    /// Goes on over bytes; shows the length of each message that begins in them.
    fn pass<E>(&mut self, mut bytes: &[u8], mut begins: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = self.left.min(bytes.len());
                self.left -= step;
                bytes = &bytes[step..];
                continue;
            }
            let step = (PREFIX - self.known).min(bytes.len());
            self.prefix[self.known..self.known + step].copy_from_slice(&bytes[..step]);
            self.known += step;
            bytes = &bytes[step..];
            if self.known == PREFIX {
                let [_, length @ ..] = self.prefix;
                (self.known, self.left) = (0, u32::from_be_bytes(length) as usize);
                begins(self.left)?;
            }
        }
        Ok(())
    }
}

/// The body of a request, weighed as it comes.
pub(crate) struct Weighed {
    pub(crate) body: Body,
    pub(crate) caller: Caller,
    pub(crate) hold: Arc<Hold>,
    place: Place,
}

impl Weighed {
    pub(crate) fn new(body: Body, caller: Caller, hold: Arc<Hold>) -> Weighed {
        Weighed { body, caller, hold, place: Place::START }
    }

    fn weigh(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let Weighed { caller, hold, place, .. } = self;
        place.pass(bytes, |length| {
            if length > MESSAGE_MAX {
                let text = format!("a message of {length} bytes: at most {MESSAGE_MAX} are taken");
                return Err(caller.too_much(&text));
            }
            if !hold.turn_to(length) {
                let text = format!("more than {IN_WORK_MAX} bytes of messages are in work for this link");
                return Err(caller.too_much(&text));
            }
            Ok(())
        })
    }
}

impl HttpBody for Weighed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(status) = self.weigh(bytes)
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    #[test]
    fn each_message_is_weighed_however_its_bytes_are_cut() {
        let lengths = [0, 3, 0, 70, 1];
        let all: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
        for step in 1..=all.len() {
            let (mut place, mut seen) = (Place::START, Vec::new());
            for part in all.chunks(step) {
                let passed: Result<(), ()> = place.pass(part, |length| {
                    seen.push(length);
                    Ok(())
                });
                assert_eq!(passed, Ok(()));
            }
            assert_eq!(seen, lengths, "in parts of {step} bytes");
        }
    }

    #[test]
    fn a_connection_has_no_more_in_work_than_the_bound() {
        let load = Arc::new(Load::default());
        let hold = || Hold::new(load.clone());
        let (first, second) = (hold(), hold());
        assert!(first.turn_to(IN_WORK_MAX - 10) && second.turn_to(10));
        assert!(!hold().turn_to(1), "it was full");
        // The next message of a stream takes the place of the one before.
        assert!(second.turn_to(9) && hold().turn_to(1));
        drop(first);
        assert!(hold().turn_to(IN_WORK_MAX - 9));
        drop(second);
        assert_eq!(load.0.load(Ordering::Relaxed), 0);
    }
}

//! Writes stanzas as they go to a socket.

use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use router::Delivery;
use stanza::Stanza;

use crate::operation::Operation;
use crate::samples::{chat, jid};

/// Stanzas that one write of a socket takes.
const AT_ONCE: u64 = 64;
/// Room for them.
const ROOM: usize = 32 * 1024;

/// A stanza with its own `to`.
pub struct Write {
    stanza: Stanza,
    out: BytesMut,
}

impl Write {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Write { stanza: chat(), out: BytesMut::with_capacity(ROOM) })
    }
}

impl Operation for Write {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn go(&mut self) {
        self.out.clear();
        for _ in 0..AT_ONCE {
            black_box(&self.stanza).write(&mut self.out);
        }
        black_box(&self.out);
    }
}

/// One that several sessions share, to one of them.
pub struct Deliver {
    delivery: Delivery,
    out: BytesMut,
}

impl Deliver {
    pub fn begin() -> Box<dyn Operation> {
        let mut delivery = Delivery::new(Arc::new(chat()));
        delivery.to = Some(jid("juliet@capulet.example/chamber"));
        Box::new(Deliver { delivery, out: BytesMut::with_capacity(ROOM) })
    }
}

impl Operation for Deliver {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn go(&mut self) {
        self.out.clear();
        for _ in 0..AT_ONCE {
            black_box(&self.delivery).write(&mut self.out);
        }
        black_box(&self.out);
    }
}

//! Makes batches of the relay of stanzas, and stanzas of batches: what is in memory of a crossing between nodes.

use std::hint::black_box;

use bytes::Bytes;
use cluster::Sid;
use prost::Message;
use proto::relay::{Batch, Purpose, Sending, sending};
use router::envelope::{open, seal, target};
use stanza::Stanza;

use crate::operation::Operation;
use crate::samples::chat;

/// Stanzas in a batch.
const AT_ONCE: u64 = 64;

fn batch(stanza: &Stanza) -> Bytes {
    let parcel = || seal(stanza, Purpose::Arrive, 1, vec![target(None, Some(Sid(7)))]);
    let parcels = (0..AT_ONCE).map(|_| parcel()).collect();
    let batch = Batch { first: 1, parcels, oldest: 1 };
    Sending { what: Some(sending::What::Batch(batch)) }.encode_to_vec().into()
}

/// Seals the stanzas and writes their batch.
pub struct Send {
    stanza: Stanza,
}

impl Send {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Send { stanza: chat() })
    }
}

impl Operation for Send {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn go(&mut self) {
        black_box(batch(black_box(&self.stanza)));
    }
}

/// Reads a batch and opens its parcels.
pub struct Receive {
    batch: Bytes,
}

impl Receive {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Receive { batch: batch(&chat()) })
    }
}

impl Operation for Receive {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn go(&mut self) {
        let sending = Sending::decode(self.batch.clone()).expect("a message of the protocol");
        let Some(sending::What::Batch(batch)) = sending.what else { panic!("not a batch") };
        assert_eq!(batch.parcels.len() as u64, AT_ONCE, "each parcel is there");
        for parcel in batch.parcels {
            black_box(open(parcel).expect("a parcel that can be read"));
        }
    }
}

//! What members agree on, from other nodes and from the log: broken bytes are refused, and `apply` is total.
#![no_main]

use cluster::{
    Routes, readers,
    routes::{Command, Outcome},
};
use libfuzzer_sys::fuzz_target;

// Byte 0 chooses the reader.
fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 6 {
        0 => commands(rest),
        1 => table(rest),
        2 => {
            readers::log_segment(rest);
        }
        3 => {
            readers::log_records(pieces(rest).filter_map(kind_and_payload));
        }
        4 => readers::raft_calls(rest),
        _ => readers::store_messages(rest),
    }
});

/// Pieces of the input, each behind its length in one byte.
fn pieces(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, after) = rest.split_first()?;
        let (piece, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        Some(piece)
    })
}

fn kind_and_payload(piece: &[u8]) -> Option<(u8, &[u8])> {
    piece.split_first().map(|(kind, payload)| (*kind, payload))
}

/// Commands of the route table, applied one after the other; two replicas stay equal.
fn commands(rest: &[u8]) {
    let (mut one, mut other) = (Routes::new(), Routes::new());
    for (index, piece) in (1..).zip(pieces(rest)) {
        // The version is the first byte of each.
        let bytes = [&[1], piece].concat();
        let Some(command) = Command::decode(&bytes) else { continue };
        assert_eq!(Command::decode(&command.encode()).as_ref(), Some(&command));
        let (mut effects, mut same) = (Vec::new(), Vec::new());
        let outcome = one.apply(index, command.clone(), &mut effects);
        assert_eq!(outcome, other.apply(index, command, &mut same));
        assert_eq!(effects, same, "two replicas differ");
        assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
    }
    let rows: usize = one.each().count();
    let copy = Routes::decode(&one.encode()).map(|copy| copy.each().count());
    assert_eq!(copy, Some(rows), "a snapshot is another table");
}

/// A table as a snapshot brings it, and commands upon it.
fn table(rest: &[u8]) {
    let Some((&length, after)) = rest.split_first() else { return };
    let (snapshot, after) = after.split_at(usize::from(length).min(after.len()));
    let Some(mut routes) = Routes::decode(&[&[1], snapshot].concat()) else { return };
    let index = routes.index();
    for (n, piece) in (1..).zip(pieces(after)) {
        let mut effects = Vec::new();
        if let Some(command) = Command::decode(&[&[1], piece].concat()) {
            routes.apply(index.saturating_add(n), command, &mut effects);
        }
    }
}

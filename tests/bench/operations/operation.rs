//! An operation that is measured, and the list of them.

use crate::archive::{Append, Record};
use crate::reading::Reading;
use crate::relay::{Receive, Send};
use crate::scram::{Exchange, Keys};
use crate::table::{Account, Bind, Priority, Session, Unbind};
use crate::writing::{Deliver, Write};

/// Something that is done many times in a go.
pub trait Operation {
    /// How many times a go does it.
    fn times(&self) -> u64;

    /// Makes what the next go uses up; not measured.
    fn ready(&mut self) {}

    /// Does it so many times.
    fn go(&mut self);
}

/// Begins an operation: what is there all the time is made then.
pub type Begin = fn() -> Box<dyn Operation>;

/// The operations by their names.
pub const ALL: &[(&str, Begin)] = &[
    ("read.chat", || Reading::scanned(crate::samples::CHAT)),
    ("read.presence", || Reading::scanned(crate::samples::PRESENCE)),
    ("read.request", || Reading::scanned(crate::samples::REQUEST)),
    ("parse.chat", || Reading::parsed(crate::samples::CHAT)),
    ("parse.presence", || Reading::parsed(crate::samples::PRESENCE)),
    ("write.chat", Write::begin),
    ("write.delivery", Deliver::begin),
    ("lookup.account", Account::begin),
    ("lookup.session", Session::begin),
    ("table.bind", Bind::begin),
    ("table.priority", Priority::begin),
    ("table.unbind", Unbind::begin),
    ("relay.send", Send::begin),
    ("relay.receive", Receive::begin),
    ("scram.exchange", Exchange::begin),
    ("scram.keys", Keys::begin),
    ("archive.record", Record::begin),
    ("archive.append", Append::begin),
];

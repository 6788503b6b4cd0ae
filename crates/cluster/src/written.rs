//! The route table as bytes, in a snapshot and in the feed of a frontend: written and read one row after the other.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
};

use jid::FullJid;
use postcard::de_flavors::Flavor;
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned, ser::SerializeMap};

use crate::{
    accounts::{Accounts, bare_of},
    batch::PAYLOAD_MAX,
    role::NodeId,
    routes::{NodeRow, Routes, Row},
};

/// Version of the table in a snapshot; the first byte of it.
const TABLE_VERSION: u8 = 2;
/// The version before tokens. It is still written while there are none, so that nodes of it can read it.
const TABLE_VERSION_1: u8 = 1;

/// No text in a table is longer, since each came in a command.
const TEXT_MAX: usize = PAYLOAD_MAX;
/// How much is read of a written table at a time.
const READ_BYTES: usize = 256 << 10;

impl Routes {
    /// The bytes of a snapshot; hidden rows stay behind.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("a table can be written to memory");
        bytes
    }

    /// Writes what [`Routes::encode`] gives, without a second copy of the table.
    ///
    /// # Errors
    /// Where `out` takes no more.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Told { stream: out, error: None };
        let written = self.write_parts(&mut out);
        written.map_err(|e| out.error.take().unwrap_or_else(|| io::Error::other(e)))
    }

    fn write_parts(&self, mut out: impl Write) -> postcard::Result<()> {
        let version = if self.trust.is_empty() { TABLE_VERSION_1 } else { TABLE_VERSION };
        out = postcard::to_io(&(version, &self.nodes, Visible(self), self.index), out)?;
        if version == TABLE_VERSION {
            out = postcard::to_io(&self.trust, out)?;
        }
        out = postcard::to_io(&self.doors, out)?;
        let invisible: Vec<&FullJid> = self.each().filter(|row| row.invisible).map(|row| &row.jid).collect();
        if !self.leaving.is_empty() || !invisible.is_empty() {
            out = postcard::to_io(&self.leaving, out)?;
        }
        if !invisible.is_empty() {
            postcard::to_io(&invisible, out)?;
        }
        Ok(())
    }

    /// Reads what [`Routes::encode`] wrote, in this version or the one before, now or before there were doors,
    /// nodes that leave, or sessions that hide.
    pub fn decode(bytes: &[u8]) -> Option<Routes> {
        Routes::read(bytes).ok()
    }

    /// As [`Routes::decode`], without all of the bytes in memory.
    ///
    /// # Errors
    /// Where the reading fails, and where it is no table.
    pub fn read(from: impl Read) -> io::Result<Routes> {
        let mut bytes = Parts::new(from);
        let version: u8 = bytes.next()?;
        if ![TABLE_VERSION, TABLE_VERSION_1].contains(&version) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a table of version {version}")));
        }
        let Body { nodes, users, index } = bytes.next()?;
        let mut routes = Routes { nodes, users, index, ..Routes::default() };
        if version == TABLE_VERSION {
            routes.trust = bytes.next()?;
        }
        if bytes.has_more()? {
            routes.doors = bytes.next()?;
        }
        if bytes.has_more()? {
            routes.leaving = bytes.next()?;
        }
        if bytes.has_more()? {
            let invisible: Vec<FullJid> = bytes.next()?;
            for jid in &invisible {
                routes.users.change(jid, |_| true, |row| row.invisible = true);
            }
        }
        routes.count();
        Ok(routes)
    }
}

/// The first part of the table as it is written; tokens and removed nodes come behind it, in version 2, then the doors,
/// then the nodes that leave, where there are any or there is more, and then the sessions that hide, where there are any.
#[derive(Deserialize)]
struct Body {
    nodes: BTreeMap<NodeId, NodeRow>,
    users: Accounts,
    index: u64,
}

/// Reads one part of a written table after the other.
struct Parts<R> {
    from: BufReader<Told<R>>,
    text: Vec<u8>,
}

/// The same as postcard asks for it: only one text at a time is in memory, and none can be borrowed from it.
struct Stream<'a, R> {
    from: &'a mut BufReader<Told<R>>,
    text: &'a mut Vec<u8>,
}

/// Keeps the error that postcard does not tell.
struct Told<T> {
    stream: T,
    error: Option<io::Error>,
}

/// The visible rows as they are written.
struct Visible<'a>(&'a Routes);

impl Serialize for Visible<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_visible = |row: &&Row| self.0.is_visible(row);
        let each = || self.0.users.each_account();
        let accounts = each().filter(|rows| rows.iter().any(|row| is_visible(&row))).count();
        let mut map = serializer.serialize_map(Some(accounts))?;
        for rows in each() {
            let visible: Vec<&Row> = rows.iter().filter(is_visible).collect();
            if let Some(first) = visible.first() {
                map.serialize_entry(bare_of(&first.jid), &visible)?;
            }
        }
        map.end()
    }
}

impl<R: Read> Parts<R> {
    fn new(stream: R) -> Parts<R> {
        let from = BufReader::with_capacity(READ_BYTES, Told { stream, error: None });
        Parts { from, text: Vec::new() }
    }

    fn next<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let stream = Stream { from: &mut self.from, text: &mut self.text };
        let read = T::deserialize(&mut postcard::Deserializer::from_flavor(stream));
        let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        read.map_err(|e| self.from.get_mut().error.take().unwrap_or_else(|| damaged(e)))
    }

    fn has_more(&mut self) -> io::Result<bool> {
        Ok(!self.from.fill_buf()?.is_empty())
    }
}

impl<'de, R: Read + 'de> Flavor<'de> for Stream<'de, R> {
    type Remainder = ();
    type Source = ();

    fn pop(&mut self) -> postcard::Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte).map_err(|_| postcard::Error::DeserializeUnexpectedEnd)?;
        Ok(byte[0])
    }

    fn try_take_n(&mut self, _: usize) -> postcard::Result<&'de [u8]> {
        Err(postcard::Error::WontImplement)
    }

    fn try_take_n_temp<'a>(&'a mut self, bytes: usize) -> postcard::Result<&'a [u8]>
    where
        'de: 'a,
    {
        if bytes > TEXT_MAX {
            return Err(postcard::Error::DeserializeUnexpectedEnd);
        }
        self.text.resize(bytes, 0);
        self.from.read_exact(self.text).map_err(|_| postcard::Error::DeserializeUnexpectedEnd)?;
        Ok(self.text)
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

impl<R: Read> Read for Told<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes).inspect_err(|e| self.error = Some(again(e)))
    }
}

impl Write for Told<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes).inspect_err(|e| self.error = Some(again(e)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().inspect_err(|e| self.error = Some(again(e)))
    }
}

fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

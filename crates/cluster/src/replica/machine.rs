//! What the group `data` agrees on: commands become records in sled, in one write with the place in the log.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use proto::store as wire;
use store::{
    StoreError,
    engines::sled::{Disk, KEEPER as ALONE, writing::Writing},
};

use super::wire::{FORMAT, Malformed, check_command, commit_reply, read_batch, read_id};
use crate::raft::machine::{Committed, Machine, Refusal, SnapshotWriter};

/// The name under which a cluster keeps its stores.
const KEEPER: &str = "a cluster";
/// The name of the mark with the place in the log.
const PLACE: &[u8] = b"raft/place";
/// What the names of marks with remembered commands start with; the index of their entry follows.
const REMEMBERED: &[u8] = b"raft/remembered/";
/// How many commands are remembered at least. A command is repeated only until its deadline, some seconds.
pub(super) const REMEMBERED_MAX: usize = 65_536;

/// The state of the group `data` on this backend.
pub(super) struct StoreMachine {
    disk: Arc<Disk>,
    place: Option<Bytes>,
    recent: Recent,
    remembered_max: usize,
}

/// Commands that were applied not long ago. Part of the state: every replica remembers the same ones.
#[derive(Default)]
struct Recent {
    answers: HashMap<u128, Bytes>,
    /// The ids by the entry that brought them, oldest first.
    entries: VecDeque<(u64, Vec<u128>)>,
}

impl StoreMachine {
    /// The machine over what is on the disk.
    pub(super) fn open(disk: Arc<Disk>) -> Result<StoreMachine, StoreError> {
        Self::remembering(disk, REMEMBERED_MAX)
    }

    /// As [`StoreMachine::open`], of a node that founded its cluster alone: what its store was given while it had no
    /// log becomes the state before the log, with this place behind it.
    pub(super) fn open_founded(disk: Arc<Disk>, place: &[u8]) -> Result<StoreMachine, StoreError> {
        if disk.hand_over(ALONE, KEEPER, &[(PLACE, place)])? {
            tracing::info!("the store of this node alone becomes that of its cluster");
        }
        Self::open(disk)
    }

    pub(super) fn remembering(disk: Arc<Disk>, remembered_max: usize) -> Result<StoreMachine, StoreError> {
        disk.claim(KEEPER)?;
        let place = disk.mark(PLACE)?.map(Bytes::from);
        let recent = Recent::load(&disk)?;
        Ok(StoreMachine { disk, place, recent, remembered_max })
    }

    fn apply_all(&mut self, entries: &[Committed]) -> Result<Vec<Vec<Bytes>>, StoreError> {
        let Some(last) = entries.last() else { return Ok(Vec::new()) };
        let disk = self.disk.clone();
        let mut writing = disk.write()?;
        let mut replies = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut new = Vec::new();
            let mut answers = Vec::with_capacity(entry.payloads.len());
            for payload in &entry.payloads {
                answers.push(self.apply_one(&mut writing, payload, &mut new)?);
            }
            self.recent.remember(&mut writing, entry.index, new, self.remembered_max);
            replies.push(answers);
        }
        writing.mark(PLACE, Some(&last.mark));
        writing.finish()?;
        self.place = Some(last.mark.clone());
        Ok(replies)
    }

    /// Applies one command. An error is a fault of this node's disk alone, so the group must stop here; what
    /// every replica sees alike is an answer.
    fn apply_one(
        &mut self,
        writing: &mut Writing<'_>,
        payload: &Bytes,
        new: &mut Vec<wire::Answered>,
    ) -> Result<Bytes, StoreError> {
        let refuse = |error: StoreError| Ok(encode(&commit_reply(Err(error))));
        let Ok(command) = wire::Command::decode(payload.clone()) else {
            return refuse(Malformed("not a command").into());
        };
        if command.format > FORMAT {
            // Other backends know what it means: to go on without it would be to differ from them.
            let reason = format!("command of format {}, only {FORMAT} is known here", command.format);
            return Err(StoreError::Engine { reason });
        }
        let id = match read_id(&command.id) {
            Ok(id) => id,
            Err(malformed) => return refuse(malformed.into()),
        };
        if let Some(answer) = self.recent.answers.get(&id) {
            return Ok(answer.clone());
        }
        let batches = command.batches.into_iter().map(|b| {
            let batch = read_batch(b)?;
            batch.check()?;
            Ok(batch)
        });
        let batches: Vec<_> = match batches.collect::<Result<_, StoreError>>() {
            Ok(batches) => batches,
            Err(e) => return refuse(e),
        };
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in &batches {
            outcomes.push(writing.batch(batch)?);
        }
        let reply = commit_reply(Ok(outcomes));
        let answer = encode(&reply);
        self.recent.answers.insert(id, answer.clone());
        new.push(wire::Answered { id: command.id, reply: Some(reply) });
        Ok(answer)
    }
}

impl Recent {
    fn load(disk: &Disk) -> Result<Recent, StoreError> {
        let mut recent = Recent::default();
        for (name, bytes) in disk.marks(REMEMBERED)? {
            let damaged = || StoreError::Engine { reason: "remembered commands are damaged".to_owned() };
            let index = name[REMEMBERED.len()..].try_into().map_err(|_| damaged())?;
            let remembered = wire::Remembered::decode(&bytes[..]).map_err(|_| damaged())?;
            let mut ids = Vec::with_capacity(remembered.answered.len());
            for answered in remembered.answered {
                let id = read_id(&answered.id).map_err(|_| damaged())?;
                recent.answers.insert(id, encode(&answered.reply.unwrap_or_default()));
                ids.push(id);
            }
            recent.entries.push_back((u64::from_be_bytes(index), ids));
        }
        Ok(recent)
    }

    /// Remembers the commands of an entry and forgets the oldest entries that are not needed to fill `max`.
    fn remember(&mut self, writing: &mut Writing<'_>, index: u64, new: Vec<wire::Answered>, max: usize) {
        if new.is_empty() {
            return;
        }
        let ids = new.iter().filter_map(|answered| read_id(&answered.id).ok()).collect();
        writing.mark(&mark_name(index), Some(&wire::Remembered { answered: new }.encode_to_vec()));
        self.entries.push_back((index, ids));
        while let Some((oldest, ids)) = self.entries.front() {
            if self.answers.len() - ids.len() < max {
                break;
            }
            writing.mark(&mark_name(*oldest), None);
            for id in ids {
                self.answers.remove(id);
            }
            self.entries.pop_front();
        }
    }
}

/// The state of a backend that does not run.
pub(crate) struct Offline(StoreMachine);

impl Offline {
    pub(crate) fn open(disk: Arc<Disk>) -> Result<Offline, StoreError> {
        StoreMachine::open(disk).map(Offline)
    }

    /// The place behind what was applied.
    pub(crate) fn place(&self) -> Option<&[u8]> {
        self.0.place.as_deref()
    }

    pub(crate) fn apply(&mut self, entries: &[Committed]) -> io::Result<()> {
        Machine::apply(&mut self.0, entries).map(drop)
    }

    /// Puts another place behind what was applied, and syncs all of it.
    pub(crate) fn begin_at(&mut self, place: &[u8]) -> Result<(), StoreError> {
        let mut writing = self.0.disk.write()?;
        writing.mark(PLACE, Some(place));
        writing.finish()?;
        self.0.disk.sync()
    }
}

fn mark_name(index: u64) -> Vec<u8> {
    [REMEMBERED, &index.to_be_bytes()].concat()
}

fn encode(reply: &wire::CommitReply) -> Bytes {
    reply.encode_to_vec().into()
}

impl Machine for StoreMachine {
    fn is_durable(&self) -> bool {
        true
    }

    fn mark(&self) -> Option<Bytes> {
        self.place.clone()
    }

    fn refusal(&self) -> Refusal {
        |bytes| check_command(bytes).err().map(|error| encode(&commit_reply(Err(error))))
    }

    fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>> {
        self.apply_all(entries).map_err(io::Error::other)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let mut copy = self.disk.copy();
        Ok(Box::new(move |out| copy.write_to(out)))
    }

    fn install(&mut self, mark: Bytes, snapshot: &mut dyn Read) -> io::Result<()> {
        self.disk.install(snapshot, (PLACE, &mark))?;
        self.recent = Recent::load(&self.disk).map_err(io::Error::other)?;
        self.place = Some(mark);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.sync().map_err(io::Error::other)
    }
}

//! What clients said and heard, and whether it adds up: accepted messages once and in order, contacts told once, nothing of a fenced node.
//!
//! A message counts as accepted when a ping behind it was answered on the stream of its sender. Of a stream whose node
//! was killed that says nothing (there is no XEP-0198 to cover it), but what is in front of a message that was heard
//! must be there too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::time::Instant;

/// How long after its last contact with the leader a node may serve (`cluster.times.fence_ms`).
const FENCE: Duration = Duration::from_secs(3);
/// What a busy machine may take to bring a client what was written in time.
const SLOW: Duration = Duration::from_millis(1500);
/// A message that was heard so long before a trouble began may not have been reported as written.
const BEFORE: Duration = Duration::from_secs(2);
/// As long after its end may one be heard that is carried again.
const AFTER: Duration = Duration::from_secs(20);

/// What befell a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Killed without warning: what its clients had said last may be lost.
    Killed,
    /// Cut off from the leader, or paused: it is fenced after a while.
    Away,
    /// Something that may cost it the lease, or not.
    Shaken,
}

#[derive(Clone, Debug)]
struct Trouble {
    node: usize,
    kind: Kind,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    from: usize,
    to: usize,
    stream: usize,
    at: Instant,
}

#[derive(Clone, Debug)]
struct Stream {
    user: usize,
    node: usize,
    opened: Instant,
    /// Messages with a lower number were read, as far as they are of this stream.
    read: usize,
    ended: Option<(Instant, String)>,
    /// Whether the user has another one that counts.
    beside: bool,
}

/// Presence of a contact as it was heard.
#[derive(Clone, Copy, Debug)]
struct Told {
    stream: usize,
    about: usize,
    available: bool,
    at: Instant,
}

/// Everything that happened.
#[derive(Default)]
pub struct Book {
    said: Vec<Said>,
    streams: Vec<Stream>,
    /// Message, stream, when.
    heard: Vec<(usize, usize, Instant)>,
    bounced: Vec<usize>,
    told: Vec<Told>,
    /// When anything at all came from the server.
    served: Vec<(usize, Instant)>,
    troubles: Vec<Trouble>,
    odd: Vec<String>,
}

impl Book {
    pub fn opened(&mut self, user: usize, node: usize) -> usize {
        self.streams.push(Stream { user, node, opened: Instant::now(), read: 0, ended: None, beside: false });
        self.streams.len() - 1
    }

    /// A stream that a user has beside the one that counts.
    pub fn opened_beside(&mut self, user: usize, node: usize) -> usize {
        let stream = self.opened(user, node);
        self.streams[stream].beside = true;
        stream
    }

    /// Whether the user has another stream that counts.
    pub fn is_beside(&self, stream: usize) -> bool {
        self.streams[stream].beside
    }

    pub fn ended(&mut self, stream: usize, why: String) {
        self.streams[stream].ended = Some((Instant::now(), why));
    }

    /// The number of a message that is being said.
    pub fn say(&mut self, from: usize, to: usize, stream: usize) -> usize {
        self.said.push(Said { from, to, stream, at: Instant::now() });
        self.said.len() - 1
    }

    pub fn count(&self) -> usize {
        self.said.len()
    }

    pub fn note_served(&mut self, stream: usize) {
        self.served.push((stream, Instant::now()));
    }

    pub fn note_read(&mut self, stream: usize, below: usize) {
        self.streams[stream].read = self.streams[stream].read.max(below);
    }

    pub fn note_heard(&mut self, number: usize, stream: usize) {
        match self.said.get(number) {
            Some(said) if said.to == self.streams[stream].user => {
                self.heard.push((number, stream, Instant::now()));
            }
            _ => self.note_odd(format!("message {number} was heard on the {}", self.streams[stream])),
        }
    }

    pub fn note_bounced(&mut self, number: usize, stream: usize) {
        match self.said.get(number) {
            Some(said) if said.from == self.streams[stream].user => self.bounced.push(number),
            _ => self.note_odd(format!("message {number} bounced to the {}", self.streams[stream])),
        }
    }

    pub fn note_told(&mut self, stream: usize, about: usize, available: bool) {
        self.told.push(Told { stream, about, available, at: Instant::now() });
    }

    pub fn note_odd(&mut self, what: String) {
        self.odd.push(what);
    }

    /// Something befalls a node from now on.
    pub fn trouble(&mut self, node: usize, kind: Kind) {
        self.troubles.push(Trouble { node, kind, from: Instant::now(), until: None });
    }

    /// It is over.
    pub fn over(&mut self, node: usize) {
        let now = Instant::now();
        let open = self.troubles.iter_mut().filter(|t| t.node == node && t.until.is_none());
        open.for_each(|trouble| trouble.until = Some(now));
    }

    /// What a user was told about a contact since then: true for available.
    pub fn told_since(&self, viewer: usize, about: usize, since: Instant) -> Vec<bool> {
        let told = self.told.iter().filter(|t| t.at >= since && t.about == about);
        told.filter(|t| self.streams[t.stream].user == viewer).map(|t| t.available).collect()
    }

    /// How the streams of a user that ended since then did so.
    pub fn ends_since(&self, user: usize, since: Instant) -> Vec<&str> {
        let streams = self.streams.iter().filter(|s| s.user == user);
        streams.filter_map(|s| s.ended.as_ref()).filter(|e| e.0 >= since).map(|e| &*e.1).collect()
    }

    /// The stream that a user has now, and its node.
    pub fn current(&self, user: usize) -> Option<(usize, usize)> {
        let found = self.streams.iter().rposition(|s| s.user == user && s.ended.is_none() && !s.beside)?;
        Some((found, self.streams[found].node))
    }

    /// How many messages were heard since then by users of a node, and by all others.
    pub fn heard_since(&self, node: usize, since: Instant) -> (usize, usize) {
        let late = self.heard.iter().filter(|(_, _, at)| *at >= since);
        let (there, elsewhere): (Vec<_>, Vec<_>) =
            late.map(|h| h.1).partition(|s| self.streams[*s].node == node);
        (there.len(), elsewhere.len())
    }

    pub fn is_read(&self, stream: usize, number: usize) -> bool {
        self.streams[stream].read > number
    }

    fn of_killed_node(&self, stream: usize) -> bool {
        let Stream { node, opened, ended, .. } = &self.streams[stream];
        let ended = ended.as_ref().map(|e| e.0 + BEFORE);
        let meant = |t: &&Trouble| t.node == *node && t.kind == Kind::Killed;
        self.troubles.iter().filter(meant).any(|t| t.from >= *opened && ended.is_none_or(|end| t.from <= end))
    }

    /// The messages that somebody answers for.
    fn accepted(&self) -> BTreeSet<usize> {
        let killed: Vec<bool> = (0..self.streams.len()).map(|s| self.of_killed_node(s)).collect();
        let mut reached: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (number, ..) in &self.heard {
            let Said { stream, to, .. } = self.said[*number];
            let last = reached.entry((stream, to)).or_default();
            *last = number.max(last).to_owned();
        }
        let numbered = self.said.iter().enumerate();
        let sure = |(number, said): &(usize, &Said)| match killed[said.stream] {
            false => self.is_read(said.stream, *number),
            true => reached.get(&(said.stream, said.to)).is_some_and(|last| number <= last),
        };
        numbered.filter(sure).map(|(number, _)| number).collect()
    }

    /// Accepted messages that nobody has heard of, by their numbers and receivers.
    pub fn missing(&self) -> Vec<(usize, usize)> {
        let known: BTreeSet<usize> =
            self.heard.iter().map(|h| h.0).chain(self.bounced.iter().copied()).collect();
        let missing = self.accepted().into_iter().filter(|number| !known.contains(number));
        missing.map(|number| (number, self.said[number].to)).collect()
    }

    /// Whether a message may be carried again that was heard there then: nobody may know that it was.
    fn may_come_again(&self, stream: usize, at: Instant) -> bool {
        let meant = |t: &&Trouble| t.node == self.streams[stream].node;
        let near = |t: &Trouble| at + BEFORE >= t.from && t.until.is_none_or(|until| at <= until + AFTER);
        self.troubles.iter().filter(meant).any(near)
    }

    /// Adds all up. The users that are contacts of each other end up being seen by each other.
    pub fn judge(&self, contacts: &[(usize, usize)]) -> Result<Figures> {
        let accepted = self.accepted();
        let missing = self.missing();
        let mut hearings: BTreeMap<usize, Vec<(usize, Instant)>> = BTreeMap::new();
        let mut disorder = Vec::new();
        let mut last: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (number, stream, at) in &self.heard {
            let all = hearings.entry(*number).or_default();
            all.push((*stream, *at));
            if all.len() > 1 {
                continue;
            }
            let said = self.said[*number];
            if let Some(before) =
                last.insert((said.stream, said.to), *number).filter(|before| before > number)
            {
                disorder.push(format!(
                    "{} behind {before} on the {}",
                    self.named(*number),
                    self.streams[*stream]
                ));
            }
        }
        let (mut again, mut twice) = (0, Vec::new());
        for (number, all) in &hearings {
            let bounced = self.bounced.iter().filter(|b| *b == number).count();
            let more = all.len() - 1 + bounced;
            let (stream, at) = all[0];
            match more {
                0 => {}
                _ if self.may_come_again(stream, at) => again += more,
                _ => twice.push(format!("{}: {all:?}, bounced {bounced} times", self.named(*number))),
            }
        }
        let figures = Figures {
            said: self.said.len(),
            accepted: accepted.len(),
            heard: hearings.len(),
            bounced: self.bounced.len(),
            again,
            streams: self.streams.len(),
        };
        let late = self.served_by_fenced();
        let told = self.told_wrongly(contacts);
        let ends: Vec<String> = missing.iter().take(5).map(|(number, _)| self.named(*number)).collect();
        ensure!(missing.is_empty(), "{} accepted messages are lost: {ends:#?}; {figures}", missing.len());
        ensure!(self.odd.is_empty(), "not as it should be: {:#?}", &self.odd[..self.odd.len().min(5)]);
        ensure!(
            twice.is_empty(),
            "{} came twice: {:#?}; {figures}",
            twice.len(),
            &twice[..twice.len().min(5)]
        );
        ensure!(
            disorder.is_empty(),
            "{} out of order: {:#?}",
            disorder.len(),
            &disorder[..disorder.len().min(5)]
        );
        ensure!(late.is_empty(), "{} served without a lease: {:#?}", late.len(), &late[..late.len().min(5)]);
        ensure!(told.is_empty(), "contacts were not told the truth: {told:#?}");
        Ok(figures)
    }

    /// What came from nodes that were away for longer than their lease.
    fn served_by_fenced(&self) -> Vec<String> {
        let mut late = Vec::new();
        for trouble in self.troubles.iter().filter(|t| t.kind == Kind::Away) {
            let Some(until) = trouble.until else { continue };
            let from = trouble.from + FENCE + SLOW;
            let there = self.served.iter().filter(|(s, _)| self.streams[*s].node == trouble.node);
            for (stream, at) in there.filter(|(_, at)| *at > from && *at < until) {
                late.push(format!(
                    "{:?} after the cut, on the {}",
                    *at - trouble.from,
                    self.streams[*stream]
                ));
            }
        }
        late
    }

    /// Who heard twice in a row that a contact has gone, or does not see at the end who is there.
    fn told_wrongly(&self, contacts: &[(usize, usize)]) -> Vec<String> {
        let mut last: BTreeMap<(usize, usize), bool> = BTreeMap::new();
        let mut wrong = Vec::new();
        for Told { stream, about, available, at } in &self.told {
            let before = last.insert((*stream, *about), *available);
            if before == Some(false) && !available {
                let Stream { user: viewer, opened, .. } = self.streams[*stream];
                let all = self.told.iter().filter(|t| t.stream == *stream && t.about == *about);
                let all: Vec<String> = all
                    .map(|t| {
                        format!(
                            "{} {:.3} s",
                            if t.available { "+" } else { "-" },
                            (t.at - opened).as_secs_f32()
                        )
                    })
                    .collect();
                wrong.push(format!(
                    "user {viewer} heard again that user {about} has gone, {:?} after login; all that it heard of them: {}",
                    *at - opened,
                    all.join(", ")
                ));
            }
        }
        let both = contacts.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
        for (viewer, about) in both {
            let (Some((stream, _)), Some(_)) = (self.current(viewer), self.current(about)) else {
                wrong.push(format!("user {viewer} or {about} is not there"));
                continue;
            };
            if last.get(&(stream, about)) != Some(&true) {
                wrong
                    .push(format!("user {viewer} does not see user {about} on the {}", self.streams[stream]));
            }
        }
        wrong
    }

    fn named(&self, number: usize) -> String {
        let Said { from, to, stream, at } = self.said[number];
        let receiver = self.streams.iter().filter(|s| s.user == to).map(|s| {
            let ended = s.ended.as_ref().map(|e| e.0);
            format!("{s} from {} to {}", apart(at, Some(s.opened)), apart(at, ended))
        });
        let receiver: Vec<String> = receiver.collect();
        let ended = apart(at, self.streams[stream].ended.as_ref().map(|e| e.0));
        let sender = &self.streams[stream];
        format!(
            "message {number} from user {from} to user {to}, said on the {sender}, which went on to {ended}; the \
             receiver had the {}",
            receiver.join(", the ")
        )
    }
}

/// How much later than `at` something was.
fn apart(at: Instant, then: Option<Instant>) -> String {
    match then {
        None => "the end".into(),
        Some(then) if then >= at => format!("{:.3} s", (then - at).as_secs_f32()),
        Some(then) => format!("-{:.3} s", (at - then).as_secs_f32()),
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stream { user, node, ended, .. } = self;
        let ended = ended.as_ref().map_or("open", |(_, why)| why);
        write!(f, "stream of user {user} at node {node} ({ended})")
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub said: usize,
    pub accepted: usize,
    pub heard: usize,
    pub bounced: usize,
    /// Carried again to receivers whose node was in trouble when they heard it first.
    pub again: usize,
    pub streams: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { said, accepted, heard, bounced, again, streams } = self;
        write!(
            f,
            "{said} messages said, {accepted} known to be accepted; {heard} delivered, {bounced} bounced, {again} \
             carried again after trouble; {streams} streams"
        )
    }
}

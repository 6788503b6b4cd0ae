//! What modules see of a session: who it is, what it last said about itself, their own notes on it.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI16, Ordering};

use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use stanza::Stanza;
use stanza::address::same_account;

/// The random name of one session's life: a successor under the same full JID has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid(pub u128);

/// A bound was reached; nothing was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// No priority: bound, but not available.
const NOT_AVAILABLE: i16 = i16::MIN;

/// A bound session as modules see it. Shared between the session's actor and the handlers.
pub struct SessionView {
    jid: FullJid,
    account: BareJid,
    sid: Sid,
    secure: bool,
    anonymous: bool,
    presence: Mutex<Option<Stanza>>,
    priority: AtomicI16,
    interested: AtomicBool,
    inactive: AtomicBool,
    waiting: AtomicBool,
    invisible: AtomicBool,
    directed: Mutex<HashSet<Jid>>,
    notes: Notes,
}

impl SessionView {
    /// A session that has just been bound; `secure`: its stream is under TLS.
    pub fn new(jid: FullJid, sid: Sid, secure: bool) -> SessionView {
        SessionView {
            account: jid.to_bare(),
            jid,
            sid,
            secure,
            anonymous: false,
            presence: Mutex::new(None),
            priority: AtomicI16::new(NOT_AVAILABLE),
            interested: AtomicBool::new(false),
            inactive: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            invisible: AtomicBool::new(false),
            directed: Mutex::new(HashSet::new()),
            notes: Notes::default(),
        }
    }

    /// The same, of a client that logged in without an account (XEP-0175).
    #[must_use]
    pub fn anonymous(self) -> SessionView {
        SessionView { anonymous: true, ..self }
    }

    pub fn jid(&self) -> &FullJid {
        &self.jid
    }

    pub fn account(&self) -> &BareJid {
        &self.account
    }

    pub fn sid(&self) -> Sid {
        self.sid
    }

    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether there is no account behind it: what is stored under its name, nobody ever gets.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// The last available presence that was broadcast, stamped with the full JID, without `to`.
    pub fn presence(&self) -> Option<Stanza> {
        self.said().filter(|_| !self.is_invisible())
    }

    /// Whether there is one.
    pub fn has_presence(&self) -> bool {
        self.presence.lock().is_some() && !self.is_invisible()
    }

    /// As `presence`, also where the session is invisible and it was told to nobody.
    pub fn said(&self) -> Option<Stanza> {
        self.presence.lock().clone()
    }

    /// Replaces the presence and returns the one before, where it was broadcast.
    pub fn set_presence(&self, presence: Option<Stanza>) -> Option<Stanza> {
        std::mem::replace(&mut *self.presence.lock(), presence).filter(|_| !self.is_invisible())
    }

    /// Whether its client wants it to be seen by nobody (XEP-0186): it takes what comes, and its presence is told to
    /// those alone to whom it is directed.
    pub fn is_invisible(&self) -> bool {
        self.invisible.load(Ordering::Acquire)
    }

    /// Notes whether it does; `Services::hide` and `Services::set_priority` are what tells the cluster.
    pub fn set_invisible(&self, invisible: bool) {
        self.invisible.store(invisible, Ordering::Release);
    }

    /// The priority of the last available presence; `None`: bound, but not available.
    pub fn priority(&self) -> Option<i8> {
        let raw = self.priority.load(Ordering::Acquire);
        (raw != NOT_AVAILABLE).then_some(raw as i8)
    }

    /// Notes the priority; `Services::set_priority` is what tells the cluster.
    pub fn set_priority(&self, priority: Option<i8>) {
        self.priority.store(priority.map_or(NOT_AVAILABLE, i16::from), Ordering::Release);
    }

    /// Whether the client asked for the roster, and so gets pushes (RFC 6121, 2.1.6).
    pub fn is_interested(&self) -> bool {
        self.interested.load(Ordering::Acquire)
    }

    pub fn set_interested(&self) {
        self.interested.store(true, Ordering::Release);
    }

    /// Whether nobody looks at the client (XEP-0352): what can wait does.
    pub fn is_inactive(&self) -> bool {
        self.inactive.load(Ordering::Acquire)
    }

    /// The client says whether anybody looks at it.
    pub fn set_inactive(&self, inactive: bool) {
        self.inactive.store(inactive, Ordering::Release);
    }

    /// Whether the connection is lost and the session waits for its client (XEP-0198).
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Notes whether it does.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
    }

    /// Remembers a receiver of directed presence (RFC 6121, 4.6.3), at most `max` of them.
    pub fn direct_to(&self, to: Jid, max: usize) -> Result<(), Full> {
        let mut directed = self.directed.lock();
        if directed.len() >= max && !directed.contains(&to) {
            return Err(Full);
        }
        directed.insert(to);
        Ok(())
    }

    /// Forgets a receiver of directed presence; `false`: it was none.
    pub fn undirect(&self, to: &Jid) -> bool {
        self.directed.lock().remove(to)
    }

    /// Whether directed presence went to `to` and was not ended.
    pub fn is_directed_to(&self, to: &Jid) -> bool {
        self.directed.lock().contains(to)
    }

    /// Whether directed presence went to `account` or to any full JID of it, and was not ended: the occupants
    /// of one room share its account.
    pub fn is_directed_to_any_of(&self, account: &BareJid) -> bool {
        self.directed.lock().iter().any(|jid| same_account(jid, account))
    }

    /// Takes all receivers of directed presence, to be told that the session is unavailable.
    pub fn take_directed(&self) -> HashSet<Jid> {
        std::mem::take(&mut self.directed.lock())
    }

    /// All receivers of directed presence.
    pub fn directed(&self) -> Vec<Jid> {
        self.directed.lock().iter().cloned().collect()
    }

    /// Takes those receivers of directed presence that `is_wanted` names.
    pub fn take_directed_if(&self, is_wanted: impl Fn(&Jid) -> bool) -> Vec<Jid> {
        self.directed.lock().extract_if(|jid| is_wanted(jid)).collect()
    }

    /// What modules remember about this session, by type.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }
}

impl std::fmt::Debug for SessionView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionView")
            .field("jid", &self.jid.as_str())
            .field("sid", &self.sid)
            .field("priority", &self.priority())
            .finish_non_exhaustive()
    }
}

type Note = Arc<dyn Any + Send + Sync>;

/// A small map from type to value: each module keeps at most one value of its own type here.
#[derive(Default)]
pub struct Notes(Mutex<HashMap<TypeId, Note>>);

impl Notes {
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let notes = self.0.lock();
        let note = notes.get(&TypeId::of::<T>())?.clone();
        note.downcast().ok()
    }

    pub fn put<T: Any + Send + Sync>(&self, value: T) {
        let mut notes = self.0.lock();
        notes.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of this type, made by `make` where there is none.
    pub fn get_or_put<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut notes = self.0.lock();
        let note = notes.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(make())).clone();
        note.downcast().unwrap_or_else(|_| unreachable!("a note is stored under its own type"))
    }
}

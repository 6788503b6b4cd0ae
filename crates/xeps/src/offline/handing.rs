//! What was handed over and stays in the store until its client has it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use hooks::{Kept, Services, Sid};
use jid::BareJid;
use parking_lot::Mutex;
use store::{Batch, Committed, Expect, StoreError, Versioned};

use super::{Claim, Found, Message, NAME, Waiting, again, flush_at_last, key, look_at_last, number, remove};
use crate::failure::store_failed;
use crate::rosters::partition;

/// How often a message may come back that somebody seems to be there for.
const MOVES: u8 = 3;

/// The numbers of the messages that were handed to a session and are in the store still.
#[derive(Default)]
pub(super) struct Handed(Mutex<HashSet<u64>>);

impl Handed {
    pub(super) fn has(&self, number: u64) -> bool {
        self.0.lock().contains(&number)
    }

    fn forget<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) {
        let mut numbers = self.0.lock();
        for (number, ..) in messages {
            numbers.remove(number);
        }
        if numbers.is_empty() {
            *numbers = HashSet::new();
        }
    }
}

/// Pages of which it is not known yet what became of all messages, for whoever logs in behind the session that they
/// were handed to: what that one has is not to come again.
#[derive(Default)]
pub(super) struct Pages {
    accounts: Mutex<HashMap<BareJid, Vec<Open>>>,
    next: AtomicU64,
}

/// One of them.
struct Open {
    number: u64,
    /// The session that it was handed to.
    sid: u128,
    /// Dropped with it, which wakes who waits.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Pages {
    fn open(self: &Arc<Pages>, account: &BareJid, sid: u128) -> OpenPage {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open { number, sid, waiting: Vec::new() };
        self.accounts.lock().entry(account.clone()).or_default().push(open);
        OpenPage { pages: self.clone(), account: account.clone(), number }
    }

    /// What ends when all is known of what was handed to sessions of the account that are not here any more.
    pub(super) fn unsettled(
        &self,
        account: &BareJid,
        is_here: impl Fn(u128) -> bool,
    ) -> Vec<oneshot::Receiver<()>> {
        let wait = |open: &mut Open| {
            let (told, wait) = oneshot::channel();
            open.waiting.push(told);
            wait
        };
        match self.accounts.lock().get_mut(account) {
            Some(open) => open.iter_mut().filter(|open| !is_here(open.sid)).map(wait).collect(),
            None => Vec::new(),
        }
    }
}

/// Closes a page when it is dropped.
struct OpenPage {
    pages: Arc<Pages>,
    account: BareJid,
    number: u64,
}

impl Drop for OpenPage {
    fn drop(&mut self) {
        let mut accounts = self.pages.accounts.lock();
        if let Some(open) = accounts.get_mut(&self.account) {
            open.retain(|open| open.number != self.number);
            if open.is_empty() {
                accounts.remove(&self.account);
            }
        }
    }
}

/// To whom messages are handed: the session that has claimed them, and what was handed to it before.
#[derive(Clone)]
pub(super) struct Taker {
    pub claim: Claim,
    pub handed: Arc<Handed>,
}

/// Messages that were claimed together: they are removed together, once it is known of all what became of them.
struct Page {
    services: Arc<dyn Services>,
    pages: Arc<Pages>,
    account: BareJid,
    handed: Arc<Handed>,
    /// Until it is known of all, or the store has failed.
    open: Mutex<Option<OpenPage>>,
    /// Of how many nothing is known, and those that their clients have.
    left: Mutex<(usize, Vec<Message>)>,
    back: Mutex<Back>,
}

/// Messages that came back while the store fails.
#[derive(Default)]
struct Back {
    /// With how often each has moved, in their order.
    messages: VecDeque<(Message, u8)>,
    /// They are tried again after a while.
    waits: bool,
}

/// One of them, on its way.
struct OnItsWay {
    page: Arc<Page>,
    message: Message,
    moves: u8,
}

/// Hands claimed messages over to the session that has claimed them, past all others, which are held. Should it be gone
/// by now, they come back.
pub(super) async fn hand_on(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    account: &BareJid,
    taker: &Taker,
    claimed: Vec<Found>,
    moves: u8,
) {
    let Taker { claim, handed } = taker;
    handed.0.lock().extend(claimed.iter().map(|(key, _)| number(key)));
    let page = Arc::new(Page {
        services: services.clone(),
        pages: pages.clone(),
        account: account.clone(),
        handed: handed.clone(),
        open: Mutex::new(Some(pages.open(account, claim.sid))),
        left: Mutex::new((claimed.len(), Vec::new())),
        back: Mutex::default(),
    });
    for (key, found) in claimed {
        let message = (number(&key), found.value.bytes, found.version);
        let way = Arc::new(OnItsWay { page: page.clone(), message, moves });
        match found.value.stanza.stanza() {
            Some(stanza) => services.route_kept(stanza.with_to(account.clone()), Sid(claim.sid), way).await,
            None => way.written().await,
        }
    }
}

/// Hands a message over that no session has claimed, if somebody is there for it.
pub(super) async fn free(
    services: &Arc<dyn Services>,
    pages: &Arc<Pages>,
    account: &BareJid,
    number: u64,
) -> Result<(), StoreError> {
    let found: Option<Versioned<Waiting>> =
        services.store().get_versioned(&partition(account), key(number)).await?;
    let Some(found) = found.filter(|found| found.value.claim.is_none()) else { return Ok(()) };
    let page = Page {
        services: services.clone(),
        pages: pages.clone(),
        account: account.clone(),
        handed: Arc::default(),
        open: Mutex::default(),
        left: Mutex::default(),
        back: Mutex::default(),
    };
    page.give_to_somebody(number, found, 0).await
}

impl Page {
    /// It is known of one more; of the last one, what is to be removed now.
    fn known(&self, written: Option<Message>) -> Option<Vec<Message>> {
        let mut left = self.left.lock();
        left.1.extend(written);
        left.0 = left.0.saturating_sub(1);
        (left.0 == 0).then(|| std::mem::take(&mut left.1))
    }

    /// It is known of all: what was written is removed, and then nobody waits for this page any more.
    async fn end(self: Arc<Self>, written: Option<Vec<Message>>) {
        if let Some(written) = written {
            self.clone().remove(written, 0).await;
            drop(self.open.lock().take());
        }
    }

    /// Where the store fails they are tried again, and come again at the next login if that comes to nothing.
    fn remove(self: Arc<Self>, written: Vec<Message>, tried: u32) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match self.try_remove(&written).await {
                Ok(()) => self.handed.forget(&written),
                Err(error) => {
                    drop(store_failed(NAME, &error));
                    match again(tried) {
                        Some(pause) => self.services.later(pause, self.clone().remove(written, tried + 1)),
                        None => self.handed.forget(&written),
                    }
                }
            }
        })
    }

    async fn try_remove(&self, written: &[Message]) -> Result<(), StoreError> {
        if written.is_empty() || remove(&*self.services, &self.account, written).await? {
            return Ok(());
        }
        // Another session has claimed one of them meanwhile: it hands that over once more.
        for one in written {
            remove(&*self.services, &self.account, std::slice::from_ref(one)).await?;
        }
        Ok(())
    }

    /// It goes to another session that takes it, or waits as before. Whoever waits behind it waits for a store that
    /// fails once, and not for each of a page.
    async fn take_back(self: Arc<Self>, message: Message, moves: u8) {
        if !self.back.lock().waits {
            match self.try_take_back(message, moves, 0).await {
                Ok(()) => return,
                Err(error) => drop(store_failed(NAME, &error)),
            }
            drop(self.open.lock().take());
        }
        let begins = {
            let mut back = self.back.lock();
            back.messages.push_back((message, moves));
            !std::mem::replace(&mut back.waits, true)
        };
        if begins {
            self.services.later(Duration::from_secs(1), self.clone().take_back_at_last(1));
        }
    }

    /// Tries again with those that wait, in their order.
    fn take_back_at_last(self: Arc<Self>, tried: u32) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let next = {
                    let mut back = self.back.lock();
                    back.waits = !back.messages.is_empty();
                    back.messages.front().copied()
                };
                let Some((message, moves)) = next else { return };
                let done = self.try_take_back(message, moves, tried).await;
                let Err(error) = done else {
                    self.back.lock().messages.pop_front();
                    continue;
                };
                drop(store_failed(NAME, &error));
                if let Some(pause) = again(tried) {
                    return self.services.later(pause, self.clone().take_back_at_last(tried + 1));
                }
                // They wait for the next login, which finds what nobody has.
                let mut back = self.back.lock();
                let messages = std::mem::take(&mut back.messages);
                back.waits = false;
                return self.handed.forget(messages.iter().map(|(message, _)| message));
            }
        })
    }

    async fn try_take_back(&self, message: Message, moves: u8, tried: u32) -> Result<(), StoreError> {
        let (number, _, version) = message;
        let services = &self.services;
        let found: Option<Versioned<Waiting>> =
            services.store().get_versioned(&partition(&self.account), key(number)).await?;
        let Some(found) = found.filter(|found| found.version == version) else {
            // Another session has claimed it, or had it; or the answer to the attempt before was lost, and then it
            // waits for whoever looks.
            self.handed.forget([&message]);
            if tried > 0 {
                self.look_again(number);
            }
            return Ok(());
        };
        let taker = self.taker().filter(|_| moves < MOVES);
        let claim = taker.as_ref().map(|taker| taker.claim.clone());
        let changed = self.claim(number, found, claim).await?;
        self.handed.forget([&message]);
        let Some(changed) = changed else { return Ok(()) };
        if let Some(taker) = taker {
            hand_on(services, &self.pages, &self.account, &taker, vec![changed], moves + 1).await;
            return Ok(());
        }
        // As with a message that is kept for the first time: whoever came meanwhile may have looked before.
        services.read_barrier().await?;
        self.give_to_somebody(number, changed.1, moves).await
    }

    async fn give_to_somebody(
        &self,
        number: u64,
        found: Versioned<Waiting>,
        moves: u8,
    ) -> Result<(), StoreError> {
        if let Some(taker) = self.taker().filter(|_| moves < MOVES)
            && let Some(changed) = self.claim(number, found, Some(taker.claim.clone())).await?
        {
            hand_on(&self.services, &self.pages, &self.account, &taker, vec![changed], moves + 1).await;
        }
        Ok(())
    }

    /// A session that takes what is sent to the account, as a claim says it, one of this node if there is one; and what
    /// was handed to it.
    fn taker(&self) -> Option<Taker> {
        let online = self.services.online(&self.account);
        let takes = online.iter().filter(|one| one.takes.is_some_and(|priority| priority >= 0));
        let taker = takes.max_by_key(|one| one.here)?;
        let local = self.services.local_sessions(&self.account);
        let session = local.iter().find(|here| here.sid() == taker.sid);
        let claim = Claim { jid: taker.jid.to_string(), sid: taker.sid.0 };
        let handed = session.map(|here| here.notes().get_or_put(Handed::default)).unwrap_or_default();
        Some(Taker { claim, handed })
    }

    /// Has the sessions of this node look for what waits, and gives what nobody has claimed to a session elsewhere.
    fn look_again(&self, number: u64) {
        let looks = look_at_last(&self.services, &self.pages, self.account.clone(), number, 0);
        self.services.later(Duration::ZERO, looks);
        for session in self.services.local_sessions(&self.account) {
            let looks = flush_at_last(&self.services, &self.pages, session, 1);
            self.services.later(Duration::ZERO, looks);
        }
    }

    /// Claims a message for another session or for none; `None`: it was changed meanwhile.
    async fn claim(
        &self,
        number: u64,
        found: Versioned<Waiting>,
        claim: Option<Claim>,
    ) -> Result<Option<Found>, StoreError> {
        let value = Waiting { claim, ..found.value };
        let batch = Batch::new(partition(&self.account))
            .expect::<Waiting>(key(number), Expect::Version(found.version))
            .put(key(number), &value);
        let done = self.services.store().commit_one(batch).await? == Committed::Done;
        Ok(done.then(|| (key(number), Versioned { version: found.version + 1, value })))
    }
}

impl Kept for OnItsWay {
    fn written(&self) -> BoxFuture<'static, ()> {
        let written = self.page.known(Some(self.message));
        Box::pin(self.page.clone().end(written))
    }

    fn returned(&self) -> BoxFuture<'static, ()> {
        let written = self.page.known(None);
        let (page, message, moves) = (self.page.clone(), self.message, self.moves);
        Box::pin(async move {
            page.clone().take_back(message, moves).await;
            page.end(written).await;
        })
    }
}

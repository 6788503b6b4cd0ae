//! [XEP-0424]: Message Retraction. What its sender takes back is a tombstone in the archives of both sides.

use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use hooks::Services;
use jid::BareJid;
use parking_lot::Mutex;
use stanza::Stanza;
use store::{Batch, Expect, Range, StoreError, Versioned};

use super::NAME;
use super::entries::{Archived, Id, With, bare, id_of_with_key, mark, with_key};
use super::sweep::SETTLED;
use crate::kept::Kept;
use crate::rosters::partition;
use crate::time;

pub const RETRACT: &str = "urn:xmpp:message-retract:1";
pub const TOMBSTONE: &str = "urn:xmpp:message-retract:1#tombstone";

/// How far back a message is looked for that is to be taken back: among so many with the same correspondent.
const LOOKED_AT_MAX: usize = 10_000;
/// Rows of the index that are looked at at a time.
const ROWS: usize = 500;
/// The most retractions of all accounts that wait at one node to be carried out; further ones are archived, and leave
/// what they take back as it is.
const WAITING_MAX: usize = 10_000;
/// The most that are tried once more at a time.
const AGAIN_MAX: usize = 1_000;

/// Whether a message takes another one back.
pub fn is_one(message: &Stanza) -> bool {
    retracted(message).is_some()
}

/// The id of the message that a message takes back.
fn retracted(message: &Stanza) -> Option<String> {
    let retract = message.child("retract", RETRACT)?;
    let id = retract.attr("id").filter(|id| !id.is_empty())?;
    // Section 4: the tombstone names its retraction by the id that this one has.
    let named = message.head.id.as_ref().is_some_and(|own| !own.is_empty());
    named.then(|| id.to_owned())
}

/// A retraction that is in an archive.
#[derive(Debug, Clone)]
pub struct Retraction {
    /// Its own id there.
    pub id: Id,
    pub message: Archived,
}

/// What became of one.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is left to do.
    Done,
    /// The message is not there, or not yet: another node may be about to write it.
    Missing,
}

/// Retractions that were archived at this node and are to be carried out.
#[derive(Default)]
pub struct Retractions {
    waiting: Mutex<Waiting>,
    /// Held by who carries some out, so that who has had it knows that they are.
    working: futures::lock::Mutex<()>,
    again: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Waiting {
    accounts: HashMap<BareJid, Vec<Retraction>>,
    order: VecDeque<BareJid>,
    count: usize,
    /// Somebody is about to carry them out.
    runs: bool,
}

impl Retractions {
    /// Has retractions that were just written carried out.
    pub fn note(&self, account: &BareJid, written: Vec<Retraction>) {
        for retraction in written {
            let mut waiting = self.waiting.lock();
            if waiting.count >= WAITING_MAX {
                tracing::warn!(module = NAME, max = WAITING_MAX, "too many retractions wait");
                return;
            }
            waiting.count += 1;
            match waiting.accounts.get_mut(account) {
                Some(of_account) => of_account.push(retraction),
                None => {
                    waiting.accounts.insert(account.clone(), vec![retraction]);
                    waiting.order.push_back(account.clone());
                }
            }
        }
    }

    /// Whether whoever asks is to carry out what waits.
    pub fn begin(&self) -> bool {
        let mut waiting = self.waiting.lock();
        let begins = !waiting.order.is_empty() && !waiting.runs;
        waiting.runs |= begins;
        begins
    }

    /// The account that is next; `None`: nothing waits, and nobody is about to carry it out any more.
    pub fn next(&self) -> Option<BareJid> {
        let mut waiting = self.waiting.lock();
        let next = waiting.order.front().cloned();
        waiting.runs = next.is_some();
        next
    }

    /// Carries out what waits of one account.
    pub async fn settle(&self, services: &Arc<dyn Services>, account: &BareJid) {
        let _working = self.working.lock().await;
        let retractions = {
            let mut waiting = self.waiting.lock();
            waiting.order.retain(|one| one != account);
            let retractions = waiting.accounts.remove(account).unwrap_or_default();
            waiting.count = waiting.count.saturating_sub(retractions.len());
            retractions
        };
        for retraction in retractions {
            let since = match retraction.carry_out(&**services, account, Id::first_of(0)).await {
                Ok(Outcome::Done) => continue,
                Ok(Outcome::Missing) => {
                    let settled = u64::try_from(SETTLED.as_micros()).unwrap_or(u64::MAX);
                    Id::first_of(retraction.id.micros().saturating_sub(settled))
                }
                Err(error) => {
                    tracing::debug!(module = NAME, %account, %error, "failed to retract a message");
                    Id::first_of(0)
                }
            };
            self.try_again(services, account, retraction, since);
        }
    }

    /// Once more, when other nodes have written what they had.
    fn try_again(&self, services: &Arc<dyn Services>, account: &BareJid, retraction: Retraction, since: Id) {
        if self.again.fetch_add(1, Ordering::Relaxed) >= AGAIN_MAX {
            self.again.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (account, again, theirs) = (account.clone(), self.again.clone(), services.clone());
        let what = Box::pin(async move {
            if let Err(error) = retraction.carry_out(&*theirs, &account, since).await {
                tracing::warn!(module = NAME, %account, %error, "failed to retract a message");
            }
            again.fetch_sub(1, Ordering::Relaxed);
        });
        services.later(SETTLED, what);
    }
}

impl Retraction {
    /// Looks for what it takes back among what is older, the newest first and not before `since`.
    async fn carry_out(
        &self,
        services: &dyn Services,
        account: &BareJid,
        since: Id,
    ) -> Result<Outcome, StoreError> {
        let Some(named) = self.message.stanza.stanza().as_ref().and_then(retracted) else {
            return Ok(Outcome::Done);
        };
        let with = self.message.with();
        let first = with_key(with, since);
        let mut last = with_key(with, self.id);
        let mut looked_at = 0;
        while looked_at < LOOKED_AT_MAX {
            let range = Range {
                from: Bound::Included(first.clone()),
                to: Bound::Excluded(last.clone()),
                ..Range::all()
            };
            if range.is_empty() {
                break;
            }
            let range = range.reversed().limit(ROWS);
            let rows = services.store().scan::<With>(&partition(account), range).await?;
            for (key, row) in &rows {
                let may_be = row.named.is_none_or(|mark_of_id| mark_of_id == mark(&named));
                if let Some(id) = id_of_with_key(key).filter(|_| may_be)
                    && self.retracts(services, account, id, &named).await?
                {
                    return Ok(Outcome::Done);
                }
            }
            looked_at += rows.len();
            match rows.last() {
                Some((key, _)) if rows.len() == ROWS => last = key.clone(),
                _ => break,
            }
            services.pause().await;
        }
        Ok(Outcome::Missing)
    }

    /// `false`: that message is not the one.
    async fn retracts(
        &self,
        services: &dyn Services,
        account: &BareJid,
        id: Id,
        named: &str,
    ) -> Result<bool, StoreError> {
        let (store, partition) = (services.store(), partition(account));
        let found: Option<Versioned<Archived>> = store.get_versioned(&partition, id.key()).await?;
        let Some(found) = found else { return Ok(false) };
        let (original, retraction) = (&found.value.stanza, &self.message.stanza);
        // Section 5: both are of the same bare address.
        let sender = |kept: &Kept| kept.from().map(|from| bare(from).to_owned());
        if original.id() != Some(named) || sender(original) != sender(retraction) {
            return Ok(false);
        }
        let Some(stanza) = original.stanza() else { return Ok(true) };
        // A retraction stays, and so does the first tombstone.
        if ["retract", "retracted"].iter().any(|name| stanza.has_child(name, RETRACT)) {
            return Ok(true);
        }
        let tombstone =
            Archived { stanza: Kept::of(&self.tombstone(&stanza)), incoming: found.value.incoming };
        // What the limits of the archive take away meanwhile does not come back.
        let batch = Batch::new(partition).expect::<Archived>(id.key(), Expect::Version(found.version));
        store.commit_one(batch.put(id.key(), &tombstone)).await?;
        Ok(true)
    }

    /// Section 4: the head of the message, with nothing of what it said.
    fn tombstone(&self, message: &Stanza) -> Stanza {
        let mut body = BytesMut::new();
        let stamp = time::utc_micros(self.id.micros());
        let own = self.message.stanza.id().unwrap_or_default();
        for (text, value) in [("<retracted xmlns='", RETRACT), ("' stamp='", &stamp), ("' id='", own)] {
            body.extend_from_slice(text.as_bytes());
            stanza::dom::escape_attribute(value, &mut body);
        }
        body.extend_from_slice(b"'/>");
        let mut head = message.head.clone();
        head.extra.clear();
        Stanza::new(head, body.freeze())
    }
}

//! Ends accounts: locks one first, ends its sessions everywhere, tells who must know, and erases last.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Weak;
use std::time::Duration;

use cluster::Row;
use futures::FutureExt;
use hooks::{AccountError, AccountState, Credentials, How, Removal, Services, SessionEvent, StoreError};
use jid::{BareJid, FullJid};
use stanza::Stanza;

use crate::metrics::one;
use crate::router::Router;

/// How often the sessions of an account are sought before it is said that they do not end: who logs in
/// meanwhile looks at the account once more when it is bound.
const ROUNDS: usize = 5;
/// Such removals of one host that are looked at in one round; the others wait for the next.
const LEAVING_MAX: usize = 100;

impl Router {
    /// Begins to remove an account: see [`Services::remove_account`].
    pub(crate) async fn remove(
        &self,
        account: &BareJid,
        last: Option<Stanza>,
    ) -> Result<Removal, AccountError> {
        // First of all: who logs in from here on is refused, and what comes for the account finds nobody.
        self.accounts.begin_removal(account.as_str()).await?;
        if let Some(last) = last {
            // Past what waits: the request that it answers may be what the rest waits behind.
            self.route(last, How::Ahead).await;
        }
        // Whoever calls a method of the router holds it.
        let Some(router) = self.myself.upgrade() else { return Err(AccountError::Busy) };
        let account = account.clone();
        // By itself: neither a client nor an operator who goes away stops it.
        let rest = self.runtime.spawn(async move { router.end_removal(&account).await });
        Ok(Removal::new(async move {
            rest.await.unwrap_or_else(|_| {
                let reason = "the removal was interrupted; it will be tried again".to_owned();
                Err(StoreError::Unavailable { reason }.into())
            })
        }))
    }

    /// What is left to do for an account that is locked; how many sessions were ended. Doing it twice, or at
    /// two nodes at a time, does no harm.
    async fn end_removal(&self, account: &BareJid) -> Result<u32, AccountError> {
        let ended = self.end_sessions(account).await?;
        for row in ended.iter().filter(|row| row.shown().is_some()) {
            // As for a lost session: its own node does not know the contacts when all is erased.
            let event = SessionEvent::Lost { account: account.clone(), jid: row.jid.clone() };
            self.announce(event).await;
        }
        let services = self.services();
        let told = AssertUnwindSafe(self.registry.forget(account, &services)).catch_unwind().await;
        if told.is_err() {
            // The registry named the module; the account goes all the same.
            one(&self.counters.panics);
        }
        self.accounts.end_removal(account.as_str()).await?;
        one(&self.counters.accounts_removed);
        tracing::info!(%account, sessions = ended.len(), "account removed");
        Ok(ended.len() as u32)
    }

    /// Takes the routes of all sessions of an account that is locked, which end with that wherever they are; what they
    /// were. At least one order to end a session is agreed on behind the lock, and before it is seen that there is none:
    /// a login whose binding comes later sees from it that it must look at the account once more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where the cluster does not agree, or new sessions come without end.
    async fn end_sessions(&self, account: &BareJid) -> Result<Vec<Row>, StoreError> {
        let failed = |error: cluster::Unavailable| StoreError::Unavailable { reason: error.to_string() };
        let mut ended = Vec::new();
        let mut ordered = false;
        for _ in 0..=ROUNDS {
            self.whereabouts.barrier().await.map_err(failed)?;
            let rows = self.whereabouts.users(account);
            if rows.is_empty() && ordered {
                return Ok(ended);
            }
            if rows.is_empty() {
                let nobodys = self.nobodys(account).map_err(failed)?;
                self.whereabouts.kick(&nobodys).await.map_err(failed)?;
            }
            ordered = true;
            for row in rows {
                if self.whereabouts.kick(&row.jid).await.map_err(failed)? {
                    ended.push(row);
                }
            }
        }
        Err(StoreError::Unavailable { reason: "sessions of the account do not end".to_owned() })
    }

    /// A full JID that no session has.
    fn nobodys(&self, account: &BareJid) -> Result<FullJid, cluster::Unavailable> {
        let mut random = [0; 16];
        (self.random)(&mut random);
        let resource = format!("{:032x}", u128::from_ne_bytes(random));
        account.with_resource_str(&resource).map_err(|error| cluster::Unavailable(error.to_string()))
    }

    /// Makes an account with keys that are there already, of a password that nobody may know here.
    ///
    /// # Errors
    /// [`AccountError::AlreadyExists`] and [`AccountError::Leaving`] leave the account that is there as it is.
    pub async fn bring_account(&self, account: &BareJid, keys: &Credentials) -> Result<(), AccountError> {
        self.accounts.create(account.as_str(), keys).await?;
        one(&self.counters.accounts_created);
        tracing::info!(%account, "account created");
        Ok(())
    }

    /// Lets nobody log in to an account and ends its sessions everywhere; how many. All that is kept for it stays.
    ///
    /// # Errors
    /// [`AccountError::NotFound`] if there is no account. Where the sessions could not be ended it is locked all
    /// the same.
    pub async fn disable_account(&self, account: &BareJid) -> Result<u32, AccountError> {
        // First, so that a login between the two finds it.
        if self.accounts.set_disabled(account.as_str(), true).await? {
            one(&self.counters.accounts_disabled);
            tracing::info!(%account, "account disabled");
        }
        Ok(self.end_sessions(account).await?.len() as u32)
    }

    /// Lets the owner of a disabled account log in again.
    ///
    /// # Errors
    /// [`AccountError::NotFound`] if there is no account.
    pub async fn enable_account(&self, account: &BareJid) -> Result<(), AccountError> {
        if self.accounts.set_disabled(account.as_str(), false).await? {
            tracing::info!(%account, "account enabled");
        }
        Ok(())
    }

    async fn end_old_removals(&self, seen: &HashSet<String>) -> HashSet<String> {
        let mut left = HashSet::new();
        for host in &self.hosts {
            let leaving = match self.accounts.leaving(host, LEAVING_MAX).await {
                Ok(leaving) => leaving,
                Err(error) => {
                    tracing::debug!(host, %error, "failed to look for removals that did not end");
                    continue;
                }
            };
            for bare in leaving {
                // One that is new may be under way.
                if seen.contains(&bare) {
                    self.end_old_removal(&bare).await;
                } else {
                    left.insert(bare);
                }
            }
        }
        left
    }

    async fn end_old_removal(&self, bare: &str) {
        let Ok(account) = BareJid::new(bare) else { return };
        let ended = match self.accounts.state(bare).await {
            Ok(Some(AccountState::Leaving)) => self.end_removal(&account).await.map(drop),
            // The mark came never, or the last step did not: only the note is left.
            Ok(_) => self.accounts.end_removal(bare).await.map_err(AccountError::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::warn!(%account, %error, "failed to end a removal, trying again");
        }
    }
}

/// Ends removals that somebody began and did not end, because their node died or the store did not answer.
pub(crate) async fn finish(router: Weak<Router>, every: Duration) {
    let mut seen = HashSet::new();
    loop {
        tokio::time::sleep(every).await;
        let Some(router) = router.upgrade() else { return };
        if router.whereabouts.is_serving() {
            seen = router.end_old_removals(&seen).await;
        }
    }
}

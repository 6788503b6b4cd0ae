//! What modules may ask of the server, answered by the router.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use hooks::{
    About, AccountError, AccountState, Card, Hold, How, Kept, Passage, Removal, Repeated, Resource, Services,
    SessionEvent, SessionView, Sid, Store, StoreError,
};
use jid::{BareJid, Jid};
use stanza::{Stanza, StreamError};

use crate::mailboxes::Delivery;
use crate::metrics::{Fate, one};
use crate::router::Router;
use crate::transit::{Stage, Transit};

impl Services for Router {
    fn store(&self) -> &Store {
        &self.store
    }

    fn route(&self, stanza: Stanza, how: How) -> BoxFuture<'_, ()> {
        // At once, and not when it is awaited: the order is that of the calls.
        match how {
            How::Normal => self.dispatch(Transit::new(stanza, Stage::Fresh)),
            How::Direct => self.dispatch(Transit::new(stanza, Stage::Past)),
            How::Ahead => self.dispatch_ahead(Transit::new(stanza, Stage::Past)),
        }
        Box::pin(ready(()))
    }

    fn pass_on<'a>(&'a self, passage: &'a Passage, stanza: Stanza) -> BoxFuture<'a, ()> {
        let (sender, underway) = (passage.sender.clone(), passage.underway.clone());
        self.dispatch(Transit { sender, underway, ..Transit::new(stanza, Stage::Fresh) });
        Box::pin(ready(()))
    }

    fn route_kept(&self, stanza: Stanza, session: Sid, kept: Arc<dyn Kept>) -> BoxFuture<'_, ()> {
        let receipt = self.copies.receipt(kept, self.runtime.clone());
        let account = stanza.head.to.as_ref().map(Jid::to_bare);
        let rows = account.map(|account| self.whereabouts.users(&account)).unwrap_or_default();
        let only = cluster::Sid(session.0);
        if let Some(returned) = rows.iter().all(|row| row.sid != only).then(|| receipt.returned()).flatten() {
            // A successor has claimed it, or will: it must not come from here as well.
            return returned;
        }
        let only = Some(only);
        self.dispatch_ahead(Transit { receipt, only, ..Transit::new(stanza, Stage::Past) });
        Box::pin(ready(()))
    }

    fn fan_out(&self, stanza: Stanza, to: Vec<Jid>) -> BoxFuture<'_, ()> {
        self.dispatch_many(stanza, to);
        Box::pin(ready(()))
    }

    fn hand(&self, session: &SessionView, stanza: Stanza) {
        let Some(slot) = self.mailboxes.find(session.account(), session.sid()) else { return };
        let kind = stanza.head.kind;
        // One of several: should the session end before it is written, no other session is to have it.
        let delivery = Delivery { one_of_several: true, attempts: 1, ..Delivery::new(Arc::new(stanza)) };
        if self.deliver(&slot, delivery).is_ok() {
            self.counters.count(kind, Fate::Delivered);
        }
    }

    fn dismiss<'a>(&'a self, session: &'a SessionView, error: StreamError) -> BoxFuture<'a, ()> {
        if let Some(slot) = self.mailboxes.find(session.account(), session.sid()) {
            self.mailboxes.dismiss(&slot, error);
        }
        Box::pin(ready(()))
    }

    fn online(&self, account: &BareJid) -> Vec<Resource> {
        let (me, _) = self.whereabouts.me();
        let row = |row: cluster::Row| Resource {
            priority: row.shown(),
            jid: row.jid,
            sid: Sid(row.sid.0),
            takes: row.priority,
            here: row.node == me,
        };
        self.whereabouts.users(account).into_iter().map(row).collect()
    }

    fn has_only(&self, account: &BareJid, sid: Option<Sid>) -> bool {
        self.whereabouts.has_only(account, sid.map(|sid| cluster::Sid(sid.0)))
    }

    fn may_sessions_be_away(&self) -> bool {
        self.may_be_away()
    }

    fn local_sessions(&self, account: &BareJid) -> Vec<Arc<SessionView>> {
        self.mailboxes.views(account)
    }

    fn set_priority<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let sid = cluster::Sid(session.sid().0);
            let agreed = self.whereabouts.set_priority(session.jid(), sid, priority).await;
            agreed.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
            session.set_priority(priority);
            session.set_invisible(false);
            Ok(())
        })
    }

    fn hide<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let sid = cluster::Sid(session.sid().0);
            let agreed = self.whereabouts.hide(session.jid(), sid, priority).await;
            agreed.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
            session.set_priority(priority);
            session.set_invisible(true);
            Ok(())
        })
    }

    fn hold(&self, account: &BareJid) -> Hold {
        Hold::new(self.holds.begin(account))
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let index = self.whereabouts.barrier().await;
            index.map(|_| ()).map_err(|error| StoreError::Unavailable { reason: error.to_string() })
        })
    }

    fn account_exists<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<bool, StoreError>> {
        // Whoever has a session has an account: the hot path asks no store.
        if self.mailboxes.has(account) {
            return Box::pin(ready(Ok(true)));
        }
        Box::pin(self.accounts.exists(account.as_str()))
    }

    fn is_admin(&self, account: &BareJid) -> bool {
        self.admins.contains(account)
    }

    fn create_account<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>> {
        Box::pin(async move {
            let keys = self.keysmith.keys(&self.runtime, password).await;
            let keys = keys.inspect_err(|error| self.count_busy(error))?;
            self.bring_account(account, &keys).await
        })
    }

    fn set_password<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>> {
        Box::pin(async move {
            let keys = self.keysmith.keys(&self.runtime, password).await;
            let keys = keys.inspect_err(|error| self.count_busy(error))?;
            self.accounts.set_keys(account.as_str(), &keys).await?;
            one(&self.counters.passwords_set);
            tracing::info!(%account, "password set");
            Ok(())
        })
    }

    fn remove_account<'a>(
        &'a self,
        account: &'a BareJid,
        last: Option<Stanza>,
    ) -> BoxFuture<'a, Result<Removal, AccountError>> {
        Box::pin(self.remove(account, last))
    }

    fn disable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<u32, AccountError>> {
        Box::pin(Router::disable_account(self, account))
    }

    fn enable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<(), AccountError>> {
        Box::pin(Router::enable_account(self, account))
    }

    fn end_sessions<'a>(&'a self, jid: &'a Jid) -> BoxFuture<'a, Result<u32, StoreError>> {
        Box::pin(async move {
            let failed = |error: cluster::Unavailable| StoreError::Unavailable { reason: error.to_string() };
            self.whereabouts.barrier().await.map_err(failed)?;
            let mut ended = 0;
            // What the table does not know is not proposed: it would stay in the log.
            for row in self.whereabouts.users(&jid.to_bare()) {
                if jid.is_bare() || row.jid.as_str() == jid.as_str() {
                    ended += u32::from(self.whereabouts.kick(&row.jid).await.map_err(failed)?);
                }
            }
            Ok(ended)
        })
    }

    fn accounts<'a>(
        &'a self,
        host: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, AccountState)>, StoreError>> {
        Box::pin(async move {
            let page = self.accounts.list(host, after, limit).await?;
            Ok(page.into_iter().map(|account| (account.bare, account.state)).collect())
        })
    }

    fn users_online(&self, host: &str) -> Vec<BareJid> {
        self.whereabouts.online(host)
    }

    fn announce(&self, event: SessionEvent) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let services = self.services();
            let told = AssertUnwindSafe(self.registry.follow(&event, &services)).catch_unwind().await;
            if told.is_err() {
                // The registry named the module; the session goes on.
                one(&self.counters.panics);
            }
        })
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn count(&self, module: &'static str, event: &'static str) {
        self.counters.count_event(module, event);
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        // Other threads that are ready go first: without a word, who runs keeps the core until the next tick, up to
        // 4 ms.
        std::thread::yield_now();
        // Sockets and timers are looked at before it goes on: a wake-up of our own would come before them.
        Box::pin(tokio::task::yield_now())
    }

    fn later(&self, after: Duration, what: BoxFuture<'static, ()>) {
        self.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            what.await;
        });
    }

    fn repeat(&self, every: Duration, what: Box<dyn Repeated>) {
        let router = self.myself.clone();
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(router) = router.upgrade() else { return };
                let services: Arc<dyn Services> = router.services();
                if AssertUnwindSafe(what.once(&services)).catch_unwind().await.is_err() {
                    // Whoever broke has logged it; the next time may end better.
                    one(&router.counters.panics);
                }
            }
        });
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    fn random(&self, buffer: &mut [u8]) {
        (self.random)(buffer)
    }

    fn about(&self) -> About {
        About { name: self.about.0, version: self.about.1, uptime: self.since.elapsed() }
    }

    fn cards(&self, host: &str) -> Vec<Card> {
        self.registry.cards(host)
    }
}

impl Router {
    fn count_busy(&self, error: &AccountError) {
        if *error == AccountError::Busy {
            one(&self.counters.passwords_busy);
        }
    }
}

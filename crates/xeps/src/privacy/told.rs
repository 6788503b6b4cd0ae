//! How a change of privacy lists reaches the sessions of its account at every node, their clients and their contacts.

use std::collections::HashSet;
use std::sync::Arc;

use hooks::{Answer, Passage, Reply, Services, SessionView, Verdict};
use jid::{BareJid, Jid};
use stanza::address::same_account;
use stanza::{Kind, Stanza};

use super::{NAME, NS, Privacy};
use crate::blocking::told::confirm;
use crate::failure::store_failed;
use crate::presence::{contacts, is_available};
use crate::privacylists::{Flow, Privacy as Lists};
use crate::xml::{Build, element};

/// What nodes tell each other in; no client hears it.
const INSIDE: &str = "urn:rookery:privacy";

impl Privacy {
    /// Tells all sessions of the account; the answer to who made the change comes when all know. `name` is that of a list
    /// whose rules changed, which clients are told.
    pub(super) async fn tell(
        &self,
        passage: &Passage,
        account: &BareJid,
        before: Lists,
        name: Option<String>,
    ) -> Reply {
        let services = &passage.services;
        // A session that was bound before the change was written may have read the lists before it; it must be
        // known here. Without a quorum those are told whom we know.
        if let Err(error) = services.read_barrier().await {
            tracing::debug!(module = NAME, %error, "telling of a change without a read barrier");
        }
        self.apply(services, account, &before, name.as_deref()).await;
        let changed = |token: &str, back: &str| {
            let changed = element("changed", INSIDE).with("token", token).with("back", back);
            changed.with_some("name", name.as_deref())
        };
        self.unconfirmed.tell(passage, account, changed).await
    }

    /// Hears what other nodes say, which comes under addresses of the account itself.
    pub(super) fn hear<'a>(
        &'a self,
        passage: &'a Passage,
        account: &'a BareJid,
        from: &'a Jid,
    ) -> Answer<'a> {
        let head = &passage.stanza.head;
        if head.kind != Kind::Iq || !passage.stanza.payload().is_some_and(|payload| payload.has_ns(INSIDE)) {
            return Answer::PASS;
        }
        let (Some(payload), Some(to)) = (passage.stanza.payload(), &head.to) else { return Answer::STOP };
        let token = payload.attr("token").unwrap_or_default();
        if payload.name() == "confirmed" {
            return self.unconfirmed.confirmed(passage, token, from);
        }
        // No client speaks for the account itself: what it sends comes from its session.
        let (true, Some(back)) = (from.is_bare(), payload.attr("back")) else { return Answer::STOP };
        // Of several sessions here the first to be told has what was before, and acts for all.
        let before = self.lists.cached(account);
        self.lists.forget(account);
        Answer::later(async move {
            let services = &passage.services;
            let sessions = services.local_sessions(account);
            if let Some(session) = sessions.iter().find(|session| session.jid().as_str() == to.as_str()) {
                let name = payload.attr("name");
                let before = before.unwrap_or_default();
                self.push(services, session, name);
                if let Ok(after) = self.lists.of(&**services, account).await {
                    for session in &sessions {
                        self.applied(services, session, &before, &after).await;
                    }
                }
            }
            confirm(&**services, INSIDE, token, to, back).await;
            Verdict::Stop
        })
    }

    /// What a change means for the sessions of this node.
    async fn apply(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        before: &Lists,
        name: Option<&str>,
    ) {
        let after = match self.lists.of(&**services, account).await {
            Ok(after) => after,
            // Of what is in the store now nothing is known; the lists are read again for the next stanza.
            Err(error) => return drop(store_failed(NAME, &error)),
        };
        for session in services.local_sessions(account) {
            self.push(services, &session, name);
            self.applied(services, &session, before, &after).await;
        }
    }

    /// XEP-0016, 2.2: every resource hears which list has other rules now.
    fn push(&self, services: &Arc<dyn Services>, session: &SessionView, name: Option<&str>) {
        let Some(name) = name else { return };
        let mut id = [0; 8];
        services.random(&mut id);
        let query = element("query", NS).child(element("list", NS).with("name", name));
        let push = Stanza::iq("set", &format!("push-{:016x}", u64::from_le_bytes(id)), Some(&query));
        services.hand(session, push.with_from(session.account().clone()).with_to(session.jid().clone()));
    }

    /// What one session hears and shows where other rules apply to it now.
    pub(super) async fn applied(
        &self,
        services: &Arc<dyn Services>,
        session: &SessionView,
        before: &Lists,
        after: &Lists,
    ) {
        let services = &**services;
        let account = session.account();
        let resource = Some(session.jid().resource().as_str());
        let (roster, blocked) =
            (self.rosters.of(services, account).await, self.blocklists.of(services, account).await);
        let (roster, blocked) = match (roster, blocked) {
            (Ok(roster), Ok(blocked)) => (roster, blocked),
            (Err(error), _) | (_, Err(error)) => return drop(store_failed(NAME, &error)),
        };
        let denies = |lists: &Lists, flow, other: &Jid| lists.denies(resource, flow, account, other, &roster);
        let is_new = |flow, other: &Jid| denies(after, flow, other) && !denies(before, flow, other);
        let is_over = |flow, other: &Jid| {
            denies(before, flow, other) && !denies(after, flow, other) && !blocked.blocks(account, other)
        };
        let presence = session.presence();
        // XEP-0016, 2.11: who saw the session is told that it has gone.
        let mut gone: HashSet<Jid> =
            session.take_directed_if(|jid| is_new(Flow::PresenceOut, jid)).into_iter().collect();
        gone.retain(|jid| !same_account(jid, account));
        let watchers = match presence.is_some() {
            true => contacts(services, &roster, |standing| standing.from).await,
            false => Vec::new(),
        };
        gone.extend(
            watchers
                .iter()
                .filter(|jid| is_new(Flow::PresenceOut, jid) && !blocked.blocks(account, jid))
                .cloned(),
        );
        if !gone.is_empty() {
            let unavailable = Stanza::presence(Some("unavailable")).with_from(session.jid().clone());
            services.fan_out(unavailable, gone.into_iter().collect()).await;
        }
        let Some(presence) = presence else { return };
        let back: Vec<Jid> =
            watchers.into_iter().filter(|watcher| is_over(Flow::PresenceOut, watcher)).collect();
        if !back.is_empty() {
            services.fan_out(presence, back).await;
        }
        let mut asked = Vec::new();
        for contact in contacts(services, &roster, |standing| standing.to).await {
            let is_ours = services.is_local_host(contact.domain().as_str());
            if is_new(Flow::PresenceIn, &contact) && is_ours {
                // XEP-0016, 2.10: of whom it hears nothing more, it hears that they have gone.
                for one in
                    services.online(&contact.to_bare()).into_iter().filter(|one| one.priority.is_some())
                {
                    let gone = Stanza::presence(Some("unavailable")).with_from(one.jid);
                    services.hand(session, gone.with_to(session.jid().clone()));
                }
            } else if is_over(Flow::PresenceIn, &contact)
                && (!is_ours || is_available(services, &contact.to_bare()))
            {
                asked.push(contact);
            }
        }
        if !asked.is_empty() {
            let probe = Stanza::presence(Some("probe")).with_from(session.jid().clone());
            services.fan_out(probe, asked).await;
        }
    }
}

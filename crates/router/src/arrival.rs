//! Arrival: the arriving handlers of the receiver, then RFC 6121 section 8, then mailboxes or other nodes.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use cluster::{Incarnation, NodeId, Row, Sid};
use futures::FutureExt;
use futures::future::BoxFuture;
use hooks::{Passage, Reply, Services, SessionView, Verdict};
use jid::{BareJid, Jid};
use stanza::{Condition, IqType, Kind, MessageType, PresenceType, Stanza, StanzaError};

use crate::decision::{Address, Decision, Receiver, Subject, decide};
use crate::mailboxes::{Delivery, Slot};
use crate::metrics::{Fate, one};
use crate::queues::{Line, Work};
use crate::router::Router;
use crate::transit::{Stage, Transit};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Arrivals that may begin inside one another on one stack: a handler that routes a stanza whose handler
/// routes another. What is deeper waits in its receiver's queue instead.
const DEPTH_MAX: u32 = 8;

/// What a stanza is, for the rules; an unknown type of presence or iq is refused.
pub(crate) fn subject(stanza: &Stanza) -> Result<Subject, StanzaError> {
    Ok(match stanza.head.kind {
        Kind::Message => Subject::Message(stanza.message_type()),
        Kind::Presence => Subject::Presence(stanza.presence_type()?),
        Kind::Iq => Subject::Iq(stanza.iq_type()?),
    })
}

/// Whether it answers a request that a module has made in the name of an account: for nobody's session, and for nobody
/// but the module.
fn is_answer_to_account(subject: Subject, transit: &Transit) -> bool {
    matches!(subject, Subject::Iq(IqType::Result | IqType::Error))
        && transit.stanza.head.to.as_ref().is_some_and(Jid::is_bare)
}

/// Whether `to` names one of the resources.
pub(crate) fn address(to: &Jid, rows: &[Row]) -> Address {
    match to.resource() {
        None => Address::Bare,
        Some(resource) => Address::Full(rows.iter().position(|row| row.jid.resource() == resource)),
    }
}

impl Router {
    /// Whether arrivals are nested too deeply on this stack to begin one more.
    pub(crate) fn is_deep(&self) -> bool {
        DEPTH.get() >= DEPTH_MAX
    }

    /// Begins an arrival. What awaits nothing is finished when this returns; the rest goes on in the queue of
    /// the account, so that later stanzas to it wait behind and nobody else does.
    pub(crate) fn begin(
        self: &Arc<Self>,
        account: &BareJid,
        subject: Subject,
        transit: Transit,
        rows: Vec<Row>,
    ) {
        if transit.stage == Stage::Past && !is_answer_to_account(subject, &transit) {
            match self.decide(subject, account, &transit, &rows, true) {
                Decision::Deliver(chosen) => return self.hand_over(account, transit, rows, chosen),
                Decision::Bounce(condition) => return self.bounce(transit, StanzaError::new(condition)),
                Decision::Ignore => return self.ignore(account, subject, transit),
                Decision::Keep | Decision::Answer => {}
            }
        }
        let line = Line::of(account, transit.stanza.head.from.as_ref());
        let arrival = self.clone().arrive(account.clone(), subject, transit, rows);
        self.begin_future(account, line, Box::pin(arrival));
    }

    /// Polls an arrival once; what is not finished then goes on in the queue of `account`.
    pub(crate) fn begin_future(
        self: &Arc<Self>,
        account: &BareJid,
        line: Line,
        mut arrival: BoxFuture<'static, ()>,
    ) {
        // A timer or channel of a handler belongs to the router's runtime, not to the arbiter of a session.
        let _runtime = self.runtime.enter();
        DEPTH.set(DEPTH.get() + 1);
        let finished = std::panic::catch_unwind(AssertUnwindSafe(|| (&mut arrival).now_or_never().is_some()));
        DEPTH.set(DEPTH.get() - 1);
        match finished {
            Ok(true) => {}
            Ok(false) => self.queues.append(self, account, [Work::Begun(line, arrival)]),
            Err(_) => tracing::error!(%account, "the router panicked on a stanza, which is lost"),
        }
    }

    /// Does for a stanza at the head of its queue what [`Router::begin`] does for one that need not wait.
    pub(crate) async fn arrive_now(
        self: &Arc<Self>,
        account: &BareJid,
        subject: Subject,
        transit: Transit,
        rows: Vec<Row>,
    ) {
        if transit.stage == Stage::Past && !is_answer_to_account(subject, &transit) {
            let decision = self.decide(subject, account, &transit, &rows, true);
            if !matches!(decision, Decision::Keep | Decision::Answer) {
                return self.begin(account, subject, transit, rows);
            }
        }
        self.clone().arrive(account.clone(), subject, transit, rows).await
    }

    fn decide(
        &self,
        subject: Subject,
        account: &BareJid,
        transit: &Transit,
        rows: &[Row],
        exists: bool,
    ) -> Decision {
        let Some(to) = &transit.stanza.head.to else { return Decision::Ignore };
        let mut priorities: Vec<Option<i8>> = rows.iter().map(|row| row.priority).collect();
        if transit.stage == Stage::Here
            && matches!(subject, Subject::Presence(PresenceType::Available | PresenceType::Unavailable))
        {
            self.count_in_who_comes(account, rows, &mut priorities);
        }
        let keeps_offline = self.keeps_offline(account.domain().as_str());
        let address = match (subject, address(to, rows)) {
            // It was on its way to a session that was there when it was sent: better kept than bounced.
            (Subject::Message(MessageType::Normal), Address::Full(None)) if transit.stage == Stage::Past => {
                Address::Bare
            }
            (_, address) => address,
        };
        decide(subject, address, Receiver { exists, priorities: &priorities, keeps_offline })
    }

    /// Who sends presence from another node may see a session here as available before this copy of the table does:
    /// once that catches up, the session asks only those whom it shows by then. So presence must not be lost on it.
    fn count_in_who_comes(&self, account: &BareJid, rows: &[Row], priorities: &mut [Option<i8>]) {
        let (me, _) = self.whereabouts.me();
        for (row, priority) in rows.iter().zip(priorities).filter(|(row, _)| row.node == me) {
            let comes = || {
                let slot = self.mailboxes.find(account, hooks::Sid(row.sid.0));
                slot.is_some_and(|slot| slot.view.said().is_some())
            };
            if priority.is_none() && comes() {
                *priority = Some(0);
            }
        }
    }

    /// Whether the rules name a session for a stanza that the handlers have seen.
    pub(crate) fn is_for_somebody(
        &self,
        subject: Subject,
        account: &BareJid,
        transit: &Transit,
        rows: &[Row],
    ) -> bool {
        matches!(self.decide(subject, account, transit, rows, true), Decision::Deliver(_))
    }

    async fn arrive(
        self: Arc<Self>,
        account: BareJid,
        subject: Subject,
        mut transit: Transit,
        rows: Vec<Row>,
    ) {
        let index = self.whereabouts.index();
        let nobody = rows.is_empty();
        if nobody && matches!(subject, Subject::Presence(PresenceType::Available | PresenceType::Unavailable))
        {
            // RFC 6121, 8.5.2.2.2: ignored, and no handler has anything to do with it.
            return self.finish(&transit, Fate::Ignored);
        }
        let contradicted = match subject {
            Subject::Presence(PresenceType::Unavailable) => self.contradicted(&transit),
            _ => None,
        };
        let there = self.decide(subject, &account, &transit, &rows, true);
        let same = nobody && there == self.decide(subject, &account, &transit, &rows, false);
        let is_answer = is_answer_to_account(subject, &transit);
        if same && !is_answer && (matches!(subject, Subject::Iq(_)) || matches!(there, Decision::Bounce(_))) {
            // Whether the account exists changes nothing, so nobody looks: the same answer after the same time.
            return self.end(&account, subject, transit, rows, there).await;
        }
        // Before who asks is known to be no stranger, no request looks either.
        if nobody && there != Decision::Answer {
            match self.exists(&account).await {
                Ok(true) => {}
                // A probe goes on: the handler finds no subscription and answers as it answers any stranger.
                Ok(false) if subject == Subject::Presence(PresenceType::Probe) => {}
                Ok(false) => {
                    let decision = self.decide(subject, &account, &transit, &rows, false);
                    return self.end(&account, subject, transit, rows, decision).await;
                }
                Err(error) => return self.bounce(transit, error),
            }
        }
        let decision = there;
        let offline = match (subject, &decision) {
            (Subject::Message(_), Decision::Keep | Decision::Ignore) => true,
            (Subject::Message(_), _) => false,
            _ => !rows.iter().any(|row| row.priority.is_some()),
        };
        let mut passage = self.passage(&mut transit, Some(account.clone()));
        passage.offline = offline;
        passage.again = transit.stage == Stage::Past;
        // What an account asks of itself passes nobody's guard.
        let own = decision == Decision::Answer && passage.is_own();
        let verdict = match own {
            true => Ok(Verdict::Pass),
            false => AssertUnwindSafe(self.registry.arriving(&mut passage)).catch_unwind().await,
        };
        transit.stanza = passage.stanza;
        match verdict {
            Err(_) => return self.bounce_panic(transit),
            Ok(Verdict::Stop) => return self.finish(&transit, Fate::Taken),
            Ok(Verdict::Refuse(error)) => return self.bounce(transit, *error),
            Ok(Verdict::Pass) => {}
        }
        if nobody && decision == Decision::Answer {
            match self.exists(&account).await {
                Ok(true) => {}
                Ok(false) => return self.bounce(transit, StanzaError::new(Condition::ServiceUnavailable)),
                Err(error) => return self.bounce(transit, error),
            }
        }
        // What nobody kept has somebody by now, as whoever keeps messages looked once more.
        let is_current = self.whereabouts.index() == index && decision != Decision::Keep;
        let (rows, decision) = if is_current {
            (rows, decision)
        } else {
            // The table moved while the handlers looked.
            let mut rows = self.rows(&account, &transit);
            while matches!(subject, Subject::Message(_)) && self.holds.is_held(&account) {
                self.holds.opened(&account).await;
                rows = self.rows(&account, &transit);
            }
            let decision = self.decide(subject, &account, &transit, &rows, true);
            let (me, _) = self.whereabouts.me();
            let leaves = |chosen: &[usize]| {
                let goes = chosen.iter().any(|at| rows[*at].node != me);
                goes && self.mailboxes.slots(&account).iter().any(|slot| slot.leaves())
            };
            if matches!((subject, &decision), (Subject::Message(_), Decision::Deliver(chosen)) if leaves(chosen))
            {
                // A session of it went to another node in between, and what it had here has to go first.
                let transit = Transit { stage: Stage::Past, ..transit };
                return self.queues.yield_to_returned(&self, &account, transit);
            }
            (rows, decision)
        };
        self.end(&account, subject, transit, rows, decision).await;
        // Behind the end that was told, so that the answer is what is heard last.
        contradicted.into_iter().for_each(|jid| self.ask_again(&account, jid));
    }

    /// Whether an account exists, or what its correspondent is told where nobody can say.
    async fn exists(&self, account: &BareJid) -> Result<bool, StanzaError> {
        self.account_exists(account).await.map_err(|error| {
            tracing::warn!(%account, %error, "failed to look up an account");
            StanzaError::new(Condition::InternalServerError)
        })
    }

    async fn end(
        self: &Arc<Self>,
        account: &BareJid,
        subject: Subject,
        transit: Transit,
        rows: Vec<Row>,
        decision: Decision,
    ) {
        match decision {
            Decision::Deliver(chosen) => self.hand_over(account, transit, rows, chosen),
            // No handler kept it.
            Decision::Keep => self.bounce(transit, StanzaError::new(Condition::ServiceUnavailable)),
            Decision::Answer => self.answer(Some(account.clone()), transit).await,
            Decision::Bounce(condition) => self.bounce(transit, StanzaError::new(condition)),
            Decision::Ignore => self.ignore(account, subject, transit),
        }
    }

    /// Answers an iq request in the name of an account, or of the host where `account` is none.
    pub(crate) async fn answer(self: &Arc<Self>, account: Option<BareJid>, mut transit: Transit) {
        let mut passage = self.passage(&mut transit, account);
        let is_own = passage.is_own();
        let reply = AssertUnwindSafe(self.registry.answer(&mut passage)).catch_unwind().await;
        transit.stanza = passage.stanza;
        let result = match reply {
            Err(_) => return self.bounce_panic(transit),
            // RFC 6120, 8.4: nobody here understands the namespace.
            Ok(None) => return self.bounce(transit, StanzaError::new(Condition::ServiceUnavailable)),
            Ok(Some(Reply::Error(error))) if is_own => {
                // As a result, or the answers would come in another order than the requests.
                let refused = self.refused(transit, &error);
                return refused.into_iter().for_each(|answer| self.dispatch_ahead(answer));
            }
            Ok(Some(Reply::Error(error))) => return self.bounce(transit, error),
            Ok(Some(Reply::Silent)) => return self.finish(&transit, Fate::Answered),
            Ok(Some(Reply::Result(payload))) => transit.stanza.result(payload.as_ref()),
            Ok(Some(Reply::Written(payload))) => transit.stanza.written_result(payload),
        };
        self.finish(&transit, Fate::Answered);
        let result =
            Transit { receipt: transit.receipt, hops: transit.hops, ..Transit::new(result, Stage::Past) };
        if is_own {
            // What came for the asking account meanwhile waits behind this request, and so behind its answer.
            return self.dispatch_ahead(result);
        }
        self.dispatch(result);
    }

    fn passage(&self, transit: &mut Transit, account: Option<BareJid>) -> Passage {
        let head = stanza::Head::new(transit.stanza.head.kind);
        let stanza = std::mem::replace(&mut transit.stanza, Stanza::new(head, Default::default()));
        let mut passage = Passage::new(stanza, self.services());
        passage.sender = transit.sender.clone();
        passage.underway = transit.underway.clone();
        passage.account = account;
        passage
    }

    /// Gives a stanza to the chosen sessions, here and at other nodes.
    fn hand_over(
        self: &Arc<Self>,
        account: &BareJid,
        transit: Transit,
        rows: Vec<Row>,
        mut chosen: Vec<usize>,
    ) {
        let (me, _) = self.whereabouts.me();
        if transit.stage == Stage::Here {
            // Every other node with a session of the account has its own copy.
            chosen.retain(|at| rows[*at].node == me);
        }
        let is_copy = transit.one_of_several && transit.attempts > 0;
        if chosen.is_empty() || is_copy {
            // A copy that came back: the sessions that are still there got their own.
            return self.finish(&transit, Fate::Ignored);
        }
        let one_of_several = chosen.len() > 1 || transit.one_of_several;
        let kind = transit.stanza.head.kind;
        let Transit { stanza, receipt, hops, attempts, mut avoid, sender, came_back, .. } = transit;
        let stanza = Arc::new(stanza);
        let mut reached = 0;
        let mut elsewhere: Vec<(NodeId, Incarnation, Vec<Sid>)> = Vec::new();
        for row in chosen.iter().map(|at| &rows[*at]) {
            if row.node != me {
                match elsewhere.iter_mut().find(|(node, ..)| *node == row.node) {
                    Some((_, _, sids)) => sids.push(row.sid),
                    None => elsewhere.push((row.node, row.incarnation, vec![row.sid])),
                }
                continue;
            }
            let slot = self.mailboxes.find(account, hooks::Sid(row.sid.0));
            let delivery = Delivery {
                receipt: receipt.clone(),
                one_of_several,
                hops,
                attempts,
                ..Delivery::new(stanza.clone())
            };
            match slot.map(|slot| self.deliver(&slot, delivery)) {
                Some(Ok(())) => {
                    reached += 1;
                    self.counters.count(kind, Fate::Delivered);
                }
                // In the table and not here: its session has just ended, or has not opened its mailbox.
                _ => avoid.push(row.sid),
            }
        }
        if elsewhere.is_empty() && reached > 0 {
            return;
        }
        let again = Transit {
            receipt,
            hops,
            attempts,
            one_of_several,
            ..Transit::new(Arc::unwrap_or_clone(stanza), Stage::Past)
        };
        if elsewhere.is_empty() {
            one(&self.counters.rerouted);
            let again = Transit { avoid, sender, ..again };
            if came_back {
                // It is the oldest of what the end of that session gave back, and stays so.
                return self.queues.give_back_first(self, account, again);
            }
            // Behind what the end of that session gave back, so that the order holds.
            return self.queues.give_back(self, account, [Work::Stanza(Box::new(again))]);
        }
        for (node, incarnation, sids) in elsewhere {
            let copy = Transit {
                receipt: again.receipt.clone(),
                hops,
                attempts,
                one_of_several,
                ..Transit::new(again.stanza.clone(), Stage::Past)
            };
            self.relay(account, copy, node, incarnation, &sids);
        }
    }

    /// Puts a delivery into the mailbox of a session; modules see it where that one waits for its client.
    pub(crate) fn deliver(&self, slot: &Slot, delivery: Delivery) -> Result<(), Delivery> {
        if let Some(stanza) = self.mailboxes.deliver(slot, delivery)? {
            self.show_awaiting(&slot.view, &stanza);
        }
        Ok(())
    }

    /// Shows modules what a session waits with for its client.
    pub fn show_awaiting(&self, session: &SessionView, stanza: &Stanza) {
        let shown = AssertUnwindSafe(|| self.registry.awaiting(session, stanza));
        if std::panic::catch_unwind(shown).is_err() {
            // The registry named the module; the session has its stanza.
            one(&self.counters.panics);
        }
    }

    /// Takes back what a mailbox could not keep. Called with that mailbox locked.
    pub(crate) fn take_back(self: &Arc<Self>, account: &BareJid, mut back: Vec<Delivery>) {
        // A lost lease ends this incarnation: what other nodes sent to it, they route anew themselves.
        let (_, Incarnation(now)) = self.whereabouts.me();
        let ended = if self.whereabouts.is_serving() { now } else { now.saturating_add(1) };
        back.retain(|delivery| !delivery.receipt.is_before(ended));
        for _ in &back {
            one(&self.counters.rerouted);
        }
        let work = back.into_iter().map(|delivery| {
            let mut transit = Transit::returned(delivery);
            if transit.handed_over {
                // It has not failed to reach anybody: its session goes on elsewhere, maybe not for the first time.
                (transit.attempts, transit.hops) = (0, 0);
            } else {
                transit.attempts = transit.attempts.saturating_add(1);
            }
            Work::Stanza(Box::new(transit))
        });
        self.queues.give_back(self, account, work);
    }

    /// Returns a stanza to its sender, unless it is one that is never answered.
    pub(crate) fn bounce(self: &Arc<Self>, transit: Transit, error: StanzaError) {
        if let Some(answer) = self.refused(transit, &error) {
            self.dispatch(answer);
        }
    }

    /// The error that a stanza is answered with, if it is one that is answered.
    fn refused(&self, transit: Transit, error: &StanzaError) -> Option<Transit> {
        let answer = transit.stanza.head.from.as_ref().and_then(|_| transit.stanza.error(error));
        self.finish(&transit, if answer.is_some() { Fate::Bounced } else { Fate::Ignored });
        let Transit { receipt, hops, .. } = transit;
        Some(Transit { receipt, hops, ..Transit::new(answer?, Stage::Past) })
    }

    /// A queue inside is at its bound: the sender may try again.
    pub(crate) fn bounce_at_bound(self: &Arc<Self>, transit: Transit) {
        one(&self.counters.at_bound);
        self.bounce(transit, StanzaError::new(Condition::ResourceConstraint));
    }

    fn bounce_panic(self: &Arc<Self>, transit: Transit) {
        one(&self.counters.panics);
        self.bounce(transit, StanzaError::new(Condition::InternalServerError));
    }

    pub(crate) fn finish(&self, transit: &Transit, fate: Fate) {
        self.counters.count(transit.stanza.head.kind, fate);
    }
}

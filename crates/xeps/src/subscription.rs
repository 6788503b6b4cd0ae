//! RFC 6121, section 3: Managing Presence Subscriptions. Who may see whom, asked and granted.

pub mod states;

use std::sync::Arc;

use hooks::{
    Answer, Arriving, Card, Following, Hooks, How, Leaving, Module, Offer, Offering, Passage, Services,
    SessionEvent, Step, Verdict,
};
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::{Condition, Kind, Stanza, StanzaError};

use crate::failure::{Failure, bad_request, store_failed};
use crate::kept::Kept;
use crate::presence::is_available;
use crate::roster;
use crate::rosters::{Changed, Item, Request, Rosters};
use crate::xml::element;
use states::{Act, Outcome, State, inbound, outbound};

const NAME: &str = "subscription";
const PREAPPROVAL: &str = "urn:xmpp:features:pre-approval";

crate::settings! {
    /// `[modules.subscription]`
    pub struct Config {
        /// The most requests that wait for the answer of one account; a further one is refused with `resource-constraint`.
        requests_max: usize = 100,
        /// The largest content of a request that is kept with it, in bytes; of a larger one only the fact is kept.
        request_bytes_max: usize = 1_024,
        /// Whether users may approve a request before it comes.
        preapproval: bool = true,
    }
}

/// Runs the subscription states of both sides.
pub struct Subscription {
    config: Config,
    rosters: Arc<Rosters>,
}

impl Subscription {
    pub fn new(config: Config, rosters: Arc<Rosters>) -> Subscription {
        Subscription { config, rosters }
    }
}

impl Module for Subscription {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6121, section 3 and appendix A"],
            ..Card::new(NAME, "Lets users ask to see each other's presence, grant it and take it back.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Record, self.clone());
        hooks.arriving(Step::Record, self.clone());
        hooks.following(self.clone());
        if self.config.preapproval {
            hooks.offering(self);
        }
    }
}

impl Offering for Subscription {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        match offer.account {
            // RFC 6121, 3.4.
            Some(_) => vec![element("sub", PREAPPROVAL)],
            None => Vec::new(),
        }
    }
}

fn act(stanza: &Stanza) -> Option<Act> {
    if stanza.head.kind != Kind::Presence {
        return None;
    }
    match stanza.head.type_.as_deref()? {
        "subscribe" => Some(Act::Subscribe),
        "unsubscribe" => Some(Act::Unsubscribe),
        "subscribed" => Some(Act::Subscribed),
        "unsubscribed" => Some(Act::Unsubscribed),
        _ => None,
    }
}

impl Leaving for Subscription {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(act) = act(&passage.stanza) else { return Answer::PASS };
        let (Some(account), Some(to)) = (passage.account.clone(), passage.stanza.head.to.clone()) else {
            return Answer::refuse(bad_request("a subscription needs a contact"));
        };
        // RFC 6121, 3.1.2: whatever resource was named, and whether it is there or not, the contact is meant. What
        // the own roster says then must not tell a stranger who is online.
        let contact = to.to_bare();
        if contact == account {
            return Answer::refuse(StanzaError::new(Condition::NotAllowed));
        }
        Answer::later(async move {
            match self.leave(passage, act, account, contact).await {
                Ok(()) => Verdict::Stop,
                Err(failure) => Verdict::refuse(failure.answer(NAME)),
            }
        })
    }
}

impl Subscription {
    async fn leave(
        &self,
        passage: &Passage,
        act: Act,
        account: BareJid,
        contact: BareJid,
    ) -> Result<(), Failure> {
        let services = &*passage.services;
        // RFC 6121, section 3: from the bare JID, so that no resource is leaked.
        let stanza = passage.stanza.clone().with_from(account.clone()).with_to(contact.clone());
        let contact = Jid::from(contact);
        let advance = |state| outbound(state, act, self.config.preapproval);
        let changed = self.step(services, &account, &contact, None, advance).await?;
        let (before, outcome) = changed.value;
        let hidden = before.standing.from && !outcome.state.standing.from;
        if hidden {
            // RFC 6121, 3.2.2: while the contact is still subscribed.
            hide(services, &account, &contact).await;
        }
        if outcome.pass {
            services.route(stanza, How::Normal).await;
        }
        if changed.item_changed {
            roster::push(services, &account, &contact, &changed.roster).await;
        }
        if !before.standing.from && outcome.state.standing.from {
            show(services, &account, &contact).await;
        }
        Ok(())
    }

    /// One step of the states, in roster and waiting requests at once; returns the state before.
    async fn step(
        &self,
        services: &dyn Services,
        account: &BareJid,
        contact: &Jid,
        asking: Option<&Stanza>,
        advance: impl Fn(State) -> Outcome,
    ) -> Result<Changed<(State, Outcome)>, Failure> {
        self.rosters
            .change(services, account, contact, |item, request| {
                let standing = item.as_ref().map(|item| item.standing).unwrap_or_default();
                let before = State { standing, requested: request.is_some() };
                let outcome = advance(before);
                if outcome.state.standing != standing {
                    // An item is made when there is something to show: never for a mere request.
                    item.get_or_insert_with(Item::default).standing = outcome.state.standing;
                }
                match (before.requested, outcome.state.requested, asking) {
                    (false, true, Some(stanza)) => *request = Some(self.request(stanza)),
                    (true, false, _) => *request = None,
                    _ => {}
                }
                Ok((before, outcome))
            })
            .await
    }

    fn request(&self, stanza: &Stanza) -> Request {
        let kept = if stanza.body().len() <= self.config.request_bytes_max {
            Kept::of(stanza)
        } else {
            Kept::of(&Stanza::new(stanza.head.clone(), Default::default()))
        };
        Request { stanza: kept }
    }
}

impl Arriving for Subscription {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(act) = act(&passage.stanza) else { return Answer::PASS };
        let (Some(account), Some(from)) = (passage.account.clone(), passage.stanza.head.from.clone()) else {
            return Answer::PASS;
        };
        let contact = from.to_bare();
        let to = passage.stanza.head.to.as_ref();
        if contact == account || to.is_some_and(|to| is_lost(&*passage.services, act, to)) {
            return Answer::STOP;
        }
        Answer::later(async move {
            match self.arrive(passage, act, &account, contact).await {
                Ok(()) => Verdict::Stop,
                Err(failure) => Verdict::refuse(failure.answer(NAME)),
            }
        })
    }
}

impl Subscription {
    async fn arrive(
        &self,
        passage: &Passage,
        act: Act,
        account: &BareJid,
        contact: BareJid,
    ) -> Result<(), Failure> {
        let services = &*passage.services;
        if !services.account_exists(account).await? {
            // RFC 6121, 8.5.1: silence, the same as of an account that does not answer.
            return Ok(());
        }
        let stanza = passage.stanza.clone().with_from(contact.clone()).with_to(account.clone());
        let contact = Jid::from(contact);
        if act == Act::Subscribe {
            let room = self.rosters.has_room_for_request(services, account, self.config.requests_max);
            if !room.await? {
                return Err(StanzaError::new(Condition::ResourceConstraint).into());
            }
        }
        let advance = |state| inbound(state, act);
        let changed = self.step(services, account, &contact, Some(&stanza), advance).await?;
        let (before, outcome) = changed.value;
        if outcome.pass {
            deliver(services, &stanza, act).await;
        }
        if changed.item_changed {
            roster::push(services, account, &contact, &changed.roster).await;
        }
        if before.standing.from && !outcome.state.standing.from {
            // RFC 6121, 3.3.3.
            hide(services, account, &contact).await;
        }
        // RFC 6121, A.3.2: `unsubscribed` tells another server what it may have missed. Our own rosters have
        // nothing to mend, and it would take back a request that was sent since, and show that it was known.
        let is_told =
            |reply: &Act| *reply == Act::Subscribed || !services.is_local_host(contact.domain().as_str());
        if let Some(reply) = outcome.reply.filter(is_told) {
            let mut reply = Stanza::presence(Some(reply.word())).with_from(account.clone());
            reply.head_mut().id = stanza.head.id.clone();
            services.route(reply.with_to(contact.clone()), How::Normal).await;
        }
        if !before.standing.from && outcome.state.standing.from {
            // RFC 6121, 3.1.5: as if the user had granted it just now.
            show(services, account, &contact).await;
        }
        Ok(())
    }
}

/// Whether the stanza is to a session that is not there: such a request is still one to the account
/// (RFC 6121, 3.1.3), such an answer is ignored (8.5.3.2.2).
fn is_lost(services: &dyn Services, act: Act, to: &Jid) -> bool {
    let is_there = || services.online(&to.to_bare()).iter().any(|one| one.jid.as_str() == to.as_str());
    act != Act::Subscribe && to.is_full() && !is_there()
}

/// Hands the stanza to the sessions that want it, under the account's address (RFC 6121, 8.5.2.1.2): a request to
/// all that are available, what changes the roster to those that asked for the roster (3.1.3 and 3.1.6).
async fn deliver(services: &dyn Services, stanza: &Stanza, act: Act) {
    if act == Act::Subscribe
        && let Err(error) = services.read_barrier().await
    {
        // Who becomes available now finds the request kept; without a quorum nobody becomes available.
        tracing::debug!(module = NAME, %error, "delivering a request without a read barrier");
    }
    // Before what came later from the same contact and waits until this one is dealt with.
    services.route(stanza.clone(), How::Ahead).await;
}

/// Lets the contact see the account: each of its available sessions, on whichever node, answers
/// a probe that we send in the contact's name (RFC 6121, 3.1.5).
async fn show(services: &dyn Services, account: &BareJid, contact: &Jid) {
    if !is_available(services, account) {
        return;
    }
    let probe = Stanza::presence(Some("probe")).with_from(contact.clone()).with_to(account.clone());
    services.route(probe, How::Normal).await;
}

/// Hides every available session of the account from the contact (RFC 6121, 3.2.2).
pub async fn hide(services: &dyn Services, account: &BareJid, contact: &Jid) {
    for resource in services.online(account).into_iter().filter(|resource| resource.priority.is_some()) {
        let gone = Stanza::presence(Some("unavailable")).with_from(resource.jid);
        services.route(gone.with_to(contact.to_bare()), How::Normal).await;
    }
    // Told now, and so not again when the session ends (RFC 6121, 4.6.1).
    for session in services.local_sessions(account) {
        session.undirect(contact);
    }
}

impl Following for Subscription {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        let SessionEvent::Available { session, before: None, .. } = event else { return Answer::Now(()) };
        Answer::later(async move {
            // RFC 6121, 3.1.3: at each login, until the user has answered.
            match self.rosters.requests(&**services, session.account()).await {
                Ok(requests) => {
                    for stanza in requests.iter().filter_map(|request| request.stanza.stanza()) {
                        services.hand(session, stanza);
                    }
                }
                Err(error) => drop(store_failed(NAME, &error)),
            }
        })
    }
}

#[cfg(test)]
#[path = "subscription/tests.rs"]
mod tests;

//! What must hold of every history, whatever broke: the nine rules of issue 4, as far as a history can show them.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Dated, Event, Life, Process, Route, Sid};

/// A session that lost its full JID learns it from its own node's table: for no longer than this both may serve. A
/// node that hears nothing for longer has no lease any more.
const OVERLAP_MAX_MS: u64 = 5_000;

/// How long after it was asked for a bind may be tried, and so be applied a second time and take the full JID back from
/// a successor (see `docs/simulation.md`).
const TRIED_MS: u64 = 5_000;

/// Why a process ended that was told to.
pub const LEFT: &str = "left";

/// A rule that a history breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    pub rule: u8,
    pub text: String,
}

/// Looks for breaches of one rule.
type Rule = fn(&Known, &[Dated]) -> Vec<String>;

/// Every breach of a history.
pub fn judge(events: &[Dated]) -> Vec<Breach> {
    let known = Known::of(events);
    let rules: [Rule; 10] = [
        came_to_its_end,
        one_owner,
        binds_stay,
        nothing_vanishes,
        once_and_in_order,
        replicas_are_equal,
        table_is_the_union,
        nothing_after_the_lease,
        told_once,
        commits_stay,
    ];
    let numbered = rules.iter().zip(0_u8..);
    let breaches = numbered.flat_map(|(rule, number)| {
        rule(&known, events).into_iter().map(move |text| Breach { rule: number, text })
    });
    breaches.collect()
}

/// What a history says of each session and process.
#[derive(Default)]
struct Known {
    sessions: BTreeMap<Sid, Session>,
    by_jid: BTreeMap<String, Vec<Sid>>,
    /// When a process ended without a word, or by itself.
    ends: BTreeMap<Process, u64>,
    killed: BTreeSet<Process>,
    /// When anybody first heard that a life of a node is over.
    gone: BTreeMap<Life, u64>,
    /// When a table first said so.
    over: BTreeMap<Life, u64>,
    fenced: BTreeMap<Process, Vec<u64>>,
    back: BTreeMap<Process, Vec<u64>>,
}

struct Session {
    jid: String,
    process: Process,
    asked: u64,
    bound: Option<(u64, u64, Life)>,
    failed: bool,
    unbound: Option<u64>,
    ended: Option<u64>,
    lives: Vec<(u64, Life)>,
}

impl Known {
    fn of(events: &[Dated]) -> Known {
        let mut known = Known::default();
        for Dated { at, event } in events {
            let at = *at;
            match event {
                Event::Killed { process, .. } => {
                    known.ends.insert(*process, at);
                    known.killed.insert(*process);
                }
                Event::Stopped { process, why, .. } => {
                    known.ends.insert(*process, at);
                    if why != LEFT {
                        known.killed.insert(*process);
                    }
                }
                Event::Gone { life, .. } => {
                    known.gone.entry(*life).or_insert(at);
                }
                Event::Over { life } => {
                    known.over.entry(*life).or_insert(at);
                }
                Event::Back { process, .. } => known.back.entry(*process).or_default().push(at),
                Event::Fenced { process } => known.fenced.entry(*process).or_default().push(at),
                Event::BindAsked { sid, jid, process } => {
                    known.by_jid.entry(jid.clone()).or_default().push(*sid);
                    let session = Session {
                        jid: jid.clone(),
                        process: *process,
                        asked: at,
                        bound: None,
                        failed: false,
                        unbound: None,
                        ended: None,
                        lives: Vec::new(),
                    };
                    known.sessions.insert(*sid, session);
                }
                _ => known.note(at, event),
            }
        }
        known
    }

    fn note(&mut self, at: u64, event: &Event) {
        let sid = match event {
            Event::Bound { sid, .. }
            | Event::BindFailed { sid }
            | Event::BroughtBack { sid, .. }
            | Event::UnbindAsked { sid }
            | Event::Ended { sid, .. } => sid,
            _ => return,
        };
        let Some(session) = self.sessions.get_mut(sid) else { return };
        match event {
            Event::Bound { index, life, .. } => {
                session.bound = Some((at, *index, *life));
                session.lives.push((at, *life));
            }
            Event::BindFailed { .. } => session.failed = true,
            Event::BroughtBack { life, .. } => session.lives.push((at, *life)),
            Event::UnbindAsked { .. } => session.unbound = session.unbound.or(Some(at)),
            Event::Ended { .. } => session.ended = session.ended.or(Some(at)),
            _ => {}
        }
    }
}

fn came_to_its_end(_: &Known, events: &[Dated]) -> Vec<String> {
    match events.last().map(|dated| &dated.event) {
        Some(Event::End { failure: None }) => Vec::new(),
        Some(Event::End { failure: Some(failure) }) => vec![failure.clone()],
        _ => vec!["the run has no end".into()],
    }
}

/// Rule 1: never two serving sessions with one full JID.
fn one_owner(known: &Known, events: &[Dated]) -> Vec<String> {
    let mut found = Vec::new();
    let mut serving: BTreeMap<&str, BTreeMap<Sid, u64>> = BTreeMap::new();
    // A session overlaps with another from when the later one began to serve.
    let mut overlap = |jid: &str, first: Sid, second: Sid, from: u64, to: u64| {
        if to.saturating_sub(from) > OVERLAP_MAX_MS {
            found.push(format!(
                "`{jid}`: the sessions {first:x} and {second:x} both served from {from} to {to} ms"
            ));
        }
    };
    let end = events.last().map_or(0, |dated| dated.at);
    for Dated { at, event } in events {
        let Event::Serves { sid, serves } = event else { continue };
        let Some(session) = known.sessions.get(sid) else { continue };
        let here = serving.entry(&session.jid).or_default();
        if *serves {
            here.insert(*sid, *at);
        } else if let Some(since) = here.remove(sid) {
            for (other, from) in here.iter() {
                overlap(&session.jid, *other, *sid, since.max(*from), *at);
            }
        }
    }
    for (jid, here) in &serving {
        let all: Vec<_> = here.iter().collect();
        for (nth, (first, from)) in all.iter().enumerate() {
            for (second, since) in &all[nth + 1..] {
                overlap(jid, **first, **second, **from.max(since), end);
            }
        }
    }
    for (process, index, routes) in tables(events) {
        for pair in routes.windows(2).filter(|pair| pair[0].jid == pair[1].jid) {
            found.push(format!("process {process} at {index}: `{}` has two rows", pair[0].jid));
        }
    }
    found
}

fn tables(events: &[Dated]) -> impl Iterator<Item = (Process, u64, &[Route])> {
    events.iter().filter_map(|dated| match &dated.event {
        Event::Table { process, index, routes } => Some((*process, *index, routes.as_slice())),
        _ => None,
    })
}

fn living(events: &[Dated]) -> &[Route] {
    let living = events.iter().rev().find_map(|dated| match &dated.event {
        Event::Living { routes } => Some(routes.as_slice()),
        _ => None,
    });
    living.unwrap_or_default()
}

/// Rule 2: an acknowledged bind stays until it is undone.
fn binds_stay(known: &Known, events: &[Dated]) -> Vec<String> {
    let mut found = BTreeMap::new();
    for Dated { at, event } in events {
        let Event::Table { process, index, routes } = event else { continue };
        let shown: BTreeSet<Sid> = routes.iter().map(|route| route.sid).collect();
        for (sid, session) in &known.sessions {
            let Some((bound_at, bound_index, _)) = session.bound else { continue };
            if bound_at > *at || bound_index > *index || shown.contains(sid) || found.contains_key(sid) {
                continue;
            }
            if !is_undone(known, *sid, session, bound_at, *at) {
                let text = format!(
                    "`{}` ({sid:x}), bound at index {bound_index}, is not in the table of process {process} at index {index} ({at} ms)",
                    session.jid
                );
                found.insert(*sid, text);
            }
        }
    }
    found.into_values().collect()
}

fn is_undone(known: &Known, sid: Sid, session: &Session, bound_at: u64, now: u64) -> bool {
    let by_itself = session.unbound.is_some_and(|at| at <= now);
    let with_its_node = known.ends.get(&session.process).is_some_and(|at| *at <= now);
    // From the loss of a lease on, the row hangs on the next life of its node, which brings it back.
    let is_back = |since: u64| {
        let back = known.back.get(&session.process);
        back.is_some_and(|times| times.iter().any(|at| (since..=bound_at).contains(at)))
    };
    let lost = |at: &u64| *at <= now && (*at + 1_000 >= bound_at || !is_back(*at));
    let fenced = known.fenced.get(&session.process);
    let over = |life: &Life| {
        [&known.gone, &known.over].into_iter().filter_map(|ends| ends.get(life)).any(|at| *at <= now)
    };
    let with_its_lease = fenced.is_some_and(|times| times.iter().any(lost))
        || session.lives.iter().any(|(_, life)| over(life));
    let successor = known.by_jid.get(&session.jid).into_iter().flatten().any(|other| {
        let Some(rival) = known.sessions.get(other) else { return false };
        // One that was acknowledged before this one was asked for is older in the log, unless it was tried twice.
        let is_older =
            rival.bound.is_some_and(|(at, ..)| at < session.asked) && rival.asked + TRIED_MS < bound_at;
        *other != sid && rival.asked <= now && !is_older
    });
    by_itself || with_its_node || with_its_lease || successor
}

/// What became of one message.
#[derive(Default)]
struct Fate {
    accepted: Option<(u64, Sid, String, Process)>,
    delivered: Vec<(u64, Sid, Life, Process)>,
    bounced: bool,
}

fn fates(events: &[Dated]) -> BTreeMap<u64, Fate> {
    let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
    for Dated { at, event } in events {
        match event {
            Event::Accepted { id, from, to, process } => {
                fates.entry(*id).or_default().accepted = Some((*at, *from, to.clone(), *process));
            }
            Event::Delivered { id, to, life, process } => {
                fates.entry(*id).or_default().delivered.push((*at, *to, *life, *process));
            }
            Event::Bounced { id, .. } => fates.entry(*id).or_default().bounced = true,
            _ => {}
        }
    }
    fates
}

/// Rule 3: an accepted stanza is delivered, stored or bounced. What is stored is delivered before a run ends.
fn nothing_vanishes(known: &Known, events: &[Dated]) -> Vec<String> {
    let (mut found, mut unheard) = (Vec::new(), Vec::new());
    for (id, fate) in fates(events) {
        let Some((at, from, to, process)) = &fate.accepted else {
            found.push(format!("message {id} was delivered and never accepted"));
            continue;
        };
        // Read by a node that died, from a client that asked for no acknowledgement: XEP-0198 is there for that.
        let died_with_it = known.killed.contains(process);
        if fate.delivered.is_empty() && !fate.bounced && !died_with_it {
            let text = format!("message {id} to `{to}`, accepted at {at} ms from {from:x}, vanished");
            let has_left = known.sessions.get(from).is_some_and(|session| session.ended.is_some());
            if has_left { unheard.push(text) } else { found.push(text) }
        }
    }
    // Bounced to a session that had left: nobody heard it, but its node counted it.
    let ignored = events.iter().map(|dated| match &dated.event {
        Event::Ignored { messages, .. } => *messages,
        _ => 0,
    });
    if unheard.len() as u64 > ignored.sum::<u64>() {
        found.extend(unheard);
    }
    found
}

/// A stanza waits no longer for older ones that are still at another node (`limits.refused_wait_ms`): then order gives
/// way, by design.
const PATIENCE_MS: u64 = 2_000;

/// An older message that took as long was stored, or sent anew, while something was broken.
const LATE_MS: u64 = 500;

/// Rule 4: once, and in order per pair: from one session to one address.
fn once_and_in_order(known: &Known, events: &[Dated]) -> Vec<String> {
    let fates = fates(events);
    let mut found = twice(known, &fates);
    let mut newest: BTreeMap<(Sid, &str), (u64, u64)> = BTreeMap::new();
    let (mut seen, mut announced) = (BTreeSet::new(), BTreeSet::new());
    for Dated { at, event } in events {
        let (id, to) = match event {
            Event::Delivered { id, to, .. } => (*id, to),
            Event::Announced { sid } => {
                announced.insert(*sid);
                continue;
            }
            _ => continue,
        };
        let Some((accepted, from, address, _)) = fates.get(&id).and_then(|fate| fate.accepted.as_ref())
        else {
            continue;
        };
        // RFC 6121, 8.5.3.1: a message to a full JID reaches a session that has not said that it is available, and
        // what is kept for its account comes when it does.
        if !seen.insert(id) || !announced.contains(to) {
            continue;
        }
        let last = newest.entry((*from, address)).or_insert((id, *at));
        if id < last.0 {
            if at - accepted >= LATE_MS {
                continue;
            }
            let (newer, then) = last;
            found.push(format!(
                "message {id} from {from:x} to `{address}` came at {at} ms, behind {newer} of {then} ms"
            ));
        } else if at - accepted < PATIENCE_MS {
            *last = (id, *at);
        }
    }
    found
}

/// Messages that came twice without need.
fn twice(known: &Known, fates: &BTreeMap<u64, Fate>) -> Vec<String> {
    let mut found = Vec::new();
    for (id, fate) in fates {
        let accepted = fate.accepted.as_ref().map_or(0, |(at, ..)| *at);
        for pair in fate.delivered.windows(2) {
            let ((at, first, ..), (again, second, ..)) = (&pair[0], &pair[1]);
            // A node on its way, or at the end of it, whose life ended cannot say what became of it: it is sent again.
            let meanwhile = |time: &u64| (accepted..=*again).contains(time);
            let could_not_say = known.gone.values().any(meanwhile) || known.ends.values().any(meanwhile);
            if !could_not_say {
                found.push(format!(
                    "message {id} was delivered to {first:x} at {at} and to {second:x} at {again} ms"
                ));
            }
        }
    }
    found
}

/// Rule 5: replicas are equal at equal index.
fn replicas_are_equal(_: &Known, events: &[Dated]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at_index: BTreeMap<u64, (Process, &[Route])> = BTreeMap::new();
    for (process, index, routes) in tables(events) {
        let (first, known) = at_index.entry(index).or_insert((process, routes));
        if *known != routes {
            let differ = routes.iter().find(|route| !known.contains(route));
            let differ = differ.or_else(|| known.iter().find(|route| !routes.contains(route)));
            found.push(format!(
                "the tables of processes {first} and {process} differ at index {index}: {differ:?}"
            ));
        }
    }
    let mut longest: Option<&[u64]> = None;
    for dated in events {
        let Event::Ledger { process, values } = &dated.event else { continue };
        let known = longest.get_or_insert(values);
        let both = known.len().min(values.len());
        if known[..both] != values[..both] {
            found.push(format!("the list of process {process} is another one"));
        }
        if values.len() > known.len() {
            *known = values;
        }
    }
    found
}

/// Rule 6: some seconds after healing the table is the union of the living sessions.
fn table_is_the_union(_: &Known, events: &[Dated]) -> Vec<String> {
    if !events.iter().any(|dated| matches!(dated.event, Event::Living { .. })) {
        return Vec::new();
    }
    let living = living(events);
    let mut last: BTreeMap<Process, (u64, &[Route])> = BTreeMap::new();
    for (process, index, routes) in tables(events) {
        last.insert(process, (index, routes));
    }
    for dated in events {
        match &dated.event {
            Event::Killed { process, .. } | Event::Stopped { process, .. } => {
                last.remove(process);
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (process, (index, routes)) in last {
        for route in routes.iter().filter(|route| !living.contains(route)) {
            found.push(format!("process {process} shows at index {index} what does not live: {route:?}"));
        }
        for route in living.iter().filter(|route| !routes.contains(route)) {
            found.push(format!("process {process} does not show at index {index} what lives: {route:?}"));
        }
    }
    found
}

/// Rule 7: a node delivers nothing after its lease; at the latest when others hold its life for over.
fn nothing_after_the_lease(known: &Known, events: &[Dated]) -> Vec<String> {
    let late = events.iter().filter_map(|dated| match &dated.event {
        Event::Delivered { id, life, process, .. } => {
            let gone = known.gone.get(life).filter(|gone| **gone < dated.at)?;
            Some(format!(
                "process {process} delivered message {id} at {} ms; its life ended at {gone}",
                dated.at
            ))
        }
        _ => None,
    });
    late.collect()
}

/// Nodes that are lost within this time of one another: what one was to tell another tells again.
const TOGETHER_MS: u64 = 60_000;
/// For so long a session that was displaced, or that its client left, may be told of as gone for both, where a node was
/// lost (see `docs/simulation.md`).
const DISPLACED_MS: u64 = 10_000;

/// Whether a session of a full JID was lost with its node shortly before `at`.
fn is_lost(known: &Known, jid: &str, at: u64) -> bool {
    let sessions = known.by_jid.get(jid).into_iter().flatten().filter_map(|sid| known.sessions.get(sid));
    let lost =
        |life: &Life| known.gone.get(life).is_some_and(|gone| (*gone..gone + DISPLACED_MS).contains(&at));
    sessions.flat_map(|session| &session.lives).any(|(_, life)| lost(life))
}

/// Rule 8: one `unavailable` per lost session and contact, and in the end nobody holds for gone who lives.
fn told_once(known: &Known, events: &[Dated]) -> Vec<String> {
    let mut found = Vec::new();
    // What each contact last heard of each full JID.
    let mut heard: BTreeMap<(Sid, &str), (u64, bool)> = BTreeMap::new();
    let mut displaced: BTreeMap<&str, u64> = BTreeMap::new();
    let mut left: BTreeMap<&str, u64> = BTreeMap::new();
    let mut announced: BTreeMap<&str, u64> = BTreeMap::new();
    for Dated { at, event } in events {
        let (to, of, available) = match event {
            // About an account as a whole it is the answer to a probe.
            Event::Told { of, .. } if !of.contains('/') => continue,
            Event::Told { to, of, available } => (to, of.as_str(), *available),
            Event::Announced { sid } => {
                let jid = known.sessions.get(sid).map(|session| session.jid.as_str());
                announced.extend(jid.map(|jid| (jid, *at)));
                continue;
            }
            Event::Ended { sid, why } if why.contains("Displaced") => {
                let jid = known.sessions.get(sid).map(|session| session.jid.as_str());
                displaced.extend(jid.map(|jid| (jid, *at)));
                continue;
            }
            Event::Ended { sid, why } if why == "Closed" => {
                let jid = known.sessions.get(sid).map(|session| session.jid.as_str());
                left.extend(jid.map(|jid| (jid, *at)));
                continue;
            }
            _ => continue,
        };
        let Some(before) = heard.insert((*to, of), (*at, available)) else { continue };
        let lost = known.gone.values().filter(|gone| **gone <= *at && **gone + TOGETHER_MS > *at).count();
        // So does one whose client leaves as its node has just come back: it was lost, and it ended.
        let lately = |then: &u64| then + DISPLACED_MS > *at;
        let is_unsettled = displaced.get(of).is_some_and(lately) || left.get(of).is_some_and(lately);
        // What was agreed on, and never came to be told: its end is told all the same.
        let is_another = announced.get(of).is_some_and(|then| *then > before.0);
        // With a second node those may be lost that were to tell, or had told: told twice is better than never.
        if !before.1 && !available && lost < 2 && !is_unsettled && !is_another && is_lost(known, of, before.0)
        {
            found.push(format!("{to:x} was told at {} and at {at} ms that `{of}` is gone", before.0));
        }
    }
    let living = living(events);
    let is_living = |jid: &str| living.iter().any(|route| route.jid == jid);
    for ((to, of), (at, available)) in heard {
        let is_there = living.iter().any(|route| route.sid == to);
        if is_there && !available && is_living(of) {
            found.push(format!(
                "{to:x} was told at {at} ms that `{of}` is gone, who lives, and never the truth"
            ));
        }
    }
    found
}

/// Rule 9: an acknowledged commit of the store is never lost.
fn commits_stay(_: &Known, events: &[Dated]) -> Vec<String> {
    let kept: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|dated| match &dated.event {
            Event::Kept { value, .. } => Some((dated.at, *value)),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    for dated in events {
        let Event::Ledger { process, values } = &dated.event else { continue };
        for (at, value) in kept.iter().filter(|(_, value)| !values.contains(value)) {
            found.push(format!("process {process} has not {value}, which was acknowledged at {at} ms"));
        }
    }
    found
}

//! The oracle over histories that were made up: each rule can be broken, and what is allowed breaks none.

use std::sync::Arc;

use crate::{
    history::{Dated, Event, Route},
    oracle::judge,
};

const ANA: &str = "ana@localhost/r";

/// The rules that a history breaks; its end is put behind it.
fn broken(events: Vec<(u64, Event)>) -> Vec<u8> {
    let mut dated: Vec<Dated> = events.into_iter().map(|(at, event)| Dated { at, event }).collect();
    let at = dated.last().map_or(0, |dated| dated.at);
    dated.push(Dated { at, event: Event::End { failure: None } });
    let mut rules: Vec<u8> = judge(&dated).into_iter().map(|breach| breach.rule).collect();
    rules.dedup();
    rules
}

/// A session of Ana's that is bound at `at` by a process, in the first life of the node of that number.
fn bound(at: u64, sid: u128, process: u64, index: u64) -> Vec<(u64, Event)> {
    vec![
        (at, Event::BindAsked { sid, jid: ANA.into(), process }),
        (at, Event::Bound { sid, index, life: (process, 1) }),
        (at, Event::Announced { sid }),
    ]
}

fn serves(at: u64, sid: u128, serves: bool) -> (u64, Event) {
    (at, Event::Serves { sid, serves })
}

fn table(at: u64, process: u64, index: u64, sids: &[(u128, u64)]) -> (u64, Event) {
    let route = |(sid, node): &(u128, u64)| Route { jid: ANA.into(), sid: *sid, life: (*node, 1) };
    let routes = Arc::new(sids.iter().map(route).collect());
    (at, Event::Table { process, index, routes })
}

fn accepted(at: u64, id: u64, process: u64) -> (u64, Event) {
    (at, Event::Accepted { id, from: 7, to: "ana@localhost".into(), process })
}

fn delivered(at: u64, id: u64, to: u128, process: u64) -> (u64, Event) {
    (at, Event::Delivered { id, to, life: (process, 1), process })
}

fn killed(at: u64, process: u64) -> (u64, Event) {
    (at, Event::Killed { host: 0, process, power: false })
}

fn all(parts: Vec<Vec<(u64, Event)>>) -> Vec<(u64, Event)> {
    parts.concat()
}

#[test]
fn a_run_without_an_end_is_a_breach() {
    let failure = Some("not settled".to_owned());
    let ends = judge(&[Dated { at: 1, event: Event::End { failure } }]);
    assert_eq!(ends.iter().map(|breach| breach.rule).collect::<Vec<_>>(), [0]);
    assert_eq!(judge(&[]).len(), 1);
    assert!(broken(vec![]).is_empty());
}

#[test]
fn rule_1_two_sessions_do_not_serve_one_full_jid() {
    let two = all(vec![bound(100, 1, 1, 5), bound(200, 2, 2, 6)]);
    for (until, rules) in [(1_000, vec![]), (9_000, vec![1])] {
        let mut events = two.clone();
        events.extend([serves(100, 1, true), serves(200, 2, true), serves(until, 1, false)]);
        assert_eq!(broken(events), rules, "until {until}");
    }
    // Without an end of either.
    let mut events = two.clone();
    events.extend([serves(100, 1, true), serves(200, 2, true), (9_000, Event::Healed)]);
    assert_eq!(broken(events), [1]);
    // Two rows of one full JID.
    let mut events = two;
    events.push(table(300, 1, 6, &[(1, 1), (2, 2)]));
    assert_eq!(broken(events), [1]);
}

#[test]
fn rule_2_a_bind_stays_until_it_is_undone() {
    let gone = table(500, 1, 9, &[]);
    let begin = bound(100, 1, 1, 5);
    assert_eq!(broken(all(vec![begin.clone(), vec![gone.clone()]])), [2]);
    // A table that is older than the bind shows nothing.
    assert!(broken(all(vec![begin.clone(), vec![table(500, 1, 4, &[])]])).is_empty());
    let undone = [
        (200, Event::UnbindAsked { sid: 1 }),
        (200, Event::Fenced { process: 1 }),
        killed(200, 1),
        (200, Event::Gone { by: 2, life: (1, 1) }),
        (200, Event::BindAsked { sid: 2, jid: ANA.into(), process: 2 }),
    ];
    for undo in undone {
        assert!(broken(all(vec![begin.clone(), vec![undo.clone(), gone.clone()]])).is_empty(), "{undo:?}");
    }
    // One that was acknowledged before is older in the log, and takes nothing away, if it cannot be tried any more.
    let later = bound(9_000, 1, 1, 5);
    let older = |at| {
        let leaves = (at + 50, Event::UnbindAsked { sid: 2 });
        broken(all(vec![bound(at, 2, 2, 4), later.clone(), vec![leaves, table(9_500, 1, 9, &[])]]))
    };
    assert_eq!(older(50), [2]);
    assert!(older(8_000).is_empty());
}

#[test]
fn rule_3_an_accepted_message_does_not_vanish() {
    let begin = bound(10, 1, 1, 5);
    let with = |more: Vec<(u64, Event)>| broken(all(vec![begin.clone(), vec![accepted(100, 1, 1)], more]));
    assert_eq!(with(vec![]), [3]);
    assert_eq!(with(vec![killed(200, 2)]), [3]);
    assert!(with(vec![delivered(200, 1, 1, 1)]).is_empty());
    assert!(with(vec![(200, Event::Bounced { id: 1, to: 7 })]).is_empty());
    // Bounced to who has left, as its node counted.
    let left = vec![(5, Event::BindAsked { sid: 7, jid: "bea@localhost/r".into(), process: 1 })];
    let left = all(vec![left, vec![(250, Event::Ended { sid: 7, why: "Closed".into() })]]);
    assert_eq!(with(left.clone()), [3]);
    assert!(with(all(vec![left, vec![(300, Event::Ignored { process: 1, messages: 1 })]])).is_empty());
    // Its node died with it.
    assert!(with(vec![killed(200, 1)]).is_empty());
    // What nobody said.
    assert_eq!(broken(all(vec![begin.clone(), vec![delivered(200, 9, 1, 1)]])), [3]);
}

#[test]
fn rule_4_messages_come_once_and_in_order() {
    let begin = all(vec![bound(10, 1, 1, 5), vec![accepted(20, 1, 1), accepted(30, 2, 1)]]);
    let with = |more: Vec<(u64, Event)>| broken(all(vec![begin.clone(), more]));
    assert!(with(vec![delivered(40, 1, 1, 1), delivered(40, 2, 1, 1)]).is_empty());
    assert_eq!(with(vec![delivered(40, 2, 1, 1), delivered(40, 1, 1, 1)]), [4]);
    assert_eq!(with(vec![delivered(40, 1, 1, 1), delivered(41, 1, 1, 1), delivered(50, 2, 1, 1)]), [4]);
    // Its node died and could not say what it had written.
    let again = vec![delivered(40, 1, 1, 1), killed(45, 1), delivered(50, 1, 2, 2), delivered(60, 2, 2, 2)];
    assert!(broken(all(vec![begin.clone(), bound(46, 2, 2, 8), again])).is_empty());
}

#[test]
fn rule_5_replicas_are_equal_at_equal_index() {
    // Both are being taken back: only the tables say where they are.
    let undone = |sid| vec![(25, Event::UnbindAsked { sid })];
    let begin = all(vec![bound(10, 1, 1, 5), bound(20, 2, 2, 6), undone(1), undone(2)]);
    let tables = |second: u64| vec![table(30, 1, 6, &[(2, 2)]), table(40, 2, second, &[(1, 1)])];
    assert_eq!(broken(all(vec![begin.clone(), tables(6)])), [5]);
    assert!(broken(all(vec![begin, tables(5)])).is_empty());
    let list = |process, values: &[u64]| (50, Event::Ledger { process, values: Arc::new(values.to_vec()) });
    assert!(broken(vec![list(1, &[1, 2, 3]), list(2, &[1, 2])]).is_empty());
    assert_eq!(broken(vec![list(1, &[1, 2, 3]), list(2, &[1, 3])]), [5]);
}

#[test]
fn rule_6_the_table_is_the_union_of_the_living_sessions() {
    let begin = bound(10, 1, 1, 5);
    let living = |sids: &[u128]| {
        let route = |sid: &u128| Route { jid: ANA.into(), sid: *sid, life: (1, 1) };
        (60, Event::Living { routes: sids.iter().map(route).collect() })
    };
    let shown = table(50, 1, 6, &[(1, 1)]);
    assert!(broken(all(vec![begin.clone(), vec![shown.clone(), living(&[1])]])).is_empty());
    assert_eq!(broken(all(vec![begin.clone(), vec![shown, living(&[])]])), [6]);
    let unbound = (20, Event::UnbindAsked { sid: 1 });
    assert_eq!(broken(all(vec![begin, vec![unbound, table(50, 1, 6, &[]), living(&[1])]])), [6]);
}

#[test]
fn rule_7_nothing_is_delivered_after_the_lease() {
    let begin = all(vec![bound(10, 1, 1, 5), vec![accepted(20, 1, 2)]]);
    let gone = (40, Event::Gone { by: 2, life: (1, 1) });
    assert!(broken(all(vec![begin.clone(), vec![delivered(30, 1, 1, 1), gone.clone()]])).is_empty());
    assert_eq!(broken(all(vec![begin, vec![gone, delivered(50, 1, 1, 1)]])), [7]);
}

#[test]
fn rule_8_a_contact_is_told_once() {
    let begin = bound(10, 1, 1, 5);
    let told = |at, available| (at, Event::Told { to: 1, of: "bea@localhost/r".into(), available });
    let with = |more: Vec<(u64, Event)>| broken(all(vec![begin.clone(), more]));
    assert!(with(vec![told(20, true), told(30, false), told(40, true), told(50, false)]).is_empty());
    let bea = vec![
        (12, Event::BindAsked { sid: 2, jid: "bea@localhost/r".into(), process: 2 }),
        (13, Event::Bound { sid: 2, index: 6, life: (2, 1) }),
        (28, Event::Gone { by: 1, life: (2, 1) }),
    ];
    let twice = vec![told(20, true), told(30, false), told(40, false)];
    assert_eq!(with(all(vec![bea.clone(), twice.clone()])), [8]);
    // Agreed on in between, and not told.
    let announced = (35, Event::Announced { sid: 2 });
    assert!(with(all(vec![bea, twice[..2].into(), vec![announced, told(40, false)]])).is_empty());
    // Who lives is not gone for anybody in the end.
    let bea = Route { jid: "bea@localhost/r".into(), sid: 2, life: (1, 1) };
    let ana = Route { jid: ANA.into(), sid: 1, life: (1, 1) };
    let ends = (60, Event::Living { routes: vec![ana.clone(), bea.clone()] });
    let shown = (55, Event::Table { process: 1, index: 9, routes: Arc::new(vec![ana, bea]) });
    assert_eq!(with(vec![told(20, true), told(30, false), shown, ends]), [8]);
}

#[test]
fn rule_9_an_acknowledged_commit_is_never_lost() {
    let list = |values: &[u64]| (50, Event::Ledger { process: 1, values: Arc::new(values.to_vec()) });
    let kept = (20, Event::Kept { value: 2, index: 4 });
    assert!(broken(vec![kept.clone(), list(&[1, 2])]).is_empty());
    assert_eq!(broken(vec![kept, list(&[1])]), [9]);
}

#[test]
fn a_row_may_go_with_a_life_that_a_table_says_is_over_though_nobody_was_told() {
    let lost = |over: Vec<(u64, Event)>| {
        broken(all(vec![
            bound(10, 1, 1, 4),
            vec![table(20, 2, 5, &[(1, 1)])],
            over,
            vec![table(40, 2, 9, &[])],
        ]))
    };
    assert_eq!(lost(vec![]), [2]);
    assert_eq!(lost(vec![(30, Event::Over { life: (1, 1) })]), [0; 0]);
    assert_eq!(lost(vec![(30, Event::Over { life: (1, 0) })]), [2]);
}

//! What the route table costs: CPU time of a bind, a priority and an unbind as every node applies them, and of the hashes
//! in them by which nodes compare their tables.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{Context, SHA256};
use cluster::{
    Incarnation, NodeId, Roles, Routes, Sid,
    routes::{Command, ConflictPolicy},
};
use jid::FullJid;

/// Rows that are there all the time.
const ROWS: u64 = 200_000;
/// Sessions that come and go above them.
const SESSIONS: u64 = 200_000;
/// The best of so many runs: what others do on the machine only adds.
const RUNS: usize = 5;

/// What is done to each session, and how it is asked for.
type Step<'a> = (&'a str, &'a dyn Fn(FullJid, Sid) -> Command);

fn main() {
    let mut routes = Routes::new();
    let mut index = 0;
    let mut apply = |routes: &mut Routes, command| {
        index += 1;
        black_box(routes.apply(index, command, &mut Vec::new()));
        black_box(routes.digest());
    };
    let (name, address, roles) = ("node1".into(), "h:1".into(), Roles { frontend: true, backend: true });
    apply(&mut routes, Command::NodeUp { key: 1, start: 1, name, address, roles, member: None });
    let (node, incarnation, policy) = (NodeId(1), Incarnation(1), ConflictPolicy::Replace);
    let bind = |n: u64| {
        let (jid, sid) = session(n);
        Command::Bind { jid, node, incarnation, sid, policy }
    };
    (0..ROWS).for_each(|n| apply(&mut routes, bind(n)));
    let come_and_go = || (ROWS..ROWS + SESSIONS).map(session);
    let mut steps: [Step<'_>; 3] = [
        ("bind", &|jid, sid| Command::Bind { jid, node, incarnation, sid, policy }),
        ("priority", &|jid, sid| Command::SetPriority { jid, sid, priority: Some(1) }),
        ("unbind", &|jid, sid| Command::Unbind { jid, sid }),
    ];
    let mut best = [Duration::MAX; 3];
    for _ in 0..RUNS {
        for ((_, make), best) in steps.iter_mut().zip(&mut best) {
            let commands: Vec<Command> = come_and_go().map(|(jid, sid)| make(jid, sid)).collect();
            let begun = Instant::now();
            commands.into_iter().for_each(|command| apply(&mut routes, command));
            *best = (*best).min(begun.elapsed());
        }
    }
    let jids: Vec<FullJid> = come_and_go().map(|(jid, _)| jid).collect();
    let mut hash = Duration::MAX;
    for _ in 0..RUNS {
        let begun = Instant::now();
        for jid in &jids {
            let mut context = Context::new(&SHA256);
            context.update(jid.as_str().as_bytes());
            context.update(black_box(&[7; 35]));
            black_box(context.finish());
        }
        hash = hash.min(begun.elapsed());
    }
    let each = |time: Duration| time.as_nanos() / u128::from(SESSIONS);
    println!("{ROWS} rows, each step for {SESSIONS} sessions, best of {RUNS}");
    for ((step, _), best) in steps.iter().zip(best) {
        println!("{step}: {} ns", each(best));
    }
    println!("one hash of a row: {} ns; a bind and an unbind have one, a priority has two", each(hash));
}

fn session(n: u64) -> (FullJid, Sid) {
    let jid = FullJid::new(&format!("user{n}@localhost.example/phone-{n:08x}"));
    (jid.expect("this is a full JID"), Sid(u128::from(n) << 64 | 0x5eed))
}

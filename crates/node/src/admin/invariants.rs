//! Judges the invariants of the cluster by what its nodes say: holds, violated, or unknown, and where.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{DIGEST_FORMAT, NodeRow};
use proto::{
    admin::{Finding, Invariant},
    sight::CheckReply,
};

use super::sight::Answer;

/// The route table is the same on all nodes at the same index.
const TABLE_EQUAL: &str = "table-equal";
/// The route table is the union of the sessions that live.
const SESSIONS_ROUTED: &str = "sessions-routed";

const VIOLATED: &str = "violated";
const UNKNOWN: &str = "unknown";
const HOLDS: &str = "holds";

/// What the nodes that are not gone have answered.
pub type Answers = [(NodeRow, Answer<CheckReply>)];

/// The report.
pub fn judge(answers: &Answers) -> Vec<Invariant> {
    vec![table_equal(answers), sessions_routed(answers)]
}

/// Whether each pair of answers has an index in common, so that another round would tell no more.
pub fn is_comparable(answers: &Answers) -> bool {
    let tables = tables(answers);
    let mut common: Option<BTreeSet<u64>> = None;
    for table in tables.values() {
        let indexes = table.keys().copied().collect();
        common = Some(match common {
            None => indexes,
            Some(common) => &common & &indexes,
        });
    }
    common.is_none_or(|common| !common.is_empty())
}

fn finding(row: &NodeRow, verdict: &str, text: String) -> Finding {
    let (node, node_name) = (row.node.0, row.name.clone());
    Finding { node, node_name, verdict: verdict.to_owned(), text, index: 0, sessions: Vec::new() }
}

/// The verdict over all findings.
fn invariant(name: &str, findings: Vec<Finding>, holds: String) -> Invariant {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let nodes = |count: usize| match count {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    let (verdict, text) = match (count(VIOLATED), count(UNKNOWN)) {
        (0, 0) => (HOLDS, holds),
        (0, unknown) => {
            (UNKNOWN, format!("{} could not be judged; where it is known, it holds", nodes(unknown)))
        }
        (violated, 0) => (VIOLATED, format!("not so at {}", nodes(violated))),
        (violated, unknown) => {
            (VIOLATED, format!("not so at {}, and {} could not be judged", nodes(violated), nodes(unknown)))
        }
    };
    Invariant { name: name.to_owned(), verdict: verdict.to_owned(), text, findings }
}

/// Digests by index, of each node that told some that can be compared.
fn tables(answers: &Answers) -> BTreeMap<u64, BTreeMap<u64, &[u8]>> {
    let told = answers.iter().filter_map(|(row, answer)| Some((row, answer.as_ref().ok()?)));
    let of_ours = told.filter(|(_, reply)| reply.digest_format == DIGEST_FORMAT && !reply.marks.is_empty());
    of_ours
        .map(|(row, reply)| {
            let marks = reply.marks.iter().map(|mark| (mark.index, mark.digest.as_ref()));
            (row.node.0, marks.collect())
        })
        .collect()
}

fn table_equal(answers: &Answers) -> Invariant {
    let tables = tables(answers);
    let odd = odd_ones(&tables);
    // The nodes that can be compared with another one at all.
    let shares = |node: u64| {
        let mine = &tables[&node];
        let others = tables.iter().filter(|(other, _)| **other != node);
        others.into_iter().any(|(_, theirs)| mine.keys().any(|index| theirs.contains_key(index)))
    };
    let mut findings = Vec::new();
    for (row, answer) in answers {
        let node = row.node.0;
        match answer {
            Err(why) => findings.push(finding(row, UNKNOWN, format!("it did not answer: {why}"))),
            Ok(reply) if reply.digest_format != DIGEST_FORMAT => {
                let text = format!(
                    "its digests are of format {}, those here of format {DIGEST_FORMAT}: the versions differ",
                    reply.digest_format
                );
                findings.push(finding(row, UNKNOWN, text));
            }
            Ok(reply) if reply.marks.is_empty() => {
                findings.push(finding(
                    row,
                    UNKNOWN,
                    "its route table is behind that of the others".to_owned(),
                ));
            }
            Ok(_) if odd.contains_key(&node) => {
                let index = odd[&node];
                let text = format!("its route table differs from that of the others at index {index}");
                findings.push(Finding { index, ..finding(row, VIOLATED, text) });
            }
            Ok(_) if tables.len() > 1 && !shares(node) => {
                let range = tables[&node].keys().next().zip(tables[&node].keys().next_back());
                let (from, to) = range.map_or((0, 0), |(from, to)| (*from, *to));
                let text = format!("it told of the indexes {from} to {to}, and nobody else of one of them");
                findings.push(finding(row, UNKNOWN, text));
            }
            Ok(_) => {}
        }
    }
    let at = tables.values().filter_map(|table| table.keys().next_back()).min().copied().unwrap_or(0);
    let holds = match tables.len() {
        1 => format!("there is one node, at index {at}"),
        count => format!("{count} nodes have the same table, compared up to index {at}"),
    };
    invariant(TABLE_EQUAL, findings, holds)
}

/// Nodes whose table differs from that of most, each with the lowest index at which that is seen. Where there is no
/// majority, all of them.
fn odd_ones(tables: &BTreeMap<u64, BTreeMap<u64, &[u8]>>) -> BTreeMap<u64, u64> {
    let mut by_index: BTreeMap<u64, BTreeMap<&[u8], Vec<u64>>> = BTreeMap::new();
    for (node, table) in tables {
        for (index, digest) in table {
            by_index.entry(*index).or_default().entry(*digest).or_default().push(*node);
        }
    }
    let mut odd = BTreeMap::new();
    for (index, by_digest) in by_index.into_iter().filter(|(_, by_digest)| by_digest.len() > 1) {
        let all: usize = by_digest.values().map(Vec::len).sum();
        let minorities = by_digest.into_values().filter(|nodes| nodes.len() * 2 <= all);
        for node in minorities.flatten() {
            odd.entry(node).or_insert(index);
        }
    }
    odd
}

fn sessions_routed(answers: &Answers) -> Invariant {
    let mut findings = Vec::new();
    let (mut sessions, mut nodes) = (0, 0);
    for (row, answer) in answers {
        match answer {
            Err(why) => findings.push(finding(row, UNKNOWN, format!("it did not answer: {why}"))),
            Ok(reply) if !reply.serving => {
                let text = "it does not hold its lease: its sessions wait to be brought back".to_owned();
                findings.push(finding(row, UNKNOWN, text));
            }
            Ok(reply) => {
                sessions += reply.sessions;
                nodes += 1;
                let ghosts = format!("{} rows of the route table have no session there", reply.ghosts_count);
                let unrouted = format!("{} sessions there have no row", reply.unrouted_count);
                let apart = [
                    (reply.ghosts_count, ghosts, &reply.ghosts),
                    (reply.unrouted_count, unrouted, &reply.unrouted),
                ];
                for (_, text, named) in apart.into_iter().filter(|(count, ..)| *count > 0) {
                    let sessions = named.clone();
                    findings.push(Finding { sessions, ..finding(row, VIOLATED, text) });
                }
            }
        }
    }
    let holds = format!("each of {sessions} sessions at {nodes} nodes has its row, and each row its session");
    invariant(SESSIONS_ROUTED, findings, holds)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cluster::{Incarnation, NodeId, NodeState, Roles};
    use proto::sight::Mark;

    use super::*;

    fn row(node: u64) -> NodeRow {
        NodeRow {
            node: NodeId(node),
            incarnation: Incarnation(1),
            name: format!("node{node}"),
            address: String::new(),
            roles: Roles::default(),
            state: NodeState::Up,
            member: None,
            key: u128::from(node),
            start: 1,
        }
    }

    /// What a node says: digests by index.
    fn said(marks: &[(u64, u8)]) -> CheckReply {
        let mark = |(index, digest): &(u64, u8)| Mark { index: *index, digest: vec![*digest; 16].into() };
        let marks = marks.iter().map(mark).collect();
        CheckReply { digest_format: DIGEST_FORMAT, marks, serving: true, ..CheckReply::default() }
    }

    fn answers(of: Vec<Answer<CheckReply>>) -> Vec<(NodeRow, Answer<CheckReply>)> {
        (1..).map(row).zip(of).collect()
    }

    /// The verdict, and what is said of each node.
    fn short(invariant: &Invariant) -> (&str, Vec<(u64, &str, u64)>) {
        let findings = invariant.findings.iter().map(|f| (f.node, f.verdict.as_str(), f.index));
        (&invariant.verdict, findings.collect())
    }

    #[test]
    fn tables_are_compared_at_equal_indexes() {
        type Expected<'a> = (&'a str, Vec<(u64, &'a str, u64)>);
        let silent = || Err("no answer within 8 s".to_owned());
        let rows: Vec<(Vec<Answer<CheckReply>>, Expected)> = vec![
            (vec![Ok(said(&[(7, 1)]))], (HOLDS, vec![])),
            (vec![Ok(said(&[(7, 1), (8, 2)])), Ok(said(&[(8, 2), (9, 3)]))], (HOLDS, vec![])),
            // Different indexes say nothing of each other.
            (
                vec![Ok(said(&[(7, 1)])), Ok(said(&[(8, 2)]))],
                (UNKNOWN, vec![(1, UNKNOWN, 0), (2, UNKNOWN, 0)]),
            ),
            (
                vec![Ok(said(&[(7, 1), (8, 2)])), Ok(said(&[(7, 1), (8, 9)])), Ok(said(&[(7, 1), (8, 2)]))],
                (VIOLATED, vec![(2, VIOLATED, 8)]),
            ),
            // The lowest index is told; without a majority nobody can say who is right.
            (
                vec![Ok(said(&[(7, 1), (8, 2)])), Ok(said(&[(7, 5), (8, 6)]))],
                (VIOLATED, vec![(1, VIOLATED, 7), (2, VIOLATED, 7)]),
            ),
            (vec![Ok(said(&[(7, 1)])), silent(), Ok(said(&[(7, 1)]))], (UNKNOWN, vec![(2, UNKNOWN, 0)])),
            (
                vec![Ok(said(&[(7, 1)])), silent(), Ok(said(&[(7, 2)])), Ok(said(&[(7, 1)]))],
                (VIOLATED, vec![(2, UNKNOWN, 0), (3, VIOLATED, 7)]),
            ),
            (vec![Ok(said(&[(7, 1)])), Ok(said(&[]))], (UNKNOWN, vec![(2, UNKNOWN, 0)])),
            (
                vec![Ok(said(&[(7, 1)])), Ok(CheckReply { digest_format: 99, ..said(&[(7, 2)]) })],
                (UNKNOWN, vec![(2, UNKNOWN, 0)]),
            ),
        ];
        for (said, expected) in rows {
            let report = judge(&answers(said.clone()));
            assert_eq!(report[0].name, TABLE_EQUAL);
            assert_eq!(short(&report[0]), expected, "{said:?}");
        }
        assert!(is_comparable(&answers(vec![Ok(said(&[(7, 1), (8, 1)])), Ok(said(&[(8, 1)])), silent()])));
        assert!(!is_comparable(&answers(vec![Ok(said(&[(7, 1)])), Ok(said(&[(8, 1)]))])));
    }

    #[test]
    fn sessions_and_rows_must_be_the_same() {
        let apart = CheckReply {
            sessions: 2,
            rows: 3,
            ghosts: vec!["a@x/r".into(), "b@x/r".into()],
            ghosts_count: 2,
            unrouted: vec!["c@x/r".into()],
            unrouted_count: 1,
            ..said(&[(7, 1)])
        };
        let well = || CheckReply { sessions: 2, rows: 2, ..said(&[(7, 1)]) };
        let fenced = CheckReply { serving: false, ..apart.clone() };
        let report = judge(&answers(vec![Ok(well()), Ok(well())]));
        assert_eq!(short(&report[1]), (HOLDS, vec![]));
        assert_eq!(report[1].text, "each of 4 sessions at 2 nodes has its row, and each row its session");
        let report = judge(&answers(vec![Ok(well()), Ok(apart)]));
        assert_eq!(short(&report[1]), (VIOLATED, vec![(2, VIOLATED, 0), (2, VIOLATED, 0)]));
        assert_eq!(report[1].findings[0].sessions, ["a@x/r", "b@x/r"]);
        assert_eq!(report[1].findings[1].text, "1 sessions there have no row");
        let report = judge(&answers(vec![Ok(well()), Ok(fenced), Err("gone".into())]));
        assert_eq!(short(&report[1]), (UNKNOWN, vec![(2, UNKNOWN, 0), (3, UNKNOWN, 0)]));
    }

    #[test]
    fn a_digest_that_is_none_is_a_difference_and_no_panic() {
        let odd =
            CheckReply { marks: vec![Mark { index: 7, digest: Bytes::from_static(b"short") }], ..said(&[]) };
        let report = judge(&answers(vec![Ok(said(&[(7, 1)])), Ok(odd), Ok(said(&[(7, 1)]))]));
        assert_eq!(short(&report[0]), (VIOLATED, vec![(2, VIOLATED, 7)]));
    }
}

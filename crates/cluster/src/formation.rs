//! The first formation: what a node does about the others that it sees, as pure decisions.

use std::time::Duration;

use tokio::time::Instant;

use crate::role::{ClusterId, MemberId};

/// How long a promise to take part in one birth keeps a node from another.
const PROMISE: Duration = Duration::from_secs(5);

/// Another node as it introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) address: String,
    /// `None` for a frontend.
    pub(crate) member: Option<MemberId>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) expect: usize,
    pub(crate) sees: Vec<MemberId>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Look again.
    Wait,
    /// All agree and this node is the lowest: found a cluster with these members.
    Found(Vec<(MemberId, String)>),
    /// There is a cluster already.
    Join(ClusterId),
    /// Another cluster than ours answers.
    Foreign { theirs: ClusterId, address: String },
    /// Nodes disagree about how many they are.
    Disagree { address: String, expects: usize },
}

/// The members that a backend would found a cluster with, lowest first.
pub(crate) fn list(me: MemberId, expect: usize, seen: &[Seen]) -> Vec<MemberId> {
    let mut members: Vec<MemberId> = seen.iter().filter_map(|peer| peer.member).collect();
    members.push(me);
    members.sort_unstable();
    members.dedup();
    members.truncate(expect);
    members
}

/// Decides from one round of introductions. `me` is `None` for a frontend, which founds nothing.
pub(crate) fn decide(
    me: Option<(MemberId, &str)>,
    ours: Option<ClusterId>,
    expect: usize,
    seen: &[Seen],
) -> Decision {
    for peer in seen {
        match (ours, peer.cluster) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                return Decision::Foreign { theirs, address: peer.address.clone() };
            }
            (None, Some(theirs)) => return Decision::Join(theirs),
            _ => {}
        }
    }
    let (Some((me, address)), None) = (me, ours) else { return Decision::Wait };
    let list = list(me, expect, seen);
    if list.len() < expect || list[0] != me {
        return Decision::Wait;
    }
    let mut founders = vec![(me, address.to_string())];
    for member in &list[1..] {
        let Some(peer) = seen.iter().find(|peer| peer.member == Some(*member)) else { return Decision::Wait };
        if peer.expect != expect {
            return Decision::Disagree { address: peer.address.clone(), expects: peer.expect };
        }
        if peer.sees != list {
            return Decision::Wait;
        }
        founders.push((*member, peer.address.clone()));
    }
    Decision::Found(founders)
}

/// A promise to take part in one birth and no other.
#[derive(Debug, Default)]
pub(crate) struct Promise(Option<(ClusterId, Instant)>);

impl Promise {
    /// Promises, unless another promise still holds.
    pub(crate) fn give(&mut self, cluster: ClusterId, now: Instant) -> bool {
        match self.0 {
            Some((other, until)) if other != cluster && now < until => false,
            _ => {
                self.0 = Some((cluster, now + PROMISE));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(member: u64, sees: &[u64]) -> Seen {
        Seen {
            address: format!("n{member}:1"),
            member: Some(MemberId(member)),
            cluster: None,
            expect: 3,
            sees: sees.iter().map(|m| MemberId(*m)).collect(),
        }
    }

    fn decide_as(me: u64, ours: Option<u128>, seen: &[Seen]) -> Decision {
        decide(Some((MemberId(me), "me:1")), ours.map(ClusterId), 3, seen)
    }

    #[test]
    fn a_cluster_is_founded_by_the_lowest_when_all_agree_on_one_list() {
        let founders = |members: &[u64]| {
            let address = |m: &u64| if *m == 1 { "me:1".to_string() } else { format!("n{m}:1") };
            Decision::Found(members.iter().map(|m| (MemberId(*m), address(m))).collect())
        };
        let table = [
            (1, vec![], Decision::Wait),
            (1, vec![backend(2, &[1, 2])], Decision::Wait),
            (1, vec![backend(2, &[1, 2, 3]), backend(3, &[1, 3])], Decision::Wait),
            (1, vec![backend(2, &[1, 2, 3]), backend(3, &[1, 2, 3])], founders(&[1, 2, 3])),
            // Not the lowest.
            (3, vec![backend(1, &[1, 2, 3]), backend(2, &[1, 2, 3])], Decision::Wait),
            // A fourth does not matter as long as the first three agree.
            (
                1,
                vec![backend(2, &[1, 2, 3]), backend(3, &[1, 2, 3]), backend(4, &[1, 2, 3])],
                founders(&[1, 2, 3]),
            ),
            (1, vec![backend(2, &[0, 1, 2]), backend(3, &[1, 2, 3])], Decision::Wait),
        ];
        for (me, seen, expected) in table {
            assert_eq!(decide_as(me, None, &seen), expected, "{me} {seen:?}");
        }
    }

    #[test]
    fn an_existing_cluster_is_joined_and_another_one_refused() {
        let formed = Seen { cluster: Some(ClusterId(7)), ..backend(9, &[]) };
        let all = [backend(2, &[1, 2, 3]), backend(3, &[1, 2, 3]), formed];
        assert_eq!(decide_as(1, None, &all), Decision::Join(ClusterId(7)));
        assert_eq!(decide(None, None, 3, &all), Decision::Join(ClusterId(7)));
        assert_eq!(decide_as(1, Some(7), &all), Decision::Wait);
        let foreign = Decision::Foreign { theirs: ClusterId(7), address: "n9:1".into() };
        assert_eq!(decide_as(1, Some(8), &all), foreign);
    }

    #[test]
    fn backends_that_expect_another_number_are_named() {
        let other = Seen { expect: 5, ..backend(3, &[1, 2, 3]) };
        let expected = Decision::Disagree { address: "n3:1".into(), expects: 5 };
        assert_eq!(decide_as(1, None, &[backend(2, &[1, 2, 3]), other]), expected);
    }

    #[test]
    fn a_frontend_founds_nothing() {
        assert_eq!(decide(None, None, 1, &[]), Decision::Wait);
        assert_eq!(
            decide(Some((MemberId(1), "")), None, 1, &[]),
            Decision::Found(vec![(MemberId(1), String::new())])
        );
    }

    #[test]
    fn a_promise_holds_for_one_birth_until_it_expires() {
        let now = Instant::now();
        let mut promise = Promise::default();
        assert!(promise.give(ClusterId(1), now));
        assert!(promise.give(ClusterId(1), now));
        assert!(!promise.give(ClusterId(2), now + PROMISE / 2));
        assert!(promise.give(ClusterId(2), now + PROMISE * 2));
    }
}

//! What members of version 0.1.0 say to one another, byte by byte: members of two versions are one cluster while it is
//! upgraded, so what is written may only change together with what is read (design, section 7).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use bytes::Bytes;
use openraft::{
    BasicNode, CommittedLeaderId, EntryPayload,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    network::{decode, encode},
    types::{Entry, LogId, Membership, Meta, Payloads, TypeConfig, Vote},
};

fn recorded<T: Serialize + DeserializeOwned + Debug>(value: &T, hex: &str) {
    let bytes = encode(value).unwrap();
    let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, hex, "{value:?}");
    assert_eq!(format!("{:?}", decode::<T>(&bytes).unwrap()), format!("{value:?}"));
}

fn id(term: u64, member: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, member), index)
}

fn members() -> openraft::Membership<u64, BasicNode> {
    let nodes: BTreeMap<u64, BasicNode> =
        [(7, "127.0.0.1:5270"), (300, "[::1]:5270")].map(|(id, at)| (id, BasicNode::new(at))).into();
    openraft::Membership::new(vec![BTreeSet::from([7])], nodes)
}

#[test]
fn entries_and_heartbeats_are_said_as_they_were() {
    let payloads = Payloads(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    let entry = |index, payload| Entry { log_id: id(3, 7, index), payload };
    let entries = vec![
        entry(9, EntryPayload::Blank),
        entry(10, EntryPayload::Normal(payloads)),
        entry(11, EntryPayload::Membership(members())),
    ];
    let call = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(3, 7),
        prev_log_id: Some(id(2, 300, 8)),
        entries,
        leader_commit: Some(id(2, 300, 8)),
    };
    recorded(
        &call,
        "0307010102ac0208030307090003070a0102036f6e650374776f03070b0201010702070e3132372e302e302e313a3532\
         3730ac020a5b3a3a315d3a353237300102ac0208",
    );
    let beat = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(3, 7),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    recorded(&beat, "030701000000");
    let answers = [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(id(3, 7, 10))),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(Vote::new(4, 300)),
    ];
    for (answer, hex) in answers.iter().zip(["00", "010103070a", "02", "0304ac0200"]) {
        recorded::<AppendEntriesResponse<u64>>(answer, hex);
    }
}

#[test]
fn votes_and_snapshots_are_said_as_they_were() {
    recorded(
        &VoteRequest::<u64> { vote: Vote::new(4, 300), last_log_id: Some(id(3, 7, 11)) },
        "04ac02000103070b",
    );
    recorded(
        &VoteResponse::<u64> { vote: Vote::new(4, 300), vote_granted: true, last_log_id: Some(id(3, 7, 11)) },
        "04ac0200010103070b",
    );
    let meta = Meta {
        last_log_id: Some(id(3, 7, 11)),
        last_membership: Membership::new(Some(id(3, 7, 11)), members()),
        snapshot_id: "11".into(),
    };
    recorded(
        &(Vote::new_committed(3, 7), meta),
        "0307010103070b0103070b01010702070e3132372e302e302e313a35323730ac020a5b3a3a315d3a35323730023131",
    );
    recorded(&SnapshotResponse::<u64> { vote: Vote::new_committed(3, 7) }, "030701");
}

//! Turns what the cluster knows into the messages of the admin service.

use std::collections::HashMap;

use cluster::{ClusterStatus, MemberId, NodeId, NodeRow, NodeState, Roles, Row, TokenRow, TokenState};
use proto::admin;

use super::peers::Connections;

/// The state of the cluster; `sessions` counts the sessions of each node.
pub fn state(
    status: &ClusterStatus,
    sessions: &HashMap<NodeId, u64>,
    hosts: &[String],
) -> admin::GetClusterResponse {
    let by_member: HashMap<MemberId, NodeId> =
        status.nodes.iter().filter_map(|n| Some((n.member?, n.node))).collect();
    let id = |member: &MemberId| by_member.get(member).map_or(0, |n| n.0);
    let groups = status.groups.iter().map(|group| admin::Group {
        name: group.name.clone(),
        leader: group.leader.as_ref().map_or(0, id),
        term: group.term,
        last_log: group.last_log,
        applied: group.applied,
        voters: group.voters.iter().map(id).collect(),
    });
    let leader = status.leader.map_or(0, |n| n.0);
    admin::GetClusterResponse {
        cluster_id: status.cluster.map(|c| c.to_string()).unwrap_or_default(),
        answered_by: status.node.map_or(0, |n| n.0),
        serving: status.serving,
        index: status.index,
        groups: groups.collect(),
        nodes: status.nodes.iter().map(|n| node(n, leader, sessions)).collect(),
        hosts: hosts.to_vec(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader,
    }
}

fn node(row: &NodeRow, leader: u64, sessions: &HashMap<NodeId, u64>) -> admin::Node {
    admin::Node {
        id: row.node.0,
        name: row.name.clone(),
        incarnation: row.incarnation.0,
        roles: names(row.roles),
        address: row.address.clone(),
        state: match row.state {
            NodeState::Up => "up",
            NodeState::Draining => "draining",
            NodeState::Gone => "gone",
        }
        .to_owned(),
        leader: row.node.0 == leader,
        sessions: sessions.get(&row.node).copied().unwrap_or(0),
    }
}

fn names(roles: Roles) -> Vec<String> {
    let role = |has: bool, name: &str| has.then(|| name.to_owned());
    [role(roles.frontend, "frontend"), role(roles.backend, "backend")].into_iter().flatten().collect()
}

/// One join token; `now` is in seconds since 1970.
pub fn token(row: &TokenRow, nodes: &[NodeRow], now: u64) -> admin::JoinToken {
    let node = match row.state {
        TokenState::Spent { key, .. } => nodes.iter().find(|node| node.key == key),
        TokenState::Open | TokenState::Revoked { .. } => None,
    };
    let state = match row.state {
        TokenState::Open if now > row.expires => "expired",
        TokenState::Open => "open",
        TokenState::Spent { .. } => "used",
        TokenState::Revoked { .. } => "revoked",
    };
    admin::JoinToken {
        id: format!("{:016x}", row.id),
        roles: names(row.roles),
        made: row.made,
        expires: row.expires,
        state: state.to_owned(),
        node: node
            .map(|node| if node.name.is_empty() { node.node.to_string() } else { node.name.clone() })
            .unwrap_or_default(),
    }
}

/// One session of the route table, with what its node says of it.
pub fn session(row: &Row, nodes: &[NodeRow], found: &mut Connections) -> admin::Session {
    let name = nodes.iter().find(|n| n.node == row.node).map(|n| n.name.clone());
    admin::Session {
        jid: row.jid.to_string(),
        node: row.node.0,
        node_name: name.unwrap_or_default(),
        sid: row.sid.to_string(),
        priority: row.priority.map(i32::from),
        detached: row.detached,
        connection: found.known.remove(&row.sid),
        unanswered: found.silent.get(&row.node).cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{GroupStatus, Incarnation, Roles};

    use super::*;

    fn row(node: u64, member: Option<u64>) -> NodeRow {
        NodeRow {
            node: NodeId(node),
            incarnation: Incarnation(2),
            name: format!("node{node}"),
            address: "127.0.0.1:1".into(),
            roles: Roles { frontend: true, backend: member.is_some() },
            state: NodeState::Up,
            member: member.map(MemberId),
            key: 0,
            start: 0,
        }
    }

    #[test]
    fn members_of_a_group_are_shown_as_nodes() {
        let status = ClusterStatus {
            nodes: vec![row(4, Some(99)), row(7, None)],
            leader: Some(NodeId(4)),
            groups: vec![GroupStatus {
                leader: Some(MemberId(99)),
                voters: vec![MemberId(99), MemberId(1)],
                ..GroupStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let state = state(&status, &HashMap::from([(NodeId(7), 3)]), &[]);
        assert_eq!((state.groups[0].leader, state.groups[0].voters.clone()), (4, vec![4, 0]));
        assert!(state.nodes[0].leader && !state.nodes[1].leader);
        assert_eq!((state.nodes[1].sessions, state.nodes[1].roles.clone()), (3, vec!["frontend".to_owned()]));
    }
}

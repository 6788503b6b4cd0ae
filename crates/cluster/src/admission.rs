//! What an operator decides about who is in: join tokens made and taken back, and nodes removed for good.

use std::time::Duration;

use tokio::time::{interval, timeout};

use crate::{
    cluster::Cluster,
    config::CERTIFICATE_LIFETIME_MAX_S,
    error::{ClusterError, Unavailable},
    identity::{credentials::unix_now, joining, kept::fingerprint, token::Token},
    role::{MemberId, NodeId, Roles},
    routes::{Command, NodeRow, NodeState, Outcome},
    trust::{TOKENS_MAX, TokenRow, TokenState},
};

/// How long the groups may take to let go of a member before the operator gets an answer.
const LEAVE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

/// A token that was made; its text is shown once and kept nowhere.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What the operator carries to the new node.
    pub token: Token,
    /// Addresses at which it can be used.
    pub addresses: Vec<String>,
}

/// Why nothing was done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The node or the token that was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as things are.
    #[error("{0}")]
    Refused(String),
    /// It cannot be done now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A part of this node has failed.
    #[error(transparent)]
    Failed(#[from] ClusterError),
}

fn refused<T>(text: impl Into<String>) -> Result<T, AdmissionError> {
    Err(AdmissionError::Refused(text.into()))
}

impl Cluster {
    /// Makes a one-time join token for a node of at most these roles.
    pub async fn create_token(&self, roles: Roles, ttl: Duration) -> Result<NewToken, AdmissionError> {
        self.is_for_backends()?;
        if self.shared().kept().is_none() {
            return refused(
                "the certificates of this cluster are not made by itself (`cluster.cert` is given, or links are plain), so there are no join tokens",
            );
        }
        let Some(authority) = joining::authority(self.shared()).await? else {
            let text =
                "this backend has not got the key of the cluster's authority yet: try again in a moment";
            return Err(Unavailable(text.into()).into());
        };
        let made = unix_now();
        let token = Token::draw(fingerprint(authority.certificate()), roles, made + ttl.as_secs());
        let row = TokenRow {
            id: token.id,
            hash: token.hash(),
            roles,
            made,
            expires: token.expires,
            state: TokenState::Open,
        };
        match self.applied(&Command::AddToken { token: row }).await?.1 {
            Outcome::Done => {}
            Outcome::TooMany => {
                return refused(format!(
                    "there are {TOKENS_MAX} join tokens already: revoke some, with `rookery cluster token --revoke`"
                ));
            }
            _ => return refused("a node of the cluster is too old to know join tokens"),
        }
        let id = format!("{:016x}", token.id);
        tracing::info!(target: "audit", token = id, %roles, expires = token.expires, "made a join token");
        let backends = self.routes().nodes().into_iter();
        let backends = backends.filter(|row| row.roles.backend && row.state == NodeState::Up);
        Ok(NewToken { token, addresses: backends.map(|row| row.address).collect() })
    }

    /// Every join token that the table still shows.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, AdmissionError> {
        self.is_for_backends()?;
        self.barrier().await?;
        Ok(self.routes().routes.read().trust().tokens().cloned().collect())
    }

    /// Takes a join token back.
    pub async fn revoke_token(&self, id: u64) -> Result<(), AdmissionError> {
        self.is_for_backends()?;
        self.barrier().await?;
        let state = self.routes().routes.read().trust().token(id).map(|row| row.state.clone());
        match state {
            None => return Err(AdmissionError::NotFound(format!("there is no join token `{id:016x}`"))),
            Some(TokenState::Spent { .. }) => {
                return refused(format!(
                    "a node came in by the join token `{id:016x}` already: `rookery cluster remove` takes that node out"
                ));
            }
            Some(TokenState::Open | TokenState::Revoked { .. }) => {}
        }
        match self.applied(&Command::RevokeToken { id, now: unix_now() }).await?.1 {
            Outcome::Done => {
                tracing::info!(target: "audit", token = format!("{id:016x}"), "revoked a join token");
                Ok(())
            }
            _ => refused(format!("a node came in by the join token `{id:016x}` just now")),
        }
    }

    /// Removes a node for good, whether it lives or not: from the table, and from the Raft groups. Returns what it
    /// was, and whether the groups have let go of it yet; if not, they do so by themselves.
    pub async fn remove_node(&self, named: &str) -> Result<(NodeRow, bool), AdmissionError> {
        self.is_for_backends()?;
        self.barrier().await?;
        let rows = self.routes().nodes();
        let row = find(&rows, named)?.clone();
        if row.node == self.me().0 {
            return refused(format!(
                "`{}` is the node that you ask: let another one remove it, with `--admin URL`",
                row.name
            ));
        }
        if let Some(member) = row.member {
            let groups = self.status().groups;
            for group in &groups {
                can_spare(&group.name, &group.voters, member, &rows).map_err(AdmissionError::Refused)?;
            }
            if row.state != NodeState::Gone && groups.iter().any(|group| group.voters.contains(&member)) {
                return self.let_leave(row).await;
            }
        }
        let now = unix_now();
        // Whatever lifetime the backend had set that made its certificate.
        let until = now + CERTIFICATE_LIFETIME_MAX_S;
        match self.applied(&Command::Remove { node: row.node, until, now }).await?.1 {
            Outcome::Done => {}
            Outcome::Stale => {
                return Err(AdmissionError::NotFound(format!("there is no node `{named}` any more")));
            }
            _ => return refused("a node of the cluster is too old to remove others"),
        }
        tracing::warn!(target: "audit", node = %row.node, name = row.name, "removed a node from the cluster");
        let left = match row.member {
            Some(member) => timeout(LEAVE, self.without(member)).await.is_ok(),
            None => true,
        };
        Ok((row, left))
    }

    /// Has a voter that lives taken out: it takes part in agreeing on the voters without it, and is removed then.
    async fn let_leave(&self, row: NodeRow) -> Result<(NodeRow, bool), AdmissionError> {
        match self.applied(&Command::NodeLeave { node: row.node }).await?.1 {
            Outcome::Done => {}
            Outcome::Stale => {
                return Err(AdmissionError::NotFound(format!("there is no node `{}` any more", row.name)));
            }
            _ => return refused("a node of the cluster is too old to remove others"),
        }
        tracing::warn!(target: "audit", node = %row.node, name = row.name, "a node is to leave the cluster");
        let left = async {
            let mut look = interval(LOOK);
            while self.routes().node(row.node).is_some() {
                look.tick().await;
            }
        };
        if timeout(LEAVE, left).await.is_err() {
            return refused(format!(
                "the other backends have not agreed to go on without `{}` yet: they try on, and it is removed as soon as they have; `rookery cluster status` shows who decides",
                row.name
            ));
        }
        tracing::warn!(target: "audit", node = %row.node, name = row.name, "removed a node from the cluster");
        Ok((row, true))
    }

    /// Waits until no group has this member.
    async fn without(&self, member: MemberId) {
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            let has = |group: &crate::GroupStatus| {
                group.voters.contains(&member) || group.learners.contains(&member)
            };
            if !self.status().groups.iter().any(has) {
                return;
            }
        }
    }

    fn is_for_backends(&self) -> Result<(), AdmissionError> {
        if self.roles().backend {
            return Ok(());
        }
        refused(
            "this node is only a frontend, and who is in the cluster is the backends' business: ask one of them, with `--admin URL`",
        )
    }
}

/// A node by its id or by its name, if only one has it.
fn find<'a>(rows: &'a [NodeRow], named: &str) -> Result<&'a NodeRow, AdmissionError> {
    let known =
        || rows.iter().map(|row| format!("{} ({})", row.name, row.node)).collect::<Vec<_>>().join(", ");
    if let Some(row) = named.parse().ok().and_then(|id| rows.iter().find(|row| row.node == NodeId(id))) {
        return Ok(row);
    }
    let mut of_name = rows.iter().filter(|row| row.name == named);
    match (of_name.next(), of_name.next()) {
        (Some(row), None) => Ok(row),
        (Some(_), Some(_)) => {
            refused(format!("several nodes are called `{named}`: give the id of one of {}", known()))
        }
        (None, _) => {
            Err(AdmissionError::NotFound(format!("there is no node `{named}`; there are {}", known())))
        }
    }
}

/// Whether a group can go on without a member. One that is gone has no part in the change of the voters, so the others
/// must be a majority of the present ones; one that lives has, so it is enough that the next ones can agree.
fn can_spare(group: &str, voters: &[MemberId], member: MemberId, rows: &[NodeRow]) -> Result<(), String> {
    if !voters.contains(&member) {
        return Ok(());
    }
    let up =
        |member: MemberId| rows.iter().any(|row| row.member == Some(member) && row.state != NodeState::Gone);
    let rest: Vec<MemberId> = voters.iter().copied().filter(|voter| *voter != member).collect();
    let living = rest.iter().filter(|voter| up(**voter)).count();
    let heirs = rows.iter().filter_map(|row| row.member).filter(|m| !voters.contains(m) && up(*m)).count();
    let now = living + usize::from(up(member));
    // Somebody else takes its place, where there is one.
    let (next, of) = (living + heirs.min(1), rest.len() + heirs.min(1));
    if now * 2 > voters.len() && next * 2 > of {
        return Ok(());
    }
    Err(format!(
        "the group `{group}` could decide nothing more: of the {} backends that decide now, {living} would be left alive; start others first, or add new ones and wait until they decide",
        voters.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Incarnation;

    fn row(node: u64, name: &str, state: NodeState) -> NodeRow {
        NodeRow {
            node: NodeId(node),
            incarnation: Incarnation(1),
            name: name.into(),
            address: String::new(),
            roles: Roles::default(),
            state,
            member: Some(MemberId(node * 100)),
            key: 0,
            start: 0,
        }
    }

    #[test]
    fn a_node_is_named_by_its_id_or_by_a_name_that_only_it_has() {
        let rows = [row(1, "a", NodeState::Up), row(2, "b", NodeState::Up), row(3, "b", NodeState::Gone)];
        let found = |named| find(&rows, named).map(|row| row.node.0).map_err(|e| e.to_string());
        assert_eq!((found("a"), found("2"), found("3")), (Ok(1), Ok(2), Ok(3)));
        assert!(found("b").unwrap_err().contains("several nodes are called `b`"));
        assert!(found("9").unwrap_err().contains("there are a (1), b (2), b (3)"));
    }

    #[test]
    fn a_group_spares_a_member_only_if_the_others_can_agree() {
        use NodeState::{Gone, Up};
        // Up or gone, for nodes 1 to n, of whom the first so many are voters; who is removed; whether that is right.
        let table = [
            (vec![Up], 1, 1, false),
            // The other one learns what this one decides, and takes its place.
            (vec![Up, Up], 1, 1, true),
            (vec![Up, Gone], 1, 1, false),
            // One that lives helps to agree on the other one alone.
            (vec![Up, Up], 2, 1, true),
            (vec![Up, Gone], 2, 2, false),
            (vec![Up, Gone], 2, 1, false),
            (vec![Up, Up, Up], 3, 1, true),
            (vec![Up, Up, Gone], 3, 3, true),
            // Of the two that would be left, one is gone; unless a fourth is there.
            (vec![Up, Up, Gone], 3, 2, false),
            (vec![Up, Up, Gone, Up], 3, 2, true),
            (vec![Up, Up, Up, Gone, Gone], 5, 4, true),
            (vec![Up, Up, Up, Gone, Gone], 5, 1, false),
            // Who does not vote can always go.
            (vec![Up, Gone], 2, 9, true),
        ];
        for (states, voters, removed, expected) in table {
            let rows: Vec<NodeRow> = states.iter().zip(1..).map(|(state, n)| row(n, "n", *state)).collect();
            let voters: Vec<MemberId> = rows.iter().filter_map(|row| row.member).take(voters).collect();
            let spared = can_spare("routes", &voters, MemberId(removed * 100), &rows);
            assert_eq!(spared.is_ok(), expected, "{states:?} without {removed}: {spared:?}");
        }
    }
}

//! Rows 132 to 139: who knocks at the port for nodes, in whose name, and with which token.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::stream;
use prost::Message as _;
use proto::{
    admin::{GetClusterRequest, GetClusterResponse, admin_client::AdminClient},
    join::{AuthorityRequest, join_client::JoinClient},
    membership::{
        BarrierRequest, FoundRequest, HelloRequest, Peer, RenewRequest, SubmitRequest,
        membership_client::MembershipClient,
    },
    raft::{Message, ProposeRequest, ReadIndexRequest, SnapshotPart, raft_client::RaftClient},
    relay::{Batch, Kind, Open, Parcel, Purpose, Sending, Target, relay_client::RelayClient, sending},
    sessions::{ConnectionsRequest, sessions_client::SessionsClient},
    store::{GetRequest, store_client::StoreClient},
};
use tests::{
    client::Client,
    joining::{done, form, identity, link, prepare, refused, ticket},
    metrics,
    nodes::{Nodes, free_address},
    people::{Person, ping},
};
use tokio::time::{Instant, interval};
use tonic::{Code, Status, transport::Channel};

/// A bound for what the cluster does by itself.
const SOON: Duration = Duration::from_secs(60);

/// A backend, a frontend, a third node that has not joined; and a bystander with a session at the first.
pub struct Cluster {
    pub nodes: Nodes,
    metrics: SocketAddr,
    witness: Client,
    before: std::collections::BTreeMap<String, f64>,
    secrets: Vec<String>,
}

impl Cluster {
    async fn start(more: &str) -> Result<Cluster> {
        let metrics = free_address();
        let mut nodes = prepare(&[1], &|node, config| {
            let listen = if node.name == "node1" {
                format!("\n[metrics]\nlisten = \"{metrics}\"\n")
            } else {
                String::new()
            };
            Ok(config.replace("plain = false", &format!("plain = false\n{more}")) + &listen)
        })?;
        form(&mut nodes, 2).await?;
        let witness = Person::with_account(&nodes, "witness").await?;
        let witness = witness.come_online(nodes.door(0), "window").await?;
        let before = metrics::page(metrics).await?;
        Ok(Cluster { nodes, metrics, witness, before, secrets: Vec::new() })
    }

    pub fn identity(&self, at: usize) -> PathBuf {
        identity(&self.nodes.nodes[at])
    }

    /// A link to the backend with the certificate of a node.
    pub async fn link_of(&self, at: usize) -> Result<Channel> {
        link(self.nodes.nodes[0].cluster, &self.identity(0), Some(&self.identity(at))).await
    }

    /// What the admin service says of the cluster.
    pub async fn state(&self) -> Result<GetClusterResponse> {
        self.nodes.status(0).await
    }

    pub fn cluster_id(state: &GetClusterResponse) -> Result<prost::bytes::Bytes> {
        let id = u128::from_str_radix(&state.cluster_id, 16)?;
        Ok(prost::bytes::Bytes::copy_from_slice(&id.to_be_bytes()))
    }

    pub async fn grown(&self, reason: &str, least: f64) -> Result<()> {
        let line = match reason {
            "fenced" => "rookery_relay_fenced_total".to_owned(),
            reason => format!("rookery_cluster_refusals_total{{reason=\"{reason}\"}}"),
        };
        let end = Instant::now() + Duration::from_secs(10);
        let mut look = interval(Duration::from_millis(50));
        loop {
            look.tick().await;
            let now = metrics::page(self.metrics).await?;
            let value = |page: &std::collections::BTreeMap<String, f64>| page.get(&line).copied();
            let grown =
                value(&now).with_context(|| format!("no `{line}`"))? - value(&self.before).unwrap_or(0.0);
            if grown >= least {
                return Ok(());
            }
            ensure!(Instant::now() < end, "`{line}` grew by {grown}, not by {least}");
        }
    }

    /// What must hold after every row.
    async fn holds(&mut self) -> Result<()> {
        self.witness.send(&ping("localhost", "still-there")).await?;
        let mut heard = Vec::new();
        loop {
            let node = self.witness.next_by(Instant::now() + Duration::from_secs(20)).await?;
            if node.attr("id") == Some("still-there") {
                break;
            }
            heard.push(node);
        }
        ensure!(heard.is_empty(), "the bystander heard {heard:?}");
        let log = fs::read_to_string(self.nodes.nodes[0].folder.join("log"))?;
        ensure!(!log.contains("panicked"), "{log}");
        for secret in &self.secrets {
            ensure!(!log.contains(secret), "a join token is in the log");
        }
        Ok(())
    }
}

/// Does the deeds of a row; logs and data stay when they fail.
pub async fn row(more: &str, deeds: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(more).await?;
    let judged = match deeds(&mut cluster).await {
        Ok(()) => cluster.holds().await.context("what must hold after every row"),
        wrong => wrong,
    };
    if judged.is_err() {
        cluster.nodes.keep();
    }
    judged
}

fn denied<T>(what: &str, result: Result<T, Status>) -> Result<String> {
    let status = result.err().with_context(|| format!("{what} was let in"))?;
    ensure!(status.code() == Code::PermissionDenied, "{what}: {status:?}");
    Ok(status.message().to_owned())
}

fn hello(peer: Peer) -> HelloRequest {
    HelloRequest { peer: Some(peer) }
}

/// Input: an introduction by a node that says it belongs to another cluster, and one by a node that was removed and
/// has not noticed.
///
/// Outcome: `PERMISSION_DENIED` with a text that says why; the removed node's connections end, and none of its calls is
/// answered any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_132_a_node_of_another_cluster_and_a_removed_one_are_refused() -> Result<()> {
    row("", async |cluster| {
        let mut frontend = MembershipClient::new(cluster.link_of(1).await?);
        let theirs = Peer { cluster: vec![7; 16].into(), frontend: true, ..Peer::default() };
        let text = denied("a node of another cluster", frontend.hello(hello(theirs)).await)?;
        ensure!(text.contains("belongs to cluster `") && text.contains(&"07".repeat(16)), "{text}");
        let renew = RenewRequest {
            cluster: vec![7; 16].into(),
            node: 1,
            incarnation: 1,
            passed_on: false,
            index: None,
        };
        denied("a call for another cluster", frontend.renew(renew).await)?;
        cluster.grown("cluster", 2.0).await?;

        // Paused, it does not hear of it.
        cluster.nodes.pause(1).await?;
        done(cluster.nodes.ask(0, &["cluster", "remove", "node2"]).await?)?;
        let stale = Peer { frontend: true, ..Peer::default() };
        // The old connection was cut; a call on it fails, or finds a new one and is refused there.
        ensure!(frontend.hello(hello(stale.clone())).await.is_err(), "a removed node was heard");
        let mut again = MembershipClient::new(cluster.link_of(1).await?);
        let text = denied("a removed node", again.hello(hello(stale)).await)?;
        ensure!(text == "this node was removed from the cluster", "{text}");
        let cluster_id = Cluster::cluster_id(&cluster.state().await?)?;
        let barrier = BarrierRequest { cluster: cluster_id, timeout_ms: 1000 };
        denied("a removed node's call", again.barrier(barrier).await)?;
        cluster.grown("removed", 2.0).await
    })
    .await
}

/// Input: links without TLS, without a certificate, with one of another authority; and with a right one in the name of
/// another node: its lease, its part in Raft, its roles, its stanzas.
///
/// Outcome: the handshake fails, or `PERMISSION_DENIED`: a certificate speaks for its own node alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_133_a_certificate_speaks_for_its_own_node_alone() -> Result<()> {
    row("", async |cluster| {
        let address = cluster.nodes.nodes[0].cluster;
        let frontend = Peer { frontend: true, ..Peer::default() };
        if let Ok(channel) = Channel::from_shared(format!("http://{address}"))?.connect().await {
            let said = MembershipClient::new(channel).hello(hello(frontend.clone())).await;
            ensure!(said.is_err(), "a plain link was let in");
        }
        let nobody = link(address, &cluster.identity(0), None).await?;
        let text =
            denied("nobody", MembershipClient::new(nobody.clone()).hello(hello(frontend.clone())).await)?;
        ensure!(text.contains("only a node's certificate"), "{text}");
        denied("nobody, at the store", StoreClient::new(nobody.clone()).get(GetRequest::default()).await)?;
        let sessions = ConnectionsRequest::default();
        denied("nobody, about sessions", SessionsClient::new(nobody).connections(sessions).await)?;

        // A certificate that names the right node, of an authority that calls itself so.
        let forged = tempfile::tempdir()?;
        done(forge(cluster, forged.path()).await?)?;
        let knocked =
            link(address, &cluster.identity(0), Some(&forged.path().join("data/cluster/identity"))).await;
        if let Ok(channel) = knocked {
            let said = MembershipClient::new(channel).hello(hello(frontend.clone())).await;
            ensure!(said.is_err(), "a certificate of another authority was let in");
        }
        cluster.grown("certificate", 3.0).await?;

        let state = cluster.state().await?;
        let cluster_id = Cluster::cluster_id(&state)?;
        let node = |name: &str| state.nodes.iter().find(|n| n.name == name).context("it is there").cloned();
        let (first, second) = (node("node1")?, node("node2")?);
        let channel = cluster.link_of(1).await?;
        let mut membership = MembershipClient::new(channel.clone());
        let renew = |node: &proto::admin::Node| RenewRequest {
            cluster: cluster_id.clone(),
            node: node.id,
            incarnation: node.incarnation,
            passed_on: false,
            index: None,
        };
        membership.renew(renew(&second)).await.context("its own lease")?;
        let text = denied("the lease of another", membership.renew(renew(&first)).await)?;
        let expected =
            format!("this certificate is of node {}, and does not speak for node {}", second.id, first.id);
        ensure!(text == expected, "{text}");
        denied(
            "roles that were not granted",
            membership.hello(hello(Peer { backend: true, ..Peer::default() })).await,
        )?;
        let born = fs::read_to_string(cluster.nodes.nodes[0].folder.join("data/cluster/node"))?;
        let member = born.lines().find_map(|line| line.strip_prefix("member ")).context("no member")?;
        let member = u64::from_str_radix(member, 16)?;
        denied("the part of another", membership.hello(hello(Peer { member, ..frontend })).await)?;
        let open = Open {
            version: 1,
            node: first.id,
            incarnation: first.incarnation,
            to_node: first.id,
            to_incarnation: first.incarnation,
            ..Open::default()
        };
        denied("stanzas of another", carry(channel, vec![open_first(open)]).await)?;
        cluster.grown("identity", 3.0).await?;
        cluster.grown("role", 1.0).await
    })
    .await
}

/// Makes an authority of its own for a node of the same name.
async fn forge(cluster: &Cluster, folder: &std::path::Path) -> Result<(bool, String)> {
    let data = format!("node.data_dir={:?}", folder.join("data"));
    cluster.nodes.offline(2, &["cluster", "init", "--set", &data]).await
}

fn open_first(open: Open) -> Sending {
    Sending { what: Some(sending::What::Open(open)) }
}

async fn carry(channel: Channel, sendings: Vec<Sending>) -> Result<(), Status> {
    let answers = RelayClient::new(channel).carry(stream::iter(sendings)).await?;
    let mut answers = answers.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

/// Input: every call of Raft, the founding of a cluster, the key of the authority, and the admin service, over a link
/// with a frontend's certificate.
///
/// Outcome: `PERMISSION_DENIED` for each; what a frontend needs is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_134_a_frontend_speaks_neither_raft_nor_admin() -> Result<()> {
    row("", async |cluster| {
        let channel = cluster.link_of(1).await?;
        let mut raft = RaftClient::new(channel.clone());
        denied("append", raft.append(Message::default()).await)?;
        denied("vote", raft.vote(Message::default()).await)?;
        denied("snapshot", raft.snapshot(stream::iter([SnapshotPart::default()])).await)?;
        denied("propose", raft.propose(ProposeRequest::default()).await)?;
        denied("read index", raft.read_index(ReadIndexRequest::default()).await)?;
        let mut membership = MembershipClient::new(channel.clone());
        let text = denied("found", membership.found(FoundRequest::default()).await)?;
        ensure!(text == "only a backend's certificate may do this", "{text}");
        denied("the authority", JoinClient::new(channel.clone()).authority(AuthorityRequest {}).await)?;
        denied("admin", AdminClient::new(channel).get_cluster(GetClusterRequest {}).await)?;
        cluster.grown("role", 8.0).await?;
        let cluster_id = Cluster::cluster_id(&cluster.state().await?)?;
        let barrier = BarrierRequest { cluster: cluster_id.clone(), timeout_ms: 5000 };
        membership.barrier(barrier).await.context("what it may do")?;
        let renew =
            RenewRequest { cluster: cluster_id, node: 1, incarnation: 1, passed_on: true, index: None };
        denied("the lease of another, as if passed on", membership.renew(renew).await)?;
        cluster.grown("role", 1.0).await?;
        Ok(())
    })
    .await
}

/// Input: a message for the bystander from a node to an incarnation that is over, and from a node that is gone for the
/// others.
///
/// Outcome: `FAILED_PRECONDITION`, `fenced`; nothing is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_135_what_is_from_or_to_an_old_incarnation_is_not_delivered() -> Result<()> {
    row("", async |cluster| {
        let state = cluster.state().await?;
        let node = |name: &str| state.nodes.iter().find(|n| n.name == name).context("it is there").cloned();
        let (first, second) = (node("node1")?, node("node2")?);
        let to = cluster.witness.jid.clone().context("not bound")?;
        let parcel = Parcel {
            purpose: Purpose::Arrive.into(),
            hops: 1,
            kind: Kind::Message.into(),
            to,
            from: "ghost@localhost/x".into(),
            id: Some("late".into()),
            r#type: Some("chat".into()),
            body: "<body>late</body>".as_bytes().into(),
            targets: vec![Target::default()],
            ..Parcel::default()
        };
        let batch = Batch { first: 1, parcels: vec![parcel.encode_to_vec().into()], oldest: 1 };
        let sendings = |incarnation, to_incarnation| {
            let open = Open {
                version: 1,
                node: second.id,
                incarnation,
                to_node: first.id,
                to_incarnation,
                oldest: 1,
                ..Open::default()
            };
            vec![open_first(open), Sending { what: Some(sending::What::Batch(batch.clone())) }]
        };
        let channel = cluster.link_of(1).await?;
        let fenced = |what: &str, result: Result<(), Status>| -> Result<()> {
            let status = result.err().with_context(|| format!("{what} was taken"))?;
            ensure!(status.code() == Code::FailedPrecondition, "{what}: {status:?}");
            ensure!(status.message().starts_with("fenced: "), "{what}: {status:?}");
            Ok(())
        };
        let old = carry(channel.clone(), sendings(second.incarnation, first.incarnation - 1)).await;
        fenced("to an old incarnation", old)?;
        cluster.nodes.pause(1).await?;
        let gone =
            |state: &GetClusterResponse| state.nodes.iter().any(|n| n.name == "node2" && n.state == "gone");
        cluster.nodes.until(0, "the frontend is gone", SOON, gone).await?;
        fenced(
            "from one that is gone",
            carry(channel, sendings(second.incarnation, first.incarnation)).await,
        )?;
        cluster.grown("fenced", 2.0).await
    })
    .await
}

/// Input: join tokens that were used, have expired, are for another role, were revoked, and that no backend knows.
///
/// Outcome: each is refused with a text that says what to do; refusals are in the log under `audit` and in a metric,
/// without the token. A right one lets the same node in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_136_a_join_token_is_good_once_in_time_and_for_its_role() -> Result<()> {
    row("", async |cluster| {
        let nodes = &cluster.nodes;
        let join = async |ticket: &str| -> Result<String> {
            refused(nodes.offline(2, &["cluster", "join", ticket]).await?)
        };
        let used = ticket(nodes, 0, &["--role", "both"]).await?;
        let spare = tempfile::tempdir()?;
        let data = format!("node.data_dir={:?}", spare.path().join("data"));
        done(nodes.offline(2, &["cluster", "join", &used, "--set", &data]).await?)?;
        let said = join(&used).await?;
        ensure!(said.contains("was used by another node"), "{said}");

        let short = ticket(nodes, 0, &["--ttl", "1s"]).await?;
        let end = Instant::now() + SOON;
        let mut look = interval(Duration::from_millis(200));
        while !done(nodes.ask(0, &["cluster", "token", "--list"]).await?)?.contains("expired") {
            look.tick().await;
            ensure!(Instant::now() < end, "the token does not expire");
        }
        let said = join(&short).await?;
        ensure!(said.contains("has expired"), "{said}");

        // The joiner sees by itself what its token is for; one that lies about it is refused by the backend.
        let narrow = ticket(nodes, 0, &["--role", "frontend"]).await?;
        let said = join(&narrow).await?;
        ensure!(
            said.contains("is for the roles `frontend`, and `node.roles` says `frontend, backend`"),
            "{said}"
        );
        let said = join(&widened(&narrow)?).await?;
        ensure!(said.contains("is for another role than `node.roles`"), "{said}");

        let revoked = ticket(nodes, 0, &[]).await?;
        let listed = done(nodes.ask(0, &["cluster", "token", "--list", "--format", "json"]).await?)?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let open = |token: &&serde_json::Value| {
            token["state"] == "open" && token["roles"].as_array().is_some_and(|roles| roles.len() == 2)
        };
        let id = listed.as_array().into_iter().flatten().find(open).context("no open token")?["id"].clone();
        done(nodes.ask(0, &["cluster", "token", "--revoke", id.as_str().context("no id")?]).await?)?;
        let said = join(&revoked).await?;
        ensure!(said.contains("was revoked"), "{said}");

        let said = join(&guessed(&narrow)?).await?;
        ensure!(said.contains("knows no such join token"), "{said}");
        for reason in ["token-spent", "token-expired", "token-role", "token-revoked", "token-unknown"] {
            cluster.grown(reason, 1.0).await?;
            cluster.nodes.until_logged(0, "audit: refused: ", SOON).await?;
            let log = cluster.nodes.until_logged(0, &format!("reason=\"{reason}\""), SOON).await?;
            ensure!(log.contains(" WARN audit"), "{log}");
        }
        for token in [&used, &short, &narrow, &revoked] {
            let token = token.split('@').next().unwrap_or(token);
            cluster.secrets.push(token.to_owned());
        }
        let right = ticket(&cluster.nodes, 0, &[]).await?;
        done(cluster.nodes.offline(2, &["cluster", "join", &right]).await?)?;
        cluster.nodes.start_again(2).await
    })
    .await
}

/// Input: a copy of the data directory of a node that lives, started as another node.
///
/// Outcome: each ends the incarnation of the other before it serves, once, and then the first one ends with a text that
/// says why. The table never has two of them, and the copy goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_139_a_copy_of_a_node_takes_its_place() -> Result<()> {
    row("", async |cluster| {
        let (first, copy) = (cluster.nodes.nodes[1].folder.clone(), cluster.nodes.nodes[2].folder.clone());
        let copied = tokio::process::Command::new("cp")
            .arg("-r")
            .arg(first.join("data"))
            .arg(copy.join("data"))
            .status()
            .await?;
        ensure!(copied.success(), "the data directory was not copied");
        let config = fs::read_to_string(copy.join("rookery.toml"))?;
        let config = config.replace("roles = [\"frontend\", \"backend\"]", "roles = [\"frontend\"]");
        fs::write(copy.join("rookery.toml"), config)?;
        let state = cluster.state().await?;
        let before = state.nodes.iter().find(|n| n.name == "node2").context("it is there")?.clone();
        cluster.nodes.spawn(2)?;
        let log = cluster.nodes.until_ended(1, SOON).await?;
        ensure!(log.contains("another process came up as this node"), "{log}");
        cluster.nodes.formed().await?;
        let state = cluster.state().await?;
        let now: Vec<_> = state.nodes.iter().filter(|n| n.id == before.id).collect();
        ensure!(state.nodes.len() == 2 && now.len() == 1, "{state:?}");
        ensure!(now[0].name == "node3" && now[0].incarnation > before.incarnation, "{now:?}");
        // It serves, and goes on to.
        let someone = Person::with_account(&cluster.nodes, "someone").await?;
        someone.come_online(cluster.nodes.door(2), "here").await?;
        let after = cluster.state().await?;
        ensure!(
            after.nodes.iter().any(|n| n.id == before.id && n.incarnation == now[0].incarnation),
            "{after:?}"
        );
        Ok(())
    })
    .await
}

/// Input: bytes that are no command, in the log of either group: proposed by a backend over Raft, and a command of a
/// format that nobody knows yet; and asked for by a frontend.
///
/// Outcome: A backend's are answered as unreadable beside those that can be read, and never come into the log. A
/// frontend's are `INVALID_ARGUMENT`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_138_bytes_that_are_no_command_do_not_come_into_the_log() -> Result<()> {
    row("", async |cluster| {
        let cluster_id = Cluster::cluster_id(&cluster.state().await?)?;
        let mut raft = RaftClient::new(cluster.link_of(0).await?);
        let mut propose = async |group: &str, payloads: Vec<Vec<u8>>| -> Result<Vec<(u64, Vec<u8>)>> {
            let payloads = payloads.into_iter().map(Into::into).collect();
            let (cluster, group) = (cluster_id.clone(), group.to_owned());
            let request = ProposeRequest { cluster, group, payloads, timeout_ms: 5000 };
            let reply = raft.propose(request).await?.into_inner();
            ensure!(!reply.not_leader, "the only backend does not lead");
            Ok(reply.results.into_iter().map(|r| (r.index, r.reply.to_vec())).collect())
        };
        // Version 1, `Kick` of nobody@x/r: it can be read, and changes nothing.
        let good = [&[1, 10, 10][..], b"nobody@x/r"].concat();
        let garbage: Vec<Vec<u8>> = vec![vec![], vec![0xff; 300], vec![1], vec![9; 9], good[..8].to_vec()];
        let answers = propose("routes", [garbage.clone(), vec![good]].concat()).await?;
        // Version 1, `Unreadable`.
        ensure!(answers[..5].iter().all(|(index, reply)| *index == 0 && reply == &[1, 7]), "{answers:?}");
        ensure!(answers[5].0 > 0 && answers.len() == 6, "{answers:?}");

        let command = |format| proto::store::Command { format, id: vec![3; 16].into(), batches: vec![] };
        let newer = command(1000).encode_to_vec();
        let answers = propose("data", [garbage, vec![newer, command(1).encode_to_vec()]].concat()).await?;
        let refused = |(index, reply): &(u64, Vec<u8>)| {
            let reply = proto::store::CommitReply::decode(&reply[..]);
            *index == 0 && reply.is_ok_and(|reply| reply.failure.is_some())
        };
        ensure!(answers[..6].iter().all(refused), "{answers:?}");
        ensure!(answers[6].0 > 0 && answers.len() == 7, "{answers:?}");

        let mut frontend = MembershipClient::new(cluster.link_of(1).await?);
        let commands = vec![vec![9; 9].into()];
        let submit = SubmitRequest { cluster: cluster_id.clone(), commands, timeout_ms: 5000 };
        let status = frontend.submit(submit).await.err().context("garbage was taken")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        // Both groups go on.
        let barrier = BarrierRequest { cluster: cluster_id, timeout_ms: 5000 };
        frontend.barrier(barrier).await?;
        cluster.nodes.add_user("afterwards@localhost", "secret").await
    })
    .await
}

/// The bytes of a token, without its checksum.
fn body(ticket: &str) -> Result<(Vec<u8>, String)> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let (token, address) = ticket.split_once('@').context("no address")?;
    let body = token.strip_prefix("rookery-join-1-").context("no token")?;
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(body)?;
    bytes.truncate(bytes.len() - 4);
    Ok((bytes, address.to_owned()))
}

fn sealed(mut bytes: Vec<u8>, address: &str) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    bytes.extend(crc32(&bytes).to_be_bytes());
    format!("rookery-join-1-{}@{address}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// CRC-32 as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}

/// A token whose bearer gave it all roles.
fn widened(ticket: &str) -> Result<String> {
    let (mut bytes, address) = body(ticket)?;
    *bytes.last_mut().context("an empty token")? = 3;
    Ok(sealed(bytes, &address))
}

/// A token with another secret.
fn guessed(ticket: &str) -> Result<String> {
    let (mut bytes, address) = body(&widened(ticket)?)?;
    // Behind the number and the fingerprint.
    bytes[8 + 32] ^= 1;
    Ok(sealed(bytes, &address))
}

//! The life of a node: find the others, belong to a cluster, be admitted, and hold the lease.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use proto::membership::{
    FoundRequest, HelloReply, HelloRequest, Peer, RenewRequest, membership_client::MembershipClient,
    renew_reply::Verdict,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    batch::Batcher,
    changes::Change,
    error::ClusterError,
    formation::{self, Decision, Seen},
    identity::{self, audit::Reason},
    links::{cluster_bytes, read_cluster, read_epoch},
    membership::{CLUSTER, founders_in, founders_out},
    role::{ClusterId, Incarnation, MemberId, NodeId},
    routes::{Command, Outcome},
    seam::{self, random_bits},
    shared::{PAUSE, Phase, Shared, submit, wait_index},
};

/// How long one introduction may take.
const HELLO: Duration = Duration::from_millis(700);
/// How long one renewal may take.
const RENEWAL: Duration = Duration::from_millis(700);
/// After a renewal that failed the next one comes sooner.
const RENEW_AGAIN: Duration = Duration::from_millis(100);
/// How long a backend that passes renewals on is asked before the leader is tried again.
const DETOUR: Duration = Duration::from_secs(10);
/// How long a node may take to learn the route table before it asks for another life.
const LEARN: Duration = Duration::from_secs(300);
/// How long that life is renewed while nothing comes of the table, as while a snapshot of it is received.
const STILL: Duration = Duration::from_secs(12);
/// How often a running node introduces itself.
const ROUND: Duration = Duration::from_secs(2);

/// Runs until the node stops.
pub(crate) async fn live(shared: Arc<Shared>, batcher: Arc<Batcher>) {
    tokio::select! {
        () = serve(&shared, &batcher) => {}
        ended = shared.hub.ended() => {
            shared.lease.lock().lose(Instant::now());
            shared.fail(ended.into());
        }
    }
}

async fn serve(shared: &Arc<Shared>, batcher: &Batcher) {
    if let Err(error) = belong(shared).await {
        return shared.fail(error);
    }
    let mut first = true;
    loop {
        let (node, incarnation) = admitted(shared, batcher).await;
        hold_lease(shared, node, incarnation, first).await;
        if shared.lease.lock().is_closed() {
            return;
        }
        first = false;
    }
}

/// Meets the others until this node belongs to a cluster.
async fn belong(shared: &Arc<Shared>) -> Result<(), ClusterError> {
    let kept = |e: std::io::Error| ClusterError::Disk { path: "cluster/node".into(), source: e.into() };
    loop {
        let round = introduce(shared).await;
        let ours = shared.links.cluster();
        let expect = shared.config.expect;
        let seen: Vec<Seen> = round.iter().map(|(address, reply)| seen(address, reply)).collect();
        let me = shared.member();
        match formation::decide(me.map(|me| (me, shared.address.as_str())), ours, expect, &seen) {
            Decision::Foreign { theirs, address } => {
                let ours = ours.unwrap_or(theirs);
                return Err(ClusterError::Foreign { ours, theirs, address });
            }
            // A cluster that is known from the disk, or that another founder told us of meanwhile.
            _ if ours.is_some() => return Ok(()),
            Decision::Join(cluster) => {
                let from = round.iter().find(|(_, reply)| peer_cluster(reply) == Some(cluster));
                let founders = from.map(|(_, reply)| founders_in(&reply.founders)).unwrap_or_default();
                let epoch = from.map_or(0, |(_, reply)| peer_epoch(reply));
                shared.certificate.belong(cluster, epoch, &founders).map_err(kept)?;
                shared.links.set_cluster(cluster, epoch);
                tracing::info!(%cluster, "joined a cluster");
                return Ok(());
            }
            Decision::Found(founders) => {
                if found(shared, &founders).await.map_err(kept)? {
                    return Ok(());
                }
            }
            Decision::Disagree { address, expects } => {
                tracing::warn!(%address, expects, ours = expect, "backends expect different numbers of each other");
            }
            Decision::Wait => tracing::debug!(seen = seen.len(), expect, "waiting for the others"),
        }
        if let Some(me) = me {
            let backends: Vec<Seen> = seen.into_iter().filter(|peer| peer.cluster.is_none()).collect();
            *shared.sees.lock() = formation::list(me, expect, &backends);
        }
        sleep(PAUSE).await;
    }
}

fn peer_cluster(reply: &HelloReply) -> Option<ClusterId> {
    read_cluster(&reply.peer.as_ref()?.cluster)
}

fn peer_epoch(reply: &HelloReply) -> u64 {
    reply.peer.as_ref().map_or(0, |peer| read_epoch(&peer.cluster))
}

fn seen(address: &str, reply: &HelloReply) -> Seen {
    let peer = reply.peer.clone().unwrap_or_default();
    Seen {
        address: if peer.address.is_empty() { address.into() } else { peer.address },
        member: (peer.member != 0).then_some(MemberId(peer.member)),
        cluster: read_cluster(&peer.cluster),
        expect: peer.expect as usize,
        sees: peer.sees.into_iter().map(MemberId).collect(),
    }
}

/// Whether a refusal says that an operator removed this node.
fn is_removed(status: &Status) -> bool {
    let why = status.metadata().get(identity::WHY).and_then(|why| why.to_str().ok());
    status.code() == Code::PermissionDenied && why == Some(Reason::Removed.word())
}

/// Introduces this node to every address that it knows, and learns from the answers.
async fn introduce(shared: &Arc<Shared>) -> Vec<(String, HelloReply)> {
    match shared.discovery.seeds().await {
        Ok(seeds) => shared.known.lock().seeds = seeds,
        Err(error) => tracing::debug!(%error, "discovery has no answer"),
    }
    let mut addresses: Vec<String> = {
        let known = shared.known.lock();
        known.seeds.iter().chain(&known.others).cloned().collect()
    };
    addresses.extend(shared.known.lock().backends.iter().cloned());
    addresses.extend(shared.links.members().into_iter().map(|(_, address)| address));
    addresses.extend(shared.certificate.born().founders.into_iter().map(|(_, address)| address));
    addresses.sort_unstable();
    addresses.dedup();
    addresses.retain(|address| !address.is_empty() && *address != shared.address);
    let calls = addresses.into_iter().map(|address| async move {
        let request = HelloRequest { peer: Some(shared.introduction()) };
        let mut client = shared.membership(&address).ok()?;
        let reply = timeout(HELLO, client.hello(request)).await.ok()?;
        match reply {
            Ok(reply) => Some((address, reply.into_inner())),
            Err(status) if is_removed(&status) => {
                shared.hub.note_removed(shared.certificate.born().key);
                None
            }
            Err(status) => {
                if let Some(theirs) = status.metadata().get_bin(CLUSTER).and_then(|id| id.to_bytes().ok()) {
                    // As if it had introduced itself: what follows is decided in one place.
                    let peer = Peer { cluster: theirs, ..Peer::default() };
                    return Some((address, HelloReply { peer: Some(peer), ..HelloReply::default() }));
                }
                tracing::debug!(address, status = status.message(), "an introduction failed");
                None
            }
        }
    });
    let replies: Vec<(String, HelloReply)> = join_all(calls).await.into_iter().flatten().collect();
    let mine = shared.member().map(|me| me.0);
    // A seed may be this node under another name.
    let mut others: Vec<_> = replies
        .into_iter()
        .filter(|(_, reply)| mine.is_none() || reply.peer.as_ref().map(|peer| peer.member) != mine)
        .collect();
    others.dedup_by_key(|(_, reply)| reply.peer.as_ref().map(|peer| (peer.member, peer.address.clone())));
    follow_epoch(shared, &others);
    learn(shared, &others);
    others
}

/// The cluster was recovered meanwhile. A frontend goes on with those who are in it; a backend has a part in what was
/// before, and is none of them any more.
fn follow_epoch(shared: &Shared, replies: &[(String, HelloReply)]) {
    let Some(ours) = shared.links.cluster() else { return };
    let of_ours = replies.iter().filter(|(_, reply)| peer_cluster(reply) == Some(ours));
    let newest = of_ours.map(|(_, reply)| peer_epoch(reply)).max().unwrap_or(0);
    if newest <= shared.links.epoch() {
        return;
    }
    if shared.roles.backend {
        return shared.hub.note_recovered(newest);
    }
    match shared.certificate.enter(newest) {
        Ok(()) => {
            shared.links.set_cluster(ours, newest);
            tracing::warn!(epoch = newest, "the cluster was recovered, and this frontend goes on with it");
        }
        Err(error) => tracing::error!(%error, "failed to write down that the cluster was recovered"),
    }
}

fn learn(shared: &Shared, replies: &[(String, HelloReply)]) {
    let ours = shared.links.cluster();
    let mut backends = BTreeSet::new();
    for (address, reply) in replies {
        let Peer { cluster, member, address: own, backend, .. } = reply.peer.clone().unwrap_or_default();
        let theirs = read_cluster(&cluster);
        if ours.is_some() && theirs.is_some() && ours != theirs {
            continue;
        }
        if ours.is_some() && theirs.is_some() && read_epoch(&cluster) != shared.links.epoch() {
            continue;
        }
        let address = if own.is_empty() { address } else { &own };
        let mut known = shared.known.lock();
        known.note_other(address);
        reply.others.iter().for_each(|other| known.note_other(&other.address));
        drop(known);
        if backend && theirs.is_some() {
            backends.insert(address.clone());
        }
        if member != 0 {
            shared.links.learn(MemberId(member), address);
        }
    }
    if !backends.is_empty() {
        shared.known.lock().backends = backends;
    }
}

/// Brings a cluster into the world: first a promise of all founders, then it is kept, here before elsewhere.
async fn found(shared: &Arc<Shared>, founders: &[(MemberId, String)]) -> std::io::Result<bool> {
    let cluster = ClusterId(random_bits());
    if !shared.promise.lock().give(cluster, Instant::now()) {
        return Ok(false);
    }
    if !ask_founders(shared, cluster, founders, false).await {
        return Ok(false);
    }
    if shared.links.cluster().is_some() {
        return Ok(true);
    }
    shared.certificate.belong(cluster, 0, founders)?;
    shared.links.set_cluster(cluster, 0);
    tracing::info!(%cluster, founders = founders.len(), "founded a cluster");
    Ok(true)
}

/// Asks every other founder; whether all take part.
async fn ask_founders(
    shared: &Arc<Shared>,
    cluster: ClusterId,
    founders: &[(MemberId, String)],
    confirmed: bool,
) -> bool {
    let me = shared.member();
    let others = founders.iter().filter(|(member, _)| Some(*member) != me);
    let calls = others.map(|(member, address)| async move {
        let address = shared.links.address(*member).unwrap_or_else(|| address.clone());
        let mut client: MembershipClient<Channel> = shared.membership(&address).ok()?;
        let founders = founders_out(founders);
        let request = FoundRequest { cluster: cluster_bytes(Some(cluster), 0), founders, confirmed };
        let reply = timeout(HELLO, client.found(request)).await.ok()?.ok()?.into_inner();
        reply.accepted.then_some(())
    });
    join_all(calls).await.iter().all(Option::is_some)
}

/// Gives the groups their first members, if this node is the founder to do so; every founder must have kept
/// the birth before, so that none of them can take part in another.
pub(crate) async fn initialize_groups(shared: Arc<Shared>) {
    /// The lowest founder initializes; the others do it in its place if nothing came of it.
    const PATIENCE: Duration = Duration::from_secs(5);
    let cluster = loop {
        if let Some(cluster) = shared.links.cluster() {
            break cluster;
        }
        sleep(Duration::from_millis(10)).await;
    };
    let founders = shared.certificate.born().founders;
    let Some(lowest) = founders.first().map(|(member, _)| *member) else { return };
    let since = Instant::now();
    let mut confirmed = false;
    loop {
        let mut waiting = false;
        for group in shared.groups.all() {
            if group.is_initialized().await {
                continue;
            }
            waiting = true;
            if Some(lowest) != shared.member() && since.elapsed() < PATIENCE {
                continue;
            }
            confirmed = confirmed || ask_founders(&shared, cluster, &founders, true).await;
            if confirmed && let Err(error) = group.initialize(&founders).await {
                tracing::error!(%error, group = group.name(), "failed to give a group its members");
            }
        }
        // Another group may be opened later.
        sleep(if waiting { PAUSE } else { ROUND }).await;
    }
}

/// Writes down where the backends are, when that has changed: a frontend that starts again knows nothing else.
async fn keep_backends(shared: &Shared, kept: &mut BTreeSet<String>) {
    let Some(here) = shared.kept().cloned() else { return };
    let now: BTreeSet<String> = shared.backends().into_iter().collect();
    if now.is_empty() || now == *kept {
        return;
    }
    let list: Vec<String> = now.iter().cloned().collect();
    match seam::blocking(move || here.keep_backends(&list)).await {
        Ok(Ok(())) => *kept = now,
        Ok(Err(error)) => tracing::debug!(%error, "failed to write down where the backends are"),
        Err(error) => tracing::debug!(%error, "failed to write down where the backends are"),
    }
}

/// Keeps introducing this node, so that addresses that changed are found again.
pub(crate) async fn stay_known(shared: Arc<Shared>) {
    let mut kept = BTreeSet::new();
    loop {
        sleep(ROUND).await;
        keep_backends(&shared, &mut kept).await;
        let ours = shared.links.cluster();
        for (address, reply) in introduce(&shared).await {
            let theirs = peer_cluster(&reply);
            if let (Some(ours), Some(theirs)) = (ours, theirs)
                && ours != theirs
            {
                if matches!(*shared.phase.borrow(), Phase::Starting) {
                    return shared.fail(ClusterError::Foreign { ours, theirs, address });
                }
                tracing::warn!(%address, %theirs, "a node of another cluster answers at an address given to this one");
            }
        }
    }
}

/// Has the table say of this node what it wants to be said.
pub(crate) async fn stay_as_wished(shared: Arc<Shared>, batcher: Arc<Batcher>) {
    let mut wish = shared.wish.subscribe();
    loop {
        let wanted = wish.borrow_and_update().clone();
        let (node, incarnation) = shared.hub.me();
        let missing = {
            let routes = shared.view.routes.read();
            let row = routes.node(node).filter(|row| row.incarnation == incarnation);
            row.map_or_else(Vec::new, |row| wanted.missing(row, routes.doors(node)))
        };
        for command in missing {
            let deadline = shared.deadline();
            match submit(&batcher, &command, deadline).await {
                Ok((index, _)) => {
                    // Shown or not: the next look tells.
                    wait_index(&shared.hub, index, deadline).await;
                }
                Err(error) => tracing::debug!(%error, ?command, "not agreed on yet"),
            }
        }
        tokio::select! {
            changed = wish.changed() => if changed.is_err() { return },
            () = sleep(PAUSE) => {}
        }
    }
}

/// Asks to be admitted until it is so, and until the table here shows it.
async fn admitted(shared: &Arc<Shared>, batcher: &Batcher) -> (NodeId, Incarnation) {
    loop {
        if shared.stands_still() {
            // It could hear of no life that it is given. It must be started anew, as `/live` says.
            sleep(PAUSE).await;
            continue;
        }
        let start = random_bits();
        shared.hub.begin_life(start);
        let command = Command::NodeUp {
            key: shared.certificate.born().key,
            start,
            name: shared.name.clone(),
            address: shared.address.clone(),
            roles: shared.roles,
            member: shared.member(),
        };
        if let Some(admitted) = come_up(shared, batcher, &command).await {
            return admitted;
        }
    }
}

/// Asks for one life of this node until it is given. `None` if the table does not come here and the others may hold this
/// life for gone: they bring the log to no backend that is gone.
async fn come_up(
    shared: &Arc<Shared>,
    batcher: &Batcher,
    command: &Command,
) -> Option<(NodeId, Incarnation)> {
    loop {
        match submit(batcher, command, shared.deadline()).await {
            Ok((index, Outcome::Up { node, incarnation })) => {
                if !shows(shared, node, incarnation, index).await {
                    tracing::warn!(index, "waiting for the route table");
                    return None;
                }
                tracing::info!(%node, %incarnation, "admitted");
                return Some((node, incarnation));
            }
            Ok((_, Outcome::Removed)) => {
                // Whoever waits for this node's lease is told by that.
                shared.hub.note_removed(shared.certificate.born().key);
            }
            Ok((_, outcome)) => tracing::debug!(?outcome, "not admitted yet"),
            Err(error) => tracing::info!(%error, "waiting to be admitted"),
        }
        sleep(PAUSE).await;
    }
}

/// Waits until the table here shows that this node is up: a backend that has just joined learns the log first, a
/// frontend follows its feed. A large table takes longer to come than others wait for a node that is silent, so this
/// life is renewed meanwhile, although nothing is served in it yet. False once that fails for as long as a command may
/// take, or once the table stands still: then the others must see that this life is over, or they would leave everything
/// as it is and nothing would come here.
async fn shows(shared: &Arc<Shared>, node: NodeId, incarnation: Incarnation, index: u64) -> bool {
    let lost = async {
        let applied = shared.hub.index();
        let (mut until, mut seen) = (shared.deadline(), *applied.borrow());
        let mut still = Instant::now() + STILL;
        loop {
            sleep(shared.config.times.renew()).await;
            let now = *applied.borrow();
            if now != seen {
                (seen, still) = (now, Instant::now() + STILL);
            }
            if Instant::now() > still {
                return sleep_until(shared.deadline()).await;
            }
            match renew(shared, node, incarnation, None).await {
                Verdict::Granted => until = shared.deadline(),
                Verdict::NotLeader if Instant::now() < until => {}
                Verdict::NotLeader | Verdict::Stale => return,
            }
        }
    };
    tokio::select! {
        biased;
        shown = wait_index(&shared.hub, index, Instant::now() + LEARN) => shown,
        () = lost => false,
    }
}

/// Renews the lease until it is lost.
async fn hold_lease(shared: &Arc<Shared>, node: NodeId, incarnation: Incarnation, first: bool) {
    let mut told = false;
    loop {
        let until = shared.lease.lock().until();
        let (sent, applied) = (Instant::now(), *shared.hub.index().borrow());
        let fenced = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let verdict = tokio::select! {
            verdict = renew(shared, node, incarnation, Some(applied)) => verdict,
            () = fenced => break,
        };
        let granted = match verdict {
            Verdict::Granted => shared.lease.lock().acknowledged(sent, Instant::now()),
            Verdict::NotLeader => false,
            Verdict::Stale => break,
        };
        if granted && !told {
            told = true;
            shared.phase.send_replace(Phase::Ready);
            if !first {
                tracing::warn!(%node, %incarnation, "serves again under a new incarnation");
                shared.hub.announce(Change::LeaseBack { incarnation }).await;
            }
        }
        let pause = if granted { shared.config.times.renew() } else { RENEW_AGAIN };
        let next = sent + pause;
        match until.filter(|_| !granted) {
            Some(until) if until <= next => {
                sleep_until(until).await;
                break;
            }
            _ => sleep_until(next).await,
        }
    }
    let lost = shared.lease.lock().lose(Instant::now());
    if told {
        tracing::warn!(%node, %incarnation, "lost the lease and fenced itself");
        shared.hub.announce(Change::LeaseLost { until: lost + shared.config.times.grace() }).await;
    }
}

/// `index`: up to where the table here is applied, if anything is served by it.
async fn renew(shared: &Arc<Shared>, node: NodeId, incarnation: Incarnation, index: Option<u64>) -> Verdict {
    if shared.stands_still() {
        // So the lease runs out, and others serve whom this node serves now.
        return Verdict::NotLeader;
    }
    let core = shared.routes_group().map(|group| group.core());
    let address = match &core {
        Some(core) if core.leader() == shared.member() => {
            return shared.grant(node, incarnation, index).verdict();
        }
        Some(core) => core.leader().and_then(|leader| shared.links.address(leader)),
        None => {
            let known = shared.known.lock();
            let detour = known.detour.as_ref().filter(|(_, until)| Instant::now() < *until);
            detour.map(|(address, _)| address.clone()).or_else(|| known.leader.clone())
        }
    };
    let Some(address) = address.or_else(|| shared.backends().into_iter().next()) else {
        return Verdict::NotLeader;
    };
    let asked = async {
        let cluster = shared.links.cluster_bytes();
        let (node, incarnation) = (node.0, incarnation.0);
        let request = RenewRequest { cluster, node, incarnation, passed_on: false, index };
        let mut client = shared.membership(&address).ok()?;
        let Ok(reply) = timeout(RENEWAL, client.renew(Request::new(request))).await else {
            shared.links.forget(&address);
            return None;
        };
        reply
            .inspect_err(|status| tracing::debug!(address, status = status.message(), "a renewal failed"))
            .ok()
    };
    match asked.await {
        Some(reply) => {
            let reply = reply.into_inner();
            let named = Some(reply.leader.clone()).filter(|leader| !leader.is_empty());
            let granted = reply.verdict() == Verdict::Granted;
            let mut known = shared.known.lock();
            known.leader = if granted && !reply.passed_on { Some(address.clone()) } else { named };
            known.detour = match known.detour.take().filter(|(known, _)| *known == address) {
                _ if !granted || !reply.passed_on => None,
                Some(detour) if Instant::now() < detour.1 => Some(detour),
                _ => Some((address, Instant::now() + DETOUR)),
            };
            reply.verdict()
        }
        None => {
            // The next one is asked of another backend, which knows the leader.
            let mut known = shared.known.lock();
            (known.leader, known.detour) = (None, None);
            if known.good.as_deref() == Some(address.as_str()) || known.good.is_none() {
                drop(known);
                let next = shared.backend_after(&address);
                shared.known.lock().good = next;
            }
            Verdict::NotLeader
        }
    }
}

//! A frontend's copy of the route table: it follows any backend, and another one when that dies.

use std::{sync::Arc, time::Duration};

use proto::membership::{FollowItem, FollowRequest};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Status};

use crate::{
    routes::Routes,
    seam,
    shared::{PAUSE, Shared},
};

/// A backend that says nothing for this long is left.
const SILENCE: Duration = Duration::from_secs(3);
/// One that says nothing for this long while somebody here waits for news is left too.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// No snapshot takes a backend longer to make, however large the table is.
const MAKING: Duration = Duration::from_secs(60);
/// No snapshot of the table is larger.
const SNAPSHOT_MAX: usize = 4 << 30;

/// Follows for as long as the node runs.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut nth = 0;
    loop {
        let backends = shared.backends();
        if let Some(address) = backends.get(nth % backends.len().max(1)) {
            let left = follow_one(&shared, address).await;
            tracing::info!(backend = %address, reason = left.message(), "left the feed of the route table");
        }
        nth += 1;
        sleep(PAUSE).await;
    }
}

async fn follow_one(shared: &Arc<Shared>, address: &str) -> Status {
    match run(shared, address).await {
        Ok(()) => Status::unavailable("the backend ended the feed"),
        Err(status) => status,
    }
}

/// What a backend lets its follower do.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// It brings something.
    News,
    /// It lives, or is about to bring something.
    Wait,
    /// Another backend is to be asked.
    Leave(&'static str),
}

/// Since when a backend makes a snapshot for its follower.
#[derive(Default)]
struct Making(Option<Instant>);

impl Making {
    /// `is_behind`: somebody here waits for what is not applied yet.
    fn hear(&mut self, item: &FollowItem, is_behind: bool, now: Instant) -> Word {
        if item.snapshot_comes {
            // Whoever waits here waits for this: another backend would have to begin anew.
            let since = *self.0.get_or_insert(now);
            return if now - since < MAKING {
                Word::Wait
            } else {
                Word::Leave("the backend makes a snapshot forever")
            };
        }
        self.0 = None;
        match item.index == 0 && item.snapshot.is_empty() {
            false => Word::News,
            // The backend lives, but has not what was agreed.
            true if is_behind => Word::Leave("the backend is behind"),
            true => Word::Wait,
        }
    }
}

async fn run(shared: &Arc<Shared>, address: &str) -> Result<(), Status> {
    let cluster = shared.links.cluster_bytes();
    let request = Request::new(FollowRequest { cluster, from: shared.view.index() });
    let silent = |_| Status::deadline_exceeded("the backend is silent");
    let mut client = shared.membership(address)?;
    let mut items = timeout(SILENCE, client.follow(request)).await.map_err(silent)??.into_inner();
    let (mut snapshot, mut making) = (Vec::new(), Making::default());
    loop {
        let next = async {
            let next = items.message();
            tokio::pin!(next);
            match timeout(IMPATIENCE, &mut next).await {
                Ok(item) => Ok(item),
                Err(late) if shared.hub.is_behind() => Err(late),
                Err(_) => timeout(SILENCE - IMPATIENCE, next).await,
            }
        };
        let Some(item) = next.await.map_err(silent)?? else { return Ok(()) };
        match making.hear(&item, shared.hub.is_behind(), Instant::now()) {
            Word::News => {}
            Word::Wait => continue,
            Word::Leave(why) => return Err(Status::unavailable(why)),
        }
        snapshot.extend_from_slice(&item.snapshot);
        if snapshot.len() > SNAPSHOT_MAX {
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        let hub = shared.hub.clone();
        let applied = if item.snapshot_ends {
            let whole = std::mem::take(&mut snapshot);
            let install = move || match Routes::decode(&whole) {
                // A backend that is behind must not take back what this node has seen.
                Some(routes) if routes.index() < *hub.index().borrow() => Ok(()),
                Some(routes) => {
                    hub.install(routes);
                    Ok(())
                }
                None => Err(Status::data_loss("the snapshot cannot be read")),
            };
            seam::blocking(install).await
        } else if !item.snapshot.is_empty() {
            continue;
        } else {
            let apply = move || {
                if item.index > *hub.index().borrow() {
                    hub.apply(item.index, &item.commands);
                }
                Ok(())
            };
            seam::blocking(apply).await
        };
        applied.map_err(|e| Status::internal(e.to_string()))??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_waits_for_a_snapshot_that_comes_and_for_nothing_else() {
        let comes = FollowItem { snapshot_comes: true, ..FollowItem::default() };
        let piece = FollowItem { snapshot: vec![1].into(), ..FollowItem::default() };
        let entry = FollowItem { index: 7, ..FollowItem::default() };
        let alive = FollowItem::default();
        let (mut making, begun) = (Making::default(), Instant::now());
        let late = begun + MAKING;
        for (item, is_behind, now, word) in [
            (&alive, false, begun, Word::Wait),
            (&alive, true, begun, Word::Leave("the backend is behind")),
            (&comes, true, begun, Word::Wait),
            (&comes, true, late - Duration::from_millis(1), Word::Wait),
            (&comes, true, late, Word::Leave("the backend makes a snapshot forever")),
            (&piece, true, late, Word::News),
            (&comes, true, late, Word::Wait),
            (&entry, true, late, Word::News),
        ] {
            assert_eq!(making.hear(item, is_behind, now), word, "{item:?}");
        }
    }
}

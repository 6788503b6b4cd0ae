//! The router over a real cluster of one: what Raft agreed on is what it routes by.

use std::sync::Arc;
use std::time::SystemTime;

use cluster::{Cluster, ConflictPolicy, Sid};
use hooks::{Accounts, Credentials, Registry, ScramKeys, Services, SessionView, Store, Switches};
use jid::FullJid;
use router::{Config, Deps, Router};
use tokio::time::timeout;

use crate::modules::Keeper;
use crate::world::{SOON, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_reached_from_its_bind_to_its_end_and_then_its_messages_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let deps = cluster::Deps { name: "n1".into(), roles: Default::default(), data_dir: folder.path().into() };
    let cluster = Cluster::start(cluster::Config::default(), deps).await.unwrap();
    timeout(SOON, cluster.ready()).await.unwrap().unwrap();
    let keeper = Arc::new(Keeper::default());
    let store = Store::memory();
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    Accounts::new(store.clone()).create("bob@localhost", &credentials).await.unwrap();
    let router = Router::start(
        Deps {
            whereabouts: cluster.clone(),
            registry: Arc::new(Registry::build(vec![keeper.clone()], &Switches::everywhere()).unwrap()),
            store,
            hosts: vec!["localhost".into()],
            admins: Vec::new(),
            about: ("Rookery", "test"),
            clock: SystemTime::now,
            random: |buffer| buffer.fill(7),
            keys: |_| None,
        },
        Config::default(),
    );
    let chat = |id: usize| {
        let xml = format!("<message from='alice@localhost/a' to='bob@localhost' type='chat' id='{id}'/>");
        hooks::bench::parse(&xml)
    };
    let services: Arc<dyn Services> = router.services();
    let jid = FullJid::new("bob@localhost/phone").unwrap();
    let sid = Sid::random();
    let bound = cluster.bind(&jid, sid, ConflictPolicy::Replace).await.unwrap();
    let view = Arc::new(SessionView::new(bound.jid, hooks::Sid(sid.0), true));
    let mut mailbox = router.open(view.clone());
    services.route(chat(1), hooks::How::Normal).await;
    until("bound and not available: kept", || keeper.ids() == [1]).await;
    services.set_priority(&view, Some(3)).await.unwrap();
    services.read_barrier().await.unwrap();
    assert_eq!(services.online(view.account())[0].priority, Some(3));
    services.route(chat(2), hooks::How::Normal).await;
    timeout(SOON, mailbox.ready()).await.unwrap();
    assert_eq!(mailbox.drain(usize::MAX).len(), 1);
    services.route(chat(3), hooks::How::Normal).await;
    cluster.unbind(&jid, sid).await.unwrap();
    router.close(&view, Vec::new());
    services.route(chat(4), hooks::How::Normal).await;
    until("what it did not take is kept", || keeper.ids() == [1, 3, 4]).await;
}

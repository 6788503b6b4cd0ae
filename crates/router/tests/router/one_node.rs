//! One node: who gets a stanza, in which order, and what happens at each bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures::future::BoxFuture;
use hooks::bench::parse;
use hooks::{Accounts, Credentials, How, Kept, Module, ScramKeys, Services, SessionView, Store};
use jid::{FullJid, Jid};
use router::{Config, End, Fate};
use stanza::Kind;

use crate::modules::{Keeper, Odd, Slow};
use crate::world::{Node, World, id, node, until};

fn chat(to: &str, id: usize) -> String {
    format!("<message to='{to}' type='chat' id='{id}'><body>{id}</body></message>")
}

/// `bob@localhost` and `slow@localhost` have accounts.
async fn store() -> Store {
    let store = Store::memory();
    let keys = ScramKeys { salt: vec![], iterations: 1, stored_key: vec![], server_key: vec![] };
    let credentials = Credentials::new(keys.clone(), keys.clone(), keys);
    for name in ["alice@localhost", "bob@localhost", "slow@localhost"] {
        Accounts::new(store.clone()).create(name, &credentials).await.unwrap();
    }
    store
}

async fn single(modules: Vec<Arc<dyn Module>>, config: Config) -> (Arc<World>, Node) {
    let world = World::new(1);
    let node = node(&world, 1, &store().await, modules, config);
    (world, node)
}

#[tokio::test]
async fn a_chat_to_an_account_reaches_its_most_available_session_alone() {
    let (_world, node) = single(vec![], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut low = node.login("bob@localhost/low", Some(1));
    let mut high = node.login("bob@localhost/high", Some(5));
    let mut never = node.login("bob@localhost/never", Some(-1));
    alice.chats("bob@localhost", 1).await;
    let heard = high.hears(1).await;
    assert_eq!(
        heard,
        ["<message to='bob@localhost' from='alice@localhost/a' id='1' type='chat'><body>1</body></message>"]
    );
    assert!(low.rest().is_empty() && never.rest().is_empty());
    // To a session by name, whatever its priority.
    alice.chats("bob@localhost/never", 2).await;
    assert_eq!(never.hears_ids(1).await, [2]);
    // To one that is gone: to the account (RFC 6121, 8.5.3.2.1).
    alice.chats("bob@localhost/gone", 3).await;
    assert_eq!(high.hears_ids(1).await, [3]);
    assert_eq!(node.router.counters().stanzas(Kind::Message, Fate::Delivered), 3);
}

#[tokio::test]
async fn equal_priorities_get_a_copy_each_with_one_body() {
    let (_world, node) = single(vec![], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut one = node.login("bob@localhost/1", Some(1));
    let mut two = node.login("bob@localhost/2", Some(1));
    alice.chats("bob@localhost", 1).await;
    let (one, two) = (one.takes().await, two.takes().await);
    assert_eq!(one[0].stanza.body().as_ptr(), two[0].stanza.body().as_ptr(), "the body is shared");
}

#[tokio::test]
async fn the_body_is_the_senders_bytes() {
    let (_world, node) = single(vec![Arc::new(Odd)], Config::default()).await;
    let mut bob = node.login("bob@localhost/b", Some(1));
    let stanza = parse("<message to='bob@localhost' from='x@localhost/r' id='1'><body>hi</body></message>");
    let bytes = stanza.body().clone();
    node.router.route(stanza, How::Normal).await;
    let got = bob.takes().await;
    assert_eq!(got[0].stanza.body().as_ptr(), bytes.as_ptr());
}

#[tokio::test]
async fn a_broadcast_shares_its_body_and_gives_each_receiver_a_head() {
    let (_world, node) = single(vec![], Config::default()).await;
    let mut clients: Vec<_> = (0..10).map(|n| node.login(&format!("user{n}@localhost/r"), Some(0))).collect();
    let presence = parse("<presence from='alice@localhost/a'><show>away</show></presence>");
    let body = presence.body().clone();
    let to: Vec<Jid> = (0..10).map(|n| Jid::new(&format!("user{n}@localhost")).unwrap()).collect();
    node.router.fan_out(presence, to).await;
    for (n, client) in clients.iter_mut().enumerate() {
        let got = client.takes().await;
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].stanza.body().as_ptr(), body.as_ptr());
        let mut out = BytesMut::new();
        got[0].write(&mut out);
        let expected =
            format!("<presence to='user{n}@localhost' from='alice@localhost/a'><show>away</show></presence>");
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }
}

#[tokio::test]
async fn a_handler_that_waits_delays_its_receiver_alone_and_keeps_the_order() {
    let slow = Slow::new();
    let (_world, node) = single(vec![slow.clone()], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut bob = node.login("bob@localhost/b", Some(0));
    let mut sluggish = node.login("slow@localhost/s", Some(0));
    for id in 0..50 {
        alice.chats("slow@localhost", id).await;
        alice.chats("bob@localhost", id).await;
    }
    assert_eq!(bob.hears_ids(50).await, (0..50).collect::<Vec<_>>(), "nobody else waits");
    assert!(sluggish.rest().is_empty());
    slow.gate.add_permits(50);
    assert_eq!(sluggish.hears_ids(50).await, (0..50).collect::<Vec<_>>());
    until("the queue is gone", || node.router.account_queues() == 0).await;
}

#[tokio::test]
async fn what_others_sent_does_not_delay_what_an_account_says_to_itself_or_asks_the_server() {
    let slow = Slow::others_only();
    let (_world, node) = single(vec![slow.clone(), Arc::new(Odd)], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut sluggish = node.login("slow@localhost/s", Some(0));
    for id in 0..5 {
        alice.chats("slow@localhost", id).await;
    }
    sluggish.says("<iq type='get' id='10' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert_eq!(sluggish.hears_ids(1).await, [10]);
    sluggish.says("<iq type='get' id='11'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    sluggish.chats("slow@localhost", 12).await;
    assert_eq!(sluggish.hears_ids(2).await, [11, 12]);
    slow.gate.add_permits(5);
    assert_eq!(sluggish.hears_ids(5).await, (0..5).collect::<Vec<_>>());
    until("both queues are gone", || node.router.account_queues() == 0).await;
}

#[tokio::test]
async fn a_backlog_does_not_overrun_a_client_that_reads() {
    let slow = Slow::new();
    let config = Config { mailbox_stanzas: 20, ..Config::default() };
    let (_world, node) = single(vec![slow.clone()], config).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut sluggish = node.login("slow@localhost/s", Some(0));
    for id in 0..100 {
        alice.chats("slow@localhost", id).await;
    }
    slow.gate.add_permits(100);
    for id in 0..100 {
        assert_eq!(sluggish.hears_ids(1).await, [id]);
    }
    assert_eq!(sluggish.mailbox.end(), None);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_backlog_is_let_go_after_a_while_and_nothing_is_lost() {
    let (slow, keeper) = (Slow::new(), Arc::new(Keeper::default()));
    let config = Config { mailbox_stanzas: 20, backlog_wait_ms: 50, ..Config::default() };
    let (world, node) = single(vec![slow.clone(), keeper.clone()], config).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let sluggish = node.login("slow@localhost/s", Some(0));
    for id in 0..30 {
        alice.chats("slow@localhost", id).await;
    }
    slow.gate.add_permits(60);
    until("it is let go", || sluggish.mailbox.end() == Some(End::Overflowed)).await;
    sluggish.close(&world, vec![]);
    until("all are kept", || keeper.ids().len() == 30).await;
    assert!(keeper.ids().is_sorted());
}

#[tokio::test]
async fn a_full_account_queue_bounces_with_resource_constraint() {
    let slow = Slow::new();
    let config = Config { account_queue_stanzas: 10, ..Config::default() };
    let (_world, node) = single(vec![slow.clone()], config).await;
    let mut alice = node.login("alice@localhost/a", Some(0));
    let mut sluggish = node.login("slow@localhost/s", Some(0));
    for id in 0..20 {
        alice.chats("slow@localhost", id).await;
    }
    let bounced = alice.hears(1).await;
    assert!(bounced[0].contains("type='error'") && bounced[0].contains("resource-constraint"), "{bounced:?}");
    slow.gate.add_permits(20);
    let bounced: Vec<usize> =
        std::iter::once(id(&bounced[0])).chain(alice.rest().iter().map(|xml| id(xml))).collect();
    let arrived = sluggish.hears_ids(20 - bounced.len()).await;
    let mut all: Vec<usize> = arrived.iter().chain(&bounced).copied().collect();
    assert!(arrived.is_sorted());
    all.sort();
    assert_eq!(all, (0..20).collect::<Vec<_>>(), "each was delivered or bounced");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_session_and_nothing_else() {
    let keeper = Arc::new(Keeper::default());
    let config = Config { mailbox_stanzas: 100, ..Config::default() };
    let (_world, node) = single(vec![keeper.clone()], config).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let deaf = node.login("bob@localhost/deaf", Some(5));
    let mut other = node.login("bob@localhost/other", Some(1));
    for id in 0..50 {
        alice.chats("bob@localhost", id).await;
        // Directed presence is for this session alone: it ends with it.
        alice.says("<presence to='bob@localhost/deaf'/>").await;
    }
    assert_eq!(deaf.mailbox.end(), None);
    for id in 50..90 {
        alice.chats("bob@localhost", id).await;
    }
    assert_eq!(deaf.mailbox.end(), Some(End::Overflowed));
    // All of it, in order, at the other session, before the route of the deaf one is taken back.
    assert_eq!(other.hears_ids(90).await, (0..90).collect::<Vec<_>>());
    assert!(keeper.ids().is_empty());
}

#[tokio::test]
async fn the_bytes_of_a_mailbox_are_bounded_too() {
    let config = Config { mailbox_bytes: 10_000, ..Config::default() };
    let (_world, node) = single(vec![], config).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let bob = node.login("bob@localhost/b", Some(0));
    let big = "x".repeat(3_000);
    for id in 0..3 {
        alice.says(&format!("<message to='bob@localhost' id='{id}'><body>{big}</body></message>")).await;
    }
    assert_eq!(bob.mailbox.end(), None);
    alice.says(&format!("<message to='bob@localhost' id='3'><body>{big}</body></message>")).await;
    assert_eq!(bob.mailbox.end(), Some(End::Overflowed));
    assert_eq!(node.router.waiting().bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_a_closed_session_did_not_write_is_kept_before_what_comes_later() {
    let keeper = Arc::new(Keeper::default());
    let (world, node) = single(vec![keeper.clone()], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut bob = node.login("bob@localhost/b", Some(0));
    for id in 0..10 {
        alice.chats("bob@localhost", id).await;
    }
    // Ten drained, of which two were written; then ten more wait.
    let mut drained = bob.takes().await;
    let unwritten = drained.split_off(2);
    for id in 10..20 {
        alice.chats("bob@localhost", id).await;
    }
    bob.close(&world, unwritten);
    alice.chats("bob@localhost", 20).await;
    until("all are kept", || keeper.ids().len() == 19).await;
    assert_eq!(keeper.ids(), (2..=20).collect::<Vec<_>>());
    // Closing once more does no harm.
    node.router.close(&bob.view, Vec::new());
}

#[tokio::test]
async fn what_a_displaced_session_has_not_written_comes_before_what_is_newer() {
    let (world, node) = single(vec![], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut first = node.login("bob@localhost/b", Some(0));
    for id in 1..=4 {
        alice.chats("bob@localhost/b", id).await;
    }
    // All of them were drained, and are on their way to a client that does not read.
    let mut drained = first.takes().await;
    let mut second = node.login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost/b", 5).await;
    alice.chats("bob@localhost", 6).await;
    until("they wait", || node.router.account_queues() == 1).await;
    drained.drain(..1).for_each(|delivery| delivery.receipt.settle());
    first.close(&world, drained);
    assert_eq!(second.hears_ids(5).await, [2, 3, 4, 5, 6]);
    // One that is about to be bound holds nobody up.
    let view = SessionView::new(FullJid::new("bob@localhost/c").unwrap(), hooks::Sid(77), true);
    let _third = node.router.open(Arc::new(view));
    alice.chats("bob@localhost", 7).await;
    assert_eq!(second.hears_ids(1).await, [7]);
}

/// Notes what became of stanzas that the store has.
#[derive(Default)]
struct Noted {
    written: AtomicUsize,
    returned: AtomicUsize,
}

impl Noted {
    fn counts(&self) -> (usize, usize) {
        (self.written.load(Ordering::SeqCst), self.returned.load(Ordering::SeqCst))
    }
}

struct Copy(Arc<Noted>);

impl Kept for Copy {
    fn written(&self) -> BoxFuture<'static, ()> {
        let noted = self.0.clone();
        Box::pin(async move {
            noted.written.fetch_add(1, Ordering::SeqCst);
        })
    }

    fn returned(&self) -> BoxFuture<'static, ()> {
        let noted = self.0.clone();
        Box::pin(async move {
            noted.returned.fetch_add(1, Ordering::SeqCst);
        })
    }
}

#[tokio::test]
async fn whoever_has_a_copy_of_a_stanza_hears_once_whether_it_was_written() {
    let (world, node) = single(vec![], Config::default()).await;
    let noted = Arc::new(Noted::default());
    let send = async |id, sid: cluster::Sid| {
        let stanza = parse(&chat("bob@localhost", id)).with_from(Jid::new("alice@localhost/a").unwrap());
        node.router.route_kept(stanza, hooks::Sid(sid.0), Arc::new(Copy(noted.clone()))).await;
    };
    // Nobody is there.
    send(0, cluster::Sid(7_000)).await;
    until("it is returned", || noted.counts() == (0, 1)).await;

    let mut bob = node.login("bob@localhost/b", Some(1));
    send(1, bob.sid).await;
    send(2, bob.sid).await;
    let taken = bob.takes().await;
    assert_eq!(taken.len(), 2);
    // Taken is not written, and a node whose client has not got all is not at rest.
    assert!(!node.router.rest(Duration::from_millis(50)).await);
    assert_eq!(noted.counts(), (0, 1));
    let mut taken = taken.into_iter();
    drop(taken.next());
    until("one is written", || noted.counts() == (1, 1)).await;
    bob.close(&world, taken.collect());
    until("the other one is returned", || noted.counts() == (1, 2)).await;
    assert!(node.router.rest(Duration::from_secs(5)).await);

    // Of two sessions the one gets it that it is for.
    let mut one = node.login("bob@localhost/1", Some(1));
    let mut two = node.login("bob@localhost/2", Some(1));
    send(3, one.sid).await;
    drop(one.takes().await);
    until("it is written", || noted.counts() == (2, 2)).await;
    // And none of them if that one was displaced.
    let mut three = node.login("bob@localhost/1", Some(1));
    send(4, one.sid).await;
    until("it is returned", || noted.counts() == (2, 3)).await;
    assert_eq!((one.rest(), two.rest(), three.rest()), (vec![], vec![], vec![]));
}

#[tokio::test]
async fn a_table_that_still_shows_an_ended_session_loses_nothing() {
    let keeper = Arc::new(Keeper::default());
    let (_world, node) = single(vec![keeper.clone()], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let bob = node.login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 1).await;
    node.router.close(&bob.view, Vec::new());
    alice.chats("bob@localhost", 2).await;
    until("both are kept", || keeper.ids().len() == 2).await;
    assert_eq!(keeper.ids(), [1, 2]);
}

#[tokio::test]
async fn a_panic_in_a_handler_costs_one_stanza_and_its_sender_hears_of_it() {
    let (_world, node) = single(vec![Arc::new(Odd)], Config::default()).await;
    let mut alice = node.login("alice@localhost/a", Some(0));
    let mut bob = node.login("bob@localhost/b", Some(0));
    alice.chats("bob@localhost", 1).await;
    alice.chats("bob@localhost", 666).await;
    alice.chats("bob@localhost", 2).await;
    assert_eq!(bob.hears_ids(2).await, [1, 2]);
    let error = alice.hears(1).await.remove(0);
    assert!(error.contains("id='666'") && error.contains("internal-server-error"), "{error}");
    alice.says("<iq to='localhost' type='get' id='666'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert!(alice.hears(1).await[0].contains("internal-server-error"));
    alice.says("<iq to='localhost' type='get' id='3'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert!(alice.hears(1).await[0].contains("<pong"));
}

#[tokio::test]
async fn requests_are_answered_and_errors_are_not() {
    let (_world, node) = single(vec![Arc::new(Odd)], Config::default()).await;
    let mut alice = node.login("alice@localhost/a", Some(0));
    let _bob = node.login("bob@localhost/b", Some(0));
    let ping = "<ping xmlns='urn:xmpp:ping'/>";
    let cases = [
        (format!("<iq to='localhost' type='get' id='1'>{ping}</iq>"), Some("<pong")),
        (format!("<iq to='bob@localhost' type='get' id='2'>{ping}</iq>"), Some("<pong")),
        (format!("<iq type='get' id='3'>{ping}</iq>"), Some("<pong")),
        (
            "<iq to='localhost' type='get' id='4'><what xmlns='urn:x'/></iq>".into(),
            Some("service-unavailable"),
        ),
        (format!("<iq to='bob@localhost/gone' type='get' id='5'>{ping}</iq>"), Some("service-unavailable")),
        (format!("<iq to='nobody@localhost' type='set' id='6'>{ping}</iq>"), Some("service-unavailable")),
        (format!("<iq to='localhost/r' type='get' id='7'>{ping}</iq>"), Some("service-unavailable")),
        (
            format!("<iq to='elsewhere.example' type='get' id='8'>{ping}</iq>"),
            Some("remote-server-not-found"),
        ),
        ("<iq to='bob@localhost' type='what' id='9'><x xmlns='x'/></iq>".into(), Some("bad-request")),
        ("<presence to='bob@localhost' type='what' id='10'/>".into(), Some("bad-request")),
        ("<message to='bob@localhost' type='groupchat' id='11'/>".into(), Some("service-unavailable")),
        ("<message to='bob@localhost/gone' id='12'/>".into(), Some("service-unavailable")),
        ("<message to='localhost' id='13'/>".into(), Some("service-unavailable")),
        // Never answered.
        ("<iq to='nobody@localhost/x' type='result' id='14'/>".into(), None),
        ("<iq to='elsewhere.example' type='error' id='15'/>".into(), None),
        ("<message to='nobody@localhost' type='error' id='16'/>".into(), None),
        ("<message to='bob@localhost/gone' type='error' id='17'/>".into(), None),
        ("<presence to='nobody@localhost'/>".into(), None),
        ("<presence to='localhost' type='subscribe'/>".into(), None),
    ];
    for (said, expected) in cases {
        alice.says(&said).await;
        match expected {
            Some(expected) => {
                let heard = alice.hears(1).await.remove(0);
                assert!(heard.contains(expected), "`{said}` got `{heard}`");
                assert_eq!(id(&heard), id(&said), "`{said}` got `{heard}`");
            }
            None => {
                // Whatever would come, comes before the answer to this.
                alice.says(&format!("<iq to='localhost' type='get' id='99'>{ping}</iq>")).await;
                assert_eq!(alice.hears_ids(1).await, [99], "`{said}`");
            }
        }
        assert_eq!(alice.rest(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_missing_account_and_an_absent_user_look_alike() {
    let keeper = Arc::new(Keeper::default());
    let (_world, node) = single(vec![keeper.clone(), Arc::new(Odd)], Config::default()).await;
    let mut alice = node.login("alice@localhost/a", Some(0));
    alice.chats("bob@localhost", 1).await;
    alice.chats("missing@localhost", 2).await;
    until("bob's is kept", || !keeper.ids().is_empty()).await;
    until("nothing waits", || node.router.account_queues() == 0).await;
    assert_eq!(keeper.ids(), [1], "what is for nobody is not kept");
    assert_eq!(alice.rest(), Vec::<String>::new(), "and nobody can see the difference");
}

#[tokio::test]
async fn without_a_module_that_keeps_a_message_to_an_absent_user_is_bounced() {
    let (_world, node) = single(vec![], Config::default()).await;
    let mut alice = node.login("alice@localhost/a", Some(0));
    for to in ["bob@localhost", "missing@localhost"] {
        node.says(&chat(to, 1).replace("<message", "<message from='alice@localhost/a'")).await;
        assert!(alice.hears(1).await[0].contains("service-unavailable"), "{to}");
    }
}

#[tokio::test]
async fn presence_to_an_account_reaches_its_available_sessions() {
    let (_world, node) = single(vec![], Config::default()).await;
    let alice = node.login("alice@localhost/a", Some(0));
    let mut one = node.login("bob@localhost/1", Some(-5));
    let mut two = node.login("bob@localhost/2", Some(3));
    let mut bound = node.login("bob@localhost/3", None);
    alice.says("<presence to='bob@localhost' id='1'/>").await;
    alice.says("<presence to='bob@localhost/3' type='unavailable' id='2'/>").await;
    assert_eq!(one.hears_ids(1).await, [1]);
    assert_eq!(two.hears_ids(1).await, [1]);
    assert_eq!(bound.hears_ids(1).await, [2], "directed presence alone");
    assert!(one.rest().is_empty() && two.rest().is_empty());
}

//! Tests of `offline.rs`, against a whole server in memory.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use hooks::bench::{Bench, Client, parse};
use parking_lot::Mutex;
use stanza::Condition;
use store::engines::memory::Memory;
use store::{Engine, Op, Partition, Record};

use super::*;
use crate::index::{ModulesConfig, modules};

fn bench() -> Bench {
    bench_with(ModulesConfig::default())
}

fn bench_with(config: ModulesConfig) -> Bench {
    Bench::new(&["localhost"], move || modules(&config))
}

async fn say(client: &Client, to: &str, body: &str) {
    client.send(&format!("<message type='chat' to='{to}'><body>{body}</body></message>")).await;
}

/// Bodies of the messages heard, in order.
fn bodies(client: &Client) -> Vec<String> {
    let heard = client.hears_stanzas();
    heard.iter().filter_map(|stanza| Some(stanza.child("body", "jabber:client")?.text())).collect()
}

async fn waiting(bench: &Bench, jid: &str) -> (Queue, usize) {
    let account = BareJid::new(jid).unwrap();
    let (_, queue) = queue(&*bench.services(), &account).await.unwrap();
    let all = bench.store().scan::<Waiting>(&partition(&account), Range::all()).await.unwrap();
    (queue, all.len())
}

#[test]
fn messages_to_an_absent_user_come_at_the_next_login_in_order_with_their_time() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", "one").await;
        bench.advance(Duration::from_secs(60));
        say(&alice, "bob@localhost/gone", "two").await;
        assert!(alice.hears().is_empty());
        let bob = bench.login("bob@localhost/phone").await;
        assert!(bob.hears().is_empty());
        bob.send("<presence/>").await;
        let heard: Vec<String> =
            bob.hears().into_iter().filter(|heard| heard.starts_with("<message")).collect();
        assert_eq!(
            heard,
            [
                "<message to='bob@localhost' from='alice@localhost/phone' type='chat'><body>one</body>\
                 <delay xmlns='urn:xmpp:delay' from='localhost' stamp='2026-01-01T00:00:00Z'/></message>",
                "<message to='bob@localhost' from='alice@localhost/phone' type='chat'><body>two</body>\
                 <delay xmlns='urn:xmpp:delay' from='localhost' stamp='2026-01-01T00:01:00Z'/></message>",
            ]
        );
        assert_eq!(waiting(&bench, "bob@localhost").await, (Queue { next: 2, messages: 0, bytes: 0 }, 0));
        bob.send("<presence type='unavailable'/>").await;
        bob.send("<presence/>").await;
        assert!(bodies(&bob).is_empty());
    });
}

#[test]
fn a_session_with_a_negative_priority_gets_nothing_until_it_is_raised() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence><priority>-1</priority></presence>").await;
        say(&alice, "bob@localhost", "later").await;
        assert!(bodies(&bob).is_empty());
        say(&alice, "bob@localhost/phone", "now").await;
        assert_eq!(bodies(&bob), ["now"], "its own full JID still reaches it");
        bob.send("<presence><priority>0</priority></presence>").await;
        assert_eq!(bodies(&bob), ["later"]);
    });
}

#[test]
fn what_is_kept_depends_on_the_type() {
    let chat_state = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
    let hint = |name: &str| format!("<{name} xmlns='urn:xmpp:hints'/>");
    let cases = [
        ("<message><body>x</body></message>".to_owned(), Fate::Keep),
        ("<message type='normal'><x xmlns='jabber:x:conference'/></message>".to_owned(), Fate::Keep),
        ("<message type='unknown'><body>x</body></message>".to_owned(), Fate::Keep),
        ("<message type='chat'><body>x</body></message>".to_owned(), Fate::Keep),
        (format!("<message type='chat'>{chat_state}<body>x</body></message>"), Fate::Keep),
        (format!("<message type='chat'>{chat_state}</message>"), Fate::Forget),
        (format!("<message type='chat'><thread>t</thread>{chat_state}</message>"), Fate::Forget),
        (format!("<message type='chat'>{chat_state}{}</message>", hint("store")), Fate::Keep),
        (format!("<message type='chat'><body>x</body>{}</message>", hint("no-store")), Fate::Forget),
        (format!("<message><body>x</body>{}</message>", hint("no-store")), Fate::Forget),
        (format!("<message><body>x</body>{}</message>", hint("no-permanent-store")), Fate::Keep),
        (format!("<message type='headline'><body>x</body>{}</message>", hint("no-store")), Fate::Leave),
        ("<message type='groupchat'><body>x</body></message>".to_owned(), Fate::Leave),
        ("<message type='headline'><body>x</body></message>".to_owned(), Fate::Leave),
        ("<message type='error'><body>x</body></message>".to_owned(), Fate::Leave),
    ];
    for (xml, expected) in cases {
        assert_eq!(fate(&parse(&xml)), expected, "{xml}");
    }
}

#[test]
fn a_message_beyond_the_bound_comes_back_and_the_rest_is_kept() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.offline.messages_max = 2;
        let bench = bench_with(config);
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        for body in ["1", "2", "3"] {
            say(&alice, "bob@localhost", body).await;
        }
        let heard = alice.hears_stanzas();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].as_error().unwrap().condition, Condition::ServiceUnavailable);
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence/>").await;
        assert_eq!(bodies(&bob), ["1", "2"]);
    });
}

#[test]
fn bytes_are_bounded_too() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.offline.bytes_max = 1_000;
        let bench = bench_with(config);
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", &"x".repeat(600)).await;
        say(&alice, "bob@localhost", &"y".repeat(600)).await;
        say(&alice, "bob@localhost", "small").await;
        assert_eq!(alice.hears().len(), 1);
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 2);
    });
}

#[test]
fn a_message_to_no_account_is_not_kept() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "nobody@localhost", "hello").await;
        assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::ServiceUnavailable);
        assert_eq!(waiting(&bench, "nobody@localhost").await.1, 0);
    });
}

#[test]
fn many_messages_come_over_several_pages_in_order() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        let all: Vec<String> = (0..2 * PAGE + 7).map(|n| n.to_string()).collect();
        for body in &all {
            say(&alice, "bob@localhost", body).await;
        }
        let bob = bench.login("bob@localhost/phone").await;
        bob.send("<presence/>").await;
        assert_eq!(bodies(&bob), all);
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
    });
}

#[test]
fn what_another_living_session_has_claimed_is_left_to_it() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", "claimed").await;
        let account = BareJid::new("bob@localhost").unwrap();
        let desk = bench.login("bob@localhost/desk").await;
        let claim = Some(Claim { jid: "bob@localhost/desk".to_owned(), sid: desk.view().sid().0 });
        let put =
            |waiting: Option<Waiting>| waiting.map(|waiting| Waiting { claim: claim.clone(), ..waiting });
        bench.store().update(&partition(&account), key(0), put).await.unwrap();
        let phone = bench.login("bob@localhost/phone").await;
        phone.send("<presence/>").await;
        assert!(bodies(&phone).is_empty());
        // The session that claimed it dies before it got it.
        desk.close().await;
        phone.send("<presence type='unavailable'/>").await;
        phone.send("<presence/>").await;
        assert_eq!(bodies(&phone), ["claimed"]);
    });
}

#[test]
fn a_login_that_races_a_message_does_not_strand_it() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        let bob = bench.online("bob@localhost/phone").await;
        // This node believed the account absent, and learns better behind the barrier.
        let late = "<message type='chat' to='bob@localhost' from='alice@localhost/phone'><body>late</body></message>";
        let account = bob.view().account().clone();
        let mut passage = Passage::new(parse(late), bench.services()).with_account(account.clone());
        passage.offline = true;
        let offline = Offline::default();
        assert!(matches!(offline.arriving(&mut passage).await, Verdict::Pass));
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
        // The same one step later: stored, then taken back, unless the session has it already.
        let number = offline.store(&*bench.services(), &account, &passage.stanza).await.unwrap();
        assert!(take_back(&*bench.services(), &account, number).await.unwrap());
        assert!(!take_back(&*bench.services(), &account, number).await.unwrap());
        assert_eq!(waiting(&bench, "bob@localhost").await.0.messages, 0);
        assert!(alice.hears().is_empty());
    });
}

#[test]
fn a_store_that_fails_is_said_to_the_sender_and_nothing_is_lost_in_silence() {
    let error = store_failed(NAME, &StoreError::Full);
    assert_eq!((error.condition, error.kind), (Condition::ResourceConstraint, stanza::ErrorKind::Wait));
    let error = store_failed(NAME, &StoreError::Deadline);
    assert_eq!((error.condition, error.kind), (Condition::InternalServerError, stanza::ErrorKind::Wait));
}

#[test]
fn a_message_that_waits_twice_keeps_its_first_time() {
    block_on(async {
        let bench = bench();
        let account = BareJid::new("bob@localhost").unwrap();
        let once = stamped(&*bench.services(), &account, &parse("<message><body>x</body></message>"));
        bench.advance(Duration::from_secs(60));
        let twice = stamped(&*bench.services(), &account, &once);
        assert_eq!(hooks::bench::xml(&once), hooks::bench::xml(&twice));
    });
}

#[test]
fn what_a_session_claims_as_it_ends_is_looked_at_once_more() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        for body in ["one", "two"] {
            say(&alice, "bob@localhost", body).await;
        }
        let account = BareJid::new("bob@localhost").unwrap();
        let services = bench.services();
        let page = bench.store().scan_versioned(&partition(&account), Range::all()).await.unwrap();
        // A session of another node was faster with the first, and has ended since.
        let gone = Claim { jid: "bob@localhost/gone".to_owned(), sid: 1 };
        let change = |waiting: Option<Waiting>| {
            waiting.map(|waiting| Waiting { claim: Some(gone.clone()), ..waiting })
        };
        bench.store().update(&partition(&account), key(0), change).await.unwrap();
        let bob = bench.login("bob@localhost/phone").await;
        let claim = Claim { jid: "bob@localhost/phone".to_owned(), sid: bob.view().sid().0 };
        // Takes messages, and is not flushed by the bench.
        services.set_priority(bob.view(), Some(0)).await.unwrap();
        let handed =
            hand_over(&services, &Arc::default(), bob.view(), &claim, page, Claiming::Whole).await.unwrap();
        assert_eq!((handed, bodies(&bob)), (Flushed::Part, vec![]), "nothing before what is older");
        flush(&services, &Arc::default(), bob.view()).await.unwrap();
        assert_eq!(bodies(&bob), ["one", "two"]);
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
    });
}

/// Bob logs in and becomes available.
async fn comes(bench: &Bench, node: usize, resource: &str) -> Client {
    let client = bench.login_at(node, &format!("bob@localhost/{resource}")).await;
    client.send("<presence/>").await;
    client
}

async fn come_back(unread: Vec<Arc<dyn hooks::Kept>>) {
    assert!(!unread.is_empty());
    for kept in unread {
        kept.returned().await;
    }
}

#[test]
fn a_message_that_its_client_has_not_read_outlives_the_node_of_that_client() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        bench.account("bob@localhost");
        let alice = bench.online_at(0, "alice@localhost/phone").await;
        for body in ["one", "two"] {
            say(&alice, "bob@localhost", body).await;
        }
        bench.stop_reading();
        let before = comes(&bench, 1, "phone").await;
        assert_eq!(bodies(&before), ["one", "two"]);
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 2, "nobody knows that the client has them");
        // Not twice to one session.
        before.send("<presence><priority>-1</priority></presence>").await;
        before.send("<presence/>").await;
        assert!(bodies(&before).is_empty());
        bench.kill(1).await;
        let after = comes(&bench, 0, "phone").await;
        assert_eq!(bodies(&after), ["one", "two"]);
    });
}

#[test]
fn what_comes_back_unread_goes_to_another_session_or_waits_again() {
    block_on(async {
        let bench = bench();
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", "one").await;
        bench.stop_reading();
        let phone = comes(&bench, 0, "phone").await;
        assert_eq!(bodies(&phone), ["one"]);
        let desk = comes(&bench, 0, "desk").await;
        assert!(bodies(&desk).is_empty(), "it is on its way to the other one");
        phone.close().await;
        come_back(bench.unread()).await;
        assert_eq!(bodies(&desk), ["one"]);
        assert_eq!(waiting(&bench, "bob@localhost").await, (Queue { next: 1, messages: 0, bytes: 0 }, 0));
        desk.close().await;

        say(&alice, "bob@localhost", "two").await;
        bench.stop_reading();
        let phone = comes(&bench, 0, "phone").await;
        assert_eq!(bodies(&phone), ["two"]);
        phone.close().await;
        come_back(bench.unread()).await;
        let (queue, messages) = waiting(&bench, "bob@localhost").await;
        assert_eq!((queue.messages, messages), (1, 1));
        let desk = comes(&bench, 0, "desk").await;
        assert_eq!(bodies(&desk), ["two"]);
        assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
    });
}

#[test]
fn what_a_successor_has_claimed_does_not_come_from_its_predecessor_too() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        bench.account("bob@localhost");
        let alice = bench.online("alice@localhost/phone").await;
        say(&alice, "bob@localhost", "one").await;
        bench.stop_reading();
        let before = comes(&bench, 0, "phone").await;
        let unread = bench.unread();
        before.close().await;
        let after = comes(&bench, 1, "phone").await;
        assert_eq!(bodies(&after), ["one"]);
        come_back(unread).await;
        assert!(bodies(&after).is_empty());
    });
}

/// A store whose next change of a message is made, or not, and fails either way.
#[derive(Default)]
struct Unsure {
    engine: Memory,
    next: Mutex<Option<Fails>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fails {
    Before,
    Behind,
}

impl Engine for Unsure {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        self.engine.get(partition, table, key, deadline)
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Vec<u8>, Record)>, StoreError>> {
        self.engine.scan(partition, table, range, deadline)
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        let is_of_message = |op: &Op| match op {
            Op::Put { table, .. } | Op::Delete { table, .. } => *table == Waiting::TABLE,
            _ => false,
        };
        let concerned = batches.iter().flat_map(|batch| batch.ops.iter()).any(is_of_message);
        let fails = if concerned { self.next.lock().take() } else { None };
        Box::pin(async move {
            if fails == Some(Fails::Before) {
                return Err(StoreError::Deadline);
            }
            let committed = self.engine.commit(batches, deadline).await;
            if fails.is_some() { Err(StoreError::Deadline) } else { committed }
        })
    }
}

fn unsure() -> (Bench, Arc<Unsure>) {
    let engine = Arc::new(Unsure::default());
    let store = store::Store::new(engine.clone());
    let bench = Bench::over(store, 1, &["localhost"], || modules(&ModulesConfig::default()));
    bench.account("bob@localhost");
    (bench, engine)
}

#[test]
fn a_login_during_which_the_store_fails_gets_what_waits_a_while_later() {
    for fails in [Fails::Before, Fails::Behind] {
        block_on(async {
            let (bench, engine) = unsure();
            let alice = bench.online("alice@localhost/phone").await;
            say(&alice, "bob@localhost", "one").await;
            // What wakes clients that are away is not what this is about.
            bench.wait().await;
            *engine.next.lock() = Some(fails);
            let bob = comes(&bench, 0, "phone").await;
            assert!(bodies(&bob).is_empty(), "nobody knows whether it is claimed");
            assert_eq!(bench.wait().await, 1);
            assert_eq!(bodies(&bob), ["one"]);
            assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
        });
    }
}

#[test]
fn a_message_that_came_back_while_the_store_fails_is_not_lost() {
    for (fails, stays) in [Fails::Before, Fails::Behind].into_iter().flat_map(|f| [(f, true), (f, false)]) {
        block_on(async {
            let (bench, engine) = unsure();
            let alice = bench.online("alice@localhost/phone").await;
            say(&alice, "bob@localhost", "one").await;
            bench.stop_reading();
            let phone = comes(&bench, 0, "phone").await;
            let desk = comes(&bench, 0, "desk").await;
            phone.close().await;
            let mut there = Some(desk);
            if !stays {
                there.take().unwrap().close().await;
            }
            *engine.next.lock() = Some(fails);
            come_back(bench.unread()).await;
            while bench.wait().await > 0 {}
            let desk = match there {
                Some(desk) => desk,
                None => comes(&bench, 0, "desk").await,
            };
            assert_eq!(bodies(&desk), ["one"]);
            assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
        });
    }
}

#[test]
fn what_a_client_has_does_not_come_again_where_the_store_failed_to_remove_it() {
    for fails in [Fails::Before, Fails::Behind] {
        block_on(async {
            let (bench, engine) = unsure();
            let alice = bench.online("alice@localhost/phone").await;
            say(&alice, "bob@localhost", "one").await;
            bench.stop_reading();
            let bob = comes(&bench, 0, "phone").await;
            assert_eq!(bodies(&bob), ["one"]);
            *engine.next.lock() = Some(fails);
            for kept in bench.unread() {
                kept.written().await;
            }
            bob.send("<presence><priority>-1</priority></presence>").await;
            bob.send("<presence/>").await;
            assert!(bodies(&bob).is_empty());
            while bench.wait().await > 0 {}
            assert_eq!(waiting(&bench, "bob@localhost").await.1, 0);
        });
    }
}

#[test]
fn who_is_bound_with_the_login_reads_in_the_archive_what_is_there() {
    block_on(async {
        for (is_archived, left) in [(true, vec!["fleeting"]), (false, vec!["one", "fleeting", "two"])] {
            let mut config = ModulesConfig::default();
            config.set("archive", "enabled", &is_archived.to_string().parse().unwrap()).unwrap();
            let bench = bench_with(config);
            bench.account("bob@localhost");
            let alice = bench.login("alice@localhost/phone").await;
            say(&alice, "bob@localhost", "one").await;
            let hint = "<no-permanent-store xmlns='urn:xmpp:hints'/>";
            alice.send(&format!("<message to='bob@localhost'><body>fleeting</body>{hint}</message>")).await;
            say(&alice, "bob@localhost", "two").await;
            let bob = bench.login("bob@localhost/desk").await;
            bench.registry().bind(bob.view(), &[], &bench.services()).await;
            let (queue, waits) = waiting(&bench, "bob@localhost").await;
            assert_eq!((queue.messages, waits), (left.len() as u64, left.len()));
            bob.send("<presence/>").await;
            assert_eq!(bodies(&bob), left);
        }
    });
}

//! The life and the end of a bound session over real sockets, whatever ends it.

use std::time::Duration;

use crate::client::Client;
use crate::house::{House, PASSWORD, jid};
use jid::FullJid;
use session::Door;
use stanza::{Condition, ErrorKind};
use stream::StreamEvent;
use stream::client::LoginError;
use tokio::sync::oneshot;

fn message(to: &str, id: &str) -> String {
    format!("<message to='{to}' id='{id}' type='chat'><body>hi</body></message>")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_arrives_with_the_true_sender() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "1")).await;
    let heard = bob.hears().await;
    assert_eq!(heard.head.from, Some(jid("alice@localhost/phone")));
    assert_eq!(heard.head.id.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_of_the_same_address_displaces_the_first() {
    let house = House::new().await;
    let mut first = Client::login(&house, "alice", "phone").await;
    let mut second = Client::login(&house, "alice", "phone").await;
    first.is_told("conflict").await;
    house.until("one session is left", |house| house.listeners.session_count() == 1).await;
    assert_eq!(house.town.bound(), ["alice@localhost/phone"]);
    second.send(&message("alice@localhost/phone", "to-myself")).await;
    assert_eq!(second.hears().await.head.id.as_deref(), Some("to-myself"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_resource_is_refused_where_that_is_the_policy() {
    let house =
        House::with(|config| config.c2s.resource_conflict = session::ResourceConflict::Refuse, |_| {}).await;
    let _first = Client::login(&house, "alice", "phone").await;
    let (_, second) = Client::try_login(&house, Door::DirectTls, "alice", "phone", PASSWORD, None).await;
    let Err(LoginError::Bind(error)) = second else { panic!("bound: {second:?}") };
    assert_eq!((error.condition, error.kind), (Condition::Conflict, ErrorKind::Modify));
    assert_eq!(house.town.bound(), ["alice@localhost/phone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_its_session_and_nothing_else() {
    let house = House::new().await;
    let mut watcher = Client::login(&house, "watcher", "desk").await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "panic")).await;
    alice.is_told("internal-server-error").await;
    let gone = watcher.hears().await;
    assert_eq!(gone.head.from, Some(jid("alice@localhost/phone")));
    assert_eq!(gone.head.type_.as_deref(), Some("unavailable"));
    house.until("its route is gone", |house| house.town.bound().len() == 2).await;
    assert_eq!(house.town.bound(), ["bob@localhost/desk", "watcher@localhost/desk"]);
    bob.send(&message("watcher@localhost/desk", "still-here")).await;
    assert_eq!(watcher.hears().await.head.id.as_deref(), Some("still-here"));
    assert_eq!(house.listeners.counters().panics.value(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_that_breaks_a_delivering_handler_goes_back_to_its_sender() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "poison")).await;
    bob.is_told("internal-server-error").await;
    let bounced = alice.hears().await;
    assert_eq!(bounced.as_error().unwrap().condition, Condition::InternalServerError);
    assert_eq!(bounced.head.id.as_deref(), Some("poison"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_waits_delays_nothing_that_comes_in() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "wait")).await;
    alice.send(&message("bob@localhost/desk", "behind")).await;
    bob.send(&message("alice@localhost/phone", "meanwhile")).await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("meanwhile"));
    house.trouble.gate.notify_one();
    assert_eq!(bob.hears().await.head.id.as_deref(), Some("wait"));
    assert_eq!(bob.hears().await.head.id.as_deref(), Some("behind"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stanza_at_hand_is_finished_although_its_session_ends() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    alice.send(&message("bob@localhost/desk", "wait")).await;
    alice.send(&message("bob@localhost/desk", "behind")).await;
    house.until("both were read", |house| house.listeners.counters().messages_in.value() >= 1).await;
    house.listeners.kick(&FullJid::new("alice@localhost/phone").unwrap());
    house.trouble.gate.notify_one();
    assert_eq!(bob.hears().await.head.id.as_deref(), Some("wait"));
    alice.is_told("policy-violation").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stanza_is_answered_and_the_stream_lives() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    for (xml, condition) in [
        (message("bob@localhost", "refuse"), Condition::NotAllowed),
        (message("@@@", "bad-address"), Condition::JidMalformed),
        ("<iq type='get' to='localhost' id='none'/>".to_owned(), Condition::BadRequest),
        ("<presence type='here' id='p'/>".to_owned(), Condition::BadRequest),
    ] {
        alice.send(&xml).await;
        let answer = alice.hears().await;
        assert_eq!(answer.as_error().unwrap().condition, condition, "{xml}");
        assert_eq!(answer.head.to, Some(jid("alice@localhost/phone")), "{xml}");
    }
    alice.send("<iq type='get' to='localhost'><q xmlns='x'/></iq>").await;
    // RFC 6120, 8.3.1: an answer has an id, also to what had none.
    let answer = alice.hears().await;
    assert_eq!(answer.as_error().unwrap().condition, Condition::BadRequest);
    assert_eq!(answer.head.id.as_deref(), Some(""));
    assert_eq!(house.listeners.counters().bad_stanzas.value(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_sender_ends_the_stream() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    alice.send("<message from='bob@localhost' to='bob@localhost'><body>I am Bob</body></message>").await;
    alice.is_told("invalid-from").await;
    let errors = house.listeners.counters().stream_errors();
    assert_eq!(errors, [("invalid-from", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_stream_is_closed_both_ways_and_flushed() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    alice.send("  \n  ").await;
    alice.send(&message("alice@localhost/phone", "last")).await;
    alice.send("</stream:stream><message/>").await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("last"));
    assert!(matches!(alice.event().await, Some(StreamEvent::Close)));
    assert!(alice.event().await.is_none());
    house.until("its end is told", |house| !house.trouble.ended.lock().is_empty()).await;
    assert_eq!(*house.trouble.ended.lock(), [("alice@localhost/phone".to_owned(), true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_socket_is_an_end_too() {
    let house = House::new().await;
    let alice = Client::login(&house, "alice", "phone").await;
    drop(alice);
    house.until("its end is told", |house| !house.trouble.ended.lock().is_empty()).await;
    assert_eq!(*house.trouble.ended.lock(), [("alice@localhost/phone".to_owned(), false)]);
    assert!(house.town.bound().is_empty() && house.listeners.session_count() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_ends_a_session_wherever_it_is() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    house.town.kick(&FullJid::new("alice@localhost/phone").unwrap());
    alice.is_told("policy-violation").await;
    assert!(!house.listeners.kick(&FullJid::new("bob@localhost/desk").unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_without_the_lease_and_nothing_is_lost() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    house.town.serve(false);
    alice.send(&message("bob@localhost/desk", "held")).await;
    let early = tokio::time::timeout(Duration::from_millis(300), bob.event()).await;
    assert!(early.is_err(), "delivered without the lease");
    house.town.serve(true);
    assert_eq!(bob.hears().await.head.id.as_deref(), Some("held"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_twice_serves_though_the_first_answer_is_the_last() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let (answer, late) = oneshot::channel();
    *house.town.late.lock() = Some(late);
    house.town.serve(false);
    house.town.serve_anew();
    house.until("its sessions are asked for", |house| house.town.late.lock().is_none()).await;
    house.town.serve(false);
    house.town.serve_anew();
    alice.send(&message("alice@localhost/phone", "back")).await;
    assert_eq!(alice.hears().await.head.id.as_deref(), Some("back"));
    // Of the incarnation before.
    answer.send(()).unwrap();
    for n in 0..50 {
        alice.send(&message("alice@localhost/phone", &n.to_string())).await;
        assert_eq!(alice.hears().await.head.id.as_deref(), Some(&*n.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_is_fenced_for_too_long_are_sent_away() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut bob = Client::login(&house, "bob", "desk").await;
    house.town.fence(Duration::from_millis(50));
    alice.send(&message("bob@localhost/desk", "late")).await;
    alice.is_told("system-shutdown").await;
    bob.is_told("system-shutdown").await;
    house.until("nobody is here", |house| house.listeners.session_count() == 0).await;
    house.town.serve(true);
    let mut again = Client::login(&house, "bob", "desk").await;
    again.send(&message("bob@localhost/desk", "here")).await;
    assert_eq!(again.hears().await.head.id.as_deref(), Some("here"), "nothing of before is carried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_let_go_and_its_sender_is_not_held_up() {
    let house = House::with(|_| {}, |route| route.mailbox_bytes = 64 * 1024).await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let bob = Client::login(&house, "bob", "desk").await;
    let body = "x".repeat(8 * 1024);
    // Far more than the kernel's buffers and the mailbox hold together.
    for n in 0..4_000 {
        let bob = "bob@localhost/desk";
        alice
            .send(&format!("<message to='{bob}' id='{n}' type='headline'><body>{body}</body></message>"))
            .await;
        if house.town.bound() == ["alice@localhost/phone"] {
            break;
        }
    }
    house.until("the slow one is gone", |house| house.town.bound() == ["alice@localhost/phone"]).await;
    alice.send(&message("alice@localhost/phone", "fine")).await;
    while alice.hears().await.head.id.as_deref() != Some("fine") {}
    drop(bob);
    house.until("its socket is given back", |house| house.listeners.connections() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_as_soon_as_a_session_can_be_seen_reaches_it() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let telling = house.town.telling.write().await;
    let bob = Client::login(&house, "bob", "laptop");
    let seen = async {
        house.until("bob is seen", |house| house.town.bound().len() == 2).await;
        for id in ["1", "2"] {
            alice.send(&message("bob@localhost/laptop", id)).await;
        }
        // Answered behind both.
        alice.send(&message("alice@localhost/phone", "3")).await;
        assert_eq!(alice.hears().await.head.id.as_deref(), Some("3"));
        drop(telling);
    };
    let (mut bob, ()) = tokio::join!(bob, seen);
    for id in ["1", "2"] {
        assert_eq!(bob.hears().await.head.id.as_deref(), Some(id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_so_to_everybody() {
    let house = House::new().await;
    let mut alice = Client::login(&house, "alice", "phone").await;
    let mut half = Client::connect(&house, Door::StartTls).await;
    // Its features are heard first: a socket that is closed with bytes unread is reset, and what was said is lost.
    half.send("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' ").await;
    half.send("to='localhost' version='1.0'>").await;
    while !matches!(half.event().await, Some(StreamEvent::Element(_))) {}
    house.until("both are here", |house| house.listeners.connections() == 2).await;
    let told = async {
        alice.is_told("system-shutdown").await;
        half.is_told("system-shutdown").await;
    };
    tokio::join!(house.listeners.stop(), told);
    assert!(house.town.bound().is_empty());
    assert!(tokio::net::TcpStream::connect(house.address(Door::StartTls)).await.is_err());
}

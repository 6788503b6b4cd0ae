//! Ten thousand numbered messages while a node is killed: each is delivered once and in order, stored, or bounced.
//!
//! What counts as accepted: everything that a sender on a living node sent, shown by a ping to the server that is
//! answered behind it; of a sender on the killed node, which had no stream management, what is in front of a mark
//! for the receiver that was answered. What the dying node had passed on beyond that may arrive, but once.
//!
//! A receiver that dies with its node may have read a message that the node did not get to report as written: it
//! is carried again, with the same id, and counted apart. Nobody else may see a message twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, Heard, Mouth},
    nodes::{Layout, Nodes},
    people::{Person, mark, ping},
    xml::{CLIENT, Node},
};
use tokio::{
    sync::{Mutex, Notify},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

const USERS: usize = 20;
/// Each user writes to as many others.
const PEERS: usize = 5;
/// So many messages each.
const ROUNDS: usize = 100;
const ALL: usize = USERS * PEERS * ROUNDS;
/// The node is killed when so many were heard.
const KILL_AT: usize = ALL * 3 / 10;
const VICTIM: usize = 2;
const MARK: &str = "urn:example:mark";
const PATIENCE: Duration = Duration::from_secs(120);
/// How long what waits for somebody may take to be heard once they are back; what was stored behind their login
/// is looked for by another login then.
const SOON: Duration = Duration::from_secs(30);

/// One message: who to whom, which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Number {
    from: usize,
    to: usize,
    round: usize,
}

impl Number {
    fn id(self) -> String {
        format!("n-{}-{}-{}", self.from, self.to, self.round)
    }

    fn of(id: &str) -> Option<Number> {
        let mut parts = id.strip_prefix("n-")?.split('-').map(|p| p.parse::<usize>().ok());
        Some(Number { from: parts.next()??, to: parts.next()??, round: parts.next()?? })
    }
}

/// What came to pass, as the clients saw it.
#[derive(Default)]
struct Ledger {
    /// By receiver and stream, in the order heard.
    heard: BTreeMap<(usize, Stream), Vec<Number>>,
    /// Bounced to their senders.
    bounced: Vec<Number>,
    /// Pings that were answered, by id.
    answered: BTreeSet<String>,
    /// The last round of a pair whose ping to the receiver was answered.
    reached: BTreeMap<(usize, usize), usize>,
    /// Anything that should not be: a wrong body, an answer that is an error.
    odd: Vec<String>,
}

/// So many rounds are said at first, 40 where `ROOKERY_ROUNDS_BEFORE` says nothing; the others are said as the node
/// is killed, so that many are on their way then.
fn rounds_before() -> usize {
    let asked = env::var("ROOKERY_ROUNDS_BEFORE").ok().and_then(|rounds| rounds.parse().ok());
    asked.unwrap_or(40).min(ROUNDS)
}

/// Whether a receiver heard it on its first stream, on the one after its node was killed, or on a third one that
/// asks for what was stored behind the second one's login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stream {
    First,
    Again,
    Stored,
}

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    news: Notify,
}

impl Shared {
    async fn until(&self, what: &str, wanted: impl Fn(&Ledger) -> bool) {
        if !self.within(PATIENCE, wanted).await {
            // What is missing is said by the count; waiting longer does not change it.
            self.ledger.lock().await.odd.push(format!("{what}: not within {PATIENCE:?}"));
        }
    }

    /// Whether it came to be in time.
    async fn within(&self, time: Duration, wanted: impl Fn(&Ledger) -> bool) -> bool {
        let end = Instant::now() + time;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Enabled before the look, so that no news between the two is missed.
            news.as_mut().enable();
            if wanted(&*self.ledger.lock().await) {
                return true;
            }
            if timeout_at(end, news).await.is_err() {
                return false;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_accepted_message_is_delivered_once_in_order_or_stored_or_bounced() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    let result = run(&mut nodes).await;
    if result.is_err() {
        nodes.keep();
    }
    result
}

async fn run(nodes: &mut Nodes) -> Result<()> {
    let shared = Arc::new(Shared::default());
    let mut people = Vec::new();
    for n in 0..USERS {
        people.push(Person::with_account(nodes, &format!("user{n}")).await?);
    }
    let mut mouths = Vec::new();
    let mut ears = Vec::new();
    for (n, person) in people.iter().enumerate() {
        let (mouth, ear) = person.come_online(nodes.door(home(n)), "only").await?.split()?;
        ears.push(listen(n, Stream::First, ear, mouth.clone(), shared.clone()));
        mouths.push(mouth);
    }
    for (n, mouth) in mouths.iter().enumerate() {
        speak(n, mouth, &people, 0..rounds_before());
    }
    shared.until("the moment of the kill", |l| total(l) >= KILL_AT).await;
    for (n, mouth) in mouths.iter().enumerate() {
        speak(n, mouth, &people, rounds_before()..ROUNDS);
    }
    nodes.kill(VICTIM).await?;
    println!("killed after {} messages were heard", total(&*shared.ledger.lock().await));

    // Everything that the living said was read by their nodes, and reached whoever is alive.
    for n in (0..USERS).filter(|n| !doomed(*n)) {
        mouths[n].say(ping("localhost", &format!("all-read-{n}")));
    }
    let asked: Vec<String> = (0..USERS).filter(|n| !doomed(*n)).map(|n| format!("all-read-{n}")).collect();
    shared.until("every living sender to be read", |l| asked.iter().all(|id| l.answered.contains(id))).await;
    let victim = nodes.nodes[VICTIM].name.clone();
    for at in (0..nodes.nodes.len()).filter(|n| *n != VICTIM) {
        let gone = |s: &proto::admin::GetClusterResponse| {
            s.nodes.iter().all(|n| n.name != victim || n.state == "gone")
        };
        nodes.until(at, "the killed node leaves the table", Duration::from_secs(30), gone).await?;
    }
    // Who lost the node logs in elsewhere and finds what waited.
    for n in (0..USERS).filter(|n| doomed(*n)) {
        let (mouth, ear) = people[n].come_online(nodes.door(n / 3 % 2), "only").await?.split()?;
        ears.push(listen(n, Stream::Again, ear, mouth.clone(), shared.clone()));
        mouths[n] = mouth;
    }
    if !shared.within(SOON, |l| missing(l).is_empty()).await {
        let stored = missing(&*shared.ledger.lock().await);
        println!("not heard within {SOON:?}, looked for in the store: {stored:?}");
        for n in (0..USERS).filter(|n| doomed(*n)) {
            // The account's other session goes on: whatever is in the store is for the one that comes.
            let (mouth, ear) = people[n].come_online(nodes.door(n / 3 % 2), "third").await?.split()?;
            ears.push(listen(n, Stream::Stored, ear, mouth, shared.clone()));
        }
    }
    shared.until("every message to be accounted for", |l| missing(l).is_empty()).await;
    // Nothing more is underway: a ping from everybody to everybody they wrote to comes behind it.
    let mut last = Vec::new();
    for (n, mouth) in mouths.iter().enumerate() {
        for peer in peers(n) {
            let id = format!("last-{n}-{peer}");
            mouth.say(mark(&format!("{}/only", people[peer].bare()), &id));
            last.push(id);
        }
    }
    shared.until("the last pings", |l| last.iter().all(|id| l.answered.contains(id))).await;
    ears.iter().for_each(JoinHandle::abort);
    judge(&*shared.ledger.lock().await)
}

/// Says so many rounds at once; the server reads as fast as it can.
fn speak(me: usize, mouth: &Mouth, people: &[Person], rounds: Range<usize>) {
    for round in rounds {
        for peer in peers(me) {
            let id = Number { from: me, to: peer, round }.id();
            let to = people[peer].bare();
            mouth.say(format!("<message to='{to}' type='chat' id='{id}'><body>{id}</body></message>"));
            if doomed(me) {
                mouth.say(mark(&format!("{to}/only"), &format!("f-{me}-{peer}-{round}")));
            }
        }
    }
}

/// Hears until the stream ends, answers pings, writes everything down.
fn listen(me: usize, stream: Stream, mut ear: Client, mouth: Mouth, shared: Arc<Shared>) -> JoinHandle<()> {
    tokio::spawn(async move {
        // What waited for a user may come before their own presence does.
        for node in ear.take_kept() {
            hear(me, stream, &node, &mouth, &shared).await;
        }
        while let Ok(Heard::Element(node)) = ear.next_raw(Instant::now() + PATIENCE * 2).await {
            hear(me, stream, &node, &mouth, &shared).await;
        }
    })
}

async fn hear(me: usize, stream: Stream, node: &Node, mouth: &Mouth, shared: &Shared) {
    if let Some(answer) = answer(node) {
        return mouth.say(answer);
    }
    note(&mut *shared.ledger.lock().await, me, stream, node);
    shared.news.notify_waiters();
}

fn note(ledger: &mut Ledger, me: usize, stream: Stream, node: &Node) {
    let id = node.attr("id").unwrap_or_default();
    match (node.name.as_str(), node.attr("type"), Number::of(id)) {
        ("message", Some("error"), Some(number)) if number.from == me => ledger.bounced.push(number),
        ("message", Some("chat"), Some(number)) if number.to == me => {
            if node.child("body", CLIENT).map(Node::text).as_deref() != Some(id) {
                ledger.odd.push(format!("the body changed: {}", node.pretty().join(" ")));
            }
            ledger.heard.entry((me, stream)).or_default().push(number);
        }
        // A mark for someone who is gone comes back as an error: it is no evidence. At the end nobody is gone.
        ("message", Some("error"), None) if id.starts_with("f-") => {}
        ("iq", Some("result"), None) | ("message", Some("headline"), None) => {
            match id.strip_prefix("f").and_then(|rest| Number::of(&format!("n{rest}"))) {
                Some(n) => {
                    let last = ledger.reached.entry((n.from, n.to)).or_default();
                    *last = n.round.max(*last);
                }
                None => drop(ledger.answered.insert(id.to_owned())),
            }
        }
        ("presence", _, _) => {}
        _ => ledger.odd.push(format!("user {me} heard {}", node.pretty().join(" "))),
    }
}

fn answer(node: &Node) -> Option<String> {
    let ask = node.attr("type") == Some("headline") && node.child("mark", MARK).is_some();
    let (from, id) = (node.attr("from")?, node.attr("id")?);
    ask.then(|| format!("<message type='headline' to='{from}' id='{id}'><marked xmlns='{MARK}'/></message>"))
}

fn home(user: usize) -> usize {
    user % 3
}

fn doomed(user: usize) -> bool {
    home(user) == VICTIM
}

/// Some on the same node, most on others.
fn peers(user: usize) -> [usize; PEERS] {
    [1, 3, 7, 10, 14].map(|step| (user + step) % USERS)
}

fn total(ledger: &Ledger) -> usize {
    ledger.heard.values().map(Vec::len).sum()
}

/// Whether somebody answers for this message: its sender's node lived on, or a ping behind it was answered.
fn accepted(ledger: &Ledger, number: Number) -> bool {
    let Number { from, to, round } = number;
    !doomed(from) || ledger.reached.get(&(from, to)).is_some_and(|last| *last >= round)
}

fn everything() -> impl Iterator<Item = Number> {
    let pairs = (0..USERS).flat_map(|from| peers(from).map(|to| (from, to)));
    pairs.flat_map(|(from, to)| (0..ROUNDS).map(move |round| Number { from, to, round }))
}

/// How often each message was heard or bounced.
fn counts(ledger: &Ledger) -> BTreeMap<Number, usize> {
    let mut counts = BTreeMap::new();
    for number in ledger.heard.values().flatten().chain(&ledger.bounced) {
        *counts.entry(*number).or_default() += 1;
    }
    counts
}

fn missing(ledger: &Ledger) -> Vec<Number> {
    let counts = counts(ledger);
    everything().filter(|n| accepted(ledger, *n) && !counts.contains_key(n)).collect()
}

fn judge(ledger: &Ledger) -> Result<()> {
    let counts = counts(ledger);
    let missing = missing(ledger);
    let (mut again, mut twice) = (0, Vec::new());
    for (number, count) in counts.iter().filter(|(_, count)| **count > 1) {
        if doomed(number.to) { again += count - 1 } else { twice.push(*number) }
    }
    let mut disorder = Vec::new();
    for ((to, stream), heard) in &ledger.heard {
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        for number in heard {
            if last.insert(number.from, number.round).is_some_and(|before| before >= number.round) {
                disorder.push(format!("{number:?} to user {to} on the {stream:?} stream"));
            }
        }
    }
    let on = |stream: Stream| {
        ledger.heard.iter().filter(|((_, s), _)| *s == stream).map(|(_, h)| h.len()).sum::<usize>()
    };
    let unaccepted = everything().filter(|n| !accepted(ledger, *n)).count();
    println!(
        "{ALL} numbered, {unaccepted} not known to be accepted; {} heard live, {} after the login elsewhere, {} \
         stored until another login, {} bounced, {again} heard again by receivers of the killed node",
        on(Stream::First),
        on(Stream::Again),
        on(Stream::Stored),
        ledger.bounced.len(),
    );
    // Else the kill came when all was over, and nothing was shown.
    let underway = rounds_before() == ROUNDS || on(Stream::Again) > 0;
    ensure!(underway, "no message was on its way to a receiver of the killed node");
    let some = |list: &[Number]| list.iter().take(10).map(|n| n.id()).collect::<Vec<_>>().join(" ");
    ensure!(missing.is_empty(), "{} accepted messages are lost: {}", missing.len(), some(&missing));
    ensure!(ledger.odd.is_empty(), "not as it should be: {:#?}", &ledger.odd[..ledger.odd.len().min(5)]);
    ensure!(twice.is_empty(), "{} messages came twice: {}", twice.len(), some(&twice));
    ensure!(disorder.is_empty(), "{} out of order: {:?}", disorder.len(), &disorder[..disorder.len().min(5)]);
    counts
        .keys()
        .find(|n| n.round >= ROUNDS)
        .map_or(Ok(()), |n| Err(anyhow::anyhow!("{n:?} was never said")))
        .context("a number that does not exist")
}

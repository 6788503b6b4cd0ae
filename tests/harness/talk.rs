//! A crowd of clients that chat and come back by themselves whatever happens to their nodes, with an account of it all.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::{ListSessionsRequest, admin_client::AdminClient};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};

use crate::{
    account::{Book, Figures},
    client::{Client, Door, Heard, Mouth},
    nodes::Nodes,
    people::{Person, befriend, ping},
    xml::{Node, STREAM},
};

/// How long a client tries to log in at one node.
const LOGIN: Duration = Duration::from_secs(8);
/// How long a client waits between two attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// How long all may take to be well again behind the last fault.
const HEALED: Duration = Duration::from_secs(60);
/// How long what was kept may take to be heard, before another login asks for it.
const SOON: Duration = Duration::from_secs(15);
/// Who says something more often than that does not ask each time whether it was read.
const OFTEN: Duration = Duration::from_millis(50);
/// The resource of each client.
pub const RESOURCE: &str = "only";

/// The crowd; its clients end with this value.
pub struct Talk {
    pub people: Vec<Person>,
    shared: Arc<Shared>,
    lives: Vec<JoinHandle<()>>,
}

struct Shared {
    book: Mutex<Book>,
    news: Notify,
    talking: AtomicBool,
    /// Nodes for clients, and their doors.
    doors: Vec<(usize, Door)>,
    pace: Duration,
    addresses: Vec<String>,
    /// From when on everybody says something to everybody for the last time.
    last: watch::Sender<bool>,
    /// How often all were sent home.
    homeward: watch::Sender<usize>,
    /// Stream and number of what each said last.
    lasts: Mutex<Vec<Option<(usize, usize)>>>,
}

impl Talk {
    /// Everybody has an account, is a contact of the next one, is online at their node, and says something to one other
    /// each time that `pace` has passed.
    pub async fn begin(nodes: &Nodes, homes: &[usize], pace: Duration) -> Result<Talk> {
        let begun = Instant::now();
        let mut people = Vec::new();
        for n in 0..homes.len() {
            people.push(Person::with_account(nodes, &format!("user{n}")).await?);
        }
        let doors: Vec<(usize, Door)> =
            nodes.nodes.iter().enumerate().filter_map(|(at, n)| Some((at, n.door?))).collect();
        for (a, b) in ring(people.len()) {
            befriend(doors[0].1, &people[a], &people[b]).await?;
        }
        let shared = Arc::new(Shared {
            book: Mutex::default(),
            news: Notify::new(),
            talking: AtomicBool::new(false),
            doors,
            pace,
            addresses: people.iter().map(Person::bare).collect(),
            last: watch::channel(false).0,
            homeward: watch::channel(0).0,
            lasts: Mutex::new(vec![None; people.len()]),
        });
        let mut talk = Talk { people, shared, lives: Vec::new() };
        for (me, home) in homes.iter().enumerate() {
            let life = live(me, *home, talk.people[me].clone(), talk.shared.clone());
            talk.lives.push(tokio::spawn(life));
        }
        let unseen = |book: &Book| -> Vec<(usize, usize)> {
            let both = ring(homes.len()).into_iter().flat_map(|(a, b)| [(a, b), (b, a)]);
            both.filter(|(viewer, about)| book.told_since(*viewer, *about, begun).last() != Some(&true))
                .collect()
        };
        if !talk.shared.within(HEALED, |book| unseen(book).is_empty()).await {
            let book = talk.book();
            let there: Vec<_> = (0..homes.len()).map(|me| book.current(me)).collect();
            bail!("not everybody sees their contacts: missing {:?}, streams {there:?}", unseen(&book));
        }
        talk.shared.talking.store(true, Ordering::Relaxed);
        Ok(talk)
    }

    /// Whoever is at another node than their own closes the stream and logs in there.
    pub async fn go_home(&self, homes: &[usize]) -> Result<()> {
        self.shared.homeward.send_modify(|times| *times += 1);
        self.until("everybody is at home", HEALED, |book| {
            homes.iter().enumerate().all(|(me, home)| book.current(me).is_some_and(|(_, node)| node == *home))
        })
        .await
    }

    /// What happened so far.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    /// Who is a contact of whom.
    pub fn contacts(&self) -> Vec<(usize, usize)> {
        ring(self.people.len())
    }

    /// Waits until something has come to pass.
    pub async fn until(&self, what: &str, bound: Duration, wanted: impl Fn(&Book) -> bool) -> Result<()> {
        ensure!(self.shared.within(bound, |book| wanted(book)).await, "{what}: not within {bound:?}");
        Ok(())
    }

    /// Waits until so many more messages were heard by users of other nodes than this one.
    pub async fn until_heard_elsewhere(&self, node: usize, count: usize) -> Result<()> {
        let since = Instant::now();
        let what = format!("{count} messages are heard at other nodes than {node}");
        self.until(&what, HEALED, |book| book.heard_since(node, since).1 >= count).await
    }

    /// The same for users of this node.
    pub async fn until_heard_at(&self, node: usize, count: usize) -> Result<()> {
        let since = Instant::now();
        let what = format!("{count} messages are heard at node {node}");
        self.until(&what, HEALED, |book| book.heard_since(node, since).0 >= count).await
    }

    /// Ends the talk: everybody says a last word to everybody, and all is added up. The table of every node that runs
    /// names the sessions that there are, and no others.
    pub async fn settle(&self, nodes: &Nodes) -> Result<Figures> {
        self.shared.talking.store(false, Ordering::Relaxed);
        self.shared.last.send_replace(true);
        let count = self.people.len();
        let there = self.shared.within(HEALED, |book| (0..count).all(|me| book.current(me).is_some())).await;
        ensure!(there, "not everybody is back after {HEALED:?}");
        let done = |book: &Book| self.shared.all_read(book) && book.missing().is_empty();
        let mut more = Vec::new();
        if !self.shared.within(SOON, done).await {
            let missing = self.book().missing();
            println!("not heard within {SOON:?}, looked for in the store: {missing:?}");
            let mut owners: Vec<usize> = missing.into_iter().map(|(_, to)| to).collect();
            owners.sort_unstable();
            owners.dedup();
            for owner in owners {
                let at = self.book().current(owner).map_or(self.shared.doors[0].0, |(_, node)| node);
                let door = nodes.nodes[at].door.context("a node without clients")?;
                let client = self.people[owner].come_online(door, "third").await?;
                let stream = self.book().opened_beside(owner, at);
                more.push((stream, tokio::spawn(attend(owner, stream, client, self.shared.clone(), None))));
            }
        }
        let settled = self.shared.within(HEALED, done).await;
        // What is still on its way, to anybody, has come by then: these are the last words of the other side.
        more.iter().for_each(|(_, task)| task.abort());
        for (stream, _) in &more {
            self.book().ended(*stream, "no longer needed".into());
        }
        if !settled {
            println!("not settled after {HEALED:?}; all read: {}", self.shared.all_read(&self.book()));
        }
        let contacts = self.contacts();
        let sees = |book: &Book| book.judge(&contacts).is_ok();
        // Presence may come behind the last word.
        self.shared.within(SOON, sees).await;
        let figures = self.book().judge(&contacts)?;
        self.same_tables(nodes).await?;
        Ok(figures)
    }

    async fn same_tables(&self, nodes: &Nodes) -> Result<()> {
        let mut live: Vec<(String, String)> = Vec::new();
        for (me, person) in self.people.iter().enumerate() {
            let (_, node) = self.book().current(me).context("somebody left meanwhile")?;
            live.push((format!("{}/{RESOURCE}", person.bare()), nodes.nodes[node].name.clone()));
        }
        live.sort();
        let end = Instant::now() + SOON;
        let mut look = interval(AGAIN);
        for at in (0..nodes.nodes.len()).filter(|at| nodes.process(*at).is_some()) {
            loop {
                look.tick().await;
                let mut table = sessions(nodes, at).await?;
                table.retain(|(jid, _)| live.iter().any(|(known, _)| bare(known) == bare(jid)));
                table.sort();
                if table == live {
                    break;
                }
                let name = &nodes.nodes[at].name;
                ensure!(
                    Instant::now() < end,
                    "the table of {name} is {table:#?}, and the sessions are {live:#?}"
                );
            }
        }
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.lives.iter().for_each(JoinHandle::abort);
    }
}

fn bare(jid: &str) -> &str {
    jid.split('/').next().unwrap_or(jid)
}

/// Each session of the table of one node, and the name of the node where it is.
async fn sessions(nodes: &Nodes, at: usize) -> Result<Vec<(String, String)>> {
    let mut admin = AdminClient::new(nodes.admin(at).await?);
    let mut listed = admin.list_sessions(ListSessionsRequest::default()).await?.into_inner();
    let mut found = Vec::new();
    while let Some(session) = listed.message().await? {
        found.push((session.jid, session.node_name));
    }
    Ok(found)
}

/// Each is a contact of the next one.
fn ring(count: usize) -> Vec<(usize, usize)> {
    let pairs = if count == 2 { 1 } else { count };
    (0..pairs).map(|n| (n, (n + 1) % count)).collect()
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lasts(&self) -> MutexGuard<'_, Vec<Option<(usize, usize)>>> {
        self.lasts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it came to be in time.
    async fn within(&self, time: Duration, wanted: impl Fn(&Book) -> bool) -> bool {
        let end = Instant::now() + time;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Enabled before the look, so that no news between the two is missed.
            news.as_mut().enable();
            if wanted(&self.book()) {
                return true;
            }
            // One look for all that comes at once is enough.
            let mut look = interval(Duration::from_millis(100));
            look.tick().await;
            if timeout_at(end, async { tokio::join!(news, look.tick()) }).await.is_err() {
                return wanted(&self.book());
            }
        }
    }

    /// Whether the last words of all were read.
    fn all_read(&self, book: &Book) -> bool {
        let lasts = self.lasts().clone();
        lasts.iter().enumerate().all(|(me, last)| {
            let current = book.current(me).map(|(stream, _)| stream);
            last.is_some_and(|(stream, number)| Some(stream) == current && book.is_read(stream, number))
        })
    }
}

/// A client that comes back, at its own node if that lets it in, else at the next one.
async fn live(me: usize, home: usize, person: Person, shared: Arc<Shared>) {
    let mut pause = interval(AGAIN);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = shared.doors.iter().position(|(at, _)| *at == home).unwrap_or(0);
    let mut tried = 0;
    loop {
        pause.tick().await;
        let (node, door) = shared.doors[(first + tried) % shared.doors.len()];
        // From before the login, so that nobody misses the call.
        let homeward = Some(shared.homeward.subscribe());
        match timeout(LOGIN, person.come_online(door, RESOURCE)).await {
            Ok(Ok(client)) => {
                tried = 0;
                let stream = shared.book().opened(me, node);
                attend(me, stream, client, shared.clone(), homeward.filter(|_| node != home)).await;
            }
            Ok(Err(_)) | Err(_) => tried += 1,
        }
    }
}

/// Talks and hears until the stream ends.
async fn attend(
    me: usize,
    stream: usize,
    mut client: Client,
    shared: Arc<Shared>,
    homeward: Option<watch::Receiver<usize>>,
) {
    let kept = client.take_kept();
    let why = match client.split() {
        Ok((mouth, ear)) => chat(me, stream, kept, (mouth, ear), homeward, &shared).await,
        Err(error) => error.to_string(),
    };
    shared.book().ended(stream, why);
    shared.news.notify_waiters();
}

async fn chat(
    me: usize,
    stream: usize,
    kept: Vec<Node>,
    (mouth, mut ear): (Mouth, Client),
    mut homeward: Option<watch::Receiver<usize>>,
    shared: &Shared,
) -> String {
    // What waited for a user may come before their own presence does.
    kept.iter().for_each(|node| note(me, stream, node, shared));
    let mut pace = interval(shared.pace);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = shared.last.subscribe();
    last.mark_changed();
    let (mut why, mut leaves, mut nth) = (None, false, me);
    loop {
        let far = Instant::now() + HEALED * 10;
        tokio::select! {
            heard = ear.next_raw(far) => match heard {
                Ok(Heard::Element(node)) if node.is("error", STREAM) => {
                    why = node.nodes().next().map(|condition| condition.name.clone());
                }
                Ok(Heard::Element(node)) => note(me, stream, &node, shared),
                Ok(Heard::Header(_)) => {}
                Ok(Heard::End) => return why.unwrap_or_else(|| "closed".into()),
                Err(error) => return why.unwrap_or_else(|| format!("{error:#}")),
            },
            () = called(&mut homeward) => {
                homeward = None;
                leaves = true;
                mouth.say("</stream:stream>".into());
            }
            _ = pace.tick(), if !leaves => if shared.talking.load(Ordering::Relaxed) {
                nth += 1;
                let to = nth % shared.addresses.len();
                if to != me {
                    say(me, to, stream, &mouth, shared);
                }
            },
            Ok(()) = last.changed(), if !leaves => if *last.borrow_and_update() && !shared.book().is_beside(stream) {
                let others = (0..shared.addresses.len()).filter(|to| *to != me);
                let number = others.map(|to| say(me, to, stream, &mouth, shared)).last();
                shared.lasts()[me] = number.map(|number| (stream, number));
            },
        }
    }
}

/// Waits until all are sent home; whoever is there waits for ever.
async fn called(homeward: &mut Option<watch::Receiver<usize>>) {
    if let Some(homeward) = homeward
        && homeward.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Says the next message, and asks whether it was read.
fn say(me: usize, to: usize, stream: usize, mouth: &Mouth, shared: &Shared) -> usize {
    let mut book = shared.book();
    let number = book.say(me, to, stream);
    let address = &shared.addresses[to];
    // Queued under the lock: numbers of one stream are in the order of what it says.
    mouth.say(format!(
        "<message to='{address}' type='chat' id='m-{number}'><body>m-{number}</body></message>"
    ));
    // A ping says of all that is in front of it that it was read; a fast talker asks only now and then.
    if shared.pace >= OFTEN || !shared.talking.load(Ordering::Relaxed) || number.is_multiple_of(10) {
        mouth.say(ping("localhost", &format!("p-{}", book.count())));
    }
    number
}

fn note(me: usize, stream: usize, node: &Node, shared: &Shared) {
    let mut book = shared.book();
    book.note_served(stream);
    let id = node.attr("id").unwrap_or_default();
    let number = |prefix: &str| id.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    match (node.name.as_str(), node.attr("type")) {
        ("message", Some("chat")) if number("m-").is_some() => {
            let body = node.nodes().find(|n| n.name == "body").map(Node::text);
            if body.as_deref() != Some(id) {
                book.note_odd(format!("the body changed: {}", node.pretty().join(" ")));
            }
            book.note_heard(number("m-").unwrap_or_default(), stream);
        }
        ("message", Some("error")) if number("m-").is_some() => {
            book.note_bounced(number("m-").unwrap_or_default(), stream);
        }
        ("iq", Some("result")) if number("p-").is_some() => {
            book.note_read(stream, number("p-").unwrap_or_default());
        }
        ("presence", kind @ (None | Some("unavailable"))) => {
            let from = node.attr("from").and_then(|from| from.strip_suffix(RESOURCE)?.strip_suffix('/'));
            let about = shared.addresses.iter().position(|address| Some(address.as_str()) == from);
            if let Some(about) = about.filter(|about| *about != me) {
                book.note_told(stream, about, kind.is_none());
            }
        }
        // The answer to what a client that logs in asks for.
        ("iq", Some("result")) => {}
        _ => book.note_odd(format!("user {me} heard {}", node.pretty().join(" "))),
    }
    drop(book);
    shared.news.notify_waiters();
}

//! What it costs the server that clients turn on what they know: acknowledgements, copies, the archive, resumption, and
//! events for a thousand contacts.

use std::{collections::HashMap, future::pending, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jid::BareJid;
use rustls::ClientConfig;
use store::{
    Store,
    engines::sled::{Config, Sled},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{interval, timeout},
};
use xeps::rosters::{Item, Roster, Standing, partition};

use crate::{
    Load, PASSWORD,
    link::{self, Link, find},
    middle,
    process::Server,
};

/// Pairs that chat, and how many messages of each are on their way at once.
const PAIRS: usize = 20;
const WINDOW: usize = 64;
/// Messages of a pair in a round: as many as the archive holds whose pages are asked for.
const MESSAGES: usize = 10_000;
/// How often each pair sends so many where nothing is to be faster than the store: 20,000 messages in a second.
const TICK: Duration = Duration::from_millis(10);
const PACED: usize = 10;
/// Pages that are asked for in a round.
const PAGES: usize = 300;
/// Sessions that are resumed in a round.
const RESUMED: usize = 400;
/// Contacts that want to hear what one user publishes, and how often that one publishes.
const CONTACTS: usize = 1_000;
const PUBLISHED: usize = 30;
/// The node that they want to hear of.
const NODE: &str = "http://jabber.org/protocol/tune";
/// How often the server's CPU is looked at until it does nothing any more, and how often at most.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: usize = 600;

/// What is turned on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turned {
    /// Nothing.
    Nothing,
    /// Both sides acknowledge (XEP-0198).
    Managed,
    /// The receiver has a second session that gets copies (XEP-0280).
    Copied,
    /// Nothing, and each pair sends at a steady pace.
    Paced,
}

/// Measures all of it, the rounds of what is compared in turn.
pub async fn run(binary: &Path, base_port: u16, load: Load) -> Result<()> {
    let tls = link::tls_config()?;
    {
        let plain = Server::start(binary, base_port)?;
        let archiving = Server::start_with(binary, base_port + 10, "[modules.archive]\nenabled = true")?;
        for server in [&plain, &archiving] {
            for n in 0..PAIRS {
                server.add_user(&format!("a{n}"), PASSWORD)?;
                server.add_user(&format!("b{n}"), PASSWORD)?;
            }
        }
        messages(&plain, &archiving, &tls, load).await?;
        all_is_archived(&archiving)?;
        for n in 0..PAIRS {
            for who in ["a", "b"] {
                let name = format!("{who}{n}");
                let mut link = Link::log_in(&archiving.direct_tls, &tls, &name, PASSWORD, "check").await?;
                let mut rounds = 0;
                let number = |result: &str| {
                    let n: usize = result.split("<body>").nth(1)?.split(' ').next()?.parse().ok()?;
                    rounds += usize::from(n == 0);
                    Some((0, rounds * MESSAGES + n))
                };
                is_whole(&mut link, load.rounds * MESSAGES, number).await?;
            }
        }
        pages(&archiving, &tls, load).await?;
        resumptions(&plain, &tls, load).await?;
    }
    events(binary, base_port + 20, &tls, load).await
}

/// Fails where the store was too slow, as a message that is not archived costs little.
pub fn all_is_archived(server: &Server) -> Result<()> {
    match server.last_logged("not archived")? {
        Some(line) => bail!("some messages are in no archive: {line}"),
        None => Ok(()),
    }
}

/// Reads a whole archive, and fails where a message is missing, doubled or in the wrong place: `number` says which one of
/// its sender's a message is, and from whom.
pub async fn is_whole(
    link: &mut Link,
    messages: usize,
    mut number: impl FnMut(&str) -> Option<(usize, usize)>,
) -> Result<()> {
    let (mut count, mut after) = (0, String::new());
    let mut last = HashMap::new();
    loop {
        let page = ask(link, &format!("<max>1000</max>{after}")).await?;
        for result in page.split("<result ").skip(1) {
            let (sender, n) = number(result).with_context(|| format!("no number: {result}"))?;
            let before = last.insert(sender, n);
            ensure!(before.is_none_or(|before| before < n), "message {n} is behind {before:?}");
            count += 1;
        }
        let Some((_, end)) = page.rsplit_once("<last>").filter(|_| !page.contains("complete='true'")) else {
            break;
        };
        let id = end.split('<').next().unwrap_or_default();
        after = format!("<after>{id}</after>");
    }
    ensure!(count == messages, "the archive has {count} messages of {messages}");
    Ok(())
}

/// CPU of a server for some work, with what it does behind it, in microseconds.
pub async fn cost(server: &Server, work: impl Future<Output = Result<()>>) -> Result<f64> {
    let before = server.cpu_us()?;
    work.await?;
    let mut last = server.cpu_us()?;
    for _ in 0..LOOKS {
        let _ = timeout(LOOK, pending::<()>()).await;
        let now = server.cpu_us()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok((last - before) as f64)
}

async fn messages(plain: &Server, archiving: &Server, tls: &Arc<ClientConfig>, load: Load) -> Result<()> {
    let ways = [
        (plain, Turned::Nothing, "plain"),
        (plain, Turned::Managed, "acknowledged by both sides (XEP-0198)"),
        (plain, Turned::Copied, "copied to one more session (XEP-0280)"),
        (plain, Turned::Paced, "plain, 20,000 in a second"),
        (archiving, Turned::Paced, "archived for both sides (XEP-0313), 20,000 in a second"),
    ];
    let mut figures: [Vec<f64>; 5] = Default::default();
    for _ in 0..load.rounds {
        for ((server, turned, _), figures) in ways.iter().zip(&mut figures) {
            let pairs = pairs(server, tls, *turned).await?;
            let cpu = cost(server, chat(pairs)).await?;
            figures.push(cpu / (PAIRS * MESSAGES) as f64);
        }
    }
    let [saturated, .., paced, _] = figures.clone().map(|mut figures| middle(&mut figures));
    for ((_, turned, what), mut figures) in ways.into_iter().zip(figures) {
        let (median, least) = middle(&mut figures);
        let plain = if turned == Turned::Paced { paced } else { saturated };
        println!(
            "a message, {what}: {median:.2} us of server CPU (least {least:.2}), {:+.2} us (least {:+.2})",
            median - plain.0,
            least - plain.1,
        );
    }
    Ok(())
}

/// Two who chat, and the second session of the one who listens.
struct Pair {
    number: usize,
    a: Link,
    b: Link,
    second: Option<Link>,
    turned: Turned,
}

async fn pairs(server: &Server, tls: &Arc<ClientConfig>, turned: Turned) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for number in 0..PAIRS {
        let log_in = async |name: String, resource: &str| {
            let mut link = Link::log_in(&server.direct_tls, tls, &name, PASSWORD, resource).await?;
            link.appear().await?;
            anyhow::Ok(link)
        };
        let mut a = log_in(format!("a{number}"), "bench").await?;
        let mut b = log_in(format!("b{number}"), "bench").await?;
        let mut second = None;
        match turned {
            Turned::Nothing | Turned::Paced => {}
            Turned::Managed => {
                for link in [&mut a, &mut b] {
                    link.write("<enable xmlns='urn:xmpp:sm:3'/>").await?;
                    link.until("<enabled").await?;
                    link.until("/>").await?;
                }
            }
            Turned::Copied => {
                let mut link = log_in(format!("b{number}"), "second").await?;
                link.write("<iq type='set' id='c1'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await?;
                link.until("id='c1'").await?;
                link.until("/>").await?;
                // Or its presence would come among the messages.
                b.until("/second").await?;
                second = Some(link);
            }
        }
        pairs.push(Pair { number, a, b, second, turned });
    }
    Ok(pairs)
}

/// All pairs chat until all has come.
async fn chat(pairs: Vec<Pair>) -> Result<()> {
    let mut running = JoinSet::new();
    let mut ends = Vec::new();
    for Pair { number, a, b, second, turned } in pairs {
        let window = Arc::new(Semaphore::new(WINDOW));
        let managed = turned == Turned::Managed;
        running.spawn(send(a, number, turned, window.clone()));
        running.spawn(receive(b, b"</message>", managed, Some(window)));
        if let Some(second) = second {
            running.spawn(receive(second, b"</received></message>", managed, None));
        }
    }
    while let Some(end) = running.join_next().await {
        // Kept open until all have ended, so that no logout is counted.
        ends.push(end??);
    }
    Ok(())
}

async fn send(mut link: Link, pair: usize, turned: Turned, window: Arc<Semaphore>) -> Result<Link> {
    let managed = turned == Turned::Managed;
    let mut tick = interval(TICK);
    let at_once = if turned == Turned::Paced { PACED } else { 16 };
    let mut next = 0;
    while next < MESSAGES {
        if turned == Turned::Paced {
            tick.tick().await;
        }
        let mut permits = 1;
        window.acquire().await?.forget();
        while permits < at_once
            && next + permits < MESSAGES
            && window.try_acquire().map(|p| p.forget()).is_ok()
        {
            permits += 1;
        }
        let mut text = String::new();
        for n in next..next + permits {
            text.push_str(&format!(
                "<message to='b{pair}@localhost/bench' type='chat' id='c{n:08}'><body>{n} A message of usual length, as \
                 people write them to each other all day long.</body><request xmlns='urn:xmpp:receipts'/></message>"
            ));
        }
        if managed {
            // As clients do: once for what they send together.
            text.push_str("<r xmlns='urn:xmpp:sm:3'/>");
        }
        link.write(&text).await?;
        if managed {
            link.until("<a xmlns='urn:xmpp:sm:3'").await?;
            link.until("/>").await?;
        }
        next += permits;
    }
    Ok(link)
}

/// Takes messages, each of which ends so, and acknowledges them where the server asks.
async fn receive(
    mut link: Link,
    end: &'static [u8],
    managed: bool,
    window: Option<Arc<Semaphore>>,
) -> Result<Link> {
    const ASKED: &[u8] = b"<r xmlns='urn:xmpp:sm:3'/>";
    let mut seen = 0;
    while seen < MESSAGES {
        link.fill().await?;
        let (mut done, mut news) = (0, 0);
        let mut answer = String::new();
        loop {
            let rest = &link.buffer[done..];
            if rest.starts_with(ASKED) {
                done += ASKED.len();
                answer = format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", seen + news);
            } else if let Some(at) = find(rest, end) {
                done += at + end.len();
                news += 1;
            } else {
                break;
            }
        }
        link.buffer.drain(..done);
        if !answer.is_empty() {
            link.write(&answer).await?;
        }
        if let Some(window) = &window {
            window.add_permits(news);
        }
        seen += news;
    }
    if managed {
        // Or they would come again to the next session.
        link.write(&format!("<a xmlns='urn:xmpp:sm:3' h='{seen}'/>")).await?;
    }
    if seen > MESSAGES {
        bail!("{seen} messages came, {MESSAGES} were sent");
    }
    Ok(link)
}

/// Pages of 50 of an archive with at least as many messages as a pair sends in a round: the last ones, and ones within.
async fn pages(server: &Server, tls: &Arc<ClientConfig>, load: Load) -> Result<()> {
    // One pair alone: at saturation an archive may be passed over.
    let mut pairs = pairs(server, tls, Turned::Nothing).await?;
    pairs.truncate(1);
    cost(server, chat(pairs)).await?;
    let mut link = Link::log_in(&server.direct_tls, tls, "b0", PASSWORD, "reader").await?;
    let last = "<before/>".to_owned();
    let page = page(&mut link, &last).await?;
    let first = first_of(&page).context("the page has no first id")?;
    // Half the archive lies behind it, so pages before it are in the midst.
    let midst = {
        let mut at = first;
        for _ in 0..MESSAGES / 2 / 100 {
            let asked = format!("<max>100</max><before>{at}</before>");
            let page = ask(&mut link, &asked).await?;
            at = first_of(&page).with_context(|| format!("the archive is short: {page}"))?;
        }
        format!("<before>{at}</before>")
    };
    for (what, which) in [("the last page", &last), ("a page in the midst", &midst)] {
        let mut figures = Vec::new();
        for _ in 0..load.rounds {
            let read = async {
                for _ in 0..PAGES {
                    self::page(&mut link, which).await?;
                }
                Ok(())
            };
            figures.push(cost(server, read).await? / PAGES as f64);
        }
        let (median, least) = middle(&mut figures);
        println!("{what} of 50 of an archive: {median:.0} us of server CPU (least {least:.0})");
    }
    Ok(())
}

/// One page of 50.
pub async fn page(link: &mut Link, which: &str) -> Result<String> {
    let page = ask(link, &format!("<max>50</max>{which}")).await?;
    let count = page.matches("<result ").count();
    if count != 50 {
        bail!("a page has {count} messages: {}", page.get(..300).unwrap_or(&page));
    }
    Ok(page)
}

async fn ask(link: &mut Link, paging: &str) -> Result<String> {
    query(link, &format!("<set xmlns='http://jabber.org/protocol/rsm'>{paging}</set>")).await
}

/// What an archive answers to a query.
pub async fn query(link: &mut Link, asked: &str) -> Result<String> {
    link.write(&format!("<iq type='set' id='m'><query xmlns='urn:xmpp:mam:2'>{asked}</query></iq>")).await?;
    link.until("</fin></iq>").await
}

/// The id of the first message of a page.
pub fn first_of(page: &str) -> Option<String> {
    let behind = page.rsplit_once("<first")?.1.split_once('>')?.1;
    Some(behind.split_once('<')?.0.to_owned())
}

/// A resumption against a connection that authenticates as well, and no more.
async fn resumptions(server: &Server, tls: &Arc<ClientConfig>, load: Load) -> Result<()> {
    let mut figures = Vec::new();
    for round in 0..load.rounds {
        let mut waiting = Vec::new();
        for n in 0..RESUMED {
            let name = format!("a{}", n % PAIRS);
            let mut link =
                Link::log_in(&server.direct_tls, tls, &name, PASSWORD, &format!("r{round}-{n}")).await?;
            link.write("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await?;
            let enabled = link.until("/>").await?;
            let id =
                enabled.split_once(" id='").and_then(|(_, rest)| rest.split_once('\'')).context("no id")?.0;
            waiting.push((name, id.to_owned()));
            // Dropped without a word: the session waits.
        }
        let mut kept = Vec::new();
        let proofs = async {
            for (name, _) in &waiting {
                let mut link = Link::connect(&server.direct_tls, tls).await?;
                link.prove(name, PASSWORD).await?;
                kept.push(link);
            }
            Ok(())
        };
        let proved = cost(server, proofs).await?;
        let mut resumed = Vec::new();
        let resumptions = async {
            for (name, id) in &waiting {
                let mut link = Link::connect(&server.direct_tls, tls).await?;
                link.prove(name, PASSWORD).await?;
                link.write(&format!("<resume xmlns='urn:xmpp:sm:3' h='0' previd='{id}'/>")).await?;
                link.until("<resumed").await?;
                link.until("/>").await?;
                resumed.push(link);
            }
            Ok(())
        };
        let all = cost(server, resumptions).await?;
        figures.push((all - proved) / RESUMED as f64);
        for mut link in resumed {
            link.write("</stream:stream>").await?;
            link.until("</stream:stream>").await?;
        }
    }
    let (median, least) = middle(&mut figures);
    println!("a resumption (XEP-0198), beyond TLS and SASL: {median:.0} us of server CPU (least {least:.0})");
    Ok(())
}

/// A user with a thousand contacts at work, all of whom want to know what the user listens to.
async fn events(binary: &Path, base_port: u16, tls: &Arc<ClientConfig>, load: Load) -> Result<()> {
    let folder = tempfile::tempdir()?;
    befriend(&folder.path().join("data").join("store")).await?;
    let server = Server::start_over(folder, binary, base_port, "")?;
    server.add_user("star", PASSWORD)?;
    for n in 0..CONTACTS {
        server.add_user(&format!("fan{n}"), PASSWORD)?;
    }
    let mut star = Link::log_in(&server.direct_tls, tls, "star", PASSWORD, "bench").await?;
    star.appear().await?;
    let mut fans = Vec::new();
    for n in 0..CONTACTS {
        let mut fan = Link::log_in(&server.direct_tls, tls, &format!("fan{n}"), PASSWORD, "bench").await?;
        interested(&mut fan).await?;
        fans.push(fan);
    }
    let mut figures = Vec::new();
    let mut count = 0;
    for _ in 0..load.rounds {
        let mut links = std::mem::take(&mut fans);
        let publish = async {
            for _ in 0..PUBLISHED {
                count += 1;
                star.buffer.clear();
                star.write(&format!(
                    "<iq type='set' id='p{count}'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{NODE}'>\
                     <item id='current'><tune xmlns='{NODE}'><artist>Somebody</artist><title>{count}</title></tune></item>\
                     </publish></pubsub></iq>"
                ))
                .await?;
                let mut running = JoinSet::new();
                for mut fan in links.drain(..) {
                    let title = format!("<title>{count}</title>");
                    running.spawn(async move {
                        fan.until(&title).await?;
                        fan.until("</message>").await?;
                        anyhow::Ok(fan)
                    });
                }
                while let Some(fan) = running.join_next().await {
                    links.push(fan??);
                }
            }
            Ok(())
        };
        figures.push(cost(&server, publish).await? / PUBLISHED as f64);
        fans = links;
    }
    let (median, least) = middle(&mut figures);
    println!(
        "an item published for {CONTACTS} contacts who want it (XEP-0163): {median:.0} us of server CPU (least {least:.0}), \
         {:.1} us each",
        median / CONTACTS as f64
    );
    Ok(())
}

/// Says by its capabilities (XEP-0115) that it wants to hear of the node, and answers what they mean.
async fn interested(fan: &mut Link) -> Result<()> {
    let hashed = format!("client/pc//bench<{NODE}+notify<");
    let ver = BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, hashed.as_bytes()));
    fan.write(&format!(
        "<presence><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:bench' ver='{ver}'/></presence><iq \
         type='get' id='end' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
    ))
    .await?;
    let heard = fan.until("id='end'").await?;
    fan.until("/>").await?;
    let questions = heard.match_indices("<iq ").map(|(at, _)| &heard[at..]);
    let mut answers: HashMap<&str, &str> = HashMap::new();
    for question in questions.filter(|question| question.contains("disco#info")) {
        let of = |name: &str| {
            question.split_once(&format!(" {name}='"))?.1.split_once('\'').map(|(value, _)| value)
        };
        if let (Some(id), Some(from)) = (of("id"), of("from")) {
            answers.insert(id, from);
        }
    }
    for (id, from) in answers {
        fan.write(&format!(
            "<iq type='result' id='{id}' to='{from}'><query xmlns='http://jabber.org/protocol/disco#info' \
             node='urn:bench#{ver}'><identity category='client' type='pc' name='bench'/><feature var='{NODE}+notify'/>\
             </query></iq><iq type='get' id='told' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
        ))
        .await?;
        fan.until("id='told'").await?;
        fan.until("/>").await?;
    }
    Ok(())
}

/// Puts the rosters into the store before the server opens it: the star and each contact see one another.
async fn befriend(path: &Path) -> Result<()> {
    let both =
        || Item { standing: Standing { to: true, from: true, ..Standing::default() }, ..Item::default() };
    let config = Config::new(path);
    let sled = Arc::new(tokio::task::spawn_blocking(move || Sled::open(&config)).await??);
    let store = Store::new(sled.clone());
    let mut star = Roster::default();
    for n in 0..CONTACTS {
        star.items.insert(format!("fan{n}@localhost"), both());
        let mut fan = Roster::default();
        fan.items.insert("star@localhost".to_owned(), both());
        store.put(&partition(&BareJid::new(&format!("fan{n}@localhost"))?), b"", &fan).await?;
    }
    store.put(&partition(&BareJid::new("star@localhost")?), b"", &star).await?;
    drop(store);
    let sled = Arc::into_inner(sled).context("the store is in use")?;
    Ok(tokio::task::spawn_blocking(move || sled.close()).await?)
}

//! Somebody who writes to another all the while, comes back when their node sends them away, and counts.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    client::{Client, Door, Heard, PATIENCE},
    people::{Person, ping},
    xml::Node,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, interval},
};

/// Between two messages.
const PACE: Duration = Duration::from_millis(40);

/// A chat that goes on until it is told to stop.
pub struct Chat {
    stop: Arc<AtomicBool>,
    talkers: Vec<JoinHandle<Result<Talker>>>,
}

/// What came of a chat.
#[derive(Debug)]
pub struct Talked {
    /// Messages that were accepted, of each of the two.
    pub said: [usize; 2],
    /// How often each of them had to log in.
    pub logins: [usize; 2],
}

struct Talker {
    person: Person,
    to: String,
    /// Where to log in; the first one that answers.
    doors: Vec<Door>,
    client: Client,
    logins: usize,
    said: usize,
    heard: BTreeSet<usize>,
    stop: Arc<AtomicBool>,
}

impl Chat {
    /// Both are online, each at the first of their doors that answers, and begin to write.
    pub async fn begin(pair: [(&Person, Vec<Door>); 2]) -> Result<Chat> {
        let stop = Arc::new(AtomicBool::new(false));
        let [(one, _), (two, _)] = &pair;
        let others = [two.bare(), one.bare()];
        let mut talkers = Vec::new();
        for ((person, doors), to) in pair.into_iter().zip(others) {
            let client = come(person, &doors).await?;
            let (person, stop) = (person.clone(), stop.clone());
            let (logins, said, heard) = (1, 0, BTreeSet::new());
            talkers.push(Talker { person, to, doors, client, logins, said, heard, stop });
        }
        let talkers = talkers.into_iter().map(|talker| tokio::spawn(talker.talk())).collect();
        Ok(Chat { stop, talkers })
    }

    /// Ends the chat; fails unless each has heard all that was taken from the other.
    pub async fn end(self) -> Result<Talked> {
        self.stop.store(true, Ordering::SeqCst);
        let mut ended = Vec::new();
        for talker in self.talkers {
            ended.push(talker.await??);
        }
        let [one, two] = &mut ended[..] else { anyhow::bail!("two talk") };
        let said = [one.said, two.said];
        one.until_heard(said[1]).await?;
        two.until_heard(said[0]).await?;
        Ok(Talked { said, logins: [one.logins, two.logins] })
    }
}

/// Online at the first door that answers.
async fn come(person: &Person, doors: &[Door]) -> Result<Client> {
    let end = Instant::now() + PATIENCE;
    let mut again = interval(Duration::from_millis(50));
    let mut failed = None;
    for door in doors.iter().cycle() {
        again.tick().await;
        match person.come_online(*door, "phone").await {
            Ok(client) => return Ok(client),
            Err(error) => failed = Some(error),
        }
        if Instant::now() > end {
            break;
        }
    }
    Err(failed.context("no door")?.context("nobody lets them in"))
}

fn number(node: &Node) -> Option<usize> {
    if node.name == "message" && node.attr("type") == Some("chat") {
        return node.attr("id")?.strip_prefix("chat-")?.parse().ok();
    }
    None
}

impl Talker {
    async fn talk(mut self) -> Result<Talker> {
        let mut pace = interval(PACE);
        while !self.stop.load(Ordering::SeqCst) {
            pace.tick().await;
            // Without XEP-0198 nobody can tell what was read of a stream that ended: it is said again then.
            while !self.say(self.said).await? {
                self.client = come(&self.person, &self.doors).await?;
                self.logins += 1;
            }
            self.said += 1;
        }
        Ok(self)
    }

    /// Says one message; whether it was taken, as the answer to a ping behind it shows.
    async fn say(&mut self, nth: usize) -> Result<bool> {
        let id = format!("pong-{nth}");
        let text = format!("<message to='{}' type='chat' id='chat-{nth}'><body>x</body></message>", self.to);
        if self.client.send(&(text + &ping("localhost", &id))).await.is_err() {
            return Ok(false);
        }
        let end = Instant::now() + PATIENCE;
        for node in self.client.take_kept() {
            self.hear(&node)?;
        }
        loop {
            match self.client.next_raw(end).await {
                Ok(Heard::Element(node)) if node.attr("id") == Some(&id) => return Ok(true),
                Ok(Heard::Element(node)) => self.hear(&node)?,
                Ok(Heard::Header(_)) => {}
                Ok(Heard::End) => return Ok(false),
                Err(error) => return Err(error.context(format!("{} waits for {id}", self.person.user))),
            }
        }
    }

    fn hear(&mut self, node: &Node) -> Result<()> {
        let bounced = node.name == "message" && node.attr("type") == Some("error");
        ensure!(!bounced, "it came back: {}", node.pretty().join("\n"));
        self.heard.extend(number(node));
        Ok(())
    }

    /// What came while they logged in may be kept for the next login.
    async fn until_heard(&mut self, count: usize) -> Result<()> {
        for attempt in 0.. {
            let end = Instant::now() + Duration::from_secs(3);
            for node in self.client.take_kept() {
                self.hear(&node)?;
            }
            loop {
                if (0..count).all(|nth| self.heard.contains(&nth)) {
                    return Ok(());
                }
                let Ok(Heard::Element(node)) = self.client.next_raw(end).await else { break };
                self.hear(&node)?;
            }
            let missing: Vec<usize> = (0..count).filter(|nth| !self.heard.contains(nth)).collect();
            ensure!(attempt < 3, "{} never heard {missing:?} of {count}", self.person.user);
            self.client = come(&self.person, &self.doors).await?;
        }
        Ok(())
    }
}

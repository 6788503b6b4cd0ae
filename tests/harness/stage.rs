//! Performs a play on running nodes: each character at another node, under names of this performance alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::time::Instant;

use crate::{
    client::{Client, Door, FENCE, Heard, Login, PATIENCE, unique},
    diff::diff,
    nodes::Nodes,
    pattern::{Names, fill, matches},
    people::{Person, befriend, go_online, mark, ping},
    play::{Credentials, Deed, Play},
    scram::Hash,
    xml::{Node, parse_block},
};

/// Host of an account that is written without one.
const HOST: &str = "localhost";

/// Names at `localhost` that the config has to give to admins: each admin of a performance has one of its own.
pub const ADMINS: usize = 90;

/// One of these names.
pub fn admin(number: usize) -> String {
    // All are of one length: none is the beginning of another.
    format!("admin-{}", 10 + number % ADMINS)
}

struct Stage<'a> {
    nodes: &'a Nodes,
    /// Written name of an account (`alice`, `carol`) to its host and to its name in this performance.
    cast: BTreeMap<String, (String, String)>,
    clients: HashMap<String, Client>,
    /// Characters in the order of their first entrance: it says at which node each one is.
    entered: Vec<String>,
    names: Names,
    heard: Vec<String>,
}

/// Plays it from the first line to the last; the error is written for whoever reads the story.
pub async fn perform(play: &Play, nodes: &Nodes) -> Result<()> {
    let mark = unique("t").replace("t-", "");
    let mut cast = BTreeMap::new();
    let acting = play.lines.iter().filter(|l| l.who.contains('/'));
    let strangers = acting.map(|l| l.who.split('/').next().unwrap_or_default().to_owned());
    let named = play.accounts.iter().chain(&play.brought).chain(&play.strangers).cloned();
    for account in named.chain(strangers) {
        let (name, host) = account.split_once('@').unwrap_or((&account, HOST));
        let entry = (host.to_owned(), format!("{name}-{mark}"));
        cast.entry(name.to_owned()).or_insert(entry);
    }
    for name in &play.admins {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let user = admin(NEXT.fetch_add(1, Ordering::Relaxed));
        cast.insert(name.clone(), (HOST.to_owned(), user));
    }
    let mut stage = Stage {
        nodes,
        cast,
        clients: HashMap::new(),
        entered: Vec::new(),
        names: Names::new(),
        heard: Vec::new(),
    };
    stage.set(play).await.context("while the stage was set")?;
    for line in &play.lines {
        let done = stage.act(&line.who, &line.deed).await;
        done.with_context(|| {
            let heard = stage.heard[stage.heard.len().saturating_sub(12)..].join("\n    ");
            format!("tests/stories/{}.xmpp:{}\n  heard before:\n    {heard}", play.name, line.number)
        })?;
    }
    Ok(())
}

impl Stage<'_> {
    async fn set(&mut self, play: &Play) -> Result<()> {
        for account in play.accounts.iter().chain(&play.admins) {
            let name = account.split('@').next().unwrap_or(account);
            let person = self.person(name)?;
            self.nodes.add_user(&person.bare(), &person.password).await?;
        }
        for account in &play.brought {
            let name = account.split('@').next().unwrap_or(account);
            let person = self.person(name)?;
            self.nodes.bring_user(&person.bare(), &Hash::line("SCRAM-SHA-1", &person.password)?).await?;
        }
        for group in &play.friends {
            for (n, a) in group.iter().enumerate() {
                for b in &group[n + 1..] {
                    let done = befriend(self.nodes.door(0), &self.person(a)?, &self.person(b)?).await;
                    done.with_context(|| format!("`{a}` and `{b}` did not become friends"))?;
                }
            }
        }
        Ok(())
    }

    async fn act(&mut self, who: &str, deed: &Deed) -> Result<()> {
        if let Deed::Runs(words) = deed {
            let words: Vec<String> = words.iter().map(|word| self.as_sent(word)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            return self.nodes.cli(&words).await.map(drop);
        }
        let (name, resource) = who.split_once('/').context("a character has a resource")?;
        // `alice/phone#2` is another connection for the same resource.
        let resource = resource.split('#').next().unwrap_or(resource);
        let door = self.door(who);
        let host = self.cast[name].0.clone();
        match deed {
            Deed::Dials { direct: true } => {
                drop(self.clients.insert(who.into(), Client::open_direct(door, &host).await?))
            }
            Deed::Dials { direct: false } => {
                drop(self.clients.insert(who.into(), Client::open_plain(door, &host).await?))
            }
            Deed::Opens { direct } => {
                let (client, _) = Client::open(door, &host, *direct).await?;
                self.clients.insert(who.into(), client);
            }
            Deed::Restarts => drop(self.client(who)?.begin_stream().await?),
            Deed::Secures => self.client(who)?.start_tls().await?,
            Deed::Authenticates(credentials) => {
                let user = self.cast[name].1.clone();
                let word = credentials.password.clone().unwrap_or_else(|| password(name));
                self.client(who)?.authenticate(&user, &word, &credentials.mechanism).await?;
            }
            Deed::SignsIn { credentials, beside } => {
                let user = self.cast[name].1.clone();
                let word = credentials.password.clone().unwrap_or_else(|| password(name));
                // A token that was heard may stand for it.
                let word = fill(&word, &self.names);
                let beside = one_line(&self.as_sent(beside));
                self.client(who)?.sign_in(&user, &word, &credentials.mechanism, &beside).await?;
            }
            Deed::Refused { credentials, condition } => {
                let user = self.cast[name].1.clone();
                let word = credentials.password.clone().unwrap_or_else(|| password(name));
                let tried = self.client(who)?.try_authenticate(&user, &word, &credentials.mechanism).await?;
                ensure!(tried.as_ref() == Err(condition), "the server's answer was {tried:?}");
            }
            Deed::Connects { direct, named, credentials } => {
                let login = (credentials, *direct, named.then_some(resource));
                let client = self.log_in(name, login, door).await?;
                self.clients.insert(who.into(), client);
            }
            Deed::ComesOnline { priority } => {
                if !self.clients.contains_key(who) {
                    let client = self.person(name)?.log_in(door, resource).await?;
                    self.clients.insert(who.into(), client);
                }
                drop(go_online(self.client(who)?, *priority).await?);
            }
            Deed::Says(block) | Deed::Sends(block) => {
                let text = self.as_sent(block);
                let text = if matches!(deed, Deed::Says(_)) { one_line(&text) } else { text };
                self.client(who)?.send(&text).await?;
            }
            Deed::Hears { block, any_order } => self.hears(who, block, *any_order).await?,
            Deed::HearsNothingElse => self.hears_nothing_else(who).await?,
            Deed::Runs(_) => {}
            Deed::Leaves => self.clients.remove(who).context("not connected")?.close().await?,
            Deed::Vanishes => drop(self.clients.remove(who).context("not connected")?),
            Deed::Loses(block) => {
                let mut client = self.clients.remove(who).context("not connected")?;
                let heard = client.up_to_end().await?.into_iter().map(|n| self.as_written(n)).collect();
                self.compare(who, &parse(block)?, heard, false)?;
            }
        }
        Ok(())
    }

    async fn hears(&mut self, who: &str, block: &str, any_order: bool) -> Result<()> {
        let expected = parse(block)?;
        let mut heard = Vec::new();
        let mut failure = None;
        for _ in &expected {
            match self.next(who).await {
                Ok(node) => heard.push(node),
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
        self.compare(who, &expected, heard, any_order).map_err(|e| match failure {
            Some(cause) => anyhow::anyhow!("{e}  and then: {cause:#}"),
            None => e,
        })
    }

    async fn next(&mut self, who: &str) -> Result<Node> {
        let client = self.client(who)?;
        // A header counts as heard only where a story dials by itself.
        let node = if let Some(kept) = client.take_first_kept() {
            kept
        } else if client.jid.is_some() {
            client.next().await?
        } else {
            loop {
                match client.next_raw(Instant::now() + PATIENCE).await? {
                    Heard::Element(node) => break node,
                    Heard::Header(_) => {}
                    Heard::End => bail!("the stream ended"),
                }
            }
        };
        client.note_address(&node);
        Ok(self.as_written(node))
    }

    /// Every other connection sends a message along the way that its stanzas take, the server answers a ping:
    /// what was sent before is in front of them.
    async fn hears_nothing_else(&mut self, who: &str) -> Result<()> {
        let target = self.client(who)?.jid.clone().context("only a bound session can be fenced")?;
        let own_host = self.cast[who.split('/').next().unwrap_or_default()].0.clone();
        let mut ids = Vec::new();
        for (name, client) in &mut self.clients {
            let id = unique(FENCE.trim_end_matches('-'));
            let fence = if name == who { ping(&own_host, &id) } else { mark(&target, &id) };
            if client.jid.is_some() && client.send(&fence).await.is_ok() {
                ids.push(id);
            }
        }
        let surplus = self.client(who)?.up_to_fences(ids).await?;
        let surplus = surplus.into_iter().map(|n| self.as_written(n)).collect();
        self.compare(who, &[], surplus, false)
    }

    fn compare(&mut self, who: &str, expected: &[Node], heard: Vec<Node>, any_order: bool) -> Result<()> {
        for node in &heard {
            self.heard.push(format!("{who}: {}", node.pretty().join("\n      ")));
        }
        let mut names = self.names.clone();
        let fits = expected.len() == heard.len()
            && if any_order {
                let mut left: Vec<&Node> = heard.iter().collect();
                expected.iter().all(|e| {
                    let at = left.iter().position(|h| matches(e, h, &mut names));
                    at.map(|at| left.remove(at)).is_some()
                })
            } else {
                expected.iter().zip(&heard).all(|(e, h)| matches(e, h, &mut names))
            };
        if fits {
            self.names = names;
            return Ok(());
        }
        let lines = |nodes: &[Node]| nodes.iter().flat_map(Node::pretty).collect::<Vec<_>>();
        bail!("{who} heard something else (- expected, + heard)\n{}", diff(&lines(expected), &lines(&heard)))
    }

    async fn log_in(
        &self,
        name: &str,
        (credentials, direct, resource): (&Credentials, bool, Option<&str>),
        door: Door,
    ) -> Result<Client> {
        let Person { user, host, password } = self.person(name)?;
        let password = credentials.password.clone().unwrap_or(password);
        let (user, host, password, mechanism) = (&*user, &*host, &*password, &*credentials.mechanism);
        Client::log_in(door, &Login { user, host, password, resource, mechanism, direct }).await
    }

    fn client(&mut self, who: &str) -> Result<&mut Client> {
        self.clients.get_mut(who).with_context(|| format!("`{who}` is not connected"))
    }

    fn door(&mut self, who: &str) -> Door {
        let at = self.entered.iter().position(|w| w == who).unwrap_or_else(|| {
            self.entered.push(who.to_owned());
            self.entered.len() - 1
        });
        self.nodes.door(at)
    }

    fn person(&self, name: &str) -> Result<Person> {
        let name = name.split('@').next().unwrap_or(name);
        let (host, user) = self.cast.get(name).with_context(|| format!("nobody is called `{name}`"))?;
        Ok(Person { user: user.clone(), host: host.clone(), password: password(name) })
    }

    /// Names of the story become names of the performance, named values their values, `{plain NAME WORD}` SASL.
    fn as_sent(&self, text: &str) -> String {
        let mut text = fill(text, &self.names);
        while let Some((before, rest)) = text.split_once("{plain ") {
            let (inside, after) = rest.split_once('}').unwrap_or((rest, ""));
            let mut words = inside.split_whitespace();
            let name = words.next().unwrap_or_default();
            let user = self.cast.get(name).map_or(name, |(_, user)| user);
            let word = words.next().map_or_else(|| password(name), str::to_owned);
            text = format!("{before}{}{after}", BASE64_STANDARD.encode(format!("\0{user}\0{word}")));
        }
        while let Some((before, rest)) = text.split_once("{salted ") {
            let (inside, after) = rest.split_once('}').unwrap_or((rest, ""));
            let salted = salted(inside).unwrap_or_else(|error| format!("{error:#}"));
            text = format!("{before}{salted}{after}");
        }
        for (name, (host, user)) in &self.cast {
            text = replace_word(&text, &format!("{name}@{host}"), &format!("{user}@{host}"));
            text = text.replace(&format!("{{name {name}}}"), user);
        }
        text
    }

    fn as_written(&self, mut node: Node) -> Node {
        node.map(&|text| {
            let mut text = text.to_owned();
            for (name, (_, user)) in &self.cast {
                text = text.replace(user.as_str(), name);
            }
            text
        });
        node
    }
}

/// What a client answers in an upgrade (XEP-0480): name, mechanism, salt and rounds.
fn salted(words: &str) -> Result<String> {
    let words: Vec<&str> = words.split_whitespace().collect();
    let [name, mechanism, salt, rounds] = words[..] else { bail!("`{{salted NAME MECHANISM SALT ROUNDS}}`") };
    let salted =
        Hash::of(mechanism)?.salted(&password(name), &BASE64_STANDARD.decode(salt)?, rounds.parse()?)?;
    Ok(BASE64_STANDARD.encode(salted))
}

/// The right password of an account.
fn password(name: &str) -> String {
    format!("secret-of-{name}")
}

fn parse(block: &str) -> Result<Vec<Node>> {
    parse_block(block).map_err(anyhow::Error::msg).context("the story's own XML")
}

/// A block is indented for people; the stream gets it without the white space around lines.
fn one_line(block: &str) -> String {
    block.lines().map(str::trim).collect()
}

/// Replaces an address where no longer name ends with it.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let before = rest[..at].chars().next_back();
        let own = before.is_none_or(|c| !c.is_alphanumeric() && !"-._".contains(c));
        out.push_str(&rest[..at]);
        out.push_str(if own { to } else { from });
        rest = &rest[at + from.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_replaced() {
        let said = "to='bob@localhost' from='jimbob@localhost' bob@localhost/x";
        let wired = replace_word(said, "bob@localhost", "bob-1@localhost");
        assert_eq!(wired, "to='bob-1@localhost' from='jimbob@localhost' bob-1@localhost/x");
    }
}

//! Against presence storms: a session that says the same thing again and again is told to stop, and disconnected.
//!
//! Presence is the same when its receiver, its type and all that is inside are the same; its id does not count. A
//! broadcast counts once, however many contacts hear it. Counting begins anew where a client resumes its session at another
//! node (XEP-0198); one that was ended here cannot be resumed.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hooks::{Answer, Card, Hooks, Leaving, Module, Passage, Services, SessionView, Step, Verdict};
use parking_lot::Mutex;
use stanza::{Kind, Stanza, StreamCondition, StreamError};
use toml_edit::Value;

use crate::settings::Setting;

const NAME: &str = "storm";
/// What the metrics count.
const DISCONNECTED: &str = "disconnected";
/// How many different presences of one session are remembered; beyond it the one that was said least recently goes.
const PRESENCES_MAX: usize = 16;
/// The most times that are remembered of one presence, and so the largest `count`.
const COUNT_MAX: usize = 1_000;

crate::settings! {
    /// `[modules.storm]`
    pub struct Config {
        /// How often a session may send the same presence within `interval_s`, at most 1000; once more, and it is told `policy-violation` and disconnected.
        count: usize = 20,
        /// Seconds in which those are counted.
        interval_s: usize = 10,
        /// What is different for single hosts, also written as [modules.storm.per_host."example.org"] with `count` or `interval_s` or both.
        per_host: PerHost = PerHost::default(),
    }
}

/// What single hosts have in place of the general settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PerHost(BTreeMap<String, Own>);

/// The settings of one host; what it does not say is as for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Own {
    count: Option<usize>,
    interval_s: Option<usize>,
}

impl Setting for PerHost {
    const EXPECTED: &'static str =
        "a table of hosts with `count` and `interval_s`, as in { \"example.org\" = { count = 50 } }";

    fn read(value: &Value) -> Option<PerHost> {
        let mut hosts = BTreeMap::new();
        for (host, value) in value.as_inline_table()?.iter() {
            let mut own = Own::default();
            for (key, value) in value.as_inline_table()?.iter() {
                let number = Some(usize::read(value)?);
                match key {
                    "count" => own.count = number,
                    "interval_s" => own.interval_s = number,
                    _ => return None,
                }
            }
            hosts.insert(host.to_owned(), own);
        }
        Some(PerHost(hosts))
    }

    fn write(&self) -> String {
        let key = |name, number: Option<usize>| number.map(|number| format!("{name} = {number}"));
        let host = |(host, own): (&String, &Own)| {
            let keys = [key("count", own.count), key("interval_s", own.interval_s)];
            format!("{host:?} = {{ {} }}", keys.into_iter().flatten().collect::<Vec<_>>().join(", "))
        };
        match self.0.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ {} }}", self.0.iter().map(host).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// How much is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    count: usize,
    interval: Duration,
}

/// Watches what sessions send.
#[derive(Default)]
pub struct Storm {
    config: Config,
    /// Its keys are random: nobody can make two presences that look the same to it.
    hasher: RandomState,
}

impl Storm {
    pub fn new(config: Config) -> Storm {
        Storm { config, hasher: RandomState::new() }
    }

    fn bound(&self, host: &str) -> Bound {
        let own = self.config.per_host.0.get(host).copied().unwrap_or_default();
        Bound {
            count: own.count.unwrap_or(self.config.count).min(COUNT_MAX),
            interval: Duration::from_secs(own.interval_s.unwrap_or(self.config.interval_s) as u64),
        }
    }

    fn print(&self, presence: &Stanza) -> u64 {
        let head = &presence.head;
        let to = head.to.as_ref().map(|to| to.as_str());
        self.hasher.hash_one((to, head.type_.as_deref(), head.lang.as_deref(), presence.body()))
    }
}

impl Module for Storm {
    fn card(&self) -> Card {
        Card {
            rfcs: &["RFC 6120, section 4.9.3.14 (what a client hears that breaks a rule of its service)"],
            ..Card::new(NAME, "Disconnects clients that send the same presence again and again.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self);
    }
}

/// When a session said what, kept in its notes: it goes with the session.
#[derive(Default)]
struct Said(Mutex<VecDeque<(u64, VecDeque<Duration>)>>);

impl Said {
    /// Notes that it was said now; how often that makes within the interval.
    fn again(&self, print: u64, now: Duration, bound: Bound) -> usize {
        let mut said = self.0.lock();
        let known = said.iter().position(|(other, _)| *other == print);
        let (_, mut times) = known.and_then(|at| said.remove(at)).unwrap_or_default();
        // A clock that was set back must not make a storm of what was said over a longer time.
        times.retain(|then| *then <= now && now - *then < bound.interval);
        times.push_back(now);
        let count = times.len();
        said.push_back((print, times));
        if said.len() > PRESENCES_MAX {
            said.pop_front();
        }
        count
    }
}

/// Noted of a session that is about to end: what it had sent by then comes all the same, and is not looked at.
struct Over;

impl Leaving for Storm {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let (Kind::Presence, Some(session)) = (passage.stanza.head.kind, &passage.sender) else {
            return Answer::PASS;
        };
        if passage.services.is_admin(session.account()) {
            return Answer::PASS;
        }
        if session.notes().get::<Over>().is_some() {
            return Answer::STOP;
        }
        let bound = self.bound(session.account().domain().as_str());
        let now = passage.services.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let said = session.notes().get_or_put(Said::default);
        if said.again(self.print(&passage.stanza), now, bound) <= bound.count {
            return Answer::PASS;
        }
        Answer::later(disconnect(&*passage.services, session))
    }
}

async fn disconnect(services: &dyn Services, session: &SessionView) -> Verdict {
    session.notes().put(Over);
    services.count(NAME, DISCONNECTED);
    tracing::info!(module = NAME, session = %session.jid(), "disconnecting a client that repeats its presence");
    let error = StreamError::new(StreamCondition::PolicyViolation).with_text("the same presence too often");
    services.dismiss(session, error).await;
    Verdict::Stop
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};

    use super::*;

    fn config(count: usize, interval_s: usize, per_host: &str) -> Config {
        let per_host = PerHost::read(&per_host.parse().unwrap()).unwrap();
        Config { count, interval_s, per_host }
    }

    fn bench(config: Config) -> Bench {
        Bench::new(&["localhost", "blitz.example"], move || vec![Arc::new(Storm::new(config.clone()))])
    }

    /// Sends it until the session is ended, at most so often; how often it was sent.
    async fn storm(client: &Client, presence: &str, most: usize) -> usize {
        for sent in 1..=most {
            client.send(presence).await;
            if client.dismissed().is_some() {
                return sent;
            }
        }
        most
    }

    #[test]
    fn who_repeats_a_presence_too_often_is_told_and_disconnected() {
        block_on(async {
            let bench = bench(config(3, 10, "{}"));
            let alice = bench.login("alice@localhost/phone").await;
            let bob = bench.login("bob@localhost/phone").await;
            let away = "<presence to='bob@localhost/phone'><show>away</show></presence>";
            assert_eq!(storm(&alice, away, 10).await, 4);
            let error = alice.dismissed().unwrap();
            assert_eq!(error.condition, StreamCondition::PolicyViolation);
            // What was sent before the client heard of it.
            alice.send(away).await;
            alice.send("<presence to='bob@localhost/phone'/>").await;
            assert_eq!(bob.hears().len(), 3, "what was too much goes nowhere");
            assert_eq!(bench.counted(NAME, DISCONNECTED), 1);
            assert!(bench.services().online(alice.view().account()).is_empty());
        });
    }

    #[test]
    fn what_differs_is_counted_apart_and_an_id_makes_no_difference() {
        block_on(async {
            let bench = bench(config(3, 10, "{}"));
            let alice = bench.login("alice@localhost/phone").await;
            for _ in 0..3 {
                for presence in [
                    "<presence/>",
                    "<presence type='unavailable'/>",
                    "<presence xml:lang='de'/>",
                    "<presence><show>away</show></presence>",
                    "<presence to='bob@localhost'/>",
                    "<presence to='bob@localhost/desk'/>",
                ] {
                    alice.send(presence).await;
                    assert_eq!(alice.dismissed(), None, "{presence}");
                }
            }
            alice.send("<presence id='4'/>").await;
            assert!(alice.dismissed().is_some());
        });
    }

    #[test]
    fn only_the_last_interval_counts_and_it_slides() {
        block_on(async {
            let bench = bench(config(3, 10, "{}"));
            let alice = bench.login("alice@localhost/phone").await;
            // Four seconds apart there are never more than three in ten seconds, however long it goes on.
            for _ in 0..50 {
                alice.send("<presence/>").await;
                assert_eq!(alice.dismissed(), None);
                bench.advance(Duration::from_secs(4));
            }
            assert_eq!(storm(&alice, "<presence/>", 10).await, 2);
        });
    }

    #[test]
    fn messages_and_admins_are_spared() {
        block_on(async {
            let bench = bench(config(1, 10, "{}"));
            bench.admin("boss@localhost");
            let boss = bench.login("boss@localhost/phone").await;
            assert_eq!(storm(&boss, "<presence/>", 100).await, 100);
            let alice = bench.login("alice@localhost/phone").await;
            assert_eq!(storm(&alice, "<message to='boss@localhost/phone'/>", 100).await, 100);
            assert_eq!(bench.counted(NAME, DISCONNECTED), 0);
        });
    }

    #[test]
    fn a_host_has_settings_of_its_own() {
        block_on(async {
            let bench = bench(config(2, 10, "{ 'blitz.example' = { count = 5, interval_s = 60 } }"));
            let alice = bench.login("alice@localhost/phone").await;
            let carol = bench.login("carol@blitz.example/phone").await;
            assert_eq!(storm(&alice, "<presence/>", 10).await, 3);
            carol.send("<presence/>").await;
            bench.advance(Duration::from_secs(59));
            assert_eq!(storm(&carol, "<presence/>", 10).await, 5);
        });
    }

    #[test]
    fn each_session_is_counted_by_itself() {
        block_on(async {
            let bench = bench(config(2, 10, "{}"));
            let phone = bench.login("alice@localhost/phone").await;
            let desk = bench.login("alice@localhost/desk").await;
            assert_eq!(storm(&phone, "<presence/>", 2).await, 2);
            assert_eq!(storm(&desk, "<presence/>", 2).await, 2);
            assert!(phone.dismissed().is_none() && desk.dismissed().is_none());
        });
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let said = Said::default();
        let bound = Bound { count: 3, interval: Duration::from_secs(10) };
        for print in 0..1_000 {
            assert_eq!(said.again(print, Duration::from_secs(1), bound), 1);
        }
        assert_eq!(said.0.lock().len(), PRESENCES_MAX);
        assert_eq!(said.again(999, Duration::from_secs(1), bound), 2);
        assert_eq!(said.again(0, Duration::from_secs(1), bound), 1, "it was forgotten");
        // A clock that goes back forgets too.
        assert_eq!(said.again(999, Duration::ZERO, bound), 1);
    }

    #[test]
    fn settings_of_hosts_are_read_and_written() {
        for text in ["{}", "{ \"a.example\" = { count = 5 }, \"b.example\" = { count = 1, interval_s = 2 } }"]
        {
            assert_eq!(PerHost::read(&text.parse().unwrap()).unwrap().write(), text);
        }
        for wrong in ["[]", "{ a = 1 }", "{ a = { count = 0 } }", "{ a = { counts = 1 } }"] {
            assert_eq!(PerHost::read(&wrong.parse().unwrap()), None, "{wrong}");
        }
    }
}

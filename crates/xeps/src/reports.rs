//! [XEP-0377]: Blocking Command Reports. Who blocks somebody may say why, to the operators.
//!
//! A report is kept with its host and sent to whom the config names, as a message with the report inside. What its user
//! does not want passed on goes to no other server. Left out: passing a report on to the server that the reported message
//! came from, which needs links to other servers.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hooks::{Answer, Card, Forgetting, Hooks, How, Module, Services, Status, Xep};
use jid::{BareJid, Jid};
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::{Stanza, StanzaError, address, dom, ns};
use store::{Batch, Committed, Expect, Partition, Range, StoreError, Stored, Table, Versioned};
use toml_edit::Value;

use crate::cache::KEY;
use crate::failure::{bad_request, store_failed};
use crate::forgeries::STANZA_ID;
use crate::rosters::partition;
use crate::settings::Setting;
use crate::time::utc;
use crate::xml::{Build, element};

const NAME: &str = "reports";
const NS: &str = "urn:xmpp:reporting:1";
/// What the metrics count: reports that were kept, those beyond the bound of their user, those that the store did not keep.
const TAKEN: &str = "taken";
const TOO_MANY: &str = "too_many";
const FAILED: &str = "failed";
/// The longest reason and the longest id of a message, in bytes; a longer one is refused with `bad-request`.
const WORD_BYTES_MAX: usize = 1_000;
/// The most messages that one report may name; further ones are refused with `bad-request`.
const IDS_MAX: usize = 50;
/// How often a change starts anew when another writer was first.
const ATTEMPTS: usize = 32;
/// How many reports are looked through at a time when an account is removed.
const PAGE: usize = 100;
const HOUR_S: u64 = 60 * 60;

crate::settings! {
    /// `[modules.reports]`
    pub struct Config {
        /// Who gets each report as a message; accounts of other servers get those alone whose users allow that.
        forward_to: Addresses = Addresses::default(),
        /// The most reports that are kept for one host; beyond it the oldest go.
        reports_max: usize = 10_000,
        /// The most reports of one account in an hour; what is beyond it blocks and is not taken for a report.
        per_hour: usize = 20,
        /// The longest text of a report, in bytes of all its languages, at most 100000; of a longer one the report is taken and the text is not.
        text_bytes_max: usize = 4_096,
    }
}

/// Whom messages are sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(Vec<Jid>);

impl Setting for Addresses {
    const EXPECTED: &'static str = "a list of addresses, as in [\"abuse@example.org\"]";

    fn read(value: &Value) -> Option<Addresses> {
        let addresses = value.as_array()?.iter().map(|item| address::jid(item.as_str()?).ok());
        addresses.collect::<Option<Vec<Jid>>>().map(Addresses)
    }

    fn write(&self) -> String {
        let addresses: Vec<String> = self.0.iter().map(|jid| format!("{:?}", jid.as_str())).collect();
        format!("[{}]", addresses.join(", "))
    }
}

/// What a user says of somebody whom they block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Seconds since 1970.
    at_s: u64,
    /// The account that reports.
    by: String,
    /// Who is reported.
    about: String,
    reason: String,
    /// A language, where one was named, and the words.
    texts: Vec<(Option<String>, String)>,
    /// Messages: the archive that knows the id, and the id.
    messages: Vec<(String, String)>,
    /// Whether the user allows that others than this server and that of the message get it, and that that one does.
    third_party: bool,
    report_origin: bool,
}

impl Stored for Report {
    const TABLE: Table = Table("reports");
    const SCHEMA: u8 = 1;
}

/// How many reports are kept for a host. Each report changes it, so that two at a time do not pass the bound together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    reports: u64,
    /// The number of the next one: the order of reports is that of their numbers.
    next: u64,
}

impl Stored for Tally {
    const TABLE: Table = Table("reports_tally");
    const SCHEMA: u8 = 1;
}

/// How many reports an account has made within the hour.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    since_s: u64,
    reports: u64,
}

impl Stored for Made {
    const TABLE: Table = Table("reports_made");
    const SCHEMA: u8 = 1;
}

/// The reports in a request to block: each with its item (section 6).
fn read(block: &Element) -> Result<Vec<Report>, StanzaError> {
    let mut reports = Vec::new();
    for item in block.children() {
        let Some(report) = item.children().find(|child| child.is("report", NS)) else { continue };
        let about = item.attr("jid").and_then(|jid| address::jid(jid).ok());
        let about = about.ok_or_else(|| bad_request("a report is about an address"))?;
        reports.push(report_of(report, &about)?);
    }
    Ok(reports)
}

fn report_of(report: &Element, about: &Jid) -> Result<Report, StanzaError> {
    let word = |text: Option<&str>| {
        let fits = text.filter(|text| !text.is_empty() && text.len() <= WORD_BYTES_MAX);
        fits.map(str::to_owned)
    };
    // Section 4.
    let reason = word(report.attr("reason")).ok_or_else(|| bad_request("a report has a reason"))?;
    let mut messages = Vec::new();
    for id in report.children().filter(|child| child.is("stanza-id", STANZA_ID)) {
        let (Some(by), Some(id)) = (word(id.attr("by")), word(id.attr("id"))) else {
            return Err(bad_request("a `stanza-id` has `by` and `id`"));
        };
        messages.push((by, id));
    }
    if messages.len() > IDS_MAX {
        return Err(bad_request("too many messages in one report"));
    }
    let texts = report.children().filter(|child| child.is("text", NS)).map(|text| {
        let lang = text.attrs().get::<str, str>(ns::XML, "lang");
        (lang.cloned(), text.text().trim().to_owned())
    });
    let has = |name| report.children().any(|child| child.is(name, NS));
    Ok(Report {
        at_s: 0,
        by: String::new(),
        about: about.as_str().to_owned(),
        reason,
        texts: texts.collect(),
        messages,
        third_party: has("third-party"),
        report_origin: has("report-origin"),
    })
}

impl Report {
    /// As it was sent.
    fn element(&self) -> Element {
        let mut report = element("report", NS).with("reason", &self.reason);
        for (by, id) in &self.messages {
            report.append_child(element("stanza-id", STANZA_ID).with("by", by).with("id", id));
        }
        for (lang, text) in &self.texts {
            let mut text = element("text", NS).text_node(text);
            if let (Some(lang), Some(name)) = (lang, dom::attribute_name("lang")) {
                text.set_attr(ns::XML.into(), name, lang);
            }
            report.append_child(text);
        }
        for (name, _) in [("report-origin", self.report_origin), ("third-party", self.third_party)]
            .into_iter()
            .filter(|(_, is_said)| *is_said)
        {
            report.append_child(element(name, NS));
        }
        report
    }

    /// What an operator reads.
    fn sentence(&self) -> String {
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(self.at_s)).unwrap_or(UNIX_EPOCH);
        let reason = self.reason.rsplit(':').next().unwrap_or_default();
        let texts: Vec<&str> = self.texts.iter().map(|(_, text)| text.as_str()).collect();
        let mut sentence = format!("{}: {} reports {} for {reason}", utc(at), self.by, self.about);
        for (before, text) in texts.into_iter().filter(|text| !text.is_empty()).map(|text| (": ", text)) {
            sentence += before;
            sentence += text;
        }
        sentence
    }

    /// The message that tells of it.
    fn message(&self, host: &Jid, to: &Jid) -> Stanza {
        Stanza::message(None)
            .with_from(host.clone())
            .with_to(to.clone())
            .with_child(&element("subject", ns::CLIENT).text_node("Abuse report"))
            .with_child(&element("body", ns::CLIENT).text_node(&self.sentence()))
            .with_child(&self.element())
    }
}

/// Keeps reports and passes them on.
pub struct Reports {
    config: Config,
}

impl Reports {
    pub fn new(config: Config) -> Reports {
        Reports { config }
    }

    /// The reports in a request to block, where they are taken.
    pub fn read(
        &self,
        services: &dyn Services,
        account: &BareJid,
        block: &Element,
    ) -> Result<Vec<Report>, StanzaError> {
        let is_on = services.cards(account.domain().as_str()).iter().any(|card| card.name == NAME);
        if is_on { read(block) } else { Ok(Vec::new()) }
    }

    /// Takes the reports of an account, which has blocked whom they are about. What cannot be kept is logged: the block
    /// counts all the same (section 6).
    pub async fn take(&self, services: &dyn Services, account: &BareJid, reports: Vec<Report>) {
        for report in reports {
            let event = match self.take_one(services, account, report).await {
                Ok(true) => TAKEN,
                Ok(false) => TOO_MANY,
                Err(error) => {
                    drop(store_failed(NAME, &error));
                    FAILED
                }
            };
            services.count(NAME, event);
        }
    }

    async fn take_one(
        &self,
        services: &dyn Services,
        account: &BareJid,
        mut report: Report,
    ) -> Result<bool, StoreError> {
        report.at_s = services.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        report.by = account.as_str().to_owned();
        let bytes: usize = report.texts.iter().map(|(_, text)| text.len()).sum();
        if bytes > self.config.text_bytes_max.min(100_000) {
            report.texts.clear();
        }
        if !self.may(services, account, report.at_s).await? {
            return Ok(false);
        }
        self.keep(services, account.domain().as_str(), &report).await?;
        let Ok(host) = Jid::new(account.domain().as_str()) else { return Ok(true) };
        for to in &self.config.forward_to.0 {
            // Section 5: no other server has it without its user's word.
            if services.is_local_host(to.domain().as_str()) || report.third_party {
                services.route(report.message(&host, to), How::Normal).await;
            }
        }
        Ok(true)
    }

    /// Counts one more report of the account, if it may make one.
    async fn may(&self, services: &dyn Services, account: &BareJid, now_s: u64) -> Result<bool, StoreError> {
        let partition = partition(account);
        for _ in 0..ATTEMPTS {
            let found: Option<Versioned<Made>> = services.store().get_versioned(&partition, KEY).await?;
            let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
            let mut made = found.map(|found| found.value).unwrap_or_default();
            if now_s.abs_diff(made.since_s) >= HOUR_S {
                made = Made { since_s: now_s, reports: 0 };
            }
            if made.reports >= self.config.per_hour as u64 {
                return Ok(false);
            }
            made.reports += 1;
            let batch = Batch::new(partition.clone()).expect::<Made>(KEY, expect).put(KEY, &made);
            if services.store().commit_one(batch).await? == Committed::Done {
                return Ok(true);
            }
        }
        Err(StoreError::Contended { table: Made::TABLE.0, attempts: ATTEMPTS })
    }

    async fn keep(&self, services: &dyn Services, host: &str, report: &Report) -> Result<(), StoreError> {
        let (store, partition) = (services.store(), Partition::Host(host.into()));
        for _ in 0..ATTEMPTS {
            let (expect, mut tally) = tally(services, &partition).await?;
            let mut batch = Batch::new(partition.clone()).expect::<Tally>(KEY, expect);
            if tally.reports >= self.config.reports_max as u64 {
                let oldest = store.scan::<Report>(&partition, Range::all().limit(1)).await?;
                for (key, _) in oldest {
                    batch = batch.delete::<Report>(key);
                    tally.reports = tally.reports.saturating_sub(1);
                }
            }
            batch = batch.put(tally.next.to_be_bytes().to_vec(), report);
            let tally = Tally { reports: tally.reports + 1, next: tally.next + 1 };
            if store.commit_one(batch.put(KEY, &tally)).await? == Committed::Done {
                return Ok(());
            }
        }
        Err(StoreError::Contended { table: Tally::TABLE.0, attempts: ATTEMPTS })
    }
}

async fn tally(services: &dyn Services, partition: &Partition) -> Result<(Expect, Tally), StoreError> {
    let found: Option<Versioned<Tally>> = services.store().get_versioned(partition, KEY).await?;
    Ok(match found {
        Some(found) => (Expect::Version(found.version), found.value),
        None => (Expect::Absent, Tally::default()),
    })
}

/// Takes out what an account has reported.
async fn forget(services: &dyn Services, account: &BareJid) -> Result<(), StoreError> {
    let (store, partition) = (services.store(), Partition::Host(account.domain().as_str().into()));
    let mut range = Range::all().limit(PAGE);
    loop {
        let page = store.scan::<Report>(&partition, range).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        range = Range::after(last.clone()).limit(PAGE);
        let own: Vec<Vec<u8>> = page
            .into_iter()
            .filter(|(_, report)| report.by == account.as_str())
            .map(|(key, _)| key)
            .collect();
        if !own.is_empty() {
            remove(services, &partition, &own).await?;
        }
        services.pause().await;
    }
}

async fn remove(services: &dyn Services, partition: &Partition, keys: &[Vec<u8>]) -> Result<(), StoreError> {
    for _ in 0..ATTEMPTS {
        let (expect, mut tally) = tally(services, partition).await?;
        tally.reports = tally.reports.saturating_sub(keys.len() as u64);
        let batch = Batch::new(partition.clone()).expect::<Tally>(KEY, expect).put(KEY, &tally);
        let batch = keys.iter().fold(batch, |batch, key| batch.delete::<Report>(key.clone()));
        if services.store().commit_one(batch).await? == Committed::Done {
            return Ok(());
        }
    }
    Err(StoreError::Contended { table: Tally::TABLE.0, attempts: ATTEMPTS })
}

impl Module for Reports {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 377,
                title: "Blocking Command Reports",
                version: "0.4.1",
                status: Status::Proposed,
            }],
            host_features: &[NS],
            ..Card::new(NAME, "Takes what users say of those whom they block, and tells the operators.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.forgetting(self);
    }
}

impl Forgetting for Reports {
    fn forgetting<'a>(&'a self, account: &'a BareJid, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        Answer::later(async move {
            if let Err(error) = forget(&**services, account).await {
                tracing::warn!(module = NAME, %account, %error, "failed to take out the reports of an account");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};
    use stanza::Condition;

    use super::*;
    use crate::index::{ModulesConfig, modules};

    fn bench(config: Config) -> Bench {
        let mut config = ModulesConfig { reports: config, ..ModulesConfig::default() };
        config.set("reports", "enabled", &"true".parse().unwrap()).unwrap();
        Bench::cluster(2, &["localhost"], move || modules(&config))
    }

    fn to_abuse() -> Config {
        Config { forward_to: Addresses(vec![Jid::new("abuse@localhost").unwrap()]), ..Config::default() }
    }

    /// Blocks somebody with what is inside of the item; what was answered.
    async fn block(client: &Client, jid: &str, inside: &str) -> Option<Condition> {
        client
            .send(&format!(
                "<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='{jid}'>{inside}</item></block></iq>"
            ))
            .await;
        let heard = client.hears_stanzas();
        let answer = heard.iter().find(|stanza| stanza.head.id.as_deref() == Some("b")).expect("an answer");
        answer.as_error().map(|error| error.condition)
    }

    async fn kept(bench: &Bench) -> Vec<Report> {
        let partition = Partition::Host("localhost".into());
        let all = bench.store().scan::<Report>(&partition, Range::all()).await.unwrap();
        let (_, tally) = tally(&*bench.services(), &partition).await.unwrap();
        assert_eq!(tally.reports, all.len() as u64);
        all.into_iter().map(|(_, report)| report).collect()
    }

    const SPAM: &str = "<report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'>\
                        <stanza-id xmlns='urn:xmpp:sid:0' by='alice@localhost' id='28482'/>\
                        <text xml:lang='en'>Never came trouble to my house like this.</text></report>";

    #[test]
    fn a_report_blocks_is_kept_and_reaches_the_operators() {
        block_on(async {
            let bench = bench(to_abuse());
            let alice = bench.online("alice@localhost/phone").await;
            let abuse = bench.online_at(1, "abuse@localhost/desk").await;
            let eve = bench.online("eve@localhost/phone").await;
            assert_eq!(block(&alice, "eve@localhost", SPAM).await, None);
            eve.send("<message to='alice@localhost' type='chat'><body>buy</body></message>").await;
            assert!(alice.hears().is_empty());
            let heard = abuse.hears_stanzas();
            assert_eq!(heard.len(), 1);
            assert_eq!(heard[0].head.from.as_ref().map(Jid::as_str), Some("localhost"));
            assert_eq!(
                heard[0].child("body", ns::CLIENT).unwrap().text(),
                "2026-01-01T00:00:00Z: alice@localhost reports eve@localhost for spam: \
                 Never came trouble to my house like this."
            );
            let report = heard[0].child("report", NS).unwrap();
            assert_eq!(report.children().count(), 2);
            let kept = kept(&bench).await;
            assert_eq!(kept.len(), 1);
            assert_eq!((kept[0].by.as_str(), kept[0].about.as_str()), ("alice@localhost", "eve@localhost"));
            assert_eq!(kept[0].messages, [("alice@localhost".to_owned(), "28482".to_owned())]);
            assert_eq!(bench.counted(NAME, TAKEN), 1);
        });
    }

    #[test]
    fn a_block_without_a_report_tells_nobody_and_a_bad_report_blocks_nobody() {
        block_on(async {
            let bench = bench(to_abuse());
            let alice = bench.online("alice@localhost/phone").await;
            let eve = bench.online("eve@localhost/phone").await;
            assert_eq!(block(&alice, "mallory@localhost", "").await, None);
            let ids = "<stanza-id xmlns='urn:xmpp:sid:0' by='a' id='1'/>".repeat(IDS_MAX + 1);
            let long = "x".repeat(WORD_BYTES_MAX + 1);
            for bad in [
                "<report xmlns='urn:xmpp:reporting:1'/>".to_owned(),
                "<report xmlns='urn:xmpp:reporting:1' reason=''/>".to_owned(),
                format!("<report xmlns='urn:xmpp:reporting:1' reason='{long}'/>"),
                format!("<report xmlns='urn:xmpp:reporting:1' reason='a'>{ids}</report>"),
                "<report xmlns='urn:xmpp:reporting:1' reason='a'><stanza-id xmlns='urn:xmpp:sid:0' id='1'/></report>"
                    .to_owned(),
            ] {
                assert_eq!(block(&alice, "eve@localhost", &bad).await, Some(Condition::BadRequest), "{bad}");
            }
            eve.send("<message to='alice@localhost' type='chat'><body>hi</body></message>").await;
            assert_eq!(alice.hears().len(), 1);
            assert!(kept(&bench).await.is_empty());
        });
    }

    #[test]
    fn bounds_hold_and_the_block_counts_all_the_same() {
        block_on(async {
            let bench =
                bench(Config { reports_max: 2, per_hour: 3, text_bytes_max: 10, ..Config::default() });
            let alice = bench.online("alice@localhost/phone").await;
            for eve in ["a@localhost", "b@localhost", "c@localhost", "d@localhost"] {
                assert_eq!(block(&alice, eve, SPAM).await, None, "{eve}");
            }
            let about: Vec<String> = kept(&bench).await.into_iter().map(|report| report.about).collect();
            assert_eq!(about, ["b@localhost", "c@localhost"], "the oldest went, the fourth was one too many");
            assert!(kept(&bench).await.iter().all(|report| report.texts.is_empty()));
            assert_eq!((bench.counted(NAME, TAKEN), bench.counted(NAME, TOO_MANY)), (3, 1));
            bench.advance(Duration::from_secs(HOUR_S));
            assert_eq!(block(&alice, "e@localhost", SPAM).await, None);
            assert_eq!(bench.counted(NAME, TAKEN), 4);
        });
    }

    #[test]
    fn other_servers_get_what_the_user_allows() {
        block_on(async {
            let far = Addresses(vec![Jid::new("abuse@elsewhere.example").unwrap()]);
            let bench = bench(Config { forward_to: far, ..Config::default() });
            let alice = bench.online("alice@localhost/phone").await;
            assert_eq!(block(&alice, "a@localhost", SPAM).await, None);
            assert!(bench.outside().is_empty());
            let allowed = SPAM.replace("</report>", "<third-party/></report>");
            assert_eq!(block(&alice, "b@localhost", &allowed).await, None);
            assert!(bench.outside()[0].contains("<third-party"));
        });
    }

    #[test]
    fn what_an_account_reported_goes_with_it() {
        block_on(async {
            let bench = bench(Config { per_hour: 1_000, ..Config::default() });
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online("bob@localhost/phone").await;
            for number in 0..PAGE {
                assert_eq!(block(&alice, &format!("e{number}@localhost"), SPAM).await, None);
            }
            assert_eq!(block(&bob, "eve@localhost", SPAM).await, None);
            bench.remove_account("alice@localhost").await;
            let left: Vec<String> = kept(&bench).await.into_iter().map(|report| report.by).collect();
            assert_eq!(left, ["bob@localhost"]);
        });
    }

    #[test]
    fn where_the_module_is_off_a_report_is_not_looked_at() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || modules(&ModulesConfig::default()));
            let alice = bench.online("alice@localhost/phone").await;
            let none = "<report xmlns='urn:xmpp:reporting:1'/>";
            assert_eq!(block(&alice, "eve@localhost", none).await, None);
        });
    }
}

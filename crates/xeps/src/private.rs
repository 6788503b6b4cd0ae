//! [XEP-0049]: Private XML Storage. Clients keep what they like with the account, for its own sessions alone.
//!
//! What is asked for is named by its element's name and namespace. An element without attributes and content is the
//! same as none, so whoever sets one takes back what was kept. Bookmarks of rooms are kept in their node where accounts
//! have nodes (XEP-0402, 5.3 and XEP-0411), so that all clients of a user have the same. Left out: nothing; the optional refusal of
//! reserved namespaces is made. By it clients agree on how the groups of a roster are nested (XEP-0083); the server shows
//! the names of groups as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Services, Status, Xep};
use jid::BareJid;
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::{Condition, IqType, StanzaError, dom};
use store::{Batch, Committed, Expect, StoreError, Stored, Table, Versioned};

use crate::cache::KEY;
use crate::failure::{Failure, bad_request};
use crate::pep;
use crate::pep::bookmarks::{COMPAT, CONVERSION, STORAGE};
use crate::rosters::partition;
use crate::xml::Build;

const NAME: &str = "private";
const NS: &str = "jabber:iq:private";
/// How often a set starts anew when another writer was first.
const ATTEMPTS: usize = 32;
/// The longest name of an element with its namespace, in bytes: both are a key in the store.
const NAME_BYTES_MAX: usize = 1_023;

crate::settings! {
    /// `[modules.private]`
    pub struct Config {
        /// The most elements of different names that are kept for one account; a client that sets more is told `resource-constraint`.
        elements_max: usize = 200,
        /// The most bytes of all that is kept for one account; at the bound as above.
        bytes_max: usize = 512 * 1024,
    }
}

/// All elements of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    xml: Vec<u8>,
}

impl Stored for Kept {
    const TABLE: Table = Table("private");
    const SCHEMA: u8 = 1;
}

/// How much is kept for an account. Each set changes it, and so two at the same time do not pass the bounds together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    elements: u64,
    bytes: u64,
    /// Grows with each set: one that replaces like by like is a change too.
    sets: u64,
}

impl Stored for Tally {
    const TABLE: Table = Table("private_tally");
    const SCHEMA: u8 = 1;
}

/// Keeps elements for the sessions of an account.
pub struct Private {
    config: Config,
    /// Where bookmarks are, if they are kept in nodes.
    nodes: Option<Arc<pep::Core>>,
}

impl Private {
    pub fn new(config: Config, nodes: Option<Arc<pep::Core>>) -> Private {
        Private { config, nodes }
    }
}

impl Module for Private {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 49, title: "Private XML Storage", version: "1.2", status: Status::Active },
                Xep { number: 48, title: "Bookmark Storage", version: "1.2", status: Status::Deprecated },
                Xep {
                    number: 411,
                    title: "Bookmarks Conversion",
                    version: "1.1.0",
                    status: Status::Deprecated,
                },
                Xep { number: 83, title: "Nested Roster Groups", version: "1.0", status: Status::Active },
            ],
            host_features: &[NS],
            account_features: if self.nodes.is_some() { &[COMPAT, CONVERSION] } else { &[] },
            ..Card::new(NAME, "Keeps for clients what they want to find again in their other sessions.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, NS, self);
    }
}

impl Answering for Private {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if !passage.is_own() {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        Answer::later(async {
            let answer = match passage.stanza.iq_type() {
                Ok(IqType::Get) => self.get(passage).await,
                _ => self.set(passage).await,
            };
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

/// What a request is about: at least one element, each in a namespace that is its own.
fn elements(passage: &Passage) -> Result<Vec<&Element>, StanzaError> {
    let not_acceptable = |text: &str| Err(StanzaError::new(Condition::NotAcceptable).with_text(text));
    let query = passage.stanza.child("query", NS).ok_or_else(|| bad_request("no query"))?;
    let elements: Vec<&Element> = query.children().collect();
    if elements.is_empty() {
        // XEP-0049, 2.3. The `bad-format` that it prefers for a get is no condition of a stanza error any more.
        return not_acceptable("at least one element is needed");
    }
    for element in &elements {
        let namespace = element.ns();
        if namespace.is_empty() || is_reserved(&namespace) {
            return not_acceptable("an element needs a namespace that is not reserved");
        }
        if namespace.len() + element.name().len() > NAME_BYTES_MAX {
            return not_acceptable("the name of an element is too long");
        }
    }
    Ok(elements)
}

/// XEP-0049, 2.3: namespaces in which the server keeps what clients ask for in other ways.
fn is_reserved(namespace: &str) -> bool {
    namespace.starts_with("jabber:")
        || namespace.starts_with("http://jabber.org/")
        || namespace == "vcard-temp"
}

/// Neither is ever part of a namespace or a name in XML.
fn key(element: &Element) -> Vec<u8> {
    [element.ns().as_bytes(), b"\0", element.name().as_bytes()].concat()
}

impl Private {
    async fn get(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        let asked = elements(passage)?;
        // XEP-0049, 2.3.
        if asked.iter().any(|element| element.ns() != asked[0].ns()) {
            return Err(bad_request("a get asks for one namespace").into());
        }
        let asked: BTreeMap<Vec<u8>, &Element> =
            asked.into_iter().map(|element| (key(element), element)).collect();
        let mut out = BytesMut::from(&b"<query xmlns='jabber:iq:private'>"[..]);
        for (key, element) in asked {
            let kept: Option<Kept> = passage.services.store().get(&partition(account), key).await?;
            if let Some(nodes) = self.nodes.as_ref().filter(|_| is_bookmarks(element))
                && let Some(conferences) = nodes.bookmarks(&*passage.services, account).await?
            {
                let beside = match nodes.beside_bookmarks(&*passage.services, account).await? {
                    Some(beside) => {
                        Some(beside.into_iter().fold(Element::bare("storage", STORAGE), Element::child))
                    }
                    None => kept.and_then(|kept| dom::parse(&kept.xml).ok()),
                };
                let beside = beside.unwrap_or_else(|| Element::bare("storage", STORAGE));
                let all = conferences.into_iter().fold(beside, Element::child);
                dom::write(&all, NS, &mut out);
                continue;
            }
            match kept {
                Some(kept) => out.extend_from_slice(&kept.xml),
                None => dom::write(&Element::bare(element.name(), element.ns()), NS, &mut out),
            }
        }
        out.extend_from_slice(b"</query>");
        Ok(Reply::Written(out.freeze()))
    }

    async fn set(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        let mut wanted: BTreeMap<Vec<u8>, BytesMut> = BTreeMap::new();
        let mut bookmarks = None;
        for element in elements(passage)? {
            if self.nodes.is_some() && is_bookmarks(element) {
                // What is beside them, as addresses of pages, stays here.
                let (conferences, beside) = parted(element);
                bookmarks = Some((conferences, beside.children().cloned().collect()));
                let xml = wanted.entry(key(element)).or_default();
                if beside.nodes().next().is_some() {
                    xml.extend_from_slice(&dom::to_bytes(&beside));
                }
                continue;
            }
            let xml = wanted.entry(key(element)).or_default();
            if element.nodes().next().is_some() || element.attrs().iter().next().is_some() {
                xml.extend_from_slice(&dom::to_bytes(element));
            }
        }
        let wanted = wanted.into_iter().map(|(key, xml)| (key, xml.freeze())).collect();
        if let (Some(nodes), Some((bookmarks, beside))) = (&self.nodes, bookmarks) {
            // First, as it may find one that is none.
            nodes.set_bookmarks(&passage.services, account, &bookmarks).await?;
            nodes.renew_storage(&passage.services, account, Some(beside)).await?;
        }
        self.keep(&*passage.services, account, wanted).await?;
        Ok(Reply::empty())
    }

    /// Puts all of it in one step, or none where it would be too much.
    async fn keep(
        &self,
        services: &dyn Services,
        account: &BareJid,
        wanted: BTreeMap<Vec<u8>, Bytes>,
    ) -> Result<(), Failure> {
        let (store, partition) = (services.store(), partition(account));
        for _ in 0..ATTEMPTS {
            let stored: Option<Versioned<Tally>> = store.get_versioned(&partition, KEY).await?;
            let expect = stored.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
            let before = stored.map(|found| found.value).unwrap_or_default();
            let mut batch = Batch::new(partition.clone()).expect::<Tally>(KEY, expect);
            let mut tally = Tally { sets: before.sets + 1, ..before };
            for (key, xml) in &wanted {
                let kept: Option<Kept> = store.get(&partition, key.clone()).await?;
                if let Some(kept) = kept {
                    tally.elements = tally.elements.saturating_sub(1);
                    tally.bytes = tally.bytes.saturating_sub(size(key, &kept.xml));
                }
                if xml.is_empty() {
                    batch = batch.delete::<Kept>(key.clone());
                    continue;
                }
                tally.elements += 1;
                tally.bytes += size(key, xml);
                batch = batch.put(key.clone(), &Kept { xml: xml.to_vec() });
            }
            // What takes less than before is taken however much it is: the bounds may have been set lower.
            let is_more = tally.elements > before.elements || tally.bytes > before.bytes;
            let is_full = tally.elements > self.config.elements_max as u64
                || tally.bytes > self.config.bytes_max as u64;
            if is_more && is_full {
                return Err(StanzaError::new(Condition::ResourceConstraint).into());
            }
            if store.commit_one(batch.put(KEY, &tally)).await? == Committed::Done {
                return Ok(());
            }
        }
        Err(StoreError::Contended { table: Tally::TABLE.0, attempts: ATTEMPTS }.into())
    }
}

fn is_bookmarks(element: &Element) -> bool {
    element.is("storage", STORAGE)
}

/// The bookmarks of rooms, and the element with all else.
fn parted(storage: &Element) -> (Vec<&Element>, Element) {
    let is_room = |child: &&Element| child.is("conference", STORAGE);
    let beside = storage.children().filter(|child| !is_room(child));
    let beside = beside.fold(Element::bare("storage", STORAGE), |all, child| all.child(child.clone()));
    (storage.children().filter(is_room).collect(), beside)
}

fn size(key: &[u8], xml: &[u8]) -> u64 {
    (key.len() + xml.len()) as u64
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};

    use super::*;
    use crate::index::{ModulesConfig, modules};
    use crate::roster::tests::friends;

    fn bench(config: Config) -> Bench {
        let config = ModulesConfig { private: config, ..ModulesConfig::default() };
        Bench::cluster(2, &["localhost"], move || modules(&config))
    }

    async fn ask(client: &Client, kind: &str, inside: &str) -> String {
        client.hears();
        client
            .send(&format!("<iq type='{kind}' id='1'><query xmlns='jabber:iq:private'>{inside}</query></iq>"))
            .await;
        let heard = client.hears_stanzas();
        assert_eq!(heard.len(), 1, "{heard:?}");
        match heard[0].as_error() {
            Some(error) => error.condition.tag().to_owned(),
            None => String::from_utf8(heard[0].body().to_vec()).unwrap(),
        }
    }

    fn answered(inside: &str) -> String {
        format!("<query xmlns='jabber:iq:private'>{inside}</query>")
    }

    const PREFS: &str =
        "<exodus xmlns='exodus:prefs'><nick>Hamlet &amp; I</nick><x xmlns='urn:x' a='1'/></exodus>";

    #[test]
    fn what_is_set_is_there_for_every_session_of_the_account() {
        block_on(async {
            let bench = bench(Config::default());
            let phone = bench.login_at(0, "alice@localhost/phone").await;
            let desk = bench.login_at(1, "alice@localhost/desk").await;
            let other = bench.login_at(1, "bob@localhost/desk").await;
            let empty = answered("<exodus xmlns='exodus:prefs'/>");
            assert_eq!(ask(&phone, "get", "<exodus xmlns='exodus:prefs'/>").await, empty);
            assert_eq!(ask(&phone, "set", PREFS).await, "");
            assert_eq!(ask(&desk, "get", "<exodus xmlns='exodus:prefs'/>").await, answered(PREFS));
            assert_eq!(
                ask(&desk, "get", "<exodus xmlns='exodus:prefs'><old/></exodus>").await,
                answered(PREFS)
            );
            assert_eq!(
                ask(&desk, "get", "<exodus xmlns='other'/>").await,
                answered("<exodus xmlns='other'/>")
            );
            assert_eq!(
                ask(&desk, "get", "<other xmlns='exodus:prefs'/>").await,
                answered("<other xmlns='exodus:prefs'/>")
            );
            assert_eq!(ask(&other, "get", "<exodus xmlns='exodus:prefs'/>").await, empty);
            assert_eq!(ask(&desk, "set", "<exodus xmlns='exodus:prefs'/>").await, "");
            assert_eq!(ask(&phone, "get", "<exodus xmlns='exodus:prefs'/>").await, empty);
        });
    }

    /// XEP-0083, 3.
    #[test]
    fn clients_agree_on_how_groups_are_nested_and_their_names_stay_as_they_are() {
        block_on(async {
            let bench = bench(Config::default());
            let phone = bench.login_at(0, "alice@localhost/phone").await;
            let desk = bench.login_at(1, "alice@localhost/desk").await;
            assert_eq!(ask(&phone, "set", "<roster xmlns='roster:delimiter'>::</roster>").await, "");
            let delimiter = answered("<roster xmlns='roster:delimiter'>::</roster>");
            assert_eq!(ask(&desk, "get", "<roster xmlns='roster:delimiter'/>").await, delimiter);
            phone
                .send(
                    "<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='bottom@athens.example'>\
                     <group>Midsummer::Actors</group></item></query></iq>",
                )
                .await;
            desk.send("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>").await;
            assert!(desk.hears()[0].contains("<group>Midsummer::Actors</group>"));
        });
    }

    #[test]
    fn several_elements_are_set_in_one_step_and_those_of_one_namespace_are_got_in_one() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.login("alice@localhost/phone").await;
            let set =
                "<a xmlns='urn:a'>1</a><a xmlns='urn:a'>2</a><b xmlns='urn:a'>3</b><c xmlns='urn:c'>4</c>";
            assert_eq!(ask(&alice, "set", set).await, "");
            let got = ask(&alice, "get", "<b xmlns='urn:a'/><a xmlns='urn:a'/>").await;
            assert_eq!(got, answered("<a xmlns='urn:a'>1</a><a xmlns='urn:a'>2</a><b xmlns='urn:a'>3</b>"));
            assert_eq!(ask(&alice, "get", "<a xmlns='urn:a'/><c xmlns='urn:c'/>").await, "bad-request");
        });
    }

    #[test]
    fn what_is_not_acceptable_is_refused_and_changes_nothing() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.login("alice@localhost/phone").await;
            let long = format!("<a xmlns='urn:{}'>1</a>", "x".repeat(NAME_BYTES_MAX));
            for kind in ["get", "set"] {
                for inside in [
                    "",
                    "text",
                    "<a>1</a>",
                    "<a xmlns=''>1</a>",
                    "<query xmlns='jabber:iq:roster'>1</query>",
                    "<x xmlns='jabber:anything'>1</x>",
                    "<x xmlns='http://jabber.org/protocol/muc'>1</x>",
                    "<vCard xmlns='vcard-temp'><FN>Hamlet</FN></vCard>",
                    "<a xmlns='urn:a'>1</a><vCard xmlns='vcard-temp'/>",
                    &long,
                ] {
                    assert_eq!(ask(&alice, kind, inside).await, "not-acceptable", "{kind} {inside}");
                }
            }
            assert_eq!(ask(&alice, "get", "<a xmlns='urn:a'/>").await, answered("<a xmlns='urn:a'/>"));
            alice.send("<iq type='get' id='1'><other xmlns='jabber:iq:private'/></iq>").await;
            let condition = alice.hears_stanzas()[0].as_error().unwrap().condition;
            assert_eq!(condition, Condition::BadRequest);
        });
    }

    #[test]
    fn what_another_keeps_is_nobodys() {
        block_on(async {
            let bench = bench(Config::default());
            let (alice, bob) = friends(&bench).await;
            ask(&bob, "set", PREFS).await;
            for (to, condition) in [("bob", Condition::Forbidden), ("nobody", Condition::ServiceUnavailable)]
            {
                for kind in ["get", "set"] {
                    alice.hears();
                    alice
                        .send(&format!(
                            "<iq to='{to}@localhost' type='{kind}' id='1'><query xmlns='{NS}'>\
                             <exodus xmlns='exodus:prefs'/></query></iq>"
                        ))
                        .await;
                    assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, condition);
                }
            }
            assert_eq!(ask(&bob, "get", "<exodus xmlns='exodus:prefs'/>").await, answered(PREFS));
        });
    }

    #[test]
    fn both_bounds_hold_and_there_is_room_again_for_what_was_taken_back() {
        block_on(async {
            let bench = bench(Config { elements_max: 2, bytes_max: 200 });
            let alice = bench.login("alice@localhost/phone").await;
            assert_eq!(ask(&alice, "set", "<a xmlns='urn:a'>1</a><b xmlns='urn:a'>1</b>").await, "");
            assert_eq!(ask(&alice, "set", "<c xmlns='urn:a'>1</c>").await, "resource-constraint");
            assert_eq!(ask(&alice, "set", "<c xmlns='urn:a'>1</c><a xmlns='urn:a'/>").await, "");
            let large = format!("<c xmlns='urn:a'>{}</c>", "x".repeat(150));
            assert_eq!(ask(&alice, "set", &large).await, "resource-constraint");
            assert_eq!(ask(&alice, "set", &format!("{large}<b xmlns='urn:a'/>")).await, "");
            assert_eq!(ask(&alice, "get", "<c xmlns='urn:a'/>").await, answered(&large));
            bench.remove_account("alice@localhost").await;
            let alice = bench.login("alice@localhost/phone").await;
            assert_eq!(ask(&alice, "get", "<c xmlns='urn:a'/>").await, answered("<c xmlns='urn:a'/>"));
            assert_eq!(ask(&alice, "set", "<a xmlns='urn:a'>1</a><b xmlns='urn:a'>1</b>").await, "");
        });
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let kept: Kept = store::record::decode(&[1, 4, b'<', b'a', b'/', b'>']).unwrap();
        assert_eq!(kept.xml, b"<a/>");
        let tally: Tally = store::record::decode(&[1, 2, 200, 1, 3]).unwrap();
        assert_eq!(tally, Tally { elements: 2, bytes: 200, sets: 3 });
    }
}

//! [XEP-0054]: vcard-temp, and [XEP-0153]: vCard-Based Avatars. What users tell others about themselves.
//!
//! A host has no vCard of its own. A photo is that of the user's nodes too, and presence speaks of it, where [`avatars`] is
//! on; else what a client says of it in presence (XEP-0153, section 4) passes through as it is.
//!
//! [`avatars`]: crate::avatars

use std::sync::Arc;

use bytes::Bytes;
use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Services, Status, Xep};
use jid::BareJid;
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::{Condition, IqType, StanzaError, dom};
use store::{StoreError, Stored, Table};

use crate::cache::KEY;
use crate::failure::{Failure, bad_request};
use crate::pep;
use crate::pep::avatars::Picture;
use crate::rosters::partition;
use crate::xml::{Build, element};

const NAME: &str = "vcard";
/// The namespace of vCards.
pub const NS: &str = "vcard-temp";

crate::settings! {
    /// `[modules.vcard]`
    pub struct Config {
        /// The largest vCard, in bytes, at most 900000; a larger one is refused with `policy-violation`.
        bytes_max: usize = 128 * 1024,
    }
}

/// The largest value that every engine can keep, with room for what stands around it.
const BYTES_MAX: usize = 900_000;

/// The vCard of an account, as XML that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    xml: Vec<u8>,
}

impl Stored for Kept {
    const TABLE: Table = Table("vcard");
    const SCHEMA: u8 = 1;
}

/// Keeps the vCard of each account and shows it to others.
pub struct VCard {
    config: Config,
    /// Where the pictures are that are those of vCards too.
    nodes: Option<Arc<pep::Core>>,
}

impl VCard {
    pub fn new(config: Config, nodes: Option<Arc<pep::Core>>) -> VCard {
        VCard { config, nodes }
    }
}

impl Module for VCard {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 54, title: "vcard-temp", version: "1.3.0", status: Status::Active },
                Xep { number: 153, title: "vCard-Based Avatars", version: "1.1.1", status: Status::Active },
            ],
            host_features: &[NS],
            account_features: &[NS],
            ..Card::new(NAME, "Keeps what users tell about themselves, a picture too.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Account, NS, self);
    }
}

impl Answering for VCard {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let is_set = match passage.stanza.iq_type() {
            Ok(IqType::Set) => true,
            Ok(IqType::Get) => false,
            _ => return Answer::Now(Reply::Error(bad_request("neither get nor set"))),
        };
        if is_set && !passage.is_own() {
            // XEP-0054, 3.2.
            return Answer::Now(Reply::Error(StanzaError::new(Condition::Forbidden)));
        }
        Answer::later(async move {
            let answer = match is_set {
                true => self.set(passage).await,
                false => self.get(passage).await,
            };
            answer.unwrap_or_else(|failure| Reply::Error(failure.answer(NAME)))
        })
    }
}

impl VCard {
    async fn get(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        if !passage.stanza.has_child("vCard", NS) {
            return Err(bad_request("no vCard is asked for").into());
        }
        let kept: Option<Kept> = passage.services.store().get(&partition(account), KEY).await?;
        match kept {
            Some(kept) => Ok(Reply::Written(Bytes::from(kept.xml))),
            // XEP-0054, 3.1.
            None if passage.is_own() => Err(StanzaError::new(Condition::ItemNotFound).into()),
            // XEP-0054, 3.3: as of an account that does not exist.
            None => Err(StanzaError::new(Condition::ServiceUnavailable).into()),
        }
    }

    async fn set(&self, passage: &Passage) -> Result<Reply, Failure> {
        let account = passage.account.as_ref().ok_or_else(|| bad_request("no account"))?;
        let vcard = passage.stanza.child("vCard", NS).ok_or_else(|| bad_request("no vCard"))?;
        let store = passage.services.store();
        let before = match &self.nodes {
            Some(_) => {
                store.get::<Kept>(&partition(account), KEY).await?.and_then(|kept| picture(&kept.element()?))
            }
            None => None,
        };
        if vcard.nodes().next().is_none() {
            store.delete::<Kept>(&partition(account), KEY).await?;
            if let Some(nodes) = &self.nodes {
                nodes.picture_of_vcard(&passage.services, account, before.as_ref(), None).await;
            }
            return Ok(Reply::empty());
        }
        let xml = dom::to_bytes(vcard);
        if xml.len() > self.config.bytes_max.min(BYTES_MAX) {
            let error = StanzaError::new(Condition::PolicyViolation);
            return Err(error.with_text("the vCard is too large").into());
        }
        store.put(&partition(account), KEY, &Kept { xml: xml.to_vec() }).await?;
        if let Some(nodes) = &self.nodes {
            let now = picture(vcard);
            nodes.picture_of_vcard(&passage.services, account, before.as_ref(), now.as_ref()).await;
        }
        Ok(Reply::empty())
    }
}

impl Kept {
    fn element(&self) -> Option<Element> {
        dom::parse(&self.xml).ok()
    }
}

/// The picture of a vCard, if it has one that is a picture.
fn picture(vcard: &Element) -> Option<Picture> {
    let photo = vcard.get_child("PHOTO", NS)?;
    let kind = photo.get_child("TYPE", NS).map(Element::text).filter(|kind| !kind.trim().is_empty());
    Picture::read(kind.as_deref().unwrap_or("image/png"), &photo.get_child("BINVAL", NS)?.text())
}

/// Gives the vCard of an account this picture, or none; `false`: it would be too large, or is as it was.
pub async fn put_picture(
    services: &dyn Services,
    account: &BareJid,
    new: Option<&Picture>,
    bytes_max: usize,
) -> Result<bool, StoreError> {
    let mut is_changed = false;
    let change = |found: Option<Kept>| {
        is_changed = false;
        let vcard = found.as_ref().and_then(Kept::element);
        if vcard.as_ref().and_then(picture).as_ref() == new {
            return found;
        }
        let mut vcard = vcard.unwrap_or_else(|| element("vCard", NS));
        while vcard.remove_child("PHOTO", NS).is_some() {}
        if let Some(new) = new {
            let kind = element("TYPE", NS).text_node(&new.kind);
            let bytes = element("BINVAL", NS).text_node(&new.text());
            vcard.append_child(element("PHOTO", NS).child(kind).child(bytes));
        }
        let xml = dom::to_bytes(&vcard);
        if new.is_some() && xml.len() > bytes_max.min(BYTES_MAX) {
            return found;
        }
        is_changed = true;
        vcard.nodes().next().is_some().then(|| Kept { xml: xml.to_vec() })
    };
    services.store().update(&partition(account), KEY, change).await?;
    Ok(is_changed)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};

    use super::*;
    use crate::index::{ModulesConfig, modules};
    use crate::roster::tests::friends;

    fn bench(config: ModulesConfig) -> Bench {
        Bench::cluster(2, &["localhost"], move || modules(&config))
    }

    /// The payload of the answer, or its condition.
    async fn ask(client: &Client, to: &str, kind: &str, payload: &str) -> String {
        client.hears();
        let to = if to.is_empty() { String::new() } else { format!(" to='{to}@localhost'") };
        client.send(&format!("<iq{to} type='{kind}' id='1'>{payload}</iq>")).await;
        let heard = client.hears_stanzas();
        assert_eq!(heard.len(), 1, "{heard:?}");
        match heard[0].as_error() {
            Some(error) => error.condition.tag().to_owned(),
            None => String::from_utf8(heard[0].body().to_vec()).unwrap(),
        }
    }

    const GET: &str = "<vCard xmlns='vcard-temp'/>";
    const CARD: &str = "<vCard xmlns='vcard-temp'><FN>Bob &amp; Co</FN><PHOTO><TYPE>image/png</TYPE>\
                        <BINVAL>iVBORw0KGgo=</BINVAL></PHOTO></vCard>";

    #[test]
    fn a_vcard_is_set_got_replaced_and_taken_back() {
        block_on(async {
            let bench = bench(ModulesConfig::default());
            let bob = bench.login("bob@localhost/phone").await;
            assert_eq!(ask(&bob, "", "get", GET).await, "item-not-found");
            assert_eq!(ask(&bob, "", "set", CARD).await, "");
            assert_eq!(ask(&bob, "", "get", GET).await, CARD);
            assert_eq!(ask(&bob, "bob", "get", GET).await, CARD);
            let other = "<vCard xmlns='vcard-temp' version='3.0'><FN>Robert</FN></vCard>";
            assert_eq!(ask(&bob, "bob", "set", other).await, "");
            assert_eq!(ask(&bob, "", "get", GET).await, other);
            assert_eq!(ask(&bob, "", "set", GET).await, "");
            assert_eq!(ask(&bob, "", "get", GET).await, "item-not-found");
            assert_eq!(ask(&bob, "", "set", "<other xmlns='vcard-temp'/>").await, "bad-request");
            assert_eq!(ask(&bob, "", "get", "<other xmlns='vcard-temp'/>").await, "bad-request");
        });
    }

    #[test]
    fn contacts_see_it_whether_its_owner_is_there_or_not_and_cannot_change_it() {
        block_on(async {
            let bench = bench(ModulesConfig::default());
            let (alice, bob) = friends(&bench).await;
            assert_eq!(ask(&alice, "bob", "get", GET).await, "service-unavailable");
            ask(&bob, "", "set", CARD).await;
            assert_eq!(ask(&alice, "bob", "get", GET).await, CARD);
            assert_eq!(ask(&alice, "bob", "set", CARD).await, "forbidden");
            bob.close().await;
            let desk = bench.login_at(1, "alice@localhost/desk").await;
            assert_eq!(ask(&desk, "bob", "get", GET).await, CARD);
        });
    }

    #[test]
    fn strangers_hear_the_same_of_every_account_unless_the_config_shows_them_vcards() {
        block_on(async {
            for shown in [false, true] {
                let mut config = ModulesConfig::default();
                config.strangers.vcards = shown;
                let bench = bench(config);
                let bob = bench.login("bob@localhost/phone").await;
                bench.account("carol@localhost");
                ask(&bob, "", "set", CARD).await;
                let eve = bench.login("eve@localhost/phone").await;
                let expected = if shown { CARD } else { "service-unavailable" };
                assert_eq!(ask(&eve, "bob", "get", GET).await, expected);
                for (to, kind) in [("carol", "get"), ("nobody", "get"), ("carol", "set"), ("nobody", "set")] {
                    assert_eq!(ask(&eve, to, kind, GET).await, "service-unavailable", "{kind} {to}");
                }
                assert_eq!(ask(&eve, "bob", "set", CARD).await, "service-unavailable");
            }
        });
    }

    #[test]
    fn a_vcard_has_a_largest_size_and_goes_with_its_account() {
        block_on(async {
            let mut config = ModulesConfig::default();
            config.vcard.bytes_max = CARD.len();
            let bench = bench(config);
            let bob = bench.login("bob@localhost/phone").await;
            assert_eq!(ask(&bob, "", "set", CARD).await, "");
            let larger = CARD.replace("Co", "Company");
            assert_eq!(ask(&bob, "", "set", &larger).await, "policy-violation");
            assert_eq!(ask(&bob, "", "get", GET).await, CARD);
            bench.remove_account("bob@localhost").await;
            let bob = bench.login("bob@localhost/phone").await;
            assert_eq!(ask(&bob, "", "get", GET).await, "item-not-found");
        });
    }

    #[test]
    fn the_stored_bytes_of_schema_1_stay_readable() {
        let kept: Kept = store::record::decode(&[1, 4, b'<', b'a', b'/', b'>']).unwrap();
        assert_eq!(kept.xml, b"<a/>");
    }
}

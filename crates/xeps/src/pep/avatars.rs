//! [XEP-0398]: the picture of a user's nodes (XEP-0084) is that of their vCard (XEP-0054), whichever was changed last.

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooks::Services;
use jid::BareJid;
use minidom::Element;
use serde::{Deserialize, Serialize};
use stanza::dom;
use store::{StoreError, Stored, Table};

use super::{Core, NAME};
use crate::cache::{Cache, KEY};
use crate::failure::{Failure, store_failed};
use crate::pubsub::access::Asker;
use crate::pubsub::config::AccessModel;
use crate::pubsub::engine::New;
use crate::pubsub::events::{self, Event};
use crate::pubsub::tables::Item;
use crate::rosters::partition;
use crate::vcard;
use crate::xml::{Build, element};

/// The node of what is said of a picture, and its namespace.
pub const METADATA: &str = "urn:xmpp:avatar:metadata";
/// The node of the picture itself.
const DATA: &str = "urn:xmpp:avatar:data";
/// Told to sessions of other nodes: what is known there of the picture is old.
pub const CHANGED: &[u8] = b"<changed xmlns='urn:rookery:avatars'/>";

/// The hash of the picture that a vCard has; empty: it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureHash(pub String);

impl Stored for PictureHash {
    const TABLE: Table = Table("picture_hash");
    const SCHEMA: u8 = 1;
}

/// What is known of the pictures of all accounts.
pub struct Pictures {
    pub hashes: Cache<PictureHash>,
    /// The largest vCard, in bytes.
    vcard_bytes_max: usize,
    /// Strangers may read vCards.
    vcards_are_open: bool,
}

impl Pictures {
    pub fn new(vcard_bytes_max: usize, vcards_are_open: bool) -> Pictures {
        Pictures { hashes: Cache::default(), vcard_bytes_max, vcards_are_open }
    }
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its media type.
    pub kind: String,
    pub bytes: Vec<u8>,
}

impl Picture {
    /// Of its text in base64, with spaces and lines where they are.
    pub fn read(kind: &str, text: &str) -> Option<Picture> {
        let text: String = text.split_ascii_whitespace().collect();
        let bytes = BASE64.decode(text).ok().filter(|bytes| !bytes.is_empty())?;
        Some(Picture { kind: kind.trim().to_owned(), bytes })
    }

    pub fn text(&self) -> String {
        BASE64.encode(&self.bytes)
    }

    /// XEP-0084, 4.2.1 and XEP-0153, 3.1: its SHA-1, in hexadecimal digits.
    pub fn hash(&self) -> String {
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.bytes);
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What the nodes of an account say of its picture.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    A(Picture),
    /// The user has none any more.
    None,
    /// Something that no vCard can have.
    Other,
}

/// What metadata name first that is here, and not at some other place (XEP-0398, 3.1).
enum Info {
    Here {
        id: String,
        kind: String,
    },
    /// XEP-0084, 4.3: no picture at all.
    None,
    Other,
}

fn info(metadata: &[u8]) -> Info {
    let Ok(metadata) = dom::parse(metadata) else { return Info::Other };
    let mut infos = metadata.children().filter(|child| child.is("info", METADATA)).peekable();
    if infos.peek().is_none() {
        return Info::None;
    }
    match infos.find(|info| info.attr("url").is_none()).map(|info| (info.attr("id"), info.attr("type"))) {
        Some((Some(id), kind)) => {
            Info::Here { id: id.to_owned(), kind: kind.unwrap_or("image/png").to_owned() }
        }
        _ => Info::Other,
    }
}

fn owner(account: &BareJid) -> Asker {
    Asker { bare: account.clone(), is_owner: true, presence: true, groups: Vec::new() }
}

impl Core {
    /// What is known of pictures, if vCards have the same ones.
    pub fn pictures(&self) -> Option<&Pictures> {
        self.pictures.as_ref()
    }

    /// Puts the picture of the nodes into the vCard. The publication stands whatever becomes of it.
    pub(super) async fn picture_to_vcard(&self, services: &Arc<dyn Services>, account: &BareJid) {
        let Some(pictures) = &self.pictures else { return };
        let copied = async {
            let picture = match self.picture(&**services, account, pictures).await? {
                Said::Other => return Ok(()),
                Said::None => None,
                Said::A(picture) => Some(picture),
            };
            if vcard::put_picture(&**services, account, picture.as_ref(), pictures.vcard_bytes_max).await? {
                let hash = picture.map(|picture| picture.hash());
                self.note_picture(services, account, hash).await?;
            }
            Ok::<(), Failure>(())
        };
        if let Err(failure) = copied.await {
            drop(failure.answer(NAME));
        }
    }

    async fn picture(
        &self,
        services: &dyn Services,
        account: &BareJid,
        pictures: &Pictures,
    ) -> Result<Said, StoreError> {
        let service = self.service(services, account);
        let Some(node) = service.node(METADATA).await? else { return Ok(Said::None) };
        let Some(item) = service.last(METADATA, &node).await? else { return Ok(Said::None) };
        let (id, kind) = match info(&item.xml) {
            Info::Here { id, kind } => (id, kind),
            Info::None => return Ok(Said::None),
            Info::Other => return Ok(Said::Other),
        };
        let Some(data) = service.node(DATA).await? else { return Ok(Said::Other) };
        // XEP-0398, 7: a vCard is shown to nobody who may not see the nodes.
        let may_all_see = |access: &AccessModel| match access {
            AccessModel::Open => true,
            AccessModel::Presence => !pictures.vcards_are_open,
            _ => false,
        };
        if !may_all_see(&data.config.access) || !may_all_see(&node.config.access) {
            return Ok(Said::Other);
        }
        let Some((_, item)) =
            service.find(DATA, &id).await?.filter(|(_, item)| !service.is_over(&data, item))
        else {
            return Ok(Said::Other);
        };
        let text = dom::parse(&item.xml).ok().filter(|xml| xml.is("data", DATA)).map(|xml| xml.text());
        let picture = text.and_then(|text| Picture::read(&kind, &text));
        match picture.filter(|picture| picture.hash().eq_ignore_ascii_case(&id)) {
            Some(picture) => Ok(Said::A(picture)),
            None => Ok(Said::Other),
        }
    }

    /// Puts the picture of a vCard that was set into the nodes. The vCard stands whatever becomes of it.
    pub async fn picture_of_vcard(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        before: Option<&Picture>,
        now: Option<&Picture>,
    ) {
        if self.pictures.is_none() || (before.is_none() && now.is_none()) {
            return;
        }
        let copied = async {
            let hash = now.map(Picture::hash);
            self.note_picture(services, account, hash.clone()).await?;
            let known = self.picture_id(&**services, account).await?;
            match (now, hash) {
                (Some(picture), Some(hash)) if known.as_ref() != Some(&hash) => {
                    let data = element("data", DATA).text_node(&picture.text());
                    self.publish(services, account, DATA, &hash, &data).await?;
                    let info = element("info", METADATA)
                        .with("bytes", &picture.bytes.len().to_string())
                        .with("id", &hash)
                        .with("type", &picture.kind);
                    let metadata = element("metadata", METADATA).child(info);
                    self.publish(services, account, METADATA, &hash, &metadata).await?;
                }
                // The one that the vCard had is gone; another one stays.
                (None, _) if known.is_some() && known == before.map(Picture::hash) => {
                    let id = super::random_id(&**services);
                    self.publish(services, account, METADATA, &id, &element("metadata", METADATA)).await?;
                }
                _ => {}
            }
            Ok::<(), Failure>(())
        };
        if let Err(failure) = copied.await {
            let error = failure.answer(NAME);
            tracing::debug!(module = NAME, %account, condition = error.condition.tag(), "kept no picture of a vCard");
        }
    }

    /// The id that the metadata of an account name first.
    async fn picture_id(
        &self,
        services: &dyn Services,
        account: &BareJid,
    ) -> Result<Option<String>, StoreError> {
        let service = self.service(services, account);
        let Some(node) = service.node(METADATA).await? else { return Ok(None) };
        let item = service.last(METADATA, &node).await?;
        let metadata = item.and_then(|item| dom::parse(&item.xml).ok());
        let id = metadata.as_ref().and_then(|metadata| metadata.get_child("info", METADATA)?.attr("id"));
        Ok(id.map(str::to_owned))
    }

    async fn publish(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        name: &str,
        id: &str,
        payload: &Element,
    ) -> Result<(), Failure> {
        let service = self.service(&**services, account);
        let xml = dom::to_bytes(payload).to_vec();
        let new = New { id: id.to_owned(), xml, namespace: payload.ns() };
        let node = service.publish(name, Some(&new), None, &owner(account)).await?.node;
        let publisher = account.as_str().to_owned();
        let item = Item { id: new.id, publisher, at_s: service.now_s, xml: new.xml };
        let event = Event::Published { item: Some(&item), payload: node.config.deliver_payloads };
        let others = service.others(name, &node).await?;
        self.tell(services, account, &node.config, &others, events::event(name, event)).await;
        Ok(())
    }

    /// Notes of which picture presence is to speak.
    async fn note_picture(
        &self,
        services: &Arc<dyn Services>,
        account: &BareJid,
        hash: Option<String>,
    ) -> Result<(), StoreError> {
        let Some(pictures) = &self.pictures else { return Ok(()) };
        let partition = partition(account);
        match hash {
            Some(hash) => drop(services.store().put(&partition, KEY, &PictureHash(hash)).await?),
            None => drop(services.store().delete::<PictureHash>(&partition, KEY).await?),
        }
        pictures.hashes.forget_everywhere(&**services, account, CHANGED).await;
        Ok(())
    }

    /// The hash that presence is to speak of; `None`: it is not known here, and has to be read.
    pub fn known_picture(&self, account: &BareJid) -> Option<Arc<PictureHash>> {
        self.pictures.as_ref()?.hashes.get(account)
    }

    /// The hash that presence is to speak of, where there is one.
    pub async fn picture_hash(&self, services: &dyn Services, account: &BareJid) -> Option<Arc<PictureHash>> {
        match self.pictures.as_ref()?.hashes.of(services, account).await {
            Ok(hash) => Some(hash),
            Err(error) => {
                drop(store_failed(NAME, &error));
                None
            }
        }
    }
}

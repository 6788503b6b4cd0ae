//! [XEP-0441]: Message Archive Management Preferences. Of whom an account's messages are archived.

use std::sync::Arc;
use std::time::Duration;

use hooks::{How, Notes, Passage, Reply, Services, SessionView};
use jid::{BareJid, Jid};
use minidom::Element;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stanza::address::{self, same_account};
use stanza::{Condition, Head, IqType, Kind, Stanza, StanzaError};
use store::{StoreError, Stored, Table};
use toml_edit::Value;

use super::{MAM, NAME};
use crate::failure::{Failure, bad_request};
use crate::settings::Setting;
use crate::xml::{Build, element};

/// How long a message waits for its account's preferences when they are not at hand; after that it is archived as
/// messages of accounts without any are.
const PATIENCE: Duration = Duration::from_secs(1);
/// The one key of an account's preferences.
const KEY: &[u8] = b"";
/// Told to sessions of other nodes: what is known there of the preferences is old.
const CHANGED: &[u8] = b"<changed xmlns='urn:rookery:archive:preferences'/>";

/// What is done with messages of whoever is on no list (section 2.1.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    #[default]
    Always,
    Never,
    Roster,
}

impl Policy {
    fn word(self) -> &'static str {
        match self {
            Policy::Always => "always",
            Policy::Never => "never",
            Policy::Roster => "roster",
        }
    }

    fn read_word(word: &str) -> Option<Policy> {
        [Policy::Always, Policy::Never, Policy::Roster].into_iter().find(|policy| policy.word() == word)
    }
}

impl Setting for Policy {
    const EXPECTED: &'static str = "`always`, `never` or `roster`, in quotes";

    fn read(value: &Value) -> Option<Policy> {
        Policy::read_word(value.as_str()?)
    }

    fn write(&self) -> String {
        format!("\"{}\"", self.word())
    }
}

/// What an account has said of its archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences {
    pub default: Policy,
    pub always: Vec<String>,
    pub never: Vec<String>,
}

impl Stored for Preferences {
    const TABLE: Table = Table("archive_preferences");
    const SCHEMA: u8 = 1;
}

impl Preferences {
    /// Whether messages with that address are archived; `None`: where it is in the roster.
    pub fn wants(&self, with: &Jid) -> Option<bool> {
        // Section 2.3.1: a bare address on a list stands for all of its resources.
        let bare = with.as_str().split('/').next().unwrap_or_default();
        let is_on = |list: &[String]| list.iter().any(|one| one == with.as_str() || one == bare);
        if is_on(&self.never) {
            return Some(false);
        }
        if is_on(&self.always) {
            return Some(true);
        }
        match self.default {
            Policy::Always => Some(true),
            Policy::Never => Some(false),
            Policy::Roster => None,
        }
    }

    fn element(&self) -> Element {
        let list = |name, jids: &[String]| {
            jids.iter().fold(element(name, MAM), |list, jid| list.child(element("jid", MAM).text_node(jid)))
        };
        let prefs = element("prefs", MAM).with("default", self.default.word());
        prefs.child(list("always", &self.always)).child(list("never", &self.never))
    }

    fn read(prefs: &Element, jids_max: usize) -> Result<Preferences, StanzaError> {
        let default = prefs.attr("default").and_then(Policy::read_word);
        let default = default.ok_or_else(|| bad_request("`default` is `always`, `never` or `roster`"))?;
        let list = |name| -> Result<Vec<String>, StanzaError> {
            let mut jids = Vec::new();
            let Some(list) = prefs.get_child(name, MAM) else { return Ok(jids) };
            for jid in list.children().filter(|child| child.is("jid", MAM)) {
                if jids.len() >= jids_max {
                    let full = StanzaError::new(Condition::ResourceConstraint);
                    return Err(full.with_text(format!("at most {jids_max} addresses on a list")));
                }
                let jid = address::jid(jid.text().trim());
                let jid = jid.map_err(|_| StanzaError::new(Condition::JidMalformed))?;
                if !jids.iter().any(|known| known == jid.as_str()) {
                    jids.push(jid.as_str().to_owned());
                }
            }
            Ok(jids)
        };
        Ok(Preferences { default, always: list("always")?, never: list("never")? })
    }
}

/// The preferences as a session knows them, with how often they have changed since it was bound.
#[derive(Default)]
struct Known(Mutex<(u64, Option<Arc<Preferences>>)>);

fn forget(session: &SessionView) {
    let known = session.notes().get_or_put(Known::default);
    let mut known = known.0.lock();
    known.0 += 1;
    known.1 = None;
}

/// The preferences, if the session knows them: no store is asked on the way of a message.
pub fn known(notes: &Notes) -> Option<Arc<Preferences>> {
    notes.get::<Known>()?.0.lock().1.clone()
}

/// The preferences of an account, from the store where no session of it knows them.
pub async fn of(
    services: &dyn Services,
    account: &BareJid,
    session: Option<&SessionView>,
    default: Policy,
) -> Arc<Preferences> {
    let known = session.map(|session| session.notes().get_or_put(Known::default));
    let before = known.as_ref().map(|known| known.0.lock().0);
    let store = services.store().with_deadline(PATIENCE);
    match store.get::<Preferences>(&crate::rosters::partition(account), KEY).await {
        Ok(found) => {
            let preferences = Arc::new(found.unwrap_or(Preferences { default, ..Preferences::default() }));
            if let Some(known) = known {
                let mut known = known.0.lock();
                if Some(known.0) == before {
                    known.1 = Some(preferences.clone());
                }
            }
            preferences
        }
        Err(error) => {
            tracing::warn!(module = NAME, %error, "archived as by default: failed to read preferences");
            Arc::new(Preferences { default, ..Preferences::default() })
        }
    }
}

/// Answers a request for preferences, or one to change them.
pub async fn answer(passage: &Passage, default: Policy, jids_max: usize) -> Result<Reply, Failure> {
    let (services, account) = (&*passage.services, passage.account.as_ref());
    let (Some(account), Some(prefs)) = (account, passage.stanza.payload()) else {
        return Err(bad_request("no preferences").into());
    };
    let partition = crate::rosters::partition(account);
    if passage.stanza.iq_type() == Ok(IqType::Get) {
        let found: Option<Preferences> = services.store().get(&partition, KEY).await?;
        let preferences = found.unwrap_or(Preferences { default, ..Preferences::default() });
        return Ok(Reply::with(preferences.element()));
    }
    let preferences = Preferences::read(prefs, jids_max)?;
    services.store().put(&partition, KEY, &preferences).await?;
    tell(services, account).await;
    Ok(Reply::with(preferences.element()))
}

/// Has every session of the account look anew.
async fn tell(services: &dyn Services, account: &BareJid) {
    // One that was bound before the change was written may have read what was before; it must be known here.
    if let Err(error) = services.read_barrier().await {
        tracing::debug!(module = NAME, %error, "telling of preferences without a read barrier");
    }
    services.local_sessions(account).iter().for_each(|session| forget(session));
    for other in services.online(account).into_iter().filter(|other| !other.here) {
        let head = Head {
            from: Some(account.clone().into()),
            to: Some(other.jid.into()),
            ..Head::new(Kind::Message)
        };
        services.route(Stanza::new(head, bytes::Bytes::from_static(CHANGED)), How::Direct).await;
    }
}

/// Whether it tells of a change: nobody else sends anything from the account itself.
pub fn is_change(stanza: &Stanza, account: &BareJid) -> bool {
    stanza.head.kind == Kind::Message
        && stanza.body() == CHANGED
        && stanza.head.from.as_ref().is_some_and(|from| from.is_bare() && same_account(from, account))
}

/// Takes what tells a session of a change.
pub fn changed(session: &SessionView) {
    forget(session);
}

/// What reading a list of contacts came to, where it is needed.
pub async fn is_in_roster(
    rosters: &crate::rosters::Rosters,
    services: &dyn Services,
    account: &BareJid,
    with: &Jid,
) -> Result<bool, StoreError> {
    let roster = rosters.of(services, account).await?;
    Ok(roster.items.contains_key(with.to_bare().as_str()))
}

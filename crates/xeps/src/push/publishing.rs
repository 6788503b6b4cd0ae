//! What is published to a push service (XEP-0357, 7), and how often.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hooks::{How, Services};
use jid::{BareJid, Jid};
use minidom::Element;
use parking_lot::Mutex;
use stanza::{Head, Kind, Stanza, dom, ns};

use super::{Core, NAME, NS, Registration, Tells};
use crate::pep::random_id;
use crate::xml::{Build, element};
use crate::{carbons, forms, forwarded, pubsub};

const SUMMARY: &str = "urn:xmpp:push:summary";
/// Registrations of all accounts that had a notification within the interval; of further ones each message is published.
const TURNS_MAX: usize = 100_000;
/// The most bytes of a message's text that a service is told.
const TEXT_BYTES_MAX: usize = 1_024;
/// How the id of a notification begins, before the token of its registration.
const ID: &str = "push-";

/// Who has had a notification just now, and what has come since.
pub struct Publishing {
    interval: Duration,
    tells: Tells,
    turns: Mutex<HashMap<u64, Option<Summary>>>,
}

/// What is said of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Summary {
    sender: Option<String>,
    text: Option<String>,
}

impl Publishing {
    pub fn new(interval: Duration, tells: Tells) -> Publishing {
        Publishing { interval, tells, turns: Mutex::default() }
    }

    /// Whether a notification goes at once; else it goes with the next one.
    fn begin(&self, token: u64, summary: &Summary) -> bool {
        let mut turns = self.turns.lock();
        if let Some(waiting) = turns.get_mut(&token) {
            *waiting = Some(summary.clone());
            return false;
        }
        if turns.len() < TURNS_MAX {
            turns.insert(token, None);
        }
        true
    }

    /// The interval is over: what has come meanwhile.
    fn next(&self, token: u64) -> Option<Summary> {
        let mut turns = self.turns.lock();
        let next = turns.get_mut(&token).and_then(Option::take);
        if next.is_none() {
            turns.remove(&token);
        }
        next
    }
}

/// The token in the id of a notification.
pub fn token(id: &str) -> Option<u64> {
    let (token, _) = id.strip_prefix(ID)?.split_once('-')?;
    u64::from_str_radix(token, 16).ok()
}

impl Core {
    /// Lets a service know of a message, now or with others at the end of the interval.
    pub(super) async fn publish(
        self: &Arc<Self>,
        services: &Arc<dyn Services>,
        account: &BareJid,
        to: &Registration,
        message: &Stanza,
    ) {
        let summary = summary(self.publishing.tells, message);
        if !self.publishing.begin(to.token, &summary) {
            return;
        }
        self.send(&**services, account, to, &summary).await;
        services
            .later(self.publishing.interval, self.clone().go_on(services.clone(), account.clone(), to.token));
    }

    fn go_on(
        self: Arc<Self>,
        services: Arc<dyn Services>,
        account: BareJid,
        token: u64,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(summary) = self.publishing.next(token) else { return };
            // It may have gone, or have other options by now.
            let known = match self.cache.of(&*services, &account).await {
                Ok(all) => all.0.iter().find(|one| one.token == token).cloned(),
                Err(error) => return drop(crate::failure::store_failed(NAME, &error)),
            };
            if let Some(to) = known {
                self.send(&*services, &account, &to, &summary).await;
            }
            services.later(self.publishing.interval, self.clone().go_on(services.clone(), account, token));
        })
    }

    async fn send(
        &self,
        services: &dyn Services,
        account: &BareJid,
        registration: &Registration,
        summary: &Summary,
    ) {
        let Ok(to) = Jid::new(&registration.jid) else { return };
        let head = Head {
            // Section 3: a service takes notifications from the bare address of an account.
            from: Some(account.clone().into()),
            to: Some(to),
            id: Some(format!("{ID}{:016x}-{}", registration.token, random_id(services)).into()),
            type_: Some("set".into()),
            ..Head::new(Kind::Iq)
        };
        let body = dom::to_bytes(&notification(registration, summary));
        services.count(NAME, "published");
        services.route(Stanza::new(head, body), How::Normal).await;
    }
}

fn notification(registration: &Registration, summary: &Summary) -> Element {
    let mut said = element("notification", NS);
    if summary.sender.is_some() {
        let field = |var, value: &Option<String>| value.clone().map(|value| (var, vec![value]));
        let fields =
            [field("last-message-sender", &summary.sender), field("last-message-body", &summary.text)];
        said = said.child(forms::result(SUMMARY, fields.into_iter().flatten()));
    }
    let item = element("item", pubsub::NS).child(said);
    let publish = element("publish", pubsub::NS).with_some("node", registration.node.as_deref());
    let mut asked = element("pubsub", pubsub::NS).child(publish.child(item));
    let options = registration.options.as_ref().and_then(|xml| dom::parse(xml).ok());
    if let Some(options) = options {
        asked = asked.child(element("publish-options", pubsub::NS).child(options));
    }
    asked
}

/// What the settings let be said of a message; of a copy (XEP-0280), of what it is a copy of.
fn summary(tells: Tells, message: &Stanza) -> Summary {
    if tells == Tells::Nothing {
        return Summary::default();
    }
    let received = message.child("received", carbons::NS);
    let inner = received.and_then(|received| received.get_child("forwarded", forwarded::NS));
    let inner = inner.and_then(|forwarded| forwarded.get_child("message", ns::CLIENT));
    let inner = inner.and_then(|inner| Stanza::from_element(inner).ok());
    let message = inner.as_ref().unwrap_or(message);
    let sender = message.head.from.as_ref().map(|from| from.as_str().to_owned());
    let text = message.child("body", ns::CLIENT).filter(|_| tells == Tells::Text);
    Summary { sender, text: text.map(|body| shortened(body.text())) }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_within_the_interval_is_one_notification() {
        let publishing = Publishing::new(Duration::from_secs(1), Tells::Text);
        let said = |text: &str| Summary { text: Some(text.to_owned()), ..Summary::default() };
        assert!(publishing.begin(1, &said("1")));
        assert!(publishing.begin(2, &said("of another")));
        assert!(!publishing.begin(1, &said("2")) && !publishing.begin(1, &said("3")));
        assert_eq!(publishing.next(1), Some(said("3")));
        assert!(!publishing.begin(1, &said("4")));
        assert_eq!(publishing.next(1), Some(said("4")));
        assert_eq!(publishing.next(1), None);
        assert!(publishing.begin(1, &said("5")));
    }

    #[test]
    fn a_long_text_is_shortened_between_its_letters() {
        let long = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(shortened(format!("x{long}")).len(), TEXT_BYTES_MAX - 1);
        assert_eq!(shortened("short".to_owned()), "short");
    }

    #[test]
    fn an_answer_is_known_by_the_id_of_its_notification() {
        assert_eq!(token("push-00000000000000ff-abc"), Some(255));
        for other in ["", "push-", "push-zz-1", "push-00ff", "1-ff-1"] {
            assert_eq!(token(other), None, "{other}");
        }
    }
}

//! [XEP-0175]: Best Practices for Use of SASL ANONYMOUS. What a session without an account may reach, and change.

use std::sync::Arc;

use hooks::{Answer, Card, Hooks, Leaving, Module, Passage, SessionView, Status, Step, Xep};
use jid::Jid;
use stanza::{Condition, IqType, Kind, PresenceType, Stanza, StanzaError, ns};

const NAME: &str = "anonymous";

crate::settings! {
    /// `[modules.anonymous]`
    pub struct Config {
        /// Domains that an anonymous session may write to besides its own host; to others it hears `forbidden`.
        reach: Vec<String> = Vec::new(),
    }
}

/// Holds anonymous sessions to their own host, and keeps them from leaving anything behind.
pub struct Anonymous {
    config: Config,
}

impl Anonymous {
    pub fn new(config: Config) -> Anonymous {
        Anonymous { config }
    }

    /// XEP-0175, 2: nothing leaves the host unless the config says so, no relations, nothing stored.
    fn may(&self, session: &SessionView, stanza: &Stanza) -> bool {
        let (host, to) = (session.account().domain().as_str(), stanza.head.to.as_ref());
        let reaches = |to: &Jid| {
            let domain = to.domain().as_str();
            domain == host || self.config.reach.iter().any(|other| other == domain)
        };
        if !to.is_none_or(reaches) {
            return false;
        }
        match stanza.head.kind {
            Kind::Message => true,
            // A subscription outlives the session.
            Kind::Presence => !matches!(
                stanza.presence_type(),
                Ok(PresenceType::Subscribe
                    | PresenceType::Subscribed
                    | PresenceType::Unsubscribe
                    | PresenceType::Unsubscribed)
            ),
            Kind::Iq => !is_change(session, stanza) || stanza.has_child("session", ns::SESSION),
        }
    }
}

/// Whether a request would change what the server keeps: for the own account, or for the host.
fn is_change(session: &SessionView, stanza: &Stanza) -> bool {
    let account = session.account();
    let to_server = stanza.head.to.as_ref().is_none_or(|to| {
        !to.is_full()
            && to.domain() == account.domain()
            && to.node().is_none_or(|node| Some(node) == account.node())
    });
    to_server && stanza.iq_type() == Ok(IqType::Set)
}

impl Module for Anonymous {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 175,
                title: "Best Practices for Use of SASL ANONYMOUS",
                version: "1.2",
                status: Status::Active,
            }],
            ..Card::new(
                NAME,
                "Holds sessions without an account to their host, and lets them leave nothing behind.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self);
    }
}

impl Leaving for Anonymous {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        match &passage.sender {
            Some(session) if session.is_anonymous() && !self.may(session, &passage.stanza) => {
                Answer::refuse(StanzaError::new(Condition::Forbidden))
            }
            _ => Answer::PASS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    /// What becomes of a stanza of an anonymous session, and of somebody with an account.
    fn is_refused(config: &Config, xml: &str) -> (bool, bool) {
        block_on(async {
            let bench =
                Bench::new(&["x", "y"], || vec![Arc::new(Anonymous::new(config.clone())) as Arc<dyn Module>]);
            let refused = |heard: Vec<String>| heard.iter().any(|xml| xml.contains("<forbidden"));
            let guest = bench.login_anonymously("a1@x/r").await;
            guest.send(xml).await;
            let known = bench.login("a1@x/r").await;
            known.send(xml).await;
            (refused(guest.hears()), refused(known.hears()))
        })
    }

    #[test]
    fn only_anonymous_sessions_are_held_to_their_host_and_keep_nothing() {
        let iq =
            |type_: &str, to: &str, payload: &str| format!("<iq type='{type_}' id='1'{to}>{payload}</iq>");
        let roster = "<query xmlns='jabber:iq:roster'/>";
        let cases = [
            ("<message to='bob@x'><body>a</body></message>".to_owned(), false),
            ("<message to='bob@y'><body>a</body></message>".to_owned(), true),
            ("<message to='bob@elsewhere'><body>a</body></message>".to_owned(), true),
            ("<presence/>".to_owned(), false),
            ("<presence to='bob@x'/>".to_owned(), false),
            ("<presence to='bob@y'/>".to_owned(), true),
            ("<presence type='subscribe' to='bob@x'/>".to_owned(), true),
            ("<presence type='unsubscribed' to='bob@x'/>".to_owned(), true),
            (iq("get", "", roster), false),
            (iq("set", "", roster), true),
            (iq("set", " to='a1@x'", roster), true),
            (iq("set", " to='x'", "<query xmlns='jabber:iq:register'/>"), true),
            (iq("get", " to='x'", "<ping xmlns='urn:xmpp:ping'/>"), false),
            (iq("get", " to='y'", "<ping xmlns='urn:xmpp:ping'/>"), true),
            (iq("set", " to='bob@x/r'", "<a xmlns='urn:a'/>"), false),
            (iq("set", "", "<session xmlns='urn:ietf:params:xml:ns:xmpp-session'/>"), false),
        ];
        for (xml, refused) in cases {
            assert_eq!(is_refused(&Config::default(), &xml), (refused, false), "{xml}");
        }
    }

    #[test]
    fn the_config_widens_what_can_be_reached() {
        let config = Config { reach: vec!["y".to_owned()] };
        assert_eq!(is_refused(&config, "<message to='bob@y'><body>a</body></message>"), (false, false));
        assert_eq!(is_refused(&config, "<message to='bob@z'><body>a</body></message>"), (true, false));
    }
}

//! [XEP-0077]: In-Band Registration. Clients make accounts, change their password and remove their account.

mod rate;

use std::collections::BTreeSet;
use std::sync::Arc;

use hooks::{
    AccountError, Addressee, Answer, Answering, Card, Greeting, Hooks, Module, Offer, Offering, Passage,
    Reply, Services, SessionView, Status, Stranger, Xep,
};
use jid::{BareJid, NodePart};
use minidom::Element;
use parking_lot::Mutex;
use stanza::address::{self, same_account};
use stanza::{Condition, ErrorKind, IqType, Stanza, StanzaError};

use crate::failure::{bad_request, store_failed};
use crate::xml::{Build, element};
use rate::Rate;

const NAME: &str = "registration";
const NS: &str = "jabber:iq:register";
const FEATURE: &str = "http://jabber.org/features/iq-register";
const DATA: &str = "jabber:x:data";

crate::settings! {
    /// `[modules.registration]`
    pub struct Config {
        /// Whether clients that have not logged in may make accounts.
        new_accounts: bool = true,
        /// Whether they may on a stream without TLS, where `c2s.tls_required` is false; the password is sent as it is.
        without_tls: bool = false,
        /// Whether users may change their password, always inside TLS.
        password_change: bool = true,
        /// Whether users may remove their account.
        removal: bool = true,
        /// Accounts that clients of one IPv4 address or one IPv6 /64 may try to make in an hour at this node, on average; further tries hear `resource-constraint`.
        per_address_per_hour: usize = 6,
        /// Accounts that all clients together may try to make in an hour at this node, on average; further tries hear `resource-constraint`.
        per_node_per_hour: usize = 600,
        /// Addresses that are remembered for these two bounds; while no more fit, new ones hear `resource-constraint`.
        addresses_max: usize = 10_000,
        /// The shortest password that may be set in-band, in characters; a shorter one is `not-acceptable`.
        password_chars_min: usize = 6,
        /// The longest password that may be set in-band, in bytes; a longer one is `not-acceptable`.
        password_bytes_max: usize = 1_024,
    }
}

/// Registers, and lets users manage the account that they have.
pub struct Registration {
    config: Config,
    /// Names that only an operator may give, prepared.
    reserved: BTreeSet<String>,
    rate: Mutex<Rate>,
}

impl Registration {
    /// `reserved`: names that are kept for operators, however they are written.
    pub fn new(config: Config, reserved: &[String]) -> Registration {
        let prepared = |name: &String| NodePart::new(name).ok().map(|name| name.as_str().to_owned());
        let rate = Rate::new(config.per_address_per_hour, config.per_node_per_hour, config.addresses_max);
        Registration {
            config,
            reserved: reserved.iter().filter_map(prepared).collect(),
            rate: Mutex::new(rate),
        }
    }
}

impl Module for Registration {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 77, title: "In-Band Registration", version: "2.4", status: Status::Final }],
            host_features: &[NS],
            ..Card::new(
                NAME,
                "Lets clients make accounts, change passwords and remove accounts; off by default.",
            )
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.offering(self.clone());
        hooks.greeting(NS, self.clone());
        hooks.answering(Addressee::Host, NS, self.clone());
        hooks.answering(Addressee::Account, NS, self);
    }
}

impl Registration {
    fn takes_strangers(&self, secure: bool) -> bool {
        self.config.new_accounts && (secure || self.config.without_tls)
    }
}

impl Offering for Registration {
    fn offering(&self, offer: &Offer, _: &dyn Services) -> Vec<Element> {
        match offer.account {
            None if self.takes_strangers(offer.secure) => vec![element("register", FEATURE)],
            _ => Vec::new(),
        }
    }
}

impl Greeting for Registration {
    fn greeting<'a>(
        &'a self,
        stranger: &'a Stranger,
        request: &'a Stanza,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Reply> {
        let wish = match self.wish_of_stranger(stranger, request) {
            Ok(Some(wish)) => wish,
            Ok(None) => return Answer::Now(Reply::with(self.fields())),
            Err(error) => return Answer::Now(Reply::Error(error)),
        };
        // Before the slow part, and whatever becomes of it: who tries names is slowed down as well.
        if let Err(wait) = self.rate.lock().take(stranger.address, services.now()) {
            let minutes = wait.as_secs().div_ceil(60);
            let text = format!("too many registrations, try again in {minutes} minutes");
            let error = StanzaError::new(Condition::ResourceConstraint).with_kind(ErrorKind::Wait);
            return Answer::Now(Reply::Error(error.with_text(text)));
        }
        Answer::later(async move {
            match services.create_account(&wish.account, &wish.password).await {
                Ok(()) => {
                    let address = stranger.address;
                    tracing::info!(module = NAME, account = %wish.account, %address, "registered in-band");
                    Reply::empty()
                }
                Err(error) => Reply::Error(told(error)),
            }
        })
    }
}

/// An account and the password that it shall have.
struct Wish {
    account: BareJid,
    password: String,
}

impl Registration {
    /// What a client that has not logged in wants: `None` for the fields.
    fn wish_of_stranger(&self, stranger: &Stranger, request: &Stanza) -> Result<Option<Wish>, StanzaError> {
        let query = query(request)?;
        if !self.config.new_accounts {
            // XEP-0077, 3.1: the host does not support registration.
            return Err(StanzaError::new(Condition::ServiceUnavailable));
        }
        if !self.takes_strangers(stranger.secure) {
            return Err(StanzaError::new(Condition::NotAuthorized).with_text("only inside TLS"));
        }
        if request.iq_type() == Ok(IqType::Get) {
            return Ok(None);
        }
        if query.has_child("remove", NS) {
            // XEP-0077, 3.2: nobody is registered on this stream.
            return Err(StanzaError::new(Condition::UnexpectedRequest));
        }
        no_form(query)?;
        let (Some(username), Some(password)) = (field(query, "username"), field(query, "password")) else {
            // XEP-0077, 3.1: something is missing, or the password is empty.
            return Err(not_acceptable("a username and a password are needed"));
        };
        let host = address::host(&stranger.host);
        let account = host.and_then(|host| address::account(&username, &host));
        let account = account.map_err(|_| not_acceptable("this cannot be a username"))?;
        self.check_password(&password)?;
        let name = account.node().map(|node| node.as_str());
        if name.is_none_or(|name| self.reserved.contains(name)) {
            return Err(not_acceptable("this username is reserved"));
        }
        Ok(Some(Wish { account, password }))
    }

    /// XEP-0077, 3.1: what a client must say to register.
    fn fields(&self) -> Element {
        let text = "Choose a username and a password.";
        element("query", NS)
            .child(element("instructions", NS).text_node(text))
            .child(element("username", NS))
            .child(element("password", NS))
    }

    fn check_password(&self, password: &str) -> Result<(), StanzaError> {
        let (least, most) = (self.config.password_chars_min, self.config.password_bytes_max);
        if password.chars().count() < least {
            return Err(not_acceptable(&format!("the password needs at least {least} characters")));
        }
        if password.len() > most {
            return Err(not_acceptable(&format!("the password may have at most {most} bytes")));
        }
        Ok(())
    }
}

/// What the owner of an account wants.
enum Change {
    Look,
    Password(String),
    Remove,
}

impl Answering for Registration {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        let Some(session) = owner(passage) else {
            // The same for an account that is there and one that is not, and for who lives at another host.
            return Answer::Now(Reply::Error(StanzaError::new(Condition::ServiceUnavailable)));
        };
        let change = match self.change(&session, &passage.stanza) {
            Ok(change) => change,
            Err(error) => return Answer::Now(Reply::Error(error)),
        };
        Answer::later(async move {
            let (services, account) = (&*passage.services, session.account());
            match change {
                Change::Look => Reply::with(registered(account)),
                Change::Password(password) => match services.set_password(account, &password).await {
                    Ok(()) => Reply::empty(),
                    Err(error) => Reply::Error(told(error)),
                },
                Change::Remove => {
                    // XEP-0077, 3.2: the answer first, then the end of all sessions.
                    match services.remove_account(account, Some(passage.stanza.result(None))).await {
                        Ok(_goes_on) => Reply::Silent,
                        Err(error) => Reply::Error(told(error)),
                    }
                }
            }
        })
    }
}

/// The session that asks about its own account: at its own address or at its host.
fn owner(passage: &Passage) -> Option<Arc<SessionView>> {
    let session = passage.sender.clone()?;
    let own = match (&passage.account, &passage.stanza.head.to) {
        (Some(account), _) => account == session.account(),
        (None, Some(to)) => to.domain() == session.account().domain(),
        (None, None) => true,
    };
    own.then_some(session)
}

impl Registration {
    fn change(&self, session: &SessionView, request: &Stanza) -> Result<Change, StanzaError> {
        let query = query(request)?;
        if request.iq_type() == Ok(IqType::Get) {
            return Ok(Change::Look);
        }
        if query.has_child("remove", NS) {
            return match query.children().count() {
                1 if self.config.removal => Ok(Change::Remove),
                1 => Err(StanzaError::new(Condition::NotAllowed)),
                // XEP-0077, 3.2: it must stand alone.
                _ => Err(bad_request("remove stands alone")),
            };
        }
        if !session.is_secure() {
            // XEP-0077, 3.3: the channel is not safe enough.
            return Err(StanzaError::new(Condition::NotAuthorized).with_text("only inside TLS"));
        }
        if !self.config.password_change {
            return Err(StanzaError::new(Condition::NotAllowed));
        }
        no_form(query)?;
        let (Some(username), Some(password)) = (field(query, "username"), field(query, "password")) else {
            // XEP-0077, 3.3: incomplete; an empty password leaves the old one as it is.
            return Err(bad_request("a username and a password are needed"));
        };
        let named = address::account(&username, session.account().domain());
        if !named.is_ok_and(|named| same_account(&named.into(), session.account())) {
            // Nobody changes the password of somebody else, and who has an account makes no second one.
            return Err(StanzaError::new(Condition::Forbidden).with_text("only for the own account"));
        }
        self.check_password(&password)?;
        Ok(Change::Password(password))
    }
}

/// XEP-0077, 3.1: what is known of who has an account. The password is nobody's to read.
fn registered(account: &BareJid) -> Element {
    let name = account.node().map_or("", |node| node.as_str());
    let text = "You are registered. Send your username and a new password to change the password.";
    element("query", NS)
        .child(element("registered", NS))
        .child(element("instructions", NS).text_node(text))
        .child(element("username", NS).text_node(name))
        .child(element("password", NS))
}

fn query(request: &Stanza) -> Result<&Element, StanzaError> {
    request.child("query", NS).ok_or_else(|| bad_request("no query"))
}

/// The text of a field; `None` where it is missing or empty.
fn field(query: &Element, name: &str) -> Option<String> {
    query.get_child(name, NS).map(Element::text).filter(|text| !text.is_empty())
}

/// No form was offered, so none can be answered.
fn no_form(query: &Element) -> Result<(), StanzaError> {
    match query.has_child("x", DATA) {
        true => Err(bad_request("no form was offered: use the plain fields")),
        false => Ok(()),
    }
}

fn not_acceptable(text: &str) -> StanzaError {
    StanzaError::new(Condition::NotAcceptable).with_text(text)
}

/// What the client is told when the account could not be made or changed.
fn told(error: AccountError) -> StanzaError {
    match error {
        // Which of the two is nobody's business.
        AccountError::AlreadyExists | AccountError::Leaving => StanzaError::new(Condition::Conflict),
        // XEP-0077, 3.2: guests have sessions and no account.
        AccountError::NotFound => StanzaError::new(Condition::RegistrationRequired),
        AccountError::BadPassword => not_acceptable("this password cannot be used"),
        AccountError::Busy => StanzaError::new(Condition::ResourceConstraint).with_kind(ErrorKind::Wait),
        AccountError::Store(error) => store_failed(NAME, &error),
    }
}

#[cfg(test)]
mod tests;

//! [XEP-0133]: Service Administration. Admins make, change and end accounts and sessions of a host from their client.
//!
//! Done is what the server can do by other ways too: to add and delete users, to disable them and enable them again, to
//! change passwords, to end sessions, to count and list who is registered, disabled and online, and to tell all who are
//! online something. An admin by the config administers every host of the server, each by commands to that host. Left
//! out: idle and active users, which are not told apart; messages of the day and of welcome; rosters, statistics and last
//! logins of users, which are theirs; lists of the blocked; to stop the service, which is for whoever runs its nodes.

use std::sync::Arc;

use futures::future::BoxFuture;
use hooks::{AccountError, AccountState, Card, Hooks, How, Module, Passage, Services, Status, Xep};
use jid::{BareJid, Jid};
use minidom::Element;
use stanza::{Condition, ErrorKind, Stanza, StanzaError, address, ns};

use crate::commands::{Command, Form};
use crate::failure::{bad_request, store_failed};
use crate::forms::{self, Field, Filled};
use crate::xml::{Build, element};

const NAME: &str = "administration";
const FORM_TYPE: &str = "http://jabber.org/protocol/admin";
/// Accounts that are read at a time.
const PAGE: usize = 500;
/// The most accounts that one command may name; further ones are refused with `bad-request`.
const ACCOUNTS_MAX: usize = 100;

crate::settings! {
    /// `[modules.administration]`
    pub struct Config {
        /// The most accounts that a list shows.
        list_max: usize = 500,
        /// The longest announcement, in bytes; a longer one is refused with `policy-violation`.
        announcement_bytes_max: usize = 8_192,
    }
}

/// What an admin may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    AddUser,
    DeleteUser,
    DisableUser,
    EnableUser,
    EndSession,
    ChangePassword,
    CountRegistered,
    CountDisabled,
    CountOnline,
    ListRegistered,
    ListDisabled,
    ListOnline,
    Announce,
}

const ONE: Field =
    Field { kind: "jid-single", var: "accountjid", label: "The address of the account", required: true };
const SOME: Field =
    Field { kind: "jid-multi", var: "accountjids", label: "The addresses of the accounts", required: true };
const SESSIONS: Field = Field {
    kind: "jid-multi",
    var: "accountjids",
    label: "The addresses of the sessions, or of accounts with all of their sessions",
    required: true,
};
const PASSWORD: Field =
    Field { kind: "text-private", var: "password", label: "The password", required: true };
const AGAIN: Field =
    Field { kind: "text-private", var: "password-verify", label: "The password once more", required: true };
const TEXT: Field =
    Field { kind: "text-multi", var: "announcement", label: "The announcement", required: true };

/// Name for programs, name for people, what to do, what to fill in.
const ACTS: [(&str, &str, Act, &[Field]); 13] = [
    ("http://jabber.org/protocol/admin#add-user", "Add a user", Act::AddUser, &[ONE, PASSWORD, AGAIN]),
    ("http://jabber.org/protocol/admin#delete-user", "Delete users", Act::DeleteUser, &[SOME]),
    ("http://jabber.org/protocol/admin#disable-user", "Disable users", Act::DisableUser, &[SOME]),
    ("http://jabber.org/protocol/admin#reenable-user", "Enable users again", Act::EnableUser, &[SOME]),
    ("http://jabber.org/protocol/admin#end-user-session", "End sessions", Act::EndSession, &[SESSIONS]),
    (
        "http://jabber.org/protocol/admin#change-user-password",
        "Change the password of a user",
        Act::ChangePassword,
        &[ONE, PASSWORD],
    ),
    (
        "http://jabber.org/protocol/admin#get-registered-users-num",
        "Count registered users",
        Act::CountRegistered,
        &[],
    ),
    (
        "http://jabber.org/protocol/admin#get-disabled-users-num",
        "Count disabled users",
        Act::CountDisabled,
        &[],
    ),
    ("http://jabber.org/protocol/admin#get-online-users-num", "Count users online", Act::CountOnline, &[]),
    (
        "http://jabber.org/protocol/admin#get-registered-users-list",
        "List registered users",
        Act::ListRegistered,
        &[],
    ),
    (
        "http://jabber.org/protocol/admin#get-disabled-users-list",
        "List disabled users",
        Act::ListDisabled,
        &[],
    ),
    ("http://jabber.org/protocol/admin#get-online-users-list", "List users online", Act::ListOnline, &[]),
    ("http://jabber.org/protocol/admin#announce", "Tell all who are online", Act::Announce, &[TEXT]),
];

/// The switch of the commands; what they do is in [`commands`].
pub struct Administration;

impl Module for Administration {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 133,
                title: "Service Administration",
                version: "1.3.1",
                status: Status::Active,
            }],
            ..Card::new(NAME, "Lets admins administer accounts and sessions from their client.")
        }
    }

    fn plug(self: Arc<Self>, _: &mut Hooks) {}
}

/// One command.
struct Order {
    node: &'static str,
    title: &'static str,
    act: Act,
    fields: &'static [Field],
    config: Config,
}

/// The commands of admins.
pub fn commands(config: &Config) -> Vec<Arc<dyn Command>> {
    let order = |(node, title, act, fields)| -> Arc<dyn Command> {
        Arc::new(Order { node, title, act, fields, config: config.clone() })
    };
    ACTS.into_iter().map(order).collect()
}

impl Command for Order {
    fn node(&self) -> &'static str {
        self.node
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn module(&self) -> &'static str {
        NAME
    }

    /// Section 7: those alone whom the operators have named, in a session of theirs.
    fn is_for(&self, passage: &Passage) -> bool {
        let admin = passage.sender.as_ref().filter(|sender| !sender.is_anonymous());
        admin.is_some_and(|sender| passage.services.is_admin(sender.account()))
    }

    fn form(&self) -> Option<Form> {
        let instructions = "This is done as soon as the form is sent.";
        (!self.fields.is_empty()).then_some(Form { form_type: FORM_TYPE, instructions, fields: self.fields })
    }

    fn run<'a>(
        &'a self,
        passage: &'a Passage,
        filled: Filled,
    ) -> BoxFuture<'a, Result<Option<Element>, StanzaError>> {
        Box::pin(async move {
            let Some(host) = passage.host() else {
                return Err(StanzaError::new(Condition::ServiceUnavailable));
            };
            self.obey(&*passage.services, host, &filled).await
        })
    }
}

/// What an admin is told of what could not be done (section 6).
fn told(error: AccountError) -> StanzaError {
    let with = |condition, text| StanzaError::new(condition).with_text(text);
    match error {
        AccountError::AlreadyExists => with(Condition::Conflict, "the account exists already"),
        AccountError::Leaving => with(Condition::Conflict, "an account of that name is being removed"),
        AccountError::NotFound => with(Condition::ItemNotFound, "no such account"),
        AccountError::BadPassword => with(Condition::NotAcceptable, "this password cannot be used"),
        AccountError::Busy => {
            with(Condition::ResourceConstraint, "too many passwords are being set").with_kind(ErrorKind::Wait)
        }
        AccountError::Store(error) => store_failed(NAME, &error),
    }
}

/// An address of the host that is administered.
fn of_host(text: &str, host: &str) -> Result<Jid, StanzaError> {
    let jid = address::jid(text.trim()).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    match jid.node().is_some() && jid.domain().as_str() == host {
        true => Ok(jid),
        false => Err(bad_request("no address of an account of this host")),
    }
}

fn account(text: &str, host: &str) -> Result<BareJid, StanzaError> {
    let jid = of_host(text, host)?;
    jid.try_into().map_err(|_| bad_request("an account has no resource"))
}

fn one(filled: &Filled, host: &str) -> Result<BareJid, StanzaError> {
    account(filled.value("accountjid").ok_or_else(|| bad_request("which account?"))?, host)
}

/// All or none: each is looked at before anything is done.
fn some<T>(
    filled: &Filled,
    host: &str,
    read: impl Fn(&str, &str) -> Result<T, StanzaError>,
) -> Result<Vec<T>, StanzaError> {
    let named = filled.values("accountjids");
    if named.is_empty() || named.len() > ACCOUNTS_MAX {
        return Err(bad_request("name from 1 to 100 accounts"));
    }
    named.iter().map(|text| read(text, host)).collect()
}

fn word(filled: &Filled) -> Result<&str, StanzaError> {
    // As it was typed: blanks are a part of it.
    let password = filled.values("password").first().filter(|password| !password.is_empty());
    password.map(String::as_str).ok_or_else(|| bad_request("a password is needed"))
}

fn shown(field: &'static str, values: Vec<String>) -> Option<Element> {
    Some(forms::result(FORM_TYPE, [(field, values)]))
}

impl Order {
    async fn obey(
        &self,
        services: &dyn Services,
        host: &str,
        filled: &Filled,
    ) -> Result<Option<Element>, StanzaError> {
        match self.act {
            Act::AddUser => {
                let (account, password) = (one(filled, host)?, word(filled)?);
                if filled.values("password-verify").first().is_some_and(|again| again != password) {
                    return Err(StanzaError::new(Condition::NotAcceptable).with_text("the passwords differ"));
                }
                services.create_account(&account, password).await.map_err(told)?;
            }
            Act::ChangePassword => {
                let (account, password) = (one(filled, host)?, word(filled)?);
                services.set_password(&account, password).await.map_err(told)?;
            }
            Act::DeleteUser => {
                for account in some(filled, host, account)? {
                    // It goes on by itself: the admin may be one of its sessions.
                    services.remove_account(&account, None).await.map_err(told)?;
                }
            }
            Act::DisableUser => {
                for account in some(filled, host, account)? {
                    services.disable_account(&account).await.map_err(told)?;
                }
            }
            Act::EnableUser => {
                for account in some(filled, host, account)? {
                    services.enable_account(&account).await.map_err(told)?;
                }
            }
            Act::EndSession => {
                for jid in some(filled, host, of_host)? {
                    let ended = services.end_sessions(&jid).await;
                    ended.map_err(|error| store_failed(NAME, &error))?;
                }
            }
            Act::CountRegistered => {
                let (count, _) = self.accounts(services, host, 0, |_| true).await?;
                return Ok(shown("registeredusersnum", vec![count.to_string()]));
            }
            Act::CountDisabled => {
                let (count, _) = self.accounts(services, host, 0, is_disabled).await?;
                return Ok(shown("disabledusersnum", vec![count.to_string()]));
            }
            Act::CountOnline => {
                let online = services.users_online(host).len();
                return Ok(shown("onlineusersnum", vec![online.to_string()]));
            }
            Act::ListRegistered => {
                let (_, list) = self.accounts(services, host, self.config.list_max, |_| true).await?;
                return Ok(shown("registereduserjids", list));
            }
            Act::ListDisabled => {
                let (_, list) = self.accounts(services, host, self.config.list_max, is_disabled).await?;
                return Ok(shown("disableduserjids", list));
            }
            Act::ListOnline => {
                let online = services.users_online(host).into_iter().take(self.config.list_max);
                return Ok(shown("onlineuserjids", online.map(|account| account.to_string()).collect()));
            }
            Act::Announce => self.announce(services, host, filled).await?,
        }
        Ok(None)
    }

    /// How many accounts of the host there are of that state, and the first ones, at most `list`.
    async fn accounts(
        &self,
        services: &dyn Services,
        host: &str,
        list: usize,
        is_wanted: fn(AccountState) -> bool,
    ) -> Result<(u64, Vec<String>), StanzaError> {
        let (mut count, mut listed, mut after) = (0, Vec::new(), None::<String>);
        loop {
            let page = services.accounts(host, after.as_deref(), PAGE).await;
            let page = page.map_err(|error| store_failed(NAME, &error))?;
            let Some((last, _)) = page.last() else { return Ok((count, listed)) };
            after = Some(last.clone());
            for (account, _) in page.into_iter().filter(|(_, state)| is_wanted(*state)) {
                count += 1;
                if listed.len() < list {
                    listed.push(account);
                }
            }
            if list > 0 && listed.len() >= list {
                return Ok((count, listed));
            }
            services.pause().await;
        }
    }

    /// Section 5.23: to those who are there, and nobody else's message.
    async fn announce(
        &self,
        services: &dyn Services,
        host: &str,
        filled: &Filled,
    ) -> Result<(), StanzaError> {
        let text = filled.values("announcement").join("\n");
        if text.trim().is_empty() {
            return Err(bad_request("an announcement says something"));
        }
        if text.len() > self.config.announcement_bytes_max {
            return Err(
                StanzaError::new(Condition::PolicyViolation).with_text("this announcement is too long")
            );
        }
        let from = Jid::new(host).map_err(|_| StanzaError::new(Condition::InternalServerError))?;
        let message = Stanza::message(Some("headline"))
            .with_from(from)
            .with_child(&element("body", ns::CLIENT).text_node(&text));
        for (number, account) in services.users_online(host).into_iter().enumerate() {
            services.route(message.clone().with_to(account), How::Normal).await;
            if number % PAGE == PAGE - 1 {
                services.pause().await;
            }
        }
        Ok(())
    }
}

fn is_disabled(state: AccountState) -> bool {
    state == AccountState::Disabled
}

#[cfg(test)]
#[path = "administration_tests.rs"]
mod tests;

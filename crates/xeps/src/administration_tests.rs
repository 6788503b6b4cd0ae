//! Tests of `administration.rs` and `commands.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client, password_of};

use super::*;
use crate::commands::NS;
use crate::index::{ModulesConfig, modules};

/// What is filled in: fields with their values.
type Fields<'a> = &'a [(&'a str, &'a [&'a str])];

fn bench_with(config: Config) -> Bench {
    let config = ModulesConfig { administration: config, ..ModulesConfig::default() };
    let bench = Bench::cluster(2, &["localhost", "other.example"], move || modules(&config));
    bench.admin("boss@localhost");
    bench
}

fn bench() -> Bench {
    bench_with(Config::default())
}

/// The one answer to a request.
async fn answer(client: &Client, to: &str, kind: &str, payload: &str) -> Result<Element, StanzaError> {
    client.hears();
    client.send(&format!("<iq type='{kind}' id='c' to='{to}'>{payload}</iq>")).await;
    let heard = client.hears_stanzas();
    let answer = heard.iter().find(|stanza| stanza.head.id.as_deref() == Some("c")).expect("an answer");
    match answer.as_error() {
        Some(error) => Err(error),
        None => Ok(answer.payload().expect("a payload").clone()),
    }
}

fn command(name: &str, rest: &str, inside: &str) -> String {
    format!("<command xmlns='{NS}' node='{FORM_TYPE}#{name}' {rest}>{inside}</command>")
}

fn submit(fields: Fields<'_>) -> String {
    let field = |(var, values): &(&str, &[&str])| {
        let values: String = values.iter().map(|value| format!("<value>{value}</value>")).collect();
        format!("<field var='{var}'>{values}</field>")
    };
    let fields: String = fields.iter().map(field).collect();
    format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>")
}

/// Asks for the form of a command; the id that it was given.
async fn open(client: &Client, host: &str, name: &str) -> String {
    let form = answer(client, host, "set", &command(name, "", "")).await.unwrap();
    assert_eq!(form.attr("status"), Some("executing"), "{name}");
    form.attr("sessionid").unwrap().to_owned()
}

/// Has a command with a form done.
async fn order(client: &Client, host: &str, name: &str, fields: Fields<'_>) -> Result<Element, Condition> {
    let id = open(client, host, name).await;
    let filled = command(name, &format!("sessionid='{id}'"), &submit(fields));
    let done = answer(client, host, "set", &filled).await.map_err(|error| error.condition)?;
    assert_eq!((done.attr("status"), done.attr("sessionid")), (Some("completed"), Some(id.as_str())));
    Ok(done)
}

/// Has a command without a form done: the values of its one field.
async fn look(client: &Client, name: &str) -> Vec<String> {
    let done = answer(client, "localhost", "set", &command(name, "action='execute'", "")).await.unwrap();
    assert_eq!(done.attr("status"), Some("completed"));
    let form = done.children().next().unwrap();
    let field = form.children().find(|field| field.attr("var") != Some("FORM_TYPE")).unwrap();
    field.children().map(Element::text).collect()
}

async fn exists(bench: &Bench, account: &str) -> bool {
    bench.services().account_exists(&BareJid::new(account).unwrap()).await.unwrap()
}

#[test]
fn an_admin_makes_an_account_and_changes_its_password() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let juliet: &[&str] = &["juliet@localhost"];
        let fields = [("accountjid", juliet), ("password", &["R0m30"]), ("password-verify", &["R0m30"])];
        order(&boss, "localhost", "add-user", &fields).await.unwrap();
        let keys = |account| {
            let accounts = bench.accounts();
            async move { password_of(&accounts.credentials(account).await.unwrap().unwrap()) }
        };
        assert_eq!(keys("juliet@localhost").await, "R0m30");
        assert_eq!(order(&boss, "localhost", "add-user", &fields).await, Err(Condition::Conflict));
        let fields = [("accountjid", juliet), ("password", &[" n3w "][..])];
        order(&boss, "localhost", "change-user-password", &fields).await.unwrap();
        assert_eq!(keys("juliet@localhost").await, " n3w ");
        let fields = [("accountjid", &["nobody@localhost"][..]), ("password", &["x"])];
        let none = order(&boss, "localhost", "change-user-password", &fields).await;
        assert_eq!(none, Err(Condition::ItemNotFound));
    });
}

#[test]
fn an_admin_ends_accounts_and_sessions_at_whatever_node() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let fields = |jid: &'static str| [("accountjids", vec![jid])];
        for account in ["juliet@localhost", "romeo@localhost"] {
            let fields = [("accountjid", &[account][..]), ("password", &["x"])];
            order(&boss, "localhost", "add-user", &fields).await.unwrap();
        }
        let _far = bench.online_at(1, "juliet@localhost/desk").await;
        let _near = bench.online_at(0, "juliet@localhost/phone").await;
        let online = |account: &str| {
            let online = bench.services().online(&BareJid::new(account).unwrap());
            online.into_iter().map(|one| one.jid.to_string()).collect::<Vec<_>>()
        };
        for (jid, left) in
            [("juliet@localhost/desk", vec!["juliet@localhost/phone"]), ("juliet@localhost", vec![])]
        {
            let named = fields(jid);
            let named = [(named[0].0, named[0].1.as_slice())];
            order(&boss, "localhost", "end-user-session", &named).await.unwrap();
            assert_eq!(online("juliet@localhost"), left);
        }
        let both: Fields<'_> = &[("accountjids", &["juliet@localhost", "romeo@localhost"])];
        order(&boss, "localhost", "disable-user", both).await.unwrap();
        assert_eq!(look(&boss, "get-disabled-users-num").await, ["2"]);
        assert_eq!(look(&boss, "get-disabled-users-list").await, ["juliet@localhost", "romeo@localhost"]);
        order(&boss, "localhost", "reenable-user", &[("accountjids", &["romeo@localhost"])]).await.unwrap();
        assert_eq!(look(&boss, "get-disabled-users-list").await, ["juliet@localhost"]);
        order(&boss, "localhost", "delete-user", both).await.unwrap();
        assert!(!exists(&bench, "juliet@localhost").await && !exists(&bench, "romeo@localhost").await);
    });
}

#[test]
fn an_admin_sees_who_is_registered_and_online() {
    block_on(async {
        let bench = bench_with(Config { list_max: 2, ..Config::default() });
        let boss = bench.online("boss@localhost/phone").await;
        for account in ["a@localhost", "b@localhost", "c@localhost", "d@other.example"] {
            let account = BareJid::new(account).unwrap();
            bench.services().create_account(&account, "x").await.unwrap();
        }
        assert_eq!(look(&boss, "get-registered-users-num").await, ["3"]);
        assert_eq!(look(&boss, "get-registered-users-list").await, ["a@localhost", "b@localhost"]);
        let _phone = bench.online_at(1, "a@localhost/phone").await;
        let _desk = bench.online("a@localhost/desk").await;
        let _bound = bench.login("b@localhost/desk").await;
        let _other = bench.online("d@other.example/desk").await;
        assert_eq!(look(&boss, "get-online-users-num").await, ["2"]);
        assert_eq!(look(&boss, "get-online-users-list").await, ["a@localhost", "boss@localhost"]);
    });
}

#[test]
fn an_announcement_reaches_those_who_are_online_at_the_host() {
    block_on(async {
        let bench = bench_with(Config { announcement_bytes_max: 20, ..Config::default() });
        let boss = bench.online("boss@localhost/phone").await;
        let alice = bench.online_at(1, "alice@localhost/phone").await;
        let other = bench.online("bob@other.example/phone").await;
        let text = |lines: &'static [&'static str]| [("announcement", lines)];
        order(&boss, "localhost", "announce", &text(&["We restart", "at noon"])).await.unwrap();
        let heard = alice.hears();
        assert_eq!(
            heard,
            [
                "<message to='alice@localhost' from='localhost' type='headline'><body>We restart\nat noon</body></message>"
            ]
        );
        assert!(other.hears().is_empty());
        for (lines, condition) in [
            (&["This is much too long to be said"][..], Condition::PolicyViolation),
            (&[" "], Condition::BadRequest),
            (&[], Condition::BadRequest),
        ] {
            assert_eq!(order(&boss, "localhost", "announce", &text(lines)).await, Err(condition));
        }
    });
}

#[test]
fn nobody_else_may_do_or_see_any_of_it() {
    block_on(async {
        let bench = bench();
        let alice = bench.online("alice@localhost/phone").await;
        for (node, ..) in ACTS {
            let asked = format!("<command xmlns='{NS}' node='{node}'/>");
            let error = answer(&alice, "localhost", "set", &asked).await.unwrap_err();
            assert_eq!(error.condition, Condition::Forbidden, "{node}");
        }
        let info = "http://jabber.org/protocol/disco#info";
        let asked = format!("<query xmlns='{info}' node='{FORM_TYPE}#add-user'/>");
        let error = answer(&alice, "localhost", "get", &asked).await.unwrap_err();
        assert_eq!(error.condition, Condition::Forbidden);
        let items = format!("<query xmlns='http://jabber.org/protocol/disco#items' node='{NS}'/>");
        assert_eq!(answer(&alice, "localhost", "get", &items).await.unwrap().children().count(), 0);
        // Whoever has the name of an admin in a session without an account is none.
        let nobody = bench.login_anonymously("boss@localhost/x").await;
        let error = answer(&nobody, "localhost", "get", &items).await.unwrap();
        assert_eq!(error.children().count(), 0);
    });
}

#[test]
fn commands_are_found_by_service_discovery() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let items = format!("<query xmlns='http://jabber.org/protocol/disco#items' node='{NS}'/>");
        for host in ["localhost", "other.example"] {
            let found = answer(&boss, host, "get", &items).await.unwrap();
            let nodes: Vec<&str> = found.children().filter_map(|item| item.attr("node")).collect();
            assert_eq!(nodes, ACTS.map(|(node, ..)| node));
            assert!(found.children().all(|item| item.attr("jid") == Some(host)));
        }
        let info =
            |node: &str| format!("<query xmlns='http://jabber.org/protocol/disco#info' node='{node}'/>");
        for (node, kind) in [(NS, "command-list"), (ACTS[0].0, "command-node")] {
            let found = answer(&boss, "localhost", "get", &info(node)).await.unwrap();
            let identity = found.children().next().unwrap();
            assert_eq!((identity.attr("category"), identity.attr("type")), (Some("automation"), Some(kind)));
            let features: Vec<&str> = found.children().filter_map(|child| child.attr("var")).collect();
            assert_eq!(features, [NS, "jabber:x:data"]);
        }
        for node in ["urn:nothing", "http://jabber.org/protocol/admin#nothing"] {
            let error = answer(&boss, "localhost", "get", &info(node)).await.unwrap_err();
            assert_eq!(error.condition, Condition::ItemNotFound, "{node}");
        }
    });
}

#[test]
fn what_is_asked_wrongly_says_what_is_wrong() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let extra = |error: &StanzaError| error.extra.first().map(|extra| extra.name().to_owned());
        let id = open(&boss, "localhost", "add-user").await;
        let session = format!("sessionid='{id}'");
        let filled = submit(&[("accountjid", &["a@localhost"]), ("password", &["x"])]);
        for (name, rest, inside, condition, what) in [
            ("add-user", "action='next'", "", Condition::BadRequest, Some("bad-action")),
            ("add-user", "action='jump'", "", Condition::BadRequest, Some("malformed-action")),
            ("add-user", "action='cancel'", "", Condition::BadRequest, Some("bad-sessionid")),
            ("add-user", &session, "", Condition::BadRequest, Some("bad-payload")),
            ("add-user", "sessionid='x'", &filled, Condition::NotAllowed, Some("session-expired")),
            ("delete-user", &session, &filled, Condition::NotAllowed, Some("session-expired")),
            ("nothing", "", "", Condition::ItemNotFound, None),
        ] {
            let error = answer(&boss, "localhost", "set", &command(name, rest, inside)).await.unwrap_err();
            let found = (error.condition, extra(&error));
            assert_eq!(found, (condition, what.map(str::to_owned)), "{name} {rest}");
        }
        let error = answer(&boss, "localhost", "get", &command("add-user", "", "")).await.unwrap_err();
        assert_eq!(error.condition, Condition::BadRequest);
        // The command is open still, until it is given up.
        let cancel = command("add-user", &format!("{session} action='cancel'"), "");
        let canceled = answer(&boss, "localhost", "set", &cancel).await.unwrap();
        assert_eq!(canceled.attr("status"), Some("canceled"));
        let error = answer(&boss, "localhost", "set", &cancel).await.unwrap_err();
        assert_eq!(error.condition, Condition::NotAllowed);
    });
}

#[test]
fn what_is_filled_in_wrongly_changes_nothing() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let many = ["a@localhost"; ACCOUNTS_MAX + 1];
        let cases: [(&str, Fields<'_>, Condition); 9] = [
            ("add-user", &[("password", &["x"])], Condition::BadRequest),
            ("add-user", &[("accountjid", &["a@localhost"])], Condition::BadRequest),
            (
                "add-user",
                &[("accountjid", &["a@elsewhere.example"]), ("password", &["x"])],
                Condition::BadRequest,
            ),
            (
                "add-user",
                &[("accountjid", &["a@other.example"]), ("password", &["x"])],
                Condition::BadRequest,
            ),
            ("add-user", &[("accountjid", &["a@localhost/x"]), ("password", &["x"])], Condition::BadRequest),
            ("add-user", &[("accountjid", &["@@"]), ("password", &["x"])], Condition::JidMalformed),
            (
                "add-user",
                &[("accountjid", &["a@localhost"]), ("password", &["x"]), ("password-verify", &["y"])],
                Condition::NotAcceptable,
            ),
            ("delete-user", &[], Condition::BadRequest),
            ("delete-user", &[("accountjids", &many)], Condition::BadRequest),
        ];
        for (name, fields, condition) in cases {
            assert_eq!(order(&boss, "localhost", name, fields).await, Err(condition), "{name} {fields:?}");
        }
        assert!(!exists(&bench, "a@localhost").await);
        // One that is wrong, and nobody is disabled.
        let fields: Fields<'_> = &[("accountjids", &["boss@localhost", "localhost"])];
        assert_eq!(order(&boss, "localhost", "disable-user", fields).await, Err(Condition::BadRequest));
    });
}

#[test]
fn a_session_has_a_few_commands_open_and_no_more() {
    block_on(async {
        let bench = bench();
        let boss = bench.online("boss@localhost/phone").await;
        let first = open(&boss, "localhost", "announce").await;
        for _ in 0..10 {
            open(&boss, "localhost", "announce").await;
        }
        let filled = submit(&[("announcement", &["hi"])]);
        let late = command("announce", &format!("sessionid='{first}'"), &filled);
        let error = answer(&boss, "localhost", "set", &late).await.unwrap_err();
        assert_eq!(error.condition, Condition::NotAllowed);
    });
}

//! Tests of `shared_groups.rs`, against a whole cluster in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};

use super::*;
use crate::groups::{self, Change, Config, Group, GroupError, Listed};
use crate::index::{ModulesConfig, modules};

const GET: &str = "<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>";
const HOST: &str = "localhost";

/// Two nodes where groups are on, with those that the config has.
fn bench(configured: &str) -> Bench {
    let mut config = ModulesConfig::default();
    for (key, value) in [("enabled", "true"), ("groups", configured)] {
        config.set(NAME, key, &value.parse().unwrap()).unwrap();
    }
    Bench::cluster(2, &[HOST], move || modules(&config))
}

fn group(members: &[&str]) -> Group {
    let members = members.iter().map(|name| groups::member(HOST, name).unwrap());
    Group { members: members.collect(), everyone: false }
}

async fn change(bench: &Bench, name: &str, change: Change) {
    groups::change(bench.store(), &Config::default(), (HOST, name), &change).await.unwrap();
}

/// An operator changes a group, and all nodes look.
async fn changed(bench: &Bench, name: &str, what: Change) {
    change(bench, name, what).await;
    assert!(bench.repeat().await > 0, "nobody looks");
}

/// The roster of a client as `ver`, and its items as `jid "name" subscription [groups]`; it gets pushes from then on.
async fn roster(client: &Client) -> (String, Vec<String>) {
    client.hears();
    client.send(GET).await;
    let heard = client.hears_stanzas();
    let answer = heard.iter().find(|heard| heard.head.type_.as_deref() == Some("result")).expect("an answer");
    read(answer)
}

fn read(stanza: &Stanza) -> (String, Vec<String>) {
    let query = stanza.child("query", "jabber:iq:roster").expect("a query");
    let item = |item: &minidom::Element| {
        let groups: Vec<String> = item.children().map(minidom::Element::text).collect();
        let [jid, name, word] = ["jid", "name", "subscription"].map(|key| item.attr(key).unwrap_or_default());
        format!("{jid} {name:?} {word} {groups:?}")
    };
    (query.attr("ver").unwrap_or_default().to_owned(), query.children().map(item).collect())
}

/// What a client was told since: pushes as items with their version at the end, presence as `type from`.
fn told(client: &Client) -> Vec<String> {
    let line = |stanza: &Stanza| match stanza.head.kind {
        Kind::Iq if stanza.head.type_.as_deref() == Some("set") => {
            let (ver, items) = read(stanza);
            format!("{} {ver}", items.join(" "))
        }
        Kind::Iq => stanza.as_error().map_or("done".to_owned(), |error| error.condition.tag().to_owned()),
        _ => {
            let kind = stanza.head.type_.as_deref().unwrap_or("available");
            format!("{kind} {}", stanza.head.from.as_ref().map(Jid::as_str).unwrap_or_default())
        }
    };
    client.hears_stanzas().iter().map(line).collect()
}

const CREW: &str = "[{ host = 'localhost', name = 'Crew', members = ['alice', 'bob'] }]";
const BOB: &str = "bob@localhost \"\" both [\"Crew\"]";

#[test]
fn members_see_each_other_without_an_item_and_others_do_not() {
    block_on(async {
        let bench = bench(CREW);
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let (ver, items) = roster(&alice).await;
        assert_eq!(items, [BOB]);
        assert!(ver.starts_with("0-"), "{ver}");
        alice.send("<presence/>").await;
        let bob = bench.login_at(1, "bob@localhost/desk").await;
        assert_eq!(roster(&bob).await.1, ["alice@localhost \"\" both [\"Crew\"]"]);
        alice.hears();
        bob.send("<presence/>").await;
        let mut heard = told(&bob);
        heard.sort();
        assert_eq!(heard, ["available alice@localhost/phone", "available bob@localhost/desk"]);
        assert_eq!(told(&alice), ["available bob@localhost/desk"]);
        let eve = bench.online_at(1, "eve@localhost/x").await;
        assert_eq!(roster(&eve).await, ("0".to_owned(), vec![]));
        eve.send("<presence type='probe' to='alice@localhost'/>").await;
        assert_eq!(told(&eve), Vec::<String>::new());
        bob.close().await;
        assert_eq!(told(&alice), ["unavailable bob@localhost/desk"]);
        // A client that has it all is told no more (RFC 6121, 2.6.3).
        let again = GET.replace("<query ", &format!("<query ver='{ver}' "));
        alice.send(&again).await;
        assert!(alice.hears_stanzas()[0].payload().is_none());
    });
}

#[test]
fn a_change_is_pushed_at_every_node_and_presence_follows_it() {
    block_on(async {
        let bench = bench("[]");
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let bob = bench.login_at(1, "bob@localhost/desk").await;
        for client in [&alice, &bob] {
            assert_eq!(roster(client).await, ("0".to_owned(), vec![]));
            client.send("<presence/>").await;
            client.hears();
        }
        changed(&bench, "Crew", Change::Add(group(&["alice", "bob", "carol"]))).await;
        let heard = told(&alice);
        assert_eq!(heard.len(), 3, "{heard:?}");
        let (ver, items) = roster(&alice).await;
        assert_eq!(items, [BOB, "carol@localhost \"\" both [\"Crew\"]"]);
        assert!(heard[0].starts_with(BOB) && heard[0].ends_with(" 0"), "not yet all: {heard:?}");
        assert_eq!(heard[1], format!("carol@localhost \"\" both [\"Crew\"] {ver}"));
        assert_eq!(heard[2], "available bob@localhost/desk");
        let heard = told(&bob);
        assert!(heard.contains(&"available alice@localhost/phone".to_owned()), "{heard:?}");
        // Nothing is new.
        bench.repeat().await;
        assert_eq!((told(&alice), told(&bob)), (vec![], vec![]));
        changed(&bench, "Crew", Change::Remove(group(&["bob"]))).await;
        let heard = told(&alice);
        let (ver, items) = roster(&alice).await;
        assert_eq!(items, ["carol@localhost \"\" both [\"Crew\"]"]);
        assert_eq!(
            heard,
            [format!("bob@localhost \"\" remove [] {ver}"), "unavailable bob@localhost/desk".into()]
        );
        let heard = told(&bob);
        assert!(heard.contains(&"unavailable alice@localhost/phone".to_owned()), "{heard:?}");
        let removed = |name: &str| format!("{name}@localhost \"\" remove []");
        assert!(heard.contains(&format!("{} 0", removed("carol"))), "the last: {heard:?}");
        assert!(heard.iter().any(|heard| heard.starts_with(&removed("alice"))), "{heard:?}");
        assert_eq!(roster(&bob).await, ("0".to_owned(), vec![]));
        changed(&bench, "Crew", Change::Delete).await;
        assert_eq!(told(&alice), ["carol@localhost \"\" remove [] 0"]);
    });
}

#[test]
fn who_logs_in_finds_groups_as_they_are_before_the_node_has_looked() {
    block_on(async {
        let bench = bench("[]");
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let bob = bench.login_at(1, "bob@localhost/desk").await;
        for client in [&alice, &bob] {
            roster(client).await;
            client.send("<presence/>").await;
            client.hears();
        }
        change(&bench, "Crew", Change::Add(group(&["alice", "bob"]))).await;
        let tv = bench.login_at(0, "alice@localhost/tv").await;
        assert_eq!(roster(&tv).await.1, [BOB]);
        tv.send("<presence/>").await;
        // His node answers nobody of whom it knows nothing, and shows him when it has looked.
        let mut heard = told(&tv);
        heard.sort();
        assert_eq!(heard, ["available alice@localhost/phone", "available alice@localhost/tv"]);
        assert_eq!(told(&bob), ["available alice@localhost/tv"]);
        alice.hears();
        bench.repeat().await;
        assert_eq!(told(&tv), ["available bob@localhost/desk"]);
        assert_eq!(told(&alice).len(), 2, "the contact and his presence");
        let mut heard: Vec<String> =
            told(&bob).into_iter().filter(|heard| heard.contains("available")).collect();
        heard.sort();
        assert_eq!(heard, ["available alice@localhost/phone"], "the other he has seen");
    });
}

#[test]
fn what_a_user_keeps_of_a_member_is_shown_with_it_and_stays() {
    block_on(async {
        let bench = bench("[]");
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        for client in [&alice, &desk] {
            roster(client).await;
        }
        changed(&bench, "Crew", Change::Add(group(&["alice", "bob"]))).await;
        alice.hears();
        desk.hears();
        // Clients send back the group that they were shown.
        let set =
            |item: &str| format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'>{item}</query></iq>");
        let item = "<item jid='bob@localhost' name='Bobby'><group>Crew</group><group>Pals</group></item>";
        alice.send(&set(item)).await;
        let shown = "bob@localhost \"Bobby\" both [\"Crew\", \"Pals\"]";
        let (ver, items) = roster(&desk).await;
        assert_eq!(items, [shown]);
        assert_eq!(told(&alice), [format!("{shown} {ver}"), "done".to_owned()]);
        let own = Rosters::new(Default::default());
        let own = own.own(&*bench.services(), alice.view().account()).await.unwrap();
        assert_eq!(own.items["bob@localhost"].groups, ["Pals"]);
        assert!(!own.items["bob@localhost"].standing.to);
        // What operators keep is theirs to end.
        alice.send(&set("<item jid='bob@localhost' subscription='remove'/>")).await;
        for kind in ["unsubscribe", "unsubscribed"] {
            alice.send(&format!("<presence type='{kind}' id='p' to='bob@localhost'/>")).await;
        }
        alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
        let heard = alice.hears_stanzas();
        let conditions: Vec<_> = heard.iter().map(|heard| heard.as_error().unwrap().condition).collect();
        assert_eq!(conditions, [Condition::NotAllowed; 3]);
        // The group goes: what is the user's own stays, under a version without it.
        desk.hears();
        changed(&bench, "Crew", Change::Delete).await;
        let left = "bob@localhost \"Bobby\" none [\"Pals\"]";
        let (ver, items) = roster(&desk).await;
        assert_eq!((items, ver.contains('-')), (vec![left.to_owned()], false));
        assert_eq!(told(&alice), [format!("{left} {ver}")]);
        // An item of which nothing is the user's own is not kept.
        changed(&bench, "Crew", Change::Add(group(&["alice", "bob"]))).await;
        alice.hears();
        alice.send(&set("<item jid='bob@localhost'><group>Crew</group></item>")).await;
        let (ver, _) = roster(&desk).await;
        assert_eq!(told(&alice), [format!("{BOB} {ver}"), "done".to_owned()]);
        changed(&bench, "Crew", Change::Delete).await;
        assert!(told(&alice)[0].starts_with("bob@localhost \"\" remove"));
    });
}

#[test]
fn an_own_subscription_outlives_the_group_and_blocks_hold() {
    block_on(async {
        let bench = bench("[]");
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let bob = bench.login_at(1, "bob@localhost/desk").await;
        let carol = bench.login_at(1, "carol@localhost/x").await;
        for client in [&alice, &bob, &carol] {
            roster(client).await;
            client.send("<presence/>").await;
        }
        for (client, other) in [(&alice, "bob"), (&bob, "alice")] {
            client.send(&format!("<presence type='subscribed' to='{other}@localhost'/>")).await;
            client.send(&format!("<presence type='subscribe' to='{other}@localhost'/>")).await;
        }
        alice.send("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='carol@localhost'/></block></iq>").await;
        for client in [&alice, &bob, &carol] {
            client.hears();
        }
        changed(&bench, "Crew", Change::Add(group(&["alice", "bob", "carol"]))).await;
        let of_presence = |client: &Client| {
            let heard = told(client).into_iter().filter(|heard| heard.contains("available "));
            heard.collect::<Vec<_>>()
        };
        assert_eq!(of_presence(&alice), Vec::<String>::new(), "she sees bob already, and blocks carol");
        assert_eq!(of_presence(&carol), ["available bob@localhost/desk"]);
        assert_eq!(of_presence(&bob), ["available carol@localhost/x"]);
        changed(&bench, "Crew", Change::Delete).await;
        assert_eq!(of_presence(&bob), ["unavailable carol@localhost/x"]);
        assert_eq!(of_presence(&alice), Vec::<String>::new());
        assert_eq!(roster(&alice).await.1, ["bob@localhost \"\" both []"]);
    });
}

#[test]
fn everyone_is_all_accounts_of_the_host_as_they_come_and_go() {
    block_on(async {
        let bench = bench("[{ host = 'localhost', name = 'All', everyone = true }]");
        let services = bench.services();
        let jid = |name: &str| BareJid::new(&format!("{name}@localhost")).unwrap();
        for name in ["alice", "bob"] {
            services.create_account(&jid(name), "secret").await.unwrap();
        }
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        assert_eq!(roster(&alice).await.1, ["bob@localhost \"\" both [\"All\"]"]);
        services.create_account(&jid("carol"), "secret").await.unwrap();
        for _ in 0..=ACCOUNTS_EVERY {
            bench.repeat().await;
        }
        assert!(told(&alice)[0].starts_with("carol@localhost \"\" both [\"All\"]"));
        bench.remove_account("bob@localhost").await;
        for _ in 0..=ACCOUNTS_EVERY {
            bench.repeat().await;
        }
        assert!(told(&alice)[0].starts_with("bob@localhost \"\" remove"));
    });
}

#[test]
fn a_session_that_goes_on_elsewhere_is_told_of_what_that_node_had_told_before() {
    block_on(async {
        let bench = bench("[]");
        let alice = bench.login_at(0, "alice@localhost/phone").await;
        let bob = bench.login_at(0, "bob@localhost/desk").await;
        roster(&alice).await;
        bob.send("<presence/>").await;
        let packed = bench.registry().pack(alice.view());
        let (_, packed) = packed.iter().find(|(name, _)| *name == "roster").unwrap().clone();
        changed(&bench, "Crew", Change::Add(group(&["alice", "bob"]))).await;
        // As one that comes from a node which has not looked yet.
        let there = bench.login_at(0, "alice@localhost/tv").await;
        bench.registry().unpack(there.view(), "roster", &packed);
        there.view().set_interested();
        bench.services().announce(SessionEvent::Resumed(there.view().clone())).await;
        bench.repeat().await;
        let heard = told(&there);
        assert!(heard.len() == 1 && heard[0].starts_with(BOB), "{heard:?}");
        assert_eq!(told(&alice).len(), 1, "once");
    });
}

#[test]
fn groups_are_listed_with_those_of_the_config_and_bounded() {
    block_on(async {
        let store = store::Store::memory();
        let mut config = Config { groups_max: 2, members_max: 2, ..Config::default() };
        let toml: toml_edit::Value = CREW.parse().unwrap();
        crate::settings::Settings::set(&mut config, "groups", &toml).unwrap();
        let act = |name: &'static str, change: Change| {
            let (store, config) = (&store, &config);
            async move { groups::change(store, config, (HOST, name), &change).await }
        };
        let done = act("Crew", Change::Add(group(&["carol"]))).await.unwrap();
        assert_eq!(done, group(&["carol"]));
        let listed = groups::list(&store, &config, HOST).await.unwrap();
        let crew =
            |members: &[&str], configured| Listed { name: "Crew".into(), group: group(members), configured };
        assert_eq!(listed, [crew(&["alice", "bob"], true), crew(&["carol"], false)]);
        assert_eq!(groups::list(&store, &config, "other").await.unwrap(), []);
        act("B", Change::Add(Group { everyone: true, ..Group::default() })).await.unwrap();
        let too_many = |done| matches!(done, Err(GroupError::TooMany(_)));
        assert!(too_many(act("C", Change::Add(group(&["a"]))).await));
        assert!(too_many(act("Crew", Change::Add(group(&["a", "b"]))).await));
        assert!(matches!(act("", Change::Delete).await, Err(GroupError::BadName)));
        assert!(matches!(act("C", Change::Delete).await, Err(GroupError::NotFound)));
        assert!(matches!(act("C", Change::Remove(group(&["a"]))).await, Err(GroupError::NotFound)));
        let done = act("B", Change::Remove(Group { everyone: true, ..Group::default() })).await.unwrap();
        assert_eq!(done, Group::default());
        act("B", Change::Delete).await.unwrap();
        assert_eq!(groups::list(&store, &config, HOST).await.unwrap().len(), 2);
        assert_eq!(groups::member(HOST, "Alice"), Some("alice@localhost".to_owned()));
        assert_eq!(groups::member(HOST, "alice@elsewhere"), None);
    });
}

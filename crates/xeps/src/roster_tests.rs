//! Tests of `roster.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::{Bench, Client};
use jid::{BareJid, Jid};
use stanza::{Condition, Stanza};

use super::push;
use crate::index::{ModulesConfig, modules};
use crate::rosters::{Item, Rosters};

fn bench() -> Bench {
    bench_with(ModulesConfig::default())
}

fn bench_with(config: ModulesConfig) -> Bench {
    Bench::new(&["localhost"], move || modules(&config))
}

const GET: &str = "<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>";

fn set(item: &str) -> String {
    format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
}

/// The version and the items of what was heard: a result of a get, or a push.
fn read(stanza: &Stanza) -> (String, Vec<String>) {
    let query = stanza.child("query", "jabber:iq:roster").expect("a roster");
    let words = |name: &str, item: &minidom::Element| item.attr(name).map(str::to_owned).unwrap_or_default();
    let item = |item: &minidom::Element| {
        let groups: Vec<String> = item.children().map(|group| group.text()).collect();
        let (jid, name, sub) = (words("jid", item), words("name", item), words("subscription", item));
        format!("{jid} {name:?} {sub} {}", groups.join(",")).trim_end().to_owned()
    };
    (query.attr("ver").unwrap_or_default().to_owned(), query.children().map(item).collect())
}

async fn roster_of(client: &Client) -> (String, Vec<String>) {
    client.hears();
    client.send(GET).await;
    let heard = client.hears_stanzas();
    assert_eq!(heard.len(), 1, "{heard:?}");
    read(&heard[0])
}

fn condition(heard: &[Stanza]) -> Condition {
    heard.last().and_then(Stanza::as_error).expect("an error").condition
}

#[test]
fn a_new_account_has_an_empty_roster() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(roster_of(&alice).await, ("0".to_owned(), vec![]));
    });
}

#[test]
fn what_is_set_is_pushed_to_every_device_that_asked_and_to_no_other() {
    block_on(async {
        let bench = bench();
        let phone = bench.login("alice@localhost/phone").await;
        let desk = bench.login("alice@localhost/desk").await;
        let idle = bench.login("alice@localhost/idle").await;
        roster_of(&phone).await;
        roster_of(&desk).await;
        phone
            .send(&set("<item jid='Bob@localhost' name='Bob'><group>b</group><group>a</group></item>"))
            .await;
        let heard = phone.hears_stanzas();
        let (version, items) = read(&heard[0]);
        assert_eq!(items, ["bob@localhost \"Bob\" none a,b"]);
        assert_eq!(heard[0].head.from.as_ref().unwrap().as_str(), "alice@localhost");
        assert_eq!(heard[1].head.type_.as_deref(), Some("result"));
        assert_eq!(read(&desk.hears_stanzas()[0]), (version.clone(), items.clone()));
        assert!(idle.hears().is_empty());
        assert_eq!(roster_of(&desk).await, (version, items));
    });
}

#[test]
fn a_client_that_has_the_newest_version_gets_an_empty_result() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("<item jid='bob@localhost'/>")).await;
        let (version, _) = roster_of(&alice).await;
        let get =
            |ver: &str| format!("<iq type='get' id='g'><query xmlns='jabber:iq:roster' ver='{ver}'/></iq>");
        alice.send(&get(&version)).await;
        assert_eq!(alice.hears(), ["<iq to='alice@localhost/phone' id='g' type='result'/>"]);
        alice.send(&set("<item jid='carol@localhost'/>")).await;
        alice.hears();
        alice.send(&get(&version)).await;
        let (newer, items) = read(&alice.hears_stanzas()[0]);
        assert_ne!(newer, version);
        assert_eq!(items.len(), 2);
    });
}

#[test]
fn an_account_that_was_made_anew_has_another_version() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("<item jid='bob@localhost'/>")).await;
        let (before, _) = roster_of(&alice).await;
        alice.close().await;
        bench.remove_account("alice@localhost").await;
        let alice = bench.login("alice@localhost/phone").await;
        assert_eq!(roster_of(&alice).await.1, Vec::<String>::new());
        alice.send(&set("<item jid='bob@localhost'/>")).await;
        assert_ne!(roster_of(&alice).await.0, before);
    });
}

#[test]
fn what_is_wrong_with_a_set_is_said_as_the_rfc_names_it() {
    block_on(async {
        let mut config = ModulesConfig::default();
        config.roster.items_max = 2;
        config.roster.groups_max = 2;
        let bench = bench_with(config);
        let alice = bench.login("alice@localhost/phone").await;
        let long = "x".repeat(1_024);
        let cases = [
            (String::new(), Condition::BadRequest),
            ("<item jid='a@h'/><item jid='b@h'/>".to_owned(), Condition::BadRequest),
            ("<item name='a'/>".to_owned(), Condition::BadRequest),
            ("<item jid='@@'/>".to_owned(), Condition::JidMalformed),
            ("<item jid='a@h'><group>g</group><group>g</group></item>".to_owned(), Condition::BadRequest),
            (
                "<item jid='a@h'><group>e\u{301}</group><group>\u{e9}</group></item>".to_owned(),
                Condition::BadRequest,
            ),
            ("<item jid='a@h'><group/></item>".to_owned(), Condition::NotAcceptable),
            (format!("<item jid='a@h' name='{long}'/>"), Condition::NotAcceptable),
            (format!("<item jid='a@h'><group>{long}</group></item>"), Condition::NotAcceptable),
            (
                "<item jid='a@h'><group>1</group><group>2</group><group>3</group></item>".to_owned(),
                Condition::NotAcceptable,
            ),
            ("<item jid='a@h' subscription='remove'/>".to_owned(), Condition::ItemNotFound),
            ("<item jid='alice@localhost/x'/>".to_owned(), Condition::NotAllowed),
        ];
        for (item, expected) in cases {
            alice.send(&set(&item)).await;
            assert_eq!(condition(&alice.hears_stanzas()), expected, "{item}");
        }
        for jid in ["a@h", "b@h"] {
            alice.send(&set(&format!("<item jid='{jid}'/>"))).await;
        }
        alice.hears();
        alice.send(&set("<item jid='c@h'/>")).await;
        assert_eq!(condition(&alice.hears_stanzas()), Condition::ResourceConstraint);
        alice.send(&set("<item jid='a@h' name='still changeable'/>")).await;
        assert_eq!(roster_of(&alice).await.1, ["a@h \"still changeable\" none", "b@h \"\" none"]);
    });
}

#[test]
fn nobody_reads_or_changes_the_roster_of_another() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("<item jid='carol@localhost'/>")).await;
        let bob = bench.login("bob@localhost/phone").await;
        bob.send(&GET.replace("<iq", "<iq to='alice@localhost'")).await;
        assert_eq!(condition(&bob.hears_stanzas()), Condition::Forbidden);
        bob.send(&set("<item jid='bob@localhost'/>").replace("<iq", "<iq to='alice@localhost'")).await;
        assert_eq!(condition(&bob.hears_stanzas()), Condition::Forbidden);
        assert_eq!(roster_of(&alice).await.1, ["carol@localhost \"\" none"]);
    });
}

#[test]
fn a_get_that_names_items_is_no_get() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&GET.replace("/></iq>", "><item jid='bob@localhost'/></query></iq>")).await;
        assert_eq!(condition(&alice.hears_stanzas()), Condition::BadRequest);
    });
}

#[test]
fn a_long_roster_is_written_whole() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        for n in 0..300 {
            alice
                .send(&set(&format!(
                    "<item jid='c{n:03}@localhost' name='N &amp; {n}'><group>&lt;g</group></item>"
                )))
                .await;
        }
        let (_, items) = roster_of(&alice).await;
        assert_eq!(items.len(), 300);
        assert_eq!(
            (items[0].as_str(), items[299].as_str()),
            ("c000@localhost \"N & 0\" none <g", "c299@localhost \"N & 299\" none <g",)
        );
    });
}

#[test]
fn a_client_cannot_grant_itself_a_subscription() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send(&set("<item jid='bob@localhost' subscription='both' ask='subscribe'/>")).await;
        assert_eq!(roster_of(&alice).await.1, ["bob@localhost \"\" none"]);
    });
}

#[test]
fn who_is_removed_is_unsubscribed_both_ways_and_sees_nothing_more() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        roster_of(&bob).await;
        alice.send(&set("<item jid='bob@localhost' subscription='remove'/>")).await;
        assert_eq!(roster_of(&alice).await.1, Vec::<String>::new());
        let heard = bob.hears();
        let told = |text: &str| heard.iter().position(|heard| heard.contains(text)).expect(text);
        assert!(told("type='unsubscribe'") < told("from='alice@localhost/phone' type='unavailable'"));
        assert!(told("type='unavailable'") < told("type='unsubscribed'"));
        assert_eq!(roster_of(&bob).await.1, ["alice@localhost \"\" none"]);
    });
}

#[test]
fn contacts_of_a_removed_account_are_unsubscribed() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        alice.close().await;
        bench.remove_account("alice@localhost").await;
        assert_eq!(roster_of(&bob).await.1, ["alice@localhost \"\" none"]);
    });
}

#[test]
fn a_change_on_one_node_is_seen_by_the_cache_of_another() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        let phone = bench.login_at(0, "alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        // Both nodes have it cached now.
        roster_of(&phone).await;
        roster_of(&desk).await;
        phone.send(&set("<item jid='bob@localhost'/>")).await;
        desk.send(&set("<item jid='carol@localhost'/>")).await;
        let expected = ["bob@localhost \"\" none", "carol@localhost \"\" none"];
        assert_eq!(roster_of(&phone).await.1, expected);
        assert_eq!(roster_of(&desk).await.1, expected);
        assert_eq!(roster_of(&phone).await.0, roster_of(&desk).await.0);
    });
}

#[test]
fn the_answer_of_a_client_to_a_push_goes_nowhere() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        alice.send("<iq type='result' id='push-1'/>").await;
        alice.send("<iq type='result' id='push-1' to='alice@localhost'/>").await;
        assert!(alice.hears().is_empty());
    });
}

#[test]
fn the_stored_bytes_of_schema_1_stay_readable() {
    use crate::rosters::Roster;
    let bytes = [1, 7, 2, 1, 3, b'b', b'@', b'h', 1, 1, b'B', 1, 1, b'g', 1, 0, 1, 0];
    let roster: Roster = store::record::decode(&bytes).unwrap();
    assert_eq!(roster.version().to_string(), "7.2");
    let item = &roster.items["b@h"];
    assert_eq!((item.name.as_deref(), item.groups.as_slice()), (Some("B"), &["g".to_owned()][..]));
    assert_eq!((item.standing.word(), item.standing.asked), ("to", true));
    assert_eq!(store::record::encode(&roster), bytes);
}

/// Alice and Bob, both available, who see each other; nothing heard is left.
pub async fn friends(bench: &Bench) -> (Client, Client) {
    let alice = bench.online("alice@localhost/phone").await;
    let bob = bench.online("bob@localhost/phone").await;
    alice.send("<presence type='subscribe' to='bob@localhost'/>").await;
    bob.send("<presence type='subscribed' to='alice@localhost'/>").await;
    bob.send("<presence type='subscribe' to='alice@localhost'/>").await;
    alice.send("<presence type='subscribed' to='bob@localhost'/>").await;
    alice.hears();
    bob.hears();
    (alice, bob)
}

#[test]
fn a_set_that_changes_nothing_is_pushed_under_a_version_of_its_own() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/phone").await;
        roster_of(&alice).await;
        let mut versions = Vec::new();
        for _ in 0..3 {
            alice.send(&set("<item jid='bob@localhost' name='Bob'/>")).await;
            let heard = alice.hears_stanzas();
            assert_eq!(heard.len(), 2, "{heard:?}");
            let (version, items) = read(&heard[0]);
            assert_eq!(items, ["bob@localhost \"Bob\" none"]);
            assert!(!versions.contains(&version), "{version} again");
            versions.push(version);
        }
        assert_eq!(roster_of(&alice).await.0, versions[2]);
    });
}

#[test]
fn a_push_that_comes_too_early_waits_for_those_before_it_and_they_are_not_heard_again() {
    block_on(async {
        let bench = Bench::cluster(2, &["localhost"], || modules(&ModulesConfig::default()));
        let phone = bench.login("alice@localhost/phone").await;
        let desk = bench.login_at(1, "alice@localhost/desk").await;
        roster_of(&phone).await;
        roster_of(&desk).await;
        // Another node writes two changes, and its pushes are late.
        let elsewhere = Rosters::new(Default::default());
        let services = bench.services();
        let account = BareJid::new("alice@localhost").unwrap();
        let mut late = Vec::new();
        for (contact, name) in [("bob@localhost", "Bob"), ("carol@localhost", "Carol")] {
            let contact = Jid::new(contact).unwrap();
            let item = |_| Some(Item { name: Some(name.to_owned()), ..Item::default() });
            let changed = elsewhere.put(&*services, &account, &contact, item).await.unwrap();
            late.push((contact, changed.roster));
        }
        phone.send(&set("<item jid='bob@localhost' name='Robert'/>")).await;
        let pushed = |heard: Vec<Stanza>| -> Vec<(String, Vec<String>)> {
            heard.iter().filter(|one| one.head.type_.as_deref() == Some("set")).map(read).collect()
        };
        let heard = pushed(phone.hears_stanzas());
        let items: Vec<&str> = heard.iter().map(|(_, items)| items[0].as_str()).collect();
        let expected =
            ["bob@localhost \"Bob\" none", "carol@localhost \"Carol\" none", "bob@localhost \"Robert\" none"];
        assert_eq!(items, expected);
        let numbers: Vec<&str> =
            heard.iter().filter_map(|(version, _)| version.split('.').next_back()).collect();
        assert_eq!(numbers, ["1", "2", "3"]);
        assert_eq!(pushed(desk.hears_stanzas()), heard);
        for (contact, roster) in late {
            push(&*services, &account, &contact, &roster).await;
        }
        assert!(phone.hears().is_empty() && desk.hears().is_empty());
    });
}

#[test]
fn a_late_push_of_which_nobody_kept_a_note_is_heard_when_it_comes() {
    block_on(async {
        let bench = bench();
        let phone = bench.login("alice@localhost/phone").await;
        roster_of(&phone).await;
        let elsewhere = Rosters::new(Default::default());
        let services = bench.services();
        let account = BareJid::new("alice@localhost").unwrap();
        let contact = Jid::new("bob@localhost").unwrap();
        // Too large to be kept.
        let groups: Vec<String> = (0..10).map(|n| format!("{n}").repeat(1_000)).collect();
        let item = |_| Some(Item { groups: groups.clone(), ..Item::default() });
        let changed = elsewhere.put(&*services, &account, &contact, item).await.unwrap();
        phone.send(&set("<item jid='carol@localhost'/>")).await;
        assert_eq!(read(&phone.hears_stanzas()[0]).1, ["carol@localhost \"\" none"]);
        push(&*services, &account, &contact, &changed.roster).await;
        let heard = phone.hears_stanzas();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(read(&heard[0]).1[0].starts_with("bob@localhost"));
        push(&*services, &account, &contact, &changed.roster).await;
        assert!(phone.hears().is_empty());
    });
}

#[test]
fn what_is_noted_of_changes_goes_with_the_last_session_of_the_account() {
    block_on(async {
        let bench = bench();
        let alice = BareJid::new("alice@localhost").unwrap();
        let noted = || {
            bench.store().engine().scan(
                &crate::rosters::partition(&alice),
                store::Table("roster_changes"),
                store::Range::all(),
                std::time::Instant::now() + std::time::Duration::from_secs(5),
            )
        };
        let phone = bench.login("alice@localhost/phone").await;
        let desk = bench.login("alice@localhost/desk").await;
        phone.send(&set("<item jid='bob@localhost'/>")).await;
        phone.send(&set("<item jid='bob@localhost' subscription='remove'/>")).await;
        phone.send("<presence type='subscribed' to='carol@localhost'/>").await;
        let all = noted().await.unwrap().len();
        assert!(all > 2, "{all}");
        phone.close().await;
        assert_eq!(noted().await.unwrap().len(), all, "the other one may still hear of them too early");
        desk.close().await;
        assert_eq!(noted().await.unwrap().len(), 0);
        // Approved before, and nobody is there to hear of it.
        let carol = bench.online("carol@localhost/pc").await;
        carol.send("<presence type='subscribe' to='alice@localhost'/>").await;
        assert_eq!(noted().await.unwrap().len(), 0);
        let again = bench.login("alice@localhost/phone").await;
        assert_eq!(roster_of(&again).await.1, ["carol@localhost \"\" from"]);
    });
}

//! Bookmarks of private storage and of the node.

use futures::executor::block_on;

use super::*;

const BM: &str = "urn:xmpp:bookmarks:1";

async fn private(client: &Client, kind: &str, inside: &str) -> String {
    let storage = format!("<storage xmlns='storage:bookmarks'>{inside}</storage>");
    ask(client, "", kind, &format!("<query xmlns='jabber:iq:private'>{storage}</query>")).await
}

fn stored(inside: &str) -> String {
    let storage = match inside {
        "" => "<storage xmlns='storage:bookmarks'/>".to_owned(),
        inside => format!("<storage xmlns='storage:bookmarks'>{inside}</storage>"),
    };
    format!("<query xmlns='jabber:iq:private'>{storage}</query>")
}

#[test]
fn bookmarks_are_the_same_in_private_storage_and_in_the_node() {
    block_on(async {
        let bench = bench();
        let old = bench.login_at(0, "alice@localhost/old").await;
        let new = bench.login_at(1, "alice@localhost/new").await;
        come(&bench, &new, &[BM]).await;
        let play =
            "<conference autojoin='true' jid='play@rooms' name='The Play'><nick>JC</nick></conference>";
        let orchard = "<conference jid='orchard@rooms' name='O'/>";
        let url = "<url name='Page' url='http://example.org/'/>";
        assert_eq!(private(&old, "get", "").await, stored(""));
        assert_eq!(private(&old, "set", &format!("{play}{url}{orchard}")).await, "");
        let mut told = events(&new);
        told.sort();
        let of = |what: &str| format!("alice@localhost items {BM} {what}");
        assert_eq!(told, [of("item orchard@rooms"), of("item play@rooms")]);
        let listed = get(&new, "", &format!("<items node='{BM}'/>")).await;
        let cast = "<conference xmlns='urn:xmpp:bookmarks:1' autojoin='true' name='The Play'><nick>JC</nick></conference>";
        assert!(listed.contains(cast), "{listed}");
        assert_eq!(private(&old, "get", "").await, stored(&format!("{url}{orchard}{play}")));
        // What did not change is not told.
        private(&old, "set", &format!("{play}<conference jid='new@rooms'/>")).await;
        assert_eq!(events(&new), [of("retract orchard@rooms"), of("item new@rooms")]);
        // The new way round.
        let with = "<conference xmlns='urn:xmpp:bookmarks:1' name='W'><extensions><x xmlns='urn:x'/></extensions></conference>";
        let publish = format!("<publish node='{BM}'><item id='w@rooms'>{with}</item></publish>");
        set(&new, &publish).await;
        set(&new, &format!("<retract node='{BM}'><item id='play@rooms'/></retract>")).await;
        let w = "<conference jid='w@rooms' name='W'><extensions><x xmlns='urn:x'/></extensions></conference>";
        assert_eq!(private(&old, "get", "").await, stored(&format!("<conference jid='new@rooms'/>{w}")));
        assert_eq!(private(&old, "set", "").await, "");
        assert_eq!(private(&old, "get", "").await, stored(""));
        let refused = options(&[("access_model", "open")]);
        let publish = set(&new, &(publication(BM, "x") + &refused)).await;
        assert_eq!(publish, "conflict precondition-not-met", "the node is its owner's alone");
    });
}

#[test]
fn a_node_that_others_may_see_is_closed_before_it_has_bookmarks_of_private_storage() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        let conference = "<conference xmlns='urn:xmpp:bookmarks:1'/>";
        set(&alice, &format!("<publish node='{BM}'><item id='a@rooms'>{conference}</item></publish>")).await;
        let all = format!("<items node='{BM}'/>");
        assert!(get(&bob, "alice", &all).await.contains("a@rooms"));
        private(&alice, "set", "<conference jid='b@rooms'/><conference jid='c@rooms'/>").await;
        assert_eq!(get(&bob, "alice", &all).await, "not-allowed closed-node");
        let kept = get(&alice, "", &all).await;
        assert!(!kept.contains("a@rooms") && kept.contains("b@rooms") && kept.contains("c@rooms"), "{kept}");
    });
}

#[test]
fn a_bad_bookmark_is_refused_and_the_account_says_what_it_does() {
    block_on(async {
        let bench = bench();
        let alice = bench.login("alice@localhost/old").await;
        assert_eq!(private(&alice, "set", "<conference name='x'/>").await, "bad-request");
        assert_eq!(private(&alice, "set", "<conference jid='@'/>").await, "jid-malformed");
        let info = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
        assert!(ask(&alice, "", "get", info).await.contains("urn:xmpp:bookmarks:1#compat"));
        let mut config = ModulesConfig::default();
        config.set("pep", "enabled", &"false".parse().unwrap()).unwrap();
        let bench = bench_of(config);
        let alice = bench.login("alice@localhost/old").await;
        let room = "<conference jid='play@rooms'/>";
        assert_eq!(private(&alice, "set", room).await, "");
        assert_eq!(private(&alice, "get", "").await, stored(room));
        assert!(!ask(&alice, "", "get", info).await.contains("#compat"));
    });
}

const STORAGE: &str = "storage:bookmarks";

fn current(inside: &str) -> String {
    format!(
        "<publish node='{STORAGE}'><item id='current'><storage xmlns='{STORAGE}'>{inside}</storage></item></publish>"
    )
}

#[test]
fn the_node_of_older_clients_has_the_same_bookmarks() {
    block_on(async {
        let bench = bench();
        let old = bench.login_at(0, "alice@localhost/old").await;
        let pep = bench.login_at(1, "alice@localhost/pep").await;
        come(&bench, &old, &[BM]).await;
        come(&bench, &pep, &[STORAGE]).await;
        let play =
            "<conference autojoin='true' jid='play@rooms' name='The Play'><nick>JC</nick></conference>";
        let url = "<url name='Page' url='http://example.org/'/>";
        let closed = options(&[("persist_items", "true"), ("access_model", "whitelist")]);
        set(&pep, &(current(&format!("{play}{url}")) + &closed)).await;
        assert_eq!(private(&old, "get", "").await, stored(&format!("{url}{play}")));
        let listed = get(&old, "", &format!("<items node='{BM}'/>")).await;
        assert!(
            listed.contains(
                "<item id='play@rooms' publisher='alice@localhost'><conference xmlns='urn:xmpp:bookmarks:1'"
            ),
            "{listed}"
        );
        pep.hears();
        old.hears();
        // Whichever of the others changes, this one hears of it, once.
        let told = [format!("alice@localhost items {STORAGE} item current")];
        let conference = "<conference xmlns='urn:xmpp:bookmarks:1' name='W'/>";
        set(&old, &format!("<publish node='{BM}'><item id='w@rooms'>{conference}</item></publish>")).await;
        assert_eq!(events(&pep), told);
        let all = get(&pep, "", &format!("<items node='{STORAGE}'/>")).await;
        let w = "<conference jid='w@rooms' name='W'/>";
        assert!(all.contains(&format!("<storage xmlns='{STORAGE}'>{url}{play}{w}</storage>")), "{all}");
        private(&old, "set", w).await;
        assert_eq!(events(&pep), told);
        let all = get(&pep, "", &format!("<items node='{STORAGE}'/>")).await;
        assert!(all.contains(&format!("<storage xmlns='{STORAGE}'>{w}</storage>")), "{all}");
        private(&old, "set", w).await;
        assert_eq!(events(&pep), [""; 0]);
        set(&old, &format!("<retract node='{BM}'><item id='w@rooms'/></retract>")).await;
        assert_eq!(events(&pep), told);
        // The other way round, too.
        old.hears();
        set(&pep, &current(play)).await;
        assert_eq!(events(&old), [format!("alice@localhost items {BM} item play@rooms")]);
        set(&pep, &format!("<retract node='{STORAGE}'><item id='current'/></retract>")).await;
        assert!(private(&old, "get", "").await.contains("play@rooms"));
    });
}

#[test]
fn the_node_of_older_clients_is_its_owners_and_takes_bookmarks_only() {
    block_on(async {
        let bench = bench();
        let (alice, bob) = friends(&bench).await;
        assert_eq!(set(&alice, &current("<conference name='x'/>")).await, "bad-request");
        assert_eq!(set(&alice, &current("<conference jid='@'/>")).await, "jid-malformed");
        let other =
            format!("<publish node='{STORAGE}'><item id='current'><x xmlns='urn:x'/></item></publish>");
        assert_eq!(set(&alice, &other).await, "bad-request invalid-payload");
        assert_eq!(get(&alice, "", &format!("<items node='{STORAGE}'/>")).await, "item-not-found");
        // One that all may see is closed before it has what private storage had.
        set(&alice, &current("<conference jid='a@rooms'/>")).await;
        let all = format!("<items node='{STORAGE}'/>");
        assert!(get(&bob, "alice", &all).await.contains("a@rooms"));
        private(&alice, "set", "<conference jid='b@rooms'/>").await;
        assert_eq!(get(&bob, "alice", &all).await, "not-allowed closed-node");
        let info = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
        assert!(ask(&alice, "", "get", info).await.contains("urn:xmpp:bookmarks-conversion:0"));
    });
}

//! Rows 57 and 60: more than may be kept, and a disk that takes no more.

use anyhow::{Result, ensure};
use tests::{people::go_online, xml::escape};

use crate::{door::Door, metric::stanzas, raw::Way};

/// Input: roster items with names and groups beyond measure, and more items than an account may have.
///
/// Outcome: `not-acceptable` for the one, `resource-constraint` for the other; what was there stays there, and
/// goes on to be changed.
#[tokio::test]
async fn row_057_a_roster_has_bounds() -> Result<()> {
    const ITEMS: usize = 12;
    let door = Door::with(&[("modules.roster.items_max", &ITEMS.to_string())]).await?;
    let deeds = async |door: &Door| {
        let person = door.person("alice").await?;
        let mut alices = door.session(Way::Direct, &person).await?;
        let set = |id: &str, item: &str| {
            format!("<iq type='set' id='{id}'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
        };
        for n in 0..ITEMS {
            alices.say(set(&format!("i{n}"), &format!("<item jid='c{n}@localhost'/>"))).await?;
            let answer = alices.next().await?;
            ensure!(answer.attr("type") == Some("result"), "{}", answer.pretty().join("\n"));
        }
        let groups: String = (0..1_000).map(|n| format!("<group>g{n}</group>")).collect();
        let name = "n".repeat(8_000);
        for (item, condition) in [
            (format!("<item jid='c0@localhost' name='{name}'/>"), "not-acceptable"),
            (format!("<item jid='c0@localhost'>{groups}</item>"), "not-acceptable"),
            (format!("<item jid='c0@localhost'><group>{name}</group></item>"), "not-acceptable"),
            ("<item jid='one-more@localhost'/>".to_owned(), "resource-constraint"),
        ] {
            alices.say(set("bad", &item)).await?;
            alices.stanza_error(condition).await?;
        }
        alices.say(set("good", "<item jid='c0@localhost' name='Carol'/>")).await?;
        ensure!(alices.next().await?.attr("type") == Some("result"), "the roster cannot be changed any more");
        let mut again = door.session(Way::StartTls, &person).await?;
        let roster = go_online(&mut again, None).await?.pretty().join("\n");
        ensure!(roster.matches("<item").count() == ITEMS && roster.contains("name='Carol'"), "{roster}");
        Ok(())
    };
    door.row([stanzas("iq", "bounced").times(4)], deeds).await
}

/// Input: a message to someone who is offline, and a roster change, while the disk takes no more.
///
/// Outcome: the sender gets a stanza error that says to wait; what was refused is not there afterwards, and
/// who is online still talks.
#[tokio::test]
async fn row_060_a_full_disk_is_said_to_the_sender() -> Result<()> {
    let door = Door::with(&[]).await?;
    let deeds = async |door: &Door| {
        let (alice, bob, carol) =
            (door.person("alice").await?, door.person("bob").await?, door.person("carol").await?);
        // More than any disk has free.
        door.restart(&[("store.reserve_bytes", "1000000000000000")]).await?;
        let mut alices = door.online(Way::Direct, &alice).await?;
        let mut carols = door.online(Way::StartTls, &carol).await?;
        let offline = escape(&bob.bare());
        alices.say(format!("<message to='{offline}' id='kept' type='chat'><body>x</body></message>")).await?;
        let error = alices.next().await?;
        ensure!(refused(&error), "a message: {}", error.pretty().join("\n"));
        ensure!(error.attr("id") == Some("kept") && error.attr("from") == Some(&bob.bare()), "{error:?}");
        let item = format!("<item jid='{offline}' name='Bob'/>");
        alices
            .say(format!("<iq type='set' id='r'><query xmlns='jabber:iq:roster'>{item}</query></iq>"))
            .await?;
        let error = alices.next().await?;
        ensure!(refused(&error), "a roster change: {}", error.pretty().join("\n"));
        let to = escape(&carols.jid());
        alices.say(format!("<message to='{to}' type='chat' id='live'><body>x</body></message>")).await?;
        ensure!(carols.next().await?.attr("id") == Some("live"), "who is online hears");
        alices.works_and_heard_nothing().await?;

        let full = door.metrics().await?.get("rookery_store_errors_total{reason=\"full\"}").copied();
        ensure!(full >= Some(2.0), "the metric of a full disk is {full:?}");

        // Nothing of it was kept.
        door.restart(&[("store.reserve_bytes", "0")]).await?;
        let mut bobs = door.online(Way::Direct, &bob).await?;
        bobs.works_and_heard_nothing().await?;
        let mut alices = door.session(Way::Direct, &alice).await?;
        let roster = go_online(&mut alices, None).await?;
        ensure!(!roster.pretty().join("").contains(&bob.user), "{}", roster.pretty().join("\n"));
        Ok(())
    };
    // Counters begin anew with the process: the metric was looked at between the lives.
    door.row([], deeds).await
}

fn refused(answer: &tests::xml::Node) -> bool {
    let condition = crate::raw::stanza_condition(answer);
    let waits = answer.nodes().any(|n| n.name == "error" && n.attr("type") == Some("wait"));
    matches!(condition, Some("resource-constraint" | "internal-server-error")) && waits
}

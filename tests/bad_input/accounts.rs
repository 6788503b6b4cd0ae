//! Rows 55 and 92: accounts that are made and changed by their users.

use anyhow::{Context, Result, ensure};
use tests::{client::unique, xml::Node};

use crate::{
    door::{Door, HOST},
    metric::Metric,
    raw::{Raw, Way},
};

/// A node at which clients may register, and change and remove what they have.
async fn open_door(settings: &[(&str, &str)]) -> Result<Door> {
    let hosts = format!("[\"{HOST}\"]");
    let open = [("modules.registration.enabled", "true"), ("modules.registration.hosts", &*hosts)];
    Door::with(&[&open, settings].concat()).await
}

/// Requests of strangers, by what they were answered.
fn answered(outcome: &str) -> Metric {
    Metric::named(&format!("rookery_requests_before_login_total{{outcome=\"{outcome}\"}}"))
}

fn set(username: &str, password: &str) -> String {
    format!(
        "<iq type='set' id='set'><query xmlns='jabber:iq:register'>\
         <username>{username}</username><password>{password}</password></query></iq>"
    )
}

/// The next element, which must be the result of a set.
async fn done(raw: &mut Raw) -> Result<()> {
    let answer = raw.next().await?;
    let fits = answer.attr("id") == Some("set") && answer.attr("type") == Some("result");
    ensure!(fits, "no result, but {}", answer.pretty().join("\n"));
    Ok(())
}

/// Input: logins under other spellings of one name: capitals, and letters of full width.
///
/// Outcome: all of them are the same account.
#[tokio::test]
async fn row_055_spellings_of_a_name_are_one_account() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let wide = alice.user.replace("alice", "\u{ff21}\u{ff2c}\u{ff29}\u{ff23}\u{ff25}");
        for user in [alice.user.to_uppercase(), wide] {
            let mut raw = door.stream(Way::Direct).await?;
            raw.authenticate(&user, &alice.password, "PLAIN").await?;
            raw.bind(None).await?;
            let bare = raw.jid().split('/').next().context("a bare JID")?.to_owned();
            ensure!(bare == alice.bare(), "`{user}` is `{bare}`");
        }
        Ok(())
    };
    Door::shared().await?.row([Metric::named("rookery_logins_total").times(2)], deeds).await
}

/// Input: registrations of `ＡＬＩＣＥ`, then of `alice` and `ALICE`, and logins under all three.
///
/// Outcome: the first makes an account; the others get the stanza error `conflict`; all three log in to the
/// first one.
#[tokio::test]
async fn row_055_three_spellings_register_one_account() -> Result<()> {
    let deeds = async |door: &Door| {
        let (name, password) = (unique("alice"), unique("the secret of"));
        door.secret(&password);
        let wide = name.replace("alice", "\u{ff21}\u{ff2c}\u{ff29}\u{ff23}\u{ff25}");
        let spellings = [wide, name.clone(), name.to_uppercase()];
        let mut raw = door.stream(Way::Direct).await?;
        raw.say(set(&spellings[0], &password)).await?;
        done(&mut raw).await?;
        for spelling in &spellings {
            raw.say(set(spelling, "another secret")).await?;
            raw.stanza_error("conflict").await?;
        }
        for spelling in &spellings {
            let mut raw = door.stream(Way::StartTls).await?;
            raw.authenticate(spelling, &password, "PLAIN").await?;
            raw.bind(None).await?;
            ensure!(raw.jid().starts_with(&format!("{name}@{HOST}/")), "{} by `{spelling}`", raw.jid());
        }
        Ok(())
    };
    let counted = [answered("result"), answered("conflict").times(3)];
    open_door(&[]).await?.row(counted, deeds).await
}

/// Input: the password of another user, set by a user of the same host: by name, in other letters, and
/// addressed to the other's account.
///
/// Outcome: the stanza error `forbidden`, and for the other's address `service-unavailable`, as if nobody had
/// it; the password stays, and no error repeats the one that was sent.
#[tokio::test]
async fn row_092_nobody_sets_the_password_of_another_user() -> Result<()> {
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        door.secret("the wish of alice");
        let quiet = |answer: Node| match answer.pretty().join("").contains("the wish of") {
            true => Err(anyhow::anyhow!("the password comes back")),
            false => Ok(()),
        };
        for way in Way::TLS {
            let mut raw = door.online(way, &alice).await?;
            for (to, name) in [(HOST, &bob.user), (HOST, &bob.user.to_uppercase()), (HOST, &bob.bare())] {
                let wish = set(name, "the wish of alice").replace("<iq", &format!("<iq to='{to}'"));
                raw.say(wish).await?;
                quiet(raw.stanza_error("forbidden").await?)?;
            }
            for to in [bob.bare(), format!("nobody@{HOST}")] {
                let wish = set(&bob.user, "the wish of alice").replace("<iq", &format!("<iq to='{to}'"));
                raw.say(wish).await?;
                quiet(raw.stanza_error("service-unavailable").await?)?;
            }
            raw.works_and_heard_nothing().await?;
        }
        door.session(Way::Direct, &bob).await.map(drop)
    };
    let counted = Metric::named("rookery_stanzas_total{kind=\"iq\",outcome=\"bounced\"}").times(10);
    open_door(&[]).await?.row([counted], deeds).await
}

/// Input: a password change and a registration over a stream without TLS, where logins need none.
///
/// Outcome: the stanza error `not-authorized` for both; the password stays, and nobody is registered.
#[tokio::test]
async fn row_092_no_password_is_set_in_the_clear() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.online(Way::Plain, &alice).await?;
        raw.say(set(&alice.user, "another secret")).await?;
        raw.stanza_error("not-authorized").await?;
        let mut raw = door.stream(Way::Plain).await?;
        raw.say(set(&unique("stranger"), "another secret")).await?;
        raw.stanza_error("not-authorized").await?;
        door.session(Way::Plain, &alice).await.map(drop)
    };
    open_door(&[("c2s.tls_required", "false")]).await?.row([answered("not-authorized")], deeds).await
}

/// Input: registrations without end from one address, on one stream and on new ones.
///
/// Outcome: those beyond the bound get the stanza error `resource-constraint` of type `wait`, a stream that only
/// asks ends with `policy-violation`, and who has an account logs in.
#[tokio::test]
async fn row_092_a_flood_of_registrations_is_told_to_wait() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.stream(Way::Direct).await?;
        for n in 0..10 {
            raw.say(set(&unique("flood"), "a drop of the flood")).await?;
            if n < 3 {
                done(&mut raw).await?;
                continue;
            }
            let answer = raw.stanza_error("resource-constraint").await?;
            let kind = answer.nodes().find(|n| n.name == "error").and_then(|n| n.attr("type"));
            ensure!(kind == Some("wait"), "{}", answer.pretty().join("\n"));
        }
        raw.say(set(&unique("flood"), "a drop of the flood")).await?;
        raw.stream_error("policy-violation").await?;
        let mut raw = door.stream(Way::StartTls).await?;
        raw.say(set(&unique("flood"), "a drop of the flood")).await?;
        raw.stanza_error("resource-constraint").await?;
        raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256").await
    };
    let counted = [answered("result").times(3), answered("resource-constraint").times(8)];
    open_door(&[("modules.registration.per_address_per_hour", "3")]).await?.row(counted, deeds).await
}

//! Rows 61 to 91: TLS and authentication.

use anyhow::{Result, ensure};

use crate::{
    door::Door,
    metric::{login_failures, stream_errors},
    raw::Way,
};

/// Input: a mechanism that is not offered.
///
/// Outcome: the SASL failure `invalid-mechanism`; the stream lives, and a right login is taken.
#[tokio::test]
async fn row_069_an_unknown_mechanism_is_refused() -> Result<()> {
    let mechanisms = ["ANONYMOUS", "DIGEST-MD5", "X"];
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            for mechanism in mechanisms {
                raw.say(format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'/>"))
                    .await?;
                raw.sasl_failure("invalid-mechanism").await?;
            }
            let authenticated = raw.try_authenticate(&alice.user, &alice.password, "PLAIN").await?;
            ensure!(authenticated.is_ok(), "{authenticated:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(2 * mechanisms.len())], deeds).await
}

/// Input: a stanza before login.
///
/// Outcome: the stream ends with `not-authorized`, also where logins need no TLS.
#[tokio::test]
async fn row_081_a_stanza_before_login_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let mut raw = door.stream(Way::Plain).await?;
        raw.say(format!("<message to='{}'><body>a</body></message>", door.witness())).await?;
        raw.stream_error("not-authorized").await.map(drop)
    };
    Door::without_tls().await?.row([stream_errors("not-authorized")], deeds).await
}

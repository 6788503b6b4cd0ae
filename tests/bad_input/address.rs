//! Rows 93 to 108: addresses, and who may say what in whose name.

use anyhow::Result;
use tests::xml::escape;

use crate::{
    door::Door,
    metric::{stanzas_refused, stream_errors},
    raw::Way,
};

/// Input: a stanza in the name of somebody else.
///
/// Outcome: the stream ends with `invalid-from`, and nothing is delivered.
#[tokio::test]
async fn row_093_a_stanza_in_another_name_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let mallory = door.person("mallory").await?;
        for way in Way::TLS {
            let mut raw = door.online(way, &mallory).await?;
            let witness = escape(door.witness());
            raw.say(format!("<message from='{witness}' to='{witness}'><body>a</body></message>")).await?;
            raw.stream_error("invalid-from").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("invalid-from").times(2)], deeds).await
}

/// Input: a stanza to what is no address.
///
/// Outcome: the stanza error `jid-malformed`; the stream lives.
#[tokio::test]
async fn row_095_an_address_that_is_none_is_answered() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.online(Way::Direct, &alice).await?;
        raw.say("<message to='@@@' id='1'><body>a</body></message>").await?;
        raw.stanza_error("jid-malformed").await?;
        raw.works_and_heard_nothing().await
    };
    Door::shared().await?.row([stanzas_refused()], deeds).await
}

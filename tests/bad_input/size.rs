//! Rows 28, 31 to 39, 41 to 45, 54, 56, 58 and 79: too much, too long, too slow.

use anyhow::Result;

use crate::{door::Door, metric::stream_errors, raw::Way};

/// Input: a stanza larger than 8 KiB before login.
///
/// Outcome: the stream ends with `policy-violation`.
#[tokio::test]
async fn row_032_a_large_stanza_before_login_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        for way in Way::ALL {
            let mut raw = door.stream(way).await?;
            raw.say(format!("<message><body>{}</body></message>", "x".repeat(8 * 1024))).await?;
            raw.stream_error("policy-violation").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("policy-violation").times(Way::ALL.len())], deeds).await
}

//! Rows 55 and 92: accounts that are made and changed by their users.

use anyhow::{Context, Result, ensure};

use crate::{door::Door, metric::Metric, raw::Way};

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

//! The keys of the account that a client wants to log in to: looked up, checked against, and added where some are missing.

use hooks::{AccountState, Credentials};
use jid::BareJid;
use stream::Acts;
use stream::sasl::mechanism::Password;
use stream::sasl::{Checked, Found, ScramHash, ScramKeys, anonymous, keys};
use tokio::time::Instant;

use super::Login;

/// The hashes of the keys that a plain password is checked against: the first that there are. Nearly all accounts have
/// keys of the first one, and so do those seem to have that are not there.
const PLAIN_HASHES: [ScramHash; 3] = [ScramHash::Sha256, ScramHash::Sha512, ScramHash::Sha1];

impl Login<'_> {
    pub(super) async fn look_up(&mut self, account: &BareJid, hash: ScramHash) -> Acts {
        if !self.turn(account).await {
            return self.negotiation.on_unavailable();
        }
        match self.find(account).await {
            Ok(found) => self.negotiation.on_credentials(found.map(|found| Found {
                keys: keys_of(&found, hash),
                disabled: found.state == AccountState::Disabled,
                lacks: lacks(&found),
            })),
            Err(()) => self.negotiation.on_unavailable(),
        }
    }

    /// PBKDF2 takes milliseconds: never on an arbiter, and no more at once than the queue holds.
    pub(super) async fn check(&mut self, account: BareJid, password: Password) -> Acts {
        if !self.turn(&account).await {
            return self.negotiation.on_unavailable();
        }
        self.checking = Some(Instant::now());
        let Ok(found) = self.find(&account).await else {
            return self.negotiation.on_unavailable();
        };
        let best = |found: &Credentials| {
            PLAIN_HASHES.into_iter().find_map(|hash| Some((hash, keys_of(found, hash)?)))
        };
        // Nobody there takes as long as somebody: time must not tell who has an account.
        let fake = || (PLAIN_HASHES[0], self.negotiation.fake_keys(&account, PLAIN_HASHES[0]));
        let (known, right) = match &found {
            None => (None, Checked::Wrong),
            Some(found) if found.state == AccountState::Disabled => (best(found), Checked::Disabled),
            Some(found) => (best(found), Checked::Good),
        };
        let right = if known.is_some() { right } else { Checked::Wrong };
        let (hash, known) = known.unwrap_or_else(fake);
        let missing = found.as_ref().filter(|_| right == Checked::Good).map(lacks).unwrap_or_default();
        // With the salts that strangers have been told of them: so nobody sees when the account gets them.
        let missing: Vec<_> =
            missing.into_iter().map(|hash| (hash, self.negotiation.fake_keys(&account, hash))).collect();
        let check = move || {
            if !keys::verify(password.expose(), hash, &known) {
                return (Checked::Wrong, Vec::new());
            }
            let make = |(hash, ScramKeys { salt, iterations, .. })| {
                Some((hash, keys::derive(password.expose(), hash, &salt, iterations).ok()?))
            };
            (right, missing.into_iter().filter_map(make).collect())
        };
        match self.connection.world.passwords.run(check).await {
            Ok((checked, made)) => {
                if !made.is_empty() {
                    self.add_keys(&account, made).await;
                }
                self.negotiation.on_password_checked(checked)
            }
            Err(_busy) => {
                self.connection.world.counters.auth_busy.add(1);
                self.negotiation.on_unavailable()
            }
        }
    }

    /// Keeps keys that the account did not have when it was looked at. Without them the login is as good.
    pub(super) async fn add_keys(&self, account: &BareJid, made: Vec<(ScramHash, ScramKeys)>) {
        let Some(mark) = &self.mark else { return };
        let mut more = Credentials::default();
        for (hash, ScramKeys { salt, iterations, stored_key, server_key }) in made {
            let keys = Some(hooks::ScramKeys { salt, iterations, stored_key, server_key });
            match hash {
                ScramHash::Sha1 => more.sha1 = keys,
                ScramHash::Sha256 => more.sha256 = keys,
                ScramHash::Sha512 => more.sha512 = keys,
            }
        }
        match self.connection.world.accounts.add_keys(account.as_str(), mark, &more).await {
            Ok(true) => tracing::info!(%account, "keys added that the account did not have"),
            // Its password was changed meanwhile, or it is closed.
            Ok(false) => {}
            Err(error) => tracing::warn!(%account, %error, "failed to add keys to an account"),
        }
    }

    /// The account, if there is one of that name.
    pub(super) async fn find(&mut self, account: &BareJid) -> Result<Option<Credentials>, ()> {
        let auth = &self.connection.world.config.auth;
        if auth.is_anonymous(account.domain().as_str())
            && account.node().is_some_and(|node| anonymous::is_anonymous(node.as_str()))
        {
            // Somebody may be here under that name: whoever registered it since must not become them.
            return Ok(None);
        }
        // Before the look: an order that comes beside it counts as behind it.
        self.looked = Some((account.clone(), self.connection.world.claims.kicks()));
        let found = self.connection.world.accounts.look_up_versioned(account.as_str()).await;
        let found = found.map_err(|error| {
            tracing::warn!(%error, "failed to read credentials");
        })?;
        self.mark = found.as_ref().map(|found| found.value.mark(found.version));
        Ok(found.map(|found| found.value).filter(|found| found.state != AccountState::Leaving))
    }
}

/// The keys of one hash, as the negotiation has them.
fn keys_of(found: &Credentials, hash: ScramHash) -> Option<ScramKeys> {
    let keys = match hash {
        ScramHash::Sha1 => &found.sha1,
        ScramHash::Sha256 => &found.sha256,
        ScramHash::Sha512 => &found.sha512,
    };
    keys.as_ref().map(|keys| ScramKeys {
        salt: keys.salt.clone(),
        iterations: keys.iterations,
        stored_key: keys.stored_key.clone(),
        server_key: keys.server_key.clone(),
    })
}

/// The hashes that there are no keys of.
fn lacks(found: &Credentials) -> Vec<ScramHash> {
    let of = [
        (ScramHash::Sha1, &found.sha1),
        (ScramHash::Sha256, &found.sha256),
        (ScramHash::Sha512, &found.sha512),
    ];
    of.into_iter().filter(|(_, keys)| keys.is_none()).map(|(hash, _)| hash).collect()
}

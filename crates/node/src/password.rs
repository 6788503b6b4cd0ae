//! Makes the keys that are kept of a password.

use store::{Credentials, ScramKeys};
use stream::sasl::keys::{self, BadPassword, ScramHash};

/// Length of a salt, in bytes.
const SALT: usize = 16;

/// The keys of a password for each hash. Slow on purpose: call it on a thread that may block.
///
/// # Errors
/// [`BadPassword`] for an empty password, or one with characters that SASLprep (RFC 4013) forbids.
pub fn keys(password: &str) -> Result<Credentials, BadPassword> {
    let make = |hash| {
        let mut salt = [0; SALT];
        // the operating system's generator does not fail once it is seeded
        assert!(aws_lc_rs::rand::fill(&mut salt).is_ok(), "the random generator works");
        let made = keys::derive(password, hash, &salt, keys::ITERATIONS)?;
        Ok(ScramKeys {
            salt: made.salt,
            iterations: made.iterations,
            stored_key: made.stored_key,
            server_key: made.server_key,
        })
    };
    Ok(Credentials::new(make(ScramHash::Sha1)?, make(ScramHash::Sha256)?, make(ScramHash::Sha512)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hash_and_each_account_has_a_salt_of_its_own() {
        let (one, two) = (keys("pencil").unwrap(), keys("pencil").unwrap());
        let salt = |keys: &Option<ScramKeys>| keys.as_ref().unwrap().salt.clone();
        assert_ne!(salt(&one.sha1), salt(&one.sha256));
        assert_ne!(one.sha512, two.sha512);
        assert!(keys("").is_err());
    }
}

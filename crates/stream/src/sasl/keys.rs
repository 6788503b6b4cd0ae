//! SCRAM keys (RFC 5802, 3): what is kept instead of a password, and the primitives to make and check them.

use aws_lc_rs::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq;

/// Bytes of salt in keys that are made here; fake salts have as many.
pub const SALT_LEN: usize = 16;
/// Iterations for new keys (RFC 7677, 4 asks for at least 4096).
pub const ITERATIONS: u32 = 4096;

/// The hash of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// RFC 5802.
    Sha1,
    /// RFC 7677.
    Sha256,
    /// The same construction over SHA-512, registered with IANA.
    Sha512,
}

impl ScramHash {
    /// All of them, weakest first.
    pub const ALL: [ScramHash; 3] = [ScramHash::Sha1, ScramHash::Sha256, ScramHash::Sha512];

    /// Bytes of a digest.
    pub fn len(self) -> usize {
        match self {
            ScramHash::Sha1 => 20,
            ScramHash::Sha256 => 32,
            ScramHash::Sha512 => 64,
        }
    }

    /// Never: a digest has bytes.
    pub fn is_empty(self) -> bool {
        false
    }

    /// HMAC.
    pub fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            ScramHash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            ScramHash::Sha256 => hmac::HMAC_SHA256,
            ScramHash::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), message).as_ref().to_vec()
    }

    /// The hash itself.
    pub fn digest(self, message: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            ScramHash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            ScramHash::Sha256 => &digest::SHA256,
            ScramHash::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, message).as_ref().to_vec()
    }

    /// `Hi` of the RFC: PBKDF2 with HMAC. Slow on purpose: not for a thread that has other work.
    pub fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let algorithm = match self {
            ScramHash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            ScramHash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            ScramHash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let iterations = std::num::NonZeroU32::new(iterations).unwrap_or(std::num::NonZeroU32::MIN);
        let mut out = vec![0; self.len()];
        pbkdf2::derive(algorithm, iterations, salt, password, &mut out);
        out
    }
}

/// What the server keeps of a password, for one hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// Random, per account and hash.
    pub salt: Vec<u8>,
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// `H(ClientKey)`: checks the client's proof.
    pub stored_key: Vec<u8>,
    /// Makes the server's signature.
    pub server_key: Vec<u8>,
}

impl std::fmt::Debug for ScramKeys {
    /// Without the keys: they belong in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// A password with characters that SASLprep (RFC 4013) forbids, or an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a usable password")]
pub struct BadPassword;

/// A password as it is hashed: SASLprep (RFC 4013), never empty.
pub fn prepare(password: &str) -> Result<String, BadPassword> {
    let prepared = stringprep::saslprep(password).map_err(|_| BadPassword)?;
    if prepared.is_empty() { Err(BadPassword) } else { Ok(prepared.into_owned()) }
}

/// Makes keys of a password. Slow on purpose (PBKDF2): call it off the arbiter.
pub fn derive(
    password: &str,
    hash: ScramHash,
    salt: &[u8],
    iterations: u32,
) -> Result<ScramKeys, BadPassword> {
    let salted = hash.salted_password(prepare(password)?.as_bytes(), salt, iterations);
    Ok(of_salted(&salted, hash, salt, iterations))
}

/// Makes keys of what a password was salted to ([`ScramHash::salted_password`]); quick.
pub fn of_salted(salted: &[u8], hash: ScramHash, salt: &[u8], iterations: u32) -> ScramKeys {
    let client_key = hash.hmac(salted, b"Client Key");
    ScramKeys {
        salt: salt.to_vec(),
        iterations,
        stored_key: hash.digest(&client_key),
        server_key: hash.hmac(salted, b"Server Key"),
    }
}

/// Whether the password belongs to the keys. As slow as [`derive()`]; the comparison takes constant time.
pub fn verify(password: &str, hash: ScramHash, keys: &ScramKeys) -> bool {
    derive(password, hash, &keys.salt, keys.iterations)
        .is_ok_and(|derived| bool::from(derived.stored_key.ct_eq(&keys.stored_key)))
}

/// Keys for an account that is not there: the same for the same name, so that asking twice tells nothing,
/// and of no password. `secret` is the server's (the same on every node of a cluster).
pub fn fake(secret: &[u8], hash: ScramHash, account: &str, iterations: u32) -> ScramKeys {
    // One HMAC for all of it: this is done at every login, so that an account that is there costs it too.
    let made = ScramHash::Sha512.hmac(secret, format!("{}\0{account}", hash.len()).as_bytes());
    let (salt, rest) = made.split_at(SALT_LEN);
    let key = |from: usize| rest.iter().cycle().skip(from).take(hash.len()).copied().collect();
    ScramKeys { salt: salt.to_vec(), iterations, stored_key: key(0), server_key: key(rest.len() / 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_fits() {
        for hash in ScramHash::ALL {
            let keys = derive("pencil", hash, b"0123456789abcdef", 64).unwrap();
            assert_eq!(keys.stored_key.len(), hash.len());
            assert!(verify("pencil", hash, &keys));
            assert!(!verify("pencil ", hash, &keys));
            assert!(!verify("", hash, &keys));
        }
    }

    #[test]
    fn passwords_are_prepared() {
        // RFC 4013, 3: a soft hyphen is nothing, a Roman numeral nine is `IX`, a control is forbidden.
        assert_eq!(prepare("I\u{ad}X"), Ok("IX".to_owned()));
        assert_eq!(prepare("\u{2168}"), Ok("IX".to_owned()));
        assert_eq!(prepare("\u{7}"), Err(BadPassword));
        assert_eq!(prepare(""), Err(BadPassword));
        let keys = derive("IX", ScramHash::Sha256, b"salt", 16).unwrap();
        assert!(verify("\u{2168}", ScramHash::Sha256, &keys));
    }

    #[test]
    fn fake_keys_are_stable_and_differ_by_name_and_hash() {
        let of = |secret: &[u8], hash, name| fake(secret, hash, name, 4096);
        let a = of(b"secret", ScramHash::Sha1, "a@x");
        assert_eq!(a, of(b"secret", ScramHash::Sha1, "a@x"));
        assert_ne!(a.salt, of(b"secret", ScramHash::Sha1, "b@x").salt);
        assert_ne!(a.salt, of(b"secret", ScramHash::Sha256, "a@x").salt);
        assert_ne!(a.salt, of(b"other", ScramHash::Sha1, "a@x").salt);
        assert_eq!(a.salt.len(), SALT_LEN);
        assert_eq!(a.stored_key.len(), 20);
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = derive("pencil", ScramHash::Sha1, b"salt", 1).unwrap();
        assert_eq!(format!("{keys:?}"), "ScramKeys { iterations: 1, .. }");
    }
}

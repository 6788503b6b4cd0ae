//! The client's side of SASL: PLAIN, and SCRAM (RFC 5802, RFC 7677) with the keys of each account made once.
//!
//! A salted password costs thousands of rounds of a hash. Clients keep it (RFC 5802, 3), and a generator must: it would
//! else take more of the machine than the server that is measured.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine, prelude::BASE64_STANDARD};

/// A way to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mechanism {
    /// SCRAM with SHA-256 (RFC 7677).
    #[value(name = "scram-sha-256")]
    ScramSha256,
    /// SCRAM with SHA-1 (RFC 5802).
    #[value(name = "scram-sha-1")]
    ScramSha1,
    /// The password as it is (RFC 4616).
    #[value(name = "plain")]
    Plain,
}

impl Mechanism {
    /// All of them, best first.
    pub const ALL: [Mechanism; 3] = [Mechanism::ScramSha256, Mechanism::ScramSha1, Mechanism::Plain];

    /// Its name in SASL.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::Plain => "PLAIN",
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        if self == Mechanism::ScramSha256 { &digest::SHA256 } else { &digest::SHA1_FOR_LEGACY_USE_ONLY }
    }

    fn mac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let sha256 = self == Mechanism::ScramSha256;
        let algorithm = if sha256 { hmac::HMAC_SHA256 } else { hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY };
        hmac::sign(&hmac::Key::new(algorithm, key), message).as_ref().to_vec()
    }
}

/// What a salted password is good for.
struct Keys {
    salt: Vec<u8>,
    rounds: u32,
    client: Vec<u8>,
    stored: Vec<u8>,
    server: Vec<u8>,
}

impl Keys {
    fn new(mechanism: Mechanism, password: &str, salt: Vec<u8>, rounds: u32) -> Result<Keys> {
        let algorithm = match mechanism {
            Mechanism::ScramSha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            _ => pbkdf2::PBKDF2_HMAC_SHA1,
        };
        let mut salted = vec![0; mechanism.digest().output_len()];
        let iterations = rounds.try_into().context("no rounds")?;
        pbkdf2::derive(algorithm, iterations, &salt, password.as_bytes(), &mut salted);
        let client = mechanism.mac(&salted, b"Client Key");
        let stored = digest::digest(mechanism.digest(), &client).as_ref().to_vec();
        Ok(Keys { salt, rounds, stored, server: mechanism.mac(&salted, b"Server Key"), client })
    }
}

/// The keys of accounts that have logged in before: one set for each account and mechanism.
#[derive(Default)]
pub struct Wallet {
    kept: Mutex<HashMap<(String, Mechanism), Arc<Keys>>>,
}

impl Wallet {
    fn keys(
        &self,
        mechanism: Mechanism,
        user: &str,
        password: &str,
        salt: Vec<u8>,
        rounds: u32,
    ) -> Result<Arc<Keys>> {
        let place = (user.to_owned(), mechanism);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some(keys) = kept.filter(|keys| keys.salt == salt && keys.rounds == rounds) {
            return Ok(keys);
        }
        let keys = Arc::new(Keys::new(mechanism, password, salt, rounds)?);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(place, keys.clone());
        Ok(keys)
    }
}

/// One exchange of SCRAM.
pub struct Exchange {
    mechanism: Mechanism,
    user: String,
    first_bare: String,
    nonce: String,
    signature: Vec<u8>,
}

impl Exchange {
    /// Begins; the second value is the client's first message, before base64.
    pub fn begin(mechanism: Mechanism, user: &str, nonce: &str) -> (Exchange, String) {
        let first_bare = format!("n={},r={nonce}", user.replace('=', "=3D").replace(',', "=2C"));
        let first = format!("n,,{first_bare}");
        let (user, nonce) = (user.to_owned(), nonce.to_owned());
        (Exchange { mechanism, user, first_bare, nonce, signature: Vec::new() }, first)
    }

    /// The client's last message, in answer to the server's first.
    ///
    /// # Errors
    /// Where the server's message lacks something, or its nonce does not begin with ours.
    pub fn respond(&mut self, server_first: &str, password: &str, wallet: &Wallet) -> Result<String> {
        let field = |key: &str| {
            let found = server_first.split(',').find_map(|field| field.strip_prefix(key));
            found.with_context(|| format!("no `{key}` in `{server_first}`"))
        };
        let nonce = field("r=")?;
        ensure!(nonce.starts_with(&self.nonce), "the nonce is not ours: `{nonce}`");
        let (salt, rounds) = (BASE64_STANDARD.decode(field("s=")?)?, field("i=")?.parse()?);
        let keys = wallet.keys(self.mechanism, &self.user, password, salt, rounds)?;
        // `biws` is the header `n,,`: bound to no channel.
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = self.mechanism.mac(&keys.stored, message.as_bytes());
        let proof: Vec<u8> = keys.client.iter().zip(signature).map(|(key, s)| key ^ s).collect();
        self.signature = self.mechanism.mac(&keys.server, message.as_bytes());
        Ok(format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)))
    }

    /// Whether the server knows the account too.
    ///
    /// # Errors
    /// Where its signature is missing or another.
    pub fn check(&self, server_last: &str) -> Result<()> {
        let signature = server_last.split(',').find_map(|field| field.strip_prefix("v="));
        let signature = signature.with_context(|| format!("no signature in `{server_last}`"))?;
        ensure!(BASE64_STANDARD.decode(signature)? == self.signature, "the server's signature is wrong");
        Ok(())
    }
}

/// The only message of PLAIN, before base64.
pub fn plain(user: &str, password: &str) -> String {
    format!("\0{user}\0{password}")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The examples of RFC 5802, 5 and RFC 7677, 3.
    const EXAMPLES: [(Mechanism, &str, &str, &str, &str); 2] = [
        (
            Mechanism::ScramSha1,
            "fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            Mechanism::ScramSha256,
            "rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ];

    #[test]
    fn the_examples_of_the_rfcs_come_out_and_their_keys_are_kept() {
        let wallet = Wallet::default();
        for (mechanism, nonce, server_first, last, server_last) in EXAMPLES {
            // Once with keys that are made, once with those that were kept.
            for _ in 0..2 {
                let (mut exchange, first) = Exchange::begin(mechanism, "user", nonce);
                assert_eq!(first, format!("n,,n=user,r={nonce}"));
                let said = exchange.respond(server_first, "pencil", &wallet).expect("a good first message");
                assert_eq!(said, last);
                exchange.check(server_last).expect("the right signature");
                assert!(exchange.check("v=AAAA").is_err() && exchange.check("e=other-error").is_err());
            }
        }
        assert_eq!(wallet.kept.lock().expect("no panic").len(), 2);
    }

    #[test]
    fn keys_of_another_salt_are_made_anew() {
        let wallet = Wallet::default();
        let keys = |salt: &[u8], rounds| {
            wallet.keys(Mechanism::ScramSha1, "user", "pencil", salt.to_vec(), rounds).expect("some rounds")
        };
        let first = keys(b"a salt", 2);
        assert!(Arc::ptr_eq(&first, &keys(b"a salt", 2)));
        assert_ne!(first.client, keys(b"another", 2).client);
        assert_ne!(keys(b"a salt", 3).client, first.client);
    }

    #[test]
    fn a_server_with_a_nonce_of_its_own_is_refused() {
        let (mut exchange, _) = Exchange::begin(Mechanism::ScramSha1, "a=b,c", "mine");
        assert_eq!(exchange.first_bare, "n=a=3Db=2Cc,r=mine");
        assert!(exchange.respond("r=theirs,s=QSXCR+Q6sek8bf92,i=1", "pencil", &Wallet::default()).is_err());
    }
}

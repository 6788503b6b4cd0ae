//! The client's side of SCRAM (RFC 5802, RFC 7677), bound to a channel or not, written apart from the server's so
//! that each checks the other.

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine, prelude::BASE64_STANDARD};

/// The hash that a mechanism of the SCRAM family names.
#[derive(Clone, Copy)]
pub struct Hash {
    digest: &'static digest::Algorithm,
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
}

impl Hash {
    /// The hash of a mechanism by its SASL name, with or without -PLUS.
    pub fn of(mechanism: &str) -> Result<Hash> {
        Ok(match mechanism.strip_suffix("-PLUS").unwrap_or(mechanism) {
            "SCRAM-SHA-1" => Hash {
                digest: &digest::SHA1_FOR_LEGACY_USE_ONLY,
                hmac: hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
                pbkdf2: pbkdf2::PBKDF2_HMAC_SHA1,
            },
            "SCRAM-SHA-256" => {
                Hash { digest: &digest::SHA256, hmac: hmac::HMAC_SHA256, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256 }
            }
            "SCRAM-SHA-512" => {
                Hash { digest: &digest::SHA512, hmac: hmac::HMAC_SHA512, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512 }
            }
            other => bail!("`{other}` is no mechanism of this client"),
        })
    }

    /// The salted password (RFC 5802, 3).
    pub fn salted(self, password: &str, salt: &[u8], rounds: u32) -> Result<Vec<u8>> {
        let rounds = rounds.try_into().context("no rounds")?;
        let mut salted = vec![0; self.digest.output_len()];
        pbkdf2::derive(self.pbkdf2, rounds, salt, password.as_bytes(), &mut salted);
        Ok(salted)
    }

    /// The keys of a password as RFC 5803 writes them, for the mechanism of this name.
    pub fn line(mechanism: &str, password: &str) -> Result<String> {
        // As Prosody has it: text, and more rounds than here.
        let (hash, salt, rounds) = (Hash::of(mechanism)?, b"f83b1c1e-9d4a-4a57-a3c8-3f2b40f6d2a1", 10_000);
        let salted = hash.salted(password, salt, rounds)?;
        let client = hash.mac(&salted, b"Client Key");
        let [salt, stored, server] = [
            salt.as_slice(),
            digest::digest(hash.digest, &client).as_ref(),
            &hash.mac(&salted, b"Server Key"),
        ]
        .map(|bytes| BASE64_STANDARD.encode(bytes));
        Ok(format!("{mechanism}${rounds}:{salt}${stored}:{server}"))
    }

    fn mac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.hmac, key), message).as_ref().to_vec()
    }
}

/// One exchange, between its first message and the server's signature.
pub struct Exchange {
    hash: Hash,
    first_bare: String,
    nonce: String,
    binding: String,
    offered: Option<String>,
    server_signature: Vec<u8>,
}

impl Exchange {
    /// Begins; the second value is the client's first message, before base64.
    pub fn begin(hash: Hash, user: &str, nonce: &str) -> (Exchange, String) {
        Exchange::bound(hash, user, nonce, "n,,", &[])
    }

    /// Begins with a header of this client's choice (`p=tls-exporter,,`) and the data that it is to be bound to.
    pub fn bound(hash: Hash, user: &str, nonce: &str, header: &str, data: &[u8]) -> (Exchange, String) {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        let first = format!("{header}{first_bare}");
        let binding = BASE64_STANDARD.encode([header.as_bytes(), data].concat());
        let nonce = nonce.to_owned();
        let exchange =
            Exchange { hash, first_bare, nonce, binding, offered: None, server_signature: Vec::new() };
        (exchange, first)
    }

    /// Insists on what the server says that it offered (XEP-0474): names of mechanisms and types of binding.
    pub fn insist(&mut self, mechanisms: &[String], bindings: &[String]) {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names.join("\u{1e}")
        };
        let mut offered = sorted(mechanisms);
        if !bindings.is_empty() {
            offered = format!("{offered}\u{1f}{}", sorted(bindings));
        }
        let hash = digest::digest(self.hash.digest, offered.as_bytes());
        self.offered = Some(BASE64_STANDARD.encode(hash));
    }

    /// The client's last message, in answer to the server's first.
    pub fn respond(&mut self, server_first: &str, password: &str) -> Result<String> {
        let field = |key: &str| {
            let mut fields = server_first.split(',');
            fields
                .find_map(|f| f.strip_prefix(key))
                .with_context(|| format!("no `{key}` in `{server_first}`"))
        };
        let (nonce, salt, rounds) =
            (field("r=")?, BASE64_STANDARD.decode(field("s=")?)?, field("i=")?.parse()?);
        ensure!(
            nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce),
            "the nonce is not ours: `{nonce}`"
        );
        if let Some(offered) = &self.offered {
            ensure!(field("h=")? == offered, "another offer was made than was heard: `{server_first}`");
        }
        let salted = self.hash.salted(password, &salt, rounds)?;
        let without_proof = format!("c={},r={nonce}", self.binding);
        let message = format!("{},{server_first},{without_proof}", self.first_bare);
        let client_key = self.mac(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.digest, &client_key);
        let signature = self.mac(stored_key.as_ref(), message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(k, s)| k ^ s).collect();
        let server_key = self.mac(&salted, b"Server Key");
        self.server_signature = self.mac(&server_key, message.as_bytes());
        Ok(format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)))
    }

    /// Whether the server proved that it knows the account too.
    pub fn check(&self, server_last: &str) -> Result<()> {
        let signature =
            server_last.strip_prefix("v=").with_context(|| format!("no signature: `{server_last}`"))?;
        ensure!(
            BASE64_STANDARD.decode(signature)? == self.server_signature,
            "the server's signature is wrong"
        );
        Ok(())
    }

    fn mac(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        self.hash.mac(key, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The examples of RFC 5802, 5 and RFC 7677, 3.
    #[test]
    fn the_examples_of_the_rfcs_come_out() {
        let table = [
            (
                "SCRAM-SHA-1",
                "fyko+d2lbbFgONRv9qkxdawL",
                "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
                "p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
                "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            ),
            (
                "SCRAM-SHA-256",
                "rOprNGfwEbeRWgbNEkqO",
                "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
                "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
        ];
        for (mechanism, nonce, server_first, proof, server_last) in table {
            let hash = Hash::of(mechanism).expect("a known mechanism");
            let (mut exchange, first) = Exchange::begin(hash, "user", nonce);
            assert_eq!(first, format!("n,,n=user,r={nonce}"));
            let last = exchange.respond(server_first, "pencil").expect("a good first message");
            assert!(last.ends_with(proof), "{mechanism}: {last}");
            exchange.check(server_last).expect("the right signature");
        }
    }
}

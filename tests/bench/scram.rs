//! The client's half of SCRAM-SHA-1 (RFC 5802), with nothing of the server's code in it.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Mutex};

use anyhow::{Context, Result};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

/// The bare first message (RFC 5802, 5.1). The nonce is fixed: the server's half makes it unique.
pub fn first(user: &str) -> String {
    format!("n={user},r=benchmarkbenchmarkbench")
}

/// By the first message of the account and the salt.
type Salted = BTreeMap<(String, Vec<u8>), [u8; 20]>;

/// Salted passwords.
///
/// Clients keep them (RFC 5802, 3). What it takes to make one is twice what a server needs for the whole login, so
/// on one machine it would be measured what the generator leaves of the caches.
static SALTED: Mutex<Salted> = Mutex::new(BTreeMap::new());

/// The last message: the proof for `challenge`.
pub fn last(first: &str, challenge: &str, password: &str) -> Result<String> {
    let field = |name: &str| challenge.split(',').find_map(|f| f.strip_prefix(name));
    let nonce = field("r=").context("no nonce in the challenge")?;
    let salt = BASE64.decode(field("s=").context("no salt in the challenge")?)?;
    let rounds: NonZeroU32 = field("i=").context("no iteration count in the challenge")?.parse()?;
    let salted = salted(first, salt, rounds, password)?;
    let client_key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &client_key);
    let without_proof = format!("c=biws,r={nonce}");
    let signature = sign(stored.as_ref(), format!("{first},{challenge},{without_proof}").as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
}

fn salted(first: &str, salt: Vec<u8>, rounds: NonZeroU32, password: &str) -> Result<[u8; 20]> {
    let kept = || SALTED.lock().map_err(|_| anyhow::anyhow!("somebody panicked with the kept keys"));
    let key = (first.to_owned(), salt);
    if let Some(salted) = kept()?.get(&key) {
        return Ok(*salted);
    }
    let mut salted = [0; 20];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA1, rounds, &key.1, password.as_bytes(), &mut salted);
    kept()?.insert(key, salted);
    Ok(salted)
}

/// What a server keeps of `password`.
pub fn keys(password: &str, iterations: u32) -> Result<store::ScramKeys> {
    let salt = b"0123456789abcdef".to_vec();
    let rounds = NonZeroU32::new(iterations).context("no iterations")?;
    let mut salted = [0; 20];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA1, rounds, &salt, password.as_bytes(), &mut salted);
    let stored = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &sign(&salted, b"Client Key"));
    let stored_key = stored.as_ref().to_vec();
    Ok(store::ScramKeys { salt, iterations, stored_key, server_key: sign(&salted, b"Server Key") })
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    hmac::sign(&key, text).as_ref().to_vec()
}

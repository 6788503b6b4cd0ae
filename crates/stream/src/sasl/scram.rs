//! SCRAM (RFC 5802, RFC 7677), the server's side: proofs instead of passwords, bound to the channel or not.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use stanza::{BareJid, DomainPart, address};
use subtle::ConstantTimeEq;

use super::keys::{self, ScramHash, ScramKeys};
use super::mechanism::{Found, Mechanism, SaslCondition, Step, Unbound};
use super::plain::check_authzid;

/// What the exchange must know of its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    /// Whose accounts.
    pub host: DomainPart,
    /// Makes the fake keys of unknown accounts.
    pub secret: Vec<u8>,
    /// Iterations that unknown accounts seem to have.
    pub iterations: u32,
    /// The server's part of the nonce: printable, no comma.
    pub nonce: String,
    /// Whether this exchange is the -PLUS variant.
    pub plus: bool,
    /// Whether a -PLUS variant was offered on this stream.
    pub plus_offered: bool,
    /// Channel binding data by name (`tls-exporter`, `tls-server-end-point`).
    pub bindings: Vec<(&'static str, Vec<u8>)>,
    /// The hash of all that was offered ([`downgrade::hash`](super::downgrade::hash)), to be told to the client.
    pub offered: Option<Arc<str>>,
}

/// One exchange.
pub struct Scram {
    hash: ScramHash,
    around: Surroundings,
    state: State,
}

enum State {
    First,
    Keys(First),
    Final { first: First, keys: ScramKeys, known: Known, server_first: String },
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    Disabled,
    No,
}

/// The client's first message, taken apart.
struct First {
    account: BareJid,
    /// `gs2-header`, and the binding data that must follow it in `c=`.
    binding: Vec<u8>,
    bare: String,
    nonce: String,
}

impl Scram {
    /// A fresh exchange.
    pub fn new(hash: ScramHash, around: Surroundings) -> Scram {
        Scram { hash, around, state: State::First }
    }

    fn first(&mut self, message: &[u8]) -> Result<Step, SaslCondition> {
        let malformed = SaslCondition::MalformedRequest;
        let text = std::str::from_utf8(message).map_err(|_| malformed)?;
        let (flag, rest) = text.split_once(',').ok_or(malformed)?;
        let (authzid, bare) = rest.split_once(',').ok_or(malformed)?;
        let mut binding = format!("{flag},{authzid},").into_bytes();
        binding.extend_from_slice(self.binding_data(flag)?);
        let authzid = match authzid {
            "" => String::new(),
            authzid => unescape(authzid.strip_prefix("a=").ok_or(malformed)?).ok_or(malformed)?,
        };
        // RFC 5802, 5.1: `m=` is a mandatory extension; none is known, so the name comes first.
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|a| a.strip_prefix("n=")).ok_or(malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(malformed)?;
        let printable = |b: u8| (0x21..=0x7e).contains(&b) && b != b',';
        if nonce.is_empty() || !nonce.bytes().all(printable) || !attributes.all(is_attribute) {
            return Err(malformed);
        }
        let name = unescape(name).filter(|name| !name.is_empty()).ok_or(malformed)?;
        let account = address::account(&name, &self.around.host).map_err(|_| SaslCondition::NotAuthorized)?;
        check_authzid(&authzid, &account)?;
        let nonce = format!("{nonce}{}", self.around.nonce);
        let step = Step::LookUp { account: account.clone(), hash: self.hash };
        self.state = State::Keys(First { account, binding, bare: bare.to_owned(), nonce });
        Ok(step)
    }

    /// RFC 5802, 6: what the channel binding flag asks for.
    fn binding_data(&self, flag: &str) -> Result<&[u8], SaslCondition> {
        match flag.split_once('=') {
            None if self.around.plus => Err(SaslCondition::MalformedRequest),
            None if flag == "n" => Ok(&[]),
            // The client could bind and believes that we cannot, but we offered it: a downgrade.
            None if flag == "y" && self.around.plus_offered => Err(SaslCondition::NotBound(Unbound::Offered)),
            None if flag == "y" => Ok(&[]),
            Some(("p", kind)) if self.around.plus => {
                let known = self.around.bindings.iter().find(|(name, _)| *name == kind);
                let data = known.map(|(_, data)| data.as_slice());
                data.ok_or(SaslCondition::NotBound(Unbound::UnknownType))
            }
            _ => Err(SaslCondition::MalformedRequest),
        }
    }

    fn last(&self, message: &[u8]) -> Result<Step, SaslCondition> {
        let malformed = SaslCondition::MalformedRequest;
        let State::Final { first, keys, known, server_first } = &self.state else {
            return Err(malformed);
        };
        let text = std::str::from_utf8(message).map_err(|_| malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(malformed)?;
        if !attributes.all(is_attribute) {
            return Err(malformed);
        }
        let binding = BASE64.decode(binding).map_err(|_| malformed)?;
        let proof = BASE64.decode(proof).map_err(|_| malformed)?;
        if proof.len() != self.hash.len() {
            return Err(malformed);
        }
        let message = format!("{},{server_first},{without_proof}", first.bare);
        let signature = self.hash.hmac(&keys.stored_key, message.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(p, s)| p ^ s).collect();
        // Everything is computed before anything is judged: the time tells nothing.
        let good = self.hash.digest(&client_key).ct_eq(&keys.stored_key)
            & nonce.as_bytes().ct_eq(first.nonce.as_bytes());
        let bound = binding.ct_eq(&first.binding);
        let verifier = BASE64.encode(self.hash.hmac(&keys.server_key, message.as_bytes()));
        match (bool::from(good), *known) {
            // Said to everybody alike: it depends on nothing that is kept.
            _ if !bool::from(bound) => return Err(SaslCondition::NotBound(Unbound::Mismatch)),
            (true, Known::Yes) => {}
            (true, Known::Disabled) => return Err(SaslCondition::AccountDisabled),
            _ => return Err(SaslCondition::NotAuthorized),
        }
        Ok(Step::Success { account: first.account.clone(), data: Some(format!("v={verifier}").into_bytes()) })
    }
}

impl Mechanism for Scram {
    fn message(&mut self, message: &[u8]) -> Step {
        match self.state {
            State::First => self.first(message).unwrap_or_else(|condition| {
                self.state = State::Done;
                Step::Fail(condition)
            }),
            State::Final { .. } => {
                let step = self.last(message).unwrap_or_else(Step::Fail);
                self.state = State::Done;
                step
            }
            State::Keys(_) | State::Done => Step::Fail(SaslCondition::MalformedRequest),
        }
    }

    fn found(&mut self, found: Option<Found>) -> Step {
        let State::Keys(first) = std::mem::replace(&mut self.state, State::Done) else {
            return Step::Fail(SaslCondition::TemporaryAuthFailure);
        };
        // An unknown account gets the same first answer as a known one, and fails where a wrong proof does.
        let fake = keys::fake(&self.around.secret, self.hash, first.account.as_str(), self.around.iterations);
        let (known, keys) = match found {
            Some(Found { keys: Some(keys), disabled: false, .. }) => (Known::Yes, keys),
            Some(Found { keys: Some(keys), disabled: true, .. }) => (Known::Disabled, keys),
            // Nor does who cannot log in by this hash, however right the password is.
            Some(Found { keys: None, .. }) | None => (Known::No, fake),
        };
        let salt = BASE64.encode(&keys.salt);
        let mut server_first = format!("r={},s={salt},i={}", first.nonce, keys.iterations);
        if let Some(offered) = &self.around.offered {
            // XEP-0474, 5.1: an attribute that a client may pass over, and that every proof covers.
            server_first.push_str(",h=");
            server_first.push_str(offered);
        }
        self.state = State::Final { first, keys, known, server_first: server_first.clone() };
        Step::Challenge(server_first.into_bytes())
    }
}

/// RFC 5802, 5.1: an extension is a letter, `=` and a value; `m` is reserved and must be refused.
fn is_attribute(a: &str) -> bool {
    let b = a.as_bytes();
    b.len() > 2 && b[0].is_ascii_alphabetic() && b[0] != b'm' && b[1] == b'='
}

/// RFC 5802, 5.1: `=2C` is a comma, `=3D` an equals sign, any other `=` is an error.
fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        out.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        out.push_str(rest);
    }
    Some(out)
}

#[cfg(test)]
mod tests;

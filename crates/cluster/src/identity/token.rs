//! The join token as an operator copies it: which authority to trust, a secret, roles and an end.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{role::Roles, seam::random_bits};

/// How a token begins; the number is the version of what follows.
const HEAD: &str = "rookery-join-1-";
/// Bytes of a token: id, fingerprint, secret, expiry, roles, and a checksum against slips of the pen.
const LEN: usize = 8 + 32 + 32 + 8 + 1 + 4;

/// A one-time join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its number in the table.
    pub id: u64,
    /// SHA-256 of the authority's certificate: the joiner speaks to nobody else.
    pub fingerprint: [u8; 32],
    /// What only its bearer knows.
    pub secret: [u8; 32],
    /// When it runs out, in seconds since 1970; the table has the last word.
    pub expires: u64,
    /// The roles that it grants at most.
    pub roles: Roles,
}

/// A text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one, or has another length.
    #[error("this is no join token: `rookery cluster token` prints one, which begins with `rookery-join-1-`")]
    Form,
    /// A letter is wrong or missing.
    #[error("the join token is damaged: copy the whole of it again")]
    Damaged,
}

impl Token {
    /// Draws a new one.
    pub fn draw(fingerprint: [u8; 32], roles: Roles, expires: u64) -> Token {
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(&random_bits().to_be_bytes());
        secret[16..].copy_from_slice(&random_bits().to_be_bytes());
        Token { id: random_bits() as u64, fingerprint, secret, expires, roles }
    }

    /// What the table keeps in place of the secret.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// Reads a token.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let body = text.trim().strip_prefix(HEAD).ok_or(TokenError::Form)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (body, sum) = bytes.split_at_checked(LEN - 4).ok_or(TokenError::Damaged)?;
        if sum != crc32fast::hash(body).to_be_bytes() {
            return Err(TokenError::Damaged);
        }
        let mut rest = body;
        let roles = match body[LEN - 5] {
            bits @ 1..=3 => Roles { frontend: bits & 1 != 0, backend: bits & 2 != 0 },
            _ => return Err(TokenError::Damaged),
        };
        Ok(Token {
            id: u64::from_be_bytes(take(&mut rest)),
            fingerprint: take(&mut rest),
            secret: take(&mut rest),
            expires: u64::from_be_bytes(take(&mut rest)),
            roles,
        })
    }
}

/// The next bytes of a body whose length was checked.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let (head, tail) = rest.split_at(N);
    out.copy_from_slice(head);
    *rest = tail;
    out
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fingerprint);
        bytes.extend(self.secret);
        bytes.extend(self.expires.to_be_bytes());
        bytes.push(u8::from(self.roles.frontend) | u8::from(self.roles.backend) << 1);
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        write!(f, "{HEAD}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("roles", &self.roles)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(roles: Roles) -> Token {
        Token::draw([3; 32], roles, 1_800_000_000)
    }

    #[test]
    fn a_token_reads_as_it_was_written() {
        for (frontend, backend) in [(true, false), (false, true), (true, true)] {
            let token = token(Roles { frontend, backend });
            let text = token.to_string();
            assert_eq!(Token::parse(&text), Ok(token.clone()));
            assert_eq!(Token::parse(&format!("  {text}\n")), Ok(token.clone()));
            assert_ne!(text, self::token(token.roles).to_string(), "each has a secret of its own");
        }
    }

    #[test]
    fn what_is_no_token_is_told_from_what_was_copied_wrongly() {
        let text = token(Roles::default()).to_string();
        let table = [
            ("".to_owned(), TokenError::Form),
            ("secret".to_owned(), TokenError::Form),
            (text.replace("join-1", "join-2"), TokenError::Form),
            (HEAD.to_owned(), TokenError::Damaged),
            (text[..text.len() - 1].to_owned(), TokenError::Damaged),
            (format!("{text}AAAA"), TokenError::Damaged),
            (format!("{text}="), TokenError::Damaged),
        ];
        for (text, expected) in table {
            assert_eq!(Token::parse(&text), Err(expected), "{text}");
        }
        for at in HEAD.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(Token::parse(&wrong), Err(TokenError::Damaged), "{wrong}");
        }
        // A token for no role is none, whoever made its checksum.
        let none = token(Roles { frontend: false, backend: false }).to_string();
        assert_eq!(Token::parse(&none), Err(TokenError::Damaged));
    }

    #[test]
    fn a_secret_is_not_printed_with_its_token() {
        let token = token(Roles::default());
        let shown = format!("{token:?}");
        assert!(!shown.contains(&format!("{:?}", token.secret)) && shown.contains("expires"));
    }
}

//! Keys of accounts from other servers, as RFC 5803 writes them.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use store::{Credentials, ScramKeys};
use stream::sasl::{MechanismName, ScramHash};

/// Fewer iterations are not used by clients (RFC 7677, 4); more would keep the threads that check passwords for a second.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;
/// The longest salt, in bytes.
const SALT_MAX: usize = 1_024;
/// What one line looks like.
const FORM: &str = "SCRAM-SHA-1$iterations:salt$StoredKey:ServerKey";

/// The keys of an account, one line for each hash. What is wrong is said without the keys.
///
/// # Errors
/// The number of the line, counted from 1, and what is wrong with it; 0 where there is none.
pub fn keys<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Credentials, (usize, String)> {
    let mut all = Credentials::default();
    let mut some = false;
    for (line, number) in lines.into_iter().zip(1..) {
        let (hash, keys) = one(line).map_err(|what| (number, what))?;
        let place = match hash {
            ScramHash::Sha1 => &mut all.sha1,
            ScramHash::Sha256 => &mut all.sha256,
            ScramHash::Sha512 => &mut all.sha512,
        };
        if place.replace(keys).is_some() {
            return Err((number, format!("a second line for {}", MechanismName::Scram(hash).as_str())));
        }
        some = true;
    }
    if some { Ok(all) } else { Err((0, format!("no keys: expected a line as in {FORM}"))) }
}

/// One line (RFC 5803, 3).
fn one(line: &str) -> Result<(ScramHash, ScramKeys), String> {
    let form = || format!("expected {FORM}");
    let mut parts = line.trim().split('$');
    let (Some(name), Some(how), Some(keys), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(form());
    };
    let is_named = |hash: &ScramHash| MechanismName::Scram(*hash).as_str() == name.trim();
    let Some(hash) = ScramHash::ALL.into_iter().find(is_named) else {
        let known = ScramHash::ALL.map(|hash| MechanismName::Scram(hash).as_str()).join(", ");
        return Err(format!("`{}` is no mechanism that is known here: expected one of {known}", shown(name)));
    };
    let (iterations, salt) = how.split_once(':').ok_or_else(form)?;
    let (stored, server) = keys.split_once(':').ok_or_else(form)?;
    let iterations = iterations.trim().parse().ok().filter(|number| ITERATIONS.contains(number));
    let iterations = iterations.ok_or_else(|| {
        format!("expected a number of iterations from {} to {}", ITERATIONS.start(), ITERATIONS.end())
    })?;
    let decoded = |what: &str, text: &str| {
        BASE64.decode(text.trim()).map_err(|_| format!("expected base64 as the {what}"))
    };
    let salt = decoded("salt", salt)?;
    if salt.is_empty() || salt.len() > SALT_MAX {
        return Err(format!("expected a salt of 1 to {SALT_MAX} bytes"));
    }
    let key = |what: &str, text: &str| {
        let key = decoded(what, text)?;
        match key.len() == hash.len() {
            true => Ok(key),
            false => Err(format!("expected {} bytes as the {what}, found {}", hash.len(), key.len())),
        }
    };
    let (stored_key, server_key) = (key("StoredKey", stored)?, key("ServerKey", server)?);
    Ok((hash, ScramKeys { salt, iterations, stored_key, server_key }))
}

/// The beginning of a name, which may be anything.
fn shown(name: &str) -> String {
    name.trim().chars().take(32).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, iterations: &str, salt: &str, (stored, server): (usize, usize)) -> String {
        let key = |len| BASE64.encode(vec![7; len]);
        format!("{name}${iterations}:{salt}${}:{}", key(stored), key(server))
    }

    #[test]
    fn the_keys_of_each_hash_are_read() {
        let (a, b) = (
            line("SCRAM-SHA-1", "4096", "c2FsdA==", (20, 20)),
            line("SCRAM-SHA-512", "10000", "AAE=", (64, 64)),
        );
        let read = keys([&*format!(" {a} "), &*b]).unwrap();
        let sha1 = read.sha1.unwrap();
        assert_eq!((sha1.salt, sha1.iterations), (b"salt".to_vec(), 4096));
        assert_eq!((sha1.stored_key, sha1.server_key), (vec![7; 20], vec![7; 20]));
        assert_eq!(read.sha512.unwrap().iterations, 10_000);
        assert_eq!(read.sha256, None);
    }

    #[test]
    fn the_keys_of_a_password_are_those_that_are_made_here() {
        let made = crate::password::keys("pencil").unwrap();
        let ScramKeys { salt, iterations, stored_key, server_key } = made.sha256.clone().unwrap();
        let text = [salt, stored_key, server_key].map(|bytes| BASE64.encode(bytes));
        let line = format!("SCRAM-SHA-256${iterations}:{}${}:{}", text[0], text[1], text[2]);
        assert_eq!(keys([&*line]).unwrap().sha256, made.sha256);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_without_the_keys() {
        let good = line("SCRAM-SHA-256", "4096", "c2FsdA==", (32, 32));
        for (bad, what) in [
            (String::new(), "expected SCRAM-SHA-1$"),
            ("secret".to_owned(), "expected SCRAM-SHA-1$"),
            (good.replace(':', ";"), "expected SCRAM-SHA-1$"),
            (format!("{good}$x"), "expected SCRAM-SHA-1$"),
            (
                line("SCRAM-SHA-256-PLUS", "4096", "c2FsdA==", (32, 32)),
                "`SCRAM-SHA-256-PLUS` is no mechanism",
            ),
            (line("MD5", "4096", "c2FsdA==", (32, 32)), "expected one of SCRAM-SHA-1, SCRAM-SHA-256"),
            (line("SCRAM-SHA-1", "4095", "c2FsdA==", (20, 20)), "iterations from 4096 to 1000000"),
            (line("SCRAM-SHA-1", "many", "c2FsdA==", (20, 20)), "iterations from"),
            (line("SCRAM-SHA-1", "99999999999", "c2FsdA==", (20, 20)), "iterations from"),
            (line("SCRAM-SHA-1", "4096", "", (20, 20)), "a salt of 1 to 1024 bytes"),
            (line("SCRAM-SHA-1", "4096", "sa lt", (20, 20)), "expected base64 as the salt"),
            (
                line("SCRAM-SHA-1", "4096", "c2FsdA==", (32, 20)),
                "expected 20 bytes as the StoredKey, found 32",
            ),
            (line("SCRAM-SHA-1", "4096", "c2FsdA==", (20, 0)), "expected 20 bytes as the ServerKey, found 0"),
            (good.clone(), "a second line for SCRAM-SHA-256"),
        ] {
            let (number, said) = keys([&*good, &*bad]).unwrap_err();
            assert!(number == 2 && said.contains(what), "{bad}: {number} {said}");
            assert!(!said.contains("BwcH") && !said.contains("secret"), "{said}");
        }
        assert_eq!(keys([]).unwrap_err().0, 0);
    }
}

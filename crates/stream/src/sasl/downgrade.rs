//! [XEP-0474]: SASL SCRAM Downgrade Protection. What was offered becomes part of what is proved.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::keys::ScramHash;

/// The value of the attribute `h` of the server's first message (XEP-0474, 5.1): over the names of all
/// mechanisms offered and, where they were announced (XEP-0440), of all types of channel binding.
pub fn hash(hash: ScramHash, mechanisms: &[&str], bindings: &[&str]) -> String {
    let sorted = |names: &[&str]| {
        let mut names = names.to_vec();
        // `i;octet`: by bytes, as `str` is ordered.
        names.sort_unstable();
        names.join("\x1e")
    };
    let mut offered = sorted(mechanisms);
    if !bindings.is_empty() {
        offered.push('\x1f');
        offered.push_str(&sorted(bindings));
    }
    BASE64.encode(hash.digest(offered.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_xep_comes_out_in_any_order() {
        let expected = "G6k/rBLDqgOhRRaCuuatSDFkJ08=";
        let bindings = ["tls-server-end-point", "tls-exporter"];
        for mechanisms in [["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"], ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"]] {
            assert_eq!(hash(ScramHash::Sha1, &mechanisms, &bindings), expected);
        }
    }

    #[test]
    fn whatever_is_left_out_is_seen() {
        let whole = hash(ScramHash::Sha256, &["PLAIN", "SCRAM-SHA-256"], &["tls-exporter"]);
        assert_ne!(whole, hash(ScramHash::Sha256, &["PLAIN", "SCRAM-SHA-256"], &[]));
        assert_ne!(whole, hash(ScramHash::Sha256, &["SCRAM-SHA-256"], &["tls-exporter"]));
    }
}

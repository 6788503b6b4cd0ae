//! What handshakes may agree on: versions, cipher suites, resumption.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, GetRandomFailed, aws_lc_rs as provider};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CipherSuite, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, TicketRotator, version,
};

use super::certificate::Leaf;
use super::client::Clients;
use super::{Served, TlsError};
use crate::config::{Tls, TlsMinimum};

/// Name of the protocol in ALPN for direct TLS (XEP-0368, 3).
const ALPN: &[u8] = b"xmpp-client";

/// The same for all certificates.
pub(super) struct Policy {
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    ticket_lifetime_s: u32,
}

impl Policy {
    pub fn new(config: &Tls) -> Policy {
        let suites = config.ciphers.iter().filter_map(|name| suite(name)).collect();
        let versions = match config.min_version {
            TlsMinimum::Tls12 => vec![&version::TLS13, &version::TLS12],
            TlsMinimum::Tls13 => vec![&version::TLS13],
        };
        let provider = CryptoProvider { cipher_suites: suites, ..provider::default_provider() };
        Policy { provider: Arc::new(provider), versions, ticket_lifetime_s: config.ticket_lifetime_s }
    }

    /// Settings for both doors that serve one certificate.
    pub fn serve(&self, leaf: Arc<Leaf>, clients: Option<&Arc<Clients>>) -> Result<Served, TlsError> {
        let tickets = self.tickets()?;
        let config = |alpn: &[&[u8]]| -> Result<ServerConfig, TlsError> {
            let builder = ServerConfig::builder_with_provider(self.provider.clone())
                .with_protocol_versions(&self.versions)?;
            let builder = match clients {
                Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
                None => builder.with_no_client_auth(),
            };
            let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            // Tickets carry the resumed state to the client: no table of sessions here, no 0-RTT.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.max_early_data_size = 0;
            match &tickets {
                Some(tickets) => {
                    config.ticketer = tickets.clone();
                    config.send_tls13_tickets = 1;
                }
                None => config.send_tls13_tickets = 0,
            }
            // Else the list of the config would only say what may be agreed on, and the client what is best.
            config.ignore_client_order = true;
            Ok(config)
        };
        Ok(Served { starttls: Orders::of(config(&[])?), direct: Orders::of(config(&[ALPN])?), leaf })
    }

    /// Keys of tickets: a fresh one after each lifetime, and a ticket lives as long as the key before.
    fn tickets(&self) -> Result<Option<Arc<dyn ProducesTickets>>, TlsError> {
        if self.ticket_lifetime_s == 0 {
            return Ok(None);
        }
        // The rotator takes a ticket for up to twice what it is given.
        let period = (self.ticket_lifetime_s / 2).max(1);
        Ok(Some(Arc::new(TicketRotator::new(period, one_key)?)))
    }
}

/// The same settings, under the server's order of cipher suites and under the client's.
pub(super) struct Orders {
    ours: Arc<ServerConfig>,
    theirs: Arc<ServerConfig>,
}

impl Orders {
    fn of(ours: ServerConfig) -> Orders {
        let mut theirs = ours.clone();
        theirs.ignore_client_order = false;
        Orders { ours: Arc::new(ours), theirs: Arc::new(theirs) }
    }

    /// The settings for a client that offers these suites. One that puts ChaCha20 first has no hardware for AES,
    /// and knows better what is cheap for it.
    pub fn choose(&self, offered: &[CipherSuite]) -> &Arc<ServerConfig> {
        let known = |offered: &&CipherSuite| {
            provider::ALL_CIPHER_SUITES.iter().any(|suite| suite.suite() == **offered)
        };
        let is_chacha = |first: &CipherSuite| first.as_str().is_some_and(|name| name.contains("CHACHA20"));
        if offered.iter().find(known).is_some_and(is_chacha) { &self.theirs } else { &self.ours }
    }
}

/// One key of tickets, whose life the rotator ends.
fn one_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    Ok(Box::new(Key(provider::Ticketer::new().map_err(|_| GetRandomFailed)?)))
}

#[derive(Debug)]
struct Key(Arc<dyn ProducesTickets>);

impl ProducesTickets for Key {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

/// The suite of that name, as IANA has it.
fn suite(name: &str) -> Option<SupportedCipherSuite> {
    provider::ALL_CIPHER_SUITES.iter().copied().find(|suite| iana(suite) == name)
}

fn iana(suite: &SupportedCipherSuite) -> String {
    // rustls marks the suites of TLS 1.3 as its own.
    let name = suite.suite().as_str().unwrap_or_default();
    name.strip_prefix("TLS13_").map_or(name.to_owned(), |rest| format!("TLS_{rest}"))
}

/// The names of all cipher suites that are known, in the order in which they are preferred: AES with keys of 128 bits
/// first, which is as safe as anybody can tell, costs least, and is what TLS 1.3 asks of everybody (RFC 8446, 9.1).
pub fn cipher_names() -> Vec<String> {
    let rank = |suite: &&SupportedCipherSuite| {
        let name = iana(suite);
        (suite.version().version == rustls::ProtocolVersion::TLSv1_2, !name.contains("AES_128"))
    };
    let mut suites: Vec<&SupportedCipherSuite> = provider::DEFAULT_CIPHER_SUITES.iter().collect();
    suites.sort_by_key(rank);
    suites.into_iter().map(iana).collect()
}

/// Whether a list of cipher suites leaves one for the lowest version that is allowed or a later one.
pub fn is_usable(ciphers: &[String], min_version: TlsMinimum) -> bool {
    let suites = ciphers.iter().filter_map(|name| suite(name));
    let mut versions = suites.map(|suite| suite.version());
    match min_version {
        TlsMinimum::Tls12 => versions.next().is_some(),
        TlsMinimum::Tls13 => versions.any(|version| *version == version::TLS13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_has_a_name_and_is_found_by_it() {
        assert_eq!(Tls::default().ciphers, cipher_names());
        for name in cipher_names() {
            assert!(name.starts_with("TLS_") && suite(&name).is_some(), "{name}");
        }
        assert!(suite("TLS_RSA_WITH_AES_128_CBC_SHA").is_none());
    }

    #[test]
    fn the_servers_order_counts_unless_the_client_wants_chacha_first() {
        let key = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let leaf = Arc::new(Leaf::from_pem(&key.cert.pem(), &key.signing_key.serialize_pem()).unwrap());
        let served = Policy::new(&Tls::default()).serve(leaf, None).unwrap();
        let ours = |offered: &[u16]| {
            let offered: Vec<CipherSuite> = offered.iter().map(|suite| CipherSuite::from(*suite)).collect();
            served.direct.choose(&offered).ignore_client_order
        };
        let (aes_128, aes_256, chacha, grease) = (0x1301, 0x1302, 0x1303, 0x0a0a);
        assert!(ours(&[aes_256, chacha, aes_128]));
        assert!(ours(&[]));
        assert!(!ours(&[chacha, aes_256]));
        assert!(!ours(&[grease, chacha, aes_256]), "what nobody knows says nothing");
        assert_eq!(
            served.direct.choose(&[]).crypto_provider().cipher_suites[0].suite().as_str(),
            Some("TLS13_AES_128_GCM_SHA256")
        );
    }

    #[test]
    fn a_list_must_leave_a_suite_for_the_versions() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (old, new) = ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256");
        assert!(is_usable(&names(old), TlsMinimum::Tls12) && is_usable(&names(new), TlsMinimum::Tls13));
        assert!(!is_usable(&names(old), TlsMinimum::Tls13));
        assert!(!is_usable(&[], TlsMinimum::Tls12));
    }
}

//! Certificates of clients: who signed them, and whose accounts they name (RFC 6120, 13.7.1.2).

use std::path::Path;
use std::sync::Arc;

use jid::BareJid;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use stream::ClientCertificate;
use x509_parser::extensions::GeneralName;

use super::{TlsError, certificate};
use crate::config::ClientCertificates;

/// Largest certificate that is looked into, in bytes; a larger one names nobody.
const BYTES_MAX: usize = 16 * 1024;
/// Most names in one; more name nobody.
const NAMES_MAX: usize = 64;
/// Most certificates behind it; with more it is not verified.
const ISSUERS_MAX: usize = 8;
/// `id-on-xmppAddr` (RFC 6120, 13.7.1.4).
const XMPP_ADDR: &str = "1.3.6.1.5.5.7.8.5";

/// Judges certificates by the authorities of one file.
pub(super) struct Clients {
    pub how: ClientCertificates,
    authorities: Arc<dyn ClientCertVerifier>,
}

impl Clients {
    pub fn load(path: &Path, how: ClientCertificates) -> Result<Clients, TlsError> {
        let mut roots = RootCertStore::empty();
        let certs = certificate::chain(path)?;
        if certs.is_empty() {
            return Err(TlsError::NoCertificate(path.to_owned()));
        }
        for cert in certs {
            roots.add(cert)?;
        }
        let provider = Arc::new(provider::default_provider());
        let authorities = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        let authorities =
            authorities.map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })?;
        Ok(Clients { how, authorities })
    }

    /// What decides in the handshake.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        match self.how {
            ClientCertificates::Required => self.authorities.clone(),
            ClientCertificates::Optional => Arc::new(Lenient(self.authorities.clone())),
        }
    }

    /// Whose accounts a certificate names, if it is to be trusted. The cheap questions come first.
    pub fn judge(&self, leaf: &CertificateDer<'_>, issuers: &[CertificateDer<'_>]) -> ClientCertificate {
        let named = addresses(leaf).filter(|named| !named.is_empty() && issuers.len() <= ISSUERS_MAX);
        let Some(named) = named else { return ClientCertificate::Unusable };
        match self.authorities.verify_client_cert(leaf, issuers, UnixTime::now()) {
            Ok(_) => ClientCertificate::Of(named),
            Err(error) => {
                tracing::debug!(%error, "not trusting a client's certificate");
                ClientCertificate::Unusable
            }
        }
    }
}

/// Takes any certificate whose key the client has: one that is not good for a login must not keep a password from
/// being so. It is judged when the handshake is done.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The accounts that a certificate names, as `xmppAddr` among its alternative names and nowhere else: a common
/// name or an organisation is for people. `None` where it is too large, or one of them is no bare JID of an
/// account, whatever the others are.
fn addresses(cert: &[u8]) -> Option<Vec<BareJid>> {
    if cert.len() > BYTES_MAX {
        return None;
    }
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let Some(names) = cert.subject_alternative_name().ok()? else { return Some(Vec::new()) };
    let names = &names.value.general_names;
    if names.len() > NAMES_MAX {
        return None;
    }
    let mut found = Vec::new();
    for name in names {
        let GeneralName::OtherName(oid, value) = name else { continue };
        if oid.to_id_string() != XMPP_ADDR {
            continue;
        }
        // OtherName ::= SEQUENCE { type-id, value [0] EXPLICIT ANY }, and the address is a UTF8String.
        let text = std::str::from_utf8(tlv(0x0c, tlv(0xa0, value)?)?).ok()?;
        // No name stands for several: `*` is a letter like others in an account's name, and so never meant here.
        let address =
            stanza::address::bare_jid(text).ok().filter(|jid| jid.node().is_some() && !text.contains('*'))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Some(found)
}

/// The content of a DER element with this tag that is all of `der`.
fn tlv(tag: u8, der: &[u8]) -> Option<&[u8]> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, content) = match (*first, rest) {
        (len @ ..=0x7f, rest) => (usize::from(len), rest),
        (0x81, [len, rest @ ..]) => (usize::from(*len), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    (*found == tag && content.len() == len).then_some(content)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn named(sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "admin@x");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "CN=admin@x,");
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn xmpp(address: &str) -> SanType {
        SanType::OtherName((vec![1, 3, 6, 1, 5, 5, 7, 8, 5], address.into()))
    }

    #[test]
    fn only_what_is_meant_as_an_address_is_one() {
        let dns = SanType::DnsName("alice.x".try_into().unwrap());
        let mail = SanType::Rfc822Name("alice@x".try_into().unwrap());
        // A user principal name looks the same to people.
        let upn = SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "alice@x".into()));
        let long = "a".repeat(300);
        type Case<'a> = (Vec<SanType>, Option<Vec<&'a str>>);
        let cases: [Case<'_>; 16] = [
            (vec![], Some(vec![])),
            (vec![dns, mail, upn], Some(vec![])),
            (vec![xmpp("alice@x")], Some(vec!["alice@x"])),
            (vec![xmpp("Alice@X")], Some(vec!["alice@x"])),
            (vec![xmpp("alice@x"), xmpp("ALICE@x"), xmpp("bob@y")], Some(vec!["alice@x", "bob@y"])),
            (vec![xmpp(&format!("{}@x", &long[..200]))], Some(vec![&long[..200]])),
            (vec![xmpp("x")], None),
            (vec![xmpp("alice@x/phone")], None),
            (vec![xmpp("*@x")], None),
            (vec![xmpp("alice@*.x")], None),
            (vec![xmpp("*")], None),
            (vec![xmpp("alice@x\0.evil.example")], None),
            (vec![xmpp("alice\0@x")], None),
            (vec![xmpp("alice@x"), xmpp("alice@x\0")], None),
            (vec![xmpp("")], None),
            (vec![xmpp(&long)], None),
        ];
        for (sans, expected) in cases {
            let found = addresses(&named(sans.clone()));
            let found = found.as_ref().map(|all| all.iter().map(|jid| jid.as_str()).collect::<Vec<_>>());
            let expected = expected.map(|all| {
                let whole = |jid: &str| if jid.contains('@') { jid.to_owned() } else { format!("{jid}@x") };
                all.into_iter().map(whole).collect::<Vec<_>>()
            });
            assert_eq!(
                found,
                expected.as_ref().map(|all| all.iter().map(String::as_str).collect()),
                "{sans:?}"
            );
        }
    }

    #[test]
    fn a_crowd_of_names_is_not_read() {
        let crowd = |n: usize| (0..n).map(|n| xmpp(&format!("a{n}@x"))).collect::<Vec<_>>();
        assert_eq!(addresses(&named(crowd(NAMES_MAX))).map(|all| all.len()), Some(NAMES_MAX));
        assert_eq!(addresses(&named(crowd(NAMES_MAX + 1))), None);
        let many = named(crowd(10_000));
        assert!(many.len() > BYTES_MAX);
        assert_eq!(addresses(&many), None);
    }

    #[test]
    fn damaged_values_name_nobody() {
        let cases: [&[u8]; 9] = [
            b"",
            b"\xa0",
            b"\xa0\x03\x0c\x01",
            b"\xa0\x03\x0c\x02a",
            b"\xa0\x03\x0c\x01aa",
            b"\xa0\x03\x16\x01a",
            b"\xa1\x03\x0c\x01a",
            b"\xa0\x80\x0c\x01a\0\0",
            b"\xa0\x84\0\0\0\x03\x0c\x01a",
        ];
        for der in cases {
            assert_eq!(tlv(0xa0, der).and_then(|inner| tlv(0x0c, inner)), None, "{der:?}");
        }
        assert_eq!(tlv(0xa0, b"\xa0\x03\x0c\x01a").and_then(|inner| tlv(0x0c, inner)), Some(&b"a"[..]));
        let mut cert = named(vec![xmpp("alice@x")]);
        let at = cert.windows(7).position(|w| w == b"alice@x").unwrap();
        cert[at] = 0xff;
        assert_eq!(addresses(&cert), None, "no UTF-8");
    }
}

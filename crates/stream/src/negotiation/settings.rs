//! What a negotiation is told from outside: hosts, mechanisms, TLS, randomness.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use minidom::Element;
use stanza::{BareJid, DomainPart, ResourcePart};

use super::offer::Offers;
use crate::sasl::{MechanismName, ScramHash, anonymous, keys};

/// Bytes of chance in a resource that stays the same: nobody guesses it.
const STABLE_BYTES: usize = 12;

/// Fills a buffer with unpredictable bytes.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// Features of modules for who has not logged in, by the host and by whether the stream is under TLS.
pub type Greetings = Arc<dyn Fn(&DomainPart, bool) -> Vec<Element> + Send + Sync>;

/// What a client may ask for beside a login by XEP-0388, by host; `None`: there are no such logins at it.
pub type Inlines = Arc<dyn Fn(&DomainPart) -> Option<Inline> + Send + Sync>;

/// What a client may ask for beside a login (XEP-0388, 2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inline {
    /// To be bound (XEP-0386), and the features that it may ask for with that; `None`: it may not.
    pub bind: Option<Vec<&'static str>>,
    /// To go on with an earlier session (XEP-0198, 9.2).
    pub resume: bool,
    /// For a token by which it can come back (XEP-0484).
    pub tokens: bool,
    /// To give what the server needs for a hash that it has no keys of (XEP-0480).
    pub upgrades: bool,
}

/// What is the same for all streams of a listener.
#[derive(Clone)]
pub struct Settings {
    /// The hosts that are served; the first one speaks where the client named none.
    pub hosts: Vec<DomainPart>,
    /// Whether STARTTLS can be offered on a stream without TLS.
    pub tls_available: bool,
    /// Whether nothing but STARTTLS is possible without TLS.
    pub tls_required: bool,
    /// What may be offered, in this order. PLAIN is offered inside TLS only, EXTERNAL where a certificate was
    /// shown that names an account of the host, whatever stands here.
    pub mechanisms: Vec<MechanismName>,
    /// Hosts that let in whoever asks, under a name of the server's making (ANONYMOUS).
    pub anonymous_hosts: Vec<DomainPart>,
    /// Makes the salts of accounts that do not exist; the same on every node of a cluster.
    pub fake_salt_secret: Vec<u8>,
    /// Iterations that accounts that do not exist seem to have: those of new accounts.
    pub iterations: u32,
    /// Failed exchanges after which one more ends the stream (RFC 6120, 6.4.5 asks for 2 to 5).
    pub auth_failures_max: u8,
    /// Stream ids, nonces, resources.
    pub random: Random,
    /// What modules offer before the login.
    pub greetings: Greetings,
    /// What can be asked for beside a login; looked at once for each host.
    pub inlines: Inlines,
    /// What was announced before, to be announced again.
    pub(super) offers: Offers,
}

impl Settings {
    /// TLS available and required, every mechanism but ANONYMOUS, three failures.
    pub fn new(hosts: Vec<DomainPart>, fake_salt_secret: Vec<u8>, random: Random) -> Settings {
        Settings {
            hosts,
            tls_available: true,
            tls_required: true,
            mechanisms: MechanismName::DEFAULT.to_vec(),
            anonymous_hosts: Vec::new(),
            fake_salt_secret,
            iterations: keys::ITERATIONS,
            auth_failures_max: 3,
            random,
            greetings: Arc::new(|_, _| Vec::new()),
            inlines: Arc::new(|_| None),
            offers: Offers::default(),
        }
    }

    /// A name for a client that logs in without one.
    pub(super) fn anonymous_account(&self, host: &DomainPart) -> Option<BareJid> {
        let mut bytes = [0; 16];
        (self.random)(&mut bytes);
        anonymous::account(host, bytes)
    }

    /// Whether a client may log in to this host without a name.
    pub fn is_anonymous(&self, host: &str) -> bool {
        self.anonymous_hosts.iter().any(|anonymous| anonymous.as_str() == host)
    }

    /// A resource for a client that asked for none: 128 bits, so that nobody can guess it.
    pub fn make_resource(&self) -> ResourcePart {
        let resource = ResourcePart::new(&self.token()).map(|part| part.into_owned());
        resource.expect("hexadecimal digits are a resource")
    }

    /// The part of a resource that is the same whenever this client of the account is bound (XEP-0386, 3.2.1), and that
    /// tells nothing about the id of the client; the same at every node.
    pub(super) fn stable_resource(&self, account: &BareJid, client: &str) -> String {
        let what = format!("resource\0{account}\0{client}");
        let made = ScramHash::Sha256.hmac(&self.fake_salt_secret, what.as_bytes());
        BASE64_URL.encode(&made[..STABLE_BYTES])
    }

    pub(super) fn token(&self) -> String {
        let mut bytes = [0; 16];
        (self.random)(&mut bytes);
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub(super) fn nonce(&self) -> String {
        let mut bytes = [0; 18];
        (self.random)(&mut bytes);
        BASE64.encode(bytes)
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Versions of TLS that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

impl TlsVersion {
    /// As people write it: `1.3`.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        }
    }
}

/// What a client's certificate is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientCertificate {
    /// None was shown, or none was asked for.
    #[default]
    Absent,
    /// One that is not trusted, or that names nobody.
    Unusable,
    /// It was verified, and names these accounts (RFC 6120, 13.7.1.4).
    Of(Vec<BareJid>),
}

/// What a finished handshake tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// The version agreed on.
    pub version: TlsVersion,
    /// Exported keying material for `tls-exporter` (RFC 9266), 32 bytes.
    pub exporter: Option<Vec<u8>>,
    /// Hash of our certificate for `tls-server-end-point` (RFC 5929, 4).
    pub endpoint_hash: Option<Vec<u8>>,
    /// The protocol agreed on.
    pub alpn: Option<Vec<u8>>,
    /// The name that the client asked for.
    pub sni: Option<String>,
    /// Who the client is by its certificate.
    pub client: ClientCertificate,
}

impl TlsFacts {
    /// What a login on this channel can be bound to, by name (XEP-0440), strongest first.
    pub fn bindings(&self) -> Vec<(&'static str, Vec<u8>)> {
        let exporter = self.exporter.iter().map(|data| (TLS_EXPORTER, data.clone()));
        let endpoint = self.endpoint_hash.iter().map(|data| (TLS_SERVER_END_POINT, data.clone()));
        exporter.chain(endpoint).collect()
    }
}

/// RFC 9266.
pub(super) const TLS_EXPORTER: &str = "tls-exporter";
/// RFC 5929, 4.
pub(super) const TLS_SERVER_END_POINT: &str = "tls-server-end-point";

/// How a connection begins.
#[derive(Debug, Clone)]
pub enum Entry {
    /// In the clear; STARTTLS may follow.
    Clear,
    /// Inside TLS (XEP-0368).
    DirectTls(TlsFacts),
}

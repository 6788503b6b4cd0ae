//! What a SASL mechanism is to the negotiation: a machine of steps, a name, the conditions of failure.

use stanza::BareJid;

use super::keys::{ScramHash, ScramKeys};

/// The server's side of one exchange.
pub trait Mechanism: Send {
    /// The client's message: the initial response, or the answer to a challenge.
    fn message(&mut self, message: &[u8]) -> Step;

    /// The answer to [`Step::LookUp`]; `None`: no such account.
    fn keys(&mut self, keys: Option<ScramKeys>) -> Step;

    /// The answer to [`Step::CheckPassword`].
    fn password_checked(&mut self, good: bool) -> Step;
}

/// What the exchange needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait for the client.
    Challenge(Vec<u8>),
    /// The keys of an account are needed.
    LookUp {
        /// Whose.
        account: BareJid,
        /// Of which hash.
        hash: ScramHash,
    },
    /// A password must be checked; slow.
    CheckPassword {
        /// Whose.
        account: BareJid,
        /// What the client sent.
        password: Password,
    },
    /// The client is who it says.
    Success {
        /// Who.
        account: BareJid,
        /// Additional data for the client.
        data: Option<Vec<u8>>,
    },
    /// It is not, or the exchange broke.
    Fail(SaslCondition),
}

/// A password on its way to the check; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Hides it.
    pub fn new(password: &str) -> Password {
        Password(password.to_owned())
    }

    /// The password itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// Why an exchange failed (RFC 6120, 6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaslCondition {
    /// The client gave up.
    Aborted,
    /// The account is there but may not log in.
    AccountDisabled,
    /// The password must be changed first.
    CredentialsExpired,
    /// Not without TLS.
    EncryptionRequired,
    /// Not base64.
    IncorrectEncoding,
    /// May not act as somebody else.
    InvalidAuthzid,
    /// Not offered.
    InvalidMechanism,
    /// Not what the mechanism expects.
    MalformedRequest,
    /// Weaker than the account allows.
    MechanismTooWeak,
    /// Wrong credentials; also: no such account.
    NotAuthorized,
    /// The server cannot check now.
    TemporaryAuthFailure,
}

impl SaslCondition {
    /// The element's name.
    pub fn tag(self) -> &'static str {
        match self {
            SaslCondition::Aborted => "aborted",
            SaslCondition::AccountDisabled => "account-disabled",
            SaslCondition::CredentialsExpired => "credentials-expired",
            SaslCondition::EncryptionRequired => "encryption-required",
            SaslCondition::IncorrectEncoding => "incorrect-encoding",
            SaslCondition::InvalidAuthzid => "invalid-authzid",
            SaslCondition::InvalidMechanism => "invalid-mechanism",
            SaslCondition::MalformedRequest => "malformed-request",
            SaslCondition::MechanismTooWeak => "mechanism-too-weak",
            SaslCondition::NotAuthorized => "not-authorized",
            SaslCondition::TemporaryAuthFailure => "temporary-auth-failure",
        }
    }
}

/// The mechanisms that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MechanismName {
    /// RFC 4616, inside TLS only.
    Plain,
    /// RFC 5802 and RFC 7677.
    Scram(ScramHash),
    /// The same, bound to the TLS channel.
    ScramPlus(ScramHash),
}

impl MechanismName {
    /// What is switched on where nothing else is said, strongest first.
    pub const DEFAULT: [MechanismName; 4] = [
        MechanismName::Scram(ScramHash::Sha512),
        MechanismName::Scram(ScramHash::Sha256),
        MechanismName::Scram(ScramHash::Sha1),
        MechanismName::Plain,
    ];

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        use ScramHash::*;
        match self {
            MechanismName::Plain => "PLAIN",
            MechanismName::Scram(Sha1) => "SCRAM-SHA-1",
            MechanismName::Scram(Sha256) => "SCRAM-SHA-256",
            MechanismName::Scram(Sha512) => "SCRAM-SHA-512",
            MechanismName::ScramPlus(Sha1) => "SCRAM-SHA-1-PLUS",
            MechanismName::ScramPlus(Sha256) => "SCRAM-SHA-256-PLUS",
            MechanismName::ScramPlus(Sha512) => "SCRAM-SHA-512-PLUS",
        }
    }

    /// The mechanism of that name; names are exact.
    pub fn from_name(name: &str) -> Option<MechanismName> {
        let all = ScramHash::ALL.into_iter();
        all.flat_map(|hash| [MechanismName::Scram(hash), MechanismName::ScramPlus(hash)])
            .chain([MechanismName::Plain])
            .find(|mechanism| mechanism.as_str() == name)
    }
}

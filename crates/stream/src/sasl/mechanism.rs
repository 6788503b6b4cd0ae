//! What a SASL mechanism is to the negotiation: a machine of steps, a name, the conditions of failure.

use stanza::BareJid;

use super::keys::{ScramHash, ScramKeys};
use super::token::{FoundTokens, TokenKey};

/// The server's side of one exchange.
pub trait Mechanism: Send {
    /// The client's message: the initial response, or the answer to a challenge.
    fn message(&mut self, message: &[u8]) -> Step;

    /// The answer to [`Step::LookUp`]; `None`: no such account.
    fn found(&mut self, _found: Option<Found>) -> Step {
        Step::Fail(SaslCondition::TemporaryAuthFailure)
    }

    /// The answer to [`Step::FindTokens`]; `None`: no such account.
    fn tokens_found(&mut self, _found: Option<FoundTokens>) -> Step {
        Step::Fail(SaslCondition::TemporaryAuthFailure)
    }

    /// The answer to [`Step::CheckPassword`].
    fn password_checked(&mut self, _checked: Checked) -> Step {
        Step::Fail(SaslCondition::TemporaryAuthFailure)
    }
}

/// An account that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its keys of the hash that was asked for; `None`: it has none of that hash.
    pub keys: Option<ScramKeys>,
    /// Nobody may log in. Told only to who knows the password.
    pub disabled: bool,
    /// The hashes that it has no keys of.
    pub lacks: Vec<ScramHash>,
}

/// What the check of a password found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is the account's.
    Good,
    /// It is the account's, and nobody may log in.
    Disabled,
    /// It is not, or there is no such account.
    Wrong,
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
    /// The tokens of a client of an account are needed.
    FindTokens {
        /// Whose.
        account: BareJid,
        /// The id that the client gives itself.
        client: String,
    },
    /// The client is who it says, by a token.
    Vouched {
        /// Who.
        account: BareJid,
        /// Additional data for the client.
        data: Vec<u8>,
        /// The key of the token.
        key: TokenKey,
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
    /// The same condition, with the reason: the exchange does not fit the channel that it runs on.
    NotBound(Unbound),
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
            SaslCondition::NotAuthorized | SaslCondition::NotBound(_) => "not-authorized",
            SaslCondition::TemporaryAuthFailure => "temporary-auth-failure",
        }
    }

    /// A text for people beside it, where one helps and tells nothing about accounts.
    pub fn text(self) -> Option<&'static str> {
        match self {
            SaslCondition::NotBound(why) => Some(why.as_str()),
            _ => None,
        }
    }
}

/// Why a channel binding does not fit: the server errors of SCRAM (RFC 5802, 7), which XMPP has no place for
/// but the text of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unbound {
    /// The client would have bound, and believes that we cannot: somebody has changed what we offered.
    Offered,
    /// A type of binding that is not offered on this stream.
    UnknownType,
    /// Other data than this channel has, or another header than at first.
    Mismatch,
}

impl Unbound {
    /// The error's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Unbound::Offered => "server-does-support-channel-binding",
            Unbound::UnknownType => "unsupported-channel-binding-type",
            Unbound::Mismatch => "channel-bindings-dont-match",
        }
    }
}

/// What a token is bound to beside its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenBinding {
    /// `tls-exporter`.
    Exporter,
    /// `tls-server-end-point`.
    EndPoint,
    /// Nothing.
    None,
}

impl TokenBinding {
    /// All of them, strongest first.
    pub const ALL: [TokenBinding; 3] = [TokenBinding::Exporter, TokenBinding::EndPoint, TokenBinding::None];

    /// The type of channel binding.
    pub fn channel(self) -> Option<&'static str> {
        match self {
            TokenBinding::Exporter => Some("tls-exporter"),
            TokenBinding::EndPoint => Some("tls-server-end-point"),
            TokenBinding::None => None,
        }
    }

    /// That of the mechanism of this name.
    pub fn from_mechanism(name: &str) -> Option<TokenBinding> {
        TokenBinding::ALL.into_iter().find(|binding| MechanismName::Token(*binding).as_str() == name)
    }
}

/// The mechanisms that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MechanismName {
    /// RFC 4422, A: who the client's certificate says.
    External,
    /// RFC 5802 and RFC 7677, bound to the TLS channel.
    ScramPlus(ScramHash),
    /// The same, not bound.
    Scram(ScramHash),
    /// RFC 4616, inside TLS only.
    Plain,
    /// RFC 4505: a name of the server's making, on hosts that have it.
    Anonymous,
    /// A token that the client was given at an earlier login (XEP-0484).
    Token(TokenBinding),
}

impl MechanismName {
    /// All that can be named in a config, strongest first. ANONYMOUS is switched on by host.
    pub const DEFAULT: [MechanismName; 8] = [
        MechanismName::External,
        MechanismName::ScramPlus(ScramHash::Sha512),
        MechanismName::ScramPlus(ScramHash::Sha256),
        MechanismName::ScramPlus(ScramHash::Sha1),
        MechanismName::Scram(ScramHash::Sha512),
        MechanismName::Scram(ScramHash::Sha256),
        MechanismName::Scram(ScramHash::Sha1),
        MechanismName::Plain,
    ];

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        use ScramHash::*;
        match self {
            MechanismName::External => "EXTERNAL",
            MechanismName::ScramPlus(Sha1) => "SCRAM-SHA-1-PLUS",
            MechanismName::ScramPlus(Sha256) => "SCRAM-SHA-256-PLUS",
            MechanismName::ScramPlus(Sha512) => "SCRAM-SHA-512-PLUS",
            MechanismName::Scram(Sha1) => "SCRAM-SHA-1",
            MechanismName::Scram(Sha256) => "SCRAM-SHA-256",
            MechanismName::Scram(Sha512) => "SCRAM-SHA-512",
            MechanismName::Plain => "PLAIN",
            MechanismName::Anonymous => "ANONYMOUS",
            MechanismName::Token(TokenBinding::Exporter) => "HT-SHA-256-EXPR",
            MechanismName::Token(TokenBinding::EndPoint) => "HT-SHA-256-ENDP",
            MechanismName::Token(TokenBinding::None) => "HT-SHA-256-NONE",
        }
    }

    /// The mechanism of that name, those for tokens included.
    pub fn known(name: &str) -> Option<MechanismName> {
        let token = || TokenBinding::from_mechanism(name).map(MechanismName::Token);
        MechanismName::from_name(name).or_else(token)
    }

    /// The mechanism of that name that can be offered to everybody; names are exact.
    pub fn from_name(name: &str) -> Option<MechanismName> {
        let all = MechanismName::DEFAULT.into_iter().chain([MechanismName::Anonymous]);
        all.into_iter().find(|mechanism| mechanism.as_str() == name)
    }

    /// Whether the channel is part of what is proved.
    pub fn binds(self) -> bool {
        matches!(self, MechanismName::ScramPlus(_))
    }
}

//! What is offered before login: made once for each kind of stream, not for each stream.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use minidom::Element;
use stanza::{DomainPart, dom, ns};

use super::settings::{Inline, Settings, TLS_EXPORTER, TLS_SERVER_END_POINT};
use crate::features;
use crate::sasl::{MechanismName, ScramHash, TokenBinding, downgrade};

/// All that decides what a stream is offered, beside the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub tls: bool,
    /// The channel can be bound to by `tls-exporter`,
    pub exporter: bool,
    /// and by `tls-server-end-point`.
    pub endpoint: bool,
    /// The client's certificate names an account of the host.
    pub certified: bool,
    /// The host lets in whoever asks.
    pub anonymous: bool,
}

impl Kind {
    const COUNT: usize = 1 << 5;

    fn index(self) -> usize {
        let bits = [self.tls, self.exporter, self.endpoint, self.certified, self.anonymous];
        bits.into_iter().fold(0, |index, bit| index << 1 | usize::from(bit))
    }

    fn bindings(self) -> Vec<&'static str> {
        let all = [(self.exporter, TLS_EXPORTER), (self.endpoint, TLS_SERVER_END_POINT)];
        all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }

    fn mechanisms(self, settings: &Settings) -> Vec<MechanismName> {
        let possible = |name: &MechanismName| match name {
            MechanismName::External => self.certified,
            MechanismName::ScramPlus(_) => self.exporter || self.endpoint,
            MechanismName::Scram(_) | MechanismName::Anonymous => self.tls || !settings.tls_required,
            MechanismName::Plain => self.tls,
            // Beside the others, by XEP-0388 only.
            MechanismName::Token(_) => false,
        };
        let anonymous = self.anonymous.then_some(MechanismName::Anonymous);
        let listed = settings.mechanisms.iter().copied().filter(|name| *name != MechanismName::Anonymous);
        listed.chain(anonymous).filter(possible).collect()
    }
}

/// What one kind of stream is offered.
pub(super) struct Offer {
    pub mechanisms: Vec<MechanismName>,
    /// The children of `<stream:features/>`, as they are written.
    pub features: Bytes,
    /// What a login by XEP-0388 can do beside; `None`: there is none.
    pub inline: Option<Inline>,
    /// What tokens of clients can be bound to, strongest first; empty where there are none.
    pub tokens: Vec<TokenBinding>,
    /// The hashes that a client may give what their keys are made of, strongest first; empty where there are none.
    pub upgrades: Vec<ScramHash>,
    /// XEP-0474, by hash.
    downgrade: [Arc<str>; 3],
}

impl Offer {
    fn new(kind: Kind, host: Option<&DomainPart>, settings: &Settings) -> Offer {
        let mechanisms = kind.mechanisms(settings);
        let binds = mechanisms.iter().any(|name| name.binds());
        let bindings = if binds { kind.bindings() } else { Vec::new() };
        let mut features: Vec<Element> = Vec::new();
        if !kind.tls && settings.tls_available {
            features.push(features::starttls(settings.tls_required));
        }
        features.extend(features::channel_bindings(&bindings));
        // XEP-0388, 5: inside TLS only; and 2.1: not without a mechanism.
        let inline =
            host.filter(|_| kind.tls && !mechanisms.is_empty()).and_then(|host| (settings.inlines)(host));
        let has = inline.as_ref().is_some_and(|inline| inline.tokens);
        let possible = |binding: &TokenBinding| match binding {
            TokenBinding::Exporter => kind.exporter,
            TokenBinding::EndPoint => kind.endpoint,
            TokenBinding::None => true,
        };
        let tokens: Vec<_> =
            TokenBinding::ALL.into_iter().filter(|binding| has && possible(binding)).collect();
        let may_upgrade = inline.as_ref().is_some_and(|inline| inline.upgrades);
        let upgrades = upgrades(&mechanisms).filter(|_| may_upgrade).unwrap_or_default();
        if let Some(inline) = &inline {
            features.push(features::authentication(&mechanisms, inline, &tokens, &upgrades));
        }
        if !mechanisms.is_empty() {
            features.push(features::mechanisms(&mechanisms));
        }
        let names: Vec<&str> = mechanisms.iter().map(|name| name.as_str()).collect();
        let downgrade = ScramHash::ALL.map(|hash| downgrade::hash(hash, &names, &bindings).into());
        let mut written = BytesMut::new();
        features.iter().for_each(|feature| dom::write(feature, ns::CLIENT, &mut written));
        let features = written.freeze();
        Offer { mechanisms, features, inline, tokens, upgrades, downgrade }
    }

    /// Whether the mechanism is offered.
    pub fn has(&self, name: MechanismName) -> bool {
        self.mechanisms.contains(&name)
    }

    /// Whether any mechanism that binds to the channel is.
    pub fn binds(&self) -> bool {
        self.mechanisms.iter().any(|name| name.binds())
    }

    /// What an exchange with this hash says of all that was offered (XEP-0474).
    pub fn downgrade(&self, hash: ScramHash) -> Arc<str> {
        self.downgrade[hash as usize].clone()
    }
}

/// What can be upgraded to: whoever has keys of one hash that is offered may get those of another.
fn upgrades(mechanisms: &[MechanismName]) -> Option<Vec<ScramHash>> {
    let is_offered = |hash: &ScramHash| {
        let names = [MechanismName::Scram(*hash), MechanismName::ScramPlus(*hash)];
        names.iter().any(|name| mechanisms.contains(name))
    };
    let hashes: Vec<_> = ScramHash::ALL.into_iter().rev().filter(is_offered).collect();
    (hashes.len() > 1).then_some(hashes)
}

/// The offers made so far, one for each host and kind.
#[derive(Default)]
pub(super) struct Offers(OnceLock<Box<[OnceLock<Arc<Offer>>]>>);

impl Offers {
    pub fn of(&self, kind: Kind, host: Option<&DomainPart>, settings: &Settings) -> Arc<Offer> {
        let made = self.0.get_or_init(|| {
            let count = Kind::COUNT * settings.hosts.len().max(1);
            std::iter::repeat_with(OnceLock::new).take(count).collect()
        });
        let number = host.and_then(|host| settings.hosts.iter().position(|other| other == host));
        let offer = || Arc::new(Offer::new(kind, host, settings));
        match made.get(number.unwrap_or(0) * Kind::COUNT + kind.index()) {
            Some(made) => made.get_or_init(offer).clone(),
            // Hosts were added behind the first stream.
            None => offer(),
        }
    }
}

impl Clone for Offers {
    /// Empty: a copy of the settings is made to be changed.
    fn clone(&self) -> Offers {
        Offers::default()
    }
}

//! The SASL exchange of a stream under negotiation (RFC 6120, 6): what is offered, what runs, how it ends.

use std::sync::Arc;

use minidom::Element;
use stanza::{BareJid, StreamCondition, StreamError};

use super::offer::{Kind, Offer};
use super::{Act, Acts, ClientCertificate, Negotiation, State, TlsFacts, Wants};
use crate::features;
use crate::sasl::anonymous::Anonymous;
use crate::sasl::external::{External, of_host};
use crate::sasl::plain::Plain;
use crate::sasl::scram::{Scram, Surroundings};
use crate::sasl::token::TokenKey;
use crate::sasl::{Mechanism, MechanismName, SaslCondition, Step};

impl Negotiation {
    /// What is offered on this stream as it is now, before authentication.
    pub(super) fn offer_now(&self) -> Arc<Offer> {
        let tls = self.tls.as_ref();
        let certified = match (tls.map(|tls| &tls.client), &self.host) {
            (Some(ClientCertificate::Of(jids)), Some(host)) => of_host(host, jids).next().is_some(),
            _ => false,
        };
        let kind = Kind {
            tls: tls.is_some(),
            exporter: tls.is_some_and(|tls| tls.exporter.is_some()),
            endpoint: tls.is_some_and(|tls| tls.endpoint_hash.is_some()),
            certified,
            anonymous: self.host.as_ref().is_some_and(|host| self.settings.is_anonymous(host.as_str())),
        };
        self.settings.offers.of(kind, self.host.as_ref(), &self.settings)
    }

    pub(super) fn on_sasl(&mut self, element: &Element, acts: &mut Acts) {
        if self.account.is_some() {
            // RFC 6120, 6.4.6: who is authenticated does not authenticate again.
            return self.fail(acts, StreamCondition::PolicyViolation.into());
        }
        if element.name() == "auth" && matches!(self.state, State::Exchange { .. }) {
            // RFC 6120, 6.4.2: the client gives up what it began for what it begins now. Counted, as every exchange
            // without a success: or there would be no end of them.
            let account = self.leave_exchange();
            self.count_failure(account, SaslCondition::Aborted, acts);
            if matches!(self.state, State::Done) {
                return;
            }
        }
        let step = match (element.name(), &mut self.state) {
            ("auth", State::Open) => match self.begin(element) {
                Ok(step) => step,
                Err(condition) => Step::Fail(condition),
            },
            ("response", State::Exchange { mechanism, .. }) => match features::sasl_payload(element) {
                Ok(payload) => mechanism.message(&payload.unwrap_or_default()),
                Err(condition) => Step::Fail(condition),
            },
            ("abort", _) => Step::Fail(SaslCondition::Aborted),
            _ => Step::Fail(SaslCondition::MalformedRequest),
        };
        self.apply(step, acts);
    }

    /// `<auth/>`: picks the mechanism and gives it the initial response, if there is one.
    fn begin(&mut self, element: &Element) -> Result<Step, SaslCondition> {
        self.begin_with(element, || features::sasl_payload(element))
    }

    /// The same for any profile; `payload` reads the initial response.
    pub(super) fn begin_with(
        &mut self,
        element: &Element,
        payload: impl FnOnce() -> Result<Option<Vec<u8>>, SaslCondition>,
    ) -> Result<Step, SaslCondition> {
        let asked = element.attr("mechanism").and_then(MechanismName::known);
        let offer = self.offer_now();
        let is_offered = |name: &MechanismName| match name {
            MechanismName::Token(binding) => self.wish.is_some() && offer.tokens.contains(binding),
            name => offer.has(*name),
        };
        let Some(name) = asked.filter(is_offered) else {
            return Err(self.not_offered(asked));
        };
        let payload = payload()?;
        let mut mechanism = self.mechanism(name, &offer)?;
        let step = match payload {
            Some(message) => mechanism.message(&message),
            // XEP-0175, 3: the one client that has nothing to say.
            None if name == MechanismName::Anonymous => mechanism.message(b""),
            // RFC 6120, 6.4.2: a client that sends no initial response is asked for it by an empty challenge.
            None => Step::Challenge(Vec::new()),
        };
        self.state = State::Exchange { mechanism, name, trying: None, wants: Wants::Message };
        Ok(step)
    }

    fn mechanism(&self, name: MechanismName, offer: &Offer) -> Result<Box<dyn Mechanism>, SaslCondition> {
        let host = self.host.clone().ok_or(SaslCondition::TemporaryAuthFailure)?;
        Ok(match name {
            MechanismName::Plain => Box::new(Plain::new(host)),
            MechanismName::External => {
                let client = self.tls.as_ref().map(|tls| &tls.client);
                let Some(ClientCertificate::Of(jids)) = client else {
                    return Err(SaslCondition::NotAuthorized);
                };
                Box::new(External::new(&host, jids))
            }
            MechanismName::Anonymous => {
                let account = self.settings.anonymous_account(&host);
                Box::new(Anonymous::new(account.ok_or(SaslCondition::TemporaryAuthFailure)?))
            }
            MechanismName::Token(binding) => return self.token_mechanism(binding),
            MechanismName::Scram(hash) | MechanismName::ScramPlus(hash) => {
                let bindings = self.tls.as_ref().filter(|_| name.binds()).map(TlsFacts::bindings);
                let around = Surroundings {
                    host,
                    secret: self.settings.fake_salt_secret.clone(),
                    iterations: self.settings.iterations,
                    nonce: self.settings.nonce(),
                    plus: name.binds(),
                    plus_offered: offer.binds(),
                    bindings: bindings.unwrap_or_default(),
                    offered: Some(offer.downgrade(hash)),
                };
                Box::new(Scram::new(hash, around))
            }
        })
    }

    /// Why a mechanism that is not offered cannot be used.
    fn not_offered(&self, asked: Option<MechanismName>) -> SaslCondition {
        let known = asked.filter(|name| match name {
            MechanismName::Anonymous => !self.settings.anonymous_hosts.is_empty(),
            name => self.settings.mechanisms.contains(name),
        });
        let Some(tls) = &self.tls else {
            let needs_tls = self.settings.tls_required || known.is_some();
            return if needs_tls {
                SaslCondition::EncryptionRequired
            } else {
                SaslCondition::InvalidMechanism
            };
        };
        // A certificate was shown, and nobody is by it who the client says.
        if known == Some(MechanismName::External) && tls.client != ClientCertificate::Absent {
            return SaslCondition::NotAuthorized;
        }
        SaslCondition::InvalidMechanism
    }

    pub(super) fn on_answer(&mut self, answered: Wants, f: impl FnOnce(&mut dyn Mechanism) -> Step) -> Acts {
        let mut acts = Acts::new();
        if let State::Exchange { mechanism, wants, .. } = &mut self.state
            && *wants == answered
        {
            *wants = Wants::Message;
            let step = f(&mut **mechanism);
            self.apply(step, &mut acts);
        }
        acts
    }

    pub(super) fn apply(&mut self, step: Step, acts: &mut Acts) {
        match step {
            Step::Challenge(data) => {
                let challenge = match &self.wish {
                    Some(_) => features::sasl2("challenge", Some(&data)),
                    None => features::sasl("challenge", Some(&data)),
                };
                self.send(acts, |writer, out| writer.element(&challenge, out));
            }
            Step::LookUp { account, hash } => {
                self.wait_for(Wants::Credentials, &account);
                acts.push(Act::LookUp { account, hash });
            }
            Step::CheckPassword { account, password } => {
                self.wait_for(Wants::Check, &account);
                acts.push(Act::CheckPassword { account, password });
            }
            Step::FindTokens { account, client } => {
                self.wait_for(Wants::Tokens, &account);
                acts.push(Act::FindTokens { account, client });
            }
            Step::Success { account, data } => self.on_success(account, data, None, acts),
            Step::Vouched { account, data, key } => self.on_success(account, Some(data), Some(key), acts),
            Step::Fail(condition) => self.on_failure(condition, acts),
        }
    }

    fn wait_for(&mut self, what: Wants, account: &BareJid) {
        if let State::Exchange { wants, trying, .. } = &mut self.state {
            *wants = what;
            *trying = Some(account.clone());
        }
    }

    /// `key`: that of the token that it is by.
    fn on_success(
        &mut self,
        account: BareJid,
        data: Option<Vec<u8>>,
        key: Option<TokenKey>,
        acts: &mut Acts,
    ) {
        let State::Exchange { name, .. } = self.state else { return };
        let is_another = self.named.as_ref().is_some_and(|named| *named != account);
        let is_another = is_another && name != MechanismName::Anonymous;
        if let Some(wish) = self.wish.take() {
            return match is_another {
                // XEP-0388, 2.3: a failure like any other.
                true => {
                    self.wish = Some(wish);
                    self.on_failure(SaslCondition::InvalidAuthzid, acts);
                }
                false => self.enter(account, name, (data, key), wish, acts),
            };
        }
        if is_another {
            // RFC 6120, 6.4.6: who named itself inside TLS is not somebody else. A guest's name is ours to give.
            return self.fail(acts, StreamCondition::InvalidFrom.into());
        }
        let success = features::sasl("success", data.as_deref());
        self.send(acts, |writer, out| writer.element(&success, out));
        self.account = Some(account.clone());
        self.expect_header();
        acts.push(Act::Authenticated { account, mechanism: name });
        acts.push(Act::RestartStream);
    }

    fn on_failure(&mut self, condition: SaslCondition, acts: &mut Acts) {
        let account = self.leave_exchange();
        self.send_failure(account, condition, acts);
    }

    /// Tells the client that it is not who it says, in the profile that it speaks.
    pub(super) fn send_failure(
        &mut self,
        account: Option<BareJid>,
        condition: SaslCondition,
        acts: &mut Acts,
    ) {
        let failure = match self.wish.take() {
            Some(_) => features::sasl2_failure(condition),
            None => features::sasl_failure(condition),
        };
        self.send(acts, |writer, out| writer.element(&failure, out));
        self.count_failure(account, condition, acts);
    }

    /// The account that the exchange was about, as far as it was named.
    fn leave_exchange(&mut self) -> Option<BareJid> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Exchange { trying, .. } => trying,
            State::Upgrading(upgrading) => Some(upgrading.account),
            _ => None,
        }
    }

    fn count_failure(&mut self, account: Option<BareJid>, condition: SaslCondition, acts: &mut Acts) {
        acts.push(Act::AuthFailed { account, condition });
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.settings.auth_failures_max {
            let error = StreamError::new(StreamCondition::PolicyViolation);
            self.fail(acts, error.with_text("too many failed logins"));
        }
    }
}

//! Errors of stanzas (RFC 6120, 8.3) and of streams (RFC 6120, 4.9).

use minidom::Element;

use crate::dom;
use crate::ns;

macro_rules! conditions {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// Every condition, in the order of the RFC.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The element's name.
            pub fn tag(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }

            /// The condition of that element name.
            pub fn from_tag(tag: &str) -> Option<$name> {
                match tag { $($text => Some($name::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.tag())
            }
        }
    };
}

conditions! {
    /// What went wrong with a stanza (RFC 6120, 8.3.3).
    Condition {
        /// XML that the receiver cannot process.
        BadRequest = "bad-request",
        /// Something of the same name is there already.
        Conflict = "conflict",
        /// Known, but not done here.
        FeatureNotImplemented = "feature-not-implemented",
        /// The sender lacks the permission.
        Forbidden = "forbidden",
        /// The receiver has moved; `uri` may say where to.
        Gone = "gone",
        /// The server failed.
        InternalServerError = "internal-server-error",
        /// No such address or item.
        ItemNotFound = "item-not-found",
        /// No XMPP address.
        JidMalformed = "jid-malformed",
        /// Not acceptable by the receiver's criteria.
        NotAcceptable = "not-acceptable",
        /// Nobody may do this.
        NotAllowed = "not-allowed",
        /// Credentials are needed first.
        NotAuthorized = "not-authorized",
        /// Against local policy.
        PolicyViolation = "policy-violation",
        /// The receiver is not there at the moment.
        RecipientUnavailable = "recipient-unavailable",
        /// The receiver is elsewhere for now; `uri` may say where.
        Redirect = "redirect",
        /// Register first.
        RegistrationRequired = "registration-required",
        /// The other domain does not resolve.
        RemoteServerNotFound = "remote-server-not-found",
        /// The other domain did not answer in time.
        RemoteServerTimeout = "remote-server-timeout",
        /// A bound is reached.
        ResourceConstraint = "resource-constraint",
        /// This service is not provided.
        ServiceUnavailable = "service-unavailable",
        /// Subscribe first.
        SubscriptionRequired = "subscription-required",
        /// None of the others; `extra` says more.
        UndefinedCondition = "undefined-condition",
        /// Understood, but not at this moment.
        UnexpectedRequest = "unexpected-request",
    }
}

conditions! {
    /// What went wrong with a stream (RFC 6120, 4.9.3); the stream ends with it.
    StreamCondition {
        /// XML that cannot be processed.
        BadFormat = "bad-format",
        /// A prefix that is not supported, or none where one is needed.
        BadNamespacePrefix = "bad-namespace-prefix",
        /// Another stream has taken this one's place.
        Conflict = "conflict",
        /// The peer has been silent for too long.
        ConnectionTimeout = "connection-timeout",
        /// The host is no longer served here.
        HostGone = "host-gone",
        /// The host is not served here.
        HostUnknown = "host-unknown",
        /// An address is missing or no address.
        ImproperAddressing = "improper-addressing",
        /// The server failed.
        InternalServerError = "internal-server-error",
        /// A `from` that is not the peer's.
        InvalidFrom = "invalid-from",
        /// A wrong namespace of the stream or its content.
        InvalidNamespace = "invalid-namespace",
        /// XML that is not valid where validity is checked.
        InvalidXml = "invalid-xml",
        /// Data before authentication.
        NotAuthorized = "not-authorized",
        /// XML that is not well-formed.
        NotWellFormed = "not-well-formed",
        /// Against local policy, a bound for instance.
        PolicyViolation = "policy-violation",
        /// Another server that is needed cannot be reached.
        RemoteConnectionFailed = "remote-connection-failed",
        /// A new stream is needed, for security for instance.
        Reset = "reset",
        /// The server lacks the resources.
        ResourceConstraint = "resource-constraint",
        /// A construct that XMPP forbids: comment, processing instruction, DTD, entity.
        RestrictedXml = "restricted-xml",
        /// The peer shall connect elsewhere.
        SeeOtherHost = "see-other-host",
        /// The server is being shut down.
        SystemShutdown = "system-shutdown",
        /// None of the others.
        UndefinedCondition = "undefined-condition",
        /// An encoding other than UTF-8.
        UnsupportedEncoding = "unsupported-encoding",
        /// A mandatory feature that the peer does not do.
        UnsupportedFeature = "unsupported-feature",
        /// A child of the stream that is not understood.
        UnsupportedStanzaType = "unsupported-stanza-type",
        /// A version of XMPP that is not spoken here.
        UnsupportedVersion = "unsupported-version",
    }
}

/// What the sender of a refused stanza may do about it (RFC 6120, 8.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Retry with credentials.
    Auth,
    /// Do not retry.
    Cancel,
    /// A warning only.
    Continue,
    /// Change the stanza and retry.
    Modify,
    /// Retry later.
    Wait,
}

impl ErrorKind {
    /// The value of the `type` attribute.
    pub fn tag(self) -> &'static str {
        match self {
            ErrorKind::Auth => "auth",
            ErrorKind::Cancel => "cancel",
            ErrorKind::Continue => "continue",
            ErrorKind::Modify => "modify",
            ErrorKind::Wait => "wait",
        }
    }

    /// The kind of that `type`.
    pub fn from_tag(tag: &str) -> Option<ErrorKind> {
        use ErrorKind::*;
        [Auth, Cancel, Continue, Modify, Wait].into_iter().find(|kind| kind.tag() == tag)
    }
}

impl Condition {
    /// The kind that the RFC gives this condition, or its first choice of several.
    pub fn usual_kind(self) -> ErrorKind {
        use Condition::*;
        match self {
            BadRequest | JidMalformed | NotAcceptable | PolicyViolation | Redirect => ErrorKind::Modify,
            Forbidden | NotAuthorized | RegistrationRequired | SubscriptionRequired => ErrorKind::Auth,
            RecipientUnavailable | RemoteServerTimeout | ResourceConstraint | UnexpectedRequest => {
                ErrorKind::Wait
            }
            Conflict
            | FeatureNotImplemented
            | Gone
            | InternalServerError
            | ItemNotFound
            | NotAllowed
            | RemoteServerNotFound
            | ServiceUnavailable
            | UndefinedCondition => ErrorKind::Cancel,
        }
    }
}

/// The `<error/>` of a stanza.
#[derive(Debug, Clone, PartialEq)]
pub struct StanzaError {
    /// What the sender may do about it.
    pub kind: ErrorKind,
    /// What went wrong.
    pub condition: Condition,
    /// For people, in English.
    pub text: Option<String>,
    /// The new address of `gone` and `redirect`.
    pub uri: Option<String>,
    /// Conditions of an application.
    pub extra: Vec<Element>,
}

impl StanzaError {
    /// The condition with the RFC's usual kind.
    pub fn new(condition: Condition) -> StanzaError {
        let kind = condition.usual_kind();
        StanzaError { kind, condition, text: None, uri: None, extra: Vec::new() }
    }

    /// With a sentence for people.
    pub fn with_text(mut self, text: impl Into<String>) -> StanzaError {
        self.text = Some(text.into());
        self
    }

    /// With another kind than the usual one.
    pub fn with_kind(mut self, kind: ErrorKind) -> StanzaError {
        self.kind = kind;
        self
    }

    /// With a condition of an application.
    pub fn with_extra(mut self, extra: Element) -> StanzaError {
        self.extra.push(extra);
        self
    }

    /// The element that goes into the stanza.
    pub fn element(&self) -> Element {
        let mut error = Element::bare("error", ns::CLIENT);
        if let Some(name) = dom::attribute_name("type") {
            error.set_attr(rxml::Namespace::NONE, name, self.kind.tag());
        }
        let mut condition = Element::bare(self.condition.tag(), ns::STANZA_ERRORS);
        if let Some(uri) = &self.uri {
            condition.append_text_node(uri);
        }
        error.append_child(condition);
        if let Some(text) = &self.text {
            error.append_child(english_text(text, ns::STANZA_ERRORS));
        }
        for extra in &self.extra {
            error.append_child(extra.clone());
        }
        error
    }

    /// Reads an `<error/>`; unknown or missing conditions are `undefined-condition` (RFC 6120, 8.3.3.21).
    pub fn from_element(error: &Element) -> StanzaError {
        let mut read = StanzaError::new(Condition::UndefinedCondition);
        let mut found = false;
        for child in error.children() {
            if !child.has_ns(ns::STANZA_ERRORS) {
                read.extra.push(child.clone());
            } else if child.name() == "text" {
                read.text = Some(child.text());
            } else if let Some(condition) = Condition::from_tag(child.name())
                && !found
            {
                found = true;
                read.condition = condition;
                read.kind = condition.usual_kind();
                read.uri = Some(child.text()).filter(|uri| !uri.is_empty());
            }
        }
        if let Some(kind) = error.attr("type").and_then(ErrorKind::from_tag) {
            read.kind = kind;
        }
        read
    }
}

impl From<Condition> for StanzaError {
    fn from(condition: Condition) -> StanzaError {
        StanzaError::new(condition)
    }
}

impl std::fmt::Display for StanzaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.condition.tag())?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

impl std::error::Error for StanzaError {}

/// The `<stream:error/>` that ends a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamError {
    /// What went wrong.
    pub condition: StreamCondition,
    /// For people, in English; of `see-other-host` see [`StreamError::see_other_host`].
    pub text: Option<String>,
    /// The other host of `see-other-host`.
    pub host: Option<String>,
    /// Conditions of an application.
    pub extra: Vec<Element>,
}

impl StreamError {
    /// The condition alone.
    pub fn new(condition: StreamCondition) -> StreamError {
        StreamError { condition, text: None, host: None, extra: Vec::new() }
    }

    /// Tells the peer to connect to `host` (`name`, `name:port` or `[address]:port`).
    pub fn see_other_host(host: impl Into<String>) -> StreamError {
        StreamError { host: Some(host.into()), ..StreamError::new(StreamCondition::SeeOtherHost) }
    }

    /// With a sentence for people.
    pub fn with_text(mut self, text: impl Into<String>) -> StreamError {
        self.text = Some(text.into());
        self
    }

    /// The children of `<stream:error/>`.
    pub fn children(&self) -> Vec<Element> {
        let mut condition = Element::bare(self.condition.tag(), ns::STREAM_ERRORS);
        if let Some(host) = &self.host {
            condition.append_text_node(host);
        }
        let text = self.text.as_deref().map(|text| english_text(text, ns::STREAM_ERRORS));
        std::iter::once(condition).chain(text).chain(self.extra.iter().cloned()).collect()
    }
}

impl From<StreamCondition> for StreamError {
    fn from(condition: StreamCondition) -> StreamError {
        StreamError::new(condition)
    }
}

impl std::fmt::Display for StreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.condition.tag())?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

impl std::error::Error for StreamError {}

fn english_text(text: &str, uri: &str) -> Element {
    let mut element = Element::bare("text", uri);
    if let Some(name) = dom::attribute_name("lang") {
        element.set_attr(rxml::Namespace::xml().clone(), name, "en");
    }
    element.append_text_node(text);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_survives_its_name() {
        assert_eq!(Condition::ALL.len(), 22);
        assert_eq!(StreamCondition::ALL.len(), 25);
        for c in Condition::ALL {
            assert_eq!(Condition::from_tag(c.tag()), Some(*c));
        }
        for c in StreamCondition::ALL {
            assert_eq!(StreamCondition::from_tag(c.tag()), Some(*c));
        }
    }

    #[test]
    fn an_error_is_read_as_it_was_written() {
        for c in Condition::ALL {
            let error = StanzaError::new(*c)
                .with_kind(ErrorKind::Wait)
                .with_text("why <&> so")
                .with_extra(Element::bare("too-many", "urn:x"));
            let xml = dom::to_bytes(&error.element());
            assert_eq!(StanzaError::from_element(&dom::parse(&xml).unwrap()), error);
        }
    }

    #[test]
    fn an_error_without_a_known_condition_is_undefined() {
        let error =
            dom::parse(b"<error xmlns='jabber:client' type='nonsense'><x xmlns='u'/></error>").unwrap();
        let read = StanzaError::from_element(&error);
        assert_eq!(read.condition, Condition::UndefinedCondition);
        assert_eq!(read.kind, ErrorKind::Cancel);
        assert_eq!(read.extra.len(), 1);
    }
}

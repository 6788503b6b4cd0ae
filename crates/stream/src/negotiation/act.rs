//! What a negotiation asks of its caller.

use bytes::Bytes;
use minidom::Element;
use stanza::{BareJid, DomainPart, FullJid, ResourcePart, StreamError};

use super::fast::Settling;
use super::greeting::Request;
use crate::management::Resume;
use crate::sasl::mechanism::Password;
use crate::sasl::{MechanismName, SaslCondition, ScramHash, ScramKeys};

/// What the caller has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Write these bytes.
    Send(Bytes),
    /// Flush, **throw away everything already read** from the client (bytes held back for the reader
    /// included: RFC 6120, 5.4.3.3, they came in the clear), restart the reader, do the handshake, then
    /// [`on_tls`](super::Negotiation::on_tls). Where the handshake fails the connection is dropped without a word.
    StartTls,
    /// Answer with [`on_credentials`](super::Negotiation::on_credentials) or [`on_unavailable`](super::Negotiation::on_unavailable); feed no event before.
    LookUp {
        /// Whose keys.
        account: BareJid,
        /// For which hash.
        hash: ScramHash,
    },
    /// Answer with [`on_tokens`](super::Negotiation::on_tokens) or
    /// [`on_unavailable`](super::Negotiation::on_unavailable); feed no event before.
    FindTokens {
        /// Whose.
        account: BareJid,
        /// Of which client.
        client: String,
    },
    /// Note what becomes of the tokens of a client that has proved who it is, and answer with
    /// [`on_settled`](super::Negotiation::on_settled); feed no event before.
    SettleTokens(Box<Settling>),
    /// Check the password off this thread ([`verify`](crate::sasl::keys::verify)), also for an account that is not there
    /// ([`fake_keys`](super::Negotiation::fake_keys)), so that both take as long. Answer with
    /// [`on_password_checked`](super::Negotiation::on_password_checked) or [`on_unavailable`](super::Negotiation::on_unavailable); feed no event before.
    CheckPassword {
        /// Whose.
        account: BareJid,
        /// What the client sent.
        password: Password,
    },
    /// Answer an iq of type get or set of a client that has not logged in (in-band registration, XEP-0077), with
    /// [`on_greeted`](super::Negotiation::on_greeted); feed no event before.
    Greet {
        /// The host that the stream is to.
        host: DomainPart,
        /// The request, without `from`; to the host or to nobody.
        request: Request,
    },
    /// Keep keys that an account did not have, and answer with
    /// [`on_keys_stored`](super::Negotiation::on_keys_stored), whether they were kept or not; feed no event before.
    StoreKeys {
        /// Whose.
        account: BareJid,
        /// Of which hash.
        hash: ScramHash,
        /// Made of the password that the client has just proved to know.
        keys: ScramKeys,
    },
    /// An exchange failed: for logs, counters and the back-off of an address.
    AuthFailed {
        /// The account that was tried, as far as it was named.
        account: Option<BareJid>,
        /// What the client was told.
        condition: SaslCondition,
    },
    /// The client is who it says. The time to hand over module features with [`offer`](super::Negotiation::offer).
    Authenticated {
        /// Who.
        account: BareJid,
        /// How.
        mechanism: MechanismName,
    },
    /// Restart the reader (with the limits after authentication). Bytes held back belong to the new stream.
    RestartStream,
    /// The client has logged in by XEP-0388, and its stream goes on as it is: give the reader the limits after
    /// authentication, and answer with [`on_admitted`](super::Negotiation::on_admitted); feed no event before.
    Admitted,
    /// Bind and answer with [`on_bound`](super::Negotiation::on_bound); feed no event before. Where the
    /// stream ends meanwhile (a timeout), `on_bound` gives no acts: what was bound is to be given back.
    Bind {
        /// Whose.
        account: BareJid,
        /// The resource asked for; `None`: [`make_resource`](super::Settings::make_resource).
        requested: Option<ResourcePart>,
    },
    /// Bind as a part of the login (XEP-0386) and answer with
    /// [`on_bound_inline`](super::Negotiation::on_bound_inline); feed no event before. As of [`Act::Bind`] where the stream
    /// ends meanwhile.
    BindInline {
        /// Whose.
        account: BareJid,
        /// The resource; a session that has it gives it up.
        resource: ResourcePart,
        /// What ends the resources of this client, so that earlier sessions of it can be told and ended.
        client: Option<Box<str>>,
        /// What is to be enabled, as the client said it.
        asked: Vec<Element>,
    },
    /// Find the session that the client wants to go on with (XEP-0198, 5) and answer with
    /// [`on_resumed`](super::Negotiation::on_resumed); feed no event before. As of [`Act::Bind`] where the stream ends
    /// meanwhile.
    Resume {
        /// Whose it must be.
        account: BareJid,
        /// Which, and what the client has of it.
        resume: Resume,
    },
    /// Negotiation is over; the next event is the session's.
    Bound {
        /// The session's address.
        jid: FullJid,
    },
    /// Flush and close the connection. The bytes that tell the peer are sent already.
    Close {
        /// Why, where it was no goodbye.
        error: Option<StreamError>,
    },
}

/// Acts in the order in which they are to be done.
pub type Acts = Vec<Act>;

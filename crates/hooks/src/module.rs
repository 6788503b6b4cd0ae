//! The hooks: a trait for each, named by what the module does with what passes.

use std::net::IpAddr;
use std::sync::Arc;

use jid::{BareJid, FullJid};
use minidom::Element;
use stanza::Stanza;
use store::StoreError;

use crate::card::Card;
use crate::passage::Passage;
use crate::registry::Hooks;
use crate::services::Services;
use crate::session::SessionView;
use crate::verdict::{Answer, Reply, Verdict};

/// A protocol extension.
pub trait Module: Send + Sync + 'static {
    fn card(&self) -> Card;

    /// Says which hooks it wants: `hooks.arriving(Step::Guard, self.clone())`.
    fn plug(self: Arc<Self>, hooks: &mut Hooks);
}

/// Sees what a local session sends, on the sender's side, before it is routed.
pub trait Leaving: Send + Sync + 'static {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a>;
}

/// Sees what comes for an account, on the receiver's side, before RFC 6121, section 8 decides.
pub trait Arriving: Send + Sync + 'static {
    fn arriving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a>;
}

/// Sees each stanza that is about to be written to one session. Must not wait for anything.
pub trait Delivering: Send + Sync + 'static {
    fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict;
}

/// Says what can wait while nobody looks at a client (XEP-0352). Must not wait for anything.
pub trait Holding: Send + Sync + 'static {
    /// `None`: it cannot wait, and all that waits goes before it. Otherwise what it is about: it takes the place of what
    /// waits about the same.
    fn holding(&self, session: &SessionView, stanza: &Stanza) -> Option<String>;
}

/// Sees what comes for a session whose connection is lost, and what its client has not acknowledged of what came before
/// (XEP-0198). Must not wait for anything.
pub trait Awaiting: Send + Sync + 'static {
    fn awaiting(&self, session: &SessionView, stanza: &Stanza);
}

/// To whom an iq is addressed that the server answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addressee {
    /// The bare domain of a host that we serve.
    Host,
    /// A bare JID, or no `to`, which means the sender's own (RFC 6120, 10.3.3).
    Account,
}

/// Answers an iq of type get or set whose payload is in a namespace that the module claimed.
pub trait Answering: Send + Sync + 'static {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply>;
}

/// The stream to which features are about to be offered.
#[derive(Debug, Clone)]
pub struct Offer {
    pub host: String,
    /// `None`: before authentication.
    pub account: Option<BareJid>,
    pub secure: bool,
    /// The most bytes that a stanza or another element of the client may have on it.
    pub stanza_bytes: usize,
    /// For how many seconds the client may say nothing before it is looked whether it is there; `None`: for ever, or for
    /// as long as it may take to log in.
    pub idle_s: Option<u64>,
}

/// Who speaks on a stream before anybody has logged in on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The host that the stream is to.
    pub host: String,
    /// Where the client is connected from.
    pub address: IpAddr,
    /// Whether the stream is under TLS.
    pub secure: bool,
}

/// Answers an iq of type get or set in a namespace that it claimed, on a stream that nobody has logged in on.
/// The request has no `from`, and is to the host of the stream or to nobody.
pub trait Greeting: Send + Sync + 'static {
    fn greeting<'a>(
        &'a self,
        stranger: &'a Stranger,
        request: &'a Stanza,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Reply>;
}

/// Adds to the stream features. Must not wait for anything.
pub trait Offering: Send + Sync + 'static {
    fn offering(&self, offer: &Offer, services: &dyn Services) -> Vec<Element>;
}

/// Takes elements on the stream that are no stanzas, in a namespace that it claimed.
pub trait Speaking: Send + Sync + 'static {
    /// Returns what is to be written back, in order.
    fn speaking<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        element: &'a Element,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>>;
}

/// Has a part in the binding of a session as a part of the login (XEP-0386).
pub trait Binding: Send + Sync + 'static {
    /// The features that a client may ask to be enabled with it, by the names that service discovery has for them.
    fn enables(&self) -> &'static [&'static str] {
        &[]
    }

    /// A session is bound in this way, and its client does not know it yet; `asked` is all that it asked for, to be passed
    /// over where it is another module's. Returns what the client is told of it.
    fn binding<'a>(
        &'a self,
        session: &'a Arc<SessionView>,
        asked: &'a [Element],
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Vec<Element>>;
}

/// A token by which a client may log in (XEP-0484), as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the client's proof is made with.
    pub key: Vec<u8>,
    /// The one mechanism that it may be used with.
    pub mechanism: String,
    /// The last count that a client has used it with.
    pub count: Option<u64>,
    /// Its time is over, or the account has other keys since, or was disabled meanwhile.
    pub expired: bool,
}

impl std::fmt::Debug for Token {
    /// Without the key: it belongs in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// Whose tokens, and since when: a token holds as long as the mark is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub account: BareJid,
    /// The client of the account, by the id that it gives itself.
    pub client: String,
    /// Made of the keys and the state of the account.
    pub mark: Vec<u8>,
}

/// What a login does to the tokens of its client.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Use {
    /// It was by the token with this key, and with this count.
    pub key: Option<Vec<u8>>,
    pub count: Option<u64>,
    /// That token is to end with it.
    pub invalidate: bool,
    /// A new one for this mechanism is asked for.
    pub request: Option<String>,
}

/// A token that was made just now: what the client is told, and until when it holds (XEP-0082).
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    pub expiry: String,
}

impl std::fmt::Debug for Issued {
    /// Without the token: it belongs in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("expiry", &self.expiry).finish_non_exhaustive()
    }
}

/// Why a login by a token came to nothing in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotUsed {
    /// Another login has ended it meanwhile, or used it with that count.
    Gone,
    Store(StoreError),
}

impl From<StoreError> for NotUsed {
    fn from(error: StoreError) -> NotUsed {
        NotUsed::Store(error)
    }
}

/// Keeps tokens by which clients log in anew (XEP-0484).
pub trait Vouching: Send + Sync + 'static {
    /// The tokens of a client, those that have expired as well; a few.
    fn tokens<'a>(
        &'a self,
        bearer: &'a Bearer,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Result<Vec<Token>, StoreError>>;

    /// A client has proved who it is, by a token or otherwise. What it is told of a new one.
    fn settle<'a>(
        &'a self,
        bearer: &'a Bearer,
        used: &'a Use,
        services: &'a Arc<dyn Services>,
    ) -> Answer<'a, Result<Option<Issued>, NotUsed>>;
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The stream was closed, by either side.
    Closed,
    /// The connection was lost, or the session broke.
    Lost,
    /// The client went on with it at another node: nobody is to notice.
    Moved,
}

/// What happens to sessions.
#[derive(Debug, Clone)]
pub enum SessionEvent {
    /// A resource was bound; the session sent nothing yet.
    Bound(Arc<SessionView>),
    /// An available presence was broadcast; `before` is the priority until now, `None` at the
    /// session's initial presence.
    Available { session: Arc<SessionView>, before: Option<i8>, priority: i8 },
    /// An unavailable presence was broadcast, and the session lives on.
    Unavailable(Arc<SessionView>),
    /// The same, and the session goes on to take what comes: it has become invisible (XEP-0186). Of one that is so,
    /// `Available` and `Unavailable` say what it has said, which was told to nobody.
    Hidden(Arc<SessionView>),
    /// A session of this node ended.
    Closed { session: Arc<SessionView>, why: Why },
    /// The node of a session lost its lease: from here on the session hears nothing, and its contacts may be
    /// told that it is gone. The store may not answer.
    Fenced(Arc<SessionView>),
    /// The node has its lease back and the session is in the table again. What was told and kept meanwhile it
    /// has not heard, and its contacts may believe it gone.
    Returned(Arc<SessionView>),
    /// A session came here from another node, with the connection of its client (XEP-0198): bound, and available if it
    /// was so there. Its contacts have noticed nothing.
    Resumed(Arc<SessionView>),
    /// A session died with its node. Told once in the cluster, on any node.
    Lost { account: BareJid, jid: FullJid },
}

impl SessionEvent {
    pub fn account(&self) -> &BareJid {
        match self {
            SessionEvent::Bound(session)
            | SessionEvent::Available { session, .. }
            | SessionEvent::Unavailable(session)
            | SessionEvent::Hidden(session)
            | SessionEvent::Fenced(session)
            | SessionEvent::Returned(session)
            | SessionEvent::Resumed(session)
            | SessionEvent::Closed { session, .. } => session.account(),
            SessionEvent::Lost { account, .. } => account,
        }
    }
}

/// Is told what happens to sessions, in the order of the list.
pub trait Following: Send + Sync + 'static {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()>;
}

/// Keeps something about a session that must go with it when its client resumes it at another node (XEP-0198).
pub trait Moving: Send + Sync + 'static {
    /// What is to go along, as text that this version and the next one can read; `None`: nothing.
    fn pack(&self, session: &SessionView) -> Option<String>;

    /// Takes up what [`Moving::pack`] gave at the other node, before anything else happens to the session here. What it
    /// cannot read it leaves as it is with a new session.
    fn unpack(&self, session: &SessionView, packed: &str);
}

/// Is told that an account is about to be removed: its sessions have ended, its data can still be read. All that
/// its partition holds is erased afterwards, so only what is kept elsewhere, or told to others, is left to do.
/// May be told twice of one removal.
pub trait Forgetting: Send + Sync + 'static {
    fn forgetting<'a>(&'a self, account: &'a BareJid, services: &'a Arc<dyn Services>) -> Answer<'a, ()>;
}

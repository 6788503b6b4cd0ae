//! Sessions that change their node: a client resumes here what another node has (XEP-0198).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cluster::NodeId;
use cluster::identity::Caller;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use hooks::Sid;
use jid::{BareJid, FullJid, Jid};
use proto::relay::relay_client::RelayClient;
use proto::relay::{Missing, Moved, Purpose, Take, Taken, taken};
use stanza::Stanza;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::envelope;
use crate::mailboxes::Delivery;
use crate::metrics::Fate;
use crate::router::Router;
use crate::transit::Transit;

/// How long another node may take to find a session and to bring it to a halt.
const TAKE_WITHIN: Duration = Duration::from_secs(12);
/// How long it may take to send what the client has not had.
const HAND_WITHIN: Duration = Duration::from_secs(5);

/// What all lives of a resumable session share, so that its client can name it wherever it is: the upper bits of the sid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thread(u128);

/// Lower bits of a sid, which every life has for itself.
const LIFE_BITS: u32 = 32;

impl Thread {
    /// The one that a life belongs to.
    pub fn of(sid: Sid) -> Thread {
        Thread(sid.0 >> LIFE_BITS)
    }

    /// A new life of it.
    pub fn successor(self, random: u32) -> Sid {
        Sid(self.0 << LIFE_BITS | u128::from(random))
    }

    /// Reads what `Display` writes.
    pub fn read(text: &str) -> Option<Thread> {
        let digits =
            text.len() == 24 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Thread)
    }

    fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes()[4..])
    }

    fn from_bytes(bytes: &[u8]) -> Option<Thread> {
        let mut all = [0; 16];
        all.get_mut(4..)?.copy_from_slice(<&[u8; 12]>::try_from(bytes).ok()?);
        Some(Thread(u128::from_be_bytes(all)))
    }
}

impl std::fmt::Display for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:024x}", self.0)
    }
}

/// What a session is, on its way to another node.
#[derive(Debug, Clone)]
pub struct Moving {
    /// Its full JID.
    pub jid: FullJid,
    /// Its life until then.
    pub sid: Sid,
    /// The last available presence that it broadcast.
    pub presence: Option<Stanza>,
    /// The priority of that presence; `None`: not available.
    pub priority: Option<i8>,
    /// Whether it asked for the roster.
    pub interested: bool,
    /// Receivers of directed presence.
    pub directed: Vec<Jid>,
    /// How many stanzas of the client were handled, modulo 2^32.
    pub handled: u32,
    /// How the client logged in when the session began.
    pub mechanism: String,
    /// For how long it may be without a connection.
    pub resumption: Duration,
    /// What modules know of it, by the name of the module.
    pub notes: Vec<(String, String)>,
    /// When it began.
    pub since: SystemTime,
}

/// A request of another node for a session of this one.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The account that has authenticated there.
    pub account: BareJid,
    /// The session.
    pub thread: Thread,
    /// How many stanzas the client has handled, modulo 2^32.
    pub handled: u32,
    /// Who asks.
    pub node: NodeId,
    /// The life in which the session goes on there.
    pub successor: Sid,
}

/// Why a session cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not here, or not any more; how many stanzas of its client were handled, where that is remembered.
    Missing(Option<u32>),
    /// Its client has acknowledged more than it was sent, which is this many. It has ended.
    TooHigh(u32),
}

/// A session that is given away, and what becomes ready once all that its client has not had is at the other node.
pub type Given = (Moving, BoxFuture<'static, ()>);

/// Who has the sessions of this node.
pub trait Yielding: Send + Sync + 'static {
    /// Brings a session to a halt, for another node. It goes on here should the table not show it there within a bound.
    fn give(&self, ask: Ask) -> BoxFuture<'_, Result<Given, Refusal>>;
}

impl Router {
    /// Names who has the sessions of this node; once, at the start.
    pub fn yield_to_peers(&self, sessions: Arc<dyn Yielding>) {
        let _ = self.sessions.set(sessions);
    }

    /// The other node at which a session of the account is, by the table here.
    pub fn whereabouts_of(&self, account: &BareJid, sid: Sid) -> Option<NodeId> {
        let (me, _) = self.whereabouts.me();
        let rows = self.whereabouts.users(account);
        rows.iter().find(|row| row.sid.0 == sid.0 && row.node != me).map(|row| row.node)
    }

    /// Asks another node for a session; what it gives is this node's once the table says so.
    ///
    /// # Errors
    /// [`Refusal`]; a node that does not answer counts as one that does not have it.
    pub async fn take_over(
        &self,
        node: NodeId,
        account: &BareJid,
        thread: Thread,
        handled: u32,
        successor: Sid,
    ) -> Result<Given, Refusal> {
        self.ask(node, account, thread, handled, successor).await.unwrap_or_else(|status| {
            tracing::debug!(%node, %account, %status, "a node does not give a session away");
            Err(Refusal::Missing(None))
        })
    }

    async fn ask(
        &self,
        node: NodeId,
        account: &BareJid,
        thread: Thread,
        handled: u32,
        successor: Sid,
    ) -> Result<Result<Given, Refusal>, Status> {
        let unknown = || Status::unavailable("no address is known");
        let channel = self.whereabouts.channel(node).ok_or_else(unknown)?;
        let rows = self.whereabouts.nodes();
        let incarnation = rows.iter().find(|row| row.node == node).ok_or_else(unknown)?.incarnation;
        let take = Take {
            account: account.as_str().to_owned(),
            thread: thread.to_bytes(),
            handled,
            node: self.whereabouts.me().0.0,
            to_incarnation: incarnation.0,
            successor: Bytes::copy_from_slice(&successor.0.to_be_bytes()),
        };
        let asked = async {
            let mut answers = RelayClient::new(channel).take_over(take).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((first, answers))
        };
        let late = |_| Status::deadline_exceeded("no answer to a takeover");
        let (first, mut answers) = timeout(TAKE_WITHIN, asked).await.map_err(late)??;
        match first.and_then(|taken| taken.what) {
            Some(taken::What::Moved(moved)) => {
                let moving = open(*moved).ok_or_else(|| Status::internal("a session that cannot be read"))?;
                let handed = async move {
                    // Whatever comes of it: what is not handed over in time comes behind what is newer.
                    if !matches!(timeout(HAND_WITHIN, answers.message()).await, Ok(Ok(None))) {
                        tracing::warn!(%node, "what a resumed session had not had comes late");
                    }
                };
                Ok(Ok((moving, handed.boxed())))
            }
            Some(taken::What::Missing(Missing { handled, too_high: true })) => {
                Ok(Err(Refusal::TooHigh(handled.unwrap_or_default())))
            }
            Some(taken::What::Missing(Missing { handled, .. })) => Ok(Err(Refusal::Missing(handled))),
            None => Err(Status::internal("no answer to a takeover")),
        }
    }

    /// Gives what another node had for a session to the session here, whose mailbox is open by now: the table here may not
    /// know yet what the other node's does.
    pub(crate) fn take_in(&self, transit: Transit) {
        let account = transit.stanza.head.to.as_ref().map(Jid::to_bare);
        let slot =
            account.zip(transit.only).and_then(|(account, only)| self.mailboxes.find(&account, Sid(only.0)));
        let Some(slot) = slot else { return self.dispatch_returned(transit) };
        let Transit { stanza, receipt, hops, attempts, only, .. } = transit;
        let kind = stanza.head.kind;
        let delivery = Delivery { receipt, hops, attempts, ..Delivery::new(Arc::new(stanza)) };
        match self.mailboxes.deliver(&slot, delivery) {
            Ok(_) => self.counters.count(kind, Fate::Delivered),
            // It has ended in this moment: behind what came back from it.
            Err(delivery) => self.dispatch_returned(Transit { only, ..Transit::returned(delivery) }),
        }
    }

    /// Answers another node.
    pub(crate) async fn give(
        self: Arc<Self>,
        request: Request<Take>,
    ) -> Result<Response<BoxStream<'static, Result<Taken, Status>>>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let take = request.into_inner();
        if let Some(caller) = caller {
            caller.claims_node(NodeId(take.node))?;
        }
        if !self.serves_as(take.to_incarnation) {
            return Err(Status::failed_precondition("fenced: another incarnation is meant"));
        }
        let ask = read(&take).ok_or_else(|| Status::invalid_argument("not a takeover"))?;
        let sessions = self.sessions.get().ok_or_else(|| Status::unavailable("no sessions are here"))?;
        let (first, handed) = match sessions.give(ask).await {
            Ok((moving, handed)) => (taken::What::Moved(Box::new(seal(&moving))), Some(handed)),
            Err(Refusal::Missing(handled)) => {
                (taken::What::Missing(Missing { handled, too_high: false }), None)
            }
            Err(Refusal::TooHigh(sent)) => {
                (taken::What::Missing(Missing { handled: Some(sent), too_high: true }), None)
            }
        };
        let first = stream::iter([Ok(Taken { what: Some(first) })]);
        let rest = stream::once(async move {
            if let Some(handed) = handed {
                handed.await;
            }
        });
        // The end of the stream is what says that all is there.
        Ok(Response::new(first.chain(rest.filter_map(|()| async { None })).boxed()))
    }
}

fn read(take: &Take) -> Option<Ask> {
    Some(Ask {
        account: BareJid::new(&take.account).ok()?,
        thread: Thread::from_bytes(&take.thread)?,
        handled: take.handled,
        node: NodeId(take.node),
        successor: sid(&take.successor)?,
    })
}

fn sid(bytes: &[u8]) -> Option<Sid> {
    Some(Sid(u128::from_be_bytes(bytes.try_into().ok()?)))
}

fn seal(moving: &Moving) -> Moved {
    let seal =
        |presence: &Stanza| envelope::seal(presence, Purpose::Here, 0, vec![envelope::target(None, None)]);
    let since = moving.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    Moved {
        jid: moving.jid.as_str().to_owned(),
        sid: Bytes::copy_from_slice(&moving.sid.0.to_be_bytes()),
        presence: moving.presence.as_ref().map(seal).unwrap_or_default(),
        priority: moving.priority.map(i32::from),
        interested: moving.interested,
        directed: moving.directed.iter().map(|jid| jid.as_str().to_owned()).collect(),
        handled: moving.handled,
        mechanism: moving.mechanism.clone(),
        resumption_s: moving.resumption.as_secs().try_into().unwrap_or(u32::MAX),
        notes: moving.notes.iter().cloned().collect(),
        since_s: since.as_secs(),
    }
}

/// `None`: a newer version says it in another way, or its sender is broken.
fn open(moved: Moved) -> Option<Moving> {
    let presence = match moved.presence.is_empty() {
        true => None,
        false => Some(envelope::open(moved.presence).ok()?.stanza),
    };
    let priority = moved.priority.map(i8::try_from).transpose().ok()?;
    let directed: Result<Vec<Jid>, _> = moved.directed.iter().map(|jid| Jid::new(jid)).collect();
    let mut notes: Vec<(String, String)> = moved.notes.into_iter().collect();
    notes.sort_unstable();
    Some(Moving {
        jid: FullJid::new(&moved.jid).ok()?,
        sid: sid(&moved.sid)?,
        presence,
        priority,
        interested: moved.interested,
        directed: directed.ok()?,
        handled: moved.handled,
        mechanism: moved.mechanism,
        resumption: Duration::from_secs(moved.resumption_s.into()),
        notes,
        since: UNIX_EPOCH.checked_add(Duration::from_secs(moved.since_s))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_of_one_session_share_its_thread() {
        let first = Sid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let thread = Thread::of(first);
        assert_eq!(thread.to_string(), "0123456789abcdef01234567");
        assert_eq!(Thread::read(&thread.to_string()), Some(thread));
        assert_eq!(Thread::from_bytes(&thread.to_bytes()), Some(thread));
        let next = thread.successor(7);
        assert!(next != first && Thread::of(next) == thread);
        for text in ["", "0123456789abcdef0123456", "0123456789ABCDEF01234567", "+123456789abcdef01234567"] {
            assert_eq!(Thread::read(text), None, "{text}");
        }
        assert_eq!(Thread::from_bytes(&[0; 11]), None);
    }

    #[test]
    fn a_session_is_the_same_at_the_other_node() {
        let presence = Stanza::presence(None).with_from(Jid::new("a@h/r").unwrap());
        let moving = Moving {
            jid: FullJid::new("a@h/r").unwrap(),
            sid: Sid(7),
            presence: Some(presence),
            priority: Some(-3),
            interested: true,
            directed: vec![Jid::new("b@h/x").unwrap()],
            handled: u32::MAX,
            mechanism: "PLAIN".into(),
            resumption: Duration::from_secs(300),
            notes: vec![("a".into(), "1".into()), ("b".into(), String::new())],
            since: UNIX_EPOCH + Duration::from_secs(1_000),
        };
        let there = open(seal(&moving)).unwrap();
        assert_eq!(format!("{there:?}"), format!("{moving:?}"));
        let bare =
            Moving { presence: None, priority: None, directed: Vec::new(), notes: Vec::new(), ..moving };
        assert_eq!(format!("{:?}", open(seal(&bare)).unwrap()), format!("{bare:?}"));
    }
}

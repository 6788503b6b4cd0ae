//! What a handler says about a stanza, at once or after it awaited the store.

use std::future::{Future, IntoFuture};

use bytes::Bytes;
use futures::future::{BoxFuture, Either, Ready, ready};
use minidom::Element;
use stanza::StanzaError;

/// What becomes of a stanza after a handler has seen it.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The stanza goes on to the next handler.
    Pass,
    /// The stanza is taken care of: no later handler sees it, nothing is sent back.
    Stop,
    /// The stanza goes no further and its sender gets this error, if it may be answered at all.
    Refuse(Box<StanzaError>),
}

impl Verdict {
    /// Refuses with `error`.
    pub fn refuse(error: StanzaError) -> Verdict {
        Verdict::Refuse(Box::new(error))
    }

    pub fn is_pass(&self) -> bool {
        matches!(self, Verdict::Pass)
    }
}

/// A value now, or a boxed future of it: a handler with nothing to await costs nothing but a call.
///
/// See `docs/decisions/0001-answer-now-or-later.md`. An `Answer` can be awaited like a future.
#[must_use]
pub enum Answer<'a, T = Verdict> {
    Now(T),
    Later(BoxFuture<'a, T>),
}

impl<'a, T> Answer<'a, T> {
    /// An answer that has to await something: boxes `future`.
    pub fn later(future: impl Future<Output = T> + Send + 'a) -> Answer<'a, T> {
        Answer::Later(Box::pin(future))
    }
}

impl Answer<'_, Verdict> {
    /// The commonest answer.
    pub const PASS: Self = Answer::Now(Verdict::Pass);
    /// Taken care of.
    pub const STOP: Self = Answer::Now(Verdict::Stop);

    /// Refuses at once.
    pub fn refuse(error: StanzaError) -> Self {
        Answer::Now(Verdict::refuse(error))
    }
}

impl<'a, T> IntoFuture for Answer<'a, T> {
    type Output = T;
    type IntoFuture = Either<Ready<T>, BoxFuture<'a, T>>;

    fn into_future(self) -> Self::IntoFuture {
        match self {
            Answer::Now(value) => Either::Left(ready(value)),
            Answer::Later(future) => Either::Right(future),
        }
    }
}

/// How a handler answers an iq of type get or set.
#[derive(Debug, Clone)]
pub enum Reply {
    /// `result`, empty or with one payload.
    Result(Option<Element>),
    /// `result` with a payload that is written already, for one so large that a tree of it would delay others:
    /// self-contained XML under `jabber:client`.
    Written(Bytes),
    /// `error`.
    Error(StanzaError),
    /// The module has answered, or will answer, by itself.
    Silent,
}

impl Reply {
    /// A result with a payload.
    pub fn with(payload: Element) -> Reply {
        Reply::Result(Some(payload))
    }

    /// A result without a payload.
    pub fn empty() -> Reply {
        Reply::Result(None)
    }
}

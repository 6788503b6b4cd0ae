//! [XEP-0198]: Stream Management. Counts what each side has handled, and keeps what the client has not acknowledged.
//!
//! [XEP-0198]: https://xmpp.org/extensions/xep-0198.html

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use minidom::Element;
use parking_lot::Mutex;
use stanza::{Condition, StreamCondition, StreamError, ns};

use crate::features::set;

/// Namespace of the protocol, and name of its stream feature.
pub const NS: &str = "urn:xmpp:sm:3";

/// Longest `previd` that is looked at, in bytes; ours are much shorter.
const ID_MAX: usize = 256;

/// What asks the client to acknowledge.
pub const ASK: &[u8] = b"<r xmlns='urn:xmpp:sm:3'/>";

/// What the client says about the management of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// From here on stanzas are counted (section 3).
    Enable {
        /// It wants to be able to resume the session.
        resume: bool,
        /// For how many seconds without a connection, if it has a wish.
        max_s: Option<u32>,
    },
    /// It goes on with an earlier session (section 5).
    Resume(Resume),
    /// It asks how many of its stanzas were handled (section 4).
    Ask,
    /// It has handled so many of ours, modulo 2^32.
    Acknowledged(u32),
}

/// The wish to go on with an earlier session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The id that was given to that session.
    pub id: String,
    /// How many of our stanzas the client has handled.
    pub handled: u32,
}

impl Said {
    /// Reads an element in [`NS`].
    ///
    /// # Errors
    /// `bad-request` where it is none of those, or an attribute is missing or no number.
    pub fn read(element: &Element) -> Result<Said, Condition> {
        let number = |name: &str| element.attr(name).and_then(|text| text.trim().parse::<u32>().ok());
        let handled = || number("h").ok_or(Condition::BadRequest);
        Ok(match element.name() {
            "enable" => Said::Enable {
                resume: matches!(element.attr("resume").map(str::trim), Some("true" | "1")),
                max_s: number("max"),
            },
            "resume" => {
                let id = element.attr("previd").filter(|id| id.len() <= ID_MAX);
                Said::Resume(Resume { id: id.ok_or(Condition::BadRequest)?.to_owned(), handled: handled()? })
            }
            "r" => Said::Ask,
            "a" => Said::Acknowledged(handled()?),
            _ => return Err(Condition::BadRequest),
        })
    }
}

/// `<sm/>`, the stream feature (section 2).
pub fn feature() -> Element {
    Element::bare("sm", NS)
}

/// `<enabled/>`: with an id, and for how many seconds, where the session can be resumed.
pub fn enabled(resumable: Option<(&str, u32)>) -> Element {
    let mut element = Element::bare("enabled", NS);
    if let Some((id, max_s)) = resumable {
        set(&mut element, "id", id);
        set(&mut element, "resume", "true");
        set(&mut element, "max", &max_s.to_string());
    }
    element
}

/// `<resumed/>`: the client's stanzas behind `handled` are to be sent again.
pub fn resumed(id: &str, handled: u32) -> Element {
    let mut element = Element::bare("resumed", NS);
    set(&mut element, "h", &handled.to_string());
    set(&mut element, "previd", id);
    element
}

/// `<failed/>`; `handled` where the session is known and over.
pub fn failed(condition: Condition, handled: Option<u32>) -> Element {
    let mut element = Element::bare("failed", NS);
    if let Some(handled) = handled {
        set(&mut element, "h", &handled.to_string());
    }
    element.append_child(Element::bare(condition.tag(), ns::STANZA_ERRORS));
    element
}

/// Writes `<a/>`.
pub fn acknowledge(handled: u32, out: &mut BytesMut) {
    out.extend_from_slice(b"<a xmlns='urn:xmpp:sm:3' h='");
    let mut digits = [0; 10];
    let mut at = digits.len();
    let mut rest = handled;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"'/>");
}

/// The client acknowledged more than it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooHigh {
    /// What it acknowledged.
    pub handled: u32,
    /// What it was sent.
    pub sent: u32,
}

impl From<TooHigh> for StreamError {
    /// Section 6.
    fn from(TooHigh { handled, sent }: TooHigh) -> StreamError {
        let mut extra = Element::bare("handled-count-too-high", NS);
        set(&mut extra, "h", &handled.to_string());
        set(&mut extra, "send-count", &sent.to_string());
        let text = format!("acknowledged {handled} stanzas of {sent}");
        let mut error = StreamError::new(StreamCondition::UndefinedCondition).with_text(text);
        error.extra.push(extra);
        error
    }
}

/// What was sent and is not acknowledged.
#[derive(Debug)]
pub struct Unacknowledged<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// How many were sent, modulo 2^32.
    sent: u32,
}

impl<T> Default for Unacknowledged<T> {
    fn default() -> Self {
        Unacknowledged { items: VecDeque::new(), bytes: 0, sent: 0 }
    }
}

impl<T> Unacknowledged<T> {
    /// Counting goes on at `sent`, all of which was acknowledged.
    pub fn from(sent: u32) -> Self {
        Unacknowledged { sent, ..Unacknowledged::default() }
    }

    /// A stanza is sent, of so many bytes.
    pub fn push(&mut self, item: T, bytes: usize) {
        self.items.push_back((item, bytes));
        self.bytes += bytes;
        self.sent = self.sent.wrapping_add(1);
    }

    /// The client has handled so many: returns how many were acknowledged by that. They are dropped.
    ///
    /// # Errors
    /// [`TooHigh`] where it was not sent so many; nothing is changed.
    pub fn acknowledge(&mut self, handled: u32) -> Result<usize, TooHigh> {
        // Both count modulo 2^32, and fewer than that wait at any time: the distance is what is left.
        let left = self.sent.wrapping_sub(handled) as usize;
        let Some(done) = self.items.len().checked_sub(left) else {
            return if self.is_old(handled) { Ok(0) } else { Err(TooHigh { handled, sent: self.sent }) };
        };
        for (_, bytes) in self.items.drain(..done) {
            self.bytes -= bytes;
        }
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
        Ok(done)
    }

    /// Whether it is a number that was acknowledged before: a client may repeat itself.
    fn is_old(&self, handled: u32) -> bool {
        let acknowledged = self.sent.wrapping_sub(self.items.len() as u32);
        acknowledged.wrapping_sub(handled) < u32::MAX / 2
    }

    /// How many wait for an acknowledgement.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether all was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many bytes wait for an acknowledgement.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many were sent, modulo 2^32.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// What waits, in the order in which it was sent.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map(|(item, _)| item)
    }

    /// Takes what waits, in the order in which it was sent.
    pub fn take(&mut self) -> Vec<T> {
        self.bytes = 0;
        std::mem::take(&mut self.items).into_iter().map(|(item, _)| item).collect()
    }
}

/// How many of the client's stanzas were handled: in the order in which they came, however long each takes.
#[derive(Debug, Default)]
pub struct Handled(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// All up to this one were handled, modulo 2^32.
    handled: u32,
    /// Of those behind it, which were.
    behind: VecDeque<bool>,
    /// The client asked while something was on its way, and is to hear of it.
    owes: bool,
    /// Who tells the client then.
    waker: Option<Waker>,
}

/// A stanza of the client that is on its way: handled when this is dropped, wherever it is by then.
#[derive(Debug)]
pub struct Underway {
    handled: Arc<Handled>,
    number: u32,
}

impl Handled {
    /// Counting goes on at `handled`.
    pub fn from(handled: u32) -> Handled {
        Handled(Mutex::new(Counts { handled, ..Counts::default() }))
    }

    /// The next stanza has come.
    pub fn begin(self: &Arc<Handled>) -> Underway {
        let mut counts = self.0.lock();
        counts.behind.push_back(false);
        let number = counts.handled.wrapping_add(counts.behind.len() as u32);
        Underway { handled: self.clone(), number }
    }

    /// How many were handled, modulo 2^32.
    pub fn count(&self) -> u32 {
        self.0.lock().handled
    }

    /// As [`Handled::count`], for a client that asks: if something is still on its way, it is owed another answer.
    pub fn answer(&self) -> u32 {
        let mut counts = self.0.lock();
        counts.owes = !counts.behind.is_empty();
        counts.handled
    }

    /// Ready with the count once the client is owed another answer and all has been handled; it is not owed it any
    /// more then. One waker is kept.
    pub fn poll_owed(&self, context: &mut Context<'_>) -> Poll<u32> {
        let mut counts = self.0.lock();
        if !counts.owes {
            return Poll::Pending;
        }
        if counts.behind.is_empty() {
            counts.owes = false;
            return Poll::Ready(counts.handled);
        }
        counts.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ready when nothing is on its way. One waker is kept.
    pub fn poll_settled(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut counts = self.0.lock();
        if counts.behind.is_empty() {
            return Poll::Ready(());
        }
        counts.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Counts all as handled that have come, and returns how many that are: on a new connection the client sends again
    /// what is not counted, and it would come twice.
    pub fn complete(&self) -> u32 {
        let mut counts = self.0.lock();
        counts.handled = counts.handled.wrapping_add(counts.behind.len() as u32);
        counts.behind.clear();
        counts.owes = false;
        counts.handled
    }

    fn done(&self, number: u32) {
        let mut counts = self.0.lock();
        // It cannot be further off than what is on its way.
        let at = number.wrapping_sub(counts.handled).wrapping_sub(1) as usize;
        if let Some(done) = counts.behind.get_mut(at) {
            *done = true;
        }
        while counts.behind.front() == Some(&true) {
            counts.behind.pop_front();
            counts.handled = counts.handled.wrapping_add(1);
        }
        let waker = if counts.behind.is_empty() { counts.waker.take() } else { None };
        drop(counts);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.handled.done(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use stanza::dom;

    use super::*;

    fn said(xml: &str) -> Result<Said, Condition> {
        Said::read(&dom::parse(xml.as_bytes()).unwrap())
    }

    #[test]
    fn what_a_client_says_is_read() {
        let resume = |id: &str, handled| Ok(Said::Resume(Resume { id: id.into(), handled }));
        for (xml, meant) in [
            ("<enable xmlns='urn:xmpp:sm:3'/>", Ok(Said::Enable { resume: false, max_s: None })),
            (
                "<enable xmlns='urn:xmpp:sm:3' resume='1' max='60'/>",
                Ok(Said::Enable { resume: true, max_s: Some(60) }),
            ),
            (
                "<enable xmlns='urn:xmpp:sm:3' resume='true' max='x'/>",
                Ok(Said::Enable { resume: true, max_s: None }),
            ),
            ("<enable xmlns='urn:xmpp:sm:3' resume='yes'/>", Ok(Said::Enable { resume: false, max_s: None })),
            ("<resume xmlns='urn:xmpp:sm:3' previd='a' h='0'/>", resume("a", 0)),
            ("<resume xmlns='urn:xmpp:sm:3' previd='a' h='4294967295'/>", resume("a", u32::MAX)),
            ("<resume xmlns='urn:xmpp:sm:3' previd='a'/>", Err(Condition::BadRequest)),
            ("<resume xmlns='urn:xmpp:sm:3' h='1'/>", Err(Condition::BadRequest)),
            ("<r xmlns='urn:xmpp:sm:3'/>", Ok(Said::Ask)),
            ("<a xmlns='urn:xmpp:sm:3' h='7'/>", Ok(Said::Acknowledged(7))),
            ("<a xmlns='urn:xmpp:sm:3' h='-1'/>", Err(Condition::BadRequest)),
            ("<a xmlns='urn:xmpp:sm:3' h='4294967296'/>", Err(Condition::BadRequest)),
            ("<a xmlns='urn:xmpp:sm:3'/>", Err(Condition::BadRequest)),
            ("<b xmlns='urn:xmpp:sm:3'/>", Err(Condition::BadRequest)),
        ] {
            assert_eq!(said(xml), meant, "{xml}");
        }
        let long = format!("<resume xmlns='urn:xmpp:sm:3' h='0' previd='{}'/>", "a".repeat(ID_MAX + 1));
        assert_eq!(said(&long), Err(Condition::BadRequest));
    }

    #[test]
    fn an_acknowledgement_is_written_as_it_is_read() {
        for handled in [0, 1, 9, 10, 1234567890, u32::MAX] {
            let mut out = BytesMut::new();
            acknowledge(handled, &mut out);
            assert_eq!(said(std::str::from_utf8(&out).unwrap()), Ok(Said::Acknowledged(handled)));
        }
    }

    #[test]
    fn what_is_acknowledged_is_forgotten() {
        // sent before, items, acknowledged, how many that are, how many are left
        for (before, items, handled, done, left) in [
            (0, 3, 0, Ok(0), 3),
            (0, 3, 2, Ok(2), 1),
            (0, 3, 3, Ok(3), 0),
            (0, 3, 4, Err(TooHigh { handled: 4, sent: 3 }), 3),
            (0, 0, 1, Err(TooHigh { handled: 1, sent: 0 }), 0),
            // Over the end of the numbers.
            (u32::MAX - 1, 4, u32::MAX, Ok(1), 3),
            (u32::MAX - 1, 4, 0, Ok(2), 2),
            (u32::MAX - 1, 4, 2, Ok(4), 0),
            (u32::MAX - 1, 4, 3, Err(TooHigh { handled: 3, sent: 2 }), 4),
            // Said once more.
            (5, 2, 4, Ok(0), 2),
            (1, 2, u32::MAX, Ok(0), 2),
        ] {
            let mut sent = Unacknowledged::from(before);
            (0..items).for_each(|item| sent.push(item, 10));
            assert_eq!(sent.acknowledge(handled), done, "{before} + {items}, {handled}");
            assert_eq!((sent.len(), sent.bytes()), (left, left * 10));
            let rest: Vec<_> = sent.iter().copied().collect();
            assert_eq!(rest, (items - left as u32..items).collect::<Vec<_>>());
        }
    }

    #[test]
    fn stanzas_count_in_their_order_however_long_each_takes() {
        let handled = Arc::new(Handled::from(u32::MAX - 1));
        let (first, second, third) = (handled.begin(), handled.begin(), handled.begin());
        drop(second);
        assert_eq!(handled.count(), u32::MAX - 1);
        drop(first);
        assert_eq!(handled.count(), 0);
        drop(third);
        assert_eq!(handled.count(), 1);
    }

    #[test]
    fn on_a_new_connection_all_counts_that_has_come() {
        let handled = Arc::new(Handled::from(7));
        let (first, second) = (handled.begin(), handled.begin());
        drop(second);
        assert!(handled.poll_settled(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(handled.complete(), 9);
        let third = handled.begin();
        drop(first);
        assert_eq!(handled.count(), 9, "it was counted already");
        drop(third);
        assert_eq!(handled.count(), 10);
        assert!(handled.poll_settled(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn who_asks_too_early_is_told_again() {
        let handled = Arc::new(Handled::default());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(handled.answer(), 0);
        assert!(handled.poll_owed(&mut context).is_pending(), "nothing is on its way");
        let (first, second) = (handled.begin(), handled.begin());
        assert!(handled.poll_owed(&mut context).is_pending(), "nobody asked");
        drop(first);
        assert_eq!(handled.answer(), 1);
        assert!(handled.poll_owed(&mut context).is_pending());
        drop(second);
        assert_eq!(handled.poll_owed(&mut context), Poll::Ready(2));
        assert!(handled.poll_owed(&mut context).is_pending(), "told once");
    }
}

//! Reads an archive: what a query asks for, which page of it that is, how it is told.

use std::ops::Bound;
use std::sync::Arc;

use bytes::BytesMut;
use futures::future::try_join_all;
use hooks::{How, Passage, Reply, Services};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use stanza::{Condition, Head, Kind, Stanza, StanzaError, address};
use store::{Key, Range, StoreError};

use super::entries::{Archived, Id, With, id_of_with_key, mark, with_key};
use super::writer::{Writer, micros};
use super::{MAM, sweep};
use crate::failure::{Failure, bad_request};
use crate::forwarded;
use crate::rosters::partition;
use crate::time;
use crate::xml::{Build, element};

const FORM: &str = "jabber:x:data";
/// XEP-0059.
const RSM: &str = "http://jabber.org/protocol/rsm";
const VALIDATE: &str = "http://jabber.org/protocol/xdata-validate";
/// Messages of a page for who does not say how many.
const PAGE: usize = 50;
/// The most bytes of one page, but for a single larger message: what is told must fit the mailbox of who asks.
const PAGE_BYTES: usize = 256 * 1024;
/// Messages that are read from the store at a time.
const SLICE: usize = 64;
/// Rows of the index that are looked at at a time.
const ROWS: usize = 256;

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    id: Option<String>,
    with: Option<Jid>,
    start: Option<u64>,
    end: Option<u64>,
    before_id: Option<String>,
    after_id: Option<String>,
    ids: Option<Vec<String>>,
    /// XEP-0059.
    max: Option<usize>,
    before: Option<String>,
    after: Option<String>,
    flip: bool,
}

impl Query {
    fn read(query: &Element) -> Result<Query, StanzaError> {
        if query.attr("node").is_some_and(|node| !node.is_empty()) {
            // XEP-0313, 6.1.3: nodes are of publish-subscribe.
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        let mut read = Query { id: query.attr("queryid").map(str::to_owned), ..Query::default() };
        read.flip = query.has_child("flip-page", MAM);
        if let Some(form) = query.get_child("x", FORM) {
            read.form(form)?;
        }
        if let Some(set) = query.get_child("set", RSM) {
            let text = |name| set.get_child(name, RSM).map(|child| child.text().trim().to_owned());
            let max = text("max").map(|max| max.parse::<u32>());
            let max = max.transpose().map_err(|_| bad_request("`max` is a number"))?;
            read.max = max.map(|max| usize::try_from(max).unwrap_or(usize::MAX));
            (read.before, read.after) = (text("before"), text("after"));
            if set.has_child("index", RSM) {
                // XEP-0059, 2.4: pages are not found by their number here.
                return Err(StanzaError::new(Condition::FeatureNotImplemented));
            }
        }
        Ok(read)
    }

    /// XEP-0313, 4.1.
    fn form(&mut self, form: &Element) -> Result<(), StanzaError> {
        let mut is_ours = false;
        for field in form.children().filter(|child| child.is("field", FORM)) {
            let mut values = field.children().filter(|child| child.is("value", FORM)).map(Element::text);
            let name = field.attr("var").unwrap_or_default();
            if name == "ids" {
                self.ids = Some(values.collect());
                continue;
            }
            let value = values.next().unwrap_or_default();
            let value = value.trim();
            let moment = || time::read(value).ok_or_else(|| bad_request("a time is as in XEP-0082"));
            match name {
                "FORM_TYPE" if value == MAM => is_ours = true,
                "FORM_TYPE" => return Err(bad_request("the form is of another kind")),
                "with" => {
                    let with = address::jid(value);
                    self.with = Some(with.map_err(|_| StanzaError::new(Condition::JidMalformed))?);
                }
                "start" => self.start = Some(moment()?),
                "end" => self.end = Some(moment()?),
                "before-id" => self.before_id = Some(value.to_owned()),
                "after-id" => self.after_id = Some(value.to_owned()),
                // 4.1.5.
                _ => return Err(StanzaError::new(Condition::FeatureNotImplemented)),
            }
        }
        if is_ours { Ok(()) } else { Err(bad_request("the form has no `FORM_TYPE`")) }
    }
}

/// XEP-0313, 4.1.5: the fields that a query may have.
pub fn form() -> Element {
    let field = |kind, var| element("field", FORM).with("type", kind).with("var", var);
    let open = element("validate", VALIDATE).with("datatype", "xs:string");
    let fields = [
        field("hidden", "FORM_TYPE").child(element("value", FORM).text_node(MAM)),
        field("jid-single", "with"),
        field("text-single", "start"),
        field("text-single", "end"),
        field("text-single", "before-id"),
        field("text-single", "after-id"),
        field("list-multi", "ids").child(open.child(element("open", VALIDATE))),
    ];
    let form = element("x", FORM).with("type", "form");
    element("query", MAM).child(fields.into_iter().fold(form, Element::child))
}

/// An archive that is read for its owner.
pub struct Reader<'a> {
    pub services: &'a Arc<dyn Services>,
    pub account: &'a BareJid,
    pub writer: &'a Writer,
    pub page_max: usize,
}

/// Messages in their order, and whether they are all that matched.
struct Page {
    messages: Vec<(Id, Archived)>,
    complete: bool,
}

/// Which messages match, by their id.
struct Span {
    from: Bound<Key>,
    to: Bound<Key>,
}

impl Span {
    fn not_before(&mut self, key: Key, included: bool) {
        let is_further = match &self.from {
            Bound::Unbounded => true,
            Bound::Included(from) => key > *from || (key == *from && !included),
            Bound::Excluded(from) => key > *from,
        };
        if is_further {
            self.from = if included { Bound::Included(key) } else { Bound::Excluded(key) };
        }
    }

    fn not_after(&mut self, key: Key, included: bool) {
        let is_further = match &self.to {
            Bound::Unbounded => true,
            Bound::Included(to) => key < *to || (key == *to && !included),
            Bound::Excluded(to) => key < *to,
        };
        if is_further {
            self.to = if included { Bound::Included(key) } else { Bound::Excluded(key) };
        }
    }

    fn has(&self, id: Id) -> bool {
        std::ops::RangeBounds::contains(&(self.from.clone(), self.to.clone()), &id.key())
    }
}

impl Reader<'_> {
    /// Tells the messages that are asked for to who asks, then what they were.
    pub async fn query(&self, passage: &Passage, query: &Element) -> Result<Reply, Failure> {
        let query = Query::read(query)?;
        let Some(to) = passage.stanza.from_full() else {
            return Err(bad_request("an archive is read by a session").into());
        };
        // What this node has not written yet is a part of the archive.
        self.writer.settle(self.services, self.account).await?;
        let page = self.page(&query).await?;
        let fin = self.fin(&page);
        self.tell(passage, to, &query, page).await;
        Ok(Reply::with(fin))
    }

    /// XEP-0313, 5.
    pub async fn metadata(&self) -> Result<Element, Failure> {
        self.writer.flush(&**self.services).await?;
        let oldest = self.writer.limits().oldest(&**self.services);
        let all = Range { from: Bound::Included(oldest.key()), ..Range::all() };
        let mut metadata = element("metadata", MAM);
        for (name, range) in [("start", all.clone()), ("end", all.reversed())] {
            let found = self.scan(range.limit(1)).await?;
            if let Some((id, _)) = found.first() {
                let end = element(name, MAM).with("id", &id.to_string());
                metadata = metadata.child(end.with("timestamp", &time::utc_micros(id.micros())));
            }
        }
        Ok(metadata)
    }

    async fn page(&self, query: &Query) -> Result<Page, Failure> {
        let oldest = self.writer.limits().oldest(&**self.services);
        let mut span = Span { from: Bound::Included(oldest.key()), to: Bound::Unbounded };
        if let Some(start) = query.start {
            span.not_before(Id::first_of(start).key(), true);
        }
        if let Some(end) = query.end {
            span.not_after(Id::last_of(end).key(), true);
        }
        for after in [&query.after_id, &query.after].into_iter().flatten() {
            span.not_before(self.existing(after, oldest).await?.key(), false);
        }
        // XEP-0059, 2.5: an empty one stands for the end.
        let before = query.before.as_ref().filter(|before| !before.is_empty());
        for before in [query.before_id.as_ref(), before].into_iter().flatten() {
            span.not_after(self.existing(before, oldest).await?.key(), false);
        }
        let max = query.max.unwrap_or(PAGE).min(self.page_max);
        let backwards = query.before.is_some();
        let mut page = match &query.ids {
            Some(ids) => self.named(query, ids, &span, oldest, max, backwards).await?,
            None => self.found(query, span, max, backwards).await?,
        };
        if backwards {
            page.messages.reverse();
        }
        Ok(page)
    }

    /// XEP-0313, 4.1.3: the messages of these ids, all of them or none.
    async fn named(
        &self,
        query: &Query,
        ids: &[String],
        span: &Span,
        oldest: Id,
        max: usize,
        backwards: bool,
    ) -> Result<Page, Failure> {
        if ids.len() > self.page_max {
            return Err(bad_request(&format!("at most {} ids at a time", self.page_max)).into());
        }
        let not_found = || StanzaError::new(Condition::ItemNotFound);
        let mut wanted = Vec::with_capacity(ids.len());
        for id in ids {
            wanted.push(Id::read(id.trim()).filter(|id| *id >= oldest).ok_or_else(not_found)?);
        }
        wanted.sort_unstable();
        wanted.dedup();
        let found = self.get(wanted.iter().copied()).await?;
        if found.len() < wanted.len() {
            return Err(not_found().into());
        }
        let mut matching: Vec<(Id, Archived)> = found
            .into_iter()
            .filter(|(id, message)| {
                span.has(*id) && query.with.as_ref().is_none_or(|with| message.is_with(with))
            })
            .collect();
        if backwards {
            matching.reverse();
        }
        let mut page = Page { messages: Vec::new(), complete: true };
        page.take(matching, max);
        Ok(page)
    }

    /// The first page of a span, or its last one, which begins at the end.
    async fn found(
        &self,
        query: &Query,
        mut span: Span,
        max: usize,
        backwards: bool,
    ) -> Result<Page, Failure> {
        let mut page = Page { messages: Vec::new(), complete: true };
        loop {
            let wanted = (max + 1 - page.messages.len()).min(SLICE);
            let (read, ended) = match &query.with {
                None => {
                    let range = Range { from: span.from.clone(), to: span.to.clone(), ..Range::all() };
                    let range = if backwards { range.reversed() } else { range };
                    if range.is_empty() {
                        return Ok(page);
                    }
                    let read = self.scan(range.limit(wanted)).await?;
                    let ended = read.len() < wanted;
                    (read, ended)
                }
                Some(with) => self.rows(with, &mut span, wanted, backwards).await?,
            };
            if let (Some((last, _)), None) = (read.last(), &query.with) {
                match backwards {
                    true => span.not_after(last.key(), false),
                    false => span.not_before(last.key(), false),
                }
            }
            if !page.take(read, max) || ended {
                return Ok(page);
            }
            self.services.pause().await;
        }
    }

    /// Messages with somebody, found by the index; the span then begins behind what was looked at. `true`: no more are
    /// there.
    async fn rows(
        &self,
        with: &Jid,
        span: &mut Span,
        wanted: usize,
        backwards: bool,
    ) -> Result<(Vec<(Id, Archived)>, bool), Failure> {
        let of = |id: Bound<&Key>, end: Id| match id {
            Bound::Included(id) => Bound::Included(row(with, id)),
            Bound::Excluded(id) => Bound::Excluded(row(with, id)),
            Bound::Unbounded => Bound::Included(with_key(with.as_str(), end)),
        };
        let (first, last) = (Id::first_of(0), Id::last_of(u64::MAX));
        let range =
            Range { from: of(span.from.as_ref(), first), to: of(span.to.as_ref(), last), ..Range::all() };
        if range.is_empty() {
            return Ok((Vec::new(), true));
        }
        // Of one device among many, many rows may be of others.
        let limit = if with.is_full() { ROWS } else { wanted };
        let range = if backwards { range.reversed() } else { range };
        let rows = self.services.store().scan::<With>(&partition(self.account), range.limit(limit)).await?;
        let mut ended = rows.len() < limit;
        let full = mark(with.as_str());
        let mut ids = Vec::new();
        for (key, row) in rows {
            let Some(id) = id_of_with_key(&key) else { continue };
            if with.is_bare() || row.full == full {
                if ids.len() == wanted {
                    ended = false;
                    break;
                }
                ids.push(id);
            }
            match backwards {
                true => span.not_after(id.key(), false),
                false => span.not_before(id.key(), false),
            }
        }
        let mut read = self.get(ids.into_iter()).await?;
        read.retain(|(_, message)| message.is_with(with));
        Ok((read, ended))
    }

    async fn scan(&self, range: Range) -> Result<Vec<(Id, Archived)>, StoreError> {
        let found = self.services.store().scan::<Archived>(&partition(self.account), range).await?;
        Ok(found.into_iter().filter_map(|(key, message)| Some((Id::of_key(&key)?, message))).collect())
    }

    /// The messages of these ids that are there, in their order.
    async fn get(&self, ids: impl Iterator<Item = Id>) -> Result<Vec<(Id, Archived)>, StoreError> {
        let (store, partition) = (self.services.store(), partition(self.account));
        let one = |id: Id| {
            let partition = &partition;
            async move { Ok(store.get::<Archived>(partition, id.key()).await?.map(|message| (id, message))) }
        };
        let found = try_join_all(ids.map(one)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// An id that a client names, if the archive has it.
    async fn existing(&self, id: &str, oldest: Id) -> Result<Id, Failure> {
        let id = Id::read(id).filter(|id| *id >= oldest);
        if let Some(id) = id
            && self.services.store().contains::<Archived>(&partition(self.account), id.key()).await?
        {
            return Ok(id);
        }
        Err(StanzaError::new(Condition::ItemNotFound).into())
    }

    /// XEP-0313, 4.3; nobody counts for it.
    fn fin(&self, page: &Page) -> Element {
        let mut set = element("set", RSM);
        if let (Some((first, _)), Some((last, _))) = (page.messages.first(), page.messages.last()) {
            set = set
                .child(element("first", RSM).text_node(&first.to_string()))
                .child(element("last", RSM).text_node(&last.to_string()));
        }
        let settled = micros(&**self.services)
            .saturating_sub(u64::try_from(sweep::SETTLED.as_micros()).unwrap_or(u64::MAX));
        let mut fin = element("fin", MAM);
        if page.complete {
            fin = fin.with("complete", "true");
        }
        // Another node may be about to write what belongs before the youngest ones.
        if page.messages.last().is_some_and(|(id, _)| id.micros() >= settled) {
            fin = fin.with("stable", "false");
        }
        fin.child(set)
    }

    async fn tell(&self, passage: &Passage, to: &FullJid, query: &Query, page: Page) {
        let mut messages = page.messages;
        if query.flip {
            messages.reverse();
        }
        for (id, message) in messages {
            let Some(told) = self.told(to, query.id.as_deref(), id, &message) else { continue };
            match &passage.sender {
                Some(session) => self.services.hand(session, told),
                None => self.services.route(told, How::Direct).await,
            }
        }
    }

    /// XEP-0313, 4.2; `None`: what is kept is no message any more.
    fn told(&self, to: &FullJid, query: Option<&str>, id: Id, message: &Archived) -> Option<Stanza> {
        let kept = Some(&message.stanza).filter(|kept| kept.is_message())?;
        let mut body = BytesMut::with_capacity(kept.size() + 400);
        let attribute = |name: &str, value: &str, body: &mut BytesMut| {
            body.extend_from_slice(name.as_bytes());
            stanza::dom::escape_attribute(value, body);
            body.extend_from_slice(b"'");
        };
        attribute("<result xmlns='", MAM, &mut body);
        if let Some(query) = query {
            attribute(" queryid='", query, &mut body);
        }
        attribute(" id='", &id.to_string(), &mut body);
        body.extend_from_slice(b">");
        forwarded::write_kept(kept, Some(&time::utc_micros(id.micros())), &mut body);
        body.extend_from_slice(b"</result>");
        let head = Head {
            from: Some(self.account.clone().into()),
            to: Some(to.clone().into()),
            ..Head::new(Kind::Message)
        };
        Some(Stanza::new(head, body.freeze()))
    }
}

impl Page {
    /// Takes messages until the page is full; `false`: it is.
    fn take(&mut self, messages: Vec<(Id, Archived)>, max: usize) -> bool {
        let mut bytes: usize = self.messages.iter().map(|(_, message)| message.stanza.size()).sum();
        for (id, message) in messages {
            bytes += message.stanza.size();
            if self.messages.len() >= max || (bytes > PAGE_BYTES && !self.messages.is_empty()) {
                self.complete = false;
                return false;
            }
            self.messages.push((id, message));
        }
        true
    }
}

/// The row of the index for a message with somebody.
fn row(with: &Jid, id: &Key) -> Key {
    match Id::of_key(id) {
        Some(id) => with_key(with.as_str(), id),
        None => id.clone(),
    }
}

//! Items that are read: all, the last ones, those of some ids, or page by page ([XEP-0059]).

use std::ops::Bound;

use minidom::Element;
use stanza::{Condition, StanzaError};
use store::Range;

use super::engine::Service;
use super::errors;
use super::tables::{Item, Node, Place, all_of, below, item_key, place_of};
use crate::failure::{Failure, bad_request};
use crate::xml::{Build, element};

/// XEP-0059.
pub const RSM: &str = "http://jabber.org/protocol/rsm";
/// The most bytes of one answer, but for a single larger item: it must fit the mailbox of who asks.
const BYTES_MAX: usize = 256 * 1024;
/// Items that are read from the store at a time.
const SLICE: usize = 32;

/// Which items are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Of these ids (6.5.8).
    Ids(Vec<String>),
    /// The most recent ones (6.5.7).
    Recent(usize),
    Page(Page),
}

/// A page as XEP-0059 asks for it; the default: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub max: Option<usize>,
    pub after: Option<String>,
    /// An empty one stands for the end.
    pub before: Option<String>,
    /// Whether one was asked for.
    pub is_asked: bool,
}

impl Wanted {
    /// Reads `<items/>` and the `<set/>` beside it.
    pub fn read(items: &Element, set: Option<&Element>) -> Result<Wanted, StanzaError> {
        let namespace = items.ns();
        let named = items.children().filter(|child| child.is("item", namespace.as_str()));
        let ids: Vec<String> = named.filter_map(|item| item.attr("id")).map(str::to_owned).collect();
        if !ids.is_empty() {
            return Ok(Wanted::Ids(ids));
        }
        if let Some(max) = items.attr("max_items") {
            let max = max.parse::<u32>().map_err(|_| bad_request("`max_items` is a number"))?;
            return Ok(Wanted::Recent(max as usize));
        }
        set.map_or(Ok(Page::default()), Page::read).map(Wanted::Page)
    }
}

impl Page {
    pub fn read(set: &Element) -> Result<Page, StanzaError> {
        if set.has_child("index", RSM) {
            // XEP-0059, 2.4: pages are not found by their number here.
            return Err(StanzaError::new(Condition::FeatureNotImplemented));
        }
        let text = |name| set.get_child(name, RSM).map(|child| child.text().trim().to_owned());
        let max = text("max").map(|max| max.parse::<u32>()).transpose();
        let max = max.map_err(|_| bad_request("`max` is a number"))?.map(|max| max as usize);
        let (after, before) = (text("after").filter(|after| !after.is_empty()), text("before"));
        Ok(Page { max, after, before, is_asked: true })
    }
}

/// Items in the order of their publication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub items: Vec<Item>,
    /// What is said of the page, where one was asked for or the answer is a part.
    pub set: Option<Set>,
}

/// XEP-0059, 2.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub first: Option<String>,
    pub last: Option<String>,
    pub count: u64,
}

impl Set {
    pub fn element(&self) -> Element {
        let mut set = element("set", RSM);
        for (name, id) in [("first", &self.first), ("last", &self.last)] {
            if let Some(id) = id {
                set = set.child(element(name, RSM).text_node(id));
            }
        }
        set.child(element("count", RSM).text_node(&self.count.to_string()))
    }
}

impl Service<'_> {
    /// The items of a node that are asked for (6.5). Who asks may read them.
    pub async fn items(&self, name: &str, node: &Node, wanted: &Wanted) -> Result<Listing, Failure> {
        if !node.config.persist {
            return Err(errors::unsupported("persistent-items").into());
        }
        match wanted {
            Wanted::Ids(ids) => self.named(name, node, ids).await,
            Wanted::Recent(max) => {
                let all = (Bound::Unbounded, Bound::Unbounded);
                let (mut items, whole) = self.found(name, node, all, *max, true).await?;
                items.reverse();
                let is_part = !whole && items.len() < *max;
                let set = is_part.then(|| set(node, &items));
                Ok(Listing { items, set })
            }
            Wanted::Page(page) => self.page(name, node, page).await,
        }
    }

    async fn named(&self, name: &str, node: &Node, ids: &[String]) -> Result<Listing, Failure> {
        if ids.len() > self.items_max() {
            return Err(bad_request("more ids than a node has items").into());
        }
        let mut items = Vec::new();
        let mut bytes = 0;
        for id in ids {
            let found = self.find(name, id).await?;
            // 6.5.9.11 leaves open what is said of an item that is not there: what is there is told.
            let Some((_, item)) = found.filter(|(_, item)| !self.is_over(node, item)) else { continue };
            bytes += item.xml.len();
            if bytes > BYTES_MAX && !items.is_empty() {
                let set = Some(set(node, &items));
                return Ok(Listing { items, set });
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err(errors::not_found().into());
        }
        Ok(Listing { items, set: None })
    }

    async fn page(&self, name: &str, node: &Node, page: &Page) -> Result<Listing, Failure> {
        let mut span = (Bound::Unbounded, Bound::Unbounded);
        if let Some(after) = &page.after {
            span.0 = Bound::Excluded(self.place(name, after).await?);
        }
        let before = page.before.as_ref().filter(|before| !before.is_empty());
        if let Some(before) = before {
            span.1 = Bound::Excluded(self.place(name, before).await?);
        }
        let max = page.max.unwrap_or(usize::MAX);
        let backwards = page.before.is_some();
        let (mut items, whole) = self.found(name, node, span, max, backwards).await?;
        if backwards {
            items.reverse();
        }
        let set = (page.is_asked || !whole).then(|| set(node, &items));
        Ok(Listing { items, set })
    }

    async fn place(&self, name: &str, id: &str) -> Result<u64, Failure> {
        Ok(self.find(name, id).await?.ok_or_else(errors::not_found)?.0)
    }

    /// Items of a span, from its beginning or from its end, and whether they are all of it.
    async fn found(
        &self,
        name: &str,
        node: &Node,
        mut span: (Bound<u64>, Bound<u64>),
        max: usize,
        backwards: bool,
    ) -> Result<(Vec<Item>, bool), Failure> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        if node.items == 0 {
            return Ok((items, true));
        }
        let all = all_of(name);
        loop {
            let key = |at: &u64| item_key(name, *at);
            let from = match &span.0 {
                Bound::Unbounded => all.from.clone(),
                bound => bound.as_ref().map(key),
            };
            let to = match &span.1 {
                Bound::Unbounded => all.to.clone(),
                bound => bound.as_ref().map(key),
            };
            let range = Range { from, to, ..Range::all() }.limit(SLICE);
            if range.is_empty() {
                return Ok((items, true));
            }
            let range = if backwards { range.reversed() } else { range };
            let read = self.store.scan::<Item>(&self.partition, range).await?;
            let ended = read.len() < SLICE;
            for (key, item) in read {
                let Some(at) = place_of(&key) else { continue };
                match backwards {
                    true => span.1 = Bound::Excluded(at),
                    false => span.0 = Bound::Excluded(at),
                }
                if self.is_over(node, &item) {
                    continue;
                }
                bytes += item.xml.len();
                if items.len() >= max || (bytes > BYTES_MAX && !items.is_empty()) {
                    return Ok((items, false));
                }
                items.push(item);
            }
            if ended {
                return Ok((items, true));
            }
        }
    }

    /// The ids of a node's items, for discovery (5.5).
    pub async fn ids(&self, name: &str, node: &Node) -> Result<Vec<String>, Failure> {
        if node.items == 0 {
            return Ok(Vec::new());
        }
        if node.config.item_expire_s.is_none() {
            let places = self.store.scan::<Place>(&self.partition, all_of(name)).await?;
            let mut places: Vec<(u64, String)> = places
                .into_iter()
                .filter_map(|(key, place)| Some((place.at, below(&key)?.to_owned())))
                .collect();
            places.sort_unstable();
            return Ok(places.into_iter().map(|(_, id)| id).collect());
        }
        let all = self.store.scan::<Item>(&self.partition, all_of(name)).await?;
        let left = all.into_iter().filter(|(_, item)| !self.is_over(node, item));
        Ok(left.map(|(_, item)| item.id).collect())
    }
}

fn set(node: &Node, items: &[Item]) -> Set {
    let id = |item: Option<&Item>| item.map(|item| item.id.clone());
    Set { first: id(items.first()), last: id(items.last()), count: node.items }
}

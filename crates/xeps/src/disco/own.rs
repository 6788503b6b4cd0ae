//! What a host says of itself: made and hashed once (XEP-0115, XEP-0390), so that its answers and its stream features agree.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hooks::{Card, Services};
use minidom::{Element, rxml::Namespace};
use parking_lot::Mutex;
use stanza::{dom, ns};

use super::{Extends, INFO, features};
use crate::pep::caps::Announcement;
use crate::xml::{Build, element};

/// A URI that stands for this program in hashes of the first version (XEP-0115, 4).
const SOFTWARE: &str = "urn:uuid:6b1c4a53-8a0e-4d0b-9d3c-2f6a1e7c90d4";

/// What one host says, and what stands for it.
pub(super) struct Said {
    /// The modules that were on for it.
    modules: Vec<&'static str>,
    /// The answer to disco#info.
    pub query: Element,
    /// The same as bytes, which nearly everybody gets.
    pub written: Bytes,
    announced: Announcement,
}

impl Said {
    /// The stream features (XEP-0115, 6.3; XEP-0390, 5.4).
    pub fn features(&self) -> &[Element] {
        &self.announced.elements
    }

    /// Whether the node stands for this answer.
    pub fn is_at(&self, node: &str) -> bool {
        self.announced.nodes.iter().any(|own| own == node)
    }
}

/// What the hosts of this server say; made again for a host where other modules are on for it than before.
#[derive(Default)]
pub(super) struct Own {
    contacts: Option<Element>,
    forms: Vec<Arc<dyn Extends>>,
    // No more entries than hosts: of others nobody asks.
    said: Mutex<HashMap<String, Arc<Said>>>,
}

impl Own {
    pub fn new(contacts: Option<Element>, forms: Vec<Arc<dyn Extends>>) -> Own {
        Own { contacts, forms, said: Mutex::default() }
    }

    /// What a host says now.
    pub fn of(&self, services: &dyn Services, host: &str) -> Arc<Said> {
        let cards = services.cards(host);
        let is_same = |said: &Said| cards.iter().map(|card| card.name).eq(said.modules.iter().copied());
        if let Some(said) = self.said.lock().get(host)
            && is_same(said)
        {
            return said.clone();
        }
        let said = Arc::new(self.make(services.about().name, &cards));
        if services.is_local_host(host) {
            self.said.lock().insert(host.to_owned(), said.clone());
        }
        said
    }

    fn make(&self, name: &str, cards: &[Card]) -> Said {
        let mut identity = element("identity", INFO).with("category", "server").with("type", "im");
        // Where it is not said, some take the language of the stream for it, and have another hash.
        if let Some(lang) = dom::attribute_name("lang") {
            identity.set_attr(Namespace::XML, lang, "en");
        }
        let query = element("query", INFO).child(identity.with("name", name));
        let query = features(query, cards.iter().flat_map(|card| card.host_features));
        let modules: Vec<&str> = cards.iter().map(|card| card.name).collect();
        let forms = self.forms.iter().filter(|form| modules.contains(&form.module()));
        let forms = self.contacts.iter().cloned().chain(forms.map(|form| form.form()));
        let query = forms.fold(query, Element::child);
        let announced = Announcement::of(&query, SOFTWARE);
        let mut written = BytesMut::new();
        dom::write(&query, ns::CLIENT, &mut written);
        Said { modules, query, written: written.freeze(), announced }
    }
}

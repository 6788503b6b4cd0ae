//! [XEP-0092]: Software Version. Says what this server is.

use std::sync::Arc;

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Status, Xep};
use stanza::{Condition, IqType, StanzaError};

use crate::xml::{Build, element};

const NS: &str = "jabber:iq:version";

crate::settings! {
    /// `[modules.version]`
    pub struct Config {
        /// Whether the version number is told, not only the name.
        show_version: bool = true,
    }
}

/// Answers version requests to a host.
#[derive(Default)]
pub struct Version {
    config: Config,
}

impl Version {
    pub fn new(config: Config) -> Version {
        Version { config }
    }
}

impl Module for Version {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep { number: 92, title: "Software Version", version: "1.1", status: Status::Stable }],
            host_features: &[NS],
            ..Card::new("version", "Says the name and the version of the server.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self);
    }
}

impl Answering for Version {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if passage.stanza.iq_type() != Ok(IqType::Get) || !passage.stanza.has_child("query", NS) {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::BadRequest)));
        }
        let about = passage.services.about();
        // XEP-0092, section 2: name and version are required; the operating system is nobody's business.
        let version = if self.config.show_version { about.version } else { "" };
        let query = element("query", NS)
            .child(element("name", NS).text_node(about.name))
            .child(element("version", NS).text_node(version));
        Answer::Now(Reply::with(query))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    #[test]
    fn the_server_says_its_name_and_version() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Version::default())]);
            let alice = bench.login("alice@localhost/phone").await;
            alice.send("<iq type='get' id='1' to='localhost'><query xmlns='jabber:iq:version'/></iq>").await;
            assert_eq!(
                alice.hears(),
                ["<iq to='alice@localhost/phone' from='localhost' id='1' type='result'>\
                  <query xmlns='jabber:iq:version'><name>Rookery</name><version>0.0.0</version></query></iq>"]
            );
        });
    }

    #[test]
    fn a_request_to_set_the_version_is_refused() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Version::default())]);
            let alice = bench.login("alice@localhost/phone").await;
            alice.send("<iq type='set' id='1' to='localhost'><query xmlns='jabber:iq:version'/></iq>").await;
            assert_eq!(alice.hears_stanzas()[0].as_error().unwrap().condition, Condition::BadRequest);
        });
    }
}

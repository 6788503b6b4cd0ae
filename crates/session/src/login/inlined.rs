//! What a client has done with its login (XEP-0388): a resource bound, and features enabled for its session.

use cluster::ConflictPolicy;
use jid::{BareJid, FullJid, Jid, ResourcePart};
use minidom::Element;
use stanza::StanzaError;
use stream::Acts;
use stream::management::{self, Said};

use super::{Entered, Login};

impl Login<'_> {
    /// The stream goes on, as that of somebody who is known; or ends, where this node drains.
    pub(super) fn admitted(&mut self) -> Acts {
        let world = &self.connection.world;
        self.reader.set_limits(world.config.limits.after_auth());
        let account = self.negotiation.account().map(|account| account.as_str().to_owned());
        // As at the header that does not come here.
        match account.and_then(|account| world.turns_away(&account, self.door)) {
            Some(error) => self.negotiation.end(error),
            None => self.negotiation.on_admitted(),
        }
    }

    /// Binds a resource of the server's making (XEP-0386, 3.2): its address, and what is said of what was enabled.
    pub(super) async fn bind_inline(
        &mut self,
        account: &BareJid,
        resource: ResourcePart,
        client: Option<&str>,
        asked: &[Element],
    ) -> Result<(FullJid, Vec<Element>), StanzaError> {
        // Who has the address is this client before: it has no other way to say that it comes anew.
        let jid = self.bind(account, &resource, ConflictPolicy::Replace).await?;
        let Some(Entered::Bound(view, _)) = &self.bound else { return Ok((jid, Vec::new())) };
        let world = &self.connection.world;
        let mut said = Vec::new();
        let enable = asked.iter().find(|asked| asked.is("enable", management::NS));
        if let Some(Ok(Said::Enable { resume, max_s })) = enable.map(Said::read) {
            let (managed, answer) = self.connection.enable(view, resume, max_s);
            *self.connection.management.borrow_mut() = managed;
            said.push(answer);
        }
        said.extend(world.registry.bind(view, asked, &world.services).await);
        if let Some(client) = client {
            self.end_earlier(account, client, &jid).await;
        }
        Ok((jid, said))
    }

    /// XEP-0386, 3.2: earlier sessions of the same client end. That of the same tag has been replaced.
    async fn end_earlier(&self, account: &BareJid, client: &str, but: &FullJid) {
        let services = &self.connection.world.services;
        for other in services.online(account) {
            let resource = other.jid.resource().as_str();
            let is_its = resource.rsplit('/').next() == Some(client);
            if is_its && other.jid != *but {
                let other = Jid::from(other.jid);
                if let Err(error) = services.end_sessions(&other).await {
                    // It ends by itself when its client does not answer.
                    tracing::warn!(session = %other, %error, "failed to end an earlier session of a client");
                }
            }
        }
    }
}

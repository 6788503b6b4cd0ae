//! [XEP-0033]: Extended Stanza Addressing. A client sends one stanza to its host, which sends it to many.
//!
//! Each receiver gets it as if its sender had sent it to them alone: blocked as that would be, archived and kept as that
//! would be. Left out: addresses that are no JIDs (`uri`), which is optional; batches for other servers, which get a
//! stanza for each address; service by a name of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hooks::{Answer, Card, Hooks, How, Leaving, Module, Passage, SessionView, Status, Step, Verdict, Xep};
use jid::Jid;
use minidom::Element;
use parking_lot::Mutex;
use stanza::{Condition, ErrorKind, Kind, MessageType, PresenceType, Stanza, StanzaError, address};

use crate::blocking::is_blocked;
use crate::blocklists::Blocklists;
use crate::failure::{bad_request, store_failed};
use crate::privacy::outbound;
use crate::privacylists::PrivacyLists;
use crate::rosters::Rosters;
use crate::xml::Build;

const NAME: &str = "multicast";
const NS: &str = "http://jabber.org/protocol/address";
/// The window in which `addresses_per_minute` counts.
const MINUTE: Duration = Duration::from_secs(60);

crate::settings! {
    /// `[modules.multicast]`
    pub struct Config {
        /// The most addresses of one stanza, at most 1000; one with more is refused with `not-acceptable` and goes to nobody.
        addresses_max: usize = 50,
        /// The most addresses that one session may send to in this way in a minute; at the bound a stanza is refused with `resource-constraint`.
        addresses_per_minute: usize = 1_000,
    }
}

/// Sends to many what a client sends once.
pub struct Multicast {
    config: Config,
    blocklists: Arc<Blocklists>,
    privacy: Arc<PrivacyLists>,
    rosters: Arc<Rosters>,
    directed_max: usize,
}

impl Multicast {
    /// `directed_max`: how many receivers of directed presence a session may have.
    pub fn new(
        config: Config,
        blocklists: Arc<Blocklists>,
        privacy: Arc<PrivacyLists>,
        rosters: Arc<Rosters>,
        directed_max: usize,
    ) -> Multicast {
        Multicast { config, blocklists, privacy, rosters, directed_max }
    }
}

impl Module for Multicast {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 33,
                title: "Extended Stanza Addressing",
                version: "1.2.1",
                status: Status::Stable,
            }],
            host_features: &[NS],
            ..Card::new(NAME, "Sends a stanza of a client to all whom it names.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        // Behind what records: a message is in its sender's archive once.
        hooks.leaving(Step::Copy, self);
    }
}

/// What one address of a header is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// `to` and `cc`: everybody sees it.
    Open,
    /// `bcc`: its receiver alone sees it.
    Blind,
    /// Whatever is not sent to.
    Aside,
}

/// The addresses that a stanza is to be sent to, each once, and whether they are blind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Receivers {
    open: Vec<Jid>,
    blind: Vec<Jid>,
}

impl Receivers {
    fn len(&self) -> usize {
        self.open.len() + self.blind.len()
    }

    /// Takes out those that `is_wanted` names.
    fn take_if(&mut self, is_wanted: impl Fn(&Jid) -> bool) -> Vec<Jid> {
        let open = self.open.extract_if(.., |to| is_wanted(to));
        let mut taken: Vec<Jid> = open.collect();
        taken.extend(self.blind.extract_if(.., |to| is_wanted(to)));
        taken
    }
}

fn part(address: &Element) -> Result<Part, StanzaError> {
    match address.attr("type") {
        // Section 4.5: never twice.
        Some("to" | "cc" | "bcc") if address.attr("delivered") == Some("true") => Ok(Part::Aside),
        Some("to" | "cc") => Ok(Part::Open),
        Some("bcc") => Ok(Part::Blind),
        Some("replyto" | "replyroom" | "noreply" | "ofrom") => Ok(Part::Aside),
        _ => {
            Err(bad_request("an address is `to`, `cc`, `bcc`, `replyto`, `replyroom`, `noreply` or `ofrom`"))
        }
    }
}

fn jid(address: &Element) -> Result<Jid, StanzaError> {
    match (address.attr("jid"), address.attr("uri")) {
        (Some(jid), None) => address::jid(jid).map_err(|_| StanzaError::new(Condition::JidMalformed)),
        // Sections 4.2 and 8.
        (None, Some(_)) => Err(StanzaError::new(Condition::JidMalformed).with_text("no `uri` is known here")),
        _ => Err(bad_request("an address that is sent to has a `jid`")),
    }
}

fn receivers(header: &Element, most: usize) -> Result<Receivers, StanzaError> {
    let addresses: Vec<&Element> = header.children().filter(|child| child.is("address", NS)).collect();
    if addresses.len() > most {
        let text = format!("no more than {most} addresses");
        return Err(StanzaError::new(Condition::NotAcceptable).with_text(text));
    }
    let mut receivers = Receivers::default();
    let mut seen = HashSet::new();
    for address in addresses {
        let part = part(address)?;
        if part == Part::Aside {
            continue;
        }
        let jid = jid(address)?;
        if !seen.insert(jid.clone()) {
            continue;
        }
        match part {
            Part::Blind => receivers.blind.push(jid),
            _ => receivers.open.push(jid),
        }
    }
    if receivers.len() == 0 {
        return Err(bad_request("nobody to send this to"));
    }
    Ok(receivers)
}

/// The header as it is shown: without blind addresses but one, and with what was done (section 4.5).
fn shown(header: &Element, blind: Option<&Jid>) -> Element {
    let mut shown = Element::bare("addresses", NS);
    for address in header.children().filter(|child| child.is("address", NS)) {
        match part(address) {
            Ok(Part::Open) => shown.append_child(address.clone().with("delivered", "true")),
            Ok(Part::Blind) if blind.is_none() || jid(address).ok().as_ref() != blind => continue,
            Ok(Part::Aside) if address.attr("type") == Some("bcc") => continue,
            _ => shown.append_child(address.clone()),
        };
    }
    shown
}

/// A copy with the header as it is shown, in the place of the one that was sent.
fn copy(stanza: &Stanza, header: &Element, blind: Option<&Jid>) -> Stanza {
    let mut copy = stanza.clone();
    copy.remove_children(|child| child.is("addresses", NS));
    let shown = shown(header, blind);
    if shown.children().next().is_some() { copy.with_child(&shown) } else { copy }
}

/// How many addresses a session has sent to lately, kept in its notes.
#[derive(Default)]
struct Sent(Mutex<(Duration, usize)>);

impl Sent {
    /// Counts them, if there is room in this minute.
    fn may(&self, addresses: usize, now: Duration, most: usize) -> bool {
        let mut sent = self.0.lock();
        // A clock that was set back begins a minute too.
        if now.checked_sub(sent.0).is_none_or(|passed| passed >= MINUTE) {
            *sent = (now, 0);
        }
        let fits = sent.1 + addresses <= most;
        if fits {
            sent.1 += addresses;
        }
        fits
    }
}

impl Leaving for Multicast {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        let Some(session) = passage.sender.clone() else { return Answer::PASS };
        let is_host = passage.stanza.head.to.as_ref().is_some_and(|to| {
            to.node().is_none() && to.resource().is_none() && to.domain() == session.account().domain()
        });
        if !is_host || !may_go_to_many(&passage.stanza) {
            return Answer::PASS;
        }
        let Some(header) = passage.stanza.child("addresses", NS).cloned() else { return Answer::PASS };
        if session.is_anonymous() {
            // Section 2.2.
            return Answer::refuse(StanzaError::new(Condition::Forbidden));
        }
        Answer::later(async move {
            match self.send(passage, &session, &header).await {
                Ok(()) => Verdict::Stop,
                Err(error) => Verdict::refuse(error),
            }
        })
    }
}

/// Errors answer somebody, and what changes subscriptions is between two.
fn may_go_to_many(stanza: &Stanza) -> bool {
    match stanza.head.kind {
        Kind::Message => stanza.message_type() != MessageType::Error,
        Kind::Presence => {
            matches!(stanza.presence_type(), Ok(PresenceType::Available | PresenceType::Unavailable))
        }
        // Section 3.
        Kind::Iq => false,
    }
}

impl Multicast {
    /// Takes off to whom the sender's privacy list lets nothing go, and answers for them (XEP-0016, 2.14).
    async fn keep_private(
        &self,
        passage: &Passage,
        session: &SessionView,
        receivers: &mut Receivers,
    ) -> Result<(), StanzaError> {
        let (stanza, services, account) = (&passage.stanza, &*passage.services, session.account());
        let privacy = self.privacy.of(services, account).await;
        let privacy = privacy.map_err(|error| store_failed(NAME, &error))?;
        if privacy.is_idle() {
            return Ok(());
        }
        let roster = self.rosters.of(services, account).await;
        let roster = roster.map_err(|error| store_failed(NAME, &error))?;
        let resource = Some(session.jid().resource().as_str());
        let denied = StanzaError::new(Condition::NotAcceptable).with_kind(ErrorKind::Cancel);
        let flow = outbound(stanza);
        for to in receivers.take_if(|to| privacy.denies(resource, flow, account, to, &roster)) {
            if let Some(error) = stanza.clone().with_to(to).error(&denied) {
                services.route(error, How::Direct).await;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        passage: &Passage,
        session: &SessionView,
        header: &Element,
    ) -> Result<(), StanzaError> {
        let (stanza, services) = (&passage.stanza, &*passage.services);
        let mut receivers = receivers(header, self.config.addresses_max.min(1_000))?;
        let now = services.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let sent = session.notes().get_or_put(Sent::default);
        if !sent.may(receivers.len(), now, self.config.addresses_per_minute) {
            let error = StanzaError::new(Condition::ResourceConstraint).with_kind(ErrorKind::Wait);
            return Err(error.with_text("too many addresses within a minute"));
        }
        let list = self.blocklists.of(services, session.account()).await;
        let list = list.map_err(|error| store_failed(NAME, &error))?;
        for to in receivers.take_if(|to| list.blocks(session.account(), to)) {
            // XEP-0191, 3.3: as if it had been sent to them alone.
            if let Some(error) = stanza.clone().with_to(to).error(&is_blocked()) {
                services.route(error, How::Direct).await;
            }
        }
        self.keep_private(passage, session, &mut receivers).await?;
        if stanza.head.kind == Kind::Presence {
            // Section 5.1: whoever was told that somebody is there is told that they go.
            let is_end = stanza.head.type_.is_some();
            for to in receivers.open.iter().chain(&receivers.blind) {
                if is_end {
                    session.undirect(to);
                } else if session.direct_to(to.clone(), self.directed_max).is_err() {
                    return Err(StanzaError::new(Condition::ResourceConstraint));
                }
            }
        }
        let open = copy(stanza, header, None);
        if stanza.head.kind == Kind::Presence {
            services.fan_out(open, receivers.open).await;
        } else {
            for to in receivers.open {
                // A message that is archived or kept is so before its sender hears that it is handled.
                services.pass_on(passage, open.clone().with_to(to)).await;
            }
        }
        for to in receivers.blind {
            services.pass_on(passage, copy(stanza, header, Some(&to)).with_to(to)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};

    use super::*;
    use crate::index::{ModulesConfig, modules};

    fn bench(config: Config) -> Bench {
        let config = ModulesConfig { multicast: config, ..ModulesConfig::default() };
        Bench::cluster(2, &["localhost"], move || modules(&config))
    }

    async fn send(client: &Client, head: &str, addresses: &str, rest: &str) {
        let header = format!("<addresses xmlns='http://jabber.org/protocol/address'>{addresses}</addresses>");
        client
            .send(&format!(
                "<{head} to='localhost' id='1'>{header}{rest}</{}>",
                head.split(' ').next().unwrap()
            ))
            .await;
    }

    /// Who is told of in the header of what the client heard, each with its type and whether it was delivered.
    fn header(client: &Client) -> Vec<String> {
        let heard = client.hears_stanzas();
        assert_eq!(heard.len(), 1, "{heard:?}");
        let Some(header) = heard[0].child("addresses", NS) else { return Vec::new() };
        let line = |address: &Element| {
            let (kind, jid) =
                (address.attr("type").unwrap_or_default(), address.attr("jid").unwrap_or_default());
            format!("{kind} {jid}{}", if address.attr("delivered").is_some() { " delivered" } else { "" })
        };
        header.children().map(line).collect()
    }

    fn condition(client: &Client) -> Option<Condition> {
        client.hears_stanzas().iter().find_map(|stanza| Some(stanza.as_error()?.condition))
    }

    #[test]
    fn a_message_reaches_all_and_a_blind_receiver_is_seen_by_itself_alone() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online_at(1, "bob@localhost/phone").await;
            let carol = bench.online("carol@localhost/phone").await;
            let dora = bench.online_at(1, "dora@localhost/phone").await;
            let addresses = "<address type='to' jid='bob@localhost' desc='Bob'/>\
                             <address type='cc' jid='carol@localhost/phone'/>\
                             <address type='bcc' jid='dora@localhost'/>\
                             <address type='to' jid='bob@localhost'/>\
                             <address type='to' jid='eve@localhost' delivered='true'/>\
                             <address type='replyto' jid='alice@localhost'/>";
            send(&alice, "message type='chat'", addresses, "<body>hi</body>").await;
            let open = ["to bob@localhost delivered", "cc carol@localhost/phone delivered"];
            let rest =
                ["to bob@localhost delivered", "to eve@localhost delivered", "replyto alice@localhost"];
            assert_eq!(header(&bob), [&open[..], &rest].concat());
            assert_eq!(header(&carol), [&open[..], &rest].concat());
            assert_eq!(header(&dora), [&open[..], &["bcc dora@localhost"], &rest].concat());
            assert!(alice.hears().is_empty());
        });
    }

    #[test]
    fn who_is_away_gets_it_later() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.online("alice@localhost/phone").await;
            bench.account("bob@localhost");
            let addresses = "<address type='to' jid='bob@localhost'/>";
            send(&alice, "message type='chat'", addresses, "<body>hi</body>").await;
            assert!(alice.hears().is_empty());
            let bob = bench.login("bob@localhost/phone").await;
            bob.send("<presence/>").await;
            assert!(bob.hears().iter().any(|heard| heard.contains("<body>hi</body>")));
        });
    }

    #[test]
    fn presence_ends_where_it_went() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online_at(1, "bob@localhost/phone").await;
            send(&alice, "presence", "<address type='bcc' jid='bob@localhost/phone'/>", "<show>away</show>")
                .await;
            assert_eq!(header(&bob), ["bcc bob@localhost/phone"]);
            alice.close().await;
            let heard = bob.hears();
            assert!(heard.len() == 1 && heard[0].contains("type='unavailable'"), "{heard:?}");
        });
    }

    #[test]
    fn nothing_goes_to_whom_the_sender_blocks() {
        block_on(async {
            let bench = bench(Config::default());
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online("bob@localhost/phone").await;
            let carol = bench.online("carol@localhost/phone").await;
            alice
                .send("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='bob@localhost'/></block></iq>")
                .await;
            alice.hears();
            let addresses =
                "<address type='to' jid='bob@localhost'/><address type='bcc' jid='carol@localhost'/>";
            send(&alice, "message type='chat'", addresses, "<body>hi</body>").await;
            assert!(bob.hears().is_empty());
            assert_eq!(carol.hears().len(), 1);
            let heard = alice.hears();
            assert!(
                heard[0].contains("from='bob@localhost'") && heard[0].contains("<not-acceptable"),
                "{heard:?}"
            );
        });
    }

    #[test]
    fn what_cannot_be_sent_goes_to_nobody() {
        block_on(async {
            let bench = bench(Config { addresses_max: 2, ..Config::default() });
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online("bob@localhost/phone").await;
            let good = "<address type='to' jid='bob@localhost'/>";
            for (other, expected) in [
                (format!("{good}{good}"), Condition::NotAcceptable),
                ("<address type='to' uri='sip:bob@localhost'/>".to_owned(), Condition::JidMalformed),
                ("<address type='to' jid='@'/>".to_owned(), Condition::JidMalformed),
                ("<address type='to' jid='a@b' uri='x:y'/>".to_owned(), Condition::BadRequest),
                ("<address type='to' desc='x'/>".to_owned(), Condition::BadRequest),
                ("<address type='x' jid='a@b'/>".to_owned(), Condition::BadRequest),
                ("<address jid='a@b'/>".to_owned(), Condition::BadRequest),
            ] {
                send(&alice, "message type='chat'", &format!("{good}{other}"), "<body>hi</body>").await;
                assert_eq!(condition(&alice), Some(expected), "{other}");
            }
            for nobody in ["", "<address type='noreply'/>", "<address type='to' jid='a@b' delivered='true'/>"]
            {
                send(&alice, "message", nobody, "").await;
                assert_eq!(condition(&alice), Some(Condition::BadRequest), "{nobody}");
            }
            assert!(bob.hears().is_empty());
            // Without a header a message to the host is what it is.
            alice.send("<message to='localhost'><body>hi</body></message>").await;
            assert!(bob.hears().is_empty());
        });
    }

    #[test]
    fn there_is_a_bound_within_a_minute() {
        block_on(async {
            let bench = bench(Config { addresses_per_minute: 3, ..Config::default() });
            let alice = bench.online("alice@localhost/phone").await;
            let bob = bench.online("bob@localhost/phone").await;
            bench.account("carol@localhost");
            let two = "<address type='to' jid='bob@localhost'/><address type='to' jid='carol@localhost'/>";
            send(&alice, "message type='chat'", two, "<body>hi</body>").await;
            send(&alice, "message type='chat'", two, "<body>hi</body>").await;
            assert_eq!(condition(&alice), Some(Condition::ResourceConstraint));
            assert_eq!(bob.hears().len(), 1);
            bench.advance(MINUTE);
            send(&alice, "message type='chat'", two, "<body>hi</body>").await;
            assert_eq!(bob.hears().len(), 1);
        });
    }

    #[test]
    fn who_has_no_account_sends_to_one_at_a_time() {
        block_on(async {
            let bench = bench(Config::default());
            let nobody = bench.login_anonymously("x@localhost/phone").await;
            send(&nobody, "message", "<address type='to' jid='bob@localhost'/>", "").await;
            assert_eq!(condition(&nobody), Some(Condition::Forbidden));
        });
    }
}

//! The chains: which handler of which module runs when, made once from the list of modules.

use std::collections::HashMap;
use std::sync::Arc;

use jid::BareJid;
use minidom::Element;
use stanza::Stanza;

use crate::card::Card;
use crate::module::{
    Addressee, Answering, Arriving, Awaiting, Binding, Delivering, Following, Forgetting, Greeting, Holding,
    Leaving, Module, Moving, Offer, Offering, SessionEvent, Speaking, Stranger, Vouching,
};
use crate::passage::Passage;
use crate::services::Services;
use crate::session::SessionView;
use crate::verdict::{Reply, Verdict};

/// Where in a chain a handler stands; within a step, the order of the list of modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// May refuse.
    Guard,
    /// May change the stanza.
    Alter,
    /// Keeps something.
    Record,
    /// Sends copies or reactions.
    Copy,
}

/// On which hosts modules are on; a module that is not named is on everywhere.
#[derive(Debug, Clone, Default)]
pub struct Switches(HashMap<String, Vec<String>>);

impl Switches {
    /// Every module on every host.
    pub fn everywhere() -> Switches {
        Switches::default()
    }

    /// Switches `module` on for `hosts` only.
    pub fn only(mut self, module: &str, hosts: Vec<String>) -> Switches {
        self.0.insert(module.to_owned(), hosts);
        self
    }

    fn of(&self, module: &str) -> Option<Arc<[String]>> {
        self.0.get(module).map(|hosts| hosts.clone().into())
    }
}

/// Two modules claim the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    pub namespace: String,
    pub first: &'static str,
    pub second: &'static str,
}

impl std::fmt::Display for Clash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "modules `{}` and `{}` both claim `{}`", self.first, self.second, self.namespace)
    }
}

impl std::error::Error for Clash {}

/// A handler with the name of its module and the hosts on which it is on (`None`: all).
struct Plugged<H: ?Sized> {
    module: &'static str,
    hosts: Option<Arc<[String]>>,
    handler: Arc<H>,
}

impl<H: ?Sized> Plugged<H> {
    fn is_on(&self, host: Option<&str>) -> bool {
        match (&self.hosts, host) {
            (None, _) => true,
            (Some(hosts), Some(host)) => hosts.iter().any(|on| on == host),
            (Some(_), None) => false,
        }
    }
}

/// What a module plugs its handlers into.
#[derive(Default)]
pub struct Hooks {
    module: &'static str,
    hosts: Option<Arc<[String]>>,
    leaving: Vec<(Step, Plugged<dyn Leaving>)>,
    arriving: Vec<(Step, Plugged<dyn Arriving>)>,
    delivering: Vec<(Step, Plugged<dyn Delivering>)>,
    holding: Vec<Plugged<dyn Holding>>,
    awaiting: Vec<Plugged<dyn Awaiting>>,
    answering: HashMap<(Addressee, String), Plugged<dyn Answering>>,
    greeting: HashMap<String, Plugged<dyn Greeting>>,
    offering: Vec<Plugged<dyn Offering>>,
    speaking: HashMap<String, Plugged<dyn Speaking>>,
    binding: Vec<(Step, Plugged<dyn Binding>)>,
    vouching: Option<Plugged<dyn Vouching>>,
    following: Vec<Plugged<dyn Following>>,
    moving: Vec<Plugged<dyn Moving>>,
    forgetting: Vec<Plugged<dyn Forgetting>>,
    clash: Option<Clash>,
}

impl Hooks {
    pub fn leaving(&mut self, step: Step, handler: Arc<dyn Leaving>) {
        let plugged = self.plugged(handler);
        self.leaving.push((step, plugged));
    }

    pub fn arriving(&mut self, step: Step, handler: Arc<dyn Arriving>) {
        let plugged = self.plugged(handler);
        self.arriving.push((step, plugged));
    }

    pub fn delivering(&mut self, step: Step, handler: Arc<dyn Delivering>) {
        let plugged = self.plugged(handler);
        self.delivering.push((step, plugged));
    }

    pub fn holding(&mut self, handler: Arc<dyn Holding>) {
        let plugged = self.plugged(handler);
        self.holding.push(plugged);
    }

    pub fn awaiting(&mut self, handler: Arc<dyn Awaiting>) {
        let plugged = self.plugged(handler);
        self.awaiting.push(plugged);
    }

    /// Claims iqs to `addressee` whose payload is in `namespace`.
    pub fn answering(&mut self, addressee: Addressee, namespace: &str, handler: Arc<dyn Answering>) {
        let plugged = self.plugged(handler);
        let second = self.module;
        if let Some(first) = self.answering.insert((addressee, namespace.to_owned()), plugged) {
            self.clash.get_or_insert(Clash { namespace: namespace.to_owned(), first: first.module, second });
        }
    }

    /// Claims iqs on streams that nobody has logged in on, whose payload is in `namespace`.
    pub fn greeting(&mut self, namespace: &str, handler: Arc<dyn Greeting>) {
        let plugged = self.plugged(handler);
        let second = self.module;
        if let Some(first) = self.greeting.insert(namespace.to_owned(), plugged) {
            self.clash.get_or_insert(Clash { namespace: namespace.to_owned(), first: first.module, second });
        }
    }

    pub fn offering(&mut self, handler: Arc<dyn Offering>) {
        let plugged = self.plugged(handler);
        self.offering.push(plugged);
    }

    /// Claims stream elements in `namespace`.
    pub fn speaking(&mut self, namespace: &str, handler: Arc<dyn Speaking>) {
        let plugged = self.plugged(handler);
        let second = self.module;
        if let Some(first) = self.speaking.insert(namespace.to_owned(), plugged) {
            self.clash.get_or_insert(Clash { namespace: namespace.to_owned(), first: first.module, second });
        }
    }

    pub fn binding(&mut self, step: Step, handler: Arc<dyn Binding>) {
        let plugged = self.plugged(handler);
        self.binding.push((step, plugged));
    }

    /// Claims the tokens of clients.
    pub fn vouching(&mut self, handler: Arc<dyn Vouching>) {
        let plugged = self.plugged(handler);
        let second = self.module;
        if let Some(first) = self.vouching.replace(plugged) {
            self.clash.get_or_insert(Clash { namespace: "tokens".to_owned(), first: first.module, second });
        }
    }

    pub fn following(&mut self, handler: Arc<dyn Following>) {
        let plugged = self.plugged(handler);
        self.following.push(plugged);
    }

    pub fn moving(&mut self, handler: Arc<dyn Moving>) {
        let plugged = self.plugged(handler);
        self.moving.push(plugged);
    }

    pub fn forgetting(&mut self, handler: Arc<dyn Forgetting>) {
        let plugged = self.plugged(handler);
        self.forgetting.push(plugged);
    }

    fn plugged<H: ?Sized>(&self, handler: Arc<H>) -> Plugged<H> {
        Plugged { module: self.module, hosts: self.hosts.clone(), handler }
    }
}

/// Logs which module broke, when a panic passes through; the panic itself goes on to the caller.
struct Blame {
    module: &'static str,
    hook: &'static str,
}

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(module = self.module, hook = self.hook, "a handler panicked");
        }
    }
}

/// One line of the page of hooks: which module stands where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub hook: &'static str,
    /// A step, a namespace, or nothing.
    pub at: String,
    pub module: &'static str,
}

/// The handlers of all modules, in their order. Immutable: a new configuration is a new registry.
pub struct Registry {
    cards: Vec<(Card, Option<Arc<[String]>>)>,
    hooks: Hooks,
}

impl Registry {
    /// Plugs the modules in the order of the list.
    pub fn build(modules: Vec<Arc<dyn Module>>, switches: &Switches) -> Result<Registry, Clash> {
        let mut hooks = Hooks::default();
        let mut cards = Vec::with_capacity(modules.len());
        for module in modules {
            let card = module.card();
            hooks.module = card.name;
            hooks.hosts = switches.of(card.name);
            cards.push((card, hooks.hosts.clone()));
            module.plug(&mut hooks);
        }
        if let Some(clash) = hooks.clash.take() {
            return Err(clash);
        }
        // The sort is stable: within a step the list's order stays.
        hooks.leaving.sort_by_key(|(step, _)| *step);
        hooks.arriving.sort_by_key(|(step, _)| *step);
        hooks.delivering.sort_by_key(|(step, _)| *step);
        hooks.binding.sort_by_key(|(step, _)| *step);
        Ok(Registry { cards, hooks })
    }

    /// Runs the sender's side.
    pub async fn leaving(&self, passage: &mut Passage) -> Verdict {
        for (_, plugged) in &self.hooks.leaving {
            if !plugged.is_on(passage.host()) {
                continue;
            }
            let _blame = Blame { module: plugged.module, hook: "leaving" };
            match plugged.handler.leaving(passage).await {
                Verdict::Pass => {}
                verdict => return verdict,
            }
        }
        Verdict::Pass
    }

    /// Runs the receiver's side.
    pub async fn arriving(&self, passage: &mut Passage) -> Verdict {
        for (_, plugged) in &self.hooks.arriving {
            if !plugged.is_on(passage.host()) {
                continue;
            }
            let _blame = Blame { module: plugged.module, hook: "arriving" };
            match plugged.handler.arriving(passage).await {
                Verdict::Pass => {}
                verdict => return verdict,
            }
        }
        Verdict::Pass
    }

    /// Runs on the outbound half of one session; awaits nothing. A `Refuse` here means the same
    /// as `Stop`: the stanza is not written.
    pub fn delivering(&self, session: &SessionView, stanza: &mut Stanza) -> Verdict {
        let host = session.account().domain().as_str();
        for (_, plugged) in &self.hooks.delivering {
            if !plugged.is_on(Some(host)) {
                continue;
            }
            let _blame = Blame { module: plugged.module, hook: "delivering" };
            match plugged.handler.delivering(session, stanza) {
                Verdict::Pass => {}
                verdict => return verdict,
            }
        }
        Verdict::Pass
    }

    /// What a stanza is about that can wait until somebody looks at the client again; `None`: it cannot.
    pub fn holding(&self, session: &SessionView, stanza: &Stanza) -> Option<String> {
        let host = Some(session.account().domain().as_str());
        self.hooks.holding.iter().filter(|plugged| plugged.is_on(host)).find_map(|plugged| {
            let _blame = Blame { module: plugged.module, hook: "holding" };
            plugged.handler.holding(session, stanza)
        })
    }

    /// Shows what comes for a session that waits for its client; awaits nothing.
    pub fn awaiting(&self, session: &SessionView, stanza: &Stanza) {
        let host = Some(session.account().domain().as_str());
        for plugged in self.hooks.awaiting.iter().filter(|plugged| plugged.is_on(host)) {
            let _blame = Blame { module: plugged.module, hook: "awaiting" };
            plugged.handler.awaiting(session, stanza);
        }
    }

    /// Answers an iq of type get or set for a host or, where `passage.account` is set, for that
    /// account. `None`: nobody claimed its namespace.
    pub async fn answer(&self, passage: &mut Passage) -> Option<Reply> {
        let addressee = if passage.account.is_some() { Addressee::Account } else { Addressee::Host };
        let namespace = passage.stanza.payload()?.ns();
        let plugged = self.hooks.answering.get(&(addressee, namespace))?;
        if !plugged.is_on(passage.host()) {
            return None;
        }
        let _blame = Blame { module: plugged.module, hook: "answering" };
        Some(plugged.handler.answering(passage).await)
    }

    /// Answers an iq of type get or set on a stream that nobody has logged in on. `None`: nobody claimed its
    /// namespace there.
    pub async fn greet(
        &self,
        stranger: &Stranger,
        request: &Stanza,
        services: &Arc<dyn Services>,
    ) -> Option<Reply> {
        let plugged = self.hooks.greeting.get(&request.payload()?.ns())?;
        if !plugged.is_on(Some(&stranger.host)) {
            return None;
        }
        let _blame = Blame { module: plugged.module, hook: "greeting" };
        Some(plugged.handler.greeting(stranger, request, services).await)
    }

    /// Stream features of the modules, in the order of the list.
    pub fn offered(&self, offer: &Offer, services: &dyn Services) -> Vec<Element> {
        let on = self.hooks.offering.iter().filter(|plugged| plugged.is_on(Some(&offer.host)));
        on.flat_map(|plugged| {
            let _blame = Blame { module: plugged.module, hook: "offering" };
            plugged.handler.offering(offer, services)
        })
        .collect()
    }

    /// Hands a stream element to the module that claimed its namespace. `None`: nobody did.
    pub async fn speak(
        &self,
        session: &Arc<SessionView>,
        element: &Element,
        services: &Arc<dyn Services>,
    ) -> Option<Vec<Element>> {
        let plugged = self.hooks.speaking.get(&element.ns())?;
        if !plugged.is_on(Some(session.account().domain().as_str())) {
            return None;
        }
        let _blame = Blame { module: plugged.module, hook: "speaking" };
        Some(plugged.handler.speaking(session, element, services).await)
    }

    /// What clients may ask the modules to enable as they are bound as a part of the login, on a host.
    pub fn enabled_with_binding(&self, host: &str) -> Vec<&'static str> {
        let on = self.hooks.binding.iter().filter(|(_, plugged)| plugged.is_on(Some(host)));
        on.flat_map(|(_, plugged)| plugged.handler.enables()).copied().collect()
    }

    /// Lets every module have its part in such a binding, one after the other; what the client is told.
    pub async fn bind(
        &self,
        session: &Arc<SessionView>,
        asked: &[Element],
        services: &Arc<dyn Services>,
    ) -> Vec<Element> {
        let host = Some(session.account().domain().as_str());
        let mut told = Vec::new();
        for (_, plugged) in self.hooks.binding.iter().filter(|(_, plugged)| plugged.is_on(host)) {
            let _blame = Blame { module: plugged.module, hook: "binding" };
            told.extend(plugged.handler.binding(session, asked, services).await);
        }
        told
    }

    /// Who keeps the tokens of clients of a host.
    pub fn vouching(&self, host: &str) -> Option<&dyn Vouching> {
        let plugged = self.hooks.vouching.as_ref().filter(|plugged| plugged.is_on(Some(host)))?;
        Some(&*plugged.handler)
    }

    /// Tells every follower, one after the other.
    pub async fn follow(&self, event: &SessionEvent, services: &Arc<dyn Services>) {
        let host = event.account().domain().as_str();
        for plugged in self.hooks.following.iter().filter(|plugged| plugged.is_on(Some(host))) {
            let _blame = Blame { module: plugged.module, hook: "following" };
            plugged.handler.following(event, services).await;
        }
    }

    /// What the modules want to go along with a session to another node, by the name of the module.
    pub fn pack(&self, session: &SessionView) -> Vec<(&'static str, String)> {
        let host = Some(session.account().domain().as_str());
        let on = self.hooks.moving.iter().filter(|plugged| plugged.is_on(host));
        on.filter_map(|plugged| {
            let _blame = Blame { module: plugged.module, hook: "moving" };
            Some((plugged.module, plugged.handler.pack(session)?))
        })
        .collect()
    }

    /// Gives a module what came along with a session; nothing where it is not on here.
    pub fn unpack(&self, session: &SessionView, module: &str, packed: &str) {
        let host = Some(session.account().domain().as_str());
        let found = self.hooks.moving.iter().find(|plugged| plugged.module == module && plugged.is_on(host));
        if let Some(plugged) = found {
            let _blame = Blame { module: plugged.module, hook: "moving" };
            plugged.handler.unpack(session, packed);
        }
    }

    /// Tells every module that `account` is about to be removed.
    pub async fn forget(&self, account: &BareJid, services: &Arc<dyn Services>) {
        let host = account.domain().as_str();
        for plugged in self.hooks.forgetting.iter().filter(|plugged| plugged.is_on(Some(host))) {
            let _blame = Blame { module: plugged.module, hook: "forgetting" };
            plugged.handler.forgetting(account, services).await;
        }
    }

    /// Whether a module that is on for `host` implements this XEP.
    pub fn implements(&self, host: &str, number: u16) -> bool {
        self.cards(host).iter().any(|card| card.xeps.iter().any(|xep| xep.number == number))
    }

    /// The cards of the modules that are on for `host`, in the order of the list.
    pub fn cards(&self, host: &str) -> Vec<Card> {
        let on = |hosts: &Option<Arc<[String]>>| hosts.as_ref().is_none_or(|on| on.iter().any(|h| h == host));
        self.cards.iter().filter(|(_, hosts)| on(hosts)).map(|(card, _)| *card).collect()
    }

    /// Who stands where, in the order in which they run; for `docs/hooks.md`.
    pub fn places(&self) -> Vec<Place> {
        let hooks = &self.hooks;
        let mut places = Vec::new();
        let mut add = |hook, at: String, module| places.push(Place { hook, at, module });
        for (step, plugged) in &hooks.leaving {
            add("Leaving", format!("{step:?}"), plugged.module);
        }
        for (step, plugged) in &hooks.arriving {
            add("Arriving", format!("{step:?}"), plugged.module);
        }
        for (step, plugged) in &hooks.delivering {
            add("Delivering", format!("{step:?}"), plugged.module);
        }
        for plugged in &hooks.holding {
            add("Holding", String::new(), plugged.module);
        }
        for plugged in &hooks.awaiting {
            add("Awaiting", String::new(), plugged.module);
        }
        let mut claims: Vec<_> = hooks.answering.iter().collect();
        claims.sort_by_key(|((addressee, namespace), _)| (*addressee as u8, namespace.clone()));
        for ((addressee, namespace), plugged) in claims {
            add("Answering", format!("{addressee:?} `{namespace}`"), plugged.module);
        }
        let mut claims: Vec<_> = hooks.greeting.iter().collect();
        claims.sort_by_key(|(namespace, _)| namespace.to_string());
        for (namespace, plugged) in claims {
            add("Greeting", format!("`{namespace}`"), plugged.module);
        }
        for plugged in &hooks.offering {
            add("Offering", String::new(), plugged.module);
        }
        let mut claims: Vec<_> = hooks.speaking.iter().collect();
        claims.sort_by_key(|(namespace, _)| namespace.to_string());
        for (namespace, plugged) in claims {
            add("Speaking", format!("`{namespace}`"), plugged.module);
        }
        for (step, plugged) in &hooks.binding {
            add("Binding", format!("{step:?}"), plugged.module);
        }
        if let Some(plugged) = &hooks.vouching {
            add("Vouching", String::new(), plugged.module);
        }
        for plugged in &hooks.following {
            add("Following", String::new(), plugged.module);
        }
        for plugged in &hooks.moving {
            add("Moving", String::new(), plugged.module);
        }
        for plugged in &hooks.forgetting {
            add("Forgetting", String::new(), plugged.module);
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::executor::block_on;
    use parking_lot::Mutex;
    use stanza::{Condition, StanzaError};

    use super::*;
    use crate::bench::Bench;
    use crate::verdict::Answer;

    /// A module that stands at the leaving hook and writes down that it was asked.
    struct Stand {
        name: &'static str,
        step: Step,
        verdict: Verdict,
        later: bool,
        log: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Module for Stand {
        fn card(&self) -> Card {
            Card::new(self.name, "Stands there.")
        }

        fn plug(self: Arc<Self>, hooks: &mut Hooks) {
            hooks.leaving(self.step, self);
        }
    }

    impl Leaving for Stand {
        fn leaving<'a>(&'a self, _: &'a mut Passage) -> Answer<'a> {
            self.log.lock().push(self.name);
            match self.later {
                true => Answer::later(async { self.verdict.clone() }),
                false => Answer::Now(self.verdict.clone()),
            }
        }
    }

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn stand(name: &'static str, step: Step, verdict: Verdict, log: &Log) -> Arc<dyn Module> {
        Arc::new(Stand { name, step, verdict, later: name.len().is_multiple_of(2), log: log.clone() })
    }

    fn asked(modules: &[(&'static str, Step, Verdict)], switches: &Switches) -> (Vec<&'static str>, Verdict) {
        block_on(async {
            let log = Log::default();
            let list = modules.iter().map(|(name, step, verdict)| stand(name, *step, verdict.clone(), &log));
            let registry = Registry::build(list.collect(), switches).unwrap();
            let bench = Bench::new(&["localhost"], Vec::new);
            let stanza = crate::bench::parse("<message to='bob@localhost'/>");
            let account = BareJid::new("alice@localhost").unwrap();
            let mut passage = Passage::new(stanza, bench.services()).with_account(account);
            let verdict = registry.leaving(&mut passage).await;
            (std::mem::take(&mut *log.lock()), verdict)
        })
    }

    #[test]
    fn handlers_run_by_step_and_then_by_their_place_in_the_list() {
        let modules = [
            ("copy", Step::Copy, Verdict::Pass),
            ("first", Step::Guard, Verdict::Pass),
            ("keep", Step::Record, Verdict::Pass),
            ("second", Step::Guard, Verdict::Pass),
            ("alter", Step::Alter, Verdict::Pass),
        ];
        let (order, verdict) = asked(&modules, &Switches::everywhere());
        assert_eq!(order, ["first", "second", "alter", "keep", "copy"]);
        assert!(verdict.is_pass());
    }

    #[test]
    fn who_stops_or_refuses_is_the_last_to_be_asked() {
        let refusal = Verdict::refuse(StanzaError::new(Condition::Forbidden));
        let modules = [
            ("a", Step::Guard, Verdict::Pass),
            ("bb", Step::Guard, refusal),
            ("c", Step::Copy, Verdict::Pass),
        ];
        let (order, verdict) = asked(&modules, &Switches::everywhere());
        assert_eq!(order, ["a", "bb"]);
        assert!(matches!(verdict, Verdict::Refuse(error) if error.condition == Condition::Forbidden));
        let modules = [("a", Step::Guard, Verdict::Stop), ("b", Step::Guard, Verdict::Pass)];
        let (order, verdict) = asked(&modules, &Switches::everywhere());
        assert!(order == ["a"] && matches!(verdict, Verdict::Stop));
    }

    #[test]
    fn a_module_is_asked_on_its_hosts_only() {
        let modules = [("a", Step::Guard, Verdict::Pass), ("b", Step::Guard, Verdict::Pass)];
        let switches = Switches::everywhere().only("a", vec!["elsewhere".to_owned()]);
        assert_eq!(asked(&modules, &switches).0, ["b"]);
        let switches = Switches::everywhere().only("a", vec!["localhost".to_owned()]);
        assert_eq!(asked(&modules, &switches).0, ["a", "b"]);
    }

    struct Claim(&'static str);

    impl Module for Claim {
        fn card(&self) -> Card {
            Card::new(self.0, "Claims a namespace.")
        }

        fn plug(self: Arc<Self>, hooks: &mut Hooks) {
            hooks.answering(Addressee::Host, "urn:x", self);
        }
    }

    impl Answering for Claim {
        fn answering<'a>(&'a self, _: &'a mut Passage) -> Answer<'a, Reply> {
            Answer::Now(Reply::empty())
        }
    }

    #[test]
    fn two_modules_that_claim_one_namespace_fail_at_the_start() {
        let clash =
            Registry::build(vec![Arc::new(Claim("a")), Arc::new(Claim("b"))], &Switches::everywhere());
        let expected = Clash { namespace: "urn:x".to_owned(), first: "a", second: "b" };
        assert_eq!(clash.err(), Some(expected));
    }

    #[test]
    fn a_claim_for_hosts_does_not_answer_for_accounts() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Claim("a"))]);
            let alice = bench.login("alice@localhost/phone").await;
            alice.send("<iq type='get' id='1' to='localhost'><x xmlns='urn:x'/></iq>").await;
            alice.send("<iq type='get' id='2'><x xmlns='urn:x'/></iq>").await;
            alice.send("<iq type='get' id='3' to='localhost'><y xmlns='urn:y'/></iq>").await;
            let heard = alice.hears_stanzas();
            let conditions: Vec<_> =
                heard.iter().map(|s| s.as_error().map(|error| error.condition)).collect();
            let unavailable = Some(Condition::ServiceUnavailable);
            assert_eq!(conditions, [None, unavailable, unavailable]);
        });
    }

    #[test]
    fn an_answer_is_awaited_whether_it_is_there_or_comes_later() {
        static POLLS: AtomicUsize = AtomicUsize::new(0);
        let later = Answer::later(async {
            POLLS.fetch_add(1, Ordering::Relaxed);
            1
        });
        assert_eq!((block_on(async { Answer::Now(1).await }), POLLS.load(Ordering::Relaxed)), (1, 0));
        assert_eq!((block_on(async { later.await }), POLLS.load(Ordering::Relaxed)), (1, 1));
    }
}

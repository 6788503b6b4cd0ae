//! What every connection of the node shares: settings, the rest of the server, counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::admission::Admission;
use crate::claims::Claims;
use hooks::{Accounts, Offer, Registry, Services};
use jid::DomainPart;
use router::Router;
use stanza::StreamError;
use stream::management;
use stream::negotiation::{Inline, Settings};
use stream::sasl::MechanismName;
use tokio::sync::{OnceCell, watch};

use crate::config::Config;
use crate::counters::Counters;
use crate::failures::Failures;
use crate::files::Files;
use crate::gate::Gate;
use crate::listener::Door;
use crate::outcome;
use crate::outliving::EndedSessions;
use crate::passwords::Passwords;
use crate::secret;
use crate::table::Table;
use crate::tls::TlsStore;

/// One per node, shared by all arbiters.
pub(crate) struct World {
    pub config: Config,
    pub tls: Arc<TlsStore>,
    pub router: Arc<Router>,
    pub services: Arc<dyn Services>,
    pub registry: Arc<Registry>,
    pub claims: Arc<dyn Claims>,
    pub accounts: Accounts,
    pub passwords: Passwords,
    pub gate: Arc<Gate>,
    pub admission: Admission,
    pub files: Files,
    pub failures: Failures,
    pub counters: Arc<Counters>,
    pub table: Table,
    pub ended: EndedSessions,
    /// What all negotiations share; made when the store has told the secret.
    pub settings: OnceCell<Arc<Settings>>,
    /// Changes whenever it is worth a look whether this node serves.
    pub serving: watch::Receiver<bool>,
    /// The incarnation under which the sessions of this node are in the table.
    pub settled: AtomicU64,
    /// The incarnation under which they and their contacts were told of each other.
    pub told: AtomicU64,
    /// Whether listeners accept; false ends whoever is not bound yet.
    pub open: watch::Receiver<bool>,
    /// Whether this node drains: whoever comes is sent elsewhere.
    pub draining: AtomicBool,
    /// Whether it ends soon: what a session leaves undone then, the other nodes do.
    pub ending: AtomicBool,
}

/// The XEPs that say how a client may log in and be bound in one step.
const SASL2: u16 = 388;
const BIND2: u16 = 386;
const MANAGEMENT: u16 = 198;
const UPGRADES: u16 = 480;

/// How often a fenced connection looks at the lease itself, should a change have come too early to be seen.
const LOOK: Duration = Duration::from_millis(200);

impl World {
    /// Why a new client is not kept, if it is not; the same key leads to the same node.
    pub(crate) fn turns_away(&self, key: &str, door: Door) -> Option<StreamError> {
        self.draining.load(Ordering::Relaxed).then(|| outcome::away(self.elsewhere(key, door)))
    }

    /// Where a client goes that came by this door and may not stay.
    pub(crate) fn elsewhere(&self, key: &str, door: Door) -> Option<String> {
        self.claims.elsewhere(key, door == Door::DirectTls)
    }

    /// Whether this node ends soon.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Whether this node holds its lease, and its sessions are in the table under it.
    pub(crate) fn is_serving(&self) -> bool {
        // The incarnation as well: a lease may be back before anybody here has heard that one was lost.
        self.claims.is_serving() && self.settled.load(Ordering::Acquire) == self.claims.me().1.0
    }

    /// Waits while this node does not serve: nothing is delivered and nobody bound meanwhile.
    pub(crate) async fn serving(&self) {
        self.until(|| self.is_serving()).await;
    }

    /// Waits while nothing may be taken from clients: as above, and until those that were fenced and their
    /// contacts were told of each other, or later presence would be overtaken by that.
    pub(crate) async fn hearing(&self) {
        self.until(|| {
            self.is_serving() && self.told.load(Ordering::Acquire) == self.settled.load(Ordering::Acquire)
        })
        .await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        // The cluster has the first and the last word; the channel only shortens the wait.
        while !is_so() {
            let mut serving = self.serving.clone();
            let _ = tokio::time::timeout(LOOK, serving.changed()).await;
        }
    }

    /// What all negotiations share.
    pub(crate) async fn settings(&self) -> Arc<Settings> {
        let agreed = self.settings.get_or_try_init(|| async {
            let host = self.services.hosts().first().map_or("", String::as_str);
            let secret = secret::secret(self.services.store(), host, random_bytes()).await?;
            Ok::<_, hooks::StoreError>(self.settings_with(secret))
        });
        match agreed.await {
            Ok(settings) => settings.clone(),
            Err(error) => {
                // Nobody can log in without the store anyway; fake salts of this moment do no harm.
                tracing::warn!(%error, "failed to read the login secret");
                self.settings_with(random_bytes())
            }
        }
    }

    fn settings_with(&self, secret: Vec<u8>) -> Arc<Settings> {
        let prepare = |host: &String| {
            let prepared = DomainPart::new(host).map(|part| part.into_owned());
            prepared.inspect_err(|error| tracing::error!(host, %error, "not a host name")).ok()
        };
        let hosts = self.services.hosts().iter().filter_map(prepare);
        let services = self.services.clone();
        let random = Arc::new(move |buffer: &mut [u8]| services.random(buffer));
        let mut settings = Settings::new(hosts.collect(), secret, random);
        settings.tls_required = self.config.c2s.tls_required;
        settings.auth_failures_max = self.config.limits.auth_failures_per_stream;
        let mechanisms = self.config.auth.mechanisms.iter();
        settings.mechanisms = mechanisms.filter_map(|name| MechanismName::from_name(name)).collect();
        settings.anonymous_hosts = self.config.auth.anonymous_hosts.iter().filter_map(prepare).collect();
        let (registry, services) = (self.registry.clone(), self.services.clone());
        let stanza_bytes = self.config.limits.before_auth_stanza_bytes;
        settings.greetings = Arc::new(move |host, secure| {
            let host = host.as_str().to_owned();
            let offer = Offer { host, account: None, secure, stanza_bytes, idle_s: None };
            registry.offered(&offer, &*services)
        });
        let registry = self.registry.clone();
        settings.inlines = Arc::new(move |host| inline(&registry, host.as_str()));
        Arc::new(settings)
    }

    /// Waits until the node stops.
    pub(crate) async fn closing(&self) {
        let mut open = self.open.clone();
        // The sender lives as long as the listeners; without it the node stops as well.
        let _ = open.wait_for(|open| !open).await;
    }
}

/// What can be asked for beside a login at a host, as modules have it.
fn inline(registry: &Registry, host: &str) -> Option<Inline> {
    let has = |xep| registry.implements(host, xep);
    has(SASL2).then(|| Inline {
        bind: has(BIND2).then(|| {
            let management = has(MANAGEMENT).then_some(management::NS);
            registry.enabled_with_binding(host).into_iter().chain(management).collect()
        }),
        resume: has(MANAGEMENT),
        tokens: registry.vouching(host).is_some(),
        upgrades: has(UPGRADES),
    })
}

fn random_bytes() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    // The system's generator does not fail once it is seeded; zeros would only make fake salts guessable.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

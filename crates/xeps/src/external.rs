//! [XEP-0215]: External Service Discovery. Clients learn of STUN and TURN servers, with credentials that hold for a while.
//!
//! The credentials of a service with a `secret` are made as TURN servers check them that know the same secret (coturn's
//! `use-auth-secret`): the name says until when they hold, the password is an HMAC-SHA1 over the name. So nothing is kept,
//! and every node makes them. Left out: pushes of changes, as the list changes with the config alone.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Services, Status, Xep};
use minidom::Element;
use stanza::{Condition, IqType, StanzaError};
use toml_edit::Value;

use crate::failure::bad_request;
use crate::settings::Setting;
use crate::time::utc;
use crate::xml::{Build, element};

const NAME: &str = "external";
const NS: &str = "urn:xmpp:extdisco:2";
/// The most services that are listed.
const SERVICES_MAX: usize = 50;
/// The longest life of credentials.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Random bytes in the name of a credential, so that a service cannot tell whose calls belong together.
const NAME_BYTES: usize = 8;

crate::settings! {
    /// `[modules.external]`
    pub struct Config {
        /// The services, at most 50: each has a `type` such as `stun` or `turn`, a `host`, and where it has them `port`, `transport` (`udp` or `tcp`), `name`, and `secret` (shared with the service, for credentials that hold for a while) or `username` and `password`.
        services: ExternalServices = ExternalServices::default(),
        /// How many seconds credentials made with a `secret` hold, at most a year; a call that has begun goes on.
        credentials_s: usize = 86_400,
    }
}

/// The services that clients are told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExternalServices(Vec<ExternalService>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ExternalService {
    kind: String,
    host: String,
    port: Option<u16>,
    transport: Option<String>,
    name: Option<String>,
    access: Access,
}

/// How a client gets in.
#[derive(Clone, Default, PartialEq, Eq)]
enum Access {
    #[default]
    Open,
    /// With a name and a password for everybody.
    Fixed { username: String, password: String },
    /// With what is made for each client.
    Secret(String),
}

/// Shows none of its words: settings are logged.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Open => "Open",
            Access::Fixed { .. } => "Fixed",
            Access::Secret(_) => "Secret",
        })
    }
}

impl Setting for ExternalServices {
    const EXPECTED: &'static str = "a list of at most 50 services, as in [{ type = \"turn\", host = \"turn.example.org\", port = 3478, transport = \"udp\", secret = \"shared with it\" }]";

    fn read(value: &Value) -> Option<ExternalServices> {
        let services: Option<Vec<ExternalService>> = value.as_array()?.iter().map(service).collect();
        services.filter(|services| services.len() <= SERVICES_MAX).map(ExternalServices)
    }

    fn write(&self) -> String {
        let service = |service: &ExternalService| {
            let ExternalService { kind, host, port, transport, name, access } = service;
            let text = |key: &str, value: &str| Some(format!("{key} = {value:?}"));
            let (username, password, secret) = match access {
                Access::Open => (None, None, None),
                Access::Fixed { username, password } => (Some(username), Some(password), None),
                Access::Secret(secret) => (None, None, Some(secret)),
            };
            let keys = [
                text("type", kind),
                text("host", host),
                port.map(|port| format!("port = {port}")),
                transport.as_ref().and_then(|value| text("transport", value)),
                name.as_ref().and_then(|value| text("name", value)),
                username.and_then(|value| text("username", value)),
                password.and_then(|value| text("password", value)),
                secret.and_then(|value| text("secret", value)),
            ];
            format!("{{ {} }}", keys.into_iter().flatten().collect::<Vec<_>>().join(", "))
        };
        format!("[{}]", self.0.iter().map(service).collect::<Vec<_>>().join(", "))
    }
}

fn service(value: &Value) -> Option<ExternalService> {
    let mut service = ExternalService::default();
    let (mut username, mut password, mut secret) = (None, None, None);
    for (key, value) in value.as_inline_table()?.iter() {
        if key == "port" {
            service.port = Some(u16::try_from(value.as_integer()?).ok().filter(|port| *port > 0)?);
            continue;
        }
        let text = value.as_str().filter(|text| !text.is_empty())?.to_owned();
        match key {
            "type" => service.kind = text,
            "host" => service.host = text,
            "transport" => {
                service.transport = Some(text).filter(|text| ["udp", "tcp"].contains(&text.as_str()))
            }
            "name" => service.name = Some(text),
            "username" => username = Some(text),
            "password" => password = Some(text),
            "secret" => secret = Some(text),
            _ => return None,
        }
        if key == "transport" && service.transport.is_none() {
            return None;
        }
    }
    service.access = match (username, password, secret) {
        (None, None, None) => Access::Open,
        (Some(username), Some(password), None) => Access::Fixed { username, password },
        (None, None, Some(secret)) => Access::Secret(secret),
        _ => return None,
    };
    let is_word = !service.kind.is_empty()
        && service.kind.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    (is_word && is_host(&service.host)).then_some(service)
}

fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok() || stanza::address::host(host).is_ok()
}

/// Tells clients of services, and makes credentials for them.
pub struct External {
    config: Config,
}

impl External {
    pub fn new(config: Config) -> External {
        External { config }
    }
}

impl Module for External {
    fn card(&self) -> Card {
        Card {
            xeps: &[Xep {
                number: 215,
                title: "External Service Discovery",
                version: "1.0.0",
                status: Status::Stable,
            }],
            host_features: &[NS],
            ..Card::new(NAME, "Tells clients of STUN and TURN servers, and lets them in there.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self);
    }
}

impl Answering for External {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        Answer::Now(self.answer(passage).map_or_else(Reply::Error, Reply::with))
    }
}

impl External {
    fn answer(&self, passage: &Passage) -> Result<Element, StanzaError> {
        // Section 2: for those of this server. What is made here lets whoever has it use a relay that others pay for.
        if passage.sender.as_ref().is_none_or(|sender| sender.is_anonymous()) {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        let (Ok(IqType::Get), Some(payload)) = (passage.stanza.iq_type(), passage.stanza.payload()) else {
            return Err(bad_request("external services are only read"));
        };
        let services = &*passage.services;
        match payload.name() {
            "services" => Ok(self.list(services, payload.attr("type"))),
            "credentials" => self.credentials(services, payload),
            _ => Err(bad_request("neither `services` nor `credentials`")),
        }
    }

    /// Sections 3.1 and 3.2.
    fn list(&self, services: &dyn Services, kind: Option<&str>) -> Element {
        let wanted =
            self.config.services.0.iter().filter(|service| kind.is_none_or(|kind| kind == service.kind));
        let list = element("services", NS).with_some("type", kind);
        wanted.map(|service| self.describe(services, service)).fold(list, Element::child)
    }

    /// Section 3.3.
    fn credentials(&self, services: &dyn Services, asked: &Element) -> Result<Element, StanzaError> {
        let asked = asked.children().find(|child| child.is("service", NS));
        let (Some(host), Some(kind)) =
            (asked.and_then(|asked| asked.attr("host")), asked.and_then(|asked| asked.attr("type")))
        else {
            return Err(bad_request("credentials are asked for by the `host` and `type` of a service"));
        };
        let port = match asked.and_then(|asked| asked.attr("port")).map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) => Some(port),
            Some(Err(_)) => return Err(bad_request("`port` is no port")),
        };
        let is_meant = |service: &&ExternalService| {
            service.host == host
                && service.kind == kind
                && (port.is_none() || service.port == port)
                && service.access != Access::Open
        };
        let found: Vec<&ExternalService> = self.config.services.0.iter().filter(is_meant).collect();
        if found.is_empty() {
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        let found = found.into_iter().map(|service| self.describe(services, service));
        Ok(found.fold(element("credentials", NS), Element::child))
    }

    fn describe(&self, services: &dyn Services, service: &ExternalService) -> Element {
        let described = element("service", NS)
            .with("type", &service.kind)
            .with("host", &service.host)
            .with_some("port", service.port.map(|port| port.to_string()).as_deref())
            .with_some("transport", service.transport.as_deref())
            .with_some("name", service.name.as_deref());
        match &service.access {
            Access::Open => described,
            Access::Fixed { username, password } => {
                described.with("restricted", "true").with("username", username).with("password", password)
            }
            Access::Secret(secret) => {
                let expires =
                    services.now() + Duration::from_secs(self.config.credentials_s as u64).min(YEAR);
                let mut random = [0; NAME_BYTES];
                services.random(&mut random);
                let seconds = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let username = format!("{seconds}:{:016x}", u64::from_be_bytes(random));
                described
                    .with("restricted", "true")
                    .with("expires", &utc(expires))
                    .with("username", &username)
                    .with("password", &password(secret, &username))
            }
        }
    }
}

fn password(secret: &str, username: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    BASE64_STANDARD.encode(hmac::sign(&key, username.as_bytes()))
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use hooks::bench::{Bench, Client};

    use super::*;

    fn read(toml: &str) -> Option<ExternalServices> {
        ExternalServices::read(&toml.parse().unwrap())
    }

    const SERVICES: &str = "[\
        { type = 'stun', host = 'stun.example', port = 3478, transport = 'udp' },\
        { type = 'turn', host = 'turn.example', port = 3478, transport = 'udp', name = 'Relay', secret = 'north' },\
        { type = 'turn', host = '192.0.2.1', port = 5349, transport = 'tcp', secret = 'south' },\
        { type = 'ftp', host = 'ftp.example', username = 'guest', password = 'word' }]";

    fn bench() -> Bench {
        let config = Config { services: read(SERVICES).unwrap(), credentials_s: 3_600 };
        Bench::new(&["localhost"], move || vec![Arc::new(External::new(config.clone()))])
    }

    async fn ask(client: &Client, kind: &str, payload: &str) -> Result<Vec<Element>, Condition> {
        client.send(&format!("<iq type='{kind}' id='1' to='localhost'>{payload}</iq>")).await;
        let heard = client.hears_stanzas();
        match heard[0].as_error() {
            Some(error) => Err(error.condition),
            None => Ok(heard[0].payload().unwrap().children().cloned().collect()),
        }
    }

    fn hosts(services: &[Element]) -> Vec<&str> {
        services.iter().filter_map(|service| service.attr("host")).collect()
    }

    #[test]
    fn services_are_listed_and_chosen_by_their_type() {
        block_on(async {
            let bench = bench();
            let alice = bench.login("alice@localhost/phone").await;
            let all = ask(&alice, "get", "<services xmlns='urn:xmpp:extdisco:2'/>").await.unwrap();
            assert_eq!(hosts(&all), ["stun.example", "turn.example", "192.0.2.1", "ftp.example"]);
            let stun = &all[0];
            assert_eq!((stun.attr("port"), stun.attr("transport")), (Some("3478"), Some("udp")));
            assert!(stun.attr("username").is_none() && stun.attr("restricted").is_none());
            assert_eq!((all[3].attr("username"), all[3].attr("password")), (Some("guest"), Some("word")));
            let turn =
                ask(&alice, "get", "<services xmlns='urn:xmpp:extdisco:2' type='turn'/>").await.unwrap();
            assert_eq!(hosts(&turn), ["turn.example", "192.0.2.1"]);
            let none = ask(&alice, "get", "<services xmlns='urn:xmpp:extdisco:2' type='x'/>").await.unwrap();
            assert!(none.is_empty());
        });
    }

    #[test]
    fn credentials_say_until_when_they_hold_and_are_what_the_service_computes() {
        block_on(async {
            let bench = bench();
            let alice = bench.login("alice@localhost/phone").await;
            let asked = "<credentials xmlns='urn:xmpp:extdisco:2'><service type='turn' host='turn.example'/></credentials>";
            let mut names = Vec::new();
            for _ in 0..2 {
                let found = ask(&alice, "get", asked).await.unwrap();
                assert_eq!(hosts(&found), ["turn.example"]);
                let turn = &found[0];
                assert_eq!(turn.attr("expires"), Some("2026-01-01T01:00:00Z"));
                let name = turn.attr("username").unwrap();
                assert!(name.starts_with("1767229200:") && !name.contains("alice"), "{name}");
                assert_eq!(turn.attr("password"), Some(password("north", name).as_str()));
                names.push(name.to_owned());
            }
            assert_ne!(names[0], names[1]);
            assert_eq!(password("north", "1767312000:x"), "T9y1SqfEaZ4UAXdmbpI/T4CQn/M=");
        });
    }

    #[test]
    fn credentials_are_found_by_host_type_and_port() {
        block_on(async {
            let bench = bench();
            let alice = bench.login("alice@localhost/phone").await;
            for (service, expected) in [
                ("<service type='turn' host='192.0.2.1' port='5349'/>", Ok(1)),
                ("<service type='ftp' host='ftp.example'/>", Ok(1)),
                ("<service type='turn' host='192.0.2.1' port='1'/>", Err(Condition::ItemNotFound)),
                ("<service type='stun' host='stun.example'/>", Err(Condition::ItemNotFound)),
                ("<service type='turn' host='other.example'/>", Err(Condition::ItemNotFound)),
                ("<service type='turn' host='192.0.2.1' port='x'/>", Err(Condition::BadRequest)),
                ("<service type='turn'/>", Err(Condition::BadRequest)),
                ("", Err(Condition::BadRequest)),
            ] {
                let asked = format!("<credentials xmlns='urn:xmpp:extdisco:2'>{service}</credentials>");
                let found = ask(&alice, "get", &asked).await.map(|found| found.len());
                assert_eq!(found, expected, "{service}");
            }
            let set = ask(&alice, "set", "<services xmlns='urn:xmpp:extdisco:2'/>").await;
            assert_eq!(set, Err(Condition::BadRequest));
            let other = ask(&alice, "get", "<other xmlns='urn:xmpp:extdisco:2'/>").await;
            assert_eq!(other, Err(Condition::BadRequest));
        });
    }

    #[test]
    fn who_has_no_account_gets_nothing() {
        block_on(async {
            let bench = bench();
            let nobody = bench.login_anonymously("x@localhost/phone").await;
            let asked = ask(&nobody, "get", "<services xmlns='urn:xmpp:extdisco:2'/>").await;
            assert_eq!(asked, Err(Condition::Forbidden));
            bench
                .route(
                    "<iq type='get' id='1' from='eve@elsewhere.example/x' to='localhost'>\
                     <services xmlns='urn:xmpp:extdisco:2'/></iq>",
                )
                .await;
            let heard = bench.outside();
            assert!(heard[0].contains("<forbidden"), "{heard:?}");
        });
    }

    #[test]
    fn services_are_read_and_written_and_show_no_secret() {
        let services = read(SERVICES).unwrap();
        assert_eq!(read(&services.write()).unwrap(), services);
        let shown = format!("{services:?}");
        assert!(!shown.contains("north") && !shown.contains("word"), "{shown}");
        for wrong in [
            "{}",
            "[{}]",
            "[{ type = 'turn' }]",
            "[{ host = 'a.example' }]",
            "[{ type = 'a b', host = 'a.example' }]",
            "[{ type = 'turn', host = 'a@b' }]",
            "[{ type = 'turn', host = 'a.example', port = 0 }]",
            "[{ type = 'turn', host = 'a.example', port = 65536 }]",
            "[{ type = 'turn', host = 'a.example', transport = 'sctp' }]",
            "[{ type = 'turn', host = 'a.example', username = 'a' }]",
            "[{ type = 'turn', host = 'a.example', secret = 'a', username = 'a', password = 'b' }]",
            "[{ type = 'turn', host = 'a.example', sekret = 'a' }]",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}

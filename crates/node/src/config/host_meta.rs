//! The files by which clients that cannot ask DNS find the doors of a host (XEP-0156 and XEP-0487, over RFC 6415).

use std::{fmt::Write as _, fs, io::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::dns::{self, TTL_S, ascii};
use super::{Settings, read};
use crate::parts::Failure;

const WEBSOCKET: &str = "urn:xmpp:alt-connections:websocket";
const BOSH: &str = "urn:xmpp:alt-connections:xbosh";
const DIRECT_TLS: &str = "urn:xmpp:alt-connections:tls";
/// Direct TLS first, as in DNS; BOSH last, which costs most.
const PRIORITIES: [(&str, u16); 3] = [(DIRECT_TLS, 5), (WEBSOCKET, 15), (BOSH, 20)];

/// What is asked for.
pub struct Wish<'a> {
    /// The one host; needed where there are several.
    pub host: Option<&'a str>,
    /// The form of JSON.
    pub json: bool,
    /// A folder for both files of all hosts.
    pub into: Option<&'a Path>,
}

/// `rookery config host-meta`: prints one file of one host, or writes those of all hosts.
///
/// # Errors
/// A config that is not good, that takes no clients or has nothing to say in such a file; a host that is none of its
/// hosts; a folder that cannot be written to.
pub fn run(file: &Path, set: &[String], wish: &Wish) -> Result<(), Failure> {
    let settings = super::load(Some(file), set)?;
    match wish.into {
        Some(folder) => write(&settings, wish.host, folder),
        None => {
            let text = print(&settings, wish.host, wish.json)?;
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
    }
}

fn print(settings: &Settings, host: Option<&str>, json: bool) -> Result<String, Failure> {
    let hosts = chosen(settings, host)?;
    let [host] = &hosts[..] else {
        let why = format!(
            "several hosts, each with files of its own: choose with --host one of {}, or write all of them with --into FOLDER",
            hosts.join(", ")
        );
        return Err(why.into());
    };
    let links = links(settings, host)?;
    Ok(if json { jrd(settings, &links) } else { xrd(&links) })
}

fn write(settings: &Settings, host: Option<&str>, folder: &Path) -> Result<(), Failure> {
    for host in chosen(settings, host)? {
        let links = links(settings, &host)?;
        let folder = folder.join(ascii(&host)?);
        let failed = |path: &Path, error| format!("failed to write `{}`: {error}", path.display());
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        for (name, text) in [("host-meta", xrd(&links)), ("host-meta.json", jrd(settings, &links))] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| failed(&path, error))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// The hosts that are asked about, where there is anything to say of them.
fn chosen(settings: &Settings, host: Option<&str>) -> Result<Vec<String>, Failure> {
    dns::takes_clients(settings)?;
    let Some(host) = host else { return Ok(settings.hosts.clone()) };
    let prepared = read::domain(host).ok().filter(|host| settings.hosts.contains(host));
    let why =
        || format!("`{host}` is none of the `hosts` of the config, which are {}", settings.hosts.join(", "));
    Ok(vec![prepared.ok_or_else(why)?])
}

/// One way to a host.
struct Link {
    rel: &'static str,
    door: Door,
    /// The name to say in the handshake.
    sni: String,
}

enum Door {
    Url(String),
    Port(u16),
}

/// All ways to a host, those without a URL for the form of JSON alone.
fn links(settings: &Settings, host: &str) -> Result<Vec<Link>, Failure> {
    let host = ascii(host)?;
    let mut links = Vec::new();
    let c2s = &settings.session.c2s;
    let advertised = c2s.advertise_direct_tls.as_deref().and_then(|address| address.rsplit_once(':'));
    let port = match advertised {
        Some((_, port)) => Some(port.parse()?),
        None => c2s.direct_tls_listen.first().map(std::net::SocketAddr::port),
    };
    // Whoever reads the form of XEP-0487 asks DNS no more: not without a door of our own.
    if let Some(port) = port.filter(|_| !settings.web.addresses.is_empty()) {
        links.push(Link { rel: DIRECT_TLS, door: Door::Port(port), sni: host.clone() });
    }
    for (rel, url) in [(WEBSOCKET, &settings.web.websocket), (BOSH, &settings.web.bosh)] {
        let Some(url) = url else { continue };
        let url = url.replace("{host}", &host);
        let authority = url.split('/').nth(2).unwrap_or_default();
        let authority = authority.split('?').next().unwrap_or_default();
        let name = match authority.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => authority,
        };
        links.push(Link { rel, sni: name.to_owned(), door: Door::Url(url) });
    }
    match links.is_empty() {
        true => {
            let why = "nothing to say: set `web.websocket` or `web.bosh` to what your proxy offers, or `web.addresses` where there is a door for direct TLS";
            Err(why.into())
        }
        false => Ok(links),
    }
}

/// RFC 6415, 3, with the links of XEP-0156; the keys take no character that would have to be escaped.
fn xrd(links: &[Link]) -> String {
    let mut out = String::from(
        "<?xml version='1.0' encoding='utf-8'?>\n<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\n",
    );
    for link in links {
        if let Door::Url(url) = &link.door {
            let _ = writeln!(out, "  <Link rel='{}' href='{url}'/>", link.rel);
        }
    }
    out.push_str("</XRD>\n");
    out
}

/// The same by RFC 6415, A; with all that XEP-0487 adds where the addresses are known.
fn jrd(settings: &Settings, links: &[Link]) -> String {
    let has_all = links.iter().any(|link| link.rel == DIRECT_TLS);
    let link = |link: &Link| {
        let mut said = Map::new();
        said.insert("rel".to_owned(), link.rel.into());
        match &link.door {
            Door::Url(url) => said.insert("href".to_owned(), url.as_str().into()),
            Door::Port(port) => said.insert("port".to_owned(), (*port).into()),
        };
        if has_all {
            let priority =
                PRIORITIES.iter().find(|(rel, _)| *rel == link.rel).map_or(0, |(_, number)| *number);
            let ips: Vec<Value> = settings.web.addresses.iter().map(|ip| ip.to_string().into()).collect();
            said.insert("priority".to_owned(), priority.into());
            said.insert("weight".to_owned(), 0.into());
            said.insert("sni".to_owned(), link.sni.as_str().into());
            said.insert("ips".to_owned(), ips.into());
        }
        Value::Object(said)
    };
    let mut document = json!({ "links": links.iter().map(link).collect::<Vec<_>>() });
    if has_all {
        document["xmpp"] = json!({ "ttl": TTL_S });
    }
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Settings {
        super::super::parse("a.toml", text, &[]).unwrap()
    }

    const BOTH: &str = "hosts = [\"example.org\"]\n[web]\nwebsocket = \"wss://web.example.org/ws\"\n\
                        bosh = \"https://{host}:8443/bosh?v=1\"\n";

    #[test]
    fn a_proxy_is_found_in_both_forms() {
        let settings = config(BOTH);
        assert_eq!(
            print(&settings, None, false).unwrap(),
            "<?xml version='1.0' encoding='utf-8'?>\n\
             <XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\n  \
             <Link rel='urn:xmpp:alt-connections:websocket' href='wss://web.example.org/ws'/>\n  \
             <Link rel='urn:xmpp:alt-connections:xbosh' href='https://example.org:8443/bosh?v=1'/>\n</XRD>\n"
        );
        let said: Value = serde_json::from_str(&print(&settings, None, true).unwrap()).unwrap();
        let expected = json!({ "links": [
            { "rel": WEBSOCKET, "href": "wss://web.example.org/ws" },
            { "rel": BOSH, "href": "https://example.org:8443/bosh?v=1" },
        ] });
        assert_eq!(said, expected, "nothing that would keep clients from asking DNS");
    }

    #[test]
    fn with_addresses_a_client_needs_no_dns() {
        let text = format!(
            "{BOTH}addresses = [\"192.0.2.1\", \"2001:db8::1\"]\n[c2s]\nadvertise_direct_tls = \"node1.example.org:443\""
        );
        let settings = config(&text);
        let said: Value =
            serde_json::from_str(&print(&settings, Some("example.org"), true).unwrap()).unwrap();
        let ips = json!(["192.0.2.1", "2001:db8::1"]);
        let link = |rel, key: &str, door: Value, priority, sni| json!({ "rel": rel, key: door, "priority": priority, "weight": 0, "sni": sni, "ips": ips });
        let expected = json!({ "xmpp": { "ttl": 3600 }, "links": [
            link(DIRECT_TLS, "port", json!(443), 5, "example.org"),
            link(WEBSOCKET, "href", json!("wss://web.example.org/ws"), 15, "web.example.org"),
            link(BOSH, "href", json!("https://example.org:8443/bosh?v=1"), 20, "example.org"),
        ] });
        assert_eq!(said, expected);
        assert!(!print(&settings, None, false).unwrap().contains("alt-connections:tls"));
        // A client that reads this asks nothing else, and there is no way in by direct TLS.
        let closed = config(&format!("{BOTH}addresses = [\"192.0.2.1\"]\n[c2s]\ndirect_tls_listen = []"));
        assert!(!print(&closed, None, true).unwrap().contains("ttl"));
    }

    #[test]
    fn one_of_several_hosts_is_chosen_or_all_are_written() {
        let settings = config(
            "hosts = [\"example.org\", \"\u{fc}ber.example\"]\n[web]\nwebsocket = \"wss://{host}/ws\"",
        );
        let error = print(&settings, None, false).unwrap_err().to_string();
        assert!(error.starts_with("several hosts"), "{error}");
        let error = print(&settings, Some("other.example"), false).unwrap_err().to_string();
        assert!(error.contains("none of the `hosts`"), "{error}");
        for name in ["\u{fc}ber.example", "xn--ber-goa.example"] {
            let said = print(&settings, Some(name), false).unwrap();
            assert!(said.contains("'wss://xn--ber-goa.example/ws'"), "{said}");
        }
        let folder = tempfile::tempdir().unwrap();
        write(&settings, None, folder.path()).unwrap();
        for host in ["example.org", "xn--ber-goa.example"] {
            for file in ["host-meta", "host-meta.json"] {
                let text = fs::read_to_string(folder.path().join(host).join(file)).unwrap();
                assert!(text.contains(&format!("wss://{host}/ws")), "{text}");
            }
        }
    }

    #[test]
    fn who_offers_nothing_is_told_what_to_set() {
        for text in ["", "[web]\naddresses = [\"192.0.2.1\"]\n[c2s]\ndirect_tls_listen = []"] {
            let error = print(&config(text), None, true).unwrap_err().to_string();
            assert!(error.starts_with("nothing to say"), "{error}");
        }
        let backend = "[node]\nroles = [\"backend\"]\n[cluster]\nlisten = \"127.0.0.1:7400\"";
        assert!(print(&config(backend), None, false).unwrap_err().to_string().contains("takes no clients"));
    }
}

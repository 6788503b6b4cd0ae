//! The DNS records by which clients find the hosts of a config (RFC 6120, 3.2.1; XEP-0368).

use std::{fmt::Write as _, io::Write as _, path::Path};

use super::Settings;
use crate::parts::Failure;

/// How long a resolver may keep a record, in seconds: as long as a move to another machine may take to be seen.
pub const TTL_S: u32 = 3600;
/// Clients that know both take direct TLS, which saves a round trip (XEP-0368, 3: all records are sorted together).
const DIRECT_TLS: (&str, u16) = ("_xmpps-client._tcp", 5);
const STARTTLS: (&str, u16) = ("_xmpp-client._tcp", 10);

/// `rookery config dns`: prints the records of all hosts, as they stand in a zone file.
///
/// # Errors
/// A config that is not good, that takes no clients, or a host that cannot be written in ASCII.
pub fn run(file: &Path, set: &[String]) -> Result<(), Failure> {
    let settings = super::load(Some(file), set)?;
    std::io::stdout().write_all(records(&settings)?.as_bytes())?;
    Ok(())
}

/// # Errors
/// The config is of a node that nobody is to be led to.
pub fn takes_clients(settings: &Settings) -> Result<(), Failure> {
    match settings.node.frontend {
        true => Ok(()),
        false => {
            Err("this node takes no clients: ask with the config of one that has `frontend` in `node.roles`"
                .into())
        }
    }
}

fn records(settings: &Settings) -> Result<String, Failure> {
    takes_clients(settings)?;
    let c2s = &settings.session.c2s;
    let first = |listen: &[std::net::SocketAddr]| listen.first().map(std::net::SocketAddr::port);
    let doors = [
        (DIRECT_TLS, c2s.advertise_direct_tls.as_deref(), first(&c2s.direct_tls_listen)),
        (STARTTLS, c2s.advertise.as_deref(), first(&c2s.listen)),
    ];
    let mut out = String::new();
    for host in &settings.hosts {
        let host = ascii(host)?;
        let _ =
            writeln!(out, "; {host}: each target needs A or AAAA records of its own, and must be no alias");
        for ((service, priority), advertised, listens) in doors {
            let at = match advertised.and_then(|address| address.rsplit_once(':')) {
                Some((name, port)) => Some((ascii(name)?, port.parse::<u16>()?)),
                None => listens.map(|port| (host.clone(), port)),
            };
            let _ = match at {
                Some((target, port)) => {
                    writeln!(out, "{service}.{host}. {TTL_S} IN SRV {priority} 0 {port} {target}.")
                }
                // RFC 2782: the service is decidedly not there, and nobody tries its usual port.
                None => writeln!(out, "{service}.{host}. {TTL_S} IN SRV 0 0 0 ."),
            };
        }
    }
    Ok(out)
}

/// A name as DNS has it (RFC 5890).
pub fn ascii(name: &str) -> Result<String, Failure> {
    idna::domain_to_ascii(name).map_err(|_| format!("`{name}` is no name that DNS could have").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<String, Failure> {
        records(&super::super::parse("a.toml", text, &[])?)
    }

    #[test]
    fn hosts_are_found_where_they_listen() {
        let said =
            of("hosts = [\"example.org\", \"\u{fc}ber.example\"]\n[c2s]\nlisten = [\"0.0.0.0:15222\"]")
                .unwrap();
        assert_eq!(
            said,
            "; example.org: each target needs A or AAAA records of its own, and must be no alias\n\
             _xmpps-client._tcp.example.org. 3600 IN SRV 5 0 5223 example.org.\n\
             _xmpp-client._tcp.example.org. 3600 IN SRV 10 0 15222 example.org.\n\
             ; xn--ber-goa.example: each target needs A or AAAA records of its own, and must be no alias\n\
             _xmpps-client._tcp.xn--ber-goa.example. 3600 IN SRV 5 0 5223 xn--ber-goa.example.\n\
             _xmpp-client._tcp.xn--ber-goa.example. 3600 IN SRV 10 0 15222 xn--ber-goa.example.\n"
        );
    }

    #[test]
    fn what_is_advertised_counts_and_a_door_that_is_not_there_is_denied() {
        let text = "hosts = [\"example.org\"]\n[c2s]\ndirect_tls_listen = []\nadvertise = \"node1.example.org:5322\"";
        let said = of(text).unwrap();
        assert!(said.contains("_xmpps-client._tcp.example.org. 3600 IN SRV 0 0 0 .\n"), "{said}");
        assert!(
            said.contains("_xmpp-client._tcp.example.org. 3600 IN SRV 10 0 5322 node1.example.org.\n"),
            "{said}"
        );
    }

    #[test]
    fn a_node_without_clients_is_found_by_nobody() {
        let text = "[node]\nroles = [\"backend\"]\n[cluster]\nlisten = \"127.0.0.1:7400\"";
        assert!(of(text).unwrap_err().to_string().starts_with("this node takes no clients"));
    }
}

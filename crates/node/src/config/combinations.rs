//! Combinations of keys that cannot work.

use std::{collections::BTreeMap, net::SocketAddr};

use toml_edit::Value;

use super::read::{self, Fault, Values};

/// All combinations that cannot work, each at the key that is best changed.
pub fn check(values: &Values) -> Vec<Fault> {
    let mut faults = Vec::new();
    pairs(values, &mut faults);
    tls(values, &mut faults);
    anonymous(values, &mut faults);
    admins(values, &mut faults);
    roles(values, &mut faults);
    links(values, &mut faults);
    store(values, &mut faults);
    admin(values, &mut faults);
    ports(values, &mut faults);
    faults
}

fn text(values: &Values, path: &str) -> Option<String> {
    values.value(path)?.as_str().map(str::to_owned)
}

fn texts(values: &Values, path: &str) -> Vec<String> {
    let value = values.value(path);
    let list = value.as_ref().and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect()
}

fn pairs(values: &Values, faults: &mut Vec<Fault>) {
    let needs = [
        ("tls.cert", "tls.key"),
        ("tls.key", "tls.cert"),
        ("cluster.cert", "cluster.key"),
        ("cluster.cert", "cluster.ca"),
        ("cluster.key", "cluster.cert"),
        ("cluster.ca", "cluster.cert"),
    ];
    for (given, missing) in needs {
        if values.said(given).is_some() && values.said(missing).is_none() {
            faults.push(values.fault(given, format!("needs `{missing}` beside it, which is not set")));
        }
    }
}

fn tls(values: &Values, faults: &mut Vec<Fault>) {
    if text(values, "tls.client_certificates").is_some_and(|how| how == "required")
        && values.said("tls.client_ca").is_none()
    {
        let what = "no certificate can be trusted: expected `tls.client_ca` beside it";
        faults.push(values.fault("tls.client_certificates", what));
    }
    let min_version = match text(values, "tls.min_version").as_deref() {
        Some("1.3") => session::TlsMinimum::Tls13,
        _ => session::TlsMinimum::Tls12,
    };
    if !session::ciphers_fit(&texts(values, "tls.ciphers"), min_version) {
        faults.push(
            values.fault("tls.ciphers", "none of these is of TLS 1.3, which `tls.min_version` asks for"),
        );
    }
    let served = domains(values, "hosts");
    for (name, host) in &values.tls_hosts {
        let key = format!("tls.hosts.{name}");
        let place = host.place.clone().or_else(|| host.keys.values().next().map(|found| found.place.clone()));
        let place = place.unwrap_or_else(|| values.fault("tls.hosts", "").place);
        let mut wrong = |what: String| faults.push(Fault { place: place.clone(), key: key.clone(), what });
        match read::domain(name) {
            Err(why) => wrong(format!("expected the name of a host, {why}")),
            Ok(domain) if !served.contains(&domain) => {
                wrong(format!("`{name}` is not one of the `hosts` of the server"));
            }
            Ok(_) => {}
        }
        for missing in ["cert", "key"].into_iter().filter(|key| !host.keys.contains_key(*key)) {
            wrong(format!("needs `{missing}`, which is not set"));
        }
    }
}

fn domains(values: &Values, path: &str) -> Vec<String> {
    texts(values, path).iter().filter_map(|host| read::domain(host).ok()).collect()
}

/// Who is to administer the server has an account here.
fn admins(values: &Values, faults: &mut Vec<Fault>) {
    const KEY: &str = "accounts.admins";
    let served = domains(values, "hosts");
    for admin in texts(values, KEY) {
        let is_here =
            read::person(&admin).is_ok_and(|one| served.iter().any(|host| host == one.domain().as_str()));
        if !is_here {
            faults.push(
                values.fault(KEY, format!("the host of `{admin}` is not one of the `hosts` of the server")),
            );
        }
    }
}

/// Who has no account is let in only where the module is that keeps it from leaving anything behind.
fn anonymous(values: &Values, faults: &mut Vec<Fault>) {
    const KEY: &str = "auth.anonymous_hosts";
    let served = domains(values, "hosts");
    let module = values.modules.get("anonymous").map(|module| &module.keys);
    let said = |key: &str| module.and_then(|keys| keys.get(key)).map(|found| &found.value);
    let is_off = said("enabled").and_then(Value::as_bool) == Some(false);
    let only: Vec<&str> =
        said("hosts").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for host in domains(values, KEY) {
        if !served.contains(&host) {
            faults.push(values.fault(KEY, format!("`{host}` is not one of the `hosts` of the server")));
        } else if is_off || !only.is_empty() && !only.contains(&host.as_str()) {
            faults.push(
                values.fault(KEY, format!("needs `modules.anonymous`, which is switched off for `{host}`")),
            );
        }
    }
}

const DISCOVERY: [&str; 3] = ["cluster.discovery.static", "cluster.discovery.dns", "cluster.discovery.file"];

fn roles(values: &Values, faults: &mut Vec<Fault>) {
    let given: Vec<&str> = DISCOVERY.into_iter().filter(|d| values.said(d).is_some()).collect();
    if let [first, second, ..] = given[..] {
        let what = format!("cannot be given beside `{first}`: choose one way of discovery");
        faults.push(values.fault(second, what));
    }
    let roles = texts(values, "node.roles");
    let backend = roles.iter().any(|r| r == "backend");
    let frontend = roles.iter().any(|r| r == "frontend");
    // Who joins by a token is told where the backends are, and keeps that.
    let told = makes_certificates(values);
    if !backend && given.is_empty() && !told {
        let what = "a node without the role `backend` keeps nothing itself: expected \
                    `cluster.discovery.static`, `.dns` or `.file` to find the backends";
        faults.push(values.fault("node.roles", what));
    }
    let expect = values.said("cluster.expect").and_then(|f| f.value.as_integer()).unwrap_or(1);
    if backend && expect > 1 && given.is_empty() && !told {
        let what = format!(
            "expected `cluster.discovery.static`, `.dns` or `.file`, with which the {expect} backends find each other"
        );
        faults.push(values.fault("cluster.expect", what));
    }
    if frontend && texts(values, "c2s.listen").is_empty() && texts(values, "c2s.direct_tls_listen").is_empty()
    {
        let what = "a frontend needs an address in `c2s.listen` or `c2s.direct_tls_listen`";
        faults.push(values.fault("c2s.listen", what));
    }
}

/// Whether the links of the node are under certificates that the cluster makes by itself: it is part of one, has
/// been given none, and its links are not plain.
pub fn makes_certificates(values: &Values) -> bool {
    if !values.any_below("cluster") || values.said("cluster.cert").is_some() {
        return false;
    }
    let plain = values.said("cluster.plain").and_then(|f| f.value.as_bool());
    let joins = values.said("cluster.join").is_some() || values.said("cluster.join_file").is_some();
    let listen = text(values, "cluster.listen").unwrap_or_default();
    let advertise = text(values, "cluster.advertise");
    let far = !read::is_loopback(&listen) || advertise.is_some_and(|a| !read::is_loopback(&a));
    plain == Some(false) || (plain.is_none() && (joins || far))
}

fn links(values: &Values, faults: &mut Vec<Fault>) {
    if !values.any_below("cluster") {
        return;
    }
    let listen = text(values, "cluster.listen").unwrap_or_default();
    let unspecified = read::address(&listen).is_ok_and(|a| a.ip().is_unspecified());
    let advertise = text(values, "cluster.advertise");
    if unspecified && advertise.is_none() {
        let what = format!("`{listen}` is no address to connect to: expected `cluster.advertise` beside it");
        faults.push(values.fault("cluster.listen", what));
    }
    let certified = values.said("cluster.cert").is_some();
    let plain = values.said("cluster.plain").and_then(|f| f.value.as_bool());
    let far = if !read::is_loopback(&listen) {
        Some(("cluster.listen", listen.as_str()))
    } else {
        let advertise = advertise.as_deref().filter(|a| !read::is_loopback(a));
        advertise.map(|a| ("cluster.advertise", a))
    };
    match (plain, certified, far) {
        (Some(true), true, _) => {
            let what = "plain links use no certificate: remove this key, or `cluster.cert`";
            faults.push(values.fault("cluster.plain", what));
        }
        (Some(true), false, Some((key, address))) => {
            let what = format!("plain links are for loopback only, and `{key}` is `{address}`");
            faults.push(values.fault("cluster.plain", what));
        }
        _ => {}
    }
    for key in ["cluster.join", "cluster.join_file"].into_iter().filter(|key| values.said(key).is_some()) {
        if certified {
            let what = "a node with a certificate of yours does not join by a token: remove this key, or `cluster.cert`";
            faults.push(values.fault(key, what));
        }
        if plain == Some(true) {
            let what = "plain links use no certificate, so there is nothing to join for: remove this key, or `cluster.plain`";
            faults.push(values.fault(key, what));
        }
        if key == "cluster.join_file" && values.said("cluster.join").is_some() {
            faults.push(values.fault(key, "cannot be given beside `cluster.join`: choose one of them"));
        }
    }
}

fn store(values: &Values, faults: &mut Vec<Fault>) {
    let Some(engine) = values.said("store.engine").and_then(|f| f.value.as_str()) else { return };
    let clustered = values.any_below("cluster");
    if engine == "replicated" && !clustered {
        faults
            .push(values.fault("store.engine", "`replicated` needs a cluster: expected a table `[cluster]`"));
    }
    let alone = DISCOVERY.iter().all(|d| values.said(d).is_none());
    if engine != "replicated" && clustered && !alone {
        let what = format!("`{engine}` is seen by its own node only: expected \"replicated\" in a cluster");
        faults.push(values.fault("store.engine", what));
    }
}

fn admin(values: &Values, faults: &mut Vec<Fault>) {
    let listen = text(values, "admin.listen").unwrap_or_default();
    if !read::is_loopback(&listen) {
        let what = format!("the admin service has no TLS yet: expected a loopback address, found `{listen}`");
        faults.push(values.fault("admin.listen", what));
    }
}

/// Two keys that want the same port of the same address.
fn ports(values: &Values, faults: &mut Vec<Fault>) {
    let mut wanted: Vec<(&str, SocketAddr)> = Vec::new();
    let mut want = |key: &'static str, list: Vec<String>| {
        wanted.extend(list.iter().filter_map(|t| Some((key, read::address(t).ok()?))));
    };
    let frontend = texts(values, "node.roles").iter().any(|r| r == "frontend");
    if frontend {
        want("c2s.listen", texts(values, "c2s.listen"));
        want("c2s.direct_tls_listen", texts(values, "c2s.direct_tls_listen"));
    }
    want("admin.listen", text(values, "admin.listen").into_iter().collect());
    if values.any_below("cluster") {
        want("cluster.listen", text(values, "cluster.listen").into_iter().collect());
    }
    want("metrics.listen", text(values, "metrics.listen").into_iter().collect());
    let mut taken: BTreeMap<u16, Vec<(&str, SocketAddr)>> = BTreeMap::new();
    for (key, address) in wanted {
        // port 0 is whatever is free
        if address.port() == 0 {
            continue;
        }
        let others = taken.entry(address.port()).or_default();
        let same = |a: &SocketAddr| {
            a.ip() == address.ip()
                || a.is_ipv4() == address.is_ipv4()
                    && (a.ip().is_unspecified() || address.ip().is_unspecified())
        };
        if let Some((other, _)) = others.iter().find(|(_, a)| same(a)) {
            faults.push(values.fault(key, format!("port {} is already taken by `{other}`", address.port())));
        }
        others.push((key, address));
    }
}

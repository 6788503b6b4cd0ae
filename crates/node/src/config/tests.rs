//! Tests of the config: each bad file with the exact line, key and hint.

use super::*;

fn faults(text: &str) -> Vec<String> {
    match parse("bad.toml", text, &[]) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn an_empty_file_is_a_single_node_for_localhost() {
    let settings = parse("", "", &[]).unwrap();
    assert_eq!(settings.hosts, ["localhost"]);
    assert_eq!(settings.session.c2s.listen[0].port(), 5222);
    assert_eq!(settings.session.c2s.direct_tls_listen[0].port(), 5223);
    assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:5280");
    assert!(settings.cluster.listen.is_none() && settings.session.c2s.tls_required);
    assert!(settings.node.frontend && settings.node.backend);
    assert_eq!(settings.engine, settings::Engine::Sled);
}

#[test]
fn each_bad_file_is_refused_with_line_key_and_hint() {
    for (text, expected) in [
        (
            "hosts = [\"a.example\"]\n[c2s]\nlisen = [\"0.0.0.0:5222\"]\n",
            "bad.toml:3: `c2s.lisen`: unknown key; the nearest known key is `c2s.listen`",
        ),
        ("host = []\n", "bad.toml:1: `host`: unknown key; the nearest known key is `hosts`"),
        (
            "[clusster]\nexpect = 3\n",
            "bad.toml:1: `clusster`: unknown key; the nearest known key is `cluster`",
        ),
        (
            "[c2s]\ntls_required = \"yes\"\n",
            "bad.toml:2: `c2s.tls_required`: expected `true` or `false`, found a text",
        ),
        (
            "[c2s]\n\nlisten = \"0.0.0.0:5222\"\n",
            "bad.toml:3: `c2s.listen`: expected a list of IP addresses with ports, as in [\"0.0.0.0:5222\"], found a text",
        ),
        (
            "[node]\nroles = [\"fronted\"]\n",
            "bad.toml:2: `node.roles`: expected a list of one or more of \"frontend\", \"backend\", found `fronted`; the nearest is `frontend`",
        ),
        (
            "[limits]\nstanza_bytes = 9999\n",
            "bad.toml:2: `limits.stanza_bytes`: expected a whole number from 10000 to 1099511627776, found `9999`",
        ),
        (
            "hosts = [\"a@b\"]\n",
            "bad.toml:1: `hosts`: expected a list of domain names, as in [\"example.org\"], found the address `a@b`",
        ),
        (
            "[c2s]\nproxy_from = [\"10.0.0.1/8\"]\n",
            "bad.toml:2: `c2s.proxy_from`: expected a list of networks or addresses, as in [\"10.0.0.0/8\", \"2001:db8::1\"], found `10.0.0.1/8`",
        ),
        (
            "[limits]\nsession_rates_exempt = [\"bot@example.org/phone\"]\n",
            "bad.toml:2: `limits.session_rates_exempt`: expected a list of accounts or domains, as in [\"bot@example.org\", \"bots.example.org\"], found `bot@example.org/phone`: resource found while parsing a bare JID",
        ),
        (
            "[accounts]\nreserved = [\"admin\", \"root@localhost\"]\n",
            "bad.toml:2: `accounts.reserved`: expected a list of account names without a host, as in [\"admin\"], found `root@localhost`: localpart doesn’t pass nodeprep validation",
        ),
        (
            "[accounts]\nadmins = [\"localhost\"]\n",
            "bad.toml:2: `accounts.admins`: expected a list of accounts, as in [\"admin@example.org\"], found `localhost`, which is a host",
        ),
        (
            "[accounts]\nadmins = [\"admin@elsewhere.example\"]\n",
            "bad.toml:2: `accounts.admins`: the host of `admin@elsewhere.example` is not one of the `hosts` of the server",
        ),
        (
            "[modules.storm]\nenabled = true\nper_host.\"a.example\" = { count = 5 }\n",
            "bad.toml:3: `modules.storm.per_host`: `a.example` is not one of the `hosts` of the server",
        ),
        (
            "[modules.storm]\nenabled = true\n[modules.storm.per_host.localhost]\ncounts = 5\n",
            "bad.toml:3: `modules.storm.per_host`: expected a table of hosts with `count` and `interval_s`, as in { \"example.org\" = { count = 50 } }",
        ),
        (
            "[web]\nwebsocket = \"ws://example.org/ws\"\n",
            "bad.toml:2: `web.websocket`: expected a URL as in \"wss://example.org/path\", with {host} for the host if need be, found `ws://example.org/ws`",
        ),
        (
            "[web]\nbosh = \"https://example.org/a'b\"\n",
            "bad.toml:2: `web.bosh`: expected a URL as in \"https://example.org/path\", with {host} for the host if need be, found `https://example.org/a'b`",
        ),
        (
            "[web]\nbosh = \"https://me@example.org/\"\n",
            "bad.toml:2: `web.bosh`: expected a URL as in \"https://example.org/path\", with {host} for the host if need be, found `https://me@example.org/`",
        ),
        (
            "[web]\naddresses = [\"192.0.2.1\", \"example.org\"]\n",
            "bad.toml:2: `web.addresses`: expected a list of IP addresses, as in [\"192.0.2.1\", \"2001:db8::1\"], found `example.org`",
        ),
        ("[tls]\ncert = \"a.pem\"\n", "bad.toml:2: `tls.cert`: needs `tls.key` beside it, which is not set"),
        (
            "[node]\nroles = [\"frontend\"]\n",
            "bad.toml:2: `node.roles`: a node without the role `backend` keeps nothing itself: expected `cluster.discovery.static`, `.dns` or `.file` to find the backends",
        ),
        (
            "[cluster]\nexpect = 3\n",
            "bad.toml:2: `cluster.expect`: expected `cluster.discovery.static`, `.dns` or `.file`, with which the 3 backends find each other",
        ),
        (
            "[cluster]\ncert = \"a\"\nkey = \"b\"\nca = \"c\"\njoin = \"TOKEN@a:1\"\n",
            "bad.toml:5: `cluster.join`: a node with a certificate of yours does not join by a token: remove this key, or `cluster.cert`",
        ),
        (
            "[cluster]\nplain = true\njoin_file = \"a\"\n",
            "bad.toml:3: `cluster.join_file`: plain links use no certificate, so there is nothing to join for: remove this key, or `cluster.plain`",
        ),
        (
            "[cluster]\njoin = \"TOKEN@a:1\"\njoin_file = \"a\"\n",
            "bad.toml:3: `cluster.join_file`: cannot be given beside `cluster.join`: choose one of them",
        ),
        (
            "[cluster]\nlisten = \"10.0.0.1:7400\"\nplain = true\n",
            "bad.toml:3: `cluster.plain`: plain links are for loopback only, and `cluster.listen` is `10.0.0.1:7400`",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:5280\"\n",
            "bad.toml:2: `admin.listen`: the admin service has no TLS yet: expected a loopback address, found `0.0.0.0:5280`",
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:5222\"\n",
            "bad.toml:2: `admin.listen`: port 5222 is already taken by `c2s.listen`",
        ),
        (
            "[store]\nengine = \"replicated\"\n",
            "bad.toml:2: `store.engine`: `replicated` needs a cluster: expected a table `[cluster]`",
        ),
        (
            "[cluster]\nexpect = 3\ndiscovery = { static = [\"a:1\"], dns = \"b:2\" }\n",
            "bad.toml:3: `cluster.discovery.dns`: cannot be given beside `cluster.discovery.static`: choose one way of discovery",
        ),
        (
            "[cluster]\ndiscovery = \"dns\"\n",
            "bad.toml:2: `cluster.discovery`: expected a table with keys such as `cluster.discovery.static`, `cluster.discovery.dns`, `cluster.discovery.file`, found a text",
        ),
        (
            "[modules.ofline]\nenabled = false\n",
            "bad.toml:1: `modules.ofline`: unknown module; the nearest known module is `offline`",
        ),
        (
            "[modules.offline]\nenabled = true\nmesages_max = 5\n",
            "bad.toml:3: `modules.offline.mesages_max`: unknown key; the nearest known key is `messages_max`",
        ),
        (
            "[modules.offline]\nmessages_max = \"many\"\n",
            "bad.toml:2: `modules.offline.messages_max`: expected a whole number of at least 1",
        ),
        (
            "[modules.registration]\nhosts = [\"localhost\"]\n",
            "bad.toml:1: `modules.registration`: this module is off by default: expected `enabled` beside its other keys",
        ),
        (
            "[modules]\nping = { hosts = [\"a.example\"] }\n",
            "bad.toml:2: `modules.ping.hosts`: `a.example` is not one of the `hosts` of the server",
        ),
    ] {
        assert_eq!(faults(text), [expected], "{text}");
    }
}

#[test]
fn a_table_of_a_module_is_written_in_braces_or_under_a_header() {
    let braces = "[modules.storm]\nenabled = true\nper_host = { localhost = { count = 5 } }\n";
    let header = "[modules.storm]\nenabled = true\n[modules.storm.per_host.localhost]\ncount = 5\n";
    let list =
        "[modules.offline_filter]\nenabled = true\n[[modules.offline_filter.rules]]\ntype = \"chat\"\n";
    let read = |text: &str| parse("a.toml", text, &[]).unwrap().modules;
    assert_eq!(read(braces), read(header));
    assert_ne!(read(list).offline_filter, Default::default());
}

#[test]
fn nobody_can_register_the_name_of_an_admin() {
    let settings = parse("a.toml", "[accounts]\nadmins = [\"Boss@localhost\"]\n", &[]).unwrap();
    assert_eq!(settings.admins, [jid::BareJid::new("boss@localhost").unwrap()]);
    assert!(settings.modules.reserved.iter().any(|name| name == "boss"));
}

#[test]
fn hosts_have_certificates_of_their_own_however_the_table_is_written() {
    let hosts = "hosts = [\"a.example\", \"b\"]\n";
    for table in [
        "[tls.hosts.\"a.example\"]\ncert = \"c\"\nkey = \"k\"\n",
        "[tls.hosts.a.example]\ncert = \"c\"\nkey = \"k\"\n",
        "[tls]\nhosts = { \"a.example\" = { cert = \"c\", key = \"k\" } }\n",
    ] {
        let settings = parse("a.toml", &format!("{hosts}{table}"), &[]).unwrap();
        let files = &settings.session.tls.hosts["a.example"];
        assert_eq!((files.cert.to_str(), files.key.to_str()), (Some("c"), Some("k")), "{table}");
    }
    let said = |table: &str| faults(&format!("{hosts}{table}"));
    let host = "[tls.hosts.\"a.example\"]\n";
    for (table, expected) in [
        (format!("{host}cert = \"c\"\n"), "bad.toml:2: `tls.hosts.a.example`: needs `key`, which is not set"),
        (
            format!("{host}cert = 1\nkey = \"k\"\n"),
            "bad.toml:3: `tls.hosts.a.example.cert`: expected a path in quotes, found a whole number",
        ),
        (
            format!("{host}certs = \"c\"\nkey = \"k\"\n"),
            "bad.toml:3: `tls.hosts.a.example.certs`: unknown key; the nearest known key is `cert`",
        ),
        (
            "[tls.hosts.\"c\"]\ncert = \"c\"\nkey = \"k\"\n".into(),
            "bad.toml:2: `tls.hosts.c`: `c` is not one of the `hosts` of the server",
        ),
    ] {
        assert_eq!(said(&table)[0], expected, "{table}");
    }
}

#[test]
fn hosts_for_anonymous_clients_are_ours_and_guarded() {
    let hosts = "hosts = [\"a.example\", \"Guest.example\"]\n[auth]\nanonymous_hosts = [\"guest.example\"]\n";
    let settings = parse("a.toml", hosts, &[]).unwrap();
    assert_eq!(settings.session.auth.anonymous_hosts, ["guest.example"]);
    let off = "bad.toml:3: `auth.anonymous_hosts`: needs `modules.anonymous`, which is switched off for `guest.example`";
    for module in ["enabled = false", "hosts = [\"a.example\"]"] {
        assert_eq!(faults(&format!("{hosts}[modules.anonymous]\n{module}\n")), [off]);
    }
    let strange = faults("[auth]\nanonymous_hosts = [\"guest.example\"]\n");
    assert!(strange[0].contains("`guest.example` is not one of the `hosts`"), "{strange:?}");
}

#[test]
fn a_tls_policy_that_cannot_work_is_refused() {
    for (text, expected) in [
        ("[tls]\nciphers = [\"TLS_AES_128_GCM_SHA265\"]\n", "the nearest is `TLS_AES_128_GCM_SHA256`"),
        (
            "[tls]\nmin_version = \"1.3\"\nciphers = [\"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\"]\n",
            "bad.toml:3: `tls.ciphers`: none of these is of TLS 1.3, which `tls.min_version` asks for",
        ),
        (
            "[tls]\nclient_certificates = \"required\"\n",
            "bad.toml:2: `tls.client_certificates`: no certificate can be trusted: expected `tls.client_ca` beside it",
        ),
    ] {
        let told = faults(text);
        assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
    }
}

#[test]
fn every_fault_of_a_file_is_told_at_once() {
    assert_eq!(faults("a = 1\nb = 2\n[log]\nformat = 1\n").len(), 3);
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let faults = faults("hosts = [\"a\"]\n[c2s\n");
    assert!(faults[0].starts_with("bad.toml:2: this is not TOML"), "{faults:?}");
}

#[test]
fn links_are_plain_only_on_loopback_where_nothing_else_is_said() {
    // Keys of `[cluster]`; whether links are plain, and whether they have files of an operator.
    for (keys, plain, given) in [
        ("listen = \"127.0.0.1:7400\"", true, false),
        ("listen = \"[::1]:7400\"\nplain = true", true, false),
        ("listen = \"127.0.0.1:7400\"\nplain = false", false, false),
        ("listen = \"127.0.0.1:7400\"\njoin = \"TOKEN@a:1\"", false, false),
        ("listen = \"127.0.0.1:7400\"\nadvertise = \"a.example:7400\"", false, false),
        ("listen = \"10.0.0.1:7400\"", false, false),
        ("listen = \"10.0.0.1:7400\"\nca = \"a\"\ncert = \"b\"\nkey = \"c\"", false, true),
    ] {
        let settings = parse("a.toml", &format!("[cluster]\n{keys}\n"), &[]).unwrap().cluster;
        assert_eq!((settings.plain, settings.tls.is_some()), (plain, given), "{keys}");
    }
    // Who joins by a token is told where the backends are.
    let frontend = "[node]\nroles = [\"frontend\"]\n[cluster]\njoin_file = \"a\"\n";
    let join = parse("a.toml", frontend, &[]).unwrap().cluster.join;
    assert_eq!(join, Some(cluster::Join::File("a".into())));
}

#[test]
fn the_keys_that_scripts_rely_on_make_a_cluster_on_loopback() {
    let text = r#"
        hosts = ["localhost"]
        [node]
        name = "a"
        roles = ["frontend", "backend"]
        data_dir = "/tmp/a"
        [c2s]
        listen = ["0.0.0.0:5222"]
        direct_tls_listen = ["0.0.0.0:5223"]
        tls_required = true
        [admin]
        listen = "127.0.0.1:5280"
        [cluster]
        listen = "127.0.0.1:7400"
        advertise = "127.0.0.1:7400"
        expect = 3
        discovery = { static = ["127.0.0.1:7400", "127.0.0.1:7401"] }
    "#;
    let settings = parse("a.toml", text, &[]).unwrap();
    assert_eq!(settings.cluster.expect, 3);
    assert!(settings.cluster.plain);
    assert_eq!(settings.engine, settings::Engine::Replicated);
}

#[test]
fn a_key_set_on_the_command_line_wins_over_the_file() {
    let set = |pairs: &[&str]| pairs.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = "[c2s]\ntls_required = true\n";
    let settings =
        parse("a.toml", text, &set(&["c2s.tls_required=false", "node.name=bare", "hosts=[\"x.example\"]"]))
            .unwrap();
    assert!(!settings.session.c2s.tls_required);
    assert_eq!((settings.node.name.as_str(), settings.hosts[0].as_str()), ("bare", "x.example"));
    let wrong = parse("a.toml", text, &set(&["c2s.tls_requird=false"])).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "--set c2s.tls_requird=false: `c2s.tls_requird`: unknown key; the nearest known key is `c2s.tls_required`"
    );
}

#[test]
fn the_committed_config_files_are_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    for name in ["rookery.toml", "single.toml", "frontend.toml", "backend.toml"] {
        if let Err(faults) = load(Some(&folder.join(name)), &[]) {
            panic!("{faults}");
        }
    }
}

#[test]
fn the_committed_list_of_keys_is_not_stale() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/rookery.toml");
    let committed = std::fs::read_to_string(file).unwrap();
    assert_eq!(
        committed,
        print::default_file(),
        "run: cargo run -- config print-default > config/rookery.toml"
    );
}

#[test]
fn every_default_has_the_form_of_its_key() {
    for key in keys::KEYS {
        let (keys::Fallback::Is(text) | keys::Fallback::Unset(text)) = key.fallback;
        let pair = format!("{}={text}", key.path);
        if let Err(faults) = read::read("", "", &[pair]) {
            panic!("{faults}");
        }
    }
}

#[test]
fn each_setting_of_the_crates_has_a_key_with_the_same_default() {
    let of = |value: Result<serde_json::Value, serde_json::Error>| value.unwrap();
    let parts = [
        ("limits", of(serde_json::to_value(session::Limits::default()))),
        ("limits", of(serde_json::to_value(router::Config::default()))),
        ("c2s", of(serde_json::to_value(session::C2s::default()))),
        ("tls", of(serde_json::to_value(session::Tls::default()))),
        ("auth", of(serde_json::to_value(session::Auth::default()))),
        ("cluster.times", of(serde_json::to_value(cluster::Times::default()))),
    ];
    for (table, defaults) in parts {
        for (name, default) in defaults.as_object().unwrap() {
            let path = format!("{table}.{name}");
            let key = keys::find(&path).unwrap_or_else(|| panic!("`{path}` is missing in the table of keys"));
            let keys::Fallback::Is(text) = key.fallback else {
                assert!(default.is_null(), "`{path}` has no default");
                continue;
            };
            let written: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(&written, default, "{path}");
        }
    }
}

//! Tables for the negotiation: what a client says, what the server does about it.

use super::*;
use crate::client::{ClientAct, Login, LoginMachine};
use crate::limits::Limits;
use crate::reader::Reader;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes};
use std::sync::atomic::{AtomicU8, Ordering};

pub fn settings() -> Settings {
    let count = AtomicU8::new(0);
    let random = move |buffer: &mut [u8]| buffer.fill(count.fetch_add(1, Ordering::Relaxed));
    let hosts = ["x", "y"].map(|host| address::host(host).unwrap()).to_vec();
    Settings { iterations: 16, ..Settings::new(hosts, b"secret".to_vec(), Arc::new(random)) }
}

fn clear() -> Settings {
    Settings { tls_required: false, ..settings() }
}

pub fn facts() -> TlsFacts {
    TlsFacts {
        version: TlsVersion::Tls13,
        exporter: Some(vec![1; 32]),
        endpoint_hash: Some(vec![2; 32]),
        alpn: None,
        sni: None,
        client: ClientCertificate::Absent,
    }
}

/// A reader and a negotiation, and what they did as short lines.
pub struct Talk {
    pub reader: Reader,
    pub negotiation: Negotiation,
    input: BytesMut,
    did: Vec<String>,
}

impl Talk {
    fn new(settings: Settings, secure: bool) -> Talk {
        Talk::with(settings, if secure { Entry::DirectTls(facts()) } else { Entry::Clear })
    }

    pub fn with(settings: Settings, entry: Entry) -> Talk {
        Talk {
            reader: Reader::new(Limits::before_auth()),
            negotiation: Negotiation::new(Arc::new(settings), entry),
            input: BytesMut::new(),
            did: Vec::new(),
        }
    }

    /// The client says this; what was done since the last time.
    pub fn say(&mut self, xml: &str) -> Vec<String> {
        self.input.extend_from_slice(xml.as_bytes());
        self.go_on()
    }

    fn go_on(&mut self) -> Vec<String> {
        while !self.negotiation.is_waiting() {
            let acts = match self.reader.feed(&mut self.input) {
                Ok(Some(event)) => self.negotiation.on_event(event),
                Ok(None) => break,
                Err(error) => {
                    let acts = self.negotiation.on_read_error(error);
                    self.note(acts);
                    break;
                }
            };
            self.note(acts);
        }
        std::mem::take(&mut self.did)
    }

    pub fn answer(&mut self, f: impl FnOnce(&mut Negotiation) -> Acts) -> Vec<String> {
        let acts = f(&mut self.negotiation);
        self.note(acts);
        self.go_on()
    }

    fn note(&mut self, acts: Acts) {
        for act in acts {
            match &act {
                Act::StartTls => {
                    self.input.clear();
                    self.reader.restart();
                }
                Act::RestartStream => {
                    self.reader.set_limits(Limits::after_auth());
                    self.reader.restart();
                }
                Act::Admitted => self.reader.set_limits(Limits::after_auth()),
                _ => {}
            }
            self.did.push(show(&act));
        }
    }
}

fn show(act: &Act) -> String {
    match act {
        Act::Send(bytes) => short(std::str::from_utf8(bytes).unwrap()),
        Act::StartTls => "START TLS".into(),
        Act::LookUp { account, hash } => format!("LOOK UP {account} {hash:?}"),
        Act::CheckPassword { account, password } => format!("CHECK {account} {}", password.expose()),
        Act::AuthFailed { account, condition } => {
            format!("FAILED {} {}", account.as_ref().map_or("-", |a| a.as_str()), condition.tag())
        }
        Act::Authenticated { account, mechanism } => format!("IS {account} {}", mechanism.as_str()),
        Act::Greet { host, .. } => format!("GREET {host}"),
        Act::FindTokens { account, client } => format!("TOKENS {account} {client}"),
        Act::StoreKeys { account, hash, keys } => {
            format!("STORE {account} {hash:?} {}", BASE64.encode(&keys.stored_key))
        }
        Act::SettleTokens(settling) => {
            let Settling { account, client, key, count, invalidate, request } = &**settling;
            format!("SETTLE {account} {client} {} {count:?} {invalidate} {request:?}", key.is_some())
        }
        Act::RestartStream => "RESTART".into(),
        Act::Admitted => "ADMITTED".into(),
        Act::BindInline { account, resource, client, asked } => {
            let asked: Vec<&str> = asked.iter().map(Element::name).collect();
            format!("BIND {account} {resource} of {} with {asked:?}", client.as_deref().unwrap_or("-"))
        }
        Act::Bind { account, requested } => {
            format!("BIND {account} {}", requested.as_ref().map_or("-", |r| r.as_str()))
        }
        Act::Resume { account, resume } => format!("RESUME {account} {} {}", resume.id, resume.handled),
        Act::Bound { jid } => format!("BOUND {jid}"),
        Act::Close { error } => {
            format!("CLOSE {}", error.as_ref().map_or("-", |error| error.condition.tag()))
        }
    }
}

/// XML without what is the same everywhere.
fn short(xml: &str) -> String {
    let mut xml = xml.to_owned();
    if let Some(start) = xml.find("<?xml") {
        let end = xml[start..].find("><").map_or(xml.len(), |i| start + i);
        let end = xml[end + 1..].find('>').map_or(xml.len(), |i| end + 1 + i + 1);
        let attribute = |name: &str| {
            let header = &xml[start + "<?xml version='1.0'?>".len()..end];
            let from = header.find(&format!(" {name}='")).map(|i| i + name.len() + 3);
            from.map_or("-", |from| &header[from..from + header[from..].find('\'').unwrap()]).to_owned()
        };
        let version = match attribute("version").as_str() {
            "1.0" => String::new(),
            other => format!(" version {other}"),
        };
        let line = format!("[header {} to {}{version}]", attribute("from"), attribute("to"));
        xml.replace_range(start..end, &line);
    }
    let known = [ns::TLS, ns::SASL, ns::BIND, ns::SESSION, ns::STANZA_ERRORS, ns::STREAM_ERRORS];
    for uri in known.into_iter().chain([features::CHANNEL_BINDING, features::SASL2]) {
        xml = xml.replace(&format!(" xmlns='{uri}'"), "");
    }
    xml.replace("stream:", "")
}

pub fn header(to: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='{to}' version='1.0'>"
    )
}

pub fn auth(mechanism: &str, payload: &str) -> String {
    let payload = if payload == "=" { "=".into() } else { BASE64.encode(payload) };
    format!("<auth xmlns='{}' mechanism='{mechanism}'>{payload}</auth>", ns::SASL)
}

const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
pub const BIND: &str = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
pub const FEATURES: &str = "<features><sasl-channel-binding><channel-binding type='tls-exporter'/>\
    <channel-binding type='tls-server-end-point'/></sasl-channel-binding><mechanisms>\
    <mechanism>SCRAM-SHA-512-PLUS</mechanism><mechanism>SCRAM-SHA-256-PLUS</mechanism>\
    <mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>SCRAM-SHA-512</mechanism>\
    <mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism>\
    <mechanism>PLAIN</mechanism></mechanisms></features>";
const BIND_FEATURES: &str = "<features><bind/><session><optional/></session></features>";

/// A stream inside TLS, header and features exchanged.
fn opened() -> Talk {
    let mut talk = Talk::new(settings(), true);
    assert_eq!(talk.say(&header("x")), [format!("[header x to -]{FEATURES}")]);
    talk
}

/// A stream of alice, ready to bind.
fn authenticated() -> Talk {
    let mut talk = opened();
    assert_eq!(talk.say(&auth("PLAIN", "\0alice\0secret")), ["CHECK alice@x secret"]);
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert_eq!(did, ["<success/>", "IS alice@x PLAIN", "RESTART"]);
    assert_eq!(talk.say(&header("x")), [format!("[header x to -]{BIND_FEATURES}")]);
    talk
}

#[test]
fn a_header_that_is_wrong_ends_the_stream() {
    let ns = ns::STREAM;
    let stream = |rest: &str| format!("<s:stream xmlns:s='{ns}' xmlns='jabber:client' {rest}>");
    let cases = [
        (stream("to='nowhere' version='1.0'"), "host-unknown"),
        (stream("to='a@x' version='1.0'"), "host-unknown"),
        (stream("to='' version='1.0'"), "improper-addressing"),
        (stream("version='1.0'"), "improper-addressing"),
        (stream("to='x'"), "unsupported-version"),
        (stream("to='x' version='0.9'"), "unsupported-version"),
        (stream("to='x' version='one'"), "unsupported-version"),
        (stream(&format!("to='x' version='1.0' xml:lang='{}'", "a".repeat(4_000))), "policy-violation"),
        (format!("<s:stream xmlns:s='{ns}' xmlns='wrong' to='x' version='1.0'>"), "invalid-namespace"),
        (
            format!("<s:stream xmlns:s='{ns}' xmlns='jabber:server' to='x' version='1.0'>"),
            "invalid-namespace",
        ),
        ("<s:stream xmlns:s='wrong' xmlns='jabber:client' to='x' version='1.0'>".into(), "invalid-namespace"),
        ("<c xmlns='http://jabber.org/protocol/caps'/>".into(), "invalid-namespace"),
        (format!("<s:steam xmlns:s='{ns}' to='x' version='1.0'>"), "bad-format"),
        ("<'/>".into(), "not-well-formed"),
        ("GET / HTTP/1.1\r\n".into(), "not-well-formed"),
    ];
    for (xml, condition) in cases {
        let did = Talk::new(settings(), true).say(&xml);
        assert_eq!(did.len(), 2, "{xml}: {did:?}");
        let version = match condition {
            "unsupported-version" if !xml.contains("version=") => " version -",
            "unsupported-version" if xml.contains("'0.9'") => " version 0.9",
            _ => "",
        };
        let start = format!("[header x to -{version}]<error><{condition}/>");
        assert!(did[0].starts_with(&start) && did[0].ends_with("</error></stream>"), "{xml}: {did:?}");
        assert_eq!(did[1], format!("CLOSE {condition}"));
    }
}

#[test]
fn a_later_version_is_answered_with_ours() {
    for version in ["1.0", "1.1", "2.7", "01.00", "10.0"] {
        let xml = header("x").replace(" version='1.0'>", &format!(" version='{version}'>"));
        assert_eq!(Talk::new(settings(), true).say(&xml), [format!("[header x to -]{FEATURES}")]);
    }
}

#[test]
fn every_host_is_answered_by_its_name() {
    for (to, host) in [("x", "x"), ("Y", "y"), ("y.", "y")] {
        let xml = header(to).replace(" to=", " from='Bob@y' to=");
        let did = Talk::new(settings(), true).say(&xml);
        assert_eq!(did, [format!("[header {host} to bob@y]{FEATURES}")]);
    }
}

#[test]
fn a_version_before_ours_is_answered_as_it_is() {
    for (version, answer) in
        [("", "-"), ("version='0.9'", "0.9"), ("version='00.010'", "0.10"), ("version='0.0'", "0.0")]
    {
        let xml = header("x").replace("version='1.0'>", &format!("{version}>"));
        let did = Talk::new(settings(), true).say(&xml);
        let expected =
            format!("[header x to - version {answer}]<error><unsupported-version/></error></stream>");
        assert_eq!(did[0], expected, "{xml}");
    }
}

#[test]
fn the_answer_is_to_whom_the_client_says_it_is() {
    let cases = [
        ("", "-"),
        ("from='Bob@y'", "bob@y"),
        ("from='bob@y/r'", "bob@y"),
        ("from='@@'", "-"),
        ("from=''", "-"),
        ("id='7'", "-"),
    ];
    for (from, to) in cases {
        let good = header("x").replace(" to=", &format!(" {from} to="));
        let did = Talk::new(settings(), true).say(&good);
        assert_eq!(did, [format!("[header x to {to}]{FEATURES}")], "{from}");
        // RFC 6120, 4.9.1.3: a header that is refused is answered like any other.
        let bad = good.replace("to='x'", "to='nowhere'");
        let did = Talk::new(settings(), true).say(&bad);
        assert_eq!(did[0], format!("[header x to {to}]<error><host-unknown/></error></stream>"), "{from}");
    }
    // What was said in front of TLS is forgotten behind it.
    let mut talk = Talk::new(settings(), false);
    talk.say(&header("x").replace(" to=", " from='bob@x' to="));
    talk.say(STARTTLS);
    talk.negotiation.on_tls(facts());
    let did = talk.answer(Negotiation::on_timeout);
    assert_eq!(did[0], "[header x to -]<error><connection-timeout/></error></stream>");
}

#[test]
fn each_stanza_may_say_the_content_namespace() {
    for open in [
        format!("<stream xmlns='{}' to='x' version='1.0'>", ns::STREAM),
        format!("<s:stream xmlns:s='{}' to='x' version='1.0'>", ns::STREAM),
    ] {
        let mut talk = Talk::new(settings(), true);
        assert_eq!(talk.say(&open), [format!("[header x to -]{FEATURES}")]);
        talk.say(&auth("PLAIN", "\0alice\0secret"));
        talk.answer(|n| n.on_password_checked(Checked::Good));
        talk.say(&open);
        assert_eq!(talk.say(&BIND.replace("<iq", "<iq xmlns='jabber:client'")), ["BIND alice@x -"]);
    }
}

#[test]
fn without_tls_nothing_is_offered_but_tls() {
    let mut talk = Talk::new(settings(), false);
    let offer = "[header x to -]<features><starttls><required/></starttls></features>";
    assert_eq!(talk.say(&header("x")), [offer]);
    for mechanism in ["PLAIN", "SCRAM-SHA-1", "ANONYMOUS"] {
        let did = talk.say(&auth(mechanism, "="));
        assert_eq!(did, ["<failure><encryption-required/></failure>", "FAILED - encryption-required"]);
    }
}

#[test]
fn where_tls_is_optional_a_password_still_needs_it() {
    let mut talk = Talk::new(clear(), false);
    let did = talk.say(&header("x"));
    assert!(did[0].contains("<starttls/>") && did[0].contains("SCRAM-SHA-1") && !did[0].contains("PLAIN"));
    assert_eq!(talk.say(&auth("PLAIN", "\0alice\0secret"))[1], "FAILED - encryption-required");
    assert_eq!(talk.say(&auth("SCRAM-SHA-1", "n,,n=alice,r=abc")), ["LOOK UP alice@x Sha1"]);
}

#[test]
fn what_came_in_the_clear_is_thrown_away_at_starttls() {
    let mut talk = Talk::new(settings(), false);
    talk.say(&header("x"));
    let did = talk.say(&format!("{STARTTLS}{}{}", header("x"), auth("PLAIN", "\0alice\0secret")));
    assert_eq!(did, ["<proceed/>", "START TLS"]);
    assert!(talk.negotiation.is_waiting() && talk.input.is_empty());
    talk.negotiation.on_tls(facts());
    assert_eq!(talk.say(&header("x")), [format!("[header x to -]{FEATURES}")]);
}

#[test]
fn starttls_that_is_not_offered_ends_the_stream() {
    let failure = ["<failure/></stream>", "CLOSE -"];
    assert_eq!(opened().say(STARTTLS), failure, "a second time");
    let mut talk = Talk::new(Settings { tls_available: false, ..clear() }, false);
    assert!(!talk.say(&header("x"))[0].contains("starttls"));
    assert_eq!(talk.say(STARTTLS), failure);
    assert_eq!(authenticated().say(STARTTLS), failure);
}

#[test]
fn nothing_is_written_into_a_handshake() {
    let mut talk = Talk::new(settings(), false);
    talk.say(&format!("{}{STARTTLS}", header("x")));
    assert_eq!(talk.answer(Negotiation::on_timeout), ["CLOSE connection-timeout"]);
}

#[test]
fn exchanges_that_are_wrong_fail_and_may_be_tried_again() {
    let sasl = ns::SASL;
    let cases = [
        (auth("ANONYMOUS", "="), "invalid-mechanism"),
        (auth("DIGEST-MD5", "="), "invalid-mechanism"),
        (auth("plain", "="), "invalid-mechanism"),
        (auth("EXTERNAL", "="), "invalid-mechanism"),
        (auth("SCRAM-SHA-256-PLUS", "n,,n=alice,r=abc"), "malformed-request"),
        (auth("SCRAM-SHA-256", "p=tls-exporter,,n=alice,r=abc"), "malformed-request"),
        (format!("<auth xmlns='{sasl}'>AA==</auth>"), "invalid-mechanism"),
        (format!("<auth xmlns='{sasl}' mechanism='PLAIN'>!</auth>"), "incorrect-encoding"),
        (format!("<auth xmlns='{sasl}' mechanism='PLAIN'>AA</auth>"), "incorrect-encoding"),
        (format!("<auth xmlns='{sasl}' mechanism='PLAIN'>A A==</auth>"), "incorrect-encoding"),
        (auth("PLAIN", "="), "malformed-request"),
        (auth("PLAIN", "\0\0"), "malformed-request"),
        (auth("PLAIN", "bob@x\0alice\0secret"), "invalid-authzid"),
        (format!("<response xmlns='{sasl}'>AA==</response>"), "malformed-request"),
        (format!("<abort xmlns='{sasl}'/>"), "aborted"),
    ];
    for (xml, condition) in cases {
        let mut talk = opened();
        let expected = [format!("<failure><{condition}/></failure>"), format!("FAILED - {condition}")];
        assert_eq!(talk.say(&xml), expected, "{xml}");
        assert_eq!(talk.say(&auth("PLAIN", "\0alice\0secret")), ["CHECK alice@x secret"], "{xml}");
    }
}

#[test]
fn an_exchange_without_an_initial_response_is_asked_for_it() {
    let mut talk = opened();
    let xml = format!("<auth xmlns='{}' mechanism='PLAIN'/>", ns::SASL);
    assert_eq!(talk.say(&xml), ["<challenge/>"]);
    let response = BASE64.encode("\0alice\0secret");
    let xml = format!("<response xmlns='{}'>{response}</response>", ns::SASL);
    assert_eq!(talk.say(&xml), ["CHECK alice@x secret"]);
}

#[test]
fn a_second_exchange_takes_the_place_of_the_first() {
    let mut talk = opened();
    talk.say(&auth("SCRAM-SHA-1", "n,,n=alice,r=abc"));
    let challenge = talk.answer(|n| n.on_credentials(None));
    assert!(challenge[0].starts_with("<challenge>"), "{challenge:?}");
    let did = talk.say(&auth("PLAIN", "\0bob\0secret"));
    assert_eq!(did, ["FAILED alice@x aborted", "CHECK bob@x secret"]);
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert_eq!(did, ["<success/>", "IS bob@x PLAIN", "RESTART"]);
}

#[test]
fn exchanges_that_are_given_up_for_others_are_bounded() {
    let mut talk = opened();
    let begin = format!("<auth xmlns='{}' mechanism='PLAIN'/>", ns::SASL);
    assert_eq!(talk.say(&begin), ["<challenge/>"]);
    for _ in 0..3 {
        assert_eq!(talk.say(&begin), ["FAILED - aborted", "<challenge/>"]);
    }
    let did = talk.say(&begin);
    assert_eq!((did[0].as_str(), did.len()), ("FAILED - aborted", 3), "{did:?}");
    assert!(did[1].starts_with("<error><policy-violation/>"), "{did:?}");
    assert_eq!(did[2], "CLOSE policy-violation");
}

#[test]
fn the_fourth_failure_ends_the_stream() {
    let mut talk = opened();
    let failure = ["<failure><not-authorized/></failure>", "FAILED alice@x not-authorized"];
    for _ in 0..3 {
        talk.say(&auth("PLAIN", "\0alice\0wrong"));
        assert_eq!(talk.answer(|n| n.on_password_checked(Checked::Wrong)), failure);
    }
    talk.say(&auth("PLAIN", "\0alice\0wrong"));
    let did = talk.answer(|n| n.on_password_checked(Checked::Wrong));
    assert_eq!(did[..2], failure);
    assert!(did[2].starts_with("<error><policy-violation/>"), "{did:?}");
    assert_eq!(did[3], "CLOSE policy-violation");
}

#[test]
fn a_store_that_does_not_answer_is_a_temporary_failure() {
    let mut talk = opened();
    talk.say(&auth("SCRAM-SHA-1", "n,,n=alice,r=abc"));
    let did = talk.answer(Negotiation::on_unavailable);
    assert_eq!(did[0], "<failure><temporary-auth-failure/></failure>");
}

#[test]
fn what_was_sent_ahead_of_a_failed_login_is_not_done() {
    let ahead = format!("{}{}<message to='bob@x'/>", header("x"), BIND);
    let mut talk = opened();
    assert_eq!(talk.say(&format!("{}{ahead}", auth("PLAIN", "\0alice\0wrong"))), ["CHECK alice@x wrong"]);
    let did = talk.answer(|n| n.on_password_checked(Checked::Wrong));
    assert!(!did.iter().any(|line| line.starts_with("BIND")), "{did:?}");
    assert_eq!(did.last().unwrap(), "CLOSE restricted-xml");
}

#[test]
fn what_was_sent_ahead_of_a_good_login_is_done_in_order() {
    let mut talk = opened();
    talk.say(&format!("{}{}{}<presence/>", auth("PLAIN", "\0alice\0secret"), header("x"), BIND));
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert_eq!(
        did,
        [
            "<success/>",
            "IS alice@x PLAIN",
            "RESTART",
            &format!("[header x to -]{BIND_FEATURES}"),
            "BIND alice@x -"
        ]
    );
    assert_eq!(talk.input.chunk(), b"<presence/>", "what follows the bind request is the session's");
}

#[test]
fn stanzas_before_binding_end_the_stream() {
    let refused = ["<error><not-authorized/></error></stream>", "CLOSE not-authorized"];
    let stanzas = [
        "<message to='bob@x'/>",
        "<presence/>",
        "<message to='@@@'/>",
        "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
        "<iq type='set' id='1'/>",
    ];
    for stanza in stanzas.into_iter().chain([BIND]) {
        let mut talk = opened();
        let mut did = talk.say(stanza);
        if did == ["GREET x"] {
            did = talk.answer(|negotiation| negotiation.on_greeted(None));
        }
        assert_eq!(did, refused, "before authentication: {stanza}");
    }
    let to_bob = BIND.replace("<iq", "<iq to='bob@x'");
    let asks = BIND.replace("'set'", "'get'");
    for stanza in stanzas.into_iter().chain([&*to_bob, &*asks]) {
        assert_eq!(authenticated().say(stanza), refused, "before binding: {stanza}");
    }
}

#[test]
fn who_names_itself_logs_in_by_that_name() {
    for (from, secure, good) in [
        ("", true, true),
        ("from='Alice@x'", true, true),
        ("from='alice@x/r'", true, true),
        ("from='x'", true, true),
        ("from='bob@x'", true, false),
        ("from='alice@y'", true, false),
        // Anybody on the way could have written it.
        ("from='bob@x'", false, true),
    ] {
        let mut talk = Talk::new(settings(), secure);
        talk.say(&header("x").replace(" to=", &format!(" {from} to=")));
        if !secure {
            talk.say(STARTTLS);
            talk.negotiation.on_tls(facts());
            talk.say(&header("x"));
        }
        talk.say(&auth("PLAIN", "\0alice\0secret"));
        let did = talk.answer(|n| n.on_password_checked(Checked::Good));
        let expected: &[_] = match good {
            true => &["<success/>", "IS alice@x PLAIN", "RESTART"],
            false => &["<error><invalid-from/></error></stream>", "CLOSE invalid-from"],
        };
        assert_eq!(did, expected, "{from}");
    }
}

#[test]
fn nobody_binds_in_the_name_of_another() {
    for (from, good) in [("alice@x", true), ("alice@x/r", true), ("bob@x", false), ("x", false)] {
        let did = authenticated().say(&BIND.replace("<iq", &format!("<iq from='{from}'")));
        let expected: &[_] = match good {
            true => &["BIND alice@x -"],
            false => &["<error><invalid-from/></error></stream>", "CLOSE invalid-from"],
        };
        assert_eq!(did, expected, "{from}");
    }
}

#[test]
fn elements_that_nobody_understands_end_the_stream() {
    let error = |condition: &str| {
        vec![format!("<error><{condition}/></error></stream>"), format!("CLOSE {condition}")]
    };
    let cases = [
        ("<foo/>", error("unsupported-stanza-type")),
        ("<message xmlns='evil'/>", error("unsupported-stanza-type")),
        ("<message xmlns='jabber:server'/>", error("invalid-namespace")),
        ("<s:x xmlns:s='jabber:server'/>", error("invalid-namespace")),
        ("<handshake xmlns='jabber:component:accept'/>", error("invalid-namespace")),
        ("<stream:features/>", error("unsupported-stanza-type")),
        ("<stream:error/>", vec!["</stream>".to_owned(), "CLOSE -".to_owned()]),
        ("</stream:stream>", vec!["</stream>".to_owned(), "CLOSE -".to_owned()]),
    ];
    for (xml, expected) in cases {
        assert_eq!(opened().say(xml), expected, "{xml}");
        assert_eq!(authenticated().say(xml), expected, "{xml}");
    }
    let did = opened()
        .say("<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>");
    assert_eq!(did, ["<failure xmlns='http://jabber.org/protocol/compress'><unsupported-method/></failure>"]);
}

#[test]
fn a_restarted_stream_keeps_its_name_and_host() {
    for (to, from, good) in [
        ("x", "", true),
        ("x", "from='Alice@x'", true),
        ("x", "from='alice@x/r'", true),
        ("x", "from='bob@x'", false),
        ("x", "from='@@'", false),
        ("y", "", false),
    ] {
        let mut talk = opened();
        talk.say(&auth("PLAIN", "\0alice\0secret"));
        talk.answer(|n| n.on_password_checked(Checked::Good));
        let did = talk.say(&header(to).replace(" to=", &format!(" {from} to=")));
        let last = did.last().unwrap();
        assert_eq!(last == "CLOSE not-authorized", !good, "{to} {from}: {did:?}");
        assert_eq!(talk.negotiation.account().unwrap().as_str(), "alice@x");
    }
}

#[test]
fn who_is_authenticated_does_not_authenticate_again() {
    let did = authenticated().say(&auth("PLAIN", "\0bob\0secret"));
    assert_eq!(did, ["<error><policy-violation/></error></stream>", "CLOSE policy-violation"]);
}

/// Up to where a resource is bound, with stream management on offer.
fn about_to_resume() -> Talk {
    let mut talk = opened();
    talk.say(&auth("PLAIN", "\0alice\0secret"));
    talk.answer(|n| n.on_password_checked(Checked::Good));
    talk.negotiation.offer(vec![management::feature()]);
    talk.say(&header("x"));
    talk
}

const RESUME: &str = "<resume xmlns='urn:xmpp:sm:3' previd='one' h='7'/>";

#[test]
fn an_earlier_session_is_resumed() {
    let mut talk = about_to_resume();
    assert_eq!(talk.say(RESUME), ["RESUME alice@x one 7"]);
    let jid = FullJid::new("alice@x/r").unwrap();
    let did = talk.answer(|n| n.on_resumed(Ok((jid, 3))));
    assert_eq!(did, ["<resumed xmlns='urn:xmpp:sm:3' h='3' previd='one'/>", "BOUND alice@x/r"]);
}

#[test]
fn what_cannot_be_resumed_leaves_the_stream_to_bind() {
    let mut talk = about_to_resume();
    talk.say(RESUME);
    let did = talk.answer(|n| n.on_resumed(Err((Condition::ItemNotFound, Some(5)))));
    assert_eq!(did, ["<failed xmlns='urn:xmpp:sm:3' h='5'><item-not-found/></failed>"]);
    assert_eq!(talk.say(BIND), ["BIND alice@x -"]);
}

#[test]
fn attempts_to_resume_are_bounded() {
    let mut talk = about_to_resume();
    for _ in 0..BIND_FAILURES_MAX {
        talk.say(RESUME);
        talk.answer(|n| n.on_resumed(Err((Condition::ItemNotFound, None))));
    }
    talk.say(RESUME);
    let did = talk.answer(|n| n.on_resumed(Err((Condition::ItemNotFound, None))));
    assert!(did.last().is_some_and(|last| last == "CLOSE policy-violation"), "{did:?}");
}

#[test]
fn where_it_is_not_offered_nothing_is_resumed() {
    let mut talk = opened();
    let refused = ["<failed xmlns='urn:xmpp:sm:3'><unexpected-request/></failed>"];
    assert_eq!(talk.say(RESUME), refused, "nobody has logged in");
    talk.say(&auth("PLAIN", "\0alice\0secret"));
    talk.answer(|n| n.on_password_checked(Checked::Good));
    talk.say(&header("x"));
    assert_eq!(talk.say(RESUME), ["<failed xmlns='urn:xmpp:sm:3'><feature-not-implemented/></failed>"]);
}

#[test]
fn a_resource_is_bound() {
    let with =
        |resource: &str| BIND.replace("bind'/>", &format!("bind'><resource>{resource}</resource></bind>"));
    let cases = [
        (BIND.to_owned(), "BIND alice@x -"),
        (with(""), "BIND alice@x -"),
        (with("Phone"), "BIND alice@x Phone"),
        (with("\u{ff30}hone"), "BIND alice@x Phone"),
        (BIND.replace("<iq", "<iq to='x'"), "BIND alice@x -"),
        (BIND.replace("<iq", "<iq to='alice@x'"), "BIND alice@x -"),
    ];
    for (xml, expected) in cases {
        let mut talk = authenticated();
        assert_eq!(talk.say(&xml), [expected], "{xml}");
        let did = talk.answer(|n| n.on_bound(Ok(FullJid::new("alice@x/r").unwrap())));
        let answer = "<iq id='b' type='result'><bind><jid>alice@x/r</jid></bind></iq>";
        assert_eq!(did, [answer, "BOUND alice@x/r"]);
    }
}

#[test]
fn a_resource_that_cannot_be_is_refused_and_another_may_be_asked_for() {
    let long = "x".repeat(2_000);
    for resource in ["&#x7;", "\u{200e}\u{5d0}a", long.as_str()] {
        let xml = BIND.replace("bind'/>", &format!("bind'><resource>{resource}</resource></bind>"));
        let mut talk = authenticated();
        let did = talk.say(&xml);
        if resource == "&#x7;" {
            assert_eq!(did.last().unwrap(), "CLOSE not-well-formed", "no XML character");
            continue;
        }
        assert!(did[0].starts_with("<iq id='b' type='error'><error type='modify'><bad-request/>"), "{did:?}");
        assert_eq!(talk.say(BIND), ["BIND alice@x -"]);
    }
}

#[test]
fn a_refused_bind_may_be_tried_again_but_not_for_ever() {
    let mut talk = authenticated();
    let refuse = |n: &mut Negotiation| n.on_bound(Err(Condition::Conflict.into()));
    for _ in 0..5 {
        talk.say(BIND);
        let did = talk.answer(refuse);
        assert_eq!(did, ["<iq id='b' type='error'><error type='cancel'><conflict/></error></iq>"]);
    }
    talk.say(BIND);
    assert_eq!(talk.answer(refuse).last().unwrap(), "CLOSE policy-violation");
}

#[test]
fn features_of_modules_are_offered_after_authentication() {
    let mut talk = opened();
    talk.say(&auth("PLAIN", "\0alice\0secret"));
    talk.answer(|n| n.on_password_checked(Checked::Good));
    talk.negotiation
        .offer(vec![Element::bare("ver", ns::ROSTER_VERSIONING), Element::bare("session", ns::SESSION)]);
    let did = talk.say(&header("x"));
    assert_eq!(
        did,
        ["[header x to -]<features><bind/><ver xmlns='urn:xmpp:features:rosterver'/><session/></features>"]
    );
}

#[test]
fn the_server_can_end_a_stream_at_any_time() {
    let end = |n: &mut Negotiation| n.end(StreamCondition::SystemShutdown.into());
    let did = Talk::new(settings(), false).answer(end);
    assert_eq!(did, ["[header x to -]<error><system-shutdown/></error></stream>", "CLOSE system-shutdown"]);
    let mut talk = opened();
    assert_eq!(talk.answer(end)[1], "CLOSE system-shutdown");
    assert!(talk.say("<presence/>").is_empty(), "and nothing after it");
    assert!(talk.answer(Negotiation::on_timeout).is_empty());
    let mut talk = opened();
    talk.say(&auth("PLAIN", "\0alice\0secret"));
    assert_eq!(talk.answer(Negotiation::on_timeout)[1], "CLOSE connection-timeout");
    assert!(
        talk.answer(|n| n.on_password_checked(Checked::Good)).is_empty(),
        "an answer that comes too late"
    );
}

#[test]
fn an_event_while_we_wait_is_a_violation() {
    let mut talk = opened();
    talk.say(&auth("PLAIN", "\0alice\0secret"));
    let acts = talk.negotiation.on_event(StreamEvent::Stanza(Stanza::presence(None)));
    assert_eq!(show(acts.last().unwrap()), "CLOSE policy-violation");
}

#[test]
fn resources_that_we_make_differ() {
    let settings = settings();
    let (a, b) = (settings.make_resource(), settings.make_resource());
    assert_ne!(a, b);
    assert_eq!(a.as_str().len(), 32);
}

/// Our client against our server, byte by byte both ways.
#[test]
fn a_client_logs_in_with_every_mechanism() {
    // Our client shows no certificate and binds to no channel.
    let mechanisms = MechanismName::DEFAULT.into_iter();
    let mechanisms = mechanisms.filter(|name| !name.binds() && *name != MechanismName::External);
    for mechanism in mechanisms.map(Some).chain([None]) {
        let login = Login {
            account: BareJid::new("alice@x").unwrap(),
            password: "secret".into(),
            resource: Some(ResourcePart::new("r").unwrap().into_owned()),
            mechanism,
            tls: true,
        };
        let mut client = LoginMachine::new(login, "abc", false);
        let mut server = Talk::new(settings(), false);
        let mut to_client = Reader::new(Limits::after_auth());
        let mut queue = vec![ClientAct::Send(client.start())];
        let mut bound = None;
        while let Some(act) = queue.pop() {
            match act {
                ClientAct::Send(bytes) => {
                    for reply in replies(&mut server, &bytes) {
                        let mut input = BytesMut::from(&reply[..]);
                        while !input.is_empty() {
                            let mut one = input.split_to(1);
                            while let Some(event) = to_client.feed(&mut one).unwrap() {
                                for act in client.on_event(event) {
                                    if act == ClientAct::RestartStream {
                                        to_client.restart();
                                    } else {
                                        queue.push(act);
                                    }
                                }
                            }
                        }
                    }
                }
                ClientAct::StartTls => {
                    server.negotiation.on_tls(facts());
                    to_client.restart();
                    queue.extend(client.on_tls());
                }
                ClientAct::Bound(jid) => bound = Some(jid),
                other => panic!("{mechanism:?}: {other:?}"),
            }
        }
        assert_eq!(bound.unwrap().as_str(), "alice@x/r", "{mechanism:?}");
    }
}

/// Feeds the server and plays its caller; the bytes that it wants written.
fn replies(server: &mut Talk, bytes: &[u8]) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut acts = Acts::new();
    for byte in bytes {
        server.input.extend_from_slice(&[*byte]);
        while !server.negotiation.is_waiting() {
            let Some(event) = server.reader.feed(&mut server.input).unwrap() else { break };
            acts.extend(server.negotiation.on_event(event));
            while !acts.is_empty() {
                let more = match acts.remove(0) {
                    Act::Send(bytes) => {
                        out.push(bytes);
                        continue;
                    }
                    Act::StartTls => {
                        server.reader.restart();
                        continue;
                    }
                    Act::RestartStream => {
                        server.reader.restart();
                        continue;
                    }
                    Act::LookUp { hash, .. } => {
                        let keys = keys::derive("secret", hash, b"salt", 16).unwrap();
                        server.negotiation.on_credentials(Some(Found {
                            keys: Some(keys),
                            disabled: false,
                            lacks: Vec::new(),
                        }))
                    }
                    Act::CheckPassword { password, .. } => {
                        assert_eq!(password.expose(), "secret");
                        server.negotiation.on_password_checked(Checked::Good)
                    }
                    Act::Bind { account, requested } => {
                        server.negotiation.on_bound(Ok(account.with_resource(&requested.unwrap())))
                    }
                    Act::Close { error } => panic!("{error:?}"),
                    _ => continue,
                };
                acts.extend(more);
            }
        }
    }
    out
}

//! Tables for what is offered, and for the mechanisms that need more than a password.

use super::tests::{FEATURES, Talk, auth, facts, header, settings};
use super::*;
use crate::sasl::{Unbound, downgrade};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

fn certified(jids: &[&str]) -> TlsFacts {
    let jids = jids.iter().map(|jid| BareJid::new(jid).unwrap()).collect();
    TlsFacts { client: ClientCertificate::Of(jids), ..facts() }
}

fn open(settings: Settings, facts: TlsFacts) -> (Talk, String) {
    let mut talk = Talk::with(settings, Entry::DirectTls(facts));
    let features = talk.say(&header("x")).concat();
    (talk, features)
}

fn offered(settings: Settings, facts: TlsFacts) -> Vec<String> {
    let (_, features) = open(settings, facts);
    let names = features.split("<mechanism>").skip(1);
    names.map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
}

fn found() -> Option<Found> {
    let keys = keys::derive("secret", ScramHash::Sha256, b"salt", 16).unwrap();
    Some(Found { keys: Some(keys), disabled: false, lacks: Vec::new() })
}

#[test]
fn what_can_be_bound_to_is_announced_and_nothing_else() {
    let (_, both) = open(settings(), facts());
    assert_eq!(both, format!("[header x to -]{FEATURES}"));
    let tls12 = TlsFacts { version: TlsVersion::Tls12, exporter: None, ..facts() };
    let (mut talk, one) = open(settings(), tls12);
    assert!(!one.contains("tls-exporter") && one.contains("tls-server-end-point"), "{one}");
    assert!(one.contains("SCRAM-SHA-1-PLUS"), "{one}");
    let did = talk.say(&auth("SCRAM-SHA-256-PLUS", "p=tls-exporter,,n=alice,r=abc"));
    assert!(
        did[0].contains("<not-authorized/>") && did[0].contains(Unbound::UnknownType.as_str()),
        "{did:?}"
    );
    let nothing = TlsFacts { exporter: None, endpoint_hash: None, ..facts() };
    let (_, none) = open(settings(), nothing);
    assert!(!none.contains("channel-binding") && !none.contains("PLUS"), "{none}");
    let unbound = Settings { mechanisms: vec![MechanismName::Plain], ..settings() };
    let (_, plain) = open(unbound, facts());
    assert_eq!(
        plain,
        "[header x to -]<features><mechanisms><mechanism>PLAIN</mechanism></mechanisms></features>"
    );
}

#[test]
fn only_what_is_switched_on_is_offered_and_taken() {
    let only = |mechanisms: &[MechanismName]| Settings { mechanisms: mechanisms.to_vec(), ..settings() };
    let scram = MechanismName::Scram(ScramHash::Sha256);
    assert_eq!(offered(only(&[scram]), facts()), ["SCRAM-SHA-256"]);
    for mechanism in ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS"] {
        let (mut talk, _) = open(only(&[scram]), certified(&["alice@x"]));
        let did = talk.say(&auth(mechanism, "="));
        assert_eq!(did[0], "<failure><invalid-mechanism/></failure>", "{mechanism}");
    }
    // Named there, it would be on for every host.
    assert_eq!(offered(only(&[MechanismName::Anonymous, scram]), facts()), ["SCRAM-SHA-256"]);
}

#[test]
fn a_client_that_was_told_there_is_no_binding_is_refused() {
    let (mut talk, _) = open(settings(), facts());
    let did = talk.say(&auth("SCRAM-SHA-1", "y,,n=alice,r=abc"));
    let text = Unbound::Offered.as_str();
    let failure = format!("<failure><not-authorized/><text xml:lang='en'>{text}</text></failure>");
    assert_eq!(did, [failure, "FAILED - not-authorized".to_owned()]);
    assert_eq!(talk.say(&auth("SCRAM-SHA-1", "n,,n=alice,r=abc")), ["LOOK UP alice@x Sha1"]);
}

#[test]
fn what_was_offered_is_in_the_servers_first_message() {
    let names = "SCRAM-SHA-512-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 PLAIN";
    let names: Vec<&str> = names.split(' ').collect();
    let bindings = ["tls-exporter", "tls-server-end-point"];
    for hash in ScramHash::ALL {
        let (mut talk, _) = open(settings(), facts());
        talk.say(&auth(MechanismName::Scram(hash).as_str(), "n,,n=alice,r=abc"));
        let did = talk.answer(|n| n.on_credentials(None)).concat();
        let challenge = did.strip_prefix("<challenge>").unwrap().strip_suffix("</challenge>").unwrap();
        let first = String::from_utf8(BASE64.decode(challenge).unwrap()).unwrap();
        let expected = format!(",h={}", downgrade::hash(hash, &names, &bindings));
        assert!(first.ends_with(&expected), "{first}");
    }
}

#[test]
fn a_certificate_logs_its_account_in() {
    assert_eq!(offered(settings(), certified(&["alice@x"]))[0], "EXTERNAL");
    let (mut talk, _) = open(settings(), certified(&["alice@x", "carol@y"]));
    assert_eq!(talk.say(&auth("EXTERNAL", "=")), ["LOOK UP alice@x Sha256"]);
    let did = talk.answer(|n| n.on_credentials(found()));
    assert_eq!(did, ["<success/>", "IS alice@x EXTERNAL", "RESTART"]);
}

#[test]
fn an_external_exchange_without_an_initial_response_is_asked_for_it() {
    let (mut talk, _) = open(settings(), certified(&["alice@x"]));
    let xml = format!("<auth xmlns='{}' mechanism='EXTERNAL'/>", ns::SASL);
    assert_eq!(talk.say(&xml), ["<challenge/>"]);
    let did = talk.say(&format!("<response xmlns='{}'/>", ns::SASL));
    assert_eq!(did, ["LOOK UP alice@x Sha256"]);
    let did = talk.answer(|n| n.on_credentials(None));
    assert_eq!(did, ["<failure><not-authorized/></failure>", "FAILED alice@x not-authorized"]);
}

#[test]
fn a_certificate_of_nobody_here_is_not_authorized() {
    let unusable = TlsFacts { client: ClientCertificate::Unusable, ..facts() };
    for facts in [unusable, certified(&[]), certified(&["carol@y"]), certified(&["x"])] {
        assert_eq!(offered(settings(), facts.clone())[0], "SCRAM-SHA-512-PLUS");
        let (mut talk, _) = open(settings(), facts);
        let did = talk.say(&auth("EXTERNAL", "="));
        assert_eq!(did[0], "<failure><not-authorized/></failure>");
        assert_eq!(
            talk.say(&auth("PLAIN", "\0alice\0secret")),
            ["CHECK alice@x secret"],
            "a password will do"
        );
    }
}

#[test]
fn whoever_asks_is_let_in_where_the_host_says_so() {
    let hosts = vec![address::host("x").unwrap()];
    let open_host = || Settings { anonymous_hosts: hosts.clone(), ..settings() };
    assert_eq!(offered(open_host(), facts()).last().unwrap(), "ANONYMOUS");
    let empty = format!("<auth xmlns='{}' mechanism='ANONYMOUS'/>", ns::SASL);
    for xml in [empty.clone(), auth("ANONYMOUS", "="), auth("ANONYMOUS", "someone")] {
        let (mut talk, _) = open(open_host(), facts());
        let did = talk.say(&xml);
        assert_eq!((did[0].as_str(), did[2].as_str()), ("<success/>", "RESTART"), "{did:?}");
        let name = did[1].strip_prefix("IS ").unwrap().strip_suffix("@x ANONYMOUS").unwrap();
        assert!(crate::sasl::anonymous::is_anonymous(name), "{name}");
    }
    let mut talk = Talk::with(open_host(), Entry::DirectTls(facts()));
    assert!(!talk.say(&header("y")).concat().contains("ANONYMOUS"));
    assert_eq!(talk.say(&empty)[0], "<failure><invalid-mechanism/></failure>", "another host");
    let mut clear = Talk::with(open_host(), Entry::Clear);
    clear.say(&header("x"));
    assert_eq!(clear.say(&empty)[0], "<failure><encryption-required/></failure>");
}

//! Tables for upgrades of keys with a login (XEP-0480).

use super::sasl2_tests::{authenticate, proof, response};
use super::tests::{Talk, facts, header};
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const CLIENT: &str = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'/>";
const BIND2: &str = "<bind xmlns='urn:xmpp:bind:0'/>";
const UPGRADES: &str = "<upgrade xmlns='urn:xmpp:sasl:upgrade:0'>UPGR-SCRAM-SHA-512</upgrade>\
                        <upgrade xmlns='urn:xmpp:sasl:upgrade:0'>UPGR-SCRAM-SHA-256</upgrade>";

fn settings() -> Settings {
    let inline = Inline { bind: Some(Vec::new()), resume: true, tokens: true, upgrades: true };
    Settings { inlines: Arc::new(move |_| Some(inline.clone())), ..super::tests::settings() }
}

fn opened() -> Talk {
    let mut talk = Talk::with(settings(), Entry::DirectTls(facts()));
    talk.say(&header("x"));
    talk
}

/// Alice proves by SCRAM with SHA-1 to know her password, and asks for `beside`; what is done then.
fn proven(talk: &mut Talk, lacks: &[ScramHash], beside: &str) -> Vec<String> {
    let beside = format!("{CLIENT}{BIND2}{beside}");
    talk.say(&authenticate("SCRAM-SHA-1", "n,,n=alice,r=abc", &beside));
    let keys = keys::derive("pencil", ScramHash::Sha1, b"salt", 16).unwrap();
    let found = Found { keys: Some(keys), disabled: false, lacks: lacks.to_vec() };
    let did = talk.answer(|n| n.on_credentials(Some(found))).concat();
    talk.say(&proof(&did).0)
}

fn next(hash: &str) -> String {
    format!("<next xmlns='{}' task='UPGR-SCRAM-{hash}'/>", features::SASL2)
}

fn task_data(hash: &str) -> String {
    let hash = format!("<hash xmlns='urn:xmpp:scram-upgrade:0'> {hash} </hash>");
    format!("<task-data xmlns='{}'>{hash}</task-data>", features::SASL2)
}

/// The salt that the client is told, and how often it has to hash.
fn told(did: &[String]) -> (Vec<u8>, u32) {
    let start = "<task-data><salt xmlns='urn:xmpp:scram-upgrade:0' iterations='";
    let said = did.concat();
    let (iterations, rest) = said.strip_prefix(start).unwrap().split_once("'>").unwrap();
    let salt = rest.strip_suffix("</salt></task-data>").unwrap();
    (BASE64.decode(salt).unwrap(), iterations.parse().unwrap())
}

fn asks(did: &[String], hash: &str) -> bool {
    did.concat().ends_with(&format!("<tasks><task>UPGR-SCRAM-{hash}</task></tasks></continue>"))
}

const BOTH: [ScramHash; 2] = [ScramHash::Sha512, ScramHash::Sha256];
const HASHES: [(&str, ScramHash); 2] = [("SHA-512", ScramHash::Sha512), ("SHA-256", ScramHash::Sha256)];

#[test]
fn the_same_upgrades_are_offered_to_everybody_where_there_is_more_than_one_hash() {
    let offered = |settings: Settings| {
        let mut talk = Talk::with(settings, Entry::DirectTls(facts()));
        let features = talk.say(&header("x")).concat();
        let names = features.split("<upgrade xmlns='urn:xmpp:sasl:upgrade:0'>").skip(1);
        names.map(|name| name.split('<').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(offered(settings()), ["UPGR-SCRAM-SHA-512", "UPGR-SCRAM-SHA-256", "UPGR-SCRAM-SHA-1"]);
    use ScramHash::*;
    let with = |mechanisms: &[MechanismName]| Settings { mechanisms: mechanisms.to_vec(), ..settings() };
    let two = with(&[MechanismName::ScramPlus(Sha256), MechanismName::Scram(Sha1)]);
    assert_eq!(offered(two), ["UPGR-SCRAM-SHA-256", "UPGR-SCRAM-SHA-1"]);
    let one = [MechanismName::ScramPlus(Sha1), MechanismName::Scram(Sha1), MechanismName::Plain];
    assert_eq!(offered(with(&one)), [""; 0]);
    let off = Settings { inlines: Arc::new(|_| Some(Inline::default())), ..settings() };
    assert_eq!(offered(off), [""; 0]);
}

#[test]
fn a_client_gives_what_its_account_lacks_and_is_in() {
    let mut talk = opened();
    let mut did = proven(&mut talk, &BOTH, UPGRADES);
    // XEP-0388, 2.6.3: the client knows whom it has to do with before it gives anything.
    assert!(did.concat().starts_with("<continue><additional-data>"), "{did:?}");
    for (name, hash) in HASHES {
        assert!(asks(&did, name), "{did:?}");
        assert!(talk.negotiation.account().is_none() && !talk.negotiation.is_waiting());
        let (salt, iterations) = told(&talk.say(&next(name)));
        let known = talk.negotiation.fake_keys(&BareJid::new("alice@x").unwrap(), hash);
        assert_eq!((&salt, iterations), (&known.salt, known.iterations), "as strangers know it");
        let salted = hash.salted_password(b"pencil", &salt, iterations);
        let keys = keys::derive("pencil", hash, &salt, iterations).unwrap();
        let stored = talk.say(&task_data(&BASE64.encode(salted)));
        assert_eq!(stored, [format!("STORE alice@x {hash:?} {}", BASE64.encode(&keys.stored_key))]);
        assert!(talk.negotiation.is_waiting());
        did = talk.answer(Negotiation::on_keys_stored);
        assert!(!did.concat().contains("additional-data"), "it was said");
    }
    assert_eq!(did, ["IS alice@x SCRAM-SHA-1", "ADMITTED"]);
    let did = talk.answer(Negotiation::on_admitted);
    assert!(did[0].starts_with("BIND alice@x "), "{did:?}");
    let jid = FullJid::new("alice@x/r").unwrap();
    let did = talk.answer(|n| n.on_bound_inline(Ok((jid, Vec::new()))));
    let success = "<success><authorization-identifier>alice@x/r</authorization-identifier><bound xmlns='urn:xmpp:bind:0'/></success>";
    assert!(did[0].starts_with(success), "{did:?}");
    assert_eq!(did[1], "BOUND alice@x/r");
}

#[test]
fn a_token_that_was_asked_for_comes_behind_the_upgrade() {
    let request = "<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/>";
    let mut talk = opened();
    proven(&mut talk, &[ScramHash::Sha256], &format!("{UPGRADES}{request}"));
    talk.say(&next("SHA-256"));
    talk.say(&task_data(&BASE64.encode([7; 32])));
    let did = talk.answer(Negotiation::on_keys_stored);
    assert!(did[0].starts_with("SETTLE alice@x d4565fa7"), "{did:?}");
}

#[test]
fn what_is_not_needed_not_offered_or_not_known_is_passed_over() {
    let admitted = |did: &[String]| did.last().map(String::as_str) == Some("ADMITTED");
    let upgrade = |name: &str| format!("<upgrade xmlns='urn:xmpp:sasl:upgrade:0'>{name}</upgrade>");
    for (lacks, beside) in [
        (&[][..], UPGRADES.to_owned()),
        (&BOTH[..], String::new()),
        (&[ScramHash::Sha256], upgrade("UPGR-SCRAM-SHA-512")),
        (&BOTH, upgrade("UPGR-SCRAM-SHA-256-PLUS")),
        (&BOTH, upgrade("UPGR-BLOOP-42")),
    ] {
        assert!(admitted(&proven(&mut opened(), lacks, &beside)), "{beside}");
    }
    let off = Settings { inlines: Arc::new(|_| Some(Inline::default())), ..settings() };
    let mut talk = Talk::with(off, Entry::DirectTls(facts()));
    talk.say(&header("x"));
    assert!(admitted(&proven(&mut talk, &BOTH, UPGRADES)));
    // The server has the password.
    let mut talk = opened();
    talk.say(&authenticate("PLAIN", "\0alice\0pencil", UPGRADES));
    assert!(admitted(&talk.answer(|n| n.on_password_checked(Checked::Good))));
    // One that failed before says nothing of the account of the next.
    let mut talk = opened();
    talk.say(&authenticate("SCRAM-SHA-1", "n,,n=alice,r=abc", ""));
    let found = Found { keys: None, disabled: false, lacks: BOTH.to_vec() };
    talk.answer(|n| n.on_credentials(Some(found)));
    talk.say(&format!("<abort xmlns='{}'/>", features::SASL2));
    assert!(admitted(&proven(&mut talk, &[], UPGRADES)));
}

#[test]
fn a_client_that_holds_a_certificate_is_asked_for_nothing() {
    let account = BareJid::new("alice@x").unwrap();
    let tls = TlsFacts { client: ClientCertificate::Of(vec![account]), ..facts() };
    let mut talk = Talk::with(
        Settings { mechanisms: MechanismName::DEFAULT.to_vec(), ..settings() },
        Entry::DirectTls(tls),
    );
    talk.say(&header("x"));
    talk.say(&authenticate("EXTERNAL", "", UPGRADES));
    let found = Found { keys: None, disabled: false, lacks: BOTH.to_vec() };
    let did = talk.answer(|n| n.on_credentials(Some(found)));
    assert_eq!(did, ["IS alice@x EXTERNAL", "ADMITTED"]);
}

#[test]
fn what_goes_wrong_in_an_upgrade_is_a_failed_login_and_may_be_tried_again() {
    let zeros = |n| BASE64.encode(vec![0; n]);
    let sasl2 = |name: &str| format!("<{name} xmlns='{}'/>", features::SASL2);
    let begun = next("SHA-512");
    for (said, condition) in [
        (sasl2("next"), "malformed-request"),
        (next("SHA-256"), "invalid-mechanism"),
        (next("SHA-512-PLUS"), "invalid-mechanism"),
        (task_data(&zeros(64)), "malformed-request"),
        (format!("{begun}{begun}"), "malformed-request"),
        (format!("{begun}{}", sasl2("task-data")), "malformed-request"),
        (format!("{begun}{}", task_data("")), "malformed-request"),
        (format!("{begun}{}", task_data(&zeros(32))), "malformed-request"),
        (format!("{begun}{}", task_data(&zeros(65))), "malformed-request"),
        (format!("{begun}{}", task_data("no base64")), "incorrect-encoding"),
        (sasl2("abort"), "aborted"),
        (format!("{begun}{}", sasl2("abort")), "aborted"),
    ] {
        let mut talk = opened();
        proven(&mut talk, &BOTH, UPGRADES);
        let did = talk.say(&said).concat();
        let failed = format!("<failure><{condition}/></failure>FAILED alice@x {condition}");
        assert!(did.ends_with(&failed), "{said}: {did}");
        assert!(talk.negotiation.account().is_none());
        assert!(asks(&proven(&mut talk, &BOTH, UPGRADES), "SHA-512"), "{said}");
    }
}

#[test]
fn nothing_else_is_said_during_an_upgrade_and_no_task_without_one() {
    let violation = |did: &[String]| did.last().unwrap() == "CLOSE policy-violation";
    for said in [
        &authenticate("PLAIN", "\0alice\0pencil", ""),
        &response("x"),
        &super::tests::auth("PLAIN", "\0alice\0pencil"),
        "<enable xmlns='urn:xmpp:sm:3'/>",
    ] {
        let mut talk = opened();
        proven(&mut talk, &BOTH, UPGRADES);
        assert!(violation(&talk.say(said)), "{said}");
    }
    let mut talk = opened();
    proven(&mut talk, &BOTH, UPGRADES);
    assert_eq!(talk.say(super::tests::BIND).last().unwrap(), "CLOSE not-authorized");
    let mut talk = opened();
    proven(&mut talk, &BOTH, UPGRADES);
    assert!(talk.answer(Negotiation::on_timeout).concat().contains("connection-timeout"));
    for said in [next("SHA-512"), task_data("")] {
        let mut talk = opened();
        let did = talk.say(&said).concat();
        assert_eq!(did, "<failure><malformed-request/></failure>FAILED - malformed-request");
        talk.say(&authenticate("SCRAM-SHA-1", "n,,n=alice,r=abc", ""));
        let found = Found { keys: None, disabled: false, lacks: Vec::new() };
        talk.answer(|n| n.on_credentials(Some(found)));
        assert!(violation(&talk.say(&said)), "{said}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_does_nothing() {
    let mut talk = opened();
    assert_eq!(talk.answer(Negotiation::on_keys_stored), [""; 0]);
    proven(&mut talk, &BOTH, UPGRADES);
    assert_eq!(talk.answer(Negotiation::on_keys_stored), [""; 0]);
    assert!(!told(&talk.say(&next("SHA-512"))).0.is_empty());
}

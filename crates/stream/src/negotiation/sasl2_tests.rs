//! Tables for logins by the extensible profile (XEP-0388), and for what is done with them.

use super::tests::{FEATURES, Talk, auth, facts, header};
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const CLIENT: &str = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'>\
    <software>AwesomeXMPP</software><device>Kiva's Phone</device></user-agent>";
const BIND2: &str = "<bind xmlns='urn:xmpp:bind:0'><tag>AwesomeXMPP</tag></bind>";
const RESUME: &str = "<resume xmlns='urn:xmpp:sm:3' h='345' previd='124'/>";
const SESSION: &str = "<features><bind/><session><optional/></session></features>";

/// As of all tests, with all that can be asked for.
pub fn settings() -> Settings {
    let inline = Inline {
        bind: Some(vec!["urn:xmpp:carbons:2", "urn:xmpp:csi:0"]),
        resume: true,
        tokens: true,
        ..Inline::default()
    };
    Settings {
        inlines: Arc::new(move |host| (host.as_str() == "x").then(|| inline.clone())),
        ..super::tests::settings()
    }
}

/// `<authenticate/>` with a first message, and what is asked for beside.
pub fn authenticate(mechanism: &str, payload: &str, beside: &str) -> String {
    let payload = BASE64.encode(payload);
    format!(
        "<authenticate xmlns='{}' mechanism='{mechanism}'><initial-response>{payload}</initial-response>{beside}</authenticate>",
        features::SASL2
    )
}

pub fn response(payload: &str) -> String {
    format!("<response xmlns='{}'>{}</response>", features::SASL2, BASE64.encode(payload))
}

fn opened() -> Talk {
    let mut talk = Talk::with(settings(), Entry::DirectTls(facts()));
    talk.say(&header("x"));
    talk
}

/// Alice has proved who she is.
fn admitted(beside: &str) -> Talk {
    let mut talk = opened();
    assert_eq!(talk.say(&authenticate("PLAIN", "\0alice\0secret", beside)), ["CHECK alice@x secret"]);
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert_eq!(did, ["IS alice@x PLAIN", "ADMITTED"]);
    assert!(talk.negotiation.is_waiting());
    talk
}

/// The same where streams can be managed.
fn managed(beside: &str) -> (Talk, Vec<String>) {
    let mut talk = admitted(beside);
    talk.negotiation.offer(vec![management::feature()]);
    let did = talk.answer(Negotiation::on_admitted);
    (talk, did)
}

fn success(jid: &str, children: &str) -> String {
    format!("<success><authorization-identifier>{jid}</authorization-identifier>{children}</success>")
}

#[test]
fn it_is_offered_beside_the_old_profile_where_it_is_on_and_inside_tls_only() {
    let mut talk = Talk::with(settings(), Entry::DirectTls(facts()));
    let names: String =
        FEATURES.split_inclusive("</mechanism>").filter_map(|s| Some(&s[s.find("<mechanism>")?..])).collect();
    let new = format!(
        "<authentication>{names}<inline><bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:carbons:2'/>\
         <feature var='urn:xmpp:csi:0'/></inline></bind><sm xmlns='urn:xmpp:sm:3'/><fast xmlns='urn:xmpp:fast:0'>\
         <mechanism>HT-SHA-256-EXPR</mechanism><mechanism>HT-SHA-256-ENDP</mechanism>\
         <mechanism>HT-SHA-256-NONE</mechanism></fast></inline></authentication>"
    );
    let all = FEATURES.replace("<mechanisms>", &format!("{new}<mechanisms>"));
    assert_eq!(talk.say(&header("x")), [format!("[header x to -]{all}")]);
    let mut elsewhere = Talk::with(settings(), Entry::DirectTls(facts()));
    assert_eq!(elsewhere.say(&header("y")), [format!("[header y to -]{FEATURES}")]);
    let did = elsewhere.say(&authenticate("PLAIN", "\0alice\0secret", ""));
    assert_eq!(did.last().unwrap(), "CLOSE policy-violation");
    let clear = Settings { tls_required: false, ..settings() };
    let mut clear = Talk::with(clear, Entry::Clear);
    assert!(!clear.say(&header("x")).concat().contains("<authentication"));
    let did = clear.say(&authenticate("SCRAM-SHA-1", "n,,n=alice,r=abc", ""));
    assert_eq!(did.last().unwrap(), "CLOSE policy-violation");
}

#[test]
fn a_login_alone_is_followed_by_features_and_no_new_stream() {
    let mut talk = admitted(CLIENT);
    let did = talk.answer(Negotiation::on_admitted);
    assert_eq!(did, [format!("{}{SESSION}", success("alice@x", ""))]);
    assert_eq!(talk.reader.limits(), crate::Limits::after_auth());
    assert_eq!(talk.say(super::tests::BIND), ["BIND alice@x -"]);
    let jid = FullJid::new("alice@x/r").unwrap();
    assert_eq!(talk.answer(|n| n.on_bound(Ok(jid))).last().unwrap(), "BOUND alice@x/r");
}

/// What alice answers to a challenge of SCRAM with SHA-1 behind `n,,n=alice,r=abc`; the salted password, and what the
/// server signs.
pub(super) fn proof(challenge: &str) -> (String, Vec<u8>, String) {
    let challenge = challenge.strip_prefix("<challenge>").unwrap().strip_suffix("</challenge>").unwrap();
    let server_first = String::from_utf8(BASE64.decode(challenge).unwrap()).unwrap();
    let nonce = server_first.split(',').next().unwrap().strip_prefix("r=").unwrap();
    let last = format!("c=biws,r={nonce}");
    let message = format!("n=alice,r=abc,{server_first},{last}");
    let salted = ScramHash::Sha1.salted_password(b"pencil", b"salt", 16);
    let key = ScramHash::Sha1.hmac(&salted, b"Client Key");
    let signature = ScramHash::Sha1.hmac(&ScramHash::Sha1.digest(&key), message.as_bytes());
    let proof: Vec<u8> = key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    (response(&format!("{last},p={}", BASE64.encode(proof))), salted, message)
}

#[test]
fn scram_runs_as_in_the_old_profile_in_other_words() {
    let mut talk = opened();
    assert_eq!(talk.say(&authenticate("SCRAM-SHA-1", "n,,n=alice,r=abc", "")), ["LOOK UP alice@x Sha1"]);
    let keys = keys::derive("pencil", ScramHash::Sha1, b"salt", 16).unwrap();
    let found = Found { keys: Some(keys), disabled: false, lacks: Vec::new() };
    let did = talk.answer(|n| n.on_credentials(Some(found))).concat();
    let (answer, salted, message) = proof(&did);
    let did = talk.say(&answer);
    assert_eq!(did, ["IS alice@x SCRAM-SHA-1", "ADMITTED"]);
    let did = talk.answer(Negotiation::on_admitted).concat();
    let server_key = ScramHash::Sha1.hmac(&salted, b"Server Key");
    let verifier = BASE64.encode(ScramHash::Sha1.hmac(&server_key, message.as_bytes()));
    let data = format!("<additional-data>{}</additional-data>", BASE64.encode(format!("v={verifier}")));
    assert!(did.contains(&data), "{did}");
}

#[test]
fn what_fails_fails_alike_and_may_be_tried_again() {
    let failed = |condition: &str, account: &str| {
        vec![format!("<failure><{condition}/></failure>"), format!("FAILED {account} {condition}")]
    };
    let mut talk = opened();
    talk.say(&authenticate("PLAIN", "\0alice\0wrong", BIND2));
    assert_eq!(talk.answer(|n| n.on_password_checked(Checked::Wrong)), failed("not-authorized", "alice@x"));
    assert_eq!(talk.say(&authenticate("DIGEST-MD5", "", "")), failed("invalid-mechanism", "-"));
    let bad = authenticate("PLAIN", "", "").replace("></initial", ">!</initial");
    assert_eq!(talk.say(&bad), failed("incorrect-encoding", "-"));
    let end = talk.say(&response("x"));
    assert_eq!(end[..2], failed("malformed-request", "-"));
    assert_eq!(end.last().unwrap(), "CLOSE policy-violation", "too many");
}

#[test]
fn a_login_is_given_up_or_left_waiting_for_nothing() {
    let mut talk = opened();
    let empty = format!("<authenticate xmlns='{}' mechanism='PLAIN'/>", features::SASL2);
    assert_eq!(talk.say(&empty), ["<challenge/>"], "who sends no first message is asked for it");
    let did = talk.say(&format!("<abort xmlns='{}'><text>enough</text></abort>", features::SASL2));
    assert_eq!(did, ["<failure><aborted/></failure>", "FAILED - aborted"]);
    assert_eq!(talk.say(&empty), ["<challenge/>"]);
    assert_eq!(talk.say(&response("\0alice\0secret")), ["CHECK alice@x secret"]);
    assert_eq!(talk.answer(Negotiation::on_unavailable)[0], "<failure><temporary-auth-failure/></failure>");
    assert_eq!(
        talk.say(&auth("PLAIN", "\0alice\0secret")),
        ["CHECK alice@x secret"],
        "the old profile will do"
    );
    assert_eq!(talk.answer(|n| n.on_password_checked(Checked::Good)).last().unwrap(), "RESTART");
}

#[test]
fn nothing_else_is_said_while_a_login_runs() {
    let empty = format!("<authenticate xmlns='{}' mechanism='PLAIN'/>", features::SASL2);
    let starttls = format!("<starttls xmlns='{}'/>", ns::TLS);
    let old = auth("PLAIN", "\0alice\0secret");
    let others = [&empty, &old, &starttls, RESUME, "<x xmlns='u'/>", "<presence/>"];
    for other in others {
        let mut talk = opened();
        talk.say(&empty);
        let end = talk.say(other).pop().unwrap();
        assert!(end == "CLOSE policy-violation" || end == "CLOSE not-authorized", "{other}: {end}");
    }
    let mut talk = opened();
    talk.say(&format!("<auth xmlns='{}' mechanism='PLAIN'/>", ns::SASL));
    assert_eq!(
        talk.say(&empty).pop().unwrap(),
        "CLOSE policy-violation",
        "nor while one of the old profile does"
    );
    let mut talk = admitted("");
    talk.answer(Negotiation::on_admitted);
    assert_eq!(talk.say(&empty).pop().unwrap(), "CLOSE policy-violation", "nor a second one");
}

#[test]
fn who_named_somebody_else_fails() {
    let mut talk = Talk::with(settings(), Entry::DirectTls(facts()));
    talk.say(&header("x").replace(" to=", " from='bob@x' to="));
    talk.say(&authenticate("PLAIN", "\0alice\0secret", ""));
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert_eq!(did, ["<failure><invalid-authzid/></failure>", "FAILED alice@x invalid-authzid"]);
}

#[test]
fn a_bound_client_has_its_address_and_what_it_asked_for() {
    let beside = BIND2.replace("</bind>", "<enable xmlns='urn:xmpp:carbons:2'/></bind>");
    let (mut talk, did) = managed(&format!("{CLIENT}{beside}"));
    let rest = did[0].strip_prefix("BIND alice@x AwesomeXMPP/").unwrap();
    let (id, asked) = rest.split_once(' ').unwrap();
    assert_eq!(asked, format!("of {id} with [\"enable\"]"));
    assert_eq!(id.len(), 16);
    assert!(!id.contains("d4565fa7"));
    let jid = FullJid::new(&format!("alice@x/AwesomeXMPP/{id}")).unwrap();
    let did = talk.answer(|n| n.on_bound_inline(Ok((jid.clone(), vec![Element::bare("metadata", "urn:m")]))));
    let bound = "<bound xmlns='urn:xmpp:bind:0'><metadata xmlns='urn:m'/></bound>";
    let features = "<features><sm xmlns='urn:xmpp:sm:3'/></features>";
    let expected = format!("{}{features}", success(jid.as_str(), bound));
    assert_eq!(did, [expected, format!("BOUND {jid}")]);
}

#[test]
fn the_same_client_has_the_same_resource_and_nobody_else_has() {
    let resource = |beside: &str| {
        let (_, did) = managed(beside);
        did[0].split(' ').nth(2).unwrap().to_owned()
    };
    let first = resource(&format!("{CLIENT}{BIND2}"));
    assert_eq!(first, resource(&format!("{CLIENT}{BIND2}")));
    let other = CLIENT.replace("d4565fa7", "d4565fa8");
    assert_ne!(first, resource(&format!("{other}{BIND2}")));
    let untagged = resource(&format!("{CLIENT}<bind xmlns='urn:xmpp:bind:0'/>"));
    assert_eq!(first, format!("AwesomeXMPP/{untagged}"));
    let unusable = BIND2.replace("AwesomeXMPP", "a&#xE000;\u{0340}");
    let (_, did) = managed(&format!("{CLIENT}{unusable}"));
    assert!(did[0].contains(&untagged), "{did:?}");
    // 128 bits of chance where a client does not say which it is.
    assert_eq!(resource(BIND2).len(), "AwesomeXMPP/".len() + 32);
}

#[test]
fn who_cannot_be_bound_is_told_why_and_may_try_as_of_old() {
    let (mut talk, _) = managed(BIND2);
    let error = StanzaError::new(Condition::ResourceConstraint);
    let did = talk.answer(|n| n.on_bound_inline(Err(error)));
    let failed = "<failed xmlns='urn:xmpp:bind:0'><resource-constraint/></failed>";
    assert!(did[0].starts_with(&success("alice@x", failed)), "{did:?}");
    assert!(did[0].contains("<features><bind/>"), "{did:?}");
    assert_eq!(talk.say(super::tests::BIND), ["BIND alice@x -"]);
}

#[test]
fn a_session_goes_on_with_the_login_and_nothing_is_bound() {
    let (mut talk, did) = managed(&format!("{RESUME}{BIND2}"));
    assert_eq!(did, ["RESUME alice@x 124 345"]);
    let jid = FullJid::new("alice@x/r").unwrap();
    let did = talk.answer(|n| n.on_resumed(Ok((jid, 7))));
    let resumed = "<resumed xmlns='urn:xmpp:sm:3' h='7' previd='124'/>";
    assert_eq!(did, [success("alice@x/r", resumed), "BOUND alice@x/r".to_owned()]);
}

#[test]
fn where_a_session_does_not_go_on_a_new_one_is_bound() {
    let failed = |children: &str| format!("<failed xmlns='urn:xmpp:sm:3'{children}</failed>");
    let (mut talk, _) = managed(&format!("{RESUME}{BIND2}"));
    let did = talk.answer(|n| n.on_resumed(Err((Condition::ItemNotFound, Some(9)))));
    assert!(did[0].starts_with("BIND alice@x AwesomeXMPP/"), "{did:?}");
    let jid = FullJid::new("alice@x/r").unwrap();
    let did = talk.answer(|n| n.on_bound_inline(Ok((jid, Vec::new()))));
    let both = format!("{}<bound xmlns='urn:xmpp:bind:0'/>", failed(" h='9'><item-not-found/>"));
    assert!(did[0].starts_with(&success("alice@x/r", &both)), "{did:?}");
    // Not to be read, not offered, and no bind: the client hears why and may bind as of old.
    let (_, did) = managed("<resume xmlns='urn:xmpp:sm:3' previd='124'/>");
    assert!(did[0].starts_with(&success("alice@x", &failed("><bad-request/>"))), "{did:?}");
    let did = admitted(RESUME).answer(Negotiation::on_admitted);
    assert!(did[0].starts_with(&success("alice@x", &failed("><feature-not-implemented/>"))), "{did:?}");
}

#[test]
fn an_answer_behind_the_end_says_nothing() {
    for ends in 0..3 {
        let mut talk = admitted(&format!("{RESUME}{BIND2}"));
        talk.negotiation.offer(vec![management::feature()]);
        if ends > 0 {
            talk.answer(Negotiation::on_admitted);
        }
        if ends > 1 {
            talk.answer(|n| n.on_resumed(Err((Condition::ItemNotFound, None))));
        }
        let did = talk.answer(Negotiation::on_timeout);
        assert_eq!(did.last().unwrap(), "CLOSE connection-timeout");
        let jid = FullJid::new("alice@x/r").unwrap();
        assert!(talk.answer(Negotiation::on_admitted).is_empty());
        assert!(talk.answer(|n| n.on_resumed(Ok((jid.clone(), 0)))).is_empty());
        assert!(talk.answer(|n| n.on_bound_inline(Ok((jid, Vec::new())))).is_empty());
    }
}

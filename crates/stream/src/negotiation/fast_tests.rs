//! Tables for logins by a token (XEP-0484), and for tokens that are asked for.

use super::sasl2_tests::{authenticate, settings};
use super::tests::{Talk, facts, header};
use super::*;
use crate::sasl::TokenBinding;
use crate::sasl::token::{FoundTokens, KnownToken, TokenKey};

const CLIENT: &str = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'/>";
const FAST: &str = "<fast xmlns='urn:xmpp:fast:0' count='123'/>";
const KEY: &[u8] = b"token";

fn request(mechanism: &str) -> String {
    format!("{CLIENT}<request-token xmlns='urn:xmpp:fast:0' mechanism='{mechanism}'/>")
}

fn opened() -> Talk {
    let mut talk = Talk::with(settings(), Entry::DirectTls(facts()));
    talk.say(&header("x"));
    talk
}

/// `<authenticate/>` of alice by a token.
fn by_token(binding: TokenBinding, data: &[u8], beside: &str) -> String {
    let proof = ScramHash::Sha256.hmac(KEY, &[b"Initiator", data].concat());
    let message = [b"alice\0", &proof[..]].concat();
    let payload = features::sasl2("x", Some(&message)).text();
    let empty = authenticate(MechanismName::Token(binding).as_str(), "", beside);
    empty.replace("<initial-response></", &format!("<initial-response>{payload}</"))
}

fn found(binding: TokenBinding) -> Option<FoundTokens> {
    let mechanism = MechanismName::Token(binding).as_str().to_owned();
    let token = KnownToken { key: TokenKey(KEY.to_vec()), mechanism, count: Some(122), expired: false };
    Some(FoundTokens { tokens: vec![token], disabled: false })
}

/// Alice has proved that she has the token.
fn proved(beside: &str) -> (Talk, Vec<String>) {
    let mut talk = opened();
    let did = talk.say(&by_token(TokenBinding::None, b"", beside));
    assert_eq!(did, ["TOKENS alice@x d4565fa7-4d72-4749-b3d3-740edbf87770"]);
    let did = talk.answer(|n| n.on_tokens(found(TokenBinding::None)));
    (talk, did)
}

#[test]
fn a_token_lets_its_client_in_and_is_noted_before_it_hears_so() {
    let (mut talk, did) = proved(&format!("{CLIENT}{FAST}"));
    assert_eq!(did, ["SETTLE alice@x d4565fa7-4d72-4749-b3d3-740edbf87770 true Some(123) false None"]);
    assert!(talk.negotiation.is_waiting() && talk.negotiation.account().is_none());
    let did = talk.answer(|n| n.on_settled(Ok(None)));
    assert_eq!(did, ["IS alice@x HT-SHA-256-NONE", "ADMITTED"]);
    let did = talk.answer(Negotiation::on_admitted).concat();
    let proof = ScramHash::Sha256.hmac(KEY, b"Responder");
    let data = features::sasl2("additional-data", Some(&proof)).text();
    assert!(did.contains(&format!("<additional-data>{data}</additional-data>")), "{did}");
    let (mut talk, _) = proved(&format!("{CLIENT}{FAST}"));
    let did = talk.answer(|n| n.on_settled(Err(SaslCondition::NotAuthorized)));
    assert_eq!(did, ["<failure><not-authorized/></failure>", "FAILED alice@x not-authorized"]);
    assert!(
        talk.say(&by_token(TokenBinding::None, b"", &format!("{CLIENT}{FAST}")))[0].starts_with("TOKENS")
    );
}

#[test]
fn a_token_that_is_bound_is_proved_on_this_channel() {
    let beside = format!("{CLIENT}{FAST}");
    for (binding, data) in [(TokenBinding::Exporter, [1; 32]), (TokenBinding::EndPoint, [2; 32])] {
        for (data, is_good) in [(data, true), ([3; 32], false)] {
            let mut talk = opened();
            assert!(talk.say(&by_token(binding, &data, &beside))[0].starts_with("TOKENS"));
            let did = talk.answer(|n| n.on_tokens(found(binding)));
            assert_eq!(did[0].starts_with("SETTLE"), is_good, "{did:?}");
        }
    }
    let tls12 = TlsFacts { version: TlsVersion::Tls12, exporter: None, ..facts() };
    let mut talk = Talk::with(settings(), Entry::DirectTls(tls12));
    assert!(!talk.say(&header("x")).concat().contains("HT-SHA-256-EXPR"));
    let did = talk.say(&by_token(TokenBinding::Exporter, &[1; 32], &beside));
    assert_eq!(did[0], "<failure><invalid-mechanism/></failure>");
}

#[test]
fn who_does_not_say_that_it_comes_by_a_token_and_which_client_it_is_does_not() {
    for beside in [CLIENT, FAST, ""] {
        let did = opened().say(&by_token(TokenBinding::None, b"", beside));
        assert_eq!(did[0], "<failure><malformed-request/></failure>", "{beside}");
    }
    let auth = super::tests::auth("HT-SHA-256-NONE", "alice");
    assert_eq!(opened().say(&auth)[0], "<failure><invalid-mechanism/></failure>", "not in the old profile");
    let hosts = Settings { inlines: Arc::new(|_| Some(Inline::default())), ..settings() };
    let mut talk = Talk::with(hosts, Entry::DirectTls(facts()));
    assert!(!talk.say(&header("x")).concat().contains("urn:xmpp:fast:0"));
    let did = talk.say(&by_token(TokenBinding::None, b"", &format!("{CLIENT}{FAST}")));
    assert_eq!(did[0], "<failure><invalid-mechanism/></failure>", "nor where it is off");
}

#[test]
fn a_token_is_asked_for_with_a_password_and_given_with_the_success() {
    let mut talk = opened();
    talk.say(&authenticate("PLAIN", "\0alice\0secret", &request("HT-SHA-256-ENDP")));
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    let client = "d4565fa7-4d72-4749-b3d3-740edbf87770";
    assert_eq!(did, [format!("SETTLE alice@x {client} false None false Some(\"HT-SHA-256-ENDP\")")]);
    let token = ("WXZzciBwYmFmdmZnZiBqdmd1IGp2eXFhcmZm".to_owned(), "2020-03-12T14:36:15Z".to_owned());
    talk.answer(|n| n.on_settled(Ok(Some(token))));
    let did = talk.answer(Negotiation::on_admitted).concat();
    let told = "<token xmlns='urn:xmpp:fast:0' expiry='2020-03-12T14:36:15Z' \
                token='WXZzciBwYmFmdmZnZiBqdmd1IGp2eXFhcmZm'/>";
    assert!(did.contains(told), "{did}");
}

#[test]
fn nobody_is_given_one_who_cannot_use_it() {
    let nameless = request("HT-SHA-256-NONE").replace(CLIENT, "");
    for beside in [nameless, request("HT-SHA-512-NONE"), request("PLAIN"), CLIENT.to_owned()] {
        let mut talk = opened();
        talk.say(&authenticate("PLAIN", "\0alice\0secret", &beside));
        let did = talk.answer(|n| n.on_password_checked(Checked::Good));
        assert_eq!(did, ["IS alice@x PLAIN", "ADMITTED"], "{beside}");
    }
    let guests = Settings { anonymous_hosts: vec![address::host("x").unwrap()], ..settings() };
    let mut talk = Talk::with(guests, Entry::DirectTls(facts()));
    talk.say(&header("x"));
    let did = talk.say(&authenticate("ANONYMOUS", "", &request("HT-SHA-256-NONE")));
    assert_eq!(did[1], "ADMITTED", "{did:?}");
}

#[test]
fn a_client_that_logs_out_says_so_of_its_token_alone() {
    let out = FAST.replace("count='123'", "invalidate='1'");
    let (_, did) = proved(&format!("{CLIENT}{out}"));
    assert!(did[0].ends_with("true None true None"), "{did:?}");
    let mut talk = opened();
    talk.say(&authenticate("PLAIN", "\0alice\0secret", &format!("{}{out}", request("HT-SHA-256-NONE"))));
    let did = talk.answer(|n| n.on_password_checked(Checked::Good));
    assert!(did[0].ends_with("false None false Some(\"HT-SHA-256-NONE\")"), "{did:?}");
}

//! SCRAM against the examples of its RFCs, against our client, and against clients that lie.

use super::*;
use crate::client::ScramClient;
use SaslCondition::*;

fn around(nonce: &str) -> Surroundings {
    Surroundings {
        host: address::host("x").unwrap(),
        secret: b"secret".to_vec(),
        iterations: 4096,
        nonce: nonce.to_owned(),
        plus: false,
        plus_offered: false,
        bindings: Vec::new(),
        offered: None,
    }
}

fn known(keys: ScramKeys) -> Option<Found> {
    Some(Found { keys: Some(keys), disabled: false, lacks: Vec::new() })
}

fn text(step: Step) -> String {
    match step {
        Step::Challenge(data) => String::from_utf8(data).unwrap(),
        Step::Success { account, data } => {
            format!("{account} {}", String::from_utf8(data.unwrap()).unwrap())
        }
        other => format!("{other:?}"),
    }
}

/// RFC 5802, 5 and RFC 7677, 3.
#[test]
fn the_examples_of_the_rfcs_are_spoken() {
    let cases = [
        (
            ScramHash::Sha1,
            "fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "QSXCR+Q6sek8bf92",
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            ScramHash::Sha256,
            "rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ];
    for (hash, client, server, salt, proof, verifier) in cases {
        let mut scram = Scram::new(hash, around(server));
        let first = scram.message(format!("n,,n=user,r={client}").as_bytes());
        assert_eq!(first, Step::LookUp { account: BareJid::new("user@x").unwrap(), hash });
        let keys = keys::derive("pencil", hash, &BASE64.decode(salt).unwrap(), 4096).unwrap();
        assert_eq!(text(scram.found(known(keys))), format!("r={client}{server},s={salt},i=4096"));
        let last = format!("c=biws,r={client}{server},p={proof}");
        assert_eq!(text(scram.message(last.as_bytes())), format!("user@x v={verifier}"));
        assert_eq!(scram.message(last.as_bytes()), Step::Fail(MalformedRequest), "once only");
    }
}

/// Runs our client against the server; `edit` changes the client's last message.
fn exchange(hash: ScramHash, name: &str, password: &str, edit: impl Fn(String) -> String) -> Step {
    let keys = keys::derive("pencil", hash, b"salt", 16).unwrap();
    let mut client = ScramClient::new(hash, name, password, "abc");
    let mut scram = Scram::new(hash, around("def"));
    let Step::LookUp { account, .. } = scram.message(&client.first()) else { panic!("no look-up") };
    let found = account.node().and_then(|node| match node.as_str() {
        "user" => known(keys),
        "closed" => Some(Found { keys: Some(keys), disabled: true, lacks: Vec::new() }),
        "brought" => Some(Found { keys: None, disabled: false, lacks: vec![hash] }),
        _ => None,
    });
    let challenge = text(scram.found(found));
    let answer = String::from_utf8(client.answer(challenge.as_bytes()).unwrap()).unwrap();
    let step = scram.message(edit(answer).as_bytes());
    if let Step::Success { data: Some(data), .. } = &step {
        client.check(data).unwrap();
    }
    step
}

#[test]
fn only_the_right_password_succeeds() {
    for hash in ScramHash::ALL {
        let good = exchange(hash, "USER", "pencil", |last| last);
        assert!(matches!(good, Step::Success { account, .. } if account.as_str() == "user@x"), "{hash:?}");
        assert_eq!(exchange(hash, "user", "Pencil", |last| last), Step::Fail(NotAuthorized));
        assert_eq!(exchange(hash, "nobody", "pencil", |last| last), Step::Fail(NotAuthorized));
        // Without keys of the hash nobody gets in, and it looks as if there were no such account.
        assert_eq!(exchange(hash, "brought", "pencil", |last| last), Step::Fail(NotAuthorized));
        assert_eq!(exchange(hash, "closed", "pencil", |last| last), Step::Fail(AccountDisabled));
        assert_eq!(exchange(hash, "closed", "Pencil", |last| last), Step::Fail(NotAuthorized));
    }
}

#[test]
fn a_changed_last_message_fails() {
    type Edit = fn(String) -> String;
    let cases: [(Edit, SaslCondition); 10] = [
        (|s| s.replace("r=abcdef", "r=abcdeg"), NotAuthorized),
        (|s| s.replace("r=abcdef", "r=abc"), NotAuthorized),
        (|s| s.replace("c=biws", "c=eSws"), NotBound(Unbound::Mismatch)),
        (|s| s.replace("c=biws", "c=!"), MalformedRequest),
        (|s| s.replace(",p=", ",x=1,p="), NotAuthorized),
        (|s| s.replace(",p=", ",m=1,p="), MalformedRequest),
        (|s| s[..s.find(",p=").unwrap()].to_owned(), MalformedRequest),
        (|s| format!("{s},x=1"), MalformedRequest),
        (|s| format!("{},p=AAAA", &s[..s.find(",p=").unwrap()]), MalformedRequest),
        (|_| String::new(), MalformedRequest),
    ];
    for (i, (edit, expected)) in cases.into_iter().enumerate() {
        assert_eq!(exchange(ScramHash::Sha256, "user", "pencil", edit), Step::Fail(expected), "{i}");
    }
}

#[test]
fn a_bad_first_message_fails() {
    let cases = [
        ("", MalformedRequest),
        ("n", MalformedRequest),
        ("n,,", MalformedRequest),
        ("n,,n=user", MalformedRequest),
        ("n,,n=user,r=", MalformedRequest),
        ("n,,n=user,r=a b", MalformedRequest),
        ("n,,m=1,n=user,r=abc", MalformedRequest),
        ("n,,n=user,r=abc,m=1", MalformedRequest),
        ("n,,n=,r=abc", MalformedRequest),
        ("n,,n=us=er,r=abc", MalformedRequest),
        ("n,,n=us=2,r=abc", MalformedRequest),
        ("n,,n=us=XX,r=abc", MalformedRequest),
        ("n,,n=us=2c,r=abc", MalformedRequest),
        ("q,,n=user,r=abc", MalformedRequest),
        ("p=tls-unique,,n=user,r=abc", MalformedRequest),
        ("n,x=user,n=user,r=abc", MalformedRequest),
        ("n,a=bob@x,n=user,r=abc", InvalidAuthzid),
        ("n,,n=us er,r=abc", NotAuthorized),
        ("n,,n=us@er,r=abc", NotAuthorized),
    ];
    for (first, expected) in cases {
        let mut scram = Scram::new(ScramHash::Sha1, around("def"));
        assert_eq!(scram.message(first.as_bytes()), Step::Fail(expected), "{first}");
        assert_eq!(scram.message(b"n,,n=user,r=abc"), Step::Fail(MalformedRequest), "no second try");
    }
    let mut scram = Scram::new(ScramHash::Sha1, around("def"));
    assert_eq!(scram.message(b"n,,n=\xff,r=abc"), Step::Fail(MalformedRequest));
}

#[test]
fn escapes_in_names_are_read() {
    for (first, name) in [
        ("n,,n=a=2Cb=3Dc,r=abc", "a,b=c@x"),
        ("y,,n=user,r=abc", "user@x"),
        ("n,a=user@x,n=user,r=abc,x=1", "user@x"),
    ] {
        let mut scram = Scram::new(ScramHash::Sha1, around("def"));
        let Step::LookUp { account, .. } = scram.message(first.as_bytes()) else { panic!("{first}") };
        assert_eq!(account.as_str(), name);
    }
}

#[test]
fn an_unknown_account_cannot_be_told_from_a_known_one() {
    let first = |name: &str, found: Option<Found>, nonce: &str| {
        let mut scram = Scram::new(ScramHash::Sha256, around(nonce));
        scram.message(format!("n,,n={name},r=abc").as_bytes());
        text(scram.found(found))
    };
    let keys = keys::derive("pencil", ScramHash::Sha256, &[7; keys::SALT_LEN], 4096).unwrap();
    let salt = |s: &str| s.split(',').nth(1).unwrap().to_owned();
    let (a, b) = (first("nobody", None, "def"), first("user", known(keys), "def"));
    assert_eq!(a.len(), b.len());
    assert_ne!(salt(&a), salt(&b));
    assert_eq!(salt(&a), salt(&first("nobody", None, "xyz")), "stable");
    assert_eq!(salt(&a), salt(&first("NOBODY", None, "xyz")), "for every spelling");
    assert_ne!(salt(&a), salt(&first("somebody", None, "def")));
}

/// A client that knows the password speaks `gs2` with `data`; `edit` is what somebody in between makes of the
/// server's first message.
fn bound(around: Surroundings, gs2: &str, data: &[u8], edit: fn(&str) -> String) -> Option<SaslCondition> {
    let keys = keys::derive("pencil", ScramHash::Sha256, b"salt", 16).unwrap();
    let mut scram = Scram::new(ScramHash::Sha256, around);
    let first = format!("{gs2}n=user,r=abc");
    if let Step::Fail(condition) = scram.message(first.as_bytes()) {
        return Some(condition);
    }
    let server_first = edit(&text(scram.found(known(keys.clone()))));
    let binding = BASE64.encode([gs2.as_bytes(), data].concat());
    let without_proof = format!("c={binding},r=abcdef");
    let message = format!("n=user,r=abc,{server_first},{without_proof}");
    let salted = ScramHash::Sha256.salted_password(b"pencil", b"salt", 16);
    let client_key = ScramHash::Sha256.hmac(&salted, b"Client Key");
    let signature = ScramHash::Sha256.hmac(&keys.stored_key, message.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
    match scram.message(format!("{without_proof},p={}", BASE64.encode(proof)).as_bytes()) {
        Step::Success { .. } => None,
        Step::Fail(condition) => Some(condition),
        other => panic!("{other:?}"),
    }
}

#[test]
fn channel_binding_is_held_to() {
    let plus = Surroundings {
        plus: true,
        plus_offered: true,
        bindings: vec![("tls-exporter", vec![1; 32]), ("tls-server-end-point", vec![2; 48])],
        ..around("def")
    };
    let not_plus = Surroundings { plus: false, ..plus.clone() };
    let mismatch = Some(NotBound(Unbound::Mismatch));
    let unknown = Some(NotBound(Unbound::UnknownType));
    type Case<'a> = (&'a Surroundings, &'a str, &'a [u8], Option<SaslCondition>);
    let cases: [Case<'_>; 20] = [
        (&plus, "p=tls-exporter,,", &[1; 32], None),
        (&plus, "p=tls-exporter,a=user@x,", &[1; 32], None),
        (&plus, "p=tls-server-end-point,,", &[2; 48], None),
        (&plus, "p=tls-exporter,,", &[2; 32], mismatch),
        (&plus, "p=tls-exporter,,", &[1; 31], mismatch),
        (&plus, "p=tls-exporter,,", &[2; 48], mismatch),
        (&plus, "p=tls-server-end-point,,", &[1; 32], mismatch),
        (&plus, "p=tls-exporter,,", &[], mismatch),
        (&plus, "p=tls-unique,,", &[1; 32], unknown),
        (&plus, "p=TLS-EXPORTER,,", &[1; 32], unknown),
        (&plus, "p=,,", &[], unknown),
        (&plus, "n,,", &[], Some(MalformedRequest)),
        (&plus, "y,,", &[], Some(MalformedRequest)),
        (&plus, "p,,", &[], Some(MalformedRequest)),
        // The client would bind, and believes that we cannot: somebody removed -PLUS from our list.
        (&not_plus, "y,,", &[], Some(NotBound(Unbound::Offered))),
        (&not_plus, "n,,", &[], None),
        (&not_plus, "n,,", &[1; 32], mismatch),
        (&not_plus, "p=tls-exporter,,", &[1; 32], Some(MalformedRequest)),
        (&around("def"), "y,,", &[], None),
        (&around("def"), "N,,", &[], Some(MalformedRequest)),
    ];
    for (around, gs2, data, expected) in cases {
        assert_eq!(bound(around.clone(), gs2, data, str::to_owned), expected, "{gs2} {data:?}");
    }
}

#[test]
fn what_was_offered_is_told_and_proved() {
    let around = Surroundings { offered: Some("aGFzaA==".into()), ..around("def") };
    assert_eq!(bound(around.clone(), "n,,", &[], str::to_owned), None);
    // Whoever changed the list of mechanisms must change the hash as well, and then no proof fits.
    let changed = |first: &str| first.replace(",h=aGFzaA==", ",h=b3RoZXI=");
    assert_eq!(bound(around.clone(), "n,,", &[], changed), Some(NotAuthorized));
    let removed = |first: &str| first.replace(",h=aGFzaA==", "");
    assert_eq!(bound(around.clone(), "n,,", &[], removed), Some(NotAuthorized));
    let mut scram = Scram::new(ScramHash::Sha1, around);
    scram.message(b"n,,n=user,r=abc");
    assert!(text(scram.found(None)).ends_with(",i=4096,h=aGFzaA=="), "unknown accounts hear it too");
}

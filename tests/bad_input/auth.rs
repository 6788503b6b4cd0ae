//! Rows 65 to 71, 75 to 78, 80 to 82 and 91: authentication, whatever the channel.

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tests::{
    client::unique,
    people::Person,
    scram::{Exchange, Hash},
};

use crate::{
    door::{Door, HOST},
    metric::{login_failures, stream_errors},
    raw::{Raw, Way, header},
};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// `<auth/>` with this initial response, before base64.
fn auth(mechanism: &str, message: impl AsRef<[u8]>) -> String {
    let message = BASE64_STANDARD.encode(message);
    format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{message}</auth>")
}

fn response(message: impl AsRef<[u8]>) -> String {
    format!("<response xmlns='{SASL}'>{}</response>", BASE64_STANDARD.encode(message))
}

/// The server's challenge, as text.
async fn challenge(raw: &mut Raw) -> Result<String> {
    let challenge = raw.next().await?;
    ensure!(challenge.is("challenge", SASL), "{challenge:?}");
    Ok(String::from_utf8(BASE64_STANDARD.decode(challenge.text().trim())?)?)
}

/// Begins SCRAM-SHA-256 for somebody; the exchange and the server's first message.
async fn begun(raw: &mut Raw, user: &str) -> Result<(Exchange, String)> {
    let (exchange, first) = Exchange::begin(Hash::of("SCRAM-SHA-256")?, user, &unique("nonce"));
    raw.say(auth("SCRAM-SHA-256", first)).await?;
    let challenge = challenge(raw).await?;
    Ok((exchange, challenge))
}

/// Input: a stream restarted after login to another host, or from another address.
///
/// Outcome: `not-authorized`, or `host-unknown` for a host that is not ours; nobody changes who they are.
#[tokio::test]
async fn row_065_a_restart_changes_neither_host_nor_name() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for (to, from, condition) in [
            ("other.example", "", "not-authorized"),
            (HOST, "from='bob@localhost'", "not-authorized"),
            (HOST, "from='@@'", "not-authorized"),
            ("elsewhere.example", "", "host-unknown"),
        ] {
            for way in Way::TLS {
                let mut raw = door.stream(way).await?;
                let authenticated = raw.try_authenticate(&alice.user, &alice.password, "PLAIN").await?;
                ensure!(authenticated.is_ok(), "{authenticated:?}");
                raw.expect_stream();
                raw.say(header(to).replace(" to=", &format!(" {from} to="))).await?;
                raw.stream_error(condition).await?;
            }
        }
        Ok(())
    };
    let counted = [stream_errors("not-authorized").times(6), stream_errors("host-unknown").times(2)];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: a stream header inside TLS in the name of one account, and then the login of another.
///
/// Outcome: the stream ends with `invalid-from` (RFC 6120, 6.4.6), though the password is right.
#[tokio::test]
async fn row_065_a_login_is_by_the_name_on_the_header() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.connect(way).await?;
            raw.say(header(HOST).replace(" to=", " from='bob@localhost' to=")).await?;
            for _header_and_features in 0..2 {
                raw.next_raw(tokio::time::Instant::now() + tests::client::PATIENCE).await?;
            }
            raw.say(auth("PLAIN", format!("\0{}\0{}", alice.user, alice.password))).await?;
            raw.stream_error("invalid-from").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("invalid-from").times(2)], deeds).await
}

/// Input: PLAIN and SCRAM with the right password and somebody else's name to act as.
///
/// Outcome: `invalid-authzid`; nobody acts as another.
#[tokio::test]
async fn row_066_nobody_acts_as_another() -> Result<()> {
    let deeds = async |door: &Door| {
        let (alice, bob) = (door.person("alice").await?, door.person("bob").await?);
        let (user, password) = (&alice.user, &alice.password);
        for way in Way::TLS {
            for authzid in [bob.bare(), bob.user.clone(), HOST.to_owned(), format!("{}/phone", alice.bare())]
            {
                let mut raw = door.stream(way).await?;
                raw.say(auth("PLAIN", format!("{authzid}\0{user}\0{password}"))).await?;
                raw.sasl_failure("invalid-authzid").await?;
                raw.say(auth("SCRAM-SHA-1", format!("n,a={authzid},n={user},r=abc"))).await?;
                raw.sasl_failure("invalid-authzid").await?;
            }
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(16)], deeds).await
}

/// Input: PLAIN without NULs, with one, with three, without a name, without a password, with bytes that are no UTF-8,
/// and with 100 KB.
///
/// Outcome: `malformed-request`; 100 KB end the stream with `policy-violation` before they are read.
#[tokio::test]
async fn row_067_plain_of_a_wrong_form_is_refused() -> Result<()> {
    let bad: [&[u8]; 8] =
        [b"alice", b"\0alice", b"\0alice\0", b"\0\0secret", b"\0\0", b"\0a\0b\0", b"\0a\0b\0c", b"\0a\0\xff"];
    let deeds = async |door: &Door| {
        for message in bad {
            for way in Way::TLS {
                let mut raw = door.stream(way).await?;
                raw.say(auth("PLAIN", message)).await?;
                raw.sasl_failure("malformed-request").await?;
            }
        }
        let mut raw = door.stream(Way::Direct).await?;
        raw.pour([auth("PLAIN", vec![b'a'; 100_000])]).await;
        raw.stream_error("policy-violation").await.map(drop)
    };
    let counted = [login_failures().times(16), stream_errors("policy-violation")];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: payloads that are no base64, and `=`, which is a payload of no bytes.
///
/// Outcome: `incorrect-encoding`; for `=`, what the mechanism says of nothing. A right login is taken afterwards.
#[tokio::test]
async fn row_068_what_is_no_base64_is_refused() -> Result<()> {
    let bad = ["!", "AA", "A A==", "AA=A", "====", "\u{e9}", "AAAA\n", "AA==AA=="];
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for payload in bad {
            let mut raw = door.stream(Way::Direct).await?;
            raw.say(format!("<auth xmlns='{SASL}' mechanism='PLAIN'>{payload}</auth>")).await?;
            raw.sasl_failure("incorrect-encoding").await?;
            raw.say(format!("<auth xmlns='{SASL}' mechanism='PLAIN'>=</auth>")).await?;
            raw.sasl_failure("malformed-request").await?;
            raw.authenticate(&alice.user, &alice.password, "PLAIN").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(2 * bad.len())], deeds).await
}

/// Input: a mechanism that is not offered.
///
/// Outcome: the SASL failure `invalid-mechanism`; the stream lives, and a right login is taken.
#[tokio::test]
async fn row_069_an_unknown_mechanism_is_refused() -> Result<()> {
    let mechanisms = ["ANONYMOUS", "DIGEST-MD5", "X"];
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            for mechanism in mechanisms {
                raw.say(format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'/>"))
                    .await?;
                raw.sasl_failure("invalid-mechanism").await?;
            }
            let authenticated = raw.try_authenticate(&alice.user, &alice.password, "PLAIN").await?;
            ensure!(authenticated.is_ok(), "{authenticated:?}");
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(2 * mechanisms.len())], deeds).await
}

/// Input: mechanisms that the config has switched off, with the right password.
///
/// Outcome: they are not offered, and fail with `invalid-mechanism`.
#[tokio::test]
async fn row_069_a_mechanism_that_is_switched_off_is_refused() -> Result<()> {
    let off = ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS"];
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut raw = door.stream(Way::Direct).await?;
        for mechanism in off {
            let tried = raw.try_authenticate(&alice.user, &alice.password, mechanism).await?;
            ensure!(tried == Err("invalid-mechanism".into()), "{mechanism}: {tried:?}");
        }
        raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-512").await
    };
    let door = Door::with(&[("auth.mechanisms", "[\"SCRAM-SHA-256\", \"SCRAM-SHA-512\"]")]).await?;
    door.row([login_failures().times(off.len())], deeds).await
}

/// What the server tells about a name before it knows the password, and about a wrong one: without its nonce.
async fn told_about(door: &Door, user: &str) -> Result<(String, Vec<String>, Vec<String>)> {
    let mut raw = door.stream(Way::Direct).await?;
    let (mut exchange, first) = begun(&mut raw, user).await?;
    raw.say(response(exchange.respond(&first, "a wrong password")?)).await?;
    let scram = raw.next().await?.pretty();
    raw.say(auth("PLAIN", format!("\0{user}\0a wrong password"))).await?;
    let plain = raw.next().await?.pretty();
    let (_, rest) = first.split_once(',').context("no salt")?;
    Ok((rest.to_owned(), scram, plain))
}

/// Input: a wrong password for an account that is there, and for one that is not.
///
/// Outcome: the same answers, step by step: a salt of the same length that stays the same, the same iterations, the
/// same failure. How long they take is measured by `bench guess`.
#[tokio::test]
async fn row_070_an_unknown_name_is_answered_like_a_known_one() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        let mut shapes = Vec::new();
        let mut salts = Vec::new();
        for user in [alice.user.clone(), unique("nobody"), unique("nobody")] {
            let (first, scram, plain) = told_about(door, &user).await?;
            let (again, ..) = told_about(door, &user.to_uppercase()).await?;
            ensure!(first == again, "the salt of `{user}` changes: {first} {again}");
            let mut fields: Vec<String> = first.split(',').map(str::to_owned).collect();
            salts.push(std::mem::replace(&mut fields[0], "salt".into()));
            shapes.push((fields, scram, plain));
        }
        ensure!(shapes.iter().all(|shape| *shape == shapes[0]), "{shapes:#?}");
        ensure!(salts.iter().all(|salt| salt.len() == salts[0].len()), "{salts:?}");
        ensure!(salts[1] != salts[2] && salts[0] != salts[1], "one salt for two names");
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(12)], deeds).await
}

/// Input: proofs that are wrong in one bit, at the first byte, in the middle, and at the last.
///
/// Outcome: `not-authorized`, each like the other; they are compared in constant time.
#[tokio::test]
async fn row_071_a_proof_is_right_or_it_is_not() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for at in [0, 15, 31] {
            let mut raw = door.stream(Way::Direct).await?;
            let (mut exchange, first) = begun(&mut raw, &alice.user).await?;
            let last = exchange.respond(&first, &alice.password)?;
            let (rest, proof) = last.split_once(",p=").context("no proof")?;
            let mut proof = BASE64_STANDARD.decode(proof)?;
            proof[at] ^= 1;
            raw.say(response(format!("{rest},p={}", BASE64_STANDARD.encode(proof)))).await?;
            raw.sasl_failure("not-authorized").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(3)], deeds).await
}

/// Input: SCRAM messages with a mandatory extension, without a nonce, with names escaped in ways that are none; last
/// messages with another nonce, another `c=`, an extension, or without a proof.
///
/// Outcome: `malformed-request` for a wrong form, `not-authorized` for what does not fit; `=2C` and `=3D` in a name
/// are a comma and an equals sign.
#[tokio::test]
async fn row_075_scram_is_read_as_it_is_written() -> Result<()> {
    let first: [&str; 10] = [
        "n,,m=x,n=alice,r=abc",
        "n,,n=alice,r=abc,m=x",
        "n,,n=alice",
        "n,,n=alice,r=",
        "n,,n=a=XX,r=abc",
        "n,,n=a=,r=abc",
        "n,,n=a=2c,r=abc",
        "x,,n=alice,r=abc",
        "n=alice,r=abc",
        "n,,",
    ];
    type Edit = fn(&str) -> String;
    let last: [(Edit, &str); 8] = [
        (|s| s.replace(",r=", ",r=x"), "not-authorized"),
        (|s| s.replacen("c=biws", "c=eSws", 1), "not-authorized"),
        (|s| s.replacen("c=biws", "c=", 1), "not-authorized"),
        (|s| s.replacen("c=biws", "c=!", 1), "malformed-request"),
        (|s| s.replace(",p=", ",m=x,p="), "malformed-request"),
        (|s| s.replace(",p=", ",x=x,p="), "not-authorized"),
        (|s| s.split(",p=").next().unwrap_or_default().to_owned(), "malformed-request"),
        (|_| String::new(), "malformed-request"),
    ];
    let deeds = async |door: &Door| {
        for message in first {
            let mut raw = door.stream(Way::Direct).await?;
            raw.say(auth("SCRAM-SHA-256", message)).await?;
            raw.sasl_failure("malformed-request").await.with_context(|| message.to_owned())?;
        }
        let alice = door.person("a,b=c").await?;
        for (edit, condition) in last {
            let mut raw = door.stream(Way::Direct).await?;
            let (mut exchange, first) = begun(&mut raw, &alice.user).await?;
            let message = edit(&exchange.respond(&first, &alice.password)?);
            raw.say(response(&message)).await?;
            raw.sasl_failure(condition).await.with_context(|| message.clone())?;
            raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-1-PLUS").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(18)], deeds).await
}

/// Input: SCRAM by a client to whom somebody in between gave another hash of what was offered (XEP-0474).
///
/// Outcome: `not-authorized`: the proof covers the hash, so nobody can change it without the password.
#[tokio::test]
async fn row_076_nobody_shortens_the_list_of_mechanisms() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            let (mut exchange, first) = begun(&mut raw, &alice.user).await?;
            let (rest, hash) = first.split_once(",h=").context("no hash of what was offered")?;
            ensure!(BASE64_STANDARD.decode(hash)?.len() == 32, "{hash}");
            let changed = format!("{rest},h={}", BASE64_STANDARD.encode([0; 32]));
            raw.say(response(exchange.respond(&changed, &alice.password)?)).await?;
            raw.sasl_failure("not-authorized").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(2)], deeds).await
}

/// Input: `<response/>` before `<auth/>`; `<auth/>` within an exchange; `<auth/>` after a login.
///
/// Outcome: `malformed-request`; the exchange is given up for the new one (RFC 6120, 6.4.2), which succeeds, and the
/// fourth that is given up ends the stream; after a login the stream ends with `policy-violation`.
#[tokio::test]
async fn row_077_the_steps_of_a_login_have_an_order() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            raw.say(response("c=biws,r=abc,p=AAAA")).await?;
            raw.sasl_failure("malformed-request").await?;
            begun(&mut raw, &alice.user).await?;
            raw.authenticate(&alice.user, &alice.password, "PLAIN").await?;
            raw.say(auth("PLAIN", format!("\0{}\0{}", alice.user, alice.password))).await?;
            raw.stream_error("policy-violation").await?;
            let mut raw = door.stream(way).await?;
            for _ in 0..4 {
                begun(&mut raw, &alice.user).await?;
            }
            raw.say(auth("SCRAM-SHA-256", format!("n,,n={},r=abc", alice.user))).await?;
            raw.stream_error("policy-violation").await?;
        }
        Ok(())
    };
    let counted = [login_failures().times(12), stream_errors("policy-violation").times(4)];
    Door::shared().await?.row(counted, deeds).await
}

/// Input: `<abort/>` within an exchange, and without one.
///
/// Outcome: `aborted`, and a right login is taken.
#[tokio::test]
async fn row_078_an_exchange_can_be_given_up() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            for within in [true, false] {
                if within {
                    begun(&mut raw, &alice.user).await?;
                }
                raw.say(format!("<abort xmlns='{SASL}'/>")).await?;
                raw.sasl_failure("aborted").await?;
            }
            raw.authenticate(&alice.user, &alice.password, "SCRAM-SHA-256").await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(4)], deeds).await
}

/// Input: a login with a wrong password, and behind it in the same segment a new stream, a binding and a message.
///
/// Outcome: `not-authorized`, and nothing of the rest is done: it ends the stream.
#[tokio::test]
async fn row_080_what_is_sent_ahead_of_a_failed_login_is_not_done() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.stream(way).await?;
            raw.say(format!(
                "{}{}<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>\
                 <message to='{}'><body>too early</body></message>",
                auth("PLAIN", format!("\0{}\0wrong", alice.user)),
                header(HOST),
                door.witness()
            ))
            .await?;
            raw.sasl_failure("not-authorized").await?;
            raw.stream_error_of(&["restricted-xml", "not-well-formed", "bad-format"]).await?;
        }
        Ok(())
    };
    Door::shared().await?.row([login_failures().times(2)], deeds).await
}

/// Input: a stanza before login.
///
/// Outcome: the stream ends with `not-authorized`, also where logins need no TLS.
#[tokio::test]
async fn row_081_a_stanza_before_login_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let mut raw = door.stream(Way::Plain).await?;
        raw.say(format!("<message to='{}'><body>a</body></message>", door.witness())).await?;
        raw.stream_error("not-authorized").await.map(drop)
    };
    Door::without_tls().await?.row([stream_errors("not-authorized")], deeds).await
}

/// Input: stanzas after login and before a resource is bound.
///
/// Outcome: the stream ends with `not-authorized`, and nothing is delivered.
#[tokio::test]
async fn row_082_a_stanza_before_binding_ends_the_stream() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for stanza in [
            format!("<message to='{}'><body>a</body></message>", door.witness()),
            format!("<presence to='{}'/>", door.witness()),
            format!("<iq to='{}' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", door.witness()),
            "<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>".to_owned(),
        ] {
            for way in Way::TLS {
                let mut raw = door.authenticated(way, &alice).await?;
                raw.say(&stanza).await?;
                raw.stream_error("not-authorized").await?;
            }
        }
        Ok(())
    };
    Door::shared().await?.row([stream_errors("not-authorized").times(8)], deeds).await
}

/// The old way to log in (XEP-0078) for somebody.
fn old_login(alice: &Person) -> String {
    format!(
        "<iq type='set' id='old'><query xmlns='jabber:iq:auth'><username>{}</username><password>{}</password>\
         <resource>old</resource></query></iq>",
        alice.user, alice.password
    )
}

/// Input: logins as they were before SASL was: `jabber:iq:auth`, and DIGEST-MD5.
///
/// Outcome: neither is offered; DIGEST-MD5 fails with `invalid-mechanism`, `jabber:iq:auth` ends a stream before
/// login with `not-authorized` and is answered with `service-unavailable` on a session.
#[tokio::test]
async fn row_091_old_logins_are_gone() -> Result<()> {
    let deeds = async |door: &Door| {
        let alice = door.person("alice").await?;
        for way in Way::TLS {
            let mut raw = door.connect(way).await?;
            let features = raw.begin_stream().await?;
            ensure!(!features.nodes().any(|n| n.ns == "http://jabber.org/features/iq-auth"), "{features:?}");
            raw.say(auth("DIGEST-MD5", "")).await?;
            raw.sasl_failure("invalid-mechanism").await?;
            raw.say(old_login(&alice)).await?;
            raw.stream_error("not-authorized").await?;
            let mut session = door.session(way, &alice).await?;
            session.say(old_login(&alice)).await?;
            session.stanza_error("service-unavailable").await?;
        }
        Ok(())
    };
    let counted = [login_failures().times(2), stream_errors("not-authorized").times(2)];
    Door::shared().await?.row(counted, deeds).await
}

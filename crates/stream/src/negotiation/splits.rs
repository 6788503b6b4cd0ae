//! However a client's bytes are cut into segments, its session is the same: every split of recorded ones is tried.

use stanza::dom;

use super::tests::{BIND, auth, facts, header};
use super::*;
use crate::limits::Limits;
use crate::reader::Reader;

/// What became of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    /// Every byte that the server wrote.
    said: String,
    /// What was asked of the caller, and what was heard once bound.
    did: Vec<String>,
}

/// One connection, from its first byte to the end of what the client sent.
struct Connection {
    reader: Reader,
    negotiation: Negotiation,
    input: BytesMut,
    bound: bool,
    ended: bool,
    session: Session,
}

impl Connection {
    fn play(pieces: &[&[u8]]) -> Session {
        let mut connection = Connection {
            reader: Reader::new(Limits::before_auth()),
            negotiation: Negotiation::new(
                Arc::new(super::sasl2_tests::settings()),
                Entry::DirectTls(facts()),
            ),
            input: BytesMut::new(),
            bound: false,
            ended: false,
            session: Session::default(),
        };
        for piece in pieces {
            connection.input.extend_from_slice(piece);
            while !connection.ended && connection.step() {}
            // As a connection does when nothing more has come.
            connection.reader.release();
        }
        connection.session
    }

    /// Handles one event; false where more is wanted.
    fn step(&mut self) -> bool {
        let acts = match (self.reader.feed(&mut self.input), self.bound) {
            (Ok(None), _) => return false,
            (Ok(Some(event)), true) => {
                self.ended = matches!(event, StreamEvent::Close);
                self.session.did.push(show(event));
                Acts::new()
            }
            (Ok(Some(event)), false) => self.negotiation.on_event(event),
            (Err(error), true) => {
                self.ended = true;
                self.session.did.push(format!("ERROR {}", error.condition.tag()));
                Acts::new()
            }
            (Err(error), false) => self.negotiation.on_read_error(error),
        };
        self.perform(acts);
        true
    }

    fn perform(&mut self, acts: Acts) {
        for act in acts {
            let next = match act {
                Act::Send(bytes) => {
                    self.session.said += std::str::from_utf8(&bytes).unwrap();
                    continue;
                }
                Act::CheckPassword { password, .. } => {
                    self.session.did.push("CHECK".into());
                    let good = password.expose() == "secret";
                    self.negotiation.on_password_checked(if good { Checked::Good } else { Checked::Wrong })
                }
                Act::RestartStream => {
                    self.reader.set_limits(Limits::after_auth());
                    self.reader.restart();
                    continue;
                }
                Act::Admitted => {
                    self.reader.set_limits(Limits::after_auth());
                    self.negotiation.on_admitted()
                }
                Act::BindInline { account, resource, .. } => {
                    self.negotiation.on_bound_inline(Ok((account.with_resource(&resource), Vec::new())))
                }
                Act::Bind { account, .. } => {
                    let jid = account.with_resource_str("r").unwrap();
                    self.negotiation.on_bound(Ok(jid))
                }
                Act::Bound { jid } => {
                    self.bound = true;
                    self.session.did.push(format!("BOUND {jid}"));
                    continue;
                }
                Act::Close { error } => {
                    self.ended = true;
                    let condition = error.map_or("-", |error| error.condition.tag());
                    self.session.did.push(format!("CLOSE {condition}"));
                    continue;
                }
                _ => continue,
            };
            self.perform(next);
        }
    }
}

fn show(event: StreamEvent) -> String {
    let written = |stanza: &Stanza| {
        let mut out = BytesMut::new();
        stanza.write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    };
    match event {
        StreamEvent::Header(header) => format!("HEADER {:?}", header.to),
        StreamEvent::Stanza(stanza) => written(&stanza),
        StreamEvent::BadStanza { reply } => format!("BAD {}", reply.as_ref().map_or("-".into(), written)),
        StreamEvent::Element(e) => String::from_utf8(dom::to_bytes(&e).to_vec()).unwrap(),
        StreamEvent::Close => "CLOSE".into(),
    }
}

/// A login by PLAIN, white space where it may stand, and the binding.
fn login() -> String {
    let (begin, password) = (header("x"), auth("PLAIN", "\0alice\0secret"));
    format!(" \n{begin}{password}\r\n {begin} {BIND}")
}

/// What a bound client says, with everything that a split could break.
const TALK: &str = " <message to='\u{e9}@x' id='a&amp;b&#x1F426;'><body>\u{20ac}uro \u{1f426} ]] ] &lt;&amp;&#65;\r\n</body>\
    <s:x xmlns:s='u' s:k=\"'\" k='&#9;&#10;\t\r\r\n\ra'/>\r\r\n<![CDATA[a]]b<c>]]></message>\n<stream:x/><presence></presence >\
    <iq type='get' id='1'><q xmlns='u'/></iq><iq type='set' id='1'/><message to='@@@' id='2'/>";

/// Compares the session in one piece with it in other pieces: every split in two where `step` is 1, and
/// `random` splits in three and four at seeded places.
fn any_split_is_the_same(input: &[u8], step: usize, random: usize) -> Session {
    let whole = Connection::play(&[input]);
    let shown = || String::from_utf8_lossy(&input[..input.len().min(200)]);
    for at in (0..=input.len()).step_by(step) {
        let (a, b) = input.split_at(at);
        assert_eq!(Connection::play(&[a, b]), whole, "split at {at} of {}", shown());
    }
    let single: Vec<_> = input.chunks(1).collect();
    assert_eq!(Connection::play(&single), whole, "byte by byte: {}", shown());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut place = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize % (input.len() + 1)
    };
    for _ in 0..random {
        let mut at = [place(), place(), place()];
        at.sort_unstable();
        let [i, j, k] = at;
        let pieces = [&input[..i], &input[i..j], &input[j..k], &input[k..]];
        assert_eq!(Connection::play(&pieces), whole, "split at {at:?} of {}", shown());
        let pieces = [&input[..i], &input[i..k], &input[k..]];
        assert_eq!(Connection::play(&pieces), whole, "split at {i} and {k} of {}", shown());
    }
    whole
}

#[test]
fn a_session_is_the_same_at_every_split() {
    let input = format!("{}{TALK}</stream:stream ><presence/>", login());
    let session = any_split_is_the_same(input.as_bytes(), 1, 3_000);
    assert_eq!(session.did[..2], ["CHECK", "BOUND alice@x/r"]);
    assert_eq!(session.did.len(), 9, "{:#?}", session.did);
    assert_eq!(session.did.last().unwrap(), "CLOSE");
    assert!(session.said.ends_with("</iq>"), "{}", session.said);
}

#[test]
fn a_session_that_began_with_its_login_is_the_same_at_every_split() {
    let bind = "<bind xmlns='urn:xmpp:bind:0'><tag>t</tag></bind>";
    let login = super::sasl2_tests::authenticate("PLAIN", "\0alice\0secret", bind);
    let input = format!("{}\n{login} {TALK}</stream:stream>", header("x"));
    let session = any_split_is_the_same(input.as_bytes(), 1, 500);
    assert!(session.did[1].starts_with("BOUND alice@x/t/"), "{:#?}", session.did);
    assert_eq!(session.did.len(), 9, "{:#?}", session.did);
}

#[test]
fn a_session_that_goes_wrong_goes_wrong_alike_at_every_split() {
    let wrong = auth("PLAIN", "\0alice\0wrong");
    let (begin, login) = (header("x"), login());
    let deep = "<a>".repeat(80);
    let cases: [(String, &str); 12] = [
        (format!("{begin}{wrong}{wrong}{wrong}{wrong}{wrong}"), "CLOSE policy-violation"),
        (format!("{begin}<message/>{wrong}"), "CLOSE not-authorized"),
        (format!("{begin}{wrong}<x xmlns='u'><y/></x>"), "CLOSE unsupported-stanza-type"),
        (format!("{begin}<!-- -->"), "CLOSE restricted-xml"),
        (format!("<?xml version='1.0' encoding='latin-1'?>{begin}"), "CLOSE unsupported-encoding"),
        (begin.replace("'x'", "'y.example'"), "CLOSE host-unknown"),
        (format!("{login}<message>{deep}"), "ERROR policy-violation"),
        (format!("{login}<message>\u{20ac}&euro;</message>"), "ERROR restricted-xml"),
        (format!("{login}<presence/>\u{20ac}<presence/>"), "ERROR bad-format"),
        (format!("{login}<presence id='1' id='2'/>"), "ERROR not-well-formed"),
        (format!("{login}<presence from='@@@'/>"), "ERROR invalid-from"),
        (format!("{login}<presence/>{begin}"), "ERROR restricted-xml"),
    ];
    for (input, end) in cases {
        let session = any_split_is_the_same(input.as_bytes(), 1, 200);
        assert_eq!(session.did.last().map(String::as_str), Some(end), "{input}");
    }
    let mut broken = format!("{login}<message>\u{20ac}</message>").into_bytes();
    let at = broken.len() - "</message>".len() - 1;
    broken[at] = b'x';
    let session = any_split_is_the_same(&broken, 1, 200);
    assert_eq!(session.did.last().unwrap(), "ERROR not-well-formed");
}

#[test]
fn bounds_are_met_alike_at_every_split() {
    let large = |n: usize| format!("{}<message><body>{}</body></message>", header("x"), "x".repeat(n));
    let attributes: String = (0..65).map(|n| format!(" a{n}=''")).collect();
    let cases = [
        (large(8 * 1024), "CLOSE policy-violation"),
        (large(8 * 1024 - 100), "CLOSE not-authorized"),
        (format!("{}<message{attributes}/>", header("x")), "CLOSE policy-violation"),
        (format!("{}<message>{}", header("x"), "<b/>".repeat(40)), "CLOSE policy-violation"),
        (format!("{}<message>{}", header("x"), "<b>".repeat(40)), "CLOSE policy-violation"),
        (format!("{}<{}", header("x"), "x".repeat(9_000)), "CLOSE policy-violation"),
    ];
    for (input, end) in cases {
        let session = any_split_is_the_same(input.as_bytes(), 97, 50);
        assert_eq!(session.did.last().map(String::as_str), Some(end));
    }
}

//! What a client may ask before it has logged in: an iq that a module answers (in-band registration, XEP-0077).

use minidom::Element;
use stanza::{IqType, Jid, Kind, Stanza, StreamCondition, address};

use super::{Act, Acts, Negotiation, State};

/// Requests that are answered before the login; one more ends the stream.
const GREETINGS_MAX: u8 = 10;

/// An iq of a client that has not logged in.
#[derive(Debug, Clone)]
pub struct Request(pub Stanza);

impl PartialEq for Request {
    fn eq(&self, other: &Request) -> bool {
        self.0.head == other.0.head && self.0.body() == other.0.body()
    }
}

impl Negotiation {
    /// Whether more than STARTTLS is possible on this stream.
    fn is_safe_enough(&self) -> bool {
        self.tls.is_some() || !self.settings.tls_required
    }

    /// What modules offer on this stream before the login.
    pub(super) fn greetings(&self) -> Vec<Element> {
        let host = self.host.as_ref().filter(|_| self.is_safe_enough());
        host.map(|host| (self.settings.greetings)(host, self.tls.is_some())).unwrap_or_default()
    }

    /// The answer to [`Act::Greet`]; `None` where nobody answers that before the login.
    pub fn on_greeted(&mut self, answer: Option<Stanza>) -> Acts {
        let mut acts = Acts::new();
        if matches!(self.state, State::Greeting) {
            self.state = State::Open;
            match answer {
                Some(answer) => self.send(&mut acts, |writer, out| writer.stanza(&answer, out)),
                None => self.fail(&mut acts, StreamCondition::NotAuthorized.into()),
            }
        }
        acts
    }

    /// A stanza of a client that has not logged in.
    pub(super) fn on_request(&mut self, stanza: &Stanza, acts: &mut Acts) {
        let asks = stanza.head.kind == Kind::Iq
            && matches!(stanza.iq_type(), Ok(IqType::Get | IqType::Set))
            && stanza.head.id.is_some();
        let host = self.host.clone().filter(|host| {
            let to_host = |to: &Jid| address::is_host(to, host);
            stanza.head.to.as_ref().is_none_or(to_host)
        });
        let (true, Some(host), true, State::Open) = (asks, host, self.is_safe_enough(), &self.state) else {
            // RFC 6120, 4.9.3.12: nothing is routed for somebody unknown.
            return self.fail(acts, StreamCondition::NotAuthorized.into());
        };
        self.greeted += 1;
        if self.greeted > GREETINGS_MAX {
            return self.fail(acts, StreamCondition::PolicyViolation.into());
        }
        let mut request = stanza.clone();
        // XEP-0077, 3.1.1: who has not logged in has no address, whatever it says.
        request.head_mut().from = None;
        self.state = State::Greeting;
        acts.push(Act::Greet { host, request: Request(request) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BytesMut;

    use super::*;
    use crate::limits::Limits;
    use crate::negotiation::{ClientCertificate, Entry, Settings, TlsFacts, TlsVersion};
    use crate::reader::Reader;

    const HEADER: &str = "<stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' to='x' version='1.0'>";
    const ASK: &str = "<iq type='get' id='1'><query xmlns='urn:x'/></iq>";

    /// A negotiation that has sent its features, and what it said so far.
    struct Talk(Negotiation, Reader, String);

    impl Talk {
        fn new(secure: bool, tls_required: bool) -> Talk {
            let tls = TlsFacts {
                version: TlsVersion::Tls13,
                exporter: None,
                endpoint_hash: None,
                alpn: None,
                sni: None,
                client: ClientCertificate::Absent,
            };
            let entry = if secure { Entry::DirectTls(tls) } else { Entry::Clear };
            let hosts = vec![address::host("x").unwrap()];
            let settings = Settings {
                tls_required,
                greetings: Arc::new(|host, secure| {
                    assert_eq!(host.as_str(), "x");
                    vec![Element::bare(if secure { "secure" } else { "clear" }, "urn:x")]
                }),
                ..Settings::new(hosts, b"secret".to_vec(), Arc::new(|buffer: &mut [u8]| buffer.fill(1)))
            };
            let negotiation = Negotiation::new(Arc::new(settings), entry);
            let mut talk = Talk(negotiation, Reader::new(Limits::before_auth()), String::new());
            talk.say(HEADER);
            talk
        }

        /// The client says this; the acts that are left for the caller.
        fn say(&mut self, xml: &str) -> Vec<Act> {
            let mut input = BytesMut::from(xml);
            let event = self.1.feed(&mut input).unwrap().unwrap();
            let acts = self.0.on_event(event);
            self.note(acts)
        }

        fn answer(&mut self, answer: Option<Stanza>) -> Vec<Act> {
            let acts = self.0.on_greeted(answer);
            self.note(acts)
        }

        fn note(&mut self, acts: Acts) -> Vec<Act> {
            let mut left = Vec::new();
            for act in acts {
                match act {
                    Act::Send(bytes) => self.2.push_str(std::str::from_utf8(&bytes).unwrap()),
                    other => left.push(other),
                }
            }
            left
        }
    }

    fn closes_with(acts: &[Act], condition: StreamCondition) -> bool {
        matches!(acts, [Act::Close { error: Some(error) }] if error.condition == condition)
    }

    #[test]
    fn a_request_is_handed_over_without_an_address_and_its_answer_is_sent() {
        let mut talk = Talk::new(true, true);
        let ask = ASK.replace("<iq", "<iq to='X' from='alice@x/r'");
        let acts = talk.say(&ask);
        let [Act::Greet { host, request }] = &acts[..] else { panic!("{acts:?}") };
        assert_eq!((host.as_str(), &request.0.head.from), ("x", &None));
        assert!(talk.0.is_waiting());
        assert_eq!(talk.answer(Some(request.0.result(None))), []);
        assert!(talk.2.ends_with("<iq from='x' id='1' type='result'/>"), "{}", talk.2);
        assert!(!talk.0.is_waiting() && talk.say(ASK).len() == 1);
    }

    #[test]
    fn what_nobody_answers_before_the_login_ends_the_stream() {
        let mut talk = Talk::new(true, true);
        assert!(matches!(talk.say(ASK)[..], [Act::Greet { .. }]));
        assert!(closes_with(&talk.answer(None), StreamCondition::NotAuthorized));
        for stanza in [
            "<message to='x'><body>hi</body></message>",
            "<presence/>",
            "<iq type='result' id='1'/>",
            "<iq type='get' id='1' to='alice@x'><query xmlns='urn:x'/></iq>",
            "<iq type='get' id='1' to='y'><query xmlns='urn:x'/></iq>",
        ] {
            let mut talk = Talk::new(true, true);
            assert!(closes_with(&talk.say(stanza), StreamCondition::NotAuthorized), "{stanza}");
        }
    }

    #[test]
    fn nothing_is_offered_or_answered_in_the_clear_where_tls_is_required() {
        let mut talk = Talk::new(false, true);
        assert!(!talk.2.contains("urn:x"), "{}", talk.2);
        assert!(closes_with(&talk.say(ASK), StreamCondition::NotAuthorized));
        let mut talk = Talk::new(false, false);
        assert!(talk.2.contains("<clear xmlns='urn:x'/>"), "{}", talk.2);
        assert!(matches!(talk.say(ASK)[..], [Act::Greet { .. }]));
        assert!(Talk::new(true, true).2.contains("<secure xmlns='urn:x'/>"));
    }

    #[test]
    fn a_client_that_only_asks_is_closed_in_the_end() {
        let mut talk = Talk::new(true, true);
        for _ in 0..GREETINGS_MAX {
            let acts = talk.say(ASK);
            let [Act::Greet { request, .. }] = &acts[..] else { panic!("{acts:?}") };
            talk.answer(Some(request.0.result(None)));
        }
        assert!(closes_with(&talk.say(ASK), StreamCondition::PolicyViolation));
    }

    #[test]
    fn an_answer_that_comes_after_the_end_is_not_sent() {
        let mut talk = Talk::new(true, true);
        let acts = talk.say(ASK);
        let [Act::Greet { request, .. }] = &acts[..] else { panic!("{acts:?}") };
        let answer = request.0.result(None);
        let acts = talk.0.on_timeout();
        talk.note(acts);
        let said = talk.2.clone();
        assert_eq!(talk.answer(Some(answer)), []);
        assert_eq!(talk.2, said);
    }
}

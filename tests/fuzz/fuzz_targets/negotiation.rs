//! Scripts of bytes and answers through reader and negotiation: nobody is bound who was not authenticated.
#![no_main]

use std::sync::Arc;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use stanza::{Condition, StanzaError, StreamCondition, StreamError, address};
use stream::negotiation::Inline;
use stream::sasl::token::{FoundTokens, KnownToken, TokenKey};
use stream::sasl::{Checked, Found, SaslCondition, ScramHash, keys};
use stream::{
    Act, Acts, ClientCertificate, Entry, Limits, Negotiation, Reader, Settings, StreamEvent, TlsFacts,
    TlsVersion,
};

/// What the caller does next, by a byte of the script.
const FEED: u8 = 0;

// Byte 0 chooses the settings. Then: a length and as many bytes of the client, and a byte of how the next answer
// that is due turns out; and so on.
fuzz_target!(|data: &[u8]| {
    let Some((choice, mut script)) = data.split_first() else { return };
    let mut connection = Connection::new(*choice);
    while let Some((&length, rest)) = script.split_first() {
        let (bytes, rest) = rest.split_at(usize::from(length).min(rest.len()));
        let (&answer, rest) = rest.split_first().unwrap_or((&FEED, rest));
        script = rest;
        connection.answer = answer;
        connection.input.extend_from_slice(bytes);
        while !connection.ended && connection.step() {}
        if connection.ended {
            return;
        }
    }
});

struct Connection {
    reader: Reader,
    negotiation: Negotiation,
    input: BytesMut,
    /// What the server has said on this stream, read as a client reads it.
    client: Reader,
    answer: u8,
    proven: bool,
    ended: bool,
}

fn settings(choice: u8) -> Settings {
    let random = |buffer: &mut [u8]| buffer.fill(7);
    let hosts: Vec<_> = ["x", "y"].into_iter().filter_map(|host| address::host(host).ok()).collect();
    let mut settings = Settings::new(hosts, b"secret".to_vec(), Arc::new(random));
    settings.iterations = 2;
    settings.tls_required = choice & 1 == 0;
    settings.tls_available = choice & 2 == 0;
    settings.inlines =
        Arc::new(|_| Some(Inline { bind: Some(vec!["urn:x"]), resume: true, tokens: true, upgrades: true }));
    settings
}

fn facts(choice: u8) -> TlsFacts {
    TlsFacts {
        version: if choice & 8 == 0 { TlsVersion::Tls13 } else { TlsVersion::Tls12 },
        exporter: (choice & 16 == 0).then(|| vec![1; 32]),
        endpoint_hash: Some(vec![2; 32]),
        alpn: None,
        sni: None,
        client: ClientCertificate::Absent,
    }
}

impl Connection {
    fn new(choice: u8) -> Connection {
        let entry = if choice & 4 == 0 { Entry::DirectTls(facts(choice)) } else { Entry::Clear };
        Connection {
            reader: Reader::new(Limits::before_auth()),
            negotiation: Negotiation::new(Arc::new(settings(choice)), entry),
            input: BytesMut::new(),
            client: Reader::new(Limits::after_auth()),
            answer: FEED,
            proven: false,
            ended: false,
        }
    }

    fn step(&mut self) -> bool {
        assert!(!self.negotiation.is_waiting(), "an answer is due that nobody was asked for");
        let acts = match self.reader.feed(&mut self.input) {
            Ok(Some(event)) => self.negotiation.on_event(event),
            Ok(None) => return self.end_early(),
            Err(error) => self.negotiation.on_read_error(error),
        };
        self.perform(acts);
        true
    }

    /// A script may let the time run out, or the server stop.
    fn end_early(&mut self) -> bool {
        let acts = match self.answer {
            254 => self.negotiation.on_timeout(),
            255 => self.negotiation.end(StreamError::new(StreamCondition::SystemShutdown)),
            _ => return false,
        };
        self.perform(acts);
        assert!(self.ended, "it goes on after its end");
        false
    }

    fn perform(&mut self, acts: Acts) {
        for act in acts {
            assert!(!self.ended, "an act after the end");
            let next = match act {
                Act::Send(bytes) => {
                    self.hear(&bytes);
                    continue;
                }
                Act::StartTls => {
                    self.input.clear();
                    self.reader.restart();
                    self.client.restart();
                    self.negotiation.on_tls(facts(self.answer));
                    continue;
                }
                Act::RestartStream => {
                    assert!(self.proven, "a stream restarts as an account's that proved nothing");
                    self.reader.set_limits(Limits::after_auth());
                    self.reader.restart();
                    self.client.restart();
                    continue;
                }
                Act::Admitted => {
                    assert!(self.proven, "somebody is admitted that proved nothing");
                    self.reader.set_limits(Limits::after_auth());
                    self.negotiation.on_admitted()
                }
                Act::BindInline { account, resource, .. } => {
                    assert!(
                        self.proven && self.negotiation.account() == Some(&account),
                        "somebody else binds"
                    );
                    self.negotiation.on_bound_inline(match self.answer {
                        1 => Err(StanzaError::new(Condition::Conflict)),
                        _ => Ok((account.with_resource(&resource), Vec::new())),
                    })
                }
                Act::FindTokens { .. } => self.find_tokens(),
                Act::SettleTokens(_) => self.negotiation.on_settled(match self.answer {
                    1 => Err(SaslCondition::NotAuthorized),
                    2 => Ok(None),
                    _ => Ok(Some(("token".to_owned(), "2026-01-01T00:00:00Z".to_owned()))),
                }),
                Act::LookUp { hash, .. } => self.look_up(hash),
                Act::CheckPassword { .. } => self.check(),
                Act::StoreKeys { account, .. } => {
                    assert!(!self.proven, "keys are stored behind the login");
                    let host = self.negotiation.host().map(|host| host.as_str());
                    assert_eq!(host, Some(account.domain().as_str()), "keys of another host's account");
                    self.negotiation.on_keys_stored()
                }
                Act::Greet { .. } => self.negotiation.on_greeted(None),
                Act::Authenticated { account, .. } => {
                    assert_eq!(self.negotiation.account(), Some(&account));
                    self.proven = true;
                    continue;
                }
                Act::Bind { account, requested } => {
                    assert!(
                        self.proven && self.negotiation.account() == Some(&account),
                        "somebody else binds"
                    );
                    let bound = match (self.answer, requested) {
                        (1, _) => Err(StanzaError::new(Condition::Conflict)),
                        (_, Some(resource)) => Ok(account.with_resource(&resource)),
                        (_, None) => Ok(account.with_resource(&settings(0).make_resource())),
                    };
                    self.negotiation.on_bound(bound)
                }
                Act::Resume { account, .. } => {
                    assert!(
                        self.proven && self.negotiation.account() == Some(&account),
                        "somebody else resumes"
                    );
                    self.negotiation.on_resumed(match self.answer {
                        1 => Err((Condition::ItemNotFound, None)),
                        _ => Ok((account.with_resource(&settings(0).make_resource()), 7)),
                    })
                }
                Act::Bound { jid } => {
                    assert!(self.proven, "bound without a proof");
                    assert_eq!(self.negotiation.account(), Some(&jid.to_bare()));
                    self.ended = true;
                    continue;
                }
                Act::Close { .. } => {
                    self.ended = true;
                    continue;
                }
                _ => continue,
            };
            self.perform(next);
        }
    }

    fn look_up(&mut self, hash: ScramHash) -> Acts {
        let keys = keys::derive("pencil", hash, b"salt", 2);
        match self.answer {
            1 => self.negotiation.on_credentials(None),
            2 => self.negotiation.on_unavailable(),
            3 => self.negotiation.on_credentials(keys.ok().map(|keys| found(keys, true))),
            _ => self.negotiation.on_credentials(keys.ok().map(|keys| found(keys, false))),
        }
    }

    fn find_tokens(&mut self) -> Acts {
        let token = KnownToken {
            key: TokenKey(b"token".to_vec()),
            mechanism: "HT-SHA-256-NONE".to_owned(),
            count: Some(3),
            expired: self.answer == 4,
        };
        match self.answer {
            1 => self.negotiation.on_tokens(None),
            2 => self.negotiation.on_unavailable(),
            _ => self
                .negotiation
                .on_tokens(Some(FoundTokens { tokens: vec![token], disabled: self.answer == 3 })),
        }
    }

    fn check(&mut self) -> Acts {
        match self.answer {
            1 => self.negotiation.on_password_checked(Checked::Wrong),
            2 => self.negotiation.on_unavailable(),
            3 => self.negotiation.on_password_checked(Checked::Disabled),
            _ => self.negotiation.on_password_checked(Checked::Good),
        }
    }

    /// Whatever is sent is a part of a stream that a client can read.
    fn hear(&mut self, bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        loop {
            match self.client.feed(&mut input) {
                Ok(Some(StreamEvent::Element(e))) if is_restart(&e) => self.client.restart(),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => panic!("a client cannot read `{}`: {error}", String::from_utf8_lossy(bytes)),
            }
        }
    }
}

/// What the server says last on a stream before it begins another.
/// An account that has keys of one hash alone.
fn found(keys: keys::ScramKeys, disabled: bool) -> Found {
    Found { keys: Some(keys), disabled, lacks: ScramHash::ALL.to_vec() }
}

fn is_restart(element: &minidom::Element) -> bool {
    element.is("success", stanza::ns::SASL) || element.name() == "proceed"
}

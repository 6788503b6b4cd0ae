//! SCRAM: an exchange as the server has it with keys at hand, and the keys of a password.

use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jid::DomainPart;
use stream::sasl::keys::{ITERATIONS, derive};
use stream::sasl::scram::{Scram, Surroundings};
use stream::sasl::{Found, Mechanism, ScramHash, ScramKeys, Step};

use crate::operation::Operation;

/// What most clients choose.
const HASH: ScramHash = ScramHash::Sha256;
const PASSWORD: &str = "a password of some length";
const SALT: &[u8; 16] = b"0123456789abcdef";
/// Exchanges in a go.
const AT_ONCE: u64 = 16;

fn keys() -> ScramKeys {
    derive(black_box(PASSWORD), HASH, SALT, ITERATIONS).expect("a usable password")
}

/// Three steps: the client's first message, its keys, its proof.
pub struct Exchange {
    keys: ScramKeys,
    around: Surroundings,
    first: String,
    last: String,
}

impl Exchange {
    pub fn begin() -> Box<dyn Operation> {
        let around = Surroundings {
            host: DomainPart::new("capulet.example").expect("a host").into_owned(),
            secret: vec![7; 32],
            iterations: ITERATIONS,
            nonce: "c3ViZmVycm91cyBub25jZXM".to_owned(),
            plus: false,
            plus_offered: false,
            bindings: Vec::new(),
            offered: None,
        };
        let bare = "n=juliet,r=fyko+d2lbbFgONRv9qkxdawL";
        let first = format!("n,,{bare}");
        let mut exchange = Exchange { keys: keys(), around, first, last: String::new() };
        // The server's nonce is the same in each exchange, and so is the proof (RFC 5802, 3).
        let (mut server, challenge) = exchange.challenge();
        let challenge = String::from_utf8(challenge).expect("a challenge is text");
        let nonce = challenge.split(',').next().expect("it begins with the nonce");
        let without_proof = format!("c={},{nonce}", BASE64.encode("n,,"));
        let message = format!("{bare},{challenge},{without_proof}");
        let client_key =
            HASH.hmac(&HASH.salted_password(PASSWORD.as_bytes(), SALT, ITERATIONS), b"Client Key");
        let signature = HASH.hmac(&exchange.keys.stored_key, message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, part)| key ^ part).collect();
        exchange.last = format!("{without_proof},p={}", BASE64.encode(proof));
        assert!(
            matches!(server.message(exchange.last.as_bytes()), Step::Success { .. }),
            "the proof is right"
        );
        Box::new(exchange)
    }

    /// Comes to where the client is to prove that it knows the password.
    fn challenge(&self) -> (Scram, Vec<u8>) {
        let mut server = Scram::new(HASH, self.around.clone());
        let step = server.message(self.first.as_bytes());
        assert!(matches!(step, Step::LookUp { .. }), "the name is read");
        let found = Found { keys: Some(self.keys.clone()), disabled: false, lacks: Vec::new() };
        match server.found(Some(found)) {
            Step::Challenge(challenge) => (server, challenge),
            step => panic!("no challenge but {step:?}"),
        }
    }
}

impl Operation for Exchange {
    fn times(&self) -> u64 {
        AT_ONCE
    }

    fn go(&mut self) {
        for _ in 0..AT_ONCE {
            let (mut server, challenge) = self.challenge();
            black_box(challenge);
            let step = server.message(self.last.as_bytes());
            assert!(matches!(black_box(step), Step::Success { .. }), "the proof is right");
        }
    }
}

/// The keys of a password, with all the rounds that clients have to make too.
pub struct Keys;

impl Keys {
    pub fn begin() -> Box<dyn Operation> {
        Box::new(Keys)
    }
}

impl Operation for Keys {
    fn times(&self) -> u64 {
        1
    }

    fn go(&mut self) {
        black_box(keys());
    }
}

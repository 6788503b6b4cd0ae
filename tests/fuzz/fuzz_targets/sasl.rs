//! Messages of every SASL mechanism: no proof is taken that does not fit, and nobody becomes somebody else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stanza::{BareJid, address};
use stream::sasl::{
    Checked, Found, Mechanism, ScramHash, Step,
    anonymous::Anonymous,
    external::External,
    keys,
    plain::Plain,
    scram::{Scram, Surroundings},
};

/// The password of every account.
const PASSWORD: &str = "pencil";

// Byte 0 chooses the mechanism (bits 0-2), whether the account is there (bit 3) and what the channel has to bind
// to (bits 4-5). Messages of the client follow, each behind its length in two bytes.
fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let Ok(host) = address::host("x") else { return };
    let Ok(alice) = BareJid::new("alice@x") else { return };
    let hash = [ScramHash::Sha1, ScramHash::Sha256, ScramHash::Sha512][usize::from(choice >> 6) % 3];
    let mut mechanism: Box<dyn Mechanism> = match choice & 7 {
        0 => Box::new(Plain::new(host)),
        1 => Box::new(External::new(&host, &[alice])),
        2 => Box::new(Anonymous::new(alice)),
        kind => Box::new(Scram::new(
            hash,
            Surroundings {
                host,
                secret: b"secret".to_vec(),
                iterations: 2,
                nonce: "server".into(),
                plus: kind & 1 == 0,
                plus_offered: choice & 16 != 0,
                bindings: if choice & 16 == 0 { Vec::new() } else { vec![("tls-exporter", vec![1; 32])] },
                offered: (choice & 32 != 0).then(|| "hash".into()),
            },
        )),
    };
    while let [high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (message, after) = after.split_at(length);
        rest = after;
        let mut step = mechanism.message(message);
        loop {
            step = match step {
                Step::LookUp { account, hash: asked } => {
                    assert_eq!(account.domain().as_str(), "x", "an account of another host");
                    let keys = keys::derive(PASSWORD, asked, b"salt", 2).ok();
                    let keys = keys.filter(|_| choice & 8 == 0);
                    mechanism.found(keys.map(|keys| Found {
                        keys: Some(keys),
                        disabled: false,
                        lacks: ScramHash::ALL.to_vec(),
                    }))
                }
                Step::CheckPassword { account, password } => {
                    assert_eq!(account.domain().as_str(), "x", "an account of another host");
                    let good = choice & 8 == 0 && password.expose() == PASSWORD;
                    let step = mechanism.password_checked(if good { Checked::Good } else { Checked::Wrong });
                    assert!(good || !matches!(step, Step::Success { .. }), "a wrong password was taken");
                    step
                }
                Step::Success { account, .. } => {
                    assert!(choice & 8 == 0 || choice & 7 == 1 || choice & 7 == 2, "nobody logged in");
                    assert_eq!(account.domain().as_str(), "x");
                    return;
                }
                Step::Challenge(said) => {
                    assert!(choice & 7 > 2 || said.is_empty(), "a challenge of a mechanism that has none");
                    break;
                }
                Step::FindTokens { .. } | Step::Vouched { .. } => {
                    panic!("a mechanism without tokens asks for one")
                }
                Step::Fail(_) => return,
            };
        }
    }
});

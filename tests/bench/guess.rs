//! Whether time tells a stranger who has an account: Welch's t over answers to known and to unknown names.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::ClientConfig;

use super::{
    PASSWORD,
    link::{HEADER, Link},
    process::Server,
};

/// First messages of SCRAM to each kind of name, and wrong passwords by PLAIN.
const SCRAM: usize = 10_000;
const PLAIN: usize = 1_000;
/// Names of each kind: asked again and again, so that what is cached of them is.
const NAMES: usize = 20;
/// The slowest share of all answers, in percent, which the machine made slow and not the name.
const SLOWEST: usize = 5;

/// Asks for known and unknown names in a random order, each on a connection of its own.
pub async fn guess(server: &Server) -> Result<()> {
    let tls = super::link::tls_config()?;
    for n in 0..NAMES {
        server.add_user(&format!("known{n:02}"), PASSWORD)?;
    }
    let scram = |name: &str| ("SCRAM-SHA-256", format!("n,,n={name},r=guess"));
    let plain = |name: &str| ("PLAIN", format!("\0{name}\0a wrong password"));
    ask(server, &tls, SCRAM / 20, "</challenge>", scram).await?;
    let answers = ask(server, &tls, SCRAM, "</challenge>", scram).await?;
    tell("first message of SCRAM", answers);
    let answers = ask(server, &tls, PLAIN, "</failure>", plain).await?;
    tell("wrong password by PLAIN", answers);
    Ok(())
}

/// Microseconds until the answer, for known and for unknown names, `count` of each.
async fn ask(
    server: &Server,
    tls: &Arc<ClientConfig>,
    count: usize,
    answer: &str,
    message: impl Fn(&str) -> (&'static str, String),
) -> Result<[Vec<f64>; 2]> {
    let mut taken = [Vec::with_capacity(count), Vec::with_capacity(count)];
    let mut order = Order(0x9e37_79b9_7f4a_7c15);
    while taken.iter().any(|kind| kind.len() < count) {
        let chance = order.next();
        let kind = (chance % 2) as usize;
        if taken[kind].len() == count {
            continue;
        }
        // Names of one length: the bytes on the wire are as many.
        let word = ["known", "other"][kind];
        let (mechanism, message) = message(&format!("{word}{:02}", (chance >> 8) as usize % NAMES));
        let xml = format!(
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'>{}</auth>",
            BASE64.encode(message)
        );
        let mut link = Link::connect(&server.direct_tls, tls).await?;
        link.write(HEADER).await?;
        link.until("</stream:features>").await?;
        let start = Instant::now();
        link.write(&xml).await?;
        link.until(answer).await?;
        taken[kind].push(start.elapsed().as_secs_f64() * 1e6);
        drop(link);
    }
    Ok(taken)
}

/// A repeatable order that looks like none (xorshift).
struct Order(u64);

impl Order {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }
}

fn tell(what: &str, [known, unknown]: [Vec<f64>; 2]) {
    let whole = welch(&known, &unknown);
    let mut all: Vec<f64> = known.iter().chain(&unknown).copied().collect();
    all.sort_by(f64::total_cmp);
    let slow = all[all.len() - 1 - all.len() * SLOWEST / 100];
    let quick = |kind: &[f64]| kind.iter().copied().filter(|us| *us <= slow).collect::<Vec<_>>();
    let (quick_known, quick_unknown) = (quick(&known), quick(&unknown));
    println!(
        "{what}: known {:.1} us, unknown {:.1} us, t = {:.2} without the slowest {SLOWEST} % ({:.2} with them), {} of each",
        mean(&quick_known),
        mean(&quick_unknown),
        welch(&quick_known, &quick_unknown),
        whole,
        known.len(),
    );
}

fn mean(sample: &[f64]) -> f64 {
    sample.iter().sum::<f64>() / sample.len() as f64
}

/// Welch's t: how many standard errors lie between the means. Below 4.5 nothing was found.
fn welch(a: &[f64], b: &[f64]) -> f64 {
    let error = |sample: &[f64]| {
        let mean = mean(sample);
        let sum: f64 = sample.iter().map(|us| (us - mean).powi(2)).sum();
        sum / (sample.len() - 1) as f64 / sample.len() as f64
    };
    (mean(a) - mean(b)) / (error(a) + error(b)).sqrt()
}

//! Clients that connect and vanish at random stages of a login, from many addresses, by a seed.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use rustls_pki_types::ServerName;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::{
    client::{Client, Door, tls_config, unique},
    people::{Person, go_online},
};

/// Where a client vanishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Right after it connected.
    Tcp,
    /// In the middle of its stream header.
    HalfHeader,
    /// Behind the features of the server.
    Header,
    /// In the middle of a TLS handshake.
    HalfTls,
    /// Behind the handshake.
    Tls,
    /// In the middle of a SASL exchange.
    HalfSasl,
    /// Behind a login that failed.
    Refused,
    /// Authenticated.
    Authenticated,
    /// With a bound session.
    Bound,
    /// Available.
    Online,
}

impl Stage {
    pub const ALL: [Stage; 10] = [
        Stage::Tcp,
        Stage::HalfHeader,
        Stage::Header,
        Stage::HalfTls,
        Stage::Tls,
        Stage::HalfSasl,
        Stage::Refused,
        Stage::Authenticated,
        Stage::Bound,
        Stage::Online,
    ];
}

/// A crowd that comes and goes.
pub struct Soak {
    pub door: Door,
    /// Who logs in.
    pub people: Vec<Person>,
    pub seed: u64,
    /// The last stage that a client reaches.
    pub last: Stage,
    /// Clients at the same time.
    pub at_once: usize,
}

impl Soak {
    /// So many clients, one after the other on each of the lanes; how many vanished at each stage.
    pub async fn run(self, cycles: usize) -> Result<BTreeMap<Stage, usize>> {
        ensure!(!self.people.is_empty(), "nobody has an account");
        let (at_once, soak) = (self.at_once, Arc::new(self));
        let next = Arc::new(AtomicUsize::new(0));
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let mut lanes = JoinSet::new();
        for _ in 0..at_once {
            let (soak, next, counts) = (soak.clone(), next.clone(), counts.clone());
            lanes.spawn(async move {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= cycles {
                        return anyhow::Ok(());
                    }
                    let stage = soak.one(nth).await.with_context(|| format!("client {nth}"))?;
                    *counts.lock().expect("no lane panics with it").entry(stage).or_default() += 1;
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        let counts = counts.lock().expect("no lane panics with it").clone();
        Ok(counts)
    }

    async fn one(&self, nth: usize) -> Result<Stage> {
        let mut dice = Dice(self.seed ^ (nth as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let stages = Stage::ALL.iter().position(|stage| *stage == self.last).unwrap_or_default() + 1;
        let stage = Stage::ALL[dice.below(stages)];
        let person = &self.people[dice.below(self.people.len())];
        let direct = dice.below(2) == 0;
        let address = if direct && stage >= Stage::HalfTls { self.door.direct } else { self.door.c2s };
        let socket = TcpSocket::new_v4()?;
        // Many addresses: each has ports of its own, and a line in the tables of the server.
        let from =
            Ipv4Addr::new(127, 1 + dice.below(100) as u8, dice.below(256) as u8, 1 + dice.below(254) as u8);
        socket.bind((from, 0).into())?;
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        match stage {
            Stage::Tcp => {}
            Stage::HalfTls if direct => half(tcp, HELLO).await?,
            Stage::HalfHeader | Stage::Header | Stage::HalfTls => {
                let mut client = Client::over(tcp, &person.host);
                match stage {
                    Stage::HalfHeader => client.send("<?xml version='1.0'?><stream:stream xml").await?,
                    _ => drop(client.begin_stream().await?),
                }
                if stage == Stage::HalfTls {
                    client.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
                    client.next().await?;
                    client.send_bytes(HELLO).await?;
                }
            }
            _ => self.inside_tls(stage, person, direct, tcp).await?,
        }
        Ok(stage)
    }

    async fn inside_tls(&self, stage: Stage, person: &Person, direct: bool, tcp: TcpStream) -> Result<()> {
        let mut client = if direct {
            let name = ServerName::try_from(person.host.clone())?;
            Client::over(TlsConnector::from(tls_config()).connect(name, tcp).await?, &person.host)
        } else {
            let mut client = Client::over(tcp, &person.host);
            client.begin_stream().await?;
            client.start_tls().await?;
            client
        };
        if stage == Stage::Tls {
            return Ok(());
        }
        client.begin_stream().await?;
        match stage {
            Stage::HalfSasl => {
                // `n,,n=nobody,r=nonce`
                let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>biwsbj1ub2JvZHkscj1ub25jZQ==</auth>";
                client.send(auth).await?;
                client.next().await?;
                return Ok(());
            }
            Stage::Refused => {
                let refused = client.try_authenticate(&unique("nobody"), "wrong", "SCRAM-SHA-1").await?;
                ensure!(refused.is_err(), "nobody was let in");
                return Ok(());
            }
            _ => client.authenticate(&person.user, &person.password, "SCRAM-SHA-1").await?,
        }
        if stage >= Stage::Bound {
            client.bind(None).await?;
        }
        if stage >= Stage::Online {
            go_online(&mut client, None).await?;
        }
        Ok(())
    }
}

/// How a handshake of TLS begins.
const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

async fn half(mut tcp: TcpStream, bytes: &[u8]) -> Result<()> {
    tcp.write_all(bytes).await?;
    Ok(())
}

/// Numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

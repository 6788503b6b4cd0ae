//! Whatever may befall a cluster, at random and one thing after the other, while clients chat.
//!
//! `ROOKERY_CHAOS_MINUTES` says for how long (less than one minute without it), `ROOKERY_CHAOS_SEED` what comes in which
//! order, `ROOKERY_CHAOS_ONLY` which of them alone (`killed,all restarted`). When it is over, all is added up as in the stories of cuts.

use std::{collections::BTreeMap, env, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    account::Kind,
    ground::Weather,
    nodes::{Layout, Nodes},
    talk::Talk,
};
use tokio::time::Instant;

use crate::scene::{PACE, Scene, passes};

/// How long faults go on where nobody says otherwise.
const SHORT: Duration = Duration::from_secs(20);
/// Users at each node for clients.
const CROWD: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_outlive_whatever_befalls_them() -> Result<()> {
    let minutes = number("ROOKERY_CHAOS_MINUTES")?;
    let seed = number("ROOKERY_CHAOS_SEED")?.unwrap_or(1);
    let time = minutes.map_or(SHORT, |minutes| Duration::from_secs(minutes * 60));
    let only = env::var("ROOKERY_CHAOS_ONLY").unwrap_or_default();
    println!("chaos for {time:?}, ROOKERY_CHAOS_SEED={seed}");
    let Some(nodes) = Nodes::start_apart(Layout::Split, |_, _, config| Ok(config)).await? else {
        return Ok(());
    };
    let homes: Vec<usize> = [0, 1].repeat(CROWD);
    let talk = Talk::begin(&nodes, &homes, PACE).await?;
    let mut scene = Scene { nodes, talk };
    let mut chance = Chance(seed);
    let mut befell: BTreeMap<&'static str, usize> = BTreeMap::new();
    let end = Instant::now() + time;
    let mut nth = 0;
    while Instant::now() < end {
        let fault = Fault::random(&mut chance);
        if !only.is_empty() && !only.split(',').any(|word| word == fault.word()) {
            continue;
        }
        nth += 1;
        println!("{nth}: {fault:?}");
        *befell.entry(fault.word()).or_default() += 1;
        if let Err(error) = befall(&mut scene, &fault).await {
            scene.nodes.keep();
            return Err(error.context(format!("fault {nth}, {fault:?}, ROOKERY_CHAOS_SEED={seed}")));
        }
    }
    println!("{nth} faults: {befell:?}");
    scene.settle().await.with_context(|| format!("ROOKERY_CHAOS_SEED={seed}"))
}

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("`{name}` is no whole number: `{text}`"))
}

/// One seed, one sequence (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Mostly less than the time after which a node is gone, now and then more than the grace.
    fn time(&mut self) -> Duration {
        let ms = match self.below(8) {
            0..4 => 200 + self.below(2_500),
            4..7 => 3_000 + self.below(8_000),
            _ => 20_000 + self.below(3_000),
        };
        Duration::from_millis(ms)
    }
}

/// The nodes for clients, and the backends.
const FRONTENDS: [usize; 2] = [0, 1];
const BACKENDS: [usize; 3] = [2, 3, 4];

/// What befalls whom, and for how long.
#[derive(Debug)]
enum Fault {
    /// kill -9, and a start after a while.
    Kill(Vec<usize>, Duration),
    /// SIGSTOP, and SIGCONT after a while.
    Pause(usize, Duration),
    /// Links that carry nothing, from the first to the second.
    Cut(Vec<(usize, usize)>, Duration),
    /// A link that comes and goes.
    Flap(usize, u32),
    /// Packets that get lost, and that come late where there is netem.
    Weather(usize, Weather, Duration),
    /// SIGTERM, and a start once it has ended.
    Restart(usize),
    /// One node after the other.
    Rolling,
}

impl Fault {
    fn word(&self) -> &'static str {
        match self {
            Fault::Kill(nodes, _) if nodes.len() > 1 => "two killed",
            Fault::Kill(..) => "killed",
            Fault::Pause(..) => "paused",
            Fault::Cut(..) => "cut",
            Fault::Flap(..) => "flapping",
            Fault::Weather(..) => "bad links",
            Fault::Restart(_) => "restarted",
            Fault::Rolling => "all restarted",
        }
    }

    fn random(chance: &mut Chance) -> Fault {
        let node = chance.below(5) as usize;
        let time = chance.time();
        let others = (0..5).filter(|at| *at != node);
        match chance.below(20) {
            0..4 => Fault::Kill(vec![node], time),
            // Of the backends the majority: nobody can serve until one is back.
            4 => {
                let spared = BACKENDS[chance.below(3) as usize];
                let lost = BACKENDS.into_iter().filter(|at| *at != spared);
                Fault::Kill(lost.collect(), time.min(Duration::from_secs(9)))
            }
            5..8 => Fault::Pause(node, time),
            8..11 => Fault::Cut(others.flat_map(|at| [(at, node), (node, at)]).collect(), time),
            11 => Fault::Cut(others.map(|at| (at, node)).collect(), time),
            12 => Fault::Cut(others.map(|at| (node, at)).collect(), time),
            13 => {
                let other = (node + 1 + chance.below(4) as usize) % 5;
                Fault::Cut(vec![(node, other), (other, node)], time)
            }
            14 => {
                let (front, back) = (FRONTENDS[chance.below(2) as usize], BACKENDS[chance.below(3) as usize]);
                let there = (0..5).filter(|at| *at != front && *at != back);
                let pairs = there.flat_map(|at| [(at, front), (front, at), (at, back), (back, at)]);
                Fault::Cut(pairs.collect(), time)
            }
            15 => Fault::Flap(node, 3 + chance.below(6) as u32),
            16 | 17 => {
                let weather =
                    Weather { loss_percent: 1 + chance.below(5) as u32, delay_ms: chance.below(40) as u32 };
                Fault::Weather(node, weather, time.min(Duration::from_secs(8)))
            }
            18 => Fault::Restart(node),
            _ => Fault::Rolling,
        }
    }

    /// What it may mean for the clients of which nodes.
    fn troubles(&self) -> Vec<(usize, Kind)> {
        let alone = |links: &[(usize, usize)], at: usize| {
            (0..5).filter(|other| *other != at).all(|other| links.contains(&(at, other)))
        };
        let deaf = |links: &[(usize, usize)], at: usize| {
            (0..5).filter(|other| *other != at).all(|other| links.contains(&(other, at)))
        };
        match self {
            Fault::Kill(nodes, _) if nodes.len() > 1 => FRONTENDS.map(|at| (at, Kind::Shaken)).to_vec(),
            Fault::Kill(nodes, _) => nodes.iter().map(|at| (*at, Kind::Killed)).collect(),
            Fault::Pause(node, _) => vec![(*node, Kind::Away)],
            Fault::Cut(links, _) => {
                let cut = FRONTENDS.into_iter().filter(|at| links.iter().any(|(a, b)| a == at || b == at));
                let kind = |at| match alone(links, at) || deaf(links, at) {
                    true => (at, Kind::Away),
                    false => (at, Kind::Shaken),
                };
                cut.map(kind).collect()
            }
            Fault::Flap(node, _) | Fault::Weather(node, ..) => vec![(*node, Kind::Shaken)],
            Fault::Restart(_) | Fault::Rolling => vec![],
        }
    }
}

/// Does it, undoes it, and waits until all is well and talks again.
async fn befall(scene: &mut Scene, fault: &Fault) -> Result<()> {
    let since = Instant::now();
    let troubles = fault.troubles();
    troubles.iter().for_each(|(node, kind)| scene.talk.book().trouble(*node, *kind));
    match fault {
        Fault::Kill(nodes, time) => {
            for at in nodes {
                scene.nodes.kill(*at).await?;
            }
            passes(since, *time).await;
            for at in nodes {
                scene.nodes.spawn(*at)?;
            }
        }
        Fault::Pause(node, time) => {
            scene.nodes.pause(*node).await?;
            passes(since, *time).await;
            scene.talk.book().over(*node);
            scene.nodes.resume(*node).await?;
        }
        Fault::Cut(links, time) => {
            scene.cut(links).await?;
            passes(since, *time).await;
            troubles.iter().for_each(|(node, _)| scene.talk.book().over(*node));
            scene.mend(links).await?;
        }
        Fault::Flap(node, times) => {
            let links = scene.both_ways(*node);
            for _ in 0..*times {
                let turn = Instant::now();
                scene.cut(&links).await?;
                passes(turn, Duration::from_millis(700)).await;
                scene.mend(&links).await?;
                passes(turn, Duration::from_millis(1_200)).await;
            }
        }
        Fault::Weather(node, weather, time) => {
            let all = scene.nodes.ground()?.weather(*node, *weather).await?;
            if !all {
                println!("skipped: delay, there is no netem here");
            }
            passes(since, *time).await;
            scene.nodes.ground()?.weather(*node, Weather::default()).await?;
        }
        Fault::Restart(node) => restart(scene, *node).await?,
        Fault::Rolling => {
            for node in 0..scene.nodes.nodes.len() {
                restart(scene, node).await?;
            }
        }
    }
    scene.nodes.formed().await?;
    troubles.iter().for_each(|(node, _)| scene.talk.book().over(*node));
    let healed = Instant::now();
    let crowd = scene.talk.people.len();
    scene.talk.go_home(&[0, 1].repeat(CROWD)).await?;
    scene.talk.until_heard_elsewhere(usize::MAX, 5 * crowd).await?;
    println!(
        "   healed after {:.1} s, talking {:.1} s later",
        (healed - since).as_secs_f32(),
        healed.elapsed().as_secs_f32()
    );
    Ok(())
}

async fn restart(scene: &mut Scene, node: usize) -> Result<()> {
    scene.nodes.terminate(node).await?;
    scene.nodes.ended(node, Duration::from_secs(30)).await?;
    ensure!(scene.nodes.process(node).is_none(), "it runs");
    scene.nodes.start_again(node).await
}

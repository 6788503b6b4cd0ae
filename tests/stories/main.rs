//! Performs every story on one node, on three, and on split roles; says what differed where one fails.
//!
//! `cargo test -p tests --test stories -- WORD...` plays the stories whose names hold one of the words.

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Result;
use futures::{StreamExt, stream};
use tests::{
    nodes::{Layout, Nodes},
    play::Play,
    stage,
};

/// What the nodes of stories have beside what those of all tests have.
const CONFIG: &str = r#"
[modules.storm]
enabled = true
hosts = ["other.example"]
count = 5
interval_s = 60

[modules.reports]
enabled = true
hosts = ["other.example"]
forward_to = ["abuse@other.example"]

[modules.external]
enabled = true
hosts = ["other.example"]
services = [
    { type = "stun", host = "stun.example", port = 3478, transport = "udp" },
    { type = "turn", host = "turn.example", port = 3478, transport = "udp", secret = "north" },
]

[modules.data_policy]
enabled = true
hosts = ["other.example"]
auth_data = "hidden"
data_retention = "720"
access_policy = ["admins"]
full_erasure = true

[modules.disco]
abuse_addresses = ["mailto:abuse@example.org", "xmpp:abuse@example.org"]

[modules.shared_groups]
enabled = true
hosts = ["localhost"]
refresh_s = 1

[modules.offline_filter]
enabled = true
hosts = ["other.example"]
rules = [{ namespace = "urn:example:chess" }]
"#;

/// Stories that are played at the same time on one layout.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let plays = match Play::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("stories")) {
        Ok(plays) => plays,
        Err(e) => {
            eprintln!("{e:#}");
            return ExitCode::FAILURE;
        }
    };
    let exact = words.iter().any(|w| w == "--exact");
    let wanted: Vec<&String> = words.iter().filter(|w| !w.starts_with("--")).collect();
    let title = |layout: Layout, play: &Play| format!("{} on {layout}", play.name);
    let chosen = |layout: Layout, play: &&Play| {
        let title = title(layout, play);
        wanted.is_empty()
            || wanted.iter().any(|w| if exact { **w == title } else { title.contains(w.as_str()) })
    };
    // The protocol of test runners that ask first.
    if words.iter().any(|w| w == "--list") {
        let listed = !words.iter().any(|w| w == "--ignored");
        for layout in Layout::ALL {
            plays
                .iter()
                .filter(|p| listed && chosen(layout, p))
                .for_each(|p| println!("{}: test", title(layout, p)));
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let (mut passed, mut failed) = (0, Vec::new());
    for layout in Layout::ALL {
        let chosen: Vec<&Play> = plays.iter().filter(|p| chosen(layout, p)).collect();
        if chosen.is_empty() {
            continue;
        }
        for (title, result) in runtime.block_on(perform_all(layout, &chosen)) {
            match result {
                Ok(()) => passed += 1,
                Err(e) => failed.push((title, e)),
            }
        }
    }
    for (title, error) in &failed {
        println!("\n---- {title} ----\n{error:#}");
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn perform_all(layout: Layout, plays: &[&Play]) -> Vec<(String, Result<()>)> {
    let start = Instant::now();
    let admins: Vec<String> = (0..stage::ADMINS).map(|n| format!("{}@localhost", stage::admin(n))).collect();
    let config = format!("{CONFIG}\n[accounts]\nadmins = {admins:?}\n");
    let nodes = match Nodes::start_edited(layout, |_, _, before| Ok(before + &config)).await {
        Ok(nodes) => nodes,
        Err(e) => {
            let why = format!("{e:#}");
            let all =
                plays.iter().map(|p| (format!("{} on {layout}", p.name), Err(anyhow::anyhow!(why.clone()))));
            return all.collect();
        }
    };
    println!("{layout}: ready after {:.1} s", start.elapsed().as_secs_f32());
    let performances = stream::iter(plays).map(|play| {
        let nodes = &nodes;
        async move {
            let start = Instant::now();
            let result = stage::perform(play, nodes).await;
            let title = format!("{} on {layout}", play.name);
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            println!("test {title} ... {word} ({:.1} s)", start.elapsed().as_secs_f32());
            (title, result)
        }
    });
    let results: Vec<_> = performances.buffer_unordered(AT_ONCE).collect().await;
    if results.iter().any(|(_, r)| r.is_err()) {
        nodes.keep();
    }
    results
}

//! What `deploy/` holds fits the binary: configs, arguments, probes, metrics, units; and HAProxy really runs before nodes.

mod containers;
mod proxy;
mod units;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{
    metrics::get,
    nodes::{Layout, Nodes, binary, free_address},
    people::Person,
};
use tokio::process::Command;

/// A path below `deploy/`.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &str) -> Result<String> {
    let path = deploy(path);
    fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// Runs a program to its end; what it said on both ways out.
async fn run(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Result<(bool, String)> {
    let program = program.as_ref();
    let mut command = Command::new(program);
    let output = command.args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), output).await;
    let missing = || format!("`{}` cannot be run; `tests/run` installs it", program.display());
    let output = output.context("it does not end")?.with_context(missing)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Has the binary check a config, with what is set over it on a command line.
async fn check_config(file: &Path, set: &[String]) -> Result<()> {
    let path = file.to_str().context("a path that is text")?;
    let mut words = vec!["config", "check", path];
    words.extend(set.iter().flat_map(|set| ["--set", set.as_str()]));
    let (well, said) = run(binary()?, &words).await?;
    ensure!(well, "{path} with {set:?}: {said}");
    Ok(())
}

/// The command line of a container as the binary takes it: words are known, and `--help` of the same command is no
/// error. The values behind `--set`.
async fn check_words(words: &[String]) -> Result<Vec<String>> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words.first() == Some(&"rookery") {
        words.remove(0);
    }
    let help: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
    let (well, said) = run(binary()?, &help).await?;
    ensure!(well, "`{words:?}` is not understood: {said}");
    // `--help` ends the reading of a line: each option must stand in what it says.
    for option in words.iter().filter(|word| word.starts_with("--")) {
        ensure!(said.contains(option), "`{option}` of `{words:?}` is not in its help: {said}");
    }
    let sets = words.windows(2).filter(|pair| pair[0] == "--set").map(|pair| pair[1].to_owned());
    Ok(sets.collect())
}

/// All names of metrics in the expressions of the dashboard.
fn named_metrics(dashboard: &Value, found: &mut BTreeSet<String>) {
    match dashboard {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "expr" || key == "query" => {
                        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                        found.extend(words.filter(|w| w.starts_with("rookery_")).map(str::to_owned));
                    }
                    _ => named_metrics(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| named_metrics(value, found)),
        _ => {}
    }
}

/// The names under which the families of a page are asked for.
fn offered_metrics(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let ends: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        names.extend(ends.iter().map(|end| format!("{name}{end}")));
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_dashboard_is_on_the_page_of_a_node() -> Result<()> {
    let metrics: Vec<SocketAddr> = (0..3).map(|_| free_address()).collect();
    let nodes = Nodes::start_edited(Layout::Three, |all, node, config| {
        let at = all.iter().position(|n| n.name == node.name).context("one of them")?;
        Ok(format!("{config}\n[metrics]\nlisten = \"{}\"\n", metrics[at]))
    })
    .await?;
    Person::with_account(&nodes, "somebody").await?.come_online(nodes.door(0), "phone").await?;
    let mut offered = BTreeSet::new();
    for address in metrics {
        offered.extend(offered_metrics(&get(address, "/metrics").await?.1));
    }
    let dashboard: Value = serde_json::from_str(&read("grafana/rookery.json")?)?;
    let mut named = BTreeSet::new();
    named_metrics(&dashboard, &mut named);
    ensure!(named.len() > 30, "only {named:?}");
    let missing: Vec<&String> = named.difference(&offered).collect();
    ensure!(missing.is_empty(), "not on the page of any node: {missing:?}; there are {offered:#?}");
    let panels = dashboard["panels"].as_array().context("panels")?;
    let ids: BTreeSet<i64> = panels.iter().filter_map(|panel| panel["id"].as_i64()).collect();
    ensure!(ids.len() == panels.len(), "two panels have one id");
    Ok(())
}

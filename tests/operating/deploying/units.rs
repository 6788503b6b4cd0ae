//! The systemd unit: known to systemd, started with words that the binary knows, told when the node is ready.

use std::{
    os::unix::net::UnixDatagram,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::nodes::{binary, free_address, target_dir};
use tokio::process::Command;

use super::{check_words, deploy, read, run};

/// The values of a key of the unit.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unit_is_one_that_systemd_takes() -> Result<()> {
    let unit = read("systemd/rookery.service")?;
    for (key, wanted) in [("Type", "notify"), ("User", "rookery"), ("ProtectSystem", "strict")] {
        ensure!(values(&unit, key) == [wanted], "`{key}` is {:?}", values(&unit, key));
    }
    let limit: u64 = values(&unit, "LimitNOFILE").first().context("LimitNOFILE")?.parse()?;
    ensure!(limit > 100_000, "fewer files than clients: {limit}");
    for key in ["ExecStartPre", "ExecStart"] {
        let line = values(&unit, key);
        let words: Vec<String> =
            line.first().context("a line")?.split(' ').skip(1).map(str::to_owned).collect();
        check_words(&words).await?;
    }
    // As systemd reads it, with a program that is there in the place of the one that is installed.
    let folder = target_dir()?.join("tests").join(format!("unit-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let here = folder.join("rookery.service");
    let program = binary()?.to_str().context("a path that is text")?;
    std::fs::write(&here, unit.replace("/usr/local/bin/rookery", program))?;
    let (well, said) = run("systemd-analyze", &["verify", here.to_str().context("text")?]).await?;
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("rookery")).collect();
    ensure!(well && ours.is_empty(), "{said}");
    std::fs::remove_dir_all(&folder)?;
    let users = read("systemd/rookery.sysusers")?;
    ensure!(users.starts_with("u rookery "), "{users}");
    ensure!(deploy("certificates.sh").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_how_far_the_node_is() -> Result<()> {
    let folder = target_dir()?.join("tests").join(format!("notify-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    // Short: a socket's path has 108 bytes at most.
    let path = std::env::temp_dir().join(format!("rookery-told-{}", std::process::id()));
    let told = UnixDatagram::bind(&path)?;
    told.set_read_timeout(Some(Duration::from_secs(60)))?;
    let set = |key: &str, value: String| ["--set".to_owned(), format!("{key}={value}")];
    let mut child = Command::new(binary()?)
        .args(["serve", "--with-parent"])
        .args(set("node.data_dir", format!("{:?}", folder.join("data"))))
        .args(set("c2s.listen", format!("[\"{}\"]", free_address())))
        .args(set("c2s.direct_tls_listen", "[]".to_owned()))
        .args(set("admin.listen", format!("\"{}\"", free_address())))
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let id = child.id().context("it runs")?.to_string();
    let heard = tokio::task::spawn_blocking(move || -> Result<Vec<String>> {
        let begin = Instant::now();
        let mut heard: Vec<String> = Vec::new();
        let mut buffer = [0; 256];
        while !heard.iter().any(|text| text.starts_with("STOPPING=1")) {
            ensure!(begin.elapsed() < Duration::from_secs(60), "only {heard:?}");
            let length = told.recv(&mut buffer)?;
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            if heard.last().is_some_and(|text| text == "STATUS=serving") {
                // It reads its certificates again, and goes on.
                for signal in ["-HUP", "-TERM"] {
                    ensure!(std::process::Command::new("kill").args([signal, &id]).status()?.success());
                }
            }
        }
        Ok(heard)
    });
    let heard = heard.await??;
    ensure!(heard.len() == 3 && heard[0].starts_with("READY=1\n"), "{heard:?}");
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.context("it runs on")??;
    ensure!(ended.success(), "it ended with {ended}");
    std::fs::remove_file(&path)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

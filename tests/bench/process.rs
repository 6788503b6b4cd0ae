//! The server under test as the kernel sees it: its life, CPU time and memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A running `rookery serve` on ports of its own, killed when dropped.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    binary: PathBuf,
    /// Where clients connect with direct TLS.
    pub direct_tls: String,
    /// Where they connect with STARTTLS.
    pub starttls: String,
    admin: String,
    metrics: String,
}

impl Server {
    /// Starts one node with default settings but for the ports and the data folder.
    pub fn start(binary: &Path, base_port: u16) -> Result<Server> {
        Server::start_with(binary, base_port, "")
    }

    /// As `start`, with further keys of `[limits]`, and tables behind it.
    pub fn start_with(binary: &Path, base_port: u16, limits: &str) -> Result<Server> {
        Server::start_over(tempfile::tempdir()?, binary, base_port, limits)
    }

    /// As `start_with`, over what `folder` has in `data`.
    pub fn start_over(
        folder: tempfile::TempDir,
        binary: &Path,
        base_port: u16,
        limits: &str,
    ) -> Result<Server> {
        let config = folder.path().join("bench.toml");
        let admin = format!("127.0.0.1:{}", base_port + 2);
        let [starttls, direct_tls, metrics] =
            [base_port, base_port + 1, base_port + 3].map(|port| format!("127.0.0.1:{port}"));
        fs::write(
            &config,
            format!(
                "hosts = [\"localhost\"]\n[node]\ndata_dir = \"{}\"\n[c2s]\nlisten = [\"{starttls}\"]\n\
                 direct_tls_listen = [\"{direct_tls}\"]\n[admin]\nlisten = \"{admin}\"\n[metrics]\n\
                 listen = \"{metrics}\"\n[limits]\nconnections_per_address = 20000\n\
                 accepts_per_second = 100000\n{limits}\n",
                folder.path().join("data").display(),
            ),
        )?;
        let log = fs::File::create(folder.path().join("log"))?;
        let child = Command::new(binary)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start `{}`", binary.display()))?;
        let binary = binary.to_owned();
        let mut server = Server { child, folder, binary, direct_tls, starttls, admin, metrics };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&self.direct_tls).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!("the server ended with {status}: {log}");
            }
            if Instant::now() > deadline {
                bail!("the server does not listen on `{}`", self.direct_tls);
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Creates an account through the admin service.
    pub fn add_user(&self, name: &str, password: &str) -> Result<()> {
        add_user(&self.binary, &self.admin, name, password)
    }

    /// A line of the metrics page.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let page = tests::metrics::page(self.metrics.parse()?).await?;
        page.get(name).copied().with_context(|| format!("no `{name}` among the metrics"))
    }

    /// The last line of its log with these words.
    pub fn last_logged(&self, words: &str) -> Result<Option<String>> {
        let log = fs::read_to_string(self.folder.path().join("log"))?;
        Ok(log.lines().rfind(|line| line.contains(words)).map(str::to_owned))
    }

    /// Resident set size, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The part of it that is no file, in KiB.
    pub fn anonymous_kib(&self) -> Result<u64> {
        self.status_kib("RssAnon:")
    }

    fn status_kib(&self, what: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with(what)).with_context(|| format!("no `{what}`"))?;
        Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
    }

    /// User and system time of all threads so far, in microseconds (clock ticks of the kernel).
    pub fn cpu_us(&self) -> Result<u64> {
        cpu_us(self.child.id())
    }

    /// Proportional set size, in KiB.
    pub fn pss_kib(&self) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find(|l| l.starts_with("Pss:")).context("no Pss in smaps_rollup")?;
        Ok(line.split_whitespace().nth(1).context("no figure behind Pss")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // a server that is gone already leaves nothing to kill
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of all threads of a process so far, in microseconds (clock ticks of the kernel).
pub fn cpu_us(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * 10_000)
}

/// Creates an account through the admin service at an address.
pub fn add_user(binary: &Path, admin: &str, name: &str, password: &str) -> Result<()> {
    let out = Command::new(binary)
        .args(["user", "add", &format!("{name}@localhost"), "--password", password, "--admin"])
        .arg(format!("http://{admin}"))
        .output()?;
    if !out.status.success() {
        bail!("failed to add `{name}`: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

//! The processes of the demo: started, watched, and never left behind.

use std::{
    fs::{self, File},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::plan::Node;

/// How long nodes may take to stop by themselves.
const STOP: Duration = Duration::from_secs(15);
/// Lines of a log that are shown when a node fails.
const TAIL: usize = 12;

/// One running node.
pub struct Process {
    pub node: Node,
    child: Child,
    log: PathBuf,
}

/// All running nodes; dropping them kills them.
#[derive(Default)]
pub struct Processes(Vec<Process>);

impl Processes {
    /// Starts `rookery serve` for a node; its output goes to a log file in the folder.
    pub fn start(&mut self, node: &Node, folder: &Path, config: &str) -> io::Result<()> {
        let file = folder.join(format!("{}.toml", node.name));
        fs::write(&file, config)?;
        let log = folder.join(format!("{}.log", node.name));
        let output = File::create(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&file);
        // a stop by Ctrl-C is ours to order: children in a group of their own do not get it from the terminal
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let parent = std::process::id();
        // SAFETY: both calls are async-signal-safe, as is required between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // the parent may have died before the call
                match libc::getppid() as u32 == parent {
                    true => Ok(()),
                    false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
                }
            });
        }
        let child = command.spawn()?;
        self.0.push(Process { node: node.clone(), child, log });
        Ok(())
    }

    /// Takes out a node that has ended by itself, with how it ended and the end of its log.
    pub fn ended(&mut self) -> Option<(String, ExitStatus, String)> {
        let ended = |process: &mut Process| process.child.try_wait().ok().flatten();
        let (at, status) = self.0.iter_mut().enumerate().find_map(|(at, p)| Some((at, ended(p)?)))?;
        let process = self.0.remove(at);
        Some((process.node.name, status, tail(&process.log)))
    }

    /// Process ids, by node.
    pub fn ids(&self) -> impl Iterator<Item = (&Node, u32)> {
        self.0.iter().map(|p| (&p.node, p.child.id()))
    }

    /// Asks the nodes to stop, one after the other, and kills those that do not within the bound; names those
    /// that were killed.
    ///
    /// One after the other, frontends first, since a node that ends wants to take its routes back, and needs a
    /// quorum for that.
    pub fn stop(&mut self) -> Vec<String> {
        self.0.sort_by_key(|process| process.node.backend);
        let until = Instant::now() + STOP;
        for process in &mut self.0 {
            if !process.runs() {
                continue;
            }
            signal(&process.child, libc::SIGTERM);
            while Instant::now() < until && process.runs() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let late = self.0.iter_mut().filter_map(|p| p.runs().then(|| p.node.name.clone())).collect();
        self.kill();
        late
    }

    fn kill(&mut self) {
        for mut process in self.0.drain(..) {
            if process.runs() {
                let _ = process.child.kill();
            }
            let _ = process.child.wait();
        }
    }
}

impl Process {
    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the child is not waited for yet, so its id is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with status {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "for no known reason".to_owned(),
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|l| format!("  | {l}\n")).collect()
}

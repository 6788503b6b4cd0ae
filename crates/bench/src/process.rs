//! The server's processes as the kernel accounts for them, and the bounds of this one.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// The processes that were named, and all that descend from them.
#[derive(Clone)]
pub struct Watched {
    roots: Vec<u32>,
    tick_us: u64,
}

/// What `/proc/PID/stat` says of a process (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time, with that of children that have ended and were waited for, in clock ticks.
    ticks: u64,
}

impl Watched {
    /// Watches these processes.
    pub fn new(roots: Vec<u32>) -> Watched {
        // SAFETY: takes a number, gives a number.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Watched { roots, tick_us: 1_000_000 / u64::try_from(per_second).unwrap_or(100).max(1) }
    }

    /// User and system time of all of them so far, in microseconds; `None` where none is watched.
    ///
    /// # Errors
    /// Where one that was named is gone.
    pub fn cpu_us(&self) -> Result<Option<u64>> {
        let family = self.family()?;
        let ticks: u64 = family.iter().map(|(_, stat)| stat.ticks).sum();
        Ok((!family.is_empty()).then_some(ticks * self.tick_us))
    }

    /// Their proportional set size, in KiB; `None` where none is watched.
    ///
    /// # Errors
    /// Where one is gone, or belongs to somebody else.
    pub fn pss_kib(&self) -> Result<Option<u64>> {
        let family = self.family()?;
        let mut sum = 0;
        for (process, _) in &family {
            let path = format!("/proc/{process}/smaps_rollup");
            let rollup = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
            sum += pss(&rollup).with_context(|| format!("no Pss in `{path}`"))?;
        }
        Ok((!family.is_empty()).then_some(sum))
    }

    fn family(&self) -> Result<Vec<(u32, Stat)>> {
        if self.roots.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = HashMap::new();
        for entry in fs::read_dir("/proc").context("failed to list processes")?.flatten() {
            let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that ends meanwhile is none.
            let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
            all.extend(stat(&text).map(|stat| (process, stat)));
        }
        let mut found = Vec::new();
        for root in &self.roots {
            found.extend(family_of(*root, &mut all).with_context(|| format!("process `{root}` is gone"))?);
        }
        Ok(found)
    }
}

/// Takes a process and all that descend from it out of a table; `None` where it is not there, nor below another root.
fn family_of(root: u32, all: &mut HashMap<u32, Stat>) -> Option<Vec<(u32, Stat)>> {
    let mut found = vec![(root, all.remove(&root)?)];
    let mut next = 0;
    while let Some((parent, _)) = found.get(next) {
        let children: Vec<u32> =
            all.iter().filter(|(_, stat)| stat.parent == *parent).map(|(process, _)| *process).collect();
        found.extend(children.into_iter().filter_map(|child| Some((child, all.remove(&child)?))));
        next += 1;
    }
    Some(found)
}

fn stat(text: &str) -> Option<Stat> {
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<i64>().unwrap_or(0).max(0) as u64).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time of this process so far, in microseconds.
pub fn own_cpu_us() -> u64 {
    let micros = |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec).max(0) as u64;
    // SAFETY: zeros are a value of this struct of numbers, and the call writes no further than it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    micros(usage.ru_utime) + micros(usage.ru_stime)
}

/// Lets this process open as many files as it may.
pub fn raise_open_files() {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given one struct that lives as long as they take. Where they fail, the limit is as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) == 0 {
            limits.rlim_cur = limits.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read_whatever_the_name() {
        let line = "7 (a ) b (c) S 3 7 7 0 -1 4194304 1 2 3 4 11 22 33 44 20 0 1 0 5 6 7 8";
        assert_eq!(stat(line), Some(Stat { parent: 3, ticks: 110 }));
        assert_eq!(stat("7 (a"), None);
        assert_eq!(pss("Rss: 9 kB\nPss:     12 kB\nPss_Dirty: 4 kB\n"), Some(12));
    }

    #[test]
    fn a_family_is_a_process_with_all_below_it_and_nobody_twice() {
        let tree = [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1), (21, 20)];
        let mut all = tree.map(|(process, parent)| (process, Stat { parent, ticks: 1 })).into();
        let mut members = |root| {
            let family = family_of(root, &mut all)?;
            let mut members: Vec<u32> = family.into_iter().map(|(process, _)| process).collect();
            members.sort_unstable();
            Some(members)
        };
        assert_eq!(members(10), Some(vec![10, 11, 12]));
        assert_eq!(members(11), None);
        assert_eq!(members(1), Some(vec![1, 20, 21]));
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let me = Watched::new(vec![std::process::id()]);
        assert!(me.pss_kib().expect("readable").is_some_and(|kib| kib > 100));
        assert!(me.cpu_us().expect("readable").is_some());
        assert!(Watched::new(Vec::new()).cpu_us().expect("nothing to read").is_none());
    }
}

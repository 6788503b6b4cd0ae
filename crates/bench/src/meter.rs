//! What a stretch of load cost: CPU of the server and of the generator, and the time that went by.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::{Watched, own_cpu_us};

/// A measurement that runs.
pub struct Meter {
    watched: Watched,
    cpu_us: Option<u64>,
    own_us: u64,
    begin: Instant,
}

/// What was spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// CPU time of the server in microseconds; `None` where none is watched.
    pub server_us: Option<u64>,
    /// CPU time of this process in microseconds.
    pub own_us: u64,
    /// What the clock on the wall says.
    pub wall: Duration,
}

impl Meter {
    /// Begins now.
    ///
    /// # Errors
    /// Where a process that is watched is gone.
    pub fn start(watched: &Watched) -> Result<Meter> {
        let cpu_us = watched.cpu_us()?;
        Ok(Meter { watched: watched.clone(), cpu_us, own_us: own_cpu_us(), begin: Instant::now() })
    }

    /// What was spent since then.
    ///
    /// # Errors
    /// As `start`.
    pub fn stop(self) -> Result<Spent> {
        let now = self.watched.cpu_us()?;
        let server_us = now.zip(self.cpu_us).map(|(now, before)| now.saturating_sub(before));
        let own_us = own_cpu_us().saturating_sub(self.own_us);
        Ok(Spent { server_us, own_us, wall: self.begin.elapsed() })
    }
}

impl Spent {
    /// Microseconds of server CPU for each of so many.
    pub fn server_each(&self, count: u64) -> Option<f64> {
        self.server_us.map(|us| us as f64 / count.max(1) as f64)
    }

    /// Microseconds of this process's CPU for each of so many.
    pub fn own_each(&self, count: u64) -> f64 {
        self.own_us as f64 / count.max(1) as f64
    }
}

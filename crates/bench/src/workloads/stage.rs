//! What every workload is given, and how sessions are opened for it.

use std::{ops::Range, sync::Arc};

use anyhow::Result;

use crate::{
    accounts::Accounts, crowd, flow::Pace, link::Link, process::Watched, progress::Progress, report::Reports,
    target::Target,
};

/// The server, the accounts, the processes to watch, and where reports go.
pub struct Stage {
    /// The server.
    pub target: Arc<Target>,
    /// Who logs in.
    pub accounts: Accounts,
    /// The server's processes.
    pub watched: Watched,
    /// Where reports go.
    pub reports: Reports,
    /// Logins at a time.
    pub at_once: usize,
}

impl Stage {
    /// Makes the accounts of these numbers.
    ///
    /// # Errors
    /// Where that fails.
    pub async fn make(&self, numbers: Range<usize>) -> Result<()> {
        self.accounts.make(&self.target, numbers).await
    }

    /// Available sessions of the accounts of these numbers, in their order.
    ///
    /// # Errors
    /// Where one does not come in.
    pub async fn open(&self, numbers: Range<usize>) -> Result<Vec<Link>> {
        let progress = Progress::begin("sessions", numbers.len() as u64);
        let accounts = numbers.map(|n| Ok((n, self.accounts.account(n)?))).collect::<Result<Vec<_>>>()?;
        let mut links = crowd::each(accounts, self.at_once, |(number, account)| {
            let (target, counter) = (self.target.clone(), progress.counter());
            async move {
                let link = target.appear(&account, "bench").await?;
                counter.add(1);
                Ok((number, link))
            }
        })
        .await?;
        links.sort_by_key(|(number, _)| *number);
        Ok(links.into_iter().map(|(_, link)| link).collect())
    }

    /// Ends sessions.
    ///
    /// # Errors
    /// Where one does not end.
    pub async fn close(&self, links: Vec<Link>) -> Result<()> {
        crowd::each(links, self.at_once, |link| link.close()).await.map(drop)
    }
}

/// How many, and how fast: as many as a window lets, or at a rate for a while.
#[derive(Clone, Debug, clap::Args)]
pub struct Amount {
    /// As fast as they are heard; without it at `--rate`
    #[arg(long)]
    pub saturate: bool,
    /// In a second, all sessions together
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// Seconds at that rate
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// All sessions together, with --saturate
    #[arg(long, default_value_t = 100_000)]
    pub count: u64,
    /// On their way for each session at most, with --saturate
    #[arg(long, default_value_t = 64)]
    pub window: usize,
    /// All sessions together, before what is measured
    #[arg(long, default_value_t = 2_000)]
    pub warm_up: u64,
}

impl Amount {
    /// How many each of so many lines says, first to warm up, then to be measured.
    pub fn each(&self, lines: usize) -> (u64, u64) {
        let lines = lines.max(1) as u64;
        let count = if self.saturate { self.count } else { (self.rate * self.seconds) as u64 };
        (self.warm_up.div_ceil(lines), count.div_ceil(lines).max(1))
    }

    /// How fast.
    pub fn pace(&self) -> Pace {
        if self.saturate { Pace::Window(self.window) } else { Pace::Rate(self.rate.max(0.001)) }
    }

    /// In words.
    pub fn words(&self) -> String {
        match self.saturate {
            true => format!("saturated, {} under way in each session at most", self.window),
            false => format!("{} a second for {} s", self.rate, self.seconds),
        }
    }
}

//! A bar on stderr that says how far the load has come, where somebody looks at it.

use std::{
    io::{IsTerminal, stderr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

/// How often the bar is drawn.
const DRAW: Duration = Duration::from_millis(250);

/// A count that the bar shows.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// So many more are done.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

/// A bar; it goes when this value does.
pub struct Progress {
    counter: Counter,
    drawing: Option<(ProgressBar, JoinHandle<()>)>,
}

impl Progress {
    /// Begins a bar for `total` of something, within a runtime.
    pub fn begin(what: &'static str, total: u64) -> Progress {
        let counter = Counter::default();
        let drawing = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {per_sec} {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what);
            let (shown, count) = (bar.clone(), counter.clone());
            let drawing = tokio::spawn(async move {
                let mut due = tokio::time::interval(DRAW);
                loop {
                    due.tick().await;
                    shown.set_position(count.0.load(Ordering::Relaxed));
                }
            });
            (bar, drawing)
        });
        Progress { counter, drawing }
    }

    /// What those who work count on.
    pub fn counter(&self) -> Counter {
        self.counter.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((bar, drawing)) = self.drawing.take() {
            drawing.abort();
            bar.finish_and_clear();
        }
    }
}

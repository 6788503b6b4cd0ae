//! Numbered stanzas through sessions, as fast as they are heard or as a schedule has it, and the count of what came.
//!
//! At a rate a time begins when the stanza was due, whatever became of those before it, so that a server that stands
//! still is not spared those that would have been sent meanwhile.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Error, Result};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{
    latency::{Clock, Latency},
    link::{Reader, Writer},
    meter::{Meter, Spent},
    order::Order,
    pacer::Pacer,
    process::Watched,
    progress::{Counter, Progress},
    scanner::Stanza,
};

/// Stanzas in one write, at most.
const BATCH: usize = 16;
/// Stanzas of one session that are due and not written, at most; where there are more, the schedule waits.
const DUE: usize = 1024;
/// Until the first stanza of a schedule is due.
const LEAD: Duration = Duration::from_millis(20);

/// What one stanza is to those who wait for numbers.
pub enum Heard {
    /// One that was waited for: its number, and when it was due by the clock.
    Number(u64, u64),
    /// The one behind the last.
    End,
    /// An error in answer to one.
    Refused,
    /// Something else.
    Other,
}

/// How the stanzas of a workload look.
pub trait Talk: Send + Sync + 'static {
    /// Writes one with its number, and when it was due.
    fn say(&self, out: &mut String, number: u64, ns: u64);
    /// Writes the one behind the last, which is heard like the others.
    fn end(&self, out: &mut String);
    /// What has come.
    fn hear(&self, stanza: Stanza<'_>) -> Heard;
    /// Whether those who hear must hear them in the order in which they were said.
    fn ordered(&self) -> bool {
        true
    }
}

/// One who talks, and those who hear all of it.
pub struct Line<T> {
    /// How.
    pub talk: Arc<T>,
    /// Who talks.
    pub writer: Writer,
    /// Who hears.
    pub ears: Vec<Reader>,
    /// What the one who talks hears, where that is nobody of those: only errors count there.
    pub aside: Option<Reader>,
}

/// How fast.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many stanzas of each line said and not heard, at most.
    Window(usize),
    /// So many in a second, of all lines together.
    Rate(f64),
}

/// How much, how fast, and how long to wait for what does not come.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first number of each line.
    pub first: u64,
    /// How many each line says.
    pub each: u64,
    /// How fast.
    pub pace: Pace,
    /// Silence after which the rest counts as lost.
    pub patience: Duration,
}

/// What was said, and what became of it.
#[derive(Default)]
pub struct Tally {
    /// Stanzas that were to be heard: those said, once for each who hears.
    pub expected: u64,
    /// Those that were.
    pub heard: u64,
    /// Those that were not.
    pub lost: u64,
    /// Those that were heard again.
    pub doubled: u64,
    /// Those that came behind later ones.
    pub disordered: u64,
    /// Errors in answer.
    pub refused: u64,
    /// Sessions that ended before their time, and why.
    pub failures: Vec<String>,
}

impl Tally {
    /// Whether everything came once, and in order.
    pub fn clean(&self) -> bool {
        let wrong = self.lost + self.doubled + self.disordered + self.refused;
        wrong == 0 && self.failures.is_empty()
    }

    /// Takes note of what went wrong otherwise.
    pub fn fail(&mut self, failure: Option<Error>) {
        self.failures.extend(failure.map(|error| format!("{error:#}")));
    }

    /// Adds what one heard of so many that were said.
    pub fn hear(&mut self, sent: u64, order: &Order, ordered: bool) {
        self.expected += sent;
        self.heard += order.heard();
        self.lost += order.lost(sent);
        self.doubled += order.doubled;
        self.disordered += if ordered { order.disordered } else { 0 };
    }

    /// Adds another one.
    pub fn add(&mut self, other: Tally) {
        self.expected += other.expected;
        self.heard += other.heard;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.disordered += other.disordered;
        self.refused += other.refused;
        self.failures.extend(other.failures);
    }
}

/// The end of a flow.
pub struct Outcome {
    /// The counts.
    pub tally: Tally,
    /// From when a stanza was due until it was heard.
    pub latency: Latency,
    /// From when it was due until it was written: what of that is the generator's own.
    pub late: Latency,
    /// From the first one that was said to the last one that was heard.
    pub elapsed: Duration,
    /// CPU time meanwhile.
    pub spent: Spent,
}

struct Window {
    permits: Semaphore,
    ears: u64,
    heard: AtomicU64,
}

impl Window {
    /// Makes room for as many as all who hear have heard now.
    fn heard(&self, fresh: u64) {
        let before = self.heard.fetch_add(fresh, Ordering::Relaxed);
        let whole = (before + fresh) / self.ears - before / self.ears;
        self.permits.add_permits(usize::try_from(whole).unwrap_or(usize::MAX));
    }
}

/// When the stanzas of one line are to be said.
enum Source {
    Window(Arc<Window>),
    Schedule(mpsc::Receiver<u64>),
}

impl Source {
    /// Waits until one is due, and gives that moment and those of all others that are due as well, at most `most`.
    async fn due(
        &mut self,
        into: &mut Vec<u64>,
        most: usize,
        clock: Clock,
        patience: Duration,
    ) -> Result<()> {
        into.clear();
        match self {
            Source::Window(window) => {
                let permit = timeout(patience, window.permits.acquire()).await;
                permit.context("what was said is not heard")??.forget();
                let mut count = 1;
                while count < most.min(BATCH) && window.permits.try_acquire().map(|p| p.forget()).is_ok() {
                    count += 1;
                }
                into.resize(count, clock.ns());
            }
            Source::Schedule(schedule) => {
                into.push(schedule.recv().await.context("the schedule has ended")?);
                while into.len() < most.min(BATCH) {
                    let Ok(ns) = schedule.try_recv() else { break };
                    into.push(ns);
                }
            }
        }
        Ok(())
    }
}

/// What all who hear share.
#[derive(Clone)]
struct Hall {
    clock: Clock,
    latency: Arc<Mutex<Latency>>,
    late: Arc<Mutex<Latency>>,
    counter: Counter,
    plan: Plan,
    /// How long nothing may come.
    silence: Duration,
}

/// The end of one who hears.
struct Listened {
    reader: Reader,
    order: Order,
    refused: u64,
    last_ns: u64,
    ended: bool,
    failure: Option<Error>,
}

impl Listened {
    /// Takes in what has been read; how many numbers there were that were waited for.
    fn take_in<T: Talk>(&mut self, talk: &T, hall: &Hall) -> Result<u64> {
        let (now, mut fresh) = (hall.clock.ns(), 0);
        let mut latency = hall.latency.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(range) = self.reader.pop()? {
            match talk.hear(self.reader.stanza(range)) {
                Heard::Number(number, due) if self.order.hear(number) => {
                    latency.record(now.saturating_sub(due));
                    (fresh, self.last_ns) = (fresh + 1, now);
                }
                Heard::Number(..) | Heard::Other => {}
                Heard::End => self.ended = true,
                Heard::Refused => self.refused += 1,
            }
        }
        Ok(fresh)
    }
}

/// The end of a line.
struct Conversed<T> {
    line: Line<T>,
    tally: Tally,
    last_ns: u64,
}

/// Runs all lines to their end, and gives them back.
///
/// # Errors
/// Where the machine refuses what the generator needs. What goes wrong between the sessions stands in the outcome.
pub async fn run<T: Talk>(
    what: &'static str,
    lines: Vec<Line<T>>,
    plan: Plan,
    watched: &Watched,
) -> Result<(Vec<Line<T>>, Outcome)> {
    let ears: usize = lines.iter().map(|line| line.ears.len()).sum();
    let progress = Progress::begin(what, plan.each * ears as u64);
    let gap = match plan.pace {
        Pace::Window(_) => Duration::ZERO,
        Pace::Rate(rate) => LEAD + Duration::from_secs_f64(lines.len() as f64 / rate.max(0.001)),
    };
    let (clock, latency, late) =
        (Clock::start(), Arc::<Mutex<Latency>>::default(), Arc::<Mutex<Latency>>::default());
    let (counter, silence) = (progress.counter(), plan.patience + gap);
    let hall = Hall { clock, latency: latency.clone(), late: late.clone(), counter, plan, silence };
    let meter = Meter::start(watched)?;
    let (mut running, mut schedules) = (Vec::new(), Vec::new());
    for line in lines {
        let (window, source) = match plan.pace {
            Pace::Window(size) => {
                let permits = Semaphore::new(size.max(1));
                let ears = line.ears.len().max(1) as u64;
                let window = Arc::new(Window { permits, ears, heard: AtomicU64::new(0) });
                (Some(window.clone()), Source::Window(window))
            }
            Pace::Rate(_) => {
                let (schedule, due) = mpsc::channel(DUE);
                schedules.push(schedule);
                (None, Source::Schedule(due))
            }
        };
        running.push(tokio::spawn(converse(line, source, window, hall.clone())));
    }
    let pacing = match plan.pace {
        Pace::Rate(rate) => Some(tokio::spawn(keep_pace(schedules, rate, plan.each, clock))),
        Pace::Window(_) => None,
    };
    let (mut lines, mut tally, mut last_ns) = (Vec::new(), Tally::default(), 0);
    for line in running {
        let ended = line.await?;
        tally.add(ended.tally);
        last_ns = last_ns.max(ended.last_ns);
        lines.push(ended.line);
    }
    if let Some(pacing) = pacing {
        pacing.await??;
    }
    let spent = meter.stop()?;
    let [latency, late] = [latency, late]
        .map(|times| std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner)));
    Ok((lines, Outcome { tally, latency, late, elapsed: Duration::from_nanos(last_ns), spent }))
}

/// Says to each line in turn when its next stanza is due.
async fn keep_pace(lines: Vec<mpsc::Sender<u64>>, rate: f64, each: u64, clock: Clock) -> Result<()> {
    let mut pacer = Pacer::new().context("failed to make a timer")?;
    let begin = clock.ns() + LEAD.as_nanos() as u64;
    for number in 0..each * lines.len() as u64 {
        let due = begin + (number as f64 * 1e9 / rate) as u64;
        pacer.until(clock.at(due)).await.context("failed to wait")?;
        // A line that has ended says why itself.
        let _ = lines[(number % lines.len() as u64) as usize].send(due).await;
    }
    Ok(())
}

/// One line from its first stanza until all have heard the last.
async fn converse<T: Talk>(
    line: Line<T>,
    source: Source,
    window: Option<Arc<Window>>,
    hall: Hall,
) -> Conversed<T> {
    let Line { talk, writer, ears, aside } = line;
    let hearing: Vec<_> = ears
        .into_iter()
        .map(|ear| tokio::spawn(hear(ear, talk.clone(), window.clone(), hall.clone())))
        .collect();
    let aside = aside.map(|reader| {
        let (stop, stopped) = oneshot::channel();
        (stop, tokio::spawn(overhear(reader, stopped)))
    });
    let mut tally = Tally::default();
    let (sent, failure) = say(&*talk, &writer, source, &hall).await;
    tally.fail(failure);
    let (mut ears, mut last_ns) = (Vec::new(), 0);
    for ear in hearing {
        match ear.await {
            Ok(end) => {
                tally.hear(sent, &end.order, talk.ordered());
                tally.refused += end.refused;
                tally.fail(end.failure);
                last_ns = last_ns.max(end.last_ns);
                ears.push(end.reader);
            }
            Err(panic) => tally.fail(Some(panic.into())),
        }
    }
    let aside = match aside {
        None => None,
        Some((stop, overhearing)) => {
            // It may have ended by itself.
            let _ = stop.send(());
            match overhearing.await {
                Ok((reader, refused, failure)) => {
                    tally.refused += refused;
                    tally.fail(failure);
                    Some(reader)
                }
                Err(panic) => {
                    tally.fail(Some(panic.into()));
                    None
                }
            }
        }
    };
    Conversed { line: Line { talk, writer, ears, aside }, tally, last_ns }
}

/// Says all that is due; how many were said, and what went wrong.
async fn say<T: Talk>(talk: &T, writer: &Writer, mut source: Source, hall: &Hall) -> (u64, Option<Error>) {
    let Plan { first, each, patience, .. } = hall.plan;
    let scheduled = matches!(source, Source::Schedule(_));
    let (mut sent, mut text, mut moments) = (0, String::new(), Vec::new());
    while sent < each {
        let most = usize::try_from(each - sent).unwrap_or(BATCH);
        if let Err(error) = source.due(&mut moments, most, hall.clock, patience).await {
            return (sent, Some(error));
        }
        text.clear();
        for (number, ns) in (first + sent..).zip(&moments) {
            talk.say(&mut text, number, *ns);
        }
        if let Err(error) = writer.write(&text).await {
            return (sent, Some(error));
        }
        sent += moments.len() as u64;
        if scheduled {
            let now = hall.clock.ns();
            let mut late = hall.late.lock().unwrap_or_else(PoisonError::into_inner);
            moments.iter().for_each(|due| late.record(now.saturating_sub(*due)));
        }
    }
    text.clear();
    talk.end(&mut text);
    (sent, writer.write(&text).await.err())
}

/// Hears until all numbers and what stands behind them have come, or nothing comes any more.
async fn hear<T: Talk>(reader: Reader, talk: Arc<T>, window: Option<Arc<Window>>, hall: Hall) -> Listened {
    let order = Order::new(hall.plan.first, hall.plan.each);
    let mut ear = Listened { reader, order, refused: 0, last_ns: 0, ended: false, failure: None };
    loop {
        let fresh = match ear.take_in(&*talk, &hall) {
            Ok(fresh) => fresh,
            Err(error) => {
                ear.failure = Some(error);
                return ear;
            }
        };
        hall.counter.add(fresh);
        if let Some(window) = &window {
            window.heard(fresh);
        }
        if ear.ended && ear.order.complete() {
            return ear;
        }
        match timeout(hall.silence, ear.reader.fill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                ear.failure = Some(error);
                return ear;
            }
            // What is missing is counted as lost.
            Err(_) => return ear,
        }
    }
}

/// Counts the errors that come to one who talks, until told to stop.
async fn overhear(mut reader: Reader, mut stop: oneshot::Receiver<()>) -> (Reader, u64, Option<Error>) {
    let mut refused = 0;
    loop {
        loop {
            match reader.pop() {
                Ok(None) => break,
                Ok(Some(range)) => refused += u64::from(reader.stanza(range).is_error()),
                Err(error) => return (reader, refused, Some(error)),
            }
        }
        let more = tokio::select! {
            _ = &mut stop => return (reader, refused, None),
            more = reader.fill() => more,
        };
        if let Err(error) = more {
            return (reader, refused, Some(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_added_up() {
        let mut order = Order::new(0, 3);
        for number in [2, 1, 1] {
            order.hear(number);
        }
        let mut one = Tally::default();
        one.hear(3, &order, true);
        assert_eq!((one.expected, one.heard, one.lost, one.doubled, one.disordered), (3, 2, 1, 1, 1));
        let mut all = Tally::default();
        assert!(all.clean());
        all.hear(3, &order, false);
        assert_eq!(all.disordered, 0, "where order does not matter");
        all.add(one);
        assert_eq!((all.expected, all.lost, all.doubled), (6, 2, 2));
        assert!(!all.clean());
    }

    #[test]
    fn a_window_opens_when_all_have_heard() {
        let window = Window { permits: Semaphore::new(0), ears: 3, heard: AtomicU64::new(0) };
        window.heard(2);
        assert_eq!(window.permits.available_permits(), 0);
        window.heard(5);
        assert_eq!(window.permits.available_permits(), 2);
        window.heard(2);
        assert_eq!(window.permits.available_permits(), 3);
    }
}
